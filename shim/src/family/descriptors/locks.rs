//! Locks on files: flock, POSIX record locks, OFD locks.
//!
//! The fdinfo of a descriptor says what is held through it. A resume takes the locks when all descriptors are in
//! place, since closing any descriptor of a file drops the process's POSIX locks on it. Leases are not kept.

use super::fdinfo;
use super::placement::Reviving;
use super::table::Table;
use super::{Capture, Failure};
use zhuque_abi::journal::{LockKind, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

const F_OFD_SETLK: i32 = 37;

/// A lock line of fdinfo.
struct Lock {
    kind: LockKind,
    write: bool,
    start: u64,
    length: u64,
}

/// Parses `1: POSIX  ADVISORY  WRITE 8309 fe:00:10010829 5 7`. None for leases, and for waiting locks (`1: -> ...`).
fn parse(line: &[u8]) -> Option<Lock> {
    let at = line.windows(2).position(|w| w == b": ")?;
    let mut tokens = line.get(at + 2..)?.split(|b| b.is_ascii_whitespace()).filter(|t| !t.is_empty());
    let kind = match tokens.next()? {
        b"FLOCK" => LockKind::Flock,
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        _ => return None,
    };
    let write = match (tokens.next()?, tokens.next()?) {
        (_, b"WRITE") => true,
        (_, b"READ") => false,
        _ => return None,
    };
    let (_pid, _file) = (tokens.next()?, tokens.next()?);
    let start = fdinfo::number(tokens.next()?, 10)?;
    let length = match tokens.next()? {
        b"EOF" => 0,
        end => fdinfo::number(end, 10)?.checked_sub(start)? + 1,
    };
    Some(Lock { kind, write, start, length })
}

/// Describes the locks that the program holds.
///
/// The fdinfo of every file is read. /proc/locks would say which files have locks at all, but opening the list waits
/// for an RCU grace period (5 to 15 ms, locks_start in fs/locks.c), a thousand times what a fdinfo costs.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>) -> Result<(), Failure> {
    let mut previous = None;
    for (device, inode) in table.files() {
        if previous.replace((device, inode)) != Some((device, inode)) {
            capture_file(c, table, inode)?;
        }
    }
    Ok(())
}

fn capture_file(c: &mut Capture<'_>, table: &Table<'_>, inode: u64) -> Result<(), Failure> {
    let (mut previous, mut posix_done) = (0, false);
    for entry in table.of_inode(inode) {
        if entry.description == previous || entry.flags & libc::O_PATH as u32 != 0 {
            continue;
        }
        previous = entry.description;
        let mut name = Path::new();
        name.push_number(entry.fd as u64);
        let mut any_posix = false;
        let (put, buffer) = (&mut *c.put, &mut [0u8; 4096]);
        fdinfo::lines(table.infos, &name, buffer, &mut |line| {
            let Some(lock) = line.strip_prefix(b"lock:").and_then(parse) else { return Ok(()) };
            // The process's record locks show with each of its descriptions of the file.
            if lock.kind == LockKind::Posix && posix_done {
                return Ok(());
            }
            any_posix |= lock.kind == LockKind::Posix;
            put(&Record::FileLock {
                description: entry.description,
                kind: lock.kind,
                write: lock.write,
                start: lock.start,
                length: lock.length,
            })
        })?;
        posix_done |= any_posix;
    }
    Ok(())
}

/// Takes a lock again.
pub fn take(r: &Reviving<'_>, record: &Record<'_>) -> Result<(), Failure> {
    let Record::FileLock { description, kind, write, start, length } = *record else { return Ok(()) };
    let fd = r.home(description);
    let lock = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let done = match kind {
        LockKind::Flock => fs::flock(fd, libc::LOCK_NB | if write { libc::LOCK_EX } else { libc::LOCK_SH }),
        LockKind::Posix => fs::lock_range(fd, libc::F_SETLK, lock, start, length),
        LockKind::Ofd => fs::lock_range(fd, F_OFD_SETLK, lock, start, length),
    };
    done.map_err(|e| {
        let mut link = [0u8; 256];
        let length = fs::descriptor_link(fd, &mut link).unwrap_or(0);
        let failure = Failure::about(link.get(..length).unwrap_or(&[]));
        match e {
            Errno(libc::EAGAIN | libc::EACCES) => failure.text(b"another process holds the lock that the program had"),
            e => failure.text(b"cannot be locked again: ").errno(e),
        }
    })
}
