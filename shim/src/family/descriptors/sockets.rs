//! Sockets as a save finds them: kind, state, addresses, options, unread data.
//!
//! What is asked of the kernel: SO_DOMAIN, SO_TYPE, SO_PROTOCOL, SO_ACCEPTCONN, getsockname, getpeername, TCP_INFO,
//! poll, and the socket diagnosis of unix sockets (whom a socket is connected to). Where that diagnosis is missing, a
//! pair is recognised by its inode numbers, which socketpair(2) takes one after the other. Unread data of pairs is
//! peeked at, not taken. Data that an outside peer has sent dies with the connection. Neighbours: [`super::options`],
//! [`super::endpoints`] (the resume's side), [`super::letters`] (datagrams that anybody may have sent).

use super::options::{self, Template};
use super::table::{Entry, Found, Table};
use super::{Capture, Failure, kind_of, letters, netlink};
use zhuque_abi::journal::{Object, Socket, SocketState};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};
use zhuque_sys::net::{self, UnixDiagnosis};

/// Longest address: struct sockaddr_storage.
const ADDRESS: usize = 128;
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const MPTCP: i32 = 262;
/// Room for options in front of the unread data, in scratch memory.
const OPTIONS: usize = 8192;

/// What socket(2) was given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// AF_*.
    pub domain: i32,
    /// SOCK_*.
    pub kind: i32,
    /// Protocol.
    pub protocol: i32,
}

/// What is kept from one socket to the next during a save.
#[derive(Default)]
pub struct Notes {
    templates: [Option<(Kind, Template)>; 8],
    /// The diagnosis socket + 1; 0: not opened yet, -1: there is none.
    diagnosis: i32,
    /// What was said of the last socket's peer, which mostly comes next.
    last: Option<(u64, UnixDiagnosis)>,
}

impl Notes {
    /// Closes what was opened.
    pub fn close(&mut self) {
        if self.diagnosis > 0 {
            let _ = fs::close(self.diagnosis - 1);
        }
    }

    fn template(&mut self, kind: &Kind) -> Option<&Template> {
        let at = self.templates.iter().position(|t| t.as_ref().is_none_or(|t| t.0 == *kind)).unwrap_or(0);
        let place = self.templates.get_mut(at)?;
        if place.as_ref().is_none_or(|t| t.0 != *kind) {
            let fd = net::socket(kind.domain, kind.kind | libc::SOCK_CLOEXEC, kind.protocol).ok()?;
            *place = Some((*kind, Template::of(fd, kind)));
            let _ = fs::close(fd);
        }
        place.as_ref().map(|t| &t.1)
    }

    fn diagnose(&mut self, inode: u64) -> Option<UnixDiagnosis> {
        const NETLINK_SOCK_DIAG: i32 = 4;
        if self.diagnosis == 0 {
            let fd = net::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
            self.diagnosis = fd.map_or(-1, |fd| fd + 1);
        }
        if self.diagnosis < 0 {
            return None;
        }
        if let Some((_, known)) = self.last.filter(|last| last.0 == inode) {
            return Some(known);
        }
        match net::unix_diagnosis(self.diagnosis - 1, inode) {
            Ok(found) => {
                self.last = Some((inode, found));
                Some(found)
            }
            // A socket that is neither bound nor connected may not be listed; that is no reason to stop asking.
            Err(Errno(libc::ENOENT)) => None,
            Err(_) => {
                let _ = fs::close(self.diagnosis - 1);
                self.diagnosis = -1;
                None
            }
        }
    }
}

/// A socket under capture.
struct Seen {
    fd: i32,
    inode: u64,
    kind: Kind,
    listening: bool,
    local: [u8; ADDRESS],
    local_used: usize,
    peer: [u8; ADDRESS],
    peer_used: Option<usize>,
}

impl Seen {
    fn local(&self) -> &[u8] {
        self.local.get(..self.local_used).unwrap_or(&[])
    }

    fn peer(&self) -> &[u8] {
        self.peer.get(..self.peer_used.unwrap_or(0)).unwrap_or(&[])
    }
}

/// What was found out about a socket's state.
struct Verdict {
    state: SocketState,
    backlog: u32,
    pair: u64,
    shutdown: u8,
    /// Keep the unread data.
    data: bool,
    /// Of a stream that is connected or has failed to: the program has not been told yet.
    untold: bool,
}

impl Verdict {
    fn plain(state: SocketState) -> Verdict {
        Verdict { state, backlog: 0, pair: 0, shutdown: 0, data: false, untold: false }
    }
}

/// Describes a socket.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>, notes: &mut Notes, found: &Found<'_>) -> Result<(), Failure> {
    let seen = look(found);
    let tcp = seen.kind.kind == libc::SOCK_STREAM && matches!(seen.kind.protocol, 0 | libc::IPPROTO_TCP | MPTCP);
    let datagram = matches!(seen.kind.kind, libc::SOCK_DGRAM | libc::SOCK_RAW);
    let inet = matches!(seen.kind.domain, libc::AF_INET | libc::AF_INET6);
    let unborn = inet && tcp && found.entries.iter().any(|entry| (c.connecting)(entry.fd)) && !is_told(&seen);
    let verdict = match seen.kind.domain {
        // Begun, and perhaps made by now; nobody has been told.
        _ if unborn => Verdict::plain(SocketState::Connecting),
        libc::AF_INET | libc::AF_INET6 if tcp => tcp_verdict(c, &seen),
        libc::AF_INET | libc::AF_INET6 if datagram => datagram_verdict(&seen),
        libc::AF_UNIX => unix_verdict(c, table, notes, &seen),
        libc::AF_NETLINK => Verdict::plain(SocketState::Fresh),
        _ => return unsupported(c, table, found, &seen.kind, b" of an unknown family"),
    };
    let (head, rest) = c.scratch.split_at_mut_checked(OPTIONS).unwrap_or((&mut [], &mut []));
    let mut used = 0;
    // Nothing that is set on a connection that comes back broken can be seen any more.
    if !matches!(verdict.state, SocketState::Established | SocketState::Closed) {
        if let Some(template) = notes.template(&seen.kind) {
            used = options::read(seen.fd, &seen.kind, template, head);
        }
        used += extra_options(&seen, &verdict, head.get_mut(used..).unwrap_or(&mut []));
    } else if verdict.untold {
        used = options::write(head, options::OURS, options::UNTOLD, &[]);
    }
    let mut data = 0;
    let open = matches!(verdict.state, SocketState::Fresh | SocketState::ConnectedDatagram);
    // Ping sockets and their like cannot be looked into without taking what is there.
    let plain = !inet || matches!(seen.kind.protocol, 0 | libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
    let letters = plain && seen.kind.kind == libc::SOCK_DGRAM && seen.kind.domain != libc::AF_NETLINK;
    if open && letters && is_bound(&seen) {
        match letters::copy(table, seen.fd, rest, inet) {
            Ok(bytes) => data = bytes,
            Err(_) => return unsupported(c, table, found, &seen.kind, b" with more waiting in it than can be kept"),
        }
    }
    if verdict.data {
        match unread(&seen, rest, verdict.shutdown) {
            Ok(bytes) => data = bytes,
            Err(Errno(libc::EBADMSG)) => {
                return unsupported(c, table, found, &seen.kind, b" with descriptors in flight");
            }
            Err(e) => return Err(Failure::new(b"unread data of a socket cannot be saved: ").errno(e)),
        }
    }
    if c.power && (verdict.state == SocketState::Established || unborn) && tcp && seen.kind.domain != libc::AF_UNIX {
        // SO_LINGER with no time: the peer sees a reset when the program ends.
        let linger = [1i32, 0].map(i32::to_ne_bytes);
        let _ = net::set_option(seen.fd, libc::SOL_SOCKET, libc::SO_LINGER, linger.as_flattened());
    }
    let head = c.scratch.get(..OPTIONS).unwrap_or(&[]);
    let socket = Socket {
        domain: seen.kind.domain as u32,
        kind: seen.kind.kind as u32,
        protocol: seen.kind.protocol as u32,
        state: verdict.state,
        backlog: verdict.backlog,
        local: if is_bound(&seen) { seen.local() } else { &[] },
        peer: if verdict.state == SocketState::ConnectedDatagram { seen.peer() } else { &[] },
        pair: verdict.pair,
        options: head.get(..used).unwrap_or(&[]),
        data: c.scratch.get(OPTIONS..OPTIONS + data).unwrap_or(&[]),
    };
    found.describe(c.put, Object::Socket(socket))
}

fn unsupported(
    c: &mut Capture<'_>,
    table: &Table<'_>,
    found: &Found<'_>,
    kind: &Kind,
    why: &[u8],
) -> Result<(), Failure> {
    let mut link = [0u8; 64];
    let mut text = Path::new();
    text.push(table.link(found.fd, &mut link)).push(why);
    text.push(b" (family ").push_number(kind.domain as u64).push(b", type ").push_number(kind.kind as u64).push(b")");
    found.describe(c.put, Object::Unsupported { what: text.as_bytes() })
}

fn look(found: &Found<'_>) -> Seen {
    let fd = found.fd;
    let number = |name: i32| net::option_number(fd, libc::SOL_SOCKET, name).unwrap_or(0);
    let kind =
        Kind { domain: number(libc::SO_DOMAIN), kind: number(libc::SO_TYPE), protocol: number(libc::SO_PROTOCOL) };
    let mut seen = Seen {
        fd,
        inode: found.inode,
        kind,
        listening: number(libc::SO_ACCEPTCONN) != 0,
        local: [0; ADDRESS],
        local_used: 0,
        peer: [0; ADDRESS],
        peer_used: None,
    };
    seen.local_used = net::local_address(fd, &mut seen.local).unwrap_or(0);
    if !seen.listening {
        seen.peer_used = net::peer_address(fd, &mut seen.peer).ok();
    }
    seen
}

/// Whether the program has been told that a stream is connected: then the kernel refuses to connect it, before it looks at
/// the address, of which there is too little here (__inet_stream_connect in net/ipv4/af_inet.c). One that is on its way it
/// would wait for.
fn is_told(seen: &Seen) -> bool {
    let too_short = (seen.kind.domain as u16).to_ne_bytes();
    let (state, _) = tcp_state(seen);
    state != TCP_SYN_SENT && net::connect(seen.fd, &too_short) == Err(Errno(libc::EISCONN))
}

/// Whether bind(2) has to be called again: an address or a port is set.
fn is_bound(seen: &Seen) -> bool {
    let local = seen.local();
    let set = |range: core::ops::Range<usize>| local.get(range).is_some_and(|part| part.iter().any(|&b| b != 0));
    match seen.kind.domain {
        libc::AF_INET => set(2..8),
        libc::AF_INET6 => set(2..4) || set(8..24),
        libc::AF_UNIX => local.len() > 2,
        _ => set(4..12),
    }
}

fn datagram_verdict(seen: &Seen) -> Verdict {
    Verdict::plain(if seen.peer_used.is_some() { SocketState::ConnectedDatagram } else { SocketState::Fresh })
}

/// State of a stream, and of a listener its backlog.
fn tcp_state(seen: &Seen) -> (u8, u32) {
    // struct tcp_info: state at 0; of a listener the backlog at 28 (tcpi_sacked).
    let mut info = [0u8; 32];
    let known = net::option(seen.fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).is_ok();
    let state = match info[0] {
        state if known && state != 0 => state,
        _ if seen.listening => TCP_LISTEN,
        _ if seen.peer_used.is_some() => TCP_ESTABLISHED,
        _ => TCP_CLOSE,
    };
    (state, u32::from_ne_bytes([info[28], info[29], info[30], info[31]]))
}

fn tcp_verdict(c: &Capture<'_>, seen: &Seen) -> Verdict {
    let (state, kernel) = tcp_state(seen);
    match state {
        TCP_LISTEN => {
            let backlog = (c.backlog)(seen.inode).unwrap_or(if kernel > 0 { kernel } else { 4096 });
            Verdict { backlog, ..Verdict::plain(SocketState::Listening) }
        }
        TCP_CLOSE => {
            // A socket that never had a connection shows no end of stream; one with an error shows that first.
            let events = libc::POLLIN | libc::POLLRDHUP;
            let ready = net::poll(seen.fd, events, 0).unwrap_or(0);
            let state = match ready {
                ready if ready & libc::POLLERR != 0 => SocketState::Established,
                ready if ready & libc::POLLRDHUP != 0 => SocketState::Closed,
                _ => return Verdict::plain(SocketState::Fresh),
            };
            // Asking takes the error away.
            Verdict { untold: !is_told(seen), ..Verdict::plain(state) }
        }
        _ => Verdict { untold: !is_told(seen), ..Verdict::plain(SocketState::Established) },
    }
}

fn unix_verdict(c: &Capture<'_>, table: &Table<'_>, notes: &mut Notes, seen: &Seen) -> Verdict {
    if seen.listening {
        let kernel = notes.diagnose(seen.inode).map_or(4096, |d| d.backlog);
        let backlog = (c.backlog)(seen.inode).unwrap_or(kernel);
        return Verdict { backlog, ..Verdict::plain(SocketState::Listening) };
    }
    if seen.peer_used.is_none() {
        return Verdict::plain(SocketState::Fresh);
    }
    let diagnosis = notes.diagnose(seen.inode);
    let shutdown = diagnosis.map_or(0, |d| d.shutdown);
    let named = is_bound(seen) || seen.peer().len() > 2;
    let datagram = seen.kind.kind == libc::SOCK_DGRAM;
    // Datagram sockets with names may be reached by others too.
    let partner = partner(table, notes, seen, diagnosis).filter(|_| !(datagram && named));
    if let Some(partner) = partner {
        let pair = seen.inode.min(partner);
        return Verdict { pair, shutdown, data: true, ..Verdict::plain(SocketState::Pair) };
    }
    let ready = net::poll(seen.fd, libc::POLLIN | libc::POLLRDHUP, 0).unwrap_or(0);
    if datagram && named {
        return Verdict::plain(SocketState::ConnectedDatagram);
    }
    // A peer that has gone leaves what it wrote, then the end; an error that was not read yet comes first.
    let gone = ready & libc::POLLHUP != 0;
    if ready & libc::POLLERR != 0 || (named && !gone) {
        return Verdict::plain(SocketState::Established);
    }
    Verdict { shutdown, data: true, ..Verdict::plain(SocketState::Orphan) }
}

/// The inode of the peer, if it is in the program too and this socket is its peer.
fn partner(table: &Table<'_>, notes: &mut Notes, seen: &Seen, diagnosis: Option<UnixDiagnosis>) -> Option<u64> {
    let device = fs::stat_fd(seen.fd).ok()?.st_dev;
    let inside = |inode: u64| -> Option<&Entry> {
        table.of_object(device, inode).first().filter(|e| kind_of(e.mode) == libc::S_IFSOCK)
    };
    if let Some(diagnosis) = diagnosis {
        let peer = diagnosis.peer.filter(|&peer| peer != 0)? as u64;
        inside(peer)?;
        let back = notes.diagnose(peer)?.peer? as u64;
        return (back == seen.inode && peer != seen.inode).then_some(peer);
    }
    if is_bound(seen) || seen.peer().len() > 2 {
        return None;
    }
    let number = |fd: i32, name: i32| net::option_number(fd, libc::SOL_SOCKET, name).ok();
    // Alone in a run of consecutive numbers one neighbour fits; in a longer run the pairs begin at its start.
    let fits = |inode: u64| {
        inside(inode).is_some_and(|e| {
            let mut name = [0u8; ADDRESS];
            number(e.fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
                && number(e.fd, libc::SO_TYPE) == Some(seen.kind.kind)
                && net::peer_address(e.fd, &mut name).is_ok_and(|used| used <= 2)
                && net::local_address(e.fd, &mut name).is_ok_and(|used| used <= 2)
        })
    };
    let before = (1..=64).take_while(|&back| fits(seen.inode.wrapping_sub(back))).count();
    if before % 2 == 1 { Some(seen.inode - 1) } else { Some(seen.inode + 1).filter(|&next| fits(next)) }
}

/// Entries of our own among the options: how far a stream was shut down, what netlink loses, the file of a path.
fn extra_options(seen: &Seen, verdict: &Verdict, out: &mut [u8]) -> usize {
    let mut used = 0;
    if verdict.shutdown != 0 {
        used += options::write(out, options::OURS, options::SHUTDOWN, &(verdict.shutdown as u32).to_le_bytes());
    }
    if seen.kind.domain == libc::AF_NETLINK && netlink::has_unread(seen.fd) {
        used += options::write(out, options::OURS, options::LOST, &[]);
    }
    let named = seen.kind.domain == libc::AF_UNIX && is_bound(seen) && verdict.pair == 0;
    let stat = unix_path(seen.local())
        .filter(|_| named)
        .and_then(|path| fs::stat_at(libc::AT_FDCWD, &path, libc::AT_SYMLINK_NOFOLLOW).ok())
        .filter(|stat| kind_of(stat.st_mode) == libc::S_IFSOCK);
    if let Some(stat) = stat {
        let file = [stat.st_mode & 0o7777, stat.st_uid, stat.st_gid].map(u32::to_le_bytes);
        let rest = out.get_mut(used..).unwrap_or(&mut []);
        used += options::write(rest, options::OURS, options::SOCKET_FILE, file.as_flattened());
    }
    used
}

/// The path in a unix address, if it is one in the file system.
pub fn unix_path(address: &[u8]) -> Option<Path> {
    let name = address.get(2..)?;
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let name = name.get(..end).filter(|name| !name.is_empty())?;
    let mut path = Path::new();
    path.push(name);
    Some(path)
}

/// Copies a unix socket's unread data to the start of `out` without taking it; the bytes. EBADMSG: descriptors are
/// among it.
fn unread(seen: &Seen, out: &mut [u8], shutdown: u8) -> Result<usize, Errno> {
    let packets = seen.kind.kind != libc::SOCK_STREAM;
    let prefix = if packets { 4 } else { 0 };
    let credentials = net::option_number(seen.fd, libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap_or(0) != 0;
    let peek = |offset: i32| net::set_option(seen.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &offset.to_ne_bytes());
    let before = net::option_number(seen.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    peek(0)?;
    // With this flag a packet's true length is returned; on a stream it would mean something else.
    let whole = if packets { libc::MSG_TRUNC } else { 0 };
    // Nothing is the end of what was said, or a packet without content; it is the end only if there can be one.
    let hung_up = net::poll(seen.fd, libc::POLLRDHUP, 0).unwrap_or(0) & (libc::POLLRDHUP | libc::POLLHUP) != 0;
    let endless = packets && shutdown & 1 == 0 && !hung_up;
    let mut used = 0;
    let result = loop {
        let Some(room) = out.get_mut(used + prefix..).filter(|room| !room.is_empty()) else {
            break Err(Errno(libc::ENOSPC));
        };
        match net::receive(seen.fd, room, libc::MSG_PEEK | libc::MSG_DONTWAIT | whole) {
            Ok((_, flags)) if flags & libc::MSG_CTRUNC != 0 && !credentials => break Err(Errno(libc::EBADMSG)),
            Ok((_, flags)) if flags & libc::MSG_TRUNC != 0 && packets => break Err(Errno(libc::ENOSPC)),
            Ok((0, _)) if !endless => break Ok(used),
            Ok((bytes, _)) => {
                if let Some(length) = out.get_mut(used..used + prefix).filter(|_| packets) {
                    length.copy_from_slice(&(bytes as u32).to_le_bytes());
                }
                used += prefix + bytes;
            }
            Err(Errno(libc::EINTR)) => {}
            // Nothing more; ECONNRESET and the like belong to whoever reads on.
            Err(_) => break Ok(used),
        }
    };
    let _ = peek(before);
    result
}
