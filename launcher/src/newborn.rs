//! The process that becomes the program, between fork and exec.
//!
//! [`Newborn`] is everything that happens there, decided before the fork, since after it the child may only make system
//! calls: the region's descriptors and the resume's helpers get their numbers, nothing else stays open, no signal is
//! ignored and all are blocked, and the parent traces it. Where that is refused, the shim is preloaded and waits.
//! [`Doomed`] sees to it that a resume that fails leaves no process behind.
//!
//! Neighbours: `resume` decides, `inject` takes the process over at the end of its exec.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use zhuque_abi::layout::{ENV_RESUMING, SHIM_FILE};
use zhuque_restore::numbers::Numbers;
use zhuque_restore::validate::Saved;

/// Helpers in front of the mapped files: status socket, memfd, stdin, stdout, stderr.
pub const FIXED_HELPERS: usize = 5;

/// What is open for the new process.
pub struct Sources<'a> {
    /// The slices.
    pub slices: &'a [File],
    /// The control file.
    pub control: &'a File,
    /// The region's directory.
    pub directory: BorrowedFd<'a>,
    /// The descriptor that holds the lock.
    pub lock: BorrowedFd<'a>,
    /// The status socket's end for writing.
    pub status: &'a OwnedFd,
    /// The memfd for the stub.
    pub memfd: &'a File,
    /// The mapped files.
    pub files: &'a [File],
    /// Which of 0, 1, 2 were closed when zhuque was started.
    pub closed: [bool; 3],
}

impl Sources<'_> {
    /// The highest descriptor among them.
    pub fn highest(&self) -> RawFd {
        let files = self.slices.iter().chain(self.files).chain([self.control, self.memfd]);
        let others = [self.status.as_raw_fd(), self.lock.as_raw_fd(), self.directory.as_raw_fd()];
        files.map(AsRawFd::as_raw_fd).chain(others).fold(2, RawFd::max)
    }
}

/// A process that has not become the program yet: whatever happens, it does not stay.
pub struct Doomed(pub Pid);

impl Doomed {
    /// It has become the program, or has been waited for.
    pub fn reaped(self) {
        std::mem::forget(self);
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        // A traced process may report a stop first.
        while waitpid(self.0, None)
            .is_ok_and(|status| !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
        {}
    }
}

/// What the child does between fork and exec, all of it decided before the fork: there it may only make system calls.
pub struct Newborn {
    /// Descriptors and the numbers they get. Every number is above every descriptor, so that the order is free.
    moves: Vec<(RawFd, RawFd)>,
    /// Runs of numbers to be closed, bounds included.
    close: Vec<(u32, u32)>,
    /// Numbers of the copies of stdin, stdout, stderr; -1: closed.
    pub stdio: [i32; 3],
    /// Number of the status socket.
    status: RawFd,
    personality: libc::c_ulong,
    /// Process id of this process.
    launcher: libc::pid_t,
    path: CString,
    arguments: Vec<CString>,
    /// What the shim is told where ptrace is refused: it lets the stub in then (shim/src/entry/entrance.rs).
    environment: Vec<CString>,
}

impl Newborn {
    /// Decides everything. `numbers` are above every descriptor of `sources`.
    /// `libraries` are the files that the program executed code from, but for itself.
    pub fn new(
        saved: &Saved<'_>,
        sources: &Sources<'_>,
        libraries: &[&Path],
        numbers: &Numbers,
    ) -> anyhow::Result<Newborn> {
        let region = numbers.region_descriptors();
        let status = numbers.helpers;
        let slices = sources.slices.iter().map(AsRawFd::as_raw_fd);
        let files = sources.files.iter().map(AsRawFd::as_raw_fd);
        let mut moves: Vec<(RawFd, RawFd)> = slices.zip(region.slices).collect();
        moves.extend([
            (sources.control.as_raw_fd(), region.control),
            (sources.directory.as_raw_fd(), region.directory),
            (sources.lock.as_raw_fd(), region.lock),
            (sources.status.as_raw_fd(), status),
            (sources.memfd.as_raw_fd(), status + 1),
        ]);
        let mut stdio = [-1; 3];
        for (fd, number) in (0..).zip(stdio.iter_mut()) {
            if !sources.closed[fd as usize] {
                *number = status + 2 + fd;
                moves.push((fd, *number));
            }
        }
        moves.extend(files.zip(status + FIXED_HELPERS as i32..));

        let [low, high] = numbers.used();
        let mut close = vec![(high.1 + 1, u32::MAX)];
        for (from, behind) in [(0, low.0), (low.1 + 1, high.0)] {
            if from < behind {
                close.push((from, behind - 1));
            }
        }
        let path = CString::new(saved.process.exe).context("the program's path has a zero in it")?;
        let arguments = saved.process.arguments.split_inclusive(|b| *b == 0);
        let mut arguments: Vec<CString> =
            arguments.filter_map(|a| std::ffi::CStr::from_bytes_with_nul(a).ok()).map(CString::from).collect();
        if arguments.is_empty() {
            arguments.push(path.clone());
        }
        let personality = libc::c_ulong::from(saved.process.personality);
        // By descriptor: ld.so splits the list at colons and spaces, which the region's path may have.
        let preload = format!("LD_PRELOAD=/proc/self/fd/{}/{SHIM_FILE}", region.directory);
        let mut environment = vec![CString::new(preload)?, CString::new(format!("{ENV_RESUMING}={}", status + 1))?];
        environment.push(CString::new([b"LD_LIBRARY_PATH=", library_path(libraries).as_slice()].concat())?);
        Ok(Newborn {
            moves,
            close,
            stdio,
            status,
            personality,
            launcher: nix::unistd::getpid().as_raw(),
            path,
            arguments,
            environment,
        })
    }

    /// Forks; the child goes its way.
    pub fn fork(&self) -> anyhow::Result<Pid> {
        let mut arguments: Vec<_> = self.arguments.iter().map(|a| a.as_ptr()).collect();
        arguments.push(std::ptr::null());
        let mut environment: Vec<_> = self.environment.iter().map(|variable| variable.as_ptr()).collect();
        environment.push(std::ptr::null());
        // SAFETY: installs no handler. An ignored SIGCHLD would take the child's status away from us.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
        // SAFETY: the child makes only system calls, with memory that was allocated before.
        let forked = unsafe { nix::unistd::fork() };
        if matches!(forked, Ok(ForkResult::Child)) {
            let (what, errno) = self.become_program(&arguments, &environment);
            self.report(what, errno);
            // SAFETY: leaves without running anything of the launcher's.
            unsafe { libc::_exit(125) };
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        match forked.context("cannot fork")? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => unreachable!("it never gets here"),
        }
    }

    /// In the child: everything up to the exec. Returns what went wrong, and errno.
    fn become_program(
        &self,
        arguments: &[*const libc::c_char],
        environment: &[*const libc::c_char],
    ) -> (&'static str, i32) {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` outlives the calls.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        for &(from, to) in &self.moves {
            // SAFETY: takes numbers only; the copy is not close-on-exec.
            if unsafe { libc::dup2(from, to) } < 0 {
                return ("cannot place a descriptor", errno());
            }
        }
        for &(first, last) in &self.close {
            // SAFETY: takes numbers only; nobody uses those descriptors in this process any more.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
                return ("cannot close the launcher's descriptors", errno());
            }
        }
        all_signals_default_and_blocked();
        let mut byte = 0u8;
        // SAFETY: numbers, a byte to read into, and terminated strings in terminated arrays, all of which outlive the calls.
        unsafe {
            libc::personality(self.personality);
            // Until the commit it does not outlive the launcher: a process that stood still for it would, for ever, and
            // keep the region locked.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != self.launcher {
                return ("the launcher has ended", libc::ECHILD);
            }
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0 {
                libc::kill(libc::getpid(), libc::SIGSTOP);
                // Not before the tracer has made sure that its end is this process' end.
                if libc::read(self.status, (&raw mut byte).cast(), 1) != 1 {
                    return ("the launcher has ended", libc::ECHILD);
                }
                // Nothing of it is run, the loader included.
                let nothing = [std::ptr::null()];
                libc::execve(self.path.as_ptr(), arguments.as_ptr(), nothing.as_ptr());
            } else {
                libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            }
        }
        ("cannot execute the program's file", errno())
    }

    /// In the child: tells the launcher what went wrong. Without allocating.
    fn report(&self, what: &str, errno: i32) {
        struct Line([u8; 256], usize);
        impl std::fmt::Write for Line {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                for byte in text.bytes() {
                    *self.0.get_mut(self.1).ok_or(std::fmt::Error)? = byte;
                    self.1 += 1;
                }
                Ok(())
            }
        }
        let mut line = Line([0; 256], 0);
        let _ = writeln!(line, "{what}: {}", nix::errno::Errno::from_raw(errno).desc());
        // The socket may have its number already, or only its old one.
        let old = self.moves.iter().find(|(_, to)| *to == self.status).map_or(-1, |(from, _)| *from);
        for fd in [self.status, old] {
            // SAFETY: the bytes are valid.
            if unsafe { libc::write(fd, line.0.as_ptr().cast(), line.1) } > 0 {
                return;
            }
        }
    }
}

/// ld.so's list for where it has to find the program's libraries again: the directories that they were mapped from, if
/// nobody but root or the user can put something there, and then what the user's own environment says.
fn library_path(libraries: &[&Path]) -> Vec<u8> {
    let own = nix::unistd::geteuid().as_raw();
    let trusted = |directory: &Path| {
        let plain = !directory.as_os_str().as_bytes().iter().any(|byte| b":;$".contains(byte));
        let safe = |data: std::fs::Metadata| data.mode() & 0o022 == 0 && [0, own].contains(&data.uid());
        plain && directory.is_absolute() && std::fs::metadata(directory).is_ok_and(safe)
    };
    let mut found: Vec<&[u8]> = Vec::new();
    for directory in libraries.iter().filter_map(|path| path.parent()).filter(|directory| trusted(directory)) {
        let directory = directory.as_os_str().as_bytes();
        if !found.contains(&directory) {
            found.push(directory);
        }
    }
    let theirs = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    if !theirs.is_empty() {
        found.push(theirs.as_bytes());
    }
    found.join(&b':')
}

/// Gives every signal its default action (exec keeps what is ignored), and blocks it. By raw calls: the C library
/// keeps the signals 32 and 33 to itself.
fn all_signals_default_and_blocked() {
    const MASK_BYTES: usize = 8;
    /// struct kernel_sigaction with SIG_DFL: handler, flags, restorer, mask.
    static DEFAULT: [u64; 4] = [0; 4];
    static ALL: u64 = u64::MAX;
    let none = std::ptr::null::<u64>();
    // SAFETY: the kernel reads two statics of the right sizes. No handler is installed; SIGKILL and SIGSTOP are
    // refused, as they have their default action anyway.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, MASK_BYTES);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const ALL, none, MASK_BYTES);
    }
}

/// The error number of the last call.
fn errno() -> i32 {
    nix::errno::Errno::last_raw()
}
