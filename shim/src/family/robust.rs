//! Robust futexes (set_robust_list(2), kernel documentation locking/robust-futexes): what a thread holds when it ends is
//! marked, and who waits for it is woken.
//!
//! The kernel does that for the thread's own id. In a later life the program knows the thread by another one, which is what
//! its futexes hold: then it is done here, as kernel/futex/core.c does it (exit_robust_list). Neighbour: `threads`, whose
//! ends come here.
#![allow(unsafe_code)]

use crate::gate::raw;
use crate::user;
use core::sync::atomic::Ordering;
use zhuque_abi::slot::Slot;
use zhuque_sys::{Errno, process};

/// Parts of a futex of the list.
const WAITERS: u32 = 1 << 31;
const OWNER_DIED_BIT: u64 = 30;
const OWNER: u32 = (1 << OWNER_DIED_BIT) - 1;
/// Most entries that are looked at (ROBUST_LIST_LIMIT).
const MOST: usize = 2048;
/// Bit of an entry's address: it is one with priority inheritance, which the gate refuses.
const INHERITS: u64 = 1;

/// struct robust_list_head.
#[derive(Clone, Copy)]
#[repr(C)]
struct Head {
    /// First entry; the last one leads back to this structure.
    first: u64,
    /// From an entry to its futex.
    offset: u64,
    /// An entry that is being taken or given back, 0: none.
    under_way: u64,
}

/// Whether the kernel knows the calling thread by the id that its futexes hold.
pub fn is_kernels(slot: &Slot) -> bool {
    slot.virtual_tid.load(Ordering::Relaxed) == process::tid()
}

/// Marks what the calling thread holds; it is on its way out, with all signals blocked. A second time changes nothing.
pub fn leave(slot: &Slot) {
    // What cannot be read ends the walk, as in the kernel.
    let _ = walk(slot);
}

fn walk(slot: &Slot) -> Result<(), Errno> {
    let list = slot.robust_list;
    // SAFETY: three integers.
    let Head { first, offset, under_way } = unsafe { user::read(list) }?;
    let futex = |entry: u64| (entry & !INHERITS).wrapping_add(offset);
    let mut entry = first;
    for _ in 0..MOST {
        if entry & !INHERITS == list {
            break;
        }
        // SAFETY: an integer. Before the entry's futex is given away.
        let next: Result<u64, Errno> = unsafe { user::read(entry & !INHERITS) };
        if entry & !INHERITS != under_way & !INHERITS {
            mark(slot, futex(entry), false)?;
        }
        entry = next?;
    }
    if under_way & !INHERITS != 0 { mark(slot, futex(under_way), true) } else { Ok(()) }
}

/// Marks a futex, if it is the thread's. `under_way`: it may have been given back just now, with nobody woken yet.
fn mark(slot: &Slot, futex: u64, under_way: bool) -> Result<(), Errno> {
    if !futex.is_multiple_of(4) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: an integer.
    let word: u32 = unsafe { user::read(futex) }?;
    if under_way && word & OWNER == 0 {
        let _ = raw(libc::SYS_futex, [futex, libc::FUTEX_WAKE as u64, 1, 0, 0, 0]);
    }
    if word & OWNER != slot.virtual_tid.load(Ordering::Relaxed) {
        return Ok(());
    }
    // Nobody but its owner gives it away, so it is set as a whole, by the kernel, which reports a fault. Who is woken takes
    // the other waiters' note along with the futex, or makes it again: they all have to look.
    const SET_BIT: u64 = 8 << 28;
    let all = if word & WAITERS != 0 { i32::MAX as u64 } else { 1 };
    let set = SET_BIT | OWNER_DIED_BIT << 12;
    raw(libc::SYS_futex, [futex, libc::FUTEX_WAKE_OP as u64, all, 0, futex, set]).map(|_| ())
}
