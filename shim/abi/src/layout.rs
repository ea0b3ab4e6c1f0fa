//! Where things lie: the files of a region, the slices, and the control mapping.
//!
//! A region is a directory with the files named here. The *control mapping* is the file `control`, mapped shared at
//! one randomised address for as long as the program lives; behind it, at a fixed distance, lies the *life area*,
//! private anonymous memory that is fresh in each life and never saved. Everything the shim knows lies in one of the
//! two: the shim library itself has no writable data that outlives its start.

/// Bytes of a page. Only x86-64 with 4 KiB base pages is supported.
pub const PAGE: u64 = 4096;
/// log2 of the bytes of virtual address space that one slice file backs (4 TiB). ext4 ends at 16 TiB a file, but
/// `ext4_punch_hole` has for years held holes to what block maps can reach, also in files of extents (its `max_end` was
/// `s_bitmap_maxbytes`, a little more than 4 TiB; mended in 2025): behind that it did *nothing*, and said that it had.
/// Seen with Linux 6.1.
pub const SLICE_SHIFT: u32 = 42;
/// Bytes that one slice file backs.
pub const SLICE_BYTES: u64 = 1 << SLICE_SHIFT;
/// Number of slices: they cover the whole 47-bit user half.
pub const SLICES: usize = 32;
/// Descriptors of the region itself: slices, control file, directory, lock.
pub const OWN_DESCRIPTORS: u64 = SLICES as u64 + 3;
/// Bits of a C library's fd_set (select(2)).
pub const FD_SETSIZE: u64 = 1024;
/// First address above the program's address space (TASK_SIZE of x86-64, arch/x86/include/asm/page_64_types.h).
pub const TASK_SIZE: u64 = (1 << 47) - PAGE;

/// First number of the region's own descriptors in a process with these limits: behind the program's last number, or, where
/// that is far away, below the end of an fd_set, and not at numbers that people choose (255, 999, 1000).
///
/// The kernel's table of descriptors goes as far as the highest one. With each fork(2) it is copied, and select(2) looks at
/// no more of a set than it has room for (fs/select.c, core_sys_select), which programs count on:
/// `select(getdtablesize(), ...)` with an fd_set is old custom.
pub const fn own_descriptors(soft: u64, hard: u64) -> u64 {
    let last = hard.saturating_sub(OWN_DESCRIPTORS);
    let wanted = if soft < 2 * FD_SETSIZE { soft } else { FD_SETSIZE - 64 };
    if wanted < last { wanted } else { last }
}

/// Name of the control file.
pub const CONTROL_FILE: &str = "control";
/// Name of the lock file; flock(2) exclusive while a process runs or resumes the region.
pub const LOCK_FILE: &str = "lock";
/// Name of the plan of call sites.
pub const PLAN_FILE: &str = "plan";
/// Name of the region's copy of the shim.
pub const SHIM_FILE: &str = "shim.so";
/// Name of the directory for files that the region keeps alive.
pub const FILES_DIR: &str = "files";
/// Name of the file that the launcher writes for each life: a [`crate::life::Boot`].
pub const BOOT_FILE: &str = "boot";
/// Slices are named `slice-00` to `slice-15`.
pub const SLICE_PREFIX: &str = "slice-";

/// Environment variable that names the region to the shim: `FD:DIRECTORY`, the number of the inherited descriptor that
/// holds the region's lock and the region's absolute path. Removed before the program sees it.
pub const ENV_REGION: &str = "ZHUQUE_REGION";

/// Environment variable that tells the shim of a new process to let a saved program in: the number of the memfd with the
/// restore stub.
pub const ENV_RESUMING: &str = "ZHUQUE_RESUMING";

/// Threads that one process can have at a time.
pub const MAX_THREADS: usize = 16384;
/// Nodes of the mapping table (the kernel's default limit is 65,530 mappings).
pub const MAX_NODES: usize = 1 << 20;
/// Files that can be mapped at a time.
pub const MAX_FILES: usize = 4096;
/// Rewritten call sites.
pub const MAX_SITES: usize = 1 << 16;
/// POSIX timers that a process can have at a time.
pub const MAX_TIMERS: usize = 1 << 16;

/// Offset of the [`crate::header::Header`].
pub const HEADER_OFFSET: u64 = 0;
/// Offset of the shim's [`crate::header::Globals`].
pub const GLOBALS_OFFSET: u64 = 0x1000;
/// Offset of the file table, [`crate::header::FileRecord`] × [`MAX_FILES`].
pub const FILES_OFFSET: u64 = 0x2_0000;
/// Offset of the table of rewritten sites, [`crate::header::Patched`] × [`MAX_SITES`].
pub const SITES_OFFSET: u64 = 0x100_0000;
/// Offset of the mapping table's nodes, [`crate::maps::Node`] × [`MAX_NODES`].
pub const NODES_OFFSET: u64 = 0x200_0000;
/// Offset of the table of POSIX timers, [`crate::timers::Timer`] × [`MAX_TIMERS`].
pub const TIMERS_OFFSET: u64 = 0x600_0000;
/// Offset of the journal that a save writes.
pub const JOURNAL_OFFSET: u64 = 0x800_0000;
/// Bytes that the journal may grow to.
pub const JOURNAL_BYTES: u64 = 0x800_0000;
/// Offset of the thread slots: [`MAX_THREADS`] × [`SLOT_STRIDE`].
pub const SLOTS_OFFSET: u64 = 0x1000_0000;
/// Distance of neighbouring slots: the slot's page, its gate stack, its signal stack.
pub const SLOT_STRIDE: u64 = 0x1_0000;
/// Offset in a slot's stride of the top of the gate stack, which grows down towards the slot's own page.
pub const GATE_STACK_TOP: u64 = 0x8000;
/// Offset in a slot's stride of the signal stack's lowest byte.
pub const SIGNAL_STACK: u64 = 0x8000;
/// Bytes of a signal stack. A kernel frame with AVX-512 state takes 3.5 KiB, with AMX 11 KiB.
pub const SIGNAL_STACK_BYTES: u64 = 0x8000;
/// Size of the control file and its mapping, bytes (sparse).
pub const CONTROL_BYTES: u64 = SLOTS_OFFSET + MAX_THREADS as u64 * SLOT_STRIDE;

/// Distance of the life area from the start of the control mapping.
pub const LIFE_OFFSET: u64 = CONTROL_BYTES;
/// Offset in the life area of the per-thread records, [`crate::life::LifeThread`] × [`MAX_THREADS`].
pub const LIFE_THREADS: u64 = 0x1000;
/// Offset in the life area of a copy of the arguments: what /proc/PID/cmdline shows has to be anonymous memory.
pub const LIFE_ARGUMENTS: u64 = 0x5_0000;
/// Bytes of that copy at most.
pub const LIFE_ARGUMENTS_BYTES: u64 = 0xa_0000;
/// Offset in the life area of the small stacks on which revived threads start.
pub const LIFE_STACKS: u64 = 0x10_0000;
/// Bytes of one such stack.
pub const LIFE_STACK_BYTES: u64 = 0x2000;
/// Offset in the life area of scratch memory for save and revive.
pub const LIFE_SCRATCH: u64 = LIFE_STACKS + MAX_THREADS as u64 * LIFE_STACK_BYTES;
/// Bytes of that scratch memory; its upper end is the stack that revive runs on.
pub const LIFE_SCRATCH_BYTES: u64 = 0x100_0000;
/// Size of the life area, bytes.
pub const LIFE_BYTES: u64 = LIFE_SCRATCH + LIFE_SCRATCH_BYTES;
/// Control mapping and life area together: what is reserved at start.
pub const RESERVED_BYTES: u64 = CONTROL_BYTES + LIFE_BYTES;

const _: () = {
    assert!(FILES_OFFSET + MAX_FILES as u64 * 2048 <= SITES_OFFSET);
    assert!(SITES_OFFSET + MAX_SITES as u64 * 64 <= NODES_OFFSET);
    assert!(NODES_OFFSET + MAX_NODES as u64 * 64 <= TIMERS_OFFSET);
    assert!(TIMERS_OFFSET + (MAX_TIMERS * size_of::<crate::timers::Timer>()) as u64 <= JOURNAL_OFFSET);
    assert!(JOURNAL_OFFSET + JOURNAL_BYTES <= SLOTS_OFFSET);
    assert!(SIGNAL_STACK + SIGNAL_STACK_BYTES == SLOT_STRIDE);
    assert!(LIFE_THREADS + MAX_THREADS as u64 * 16 <= LIFE_ARGUMENTS);
    assert!(LIFE_ARGUMENTS + LIFE_ARGUMENTS_BYTES <= LIFE_STACKS);
    assert!(SLICES as u64 * SLICE_BYTES == 1 << 47);
};

/// The slice that backs `address`, and the offset in it.
pub const fn slice_of(address: u64) -> (usize, u64) {
    ((address >> SLICE_SHIFT) as usize, address & (SLICE_BYTES - 1))
}

/// `value` rounded up to whole pages; saturates at the last page.
pub const fn page_up(value: u64) -> u64 {
    value.saturating_add(PAGE - 1) & !(PAGE - 1)
}

/// `value` rounded down to whole pages.
pub const fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}
