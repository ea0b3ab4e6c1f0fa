//! Power failures at chosen system calls: a program under `zhuque run`, watched with ptrace(2).
//!
//! What is counted are the calls that reach the kernel, the shim's own included: Syscall User Dispatch comes before
//! ptrace in the kernel's entry, so a call that is only on its way into the gate does not show. Moments of call N:
//! *before* it (it is taken back, and SIGPWR arrives with the registers as they were in front of the instruction),
//! *inside* (SIGPWR is pending when it begins: what blocks is interrupted, everything else gets it on the way out) and
//! *after* it.
//!
//! wait4(2) and the requests that carry signals are called directly: nix knows no real-time signals.
//!
//! After the failure, or in a resume, a further blow can follow: SIGKILL or SIGPWR, at any instruction ([`Then`]).
//!
//! Key types: [`Script`], [`Watched`]. Neighbours: `life`, which starts the program and resumes it;
//! `outside`, `scan`.
#![allow(unsafe_code)]

use crate::outside::{self, Gate, Place};
use crate::scan::{Point, Scan};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zhuque_capture::stopped::signal_set;

/// The stop signal of a call's stop.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// Where in a call the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the call has begun.
    Before,
    /// While it is made.
    Inside,
    /// When it is through, before the next instruction.
    After,
}

/// What is to happen to a watched program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The power fails at this call.
    pub fail: Option<(u64, Moment)>,
    /// Nobody but the thread that makes it hears of the failure. Not for a program that forks: the gate's kicks, by which
    /// it stops all threads, and the signal to one thread would be one.
    pub alone: bool,
    /// What follows.
    pub then: Option<Then>,
    /// Every instruction is looked at instead.
    pub scan: bool,
}

/// A blow that comes so many calls after the failure, if there is one, else after the program's exec (a save from outside:
/// after the beginning of its life), and so many instructions later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Then {
    /// The thread whose calls are counted, its birth among them: how many had been born before it. `None`: those of all
    /// threads are.
    pub thread: Option<usize>,
    /// Calls that have been ended.
    pub calls: u64,
    /// Instructions of the thread that ended the last of them.
    pub steps: u64,
    /// Instead of counting calls and stepping: the thread comes to this instruction of the gate.
    pub visit: Option<Visit>,
    /// What comes then.
    pub blow: Blow,
}

impl Then {
    /// After so many calls of all threads, and so many instructions.
    pub const fn at(calls: u64, steps: u64, blow: Blow) -> Then {
        Then { thread: None, calls, steps, visit: None, blow }
    }
}

/// A moment that a hardware breakpoint finds, which takes one stop for each visit where counting takes two for each call,
/// and one for each instruction behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The instruction: bytes from the beginning of the shim's text.
    pub offset: u64,
    /// How many times the thread has come to it before, in this life.
    pub before: u64,
}

/// What strikes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL, or SIGPWR, to the process.
    Signal(Signal),
    /// Everything stops, and is saved from outside.
    Outside,
}

/// What was seen of a program.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Calls that its threads have begun.
    pub calls: u64,
    /// The number of the call at which the power failed, if it did.
    pub failed_at: Option<u64>,
    /// Which system call that was.
    pub failed_in: i64,
    /// Whether the blow that follows was struck.
    pub struck: bool,
    /// Calls ended since the failure, or the exec, or the beginning of its life: see [`Then`].
    pub calls_then: u64,
    /// Where in the gate the thread was that was saved from outside.
    pub saved_in: Option<Place>,
    /// What it had mapped then, see `outside::Saved`.
    pub mapped: Vec<String>,
    /// Why it could not be.
    pub refused: Option<String>,
    /// What was found, if every instruction was looked at.
    pub scan: Option<Scan>,
    /// The launcher's exit status.
    pub status: i32,
}

/// A thread of the program between the two stops of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Calls,
    /// In a call that the failure is waiting for.
    Call(Failing),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failing {
    No,
    /// The call was taken back: this is its number.
    TakenBack(u64),
    Afterwards,
}

struct Tracer {
    root: Pid,
    program: Option<Pid>,
    threads: Vec<(Pid, Between)>,
    script: Script,
    /// Its gate, once it is alive.
    gate: Option<Gate>,
    /// Calls that its threads have ended.
    made: Vec<(Pid, u64)>,
    /// The thread that is stepped, and how many instructions are left.
    stepped: Option<(Pid, u64)>,
    /// The thread that has a breakpoint, where, and how many visits are left.
    watched: Option<(Pid, u64, u64)>,
    seen: Watched,
}

/// Attaches to `launcher`, which has not executed `zhuque` yet and is a child of this thread, and lets `go` tell it to.
/// Returns when the launcher has ended, `None` if it does not in `limit`.
pub fn watch(launcher: u32, script: Script, limit: Duration, go: impl FnOnce()) -> nix::Result<Option<Watched>> {
    let root = Pid::from_raw(launcher as i32);
    let all = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXIT;
    ptrace::seize(root, all)?;
    go();
    let seen = Watched { scan: script.scan.then(Scan::default), ..Watched::default() };
    let mut tracer = Tracer {
        root,
        program: None,
        threads: Vec::new(),
        script,
        gate: None,
        made: Vec::new(),
        stepped: None,
        watched: None,
        seen,
    };
    let end = Instant::now() + limit;
    let mut quiet = 0;
    while Instant::now() < end {
        let Some((pid, status)) = next_change()? else {
            quiet += 1;
            match quiet {
                0..50 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
            continue;
        };
        quiet = 0;
        if pid == root && !libc::WIFSTOPPED(status) {
            tracer.seen.status = match libc::WIFEXITED(status) {
                true => libc::WEXITSTATUS(status),
                false => 128 + libc::WTERMSIG(status),
            };
            return Ok(Some(tracer.seen));
        }
        match tracer.changed(pid, status) {
            // It was killed while it stood still.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What has happened to a process that this thread has started or traces (other tests run beside it), without waiting.
fn next_change() -> nix::Result<Option<(Pid, i32)>> {
    change_of(Pid::from_raw(-1))
}

/// The same of one thread.
pub(crate) fn change_of(wanted: Pid) -> nix::Result<Option<(Pid, i32)>> {
    let mut status = 0;
    // SAFETY: writes the status.
    let pid = unsafe { libc::waitpid(wanted.as_raw(), &mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    Errno::result(pid).map(|pid| (pid > 0).then_some((Pid::from_raw(pid), status)))
}

/// Lets a stopped thread go on by `request`, and gives it a signal; or asks it to stop (PTRACE_INTERRUPT).
pub(crate) fn go_on_with(request: libc::c_uint, pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: these requests take a number each, no addresses.
    Errno::result(unsafe { libc::ptrace(request, pid.as_raw(), 0, i64::from(signal)) }).map(|_| ())
}

impl Tracer {
    fn changed(&mut self, pid: Pid, status: i32) -> nix::Result<()> {
        let ends = status >> 16 == Event::PTRACE_EVENT_EXIT as i32;
        if (ends || !libc::WIFSTOPPED(status)) && self.stepped.is_some_and(|(thread, _)| thread == pid) {
            // The blow comes elsewhere.
            self.stepped = None;
        }
        if !libc::WIFSTOPPED(status) && self.watched.is_some_and(|(thread, ..)| thread == pid) {
            self.watched = None;
        }
        if ends && let Some(scan) = &mut self.seen.scan {
            scan.leave(pid);
        }
        if !libc::WIFSTOPPED(status) {
            self.threads.retain(|(thread, _)| *thread != pid);
            return Ok(());
        }
        // PTRACE_O_TRACESYSGOOD marks the stops of calls, the bits above say which event it is.
        match (libc::WSTOPSIG(status), status >> 16) {
            (SYSCALL_STOP, _) => self.call(pid),
            (_, event) if event != 0 => {
                if event == Event::PTRACE_EVENT_EXEC as i32 && pid != self.root {
                    // The end of the call is still to come, also where another thread has made it and this id has passed
                    // to that one.
                    let program = *self.program.get_or_insert(pid);
                    (self.gate, self.watched) = (None, None);
                    if pid == program {
                        self.threads.clear();
                        self.threads.push((pid, Between::Call(Failing::No)));
                    }
                }
                let born = event == outside::EVENT_STOP && self.gate.is_some() && self.script.fail.is_none();
                if born && self.is_ours(pid) && !self.made.iter().any(|(thread, _)| *thread == pid) {
                    // What it does before its first call is to be met too: as if it had ended one.
                    return self.ended(pid);
                }
                self.go_on(pid, 0)
            }
            (libc::SIGTRAP, _) if self.stepped.is_some_and(|(thread, _)| thread == pid) => self.step(pid),
            (libc::SIGTRAP, _) if self.watched.is_some_and(|(thread, ..)| thread == pid) => self.visited(pid),
            (libc::SIGTRAP, _) if self.seen.scan.as_ref().is_some_and(|scan| scan.steps(pid)) => self.look(pid, None),
            (signal, _) => self.go_on(pid, signal),
        }
    }

    /// Whether `pid` is a thread of the program. What the program forks is let go.
    fn is_ours(&mut self, pid: Pid) -> bool {
        if self.threads.iter().any(|(thread, _)| *thread == pid) {
            return true;
        }
        let Some(program) = self.program else { return false };
        let ours = PathBuf::from(format!("/proc/{program}/task/{pid}")).exists();
        if ours {
            self.threads.push((pid, Between::Calls));
        }
        ours
    }

    /// Lets a thread go on, to its next call as long as calls are counted.
    fn go_on(&mut self, pid: Pid, signal: i32) -> nix::Result<()> {
        let looked_at = self.seen.scan.as_ref().is_some_and(|scan| scan.steps(pid));
        if looked_at || self.stepped.is_some_and(|(thread, _)| thread == pid) {
            return go_on_with(libc::PTRACE_SINGLESTEP, pid, signal);
        }
        if self.watched.is_none() && self.counting() && self.is_ours(pid) {
            return go_on_with(libc::PTRACE_SYSCALL, pid, signal);
        }
        let forked = self.program.is_some() && pid != self.root && !self.is_ours(pid);
        go_on_with(if forked { libc::PTRACE_DETACH } else { libc::PTRACE_CONT }, pid, signal)
    }

    /// Whether calls are counted.
    fn counting(&self) -> bool {
        let fails_yet = self.script.fail.is_some() && self.seen.failed_at.is_none();
        fails_yet || !self.seen.struck && (self.script.then.is_some() || self.script.fail.is_none())
    }

    /// Whether what follows is due: the failure, if there is to be one, has been.
    fn follows(&self) -> bool {
        self.script.fail.is_none() || self.seen.failed_at.is_some()
    }

    /// Whether the program's life has begun: it has started, or its resume has been committed.
    fn lives(&mut self, pid: Pid) -> bool {
        if let (None, Some(program)) = (&self.gate, self.program) {
            self.gate = Gate::of(program, pid).ok().filter(Gate::is_running);
        }
        self.gate.is_some()
    }

    /// A call has ended: begins to step, if it was the one.
    fn ended(&mut self, pid: Pid) -> nix::Result<()> {
        let scans = self.seen.scan.is_some();
        let begins = scans || self.follows() && self.counting() && self.stepped.is_none();
        let outside = scans || self.script.then.is_some_and(|then| then.blow == Blow::Outside);
        if !begins || outside && !self.lives(pid) {
            return self.go_on(pid, 0);
        }
        self.seen.calls_then += 1;
        let (thread, calls) = self.count(pid);
        if scans {
            return self.look(pid, Some(Point { thread, calls: calls - 1, steps: 0, visits: 0 }));
        }
        let Some(then) = self.script.then else { return self.go_on(pid, 0) };
        if let (Some(visit), Some(gate), true) = (then.visit, &self.gate, then.thread == Some(thread)) {
            let address = gate.address(visit.offset);
            outside::break_at(pid, Some(address))?;
            self.watched = Some((pid, address, visit.before));
            return self.go_on(pid, 0);
        }
        let due = match then.thread {
            Some(wanted) => wanted == thread && calls > then.calls,
            None => self.seen.calls_then > then.calls,
        };
        if !due {
            return self.go_on(pid, 0);
        }
        self.stepped = Some((pid, then.steps));
        self.step(pid)
    }

    /// Which thread has ended a call, and how many that makes.
    fn count(&mut self, pid: Pid) -> (usize, u64) {
        let known = self.made.iter().position(|(thread, _)| *thread == pid);
        let index = known.unwrap_or_else(|| {
            self.made.push((pid, 0));
            self.made.len() - 1
        });
        self.made[index].1 += 1;
        (index, self.made[index].1)
    }

    /// Looks at the instruction that comes next, and steps over it.
    fn look(&mut self, pid: Pid, begins: Option<Point>) -> nix::Result<()> {
        let (Some(scan), Some(gate)) = (&mut self.seen.scan, &self.gate) else { return self.go_on(pid, 0) };
        if let Some(point) = begins {
            scan.begin(pid, point);
        }
        scan.look(gate, pid)?;
        self.go_on(pid, 0)
    }

    /// One more instruction, or the blow.
    fn step(&mut self, pid: Pid) -> nix::Result<()> {
        let (Some((_, left)), Some(then), Some(program)) = (self.stepped, self.script.then, self.program) else {
            return self.go_on(pid, 0);
        };
        if left > 0 {
            self.stepped = Some((pid, left - 1));
            return go_on_with(libc::PTRACE_SINGLESTEP, pid, 0);
        }
        self.strike(program, pid, then.blow)
    }

    /// A thread has come to its breakpoint.
    fn visited(&mut self, pid: Pid) -> nix::Result<()> {
        let (Some((_, address, left)), Some(then), Some(program)) = (self.watched, self.script.then, self.program)
        else {
            return self.go_on(pid, 0);
        };
        if ptrace::getregs(pid)?.rip != address {
            // A signal of the program's.
            return self.go_on(pid, libc::SIGTRAP);
        }
        if left > 0 {
            self.watched = Some((pid, address, left - 1));
            return self.go_on(pid, 0);
        }
        outside::break_at(pid, None)?;
        self.strike(program, pid, then.blow)
    }

    /// The blow. `pid` is the thread that has stopped for it.
    fn strike(&mut self, program: Pid, pid: Pid, blow: Blow) -> nix::Result<()> {
        (self.stepped, self.watched, self.seen.struck) = (None, None, true);
        match blow {
            Blow::Signal(signal) => {
                kill(program, signal)?;
                self.go_on(pid, 0)
            }
            Blow::Outside => self.save(program, pid),
        }
    }

    /// Saves the program from outside. `pid` is the thread that has stopped.
    fn save(&mut self, program: Pid, pid: Pid) -> nix::Result<()> {
        match outside::save(program, pid) {
            Ok(saved) => {
                (self.seen.saved_in, self.seen.mapped) = (saved.place, saved.mapped);
                go_on_with(libc::PTRACE_CONT, saved.leader, 0)
            }
            Err(why) => {
                self.seen.refused = Some(why);
                kill(program, Signal::SIGKILL)
            }
        }
    }

    /// A thread has come to the beginning or the end of a call.
    fn call(&mut self, pid: Pid) -> nix::Result<()> {
        if !self.is_ours(pid) {
            return self.go_on(pid, 0);
        }
        let Some(at) = self.threads.iter().position(|(thread, _)| *thread == pid) else { return Ok(()) };
        match self.threads[at].1 {
            Between::Calls => self.begins(pid, at),
            Between::Call(failing) => {
                self.threads[at].1 = Between::Calls;
                match failing {
                    Failing::No => self.ended(pid),
                    Failing::Afterwards => self.fail(pid),
                    Failing::TakenBack(number) => {
                        let mut registers = ptrace::getregs(pid)?;
                        registers.rax = number;
                        registers.rip -= 2;
                        ptrace::setregs(pid, registers)?;
                        self.fail(pid)?;
                        self.seen.failed_in = number as i64;
                        Ok(())
                    }
                }
            }
        }
    }

    fn begins(&mut self, pid: Pid, at: usize) -> nix::Result<()> {
        let number = self.seen.calls;
        self.seen.calls += 1;
        let moment = self
            .script
            .fail
            .filter(|(call, _)| *call == number && self.seen.failed_at.is_none())
            .map(|(_, moment)| moment);
        self.threads[at].1 = Between::Call(match moment {
            Some(Moment::Before) => {
                let mut registers = ptrace::getregs(pid)?;
                let number = registers.orig_rax;
                registers.orig_rax = u64::MAX;
                ptrace::setregs(pid, registers)?;
                Failing::TakenBack(number)
            }
            Some(Moment::After) => Failing::Afterwards,
            _ => Failing::No,
        });
        if moment == Some(Moment::Inside) { self.fail(pid) } else { self.go_on(pid, 0) }
    }

    /// The power fails: this thread is the first to hear of it.
    fn fail(&mut self, pid: Pid) -> nix::Result<()> {
        self.seen.failed_in = ptrace::getregs(pid)?.orig_rax as i64;
        self.seen.failed_at = self.script.fail.map(|(call, _)| call);
        // This thread may be ending, or be about to block signals; then the others hear of it.
        let inside = self.script.fail.is_some_and(|(_, moment)| moment == Moment::Inside);
        let deaf = !self.script.alone || inside || blocks(pid, Signal::SIGPWR);
        if let (true, Some(program)) = (deaf, self.program) {
            kill(program, Signal::SIGPWR)?;
        }
        // At the stop of a call the kernel sends the signal, rather than deliver it (ptrace(2)).
        let request = if self.counting() { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        go_on_with(request, pid, libc::SIGPWR)
    }
}

/// Whether a thread blocks a signal.
fn blocks(thread: Pid, signal: Signal) -> bool {
    signal_set(thread, "SigBlk").is_ok_and(|set| set & 1 << (signal as u64 - 1) != 0)
}
