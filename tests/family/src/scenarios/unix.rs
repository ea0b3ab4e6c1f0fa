//! Unix sockets.

use super::Scenario;
use super::io::*;
use super::sockets::check_reset;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

/// The scenarios of this file.
pub const ALL: &[Scenario] = &[
    Scenario { name: "unix-listen", setup: listen, verify: verify_listen },
    Scenario { name: "unix-pairs", setup: pairs, verify: verify_pairs },
    Scenario { name: "unix-many", setup: many, verify: verify_many },
    Scenario { name: "unix-outside", setup: outside, verify: verify_outside },
    Scenario { name: "unix-datagram", setup: datagram, verify: verify_datagram },
    Scenario { name: "unix-in-flight", setup: in_flight, verify: |_| {} },
];

fn listen(d: &Path, _: &mut crate::stage::Extra) {
    let path = d.join("socket");
    at(UnixListener::bind(&path).unwrap().into_raw_fd(), 20);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    // SAFETY: no memory involved.
    ok(unsafe { libc::listen(20, 9) }, "listen");
    socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, 21);
    let name = format!("\0zhuque-{}", std::process::id());
    std::fs::write(d.join("abstract"), &name).unwrap();
    let mut address = vec![libc::AF_UNIX as u8, 0];
    address.extend_from_slice(name.as_bytes());
    // SAFETY: the address is valid for its length.
    ok(unsafe { libc::bind(21, address.as_ptr().cast(), address.len() as u32) }, "bind");
    // SAFETY: no memory involved.
    ok(unsafe { libc::listen(21, 3) }, "listen");
    // Bound, and its file removed by the program.
    at(UnixListener::bind(d.join("removed")).unwrap().into_raw_fd(), 22);
    std::fs::remove_file(d.join("removed")).unwrap();
    socket(libc::AF_UNIX, libc::SOCK_STREAM, 0, 23);
}

fn verify_listen(d: &Path) {
    use std::io::{Read, Write};
    let path = d.join("socket");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let mut client = UnixStream::connect(&path).unwrap();
    // SAFETY: no address is asked for.
    let server = ok(unsafe { libc::accept(20, std::ptr::null_mut(), std::ptr::null_mut()) }, "accept");
    write(server, b"hello");
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).unwrap();
    client.write_all(b"x").unwrap();
    assert!(option(21, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == 1);
    assert!(
        std::fs::read_to_string("/proc/net/unix")
            .unwrap()
            .contains(&std::fs::read_to_string(d.join("abstract")).unwrap().replace('\0', "@"))
    );
    assert!(option(22, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == 1);
    assert!(!d.join("removed").exists());
}

fn pairs(_: &Path, _: &mut crate::stage::Extra) {
    pair(libc::SOCK_STREAM, 20, 21);
    write(20, b"to 21");
    write(21, b"to");
    write(21, b" 20");
    set_option(20, libc::SOL_SOCKET, libc::SO_SNDBUF, 30_000);
    set_flags(21, libc::O_NONBLOCK);
    pair(libc::SOCK_DGRAM, 22, 23);
    write(22, b"one");
    write(22, b"three");
    pair(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 24, 25);
    write(25, b"packet");
    write(25, b"another");
    // Full.
    pair(libc::SOCK_STREAM, 26, 27);
    set_flags(26, libc::O_NONBLOCK);
    let mut total = 0;
    // SAFETY: the buffer is valid for its length.
    while let sent @ 1.. = unsafe { libc::write(26, [7u8; 1000].as_ptr().cast(), 1000) } {
        total += sent;
    }
    assert!(total > 10_000);
    // One direction shut down after data.
    pair(libc::SOCK_STREAM, 28, 29);
    write(28, b"final");
    // SAFETY: no memory involved.
    ok(unsafe { libc::shutdown(28, libc::SHUT_WR) }, "shutdown");
    // The other end closed, with data.
    pair(libc::SOCK_STREAM, 30, 31);
    write(31, b"bye");
    close(31);
}

fn verify_pairs(_: &Path) {
    assert_eq!(read(21, 100).unwrap(), b"to 21");
    assert_eq!(read(20, 100).unwrap(), b"to 20");
    assert_eq!(read(21, 100), Err(libc::EAGAIN));
    assert_eq!(option(20, libc::SOL_SOCKET, libc::SO_SNDBUF), 60_000);
    assert_eq!(read(23, 100).unwrap(), b"one");
    assert_eq!(read(23, 100).unwrap(), b"three");
    assert!(cloexec(24));
    assert_eq!(read(24, 100).unwrap(), b"packet");
    assert_eq!(read(24, 100).unwrap(), b"another");
    write(24, b"back");
    assert_eq!(read(25, 100).unwrap(), b"back");
    let mut total = 0;
    set_flags(27, libc::O_NONBLOCK);
    while let Ok(part) = read(27, 65536) {
        assert!(part.iter().all(|&b| b == 7));
        total += part.len();
    }
    assert!(total > 10_000 && total % 1000 == 0);
    assert_eq!(read(29, 100).unwrap(), b"final");
    assert_eq!(read(29, 100).unwrap(), b"", "shut down");
    write(29, b"still");
    assert_eq!(read(28, 100).unwrap(), b"still");
    assert_eq!(read(30, 100).unwrap(), b"bye");
    assert_eq!(read(30, 100).unwrap(), b"", "closed");
}

fn many(_: &Path, _: &mut crate::stage::Extra) {
    for index in 0..400 {
        pair(libc::SOCK_STREAM, 1000 + index * 2, 1001 + index * 2);
        write(1000 + index * 2, &index.to_ne_bytes());
    }
}

fn verify_many(_: &Path) {
    for index in 0..400 {
        assert_eq!(read(1001 + index * 2, 10).unwrap(), index.to_ne_bytes());
    }
}

/// Connected to the test's listener.
fn outside(_: &Path, _: &mut crate::stage::Extra) {
    let path = std::env::var("PEER_PATH").unwrap();
    at(UnixStream::connect(path).unwrap().into_raw_fd(), 20);
}

fn verify_outside(_: &Path) {
    check_reset(20);
}

fn datagram(d: &Path, _: &mut crate::stage::Extra) {
    // The connected one has the lower number and may be made first.
    at(UnixDatagram::bind(d.join("datagram")).unwrap().into_raw_fd(), 30);
    let connected = UnixDatagram::unbound().unwrap();
    connected.connect(d.join("datagram")).unwrap();
    at(connected.into_raw_fd(), 20);
    let absent = UnixDatagram::bind(d.join("absent")).unwrap();
    let lost = UnixDatagram::unbound().unwrap();
    lost.connect(d.join("absent")).unwrap();
    at(lost.into_raw_fd(), 21);
    drop(absent);
}

fn verify_datagram(_: &Path) {
    write(20, b"message");
    assert_eq!(read(30, 100).unwrap(), b"message");
}

fn in_flight(_: &Path, _: &mut crate::stage::Extra) {
    pair(libc::SOCK_STREAM, 20, 21);
    let mut control = [0u64; 3];
    let mut byte = *b"x";
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: an all-zero header is valid; everything that it points to lives through the call.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let message = libc::CMSG_FIRSTHDR(&header);
        (*message).cmsg_level = libc::SOL_SOCKET;
        (*message).cmsg_type = libc::SCM_RIGHTS;
        (*message).cmsg_len = libc::CMSG_LEN(4) as usize;
        *libc::CMSG_DATA(message).cast::<i32>() = 0;
        assert_eq!(libc::sendmsg(20, &header, 0), 1);
    }
}
