//! POSIX timers (timer_create(2)), which tell the program by a signal.
//!
//! The kernel's ids begin anew in each life, so the program is given places in a table of the region ([`Timer`]), and an
//! entry says which timer of the kernel's that is in this life. Whoever finds that it is none, since it was saved from
//! outside between creating one and noting it, creates one ([`in_this_life`]).
//!
//! A timer that expires while it is being saved must be told once: what remains is read first ([`look`]), pending signals
//! are taken after that (`process_state`), and a timer whose signal is among them ([`note_told`]) is looked at once more.
//! Its signal stands for all of its expirations until the program takes it, as in the kernel. A resume has the kernel raise
//! it again, by arming the timer for a time that is over ([`raise_again`]): to whom, with which overrun, and how many of one
//! number can be pending is the kernel's affair then. Neighbours: `clocks` (offsets), `signals` (siginfos name timers,
//! [`name_in`]).
#![allow(unsafe_code)]

use super::{Failure, clocks, ids};
use crate::control::{self, Lock};
use crate::gate::{Result64, error, say_refused, wait_call};
use crate::journal::Journal;
use crate::user;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use zhuque_abi::codec::Records;
use zhuque_abi::journal::Record;
use zhuque_abi::layout::{MAX_TIMERS, PAGE, TIMERS_OFFSET};
use zhuque_abi::slot::{SigInfo, Slot};
use zhuque_abi::timers::{FIRST_ID, LIVES_BEFORE, SI_TIMER, Timer, kernel_word, state};
use zhuque_sys::time::{self, SigEvent};
use zhuque_sys::{Errno, fs};

const SIGEV_NONE: i32 = libc::SIGEV_NONE;
const SIGEV_THREAD_ID: i32 = libc::SIGEV_THREAD_ID;
/// [`Timer::overrun`] of a timer whose signal the program has not taken by the gate: it may read them from a signalfd.
const UNTAKEN: i32 = -1;
/// An id that no timer has.
const NOBODY: u64 = -1i64 as u64;
/// Places in `Slot::scratch`: a sigevent, an id of the kernel's.
const EVENT: usize = 16;
const ID: usize = 24;

/// Clocks of CPU time (include/linux/posix-timers_types.h): a thread's or a process's id, inverted, above these bits.
const CLOCK_BITS: u32 = 3;
const CLOCK_OF_THREAD: i32 = 4;
/// The kind of clock that counts all time on a processor.
const CLOCK_SCHEDULED: i32 = 2;
/// Of a clock that is a device's.
const CLOCK_OF_DEVICE: i32 = 3;

/// An entry of the table.
fn entry(index: usize) -> &'static Timer {
    let at = control::base() + TIMERS_OFFSET + (index.min(MAX_TIMERS - 1) * size_of::<Timer>()) as u64;
    // SAFETY: the table lies in the control mapping, and all that it holds are atomics.
    unsafe { &*(at as *const Timer) }
}

/// Entries that have been used.
fn used() -> usize {
    // SAFETY: an atomic field.
    unsafe { (*control::globals()).timers.load(Acquire) as usize }
}

/// Timers that the kernel has, or is to have, with their indices.
fn made() -> impl Iterator<Item = (usize, &'static Timer)> {
    let there = |timer: &Timer| matches!(timer.state.load(Acquire), state::MADE | state::LEAVING);
    (0..used()).map(|index| (index, entry(index))).filter(move |(_, timer)| there(timer))
}

/// One of the calls about timers.
pub fn serve(slot: &mut Slot, number: i64, mut a: [u64; 6]) -> Result64 {
    if slot.borrowed != 0 {
        // A vfork child's timers are its own, and end with it.
        return wait_call(slot, number, a);
    }
    if number == libc::SYS_timer_create {
        return create(slot, a);
    }
    let index = (a[0] as u32).wrapping_sub(FIRST_ID) as usize;
    let timer = entry(index);
    let deletes = number == libc::SYS_timer_delete;
    // Who deletes it is the only one. Nobody makes it again, for a life in which the kernel does not have it any more.
    let next = if deletes { state::LEAVING } else { state::MADE };
    if index >= used() || timer.state.compare_exchange(state::MADE, next, AcqRel, Acquire).is_err() {
        a[0] = NOBODY;
        return wait_call(slot, number, a);
    }
    let stays = |_: &Errno| timer.state.store(state::MADE, Release);
    if deletes {
        a[0] = in_this_life(slot, timer).inspect_err(stays)?;
        let deleted = wait_call(slot, number, a).inspect_err(stays)?;
        release(index);
        return Ok(deleted);
    }
    a[0] = in_this_life(slot, timer)?;
    match number {
        libc::SYS_timer_settime => settime(slot, timer, a),
        libc::SYS_timer_getoverrun => {
            // The kernel's is of the last signal that it has given, which the program may not have yet.
            let counted = wait_call(slot, number, a)?;
            let taken = timer.overrun.load(Relaxed);
            Ok(if taken == UNTAKEN { counted } else { taken as u64 })
        }
        _ => wait_call(slot, number, a),
    }
}

/// timer_create(2).
fn create(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let [clock, event, id, ..] = a;
    let refuse = |what: &[u8], why: &[u8], errno| {
        say_refused(libc::SYS_timer_create as u64, what, why);
        error(errno)
    };
    // SAFETY: any bytes are a sigevent.
    let event: Option<SigEvent> = if event == 0 { None } else { Some(unsafe { user::read(event) }?) };
    if event.is_some_and(|event| event.notify != SIGEV_NONE && event.signal == libc::SIGPWR) {
        return refuse(b"a timer that sends SIGPWR", b"that announces a power failure", libc::EINVAL);
    }
    let Some(clock) = named_clock(slot, clock as i32) else {
        let why = b"that process is another one after a failure";
        return refuse(b"a timer of another process's CPU time", why, libc::EINVAL);
    };
    let Some(index) = take(clock, event)? else {
        return refuse(b"a timer", b"there is no room for more than 65,536", libc::EAGAIN);
    };
    let timer = entry(index);
    let made = in_this_life(slot, timer).and_then(|kernel| {
        timer.state.store(state::MADE, Release);
        // SAFETY: the program's memory.
        unsafe { user::write(id, &(FIRST_ID + index as u32)) }.inspect_err(|_| {
            let _ = wait_call(slot, libc::SYS_timer_delete, [kernel, 0, 0, 0, 0, 0]);
        })
    });
    if made.is_err() {
        release(index);
    }
    made.map(|()| 0)
}

/// Takes an entry for a timer that is about to be made, if there is one left.
fn take(clock: i32, event: Option<SigEvent>) -> Result<Option<usize>, Errno> {
    let _lock = Lock::state();
    // SAFETY: atomic fields; the lock makes this the only writer.
    let (all, taken) = unsafe { (&(*control::globals()).timers, &(*control::globals()).timers_taken) };
    let end = all.load(Relaxed) as usize;
    let free = (taken.load(Relaxed) as usize..end).find(|&index| entry(index).state.load(Relaxed) == state::FREE);
    let index = free.unwrap_or(end);
    if index >= MAX_TIMERS {
        return Ok(None);
    }
    let at = TIMERS_OFFSET + (index * size_of::<Timer>()) as u64;
    if free.is_none() && at % PAGE < size_of::<Timer>() as u64 {
        // Where the store is full by now, it is said here, and not by a SIGBUS. The entry at the end of a page goes on in
        // the next one.
        let page = at & !(PAGE - 1);
        fs::allocate(control::life().descriptors.control, page, 2 * PAGE).map_err(|_| Errno(libc::EAGAIN))?;
    }
    // As the kernel has it where nothing is asked for.
    let usual = SigEvent { value: u64::from(FIRST_ID) + index as u64, signal: libc::SIGALRM, ..SigEvent::default() };
    let event = event.unwrap_or(usual);
    let timer = entry(index);
    // First, so that nobody finds it by these.
    timer.kernel.store(0, Release);
    timer.before.iter().for_each(|before| before.store(0, Release));
    timer.clock.store(clock, Relaxed);
    timer.notify.store(event.notify, Relaxed);
    timer.signal.store(event.signal as u32, Relaxed);
    timer.thread.store(event.thread as u32, Relaxed);
    timer.value.store(event.value, Relaxed);
    timer.absolute.store(0, Relaxed);
    timer.overrun.store(UNTAKEN, Relaxed);
    timer.state.store(state::TAKEN, Release);
    all.store(end.max(index + 1) as u32, Release);
    taken.store(index as u32 + 1, Relaxed);
    Ok(Some(index))
}

/// Gives an entry back.
fn release(index: usize) {
    let _lock = Lock::state();
    entry(index).state.store(state::FREE, Release);
    // SAFETY: an atomic field, written under the lock.
    unsafe { (*control::globals()).timers_taken.fetch_min(index as u32, Relaxed) };
}

/// The kernel's id of a timer, if it has one in this life.
fn kernel_id(timer: &Timer) -> Option<u32> {
    let word = timer.kernel.load(Acquire);
    (word != 0 && word >> 32 == control::generation()).then_some((word as u32).wrapping_sub(1))
}

/// The kernel's id of a timer in this life. Where it has none it is made. What is put off meanwhile is as in [`wait_call`].
fn in_this_life(slot: &mut Slot, timer: &Timer) -> Result64 {
    let life = control::generation();
    let word = timer.kernel.load(Acquire);
    if let Some(id) = kernel_id(timer) {
        return Ok(u64::from(id));
    }
    let (clock, event) = for_kernel(timer, &|thread| ids::real(thread as i32) as u32);
    // SAFETY: eight words each.
    let words: [u64; 8] = unsafe { core::mem::transmute(event) };
    slot.scratch[EVENT..EVENT + words.len()].copy_from_slice(&words);
    let (event, made) = (&raw const slot.scratch[EVENT] as u64, &raw const slot.scratch[ID] as u64);
    // Not begun in another life than that of the thread's id; and where it is another one by the end, the word says so.
    wait_call(slot, libc::SYS_timer_create, [clock as u64, event, made, 0, 0, 0])?;
    let kernel = slot.scratch[ID] as u32;
    if timer.kernel.compare_exchange(word, kernel_word(life, kernel), AcqRel, Acquire).is_err() {
        // Another thread was faster: ask it again.
        let _ = wait_call(slot, libc::SYS_timer_delete, [u64::from(kernel), 0, 0, 0, 0, 0]);
        return crate::gate::again(slot);
    }
    Ok(u64::from(kernel))
}

/// Clock and sigevent by which the kernel is asked for a timer. `real`: the kernel's id of a thread.
fn for_kernel(timer: &Timer, real: &dyn Fn(u32) -> u32) -> (i32, SigEvent) {
    let notify = timer.notify.load(Relaxed);
    let signal = timer.signal.load(Relaxed) as i32;
    let mut event = SigEvent { value: timer.value.load(Relaxed), signal, notify, ..SigEvent::default() };
    if notify & SIGEV_THREAD_ID != 0 {
        event.thread = real(timer.thread.load(Relaxed)) as i32;
    }
    (kernel_clock(timer.clock.load(Relaxed), real), event)
}

/// The clock of a thread's CPU time.
fn clock_of_thread(thread: u32, kind: i32) -> i32 {
    !(thread as i32) << CLOCK_BITS | CLOCK_OF_THREAD | kind & 3
}

/// Whose CPU time a clock counts: an id, 0 for this process, and whether it is a thread's.
fn counted(clock: i32) -> Option<(u32, bool)> {
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID => Some((0, false)),
        0.. => None,
        _ if clock & 7 == CLOCK_OF_DEVICE => None,
        _ => Some((!(clock >> CLOCK_BITS) as u32, clock & CLOCK_OF_THREAD != 0)),
    }
}

/// A clock as a table of the region names it, for every thread and in every life. None: another process's.
fn named_clock(slot: &Slot, clock: i32) -> Option<i32> {
    let own = slot.virtual_tid.load(Relaxed);
    if clock == libc::CLOCK_THREAD_CPUTIME_ID {
        return Some(clock_of_thread(own, CLOCK_SCHEDULED));
    }
    match counted(clock) {
        Some((0, true)) => Some(clock_of_thread(own, clock)),
        Some((process, false)) if process == ids::virtual_pid() => Some(!0 << CLOCK_BITS | clock & 3),
        Some((1.., false)) => None,
        _ => Some(clock),
    }
}

/// The kernel's name of such a clock in this life.
fn kernel_clock(clock: i32, real: &dyn Fn(u32) -> u32) -> i32 {
    match counted(clock) {
        Some((thread, true)) => clock_of_thread(real(thread), clock),
        _ => clock,
    }
}

/// timer_settime(2).
fn settime(slot: &mut Slot, timer: &Timer, mut a: [u64; 6]) -> Result64 {
    let absolute = a[1] as i32 & libc::TIMER_ABSTIME != 0;
    if absolute && a[2] != 0 {
        a[2] = clocks::moved_setting(slot, timer.clock.load(Relaxed), a[2])?;
    }
    let set = wait_call(slot, libc::SYS_timer_settime, a)?;
    // A save from outside between the two takes a time for a date, or a date for a time, where the program has just put one
    // in the place of the other.
    timer.absolute.store(u32::from(absolute), Relaxed);
    let _ = timer.overrun.fetch_update(Relaxed, Relaxed, |taken| (taken != UNTAKEN).then_some(0));
    Ok(set)
}

/// Whether a siginfo is a timer's, and by which id it names it.
fn id_in(info: &SigInfo) -> Option<u32> {
    ((info[1] & 0xffff_ffff) as i32 == SI_TIMER).then_some(info[2] as u32)
}

/// Overrun in a timer's siginfo.
fn overrun_in(info: &SigInfo) -> u32 {
    (info[2] >> 32) as u32
}

/// The timer that has a word. It is mostly where the id says: the kernel counts as this table does.
fn find(id: u32, has: &dyn Fn(&Timer) -> bool) -> Option<usize> {
    let all = used();
    (0..all).map(|ahead| (id as usize + ahead) % all).find(|&index| has(entry(index)))
}

/// The timer that the kernel means by a siginfo of this life, or of one before, where its thread had it in hand when it was
/// taken over: one of these tells the same.
fn meant(info: &SigInfo) -> Option<usize> {
    let id = id_in(info).filter(|&id| id < FIRST_ID)?;
    let tells = |timer: &Timer| {
        (u64::from(timer.signal.load(Relaxed)), timer.value.load(Relaxed)) == (info[0] & 0xffff_ffff, info[3])
    };
    clocks::in_one_life(|| {
        let life = control::generation();
        let now = find(id, &|timer| timer.kernel.load(Acquire) == kernel_word(life, id) && tells(timer));
        now.or_else(|| (1..=LIVES_BEFORE as u64).find_map(|back| was(life.checked_sub(back)?, id, &tells)))
    })
}

/// The timer that was the kernel's `id` in the life `generation`.
fn was(generation: u64, id: u32, also: &dyn Fn(&Timer) -> bool) -> Option<usize> {
    let word = kernel_word(generation, id);
    find(id, &|timer| timer.before(generation).load(Acquire) == word && also(timer))
}

/// Makes the kernel's siginfo of a timer name it as the program does.
pub fn name_in(info: &mut SigInfo) {
    if let Some(index) = meant(info) {
        set_name(info, index);
    }
}

fn set_name(info: &mut SigInfo, index: usize) {
    info[2] = info[2] & !0xffff_ffff | (u64::from(FIRST_ID) + index as u64);
}

/// The program takes a signal, which names its timer by the program's id if it is one's.
pub fn note_taken(info: &SigInfo) {
    if let Some(index) = id_in(info).and_then(|id| id.checked_sub(FIRST_ID)).filter(|&index| (index as usize) < used())
    {
        entry(index as usize).overrun.store(overrun_in(info) as i32, Relaxed);
    }
}

/// At a save, while everything stands still and before the last look at pending signals: notes what remains. Whether a
/// thread alone is told by one of them, perhaps since it has looked for signals.
pub fn look() -> bool {
    let mut alone = false;
    for (_, timer) in made() {
        timer.told.store(0, Relaxed);
        look_at(timer);
        alone |= timer.notify.load(Relaxed) & SIGEV_THREAD_ID != 0;
    }
    alone
}

/// The clock that shows the same time, and that anybody may ask.
fn plain(clock: i32) -> i32 {
    match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    }
}

/// The clock of a timer that was set to a time of the calendar's, which goes on without the program.
fn dated(timer: &Timer) -> Option<i32> {
    let clock = plain(timer.clock.load(Relaxed));
    let calendar = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_TAI);
    (calendar && timer.absolute.load(Relaxed) != 0).then_some(clock)
}

/// Notes what remains of one timer.
fn look_at(timer: &Timer) {
    let found = kernel_id(timer).and_then(|id| time::timer_remaining(id).ok());
    let (mut value_ns, interval_ns) = found.unwrap_or((0, 0));
    if let Some(clock) = dated(timer).filter(|_| value_ns != 0) {
        value_ns += time::now(clock) as u64;
    }
    timer.value_ns.store(value_ns, Relaxed);
    timer.interval_ns.store(interval_ns, Relaxed);
}

/// What a pending signal is for the save that has taken it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// No timer's.
    No,
    /// The first of a timer's that is found: it is written down as the kernel has it.
    First,
    /// A timer's that has been written down: it has expired once more since.
    Again,
}

/// A pending signal has been taken from the kernel.
pub fn note_told(info: &SigInfo) -> Told {
    let Some(timer) = meant(info).map(entry) else { return Told::No };
    match timer.told.fetch_add(overrun_in(info).saturating_add(1), Relaxed) {
        0 => Told::First,
        _ => Told::Again,
    }
}

/// The same of signals that a tracer has written down: `taken` ones, which the kernel has no more, and others that are
/// pending for their threads.
pub fn note_told_outside(taken: &[u8], pending: &[u8]) {
    let infos = |written| {
        Records::new(written).flatten().filter_map(|record| match record {
            Record::PendingSignal { info, .. } => Some(info),
            _ => None,
        })
    };
    for info in infos(taken) {
        note_told(&info);
    }
    for info in infos(pending) {
        let armed = |timer: &Timer| timer.value_ns.load(Relaxed) != 0 && timer.interval_ns.load(Relaxed) == 0;
        // One that is still to expire has been set since: Linux 6.13 and later leave its signal there, and do not deliver it.
        if !meant(&info).is_some_and(|index| armed(entry(index))) {
            note_told(&info);
        }
    }
}

/// How many signals of timers that have been told may come between two others.
pub fn most_told() -> usize {
    used() * 2 + 16
}

/// Writes them down, behind the pending signals.
pub fn describe(journal: &mut Journal) -> Result<(), Failure> {
    for (index, timer) in made() {
        let there = match kernel_id(timer) {
            Some(id) => time::timer_remaining(id).is_ok(),
            None => timer.state.load(Relaxed) == state::MADE,
        };
        if !there {
            // Deleted, by a thread that has not noted that yet.
            continue;
        }
        let told = timer.told.load(Relaxed);
        if told != 0 {
            // It goes on from here: what has been before is told.
            look_at(timer);
        }
        journal.put(&Record::Timer {
            index: index as u32,
            clock: timer.clock.load(Relaxed),
            notify: timer.notify.load(Relaxed),
            signal: timer.signal.load(Relaxed),
            thread: timer.thread.load(Relaxed),
            value: timer.value.load(Relaxed),
            absolute: dated(timer).is_some(),
            value_ns: timer.value_ns.load(Relaxed),
            interval_ns: timer.interval_ns.load(Relaxed),
            told,
        })?;
    }
    Ok(())
}

/// A timer that has been made again, until the program runs.
#[derive(Clone, Copy, Default)]
struct Again {
    /// The kernel's id plus one; 0: it has not been.
    id: u32,
    told: u32,
    clock: i32,
    /// 1: `value_ns` is a time on its clock.
    absolute: u32,
    /// 1: it is.
    armed: u32,
    value_ns: u64,
    interval_ns: u64,
}

/// All of them, by their indices.
fn again() -> &'static mut [Again] {
    let (scratch, _) = control::scratch();
    // SAFETY: behind the families nobody uses the lower part of the scratch memory; single-threaded.
    unsafe { core::slice::from_raw_parts_mut(scratch as *mut Again, used().min(MAX_TIMERS)) }
}

/// In a new life: makes them again, not armed. `real`: the kernel's id of a thread, if it lives. Writes nothing to the
/// region.
pub fn revive(journal: &[u8], real: &dyn Fn(u32) -> Option<u32>) -> Result<(), Failure> {
    again().fill(Again::default());
    for record in Records::new(journal).flatten() {
        let Record::Timer { index, clock, notify, signal, thread, value, absolute, value_ns, interval_ns, told } =
            record
        else {
            continue;
        };
        let failed = |error| Failure::new(b"cannot create a timer: ").errno(error);
        let place = again().get_mut(index as usize).ok_or_else(|| failed(Errno(libc::ENOENT)))?;
        let timer = Timer::default();
        let stopped = counted(clock).is_some_and(|(thread, alone)| alone && real(thread).is_none());
        let deaf = notify & SIGEV_THREAD_ID != 0 && real(thread).is_none();
        // The time of a thread that has ended stands still. No other thread has such a clock.
        timer.clock.store(if stopped { libc::CLOCK_PROCESS_CPUTIME_ID } else { clock }, Relaxed);
        timer.notify.store(if stopped || deaf { SIGEV_NONE } else { notify }, Relaxed);
        timer.signal.store(signal, Relaxed);
        timer.thread.store(thread, Relaxed);
        timer.value.store(value, Relaxed);
        let (kernel, event) = for_kernel(&timer, &|thread| real(thread).unwrap_or(0));
        let id = make_again(kernel, &event).map_err(failed)?.wrapping_add(1);
        let (absolute, armed) = (absolute.into(), stopped.into());
        *place = Again { id, told, clock, absolute, armed, value_ns, interval_ns };
    }
    Ok(())
}

/// A timer that may wake the machine needs rights that the resumed program may not have: then it does not wake it.
fn make_again(clock: i32, event: &SigEvent) -> Result<u32, Errno> {
    time::timer_create(clock, event).or_else(|error| match plain(clock) {
        same if same == clock => Err(error),
        plain => time::timer_create(plain, event),
    })
}

/// Behind the commit: notes what they are in this life.
pub fn note() {
    for (index, again) in again().iter().enumerate() {
        let timer = entry(index);
        let last = timer.kernel.load(Relaxed);
        if last != 0 {
            timer.before(last >> 32).store(last, Relaxed);
        }
        if again.id != 0 {
            timer.kernel.store(kernel_word(control::generation(), again.id - 1), Release);
        }
    }
}

/// Makes a signal pending again that a timer had raised, behind [`note`]: the kernel raises it. `Some`: it cannot; then
/// the caller queues it, for that thread, 0 for the process.
pub fn raise_again(thread: u32, info: &mut SigInfo) -> Option<u32> {
    let Some(id) = id_in(info).filter(|&id| id < FIRST_ID) else { return Some(thread) };
    let last = control::generation().checked_sub(1);
    let Some(index) = last.and_then(|last| was(last, id, &|_| true)) else { return Some(thread) };
    set_name(info, index);
    // One that has been deleted tells nobody any more, as since Linux 6.13.
    let again = again().get_mut(index).filter(|again| again.id != 0)?;
    let told = core::mem::take(&mut again.told);
    if told == 0 {
        // Raised already, or none that the kernel would have delivered.
        return None;
    }
    let over = match again.interval_ns {
        // Time may stand still on its clock, or it has been set again since.
        _ if counted(again.clock).is_some() => None,
        0 if again.value_ns != 0 => None,
        0 => Some((0, 1)),
        period => begun(again, period.saturating_mul(told.into())).map(|since| (libc::TIMER_ABSTIME, since)),
    };
    let Some((flags, since)) = over else {
        let timer = entry(index);
        info[2] = info[2] & 0xffff_ffff | u64::from(told - 1) << 32;
        let alone = timer.notify.load(Relaxed) & SIGEV_THREAD_ID != 0;
        return Some(if alone { timer.thread.load(Relaxed) } else { 0 });
    };
    again.armed = 1;
    let _ = time::timer_set(again.id - 1, flags, since, again.interval_ns);
    None
}

/// When a timer with a period was to expire for the first time, `before` its next expiration, by its clock. `None`: its
/// clock does not go as far back, or it is the calendar's and the timer was not set to one of its times: the kernel has
/// such timers wait by CLOCK_MONOTONIC (kernel/time/posix-timers.c, common_hrtimer_arm).
fn begun(again: &Again, before: u64) -> Option<u64> {
    let clock = plain(again.clock);
    let now = match again.absolute {
        0 if matches!(clock, libc::CLOCK_REALTIME) => return None,
        0 => time::now(clock) as u64,
        _ => 0,
    };
    now.saturating_add(again.value_ns).checked_sub(before).filter(|&since| since > 0)
}

/// Arms those that are not yet, when pending signals are pending again.
pub fn arm() {
    for again in again().iter().filter(|again| again.id != 0 && again.armed == 0 && again.value_ns != 0) {
        let flags = if again.absolute != 0 { libc::TIMER_ABSTIME } else { 0 };
        let _ = time::timer_set(again.id - 1, flags, again.value_ns, again.interval_ns);
    }
}
