//! Locks on files: flock, POSIX record locks, OFD locks.
//!
//! /proc/locks is read once; only for files that it names is the fdinfo of their descriptors read, which says what
//! this process holds. A resume takes the locks when all descriptors are in place, since closing any descriptor of a
//! file drops the process's POSIX locks on it. Leases are not kept.

use super::fdinfo;
use super::placement::Reviving;
use super::table::Table;
use super::{Capture, Failure};
use zhuque_abi::journal::{LockKind, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

/// Files of one save that have locks at all.
const MOST: usize = 256;
const F_OFD_SETLK: i32 = 37;

/// A line of /proc/locks or of fdinfo.
struct Lock {
    kind: LockKind,
    write: bool,
    pid: Option<u64>,
    device: u64,
    inode: u64,
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
    let pid = fdinfo::number(tokens.next()?, 10);
    let mut parts = tokens.next()?.split(|&b| b == b':');
    let major = fdinfo::number(parts.next()?, 16)? as u32;
    let minor = fdinfo::number(parts.next()?, 16)? as u32;
    let inode = fdinfo::number(parts.next()?, 10)?;
    let start = fdinfo::number(tokens.next()?, 10)?;
    let length = match tokens.next()? {
        b"EOF" => 0,
        end => fdinfo::number(end, 10)?.checked_sub(start)? + 1,
    };
    Some(Lock { kind, write, pid, device: libc::makedev(major, minor), inode, start, length })
}

/// Describes the locks that the program holds.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>) -> Result<(), Failure> {
    let mut path = Path::new();
    path.push(b"/proc/locks");
    let mut files = [(0u64, 0u64); MOST];
    let mut count = 0;
    let mut full = false;
    let buffer = c.scratch.get_mut(..65536).unwrap_or(&mut []);
    let listed = fdinfo::lines(libc::AT_FDCWD, &path, buffer, &mut |line| {
        let Some(lock) = parse(line) else { return Ok(()) };
        // An OFD lock has no process.
        let maybe_ours = lock.kind == LockKind::Ofd || lock.pid == Some(c.pid as u64);
        let file = (lock.device, lock.inode);
        let known = files.get(..count).unwrap_or(&[]).contains(&file);
        if !maybe_ours || known || table.of_inode(lock.inode).next().is_none() {
            return Ok(());
        }
        match files.get_mut(count) {
            Some(place) => {
                *place = file;
                count += 1;
            }
            None => full = true,
        }
        Ok(())
    });
    // Without the list (no /proc/locks in some containers) every written file might have locks; it is not worth that.
    if listed.is_err() {
        return Ok(());
    }
    if full {
        return Err(Failure::new(b"more locked files than this version can describe"));
    }
    for &(_, inode) in files.get(..count).unwrap_or(&[]) {
        capture_file(c, table, inode)?;
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
