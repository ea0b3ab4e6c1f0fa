//! select(2), pselect6(2): how much of the program's sets the kernel looks at.
//!
//! The kernel reads and writes no more of a set than its table of descriptors has room for (fs/select.c, core_sys_select),
//! and programs count on it: `select(getdtablesize(), ...)` with sets of FD_SETSIZE bits is old custom. The region's own
//! descriptors lie behind the program's last number and make that table as large as the limit, so what lies behind such
//! sets would be taken for bits, and written to. [`looked_at`] says how far the program's own descriptors make it go.
//! Neighbour: `clocks`, which issues the calls.
#![allow(unsafe_code)]

use crate::control;
use crate::gate::raw;
use zhuque_sys::{fs, process, user};

/// Bits of a C library's fd_set: what is asked for below is passed on as it is.
const FD_SETSIZE: u64 = 1024;
const WORD_BITS: u64 = 64;
/// Numbers that are asked about at once.
const BATCH: usize = 64;

/// How many descriptors select(2) is to look at where the program says `count`, with these sets.
pub fn looked_at(count: u64, sets: [u64; 3]) -> u64 {
    let asked = match u64::try_from(count as i32) {
        Ok(asked) if asked > FD_SETSIZE => asked,
        _ => return count,
    };
    let end = control::life().descriptors.end as u64;
    let limit = || process::limit(libc::RLIMIT_NOFILE, None).map_or(end, |[soft, _]| soft.max(end));
    let top = if asked <= end { asked } else { asked.min(limit()) };
    let mut highest = None;
    let mut unreadable = false;
    for set in sets.into_iter().filter(|&set| set != 0) {
        let (bit, cut) = highest_bit(set, top);
        highest = highest.max(bit);
        unreadable |= cut;
    }
    if !unreadable {
        match highest {
            // Of sets that say nothing there, nothing is missed.
            None => return FD_SETSIZE,
            Some(bit) if is_open(bit as i32) => return bit + 1,
            Some(_) => {}
        }
    }
    // A bit of a closed descriptor, or no memory: an error if the table goes so far, and else nothing.
    match highest_open(top) {
        // The table grows by powers of two (fs/file.c, alloc_fdtable).
        Some(number) => asked.min((number + 1).next_power_of_two()),
        None => FD_SETSIZE,
    }
}

/// Whether this is an open descriptor of the program's.
fn is_open(number: i32) -> bool {
    let own = &control::life().descriptors;
    !(own.first..own.end).contains(&number) && fs::fcntl(number, libc::F_GETFD, 0).is_ok()
}

/// The highest bit of the set at `address`, from FD_SETSIZE to `top`, and whether a part of it cannot be read.
fn highest_bit(address: u64, top: u64) -> (Option<u64>, bool) {
    let mut highest = None;
    for word in FD_SETSIZE / WORD_BITS..top.div_ceil(WORD_BITS) {
        // SAFETY: an integer of the program's memory.
        match unsafe { user::read::<u64>(address.wrapping_add(word * size_of::<u64>() as u64)) } {
            Ok(0) => {}
            Ok(bits) => highest = Some((word * WORD_BITS + u64::from(bits.ilog2())).min(top - 1)),
            Err(_) => return (highest, true),
        }
    }
    (highest, false)
}

/// The program's highest open descriptor from FD_SETSIZE to `top`.
fn highest_open(top: u64) -> Option<u64> {
    let own = &control::life().descriptors;
    let mut polled = [libc::pollfd { fd: 0, events: 0, revents: 0 }; BATCH];
    let mut end = top;
    while end > FD_SETSIZE {
        let first = end.saturating_sub(BATCH as u64).max(FD_SETSIZE);
        let used = (end - first) as usize;
        for (entry, number) in polled.iter_mut().zip(first..end) {
            *entry = libc::pollfd { fd: number as i32, events: 0, revents: 0 };
        }
        // Says POLLNVAL of each that is closed, and waits for none.
        raw(libc::SYS_poll, [polled.as_mut_ptr() as u64, used as u64, 0, 0, 0, 0]).ok()?;
        let open = |entry: &&libc::pollfd| {
            // SAFETY: an entry of the local, which the kernel has written to behind the compiler's back.
            let revents = unsafe { core::ptr::read_volatile(&raw const entry.revents) };
            revents & libc::POLLNVAL == 0 && !(own.first..own.end).contains(&entry.fd)
        };
        if let Some(entry) = polled.get(..used)?.iter().rfind(open) {
            return Some(entry.fd as u64);
        }
        end = first;
    }
    None
}
