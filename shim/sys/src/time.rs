//! Clocks and interval timers.
#![allow(unsafe_code)]

use crate::raw::{Errno, call2, call3, call4, check};

/// Nanoseconds of a second.
pub const SECOND: i64 = 1_000_000_000;

/// clock_gettime(2) by a real system call, ns.
pub fn now(clock: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the target is a local. The clocks used always exist.
    unsafe { call2(libc::SYS_clock_gettime as usize, clock as usize, &mut time as *mut _ as usize) };
    time.tv_sec * SECOND + time.tv_nsec
}

/// nanosleep(2), until a signal comes.
pub fn sleep(ns: i64) {
    let time = libc::timespec { tv_sec: ns / SECOND, tv_nsec: ns % SECOND };
    // SAFETY: the source is a local.
    unsafe { call2(libc::SYS_nanosleep as usize, &time as *const _ as usize, 0) };
}

/// struct itimerval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IntervalTimer {
    /// Period: seconds and microseconds.
    pub interval: [i64; 2],
    /// Remaining time.
    pub value: [i64; 2],
}

/// setitimer(2); what it was set to.
pub fn set_interval_timer(which: u32, timer: &IntervalTimer) -> Result<IntervalTimer, Errno> {
    let mut old = IntervalTimer::default();
    let (new, old_at) = (timer as *const _ as usize, &mut old as *mut _ as usize);
    // SAFETY: the source is a valid reference and the target a local.
    check(unsafe { call3(libc::SYS_setitimer as usize, which as usize, new, old_at) })?;
    Ok(old)
}

/// struct sigevent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SigEvent {
    /// What the signal brings (sigev_value).
    pub value: u64,
    /// Its number.
    pub signal: i32,
    /// SIGEV_*.
    pub notify: i32,
    /// Thread id, with SIGEV_THREAD_ID.
    pub thread: i32,
    /// The union's other members, and padding.
    pub reserved: [i32; 11],
}

const _: () = assert!(size_of::<SigEvent>() == 64);

/// timer_create(2).
pub fn timer_create(clock: i32, event: &SigEvent) -> Result<u32, Errno> {
    let mut id = 0u32;
    let (event, made) = (event as *const _ as usize, &mut id as *mut _ as usize);
    // SAFETY: the source is a valid reference and the target a local.
    check(unsafe { call3(libc::SYS_timer_create as usize, clock as isize as usize, event, made) })?;
    Ok(id)
}

/// timer_gettime(2): remaining time and period, ns.
pub fn timer_remaining(id: u32) -> Result<(u64, u64), Errno> {
    remaining(libc::SYS_timer_gettime, id as usize)
}

/// timer_settime(2), ns.
pub fn timer_set(id: u32, flags: i32, value_ns: u64, interval_ns: u64) -> Result<(), Errno> {
    set(libc::SYS_timer_settime, id as usize, flags, value_ns, interval_ns)
}

/// timerfd_create(2).
pub fn timerfd(clock: u32, flags: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_timerfd_create as usize, clock as usize, flags as usize) }).map(|fd| fd as i32)
}

/// timerfd_gettime(2): remaining time and period, ns. Expirations that are due are counted first.
pub fn timerfd_remaining(fd: i32) -> Result<(u64, u64), Errno> {
    remaining(libc::SYS_timerfd_gettime, fd as isize as usize)
}

fn remaining(number: i64, timer: usize) -> Result<(u64, u64), Errno> {
    let mut times = [0i64; 4];
    // SAFETY: the target is a local, struct itimerspec (period, remaining).
    check(unsafe { call2(number as usize, timer, times.as_mut_ptr() as usize) })?;
    let [interval_s, interval_ns, value_s, value_ns] = times;
    Ok(((value_s * SECOND + value_ns) as u64, (interval_s * SECOND + interval_ns) as u64))
}

/// timerfd_settime(2), ns.
pub fn timerfd_set(fd: i32, flags: i32, value_ns: u64, interval_ns: u64) -> Result<(), Errno> {
    set(libc::SYS_timerfd_settime, fd as isize as usize, flags, value_ns, interval_ns)
}

fn set(number: i64, timer: usize, flags: i32, value_ns: u64, interval_ns: u64) -> Result<(), Errno> {
    let second = SECOND as u64;
    let times = [interval_ns / second, interval_ns % second, value_ns / second, value_ns % second];
    // SAFETY: the source is a local, struct itimerspec.
    check(unsafe { call4(number as usize, timer, flags as usize, times.as_ptr() as usize, 0) }).map(|_| ())
}

/// ioctl(TFD_IOC_SET_TICKS): the number of expirations that the next read reports (kernels with checkpoint support).
pub fn timerfd_set_ticks(fd: i32, ticks: u64) -> Result<(), Errno> {
    // SAFETY: the source is a local of the size that the request reads.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, 0x4008_5400, &ticks as *const _ as usize) })
        .map(|_| ())
}
