//! What a file says about places inside the runs of a plan: who may jump there, who reads there, where instructions
//! begin.
//!
//! Key type: [`Evidence`]. Nothing of it comes from the planner: linear sweep and descent from function starts
//! instead of decoded ranges, an own reader of unwind tables (`frames`), symbols and relocations as goblin reads them.
//! Only what lies in a run is kept. Neighbour: `check`, which judges.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use goblin::elf::dynamic::{DT_FINI, DT_INIT};
use goblin::elf::header::ET_EXEC;
use iced_x86::{FlowControl, Mnemonic, OpKind};

use super::frames::{Frame, frames};
use super::view::{View, branch};

const SHT_RELR: u32 = 19;
/// More entries than any switch has.
const LONGEST_TABLE: u64 = 1 << 16;

/// The collected facts.
pub struct Evidence {
    /// Addresses inside of a run (not its first byte) that something may enter, with who says so.
    pub entered: BTreeMap<u64, &'static str>,
    /// Every entry of something that could be a table of jumps; counts only at the start of an instruction.
    pub perhaps_entered: BTreeSet<u64>,
    /// Addresses in a run, or close before it, at which data is read, with the number of bytes.
    pub read: Vec<(u64, u64)>,
    /// Where instructions begin, by descent from the starts of functions.
    pub reached: HashSet<u64>,
    /// The frames of the unwind tables, and functions that only a symbol describes (musl has no such tables).
    pub frames: Vec<Frame>,
    runs: Vec<(u64, u64)>,
}

/// What the sweep notes besides.
#[derive(Default)]
struct Seen {
    /// Each LEA: where it is, and what it names.
    leas: Vec<(u64, u64)>,
    /// Indirect jumps.
    jumps: Vec<u64>,
    /// Functions that jump to each other, both ways.
    parts: HashSet<(Option<u64>, Option<u64>)>,
}

impl Evidence {
    /// Collects what concerns `runs`: sorted ranges of addresses.
    pub fn collect(view: &View, runs: &[(u64, u64)]) -> Evidence {
        let mut evidence = Evidence {
            entered: BTreeMap::new(),
            perhaps_entered: BTreeSet::new(),
            read: Vec::new(),
            reached: HashSet::new(),
            frames: frames(view),
            runs: runs.to_vec(),
        };
        evidence.frames.sort_by_key(|frame| frame.start);
        evidence.symbols(view);
        let seen = evidence.sweep(view);
        evidence.tables(view, &seen);
        let mut starts = evidence.starts(view);
        evidence.stored(view, &mut starts);
        for &start in &starts {
            evidence.enter(start, "the start of a function, or a stored address");
        }
        evidence.descend(view, starts);
        evidence
    }

    /// Adds the functions that a symbol with a size describes and no frame touches.
    fn symbols(&mut self, view: &View) {
        let symbols = view.elf.syms.iter().chain(view.elf.dynsyms.iter());
        let sized = symbols.filter(|s| s.is_function() && s.st_shndx != 0 && s.st_size != 0);
        let mut ranges: Vec<(u64, u64)> = sized.map(|s| (s.st_value, s.st_value.saturating_add(s.st_size))).collect();
        // Of several names of one place the longest, and none within another.
        ranges.sort_by_key(|&(start, end)| (start, std::cmp::Reverse(end)));
        let mut free = 0;
        for (start, end) in ranges {
            let next = self.frames.partition_point(|frame| frame.end <= start);
            if start >= free && self.frames.get(next).is_none_or(|frame| frame.start >= end) {
                self.frames.insert(next, Frame { start, end, pads: Some(Vec::new()) });
                free = end;
            }
        }
    }

    /// The run that holds an address.
    fn run(&self, address: u64) -> Option<(u64, u64)> {
        let next = self.runs.partition_point(|run| run.1 <= address);
        self.runs.get(next).copied().filter(|run| run.0 <= address)
    }

    /// The start of the frame that holds an address.
    fn home(&self, address: u64) -> Option<u64> {
        let next = self.frames.partition_point(|frame| frame.start <= address);
        let frame = self.frames.get(next.checked_sub(1)?)?;
        (address < frame.end).then_some(frame.start)
    }

    fn enter(&mut self, address: u64, who: &'static str) {
        if self.run(address).is_some_and(|run| run.0 < address) {
            self.entered.entry(address).or_insert(who);
        }
    }

    /// Branches, addresses and memory operands of everything a linear sweep takes for an instruction.
    fn sweep(&mut self, view: &View) -> Seen {
        let mut seen = Seen::default();
        let fixed = view.elf.header.e_type == ET_EXEC;
        view.sweep(|instruction| {
            if let Some(target) = branch(instruction) {
                self.enter(target, "a branch");
                let (from, to) = (self.home(instruction.ip()), self.home(target));
                if from != to && instruction.flow_control() != FlowControl::Call {
                    seen.parts.extend([(from, to), (to, from)]);
                }
            }
            if instruction.flow_control() == FlowControl::IndirectBranch {
                seen.jumps.push(instruction.ip());
            }
            if instruction.is_ip_rel_memory_operand() {
                let address = instruction.ip_rel_memory_address();
                if instruction.mnemonic() == Mnemonic::Lea {
                    seen.leas.push((instruction.ip(), address));
                    self.enter(address, "a lea");
                } else {
                    let bytes = instruction.memory_size().size() as u64;
                    let touched = [address, address.wrapping_add(bytes.max(1) - 1)];
                    if touched.iter().any(|&byte| self.run(byte).is_some()) {
                        self.read.push((address, bytes));
                    }
                }
            }
            if fixed {
                let kinds = (0..instruction.op_count()).map(|n| (n, instruction.op_kind(n)));
                let immediates = kinds.filter(|(_, kind)| {
                    matches!(kind, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64)
                });
                immediates.for_each(|(n, _)| self.enter(instruction.immediate(n), "an immediate"));
            }
        });
        seen
    }

    /// Distances of 32 bits stored in data, from a place whose address is taken by a function that jumps indirectly, to
    /// a place in that function or in a part of it elsewhere (one that is jumped to or from). It does not matter where
    /// entries stop making sense; the table ends where the next place but one begins.
    fn tables(&mut self, view: &View, seen: &Seen) {
        let jumping: HashSet<Option<u64>> = seen.jumps.iter().map(|&place| self.home(place)).collect();
        let mut users: BTreeMap<u64, Vec<Option<u64>>> = BTreeMap::new();
        for &(lea, address) in &seen.leas {
            let user = self.home(lea);
            if jumping.contains(&user) && !view.is_code(address) {
                users.entry(address).or_default().push(user);
            }
        }
        let places: Vec<u64> = users.keys().copied().collect();
        for (index, &place) in places.iter().enumerate() {
            let end = places.get(index + 2).map_or(u64::MAX, |&next| next - place).min(4 * LONGEST_TABLE);
            let bytes = view.at(place);
            let bytes = &bytes[..bytes.len().min(end as usize)];
            for entry in bytes.chunks_exact(4) {
                let distance = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
                let target = place.wrapping_add_signed(i64::from(distance));
                if self.run(target).is_none_or(|run| run.0 == target) {
                    continue;
                }
                let home = self.home(target);
                let part = |user: &Option<u64>| *user == home || seen.parts.contains(&(*user, home));
                if users[&place].iter().any(part) {
                    self.perhaps_entered.insert(target);
                }
            }
        }
    }

    /// Where functions start, for all anybody knows.
    fn starts(&mut self, view: &View) -> Vec<u64> {
        let mut starts = vec![view.elf.header.e_entry];
        let symbols = view.elf.syms.iter().chain(view.elf.dynsyms.iter());
        starts.extend(symbols.filter(|symbol| symbol.st_shndx != 0).map(|symbol| symbol.st_value));
        let frames = std::mem::take(&mut self.frames);
        for frame in &frames {
            starts.push(frame.start);
            starts.extend(frame.pads.iter().flatten());
            self.enter(frame.end, "the end of a function");
        }
        self.frames = frames;
        starts
    }

    /// Addresses that the file stores: relocations of all kinds, pointers in data.
    fn stored(&mut self, view: &View, starts: &mut Vec<u64>) {
        let elf = &view.elf;
        let dynamic = elf.dynamic.iter().flat_map(|dynamic| &dynamic.dyns);
        starts.extend(dynamic.filter(|d| d.d_tag == DT_INIT || d.d_tag == DT_FINI).map(|d| d.d_val));
        let sections = elf.shdr_relocs.iter().flat_map(|(_, relocations)| relocations.iter());
        let all = elf.dynrelas.iter().chain(elf.pltrelocs.iter()).chain(sections);
        for relocation in all {
            let symbol = elf.dynsyms.get(relocation.r_sym).map_or(0, |symbol| symbol.st_value);
            let addend = relocation.r_addend.unwrap_or(0);
            starts.extend([addend as u64, symbol.wrapping_add_signed(addend)]);
        }
        // Position-independent files keep addresses where a compact relocation says; others anywhere.
        let compact = elf.section_headers.iter().any(|s| s.sh_type == SHT_RELR)
            || elf.dynamic.iter().flat_map(|dynamic| &dynamic.dyns).any(|d| d.d_tag == 36);
        if !compact && elf.header.e_type != ET_EXEC {
            return;
        }
        for (segment, bytes) in view.loads().filter(|(s, _)| !s.is_executable()) {
            let skew = (segment.p_vaddr.wrapping_neg() & 7) as usize;
            for word in bytes.get(skew..).unwrap_or(&[]).chunks_exact(8) {
                let mut raw = [0; 8];
                raw.copy_from_slice(word);
                let address = u64::from_le_bytes(raw);
                if self.run(address).is_some() {
                    starts.push(address);
                }
            }
        }
    }

    /// Follows the flow of control from every start.
    fn descend(&mut self, view: &View, starts: Vec<u64>) {
        let mut open = starts;
        while let Some(mut address) = open.pop() {
            while view.is_code(address) && self.reached.insert(address) {
                let Some(instruction) = view.instruction(address) else { break };
                if let Some(target) = branch(&instruction) {
                    open.push(target);
                    self.enter(target, "a branch");
                }
                let stops = matches!(instruction.mnemonic(), Mnemonic::Hlt | Mnemonic::Ud2 | Mnemonic::Int3);
                let ends = matches!(
                    instruction.flow_control(),
                    FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
                );
                if stops || ends {
                    break;
                }
                address = instruction.next_ip();
            }
        }
    }
}
