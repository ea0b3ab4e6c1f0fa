//! Pipes and FIFOs.

use super::Scenario;
use super::io::*;
use std::path::Path;

/// The scenarios of this file.
pub const ALL: &[Scenario] = &[
    Scenario { name: "pipes", setup: pipes, verify: verify_pipes },
    Scenario { name: "pipe-packets", setup: packets, verify: verify_packets },
    Scenario { name: "fifo", setup: fifo, verify: verify_fifo },
];

fn pipe(flags: i32, reader: i32, writer: i32) {
    let mut ends = [0i32; 2];
    // SAFETY: the target is a local.
    ok(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) }, "pipe2");
    // SAFETY: descriptors are no memory.
    let high = ends.map(|fd| at(fd, unsafe { libc::fcntl(fd, libc::F_DUPFD, 600) }));
    at(high[0], reader);
    at(high[1], writer);
}

fn pipes(_: &Path, _: &mut crate::stage::Extra) {
    pipe(libc::O_CLOEXEC, 20, 21);
    write(21, b"unread");
    // Full, and larger than usual. The write end comes first.
    pipe(libc::O_NONBLOCK, 23, 22);
    // SAFETY: no memory involved.
    ok(unsafe { libc::fcntl(22, libc::F_SETPIPE_SZ, 1 << 18) }, "F_SETPIPE_SZ");
    let block: Vec<u8> = (0..1 << 18).map(|i| (i % 251) as u8).collect();
    write(22, &block);
    // Only the read end, with data; only the write end.
    pipe(0, 24, 25);
    write(25, b"last words");
    close(25);
    pipe(0, 26, 27);
    close(26);
    // More descriptions of one pipe, and copies of its ends.
    pipe(0, 28, 29);
    open(Path::new("/proc/self/fd/28"), libc::O_RDWR, 30);
    open(Path::new("/proc/self/fd/28"), libc::O_RDONLY | libc::O_NONBLOCK, 31);
    dup(29, 32);
    write(32, b"shared");
}

fn verify_pipes(_: &Path) {
    assert!(cloexec(20) && cloexec(21));
    assert_eq!(read(20, 100).unwrap(), b"unread");
    write(21, b"more");
    assert_eq!(read(20, 100).unwrap(), b"more");
    // SAFETY: no memory involved.
    assert_eq!(unsafe { libc::fcntl(23, libc::F_GETPIPE_SZ) }, 1 << 18);
    assert_eq!(flags(23) & libc::O_NONBLOCK, libc::O_NONBLOCK);
    // SAFETY: the buffer is valid for one byte.
    assert_eq!(unsafe { libc::write(22, b"x".as_ptr().cast(), 1) }, -1, "still full");
    let block = read(23, 1 << 18).unwrap();
    assert_eq!(block.len(), 1 << 18);
    assert!(block.iter().enumerate().all(|(i, &b)| b == (i % 251) as u8));
    assert_eq!(read(23, 1), Err(libc::EAGAIN));
    assert_eq!(read(24, 100).unwrap(), b"last words");
    assert_eq!(read(24, 100).unwrap(), b"", "end of file");
    // SAFETY: the buffer is valid for one byte; the signal is ignored by the runtime.
    assert_eq!(unsafe { libc::write(27, b"x".as_ptr().cast(), 1) }, -1);
    assert_eq!(errno(), libc::EPIPE);
    assert_eq!(read(31, 3).unwrap(), b"sha");
    assert_eq!(read(28, 3).unwrap(), b"red");
    assert_eq!(read(31, 3), Err(libc::EAGAIN));
    write(30, b"abc");
    assert_eq!(read(28, 3).unwrap(), b"abc");
    write(29, b"d");
    assert_eq!(read(30, 3).unwrap(), b"d");
    assert_eq!(flags(30) & libc::O_ACCMODE, libc::O_RDWR);
    assert_eq!(flags(28) & libc::O_NONBLOCK, 0);
}

fn packets(_: &Path, _: &mut crate::stage::Extra) {
    pipe(libc::O_DIRECT, 20, 21);
    for text in ["one", "four", "x"] {
        write(21, text.as_bytes());
    }
}

fn verify_packets(_: &Path) {
    assert!(flags(21) & libc::O_DIRECT != 0);
    for text in ["one", "four", "x"] {
        assert_eq!(read(20, 100).unwrap(), text.as_bytes());
    }
    write(21, b"a");
    write(21, b"b");
    assert_eq!(read(20, 100).unwrap(), b"a");
}

fn fifo(d: &Path, _: &mut crate::stage::Extra) {
    let path = std::ffi::CString::new(d.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is zero-terminated.
    ok(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, "mkfifo");
    open(&d.join("fifo"), libc::O_RDONLY | libc::O_NONBLOCK, 20);
    open(&d.join("fifo"), libc::O_WRONLY, 21);
    set_flags(20, 0);
    write(21, b"in the fifo");
}

fn verify_fifo(_: &Path) {
    assert_eq!(flags(20) & libc::O_NONBLOCK, 0);
    assert_eq!(read(20, 100).unwrap(), b"in the fifo");
    write(21, b"more");
    assert_eq!(read(20, 100).unwrap(), b"more");
    close(21);
    assert_eq!(read(20, 100).unwrap(), b"");
}
