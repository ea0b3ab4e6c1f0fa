//! Whether a file may be executed in the region: it must load the shim, so it must be a dynamically linked x86-64
//! program (or a script of one) without privileges of its own. Anything else would run on unprotected, in silence.

use zhuque_sys::{Errno, fs};

/// Interpreters of interpreters that are followed, as in the kernel (BINPRM_MAX_RECURSION).
const DEPTH: usize = 5;
const PT_INTERP: u32 = 3;
const EM_X86_64: u16 = 62;

/// Why a file is refused.
pub enum Refusal {
    /// No interpreter: the shim cannot be loaded.
    Static,
    /// Another architecture.
    Foreign,
    /// Set-user-ID or set-group-ID: LD_PRELOAD is ignored.
    Privileged,
}

impl Refusal {
    /// For the message.
    pub fn why(&self) -> &'static [u8] {
        match self {
            Refusal::Static => b"it is linked statically, so zhuque could not go with it",
            Refusal::Foreign => b"it is for another architecture, so zhuque could not go with it",
            Refusal::Privileged => b"it gains privileges, so zhuque could not go with it",
        }
    }
}

/// Looks at the file that an exec names, and follows scripts to their interpreters. What cannot be read is left to the
/// kernel's judgement. One page and one path on the gate's stack, however deep it goes.
#[inline(never)]
pub fn check(directory: i32, path: &fs::Path, flags: i32) -> Result<(), Refusal> {
    let mut page = [0u8; 4096];
    let open = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mut fd = if path.as_bytes().is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        fs::fcntl(directory, libc::F_DUPFD_CLOEXEC, 0).map(|fd| fd as i32)
    } else {
        fs::open_at(directory, path, open, 0)
    };
    let mut interpreter = fs::Path::new();
    for _ in 0..=DEPTH {
        let Ok(file) = fd else { return Ok(()) };
        let found = look(file, &mut page);
        let _ = fs::close(file);
        let Some(name) = found? else { return Ok(()) };
        interpreter.clear();
        interpreter.push(name);
        fd = fs::open_at(libc::AT_FDCWD, &interpreter, open, 0);
    }
    if let Ok(file) = fd {
        let _ = fs::close(file);
    }
    Ok(())
}

/// Looks at an open file: the name of its interpreter, if it is a script.
fn look(fd: i32, page: &mut [u8; 4096]) -> Result<Option<&[u8]>, Refusal> {
    let Ok(stat) = fs::stat_fd(fd) else { return Ok(None) };
    if stat.st_mode & (libc::S_ISUID | libc::S_ISGID) != 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
        return Err(Refusal::Privileged);
    }
    let Ok(used) = read_at(fd, page, 0) else { return Ok(None) };
    if page.get(..used).unwrap_or(&[]).starts_with(b"#!") {
        let line = page.get(2..used).unwrap_or(&[]);
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or(&[]).trim_ascii_start();
        let name = line.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or(&[]);
        return Ok((!name.is_empty()).then_some(name));
    }
    let start = page.get(..used).unwrap_or(&[]);
    if !start.starts_with(b"\x7fELF") {
        // The kernel answers with ENOEXEC.
        return Ok(None);
    }
    if start.get(4) != Some(&2) || half(start, 18) != Some(EM_X86_64) {
        return Err(Refusal::Foreign);
    }
    let (offset, size, count) = (long(start, 32), half(start, 54), half(start, 56));
    let (Some(offset), Some(size), Some(count)) = (offset, size, count) else { return Ok(None) };
    let Ok(used) = read_at(fd, page, offset) else { return Ok(None) };
    let headers = page.get(..used).unwrap_or(&[]);
    let interpreted = (0..usize::from(count)).any(|index| word(headers, index * usize::from(size)) == Some(PT_INTERP));
    if interpreted { Ok(None) } else { Err(Refusal::Static) }
}

fn read_at(fd: i32, page: &mut [u8; 4096], offset: u64) -> Result<usize, Errno> {
    fs::seek(fd, offset as i64, libc::SEEK_SET)?;
    fs::read(fd, page)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
