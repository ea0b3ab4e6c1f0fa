//! `zhuque inspect`: what a region holds.
//!
//! A region is untrusted: everything goes through `control` (copies, bounds, checksums). Neighbours: `mappings` (what is
//! mapped), `describe` (records of the journal).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;

use anyhow::anyhow;
use serde_json::{Value, json};
use zhuque_abi::header::Globals;
use zhuque_abi::journal::Record;
use zhuque_abi::layout::*;
use zhuque_abi::slot::{Retry, Saved, Slot, state};

use crate::commands::describe::{self, frame};
use crate::commands::mappings::{self, Mapped};
use crate::control::{Summary, text, u32_at, u64_at};
use crate::flags::{Inspect, What};
use crate::region::{Region, State};
use crate::render::{self, Table};
use crate::store::Store;
use crate::{process, report};

/// Shows a region or a part of it.
pub fn inspect(store: Option<&Path>, flags: &Inspect) -> anyhow::Result<i32> {
    let store = Store::open(store)?;
    let region = Region::open(&store, &flags.name)?;
    let summary = region.summary()?;
    let (value, text) = match flags.what {
        None => whole(&region, &summary),
        Some(What::Maps) => {
            vouched(&region, &summary)?;
            let all = mappings::of(&region, &summary)?;
            (mappings::json(&all), mappings::lines(&all))
        }
        Some(What::Threads) => {
            vouched(&region, &summary)?;
            threads(&region, &summary)?
        }
        Some(What::Fds) => descriptors(&region, &summary)?,
        Some(What::Journal) => journal(&region, &summary)?,
    };
    report::print(&if flags.json { render::json(&value) } else { text })?;
    Ok(0)
}

/// The summary.
fn whole(region: &Region, summary: &Summary) -> (Value, String) {
    let state = region.state(summary);
    let runs = matches!(state, State::Running | State::Starting);
    let program = region.program(summary.pid).filter(|_| runs);
    let command = match &program {
        Some(program) => process::command_line(program.pid),
        None => describe::saved_command(region, summary),
    };
    let threads = match &program {
        Some(program) => process::threads(program.pid) as u64,
        None => summary.threads.into(),
    };
    let mappings = { vouched(region, summary) }.and_then(|()| mappings::of(region, summary));
    let mappings = mappings.map_or_else(|error| error.to_string(), |all| mappings::by_kind(&all));
    let value = json!({
        "name": region.name(),
        "path": region.path().to_string_lossy(),
        "state": state.name(),
        "pid": runs.then_some(summary.pid),
        "virtual_pid": summary.virtual_pid,
        "generation": summary.generation,
        "threads": threads,
        "bytes": region.bytes(),
        "program": command,
        "reason": summary.why(),
        "created_ns": summary.created_ns,
        "saved_ns": summary.saved_realtime_ns,
        "save_stop_ns": summary.save_stop_ns,
        "save_total_ns": summary.save_total_ns,
        "journal_bytes": summary.journal_bytes,
        "exit_status": summary.exit_status,
        "base": format!("{:#x}", summary.base),
        "shim_start": format!("{:#x}", summary.shim_start),
        "revive": format!("{:#x}", summary.revive),
        "mappings": mappings,
    });
    let mut lines: Vec<(&str, String)> = vec![
        ("name", region.name().into()),
        ("path", region.path().to_string_lossy().into()),
        ("state", state.name().into()),
        ("program", command.unwrap_or_else(|| "-".into())),
        ("generation", summary.generation.to_string()),
        ("threads", threads.to_string()),
        ("size", render::bytes(region.bytes())),
        ("mappings", mappings),
    ];
    if runs {
        lines.push(("process", summary.pid.to_string()));
    }
    if summary.save_total_ns != 0 {
        let (total, stop) = (summary.save_total_ns, summary.save_stop_ns);
        let times = [total, stop].map(render::nanoseconds);
        lines.push(("last save", format!("{}, {} to stop all threads", times[0], times[1])));
        lines.push(("journal", render::bytes(summary.journal_bytes)));
    }
    if !summary.why().is_empty() {
        lines.push(("reason", summary.why()));
    }
    let mut out = String::new();
    for (name, value) in lines {
        let _ = writeln!(out, "{:<12}{value}", format!("{name}:"));
    }
    (value, out)
}

/// Whether the tables of a saved region are what was saved; nothing of them is decoded before.
fn vouched(region: &Region, summary: &Summary) -> anyhow::Result<()> {
    region.control().check_tables(summary).map_err(|error| anyhow!("{}: damaged: {error}", region.name()))
}

/// One thread's slot.
struct Thread {
    index: usize,
    virtual_tid: u32,
    state: &'static str,
    name: String,
    /// The call that the save interrupted, by name.
    call: Option<String>,
    /// Program counter and stack pointer of the saved frame.
    saved: Option<(u64, u64)>,
    fs_base: u64,
}

/// The name of a system call, or its number.
fn call_name(number: u64) -> String {
    zhuque_model::calls::lookup(number).map_or_else(|| number.to_string(), |call| call.name.to_string())
}

/// `inspect NAME threads`
fn threads(region: &Region, summary: &Summary) -> anyhow::Result<(Value, String)> {
    let all = mappings::of(region, summary).unwrap_or_default();
    let globals = region.control().globals()?;
    let slots = (u32_at(&globals, offset_of!(Globals, slots)) as usize).min(MAX_THREADS);
    let mut table = Table::new(&["SLOT", "THREAD", "STATE", "NAME", "CALL", "AT"]);
    let mut values = Vec::new();
    for index in 0..slots {
        let bytes = region.control().read(SLOTS_OFFSET + index as u64 * SLOT_STRIDE, size_of::<Slot>())?;
        let thread = thread(region, summary, &all, index, &bytes);
        if thread.state == "free" {
            continue;
        }
        let place = thread.saved.map(|(rip, _)| mappings::place(&all, rip));
        table.row(vec![
            index.to_string(),
            thread.virtual_tid.to_string(),
            thread.state.into(),
            if thread.name.is_empty() { "-".into() } else { thread.name.clone() },
            thread.call.clone().unwrap_or_else(|| "-".into()),
            place.clone().unwrap_or_else(|| "-".into()),
        ]);
        values.push(json!({
            "slot": thread.index,
            "thread": thread.virtual_tid,
            "state": thread.state,
            "name": thread.name,
            "call": thread.call,
            "rip": thread.saved.map(|(rip, _)| format!("{rip:#x}")),
            "rsp": thread.saved.map(|(_, rsp)| format!("{rsp:#x}")),
            "at": place,
            "fs_base": format!("{:#x}", thread.fs_base),
        }));
    }
    Ok((Value::Array(values), table.render()))
}

/// Decodes a slot.
fn thread(region: &Region, summary: &Summary, all: &[Mapped], index: usize, bytes: &[u8]) -> Thread {
    let saved = offset_of!(Slot, saved);
    let context = u64_at(bytes, saved + offset_of!(Saved, frame));
    let register = |offset: u64| mappings::word(region, summary, all, context.checked_add(offset)?);
    let frame = match context {
        0 => None,
        _ => register(frame::RIP).zip(register(frame::RSP)),
    };
    let retry = saved + offset_of!(Saved, retry);
    let interrupted = u64_at(bytes, retry + offset_of!(Retry, valid)) != 0;
    let name = saved + offset_of!(Saved, name);
    Thread {
        index,
        virtual_tid: u32_at(bytes, offset_of!(Slot, virtual_tid)),
        state: match u32_at(bytes, offset_of!(Slot, state)) {
            state::FREE => "free",
            state::BORN => "born",
            state::LIVE => "live",
            state::EXITING => "exiting",
            _ => "damaged",
        },
        name: text(bytes.get(name..name + 16).unwrap_or_default()),
        call: interrupted.then(|| call_name(u64_at(bytes, retry + offset_of!(Retry, number)))),
        saved: frame,
        fs_base: u64_at(bytes, saved + offset_of!(Saved, fs_base)),
    }
}

/// `inspect NAME fds`
fn descriptors(region: &Region, summary: &Summary) -> anyhow::Result<(Value, String)> {
    let bytes = describe::journal(region, summary)?;
    let (records, error) = describe::records(&bytes);
    let mut descriptions = HashMap::new();
    for record in &records {
        if let Record::Description(description) = record {
            descriptions.insert(description.id, description);
        }
    }
    let mut all: Vec<_> = { records.iter() }
        .filter_map(|record| match record {
            Record::Descriptor { fd, description, cloexec } => Some((*fd, *description, *cloexec)),
            _ => None,
        })
        .collect();
    all.sort_unstable();
    let mut table = Table::new(&["FD", "ID", "FLAGS", "CLOEXEC", "WHAT"]);
    let mut values = Vec::new();
    for (fd, id, cloexec) in all {
        let description = descriptions.get(&id);
        let what = description.map_or_else(|| "missing".into(), |d| describe::object(&d.object));
        let flags = description.map_or(0, |description| description.flags);
        table.row(vec![
            fd.to_string(),
            id.to_string(),
            format!("{flags:#o}"),
            if cloexec { "yes".into() } else { "no".into() },
            what.clone(),
        ]);
        values.push(json!({
            "fd": fd, "description": id, "flags": flags, "cloexec": cloexec, "what": what,
            "details": description.map(|d| describe::json(&Record::Description((*d).clone()))),
        }));
    }
    complain(region, error);
    Ok((Value::Array(values), table.render()))
}

/// `inspect NAME journal`
fn journal(region: &Region, summary: &Summary) -> anyhow::Result<(Value, String)> {
    let bytes = describe::journal(region, summary)?;
    let (records, error) = describe::records(&bytes);
    let values = records.iter().map(describe::json).collect();
    let lines = records.iter().map(|record| describe::line(record) + "\n");
    let text = lines.collect();
    complain(region, error);
    Ok((Value::Array(values), text))
}

/// Says that a journal does not end as it should.
fn complain(region: &Region, error: Option<String>) {
    if let Some(error) = error {
        report::complain(&format!("{}: damaged: {error}", region.name()));
    }
}
