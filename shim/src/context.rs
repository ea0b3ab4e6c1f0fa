//! The kernel's signal frame (arch/x86/include/asm/sigframe.h): layout and access.

// The fields are the kernel's registers under their own names.
#![allow(missing_docs)]

use zhuque_abi::slot::{Frame, SigInfo};

/// struct sigcontext_64 without what follows the pointer to the extended state.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MachineContext {
    /// General registers in the kernel's order.
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rsp: u64,
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// cs, gs, fs, ss.
    pub segments: [u16; 4],
    pub error: u64,
    pub trap: u64,
    pub old_mask: u64,
    pub cr2: u64,
    /// Address of the extended state (xsave area), 0: none.
    pub extended: u64,
    pub reserved: [u64; 8],
}

/// struct ucontext of the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Context {
    pub flags: u64,
    pub link: u64,
    /// The alternate stack: address, flags, size.
    pub stack: AlternateStack,
    pub machine: MachineContext,
    /// The mask to be restored.
    pub mask: u64,
}

/// stack_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct AlternateStack {
    pub address: u64,
    pub flags: i32,
    pub padding: i32,
    pub bytes: u64,
}

/// struct rt_sigframe: what lies at a handler's stack pointer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SignalFrame {
    /// Return address: the action's restorer.
    pub restorer: u64,
    pub context: Context,
    pub info: SigInfo,
}

/// Offset in the extended state of struct _fpx_sw_bytes.
const SOFTWARE_BYTES: u64 = 464;
/// FP_XSTATE_MAGIC1.
const XSTATE_MAGIC: u32 = 0x4650_5853;
/// Bytes of the extended state without xsave.
pub const FXSAVE_BYTES: u64 = 512;

impl Context {
    /// Bytes of the extended state at `machine.extended`, by the kernel's own note there.
    ///
    /// # Safety
    /// `machine.extended` is 0 or the address of a kernel-written state.
    pub unsafe fn extended_bytes(&self) -> u64 {
        let state = self.machine.extended;
        if state == 0 {
            return 0;
        }
        // SAFETY: the software bytes lie inside the first 512 bytes, which are always there.
        let (magic, bytes) =
            unsafe { (*((state + SOFTWARE_BYTES) as *const u32), *((state + SOFTWARE_BYTES + 4) as *const u32)) };
        if magic == XSTATE_MAGIC { u64::from(bytes) } else { FXSAVE_BYTES }
    }

    /// Makes the extended state that of a fresh process, as the kernel does for a handler
    /// (fpu__clear_user_states).
    ///
    /// # Safety
    /// As for [`Context::extended_bytes`], and nobody needs the state any more.
    pub unsafe fn reset_extended(&self) {
        let state = self.machine.extended;
        if state == 0 {
            return;
        }
        // SAFETY: header and legacy area are there by the caller's argument: fcw at 0, mxcsr at 24, xstate_bv at 512.
        unsafe {
            *(state as *mut u16) = 0x37f;
            *((state + 24) as *mut u32) = 0x1f80;
            if *((state + SOFTWARE_BYTES) as *const u32) == XSTATE_MAGIC {
                *((state + FXSAVE_BYTES) as *mut u64) = 0;
            }
        }
    }

    /// Takes the general registers from a gate frame.
    pub fn load(&mut self, frame: &Frame) {
        let m = &mut self.machine;
        m.rax = frame.rax;
        m.rdi = frame.rdi;
        m.rsi = frame.rsi;
        m.rdx = frame.rdx;
        m.r10 = frame.r10;
        m.r8 = frame.r8;
        m.r9 = frame.r9;
        m.rbx = frame.rbx;
        m.rbp = frame.rbp;
        m.r12 = frame.r12;
        m.r13 = frame.r13;
        m.r14 = frame.r14;
        m.r15 = frame.r15;
        m.rsp = frame.rsp;
        m.rip = frame.rip;
        m.rcx = frame.rip;
    }
}

const _: () = {
    assert!(size_of::<MachineContext>() == 256);
    assert!(size_of::<Context>() == 304);
    assert!(core::mem::offset_of!(SignalFrame, info) == 312);
};
