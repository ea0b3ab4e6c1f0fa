//! Access to the program's memory, which may be bad or change under our feet.
//!
//! [`copy`] touches memory with one instruction, `rep movsb`, between the labels `zhuque_copy_start` and
//! `zhuque_copy_end`. A SIGSEGV or SIGBUS handler that finds the program counter there continues where [`fixup`] says,
//! and the copy reports how much is left instead of faulting.
#![allow(unsafe_code)]

use crate::raw::Errno;
use core::arch::global_asm;
use core::sync::atomic::AtomicU64;

global_asm!(
    ".text",
    ".hidden zhuque_copy, zhuque_copy_start, zhuque_copy_end, zhuque_copy_fixup",
    ".globl zhuque_copy, zhuque_copy_start, zhuque_copy_end, zhuque_copy_fixup",
    ".type zhuque_copy, @function",
    "zhuque_copy:",
    "mov rax, rcx",
    "mov rcx, rdx",
    "zhuque_copy_start:",
    "cmp qword ptr [rax], 0",
    "jne zhuque_copy_fixup",
    "rep movsb",
    "zhuque_copy_end:",
    "mov rax, rcx",
    "ret",
    // Where the fault handler sends us: rcx still holds what was not copied.
    "zhuque_copy_fixup:",
    "mov rax, rcx",
    "ret",
);

unsafe extern "C" {
    fn zhuque_copy(to: *mut u8, from: *const u8, bytes: usize, unless: *const AtomicU64) -> usize;
    fn zhuque_copy_start();
    fn zhuque_copy_end();
    fn zhuque_copy_fixup();
}

/// If a fault at `pc` is one of [`copy`]'s, where to continue.
pub fn fixup(pc: u64) -> Option<u64> {
    let start = zhuque_copy_start as *const () as u64;
    let end = zhuque_copy_end as *const () as u64;
    (start..end).contains(&pc).then_some(zhuque_copy_fixup as *const () as u64)
}

/// Copies `bytes` bytes; EFAULT if a part of either side cannot be accessed (some bytes may have been copied).
///
/// # Safety
/// `to` must not be memory that Rust code relies on, unless it is valid for writing `bytes` bytes. Either side may
/// be an address of the program's choice only where a fault handler knows [`fixup`].
pub unsafe fn copy(to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    static NEVER: AtomicU64 = AtomicU64::new(0);
    // SAFETY: the caller's argument.
    unsafe { copy_unless(&NEVER, to, from, bytes) }
}

/// The same; EFAULT also if `unless` is not zero, or becomes so by a signal handler that sends the copy to [`fixup`].
///
/// # Safety
/// As for [`copy`].
pub unsafe fn copy_unless(unless: &AtomicU64, to: u64, from: u64, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the assembler copies exactly `bytes` bytes or stops at the fault; the caller argues for the target.
    let left = unsafe { zhuque_copy(to as *mut u8, from as *const u8, bytes, unless) };
    if left == 0 { Ok(()) } else { Err(Errno(libc::EFAULT)) }
}
