//! The C library and the loader of this machine: every `syscall` instruction is planned or known to stay.

mod common;

use std::process::Command;
use std::time::Instant;

use common::check::{check_plan, count_syscalls};
use common::{LIBC, LOADER, Scratch, present};
use zhuque_sites::{cached_plan, decode, encode, plan_file};

/// The number of `syscall` lines in objdump's output; `None` if it is not installed.
fn objdump(path: &str) -> Option<usize> {
    let output = Command::new("objdump").args(["-d", path]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let calls = text.lines().filter(|line| line.trim_end().ends_with("\tsyscall"));
    Some(calls.count())
}

/// Plans a file, compares with other ways to count, and wants nearly all of it planned.
fn nearly_all(path: &str) {
    if !present(path) {
        return;
    }
    let start = Instant::now();
    let plan = plan_file(path.as_ref()).expect("plan");
    let elapsed = start.elapsed();
    let bytes = std::fs::read(path).expect("read");
    let swept = count_syscalls(&bytes);
    let forward = plan.sites.iter().filter(|site| site.before == 0).count();
    eprintln!(
        "{path}: {} sites ({forward} forward), {} unplanned; sweep {swept}, objdump {:?}; {elapsed:?}",
        plan.sites.len(),
        plan.unplanned,
        objdump(path),
    );
    assert_eq!(check_plan(&bytes, &plan), Vec::<String>::new());
    if let Some(counted) = objdump(path) {
        // Fewer is possible: code that no table describes.
        assert!(plan.sites.len() + plan.unplanned <= counted);
    }
    assert!(plan.sites.len() * 100 >= swept * 95, "too few of {swept}");
}

#[test]
fn libc() {
    nearly_all(LIBC);
}

#[test]
fn loader() {
    nearly_all(LOADER);
}

#[test]
fn cache_is_the_same() {
    if !present(LIBC) {
        return;
    }
    let scratch = Scratch::new();
    let cache = scratch.path().join("not/there/yet");
    let first = cached_plan(&cache, LIBC.as_ref()).expect("plan");
    let start = Instant::now();
    let second = cached_plan(&cache, LIBC.as_ref()).expect("plan");
    let elapsed = start.elapsed();
    eprintln!("cached: {elapsed:?}");
    assert_eq!(first, second);
    assert_eq!(first, plan_file(LIBC.as_ref()).expect("plan"));
}

#[test]
fn encoding_keeps_everything() {
    if !present(LIBC) || !present(LOADER) {
        return;
    }
    let mut plans = [LOADER, LIBC].map(|path| plan_file(path.as_ref()).expect("plan"));
    let bytes = encode(&plans);
    let mut first = 0;
    for plan in &mut plans {
        plan.library.first = first;
        plan.unplanned = 0;
        first += plan.library.count;
    }
    assert_eq!(bytes.len(), 24 + 2 * 64 + first as usize * 48);
    assert_eq!(decode(&bytes).expect("decodes"), plans);
    for place in [0, 9, 13, 17, 21, 100, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(decode(&damaged).is_none(), "damage at {place} unnoticed");
    }
    assert!(decode(&bytes[..bytes.len() - 48]).is_none());
    assert_eq!(decode(&encode(&[])), Some(Vec::new()));
}

/// Without section headers, functions are found through the index of `.eh_frame`.
#[test]
fn section_headers_are_not_needed() {
    for path in [LIBC, LOADER] {
        if !present(path) {
            continue;
        }
        let mut bytes = std::fs::read(path).expect("read");
        // e_shoff, then e_shnum and e_shstrndx
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        let scratch = Scratch::new();
        let stripped = scratch.file("stripped", &bytes);
        let stripped = plan_file(&stripped).expect("plan");
        assert_eq!(stripped.sites, plan_file(path.as_ref()).expect("plan").sites);
    }
}
