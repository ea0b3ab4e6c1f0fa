//! A synthetic saved region for the tests: a control file's bytes, put together field by field.
#![allow(dead_code)] // each test uses its own part

use core::mem::{offset_of, size_of};
use zhuque_abi::codec::{checksum, encode};
use zhuque_abi::header::{FileRecord, Globals, Header, MAGIC, Phase, VERSION, phase_word};
use zhuque_abi::journal::{Process, Record};
use zhuque_abi::layout::*;
use zhuque_abi::maps::{Kind, Node, TreeHead};
use zhuque_abi::slot::{Saved, Slot, state};
use zhuque_model::maptree::{Attr, MapTree};
use zhuque_restore::cpu::Machine;
use zhuque_restore::validate::{control_checksum, header_checksum};

/// Where the synthetic program has its control mapping.
pub const BASE: u64 = 0x2345_6780_0000;
/// Where it has its revive.
pub const REVIVE: u64 = 0x3000_0000_0000;

/// A control file.
pub struct Image {
    /// Its bytes.
    pub bytes: Vec<u8>,
    head: TreeHead,
    nodes: Vec<Node>,
    journal: Vec<u8>,
    files: u32,
}

/// A machine on which everything built here runs.
pub fn machine() -> Machine {
    Machine { xcr0: 7, features: [u32::MAX; 6], xsave_bytes: 2700 }
}

/// Attributes of a mapping.
pub fn attr(kind: Kind, prot: u8) -> Attr {
    Attr { kind, prot, flags: 0, file: 0, offset: 0 }
}

/// A process record for `exe`.
pub fn process<'a>(exe: &'a [u8], identity: [u64; 4], arguments: &'a [u8]) -> Process<'a> {
    Process {
        exe,
        exe_identity: identity,
        arguments,
        cwd: b"/",
        umask: 0o22,
        personality: 0,
        dumpable: 1,
        no_new_privs: 0,
        prctls: [0; 4],
        ids: [0; 6],
        groups: &[],
        session: 1,
        group: 1,
        membarrier: 0,
        coredump_filter: None,
        oom_score_adj: None,
        capabilities: Default::default(),
    }
}

impl Image {
    /// A region of one thread, with one executable page at [`REVIVE`] and an empty journal. Not sealed.
    pub fn new() -> Image {
        let mut image = Image {
            bytes: vec![0; CONTROL_BYTES as usize],
            head: TreeHead::default(),
            nodes: vec![
                Node {
                    start: 0,
                    end: 0,
                    offset: 0,
                    max_gap: 0,
                    min_start: 0,
                    max_end: 0,
                    left: 0,
                    right: 0,
                    file: 0,
                    flags: 0,
                    prot: 0,
                    kind: 0
                };
                16384
            ],
            journal: Vec::new(),
            files: 0,
        };
        image.header_u64(offset_of!(Header, magic), MAGIC);
        image.header_u32(offset_of!(Header, version), VERSION);
        image.header_u32(offset_of!(Header, size), size_of::<Header>() as u32);
        image.header_u64(offset_of!(Header, phase), phase_word(7, Phase::Saved));
        image.header_u64(offset_of!(Header, base), BASE);
        image.header_u64(offset_of!(Header, revive), REVIVE);
        image.header_u32(offset_of!(Header, threads), 1);
        image.header_u64(offset_of!(Header, xcr0), 7);
        image.header_u64(offset_of!(Header, xsave_bytes), 836);
        image.globals_u32(offset_of!(Globals, slots), 3);
        image.put_u32(SLOTS_OFFSET as usize + SLOT_STRIDE as usize + offset_of!(Slot, state), state::LIVE);
        let slot = SLOTS_OFFSET + SLOT_STRIDE;
        image.put_u64(slot as usize + offset_of!(Slot, saved) + offset_of!(Saved, frame), BASE + slot + 0x9000);
        image.put_u64(slot as usize + offset_of!(Slot, this), BASE + slot);
        image.put_u64(slot as usize + offset_of!(Slot, gate_stack), BASE + slot + GATE_STACK_TOP);
        image.put_u32(slot as usize + offset_of!(Slot, index), 1);
        image.map(BASE, BASE + CONTROL_BYTES, attr(Kind::Control, 3));
        image.map(BASE + LIFE_OFFSET, BASE + RESERVED_BYTES, attr(Kind::Volatile, 3));
        image.map(REVIVE, REVIVE + PAGE, attr(Kind::Region, 5));
        image
    }

    /// The same with a process in the journal, sealed.
    pub fn simple() -> Image {
        let mut image = Image::new();
        image.record(&Record::Process(process(b"/bin/true", [0; 4], b"true\0")));
        image.seal();
        image
    }

    /// Adds a mapping.
    pub fn map(&mut self, start: u64, end: u64, attr: Attr) {
        MapTree::new(&mut self.head, &mut self.nodes).set(start, end, attr).expect("enough nodes");
    }

    /// Adds a file to the table; its index.
    pub fn file(&mut self, path: &[u8], identity: [u64; 4], writable: bool) -> u32 {
        self.files += 1;
        let at = FILES_OFFSET as usize + self.files as usize * size_of::<FileRecord>();
        for (offset, value) in [
            (offset_of!(FileRecord, device), identity[0]),
            (offset_of!(FileRecord, inode), identity[1]),
            (offset_of!(FileRecord, size), identity[2]),
            (offset_of!(FileRecord, mtime_ns), identity[3]),
        ] {
            self.put_u64(at + offset, value);
        }
        self.put_u32(at + offset_of!(FileRecord, access), if writable { 2 } else { 0 });
        self.put_u32(at + offset_of!(FileRecord, path_bytes), path.len() as u32);
        let path_at = at + offset_of!(FileRecord, path);
        self.bytes[path_at..path_at + path.len()].copy_from_slice(path);
        self.globals_u32(offset_of!(Globals, files), self.files);
        self.files
    }

    /// Adds a journal record.
    pub fn record(&mut self, record: &Record<'_>) {
        let mut buffer = [0; 8192];
        let bytes = encode(record, &mut buffer).expect("a small record");
        self.journal.extend_from_slice(&buffer[..bytes]);
    }

    /// Writes tables and journal into the bytes, and all checksums.
    pub fn seal(&mut self) {
        self.put_tree();
        let at = JOURNAL_OFFSET as usize;
        self.bytes[at..at + self.journal.len()].copy_from_slice(&self.journal);
        self.header_u64(offset_of!(Header, journal_bytes), self.journal.len() as u64);
        self.header_u32(offset_of!(Header, journal_checksum), checksum(0, &self.journal));
        self.reseal();
    }

    /// Writes the checksums of tables and header once more.
    pub fn reseal(&mut self) {
        if let Ok(sum) = control_checksum(&self.bytes) {
            self.header_u32(offset_of!(Header, control_checksum), sum);
        }
        let sum = header_checksum(&self.bytes[..PAGE as usize]);
        self.header_u32(offset_of!(Header, checksum), sum);
    }

    /// Sets a number in the header.
    pub fn header_u64(&mut self, offset: usize, value: u64) {
        self.put_u64(offset, value);
    }

    /// Sets a number in the header.
    pub fn header_u32(&mut self, offset: usize, value: u32) {
        self.put_u32(offset, value);
    }

    /// Sets a number in the globals.
    pub fn globals_u32(&mut self, offset: usize, value: u32) {
        self.put_u32(GLOBALS_OFFSET as usize + offset, value);
    }

    /// Sets a number.
    pub fn put_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets a number.
    pub fn put_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_tree(&mut self) {
        let at = GLOBALS_OFFSET as usize + offset_of!(Globals, tree);
        let TreeHead { root, free, used, count, seed } = self.head;
        for (index, value) in [root, free, used, count].into_iter().enumerate() {
            self.put_u32(at + 4 * index, value);
        }
        self.put_u64(at + offset_of!(TreeHead, seed), seed);
        for index in 1..=used as usize {
            let at = NODES_OFFSET as usize + index * size_of::<Node>();
            let n = self.nodes[index];
            for (field, value) in [n.start, n.end, n.offset, n.max_gap, n.min_start, n.max_end].into_iter().enumerate()
            {
                self.put_u64(at + 8 * field, value);
            }
            for (field, value) in [n.left, n.right, n.file].into_iter().enumerate() {
                self.put_u32(at + 48 + 4 * field, value);
            }
            self.bytes[at + 60..at + 62].copy_from_slice(&n.flags.to_le_bytes());
            self.bytes[at + 62] = n.prot;
            self.bytes[at + 63] = n.kind;
        }
    }
}
