//! Memory: agrees with a model, fresh memory is zero, many mappings; each across power failures.

use std::time::Duration;
use zhuque_tests::{Guest, Random, check_lives};

#[test]
fn random_changes_agree_with_a_model() {
    // The acceptance is a minute; under `ci/soak` every life is another sequence.
    let seed = Random::new().bits() % 1_000_000;
    println!("memory seed {seed}");
    let guest = Guest::c("memory").args(["60000", &seed.to_string()]).patience(Duration::from_secs(180));
    check_lives(&guest, 3);
}

#[test]
fn a_minute_of_random_changes() {
    // About a minute natively on the machine this was written on.
    check_lives(&Guest::c("memory").args(["1400000", "3"]).patience(Duration::from_secs(400)), 1);
}

#[test]
fn fresh_memory_is_zero_where_addresses_are_reused() {
    check_lives(&Guest::c("reuse").patience(Duration::from_secs(120)), 3);
}

#[test]
fn sixty_thousand_mappings() {
    check_lives(&Guest::c("manymaps").patience(Duration::from_secs(120)), 3);
}

/// What is mapped where a child still shares memory is never the child's to write.
#[test]
fn memory_shared_with_children() {
    check_lives(&Guest::c("alias").arg("60"), 3);
}

/// Memory that appears under a waiting thread, and an unmapping that the kernel refuses.
#[test]
fn memory_that_others_wait_for() {
    check_lives(&Guest::c("late").args(["900", "140000"]), 3);
}
