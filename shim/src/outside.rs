//! A save from outside: a tracer has stopped every thread at whatever instruction it was, the gate's own included, has
//! written each one's registers into its slot as the kernel would have pushed them (`zhuque_capture`), and has sent one
//! thread here. It writes down what only the kernel holds and commits, as the leader of any save does.
//!
//! What differs: nobody has come to the end of what it was doing. The mapping table may be in the middle of a change, so
//! the kernel's own list of mappings goes into the journal and a resume follows that; a thread that was in the gate goes
//! on inside it ([`go_on`]), and finds the kernel as it had left it. No lock is taken here: who holds one stands still.
//!
//! Neighbours: `save` (the rest of the leader's work), `revive`, `entry::place` (where a thread was).
#![allow(unsafe_code)]

use crate::context::Context;
use crate::control;
use crate::entry::maps::{self, Entry};
use crate::entry::{
    handler,
    place::{self, State},
};
use crate::family::mapped_files::{self, Part};
use crate::family::memory_files::mtime_ns;
use crate::family::{Failure, limits, recovery, timers};
use crate::journal::Journal;
use crate::process_state;
use crate::revive::saved_slots;
use crate::save;
use core::sync::atomic::Ordering;
use zhuque_abi::codec::Records;
use zhuque_abi::header::{FileRecord, Header, How};
use zhuque_abi::journal::{Backing, Mapped, Record};
use zhuque_abi::layout::{MAX_FILES, SIGNAL_STACK_BYTES, SLICES};
use zhuque_abi::life::{parked, stop};
use zhuque_abi::slot::{Slot, pending};
use zhuque_sys::{Errno, fs, mm, signal};

/// Where the tracer sends the thread that leads, on the life's scratch stack, with every signal blocked. Its GS base is
/// its slot.
///
/// # Safety
/// Called so only.
pub unsafe extern "C" fn lead() -> ! {
    let life = control::life();
    let (scratch, bytes) = control::scratch();
    // The thread's own signal stack has its frame: faults of copies get another one.
    // SAFETY: the memory between the families' scratch and this stack is nobody's.
    let _ = unsafe { signal::set_alternate_stack(scratch + bytes / 2, SIGNAL_STACK_BYTES, 0) };
    signal::set_mask(!handler::FAULTS);
    save::announce();
    // SAFETY: everything stands still.
    let suspended = |slot: *mut Slot| unsafe { (*slot).suspended != 0 || (*slot).borrowed != 0 };
    if life.stop.swap(stop::SAVE, Ordering::AcqRel) != stop::NONE || saved_slots().any(suspended) {
        save::unsaved_outside(b"a fork was under way");
    }
    let descriptors = limits::make_room(life);
    timers::look();
    // Now the tracer writes down what is pending for the others alone: behind the look at what remains of timers.
    let taken = Journal::open().written().len();
    // SAFETY: a breakpoint, for which the thread stops.
    unsafe { core::arch::asm!("int3") };
    let journal = Journal::open();
    let (taken, pending) = journal.written().split_at(taken);
    timers::note_told_outside(taken, pending);
    // SAFETY: this thread's own slot.
    process_state::note_pending(unsafe { &*handler::current_slot() });
    for slot in saved_slots() {
        // SAFETY: constant while the slot is in use.
        let index = unsafe { (*slot).index };
        control::life_thread(index as usize).parked.store(parked::SAVED, Ordering::Release);
        life.saved.fetch_add(1, Ordering::AcqRel);
    }
    save::lead_outside(descriptors.limit)
}

/// At the beginning of a life: what a tracer and the next life have to know of it.
pub fn note_life(header: &mut Header) {
    let life = control::life();
    header.how = How::Inside as u32;
    header.vdso = [life.vdso.base, life.vdso.bytes];
    header.descriptors = life.descriptors.first;
}

/// Whether the region was saved from outside, or is being.
pub fn is_outside() -> bool {
    // SAFETY: only read; written before anything else runs.
    unsafe { core::ptr::read_volatile(&raw const (*control::header()).how) == How::Outside as u32 }
}

/// Writes down what is mapped, as the kernel says; behind the descriptors, which may have kept a mapped file already.
pub fn describe(journal: &mut Journal, scratch: &mut [u8]) -> Result<(), Failure> {
    let failed = |error| Failure::new(b"what is mapped: ").errno(error);
    let text = maps::read_whole(b"/proc/thread-self/maps", scratch).map_err(failed)?;
    let mut inodes = [0u64; SLICES];
    for (inode, &fd) in inodes.iter_mut().zip(&control::life().descriptors.slices) {
        *inode = fs::stat_fd(fd).map_err(failed)?.st_ino;
    }
    let descriptors = journal.written().len();
    let mut mappings = Mappings { text, inodes, descriptors, kept: [false; MAX_FILES] };
    for entry in maps::entries(text).filter(|entry| !control::is_ours(entry.start) && !of_this_life(entry)) {
        mappings.describe(journal, &entry)?;
    }
    mappings.note_kept(journal)
}

/// The kernel's own: vdso and its variables, the page of the old system calls.
fn of_this_life(entry: &Entry<'_>) -> bool {
    entry.name.starts_with(b"[v")
}

/// What is mapped, as it is written down.
struct Mappings<'t> {
    /// /proc/PID/maps.
    text: &'t [u8],
    /// Of the slices.
    inodes: [u64; SLICES],
    /// Bytes of the journal's part with the descriptors.
    descriptors: usize,
    /// Files of the file table that have been given a name.
    kept: [bool; MAX_FILES],
}

impl Mappings<'_> {
    fn describe(&mut self, journal: &mut Journal, entry: &Entry<'_>) -> Result<(), Failure> {
        let put = |journal: &mut Journal, backing| {
            let prot = entry.prot as u32;
            journal.put(&Record::Mapping(Mapped { start: entry.start, end: entry.end, prot, backing }))
        };
        if entry.inode == 0 {
            if entry.shared || entry.prot != 0 {
                let failure = Failure::new(b"memory of no file at ").number(entry.start);
                return Err(failure.text(b" cannot be kept from outside"));
            }
            return put(journal, Backing::Reserve);
        }
        if let Some(index) = self.slice(entry) {
            return put(journal, Backing::Slice { index, offset: entry.offset });
        }
        let mut path = fs::Path::new();
        path.push(entry.name);
        let (offset, shared) = (entry.offset, entry.shared);
        if let Ok(stat) = fs::stat_at(libc::AT_FDCWD, &path, 0)
            && stat.st_ino == entry.inode
        {
            let identity = [stat.st_dev, stat.st_ino, stat.st_size as u64, mtime_ns(&stat)];
            let writable = shared
                && (entry.prot & libc::PROT_WRITE as u64 != 0 || listed(entry).any(|(_, file)| read_write(file)));
            return put(journal, Backing::File { path: entry.name, identity, offset, shared, writable });
        }
        let record = self.keep(journal, entry)?;
        let path = mapped_files::path_of(&record);
        let identity = [record.device, record.inode, record.size, record.mtime_ns];
        put(journal, Backing::File { path, identity, offset, shared, writable: shared })
    }

    /// The number of the slice that it is a mapping of.
    fn slice(&self, entry: &Entry<'_>) -> Option<u32> {
        let is_slice = |&(index, &inode): &(usize, &u64)| {
            let mut name = *b"/slice-00";
            name[7] += (index / 10) as u8;
            name[8] += (index % 10) as u8;
            inode == entry.inode && entry.shared && entry.name.ends_with(&name)
        };
        self.inodes.iter().enumerate().find(is_slice).map(|(index, _)| index as u32)
    }

    /// Gives a mapped file without a name one in the region: the record says which.
    fn keep(&mut self, journal: &Journal, entry: &Entry<'_>) -> Result<FileRecord, Failure> {
        let unknown = Failure::about(entry.name).text(b"mapped, and not known by name");
        let (index, mut record) = listed(entry).next().map(|(index, file)| (index, *file)).ok_or(unknown)?;
        let there = core::mem::replace(&mut self.kept[index], true);
        self.name(journal, index, &mut record, there)?;
        Ok(record)
    }

    fn descriptors_of<'j>(&self, journal: &'j Journal) -> &'j [u8] {
        journal.written().get(..self.descriptors).unwrap_or(&[])
    }

    /// Writes the name of what the table knows as `record` into it. `there`: the content is under that name already.
    fn name(&self, journal: &Journal, index: usize, record: &mut FileRecord, there: bool) -> Result<(), Failure> {
        let number = index;
        let parts = |each: &mut dyn FnMut(Part) -> Result<(), Errno>| {
            let ours = |other: &Entry<'_>| listed(other).any(|(index, _)| index == number);
            maps::entries(self.text).filter(ours).try_for_each(|part| {
                let readable = part.shared && part.prot & 1 != 0;
                each(Part { start: part.start, bytes: part.end - part.start, offset: part.offset, readable })
            })
        };
        let kept = mapped_files::keep(index as u32, record, self.descriptors_of(journal), there, &parts);
        let failed = Failure::about(mapped_files::path_of(record)).text(b"mapped, and cannot be kept: ");
        kept.map_err(|error| failed.errno(error))
    }

    /// Enters the names into the file table: those files are what the next life has mapped, or maps next, if a thread was
    /// just about to. Who was stopped in the middle of a change of the table was adding to it (`memory_files::enter`).
    fn note_kept(mut self, journal: &Journal) -> Result<(), Failure> {
        // SAFETY: everything stands still.
        let (files, used) = unsafe { (control::files(), (*control::globals()).files as usize) };
        let files = files.get_mut(1..=used).unwrap_or(&mut []);
        mapped_files::find_kept(self.descriptors_of(journal), &mut |stat| {
            let same = |file: &FileRecord| (file.device, file.inode) == (stat.st_dev, stat.st_ino);
            if let Some(index) = files.iter().position(same) {
                self.kept[index + 1] = true;
            }
            false
        });
        for index in (0..files.len()).filter(|&index| self.kept[index + 1]) {
            let (old, mut record) = (files[index], files[index]);
            self.name(journal, index + 1, &mut record, true)?;
            // One file may have been opened in several ways.
            for file in &mut files[index..] {
                if (file.device, file.inode) == (old.device, old.inode) {
                    *file = FileRecord { access: file.access, ..record };
                }
            }
        }
        Ok(())
    }
}

/// The entries of the file table that a mapping may be of, with their indices.
fn listed<'e>(entry: &'e Entry<'_>) -> impl Iterator<Item = (usize, &'static FileRecord)> + 'e {
    // SAFETY: everything stands still.
    let (files, used) = unsafe { (control::files(), (*control::globals()).files as usize) };
    let all = || files.iter().enumerate().take(used + 1).skip(1).filter(|(_, file)| file.inode == entry.inode);
    // Numbers of inodes alone are not enough: memfds and files of a tmpfs all count from small ones. Where stat(2) tells
    // another device than the mapping (overlay, btrfs) and the file has another name by now, they have to be.
    let same = |file: &FileRecord| file.device == entry.device || stem(mapped_files::path_of(file)) == stem(entry.name);
    let known = all().any(|(_, file)| same(file));
    all().filter(move |(_, file)| !known || same(file))
}

/// A path as it was while the file had its name.
fn stem(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}

fn read_write(file: &FileRecord) -> bool {
    file.access & libc::O_ACCMODE as u32 == libc::O_RDWR as u32
}

/// Whether a private mapping of a file was at `address`.
pub fn private_file(journal: &[u8], address: u64) -> bool {
    mapped(journal).any(|run| {
        (run.start..run.end).contains(&address) && matches!(run.backing, Backing::File { shared: false, .. })
    })
}

/// Gives what lies in a range the protection that it had.
pub fn protect_again(journal: &[u8], start: u64, end: u64) -> Result<(), Errno> {
    for run in mapped(journal).filter(|run| run.start < end && start < run.end) {
        let (start, end) = (run.start.max(start), run.end.min(end));
        // SAFETY: the program's own memory, and nobody runs yet.
        unsafe { mm::mprotect(start, end - start, run.prot as i32) }?;
    }
    Ok(())
}

/// What was mapped, by the journal.
pub fn mapped(journal: &[u8]) -> impl Iterator<Item = Mapped<'_>> {
    Records::new(journal).flatten().filter_map(|record| match record {
        Record::Mapping(run) => Some(run),
        _ => None,
    })
}

/// Whether the program may have a shared mapping of a file: by the file table, which says what was mapped at some time.
pub fn mapped_shared(device: u64, inode: u64) -> bool {
    // SAFETY: everything stands still.
    let (files, used) = unsafe { (control::files(), (*control::globals()).files as usize) };
    files.iter().take(used + 1).skip(1).any(|file| file.device == device && file.inode == inode)
}

/// A revived thread that was taken from outside: makes its frame the program's state, if that is where it was. One in the
/// gate's own work goes on with that, and takes what waits for it at its end. `recovers`: the recovery signal is its.
pub fn go_on(slot: &mut Slot, context: &mut Context, recovers: bool) {
    let life = control::life();
    slot.saved.outside = 0;
    if recovers {
        recovery::give(slot, life.generation);
    }
    // It may not come by the gate's exit any more (rt_sigreturn): what waits for it needs a signal.
    let deaf = context.mask & signal::bit(libc::SIGPWR as u32) != 0;
    match place::program_state_in(context, slot, [life.vdso_before; 2]) {
        State::Critical => {
            // It may be saved so once more before it comes out of the gate.
            let [base, bytes] = life.vdso_before;
            if (base..base + bytes).contains(&slot.frame.rip) {
                slot.frame.rip = life.vdso.base;
            }
            if deaf {
                handler::kick();
            }
            slot.old_pids.rotate_right(1);
            slot.old_pids[0] = life.pid_before;
            slot.pending.fetch_or(pending::KICK, Ordering::Relaxed);
        }
        State::Program(retry) => {
            handler::take_up(slot, retry, context);
            if recovery::waits(slot) {
                handler::kick();
            }
        }
    }
}
