//! Datagrams that wait in sockets which anybody may write to: copied by a save, sent again by a resume.
//!
//! What came over the internet may be lost at any time; it is kept where its sender is in the program too. Over a unix
//! socket nothing is lost: what comes from somebody else keeps its content, but not its sender. Each is written down
//! as its length, the length of its sender's address (u32 each, little endian), that address, the bytes. Neighbours:
//! `sockets`, `endpoints`.

use super::placement::{Reviving, each_record};
use super::table::Table;
use super::{Failure, kind_of};
use core::sync::atomic::{AtomicU32, Ordering};
use zhuque_abi::journal::{Description, Object, Record, Socket};
use zhuque_sys::net;
use zhuque_sys::{Errno, fs};

/// Longest address: struct sockaddr_storage.
const ADDRESS: usize = 128;

/// Looks at sockets of the program, for senders, that one save may take: some tens of milliseconds.
const LOOKS: u32 = 200_000;
/// How many are left.
static LOOKS_LEFT: AtomicU32 = AtomicU32::new(0);

/// At the beginning of a save.
pub fn begin() {
    LOOKS_LEFT.store(LOOKS, Ordering::Relaxed);
}

/// Copies what waits in a datagram socket to the start of `out` without taking it; the bytes. `lossy`: what there is no
/// room for may be lost.
pub fn copy(table: &Table<'_>, fd: i32, out: &mut [u8], lossy: bool) -> Result<usize, Errno> {
    if net::poll(fd, libc::POLLIN, 0)? & libc::POLLIN == 0 {
        return Ok(0);
    }
    let peek = |offset: i32| net::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &offset.to_ne_bytes());
    let before = net::option_number(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    if lossy && peek(0).is_err() {
        return Ok(0);
    }
    peek(0)?;
    let (mut used, mut errors) = (0, 0);
    let mut from = [0u8; ADDRESS];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let result = loop {
        let Some((head, room)) = out.get_mut(used..).and_then(|rest| rest.split_at_mut_checked(8 + ADDRESS)) else {
            break if lossy { Ok(used) } else { Err(Errno(libc::ENOSPC)) };
        };
        match net::receive_from(fd, room, &mut from, flags) {
            Ok((_, _, flags)) if flags & libc::MSG_TRUNC != 0 => {
                break if lossy { Ok(used) } else { Err(Errno(libc::ENOSPC)) };
            }
            Ok((bytes, named, _)) => {
                let address = from.get(..named).unwrap_or(&[]);
                if !is_kept(table, address) {
                    continue;
                }
                let lengths = [bytes as u32, address.len() as u32].map(u32::to_le_bytes);
                head.iter_mut().zip(lengths.as_flattened().iter().chain(address)).for_each(|(to, from)| *to = *from);
                out.copy_within(used + 8 + ADDRESS..used + 8 + ADDRESS + bytes, used + 8 + named);
                used += 8 + named + bytes;
            }
            Err(Errno(libc::EINTR)) => {}
            // An error of an earlier datagram is told once.
            Err(Errno(error)) if error != libc::EAGAIN && errors < 4 => errors += 1,
            Err(_) => break Ok(used),
        }
    };
    let _ = peek(before);
    result
}

/// Whether a datagram from there is written down.
fn is_kept(table: &Table<'_>, from: &[u8]) -> bool {
    let family = from.first_chunk().map_or(libc::AF_UNIX, |bytes| i32::from(u16::from_ne_bytes(*bytes)));
    family == libc::AF_UNIX
        || table.all().iter().filter(|e| kind_of(e.mode) == libc::S_IFSOCK).any(|entry| {
            if LOOKS_LEFT.load(Ordering::Relaxed) == 0 {
                return false;
            }
            LOOKS_LEFT.fetch_sub(1, Ordering::Relaxed);
            let mut local = [0u8; ADDRESS];
            let used = net::local_address(entry.fd, &mut local).unwrap_or(0);
            is_from(from, local.get(..used).unwrap_or(&[]))
        })
}

/// Whether a socket that is bound to `local` sends from `address`.
fn is_from(address: &[u8], local: &[u8]) -> bool {
    let same = |range: core::ops::Range<usize>| address.get(range.clone()) == local.get(range);
    let any = |range: core::ops::Range<usize>| local.get(range).is_some_and(|part| part.iter().all(|&byte| byte == 0));
    match (address.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family))), local.len()) {
        (Some(libc::AF_INET), 8..) => same(0..4) && (same(4..8) || any(4..8)),
        (Some(libc::AF_INET6), 24..) => same(0..4) && (same(8..24) || any(8..24)),
        (Some(_), 3..) => address == local,
        _ => false,
    }
}

/// Sends a socket everything that waited in it. Not an error: whoever sends datagrams must bear with their loss.
pub fn deliver(r: &Reviving<'_>, journal: &[u8], socket: &Socket<'_>) -> Result<(), Failure> {
    let mut rest = socket.data;
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let damaged = Failure::new(b"the journal is damaged: a datagram is not readable");
        let (from, behind) = behind.split_at_checked(word(4)).ok_or(damaged)?;
        let (bytes, behind) = behind.split_at_checked(word(0)).ok_or(damaged)?;
        rest = behind;
        let sender = sender(r, journal, socket, from)?;
        if sender >= 0 {
            let _ = send(sender, socket, bytes);
        } else if let Ok(nobody) = net::socket(socket.domain as i32, socket.kind as i32 | libc::SOCK_CLOEXEC, 0) {
            let _ = send(nobody, socket, bytes);
            let _ = fs::close(nobody);
        }
    }
    Ok(())
}

fn send(sender: i32, to: &Socket<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    match net::send_to(sender, bytes, flags, to.local) {
        // Its peer is this one, or it could not have sent there.
        Err(Errno(libc::EISCONN)) => net::send(sender, bytes, flags),
        sent => sent,
    }
}

/// The number of the program's socket that sends from an address; -1: there is none.
fn sender(r: &Reviving<'_>, journal: &[u8], to: &Socket<'_>, from: &[u8]) -> Result<i32, Failure> {
    let mut found = -1;
    each_record(journal, &mut |record| {
        if let Record::Description(Description { id, object: Object::Socket(socket), .. }) = record
            && socket.kind == to.kind
            && is_from(from, socket.local)
        {
            found = r.home(*id);
        }
        Ok(())
    })?;
    Ok(found)
}
