//! SIGPWR as the program sees it: the recovery signal, once for each failure when it runs again, and what its threads
//! send each other (some garbage collectors stop threads with it).
//!
//! A program that has SIGPWR blocked at that moment takes it later, as it would any pending signal: when it unblocks
//! it, waits with another mask, or asks for it with sigwait. SIGPWR is never pending in the kernel, so the region
//! remembers it: the recovery signal for the process (`Globals::recovery`), the other for each thread
//! (`Slot::own_power`).
#![allow(unsafe_code)]

use super::signals;
use crate::control::{self, Lock};
use crate::entry::handler::{FAULTS, NEVER_BLOCKED, kick_others};
use core::sync::atomic::Ordering;
use zhuque_abi::slot::{SigInfo, Slot, pending};
use zhuque_sys::signal::{self, bit};
use zhuque_sys::{Errno, process};

const SIGPWR: u32 = libc::SIGPWR as u32;
const SI_QUEUE: i32 = -1;
/// Place of the value in a siginfo.
const GENERATION: usize = 3;

/// Values of `Slot::own_power`.
const SENT: u32 = 1;
const GIVEN: u32 = 2;

/// Remembers a recovery signal that the program has blocked. One can be pending: the newest.
pub fn keep(generation: u64) {
    // SAFETY: an atomic field of the control mapping.
    unsafe { (*control::globals()).recovery.fetch_max(generation, Ordering::AcqRel) };
}

/// Remembers a recovery signal for this thread, which is in no state to take it: as if it had been sent to it. A program
/// that has sent one itself already finds the other one behind it.
pub fn give(slot: &mut Slot, generation: u64) {
    if slot.own_power.load(Ordering::Acquire) != 0 {
        return keep(generation);
    }
    slot.own_power_info = info(generation);
    slot.own_power.store(GIVEN, Ordering::Release);
}

/// Remembers a SIGPWR that the program sends to its thread with the kernel's id `tid`, and tells the thread to look. One
/// can be pending; another is dropped, as the kernel does with signals of this kind. False: no such thread.
pub fn send(tid: u32, info: SigInfo) -> bool {
    let _lock = Lock::state();
    let Some(index) = super::ids::slot_of(tid) else { return false };
    let slot = control::slot(index);
    // SAFETY: the flag is an atomic; while it is 0 nobody reads the siginfo, and the lock keeps others from writing it. The
    // mask is a word that may change as one looks at it, as it may with the kernel.
    unsafe {
        let ignored = signals::action(SIGPWR).handler == libc::SIG_IGN as u64;
        if ignored && core::ptr::read_volatile(&raw const (*slot).extra_mask) & bit(SIGPWR) == 0 {
            return true;
        }
        if (*slot).own_power.load(Ordering::Acquire) == 0 {
            core::ptr::write_volatile(&raw mut (*slot).own_power_info, info);
            (*slot).own_power.store(SENT, Ordering::Release);
        }
    }
    // By the id that it has now: it was another one if this thread was taken over into a new life meanwhile (`outside`).
    let now = &control::life_thread(index).tid;
    while signal::send(process::pid(), now.load(Ordering::Acquire), SIGPWR) == Err(Errno(libc::ESRCH)) {
        if now.load(Ordering::Acquire) == 0 {
            break;
        }
    }
    true
}

/// A thread ends: the recovery signal is the others', if it has been given to it or none of them has been told.
pub fn leave(slot: &mut Slot) {
    if slot.own_power.load(Ordering::Acquire) == GIVEN {
        keep(slot.own_power_info[GENERATION]);
    }
    slot.own_power.store(0, Ordering::Release);
    if waits(slot) {
        kick_others(slot);
    }
}

/// Whether one waits for this thread. A vfork child has none.
pub fn waits(slot: &Slot) -> bool {
    // SAFETY: an atomic field of the control mapping.
    let recovery = unsafe { (*control::globals()).recovery.load(Ordering::Acquire) };
    slot.borrowed == 0 && (recovery != 0 || slot.own_power.load(Ordering::Acquire) != 0)
}

/// Takes one that waits for this thread: its own first, as the kernel does.
pub fn take(slot: &Slot) -> Option<SigInfo> {
    if !waits(slot) {
        return None;
    }
    take_own(slot).or_else(take_recovery)
}

fn take_own(slot: &Slot) -> Option<SigInfo> {
    if slot.own_power.load(Ordering::Acquire) == 0 {
        return None;
    }
    // SAFETY: nobody writes it while the flag is set.
    let found = unsafe { core::ptr::read_volatile(&raw const slot.own_power_info) };
    slot.own_power.store(0, Ordering::Release);
    Some(found)
}

fn take_recovery() -> Option<SigInfo> {
    // SAFETY: as above.
    let generation = unsafe { (*control::globals()).recovery.swap(0, Ordering::AcqRel) };
    (generation != 0).then(|| info(generation))
}

/// Takes one that is to be delivered. The recovery signal is for programs that ask for it: without a handler they just go
/// on, while a SIGPWR of their own does what it always does.
fn take_deliverable(slot: &Slot) -> Option<SigInfo> {
    take_own(slot).or_else(|| take_recovery().filter(|_| signals::action(SIGPWR).handler > 1))
}

/// The program has changed its mask: if SIGPWR is remembered and no longer blocked, it comes at the gate's exit, with
/// `mask` as the kernel's mask to return to. True if it will.
pub fn unblocked(slot: &mut Slot, mask: u64) -> bool {
    if slot.extra_mask & bit(SIGPWR) != 0 || !waits(slot) {
        return false;
    }
    // No other signal may be put off between the look and what follows, nor before this one has been delivered.
    let before = signal::set_mask(!(NEVER_BLOCKED | FAULTS));
    let put_off = slot.puts_signal_off();
    let Some(info) = (if put_off { None } else { take_deliverable(slot) }) else {
        signal::set_mask(before);
        return false;
    };
    slot.deferred.mask = mask;
    slot.deferred.signal = SIGPWR;
    slot.deferred.info = info;
    slot.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
    true
}

/// Takes what waits for this thread, if the program lets it through.
pub fn due(slot: &Slot) -> Option<SigInfo> {
    // A call that waits with a mask of its own (sigsuspend) has that one.
    let blocked = if slot.temp_valid != 0 { slot.temp_own_mask } else { slot.extra_mask };
    if blocked & bit(SIGPWR) != 0 || !waits(slot) {
        return None;
    }
    take_deliverable(slot)
}

/// The recovery signal's siginfo: as queued by the process itself, with the generation as value.
pub fn info(generation: u64) -> SigInfo {
    let mut info: SigInfo = [0; 16];
    info[0] = u64::from(SIGPWR);
    info[1] = SI_QUEUE as u32 as u64;
    // As the program knows it: it may be taken in a later life.
    info[2] = u64::from(super::ids::virtual_pid());
    info[GENERATION] = generation;
    info
}
