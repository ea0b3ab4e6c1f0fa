//! One rule at a time, on hand-assembled code.

mod common;

use common::Scratch;
use common::elf::{Builder, CODE, DATA};
use zhuque_sites::Plan;

/// `mov $39,%eax`
const MOV: &[u8] = b"\xb8\x27\0\0\0";
const SYSCALL: &[u8] = b"\x0f\x05";
/// `cmp $-4095,%rax`
const CMP: &[u8] = b"\x48\x3d\x01\xf0\xff\xff";
/// `lea 0(%rip),%rdx`
const LEA_RIP: &[u8] = b"\x48\x8d\x15\0\0\0\0";
/// `xor %eax,%eax`
const XOR: &[u8] = b"\x31\xc0";
const RET: &[u8] = b"\xc3";
const NOP3: &[u8] = b"\x0f\x1f\x00";
/// Ends every file's code: whoever falls behind the code under test finds that flags are dead.
const TAIL: &[u8] = b"\x31\xc0\xc3\xcc";

fn plan(builder: &Builder) -> Plan {
    let scratch = Scratch::new();
    let path = scratch.file("golden", &builder.build());
    zhuque_sites::plan_file(&path).expect("plan")
}

/// The sites as (offset in the code, bytes before, length).
fn runs(plan: &Plan) -> Vec<(u64, u8, u8)> {
    let sites = plan.sites.iter();
    sites.map(|site| (site.file_offset - CODE, site.before, site.length)).collect()
}

/// Plans one function and its tail.
fn one(parts: &[&[u8]]) -> Vec<(u64, u8, u8)> {
    let code = parts.concat();
    let mut builder = Builder::function(&code);
    builder.code.extend(TAIL);
    let plan = plan(&builder);
    let calls = code.windows(2).filter(|pair| pair == &SYSCALL).count();
    assert_eq!(plan.sites.len() + plan.unplanned, calls);
    assert_eq!(plan.library.count as usize, plan.sites.len());
    for site in &plan.sites {
        let start = (site.file_offset - CODE) as usize;
        let length = usize::from(site.length);
        assert_eq!(site.original[..length], code[start..start + length]);
    }
    runs(&plan)
}

#[test]
fn forward_is_preferred() {
    assert_eq!(one(&[MOV, SYSCALL, CMP, RET]), [(5, 0, 8)]);
    assert_eq!(one(&[MOV, SYSCALL, NOP3, XOR, RET]), [(5, 0, 5)]);
    assert_eq!(one(&[MOV, SYSCALL, XOR, XOR, RET]), [(5, 0, 6)]);
}

#[test]
fn backward_if_forward_is_impossible() {
    assert_eq!(one(&[MOV, SYSCALL, RET]), [(0, 5, 7)]);
    assert_eq!(one(&[NOP3, XOR, XOR, SYSCALL, RET]), [(3, 4, 6)]);
}

#[test]
fn both_directions_if_neither_suffices() {
    assert_eq!(one(&[LEA_RIP, b"\x90", SYSCALL, XOR, RET]), [(7, 1, 5)]);
}

#[test]
fn function_end_is_a_border() {
    // What follows the function could be moved, but is not part of it.
    assert_eq!(one(&[MOV, SYSCALL]), [(0, 5, 7)]);
    assert_eq!(one(&[SYSCALL]), []);
    assert_eq!(one(&[SYSCALL, XOR]), []);
    assert_eq!(one(&[XOR, SYSCALL]), []);
}

#[test]
fn branch_targets_split_runs() {
    // jmp to behind the syscall
    assert_eq!(one(&[MOV, SYSCALL, CMP, RET, b"\xeb\xf7"]), [(0, 5, 7)]);
    // jmp to the syscall: only the first instruction of a run may be a target
    assert_eq!(one(&[MOV, SYSCALL, CMP, RET, b"\xeb\xf5"]), [(5, 0, 8)]);
    assert_eq!(one(&[MOV, SYSCALL, RET, b"\xeb\xfb"]), []);
    // both
    assert_eq!(one(&[MOV, SYSCALL, CMP, RET, b"\xeb\xf7\xeb\xf3"]), []);
    // jrcxz, loop, near jcc, call, lea
    let others: [&[u8]; 5] = [
        b"\xe3\xf7",
        b"\xe2\xf7",
        b"\x0f\x84\xf3\xff\xff\xff",
        b"\xe8\xf4\xff\xff\xff",
        b"\x48\x8d\x05\xf2\xff\xff\xff",
    ];
    for branch in others {
        let found = one(&[MOV, SYSCALL, CMP, RET, branch, RET]);
        assert_eq!(found, [(0, 5, 7)], "{branch:x?}");
    }
}

#[test]
fn branches_of_other_functions_count() {
    let code = [MOV, SYSCALL, CMP, RET, &[0xcc; 200], b"\xe9\x29\xff\xff\xff"].concat();
    assert_eq!(code.len() - 5 - 200, 14);
    let distance = 7i32 - code.len() as i32;
    let mut builder = Builder::function(&code[..14]);
    builder.code = [&code[..code.len() - 4], &distance.to_le_bytes()].concat();
    // The jump is in code that no table describes.
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    // A short one in a neighbour function, and in a gap between functions.
    let mut builder = Builder::function(&code[..14]);
    builder.code = [&code[..14], b"\xeb\xf7\xcc\xcc\x31\xc0"].concat();
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    builder.frames.push((14, 20, None));
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
}

#[test]
fn rip_relative_neighbours_stay() {
    assert_eq!(one(&[MOV, SYSCALL, LEA_RIP, CMP, RET]), [(0, 5, 7)]);
    assert_eq!(one(&[LEA_RIP, SYSCALL, LEA_RIP, CMP, RET]), []);
    // So do calls, endbr64, hlt, int3, other syscalls.
    for neighbour in [b"\xe8\0\0\0\0".as_slice(), b"\xf3\x0f\x1e\xfa", b"\xf4", b"\xcc"] {
        assert_eq!(one(&[neighbour, SYSCALL, neighbour, CMP, RET]), []);
    }
}

#[test]
fn live_flags_forbid() {
    let jz: &[u8] = b"\x74\0";
    let mov_rr: &[u8] = b"\x48\x89\xc2";
    assert_eq!(one(&[CMP, MOV, SYSCALL, mov_rr, jz, XOR, RET]), []);
    // setz, cmovz, adc, pushf, lahf
    let readers: [&[u8]; 5] = [b"\x0f\x94\xc0", b"\x48\x0f\x44\xc1", b"\x48\x11\xc8", b"\x9c", b"\x9f"];
    for reader in readers {
        assert_eq!(one(&[MOV, SYSCALL, mov_rr, reader, XOR, RET]), []);
    }
    // inc keeps the carry flag, a shift by %cl may keep all, so may a repeated comparison.
    let partial: [&[u8]; 3] = [b"\xff\xc0", b"\xd3\xe0", b"\xf3\xa6"];
    for writer in partial {
        assert_eq!(one(&[MOV, SYSCALL, writer, b"\x72\0", XOR, RET]), []);
        assert_eq!(one(&[MOV, SYSCALL, writer, XOR, RET]).len(), 1);
    }
    // A direct jump is followed, to a reader or a writer.
    let jmp: &[u8] = b"\xeb\x01";
    assert_eq!(one(&[MOV, SYSCALL, mov_rr, jmp, RET, jz, XOR, RET]), []);
    assert_eq!(one(&[MOV, SYSCALL, mov_rr, jmp, RET, XOR, RET]).len(), 1);
    // Dead at return, call, indirect jump.
    assert_eq!(one(&[MOV, SYSCALL, mov_rr, b"\xff\xe0"]).len(), 1);
    assert_eq!(one(&[MOV, SYSCALL, mov_rr, b"\xff\xd0", jz, RET]).len(), 1);
    // An endless loop never writes them.
    assert_eq!(one(&[MOV, SYSCALL, mov_rr, b"\xeb\xfe"]), []);
}

#[test]
fn signal_return_stays() {
    assert_eq!(one(&[b"\x90\x48\xc7\xc0\x0f\0\0\0", SYSCALL, NOP3, RET]), []);
    assert_eq!(one(&[b"\x90\xb8\x0f\0\0\0", SYSCALL, NOP3, RET]), []);
    // A neighbour's run must not reach into it.
    let parts = [MOV, SYSCALL, b"\xb8\x0f\0\0\0", SYSCALL, NOP3, RET];
    assert_eq!(one(&parts), [(0, 5, 7)]);
}

#[test]
fn runs_do_not_overlap() {
    let parts = [XOR, SYSCALL, NOP3, SYSCALL, NOP3, XOR, RET];
    assert_eq!(one(&parts), [(2, 0, 5), (7, 0, 5)]);
    // The first takes what the second would need.
    assert_eq!(one(&[XOR, SYSCALL, NOP3, SYSCALL, RET]), [(2, 0, 5)]);
}

#[test]
fn data_among_instructions_bars_the_function() {
    // 06 is no instruction in 64-bit mode.
    assert_eq!(one(&[MOV, SYSCALL, CMP, RET, b"\x06"]), []);
    // A branch into an instruction shows that decoding went astray, except behind LOCK.
    assert_eq!(one(&[MOV, SYSCALL, CMP, b"\x74\x01", MOV, RET]), []);
    let lock: &[u8] = b"\x74\x01\xf0\x48\x0f\xb1\x0f";
    assert_eq!(one(&[MOV, SYSCALL, CMP, lock, RET]).len(), 1);
}

#[test]
fn switch_tables_are_read() {
    // lea DATA(%rip),%rdx ; jmp *%rax ; mov ; syscall ; cmp ; ret
    let distance = ((DATA - CODE - 7) as u32).to_le_bytes();
    let lea = [b"\x48\x8d\x15", &distance[..], b"\xff\xe0"].concat();
    let code = [&lea, MOV, SYSCALL, CMP, RET].concat();
    let mut builder = Builder::function(&code);
    assert_eq!(runs(&plan(&builder)), [(14, 0, 8)]);
    let entry = |to: u64| ((CODE + to) as i32 - DATA as i32).to_le_bytes();
    builder.data = vec![(DATA, [entry(23), entry(16)].concat())];
    assert_eq!(runs(&plan(&builder)), [(9, 5, 7)]);
    // Beyond the end of a table may lie anything; an instruction's middle is no entry.
    builder.data = vec![(DATA, [entry(23), entry(18)].concat())];
    assert_eq!(runs(&plan(&builder)), [(14, 0, 8)]);
}

#[test]
fn stored_addresses_are_targets() {
    let code = [MOV, SYSCALL, CMP, RET].concat();
    let target = CODE + 7;
    // R_X86_64_RELATIVE
    let mut builder = Builder::function(&code);
    let rela = [DATA + 64, 8, target].map(u64::to_le_bytes).concat();
    builder.data = vec![(DATA, rela)];
    builder.dynamic = vec![(7, DATA), (8, 24)];
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    // DT_RELR: one place, then one eight bytes behind it by bitmap; the addends are there.
    let relr = [DATA + 64, 3].map(u64::to_le_bytes).concat();
    let places = [CODE, target].map(u64::to_le_bytes).concat();
    builder.data = vec![(DATA, relr), (DATA + 64, places)];
    builder.dynamic = vec![(36, DATA), (35, 16)];
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    // Not position-independent: nothing but the address.
    let mut builder = Builder::function(&code);
    builder.data = vec![(DATA + 8, target.to_le_bytes().to_vec())];
    assert_eq!(runs(&plan(&builder)), [(5, 0, 8)]);
    builder.fixed = true;
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    // A symbol, DT_INIT.
    let mut builder = Builder::function(&code);
    builder.symbols = vec![(7, 0)];
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    let mut builder = Builder::function(&code);
    builder.dynamic = vec![(12, target)];
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
}

#[test]
fn landing_pads_are_targets() {
    let code = [MOV, SYSCALL, CMP, RET].concat();
    let mut builder = Builder::function(&code);
    builder.frames[0].2 = Some(DATA);
    // lpstart omitted, types omitted, uleb128, one call site: 0..2 -> 7, no action
    builder.data = vec![(DATA, b"\xff\xff\x01\x04\x00\x02\x07\x00".to_vec())];
    assert_eq!(runs(&plan(&builder)), [(0, 5, 7)]);
    // An encoding nobody knows: then nobody knows the landing pads.
    builder.data = vec![(DATA, b"\xff\xff\x0e\x04\x00\x02\x07\x00".to_vec())];
    assert_eq!(runs(&plan(&builder)), []);
}

#[test]
fn only_known_functions() {
    let code = [MOV, SYSCALL, CMP, RET].concat();
    let mut builder = Builder::function(&code);
    builder.frames.clear();
    let nothing = plan(&builder);
    assert_eq!((nothing.sites.len(), nothing.unplanned), (0, 0));
    // A symbol with a size will do.
    builder.symbols = vec![(0, code.len() as u64)];
    assert_eq!(runs(&plan(&builder)), [(5, 0, 8)]);
    // What a function falls into is code; what follows its end is not.
    let mut builder = Builder::function(&[MOV, SYSCALL, CMP, RET, XOR, RET].concat());
    builder.frames = vec![(0, 5, None), (14, 17, None)];
    assert_eq!(runs(&plan(&builder)), [(5, 0, 8)]);
    let mut builder = Builder::function(&[RET, SYSCALL, CMP, RET, XOR, RET].concat());
    builder.frames = vec![(0, 1, None), (10, 13, None)];
    assert_eq!(runs(&plan(&builder)), []);
}

#[test]
fn called_functions_are_known() {
    // call 16; ret; at 16: jrcxz over the first return; a return; mov; syscall; cmp; ret
    let call = [b"\xe8\x0b\0\0\0", RET, &[0xcc; 10]].concat();
    let callee = [b"\xe3\x01", RET, MOV, SYSCALL, CMP, RET].concat();
    let mut builder = Builder::function(&call[..6]);
    builder.code = [call, callee, TAIL.to_vec()].concat();
    assert_eq!(runs(&plan(&builder)), [(24, 0, 8)]);
    // The same is unknown if nobody calls it.
    builder.code[0] = 0x3d;
    assert_eq!(runs(&plan(&builder)), []);
}
