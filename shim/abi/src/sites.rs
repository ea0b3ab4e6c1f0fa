//! The plan of call sites: which `syscall` instructions of which files are rewritten, and how.
//!
//! The launcher computes it (crate `zhuque-sites`), caches it by build-id, and puts the plans of the files that a
//! program will load into the region's `plan` file, which is a [`PlanHeader`], then `libraries` × [`LibraryPlan`],
//! then `sites` × [`Site`]. The shim compares [`Site::original`] with memory before it writes, so a stale plan
//! changes nothing.

/// First eight bytes of a plan file.
pub const PLAN_MAGIC: u64 = u64::from_le_bytes(*b"zqplan\0\0");
/// Raised whenever the layout of this file's types or their meaning changes.
pub const PLAN_VERSION: u32 = 1;
/// Longest run of bytes that one site may overwrite.
pub const SITE_BYTES: usize = 32;

/// Start of a plan file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PlanHeader {
    /// [`PLAN_MAGIC`].
    pub magic: u64,
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Number of [`LibraryPlan`] records that follow.
    pub libraries: u32,
    /// Number of [`Site`] records behind them.
    pub sites: u32,
    /// CRC-32 of everything behind the header.
    pub checksum: u32,
}

/// The sites of one ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LibraryPlan {
    /// Device and inode of the file when it was planned, to find it again by fstat.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// Size in bytes when it was planned.
    pub size: u64,
    /// Index of its first site in the plan's site array.
    pub first: u32,
    /// Number of its sites; they are sorted by `file_offset`.
    pub count: u32,
    /// GNU build-id, zero padded; all zero if the file has none.
    pub build_id: [u8; 32],
}

/// One rewritable call site.
///
/// The bytes `original[..length]` hold `before` bytes of position-independent instructions, the two bytes of
/// `syscall`, then more position-independent instructions. No branch leads behind the first byte of the run, except
/// that no instruction of the run but the first is a branch target. A site's trampoline is: the `before` bytes, a
/// jump into the gate, the bytes behind the `syscall`, a jump to the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Site {
    /// Offset in the file of the first overwritten byte.
    pub file_offset: u64,
    /// Bytes in front of the `syscall` instruction that belong to the run.
    pub before: u8,
    /// Length of the whole run, 5 to [`SITE_BYTES`].
    pub length: u8,
    /// Named padding, zero.
    pub reserved: [u8; 6],
    /// The bytes as they are in the file, zero padded.
    pub original: [u8; SITE_BYTES],
}

const _: () = {
    assert!(core::mem::size_of::<PlanHeader>() == 24);
    assert!(core::mem::size_of::<LibraryPlan>() == 64);
    assert!(core::mem::size_of::<Site>() == 48);
};
