//! Registers: every one that a system call keeps is kept by the gate, and by a failure.

use zhuque_tests::{Guest, check_lives};

#[test]
fn registers_survive_calls_and_failures() {
    check_lives(&Guest::c("vectors").arg("240000"), 5);
}
