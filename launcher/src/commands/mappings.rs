//! What a region's program has mapped: by its mapping table, or, where it was saved from outside, by the journal, since
//! the table may be in the middle of a change then.
//!
//! The table goes through the checks of `zhuque-model`. While the program runs it changes under our eyes; it is read again
//! until it holds together. Key type: [`Mapped`]. Neighbour: `inspect`, which shows it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;

use anyhow::{anyhow, bail};
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use zhuque_abi::journal::{self, Backing, Record};
use zhuque_abi::layout::*;
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::{Attr, MapView};

use crate::commands::describe;
use crate::control::Summary;
use crate::failure;
use crate::region::{Region, State};
use crate::render;

/// How often a table that changes is read again.
const TRIES: usize = 20;

/// One mapping.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// One above its last.
    pub end: u64,
    /// What it is of, in a word.
    kind: &'static str,
    /// Where its bytes are in the slices, laid end to end; mostly that is its address.
    slices: Option<u64>,
    /// Its file, and the offset there.
    file: Option<(String, u64)>,
    /// PROT bits.
    prot: u32,
    /// Bits of [`flag`].
    flags: u16,
}

impl Mapped {
    /// How long it is.
    fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// What is mapped, by address.
pub fn of(region: &Region, summary: &Summary) -> anyhow::Result<Vec<Mapped>> {
    if summary.outside && region.state(summary) == State::Saved {
        by_journal(region, summary)
    } else {
        by_table(region)
    }
}

fn by_table(region: &Region) -> anyhow::Result<Vec<Mapped>> {
    let name = region.name();
    let mut why = "";
    for _ in 0..TRIES {
        let globals = region.control().globals()?;
        let (head, nodes) = region.control().mappings(&globals).map_err(|e| anyhow!("{name}: damaged: {e}"))?;
        // Nodes that are not used yet are not read; for the check they exist.
        let view = MapView::new(&head, &nodes);
        match view.check() {
            Ok(()) => {
                let mut files = HashMap::new();
                let each = |mapping: zhuque_model::maptree::Mapping| {
                    let Attr { kind, prot, flags, offset, .. } = mapping.attr;
                    let mut path = |index| {
                        let path = || region.control().mapped_file(index).unwrap_or_else(|error| error.to_string());
                        files.entry(index).or_insert_with(path).clone()
                    };
                    Mapped {
                        start: mapping.start,
                        end: mapping.end,
                        kind: kind_name(kind),
                        slices: (kind == Kind::Region).then_some(mapping.start),
                        file: mapping.attr.has_file().then(|| (path(mapping.attr.file), offset)),
                        prot: prot.into(),
                        flags,
                    }
                };
                return Ok(view.iter().map(each).collect());
            }
            Err(error) => why = error,
        }
        if !region.is_busy() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    bail!("{name}: {why}")
}

fn by_journal(region: &Region, summary: &Summary) -> anyhow::Result<Vec<Mapped>> {
    let bytes = describe::journal(region, summary)?;
    let (records, error) = describe::records(&bytes);
    if let Some(error) = error {
        bail!("{}: damaged: {error}", region.name());
    }
    let mut all: Vec<_> = { records.iter() }
        .filter_map(|record| match record {
            Record::Mapping(run) if run.start < run.end => Some(from_record(run)),
            _ => None,
        })
        .collect();
    all.sort_unstable_by_key(|run| run.start);
    Ok(all)
}

fn from_record(run: &journal::Mapped<'_>) -> Mapped {
    let (kind, slices, file) = match run.backing {
        Backing::Reserve => (Kind::Reserve, None, None),
        Backing::Slice { index, offset } => {
            (Kind::Region, u64::from(index).checked_mul(SLICE_BYTES).and_then(|at| at.checked_add(offset)), None)
        }
        Backing::File { path, offset, shared, .. } => {
            let kind = if shared { Kind::FileShared } else { Kind::FilePrivate };
            (kind, None, Some((failure::one_line(&String::from_utf8_lossy(path)), offset)))
        }
    };
    Mapped { start: run.start, end: run.end, kind: kind_name(kind), slices, file, prot: run.prot, flags: 0 }
}

/// `3 files, 12 region (1.2 GiB), ...`
pub fn by_kind(all: &[Mapped]) -> String {
    let mut kinds = BTreeMap::<&str, (u64, u64)>::new();
    for mapping in all {
        let (number, bytes) = kinds.entry(mapping.kind).or_default();
        *number += 1;
        *bytes = bytes.saturating_add(mapping.bytes());
    }
    let parts: Vec<_> = { kinds.iter() }
        .map(|(kind, (number, bytes))| format!("{number} {kind} ({})", render::bytes(*bytes)))
        .collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Free => "free",
        Kind::Region => "region",
        Kind::Reserve => "reserved",
        Kind::FilePrivate => "file",
        Kind::FileShared => "shared file",
        Kind::Control => "control",
        Kind::Volatile => "volatile",
        Kind::Headroom => "headroom",
    }
}

/// A line each, as in /proc/PID/maps.
pub fn lines(all: &[Mapped]) -> String {
    let mut out = String::new();
    for mapping in all {
        let file = mapping.file.as_ref().map_or_else(String::new, |(path, offset)| format!("{path}+{offset:#x}"));
        let line = format!(
            "{:012x}-{:012x} {} {:<11} {:>9} {}",
            mapping.start,
            mapping.end,
            protection(mapping.prot),
            mapping.kind,
            render::bytes(mapping.bytes()),
            [file, flag_names(mapping.flags).join(",")].join(" ").trim(),
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// The same as JSON.
pub fn json(all: &[Mapped]) -> Value {
    let each = |mapping: &Mapped| {
        json!({
            "start": format!("{:#x}", mapping.start),
            "end": format!("{:#x}", mapping.end),
            "bytes": mapping.bytes(),
            "protection": protection(mapping.prot),
            "kind": mapping.kind,
            "file": mapping.file.as_ref().map(|(path, _)| path),
            "offset": mapping.file.as_ref().map_or(0, |(_, offset)| *offset),
            "flags": flag_names(mapping.flags),
        })
    };
    all.iter().map(each).collect()
}

fn protection(bits: u32) -> String {
    [(libc::PROT_READ, 'r'), (libc::PROT_WRITE, 'w'), (libc::PROT_EXEC, 'x')]
        .map(|(bit, letter)| if bits & bit as u32 == 0 { '-' } else { letter })
        .iter()
        .collect()
}

fn flag_names(flags: u16) -> Vec<&'static str> {
    [
        (flag::PATCHED, "patched"),
        (flag::DONTFORK, "dontfork"),
        (flag::WIPEONFORK, "wipeonfork"),
        (flag::LOCKED, "locked"),
        (flag::FROM_FILE, "from-file"),
        (flag::STACK, "stack"),
        (flag::GROWSDOWN, "growsdown"),
        (flag::DONTDUMP, "dontdump"),
        (flag::HUGEPAGE, "hugepage"),
    ]
    .into_iter()
    .filter_map(|(bit, name)| (flags & bit != 0).then_some(name))
    .collect()
}

/// The word at an address of the program's, from the control file or a slice; `None` if it is nowhere.
pub fn word(region: &Region, summary: &Summary, all: &[Mapped], address: u64) -> Option<u64> {
    let mut word = [0; 8];
    let inside = address.checked_sub(summary.base).filter(|offset| *offset < CONTROL_BYTES);
    if let Some(offset) = inside {
        region.control().file().read_exact_at(&mut word, offset).ok()?;
        return Some(u64::from_le_bytes(word));
    }
    let mapping = find(all, address)?;
    let (slice, offset) = slice_of(mapping.slices?.checked_add(address - mapping.start)?);
    let file = region.open_file(&format!("{SLICE_PREFIX}{slice:02}"), OFlag::O_RDONLY).ok()?;
    file.read_exact_at(&mut word, offset).ok()?;
    Some(u64::from_le_bytes(word))
}

/// The mapping that holds an address.
fn find(all: &[Mapped], address: u64) -> Option<&Mapped> {
    let index = all.partition_point(|mapping| mapping.end <= address);
    all.get(index).filter(|mapping| mapping.start <= address)
}

/// `/lib/libc.so.6+0x1234`, or the bare address.
pub fn place(all: &[Mapped], address: u64) -> String {
    let of = find(all, address).and_then(|mapping| Some((mapping.start, mapping.file.as_ref()?)));
    let Some((start, (path, offset))) = of else { return format!("{address:#x}") };
    format!("{path}+{:#x}", (address - start).wrapping_add(*offset))
}
