//! ELF headers read with a few small reads, without loading the file.
//!
//! Key types: [`ElfFile`] (an open, checked file with its program headers), [`DynamicInfo`]. Used by `image` (which
//! adds the whole content), `program`, `libraries` and `cache` (which must be quick).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::dynamic::DT_NULL;
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC};
use goblin::elf::program_header::{PT_DYNAMIC, PT_LOAD, PT_NOTE};
use goblin::elf::{ProgramHeader, program_header};
use goblin::elf64::header::{Header, SIZEOF_EHDR};

use crate::Error;

/// The one kind of ELF file this crate handles.
pub const CONTEXT: Ctx = Ctx { container: Container::Big, le: Endian::Little };

/// No honest header table or string is larger than this; keeps a damaged file from asking for gigabytes.
const LARGEST_READ: u64 = 64 << 20;
const NT_GNU_BUILD_ID: u32 = 3;

/// An open x86-64 ELF file: headers checked, content not read.
pub struct ElfFile {
    pub path: PathBuf,
    pub file: File,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub header: Header,
    pub segments: Vec<ProgramHeader>,
}

/// The dynamic section as (tag, value) pairs.
pub struct DynamicInfo(Vec<(u64, u64)>);

impl DynamicInfo {
    /// Value of the first entry with this tag.
    pub fn get(&self, tag: u64) -> Option<u64> {
        self.all(tag).next()
    }

    /// Values of all entries with this tag, in order.
    pub fn all(&self, tag: u64) -> impl Iterator<Item = u64> + '_ {
        let matching = self.0.iter().filter(move |entry| entry.0 == tag);
        matching.map(|entry| entry.1)
    }

    /// Parses the bytes of a `PT_DYNAMIC` segment.
    pub fn parse(bytes: &[u8]) -> DynamicInfo {
        let pairs = bytes.chunks_exact(16).map(|pair| (word(pair, 0), word(pair, 8)));
        DynamicInfo(pairs.take_while(|pair| pair.0 != DT_NULL).collect())
    }
}

/// The little-endian 64-bit word at `offset` of `bytes`, which must be long enough.
pub fn word(bytes: &[u8], offset: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(raw)
}

/// The little-endian 32-bit word at `offset` of `bytes`, which must be long enough.
pub fn half(bytes: &[u8], offset: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(raw)
}

impl ElfFile {
    /// Opens `path` and checks that it is a 64-bit x86 program or library.
    pub fn open(path: &Path) -> Result<ElfFile, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        // Asked before opening, because opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::NotRegular(path.into()));
        }
        let file = File::open(path).map_err(io)?;
        let stat = file.metadata().map_err(io)?;
        let mut start = [0; SIZEOF_EHDR];
        match file.read_exact_at(&mut start, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // Too short for an ELF header, but perhaps a 32-bit one.
                let length = file.read_at(&mut start, 0).map_err(io)?;
                return Err(check_ident(path, &start[..length]).err().unwrap_or(Error::NotElf(path.into())));
            }
            Err(error) => return Err(io(error)),
        }
        check_ident(path, &start)?;
        let malformed = |what| Error::Malformed { path: path.into(), what };
        let header = Header::parse(&start).map_err(|_| malformed("unreadable header"))?;
        check_header(path, &header)?;
        let mut elf = ElfFile {
            path: path.into(),
            file,
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            header,
            segments: Vec::new(),
        };
        let count = usize::from(header.e_phnum);
        let length = (count * program_header::program_header64::SIZEOF_PHDR) as u64;
        let table = elf.read(header.e_phoff, length).ok_or_else(|| malformed("program headers outside the file"))?;
        elf.segments =
            ProgramHeader::parse(&table, 0, count, CONTEXT).map_err(|_| malformed("unreadable program headers"))?;
        Ok(elf)
    }

    /// `length` bytes at `offset` of the file; `None` if they are not all there.
    pub fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.size || length > LARGEST_READ {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// The first segment of this type.
    pub fn segment(&self, kind: u32) -> Option<&ProgramHeader> {
        self.segments.iter().find(|segment| segment.p_type == kind)
    }

    /// Where the file holds the byte that is mapped at `address`.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let loads = self.segments.iter().filter(|s| s.p_type == PT_LOAD);
        let holder = { loads }.find(|s| address >= s.p_vaddr && address - s.p_vaddr < s.p_filesz.min(s.p_memsz))?;
        holder.p_offset.checked_add(address - holder.p_vaddr)
    }

    /// The dynamic section; `None` if the file has none.
    pub fn dynamic(&self) -> Option<DynamicInfo> {
        let segment = self.segment(PT_DYNAMIC)?;
        let bytes = self.read(segment.p_offset, segment.p_filesz)?;
        Some(DynamicInfo::parse(&bytes))
    }

    /// The GNU build-id, zero padded; `None` if there is none, or one that does not fit.
    pub fn build_id(&self) -> Option<[u8; 32]> {
        let notes = self.segments.iter().filter(|s| s.p_type == PT_NOTE);
        notes.filter_map(|s| self.read(s.p_offset, s.p_filesz)).find_map(|bytes| build_id_note(&bytes))
    }
}

/// The GNU build-id of the ELF file at `path`, zero padded to 32 bytes; `None` if there is none.
pub fn build_id(path: &Path) -> Option<[u8; 32]> {
    ElfFile::open(path).ok()?.build_id()
}

/// Looks for `NT_GNU_BUILD_ID` in the notes of one segment.
fn build_id_note(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut rest = bytes;
    while rest.len() >= 12 {
        let (name, length, kind) = (half(rest, 0), half(rest, 4), half(rest, 8));
        let padded = |size: u32| (size as usize).checked_next_multiple_of(4);
        let start = padded(name)?.checked_add(12)?;
        let end = start.checked_add(length as usize)?;
        let content = rest.get(start..end)?;
        if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") && name == 4 {
            let mut id = [0; 32];
            id.get_mut(..content.len())?.copy_from_slice(content);
            return (id != [0; 32]).then_some(id);
        }
        rest = rest.get(start.checked_add(padded(length)?)?..)?;
    }
    None
}

/// Checks the class-independent start of the file.
fn check_ident(path: &Path, start: &[u8]) -> Result<(), Error> {
    if start.len() < 16 || !start.starts_with(ELFMAG) {
        return Err(Error::NotElf(path.into()));
    }
    if start[EI_DATA] != ELFDATA2LSB {
        // Big endian: the machine field is, too.
        let machine = start.get(18..20).map_or(0, |m| u16::from_be_bytes([m[0], m[1]]));
        let path = path.into();
        return Err(Error::WrongMachine { path, machine });
    }
    if start[EI_CLASS] != ELFCLASS64 {
        return Err(Error::Class32(path.into()));
    }
    Ok(())
}

/// Checks machine and type.
fn check_header(path: &Path, header: &Header) -> Result<(), Error> {
    let path = path.to_path_buf();
    if header.e_machine != EM_X86_64 {
        let machine = header.e_machine;
        return Err(Error::WrongMachine { path, machine });
    }
    if header.e_type != ET_EXEC && header.e_type != ET_DYN {
        let kind = header.e_type;
        return Err(Error::NotLoadable { path, kind });
    }
    let expected = program_header::program_header64::SIZEOF_PHDR;
    if header.e_phnum != 0 && usize::from(header.e_phentsize) != expected {
        let what = "program headers of an unknown size";
        return Err(Error::Malformed { path, what });
    }
    Ok(())
}
