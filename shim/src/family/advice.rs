//! What a program says of its memory beyond protection: locked, not in a core file, huge pages. The mapping table notes it
//! ([`flag`]), and a resume tells the kernel again.
//!
//! Neighbours: `memory` (madvise itself), `maptree`.
#![allow(unsafe_code)]

use super::clocks::in_one_life;
use super::memory::{Memory, full};
use crate::control;
use crate::gate::{Result64, error, raw};
use zhuque_abi::layout::{PAGE, TASK_SIZE, page_up};
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::{Attr, MapTree, Mapping};
use zhuque_sys::{Errno, process};

/// mlock2(2): pages are locked when they are touched.
const MLOCK_ONFAULT: u64 = 1;
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
    in_one_life(|| {
        raw(number, a)?;
        let (start, end) = (a[0] & !(PAGE - 1), page_up(a[0].wrapping_add(a[1])));
        match start < end {
            true => mark(memory, start, end, flag::LOCKED, number != libc::SYS_munlock),
            false => Ok(0),
        }
    })
}

/// madvise(2) with advice that is kept: the kernel has its say first.
pub fn advise(memory: &mut Memory, start: u64, end: u64, advice: i32) -> Result64 {
    let (bits, on) = match advice {
        libc::MADV_DONTDUMP => (flag::DONTDUMP, true),
        libc::MADV_DODUMP => (flag::DONTDUMP, false),
        libc::MADV_HUGEPAGE => (flag::HUGEPAGE, true),
        _ => (flag::HUGEPAGE, false),
    };
    in_one_life(|| {
        raw(libc::SYS_madvise, [start, end - start, advice as u64, 0, 0, 0])?;
        mark(memory, start, end, bits, on)
    })
}

/// mlockall(2), munlockall(2). What is mapped is locked one by one: not the gate's own. That what is mapped later is to be
/// locked, too, is not kept.
pub fn lock_all(memory: &mut Memory, number: i64, a: [u64; 6]) -> Result64 {
    const ON_FAULT: u64 = 4;
    let flags = a[0];
    let (now, later) = (flags & libc::MCL_CURRENT as u64 != 0, flags & libc::MCL_FUTURE as u64 != 0);
    if number == libc::SYS_munlockall || !now || flags & !(ON_FAULT | 3) != 0 {
        let result = raw(number, a)?;
        if number == libc::SYS_munlockall {
            set(memory, 0, TASK_SIZE, flag::LOCKED, false)?;
        }
        return Ok(result);
    }
    in_one_life(|| {
        for run in memory.tree.range(0, TASK_SIZE).filter(|run| is_programs(run.attr.kind)) {
            let locked = lock_run(run, flags & ON_FAULT == 0);
            // Where nothing may be read nothing can be fetched; it is locked all the same.
            if run.attr.prot & libc::PROT_READ as u8 != 0 {
                locked.inspect_err(|_| unlock_all())?;
            }
        }
        if later {
            raw(number, [flags & !(libc::MCL_CURRENT as u64), 0, 0, 0, 0, 0]).inspect_err(|_| unlock_all())?;
        }
        set(memory, 0, TASK_SIZE, flag::LOCKED, true)?;
        Ok(0)
    })
}

fn unlock_all() {
    let _ = raw(libc::SYS_munlockall, [0; 6]);
}

fn lock_run(run: Mapping, fetch: bool) -> Result<(), Errno> {
    let how = if fetch { 0 } else { MLOCK_ONFAULT };
    raw(libc::SYS_mlock2, [run.start, run.bytes(), how, 0, 0, 0]).map(|_| ())
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

fn set(memory: &mut Memory, start: u64, end: u64, bits: u16, on: bool) -> Result<(), Errno> {
    let change = |attr: &mut Attr| match attr.kind {
        kind if !is_programs(kind) => {}
        _ if on => attr.flags |= bits,
        _ => attr.flags &= !bits,
    };
    memory.tree.update(start, end, change).map_err(full)
}

fn is_programs(kind: Kind) -> bool {
    !matches!(kind, Kind::Control | Kind::Volatile | Kind::Headroom)
}

/// Tells the kernel again where other memory has taken the place of what it was told of. None of it changes what the program
/// reads, so what this kernel or user does not allow is left.
pub fn again(start: u64, end: u64, flags: u16) {
    let tell = |bit: u16, number: i64, argument: u64| {
        if flags & bit != 0 {
            let _ = raw(number, [start, end - start, argument, 0, 0, 0]);
        }
    };
    tell(flag::DONTDUMP, libc::SYS_madvise, libc::MADV_DONTDUMP as u64);
    tell(flag::HUGEPAGE, libc::SYS_madvise, libc::MADV_HUGEPAGE as u64);
    // As it is touched: a resume takes as long for much memory as for little.
    tell(flag::LOCKED, libc::SYS_mlock2, MLOCK_ONFAULT);
}

/// The same in a resume, before its commit and before the program's rights and limits are set again: it may have locked
/// memory while it had more of both.
pub fn revive() {
    if let Ok([_, hard]) = process::limit(libc::RLIMIT_MEMLOCK, None) {
        let _ = process::limit(libc::RLIMIT_MEMLOCK, Some([hard, hard]));
    }
    // SAFETY: nobody else runs; the table is only read. Of a region that was saved from outside it may be in the middle of a
    // change: the walk ends, and may miss any of it. Whoever is changing it tells the rest (`memory`).
    all_again(&unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) });
}

/// Tells the kernel all of it again.
pub fn all_again(tree: &MapTree<'_>) {
    tree.iter().for_each(|run| again(run.start, run.end, run.attr.flags));
}
