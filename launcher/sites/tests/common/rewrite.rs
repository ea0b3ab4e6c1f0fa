//! Applies a plan to a copy of a file's text with the guest's own code, and reads the result with a decoder.
//!
//! Key type: [`Rewritten`]; key functions: [`Rewritten::apply`], [`Rewritten::wrong`]. Neighbours: `zhuque_model::rewriting`
//! (the code under test), `check` (the plan itself).

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use zhuque_abi::header::{Patched, TRAMPOLINE_BYTES};
use zhuque_abi::sites::Site;
use zhuque_model::rewriting;

use super::view::branch;

/// Where the text is said to be loaded.
pub const BIAS: u64 = 0x7f12_3400_0000;
/// What is said to be the gate's address.
pub const GATE: u64 = 0x7f00_0123_4567;
/// As far as the shim goes to put trampolines (`entry/patch.rs`).
const REACH: u64 = 0x7000_0000;

/// One segment of text, before and after, and its trampolines.
#[derive(Clone)]
pub struct Rewritten {
    /// Offset in the file, and address, of the first byte.
    pub offset: u64,
    pub start: u64,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    /// The trampoline pages and their address.
    pub place: u64,
    pub window: Vec<u8>,
    pub table: Vec<Patched>,
    first: u32,
}

impl Rewritten {
    /// Rewrites `text`, which the file has at `offset` and which is loaded at [`BIAS`]` + address`, as the shim does.
    pub fn apply(text: &[u8], offset: u64, address: u64, sites: &[Site], place: u64) -> Rewritten {
        let start = BIAS + address;
        let sites = rewriting::within(sites, offset, offset + text.len() as u64);
        let mut window = vec![0; (sites.len() + 1) * TRAMPOLINE_BYTES as usize];
        window[..8].copy_from_slice(&GATE.to_le_bytes());
        let first = 1000;
        let mut table = Vec::new();
        for site in sites.iter().filter(|site| rewriting::well_formed(site)) {
            let at = (site.file_offset - offset) as usize;
            let length = usize::from(site.length);
            if text[at..at + length] != site.original[..length] {
                continue;
            }
            let slot = (table.len() as u64 + 1) * TRAMPOLINE_BYTES;
            let index = first + table.len() as u32;
            table.push(rewriting::trampoline(&mut window, slot, place, start + at as u64, site, index));
        }
        let mut after = text.to_vec();
        for entry in &table {
            let at = (entry.address - start) as usize;
            let length = usize::from(entry.length);
            after[at..at + length].copy_from_slice(&rewriting::jump(entry)[..length]);
        }
        Rewritten { offset, start, before: text.to_vec(), after, place, window, table, first }
    }

    /// Where trampolines may lie: right below and right above the text, and as far away as the shim goes.
    pub fn places(text: &[u8], address: u64, sites: usize) -> [u64; 4] {
        let (start, end) = ((BIAS + address) & !0xfff, (BIAS + address + text.len() as u64 + 0xfff) & !0xfff);
        let bytes = ((sites as u64 + 1) * TRAMPOLINE_BYTES + 0xfff) & !0xfff;
        [start - bytes, end, end - REACH, start + REACH - bytes]
    }

    /// Everything that is wrong with the result, for a plan with these sites.
    pub fn wrong(&self, sites: &[Site]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut untouched = self.before.clone();
        if self.table.len() != sites.len() {
            wrong.push(format!("{} of {} sites were rewritten", self.table.len(), sites.len()));
        }
        for (index, (site, entry)) in sites.iter().zip(&self.table).enumerate() {
            let at = (site.file_offset - self.offset) as usize;
            let range = at..at + usize::from(site.length);
            untouched[range.clone()].copy_from_slice(&self.after[range]);
            let found = self.site(index, site, entry);
            wrong.extend(found.map(|what| format!("{:#x}: {what}", site.file_offset)));
        }
        if untouched != self.after {
            wrong.push("bytes outside of the runs were changed".into());
        }
        if self.window.get(..8) != Some(&GATE.to_le_bytes()) {
            wrong.push("the gate's address is not where the trampolines look for it".into());
        }
        wrong
    }

    /// One site: the jump, the trampoline, the entry, the translation of program counters.
    fn site(&self, index: usize, site: &Site, entry: &Patched) -> Option<String> {
        let at = (site.file_offset - self.offset) as usize;
        let (before, length) = (usize::from(site.before), usize::from(site.length));
        let address = self.start + at as u64;
        let slot = self.place + (index as u64 + 1) * TRAMPOLINE_BYTES;
        let expected = Patched {
            address,
            trampoline: slot,
            before: site.before,
            length: site.length,
            resume: site.before + 13,
            trampoline_bytes: site.length - 2 + 18,
            reserved: 0,
            original: site.original,
        };
        if *entry != expected {
            return Some(format!("the site's entry is {entry:x?}"));
        }
        let run = &self.after[at..at + length];
        let jump = decode(run, address).next()?;
        if jump.code() != Code::Jmp_rel32_64 || branch(&jump) != Some(slot) || run[5..].iter().any(|&b| b != 0xcc) {
            return Some(format!("the jump is {run:02x?}"));
        }
        let originals: Vec<Instruction> = decode(&self.before[at..at + length], address).collect();
        let call = originals.iter().position(|i| i.code() == Code::Syscall && i.ip() == address + before as u64);
        let Some(call) = call else { return Some("no syscall where the plan says".into()) };
        self.trampoline(slot, &originals, call, index as u32).or_else(|| translation(entry, &originals, call))
    }

    /// The trampoline at `slot` does what `originals` did, with the gate instead of the one at `call`.
    fn trampoline(&self, slot: u64, originals: &[Instruction], call: usize, index: u32) -> Option<String> {
        let from = (slot - self.place) as usize;
        let bytes = self.window.get(from..from + TRAMPOLINE_BYTES as usize)?;
        let (code, number) = bytes.split_at(TRAMPOLINE_BYTES as usize - 4);
        if number != (self.first + index).to_le_bytes() {
            return Some("the trampoline does not end with its number".into());
        }
        let mut copies = decode(code, slot);
        let mut next = || copies.next().unwrap_or_default();
        for original in &originals[..call] {
            let copy = next();
            if !same(original, &copy) {
                return Some(became(original, &copy));
            }
        }
        let (lea, enter) = (next(), next());
        let returns = enter.next_ip();
        let loads = lea.mnemonic() == Mnemonic::Lea && lea.op0_register() == Register::RCX;
        let (at, behind) = ((lea.ip() - slot) as usize, (returns - slot) as usize);
        let loads = loads && code.get(at..at + 3) == Some(&[0x48, 0x8d, 0x0d]) && behind == at + 13;
        if !loads || !lea.is_ip_rel_memory_operand() || lea.ip_rel_memory_address() != returns {
            return Some(format!("rcx is set by {lea:x?}, and the gate returns to {returns:#x}"));
        }
        let enters = enter.code() == Code::Jmp_rm64 && enter.is_ip_rel_memory_operand();
        if !enters || enter.ip_rel_memory_address() != self.place {
            return Some(format!("the gate is entered by {enter:x?}"));
        }
        for original in &originals[call + 1..] {
            let copy = next();
            if !same(original, &copy) {
                return Some(became(original, &copy));
            }
        }
        let back = next();
        let end = originals.last()?.next_ip();
        if back.code() != Code::Jmp_rel32_64 || branch(&back) != Some(end) {
            return Some(format!("{end:#x} is returned to by {back:x?}"));
        }
        // Nothing that is displaced by this version depends on its address, so its bytes are the same.
        let site = &self.table[index as usize];
        let copied = [&code[..at], &code[behind..(back.ip() - slot) as usize]].concat();
        let run = &site.original[..usize::from(site.length)];
        if copied != [&run[..at], &run[at + 2..]].concat() {
            return Some(format!("the displaced bytes became {copied:02x?}"));
        }
        let rest = code.get((back.next_ip() - slot) as usize..)?;
        rest.iter().any(|&byte| byte != 0xcc).then(|| format!("behind the trampoline: {rest:02x?}"))
    }
}

/// Program counters are shown as, and taken to, the matching place at every instruction.
fn translation(entry: &Patched, originals: &[Instruction], call: usize) -> Option<String> {
    let mut copy = entry.trampoline;
    for (number, original) in originals.iter().enumerate() {
        let seen = if number == call { copy..entry.trampoline + u64::from(entry.resume) } else { copy..copy + 1 };
        if let Some(pc) = seen.clone().find(|&pc| rewriting::visible(entry, pc) != original.ip()) {
            return Some(format!("{pc:#x} is shown as {:#x}", rewriting::visible(entry, pc)));
        }
        let goes_on = rewriting::executable(entry, original.ip());
        if goes_on != copy && (number != 0 || goes_on != entry.address) {
            return Some(format!("{:#x} goes on at {goes_on:#x}", original.ip()));
        }
        copy = if number == call { seen.end } else { copy + original.len() as u64 };
    }
    let end = entry.address + u64::from(entry.length);
    let back = copy..entry.trampoline + u64::from(entry.trampoline_bytes);
    { back }.find(|&pc| rewriting::visible(entry, pc) != end).map(|pc| format!("{pc:#x} is not shown as {end:#x}"))
}

/// Whether two instructions do the same, each at its own address.
fn same(original: &Instruction, copy: &Instruction) -> bool {
    // Equality compares operands as they mean: targets of branches, and addresses of RIP-relative operands.
    let operands = original == copy && original.len() == copy.len() && branch(original) == branch(copy);
    let address = |i: &Instruction| i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address());
    operands && !original.is_invalid() && address(original) == address(copy)
}

fn became(original: &Instruction, copy: &Instruction) -> String {
    format!("{:?} at {:#x} became {:?} at {:#x}", original.code(), original.ip(), copy.code(), copy.ip())
}

fn decode(bytes: &[u8], address: u64) -> impl Iterator<Item = Instruction> + '_ {
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter()
}
