//! Process ids that calls on descriptors carry: who gets a descriptor's signals (F_SETOWN), who holds a lock (F_GETLK),
//! who is at a socket's other end (SO_PEERCRED). In the first life they are the kernel's.
//!
//! Neighbours: `ids` (which id is which), `descriptors::table` (owners at a save).
#![allow(unsafe_code)]

use super::ids;
use crate::gate::{Result64, wait_call};
use crate::{control, user};
use zhuque_abi::slot::Slot;

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
/// Bytes from the beginning of struct flock to its l_pid.
const HOLDER: u64 = 24;

/// fcntl(2) and getsockopt(2).
pub fn serve(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    if control::life().generation == 0 || slot.borrowed > 0 {
        return wait_call(slot, number, a);
    }
    match number {
        libc::SYS_getsockopt => peer(slot, a),
        _ => fcntl(slot, a),
    }
}

fn fcntl(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let [fd, command, argument, ..] = a;
    let mut call = |argument: u64| wait_call(slot, libc::SYS_fcntl, [fd, command, argument, 0, 0, 0]);
    match command as i32 {
        libc::F_SETOWN => call(ids::real(argument as i32) as u64),
        libc::F_GETOWN => call(argument).map(|owner| shown(owner as i32) as u64),
        F_SETOWN_EX => {
            // SAFETY: struct f_owner_ex: two integers.
            let [kind, id] = unsafe { user::read::<[i32; 2]>(argument) }?;
            let owner = [kind, ids::real(id)];
            call(owner.as_ptr() as u64)
        }
        F_GETOWN_EX => {
            let result = call(argument)?;
            // SAFETY: the kernel has just written two integers there.
            let [kind, id] = unsafe { user::read::<[i32; 2]>(argument) }?;
            // SAFETY: as above.
            unsafe { user::write(argument, &[kind, shown(id)]) }?;
            Ok(result)
        }
        libc::F_GETLK | libc::F_OFD_GETLK => {
            let result = call(argument)?;
            show(argument + HOLDER)?;
            Ok(result)
        }
        _ => call(argument),
    }
}

fn peer(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let [_, level, option, value, length, _] = a;
    let result = wait_call(slot, libc::SYS_getsockopt, a)?;
    let peer = level as i32 == libc::SOL_SOCKET && option as i32 == libc::SO_PEERCRED;
    // SAFETY: an integer that the kernel has just written.
    if peer && unsafe { user::read::<u32>(length) }? >= 4 {
        show(value)?;
    }
    Ok(result)
}

/// Replaces the kernel's id at an address, where the kernel has just written it.
fn show(address: u64) -> Result<(), zhuque_sys::Errno> {
    // SAFETY: an integer.
    let id = unsafe { user::read::<i32>(address) }?;
    // SAFETY: as above.
    unsafe { user::write(address, &shown(id)) }
}

/// The program's id for one of the kernel's: of the process, of one of its threads, or (negative) of a group.
fn shown(id: i32) -> i32 {
    if id < 0 {
        return -(ids::shown(id.unsigned_abs()) as i32);
    }
    let id = id as u32;
    ids::virtual_thread(id).unwrap_or_else(|| ids::shown(id)) as i32
}
