//! Credentials: user and group ids and capabilities, written down by a save, taken again by a resume.
//!
//! A resume gives up what the program had given up, as far as it may: who has no CAP_SETPCAP keeps the bounding set that it
//! has. They are the leader's of the save: threads with others of their own (capset(2) in one of them) are not told apart.
//! Neighbours: `process_state`, which writes the record, and `revive`.
#![allow(unsafe_code)]

use crate::family::Failure;
use zhuque_abi::journal::{Capabilities, Process};
use zhuque_sys::{Errno, process};

/// Supplementary groups that are kept.
pub const MAX_GROUPS: usize = 256;
/// _LINUX_CAPABILITY_VERSION_3, and the process that calls.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// Real, effective and saved user and group ids.
pub fn ids() -> [u32; 6] {
    let mut ids = [0u32; 6];
    let at = |index: usize| ids.as_ptr().wrapping_add(index) as usize;
    let (users, groups) = ([at(0), at(1), at(2), 0, 0, 0], [at(3), at(4), at(5), 0, 0, 0]);
    // SAFETY: each call writes three words of the local.
    unsafe {
        let _ = process::other(libc::SYS_getresuid, users);
        let _ = process::other(libc::SYS_getresgid, groups);
        core::ptr::read_volatile(&raw mut ids)
    }
}

/// Supplementary groups.
pub fn groups_in(buffer: &mut [u8; 4 * MAX_GROUPS]) -> &[u8] {
    let arguments = [MAX_GROUPS, buffer.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: getgroups writes at most as many words as the buffer has.
    let count = unsafe { process::other(libc::SYS_getgroups, arguments) }.unwrap_or(0);
    buffer.get(..4 * count).unwrap_or(&[])
}

/// The calling thread's capabilities.
pub fn capabilities() -> Capabilities {
    let mut words = [0u32; 6];
    let arguments = [CAPABILITY_HEADER.as_ptr() as usize, words.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 writes two records of three words; they are read behind the call.
    let words = unsafe {
        let _ = process::other(libc::SYS_capget, arguments);
        core::ptr::read_volatile(&raw mut words)
    };
    let both = |low: usize| u64::from(words[low]) | u64::from(words[low + 3]) << 32;
    let (effective, permitted, inheritable) = (both(0), both(1), both(2));
    // A call for each: none behind the last one that the kernel knows, and of the ambient ones only those that can be there
    // (capabilities(7): no capability is ever ambient that is not both permitted and inheritable).
    let bits = |set: u64, asked: &dyn Fn(usize) -> Result<usize, Errno>| {
        let known = { (0..64).filter(|&bit| set & 1 << bit != 0) }.map(|bit| (bit, asked(bit)));
        let known = known.take_while(|(_, found)| found.is_ok());
        known.filter(|&(_, found)| found == Ok(1)).fold(0, |set: u64, (bit, _)| set | 1 << bit)
    };
    // SAFETY: these options take no pointers.
    unsafe {
        Capabilities {
            effective,
            permitted,
            inheritable,
            bounding: bits(!0, &|bit| process::prctl(libc::PR_CAPBSET_READ, bit, 0, 0, 0)),
            ambient: bits(permitted & inheritable, &|bit| {
                process::prctl(libc::PR_CAP_AMBIENT, AMBIENT_IS_SET, bit, 0, 0)
            }),
            securebits: process::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0).unwrap_or(0) as u32,
        }
    }
}

const AMBIENT_IS_SET: usize = libc::PR_CAP_AMBIENT_IS_SET as usize;
const AMBIENT_RAISE: usize = libc::PR_CAP_AMBIENT_RAISE as usize;
const AMBIENT_CLEAR: usize = libc::PR_CAP_AMBIENT_CLEAR_ALL as usize;

/// Takes the credentials that the program had, if they are others than the resume's: after the descriptors, before the
/// threads, which inherit them. `force`: fewer capabilities than it had will do.
pub fn revive(wanted: &Process<'_>, force: bool) -> Result<(), Failure> {
    let mut buffer = [0u8; 4 * MAX_GROUPS];
    let same_groups = groups_in(&mut buffer) == wanted.groups;
    let before = capabilities();
    if wanted.ids == ids() && same_groups && before == wanted.capabilities {
        return Ok(());
    }
    // A change of user would take them all.
    // SAFETY: takes no pointers.
    let _ = unsafe { process::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
    revive_ids(wanted, same_groups).map_err(|error| {
        let failure = Failure::new(b"cannot take the program's user and group ids again (user ");
        failure.number(wanted.ids[1].into()).text(b"): ").errno(error)
    })?;
    match set_capabilities(&wanted.capabilities) {
        Err(_) if force => {
            let now = capabilities();
            let fewer = Capabilities {
                effective: wanted.capabilities.effective & now.permitted,
                permitted: wanted.capabilities.permitted & now.permitted,
                inheritable: wanted.capabilities.inheritable & now.inheritable,
                ambient: 0,
                ..wanted.capabilities
            };
            set_capabilities(&fewer).map_err(|error| Failure::new(b"capabilities: ").errno(error))
        }
        done => done.map_err(|error| {
            Failure::new(b"the program had capabilities that this resume has not; resume it as it was started: ")
                .errno(error)
        }),
    }
}

fn revive_ids(wanted: &Process<'_>, same_groups: bool) -> Result<(), Errno> {
    if wanted.ids == ids() && same_groups {
        return Ok(());
    }
    let [ruid, euid, suid, rgid, egid, sgid] = wanted.ids.map(|id| id as usize);
    let groups = [wanted.groups.len() / 4, wanted.groups.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: setgroups reads the list; the others take no pointers.
    unsafe {
        if !same_groups {
            process::other(libc::SYS_setgroups, groups)?;
        }
        process::other(libc::SYS_setresgid, [rgid, egid, sgid, 0, 0, 0])?;
        process::other(libc::SYS_setresuid, [ruid, euid, suid, 0, 0, 0])?;
    }
    Ok(())
}

/// Sets them all. With every permitted one effective first, since the steps need some of them; the bounding set behind
/// what it bounds, and at the end those that are left to the program.
fn set_capabilities(wanted: &Capabilities) -> Result<(), Errno> {
    let now = capabilities();
    set([now.permitted, now.permitted, wanted.inheritable])?;
    // SAFETY: the options take no pointers.
    unsafe {
        let _ = process::prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR, 0, 0, 0);
        for bit in (0..64).filter(|bit| wanted.ambient & 1 << bit != 0) {
            process::prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, bit, 0, 0)?;
        }
        let as_wanted = || process::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) == Ok(wanted.securebits as usize);
        if !as_wanted() {
            // Everybody may say this one, unless it is locked; the others ask for CAP_SETPCAP.
            let keep = wanted.securebits & libc::SECBIT_KEEP_CAPS as u32 != 0;
            let _ = process::prctl(libc::PR_SET_KEEPCAPS, usize::from(keep), 0, 0, 0);
        }
        if !as_wanted() {
            process::prctl(libc::PR_SET_SECUREBITS, wanted.securebits as usize, 0, 0, 0)?;
        }
        for bit in (0..64).filter(|bit| now.bounding & !wanted.bounding & 1 << bit != 0) {
            let _ = process::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0);
        }
    }
    set([wanted.effective, wanted.permitted, wanted.inheritable])
}

/// capset(2): effective, permitted, inheritable.
fn set(sets: [u64; 3]) -> Result<(), Errno> {
    let words: [u32; 6] = core::array::from_fn(|at| (sets[at % 3] >> (at / 3 * 32)) as u32);
    let arguments = [CAPABILITY_HEADER.as_ptr() as usize, words.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: reads the header and six words.
    unsafe { process::other(libc::SYS_capset, arguments) }.map(|_| ())
}
