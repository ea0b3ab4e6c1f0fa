//! Signals at the kernel's level.
#![allow(unsafe_code)]

use crate::raw::{Errno, call2, call3, call4, check};

/// SA_RESTORER, which libc does not name.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// struct kernel_sigaction (arch/x86/include/asm/signal.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelAction {
    /// Handler, SIG_DFL or SIG_IGN.
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// Restorer.
    pub restorer: u64,
    /// Mask.
    pub mask: u64,
}

/// The bit of signal `n` in a mask.
pub const fn bit(n: u32) -> u64 {
    1 << (n - 1)
}

/// rt_sigaction(2).
///
/// # Safety
/// The handler must be fit to run at any instruction.
pub unsafe fn set_action(signal: u32, action: &KernelAction) -> Result<(), Errno> {
    // SAFETY: the source is valid; the handler is the caller's argument.
    check(unsafe { call4(libc::SYS_rt_sigaction as usize, signal as usize, action as *const _ as usize, 0, 8) })
        .map(|_| ())
}

/// The kernel's action for `signal`.
pub fn action(signal: u32) -> Result<KernelAction, Errno> {
    let mut old = KernelAction::default();
    // SAFETY: the target is a local.
    check(unsafe { call4(libc::SYS_rt_sigaction as usize, signal as usize, 0, &mut old as *mut _ as usize, 8) })?;
    Ok(old)
}

/// rt_sigprocmask(SIG_SETMASK): sets the thread's mask, returns the old one.
pub fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: locals only.
    unsafe {
        call4(
            libc::SYS_rt_sigprocmask as usize,
            libc::SIG_SETMASK as usize,
            &mask as *const _ as usize,
            &mut old as *mut _ as usize,
            8,
        )
    };
    old
}

/// The thread's mask.
pub fn mask() -> u64 {
    let mut old = 0u64;
    // SAFETY: the target is a local.
    unsafe { call4(libc::SYS_rt_sigprocmask as usize, 0, 0, &mut old as *mut _ as usize, 8) };
    old
}

/// rt_sigpending(2): signals pending for the thread or the process.
pub fn pending() -> u64 {
    let mut set = 0u64;
    // SAFETY: the target is a local.
    unsafe { call2(libc::SYS_rt_sigpending as usize, &mut set as *mut _ as usize, 8) };
    set
}

/// rt_sigtimedwait(2) with a zero time-out: takes one pending signal of `set`, writing its siginfo.
pub fn take_pending(set: u64, info: &mut [u64; 16]) -> Result<u32, Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: locals only.
    check(unsafe {
        call4(
            libc::SYS_rt_sigtimedwait as usize,
            &set as *const _ as usize,
            info.as_mut_ptr() as usize,
            &zero as *const _ as usize,
            8,
        )
    })
    .map(|n| n as u32)
}

/// tgkill(2).
pub fn send(pid: u32, tid: u32, signal: u32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call3(libc::SYS_tgkill as usize, pid as usize, tid as usize, signal as usize) }).map(|_| ())
}

/// rt_sigqueueinfo(2): to the process.
pub fn queue_process(pid: u32, signal: u32, info: &[u64; 16]) -> Result<(), Errno> {
    // SAFETY: the source is valid for a siginfo.
    check(unsafe { call3(libc::SYS_rt_sigqueueinfo as usize, pid as usize, signal as usize, info.as_ptr() as usize) })
        .map(|_| ())
}

/// rt_tgsigqueueinfo(2): to a thread.
pub fn queue_thread(pid: u32, tid: u32, signal: u32, info: &[u64; 16]) -> Result<(), Errno> {
    // SAFETY: the source is valid for a siginfo.
    check(unsafe {
        call4(libc::SYS_rt_tgsigqueueinfo as usize, pid as usize, tid as usize, signal as usize, info.as_ptr() as usize)
    })
    .map(|_| ())
}

/// sigaltstack(2).
///
/// # Safety
/// The stack must be valid and unused for as long as signals may use it.
pub unsafe fn set_alternate_stack(address: u64, bytes: u64, flags: u32) -> Result<(), Errno> {
    let stack = libc::stack_t { ss_sp: address as *mut _, ss_flags: flags as i32, ss_size: bytes as usize };
    // SAFETY: the source is a local; the stack is the caller's argument.
    check(unsafe { call2(libc::SYS_sigaltstack as usize, &stack as *const _ as usize, 0) }).map(|_| ())
}
