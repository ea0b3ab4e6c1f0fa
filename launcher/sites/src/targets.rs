//! Everything that may be jumped to, as far as it matters.
//!
//! Key types: [`Windows`] (the surroundings of the `syscall` instructions: nothing else is collected), [`Targets`].
//! Targets are collected generously. Branches with 32-bit distances are found at *every* byte of the code, aligned
//! with instructions or not: that includes all real ones, whether or not their code could be decoded, and by chance
//! hardly hits a window. Branches with 8-bit distances are decoded, near the windows; where code cannot be decoded,
//! they are taken at every byte, too. Neighbours: `tables`, `pointers` (further sources), `runs` (asks).

use crate::body::{Body, branch_target};
use crate::functions::{Function, Functions};
use crate::headers::half;
use crate::image::Image;
use crate::{pointers, runs, tables};
use zhuque_abi::sites::SITE_BYTES;

/// Reach of a branch with an 8-bit distance, with its own length.
const SHORT_REACH: u64 = 128 + 4;

/// Address ranges around the `syscall` instructions, sorted and disjoint.
pub struct Windows(Vec<(u64, u64)>);

impl Windows {
    /// Windows that hold every possible run around the given `syscall` addresses (sorted).
    pub fn around(calls: &[u64]) -> Windows {
        let reach = SITE_BYTES as u64;
        Windows::merge(calls.iter().map(|call| (call.saturating_sub(reach), call.saturating_add(reach))))
    }

    fn merge(ranges: impl Iterator<Item = (u64, u64)>) -> Windows {
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Windows(merged)
    }

    /// The same windows with `by` more bytes at both ends.
    fn widened(&self, by: u64) -> Windows {
        let ranges = self.0.iter();
        Windows::merge(ranges.map(|w| (w.0.saturating_sub(by), w.1.saturating_add(by))))
    }

    fn contains(&self, address: u64) -> bool {
        let next = self.0.partition_point(|window| window.1 < address);
        self.0.get(next).is_some_and(|window| window.0 <= address)
    }
}

/// Collects targets that fall into windows.
pub struct Collector<'a> {
    windows: &'a Windows,
    lowest: u64,
    span: u64,
    found: Vec<u64>,
}

impl Collector<'_> {
    fn new(windows: &Windows) -> Collector<'_> {
        let lowest = windows.0.first().map_or(0, |window| window.0);
        let highest = windows.0.last().map_or(0, |window| window.1);
        Collector { windows, lowest, span: highest - lowest, found: Vec::new() }
    }

    /// Notes a target.
    pub fn add(&mut self, address: u64) {
        let near = address.wrapping_sub(self.lowest) <= self.span;
        if near && self.windows.contains(address) {
            self.found.push(address);
        }
    }
}

/// The targets inside the windows, sorted.
pub struct Targets(Vec<u64>);

impl Targets {
    /// Whether a target lies behind the first byte of `start..end`.
    pub fn inside(&self, start: u64, end: u64) -> bool {
        let next = self.0.partition_point(|&target| target <= start);
        self.0.get(next).is_some_and(|&target| target < end)
    }

    /// Collects from the whole file. `bodies` are the decoded functions that hold a `syscall`.
    pub fn collect(image: &Image, functions: &Functions, bodies: &[Body], windows: &Windows) -> Targets {
        let mut collector = Collector::new(windows);
        for function in &functions.ranges {
            collector.add(function.start);
        }
        for &pad in &functions.landing_pads {
            collector.add(pad);
        }
        let mut places = Vec::new();
        for load in image.executable() {
            scan_far(image.content(load), load.address, &mut collector, &mut places);
        }
        places.sort_unstable();
        places.dedup();
        for &place in &places {
            collector.add(place);
        }
        tables::read_tables(image, bodies, &places, &mut collector);
        pointers::read_pointers(image, &mut collector);
        for body in bodies {
            tables::read_label_tables(image, body, &mut collector);
            for index in body.syscalls() {
                let call = body.instructions[index].ip();
                // Keeps other runs out of a signal trampoline.
                if let Some(start) = runs::signal_return(image, call) {
                    collector.add(start);
                }
            }
        }
        collect_near(image, functions, bodies, &mut collector);
        let mut found = collector.found;
        found.sort_unstable();
        found.dedup();
        Targets(found)
    }
}

/// Everything in `bytes` that could be a branch or call with a 32-bit distance or (also put into `places`) an LEA
/// relative to the instruction pointer.
fn scan_far(bytes: &[u8], address: u64, targets: &mut Collector, places: &mut Vec<u64>) {
    for (index, pair) in bytes.windows(2).enumerate() {
        let (operand, lea) = match pair {
            // call, jmp
            [0xe8 | 0xe9, _] => (index + 1, false),
            // jcc, xbegin
            [0x0f, 0x80..=0x8f] | [0xc7, 0xf8] => (index + 2, false),
            // lea with a RIP-relative operand
            [0x8d, mode] if mode & 0xc7 == 0x05 => (index + 2, true),
            _ => continue,
        };
        if let Some(operand_bytes) = bytes.get(operand..operand + 4) {
            let distance = i64::from(half(operand_bytes, 0) as i32);
            let next = address.wrapping_add(operand as u64 + 4);
            let target = next.wrapping_add_signed(distance);
            match lea {
                true => places.push(target),
                false => targets.add(target),
            }
        }
    }
}

/// Branches with an 8-bit distance, from all code within their reach of a window.
fn collect_near(image: &Image, functions: &Functions, bodies: &[Body], targets: &mut Collector) {
    for body in bodies {
        add_branches(image, body, targets);
    }
    let decoded =
        |function: &Function| bodies.binary_search_by_key(&function.start, |body| body.function.start).is_ok();
    let mut done = 0;
    for &(start, end) in &targets.windows.widened(SHORT_REACH).0 {
        let first = { &functions.ranges }.partition_point(|function| function.end <= start);
        let overlapping = functions.ranges[first..].iter();
        // What lies between functions: padding, or assembly that nobody described.
        let mut gap = start;
        for function in overlapping.take_while(|function| function.start < end) {
            scan_near(image, gap, function.start, targets);
            gap = function.end;
            if function.start >= done && !decoded(function) {
                add_branches(image, &Body::decode(image, *function), targets);
            }
            done = done.max(function.end);
        }
        scan_near(image, gap, end, targets);
    }
}

/// The direct branches of a body; if its decoding cannot be trusted, whatever could be a short branch.
fn add_branches(image: &Image, body: &Body, targets: &mut Collector) {
    for target in body.instructions.iter().filter_map(branch_target) {
        targets.add(target);
    }
    if !body.sound {
        scan_near(image, body.function.start, body.function.end, targets);
    }
}

/// Everything in `start..end` that could be a branch with an 8-bit distance.
fn scan_near(image: &Image, start: u64, end: u64, targets: &mut Collector) {
    // Bytes that no segment maps hold no code; the range is walked by what is mapped.
    for load in image.executable() {
        let from = start.max(load.address);
        let to = end.min(load.address + load.length as u64);
        for (index, pair) in image.range(from, to).unwrap_or(&[]).windows(2).enumerate() {
            if let [0x70..=0x7f | 0xeb | 0xe0..=0xe3, distance] = pair {
                let next = from.wrapping_add(index as u64 + 2);
                targets.add(next.wrapping_add_signed(i64::from(*distance as i8)));
            }
        }
    }
}
