//! Processes: fork, vfork, exec, waiting, and ids of other processes.
//!
//! Children are volatile: a fork child gets private copies of everything before it runs one instruction of the program,
//! and leaves the gate for good (`fork_child`). A vfork child borrows its parent's memory and slot until it executes
//! something or ends. An exec of the program itself starts a new image in the same region (`exec`).
#![allow(unsafe_code)]

use super::{exec, fork_child, ids, limits, owners};
use crate::control::{self, Lock};
use crate::entry::asm::zhuque_clone;
use crate::gate::{Result64, again, error, raw, wait_call};
use crate::{save, user};
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};
use zhuque_abi::header::{Child, MAX_CHILDREN, child};
use zhuque_abi::slot::{Slot, VforkReturn};
use zhuque_sys::{process, signal};

unsafe extern "C" {
    fn zhuque_vfork() -> !;
}

/// Calls about processes.
pub fn serve(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    match number {
        libc::SYS_getppid if slot.borrowed == 0 => Ok(u64::from(ids::virtual_parent(raw(number, a)? as u32))),
        libc::SYS_getpid if slot.borrowed == 0 => Ok(u64::from(ids::virtual_pid())),
        libc::SYS_wait4 | libc::SYS_waitid if slot.borrowed == 0 => wait(slot, number, a),
        libc::SYS_execve if slot.borrowed == 0 => exec::execve(slot, [libc::AT_FDCWD as u64, a[0], a[1], a[2], 0]),
        libc::SYS_execveat if slot.borrowed == 0 => exec::execve(slot, [a[0], a[1], a[2], a[3], a[4]]),
        libc::SYS_getrlimit | libc::SYS_setrlimit | libc::SYS_prlimit64 if slot.borrowed == 0 => {
            limits::serve(number, a).unwrap_or_else(|| others(slot, number, a))
        }
        libc::SYS_execve | libc::SYS_execveat => {
            // What a vfork child executes knows nothing of zhuque.
            limits::leave();
            others(slot, number, a)
        }
        libc::SYS_fcntl | libc::SYS_getsockopt => owners::serve(slot, number, a),
        _ => others(slot, number, a),
    }
}

fn others(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    if control::life().generation == 0 || slot.borrowed > 0 {
        return wait_call(slot, number, a);
    }
    with_ids(slot, number, a)
}

/// Calls that name processes, in a life in which the program's own ids are not the kernel's.
fn with_ids(slot: &mut Slot, number: i64, mut a: [u64; 6]) -> Result64 {
    let translate = |value: u64| ids::real(value as i32) as u64;
    match number {
        libc::SYS_getpriority | libc::SYS_setpriority if a[0] == 0 => a[1] = translate(a[1]),
        libc::SYS_ioprio_get | libc::SYS_ioprio_set if a[0] == 1 => a[1] = translate(a[1]),
        libc::SYS_getpriority | libc::SYS_setpriority | libc::SYS_ioprio_get | libc::SYS_ioprio_set => {}
        libc::SYS_kcmp | libc::SYS_setpgid => {
            a[0] = translate(a[0]);
            a[1] = translate(a[1]);
        }
        libc::SYS_getpgrp | libc::SYS_setsid | libc::SYS_getrlimit | libc::SYS_setrlimit => {}
        _ => a[0] = translate(a[0]),
    }
    let result = wait_call(slot, number, a)?;
    Ok(match number {
        libc::SYS_getpgrp | libc::SYS_getpgid | libc::SYS_getsid | libc::SYS_setsid => {
            u64::from(ids::shown(result as u32))
        }
        _ => result,
    })
}

/// The table of children. The caller holds the state lock.
fn children() -> &'static mut [Child; MAX_CHILDREN] {
    // SAFETY: the state lock makes this the only user.
    unsafe { &mut (*control::globals()).children }
}

/// Notes a child, so that it can be reported as lost after a failure.
fn add_child(pid: u32, ended: u32) {
    let _lock = Lock::state();
    note_child(pid, ended);
}

/// As [`add_child`], with the state lock held already.
fn note_child(pid: u32, ended: u32) {
    let free = |entry: &Child| entry.pid == 0 || entry.pid == pid;
    if !children().iter().any(free) {
        forget_reaped();
    }
    if let Some(entry) = children().iter_mut().find(|entry| free(entry)) {
        *entry = Child { pid, ended };
    }
}

/// Forgets children that were waited for in ways that do not pass here: by pidfd, or by the kernel since the program
/// ignores SIGCHLD. The caller holds the state lock, or everything stands still.
fn forget_reaped() {
    for entry in children().iter_mut().filter(|entry| entry.pid != 0 && entry.is_running()) {
        if process::ended(entry.pid).is_err() {
            *entry = Child::default();
        }
    }
}

/// Children that a save had to end since a thread was suspended for them. Few are: each is a vfork that a failure meets.
static KILLED: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];

/// At a save: ends a child that keeps a thread from being saved, unless it has ended by itself: the failure's doing.
pub fn end_by_failure(pid: u32) {
    if !matches!(process::ended(pid), Ok(Some(_))) {
        note_killed(pid);
        let _ = process::kill(pid as i32, libc::SIGKILL as u32);
    }
}

fn note_killed(pid: u32) {
    let known = KILLED.iter().any(|entry| entry.load(Ordering::Relaxed) == pid);
    if let Some(entry) = KILLED.iter().find(|entry| !known && entry.load(Ordering::Relaxed) == 0) {
        entry.store(pid, Ordering::Relaxed);
    }
}

fn was_killed(pid: u32) -> bool {
    KILLED.iter().any(|entry| entry.load(Ordering::Relaxed) == pid)
}

/// At a save, while everything stands still: notes how those children have ended that have not been waited for.
pub fn note_ended() {
    forget_reaped();
    for entry in children().iter_mut().filter(|entry| entry.pid != 0 && entry.is_running()) {
        if let Some(status) = process::ended(entry.pid).ok().flatten().filter(|_| !was_killed(entry.pid)) {
            entry.ended = child::STATUS | status;
        }
    }
}

/// Whether `pid` is a child that a failure took and that has not been waited for.
pub fn is_lost(pid: i32) -> bool {
    pid > 0 && control::life().generation != 0 && {
        let _lock = Lock::state();
        children().iter().any(|entry| entry.pid == pid as u32 && !entry.is_running())
    }
}

/// fork(2): returns in the parent; the child leaves by its own way.
pub fn fork(slot: &mut Slot, exit_signal: u64, child_tid: u64, clear_tid: u64) -> Result64 {
    let memory = super::memory::Memory::lock();
    let lock = Lock::state();
    let mask = signal::set_mask(!0);
    if !save::stop_for_fork(slot) {
        drop(lock);
        drop(memory);
        signal::set_mask(mask);
        return again(slot);
    }
    slot.fork_done.store(0, Ordering::Release);
    slot.start_child_tid = child_tid;
    slot.start_flags = clear_tid;
    slot.start_mask = if slot.puts_signal_off() { slot.deferred.mask } else { mask };
    let (scratch, bytes) = control::scratch();
    // SAFETY: no CLONE_VM: the child has a copy of the life area, whose scratch memory is nobody's while the world
    // stands still, and starts on it.
    let pid = unsafe { zhuque_clone(exit_signal, scratch + bytes - 64, 0, fork_child::start, slot) };
    let result = if pid < 0 {
        error(-pid as i32)
    } else if wait_for_copy(slot, pid as u32) {
        note_child(pid as u32, child::NO);
        Ok(pid as u64)
    } else {
        let _ = process::reap(pid as u32);
        error(libc::ENOMEM)
    };
    save::release_after_fork();
    drop(lock);
    drop(memory);
    signal::set_mask(mask);
    result
}

/// Waits until the child has its own memory; false: it has died trying.
fn wait_for_copy(slot: &Slot, pid: u32) -> bool {
    while slot.fork_done.load(Ordering::Acquire) == 0 {
        let _ = process::futex_wait(&slot.fork_done, 0, 50_000_000);
        // A child that was killed while copying is a zombie.
        if process::kill(pid as i32, 0).is_err() || !matches!(process::ended(pid), Ok(None)) {
            break;
        }
    }
    slot.fork_done.load(Ordering::Acquire) != 0
}

/// vfork(2) and clone(CLONE_VM | CLONE_VFORK): see `entry::asm`. Does not return here.
pub fn vfork(slot: &mut Slot) -> Result64 {
    if slot.borrowed != 0 {
        // A vfork child that vforks itself: nobody does, and the slot has one return point.
        return error(libc::EAGAIN);
    }
    slot.vfork = VforkReturn {
        rsp: slot.frame.rsp,
        rip: slot.frame.rip,
        extra_mask: slot.extra_mask,
        faults_blocked: slot.faults_blocked.load(Ordering::Relaxed),
    };
    slot.suspended = 1;
    // SAFETY: nothing on this stack is needed any more, and no lock is held.
    unsafe { zhuque_vfork() }
}

/// Something waits, so the vfork is put off until that is done. Called by the gate's assembler.
///
/// # Safety
/// With the calling thread's slot.
pub unsafe extern "C" fn vfork_put_off(slot: *mut Slot) {
    // SAFETY: the slot is this thread's.
    let slot = unsafe { &mut *slot };
    slot.suspended = 0;
    slot.frame.rax = -i64::from(libc::EINTR) as u64;
    let _ = again(slot);
}

/// The parent is back from vfork; the result lies in the slot's scratch.
pub fn vfork_done(slot: &mut Slot) -> Result64 {
    let result = slot.scratch[0] as i64;
    if slot.borrowed == 0 {
        // The child may have changed its own.
        slot.extra_mask = slot.vfork.extra_mask;
        slot.faults_blocked.store(slot.vfork.faults_blocked, Ordering::Relaxed);
    }
    if slot.borrowed == 0 && result > 0 {
        // It has executed something, or ended: it uses this memory no more.
        add_child(result as u32, child::APART);
    }
    // Who is stopped before this is in a vfork still: only from here on the child is known.
    compiler_fence(Ordering::SeqCst);
    slot.suspended = 0;
    if result < 0 { error(-result as i32) } else { Ok(result as u64) }
}

/// A child of an earlier life that a wait for `pid` (wait4's meaning) would report, and its wait status. Children of other
/// groups are not told apart.
fn take_ended(pid: i32, keep: bool) -> Option<(u32, i32)> {
    if control::life().generation == 0 {
        return None;
    }
    let _lock = Lock::state();
    let entry = children()
        .iter_mut()
        .find(|entry| !entry.is_running() && entry.pid != 0 && (pid <= 0 || entry.pid == pid as u32))?;
    let found = (entry.pid, (entry.ended & !child::STATUS) as i32);
    if !keep {
        *entry = Child::default();
    }
    Some(found)
}

/// Forgets a child that has been waited for.
fn reaped(pid: u32) {
    let _lock = Lock::state();
    if let Some(entry) = children().iter_mut().find(|entry| entry.pid == pid) {
        *entry = Child::default();
    }
}

/// wait4(2) and waitid(2): children that a failure took were ended by SIGPWR.
fn wait(slot: &mut Slot, number: i64, mut a: [u64; 6]) -> Result64 {
    if number == libc::SYS_waitid {
        return waitid(slot, a);
    }
    if let Some((pid, status)) = take_ended(a[0] as i32, false) {
        if a[1] != 0 {
            // SAFETY: the program's memory.
            unsafe { user::write(a[1], &status) }?;
        }
        return Ok(u64::from(pid));
    }
    a[0] = ids::real_group(a[0] as i32) as u64;
    // A status is always asked for: only a child that has ended is forgotten.
    let wanted = a[1];
    a[1] = &raw mut slot.scratch[0] as u64;
    slot.scratch[0] = 0;
    let pid = wait_call(slot, number, a)?;
    let status = slot.scratch[0] as u32 as i32;
    if pid != 0 {
        if status & 0xff != 0x7f && status != 0xffff {
            reaped(pid as u32);
        }
        if wanted != 0 {
            // SAFETY: the program's memory.
            unsafe { user::write(wanted, &status) }?;
        }
    }
    Ok(pid)
}

/// waitid(2).
fn waitid(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let mut a = a;
    if a[0] as u32 == libc::P_PGID {
        a[1] = ids::real(a[1] as i32) as u64;
    }
    let [kind, id, info, options, ..] = a;
    let keep = options as i32 & libc::WNOWAIT != 0;
    let named = match kind as u32 {
        libc::P_PID => id as i32,
        libc::P_ALL | libc::P_PGID => -1,
        _ => return wait_call(slot, libc::SYS_waitid, a),
    };
    if options as i32 & libc::WEXITED != 0
        && let Some((pid, status)) = take_ended(named, keep)
    {
        if info != 0 {
            let signal = u64::from(libc::SIGCHLD as u32);
            let (code, value) = match status & 0x7f {
                0 => (libc::CLD_EXITED, status >> 8),
                signal if status & 0x80 != 0 => (libc::CLD_DUMPED, signal),
                signal => (libc::CLD_KILLED, signal),
            };
            let record = [signal, code as u64, u64::from(pid), value as u64, 0, 0];
            // SAFETY: the program's memory; signo, errno, code, pid, uid, status as the kernel lays them out.
            unsafe { user::write(info, &record) }?;
        }
        return Ok(0);
    }
    let result = wait_call(slot, libc::SYS_waitid, a)?;
    if info != 0 && !keep {
        // SAFETY: the kernel has just written a siginfo there.
        let record: [u64; 3] = unsafe { user::read(info) }?;
        let code = record[1] as u32 as i32;
        if record[0] as u32 == libc::SIGCHLD as u32
            && matches!(code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED)
        {
            reaped(record[2] as u32);
        }
    }
    Ok(result)
}

/// Whether forked children of the program run: they share its shared memory, as others (of vfork) do not.
pub fn any_sharing() -> bool {
    let _lock = Lock::state();
    let sharing = |entry: &&Child| entry.pid != 0 && entry.ended == child::NO;
    children().iter().filter(sharing).any(|entry| process::ended(entry.pid) == Ok(None))
}

/// At the program's end: a child in a session of its own is a daemon that goes on, without persistence. Says so.
pub fn report_daemons() {
    let session = |pid: u32| {
        // SAFETY: no memory involved.
        unsafe { process::other(libc::SYS_getsid, [pid as usize, 0, 0, 0, 0, 0]) }
    };
    let Ok(own) = session(0) else { return };
    for entry in children().iter().filter(|entry| entry.pid != 0 && entry.is_running()) {
        if session(entry.pid).is_ok_and(|theirs| theirs != own) {
            let mut text = crate::text::Text::of(b"the program ends; its child ");
            text.number(u64::from(entry.pid)).push(b" goes on in the background, without persistence: ");
            crate::die::say(text.push(b"run it in the foreground to keep it persistent"));
        }
    }
}

/// At a resume: every child of the program is gone; those that had not ended have been ended by the failure. Post-commit.
/// How many those are. Nobody hears of them if the program does not want to wait for children.
pub fn lose_children() -> u32 {
    let (action, _) = super::signals::action_now(libc::SIGCHLD as u32);
    KILLED.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    if action.handler == libc::SIG_IGN as u64 {
        children().fill(Child::default());
        return 0;
    }
    if action.flags & libc::SA_NOCLDWAIT as u64 != 0 {
        // Nobody waits, but a handler is told.
        let running = children().iter().filter(|entry| entry.pid != 0 && entry.is_running()).count();
        children().fill(Child::default());
        return running as u32;
    }
    let mut lost = 0;
    for entry in children().iter_mut().filter(|entry| entry.pid != 0 && entry.is_running()) {
        entry.ended = child::STATUS | libc::SIGPWR as u32;
        lost += 1;
    }
    lost
}
