//! A failure at one instruction, as a guardian would meet it: every thread is stopped where it is, its registers are taken
//! as they are, and what it was doing is not brought to its end. The region and the kernel's state as they are at that
//! instruction are what a resume has: the program goes on as before the call or as behind it, never as something else.
//!
//! Every other point is struck a second time, somewhere in the resume or in the life that follows.
//!
//! Key types: [`Rig`], [`Seen`]. Neighbours: `outside` (the save), `scan` (which points there are).

use crate::command::SAVED;
use crate::outside::{self, Place};
use crate::scan::Scan;
use crate::tracer::{Blow, Script, Then, Watched};
use crate::{Finished, Guest, Life, Random, Store};
use std::collections::BTreeMap;

/// Instructions behind a call that are tried; between two calls there are mostly fewer.
const STEPS: u64 = 3000;
/// At every so manieth point it is looked at what is shown of the region.
const LOOKED_AT: u64 = 16;
/// Calls of a life that has been resumed which are tried, at first.
const RESUMED_CALLS: u64 = 300;

/// Calls of a life by the end of which most programs are where they were when they were saved.
const CALLS_AT_FIRST: u64 = 8;

/// What is said of a program in the middle of an exec: also before its new image has the region, and before it is whole.
const EXEC: [&str; 3] = [outside::EXEC, "the program has no region", "the program has not started yet"];

/// What the points of one guest have shown.
#[derive(Debug, Default)]
pub struct Seen {
    /// Saves, each followed by a resume.
    pub saved: u64,
    /// Of them, those of a life that had been resumed.
    pub again: u64,
    /// The program had ended.
    pub late: u64,
    /// In the middle of a fork or of an exec, neither of which can be saved so.
    pub refused: u64,
    /// Recovery handlers that have run.
    pub recovered: u64,
    /// By the number of the call in whose gate the thread was, as far as the gate had noted that: how often.
    pub inside: BTreeMap<u64, u64>,
}

/// A guest, and what is known of it.
pub struct Rig<'a> {
    /// Every other point is in the second.
    stores: &'a [Store; 2],
    guest: Guest,
    native: Finished,
    random: Random,
    /// Calls that a life makes which has been resumed, about.
    resumed: u64,
    number: u64,
    /// Every failure is followed by a recovery handler, but where the second one meets the program at its end.
    pub recovers: bool,
    /// The guest makes execs.
    pub executes: bool,
    /// What has been seen.
    pub seen: Seen,
}

/// What came of a blow.
enum Struck {
    Saved,
    /// It had ended, or does.
    Ended,
    /// Killed while it was on its way out, or in the middle of a fork.
    Killed,
}

/// How many points `ZHUQUE_POINTS` asks for.
pub fn asked(otherwise: u64) -> u64 {
    std::env::var("ZHUQUE_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// `ZHUQUE_POINT=CALLS,STEPS`: this point only. `CALLS,STEPS,CALLS,STEPS`: that, and one in the life that follows.
pub fn only() -> Option<(Then, Option<Then>)> {
    let text = std::env::var("ZHUQUE_POINT").ok()?;
    let mut numbers = text.split(',').map(|number| number.parse().expect("ZHUQUE_POINT: numbers"));
    let mut one = || Some(Then::at(numbers.next()?, numbers.next()?, Blow::Outside));
    Some((one()?, one()))
}

/// Stores for [`Rig::new`]. Resumes in the second can be watched.
pub fn stores() -> [Store; 2] {
    [Store::new(), Store::without_ptrace()]
}

impl<'a> Rig<'a> {
    /// Runs the guest natively.
    pub fn new(stores: &'a [Store; 2], guest: Guest) -> Rig<'a> {
        let native = guest.finish_natively(&stores[0], &stores[0].work_dir("native"));
        assert_eq!(native.status, 0, "natively: {}", native.stderr);
        let (seen, random) = (Seen::default(), Random::new());
        Rig { stores, guest, native, random, resumed: RESUMED_CALLS, number: 0, recovers: false, executes: false, seen }
    }

    /// Watches a whole run.
    fn watch(&self, name: &str, script: Script) -> Watched {
        let (mut life, watched) = Life::start_watched(&self.stores[0], name, &self.guest, script);
        life.check_end(&self.native);
        life.remove();
        watched
    }

    /// How many calls it makes under zhuque.
    pub fn calls(&self) -> u64 {
        let then = Some(Then::at(u64::MAX, 0, Blow::Outside));
        self.watch("counted", Script { then, ..Script::default() }).calls_then
    }

    /// Every instruction of the gate that it comes through.
    pub fn scan(&self) -> Scan {
        self.watch("scanned", Script { scan: true, ..Script::default() }).scan.unwrap_or_default()
    }

    /// Any point of a life that makes so many calls: often a few instructions behind a call, rarely many.
    pub fn anywhere(&mut self, calls: u64) -> Then {
        let scale = 1 + self.random.below(STEPS);
        Then::at(self.random.below(calls), self.random.below(scale), Blow::Outside)
    }

    /// One point of the guest's first life, every other time also one of what follows. Where in the gate it was.
    pub fn point(&mut self, then: Then) -> Option<Place> {
        let twice = !self.number.is_multiple_of(2);
        let second = twice.then(|| self.anywhere_again());
        self.points(then, second)
    }

    /// Any point of a life that has been resumed: half of them where the call goes on that the first one was in.
    fn anywhere_again(&mut self) -> Then {
        let calls = if self.number % 4 == 1 { CALLS_AT_FIRST } else { self.resumed };
        self.anywhere(calls)
    }

    /// A point of the guest's first life, and one of the life that follows. Where in the gate the first was.
    pub fn points(&mut self, then: Then, second: Option<Then>) -> Option<Place> {
        self.number += 1;
        let (store, name) = (&self.stores[usize::from(second.is_some())], format!("point-{}", self.number));
        let script = Script { then: Some(then), ..Script::default() };
        let (mut life, seen) = Life::start_watched(store, &name, &self.guest, script);
        match self.struck(&mut life, &seen) {
            Struck::Saved => match second {
                Some(second) => self.again(life, second),
                None => {
                    life.resume();
                    // The main thread is there then, and blocks nothing.
                    let main = then.thread.is_none_or(|thread| thread == 0);
                    let sleeps = seen.saved_in.is_some_and(|place| place.call == libc::SYS_clock_nanosleep as u64);
                    self.end(life, main && sleeps);
                }
            },
            Struck::Ended => self.end(life, false),
            Struck::Killed => remove(&life),
        }
        seen.saved_in
    }

    /// A resume of what was saved from outside, with a further blow.
    fn again(&mut self, mut life: Life<'_>, then: Then) {
        let seen = life.resume_watched(Script { then: Some(then), ..Script::default() });
        match self.struck(&mut life, &seen) {
            Struck::Saved => {
                self.seen.again += 1;
                life.resume();
            }
            // It is about half of what it was that time: most of these lives begin somewhere else.
            Struck::Ended => self.resumed = (self.resumed + seen.calls_then) / 2 + 1,
            Struck::Killed => return remove(&life),
        }
        self.end(life, false);
    }

    fn struck(&mut self, life: &mut Life<'_>, seen: &Watched) -> Struck {
        let all = &mut self.seen;
        let refused =
            |words: &[&str]| seen.refused.as_ref().is_some_and(|why| words.iter().any(|word| why.contains(word)));
        match seen {
            Watched { status: SAVED, .. } => {
                all.saved += 1;
                if let Some(place) = seen.saved_in {
                    *all.inside.entry(place.call).or_default() += 1;
                }
                if self.number % LOOKED_AT < 2 {
                    check_maps(life, &seen.mapped);
                }
                Struck::Saved
            }
            _ if refused(&["on its way out", "has ended"]) => {
                all.late += 1;
                Struck::Killed
            }
            _ if refused(&[outside::FORK]) || self.executes && refused(&EXEC) => {
                all.refused += 1;
                Struck::Killed
            }
            Watched { struck: false, .. } => {
                all.late += 1;
                Struck::Ended
            }
            _ if inspected(life).contains("a fork was under way") => {
                all.refused += 1;
                Struck::Killed
            }
            _ => life.wrong(&format!("was not saved: {seen:?}")),
        }
    }

    /// The end must be as natively, but for the lines of recovery handlers (`examples/recovery.c`): one for a failure, on
    /// the main thread, but where that has blocked it for a while (pthread_create does); not where it sleeps.
    fn end(&mut self, mut life: Life<'_>, sleeps: bool) {
        let found = life.end();
        let text = String::from_utf8_lossy(&found.stdout);
        let (handlers, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("recovery "));
        if found.status != self.native.status {
            life.wrong(&format!("ended with {} instead of {}", found.status, self.native.status));
        }
        if rest != String::from_utf8_lossy(&self.native.stdout).lines().collect::<Vec<_>>() {
            life.wrong("has another output than natively");
        }
        let mut values = Vec::new();
        for line in &handlers {
            let mut words = line.split(' ').collect::<Vec<_>>();
            // Of two failures the first may have come before there was a handler, and the second's handler may run on
            // another thread beside the first's.
            let value = words.get(7).and_then(|word| word.parse().ok()).unwrap_or(0);
            let (number, main, growing) = (words[1], if sleeps { "1" } else { words[9] }, words[11]);
            words[7] = "value";
            let expected = format!("recovery {number} signal 30 code -1 value value main {main} growing {growing}");
            let alone = life.failures > 1 || (number, growing) == ("1", "1");
            if words.join(" ") != expected || !(1..=life.failures).contains(&value) || values.contains(&value) || !alone
            {
                life.wrong("has not had its recovery signal once for each failure");
            }
            values.push(value);
        }
        if self.recovers && handlers.is_empty() && life.failures > 0 {
            life.wrong("has had no recovery signal");
        }
        self.seen.recovered += handlers.len() as u64;
        life.remove();
    }
}

/// Takes away what was not saved. A start that fails leaves nothing.
fn remove(life: &Life<'_>) {
    if life.store.find(&life.name).is_some() {
        let removed = life.store.call("rm", &[&life.name]);
        assert_eq!(removed.status, 0, "{}", removed.stderr);
    }
}

fn inspected(life: &Life<'_>) -> String {
    String::from_utf8_lossy(&life.store.call("inspect", &[&life.name]).stdout).into_owned()
}

/// What `inspect` says is mapped, the mapping table being in the middle of a change or not, is what the kernel had.
fn check_maps(life: &Life<'_>, mapped: &[String]) {
    let shown = life.store.call("inspect", &[&life.name, "maps"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    let found: Vec<_> = text.lines().filter_map(|line| line.get(..mapped.first()?.len())).collect();
    if shown.status != 0 || found != mapped {
        life.wrong(&format!("has {mapped:#?} mapped, but inspect says\n{text}{}", shown.stderr));
    }
}
