//! # Descriptors: what a save writes down of them, and how a resume makes them again
//!
//! Nothing is recorded while the program runs. A save asks the kernel (/proc, fstat, fcntl, getsockopt, ...) what
//! every descriptor is and writes [`Record`]s; a resume reads them and re-creates each open file description under
//! the numbers it had. The two entry points are [`capture`] and [`revive`].
//!
//! * [`table`]: enumeration, grouping of descriptors into descriptions; hands each to its family
//! * [`placement`]: the resume's side of that: numbers, flags, order
//! * [`thread_files`]: files below /proc/self/task, for which the threads have to exist first
//! * [`files`] (with [`memfds`]), [`locks`], [`pipes`], [`terminals`] (with [`pseudo_terminals`]), [`sockets`] (with
//!   [`options`], [`endpoints`], [`letters`], [`netlink`]), [`events`] (with [`watches`]): one kind of object each. None of them
//!   imports another; what crosses goes through the table of descriptions.
//! * [`fdinfo`]: line by line reading of /proc files
//!
//! Everything here runs without libc, heap or unwinding, on a stack of 256 KiB and scratch memory that is handed in.
//! Paths below /proc go by way of `thread-self`: the main thread may be dead, and its /proc/self entries with it.

// A failure carries its whole message, since there is no heap to put it in; it is made once, on the way out.
#![allow(clippy::result_large_err)]

use core::ops::Range;
use zhuque_abi::header::Stdio;
use zhuque_abi::journal::Record;
use zhuque_sys::Errno;

mod endpoints;
mod events;
pub mod fdinfo;
mod files;
mod letters;
mod locks;
mod memfds;
mod netlink;
mod options;
mod pipes;
mod placement;
mod pseudo_terminals;
mod sockets;
mod table;
mod terminals;
mod thread_files;
mod timerfds;
mod watches;

pub use placement::{revive, stdio_identity};
pub use table::capture;
pub use terminals::is_known as is_known_device;
pub use thread_files::revive as revive_thread_files;
pub use timerfds::PATIENCE_NS as TIMER_PATIENCE_NS;

/// What a save needs to know, and where its records go.
pub struct Capture<'a> {
    /// Appends a record to the journal.
    pub put: &'a mut dyn FnMut(&Record<'_>) -> Result<(), Failure>,
    /// Memory to work in, at least [`SCRATCH_BYTES`].
    pub scratch: &'a mut [u8],
    /// The real process id.
    pub pid: u32,
    /// The process id as the program knows it.
    pub virtual_pid: u32,
    /// The id by which the program knows one of its threads, by the kernel's id.
    pub virtual_thread: &'a dyn Fn(u32) -> Option<u32>,
    /// The region's own descriptors: not the program's.
    pub own: Range<i32>,
    /// What the descriptors 0, 1, 2 were at start.
    pub stdio: &'a [Stdio; 3],
    /// The region's directory; `files/` below it keeps the content of files that have no name any more.
    pub region_directory: i32,
    /// Write back (fsync) the files that are open for writing.
    pub file_sync: bool,
    /// The program ends with this save: established connections are set to end with a reset.
    pub power: bool,
    /// The backlog that was given to listen() for the socket with this inode, if it is known better than by the kernel.
    pub backlog: &'a dyn Fn(u64) -> Option<u32>,
    /// Whether a connect(2) of this descriptor is under way, which the resume issues again.
    pub connecting: &'a dyn Fn(i32) -> bool,
    /// Whether the program has a shared writable mapping of the file with this device and inode.
    pub mapped_shared: &'a dyn Fn(u64, u64) -> bool,
    /// How long timers that may be due are still waited for, ns; [`TIMER_PATIENCE_NS`] at first.
    pub timer_patience_ns: i64,
}

/// What a resume needs to know. Nothing in it lies in the region but the journal, which is only read.
pub struct Revival<'a> {
    /// The journal's records.
    pub journal: &'a [u8],
    /// Memory to work in, at least [`SCRATCH_BYTES`].
    pub scratch: &'a mut [u8],
    /// The region's directory.
    pub region_directory: i32,
    /// Copies of what the resume was given as stdin, stdout, stderr; -1: closed.
    pub stdio: [i32; 3],
    /// Differences in files are not errors.
    pub force: bool,
    /// Descriptors in use by the resume: left alone.
    pub helpers: Range<i32>,
    /// The region's own descriptors: left alone.
    pub own: Range<i32>,
    /// The real process id.
    pub pid: u32,
    /// The process id as the program knows it.
    pub virtual_pid: u32,
    /// CLOCK_REALTIME of the save, for timers that are set to a time of day, ns.
    pub saved_realtime_ns: u64,
}

/// Least scratch memory for both directions.
pub const SCRATCH_BYTES: usize = 4 << 20;

/// Why descriptors cannot be saved or revived: one line of text.
#[derive(Clone, Copy)]
pub struct Failure {
    text: [u8; 200],
    used: usize,
}

impl Failure {
    /// A failure whose message begins with `text`.
    pub fn new(text: &[u8]) -> Failure {
        Failure { text: [0; 200], used: 0 }.text(text)
    }

    /// Adds text; what does not fit is cut off, at the front if it is a long path that comes first.
    pub fn text(mut self, part: &[u8]) -> Failure {
        for &byte in part {
            if let Some(place) = self.text.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        self
    }

    /// A failure about `path`: a long one keeps its end, so that the reason still fits.
    pub fn about(path: &[u8]) -> Failure {
        const ROOM: usize = 110;
        match path.len().checked_sub(ROOM).and_then(|cut| path.get(cut..)) {
            Some(end) if path.len() > ROOM => Failure::new(b"...").text(end).text(b": "),
            _ => Failure::new(path).text(b": "),
        }
    }

    /// Adds a decimal number.
    pub fn number(self, value: u64) -> Failure {
        let mut digits = [0u8; 20];
        self.text(decimal(value, &mut digits))
    }

    /// Adds what an error number means.
    pub fn errno(self, error: Errno) -> Failure {
        let text: &[u8] = match error.0 {
            libc::ENOENT => b"no such file or directory",
            libc::EACCES => b"permission denied",
            libc::EPERM => b"operation not permitted",
            libc::ENOTDIR => b"not a directory",
            libc::EISDIR => b"is a directory",
            libc::EEXIST => b"exists already",
            libc::EINVAL => b"invalid argument",
            libc::ENOMEM => b"no memory",
            libc::EFBIG => b"file too large (is there a ulimit -f?)",
            libc::ENODEV => b"no such device",
            libc::ENOSPC => b"no space left",
            libc::EMFILE => b"too many open files (raise ulimit -n)",
            libc::EBADF => b"bad descriptor (is ulimit -n too low?)",
            libc::EADDRINUSE => b"address already in use",
            libc::EADDRNOTAVAIL => b"this machine does not have that address",
            libc::EAFNOSUPPORT => b"address family not supported",
            libc::EROFS => b"read-only file system",
            libc::EIO => b"input/output error",
            libc::ENXIO => b"no such device or address",
            libc::EBUSY => b"busy",
            libc::ETXTBSY => b"text file busy",
            _ => return self.text(b"error ").number(error.0 as u64),
        };
        self.text(text)
    }

    /// The message.
    pub fn message(&self) -> &[u8] {
        self.text.get(..self.used).unwrap_or(&[])
    }
}

impl core::fmt::Debug for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(self.message()).unwrap_or("?"))
    }
}

/// The decimal digits of `value`.
fn decimal(mut value: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    for (index, place) in digits.iter_mut().enumerate().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
        at = index;
        if value == 0 {
            break;
        }
    }
    digits.get(at..).unwrap_or(&[])
}

/// A part of a file's mode that tells its kind.
fn kind_of(mode: u32) -> u32 {
    mode & libc::S_IFMT
}
