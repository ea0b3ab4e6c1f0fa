//! Reading of /proc files line by line (fdinfo, locks), and the numbers in such lines.
//!
//! [`lines`] works with a buffer of any size that holds the longest line; the fdinfo of an epoll instance with many
//! registrations may be longer than memory that is handed in.

use super::Failure;
use zhuque_sys::Errno;
use zhuque_sys::fs;

/// Calls `each` with every line of the file `path` (relative to `directory`), without its line end. A line longer than
/// `buffer` comes in pieces. An error of `each` ends the reading and is returned.
pub fn lines(
    directory: i32,
    path: &fs::Path,
    buffer: &mut [u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let file = fs::open_at(directory, path, libc::O_RDONLY | libc::O_CLOEXEC, 0)
        .map_err(|e| Failure::about(path.as_bytes()).errno(e))?;
    let result = read_lines(file, buffer, each);
    let _ = fs::close(file);
    match result {
        Ok(done) => done,
        Err(e) => Err(Failure::about(path.as_bytes()).errno(e)),
    }
}

fn read_lines(
    file: i32,
    buffer: &mut [u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Result<(), Failure>, Errno> {
    let mut held = 0;
    loop {
        let room = buffer.get_mut(held..).unwrap_or(&mut []);
        let got = match fs::read(file, room) {
            Ok(got) => got,
            Err(Errno(libc::EINTR)) => continue,
            Err(e) => return Err(e),
        };
        let filled = held + got;
        let mut start = 0;
        while let Some(rest) = buffer.get(start..filled) {
            let Some(length) = rest.iter().position(|&b| b == b'\n') else { break };
            if let Err(failure) = each(rest.get(..length).unwrap_or(&[])) {
                return Ok(Err(failure));
            }
            start += length + 1;
        }
        if got == 0 || (start == 0 && filled == buffer.len()) {
            let rest = buffer.get(start..filled).filter(|rest| !rest.is_empty());
            if let Some(Err(failure)) = rest.map(&mut *each) {
                return Ok(Err(failure));
            }
            if got == 0 {
                return Ok(Ok(()));
            }
            start = filled;
        }
        buffer.copy_within(start..filled, 0);
        held = filled - start;
    }
}

/// The token behind `key` in a line: `field(b"clockid: 1", b"clockid:")` is `1`.
pub fn field<'l>(line: &'l [u8], key: &[u8]) -> Option<&'l [u8]> {
    let at = line.windows(key.len()).position(|window| window == key)?;
    let rest = line.get(at + key.len()..)?.trim_ascii_start();
    let end = rest.iter().position(|b| b.is_ascii_whitespace()).unwrap_or(rest.len());
    rest.get(..end)
}

/// A number in the given base, up to the first character that is no digit; None if there is no digit.
pub fn number(token: &[u8], base: u32) -> Option<u64> {
    let mut value = None;
    for &byte in token {
        let Some(digit) = (byte as char).to_digit(base) else { break };
        value = Some(value.unwrap_or(0u64).wrapping_mul(base as u64).wrapping_add(digit as u64));
    }
    value
}

/// The decimal number behind `key`.
pub fn decimal_field(line: &[u8], key: &[u8]) -> Option<u64> {
    number(field(line, key)?, 10)
}

/// The hexadecimal number behind `key`.
pub fn hex_field(line: &[u8], key: &[u8]) -> Option<u64> {
    number(field(line, key)?, 16)
}

/// A kernel-internal device number (`sdev:` of fdinfo) as st_dev has it.
pub fn device(internal: u64) -> u64 {
    let (major, minor) = (internal >> 20, internal & 0xf_ffff);
    libc::makedev(major as u32, minor as u32)
}
