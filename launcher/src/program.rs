//! What the user wants to run: found as the shell would find it, and refused if it cannot be made persistent.
//!
//! Key types: [`Target`], [`Refusal`]. Refused are programs into which the dynamic loader would not load the shim:
//! `run` must never run one unprotected. Neighbours: `launch`, `commands::check` (shows the same refusals).

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, eaccess, getegid, geteuid, getuid};
use zhuque_sites::{Program, inspect_program};

use crate::failure::{CANNOT_RUN, Failure, NOT_FOUND, OWN};
use crate::sys;

/// Where programs are looked for when there is no PATH (confstr(_CS_PATH)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Scripts may name scripts as their interpreters, as often as the kernel allows (BINPRM_MAX_RECURSION is 4).
const SCRIPTS: usize = 5;
/// The kernel reads this much of a script's first line (BINPRM_BUF_SIZE).
const FIRST_LINE: usize = 256;

/// A program that can be run.
#[derive(Debug)]
pub struct Target {
    /// What to execute: the path as typed, or as found in PATH.
    pub path: PathBuf,
    /// The ELF program that will run: `path`, or its interpreter.
    pub program: Program,
    /// The interpreters of a script, outermost last; empty for a program.
    pub interpreters: Vec<PathBuf>,
}

/// Why a program cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The exit status that goes with it.
    pub status: i32,
    /// The reason and what to do.
    pub why: String,
}

impl Refusal {
    fn new(status: i32, why: impl Into<String>) -> Refusal {
        let why = why.into();
        Refusal { status, why }
    }

    /// Says which file it is about, if that is not the program itself but its interpreter.
    fn of(mut self, file: &Path, program: &Path) -> Refusal {
        if file != program {
            self.why = format!("its interpreter {}: {}", file.display(), self.why);
        }
        self
    }

    /// As an error about `program`.
    pub fn error(self, program: &OsStr) -> anyhow::Error {
        Failure::error(self.status, format!("{}: {}", program.to_string_lossy(), self.why))
    }
}

/// Finds `program` and looks at it.
pub fn resolve(program: &OsStr) -> Result<Target, Refusal> {
    let path = search(program, env::var_os("PATH"))?;
    let mut interpreters = Vec::new();
    let mut file = path.clone();
    for _ in 0..SCRIPTS {
        match step(&file).map_err(|refusal| refusal.of(&file, &path))? {
            Step::Program(program) => {
                return Ok(Target { path, program, interpreters });
            }
            Step::Script(interpreter) => {
                interpreters.push(interpreter.clone());
                file = interpreter;
            }
        }
    }
    Err(Refusal::new(CANNOT_RUN, "its interpreter is a script of a script of a script; name the program itself"))
}

/// What a file is.
enum Step {
    Program(Program),
    /// A script, and the path of its interpreter.
    Script(PathBuf),
}

/// Looks at one file.
fn step(file: &Path) -> Result<Step, Refusal> {
    let metadata = executable(file)?;
    match interpreter(file)? {
        Some(interpreter) => Ok(Step::Script(interpreter)),
        // Only here: the kernel takes set-user-id from the program that it runs in the end, not from a script.
        None => Ok(Step::Program(loadable(file, &metadata)?)),
    }
}

/// Finds a program as execvp(3) does.
fn search(program: &OsStr, variable: Option<OsString>) -> Result<PathBuf, Refusal> {
    if program.is_empty() {
        return Err(Refusal::new(NOT_FOUND, "no such program: its name is empty"));
    }
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let variable = variable.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut denied = None;
    for directory in env::split_paths(&variable) {
        // An empty entry is the working directory.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
        let candidate = directory.join(program);
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && eaccess(&candidate, AccessFlags::X_OK).is_ok() => {
                return Ok(candidate);
            }
            Ok(found) if found.is_file() => denied = Some(candidate),
            _ => {}
        }
    }
    match denied {
        Some(path) => Err(Refusal::new(CANNOT_RUN, format!("{}: not executable; chmod +x it", path.display()))),
        None => Err(Refusal::new(NOT_FOUND, "no such program in PATH; install it, or name it with its directory")),
    }
}

/// The file, if it may be executed.
fn executable(file: &Path) -> Result<Metadata, Refusal> {
    let metadata = fs::metadata(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Refusal::new(NOT_FOUND, "no such program; check the path"),
        _ => Refusal::new(CANNOT_RUN, format!("cannot look at it: {error}; check its permissions")),
    })?;
    if metadata.is_dir() {
        return Err(Refusal::new(CANNOT_RUN, "a directory; name a program in it"));
    }
    if !metadata.is_file() {
        return Err(Refusal::new(CANNOT_RUN, "not a regular file; name a program"));
    }
    if eaccess(file, AccessFlags::X_OK).is_err() {
        return Err(Refusal::new(CANNOT_RUN, "not executable; chmod +x it"));
    }
    Ok(metadata)
}

/// The interpreter of a script (fs/binfmt_script.c); `None` for everything else.
fn interpreter(file: &Path) -> Result<Option<PathBuf>, Refusal> {
    let opened = File::open(file).map_err(|error| {
        Refusal::new(CANNOT_RUN, format!("cannot read it: {error}; zhuque must be able to look at it"))
    })?;
    let mut start = Vec::new();
    if opened.take(FIRST_LINE as u64).read_to_end(&mut start).is_err() || !start.starts_with(b"#!") {
        return Ok(None);
    }
    let line = start[2..].split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| b" \t\0".contains(byte)).filter(|word| !word.is_empty());
    match words.next() {
        Some(word) => Ok(Some(OsString::from_vec(word.to_vec()).into())),
        None => Err(Refusal::new(CANNOT_RUN, "it names no interpreter behind #!; add one")),
    }
}

/// The program in the file, if the dynamic loader will load the shim into it.
fn loadable(file: &Path, metadata: &Metadata) -> Result<Program, Refusal> {
    let program = inspect_program(file).map_err(|error| {
        let advice = match error {
            zhuque_sites::Error::NotElf(_) => "start it with its interpreter",
            zhuque_sites::Error::Class32(_) => "use a 64-bit build",
            _ => "use another build of it",
        };
        // Its text starts with the path, which is said already.
        let why = error.to_string();
        let why = why.strip_prefix(&format!("{}: ", file.display())).unwrap_or(&why);
        Refusal::new(CANNOT_RUN, format!("{why}; {advice}"))
    })?;
    if program.static_ {
        let why = "statically linked: nothing can be loaded into it; use a dynamically linked build";
        return Err(Refusal::new(OWN, why));
    }
    if let Some(privilege) = privilege(file, metadata) {
        let why = format!("{privilege}: the dynamic loader ignores the shim in such programs; start a copy without it");
        return Err(Refusal::new(OWN, why));
    }
    if let Some(loader) = program.interpreter.as_deref().filter(|loader| !loader.exists()) {
        let why = format!("its dynamic loader {} is not installed; install it", loader.display());
        return Err(Refusal::new(CANNOT_RUN, why));
    }
    Ok(program)
}

/// What gives the program privileges that the user does not have: then the loader runs in secure mode.
fn privilege(file: &Path, metadata: &Metadata) -> Option<&'static str> {
    if statvfs(file).is_ok_and(|room| room.flags().contains(FsFlags::ST_NOSUID)) {
        return None;
    }
    let mode = metadata.mode();
    if mode & libc::S_ISUID != 0 && metadata.uid() != geteuid().as_raw() {
        return Some("set-user-id");
    }
    // Without execution by the group the bit means something else (mandatory locking, once).
    let group = libc::S_ISGID | libc::S_IXGRP;
    if mode & group == group && metadata.gid() != getegid().as_raw() {
        return Some("set-group-id");
    }
    // Capabilities of the file give root nothing new.
    if !getuid().is_root() && sys::has_attribute(file, c"security.capability") {
        return Some("it has file capabilities");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_by_the_shell() {
        let path = Some(OsString::from("/nowhere:/bin:/usr/bin"));
        assert!(search(OsStr::new("sh"), path.clone()).unwrap().ends_with("sh"));
        assert_eq!(search(OsStr::new("no-such-program"), path).unwrap_err().status, NOT_FOUND);
        assert_eq!(search(OsStr::new("./x"), None).unwrap(), Path::new("./x"));
        assert_eq!(resolve(OsStr::new("/nowhere/x")).unwrap_err().status, NOT_FOUND);
        assert_eq!(resolve(OsStr::new("/")).unwrap_err().status, CANNOT_RUN);
        assert_eq!(resolve(OsStr::new("/etc/passwd")).unwrap_err().status, CANNOT_RUN);
    }
}
