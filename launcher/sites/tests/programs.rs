//! Which programs are accepted, and which libraries they load: compared with what ldd says.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::elf::Builder;
use common::{LIBC, Scratch, present};
use zhuque_sites::{Error, inspect_program, libraries, plan_file};

/// Compiles a C program; `None` (with a message) if that is not possible here.
fn compile(scratch: &Scratch, name: &str, source: &str, options: &[&str]) -> Option<PathBuf> {
    let input = scratch.file(&format!("{name}.c"), source.as_bytes());
    let output = scratch.path().join(name);
    let mut gcc = Command::new("gcc");
    gcc.arg(&input).arg("-o").arg(&output).args(options);
    match gcc.status() {
        Ok(status) if status.success() => Some(output),
        _ => {
            eprintln!("skipped: gcc cannot build {name} with {options:?}");
            None
        }
    }
}

const MAIN: &str = "int main(void) { return 0; }";

#[test]
fn dynamic_program() {
    if !present("/bin/bash") {
        return;
    }
    let program = inspect_program("/bin/bash".as_ref()).expect("bash");
    let interpreter = program.interpreter.expect("interpreter");
    assert_eq!(interpreter, Path::new("/lib64/ld-linux-x86-64.so.2"));
    assert!(!program.static_);
    assert_eq!((program.class, program.machine), (2, 62));
}

#[test]
fn static_programs() {
    let scratch = Scratch::new();
    for (name, options, pie) in [("fixed", ["-static", "-no-pie"], false), ("pie", ["-static-pie", "-fPIE"], true)] {
        let Some(path) = compile(&scratch, name, MAIN, &options) else {
            continue;
        };
        let program = inspect_program(&path).expect(name);
        assert!(program.static_ && program.interpreter.is_none());
        assert_eq!(program.pie, pie);
        assert!(libraries(&path, None).is_empty());
        let plan = plan_file(&path).expect(name);
        let bytes = std::fs::read(&path).expect(name);
        assert_eq!(common::check::check_plan(&bytes, &plan), Vec::<String>::new());
        let counted = common::check::count_syscalls(&bytes);
        eprintln!("{name}: {} sites, {} unplanned of {counted}", plan.sites.len(), plan.unplanned);
        assert!(plan.sites.len() * 100 >= counted * 90);
    }
}

#[test]
fn what_is_no_program() {
    let scratch = Scratch::new();
    let whole = Builder::function(b"\xc3").build();
    let with = |place: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[place..place + bytes.len()].copy_from_slice(bytes);
        scratch.file("changed", &changed)
    };
    let error = |path: PathBuf| inspect_program(&path).expect_err("refused");
    assert!(matches!(error(scratch.file("text", b"#!/bin/sh\necho hello\n")), Error::NotElf(_)));
    assert!(matches!(error(scratch.file("empty", b"")), Error::NotElf(_)));
    assert!(matches!(error(with(4, &[1])), Error::Class32(_)));
    let short = scratch.file("short32", b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0");
    assert!(matches!(error(short), Error::Class32(_)));
    assert!(matches!(error(with(18, &[183, 0])), Error::WrongMachine { machine: 183, .. }));
    let big = error(with(5, &[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 21]));
    assert!(matches!(big, Error::WrongMachine { machine: 21, .. }), "{big}");
    assert!(matches!(error(with(16, &[1, 0])), Error::NotLoadable { kind: 1, .. }));
    assert!(matches!(error(with(32, &[0xff; 8])), Error::Malformed { .. }));
    assert!(matches!(error("/proc".into()), Error::NotRegular(_)));
    assert!(matches!(error("/dev/null".into()), Error::NotRegular(_)));
    assert!(matches!(error("/nonexistent".into()), Error::Io { .. }));
}

/// Paths in ldd's output, without the vDSO. Canonical, because of /lib and /usr/lib.
fn ldd(path: &Path, library_path: Option<&OsStr>) -> Option<BTreeSet<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(path).env_remove("LD_PRELOAD").env_remove("LD_LIBRARY_PATH");
    if let Some(value) = library_path {
        command.env("LD_LIBRARY_PATH", value);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths = text.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| Path::new(path).canonicalize().ok())?
    });
    Some(paths.collect())
}

fn same_as_ldd(path: &Path, library_path: Option<&OsStr>) {
    let Some(expected) = ldd(path, library_path) else {
        eprintln!("skipped: no ldd for {}", path.display());
        return;
    };
    let found = libraries(path, library_path);
    let canonical = found.iter().map(|path| path.canonicalize().expect("exists"));
    let canonical: BTreeSet<PathBuf> = canonical.collect();
    assert_eq!(canonical, expected, "{}", path.display());
    assert_eq!(canonical.len(), found.len(), "each only once");
}

#[test]
fn libraries_as_ldd_finds_them() {
    for path in ["/usr/bin/python3", "/bin/bash", "/usr/bin/perl", "/usr/bin/gdb", "/usr/bin/git"] {
        if present(path) {
            same_as_ldd(path.as_ref(), None);
        }
    }
}

#[test]
fn search_paths() {
    let scratch = Scratch::new();
    let directory = scratch.path().join("inner");
    std::fs::create_dir(&directory).expect("directory");
    let shared = ["-shared", "-fPIC"];
    let source = "int b(void) { return 1; }";
    let Some(b) = compile(&scratch, "inner/libb.so", source, &shared) else {
        return;
    };
    let a_options = ["-shared", "-fPIC", b.to_str().expect("name"), "-Wl,-soname,liba.so"];
    // liba needs libb by a path, main needs liba by $ORIGIN.
    let source = "int b(void); int a(void) { return b(); }";
    compile(&scratch, "inner/liba.so", source, &a_options).expect("liba");
    let inner = directory.to_str().expect("name");
    let search = format!("-L{inner}");
    let source = "int a(void); int main(void) { return a(); }";
    for (name, tags, path) in [
        ("runpath", "-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/inner"),
        ("rpath", "-Wl,--disable-new-dtags", "-Wl,-rpath,${ORIGIN}/inner"),
        ("variable", "-Wl,--enable-new-dtags", "-Wl,-rpath,/nonexistent"),
    ] {
        let unresolved = "-Wl,--unresolved-symbols=ignore-all";
        let options = [search.as_str(), "-la", tags, path, unresolved];
        let program = compile(&scratch, name, source, &options).expect("program");
        let variable = (name == "variable").then_some(directory.as_os_str());
        same_as_ldd(&program, variable);
        let found = libraries(&program, variable);
        assert!(found.iter().any(|path| path.ends_with("inner/liba.so")), "{name}: {found:?}");
        assert!(found.iter().any(|path| path.ends_with("inner/libb.so")), "{name}: {found:?}");
    }
}

#[test]
fn build_ids() {
    if !present(LIBC) {
        return;
    }
    let id = zhuque_sites::build_id(LIBC.as_ref()).expect("libc has one");
    let hex: String = id[..20].iter().map(|byte| format!("{byte:02x}")).collect();
    if let Ok(output) = Command::new("readelf").args(["-n", LIBC]).output() {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&hex), "{hex} is not what readelf says");
    }
    let scratch = Scratch::new();
    let without = scratch.file("without", &Builder::function(b"\xc3").build());
    assert_eq!(zhuque_sites::build_id(&without), None);
}
