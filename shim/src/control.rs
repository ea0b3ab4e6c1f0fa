//! The way to the control mapping: header, globals, slots and life of the program that this library is loaded into.
//!
//! Two words of this library's own data say where it is; they are written once, at start, and are region memory from
//! then on, so they hold in every later life. Everything handed out here is shared by all threads: fields that may
//! change are atomics, or belong to the calling thread's slot, or are reached through a [`Lock`].
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use zhuque_abi::header::{FileRecord, Globals, Header, Patched};
use zhuque_abi::layout::{
    CONTROL_BYTES, FILES_OFFSET, GLOBALS_OFFSET, HEADER_OFFSET, JOURNAL_BYTES, JOURNAL_OFFSET, LIFE_ARGUMENTS,
    LIFE_ARGUMENTS_BYTES, LIFE_OFFSET, LIFE_SCRATCH, LIFE_SCRATCH_BYTES, LIFE_STACK_BYTES, LIFE_STACKS, LIFE_THREADS,
    MAX_FILES, MAX_NODES, MAX_SITES, NODES_OFFSET, SITES_OFFSET, SLOT_STRIDE, SLOTS_OFFSET,
};
use zhuque_abi::life::{Life, LifeThread, boot_flag};
use zhuque_abi::maps::Node;
use zhuque_abi::slot::Slot;
use zhuque_model::sync;
use zhuque_sys::process;

/// Address of the control mapping; 0 until it exists.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Address of [`Life::functions`], for the vdso's wrappers.
pub static FUNCTIONS: AtomicU64 = AtomicU64::new(0);

/// Says where the control mapping is. Called once, at start, before any other function here.
pub fn set_base(base: u64) {
    BASE.store(base, Ordering::Relaxed);
    FUNCTIONS.store(base + LIFE_OFFSET + core::mem::offset_of!(Life, functions) as u64, Ordering::Relaxed);
}

/// Address of the control mapping.
pub fn base() -> u64 {
    BASE.load(Ordering::Relaxed)
}

/// The header page.
pub fn header() -> *mut Header {
    (base() + HEADER_OFFSET) as *mut Header
}

/// The phase word of the header.
pub fn phase() -> &'static AtomicU64 {
    // SAFETY: the control mapping lives as long as the process and the field is an atomic.
    unsafe { &(*header()).phase }
}

/// The shim's globals.
pub fn globals() -> *mut Globals {
    (base() + GLOBALS_OFFSET) as *mut Globals
}

/// This life.
pub fn life() -> &'static Life {
    // SAFETY: the life area is mapped before any thread runs guest code; plain fields are written before that only.
    unsafe { &*((base() + LIFE_OFFSET) as *const Life) }
}

/// This life, for those who set it up while nobody else runs.
pub fn life_mut() -> *mut Life {
    (base() + LIFE_OFFSET) as *mut Life
}

/// What is known of slot `index` in this life.
pub fn life_thread(index: usize) -> &'static LifeThread {
    // SAFETY: the table has MAX_THREADS entries of atomics and every slot index is below that.
    unsafe { &*((base() + LIFE_OFFSET + LIFE_THREADS) as *const LifeThread).add(index) }
}

/// Top of the small stack on which thread `index` is revived.
pub fn life_stack(index: usize) -> u64 {
    base() + LIFE_OFFSET + LIFE_STACKS + (index as u64 + 1) * LIFE_STACK_BYTES
}

/// Room for the copy of the arguments that /proc shows.
///
/// # Safety
/// Only while nobody else runs.
pub unsafe fn life_arguments() -> &'static mut [u8] {
    let start = base() + LIFE_OFFSET + LIFE_ARGUMENTS;
    // SAFETY: the range lies in the life area; exclusiveness is the caller's.
    unsafe { core::slice::from_raw_parts_mut(start as *mut u8, LIFE_ARGUMENTS_BYTES as usize) }
}

/// The life's scratch memory: used by whoever leads a stop of the world, and by start and revive.
pub fn scratch() -> (u64, u64) {
    (base() + LIFE_OFFSET + LIFE_SCRATCH, LIFE_SCRATCH_BYTES)
}

/// Which life this is. Read again each time: a thread that is saved from outside goes on in another one.
pub fn generation() -> u64 {
    // SAFETY: the life area is mapped as long as the process lives; nobody writes this word once threads run.
    unsafe { core::ptr::read_volatile(&raw const life().generation) }
}

/// The slot with number `index`.
pub fn slot(index: usize) -> *mut Slot {
    (base() + SLOTS_OFFSET + index as u64 * SLOT_STRIDE) as *mut Slot
}

/// Number of slots ever used.
pub fn slots() -> usize {
    // SAFETY: the field is an atomic of a mapping that lives as long as the process.
    unsafe { (*globals()).slots.load(Ordering::Acquire) as usize }
}

/// The mapping table's nodes.
///
/// # Safety
/// The caller holds the memory lock, or is alone.
pub unsafe fn nodes() -> &'static mut [Node] {
    // SAFETY: the range lies in the control mapping; exclusiveness is the caller's.
    unsafe { core::slice::from_raw_parts_mut((base() + NODES_OFFSET) as *mut Node, MAX_NODES) }
}

/// The file table (index 0 is unused).
///
/// # Safety
/// As for [`nodes`].
pub unsafe fn files() -> &'static mut [FileRecord] {
    // SAFETY: as for `nodes`.
    unsafe { core::slice::from_raw_parts_mut((base() + FILES_OFFSET) as *mut FileRecord, MAX_FILES) }
}

/// The table of rewritten sites.
///
/// # Safety
/// As for [`nodes`]; reading is fine for everybody once the program runs, since entries are only added while the
/// library they belong to is being loaded.
pub unsafe fn sites() -> &'static mut [Patched] {
    // SAFETY: as for `nodes`.
    unsafe { core::slice::from_raw_parts_mut((base() + SITES_OFFSET) as *mut Patched, MAX_SITES) }
}

/// The journal's memory.
///
/// # Safety
/// Only the leader of a save, or revive (which only reads), may use it.
pub unsafe fn journal() -> &'static mut [u8] {
    // SAFETY: the range lies in the control mapping.
    unsafe { core::slice::from_raw_parts_mut((base() + JOURNAL_OFFSET) as *mut u8, JOURNAL_BYTES as usize) }
}

/// How the region's files are mapped in a life with these flags ([`boot_flag`]). On DAX without MAP_SYNC a store to a page
/// that was not there before can be lost with the block that it went to.
pub fn sharing_with(flags: u32) -> i32 {
    if flags & boot_flag::DAX != 0 { libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC } else { libc::MAP_SHARED }
}

/// How the region's files are mapped in this life.
pub fn sharing() -> i32 {
    sharing_with(life().flags)
}

/// Whether `address` lies in the control mapping or the life area.
pub fn is_ours(address: u64) -> bool {
    (base()..base() + CONTROL_BYTES + zhuque_abi::layout::LIFE_BYTES).contains(&address)
}

/// The kernel's futexes, without an end of patience.
pub struct Kernel;

impl sync::Futex for Kernel {
    fn wait(&self, word: &AtomicU32, value: u32) {
        let _ = process::futex_wait(word, value, 0);
    }

    fn wake(&self, word: &AtomicU32, count: u32) {
        process::futex_wake(word, count);
    }
}

/// A lock of the control mapping, held. Only the gate takes locks, with the program's signals put off, so a holder
/// always runs on; waiters sleep in the kernel.
pub struct Lock(&'static AtomicU32);

impl Lock {
    /// Takes the lock at `word`.
    pub fn take(word: &'static AtomicU32) -> Lock {
        sync::lock(word, &Kernel, |waits| {
            // A thread that waits here does not touch the program's memory: a fork does not wait for it.
            // SAFETY: whoever takes a lock has a slot; its index is constant.
            let index = unsafe { (*crate::entry::handler::current_slot()).index } as usize;
            life_thread(index).lock_wait.store(u32::from(waits), Ordering::Release);
        });
        Lock(word)
    }

    /// Takes the lock of the address space.
    pub fn memory() -> Lock {
        // SAFETY: the field is an atomic of a mapping that lives as long as the process.
        Lock::take(unsafe { &(*globals()).memory_lock })
    }

    /// Takes the lock of threads, children and signals.
    pub fn state() -> Lock {
        // SAFETY: as above.
        Lock::take(unsafe { &(*globals()).state_lock })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        sync::unlock(self.0, &Kernel);
    }
}
