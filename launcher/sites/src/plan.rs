//! Plans one file: which of its `syscall` instructions are rewritten, and which bytes each overwrites.
//!
//! Key type: [`Plan`]. Neighbours: the modules of the crate documentation's list, which this one puts together;
//! `cache` keeps results.

use std::path::Path;

use zhuque_abi::sites::{LibraryPlan, SITE_BYTES, Site};

use crate::Error;
use crate::body::{Body, holds_syscall_bytes};
use crate::functions::find_functions;
use crate::headers::ElfFile;
use crate::image::Image;
use crate::runs::{self, Run};
use crate::targets::{Targets, Windows};

/// The sites of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The file; `first` is zero until [`encode()`](crate::encode()) sets it.
    pub library: LibraryPlan,
    /// Its sites, sorted by file offset.
    pub sites: Vec<Site>,
    /// `syscall` instructions that were seen in functions but are left to the net. A signal-return trampoline,
    /// which must stay as it is, counts.
    pub unplanned: usize,
}

/// Plans the file at `path`.
pub fn plan_file(path: &Path) -> Result<Plan, Error> {
    plan_open(ElfFile::open(path)?)
}

/// Plans an open file.
pub fn plan_open(elf: ElfFile) -> Result<Plan, Error> {
    let mut library = library_of(&elf);
    let image = Image::load(elf)?;
    let (runs, unplanned) = find_runs(&image);
    let mut sites: Vec<Site> = runs.iter().filter_map(|run| site(&image, run)).collect();
    sites.sort_by_key(|site| site.file_offset);
    library.count = u32::try_from(sites.len()).unwrap_or(u32::MAX);
    let unplanned = unplanned + runs.len() - sites.len();
    Ok(Plan { library, sites, unplanned })
}

/// The record of a file, before it has sites.
pub fn library_of(elf: &ElfFile) -> LibraryPlan {
    LibraryPlan {
        device: elf.device,
        inode: elf.inode,
        size: elf.size,
        first: 0,
        count: 0,
        build_id: elf.build_id().unwrap_or([0; 32]),
    }
}

/// The runs of a file in address order, and how many `syscall` instructions get none.
fn find_runs(image: &Image) -> (Vec<Run>, usize) {
    let mut executable = image.executable();
    if !executable.any(|load| holds_syscall_bytes(image.content(load))) {
        return (Vec::new(), 0);
    }
    let functions = find_functions(image);
    let bodies = functions.ranges.iter().filter_map(|&function| {
        let bytes = image.range(function.start, function.end)?;
        let body = holds_syscall_bytes(bytes).then(|| Body::decode(image, function))?;
        let worth_it = body.syscalls().next().is_some();
        worth_it.then_some(body)
    });
    let bodies: Vec<Body> = bodies.collect();
    let calls = bodies.iter().flat_map(|body| {
        let calls = body.syscalls();
        calls.map(|index| body.instructions[index].ip())
    });
    let calls: Vec<u64> = calls.collect();
    if calls.is_empty() {
        return (Vec::new(), 0);
    }
    let windows = Windows::around(&calls);
    let targets = Targets::collect(image, &functions, &bodies, &windows);
    let mut chosen: Vec<Run> = Vec::new();
    for body in &bodies {
        for index in body.syscalls() {
            let floor = chosen.last().map_or(0, |run| run.end);
            chosen.extend(runs::choose(image, body, index, &targets, floor));
        }
    }
    let unplanned = calls.len() - chosen.len();
    (chosen, unplanned)
}

/// A run as the shim reads it.
fn site(image: &Image, run: &Run) -> Option<Site> {
    let bytes = image.range(run.start, run.end)?;
    let mut original = [0; SITE_BYTES];
    original.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(Site {
        file_offset: image.file_offset(run.start)?,
        before: u8::try_from(run.call - run.start).ok()?,
        length: u8::try_from(bytes.len()).ok()?,
        reserved: [0; 6],
        original,
    })
}
