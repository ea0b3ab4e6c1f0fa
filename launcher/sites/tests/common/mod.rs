//! What several tests share: a scratch directory ([`Scratch`]), synthetic ELF files (`elf`), an independent checker
//! of plans (`check`).
#![allow(dead_code, reason = "no test uses all of it")]

pub mod check;
pub mod elf;

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

/// Says on stderr that a test could not be done here, and whether the test should go on.
pub fn present(path: &str) -> bool {
    let there = Path::new(path).exists();
    if !there {
        eprintln!("skipped: {path} is not on this machine");
    }
    there
}
