//! Clocks never run backwards, and time stands still while the program does not run.

use std::time::Duration;
use zhuque_tests::life::{Announce, check_lives_in};
use zhuque_tests::{Guest, Life, Store, check_lives};

#[test]
fn clocks_never_run_backwards() {
    check_lives(&Guest::c("clocks").arg("8000000"), 4);
}

#[test]
fn an_outage_is_not_counted() {
    let store = Store::new();
    // No gap between two reads may be longer than 2 s, while the power is off for 3.
    let guest = Guest::c("clocks").args(["8000000", "2000"]);
    let mut life = Life::start(&store, "outage", &guest);
    life.up();
    std::thread::sleep(Duration::from_millis(300));
    assert!(life.fail(Announce::Fail), "it ended too early");
    std::thread::sleep(Duration::from_secs(3));
    life.resume();
    let end = life.end();
    if end.status != 0 {
        life.wrong("the clocks are wrong");
    }
}

/// Clocks, waits and timers go on from where they were on a machine that has just booted, or runs for longer.
#[test]
fn a_machine_that_booted_at_another_time() {
    let guests = [("clocks", "2000000"), ("waits", "5"), ("alarms", "15"), ("expiring", "30")];
    for guest in guests.map(|(name, size)| Guest::c(name).arg(size)) {
        match Store::rebooted() {
            Some(store) => check_lives_in(&store, &guest, 1),
            None => println!("not possible here: no time namespaces for ordinary users"),
        }
    }
}

/// A save looks at many descriptors between the program's last instruction and its timers.
#[test]
fn timers_never_expire_early() {
    check_lives(&Guest::c("timers"), 4);
}

/// POSIX timers of all kinds, each expiration told once.
#[test]
fn alarms_are_told_once() {
    check_lives(&Guest::c("alarms").arg("25"), 6);
}

/// Their signals may wait, many of one number.
#[test]
fn expirations_that_wait_are_told_once() {
    check_lives(&Guest::c("expiring").arg("60"), 6);
}

/// Of timers that expire while they are written down, each fires, and once.
#[test]
fn timers_that_are_due_fire_once() {
    check_lives(&Guest::c("due"), 6);
}
