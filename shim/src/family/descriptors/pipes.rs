//! Pipes and FIFOs, with the bytes that nobody has read yet.
//!
//! All ends of a pipe stand next to each other in the journal; the unread bytes go with the first write end, or with
//! the first end if there is no write end. A save copies them with tee(2), so that they stay where they are; only
//! where that fails are they read. If that write end has O_DIRECT, each packet is preceded by its length (u32, little
//! endian). An end that the program does not have is closed by the resume after the bytes have been put back.

use super::placement::Reviving;
use super::table::{Found, Table};
use super::{Capture, Failure};
use zhuque_abi::journal::{Description, Object};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;
const PACKETS: u32 = libc::O_DIRECT as u32;

/// The pipe whose ends are being revived.
#[derive(Clone, Copy, Default)]
pub struct Current {
    /// Its number in the journal; 0: none.
    pipe: u64,
    /// Its read and write end, as long as no description has taken them.
    ends: [Option<i32>; 2],
    /// A descriptor of one of its ends, to open more of them.
    any: i32,
}

/// Describes an end of a pipe, or a FIFO.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>, link: &[u8]) -> Result<(), Failure> {
    let ends = table.of_object(found.device, found.inode);
    let access = |flags: u32| flags as i32 & libc::O_ACCMODE;
    // The bytes belong to whoever holds the other read ends, unless one of them is in the program.
    let reader = ends.iter().find(|e| access(e.flags) != libc::O_WRONLY && e.flags & libc::O_PATH as u32 == 0);
    let writer = ends.iter().filter(|e| access(e.flags) != libc::O_RDONLY).min_by_key(|e| e.description);
    let carrier = writer.or(ends.iter().min_by_key(|e| e.description));
    let first = carrier.is_some_and(|e| e.description == found.id);
    let packets = writer.is_some_and(|e| e.flags & PACKETS != 0);
    let mut used = 0;
    if let Some(reader) = reader.filter(|_| first) {
        used = unread(c.scratch, reader.fd, packets)
            .map_err(|e| Failure::about(link).text(b"unread bytes cannot be saved: ").errno(e))?;
    }
    let data = c.scratch.get(..used).unwrap_or(&[]);
    let capacity = fs::fcntl(found.fd, F_GETPIPE_SZ, 0).unwrap_or(65536) as u32;
    let is_there = || {
        let mut path = Path::new();
        path.push(link);
        let there = fs::stat_at(libc::AT_FDCWD, &path, 0);
        there.is_ok_and(|s| (s.st_dev, s.st_ino) == (found.device, found.inode))
    };
    if link.starts_with(b"/") && is_there() {
        return found.describe(c.put, Object::Fifo { path: link, inode: found.inode, capacity, data });
    }
    if found.is_path() {
        return found.describe(c.put, Object::Unsupported { what: link });
    }
    // A FIFO whose name is gone is reached by nobody but whoever has it open, like a pipe.
    let write = found.access() != libc::O_RDONLY;
    found.describe(c.put, Object::Pipe { pipe: found.inode, write, capacity, data })
}

/// Copies the unread bytes of a pipe to the start of `out`; their number.
fn unread(out: &mut [u8], reader: i32, packets: bool) -> Result<usize, Errno> {
    let pending = fs::unread(reader)? as usize;
    // Empty packets do not exist: a pipe without bytes is empty.
    if pending == 0 {
        return Ok(0);
    }
    let capacity = fs::fcntl(reader, F_GETPIPE_SZ, 0)?;
    let [from, to] = fs::pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)?;
    let _ = fs::fcntl(to, F_SETPIPE_SZ, capacity);
    let copied = fs::tee(reader, to, pending);
    let source = if copied == Ok(pending) { from } else { reader };
    let flags = fs::fcntl(source, libc::F_GETFL, 0)?;
    // The program's description may be a blocking one; it is put back as it was.
    let _ = fs::fcntl(source, libc::F_SETFL, flags | libc::O_NONBLOCK as u64);
    let result = drain(out, source, packets);
    let _ = fs::fcntl(source, libc::F_SETFL, flags);
    let _ = fs::close(from);
    let _ = fs::close(to);
    result
}

fn drain(out: &mut [u8], source: i32, packets: bool) -> Result<usize, Errno> {
    let prefix = if packets { 4 } else { 0 };
    let mut used = 0;
    loop {
        let room = out.get_mut(used + prefix..).filter(|room| !room.is_empty()).ok_or(Errno(libc::ENOSPC))?;
        match fs::read(source, room) {
            Ok(0) | Err(Errno(libc::EAGAIN)) => return Ok(used),
            Ok(bytes) => {
                if let Some(length) = out.get_mut(used..used + prefix).filter(|_| packets) {
                    length.copy_from_slice(&(bytes as u32).to_le_bytes());
                }
                used += prefix + bytes;
            }
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Makes one end of a pipe; the other is kept for the description that follows, if there is one.
pub fn revive(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::Pipe { pipe, write, capacity, data } = description.object else {
        return Err(Failure::new(b"not a pipe"));
    };
    let failed = |e: Errno| Failure::new(b"pipe:[").number(pipe).text(b"]: ").errno(e);
    if r.pipe.pipe != pipe {
        finish(r);
        let ends = fs::pipe(libc::O_CLOEXEC).map_err(failed)?;
        let [reader, writer] = r.lift_both(ends)?;
        set_capacity(writer, capacity);
        r.pipe = Current { pipe, ends: [Some(reader), Some(writer)], any: reader };
    }
    let [reader, writer] = r.pipe.ends;
    if let Some(writer) = writer {
        put_back(writer, data, write && description.flags & PACKETS != 0).map_err(failed)?;
    }
    let mine = match description.flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY => reader,
        libc::O_WRONLY => writer,
        _ => None,
    };
    let Some(fd) = mine else {
        return open_more(r.pipe.any, description.flags as i32).map_err(failed);
    };
    if let Some(end) = r.pipe.ends.iter_mut().find(|e| **e == mine) {
        *end = None;
    }
    if r.pipe.any == fd {
        // It is about to move there.
        r.pipe.any = r.home(description.id);
    }
    Ok(fd)
}

/// May be more than this user is allowed; an error only if the bytes do not fit.
fn set_capacity(pipe: i32, capacity: u32) {
    if fs::fcntl(pipe, F_GETPIPE_SZ, 0) != Ok(capacity as u64) {
        let _ = fs::fcntl(pipe, F_SETPIPE_SZ, capacity as u64);
    }
}

/// A further description of a pipe that is open already.
fn open_more(any: i32, flags: i32) -> Result<i32, Errno> {
    let mut path = Path::new();
    path.push(b"/proc/thread-self/fd/").push_number(any as u64);
    let flags = flags & libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_CLOEXEC;
    fs::open_at(libc::AT_FDCWD, &path, flags, 0)
}

/// Closes the ends of the last pipe that the program does not have.
pub fn finish(r: &mut Reviving<'_>) {
    for fd in r.pipe.ends.into_iter().flatten() {
        let _ = fs::close(fd);
    }
    r.pipe = Current::default();
}

fn put_back(writer: i32, mut data: &[u8], packets: bool) -> Result<(), Errno> {
    if data.is_empty() {
        return Ok(());
    }
    let flags = fs::fcntl(writer, libc::F_GETFL, 0)?;
    let direct = if packets { libc::O_DIRECT } else { 0 };
    fs::fcntl(writer, libc::F_SETFL, flags | (libc::O_NONBLOCK | direct) as u64)?;
    while !data.is_empty() {
        let mut part = data;
        if packets {
            let (length, rest) = data.split_first_chunk::<4>().ok_or(Errno(libc::EINVAL))?;
            part = rest.get(..u32::from_le_bytes(*length) as usize).ok_or(Errno(libc::EINVAL))?;
            data = rest;
        }
        let written = fs::write(writer, part)?;
        if packets && written != part.len() {
            return Err(Errno(libc::ENOSPC));
        }
        data = data.get(written..).unwrap_or(&[]);
    }
    fs::fcntl(writer, libc::F_SETFL, flags).map(|_| ())
}

/// Opens a FIFO again. A helper that reads and writes makes every kind of opening succeed at once.
pub fn revive_fifo(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::Fifo { path, capacity, data, .. } = description.object else {
        return Err(Failure::new(b"not a FIFO"));
    };
    let failed = |e: Errno| Failure::about(path).errno(e);
    let mut at = Path::new();
    at.push(path);
    let stat = fs::stat_at(libc::AT_FDCWD, &at, 0).map_err(failed)?;
    if super::kind_of(stat.st_mode) != libc::S_IFIFO {
        return Err(Failure::about(path).text(b"is no FIFO any more"));
    }
    let quick = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let helper = fs::open_at(libc::AT_FDCWD, &at, libc::O_RDWR | quick, 0);
    let access = description.flags as i32 & (libc::O_ACCMODE | libc::O_PATH);
    let fd = fs::open_at(libc::AT_FDCWD, &at, access | quick, 0).map_err(failed)?;
    if let Ok(helper) = helper {
        set_capacity(helper, capacity);
        let packets = access & libc::O_ACCMODE != libc::O_RDONLY && description.flags & PACKETS != 0;
        put_back(helper, data, packets).map_err(failed)?;
        // Bytes vanish with the last reader: the helper stays until every description is there.
        r.stash_helper(helper)?;
    }
    Ok(fd)
}
