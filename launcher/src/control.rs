//! Reading a control file that nobody vouches for.
//!
//! Key types: [`Control`] (the open file), [`Summary`] (its header, decoded). Everything is read by copying bytes at
//! offsets taken from `zhuque-abi`, so a file that is cut off, changed or invented gives an error or strange numbers,
//! never a fault. What is variable is bounded before it is read. Neighbours: `region` opens the file, `watch` maps
//! its first page, `commands::inspect` shows the rest.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail, ensure};
use zhuque_abi::codec;
use zhuque_abi::header::{FileRecord, Globals, Header, How, MAGIC, Phase, Reason, VERSION, phase_word};
use zhuque_abi::layout::*;
use zhuque_abi::maps::{Node, TreeHead};
use zhuque_restore::validate;

/// An open control file of the right size, magic and version.
#[derive(Debug)]
pub struct Control {
    file: File,
}

/// A header's contents at one moment.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The phase.
    pub phase: Phase,
    /// The generation.
    pub generation: u64,
    /// Address of the control mapping.
    pub base: u64,
    /// Real process id of this life.
    pub pid: u32,
    /// Process id as the program knows it.
    pub virtual_pid: u32,
    /// Address of the shim's entry for a resume.
    pub revive: u64,
    /// First address of the shim's text.
    pub shim_start: u64,
    /// When the region was created, ns since 1970.
    pub created_ns: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Its CRC-32.
    pub journal_checksum: u32,
    /// A `Reason`.
    pub reason: u32,
    /// When it was saved, ns since 1970.
    pub saved_realtime_ns: u64,
    /// How long the threads took to stop, ns.
    pub save_stop_ns: u64,
    /// How long the whole save took, ns.
    pub save_total_ns: u64,
    /// Threads that were saved.
    pub threads: u32,
    /// Status of an ended program.
    pub exit_status: u32,
    /// Whether it was saved from outside: then the journal says what is mapped.
    pub outside: bool,
    /// Text that explains `reason`.
    pub detail: String,
}

impl Summary {
    /// Why a save happened or did not, in words.
    pub fn why(&self) -> String {
        let reasons = [
            (Reason::None, ""),
            (Reason::Power, "power failure"),
            (Reason::StoreFull, "store full"),
            (Reason::Timeout, "not every thread stopped in time"),
            (Reason::Unsupported, "the program holds something that cannot be saved"),
            (Reason::Journal, "the journal could not be written"),
        ];
        let known = reasons.iter().find(|(reason, _)| *reason as u32 == self.reason);
        let words = known.map_or_else(|| format!("reason {}", self.reason), |(_, w)| w.to_string());
        match (words.is_empty(), self.detail.is_empty()) {
            (_, true) => words,
            (true, false) => self.detail.clone(),
            (false, false) => format!("{words}: {}", self.detail),
        }
    }
}

/// The u32 at `offset`; 0 behind the end.
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// The u64 at `offset`; 0 behind the end.
pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

/// The text up to the first zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    crate::failure::one_line(&String::from_utf8_lossy(&bytes[..end]))
}

impl Control {
    /// Takes an open control file, if it is one that this version understands.
    pub fn new(file: File) -> anyhow::Result<Control> {
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "the control file is not a regular file");
        let bytes = metadata.len();
        let mut start = [0; 16];
        if file.read_exact_at(&mut start, 0).is_err() {
            bail!("the control file is truncated ({bytes} bytes)");
        }
        ensure!(u64_at(&start, offset_of!(Header, magic)) == MAGIC, "the control file is not one (wrong magic)");
        let version = u32_at(&start, offset_of!(Header, version));
        ensure!(version == VERSION, "the region is of version {version}, this zhuque understands version {VERSION}");
        ensure!(
            u32_at(&start, offset_of!(Header, size)) as usize == size_of::<Header>(),
            "the header has the wrong size"
        );
        ensure!(bytes == CONTROL_BYTES, "the control file is truncated ({bytes} of {CONTROL_BYTES} bytes)");
        Ok(Control { file })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// `bytes` bytes from `offset`.
    pub fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.file.read_exact_at(&mut out, offset)?;
        Ok(out)
    }

    /// The header. If it says that the program is saved, its checksum is right.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        let page = self.read(HEADER_OFFSET, PAGE as usize)?;
        let word = u64_at(&page, offset_of!(Header, phase));
        let Some(phase) = Phase::from_raw(word as u8) else {
            bail!("the header has an unknown phase ({})", word as u8);
        };
        if phase == Phase::Saved {
            let told = u32_at(&page, offset_of!(Header, checksum));
            ensure!(told == header_checksum(&page), "the header's checksum does not match");
        }
        let u32_of = |offset| u32_at(&page, offset);
        let u64_of = |offset| u64_at(&page, offset);
        let detail = offset_of!(Header, detail);
        Ok(Summary {
            phase,
            generation: word >> 8,
            base: u64_of(offset_of!(Header, base)),
            pid: u32_of(offset_of!(Header, pid)),
            virtual_pid: u32_of(offset_of!(Header, virtual_pid)),
            revive: u64_of(offset_of!(Header, revive)),
            shim_start: u64_of(offset_of!(Header, shim_start)),
            created_ns: u64_of(offset_of!(Header, created_ns)),
            journal_bytes: u64_of(offset_of!(Header, journal_bytes)),
            journal_checksum: u32_of(offset_of!(Header, journal_checksum)),
            reason: u32_of(offset_of!(Header, reason)),
            saved_realtime_ns: u64_of(offset_of!(Header, saved_realtime_ns)),
            save_stop_ns: u64_of(offset_of!(Header, save_stop_ns)),
            save_total_ns: u64_of(offset_of!(Header, save_total_ns)),
            threads: u32_of(offset_of!(Header, threads)),
            exit_status: u32_of(offset_of!(Header, exit_status)),
            outside: u32_of(offset_of!(Header, how)) == How::Outside as u32,
            detail: text(&page[detail..detail + 256]),
        })
    }

    /// The journal's bytes, whose checksum is right.
    pub fn journal(&self, summary: &Summary) -> anyhow::Result<Vec<u8>> {
        let bytes = summary.journal_bytes;
        ensure!(bytes <= JOURNAL_BYTES, "the journal is longer than it can be ({bytes} bytes)");
        let journal = self.read(JOURNAL_OFFSET, bytes as usize)?;
        ensure!(codec::checksum(0, &journal) == summary.journal_checksum, "the journal's checksum does not match");
        Ok(journal)
    }

    /// Whether the tables that a save has written are what their checksum says: globals, files, sites, mappings, slots.
    /// Nothing vouches for those of a region that is not saved.
    pub fn check_tables(&self, summary: &Summary) -> anyhow::Result<()> {
        if summary.phase != Phase::Saved {
            return Ok(());
        }
        let page = self.read(HEADER_OFFSET, PAGE as usize)?;
        let told = u32_at(&page, offset_of!(Header, control_checksum));
        let sum = validate::control_checksum_of(&|offset, bytes| {
            let short = |_| zhuque_restore::Error::Checksum("tables");
            self.read(offset, bytes as usize).map(Cow::Owned).map_err(short)
        });
        ensure!(sum? == told, "the tables' checksum does not match");
        Ok(())
    }

    /// The shim's globals, as bytes.
    pub fn globals(&self) -> anyhow::Result<Vec<u8>> {
        self.read(GLOBALS_OFFSET, size_of::<Globals>()).context("cannot read the shim's variables")
    }

    /// The head of the mapping table and all nodes it uses.
    pub fn mappings(&self, globals: &[u8]) -> anyhow::Result<(TreeHead, Vec<Node>)> {
        let at = offset_of!(Globals, tree);
        let head = TreeHead {
            root: u32_at(globals, at + offset_of!(TreeHead, root)),
            free: u32_at(globals, at + offset_of!(TreeHead, free)),
            used: u32_at(globals, at + offset_of!(TreeHead, used)),
            count: u32_at(globals, at + offset_of!(TreeHead, count)),
            seed: u64_at(globals, at + offset_of!(TreeHead, seed)),
        };
        ensure!((head.used as usize) < MAX_NODES, "the mapping table is damaged");
        let bytes = (head.used as usize + 1) * size_of::<Node>();
        let nodes = self.read(NODES_OFFSET, bytes)?;
        let nodes = nodes.chunks_exact(size_of::<Node>()).map(node).collect();
        Ok((head, nodes))
    }

    /// The path of the mapped file with this index in the file table.
    pub fn mapped_file(&self, index: u32) -> io::Result<String> {
        if index == 0 || index as usize >= MAX_FILES {
            return Ok(format!("file {index}?"));
        }
        let size = size_of::<FileRecord>();
        let record = self.read(FILES_OFFSET + u64::from(index) * size as u64, size)?;
        let path = &record[offset_of!(FileRecord, path)..];
        let bytes = u32_at(&record, offset_of!(FileRecord, path_bytes)) as usize;
        let mut path = text(&path[..bytes.min(path.len())]);
        if u32_at(&record, offset_of!(FileRecord, unlinked)) != 0 {
            path.push_str(" (deleted)");
        }
        Ok(path)
    }
}

/// CRC-32 of a header page with phase and checksum taken as zero.
fn header_checksum(page: &[u8]) -> u32 {
    let (phase, checksum) = (offset_of!(Header, phase), offset_of!(Header, checksum));
    let mut page = page.to_vec();
    page[phase..phase + 8].fill(0);
    page[checksum..checksum + 4].fill(0);
    codec::checksum(0, &page)
}

/// A node from its bytes.
fn node(bytes: &[u8]) -> Node {
    let byte = |offset| bytes.get(offset).copied().unwrap_or(0);
    let flags = offset_of!(Node, flags);
    Node {
        start: u64_at(bytes, offset_of!(Node, start)),
        end: u64_at(bytes, offset_of!(Node, end)),
        offset: u64_at(bytes, offset_of!(Node, offset)),
        max_gap: u64_at(bytes, offset_of!(Node, max_gap)),
        min_start: u64_at(bytes, offset_of!(Node, min_start)),
        max_end: u64_at(bytes, offset_of!(Node, max_end)),
        left: u32_at(bytes, offset_of!(Node, left)),
        right: u32_at(bytes, offset_of!(Node, right)),
        file: u32_at(bytes, offset_of!(Node, file)),
        flags: u16::from_le_bytes([byte(flags), byte(flags + 1)]),
        prot: byte(offset_of!(Node, prot)),
        kind: byte(offset_of!(Node, kind)),
    }
}

/// The first page of a new control file.
pub fn first_page(created_ns: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(offset_of!(Header, magic), &MAGIC.to_le_bytes());
    put(offset_of!(Header, version), &VERSION.to_le_bytes());
    let size = size_of::<Header>() as u32;
    put(offset_of!(Header, size), &size.to_le_bytes());
    let word = phase_word(0, Phase::Creating);
    put(offset_of!(Header, phase), &word.to_le_bytes());
    put(offset_of!(Header, created_ns), &created_ns.to_le_bytes());
    page
}
