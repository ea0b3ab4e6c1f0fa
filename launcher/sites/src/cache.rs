//! Plans kept between runs, one file for each build-id and file size.
//!
//! Key function: [`cached_plan`]. A cache file is a tag (magic, version of the rules, `unplanned`, checksum of the
//! tag) and then a plan file of one library. It is never trusted: any doubt, and the plan is computed again and
//! the file replaced. Neighbours: `encode` (the format), `plan` (computes).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zhuque_abi::sites::LibraryPlan;

use crate::encode::{decode, encode};
use crate::headers::{ElfFile, half, word};
use crate::plan::{library_of, plan_open};
use crate::{Error, Plan};

const MAGIC: u64 = u64::from_le_bytes(*b"zqsites\0");
/// Raised whenever the rules of this crate change, so that plans made by older rules are not used any more.
const RULES: u32 = 1;
const TAG: usize = 24;
/// A cache file of more bytes than this was not written by us.
const LARGEST: u64 = 64 << 20;

/// The plan of the file at `path`, from `cache_dir` if it is there, else computed and put there. A cache that cannot
/// be written costs time, not correctness, so that is not an error. Files without a build-id are not cached.
pub fn cached_plan(cache_dir: &Path, path: &Path) -> Result<Plan, Error> {
    let elf = ElfFile::open(path)?;
    let library = library_of(&elf);
    let Some(place) = place(cache_dir, &library) else {
        return plan_open(elf);
    };
    if let Some(plan) = load(&place, &library) {
        return Ok(plan);
    }
    let plan = plan_open(elf)?;
    let _ = store(cache_dir, &place, &plan);
    Ok(plan)
}

/// Where the plan of this file is kept; `None` without a build-id.
fn place(cache_dir: &Path, library: &LibraryPlan) -> Option<PathBuf> {
    let length = library.build_id.iter().rposition(|&byte| byte != 0)? + 1;
    let mut name = String::new();
    for byte in &library.build_id[..length] {
        name.push_str(&format!("{byte:02x}"));
    }
    Some(cache_dir.join(format!("{name}-{}.sites", library.size)))
}

/// Reads a cache file; `None` if it is not there or not as it should be.
fn load(place: &Path, library: &LibraryPlan) -> Option<Plan> {
    let stat = fs::symlink_metadata(place).ok()?;
    if !stat.is_file() || stat.len() > LARGEST {
        return None;
    }
    let bytes = fs::read(place).ok()?;
    let tag = bytes.get(..TAG)?;
    let sound = word(tag, 0) == MAGIC && half(tag, 8) == RULES && half(tag, 20) == crc32fast::hash(&tag[..20]);
    let mut plans = decode(&bytes[TAG..])?;
    let mut plan = plans.pop()?;
    let same = plan.library.build_id == library.build_id && plan.library.size == library.size;
    if !sound || !plans.is_empty() || !same {
        return None;
    }
    plan.unplanned = usize::try_from(word(tag, 12)).ok()?;
    // Device and inode are those of today's file.
    plan.library = LibraryPlan { first: 0, count: plan.library.count, ..*library };
    Some(plan)
}

/// Writes a cache file under a name of its own, then renames it: a reader sees all of it or nothing.
fn store(cache_dir: &Path, place: &Path, plan: &Plan) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    DirBuilder::new().recursive(true).mode(0o700).create(cache_dir)?;
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(RULES.to_le_bytes());
    bytes.extend((plan.unplanned as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(encode(std::slice::from_ref(plan)));
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = cache_dir.join(format!(".{}-{number}.tmp", std::process::id()));
    // Left over by a process of the same id that was killed; nobody else uses this name.
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = { options.open(&temporary) }
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, place));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
