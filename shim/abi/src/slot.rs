//! One thread of the program: the slot to which its GS base points.
//!
//! A slot's stride (see [`crate::layout::SLOT_STRIDE`]) holds this page, the gate stack and the signal stack. Fields
//! that assembler reads are at offsets taken from `offset_of!`. All of it is region memory: after a save it *is* the
//! thread.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What a slot holds; [`Slot::state`].
pub mod state {
    /// Nothing; may be taken.
    pub const FREE: u32 = 0;
    /// Taken by a parent whose clone is under way.
    pub const BORN: u32 = 1;
    /// A thread of the program.
    pub const LIVE: u32 = 2;
    /// The thread has left the program and only the kernel's exit is ahead of it.
    pub const EXITING: u32 = 3;
}

/// Bits of [`Slot::pending`]: work that waits for the end of the gate's critical section.
pub mod pending {
    /// Save or stop: enter the power-failure handler at the exit of the gate.
    pub const KICK: u32 = 1;
    /// A signal of the program waits in [`super::Slot::deferred`].
    pub const SIGNAL: u32 = 2;
}

/// The program's registers when it entered the gate: the thread's state as the program sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// On entry the call's number; on exit its result.
    pub rax: u64,
    /// First argument.
    pub rdi: u64,
    /// Second argument.
    pub rsi: u64,
    /// Third argument.
    pub rdx: u64,
    /// Fourth argument.
    pub r10: u64,
    /// Fifth argument.
    pub r8: u64,
    /// Sixth argument.
    pub r9: u64,
    /// Callee-saved.
    pub rbx: u64,
    /// Callee-saved.
    pub rbp: u64,
    /// Callee-saved.
    pub r12: u64,
    /// Callee-saved.
    pub r13: u64,
    /// Callee-saved.
    pub r14: u64,
    /// Callee-saved.
    pub r15: u64,
    /// The program's stack pointer.
    pub rsp: u64,
    /// Where the gate returns to: behind the `syscall` (or in the site's trampoline).
    pub rip: u64,
    /// The call's number, kept when `rax` becomes the result.
    pub number: u64,
}

/// A signal frame's siginfo, opaque.
pub type SigInfo = [u64; 16];

/// A signal of the program that came inside a critical section.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Deferred {
    /// The mask that was in force, to be put back when it is delivered.
    pub mask: u64,
    /// Signal number.
    pub signal: u32,
    /// Named padding.
    pub reserved: u32,
    /// Its siginfo.
    pub info: SigInfo,
}

/// A call of the vdso that is under way; see `family::clocks` of the shim.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VdsoCall {
    /// Address of the entry that the program called (in the region's copy of the vdso); 0: none under way.
    pub entry: u64,
    /// Stack pointer at the entry; the return address lies there.
    pub rsp: u64,
    /// Arguments.
    pub rdi: u64,
    /// Arguments.
    pub rsi: u64,
    /// Arguments.
    pub rdx: u64,
    /// Callee-saved registers.
    pub rbx: u64,
    /// Callee-saved registers.
    pub rbp: u64,
    /// Callee-saved registers.
    pub r12: u64,
    /// Callee-saved registers.
    pub r13: u64,
    /// Callee-saved registers.
    pub r14: u64,
    /// Callee-saved registers.
    pub r15: u64,
}

/// Return point of a vfork: child and parent both come back there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VforkReturn {
    /// The program's stack pointer (of the parent).
    pub rsp: u64,
    /// Where the gate returns to.
    pub rip: u64,
    /// The parent's [`Slot::extra_mask`], and
    pub extra_mask: u64,
    /// its [`Slot::faults_blocked`]: the child may change its own.
    pub faults_blocked: u64,
}

/// A call that ended early, and how to issue it again.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Retry {
    /// 1: valid. The frame says that the call returned EINTR.
    pub valid: u64,
    /// Address that issues the call again.
    pub rip: u64,
    /// Its number.
    pub number: u64,
    /// 1: SA_RESTART restarts it.
    pub restartable: u64,
}

/// What a save adds to the kernel's signal frame.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Saved {
    /// Stack pointer for rt_sigreturn: address of the frame's ucontext. 0: not saved.
    pub frame: u64,
    /// FS base.
    pub fs_base: u64,
    /// 1: the frame was taken from outside, at any instruction, and says nothing yet of the program's state.
    pub outside: u64,
    /// Of a frame from outside: [`crate::life::LifeThread::lock_wait`] at that instruction.
    pub lock_wait: u64,
    /// If valid, the frame says that a call ended with EINTR, because of the save alone: a resume that runs no handler
    /// on this thread issues it again.
    pub retry: Retry,
    /// PR_GET_NAME.
    pub name: [u8; 16],
}

/// One thread.
#[repr(C, align(64))]
pub struct Slot {
    /// Its own address (gs:0).
    pub this: u64,
    /// Top of its gate stack.
    pub gate_stack: u64,
    /// See [`pending`].
    pub pending: AtomicU32,
    /// 1: the program has sent SIGPWR to this thread itself, as `own_power_info` says, and it has not taken it yet; 2: that
    /// is the recovery signal, which it was in no state to take.
    pub own_power: AtomicU32,
    /// 1: a vfork child runs on this slot.
    pub borrowed: u32,
    /// See [`state`].
    pub state: AtomicU32,
    /// Index in the slot array.
    pub index: u32,
    /// Thread id as the program knows it; 0 until it is known.
    pub virtual_tid: AtomicU32,
    /// 1: the process is a volatile fork child; every call passes untouched.
    pub volatile: u32,
    /// 1 while the thread is suspended by a vfork child of its own.
    pub suspended: u32,
    /// The program's registers at the gate's entry.
    pub frame: Frame,
    /// xmm0-15, which compiled Rust may overwrite.
    pub xmm: [[u64; 2]; 16],
    /// The vdso call under way.
    pub vdso: VdsoCall,
    /// Return point of the vfork under way.
    pub vfork: VforkReturn,
    /// The signal that waits for the end of the gate.
    pub deferred: Deferred,
    /// What a save recorded.
    pub saved: Saved,
    /// Kernel-level address that set_tid_address or CLONE_CHILD_CLEARTID named; registered only at the thread's end.
    pub clear_tid: u64,
    /// Robust list, registered only at the thread's end.
    pub robust_list: u64,
    /// Its length argument.
    pub robust_bytes: u64,
    /// rseq area, 0: none.
    pub rseq: u64,
    /// Its length.
    pub rseq_bytes: u32,
    /// Its signature.
    pub rseq_signature: u32,
    /// The program's alternate stack: address.
    pub alt_address: u64,
    /// Its size.
    pub alt_bytes: u64,
    /// SS_DISABLE or SS_AUTODISARM.
    pub alt_flags: u64,
    /// Bits of SIGSYS and SIGPWR in the mask that the program believes in; the kernel's mask has the others.
    pub extra_mask: u64,
    /// SIGSEGV and SIGBUS, if the thread's mask may have them now: what the gate copies then must not fault.
    pub faults_blocked: AtomicU64,
    /// The temporary mask of sigsuspend, ppoll and the like, while `temp_valid` is 1.
    pub temp_mask: u64,
    /// See `temp_mask`.
    pub temp_valid: u64,
    /// The bits of SIGSYS and SIGPWR in the temporary mask.
    pub temp_own_mask: u64,
    /// The program's CLOCK_MONOTONIC when the timed call under way began, ns.
    pub began_ns: u64,
    /// Fork: stack pointer that the child is to have, 0: its parent's.
    pub start_stack: u64,
    /// Fork: address that the kernel clears at the child's end.
    pub start_flags: u64,
    /// New thread: address for CLONE_PARENT_SETTID, 0: none.
    pub start_parent_tid: u64,
    /// New thread: address for CLONE_CHILD_SETTID, 0: none.
    pub start_child_tid: u64,
    /// New thread: its kernel mask once it is set up.
    pub start_mask: u64,
    /// How to issue the interrupted call of the slow path again, see [`Retry`].
    pub retry: Retry,
    /// Return address and number of a timed call that is to be continued, not begun anew, when it comes in again.
    pub timed_rip: u64,
    /// See `timed_rip`.
    pub timed_number: u64,
    /// Fork: 1 once the child has its own copy of everything.
    pub fork_done: AtomicU32,
    /// Taken from outside in the gate's own work, perhaps several times: the kernel's process ids of the lives before, the
    /// last one first, which a siginfo in hand may still name, up to the end of that work. 0: none.
    pub old_pids: [u32; 5],
    /// See `own_power`; written under the state lock while that is 0.
    pub own_power_info: SigInfo,
    /// Scratch for time-outs that the gate passes to the kernel instead of the program's.
    pub scratch: [u64; 64],
}

impl Slot {
    /// Whether a signal of the program waits for the end of the gate's work.
    pub fn puts_signal_off(&self) -> bool {
        self.pending.load(Ordering::Acquire) & pending::SIGNAL != 0
    }
}

/// Where in its slot's stride a saved signal frame lies: offset and bytes, from the ucontext to the top of the signal
/// stack. Only this part of the stack is saved state: below it the parked thread's handler still runs. None if `frame`
/// is no address in the signal stack of the slot at `slot`.
pub const fn saved_frame(slot: u64, frame: u64) -> Option<(u64, u64)> {
    use crate::layout::{SIGNAL_STACK, SLOT_STRIDE};
    match frame.checked_sub(slot) {
        Some(offset) if offset >= SIGNAL_STACK && offset < SLOT_STRIDE => Some((offset, SLOT_STRIDE - offset)),
        _ => None,
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Slot>() <= 4096);
    assert!(offset_of!(Slot, this) == 0);
    assert!(offset_of!(Slot, gate_stack) == 8);
    assert!(offset_of!(Slot, xmm) % 16 == 0);
};
