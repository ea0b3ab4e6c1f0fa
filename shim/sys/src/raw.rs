//! The `syscall` instruction with zero to six arguments, and results.
//!
//! # Safety
//! A system call can do anything; each wrapper above argues why its own use is sound. Registers: the kernel clobbers
//! rcx and r11 and returns in rax; vector registers and flags are kept.
#![allow(unsafe_code)]

use core::arch::asm;

/// An error number as the kernel returned it (positive).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// A raw result as a value or an error: the kernel returns -4095..-1 for errors.
#[inline(always)]
pub fn check(raw: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&raw) { Err(Errno(-raw as i32)) } else { Ok(raw as usize) }
}

/// A system call with six arguments.
///
/// # Safety
/// The caller argues that this call with these arguments keeps Rust's rules.
#[inline(always)]
pub unsafe fn call6(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let result: isize;
    // SAFETY: the instruction itself clobbers only what is named; the rest is the caller's argument.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") n as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

macro_rules! narrower {
    ($($name:ident($($argument:ident),*) $($zero:literal)*;)*) => {$(
        /// A system call with fewer arguments; see [`call6`].
        ///
        /// # Safety
        /// As for [`call6`].
        #[inline(always)]
        pub unsafe fn $name(n: usize, $($argument: usize),*) -> isize {
            // SAFETY: the caller's argument.
            unsafe { call6(n, $($argument,)* $($zero),*) }
        }
    )*};
}

narrower! {
    call0() 0 0 0 0 0 0;
    call1(a) 0 0 0 0 0;
    call2(a, b) 0 0 0 0;
    call3(a, b, c) 0 0 0;
    call4(a, b, c, d) 0 0;
    call5(a, b, c, d, e) 0;
}
