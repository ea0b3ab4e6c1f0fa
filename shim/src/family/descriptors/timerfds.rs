//! Timers behind descriptors (timerfd_create(2)): what remains, and how often they have expired.
//!
//! Their state is in /proc/PID/fdinfo and timerfd_gettime(2), which cannot be read in one, and neither says whether a timer
//! without remaining time is one that is not armed, or one whose time has come and whose interrupt has not
//! ([`let_due_expire`]). Neighbour: [`super::events`], the other descriptors that report events.
#![allow(unsafe_code)]

use super::fdinfo::{self, decimal_field, field};
use super::placement::Reviving;
use super::table::{Found, Table};
use super::{Capture, Failure, events};
use zhuque_abi::journal::Object;
use zhuque_sys::{Errno, process, time};

const SECOND: u64 = time::SECOND as u64;
/// How long a save waits for timers that may be due, ns, all in all.
pub const PATIENCE_NS: i64 = 20_000_000;
/// How often a timer with short periods is looked at.
const MOST_LOOKS: u32 = 100;

/// How far in the future the next expiration is, at least, while those that have been are set, ns.
const SETTING_NS: u64 = 1_000_000;

/// What the kernel says of one.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    clock: u32,
    settime: u32,
    ticks: u64,
    value_ns: u64,
    interval_ns: u64,
}

/// Describes one.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    let mut state = look(table, found)?;
    if state.value_ns == 0 && state.ticks == 0 && c.timer_patience_ns > 0 {
        let began = time::now(libc::CLOCK_MONOTONIC);
        let_due_expire(began + c.timer_patience_ns);
        c.timer_patience_ns -= time::now(libc::CLOCK_MONOTONIC) - began;
        state = look(table, found)?;
    }
    if state.value_ns == 0 && state.interval_ns != 0 && state.ticks != 0 {
        // In the middle of its periods.
        state.value_ns = 1;
    }
    let State { clock, settime, ticks, value_ns, interval_ns } = state;
    found.describe(c.put, Object::TimerFd { clock, ticks, settime, value_ns, interval_ns })
}

/// Looks until nothing has happened in between: an expiration is counted, or still to come.
fn look(table: &Table<'_>, found: &Found<'_>) -> Result<State, Failure> {
    let (mut before, mut last) = (info(table, found)?, State::default());
    for _ in 0..MOST_LOOKS {
        // This counts the expirations of a period that are due, as the next read would, and starts the next one.
        let (value_ns, interval_ns) = time::timerfd_remaining(found.fd).unwrap_or((0, 0));
        let after = info(table, found)?;
        if after == before {
            return Ok(State { value_ns, interval_ns, ..after });
        }
        before = State { value_ns: 0, interval_ns: 0, ..after };
        last = State { value_ns, interval_ns, ..after };
    }
    Ok(last)
}

/// What fdinfo says.
fn info(table: &Table<'_>, found: &Found<'_>) -> Result<State, Failure> {
    let mut state = State::default();
    events::info(table, found.fd, &mut [0; 512], &mut |line| {
        state.clock = decimal_field(line, b"clockid:").map_or(state.clock, |clock| clock as u32);
        state.ticks = decimal_field(line, b"ticks:").unwrap_or(state.ticks);
        let settime = field(line, b"settime flags:").and_then(|text| fdinfo::number(text, 8));
        state.settime = settime.map_or(state.settime, |flags| flags as u32);
        Ok(())
    })?;
    Ok(state)
}

/// Lets every timer expire whose time has come. It expires in an interrupt of the processor on which it was armed, together
/// with all that are due there: so this thread sleeps for a moment on each. It does not go on with the program.
fn let_due_expire(end: i64) {
    // SAFETY: takes no pointers.
    let _ = unsafe { process::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
    // Not on this processor alone, if the program has pinned the thread.
    let _ = process::set_affinity(0, &[0xff; 128]);
    let mut all = [0u8; 128];
    process::affinity(0, &mut all);
    for processor in (0..8 * all.len()).filter(|index| all[index / 8] & 1 << (index % 8) != 0) {
        let mut one = [0u8; 128];
        one[processor / 8] = 1 << (processor % 8);
        if process::set_affinity(0, &one).is_ok() {
            time::sleep(1);
        }
        if time::now(libc::CLOCK_MONOTONIC) > end {
            break;
        }
    }
    let _ = process::set_affinity(0, &all);
}

/// Makes one again.
pub fn revive(r: &Reviving<'_>, object: &Object<'_>) -> Result<i32, Errno> {
    let Object::TimerFd { clock, ticks, settime, value_ns, interval_ns } = *object else {
        return Err(Errno(libc::EINVAL));
    };
    let fd = time::timerfd(clock, libc::TFD_CLOEXEC)?;
    let mut ticks_set = ticks == 0;
    if value_ns != 0 {
        // A time of day stays the same however long the power was off; anything else goes on with what remained.
        let of_day = settime & libc::TFD_TIMER_ABSTIME as u32 != 0
            && matches!(clock as i32, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        let value = if of_day { r.saved_realtime_ns + value_ns } else { value_ns };
        // The number of expirations is set behind this: none may come in between.
        let value = if ticks == 0 { value } else { value.max(SETTING_NS) };
        time::timerfd_set(fd, if of_day { settime as i32 } else { 0 }, value, interval_ns)?;
    }
    if !ticks_set {
        ticks_set = time::timerfd_set_ticks(fd, ticks).is_ok();
    }
    if !ticks_set {
        // Without checkpoint support in the kernel: it has expired at least once. A period starts anew.
        time::timerfd_set(fd, 0, 1, interval_ns.min(SECOND * u32::MAX as u64))?;
    }
    Ok(fd)
}
