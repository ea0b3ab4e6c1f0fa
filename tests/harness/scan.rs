//! Every instruction of the gate that a program comes through, each with a point at which a failure meets it: what a
//! program does for one system call, from its own last instructions before the gate to its first ones behind it, is a
//! *passage*.
//!
//! The gate does the same work for many calls of the same kind; what is kept is one point for each instruction and call
//! number. Key types: [`Scan`], [`Spot`], [`Point`]. Neighbour: `tracer`, which steps.

use crate::outside::{Gate, Place};
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

/// How many instructions before the gate and behind it are part of a passage: more than the site, the way to its
/// trampoline, and what was moved there.
const AROUND: u64 = 16;
/// The instruction `syscall`.
const SYSCALL: u64 = 0x050f;

/// A moment in a run of a program: see `tracer::Then`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The thread.
    pub thread: usize,
    /// Calls that it has made.
    pub calls: u64,
    /// Instructions behind the last of them.
    pub steps: u64,
    /// How many times the thread has come to this instruction before, if it is one of the gate.
    pub visits: u64,
}

/// Which instruction of a passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    /// So many before the gate.
    Before(u64),
    /// In the gate, by its offset in the shim's text.
    Gate(u64),
    /// So many behind it.
    Behind(u64),
}

/// What has been found.
#[derive(Clone, Default)]
pub struct Scan {
    threads: HashMap<Pid, Thread>,
    /// By the number of the call.
    found: BTreeMap<u64, BTreeMap<Spot, Point>>,
}

/// Where one thread is.
#[derive(Clone, Default)]
struct Thread {
    /// It is stepped: where it is now.
    at: Option<Point>,
    /// How many times it has come to each instruction of the gate.
    visits: HashMap<u64, u64>,
    /// The last one that it has been at: one that repeats is stepped through, and comes to a breakpoint once.
    last: Option<u64>,
    /// The program's last instructions.
    recent: VecDeque<Point>,
    /// The passage that is under way: the call by number, and what belongs to it.
    passage: Option<(u64, Vec<(Spot, Point)>)>,
    /// The call whose passage is over, and how many instructions ago.
    behind: Option<(u64, u64)>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} calls", self.found.len())
    }
}

impl Scan {
    /// What was found, by the number of the call.
    pub fn found(&self) -> &BTreeMap<u64, BTreeMap<Spot, Point>> {
        &self.found
    }

    /// A thread is stepped from now on, which has ended a call: it is there.
    pub fn begin(&mut self, pid: Pid, point: Point) {
        self.threads.entry(pid).or_default().at = Some(point);
    }

    /// Whether a thread is stepped.
    pub fn steps(&self, pid: Pid) -> bool {
        self.threads.get(&pid).is_some_and(|thread| thread.at.is_some())
    }

    /// Looks at what a thread that is stepped is about to execute. A call of the gate's own is not to be
    /// stepped over; with its end the stepping begins again.
    pub fn look(&mut self, gate: &Gate, pid: Pid) -> nix::Result<()> {
        let registers = ptrace::getregs(pid)?;
        let place = gate.place(&registers).unwrap_or_default();
        if place.is_none() {
            self.leave(pid);
        }
        let thread = self.threads.entry(pid).or_default();
        let Some(point) = thread.at else { return Ok(()) };
        thread.at = Some(Point { steps: point.steps + 1, ..point });
        let Some(Place { offset, call }) = place else {
            thread.last = None;
            self.program(pid, point);
            return Ok(());
        };
        let visits = thread.visits.entry(offset).or_default();
        *visits += u64::from(thread.last != Some(offset));
        let point = Point { visits: *visits - 1, ..point };
        thread.last = Some(offset);
        let recent = &mut thread.recent;
        let before = || (call, (1..).map(Spot::Before).zip(recent.drain(..).rev()).collect());
        let (name, spots) = thread.passage.get_or_insert_with(before);
        *name = call;
        spots.push((Spot::Gate(offset), point));
        let word = ptrace::read(pid, registers.rip as ptrace::AddressType)?;
        if word as u64 & 0xffff == SYSCALL {
            thread.at = None;
        }
        Ok(())
    }

    /// A thread has come out of the gate, or has ended.
    pub fn leave(&mut self, pid: Pid) {
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let Some((call, spots)) = thread.passage.take() else { return };
        thread.behind = Some((call, 0));
        let found = self.found.entry(call).or_default();
        for (spot, point) in spots {
            found.entry(spot).or_insert(point);
        }
    }

    /// An instruction that is not the gate's.
    fn program(&mut self, pid: Pid, point: Point) {
        let thread = self.threads.entry(pid).or_default();
        if let Some((call, count)) = &mut thread.behind {
            self.found.entry(*call).or_default().entry(Spot::Behind(*count)).or_insert(point);
            *count += 1;
            if *count == AROUND {
                thread.behind = None;
            }
        }
        if thread.recent.len() as u64 == AROUND {
            thread.recent.pop_front();
        }
        thread.recent.push_back(point);
    }
}
