//! Descriptions of kernel-resident state, written by a save and read by a resume and by `inspect`.
//!
//! One [`Record`] describes one thing. Open file descriptions are numbered; several [`Record::Descriptor`]s may name
//! the same one (dup, fork). Byte strings are borrowed from the journal.

use serde::{Deserialize, Serialize};

/// One description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record<'a> {
    /// Attributes of the process. Exactly one; pending signals of threads may come before it.
    #[serde(borrow)]
    Process(Process<'a>),
    /// A resource limit.
    Limit {
        /// RLIMIT_*.
        resource: u32,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// An interval timer (setitimer) that is armed.
    IntervalTimer {
        /// ITIMER_*.
        which: u32,
        /// Remaining time, ns.
        value_ns: u64,
        /// Period, ns.
        interval_ns: u64,
    },
    /// An open file description.
    #[serde(borrow)]
    Description(Description<'a>),
    /// A descriptor: a number that names a description.
    Descriptor {
        /// The number.
        fd: i32,
        /// The description's id.
        description: u32,
        /// FD_CLOEXEC.
        cloexec: bool,
    },
    /// A registration in an epoll instance.
    EpollEntry {
        /// Id of the epoll description.
        epoll: u32,
        /// Descriptor number that was registered.
        fd: i32,
        /// Id of the description that the number named when it was registered (0: that descriptor is closed by now).
        description: u32,
        /// Events mask (0 with EPOLLONESHOT once it has fired).
        events: u32,
        /// The user's data.
        data: u64,
    },
    /// A watch of an inotify instance.
    InotifyWatch {
        /// Id of the inotify description.
        inotify: u32,
        /// Watch descriptor.
        watch: i32,
        /// IN_* mask.
        mask: u32,
        /// Path watched.
        path: &'a [u8],
    },
    /// A POSIX or OFD record lock, or a flock, held on a regular file.
    FileLock {
        /// Id of the description (flock, OFD) or of any description of the file (POSIX).
        description: u32,
        /// What kind of lock.
        kind: LockKind,
        /// True: exclusive.
        write: bool,
        /// First byte.
        start: u64,
        /// Bytes, 0: to the end.
        length: u64,
    },
    /// A signal that was pending for the process (thread 0) or for a thread.
    PendingSignal {
        /// Thread id as the program knows it, 0: the process.
        thread: u32,
        /// The siginfo.
        info: [u64; 16],
    },
    /// Scheduling of a thread, when it is not the default.
    Scheduling {
        /// Thread id as the program knows it.
        thread: u32,
        /// nice value.
        nice: i32,
        /// SCHED_*.
        policy: u32,
        /// sched_priority.
        priority: i32,
        /// CPU mask, the first 1,024 processors; empty: all that are there.
        affinity: &'a [u8],
        /// ioprio_get(2); 0: none of its own.
        io: u32,
    },
    /// A POSIX timer.
    Timer {
        /// Its place in the table ([`crate::timers`]).
        index: u32,
        /// CLOCK_*, or a clock of CPU time that names a thread as the program does.
        clock: i32,
        /// SIGEV_*.
        notify: i32,
        /// Signal number.
        signal: u32,
        /// With SIGEV_THREAD_ID: the thread that is told, as the program knows it.
        thread: u32,
        /// What the program is told with the signal.
        value: u64,
        /// True: it was set to an absolute time of a clock that goes on without the program, and `value_ns` is that.
        absolute: bool,
        /// Remaining time, ns; 0: not armed.
        value_ns: u64,
        /// Period, ns.
        interval_ns: u64,
        /// How many expirations stand for its signal that is pending ([`Record::PendingSignal`], with the kernel's id of the
        /// timer); 0: none is.
        told: u32,
    },
    /// What was mapped, as the kernel had it, of a region that was saved from outside.
    #[serde(borrow)]
    Mapping(Mapped<'a>),
}

/// One mapping of the kernel's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mapped<'a> {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// PROT_*.
    pub prot: u32,
    /// What it is a mapping of.
    #[serde(borrow)]
    pub backing: Backing<'a>,
}

/// What a mapping is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Backing<'a> {
    /// Nothing: a reservation of addresses.
    Reserve,
    /// A slice.
    Slice {
        /// Which.
        index: u32,
        /// Offset, bytes. Not the one that the address gives where the gate itself was at work.
        offset: u64,
    },
    /// A file.
    File {
        /// Absolute path.
        path: &'a [u8],
        /// st_dev, st_ino, st_size, st_mtim in ns.
        identity: [u64; 4],
        /// Offset, bytes.
        offset: u64,
        /// MAP_SHARED.
        shared: bool,
        /// Whether it was opened for writing, too.
        writable: bool,
    },
}

/// Kinds of file locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// fcntl(F_SETLK).
    Posix,
    /// fcntl(F_OFD_SETLK).
    Ofd,
}

/// Attributes of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process<'a> {
    /// Path of the executable.
    pub exe: &'a [u8],
    /// Its device, inode, size in bytes and modification time in ns.
    pub exe_identity: [u64; 4],
    /// Arguments, each with its terminating zero.
    pub arguments: &'a [u8],
    /// Working directory.
    pub cwd: &'a [u8],
    /// File mode creation mask.
    pub umask: u32,
    /// personality(2).
    pub personality: u32,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: u32,
    /// PR_GET_TIMERSLACK, PR_GET_CHILD_SUBREAPER, PR_GET_THP_DISABLE, PR_GET_MDWE.
    pub prctls: [u64; 4],
    /// Real, effective, saved uid; real, effective, saved gid.
    pub ids: [u32; 6],
    /// Supplementary groups, each a little-endian u32.
    pub groups: &'a [u8],
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Session id and process group as the program knows them.
    pub session: u32,
    /// See `session`.
    pub group: u32,
    /// Registrations of membarrier(2).
    pub membarrier: u32,
    /// /proc/self/coredump_filter, if the program has chosen it.
    pub coredump_filter: Option<i64>,
    /// /proc/self/oom_score_adj, the same.
    pub oom_score_adj: Option<i64>,
}

/// Capabilities of a thread (capabilities(7)), a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What is checked.
    pub effective: u64,
    /// What it may have.
    pub permitted: u64,
    /// What an exec may keep.
    pub inheritable: u64,
    /// What an exec may give.
    pub bounding: u64,
    /// What an exec of a plain file keeps.
    pub ambient: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description<'a> {
    /// Its id within the journal, from 1.
    pub id: u32,
    /// F_GETFL: access mode and status flags.
    pub flags: u32,
    /// F_GETOWN_EX type and id, F_GETSIG: 0 if unset.
    pub owner: [i32; 3],
    /// What it refers to.
    #[serde(borrow)]
    pub object: Object<'a>,
}

/// What a description refers to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object<'a> {
    /// The program's stdin, stdout or stderr as it was started: attached to what a resume is given. Terminal settings
    /// (struct termios as the kernel has it) and window size, if it was a terminal and the program is in foreground.
    Stdio {
        /// 0, 1 or 2.
        number: u32,
        /// struct termios2 bytes, empty if it is no terminal.
        termios: &'a [u8],
    },
    /// A regular file.
    File {
        /// Absolute path (for one kept alive: in the region's `files/`).
        path: &'a [u8],
        /// st_dev, st_ino, st_size, st_mtim in ns.
        identity: [u64; 4],
        /// Offset, bytes.
        offset: u64,
        /// The path was gone: content is kept in the region's `files/` under this name; empty: not so.
        kept: &'a [u8],
        /// True if the program has it mapped shared and writable: its time of modification is not checked.
        mapped: bool,
        /// [`MEMFD`] and the seals, if it comes back as a memfd with that content; else 0.
        seals: u32,
    },
    /// A directory.
    Directory {
        /// Absolute path; empty: it was removed.
        path: &'a [u8],
        /// Position for getdents64.
        offset: u64,
    },
    /// A character device or a terminal by path.
    Device {
        /// Absolute path.
        path: &'a [u8],
        /// struct termios2 bytes, empty if it is no terminal.
        termios: &'a [u8],
        /// Of a pseudo-terminal whose master is in the program: what this side could have read.
        data: &'a [u8],
        /// Of a master: the other side has been closed by everybody who had it.
        closed: bool,
    },
    /// One end of a pipe. Both ends have the same `pipe` number.
    Pipe {
        /// Identifies the pipe within the journal (its inode).
        pipe: u64,
        /// True for the write end.
        write: bool,
        /// F_GETPIPE_SZ.
        capacity: u32,
        /// Unread bytes (with the first end described only).
        data: &'a [u8],
    },
    /// A named pipe.
    Fifo {
        /// Absolute path.
        path: &'a [u8],
        /// Its inode.
        inode: u64,
        /// F_GETPIPE_SZ.
        capacity: u32,
        /// Unread bytes.
        data: &'a [u8],
    },
    /// A socket.
    #[serde(borrow)]
    Socket(Socket<'a>),
    /// An epoll instance; entries follow as [`Record::EpollEntry`].
    Epoll,
    /// An eventfd.
    EventFd {
        /// Count.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// A timerfd.
    TimerFd {
        /// CLOCK_*.
        clock: u32,
        /// Expirations not read yet.
        ticks: u64,
        /// TFD_TIMER_* it was set with.
        settime: u32,
        /// Remaining time, ns; 0: disarmed.
        value_ns: u64,
        /// Period, ns.
        interval_ns: u64,
    },
    /// A signalfd.
    SignalFd {
        /// Its mask.
        mask: u64,
    },
    /// An inotify instance; watches follow as [`Record::InotifyWatch`].
    Inotify,
    /// A pidfd of a child or of the process itself.
    PidFd {
        /// Process id as the program knows it.
        pid: u32,
    },
    /// Nothing this version can re-create: a resume refuses, naming it.
    Unsupported {
        /// What /proc/PID/fd says.
        what: &'a [u8],
    },
}

/// In the seals of a file: it was made by memfd_create(2).
pub const MEMFD: u32 = 1 << 31;

/// A socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Socket<'a> {
    /// AF_*.
    pub domain: u32,
    /// SOCK_* without flags.
    pub kind: u32,
    /// Protocol.
    pub protocol: u32,
    /// How far it had come.
    pub state: SocketState,
    /// Backlog, for listeners.
    pub backlog: u32,
    /// getsockname, empty if unbound.
    pub local: &'a [u8],
    /// getpeername, for connected datagram sockets.
    pub peer: &'a [u8],
    /// For an end of a socketpair inside the program: a number that both ends share. 0: none.
    pub pair: u64,
    /// Options: level u32, name u32, length u32, value, each little endian, one after the other.
    pub options: &'a [u8],
    /// Unread data: for streams the bytes; for packets each with a u32 length before it. For datagram sockets that
    /// others may reach: each with its length, the length of its sender's address (u32 each) and that address before it.
    pub data: &'a [u8],
}

/// How far a socket had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketState {
    /// Created, perhaps bound.
    Fresh,
    /// Listening.
    Listening,
    /// A datagram socket with a peer.
    ConnectedDatagram,
    /// An established (or connecting, or half-closed) stream whose peer is outside: comes back reset.
    Established,
    /// A stream whose connection has ended already.
    Closed,
    /// One end of a socketpair whose other end is in the program too.
    Pair,
    /// One end of a socketpair whose other end is outside or gone: reads what is there, then end of file.
    Orphan,
    /// A stream in the middle of connect(2), which is issued again.
    Connecting,
}
