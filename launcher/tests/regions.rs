//! Regions that are not as they should be, and those that are: what the command says about them.

mod common;

use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{TestStore, is_root, small_journal};
use zhuque_abi::header::{Globals, Header, Phase};
use zhuque_abi::layout::*;

/// Every command that only looks at a region, or refuses to do anything with one that is not intact.
const LOOKING: [&[&str]; 7] = [
    &["inspect", "r"],
    &["inspect", "r", "maps"],
    &["inspect", "r", "threads"],
    &["inspect", "r", "fds"],
    &["inspect", "r", "journal"],
    &["resume", "r"],
    &["fail", "r"],
];

/// All of them say the same about a damaged region, in one line.
#[track_caller]
fn all_refuse(store: &TestStore, words: &[&str]) {
    for command in LOOKING {
        store.zhuque(command).error(125, words);
    }
    let list = store.zhuque(["ls", "--json"]).json();
    assert_eq!(list[0]["state"], "damaged");
    assert_eq!(list[0]["name"], "r");
    for word in words {
        assert!(list[0]["reason"].as_str().unwrap().contains(word), "{list}");
    }
    store.zhuque(["ls"]).ok();
    store.zhuque(["run", "-n", "r", "true"]).error(125, &[]);
}

#[test]
fn names() {
    let store = TestStore::new();
    let long = "x".repeat(201);
    for name in ["", ".", "..", "a/b", ".hidden", "a\nb", &long] {
        let end = "-n";
        store.zhuque(["run", "-n", name, "true"]).error(125, &[end]);
        store.zhuque(["resume", "--", name]).error(125, &[]);
        store.zhuque(["rm", "--", name]).error(125, &[]);
    }
    store.zhuque(["rm", "--", "-x"]).error(125, &["'-'"]);
    assert_eq!(store.zhuque(["ls", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn nothing_there() {
    let store = TestStore::new();
    for command in [&["resume", "r"][..], &["fail", "r"], &["inspect", "r"], &["rm", "r"]] {
        store.zhuque(command).error(125, &["r: no such region", "zhuque ls"]);
        let mut elsewhere = vec!["-s", "/nowhere/at/all"];
        elsewhere.extend(command);
        store.zhuque(elsewhere).error(125, &["/nowhere/at/all: no such store"]);
    }
    assert_eq!(store.zhuque(["fail", "--all"]).ok(), "");
}

#[test]
fn mistakes_on_the_command_line_are_one_line() {
    let store = TestStore::new();
    store.zhuque(["run"]).error(125, &["PROGRAM", "--help"]);
    store.zhuque(["run", "--nonsense", "true"]).error(125, &["--nonsense"]);
    store.zhuque(["frobnicate"]).error(125, &["frobnicate"]);
    store.zhuque(["ls", "--hold-up"]).error(125, &["--hold-up"]);
    store.zhuque(["run", "--hold-up", "5x", "true"]).error(125, &["unknown unit"]);
    store.zhuque::<&str>([]).error(125, &["no command"]);
    assert!(store.zhuque(["--help"]).ok().contains("resume"));
    assert!(store.zhuque(["--version"]).ok().starts_with("zhuque "));
}

#[test]
fn truncated_control_files() {
    for bytes in [0, 1, 15, 16, 100, PAGE - 1, PAGE, SLOTS_OFFSET, CONTROL_BYTES - 1] {
        let store = TestStore::new();
        let region = store.region("r", Phase::Saved);
        region.control.set_len(bytes).unwrap();
        all_refuse(&store, &["truncated", "zhuque rm r"]);
        store.zhuque(["rm", "r"]).ok();
        assert!(!region.path.exists());
    }
}

#[test]
fn foreign_control_files() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.put(0, b"garbage!");
    all_refuse(&store, &["wrong magic"]);
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.put(offset_of!(Header, version), &77u32.to_le_bytes());
    all_refuse(&store, &["version 77"]);
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.put(offset_of!(Header, phase), &[99]);
    all_refuse(&store, &["unknown phase"]);
}

#[test]
fn flipped_bits_in_the_header() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.journal(&small_journal());
    let before = region.fingerprint();
    let phase = offset_of!(Header, phase);
    for (at, byte) in before.iter().enumerate().take(size_of::<Header>()) {
        // The phase word is not covered: it is what changes last.
        if (phase..phase + 8).contains(&at) {
            continue;
        }
        region.put(at, &[byte ^ 0x10]);
        store.zhuque(["inspect", "r"]).error(125, &["r: damaged"]);
        if at % 16 == 0 {
            store.zhuque(["resume", "r"]).error(125, &["r: damaged"]);
            store.zhuque(["ls"]).ok();
        }
        region.put(at, &[*byte]);
    }
    store.zhuque(["inspect", "r"]).ok();
    assert_eq!(before, region.fingerprint());
}

#[test]
fn links_and_other_files() {
    let store = TestStore::new();
    let elsewhere = TestStore::new();
    let victim = elsewhere.region("victim", Phase::Saved);
    symlink(&victim.path, store.join("r")).unwrap();
    all_refuse(&store, &["link"]);
    store.zhuque(["rm", "r"]).error(125, &["link"]);
    assert!(victim.path.join(CONTROL_FILE).exists());

    for file in [CONTROL_FILE, LOCK_FILE] {
        let store = TestStore::new();
        let region = store.region("r", Phase::Saved);
        fs::remove_file(region.path.join(file)).unwrap();
        all_refuse(&store, &[&format!("no file {file}")]);
        symlink(victim.path.join(file), region.path.join(file)).unwrap();
        all_refuse(&store, &[&format!("file {file} is a link")]);
        fs::remove_file(region.path.join(file)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(region.path.join(file)).status();
        assert!(made.unwrap().success());
        all_refuse(&store, &[&format!("{file} is not a regular file")]);
        store.zhuque(["rm", "r"]).ok();
        assert!(!region.path.exists());
    }
    assert!(victim.path.join(CONTROL_FILE).exists());
}

#[test]
fn removing_follows_no_links() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Ended);
    let precious = store.join(".precious");
    fs::create_dir(&precious).unwrap();
    File::create(precious.join("file")).unwrap();
    symlink(&precious, region.path.join(FILES_DIR).join("link")).unwrap();
    fs::create_dir_all(region.path.join(FILES_DIR).join("a/b/c")).unwrap();
    store.zhuque(["rm", "r"]).ok();
    assert!(!region.path.exists());
    assert!(precious.join("file").exists());
}

#[test]
fn regions_that_others_may_write_to() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    let open = |mode| fs::set_permissions(&region.path, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o770, 0o707, 0o777] {
        open(mode);
        all_refuse(&store, &["others may write"]);
        store.zhuque(["rm", "r"]).error(125, &["others may write"]);
    }
    open(0o700);
    store.zhuque(["inspect", "r"]).ok();
    fs::set_permissions(&store.path, fs::Permissions::from_mode(0o777)).unwrap();
    store.zhuque(["inspect", "r"]).error(125, &["others may write"]);
    store.zhuque(["run", "true"]).error(125, &["others may write"]);
}

#[test]
fn regions_of_other_users() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    std::os::unix::fs::chown(&region.path, Some(12345), None).unwrap();
    all_refuse(&store, &["belongs to user 12345"]);
    store.zhuque(["rm", "r"]).error(125, &["belongs to user 12345"]);
    assert!(region.path.exists());
    std::os::unix::fs::chown(&store.path, Some(12345), None).unwrap();
    store.zhuque(["ls"]).error(125, &["belongs to user 12345"]);
}

#[test]
fn listing() {
    let store = TestStore::new();
    store.region("ended", Phase::Ended);
    store.region("lost", Phase::Running);
    store.region("new", Phase::Creating);
    let saved = store.region("saved", Phase::Saved);
    saved.journal(&small_journal());
    let unsaved = store.region("unsaved", Phase::Unsaved);
    unsaved.put(offset_of!(Header, reason), &3u32.to_le_bytes());
    unsaved.put(offset_of!(Header, detail), b"thread 7\n\x1b[2J\0");
    fs::create_dir(store.join(".hidden")).unwrap();
    File::create(store.join("a-file")).unwrap();

    let list = store.zhuque(["ls", "--json"]).json();
    let states: Vec<_> = { list.as_array().unwrap().iter() }
        .map(|r| (r["name"].as_str().unwrap(), r["state"].as_str().unwrap()))
        .collect();
    let expected =
        [("ended", "ended"), ("lost", "unsaved"), ("new", "creating"), ("saved", "saved"), ("unsaved", "unsaved")];
    assert_eq!(states, expected);
    let saved = &list[3];
    assert_eq!(saved["pid"], serde_json::Value::Null);
    assert_eq!(saved["generation"], 3);
    assert_eq!(saved["threads"], 7);
    assert_eq!(saved["program"], "thing -x");
    assert!(saved["bytes"].as_u64().unwrap() >= 2 * PAGE);
    assert!(list[4]["reason"].as_str().unwrap().contains("thread 7\\n\\u{1b}[2J"));

    let table = store.zhuque(["ls"]).ok();
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 6);
    assert!(lines[0].starts_with("NAME     STATE     PID  GENERATION  THREADS  SIZE"));
    assert!(lines[4].starts_with("saved    saved     -    3           7        "));
    assert!(!table.contains('\x1b'));
}

#[test]
fn a_locked_region_is_in_use() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Running);
    let lock = File::options().write(true).open(region.path.join(LOCK_FILE)).unwrap();
    lock.try_lock().unwrap();
    let list = store.zhuque(["ls", "--json"]).json();
    assert_eq!(list[0]["state"], "running");
    store.zhuque(["resume", "r"]).error(125, &["running"]);
    store.zhuque(["run", "-n", "r", "true"]).error(125, &["in use (running)", "zhuque rm r"]);
    // Saved, but its process has not let go yet.
    region.put(offset_of!(Header, phase), &[Phase::Saved as u8]);
    region.seal();
    store.zhuque(["resume", "r"]).error(125, &["in use"]);
    drop(lock);
    store.zhuque(["rm", "r"]).ok();
}

#[test]
fn a_header_cannot_point_at_a_stranger() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Running);
    let lock = File::options().write(true).open(region.path.join(LOCK_FILE)).unwrap();
    lock.try_lock().unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    region.put(offset_of!(Header, pid), &stranger.id().to_le_bytes());
    store.zhuque(["rm", "r"]).error(125, &["in use by process"]);
    assert!(stranger.try_wait().unwrap().is_none());
    assert!(region.path.exists());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn inspecting() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.journal(&small_journal());
    region.mappings(100);
    let summary = store.zhuque(["inspect", "r", "--json"]).json();
    assert_eq!(summary["state"], "saved");
    assert_eq!(summary["mappings"], "100 region (400 KiB)");
    let maps = store.zhuque(["inspect", "r", "maps", "--json"]).json();
    assert_eq!(maps.as_array().unwrap().len(), 100);
    assert_eq!(maps[0]["protection"], "rw-");
    assert_eq!(store.zhuque(["inspect", "r", "maps"]).ok().lines().count(), 100);
    let fds = store.zhuque(["inspect", "r", "fds", "--json"]).json();
    assert_eq!((&fds[0]["fd"], &fds[1]["fd"]), (&3.into(), &5.into()));
    assert_eq!(fds[1]["cloexec"], true);
    assert_eq!(fds[0]["what"], "file /tmp/a\\nb at 17");
    let journal = store.zhuque(["inspect", "r", "journal"]).ok();
    assert_eq!(journal.lines().count(), 4);
    assert!(journal.starts_with("Process arguments=\"thing -x\" ") && journal.contains(" cwd=/ "), "{journal}");
    store.zhuque(["inspect", "r", "threads"]).ok();
}

#[test]
fn damaged_journals() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    let journal = small_journal();
    region.journal(&journal);
    region.put(JOURNAL_OFFSET as usize + 20, b"?");
    store.zhuque(["inspect", "r", "journal"]).error(125, &["journal's checksum"]);
    region.put(offset_of!(Header, journal_bytes), &u64::MAX.to_le_bytes());
    region.seal();
    store.zhuque(["inspect", "r", "journal"]).error(125, &["longer than it can be"]);
    // A journal whose checksum is right and whose records are not.
    for cut in [1, 5, 11, 12, 40, journal.len() - 1] {
        region.journal(&journal[..cut]);
        for what in ["journal", "fds"] {
            let done = store.zhuque(["inspect", "r", what]);
            done.ok();
            assert!(done.err().contains("damaged"), "{done:?}");
        }
    }
    for at in 0..journal.len() {
        let mut flipped = journal.clone();
        flipped[at] ^= 0x40;
        region.journal(&flipped);
        let done = store.zhuque(["inspect", "r", "journal"]);
        done.ok();
        assert!(done.err().contains("damaged"), "{done:?}");
    }
}

#[test]
fn garbage_tables() {
    let store = TestStore::new();
    let region = store.region("r", Phase::Saved);
    region.journal(&small_journal());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..40 {
        region.mappings(50);
        // Nothing vouches for the tables of a region that was not saved: they are looked at as they are.
        let phase = if round % 2 == 0 { Phase::Saved } else { Phase::Unsaved };
        region.put(offset_of!(Header, phase), &[phase as u8]);
        let globals = GLOBALS_OFFSET as usize;
        // A few wild bytes in globals, nodes and slots; a wild number of slots.
        for _ in 0..30 {
            let area = [globals, NODES_OFFSET as usize, SLOTS_OFFSET as usize];
            let at = area[(random() % 3) as usize] + (random() % 3200) as usize;
            region.put(at, &[random() as u8]);
        }
        if round % 4 == 1 {
            let used = globals + offset_of!(Globals, tree) + 8;
            region.put(used, &(random() as u32).to_le_bytes());
            let slots = globals + offset_of!(Globals, slots);
            region.put(slots, &(random() as u32).to_le_bytes());
        }
        for what in ["maps", "threads"] {
            let done = store.zhuque(["inspect", "r", what]);
            assert!([0, 125].contains(&done.status()), "{done:?}");
            assert!(done.err().lines().count() <= 1, "{done:?}");
        }
        store.zhuque(["inspect", "r"]).ok();
    }
}
