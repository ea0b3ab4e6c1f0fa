//! What cannot be done is refused in one clear line, with the documented status, and changes nothing.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use zhuque_tests::command::{self, ERROR, PATIENCE};
use zhuque_tests::guest::{build, find};
use zhuque_tests::life::Announce;
use zhuque_tests::{Finished, Guest, Life, Store, digest};

/// One line on standard error that names zhuque and every one of `words`, and the right status.
fn check_refusal(refused: &Finished, statuses: &[i32], words: &[&str]) {
    let shown = format!("status {}, stderr {:?}", refused.status, refused.stderr);
    assert!(statuses.contains(&refused.status), "not {statuses:?}: {shown}");
    assert_eq!(refused.stderr.trim_end().lines().count(), 1, "not one line: {shown}");
    assert!(refused.stderr.starts_with("zhuque: "), "does not say who speaks: {shown}");
    for word in words {
        assert!(refused.stderr.to_lowercase().contains(&word.to_lowercase()), "no {word:?}: {shown}");
    }
    assert!(refused.stdout.is_empty(), "the program has run: {shown}");
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A saved life that still has much to do.
fn saved<'s>(store: &'s Store, name: &str) -> Life<'s> {
    saved_guest(store, name, &Guest::c("threads").args(["4", "20000"]))
}

fn saved_guest<'s>(store: &'s Store, name: &str, guest: &Guest) -> Life<'s> {
    Life::saved_after(store, name, guest, Duration::from_millis(150))
}

/// Does `attempt`, which must be refused in words that contain `words` and must change nothing in the region.
fn check_unchanged(store: &Store, name: &str, words: &[&str], attempt: impl FnOnce() -> Finished) {
    let before = digest::of(&store.region(name));
    check_refusal(&attempt(), &[ERROR], words);
    let after = digest::of(&store.region(name));
    assert_eq!(digest::difference(&before, &after), None, "the region has changed");
}

/// It can still be resumed, and ends well.
fn check_resumes(life: &mut Life) {
    life.resume();
    if life.end().status != 0 {
        life.wrong("cannot be resumed any more");
    }
}

#[test]
fn unknown_names() {
    let store = Store::new();
    for subcommand in ["resume", "fail", "inspect", "rm"] {
        check_refusal(&store.call(subcommand, &["nobody"]), &[ERROR], &["nobody"]);
    }
}

#[test]
fn names_that_are_no_names() {
    let store = Store::new();
    let long = "n".repeat(300);
    for name in ["a/b", "..", ".", "", "/etc", "../store", long.as_str(), "line\nbreak"] {
        for (subcommand, arguments) in [("run", vec!["-n", name, "--", "/bin/true"]), ("resume", vec!["--", name])] {
            let refused = store.call(subcommand, &arguments);
            assert_eq!(refused.status, ERROR, "{subcommand} {name:?}: {refused:?}");
            assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{subcommand} {name:?}: {refused:?}");
        }
    }
    assert_eq!(
        fs::read_dir(store.dir()).expect("store").flatten().filter(|is| is.path().join("control").exists()).count(),
        0
    );
}

#[test]
fn a_name_in_use() {
    let store = Store::new();
    let mut life = saved(&store, "taken");
    let run = || store.call("run", &["-n", "taken", "--", "/bin/true"]);
    check_unchanged(&store, "taken", &["taken"], run);
    life.resume();
    life.up();
    check_refusal(&run(), &[ERROR], &["taken"]);
    assert_eq!(life.end().status, 0);
}

#[test]
fn resuming_what_runs_and_what_has_ended() {
    let store = Store::new();
    let mut life = Life::start_with(&store, "kept", &Guest::c("threads"), &["--keep"]);
    life.up();
    check_refusal(&store.call("resume", &["kept"]), &[ERROR], &["kept", "run"]);
    assert_eq!(life.end().status, 0);
    assert_eq!(store.find("kept").map(|region| region.state).as_deref(), Some("ended"));
    check_unchanged(&store, "kept", &["kept", "ended"], || store.call("resume", &["kept"]));
    check_unchanged(&store, "kept", &["kept"], || store.call("fail", &["kept"]));
    assert_eq!(store.call("rm", &["kept"]).status, 0);
    assert!(!store.region("kept").exists());
}

#[test]
fn failing_what_is_saved_already() {
    let store = Store::new();
    let mut life = saved(&store, "twice");
    check_unchanged(&store, "twice", &["twice"], || store.call("fail", &["twice"]));
    check_resumes(&mut life);
}

#[test]
fn resuming_what_was_killed_unsaved() {
    let store = Store::new();
    let mut life = Life::start(&store, "killed", &Guest::c("threads").args(["4", "1000000"]));
    let region = life.up();
    kill(Pid::from_raw(region.pid), Signal::SIGKILL).expect("kill");
    assert_eq!(life.end().status, 128 + 9);
    // Once a guardian saves killed programs, this needs --no-guard.
    if store.find("killed").is_some_and(|region| region.state != "saved") {
        check_unchanged(&store, "killed", &["killed"], || store.call("resume", &["killed"]));
    }
}

/// Overwrites bytes of a file, and what stood there.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
    let mut old = vec![0; bytes.len()];
    file.read_exact_at(&mut old, offset).expect("read");
    file.write_all_at(bytes, offset).expect("write");
    old
}

#[test]
fn a_region_of_another_version_or_of_no_version() {
    let store = Store::new();
    let mut life = saved(&store, "version");
    let control = store.region("version").join("control");
    let resume = || store.call("resume", &["version"]);
    // The version lies at offset 8, the magic at 0 (shim/abi/src/header.rs).
    let old = overwrite(&control, 8, &999u32.to_le_bytes());
    check_unchanged(&store, "version", &["version"], resume);
    overwrite(&control, 8, &old);
    let old = overwrite(&control, 0, b"notzhuqu");
    check_unchanged(&store, "version", &["version"], resume);
    overwrite(&control, 0, &old);
    check_resumes(&mut life);
}

#[test]
fn corrupted_regions() {
    let store = Store::new();
    let mut life = saved(&store, "bits");
    let control = store.region("bits").join("control");
    // In the header, in the globals, in the mapping table, in the journal, in the first slot (shim/abi/src/layout.rs).
    for offset in [0x28, 0x48, 0x1010, 0x200_0040, 0x800_0010, 0x1000_0040] {
        let mut byte = [0];
        fs::File::open(&control).expect("open").read_exact_at(&mut byte, offset).expect("read");
        let old = overwrite(&control, offset, &[byte[0] ^ 0x10]);
        check_unchanged(&store, "bits", &["bits"], || store.call("resume", &["bits"]));
        overwrite(&control, offset, &old);
    }
    check_resumes(&mut life);
}

#[test]
fn truncated_regions() {
    let store = Store::new();
    let mut life = saved(&store, "short");
    let region = store.region("short");
    for name in ["control", "shim.so"] {
        let (whole, kept) = (region.join(name), store.beside("whole"));
        let size = fs::metadata(&whole).expect("metadata").len();
        // A sparse copy by cp keeps holes.
        assert!(
            Command::new("cp").args(["--sparse=always", "-p"]).arg(&whole).arg(&kept).status().expect("cp").success()
        );
        for length in [0, 100, 4096, size / 2] {
            let file = fs::OpenOptions::new().write(true).open(&whole).expect("open");
            file.set_len(length.min(size)).expect("truncate");
            drop(file);
            check_unchanged(&store, "short", &["short"], || store.call("resume", &["short"]));
        }
        assert!(
            Command::new("cp").args(["--sparse=always", "-p"]).arg(&kept).arg(&whole).status().expect("cp").success()
        );
    }
    let slice = fs::read_dir(&region).expect("region").flatten().map(|entry| entry.path());
    for path in slice.filter(|path| path.to_string_lossy().contains("slice-")) {
        let moved = store.beside("slice");
        fs::rename(&path, &moved).expect("rename");
        check_unchanged(&store, "short", &["short"], || store.call("resume", &["short"]));
        fs::rename(&moved, &path).expect("rename");
    }
    check_resumes(&mut life);
}

#[test]
fn regions_of_others() {
    let store = Store::new();
    let mut life = saved(&store, "mine");
    let region = store.region("mine");
    fs::set_permissions(&region, fs::Permissions::from_mode(0o777)).expect("permissions");
    check_unchanged(&store, "mine", &["mine"], || store.call("resume", &["mine"]));
    fs::set_permissions(&region, fs::Permissions::from_mode(0o700)).expect("permissions");
    let real = store.beside("real");
    fs::rename(&region, &real).expect("rename");
    std::os::unix::fs::symlink(&real, &region).expect("symlink");
    check_refusal(&store.call("resume", &["mine"]), &[ERROR], &["mine"]);
    fs::remove_file(&region).expect("unlink");
    fs::rename(&real, &region).expect("rename");
    if is_root() {
        let owner = store.user().unwrap_or(0);
        chown(&region, Some(12345), None).expect("chown");
        check_refusal(&store.call("resume", &["mine"]), &[ERROR], &["mine"]);
        chown(&region, Some(owner), None).expect("chown");
    }
    check_resumes(&mut life);
}

#[test]
fn a_program_or_library_that_has_changed() {
    let store = Store::new();
    let (program, library) = (store.beside("program"), store.beside("libanswer.so"));
    let source = store.beside("answer.c");
    fs::write(&source, "int answer(void) { return 42; }\n").expect("source");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("cc").success());
    let main = store.beside("main.c");
    let text = "#include <unistd.h>\nint answer(void);\nint main(void) { for (int i = 0; i < 400; i++) usleep(5000); return answer() - 42; }\n";
    fs::write(&main, text).expect("source");
    let built = Command::new("cc").arg("-o").arg(&program).arg(&main).arg(&library).status();
    assert!(built.expect("cc").success());
    let mut life = saved_guest(&store, "changed", &Guest::new(&program));
    for path in [&program, &library] {
        let kept = store.beside("kept");
        fs::rename(path, &kept).expect("rename");
        let named = path.file_name().expect("name").to_string_lossy().into_owned();
        // Gone, then another one in its place.
        check_unchanged(&store, "changed", &[&named], || store.call("resume", &["changed"]));
        fs::copy(&kept, path).expect("copy");
        let mut bytes = fs::read(path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).expect("write");
        check_unchanged(&store, "changed", &[&named], || store.call("resume", &["changed"]));
        fs::rename(&kept, path).expect("rename");
    }
    check_resumes(&mut life);
}

#[test]
fn stores_that_are_none() {
    let store = Store::new();
    let run = |dir: &Path| {
        let mut command = command::command(command::zhuque(), None);
        command.args(["run", "-s"]).arg(dir).args(["-n", "x", "--", "/bin/true"]);
        command::finish(command, PATIENCE)
    };
    let missing = store.beside("missing/deep/store");
    check_refusal(&run(&missing), &[ERROR], &["missing/deep/store"]);
    let file = store.beside("file");
    fs::write(&file, "no directory").expect("write");
    check_refusal(&run(&file), &[ERROR], &["file"]);
    // Read-only for its own user: no region can be made there.
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o500)).expect("permissions");
    if store.user().is_some() || !is_root() {
        check_refusal(&store.call("run", &["-n", "x", "--", "/bin/true"]), &[ERROR], &["store"]);
    }
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o700)).expect("permissions");
}

/// A tmpfs of that many bytes at `dir`, gone when dropped. Needs root; `None` where mounting is not allowed.
struct Mounted<'d>(&'d Path);

impl<'d> Mounted<'d> {
    fn tmpfs(dir: &'d Path, options: &str) -> Option<Mounted<'d>> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "zhuque-test"]).arg(dir).status();
        status.is_ok_and(|is| is.success()).then_some(Mounted(dir))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn full_and_read_only_stores() {
    let store = Store::new();
    let dir = store.work_dir("mounted");
    let owner = store.user().unwrap_or(nix::unistd::geteuid().as_raw());
    let run = || {
        let mut command = store.zhuque("run");
        command = command::command(Path::new(command.get_program()), store.user());
        command.args(["run", "-s"]).arg(&dir).args(["-n", "x", "--", "/bin/true"]);
        command::finish(command, PATIENCE)
    };
    for (options, why) in
        [(format!("size=64k,mode=700,uid={owner},gid={owner}"), "full"), ("ro,size=1g".to_string(), "read-only")]
    {
        let Some(_mounted) = Mounted::tmpfs(&dir, &options) else {
            println!("not tried: no tmpfs can be mounted here");
            return;
        };
        let refused = run();
        println!("{why}: {}", refused.stderr.trim_end());
        check_refusal(&refused, &[ERROR], &["mounted"]);
    }
}

/// A store that has filled up, or can only be read, since the save: a resume changes nothing, and works afterwards.
#[test]
fn resumes_in_full_and_read_only_stores() {
    let store = Store::new();
    let owner = store.user().unwrap_or(nix::unistd::geteuid().as_raw());
    let dir = store.dir();
    let Some(_mounted) = Mounted::tmpfs(&dir, &format!("size=64m,mode=700,uid={owner},gid={owner}")) else {
        println!("not tried: no tmpfs can be mounted here");
        return;
    };
    let fill = dir.join("fill");
    let fill_up = || {
        let mut file = fs::File::create(&fill).expect("a file that fills the store");
        let _ = std::io::copy(&mut std::io::repeat(7), &mut file);
    };
    let mut life = saved(&store, "kept");
    // Somebody else fills the store while a program waits: it is saved all the same.
    let mut waiting = Life::start(&store, "waiting", &Guest::installed("sleep").arg("2"));
    waiting.up();
    std::thread::sleep(Duration::from_millis(200));
    fill_up();
    assert!(waiting.fail(Announce::Fail), "it ended too early");
    check_unchanged(&store, "kept", &["full", "make room"], || store.call("resume", &["kept"]));
    fs::remove_file(&fill).expect("make room");
    check_resumes(&mut waiting);
    let remount = |how: &str| {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&dir).status();
        assert!(status.is_ok_and(|is| is.success()), "remount,{how}");
    };
    remount("ro");
    assert_eq!(store.find("kept").map(|region| region.state).as_deref(), Some("saved"));
    assert_eq!(store.call("inspect", &["kept"]).status, 0);
    check_unchanged(&store, "kept", &["cannot write", "read-only"], || store.call("resume", &["kept"]));
    remount("rw");
    check_resumes(&mut life);
}

/// Refused before it starts, with `words`.
fn check_program(store: &Store, program: &Path, statuses: &[i32], words: &[&str]) {
    let refused = store.call("run", &["-n", "x", "--", &program.to_string_lossy()]);
    check_refusal(&refused, statuses, words);
    assert!(!store.region("x").exists(), "a region is left behind");
}

#[test]
fn programs_that_cannot_be_persistent() {
    let store = Store::new();
    let source = store.beside("plain.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("source");
    let make = |name: &str, flags: &[&str], from: &Path| {
        let to = store.beside(name);
        Command::new("cc")
            .args(flags)
            .arg("-o")
            .arg(&to)
            .arg(from)
            .output()
            .is_ok_and(|is| is.status.success())
            .then_some(to)
    };
    let refused = [125, 126];
    let fixed = make("static", &["-static"], &source).expect("a static program (libc6-dev)");
    check_program(&store, &fixed, &refused, &["static"]);
    let cut = store.beside("cut");
    let whole = fs::read(find("bash").expect("bash")).expect("read bash");
    fs::write(&cut, &whole[..4000]).expect("write");
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o755)).expect("permissions");
    check_program(&store, &cut, &refused, &["cut off"]);
    let setuid = make("setuid", &[], &source).expect("a program");
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).expect("permissions");
    check_program(&store, &setuid, &refused, &["setuid"]);
    let bare = store.beside("bare.c");
    fs::write(&bare, "void _start(void) { for (;;) ; }\n").expect("source");
    match make("old", &["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-fcf-protection=none"], &bare) {
        Some(old) => check_program(&store, &old, &refused, &["32-bit"]),
        None => println!("not tried: cc cannot make 32-bit programs"),
    }
    check_program(&store, &store.beside("nothing-here"), &[127], &["nothing-here"]);
    check_program(&store, &source, &[126], &["plain.c"]);
    let text = store.beside("text");
    fs::write(&text, "neither ELF nor a script\n").expect("write");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).expect("permissions");
    check_program(&store, &text, &refused, &["text"]);
}

#[test]
fn statuses_of_programs_pass_through() {
    let store = Store::new();
    let shell = find("sh").expect("sh");
    for (script, status) in
        [("exit 0", 0), ("exit 3", 3), ("exit 75", 75), ("kill -TERM $$", 143), ("kill -SEGV $$", 139)]
    {
        let ended = store.call("run", &["-n", "x", "--", &shell.to_string_lossy(), "-c", script]);
        assert_eq!(ended.status, status, "{script}: {ended:?}");
        if status != 139 {
            assert!(!store.region("x").exists(), "{script}: the region is still there");
        }
        let _ = store.call("rm", &["x"]);
    }
    let _ = build("threads");
}

#[test]
fn wrong_command_lines() {
    let store = Store::new();
    for arguments in [vec!["run"], vec!["run", "--no-such-option", "--", "/bin/true"], vec!["no-such-command"]] {
        let mut command = command::command(command::zhuque(), None);
        command.args(&arguments).env("ZHUQUE_STORE", store.dir());
        let refused = command::finish(command, PATIENCE);
        assert_eq!(refused.status, ERROR, "{arguments:?}: {refused:?}");
        assert!(!refused.stderr.is_empty(), "{arguments:?}");
    }
}
