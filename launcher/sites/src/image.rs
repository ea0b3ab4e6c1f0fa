//! One ELF file, whole, in memory: addresses to bytes, sections, symbols.
//!
//! Key type: [`Image`]. Addresses are those of the file (before it is moved to where it is loaded). Everything is
//! bounds-checked: a damaged file yields fewer bytes, never a panic. Neighbours: `headers` below; `functions`,
//! `targets`, `tables`, `pointers`, `flags` read through it.

use std::os::unix::fs::FileExt;

use goblin::elf::dynamic::{DT_STRTAB, DT_SYMTAB};
use goblin::elf::program_header::{PF_X, PT_DYNAMIC, PT_LOAD};
use goblin::elf::section_header::SHT_SYMTAB;
use goblin::elf::section_header::{SHT_DYNSYM, SHT_NOBITS, SectionHeader, section_header64};
use goblin::elf::sym::{Sym, Symtab, sym64};

use crate::Error;
use crate::headers::{CONTEXT, DynamicInfo, ElfFile};

/// No program is larger; a sparse file that is must not fill the memory.
const LARGEST_FILE: u64 = 4 << 30;

/// A file with its content.
pub struct Image {
    pub elf: ElfFile,
    pub sections: Vec<SectionHeader>,
    pub dynamic: Option<DynamicInfo>,
    bytes: Vec<u8>,
    loads: Vec<Load>,
}

/// The part of a `PT_LOAD` segment that is backed by the file.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// First address.
    pub address: u64,
    /// Where its bytes start in the file.
    pub offset: usize,
    /// Bytes from the file.
    pub length: usize,
    /// Whether the segment is mapped executable.
    pub executable: bool,
}

impl Image {
    /// Reads the file.
    pub fn load(elf: ElfFile) -> Result<Image, Error> {
        let io = |source| Error::Io { path: elf.path.clone(), source };
        if elf.size > LARGEST_FILE {
            return Err(Error::Malformed { path: elf.path, what: "too large" });
        }
        let mut bytes = vec![0; elf.size as usize];
        elf.file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let loads = elf.segments.iter().filter(|s| s.p_type == PT_LOAD);
        let loads = loads.filter_map(|s| {
            let offset = usize::try_from(s.p_offset).ok()?;
            let wanted = usize::try_from(s.p_filesz.min(s.p_memsz)).ok()?;
            let length = wanted.min(bytes.len().checked_sub(offset)?);
            // An address range that wraps around belongs to a damaged file.
            s.p_vaddr.checked_add(s.p_memsz)?;
            Some(Load { address: s.p_vaddr, offset, length, executable: s.p_flags & PF_X != 0 })
        });
        let loads: Vec<Load> = loads.collect();
        // Neighbours may share a page. Headers that name the same bytes again and again would be work without end.
        let mapped = loads.iter().fold(0u64, |sum, load| sum.saturating_add(load.length as u64));
        if mapped > elf.size.saturating_mul(2) {
            return Err(Error::Malformed { path: elf.path, what: "segments that overlap" });
        }
        let sections = read_sections(&elf, &bytes);
        let dynamic = elf.segment(PT_DYNAMIC).and_then(|s| {
            let start = usize::try_from(s.p_offset).ok()?;
            let end = start.checked_add(usize::try_from(s.p_filesz).ok()?)?;
            bytes.get(start..end).map(DynamicInfo::parse)
        });
        Ok(Image { elf, sections, dynamic, bytes, loads })
    }

    /// All loaded segments.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// The executable ones.
    pub fn executable(&self) -> impl Iterator<Item = &Load> {
        self.loads.iter().filter(|load| load.executable)
    }

    /// The bytes of a segment.
    pub fn content(&self, load: &Load) -> &[u8] {
        &self.bytes[load.offset..load.offset + load.length]
    }

    fn load_of(&self, address: u64) -> Option<&Load> {
        let inside = |l: &&Load| address >= l.address && address - l.address < l.length as u64;
        self.loads.iter().find(inside)
    }

    /// Whether `address` lies in an executable segment.
    pub fn is_code(&self, address: u64) -> bool {
        self.load_of(address).is_some_and(|load| load.executable)
    }

    /// The bytes from `address` to the end of its segment; empty if nothing is mapped there.
    pub fn at(&self, address: u64) -> &[u8] {
        let found = self.load_of(address);
        found.map_or(&[], |load| &self.content(load)[(address - load.address) as usize..])
    }

    /// The bytes of `start..end`, if one segment holds them all.
    pub fn range(&self, start: u64, end: u64) -> Option<&[u8]> {
        let length = usize::try_from(end.checked_sub(start)?).ok()?;
        self.at(start).get(..length)
    }

    /// Where the file holds the byte that is mapped at `address`.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let load = self.load_of(address)?;
        Some(load.offset as u64 + (address - load.address))
    }

    /// The section with this name.
    pub fn section(&self, name: &[u8]) -> Option<&SectionHeader> {
        let names = self.sections.get(usize::from(self.elf.header.e_shstrndx))?;
        let names = self.section_bytes(names)?;
        self.sections.iter().find(|section| {
            let start = names.get(section.sh_name..).unwrap_or(&[]);
            start.starts_with(name) && start.get(name.len()) == Some(&0)
        })
    }

    /// The bytes of a section.
    pub fn section_bytes(&self, section: &SectionHeader) -> Option<&[u8]> {
        if section.sh_type == SHT_NOBITS {
            return None;
        }
        let start = usize::try_from(section.sh_offset).ok()?;
        let end = start.checked_add(usize::try_from(section.sh_size).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The symbols of `.dynsym` and `.symtab`.
    pub fn symbols(&self) -> impl Iterator<Item = Sym> + '_ {
        // A file has one of each, says the ELF specification.
        let table = |kind| self.sections.iter().find(|section| section.sh_type == kind);
        let tables = { [table(SHT_DYNSYM), table(SHT_SYMTAB)].into_iter().flatten() }
            .filter_map(|section| self.section_bytes(section))
            .filter_map(symbol_table)
            .collect::<Vec<_>>();
        let tables = match tables.is_empty() {
            false => tables,
            true => self.dynamic_symbols().into_iter().collect(),
        };
        tables.into_iter().flat_map(|table| {
            let count = table.len();
            (0..count).filter_map(move |index| table.get(index))
        })
    }

    /// The dynamic symbols of a file whose section headers were stripped. Their number is not written down; linkers
    /// put the strings right behind them, and where that is not so, nonsense symbols only make us more careful.
    pub fn dynamic_symbols(&self) -> Option<Symtab<'_>> {
        let dynamic = self.dynamic.as_ref()?;
        let start = dynamic.get(DT_SYMTAB)?;
        let end = dynamic.get(DT_STRTAB)?;
        symbol_table(self.range(start, end)?)
    }
}

/// Wraps the bytes of a symbol table.
fn symbol_table(bytes: &[u8]) -> Option<Symtab<'_>> {
    let count = bytes.len() / sym64::SIZEOF_SYM;
    Symtab::parse(bytes, 0, count, CONTEXT).ok()
}

/// The section headers; none if they were stripped or lie outside the file.
fn read_sections(elf: &ElfFile, bytes: &[u8]) -> Vec<SectionHeader> {
    let header = &elf.header;
    let count = usize::from(header.e_shnum);
    let right_size = usize::from(header.e_shentsize) == section_header64::SIZEOF_SHDR;
    let offset = usize::try_from(header.e_shoff).unwrap_or(usize::MAX);
    if count == 0 || !right_size || offset >= bytes.len() {
        return Vec::new();
    }
    SectionHeader::parse(bytes, offset, count, CONTEXT).unwrap_or_default()
}
