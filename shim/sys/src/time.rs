//! Clocks and interval timers.
#![allow(unsafe_code)]

use crate::raw::{Errno, call2, call3, check};

/// Nanoseconds of a second.
pub const SECOND: i64 = 1_000_000_000;

/// clock_gettime(2) by a real system call, ns.
pub fn now(clock: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the target is a local. The clocks used always exist.
    unsafe { call2(libc::SYS_clock_gettime as usize, clock as usize, &mut time as *mut _ as usize) };
    time.tv_sec * SECOND + time.tv_nsec
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

/// getitimer(2).
pub fn interval_timer(which: u32) -> Result<IntervalTimer, Errno> {
    let mut timer = IntervalTimer::default();
    // SAFETY: the target is a local.
    check(unsafe { call2(libc::SYS_getitimer as usize, which as usize, &mut timer as *mut _ as usize) })?;
    Ok(timer)
}

/// setitimer(2).
pub fn set_interval_timer(which: u32, timer: &IntervalTimer) -> Result<(), Errno> {
    // SAFETY: the source is a valid reference.
    check(unsafe { call3(libc::SYS_setitimer as usize, which as usize, timer as *const _ as usize, 0) }).map(|_| ())
}
