//! Process and thread ids: the program knows those of its first life; the kernel gives others in each life.
//!
//! The process has one id of its own and every thread has one; ids of other processes are the kernel's. In the first
//! life both are the same and nothing is translated.
#![allow(unsafe_code)]

use crate::gate::{Result64, error, raw};
use crate::{control, user};
use core::sync::atomic::Ordering;
use zhuque_abi::slot::{SigInfo, Slot, state};
use zhuque_sys::{Errno, process};

/// The process id as the program knows it.
pub fn virtual_pid() -> u32 {
    // SAFETY: constant after start.
    unsafe { (*control::header()).virtual_pid }
}

/// The parent's id as the program knows it: its first launcher's for as long as a launcher is its parent.
pub fn virtual_parent(real: u32) -> u32 {
    // SAFETY: constant after start.
    let known = unsafe { (*control::header()).virtual_parent };
    if real == control::life().parent { known } else { real }
}

/// The kernel's id for one that the program names: the process, one of its threads, or somebody else.
pub fn real(id: i32) -> i32 {
    if id < -1 && id != i32::MIN {
        // A process group.
        return -real(-id);
    }
    if id <= 0 {
        return id;
    }
    let wanted = id as u32;
    if wanted == virtual_pid() {
        return control::life().pid as i32;
    }
    real_thread(wanted).map_or(id, |tid| tid as i32)
}

/// For wait4: a process group that the program names by its own id; everything else is a child's id and the kernel's.
pub fn real_group(id: i32) -> i32 {
    if id < -1 { real(id) } else { id }
}

/// The kernel's id of the thread that the program knows by `wanted`.
pub fn real_thread(wanted: u32) -> Option<u32> {
    if control::life().generation == 0 {
        return None;
    }
    (0..control::slots())
        .find_map(|index| {
            // SAFETY: the slot lies in the control mapping and the fields are atomics.
            let (live, tid) = unsafe {
                let slot = control::slot(index);
                ((*slot).state.load(Ordering::Acquire), (*slot).virtual_tid.load(Ordering::Relaxed))
            };
            (live != state::FREE && tid == wanted).then(|| control::life_thread(index).tid.load(Ordering::Relaxed))
        })
        .filter(|&tid| tid != 0)
}

/// The slot of the thread that has the kernel's id `tid`.
pub fn slot_of(tid: u32) -> Option<usize> {
    (0..control::slots()).find(|&index| tid != 0 && control::life_thread(index).tid.load(Ordering::Relaxed) == tid)
}

/// The id by which the program knows the thread that has the kernel's id `tid`.
pub fn virtual_thread(tid: u32) -> Option<u32> {
    let index = slot_of(tid)?;
    // SAFETY: an atomic field of the control mapping.
    Some(unsafe { (*control::slot(index)).virtual_tid.load(Ordering::Relaxed) }).filter(|&known| known != 0)
}

/// The program's id for a process id of the kernel's: its own, if that is meant.
pub fn shown(pid: u32) -> u32 {
    if pid == control::life().pid { virtual_pid() } else { pid }
}

/// Gives a new thread the id by which the program will know it: the kernel's, unless another thread has that already.
/// Parent and child both ask; the first answer holds.
pub fn assign(slot: &Slot, tid: u32) -> u32 {
    let mut wanted = tid;
    if control::life().generation != 0 {
        while taken(wanted, slot.index as usize) {
            // Ids above the kernel's largest (4,194,304) never collide with one of the kernel's.
            wanted = 0x0080_0000 + slot.index + (wanted & 0x7f) * 0x1_0000;
        }
    }
    match slot.virtual_tid.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => wanted,
        Err(already) => already,
    }
}

fn taken(wanted: u32, except: usize) -> bool {
    wanted == virtual_pid()
        || (0..control::slots()).filter(|&index| index != except).any(|index| {
            // SAFETY: as in `real_thread`.
            unsafe {
                let slot = control::slot(index);
                (*slot).state.load(Ordering::Acquire) != state::FREE
                    && (*slot).virtual_tid.load(Ordering::Relaxed) == wanted
            }
        })
}

/// kill, tkill, tgkill and their siblings with a siginfo.
pub fn send_signal(slot: &mut Slot, number: i64, mut a: [u64; 6]) -> Result64 {
    match number {
        libc::SYS_kill | libc::SYS_rt_sigqueueinfo | libc::SYS_tkill => {
            let id = a[0] as i32;
            if number == libc::SYS_kill && super::processes::is_lost(id) {
                // A child that a failure took is a zombie until it is waited for.
                return Ok(0);
            }
            if number == libc::SYS_tkill && id <= 0 {
                return error(libc::EINVAL);
            }
            a[0] = real(id) as u64;
        }
        libc::SYS_tgkill | libc::SYS_rt_tgsigqueueinfo => {
            a[0] = real(a[0] as i32) as u64;
            a[1] = real(a[1] as i32) as u64;
        }
        _ => {}
    }
    match own_power(slot, number, a)? {
        Some((tid, info)) if super::recovery::send(tid, info) => Ok(0),
        _ => raw(number, a).inspect(|_| crate::save::note_sent()),
    }
}

const SIGPWR: u64 = libc::SIGPWR as u64;
/// si_code of tgkill.
pub const SI_TKILL: u32 = -6i32 as u32;

/// The kernel's id of the thread that a SIGPWR of the program's own is meant for, with its siginfo, if the call names a
/// thread. A SIGPWR for the process announces a power failure, whoever sends it.
fn own_power(slot: &Slot, number: i64, a: [u64; 6]) -> Result<Option<(u32, SigInfo)>, Errno> {
    let (tid, signal) = match number {
        libc::SYS_tkill => (a[0] as u32, a[1]),
        libc::SYS_tgkill | libc::SYS_rt_tgsigqueueinfo if a[0] as u32 == control::life().pid => (a[1] as u32, a[2]),
        _ => return Ok(None),
    };
    if signal as u32 != SIGPWR as u32 || slot.borrowed != 0 {
        return Ok(None);
    }
    let mut info: SigInfo = [0; 16];
    if number == libc::SYS_rt_tgsigqueueinfo {
        // SAFETY: a siginfo.
        info = unsafe { user::read(a[3]) }?;
        info[0] = SIGPWR;
    } else {
        // SAFETY: no memory involved.
        let user = unsafe { process::other(libc::SYS_getuid, [0; 6]) }.unwrap_or(0) as u64;
        info[0] = SIGPWR;
        info[1] = u64::from(SI_TKILL);
        // As the program knows it: it may be taken in a later life.
        info[2] = u64::from(virtual_pid()) | user << 32;
    }
    Ok(Some((tid, info)))
}
