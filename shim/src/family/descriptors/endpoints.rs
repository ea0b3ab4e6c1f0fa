//! Sockets as a resume makes them.
//!
//! Fresh, bound, listening and datagram sockets are simply made again; a port or path that the old life still seems to
//! hold is taken over if nobody serves it. A connection to somebody outside comes back *reset*: a real connection over
//! loopback is made and its other end closed with a reset (where there is no loopback, a unix pair whose other end is
//! closed with unread data does the same). Datagram sockets are connected in a later pass ([`connect_late`]), when
//! everything that they may be connected to exists. Neighbours: [`super::sockets`] (the save's side).

use super::placement::Reviving;
use super::sockets::unix_path;
use super::{Failure, kind_of};
use super::{netlink, options};
use zhuque_abi::journal::{Description, Socket, SocketState};
use zhuque_sys::Errno;
use zhuque_sys::fs;
use zhuque_sys::net;

/// How long all sockets together wait for addresses that the old life still holds, ms.
const PATIENCE_MS: i32 = 500;
/// How long one connection over loopback may take, ms.
const LOOPBACK_MS: i32 = 1000;
/// Keys of held halves: the pair's number with this bit.
const PAIR_KEY: u64 = 1 << 62;

/// What is kept from one socket to the next.
#[derive(Default)]
pub struct Helper {
    /// A listener on loopback + 1, and its address; 0: none yet, -1: there is no loopback.
    listener: i32,
    address: [u8; 16],
    waited_ms: i32,
}

impl Helper {
    /// Closes what was opened.
    pub fn close(&mut self) {
        if self.listener > 0 {
            let _ = fs::close(self.listener - 1);
        }
        self.listener = 0;
    }
}

/// Makes a socket.
pub fn revive(r: &mut Reviving<'_>, description: &Description<'_>, socket: &Socket<'_>) -> Result<i32, Failure> {
    let failed = |e: Errno| describe(Failure::new(b"socket "), socket).errno(e);
    match socket.state {
        SocketState::Established => reset(r, socket).map_err(failed),
        SocketState::Closed => {
            let fd = reset(r, socket).map_err(failed)?;
            // The error has been seen already.
            let _ = net::option_number(fd, libc::SOL_SOCKET, libc::SO_ERROR);
            Ok(fd)
        }
        SocketState::Pair => pair(r, description.id, socket),
        SocketState::Orphan => orphan(socket).map_err(failed),
        SocketState::Fresh | SocketState::Connecting | SocketState::Listening | SocketState::ConnectedDatagram => {
            fresh(r, socket)
        }
    }
}

fn fresh(r: &mut Reviving<'_>, socket: &Socket<'_>) -> Result<i32, Failure> {
    let failed = |e: Errno| describe(Failure::new(b""), socket).errno(e);
    let (domain, kind) = (socket.domain as i32, socket.kind as i32);
    let fd = net::socket(domain, kind | libc::SOCK_CLOEXEC, socket.protocol as i32).map_err(failed)?;
    options::set(fd, socket.options);
    let before = net::option_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap_or(0);
    if !socket.local.is_empty() {
        match bind(r, fd, socket) {
            // Ports of their own choice: connect() finds another one.
            Err(Errno(libc::EADDRINUSE | libc::EADDRNOTAVAIL))
                if matches!(socket.state, SocketState::ConnectedDatagram | SocketState::Connecting) => {}
            other => other.map_err(failed)?,
        }
    }
    if options::ours(socket.options, options::LOST).is_some() {
        netlink::overrun(fd);
    }
    if socket.state == SocketState::Listening {
        net::listen(fd, socket.backlog).map_err(failed)?;
    }
    // Only now: listen(2) looks for conflicts a second time.
    let now = net::option_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap_or(before);
    if now != before {
        set_reuse(fd, before).map_err(failed)?;
    }
    Ok(fd)
}

fn set_reuse(fd: i32, value: i32) -> Result<(), Errno> {
    net::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &value.to_ne_bytes())
}

fn bind(r: &mut Reviving<'_>, fd: i32, socket: &Socket<'_>) -> Result<(), Errno> {
    let domain = socket.domain as i32;
    if domain == libc::AF_NETLINK {
        return netlink::bind(fd, socket.local);
    }
    if let Some(path) = unix_path(socket.local).filter(|_| domain == libc::AF_UNIX) {
        return bind_path(r, fd, socket, &path);
    }
    loop {
        match net::bind(fd, socket.local) {
            Err(Errno(libc::EADDRINUSE)) => {}
            other => return other,
        }
        if socket.kind == libc::SOCK_STREAM as u32 && domain != libc::AF_UNIX {
            // Connections of the old life may linger on the port. (Those of a listener without this option block it
            // for a minute, as they do when a program is just started again.)
            set_reuse(fd, 1)?;
            let bound = net::bind(fd, socket.local);
            if bound.is_ok() {
                return bound;
            }
        }
        if !wait(r) {
            return Err(Errno(libc::EADDRINUSE));
        }
    }
}

fn bind_path(r: &mut Reviving<'_>, fd: i32, socket: &Socket<'_>, path: &fs::Path) -> Result<(), Errno> {
    let file = options::ours(socket.options, options::SOCKET_FILE);
    let stale = loop {
        match net::bind(fd, socket.local) {
            Ok(()) => break None,
            Err(Errno(libc::EADDRINUSE)) => {}
            Err(e) => return Err(e),
        }
        let stat = fs::stat_at(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW)?;
        if kind_of(stat.st_mode) != libc::S_IFSOCK || is_served(socket) {
            // The program had removed its file; whatever is there now is no concern of its.
            if file.is_none() {
                return Ok(());
            }
            if kind_of(stat.st_mode) == libc::S_IFSOCK && wait(r) {
                continue;
            }
            return Err(Errno(libc::EADDRINUSE));
        }
        fs::unlink_at(libc::AT_FDCWD, path)?;
        net::bind(fd, socket.local)?;
        break Some(stat);
    };
    let word = |at: usize| file?.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    match (word(0), word(4), word(8), stale) {
        (Some(mode), Some(uid), Some(gid), _) => {
            let _ = fs::set_ownership(path, mode, uid, gid);
        }
        (_, _, _, Some(stat)) => {
            let _ = fs::set_ownership(path, stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        }
        _ => {
            let _ = fs::unlink_at(libc::AT_FDCWD, path);
        }
    }
    Ok(())
}

/// Whether somebody has the path's socket open.
fn is_served(socket: &Socket<'_>) -> bool {
    let kind = socket.kind as i32 | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let Ok(probe) = net::socket(libc::AF_UNIX, kind, 0) else { return true };
    let answer = net::connect(probe, socket.local);
    let _ = fs::close(probe);
    answer != Err(Errno(libc::ECONNREFUSED))
}

/// Waits a little; false once all of the patience is used up.
fn wait(r: &mut Reviving<'_>) -> bool {
    const STEP_MS: i32 = 10;
    if r.sockets.waited_ms >= PATIENCE_MS {
        return false;
    }
    r.sockets.waited_ms += STEP_MS;
    let _ = net::poll(-1, 0, STEP_MS);
    true
}

/// Connects datagram sockets, and ends the directions of pairs that were ended.
pub fn connect_late(r: &mut Reviving<'_>, id: u32, socket: &Socket<'_>) -> Result<(), Failure> {
    let home = r.home(id);
    match socket.state {
        SocketState::ConnectedDatagram if home >= 0 => {
            // Without the peer (the network is not up yet, the logger has not started) the program finds out when it
            // sends, as it would have without us.
            let _ = net::connect(home, socket.peer);
            Ok(())
        }
        SocketState::Pair if home >= 0 => {
            let how = options::ours(socket.options, options::SHUTDOWN).and_then(|v| v.first().copied()).unwrap_or(0);
            shut_down(home, how);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn shut_down(fd: i32, how: u8) {
    if how & 1 != 0 {
        let _ = net::shutdown(fd, libc::SHUT_RD);
    }
    if how & 2 != 0 {
        let _ = net::shutdown(fd, libc::SHUT_WR);
    }
}

fn pair(r: &mut Reviving<'_>, id: u32, socket: &Socket<'_>) -> Result<i32, Failure> {
    let failed = |e: Errno| Failure::new(b"socket pair: ").errno(e);
    let (mine, other, maker) = match r.take_held(PAIR_KEY | socket.pair) {
        Some((fd, maker)) => (fd, r.home(maker), maker),
        None => {
            let kind = socket.kind as i32 | libc::SOCK_CLOEXEC;
            let ends = net::socket_pair(libc::AF_UNIX, kind, socket.protocol as i32).map_err(failed)?;
            let [mine, other] = r.lift_both(ends)?;
            (mine, other, 0)
        }
    };
    options::set(mine, socket.options);
    put_back(other, socket).map_err(failed)?;
    if maker == 0 {
        r.hold(PAIR_KEY | socket.pair, other, id)?;
    }
    Ok(mine)
}

fn orphan(socket: &Socket<'_>) -> Result<i32, Errno> {
    let kind = socket.kind as i32 | libc::SOCK_CLOEXEC;
    let [mine, other] = net::socket_pair(libc::AF_UNIX, kind, socket.protocol as i32)?;
    options::set(mine, socket.options);
    put_back(other, socket)?;
    let _ = fs::close(other);
    let how = options::ours(socket.options, options::SHUTDOWN).and_then(|v| v.first().copied()).unwrap_or(0);
    shut_down(mine, how & 2);
    Ok(mine)
}

/// Sends a pair's unread data again, from its other end.
fn put_back(sender: i32, socket: &Socket<'_>) -> Result<(), Errno> {
    let packets = socket.kind != libc::SOCK_STREAM as u32;
    let mut data = socket.data;
    let mut grown = None;
    while !data.is_empty() {
        let mut part = data;
        if packets {
            let (length, rest) = data.split_first_chunk::<4>().ok_or(Errno(libc::EINVAL))?;
            part = rest.get(..u32::from_le_bytes(*length) as usize).ok_or(Errno(libc::EINVAL))?;
        }
        match net::send(sender, part, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Ok(sent) => data = data.get(if packets { 4 + part.len() } else { sent }..).unwrap_or(&[]),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::EAGAIN)) if grown.is_none() => {
                // Accounted otherwise than when it was written: more room for as long as this takes.
                let size = net::option_number(sender, libc::SOL_SOCKET, libc::SO_SNDBUF)?;
                grown = Some(size);
                for name in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
                    let more = size.saturating_mul(4).to_ne_bytes();
                    let _ = net::set_option(sender, libc::SOL_SOCKET, name, &more);
                }
            }
            Err(e) => return Err(e),
        }
    }
    if let Some(size) = grown {
        let half = (size / 2).to_ne_bytes();
        let _ = net::set_option(sender, libc::SOL_SOCKET, libc::SO_SNDBUF, &half);
    }
    Ok(())
}

/// A connection that its peer has reset.
fn reset(r: &mut Reviving<'_>, socket: &Socket<'_>) -> Result<i32, Errno> {
    let kind = if socket.domain == libc::AF_UNIX as u32 {
        socket.kind as i32
    } else {
        match reset_over_loopback(r, socket) {
            Ok(fd) => return Ok(fd),
            Err(_) => libc::SOCK_STREAM,
        }
    };
    // Closing an end that has unread data resets the other.
    let [mine, other] = net::socket_pair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0)?;
    let sent = net::send(mine, &[0], libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    let _ = fs::close(other);
    sent.map(|_| mine)
}

fn reset_over_loopback(r: &mut Reviving<'_>, socket: &Socket<'_>) -> Result<i32, Errno> {
    let listener = listener(r)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = net::socket(socket.domain as i32, kind, socket.protocol as i32)?;
    let done = connect_and_reset(r, fd, listener, socket);
    if done.is_err() {
        let _ = fs::close(fd);
    }
    done.map(|()| fd)
}

/// The listener on 127.0.0.1, made when it is first needed.
fn listener(r: &mut Reviving<'_>) -> Result<i32, Errno> {
    if r.sockets.listener == 0 {
        r.sockets.listener = -1;
        let fd = net::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)?;
        let fd = r.lift(fd).map_err(|_| Errno(libc::EMFILE))?;
        let mut address = [0u8; 16];
        address[0..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
        net::bind(fd, &address)?;
        net::listen(fd, 16)?;
        net::local_address(fd, &mut address)?;
        r.sockets.address = address;
        r.sockets.listener = fd + 1;
    }
    if r.sockets.listener > 0 { Ok(r.sockets.listener - 1) } else { Err(Errno(libc::ENETUNREACH)) }
}

fn connect_and_reset(r: &Reviving<'_>, fd: i32, listener: i32, socket: &Socket<'_>) -> Result<(), Errno> {
    let address = r.sockets.address;
    // An IPv6 socket reaches the same listener by the mapped address ::ffff:127.0.0.1.
    let mut mapped = [0u8; 28];
    let target = if socket.domain == libc::AF_INET6 as u32 {
        let _ = net::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &0i32.to_ne_bytes());
        mapped[0..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        mapped[2..4].copy_from_slice(&address[2..4]);
        mapped[18..20].fill(0xff);
        mapped[20..24].copy_from_slice(&address[4..8]);
        &mapped[..]
    } else {
        &address[..]
    };
    match net::connect(fd, target) {
        Ok(()) | Err(Errno(libc::EINPROGRESS)) => {}
        Err(e) => return Err(e),
    }
    let mut own = [0u8; 28];
    net::local_address(fd, &mut own)?;
    loop {
        if net::poll(listener, libc::POLLIN, LOOPBACK_MS)? == 0 {
            return Err(Errno(libc::ETIMEDOUT));
        }
        let other = net::accept(listener, libc::SOCK_CLOEXEC)?;
        let mut peer = [0u8; 28];
        let ours = net::peer_address(other, &mut peer).is_ok() && peer[2..4] == own[2..4];
        if ours && options::ours(socket.options, options::UNTOLD).is_none() {
            // The program knows that it is connected, and shall not connect it again. One that connect(2) has not said
            // so of forgets the reset there, and may then (SS_CONNECTING in __inet_stream_connect, net/ipv4/af_inet.c).
            let _ = net::connect(fd, target);
        }
        let linger = [1i32, 0].map(i32::to_ne_bytes);
        let _ = net::set_option(other, libc::SOL_SOCKET, libc::SO_LINGER, linger.as_flattened());
        let _ = fs::close(other);
        if ours {
            break;
        }
    }
    // The reset has usually arrived by now. It shows as an error.
    match net::poll(fd, libc::POLLIN, LOOPBACK_MS)? {
        0 => Err(Errno(libc::ETIMEDOUT)),
        _ => Ok(()),
    }
}

/// Adds a socket's address to a message.
fn describe(failure: Failure, socket: &Socket<'_>) -> Failure {
    let local = socket.local;
    let port = match local.get(2..4) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]) as u64,
        _ => 0,
    };
    match (socket.domain as i32, local) {
        (libc::AF_INET, &[_, _, _, _, a, b, c, d, ..]) => {
            let [a, b, c, d] = [a, b, c, d].map(u64::from);
            let text = failure.number(a).text(b".").number(b).text(b".").number(c).text(b".").number(d);
            text.text(b":").number(port).text(b": ")
        }
        (libc::AF_INET6, _) if local.len() >= 24 => {
            let mut text = failure.text(b"[");
            for (index, group) in local.get(8..24).unwrap_or(&[]).chunks_exact(2).enumerate() {
                text = if index > 0 { text.text(b":") } else { text };
                for nibble in group.iter().flat_map(|b| [b >> 4, b & 15]) {
                    text = text.text(&[char::from_digit(nibble as u32, 16).unwrap_or('?') as u8]);
                }
            }
            text.text(b"]:").number(port).text(b": ")
        }
        (libc::AF_UNIX, &[_, _, 0, ref name @ ..]) => failure.text(b"@").text(name).text(b": "),
        (libc::AF_UNIX, &[_, _, ref name @ ..]) => {
            failure.text(name.split(|&b| b == 0).next().unwrap_or(&[])).text(b": ")
        }
        _ => failure.text(b"family ").number(socket.domain as u64).text(b": "),
    }
}
