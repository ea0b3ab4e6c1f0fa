//! Save: what happens on SIGPWR, and the other reason to stop the world, fork.
//!
//! Every thread comes to its handler, where the kernel has pushed all its registers onto region memory: pushing is
//! saving. The first thread there leads: it calls the others, waits for them, writes down what only the kernel holds,
//! and stores the phase SAVED. Nothing of the program runs after that.
#![allow(unsafe_code)]

use crate::context::Context;
use crate::control::{self, Lock};
use crate::entry::handler::{FAULTS, NEVER_BLOCKED, kick, kick_others};
use crate::entry::place;
use crate::family::limits::{self, Room};
use crate::family::{self, clocks, signals, timers};
use crate::journal::Journal;
use crate::{process_state, write_back};
use core::sync::atomic::{AtomicU32, Ordering};
use zhuque_abi::codec;
use zhuque_abi::header::{Header, How, Phase, Reason, phase_word};
use zhuque_abi::layout::{
    FILES_OFFSET, NODES_OFFSET, PAGE, SIGNAL_STACK_BYTES, SITES_OFFSET, SLICE_BYTES, TIMERS_OFFSET,
};
use zhuque_abi::life::{Life, boot_flag, parked, stop};
use zhuque_abi::slot::{Retry, Slot, saved_frame, state};
use zhuque_abi::timers::Timer;
use zhuque_model::maptree::MapTree;
use zhuque_model::sync::Collection;
use zhuque_sys::{fs, process, signal, time};

/// Status of a program that was saved (EX_TEMPFAIL).
pub const STATUS: i32 = 75;
/// Longest wait for one thread before it is called again, ns.
const PATIENCE: i64 = 2_000_000;

unsafe extern "C" {
    fn zhuque_on_stack(stack: u64, function: extern "C" fn(u64), argument: u64);
}

/// Notes that power is failing. The first to say so starts the clock.
pub fn announce() {
    if announced() {
        return;
    }
    // First: the store may wait for the file system, at the expense of the power supply.
    let now = time::now(libc::CLOCK_MONOTONIC) as u64;
    // SAFETY: an atomic field of the control mapping.
    unsafe { (*control::header()).announced.store(announcement(), Ordering::Release) };
    let _ = control::life().announced_ns.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
}

/// Whether power is failing.
pub fn announced() -> bool {
    control::life().announced_ns.load(Ordering::Acquire) != 0
}

/// What the header has while power is failing in this life.
fn announcement() -> u32 {
    control::generation() as u32 + 1
}

/// Whether the image before this one had heard that power is failing: its threads may not have called each other yet.
pub fn was_announced() -> bool {
    // SAFETY: an atomic field of the control mapping.
    unsafe { (*control::header()).announced.load(Ordering::Acquire) == announcement() }
}

/// A thread ends, and may be the only one that has heard of a power failure: another one hears of it.
pub fn leave(slot: &mut Slot) {
    if announced() {
        kick_others(slot);
    }
}

/// Saves the calling thread, whose state `context` is; leads the save if nobody does yet. Does not return.
pub fn save_this_thread(slot: &mut Slot, context: &mut Context, retry: Option<Retry>) -> ! {
    let life = control::life();
    slot.saved.frame = context as *mut Context as u64;
    slot.saved.fs_base = process::fs_base();
    slot.saved.retry = retry.unwrap_or_default();
    slot.saved.outside = 0;
    // SAFETY: PR_GET_NAME writes 16 bytes.
    let _ = unsafe { process::prctl(libc::PR_GET_NAME, slot.saved.name.as_mut_ptr() as usize, 0, 0, 0) };
    if takes(signal::pending()) != 0 {
        // Looked at when everything stands still: that takes descriptors, which the program may have none of left.
        life.late.store(1, Ordering::Release);
    }
    let leads = life.leader.compare_exchange(0, slot.index + 1, Ordering::AcqRel, Ordering::Acquire).is_ok();
    park(slot, life, parked::SAVED);
    if leads {
        // A fork that is under way ends first: its child still needs this thread's memory as it is, and the scratch.
        while life.stop.compare_exchange(stop::NONE, stop::SAVE, Ordering::AcqRel, Ordering::Acquire).is_err() {
            let _ = process::futex_wait(&life.round, life.round.load(Ordering::Acquire), PATIENCE);
        }
        let (scratch, bytes) = control::scratch();
        // SAFETY: the leader alone uses the scratch memory: its upper end is the stack, the rest is for the families.
        unsafe { zhuque_on_stack(scratch + bytes, lead, slot as *mut Slot as u64) };
    }
    let mut answered = 0;
    loop {
        collection(life).stand(&mut answered, || process_state::note_pending(slot), &control::Kernel);
    }
}

/// The words by which the leader asks the others to look for signals once more.
fn collection(life: &Life) -> Collection<'_> {
    Collection { round: &life.round, collect: &life.collect, collected: &life.collected }
}

/// A signal has been sent by one of the program's threads to another. If power is failing the target may have looked for
/// pending signals already, so all will look once more. The sender stands still later than this.
pub fn note_sent() {
    if announced() {
        control::life().late.store(1, Ordering::Release);
    }
}

/// Lets every thread look for signals that have come to it since it stands still, if there may be any.
fn collect_signals(life: &Life, leader: &Slot) {
    if life.late.swap(0, Ordering::AcqRel) == 0 {
        return;
    }
    process_state::note_pending(leader);
    let others = saved_threads() - 1;
    collection(life).ask(others, &control::Kernel);
}

/// Marks the thread as standing still.
fn park(slot: &Slot, life: &Life, how: u32) {
    control::life_thread(slot.index as usize).parked.store(how, Ordering::Release);
    let saved = if how == parked::SAVED { life.saved.fetch_add(1, Ordering::AcqRel) + 1 } else { 0 };
    life.parked.fetch_add(1, Ordering::AcqRel);
    // Waking the leader of a save for each thread would cost it a processor; the last one does, or its patience ends.
    if how == parked::FORK || saved >= life.expected.load(Ordering::Acquire) {
        process::futex_wake(&life.parked, 1);
    }
}

/// Stands still until the fork is done.
pub fn park_for_fork(slot: &Slot) {
    let life = control::life();
    let round = life.round.load(Ordering::Acquire);
    if life.stop.load(Ordering::Acquire) != stop::FORK {
        return;
    }
    park(slot, life, parked::FORK);
    while life.round.load(Ordering::Acquire) == round {
        let _ = process::futex_wait(&life.round, round, 0);
    }
    control::life_thread(slot.index as usize).parked.store(parked::NO, Ordering::Release);
}

/// Stops every other thread of the program. The caller holds both locks and has its signals blocked. False if power is
/// failing: then the world stands still for that, and whoever leads it uses the life's scratch memory.
pub fn stop_for_fork(slot: &Slot) -> bool {
    let life = control::life();
    if announced() || life.stop.compare_exchange(stop::NONE, stop::FORK, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    let own = slot.index as usize;
    loop {
        if announced() {
            // Threads may be suspended for long, by vfork: the save knows what to do about them.
            release_after_fork();
            return false;
        }
        let mut running = 0;
        for index in (0..control::slots()).filter(|&index| index != own) {
            // SAFETY: atomic fields of the control mapping.
            let found = unsafe { (*control::slot(index)).state.load(Ordering::Acquire) };
            // A thread that is being born comes to life by itself, and can be called then.
            if found == state::BORN {
                running += 1;
            }
            let alive = found == state::LIVE;
            let thread = control::life_thread(index);
            if alive && thread.parked.load(Ordering::Acquire) == 0 && !waits_for_lock(index) {
                running += 1;
                let _ = signal::send(life.pid, thread.tid.load(Ordering::Acquire), libc::SIGPWR as u32);
            }
        }
        if running == 0 {
            return true;
        }
        let parked = life.parked.load(Ordering::Acquire);
        let _ = process::futex_wait(&life.parked, parked, PATIENCE);
    }
}

/// Whether a thread sleeps until the caller gives up its locks: it does not touch the program's memory.
fn waits_for_lock(index: usize) -> bool {
    control::life_thread(index).lock_wait.load(Ordering::Acquire) != 0
}

/// Lets the world go on after a fork.
pub fn release_after_fork() {
    let life = control::life();
    life.stop.store(stop::NONE, Ordering::Release);
    life.round.fetch_add(1, Ordering::AcqRel);
    process::futex_wake(&life.round, u32::MAX >> 1);
    // A thread that has not left this stop yet would count as stopped in the next one.
    while (0..control::slots()).any(|i| control::life_thread(i).parked.load(Ordering::Acquire) == parked::FORK) {
        process::yield_now();
    }
    if announced() {
        kick();
    }
}

/// The leader's work, on the scratch stack.
extern "C" fn lead(slot: u64) {
    let life = control::life();
    // SAFETY: the leader's own slot, which it does not use otherwise from here on.
    let leader = unsafe { &*(slot as *const Slot) };
    let (scratch, bytes) = control::scratch();
    // This thread's own signal stack holds its saved frame: faults of the copies below get another one.
    // SAFETY: the memory between the families' scratch and this stack is nobody's.
    let _ = unsafe { signal::set_alternate_stack(scratch + bytes / 2, SIGNAL_STACK_BYTES, 0) };
    signal::set_mask(!FAULTS);
    let deadline = life.announced_ns.load(Ordering::Acquire) + life.hold_up_ns.max(1_000_000);
    let Some(descriptors) = gather(life, deadline) else {
        unsaved(Reason::Timeout, b"not every thread could be stopped in time")
    };
    // Also where none are scarce: they are in the list of descriptors, and to list one takes longer than to close it.
    if descriptors.scarce || life.flags & (boot_flag::SYNC_REGION | boot_flag::DAX) == 0 {
        close_empty_slices(life);
    }
    if timers::look() {
        life.late.store(1, Ordering::Release);
    }
    collect_signals(life, leader);
    write_down(life, descriptors.limit, How::Inside)
}

/// The same when a tracer has stopped and taken every thread (`outside`). `descriptors`: as in `write_down`.
pub fn lead_outside(descriptors: [u64; 2]) -> ! {
    write_down(control::life(), descriptors, How::Outside)
}

/// Describes and commits. `descriptors`: the limit of their number as the program knows it.
fn write_down(life: &Life, descriptors: [u64; 2], how: How) -> ! {
    let stopped = time::now(libc::CLOCK_MONOTONIC) as u64;
    // SAFETY: everything stands still.
    unsafe { (*control::header()).how = how as u32 };
    let mut journal = Journal::open();
    if let Err(failure) = describe(&mut journal, descriptors) {
        let reason = if journal.full { Reason::Journal } else { Reason::Unsupported };
        unsaved(reason, failure.message());
    }
    // The program's clocks stop when it has been read what remains of its timers, and go on before those are armed again:
    // a timer may then be late by these clocks, never early.
    commit(life, stopped, clocks::still(), &journal)
}

/// Calls every thread until all of them stand still; `None` when time is up. What the save may open is known then.
///
/// Every thread that parks wakes the leader, which only counts slots then. The kernel is asked when the slots say that all
/// are there: threads that stand still do not end, so if it has as many there is no other. Its list, which costs a
/// microsecond a thread and a descriptor, is read where it has more: nobody takes descriptors of the program's any more then.
fn gather(life: &Life, deadline: u64) -> Option<Room> {
    let (mut called, mut room) = (0, None);
    loop {
        // Read before the count, so that a thread which parks meanwhile ends the wait below at once.
        let parked = life.parked.load(Ordering::Acquire);
        let now = time::now(libc::CLOCK_MONOTONIC) as u64;
        // Rather too few than too many: the leader would sleep on.
        let saved = saved_threads();
        let (missing, suspended) = standing();
        life.expected.store(saved + missing, Ordering::Release);
        if missing == 0 {
            let alone = suspended == 0 && no_others();
            // Not before it is known that nobody runs any more, where that can be known without a descriptor.
            let room = *room.get_or_insert_with(|| limits::make_room(life));
            if suspended != 0 {
                end_vfork_children();
            } else if alone || call_threads(life) {
                return Some(room);
            }
        }
        if now > deadline {
            return None;
        }
        if now - called > PATIENCE as u64 {
            call_missing(life);
            called = now;
        }
        let _ = process::futex_wait(&life.parked, parked, PATIENCE);
    }
}

/// Numbers of threads that do not stand still: those that can be called, and those that are suspended by a vfork child.
fn standing() -> (u32, u32) {
    let (mut missing, mut suspended) = (0, 0);
    for index in (0..control::slots()).filter(|&index| control::life_thread(index).parked.load(Ordering::Acquire) == 0)
    {
        // SAFETY: plain words; a stale value costs one more look.
        let (state, vfork) = unsafe {
            let slot = control::slot(index);
            ((*slot).state.load(Ordering::Acquire), core::ptr::read_volatile(&raw const (*slot).suspended))
        };
        match (state, vfork) {
            (state::FREE, _) => {}
            (state::LIVE, 1..) => suspended += 1,
            _ => missing += 1,
        }
    }
    (missing, suspended)
}

/// Sends SIGPWR to the threads that do not stand still, by what the slots say.
fn call_missing(life: &Life) {
    for index in 0..control::slots() {
        let thread = control::life_thread(index);
        let tid = thread.tid.load(Ordering::Acquire);
        // SAFETY: an atomic field of the control mapping.
        let live = unsafe { (*control::slot(index)).state.load(Ordering::Acquire) } != state::FREE;
        if live && tid != 0 && thread.parked.load(Ordering::Acquire) != parked::SAVED {
            let _ = signal::send(life.pid, tid, libc::SIGPWR as u32);
        }
    }
}

/// Number of threads that stand still for good.
fn saved_threads() -> u32 {
    control::life().saved.load(Ordering::Acquire)
}

/// A thread that is suspended by its vfork child takes no signal: end the child, as the failure would.
fn end_vfork_children() {
    // Not while the child itself is in the middle of something. Threads that stand still hold neither.
    let _locks = (Lock::memory(), Lock::state());
    for index in 0..control::slots() {
        // SAFETY: plain words; a stale value costs one more look.
        let (suspended, live) = unsafe {
            let slot = control::slot(index);
            (core::ptr::read_volatile(&raw const (*slot).suspended), (*slot).state.load(Ordering::Acquire))
        };
        let thread = control::life_thread(index);
        if live != state::LIVE || suspended == 0 || thread.parked.load(Ordering::Acquire) != 0 {
            continue;
        }
        let tid = u64::from(thread.tid.load(Ordering::Acquire));
        let mut path = fs::Path::new();
        path.push(b"/proc/thread-self/../").push_number(tid).push(b"/children");
        let mut buffer = [0u8; 1024];
        let Ok(text) = crate::entry::maps::read_whole(path.as_bytes(), &mut buffer) else { continue };
        for word in text.split(|&byte| byte == b' ') {
            if let Some((pid, _)) = crate::entry::maps::number(word, 10) {
                family::processes::end_by_failure(pid as u32);
            }
        }
    }
}

/// Whether the process has no more threads than those that stand still. One call tells: the links of their directory are
/// the two of any and one for each, also for one that has ended before the others (proc_pident_instantiate and
/// proc_task_getattr in fs/proc/base.c).
fn no_others() -> bool {
    // Before the kernel is asked: they stay, so if it has as many then, there is nobody who could make another one. The
    // other way round, one that has been born meanwhile would be missed, if the one that has made it stands still by now.
    let saved = u64::from(saved_threads());
    let mut path = fs::Path::new();
    path.push(b"/proc/thread-self/..");
    fs::stat_at(libc::AT_FDCWD, &path, 0).is_ok_and(|found| found.st_nlink == saved + 2)
}

/// Sends SIGPWR to every thread of the process that does not stand still. Whether there was none.
fn call_threads(life: &Life) -> bool {
    let mut buffer = [0u8; 4096];
    let mut path = fs::Path::new();
    path.push(b"/proc/thread-self/../");
    let (mut tasks, mut missing, mut near) = (0, 0, 0);
    let mut each = |tid: u32| {
        match parked_slot(tid, near) {
            Some(index) => near = index + 1,
            None if tid == life.pid && main_thread_ended(tid) => return,
            None => {
                missing += 1;
                let _ = signal::send(life.pid, tid, libc::SIGPWR as u32);
            }
        }
        tasks += 1;
    };
    if fs::numbers_in(&path, &mut buffer, false, &mut each).is_err() {
        return false;
    }
    missing == 0 && tasks == saved_threads()
}

/// Whether the main thread has ended before the others: the kernel keeps it on its list, as a zombie.
fn main_thread_ended(tid: u32) -> bool {
    let mut path = fs::Path::new();
    path.push(b"/proc/thread-self/../").push_number(u64::from(tid)).push(b"/stat");
    let mut buffer = [0u8; 512];
    let Ok(text) = crate::entry::maps::read_whole(path.as_bytes(), &mut buffer) else { return false };
    // The name in parentheses may hold anything; the state follows the last one.
    let close = text.iter().rposition(|&byte| byte == b')');
    close.and_then(|close| text.get(close + 2)).is_some_and(|&state| state == b'Z')
}

/// The slot of a thread that stands still for good, looked for from `near` on: both lists are mostly in one order.
fn parked_slot(tid: u32, near: usize) -> Option<usize> {
    let slots = control::slots();
    (near..slots).chain(0..near.min(slots)).find(|&index| {
        let thread = control::life_thread(index);
        thread.tid.load(Ordering::Acquire) == tid && thread.parked.load(Ordering::Acquire) == parked::SAVED
    })
}

/// Slices in which nothing is mapped have no content to be written back, but perhaps holes.
fn close_empty_slices(life: &Life) {
    // SAFETY: everything stands still.
    let tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
    for (index, &fd) in (0u64..).zip(&life.descriptors.slices) {
        if tree.range(index * SLICE_BYTES, (index + 1) * SLICE_BYTES).next().is_none() {
            if life.flags & boot_flag::SYNC_REGION != 0 {
                let _ = fs::sync_data(fd);
            }
            let _ = fs::close(fd);
        }
    }
}

/// Writes down what only the kernel holds. `descriptors`: the limit of their number as the program knows it.
fn describe(journal: &mut Journal, descriptors: [u64; 2]) -> Result<(), family::Failure> {
    let life = control::life();
    let (scratch, bytes) = control::scratch();
    // SAFETY: the lower part of the scratch memory; the stack above is far from it.
    let scratch = unsafe { core::slice::from_raw_parts_mut(scratch as *mut u8, bytes as usize / 2) };
    let room = (scratch.as_mut_ptr(), scratch.len());
    let any_connects = connects(None);
    family::processes::note_ended();
    let outside = crate::outside::is_outside();
    process_state::describe(journal, scratch, descriptors)?;
    // SAFETY: everything stands still.
    let globals = unsafe { &*control::globals() };
    let own = &life.descriptors;
    let mut capture = family::Capture {
        put: &mut |record| journal.put(record),
        scratch,
        pid: life.pid,
        virtual_pid: family::ids::virtual_pid(),
        virtual_thread: &family::ids::virtual_thread,
        own: own.first..own.end,
        stdio: &globals.stdio,
        region_directory: own.directory,
        file_sync: life.flags & boot_flag::FILE_SYNC != 0,
        power: true,
        backlog: &|_| None,
        connecting: &|fd| any_connects && connects(Some(fd)),
        mapped_shared: &|device, inode| match outside {
            true => crate::outside::mapped_shared(device, inode),
            false => process_state::mapped_shared(device, inode),
        },
        timer_patience_ns: family::TIMER_PATIENCE_NS,
    };
    family::capture(&mut capture)?;
    match outside {
        // SAFETY: as above; the families are through with it.
        true => crate::outside::describe(journal, unsafe { core::slice::from_raw_parts_mut(room.0, room.1) }),
        false => family::mapped_files::refresh(journal.written()),
    }
}

/// Whether a thread was in connect(2), of this descriptor if one is given, which a resume issues again. Of one that was
/// taken from outside it may be that it has been. Everything stands still.
fn connects(fd: Option<i32>) -> bool {
    (0..control::slots()).any(|index| {
        // SAFETY: nobody writes to slots any more, and the frame of a saved thread lies in its slot.
        unsafe {
            let slot = &*control::slot(index);
            let saved = &slot.saved;
            if slot.state.load(Ordering::Relaxed) == state::FREE || saved.frame == 0 {
                return false;
            }
            let machine = &(*(saved.frame as *const Context)).machine;
            let call = match saved.outside {
                0 => (saved.retry.valid != 0).then_some((saved.retry.number, machine.rdi)),
                _ => place::call_under_way(machine, slot),
            };
            call.is_some_and(|(number, of)| number == libc::SYS_connect as u64 && fd.is_none_or(|fd| of as i32 == fd))
        }
    })
}

/// Makes the save true: checksums, header, then the one store.
fn commit(life: &Life, stopped: u64, clocks: [u64; 3], journal: &Journal) -> ! {
    let begun = life.announced_ns.load(Ordering::Acquire);
    // SAFETY: everything stands still.
    let header = unsafe { &mut *control::header() };
    header.journal_bytes = journal.written().len() as u64;
    header.journal_checksum = codec::checksum(0, journal.written());
    header.reason = Reason::Power as u32;
    header.detail = [0; 256];
    header.threads = saved_threads();
    [header.saved_monotonic_ns, header.saved_boottime_ns, header.saved_raw_ns] = clocks;
    header.save_stop_ns = stopped - begun;
    header.control_checksum = control_checksum();
    if life.flags & boot_flag::SYNC_REGION != 0 {
        write_back::region(life);
    }
    if life.flags & (boot_flag::SYNC_REGION | boot_flag::DAX) != 0 {
        write_back::metadata(life);
    }
    header.saved_realtime_ns = time::now(libc::CLOCK_REALTIME) as u64;
    header.save_total_ns = time::now(libc::CLOCK_MONOTONIC) as u64 - begun;
    header.checksum = header_checksum(header);
    let word = phase_word(life.generation, Phase::Saved);
    control::phase().store(word, Ordering::Release);
    if life.flags & boot_flag::SYNC_REGION != 0 {
        write_back::control();
    }
    end(STATUS)
}

/// CRC-32 of the header page with phase and checksum as zero.
fn header_checksum(header: &Header) -> u32 {
    let mut page = [0u8; PAGE as usize];
    // SAFETY: the header page is a whole page of the control mapping.
    let bytes = unsafe { core::slice::from_raw_parts(header as *const Header as *const u8, PAGE as usize) };
    page.copy_from_slice(bytes);
    page[core::mem::offset_of!(Header, phase)..][..8].fill(0);
    page[core::mem::offset_of!(Header, checksum)..][..4].fill(0);
    codec::checksum(0, &page)
}

/// Digest of globals, file table, site table, nodes, timers and slots in use; see [`Header::control_checksum`].
fn control_checksum() -> u32 {
    let part = |seed: u32, start: u64, bytes: u64| {
        // SAFETY: the ranges lie in the control mapping, and everything stands still.
        codec::digest(seed, unsafe {
            core::slice::from_raw_parts((control::base() + start) as *const u8, bytes as usize)
        })
    };
    // SAFETY: as above.
    let globals = unsafe { &*control::globals() };
    let mut sum = part(0, zhuque_abi::layout::GLOBALS_OFFSET, size_of_val(globals) as u64);
    sum = part(sum, FILES_OFFSET + 2048, u64::from(globals.files) * 2048);
    sum = part(sum, SITES_OFFSET, u64::from(globals.sites) * size_of::<zhuque_abi::header::Patched>() as u64);
    sum = part(sum, NODES_OFFSET + 64, u64::from(globals.tree.used) * 64);
    sum = part(sum, TIMERS_OFFSET, u64::from(globals.timers.load(Ordering::Relaxed)) * size_of::<Timer>() as u64);
    for index in 0..control::slots() {
        let slot = control::slot(index);
        // SAFETY: as above.
        if unsafe { (*slot).state.load(Ordering::Relaxed) } != state::FREE {
            let at = slot as u64 - control::base();
            sum = part(sum, at, size_of::<Slot>() as u64);
            // SAFETY: as above.
            if let Some((offset, bytes)) = saved_frame(slot as u64, unsafe { (*slot).saved.frame }) {
                sum = part(sum, at + offset, bytes);
            }
        }
    }
    sum
}

/// The save has failed: says why in the header, and ends.
fn unsaved(reason: Reason, detail: &[u8]) -> ! {
    // SAFETY: nothing of the program runs any more.
    let header = unsafe { &mut *control::header() };
    header.reason = reason as u32;
    header.detail = [0; 256];
    let length = detail.len().min(255);
    header.detail[..length].copy_from_slice(&detail[..length]);
    let mut text = crate::text::Text::of(b"not saved: ");
    text.push(detail);
    crate::die::say(&text);
    control::phase().store(phase_word(control::life().generation, Phase::Unsaved), Ordering::Release);
    end(crate::die::STATUS)
}

/// The same, of a save from outside.
pub fn unsaved_outside(detail: &[u8]) -> ! {
    unsaved(Reason::Unsupported, detail)
}

/// Tells whoever waits for the phase, and ends the process.
fn end(status: i32) -> ! {
    // SAFETY: the low half of the phase word, as the futex that `zhuque fail` waits on.
    let word = unsafe { &*(control::phase().as_ptr() as *const AtomicU32) };
    process::futex_wake(word, u32::MAX >> 1);
    process::exit_group(status)
}

/// Signals that may be put back by a resume: all but those that the gate owns.
pub fn takes(set: u64) -> u64 {
    set & !NEVER_BLOCKED
}

/// Whether the program handles its own power signal; asked before a new life's threads run.
pub fn has_recovery_handler() -> bool {
    signals::action_now(libc::SIGPWR as u32).0.handler > 1
}
