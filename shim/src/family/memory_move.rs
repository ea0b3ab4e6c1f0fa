//! mremap(2). Since the offset in the slice *is* the address, a move of region memory is a copy of what has content.
#![allow(unsafe_code)]

use super::advice;
use super::content::extents;
use super::memory::{Memory, fresh_slices, full, not_ours, range, slice_fd, unmap};
use crate::control;
use crate::gate::{Result64, error};
use zhuque_abi::layout::{PAGE, SLICE_BYTES, TASK_SIZE, slice_of};
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::Mapping;
use zhuque_sys::{Errno, mm};

const MREMAP_MAYMOVE: u64 = libc::MREMAP_MAYMOVE as u64;
const MREMAP_FIXED: u64 = libc::MREMAP_FIXED as u64;
const MREMAP_DONTUNMAP: u64 = 4;
/// Lowest address that is handed out.
const LOWEST: u64 = 0x1_0000;

/// mremap(2).
pub fn mremap(memory: &mut Memory, a: [u64; 6]) -> Result64 {
    let [old, old_bytes, new_bytes, flags, wanted, _] = a;
    // As the kernel rounds: the largest sizes come to 0.
    let pages = |bytes: u64| bytes.wrapping_add(PAGE - 1) & !(PAGE - 1);
    let (old_bytes, new_bytes) = (pages(old_bytes), pages(new_bytes));
    let may_move = flags & MREMAP_MAYMOVE != 0;
    let fixed = flags & MREMAP_FIXED != 0;
    let keep = flags & MREMAP_DONTUNMAP != 0;
    if flags & !7 != 0 || !old.is_multiple_of(PAGE) || new_bytes == 0 || ((fixed || keep) && !may_move) {
        return error(libc::EINVAL);
    }
    if keep && old_bytes != new_bytes {
        return error(libc::EINVAL);
    }
    if fixed || keep {
        // Also where it is a mere hint.
        let (target, target_end) = range(wanted, new_bytes)?;
        if target < old.saturating_add(old_bytes) && old < target_end {
            return error(libc::EINVAL);
        }
    }
    let run = memory.tree.find(old).ok_or(Errno(libc::EFAULT))?;
    let (start, end) = range(old, old_bytes)?;
    not_ours(memory, start, end.max(start + 1))?;
    if old_bytes == 0 {
        // A second mapping of the same shared memory; only for mappings of files that are shared.
        return error(libc::EINVAL);
    }
    if new_bytes <= old_bytes && !fixed && !keep {
        // Whatever lies there behind the new end.
        if new_bytes < old_bytes {
            not_ours(memory, start, end)?;
            unmap(memory, start + new_bytes, end)?;
        }
        return Ok(start);
    }
    // What a smaller target has no room for may be anything.
    let moved = if fixed { end.min(start + new_bytes) } else { end };
    if run.end < moved {
        return error(libc::EFAULT);
    }
    let run = run.part(start, moved).ok_or(Errno(libc::EFAULT))?;
    if memory.tree.spare() < 6 {
        return error(libc::ENOMEM);
    }
    if fixed {
        let (target, target_end) = range(wanted, new_bytes)?;
        not_ours(memory, target, target_end)?;
        super::memory_map::not_with_children(memory, target, target_end)?;
        // Its content would be copied, and the children left behind.
        super::memory_map::not_with_children(memory, start, end)?;
        unmap(memory, target, target_end)?;
        if moved < end {
            unmap(memory, moved, end)?;
        }
        return relocate(memory, run, target, new_bytes, keep);
    }
    if !keep && grow(memory, run, start + new_bytes)? {
        return Ok(start);
    }
    if !may_move {
        return error(libc::ENOMEM);
    }
    super::memory_map::not_with_children(memory, start, end)?;
    let target = place_for(memory, new_bytes)?;
    relocate(memory, run, target, new_bytes, keep)
}

/// An address for a mapping that is moved since it grows: it may grow again, so leave it room to do so in place.
fn place_for(memory: &Memory, bytes: u64) -> Result<u64, Errno> {
    // SAFETY: the lock is held.
    let top = unsafe { (*memory.globals).mmap_top };
    let roomy = bytes.saturating_mul(2);
    memory
        .tree
        .gap_below(roomy, PAGE, LOWEST, top)
        .or_else(|| memory.tree.gap_below(bytes, PAGE, LOWEST, TASK_SIZE))
        .ok_or(Errno(libc::ENOMEM))
}

/// Extends a run in place if the addresses behind it are free.
fn grow(memory: &mut Memory, run: Mapping, new_end: u64) -> Result<bool, Errno> {
    if new_end > TASK_SIZE || !memory.tree.is_free(run.end, new_end) {
        return Ok(false);
    }
    match run.attr.kind {
        Kind::Region => {
            fresh_slices(run.end, new_end, u64::from(run.attr.prot), libc::MAP_FIXED_NOREPLACE)?;
            advice::again(run.end, new_end, run.attr.flags);
        }
        // SAFETY: the program's own mapping, extended into free addresses by the kernel's rules.
        _ => match unsafe { mm::mremap(run.start, run.end - run.start, new_end - run.start, 0, 0) } {
            Ok(_) => {}
            Err(Errno(libc::ENOMEM)) => return Ok(false),
            Err(e) => return Err(e),
        },
    }
    memory.tree.set(run.start, new_end, run.attr).map_err(full)?;
    Ok(true)
}

/// Moves a run to `target`, which is free.
fn relocate(memory: &mut Memory, run: Mapping, target: u64, bytes: u64, keep: bool) -> Result64 {
    let end = target + bytes;
    let moved = bytes.min(run.end - run.start);
    if run.attr.kind == Kind::Region {
        let prot = u64::from(run.attr.prot);
        fresh_slices(target, end, prot, libc::MAP_FIXED_NOREPLACE)?;
        advice::again(target, end, run.attr.flags);
        if let Err(e) = copy_content(run.start, target, moved) {
            let _ = memory.tree.set(target, end, run.attr);
            let _ = unmap(memory, target, end);
            return Err(e);
        }
    } else {
        let flags = (MREMAP_MAYMOVE | MREMAP_FIXED | if keep { MREMAP_DONTUNMAP } else { 0 }) as i32;
        // SAFETY: the program's own mapping, to free addresses.
        unsafe { mm::mremap(run.start, run.end - run.start, bytes, flags, target) }?;
    }
    memory.tree.set(target, end, run.attr).map_err(full)?;
    if keep && run.attr.kind == Kind::Region {
        super::memory::punch(memory, run.start, run.end)?;
    } else if !keep {
        if run.attr.kind == Kind::Region {
            unmap(memory, run.start, run.end)?;
        } else {
            memory.tree.clear(run.start, run.end).map_err(full)?;
        }
    }
    Ok(target)
}

/// Copies the content of region memory to another address, leaving holes holes.
fn copy_content(from: u64, to: u64, bytes: u64) -> Result<(), Errno> {
    extents(from, from + bytes, |address, length| copy_run(address, to + (address - from), length))
}

/// Copies one run of content through two windows, so that neither side's protection matters.
fn copy_run(from: u64, to: u64, bytes: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes {
        let (from_slice, from_offset) = slice_of(from + done);
        let (to_slice, to_offset) = slice_of(to + done);
        let run = (bytes - done).min(SLICE_BYTES - from_offset).min(SLICE_BYTES - to_offset);
        let (prot, sharing) = (libc::PROT_READ | libc::PROT_WRITE, control::sharing());
        // SAFETY: fresh mappings at addresses that the kernel chooses, gone again below; the copy reports a store that
        // is full (SIGBUS) as EFAULT.
        unsafe {
            let source = mm::mmap(0, run, prot, sharing, slice_fd(from_slice), from_offset)?;
            let target = mm::mmap(0, run, prot, sharing, slice_fd(to_slice), to_offset)?;
            let copied = crate::user::copy(target, source, run as usize);
            mm::munmap(source, run)?;
            mm::munmap(target, run)?;
            copied.map_err(|_| Errno(libc::ENOMEM))?;
        }
        done += run;
    }
    Ok(())
}
