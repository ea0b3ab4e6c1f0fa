//! Sockets, and the descriptors that report events (epoll, eventfd, signalfd, inotify, pidfd), as far as save and
//! resume need them. Addresses and option values are plain bytes, as the kernel has them.
#![allow(unsafe_code)]

use crate::fs::Path;
use crate::raw::{Errno, call2, call3, call4, call5, call6, check};

/// socket(2).
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call3(libc::SYS_socket as usize, domain as usize, kind as usize, protocol as usize) })
        .map(|fd| fd as i32)
}

/// socketpair(2).
pub fn socket_pair(domain: i32, kind: i32, protocol: i32) -> Result<[i32; 2], Errno> {
    let mut ends = [-1i32; 2];
    // SAFETY: the target is a local.
    check(unsafe {
        call4(
            libc::SYS_socketpair as usize,
            domain as usize,
            kind as usize,
            protocol as usize,
            ends.as_mut_ptr() as usize,
        )
    })?;
    Ok(ends)
}

/// bind(2).
pub fn bind(fd: i32, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: the address is valid for its length.
    check(unsafe { call3(libc::SYS_bind as usize, fd as isize as usize, address.as_ptr() as usize, address.len()) })
        .map(|_| ())
}

/// connect(2).
pub fn connect(fd: i32, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: the address is valid for its length.
    check(unsafe { call3(libc::SYS_connect as usize, fd as isize as usize, address.as_ptr() as usize, address.len()) })
        .map(|_| ())
}

/// listen(2).
pub fn listen(fd: i32, backlog: u32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_listen as usize, fd as isize as usize, backlog as usize) }).map(|_| ())
}

/// accept4(2) without the peer's address.
pub fn accept(fd: i32, flags: i32) -> Result<i32, Errno> {
    // SAFETY: no address is asked for, so no memory is involved.
    check(unsafe { call4(libc::SYS_accept4 as usize, fd as isize as usize, 0, 0, flags as usize) }).map(|fd| fd as i32)
}

fn address(call: i64, fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut length = buffer.len() as u32;
    // SAFETY: the buffer is valid for writing the length given; the length is a local.
    check(unsafe {
        call3(call as usize, fd as isize as usize, buffer.as_mut_ptr() as usize, &mut length as *mut _ as usize)
    })?;
    Ok((length as usize).min(buffer.len()))
}

/// getsockname(2); the length.
pub fn local_address(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    address(libc::SYS_getsockname, fd, buffer)
}

/// getpeername(2); the length.
pub fn peer_address(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    address(libc::SYS_getpeername, fd, buffer)
}

/// getsockopt(2) into `value`; the length.
pub fn option(fd: i32, level: i32, name: i32, value: &mut [u8]) -> Result<usize, Errno> {
    let mut length = value.len() as u32;
    // SAFETY: the value is valid for writing the length given; the length is a local.
    check(unsafe {
        call5(
            libc::SYS_getsockopt as usize,
            fd as isize as usize,
            level as usize,
            name as usize,
            value.as_mut_ptr() as usize,
            &mut length as *mut _ as usize,
        )
    })?;
    Ok((length as usize).min(value.len()))
}

/// getsockopt(2) of an integer.
pub fn option_number(fd: i32, level: i32, name: i32) -> Result<i32, Errno> {
    let mut value = [0u8; 4];
    option(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// setsockopt(2).
pub fn set_option(fd: i32, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the value is valid for its length.
    check(unsafe {
        call5(
            libc::SYS_setsockopt as usize,
            fd as isize as usize,
            level as usize,
            name as usize,
            value.as_ptr() as usize,
            value.len(),
        )
    })
    .map(|_| ())
}

/// sendto(2) on a connected socket.
pub fn send(fd: i32, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
    send_to(fd, bytes, flags, &[])
}

/// sendto(2) to an address; none: to the peer.
pub fn send_to(fd: i32, bytes: &[u8], flags: i32, address: &[u8]) -> Result<usize, Errno> {
    let to = if address.is_empty() { 0 } else { address.as_ptr() as usize };
    // SAFETY: bytes and address are valid for their lengths.
    check(unsafe {
        call6(
            libc::SYS_sendto as usize,
            fd as isize as usize,
            bytes.as_ptr() as usize,
            bytes.len(),
            flags as usize,
            to,
            address.len(),
        )
    })
}

/// recvmsg(2) without room for ancillary data: what the call returned, and msg_flags (MSG_CTRUNC: there was some).
pub fn receive(fd: i32, buffer: &mut [u8], flags: i32) -> Result<(usize, i32), Errno> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // struct msghdr: name, its length (padded), iovec, count, control, its length, flags (padded).
    let mut header = [0usize, 0, &mut part as *mut _ as usize, 1, 0, 0, 0];
    // SAFETY: the header describes the buffer, which is valid for writing; all of it lives through the call.
    let got = check(unsafe {
        call3(libc::SYS_recvmsg as usize, fd as isize as usize, header.as_mut_ptr() as usize, flags as usize)
    })?;
    Ok((got, header[6] as u32 as i32))
}

/// recvmsg(2) with the sender's address: bytes, length of the address (0: it has none), msg_flags.
pub fn receive_from(fd: i32, buffer: &mut [u8], from: &mut [u8], flags: i32) -> Result<(usize, usize, i32), Errno> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = [from.as_mut_ptr() as usize, from.len(), &mut part as *mut _ as usize, 1, 0, 0, 0];
    // SAFETY: the header describes buffer and address, which are valid for writing; all of it lives through the call.
    let got = check(unsafe {
        call3(libc::SYS_recvmsg as usize, fd as isize as usize, header.as_mut_ptr() as usize, flags as usize)
    })?;
    Ok((got, header[1] & 0xffff_ffff, header[6] as u32 as i32))
}

/// shutdown(2).
pub fn shutdown(fd: i32, how: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_shutdown as usize, fd as isize as usize, how as usize) }).map(|_| ())
}

/// poll(2) of one descriptor (-1: just wait); what is ready, 0 after `timeout_ms`.
pub fn poll(fd: i32, events: i16, timeout_ms: i32) -> Result<i16, Errno> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the entry is a local.
    check(unsafe { call3(libc::SYS_poll as usize, &mut entry as *mut _ as usize, 1, timeout_ms as isize as usize) })?;
    Ok(entry.revents)
}

/// What the kernel's socket diagnosis says of a unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixDiagnosis {
    /// Inode of the peer; Some(0): the peer is closed; None: never connected.
    pub peer: Option<u32>,
    /// Bit 0: no more receiving, bit 1: no more sending.
    pub shutdown: u8,
    /// Backlog of a listener.
    pub backlog: u32,
}

/// Asks a NETLINK_SOCK_DIAG socket about the unix socket with this inode (linux/unix_diag.h).
pub fn unix_diagnosis(netlink: i32, inode: u64) -> Result<UnixDiagnosis, Errno> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const SHOW_PEER_AND_QUEUE: u32 = 4 | 0x10;
    let mut request = [0u8; 40];
    request[0..4].copy_from_slice(&40u32.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[16] = libc::AF_UNIX as u8;
    request[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[24..28].copy_from_slice(&u32::try_from(inode).map_err(|_| Errno(libc::ENOENT))?.to_ne_bytes());
    request[28..32].copy_from_slice(&SHOW_PEER_AND_QUEUE.to_ne_bytes());
    request[32..40].copy_from_slice(&[0xff; 8]);
    send(netlink, &request, 0)?;
    let mut answer = [0u8; 512];
    let (bytes, _) = receive(netlink, &mut answer, 0)?;
    let word =
        |at: usize| -> u32 { answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes) };
    if word(4) as u16 != SOCK_DIAG_BY_FAMILY {
        // NLMSG_ERROR carries a negative error number.
        return Err(Errno((word(16) as i32).wrapping_neg()));
    }
    let mut result = UnixDiagnosis::default();
    let mut at = 32;
    while at + 4 <= bytes {
        let (length, kind) = ((word(at) & 0xffff) as usize, word(at) >> 16);
        match kind {
            2 => result.peer = Some(word(at + 4)),
            4 => result.backlog = word(at + 8),
            6 => result.shutdown = word(at + 4) as u8,
            _ => {}
        }
        at += (length.max(4) + 3) & !3;
    }
    Ok(result)
}

/// struct epoll_event.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
pub struct EpollEvent {
    /// EPOLL* bits.
    pub events: u32,
    /// The user's data.
    pub data: u64,
}

/// epoll_create1(2).
pub fn epoll(flags: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_epoll_create1 as usize, flags as usize, 0) }).map(|fd| fd as i32)
}

/// epoll_ctl(2).
pub fn epoll_control(epoll: i32, operation: i32, fd: i32, event: EpollEvent) -> Result<(), Errno> {
    // SAFETY: the event is a local.
    check(unsafe {
        call4(
            libc::SYS_epoll_ctl as usize,
            epoll as isize as usize,
            operation as usize,
            fd as isize as usize,
            &event as *const _ as usize,
        )
    })
    .map(|_| ())
}

/// epoll_wait(2) without waiting; the number of events.
pub fn epoll_take(epoll: i32, events: &mut [EpollEvent]) -> Result<usize, Errno> {
    // SAFETY: the target is valid for the number of events given.
    check(unsafe {
        call4(libc::SYS_epoll_wait as usize, epoll as isize as usize, events.as_mut_ptr() as usize, events.len(), 0)
    })
}

/// kcmp(KCMP_EPOLL_TFD): whether `fd` is the description that `epoll` has registered as the `nth` one under the
/// number `registered`.
pub fn is_epoll_target(pid: u32, fd: i32, epoll: i32, registered: i32, nth: u32) -> Result<bool, Errno> {
    const KCMP_EPOLL_TFD: usize = 7;
    let slot = [epoll as u32, registered as u32, nth];
    // SAFETY: the slot is a local, struct kcmp_epoll_slot.
    check(unsafe {
        call5(libc::SYS_kcmp as usize, pid as usize, pid as usize, KCMP_EPOLL_TFD, fd as usize, slot.as_ptr() as usize)
    })
    .map(|order| order == 0)
}

/// eventfd2(2).
pub fn eventfd(count: u32, flags: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_eventfd2 as usize, count as usize, flags as usize) }).map(|fd| fd as i32)
}

/// signalfd4(2), a new one.
pub fn signalfd(mask: u64, flags: i32) -> Result<i32, Errno> {
    // SAFETY: the mask is a local.
    check(unsafe { call4(libc::SYS_signalfd4 as usize, usize::MAX, &mask as *const _ as usize, 8, flags as usize) })
        .map(|fd| fd as i32)
}

/// inotify_init1(2).
pub fn inotify(flags: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_inotify_init1 as usize, flags as usize, 0) }).map(|fd| fd as i32)
}

/// inotify_add_watch(2); the watch descriptor.
pub fn inotify_add(fd: i32, path: &Path, mask: u32) -> Result<i32, Errno> {
    // SAFETY: the path is zero-terminated.
    check(unsafe { call3(libc::SYS_inotify_add_watch as usize, fd as isize as usize, path.pointer(), mask as usize) })
        .map(|watch| watch as i32)
}

/// inotify_rm_watch(2).
pub fn inotify_remove(fd: i32, watch: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_inotify_rm_watch as usize, fd as isize as usize, watch as usize) }).map(|_| ())
}

/// pidfd_open(2).
pub fn pidfd(pid: u32, flags: i32) -> Result<i32, Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_pidfd_open as usize, pid as usize, flags as usize) }).map(|fd| fd as i32)
}
