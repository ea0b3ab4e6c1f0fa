//! Checks a plan without using the code that made it: other parser, other way to find instructions and targets.
//!
//! Key functions: [`check_plan`], [`count_syscalls`]. Sections are decoded linearly from their start (the planner
//! never does that); what it sees as instructions is only used to contradict sites, not to find them.

use std::collections::{BTreeSet, HashMap};

use goblin::elf::Elf;
use goblin::elf::section_header::{SHF_EXECINSTR, SHT_NOBITS};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use zhuque_abi::sites::Site;
use zhuque_sites::Plan;

/// All instructions of the executable sections.
pub fn sweep(bytes: &[u8], elf: &Elf) -> Vec<Instruction> {
    let mut instructions = Vec::new();
    for section in &elf.section_headers {
        if section.sh_flags & u64::from(SHF_EXECINSTR) == 0 || section.sh_type == SHT_NOBITS {
            continue;
        }
        let Some(range) = section.file_range() else {
            continue;
        };
        let code = bytes.get(range).unwrap_or(&[]);
        let decoder = Decoder::with_ip(64, code, section.sh_addr, DecoderOptions::NONE);
        instructions.extend(decoder);
    }
    instructions
}

/// How many `syscall` instructions a linear sweep sees.
pub fn count_syscalls(bytes: &[u8]) -> usize {
    let elf = Elf::parse(bytes).expect("ELF");
    let all = sweep(bytes, &elf);
    all.iter().filter(|i| i.code() == Code::Syscall).count()
}

/// Everything that is wrong with the plan.
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
    let Ok(elf) = Elf::parse(bytes) else {
        return wrong;
    };
    let all = sweep(bytes, &elf);
    let targets = targets(&elf, &all);
    let starts: HashMap<u64, usize> =
        { all.iter().enumerate() }.map(|(index, instruction)| (instruction.ip(), index)).collect();
    for site in &plan.sites {
        let problem = check_surroundings(&elf, site, &all, &starts, &targets);
        wrong.extend(problem.map(|w| format!("{:#x}: {w}", site.file_offset)));
    }
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
    let call = start + before;
    let sets_rax = bytes[..call].ends_with(b"\x48\xc7\xc0\x0f\0\0\0");
    if sets_rax || bytes[..call].ends_with(b"\xb8\x0f\0\0\0") {
        return Some("signal return");
    }
    let mut place = 0;
    let mut seen = false;
    for instruction in Decoder::with_ip(64, run, 0x10_0000, DecoderOptions::NONE) {
        let is_call = instruction.code() == Code::Syscall;
        let fixed = instruction.flow_control() != FlowControl::Next
            || instruction.is_ip_rel_memory_operand()
            || instruction.mnemonic() == Mnemonic::Hlt
            || instruction.is_invalid();
        if is_call != (place == before) || (!is_call && fixed) {
            return Some("instructions that cannot be moved");
        }
        seen |= is_call;
        place += instruction.len();
    }
    (!seen || place != length).then_some("not whole instructions")
}

/// Every address that a branch, a symbol or an LEA names.
fn targets(elf: &Elf, all: &[Instruction]) -> BTreeSet<u64> {
    let mut targets = BTreeSet::new();
    for instruction in all {
        if instruction.near_branch_target() != 0 {
            targets.insert(instruction.near_branch_target());
        }
        if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
            targets.insert(instruction.ip_rel_memory_address());
        }
    }
    let symbols = elf.syms.iter().chain(elf.dynsyms.iter());
    targets.extend(symbols.map(|symbol| symbol.st_value));
    let relocations = elf.dynrelas.iter();
    targets.extend(relocations.filter_map(|r| r.r_addend.map(|addend| addend as u64)));
    targets
}

/// What the code around the run tells.
fn check_surroundings(
    elf: &Elf,
    site: &Site,
    all: &[Instruction],
    starts: &HashMap<u64, usize>,
    targets: &BTreeSet<u64>,
) -> Option<String> {
    let segment = elf.program_headers.iter().find(|s| {
        s.p_type == 1
            && site.file_offset >= s.p_offset
            && site.file_offset + u64::from(site.length) <= s.p_offset + s.p_filesz
            && s.is_executable()
    });
    let Some(segment) = segment else {
        return Some("not in one executable segment".into());
    };
    let start = site.file_offset - segment.p_offset + segment.p_vaddr;
    let end = start + u64::from(site.length);
    if let Some(target) = targets.range(start + 1..end).next() {
        return Some(format!("{target:#x} is a target"));
    }
    let mut index = *starts.get(&(start + u64::from(site.before)))? + 1;
    // The first instruction behind the call that has to do with flags must write them all or leave.
    let status = 0x3f;
    let mut alive = status;
    for _ in 0..200 {
        let instruction = all.get(index)?;
        if instruction.code() == Code::Syscall {
            index += 1;
            continue;
        }
        if instruction.rflags_read() & alive != 0 {
            return Some(format!("flags are read at {:#x}", instruction.ip()));
        }
        alive &= !instruction.rflags_modified();
        let flow = instruction.flow_control();
        if alive == 0 || flow != FlowControl::Next {
            let harmless = alive == 0 || flow != FlowControl::ConditionalBranch;
            return (!harmless).then(|| format!("flags at {:#x}", instruction.ip()));
        }
        index += 1;
    }
    Some("flags are never written".into())
}
