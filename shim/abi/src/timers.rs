//! POSIX timers of the program (timer_create(2)): one entry of the table for each.
//!
//! The kernel's ids begin anew in every life, so the program knows a timer by its place in the table ([`FIRST_ID`]), and
//! the entry says which timer of the kernel's that is, in which life. Neighbours: [`crate::layout`] (where the table lies),
//! [`crate::journal::Record::Timer`] (what a save says of one).

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// The program's id of the first timer in the table; the others follow. No kernel gives so large ones to a process that
/// has not created as many before, so an id says whose it is.
pub const FIRST_ID: u32 = 1 << 30;

/// si_code of a timer's signal.
pub const SI_TIMER: i32 = -2;

/// Lives before that an entry knows of.
pub const LIVES_BEFORE: usize = 3;

/// What an entry holds; [`Timer::state`].
pub mod state {
    /// Nothing; may be taken.
    pub const FREE: u32 = 0;
    /// It is being created.
    pub const TAKEN: u32 = 1;
    /// A timer of the program.
    pub const MADE: u32 = 2;
    /// It is being deleted.
    pub const LEAVING: u32 = 3;
}

/// One timer.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Timer {
    /// See [`state`].
    pub state: AtomicU32,
    /// CLOCK_*, or a clock of CPU time (clock_getcpuclockid(3)) that names a thread or process as the program does.
    pub clock: AtomicI32,
    /// SIGEV_*.
    pub notify: AtomicI32,
    /// Signal number.
    pub signal: AtomicU32,
    /// With SIGEV_THREAD_ID: the thread that is told, as the program knows it.
    pub thread: AtomicU32,
    /// 1: it was last set to an absolute time.
    pub absolute: AtomicU32,
    /// Overrun of the last signal that the program has taken; -1: the kernel knows.
    pub overrun: AtomicI32,
    /// At a save: how many expirations stand for the signal that the program has still to take; 0: none is pending.
    pub told: AtomicU32,
    /// What the program is told with the signal (sigev_value).
    pub value: AtomicU64,
    /// The kernel's id: see [`kernel_word`].
    pub kernel: AtomicU64,
    /// The same in the last lives before, each at its generation's remainder: a siginfo in hand may still name it, and a
    /// thread may be taken over into another life more than once before it has looked at that.
    pub before: [AtomicU64; LIVES_BEFORE],
    /// At a save: as in [`crate::journal::Record::Timer`].
    pub value_ns: AtomicU64,
    /// At a save: period, ns.
    pub interval_ns: AtomicU64,
}

impl Timer {
    /// What [`Timer::before`] has of the life `generation`.
    pub fn before(&self, generation: u64) -> &AtomicU64 {
        let [first, second, third] = &self.before;
        match generation % LIVES_BEFORE as u64 {
            0 => first,
            1 => second,
            _ => third,
        }
    }
}

/// The word that says that a timer is the kernel's timer `id` in the life `generation`. Never zero.
pub const fn kernel_word(generation: u64, id: u32) -> u64 {
    generation << 32 | (id as u64 + 1)
}

const _: () = {
    assert!(core::mem::size_of::<Timer>() == 88);
    assert!(core::mem::offset_of!(Timer, value) == 32);
};
