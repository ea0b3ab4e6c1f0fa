//! What several tests share: a scratch directory ([`Scratch`]), synthetic ELF files (`elf`), the files of this machine
//! ([`installed`]), and an independent checker of plans (`check`, on top of `view`, `frames`, `evidence`, `rewrite`).
#![allow(dead_code, reason = "no test uses all of it")]

pub mod check;
pub mod elf;
pub mod evidence;
pub mod frames;
pub mod rewrite;
pub mod view;

use std::collections::HashSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The C library of this machine.
pub const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
/// Its dynamic loader.
pub const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// A directory that disappears with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("zhuque-sites-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("scratch directory");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and says where it is.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("scratch file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Every ELF program and shared library below `directories`, each once, in an order without a pattern (whoever stops
/// early has seen some of all).
pub fn installed(directories: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = directories.iter().map(PathBuf::from).collect();
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            if stat.is_dir() {
                open.push(entry.path());
            } else if stat.is_file() && seen.insert((stat.dev(), stat.ino())) && is_elf(&entry.path()) {
                files.push(entry.path());
            }
        }
    }
    files.sort_by_key(|path| crc32fast::hash(path.as_os_str().as_encoded_bytes()));
    files
}

/// Whether a file is a program or shared library: magic, and type ET_EXEC or ET_DYN.
fn is_elf(path: &Path) -> bool {
    let mut start = [0; 18];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start.starts_with(b"\x7fELF") && matches!(start[16], 2 | 3) && start[17] == 0
}

/// Says on stderr that a test could not be done here, and whether the test should go on.
pub fn present(path: &str) -> bool {
    let there = Path::new(path).exists();
    if !there {
        eprintln!("skipped: {path} is not on this machine");
    }
    there
}
