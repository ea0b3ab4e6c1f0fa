//! From the mapping table to what the stub does: mapping steps, and the files that must be open for them.
//!
//! Neighbours: `validate` provides the table; the launcher opens [`Plan::files`], checks that they are what they were,
//! and gives the stub the steps with real descriptors ([`Plan::bind`]).

use crate::bytes::printable;
use crate::error::Error;
use crate::holes::{LOWEST, Run};
use crate::validate::{File, Saved};
use std::collections::HashMap;
use zhuque_abi::journal::{Backing, Mapped};
use zhuque_abi::layout::{
    CONTROL_BYTES, LIFE_BYTES, LIFE_OFFSET, PAGE, RESERVED_BYTES, SLICE_BYTES, SLICES, TASK_SIZE, slice_of,
};
use zhuque_abi::life::{MapStep, RegionDescriptors, boot_flag};
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::{Attr, Mapping};

/// PROT_* bits that a mapping may have.
const PROT_ALL: u8 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u8;
/// Readable and writable.
const PROT_RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Anonymous memory that costs nothing until it is touched.
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// What a step maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeroes.
    Anonymous,
    /// A slice.
    Slice(usize),
    /// The control file.
    Control,
    /// A file, by index into [`Plan::files`].
    File(usize),
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What.
    pub source: Source,
    /// Offset in the source.
    pub offset: u64,
    /// PROT_*.
    pub prot: i32,
    /// MAP_*.
    pub flags: i32,
    /// What it was to the program.
    pub kind: Kind,
}

/// A file that must be open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToOpen<'a> {
    /// Absolute path.
    pub path: &'a [u8],
    /// Device, inode, size in bytes, time of modification in ns when it was mapped.
    pub identity: [u64; 4],
    /// The program had it open for writing, too.
    pub writable: bool,
    /// A mapping of it can be written to now.
    pub written: bool,
    /// Its content is part of the program's state, but lies in the file: it must not have changed.
    pub unchanged: bool,
}

/// Everything the stub maps.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Mappings in order of address.
    pub steps: Vec<Step>,
    /// Files they need.
    pub files: Vec<FileToOpen<'a>>,
    /// Every address that the program knows of, mapped or not: nothing else may be put there.
    pub taken: Vec<Run>,
    /// Bytes that each slice must have, 0: not needed.
    pub slice_bytes: [u64; SLICES],
}

impl<'a> Plan<'a> {
    /// Makes the plan of a region. `boot_flags` say how slices are mapped ([`boot_flag`]).
    pub fn make(saved: &Saved<'a>, boot_flags: u32) -> Result<Plan<'a>, Error> {
        let mut maker = Maker {
            saved,
            shared: shared_flags(boot_flags),
            reserved: Run::new(saved.base, RESERVED_BYTES),
            opened: HashMap::new(),
            plan: Plan { steps: Vec::new(), files: Vec::new(), taken: Vec::new(), slice_bytes: [0; SLICES] },
        };
        maker.add_own();
        match &saved.mapped {
            Some(mapped) => mapped.iter().try_for_each(|run| maker.add_mapped(run))?,
            None => saved.tree().iter().try_for_each(|run| maker.add(&run))?,
        }
        let mut plan = maker.plan;
        plan.steps.sort_unstable_by_key(|step| step.start);
        let text =
            |s: &Step| s.prot & libc::PROT_EXEC != 0 && s.start <= saved.revive && saved.revive - s.start < s.bytes;
        if !plan.steps.iter().any(text) {
            return Err(Error::bounds("address of its revive entry", saved.revive));
        }
        Ok(plan)
    }

    /// The steps with descriptors: the region's, and `first_file` onwards for [`Plan::files`].
    pub fn bind(&self, region: &RegionDescriptors, first_file: i32) -> Vec<MapStep> {
        let descriptor = |source| match source {
            Source::Anonymous => -1,
            Source::Slice(index) => region.slices.get(index).copied().unwrap_or(-1),
            Source::Control => region.control,
            Source::File(index) => first_file.saturating_add(index as i32),
        };
        self.steps
            .iter()
            .map(|step| MapStep {
                start: step.start,
                bytes: step.bytes,
                offset: step.offset,
                fd: descriptor(step.source),
                prot: step.prot,
                flags: step.flags,
                kind: step.kind as i32,
            })
            .collect()
    }
}

/// How region memory is mapped. On DAX without MAP_SYNC, a file system may forget which blocks a store went to.
fn shared_flags(boot_flags: u32) -> i32 {
    if boot_flags & boot_flag::DAX != 0 { libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC } else { libc::MAP_SHARED }
}

/// A plan that is being made.
struct Maker<'s, 'a> {
    saved: &'s Saved<'a>,
    shared: i32,
    /// Control mapping and life area.
    reserved: Run,
    /// Index into the plan's files by path and whether it is writable.
    opened: HashMap<(&'a [u8], bool), usize>,
    plan: Plan<'a>,
}

impl<'a> Maker<'_, 'a> {
    /// zhuque's own mappings: the control file and a fresh life area.
    fn add_own(&mut self) {
        let base = self.saved.base;
        self.plan.taken.push(self.reserved);
        self.plan.steps.push(Step {
            start: base,
            bytes: CONTROL_BYTES,
            source: Source::Control,
            offset: 0,
            prot: PROT_RW,
            flags: self.shared,
            kind: Kind::Control,
        });
        self.plan.steps.push(Step {
            start: base + LIFE_OFFSET,
            bytes: LIFE_BYTES,
            source: Source::Anonymous,
            offset: 0,
            prot: PROT_RW,
            flags: ANONYMOUS,
            kind: Kind::Volatile,
        });
    }

    /// What one run of the table asks for.
    fn add(&mut self, run: &Mapping) -> Result<(), Error> {
        check_run(run)?;
        let whole = Run { start: run.start, end: run.end };
        self.plan.taken.push(whole);
        let own = matches!(run.attr.kind, Kind::Control | Kind::Volatile | Kind::Headroom | Kind::Free);
        if own {
            return Ok(());
        }
        if whole.meets(&self.reserved) {
            return Err(Error::bounds("a mapping of the program over zhuque's own", run.start));
        }
        match run.attr.kind {
            Kind::Region => self.add_slices(run),
            Kind::Reserve => self.push(run, Source::Anonymous, 0, ANONYMOUS),
            Kind::FilePrivate => {
                let file = self.open(run, &File { writable: false, ..self.listed(run)? })?;
                self.push(run, file, run.attr.offset, libc::MAP_PRIVATE);
            }
            Kind::FileShared => {
                let file = self.open(run, &self.listed(run)?)?;
                self.push(run, file, run.attr.offset, libc::MAP_SHARED);
            }
            Kind::Control | Kind::Volatile | Kind::Headroom | Kind::Free => {}
        }
        Ok(())
    }

    /// Region memory: one step for each slice that it reaches into.
    fn add_slices(&mut self, run: &Mapping) {
        let mut start = run.start;
        while start < run.end {
            let (slice, offset) = slice_of(start);
            let end = (start - offset).saturating_add(SLICE_BYTES).min(run.end);
            let part = Mapping { start, end, attr: run.attr };
            self.push(&part, Source::Slice(slice), offset, self.shared);
            if let Some(bytes) = self.plan.slice_bytes.get_mut(slice) {
                *bytes = (*bytes).max(offset + (end - start));
            }
            start = end;
        }
    }

    /// A mapping of a region that was saved from outside.
    fn add_mapped(&mut self, run: &Mapped<'a>) -> Result<(), Error> {
        let (offset, kind) = match run.backing {
            Backing::Reserve => (0, Kind::Reserve),
            Backing::Slice { offset, .. } => (offset, Kind::Region),
            Backing::File { offset, shared, .. } => (offset, if shared { Kind::FileShared } else { Kind::FilePrivate }),
        };
        let prot = u8::try_from(run.prot).map_err(|_| Error::bounds("protection of a mapping", run.prot.into()))?;
        if run.start >= run.end {
            return Err(Error::bounds("end of a mapping", run.end));
        }
        let attr = Attr { kind, prot, flags: 0, file: 0, offset };
        let mapping = Mapping { start: run.start, end: run.end, attr };
        check_run(&mapping)?;
        let whole = Run { start: run.start, end: run.end };
        if whole.meets(&self.reserved) {
            return Err(Error::bounds("a mapping of the program over zhuque's own", run.start));
        }
        if self.plan.taken.last().is_some_and(|before| *before != self.reserved && before.end > run.start) {
            return Err(Error::bounds("a mapping over the one before it", run.start));
        }
        self.plan.taken.push(whole);
        match &run.backing {
            Backing::Reserve => self.push(&mapping, Source::Anonymous, 0, ANONYMOUS),
            Backing::Slice { index, offset } => {
                let index = *index as usize;
                let end = offset.checked_add(run.end - run.start).filter(|&end| end <= SLICE_BYTES);
                let (Some(end), Some(bytes)) = (end, self.plan.slice_bytes.get_mut(index)) else {
                    return Err(Error::bounds("offset of a mapping in its slice", *offset));
                };
                *bytes = (*bytes).max(end);
                self.push(&mapping, Source::Slice(index), *offset, self.shared);
            }
            Backing::File { path, identity, offset, shared, writable } => {
                let file = File { path, identity: *identity, writable: *shared && *writable };
                let opened = self.open(&mapping, &file)?;
                self.push(&mapping, opened, *offset, if *shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE });
            }
        }
        Ok(())
    }

    /// The file of a mapping, by the file table.
    fn listed(&self, run: &Mapping) -> Result<File<'a>, Error> {
        let index = run.attr.file;
        self.saved.file(index).cloned().ok_or(Error::bounds("a mapping's file", u64::from(index)))
    }

    /// The file of a mapping, opened once for each way of opening it.
    fn open(&mut self, run: &Mapping, file: &File<'a>) -> Result<Source, Error> {
        if file.path.first() != Some(&b'/') || file.path.contains(&0) {
            let path = printable(file.path);
            return Err(Error::Damaged(format!("the mapped file `{path}` has no path")));
        }
        let (path, identity, writable) = (file.path, file.identity, file.writable);
        let files = &mut self.plan.files;
        let at = *self.opened.entry((path, writable)).or_insert_with(|| {
            files.push(FileToOpen { path, identity, writable, written: false, unchanged: false });
            files.len() - 1
        });
        if let Some(file) = files.get_mut(at) {
            let private = run.attr.kind == Kind::FilePrivate;
            file.unchanged |= private;
            file.written |= !private && i32::from(run.attr.prot) & libc::PROT_WRITE != 0;
        }
        Ok(Source::File(at))
    }

    fn push(&mut self, run: &Mapping, source: Source, offset: u64, flags: i32) {
        let prot = if run.attr.kind == Kind::Reserve { libc::PROT_NONE } else { i32::from(run.attr.prot) };
        self.plan.steps.push(Step {
            start: run.start,
            bytes: run.bytes(),
            source,
            offset,
            prot,
            flags,
            kind: run.attr.kind,
        });
    }
}

/// Pages, inside the user's half, with protections that exist. That runs do not overlap is the tree's own check.
fn check_run(run: &Mapping) -> Result<(), Error> {
    let aligned = run.start.is_multiple_of(PAGE) && run.end.is_multiple_of(PAGE);
    if !aligned || run.start < LOWEST || run.end > TASK_SIZE {
        return Err(Error::bounds("address of a mapping", run.start));
    }
    if run.attr.prot & !PROT_ALL != 0 {
        return Err(Error::bounds("protection of a mapping", u64::from(run.attr.prot)));
    }
    let offset_fits = run.attr.offset.checked_add(run.bytes()).is_some_and(|end| end <= i64::MAX as u64);
    if run.attr.kind.is_file() && (!offset_fits || !run.attr.offset.is_multiple_of(PAGE)) {
        return Err(Error::bounds("file offset of a mapping", run.attr.offset));
    }
    Ok(())
}
