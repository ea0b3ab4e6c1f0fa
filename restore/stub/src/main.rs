//! # zhuque-stub: rebuilds an address space from within
//!
//! The launcher copies this program, as one flat run of bytes, into a hole of a process that has just executed the
//! program's file and not yet run an instruction of it (see `launcher/src/inject.rs`), and lets it run there. It
//! replaces everything in the process but itself and the kernel's vdso by what the saved region says, and calls the
//! shim's revive inside the result.
//!
//! Rules, since the text is mapped anywhere, read-only and without a loader:
//! * no relocations, no writable data, no libc, no allocation, no panics, and no call of a function of another crate
//!   that is not inlined, since that goes through a table (`restore/src/stub_image.rs` refuses anything else; the
//!   crate is always built optimised);
//! * nothing here writes to shared memory of the region: a resume that ends here has changed nothing.
//!
//! Neighbours: [`zhuque_abi::life::ResumeArgs`] is the contract with both sides, `support` the symbols that a
//! compiler takes for granted.
#![no_std]
#![no_main]

mod report;
mod support;

use core::arch::{asm, global_asm};
use report::Line;
use zhuque_abi::layout::{LIFE_OFFSET, LIFE_SCRATCH, LIFE_SCRATCH_BYTES, TASK_SIZE};
use zhuque_abi::life::{MapStep, RESUME_MAGIC, ResumeArgs, stage};
use zhuque_sys::{Errno, mm, raw};

/// Status of a process whose resume failed: zhuque's own errors.
const FAILED: i32 = 125;

global_asm!(
    ".pushsection .text._start,\"ax\",@progbits",
    ".globl _start",
    ".hidden _start",
    ".type _start,@function",
    "_start:",
    // As at the entry of a function: rdi = arguments, rsp = 16 n + 8.
    "xor ebp, ebp",
    "sub rsp, 8",
    "cld",
    "call {main}",
    "ud2",
    ".size _start, . - _start",
    ".popsection",
    main = sym rebuild,
);

/// Everything the stub does, in the order of [`stage`].
///
/// # Safety
/// `args` points to the arguments and the steps behind them, in memory that is mapped at `stub_start..+stub_bytes`
/// together with this code and its stack; nothing else in the process is needed any more.
unsafe extern "C" fn rebuild(args: *const ResumeArgs) -> ! {
    // SAFETY: the caller's argument; nobody writes to it while the stub runs.
    let args = unsafe { &*args };
    if args.magic != RESUME_MAGIC {
        Line::to(args.status).text(b"the stub was given no arguments\n");
        exit();
    }
    die_at(args, stage::STUB);
    // SAFETY: code, stack and arguments lie in the stub's own memory, which all three leave alone.
    unsafe {
        move_vdso(args);
        unmap_all(args);
        map_all(args);
    }
    die_at(args, stage::MAPPED);
    // SAFETY: control mapping, life area and the shim's text are back.
    unsafe { hand_over(args) }
}

/// Moves the kernel's vdso mappings to where nothing of the program lies.
///
/// # Safety
/// See [`rebuild`]; the targets are free.
unsafe fn move_vdso(args: &ResumeArgs) {
    for piece in args.vdso_pieces.iter().filter(|p| p.bytes != 0) {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the launcher chose a hole for the target, and nobody reads clocks meanwhile.
        let moved = unsafe { mm::mremap(piece.from, piece.bytes, piece.bytes, flags, piece.to) };
        if let Err(error) = moved {
            let line = Line::to(args.status).text(b"cannot move the vdso from ");
            line.range(piece.from, piece.bytes).errno(error);
            exit();
        }
    }
}

/// Unmaps everything but the stub's memory and the vdso.
///
/// # Safety
/// See [`rebuild`].
unsafe fn unmap_all(args: &ResumeArgs) {
    let stub = (args.stub_start, args.stub_bytes);
    let vdso = (args.vdso_to, args.vdso.variables.wrapping_add(args.vdso.bytes));
    let (low, high) = if stub.0 < vdso.0 { (stub, vdso) } else { (vdso, stub) };
    let low_end = low.0.wrapping_add(low.1);
    let high_end = high.0.wrapping_add(high.1);
    // Without a vdso its run is empty and lies at 0.
    for (start, end) in [(0, low.0), (low_end, high.0), (high_end, TASK_SIZE)] {
        if start >= end {
            continue;
        }
        // SAFETY: what lies between the two is the image that the kernel has just loaded, which nobody runs.
        if let Err(error) = unsafe { mm::munmap(start, end - start) } {
            Line::to(args.status).text(b"cannot unmap ").range(start, end - start).errno(error);
            exit();
        }
    }
}

/// Maps what the program had.
///
/// # Safety
/// See [`rebuild`].
unsafe fn map_all(args: &ResumeArgs) {
    let first = (args as *const ResumeArgs).wrapping_add(1).cast::<MapStep>();
    let mut at = 0;
    while at < args.steps {
        // SAFETY: `steps` of them follow the arguments, by the caller's argument.
        let step = unsafe { &*first.wrapping_add(at as usize) };
        // SAFETY: only what is free is filled, and nothing else runs here.
        let mapped = unsafe { mm::mmap_free(step.start, step.bytes, step.prot, step.flags, step.fd, step.offset) };
        if let Err(error) = mapped {
            fail_step(args, step, error);
        }
        at += 1;
    }
}

/// Calls revive on the stack at the top of the life area's scratch memory.
///
/// # Safety
/// The address space is the program's.
unsafe fn hand_over(args: &ResumeArgs) -> ! {
    let top = args.base.wrapping_add(LIFE_OFFSET + LIFE_SCRATCH + LIFE_SCRATCH_BYTES);
    // SAFETY: `call`, so that revive finds the stack as any function does: rsp = top - 8. It never returns.
    unsafe {
        asm!(
            // Named registers: one that the compiler chooses may be rbp.
            "mov rsp, rcx",
            "xor ebp, ebp",
            "call rax",
            "ud2",
            in("rcx") top,
            in("rax") args.revive,
            in("rdi") args,
            options(noreturn)
        )
    }
}

/// Fault injection: ends the process as a power failure would, if the tests asked for it at this stage.
fn die_at(args: &ResumeArgs, stage: u32) {
    if args.die_at == stage {
        // SAFETY: no memory involved.
        unsafe {
            let pid = raw::call0(libc::SYS_getpid as usize);
            raw::call2(libc::SYS_kill as usize, pid as usize, libc::SIGKILL as usize);
        }
    }
}

/// Reports a mapping that failed, and ends.
fn fail_step(args: &ResumeArgs, step: &MapStep, error: Errno) -> ! {
    let line = Line::to(args.status).text(b"cannot map ").range(step.start, step.bytes);
    line.text(b", kind ").decimal(step.kind as u32).errno(error);
    exit()
}

/// Ends the process; the region is unchanged.
fn exit() -> ! {
    loop {
        // SAFETY: no memory involved; does not return.
        unsafe { raw::call1(libc::SYS_exit_group as usize, FAILED as usize) };
    }
}

/// Nothing here panics; if something did, the launcher would see the process die, and the region is unchanged.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit()
}
