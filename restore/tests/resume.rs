//! The whole way, without the shim: a synthetic region, the launcher's own injection, the real stub, and in place of
//! the shim's revive a piece of assembler that lies in region memory, looks at what is mapped, says `ok` and ends.

#[path = "common/stub.rs"]
mod built;
mod common;
#[path = "../../launcher/src/inject.rs"]
mod inject;
#[path = "../../launcher/src/newborn.rs"]
mod newborn;
#[path = "../../launcher/src/resume.rs"]
mod resume;
#[path = "common/synthetic.rs"]
mod synthetic;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::sync::{Mutex, MutexGuard};
use synthetic::{Options, Synthetic};
use zhuque_abi::layout::*;
use zhuque_abi::life::stage;
use zhuque_restore::process::Maps;

/// One at a time: they set an environment variable, and compare descriptors.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits for the program, which stops itself after `ok`, looks at it with `look`, and lets it end.
fn let_end(pid: Pid, look: impl FnOnce(Pid)) {
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED));
    assert_eq!(stopped, Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)));
    look(pid);
    kill(pid, Signal::SIGCONT).expect("it is there");
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 42)));
}

fn read(pid: Pid, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("a file of /proc")
}

#[test]
fn a_program_comes_back() {
    let _alone = alone();
    let region = Synthetic::new("comes-back", &Options::default());
    let before = region.contents();
    for round in 0..3 {
        let resumed = resume::start(&region.request()).expect("it comes back");
        assert_eq!(resumed.threads, 1);
        let_end(resumed.pid, |pid| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).expect("a link");
            assert_eq!(exe, region.exe());
            assert_eq!(read(pid, "comm").trim(), region.exe().file_name().expect("a name").to_string_lossy());
            assert!(read(pid, "status").contains("SigBlk:\tfffffffffffbfeff"), "{}", read(pid, "status"));
            check_descriptors(pid);
            check_maps(pid, &region);
        });
        println!("round {round}: {:?}", resumed.timing);
    }
    assert!(region.contents() == before, "a resume that was not committed has written to the region");
}

/// Exactly the region's block and the helpers are open.
fn check_descriptors(pid: Pid) {
    let mut open: Vec<u32> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse().expect("a number"))
        .collect();
    open.sort_unstable();
    let block: Vec<u32> = open.iter().copied().filter(|fd| *fd >= synthetic::SOFT_LIMIT as u32).collect();
    let first = synthetic::SOFT_LIMIT as u32;
    assert_eq!(block, (first..first + SLICES as u32 + 3).collect::<Vec<_>>());
    let helpers = &open[..open.len() - block.len()];
    assert!(helpers[0] > synthetic::HIGHEST_DESCRIPTOR as u32, "{helpers:?}");
    // Status, memfd, stdio, one file opened twice.
    assert_eq!(helpers.len(), 2 + 3 + 2, "{helpers:?}");
    let limit = read(pid, "limits");
    let line = limit.lines().find(|l| l.starts_with("Max open files")).expect("a line");
    let numbers: Vec<&str> = line.split_whitespace().filter(|w| w.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers[0], numbers[1], "the soft limit is the hard one for the time");
}

/// What is mapped is what was saved, plus stub and vdso.
fn check_maps(pid: Pid, region: &Synthetic) {
    let maps = Maps::parse(&read(pid, "maps")).expect("a list");
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for run in &maps.runs {
        match merged.last_mut() {
            Some(last) if last.1 == run.start => last.1 = run.end,
            _ => merged.push((run.start, run.end)),
        }
    }
    for &(start, end) in region.mapped() {
        assert!(merged.iter().any(|m| m.0 <= start && end <= m.1), "{start:x}-{end:x} is missing");
    }
    let expected: u64 = region.mapped().iter().map(|(start, end)| end - start).sum();
    let total: u64 = maps.runs.iter().map(|run| run.bytes()).sum();
    let extra = total - expected - CONTROL_BYTES - LIFE_BYTES;
    assert!(extra < 0x4_0000, "{extra:#x} bytes too many are mapped:\n{}", read(pid, "maps"));
    for &(start, end) in region.unmapped() {
        assert!(!merged.iter().any(|m| m.0 < end && start < m.1), "{start:x}-{end:x} should be free");
    }
}

#[test]
fn the_vdso_moves_out_of_the_way() {
    let _alone = alone();
    let region = Synthetic::new("vdso", &Options { top: true, exe: "/usr/bin/env".into(), ..Options::default() });
    let resumed = resume::start(&region.request()).expect("it comes back");
    let_end(resumed.pid, |pid| {
        let maps = Maps::parse(&read(pid, "maps")).expect("a list");
        let vdso = maps.vdso_run();
        assert!(vdso.bytes() > 0);
        let apart = region.mapped().iter().all(|(start, end)| vdso.end <= *start || *end <= vdso.start);
        assert!(apart, "{vdso:x?}");
    });
}

#[test]
fn a_resume_that_dies_can_be_repeated() {
    let _alone = alone();
    let region = Synthetic::new("dies", &Options::default());
    let before = region.contents();
    for at in [stage::STUB, stage::MAPPED] {
        // SAFETY: the only test that runs; the others do not touch the environment.
        unsafe { std::env::set_var("ZHUQUE_TEST_DIE_AT", at.to_string()) };
        let error = resume::start(&region.request());
        // SAFETY: as above.
        unsafe { std::env::remove_var("ZHUQUE_TEST_DIE_AT") };
        let error = format!("{:#}", error.expect_err("it dies"));
        assert!(error.contains("died on the way"), "{error}");
        assert!(region.contents() == before, "stage {at} changes the region");
    }
    let resumed = resume::start(&region.request()).expect("it comes back");
    let_end(resumed.pid, |_| {});
}

/// The error of a region after `change`; nothing is left behind.
fn refused(name: &str, options: &Options, force: bool, change: impl FnOnce(&Synthetic)) -> String {
    let region = Synthetic::new(name, options);
    change(&region);
    let mut request = region.request();
    request.force = force;
    match resume::start(&request) {
        Ok(resumed) => {
            let_end(resumed.pid, |_| {});
            String::new()
        }
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn what_is_wrong_is_named() {
    let _alone = alone();
    let default = Options::default();
    let grow = |region: &Synthetic| fs::write(region.data_file(), [1; 0x9000]).expect("a file");
    let error = refused("changed", &default, false, grow);
    assert!(error.contains("data") && error.contains("has changed since"), "{error}");
    assert_eq!(error.lines().count(), 1);
    let shrink = |region: &Synthetic| {
        fs::File::options().write(true).open(region.slice(0)).expect("it").set_len(10).expect("it")
    };
    let error = refused("short", &default, false, shrink);
    assert!(error.contains("slice 00 has 10 bytes"), "{error}");
    let error = refused("gone", &default, false, |region| fs::remove_file(region.slice(9)).expect("it"));
    assert!(error.contains("slice-09"), "{error}");
    let error = refused("unlinked", &default, false, |region| fs::remove_file(region.data_file()).expect("it"));
    assert!(error.contains("cannot open the mapped file"), "{error}");
    let exe = Options { exe: "/nonexistent/program".into(), ..Options::default() };
    let error = refused("exe", &exe, false, |_| {});
    assert!(error.contains("/nonexistent/program"), "{error}");
    let exe = Options { exe: "/etc/passwd".into(), ..Options::default() };
    let error = refused("no-program", &exe, false, |_| {});
    let why = "cannot execute the program's file: Permission denied";
    assert!(error.ends_with(why), "{error}");
}

#[test]
fn force_goes_on_with_a_changed_file() {
    let _alone = alone();
    let touch = |region: &Synthetic| {
        let old = fs::read(region.data_file()).expect("a file");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(region.data_file(), old).expect("a file");
    };
    let default = Options::default();
    assert!(refused("touched", &default, false, touch).contains("has changed since"));
    assert_eq!(refused("forced", &default, true, touch), "");
}

#[test]
fn the_stub_reports_a_mapping_that_fails() {
    let _alone = alone();
    let options = Options { unmappable: true, ..Options::default() };
    let error = refused("unmappable", &options, false, |_| {});
    assert!(error.contains("cannot map 50000000000-50000001000, kind 4 (errno 13); nothing has changed"), "{error}");
}

#[test]
fn revive_reports_contents_that_are_wrong() {
    let _alone = alone();
    let options = Options { wrong: true, ..Options::default() };
    let error = refused("wrong", &options, false, |_| {});
    assert!(error.contains("wrong contents; nothing has changed"), "{error}");
}

/// Prints how long a resume takes, for measurements: `cargo test --release -- --ignored --nocapture timing`.
#[test]
#[ignore = "a measurement"]
fn timing() {
    let _alone = alone();
    for mappings in [10, 100, 1000, 10000] {
        let region = Synthetic::new("timing", &Options { mappings, ..Options::default() });
        let mut rounds: Vec<_> = (0..21)
            .map(|_| {
                let resumed = resume::start(&region.request()).expect("it comes back");
                let_end(resumed.pid, |_| {});
                resumed.timing
            })
            .collect();
        rounds.sort_unstable_by_key(|t| t.plan + t.exec + t.inject + t.rebuild);
        println!("{} mappings: median {:?}, best {:?}", region.mapped().len(), rounds[10], rounds[0]);
    }
}
