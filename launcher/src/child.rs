//! fork and exec of a program, as if the shell had done it.
//!
//! Key type: [`Image`]. The standard library's `Command` would sort the environment and reset the signal mask.
//! Neighbours: `launch` (a first start), `startup` (what to put back).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use nix::unistd::{ForkResult, Pid, pipe2};

use crate::startup;

/// What to execute, and with what.
pub struct Image {
    /// Path of the file.
    pub path: CString,
    /// Arguments, the name first.
    pub arguments: Vec<CString>,
    /// Environment, in its order.
    pub environment: Vec<CString>,
    /// The signal mask that the program starts with.
    pub mask: SigSet,
    /// A descriptor that stays open across the exec.
    pub keep: RawFd,
}

/// Blocks every signal and returns the mask that was in force.
pub fn block_all() -> SigSet {
    let mut old = SigSet::empty();
    // It only fails for a `how` that is none.
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old));
    old
}

/// Starts `image`; returns once its exec has worked, or the error that it failed with.
///
/// Call it with all signals blocked (see [`block_all`]): otherwise one could arrive between fork and exec, and be
/// lost.
pub fn spawn(image: &Image) -> io::Result<Pid> {
    let arguments = pointers(&image.arguments);
    let environment = pointers(&image.environment);
    let (report, error) = pipe2(OFlag::O_CLOEXEC)?;
    let chld_ignored = take_children()?;
    // SAFETY: the launcher has one thread, so the child's copy of memory is consistent; and it makes only system
    // calls until the exec or its exit.
    let pid = match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(report);
            let errno = exec(image, &arguments, &environment, chld_ignored);
            let _ = std::fs::File::from(error).write_all(&errno.to_le_bytes());
            // SAFETY: leaves without running destructors or exit handlers of the launcher.
            unsafe { libc::_exit(crate::failure::OWN) };
        }
    };
    drop(error);
    let mut errno = [0; 4];
    // The pipe is closed by the exec: then nothing is read.
    match std::fs::File::from(report).read_exact(&mut errno) {
        Err(_) => Ok(pid),
        Ok(()) => {
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(io::Error::from_raw_os_error(i32::from_le_bytes(errno)))
        }
    }
}

/// In the child: everything that the program must find as it was when zhuque was started. Returns errno.
fn exec(
    image: &Image,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    chld_ignored: bool,
) -> i32 {
    dispose(Signal::SIGPIPE, startup::pipe_was_ignored());
    dispose(Signal::SIGCHLD, chld_ignored);
    for (fd, closed) in startup::closed().into_iter().enumerate() {
        if closed {
            // SAFETY: /dev/null, which Rust's runtime opened here; nobody uses it any more.
            unsafe { libc::close(fd as i32) };
        }
    }
    // SAFETY: takes numbers only. The descriptor outlives the exec from here on.
    unsafe { libc::fcntl(image.keep, libc::F_SETFD, 0) };
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&image.mask), None);
    // SAFETY: terminated strings in arrays that end with a null pointer; all of them outlive the call.
    unsafe { libc::execve(image.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    nix::errno::Errno::last_raw()
}

/// Ignores `signal`, or gives it its default action.
fn dispose(signal: Signal, ignore: bool) {
    let handler = if ignore { SigHandler::SigIgn } else { SigHandler::SigDfl };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: installs no handler.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Makes sure that the kernel keeps the status of ended children for us, which it does not while SIGCHLD is ignored.
/// Returns whether it was.
pub fn take_children() -> io::Result<bool> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: installs no handler; the supervisor's is installed later, by signal-hook.
    let old = unsafe { sigaction(Signal::SIGCHLD, &action) }?;
    Ok(matches!(old.handler(), SigHandler::SigIgn))
}

/// An array as execve(2) wants it.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let mut all: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
    all.push(std::ptr::null());
    all
}
