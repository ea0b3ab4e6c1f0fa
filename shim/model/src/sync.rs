//! How the guest's threads wait for each other, without the kernel: the words' values and their order.
//!
//! [`lock`] and [`unlock`] (the two locks of the control mapping), [`read`] and [`write()`] (a table that is read
//! without a lock), [`Collection`] (threads that stand still are asked once more). Sleeping and waking is the caller's
//! ([`Futex`]). With the feature `loom` the words are loom's, and `tests/sync.rs` goes through every order in which
//! this very code can run. Neighbours: the shim's `control`, `family::signals`, `save`.

#[cfg(not(feature = "loom"))]
use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, Ordering, fence},
};
#[cfg(feature = "loom")]
use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, Ordering, fence},
};

/// A lock's word: nobody holds it.
const FREE: u32 = 0;
/// Somebody holds it.
const HELD: u32 = 1;
/// Somebody holds it, and others may sleep.
const WAITED_FOR: u32 = 2;

/// Sleeping until a word changes.
pub trait Futex {
    /// Sleeps while `word` is `value`; may return early.
    fn wait(&self, word: &AtomicU32, value: u32);
    /// Wakes up to `count` of those who sleep on `word`.
    fn wake(&self, word: &AtomicU32, count: u32);
}

/// Takes the lock at `word`. `waits` is told when that has to wait, and when it no longer does.
pub fn lock(word: &AtomicU32, futex: &impl Futex, waits: impl Fn(bool)) {
    if word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
        waits(true);
        while word.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            futex.wait(word, WAITED_FOR);
        }
        waits(false);
    }
}

/// Gives the lock at `word` up.
pub fn unlock(word: &AtomicU32, futex: &impl Futex) {
    if word.swap(FREE, Ordering::Release) == WAITED_FOR {
        futex.wake(word, 1);
    }
}

/// Reads, again and again, until nobody has written meanwhile. `sequence` is odd while somebody writes.
pub fn read<T>(sequence: &AtomicU32, read: impl Fn() -> T) -> T {
    loop {
        let before = sequence.load(Ordering::Acquire);
        let value = read();
        fence(Ordering::Acquire);
        if before & 1 == 0 && sequence.load(Ordering::Relaxed) == before {
            return value;
        }
        spin_loop();
    }
}

/// Writes what [`read`] reads. Only one at a time may write.
pub fn write(sequence: &AtomicU32, write: impl FnOnce()) {
    sequence.fetch_add(1, Ordering::Acquire);
    // Whoever sees anything of what is written sees the odd number, too.
    fence(Ordering::Release);
    write();
    sequence.fetch_add(1, Ordering::Release);
}

/// The leader of a save asks every thread that stands still to do something once more, and waits for all of them.
pub struct Collection<'a> {
    /// Changes whenever the threads that stand still have to look about.
    pub round: &'a AtomicU32,
    /// How often they have been asked.
    pub collect: &'a AtomicU32,
    /// How many answers there are.
    pub collected: &'a AtomicU32,
}

impl Collection<'_> {
    /// Asks, and waits until there are `others` answers. Once.
    pub fn ask(&self, others: u32, futex: &impl Futex) {
        self.collect.fetch_add(1, Ordering::AcqRel);
        self.round.fetch_add(1, Ordering::AcqRel);
        futex.wake(self.round, u32::MAX >> 1);
        loop {
            let collected = self.collected.load(Ordering::Acquire);
            if collected >= others {
                return;
            }
            futex.wait(self.collected, collected);
        }
    }

    /// Stands still until the round changes; `answer` if asked since `answered` was counted.
    pub fn stand(&self, answered: &mut u32, answer: impl FnOnce(), futex: &impl Futex) {
        let round = self.round.load(Ordering::Acquire);
        if self.collect.load(Ordering::Acquire) != *answered {
            *answered += 1;
            answer();
            self.collected.fetch_add(1, Ordering::AcqRel);
            futex.wake(self.collected, 1);
        }
        futex.wait(self.round, round);
    }
}
