//! Functions that no table describes, found because known functions call them or jump to them.
//!
//! musl is built without unwind tables and stripped, so that nothing says where its internal functions are; but a
//! direct call from code that is certain to be code leads to code. Key function: [`follow_calls`]. Neighbours:
//! `functions` (starts it), `gaps` (what functions fall into), `body`.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};

use crate::body::{Body, branch_target, holds_syscall_bytes};
use crate::functions::Function;
use crate::image::Image;

/// Only done for files with at most so much code: all of it is decoded, and large programs have unwind tables.
const LARGEST_CODE: usize = 4 << 20;

/// Adds what `ranges` (sorted, disjoint) call, and what that calls, if code outside of them may hold a `syscall`.
pub fn follow_calls(image: &Image, ranges: &mut Vec<Function>) {
    let code: usize = image.executable().map(|load| load.length).sum();
    if code > LARGEST_CODE || !unknown_syscalls(image, ranges) {
        return;
    }
    let mut known: BTreeMap<u64, u64> = ranges.iter().map(|f| (f.start, f.end)).collect();
    let mut next = 0;
    while let Some(&function) = ranges.get(next) {
        next += 1;
        let body = Body::decode(image, function);
        if !body.sound {
            continue;
        }
        for target in body.instructions.iter().filter_map(branch_target) {
            let inside = known.range(..=target).next_back();
            if inside.is_some_and(|(_, &end)| target < end) || !image.is_code(target) {
                continue;
            }
            let limit = known.range(target..).next().map_or(u64::MAX, |(&start, _)| start);
            if let Some(end) = extent(image, target, limit) {
                known.insert(target, end);
                ranges.push(Function { start: target, end, barred: false });
            }
        }
    }
    ranges.sort_by_key(|range| range.start);
}

/// Whether the bytes of a `syscall` occur outside of all ranges.
fn unknown_syscalls(image: &Image, ranges: &[Function]) -> bool {
    image.executable().any(|load| {
        let end = load.address + load.length as u64;
        let mut gap = load.address;
        let first = ranges.partition_point(|range| range.end <= load.address);
        let inside = ranges[first..].iter().take_while(|range| range.start < end);
        let borders = inside.map(|range| (range.start, range.end));
        { borders }.chain([(end, end)]).any(|(start, next)| {
            let bytes = image.range(gap, start).unwrap_or(&[]);
            gap = next;
            holds_syscall_bytes(bytes)
        })
    })
}

/// Where the function at `start` ends: behind the first instruction that does not go on and that no forward branch
/// passes over. Falling through a call that never returns adds padding or a neighbour, which are instructions, too.
fn extent(image: &Image, start: u64, limit: u64) -> Option<u64> {
    let bytes = image.at(start);
    let length = usize::try_from(limit - start).unwrap_or(usize::MAX);
    let bytes = &bytes[..bytes.len().min(length)];
    let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    let mut furthest = start;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        let flow = instruction.flow_control();
        let branch = branch_target(&instruction).filter(|_| flow != FlowControl::Call);
        // A jump far away is a tail call.
        furthest = furthest.max(branch.filter(|&to| to < limit).unwrap_or(0));
        let goes_on = matches!(
            flow,
            FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::Call | FlowControl::IndirectCall
        );
        let goes_on = goes_on && instruction.mnemonic() != Mnemonic::Hlt;
        if !goes_on && instruction.next_ip() > furthest {
            return Some(instruction.next_ip());
        }
    }
    Some(decoder.ip())
}
