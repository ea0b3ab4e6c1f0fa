//! Errors of this crate, worded for the user of the `zhuque` command.
//!
//! Key type: [`Error`]. Neighbours: every module that opens files.

use std::io;
use std::path::PathBuf;

/// Why a file cannot be planned or inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{}: not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// No ELF magic: a script, a text file, an empty file.
    #[error("{}: not an ELF file", .0.display())]
    NotElf(PathBuf),
    /// An i386 or x32 file.
    #[error("{}: a 32-bit program; only 64-bit x86 is supported", .0.display())]
    Class32(PathBuf),
    /// An ELF file for another processor.
    #[error("{}: a program for another machine (ELF machine {machine}); only x86-64 is supported", path.display())]
    WrongMachine {
        /// The file.
        path: PathBuf,
        /// Its `e_machine`.
        machine: u16,
    },
    /// An object file or a core dump.
    #[error("{}: neither a program nor a shared library (ELF type {kind})", path.display())]
    NotLoadable {
        /// The file.
        path: PathBuf,
        /// Its `e_type`.
        kind: u16,
    },
    /// Headers that contradict themselves or the size of the file.
    #[error("{}: damaged ELF file: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}
