//! A power failure at every system call of a guest: before it, inside it, after it.
//!
//! Each guest runs natively, then watched without a failure, which counts its calls, then once for each call and moment:
//! status and output must be the same each time. Long ones are sampled: `ZHUQUE_POINTS` says how many points a guest has
//! (default 40), `all` takes every one of them.

use nix::sys::signal::Signal;
use zhuque_tests::command::SAVED;
use zhuque_tests::guest::shared;
use zhuque_tests::tracer::{Blow, Moment, Script, Then, Watched};
use zhuque_tests::{Guest, Life, Random, Store};

/// Nothing follows the failure, but the calls are counted.
const COUNTED: Then = Then::at(u64::MAX, 0, Blow::Signal(Signal::SIGKILL));
/// Calls that a program may still make when it is ending.
const LAST: u64 = 64;
const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Inside, Moment::After];

/// The calls and moments to try out of `calls` calls.
fn points(calls: u64, random: &mut Random) -> Vec<(u64, Moment)> {
    let wanted = std::env::var("ZHUQUE_POINTS").unwrap_or_default();
    let every = |call| MOMENTS.map(|moment| (call, moment));
    let count = wanted.parse().unwrap_or(40u64).div_ceil(3);
    if wanted == "all" || calls <= count {
        return (0..calls).flat_map(every).collect();
    }
    (0..count).flat_map(|_| every(random.below(calls))).collect()
}

fn check_every_call(guest: &Guest) {
    check(guest, false);
}

/// `alone`: see [`Script::alone`].
fn check(guest: &Guest, alone: bool) {
    let store = Store::new();
    let native = guest.finish_natively(&store, &store.work_dir("native"));
    assert_eq!(native.status, 0, "natively: {}", native.stderr);
    let (life, watched) = Life::start_watched(&store, "counted", guest, Script::default());
    life.end_as(&native);
    let mut random = Random::new();
    let (mut saved, mut late) = (0, 0);
    for (call, moment) in points(watched.calls, &mut random) {
        let name = format!("{}-{call}-{moment:?}", guest.name()).to_lowercase();
        let (mut life, seen) = Life::start_watched(
            &store,
            &name,
            guest,
            Script { fail: Some((call, moment)), then: Some(COUNTED), alone, ..Script::default() },
        );
        match seen.status {
            SAVED => {
                life.resume();
                life.end_as(&native);
                saved += 1;
            }
            // It made fewer calls this time, or was just ending: the exits of its threads at most were to come.
            _ if seen.failed_at.is_none() || ends(&seen) || seen.calls_then <= LAST => {
                life.end_as(&native);
                late += 1;
            }
            status => life.wrong(&format!("was not saved at call {call}, but ended with {status}")),
        }
    }
    let name = guest.name();
    println!("{name}: {} calls; failures: {saved} saved, {late} after its end", watched.calls);
    assert!(saved > 0, "no failure was survived: nothing was tested");
}

/// Whether the call was one that ends the program, or a thread.
fn ends(seen: &Watched) -> bool {
    [libc::SYS_exit, libc::SYS_exit_group].contains(&seen.failed_in)
}

#[test]
fn cpython() {
    check_every_call(&Guest::python("hashing.py").args(["20000", "."]));
}

#[test]
fn interpreters() {
    check_every_call(&Guest::installed("perl").arg(shared("words.pl")).arg("4"));
    check_every_call(&Guest::installed("lua5.4").arg(shared("tables.lua")).arg("4"));
    check_every_call(&Guest::installed("bash").arg(shared("builtins.sh")).arg("2"));
}

#[test]
fn sqlite3() {
    let script = "create table t(a, b); begin; insert into t select value, value * 7 from generate_series(1, 300);
        commit; update t set b = b + 1 where a % 3 = 0; select count(*), sum(b) from t; pragma integrity_check;";
    check_every_call(&Guest::installed("sqlite3").args(["-batch", "rows.db", script]));
}

/// Of threads that end, one may be the only one that has heard of the failure.
#[test]
fn failures_of_which_one_thread_hears() {
    check(&Guest::c("threads").args(["4", "20"]), true);
    check(&Guest::c("reuse").args(["4", "20"]), true);
}

/// One test for each guest, so that they run side by side and fail by themselves.
macro_rules! guests {
    ($($test:ident: $($word:literal)+;)*) => {
        $(#[test]
        fn $test() {
            let words = [$($word),+];
            check_every_call(&Guest::c(words[0]).args(&words[1..]));
        })*
    };
}

guests! {
    shared_memory_and_files: "alias" "2";
    cancelled_threads: "cancel" "2";
    clocks: "clocks" "100";
    children_that_end: "ended" "2";
    descriptors_of_events: "events" "2";
    execs_of_the_program: "execs" "3";
    open_files: "files" "2";
    forks: "fork" "1";
    calls_that_the_gate_keeps_books_of: "gate" "1";
    internet_sockets: "inet" "2";
    ignored_signals: "ignored" "5";
    signals_that_come_late: "late" "2" "1000";
    kept_files: "kept_files";
    kept_pipes: "kept_pipes";
    kept_sockets: "kept_sockets";
    kept_events: "kept_events";
    kept_process: "kept_process";
    kept_threads: "kept_threads";
    kept_memory: "kept_memory";
    memory: "memory" "300";
    a_main_thread_that_has_ended: "leader" "20";
    unix_sockets: "locals" "2";
    many_mappings: "manymaps" "600" "2";
    mapped_files_and_memfds: "mapped" "2";
    what_a_process_has_given_up: "privileges" "10";
    bad_pointers: "pointers" "2";
    pipes_and_fifos: "pipes" "2";
    its_own_sigpwr: "power" "3";
    attributes_and_pending_signals: "process" "2";
    robust_mutexes: "robust" "4";
    reused_addresses: "reuse" "4" "20";
    signals: "signals" "1";
    pseudo_terminals: "terminals" "2";
    threads: "threads" "4" "20";
    timers: "timers" "2";
    timers_that_signal: "alarms" "1";
    timers_whose_signals_wait: "expiring" "2" "12";
    vector_registers: "vectors" "50";
    vforks: "vforks" "2";
    waits_that_a_stop_would_end: "stopped" "10";
    waits: "waits" "1";
}
