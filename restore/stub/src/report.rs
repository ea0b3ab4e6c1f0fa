//! One line of text for the launcher, without `core::fmt`, whose tables would need relocations.
//!
//! Each part is written as it comes: the reader takes everything up to the end of the pipe, and a buffer would invite
//! the compiler to call memset and memcpy, indirectly, through a table that nobody fills in.
//!
//! Neighbours: `main` says what went wrong; `launcher/src/resume.rs` reads it from the status socket.
#![allow(unsafe_code)]

use zhuque_sys::{Errno, raw};

/// A line that is being written to a descriptor.
#[derive(Clone, Copy)]
pub struct Line {
    fd: i32,
}

impl Line {
    /// Starts a line on `fd`.
    pub fn to(fd: i32) -> Line {
        Line { fd }
    }

    /// Adds `text`. An error has nowhere to go.
    pub fn text(self, text: &[u8]) -> Line {
        // SAFETY: the bytes are valid for reading; a pipe takes so few of them at once.
        unsafe { raw::call3(libc::SYS_write as usize, self.fd as isize as usize, text.as_ptr() as usize, text.len()) };
        self
    }

    /// Adds `value` in hexadecimal.
    pub fn hex(mut self, value: u64) -> Line {
        let mut shift = 60;
        while shift > 0 && value >> shift == 0 {
            shift -= 4;
        }
        loop {
            let digit = (value >> shift) as u8 & 15;
            self = self.text(&[if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }]);
            if shift == 0 {
                return self;
            }
            shift -= 4;
        }
    }

    /// Adds `value` in decimal.
    pub fn decimal(mut self, value: u32) -> Line {
        let mut unit = 1_000_000_000;
        while unit > 1 && value < unit {
            unit /= 10;
        }
        while unit > 0 {
            self = self.text(&[b'0' + (value / unit % 10) as u8]);
            unit /= 10;
        }
        self
    }

    /// Adds an address range as /proc/PID/maps writes it.
    pub fn range(self, start: u64, bytes: u64) -> Line {
        self.hex(start).text(b"-").hex(start.wrapping_add(bytes))
    }

    /// Adds why the kernel refused, and ends the line.
    pub fn errno(self, error: Errno) {
        self.text(b" (errno ").decimal(error.0 as u32).text(b")\n");
    }
}
