//! `-d`: a background process does the work and stays, the foreground leaves when the program is up.
//!
//! Key type: [`Ready`]. Neighbours: `launch` and `resume` run inside, `supervise` says when the program is up.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, dup2_stdin, pipe2, setsid};

use crate::failure::{self, Failure};

/// The foreground has been let go.
static UP: AtomicBool = AtomicBool::new(false);

/// The background's way to tell the foreground that the program is up. Dropping it without is the opposite.
pub struct Ready {
    pipe: File,
}

impl Ready {
    /// Lets the foreground leave.
    pub fn up(mut self) {
        UP.store(true, Ordering::Relaxed);
        // If the foreground is gone there is nobody to tell.
        let _ = self.pipe.write_all(b"up");
    }
}

/// Runs `work` in a background process of its own session. Returns in the foreground only: 0 when the background has
/// called [`Ready::up`], else its error.
///
/// The background reports what comes later on stderr, and ends with what `work` returned. To be called while the
/// launcher has one thread.
pub fn detach(work: impl FnOnce(Ready) -> anyhow::Result<i32>) -> anyhow::Result<i32> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
    // The background's own copy, to report an error that came before `up`.
    let errors = to.try_clone()?;
    // SAFETY: one thread, so the child's copy of memory is consistent and it may go on as if it were the parent.
    match unsafe { nix::unistd::fork() }.context("cannot make a background process")? {
        ForkResult::Parent { .. } => {
            drop((to, errors));
            foreground(from.into())
        }
        ForkResult::Child => {
            drop(from);
            let status = background(work, Ready { pipe: to.into() }, errors.into());
            // The foreground has its own copy of everything that is to be flushed or dropped.
            // SAFETY: ends this process.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Waits for what the background says.
fn foreground(mut pipe: File) -> anyhow::Result<i32> {
    let mut said = Vec::new();
    // Until `up`, or until the background has closed all of its ends.
    let mut buffer = [0; 512];
    while !said.starts_with(b"up") {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => said.extend(&buffer[..bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if said.starts_with(b"up") {
        return Ok(0);
    }
    let text = String::from_utf8_lossy(&said);
    match text.split_once(' ') {
        Some((status, message)) if !message.is_empty() => {
            Err(Failure::error(status.parse().unwrap_or(failure::OWN), message))
        }
        // It ended without an error before it was up: a program that was faster than we are.
        Some((status, _)) => Ok(status.parse().unwrap_or(failure::OWN)),
        None => Err(Failure::error(failure::OWN, "the background process died; try without -d")),
    }
}

/// The background process: its exit status.
fn background(work: impl FnOnce(Ready) -> anyhow::Result<i32>, ready: Ready, mut errors: File) -> i32 {
    // It cannot fail: a forked child leads no group.
    let _ = setsid();
    if let Ok(null) = File::open("/dev/null") {
        let _ = dup2_stdin(null.as_fd());
    }
    match work(ready) {
        Ok(status) => {
            // Read only if `up` was not said.
            let _ = write!(errors, "{status} ");
            status
        }
        Err(error) => {
            let status = failure::status(&error);
            let line = failure::line(&error);
            // When the foreground has left, stderr is all there is.
            if UP.load(Ordering::Relaxed) || write!(errors, "{status} {line}").is_err() {
                crate::report::complain(&line);
            }
            status
        }
    }
}
