//! Descriptors that report events: epoll, eventfd, signalfd, pidfd.
//!
//! Their state is in /proc/PID/fdinfo. Registrations of an epoll instance name a number and the description that the
//! number meant at that time, which may have other numbers by now, or none: KCMP_EPOLL_TFD tells. What one-shot
//! registration has fired already is written down with no events; a resume makes it fire once into nothing where it
//! can ([`register_disabled`]). Neighbours: [`super::watches`] (inotify), [`super::timerfds`], [`super::placement`].

use super::fdinfo::{self, decimal_field, hex_field};
use super::placement::{Reviving, each_record};
use super::table::{Entry, Found, Table};
use super::{Capture, Failure, kind_of, timerfds};
use zhuque_abi::journal::{Description, Object, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::Path;
use zhuque_sys::net::{self, EpollEvent};
use zhuque_sys::{fs, process};

/// Bits of a registration that are no events.
const MODES: u32 = (libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;

/// Describes an anonymous object.
pub fn capture(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>, link: &[u8]) -> Result<(), Failure> {
    match link {
        b"anon_inode:[eventpoll]" => capture_epoll(c, table, found),
        b"anon_inode:[eventfd]" => capture_eventfd(c, table, found),
        b"anon_inode:[timerfd]" => timerfds::capture(c, table, found),
        b"anon_inode:[signalfd]" => capture_signalfd(c, table, found),
        b"anon_inode:[pidfd]" => capture_pidfd(c, table, found),
        _ => found.describe(c.put, Object::Unsupported { what: link }),
    }
}

/// Calls `each` with the lines of the description's fdinfo; `buffer` holds pieces of it.
pub fn info(
    table: &Table<'_>,
    fd: i32,
    buffer: &mut [u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut name = Path::new();
    name.push_number(fd as u64);
    fdinfo::lines(table.infos, &name, buffer, each)
}

fn capture_eventfd(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    let (mut count, mut semaphore) = (0, false);
    info(table, found.fd, &mut [0; 512], &mut |line| {
        count = hex_field(line, b"eventfd-count:").unwrap_or(count);
        semaphore |= decimal_field(line, b"eventfd-semaphore:") == Some(1);
        Ok(())
    })?;
    found.describe(c.put, Object::EventFd { count, semaphore })
}

fn capture_signalfd(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    let mut mask = 0;
    info(table, found.fd, &mut [0; 512], &mut |line| {
        mask = hex_field(line, b"sigmask:").unwrap_or(mask);
        Ok(())
    })?;
    found.describe(c.put, Object::SignalFd { mask })
}

fn capture_pidfd(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    // -1 for a process that has been waited for: read as 0, like any other that is gone.
    let mut pid = 0;
    info(table, found.fd, &mut [0; 512], &mut |line| {
        if line.starts_with(b"Pid:") {
            pid = decimal_field(line, b"Pid:").unwrap_or(0) as u32;
        }
        Ok(())
    })?;
    if pid == c.pid {
        pid = c.virtual_pid;
    }
    found.describe(c.put, Object::PidFd { pid })
}

/// How often a number has occurred among the registrations of one epoll instance: exact for all numbers that occur
/// once and for the first few that occur more often.
struct Occurrences<'b> {
    seen: &'b mut [u8],
    repeated: [(u64, u32); 64],
    used: usize,
}

impl Occurrences<'_> {
    fn count(&mut self, fd: u64) -> u32 {
        let bit = 1u8 << (fd % 8);
        let Some(byte) = self.seen.get_mut(fd as usize / 8) else { return 0 };
        if *byte & bit == 0 {
            *byte |= bit;
            return 0;
        }
        let known = self.repeated.get_mut(..self.used).unwrap_or(&mut []);
        if let Some(entry) = known.iter_mut().find(|entry| entry.0 == fd) {
            entry.1 += 1;
            return entry.1;
        }
        if let Some(place) = self.repeated.get_mut(self.used) {
            *place = (fd, 1);
            self.used += 1;
        }
        1
    }
}

fn capture_epoll(c: &mut Capture<'_>, table: &Table<'_>, found: &Found<'_>) -> Result<(), Failure> {
    found.describe(c.put, Object::Epoll)?;
    let (seen, buffer) = c.scratch.split_at_mut_checked(1 << 18).unwrap_or((&mut [], &mut []));
    seen.fill(0);
    let mut occurrences = Occurrences { seen, repeated: [(0, 0); 64], used: 0 };
    let (put, pid) = (&mut *c.put, c.pid);
    let mut index = 0;
    info(table, found.fd, buffer, &mut |line| {
        let Some(fd) = decimal_field(line, b"tfd:").filter(|_| line.starts_with(b"tfd:")) else { return Ok(()) };
        let nth = occurrences.count(fd);
        let events = hex_field(line, b"events:").unwrap_or(0) as u32;
        let data = hex_field(line, b"data:").unwrap_or(0);
        let inode = hex_field(line, b"ino:").unwrap_or(0);
        let device = fdinfo::device(hex_field(line, b"sdev:").unwrap_or(0));
        let event = EpollEvent { events, data };
        let registration = Registration { epoll: found.fd, instance: found.id, fd: fd as i32, index, nth, event };
        index += 1;
        let description = target(table, pid, &registration, device, inode);
        put(&Record::EpollEntry { epoll: found.id, fd: fd as i32, description, events, data })
    })
}

/// kcmp goes through an instance's registrations one by one: for more than this many another way is quicker.
const COMPARED: u32 = 64;

/// A registration as an epoll instance shows it.
struct Registration {
    epoll: i32,
    /// The id of its description.
    instance: u32,
    /// The number that was registered.
    fd: i32,
    /// How many come before it, and how many of these have the same number.
    index: u32,
    nth: u32,
    event: EpollEvent,
}

/// The description behind a registration of the object with this device and inode; 0: not in the program.
fn target(table: &Table<'_>, pid: u32, registration: &Registration, device: u64, inode: u64) -> u32 {
    let Registration { epoll, fd, nth, .. } = *registration;
    let candidates = table.of_object(device, inode);
    let by_number = candidates.iter().find(|e| e.fd == fd);
    if let Some(only) = candidates.first().filter(|f| candidates.iter().all(|e| e.description == f.description)) {
        return only.description;
    }
    if table.compares && registration.index < COMPARED {
        let is_it = |entry: &&Entry| net::is_epoll_target(pid, entry.fd, epoll, fd, nth) == Ok(true);
        return by_number.filter(is_it).or_else(|| candidates.iter().find(is_it)).map_or(0, |e| e.description);
    }
    // Otherwise each description that it can be is tried. Of several registrations with the same number the order
    // is not known, only that each is another description.
    let by_number = by_number.filter(|e| is_registered(table, registration, e)).map_or(0, |e| e.description);
    if by_number != 0 && nth == 0 {
        return by_number;
    }
    let mut previous = by_number;
    let others = candidates.iter().filter(|e| {
        let new = e.description != previous && e.description != by_number;
        previous = e.description;
        new
    });
    let before = if by_number != 0 { nth - 1 } else { nth };
    let mut others = others.filter(|e| is_registered(table, registration, e));
    others.nth(before as usize).map_or(0, |e| e.description)
}

/// Whether a description is registered under the registration's number: to set what is set already succeeds only for
/// that. The description gets the number for a moment, which nobody else can see now.
fn is_registered(table: &Table<'_>, registration: &Registration, entry: &Entry) -> bool {
    let Registration { epoll, fd, event, .. } = *registration;
    let same = EpollEvent { events: event.events & !(libc::EPOLLEXCLUSIVE as u32), ..event };
    // An exclusive registration cannot be changed, which is another error than that there is none.
    let exclusive = event.events & libc::EPOLLEXCLUSIVE as u32 != 0;
    let is_set = || match net::epoll_control(epoll, libc::EPOLL_CTL_MOD, fd, same) {
        Ok(()) => true,
        Err(e) => e == Errno(libc::EINVAL) && exclusive,
    };
    // An instance cannot watch itself.
    if entry.description == registration.instance {
        return false;
    }
    if entry.fd == fd {
        return is_set();
    }
    // Taking a file's number away for a moment would drop its POSIX locks.
    if table.all().iter().any(|e| e.fd == fd && kind_of(e.mode) == libc::S_IFREG) {
        return false;
    }
    // The number may be the program's, free, or in use by this save itself.
    let Ok(flags) = fs::fcntl(fd, libc::F_GETFD, 0) else {
        let set = fs::dup_to(entry.fd, fd, true).is_ok() && is_set();
        let _ = fs::close(fd);
        return set;
    };
    let Ok(aside) = fs::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) else { return false };
    let set = fs::dup_to(entry.fd, fd, true).is_ok() && is_set();
    let _ = fs::dup_to(aside as i32, fd, flags & 1 != 0);
    let _ = fs::close(aside as i32);
    set
}

/// Makes an object again.
pub fn revive(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    let made = match description.object {
        Object::Epoll => net::epoll(libc::EPOLL_CLOEXEC),
        Object::EventFd { count, semaphore } => revive_eventfd(count, semaphore),
        Object::TimerFd { .. } => timerfds::revive(r, &description.object),
        Object::SignalFd { mask } => net::signalfd(mask, libc::SFD_CLOEXEC),
        Object::PidFd { pid } if pid == r.virtual_pid => net::pidfd(r.pid, 0),
        Object::PidFd { .. } => pidfd_of_the_dead(),
        _ => return Err(Failure::new(b"the journal has an object of an unknown kind")),
    };
    made.map_err(|e| Failure::new(b"descriptor ").number(r.home(description.id) as u64).text(b": ").errno(e))
}

fn revive_eventfd(count: u64, semaphore: bool) -> Result<i32, Errno> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let first = count.min(u32::MAX as u64);
    let fd = net::eventfd(first as u32, flags)?;
    if count > first {
        fs::write_all(fd, &(count - first).to_ne_bytes())?;
    }
    Ok(fd)
}

/// A pidfd that says that its process has ended: of a child that ends at once.
#[allow(unsafe_code)]
fn pidfd_of_the_dead() -> Result<i32, Errno> {
    // SAFETY: without CLONE_VM the child has a memory of its own; the stack it goes on with is private memory, and the
    // next thing that it does is to end.
    let child = unsafe { process::other(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0, 0]) }? as u32;
    if child == 0 {
        process::exit_group(0);
    }
    let fd = net::pidfd(child, 0);
    let _ = process::wait(child as i32, 0);
    fd
}

fn control(
    r: &Reviving<'_>,
    record: &Record<'_>,
    act: &mut dyn FnMut(i32, i32, EpollEvent) -> Result<(), Errno>,
) -> Result<(), Failure> {
    let Record::EpollEntry { epoll, fd, description, events, data } = *record else { return Ok(()) };
    let home = r.home(epoll);
    // A description that is not in the program cannot be registered again, and its events could not be handled.
    if description == 0 || home < 0 {
        return Ok(());
    }
    r.with_number(fd, description, &mut || {
        act(home, fd, EpollEvent { events, data }).map_err(|e| {
            Failure::new(b"descriptor ").number(fd as u64).text(b" cannot be registered with epoll: ").errno(e)
        })
    })
}

fn is_disabled(record: &Record<'_>) -> bool {
    matches!(*record, Record::EpollEntry { events, .. } if events & libc::EPOLLONESHOT as u32 != 0 && events & !MODES == 0)
}

/// Registers what has fired once already, before everything else: it is made to fire here if it is ready at all, so
/// that it stays silent until the program arms it again.
pub fn register_disabled(r: &mut Reviving<'_>, journal: &[u8]) -> Result<(), Failure> {
    each_record(journal, &mut |record| {
        if !is_disabled(record) {
            return Ok(());
        }
        control(r, record, &mut |epoll, fd, event| {
            let armed = EpollEvent { events: event.events | (libc::EPOLLIN | libc::EPOLLOUT) as u32, data: event.data };
            net::epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, armed)?;
            let mut fired = [EpollEvent::default(); 1];
            if net::epoll_take(epoll, &mut fired)? == 0 {
                // Not ready: errors and hang-ups cannot be masked, and would be reported.
                net::epoll_control(epoll, libc::EPOLL_CTL_MOD, fd, event)?;
            }
            Ok(())
        })
    })
}

/// Registers a descriptor with epoll again.
pub fn register(r: &mut Reviving<'_>, record: &Record<'_>) -> Result<(), Failure> {
    if is_disabled(record) {
        return Ok(());
    }
    control(r, record, &mut |epoll, fd, event| match net::epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, event) {
        // Two registrations that a save without kcmp could not tell apart.
        Err(Errno(libc::EEXIST)) => Ok(()),
        other => other,
    })
}
