//! The resume's side: every description is made once, under the first of its numbers, and then gets its other numbers.
//!
//! [`revive`] goes over the journal several times: it learns the numbers, makes the descriptions, connects what needs
//! others to exist first, gives out the numbers, registers with epoll and inotify, and takes the locks (last, since
//! closing any descriptor of a file drops the process's locks on it). Whatever is only needed meanwhile lies above all
//! of the program's numbers ([`Reviving::lift`]). Nothing is written to the region, so a failed resume can be
//! repeated.

use super::{Failure, Revival, endpoints, events, files, letters, locks, pipes, terminals, watches};
use zhuque_abi::codec::{CodecError, Records};
use zhuque_abi::header::Stdio;
use zhuque_abi::journal::{Description, Object, Record, SocketState};
use zhuque_sys::Errno;
use zhuque_sys::fs;

/// Status flags that F_SETFL changes.
const SETTABLE: u64 = (libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK) as u64;
const F_SETSIG: i32 = 10;
/// A thread, which is not there yet: nobody gets the signals rather than another one.
const F_OWNER_TID: i32 = 0;
/// Something that is held until the end, or until its partner's description comes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Held {
    /// Who may take it.
    key: u64,
    /// The descriptor.
    fd: i32,
    /// Id of the description that made it.
    maker: u32,
}

/// A resume of descriptors that is under way.
pub struct Reviving<'a> {
    /// The region's directory.
    pub region_directory: i32,
    /// Differences in files are not errors.
    pub force: bool,
    /// The real process id.
    pub pid: u32,
    /// The process id as the program knows it.
    pub virtual_pid: u32,
    /// CLOCK_REALTIME of the save, ns.
    pub saved_realtime_ns: u64,
    /// What the resume was given as stdin, stdout, stderr.
    pub stdio: [i32; 3],
    /// The pipe whose ends come at the moment.
    pub pipe: pipes::Current,
    /// Help for sockets.
    pub sockets: endpoints::Helper,
    /// By id: the number under which a description lives; -1: none.
    homes: &'a mut [i32],
    /// By number: the id of the description that it names in the end; 0: none.
    finals: &'a mut [u32],
    /// Above all of the program's numbers.
    above: i32,
    /// Descriptors to be closed at the end, or taken by a partner.
    held: &'a mut [Held],
    held_count: usize,
}

impl Reviving<'_> {
    /// The number under which the description lives, or will.
    pub fn home(&self, id: u32) -> i32 {
        self.homes.get(id as usize).copied().unwrap_or(-1)
    }

    /// Moves a descriptor above all of the program's.
    pub fn lift(&self, fd: i32) -> Result<i32, Failure> {
        if fd >= self.above {
            return Ok(fd);
        }
        let lifted = fs::fcntl(fd, libc::F_DUPFD_CLOEXEC, self.above as u64);
        let _ = fs::close(fd);
        // EINVAL: the soft limit of open files ends right above the program's numbers.
        lifted
            .map(|fd| fd as i32)
            .map_err(|_| Failure::new(b"too few file descriptors for the resume: raise ulimit -n"))
    }

    /// Both ends of something, lifted.
    pub fn lift_both(&self, ends: [i32; 2]) -> Result<[i32; 2], Failure> {
        Ok([self.lift(ends[0])?, self.lift(ends[1])?])
    }

    /// Keeps a lifted descriptor for whoever asks for `key`.
    pub fn hold(&mut self, key: u64, fd: i32, maker: u32) -> Result<(), Failure> {
        let place = self.held.get_mut(self.held_count).ok_or(Failure::new(b"too many halves of socket pairs"))?;
        *place = Held { key, fd, maker };
        self.held_count += 1;
        Ok(())
    }

    /// Keeps a descriptor open until the end.
    pub fn stash_helper(&mut self, fd: i32) -> Result<(), Failure> {
        let fd = self.lift(fd)?;
        self.hold(0, fd, 0)
    }

    /// What was held under `key`: the descriptor and who made it.
    pub fn take_held(&mut self, key: u64) -> Option<(i32, u32)> {
        let held = self.held.get(..self.held_count)?;
        let at = held.iter().position(|h| h.key == key)?;
        let Held { fd, maker, .. } = *held.get(at)?;
        self.held_count -= 1;
        self.held.swap(at, self.held_count);
        Some((fd, maker))
    }

    /// Whether something is held under `key`.
    pub fn is_held(&self, key: u64) -> bool {
        self.held.iter().take(self.held_count).any(|held| held.key == key)
    }

    /// Lets `number` name the description `id` while `act` runs.
    pub fn with_number(
        &self,
        number: i32,
        id: u32,
        act: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let now = self.finals.get(number as usize).copied().unwrap_or(0);
        let home = self.home(id);
        if now == id || home < 0 {
            return if home < 0 { Ok(()) } else { act() };
        }
        let failed = |e: Errno| Failure::new(b"descriptor ").number(number as u64).text(b": ").errno(e);
        let mut aside = -1;
        let mut cloexec = false;
        if now != 0 {
            cloexec = fs::fcntl(number, libc::F_GETFD, 0).unwrap_or(0) & 1 != 0;
            aside = fs::fcntl(number, libc::F_DUPFD_CLOEXEC, self.above as u64).map_err(failed)? as i32;
        }
        fs::dup_to(home, number, true).map_err(failed)?;
        let result = act();
        if now != 0 {
            fs::dup_to(aside, number, cloexec).map_err(failed)?;
            let _ = fs::close(aside);
        } else {
            let _ = fs::close(number);
        }
        result
    }

    /// Puts a fresh descriptor where its description lives, with its flags and owner.
    fn place(&self, fd: i32, description: &Description<'_>) -> Result<(), Failure> {
        let home = self.home(description.id);
        if home < 0 {
            let _ = fs::close(fd);
            return Ok(());
        }
        let failed = |e: Errno| Failure::new(b"descriptor ").number(home as u64).text(b": ").errno(e);
        if fd != home {
            fs::dup_to(fd, home, true).map_err(failed)?;
            let _ = fs::close(fd);
        }
        // The launcher's own stdio is shared with others: terminals.rs sees to its flags.
        if description.flags & libc::O_PATH as u32 != 0 || matches!(description.object, Object::Stdio { .. }) {
            return Ok(());
        }
        let [kind, id, signal] = description.owner;
        if id == self.virtual_pid as i32 {
            let _ = fs::set_owner(home, [kind, self.pid as i32]);
        } else if id != 0 && kind != F_OWNER_TID {
            let _ = fs::set_owner(home, [kind, id]);
        }
        if signal != 0 {
            let _ = fs::fcntl(home, F_SETSIG, signal as u64);
        }
        let wanted = description.flags as u64 & SETTABLE;
        let now = fs::fcntl(home, libc::F_GETFL, 0).map_err(failed)?;
        if now & SETTABLE != wanted {
            let _ = fs::fcntl(home, libc::F_SETFL, now & !SETTABLE | wanted);
        }
        Ok(())
    }
}

/// The records of a journal, each as long as it is readable.
pub fn each_record<'j>(
    journal: &'j [u8],
    act: &mut dyn FnMut(&Record<'j>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for record in Records::new(journal) {
        let text: &[u8] = match record {
            Ok(ref record) => {
                act(record)?;
                continue;
            }
            Err(CodecError::Version(_)) => b"the journal is of another version",
            Err(CodecError::Truncated) => b"the journal is damaged: it ends inside a record",
            Err(_) => b"the journal is damaged: a record is not readable",
        };
        return Err(Failure::new(text));
    }
    Ok(())
}

/// Makes all descriptors of the journal. Afterwards every number below the helpers that the journal does not name is
/// closed, but for the region's own.
pub fn revive(revival: &mut Revival<'_>) -> Result<(), Failure> {
    let scratch = core::mem::take(&mut revival.scratch);
    let journal = revival.journal;
    let (highest_id, highest_fd) = survey(revival)?;
    let (homes, finals, held) = tables(scratch, highest_id, highest_fd)
        .ok_or(Failure::new(b"more descriptors than fit into the scratch memory"))?;
    each_record(journal, &mut |record| {
        if let Record::Descriptor { fd, description, .. } = *record {
            if let Some(place) = finals.get_mut(fd as usize) {
                *place = description;
            }
            if let Some(home) = homes.get_mut(description as usize).filter(|home| **home < 0) {
                *home = fd;
            }
        }
        Ok(())
    })?;
    close_everything_else(revival);
    let mut r = Reviving {
        region_directory: revival.region_directory,
        force: revival.force,
        pid: revival.pid,
        virtual_pid: revival.virtual_pid,
        saved_realtime_ns: revival.saved_realtime_ns,
        stdio: revival.stdio,
        pipe: pipes::Current::default(),
        sockets: endpoints::Helper::default(),
        homes,
        finals,
        above: highest_fd + 1,
        held,
        held_count: 0,
    };
    for given in revival.stdio.iter().enumerate() {
        let (index, &fd) = given;
        if fd >= 0 {
            let lifted = if fd < r.above { r.lift(fd)? } else { fd };
            if let Some(place) = r.stdio.get_mut(index) {
                *place = lifted;
            }
        }
    }
    make_all(&mut r, journal)?;
    for (given, lifted) in revival.stdio.iter().zip(r.stdio) {
        if *given != lifted {
            let _ = fs::close(lifted);
        }
    }
    Ok(())
}

fn make_all(r: &mut Reviving<'_>, journal: &[u8]) -> Result<(), Failure> {
    terminals::masters_first(r, journal)?;
    each_record(journal, &mut |record| match record {
        Record::Description(description) => {
            let fd = make(r, description)?;
            r.place(fd, description)
        }
        _ => Ok(()),
    })?;
    pipes::finish(r);
    each_record(journal, &mut |record| match record {
        Record::Description(Description { id, object: Object::Socket(socket), .. }) => {
            endpoints::connect_late(r, *id, socket)
        }
        _ => Ok(()),
    })?;
    each_record(journal, &mut |record| match record {
        Record::Description(Description { object: Object::Socket(socket), .. })
            if matches!(socket.state, SocketState::Fresh | SocketState::ConnectedDatagram) =>
        {
            letters::deliver(r, journal, socket)
        }
        _ => Ok(()),
    })?;
    each_record(journal, &mut |record| match *record {
        Record::Descriptor { fd, description, cloexec } => give_number(r, fd, description, cloexec),
        _ => Ok(()),
    })?;
    events::register_disabled(r, journal)?;
    each_record(journal, &mut |record| match record {
        Record::EpollEntry { .. } => events::register(r, record),
        Record::InotifyWatch { .. } => watches::watch(r, record),
        _ => Ok(()),
    })?;
    terminals::set_modes(r, journal)?;
    for held in r.held.get(..r.held_count).unwrap_or(&[]) {
        let _ = fs::close(held.fd);
    }
    r.sockets.close();
    each_record(journal, &mut |record| match record {
        Record::FileLock { .. } => locks::take(r, record),
        _ => Ok(()),
    })
}

fn make(r: &mut Reviving<'_>, description: &Description<'_>) -> Result<i32, Failure> {
    match description.object {
        Object::Stdio { .. } => terminals::revive_stdio(r, description),
        Object::File { .. } => files::revive(r, description),
        Object::Directory { .. } => files::revive_directory(r, description),
        Object::Device { .. } => terminals::revive_device(r, description),
        Object::Pipe { .. } => pipes::revive(r, description),
        Object::Fifo { .. } => pipes::revive_fifo(r, description),
        Object::Socket(ref socket) => endpoints::revive(r, description, socket),
        Object::Inotify => watches::revive(),
        Object::Unsupported { what } => Err(Failure::new(b"this version cannot re-create an open ")
            .text(what)
            .text(b" (descriptor ")
            .number(r.home(description.id) as u64)
            .text(b")")),
        _ => events::revive(r, description),
    }
}

fn give_number(r: &Reviving<'_>, fd: i32, id: u32, cloexec: bool) -> Result<(), Failure> {
    let home = r.home(id);
    let done = if fd != home {
        fs::dup_to(home, fd, cloexec)
    } else {
        fs::fcntl(fd, libc::F_SETFD, cloexec as u64).map(|_| ())
    };
    done.map_err(|e| Failure::new(b"descriptor ").number(fd as u64).text(b": ").errno(e))
}

/// The highest id and the highest number; refuses numbers that are not free.
fn survey(revival: &Revival<'_>) -> Result<(u32, i32), Failure> {
    let (mut id, mut highest) = (0, -1);
    each_record(revival.journal, &mut |record| {
        match *record {
            Record::Description(ref description) => id = id.max(description.id),
            Record::Descriptor { fd, description, .. } => {
                id = id.max(description);
                highest = highest.max(fd);
                if fd < 0 || revival.own.contains(&fd) || revival.helpers.contains(&fd) {
                    return Err(Failure::new(b"descriptor number ")
                        .number(fd as u64)
                        .text(b" is in use by the resume"));
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    // An id far above the number of records would only waste memory; the tables check that it fits.
    Ok((id, highest))
}

/// Splits scratch memory into homes (all -1), finals (all 0) and what is held.
#[allow(unsafe_code)]
fn tables(scratch: &mut [u8], id: u32, fd: i32) -> Option<(&mut [i32], &mut [u32], &mut [Held])> {
    let (homes_bytes, finals_bytes) = ((id as usize + 1) * 4, (fd + 1) as usize * 4);
    let start = scratch.as_ptr().align_offset(4);
    let (homes, rest) = scratch.get_mut(start..)?.split_at_mut_checked(homes_bytes)?;
    let (finals, rest) = rest.split_at_mut_checked(finals_bytes)?;
    // SAFETY: every bit pattern is a valid i32.
    let homes = unsafe { homes.align_to_mut::<i32>() }.1;
    // SAFETY: every bit pattern is a valid u32.
    let finals = unsafe { finals.align_to_mut::<u32>() }.1;
    // SAFETY: every bit pattern is a valid Held: it holds integers only and has no padding.
    let held = unsafe { rest.align_to_mut::<Held>() }.1;
    homes.fill(-1);
    finals.fill(0);
    (held.len() >= 4096).then_some((homes, finals, held))
}

/// Closes what the resume does not need below the helpers.
fn close_everything_else(revival: &Revival<'_>) {
    let kept = |fd: i32| revival.own.contains(&fd) || revival.stdio.contains(&fd) || fd == revival.region_directory;
    let mut first = 0;
    let end = revival.helpers.start.max(0);
    while first < end {
        // The next number to keep, if any.
        let candidates = revival.stdio.iter().copied().chain([revival.region_directory, revival.own.start]);
        let next = candidates.filter(|&fd| fd >= first && fd < end && kept(fd)).min().unwrap_or(end);
        if next > first {
            let _ = fs::close_range(first as u32, next as u32 - 1);
        }
        first = if revival.own.contains(&next) { revival.own.end } else { next + 1 };
    }
}

/// What a resume puts into the region's table of stdio after its commit: the objects that the program's stdin, stdout
/// and stderr are from now on. `given` are the descriptors that the resume was given.
pub fn stdio_identity(given: [i32; 3]) -> [Stdio; 3] {
    given.map(|fd| match fs::stat_fd(fd) {
        Ok(stat) => Stdio { device: stat.st_dev, inode: stat.st_ino, open: 1, mode: stat.st_mode },
        Err(_) => Stdio::default(),
    })
}
