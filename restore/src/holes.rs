//! Where the stub and the kernel's vdso can be while the program comes back.
//!
//! No address is free in every program (java's ZGC maps at 0x100000000000), so holes are chosen for each resume: free
//! in what the program had *and* in what the new process has now. The highest hole is taken: above the stack is
//! where the kernel puts such things, and a program's heap and mappings do not grow there.
//!
//! Neighbours: `plan` says what the program had, `process` what the new process has.

use crate::Error;
use zhuque_abi::layout::{TASK_SIZE, page_up};

/// Lowest address that is ever used: the kernel's default of vm.mmap_min_addr.
pub const LOWEST: u64 = 0x1_0000;

/// A run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
}

impl Run {
    /// A run by its length.
    pub fn new(start: u64, bytes: u64) -> Run {
        Run { start, end: start.saturating_add(bytes) }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the two have an address in common.
    pub fn meets(&self, other: &Run) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

/// Places for what is no part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The stub's memory.
    pub stub: u64,
    /// The vdso's variables and image; where they are now if they can stay.
    pub vdso: u64,
}

/// Chooses places for `stub_bytes` of stub and for the vdso, which is at `vdso` now (empty: there is none).
/// `saved` is everything that the program had, `current` everything that the new process has; in any order.
pub fn place(saved: &[Run], current: &[Run], vdso: Run, stub_bytes: u64) -> Result<Places, Error> {
    let mut busy: Vec<Run> = saved.iter().chain(current).copied().collect();
    let stays = !saved.iter().any(|run| run.meets(&vdso));
    let vdso_to = if stays { vdso.start } else { highest(&mut busy, vdso.bytes())? };
    busy.push(Run::new(vdso_to, vdso.bytes()));
    let stub = highest(&mut busy, stub_bytes)?;
    Ok(Places { stub, vdso: vdso_to })
}

/// Start of the highest hole of `bytes` bytes (rounded up to pages) between [`LOWEST`] and [`TASK_SIZE`].
fn highest(busy: &mut [Run], bytes: u64) -> Result<u64, Error> {
    busy.sort_unstable_by_key(|run| core::cmp::Reverse(run.end));
    let wanted = page_up(bytes.max(1));
    let mut top = TASK_SIZE;
    for run in busy.iter().filter(|run| run.bytes() > 0) {
        // In descending order of their ends, so `top` is the lowest start of all before.
        let floor = page_up(run.end).max(LOWEST);
        if top.saturating_sub(floor) >= wanted {
            break;
        }
        top = top.min(run.start & !0xfff);
    }
    match top.checked_sub(wanted) {
        Some(start) if start >= LOWEST => Ok(start),
        _ => Err(Error::NoHole(wanted)),
    }
}
