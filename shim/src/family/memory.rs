//! Memory: the calls that change mappings, with the region behind what was private and anonymous.
//!
//! The byte at address A lies in slice A >> 42 at offset A & (2^42 - 1), so that the mapping table is the only
//! metadata. Every call here holds the memory lock from its look at the table to its change of it, so that nobody gets
//! at an address between the end of its mapping and that of its content.
//!
//! Neighbours: `memory_map` (mmap), `memory_move` (mremap), `memory_files` (the file table), and
//! `zhuque_model::maptree` (the table).
#![allow(unsafe_code)]

use super::advice::{self, mark};
use super::{ahead, memory_map, memory_move, spares};
use crate::control::{self, Lock};
use crate::gate::{Result64, error, raw};
use core::sync::atomic::Ordering;
use zhuque_abi::header::Globals;
use zhuque_abi::layout::{PAGE, SLICE_BYTES, TASK_SIZE, page_up, slice_of};
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::{Attr, Full, MapTree, Mapping};
use zhuque_sys::{Errno, fs, mm};

const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
/// PROT_READ, PROT_WRITE, PROT_EXEC and PROT_SEM, which means nothing.
const PROT_ANY: u64 = 15;
const PROT_GROWS: u64 = (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP) as u64;

/// The address space, locked.
pub struct Memory {
    /// The mapping table.
    pub tree: MapTree<'static>,
    /// The rest of what the lock protects.
    pub globals: *mut Globals,
    _lock: Lock,
}

impl Memory {
    /// Takes the lock.
    pub fn lock() -> Memory {
        let lock = Lock::memory();
        // SAFETY: the lock makes this the only user of tree and nodes.
        let mut tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
        catch_up(&mut tree);
        Memory { tree, globals: control::globals(), _lock: lock }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        catch_up(&mut self.tree);
    }
}

/// What a resume could not do with a table that was in the middle of a change.
fn catch_up(tree: &mut MapTree<'_>) {
    let stale = &control::life().stale_table;
    if stale.load(Ordering::Relaxed) != 0 && stale.swap(0, Ordering::Relaxed) != 0 {
        crate::entry::vdso::renew(tree);
        advice::all_again(tree);
    }
}

/// What the table's being full is to the program.
pub fn full(_: Full) -> Errno {
    Errno(libc::ENOMEM)
}

/// One of the memory calls.
pub fn serve(number: i64, a: [u64; 6]) -> Result64 {
    let mut memory = Memory::lock();
    match number {
        libc::SYS_mmap => memory_map::mmap(&mut memory, a),
        libc::SYS_munmap => munmap(&mut memory, a[0], a[1]),
        libc::SYS_mprotect => mprotect(&mut memory, a[0], a[1], a[2]),
        libc::SYS_pkey_mprotect if a[3] as i32 == -1 => mprotect(&mut memory, a[0], a[1], a[2]),
        libc::SYS_pkey_mprotect => error(libc::EINVAL),
        libc::SYS_brk => Ok(brk(&mut memory, a[0])),
        libc::SYS_mremap => memory_move::mremap(&mut memory, a),
        libc::SYS_madvise => madvise(&mut memory, a[0], a[1], a[2] as i32),
        libc::SYS_process_madvise => advice::process_madvise(a),
        libc::SYS_mlock | libc::SYS_mlock2 | libc::SYS_munlock => advice::lock(&mut memory, number, a),
        libc::SYS_mlockall | libc::SYS_munlockall => advice::lock_all(&mut memory, number, a),
        libc::SYS_remap_file_pages => error(libc::ENOSYS),
        _ => raw(number, a),
    }
}

/// The range `[address, address + bytes)` rounded to pages, or the error that munmap and mprotect give.
pub fn range(address: u64, bytes: u64) -> Result<(u64, u64), Errno> {
    if !address.is_multiple_of(PAGE) {
        return error(libc::EINVAL);
    }
    let end = address.checked_add(page_up(bytes)).ok_or(Errno(libc::EINVAL))?;
    if end > TASK_SIZE { error(libc::EINVAL) } else { Ok((address, end)) }
}

/// Nobody but us may touch our own mappings.
pub fn not_ours(memory: &Memory, start: u64, end: u64) -> Result<(), Errno> {
    for run in memory.tree.range(start, end) {
        if matches!(run.attr.kind, Kind::Control | Kind::Volatile) {
            return error(libc::EPERM);
        }
    }
    Ok(())
}

/// Calls `each` with every part of the range that lies in one slice: slice number, offset, address, bytes.
pub fn by_slice(
    start: u64,
    end: u64,
    mut each: impl FnMut(usize, u64, u64, u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut at = start;
    while at < end {
        let (slice, offset) = slice_of(at);
        let bytes = (SLICE_BYTES - offset).min(end - at);
        each(slice, offset, at, bytes)?;
        at += bytes;
    }
    Ok(())
}

/// Descriptor of a slice in this life.
pub fn slice_fd(slice: usize) -> i32 {
    control::life().descriptors.slices.get(slice).copied().unwrap_or(-1)
}

/// Maps region memory at its address. `flags`: MAP_FIXED or MAP_FIXED_NOREPLACE and what else the kernel is to see.
pub fn map_slices(start: u64, end: u64, prot: u64, flags: i32) -> Result<(), Errno> {
    let only_free = flags & libc::MAP_FIXED_NOREPLACE != 0;
    let flags = control::sharing() | (flags & !libc::MAP_FIXED_NOREPLACE);
    by_slice(start, end, |slice, offset, address, bytes| {
        let map = if only_free { mm::mmap_free } else { mm::mmap };
        // SAFETY: the caller has made sure that the range is free or to be replaced, and is not ours.
        unsafe { map(address, bytes, prot as i32, flags, slice_fd(slice), offset) }.map(|_| ())
    })
}

/// As [`map_slices`], where no region memory was before: it reads zero. What lies there is dealt with before anybody can
/// reach the memory: another thread may be waiting for it to appear.
pub fn fresh_slices(start: u64, end: u64, prot: u64, flags: i32) -> Result<(), Errno> {
    let there = spares::ready(start, end, prot)? || ahead::ready(start, end, prot);
    map_slices(start, end, prot, flags)?;
    if there {
        spares::present(start, end);
    }
    Ok(())
}

/// Discards the content of region memory in the range: it reads zero afterwards. The address is still mapped.
pub fn punch(memory: &Memory, start: u64, end: u64) -> Result<(), Errno> {
    let mut from = 0;
    let mut to = 0;
    let mut result = Ok(());
    let mut flush = |from: u64, to: u64| {
        if from < to {
            let done = by_slice(from, to, |slice, offset, _, bytes| fs::punch_hole(slice_fd(slice), offset, bytes));
            if result.is_ok() {
                result = done;
            }
        }
    };
    for run in memory.tree.range(start, end) {
        if !matches!(run.attr.kind, Kind::Region | Kind::Headroom) {
            continue;
        }
        let (a, b) = (run.start.max(start), run.end.min(end));
        if a != to {
            flush(from, to);
            from = a;
        }
        to = b;
    }
    flush(from, to);
    result
}

/// Takes everything out of a range: mapping, content, table entry. An error has changed nothing.
pub fn unmap(memory: &mut Memory, start: u64, end: u64) -> Result<(), Errno> {
    not_ours(memory, start, end)?;
    // Splitting at both ends needs up to two nodes; know that before anything is lost.
    if memory.tree.spare() < 2 {
        return error(libc::ENOMEM);
    }
    if memory.tree.range(start, end).any(|run| shared(&run)) && super::processes::any_sharing() {
        return retire(memory, start, end);
    }
    let private = |run: Mapping| run.attr.kind == Kind::Region && !shared(&run);
    let kept = if memory.tree.range(start, end).all(private) { spares::worth(start, end) } else { None };
    // Nobody else gets at these addresses before the lock is given up, so the content may go after the mapping: if the
    // kernel refuses (it may have to split a mapping, and have too many), the program still has both.
    // SAFETY: the program asked for it, and nothing of ours lies there.
    unsafe { mm::munmap(start, end - start) }?;
    crate::entry::patch::library_unmapped(memory, start, end);
    let emptied = match kept {
        Some(spare) => punch(memory, start, spare.start)
            .and_then(|()| punch(memory, spare.end, end))
            .and_then(|()| spares::keep(spare)),
        None => punch(memory, start, end),
    };
    match emptied {
        Ok(()) => memory.tree.clear(start, end).map_err(full),
        // The mapping is gone all the same: these addresses are not handed out again, so nobody sees the content.
        Err(_) => memory.tree.set(start, end, RETIRED).map_err(full),
    }
}

/// Addresses whose content stays, but is nobody's.
const RETIRED: Attr = Attr { kind: Kind::Headroom, prot: 0, flags: 0, file: 0, offset: 0 };

/// Whether forked children may use the same memory: shared anonymous memory, or what is left of it.
pub fn shared(run: &Mapping) -> bool {
    match run.attr.kind {
        Kind::Region => run.attr.flags & flag::SHARED != 0,
        kind => kind == Kind::Headroom,
    }
}

/// Unmaps a range with memory that forked children may still share: its content stays for them, and its addresses are
/// not handed out again, since a child would write into whatever came to lie there.
fn retire(memory: &mut Memory, start: u64, end: u64) -> Result<(), Errno> {
    // SAFETY: the program asked for it, and nothing of ours lies there.
    unsafe { mm::munmap(start, end - start) }?;
    memory.tree.set(start, end, RETIRED).map_err(full)
}

/// munmap(2).
fn munmap(memory: &mut Memory, address: u64, bytes: u64) -> Result64 {
    if bytes == 0 {
        return error(libc::EINVAL);
    }
    let (start, end) = range(address, bytes)?;
    unmap(memory, start, end)?;
    Ok(0)
}

/// brk(2), emulated: the heap is region memory.
fn brk(memory: &mut Memory, wanted: u64) -> u64 {
    // SAFETY: the lock is held.
    let globals = unsafe { &mut *memory.globals };
    if wanted < globals.brk_start || wanted >= TASK_SIZE {
        return globals.brk_now;
    }
    let (old, new) = (globals.brk_mapped, page_up(wanted));
    let done = if new > old {
        grow_brk(memory, old, new)
    } else if new < old {
        unmap(memory, new, old)
    } else {
        Ok(())
    };
    if done.is_ok() {
        globals.brk_mapped = new;
        globals.brk_now = wanted;
    }
    globals.brk_now
}

fn grow_brk(memory: &mut Memory, old: u64, new: u64) -> Result<(), Errno> {
    if !memory.tree.is_free(old, new) || memory.tree.spare() < 2 {
        return error(libc::ENOMEM);
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    fresh_slices(old, new, prot as u64, libc::MAP_FIXED_NOREPLACE)?;
    memory.tree.set(old, new, region(prot as u64, 0)).map_err(full)
}

/// The attributes of plain region memory.
pub fn region(prot: u64, flags: u16) -> Attr {
    Attr { kind: Kind::Region, prot: prot as u8, flags, file: 0, offset: 0 }
}

/// mprotect(2).
fn mprotect(memory: &mut Memory, address: u64, bytes: u64, prot: u64) -> Result64 {
    let (grows, prot) = (prot & PROT_GROWS, prot & !PROT_GROWS);
    let misplaced = !address.is_multiple_of(PAGE);
    if grows == PROT_GROWS {
        return error(libc::EINVAL);
    }
    // The kernel looks at the protection last.
    let (mut start, end) = range(address, bytes).map_err(|e| if misplaced { e } else { Errno(libc::ENOMEM) })?;
    if start == end {
        return Ok(0);
    }
    if prot & !PROT_ANY != 0 {
        return error(libc::EINVAL);
    }
    let prot = prot & 7;
    if grows != 0 {
        // From the stack's lowest address on; no mapping of the program's grows upwards.
        // SAFETY: the lock is held.
        let stack = unsafe { (*memory.globals).stack_start..(*memory.globals).stack_end };
        let run = memory.tree.find(start).ok_or(Errno(libc::ENOMEM))?;
        if grows != libc::PROT_GROWSDOWN as u64 {
            return error(libc::EINVAL);
        }
        // Mappings that the program wants to grow by themselves do not, here.
        if stack.contains(&run.start) {
            start = run.start;
        }
    }
    not_ours(memory, start, end)?;
    let mut at = start;
    while at < end {
        let Some(run) = memory.tree.find(at).and_then(|run| run.part(at.max(run.start), run.end.min(end))) else {
            return error(libc::ENOMEM);
        };
        protect_run(memory, run, prot)?;
        at = run.end;
    }
    Ok(0)
}

/// mprotect of one run.
fn protect_run(memory: &mut Memory, run: Mapping, prot: u64) -> Result<(), Errno> {
    if memory.tree.spare() < 2 {
        return error(libc::ENOMEM);
    }
    let mut attr = run.attr;
    match run.attr.kind {
        Kind::Reserve if prot != 0 => {
            fresh_slices(run.start, run.end, prot, libc::MAP_FIXED)?;
            advice::again(run.start, run.end, run.attr.flags);
            attr = region(prot, run.attr.flags);
        }
        Kind::FilePrivate if prot & PROT_WRITE != 0 => {
            copy_into_region(run.start, run.end, run.attr.prot.into(), prot)?;
            advice::again(run.start, run.end, run.attr.flags);
            attr.kind = Kind::Region;
            attr.flags = attr.flags & !flag::PATCHED | flag::FROM_FILE;
        }
        // SAFETY: the program's own memory.
        _ => unsafe { mm::mprotect(run.start, run.end - run.start, prot as i32) }?,
    }
    attr.prot = prot as u8;
    memory.tree.set(run.start, run.end, attr).map_err(full)
}

/// Replaces a mapping of something else, protected as `now`, by region memory with the same content. ENOMEM, and nothing
/// has changed, if the store has no room for it.
pub fn copy_into_region(start: u64, end: u64, now: u64, prot: u64) -> Result<(), Errno> {
    spares::reclaim(start, end)?;
    if now & 1 == 0 {
        // SAFETY: the program's own mapping; it is replaced below.
        unsafe { mm::mprotect(start, end - start, libc::PROT_READ) }?;
    }
    let copied = by_slice(start, end, copy_part).and_then(|()| map_slices(start, end, prot, libc::MAP_FIXED));
    copied.inspect_err(|_| {
        // Nothing of what was copied may show where the addresses become region memory later.
        let _ = by_slice(start, end, |slice, offset, _, bytes| fs::punch_hole(slice_fd(slice), offset, bytes));
        // SAFETY: as above.
        let _ = unsafe { mm::mprotect(start, end - start, now as i32) };
    })
}

/// Copies what is mapped at `address` to its place in the slice.
fn copy_part(slice: usize, offset: u64, address: u64, bytes: u64) -> Result<(), Errno> {
    // What has been allocated cannot fail to be written: below, only the source can fault.
    fs::allocate(slice_fd(slice), offset, bytes).map_err(|_| Errno(libc::ENOMEM))?;
    // SAFETY: a fresh mapping at an address that the kernel chooses, and away with it. The source may end before its
    // pages do (a file shorter than its mapping): copy page by page, leaving zeroes where it faults.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let window = mm::mmap(0, bytes, prot, control::sharing(), slice_fd(slice), offset)?;
        let mut at = 0;
        while at < bytes {
            let _ = crate::user::copy(window + at, address + at, PAGE as usize);
            at += PAGE;
        }
        mm::munmap(window, bytes)
    }
}

/// madvise(2).
fn madvise(memory: &mut Memory, address: u64, bytes: u64, advice: i32) -> Result64 {
    let judged = || raw(libc::SYS_madvise, [address, bytes, advice as u64, 0, 0, 0]);
    let (start, end) = match range(address, bytes) {
        Ok((start, end)) if start < end => (start, end),
        // Nothing is to be done; whether the advice is any is the kernel's to say.
        Ok(_) => return judged(),
        // Up to where nothing can be mapped.
        Err(_) if address.is_multiple_of(PAGE) && address.checked_add(page_up(bytes)).is_some() => {
            return error(libc::ENOMEM);
        }
        Err(e) => return Err(e),
    };
    not_ours(memory, start, end)?;
    match advice {
        MADV_WIPEONFORK | libc::MADV_FREE if !all_anonymous(memory, start, end) => return error(libc::EINVAL),
        libc::MADV_DONTNEED | libc::MADV_FREE | MADV_DONTNEED_LOCKED => return discard(memory, start, end, advice),
        libc::MADV_REMOVE => return remove(memory, start, end),
        libc::MADV_DONTFORK => return mark(memory, start, end, flag::DONTFORK, true),
        libc::MADV_DOFORK => return mark(memory, start, end, flag::DONTFORK, false),
        MADV_WIPEONFORK => return mark(memory, start, end, flag::WIPEONFORK, true),
        MADV_KEEPONFORK => return mark(memory, start, end, flag::WIPEONFORK, false),
        // Guard markers are not kept over a resume: callers fall back to PROT_NONE.
        102 | 103 => return error(libc::EINVAL),
        _ => {}
    }
    let result = match advice {
        libc::MADV_DONTDUMP | libc::MADV_DODUMP | libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE => {
            advice::advise(memory, start, end, advice)
        }
        _ => judged(),
    };
    match (result, advice) {
        // Shared memory knows less advice than private memory; none of these changes what a program reads.
        (Err(Errno(libc::EINVAL)), libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE | libc::MADV_MERGEABLE) => Ok(0),
        (result, _) => result,
    }
}

/// Whether the program believes everything in the range to be private memory without a file.
fn all_anonymous(memory: &Memory, start: u64, end: u64) -> bool {
    memory.tree.range(start, end).all(|run| match run.attr.kind {
        Kind::Region => run.attr.flags & (flag::SHARED | flag::FROM_FILE) == 0,
        kind => kind == Kind::Reserve,
    })
}

const MADV_WIPEONFORK: i32 = 18;
const MADV_KEEPONFORK: i32 = 19;
const MADV_DONTNEED_LOCKED: i32 = 24;

/// MADV_DONTNEED: region memory reads zero afterwards; mappings of files go back to the file's content.
fn discard(memory: &mut Memory, start: u64, end: u64, advice: i32) -> Result64 {
    // Shared memory knows no MADV_FREE.
    let advice = if advice == libc::MADV_FREE { libc::MADV_DONTNEED } else { advice };
    each_part(memory, start, end, |memory, attr, a, b| match attr.kind {
        // What was copied from a file keeps its content: going back to the file's would need the file.
        Kind::Region if attr.flags & (flag::FROM_FILE | flag::SHARED) != 0 => Ok(()),
        Kind::Region => {
            // The kernel judges first: what is locked cannot be discarded.
            // SAFETY: the program's own memory and wish; the content is still in the file.
            unsafe { mm::madvise(a, b - a, advice) }?;
            punch(memory, a, b)
        }
        Kind::FilePrivate if attr.flags & flag::PATCHED != 0 => Ok(()),
        // SAFETY: the program's own memory and wish.
        _ => unsafe { mm::madvise(a, b - a, advice) },
    })
}

/// MADV_REMOVE: only of shared memory with a file (mm/madvise.c, madvise_remove). The kernel's would take the content of
/// private memory as well, which it sees as a file.
fn remove(memory: &mut Memory, start: u64, end: u64) -> Result64 {
    each_part(memory, start, end, |_, attr, a, b| {
        if attr.kind != Kind::Region || attr.flags & flag::SHARED != 0 {
            // SAFETY: the program's own memory and wish.
            return unsafe { mm::madvise(a, b - a, libc::MADV_REMOVE) };
        }
        // What is locked is refused first. This takes nothing from memory that lies in a file.
        // SAFETY: as above.
        unsafe { mm::madvise(a, b - a, libc::MADV_DONTNEED) }?;
        error(if attr.flags & flag::FROM_FILE != 0 { libc::EACCES } else { libc::EINVAL })
    })
}

/// Takes the mapped parts of a range one after the other, as madvise(2) does: that something is not mapped is said at the
/// end.
fn each_part(
    memory: &mut Memory,
    start: u64,
    end: u64,
    mut work: impl FnMut(&mut Memory, &Attr, u64, u64) -> Result<(), Errno>,
) -> Result64 {
    let (mut at, mut hole) = (start, false);
    while let Some(run) = memory.tree.at_or_after(at).filter(|run| run.start < end) {
        let there = run.attr.kind != Kind::Headroom;
        hole |= run.start > at || !there;
        if there {
            work(memory, &run.attr, run.start.max(start), run.end.min(end))?;
        }
        at = run.end;
    }
    if hole || at < end { error(libc::ENOMEM) } else { Ok(0) }
}
