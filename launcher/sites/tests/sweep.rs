//! Plans the programs and libraries of this machine: no panic, and nothing an independent checker objects to.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::check::check_plan;

/// Files of this size are left out: the checker decodes everything, unoptimised.
const LARGEST: u64 = 24 << 20;
const BUDGET: Duration = Duration::from_secs(20);

/// Regular files below `directory` that look like programs or libraries.
fn collect(directory: &Path, depth: u32, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(stat) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if stat.is_dir() && depth > 0 {
            collect(&path, depth - 1, files);
        }
        let library = entry.file_name().to_string_lossy().contains(".so");
        if stat.is_file() && (stat.mode() & 0o111 != 0 || library) && stat.len() <= LARGEST {
            files.push(path);
        }
    }
}

#[test]
fn everything_installed() {
    let mut files = Vec::new();
    for directory in ["/usr/lib/x86_64-linux-gnu", "/usr/bin", "/usr/sbin", "/usr/lib"] {
        collect(Path::new(directory), 3, &mut files);
    }
    files.sort();
    files.dedup();
    // Smallest first would only see small ones when the time runs out; so take them in an order without a pattern.
    files.sort_by_key(|path| crc32fast::hash(path.as_os_str().as_encoded_bytes()));
    let start = Instant::now();
    let (mut planned, mut sites, mut unplanned) = (0, 0, 0);
    let mut wrong = Vec::new();
    for path in &files {
        if start.elapsed() > BUDGET {
            break;
        }
        let Ok(plan) = zhuque_sites::plan_file(path) else {
            continue;
        };
        planned += 1;
        sites += plan.sites.len();
        unplanned += plan.unplanned;
        let bytes = std::fs::read(path).expect("readable a moment ago");
        let found = check_plan(&bytes, &plan);
        wrong.extend(found.into_iter().map(|w| format!("{}: {w}", path.display())));
    }
    let total = files.len();
    eprintln!("{planned} ELF files of {total} candidates: {sites} sites, {unplanned} unplanned");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(planned > 0);
}

/// Damaged files must be refused or planned, never bring the launcher down.
#[test]
fn damaged_files() {
    let scratch = common::Scratch::new();
    if !common::present(common::LOADER) {
        return;
    }
    let whole = std::fs::read(common::LOADER).expect("ld.so");
    let mut state: u32 = 12345;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for round in 0..60 {
        let mut bytes = whole.clone();
        if round % 3 == 0 {
            bytes.truncate(random() as usize % bytes.len());
        }
        for _ in 0..random() % 40 {
            // Mostly headers and tables, which lie at both ends.
            let length = bytes.len() as u32;
            let place = match random() % 3 {
                0 => random() % 1024,
                1 => length.saturating_sub(1 + random() % 4096),
                _ => random() % length.max(1),
            };
            if let Some(byte) = bytes.get_mut(place as usize) {
                *byte = random() as u8;
            }
        }
        let path = scratch.file("damaged", &bytes);
        let _ = zhuque_sites::plan_file(&path);
        let _ = zhuque_sites::inspect_program(&path);
        let _ = zhuque_sites::libraries(&path, None);
        let _ = zhuque_sites::build_id(&path);
    }
}
