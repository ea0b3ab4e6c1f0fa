//! One region from `zhuque run` to the program's end, with power failures and resumes in between.
//!
//! Output of all lives of a program goes into one file, as it would to one terminal. Every wait is bounded, and what
//! goes wrong is reported with everything that is known: the seed, both outputs, the region as `inspect` sees it.

use crate::command::{self, Finished, PATIENCE, SAVED};
use crate::guest::Guest;
use crate::random::Random;
use crate::store::{Region, Store};
use crate::tracer::{self, Script, Watched};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A program under zhuque.
pub struct Life<'s> {
    /// Its store.
    pub store: &'s Store,
    /// Its region.
    pub name: String,
    /// Its working directory.
    pub dir: PathBuf,
    /// Failures so far.
    pub failures: u32,
    guest: Guest,
    launcher: Option<Child>,
    status: Option<i32>,
    log: Vec<String>,
    born: Instant,
}

/// How a power failure is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// `zhuque fail`, which signals every thread.
    Fail,
    /// SIGPWR to the process, as init would send it.
    Signal,
}

impl<'s> Life<'s> {
    fn new(store: &'s Store, name: &str, guest: &Guest) -> Life<'s> {
        let dir = store.work_dir(&format!("{name}.work"));
        Life {
            store,
            name: name.to_string(),
            dir,
            failures: 0,
            guest: guest.clone(),
            launcher: None,
            status: None,
            log: Vec::new(),
            born: Instant::now(),
        }
    }

    /// Starts `guest` as region `name` in a new working directory.
    pub fn start(store: &'s Store, name: &str, guest: &Guest) -> Life<'s> {
        Life::start_with(store, name, guest, &[])
    }

    /// The same with options for `run`.
    pub fn start_with(store: &'s Store, name: &str, guest: &Guest, options: &[&str]) -> Life<'s> {
        let mut life = Life::new(store, name, guest);
        let mut command = store.zhuque("run");
        command.args(options).args(["-n", name, "--"]).arg(&guest.program).args(&guest.arguments);
        command.envs(guest.environment.iter().cloned()).current_dir(&life.dir);
        life.spawn(command);
        life
    }

    /// Starts `guest`, lets it run for a while, and saves it.
    pub fn saved_after(store: &'s Store, name: &str, guest: &Guest, time: Duration) -> Life<'s> {
        let mut life = Life::start(store, name, guest);
        life.up();
        std::thread::sleep(time);
        assert!(life.fail(Announce::Fail), "it ended too early");
        life
    }

    /// Starts `guest` watched, with a power failure at a chosen call, and waits until that or its end has come.
    pub fn start_watched(store: &'s Store, name: &str, guest: &Guest, script: Script) -> (Life<'s>, Watched) {
        let mut life = Life::new(store, name, guest);
        let mut command = store.held("run");
        command.args(["-n", name, "--"]).arg(&guest.program).args(&guest.arguments);
        command.envs(guest.environment.iter().cloned()).current_dir(&life.dir);
        let watched = life.watch(command, script);
        (life, watched)
    }

    /// Resumes it watched, where nobody may trace ([`Store::without_ptrace`]): the tracer is the test.
    pub fn resume_watched(&mut self, script: Script) -> Watched {
        let mut command = self.store.held("resume");
        command.arg(&self.name).current_dir(&self.dir);
        self.watch(command, script)
    }

    fn watch(&mut self, command: Command, script: Script) -> Watched {
        self.spawn(command);
        let Some(mut child) = self.launcher.take() else { self.wrong("has not been started") };
        let held = child.stdin.take();
        let watched = tracer::watch(child.id(), script, self.guest.patience, || drop(held));
        self.note(format!("watched, {script:?}: {watched:?}"));
        match watched {
            Ok(Some(watched)) => {
                self.status = Some(watched.status);
                self.failures += u32::from(watched.status == SAVED);
                watched
            }
            Ok(None) => {
                self.launcher = Some(child);
                self.wrong("hangs")
            }
            Err(error) => {
                self.launcher = Some(child);
                self.wrong(&format!("cannot be watched: {error}"))
            }
        }
    }

    /// Where the program's standard output, or its errors, are collected.
    pub fn output_file(&self, kind: &str) -> PathBuf {
        self.store.beside(&format!("{}.{kind}", self.name))
    }

    fn spawn(&mut self, mut command: Command) {
        let append = |path: &Path| -> File {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        command.stdout(append(&self.output_file("out"))).stderr(append(&self.output_file("err")));
        self.note(format!("{command:?}"));
        match command.spawn() {
            Ok(child) => self.launcher = Some(child),
            Err(error) => self.wrong(&format!("cannot start: {error}")),
        }
    }

    fn note(&mut self, text: String) {
        self.log.push(format!("{:8.3} {text}", self.born.elapsed().as_secs_f64()));
    }

    /// Waits until the program runs; `None`: it has ended already.
    pub fn running(&mut self) -> Option<Region> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.store.find(&self.name).filter(|is| is.state == "running" && is.pid > 0) {
                return Some(found);
            }
            if self.poll_launcher() {
                return None;
            }
            if Instant::now() > end {
                self.wrong("does not come up");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the program runs; it must.
    pub fn up(&mut self) -> Region {
        match self.running() {
            Some(region) => region,
            None => self.wrong(&format!("has ended with {}", self.status.unwrap_or(-1))),
        }
    }

    /// Whether `run` or `resume` has ended.
    fn poll_launcher(&mut self) -> bool {
        if let Some(child) = self.launcher.as_mut()
            && let Some(status) = child.try_wait().expect("wait for zhuque")
        {
            self.status = Some(Finished::code(status));
            self.launcher = None;
        }
        self.launcher.is_none()
    }

    fn wait_launcher(&mut self, limit: Duration, why: &str) -> i32 {
        let Some(mut child) = self.launcher.take() else {
            return self.status.unwrap_or(-1);
        };
        let status = command::wait(&mut child, limit);
        let Some(status) = status else {
            self.launcher = Some(child);
            self.wrong(&format!("{why}: `zhuque` has not ended after {limit:?}"));
        };
        let code = Finished::code(status);
        self.note(format!("ended with {code}"));
        self.status = Some(code);
        code
    }

    /// A power failure now. False: the program had ended by itself before.
    pub fn fail(&mut self, announce: Announce) -> bool {
        let Some(region) = self.running() else {
            return false;
        };
        self.note(format!("failure of pid {}, announced by {announce:?}", region.pid));
        let refused = match announce {
            Announce::Fail => {
                let told = self.store.call("fail", &[&self.name]);
                (told.status != 0).then(|| format!("fail: {} {}", told.status, told.stderr.trim_end()))
            }
            Announce::Signal => {
                let sent = kill(Pid::from_raw(region.pid), Signal::SIGPWR);
                sent.err().map(|error| format!("kill: {error}"))
            }
        };
        let limit = if refused.is_some() { Duration::from_secs(10) } else { PATIENCE };
        let why = refused.clone().unwrap_or_else(|| "a failure".to_string());
        let status = self.wait_launcher(limit, &why);
        match (status, refused) {
            (SAVED, _) => {
                self.failures += 1;
                true
            }
            (_, Some(text)) => {
                self.note(text);
                false
            }
            // A signal can meet a program that is just ending; a completed `fail` cannot.
            (_, None) if announce == Announce::Signal => false,
            (status, None) => self.wrong(&format!("`fail` succeeded, but `zhuque` ended with {status}")),
        }
    }

    /// Waits for the end of a `zhuque` whose program somebody else has saved.
    pub fn saved_by_others(&mut self) {
        match self.wait_launcher(PATIENCE, "a failure") {
            SAVED => self.failures += 1,
            status => self.wrong(&format!("saved, but `zhuque` ended with {status}")),
        }
    }

    /// Resumes it; the program's output goes on behind what is there.
    pub fn resume(&mut self) {
        let mut command = self.store.zhuque("resume");
        command.arg(&self.name).current_dir(&self.dir);
        self.spawn(command);
    }

    /// Waits for the program's end.
    pub fn end(&mut self) -> Finished {
        let status = self.wait_launcher(self.guest.patience, "the program's end");
        Finished {
            status,
            stdout: fs::read(self.output_file("out")).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&fs::read(self.output_file("err")).unwrap_or_default()).into_owned(),
        }
    }

    /// Waits for the program's end, which must be as expected.
    pub fn check_end(&mut self, expected: &Finished) {
        let found = self.end();
        if found.status != expected.status {
            self.wrong(&format!("ended with {} instead of {}", found.status, expected.status));
        }
        if let Some(difference) = first_difference(&expected.stdout, &found.stdout) {
            self.wrong(&difference);
        }
    }

    /// The same, and takes away what it has left.
    pub fn end_as(mut self, expected: &Finished) {
        self.check_end(expected);
        self.remove();
    }

    /// Takes away what a life that was right has left.
    pub fn remove(self) {
        for path in [self.output_file("out"), self.output_file("err")] {
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Ends the test with all that is known.
    pub fn wrong(&self, what: &str) -> ! {
        let tail = |kind: &str| {
            let bytes = fs::read(self.output_file(kind)).unwrap_or_default();
            let from = bytes.len().saturating_sub(3000);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        panic!(
            "{}: {what}\n--- so far\n{}\n--- stdout\n{}\n--- stderr\n{}\n{}",
            self.name,
            self.log.join("\n"),
            tail("out"),
            tail("err"),
            self.store.describe(&self.name)
        );
    }

    /// The program's process id, if it runs.
    pub fn pid(&mut self) -> Option<i32> {
        self.running().map(|region| region.pid)
    }

    /// The launcher's process id, while it runs.
    pub fn launcher_pid(&self) -> Option<u32> {
        self.launcher.as_ref().map(Child::id)
    }
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        let Some(mut child) = self.launcher.take() else {
            return;
        };
        // The region first: the program must not outlive its launcher.
        let mut command = self.store.zhuque("rm");
        command.arg(&self.name).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        if let Ok(mut remover) = command.spawn()
            && command::wait(&mut remover, Duration::from_secs(10)).is_none()
        {
            let _ = remover.kill();
            let _ = remover.wait();
        }
        if command::wait(&mut child, Duration::from_secs(2)).is_none() {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// `base` lives, times `ZHUQUE_LIVES`.
pub fn lives(base: u32) -> u32 {
    let factor = std::env::var("ZHUQUE_LIVES").ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(1);
    base * factor.max(1)
}

/// Failures in one life.
pub const FAILURES: u32 = 3;

/// Runs `guest` natively, then `base` times (see [`lives`]) with [`FAILURES`] power failures at random moments each:
/// status and output must be the same, byte by byte.
pub fn check_lives(guest: &Guest, base: u32) {
    check_lives_in(&Store::new(), guest, base);
}

/// The same in a store that exists.
pub fn check_lives_in(store: &Store, guest: &Guest, base: u32) {
    let (expected, mut lasted) = natively(store, guest);
    let mut random = Random::new();
    let planned = lives(base);
    let (mut whole, mut failures) = (0, 0);
    for number in 0..planned * 3 + 3 {
        if whole == planned {
            break;
        }
        let name = format!("{}-{number}", guest.name());
        let (before, began) = (random.clone(), Instant::now());
        let mut life = Life::start(store, &name, guest);
        live(&mut life, lasted, &mut random);
        let found = life.end();
        let seed = format!("ZHUQUE_SEED={} (state at this life's start: {before:?})", random.seed());
        if found.status != expected.status {
            life.wrong(&format!("ended with {} instead of {}; {seed}", found.status, expected.status));
        }
        if let Some(difference) = first_difference(&expected.stdout, &found.stdout) {
            life.wrong(&format!("{difference}; {seed}"));
        }
        failures += life.failures;
        if life.failures == FAILURES {
            whole += 1;
        } else {
            // It ended before its last failure, all correct: the machine is less busy than when it was measured. This
            // life does not count, and the next ones fail earlier.
            lasted = lasted.min(began.elapsed()) * 3 / 4;
        }
    }
    println!("{}: {whole} lives, {failures} failures, natively {:.2} s", guest.name(), lasted.as_secs_f64());
    assert!(whole == planned, "only {whole} of {planned} lives had all their failures: it ends too early");
}

/// What it prints natively, and how long that takes: the shorter of two runs, since the machine may be busy, which also
/// shows that its output does not depend on the moment.
fn natively(store: &Store, guest: &Guest) -> (Finished, Duration) {
    let run = |dir: &str| {
        let began = Instant::now();
        let ended = guest.finish_natively(store, &store.work_dir(dir));
        assert_eq!(ended.status, 0, "natively, {} fails: {}", guest.name(), ended.stderr);
        (ended, began.elapsed())
    };
    let (expected, lasted) = run("native");
    if lasted > Duration::from_secs(10) {
        return (expected, lasted);
    }
    let (second, again) = run("native-again");
    if let Some(difference) = first_difference(&expected.stdout, &second.stdout) {
        panic!("{} is no use as a guest, natively its {difference}", guest.name());
    }
    (expected, lasted.min(again))
}

/// Failures at random moments in the first eight tenths of the time that it takes natively.
fn live(life: &mut Life, lasted: Duration, random: &mut Random) {
    for _ in 0..FAILURES {
        if life.running().is_none() {
            return;
        }
        std::thread::sleep(random.time_below(lasted * 8 / 10 / FAILURES));
        let announce = if random.below(4) == 0 { Announce::Signal } else { Announce::Fail };
        if !life.fail(announce) {
            return;
        }
        std::thread::sleep(random.time_below(Duration::from_millis(40)));
        life.resume();
    }
}

/// Where two outputs differ first, in words.
pub fn first_difference(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    let at = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let from = at.saturating_sub(60);
    let around = |bytes: &[u8]| String::from_utf8_lossy(&bytes[from..bytes.len().min(at + 60)]).into_owned();
    Some(format!(
        "output differs at byte {at} (of {} and {}): expected {:?}, found {:?}",
        expected.len(),
        found.len(),
        around(expected),
        around(found)
    ))
}
