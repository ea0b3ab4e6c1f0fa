//! A save from outside (`zhuque_capture`): stops every thread of a traced program where it is, takes their registers into
//! the region, and lets one of them write down the rest. Neighbour: `tracer`, whose thread traces the program.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zhuque_abi::header::Header;
use zhuque_abi::layout::{SLOT_STRIDE, SLOTS_OFFSET};
use zhuque_abi::slot::{Frame, Slot};
use zhuque_capture::stopped::has_ended;
use zhuque_capture::{Capture, Taken};

/// PTRACE_EVENT_STOP.
const EVENT_STOP: i32 = 128;
/// How long a thread may take to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The thread that is to go on, and ends the process.
    pub leader: Pid,
    /// The program's system call that the thread stood in which had been stopped already: its number, if it was in the
    /// gate.
    pub call: Option<u64>,
}

/// Saves `program`; `stopped` is stopped already.
pub fn save(program: Pid, stopped: Pid) -> Result<Saved, String> {
    let threads = stop_all(program, stopped)?;
    let control = open_control(program, stopped)?;
    let call = call_of(&control, stopped)?;
    let mut capture = Capture::of(&control).map_err(|error| error.to_string())?;
    for &tid in &threads {
        let taken = capture.thread(tid, None).map_err(|error| format!("thread {tid}: {error}"))?;
        if taken == Taken::Gone {
            if threads.len() == 1 {
                return Err("the last thread is on its way out".to_owned());
            }
            let_end(tid)?;
        }
    }
    let leader = capture.lead().map_err(|error| error.to_string())?;
    Ok(Saved { leader, call })
}

/// The region's control file, by the program's mapping of it. A thread is asked: the main one may have ended.
fn open_control(program: Pid, thread: Pid) -> Result<File, String> {
    let maps = fs::read_to_string(format!("/proc/{program}/task/{thread}/maps")).map_err(|error| error.to_string())?;
    let path = maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.ends_with("/control")));
    let path = PathBuf::from(path.ok_or("the program has no region")?);
    File::options().read(true).write(true).open(path).map_err(|error| error.to_string())
}

/// The number of the call that a thread is in, if its counter is in the shim.
fn call_of(control: &File, tid: Pid) -> Result<Option<u64>, String> {
    /// More than the shim's text.
    const TEXT: u64 = 1 << 20;
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        control.read_exact_at(&mut bytes, offset).map(|()| u64::from_le_bytes(bytes)).map_err(|error| error.to_string())
    };
    let registers = ptrace::getregs(tid).map_err(|error| error.to_string())?;
    let slots = word(offset_of!(Header, base) as u64)? + SLOTS_OFFSET;
    let start = word(offset_of!(Header, shim_start) as u64)?;
    let Some(index) = registers.gs_base.checked_sub(slots).map(|bytes| bytes / SLOT_STRIDE) else { return Ok(None) };
    let number =
        word(SLOTS_OFFSET + index * SLOT_STRIDE + (offset_of!(Slot, frame) + offset_of!(Frame, number)) as u64)?;
    Ok((start..start + TEXT).contains(&registers.rip).then_some(number))
}

/// Stops every thread but `stopped`, also those that are born meanwhile; all that there are.
fn stop_all(program: Pid, stopped: Pid) -> Result<Vec<Pid>, String> {
    let mut there = vec![stopped];
    loop {
        let before = there.len();
        for entry in fs::read_dir(format!("/proc/{program}/task")).map_err(|error| error.to_string())?.flatten() {
            let tid = entry.file_name().to_string_lossy().parse().map(Pid::from_raw).map_err(|_| "a task")?;
            if !there.contains(&tid) && stop(tid)? {
                there.push(tid);
            }
        }
        if there.len() == before {
            return Ok(there);
        }
    }
}

/// Lets a thread do the exit that it stands in front of.
fn let_end(tid: Pid) -> Result<(), String> {
    let end = Instant::now() + LIMIT;
    while !has_ended(tid) {
        let _ = ptrace::cont(tid, None);
        if Instant::now() > end {
            return Err(format!("thread {tid} does not end"));
        }
        let mut status = 0;
        // SAFETY: writes the status.
        unsafe { libc::waitpid(tid.as_raw(), &mut status, libc::__WALL | libc::WNOHANG) };
        std::thread::yield_now();
    }
    Ok(())
}

/// Stops one thread, between any two of its instructions; false if it has ended.
fn stop(tid: Pid) -> Result<bool, String> {
    let request = |request: libc::c_uint, signal: i32| {
        // SAFETY: these requests take a number each, no addresses.
        Errno::result(unsafe { libc::ptrace(request, tid.as_raw(), 0, i64::from(signal)) })
    };
    match request(libc::PTRACE_INTERRUPT, 0) {
        // It has ended, or is stopped for something else, which is seen below.
        Ok(_) | Err(Errno::ESRCH | Errno::EIO) => {}
        Err(error) => return Err(format!("cannot interrupt {tid}: {error}")),
    }
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if has_ended(tid) {
            return Ok(false);
        }
        let mut status = 0;
        // SAFETY: writes the status.
        let found = unsafe { libc::waitpid(tid.as_raw(), &mut status, libc::__WALL | libc::WNOHANG) };
        match Errno::result(found) {
            Err(_) => return Ok(false),
            Ok(0) => std::thread::yield_now(),
            Ok(_) if !libc::WIFSTOPPED(status) => return Ok(false),
            Ok(_) if status >> 16 == EVENT_STOP => return Ok(true),
            Ok(_) => {
                // On its way into or out of a call, or with a signal that it is to have: the stop comes behind that. It
                // has to be asked for again (any stop takes the request back, ptrace_stop in kernel/signal.c).
                let event = status >> 16 != 0 || libc::WSTOPSIG(status) & 0x80 != 0;
                let signal = if event { 0 } else { libc::WSTOPSIG(status) };
                let _ = request(libc::PTRACE_CONT, signal);
                let _ = request(libc::PTRACE_INTERRUPT, 0);
            }
        }
    }
    let state = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    Err(format!("thread {tid} does not stop: {state}"))
}
