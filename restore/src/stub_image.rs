//! The stub as flat bytes.
//!
//! The stub's ELF file (`restore/stub`) is linked so that its segments, laid out as one run of bytes, run at any page
//! address. This file checks that this is so: nothing writable, nothing to relocate, nobody else needed.
//!
//! Neighbours: the launcher's `inject.rs` writes the image into the process that becomes the program.

use crate::Error;
use goblin::elf::{Elf, dynamic, header, program_header};
use zhuque_abi::layout::page_up;

/// No stub is larger; a limit for what a wrong file may make us allocate.
const LARGEST: u64 = 1 << 20;

/// The stub's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubImage {
    /// Whole pages, to be mapped readable and executable at any page address.
    pub bytes: Vec<u8>,
    /// Offset of the entry.
    pub entry: u64,
}

impl StubImage {
    /// Reads the stub's ELF file.
    pub fn parse(file: &[u8]) -> Result<StubImage, Error> {
        let elf = Elf::parse(file).map_err(|_| Error::Stub("not an ELF file"))?;
        if !elf.is_64 || elf.header.e_machine != header::EM_X86_64 || elf.header.e_type != header::ET_DYN {
            return Err(Error::Stub("not a position-independent x86-64 program"));
        }
        check_independent(&elf)?;
        let mut image = Vec::new();
        let mut entry = None;
        for segment in elf.program_headers.iter().filter(|p| p.p_type == program_header::PT_LOAD) {
            if segment.is_write() || segment.p_memsz != segment.p_filesz {
                return Err(Error::Stub("writable data"));
            }
            let end = segment.p_vaddr.checked_add(segment.p_filesz).filter(|end| *end <= LARGEST);
            let end = end.ok_or(Error::Stub("too large"))?;
            let from = segment.p_offset.checked_add(segment.p_filesz).filter(|e| *e <= file.len() as u64);
            let from_end = from.ok_or(Error::Stub("truncated"))?;
            if image.len() < end as usize {
                image.resize(end as usize, 0);
            }
            image[segment.p_vaddr as usize..end as usize]
                .copy_from_slice(&file[segment.p_offset as usize..from_end as usize]);
            if segment.is_executable() && (segment.p_vaddr..end).contains(&elf.entry) {
                entry = Some(elf.entry);
            }
        }
        let entry = entry.ok_or(Error::Stub("its entry is not in its text"))?;
        image.resize(page_up(image.len() as u64) as usize, 0);
        Ok(StubImage { bytes: image, entry })
    }
}

/// Refuses everything that a loader would have to do.
fn check_independent(elf: &Elf<'_>) -> Result<(), Error> {
    let wants_loader = elf.interpreter.is_some() || !elf.libraries.is_empty();
    if wants_loader || elf.program_headers.iter().any(|p| p.p_type == program_header::PT_TLS) {
        return Err(Error::Stub("it needs a loader"));
    }
    let relocations = elf.dynrelas.len() + elf.dynrels.len() + elf.pltrelocs.len();
    let sections = elf.shdr_relocs.iter().map(|(_, r)| r.len()).sum::<usize>();
    /// Size of the table of packed relative relocations, which goblin does not read.
    const DT_RELRSZ: u64 = 35;
    let sizes = [dynamic::DT_RELASZ, dynamic::DT_RELSZ, dynamic::DT_PLTRELSZ, DT_RELRSZ];
    let packed = elf.dynamic.as_ref().is_some_and(|d| d.dyns.iter().any(|e| sizes.contains(&e.d_tag) && e.d_val > 0));
    if relocations + sections > 0 || packed {
        return Err(Error::Stub("it has relocations"));
    }
    Ok(())
}
