//! Do the tables that the shim will use as they are make sense: slots of threads, rewritten call sites?
//!
//! Checksums say that bytes are what was written, not that they can be used; what is an address or an index is checked
//! before a process is made of it. Key functions: [`check_threads`], [`check_sites`]. Neighbour: `validate`, which has
//! verified the checksums before it calls these, and checks the other tables.

use crate::bytes::Bytes;
use crate::error::Error;
use crate::validate::{count, part};
use core::mem::{offset_of, size_of};
use zhuque_abi::header::{Globals, Header, Patched, TRAMPOLINE_BYTES, TrampolinePages};
use zhuque_abi::layout::{GATE_STACK_TOP, MAX_SITES, MAX_THREADS, SITES_OFFSET, SLOT_STRIDE, SLOTS_OFFSET, TASK_SIZE};
use zhuque_abi::sites::SITE_BYTES;
use zhuque_abi::slot::{Saved as SavedThread, Slot, saved_frame, state};

/// A kernel's ucontext: flags, link, stack, registers, mask (arch/x86/include/asm/sigframe.h).
const CONTEXT_BYTES: u64 = 304;
/// Bytes of `jmp rel32`.
const JUMP: u64 = 5;

/// As many slots with a saved frame as threads were saved, each of them where it says, with a frame on its own signal
/// stack.
pub fn check_threads(control: Bytes<'_>, header: Bytes<'_>, globals: Bytes<'_>) -> Result<(), Error> {
    let slots = count(globals, offset_of!(Globals, slots), MAX_THREADS, "number of thread slots")?;
    let threads = header.u32(offset_of!(Header, threads));
    let base = header.u64(offset_of!(Header, base));
    let mut saved = 0;
    for index in 0..slots {
        let at = SLOTS_OFFSET + index * SLOT_STRIDE;
        let slot = part(control, at, size_of::<Slot>() as u64)?;
        let frame = slot.u64(offset_of!(Slot, saved) + offset_of!(SavedThread, frame));
        let used = slot.u32(offset_of!(Slot, state));
        if used == state::LIVE || used != state::FREE && frame != 0 {
            check_slot(slot, index, base.wrapping_add(at))?;
            saved += 1;
        }
    }
    if threads == 0 || saved != threads {
        return Err(Error::bounds("number of its saved threads", u64::from(threads)));
    }
    Ok(())
}

/// One slot in use, whose address is `at`.
fn check_slot(slot: Bytes<'_>, index: u64, at: u64) -> Result<(), Error> {
    let must = |right: bool, what, value| if right { Ok(()) } else { Err(Error::bounds(what, value)) };
    let this = slot.u64(offset_of!(Slot, this));
    must(this == at, "a thread slot's own address", this)?;
    let number = u64::from(slot.u32(offset_of!(Slot, index)));
    must(number == index, "a thread slot's index", number)?;
    let gate_stack = slot.u64(offset_of!(Slot, gate_stack));
    must(gate_stack == at.wrapping_add(GATE_STACK_TOP), "the address of a thread's gate stack", gate_stack)?;
    let saved = offset_of!(Slot, saved);
    let frame = slot.u64(saved + offset_of!(SavedThread, frame));
    let fits = frame.is_multiple_of(8) && saved_frame(at, frame).is_some_and(|(_, bytes)| bytes >= CONTEXT_BYTES);
    must(fits, "the address of a thread's saved frame", frame)?;
    let fs_base = slot.u64(saved + offset_of!(SavedThread, fs_base));
    must(fs_base < TASK_SIZE, "a thread's FS base", fs_base)
}

/// Every library's sites lie in its text, in order and apart, and their trampolines in its pages.
pub fn check_sites(control: Bytes<'_>, globals: Bytes<'_>) -> Result<(), Error> {
    let sites = count(globals, offset_of!(Globals, sites), MAX_SITES, "number of call sites")?;
    let libraries = size_of::<[TrampolinePages; 64]>() / size_of::<TrampolinePages>();
    for index in 0..libraries {
        let at = offset_of!(Globals, trampolines) + index * size_of::<TrampolinePages>();
        let pages = part(globals, at as u64, size_of::<TrampolinePages>() as u64)?;
        if pages.u64(offset_of!(TrampolinePages, start)) != 0 {
            check_library(control, pages, sites)?;
        }
    }
    Ok(())
}

fn check_library(control: Bytes<'_>, pages: Bytes<'_>, sites: u64) -> Result<(), Error> {
    let start = pages.u64(offset_of!(TrampolinePages, start));
    let end = pages.u64(offset_of!(TrampolinePages, end));
    let (first, number) =
        (pages.u32(offset_of!(TrampolinePages, first)), pages.u32(offset_of!(TrampolinePages, count)));
    let aligned = start.is_multiple_of(zhuque_abi::layout::PAGE) && start < end && end <= TASK_SIZE;
    if !aligned {
        return Err(Error::bounds("the address of a library's trampolines", start));
    }
    if u64::from(first) + u64::from(number) > sites {
        return Err(Error::bounds("number of a library's call sites", number.into()));
    }
    if number == 0 {
        // A library that has been unmapped leaves none behind.
        return Ok(());
    }
    let low = pages.u64(offset_of!(TrampolinePages, low));
    let high = pages.u64(offset_of!(TrampolinePages, high));
    let mut floor = low;
    for index in u64::from(first)..u64::from(first) + u64::from(number) {
        let bytes = size_of::<Patched>() as u64;
        let site = part(control, SITES_OFFSET + index * bytes, bytes)?;
        let address = site.u64(offset_of!(Patched, address));
        let length = u64::from(site.u8(offset_of!(Patched, length)));
        let before = u64::from(site.u8(offset_of!(Patched, before)));
        let within = address >= floor && address < high && high <= TASK_SIZE && high - address >= length;
        if !within || !(JUMP..=SITE_BYTES as u64).contains(&length) || before + 2 > length {
            return Err(Error::bounds("the address of a call site, or its length", address));
        }
        floor = address + length;
        check_trampoline(site, before, (start, end))?;
    }
    if floor != high {
        return Err(Error::bounds("the end of a library's call sites", high));
    }
    Ok(())
}

/// One trampoline: in one of the places of its pages but the first, with its parts where the shim puts them.
fn check_trampoline(site: Bytes<'_>, before: u64, (start, end): (u64, u64)) -> Result<(), Error> {
    let trampoline = site.u64(offset_of!(Patched, trampoline));
    let inside = trampoline > start && trampoline < end && end - trampoline >= TRAMPOLINE_BYTES;
    let resume = u64::from(site.u8(offset_of!(Patched, resume)));
    let bytes = u64::from(site.u8(offset_of!(Patched, trampoline_bytes)));
    let parts = before < resume && resume < bytes && bytes <= TRAMPOLINE_BYTES;
    // Behind the bytes in front: an address to return to (7 bytes), a jump (6).
    if inside && (trampoline - start).is_multiple_of(TRAMPOLINE_BYTES) && parts && resume == before + 13 {
        return Ok(());
    }
    Err(Error::bounds("the address of a trampoline, or its length", trampoline))
}
