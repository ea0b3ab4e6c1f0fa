//! `launcher/OBJECTS.md`: what becomes of each property of each kernel object. The page is made of what guests have seen
//! (`examples/kept_*.c`), natively and under zhuque, before and after one power failure.
//!
//! The test fails if the page is not what would be made; with `ZHUQUE_PAGES=write` it writes it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;
use zhuque_tests::command::{self, PATIENCE, until};
use zhuque_tests::life::Announce;
use zhuque_tests::{Guest, Life, Store};

/// Guests, and the headings of what they look at.
const GUESTS: [(&str, &str); 7] = [
    ("kept_files", "Files, directories, locks, memory of files"),
    ("kept_pipes", "Pipes, FIFOs, terminals"),
    ("kept_sockets", "Sockets"),
    ("kept_events", "Events, timers, queues"),
    ("kept_process", "The process"),
    ("kept_threads", "Threads and signals"),
    ("kept_memory", "Memory"),
];

const HEAD: &str = "\
# What becomes of kernel objects

Made by `tests/tests/objects.rs` (`ZHUQUE_PAGES=write cargo test --release -p zhuque-tests --test objects` writes it): the
guests `examples/kept_*.c` set each object up, look at each property natively and under zhuque, and look again after a
power failure and a resume, as an ordinary user. What is refused at once, call by call, is in `SYSCALLS.md`.

| verdict | means |
|---|---|
| kept | as it was |
| becomes *X* | it was something else before the failure |
| refused: *error* | the call that would make it fails with that error |
| is *X* | also without a failure, other than natively |
";

/// A property as a guest has seen it.
struct Seen {
    object: String,
    property: String,
    before: String,
    after: String,
    why: String,
}

fn parse(text: &[u8]) -> Vec<Seen> {
    let text = String::from_utf8_lossy(text);
    let each = |line: &str| {
        let mut parts = line.split('\t').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_else(|| panic!("not a property: {line}"));
        Seen { object: next(), property: next(), before: next(), after: next(), why: next() }
    };
    text.lines().map(each).collect()
}

fn wait_until_ready(dir: &Path) {
    assert!(until(PATIENCE, || dir.join("ready").exists().then_some(())).is_some(), "it does not get ready");
}

/// The same signal natively, where it is one like any other.
fn seen_natively(store: &Store, guest: &Guest) -> Vec<Seen> {
    let dir = store.work_dir(&format!("{}-native", guest.name()));
    let output = store.beside(&format!("{}-native.out", guest.name()));
    let mut command = guest.natively(store, &dir);
    let mut child = command.stdout(File::create(&output).expect("output")).spawn().expect("start it");
    wait_until_ready(&dir);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGPWR).expect("signal");
    let status = command::wait(&mut child, PATIENCE).expect("its end");
    assert!(status.success(), "{}: natively {status}", guest.name());
    parse(&fs::read(output).expect("output"))
}

fn seen_after_a_failure(store: &Store, guest: &Guest) -> Vec<Seen> {
    let mut life = Life::start(store, &guest.name(), guest);
    wait_until_ready(&life.dir);
    assert!(life.fail(Announce::Fail), "it ended too early");
    life.resume();
    let ended = life.end();
    assert_eq!(ended.status, 0, "{}: {}", guest.name(), ended.stderr);
    life.remove();
    parse(&ended.stdout)
}

/// What the page says of it already, where this machine cannot tell.
fn known<'p>(committed: &'p str, seen: &Seen) -> Option<&'p str> {
    let start = row(seen, "");
    let mut verdicts =
        committed.lines().filter_map(|line| line.strip_prefix(start.trim_end_matches(" |"))?.strip_suffix(" |"));
    verdicts.next()
}

fn row(seen: &Seen, verdict: &str) -> String {
    format!("| {} | {} | {verdict} |", seen.object, seen.property)
}

fn verdict(native: &Seen, ours: &Seen) -> String {
    let why = if ours.why.is_empty() { String::new() } else { format!(": {}", ours.why) };
    match () {
        () if ours.before.starts_with("refused") => format!("{}{why}", ours.before),
        () if ours.before != native.before => format!("is *{}*, natively *{}*{why}", ours.before, native.before),
        () if ours.before != ours.after => format!("becomes *{}*, was *{}*{why}", ours.after, ours.before),
        () => "kept".to_owned(),
    }
}

fn add_table(page: &mut String, committed: &str, heading: &str, native: &[Seen], ours: &[Seen]) {
    let names = |all: &[Seen]| all.iter().map(|is| (is.object.clone(), is.property.clone())).collect::<Vec<_>>();
    assert_eq!(names(native), names(ours), "{heading}: other properties than natively");
    let changed: Vec<_> = native.iter().filter(|is| is.before != is.after).map(|is| &is.property).collect();
    assert!(changed.is_empty(), "{heading}: {changed:?} change natively, too");
    let _ = write!(page, "\n## {heading}\n\n| object | property | after a failure |\n|---|---|---|\n");
    for (native, ours) in native.iter().zip(ours) {
        let verdict = match native.before == "absent" {
            true => known(committed, ours).unwrap_or("absent").to_owned(),
            false => verdict(native, ours),
        };
        let _ = writeln!(page, "{}", row(ours, &verdict));
    }
}

#[test]
fn page_of_objects() {
    let store = Store::new();
    let path = command::workspace().join("launcher/OBJECTS.md");
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let mut page = HEAD.to_owned();
    for (name, heading) in GUESTS {
        let guest = Guest::c(name).arg("table");
        let (native, ours) = (seen_natively(&store, &guest), seen_after_a_failure(&store, &guest));
        add_table(&mut page, &committed, heading, &native, &ours);
    }
    if std::env::var("ZHUQUE_PAGES").is_ok_and(|value| value == "write") {
        return fs::write(&path, page).expect("write the page");
    }
    let differs = page.lines().zip(committed.lines()).find(|(made, there)| made != there);
    assert!(page == committed, "launcher/OBJECTS.md is not what was seen; first difference: {differs:?}");
}
