//! Options of sockets: which there are, and how they are written down.
//!
//! Only what differs from a fresh socket of the same kind is recorded, as level, name, length (u32 each, little
//! endian) and value. Four things that are no options are recorded in the same form, with the level [`OURS`].

use super::sockets::Kind;
use zhuque_abi::codec::checksum;
use zhuque_sys::net;

/// Level of what is recorded like an option but is none.
pub const OURS: u32 = 0x7a71_0000;
/// Of a stream: bit 0, no more receiving; bit 1, no more sending (u32).
pub const SHUTDOWN: u32 = 1;
/// Of a socket bound to a path: mode, uid and gid of the file (u32 each).
pub const SOCKET_FILE: u32 = 2;
/// Of a netlink socket: messages that were not read are lost (empty).
pub const LOST: u32 = 3;
/// Of a stream that was connected or had failed to: the program had not been told (empty).
pub const UNTOLD: u32 = 4;

const SOCKET: i32 = libc::SOL_SOCKET;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_BUF_LOCK: i32 = 72;

/// For which sockets an option exists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    Internet,
    Version6,
    Tcp,
    Udp,
    Unix,
    Netlink,
}

/// Every option that is looked at: level, name, where.
const KNOWN: &[(i32, i32, For)] = &[
    (SOCKET, libc::SO_REUSEADDR, For::All),
    (SOCKET, libc::SO_REUSEPORT, For::Internet),
    (SOCKET, libc::SO_BROADCAST, For::Internet),
    (SOCKET, libc::SO_KEEPALIVE, For::All),
    (SOCKET, libc::SO_OOBINLINE, For::Internet),
    (SOCKET, libc::SO_NO_CHECK, For::Udp),
    (SOCKET, libc::SO_PRIORITY, For::Internet),
    (SOCKET, libc::SO_LINGER, For::All),
    (SOCKET, libc::SO_PASSCRED, For::Unix),
    (SOCKET, libc::SO_PASSSEC, For::Unix),
    (SOCKET, libc::SO_RCVLOWAT, For::All),
    (SOCKET, libc::SO_RCVTIMEO, For::All),
    (SOCKET, libc::SO_SNDTIMEO, For::All),
    (SOCKET, libc::SO_BINDTODEVICE, For::Internet),
    (SOCKET, libc::SO_TIMESTAMP, For::All),
    (SOCKET, libc::SO_TIMESTAMPNS, For::All),
    (SOCKET, libc::SO_TIMESTAMPING, For::Internet),
    (SOCKET, libc::SO_MARK, For::Internet),
    (SOCKET, libc::SO_RXQ_OVFL, For::Internet),
    (SOCKET, libc::SO_PEEK_OFF, For::All),
    (SOCKET, libc::SO_DONTROUTE, For::Internet),
    (SOCKET, 47, For::Internet), // SO_MAX_PACING_RATE
    (SOCKET, libc::SO_BUSY_POLL, For::Internet),
    (SOCKET, libc::SO_ZEROCOPY, For::Internet),
    (libc::IPPROTO_IP, libc::IP_TOS, For::Internet),
    (libc::IPPROTO_IP, libc::IP_TTL, For::Internet),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, For::Udp),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, For::Internet),
    (libc::IPPROTO_IP, libc::IP_RECVERR, For::Udp),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, For::Udp),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, For::Udp),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, For::Internet),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT, For::Internet),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, For::Internet),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, For::Udp),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, For::Udp),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, For::Udp),
    (libc::IPPROTO_IP, 49, For::Udp), // IP_MULTICAST_ALL
    (libc::IPPROTO_IP, libc::IP_MINTTL, For::Internet),
    (libc::IPPROTO_IP, 20, For::Udp), // IP_RECVORIGDSTADDR
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, For::Version6),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, For::Version6),
    (libc::IPPROTO_IPV6, 72, For::Version6), // IPV6_ADDR_PREFERENCES
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_CORK, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, For::Tcp),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, For::Tcp),
    (libc::IPPROTO_UDP, libc::UDP_CORK, For::Udp),
    (libc::IPPROTO_UDP, libc::UDP_SEGMENT, For::Udp),
    (libc::IPPROTO_UDP, libc::UDP_GRO, For::Udp),
    (libc::SOL_NETLINK, libc::NETLINK_PKTINFO, For::Netlink),
    (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, For::Netlink),
    (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, For::Netlink),
    (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, For::Netlink),
    (libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, For::Netlink),
    // Last, so that a size that was chosen is not overruled by another option.
    (SOCKET, SO_SNDBUF, For::All),
    (SOCKET, SO_RCVBUF, For::All),
];

/// Longest value that is looked at.
const VALUE: usize = 32;

fn applies(kind: &Kind, place: For) -> bool {
    let internet = kind.domain == libc::AF_INET || kind.domain == libc::AF_INET6;
    match place {
        For::All => true,
        For::Internet => internet,
        For::Version6 => kind.domain == libc::AF_INET6,
        For::Tcp => internet && kind.kind == libc::SOCK_STREAM,
        For::Udp => internet && kind.kind == libc::SOCK_DGRAM,
        For::Unix => kind.domain == libc::AF_UNIX,
        For::Netlink => kind.domain == libc::AF_NETLINK,
    }
}

/// Checksums of a fresh socket's options.
#[derive(Clone, Copy)]
pub struct Template([u32; KNOWN.len()]);

impl Template {
    /// The options of `fd`, which nobody has changed yet.
    pub fn of(fd: i32, kind: &Kind) -> Template {
        let mut sums = [0; KNOWN.len()];
        for (sum, &(level, name, place)) in sums.iter_mut().zip(KNOWN) {
            if applies(kind, place) {
                let mut value = [0u8; VALUE];
                let length = net::option(fd, level, name, &mut value).unwrap_or(0);
                *sum = checksum(0, value.get(..length).unwrap_or(&[]));
            }
        }
        Template(sums)
    }
}

/// Writes to `out` every option of `fd` that is not as in a fresh socket; the bytes used.
pub fn read(fd: i32, kind: &Kind, template: &Template, out: &mut [u8]) -> usize {
    let mut used = 0;
    // Which of the two sizes were chosen by the program (bits 0 and 1); they are not to stop TCP's tuning otherwise.
    let locked = net::option_number(fd, SOCKET, SO_BUF_LOCK);
    for (&fresh, &(level, name, place)) in template.0.iter().zip(KNOWN) {
        if !applies(kind, place) {
            continue;
        }
        let mut value = [0u8; VALUE];
        let Ok(length) = net::option(fd, level, name, &mut value) else { continue };
        let mut value = value.get(..length).unwrap_or(&[]);
        if checksum(0, value) == fresh {
            continue;
        }
        let half;
        if level == SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF) {
            let bit = if name == SO_SNDBUF { 1 } else { 2 };
            let chosen = locked.map_or(kind.kind != libc::SOCK_STREAM, |locked| locked & bit != 0);
            let Some(doubled) = value.first_chunk::<4>().filter(|_| chosen) else { continue };
            // The kernel doubles what it is told.
            half = (i32::from_ne_bytes(*doubled) / 2).to_ne_bytes();
            value = &half;
        }
        used += write(out.get_mut(used..).unwrap_or(&mut []), level as u32, name as u32, value);
    }
    used
}

/// Writes one option to the start of `out`; the bytes used (0 if it does not fit).
pub fn write(out: &mut [u8], level: u32, name: u32, value: &[u8]) -> usize {
    let length = 12 + value.len();
    let Some(place) = out.get_mut(..length) else { return 0 };
    let head = [level, name, value.len() as u32].map(u32::to_le_bytes);
    let bytes = head.iter().flatten().chain(value);
    place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    length
}

/// Calls `each` with every option: level, name, value.
pub fn each(mut options: &[u8], act: &mut dyn FnMut(u32, u32, &[u8])) {
    let word = |options: &[u8], at: usize| options.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    while let (Some(level), Some(name), Some(length)) = (word(options, 0), word(options, 4), word(options, 8)) {
        let Some(value) = options.get(12..12 + length as usize) else { return };
        act(level, name, value);
        options = options.get(12 + length as usize..).unwrap_or(&[]);
    }
}

/// One of our own entries.
pub fn ours(options: &[u8], name: u32) -> Option<&[u8]> {
    let mut rest = options;
    loop {
        let head = rest.first_chunk::<12>()?;
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let value = rest.get(12..12 + length)?;
        if head[..4] == OURS.to_le_bytes() && head[4..8] == name.to_le_bytes() {
            return Some(value);
        }
        rest = rest.get(12 + length..)?;
    }
}

/// Sets every option on a new socket. What this machine or user does not allow is left as it is.
pub fn set(fd: i32, options: &[u8]) {
    each(options, &mut |level, name, value| {
        if level != OURS {
            let _ = net::set_option(fd, level as i32, name as i32, value);
        }
    });
}
