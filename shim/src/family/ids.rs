//! Process and thread ids: the program knows those of its first life; the kernel gives others in each life.
//!
//! The process has one id of its own and every thread has one; ids of other processes are the kernel's. In the first
//! life both are the same and nothing is translated.
#![allow(unsafe_code)]

use crate::control;
use crate::gate::{Result64, error, raw};
use core::sync::atomic::Ordering;
use zhuque_abi::slot::{Slot, state};

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
    let _ = slot;
    raw(number, a)
}
