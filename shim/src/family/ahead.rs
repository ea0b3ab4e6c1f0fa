//! Memory ahead of its first touch: pages of what a program maps are made in one go where it is sure to use them.
//!
//! A page of a file costs 1.5 times an anonymous one at its first touch, and a program that grows (an interpreter's
//! arenas, a heap) pays that for every page. Written in one call and mapped in another they cost a fifth less. Which
//! memory will be used nobody says, so it is found out: of fresh mappings of one size, one in [`RUN`] is left alone, and
//! only if it has been filled by the time the next is asked for are the following ones made ahead.
//!
//! Everything here is called under the memory lock, on a store in memory. Neighbours: `memory`, `spares`.
#![allow(unsafe_code)]

use super::content::extents;
use super::memory::{by_slice, slice_fd};
use super::spares::{READ_WRITE, has_room, in_memory, may_write, write_zeroes};
use crate::control;
use zhuque_abi::header::Ahead;

/// Largest mapping that is made ahead: CPython's arenas.
const LARGEST: u64 = 1 << 20;
/// Smallest for which that is worth the calls.
const SMALLEST: u64 = 64 << 10;
/// Mappings of one size from one look at a sample to the next.
const RUN: u64 = 8;

/// Fresh region memory is about to be mapped: makes its pages, if others like it were used. Whether it did.
pub fn ready(start: u64, end: u64, prot: u64) -> bool {
    let bytes = end - start;
    if !in_memory() || prot & READ_WRITE != READ_WRITE || !(SMALLEST..=LARGEST).contains(&bytes) {
        return false;
    }
    // SAFETY: the memory lock makes this the only user.
    let ahead = unsafe { &mut (*control::globals()).ahead };
    if ahead.bytes == bytes && ahead.left > 0 {
        ahead.left -= 1;
        return make(start, end);
    }
    if ahead.bytes == bytes && ahead.sample != 0 && is_full(ahead.sample, bytes) && has_room(start) {
        *ahead = Ahead { bytes, sample: 0, left: RUN - 1 };
        return make(start, end);
    }
    *ahead = Ahead { bytes, sample: start, left: 0 };
    false
}

/// Whether most of the sample has been touched.
fn is_full(start: u64, bytes: u64) -> bool {
    let mut used = 0;
    // An error if the program has unmapped it since.
    let counted = extents(start, start + bytes, |_, length| {
        used += length;
        Ok(())
    });
    counted.is_ok() && used >= bytes / 4 * 3
}

/// Makes the pages; if that fails (the store is full, say), what is missing comes at the first touch.
fn make(start: u64, end: u64) -> bool {
    may_write() && by_slice(start, end, |slice, offset, _, bytes| write_zeroes(slice_fd(slice), offset, bytes)).is_ok()
}
