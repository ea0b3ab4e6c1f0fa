//! The file table: which files are mapped, so that a resume finds them again and knows them to be the same.
#![allow(unsafe_code)]

use crate::control;
use zhuque_abi::header::FileRecord;
use zhuque_abi::layout::MAX_FILES;
use zhuque_sys::{Errno, fs};

/// Modification time in ns.
pub fn mtime_ns(stat: &libc::stat) -> u64 {
    (stat.st_mtime as u64).wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as u64)
}

/// The table's index for the file behind `fd`, entered if it is new. The caller holds the memory lock.
pub fn file_of(fd: i32, stat: &libc::stat) -> Result<u32, Errno> {
    let access = fs::fcntl(fd, libc::F_GETFL, 0)? as u32 & libc::O_ACCMODE as u32;
    let record = FileRecord {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: mtime_ns(stat),
        access,
        path_bytes: 0,
        unlinked: u32::from(stat.st_nlink == 0),
        reserved: 0,
        path: [0; 2000],
    };
    enter(record, |path| fs::descriptor_link(fd, path))
}

/// Finds or enters `record`; `path` writes the path and returns its length.
pub fn enter(mut record: FileRecord, path: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<u32, Errno> {
    // SAFETY: the memory lock is held.
    let (files, used) = unsafe { (control::files(), &mut (*control::globals()).files) };
    let same =
        |old: &FileRecord| old.device == record.device && old.inode == record.inode && old.access == record.access;
    let known = files.iter().take(*used as usize + 1).skip(1).position(same);
    if let Some(index) = known.map(|index| index + 1) {
        // One entry a file, as it is now: a save looks again anyway.
        (files[index].size, files[index].mtime_ns) = (record.size, record.mtime_ns);
        return Ok(index as u32);
    }
    let length = path(&mut record.path)?;
    if length >= record.path.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    record.path_bytes = length as u32;
    let index = *used as usize + 1;
    if index >= MAX_FILES {
        return Err(Errno(libc::ENFILE));
    }
    files[index] = record;
    // Who is saved from outside in between has not entered it.
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
    *used = index as u32;
    Ok(index as u32)
}
