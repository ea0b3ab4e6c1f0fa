//! Files and descriptors.
#![allow(unsafe_code)]

use crate::raw::{Errno, call1, call2, call3, call4, call5, call6, check};

/// A zero-terminated path of bounded length on the stack, for paths put together at run time.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; 4096],
    used: usize,
}

impl Path {
    /// An empty path.
    pub const fn new() -> Self {
        Path { bytes: [0; 4096], used: 0 }
    }

    /// Makes it empty again.
    pub fn clear(&mut self) {
        self.bytes.fill(0);
        self.used = 0;
    }

    /// Adds `part`; what does not fit is cut off, which the kernel then answers with ENOENT or ENAMETOOLONG.
    pub fn push(&mut self, part: &[u8]) -> &mut Self {
        let room = self.bytes.len() - 1 - self.used;
        let take = if part.len() < room { part.len() } else { room };
        self.bytes[self.used..self.used + take].copy_from_slice(&part[..take]);
        self.used += take;
        self
    }

    /// Adds a decimal number.
    pub fn push_number(&mut self, mut value: u64) -> &mut Self {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.push(&digits[at..])
    }

    /// The bytes without the terminating zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Address of the zero-terminated bytes, for a system call.
    pub(crate) fn pointer(&self) -> usize {
        self.bytes.as_ptr() as usize
    }
}

impl Default for Path {
    fn default() -> Self {
        Self::new()
    }
}

/// openat(2) relative to `directory` (AT_FDCWD: the working directory).
pub fn open_at(directory: i32, path: &Path, flags: i32, mode: u32) -> Result<i32, Errno> {
    // SAFETY: the path is zero-terminated and lives through the call.
    check(unsafe {
        call4(libc::SYS_openat as usize, directory as isize as usize, path.pointer(), flags as usize, mode as usize)
    })
    .map(|fd| fd as i32)
}

/// close(2).
pub fn close(fd: i32) -> Result<(), Errno> {
    // SAFETY: descriptors are no memory.
    check(unsafe { call1(libc::SYS_close as usize, fd as isize as usize) }).map(|_| ())
}

/// close_range(2).
pub fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: descriptors are no memory.
    check(unsafe { call3(libc::SYS_close_range as usize, first as usize, last as usize, 0) }).map(|_| ())
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC: those that are open are closed with the next exec.
pub fn close_on_exec(first: u32, last: u32) -> Result<(), Errno> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as usize;
    // SAFETY: descriptors are no memory.
    check(unsafe { call3(libc::SYS_close_range as usize, first as usize, last as usize, flags) }).map(|_| ())
}

/// read(2) into `buffer`.
pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for writing its length.
    check(unsafe { call3(libc::SYS_read as usize, fd as isize as usize, buffer.as_mut_ptr() as usize, buffer.len()) })
}

/// write(2) of `buffer`.
pub fn write(fd: i32, buffer: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for reading its length.
    check(unsafe { call3(libc::SYS_write as usize, fd as isize as usize, buffer.as_ptr() as usize, buffer.len()) })
}

/// Writes all of `buffer` or fails.
pub fn write_all(fd: i32, mut buffer: &[u8]) -> Result<(), Errno> {
    while !buffer.is_empty() {
        match write(fd, buffer) {
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(n) => buffer = &buffer[n..],
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// pread64(2) to memory of the program's.
///
/// # Safety
/// `to` must be valid for writing `bytes` bytes, or memory of the program's.
pub unsafe fn pread_raw(fd: i32, to: u64, bytes: u64, offset: u64) -> Result<usize, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe {
        call4(libc::SYS_pread64 as usize, fd as isize as usize, to as usize, bytes as usize, offset as usize)
    })
}

/// pwritev(2) from `count` pieces of memory: each entry of the vector is an address and a number of bytes.
///
/// # Safety
/// The vector and what it names must be readable.
pub unsafe fn write_vector_at(fd: i32, vector: u64, count: u64, offset: u64) -> Result<usize, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe {
        call4(libc::SYS_pwritev as usize, fd as isize as usize, vector as usize, count as usize, offset as usize)
    })
}

/// lseek(2).
pub fn seek(fd: i32, offset: i64, whence: i32) -> Result<u64, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call3(libc::SYS_lseek as usize, fd as isize as usize, offset as usize, whence as usize) })
        .map(|o| o as u64)
}

/// fstat(2).
pub fn stat_fd(fd: i32) -> Result<libc::stat, Errno> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the target is a local of the kernel's struct stat; all-zero is valid for it.
    unsafe {
        check(call2(libc::SYS_fstat as usize, fd as isize as usize, stat.as_mut_ptr() as usize))?;
        Ok(stat.assume_init())
    }
}

/// newfstatat(2).
pub fn stat_at(directory: i32, path: &Path, flags: i32) -> Result<libc::stat, Errno> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the target is a local of the kernel's struct stat; all-zero is valid for it.
    unsafe {
        check(call4(
            libc::SYS_newfstatat as usize,
            directory as isize as usize,
            path.pointer(),
            stat.as_mut_ptr() as usize,
            flags as usize,
        ))?;
        Ok(stat.assume_init())
    }
}

/// readlink(2); the length.
pub fn read_link(path: &Path, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: path and buffer are valid for their lengths.
    check(unsafe { call3(libc::SYS_readlink as usize, path.pointer(), buffer.as_mut_ptr() as usize, buffer.len()) })
}

/// The text of /proc/self/fd/`fd`; the length.
pub fn descriptor_link(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut path = Path::new();
    path.push(b"/proc/self/fd/").push_number(fd as u64);
    read_link(&path, buffer)
}

/// dup3(2); `cloexec` sets O_CLOEXEC.
pub fn dup_to(from: i32, to: i32, cloexec: bool) -> Result<(), Errno> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: descriptors are no memory.
    check(unsafe { call3(libc::SYS_dup3 as usize, from as isize as usize, to as isize as usize, flags as usize) })
        .map(|_| ())
}

/// fcntl(2) with an integer argument.
pub fn fcntl(fd: i32, command: i32, argument: u64) -> Result<u64, Errno> {
    // SAFETY: used with commands whose argument is an integer only; a pointer would be the kernel's EFAULT at worst
    // for reading commands, and no caller passes one to a writing command.
    check(unsafe { call3(libc::SYS_fcntl as usize, fd as isize as usize, command as usize, argument as usize) })
        .map(|r| r as u64)
}

/// ioctl(2) with a pointer or integer argument.
///
/// # Safety
/// The argument must fit the request.
pub unsafe fn ioctl(fd: i32, request: u64, argument: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, request as usize, argument) })
}

/// getdents64(2) into `buffer`; the bytes.
pub fn read_directory(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    check(unsafe {
        call3(libc::SYS_getdents64 as usize, fd as isize as usize, buffer.as_mut_ptr() as usize, buffer.len())
    })
}

/// Calls `each` with every decimal name in a directory of /proc; `buffer` is scratch space. With `descriptors` the
/// directory is a list of descriptors, in which the listing's own is left out.
pub fn numbers_in(path: &Path, buffer: &mut [u8], descriptors: bool, mut each: impl FnMut(u32)) -> Result<(), Errno> {
    let directory = open_at(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
    let result = loop {
        match read_directory(directory, buffer) {
            Ok(0) => break Ok(()),
            Ok(bytes) => numbers_of_entries(&buffer[..bytes], descriptors.then_some(directory as u32), &mut each),
            Err(error) => break Err(error),
        }
    };
    close(directory)?;
    result
}

/// The entries' names as numbers, but `skip`.
fn numbers_of_entries(entries: &[u8], skip: Option<u32>, each: &mut impl FnMut(u32)) {
    // struct linux_dirent64: inode u64, offset i64, length u16, type u8, name.
    let mut at = 0;
    while let Some(&[low, high]) = entries.get(at + 16..at + 18) {
        let length = u16::from_le_bytes([low, high]) as usize;
        let name = entries.get(at + 19..at + length).unwrap_or(&[]);
        let mut value = 0u32;
        let mut digits = 0;
        for &byte in name.iter().take_while(|&&b| b != 0) {
            if !byte.is_ascii_digit() {
                digits = 0;
                break;
            }
            value = value.wrapping_mul(10).wrapping_add((byte - b'0') as u32);
            digits += 1;
        }
        if digits > 0 && Some(value) != skip {
            each(value);
        }
        if length == 0 {
            break;
        }
        at += length;
    }
}

/// fallocate(2) with FALLOC_FL_PUNCH_HOLE: the range reads zero afterwards and takes no room.
pub fn punch_hole(fd: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
    const PUNCH_HOLE_AND_KEEP_SIZE: usize = 3;
    allocation(fd, PUNCH_HOLE_AND_KEEP_SIZE, offset, bytes)
}

/// fallocate(2). Calls that a signal interrupts go on.
fn allocation(fd: i32, mode: usize, offset: u64, bytes: u64) -> Result<(), Errno> {
    loop {
        // SAFETY: files are no memory by themselves; whoever has the range mapped has asked for what happens to it.
        let done = check(unsafe {
            call4(libc::SYS_fallocate as usize, fd as isize as usize, mode, offset as usize, bytes as usize)
        });
        if done != Err(Errno(libc::EINTR)) {
            return done.map(|_| ());
        }
    }
}

/// fallocate(2): the range has its room, so writing to it cannot fail for want of that. File systems that know no such
/// thing are believed to have it.
pub fn allocate(fd: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
    const KEEP_SIZE: usize = 1;
    match allocation(fd, KEEP_SIZE, offset, bytes) {
        Err(Errno(libc::EOPNOTSUPP)) => Ok(()),
        done => done,
    }
}

/// fstatfs(2): bytes that are free on the file system of `fd`.
pub fn free_bytes(fd: i32) -> Result<u64, Errno> {
    let mut found = core::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the target is a local of the kernel's struct statfs; all-zero is valid for it.
    let found = unsafe {
        check(call2(libc::SYS_fstatfs as usize, fd as isize as usize, found.as_mut_ptr() as usize))?;
        found.assume_init()
    };
    Ok(found.f_bavail.saturating_mul(found.f_bsize as u64))
}

/// ftruncate(2).
pub fn truncate(fd: i32, bytes: u64) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_ftruncate as usize, fd as isize as usize, bytes as usize) }).map(|_| ())
}

/// fdatasync(2).
pub fn sync_data(fd: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call1(libc::SYS_fdatasync as usize, fd as isize as usize) }).map(|_| ())
}

/// chdir(2).
pub fn change_directory(path: &Path) -> Result<(), Errno> {
    // SAFETY: the path is zero-terminated.
    check(unsafe { call1(libc::SYS_chdir as usize, path.pointer()) }).map(|_| ())
}

/// rmdir(2).
pub fn remove_directory(path: &Path) -> Result<(), Errno> {
    // SAFETY: the path is zero-terminated.
    check(unsafe { call1(libc::SYS_rmdir as usize, path.pointer()) }).map(|_| ())
}

/// unlinkat(2).
pub fn unlink_at(directory: i32, path: &Path) -> Result<(), Errno> {
    // SAFETY: the path is zero-terminated.
    check(unsafe { call3(libc::SYS_unlinkat as usize, directory as isize as usize, path.pointer(), 0) }).map(|_| ())
}

/// umask(2); the old mask.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: no memory involved; the call cannot fail.
    unsafe { call1(libc::SYS_umask as usize, mask as usize) as u32 }
}

/// getcwd(2); the length without the zero.
pub fn working_directory(buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    check(unsafe { call2(libc::SYS_getcwd as usize, buffer.as_mut_ptr() as usize, buffer.len()) })
        .map(|n| n.saturating_sub(1))
}

/// kcmp(2) of two descriptors of this process by open file description: equal, or an order.
pub fn compare_descriptions(pid: u32, one: i32, other: i32) -> Result<core::cmp::Ordering, Errno> {
    const KCMP_FILE: usize = 0;
    // SAFETY: no memory involved.
    let raw = check(unsafe {
        call5(libc::SYS_kcmp as usize, pid as usize, pid as usize, KCMP_FILE, one as usize, other as usize)
    })?;
    Ok(match raw {
        0 => core::cmp::Ordering::Equal,
        1 => core::cmp::Ordering::Less,
        _ => core::cmp::Ordering::Greater,
    })
}

/// pipe2(2).
pub fn pipe(flags: i32) -> Result<[i32; 2], Errno> {
    let mut ends = [-1i32; 2];
    // SAFETY: the target is a local.
    check(unsafe { call2(libc::SYS_pipe2 as usize, ends.as_mut_ptr() as usize, flags as usize) })?;
    Ok(ends)
}

/// copy_file_range-like copy is not used: sendfile(2) from `from` at `offset` to `to`'s position.
pub fn send_file(to: i32, from: i32, offset: &mut i64, bytes: usize) -> Result<usize, Errno> {
    // SAFETY: the offset is a local of the caller's.
    check(unsafe {
        call4(
            libc::SYS_sendfile as usize,
            to as isize as usize,
            from as isize as usize,
            offset as *mut i64 as usize,
            bytes,
        )
    })
}

/// linkat(2) of descriptor `from` under a new name, by way of /proc (needs the file to have a link left).
pub fn link_descriptor(from: i32, directory: i32, path: &Path) -> Result<(), Errno> {
    let mut source = Path::new();
    source.push(b"/proc/self/fd/").push_number(from as u64);
    // SAFETY: both paths are zero-terminated.
    check(unsafe {
        call5(
            libc::SYS_linkat as usize,
            libc::AT_FDCWD as isize as usize,
            source.pointer(),
            directory as isize as usize,
            path.pointer(),
            libc::AT_SYMLINK_FOLLOW as usize,
        )
    })
    .map(|_| ())
}

/// preadv2-free positional write of all of `buffer`.
pub fn write_at(fd: i32, buffer: &[u8], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    check(unsafe {
        call6(
            libc::SYS_pwrite64 as usize,
            fd as isize as usize,
            buffer.as_ptr() as usize,
            buffer.len(),
            offset as usize,
            0,
            0,
        )
    })
}

/// fsync(2): unlike fdatasync, the time of modification is written too.
pub fn sync_all(fd: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call1(libc::SYS_fsync as usize, fd as isize as usize) }).map(|_| ())
}

/// utimensat(2): the times of what `fd` names become the present.
pub fn touch(fd: i32) -> Result<(), Errno> {
    // SAFETY: null pointers stand for the file itself and for the present.
    check(unsafe { call4(libc::SYS_utimensat as usize, fd as isize as usize, 0, 0, 0) }).map(|_| ())
}

/// readlinkat(2); the length.
pub fn read_link_at(directory: i32, path: &Path, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: path and buffer are valid for their lengths.
    check(unsafe {
        call4(
            libc::SYS_readlinkat as usize,
            directory as isize as usize,
            path.pointer(),
            buffer.as_mut_ptr() as usize,
            buffer.len(),
        )
    })
}

/// linkat(2) that follows `from` (a name in a /proc directory of descriptors) to the file itself.
pub fn link_at(from_directory: i32, from: &Path, directory: i32, path: &Path) -> Result<(), Errno> {
    // SAFETY: both paths are zero-terminated.
    check(unsafe {
        call5(
            libc::SYS_linkat as usize,
            from_directory as isize as usize,
            from.pointer(),
            directory as isize as usize,
            path.pointer(),
            libc::AT_SYMLINK_FOLLOW as usize,
        )
    })
    .map(|_| ())
}

/// mkdirat(2).
pub fn make_directory(directory: i32, path: &Path, mode: u32) -> Result<(), Errno> {
    // SAFETY: the path is zero-terminated.
    check(unsafe { call3(libc::SYS_mkdirat as usize, directory as isize as usize, path.pointer(), mode as usize) })
        .map(|_| ())
}

/// fchmodat(2) and fchownat(2) of a name that is not followed if it is a symbolic link's; for sockets.
pub fn set_ownership(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), Errno> {
    let at = libc::AT_FDCWD as isize as usize;
    let no_follow = libc::AT_SYMLINK_NOFOLLOW as usize;
    // SAFETY: the path is zero-terminated.
    check(unsafe { call5(libc::SYS_fchownat as usize, at, path.pointer(), uid as usize, gid as usize, no_follow) })?;
    // SAFETY: the path is zero-terminated.
    check(unsafe { call3(libc::SYS_fchmodat as usize, at, path.pointer(), mode as usize) }).map(|_| ())
}

/// fchmodat(2).
pub fn change_mode(path: &Path, mode: u32) -> Result<(), Errno> {
    let at = libc::AT_FDCWD as isize as usize;
    // SAFETY: the path is zero-terminated.
    check(unsafe { call3(libc::SYS_fchmodat as usize, at, path.pointer(), mode as usize) }).map(|_| ())
}

/// fchmod(2).
pub fn change_mode_fd(fd: i32, mode: u32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_fchmod as usize, fd as isize as usize, mode as usize) }).map(|_| ())
}

/// memfd_create(2).
pub fn memory_file(name: &Path, flags: u32) -> Result<i32, Errno> {
    // SAFETY: the name is zero-terminated.
    check(unsafe { call2(libc::SYS_memfd_create as usize, name.pointer(), flags as usize) }).map(|fd| fd as i32)
}

/// ioctl(FICLONE): the content of `from` without copying, where the file system can.
pub fn clone_content(to: i32, from: i32) -> Result<(), Errno> {
    const FICLONE: usize = 0x4004_9409;
    // SAFETY: the argument is a descriptor.
    check(unsafe { call3(libc::SYS_ioctl as usize, to as isize as usize, FICLONE, from as isize as usize) }).map(|_| ())
}

/// tee(2): copies up to `bytes` of what lies in the pipe `from` to the pipe `to`, without waiting.
pub fn tee(from: i32, to: i32, bytes: usize) -> Result<usize, Errno> {
    // SAFETY: no memory involved.
    check(unsafe {
        call4(
            libc::SYS_tee as usize,
            from as isize as usize,
            to as isize as usize,
            bytes,
            libc::SPLICE_F_NONBLOCK as usize,
        )
    })
}

/// ioctl(2) that reads into a local of `N` bytes: terminal settings, window sizes, byte counts. `request` must be one
/// whose answer has exactly that size, which each caller says.
pub(crate) fn ioctl_read<const N: usize>(fd: i32, request: usize) -> Result<[u8; N], Errno> {
    let mut answer = [0u8; N];
    // SAFETY: the target is a local of the size that the request writes.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, request, answer.as_mut_ptr() as usize) })?;
    Ok(answer)
}

/// ioctl(FIONREAD): bytes that can be read.
pub fn unread(fd: i32) -> Result<u32, Errno> {
    ioctl_read::<4>(fd, 0x541b).map(u32::from_ne_bytes)
}

/// fcntl(F_GETOWN_EX): who gets the descriptor's signals, as type and id.
pub fn owner(fd: i32) -> Result<[i32; 2], Errno> {
    let mut owner = [0i32; 2];
    // SAFETY: the target is a local, struct f_owner_ex.
    check(unsafe { call3(libc::SYS_fcntl as usize, fd as isize as usize, 16, owner.as_mut_ptr() as usize) })?;
    Ok(owner)
}

/// fcntl(F_SETOWN_EX).
pub fn set_owner(fd: i32, owner: [i32; 2]) -> Result<(), Errno> {
    // SAFETY: the source is a local, struct f_owner_ex.
    check(unsafe { call3(libc::SYS_fcntl as usize, fd as isize as usize, 15, owner.as_ptr() as usize) }).map(|_| ())
}

/// flock(2).
pub fn flock(fd: i32, operation: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_flock as usize, fd as isize as usize, operation as usize) }).map(|_| ())
}

/// fcntl(F_SETLK or F_OFD_SETLK) of a range; `bytes` 0: to the end.
pub fn lock_range(fd: i32, command: i32, kind: i32, start: u64, bytes: u64) -> Result<(), Errno> {
    let lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: bytes as i64,
        l_pid: 0,
    };
    // SAFETY: the source is a local.
    check(unsafe {
        call3(libc::SYS_fcntl as usize, fd as isize as usize, command as usize, &lock as *const _ as usize)
    })
    .map(|_| ())
}

/// open_by_handle_at(2): an O_PATH descriptor of the file that a handle names.
pub fn open_handle(mount: i32, kind: i32, handle: &[u8]) -> Result<i32, Errno> {
    // struct file_handle: bytes, type, handle.
    let mut whole = [0u8; 8 + 128];
    let bytes = handle.len().min(128);
    whole[0..4].copy_from_slice(&(bytes as u32).to_ne_bytes());
    whole[4..8].copy_from_slice(&kind.to_ne_bytes());
    whole[8..8 + bytes].copy_from_slice(&handle[..bytes]);
    // SAFETY: the handle is a local that says its own length.
    check(unsafe {
        call3(
            libc::SYS_open_by_handle_at as usize,
            mount as isize as usize,
            whole.as_ptr() as usize,
            (libc::O_PATH | libc::O_CLOEXEC) as usize,
        )
    })
    .map(|fd| fd as i32)
}
