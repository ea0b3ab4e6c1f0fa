//! Where a signal found a thread, and its state as the program knows it.
//!
//! [`program_state`] turns a kernel signal frame that was taken anywhere (gate, trampoline, vdso) into the state of the
//! program at one of its own instructions, or says that the thread is in the middle of the gate's own work, which has
//! to end first. Neighbours: `asm` (the labels), `sites` (rewritten call sites).
#![allow(unsafe_code)]

use super::sites;
use crate::context::{Context, MachineContext};
use crate::control;
use core::sync::atomic::{AtomicU64, Ordering};
use zhuque_abi::slot::{Retry, Slot};

/// This library's text, first address and end.
static TEXT_START: AtomicU64 = AtomicU64::new(0);
static TEXT_END: AtomicU64 = AtomicU64::new(0);

/// Tells where this library's text lies; once, at start.
pub fn set_text(start: u64, end: u64) {
    TEXT_START.store(start, Ordering::Relaxed);
    TEXT_END.store(end, Ordering::Relaxed);
}

/// This library's text.
pub fn text() -> (u64, u64) {
    (TEXT_START.load(Ordering::Relaxed), TEXT_END.load(Ordering::Relaxed))
}

unsafe extern "C" {
    fn zhuque_gate();
    fn zhuque_pass_syscall();
    fn zhuque_pass_done();
    fn zhuque_epoll_syscall();
    fn zhuque_epoll_done();
    fn zhuque_epoll_again();
    fn zhuque_slow();
    fn zhuque_exit_begin();
    fn zhuque_exit_end();
    fn zhuque_vfork_begin();
    fn zhuque_vfork_syscall();
    fn zhuque_vfork_abort();
    fn zhuque_wait_begin();
    fn zhuque_wait_syscall();
    fn zhuque_wait_unbegun();
    fn zhuque_wait_restart();
    fn zhuque_vdso_begin();
    fn zhuque_vdso_end();
    fn zhuque_vdso_clock_gettime();
    fn zhuque_vdso_gettimeofday();
    fn zhuque_vdso_time();
    fn zhuque_vdso_getcpu();
    fn zhuque_vdso_clock_getres();
    fn zhuque_vdso_getrandom();
    fn zhuque_exit_thread_freed();
    fn zhuque_exit_thread_end();
}

/// Address of a label.
fn at(label: unsafe extern "C" fn()) -> u64 {
    label as *const () as u64
}

/// Address of the gate's entry.
pub fn gate() -> u64 {
    at(zhuque_gate)
}

/// What a thread executes when it has given up its slot.
pub fn last_of_thread() -> [u64; 2] {
    [at(zhuque_exit_thread_freed), at(zhuque_exit_thread_end)]
}

/// The vdso's wrappers, in the order of `zhuque_abi::life::VDSO_FUNCTIONS`.
pub fn wrappers() -> [u64; 6] {
    [
        at(zhuque_vdso_clock_gettime),
        at(zhuque_vdso_gettimeofday),
        at(zhuque_vdso_time),
        at(zhuque_vdso_getcpu),
        at(zhuque_vdso_clock_getres),
        at(zhuque_vdso_getrandom),
    ]
}

/// What was found.
pub enum State {
    /// The context is now the program's state at one of its instructions. With a [`Retry`], it says that a call
    /// returned EINTR (or whatever it returned), and how to issue it again.
    Program(Option<Retry>),
    /// The thread is doing the gate's work; at the gate's exit it can be asked again. The context was left as it was,
    /// except that a call which could have waited will return at once.
    Critical,
}

/// Finds out where `context` was taken and makes it the program's.
pub fn program_state(context: &mut Context, slot: &mut Slot) -> State {
    let life = control::life();
    // A call of the kernel's code there that was in the gate when it was taken from outside: the gate leads back to where
    // that code was in the life before. The program may have something of its own there by now, but not in such a call.
    let before = if slot.vdso.entry != 0 { life.vdso_before } else { [0; 2] };
    program_state_in(context, slot, [[life.vdso.base, life.vdso.bytes], before])
}

/// The same where the kernel's code of the vdso was at one of these: address and bytes.
pub fn program_state_in(context: &mut Context, slot: &mut Slot, vdso: [[u64; 2]; 2]) -> State {
    let pc = context.machine.rip;
    let (start, end) = text();
    let mut retry = None;
    if (start..end).contains(&pc) {
        if (at(zhuque_vdso_begin)..at(zhuque_vdso_end)).contains(&pc) {
            restart_vdso(context, slot);
            return State::Program(None);
        }
        match gate_state(context, slot, pc) {
            State::Critical => return State::Critical,
            State::Program(found) => retry = found,
        }
    } else {
        context.machine.rip = sites::visible(pc);
    }
    if vdso.iter().any(|[base, bytes]| (*base..base + bytes).contains(&context.machine.rip)) {
        restart_vdso(context, slot);
        retry = None;
    }
    State::Program(retry)
}

/// The call that a thread was about to make, or in the middle of, when it was taken from outside: number and first argument.
/// Where a handler runs, its record may be that of a call that has ended.
pub fn call_under_way(machine: &MachineContext, slot: &Slot) -> Option<(u64, u64)> {
    let (start, end) = text();
    let within = |from: u64, to: u64| (from..to).contains(&machine.rip);
    if !within(start, end) || within(at(zhuque_vdso_begin), at(zhuque_vdso_end)) {
        return None;
    }
    if within(gate(), at(zhuque_pass_done)) {
        // The record may be the last call's still, and the registers are the program's.
        return Some((machine.rax, machine.rdi));
    }
    // Not when the kernel has said that it is done.
    (machine.rax != 0).then_some((slot.frame.number, slot.frame.rdi))
}

/// The cases inside the gate's text.
fn gate_state(context: &mut Context, slot: &mut Slot, pc: u64) -> State {
    let m = &mut context.machine;
    if (at(zhuque_gate)..at(zhuque_slow)).contains(&pc) {
        return State::Program(pass_state(context, slot, pc));
    }
    if (at(zhuque_exit_begin)..at(zhuque_exit_end)).contains(&pc) {
        context.load(&slot.frame);
        let retry = slot.retry;
        slot.retry.valid = 0;
        context.machine.rip = sites::visible(slot.frame.rip);
        return State::Program((retry.valid != 0).then_some(retry));
    }
    if (at(zhuque_vfork_begin)..=at(zhuque_vfork_syscall)).contains(&pc) {
        m.rip = at(zhuque_vfork_abort);
    }
    if (at(zhuque_wait_begin)..=at(zhuque_wait_syscall)).contains(&pc) {
        let seen_by_kernel = pc == at(zhuque_wait_syscall) && m.rcx != 0;
        m.rip = if seen_by_kernel { at(zhuque_wait_restart) } else { at(zhuque_wait_unbegun) };
    }
    State::Critical
}

/// The fast path: from its first instruction to where the slow path begins. All registers but rcx are the program's.
fn pass_state(context: &mut Context, slot: &mut Slot, pc: u64) -> Option<Retry> {
    let m = &mut context.machine;
    let back = if pc == gate() { m.rcx } else { slot.frame.rip };
    let site = sites::call_site(back);
    let retry = Retry { valid: 1, rip: site, number: slot.frame.number, restartable: 0 };
    if pc == at(zhuque_pass_done) || (at(zhuque_epoll_done)..=at(zhuque_epoll_again)).contains(&pc) {
        m.rip = sites::visible(back);
        return (m.rax as i64 == -i64::from(libc::EINTR)).then_some(retry);
    }
    if (pc == at(zhuque_pass_syscall) || pc == at(zhuque_epoll_syscall)) && m.rcx != 0 {
        // The kernel has set it up to be restarted: say EINTR, and how to restart.
        m.rip = sites::visible(back);
        m.rax = -i64::from(libc::EINTR) as u64;
        return Some(Retry { restartable: 1, ..retry });
    }
    m.rip = site;
    m.rcx = back;
    None
}

/// Takes a thread inside a vdso call back to the call's entry (or out of it, if only the return is left).
fn restart_vdso(context: &mut Context, slot: &mut Slot) {
    let m = &mut context.machine;
    let call = slot.vdso;
    let entry = if call.entry != 0 {
        m.rsp = call.rsp;
        m.rdi = call.rdi;
        m.rsi = call.rsi;
        m.rdx = call.rdx;
        m.rbx = call.rbx;
        m.rbp = call.rbp;
        m.r12 = call.r12;
        m.r13 = call.r13;
        m.r14 = call.r14;
        m.r15 = call.r15;
        slot.vdso.entry = 0;
        call.entry
    } else {
        // SAFETY: the counter lies in this library's text.
        if unsafe { *(m.rip as *const u8) } == 0xc3 {
            // Only the return is left. SAFETY: the thread's own stack pointer, at the return address.
            m.rip = unsafe { *(m.rsp as *const u64) };
            m.rsp += 8;
            return;
        }
        // The record is not complete, so the registers are still the call's.
        wrappers().into_iter().filter(|&w| w <= m.rip).max().unwrap_or(m.rip)
    };
    // Show, and go on at, the entry that the program called, in the region's copy of the vdso.
    // SAFETY: globals are there as long as the process; the fields are constant after start.
    let globals = unsafe { &*control::globals() };
    let index = wrappers().iter().position(|&w| w == entry).unwrap_or(0);
    m.rip = globals.vdso + globals.vdso_entries.get(index).copied().unwrap_or(0);
}
