//! The kernel's signal frame (arch/x86/include/asm/sigframe.h, arch/x86/kernel/fpu/signal.c), made from a stopped
//! thread's registers: what rt_sigreturn(2) puts back.

use crate::stopped::Stopped;
use zhuque_abi::layout::{SIGNAL_STACK, SIGNAL_STACK_BYTES, SLOT_STRIDE};

/// Bytes below the stack pointer that belong to the function running there.
const RED_ZONE: u64 = 128;
/// Bytes of struct ucontext as the kernel has it, and of the siginfo behind it.
const CONTEXT_BYTES: usize = 304;
const INFO_BYTES: usize = 128;
/// Offset in the extended state of struct _fpx_sw_bytes, and the magic numbers there and behind the state.
const SOFTWARE_BYTES: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of the bits that say which components are not in their initial state.
const PRESENT: usize = 512;
/// The components that a process has to ask for (AMX tile data).
const ON_DEMAND: u64 = 1 << 18;
/// UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS.
const CONTEXT_FLAGS: u64 = 7;

/// Where a frame goes: on the slot's signal stack.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    stack: u64,
    top: u64,
}

impl Place {
    /// On the signal stack of the slot at `slot`: below what is in use if the thread is on it.
    pub fn in_slot(slot: u64, stack_pointer: u64) -> Place {
        let (stack, end) = (slot + SIGNAL_STACK, slot + SLOT_STRIDE);
        let on_it = stack < stack_pointer && stack_pointer <= end;
        Place { stack, top: if on_it { stack_pointer - RED_ZONE } else { end } }
    }
}

/// A frame: from its ucontext on.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Address of the ucontext.
    pub address: u64,
    /// Its bytes, with siginfo and extended state.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The frame of a thread. `None`: there is no room.
    pub fn new(thread: &Stopped, place: &Place) -> Option<Frame> {
        let (extended, features) = wanted(&thread.extended);
        let state = (place.top.checked_sub((extended.len() + 4) as u64)?) & !63;
        // Behind the return address of a handler, the ucontext is aligned as the kernel has it.
        let address = (state - (CONTEXT_BYTES + INFO_BYTES + 8) as u64) & !15;
        if address < place.stack {
            return None;
        }
        let mut bytes = vec![0; (state - address) as usize + extended.len() + 4];
        let words = context(thread, place, state);
        bytes[..CONTEXT_BYTES].copy_from_slice(words.map(u64::to_le_bytes).as_flattened());
        let at = (state - address) as usize;
        bytes[at..at + extended.len()].copy_from_slice(extended);
        let size = extended.len() as u32;
        let software = &mut bytes[at + SOFTWARE_BYTES..];
        software[..4].copy_from_slice(&MAGIC1.to_le_bytes());
        software[4..8].copy_from_slice(&(size + 4).to_le_bytes());
        software[8..16].copy_from_slice(&features.to_le_bytes());
        software[16..20].copy_from_slice(&size.to_le_bytes());
        software[20..48].fill(0);
        let behind = at + extended.len();
        bytes[behind..].copy_from_slice(&MAGIC2.to_le_bytes());
        Some(Frame { address, bytes })
    }
}

/// struct ucontext.
fn context(thread: &Stopped, place: &Place, state: u64) -> [u64; CONTEXT_BYTES / 8] {
    let r = &thread.registers;
    // Selectors: cs, gs, fs, ss, 16 bits each.
    let selectors = r.cs & 0xffff | (r.ss & 0xffff) << 48;
    let mut words = [0; CONTEXT_BYTES / 8];
    words[..5].copy_from_slice(&[CONTEXT_FLAGS, 0, place.stack, 0, SIGNAL_STACK_BYTES]);
    let registers = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp,
        r.rip, r.eflags, selectors, 0, 0, 0, 0, state,
    ];
    words[5..5 + registers.len()].copy_from_slice(&registers);
    words[37] = thread.mask;
    words
}

/// The part of the extended state that a signal frame of this thread has, and which components that are: not those that
/// it has never asked for, which come last.
fn wanted(extended: &[u8]) -> (&[u8], u64) {
    let word = |at: usize| extended.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    // The kernel's regset has the components there (USER_XSTATE_XCR0_WORD).
    let all = word(SOFTWARE_BYTES);
    let features = all & !(ON_DEMAND & !word(PRESENT));
    let end = (2..63).filter(|bit| features & 1 << bit != 0).map(component_end).max().unwrap_or(0).max(PRESENT + 64);
    (extended.get(..end.min(extended.len())).unwrap_or(extended), features)
}

/// One above the last byte of a component in the area's standard format.
// `__cpuid_count` is safe since Rust 1.94.
#[allow(unused_unsafe)]
fn component_end(bit: u32) -> usize {
    // SAFETY: every processor with extended states has the leaf.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(0xd, bit) };
    (leaf.eax + leaf.ebx) as usize
}
