//! The journal while it is written: room for its records, in turns by the threads that park, then by the leader alone.
//!
//! A save must not fail since the store has filled up while the program ran: [`reserve`] makes sure of as much room as
//! most programs need when they start. A longer journal asks for more, and is full where there is none.
//! Neighbours: `save`, whose leader commits it; `process_state` and the families, which fill it.
#![allow(unsafe_code)]

use crate::control;
use crate::family::Failure;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use zhuque_abi::codec;
use zhuque_abi::journal::Record;
use zhuque_abi::layout::JOURNAL_OFFSET;
use zhuque_sys::{Errno, fs, process};

/// Room that every program gets at its start, and by which a journal grows, bytes.
const PIECE: u64 = 64 << 10;

/// Bytes from the journal's beginning for which the store has room.
static ROOM: AtomicU64 = AtomicU64::new(0);
/// Guards the journal while threads park.
static LOCK: AtomicU32 = AtomicU32::new(0);

/// Makes sure of the next piece of room. What the store cannot tell is believed.
fn more() -> Result<(), Errno> {
    let room = ROOM.load(Ordering::Relaxed);
    match fs::allocate(control::life().descriptors.control, JOURNAL_OFFSET + room, PIECE) {
        Err(Errno(full @ (libc::ENOSPC | libc::EDQUOT | libc::ENOMEM))) => Err(Errno(full)),
        _ => {
            ROOM.store(room + PIECE, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// At the start of an image: room for a save.
pub fn reserve() -> Result<(), Errno> {
    ROOM.store(0, Ordering::Relaxed);
    more()
}

/// Before the control file is closed, since descriptors are scarce: room for many of them.
pub fn reserve_more() {
    for _ in 0..4 {
        let _ = more();
    }
}

/// The journal being written.
pub struct Journal {
    memory: &'static mut [u8],
    used: usize,
    /// A record did not fit.
    pub full: bool,
}

impl Journal {
    /// As far as it has been written.
    pub fn open() -> Journal {
        // SAFETY: threads write their records under `LOCK` and stand still then; the leader is alone after that.
        let memory = unsafe { control::journal() };
        // SAFETY: as above.
        let used = unsafe { (*control::header()).journal_bytes as usize };
        Journal { memory, used, full: false }
    }

    /// What has been written.
    pub fn written(&self) -> &[u8] {
        self.memory.get(..self.used).unwrap_or(&[])
    }

    /// Appends a record.
    pub fn put(&mut self, record: &Record<'_>) -> Result<(), Failure> {
        loop {
            let end = self.memory.len().min(ROOM.load(Ordering::Relaxed) as usize);
            let room = self.memory.get_mut(self.used..end).unwrap_or(&mut []);
            match codec::encode(record, room) {
                Ok(bytes) => {
                    self.used += bytes;
                    return Ok(());
                }
                Err(_) if end < self.memory.len() && more().is_ok() => {}
                Err(_) => {
                    self.full = true;
                    let whole = end == self.memory.len();
                    return Err(Failure::new(if whole { b"the journal is full" } else { b"the store is full" }));
                }
            }
        }
    }
}

/// The journal's lock, held.
pub struct Turn(());

/// Waits for its turn to append.
pub fn turn() -> Turn {
    while LOCK.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        process::yield_now();
    }
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        LOCK.store(0, Ordering::Release);
    }
}

impl Turn {
    /// Appends a record on behalf of a thread that stands still.
    pub fn append(&self, record: &Record<'_>) {
        let mut journal = Journal::open();
        if journal.put(record).is_ok() {
            // SAFETY: the lock makes this the only writer.
            unsafe { (*control::header()).journal_bytes = journal.used as u64 };
        }
    }
}
