//! select(2), pselect6(2): how much of the program's sets the kernel looks at.
//!
//! No more than its table of descriptors has room for (fs/select.c, core_sys_select), whatever the program asks for; see
//! [`own_descriptors`]. Where the region's own descriptors had to go behind the bits of an fd_set, the table is larger on
//! their account, and what lies behind a set would be taken for bits, and written to. Neighbour: `clocks`, which issues
//! the calls.
//!
//! [`own_descriptors`]: zhuque_abi::layout::own_descriptors

use crate::control;
use zhuque_abi::layout::FD_SETSIZE;
use zhuque_sys::fs;

/// How far the program's own descriptors are looked for: one that is further away, with none before it, is missed.
const SEARCHED: u64 = 4096;

/// How many descriptors the kernel is to look at where the program says `count`.
pub fn looked_at(count: u64) -> u64 {
    let own = &control::life().descriptors;
    let within = own.end as u64 <= FD_SETSIZE || count as i32 <= FD_SETSIZE as i32;
    let open = |number| !(own.first..own.end).contains(&number) && fs::fcntl(number, libc::F_GETFD, 0).is_ok();
    // With one there, the table would go beyond an fd_set natively too.
    if within || (FD_SETSIZE..SEARCHED).any(|number| open(number as i32)) { count } else { FD_SETSIZE }
}
