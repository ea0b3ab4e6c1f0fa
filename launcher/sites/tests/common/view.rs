//! An ELF file as the checkers see it: goblin's parser, addresses to bytes, code to decode.
//!
//! Key type: [`View`]. It shares nothing with the planner's `Image`. Neighbours: `frames`, `evidence`, `rewrite`.

use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::section_header::{SHF_EXECINSTR, SHT_NOBITS};
use goblin::elf::{Elf, ProgramHeader};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};

/// A parsed file.
pub struct View<'a> {
    pub bytes: &'a [u8],
    pub elf: Elf<'a>,
}

/// Destination of a direct branch or call.
pub fn branch(instruction: &Instruction) -> Option<u64> {
    let near = matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    near.then(|| instruction.near_branch_target())
}

impl<'a> View<'a> {
    /// Parses a file; `None` if it cannot be.
    pub fn parse(bytes: &'a [u8]) -> Option<View<'a>> {
        let elf = Elf::parse(bytes).ok()?;
        Some(View { bytes, elf })
    }

    /// The segments that are loaded, with their bytes in the file.
    pub fn loads(&self) -> impl Iterator<Item = (&ProgramHeader, &'a [u8])> {
        let bytes = self.bytes;
        let loads = self.elf.program_headers.iter().filter(|s| s.p_type == PT_LOAD);
        loads.filter_map(move |s| Some((s, bytes.get(s.p_offset as usize..)?.get(..s.p_filesz as usize)?)))
    }

    /// The executable ones.
    pub fn text(&self) -> impl Iterator<Item = (&ProgramHeader, &'a [u8])> {
        self.loads().filter(|(s, _)| s.p_flags & PF_X != 0)
    }

    /// Whether an address is executable.
    pub fn is_code(&self, address: u64) -> bool {
        self.text().any(|(s, bytes)| address >= s.p_vaddr && address - s.p_vaddr < bytes.len() as u64)
    }

    /// The bytes from an address to the end of its segment; empty if nothing is there.
    pub fn at(&self, address: u64) -> &'a [u8] {
        let found = self.loads().find(|(s, b)| address >= s.p_vaddr && address - s.p_vaddr < b.len() as u64);
        found.map_or(&[], |(s, bytes)| &bytes[(address - s.p_vaddr) as usize..])
    }

    /// The address of a byte of the file, if it is executable.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let inside = |s: &&ProgramHeader| offset >= s.p_offset && offset - s.p_offset < s.p_filesz;
        let mut segments = self.text().map(|(s, _)| s);
        let segment = segments.find(inside)?;
        Some(offset - segment.p_offset + segment.p_vaddr)
    }

    /// The instruction at an address.
    pub fn instruction(&self, address: u64) -> Option<Instruction> {
        let decoded = Decoder::with_ip(64, self.at(address), address, DecoderOptions::NONE).into_iter().next()?;
        (!decoded.is_invalid()).then_some(decoded)
    }

    /// Calls `each` with every instruction that a linear sweep of the executable sections sees (of the segments, if
    /// no section is executable).
    pub fn sweep(&self, mut each: impl FnMut(&Instruction)) {
        let sections = self.elf.section_headers.iter();
        let code = sections.filter(|s| s.sh_flags & u64::from(SHF_EXECINSTR) != 0 && s.sh_type != SHT_NOBITS);
        let code = code.filter_map(|s| Some((s.sh_addr, self.bytes.get(s.file_range()?)?)));
        let mut code: Vec<(u64, &[u8])> = code.collect();
        if code.is_empty() {
            code = self.text().map(|(s, bytes)| (s.p_vaddr, bytes)).collect();
        }
        for (address, bytes) in code {
            Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).iter().for_each(|i| each(&i));
        }
    }
}
