//! A save from outside (`zhuque_capture`): stops every thread of a traced program where it is, takes their registers into
//! the region, and lets one of them write down the rest. Neighbour: `tracer`, whose thread traces the program.

use crate::tracer::{change_of, go_on_with};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use zhuque_abi::header::{Header, Phase};
use zhuque_abi::layout::{RESERVED_BYTES, SLOT_STRIDE, SLOTS_OFFSET};
use zhuque_abi::slot::{Frame, Slot};
use zhuque_capture::stopped::has_ended;
use zhuque_capture::{Capture, Error, Part, Taken};

/// PTRACE_EVENT_STOP: of a thread that has been born, too.
pub const EVENT_STOP: i32 = 128;
/// How long a thread may take to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// What is said of a program that waits for its newborn child, which stands still because its tracer is busy here.
pub const FORK: &str = "it is in the middle of a fork";

/// What is said of a program whose thread in execve(2) waits for the others to end, which their tracer lets do so later.
pub const EXEC: &str = "it is in the middle of an exec";

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The thread that is to go on, and ends the process.
    pub leader: Pid,
    /// Where in the gate the thread was that had been stopped already, if it was there.
    pub place: Option<Place>,
    /// What the program has mapped, addresses and protection, in the words of `zhuque inspect NAME maps`.
    pub mapped: Vec<String>,
}

/// Saves `program`; `stopped` is stopped already.
pub fn save(program: Pid, stopped: Pid) -> Result<Saved, String> {
    let mut threads = stop_all(program, vec![stopped])?;
    let (end, mut moment) = (Instant::now() + LIMIT, Duration::from_millis(1));
    loop {
        let any = *threads.first().ok_or("it has ended")?;
        // Each time: it may have executed something else meanwhile.
        let gate = Gate::of(program, any)?;
        let mut capture = Capture::of(&gate.control).map_err(|error| error.to_string())?;
        let registers = threads.contains(&stopped).then(|| ptrace::getregs(stopped));
        let place = match registers {
            Some(found) => gate.place(&found.map_err(|error| error.to_string())?)?,
            None => None,
        };
        match take(&mut capture, &threads)? {
            true => {
                let leader = capture.lead().map_err(|error| error.to_string())?;
                if comes_to_its_stop(leader)? {
                    capture.finish().map_err(|error| error.to_string())?;
                }
                return Ok(Saved { leader, place, mapped: gate.mapped(program, leader)? });
            }
            false if Instant::now() > end => return Err("no thread of it can lead the save all the time".to_owned()),
            false => {}
        }
        for &tid in &threads {
            capture.let_go(tid).map_err(|error| error.to_string())?;
        }
        let_run(program, &threads, moment);
        // Longer each time: on a busy machine a thread may not have run at all.
        moment *= 2;
        threads = stop_all(program, Vec::new())?;
    }
}

/// Lets the thread that leads come to the stop in which the others' signals are looked at. False: it has found that it cannot
/// lead, and ends with its process.
fn comes_to_its_stop(leader: Pid) -> Result<bool, String> {
    let end = Instant::now() + LIMIT;
    let _ = go_on_with(libc::PTRACE_CONT, leader, 0);
    while Instant::now() < end {
        match change_of(leader) {
            Err(_) => return Ok(false),
            Ok(None) => std::thread::yield_now(),
            Ok(Some((_, status))) if !libc::WIFSTOPPED(status) => return Ok(false),
            Ok(Some((_, status))) if status >> 16 == 0 && libc::WSTOPSIG(status) == libc::SIGTRAP => return Ok(true),
            Ok(Some((_, status))) if status >> 16 == Event::PTRACE_EVENT_EXIT as i32 => return Ok(false),
            Ok(Some((_, status))) => {
                let _ = go_on_with(libc::PTRACE_CONT, leader, signal_of(status));
            }
        }
    }
    Err("the thread that leads the save does not come to its stop".to_owned())
}

/// Lets threads that are stopped run for a while, also those that stop once more: one that was stopped already when it was
/// interrupted has a second stop to come.
fn let_run(program: Pid, stopped: &[Pid], time: Duration) {
    let end = Instant::now() + time;
    for &tid in stopped {
        let _ = ptrace::cont(tid, None);
    }
    while Instant::now() < end {
        for tid in tasks(program) {
            if let Ok(Some((_, status))) = change_of(tid)
                && libc::WIFSTOPPED(status)
            {
                let _ = go_on_with(libc::PTRACE_CONT, tid, signal_of(status));
            }
        }
        std::thread::yield_now();
    }
}

/// The signal that a stopped thread is to have; 0: the stop is for something else.
fn signal_of(status: i32) -> i32 {
    let event = status >> 16 != 0 || libc::WSTOPSIG(status) & 0x80 != 0;
    if event { 0 } else { libc::WSTOPSIG(status) }
}

/// The threads that there are now.
fn tasks(program: Pid) -> Vec<Pid> {
    let names = fs::read_dir(format!("/proc/{program}/task")).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok().map(Pid::from_raw)).collect()
}

/// Takes every thread. False: one is being revived, or all that there are are being born or on their way out.
fn take(capture: &mut Capture<'_>, threads: &[Pid]) -> Result<bool, String> {
    let mut parts = Vec::new();
    for &tid in threads {
        match capture.check(tid) {
            Ok(part) => parts.push(part),
            Err(Error::Early) => return Ok(false),
            Err(error) => return Err(format!("thread {tid}: {error}")),
        }
    }
    match parts.as_slice() {
        [] => return Err("it has ended".to_owned()),
        [Part::Leaves] => {}
        _ if !parts.contains(&Part::Leads) => return Ok(false),
        _ => {}
    }
    for &tid in threads {
        match capture.thread(tid, None) {
            Ok(Taken::Slot(_)) => {}
            Ok(Taken::Gone) if threads.len() == 1 => return Err("the last thread is on its way out".to_owned()),
            Ok(Taken::Gone) => let_end(tid)?,
            Err(error) => return Err(format!("thread {tid}: {error}")),
        }
    }
    Ok(true)
}

/// A program's gate, as it is seen from outside.
#[derive(Debug)]
pub struct Gate {
    control: File,
    /// Addresses: of the slots, and of the shim's text.
    slots: u64,
    text: u64,
}

/// Where in the gate a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the beginning of the shim's text.
    pub offset: u64,
    /// The program's system call, by number: the last one that the gate has begun with for this thread.
    pub call: u64,
}

impl Gate {
    /// By the program's mapping of its region. A thread is asked: the main one may have ended.
    pub fn of(program: Pid, thread: Pid) -> Result<Gate, String> {
        let maps = read_maps(program, thread)?;
        let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        let path = paths.find(|path| path.ends_with("/control")).ok_or("the program has no region")?;
        let control = File::options().read(true).write(true).open(path).map_err(|error| error.to_string())?;
        let slots = word(&control, offset_of!(Header, base) as u64)? + SLOTS_OFFSET;
        let text = word(&control, offset_of!(Header, shim_start) as u64)?;
        Ok(Gate { control, slots, text })
    }

    /// Where a thread with these registers is, if its counter is in the shim.
    pub fn place(&self, registers: &libc::user_regs_struct) -> Result<Option<Place>, String> {
        /// More than the shim's text.
        const TEXT: u64 = 1 << 20;
        let Some(offset) = registers.rip.checked_sub(self.text).filter(|offset| *offset < TEXT) else {
            return Ok(None);
        };
        let Some(bytes) = registers.gs_base.checked_sub(self.slots) else { return Ok(None) };
        let number = (offset_of!(Slot, frame) + offset_of!(Frame, number)) as u64;
        let call = word(&self.control, SLOTS_OFFSET + bytes / SLOT_STRIDE * SLOT_STRIDE + number)?;
        Ok(Some(Place { offset, call }))
    }

    /// Where an instruction of the shim is.
    pub fn address(&self, offset: u64) -> u64 {
        self.text + offset
    }

    /// The program's own mappings.
    fn mapped(&self, program: Pid, thread: Pid) -> Result<Vec<String>, String> {
        let maps = read_maps(program, thread)?;
        let base = self.slots - SLOTS_OFFSET;
        let each = |line: &str| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap_or_default());
            let prot = words.next()?.get(..3)?;
            let others = (base..base + RESERVED_BYTES).contains(&start)
                || words.nth(3).is_some_and(|name| name.starts_with("[v"));
            (!others).then(|| format!("{start:012x}-{end:012x} {prot}"))
        };
        Ok(maps.lines().filter_map(each).collect())
    }

    /// Whether the program has started, or goes on.
    pub fn is_running(&self) -> bool {
        let phase = word(&self.control, offset_of!(Header, phase) as u64);
        phase.is_ok_and(|word| Phase::from_raw(word as u8) == Some(Phase::Running))
    }
}

/// Has a stopped thread stop when it is about to execute the instruction at an address (SIGTRAP; the kernel lets it go on
/// from there without another stop), or takes that back.
pub fn break_at(thread: Pid, address: Option<u64>) -> nix::Result<()> {
    /// The first breakpoint is on for this thread, and is one for execution.
    const FIRST: u64 = 1;
    let register = |number: usize| offset_of!(libc::user, u_debugreg) + number * size_of::<u64>();
    let set = |number: usize, value: u64| {
        ptrace::write_user(thread, register(number) as ptrace::AddressType, value as libc::c_long)
    };
    match address {
        Some(address) => set(0, address).and_then(|()| set(7, FIRST)),
        None => set(7, 0),
    }
}

/// The kernel's list of what a program has mapped.
fn read_maps(program: Pid, thread: Pid) -> Result<String, String> {
    fs::read_to_string(format!("/proc/{program}/task/{thread}/maps")).map_err(|error| error.to_string())
}

/// Eight bytes of the control file.
fn word(control: &File, offset: u64) -> Result<u64, String> {
    let mut bytes = [0; 8];
    control.read_exact_at(&mut bytes, offset).map_err(|error| error.to_string())?;
    Ok(u64::from_le_bytes(bytes))
}

/// Stops every thread that is not `there` yet, also those that are born meanwhile; all that there are.
fn stop_all(program: Pid, mut there: Vec<Pid>) -> Result<Vec<Pid>, String> {
    loop {
        let before = there.len();
        for tid in tasks(program) {
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
        let _ = change_of(tid);
        std::thread::yield_now();
    }
    Ok(())
}

/// Whether a thread waits where nothing lets it stop: in vfork(2) for its child's exec or end, in execve(2) for the ends of
/// the others.
fn is_uninterruptible(tid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

fn has_children(tid: Pid) -> bool {
    let children = fs::read_to_string(format!("/proc/{tid}/task/{tid}/children")).unwrap_or_default();
    !children.trim().is_empty()
}

/// Stops one thread, between any two of its instructions; false if it has ended.
fn stop(tid: Pid) -> Result<bool, String> {
    match go_on_with(libc::PTRACE_INTERRUPT, tid, 0) {
        // It has ended, or is stopped for something else, which is seen below.
        Ok(_) | Err(Errno::ESRCH | Errno::EIO) => {}
        Err(error) => return Err(format!("cannot interrupt {tid}: {error}")),
    }
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if has_ended(tid) {
            return Ok(false);
        }
        if began.elapsed() > LIMIT / 10 && is_uninterruptible(tid) {
            return Err(if has_children(tid) { FORK } else { EXEC }.to_owned());
        }
        match change_of(tid) {
            Err(_) => return Ok(false),
            Ok(None) => std::thread::yield_now(),
            Ok(Some((_, status))) if !libc::WIFSTOPPED(status) => return Ok(false),
            Ok(Some((_, status))) if status >> 16 == EVENT_STOP => return Ok(true),
            Ok(Some((_, status))) => {
                // On its way into or out of a call, or with a signal that it is to have: the stop comes behind that. It
                // has to be asked for again (any stop takes the request back, ptrace_stop in kernel/signal.c).
                let _ = go_on_with(libc::PTRACE_CONT, tid, signal_of(status));
                let _ = go_on_with(libc::PTRACE_INTERRUPT, tid, 0);
            }
        }
    }
    let state = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    Err(format!("thread {tid} does not stop: {state}"))
}
