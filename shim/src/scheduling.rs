//! How threads are scheduled: nice value, policy, priority, processors, input and output. Written down where it is not
//! what the program was started with; set again as far as the resume's rights and this machine's processors allow.
#![allow(unsafe_code)]

use crate::control;
use crate::family::{Failure, ids};
use crate::journal::Journal;
use core::sync::atomic::Ordering;
use zhuque_abi::journal::Record;
use zhuque_abi::slot::state;
use zhuque_sys::process;

/// The first version of struct sched_attr (sched_setattr(2)).
#[derive(Default)]
#[repr(C)]
struct Attributes {
    bytes: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    deadline: [u64; 3],
}

const _: () = assert!(size_of::<Attributes>() == 48);

/// How thread `tid` is scheduled: in one call, since a program may have thousands of threads.
fn attributes(tid: u32) -> Attributes {
    let mut found = Attributes::default();
    let arguments = [tid as usize, &raw mut found as usize, size_of::<Attributes>(), 0, 0, 0];
    // SAFETY: the kernel writes at most the size that it is told.
    let _ = unsafe { process::other(libc::SYS_sched_getattr, arguments) };
    found
}

/// ioprio_get(2) and ioprio_set(2): a thread.
const IOPRIO_WHO_PROCESS: usize = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// The priority of a thread's input and output; 0: it has none of its own.
fn io_priority(tid: u32) -> u32 {
    // SAFETY: no memory involved.
    let found = unsafe { process::other(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, tid as usize, 0, 0, 0, 0]) };
    // Without a class it follows the nice value.
    found.ok().map(|value| value as u32).filter(|value| value >> IOPRIO_CLASS_SHIFT != 0).unwrap_or(0)
}

/// Writes down every thread that is not scheduled as the program was when it started.
pub fn describe(journal: &mut Journal) -> Result<(), Failure> {
    // SAFETY: constant after start.
    let started = unsafe { (*control::globals()).affinity };
    for index in 0..control::slots() {
        // SAFETY: atomic fields of the control mapping.
        let (live, thread) = unsafe {
            let slot = control::slot(index);
            ((*slot).state.load(Ordering::Acquire) == state::LIVE, (*slot).virtual_tid.load(Ordering::Relaxed))
        };
        if !live {
            continue;
        }
        let tid = control::life_thread(index).tid.load(Ordering::Acquire);
        let mut mask = [0u8; 128];
        process::affinity(tid, &mut mask);
        let Attributes { policy, flags, nice, priority, .. } = attributes(tid);
        // As sched_getscheduler(2) says it, and sched_setscheduler takes it (SCHED_RESET_ON_FORK).
        let policy = policy | if flags & 1 != 0 { 0x4000_0000 } else { 0 };
        let pinned: &[u8] = if mask == started { &[] } else { &mask };
        let io = io_priority(tid);
        if nice != 0 || policy != 0 || io != 0 || !pinned.is_empty() {
            let priority = priority as i32;
            journal.put(&Record::Scheduling { thread, nice, policy, priority, affinity: pinned, io })?;
        }
    }
    Ok(())
}

/// Sets one thread's scheduling again. What is not allowed any more is left as it is: it changes no result.
pub fn revive(record: &Record<'_>) {
    let Record::Scheduling { thread, nice, policy, priority, affinity, io } = *record else { return };
    // The main thread does not know itself yet: it is the one that runs here (0).
    let tid = if thread == ids::virtual_pid() { 0 } else { ids::real_thread(thread).unwrap_or(u32::MAX) as usize };
    if !affinity.is_empty() {
        let _ = process::set_affinity(tid as u32, affinity);
    }
    // SAFETY: the pointers are to locals.
    unsafe {
        if policy != 0 {
            let arguments = [tid, policy as usize, &raw const priority as usize, 0, 0, 0];
            let _ = process::other(libc::SYS_sched_setscheduler, arguments);
        }
        if nice != 0 {
            let arguments = [libc::PRIO_PROCESS as usize, tid, nice as usize, 0, 0, 0];
            let _ = process::other(libc::SYS_setpriority, arguments);
        }
        if io != 0 {
            let _ = process::other(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, tid, io as usize, 0, 0, 0]);
        }
    }
}
