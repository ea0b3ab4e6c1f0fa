//! Short forms of system calls for the scenarios; a failing one panics with errno.
#![allow(clippy::missing_safety_doc)]

use std::ffi::CString;
use std::io::Error;
use std::path::Path;

/// The result, or a panic that names the call.
pub fn ok(result: libc::c_int, what: &str) -> i32 {
    assert!(result >= 0, "{what}: {}", Error::last_os_error());
    result
}

/// errno of the last call.
pub fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap()
}

/// Moves `fd` to the number `to`, with its FD_CLOEXEC.
pub fn at(fd: i32, to: i32) -> i32 {
    if fd != to {
        let flags = if cloexec(fd) { libc::O_CLOEXEC } else { 0 };
        // SAFETY: descriptors are no memory.
        unsafe {
            ok(libc::dup3(fd, to, flags), "dup3");
            libc::close(fd);
        }
    }
    to
}

/// open(2) at the number `to`.
pub fn open(path: &Path, flags: i32, to: i32) -> i32 {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name is zero-terminated.
    at(ok(unsafe { libc::open(name.as_ptr(), flags, 0o644) }, path.to_str().unwrap()), to)
}

/// write(2) of everything.
pub fn write(fd: i32, bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    assert_eq!(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }, bytes.len() as isize, "write {fd}");
}

/// read(2) of up to `most` bytes; errno on failure.
pub fn read(fd: i32, most: usize) -> Result<Vec<u8>, i32> {
    let mut buffer = vec![0u8; most];
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), most) };
    if got < 0 {
        return Err(errno());
    }
    buffer.truncate(got as usize);
    Ok(buffer)
}

/// lseek(2).
pub fn seek(fd: i32, offset: i64, whence: i32) -> i64 {
    // SAFETY: no memory involved.
    unsafe { libc::lseek(fd, offset, whence) }
}

/// F_GETFL.
pub fn flags(fd: i32) -> i32 {
    // SAFETY: no memory involved.
    ok(unsafe { libc::fcntl(fd, libc::F_GETFL) }, "F_GETFL")
}

/// F_SETFL.
pub fn set_flags(fd: i32, flags: i32) {
    // SAFETY: no memory involved.
    ok(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, "F_SETFL");
}

/// Whether FD_CLOEXEC is set.
pub fn cloexec(fd: i32) -> bool {
    // SAFETY: no memory involved.
    ok(unsafe { libc::fcntl(fd, libc::F_GETFD) }, "F_GETFD") & libc::FD_CLOEXEC != 0
}

/// poll(2) of one descriptor.
pub fn poll(fd: i32, events: i16, timeout_ms: i32) -> i16 {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the entry is a local.
    unsafe { libc::poll(&mut entry, 1, timeout_ms) };
    entry.revents
}

/// An integer option.
pub fn option(fd: i32, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0i32, 4u32);
    // SAFETY: the targets are locals.
    ok(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) }, "getsockopt");
    value
}

/// Sets an integer option.
pub fn set_option(fd: i32, level: i32, name: i32, value: i32) {
    // SAFETY: the source is a local.
    ok(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) }, "setsockopt");
}

/// socket(2) at the number `to`.
pub fn socket(domain: i32, kind: i32, protocol: i32, to: i32) -> i32 {
    // SAFETY: no memory involved.
    at(ok(unsafe { libc::socket(domain, kind, protocol) }, "socket"), to)
}

/// socketpair(2) at two numbers.
pub fn pair(kind: i32, one: i32, other: i32) {
    let mut ends = [0i32; 2];
    // SAFETY: the target is a local.
    ok(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, "socketpair");
    let lifted = ends.map(|fd| {
        // SAFETY: descriptors are no memory.
        let high = ok(unsafe { libc::fcntl(fd, libc::F_DUPFD, 500) }, "F_DUPFD");
        at(fd, high)
    });
    at(lifted[0], one);
    at(lifted[1], other);
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: descriptors are no memory.
    ok(unsafe { libc::close(fd) }, "close");
}

/// dup2(2).
pub fn dup(from: i32, to: i32) -> i32 {
    // SAFETY: descriptors are no memory.
    ok(unsafe { libc::dup2(from, to) }, "dup2")
}
