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
    let first_life = control::life().generation == 0 || slot.borrowed > 0;
    match number {
        // A group of a low number would look like an error, also natively; but never like one that only the kernel knows.
        libc::SYS_fcntl if a[1] as i32 == libc::F_GETOWN => owner(slot, a[0]),
        _ if first_life => wait_call(slot, number, a),
        libc::SYS_getsockopt => peer(slot, a),
        _ => fcntl(slot, a),
    }
}

fn fcntl(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    let [fd, command, argument, ..] = a;
    let mut call = |argument: u64| wait_call(slot, libc::SYS_fcntl, [fd, command, argument, 0, 0, 0]);
    match command as i32 {
        libc::F_SETOWN => call(ids::real(argument as i32) as u64),
        F_SETOWN_EX => {
            // SAFETY: struct f_owner_ex: two integers.
            let Ok([kind, id]) = (unsafe { user::read::<[i32; 2]>(argument) }) else {
                // The kernel says what is wrong first.
                return call(argument);
            };
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
            // SAFETY: the kernel has just written a struct flock there, which begins with its kind.
            let kind = unsafe { user::read::<i16>(argument) }?;
            if i32::from(kind) != libc::F_UNLCK {
                show(argument + HOLDER)?;
            }
            Ok(result)
        }
        _ => call(argument),
    }
}

/// F_GETOWN: a group's number is negative.
fn owner(slot: &mut Slot, fd: u64) -> Result64 {
    /// F_OWNER_PGRP.
    const GROUP: i32 = 2;
    let mut owner = [0i32; 2];
    wait_call(slot, libc::SYS_fcntl, [fd, F_GETOWN_EX as u64, &raw mut owner as u64, 0, 0, 0])?;
    // SAFETY: a local, which the kernel has written.
    let [kind, id] = unsafe { core::ptr::read_volatile(&raw const owner) };
    let id = i64::from(if slot.borrowed > 0 { id } else { shown(id) });
    Ok(if kind == GROUP { -id } else { id } as u64)
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

/// The program's id for one of the kernel's: of the process, or of one of its threads. What is not positive is none.
fn shown(id: i32) -> i32 {
    if id <= 0 {
        return id;
    }
    let id = id as u32;
    ids::virtual_thread(id).unwrap_or_else(|| ids::shown(id)) as i32
}
