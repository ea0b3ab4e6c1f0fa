//! Chooses the bytes that a jump overwrites: the *run* of a site.
//!
//! Key type: [`Run`], key function: [`choose`]. A run is the `syscall` and as few neighbours as make five bytes. The
//! neighbours are executed elsewhere (in the site's trampoline), so they must mean the same at any address, and
//! nobody may jump between them. Neighbours: `body`, `targets`, `flags` answer what is asked here; `plan` turns runs
//! into sites.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic};
use zhuque_abi::sites::SITE_BYTES;

use crate::body::Body;
use crate::flags::dead_after;
use crate::image::Image;
use crate::targets::Targets;

/// Length of `jmp rel32`.
const JUMP: u64 = 5;
/// `mov $15,%rax; syscall` as libraries write it. Unwinders recognise the frame of a signal by exactly these bytes.
const SIGNAL_RETURNS: [&[u8]; 2] = [b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05"];

/// The bytes that one site overwrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// The `syscall` instruction.
    pub call: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// The start of the signal-return trampoline whose `syscall` is the one at `call`, if it is one.
pub fn signal_return(image: &Image, call: u64) -> Option<u64> {
    SIGNAL_RETURNS.iter().find_map(|pattern| {
        let start = (call + 2).checked_sub(pattern.len() as u64)?;
        (image.range(start, call + 2) == Some(pattern)).then_some(start)
    })
}

/// The run for the `syscall` at `index` of the body, none of it below `floor`; `None` if the site must stay as it is.
pub fn choose(image: &Image, body: &Body, index: usize, targets: &Targets, floor: u64) -> Option<Run> {
    let call = body.instructions[index];
    let unfit = body.function.barred || !body.sound || call.ip() < floor;
    if unfit || signal_return(image, call.ip()).is_some() || !dead_after(image, call.next_ip()) {
        return None;
    }
    let behind = longest(body.instructions[index + 1..].iter());
    let before = longest(body.instructions[..index].iter().rev());
    let fits = |run: &Run| {
        run.start >= floor
            && run.end - run.start >= JUMP
            && run.end - run.start <= SITE_BYTES as u64
            && !targets.inside(run.start, run.end)
    };
    let run = |first: u64, last: u64| Run { start: call.ip() - first, call: call.ip(), end: call.next_ip() + last };
    // Shortest first in each direction; both directions together only if neither suffices.
    let forward = behind.iter().map(|&last| run(0, last));
    let backward = before.iter().map(|&first| run(first, 0));
    let both = before.iter();
    let both = both.flat_map(|&first| behind.iter().map(move |&last| (first, last)));
    let mut both: Vec<Run> = both.map(|(first, last)| run(first, last)).collect();
    both.sort_by_key(|run| run.end - run.start);
    forward.chain(backward).chain(both).find(fits)
}

/// Bytes of the first, the first two, ... neighbours in the order given, as long as they can be moved and fit.
fn longest<'a>(neighbours: impl Iterator<Item = &'a Instruction>) -> Vec<u64> {
    let mut lengths = Vec::new();
    let mut total = 0;
    for neighbour in neighbours {
        total += neighbour.len() as u64;
        if !movable(neighbour) || total + 2 > SITE_BYTES as u64 {
            break;
        }
        lengths.push(total);
        // Any three bytes make a jump, so more is never needed in this direction.
        if total + 2 >= JUMP {
            break;
        }
    }
    lengths
}

/// Whether the instruction does the same wherever it lies, and does nothing the gate must see.
fn movable(instruction: &Instruction) -> bool {
    let special = matches!(
        instruction.mnemonic(),
        Mnemonic::Syscall
            | Mnemonic::Sysenter
            | Mnemonic::Hlt
            | Mnemonic::Ud0
            | Mnemonic::Ud1
            | Mnemonic::Ud2
            | Mnemonic::Endbr64
            | Mnemonic::Endbr32
    );
    instruction.flow_control() == FlowControl::Next
        && !special
        && instruction.code() != Code::INVALID
        && !instruction.is_ip_rel_memory_operand()
}
