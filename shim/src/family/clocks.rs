//! Clocks, and every call with a time-out.
//!
//! CLOCK_MONOTONIC and CLOCK_BOOTTIME stand still between a save and its resume: a life adds its offsets to what the
//! kernel says, and subtracts them from absolute times that the program hands in. A call with a *relative* time-out
//! notes when it began; issued again after a stop or a resume it waits for what remains ([`timed`]).
#![allow(unsafe_code)]

use super::select_sets::looked_at;
use super::signals::filtered_mask;
use crate::gate::{Result64, error, raw, wait_call};
use crate::{control, user};
use core::sync::atomic::Ordering;
use zhuque_abi::life::Life;
use zhuque_abi::slot::{SigInfo, Slot};
use zhuque_sys::time::SECOND;
use zhuque_sys::{Errno, time};

const CLOCK_MONOTONIC: i32 = libc::CLOCK_MONOTONIC;
const CLOCK_MONOTONIC_RAW: i32 = libc::CLOCK_MONOTONIC_RAW;
const CLOCK_MONOTONIC_COARSE: i32 = libc::CLOCK_MONOTONIC_COARSE;
const CLOCK_BOOTTIME: i32 = libc::CLOCK_BOOTTIME;
/// Places in `Slot::scratch`: a time for the kernel, what remains by the kernel, a mask, a pair for pselect6, a siginfo.
const TIME: usize = 8;
const REMAINS: usize = 10;
const MASK: usize = 12;
const PAIR: usize = 14;
const INFO: usize = 32;

/// The offset of `clock` in this life, ns: the program's time minus the kernel's.
pub fn offset(clock: i32) -> i64 {
    let life = control::life();
    match clock {
        CLOCK_MONOTONIC | CLOCK_MONOTONIC_COARSE => life.monotonic_offset.load(Ordering::Relaxed),
        CLOCK_MONOTONIC_RAW => life.raw_offset.load(Ordering::Relaxed),
        CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => life.boottime_offset.load(Ordering::Relaxed),
        _ => 0,
    }
}

/// Does something with the kernel's clocks and this life's offsets, and once more if it was begun in another life: who is
/// saved from outside may have one of them and not the other yet. What waits is asked for again as a whole, and need not.
pub fn in_one_life<T>(mut work: impl FnMut() -> T) -> T {
    loop {
        let life = control::generation();
        let result = work();
        if control::generation() == life {
            return result;
        }
    }
}

/// The program's CLOCK_MONOTONIC, ns.
pub fn now() -> i64 {
    in_one_life(|| time::now(CLOCK_MONOTONIC) + offset(CLOCK_MONOTONIC))
}

/// The clocks that stand still, in the order of `Life::offset_parts`.
const STILL: [i32; 3] = [CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW];

/// Sets the offsets of this life, before any thread of the program runs in it.
pub fn set_offsets(life: &mut Life, offsets: [i64; 3]) {
    let [monotonic, boottime, raw] = offsets;
    life.monotonic_offset.store(monotonic, Ordering::Relaxed);
    life.boottime_offset.store(boottime, Ordering::Relaxed);
    life.raw_offset.store(raw, Ordering::Relaxed);
    for (parts, offset) in life.offset_parts.chunks_exact_mut(2).zip(offsets) {
        parts.copy_from_slice(&[offset.div_euclid(SECOND), offset.rem_euclid(SECOND)]);
    }
}

/// The program's time on the clocks that stand still, ns: what a save notes.
pub fn still() -> [u64; 3] {
    STILL.map(|clock| (time::now(clock) + offset(clock)) as u64)
}

/// The offsets with which the clocks go on from `saved`.
///
/// The coarse clock is behind the exact one: by up to a tick, or by more, where the processor that counts ticks was kept
/// from it. It may be further behind now than it was then, so everything goes on later by as much as it is behind now:
/// what it will show is never less than what the exact one has shown.
pub fn offsets_after(saved: [u64; 3]) -> [i64; 3] {
    let coarse = time::now(CLOCK_MONOTONIC_COARSE);
    let mut offsets = [0; 3];
    let mut behind = None;
    for ((to, clock), saved) in offsets.iter_mut().zip(STILL).zip(saved) {
        let now = time::now(clock);
        // The first of them is the exact one of the coarse one.
        *to = saved as i64 + *behind.get_or_insert(now - coarse) - now;
    }
    offsets
}

/// struct timespec as ns; None if it is no valid time.
fn nanoseconds(pair: [i64; 2]) -> Option<i64> {
    let [seconds, part] = pair;
    if seconds < 0 || !(0..SECOND).contains(&part) {
        return None;
    }
    Some(seconds.saturating_mul(SECOND).saturating_add(part))
}

/// Reads a timespec of the program's.
fn read_time(address: u64) -> Result<i64, Errno> {
    // SAFETY: two integers.
    let pair: [i64; 2] = unsafe { user::read(address) }?;
    nanoseconds(pair).ok_or(Errno(libc::EINVAL))
}

/// Puts a time into the slot's scratch words and gives their address.
fn put_time(slot: &mut Slot, word: usize, ns: i64) -> u64 {
    let ns = ns.max(0);
    slot.scratch[word] = (ns / SECOND) as u64;
    slot.scratch[word + 1] = (ns % SECOND) as u64;
    &raw const slot.scratch[word] as u64
}

/// One of the calls with clocks or time-outs.
pub fn serve(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    match number {
        libc::SYS_clock_gettime => in_one_life(|| clock_gettime(slot, a)),
        libc::SYS_nanosleep => sleep(slot, number, a, 0, 1),
        libc::SYS_clock_nanosleep => clock_nanosleep(slot, a),
        libc::SYS_timerfd_settime => timerfd_settime(slot, a),
        libc::SYS_poll => {
            let limit = (a[2] as i32 >= 0).then(|| i64::from(a[2] as i32) * 1_000_000);
            timed(slot, limit, |slot, left| {
                let mut a = a;
                if let Some(left) = left {
                    a[2] = milliseconds(left);
                }
                wait_call(slot, number, a)
            })
        }
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => epoll(slot, number, a),
        libc::SYS_epoll_pwait2 => {
            let mut a = a;
            a[4] = filtered_mask(slot, a[4], MASK)?;
            with_timespec(slot, number, a, 3, false)
        }
        libc::SYS_ppoll => {
            let mut a = a;
            a[3] = filtered_mask(slot, a[3], MASK)?;
            with_timespec(slot, number, a, 2, true)
        }
        libc::SYS_pselect6 => pselect(slot, a),
        libc::SYS_select => select(slot, a),
        _ => wait_call(slot, number, a),
    }
}

/// Milliseconds, rounded up, as poll takes them.
fn milliseconds(ns: i64) -> u64 {
    ((ns + 999_999) / 1_000_000).clamp(0, i64::from(i32::MAX)) as u64
}

/// Runs a call with a relative time-out (ns; None: no limit) by what remains of it.
fn timed(slot: &mut Slot, limit: Option<i64>, call: impl FnOnce(&mut Slot, Option<i64>) -> Result64) -> Result64 {
    let Some(limit) = limit else { return call(slot, None) };
    if limit == 0 {
        return call(slot, Some(0));
    }
    let again = slot.timed_rip == slot.frame.rip && slot.timed_number == slot.frame.number;
    slot.timed_rip = 0;
    let now = now();
    if !again {
        slot.began_ns = now as u64;
    }
    let left = limit - (now - slot.began_ns as i64);
    let result = call(slot, Some(left.clamp(0, limit)));
    if slot.retry.valid != 0 {
        slot.timed_rip = slot.frame.rip;
        slot.timed_number = slot.frame.number;
    }
    result
}

/// A call whose argument `at` points to a relative timespec; `back`: the kernel writes there what remains.
fn with_timespec(slot: &mut Slot, number: i64, a: [u64; 6], at: usize, back: bool) -> Result64 {
    let address = a[at];
    let limit = if address == 0 { None } else { Some(read_time(address)?) };
    let result = timed(slot, limit, |slot, left| {
        let mut a = a;
        if let Some(left) = left {
            a[at] = put_time(slot, TIME, left);
        }
        wait_call(slot, number, a)
    });
    if back && address != 0 && slot.retry.valid == 0 {
        let left = [slot.scratch[TIME], slot.scratch[TIME + 1]];
        // SAFETY: the program's memory. As in the kernel, a time-out in read-only memory is no error.
        let _ = unsafe { user::write(address, &left) };
    }
    result
}

/// epoll_wait(2), epoll_pwait(2).
fn epoll(slot: &mut Slot, number: i64, mut a: [u64; 6]) -> Result64 {
    if number == libc::SYS_epoll_pwait {
        a[4] = filtered_mask(slot, a[4], MASK)?;
    }
    let limit = (a[3] as i32 >= 0).then(|| i64::from(a[3] as i32) * 1_000_000);
    timed(slot, limit, |slot, left| {
        let mut a = a;
        if let Some(left) = left {
            a[3] = milliseconds(left);
        }
        wait_call(slot, number, a)
    })
}

/// pselect6(2): the sixth argument is a pair of mask address and size.
fn pselect(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    a[0] = looked_at(a[0]);
    if a[5] != 0 {
        // SAFETY: two integers.
        let [mask, size]: [u64; 2] = unsafe { user::read(a[5]) }?;
        slot.scratch[PAIR] = filtered_mask(slot, mask, MASK)?;
        slot.scratch[PAIR + 1] = size;
        a[5] = &raw const slot.scratch[PAIR] as u64;
    }
    with_timespec(slot, libc::SYS_pselect6, a, 4, true)
}

/// select(2): a timeval.
fn select(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    a[0] = looked_at(a[0]);
    let address = a[4];
    let mut limit = None;
    if address != 0 {
        // SAFETY: two integers.
        let [seconds, micros]: [i64; 2] = unsafe { user::read(address) }?;
        if seconds < 0 || micros < 0 {
            return error(libc::EINVAL);
        }
        limit = Some(seconds.saturating_mul(SECOND).saturating_add(micros.saturating_mul(1000)));
    }
    let result = timed(slot, limit, |slot, left| {
        let mut a = a;
        if let Some(left) = left {
            a[4] = put_time(slot, TIME, left);
            slot.scratch[TIME + 1] = slot.scratch[TIME + 1].div_ceil(1000);
        }
        wait_call(slot, libc::SYS_select, a)
    });
    if address != 0 && slot.retry.valid == 0 {
        let left = [slot.scratch[TIME], slot.scratch[TIME + 1]];
        // SAFETY: the program's memory.
        let _ = unsafe { user::write(address, &left) };
    }
    result
}

/// A relative sleep; arguments `request` and `remains` are indices.
fn sleep(slot: &mut Slot, number: i64, a: [u64; 6], request: usize, remains: usize) -> Result64 {
    let limit = read_time(a[request])?;
    let result = timed(slot, Some(limit), |slot, left| {
        let mut a = a;
        a[request] = put_time(slot, TIME, left.unwrap_or(0));
        a[remains] = &raw const slot.scratch[REMAINS] as u64;
        wait_call(slot, number, a)
    });
    // What remains is told only where the call ends; one that is issued again must find its request untouched.
    let put_off = slot.puts_signal_off();
    let ended = slot.retry.valid == 0 || put_off && slot.retry.restartable == crate::gate::retry::EINTR;
    if result == error(libc::EINTR) && a[remains] != 0 && ended {
        let left = [slot.scratch[REMAINS], slot.scratch[REMAINS + 1]];
        // SAFETY: the program's memory.
        unsafe { user::write(a[remains], &left) }?;
    }
    result
}

/// clock_nanosleep(2).
fn clock_nanosleep(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    let clock = a[0] as i32;
    if a[1] as i32 & libc::TIMER_ABSTIME != 0 {
        let until = read_time(a[2])?;
        a[2] = put_time(slot, TIME, until.saturating_sub(offset(clock)));
        return wait_call(slot, libc::SYS_clock_nanosleep, a);
    }
    match clock {
        libc::CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME | libc::CLOCK_TAI => {
            sleep(slot, libc::SYS_clock_nanosleep, a, 2, 3)
        }
        _ => wait_call(slot, libc::SYS_clock_nanosleep, a),
    }
}

/// clock_gettime(2) by system call.
fn clock_gettime(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let clock = a[0] as i32;
    // The kernel's vdso falls back to the call on some machines: its wrapper adds the offset then.
    let vdso = &control::life().vdso;
    let wrapped = (vdso.base..vdso.base + vdso.bytes).contains(&slot.frame.rip);
    let shift = if wrapped { 0 } else { offset(clock) };
    if shift == 0 {
        return raw(libc::SYS_clock_gettime, a);
    }
    let scratch = &raw mut slot.scratch[TIME] as u64;
    raw(libc::SYS_clock_gettime, [a[0], scratch, 0, 0, 0, 0])?;
    let kernel = (slot.scratch[TIME] as i64).saturating_mul(SECOND) + slot.scratch[TIME + 1] as i64;
    let shown = kernel + shift;
    // SAFETY: the program's memory.
    unsafe { user::write(a[1], &[shown.div_euclid(SECOND), shown.rem_euclid(SECOND)]) }?;
    Ok(0)
}

/// timerfd_settime(2): an absolute time on a clock that has stood still is moved to the kernel's. By the way of calls that
/// wait, which begin anew in another life: the time is this life's.
fn timerfd_settime(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    let [fd, flags, new, ..] = a;
    if flags as i32 & libc::TFD_TIMER_ABSTIME == 0 || new == 0 || offset(CLOCK_MONOTONIC) == 0 {
        return wait_call(slot, libc::SYS_timerfd_settime, a);
    }
    a[2] = moved_setting(slot, timerfd_clock(fd as i32), new)?;
    wait_call(slot, libc::SYS_timerfd_settime, a)
}

/// A struct itimerspec with an absolute time of the program's, at a place where the kernel finds the time on its own clock.
pub fn moved_setting(slot: &mut Slot, clock: i32, new: u64) -> Result64 {
    if offset(clock) == 0 {
        return Ok(new);
    }
    // SAFETY: four integers.
    let value: [i64; 4] = unsafe { user::read(new) }?;
    let until = nanoseconds([value[2], value[3]]).ok_or(Errno(libc::EINVAL))?;
    slot.scratch[TIME] = value[0] as u64;
    slot.scratch[TIME + 1] = value[1] as u64;
    // A time of zero disarms and must stay zero; one that has passed must not become zero.
    let moved = if until == 0 { 0 } else { until.saturating_sub(offset(clock)).max(1) };
    put_time(slot, TIME + 2, moved);
    Ok(&raw const slot.scratch[TIME] as u64)
}

/// The clock of a timerfd, from /proc (only asked for absolute times in a later life).
fn timerfd_clock(fd: i32) -> i32 {
    let mut path = zhuque_sys::fs::Path::new();
    path.push(b"/proc/self/fdinfo/").push_number(fd as u64);
    let mut text = [0u8; 512];
    let Ok(file) = zhuque_sys::fs::open_at(libc::AT_FDCWD, &path, libc::O_RDONLY | libc::O_CLOEXEC, 0) else {
        return CLOCK_MONOTONIC;
    };
    let used = zhuque_sys::fs::read(file, &mut text).unwrap_or(0);
    let _ = zhuque_sys::fs::close(file);
    let key = b"clockid: ";
    let found = text[..used].windows(key.len()).position(|part| part == key).and_then(|at| text.get(at + key.len()));
    found.map_or(CLOCK_MONOTONIC, |&digit| i32::from(digit.wrapping_sub(b'0')))
}

/// rt_sigtimedwait(2).
pub fn rt_sigtimedwait(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    if a[3] != 8 {
        return error(libc::EINVAL);
    }
    // SAFETY: a mask.
    let wanted: u64 = unsafe { user::read(a[0]) }?;
    let power = libc::SIGPWR as u32;
    if wanted & zhuque_sys::signal::bit(power) != 0
        && let Some(info) = super::recovery::take(slot)
    {
        if a[1] != 0 {
            // SAFETY: the program's memory.
            unsafe { user::write(a[1], &info) }?;
        }
        return Ok(u64::from(power));
    }
    a[0] = filtered_mask(slot, a[0], MASK)?;
    let shown = a[1];
    a[1] = &raw const slot.scratch[INFO] as u64;
    let taken = with_timespec(slot, libc::SYS_rt_sigtimedwait, a, 2, false)?;
    let mut info: SigInfo = slot.scratch[INFO..].first_chunk().copied().unwrap_or_default();
    super::signals::virtual_sender(&mut info, slot);
    super::timers::note_taken(&info);
    if shown != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(shown, &info) }?;
    }
    Ok(taken)
}

const FUTEX_WAIT: u64 = libc::FUTEX_WAIT as u64;
const FUTEX_WAIT_BITSET: u64 = libc::FUTEX_WAIT_BITSET as u64;
const FUTEX_CLOCK_REALTIME: u64 = libc::FUTEX_CLOCK_REALTIME as u64;

/// futex(2).
pub fn futex(slot: &mut Slot, mut a: [u64; 6]) -> Result64 {
    let operation = a[1] & 127;
    match operation {
        FUTEX_WAIT if a[3] != 0 => with_timespec(slot, libc::SYS_futex, a, 3, false),
        FUTEX_WAIT_BITSET if a[3] != 0 && a[1] & FUTEX_CLOCK_REALTIME == 0 && offset(CLOCK_MONOTONIC) != 0 => {
            let until = read_time(a[3])?;
            a[3] = put_time(slot, TIME, until.saturating_sub(offset(CLOCK_MONOTONIC)));
            wait_call(slot, libc::SYS_futex, a)
        }
        // FUTEX_LOCK_PI, UNLOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2.
        6 | 7 | 8 | 11 | 12 | 13 => {
            crate::gate::say_refused(
                libc::SYS_futex as u64,
                b"futex with priority inheritance",
                b"real thread ids of owners are not kept",
            );
            error(libc::ENOSYS)
        }
        _ => wait_call(slot, libc::SYS_futex, a),
    }
}
