//! /proc/self/smaps, parsed without allocation.

use zhuque_sys::{Errno, fs};

/// One mapping as the kernel reports it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// PROT_*.
    pub prot: u64,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device, as stat(2) has it; of some file systems (overlay, btrfs) another one than stat tells.
    pub device: u64,
    /// Inode, 0: no file.
    pub inode: u64,
    /// Path or `[name]`, may be empty.
    pub name: &'a [u8],
    /// It has private pages of its own: written to at some time.
    pub dirty: bool,
}

/// Reads a whole file of /proc into `buffer`; the part used.
pub fn read_whole<'a>(path: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let mut name = fs::Path::new();
    name.push(path);
    let file = fs::open_at(libc::AT_FDCWD, &name, libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    let mut used = 0;
    let result = loop {
        let Some(room) = buffer.get_mut(used..).filter(|room| !room.is_empty()) else {
            break Err(Errno(libc::E2BIG));
        };
        match fs::read(file, room) {
            Ok(0) => break Ok(()),
            Ok(n) => used += n,
            Err(e) => break Err(e),
        }
    };
    fs::close(file)?;
    result.map(|()| &buffer[..used])
}

/// The mappings in the text of a smaps file.
pub fn entries(text: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut lines = text.split(|&byte| byte == b'\n').peekable();
    core::iter::from_fn(move || {
        let mut entry = loop {
            if let Some(entry) = header(lines.next()?) {
                break entry;
            }
        };
        while let Some(line) = lines.peek() {
            if header(line).is_some() {
                break;
            }
            if let Some(value) = line.strip_prefix(b"Anonymous:") {
                entry.dirty = number(value.trim_ascii(), 10).is_some_and(|(kilobytes, _)| kilobytes > 0);
            }
            lines.next();
        }
        Some(entry)
    })
}

/// `start-end perms offset dev inode name`.
fn header(line: &[u8]) -> Option<Entry<'_>> {
    let (start, rest) = number(line, 16)?;
    let (end, rest) = number(rest.strip_prefix(b"-")?, 16)?;
    let rest = rest.strip_prefix(b" ")?;
    let (permissions, rest) = rest.split_at_checked(4)?;
    let (offset, rest) = number(rest.strip_prefix(b" ")?, 16)?;
    let (major, rest) = number(rest.strip_prefix(b" ")?, 16)?;
    let (minor, rest) = number(rest.strip_prefix(b":")?, 16)?;
    let (inode, rest) = number(rest.strip_prefix(b" ")?, 10)?;
    let bit = |index: usize, letter: u8, value: u64| if permissions.get(index) == Some(&letter) { value } else { 0 };
    Some(Entry {
        start,
        end,
        prot: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
        shared: permissions.get(3) == Some(&b's'),
        offset,
        device: libc::makedev(major as u32, minor as u32),
        inode,
        name: rest.trim_ascii(),
        dirty: false,
    })
}

/// A number at the start of `text`, and the rest.
pub fn number(text: &[u8], base: u32) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    let mut used = 0;
    for &byte in text {
        let Some(digit) = (byte as char).to_digit(base) else { break };
        value = value.wrapping_mul(u64::from(base)).wrapping_add(u64::from(digit));
        used += 1;
    }
    (used > 0).then(|| (value, &text[used..]))
}
