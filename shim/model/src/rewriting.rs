//! The bytes that rewriting a call site makes: its trampoline, and the jump that leads there.
//!
//! A site's run (`zhuque_abi::sites::Site`) is overwritten by a five-byte jump to a trampoline, which does what the
//! overwritten instructions did around a jump into the gate. Key functions: [`trampoline`], [`jump`]; [`visible`] and
//! [`executable`] translate program counters between the two places. Neighbours: the shim's `entry/patch.rs` and
//! `entry/sites.rs`, which do this to memory; the tests of `launcher/sites`, which do it to every file they find.

use zhuque_abi::header::{Patched, TRAMPOLINE_BYTES};
use zhuque_abi::sites::{SITE_BYTES, Site};

/// Bytes of `jmp rel32`.
const JUMP: usize = 5;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const TRAP: u8 = 0xcc;

/// The sites whose runs lie in the part of the file from `start` to `end`; `sites` are sorted.
pub fn within(sites: &[Site], start: u64, end: u64) -> &[Site] {
    let first = sites.partition_point(|site| site.file_offset < start);
    let last = sites.partition_point(|site| site.file_offset.saturating_add(u64::from(site.length)) <= end);
    sites.get(first..last).unwrap_or(&[])
}

/// Whether a site is one at all: room for the jump, and a `syscall` where it says.
pub fn well_formed(site: &Site) -> bool {
    let (before, length) = (usize::from(site.before), usize::from(site.length));
    (JUMP..=SITE_BYTES).contains(&length) && site.original[..length].get(before..before + 2) == Some(&SYSCALL)
}

/// Writes one trampoline at `offset` of the pages, and returns the site's entry. The pages lie at `place`, and begin
/// with the gate's address; the site is well formed, and its run lies at `at`.
pub fn trampoline(window: &mut [u8], offset: u64, place: u64, at: u64, site: &Site, index: u32) -> Patched {
    let (before, length) = (usize::from(site.before), usize::from(site.length));
    let after = length - before - 2;
    let start = offset as usize;
    let mut code = [TRAP; TRAMPOLINE_BYTES as usize];
    code[..before].copy_from_slice(&site.original[..before]);
    // lea rcx, [rip + 6]: behind the jump that follows.
    code[before..before + 7].copy_from_slice(&[0x48, 0x8d, 0x0d, 6, 0, 0, 0]);
    // jmp [rip + x]: the gate's address lies in the first bytes of the pages.
    let jump = before + 7;
    let from = place + offset + jump as u64 + 6;
    let distance = (place.wrapping_sub(from)) as i32;
    code[jump..jump + 2].copy_from_slice(&[0xff, 0x25]);
    code[jump + 2..jump + 6].copy_from_slice(&distance.to_le_bytes());
    let resume = jump + 6;
    code[resume..resume + after].copy_from_slice(&site.original[before + 2..length]);
    let back = resume + after;
    let from = place + offset + back as u64 + 5;
    let distance = (at + length as u64).wrapping_sub(from) as i32;
    code[back] = 0xe9;
    code[back + 1..back + 5].copy_from_slice(&distance.to_le_bytes());
    let end = TRAMPOLINE_BYTES as usize;
    code[end - 4..].copy_from_slice(&index.to_le_bytes());
    window[start..start + end].copy_from_slice(&code);
    Patched {
        address: at,
        trampoline: place + offset,
        before: site.before,
        length: site.length,
        resume: resume as u8,
        trampoline_bytes: (back + 5) as u8,
        reserved: 0,
        original: site.original,
    }
}

/// What stands in place of a site's run: the first `length` of these bytes, a jump and traps.
pub fn jump(site: &Patched) -> [u8; SITE_BYTES] {
    let mut code = [TRAP; SITE_BYTES];
    code[0] = 0xe9;
    let distance = site.trampoline.wrapping_sub(site.address + JUMP as u64) as i32;
    code[1..JUMP].copy_from_slice(&distance.to_le_bytes());
    code
}

/// What the program may see instead of `pc`, which lies in the site's trampoline.
pub fn visible(site: &Patched, pc: u64) -> u64 {
    let (before, resume) = (u64::from(site.before), u64::from(site.resume));
    let offset = pc - site.trampoline;
    if offset < before {
        site.address + offset
    } else if offset < resume {
        site.address + before
    } else {
        (site.address + before + 2 + (offset - resume)).min(site.address + u64::from(site.length))
    }
}

/// Where to go on if the program means `pc`, which lies in the site's run.
pub fn executable(site: &Patched, pc: u64) -> u64 {
    let before = u64::from(site.before);
    let offset = pc - site.address;
    if offset == 0 {
        pc
    } else if offset <= before {
        site.trampoline + offset
    } else {
        site.trampoline + u64::from(site.resume) + offset.saturating_sub(before + 2)
    }
}
