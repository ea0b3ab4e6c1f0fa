//! Signals that the launcher itself receives while it watches over a program.
//!
//! Key type: [`Signals`], which signal-hook feeds through a pipe, so that one `poll` waits for everything.
//! Neighbour: `supervise`.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;

/// Signals that are passed on to the program.
const FORWARDED: [i32; 9] = [
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGALRM,
    libc::SIGURG,
];

/// Something that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A child has ended, stopped or gone on.
    Child,
    /// The launcher goes on after a stop.
    Continued,
    /// A power failure is announced.
    Power,
    /// To be passed on to the program.
    Forward(i32),
}

/// The receiving end.
pub struct Signals {
    delivery: SignalDelivery<UnixStream, WithRawSiginfo>,
}

impl Signals {
    /// Starts receiving, and unblocks what is received.
    pub fn new() -> anyhow::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut all = vec![libc::SIGCHLD, libc::SIGCONT, libc::SIGPWR];
        all.extend(FORWARDED);
        let delivery =
            SignalDelivery::with_pipe(read, write, WithRawSiginfo, &all).context("cannot install signal handlers")?;
        let mut set = SigSet::empty();
        for signal in all {
            set.add(Signal::try_from(signal)?);
        }
        // Ctrl-Z reaches the program and us; both stop.
        set.add(Signal::SIGTSTP);
        set.thread_unblock()?;
        Ok(Signals { delivery })
    }

    /// Readable when there is something.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }

    /// What has been received since the last call.
    pub fn take(&mut self) -> Vec<Event> {
        let pending: Vec<_> = self.delivery.pending().collect();
        pending.iter().filter_map(event).collect()
    }
}

fn leads_session() -> bool {
    nix::unistd::getsid(None) == Ok(nix::unistd::getpid())
}

/// What a signal means to the launcher; `None` if nothing.
fn event(info: &libc::siginfo_t) -> Option<Event> {
    Some(match info.si_signo {
        libc::SIGCHLD => Event::Child,
        libc::SIGCONT => Event::Continued,
        libc::SIGPWR => Event::Power,
        // The kernel tells nobody but a session's leader that the terminal is gone.
        libc::SIGHUP if leads_session() => Event::Forward(libc::SIGHUP),
        // What the terminal sends (Ctrl-C, a new size), it has sent to the program as well: the same process group.
        _ if info.si_code == libc::SI_KERNEL => return None,
        signal => Event::Forward(signal),
    })
}
