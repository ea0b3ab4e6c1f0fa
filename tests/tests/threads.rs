//! Threads: sharing, waiting, being born, ending, being cancelled.

use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};
use zhuque_tests::command::{PATIENCE, SAVED, until};
use zhuque_tests::{Guest, Store, check_lives, digest};

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

/// The kernel clears words and marks mutexes when threads end: of what is saved it changes nothing.
#[test]
fn nothing_changes_at_the_end_of_a_saved_program() {
    let store = Store::new();
    // The second one's main thread holds a robust mutex.
    let guests: [(&str, &[&str], usize); 2] = [("threads", &["16", "1000000"], 16), ("kept_threads", &["table"], 5)];
    for (name, words, threads) in guests {
        let guest = Guest::c(name);
        let mut command = store.zhuque("run");
        command.args(["-n", name, "--"]).arg(&guest.program).args(words);
        command.current_dir(store.work_dir(&format!("{name}.work")));
        let mut launcher = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
        let running = || store.find(name).filter(|region| region.state == "running");
        let pid = Pid::from_raw(until(PATIENCE, running).expect("it runs").pid);
        let options = Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_TRACECLONE;
        assert!(until(PATIENCE, || (tasks(pid).len() >= threads).then_some(())).is_some(), "no threads");
        // They wait for each other by now.
        std::thread::sleep(Duration::from_millis(100));
        trace_all(pid, options);
        kill(pid, Signal::SIGPWR).expect("the power fails");
        let ended = stop_at_their_ends(pid, || store.find(name).is_some_and(|region| region.state == "saved"));
        let before = digest::of(&store.region(name));
        assert!(ended.len() >= threads, "{name}: {} threads only", ended.len());
        ended.iter().for_each(|&tid| ptrace::detach(tid, None).expect("let it end"));
        assert_eq!(launcher.wait().expect("its end").code(), Some(SAVED));
        assert_eq!(digest::difference(&before, &digest::of(&store.region(name))), None, "{name}");
        assert_eq!(store.call("rm", &[name]).status, 0);
    }
}

/// Also those that are born meanwhile: of a thread that is traced, or not yet.
fn trace_all(pid: Pid, options: Options) {
    let mut known = Vec::new();
    while let Some(tid) = tasks(pid).into_iter().find(|tid| !known.contains(tid)) {
        // It has ended, or is traced since its birth.
        let _ = ptrace::seize(tid, options);
        known.push(tid);
    }
}

fn tasks(pid: Pid) -> Vec<Pid> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}

/// Lets a traced program go on until it is saved, and each of its threads is about to end; which those are. Others that end
/// have done so by themselves.
fn stop_at_their_ends(pid: Pid, is_saved: impl Fn() -> bool) -> Vec<Pid> {
    let (mut ended, end) = (Vec::new(), Instant::now() + PATIENCE);
    while ended.len() < tasks(pid).len() {
        assert!(Instant::now() < end, "{pid} does not end");
        match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG)).expect("wait")
        {
            WaitStatus::PtraceEvent(tid, _, event) if event == Event::PTRACE_EVENT_EXIT as i32 && is_saved() => {
                ended.push(tid);
            }
            WaitStatus::PtraceEvent(tid, ..) => ptrace::cont(tid, None).expect("go on"),
            WaitStatus::Stopped(tid, signal) => ptrace::cont(tid, signal).expect("go on"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    ended
}
