//! What kind of program a file is, before anything is started.
//!
//! Key type: [`Program`]. Neighbours: `headers` reads, `libraries` follows what the program needs.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use goblin::elf::ProgramHeader;
use goblin::elf::header::ET_DYN;
use goblin::elf::program_header::{PT_INTERP, PT_LOAD};

use crate::Error;
use crate::headers::ElfFile;

/// A 64-bit x86 ELF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file as it was named.
    pub path: PathBuf,
    /// The dynamic loader it asks for (`PT_INTERP`).
    pub interpreter: Option<PathBuf>,
    /// Without a dynamic loader: nothing can be preloaded into it. (A dynamic loader or shared library that is
    /// started directly counts, too.)
    pub static_: bool,
    /// Position-independent (`ET_DYN`).
    pub pie: bool,
    /// `e_ident[EI_CLASS]`, always 2 (64-bit).
    pub class: u8,
    /// `e_machine`, always 62 (x86-64).
    pub machine: u16,
}

/// Looks at the file's headers. It is an error if the file is not a program that could run here as a 64-bit process.
pub fn inspect_program(path: &Path) -> Result<Program, Error> {
    let elf = ElfFile::open(path)?;
    let interpreter = interpreter(&elf)?;
    let behind = |s: &ProgramHeader| s.p_type == PT_LOAD && s.p_offset.saturating_add(s.p_filesz) > elf.size;
    if elf.segments.iter().any(behind) {
        return Err(Error::Malformed { path: path.into(), what: "it is cut off" });
    }
    Ok(Program {
        path: path.into(),
        static_: interpreter.is_none(),
        interpreter,
        pie: elf.header.e_type == ET_DYN,
        class: elf.header.e_ident[goblin::elf::header::EI_CLASS],
        machine: elf.header.e_machine,
    })
}

/// The path in `PT_INTERP`.
pub fn interpreter(elf: &ElfFile) -> Result<Option<PathBuf>, Error> {
    let Some(segment) = elf.segment(PT_INTERP) else {
        return Ok(None);
    };
    let malformed =
        || Error::Malformed { path: elf.path.clone(), what: "the name of its dynamic loader is unreadable" };
    // The kernel's limit, too.
    if segment.p_filesz > 4096 {
        return Err(malformed());
    }
    let bytes = elf.read(segment.p_offset, segment.p_filesz);
    let bytes = bytes.ok_or_else(malformed)?;
    match bytes.split(|&byte| byte == 0).next() {
        Some(name) if !name.is_empty() => Ok(Some(OsStr::from_bytes(name).into())),
        _ => Err(malformed()),
    }
}
