//! What a region holds, byte by byte: to find out whether a command changed anything, and what.
//!
//! Slices are sparse files of 4 TiB, so only data is read; a block of zeros counts as a hole, since reading a mapped
//! hole may allocate it.

use nix::unistd::{Whence, lseek};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// One file: mode, owner, size, and a hash of each block that is not all zero, by offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    mode: u32,
    owner: u32,
    size: u64,
    blocks: BTreeMap<u64, u64>,
}

/// All files of a directory, by path inside it.
pub type Digest = BTreeMap<String, FileDigest>;

const BLOCK: usize = 4096;

/// The digest of everything below `dir`.
pub fn of(dir: &Path) -> Digest {
    let mut digest = Digest::new();
    collect(dir, "", &mut digest);
    digest
}

fn collect(dir: &Path, prefix: &str, digest: &mut Digest) {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries.flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let data = entry.path().symlink_metadata().expect("metadata");
        let mut is = FileDigest { mode: data.mode(), owner: data.uid(), size: data.size(), blocks: BTreeMap::new() };
        if data.is_file() {
            is.blocks = blocks(&entry.path(), data.size());
        } else if data.is_dir() {
            is.size = 0;
            collect(&entry.path(), &format!("{name}/"), digest);
        }
        digest.insert(name, is);
    }
}

fn blocks(path: &Path, size: u64) -> BTreeMap<u64, u64> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut found, mut buffer, mut at) = (BTreeMap::new(), vec![0u8; 1 << 20], 0);
    // lseek says ENXIO behind the last data.
    while at < size
        && let Ok(data) = lseek(&file, at as i64, Whence::SeekData)
    {
        let end = lseek(&file, data, Whence::SeekHole).expect("hole") as u64;
        at = data as u64 / BLOCK as u64 * BLOCK as u64;
        while at < end {
            let length = buffer.len().min((size - at) as usize);
            let read = file.read_at(&mut buffer[..length], at).expect("read");
            if read == 0 {
                return found;
            }
            for (index, block) in buffer[..read].chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    let mut hasher = DefaultHasher::new();
                    hasher.write(block);
                    found.insert(at + (index * BLOCK) as u64, hasher.finish());
                }
            }
            at += read as u64;
        }
    }
    found
}

/// What differs between two digests, in words; `None`: nothing.
pub fn difference(before: &Digest, after: &Digest) -> Option<String> {
    let mut lines = Vec::new();
    for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        match (before.get(name), after.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(_), None) => lines.push(format!("{name} is gone")),
            (None, _) => lines.push(format!("{name} is new")),
            (Some(a), Some(b)) => lines.push(format!("{name}: {}", file_difference(a, b))),
        }
    }
    if lines.is_empty() { None } else { Some(lines.join("; ")) }
}

fn file_difference(a: &FileDigest, b: &FileDigest) -> String {
    if (a.mode, a.owner, a.size) != (b.mode, b.owner, b.size) {
        return format!("mode, owner, size {:?}, then {:?}", (a.mode, a.owner, a.size), (b.mode, b.owner, b.size));
    }
    let changed: Vec<String> = a
        .blocks
        .keys()
        .chain(b.blocks.keys().filter(|at| !a.blocks.contains_key(at)))
        .filter(|at| a.blocks.get(at) != b.blocks.get(at))
        .map(|at| format!("{at:#x}"))
        .collect();
    format!("{} blocks differ: {}", changed.len(), changed[..changed.len().min(8)].join(" "))
}
