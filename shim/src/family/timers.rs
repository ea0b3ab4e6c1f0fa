//! POSIX timers (timer_create(2)): which there are, what remains, and whom they tell.
//!
//! The kernel says all of that itself (/proc/PID/timers, where it has checkpoint support; where it has not, the calls are
//! refused), so nothing is recorded while the program runs, but which timers are set to a *time of day*: that does not
//! stand still during an outage, and nobody else remembers it. A resume makes each timer under its number again, before
//! the commit, and sets it behind that.
//!
//! A timer that expires during the save has either left its signal with those that are pending, or it is written down
//! here; see [`expired`]. Key functions: [`serve`], [`describe`], [`revive`], [`arm`]. Neighbours: [`super::clocks`],
//! `process_state`.
#![allow(unsafe_code)]

use super::Failure;
use super::descriptors::fdinfo::{self, decimal_field};
use super::{clocks, ids};
use crate::control;
use crate::gate::{Result64, error, raw, say_refused};
use crate::journal::Journal;
use crate::process_state;
use core::sync::atomic::{AtomicU32, Ordering};
use zhuque_abi::codec::Records;
use zhuque_abi::journal::{Record, Timer};
use zhuque_abi::slot::{SigInfo, Slot};
use zhuque_sys::{Errno, fs, process, time, user};

/// Words of struct sigevent: value; signal and SIGEV_*; thread.
const EVENT_WORDS: usize = 8;
/// Their place in `Slot::scratch`.
const EVENT: usize = 20;
/// Bit of SIGEV_*: the signal is for one thread.
const THREAD_ID: u32 = libc::SIGEV_THREAD_ID as u32;
/// timer_settime: the time is absolute.
const ABSOLUTE: i32 = 1;
/// si_code of a timer's signal.
const SI_TIMER: i32 = -2;
/// prctl: timer_create gives the number that is asked for (Linux 6.16).
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// How far numbers are counted up to one that is wanted, where the kernel does not give it otherwise.
const MOST_STEPS: u32 = 1 << 20;

/// timer_create, timer_settime, timer_delete.
pub fn serve(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    match number {
        libc::SYS_timer_create => create(slot, a),
        libc::SYS_timer_settime => clocks::set_timer(a, |a| set(slot, a)),
        _ => raw(number, a).inspect(|_| forget(a[0] as u32)),
    }
}

fn create(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    let [clock, event, ..] = a;
    if clock as i32 == libc::CLOCK_THREAD_CPUTIME_ID || (clock as i32) < 0 {
        say_refused(
            libc::SYS_timer_create as u64,
            b"timer_create of a thread's processor time",
            b"it starts anew in each life",
        );
        return error(libc::ENOTSUP);
    }
    if !is_listed() {
        say_refused(libc::SYS_timer_create as u64, b"timer_create", b"this kernel does not list timers");
        return error(libc::ENOSYS);
    }
    if event != 0 && slot.borrowed == 0 {
        // SAFETY: any bit pattern is a valid struct sigevent.
        let mut words: [u64; EVENT_WORDS] = unsafe { user::read(event) }?;
        if (words[1] >> 32) as u32 & THREAD_ID != 0 {
            words[2] = words[2] & !0xffff_ffff | u64::from(ids::real(words[2] as i32) as u32);
        }
        slot.scratch[EVENT..EVENT + EVENT_WORDS].copy_from_slice(&words);
        a[1] = &raw const slot.scratch[EVENT] as u64;
    }
    raw(libc::SYS_timer_create, a)
}

fn set(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    let [id, flags, new, ..] = a;
    let (id, mut of_day) = (id as u32, false);
    if flags as i32 & ABSOLUTE != 0 && new != 0 {
        match clock_of(id) {
            Some(clock) if is_of_day(clock) => of_day = true,
            Some(clock) if clocks::offset(clock) != 0 => a[2] = clocks::moved(slot, new, clock)?,
            _ => {}
        }
    }
    if !of_day {
        return raw(libc::SYS_timer_settime, a).inspect(|_| forget(id));
    }
    if !remember(id) {
        return error(libc::EAGAIN);
    }
    raw(libc::SYS_timer_settime, a)
}

fn is_of_day(clock: i32) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_TAI)
}

/// The timers that are set to a time of day.
fn dated() -> &'static [AtomicU32] {
    // SAFETY: atomics in the control mapping.
    unsafe { &(*control::globals()).dated_timers }
}

/// What stands for a timer among them; never 0 for a number that the kernel gives.
fn entry(id: u32) -> u32 {
    id.wrapping_add(1)
}

/// False: there are too many.
fn remember(id: u32) -> bool {
    let take = |at: &AtomicU32| at.compare_exchange(0, entry(id), Ordering::Relaxed, Ordering::Relaxed).is_ok();
    is_dated(id) || dated().iter().any(take)
}

fn is_dated(id: u32) -> bool {
    dated().iter().any(|at| at.load(Ordering::Relaxed) == entry(id))
}

fn forget(id: u32) {
    for at in dated() {
        let _ = at.compare_exchange(entry(id), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn list() -> fs::Path {
    let mut path = fs::Path::new();
    path.push(b"/proc/self/timers");
    path
}

/// Whether the kernel lists timers.
fn is_listed() -> bool {
    fs::stat_at(libc::AT_FDCWD, &list(), 0).is_ok()
}

/// Calls `each` with every timer, as it was made.
fn each(each: &mut dyn FnMut(Timer) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut timer = Timer::default();
    fdinfo::lines(libc::AT_FDCWD, &list(), &mut [0; 512], &mut |line| {
        if let Some(id) = decimal_field(line, b"ID:").filter(|_| line.starts_with(b"ID:")) {
            timer = Timer { id: id as u32, ..Timer::default() };
        } else if let Some(signal) = line.strip_prefix(b"signal: ") {
            // Number, slash, value.
            let at = signal.iter().position(|&byte| byte == b'/').unwrap_or(signal.len());
            timer.signal = fdinfo::number(signal, 10).unwrap_or(0) as u32;
            timer.value = signal.get(at + 1..).and_then(|value| fdinfo::number(value, 16)).unwrap_or(0);
        } else if let Some(notify) = line.strip_prefix(b"notify: ") {
            // How, slash, tid or pid, dot, id.
            timer.notify = [(&b"none/"[..], libc::SIGEV_NONE), (b"thread/", libc::SIGEV_THREAD)]
                .iter()
                .find(|(name, _)| notify.starts_with(name))
                .map_or(libc::SIGEV_SIGNAL, |(_, kind)| *kind) as u32;
            if notify.windows(5).any(|part| part == b"/tid.") {
                timer.notify |= THREAD_ID;
                timer.thread = decimal_field(notify, b"/tid.").unwrap_or(0) as u32;
            }
        } else if let Some(clock) = decimal_field(line, b"ClockID:") {
            timer.clock = clock as u32;
            return each(timer);
        }
        Ok(())
    })
}

fn clock_of(id: u32) -> Option<i32> {
    let mut clock = None;
    let _ = each(&mut |timer| {
        if timer.id == id {
            clock = Some(timer.clock as i32);
        }
        Ok(())
    });
    clock
}

/// Writes down every timer, and the signal of each that expires meanwhile. They are stopped. Everything stands still, and
/// the threads' own signals have been written down.
pub fn describe(journal: &mut Journal) -> Result<(), Failure> {
    if !is_listed() {
        return Ok(());
    }
    let outside = crate::outside::is_outside();
    each(&mut |mut timer| {
        let kernel = timer.thread;
        timer.thread = if kernel == 0 { 0 } else { ids::virtual_thread(kernel).unwrap_or(0) };
        if timer.notify & THREAD_ID != 0 && timer.thread == 0 {
            // Its thread has ended: it tells nobody any more.
            timer.notify = libc::SIGEV_NONE as u32;
        }
        let (before, _) = time::timer_remaining(timer.id).unwrap_or((0, 0));
        let mut seen = false;
        process_state::describe_pending(journal, &mut |info| seen |= is_of(info, &timer))?;
        // Read and stopped in one.
        let Ok((left, interval)) = time::timer_set(timer.id, 0, 0, 0) else { return Ok(()) };
        (timer.remaining_ns, timer.interval_ns) = (left, interval);
        if timer.thread != 0 {
            let noted = outside && was_noted(journal, &timer);
            seen = noted || !process_state::is_pending_for(kernel, timer.signal);
            seen |= left != 0 && interval == 0;
        }
        if !seen && expired(&timer, before) {
            let info = info_of(&timer);
            journal.put(&Record::PendingSignal { thread: timer.thread, info })?;
        }
        if left != 0 && is_dated(timer.id) {
            timer.until_ns = (time::now(timer.clock as i32) as u64).saturating_add(left);
        }
        journal.put(&Record::Timer(timer))
    })
}

/// Whether a timer's signal is missing among those that have been written down: it has expired between two looks, or,
/// where it is for one thread, after that had written down its own.
fn expired(timer: &Timer, before_ns: u64) -> bool {
    let told = timer.notify & !THREAD_ID != libc::SIGEV_NONE as u32;
    let over = timer.remaining_ns == 0 && before_ns != 0 || timer.interval_ns != 0 && timer.remaining_ns > before_ns;
    told && (timer.thread != 0 || over)
}

/// Whether a pending signal is this timer's.
fn is_of(info: &SigInfo, timer: &Timer) -> bool {
    (info[1] & 0xffff_ffff) as i32 == SI_TIMER && info[2] as u32 == timer.id
}

/// Whether a thread's pending signal has been written down by the tracer, which leaves it pending.
fn was_noted(journal: &Journal, timer: &Timer) -> bool {
    Records::new(journal.written()).flatten().any(|record| match record {
        Record::PendingSignal { thread, info } => thread == timer.thread && is_of(&info, timer),
        _ => false,
    })
}

/// The siginfo of a timer's signal: signal, code, timer and overrun, value.
fn info_of(timer: &Timer) -> SigInfo {
    let mut info: SigInfo = [0; 16];
    info[0] = u64::from(timer.signal);
    info[1] = u64::from(SI_TIMER as u32);
    info[2] = u64::from(timer.id);
    info[3] = timer.value;
    info
}

/// The timers of a journal.
fn saved(journal: &[u8]) -> impl Iterator<Item = Timer> {
    Records::new(journal).flatten().filter_map(|record| match record {
        Record::Timer(timer) => Some(timer),
        _ => None,
    })
}

/// Makes every timer again, not armed. `real`: the kernel's id of a thread.
pub fn revive(journal: &[u8], real: &dyn Fn(u32) -> Option<u32>) -> Result<(), Failure> {
    // SAFETY: takes no pointers.
    let number = |on: usize| unsafe { process::prctl(PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0) };
    if saved(journal).next().is_none() {
        return Ok(());
    }
    let given = number(1).is_ok();
    let make = |timer: &Timer| {
        let failed = Failure::new(b"timer ").number(u64::from(timer.id)).text(b" cannot be made: ");
        make(timer, real, given).map_err(|error| failed.errno(error))
    };
    if given {
        saved(journal).try_for_each(|timer| make(&timer))?;
    } else {
        // Upwards: the kernel counts.
        let mut next = saved(journal).min_by_key(|timer| timer.id);
        while let Some(timer) = next {
            make(&timer)?;
            next = saved(journal).filter(|other| other.id > timer.id).min_by_key(|timer| timer.id);
        }
    }
    let _ = number(0);
    Ok(())
}

fn make(timer: &Timer, real: &dyn Fn(u32) -> Option<u32>, given: bool) -> Result<(), Errno> {
    let mut event = [timer.value, u64::from(timer.signal) | u64::from(timer.notify) << 32, 0, 0, 0, 0, 0, 0];
    if timer.notify & THREAD_ID != 0 {
        event[2] = u64::from(real(timer.thread).ok_or(Errno(libc::ESRCH))?);
    }
    for _ in 0..MOST_STEPS {
        let id = time::timer_create(timer.clock, &event, timer.id)?;
        if id == timer.id {
            return Ok(());
        }
        time::timer_delete(id)?;
        if given || id > timer.id {
            break;
        }
    }
    Err(Errno(libc::EAGAIN))
}

/// Sets a timer to what it was, once the program goes on.
pub fn arm(timer: &Timer) {
    if timer.until_ns != 0 {
        let _ = time::timer_set(timer.id, ABSOLUTE, timer.until_ns, timer.interval_ns);
    } else if timer.remaining_ns != 0 {
        let _ = time::timer_set(timer.id, 0, timer.remaining_ns, timer.interval_ns);
    }
}
