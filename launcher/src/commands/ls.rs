//! `zhuque ls`: what is in a store.
//!
//! Nothing that is found there makes it fail: what cannot be understood is listed as damaged, with the reason.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::commands::describe;
use crate::control::Summary;
use crate::flags::Ls;
use crate::region::{self, Region, State};
use crate::render::{self, Table};
use crate::store::Store;
use crate::{failure, process, report};

/// One region, as it is listed.
struct Entry {
    name: String,
    state: State,
    pid: u32,
    generation: u64,
    threads: u64,
    bytes: u64,
    age_seconds: Option<u64>,
    program: Option<String>,
    /// Why it is damaged or not saved.
    reason: Option<String>,
}

/// Lists the regions of a store.
pub fn ls(store: Option<&Path>, flags: &Ls) -> anyhow::Result<i32> {
    let (path, default) = crate::store::path(store);
    // That nothing was ever run is no error.
    let entries = if default && !path.exists() {
        Vec::new()
    } else {
        let store = Store::open(store)?;
        let names = store.names()?;
        names.iter().map(|name| entry(&store, &name.to_string_lossy())).collect()
    };
    if flags.json {
        let all = entries.iter().map(json_of).collect();
        report::print(&render::json(&Value::Array(all)))?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "STATE", "PID", "GENERATION", "THREADS", "SIZE", "AGE", "PROGRAM"]);
    for entry in &entries {
        table.row(row(entry));
    }
    report::print(&table.render())?;
    Ok(0)
}

/// Looks at one region.
fn entry(store: &Store, name: &str) -> Entry {
    let mut entry = Entry {
        name: failure::one_line(name),
        state: State::Damaged,
        pid: 0,
        generation: 0,
        threads: 0,
        bytes: 0,
        age_seconds: None,
        program: None,
        reason: None,
    };
    let looked = region::open_directory(store, name).and_then(|directory| {
        entry.bytes = region::bytes(directory, 0);
        let region = Region::open(store, name)?;
        let summary = region.summary()?;
        Ok((region, summary))
    });
    match looked {
        Ok((region, summary)) => fill(&mut entry, &region, &summary),
        Err(error) => entry.reason = Some(failure::line(&error)),
    }
    entry
}

/// What an intact region says about itself.
fn fill(entry: &mut Entry, region: &Region, summary: &Summary) {
    entry.state = region.state(summary);
    entry.generation = summary.generation;
    entry.threads = summary.threads.into();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_nanos() as u64);
    entry.age_seconds = Some(now.saturating_sub(summary.created_ns) / 1_000_000_000);
    if matches!(entry.state, State::Running | State::Starting) {
        entry.pid = summary.pid;
        if let Some(program) = region.program(summary.pid) {
            entry.threads = process::threads(program.pid) as u64;
            entry.program = process::command_line(program.pid);
        }
    } else {
        let why = summary.why();
        entry.reason = (!why.is_empty()).then_some(why);
        entry.program = describe::saved_command(region, summary);
    }
}

/// For the table.
fn row(entry: &Entry) -> Vec<String> {
    let number = |number: u64| match number {
        0 => "-".into(),
        number => number.to_string(),
    };
    let program = match entry.state {
        State::Damaged | State::Unsaved => entry.reason.as_ref().or(entry.program.as_ref()),
        _ => entry.program.as_ref(),
    };
    vec![
        entry.name.clone(),
        entry.state.name().into(),
        number(entry.pid.into()),
        match entry.state {
            State::Damaged => "-".into(),
            _ => entry.generation.to_string(),
        },
        number(entry.threads),
        render::bytes(entry.bytes),
        entry.age_seconds.map_or_else(|| "-".into(), render::age),
        program.cloned().unwrap_or_else(|| "-".into()),
    ]
}

/// For programs.
fn json_of(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "state": entry.state.name(),
        "pid": (entry.pid != 0).then_some(entry.pid),
        "generation": entry.generation,
        "threads": entry.threads,
        "bytes": entry.bytes,
        "age_seconds": entry.age_seconds,
        "program": entry.program,
        "reason": entry.reason,
    })
}
