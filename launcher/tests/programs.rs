//! Programs that live, fail and are resumed, with the shim that the command carries.

mod common;

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Done, TestStore};

/// Starts the command in the background and waits until the region runs; a command that ends before is shown.
#[track_caller]
fn begin(store: &TestStore, name: &str, arguments: &[&str]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_zhuque"))
        .env("ZHUQUE_STORE", &store.path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    loop {
        let list = store.zhuque(["ls", "--json"]).json();
        let mut all = list.as_array().unwrap().iter();
        if all.any(|r| r["name"] == name && r["state"] == "running") {
            return child;
        }
        if child.try_wait().unwrap().is_some() {
            panic!("{arguments:?}: {:?}", end(child));
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{list}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `zhuque run` in the background.
#[track_caller]
fn start(store: &TestStore, name: &str, command: &[&str]) -> Child {
    begin(store, name, &[&["run", "-n", name, "--"], command].concat())
}

/// Waits until a region is in this state; what `ls` says about it.
#[track_caller]
fn wait_for(store: &TestStore, name: &str, state: &str) -> serde_json::Value {
    let start = Instant::now();
    loop {
        let list = store.zhuque(["ls", "--json"]).json();
        let all = list.as_array().unwrap();
        let found = all.iter().find(|r| r["name"] == name);
        match found {
            Some(region) if region["state"] == state => return region.clone(),
            _ if start.elapsed() > Duration::from_secs(10) => {
                panic!("{name} is not {state}: {list}")
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn end(child: Child) -> Done {
    Done(child.wait_with_output().unwrap())
}

/// A signal, to a process that a test has started.
fn signal(pid: u32, signal: i32) {
    // SAFETY: takes two numbers.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

#[test]
fn the_status_is_the_programs() {
    let store = TestStore::new();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -INT $$", 130)] {
        let done = store.zhuque(["run", "--", "sh", "-c", script]);
        assert_eq!((done.status(), done.err()), (status, String::new()), "{script}");
        assert_eq!(store.zhuque(["ls", "--json"]).json(), serde_json::json!([]));
    }
    let done = store.zhuque(["run", "--keep", "-n", "k", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((done.ok(), done.err()), ("out\n".into(), "err\n".into()));
    wait_for(&store, "k", "ended");
    store.zhuque(["resume", "k"]).error(125, &["ended by itself"]);
    store.zhuque(["rm", "k"]).ok();
}

#[test]
fn a_crash_is_kept_and_said() {
    let store = TestStore::new();
    let done = store.zhuque(["run", "-n", "c", "--", "sh", "-c", "kill -KILL $$"]);
    done.error(137, &["c: killed by SIGKILL, not saved", "zhuque rm c"]);
    wait_for(&store, "c", "unsaved");
    store.zhuque(["resume", "c"]).error(125, &["without being saved"]);
    store.zhuque(["inspect", "c", "maps"]).ok();
    store.zhuque(["rm", "c"]).ok();
}

#[test]
fn failed_and_resumed() {
    let store = TestStore::new();
    let script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; read -t 0.05 x < /dev/zero; sleep 0.05; done";
    let mut lives = vec![start(&store, "r", &["bash", "-c", script])];
    for generation in 1..3 {
        std::thread::sleep(Duration::from_millis(200));
        let fail = store.zhuque(["fail", "r"]).ok();
        assert!(fail.starts_with("r: saved 1 thread in "), "{fail}");
        let done = end(lives.pop().unwrap());
        assert_eq!(done.status(), 75, "{done:?}");
        assert!(done.err().contains("zhuque resume r"), "{done:?}");
        let region = wait_for(&store, "r", "saved");
        assert_eq!(region["threads"], 1);
        lives.push(begin(&store, "r", &["resume", "r"]));
        let region = wait_for(&store, "r", "running");
        assert_eq!(region["generation"], generation);
    }
    let done = end(lives.pop().unwrap());
    assert_eq!(done.status(), 0, "{done:?}");
    assert!(done.out().ends_with("39\n40\n"), "{done:?}");
    assert_eq!(store.zhuque(["ls", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn signals_reach_the_program() {
    let store = TestStore::new();
    let script = "trap 'exit 9' USR1; trap 'exit 10' TERM; while :; do sleep 0.02; done";
    for (number, status) in [(libc::SIGUSR1, 9), (libc::SIGTERM, 10)] {
        let child = start(&store, "s", &["bash", "-c", script]);
        std::thread::sleep(Duration::from_millis(100));
        signal(child.id(), number);
        assert_eq!(end(child).status(), status);
    }
    // The launcher passes on a power failure, too.
    let child = start(&store, "s", &["sleep", "60"]);
    signal(child.id(), libc::SIGPWR);
    assert_eq!(end(child).status(), 75);
    wait_for(&store, "s", "saved");
}

#[test]
fn in_the_background() {
    let store = TestStore::new();
    let log = File::create(store.join(".log")).unwrap();
    let run = |arguments: &[&str]| {
        let status = Command::new(env!("CARGO_BIN_EXE_zhuque"))
            .env("ZHUQUE_STORE", &store.path)
            .args(arguments)
            .stdout(log.try_clone().unwrap())
            .stderr(log.try_clone().unwrap())
            .status();
        status.unwrap().code()
    };
    assert_eq!(run(&["run", "-q", "-d", "-n", "b", "sleep", "60"]), Some(0));
    let first = wait_for(&store, "b", "running");
    assert_eq!(run(&["run", "-d", "-n", "b", "sleep", "60"]), Some(125));
    assert_eq!(run(&["run", "-d", "-n", "c", "no-such-program"]), Some(127));
    store.zhuque(["fail", "b"]).ok();
    assert_eq!(run(&["-q", "resume", "-d", "b"]), Some(0));
    let second = wait_for(&store, "b", "running");
    assert_ne!(first["pid"], second["pid"]);
    let removed = store.zhuque(["rm", "b"]);
    removed.ok();
    assert!(removed.err().contains(&format!("ended process {}", second["pid"])), "{removed:?}");
    assert!(!store.join("b").exists());
    let text = fs::read_to_string(store.join(".log")).unwrap();
    assert!(text.starts_with("b\nzhuque: b: the name is in use (running)"), "{text}");
}

#[test]
fn all_at_once() {
    let store = TestStore::new();
    let children = ["x", "y", "z"].map(|name| start(&store, name, &["sleep", "60"]));
    let out = store.zhuque(["fail", "--all"]).ok();
    assert_eq!(out.lines().count(), 3, "{out}");
    for child in children {
        assert_eq!(end(child).status(), 75);
    }
    for name in ["x", "y", "z"] {
        wait_for(&store, name, "saved");
    }
    store.zhuque(["rm", "x", "y", "z"]).ok();
    assert_eq!(store.zhuque(["fail", "--all"]).ok(), "");
}

#[test]
fn one_life() {
    let store = TestStore::new();
    let child = start(&store, "o", &["sleep", "60"]);
    store.zhuque(["fail", "o"]).ok();
    assert_eq!(end(child).status(), 75);
    // Many try to resume it at the same moment: one does.
    let resume = || {
        Command::new(env!("CARGO_BIN_EXE_zhuque"))
            .env("ZHUQUE_STORE", &store.path)
            .args(["resume", "o"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..6).map(|_| resume()).collect();
    wait_for(&store, "o", "running");
    std::thread::sleep(Duration::from_millis(600));
    store.zhuque(["rm", "o"]).ok();
    let statuses: Vec<_> = children.into_iter().map(|child| end(child).status()).collect();
    let ran = statuses.iter().filter(|status| **status == 137).count();
    let refused = statuses.iter().filter(|status| **status == 125).count();
    assert_eq!((ran, refused), (1, 5), "{statuses:?}");
}

#[test]
fn dispositions_and_environment_are_the_callers() {
    let store = TestStore::new();
    // SIGPIPE is ignored by Rust's runtime, which must not reach the program.
    let script = "grep -E 'SigBlk|SigIgn' /proc/self/status; env | grep -v ^_=";
    let native = Command::new("sh").args(["-c", script]).env("ZHUQUE_STORE", &store.path).output();
    let ours = store.zhuque(["run", "--", "sh", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&native.unwrap().stdout), ours.ok());
}
