//! Mapping steps, files, holes, descriptor numbers.

mod common;

use common::{BASE, Image, REVIVE, attr, machine, process};
use zhuque_abi::journal::Record;
use zhuque_abi::layout::*;
use zhuque_abi::life::boot_flag;
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::Attr;
use zhuque_restore::Error;
use zhuque_restore::holes::{LOWEST, Run, place};
use zhuque_restore::numbers::Numbers;
use zhuque_restore::plan::{Plan, Source};
use zhuque_restore::process::{Maps, syscall_instruction};
use zhuque_restore::validate::Saved;

const K64: u64 = 0x1_0000;

fn with(build: impl FnOnce(&mut Image)) -> Image {
    let mut image = Image::new();
    image.record(&Record::Process(process(b"/bin/true", [0; 4], b"")));
    build(&mut image);
    image.seal();
    image
}

fn plan_error(build: impl FnOnce(&mut Image)) -> Option<Error> {
    let image = with(build);
    let saved = Saved::check(&image.bytes, &machine()).expect("it is good");
    Plan::make(&saved, 0).err()
}

#[test]
fn every_kind_becomes_its_steps() {
    let edge = 3 * SLICE_BYTES;
    let image = with(|image| {
        let text = image.file(b"/lib/text", [1, 2, 3, 4], false);
        let data = image.file(b"/var/data", [1, 2, 3, 5], true);
        image.map(K64, 2 * K64, Attr { file: text, offset: 0x3000, ..attr(Kind::FilePrivate, 5) });
        image.map(2 * K64, 3 * K64, Attr { file: text, offset: 0x1000, ..attr(Kind::FilePrivate, 1) });
        image.map(3 * K64, 4 * K64, Attr { file: data, offset: 0, ..attr(Kind::FileShared, 3) });
        image.map(4 * K64, 5 * K64, Attr { file: data, offset: 0, ..attr(Kind::FilePrivate, 1) });
        image.map(5 * K64, 6 * K64, attr(Kind::Reserve, 0));
        image.map(6 * K64, 7 * K64, attr(Kind::Headroom, 0));
        image.map(7 * K64, 8 * K64, attr(Kind::Volatile, 1));
        image.map(edge - K64, edge + K64, attr(Kind::Region, 3));
    });
    let saved = Saved::check(&image.bytes, &machine()).expect("it is good");
    let plan = Plan::make(&saved, 0).expect("a plan");
    let short: Vec<_> = plan.steps.iter().map(|s| (s.start, s.bytes, s.source, s.offset, s.prot)).collect();
    let (private, anonymous) = (libc::MAP_PRIVATE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    assert_eq!(
        short,
        [
            (K64, K64, Source::File(0), 0x3000, 5),
            (2 * K64, K64, Source::File(0), 0x1000, 1),
            (3 * K64, K64, Source::File(1), 0, 3),
            (4 * K64, K64, Source::File(2), 0, 1),
            (5 * K64, K64, Source::Anonymous, 0, 0),
            (edge - K64, K64, Source::Slice(2), SLICE_BYTES - K64, 3),
            (edge, K64, Source::Slice(3), 0, 3),
            (BASE, CONTROL_BYTES, Source::Control, 0, 3),
            (BASE + LIFE_OFFSET, LIFE_BYTES, Source::Anonymous, 0, 3),
            (REVIVE, PAGE, Source::Slice((REVIVE / SLICE_BYTES) as usize), REVIVE % SLICE_BYTES, 5),
        ]
    );
    let flags: Vec<_> = plan.steps.iter().map(|s| s.flags).collect();
    let shared = libc::MAP_SHARED;
    assert_eq!(flags, [private, private, shared, private, anonymous, shared, shared, shared, anonymous, shared]);
    let files: Vec<_> = plan.files.iter().map(|f| (f.path, f.writable, f.written, f.unchanged)).collect();
    assert_eq!(
        files,
        [
            (&b"/lib/text"[..], false, false, true),
            (b"/var/data", true, true, false),
            (b"/var/data", false, false, true)
        ]
    );
    assert_eq!((plan.slice_bytes[2], plan.slice_bytes[3]), (SLICE_BYTES, K64));
    assert!(plan.taken.contains(&Run::new(6 * K64, K64)) && plan.taken.contains(&Run::new(7 * K64, K64)));

    let dax = Plan::make(&saved, boot_flag::DAX).expect("a plan");
    assert_eq!(dax.steps[5].flags, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC);

    let numbers = Numbers::choose(1024, 4096, 10, 7, None).expect("numbers").region_descriptors();
    let steps = plan.bind(&numbers, 15);
    assert_eq!((steps[0].fd, steps[2].fd, steps[4].fd), (15, 16, -1));
    assert_eq!((steps[5].fd, steps[7].fd), (numbers.slices[2], numbers.control));
}

#[test]
fn mappings_that_cannot_be() {
    let bounds = |error: Option<Error>| matches!(error, Some(Error::Bounds { .. }));
    assert!(bounds(plan_error(|i| i.map(K64 + 1, 2 * K64, attr(Kind::Region, 3)))));
    assert!(bounds(plan_error(|i| i.map(0x1000, 2 * K64, attr(Kind::Region, 3)))));
    assert!(bounds(plan_error(|i| i.map(TASK_SIZE - K64, TASK_SIZE + PAGE, attr(Kind::Region, 3)))));
    assert!(bounds(plan_error(|i| i.map(K64, 2 * K64, attr(Kind::Region, 9)))));
    assert!(bounds(plan_error(|i| i.map(BASE + K64, BASE + 2 * K64, attr(Kind::Region, 3)))));
    assert!(bounds(plan_error(|i| i.map(K64, 2 * K64, Attr { file: 1, ..attr(Kind::FileShared, 3) }))));
    assert!(bounds(plan_error(|i| i.map(REVIVE, REVIVE + PAGE, attr(Kind::Region, 1)))));
    let odd = plan_error(|i| {
        let file = i.file(b"/x", [0; 4], false);
        i.map(K64, 2 * K64, Attr { file, offset: 1, ..attr(Kind::FilePrivate, 1) });
    });
    assert!(bounds(odd));
    let relative = plan_error(|i| {
        let file = i.file(b"x", [0; 4], false);
        i.map(K64, 2 * K64, Attr { file, ..attr(Kind::FilePrivate, 1) });
    });
    assert!(matches!(relative, Some(Error::Damaged(_))));
}

#[test]
fn holes_are_free_in_both() {
    let vdso = Run::new(0x7fff_0000_0000, 0x8000);
    let current = [vdso, Run::new(0x7fff_f000_0000, 0x2000_0000)];
    // Nothing in the way: the vdso stays, the stub is as high as possible.
    let places = place(&[], &current, vdso, 0x5001).expect("a place");
    assert_eq!(places.vdso, vdso.start);
    assert_eq!(places.stub, 0x7fff_f000_0000 - 0x6000);
    // Something of the program lies where the vdso is.
    let saved = [Run::new(vdso.start + 0x7000, 0x1000), Run::new(0x7fff_8000_0000, 0x7000_0000)];
    let places = place(&saved, &current, vdso, 0x5000).expect("a place");
    assert_eq!(places.vdso, 0x7fff_8000_0000 - 0x8000);
    assert_eq!(places.stub, 0x7fff_8000_0000 - 0x8000 - 0x5000);
    for run in saved.iter().chain(&current) {
        assert!(!run.meets(&Run::new(places.vdso, 0x8000)) && !run.meets(&Run::new(places.stub, 0x5000)));
    }
}

#[test]
fn holes_in_a_full_address_space() {
    let none = Run { start: 0, end: 0 };
    let all = [Run { start: LOWEST, end: 0x4000_0000 }, Run { start: 0x4000_3000, end: TASK_SIZE }];
    assert_eq!(place(&all, &[], none, 0x3000).map(|p| p.stub), Ok(0x4000_0000));
    assert_eq!(place(&all, &[], none, 0x3001), Err(Error::NoHole(0x4000)));
    assert_eq!(place(&[Run { start: 0, end: u64::MAX }], &[], none, 1), Err(Error::NoHole(0x1000)));
    // Below the lowest address there is nothing, and overlapping runs do not matter.
    let nested = [Run { start: LOWEST, end: TASK_SIZE }, Run::new(0x5000_0000, 0x1000)];
    assert_eq!(place(&nested, &[], none, 1), Err(Error::NoHole(0x1000)));
}

#[test]
fn descriptor_numbers() {
    // Above the soft limit when the hard one allows.
    let n = Numbers::choose(1024, 20000, 12, 9, None).expect("numbers");
    assert_eq!((n.region, n.helpers, n.helpers_end), (1024, 12, 21));
    // Just below the limit.
    let n = Numbers::choose(1024, 1024, 12, 9, None).expect("numbers");
    assert_eq!((n.region, n.helpers), (1024 - OWN_DESCRIPTORS as i32, 12));
    // Never so high that the kernel allocates gigabytes, or looks behind sets of select's.
    for (soft, hard) in [(1 << 30, 1 << 30), (2048, 2048), (20000, 1 << 20)] {
        let n = Numbers::choose(soft, hard, 12, 9, None).expect("numbers");
        assert_eq!(n.region, 960);
    }
    assert_eq!(Numbers::choose(4096, 980, 12, 9, None).expect("numbers").region, 980 - OWN_DESCRIPTORS as i32);
    assert_eq!(Numbers::choose(4096, 4096, 1400, 9, None).expect("numbers").region, 1400);
    assert!(Numbers::choose(u64::MAX, u64::MAX, 12, 9, None).is_ok());
    // Helpers that do not fit below go above.
    let n = Numbers::choose(20, 200, 12, 9, None).expect("numbers");
    assert_eq!((n.region, n.helpers), (20, 20 + OWN_DESCRIPTORS as i32));
    assert_eq!(n.used(), [(20, 54), (55, 63)]);
    // A program with numbers above the usual place.
    let n = Numbers::choose(64, 200, 100, 9, None).expect("numbers");
    assert_eq!((n.region, n.helpers), (100, 100 + OWN_DESCRIPTORS as i32));
    let needed = 12 + 9 + OWN_DESCRIPTORS;
    assert_eq!(Numbers::choose(30, 30, 12, 9, None), Err(Error::Descriptors { needed, limit: 30 }));
    let d = Numbers::choose(1024, 1024, 12, 9, None).expect("numbers").region_descriptors();
    assert_eq!((d.first, d.slices[0], d.slices[31], d.lock, d.end), (989, 989, 1020, 1023, 1024));
}

#[test]
fn maps_of_a_process() {
    let text = "\
55d0-55d1 r--p 00000000 fe:00 123                        /usr/bin/a file
7f00000-7f04000 r--p 00000000 00:00 0                          [vvar]
7f04000-7f06000 r--p 00000000 00:00 0                          [vvar_vclock]
7f06000-7f08000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
    let maps = Maps::parse(text).expect("a list");
    assert_eq!(maps.runs.len(), 4);
    assert_eq!(maps.vdso_run(), Run { start: 0x7f00000, end: 0x7f08000 });
    assert_eq!(maps.vdso_image(), Some(Run { start: 0x7f06000, end: 0x7f08000 }));
    let torn = text.replace("7f06000-", "7f07000-");
    assert!(matches!(Maps::parse(&torn), Err(Error::Kernel(_))));
    for bad in ["x", "1-2", "2-1 r", "1-z r--p 0 0 0 x"] {
        assert!(matches!(Maps::parse(bad), Err(Error::Kernel(_))), "{bad}");
    }
    assert_eq!(syscall_instruction(&[0x90, 0x0f, 0x05]), Some(1));
    assert_eq!(syscall_instruction(&[0x0f]), None);
}
