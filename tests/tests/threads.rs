//! Threads: sharing, waiting, being born, ending, being cancelled.

use std::time::Duration;
use zhuque_tests::{Guest, check_lives};

#[test]
fn threads_share_and_wait_for_each_other() {
    check_lives(&Guest::c("threads"), 4);
}

#[test]
fn many_threads() {
    check_lives(&Guest::c("threads").args(["48", "4096"]).patience(Duration::from_secs(120)), 2);
}

#[test]
fn blocked_calls_end_for_their_own_reasons() {
    check_lives(&Guest::c("waits"), 4);
}

#[test]
fn cancelled_threads_clean_up() {
    check_lives(&Guest::c("cancel"), 4);
}

/// What a thread holds when it ends is marked, also in a life in which the kernel knows it by another id.
#[test]
fn robust_mutexes_are_inherited() {
    check_lives(&Guest::c("robust"), 4);
}
