//! Awkward surroundings of a `syscall`, one by one: the verdict, and the very bytes that the guest writes.
//!
//! Neighbour: `golden` (one rule of the planner at a time). Here each case is a piece of code as compilers and
//! assemblers write it; what is expected of the trampoline is spelled out by hand.

mod common;

use common::Scratch;
use common::check::check_plan;
use common::elf::{Builder, CODE, DATA};
use common::rewrite::{BIAS, Rewritten};
use zhuque_sites::{Plan, plan_file};

/// `mov $39,%eax`
const MOV: &[u8] = b"\xb8\x27\0\0\0";
const SYSCALL: &[u8] = b"\x0f\x05";
/// `cmp $-4095,%rax`
const CMP: &[u8] = b"\x48\x3d\x01\xf0\xff\xff";
const RET: &[u8] = b"\xc3";
const ENDBR: &[u8] = b"\xf3\x0f\x1e\xfa";
/// Behind every piece of code: `xor %eax,%eax; ret; int3`.
const TAIL: &[u8] = b"\x31\xc0\xc3\xcc";
/// `lea 6(%rip),%rcx`, then the start of `jmp *gate`.
const ENTER: &[u8] = b"\x48\x8d\x0d\x06\0\0\0\xff\x25";
/// Where the trampolines are put: a page in front of the code, whose first bytes are the gate's address.
const PLACE: u64 = BIAS + CODE - 0x1000;

/// A plan for `builder`; it and its application are checked.
fn plan(builder: &Builder) -> Plan {
    let scratch = Scratch::new();
    let bytes = builder.build();
    let plan = plan_file(&scratch.file("awkward", &bytes)).expect("plan");
    assert_eq!(check_plan(&bytes, &plan), Vec::<String>::new());
    plan
}

/// One function.
fn function(parts: &[&[u8]]) -> Builder {
    let code = parts.concat();
    let mut builder = Builder::function(&code);
    builder.code.extend(TAIL);
    builder
}

/// The runs as (offset in the code, bytes before the call, length).
fn runs(builder: &Builder) -> Vec<(u64, u8, u8)> {
    let sites = plan(builder).sites;
    sites.iter().map(|site| (site.file_offset - CODE, site.before, site.length)).collect()
}

/// The code after rewriting, and the trampolines.
fn written(builder: &Builder) -> (Vec<u8>, Vec<Vec<u8>>) {
    let plan = plan(builder);
    let text = &builder.code;
    let rewritten = Rewritten::apply(text, CODE, CODE, &plan.sites, PLACE);
    let slots = rewritten.window.chunks_exact(64).skip(1).map(<[u8]>::to_vec);
    (rewritten.after, slots.collect())
}

/// `jmp rel32` at an offset of the code to the trampoline with this number.
fn jump(at: u64, number: u64) -> Vec<u8> {
    let distance = (PLACE + 64 * (number + 1)) as i64 - (BIAS + CODE + at + 5) as i64;
    [&[0xe9], &(distance as i32).to_le_bytes()[..]].concat()
}

/// A trampoline: `before`, the gate, `after`, back to an offset of the code.
fn trampoline(number: u64, before: &[u8], after: &[u8], back: u64) -> Vec<u8> {
    let start = PLACE + 64 * (number + 1);
    let mut code = [before, ENTER].concat();
    let from = start + code.len() as u64 + 4;
    code.extend((PLACE.wrapping_sub(from) as i32).to_le_bytes());
    code.extend(after);
    let from = start + code.len() as u64 + 5;
    code.push(0xe9);
    code.extend(((BIAS + CODE + back).wrapping_sub(from) as i32).to_le_bytes());
    code.resize(60, 0xcc);
    code.extend((1000 + number as u32).to_le_bytes());
    code
}

#[test]
fn at_a_functions_start() {
    let builder = function(&[SYSCALL, CMP, RET]);
    assert_eq!(runs(&builder), [(0, 0, 8)]);
    let (code, trampolines) = written(&builder);
    assert_eq!(code, [&jump(0, 0)[..], &[0xcc; 3], RET, TAIL].concat());
    assert_eq!(trampolines, [trampoline(0, b"", CMP, 8)]);
    // Behind endbr64, which stays where indirect calls land.
    let builder = function(&[ENDBR, SYSCALL, CMP, RET]);
    assert_eq!(runs(&builder), [(4, 0, 8)]);
    assert_eq!(written(&builder).0[..4], *ENDBR);
    // With nothing but endbr64 in front and nothing that can be moved behind.
    assert_eq!(runs(&function(&[ENDBR, SYSCALL, RET])), []);
}

#[test]
fn at_a_functions_end() {
    // syscall; ret
    let builder = function(&[MOV, SYSCALL, RET]);
    assert_eq!(runs(&builder), [(0, 5, 7)]);
    let (code, trampolines) = written(&builder);
    assert_eq!(code, [&jump(0, 0)[..], &[0xcc; 2], RET, TAIL].concat());
    assert_eq!(trampolines, [trampoline(0, MOV, b"", 7)]);
    // The last instruction: what follows belongs to somebody else.
    let builder = function(&[MOV, SYSCALL]);
    assert_eq!(runs(&builder), [(0, 5, 7)]);
    assert_eq!(runs(&function(&[b"\x31\xff", SYSCALL])), []);
}

#[test]
fn followed_by_a_branch_target() {
    // 0: mov; 5: syscall; 7: test %rax,%rax; 10: jne 7 -- a loop's back-edge into what follows the call
    let test: &[u8] = b"\x48\x85\xc0";
    assert_eq!(runs(&function(&[MOV, SYSCALL, test, b"\x75\xfb", RET])), [(0, 5, 7)]);
    // The same back to the call itself: a run may begin with a target.
    let builder = function(&[MOV, SYSCALL, test, b"\x75\xf9", RET]);
    assert_eq!(runs(&builder), [(5, 0, 5)]);
    assert_eq!(written(&builder).1, [trampoline(0, b"", test, 10)]);
    // Back to the load of the number: fine for a run that begins there, too.
    assert_eq!(runs(&function(&[MOV, SYSCALL, RET, b"\xeb\xf6"])), [(0, 5, 7)]);
    // Into the number's instruction (its immediate): decoding of this function cannot be trusted.
    assert_eq!(runs(&function(&[MOV, SYSCALL, RET, b"\xeb\xf7"])), []);
}

#[test]
fn neighbours_that_cannot_be_moved() {
    let lea: &[u8] = b"\x48\x8d\x35\0\0\0\0";
    let load: &[u8] = b"\x48\x8b\x05\0\x20\0\0";
    let jz: &[u8] = b"\x74\0";
    let call: &[u8] = b"\xe8\0\0\0\0";
    let call_register: &[u8] = b"\xff\xd0";
    let fixed = [lea, load, jz, call, call_register, ENDBR, b"\xcd\x80", b"\x0f\x0b", b"\xcc", b"\xf4", b"\x0f\x34"];
    for neighbour in fixed {
        // In front, the other side serves.
        assert_eq!(
            runs(&function(&[neighbour, SYSCALL, CMP, RET])),
            [(neighbour.len() as u64, 0, 8)],
            "{neighbour:x?}"
        );
        // Between, nothing.
        assert_eq!(runs(&function(&[neighbour, SYSCALL, b"\x90", neighbour, b"\x31\xc0", RET])), [], "{neighbour:x?}");
    }
    // Behind, the front serves, where flags are dead (a conditional jump reads them).
    for neighbour in [lea, load, call, call_register, b"\x0f\x0b"] {
        let builder = function(&[MOV, SYSCALL, neighbour, CMP, RET]);
        assert_eq!(runs(&builder), [(0, 5, 7)], "{neighbour:x?}");
        let (code, _) = written(&builder);
        assert_eq!(code[7..7 + neighbour.len()], *neighbour);
    }
    assert_eq!(runs(&function(&[MOV, SYSCALL, jz, CMP, RET])), []);
}

#[test]
fn registers_that_a_syscall_destroys() {
    // mov %rcx,%r10 in front, as every wrapper of six arguments has it
    let r10: &[u8] = b"\x49\x89\xca";
    let builder = function(&[r10, SYSCALL, RET]);
    assert_eq!(runs(&builder), [(0, 3, 5)]);
    assert_eq!(written(&builder).1, [trampoline(0, r10, b"", 5)]);
    // xor %ecx,%ecx; mov %rax,%r11 behind
    let after: &[u8] = b"\x31\xc9\x49\x89\xc3";
    let builder = function(&[SYSCALL, after, b"\x31\xc0", RET]);
    assert_eq!(written(&builder).1, [trampoline(0, b"", after, 7)]);
    // mov %rcx,%r10; mov $17,%eax: both are needed when only the second is not enough
    let push: &[u8] = b"\x6a\x11\x58";
    let builder = function(&[push, SYSCALL, RET]);
    assert_eq!(written(&builder).1, [trampoline(0, push, b"", 5)]);
}

#[test]
fn prefixes() {
    // A prefixed call is no call that the shim knows.
    assert_eq!(runs(&function(&[MOV, b"\x48\x0f\x05", CMP, RET])), []);
    assert_eq!(runs(&function(&[MOV, b"\xf3\x0f\x05", CMP, RET])), []);
    // Prefixed neighbours are whole instructions: lock addl $0,(%rsp); mov %fs:16,%rdx; data16 nop
    let prefixed: [&[u8]; 3] =
        [b"\xf0\x83\x04\x24\0", b"\x64\x48\x8b\x14\x25\x10\0\0\0", b"\x66\x66\x2e\x0f\x1f\x84\0\0\0\0\0"];
    for neighbour in prefixed {
        let builder = function(&[SYSCALL, neighbour, CMP, RET]);
        assert_eq!(runs(&builder), [(0, 0, 2 + neighbour.len() as u8)]);
        assert_eq!(written(&builder).1, [trampoline(0, b"", neighbour, 2 + neighbour.len() as u64)]);
    }
}

#[test]
fn two_calls() {
    // Next to each other there is no room between them.
    assert_eq!(runs(&function(&[MOV, SYSCALL, SYSCALL, CMP, RET])), [(0, 5, 7), (7, 0, 8)]);
    let builder = function(&[MOV, SYSCALL, SYSCALL, CMP, RET]);
    let (code, trampolines) = written(&builder);
    assert_eq!(code, [&jump(0, 0)[..], &[0xcc; 2], &jump(7, 1), &[0xcc; 3], RET, TAIL].concat());
    assert_eq!(trampolines, [trampoline(0, MOV, b"", 7), trampoline(1, b"", CMP, 15)]);
    // A shared neighbour goes to the first.
    assert_eq!(runs(&function(&[SYSCALL, MOV, SYSCALL, RET])), [(0, 0, 7)]);
}

#[test]
fn bytes_of_a_call_that_are_none() {
    // mov $0x050f,%eax; movabs; add 0x50f(%rax),%eax; lea; cmp: 0f 05 in immediates and displacements
    let inside: [&[u8]; 4] =
        [b"\xb8\x0f\x05\0\0", b"\x48\xb8\0\x0f\x05\0\0\0\0\0", b"\x03\x80\x0f\x05\0\0", b"\x48\x8d\x80\x0f\x05\0\0"];
    for instruction in inside {
        let builder = function(&[instruction, CMP, RET]);
        let found = plan(&builder);
        assert_eq!((found.sites.len(), found.unplanned), (0, 0), "{instruction:x?}");
        // As the neighbour of a real one it is moved whole.
        let builder = function(&[SYSCALL, instruction, CMP, RET]);
        assert_eq!(runs(&builder), [(0, 0, 2 + instruction.len() as u8)], "{instruction:x?}");
        assert_eq!(written(&builder).1, [trampoline(0, b"", instruction, 2 + instruction.len() as u64)]);
    }
    // Across two instructions: add $15,%al (04 0f); add $imm,%eax (05 ...)
    let found = plan(&function(&[b"\x04\x0f", b"\x05\x48\x3d\0\0", CMP, RET]));
    assert_eq!((found.sites.len(), found.unplanned), (0, 0));
}

#[test]
fn landing_pads_and_switch_tables_inside() {
    let code = [MOV, SYSCALL, CMP, RET].concat();
    let mut builder = Builder::function(&code);
    builder.frames[0].2 = Some(DATA);
    for (pad, expected) in [(7, (0, 5, 7)), (5, (5, 0, 8)), (13, (5, 0, 8))] {
        builder.data = vec![(DATA, vec![0xff, 0xff, 1, 4, 0, 2, pad, 0])];
        assert_eq!(runs(&builder), [expected], "a pad at {pad}");
    }
    // lea DATA(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rdx,%rax; notrack jmp *%rax
    let lea = [b"\x48\x8d\x15".as_slice(), &((DATA - CODE - 7) as u32).to_le_bytes()].concat();
    let dispatch = [&lea[..], b"\x48\x63\x04\x82\x48\x01\xd0\x3e\xff\xe0"].concat();
    let head = dispatch.len() as u64;
    let mut builder = Builder::function(&[&dispatch, MOV, SYSCALL, CMP, RET].concat());
    let entry = |to: u64| ((CODE + head + to) as i32 - DATA as i32).to_le_bytes();
    for (case, expected) in [(7, (head, 5, 7)), (5, (head + 5, 0, 8)), (0, (head + 5, 0, 8))] {
        builder.data = vec![(DATA, [entry(13), entry(case)].concat())];
        assert_eq!(runs(&builder), [expected], "a case at {case}");
    }
}

/// glibc's cancellable calls: the handler compares the program counter with labels right in front of and behind the
/// `syscall`, so neither may come to lie inside a run.
#[test]
fn ranges_of_cancellation() {
    // 0: mov; 5: start: testb; 10: jne; 12: syscall; 14: end: ret -- then the handler: lea start; lea end
    let test: &[u8] = b"\xf6\x07\x10\x90\x90";
    let body = [MOV, test, b"\x75\x01", SYSCALL, RET].concat();
    let handler = |start: i32, end: i32| {
        let lea = |target: i32, at: i32| {
            let next = body.len() as i32 + at + 7;
            [b"\x48\x8d\x05".as_slice(), &(target - next).to_le_bytes()].concat()
        };
        [&body[..], &lea(start, 0), &lea(end, 7), RET].concat()
    };
    // Nothing in front can be moved (a conditional jump), nothing behind (a return): the net.
    assert_eq!(runs(&Builder::function(&handler(5, 14))), []);
    // With a comparison behind the call, as older ones have: `end` forbids a run over it.
    let body = [MOV, test, SYSCALL, CMP, RET].concat();
    let range = |start: i32, end: i32| {
        let lea = |target: i32, at: i32| {
            let next = body.len() as i32 + at + 7;
            [b"\x48\x8d\x05".as_slice(), &(target - next).to_le_bytes()].concat()
        };
        Builder::function(&[&body[..], &lea(start, 0), &lea(end, 7), RET].concat())
    };
    assert_eq!(runs(&range(0, 18)), [(10, 0, 8)]);
    // end = 12: only backwards, over the two nops and the test; start = 5 is where that run begins.
    assert_eq!(runs(&range(5, 12)), [(5, 5, 7)]);
    // start = 8, between test and nops: what is left is too small.
    assert_eq!(runs(&range(8, 12)), []);
}

/// Code that keeps things below the stack pointer, or moves that: neither the jump nor the trampoline uses the stack.
#[test]
fn the_red_zone() {
    // mov %rdi,-8(%rsp); syscall; mov -8(%rsp),%rdi
    let (store, load): (&[u8], &[u8]) = (b"\x48\x89\x7c\x24\xf8", b"\x48\x8b\x7c\x24\xf8");
    let builder = function(&[store, SYSCALL, load, b"\x31\xc0", RET]);
    assert_eq!(written(&builder).1, [trampoline(0, b"", load, 12)]);
    let builder = function(&[store, SYSCALL, RET]);
    assert_eq!(written(&builder).1, [trampoline(0, store, b"", 7)]);
    // pop %rbx; pop %rbp; pop %r12
    let pops: &[u8] = b"\x5b\x5d\x41\x5c";
    let builder = function(&[SYSCALL, pops, b"\x31\xc0", RET]);
    assert_eq!(runs(&builder), [(0, 0, 6)]);
    assert_eq!(written(&builder).1, [trampoline(0, b"", pops, 6)]);
}
