//! inotify: instances and what they watch.
//!
//! fdinfo names a watched file by inode and file handle, not by path. Opening the handle needs a privilege; without it
//! the path is looked for where programs watch: the working directory, the directories of open files, directories that
//! are watched themselves, and what lies in them. A watch whose path is not found makes the instance unsupported, by
//! name. Events that were not read yet are lost, as in an overflow.

use super::fdinfo::{self, decimal_field, field, hex_field};
use super::placement::Reviving;
use super::table::{Found, Table};
use super::{Capture, Failure, kind_of};
use zhuque_abi::journal::{Object, Record};
use zhuque_sys::fs::{self, Path};
use zhuque_sys::net;

/// Watches that one save can describe for one instance.
const MOST: usize = 8192;
/// Bytes of scratch memory per watch: number, mask, length of the path, path.
const HEAD: usize = 12;
/// How far below what is found by itself a watch may lie, by way of directories that are watched too.
const PASSES: usize = 16;
/// Watch numbers only grow; this many are tried to reach the one that the program knows.
const FURTHEST: i32 = 1 << 20;

/// What is done with a watch: number, mask, path.
type Act<'a> = dyn FnMut(u32, u32, &[u8]) -> Result<(), Failure> + 'a;

/// One line of an instance's fdinfo.
struct Watch<'l> {
    number: u32,
    mask: u32,
    inode: u64,
    device: u64,
    handle_kind: i32,
    handle: &'l [u8],
}

fn parse(line: &[u8]) -> Option<Watch<'_>> {
    Some(Watch {
        number: decimal_field(line, b"wd:").filter(|_| line.starts_with(b"inotify "))? as u32,
        mask: hex_field(line, b"mask:")? as u32,
        inode: hex_field(line, b"ino:")?,
        device: fdinfo::device(hex_field(line, b"sdev:")?),
        handle_kind: hex_field(line, b"fhandle-type:").unwrap_or(0) as i32,
        handle: field(line, b"f_handle:").unwrap_or(&[]),
    })
}

/// Directories that are listed in search of watches, at most: some tens of milliseconds.
const LISTINGS: u32 = 5000;

/// Describes an inotify instance and its watches.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    let mut name = Path::new();
    name.push_number(found.fd as u64);
    let half = c.scratch.len() / 2;
    let (store, buffer) = c.scratch.split_at_mut_checked(half).unwrap_or((&mut [], &mut []));
    let (buffer, directory) = buffer.split_at_mut_checked(buffer.len() / 2).unwrap_or((&mut [], &mut []));
    let (mut used, mut missing, mut listings) = (0, None, LISTINGS);
    for pass in 0..PASSES {
        let before = used;
        missing = None;
        fdinfo::lines(table.infos, &name, buffer, &mut |line| {
            let Some(watch) = parse(line) else { return Ok(()) };
            let known = store.get(..before).unwrap_or(&[]);
            if Watches(known).any(|(number, ..)| number == watch.number) {
                return Ok(());
            }
            let mut path = Path::new();
            let found = match pass {
                0 => path_of(table, &watch, directory, &mut path),
                _ => Watches(known).any(|(_, _, above)| {
                    let listed = listings > 0;
                    listings = listings.saturating_sub(1);
                    listed && below(above, &watch, directory, &mut path)
                }),
            };
            if !found {
                missing = Some(watch.inode);
                return Ok(());
            }
            let bytes = path.as_bytes();
            let place = store.get_mut(used..used + HEAD + bytes.len());
            let place = place.ok_or(Failure::new(b"more inotify watches than this version can describe"))?;
            let head = [watch.number, watch.mask, bytes.len() as u32].map(u32::to_le_bytes);
            place.iter_mut().zip(head.iter().flatten().chain(bytes)).for_each(|(to, from)| *to = *from);
            used += place.len();
            Ok(())
        })?;
        if missing.is_none() || used == before {
            break;
        }
    }
    if let Some(inode) = missing {
        let mut what = Path::new();
        what.push(b"inotify watch of a file whose path is unknown (inode ").push_number(inode).push(b")");
        return found.describe(c.put, Object::Unsupported { what: what.as_bytes() });
    }
    found.describe(c.put, Object::Inotify)?;
    let store = c.scratch.get(..used).unwrap_or(&[]);
    in_order(store, &mut |number, mask, path| {
        (c.put)(&Record::InotifyWatch { inotify: found.id, watch: number as i32, mask, path })
    })
}

/// Watches in scratch memory: number, mask, path.
struct Watches<'s>(&'s [u8]);

impl<'s> Iterator for Watches<'s> {
    type Item = (u32, u32, &'s [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[a, b, c, d, e, f, g, h, i, j, k, l], behind) = self.0.split_first_chunk::<HEAD>()?;
        let (number, mask) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let (path, behind) = behind.split_at_checked(u32::from_le_bytes([i, j, k, l]) as usize)?;
        self.0 = behind;
        Some((number, mask, path))
    }
}

/// Calls `act` with the watches of `store` by growing number.
fn in_order(store: &[u8], act: &mut Act<'_>) -> Result<(), Failure> {
    let mut after = None;
    for _ in 0..MOST {
        let mut next: Option<(u32, u32, &[u8])> = None;
        for watch in Watches(store) {
            if after.is_none_or(|after| watch.0 > after) && next.is_none_or(|next| watch.0 < next.0) {
                next = Some(watch);
            }
        }
        let Some((number, mask, path)) = next else { return Ok(()) };
        act(number, mask, path)?;
        after = Some(number);
    }
    Err(Failure::new(b"more inotify watches than this version can describe"))
}

/// Finds the path of a watched file; false if it is not found.
fn path_of(table: &Table<'_>, watch: &Watch<'_>, buffer: &mut [u8], path: &mut Path) -> bool {
    by_handle(table, watch, path) || by_search(table, watch, buffer, path)
}

fn is_it(path: &Path, watch: &Watch<'_>) -> bool {
    fs::stat_at(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|s| s.st_ino == watch.inode && (s.st_dev == watch.device || libc::major(s.st_dev) == 0))
}

/// Opens the handle, relative to any directory of the same file system that is at hand.
fn by_handle(table: &Table<'_>, watch: &Watch<'_>, path: &mut Path) -> bool {
    let mut handle = [0u8; 128];
    let bytes = watch.handle.len() / 2;
    for (place, digits) in handle.iter_mut().zip(watch.handle.chunks_exact(2)) {
        *place = fdinfo::number(digits, 16).unwrap_or(0) as u8;
    }
    let handle = handle.get(..bytes).unwrap_or(&[]);
    let mut try_at = |mount: i32| -> bool {
        let Ok(fd) = fs::open_handle(mount, watch.handle_kind, handle) else { return false };
        let mut link = [0u8; 4096];
        *path = Path::new();
        path.push(table.link(fd, &mut link));
        let _ = fs::close(fd);
        path.as_bytes().starts_with(b"/") && is_it(path, watch)
    };
    if try_at(libc::AT_FDCWD) {
        return true;
    }
    for start in [&b"/"[..], b"/tmp", b"/etc", b"/run", b"/var", b"/home", b"/dev/shm"] {
        let mut at = Path::new();
        at.push(start);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let Ok(mount) = fs::open_at(libc::AT_FDCWD, &at, flags, 0) else { continue };
        let same = fs::stat_fd(mount).is_ok_and(|s| s.st_dev == watch.device || libc::major(s.st_dev) == 0);
        let found = same && try_at(mount);
        let _ = fs::close(mount);
        if found {
            return true;
        }
    }
    let here =
        |e: &&super::table::Entry| e.device == watch.device && matches!(kind_of(e.mode), libc::S_IFREG | libc::S_IFDIR);
    table.all().iter().find(here).is_some_and(|e| try_at(e.fd))
}

/// Looks among the parents of the working directory and of open files, and directly below them.
fn by_search(table: &Table<'_>, watch: &Watch<'_>, buffer: &mut [u8], path: &mut Path) -> bool {
    let mut link = [0u8; 4096];
    let length = fs::working_directory(&mut link).unwrap_or(0);
    if in_parents(link.get(..length).unwrap_or(&[]), watch, buffer, path) {
        return true;
    }
    for entry in table.all().iter().filter(|e| matches!(kind_of(e.mode), libc::S_IFREG | libc::S_IFDIR)) {
        if in_parents(table.link(entry.fd, &mut link), watch, buffer, path) {
            return true;
        }
    }
    [&b"/etc/x"[..], b"/tmp/x", b"/run/x"].iter().any(|start| in_parents(start, watch, buffer, path))
}

fn in_parents(start: &[u8], watch: &Watch<'_>, buffer: &mut [u8], path: &mut Path) -> bool {
    let mut at = start;
    for level in 0..64 {
        *path = Path::new();
        path.push(if at.is_empty() { b"/" } else { at });
        if is_it(path, watch) {
            return true;
        }
        // Only the nearest directory is searched.
        if level < 2 && below(at, watch, buffer, path) {
            return true;
        }
        match at.iter().rposition(|&b| b == b'/') {
            Some(end) => at = at.get(..end).unwrap_or(&[]),
            None => return false,
        }
        if at.is_empty() {
            *path = Path::new();
            path.push(b"/");
            return is_it(path, watch);
        }
    }
    false
}

fn below(directory: &[u8], watch: &Watch<'_>, buffer: &mut [u8], path: &mut Path) -> bool {
    let mut at = Path::new();
    at.push(directory);
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let Ok(fd) = fs::open_at(libc::AT_FDCWD, &at, flags, 0) else { return false };
    let mut found = false;
    while let Ok(bytes) = fs::read_directory(fd, buffer) {
        let mut entries = buffer.get(..bytes).unwrap_or(&[]);
        // struct linux_dirent64: inode u64, offset i64, length u16, type u8, name.
        while let (Some(inode), Some(&[low, high])) = (entries.first_chunk::<8>(), entries.get(16..18)) {
            let length = u16::from_le_bytes([low, high]) as usize;
            let name = entries.get(19..length).unwrap_or(&[]);
            let name = name.split(|&b| b == 0).next().unwrap_or(&[]);
            if u64::from_ne_bytes(*inode) == watch.inode && name != b"." && name != b".." {
                *path = at;
                path.push(b"/").push(name);
                found = is_it(path, watch);
            }
            entries = entries.get(length.max(1)..).unwrap_or(&[]);
        }
        if bytes == 0 || found {
            break;
        }
    }
    let _ = fs::close(fd);
    found
}

/// Makes an instance.
pub fn revive() -> Result<i32, Failure> {
    net::inotify(libc::IN_CLOEXEC).map_err(|e| Failure::new(b"inotify: ").errno(e))
}

/// Adds a watch under the number that it had. Watches come by growing number; those in between are used up, which
/// leaves events that the program is not to see.
pub fn watch(r: &Reviving<'_>, record: &Record<'_>) -> Result<(), Failure> {
    let Record::InotifyWatch { inotify, watch, mask, path } = *record else { return Ok(()) };
    let fd = r.home(inotify);
    let mut at = Path::new();
    at.push(path);
    for _ in 0..FURTHEST {
        let number =
            net::inotify_add(fd, &at, mask).map_err(|e| Failure::about(path).text(b"cannot be watched: ").errno(e))?;
        if number == watch {
            return forget_events(fd);
        }
        let _ = net::inotify_remove(fd, number);
        if number > watch {
            break;
        }
    }
    Err(Failure::about(path).text(b"cannot be watched under the number it had"))
}

fn forget_events(fd: i32) -> Result<(), Failure> {
    let mut events = [0u8; 4096];
    while fs::unread(fd).is_ok_and(|bytes| bytes > 0) {
        fs::read(fd, &mut events).map_err(|e| Failure::new(b"inotify: ").errno(e))?;
    }
    Ok(())
}
