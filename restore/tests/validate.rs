//! Every corruption of a control file has its own error; no bytes make the check panic.

mod common;

use common::{BASE, Image, REVIVE, attr, machine, process};
use core::mem::offset_of;
use zhuque_abi::header::{FileRecord, Globals, Header, Patched, Phase, VERSION, phase_word};
use zhuque_abi::journal::{Description, Object, Record};
use zhuque_abi::layout::*;
use zhuque_abi::maps::{Kind, Node, TreeHead};
use zhuque_abi::slot::Slot;
use zhuque_restore::Error;
use zhuque_restore::plan::Plan;
use zhuque_restore::validate::Saved;

/// The error of a region after `change`, with checksums as they were.
fn broken(change: impl FnOnce(&mut Image)) -> Error {
    let mut image = Image::simple();
    change(&mut image);
    Saved::check(&image.bytes, &machine()).expect_err("it is broken")
}

/// The error of a region after `change`, with the checksums that go with it.
fn resealed(change: impl FnOnce(&mut Image)) -> Error {
    broken(|image| {
        change(image);
        image.reseal();
    })
}

fn is_bounds(error: &Error, name: &str) -> bool {
    matches!(error, Error::Bounds { what, .. } if what.contains(name))
}

#[test]
fn a_good_one_passes() {
    let image = Image::simple();
    let saved = Saved::check(&image.bytes, &machine()).expect("it is good");
    assert_eq!((saved.generation, saved.base, saved.revive, saved.threads), (7, BASE, REVIVE, 1));
    assert_eq!(saved.process.exe, b"/bin/true");
    assert_eq!(saved.highest_descriptor, -1);
}

#[test]
fn not_a_region() {
    assert!(matches!(Saved::check(&[], &machine()), Err(Error::Short { bytes: 0, .. })));
    assert!(matches!(Saved::check(&[0; 4096], &machine()), Err(Error::Short { .. })));
    assert_eq!(broken(|i| i.header_u64(0, 1)), Error::Magic);
    assert_eq!(broken(|i| i.header_u32(8, VERSION + 1)), Error::Version(VERSION + 1));
    assert_eq!(broken(|i| i.header_u32(12, 1)), Error::HeaderSize(1));
}

#[test]
fn every_phase_says_why() {
    let phase = |phase| broken(move |i| i.header_u64(offset_of!(Header, phase), phase_word(7, phase)));
    assert_eq!(phase(Phase::Creating), Error::NotStarted);
    assert_eq!(phase(Phase::Starting), Error::NotStarted);
    assert_eq!(phase(Phase::Running), Error::NeverSaved);
    assert_eq!(phase(Phase::Ended), Error::Ended("status 0".to_owned()));
    let detail = broken(|i| {
        i.header_u64(offset_of!(Header, phase), phase_word(7, Phase::Unsaved));
        let at = offset_of!(Header, detail);
        i.bytes[at..at + 9].copy_from_slice(b"a\nsocket\0");
    });
    assert_eq!(detail, Error::Unsaved("a?socket".to_owned()));
    assert_eq!(broken(|i| i.header_u64(16, 0x7ff)), Error::Phase(0xff));
}

#[test]
fn checksums() {
    assert_eq!(broken(|i| i.bytes[offset_of!(Header, revive)] ^= 1), Error::Checksum("header"));
    assert_eq!(broken(|i| i.bytes[4095] ^= 1), Error::Checksum("header"));
    assert_eq!(broken(|i| i.bytes[JOURNAL_OFFSET as usize + 20] ^= 1), Error::Checksum("journal"));
    let tables =
        [GLOBALS_OFFSET + offset_of!(Globals, brk_now) as u64, NODES_OFFSET + 64, SLOTS_OFFSET + SLOT_STRIDE + 0x9000];
    for at in tables {
        assert_eq!(broken(|i| i.bytes[at as usize] ^= 1), Error::Checksum("tables"), "{at:#x}");
    }
    // What is not in use does not count.
    let mut image = Image::simple();
    image.bytes[SLOTS_OFFSET as usize + 100] ^= 1;
    image.bytes[(SLOTS_OFFSET + SLOT_STRIDE) as usize + 0x8fff] ^= 1;
    image.bytes[SITES_OFFSET as usize] ^= 1;
    assert!(Saved::check(&image.bytes, &machine()).is_ok());
}

#[test]
fn generation_may_differ_from_the_checksum() {
    let mut image = Image::simple();
    image.header_u64(offset_of!(Header, phase), phase_word(u64::MAX >> 8, Phase::Saved));
    let saved = Saved::check(&image.bytes, &machine()).expect("the phase word is not in the checksum");
    assert_eq!(saved.generation, u64::MAX >> 8);
}

#[test]
fn counts_and_addresses_are_bounded() {
    let header = |offset, value| resealed(move |i| i.header_u64(offset, value));
    assert!(is_bounds(&header(offset_of!(Header, base), 0x1000), "control mapping"));
    assert!(is_bounds(&header(offset_of!(Header, base), BASE + 1), "control mapping"));
    assert!(is_bounds(&header(offset_of!(Header, base), u64::MAX - 0xfff), "control mapping"));
    assert!(is_bounds(&header(offset_of!(Header, revive), TASK_SIZE), "revive"));
    assert!(is_bounds(&header(offset_of!(Header, journal_bytes), u64::MAX), "journal"));

    let globals = |offset, value| resealed(move |i| i.globals_u32(offset, value));
    let used = offset_of!(Globals, tree) + offset_of!(TreeHead, used);
    assert!(is_bounds(&globals(offset_of!(Globals, files), MAX_FILES as u32), "files"));
    assert!(is_bounds(&globals(offset_of!(Globals, sites), u32::MAX), "sites"));
    assert!(is_bounds(&globals(offset_of!(Globals, slots), u32::MAX), "slots"));
    assert!(is_bounds(&globals(used, u32::MAX), "nodes"));
    assert!(is_bounds(&resealed(|i| i.header_u32(offset_of!(Header, threads), 2)), "threads"));
    assert!(is_bounds(&resealed(|i| i.header_u32(offset_of!(Header, threads), 0)), "threads"));
    let path = FILES_OFFSET as usize + 2048 + offset_of!(FileRecord, path_bytes);
    let long = resealed(|i| {
        i.globals_u32(offset_of!(Globals, files), 1);
        i.put_u32(path, u32::MAX);
    });
    assert!(is_bounds(&long, "path"));
}

#[test]
fn a_tree_that_is_none() {
    let cycle = resealed(|i| {
        for node in 1..4 {
            i.put_u32(NODES_OFFSET as usize + node * 64 + offset_of!(Node, left), 1);
        }
    });
    assert!(matches!(cycle, Error::Damaged(_)), "{cycle}");
    let root = offset_of!(Globals, tree) + offset_of!(TreeHead, root);
    assert!(matches!(resealed(|i| i.globals_u32(root, 77)), Error::Damaged(_)));
}

#[test]
fn the_journal_must_make_sense() {
    let journal = |records: &[Record<'_>]| {
        let mut image = Image::new();
        records.iter().for_each(|r| image.record(r));
        image.seal();
        Saved::check(&image.bytes, &machine()).err()
    };
    let good = || Record::Process(process(b"/bin/true", [0; 4], b""));
    assert_eq!(journal(&[good()]), None);
    assert!(matches!(journal(&[]), Some(Error::Damaged(_))));
    assert!(matches!(journal(&[good(), good()]), Some(Error::Damaged(_))));
    for exe in [&b""[..], b"bin/true", b"/bin\0"] {
        let record = Record::Process(process(exe, [0; 4], b""));
        assert!(matches!(journal(&[record]), Some(Error::Damaged(_))));
    }
    let unended = Record::Process(process(b"/bin/true", [0; 4], b"true"));
    assert!(matches!(journal(&[unended]), Some(Error::Damaged(_))));
    let negative = Record::Descriptor { fd: -3, description: 1, cloexec: false };
    assert!(is_bounds(&journal(&[good(), negative]).expect("an error"), "descriptor"));
    let object = Object::Unsupported { what: b"anon_inode:[io_uring]" };
    let ring = Record::Description(Description { id: 1, flags: 0, owner: [0; 3], object });
    assert_eq!(journal(&[good(), ring]), Some(Error::Unsupported("anon_inode:[io_uring]".to_owned())));
}

/// The shim uses these as they are: a thread's slot, its stacks, its frame.
#[test]
fn slots_that_lie() {
    let slot = SLOTS_OFFSET + SLOT_STRIDE;
    let saved = offset_of!(Slot, saved);
    let frame = saved + offset_of!(zhuque_abi::slot::Saved, frame);
    let fs_base = saved + offset_of!(zhuque_abi::slot::Saved, fs_base);
    let this = offset_of!(Slot, this);
    let gate_stack = offset_of!(Slot, gate_stack);
    for (field, value, what) in [
        (this, 0, "own address"),
        (this, BASE + slot + 64, "own address"),
        (gate_stack, BASE + slot, "gate stack"),
        (frame, 0, "frame"),
        (frame, BASE + slot + SIGNAL_STACK - 8, "frame"),
        (frame, BASE + slot + SLOT_STRIDE - 8, "frame"),
        (frame, BASE + slot + SLOT_STRIDE + 0x9000, "frame"),
        (frame, BASE + slot + 0x9004, "frame"),
        (fs_base, TASK_SIZE, "FS base"),
    ] {
        let error = resealed(|i| i.put_u64(slot as usize + field, value));
        assert!(is_bounds(&error, what), "{field} {value:#x}: {error}");
    }
    let error = resealed(|i| i.put_u32(slot as usize + offset_of!(Slot, index), 2));
    assert!(is_bounds(&error, "index"), "{error}");
}

/// The shim writes jumps where these say.
#[test]
fn sites_that_lie() {
    let (text, trampolines) = (REVIVE + 0x10_0000, REVIVE + 0x20_0000);
    let pages = GLOBALS_OFFSET as usize + offset_of!(Globals, trampolines);
    let with = |change: &dyn Fn(&mut Image)| {
        let mut image = Image::new();
        let file = image.file(b"/bin/true", [0; 4], false);
        let attr = |kind, prot| zhuque_model::maptree::Attr { file, ..attr(kind, prot) };
        image.map(text, text + 0x2000, attr(Kind::FilePrivate, 5));
        image.map(trampolines, trampolines + PAGE, common::attr(Kind::Region, 5));
        image.record(&Record::Process(process(b"/bin/true", [0; 4], b"true\0")));
        image.globals_u32(offset_of!(Globals, sites), 2);
        let last = text + 0x1000;
        for (field, value) in [trampolines, trampolines + PAGE, text + 8, last + 5, 2 << 32].into_iter().enumerate() {
            image.put_u64(pages + 8 * field, value);
        }
        for (index, address) in [text + 8, last].into_iter().enumerate() {
            let at = SITES_OFFSET as usize + index * size_of::<Patched>();
            image.put_u64(at, address);
            image.put_u64(at + 8, trampolines + (index as u64 + 1) * 64);
            image.bytes[at + 17] = 5;
            image.bytes[at + 18] = 13;
            image.bytes[at + 19] = 21;
        }
        image.seal();
        change(&mut image);
        image.reseal();
        Saved::check(&image.bytes, &machine()).err()
    };
    assert_eq!(with(&|_| ()), None);
    let second = SITES_OFFSET as usize + size_of::<Patched>();
    let number = |at: usize, value: u64| with(&move |i| i.put_u64(at, value));
    let byte = |at: usize, value: u8| with(&move |i| i.bytes[at] = value);
    let cases = [
        number(pages, trampolines + 1),
        number(pages + 8, trampolines),
        number(pages + 16, text + 16),
        number(pages + 24, text + 0x1001),
        number(pages + 24, text + 0x20_0000),
        number(pages + 32, 3 << 32),
        number(pages + 32, 2 << 32 | 1),
        number(second, text + 10),
        number(second, text - 16),
        number(second, TASK_SIZE),
        number(second + 8, trampolines + PAGE),
        number(second + 8, trampolines + 65),
        byte(second + 16, 4),
        byte(second + 17, 4),
        byte(second + 17, 33),
        byte(second + 18, 12),
        byte(second + 19, 65),
    ];
    for (index, error) in cases.into_iter().enumerate() {
        let error = error.unwrap_or_else(|| panic!("case {index} passes"));
        assert!(is_bounds(&error, "call site") || is_bounds(&error, "trampoline"), "case {index}: {error}");
    }
}

#[test]
fn a_truncated_journal_record() {
    let error = resealed(|i| {
        let at = JOURNAL_OFFSET as usize;
        i.put_u32(at, u32::MAX); // the record's length
        let bytes = i.bytes[offset_of!(Header, journal_bytes)] as usize;
        let sum = zhuque_abi::codec::checksum(0, &i.bytes[at..at + bytes]);
        i.header_u32(offset_of!(Header, journal_checksum), sum);
    });
    assert!(matches!(error, Error::Damaged(_)), "{error}");
}

#[test]
fn what_the_journal_says_is_kept() {
    let mut image = Image::new();
    image.record(&Record::Process(process(b"/bin/true", [0; 4], b"")));
    image.record(&Record::Limit { resource: 7, soft: 333, hard: 444 });
    image.record(&Record::Descriptor { fd: 90, description: 1, cloexec: false });
    image.record(&Record::EpollEntry { epoll: 1, fd: 91, description: 0, events: 1, data: 0 });
    image.seal();
    let saved = Saved::check(&image.bytes, &machine()).expect("it is good");
    assert_eq!((saved.descriptor_limit, saved.highest_descriptor), (Some(333), 91));
}

#[test]
fn the_processor_must_have_what_the_old_one_had() {
    let mut image = Image::new();
    image.record(&Record::Process(process(b"/bin/true", [0; 4], b"")));
    image.header_u64(offset_of!(Header, xcr0), 0xe7);
    image.header_u32(offset_of!(Header, cpu_features) + 8, 1 << 16 | 1 << 5);
    image.seal();
    let mut machine = machine();
    let check = |machine: &_| Saved::check(&image.bytes, machine).err();
    let no_state = Error::Processor("avx512 register state".to_owned());
    assert_eq!(check(&machine), Some(no_state));
    machine.xcr0 = 0xff;
    assert_eq!(check(&machine), None);
    machine.features[2] = 1 << 5;
    assert_eq!(check(&machine), Some(Error::Processor("avx512f".to_owned())));
    machine.features[2] = u32::MAX;
    machine.xsave_bytes = 835;
    assert_eq!(check(&machine), Some(Error::VectorState { saved: 836, here: 835 }));
}

#[test]
fn errors_are_one_line() {
    for error in [broken(|i| i.header_u64(0, 1)), resealed(|i| i.header_u64(offset_of!(Header, base), 0))] {
        let text = error.to_string();
        assert!(!text.contains('\n') && text.contains(": "), "{text}");
    }
}

/// A small generator, so that a failure can be repeated.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn garbage_never_panics() {
    let mut image = Image::new();
    let file = image.file(b"/bin/true", [1, 2, 3, 4], false);
    image.map(0x4000_0000, 0x4000_3000, zhuque_model::maptree::Attr { file, ..attr(Kind::FilePrivate, 5) });
    image.record(&Record::Process(process(b"/bin/true", [0; 4], b"true\0")));
    image.seal();
    let used: Vec<(usize, usize)> = vec![
        (0, 0x300),
        (GLOBALS_OFFSET as usize, 0x100),
        (GLOBALS_OFFSET as usize + offset_of!(Globals, slots), 8),
        (FILES_OFFSET as usize + 2048, 64),
        (NODES_OFFSET as usize + 64, 64 * 6),
        (JOURNAL_OFFSET as usize, 100),
    ];
    let mut state = 88_172_645_463_325_252;
    let mut passed = 0;
    for round in 0..3000 {
        let (start, bytes) = used[random(&mut state) as usize % used.len()];
        let at = start + random(&mut state) as usize % bytes;
        let old = image.bytes[at];
        image.bytes[at] = if round % 2 == 0 { random(&mut state) as u8 } else { old ^ 1 << (round % 8) };
        let journal_bytes =
            u64::from_le_bytes(image.bytes[offset_of!(Header, journal_bytes)..][..8].try_into().expect("8"));
        if let Some(journal) = image.bytes[JOURNAL_OFFSET as usize..].get(..journal_bytes as usize) {
            let sum = zhuque_abi::codec::checksum(0, journal);
            image.header_u32(offset_of!(Header, journal_checksum), sum);
        }
        image.reseal();
        if let Ok(saved) = Saved::check(&image.bytes, &machine()) {
            passed += u32::from(Plan::make(&saved, 0).is_ok());
        }
        image.bytes[at] = old;
    }
    assert!(passed > 0, "nothing got as far as a plan");
}
