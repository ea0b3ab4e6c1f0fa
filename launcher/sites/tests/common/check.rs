//! Checks a plan without using the code that made it: other parser, other way to find instructions and targets.
//!
//! Key functions: [`check_plan`] (everything that is wrong), [`count_syscalls`], [`left`] (why the rest stays). The
//! plan's own bytes first, then what the file says (`evidence`), then the rewritten text (`rewrite`). What is seen
//! here as instructions is only used to contradict sites, not to find them.

use std::collections::BTreeMap;

use iced_x86::{Code, FlowControl, Mnemonic};
use zhuque_abi::sites::Site;
use zhuque_sites::Plan;

use super::evidence::Evidence;
use super::rewrite::Rewritten;
use super::view::{View, branch};

/// `mov $15,%rax` and `mov $15,%eax` in front of a `syscall` make the trampoline that signal handlers return to.
const SIGNAL_RETURNS: [&[u8]; 2] = [b"\x48\xc7\xc0\x0f\0\0\0", b"\xb8\x0f\0\0\0"];
/// As far as a linear decode from a function's start is tried.
const LONGEST_FUNCTION: u64 = 1 << 20;

/// How many `syscall` instructions a linear sweep sees.
pub fn count_syscalls(bytes: &[u8]) -> usize {
    let view = View::parse(bytes).expect("ELF");
    let mut count = 0;
    view.sweep(|instruction| count += usize::from(instruction.code() == Code::Syscall));
    count
}

/// Everything that is wrong with the plan, or with what the guest makes of it.
pub fn check_plan(bytes: &[u8], plan: &Plan) -> Vec<String> {
    let mut wrong = Vec::new();
    if plan.library.count as usize != plan.sites.len() || plan.library.size != bytes.len() as u64 {
        wrong.push("library record does not fit".into());
    }
    let mut floor = 0;
    for site in &plan.sites {
        if site.file_offset < floor {
            wrong.push(format!("{:#x}: overlaps or out of order", site.file_offset));
        }
        floor = site.file_offset + u64::from(site.length);
        wrong.extend(check_bytes(bytes, site).map(|w| format!("{:#x}: {w}", site.file_offset)));
    }
    if plan.sites.is_empty() || !wrong.is_empty() {
        return wrong;
    }
    let Some(view) = View::parse(bytes) else {
        return vec!["a file with sites that cannot be parsed".into()];
    };
    let runs = plan.sites.iter().map(|site| {
        let start = view.address(site.file_offset)?;
        let end = start + u64::from(site.length);
        view.address(site.file_offset + u64::from(site.length) - 1).filter(|last| last + 1 == end).map(|_| (start, end))
    });
    let Some(runs) = runs.collect::<Option<Vec<(u64, u64)>>>() else {
        return vec!["a site that is not in one executable segment".into()];
    };
    if !runs.is_sorted() {
        return vec!["segments out of order".into()];
    }
    let evidence = Evidence::collect(&view, &runs);
    for (site, run) in plan.sites.iter().zip(&runs) {
        let problem = check_surroundings(&view, site, *run, &evidence);
        wrong.extend(problem.map(|w| format!("{:#x}: {w}", site.file_offset)));
    }
    wrong.extend(check_rewriting(&view, &plan.sites));
    wrong
}

/// What the bytes of the run alone tell.
fn check_bytes(bytes: &[u8], site: &Site) -> Option<&'static str> {
    let (before, length) = (usize::from(site.before), usize::from(site.length));
    let start = site.file_offset as usize;
    if !(5..=32).contains(&length) || before + 2 > length || site.reserved != [0; 6] {
        return Some("impossible lengths");
    }
    let run = &site.original[..length];
    if bytes.get(start..start + length) != Some(run) {
        return Some("not the bytes of the file");
    }
    if site.original[length..].iter().any(|&byte| byte != 0) {
        return Some("not zero padded");
    }
    if run[before..before + 2] != [0x0f, 0x05] {
        return Some("no syscall where it says");
    }
    let call = start + before;
    SIGNAL_RETURNS.iter().any(|sets| bytes[..call].ends_with(sets)).then_some("signal return")
}

/// What the code around the run tells, and what may enter it.
fn check_surroundings(view: &View, site: &Site, run: (u64, u64), evidence: &Evidence) -> Option<String> {
    let (start, end) = run;
    let call = start + u64::from(site.before);
    let mut borders = Vec::new();
    let mut place = start;
    while place < end {
        let Some(instruction) = view.instruction(place) else { return Some(format!("nothing decodes at {place:#x}")) };
        let is_call = instruction.code() == Code::Syscall;
        let fixed = instruction.flow_control() != FlowControl::Next
            || instruction.is_ip_rel_memory_operand()
            || matches!(instruction.mnemonic(), Mnemonic::Hlt | Mnemonic::Endbr64 | Mnemonic::Int3);
        if is_call != (place == call) || (!is_call && fixed) {
            return Some(format!("{:?} at {place:#x} cannot be moved", instruction.code()));
        }
        borders.push(place);
        place = instruction.next_ip();
    }
    if place != end {
        return Some("not whole instructions".into());
    }
    if let Some((target, who)) = evidence.entered.range(start + 1..end).next() {
        return Some(format!("{target:#x} is entered by {who}"));
    }
    if let Some(target) = evidence.perhaps_entered.range(start + 1..end).find(|target| borders.contains(target)) {
        return Some(format!("{target:#x} is in a table of jumps"));
    }
    let overlaps = |read: &&(u64, u64)| read.0 < end && start < read.0 + read.1.max(1);
    if let Some(read) = evidence.read.iter().find(overlaps) {
        return Some(format!("{:#x} is read as data", read.0));
    }
    if let Some(odd) = (start + 1..end).find(|place| evidence.reached.contains(place) && !borders.contains(place)) {
        return Some(format!("an instruction begins at {odd:#x}"));
    }
    if !evidence.reached.contains(&start) && !in_line(view, start, evidence) {
        return Some("no way leads there from the start of a function".into());
    }
    let home = evidence.frames.iter().find(|frame| frame.start <= start && start < frame.end);
    if home.is_some_and(|frame| frame.pads.is_none()) {
        return Some("nobody knows the function's landing pads".into());
    }
    reads_flags(view, call + 2).or_else(|| label_table(view, run, &borders, home.map(|frame| (frame.start, frame.end))))
}

/// Whether instructions follow each other without gap from the start of the frame that holds `address` to it. (Code
/// behind a jump by table is reached in no other way.)
fn in_line(view: &View, address: u64, evidence: &Evidence) -> bool {
    let frame = evidence.frames.iter().find(|frame| frame.start <= address && address < frame.end);
    let Some(mut place) = frame.map(|frame| frame.start).filter(|start| address - start < LONGEST_FUNCTION) else {
        return false;
    };
    while place < address {
        let Some(instruction) = view.instruction(place) else { return false };
        place = instruction.next_ip();
    }
    place == address
}

/// Whether somebody behind `address` reads a status flag that nobody has written since: on the straight way, where
/// each fork, call and return must find the flags written or be one that no compiler carries them over.
fn reads_flags(view: &View, address: u64) -> Option<String> {
    const STATUS: u32 = 0x3f;
    let mut alive = STATUS;
    let mut place = address;
    for _ in 0..200 {
        let instruction = view.instruction(place)?;
        place = instruction.next_ip();
        if instruction.code() == Code::Syscall {
            continue;
        }
        if instruction.rflags_read() & alive != 0 {
            return Some(format!("flags are read at {:#x}", instruction.ip()));
        }
        alive &= !instruction.rflags_modified();
        match instruction.flow_control() {
            _ if alive == 0 => return None,
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch => place = branch(&instruction)?,
            FlowControl::ConditionalBranch => return Some(format!("flags at {:#x}", instruction.ip())),
            _ => return None,
        }
    }
    Some("flags are never written".into())
}

/// Distances from a label of the same function (`&&a - &&b` of GNU C): a function that jumps indirectly, a label
/// and a table whose addresses it takes.
fn label_table(view: &View, run: (u64, u64), borders: &[u64], home: Option<(u64, u64)>) -> Option<String> {
    let (mut place, end) = home?;
    let (mut labels, mut tables, mut jumps) = (Vec::new(), Vec::new(), false);
    while place < end {
        let instruction = view.instruction(place)?;
        jumps |= instruction.flow_control() == FlowControl::IndirectBranch;
        if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
            let address = instruction.ip_rel_memory_address();
            let own = home.is_some_and(|(start, end)| (start..end).contains(&address));
            if own { labels.push(address) } else { tables.push(address) }
        }
        place = instruction.next_ip();
    }
    if !jumps {
        return None;
    }
    let pairs = labels.iter().flat_map(|label| tables.iter().map(move |table| (*label, *table)));
    for (label, table) in pairs {
        let entries = view.at(table).chunks_exact(4).map(|e| i32::from_le_bytes([e[0], e[1], e[2], e[3]]));
        let targets = entries.map(|distance| label.wrapping_add_signed(i64::from(distance)));
        let mut targets = targets.take_while(|target| home.is_some_and(|(start, end)| (start..end).contains(target)));
        if let Some(target) = targets.find(|target| *target > run.0 && borders.contains(target)) {
            return Some(format!("{target:#x} is in a table of distances from a label"));
        }
    }
    None
}

/// What the guest makes of the plan, wherever it finds room for the trampolines.
fn check_rewriting(view: &View, sites: &[Site]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (segment, text) in view.text() {
        let end = segment.p_offset + text.len() as u64;
        let here: Vec<Site> = { sites.iter() }
            .filter(|site| site.file_offset >= segment.p_offset && site.file_offset < end)
            .copied()
            .collect();
        if here.is_empty() {
            continue;
        }
        for place in Rewritten::places(text, segment.p_vaddr, here.len()) {
            let rewritten = Rewritten::apply(text, segment.p_offset, segment.p_vaddr, &here, place);
            wrong.extend(rewritten.wrong(&here));
        }
    }
    wrong
}

/// The `syscall` instructions that a linear sweep sees and the plan leaves to the net, by reason.
pub fn left(bytes: &[u8], plan: &Plan) -> BTreeMap<&'static str, usize> {
    let mut reasons = BTreeMap::new();
    let Some(view) = View::parse(bytes) else { return reasons };
    let planned: Vec<u64> =
        { plan.sites.iter() }.filter_map(|site| view.address(site.file_offset + u64::from(site.before))).collect();
    let mut calls = Vec::new();
    view.sweep(|instruction| {
        if instruction.code() == Code::Syscall && planned.binary_search(&instruction.ip()).is_err() {
            calls.push(instruction.ip());
        }
    });
    if calls.is_empty() {
        return reasons;
    }
    let frames = super::frames::frames(&view);
    let symbols = view.elf.syms.iter().chain(view.elf.dynsyms.iter());
    let symbols: Vec<(u64, u64)> =
        symbols.filter(|s| s.is_function()).map(|s| (s.st_value, s.st_value.saturating_add(s.st_size))).collect();
    for call in calls {
        let text = view.text().find(|(s, b)| call >= s.p_vaddr && call - s.p_vaddr < b.len() as u64);
        let before = text.map_or(&[][..], |(s, bytes)| &bytes[..(call - s.p_vaddr) as usize]);
        let known =
            frames.iter().any(|f| f.start <= call && call < f.end) || symbols.iter().any(|s| s.0 <= call && call < s.1);
        let reason = match () {
            () if SIGNAL_RETURNS.iter().any(|sets| before.ends_with(sets)) => "signal return",
            () if !known => "in no function that a table describes",
            () if reads_flags(&view, call + 2).is_some() => "flags may be read behind it",
            () => "no room: its neighbours are targets, or cannot be moved",
        };
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}
