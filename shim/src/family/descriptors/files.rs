//! Regular files, directories and block devices by path; files without a name are kept in the region.
//!
//! An open file whose path no longer leads to it (unlinked, renamed over, a memfd) gets a name `files/kept-N` in the
//! region: a hard link where one is possible, else a copy made at save. A resume opens it there and leaves it; the
//! next save that finds it open finds it there too, and one that does not deletes it ([`Kept::forget_others`]).
//! Written files are synced with fsync, not fdatasync: the resume compares the time of modification, which fdatasync
//! need not write. A directory that was removed comes back as one that is removed. Neighbours: [`super::placement`]
//! gives the opened file its numbers and flags; [`super::memfds`].

use super::placement::Reviving;
use super::table::{Found, Table};
use super::{Capture, Failure, kind_of, memfds, thread_files};
use zhuque_abi::journal::{Description, Object};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

const DELETED: &[u8] = b" (deleted)";
const KEPT: &[u8] = b"kept-";
/// Flags that act once, when a file is opened.
pub const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
const NEW_FILE: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOFOLLOW;

/// The region's `files/` during one save.
#[derive(Default)]
pub struct Kept {
    /// Descriptor of the directory + 1, 0: not open.
    directory: i32,
    /// Next number to try for a new file.
    next: u64,
    /// The file that was kept last: device, inode, number. Descriptions of one file come next to each other.
    last: Option<(u64, u64, u64)>,
    /// The file that was synced last.
    synced: Option<(u64, u64)>,
    /// Numbers in use, a bit each. Higher ones than this holds are never deleted.
    used: Used,
}

struct Used([u64; 64]);

impl Default for Used {
    fn default() -> Self {
        Used([0; 64])
    }
}

impl Kept {
    fn open(&mut self, region: i32) -> Result<i32, Failure> {
        if self.directory == 0 {
            let mut path = Path::new();
            path.push(b"files");
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
            if fs::open_at(region, &path, flags, 0).map(|fd| self.directory = fd + 1) == Err(Errno(libc::ENOENT)) {
                let _ = fs::make_directory(region, &path, 0o700);
                let _ = fs::open_at(region, &path, flags, 0).map(|fd| self.directory = fd + 1);
            }
        }
        if self.directory > 0 {
            Ok(self.directory - 1)
        } else {
            Err(Failure::new(b"the region's files/ cannot be opened"))
        }
    }

    fn note(&mut self, number: u64) {
        if let Some(word) = self.used.0.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Closes the directory.
    pub fn close(&mut self) {
        if self.directory > 0 {
            let _ = fs::close(self.directory - 1);
        }
    }

    /// Deletes kept files of earlier saves that no description needs any more and no mapping uses.
    pub fn forget_others(&mut self, c: &mut Capture<'_>) -> Result<(), Failure> {
        let mut probe = Path::new();
        probe.push(b"files");
        if self.directory == 0 && fs::stat_at(c.region_directory, &probe, 0).is_err() {
            return Ok(());
        }
        let directory = self.open(c.region_directory)?;
        let _ = fs::seek(directory, 0, libc::SEEK_SET);
        while let Ok(bytes) = fs::read_directory(directory, c.scratch.get_mut(..65536).unwrap_or(&mut [])) {
            let mut entries = c.scratch.get(..bytes).unwrap_or(&[]);
            if entries.is_empty() {
                break;
            }
            // struct linux_dirent64: inode u64, offset i64, length u16, type u8, name.
            while let Some(&[low, high]) = entries.get(16..18) {
                let (entry, rest) =
                    entries.split_at_checked(u16::from_le_bytes([low, high]) as usize).unwrap_or((entries, &[]));
                let name = entry.get(19..).unwrap_or(&[]);
                if let Some(number) = name.strip_prefix(KEPT).and_then(|n| super::fdinfo::number(n, 10)) {
                    self.forget(c.mapped_shared, directory, number);
                }
                entries = rest;
            }
        }
        Ok(())
    }

    fn forget(&self, mapped: &dyn Fn(u64, u64) -> bool, directory: i32, number: u64) {
        let used = self.used.0.get(number as usize / 64).is_none_or(|word| word & 1 << (number % 64) != 0);
        let name = kept_name(number);
        let Ok(stat) = fs::stat_at(directory, &name, libc::AT_SYMLINK_NOFOLLOW) else { return };
        if !used && !mapped(stat.st_dev, stat.st_ino) {
            let _ = fs::unlink_at(directory, &name);
        }
    }
}

fn kept_name(number: u64) -> Path {
    let mut name = Path::new();
    name.push(KEPT).push_number(number);
    name
}

fn mtime_ns(stat: &libc::stat) -> u64 {
    (stat.st_mtime as u64).wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as u64)
}

/// Files of /proc and /sys: there is nothing to compare, and numbers of processes do not last.
fn is_pseudo(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") || path.starts_with(b"/sys/") || path == b"/proc" || path == b"/sys"
}

/// Describes a regular file, directory or block device that has (or had) a path.
pub fn capture(
    c: &mut Capture<'_>,
    table: &Table<'_>,
    kept: &mut Kept,
    found: &Found<'_>,
    link: &[u8],
) -> Result<(), Failure> {
    let stat = fs::stat_fd(found.fd).map_err(|e| Failure::about(link).errno(e))?;
    let offset = if found.is_path() { 0 } else { fs::seek(found.fd, 0, libc::SEEK_CUR).unwrap_or(0) };
    let mut path = Path::new();
    own_process_as_self(c, link, &mut path);
    if is_pseudo(link) {
        let object = if kind_of(found.mode) == libc::S_IFDIR {
            Object::Directory { path: path.as_bytes(), offset }
        } else {
            Object::File { path: path.as_bytes(), identity: [0; 4], offset, kept: &[], mapped: true, seals: 0 }
        };
        return found.describe(c.put, object);
    }
    let named = stat.st_nlink > 0
        && fs::stat_at(libc::AT_FDCWD, &path, libc::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
    match (kind_of(found.mode), named) {
        (libc::S_IFDIR, true) => found.describe(c.put, Object::Directory { path: link, offset }),
        (libc::S_IFDIR, false) if link.ends_with(DELETED) => {
            found.describe(c.put, Object::Directory { path: &[], offset: 0 })
        }
        (libc::S_IFREG, _) => {
            let file = Regular { link, offset, named, stat };
            capture_regular(c, table, kept, found, file)
        }
        // A block device has neither size nor times of its own.
        (_, true) => {
            let identity = [stat.st_dev, stat.st_ino, 0, 0];
            found.describe(c.put, Object::File { path: link, identity, offset, kept: &[], mapped: true, seals: 0 })
        }
        (_, false) => found.describe(c.put, Object::Unsupported { what: link }),
    }
}

/// A regular file under capture.
struct Regular<'l> {
    link: &'l [u8],
    offset: u64,
    named: bool,
    stat: libc::stat,
}

fn capture_regular(
    c: &mut Capture<'_>,
    table: &Table<'_>,
    kept: &mut Kept,
    found: &Found<'_>,
    file: Regular<'_>,
) -> Result<(), Failure> {
    let Regular { link, offset, named, mut stat } = file;
    let object = (found.device, found.inode);
    // Before the first of the file's descriptions is looked at: on some file systems writing back changes the time.
    let writes = |flags: u32| flags as i32 & libc::O_ACCMODE != libc::O_RDONLY && flags as i32 & libc::O_PATH == 0;
    let written = !found.is_path() && table.of_object(found.device, found.inode).iter().any(|e| writes(e.flags));
    if written && c.file_sync && kept.synced != Some(object) {
        match fs::sync_all(found.fd) {
            Err(e @ Errno(libc::EIO | libc::ENOSPC | libc::EDQUOT)) => return Err(Failure::about(link).errno(e)),
            // EINVAL, EROFS: nothing to sync there.
            _ => kept.synced = Some(object),
        }
        stat = fs::stat_fd(found.fd).map_err(|e| Failure::about(link).errno(e))?;
    }
    let number = match in_region(c, kept, link, named, &stat) {
        None if !named => Some(keep(c, table, kept, found, link, &stat)?),
        there => there,
    };
    if let Some(number) = number {
        kept.note(number);
        let directory = kept.open(c.region_directory)?;
        stat = fs::stat_at(directory, &kept_name(number), libc::AT_SYMLINK_NOFOLLOW)
            .map_err(|e| Failure::about(link).errno(e))?;
    }
    let name = number.map(kept_name);
    let identity = [stat.st_dev, stat.st_ino, stat.st_size as u64, mtime_ns(&stat)];
    let mapped = (c.mapped_shared)(found.device, found.inode);
    let path = if named { link } else { link.strip_suffix(DELETED).unwrap_or(link) };
    let kept = name.as_ref().map_or(&[][..], |name| name.as_bytes());
    let seals = if mapped || named { 0 } else { memfds::seals(found.fd, path) };
    found.describe(c.put, Object::File { path, identity, offset, kept, mapped, seals })
}

/// The number of a file that an earlier save has kept already.
fn in_region(c: &Capture<'_>, kept: &mut Kept, link: &[u8], named: bool, stat: &libc::stat) -> Option<u64> {
    let at = link.iter().rposition(|&b| b == b'/')?;
    let number = super::fdinfo::number(link.get(at + 1..)?.strip_prefix(KEPT)?, 10).filter(|_| named)?;
    let directory = kept.open(c.region_directory).ok()?;
    let there = fs::stat_at(directory, &kept_name(number), libc::AT_SYMLINK_NOFOLLOW).ok()?;
    ((there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)).then_some(number)
}

/// Gives a nameless file a name in the region, or its content; the number of the name.
fn keep(
    c: &mut Capture<'_>,
    table: &Table<'_>,
    kept: &mut Kept,
    found: &Found<'_>,
    link: &[u8],
    stat: &libc::stat,
) -> Result<u64, Failure> {
    if let Some((_, _, number)) = kept.last.filter(|last| (last.0, last.1) == (found.device, found.inode)) {
        return Ok(number);
    }
    let directory = kept.open(c.region_directory)?;
    let mut source = Path::new();
    source.push_number(found.fd as u64);
    loop {
        let (number, name) = (kept.next, kept_name(kept.next));
        kept.next += 1;
        // A link keeps the file itself; it works on the same file system while a name is left (or O_TMPFILE).
        match fs::link_at(table.links, &source, directory, &name) {
            Err(Errno(libc::EEXIST)) => continue,
            Ok(()) => {
                kept.last = Some((found.device, found.inode, number));
                return Ok(number);
            }
            Err(_) => {}
        }
        let to = match fs::open_at(directory, &name, NEW_FILE, 0o600) {
            Err(Errno(libc::EEXIST)) => continue,
            other => other.map_err(|e| Failure::about(link).text(b"cannot be kept: ").errno(e))?,
        };
        let _ = fs::change_mode_fd(to, stat.st_mode & 0o7777);
        let copied = copy_content(table, found.fd, to, stat.st_size as u64, c.file_sync);
        let _ = fs::close(to);
        copied.map_err(|e| {
            let _ = fs::unlink_at(directory, &name);
            Failure::about(link).text(b"cannot be kept: ").errno(e)
        })?;
        kept.last = Some((found.device, found.inode, number));
        return Ok(number);
    }
}

/// Copies a file's content, holes left out; the description's own offset does not move.
fn copy_content(table: &Table<'_>, fd: i32, to: i32, size: u64, sync: bool) -> Result<(), Errno> {
    let mut name = Path::new();
    name.push_number(fd as u64);
    // Opened anew: it may not be open for reading, or with O_DIRECT, and seeking must not move the program's offset.
    let own = fs::open_at(table.links, &name, libc::O_RDONLY | libc::O_CLOEXEC, 0);
    let from = own.unwrap_or(fd);
    let result = if fs::clone_content(to, from).is_ok() {
        Ok(())
    } else {
        fs::truncate(to, size).and_then(|()| copy_extents(from, to, size, own.is_ok()))
    };
    if own.is_ok() {
        let _ = fs::close(from);
    }
    result?;
    if sync { fs::sync_all(to) } else { Ok(()) }
}

/// Copies `size` bytes, from wherever `from` is if it may not be moved.
pub fn copy_extents(from: i32, to: i32, size: u64, may_seek: bool) -> Result<(), Errno> {
    let mut at = 0u64;
    while at < size {
        let mut end = size;
        if may_seek {
            match fs::seek(from, at as i64, libc::SEEK_DATA) {
                Ok(data) => at = data,
                Err(Errno(libc::ENXIO)) => return Ok(()),
                Err(_) => {}
            }
            end = fs::seek(from, at as i64, libc::SEEK_HOLE).unwrap_or(size).min(size);
        }
        fs::seek(to, at as i64, libc::SEEK_SET)?;
        while at < end {
            let mut offset = at as i64;
            match fs::send_file(to, from, &mut offset, (end - at).min(1 << 30) as usize) {
                Ok(0) => return Ok(()),
                Ok(bytes) => at += bytes as u64,
                Err(Errno(libc::EINTR)) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// `/proc/PID/...` of the program itself by a name that lasts; a thread by the id that the program knows.
fn own_process_as_self(c: &Capture<'_>, link: &[u8], path: &mut Path) {
    let rest = link.strip_prefix(b"/proc/").unwrap_or(&[]);
    let Some((_, rest)) = thread_files::split_number(rest).filter(|(number, _)| *number == c.pid) else {
        path.push(link);
        return;
    };
    let thread = rest.strip_prefix(b"/task/").and_then(thread_files::split_number);
    match thread.and_then(|(number, file)| Some(((c.virtual_thread)(number)?, file))) {
        Some((number, file)) => path.push(thread_files::PREFIX).push_number(number.into()).push(file),
        None => path.push(b"/proc/self").push(rest),
    };
}

/// Opens a file again and checks that it is the one that was saved.
pub fn revive(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::File { path, identity, offset, kept, mapped, seals } = description.object else {
        return Err(Failure::new(b"not a file"));
    };
    let mut at = Path::new();
    let mut directory = libc::AT_FDCWD;
    if kept.is_empty() {
        at.push(path);
    } else {
        directory = r.region_directory;
        at.push(b"files/").push(kept);
    }
    let flags = description.flags as i32 & !ONCE & !libc::O_DIRECTORY;
    if seals != 0 {
        let fd = memfds::revive(r, description, &at, flags)?;
        return fs::seek(fd, offset as i64, libc::SEEK_SET).map(|_| fd).map_err(|e| Failure::about(path).errno(e));
    }
    let fd = open(directory, &at, flags).map_err(|e| Failure::about(path).errno(e))?;
    if identity[1] != 0 && !r.force {
        verify(fd, path, &identity, flags & libc::O_APPEND != 0, mapped, !kept.is_empty())?;
    }
    if offset != 0 && flags & libc::O_PATH == 0 {
        fs::seek(fd, offset as i64, libc::SEEK_SET).map_err(|e| Failure::about(path).errno(e))?;
    }
    Ok(fd)
}

/// Opens without ever waiting (the path may be something else by now); the flags are put right afterwards.
fn open(directory: i32, path: &Path, flags: i32) -> Result<i32, Errno> {
    let extra = if flags & libc::O_PATH != 0 { 0 } else { libc::O_NONBLOCK };
    let flags = flags | extra | libc::O_CLOEXEC | libc::O_NOCTTY;
    match fs::open_at(directory, path, flags, 0) {
        // Somebody else's file by now, or it always was and we had the privilege.
        Err(Errno(libc::EPERM)) if flags & libc::O_NOATIME != 0 => {
            fs::open_at(directory, path, flags & !libc::O_NOATIME, 0)
        }
        Err(Errno(libc::EACCES)) => open_against_mode(directory, path, flags),
        // A thread of this program that does not exist yet, or a process that is gone for good.
        Err(Errno(libc::ENOENT)) if thread_files::of_process(path.as_bytes()) => thread_files::placeholder(flags),
        other => other,
    }
}

/// Opens what the program had open although its mode forbids it (it was made so, or changed later): the mode is another
/// one for as long as that takes.
fn open_against_mode(directory: i32, path: &Path, flags: i32) -> Result<i32, Errno> {
    let place = fs::open_at(directory, path, libc::O_PATH | libc::O_CLOEXEC, 0)?;
    let mut link = Path::new();
    link.push(b"/proc/thread-self/fd/").push_number(place as u64);
    let opened = fs::stat_fd(place).and_then(|stat| {
        let mode = stat.st_mode & 0o7777;
        let needed = if kind_of(stat.st_mode) == libc::S_IFDIR { 0o700 } else { 0o600 };
        // Somebody else's file cannot be changed.
        fs::change_mode(&link, mode | needed).map_err(|_| Errno(libc::EACCES))?;
        let opened = fs::open_at(libc::AT_FDCWD, &link, flags & !libc::O_NOFOLLOW, 0);
        fs::change_mode(&link, mode).and(opened)
    });
    let _ = fs::close(place);
    opened
}

fn verify(fd: i32, path: &[u8], identity: &[u64; 4], append: bool, mapped: bool, kept: bool) -> Result<(), Failure> {
    let stat = fs::stat_fd(fd).map_err(|e| Failure::about(path).errno(e))?;
    let [device, inode, size, mtime] = *identity;
    let changed = Failure::about(path).text(b"changed since it was saved (");
    // Devices without a major number of their own (tmpfs, overlay, btrfs) get another minor with each mount.
    let numbered = |device: u64| libc::major(device) != 0;
    if !kept && (stat.st_ino != inode || (stat.st_dev != device && numbered(device) && numbered(stat.st_dev))) {
        return Err(changed.text(b"it is another file); --force resumes anyway"));
    }
    if kind_of(stat.st_mode) != libc::S_IFREG {
        return Ok(());
    }
    let now = stat.st_size as u64;
    if now < size || (now > size && !append) {
        let sizes = changed.text(b"size ").number(now).text(b", was ").number(size);
        return Err(sizes.text(b"); --force resumes anyway"));
    }
    if !append && !mapped && !kept && mtime_ns(&stat) != mtime {
        return Err(changed.text(b"it was written later); --force resumes anyway"));
    }
    Ok(())
}

/// Opens a directory again.
pub fn revive_directory(r: &Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::Directory { path, offset } = description.object else {
        return Err(Failure::new(b"not a directory"));
    };
    let mut at = Path::new();
    at.push(path);
    let flags = description.flags as i32 & !ONCE | libc::O_DIRECTORY;
    if path.is_empty() {
        return removed_directory(r, description.id, flags);
    }
    let fd = open(libc::AT_FDCWD, &at, flags).map_err(|e| Failure::about(path).errno(e))?;
    if offset != 0 {
        let _ = fs::seek(fd, offset as i64, libc::SEEK_SET);
    }
    Ok(fd)
}

/// A directory that nobody can find any more.
fn removed_directory(r: &Reviving<'_>, id: u32, flags: i32) -> Result<i32, Failure> {
    let mut path = Path::new();
    path.push(b"/tmp/.zhuque-removed-").push_number(r.pid.into()).push(b"-").push_number(id.into());
    let made = fs::make_directory(libc::AT_FDCWD, &path, 0o700).and_then(|()| {
        let opened = fs::open_at(libc::AT_FDCWD, &path, flags | libc::O_CLOEXEC, 0);
        fs::remove_directory(&path).and(opened)
    });
    made.map_err(|e| Failure::new(b"a directory was removed, and cannot be again below /tmp: ").errno(e))
}
