//! The kernel-level signal handler: every signal that anyone handles comes in here, on the thread's own signal stack,
//! with every other signal blocked.
//!
//! * SIGSYS from Syscall User Dispatch: the call is taken to the gate, as if a trampoline had led there.
//! * SIGPWR: a power failure, a stop of the world, or the kick that ends a critical section of the gate.
//! * SIGSEGV and SIGBUS inside [`zhuque_sys::user::copy`]: the copy reports EFAULT.
//! * Everything else is the program's: delivered at once (`family::signals::deliver`), or put off until the gate's
//!   critical section has ended.
#![allow(unsafe_code)]

use super::place::{self, State};
use super::sites;
use crate::context::Context;
use crate::family::signals::{self, Program};
use crate::family::{ids, recovery};
use crate::gate::wait_call;
use crate::{control, save};
use core::sync::atomic::Ordering;
use zhuque_abi::life::stop;
use zhuque_abi::slot::{Retry, SigInfo, Slot, pending};
use zhuque_sys::signal::bit;
use zhuque_sys::{Errno, process, user};

/// si_code of Syscall User Dispatch (SYS_USER_DISPATCH).
const SYS_USER_DISPATCH: i32 = 2;
/// si_arch of 64-bit calls.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Signals that the kernel must always be able to deliver: ours, and those that an instruction causes.
pub const NEVER_BLOCKED: u64 = bit(libc::SIGSYS as u32) | bit(libc::SIGPWR as u32);
/// Faults that an access to memory causes.
pub const FAULTS_OF_ACCESS: u64 = bit(libc::SIGSEGV as u32) | bit(libc::SIGBUS as u32);
/// Faults: blocked ones would kill the process.
pub const FAULTS: u64 =
    FAULTS_OF_ACCESS | bit(libc::SIGILL as u32) | bit(libc::SIGFPE as u32) | bit(libc::SIGTRAP as u32);

/// The calling thread's slot.
pub fn current_slot() -> *mut Slot {
    let slot: *mut Slot;
    // SAFETY: the GS base of every thread that runs guest code is its slot, whose first word is its own address.
    unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) slot, options(nostack, readonly, preserves_flags)) };
    slot
}

/// The kernel's entry. `info` and `context` are parts of the frame that the kernel has pushed.
///
/// # Safety
/// Called by the kernel only.
pub unsafe extern "C" fn on_signal(signal: u32, info: *mut SigInfo, context: *mut Context) {
    // SAFETY: the kernel's frame is exclusively this handler's, and the slot is this thread's.
    let (info, context, slot) = unsafe { (&mut *info, &mut *context, &mut *current_slot()) };
    let code = (info[1] & 0xffff_ffff) as i32;
    match signal as i32 {
        libc::SIGSYS if code == SYS_USER_DISPATCH => dispatch(info, context),
        libc::SIGPWR => power(slot, info, context, code),
        libc::SIGSEGV | libc::SIGBUS if code > 0 && user::fixup(context.machine.rip).is_some() => {
            context.machine.rip = user::fixup(context.machine.rip).unwrap_or(0);
        }
        _ => program_signal(slot, signal, info, context, code),
    }
}

/// A `syscall` instruction outside the gate: the kernel has rolled it back, the counter stands behind it.
fn dispatch(info: &SigInfo, context: &mut Context) {
    let m = &mut context.machine;
    if (info[3] >> 32) as u32 != AUDIT_ARCH_X86_64 {
        // `int $0x80`: the numbers of another architecture, whose calls the gate knows nothing of.
        m.rax = -i64::from(libc::ENOSYS) as u64;
        return;
    }
    m.rcx = m.rip;
    m.rip = place::gate();
}

/// A signal of the program.
fn program_signal(slot: &mut Slot, signal: u32, info: &mut SigInfo, context: &mut Context, code: i32) {
    let fault = code > 0 && FAULTS & bit(signal) != 0;
    // The program's rt_sigreturn is about to be made: the gate's exit does not come.
    let leaves = context.mask & bit(libc::SIGPWR as u32) != 0;
    let state = place::program_state(context, slot);
    if matches!(state, State::Critical) {
        // Now: it may be delivered in another life, in which the process has another id.
        signals::virtual_sender(info, slot);
    }
    match state {
        // At the gate's exit, where another one waits, with which the program has its mask again. It comes after that.
        State::Program(retry) if !fault && slot.puts_signal_off() => {
            // Unless the program ignores it and does not block it: then the kernel would not have sent it.
            if slot.deferred.mask & bit(signal) != 0 || !signals::is_ignored(signal) {
                signals::virtual_sender(info, slot);
                queue_for_self(signal, info);
            }
            take_up(slot, retry, context);
            // What else has waited for the gate's exit, which does not come.
            kick();
        }
        // The kernel would not have sent it: the thread looks about and goes on, as after a kick.
        State::Program(retry) if !fault && signals::is_ignored(signal) => {
            take_up(slot, retry, context);
            // What else has waited for the gate's exit, which does not come.
            kick();
        }
        State::Program(retry) => {
            let program = Program { signal, info: *info, retry, mask: context.mask };
            signals::deliver(slot, program, context);
            context.machine.rip = sites::executable(context.machine.rip);
        }
        State::Critical if fault => {
            // A fault of our own code. The signal is the program's death; leave the kernel to it, at the instruction.
            crate::die::fault(signal, context.machine.rip, info[2]);
        }
        State::Critical if leaves || slot.puts_signal_off() => {
            // There is room for one, which has all others blocked but those that an instruction causes; and none where
            // the gate's exit does not come. Somebody has sent one of these: the kernel keeps it until the first has been
            // delivered, or the mask is the program's.
            context.mask |= bit(signal);
            if FAULTS_OF_ACCESS & bit(signal) != 0 {
                slot.faults_blocked.fetch_or(bit(signal), Ordering::Relaxed);
                // A copy that is under way goes on without faults. It may have had one just now: the kernel shows the first
                // of two signals with one number.
                context.machine.rip = user::fixup(context.machine.rip).unwrap_or(context.machine.rip);
            }
            queue_for_self(signal, info);
        }
        State::Critical if signals::is_ignored(signal) => {
            slot.pending.fetch_or(pending::KICK, Ordering::Relaxed);
        }
        State::Critical => {
            slot.deferred.mask = context.mask;
            slot.deferred.signal = signal;
            slot.deferred.info = *info;
            slot.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
            context.mask = !(NEVER_BLOCKED | FAULTS);
        }
    }
}

/// Makes a signal pending for the calling thread.
pub fn queue_for_self(signal: u32, info: &SigInfo) {
    by_own_ids(|| zhuque_sys::signal::queue_thread(process::pid(), process::tid(), signal, info));
}

/// Sends the calling thread a signal, in the same way.
pub fn send_to_self(signal: u32) {
    by_own_ids(|| zhuque_sys::signal::send(process::pid(), process::tid(), signal));
}

/// A call with the calling thread's own ids, which are asked for again where the kernel does not know them: they were those
/// of the life before, if the thread was taken over into a new one between the two calls. What only the thread itself may
/// queue is refused for others before they are looked for (kernel/signal.c, do_rt_tgsigqueueinfo).
fn by_own_ids(mut call: impl FnMut() -> Result<(), Errno>) {
    const TRIES: u32 = 16;
    let mut done = || !matches!(call(), Err(Errno(libc::ESRCH | libc::EPERM)));
    let _ = (0..TRIES).any(|_| done());
}

/// The calling thread looks about, behind what it is doing now.
pub fn kick() {
    send_to_self(libc::SIGPWR as u32);
}

/// All others look about. For a thread that ends: what waits for itself is dropped.
pub fn kick_others(slot: &mut Slot) {
    let own = slot.index as usize;
    for index in (0..control::slots()).filter(|&index| index != own) {
        loop {
            slot.pending.store(0, Ordering::Relaxed);
            // SAFETY: a plain word, another one in another life.
            let pid = unsafe { (&raw const control::life().pid).read_volatile() };
            let tid = control::life_thread(index).tid.load(Ordering::Acquire);
            if tid != 0 {
                // By the way of calls that wait, which are not begun in another life than that of the ids.
                let ids = [u64::from(pid), u64::from(tid), libc::SIGPWR as u64, 0, 0, 0];
                let _ = wait_call(slot, libc::SYS_tgkill, ids);
            }
            if tid == 0 || core::mem::take(&mut slot.retry.valid) == 0 {
                break;
            }
        }
    }
}

/// SIGPWR.
fn power(slot: &mut Slot, info: &SigInfo, context: &mut Context, code: i32) {
    let life = control::life();
    let sender = (info[2] & 0xffff_ffff) as u32;
    // A vfork child kicks itself under its own id.
    let own = signals::is_own(sender, slot);
    let kicked = code as u32 == ids::SI_TKILL && (own || slot.borrowed != 0 && sender == process::pid());
    // A parent that has just come back from vfork looks like its child for some instructions more.
    if !kicked && (slot.borrowed == 0 || process::pid() == life.pid) {
        save::announce();
    }
    let mut retry = match place::program_state(context, slot) {
        State::Critical => {
            slot.pending.fetch_or(pending::KICK, Ordering::Relaxed);
            return;
        }
        State::Program(retry) => retry,
    };
    deliver_waiting(slot, &mut retry, context);
    if slot.borrowed != 0 {
        // The slot is the parent's, who is saved when this child is gone.
        return settle(slot, retry, context);
    }
    match life.stop.load(Ordering::Acquire) {
        stop::FORK => {
            settle(slot, retry, context);
            save::park_for_fork(slot);
            if save::announced() {
                // The failure was announced while the world stood still for a fork: it is due now.
                kick();
            }
        }
        _ if save::announced() => {
            if let Some(retry) = &mut retry {
                retry.rip = sites::executable(retry.rip);
            }
            context.machine.rip = sites::executable(context.machine.rip);
            save::save_this_thread(slot, context, retry);
        }
        _ => settle(slot, retry, context),
    }
}

/// A thread that is found in the program takes what waits for it, and goes on.
pub fn take_up(slot: &mut Slot, mut retry: Option<Retry>, context: &mut Context) {
    deliver_waiting(slot, &mut retry, context);
    settle(slot, retry, context);
}

/// Delivers what was put off until now, a recovery signal that is due, or the signal for which a call was interrupted.
fn deliver_waiting(slot: &mut Slot, retry: &mut Option<Retry>, context: &mut Context) {
    let waiting = slot.pending.swap(0, Ordering::Relaxed);
    let found = if waiting & pending::SIGNAL != 0 {
        context.mask = slot.deferred.mask;
        slot.faults_blocked.store(context.mask & FAULTS_OF_ACCESS, Ordering::Relaxed);
        Some((slot.deferred.signal, slot.deferred.info))
    } else {
        // A call that was interrupted may have been interrupted for a signal that is still pending.
        let interrupted = if retry.is_some() { signals::take_deliverable(context.mask) } else { None };
        interrupted.or_else(|| recovery::due(slot).map(|info| (libc::SIGPWR as u32, info)))
    };
    if let Some((signal, info)) = found {
        let program = Program { signal, info, retry: retry.take(), mask: context.mask };
        signals::deliver(slot, program, context);
    }
    // The gate's work has come to its end.
    slot.old_pids = Default::default();
}

/// The thread goes on: an interrupted call is issued again.
fn settle(slot: &mut Slot, retry: Option<Retry>, context: &mut Context) {
    slot.temp_valid = 0;
    if let Some(retry) = retry {
        context.machine.rip = retry.rip;
        context.machine.rax = retry.number;
        slot.retry.valid = 0;
    }
    context.machine.rip = sites::executable(context.machine.rip);
}
