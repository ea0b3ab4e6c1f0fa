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

/// ioctl(TIOCSPTLCK, 0): lets the other side of a new pseudo-terminal be opened.
pub fn unlock(fd: i32) -> Result<(), Errno> {
    let unlocked = 0i32;
    // SAFETY: the source is a local of the size that the request reads.
    check(unsafe { call3(libc::SYS_ioctl as usize, fd as isize as usize, 0x4004_5431, &unlocked as *const _ as usize) })
        .map(|_| ())
}

/// ioctl(TIOCGPTLCK): whether the other side of a pseudo-terminal cannot be opened yet.
pub fn is_locked(fd: i32) -> Result<bool, Errno> {
    ioctl_read(fd, 0x8004_5439).map(|locked| i32::from_ne_bytes(locked) != 0)
}
