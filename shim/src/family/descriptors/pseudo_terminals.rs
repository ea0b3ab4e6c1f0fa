//! What the two sides of a pseudo-terminal have not read yet: taken at a save, put back by a resume.
//!
//! Only where both sides are the program's affair: its master is in the program. What was *typed* waits for the other
//! side, what was *printed* waits for the master. A save reads with the settings of the terminal, so that all that was
//! written before it is treated by them, and then the line that is not complete yet without them. A resume types it
//! again with settings under which nothing is special but the ends of lines, and knows by the echo when the kernel is
//! through with it (it does so on a thread of its own). An end of file that was typed and not read is lost. Neighbour:
//! `terminals`.

use super::placement::Reviving;
use super::{Failure, decimal};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};
use zhuque_sys::{net, terminal};

/// Where masters are opened.
pub const MASTER: &[u8] = b"/dev/ptmx";
/// How many lower numbers are passed over.
const TRIED: u32 = 512;
/// struct termios2.
pub type Settings = [u8; 44];

/// Offsets in it.
const INPUT: usize = 0;
const OUTPUT: usize = 4;
const LOCAL: usize = 12;
const CHARACTERS: core::ops::Range<usize> = 17..36;
/// Ends of file that may be among what was typed.
const ENDS: u32 = 64;
/// How long an echo may take, ms.
const ECHO_MS: i32 = 1000;

fn word(settings: &Settings, at: usize) -> u32 {
    settings.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The settings with other flags, and no character special.
fn plain(settings: &Settings, local: u32) -> Settings {
    let mut plain = *settings;
    for (at, value) in [(INPUT, 0), (OUTPUT, 0), (LOCAL, local)] {
        plain.iter_mut().skip(at).zip(value.to_ne_bytes()).for_each(|(to, from)| *to = from);
    }
    plain.iter_mut().take(CHARACTERS.end).skip(CHARACTERS.start).for_each(|to| *to = 0);
    plain
}

/// What can wait for the master: in the terminal's buffer (drivers/tty/pty.c) and in the line discipline's. A child may go
/// on printing while it is read.
const PRINTED: usize = 8192 + 4095;
/// What can wait for the other side, and be typed again.
const TYPED: usize = 4095;

/// Takes what `fd` could read to the start of `out`; the bytes. `settings`: of the terminal, if it is not the master.
pub fn take(fd: i32, settings: Option<&Settings>, out: &mut [u8]) -> usize {
    let Ok(before) = fs::fcntl(fd, libc::F_GETFL, 0) else { return 0 };
    let _ = fs::fcntl(fd, libc::F_SETFL, before | libc::O_NONBLOCK as u64);
    let most = out.len().min(if settings.is_some() { TYPED } else { PRINTED });
    let out = out.get_mut(..most).unwrap_or(&mut []);
    let mut used = drain(fd, out);
    if let Some(settings) = settings
        && word(settings, LOCAL) & libc::ICANON != 0
        && terminal::set(fd, &plain(settings, 0)).is_ok()
    {
        used += drain(fd, out.get_mut(used..).unwrap_or(&mut []));
        let _ = terminal::set(fd, settings);
    }
    let _ = fs::fcntl(fd, libc::F_SETFL, before);
    used
}

fn drain(fd: i32, out: &mut [u8]) -> usize {
    let (mut used, mut ends) = (0, 0);
    while let Some(room) = out.get_mut(used..).filter(|room| !room.is_empty() && ends < ENDS) {
        match fs::read(fd, room) {
            Ok(0) => ends += 1,
            Ok(bytes) => used += bytes,
            Err(Errno(libc::EINTR)) => {}
            Err(_) => break,
        }
    }
    used
}

/// Opens a master: the one with that number, if nobody else has it by now.
pub fn master(r: &mut Reviving<'_>, wanted: u32, flags: i32) -> Result<i32, Failure> {
    let mut path = Path::new();
    path.push(MASTER);
    let mut tried = 0;
    loop {
        let fd = fs::open_at(libc::AT_FDCWD, &path, flags | libc::O_NOCTTY | libc::O_CLOEXEC, 0)
            .map_err(|e| Failure::about(MASTER).errno(e))?;
        // The kernel gives the lowest number that is free.
        tried += 1;
        if tried == TRIED || terminal::number(fd).map_or(true, |number| number >= wanted) {
            return r.lift(fd);
        }
        r.stash_helper(fd)?;
    }
}

/// Opens the other side for a moment, types and prints again, and leaves it closed.
pub fn put_back(master: i32, settings: &Settings, typed: &[u8], printed: &[u8]) -> Result<(), Errno> {
    let mut path = Path::new();
    path.push(b"/dev/pts/").push(decimal(terminal::number(master)?.into(), &mut [0; 20]));
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let other = fs::open_at(libc::AT_FDCWD, &path, flags, 0)?;
    // Whether it reads by lines must not change: everything that waits would become one line.
    let lines = word(settings, LOCAL) & libc::ICANON;
    let done = type_again(master, other, &plain(settings, lines | libc::ECHO), typed)
        .and_then(|()| terminal::set(other, &plain(settings, lines)))
        .map(|()| print_again(other, printed));
    let _ = terminal::set(other, settings);
    let _ = fs::close(other);
    done
}

/// Prints as much as the terminal takes: the kernel moves what waits to the master's side by itself, in its own time.
fn print_again(other: i32, printed: &[u8]) {
    let mut rest = printed;
    while !rest.is_empty() {
        match fs::write(other, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or(&[]),
            Err(Errno(libc::EAGAIN)) if net::poll(other, libc::POLLOUT, ECHO_MS).is_ok_and(|ready| ready != 0) => {}
            Err(Errno(libc::EINTR)) => {}
            Err(_) => return,
        }
    }
}

fn type_again(master: i32, other: i32, echoing: &Settings, typed: &[u8]) -> Result<(), Errno> {
    if typed.is_empty() {
        return Ok(());
    }
    terminal::set(other, echoing)?;
    fs::write_all(master, typed)?;
    let (mut echoed, mut bytes) = (0, [0u8; 512]);
    while echoed < typed.len() {
        if net::poll(master, libc::POLLIN, ECHO_MS)? == 0 {
            return Err(Errno(libc::EIO));
        }
        echoed += fs::read(master, &mut bytes)?;
    }
    Ok(())
}
