//! Program counters and rewritten call sites: what the program may see, and what must really be executed.
//!
//! Wherever the program can look (signal frames), a counter inside a trampoline is shown as the call site's own
//! address, so that unwinders and cancellation find what they know. Wherever the processor goes on, an address in
//! the middle of a rewritten run is replaced by the matching place in the trampoline.
#![allow(unsafe_code)]

use crate::control;
use zhuque_abi::header::{Patched, TRAMPOLINE_BYTES, TrampolinePages};
use zhuque_model::rewriting;

/// The trampoline page run that `matches`.
fn library(matches: impl Fn(&TrampolinePages) -> bool) -> Option<TrampolinePages> {
    // SAFETY: entries are written while the library they belong to is being loaded, before anyone executes in it.
    let runs = unsafe { &(*control::globals()).trampolines };
    runs.iter().take_while(|run| run.start != 0).find(|run| matches(run)).copied()
}

/// The site whose trampoline contains `pc`.
fn by_trampoline(pc: u64) -> Option<Patched> {
    let run = library(|run| (run.start..run.end).contains(&pc))?;
    let slot = run.start + (pc - run.start) / TRAMPOLINE_BYTES * TRAMPOLINE_BYTES;
    // SAFETY: every trampoline slot of the run ends with its site's index; the first slot holds the gate's address.
    let index = unsafe { *((slot + TRAMPOLINE_BYTES - 4) as *const u32) };
    // SAFETY: reading sites is always fine, see `control::sites`.
    let site = unsafe { control::sites() }.get(index as usize)?;
    (site.trampoline == slot).then_some(*site)
}

/// The site whose overwritten run contains `pc`.
fn by_address(pc: u64) -> Option<Patched> {
    let run = library(|run| (run.low..run.high).contains(&pc))?;
    // SAFETY: as above.
    let sites = unsafe { control::sites() }.get(run.first as usize..(run.first + run.count) as usize)?;
    let at = sites.partition_point(|site| site.address <= pc).checked_sub(1)?;
    let site = sites.get(at)?;
    (pc < site.address + u64::from(site.length)).then_some(*site)
}

/// What the program may see instead of `pc`.
pub fn visible(pc: u64) -> u64 {
    by_trampoline(pc).map_or(pc, |site| rewriting::visible(&site, pc))
}

/// The address of the `syscall` instruction whose call returns to `return_address`, as the program may see it.
pub fn call_site(return_address: u64) -> u64 {
    visible(return_address) - 2
}

/// Where to go on if the program means `pc`.
pub fn executable(pc: u64) -> u64 {
    by_address(pc).map_or(pc, |site| rewriting::executable(&site, pc))
}
