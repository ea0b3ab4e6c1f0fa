//! A region is input from outside: whatever its bytes are, looking at it ends, with an answer or a clear error, and
//! nothing panics.
//!
//! Three layers: the decoder of journals, on made-up records; validation and planning, on real saved regions whose bytes
//! are changed and whose checksums are often made right again, so that what lies behind them is reached; and the command
//! itself, and what the shim reads later. `ZHUQUE_FUZZ` says how often the decoder is tried (default 300,000); the others follow from that.
#![allow(unsafe_code)]

use memmap2::{MmapMut, MmapOptions};
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use zhuque_abi::codec::{self, FRAME_BYTES, RECORD_VERSION, Records};
use zhuque_abi::header::Header;
use zhuque_abi::layout::{CONTROL_BYTES, GLOBALS_OFFSET, JOURNAL_OFFSET, NODES_OFFSET, PAGE, PLAN_FILE};
use zhuque_abi::sites::{LibraryPlan, PlanHeader, Site};
use zhuque_restore::cpu::Machine;
use zhuque_restore::holes::{self, Run};
use zhuque_restore::numbers::Numbers;
use zhuque_restore::plan::Plan;
use zhuque_restore::validate::{Saved, control_checksum, header_checksum};
use zhuque_tests::{Guest, Life, Random, Store};

fn executions() -> u64 {
    std::env::var("ZHUQUE_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000)
}

/// The bodies of the records of real journals: of programs that hold many kinds of things.
fn bodies(store: &Store) -> Vec<Vec<u8>> {
    let guests = [
        Guest::python("hashing.py").args(["300000", "."]),
        Guest::python("attributes.py").arg("3000"),
        Guest::c("waits").arg("9"),
        Guest::c("signals").arg("9"),
        Guest::c("power").arg("3000"),
    ];
    let mut all: Vec<Vec<u8>> = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let life = saved(store, &format!("seeds-{number}"), guest);
        let file = opened(&store.region(&life.name).join("control"));
        let mut header = vec![0; PAGE as usize];
        file.read_exact_at(&mut header, 0).expect("read");
        let mut journal = vec![0; u64_at(&header, offset_of!(Header, journal_bytes)) as usize];
        file.read_exact_at(&mut journal, JOURNAL_OFFSET).expect("read");
        let mut rest = journal.as_slice();
        while let Some((length, _)) = rest.split_first_chunk::<4>() {
            let end = FRAME_BYTES + u32::from_le_bytes(*length) as usize;
            all.push(rest[FRAME_BYTES..end].to_vec());
            rest = &rest[end..];
        }
    }
    all.sort();
    all.dedup();
    all
}

/// A record with some bytes of its body changed: its kind, small numbers, lengths.
fn made_up(random: &mut Random, bodies: &[Vec<u8>], out: &mut Vec<u8>) {
    let mut body = bodies[random.below(bodies.len() as u64) as usize].clone();
    for _ in 0..random.below(4) {
        let at = random.below(body.len().min(40) as u64) as usize;
        match random.below(6) {
            0 => body[at] = random.bits() as u8,
            1 => body[at] = 251 + random.below(5) as u8,
            2 => body.insert(at, random.below(12) as u8),
            3 if body.len() > 1 => _ = body.remove(at),
            _ => body[at] = random.below(40) as u8,
        }
    }
    frame(&body, out);
}

/// A body with a frame that is right.
fn frame(body: &[u8], out: &mut Vec<u8>) {
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(codec::checksum(0, body).to_le_bytes());
    out.extend(RECORD_VERSION.to_le_bytes());
    out.extend(body);
}

#[test]
fn journals() {
    let (store, mut random) = (Store::new(), Random::new());
    let bodies = bodies(&store);
    let (mut good, mut bad) = (0u64, 0u64);
    let (mut journal, mut again) = (Vec::new(), vec![0u8; 1 << 16]);
    for _ in 0..executions() {
        journal.clear();
        for _ in 0..1 + random.below(3) {
            made_up(&mut random, &bodies, &mut journal);
        }
        if random.below(4) == 0 {
            damage(&mut random, &mut journal);
        }
        for record in Records::new(&journal) {
            let Ok(record) = record else {
                bad += 1;
                continue;
            };
            good += 1;
            // What has been understood is understood again from its own bytes.
            let bytes = codec::encode(&record, &mut again).unwrap_or_else(|error| panic!("{record:?}: {error}"));
            let same = Records::new(&again[..bytes]).next();
            assert_eq!(same, Some(Ok(record)), "seed {}", random.seed());
        }
    }
    println!(
        "journals: {} tried, made of {} records, {good} records understood, {bad} refused",
        executions(),
        bodies.len()
    );
    assert!(good > executions() / 100 && bad > executions() / 100, "nothing was tested: {good} and {bad}");
}

/// Changes bytes anywhere: bits, numbers, cuts.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        1 => bytes.extend((0..random.below(20)).map(|_| random.bits() as u8)),
        _ => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }
}

/// Where a file has content.
fn extents(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(data) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, data, Whence::SeekHole).expect("hole");
        found.push((data as u64, at as u64));
    }
    found
}

/// A place to change: the header and the tables more often than anything else.
fn place(random: &mut Random, extents: &[(u64, u64)]) -> usize {
    let near = |random: &mut Random, start: u64, bytes: u64| start + random.below(bytes);
    let at = match random.below(8) {
        0 | 1 => near(random, 0, size_of::<Header>() as u64),
        2 => near(random, GLOBALS_OFFSET, 4096),
        3 => near(random, NODES_OFFSET, 16384),
        4 => near(random, JOURNAL_OFFSET, 4096),
        _ => {
            let (start, end) = extents[random.below(extents.len() as u64) as usize];
            near(random, start, end - start)
        }
    };
    (at & !7) as usize
}

/// Another value for a number.
fn other(random: &mut Random, old: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => 1 << random.below(64),
        5 => random.below(200),
        6 => random.bits(),
        _ => old ^ 1 << random.below(64),
    }
}

/// Where the header has its checksums.
const SUMS: [usize; 3] =
    [offset_of!(Header, checksum), offset_of!(Header, control_checksum), offset_of!(Header, journal_checksum)];

/// Makes the checksums right again; false if the tables' bounds are wrong.
fn reseal(control: &mut [u8]) -> bool {
    let bytes = u64_at(control, offset_of!(Header, journal_bytes)) as usize;
    let start = JOURNAL_OFFSET as usize;
    let journal = control.get(start..start.saturating_add(bytes)).map(|journal| codec::checksum(0, journal));
    if let Some(sum) = journal {
        put_u32(control, offset_of!(Header, journal_checksum), sum);
    }
    let tables = control_checksum(control);
    if let Ok(sum) = tables {
        put_u32(control, offset_of!(Header, control_checksum), sum);
    }
    let sum = header_checksum(&control[..PAGE as usize]);
    put_u32(control, offset_of!(Header, checksum), sum);
    journal.is_some() && tables.is_ok()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A machine that can do everything.
fn machine() -> Machine {
    Machine { xcr0: u64::MAX, features: [u32::MAX; 6], xsave_bytes: 1 << 20 }
}

/// Everything that a resume works out before it touches anything.
fn work_out(control: &[u8]) -> Result<(), zhuque_restore::Error> {
    let saved = Saved::check(control, &machine())?;
    let plan = Plan::make(&saved, 0)?;
    let numbers = Numbers::choose(1024, 4096, 64, 8 + plan.files.len() as u64, None)?;
    let steps = plan.bind(&numbers.region_descriptors(), numbers.helpers + 5);
    let vdso = Run { start: 0x7fff_0000_0000, end: 0x7fff_0000_4000 };
    holes::place(&plan.taken, &[vdso], vdso, 0x40000)?;
    assert!(!steps.is_empty());
    Ok(())
}

/// A saved region of a real program.
fn saved<'s>(store: &'s Store, name: &str, guest: &Guest) -> Life<'s> {
    Life::saved_after(store, name, guest, Duration::from_millis(300))
}

fn opened(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The control file as private memory: changes do not reach the file.
fn private(file: &File) -> MmapMut {
    // SAFETY: the region is saved, nobody changes the file.
    unsafe { MmapOptions::new().len(CONTROL_BYTES as usize).map_copy(file) }.expect("map the control file")
}

#[test]
fn whole_regions() {
    let store = Store::new();
    let mut random = Random::new();
    let guests = [Guest::python("hashing.py").args(["400000", "."]), Guest::c("threads").args(["8", "200000"])];
    let mut lives = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        lives.push(saved(&store, &format!("whole-{number}"), guest));
    }
    let (mut accepted, mut refused) = (0u64, 0u64);
    for life in &lives {
        let file = opened(&store.region(&life.name).join("control"));
        let (extents, mut control) = (extents(&file), private(&file));
        work_out(&control).expect("the region is understood as it is");
        for _ in 0..executions() / 60 {
            let mut undo = Vec::new();
            for _ in 0..1 + random.below(4) {
                let at = place(&mut random, &extents);
                let old = u64_at(&control, at);
                undo.push((at, old));
                let new = other(&mut random, old);
                control[at..at + 8].copy_from_slice(&new.to_le_bytes());
            }
            undo.extend(SUMS.iter().map(|&at| (at & !7, u64_at(&control, at & !7))));
            if random.below(8) != 0 {
                reseal(&mut control);
            }
            let end = if random.below(50) == 0 { random.below(CONTROL_BYTES) } else { CONTROL_BYTES };
            match work_out(&control[..end as usize]) {
                Ok(()) => accepted += 1,
                // What it says is said.
                Err(error) => refused += u64::from(!error.to_string().is_empty()),
            }
            for (at, old) in undo.into_iter().rev() {
                control[at..at + 8].copy_from_slice(&old.to_le_bytes());
            }
        }
        work_out(&control).expect("all changes are undone");
    }
    println!("whole regions: {accepted} changed ones could be planned, {refused} refused");
    assert!(accepted > 0 && refused > 0, "nothing was tested");
}

/// The command on changed files: a status of its own and one line, no panic, no hang; and the resume of what its
/// checksums betray is refused.
#[test]
fn commands_on_changed_regions() {
    let store = Store::new();
    let mut random = Random::new();
    let mut life = saved(&store, "changed", &Guest::python("hashing.py").args(["400000", "."]));
    let path = store.region("changed").join("control");
    let file = opened(&path);
    let extents = extents(&file);
    let mut tried = 0;
    for number in 0..(executions() / 1000).max(20) {
        let at = place(&mut random, &extents) as u64;
        let mut old = [0; 8];
        file.read_exact_at(&mut old, at).expect("read");
        let new = other(&mut random, u64::from_le_bytes(old));
        file.write_all_at(&new.to_le_bytes(), at).expect("write");
        let words: &[&str] = match number % 6 {
            0 => &["ls"],
            1 => &["inspect", "changed"],
            2 => &["inspect", "changed", "maps"],
            3 => &["inspect", "changed", "fds"],
            4 => &["inspect", "changed", "threads"],
            _ => &["inspect", "changed", "journal"],
        };
        let told = store.call(words[0], &words[1..]);
        let what = format!("{words:?} with {new:#x} at {at:#x}: {} {}", told.status, told.stderr);
        assert!(matches!(told.status, 0 | 125), "{what}");
        assert!(told.stderr.lines().count() <= 1 && !told.stderr.contains("panicked"), "{what}");
        tried += 1;
        file.write_all_at(&old, at).expect("write");
    }
    println!("commands on changed regions: {tried} tried");
    // Nothing of a table is shown that its checksum does not vouch for.
    for (at, words) in [(GLOBALS_OFFSET + 8, "maps"), (NODES_OFFSET + 72, "maps"), (NODES_OFFSET + 72, "threads")] {
        let mut old = [0];
        file.read_exact_at(&mut old, at).expect("read");
        file.write_all_at(&[old[0] ^ 0x40], at).expect("write");
        let told = store.call("inspect", &["changed", words]);
        assert_eq!((told.status, told.stderr.lines().count()), (125, 1), "{words}, {at:#x}: {}", told.stderr);
        assert!(told.stdout.is_empty() && told.stderr.contains("checksum"), "{words}, {at:#x}: {}", told.stderr);
        file.write_all_at(&old, at).expect("write");
    }
    // A resume looks at everything that the checksums cover, here the first byte of each part.
    for at in [0x18, GLOBALS_OFFSET + 8, NODES_OFFSET + 72, JOURNAL_OFFSET] {
        let mut old = [0];
        file.read_exact_at(&mut old, at).expect("read");
        file.write_all_at(&[old[0] ^ 0x40], at).expect("write");
        let refused = store.call("resume", &["changed"]);
        assert_eq!((refused.status, refused.stderr.lines().count()), (125, 1), "{at:#x}: {}", refused.stderr);
        file.write_all_at(&old, at).expect("write");
    }
    life.resume();
    assert_eq!(life.end().status, 0);
}

/// The plan of call sites is read again when the program executes another one: what has changed in it is not believed.
#[test]
fn a_changed_plan() {
    let store = Store::new();
    let script = "sleep 3; exec /bin/echo still here";
    let mut life = saved(&store, "planned", &Guest::installed("sh").args(["-c", script]));
    let file = opened(&store.region("planned").join(PLAN_FILE));
    let mut bytes = vec![0; file.metadata().expect("plan").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    let libraries = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    let sites = size_of::<PlanHeader>() + libraries * size_of::<LibraryPlan>();
    let sites = bytes[sites..].chunks_exact_mut(size_of::<Site>());
    assert!(sites.len() > 100, "the C library has sites");
    // Its bytes are still those of the file: only where it ends is wrong.
    sites.for_each(|site| site[offset_of!(Site, length)] = 5);
    file.write_all_at(&bytes, 0).expect("write");
    life.resume();
    let end = life.end();
    assert_eq!((end.status, String::from_utf8_lossy(&end.stdout).as_ref()), (0, "still here\n"), "{}", end.stderr);
}
