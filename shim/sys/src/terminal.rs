//! Terminals: settings, window size, pseudo-terminals.
#![allow(unsafe_code)]

use crate::fs::ioctl_read;
use crate::raw::{Errno, call3, check};

/// ioctl(TCGETS2): struct termios2.
pub fn settings(fd: i32) -> Result<[u8; 44], Errno> {
    ioctl_read(fd, 0x802c_542a)
}

/// ioctl(TIOCGWINSZ): struct winsize.
pub fn window(fd: i32) -> Result<[u8; 8], Errno> {
    ioctl_read(fd, 0x5413)
}

/// ioctl(TIOCGPGRP): the terminal's foreground process group.
pub fn foreground(fd: i32) -> Result<i32, Errno> {
    ioctl_read(fd, 0x540f).map(i32::from_ne_bytes)
}

/// ioctl(TIOCGPTN): the number of the pseudo-terminal that this master belongs to.
pub fn number(fd: i32) -> Result<u32, Errno> {
    ioctl_read(fd, 0x8004_5430).map(u32::from_ne_bytes)
}

/// ioctl(TCSETS2).
pub fn set(fd: i32, settings: &[u8; 44]) -> Result<(), Errno> {
    // SAFETY: the source has the size that the request reads.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, 0x402c_542b, settings.as_ptr() as usize) })
        .map(|_| ())
}

/// ioctl(TIOCSWINSZ).
pub fn set_window(fd: i32, size: &[u8; 8]) -> Result<(), Errno> {
    // SAFETY: the source has the size that the request reads.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, 0x5414, size.as_ptr() as usize) }).map(|_| ())
}

/// ioctl(TIOCSPTLCK): whether the other side of a pseudo-terminal can be opened; a new one's cannot.
pub fn set_locked(fd: i32, locked: bool) -> Result<(), Errno> {
    set_flag(fd, 0x4004_5431, locked)
}

/// ioctl(TIOCGPTLCK): whether the other side of a pseudo-terminal cannot be opened yet.
pub fn is_locked(fd: i32) -> Result<bool, Errno> {
    ioctl_read(fd, 0x8004_5439).map(|locked| i32::from_ne_bytes(locked) != 0)
}

/// ioctl(TIOCGPKT): whether the master's reads tell what the other side does with its settings.
pub fn tells_changes(fd: i32) -> Result<bool, Errno> {
    ioctl_read(fd, 0x8004_5438).map(|on| i32::from_ne_bytes(on) != 0)
}

/// ioctl(TIOCPKT).
pub fn tell_changes(fd: i32, on: bool) -> Result<(), Errno> {
    set_flag(fd, 0x5420, on)
}

/// ioctl(TIOCGEXCL): whether nobody else may open the terminal.
pub fn is_exclusive(fd: i32) -> Result<bool, Errno> {
    ioctl_read(fd, 0x8004_5440).map(|on| i32::from_ne_bytes(on) != 0)
}

/// ioctl(TIOCEXCL).
pub fn make_exclusive(fd: i32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, 0x540c, 0) }).map(|_| ())
}

fn set_flag(fd: i32, request: usize, on: bool) -> Result<(), Errno> {
    let value = i32::from(on);
    // SAFETY: the source is a local of the size that the requests read.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, request, &value as *const _ as usize) })
        .map(|_| ())
}
