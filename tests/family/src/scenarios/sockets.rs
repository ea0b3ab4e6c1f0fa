//! Internet and netlink sockets.

use super::Scenario;
use super::io::*;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[Scenario] = &[
    Scenario { name: "tcp-listen", setup: listen, verify: verify_listen },
    Scenario { name: "tcp-reset", setup: reset, verify: verify_reset },
    Scenario { name: "tcp-states", setup: states, verify: verify_states },
    Scenario { name: "tcp-many", setup: many, verify: verify_many },
    Scenario { name: "udp", setup: udp, verify: verify_udp },
    Scenario { name: "netlink", setup: netlink, verify: verify_netlink },
];

const TCP: i32 = libc::IPPROTO_TCP;
const SOCKET: i32 = libc::SOL_SOCKET;

fn note(d: &Path, name: &str, port: u16) {
    std::fs::write(d.join(name), port.to_string()).unwrap();
}

fn noted(d: &Path, name: &str) -> u16 {
    std::fs::read_to_string(d.join(name)).unwrap().parse().unwrap()
}

fn listen(d: &Path, _: &mut crate::stage::Extra) {
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    note(d, "four", four.local_addr().unwrap().port());
    // A connection that the program closed stays in TIME_WAIT on the port.
    let client = TcpStream::connect(four.local_addr().unwrap()).unwrap();
    drop(four.accept().unwrap());
    drop(client);
    at(four.into_raw_fd(), 20);
    set_option(20, SOCKET, libc::SO_REUSEADDR, 0);
    set_option(20, SOCKET, libc::SO_RCVBUF, 50_000);
    set_option(20, SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(20, TCP, libc::TCP_NODELAY, 1);
    set_option(20, TCP, libc::TCP_KEEPIDLE, 33);
    set_option(20, TCP, libc::TCP_DEFER_ACCEPT, 5);
    set_option(20, libc::IPPROTO_IP, libc::IP_TTL, 44);
    let times = [3i64, 250_000];
    // SAFETY: the source is a local, struct timeval.
    ok(unsafe { libc::setsockopt(20, SOCKET, libc::SO_RCVTIMEO, times.as_ptr().cast(), 16) }, "SO_RCVTIMEO");
    // SAFETY: no memory involved.
    ok(unsafe { libc::listen(20, 17) }, "listen");
    set_flags(20, libc::O_NONBLOCK);
    // IPv6 on all addresses, not for IPv4, and both on one port by SO_REUSEPORT.
    for fd in [21, 22] {
        socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fd);
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
        set_option(fd, SOCKET, libc::SO_REUSEPORT, 1);
        let mut address = [0u8; 28];
        address[0] = libc::AF_INET6 as u8;
        if fd == 22 {
            address[2..4].copy_from_slice(&noted(d, "six").to_be_bytes());
        }
        // SAFETY: the address is valid for its length.
        ok(unsafe { libc::bind(fd, address.as_ptr().cast(), 28) }, "bind");
        // SAFETY: no memory involved.
        ok(unsafe { libc::listen(fd, 5) }, "listen");
        note(d, "six", local_port(fd));
    }
    // Bound, not listening; neither.
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = bound.local_addr().unwrap().port();
    drop(bound);
    socket(libc::AF_INET, libc::SOCK_STREAM, 0, 23);
    bind4(23, port);
    note(d, "bound", port);
    socket(libc::AF_INET, libc::SOCK_STREAM, 0, 24);
    set_option(24, TCP, libc::TCP_NODELAY, 1);
}

fn bind4(fd: i32, port: u16) {
    let mut address = [0u8; 16];
    address[0] = libc::AF_INET as u8;
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    // SAFETY: the address is valid for its length.
    ok(unsafe { libc::bind(fd, address.as_ptr().cast(), 16) }, "bind");
}

fn local_port(fd: i32) -> u16 {
    let (mut address, mut length) = ([0u8; 28], 28u32);
    // SAFETY: the targets are locals.
    ok(unsafe { libc::getsockname(fd, address.as_mut_ptr().cast(), &mut length) }, "getsockname");
    u16::from_be_bytes([address[2], address[3]])
}

fn verify_listen(d: &Path) {
    assert_eq!(option(20, SOCKET, libc::SO_REUSEADDR), 0);
    assert_eq!(option(20, SOCKET, libc::SO_RCVBUF), 100_000);
    assert_eq!(option(20, SOCKET, libc::SO_KEEPALIVE), 1);
    assert_eq!(option(20, TCP, libc::TCP_NODELAY), 1);
    assert_eq!(option(20, TCP, libc::TCP_KEEPIDLE), 33);
    assert!(option(20, TCP, libc::TCP_DEFER_ACCEPT) >= 5);
    assert_eq!(option(20, libc::IPPROTO_IP, libc::IP_TTL), 44);
    assert_eq!(option(24, TCP, libc::TCP_NODELAY), 1);
    let (mut times, mut length) = ([0i64; 2], 16u32);
    // SAFETY: the targets are locals.
    unsafe { libc::getsockopt(20, SOCKET, libc::SO_RCVTIMEO, times.as_mut_ptr().cast(), &mut length) };
    assert!(times[0] == 3 && times[1] >= 249_000, "{times:?}");
    let mut info = [0u8; 32];
    let mut length = 32u32;
    // SAFETY: the targets are locals.
    unsafe { libc::getsockopt(20, TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length) };
    assert_eq!(u32::from_ne_bytes(info[28..32].try_into().unwrap()), 17, "backlog");
    // SAFETY: the descriptor is this listener.
    let four = unsafe { TcpListener::from_raw_fd(20) };
    four.set_nonblocking(false).unwrap();
    set_option(20, TCP, libc::TCP_DEFER_ACCEPT, 0);
    // What this connection leaves behind must not block the port for the next resume.
    set_option(20, SOCKET, libc::SO_REUSEADDR, 1);
    let mut client = TcpStream::connect(("127.0.0.1", noted(d, "four"))).unwrap();
    let (mut server, _) = four.accept().unwrap();
    use std::io::{Read, Write};
    server.write_all(b"hello").unwrap();
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
    assert!(cloexec(21));
    let port = noted(d, "six");
    assert_eq!((local_port(21), local_port(22)), (port, port));
    TcpStream::connect(("::1", port)).unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "V6ONLY");
    assert_eq!(local_port(23), noted(d, "bound"));
    assert_eq!(local_port(24), 0);
}

/// Connected to the test's listener; the test sees a reset when this process ends.
fn reset(_: &Path, _: &mut crate::stage::Extra) {
    let port: u16 = std::env::var("PEER").unwrap().parse().unwrap();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(read_some(&client), b"unread data");
    at(client.into_raw_fd(), 20);
    set_flags(20, libc::O_NONBLOCK);
    at(TcpStream::connect(("::ffff:127.0.0.1", port)).unwrap().into_raw_fd(), 21);
    at(TcpStream::connect(("127.0.0.1", port)).unwrap().into_raw_fd(), 22);
    for fd in [21, 22] {
        // The peer may be slow: its data is there, and stays unread.
        assert!(poll(fd, libc::POLLIN, 10_000) & libc::POLLIN != 0);
    }
    // SAFETY: no memory involved.
    at(ok(unsafe { libc::epoll_create1(0) }, "epoll"), 23);
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 20 };
    // SAFETY: the event is a local.
    ok(unsafe { libc::epoll_ctl(23, libc::EPOLL_CTL_ADD, 20, &mut event) }, "epoll_ctl");
}

fn read_some(stream: &TcpStream) -> Vec<u8> {
    use std::io::Read;
    let mut buffer = [0; 64];
    let mut stream = stream;
    let got = stream.read(&mut buffer).unwrap();
    buffer[..got].to_vec()
}

/// What a program finds in place of an established connection.
pub fn check_reset(fd: i32) {
    let ready = poll(fd, libc::POLLIN | libc::POLLOUT, 0);
    assert!(ready & libc::POLLHUP != 0 && ready & libc::POLLIN != 0, "{fd}: {ready:x}");
    assert_eq!(read(fd, 10), Err(libc::ECONNRESET), "{fd}");
    assert_eq!(read(fd, 10).unwrap(), b"", "{fd}");
    for _ in 0..2 {
        // SAFETY: the buffer is valid for one byte.
        assert_eq!(unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }, -1, "{fd}");
        assert_eq!(errno(), libc::EPIPE, "{fd}");
    }
}

fn verify_reset(_: &Path) {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the target is a local.
    assert_eq!(unsafe { libc::epoll_wait(23, &mut event, 1, 0) }, 1);
    let events = event.events;
    assert!(events & libc::EPOLLHUP as u32 != 0);
    assert_eq!(flags(20) & libc::O_NONBLOCK, libc::O_NONBLOCK);
    assert_eq!(flags(22) & libc::O_NONBLOCK, 0);
    assert_eq!(option(20, SOCKET, libc::SO_DOMAIN), libc::AF_INET);
    assert_eq!(option(21, SOCKET, libc::SO_DOMAIN), libc::AF_INET6);
    assert_eq!(option(21, SOCKET, libc::SO_TYPE), libc::SOCK_STREAM);
    assert_eq!(option(21, SOCKET, libc::SO_PROTOCOL), libc::IPPROTO_TCP);
    for fd in [20, 21, 22] {
        check_reset(fd);
    }
}

/// A connection that its peer has closed, one that has been read to its reset, one under way.
fn states(_: &Path, _: &mut crate::stage::Extra) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    drop(listener.accept().unwrap());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(read_some(&client), b"");
    at(client.into_raw_fd(), 20);
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    let linger = [1i32, 0];
    let server = server.into_raw_fd();
    // SAFETY: the source is a local.
    unsafe { libc::setsockopt(server, SOCKET, libc::SO_LINGER, linger.as_ptr().cast(), 8) };
    close(server);
    std::thread::sleep(Duration::from_millis(20));
    at(client.into_raw_fd(), 21);
    assert_eq!(read(21, 1), Err(libc::ECONNRESET));
    // Nobody answers at this address (TEST-NET-1), if anybody can be asked at all.
    socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0, 22);
    let mut target = [0u8; 16];
    target[0] = libc::AF_INET as u8;
    target[2..8].copy_from_slice(&[0, 9, 192, 0, 2, 1]);
    // SAFETY: the address is valid for its length.
    unsafe { libc::connect(22, target.as_ptr().cast(), 16) };
    // A listener's queue is not empty.
    std::mem::forget(TcpStream::connect(address).unwrap());
    at(listener.into_raw_fd(), 23);
}

fn verify_states(_: &Path) {
    check_reset(20);
    assert_eq!(read(21, 1).unwrap(), b"", "the reset has been seen already");
    if poll(22, libc::POLLIN, 0) & libc::POLLERR != 0 {
        check_reset(22);
    }
    assert_eq!(option(23, SOCKET, libc::SO_ACCEPTCONN), 1);
}

fn many(_: &Path, _: &mut crate::stage::Extra) {
    let port: u16 = std::env::var("PEER").unwrap().parse().unwrap();
    for index in 0..1000 {
        at(TcpStream::connect(("127.0.0.1", port)).unwrap().into_raw_fd(), 20 + index);
    }
}

fn verify_many(_: &Path) {
    for fd in 20..1020 {
        check_reset(fd);
    }
}

fn udp(d: &Path, _: &mut crate::stage::Extra) {
    let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
    bound.set_broadcast(true).unwrap();
    let port = bound.local_addr().unwrap().port();
    note(d, "udp", port);
    at(bound.into_raw_fd(), 20);
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(("127.0.0.1", port)).unwrap();
    note(d, "from", connected.local_addr().unwrap().port());
    at(connected.into_raw_fd(), 21);
    socket(libc::AF_INET6, libc::SOCK_DGRAM, 0, 22);
    set_option(22, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
}

fn verify_udp(d: &Path) {
    assert_eq!((local_port(20), local_port(21)), (noted(d, "udp"), noted(d, "from")));
    assert_eq!(option(20, SOCKET, libc::SO_BROADCAST), 1);
    write(21, b"datagram");
    assert_eq!(read(20, 100).unwrap(), b"datagram");
    assert_eq!(option(22, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), 1);
    assert_eq!(local_port(22), 0);
}

fn netlink(_: &Path, _: &mut crate::stage::Extra) {
    socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE, 20);
    let mut address = [0u8; 12];
    address[0] = libc::AF_NETLINK as u8;
    // RTMGRP_LINK.
    address[8] = 1;
    // SAFETY: the address is valid for its length.
    ok(unsafe { libc::bind(20, address.as_ptr().cast(), 12) }, "bind");
}

fn verify_netlink(_: &Path) {
    let (mut address, mut length) = ([0u8; 12], 12u32);
    // SAFETY: the targets are locals.
    ok(unsafe { libc::getsockname(20, address.as_mut_ptr().cast(), &mut length) }, "getsockname");
    assert_eq!(address[8], 1);
    assert_eq!(option(20, SOCKET, libc::SO_PROTOCOL), libc::NETLINK_ROUTE);
}
