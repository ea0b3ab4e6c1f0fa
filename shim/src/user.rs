//! The program's memory, as the gate reads and writes it for a call: also where the program blocks the signals of faults.
//!
//! A fault of [`zhuque_sys::user::copy`] is mended by the signal's handler, so it kills a thread that has SIGSEGV or
//! SIGBUS blocked. Such a thread has the kernel copy, which costs a call, and faults there. Who may be one is in
//! `Slot::faults_blocked`. Neighbours: `entry::handler` (the handler), `family::signals` (who blocks).
#![allow(unsafe_code)]

use crate::{control, entry::handler::current_slot};
use core::sync::atomic::Ordering;
use zhuque_sys::{Errno, process, user};

/// Whether a fault of the calling thread might kill it.
fn careful() -> bool {
    // SAFETY: the slot is the calling thread's.
    unsafe { (*current_slot()).faults_blocked.load(Ordering::Relaxed) != 0 }
}

/// [`user::copy`], whatever is blocked.
///
/// # Safety
/// As there.
pub unsafe fn copy(to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    unsafe { if careful() { by_kernel(to, from, bytes) } else { user::copy(to, from, bytes) } }
}

/// The same by process_vm_readv(2) from the process itself, which reports a fault on either side.
///
/// # Safety
/// As for [`user::copy`].
#[cold]
unsafe fn by_kernel(to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    loop {
        let life = control::generation();
        // SAFETY: the caller's argument.
        let copied = unsafe { process::copy_from(process::tid(), to, from, bytes) };
        if control::generation() != life {
            // The id was that of the life before (`outside`): what was read may be somebody else's.
            continue;
        }
        return match copied {
            Ok(copied) if copied == bytes => Ok(()),
            Ok(_) | Err(Errno(libc::EFAULT)) => Err(Errno(libc::EFAULT)),
            // A sandbox does not let it: most memory is good.
            // SAFETY: the caller's argument.
            Err(_) => unsafe { user::copy(to, from, bytes) },
        };
    }
}

/// Reads a plain value from the program's memory.
///
/// # Safety
/// Every bit pattern must be a valid `T`.
pub unsafe fn read<T: Copy>(from: u64) -> Result<T, Errno> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the target is a local of the right size.
    unsafe { copy(value.as_mut_ptr() as u64, from, size_of::<T>())? };
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
