//! The vdso: the program calls wrappers at the address that it knows; the kernel's own code lies elsewhere and is
//! another one in each life. See README, Design.
#![allow(unsafe_code)]

use super::place;
use crate::control;
use crate::family::memory::map_slices;
use zhuque_abi::layout::{PAGE, TASK_SIZE, page_up};
use zhuque_abi::life::Vdso;
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::{Attr, MapTree};
use zhuque_sys::{Errno, mm, user};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// What belongs to one life only.
pub const VOLATILE: Attr = Attr { kind: Kind::Volatile, prot: 0, flags: 0, file: 0, offset: 0 };

/// Moves the kernel's vdso away and puts a copy with our entries in its place. `start` is where it was.
pub fn adopt(tree: &mut MapTree<'_>, start: u64, vdso: &Vdso, top: u64) -> Result<(), Errno> {
    let variables = vdso.variables;
    let bytes = variables + vdso.bytes;
    // The present place is taken, too, while the new one is looked for.
    tree.set(start - variables, start + vdso.bytes, VOLATILE).map_err(|_| Errno(libc::ENOMEM))?;
    let place = tree.gap_below(bytes, PAGE, 0x1_0000, top).ok_or(Errno(libc::ENOMEM))?;
    let base = place + variables;
    move_pages(start - variables, place, variables)?;
    move_pages(start, base, vdso.bytes)?;
    tree.set(place, place + bytes, VOLATILE).map_err(|_| Errno(libc::ENOMEM))?;
    tree.clear(start - variables, start).map_err(|_| Errno(libc::ENOMEM))?;
    map_slices(start, start + vdso.bytes, READ_WRITE as u64, libc::MAP_FIXED_NOREPLACE)?;
    // SAFETY: the copy was mapped just now; the source is the kernel's image.
    unsafe { user::copy(start, base, vdso.bytes as usize) }?;
    for (&offset, wrapper) in vdso.functions.iter().zip(place::wrappers()) {
        if offset != 0 {
            write_jump(start + offset, wrapper)?;
        }
    }
    // SAFETY: our own fresh mapping.
    unsafe { mm::mprotect(start, vdso.bytes, libc::PROT_READ | libc::PROT_EXEC) }?;
    let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    tree.set(start, start + vdso.bytes, crate::family::memory::region(prot, 0)).map_err(|_| Errno(libc::ENOMEM))?;
    // SAFETY: start is single-threaded.
    unsafe {
        let globals = control::globals();
        (*globals).vdso = start;
        (*globals).vdso_bytes = vdso.bytes;
        (*globals).vdso_entries = vdso.functions;
    }
    set_life(&Vdso { base, ..*vdso });
    Ok(())
}

/// Tells this life where the kernel's vdso is.
pub fn set_life(vdso: &Vdso) {
    // SAFETY: start and revive are single-threaded.
    unsafe {
        let life = control::life_mut();
        (*life).vdso = *vdso;
        for (address, offset) in (*life).functions.iter_mut().zip(vdso.functions) {
            *address = if offset == 0 { 0 } else { vdso.base + offset };
        }
    }
}

/// Replaces an earlier life's vdso in the mapping table by this one's. The caller is the only user of the table.
pub fn renew(tree: &mut MapTree<'_>) {
    let mut at = 0;
    while let Some(run) = tree.at_or_after(at) {
        at = run.end;
        if run.attr.kind == Kind::Volatile && !control::is_ours(run.start) {
            let _ = tree.clear(run.start, run.end);
        }
    }
    let vdso = &control::life().vdso;
    let _ = tree.set(vdso.base - vdso.variables, vdso.base + vdso.bytes, VOLATILE);
}

/// Moves special pages, mapping by mapping: each page run is a mapping of its own to the kernel.
fn move_pages(from: u64, to: u64, bytes: u64) -> Result<(), Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let mut done = 0;
    while done < bytes {
        // The kernel refuses ranges over several mappings (EFAULT), so take the longest run that it accepts.
        let mut run = bytes - done;
        loop {
            // SAFETY: the kernel's own pages, to a free place.
            match unsafe { mm::mremap(from + done, run, run, flags, to + done) } {
                Ok(_) => break,
                Err(_) if run > PAGE => run -= PAGE,
                Err(e) => return Err(e),
            }
        }
        done += run;
    }
    debug_assert!(to + bytes <= TASK_SIZE && page_up(bytes) == bytes);
    Ok(())
}

/// Writes `movabs rax, target; jmp rax` at `address`.
fn write_jump(address: u64, target: u64) -> Result<(), Errno> {
    let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0];
    code[2..10].copy_from_slice(&target.to_le_bytes());
    // SAFETY: the copy of the vdso, writable still.
    unsafe { user::copy(address, code.as_ptr() as u64, code.len()) }
}
