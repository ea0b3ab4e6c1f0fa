//! `zhuque fail`: a power failure for chosen programs.
//!
//! Every thread is told by itself (tgkill): that is an order of magnitude faster than one thread that has to be
//! scheduled first to tell the others.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{anyhow, bail, ensure};
use zhuque_abi::header::Phase;

use crate::boot::Settings;
use crate::control::Summary;
use crate::flags::Fail;
use crate::process::{Announcement, Program};
use crate::region::{Region, State};
use crate::store::Store;
use crate::watch::Watch;
use crate::{failure, render, report};

/// How long a program may take to be saved, and to end after that.
const LIMIT: Duration = Duration::from_secs(10);
/// After this time it may be that the program was stopped.
const LONG: Duration = Duration::from_millis(5);
/// How often threads that were born meanwhile are looked for.
const ROUND: Duration = Duration::from_millis(2);

/// Fails every region named, or all that run; goes on with the others when one cannot be saved.
pub fn fail(store: Option<&Path>, flags: &Fail) -> anyhow::Result<i32> {
    let store = Store::open(store)?;
    let names = if flags.all { running(&store)? } else { flags.names.clone() };
    if names.is_empty() {
        report::note(&format!("no program runs in {}", store.path().display()));
    }
    let mut status = 0;
    for done in fail_all(&store, &names) {
        match done {
            Ok(line) => report::print(&format!("{line}\n"))?,
            Err(error) => {
                report::complain(&failure::line(&error));
                status = failure::status(&error);
            }
        }
    }
    Ok(status)
}

/// Fails them all at the same time, as a power failure does; what to say about each.
fn fail_all(store: &Store, names: &[String]) -> Vec<anyhow::Result<String>> {
    if let [name] = names {
        return vec![fail_one(store, name)];
    }
    std::thread::scope(|scope| {
        let start = |name: &'_ String| {
            let name = name.clone();
            scope.spawn(move || fail_one(store, &name))
        };
        let threads: Vec<_> = names.iter().map(start).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            let died = |_| Err(anyhow!("a thread of zhuque died; try again"));
            thread.join().unwrap_or_else(died)
        };
        threads.into_iter().map(end).collect()
    })
}

/// The names of all regions whose programs run.
fn running(store: &Store) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for name in store.names()? {
        let Some(name) = name.to_str() else { continue };
        let Ok(region) = Region::open(store, name) else {
            continue;
        };
        let Ok(summary) = region.summary() else {
            continue;
        };
        if matches!(region.state(&summary), State::Running | State::Starting) {
            names.push(name.to_string());
        }
    }
    Ok(names)
}

/// Fails one region; what to say about it.
fn fail_one(store: &Store, name: &str) -> anyhow::Result<String> {
    let region = Region::open(store, name)?;
    let watch = region.watch()?;
    let program = find(&region, &watch)?;
    let start = Instant::now();
    let announced = save(&region, &watch, &program)?;
    let took = start.elapsed();
    let summary = region.summary()?;
    let took = announced.and_then(|at| until_saved(at, &summary)).filter(|&saved| saved <= took).unwrap_or(took);
    leave(&region, &program)?;
    Ok(line(name, &summary, took))
}

/// From the announcement to the program's own note that everything was saved, which does not count the time until this
/// process runs again.
fn until_saved(announced: SystemTime, summary: &Summary) -> Option<Duration> {
    let saved = SystemTime::UNIX_EPOCH + Duration::from_nanos(summary.saved_realtime_ns);
    saved.duration_since(announced).ok()
}

/// `memcached: saved 10 threads in 0.41 ms (64 µs stopped)`
fn line(name: &str, summary: &Summary, took: Duration) -> String {
    let threads = render::count(u64::from(summary.threads), "thread");
    let took = render::nanoseconds(took.as_nanos() as u64);
    let stopped = render::nanoseconds(summary.save_stop_ns);
    format!("{name}: saved {threads} in {took} ({stopped} stopped)")
}

/// The program of a region that runs.
fn find(region: &Region, watch: &Watch) -> anyhow::Result<Program> {
    let name = region.name();
    let start = Instant::now();
    loop {
        let word = watch.word();
        let summary = region.summary()?;
        match region.state(&summary) {
            State::Running => {}
            State::Creating | State::Starting if start.elapsed() < LIMIT && region.is_busy() => {
                // It is about to run.
                watch.wait(word, Duration::from_millis(1));
                continue;
            }
            state => bail!("{name}: it does not run ({}); zhuque ls shows what does", state.name()),
        }
        // After a resume the pid is written right after the phase.
        match region.program(summary.pid) {
            Some(program) => return Ok(program),
            None if start.elapsed() > LIMIT => {
                bail!(
                    "{name}: it is in use, but its process {} cannot be found; is it in another container?",
                    summary.pid
                )
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Announces the failure and waits until the program is saved. When it was announced.
fn save(region: &Region, watch: &Watch, program: &Program) -> anyhow::Result<Option<SystemTime>> {
    let name = region.name();
    let start = Instant::now();
    let mut announcement = Announcement::default();
    let before = watch.generation();
    let told = announcement.announce(program.pid);
    ensure!(told > 0, "{name}: it has just ended");
    loop {
        let word = watch.word();
        match Phase::from_raw(word as u8) {
            Some(Phase::Saved) => return Ok(announcement.since),
            Some(Phase::Unsaved) => {
                bail!("{name}: not saved: {}; zhuque inspect {name} shows what is left", region.summary()?.why())
            }
            Some(Phase::Ended) => bail!("{name}: it ended by itself before it was saved"),
            _ if watch.generation() != before => {
                bail!("{name}: it was saved and resumed by somebody else meanwhile")
            }
            _ => {}
        }
        if program.ended() && watch.word() == word {
            bail!("{name}: it ended before it was saved; zhuque inspect {name} shows what is left");
        }
        // As long as the power supply holds, the program may take for it.
        let waited = start.elapsed();
        if waited > LIMIT && waited > LIMIT + Settings::read(region).hold_up {
            bail!(
                "{name}: not saved within {} s (process {}); zhuque rm {name} ends it, unsaved",
                waited.as_secs(),
                program.pid
            );
        }
        watch.wait(word, ROUND);
        announcement.announce(program.pid);
        if start.elapsed() > LONG {
            program.wake();
        }
    }
}

/// Waits until the program is gone and its region free, so that a resume that follows finds it so.
fn leave(region: &Region, program: &Program) -> anyhow::Result<()> {
    let (name, start) = (region.name(), Instant::now());
    let late =
        || anyhow!("{name}: saved, but process {} does not end; zhuque rm would lose it, kill it by hand", program.pid);
    if !program.wait(LIMIT) {
        return Err(late());
    }
    while region.is_busy() {
        if start.elapsed() > 2 * LIMIT {
            return Err(late());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}
