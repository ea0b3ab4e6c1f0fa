//! Files that are cut off, changed or made up: refused or planned, but never a panic, and never work without end.
//!
//! `ZHUQUE_FUZZ=N` tries N changed files instead of some hundred, `ZHUQUE_SEED` others. What is planned in spite of the
//! damage must still be whole sites of the file: the shim compares them with memory and trusts them otherwise.

mod common;

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::elf::{Builder, CODE, DATA};
use common::{LIBC, LOADER, Scratch};
use zhuque_sites::Plan;

/// No file may keep the planner busy for so long, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);
/// Values that are borders of something.
const BORDERS: [u64; 10] =
    [0, 1, 7, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];

/// A linear congruential generator; its upper bits.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// Asks everything that is asked of a program, in a thread of its own, and waits for the end.
fn ask(path: &Path) -> Option<Plan> {
    let (sender, receiver) = mpsc::channel();
    let asked = path.to_path_buf();
    let thread = thread::spawn(move || {
        let plan = zhuque_sites::plan_file(&asked);
        let _ = zhuque_sites::inspect_program(&asked);
        let _ = zhuque_sites::libraries(&asked, None);
        let _ = zhuque_sites::build_id(&asked);
        let _ = sender.send(());
        plan.ok()
    });
    let outcome = receiver.recv_timeout(PATIENCE);
    assert_ne!(outcome, Err(mpsc::RecvTimeoutError::Timeout), "{} keeps the planner busy", path.display());
    thread.join().expect("no panic")
}

/// Whether a plan could belong to these bytes.
fn plausible(bytes: &[u8], plan: &Plan) -> bool {
    let mut floor = 0;
    plan.sites.iter().all(|site| {
        let (start, length) = (site.file_offset as usize, usize::from(site.length));
        let after = start >= floor;
        floor = start.saturating_add(length);
        let run = start.checked_add(length).and_then(|end| bytes.get(start..end));
        after && zhuque_model::rewriting::well_formed(site) && run == Some(&site.original[..length])
    })
}

/// Where a file keeps what the planner reads: header, program headers, section headers, and what those point to.
fn structures(bytes: &[u8]) -> Vec<(usize, usize)> {
    let word = |at: usize| bytes.get(at..at + 8).map_or(0, |raw| u64::from_le_bytes(raw.try_into().expect("eight")));
    let half = |at: usize| usize::from(bytes[at]) | usize::from(bytes[at + 1]) << 8;
    let (segments, sections) = (word(32) as usize, word(40) as usize);
    let mut all = vec![(0, 64), (segments, 56 * half(56)), (sections, 64 * half(60))];
    all.extend((0..half(56)).map(|n| segments + 56 * n).map(|at| (word(at + 8) as usize, word(at + 32) as usize)));
    all.extend((0..half(60)).map(|n| sections + 64 * n).map(|at| (word(at + 24) as usize, word(at + 32) as usize)));
    all.retain(|&(start, length)| length > 0 && start.checked_add(length).is_some_and(|end| end <= bytes.len()));
    all
}

/// One changed copy.
fn changed(whole: &[u8], structures: &[(usize, usize)], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=random.below(8) {
        let (start, length) = structures[random.below(structures.len())];
        let at = start + random.below(length);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2..=4 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let at = at & !(width - 1);
                let value = match random.below(3) {
                    0 => BORDERS[random.below(BORDERS.len())],
                    1 => random.below(bytes.len()) as u64,
                    _ => (bytes.len() + random.below(64)).wrapping_sub(32) as u64,
                };
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            _ => {
                let (from, length) = structures[random.below(structures.len())];
                let from = from + random.below(length);
                let count = (1 + random.below(64)).min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + count, at);
            }
        }
    }
    if random.below(4) == 0 {
        bytes.truncate(random.below(bytes.len()));
    }
    bytes
}

#[test]
fn changed_files() {
    let rich = {
        let mut builder = Builder::function(b"\xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\x73\x01\x55\xc3");
        builder.frames[0].2 = Some(DATA);
        builder.symbols = vec![(0, 17)];
        let rela = [DATA + 64, 8, CODE].map(u64::to_le_bytes).concat();
        builder.data = vec![(DATA, b"\xff\xff\x01\x04\x00\x02\x0d\x00".to_vec()), (DATA + 32, rela)];
        builder.dynamic = vec![(7, DATA + 32), (8, 24), (36, DATA + 64), (35, 16), (5, DATA), (6, DATA), (1, 3)];
        builder
    };
    let mut seeds = vec![rich.build(), Builder { stripped: true, ..rich }.build()];
    let installed = [LOADER, LIBC, "/usr/lib/x86_64-linux-gnu/libgomp.so.1", "/usr/bin/env"];
    seeds.extend(installed.iter().filter_map(|path| std::fs::read(path).ok()));
    let seed = number("ZHUQUE_SEED", 1);
    let rounds = number("ZHUQUE_FUZZ", 300);
    eprintln!("{rounds} files, ZHUQUE_SEED={seed}");
    let places: Vec<_> = seeds.iter().map(|bytes| structures(bytes)).collect();
    let mut random = Random(seed);
    let scratch = Scratch::new();
    let (mut planned, mut refused) = (0, 0);
    for round in 0..rounds {
        // Mostly the small ones, which are all structure.
        let which = if random.below(8) == 0 { random.below(seeds.len()) } else { random.below(2) };
        let bytes = changed(&seeds[which], &places[which], &mut random);
        let path = scratch.file("changed", &bytes);
        match ask(&path) {
            None => refused += 1,
            Some(plan) => {
                planned += usize::from(!plan.sites.is_empty());
                assert!(plausible(&bytes, &plan), "round {round} of ZHUQUE_SEED={seed}: {:x?}", plan.sites);
            }
        }
    }
    eprintln!("{planned} with sites, {refused} refused");
    assert!(planned > 0 && refused > 0);
}

/// Cut off everywhere.
#[test]
fn truncated_files() {
    let builder = Builder::function(b"\xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\xc3");
    let whole = builder.build();
    let scratch = Scratch::new();
    for length in (0..400).chain((400..whole.len()).step_by(101)) {
        let path = scratch.file("truncated", &whole[..length]);
        if let Some(plan) = ask(&path) {
            assert!(plausible(&whole[..length], &plan), "{length} bytes");
        }
    }
}

/// Small files whose headers name the same bytes again and again: as much work as the product, if believed.
#[test]
fn tables_that_repeat() {
    const MANY: u16 = 60_000;
    let builder = Builder::function(b"\xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\xc3");
    let whole = builder.build();
    let scratch = Scratch::new();
    // Section headers: type SHT_SYMTAB, all of the file.
    let total = whole.len() as u64 + 64 * u64::from(MANY);
    let mut sections = whole.clone();
    let header =
        [&[0, 0, 0, 0, 2, 0, 0, 0][..], &[0; 16], &0u64.to_le_bytes(), &total.to_le_bytes(), &[0; 24]].concat();
    (0..MANY).for_each(|_| sections.extend(&header));
    sections[40..48].copy_from_slice(&(whole.len() as u64).to_le_bytes());
    sections[60..64].copy_from_slice(&[MANY.to_le_bytes(), [0, 0]].concat());
    ask(&scratch.file("sections", &sections));
    // Program headers: PT_LOAD, executable, all of the file, each somewhere else.
    let total = whole.len() as u64 + 56 * u64::from(MANY);
    let mut segments = whole.clone();
    for number in 1..=u64::from(MANY) {
        segments.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        let address = number << 24;
        segments.extend([0, address, address, total, total, 0x1000].map(u64::to_le_bytes).concat());
    }
    segments[32..40].copy_from_slice(&(whole.len() as u64).to_le_bytes());
    segments[56..58].copy_from_slice(&MANY.to_le_bytes());
    ask(&scratch.file("segments", &segments));
}
