//! A failure at every instruction, those of the gate included, as a guardian would meet it: every thread is stopped where
//! it is, its registers are taken as they are, and what it was doing is not brought to its end. The region and the
//! kernel's state as they are at that instruction are what a resume has: the program goes on as before the call or as
//! behind it, never as something else.
//!
//! Points are a call that the process makes and an instruction behind it. `ZHUQUE_POINTS` says how many (default 60).

use std::collections::BTreeMap;
use zhuque_tests::command::SAVED;
use zhuque_tests::tracer::{Blow, Script, Then, Watched};
use zhuque_tests::{Finished, Guest, Life, Random, Store};

/// Instructions behind a call that are tried; between two calls there are mostly fewer.
const STEPS: u64 = 3000;

fn points() -> u64 {
    std::env::var("ZHUQUE_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// `ZHUQUE_POINT=CALLS,STEPS`: this point only.
fn only() -> Option<(u64, u64)> {
    let text = std::env::var("ZHUQUE_POINT").ok()?;
    let (calls, steps) = text.split_once(',')?;
    Some((calls.parse().ok()?, steps.parse().ok()?))
}

/// What the points of one guest have shown.
#[derive(Default)]
struct Seen {
    saved: u64,
    early: u64,
    late: u64,
    /// In the middle of a fork, which cannot be saved so.
    refused: u64,
    /// Recovery handlers that have run.
    recovered: u64,
    /// By the number of the call in whose gate the thread was.
    inside: BTreeMap<u64, u64>,
}

/// A guest, and what is known of it.
struct Rig<'a> {
    store: &'a Store,
    guest: &'a Guest,
    native: Finished,
    seen: Seen,
}

fn check(guest: &Guest) {
    let store = Store::new();
    let native = guest.finish_natively(&store, &store.work_dir("native"));
    assert_eq!(native.status, 0, "natively: {}", native.stderr);
    let (mut life, watched) = Life::start_watched(&store, "counted", guest, Script::default());
    life.check_end(&native);
    life.remove();
    let mut rig = Rig { store: &store, guest, native, seen: Seen::default() };
    let (mut random, mut first) = (Random::new(), 0);
    let only = only();
    for number in 0..only.map_or(points(), |_| 1) {
        let scale = 1 + random.below(STEPS);
        let calls = first + random.below(watched.calls - first);
        let (calls, steps) = only.unwrap_or((calls, random.below(scale)));
        first = first.max(rig.point(&format!("point-{number}"), Then { calls, steps, blow: Blow::Outside }));
    }
    let Seen { saved, early, late, refused, recovered, inside } = rig.seen;
    println!(
        "{}: {saved} saved, {early} too early, {late} too late, {refused} during a fork; {recovered} recovery signals",
        guest.name()
    );
    let named = |(call, count)| format!("{} {count}", zhuque_model::calls::lookup(call).map_or("-", |call| call.name));
    println!("in the gate: {}", inside.into_iter().map(named).collect::<Vec<_>>().join(", "));
    assert!(saved > 0, "nothing was tested");
}

impl Rig<'_> {
    /// One point. The first call at which the program can be saved, as far as it is known from this.
    fn point(&mut self, name: &str, then: Then) -> u64 {
        let script = Script { fail: None, then: Some(then) };
        let (mut life, seen) = Life::start_watched(self.store, name, self.guest, script);
        let all = &mut self.seen;
        match &seen {
            Watched { status: SAVED, .. } => {
                life.resume();
                all.recovered += end(life, &self.native, seen.saved_in);
                all.saved += 1;
                if let Some(call) = seen.saved_in {
                    *all.inside.entry(call).or_default() += 1;
                }
            }
            Watched { refused: Some(why), .. } if why.contains("not started") || why.contains("no region") => {
                all.early += 1;
                self.remove(name);
                return then.calls + 1;
            }
            Watched { refused: Some(why), .. } if why.contains("on its way out") || why.contains("has ended") => {
                all.late += 1;
                self.remove(name);
            }
            Watched { struck: false, .. } => {
                end(life, &self.native, None);
                all.late += 1;
            }
            _ if self.inspected(name).contains("a fork was under way") => {
                self.seen.refused += 1;
                self.remove(name);
            }
            _ => life.wrong(&format!("was not saved at {then:?}: {seen:?}")),
        }
        0
    }

    /// Takes away what was not saved. A start that fails leaves nothing.
    fn remove(&self, name: &str) {
        if self.store.find(name).is_some() {
            assert_eq!(self.store.call("rm", &[name]).status, 0);
        }
    }

    fn inspected(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.store.call("inspect", &[name]).stdout).into_owned()
    }
}

/// The end must be as natively, but for the lines of recovery handlers (`examples/recovery.c`): one for a failure, on the
/// main thread, but where that has blocked it for a while (pthread_create does). How many there were.
fn end(mut life: Life<'_>, native: &Finished, saved_in: Option<u64>) -> u64 {
    let found = life.end();
    let text = String::from_utf8_lossy(&found.stdout);
    let (handlers, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("recovery "));
    let expected = String::from_utf8_lossy(&native.stdout);
    if found.status != native.status {
        life.wrong(&format!("ended with {} instead of {}", found.status, native.status));
    }
    if rest != expected.lines().collect::<Vec<_>>() {
        life.wrong("has another output than natively");
    }
    let once = |main| format!("recovery 1 signal 30 code -1 value 1 main {main} growing 1");
    let sleeps = saved_in == Some(libc::SYS_clock_nanosleep as u64);
    let right = |line: &&str| **line == once(1) || !sleeps && **line == once(0);
    if handlers.len() > 1 || !handlers.iter().all(right) {
        life.wrong("has not had its recovery signal once");
    }
    let count = handlers.len() as u64;
    life.remove();
    count
}

macro_rules! guests {
    ($($name:ident: $guest:literal $($argument:literal)*;)*) => {
        $(
            #[test]
            fn $name() {
                check(&Guest::c($guest).args(&[$($argument),*] as &[&str]));
            }
        )*
    };
}

guests! {
    calls_that_the_gate_keeps_books_of: "gate" "1";
    shared_memory_and_files: "alias" "2";
    cancelled_threads: "cancel" "2";
    clocks: "clocks" "100";
    children_that_end: "ended" "2";
    forks: "fork" "1";
    signals_that_come_late: "late" "2" "1000";
    memory: "memory" "300";
    a_main_thread_that_has_ended: "leader" "20";
    its_own_sigpwr: "power" "3";
    recovery_handlers: "recovery" "10";
    reused_addresses: "reuse" "4" "20";
    signals: "signals" "1";
    threads: "threads" "4" "20";
    timers: "timers" "2";
    vector_registers: "vectors" "50";
    vforks: "vforks" "2";
    waits: "waits" "1";
}
