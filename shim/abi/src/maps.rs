//! The mapping table as it lies in a region: an array of nodes that form one search tree.
//!
//! The tree's algorithms are in `zhuque-model` (`maptree`); this file only fixes the bytes. A node is a maximal run of
//! addresses with the same attributes. Index 0 of the array is never a node: link 0 means "none".

/// What backs a run of addresses, and so what a resume does with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Unused node (on the free list).
    Free = 0,
    /// Region memory: the slice file at the offset that the address gives, mapped shared.
    Region = 1,
    /// An address reservation (PROT_NONE, anonymous, no content). Becomes `Region` on mprotect.
    Reserve = 2,
    /// A private mapping of a file, never written; content comes from the file (see the file table).
    FilePrivate = 3,
    /// A shared mapping of a file.
    FileShared = 4,
    /// zhuque's own control mapping; never touched by the program's calls.
    Control = 5,
    /// Belongs to one life only (the kernel's vdso and vvar, the life area): not mapped by a resume.
    Volatile = 6,
    /// Free address space kept behind a growing mapping. Nothing is mapped there.
    Headroom = 7,
}

impl Kind {
    /// The kind with number `raw`, if there is one.
    pub const fn from_raw(raw: u8) -> Option<Kind> {
        Some(match raw {
            0 => Kind::Free,
            1 => Kind::Region,
            2 => Kind::Reserve,
            3 => Kind::FilePrivate,
            4 => Kind::FileShared,
            5 => Kind::Control,
            6 => Kind::Volatile,
            7 => Kind::Headroom,
            _ => return None,
        })
    }

    /// Whether the mapping's content is addressed by an offset into a file of the file table.
    pub const fn is_file(self) -> bool {
        matches!(self, Kind::FilePrivate | Kind::FileShared)
    }
}

/// Flags of a mapping, kept in [`Node::flags`].
pub mod flag {
    /// Text that carries rewritten call sites: they are written again at resume.
    pub const PATCHED: u16 = 1;
    /// madvise(MADV_DONTFORK).
    pub const DONTFORK: u16 = 2;
    /// madvise(MADV_WIPEONFORK): reads zero in a forked child.
    pub const WIPEONFORK: u16 = 4;
    /// mlock(2), MAP_LOCKED: locked again at resume.
    pub const LOCKED: u16 = 8;
    /// Region memory that started as a private file mapping; `file` and `offset` say which.
    pub const FROM_FILE: u16 = 16;
    /// The main thread's stack.
    pub const STACK: u16 = 32;
    /// MAP_GROWSDOWN was asked for.
    pub const GROWSDOWN: u16 = 64;
    /// Region memory that was asked for as shared: a forked child keeps sharing it.
    pub const SHARED: u16 = 128;
    /// madvise(MADV_DONTDUMP).
    pub const DONTDUMP: u16 = 256;
    /// madvise(MADV_HUGEPAGE).
    pub const HUGEPAGE: u16 = 512;
}

/// One run of mapped (or reserved) addresses, as a node of the mapping tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Node {
    /// First address (page aligned).
    pub start: u64,
    /// First address behind the run (page aligned).
    pub end: u64,
    /// For file kinds and `FROM_FILE`: offset in the file of `start`, bytes. Otherwise 0.
    pub offset: u64,
    /// Length of the longest hole between neighbouring nodes of this node's subtree, bytes.
    pub max_gap: u64,
    /// Lowest `start` in the subtree.
    pub min_start: u64,
    /// Highest `end` in the subtree.
    pub max_end: u64,
    /// Left child, index into the node array; on the free list: the next free node. 0: none.
    pub left: u32,
    /// Right child. 0: none.
    pub right: u32,
    /// Index into the file table for file kinds and `FROM_FILE`, otherwise 0.
    pub file: u32,
    /// See [`flag`].
    pub flags: u16,
    /// PROT_* bits as the program asked for.
    pub prot: u8,
    /// A [`Kind`] by number.
    pub kind: u8,
}

/// The head of the mapping tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct TreeHead {
    /// Root node, 0 when the tree is empty.
    pub root: u32,
    /// First node of the free list, 0 when it is empty.
    pub free: u32,
    /// Nodes ever taken from the array: indices 1..=used have been initialised.
    pub used: u32,
    /// Nodes in the tree now.
    pub count: u32,
    /// State of the pseudo-random generator for node priorities (a node's priority is a hash of its index and this).
    pub seed: u64,
}

const _: () = {
    assert!(core::mem::size_of::<Node>() == 64);
    assert!(core::mem::offset_of!(Node, kind) == 63);
    assert!(core::mem::size_of::<TreeHead>() == 24);
};
