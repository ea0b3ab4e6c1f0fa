//! The recovery signal: the SIGPWR that the program itself gets, once for each failure, when it runs again.
//!
//! A program that has SIGPWR blocked at that moment takes it later, as it would any pending signal: when it unblocks
//! it, waits with another mask, or asks for it with sigwait. SIGPWR is never pending in the kernel, so the region
//! remembers it (`Globals::recovery`).
#![allow(unsafe_code)]

use super::signals;
use crate::control;
use core::sync::atomic::Ordering;
use zhuque_abi::slot::{SigInfo, Slot, pending};
use zhuque_sys::signal::bit;

const SIGPWR: u32 = libc::SIGPWR as u32;
const SI_QUEUE: i32 = -1;

/// Remembers a recovery signal that the program has blocked.
pub fn keep(generation: u64) {
    // SAFETY: an atomic field of the control mapping.
    unsafe { (*control::globals()).recovery.store(generation, Ordering::Release) };
}

/// Takes the one that is remembered; its generation.
pub fn take() -> Option<u64> {
    // SAFETY: as above.
    let generation = unsafe { (*control::globals()).recovery.swap(0, Ordering::AcqRel) };
    (generation != 0).then_some(generation)
}

/// Whether one is remembered.
pub fn waits() -> bool {
    // SAFETY: as above.
    unsafe { (*control::globals()).recovery.load(Ordering::Acquire) != 0 }
}

/// The program has changed its mask: if SIGPWR is remembered and no longer blocked, it comes at the gate's exit, with
/// `mask` as the kernel's mask to return to. True if it will.
pub fn unblocked(slot: &mut Slot, mask: u64) -> bool {
    let put_off = slot.pending.load(Ordering::Relaxed) & pending::SIGNAL != 0;
    if slot.extra_mask & bit(SIGPWR) != 0 || put_off || !waits() {
        return false;
    }
    let Some(generation) = take() else { return false };
    if signals::action(SIGPWR).handler <= 1 {
        return false;
    }
    slot.deferred.mask = mask;
    slot.deferred.signal = SIGPWR;
    slot.deferred.info = info(generation);
    slot.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
    true
}

/// Takes the recovery signal that is remembered, if the program lets it through and has a handler for it.
pub fn due(slot: &Slot) -> Option<SigInfo> {
    if !waits() || slot.extra_mask & bit(SIGPWR) != 0 || signals::action(SIGPWR).handler <= 1 {
        return None;
    }
    take().map(info)
}

/// The siginfo: as queued by the process itself, with the generation as value.
pub fn info(generation: u64) -> SigInfo {
    let mut info: SigInfo = [0; 16];
    info[0] = u64::from(SIGPWR);
    info[1] = SI_QUEUE as u32 as u64;
    info[2] = u64::from(control::life().pid);
    info[3] = generation;
    info
}
