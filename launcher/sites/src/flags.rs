//! Whether the status flags are dead behind a system call.
//!
//! A real `syscall` keeps the flags; the gate does not. So a site is only fine if nothing reads them before they are
//! written again. Key function: [`dead_after`]. Neighbour: `runs`, which asks for every site.

use iced_x86::{Code, RflagsBits};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::body::branch_target;
use crate::image::Image;

/// The flags that the gate destroys.
const STATUS: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
/// Nobody keeps flags over so many instructions; a loop that writes none ends the search, too.
const LONGEST_SCAN: usize = 64;

/// Whether the code that runs from `address` on writes every status flag, or leaves its function, before it reads
/// one. Follows direct jumps; gives up (false) at any other fork that it meets with a flag still alive.
pub fn dead_after(image: &Image, address: u64) -> bool {
    let mut alive = STATUS;
    let mut address = address;
    for _ in 0..LONGEST_SCAN {
        if !image.is_code(address) {
            return false;
        }
        let bytes = image.at(address);
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        // The decoder says that `syscall` reads the flags: it copies them to r11, where nobody looks for them.
        let call = instruction.code() == Code::Syscall;
        if instruction.is_invalid() || (!call && instruction.rflags_read() & alive != 0) {
            return false;
        }
        if !call {
            alive &= !surely_written(&instruction);
        }
        if alive == 0 {
            return true;
        }
        address = instruction.next_ip();
        match instruction.flow_control() {
            // It keeps the flags (and counts as a call for the decoder).
            _ if call => {}
            _ if matches!(instruction.mnemonic(), Mnemonic::Hlt | Mnemonic::Ud2) => return true,
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch => match branch_target(&instruction) {
                Some(target) => address = target,
                None => return false,
            },
            // Flags do not survive a call or a return, says the calling convention; an indirect jump is a tail call
            // or a switch, and compilers keep flags over neither.
            FlowControl::Return | FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                return true;
            }
            _ => return false,
        }
    }
    false
}

/// The flags that this instruction overwrites whatever its operands are.
fn surely_written(instruction: &Instruction) -> u32 {
    // A repeat count of zero leaves the flags alone.
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        return 0;
    }
    // So does a shift count of zero, which is known only when it is a constant.
    let by_register = (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand) == Register::CL
    });
    if by_register && shifts(instruction.mnemonic()) {
        return 0;
    }
    instruction.rflags_modified()
}

/// Shifts and rotates that may count in `cl`.
fn shifts(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    matches!(mnemonic, Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd)
}
