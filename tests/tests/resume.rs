//! A failed resume changes nothing: it can be repeated, and can lose power itself, at each of its stages.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;
use zhuque_tests::command::{self, PATIENCE, SAVED};
use zhuque_tests::life::{Announce, check_lives_in, lives};
use zhuque_tests::store::Region;
use zhuque_tests::{Finished, Guest, Life, Random, Store, digest};

/// The stages before the commit (shim/abi/src/life.rs, `stage`) at which a resume can be made to kill itself.
const STAGES: std::ops::RangeInclusive<u32> = 1..=6;

/// A saved life of `guest`, and what it prints when nothing happens to it.
fn saved<'s>(store: &'s Store, name: &str, guest: &Guest) -> (Life<'s>, Finished) {
    let expected = guest.finish_natively(store, &store.work_dir(&format!("{name}.native")));
    assert_eq!(expected.status, 0, "natively: {}", expected.stderr);
    (Life::saved_after(store, name, guest, Duration::from_millis(400)), expected)
}

/// Kills a resume of `guest` at each stage, compares, and resumes for good.
fn check_stages(guest: &Guest) {
    check_stages_in(&Store::new(), guest);
}

fn check_stages_in(store: &Store, guest: &Guest) {
    let (mut life, expected) = saved(store, "stages", guest);
    let before = digest::of(&store.region("stages"));
    for stage in STAGES {
        // From a shell with another limit of descriptors every other time: nothing of that may get into the region.
        let limit = if stage % 2 == 0 { "700" } else { "$(ulimit -Hn)" };
        let mut command = store.limited(&format!("ulimit -n {limit}"), "resume");
        command.arg("stages").current_dir(&life.dir).env("ZHUQUE_TEST_DIE_AT", stage.to_string());
        let died = command::finish(command, PATIENCE);
        if died.status == 0 || died.status == SAVED {
            life.wrong(&format!("the resume that was to die at stage {stage} ended with {}", died.status));
        }
        if !died.stdout.is_empty() {
            life.wrong(&format!("the resume that died at stage {stage} ran the program: {:?}", died.stdout));
        }
        if let Some(difference) = digest::difference(&before, &digest::of(&store.region("stages"))) {
            life.wrong(&format!("a resume that died at stage {stage} has changed the region: {difference}"));
        }
        let state = store.find("stages").map(|region| region.state);
        assert_eq!(state.as_deref(), Some("saved"), "after stage {stage}");
    }
    life.resume();
    life.check_end(&expected);
}

#[test]
fn a_resume_killed_at_any_stage_changes_nothing_c() {
    check_stages(&Guest::c("threads"));
}

#[test]
fn a_resume_killed_at_any_stage_changes_nothing_python() {
    check_stages(&Guest::python("hashing.py").args(["400000", "."]));
}

/// Where nobody may trace, the shim lets the stub in: the same stages, and whole lives.
#[test]
fn resumes_without_ptrace() {
    let store = Store::without_ptrace();
    check_stages_in(&store, &Guest::c("threads"));
    check_lives_in(&store, &Guest::python("hashing.py").args(["300000", "."]), 2);
    check_lives_in(&Store::without_ptrace(), &Guest::c("vectors"), 1);
}

/// Starts a resume and kills it after a time below `limit`, with all that it has started.
fn kill_resume(store: &Store, life: &Life, random: &mut Random, limit: Duration) {
    let mut command = store.zhuque("resume");
    // A process group of its own, so that the half-made program can be ended with it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.arg(&life.name).current_dir(&life.dir);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("zhuque resume");
    std::thread::sleep(random.time_below(limit));
    kill(Pid::from_raw(-(child.id() as i32)), Signal::SIGKILL).expect("kill the resume");
    assert!(command::wait(&mut child, PATIENCE).is_some());
}

#[test]
fn a_resume_killed_at_any_moment_is_repeated() {
    let (store, mut random) = (Store::new(), Random::new());
    let guest = Guest::c("waits").arg("12");
    let mut limit = Duration::from_millis(4);
    let (mut killed, mut committed) = (0, 0);
    while killed < lives(40) && committed < 8 {
        let name = format!("moments-{committed}");
        let (mut life, expected) = saved(&store, &name, &guest);
        let before = digest::of(&store.region(&name));
        let generation = store.find(&name).map(|region| region.generation);
        while killed < lives(40) {
            kill_resume(&store, &life, &mut random, limit);
            let settled = |region: &Region| region.state == "saved" || region.generation != generation.unwrap_or(0);
            let Some(region) = command::until(Duration::from_secs(5), || store.find(&name).filter(settled)) else {
                life.wrong("neither saved nor resumed")
            };
            if Some(region.generation) != generation {
                // It was committed before: what was killed is the program itself, which is another matter.
                break;
            }
            killed += 1;
            if let Some(difference) = digest::difference(&before, &digest::of(&store.region(&name))) {
                life.wrong(&format!("a killed resume has changed the region: {difference}; seed {}", random.seed()));
            }
        }
        if store.find(&name).is_some_and(|region| region.state == "saved") {
            life.resume();
            life.check_end(&expected);
        } else {
            committed += 1;
            limit = limit * 4 / 5;
        }
    }
    println!("{killed} resumes killed before their commit, {committed} after it");
    assert!(killed >= 8, "hardly any resume was killed before its commit");
}

/// Who resumes may be killed without taking the program along, before or after the commit.
#[test]
fn a_launcher_killed_at_any_moment_loses_nothing() {
    let (store, mut random) = (Store::new(), Random::new());
    let guest = Guest::c("threads").args(["48", "20000"]).patience(Duration::from_secs(120));
    let (mut life, expected) = saved(&store, "orphan", &guest);
    let (mut before, mut after, mut limit) = (0, 0, Duration::from_millis(8));
    for _ in 0..lives(30) {
        let mut command = store.zhuque("resume");
        command.arg(&life.name).current_dir(&life.dir);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("zhuque resume");
        std::thread::sleep(random.time_below(limit));
        child.kill().expect("kill the resume");
        child.wait().expect("wait for the resume");
        // Made half, it ends; made whole, it runs, and the next failure comes at once.
        let settled = |region: &Region| region.state == "saved" && region.pid == 0;
        let done = command::until(PATIENCE, || {
            let region = store.find("orphan")?;
            if region.state == "running" && store.call("fail", &["orphan"]).status == 0 {
                after += 1;
            }
            assert!(!matches!(region.state.as_str(), "unsaved" | "ended"), "lost: {region:?}");
            settled(&region).then_some(())
        });
        if done.is_none() {
            life.wrong("neither saved nor resumed");
        }
        before += 1;
        // About as many before the commit as after it, however fast the machine is.
        limit = if after * 2 < before { limit * 5 / 4 } else { limit * 4 / 5 };
    }
    println!("{before} launchers killed, {after} of them after the commit");
    assert!(0 < after && after < before, "only one kind of them");
    life.resume();
    life.check_end(&expected);
}

#[test]
fn a_failure_right_after_the_commit() {
    let store = Store::new();
    let guest = Guest::c("threads").args(["4", "60000"]);
    let (mut life, expected) = saved(&store, "again", &guest);
    for _ in 0..12 {
        life.resume();
        if !life.fail(Announce::Fail) {
            life.wrong("ended early");
        }
    }
    life.resume();
    life.check_end(&expected);
}

#[test]
fn failures_in_the_first_milliseconds() {
    let guest = Guest::c("threads").args(["4", "4096"]);
    let (store, mut random) = (Store::new(), Random::new());
    let expected = guest.finish_natively(&store, &store.work_dir("native"));
    for number in 0..8 {
        let mut life = Life::start(&store, &format!("early-{number}"), &guest);
        std::thread::sleep(random.time_below(Duration::from_millis(6)));
        if life.fail(if number % 2 == 0 { Announce::Fail } else { Announce::Signal }) {
            life.resume();
        }
        life.check_end(&expected);
    }
}

#[test]
fn everything_works_as_root_too() {
    let store = Store::of_caller();
    check_lives_in(&store, &Guest::c("threads"), 1);
}
