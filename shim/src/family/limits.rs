//! Resource limits: the one of descriptors, of which a save needs a few also where the program has taken all of them.
//!
//! A program that lowers its hard limit leaves no way to more, so the kernel's stays a little higher than what the
//! program is told (`Globals::descriptors_hard`). The soft limit, which is what counts while it runs, is always the
//! kernel's. All other limits are the kernel's own. Neighbours: `processes` (who calls), `save` and `process_state`.
#![allow(unsafe_code)]

use crate::control::{self, Lock};
use crate::gate::{Result64, error, raw};
use crate::user;
use core::sync::atomic::{AtomicU64, Ordering};
use zhuque_abi::layout::OWN_DESCRIPTORS;
use zhuque_abi::life::Life;
use zhuque_sys::{Errno, fs, process};

const NOFILE: u64 = libc::RLIMIT_NOFILE as u64;
/// More descriptors than a save has open at once: seven.
const AT_ONCE: usize = 12;
/// The region's own descriptors (slices, control file, directory, lock), and those of a save.
const ENOUGH: u64 = OWN_DESCRIPTORS + AT_ONCE as u64;

/// getrlimit(2), setrlimit(2), and prlimit(2) on the program itself. `None`: the kernel's own answer will do.
pub fn serve(number: i64, a: [u64; 6]) -> Option<Result64> {
    let (target, resource, new, old) = match number {
        libc::SYS_getrlimit => (0, a[0], 0, a[1]),
        libc::SYS_setrlimit => (0, a[0], a[1], 0),
        _ => (super::ids::real(a[0] as i32), a[1], a[2], a[3]),
    };
    let pid = control::life().pid;
    let ours = target == 0 || target as u32 == pid || super::ids::virtual_thread(target as u32).is_some();
    if ours && resource as u32 == libc::RLIMIT_FSIZE {
        // Memory that is made ahead is written to files: not while this limit changes.
        let _memory = super::memory::Memory::lock();
        let translated = if number == libc::SYS_prlimit64 { target as u64 } else { a[0] };
        return Some(raw(number, [translated, a[1], a[2], a[3], 0, 0]));
    }
    (ours && resource as u32 as u64 == NOFILE).then(|| {
        // Only prlimit(2) takes no address at all.
        if number != libc::SYS_prlimit64 && new | old == 0 { error(libc::EFAULT) } else { descriptors(new, old) }
    })
}

fn descriptors(new: u64, old: u64) -> Result64 {
    let _lock = Lock::state();
    let before = limit()?;
    if new != 0 {
        // SAFETY: two integers.
        let [soft, hard]: [u64; 2] = unsafe { user::read(new) }?;
        if soft > hard {
            return error(libc::EINVAL);
        }
        set(soft, hard)?;
    }
    if old != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(old, &before) }?;
    }
    Ok(0)
}

/// Soft and hard limit of descriptors as the program knows them.
pub fn limit() -> Result<[u64; 2], Errno> {
    let [soft, hard] = process::limit(libc::RLIMIT_NOFILE, None)?;
    Ok(match told().load(Ordering::Relaxed) {
        0 => [soft, hard],
        told => [soft, told - 1],
    })
}

/// Sets both. The state lock is held.
fn set(soft: u64, hard: u64) -> Result<(), Errno> {
    let [_, before] = limit()?;
    // The kernel would allow it up to its own limit, of which the program knows nothing.
    if hard > before && !may_raise() {
        return error(libc::EPERM);
    }
    set_kernel(soft, hard)?;
    tell(hard);
    Ok(())
}

/// Sets the kernel's limits for a program that is to know these.
fn set_kernel(soft: u64, hard: u64) -> Result<(), Errno> {
    let [_, kernel] = process::limit(libc::RLIMIT_NOFILE, None)?;
    let room = hard.max(kernel.min(hard.saturating_add(ENOUGH)));
    process::limit(libc::RLIMIT_NOFILE, Some([soft, room])).map(|_| ())
}

/// Remembers what the program knows, if it is not what the kernel says. In a new life after its commit only.
pub fn tell(hard: u64) {
    let kernel = process::limit(libc::RLIMIT_NOFILE, None).map_or(hard, |[_, kernel]| kernel);
    told().store(if kernel <= hard { 0 } else { hard.saturating_add(1) }, Ordering::Relaxed);
}

/// In a new life, before its commit: the region is not written to.
pub fn revive(soft: u64, hard: u64) {
    if set_kernel(soft, hard).is_err()
        && let Ok([_, kernel]) = process::limit(libc::RLIMIT_NOFILE, None)
    {
        // Less is allowed here.
        let _ = process::limit(libc::RLIMIT_NOFILE, Some([soft.min(kernel), kernel]));
    }
}

/// A child leaves the region: its limit is the one that it knows of, or what it has set since.
pub fn leave() {
    if let (Ok([soft, known]), Ok([_, kernel])) = (limit(), process::limit(libc::RLIMIT_NOFILE, None)) {
        let _ = process::limit(libc::RLIMIT_NOFILE, Some([soft, known.min(kernel)]));
    }
}

/// The program's limit of descriptors, and whether the save cannot have more.
#[derive(Clone, Copy)]
pub struct Room {
    /// Soft and hard limit.
    pub limit: [u64; 2],
    /// See `make_room`.
    pub scarce: bool,
}

/// Descriptors for the save's own use, also where the program has taken all that it may have: raises the limit; where too
/// few are free all the same, closes the control file, which stays mapped. That is enough until everything stands still.
/// No thread of the program runs any more.
pub fn make_room(life: &Life) -> Room {
    let limit = limit().unwrap_or([0; 2]);
    if let Ok([soft, hard]) = process::limit(libc::RLIMIT_NOFILE, None)
        && soft < hard
    {
        // As far as it goes: a program may have more open than its limit is now.
        let _ = process::limit(libc::RLIMIT_NOFILE, Some([hard, hard]));
    }
    let scarce = !has_free_descriptors(life.descriptors.directory);
    if scarce {
        crate::journal::reserve_more();
        let _ = fs::close(life.descriptors.control);
    }
    Room { limit, scarce }
}

/// Whether as many descriptors are free as a save has open at once: takes and gives them back, as copies of `fd`.
fn has_free_descriptors(fd: i32) -> bool {
    let mut copies = [-1; AT_ONCE];
    let mut copy = |to: &mut i32| fs::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0).map(|copy| *to = copy as i32).is_ok();
    let found = copies.iter_mut().all(&mut copy);
    for copy in copies.into_iter().filter(|&copy| copy >= 0) {
        let _ = fs::close(copy);
    }
    found
}

/// Whether the program has CAP_SYS_RESOURCE: whether it may raise a hard limit.
fn may_raise() -> bool {
    /// Bit of the capability, and of the version that two words a set need (capget(2)).
    const SYS_RESOURCE: u32 = 24;
    const VERSION_3: u32 = 0x2008_0522;
    let head = [VERSION_3, 0];
    let mut sets = [0u32; 6];
    let (head, sets) = (head.as_ptr() as u64, sets.as_mut_ptr() as u64);
    if raw(libc::SYS_capget, [head, sets, 0, 0, 0, 0]).is_err() {
        return false;
    }
    // SAFETY: the local that capget has filled.
    let effective = unsafe { core::ptr::read_volatile(sets as *const u32) };
    effective & 1 << SYS_RESOURCE != 0
}

fn told() -> &'static AtomicU64 {
    // SAFETY: an atomic field of the control mapping.
    unsafe { &(*control::globals()).descriptors_hard }
}
