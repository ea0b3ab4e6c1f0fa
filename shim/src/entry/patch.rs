//! Rewriting call sites by plan, and again at resume.
//!
//! A site's `syscall` and its neighbours make room for a five-byte jump to a trampoline, which does what the
//! overwritten instructions did around a jump into the gate (`zhuque_model::rewriting` makes the bytes). Only while
//! nobody can be executing there: at start, and when a library has just been mapped and nobody knows its address yet.
#![allow(unsafe_code)]

use super::place;
use crate::control;
use crate::family::memory::{Memory, by_slice, map_slices, region, slice_fd, unmap};
use crate::family::spares;
use crate::outside;
use crate::process_state::PR_GET_MDWE;
use core::sync::atomic::{Ordering, compiler_fence};
use zhuque_abi::codec;
use zhuque_abi::header::{TRAMPOLINE_BYTES, TrampolinePages};
use zhuque_abi::layout::{MAX_SITES, PAGE, PLAN_FILE, page_down, page_up};
use zhuque_abi::maps::{Kind, flag};
use zhuque_abi::sites::{LibraryPlan, PLAN_MAGIC, PLAN_VERSION, PlanHeader, SITE_BYTES, Site};
use zhuque_model::maptree::{Attr, Mapping};
use zhuque_model::rewriting;
use zhuque_sys::{Errno, fs, mm, process, user};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const READ_EXEC: i32 = libc::PROT_READ | libc::PROT_EXEC;
/// A jump's reach, with room for the trampolines themselves.
const REACH: u64 = 0x7000_0000;

/// The region's plan, mapped for reading.
struct Plan {
    at: u64,
    bytes: u64,
}

impl Plan {
    /// Maps it at an address that the table knows to be taken, so that nothing else is placed there meanwhile.
    fn open(memory: &mut Memory) -> Option<Plan> {
        let mut path = fs::Path::new();
        path.push(PLAN_FILE.as_bytes());
        let file =
            fs::open_at(control::life().descriptors.directory, &path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
        let bytes = fs::stat_fd(file).ok()?.st_size as u64;
        let length = page_up(bytes.max(1));
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the lock is held, and the range is free.
        let at = unsafe {
            let top = (*memory.globals).mmap_top;
            let place = memory.tree.gap_below(length, PAGE, 0x1_0000, top)?;
            mm::mmap(place, length, libc::PROT_READ, flags, file, 0)
        };
        let _ = fs::close(file);
        let plan = Plan { at: at.ok()?, bytes };
        memory.tree.set(plan.at, plan.at + length, super::vdso::VOLATILE).ok()?;
        if plan.valid() {
            return Some(plan);
        }
        plan.close(memory);
        None
    }

    fn close(self, memory: &mut Memory) {
        let length = page_up(self.bytes.max(1));
        // SAFETY: our own mapping, and nobody has a reference into it any more.
        let _ = unsafe { mm::munmap(self.at, length) };
        let _ = memory.tree.clear(self.at, self.at + length);
    }

    fn header(&self) -> PlanHeader {
        // SAFETY: the mapping has at least a page, and any bit pattern is a valid header.
        unsafe { *(self.at as *const PlanHeader) }
    }

    /// Whether it is what the launcher has written. Only asked where a site is about to be rewritten: of the libraries
    /// that programs load later, hardly any has one.
    fn whole(&self) -> bool {
        let behind = size_of::<PlanHeader>() as u64;
        // SAFETY: `valid` has checked that the file is no shorter than its header; all of it is mapped.
        let body =
            unsafe { core::slice::from_raw_parts((self.at + behind) as *const u8, (self.bytes - behind) as usize) };
        self.header().checksum == codec::checksum(0, body)
    }

    /// That nothing is read outside of it.
    fn valid(&self) -> bool {
        if self.bytes < size_of::<PlanHeader>() as u64 {
            return false;
        }
        let header = self.header();
        let libraries = u64::from(header.libraries) * size_of::<LibraryPlan>() as u64;
        let sites = u64::from(header.sites) * size_of::<Site>() as u64;
        header.magic == PLAN_MAGIC
            && header.version == PLAN_VERSION
            && size_of::<PlanHeader>() as u64 + libraries + sites <= self.bytes
    }

    fn libraries(&self) -> &[LibraryPlan] {
        // SAFETY: `valid` has checked the bounds; any bit pattern is a valid record.
        unsafe {
            core::slice::from_raw_parts(
                (self.at + size_of::<PlanHeader>() as u64) as *const LibraryPlan,
                self.header().libraries as usize,
            )
        }
    }

    fn sites(&self, library: &LibraryPlan) -> &[Site] {
        let start = self.at + size_of::<PlanHeader>() as u64 + size_of_val(self.libraries()) as u64;
        // SAFETY: as above.
        let all = unsafe { core::slice::from_raw_parts(start as *const Site, self.header().sites as usize) };
        let first = library.first as usize;
        all.get(first..first.saturating_add(library.count as usize)).unwrap_or(&[])
    }
}

/// At start: rewrites every planned site of what is mapped.
pub fn patch_all() {
    let mut memory = Memory::lock();
    let mut at = 0;
    while let Some(run) = memory.tree.at_or_after(at) {
        at = run.end;
        if run.attr.kind == Kind::FilePrivate && i32::from(run.attr.prot) & libc::PROT_EXEC != 0 {
            library_mapped(&mut memory, run.start, run.end, &run.attr);
        }
    }
}

/// Rewrites the planned sites of a file's text that has just been mapped. A plan that does not fit changes nothing.
pub fn library_mapped(memory: &mut Memory, start: u64, end: u64, attr: &Attr) {
    // SAFETY: takes no pointers.
    if unsafe { process::prctl(PR_GET_MDWE, 0, 0, 0, 0) }.is_ok_and(|set| set != 0) {
        // What has been written could not be executed again.
        return;
    }
    // SAFETY: the memory lock is held.
    let Some(file) = (unsafe { control::files() }).get(attr.file as usize) else { return };
    let Some(plan) = Plan::open(memory) else { return };
    let fits = |l: &&LibraryPlan| l.device == file.device && l.inode == file.inode && l.size == file.size;
    if let Some(library) = plan.libraries().iter().find(fits).filter(|_| plan.whole()) {
        let sites = rewriting::within(plan.sites(library), attr.offset, attr.offset + (end - start));
        if !sites.is_empty() {
            let run = Mapping { start, end, attr: *attr };
            // What cannot be rewritten stays with the net.
            let _ = rewrite(memory, run, sites);
        }
    }
    plan.close(memory);
}

/// Writes trampolines and jumps for `sites` of one run of text.
fn rewrite(memory: &mut Memory, run: Mapping, sites: &[Site]) -> Result<(), Errno> {
    // SAFETY: the memory lock is held.
    let globals = unsafe { &mut *memory.globals };
    let pages = globals.trampolines.iter_mut().find(|pages| pages.start == 0).ok_or(Errno(libc::ENOMEM))?;
    let first = globals.sites as usize;
    if first + sites.len() > MAX_SITES || memory.tree.spare() < 4 {
        return Err(Errno(libc::ENOMEM));
    }
    let address = |site: &Site| run.start + (site.file_offset - run.attr.offset);
    let bytes = page_up((sites.len() as u64 + 1) * TRAMPOLINE_BYTES);
    let place = memory
        .tree
        .gap_below(bytes, PAGE, run.end.saturating_sub(REACH), run.start)
        .or_else(|| memory.tree.gap_above(bytes, PAGE, run.end, run.start + REACH))
        .ok_or(Errno(libc::ENOMEM))?;
    // SAFETY: as above.
    let table = unsafe { control::sites() };
    let mut count = 0;
    spares::reclaim(place, place + bytes)?;
    write_pages(place, bytes, |window| {
        let mut gate = [0u8; 8];
        gate.copy_from_slice(&place::gate().to_le_bytes());
        window[..8].copy_from_slice(&gate);
        for site in sites {
            let at = address(site);
            if !as_planned(at, site) {
                continue;
            }
            let offset = (count as u64 + 1) * TRAMPOLINE_BYTES;
            let entry = rewriting::trampoline(window, offset, place, at, site, (first + count) as u32);
            table[first + count] = entry;
            count += 1;
        }
    })?;
    memory.tree.set(place, place + bytes, region(READ_EXEC as u64, 0)).map_err(crate::family::memory::full)?;
    let mapped = map_slices(place, place + bytes, READ_EXEC as u64, libc::MAP_FIXED_NOREPLACE);
    if mapped.is_err() || count == 0 {
        // The pages have content: take it out, or the addresses would not read zero when they are used next.
        return unmap(memory, place, place + bytes).and(mapped);
    }
    let (low, last) = (table[first], table[first + count - 1]);
    globals.sites = (first + count) as u32;
    let high = last.address + u64::from(last.length);
    let entered = TrampolinePages {
        start: place,
        end: place + bytes,
        low: low.address,
        high,
        first: first as u32,
        count: count as u32,
    };
    // The address makes the entry one; whoever is taken from outside before that has written no jump.
    *pages = TrampolinePages { start: 0, ..entered };
    compiler_fence(Ordering::Release);
    pages.start = place;
    write_jumps(&entered)?;
    let attr = Attr { flags: run.attr.flags | flag::PATCHED, ..run.attr };
    memory.tree.set(run.start, run.end, attr).map_err(crate::family::memory::full)
}

/// Whether memory holds what the plan says.
fn as_planned(at: u64, site: &Site) -> bool {
    if !rewriting::well_formed(site) {
        return false;
    }
    let length = usize::from(site.length);
    let mut found = [0u8; SITE_BYTES];
    // SAFETY: the target is a local, and a well-formed site is no longer than it.
    let read = unsafe { user::copy(found.as_mut_ptr() as u64, at, length) };
    read.is_ok() && found[..length] == site.original[..length]
}

/// Lets `write` fill region memory that is not mapped at its address yet.
fn write_pages(place: u64, bytes: u64, write: impl FnOnce(&mut [u8])) -> Result<(), Errno> {
    let mut write = Some(write);
    by_slice(place, place + bytes, |slice, offset, _, part| {
        if part != bytes {
            return Err(Errno(libc::ENOMEM));
        }
        // SAFETY: a window at an address of the kernel's choice, used here only.
        unsafe {
            let flags = control::sharing() | libc::MAP_POPULATE;
            let window = mm::mmap(0, bytes, READ_WRITE, flags, slice_fd(slice), offset)?;
            if let Some(write) = write.take() {
                write(core::slice::from_raw_parts_mut(window as *mut u8, bytes as usize));
            }
            mm::munmap(window, bytes)
        }
    })
}

/// Writes the jumps of one library's sites into its text.
fn write_jumps(pages: &TrampolinePages) -> Result<(), Errno> {
    // SAFETY: sites of this library were entered before.
    let sites = unsafe { control::sites() };
    let sites = sites.get(pages.first as usize..(pages.first + pages.count) as usize).unwrap_or(&[]);
    let (start, end) = (page_down(pages.low), page_up(pages.high));
    // SAFETY: nobody executes this text now; each write replaces whole instructions by a jump and traps.
    unsafe {
        mm::mprotect(start, end - start, READ_WRITE)?;
        for site in sites {
            let code = rewriting::jump(site);
            user::copy(site.address, code.as_ptr() as u64, usize::from(site.length).min(code.len()))?;
        }
        mm::mprotect(start, end - start, READ_EXEC)
    }
}

/// At resume: the text comes from its files again, so the jumps are written again. `journal` says what was mapped, if the
/// region was saved from outside: the table may be in the middle of a change.
pub fn patch_again(journal: &[u8]) -> Result<(), Errno> {
    // SAFETY: revive is single-threaded.
    let runs = unsafe { (*control::globals()).trampolines };
    for pages in runs.iter().filter(|pages| pages.start != 0 && pages.count != 0) {
        if outside::is_outside() {
            if outside::private_file(journal, pages.low) {
                write_jumps(pages)?;
                outside::protect_again(journal, page_down(pages.low), page_up(pages.high))?;
            }
            continue;
        }
        // A run that the program has made writable meanwhile is region memory and has its jumps.
        // SAFETY: as above.
        let tree = unsafe { zhuque_model::maptree::MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
        let patched = |run: Mapping| run.attr.kind == Kind::FilePrivate && run.attr.flags & flag::PATCHED != 0;
        if tree.find(pages.low).is_some_and(patched) {
            write_jumps(pages)?;
        }
    }
    Ok(())
}

/// The text in a range is going away: forget its sites. Their trampolines stay, for whoever is inside one.
pub fn library_unmapped(memory: &mut Memory, start: u64, end: u64) {
    // SAFETY: the memory lock is held.
    let globals = unsafe { &mut *memory.globals };
    for pages in globals.trampolines.iter_mut().filter(|pages| pages.low < end && start < pages.high) {
        // The number first: where that is 0 the rest means nothing, whatever comes in between.
        pages.count = 0;
        compiler_fence(Ordering::Release);
        pages.low = 0;
        pages.high = 0;
    }
}
