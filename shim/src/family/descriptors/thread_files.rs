//! Files of the program's own threads below /proc: they exist only when the threads do, which is after the descriptors.
//!
//! Until then a [`placeholder`] has their number; [`revive`] puts the file itself there. One of a thread or process that
//! is gone keeps the placeholder: reading it gives nothing. Neighbours: `files` (writes the paths down), `placement`.

use super::files::ONCE;
use zhuque_abi::codec::Records;
use zhuque_abi::journal::{Object, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

/// What such a path begins with, in the journal; the thread's id as the program knows it follows.
pub const PREFIX: &[u8] = b"/proc/self/task/";

/// A decimal number at the beginning, and what follows.
pub fn split_number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(digits)?;
    Some((u32::try_from(super::fdinfo::number(digits, 10)?).ok()?, rest))
}

/// Whether a path names something of one process or thread, which may be gone.
pub fn of_process(path: &[u8]) -> bool {
    path.starts_with(PREFIX)
        || path.starts_with(b"/proc/self/fdinfo/")
        || path.strip_prefix(b"/proc/").and_then(split_number).is_some()
}

/// Something to hold the number, opened with `flags`.
pub fn placeholder(flags: i32) -> Result<i32, Errno> {
    let mut path = Path::new();
    path.push(if flags & libc::O_DIRECTORY != 0 { b"/proc/self/fdinfo" } else { b"/dev/null" });
    fs::open_at(libc::AT_FDCWD, &path, flags | libc::O_CLOEXEC, 0)
}

/// Opens those files. `real`: the kernel's id of a thread, by the id that the program knows.
pub fn revive(journal: &[u8], real: &dyn Fn(u32) -> Option<u32>) {
    for record in Records::new(journal).flatten() {
        let Record::Description(description) = record else { continue };
        let (Object::File { path, offset, .. } | Object::Directory { path, offset }) = description.object else {
            continue;
        };
        let thread = path.strip_prefix(PREFIX).and_then(split_number);
        let Some((thread, file)) = thread.and_then(|(known, file)| Some((real(known)?, file))) else { continue };
        let mut at = Path::new();
        at.push(PREFIX).push_number(thread.into()).push(file);
        let flags = description.flags as i32 & !ONCE | libc::O_CLOEXEC;
        let Ok(fd) = fs::open_at(libc::AT_FDCWD, &at, flags, 0) else { continue };
        if offset != 0 {
            let _ = fs::seek(fd, offset as i64, libc::SEEK_SET);
        }
        for record in Records::new(journal).flatten() {
            if let Record::Descriptor { fd: number, description: id, cloexec } = record
                && id == description.id
            {
                let _ = fs::dup_to(fd, number, cloexec);
            }
        }
        let _ = fs::close(fd);
    }
}
