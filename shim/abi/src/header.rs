//! The fixed part of the control file: header page, the shim's globals, the file table, the rewritten sites.
//!
//! [`Header`] is what every version of the tools can read: magic, version and phase lie at offsets that never change.
//! The *phase word* is the one store that makes a save or a resume true.

use crate::maps::TreeHead;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First eight bytes of a control file.
pub const MAGIC: u64 = u64::from_le_bytes(*b"zhuque\0\x01");
/// Version of every layout in this crate; a region is only resumed by a shim of the same version (its own copy).
pub const VERSION: u32 = 9;

/// What a region is at the moment. Stored in the low byte of the phase word, the generation above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// The launcher is creating it; nothing to lose.
    Creating = 0,
    /// The program was executed; the shim is adopting its memory.
    Starting = 1,
    /// The program runs (or died unsaved, if nobody holds the lock).
    Running = 2,
    /// Everything a resume needs is in the region.
    Saved = 3,
    /// The program ended by itself.
    Ended = 4,
    /// A save was tried and was not complete; `reason` says why.
    Unsaved = 5,
}

impl Phase {
    /// The phase with number `raw`, if there is one.
    pub const fn from_raw(raw: u8) -> Option<Phase> {
        Some(match raw {
            0 => Phase::Creating,
            1 => Phase::Starting,
            2 => Phase::Running,
            3 => Phase::Saved,
            4 => Phase::Ended,
            5 => Phase::Unsaved,
            _ => return None,
        })
    }
}

/// The phase word for a generation and a phase.
pub const fn phase_word(generation: u64, phase: Phase) -> u64 {
    generation << 8 | phase as u64
}

/// Why a program was saved, or could not be. Stored in [`Header::reason`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    /// No save so far.
    None = 0,
    /// SIGPWR.
    Power = 1,
    /// A first touch of region memory failed: the store was full.
    StoreFull = 2,
    /// Not every thread was saved within the budget.
    Timeout = 3,
    /// Something the program holds cannot be described; `detail` names it.
    Unsupported = 4,
    /// The journal did not fit or could not be written.
    Journal = 5,
}

/// The header page of the control file.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of this structure.
    pub size: u32,
    /// Generation << 8 | [`Phase`]. The only word whose store commits a save or a resume.
    pub phase: AtomicU64,
    /// CRC-32 of this page with `phase` and `checksum` taken as zero; valid when saved.
    pub checksum: u32,
    /// Digest ([`crate::codec::digest`]) of globals, file table, site table, nodes, timers, and for each slot in use the slot itself
    /// and its saved frame ([`crate::slot::saved_frame`]), in that order; valid when saved.
    pub control_checksum: u32,
    /// Address of the control mapping in the program.
    pub base: u64,
    /// Real process id of this life (0: none yet). Written after a commit.
    pub pid: AtomicU32,
    /// Process id as the program knows it.
    pub virtual_pid: u32,
    /// Address of the shim's revive entry (text of the region's shim).
    pub revive: u64,
    /// First address of the shim's text, where the gate lies.
    pub shim_start: u64,
    /// CLOCK_REALTIME of the region's creation, ns.
    pub created_ns: u64,
    /// Bytes of journal records.
    pub journal_bytes: u64,
    /// CRC-32 of the journal's bytes.
    pub journal_checksum: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// Clocks when the save was complete: the program's CLOCK_MONOTONIC and CLOCK_BOOTTIME (its own, which stand
    /// still between save and resume) and CLOCK_REALTIME, ns.
    pub saved_monotonic_ns: u64,
    /// See `saved_monotonic_ns`.
    pub saved_boottime_ns: u64,
    /// See `saved_monotonic_ns`.
    pub saved_realtime_ns: u64,
    /// ns from the leader's entry into the handler to the last thread's being saved.
    pub save_stop_ns: u64,
    /// ns from the leader's entry into the handler to SAVED.
    pub save_total_ns: u64,
    /// Threads that were saved.
    pub threads: u32,
    /// Exit status of an ended program, as wait(2) gives it.
    pub exit_status: u32,
    /// XCR0 of the processor the program has run on: state components that must exist at resume.
    pub xcr0: u64,
    /// Bytes of a signal frame's extended state (xsave area) as saved.
    pub xsave_bytes: u64,
    /// Offsets of the program's CLOCK_MONOTONIC and CLOCK_BOOTTIME in the current life, ns: kept for an exec.
    pub monotonic_offset: i64,
    /// See `monotonic_offset`.
    pub boottime_offset: i64,
    /// The same of CLOCK_MONOTONIC_RAW, which runs at another rate.
    pub raw_offset: i64,
    /// The program's CLOCK_MONOTONIC_RAW when the save was complete, ns.
    pub saved_raw_ns: u64,
    /// Process id of the parent, as the program knows it (its first life's launcher).
    pub virtual_parent: u32,
    /// One more than the generation in which power is failing, as the program has heard: an image that an exec begins meanwhile
    /// has to know. 0: it is not.
    pub announced: AtomicU32,
    /// A short text that explains `reason`, zero terminated.
    pub detail: [u8; 256],
    /// Features of the processor by cpuid: leaf 1 ecx, edx; leaf 7 ebx, ecx, edx; leaf 0xd.1 eax.
    pub cpu_features: [u32; 6],
    /// Where a thread goes that is to lead a save from outside (`zhuque_capture`), when every thread has been stopped.
    pub outside: u64,
    /// First instruction that a thread executes when it has given up its slot: all that is left to it is the kernel's
    /// exit.
    pub exit_first: u64,
    /// First address behind these.
    pub exit_end: u64,
    /// The kernel's vdso in this life: address of its image, and bytes.
    pub vdso: [u64; 2],
    /// A [`How`]: how the region was saved.
    pub how: u32,
    /// First number of the block in which the region's own descriptors lie in this life.
    pub descriptors: i32,
}

/// How a region was saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum How {
    /// By its own threads, each of them at an instruction of the program.
    Inside = 0,
    /// From outside, each thread at whatever instruction it was, the gate's own included. The mapping table may be in
    /// the middle of a change: what was mapped is in the journal ([`crate::journal::Record::Mapping`]).
    Outside = 1,
}

/// A signal's action as the program set it (struct kernel_sigaction).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Action {
    /// SIG_DFL (0), SIG_IGN (1) or a handler's address.
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// sa_restorer.
    pub restorer: u64,
    /// sa_mask.
    pub mask: u64,
}

/// Children the program has started and not yet waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Child {
    /// Process id as the program knows it; 0: entry unused.
    pub pid: u32,
    /// What a wait finds if it does not ask the kernel: see [`child`].
    pub ended: u32,
}

/// Content in a slice where nothing is mapped any more (`family::spares`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Spare {
    /// First address.
    pub start: u64,
    /// One above the last; 0: entry unused.
    pub end: u64,
}

/// What is known of how the program uses the memory that it maps (`family::ahead`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Ahead {
    /// Size of the mappings in question, bytes.
    pub bytes: u64,
    /// Address of the one that was left alone, to see whether it is used; 0: none.
    pub sample: u64,
    /// Mappings whose pages are still to be made ahead.
    pub left: u64,
}

/// Number of [`Spare`] entries.
pub const MAX_SPARES: usize = 64;

impl Child {
    /// Whether the kernel is to be asked about it.
    pub const fn is_running(&self) -> bool {
        self.ended & child::STATUS == 0
    }
}

/// Values of [`Child::ended`].
pub mod child {
    /// The kernel knows.
    pub const NO: u32 = 0;
    /// The kernel knows, and the child shares no memory with the program.
    pub const APART: u32 = 1;
    /// Set beside a wait status (as of wait4): it had ended when the program was saved, or the failure has ended it.
    pub const STATUS: u32 = 1 << 31;
}

/// Number of [`Child`] entries.
pub const MAX_CHILDREN: usize = 4096;
/// Bytes of [`Globals::region`], its zero included.
pub const PATH_BYTES: usize = 4096;

/// Variables of the shim that live as long as the region.
#[repr(C)]
pub struct Globals {
    /// Lock of the address space: mapping table, brk, file table, site table. 0 free, else the owner's slot + 1.
    pub memory_lock: AtomicU32,
    /// Lock of everything else below.
    pub state_lock: AtomicU32,
    /// The mapping table.
    pub tree: TreeHead,
    /// Start, current end and page-aligned end of the emulated heap.
    pub brk_start: u64,
    /// See `brk_start`.
    pub brk_now: u64,
    /// See `brk_start`.
    pub brk_mapped: u64,
    /// Top of the area that mmap without hint fills downwards.
    pub mmap_top: u64,
    /// Lowest and highest address of the main thread's stack mapping.
    pub stack_start: u64,
    /// See `stack_start`.
    pub stack_end: u64,
    /// Files in the file table: indices 1..=files have been used.
    pub files: u32,
    /// Rewritten sites in the site table: indices 0..sites.
    pub sites: u32,
    /// POSIX timers: entries 0..timers of their table have been used.
    pub timers: AtomicU32,
    /// No entry below this one is free.
    pub timers_taken: AtomicU32,
    /// Where the trampolines are, per library.
    pub trampolines: [TrampolinePages; 64],
    /// Copy of the vdso at the address that the program knows: start and bytes.
    pub vdso: u64,
    /// See `vdso`.
    pub vdso_bytes: u64,
    /// Offsets in that copy of the wrapped functions' entries, in the order of [`crate::life::VDSO_FUNCTIONS`].
    pub vdso_entries: [u64; 6],
    /// Which pages are made ahead of their use.
    pub ahead: Ahead,
    /// Memory that was given back and is kept, oldest first, used entries first.
    pub spares: [Spare; MAX_SPARES],
    /// Generation of a recovery signal that is still to be taken, since the program has SIGPWR blocked; 0: none.
    pub recovery: AtomicU64,
    /// The hard limit of descriptors that the program knows, plus one, where the kernel's is another; else 0.
    pub descriptors_hard: AtomicU64,
    /// Commands by which the program has registered for membarrier(2).
    pub membarrier: AtomicU32,
    /// Named padding.
    pub reserved: u32,
    /// Processors that the program was started on (sched_getaffinity), the first 1,024.
    pub affinity: [u8; 128],
    /// Slots ever used: indices 0..slots.
    pub slots: AtomicU32,
    /// Process attributes: real uid of the region's owner.
    pub uid: u32,
    /// Where the kernel believes the image to lie, for /proc/PID/cmdline, environ and stat (proc(5), stat): start and end
    /// of code, start of the stack, start and end of data, start of brk, start and end of arguments and of environment.
    pub image: [u64; 10],
    /// Device and inode of the descriptors 0, 1, 2 as the program was started with; a descriptor of the same object
    /// is attached to what a resume was given.
    pub stdio: [Stdio; 3],
    /// Actions of the signals 1..=64, at index signal - 1.
    pub actions: [Action; 64],
    /// Per action a sequence number: odd while it is being changed.
    pub action_sequence: [AtomicU32; 64],
    /// Children.
    pub children: [Child; MAX_CHILDREN],
    /// Path of the region's directory as the shim was given it, zero terminated.
    pub region: [u8; PATH_BYTES],
}

/// The trampolines of one mapped library. Each takes [`TRAMPOLINE_BYTES`]; its last four bytes are the index of its
/// site, and the page run's first eight bytes are the gate's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrampolinePages {
    /// First address, 0: unused.
    pub start: u64,
    /// End of the run.
    pub end: u64,
    /// The library's text: first and last rewritten byte + 1.
    pub low: u64,
    /// See `low`.
    pub high: u64,
    /// First of its sites in the site table; they are sorted by address.
    pub first: u32,
    /// Number of its sites.
    pub count: u32,
}

/// Bytes of one trampoline.
pub const TRAMPOLINE_BYTES: u64 = 64;

/// What one of the descriptors 0, 1, 2 was at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stdio {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// 1 if the descriptor was open.
    pub open: u32,
    /// st_mode.
    pub mode: u32,
}

/// One mapped file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileRecord {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// st_size when it was mapped, bytes.
    pub size: u64,
    /// st_mtim when it was mapped, ns.
    pub mtime_ns: u64,
    /// Access mode of the descriptor it was mapped from (O_RDONLY or O_RDWR).
    pub access: u32,
    /// Bytes of `path`.
    pub path_bytes: u32,
    /// 1 if it had no name any more when it was mapped.
    pub unlinked: u32,
    /// Named padding.
    pub reserved: u32,
    /// Absolute path.
    pub path: [u8; 2000],
}

/// One rewritten call site, for program-counter translation and for rewriting again at resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Patched {
    /// Address of the first overwritten byte.
    pub address: u64,
    /// Address of its trampoline.
    pub trampoline: u64,
    /// Bytes in front of the `syscall`.
    pub before: u8,
    /// Overwritten bytes.
    pub length: u8,
    /// Offset in the trampoline at which the gate returns (the bytes behind the `syscall` follow).
    pub resume: u8,
    /// Bytes of the trampoline.
    pub trampoline_bytes: u8,
    /// Named padding.
    pub reserved: u32,
    /// The bytes that stood there.
    pub original: [u8; 32],
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(offset_of!(Header, phase) == 16);
    assert!(offset_of!(Header, base) == 32);
    assert!(size_of::<Header>() <= 4096);
    assert!(size_of::<Action>() == 32);
    assert!(size_of::<FileRecord>() == 2048);
    assert!(size_of::<Patched>() == 56);
    assert!(size_of::<Globals>() as u64 <= crate::layout::FILES_OFFSET - crate::layout::GLOBALS_OFFSET);
};
