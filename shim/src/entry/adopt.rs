//! Adoption: what kernel and ld.so have mapped before the shim becomes region memory, at the same addresses.
//!
//! Runs once, single-threaded, on the life's scratch stack, since the main stack is among what is replaced.
#![allow(unsafe_code)]

use super::maps::{self, Entry};
use super::vdso;
use crate::control;
use crate::die;
use crate::family::memory::{copy_into_region, map_slices, region};
use crate::family::memory_files::{enter, mtime_ns};
use crate::text::Text;
use zhuque_abi::header::FileRecord;
use zhuque_abi::layout::{CONTROL_BYTES, LIFE_BYTES, LIFE_OFFSET, TASK_SIZE, page_down, page_up};
use zhuque_abi::life::Vdso;
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::{Attr, MapTree};
use zhuque_sys::{Errno, fs, process};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// The main stack where the limit is "unlimited".
const LARGEST_STACK: u64 = 64 << 20;

/// Adopts everything.
pub fn adopt_all(vdso: &Vdso) {
    let (scratch, _) = control::scratch();
    // SAFETY: the lower part of the scratch memory is nobody's at start.
    let buffer = unsafe { core::slice::from_raw_parts_mut(scratch as *mut u8, 8 << 20) };
    let Ok(text) = maps::read_whole(b"/proc/self/smaps", buffer) else {
        die::fail(&Text::of(b"cannot read /proc/self/smaps"));
    };
    // SAFETY: start is single-threaded.
    let mut tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
    let mut plan = Plan::default();
    for entry in maps::entries(text).filter(|entry| entry.end <= TASK_SIZE) {
        if let Err(Errno(number)) = plan.note(&mut tree, &entry) {
            let mut text = Text::of(b"cannot adopt the mapping ");
            text.push(entry.name).push(b" at ").hex(entry.start).push(b": error ").number(number as u64);
            die::fail(&text);
        }
    }
    if let Err(Errno(number)) = plan.finish(&mut tree, text, vdso) {
        die::fail(Text::of(b"cannot adopt the program's memory: error ").number(number as u64));
    }
}

/// What has to wait until every mapping is in the table.
#[derive(Default)]
struct Plan {
    vdso: u64,
    stack: (u64, u64),
    heap: (u64, u64),
    top: u64,
}

impl Plan {
    /// Enters one mapping into the table.
    fn note(&mut self, tree: &mut MapTree<'_>, entry: &Entry<'_>) -> Result<(), Errno> {
        let base = control::base();
        if (base..base + CONTROL_BYTES + LIFE_BYTES).contains(&entry.start) {
            return Ok(());
        }
        let attr = match entry.name {
            b"[vvar]" | b"[vvar_vclock]" => return Ok(()),
            b"[vdso]" => {
                self.vdso = entry.start;
                return Ok(());
            }
            b"[stack]" => {
                self.stack = (entry.start, entry.end);
                region(entry.prot, flag::STACK)
            }
            b"[heap]" => {
                self.heap = (entry.start, entry.end);
                region(entry.prot, 0)
            }
            _ => classify(entry)?,
        };
        if entry.name != b"[stack]" {
            self.top = self.top.max(entry.end);
        }
        tree.set(entry.start, entry.end, attr).map_err(|_| Errno(libc::ENOMEM))
    }

    /// Moves the content into the region.
    fn finish(&self, tree: &mut MapTree<'_>, text: &[u8], vdso: &Vdso) -> Result<(), Errno> {
        let base = control::base();
        let mut ours = |start: u64, end: u64, kind: Kind| {
            tree.set(start, end, Attr { kind, prot: READ_WRITE as u8, flags: 0, file: 0, offset: 0 })
                .map_err(|_| Errno(libc::ENOMEM))
        };
        ours(base, base + CONTROL_BYTES, Kind::Control)?;
        ours(base + LIFE_OFFSET, base + LIFE_OFFSET + LIFE_BYTES, Kind::Volatile)?;
        let top = self.top.max(base + LIFE_OFFSET + LIFE_BYTES);
        for entry in maps::entries(text).filter(|entry| entry.end <= TASK_SIZE) {
            let mapped = tree.find(entry.start);
            if mapped.is_some_and(|run| run.attr.kind == Kind::Region) {
                move_in(&entry)?;
            }
        }
        self.adopt_stack(tree)?;
        // SAFETY: start is single-threaded.
        unsafe {
            let globals = control::globals();
            let now = process::other(libc::SYS_brk, [0; 6])? as u64;
            let start = if self.heap.0 == 0 { now } else { self.heap.0 };
            (*globals).brk_start = start;
            (*globals).brk_now = now;
            (*globals).brk_mapped = if self.heap.0 == 0 { page_up(now) } else { self.heap.1 };
            (*globals).mmap_top = top;
        }
        if self.vdso != 0 && vdso.bytes != 0 {
            vdso::adopt(tree, self.vdso, vdso, top)?;
        }
        Ok(())
    }

    /// The main stack does not grow by itself any more: give it what its limit allows.
    fn adopt_stack(&self, tree: &mut MapTree<'_>) -> Result<(), Errno> {
        let (start, end) = self.stack;
        let limit = process::limit(libc::RLIMIT_STACK, None)?[0].min(LARGEST_STACK);
        let below = tree.last_below(start).map_or(0x1_0000, |run| run.end);
        // Leave the gap that the kernel keeps below a stack.
        let lowest = page_down(end.saturating_sub(limit)).max(below + (1 << 20));
        if lowest < start {
            map_slices(lowest, start, READ_WRITE as u64, libc::MAP_FIXED_NOREPLACE)?;
            let prot = READ_WRITE as u64;
            tree.set(lowest, start, region(prot, flag::STACK)).map_err(|_| Errno(libc::ENOMEM))?;
        }
        // SAFETY: start is single-threaded.
        unsafe {
            (*control::globals()).stack_start = lowest.min(start);
            (*control::globals()).stack_end = end;
        }
        Ok(())
    }
}

/// What a mapping becomes.
fn classify(entry: &Entry<'_>) -> Result<Attr, Errno> {
    let plain = Attr { kind: Kind::Region, prot: entry.prot as u8, flags: 0, file: 0, offset: 0 };
    if entry.inode == 0 {
        if entry.name.starts_with(b"[") && !entry.name.starts_with(b"[anon") {
            return Ok(vdso::VOLATILE);
        }
        let kind = if entry.prot == 0 && !entry.dirty { Kind::Reserve } else { Kind::Region };
        return Ok(Attr { kind, ..plain });
    }
    let file = file_entry(entry)?;
    let attr = Attr { file, offset: entry.offset, ..plain };
    if entry.shared {
        Ok(Attr { kind: Kind::FileShared, ..attr })
    } else if entry.dirty || entry.prot & libc::PROT_WRITE as u64 != 0 {
        Ok(Attr { flags: flag::FROM_FILE, ..attr })
    } else {
        Ok(Attr { kind: Kind::FilePrivate, ..attr })
    }
}

/// Enters a mapping's file into the file table.
fn file_entry(entry: &Entry<'_>) -> Result<u32, Errno> {
    let mut path = fs::Path::new();
    path.push(entry.name);
    let stat = fs::stat_at(libc::AT_FDCWD, &path, 0)?;
    if stat.st_ino != entry.inode {
        return Err(Errno(libc::ESTALE));
    }
    let record = FileRecord {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: mtime_ns(&stat),
        access: if entry.shared { libc::O_RDWR as u32 } else { libc::O_RDONLY as u32 },
        path_bytes: 0,
        unlinked: 0,
        reserved: 0,
        path: [0; 2000],
    };
    enter(record, |to| {
        let name = entry.name;
        to.get_mut(..name.len()).ok_or(Errno(libc::ENAMETOOLONG))?.copy_from_slice(name);
        Ok(name.len())
    })
}

/// Copies a mapping's content into the slice and maps the slice in its place.
fn move_in(entry: &Entry<'_>) -> Result<(), Errno> {
    if entry.dirty || entry.inode != 0 {
        return copy_into_region(entry.start, entry.end, entry.prot, entry.prot);
    }
    map_slices(entry.start, entry.end, entry.prot, libc::MAP_FIXED)
}
