//! The header page of a living region, mapped: how the launcher sees the phase word change without asking the kernel.
//!
//! Key type: [`Watch`]. Everything else that is read of a region is read with pread (`control`), so that a file that
//! shrinks is an error and not a SIGBUS; here only the page that the shim never gives up is mapped, and only while a
//! program is being watched.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use memmap2::{MmapOptions, MmapRaw};
use zhuque_abi::header::{Header, Phase};
use zhuque_abi::layout::PAGE;

use crate::sys;

/// A mapped header page.
pub struct Watch {
    map: MmapRaw,
}

impl Watch {
    /// Maps the first page of a control file.
    pub fn new(control: &File) -> anyhow::Result<Watch> {
        let bytes = control.metadata()?.len();
        anyhow::ensure!(bytes >= PAGE, "control file truncated to {bytes} bytes");
        let map =
            MmapOptions::new().len(PAGE as usize).map_raw_read_only(control).context("cannot map the control file")?;
        Ok(Watch { map })
    }

    /// The phase word.
    pub fn word(&self) -> u64 {
        // SAFETY: the page is mapped as long as `self` lives, the offset is that of an aligned AtomicU64 in it, and
        // other processes change it only as such. Loads work on read-only pages.
        let word = unsafe {
            let at = self.map.as_ptr().add(offset_of!(Header, phase));
            &*at.cast::<AtomicU64>()
        };
        word.load(Ordering::Acquire)
    }

    /// The phase; `None` if the number is none.
    pub fn phase(&self) -> Option<Phase> {
        Phase::from_raw(self.word() as u8)
    }

    /// The generation.
    pub fn generation(&self) -> u64 {
        self.word() >> 8
    }

    /// Waits until the phase word is not `word`, at most for about `limit`. A shim that wakes the word's lower half
    /// as a futex is seen at once.
    pub fn wait(&self, word: u64, limit: Duration) {
        if self.word() != word {
            return;
        }
        // SAFETY: as in `word`; x86-64 is little-endian, so the lower half comes first.
        let low = unsafe {
            let at = self.map.as_ptr().add(offset_of!(Header, phase));
            &*at.cast::<AtomicU32>()
        };
        sys::futex_wait(low, word as u32, limit);
    }
}
