//! Code between two FDEs that a function falls into.
//!
//! glibc's clone and clone3 end their FDE right in front of the `syscall` (the new thread has no frame to unwind to)
//! and start the next one a few instructions later. That those bytes are instructions is known all the same: the
//! last instruction of the FDE continues there. Key function: [`fill_gaps`]. Neighbour: `functions`.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::body::{Body, holds_syscall_bytes};
use crate::functions::Function;
use crate::image::Image;

/// Longest gap that is looked at. Real ones take some ten bytes.
const LONGEST: u64 = 64;

/// The ranges by which functions continue into gaps that hold a `syscall`. `ranges` are sorted and disjoint.
pub fn fill_gaps(image: &Image, ranges: &[Function]) -> Vec<Function> {
    let pairs = ranges.windows(2).filter_map(|pair| {
        let (function, next) = (pair[0], pair[1]);
        let gap = image.range(function.end, next.start.min(function.end.saturating_add(LONGEST)))?;
        if !holds_syscall_bytes(gap) || function.barred {
            return None;
        }
        let body = Body::decode(image, function);
        if !body.sound || !continues(body.instructions.last()?) {
            return None;
        }
        let end = run_length(gap, function.end)?;
        (end > function.end).then_some(Function { start: function.end, end, barred: false })
    });
    pairs.collect()
}

/// Whether the instruction behind this one is surely executed after it at some time. (Not so for calls: the function
/// that is called may never return.)
fn continues(instruction: &Instruction) -> bool {
    let flow = instruction.flow_control();
    let goes_on = matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch);
    goes_on && instruction.mnemonic() != Mnemonic::Hlt
}

/// Address behind the last instruction in a row; `None` if there is anything but instructions before the flow ends.
fn run_length(gap: &[u8], start: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, gap, start, DecoderOptions::NONE);
    let mut end = start;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        end = instruction.next_ip();
        let goes_on = continues(&instruction) || instruction.mnemonic() == Mnemonic::Syscall;
        if !goes_on {
            break;
        }
    }
    Some(end)
}
