//! The program's memory, as the gate reads and writes it for a call: also where the program blocks the signals of faults.
//!
//! A fault of [`zhuque_sys::user::copy`] is mended by the signal's handler, so it kills a thread that has SIGSEGV or
//! SIGBUS blocked. Such a thread has the kernel copy, which costs a call, and faults there. Who may be one is in
//! `Slot::faults_blocked`, but for signal handlers: the kernel has everything blocked there, and a program's stack that is
//! none is its death in any case. Neighbours: `entry::handler` (the handler), `family::signals` (who blocks).
#![allow(unsafe_code)]

use crate::{control, entry::handler::current_slot};
use core::sync::atomic::{AtomicU64, Ordering};
use zhuque_sys::{Errno, process, user};

/// The faults that might kill the calling thread.
fn blocked() -> &'static AtomicU64 {
    // SAFETY: the slot is the calling thread's, and mapped as long as the process lives.
    unsafe { &(*current_slot()).faults_blocked }
}

/// Whether a fault might kill the calling thread.
fn careful() -> bool {
    blocked().load(Ordering::Relaxed) != 0
}

/// [`user::copy`], whatever is blocked.
///
/// # Safety
/// As there.
pub unsafe fn copy(to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    let copied = unsafe { user::copy_unless(blocked(), to, from, bytes) };
    // Perhaps only now: a signal that has come meanwhile has had to wait, and is blocked.
    if copied.is_err() && careful() {
        // SAFETY: the caller's argument.
        return unsafe { by_kernel(to, from, bytes) };
    }
    copied
}

/// The same by process_vm_readv(2) from the process itself, which reports a fault on either side.
///
/// # Safety
/// As for [`user::copy`].
#[cold]
unsafe fn by_kernel(to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes {
        let life = control::generation();
        let at = done as u64;
        // SAFETY: the caller's argument.
        let copied = unsafe { process::copy_from(process::tid(), to + at, from + at, bytes - done) };
        if control::generation() != life {
            // The id was that of the life before (`outside`): what was read may be somebody else's.
            continue;
        }
        match copied {
            // Not more than about 2 GiB at once.
            Ok(copied) if copied > 0 => done += copied,
            Ok(_) | Err(Errno(libc::EFAULT)) => return Err(Errno(libc::EFAULT)),
            // A sandbox does not let it: most memory is good.
            // SAFETY: the caller's argument.
            Err(_) => return unsafe { user::copy(to + at, from + at, bytes - done) },
        }
    }
    Ok(())
}

/// Whether the kernel can read the program's memory there. It asks for more than the processor in copies between processes:
/// what may be written may be read (mm/gup.c, check_vma_flags), so that is asked in a call that copies nothing else.
#[cold]
fn is_readable(address: u64) -> bool {
    /// No value of rt_sigprocmask(2), which reads the mask first.
    const NOTHING: usize = usize::MAX;
    let mask = (address & !7) as usize;
    // SAFETY: reads eight bytes, within a page, and does nothing.
    let found = unsafe { process::other(libc::SYS_rt_sigprocmask, [NOTHING, mask, 0, 8, 0, 0]) };
    found == Err(Errno(libc::EINVAL))
}

/// Reads a plain value from the program's memory.
///
/// # Safety
/// Every bit pattern must be a valid `T`.
pub unsafe fn read<T: Copy>(from: u64) -> Result<T, Errno> {
    const { assert!(size_of::<T>() <= 4096, "more pages than two") };
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    let (to, bytes) = (value.as_mut_ptr() as u64, size_of::<T>());
    // SAFETY: the target is a local of the right size.
    let mut copied = unsafe { copy(to, from, bytes) };
    if copied.is_err() && careful() && is_readable(from) && is_readable(from.wrapping_add(bytes as u64 - 1)) {
        // SAFETY: as above.
        copied = unsafe { user::copy(to, from, bytes) };
    }
    copied?;
    // SAFETY: zeroed, then overwritten by plain bytes; valid by the caller's argument.
    Ok(unsafe { value.assume_init() })
}

/// The program's string at `address` (0: empty), as far as the buffer holds it.
pub fn read_string(address: u64, buffer: &mut [u8]) -> Result<&[u8], Errno> {
    let mut length = 0;
    while address != 0 && length < buffer.len() {
        // SAFETY: a byte.
        let byte: u8 = unsafe { read(address + length as u64) }?;
        if byte == 0 {
            break;
        }
        buffer[length] = byte;
        length += 1;
    }
    Ok(&buffer[..length])
}

/// Writes a plain value to the program's memory.
///
/// # Safety
/// `to` must be memory of the program's.
pub unsafe fn write<T: Copy>(to: u64, value: &T) -> Result<(), Errno> {
    // SAFETY: the source is a valid reference; the target is the caller's argument.
    unsafe { copy(to, value as *const T as u64, size_of::<T>()) }
}
