//! One function, decoded.
//!
//! Key type: [`Body`]. Decoding goes linearly from the start of the range. Assembly may hold data between its
//! instructions; a range in which anything shows that decoding went astray is *unsound* and gets no site.
//! Neighbours: `functions` gives the ranges, `targets` and `runs` use the instructions.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};

use crate::functions::Function;
use crate::image::Image;

/// The bytes of a `syscall` instruction.
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];
const LOCK: u8 = 0xf0;

/// The instructions of one range.
pub struct Body {
    pub function: Function,
    /// In address order, without gaps if the body is sound.
    pub instructions: Vec<Instruction>,
    /// Nothing contradicts that these are the instructions the processor sees.
    pub sound: bool,
}

/// Destination of a direct branch or call; `None` for other instructions.
pub fn branch_target(instruction: &Instruction) -> Option<u64> {
    let direct = matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    direct.then(|| instruction.near_branch_target())
}

/// Whether `bytes` hold the two bytes of a `syscall`, aligned with instructions or not.
pub fn holds_syscall_bytes(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == SYSCALL)
}

impl Body {
    /// Decodes a range.
    pub fn decode(image: &Image, function: Function) -> Body {
        let bytes = image.range(function.start, function.end).unwrap_or(&[]);
        let mut decoder = Decoder::with_ip(64, bytes, function.start, DecoderOptions::NONE);
        let mut instructions = Vec::with_capacity(bytes.len() / 4);
        let mut sound = !bytes.is_empty();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            // Data, or an instruction that reaches out of the range.
            sound &= !instruction.is_invalid();
            instructions.push(instruction);
        }
        let mut body = Body { function, instructions, sound };
        body.sound &= body.branches_meet_instructions(bytes);
        body
    }

    /// Whether the body's branches into itself all lead to the start of an instruction (or behind a LOCK prefix,
    /// which libc skips on purpose).
    fn branches_meet_instructions(&self, bytes: &[u8]) -> bool {
        let range = self.function.start..self.function.end;
        let mut inner = self.instructions.iter().filter_map(branch_target);
        inner.all(|target| {
            !range.contains(&target) || self.starts_at(target) || {
                let before = target.wrapping_sub(1);
                let skips_lock = bytes.get(before.wrapping_sub(range.start) as usize);
                skips_lock == Some(&LOCK) && self.starts_at(before)
            }
        })
    }

    /// Whether an instruction starts at `address`.
    pub fn starts_at(&self, address: u64) -> bool {
        let found = self.instructions.binary_search_by_key(&address, Instruction::ip);
        found.is_ok()
    }

    /// Indices of the `syscall` instructions.
    pub fn syscalls(&self) -> impl Iterator<Item = usize> + '_ {
        let all = self.instructions.iter().enumerate();
        // Length two: a prefixed one would not be recognised by the shim.
        all.filter(|(_, instruction)| instruction.code() == Code::Syscall && instruction.len() == 2)
            .map(|(index, _)| index)
    }
}
