//! What a program says of its memory beyond protection: locked, not in a core file, huge pages. The mapping table notes it
//! ([`flag`]), and a resume tells the kernel again.
//!
//! Neighbours: `memory` (madvise itself), `maptree`.
#![allow(unsafe_code)]

use super::memory::{Memory, full};
use crate::control;
use crate::gate::{Result64, error, raw};
use zhuque_abi::layout::{PAGE, TASK_SIZE, page_up};
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::{Attr, MapTree};
use zhuque_sys::mm;

/// mlock2(2): pages are locked when they are touched.
const MLOCK_ONFAULT: usize = 1;
const MADV_COLLAPSE: i32 = 25;

/// process_madvise(2). Advice that discards is refused, as by kernels before 6.13: its ranges would have to be served one
/// by one, also where the target is this process by another name.
pub fn process_madvise(a: [u64; 6]) -> Result64 {
    match a[3] as i32 {
        libc::MADV_COLD | libc::MADV_PAGEOUT | libc::MADV_WILLNEED | MADV_COLLAPSE => raw(libc::SYS_process_madvise, a),
        _ => error(libc::EINVAL),
    }
}

/// mlock(2), mlock2(2), munlock(2).
pub fn lock(memory: &mut Memory, number: i64, a: [u64; 6]) -> Result64 {
    raw(number, a)?;
    let (start, end) = (a[0] & !(PAGE - 1), page_up(a[0].wrapping_add(a[1])));
    if start >= end {
        return Ok(0);
    }
    mark(memory, start, end, flag::LOCKED, number != libc::SYS_munlock)
}

/// mlockall(2), munlockall(2). That what is mapped later is to be locked, too, is not kept.
pub fn lock_all(memory: &mut Memory, number: i64, a: [u64; 6]) -> Result64 {
    raw(number, a)?;
    let lock = number == libc::SYS_mlockall;
    if lock && a[0] & libc::MCL_CURRENT as u64 == 0 {
        return Ok(0);
    }
    set(memory, 0, TASK_SIZE, flag::LOCKED, lock)?;
    Ok(0)
}

/// Sets or clears a flag on a range.
pub fn mark(memory: &mut Memory, start: u64, end: u64, bits: u16, on: bool) -> Result64 {
    set(memory, start, end, bits, on)?;
    let mut at = start;
    for run in memory.tree.range(start, end).filter(|run| run.attr.kind != Kind::Headroom) {
        if run.start > at {
            break;
        }
        at = run.end;
    }
    if at < end { error(libc::ENOMEM) } else { Ok(0) }
}

fn set(memory: &mut Memory, start: u64, end: u64, bits: u16, on: bool) -> Result<(), zhuque_sys::Errno> {
    let change = |attr: &mut Attr| match attr.kind {
        Kind::Control | Kind::Volatile | Kind::Headroom => {}
        _ if on => attr.flags |= bits,
        _ => attr.flags &= !bits,
    };
    memory.tree.update(start, end, change).map_err(full)
}

/// In a resume, before its commit: says it again. None of it changes what the program reads, so what this kernel or user
/// does not allow is left.
pub fn revive() {
    // SAFETY: nobody else runs; the table is only read.
    let tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
    for run in tree.iter().filter(|run| run.attr.flags & (flag::LOCKED | flag::DONTDUMP | flag::HUGEPAGE) != 0) {
        // SAFETY: the program's own memory; no content changes.
        unsafe {
            if run.attr.flags & flag::DONTDUMP != 0 {
                let _ = mm::madvise(run.start, run.bytes(), libc::MADV_DONTDUMP);
            }
            if run.attr.flags & flag::HUGEPAGE != 0 {
                let _ = mm::madvise(run.start, run.bytes(), libc::MADV_HUGEPAGE);
            }
            if run.attr.flags & flag::LOCKED != 0 {
                // As they are touched: a resume takes as long for much memory as for little.
                let _ = zhuque_sys::process::other(
                    libc::SYS_mlock2,
                    [run.start as usize, run.bytes() as usize, MLOCK_ONFAULT, 0, 0, 0],
                );
            }
        }
    }
}
