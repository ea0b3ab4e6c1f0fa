//! The first steps of a fork child: private copies of the region's memory, then out of the gate for good.
//!
//! The child starts on its copy of the life's scratch memory while all threads of the parent stand still, so what it
//! copies is a snapshot. Order: program memory, control memory, word to the parent, then the private copies take the
//! places of the shared ones.
#![allow(unsafe_code)]

use super::content::extents;
use super::memory::{by_slice, slice_fd};
use super::signals;
use crate::control;
use crate::entry::handler::{FAULTS_OF_ACCESS, NEVER_BLOCKED};
use core::sync::atomic::Ordering;
use zhuque_abi::layout::{CONTROL_BYTES, FILES_OFFSET, NODES_OFFSET, SITES_OFFSET, SLOT_STRIDE, page_up};
use zhuque_abi::maps::{Kind, Node, flag};
use zhuque_abi::slot::{Slot, state};
use zhuque_model::maptree::{MapTree, Mapping};
use zhuque_sys::signal::{KernelAction, set_action};
use zhuque_sys::{Errno, fs, mm, process, signal, user};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const MOVE: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

/// Entry of the child. Returns 0 to the gate's exit, as a process that zhuque has nothing to do with any more.
///
/// # Safety
/// Called once, in a fresh fork child, with the forking thread's slot.
pub unsafe extern "C" fn start(slot: *mut Slot) -> u32 {
    if copy_everything(slot).is_err() {
        crate::die::say(&crate::text::Text::of(b"a forked child ended: no memory for its copies"));
        process::exit_group(crate::die::STATUS);
    }
    // SAFETY: the control mapping at the same address is this process' own now.
    let slot = unsafe { &mut *slot };
    leave_region(slot);
    slot.start_mask &= !NEVER_BLOCKED;
    signal::set_mask(slot.start_mask | slot.extra_mask);
    slot.pending.store(0, Ordering::Relaxed);
    slot.frame.rax = 0;
    if slot.start_stack != 0 {
        slot.frame.rsp = slot.start_stack;
    }
    0
}

/// Replaces every shared mapping of the region by a private copy.
fn copy_everything(slot: *mut Slot) -> Result<(), Errno> {
    // SAFETY: the parent's threads all stand still, and the parent waits for `fork_done`.
    let tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
    for run in tree.iter() {
        let forked = run.attr.flags & flag::SHARED == 0;
        match run.attr.kind {
            _ if run.attr.flags & flag::DONTFORK != 0 => {
                // SAFETY: the program asked for a child without it.
                unsafe { mm::munmap(run.start, run.bytes()) }?;
            }
            Kind::Region if forked => copy_run(run)?,
            // The text goes back to what the file says: no call site leads into the gate any more.
            Kind::FilePrivate if run.attr.flags & flag::PATCHED != 0 => {
                // SAFETY: private pages of the text, nobody executes there.
                unsafe { mm::madvise(run.start, run.bytes(), libc::MADV_DONTNEED) }?;
            }
            _ => {}
        }
    }
    let copy = copy_control(slot)?;
    // SAFETY: still the shared mapping: the parent sees the store.
    unsafe {
        (*slot).fork_done.store(1, Ordering::Release);
        process::futex_wake(&(*slot).fork_done, 1);
        // ... and from here on it is not.
        mm::mremap(copy, CONTROL_BYTES, CONTROL_BYTES, MOVE, control::base())?;
    }
    Ok(())
}

/// A private copy of one run of region memory, at its address.
fn copy_run(run: Mapping) -> Result<(), Errno> {
    let bytes = run.bytes();
    // SAFETY: fresh memory at an address of the kernel's choice, moved over the run, whose content it has.
    unsafe {
        let copy = mm::mmap(0, bytes, READ_WRITE, ANONYMOUS, -1, 0)?;
        if run.attr.flags & flag::WIPEONFORK == 0 {
            if i32::from(run.attr.prot) & libc::PROT_READ == 0 {
                mm::mprotect(run.start, bytes, libc::PROT_READ)?;
            }
            extents(run.start, run.end, |address, length| {
                user::copy(copy + (address - run.start), address, length as usize)
            })?;
        }
        if i32::from(run.attr.prot) != READ_WRITE
            && let Err(error) = mm::mprotect(copy, bytes, i32::from(run.attr.prot))
        {
            mm::munmap(copy, bytes)?;
            return private_text(run).map_err(|_| error);
        }
        mm::mremap(copy, bytes, bytes, MOVE, run.start).map(|_| ())
    }
}

/// Code in region memory, where what was written must not be executed (PR_SET_MDWE): the pages themselves, which nobody
/// writes any more either.
fn private_text(run: Mapping) -> Result<(), Errno> {
    by_slice(run.start, run.end, |slice, offset, address, bytes| {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: in the place of the run itself.
        unsafe { mm::mmap(address, bytes, i32::from(run.attr.prot), flags, slice_fd(slice), offset) }.map(|_| ())
    })
}

/// A private copy of what the child needs of the control mapping; its address.
fn copy_control(slot: *const Slot) -> Result<u64, Errno> {
    // SAFETY: as in `copy_everything`.
    let (files, sites, nodes) = unsafe {
        let globals = &*control::globals();
        (u64::from(globals.files), u64::from(globals.sites), u64::from(globals.tree.used))
    };
    let parts = [
        (0, FILES_OFFSET),
        (FILES_OFFSET, page_up((files + 1) * 2048)),
        (SITES_OFFSET, page_up(sites * 64)),
        (NODES_OFFSET, page_up((nodes + 1) * size_of::<Node>() as u64)),
        (slot as u64 - control::base(), SLOT_STRIDE),
    ];
    // SAFETY: fresh memory; the sources lie in the control mapping.
    unsafe {
        let copy = mm::mmap(0, CONTROL_BYTES, READ_WRITE, ANONYMOUS, -1, 0)?;
        for (start, bytes) in parts {
            user::copy(copy + start, control::base() + start, bytes as usize)?;
        }
        Ok(copy)
    }
}

/// Gives back to the kernel what the shim had taken over, and lets go of the region.
fn leave_region(slot: &mut Slot) {
    let own = control::life().descriptors;
    if own.first >= 0 && own.end > own.first {
        let _ = fs::close_range(own.first as u32, own.end as u32 - 1);
    }
    for n in 1..=64u32 {
        let action = signals::action(n);
        if action.handler > 1 || signals::always_ours(n) {
            let kernel = KernelAction {
                handler: action.handler,
                flags: action.flags,
                restorer: action.restorer,
                mask: action.mask,
            };
            // SAFETY: the program's own action, in a process that has left the gate.
            let _ = unsafe { set_action(n, &kernel) };
        }
    }
    super::limits::leave();
    let pid = process::pid();
    // SAFETY: the program's own alternate stack, robust list and thread id address, as it set them; the control
    // mapping and the life area are this process' own.
    unsafe {
        if slot.alt_bytes != 0 {
            let _ = signal::set_alternate_stack(slot.alt_address, slot.alt_bytes, slot.alt_flags as u32);
        } else {
            let _ = signal::set_alternate_stack(0, 0, libc::SS_DISABLE as u32);
        }
        if slot.start_child_tid != 0 {
            // With every signal blocked.
            slot.faults_blocked.store(FAULTS_OF_ACCESS, Ordering::Relaxed);
            let _ = crate::user::write(slot.start_child_tid, &pid);
        }
        process::set_tid_address(slot.start_flags);
        (*control::life_mut()).pid = pid;
        (*control::header()).virtual_pid = pid;
        (*control::globals()).memory_lock.store(0, Ordering::Relaxed);
        (*control::globals()).state_lock.store(0, Ordering::Relaxed);
    }
    slot.virtual_tid.store(pid, Ordering::Relaxed);
    slot.volatile = 1;
    slot.state.store(state::LIVE, Ordering::Relaxed);
}
