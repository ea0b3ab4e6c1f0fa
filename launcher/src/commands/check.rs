//! `zhuque check`: what this machine, this store and this program allow, before anything is started.
//!
//! Key type: [`Finding`], one line each. Everything is tried rather than concluded from version numbers where that is
//! possible, and nothing is left behind. Neighbours: `store` and `program` know the same facts for `run`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};
use serde_json::{Value, json};

use crate::flags::Check;
use crate::launch::check_path;
use crate::program::{self, Target};
use crate::store::{self, Probe, Store};
use crate::{failure, render, report, sys};

/// First kernel with Syscall User Dispatch.
const KERNEL: (u32, u32) = (5, 11);
/// AT_HWCAP2: the processor's instructions for the FS and GS bases may be used (arch/x86 asm/hwcap2.h).
const HWCAP2_FSGSBASE: u64 = 2;
/// Below this many free bytes a store is called small.
const SMALL: u64 = 256 << 20;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Blocked,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Blocked => "BLOCKED",
        }
    }
}

/// One thing that was looked at.
struct Finding {
    level: Level,
    what: &'static str,
    text: String,
}

/// The list of findings.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, what: &'static str, text: impl Into<String>) {
        let text = failure::one_line(&failure::without_numbers(&text.into()));
        self.0.push(Finding { level, what, text });
    }

    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Ok, what, text);
    }

    fn warn(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Warn, what, text);
    }

    fn blocked(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(Level::Blocked, what, text);
    }

    /// What a probe found.
    fn tried(&mut self, what: &'static str, result: std::io::Result<()>, works: &str, else_: &str) {
        match result {
            Ok(()) => self.ok(what, works),
            Err(error) => self.blocked(what, format!("{error}; {else_}")),
        }
    }
}

/// Looks at everything; ends with 1 if something blocks.
pub fn check(store: Option<&Path>, flags: &Check) -> anyhow::Result<i32> {
    let mut findings = Findings::default();
    machine(&mut findings);
    let cache = store_findings(&mut findings, store);
    if let Some(program) = &flags.program {
        program_findings(&mut findings, program, cache.as_deref());
    }
    let blocked = findings.0.iter().any(|finding| finding.level == Level::Blocked);
    let text = if flags.json {
        let all = findings.0.iter().map(|finding| {
            let level = finding.level.name().to_lowercase();
            json!({ "level": level, "what": finding.what, "text": finding.text })
        });
        render::json(&Value::Array(all.collect()))
    } else {
        let lines = findings
            .0
            .iter()
            .map(|finding| format!("{:<8} {:<12} {}\n", finding.level.name(), finding.what, finding.text));
        lines.collect()
    };
    report::print(&text)?;
    Ok(if blocked { failure::BLOCKED } else { 0 })
}

/// Kernel and processor.
fn machine(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(version) if version >= KERNEL => findings.ok("kernel", format!("Linux {release}")),
        Some(_) => findings.blocked("kernel", format!("Linux {release} is too old; 5.11 or newer is needed")),
        None => findings.warn("kernel", format!("cannot understand the version '{release}'; 5.11 or newer is needed")),
    }
    findings.tried(
        "dispatch",
        sys::dispatch_works(),
        "Syscall User Dispatch works",
        "system calls cannot be intercepted; a kernel with it (x86-64, 5.11), or another seccomp profile is needed",
    );
    if sys::hwcap2() & HWCAP2_FSGSBASE != 0 {
        findings.ok("fsgsbase", "threads can read and set their own bases");
    } else {
        findings.blocked(
            "fsgsbase",
            "the kernel or the processor lacks FSGSBASE; Linux 5.9 and a processor from 2012 are needed",
        );
    }
    match sys::trace_works() {
        Ok(()) => findings.ok("ptrace", "a resume can take over the new process"),
        Err(why) => findings.warn(
            "ptrace",
            format!(
                "{why}; a resume loads the program's libraries first, which takes longer (docker: --cap-add SYS_PTRACE)"
            ),
        ),
    }
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The store; its directory of cached plans, if it is there.
fn store_findings(findings: &mut Findings, given: Option<&Path>) -> Option<PathBuf> {
    let (path, default) = store::path(given);
    let shown = path.display().to_string();
    let (probed, there) = if path.exists() {
        match Store::open(given) {
            Ok(store) => (store.path().to_path_buf(), true),
            Err(error) => {
                findings.blocked("store", failure::line(&error));
                return None;
            }
        }
    } else {
        let parent = path.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        (parent, false)
    };
    if !there && !default {
        findings.blocked("store", format!("{shown}: no such store; make it with mkdir -m 700"));
        return None;
    }
    match store::probe(&probed) {
        Ok(probe) => {
            let new = if there { "" } else { " (not made yet)" };
            let survives = probe.medium.survives();
            let kind = format!("{shown}{new}: {}; {survives}", probe.file_system);
            findings.ok("store", kind);
            probe_findings(findings, if there { &probed } else { &path }, &probe);
        }
        Err(error) => findings.blocked("store", failure::line(&error)),
    }
    there.then(|| probed.join(".plans"))
}

/// What the store's file system can do.
fn probe_findings(findings: &mut Findings, path: &Path, probe: &Probe) {
    if let Err(error) = check_path(path, "the store's path", "-s") {
        findings.blocked("path", failure::line(&error));
    }
    match &probe.writable {
        Ok(()) => findings.ok("writable", "files can be made in it"),
        Err(why) => findings.blocked("writable", format!("{why}; name another store with -s")),
    }
    match &probe.executable {
        Ok(()) => findings.ok("executable", "code in it can be executed"),
        Err(why) => {
            findings.blocked("executable", format!("{why}; name another store with -s (docker: --tmpfs /x:exec)"))
        }
    }
    match &probe.sparse {
        Ok(()) => findings.ok("sparse", "files of 4 TiB are possible"),
        Err(why) => findings
            .blocked("sparse", format!("no files of 4 TiB: {why}; raise ulimit -f, or name another store with -s")),
    }
    let free = render::bytes(probe.free);
    if let Err(full) = probe.refuse_full(path) {
        findings.blocked("room", format!("{full}; make room, or name another with -s"));
    } else if probe.free < SMALL {
        let advice = "a program that needs more gets SIGBUS, or ENOMEM, when it is full (docker: --shm-size)";
        findings.warn("room", format!("only {free} free; {advice}"));
    } else {
        findings.ok("room", format!("{free} free"));
    }
}

/// The program.
fn program_findings(findings: &mut Findings, typed: &OsStr, cache: Option<&Path>) {
    let target = match program::resolve(typed) {
        Ok(target) => target,
        Err(refusal) => {
            findings.blocked("program", format!("{}: {}", typed.to_string_lossy(), refusal.why));
            return;
        }
    };
    let shown = target.path.display();
    match target.interpreters.last() {
        Some(last) => findings.ok("program", format!("{shown}: a script for {}", last.display())),
        None => {
            let kind = if target.program.pie { "position-independent" } else { "at fixed addresses" };
            findings.ok("program", format!("{shown}: dynamically linked, {kind}"));
        }
    }
    loader_findings(findings, &target);
    call_findings(findings, &target, cache);
}

/// Its dynamic loader.
fn loader_findings(findings: &mut Findings, target: &Target) {
    // `resolve` refuses programs without one.
    let Some(loader) = &target.program.interpreter else {
        return;
    };
    match eaccess(loader, AccessFlags::X_OK) {
        Ok(()) => findings.ok("loader", loader.display().to_string()),
        Err(errno) => {
            findings.blocked("loader", format!("{}: {}; check its permissions", loader.display(), errno.desc()))
        }
    }
}

/// Its system calls.
fn call_findings(findings: &mut Findings, target: &Target, cache: Option<&Path>) {
    let path = env::var_os("LD_LIBRARY_PATH");
    let libraries = zhuque_sites::libraries(&target.program.path, path.as_deref());
    let (mut sites, mut left) = (0, 0);
    for library in &libraries {
        let plan = match cache {
            Some(cache) => zhuque_sites::cached_plan(cache, library),
            None => zhuque_sites::plan_file(library),
        };
        match plan {
            Ok(plan) => {
                sites += plan.sites.len();
                left += plan.unplanned;
            }
            Err(error) => findings.warn("calls", format!("{error}; its system calls are slower")),
        }
    }
    let of = render::count(libraries.len() as u64, "library");
    let of = of.replace("librarys", "libraries");
    findings.ok("calls", format!("{sites} call sites in {of} are rewritten, {left} are left to the net (slower)"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.11"), Some((5, 11)));
        assert_eq!(version("x"), None);
        assert!(version("5.4.0") < Some(KERNEL));
    }
}
