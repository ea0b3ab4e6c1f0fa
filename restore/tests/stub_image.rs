//! The stub is flat, and what is not flat is refused.

#[path = "common/stub.rs"]
mod built;

use built::stub;
use goblin::elf::Elf;
use zhuque_restore::Error;
use zhuque_restore::stub_image::StubImage;

#[test]
fn the_stub_is_flat_and_small() {
    let image = StubImage::parse(stub()).expect("a usable stub");
    assert!(image.bytes.len().is_multiple_of(4096) && image.bytes.len() <= 0x4000, "{} bytes", image.bytes.len());
    assert!(image.entry < image.bytes.len() as u64);
    // xor ebp, ebp: the first instruction of `_start`.
    assert_eq!(&image.bytes[image.entry as usize..][..2], &[0x31, 0xed]);
    let elf = Elf::parse(stub()).expect("an ELF file");
    let writable = [".data", ".bss", ".got", ".got.plt", ".data.rel.ro", ".tdata", ".tbss"];
    for section in &elf.section_headers {
        let name = elf.shdr_strtab.get_at(section.sh_name).unwrap_or("");
        assert!(!writable.contains(&name), "the stub has a section {name}");
    }
}

#[test]
fn ordinary_programs_are_refused() {
    let own = std::fs::read("/proc/self/exe").expect("this test");
    assert!(matches!(StubImage::parse(&own), Err(Error::Stub(_))));
    assert!(matches!(StubImage::parse(b"#!/bin/sh"), Err(Error::Stub(_))));
    assert!(matches!(StubImage::parse(&stub()[..0x200]), Err(Error::Stub(_))));
}

#[test]
fn damaged_stubs_never_panic() {
    let mut file = stub().to_vec();
    let mut state = 1u32;
    for _ in 0..5000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = (state >> 8) as usize % 0x400;
        let old = file[at];
        file[at] ^= 1 << (state & 7);
        let _ = StubImage::parse(&file);
        file[at] = old;
    }
}
