//! Standard input, output and error; terminals; character devices.
//!
//! A description is *stdio* if it is the object that descriptor 0, 1 or 2 was when the program started: that number
//! still names it, or it is a terminal, pipe or socket (a file or /dev/null under another number was more likely
//! opened by the program itself, and has a path). A resume attaches stdio to what it was given; but a regular file as
//! standard input is a file like any other (`table`), with its offset. Settings in `termios` are struct termios2 (44
//! bytes); for a pseudo-terminal struct winsize (8 bytes), the terminal's number and its [modes](mode) (u32 each) follow.
//! Neighbour: [`super::pseudo_terminals`], what such a pair has not read yet.

use super::placement::{Reviving, each_record};
use super::pseudo_terminals::{self, MASTER};
use super::table::{Found, Table};
use super::{Capture, Failure, kind_of};
use zhuque_abi::journal::{Description, Object, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};
use zhuque_sys::{net, process, terminal};

const TERMIOS: usize = 44;
const WINDOW: usize = 8;
const SETTINGS: usize = TERMIOS + WINDOW + 4 + 4;
/// Held descriptors of masters are found under this plus the number that the program knows.
const MASTER_KEY: u64 = 1 << 63;

/// Modes of a pseudo-terminal that its settings do not tell (ioctl_tty(2)).
mod mode {
    /// Of the master: TIOCPKT.
    pub const PACKETS: u32 = 1;
    /// Of the master: TIOCSPTLCK.
    pub const LOCKED: u32 = 2;
    /// Of the other side: TIOCEXCL.
    pub const EXCLUSIVE: u32 = 4;
}

/// Which of the program's first descriptors this description is, if any.
pub fn stdio_number(c: &Capture<'_>, found: &Found<'_>) -> Option<u32> {
    let matches = |number: usize| {
        c.stdio.get(number).is_some_and(|s| s.open == 1 && (s.device, s.inode) == (found.device, found.inode))
    };
    let any = (0..3).find(|&number| matches(number))?;
    let mut low = found.entries.iter().map(|e| e.fd as usize).filter(|&fd| fd < 3);
    if let Some(own) = low.find(|&fd| matches(fd)) {
        return Some(own as u32);
    }
    let nameless = match kind_of(found.mode) {
        libc::S_IFIFO | libc::S_IFSOCK => true,
        libc::S_IFCHR => !found.is_path() && terminal::settings(found.fd).is_ok(),
        _ => false,
    };
    nameless.then_some(any as u32)
}

/// Describes a description of stdio.
pub fn capture_stdio(c: &mut Capture<'_>, found: &Found<'_>, number: u32) -> Result<(), Failure> {
    let settings = match kind_of(found.mode) {
        // Settings of a terminal that others use at the moment are theirs.
        libc::S_IFCHR if in_foreground(found.fd) => terminal::settings(found.fd).ok(),
        // What the program has printed is its own, although the resume may be given another file.
        libc::S_IFREG if c.file_sync => match fs::sync_all(found.fd) {
            Err(e @ Errno(libc::EIO | libc::ENOSPC | libc::EDQUOT)) => {
                return Err(Failure::about(b"standard output").errno(e));
            }
            _ => None,
        },
        _ => None,
    };
    let termios = settings.as_ref().map_or(&[][..], |s| &s[..]);
    found.describe(c.put, Object::Stdio { number, termios })
}

fn in_foreground(fd: i32) -> bool {
    // getpgid of the caller, since its group is not among what a save is told.
    // SAFETY: no memory involved.
    #[allow(unsafe_code)]
    let group = unsafe { zhuque_sys::process::other(libc::SYS_getpgid, [0; 6]) };
    group.is_ok_and(|group| terminal::foreground(fd) == Ok(group as i32))
}

/// Whether a character device can be opened again: memory devices, terminals, the hardware's random numbers. Others have a
/// driver's state behind them.
pub fn is_known(device: u64) -> bool {
    matches!((libc::major(device), libc::minor(device)), (1 | 4 | 5 | 136..=143 | 166 | 188 | 204, _) | (10, 183))
}

/// Describes a character device.
pub fn capture_device(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>, link: &[u8]) -> Result<(), Failure> {
    let stat = fs::stat_fd(found.fd).map_err(|e| Failure::about(link).errno(e))?;
    let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
    if found.is_path() {
        return found.describe(c.put, Object::Device { path: link, termios: &[], data: &[], closed: false });
    }
    // Only a master has one.
    let made = terminal::number(found.fd).ok();
    let is_master = made.is_some();
    let mut settings = [0u8; SETTINGS];
    let (mut used, mut unread) = (0, 0);
    if let Ok(termios) = terminal::settings(found.fd) {
        let number = match made {
            Some(number) => number,
            None if (136..144).contains(&major) => (major - 136) * 256 + minor,
            None => u32::MAX,
        };
        let window = terminal::window(found.fd).unwrap_or([0; WINDOW]);
        let modes = modes(found.fd, is_master);
        let parts = termios.iter().chain(window.iter()).copied().chain(number.to_le_bytes());
        settings.iter_mut().zip(parts.chain(modes.to_le_bytes())).for_each(|(to, from)| *to = from);
        used = SETTINGS;
        // Somebody else's terminal, or one whose input is at the moment for another group of processes: left alone.
        let stopped = terminal::foreground(found.fd).is_ok() && !in_foreground(found.fd);
        if is_master || (has_master(table, number) && !stopped) {
            // In packets, each read would have a byte in front.
            let packets = modes & mode::PACKETS != 0 && terminal::tell_changes(found.fd, false).is_ok();
            unread = pseudo_terminals::take(found.fd, Some(&termios).filter(|_| !is_master), c.scratch);
            if packets {
                let _ = terminal::tell_changes(found.fd, true);
            }
        }
    }
    let termios = settings.get(..used).unwrap_or(&[]);
    let data = c.scratch.get(..unread).unwrap_or(&[]);
    let known = is_known(stat.st_rdev);
    match made {
        Some(number) => {
            let closed = is_closed(table, found.fd, number);
            found.describe(c.put, Object::Device { path: MASTER, termios, data, closed })
        }
        None if known && !link.ends_with(b" (deleted)") => {
            found.describe(c.put, Object::Device { path: link, termios, data, closed: false })
        }
        None => found.describe(c.put, Object::Unsupported { what: link }),
    }
}

fn modes(fd: i32, is_master: bool) -> u32 {
    let bit = |on: Result<bool, Errno>, bit: u32| if on == Ok(true) { bit } else { 0 };
    match is_master {
        true => bit(terminal::tells_changes(fd), mode::PACKETS) | bit(terminal::is_locked(fd), mode::LOCKED),
        false => bit(terminal::is_exclusive(fd), mode::EXCLUSIVE),
    }
}

/// Sets the modes of the pseudo-terminals that the program has made: some would be in the way before all are open.
pub fn set_modes(r: &Reviving<'_>, journal: &[u8]) -> Result<(), Failure> {
    each_record(journal, &mut |record| {
        let Record::Description(Description { id, object: Object::Device { termios, .. }, .. }) = record else {
            return Ok(());
        };
        let (fd, modes) = (r.home(*id), word_in(termios, TERMIOS + WINDOW + 4).unwrap_or(0));
        if fd < 0 || modes == 0 || !number_in(termios).is_some_and(|n| r.is_held(MASTER_KEY | u64::from(n))) {
            return Ok(());
        }
        if modes & mode::PACKETS != 0 {
            let _ = terminal::tell_changes(fd, true);
        }
        if modes & mode::LOCKED != 0 {
            let _ = terminal::set_locked(fd, true);
        }
        if modes & mode::EXCLUSIVE != 0 {
            let _ = terminal::make_exclusive(fd);
        }
        Ok(())
    })
}

fn devices<'t>(table: &Table<'t>) -> impl Iterator<Item = i32> + use<'t> {
    table.all().iter().filter(|e| kind_of(e.mode) == libc::S_IFCHR).map(|e| e.fd)
}

fn has_master(table: &Table<'_>, number: u32) -> bool {
    devices(table).any(|fd| terminal::number(fd) == Ok(number))
}

/// Whether nobody has a pseudo-terminal's other side any more who had it: nobody now, or only children, which end.
fn is_closed(table: &Table<'_>, master: i32, number: u32) -> bool {
    if net::poll(master, 0, 0).unwrap_or(0) & libc::POLLHUP != 0 {
        return true;
    }
    let device = libc::makedev(136 + number / 256, number % 256);
    let inside = devices(table).any(|fd| fs::stat_fd(fd).is_ok_and(|stat| stat.st_rdev == device));
    !inside && terminal::is_locked(master) == Ok(false) && process::has_children()
}

/// Attaches to what the resume was given.
pub fn revive_stdio(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::Stdio { number, termios } = description.object else {
        return Err(Failure::new(b"not stdio"));
    };
    let given = r.stdio.get(number as usize).copied().unwrap_or(-1);
    let failed = |e: Errno| Failure::new(b"stdio ").number(number as u64).text(b": ").errno(e);
    if given < 0 {
        let mut null = Path::new();
        null.push(b"/dev/null");
        return fs::open_at(libc::AT_FDCWD, &null, libc::O_RDWR | libc::O_CLOEXEC, 0).map_err(failed);
    }
    if let Some(settings) = termios.first_chunk::<TERMIOS>().filter(|_| in_foreground(given)) {
        let _ = terminal::set(given, settings);
    }
    let wanted = description.flags as i32 & (libc::O_APPEND | libc::O_NONBLOCK);
    let now = fs::fcntl(given, libc::F_GETFL, 0).map_err(failed)? as i32;
    if now & (libc::O_APPEND | libc::O_NONBLOCK) == wanted {
        return fs::fcntl(given, libc::F_DUPFD_CLOEXEC, 0).map(|fd| fd as i32).map_err(failed);
    }
    // The description is shared with whoever started the resume, a shell perhaps: a new one of the same object gets
    // the flags. A socket, or a pipe of another user, cannot be opened again: it becomes non-blocking for all who share
    // it, since the program may rely on that. A file, whose offset would be another, stays as it is.
    let kind = fs::stat_fd(given).map_or(0, |s| kind_of(s.st_mode));
    if kind == libc::S_IFCHR || kind == libc::S_IFIFO {
        let mut path = Path::new();
        path.push(b"/proc/thread-self/fd/").push_number(given as u64);
        let flags = now & libc::O_ACCMODE | wanted | libc::O_NOCTTY | libc::O_CLOEXEC;
        if let Ok(fd) = fs::open_at(libc::AT_FDCWD, &path, flags | libc::O_NONBLOCK, 0) {
            let _ = fs::fcntl(fd, libc::F_SETFL, wanted as u64);
            return Ok(fd);
        }
    }
    if wanted & libc::O_NONBLOCK != 0 && matches!(kind, libc::S_IFSOCK | libc::S_IFIFO) {
        let _ = fs::fcntl(given, libc::F_SETFL, (now | libc::O_NONBLOCK) as u64);
    }
    fs::fcntl(given, libc::F_DUPFD_CLOEXEC, 0).map(|fd| fd as i32).map_err(failed)
}

fn number_in(termios: &[u8]) -> Option<u32> {
    word_in(termios, TERMIOS + WINDOW).filter(|&n| n != u32::MAX)
}

fn word_in(termios: &[u8], at: usize) -> Option<u32> {
    termios.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Makes the masters of pseudo-terminals before anything else, so that their other sides can be opened.
pub fn masters_first(r: &mut Reviving<'_>, journal: &[u8]) -> Result<(), Failure> {
    // By growing number.
    let mut least = Some(0);
    while let Some(number) = least.and_then(|least| next_master(journal, least)) {
        make_master(r, journal, number)?;
        least = number.checked_add(1);
    }
    Ok(())
}

/// The lowest number of a master that is not below `least`.
fn next_master(journal: &[u8], least: u32) -> Option<u32> {
    let mut next = None;
    let _ = each_record(journal, &mut |record| {
        if let Record::Description(Description { object: Object::Device { path, termios, .. }, .. }) = record
            && let Some(number) = number_in(termios).filter(|&number| *path == MASTER && number >= least)
        {
            next = next.filter(|&next| next < number).or(Some(number));
        }
        Ok(())
    });
    next
}

fn make_master(r: &mut Reviving<'_>, journal: &[u8], number: u32) -> Result<(), Failure> {
    each_record(journal, &mut |record| {
        let Record::Description(Description { flags, object, .. }) = record else { return Ok(()) };
        let Object::Device { path, termios, data, closed } = object else { return Ok(()) };
        if *path != MASTER || number_in(termios) != Some(number) {
            return Ok(());
        }
        let fd = pseudo_terminals::master(r, number, *flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK))?;
        let _ = terminal::set_locked(fd, false);
        let typed = typed(journal, number);
        if let Some(settings) = termios.first_chunk().filter(|_| *closed || !data.is_empty() || !typed.is_empty()) {
            pseudo_terminals::put_back(fd, settings, typed, data)
                .map_err(|e| Failure::about(MASTER).text(b"unread bytes cannot be put back: ").errno(e))?;
        }
        restore(fd, termios);
        r.hold(MASTER_KEY | number as u64, fd, 0)
    })
}

/// What waits for the other side of a pseudo-terminal.
fn typed(journal: &[u8], wanted: u32) -> &[u8] {
    let mut found: &[u8] = &[];
    let _ = each_record(journal, &mut |record| {
        if let Record::Description(Description { object: Object::Device { path, termios, data, .. }, .. }) = record
            && *path != MASTER
            && number_in(termios) == Some(wanted)
            && !data.is_empty()
        {
            found = data;
        }
        Ok(())
    });
    found
}

fn restore(fd: i32, termios: &[u8]) {
    if let Some(settings) = termios.first_chunk::<TERMIOS>() {
        let _ = terminal::set(fd, settings);
    }
    if let Some(size) = termios.get(TERMIOS..).and_then(|rest| rest.first_chunk::<WINDOW>()) {
        let _ = terminal::set_window(fd, size);
    }
}

/// Opens a device again.
pub fn revive_device(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let Object::Device { path, termios, .. } = description.object else {
        return Err(Failure::new(b"not a device"));
    };
    let failed = |e: Errno| Failure::about(path).errno(e);
    let number = number_in(termios);
    let key = number.map_or(0, |n| MASTER_KEY | n as u64);
    if path == MASTER && number.is_some() {
        let (fd, _) = r.take_held(key).ok_or(Failure::about(path).text(b"is missing"))?;
        // Others of the same terminal may follow: they find it by a copy.
        let copy = fs::fcntl(fd, libc::F_DUPFD_CLOEXEC, fd as u64).map_err(failed)? as i32;
        r.hold(key, copy, 0)?;
        return Ok(fd);
    }
    let mut at = Path::new();
    at.push(path);
    if let Some((master, _)) = number.and_then(|_| r.take_held(key)) {
        r.hold(key, master, 0)?;
        let now = terminal::number(master).map_err(failed)?;
        at = Path::new();
        at.push(b"/dev/pts/").push_number(now as u64);
    }
    let flags = description.flags as i32 & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
    let extra = if flags & libc::O_PATH != 0 { 0 } else { libc::O_NONBLOCK };
    let fd = fs::open_at(libc::AT_FDCWD, &at, flags | extra | libc::O_NOCTTY | libc::O_CLOEXEC, 0).or_else(|e| {
        // /dev/tty without a controlling terminal: the terminal that the resume was given, if there is one.
        let given = r.stdio.iter().copied().find(|&fd| path == b"/dev/tty" && terminal::settings(fd).is_ok());
        let given = given.ok_or(failed(e))?;
        fs::fcntl(given, libc::F_DUPFD_CLOEXEC, 0).map(|fd| fd as i32).map_err(failed)
    })?;
    if flags & libc::O_PATH == 0 && fs::stat_fd(fd).map_or(0, |s| kind_of(s.st_mode)) != libc::S_IFCHR {
        return Err(Failure::about(path).text(b"is no device any more"));
    }
    if number.is_some() && at.as_bytes() != path {
        restore(fd, termios);
    }
    Ok(fd)
}
