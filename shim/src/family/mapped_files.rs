//! Mapped files at a save: what they are now, and content for those that have lost their name.
//!
//! A resume maps files by path. The file table says what a file was when it was mapped; a save brings that up to date,
//! and gives a file whose path no longer leads to it a name in the region's `files/`: the one under which an open
//! descriptor of it was kept already, else a copy of what is mapped.
#![allow(unsafe_code)]

use super::memory_files::mtime_ns;
use crate::family::Failure;
use crate::{control, user};
use zhuque_abi::codec::Records;
use zhuque_abi::header::{FileRecord, PATH_BYTES};
use zhuque_abi::journal::{Object, Record};
use zhuque_abi::layout::{FILES_DIR, MAX_FILES, PAGE, page_up};
use zhuque_abi::life::boot_flag;
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::{MapTree, Mapping};
use zhuque_sys::{Errno, fs, mm};

/// Brings the file table up to date. Everything stands still; `journal` has the descriptors' records already.
pub fn refresh(journal: &[u8]) -> Result<(), Failure> {
    // SAFETY: everything stands still.
    let (tree, files) = unsafe { (MapTree::new(&mut (*control::globals()).tree, control::nodes()), control::files()) };
    let mut done = [false; MAX_FILES];
    for run in tree.iter().filter(|run| run.attr.kind.is_file()) {
        let index = run.attr.file as usize;
        let (Some(done), Some(record)) = (done.get_mut(index), files.get_mut(index)) else { continue };
        if core::mem::replace(done, true) {
            continue;
        }
        let mut path = fs::Path::new();
        path.push(path_of(record));
        match fs::stat_at(libc::AT_FDCWD, &path, 0) {
            Ok(stat) if stat.st_ino == record.inode && stat.st_dev == record.device => identify(record, &stat),
            // Rights that the program has given up do not take the file's name away.
            Err(Errno(libc::EACCES)) => {}
            _ => keep(index as u32, record, journal, false, &parts_of(&tree, index as u32))
                .map_err(|error| Failure::about(path_of(record)).text(b"mapped, and cannot be kept: ").errno(error))?,
        }
    }
    Ok(())
}

/// A file's path, as the table has it.
pub fn path_of(record: &FileRecord) -> &[u8] {
    record.path.get(..record.path_bytes as usize).unwrap_or(&[])
}

fn identify(record: &mut FileRecord, stat: &libc::stat) {
    record.device = stat.st_dev;
    record.inode = stat.st_ino;
    record.size = stat.st_size as u64;
    record.mtime_ns = mtime_ns(stat);
}

/// What is mapped of a file: calls its argument with each part.
pub type Parts<'a> = dyn Fn(&mut dyn FnMut(Part) -> Result<(), Errno>) -> Result<(), Errno> + 'a;

/// A mapped part of a file.
#[derive(Clone, Copy)]
pub struct Part {
    /// Where.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Whether the program may read it, in a shared mapping.
    pub readable: bool,
}

/// The parts of a file by the mapping table.
fn parts_of<'a>(
    tree: &'a MapTree<'_>,
    index: u32,
) -> impl Fn(&mut dyn FnMut(Part) -> Result<(), Errno>) -> Result<(), Errno> + 'a {
    move |each| {
        let ours = |run: &Mapping| run.attr.kind.is_file() && run.attr.file == index;
        tree.iter().filter(ours).try_for_each(|run| {
            let shared = run.attr.kind != Kind::FilePrivate;
            let readable = shared && i32::from(run.attr.prot) & libc::PROT_READ != 0;
            each(Part { start: run.start, bytes: run.bytes(), offset: run.attr.offset, readable })
        })
    }
}

/// Gives a mapped file without a name one in the region, and says so in its record. `there`: it has been copied.
pub fn keep(index: u32, record: &mut FileRecord, journal: &[u8], there: bool, parts: &Parts<'_>) -> Result<(), Errno> {
    let life = control::life();
    let (directory, sync) = (life.descriptors.directory, life.flags & boot_flag::FILE_SYNC != 0);
    let mut name = fs::Path::new();
    name.push(FILES_DIR.as_bytes()).push(b"/");
    match kept_descriptor(journal, record) {
        Some(kept) => name.push(kept),
        None => name.push(b"mapped-").push_number(u64::from(index)),
    };
    if !there && kept_descriptor(journal, record).is_none() {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        let file = fs::open_at(directory, &name, flags, 0o600)?;
        let copied = grown(record.size, parts).and_then(|size| copy_mapped(size, file, parts));
        let synced = if sync { copied.and_then(|()| fs::sync_all(file)) } else { copied };
        fs::close(file)?;
        synced?;
    }
    let mut region = [0u8; PATH_BYTES];
    let region = super::exec::region_path(&mut region);
    let mut path = fs::Path::new();
    path.push(region).push(b"/").push(name.as_bytes());
    let bytes = path.as_bytes();
    record.path.get_mut(..bytes.len()).ok_or(Errno(libc::ENAMETOOLONG))?.copy_from_slice(bytes);
    record.path_bytes = bytes.len() as u32;
    record.unlinked = 0;
    identify(record, &fs::stat_at(directory, &name, 0)?);
    Ok(())
}

/// The name under which a descriptor of the same file has been kept.
fn kept_descriptor<'j>(journal: &'j [u8], record: &FileRecord) -> Option<&'j [u8]> {
    find_kept(journal, &mut |stat| (stat.st_dev, stat.st_ino) == (record.device, record.inode))
}

/// The name of the first file that was kept because of a descriptor and is the one wanted.
pub fn find_kept<'j>(journal: &'j [u8], wanted: &mut dyn FnMut(&libc::stat) -> bool) -> Option<&'j [u8]> {
    let mut latest: (u32, &[u8]) = (0, &[]);
    for record in Records::new(journal).flatten() {
        match record {
            Record::Description(description) => {
                let Object::File { kept, .. } = description.object else { continue };
                latest = (description.id, kept);
            }
            Record::Descriptor { fd, description, .. }
                if description == latest.0
                    && !latest.1.is_empty()
                    && fs::stat_fd(fd).is_ok_and(|stat| wanted(&stat)) =>
            {
                return Some(latest.1);
            }
            _ => {}
        }
    }
    None
}

/// The size of a file that had `size` bytes when it was mapped, and may have grown since: as far as what is mapped of it
/// can be read, in whole pages.
fn grown(size: u64, parts: &Parts<'_>) -> Result<u64, Errno> {
    let mut grown = size;
    parts(&mut |part| {
        if !part.readable {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        let to = &raw mut byte as u64;
        let mut at = page_up(grown).max(part.offset);
        // SAFETY: into a local; what cannot be read is an error.
        while at < part.offset + part.bytes && unsafe { user::copy(to, part.start + (at - part.offset), 1) }.is_ok() {
            at += PAGE;
            grown = at;
        }
        Ok(())
    })?;
    Ok(grown)
}

/// Writes every mapped part of a file to `file`.
fn copy_mapped(size: u64, file: i32, parts: &Parts<'_>) -> Result<(), Errno> {
    fs::truncate(file, size)?;
    parts(&mut |part| {
        let end = size.min(part.offset + part.bytes);
        let Some(bytes) = end.checked_sub(part.offset).filter(|&bytes| bytes > 0) else { return Ok(()) };
        // SAFETY: a window at an address of the kernel's choice; a page that cannot be read stays zero. Nothing of
        // the program runs any more, so its protection may change.
        unsafe {
            if !part.readable {
                mm::mprotect(part.start, part.bytes, libc::PROT_READ)?;
            }
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let window = mm::mmap(0, bytes, prot, libc::MAP_SHARED, file, part.offset)?;
            let mut at = 0;
            while at < bytes {
                let _ = user::copy(window + at, part.start + at, PAGE as usize);
                at += PAGE;
            }
            mm::munmap(window, bytes)
        }
    })
}
