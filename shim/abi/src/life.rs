//! What is true for one life only: real ids, the kernel's vdso, the clocks' offsets, the region's descriptors.
//!
//! [`Life`] lies in private memory behind the control mapping, fresh in each life; [`Boot`] is how the launcher and the
//! restore stub tell a new life about itself.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

/// First eight bytes of a boot file.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"zqboot\0\0");

/// The functions of the vdso that are wrapped, in the order of [`Vdso::functions`].
pub const VDSO_FUNCTIONS: [&str; 6] = [
    "__vdso_clock_gettime",
    "__vdso_gettimeofday",
    "__vdso_time",
    "__vdso_getcpu",
    "__vdso_clock_getres",
    "__vdso_getrandom",
];

/// The kernel's vdso of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vdso {
    /// Where its ELF header is mapped in this life (0 in a boot file for a start: the kernel chooses).
    pub base: u64,
    /// Bytes of the image (whole pages).
    pub bytes: u64,
    /// Bytes of the variable pages mapped right below it.
    pub variables: u64,
    /// Offsets of the functions named by [`VDSO_FUNCTIONS`]; 0: absent.
    pub functions: [u64; 6],
}

/// Flags of [`Boot::flags`].
pub mod boot_flag {
    /// Write back what the program wrote to files when it is saved (the default).
    pub const FILE_SYNC: u32 = 1;
    /// The store is not flush-on-fail: fsync the region's files at save.
    pub const SYNC_REGION: u32 = 2;
    /// Slices lie on a DAX file system and are mapped MAP_SYNC.
    pub const DAX: u32 = 4;
}

/// What a new image of the program is told, as the region's `boot` file: by the launcher at the start, by the shim of
/// the image before it at an exec.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Boot {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::header::VERSION`].
    pub version: u32,
    /// See [`boot_flag`].
    pub flags: u32,
    /// The vdso of this machine.
    pub vdso: Vdso,
    /// Budget of a save, ns.
    pub hold_up_ns: u64,
    /// 1: the program had SIGPWR blocked by whoever started it.
    pub power_blocked: u64,
    /// 1: an image of the region was executed by another; `exec_mask` is its signal mask.
    pub executed: u64,
    /// See `executed`.
    pub exec_mask: u64,
}

/// One thread in this life.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LifeThread {
    /// Real thread id, 0: none.
    pub tid: AtomicU32,
    /// See [`parked`].
    pub parked: AtomicU32,
    /// Start-up state of a revived thread.
    pub stage: AtomicU32,
    /// 1 while the thread sleeps for one of the control mapping's locks.
    pub lock_wait: AtomicU32,
}

/// Whether a thread stands still; [`LifeThread::parked`].
pub mod parked {
    /// It does not.
    pub const NO: u32 = 0;
    /// Until a fork is done.
    pub const FORK: u32 = 1;
    /// For good, with its frame saved.
    pub const SAVED: u32 = 2;
}

/// What stops the world; [`Life::stop`].
pub mod stop {
    /// Nothing.
    pub const NONE: u32 = 0;
    /// A save: threads park for good.
    pub const SAVE: u32 = 1;
    /// A snapshot for fork: threads park until the word is `NONE` again.
    pub const FORK: u32 = 2;
}

/// Numbers of the region's own descriptors in this life; -1: not open.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RegionDescriptors {
    /// The slices.
    pub slices: [i32; crate::layout::SLICES],
    /// The control file.
    pub control: i32,
    /// The region's directory.
    pub directory: i32,
    /// The lock file.
    pub lock: i32,
    /// The lowest number of the block in which all of them lie.
    pub first: i32,
    /// One above the highest.
    pub end: i32,
}

/// This life.
#[repr(C)]
pub struct Life {
    /// Generation of this life.
    pub generation: u64,
    /// Real process id.
    pub pid: u32,
    /// See [`boot_flag`].
    pub flags: u32,
    /// Real process id of the parent when this life began: the launcher, or whoever the program was started by.
    pub parent: u32,
    /// 1: a thread of the program has sent a signal to another since the failure was announced, which may have come to
    /// one that stood still already.
    pub late: AtomicU32,
    /// Raised by the leader of a save for every thread to look for such signals.
    pub collect: AtomicU32,
    /// How many have looked since.
    pub collected: AtomicU32,
    /// Threads that stand still for a save.
    pub saved: AtomicU32,
    /// How many there were to be when its leader last looked: the one that makes it so many wakes the leader.
    pub expected: AtomicU32,
    /// See [`stop`].
    pub stop: AtomicU32,
    /// Slot index + 1 of the thread that leads the stop.
    pub leader: AtomicU32,
    /// Futex word that is raised whenever a thread parks.
    pub parked: AtomicU32,
    /// Futex word that parked threads wait on, raised when a stop ends.
    pub round: AtomicU32,
    /// The program's CLOCK_MONOTONIC minus the kernel's, ns.
    pub monotonic_offset: AtomicI64,
    /// The program's CLOCK_BOOTTIME minus the kernel's, ns.
    pub boottime_offset: AtomicI64,
    /// The program's CLOCK_MONOTONIC_RAW minus the kernel's, ns.
    pub raw_offset: AtomicI64,
    /// Where the vdso is now.
    pub vdso: Vdso,
    /// Addresses of the vdso's functions now, in the order of [`VDSO_FUNCTIONS`]; 0: absent.
    pub functions: [u64; 6],
    /// The clocks' offsets once more, as seconds and nanoseconds (0 to 999,999,999) of MONOTONIC, of BOOTTIME, and
    /// of MONOTONIC_RAW: what the vdso's wrapper adds. Right behind `functions` (assembler relies on it).
    pub offset_parts: [i64; 6],
    /// The region's descriptors.
    pub descriptors: RegionDescriptors,
    /// 1: handlers may use the life area (it is set up).
    pub ready: AtomicU32,
    /// 1 once the resume has been committed: revived threads may go.
    pub go: AtomicU32,
    /// Slot index + 1 of the thread that gets the recovery signal as it goes on; 0: none.
    pub recovers: AtomicU32,
    /// Revived threads that wait for `go`.
    pub waiting: AtomicU32,
    /// Which call numbers have been refused and said so on stderr: a bit each.
    pub refused: [AtomicU64; 10],
    /// Bytes of a signal frame's xsave area (AT_MINSIGSTKSZ-like), 0: unknown.
    pub xsave_bytes: u64,
    /// Budget of a save, ns.
    pub hold_up_ns: u64,
    /// When the announcement was first seen, the kernel's CLOCK_MONOTONIC, ns.
    pub announced_ns: AtomicU64,
    /// Where the vdso was in the life before: address and bytes.
    pub vdso_before: [u64; 2],
    /// 1: the mapping table has that one still, since it was in the middle of a change when the region was saved.
    pub stale_table: AtomicU32,
    /// The process id in the life before.
    pub pid_before: u32,
    /// What attributes were at its beginning that a file of /proc holds: coredump_filter, oom_score_adj. [`UNKNOWN`],
    /// [`CHOSEN`]: see there.
    pub began_with: [i64; 2],
}

/// In [`Life::began_with`]: it cannot be read.
pub const UNKNOWN: i64 = i64::MIN;
/// In [`Life::began_with`]: whatever it is now, the program may have chosen it (before an exec).
pub const CHOSEN: i64 = i64::MIN + 1;

/// Instruction of a resume's mapping step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MapStep {
    /// Where.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Descriptor, -1: anonymous.
    pub fd: i32,
    /// PROT_*.
    pub prot: i32,
    /// MAP_* (MAP_FIXED_NOREPLACE is added).
    pub flags: i32,
    /// What it is, for messages: a [`crate::maps::Kind`] by number.
    pub kind: i32,
}

/// First eight bytes of [`ResumeArgs`].
pub const RESUME_MAGIC: u64 = u64::from_le_bytes(*b"zqresume");

/// What the launcher tells the stub, and the stub the shim's revive, in memory outside the region.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ResumeArgs {
    /// [`RESUME_MAGIC`].
    pub magic: u64,
    /// The stub's own memory, kept until the commit: start and bytes.
    pub stub_start: u64,
    /// See `stub_start`.
    pub stub_bytes: u64,
    /// Where the kernel's vdso variables start now, and where they are to be.
    pub vdso_from: u64,
    /// See `vdso_from`. Variables first, then the image, contiguous.
    pub vdso_to: u64,
    /// The vdso with `base` as it will be.
    pub vdso: Vdso,
    /// Number of [`MapStep`] that follow this structure.
    pub steps: u64,
    /// Generation that the region has; the new life's is one more.
    pub generation: u64,
    /// Address of the control mapping.
    pub base: u64,
    /// Address of revive.
    pub revive: u64,
    /// The region's descriptors, already at their places.
    pub descriptors: RegionDescriptors,
    /// Descriptor on which errors and success are reported: one line of text, or `ok\n`.
    pub status: i32,
    /// First descriptor number that the launcher uses for the resume; all from here on, but the region's own, are
    /// closed when the program's descriptors have been re-created.
    pub helpers: i32,
    /// One above the last.
    pub helpers_end: i32,
    /// Copies of the launcher's stdin, stdout, stderr.
    pub stdio: [i32; 3],
    /// See [`boot_flag`].
    pub flags: u32,
    /// 1: differences in files are not errors.
    pub force: u32,
    /// Budget of a save, ns.
    pub hold_up_ns: u64,
    /// Fault injection for tests: the [`stage`] at which the resume kills itself, 0: none.
    pub die_at: u32,
    /// Named padding.
    pub reserved: u32,
    /// The kernel's mappings that make up variables and image of the vdso, in order of address; mremap(2) moves one
    /// mapping at a time. Unused entries are zero; all are when the vdso stays where it is.
    pub vdso_pieces: [VdsoPiece; MAX_VDSO_PIECES],
}

/// What the shim of a process that is not traced writes to the memfd's beginning when it waits for an [`Entrance`].
pub const ENTRANCE_WANTED: u64 = u64::from_le_bytes(*b"zqwaits\0");

/// First eight bytes of [`Entrance`].
pub const ENTRANCE_MAGIC: u64 = u64::from_le_bytes(*b"zqenter\0");

/// Where a process that is not traced finds the stub: in the last page of the memfd that has its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entrance {
    /// [`ENTRANCE_MAGIC`].
    pub magic: u64,
    /// Where the stub's memory is to be.
    pub start: u64,
    /// Bytes of its text; arguments and stack follow.
    pub text_bytes: u64,
    /// All of its bytes.
    pub bytes: u64,
    /// Offset of its entry.
    pub entry: u64,
}

/// Mappings of which the kernel makes its vdso, at most (Linux 6.18: three).
pub const MAX_VDSO_PIECES: usize = 8;

/// One mapping of the vdso that moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VdsoPiece {
    /// Where it is.
    pub from: u64,
    /// Where it is to be.
    pub to: u64,
    /// Bytes; 0: entry unused.
    pub bytes: u64,
}

/// Stages of a resume, in order, and what is true after each. Also the points at which tests end one.
pub mod stage {
    /// The launcher has validated the region and holds its lock.
    pub const VALIDATED: u32 = 1;
    /// The stub runs inside the new process; nothing of the program is mapped.
    pub const STUB: u32 = 2;
    /// The old image is gone, the vdso has moved, every mapping of the program is back. Read-only so far.
    pub const MAPPED: u32 = 3;
    /// The shim's revive runs; call sites are rewritten, signal actions are set, signals are blocked.
    pub const REVIVED: u32 = 4;
    /// Every descriptor is back.
    pub const DESCRIPTORS: u32 = 5;
    /// Every thread exists and waits.
    pub const THREADS: u32 = 6;
    /// The phase word says that the region runs. Nothing can fail any more.
    pub const COMMITTED: u32 = 7;
}

const _: () = {
    use core::mem::size_of;
    assert!(size_of::<LifeThread>() == 16);
    assert!(size_of::<Life>() <= 4096);
    assert!(core::mem::offset_of!(Life, offset_parts) == core::mem::offset_of!(Life, functions) + 48);
    assert!(size_of::<Boot>() == 24 + 72 + 24);
    assert!(size_of::<Entrance>() == 40);
    assert!(size_of::<MapStep>() == 40);
    assert!(size_of::<VdsoPiece>() == 24);
    assert!(size_of::<ResumeArgs>().is_multiple_of(8));
};
