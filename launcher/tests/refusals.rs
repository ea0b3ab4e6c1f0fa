//! Programs and stores that `run` refuses before anything is started.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{TestStore, is_root};

/// Writes a file with this mode into the store's directory.
fn file(store: &TestStore, name: &str, content: &[u8], mode: u32) -> String {
    let path = store.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_string()
}

/// Nothing may be left of a run that was refused.
#[track_caller]
fn nothing_left(store: &TestStore) {
    assert_eq!(store.zhuque(["ls", "--json"]).json(), serde_json::json!([]));
    let left = fs::read_dir(&store.path).unwrap().flatten();
    let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with(".new")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn programs_as_in_env() {
    let store = TestStore::new();
    let text = file(&store, ".text", b"just text\n", 0o755);
    let plain = file(&store, ".plain", b"#!/bin/sh\n", 0o644);
    let orphan = file(&store, ".orphan", b"#!/nowhere/sh\n", 0o755);
    let bare = file(&store, ".bare", b"#!\n", 0o755);
    let me = file(&store, ".loop", format!("#!{}\n", store.join(".loop").display()).as_bytes(), 0o755);
    let cases: [(&str, i32, &str); 8] = [
        ("no-such-program-anywhere", 127, "no such program"),
        ("/nowhere/at/all", 127, "no such program"),
        (&orphan, 127, "/nowhere/sh"),
        ("/tmp", 126, "directory"),
        (&plain, 126, "not executable"),
        (&text, 126, "not an ELF file"),
        (&bare, 126, "no interpreter"),
        (&me, 126, "script of a script"),
    ];
    for (program, status, words) in cases {
        store.zhuque(["run", "-n", "r", program]).error(status, &[words, ";"]);
        let check = store.zhuque(["check", program]);
        assert_eq!(check.status(), 1, "{check:?}");
        assert!(check.out().contains(words), "{check:?}");
    }
    nothing_left(&store);
}

#[test]
fn programs_without_a_loader() {
    let store = TestStore::new();
    let source = file(&store, ".s.c", b"int main(void) { return 0; }\n", 0o644);
    let program = store.join(".s");
    let built = Command::new("cc").args(["-static", "-o"]).arg(&program).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        return;
    }
    let program = program.to_str().unwrap();
    store.zhuque(["run", "-n", "r", program]).error(125, &["statically linked"]);
    store.zhuque(["run", "-d", "-n", "r", program]).error(125, &["statically linked"]);
    nothing_left(&store);
}

#[test]
fn programs_with_privileges() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    // Stores lie in /dev/shm, which is mounted nosuid at places: then the bit means nothing.
    let program = format!("/tmp/zhuque-test-setuid-{}", std::process::id());
    fs::copy("/bin/true", &program).unwrap();
    std::os::unix::fs::chown(&program, Some(12345), Some(12345)).unwrap();
    for (mode, words) in [(0o4755, "set-user-id"), (0o2755, "set-group-id")] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        store.zhuque(["run", "-n", "r", &program]).error(125, &[words]);
    }
    fs::remove_file(&program).unwrap();
    nothing_left(&store);
}

#[test]
fn checks_are_lines_or_json() {
    let store = TestStore::new();
    let check = store.zhuque(["check", "/bin/sh"]);
    for line in check.out().lines() {
        let level = line.split_whitespace().next();
        assert!(["ok", "warn", "BLOCKED"].contains(&level.unwrap()), "{check:?}");
    }
    let json = store.zhuque(["check", "--json", "no-such-program"]);
    let all: serde_json::Value = serde_json::from_str(&json.out()).unwrap();
    let last = all.as_array().unwrap().last().unwrap();
    assert_eq!((last["level"].as_str(), last["what"].as_str()), (Some("blocked"), Some("program")));
    assert_eq!(json.status(), 1);
}

#[test]
fn a_limit_on_file_sizes() {
    let store = TestStore::new();
    let done = Command::new("sh")
        .args(["-c", "ulimit -f 1000; exec \"$0\" -s \"$1\" run true", env!("CARGO_BIN_EXE_zhuque")])
        .arg(&store.path)
        .output()
        .unwrap();
    common::Done(done).error(125, &["ulimit -f"]);
    nothing_left(&store);
}
