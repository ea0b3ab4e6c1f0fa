//! Code addresses that the file stores or hands out: symbols, relocations, entry points, absolute addresses.
//!
//! Key function: [`read_pointers`]. Each counts as a branch target. Neighbours: `targets`, `image`.

use goblin::elf::dynamic::{DT_FINI, DT_INIT, DT_JMPREL, DT_PLTRELSZ, DT_RELA, DT_RELASZ};
use goblin::elf::header::ET_EXEC;
use goblin::elf::reloc::{R_X86_64_64, R_X86_64_IRELATIVE, R_X86_64_RELATIVE, RelocSection};

use crate::headers::{CONTEXT, half, word};
use crate::image::Image;
use crate::targets::Collector;

const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;

/// Collects them all.
pub fn read_pointers(image: &Image, targets: &mut Collector) {
    targets.add(image.elf.header.e_entry);
    for symbol in image.symbols().filter(|symbol| symbol.st_shndx != 0) {
        targets.add(symbol.st_value);
    }
    if let Some(dynamic) = &image.dynamic {
        for tag in [DT_INIT, DT_FINI] {
            dynamic.all(tag).for_each(|address| targets.add(address));
        }
        for (start, size) in [(DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)] {
            if let (Some(start), Some(size)) = (dynamic.get(start), dynamic.get(size)) {
                read_relocations(image, start, size, targets);
            }
        }
        if let (Some(start), Some(size)) = (dynamic.get(DT_RELR), dynamic.get(DT_RELRSZ)) {
            read_relative(image, start, size, targets);
        }
    }
    if image.elf.header.e_type == ET_EXEC {
        read_absolute(image, targets);
    }
}

/// `Elf64_Rela` records.
fn read_relocations(image: &Image, start: u64, size: u64, targets: &mut Collector) {
    let Some(bytes) = image.range(start, start.saturating_add(size)) else {
        return;
    };
    let symbols = image.dynamic_symbols();
    let Ok(relocations) = RelocSection::parse(bytes, 0, bytes.len(), true, CONTEXT) else {
        return;
    };
    for relocation in &relocations {
        let addend = relocation.r_addend.unwrap_or(0);
        match relocation.r_type {
            R_X86_64_RELATIVE | R_X86_64_IRELATIVE => targets.add(addend as u64),
            R_X86_64_64 => {
                let symbol = symbols.as_ref().and_then(|s| s.get(relocation.r_sym));
                let address = symbol.map_or(0, |symbol| symbol.st_value);
                targets.add(address.wrapping_add_signed(addend));
            }
            _ => {}
        }
    }
}

/// `DT_RELR`: an address, then bitmaps of the 63 words behind it; the addends are in place.
fn read_relative(image: &Image, start: u64, size: u64, targets: &mut Collector) {
    let Some(bytes) = image.range(start, start.saturating_add(size)) else {
        return;
    };
    let mut add = |place: u64| {
        if let Some(bytes) = image.at(place).get(..8) {
            targets.add(word(bytes, 0));
        }
    };
    let mut next: u64 = 0;
    for entry in bytes.chunks_exact(8).map(|entry| word(entry, 0)) {
        if entry & 1 == 0 {
            add(entry);
            next = entry.wrapping_add(8);
            continue;
        }
        for bit in (0..63).filter(|bit| entry >> (bit + 1) & 1 != 0) {
            add(next.wrapping_add(bit * 8));
        }
        next = next.wrapping_add(63 * 8);
    }
}

/// In a program that is not position-independent, any four bytes may be an address, in data and in instructions.
fn read_absolute(image: &Image, targets: &mut Collector) {
    for load in image.loads() {
        for bytes in image.content(load).windows(4) {
            targets.add(u64::from(half(bytes, 0)));
        }
    }
}
