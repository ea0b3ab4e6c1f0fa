//! Is this a saved region, whole, and can this machine resume it?
//!
//! [`Saved`] is what a resume needs of the control file, copied out of it once, so that nothing changes between check
//! and use. The order of the checks is the order in which their errors help: what it is, what state it is in,
//! whether it is whole, whether it makes sense, whether this machine will do.
//!
//! Neighbours: `zhuque_abi` defines the bytes, `tables` checks slots and call sites, `zhuque_model::maptree` the mapping
//! table, [`crate::plan`] goes on from here. Checks that need I/O (files, the lock) are the launcher's.

use crate::bytes::{Bytes, printable, text};
use crate::cpu::Machine;
use crate::error::Error;
use crate::holes::LOWEST;
use crate::tables::{check_sites, check_threads};
use core::mem::{offset_of, size_of};
use std::borrow::Cow;
use zhuque_abi::codec::{Records, checksum, digest};
use zhuque_abi::header::{FileRecord, Globals, Header, How, MAGIC, Patched, Phase, VERSION};
use zhuque_abi::journal::{Mapped, Object, Process, Record};
use zhuque_abi::layout::{
    CONTROL_BYTES, FILES_OFFSET, GLOBALS_OFFSET, HEADER_OFFSET, JOURNAL_BYTES, JOURNAL_OFFSET, MAX_FILES, MAX_NODES,
    MAX_SITES, MAX_THREADS, MAX_TIMERS, NODES_OFFSET, PAGE, RESERVED_BYTES, SITES_OFFSET, SLOT_STRIDE, SLOTS_OFFSET,
    TASK_SIZE, TIMERS_OFFSET,
};
use zhuque_abi::maps::{Node, TreeHead};
use zhuque_abi::slot::{Saved as SavedThread, Slot, saved_frame, state};
use zhuque_abi::timers::Timer;
use zhuque_model::maptree::MapView;

/// RLIMIT_NOFILE (asm-generic/resource.h).
const LIMIT_NOFILE: u32 = 7;

/// A mapped file, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Absolute path.
    pub path: &'a [u8],
    /// Device, inode, size in bytes, time of modification in ns.
    pub identity: [u64; 4],
    /// Whether the descriptor that it was mapped from could write.
    pub writable: bool,
}

/// A saved region that has passed every check.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    /// Generation that the region has.
    pub generation: u64,
    /// Address of the control mapping.
    pub base: u64,
    /// Address of the shim's revive entry.
    pub revive: u64,
    /// Threads saved.
    pub threads: u32,
    /// The region's directory as the shim knew it.
    pub region: &'a [u8],
    /// The process's attributes.
    pub process: Process<'a>,
    /// The program's soft limit on descriptors, if recorded.
    pub descriptor_limit: Option<u64>,
    /// Highest descriptor number in the journal, -1: none.
    pub highest_descriptor: i32,
    /// Where the region's own descriptors have to lie: threads of a region that was saved from outside may have one of
    /// their numbers in hand.
    pub own_descriptors: Option<i32>,
    /// What was mapped, of a region that was saved from outside; else the tree says so.
    pub mapped: Option<Vec<Mapped<'a>>>,
    /// The file table; index 0 is the table's index 1.
    files: Vec<File<'a>>,
    head: TreeHead,
    nodes: Vec<Node>,
}

impl<'a> Saved<'a> {
    /// Checks the bytes of a control file for a resume on `machine`.
    pub fn check(control: &'a [u8], machine: &Machine) -> Result<Saved<'a>, Error> {
        if (control.len() as u64) < CONTROL_BYTES {
            return Err(Error::Short { bytes: control.len(), wanted: CONTROL_BYTES as usize });
        }
        let control = Bytes(control);
        let header = part(control, HEADER_OFFSET, PAGE)?;
        check_kind(header)?;
        check_phase(header)?;
        if header.u32(offset_of!(Header, checksum)) != header_checksum(header.0) {
            return Err(Error::Checksum("header"));
        }
        let journal = journal_of(control, header)?;
        if header.u32(offset_of!(Header, control_checksum)) != control_checksum(control.0)? {
            return Err(Error::Checksum("tables"));
        }
        let base = check_addresses(header)?;
        let globals = part(control, GLOBALS_OFFSET, size_of::<Globals>() as u64)?;
        check_threads(control, header, globals)?;
        check_sites(control, globals)?;
        let outside = header.u32(offset_of!(Header, how)) == How::Outside as u32;
        let (head, nodes) = if outside { (TreeHead::default(), Vec::new()) } else { read_tree(control, globals)? };
        let files = if outside { Vec::new() } else { read_files(control, globals)? };
        machine.covers(
            header.u64(offset_of!(Header, xcr0)),
            &core::array::from_fn(|i| header.u32(offset_of!(Header, cpu_features) + 4 * i)),
            header.u64(offset_of!(Header, xsave_bytes)),
        )?;
        let contents = read_journal(journal)?;
        let region = globals.slice(offset_of!(Globals, region) as u64, zhuque_abi::header::PATH_BYTES as u64);
        Ok(Saved {
            generation: header.u64(offset_of!(Header, phase)) >> 8,
            base,
            revive: header.u64(offset_of!(Header, revive)),
            threads: header.u32(offset_of!(Header, threads)),
            region: region.unwrap_or(&[]).split(|b| *b == 0).next().unwrap_or(&[]),
            process: contents.process,
            descriptor_limit: contents.descriptor_limit,
            highest_descriptor: contents.highest_descriptor,
            own_descriptors: outside.then(|| header.u32(offset_of!(Header, descriptors)) as i32),
            mapped: outside.then_some(contents.mapped),
            files,
            head,
            nodes,
        })
    }

    /// The mapping table.
    pub fn tree(&self) -> MapView<'_> {
        MapView::new(&self.head, &self.nodes)
    }

    /// The file with an index of the file table, from 1.
    pub fn file(&self, index: u32) -> Option<&File<'a>> {
        self.files.get((index as usize).checked_sub(1)?)
    }
}

/// CRC-32 of a header page with `phase` and `checksum` taken as zero.
pub fn header_checksum(page: &[u8]) -> u32 {
    const PHASE: usize = offset_of!(Header, phase);
    const CHECKSUM: usize = offset_of!(Header, checksum);
    let mut copy = [0; PAGE as usize];
    let bytes = page.len().min(copy.len());
    copy[..bytes].copy_from_slice(&page[..bytes]);
    copy[PHASE..PHASE + 8].fill(0);
    copy[CHECKSUM..CHECKSUM + 4].fill(0);
    checksum(0, &copy)
}

/// Digest of everything in a control file that is in use behind the header and is not the journal: globals, file
/// table, site table, nodes, timers, slots in use, in this order.
pub fn control_checksum(control: &[u8]) -> Result<u32, Error> {
    let control = Bytes(control);
    control_checksum_of(&|offset, bytes| part(control, offset, bytes).map(|part| Cow::Borrowed(part.0)))
}

/// The same of a control file that is read piece by piece: `read` is given offset and bytes.
pub fn control_checksum_of<'a>(read: &dyn Fn(u64, u64) -> Result<Cow<'a, [u8]>, Error>) -> Result<u32, Error> {
    let globals = read(GLOBALS_OFFSET, size_of::<Globals>() as u64)?;
    let table = Bytes(&globals);
    let files = count(table, offset_of!(Globals, files), MAX_FILES - 1, "number of mapped files")?;
    let sites = count(table, offset_of!(Globals, sites), MAX_SITES, "number of call sites")?;
    let used = offset_of!(Globals, tree) + offset_of!(TreeHead, used);
    let nodes = count(table, used, MAX_NODES - 1, "number of mapping nodes")?;
    let timers = count(table, offset_of!(Globals, timers), MAX_TIMERS, "number of timers")?;
    let slots = count(table, offset_of!(Globals, slots), MAX_THREADS, "number of thread slots")?;

    let file_bytes = size_of::<FileRecord>() as u64;
    let node_bytes = size_of::<Node>() as u64;
    let base = Bytes(&read(HEADER_OFFSET, PAGE)?).u64(offset_of!(Header, base));
    let mut sum = digest(0, &globals);
    for (offset, bytes) in [
        (FILES_OFFSET + file_bytes, files * file_bytes),
        (SITES_OFFSET, sites * size_of::<Patched>() as u64),
        (NODES_OFFSET + node_bytes, nodes * node_bytes),
        (TIMERS_OFFSET, timers * size_of::<Timer>() as u64),
    ] {
        sum = digest(sum, &read(offset, bytes)?);
    }
    for index in 0..slots {
        let at = SLOTS_OFFSET + index * SLOT_STRIDE;
        let bytes = read(at, size_of::<Slot>() as u64)?;
        let slot = Bytes(&bytes);
        if slot.u32(offset_of!(Slot, state)) != state::FREE {
            sum = digest(sum, &bytes);
            let frame = slot.u64(offset_of!(Slot, saved) + offset_of!(SavedThread, frame));
            if let Some((offset, bytes)) = saved_frame(base.wrapping_add(at), frame) {
                sum = digest(sum, &read(at + offset, bytes)?);
            }
        }
    }
    Ok(sum)
}

/// A part of the control file; all of its parts lie inside of it once its length is checked.
pub(crate) fn part<'a>(control: Bytes<'a>, offset: u64, bytes: u64) -> Result<Bytes<'a>, Error> {
    control.part(offset, bytes).ok_or(Error::Short { bytes: control.0.len(), wanted: CONTROL_BYTES as usize })
}

/// A number of table entries that must not exceed `most`.
pub(crate) fn count(globals: Bytes<'_>, offset: usize, most: usize, what: &'static str) -> Result<u64, Error> {
    let value = u64::from(globals.u32(offset));
    if value > most as u64 { Err(Error::bounds(what, value)) } else { Ok(value) }
}

/// Magic, version, size.
fn check_kind(header: Bytes<'_>) -> Result<(), Error> {
    if header.u64(offset_of!(Header, magic)) != MAGIC {
        return Err(Error::Magic);
    }
    let version = header.u32(offset_of!(Header, version));
    if version != VERSION {
        return Err(Error::Version(version));
    }
    let size = header.u32(offset_of!(Header, size));
    if size as usize != size_of::<Header>() {
        return Err(Error::HeaderSize(size));
    }
    Ok(())
}

/// Only a saved region can be resumed; every other phase has its own reason why not. The lock is held by now, so
/// nobody runs it.
fn check_phase(header: Bytes<'_>) -> Result<(), Error> {
    let raw = header.u64(offset_of!(Header, phase)) as u8;
    match Phase::from_raw(raw).ok_or(Error::Phase(raw))? {
        Phase::Saved => Ok(()),
        Phase::Creating | Phase::Starting => Err(Error::NotStarted),
        Phase::Running => Err(Error::NeverSaved),
        Phase::Ended => Err(Error::Ended(exit_text(header.u32(offset_of!(Header, exit_status))))),
        Phase::Unsaved => {
            let detail = header.slice(offset_of!(Header, detail) as u64, 256).map(text).unwrap_or_default();
            let known = if detail.is_empty() { "no reason recorded".to_owned() } else { detail };
            Err(Error::Unsaved(known))
        }
    }
}

/// A wait status in words.
fn exit_text(status: u32) -> String {
    match status & 0x7f {
        0 => format!("status {}", (status >> 8) & 0xff),
        signal => format!("signal {signal}"),
    }
}

/// The journal's bytes, if they are as they were written.
fn journal_of<'a>(control: Bytes<'a>, header: Bytes<'a>) -> Result<&'a [u8], Error> {
    let bytes = header.u64(offset_of!(Header, journal_bytes));
    if bytes > JOURNAL_BYTES {
        return Err(Error::bounds("length of its journal", bytes));
    }
    let journal = part(control, JOURNAL_OFFSET, bytes)?.0;
    if header.u32(offset_of!(Header, journal_checksum)) != checksum(0, journal) {
        return Err(Error::Checksum("journal"));
    }
    Ok(journal)
}

/// The control mapping's address, after a check that it and revive are sensible.
fn check_addresses(header: Bytes<'_>) -> Result<u64, Error> {
    let base = header.u64(offset_of!(Header, base));
    let fits = base.checked_add(RESERVED_BYTES).is_some_and(|end| end <= TASK_SIZE);
    if !fits || base < LOWEST || !base.is_multiple_of(PAGE) {
        return Err(Error::bounds("address of its control mapping", base));
    }
    let revive = header.u64(offset_of!(Header, revive));
    if !(LOWEST..TASK_SIZE).contains(&revive) {
        return Err(Error::bounds("address of its revive entry", revive));
    }
    Ok(base)
}

/// The mapping table, copied and checked. Pages and bounds of its runs are the plan's business.
fn read_tree(control: Bytes<'_>, globals: Bytes<'_>) -> Result<(TreeHead, Vec<Node>), Error> {
    let at = offset_of!(Globals, tree);
    let head = TreeHead {
        root: globals.u32(at + offset_of!(TreeHead, root)),
        free: globals.u32(at + offset_of!(TreeHead, free)),
        used: globals.u32(at + offset_of!(TreeHead, used)),
        count: globals.u32(at + offset_of!(TreeHead, count)),
        seed: globals.u64(at + offset_of!(TreeHead, seed)),
    };
    if head.used as usize >= MAX_NODES {
        return Err(Error::bounds("number of mapping nodes", u64::from(head.used)));
    }
    let size = size_of::<Node>();
    let bytes = part(control, NODES_OFFSET, (u64::from(head.used) + 1) * size as u64)?.0;
    let nodes: Vec<Node> = bytes.chunks_exact(size).map(|bytes| read_node(Bytes(bytes))).collect();
    MapView::new(&head, &nodes).check().map_err(|why| Error::Damaged(why.to_owned()))?;
    Ok((head, nodes))
}

fn read_node(node: Bytes<'_>) -> Node {
    Node {
        start: node.u64(offset_of!(Node, start)),
        end: node.u64(offset_of!(Node, end)),
        offset: node.u64(offset_of!(Node, offset)),
        max_gap: node.u64(offset_of!(Node, max_gap)),
        min_start: node.u64(offset_of!(Node, min_start)),
        max_end: node.u64(offset_of!(Node, max_end)),
        left: node.u32(offset_of!(Node, left)),
        right: node.u32(offset_of!(Node, right)),
        file: node.u32(offset_of!(Node, file)),
        flags: node.u16(offset_of!(Node, flags)),
        prot: node.u8(offset_of!(Node, prot)),
        kind: node.u8(offset_of!(Node, kind)),
    }
}

/// The file table.
fn read_files<'a>(control: Bytes<'a>, globals: Bytes<'_>) -> Result<Vec<File<'a>>, Error> {
    let files = count(globals, offset_of!(Globals, files), MAX_FILES - 1, "number of mapped files")?;
    let size = size_of::<FileRecord>() as u64;
    (1..=files).map(|index| read_file(part(control, FILES_OFFSET + index * size, size)?)).collect()
}

fn read_file(record: Bytes<'_>) -> Result<File<'_>, Error> {
    let bytes = record.u32(offset_of!(FileRecord, path_bytes));
    let field = record.slice(offset_of!(FileRecord, path) as u64, u64::from(bytes));
    let path = field.ok_or(Error::bounds("length of a file's path", u64::from(bytes)))?;
    let access = record.u32(offset_of!(FileRecord, access)) & libc::O_ACCMODE as u32;
    Ok(File {
        path,
        identity: [
            record.u64(offset_of!(FileRecord, device)),
            record.u64(offset_of!(FileRecord, inode)),
            record.u64(offset_of!(FileRecord, size)),
            record.u64(offset_of!(FileRecord, mtime_ns)),
        ],
        writable: access == libc::O_RDWR as u32,
    })
}

/// What the launcher needs of the journal.
struct Journal<'a> {
    process: Process<'a>,
    descriptor_limit: Option<u64>,
    highest_descriptor: i32,
    mapped: Vec<Mapped<'a>>,
}

/// Reads every record, so that none can fail for the first time when the old image is gone.
fn read_journal(bytes: &[u8]) -> Result<Journal<'_>, Error> {
    let mut process = None;
    let mut descriptor_limit = None;
    let mut highest_descriptor = -1;
    let mut mapped = Vec::new();
    for (index, record) in Records::new(bytes).enumerate() {
        let record = record.map_err(|why| Error::Damaged(format!("journal record {index}: {why}")))?;
        match record {
            Record::Process(p) if process.is_none() => process = Some(p),
            Record::Process(_) => {
                return Err(Error::Damaged("the journal has two processes".to_owned()));
            }
            Record::Limit { resource: LIMIT_NOFILE, soft, .. } => descriptor_limit = Some(soft),
            Record::Descriptor { fd, .. } | Record::EpollEntry { fd, .. } => {
                if fd < 0 {
                    return Err(Error::bounds("a descriptor number in its journal", fd as u32 as u64));
                }
                highest_descriptor = highest_descriptor.max(fd);
            }
            Record::Mapping(run) => mapped.push(run),
            Record::Description(d) => {
                if let Object::Unsupported { what } = d.object {
                    return Err(Error::Unsupported(printable(what)));
                }
            }
            _ => {}
        }
    }
    let process = process.ok_or_else(|| Error::Damaged("the journal names no process".to_owned()))?;
    check_process(&process)?;
    Ok(Journal { process, descriptor_limit, highest_descriptor, mapped })
}

/// What execve(2) and open(2) will be given must be strings.
fn check_process(process: &Process<'_>) -> Result<(), Error> {
    let path = process.exe;
    if path.first() != Some(&b'/') || path.contains(&0) || path.len() > 4095 {
        return Err(Error::Damaged("the journal's executable is no path".to_owned()));
    }
    if process.arguments.last().is_some_and(|b| *b != 0) {
        return Err(Error::Damaged("the journal's arguments do not end".to_owned()));
    }
    Ok(())
}
