//! Every program and library of this machine: planned, rewritten in memory as the guest does it, and checked.
//!
//! By default as many files as a bounded time allows, the C library first; `ZHUQUE_FILES=all` takes every file below
//! /usr/lib and /usr/bin. What the checker is worth is shown first: plans and results that are wrong on purpose.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use common::check::{check_plan, count_syscalls, left};
use common::elf::{Builder, CODE, DATA};
use common::rewrite::Rewritten;
use common::view::View;
use common::{LIBC, LOADER, Scratch, installed, present};
use zhuque_abi::sites::Site;
use zhuque_sites::{Plan, plan_file};

/// How long files are taken by default.
const BUDGET: Duration = Duration::from_secs(30);
/// By default, files of this size are left out.
const LARGEST: u64 = 24 << 20;

/// What was met.
#[derive(Default)]
struct Counts {
    files: usize,
    refused: BTreeMap<String, usize>,
    with_sites: usize,
    sites: usize,
    unplanned: usize,
    swept: usize,
    left: BTreeMap<&'static str, usize>,
}

impl Counts {
    /// Plans and checks one file; everything that is wrong with it.
    fn take(&mut self, path: &Path) -> Vec<String> {
        let plan = match plan_file(path) {
            Ok(plan) => plan,
            Err(error) => {
                let text = error.to_string();
                let why = text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_owned();
                *self.refused.entry(why).or_default() += 1;
                return Vec::new();
            }
        };
        self.files += 1;
        self.sites += plan.sites.len();
        self.unplanned += plan.unplanned;
        self.with_sites += usize::from(!plan.sites.is_empty());
        let bytes = std::fs::read(path).expect("readable a moment ago");
        if plan.sites.is_empty() && !bytes.windows(2).any(|pair| pair == b"\x0f\x05") {
            return Vec::new();
        }
        self.swept += count_syscalls(&bytes);
        for (reason, count) in left(&bytes, &plan) {
            *self.left.entry(reason).or_default() += count;
        }
        { check_plan(&bytes, &plan) }.into_iter().map(|what| format!("{}: {what}", path.display())).collect()
    }
}

#[test]
fn everything_installed() {
    let all = std::env::var("ZHUQUE_FILES").is_ok_and(|files| files == "all");
    let mut files = installed(&["/usr/lib", "/usr/bin"]);
    let found = files.len();
    files.retain(|path| all || path.metadata().is_ok_and(|stat| stat.len() <= LARGEST));
    let name = |path: &Path| path.file_name().map(std::ffi::OsStr::to_owned);
    files.sort_by_key(|path| ![LIBC, LOADER].iter().any(|first| name(path) == name(Path::new(first))));
    let (mut counts, mut wrong) = (Counts::default(), Vec::new());
    let begin = Instant::now();
    let mut taken = 0;
    for path in &files {
        if !all && begin.elapsed() > BUDGET {
            break;
        }
        taken += 1;
        wrong.extend(counts.take(path));
    }
    eprintln!(
        "{taken} of {found} ELF files in {:.0?}: {} planned, {} of them with sites; {} syscall instructions seen by a sweep",
        begin.elapsed(),
        counts.files,
        counts.with_sites,
        counts.swept
    );
    eprintln!("{} sites rewritten and checked, {} seen and left by the planner", counts.sites, counts.unplanned);
    counts.left.iter().for_each(|(reason, count)| eprintln!("  left to the net: {count:6}  {reason}"));
    counts.refused.iter().for_each(|(reason, count)| eprintln!("  refused: {count:6}  {reason}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(counts.files > 0);
    assert!(!present(LIBC) || counts.sites > 0);
}

/// `mov $39,%eax; syscall; cmp $-4095,%rax; jae +1; push %rbp; ret; nop`, and the same again: two sites.
const CODE_BYTES: &[u8] = b"\xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\x73\x01\x55\xc3\x90\
    \xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\x73\x01\x55\xc3\x90";
const SECOND: u64 = 18;

/// Code with two sites, room for more behind it, and its plan.
fn victim() -> (Builder, Plan) {
    let mut builder = Builder::function(CODE_BYTES);
    builder.frames = vec![(0, SECOND, None), (SECOND, 2 * SECOND, None)];
    builder.code.extend([0x90; 64]);
    let plan = plan_of(&builder);
    let runs: Vec<(u64, u8, u8)> = plan.sites.iter().map(|s| (s.file_offset - CODE, s.before, s.length)).collect();
    assert_eq!(runs, [(5, 0, 8), (SECOND + 5, 0, 8)]);
    assert_eq!(check_plan(&builder.build(), &plan), Vec::<String>::new());
    (builder, plan)
}

fn plan_of(builder: &Builder) -> Plan {
    let scratch = Scratch::new();
    plan_file(&scratch.file("victim", &builder.build())).expect("plan")
}

/// The checker must object to this plan of these bytes.
fn refuted(bytes: &[u8], plan: &Plan, what: &str) {
    assert!(!check_plan(bytes, plan).is_empty(), "{what} went unnoticed");
}

/// A site of the same file at another place: `original` is what lies there.
fn moved(bytes: &[u8], site: &Site, start: i64, before: i16, length: i16) -> Site {
    let file_offset = site.file_offset.wrapping_add_signed(start);
    let length = site.length.wrapping_add_signed(length as i8);
    let mut original = [0; 32];
    let run = &bytes[file_offset as usize..file_offset as usize + usize::from(length)];
    original[..run.len()].copy_from_slice(run);
    Site { file_offset, before: site.before.wrapping_add_signed(before as i8), length, original, ..*site }
}

#[test]
fn shifted_and_overlapping_sites_are_noticed() {
    let (builder, plan) = victim();
    let bytes = builder.build();
    let with = |sites: Vec<Site>| {
        let library = zhuque_abi::sites::LibraryPlan { count: sites.len() as u32, ..plan.library };
        Plan { library, sites, unplanned: 0 }
    };
    let [first, second] = plan.sites[..] else { panic!("two sites") };
    // A byte later or earlier; into the instruction before; over the end of the one behind, and not up to it.
    for (start, before, length) in [(1, 0, 0), (-1, 0, 0), (-1, 1, 1), (-2, 2, 2), (0, 0, 1), (0, 0, -1), (0, 1, 0)] {
        let site = moved(&bytes, &first, start, before, length);
        refuted(&bytes, &with(vec![site, second]), &format!("a site moved by {start}, {before}, {length}"));
    }
    // Over the branch behind it.
    refuted(&bytes, &with(vec![moved(&bytes, &first, 0, 0, 2), second]), "a displaced branch");
    refuted(&bytes, &with(vec![second, first]), "a wrong order");
    refuted(&bytes, &with(vec![first, first, second]), "a site twice");
    // Both runs are sound, but share bytes: the backward run of the second reaches into the first.
    let joined = Builder::function(b"\xb8\x27\0\0\0\x0f\x05\x0f\x1f\0\x0f\x05\x0f\x1f\0\x31\xc0\xc3");
    let (bytes, plan) = (joined.build(), plan_of(&joined));
    assert_eq!(plan.sites.len(), 2);
    let overlapping = moved(&bytes, &plan.sites[1], -3, 3, 0);
    assert_eq!(overlapping.original[3..5], [0x0f, 0x05]);
    let sites = vec![plan.sites[0], overlapping];
    refuted(&bytes, &Plan { sites, ..plan }, "an overlapping site");
    // What is planned for the file must be the file's.
    let mut other = builder.build();
    other[(CODE + 8) as usize] ^= 1;
    refuted(&other, &with(vec![first, second]), "another instruction");
}

/// Files with the code of `builder`, in which more code enters the inside of the first run.
fn entered_by_code(builder: &Builder) -> Vec<(&'static str, Builder)> {
    let code = |place: usize, bytes: &[u8]| {
        let mut code = builder.code.clone();
        code[place..place + bytes.len()].copy_from_slice(bytes);
        Builder { code, frames: builder.frames.clone(), ..Builder::default() }
    };
    let far = |opcode: &[u8]| {
        let next = 40 + opcode.len() as i32 + 4;
        code(40, &[opcode, &(7 - next).to_le_bytes()].concat())
    };
    let lea = [b"\x48\x8d\x15".as_slice(), &((DATA - CODE - 47) as u32).to_le_bytes(), b"\xff\xe0"].concat();
    let mut table = code(40, &lea);
    table.frames = vec![(0, 49, None)];
    table.data = vec![(DATA, (CODE as i32 + 7 - DATA as i32).to_le_bytes().to_vec())];
    vec![
        ("a short jump", code(40, b"\xeb\xdd")),
        ("a loop", code(40, b"\xe2\xdd")),
        ("a jump", far(b"\xe9")),
        ("a call", far(b"\xe8")),
        ("a conditional jump", far(b"\x0f\x84")),
        ("a lea", far(b"\x48\x8d\x05")),
        ("a read", far(b"\x48\x8b\x05")),
        ("a jump from the next function", code(31, b"\x73\xe6")),
        ("a switch table", table),
        ("flags that are read", code(7, b"\x48\x89\xc2\x90\x90\x90")),
    ]
}

/// The same by what the file says of its code.
fn entered_by_tables(builder: &Builder) -> Vec<(&'static str, Builder)> {
    let inside = CODE + 7;
    let with = |change: &dyn Fn(&mut Builder)| {
        let mut changed = Builder { code: builder.code.clone(), frames: builder.frames.clone(), ..Builder::default() };
        change(&mut changed);
        changed
    };
    let pads = |table: &[u8]| {
        with(&|b| {
            b.frames[0].2 = Some(DATA);
            b.data = vec![(DATA, table.to_vec())];
        })
    };
    let relocation = [DATA + 64, 8, inside].map(u64::to_le_bytes).concat();
    let relative = [DATA + 64, 1].map(u64::to_le_bytes).concat();
    let address = inside.to_le_bytes().to_vec();
    let relocated = with(&|b| {
        b.data = vec![(DATA, relocation.clone())];
        b.dynamic = vec![(7, DATA), (8, 24), (9, 24)];
    });
    let compact = with(&|b| {
        b.data = vec![(DATA, relative.clone()), (DATA + 64, address.clone())];
        b.dynamic = vec![(36, DATA), (35, 8)];
    });
    let fixed = with(&|b| {
        b.fixed = true;
        b.data = vec![(DATA + 8, address.clone())];
    });
    vec![
        ("a symbol", with(&|b| b.symbols = vec![(7, 0)])),
        ("a function", with(&|b| b.frames.insert(1, (7, 18, None)))),
        ("the end of a function", with(&|b| b.frames[0].1 = 7)),
        ("DT_INIT", with(&|b| b.dynamic = vec![(12, inside)])),
        ("a landing pad", pads(b"\xff\xff\x01\x04\x00\x02\x07\x00")),
        ("unreadable landing pads", pads(b"\xff\xff\x0e\x04\x00\x02\x07\x00")),
        ("a relocation", relocated),
        ("a compact relocation", compact),
        ("a pointer in a fixed program", fixed),
    ]
}

/// The plan of a file, compared with the same file in which somebody enters the inside of a run.
#[test]
fn planted_targets_are_noticed() {
    let (builder, plan) = victim();
    let cases = [entered_by_code(&builder), entered_by_tables(&builder)].concat();
    for (what, changed) in cases {
        let bytes = changed.build();
        let sites = plan.sites.iter().map(|site| moved(&bytes, site, 0, 0, 0)).collect();
        refuted(&bytes, &Plan { sites, ..plan.clone() }, what);
        if what == "a read" {
            // The planner does not look for these; only the files of this machine say that they do not happen.
            continue;
        }
        // The planner sees it, too.
        let again = plan_of(&changed);
        assert!(!again.sites.contains(&plan.sites[0]), "{what} is not seen by the planner");
        assert_eq!(check_plan(&bytes, &again), Vec::<String>::new(), "{what}");
    }
}

/// Whatever bit of the result is wrong: in the text, in a trampoline, in the site's entry.
#[test]
fn wrong_results_are_noticed() {
    let (builder, plan) = victim();
    let bytes = builder.build();
    let view = View::parse(&bytes).expect("ELF");
    let (segment, text) = view.text().next().expect("text");
    let place = Rewritten::places(text, segment.p_vaddr, plan.sites.len())[0];
    let right = Rewritten::apply(text, segment.p_offset, segment.p_vaddr, &plan.sites, place);
    assert_eq!(right.wrong(&plan.sites), Vec::<String>::new());
    // Between the gate's address and the first trampoline lies nothing.
    for (byte, bit) in (0..8).chain(64..right.window.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let mut changed = right.clone();
        changed.window[byte] ^= 1 << bit;
        assert!(!changed.wrong(&plan.sites).is_empty(), "bit {bit} of byte {byte} of the trampolines");
    }
    for (byte, bit) in (0..100).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let mut changed = right.clone();
        changed.after[byte] ^= 1 << bit;
        assert!(!changed.wrong(&plan.sites).is_empty(), "bit {bit} of byte {byte} of the text");
    }
    for change in 0..6 {
        let mut changed = right.clone();
        let entry = &mut changed.table[1];
        match change {
            0 => entry.address += 1,
            1 => entry.trampoline += 64,
            2 => entry.before += 1,
            3 => entry.length -= 1,
            4 => entry.resume += 1,
            _ => entry.original[0] ^= 1,
        }
        assert!(!changed.wrong(&plan.sites).is_empty(), "change {change} of an entry");
    }
    let mut changed = right.clone();
    changed.table.pop();
    assert!(!changed.wrong(&plan.sites).is_empty(), "a site that was not rewritten");
    let mut elsewhere = right.clone();
    elsewhere.place += 4096;
    assert!(!elsewhere.wrong(&plan.sites).is_empty(), "pages mapped elsewhere");
}

/// On the real thing: each site of the C library one instruction's part longer, or with its neighbour entered.
#[test]
fn changed_plans_of_the_c_library_are_noticed() {
    if !present(LIBC) {
        return;
    }
    let bytes = std::fs::read(LIBC).expect("read");
    let plan = plan_file(LIBC.as_ref()).expect("plan");
    let view = View::parse(&bytes).expect("ELF");
    let mut tried = 0;
    let mut changed = plan.clone();
    let mut expected = Vec::new();
    for site in &mut changed.sites {
        let end = view.address(site.file_offset + u64::from(site.length)).expect("text");
        let next = view.instruction(end).map_or(1, |instruction| instruction.len());
        if site.length < 32 && next > 1 {
            *site = moved(&bytes, site, 0, 0, 1);
            expected.push(format!("{:#x}: ", site.file_offset));
            tried += 1;
        }
    }
    let wrong = check_plan(&bytes, &changed);
    for place in &expected {
        assert!(wrong.iter().any(|what| what.starts_with(place)), "{place} went unnoticed");
    }
    assert!(tried * 2 > plan.sites.len(), "{tried} of {}", plan.sites.len());
}
