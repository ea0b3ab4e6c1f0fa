//! Spares: memory that the program has given back, kept for what it maps next.
//!
//! Freeing a page of a file and getting a new one costs several times what clearing it does, and programs that map and
//! unmap their buffers do both all the time. So on a store in memory the content of what is unmapped stays for a while,
//! as much as [`allowed`]; region memory that comes to lie there is cleared ([`ready`]) or has the old content taken out
//! ([`reclaim`]) before. Content outside of region memory lies in spares only.
//!
//! Everything here is called under the memory lock. Neighbours: `memory` and `memory_map`.
#![allow(unsafe_code)]

use super::content::extents;
use super::memory::{by_slice, slice_fd};
use crate::control;
use crate::gate::error;
use zhuque_abi::header::{MAX_SPARES, Spare};
use zhuque_abi::layout::slice_of;
use zhuque_abi::life::boot_flag;
use zhuque_sys::{Errno, fs, mm, process};

/// Bytes kept at most.
const MOST: u64 = 64 << 20;
/// Bytes that any program may keep.
const LEAST: u64 = 4 << 20;
/// Otherwise at most this part of what the program has: an eighth.
const PART: u64 = 8;
/// Largest piece that is kept.
const LARGEST: u64 = 32 << 20;
/// Pieces from which on what is unmapped is too thinly used to be kept.
const MAX_RUNS: u32 = 16;
/// Largest mapping that is cleared rather than taken out: the gate may not take long.
const CLEARED: u64 = 4 << 20;
const MADV_POPULATE_READ: i32 = 22;
/// Protection of memory that is used right away.
pub const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;

fn all() -> &'static mut [Spare; MAX_SPARES] {
    // SAFETY: the memory lock makes this the only user.
    unsafe { &mut (*control::globals()).spares }
}

fn take_out(spare: Spare) -> Result<(), Errno> {
    by_slice(spare.start, spare.end, |slice, offset, _, bytes| fs::punch_hole(slice_fd(slice), offset, bytes))
}

/// What of region memory that is about to be unmapped is worth keeping: from its first page with content to its last,
/// if few are missing in between. Nothing else there has content.
pub fn worth(start: u64, end: u64) -> Option<Spare> {
    if !in_memory() || end - start > LARGEST {
        return None;
    }
    let (mut found, mut used, mut runs) = (Spare::default(), 0, 0);
    let counted = extents(start, end, |address, bytes| {
        if runs == 0 {
            found.start = address;
        }
        found.end = address + bytes;
        used += bytes;
        runs += 1;
        if runs < MAX_RUNS { Ok(()) } else { error(libc::E2BIG) }
    });
    (counted.is_ok() && runs > 0 && used >= (found.end - found.start) / 4 * 3).then_some(found)
}

/// Whether the store is in memory.
pub fn in_memory() -> bool {
    control::life().flags & (boot_flag::SYNC_REGION | boot_flag::DAX) == 0
}

/// Bytes that may be kept now: a part of what the program has around `address`, and nothing if the store is filling up.
fn allowed(address: u64) -> u64 {
    let fd = slice_fd(slice_of(address).0);
    let used = fs::stat_fd(fd).map_or(0, |stat| stat.st_blocks as u64 * 512);
    if has_room(address) { (used / PART).clamp(LEAST, MOST) } else { 0 }
}

/// Whether the store has room to spare.
pub fn has_room(address: u64) -> bool {
    fs::free_bytes(slice_fd(slice_of(address).0)).is_ok_and(|free| free >= 4 * MOST)
}

/// Keeps the content of region memory that is about to be unmapped, or takes it out.
pub fn keep(mut new: Spare) -> Result<(), Errno> {
    let allowed = allowed(new.start);
    let spares = all();
    if new.end - new.start > allowed || spares[MAX_SPARES - 1].end != 0 {
        return take_out(new);
    }
    // What touches becomes one, in moderation; the result is the youngest.
    let mut kept = 0;
    let mut total = new.end - new.start;
    for index in 0..MAX_SPARES {
        let spare = spares[index];
        if spare.end == 0 {
            break;
        }
        total += spare.end - spare.start;
        let both = Spare { start: spare.start.min(new.start), end: spare.end.max(new.end) };
        if (spare.end == new.start || spare.start == new.end) && both.end - both.start <= LARGEST {
            new = both;
        } else {
            spares[kept] = spare;
            kept += 1;
        }
    }
    spares[kept..].fill(Spare::default());
    spares[kept] = new;
    kept += 1;
    // The oldest go, one at least if the next would find no room. What the store does not let go of stays.
    while (total > allowed || kept == MAX_SPARES) && kept > 0 && take_out(spares[0]).is_ok() {
        total -= spares[0].end - spares[0].start;
        spares.copy_within(1..kept, 0);
        kept -= 1;
        spares[kept] = Spare::default();
    }
    Ok(())
}

/// Calls `each` with what lies in the range, which is no spare afterwards.
fn withdraw(start: u64, end: u64, mut each: impl FnMut(Spare) -> Result<(), Errno>) -> Result<(), Errno> {
    let spares = all();
    let mut index = 0;
    while index < MAX_SPARES && spares[index].end != 0 {
        let spare = spares[index];
        if spare.start >= end || spare.end <= start {
            index += 1;
            continue;
        }
        each(Spare { start: spare.start.max(start), end: spare.end.min(end) })?;
        let (before, behind) = (Spare { end: start, ..spare }, Spare { start: end, ..spare });
        let (before, behind) = (Some(before).filter(|s| s.start < s.end), Some(behind).filter(|s| s.start < s.end));
        match (before, behind) {
            (Some(before), Some(behind)) => {
                spares[index] = before;
                if let Some(free) = spares.iter_mut().find(|spare| spare.end == 0) {
                    *free = behind;
                } else {
                    take_out(behind)?;
                }
                index += 1;
            }
            (Some(rest), None) | (None, Some(rest)) => {
                spares[index] = rest;
                index += 1;
            }
            (None, None) => {
                spares.copy_within(index + 1.., index);
                spares[MAX_SPARES - 1] = Spare::default();
            }
        }
    }
    Ok(())
}

/// Takes the content of spares out of a range in which region memory is to be.
pub fn reclaim(start: u64, end: u64) -> Result<(), Errno> {
    withdraw(start, end, take_out)
}

/// Makes a range read zero in which region memory is to be mapped: clears what spares have left there, or takes it out.
/// Whether there are pages now.
pub fn ready(start: u64, end: u64, prot: u64) -> Result<bool, Errno> {
    if !all().iter().any(|spare| spare.start < end && start < spare.end) {
        return Ok(false);
    }
    if prot & READ_WRITE != READ_WRITE || end - start > CLEARED || !may_write() {
        reclaim(start, end)?;
        return Ok(false);
    }
    let mut any = false;
    withdraw(start, end, |spare| {
        any = true;
        let cleared =
            by_slice(spare.start, spare.end, |slice, offset, _, bytes| write_zeroes(slice_fd(slice), offset, bytes));
        cleared.or_else(|_| take_out(spare))
    })?;
    Ok(any)
}

/// Maps the pages that a range has, all at once: cheaper than one fault each.
pub fn present(start: u64, end: u64) {
    let _ = extents(start, end, |address, bytes| {
        // SAFETY: changes no content.
        unsafe { mm::madvise(address, bytes, MADV_POPULATE_READ) }
    });
}

/// Whether slices may be written as files: not under a limit of file sizes, which counts for write(2) but not for
/// mappings. It does not change meanwhile (`limits`).
pub fn may_write() -> bool {
    process::limit(libc::RLIMIT_FSIZE, None).is_ok_and(|[soft, _]| soft == libc::RLIM_INFINITY)
}

/// Writes zeroes into a slice: clears pages, and makes those that are missing.
pub fn write_zeroes(fd: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
    const PIECE: usize = 4096;
    const PIECES: u64 = 64;
    static ZEROES: [u8; PIECE] = [0; PIECE];
    let vector = [[ZEROES.as_ptr() as u64, PIECE as u64]; PIECES as usize];
    let mut done = 0;
    while done < bytes {
        let pieces = ((bytes - done) / PIECE as u64).min(PIECES);
        // SAFETY: every entry names the page of zeroes.
        let written = unsafe { fs::write_vector_at(fd, vector.as_ptr() as u64, pieces, offset + done) };
        match written {
            Ok(0) => return Err(Errno(libc::ENOSPC)),
            Ok(written) => done += written as u64 / PIECE as u64 * PIECE as u64,
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
