//! Netlink sockets: their address, and what they have not read.
//!
//! Messages of the kernel cannot be put back into a socket, and a program that waits for a reply would wait for ever. So it
//! is told what netlink(7) has for messages that are lost: ENOBUFS, once. Neighbours: `sockets`, `endpoints`.

use zhuque_sys::Errno;
use zhuque_sys::net;

/// struct nlmsghdr of a request that does nothing (NLMSG_NOOP), and is acknowledged (NLM_F_REQUEST | NLM_F_ACK). Its sequence
/// number is one that nobody uses: for libmnl an answer to number 0 would be one to any request.
const NOTHING: [u8; 16] = [16, 0, 0, 0, 1, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// More acknowledgements than fit into the smallest buffer (SOCK_MIN_RCVBUF in include/net/sock.h).
const MOST: usize = 64;

/// Whether something waits in it, or is still to be asked for: the rest of a list comes as it is read.
pub fn has_unread(fd: i32) -> bool {
    net::poll(fd, libc::POLLIN, 0).is_ok_and(|ready| ready & libc::POLLIN != 0)
}

/// Binds it. The number that the program had may be taken: it is the process id by default.
pub fn bind(fd: i32, local: &[u8]) -> Result<(), Errno> {
    let mut address = [0u8; 12];
    address.iter_mut().zip(local).for_each(|(to, from)| *to = *from);
    match net::bind(fd, &address) {
        Err(Errno(libc::EADDRINUSE)) => {
            address[4..8].fill(0);
            net::bind(fd, &address)
        }
        other => other,
    }
}

/// Lets its buffer run over, by answers of the kernel that nobody needs: the next read gives ENOBUFS. The few that have
/// fit in wait behind that; whoever reads replies passes over them, since they belong to no request of his. A protocol that
/// takes no such requests stays as it is.
pub fn overrun(fd: i32) {
    let before = net::option_number(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap_or(0);
    let resize = |bytes: i32| net::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes.to_ne_bytes());
    if resize(0).is_err() {
        return;
    }
    for _ in 0..MOST {
        let sent = net::send(fd, &NOTHING, libc::MSG_DONTWAIT);
        if sent.is_err() || net::poll(fd, 0, 0).is_ok_and(|ready| ready & libc::POLLERR != 0) {
            break;
        }
    }
    // The kernel doubles what it is told.
    let _ = resize(before / 2);
}
