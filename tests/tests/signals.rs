//! Signals: the program's own, and the recovery signal.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use zhuque_tests::life::Announce;
use zhuque_tests::{Finished, Guest, Life, Random, Store, check_lives};

#[test]
fn signals_are_as_the_program_asked_for() {
    check_lives(&Guest::c("signals"), 4);
}

/// Runs `guest` with `failures` power failures; what it printed.
fn with_failures(store: &Store, name: &str, guest: &Guest, failures: u32) -> Vec<String> {
    let mut random = Random::new();
    let mut life = Life::start(store, name, guest);
    for number in 0..failures {
        life.up();
        std::thread::sleep(Duration::from_millis(250) + random.time_below(Duration::from_millis(400)));
        let announce = if number % 2 == 0 { Announce::Fail } else { Announce::Signal };
        if !life.fail(announce) {
            life.wrong("ended before the failures were through");
        }
        life.resume();
    }
    let end: Finished = life.end();
    if end.status != 0 {
        life.wrong("did not end well");
    }
    String::from_utf8_lossy(&end.stdout).lines().map(str::to_string).collect()
}

#[test]
fn a_handler_in_c_runs_once_per_failure() {
    let store = Store::new();
    for (round, failures) in [0, 1, 5].into_iter().enumerate() {
        let lines = with_failures(&store, &format!("c-{round}"), &Guest::c("recovery").arg("4000"), failures);
        let mut expected: Vec<String> = (1..=failures)
            .map(|n| format!("recovery {n} signal 30 code -1 value {} main 1 growing 1", first_value(&lines) + n - 1))
            .collect();
        expected.push("steps 4000".to_string());
        assert_eq!(lines, expected);
    }
}

/// The value that came with the first recovery signal: the generation, which grows by one with each life.
fn first_value(lines: &[String]) -> u32 {
    let words: Vec<&str> = lines.first().map(|line| line.split(' ').collect()).unwrap_or_default();
    words.iter().position(|word| *word == "value").and_then(|at| words[at + 1].parse().ok()).unwrap_or(0)
}

#[test]
fn ignored_signals_end_no_wait() {
    check_lives(&Guest::c("ignored"), 3);
}

#[test]
fn bad_pointers_are_errors_where_faults_are_blocked() {
    check_lives(&Guest::c("pointers"), 4);
}

#[test]
fn a_storm_of_signals_changes_no_mask() {
    check_lives(&Guest::c("storm"), 3);
}

#[test]
fn a_stop_ends_no_wait() {
    let (store, guest) = (Store::new(), Guest::c("stopped"));
    let native = guest.finish_natively(&store, &store.work_dir("native"));
    assert_eq!(native.status, 0, "natively: {}", native.stderr);
    let mut life = Life::start(&store, "stopped", &guest);
    life.up();
    for _ in 0..30 {
        let Some(pid) = life.pid() else { break };
        for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
            let _ = kill(Pid::from_raw(pid), signal);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    life.end_as(&native);
}

#[test]
fn a_handler_in_python_runs_once_per_failure() {
    let store = Store::new();
    let lines = with_failures(&store, "python", &Guest::python("recovery.py").arg("4000"), 4);
    let mut expected: Vec<String> = (1..=4).map(|n| format!("recovery {n} signal 30 main 1 frame 1")).collect();
    expected.push(format!("steps 4000 total {}", 4000u64 * 124_750));
    assert_eq!(lines, expected);
}

#[test]
fn a_blocked_recovery_signal_waits() {
    let store = Store::new();
    for failures in [0, 2] {
        let guest = Guest::python("blocked_recovery.py").arg("120");
        let lines = with_failures(&store, &format!("blocked-{failures}"), &guest, failures);
        assert_eq!(lines, [format!("handled {}", failures.min(1))]);
    }
}

/// SIGPWR between the program's own threads is theirs, and tells nobody of a power failure.
#[test]
fn threads_that_stop_each_other_with_it() {
    check_lives(&Guest::c("power").arg("300"), 4);
}

/// A signal that comes with no handler for SIGPWR, or with SIGPWR ignored, changes nothing: see every other test.
#[test]
fn without_a_handler_it_just_goes_on() {
    let store = Store::new();
    let script = "trap '' PWR; i=0; while [ $i -lt 1200000 ]; do i=$((i+1)); done; echo $i";
    let lines = with_failures(&store, "ignored", &Guest::installed("bash").args(["-c", script]), 2);
    assert_eq!(lines, ["1200000"]);
}
