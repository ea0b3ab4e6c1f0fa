//! Which pages of region memory have content: what is copied, counted and made present goes by it.
//!
//! SEEK_DATA passes over holes at once, so ranges may be as large as they like. SEEK_HOLE would visit every page up to
//! the next hole, and memory grows downwards: on top of each mapping lies everything that was mapped before it, without a
//! gap. So where content ends is asked of mincore(2), a few pages at a time. That answers truthfully only who owns the
//! file (`can_do_mincore` in mm/mincore.c); a program that has changed its user is left to SEEK_HOLE.
//!
//! Neighbours: `memory`, `memory_move`, `fork_child`, `spares` and `ahead`, which ask.
#![allow(unsafe_code)]

use super::memory::{by_slice, slice_fd};
use crate::control;
use zhuque_abi::layout::PAGE;
use zhuque_sys::{Errno, fs, mm, process};

/// Pages asked for where content begins, and at most, if it goes on.
const FEWEST: usize = 16;
const MOST: usize = 1024;

/// Calls `each` with every run of pages that have content: address and bytes. The range is mapped region memory.
pub fn extents(start: u64, end: u64, mut each: impl FnMut(u64, u64) -> Result<(), Errno>) -> Result<(), Errno> {
    let truthful = owns_slices();
    by_slice(start, end, |slice, offset, address, bytes| {
        let mut at = 0;
        while at < bytes {
            let data = match fs::seek(slice_fd(slice), (offset + at) as i64, libc::SEEK_DATA) {
                // The store's blocks may be larger than pages, or smaller.
                Ok(data) => (data & !(PAGE - 1)).max(offset + at) - offset,
                Err(Errno(libc::ENXIO)) => break,
                Err(e) => return Err(e),
            };
            if data >= bytes {
                break;
            }
            at = if truthful {
                data + present_from(address + data, address + bytes)?
            } else {
                (fs::seek(slice_fd(slice), (offset + data) as i64, libc::SEEK_HOLE)? - offset).min(bytes)
            };
            each(address + data, at - data)?;
        }
        Ok(())
    })
}

/// Whether the program still runs as the user to whom the region belongs.
fn owns_slices() -> bool {
    // SAFETY: takes and changes no memory.
    let user = unsafe { process::other(libc::SYS_geteuid, [0; 6]) };
    // SAFETY: a plain field, which never changes.
    user == Ok(unsafe { (*control::globals()).uid } as usize)
}

/// Bytes from `start`, where there is content, that are in memory without a gap; a page if that one is not (swapped out,
/// or on a device).
fn present_from(start: u64, end: u64) -> Result<u64, Errno> {
    let mut pages = [0u8; MOST];
    let mut at = start;
    let mut asked = FEWEST;
    while at < end {
        let bytes = (end - at).min(asked as u64 * PAGE);
        let pages = &mut pages[..(bytes / PAGE) as usize];
        mm::resident(at, pages)?;
        let there = pages.iter().position(|page| page & 1 == 0).unwrap_or(pages.len());
        at += there as u64 * PAGE;
        if there < pages.len() {
            break;
        }
        asked = MOST.min(asked * 4);
    }
    Ok((at - start).max(PAGE))
}
