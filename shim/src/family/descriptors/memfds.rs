//! Memfds that the program may seal, or has sealed: made again as memfds, with the content that `files` has kept.
//!
//! Only those that are not mapped: a mapping and a descriptor must be of one file, and what a resume maps lies in the
//! region. A memfd that cannot be sealed is like any file without a name, and comes back as one. Neighbour: `files`.

use super::placement::Reviving;
use super::{Failure, files};
use zhuque_abi::journal::{Description, MEMFD, Object};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

const F_ADD_SEALS: i32 = 1033;
const F_GET_SEALS: i32 = 1034;
/// What the path of a memfd begins with.
const PREFIX: &[u8] = b"/memfd:";
/// A held memfd is found under this plus the number of its content.
const KEY: u64 = 1 << 61;

/// What is written down of a file without a name as its seals.
pub fn seals(fd: i32, path: &[u8]) -> u32 {
    match fs::fcntl(fd, F_GET_SEALS, 0) {
        Ok(seals) if path.starts_with(PREFIX) && seals as i32 != libc::F_SEAL_SEAL => seals as u32 | MEMFD,
        _ => 0,
    }
}

/// Makes a memfd with the content of `kept` (below the region's directory), or opens it once more.
pub fn revive(r: &mut Reviving<'_>, description: &Description<'_>, kept: &Path, flags: i32) -> Result<i32, Failure> {
    let Object::File { path, seals, kept: name, .. } = description.object else {
        return Err(Failure::new(b"not a memfd"));
    };
    let digits = name.iter().position(u8::is_ascii_digit).and_then(|at| name.get(at..)).unwrap_or(&[]);
    let key = KEY | super::fdinfo::number(digits, 10).unwrap_or(0);
    let failed = |e: Errno| Failure::about(path).errno(e);
    let made = match r.take_held(key) {
        Some((fd, _)) => fd,
        None => {
            let fd = make(r.region_directory, kept, path, seals).map_err(failed)?;
            r.lift(fd)?
        }
    };
    r.hold(key, made, 0)?;
    let mut again = Path::new();
    again.push(b"/proc/thread-self/fd/").push_number(made as u64);
    fs::open_at(libc::AT_FDCWD, &again, flags | libc::O_CLOEXEC, 0).map_err(failed)
}

fn make(region: i32, kept: &Path, path: &[u8], seals: u32) -> Result<i32, Errno> {
    let mut name = Path::new();
    name.push(path.strip_prefix(PREFIX).unwrap_or(path));
    let sealed_against_execution = seals & libc::F_SEAL_EXEC as u32 != 0;
    let kind = if sealed_against_execution { libc::MFD_NOEXEC_SEAL } else { libc::MFD_ALLOW_SEALING };
    let fd = fs::memory_file(&name, kind | libc::MFD_CLOEXEC)?;
    let filled = fill(fd, region, kept).and_then(|()| {
        let seals = seals & !MEMFD;
        if seals == 0 { Ok(0) } else { fs::fcntl(fd, F_ADD_SEALS, seals.into()) }
    });
    if filled.is_err() {
        let _ = fs::close(fd);
    }
    filled.map(|_| fd)
}

fn fill(fd: i32, region: i32, kept: &Path) -> Result<(), Errno> {
    let from = fs::open_at(region, kept, libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    let size = fs::stat_fd(from).map(|stat| stat.st_size as u64);
    let filled = size.and_then(|size| {
        fs::truncate(fd, size)?;
        files::copy_extents(from, fd, size, true)
    });
    let _ = fs::close(from);
    filled
}
