//! The gate's instructions: entry and exit, the waiting call, thread and child starts, the vdso's wrappers.
//!
//! Every label that the classifier (`entry::place`) needs has a name. The rules: only `gs:` memory and registers until
//! the program's registers are in the slot's frame; nothing on the program's stack (its red zone is in use); rcx and
//! r11 are free, as after any `syscall`. The convention at `zhuque_gate` is that of the instruction itself: rax = number,
//! arguments in their registers, rcx = address to return to.
//!
//! # Safety
//! This file is assembler; each block states what holds at its labels.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::mem::offset_of;
use zhuque_abi::slot::{Frame, Slot, VdsoCall, VforkReturn};
use zhuque_model::calls::{CLASS_EPOLL, CLASS_FUTEX, CLASSED, CLASSES};

const F: usize = offset_of!(Slot, frame);
const V: usize = offset_of!(Slot, vdso);

// The program's vector registers, as far as the gate's own code may have changed them.
macro_rules! restore_vectors {
    () => {
        concat!(
            "movaps xmm0, gs:[{xmm} + 0x00]\n",
            "movaps xmm1, gs:[{xmm} + 0x10]\n",
            "movaps xmm2, gs:[{xmm} + 0x20]\n",
            "movaps xmm3, gs:[{xmm} + 0x30]\n",
            "movaps xmm4, gs:[{xmm} + 0x40]\n",
            "movaps xmm5, gs:[{xmm} + 0x50]\n",
            "movaps xmm6, gs:[{xmm} + 0x60]\n",
            "movaps xmm7, gs:[{xmm} + 0x70]\n",
            "movaps xmm8, gs:[{xmm} + 0x80]\n",
            "movaps xmm9, gs:[{xmm} + 0x90]\n",
            "movaps xmm10, gs:[{xmm} + 0xa0]\n",
            "movaps xmm11, gs:[{xmm} + 0xb0]\n",
            "movaps xmm12, gs:[{xmm} + 0xc0]\n",
            "movaps xmm13, gs:[{xmm} + 0xd0]\n",
            "movaps xmm14, gs:[{xmm} + 0xe0]\n",
            "movaps xmm15, gs:[{xmm} + 0xf0]\n",
        )
    };
}

// The program's general registers but rax (the number or the result), rcx (the return address) and rsp.
macro_rules! restore_registers {
    () => {
        concat!(
            "mov rdi, gs:[{rdi}]\n",
            "mov rsi, gs:[{rsi}]\n",
            "mov rdx, gs:[{rdx}]\n",
            "mov r10, gs:[{r10}]\n",
            "mov r8, gs:[{r8}]\n",
            "mov r9, gs:[{r9}]\n",
            "mov rbx, gs:[{rbx}]\n",
            "mov rbp, gs:[{rbp}]\n",
            "mov r12, gs:[{r12}]\n",
            "mov r13, gs:[{r13}]\n",
            "mov r14, gs:[{r14}]\n",
            "mov r15, gs:[{r15}]\n",
        )
    };
}

// The gate. At `zhuque_gate`: as described above. At `zhuque_slow`: the frame is complete, all registers but rcx are
// still the program's. Between `zhuque_exit_begin` and `zhuque_exit_end` the frame alone is the program's state,
// except for the vector registers, which are already the program's again.
global_asm!(
    ".text",
    ".p2align 6",
    ".hidden zhuque_gate, zhuque_pass_syscall, zhuque_pass_done, zhuque_slow, zhuque_exit_begin, zhuque_exit_end",
    ".hidden zhuque_epoll_syscall, zhuque_epoll_done, zhuque_epoll_again",
    ".globl zhuque_epoll_syscall, zhuque_epoll_done, zhuque_epoll_again",
    ".hidden zhuque_leave, zhuque_sigreturn, zhuque_sigreturn_syscall, zhuque_exit_last",
    ".globl zhuque_gate, zhuque_pass_syscall, zhuque_pass_done, zhuque_slow, zhuque_exit_begin, zhuque_exit_end",
    ".globl zhuque_leave, zhuque_sigreturn, zhuque_sigreturn_syscall, zhuque_exit_last",
    "zhuque_gate:",
    "mov gs:[{rip}], rcx",
    "mov gs:[{rsp}], rsp",
    "mov gs:[{number}], rax",
    "mov gs:[{rdi}], rdi",
    "mov gs:[{rsi}], rsi",
    "mov gs:[{rdx}], rdx",
    "mov gs:[{r10}], r10",
    "mov gs:[{r8}], r8",
    "mov gs:[{r9}], r9",
    "mov gs:[{rbx}], rbx",
    "mov gs:[{rbp}], rbp",
    "mov gs:[{r12}], r12",
    "mov gs:[{r13}], r13",
    "mov gs:[{r14}], r14",
    "mov gs:[{r15}], r15",
    "cmp rax, {classed}",
    "jae zhuque_slow",
    "lea rcx, [rip + {classes}]",
    "movzx ecx, byte ptr [rcx + rax]",
    "test ecx, ecx",
    "jnz 3f",
    "2:",
    // rcx tells the classifier whether the kernel has seen the call: the instruction sets it.
    "xor ecx, ecx",
    "zhuque_pass_syscall:",
    "syscall",
    "zhuque_pass_done:",
    "jmp qword ptr gs:[{rip}]",
    // Two calls that servers live on are worth a look here: epoll_wait without a time-out, futex wake and plain wait.
    "3:",
    "cmp ecx, {epoll}",
    "jne 4f",
    "test r10d, r10d",
    "jns zhuque_slow",
    "xor ecx, ecx",
    "zhuque_epoll_syscall:",
    "syscall",
    "zhuque_epoll_done:",
    "cmp rax, {eintr}",
    "je zhuque_epoll_again",
    "jmp qword ptr gs:[{rip}]",
    // No handler has run, or it would have returned to the program: the signal was for a thread that took it first, or this
    // one was stopped for a while. The kernel ends this call then (signal(7)); the gate has it go on.
    "zhuque_epoll_again:",
    "mov rax, gs:[{number}]",
    "jmp zhuque_slow",
    "4:",
    "cmp ecx, {futex}",
    "jne zhuque_slow",
    "mov ecx, esi",
    "and ecx, 127",
    "cmp ecx, 1", // FUTEX_WAKE
    "je 2b",
    "or rcx, r10", // FUTEX_WAIT is 0, and so is no time-out
    "jz 2b",
    "zhuque_slow:",
    "mov gs:[{rax}], rax",
    "mov rsp, gs:[{gate_stack}]",
    "cld",
    "movaps gs:[{xmm} + 0x00], xmm0",
    "movaps gs:[{xmm} + 0x10], xmm1",
    "movaps gs:[{xmm} + 0x20], xmm2",
    "movaps gs:[{xmm} + 0x30], xmm3",
    "movaps gs:[{xmm} + 0x40], xmm4",
    "movaps gs:[{xmm} + 0x50], xmm5",
    "movaps gs:[{xmm} + 0x60], xmm6",
    "movaps gs:[{xmm} + 0x70], xmm7",
    "movaps gs:[{xmm} + 0x80], xmm8",
    "movaps gs:[{xmm} + 0x90], xmm9",
    "movaps gs:[{xmm} + 0xa0], xmm10",
    "movaps gs:[{xmm} + 0xb0], xmm11",
    "movaps gs:[{xmm} + 0xc0], xmm12",
    "movaps gs:[{xmm} + 0xd0], xmm13",
    "movaps gs:[{xmm} + 0xe0], xmm14",
    "movaps gs:[{xmm} + 0xf0], xmm15",
    "mov rdi, gs:[{this}]",
    "call {serve}",
    // New threads and fork children come in here, too. rax: 0 leaves to the program, 1 does its rt_sigreturn.
    "zhuque_leave:",
    restore_vectors!(),
    "test eax, eax",
    "jnz zhuque_sigreturn",
    "zhuque_exit_begin:",
    "cmp dword ptr gs:[{pending}], 0",
    "jne 2f",
    "mov rax, gs:[{rax}]",
    restore_registers!(),
    "mov rcx, gs:[{rip}]",
    "mov rsp, gs:[{rsp}]",
    "zhuque_exit_last:",
    "jmp qword ptr gs:[{rip}]",
    // Something waits for the end of the critical section: enter the power-failure handler here, where the frame is
    // the program's state. The handler never comes back to this place; the loop is for a lost kick.
    "2:",
    "mov eax, 39", // getpid
    "syscall",
    "mov edi, eax",
    "mov eax, 186", // gettid
    "syscall",
    "mov esi, eax",
    "mov edx, 30",   // SIGPWR
    "mov eax, 234",  // tgkill
    "syscall",
    "jmp zhuque_exit_begin",
    "zhuque_exit_end:",
    // The program's own rt_sigreturn: rsp is its frame.
    "zhuque_sigreturn:",
    "mov rsp, gs:[{rsp}]",
    "mov eax, 15",
    "zhuque_sigreturn_syscall:",
    "syscall",
    "ud2",
    classed = const CLASSED,
    epoll = const CLASS_EPOLL,
    eintr = const -libc::EINTR,
    futex = const CLASS_FUTEX,
    classes = sym CLASSES,
    serve = sym crate::gate::serve,
    this = const offset_of!(Slot, this),
    gate_stack = const offset_of!(Slot, gate_stack),
    pending = const offset_of!(Slot, pending),
    xmm = const offset_of!(Slot, xmm),
    rax = const F + offset_of!(Frame, rax),
    rdi = const F + offset_of!(Frame, rdi),
    rsi = const F + offset_of!(Frame, rsi),
    rdx = const F + offset_of!(Frame, rdx),
    r10 = const F + offset_of!(Frame, r10),
    r8 = const F + offset_of!(Frame, r8),
    r9 = const F + offset_of!(Frame, r9),
    rbx = const F + offset_of!(Frame, rbx),
    rbp = const F + offset_of!(Frame, rbp),
    r12 = const F + offset_of!(Frame, r12),
    r13 = const F + offset_of!(Frame, r13),
    r14 = const F + offset_of!(Frame, r14),
    r15 = const F + offset_of!(Frame, r15),
    rsp = const F + offset_of!(Frame, rsp),
    rip = const F + offset_of!(Frame, rip),
    number = const F + offset_of!(Frame, number),
);

// A call that may wait, from the gate's own code: rdi = &[number, six arguments]. Returns the kernel's result, or
// -512 if it was not begun since work was pending, or -513 if the kernel would have restarted it.
global_asm!(
    ".text",
    ".p2align 4",
    ".hidden zhuque_wait, zhuque_wait_begin, zhuque_wait_syscall, zhuque_wait_done",
    ".hidden zhuque_wait_unbegun, zhuque_wait_restart",
    ".globl zhuque_wait, zhuque_wait_begin, zhuque_wait_syscall, zhuque_wait_done",
    ".globl zhuque_wait_unbegun, zhuque_wait_restart",
    "zhuque_wait:",
    "mov r11, rdi",
    "mov rax, [r11]",
    "mov rdi, [r11 + 8]",
    "mov rsi, [r11 + 16]",
    "mov rdx, [r11 + 24]",
    "mov r10, [r11 + 32]",
    "mov r8, [r11 + 40]",
    "mov r9, [r11 + 48]",
    "zhuque_wait_begin:",
    "cmp dword ptr gs:[{pending}], 0",
    "jne zhuque_wait_unbegun",
    "xor ecx, ecx",
    "zhuque_wait_syscall:",
    "syscall",
    "zhuque_wait_done:",
    "ret",
    "zhuque_wait_unbegun:",
    "mov rax, -512",
    "ret",
    "zhuque_wait_restart:",
    "mov rax, -513",
    "ret",
    pending = const offset_of!(Slot, pending),
);

// Creation of threads and children. `zhuque_clone(flags, stack, tls, entry, argument)`:
// the child starts on its stack with entry(argument), which returns 0 to the gate's exit; the parent gets the result.
// `zhuque_exit_thread(slot_state)`: marks the slot free and ends the thread without touching a stack.
// `zhuque_on_stack(stack, function, argument)`: calls the function on another stack.
global_asm!(
    ".text",
    ".p2align 4",
    ".hidden zhuque_clone, zhuque_exit_thread, zhuque_on_stack, zhuque_restorer, zhuque_return_to_frame",
    ".hidden zhuque_exit_thread_freed, zhuque_exit_thread_end",
    ".globl zhuque_clone, zhuque_exit_thread, zhuque_on_stack, zhuque_restorer, zhuque_return_to_frame",
    ".globl zhuque_exit_thread_freed, zhuque_exit_thread_end",
    "zhuque_clone:",
    "sub rsi, 16",
    "mov [rsi], rcx",
    "mov [rsi + 8], r8",
    "mov r8, rdx", // what the kernel wants there
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "ret",
    "2:",
    "xor ebp, ebp",
    "pop rax",
    "pop rdi",
    "and rsp, -16",
    "call rax",
    "jmp zhuque_leave",
    "zhuque_exit_thread:",
    "mov dword ptr [rdi], 0",
    "zhuque_exit_thread_freed:",
    "mov eax, 60",
    "xor edi, edi",
    "syscall",
    "zhuque_exit_thread_end:",
    "ud2",
    "zhuque_on_stack:",
    "push rbp",
    "mov rbp, rsp",
    "mov rsp, rdi",
    "and rsp, -16",
    "mov rdi, rdx",
    "call rsi",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    // What kernel-level handlers return to.
    "zhuque_restorer:",
    "mov eax, 15",
    "syscall",
    "ud2",
    // A revived thread: rdi = address of the saved frame's ucontext.
    "zhuque_return_to_frame:",
    "mov rsp, rdi",
    "mov eax, 15",
    "syscall",
    "ud2",
);

// vfork and clone(CLONE_VFORK), jumped to by the gate; never returns to its caller. The registers are the program's when
// the kernel sees the call, so that child and parent have them afterwards; rcx and r11 are lost to the instruction. Where
// to go afterwards lies in the slot's vfork entry, which calls of the child do not touch. The child may be killed at any
// instruction, so the parent relies on nothing that it did.
global_asm!(
    ".text",
    ".p2align 4",
    ".hidden zhuque_vfork, zhuque_vfork_begin, zhuque_vfork_syscall, zhuque_vfork_after, zhuque_vfork_abort",
    ".globl zhuque_vfork, zhuque_vfork_begin, zhuque_vfork_syscall, zhuque_vfork_after, zhuque_vfork_abort",
    "zhuque_vfork:",
    "mov rax, gs:[{number}]",
    restore_vectors!(),
    restore_registers!(),
    // Nothing may wait when the child begins, or it would do its parent's work. A signal that comes from here to the
    // instruction sends the thread to `zhuque_vfork_abort` (entry::place); so does one for which the kernel would
    // issue the call again.
    "zhuque_vfork_begin:",
    "cmp dword ptr gs:[{pending}], 0",
    "jne zhuque_vfork_abort",
    "mov rsp, gs:[{rsp}]",
    "zhuque_vfork_syscall:",
    "syscall",
    // From here on child and parent differ.
    "test rax, rax",
    "jnz zhuque_vfork_after",
    "mov dword ptr gs:[{borrowed}], 1",
    "jmp qword ptr gs:[{vfork_rip}]",
    // Parent: the child has gone. Its calls have overwritten the slot's frame; the program's registers are back as
    // they were, so enter the gate once more, with a number of our own, and leave from there (gate::VFORK_DONE).
    "zhuque_vfork_after:",
    "mov gs:[{scratch}], rax",
    "mov dword ptr gs:[{borrowed}], 0",
    "mov rcx, gs:[{vfork_rip}]",
    "mov eax, {vfork_done}",
    "jmp zhuque_gate",
    "zhuque_vfork_abort:",
    "mov rsp, gs:[{gate_stack}]",
    "mov rdi, gs:[{this}]",
    "call {vfork_put_off}",
    "xor eax, eax",
    "jmp zhuque_leave",
    vfork_done = const crate::gate::VFORK_DONE,
    vfork_put_off = sym crate::family::processes::vfork_put_off,
    this = const offset_of!(Slot, this),
    gate_stack = const offset_of!(Slot, gate_stack),
    pending = const offset_of!(Slot, pending),
    scratch = const offset_of!(Slot, scratch),
    borrowed = const offset_of!(Slot, borrowed),
    vfork_rip = const offset_of!(Slot, vfork) + offset_of!(VforkReturn, rip),
    xmm = const offset_of!(Slot, xmm),
    rdi = const F + offset_of!(Frame, rdi),
    rsi = const F + offset_of!(Frame, rsi),
    rdx = const F + offset_of!(Frame, rdx),
    r10 = const F + offset_of!(Frame, r10),
    r8 = const F + offset_of!(Frame, r8),
    r9 = const F + offset_of!(Frame, r9),
    rbx = const F + offset_of!(Frame, rbx),
    rbp = const F + offset_of!(Frame, rbp),
    r12 = const F + offset_of!(Frame, r12),
    r13 = const F + offset_of!(Frame, r13),
    r14 = const F + offset_of!(Frame, r14),
    r15 = const F + offset_of!(Frame, r15),
    rsp = const F + offset_of!(Frame, rsp),
    number = const F + offset_of!(Frame, number),
);

// The vdso's wrappers, one per function (index in rax at the common part). The record in the slot makes a failure
// inside the kernel's code restartable at the entry; nothing is read back from it, so that a thread of a volatile
// child may share the slot. `zhuque_vdso_begin..zhuque_vdso_end`: the record may be incomplete before
// `zhuque_vdso_inside`, and the registers are still those of the call then.
macro_rules! wrapper {
    ($name:literal, $index:literal) => {
        concat!(
            ".p2align 4\n",
            ".hidden ",
            $name,
            "\n.globl ",
            $name,
            "\n",
            $name,
            ":\n",
            "mov gs:[{v_rsp}], rsp\n",
            "mov gs:[{v_rdi}], rdi\n",
            "mov gs:[{v_rsi}], rsi\n",
            "mov gs:[{v_rdx}], rdx\n",
            "mov gs:[{v_rbx}], rbx\n",
            "mov gs:[{v_rbp}], rbp\n",
            "mov gs:[{v_r12}], r12\n",
            "mov gs:[{v_r13}], r13\n",
            "mov gs:[{v_r14}], r14\n",
            "mov gs:[{v_r15}], r15\n",
            "lea rax, [rip + ",
            $name,
            "]\n",
            "mov gs:[{v_entry}], rax\n",
        )
    };
}

global_asm!(
    ".text",
    ".hidden zhuque_vdso_begin, zhuque_vdso_end",
    ".globl zhuque_vdso_begin, zhuque_vdso_end",
    "zhuque_vdso_begin:",
    // clock_gettime(clock, time): the kernel's function, then the offset of this life for the clocks that stand still
    // between save and resume.
    wrapper!("zhuque_vdso_clock_gettime", 0),
    "mov rax, qword ptr [rip + {functions}]",
    "push rdi",
    "push rsi",
    "sub rsp, 8",
    "call [rax]",
    "add rsp, 8",
    "pop rsi",
    "pop rdi",
    "test eax, eax",
    "jnz 3f",
    // Clocks 1 MONOTONIC, 4 MONOTONIC_RAW, 6 MONOTONIC_COARSE, 7 BOOTTIME.
    "cmp edi, 7",
    "ja 3f",
    "mov ecx, 0xd2",
    "bt ecx, edi",
    "jnc 3f",
    // [FUNCTIONS] + 48: seconds and nanoseconds for MONOTONIC, BOOTTIME, MONOTONIC_RAW (family::clocks).
    "mov rcx, qword ptr [rip + {functions}]",
    "add rcx, 48",
    "cmp edi, 7",
    "jne 2f",
    "add rcx, 16",
    "2:",
    "cmp edi, 4",
    "jne 2f",
    "add rcx, 32",
    "2:",
    "mov rdx, [rcx + 8]",
    "mov rcx, [rcx]",
    "add rdx, [rsi + 8]",
    "add rcx, [rsi]",
    "cmp rdx, 1000000000",
    "jl 2f",
    "sub rdx, 1000000000",
    "inc rcx",
    "2:",
    "mov [rsi], rcx",
    "mov [rsi + 8], rdx",
    "3:",
    "mov qword ptr gs:[{v_entry}], 0",
    "ret",
    wrapper!("zhuque_vdso_gettimeofday", 1),
    "mov rax, qword ptr [rip + {functions}]",
    "sub rsp, 8",
    "call [rax + 8]",
    "add rsp, 8",
    "mov qword ptr gs:[{v_entry}], 0",
    "ret",
    wrapper!("zhuque_vdso_time", 2),
    "mov rax, qword ptr [rip + {functions}]",
    "sub rsp, 8",
    "call [rax + 16]",
    "add rsp, 8",
    "mov qword ptr gs:[{v_entry}], 0",
    "ret",
    wrapper!("zhuque_vdso_getcpu", 3),
    "mov rax, qword ptr [rip + {functions}]",
    "sub rsp, 8",
    "call [rax + 24]",
    "add rsp, 8",
    "mov qword ptr gs:[{v_entry}], 0",
    "ret",
    wrapper!("zhuque_vdso_clock_getres", 4),
    "mov rax, qword ptr [rip + {functions}]",
    "sub rsp, 8",
    "call [rax + 32]",
    "add rsp, 8",
    "mov qword ptr gs:[{v_entry}], 0",
    "ret",
    // getrandom: hidden; callers take the system call.
    ".p2align 4",
    ".hidden zhuque_vdso_getrandom",
    ".globl zhuque_vdso_getrandom",
    "zhuque_vdso_getrandom:",
    "mov rax, -38",
    "ret",
    "zhuque_vdso_end:",
    functions = sym crate::control::FUNCTIONS,
    v_entry = const V + offset_of!(VdsoCall, entry),
    v_rsp = const V + offset_of!(VdsoCall, rsp),
    v_rdi = const V + offset_of!(VdsoCall, rdi),
    v_rsi = const V + offset_of!(VdsoCall, rsi),
    v_rdx = const V + offset_of!(VdsoCall, rdx),
    v_rbx = const V + offset_of!(VdsoCall, rbx),
    v_rbp = const V + offset_of!(VdsoCall, rbp),
    v_r12 = const V + offset_of!(VdsoCall, r12),
    v_r13 = const V + offset_of!(VdsoCall, r13),
    v_r14 = const V + offset_of!(VdsoCall, r14),
    v_r15 = const V + offset_of!(VdsoCall, r15),
);

unsafe extern "C" {
    /// Creates a thread or a child: flags of clone(2), its stack, its FS base, and what it begins with.
    /// The new one calls `entry(argument)` and leaves by the gate's exit if that returns; the caller gets the kernel's
    /// result.
    pub fn zhuque_clone(
        flags: u64,
        stack: u64,
        tls: u64,
        entry: unsafe extern "C" fn(*mut Slot) -> u32,
        argument: *mut Slot,
    ) -> i64;
}
