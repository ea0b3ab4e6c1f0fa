//! What only holds before Rust's runtime starts: it ignores SIGPIPE and opens /dev/null where stdin, stdout or
//! stderr were closed. The program is to be started as if zhuque were not there, so both are noted before that.
//!
//! Neighbour: `child`, which puts them back.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Called by the C library before `main`.
// SAFETY: a section of this name holds pointers to functions that are called once, at start. This one uses nothing
// that would have to be initialised before it.
#[used]
#[unsafe(link_section = ".init_array")]
static CAPTURE: extern "C" fn() = capture;

extern "C" fn capture() {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; `action` is large enough and all zeroes are a valid value of it.
    let action = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    PIPE_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
    for (fd, closed) in CLOSED.iter().enumerate() {
        // SAFETY: takes numbers only.
        let flags = unsafe { libc::fcntl(fd as i32, libc::F_GETFD) };
        closed.store(flags < 0, Ordering::Relaxed);
    }
}

/// Whether whoever started zhuque had SIGPIPE ignored.
pub fn pipe_was_ignored() -> bool {
    PIPE_IGNORED.load(Ordering::Relaxed)
}

/// Whether the descriptors 0, 1 and 2 were closed.
pub fn closed() -> [bool; 3] {
    [0, 1, 2].map(|fd: usize| CLOSED[fd].load(Ordering::Relaxed))
}
