//! The save's side: which descriptors there are, which of them share an open file description, and whose they are.
//!
//! [`capture`] lists /proc/thread-self/fd, sorts by device and inode, and asks kcmp(2) only where these are equal.
//! Where kcmp is not allowed (the default seccomp profile of containers), a mark is used instead that belongs to the
//! description and does nothing while O_ASYNC is off: the signal number of F_SETSIG. What shows the mark of another
//! descriptor is the same description. Every thread of the program is parked meanwhile.

use super::{Capture, Failure, events, files, kind_of, locks, pipes, sockets, terminals, watches};
use core::cmp::Ordering;
use zhuque_abi::journal::{Description, Object, Record};
use zhuque_sys::Errno;
use zhuque_sys::fs::{self, Path};

/// Bit of [`Entry::mode`] that says FD_CLOEXEC.
const CLOEXEC: u32 = 1 << 31;
/// O_PATH descriptions have no state and do not allow fcntl.
const O_PATH: u32 = libc::O_PATH as u32;
const F_GETSIG: i32 = 11;
const F_SETSIG: i32 = 10;

/// One descriptor of the program.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Entry {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// The number.
    pub fd: i32,
    /// Id of its description.
    pub description: u32,
    /// F_GETFL.
    pub flags: u32,
    /// st_mode, and [`CLOEXEC`].
    pub mode: u32,
}

impl Entry {
    /// FD_CLOEXEC.
    pub fn is_cloexec(&self) -> bool {
        self.mode & CLOEXEC != 0
    }

    fn key(&self) -> (u64, u64, u32) {
        (self.device, self.inode, kind_of(self.mode))
    }
}

/// An open file description under capture.
pub struct Found<'t> {
    /// Its id.
    pub id: u32,
    /// One of its descriptors, the lowest.
    pub fd: i32,
    /// F_GETFL.
    pub flags: u32,
    /// st_mode.
    pub mode: u32,
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// All of its descriptors.
    pub entries: &'t [Entry],
    /// F_GETOWN_EX and F_GETSIG.
    owner: [i32; 3],
}

impl Found<'_> {
    /// Access mode: O_RDONLY, O_WRONLY or O_RDWR.
    pub fn access(&self) -> i32 {
        self.flags as i32 & libc::O_ACCMODE
    }

    /// Whether it was opened with O_PATH.
    pub fn is_path(&self) -> bool {
        self.flags & O_PATH != 0
    }

    /// Writes the description's record.
    pub fn describe(&self, c: &mut Put<'_>, object: Object<'_>) -> Result<(), Failure> {
        c(&Record::Description(Description { id: self.id, flags: self.flags, owner: self.owner, object }))
    }
}

/// Where records go.
pub type Put<'a> = dyn FnMut(&Record<'_>) -> Result<(), Failure> + 'a;

/// Every descriptor, those of one description next to each other, descriptions of one object next to each other.
pub struct Table<'t> {
    entries: &'t [Entry],
    /// Whether kcmp works here.
    pub compares: bool,
    /// /proc/thread-self/fd.
    pub links: i32,
    /// /proc/thread-self/fdinfo.
    pub infos: i32,
}

impl<'t> Table<'t> {
    /// Device and inode of every descriptor of a regular file or directory, equal ones next to each other.
    pub fn files(&self) -> impl Iterator<Item = (u64, u64)> + use<'t> {
        let lockable = |e: &&Entry| matches!(kind_of(e.mode), libc::S_IFREG | libc::S_IFDIR);
        self.entries.iter().filter(lockable).map(|e| (e.device, e.inode))
    }

    /// The descriptors of the object with this device and inode.
    pub fn of_object(&self, device: u64, inode: u64) -> &'t [Entry] {
        let start = self.entries.partition_point(|e| (e.device, e.inode) < (device, inode));
        let rest = self.entries.get(start..).unwrap_or(&[]);
        let count = rest.partition_point(|e| (e.device, e.inode) == (device, inode));
        rest.get(..count).unwrap_or(&[])
    }

    /// The descriptors of files with this inode on any device: other lists name devices as the file system has them,
    /// which on some (btrfs, overlay) is not what fstat says.
    pub fn of_inode(&self, inode: u64) -> impl Iterator<Item = &'t Entry> {
        self.entries.iter().filter(move |e| e.inode == inode && kind_of(e.mode) == libc::S_IFREG)
    }

    /// All descriptors.
    pub fn all(&self) -> &'t [Entry] {
        self.entries
    }

    /// What a descriptor's link in /proc says.
    pub fn link<'b>(&self, fd: i32, buffer: &'b mut [u8]) -> &'b [u8] {
        let mut name = Path::new();
        name.push_number(fd as u64);
        let length = fs::read_link_at(self.links, &name, buffer).unwrap_or(0);
        buffer.get(..length).unwrap_or(&[])
    }
}

/// What the families remember from one description to the next.
#[derive(Default)]
pub struct Notes {
    /// Files kept alive.
    pub kept: files::Kept,
    /// Options of fresh sockets, to write down only what differs.
    pub templates: sockets::Notes,
}

/// Describes every descriptor of the program.
pub fn capture(c: &mut Capture<'_>) -> Result<(), Failure> {
    super::letters::begin();
    let scratch = core::mem::take(&mut c.scratch);
    if scratch.len() < super::SCRATCH_BYTES {
        return Err(Failure::new(b"not enough scratch memory for the descriptors"));
    }
    let (table, work) = scratch.split_at_mut(scratch.len() / 2);
    c.scratch = work;
    let entries = entries_of(table);
    let (entries, spare) = entries.split_at_mut(entries.len() / 2);
    let count = enumerate(c, entries)?;
    let entries = entries.get_mut(..count).unwrap_or(&mut []);
    let compares = group(entries, spare, c.pid);
    let open = |path: &[u8]| {
        let mut at = Path::new();
        at.push(path);
        fs::open_at(libc::AT_FDCWD, &at, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)
            .map_err(|e| Failure::about(path).errno(e))
    };
    let links = open(b"/proc/thread-self/fd")?;
    let infos = open(b"/proc/thread-self/fdinfo")?;
    let table = Table { entries, compares, links, infos };
    let mut notes = Notes::default();
    let result = describe_all(c, &table, &mut notes);
    let _ = fs::close(links);
    let _ = fs::close(infos);
    notes.templates.close();
    notes.kept.close();
    result
}

fn describe_all(c: &mut Capture<'_>, table: &Table<'_>, notes: &mut Notes) -> Result<(), Failure> {
    let mut rest = table.entries;
    while let Some(first) = rest.first() {
        let count = rest.partition_point(|e| e.description <= first.description);
        let (entries, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        describe_one(c, table, notes, entries)?;
        for entry in entries {
            (c.put)(&Record::Descriptor { fd: entry.fd, description: entry.description, cloexec: entry.is_cloexec() })?;
        }
        rest = behind;
    }
    locks::capture(c, table)?;
    notes.kept.forget_others(c)
}

fn describe_one(c: &mut Capture<'_>, table: &Table<'_>, notes: &mut Notes, entries: &[Entry]) -> Result<(), Failure> {
    let Some(first) = entries.first() else { return Ok(()) };
    let mut found = Found {
        id: first.description,
        fd: first.fd,
        flags: first.flags,
        mode: first.mode & !CLOEXEC,
        device: first.device,
        inode: first.inode,
        entries,
        owner: [0; 3],
    };
    if !found.is_path() {
        found.owner = owner_of(first.fd, c.pid, c.virtual_pid);
    }
    // A file that is read from, not attached to: the resume goes on where it was.
    let is_input = |number: &u32| *number == 0 && kind_of(found.mode) == libc::S_IFREG;
    if let Some(number) = terminals::stdio_number(c, &found).filter(|number| !is_input(number)) {
        return terminals::capture_stdio(c, &found, number);
    }
    if kind_of(found.mode) == libc::S_IFSOCK && !found.is_path() {
        return sockets::capture(c, table, &mut notes.templates, &found);
    }
    let mut buffer = [0u8; 4096];
    let link = table.link(first.fd, &mut buffer);
    let named = link.first() == Some(&b'/');
    match kind_of(found.mode) {
        // Of symbolic links and of sockets' files only the name can be open.
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK | libc::S_IFLNK | libc::S_IFSOCK if named => {
            files::capture(c, table, &mut notes.kept, &found, link)
        }
        libc::S_IFCHR if named => terminals::capture_device(c, table, &found, link),
        libc::S_IFIFO => pipes::capture(c, table, &found, link),
        _ if link == b"anon_inode:inotify" => watches::capture(c, table, &found),
        _ => events::capture(c, table, &found, link),
    }
}

/// F_GETOWN_EX and F_GETSIG; the process itself is named by the id that the program knows.
fn owner_of(fd: i32, pid: u32, virtual_pid: u32) -> [i32; 3] {
    let [kind, id] = fs::owner(fd).unwrap_or([0, 0]);
    if id == 0 {
        // Nobody gets a signal, whichever is chosen.
        return [0; 3];
    }
    let signal = fs::fcntl(fd, F_GETSIG, 0).unwrap_or(0) as i32;
    [kind, if id == pid as i32 { virtual_pid as i32 } else { id }, signal]
}

/// Scratch memory as a table.
#[allow(unsafe_code)]
fn entries_of(memory: &mut [u8]) -> &mut [Entry] {
    // SAFETY: every bit pattern is a valid Entry: it holds integers only and has no padding.
    unsafe { memory.align_to_mut::<Entry>() }.1
}

/// Fills the table; the number of descriptors.
fn enumerate(c: &mut Capture<'_>, entries: &mut [Entry]) -> Result<usize, Failure> {
    let mut path = Path::new();
    path.push(b"/proc/thread-self/fd");
    let (mut count, mut full) = (0, false);
    let own = c.own.clone();
    let buffer = c.scratch.get_mut(..65536).unwrap_or(&mut []);
    fs::numbers_in(&path, buffer, true, |number| {
        let fd = number as i32;
        if own.contains(&fd) {
            return;
        }
        // A descriptor that cannot be asked was closed by the listing's end.
        let Ok(stat) = fs::stat_fd(fd) else { return };
        let flags = fs::fcntl(fd, libc::F_GETFL, 0).unwrap_or(0) as u32;
        let cloexec = fs::fcntl(fd, libc::F_GETFD, 0).unwrap_or(0) & 1 != 0;
        let Some(place) = entries.get_mut(count) else {
            full = true;
            return;
        };
        let mode = stat.st_mode | if cloexec { CLOEXEC } else { 0 };
        *place = Entry { device: stat.st_dev, inode: stat.st_ino, fd, description: 0, flags, mode };
        count += 1;
    })
    .map_err(|e| Failure::about(path.as_bytes()).errno(e))?;
    if full { Err(Failure::new(b"more descriptors than fit into the scratch memory")) } else { Ok(count) }
}

/// Sorts the table and numbers the descriptions; whether kcmp works.
fn group(entries: &mut [Entry], spare: &mut [Entry], pid: u32) -> bool {
    sort(entries, spare, &mut |a, b| (a.key(), a.fd) < (b.key(), b.fd));
    let mut compares = true;
    let mut next = 1;
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let key = first.key();
        let count = rest.iter().take_while(|e| e.key() == key).count();
        let Some((run, behind)) = rest.split_at_mut_checked(count) else { break };
        compares &= group_run(run, spare, pid, compares, &mut next);
        rest = behind;
    }
    compares
}

/// Numbers the descriptions of one object, from `next` on.
fn group_run(run: &mut [Entry], spare: &mut [Entry], pid: u32, compares: bool, next: &mut u32) -> bool {
    if let [only] = run {
        only.description = *next;
        *next += 1;
        return true;
    }
    let probe = match run {
        [one, other, ..] if compares => fs::compare_descriptions(pid, one.fd, other.fd),
        _ => Err(Errno(libc::ENOSYS)),
    };
    if probe.is_err() {
        group_by_mark(run, spare, next);
        return false;
    }
    let order = |a: i32, b: i32| fs::compare_descriptions(pid, a, b).unwrap_or(Ordering::Equal);
    sort(run, spare, &mut |a, b| match order(a.fd, b.fd) {
        Ordering::Equal => a.fd < b.fd,
        unequal => unequal == Ordering::Less,
    });
    let mut previous: Option<i32> = None;
    for entry in run.iter_mut() {
        if previous.is_none_or(|fd| order(fd, entry.fd) != Ordering::Equal) {
            *next += 1;
        }
        entry.description = *next - 1;
        previous = Some(entry.fd);
    }
    true
}

/// Numbers the descriptions of one object without kcmp, by the mark that F_SETSIG leaves on a description. Each pass
/// over the run finds up to 64 of them. The program's own signal numbers wait in the entries' modes meanwhile.
fn group_by_mark(run: &mut [Entry], spare: &mut [Entry], next: &mut u32) {
    const MARKS: u32 = 64;
    const SIGNAL_SHIFT: u32 = 24;
    const SIGNAL: u32 = 0x7f << SIGNAL_SHIFT;
    let mark = |fd: i32, signal: u32| {
        let _ = fs::fcntl(fd, F_SETSIG, signal as u64);
    };
    for entry in run.iter_mut() {
        if entry.flags & O_PATH != 0 {
            entry.description = *next;
            *next += 1;
        } else {
            let signal = fs::fcntl(entry.fd, F_GETSIG, 0).unwrap_or(0) as u32;
            entry.mode |= signal << SIGNAL_SHIFT & SIGNAL;
        }
    }
    run.iter().filter(|e| e.mode & SIGNAL != 0).for_each(|e| mark(e.fd, 0));
    while run.iter().any(|e| e.description == 0) {
        let base = *next;
        for entry in run.iter_mut().filter(|e| e.description == 0) {
            let found = fs::fcntl(entry.fd, F_GETSIG, 0).unwrap_or(0) as u32;
            if found > 0 {
                entry.description = base + found - 1;
            } else if *next - base < MARKS {
                mark(entry.fd, *next - base + 1);
                entry.description = *next;
                *next += 1;
            }
        }
        run.iter().filter(|e| e.description >= base).for_each(|e| mark(e.fd, 0));
    }
    for entry in run.iter_mut() {
        if entry.mode & SIGNAL != 0 {
            mark(entry.fd, (entry.mode & SIGNAL) >> SIGNAL_SHIFT);
            entry.mode &= !SIGNAL;
        }
    }
    sort(run, spare, &mut |a, b| (a.description, a.fd) < (b.description, b.fd));
}

/// Merge sort by way of `spare`, which is as long as `slice`: as few comparisons as can be (each may be a system call),
/// no recursion, no panic whatever `less` says.
fn sort(slice: &mut [Entry], spare: &mut [Entry], less: &mut dyn FnMut(&Entry, &Entry) -> bool) {
    let Some(spare) = spare.get_mut(..slice.len()) else { return };
    let mut width = 1;
    while width < slice.len() {
        for (from, to) in slice.chunks(2 * width).zip(spare.chunks_mut(2 * width)) {
            let (mut left, mut right) = from.split_at_checked(width).unwrap_or((from, &[]));
            for place in to {
                let take_right = match (left.first(), right.first()) {
                    (Some(l), Some(r)) => less(r, l),
                    (None, Some(_)) => true,
                    (_, None) => false,
                };
                let source = if take_right { &mut right } else { &mut left };
                let Some((first, rest)) = source.split_first() else { break };
                *place = *first;
                *source = rest;
            }
        }
        for (to, from) in slice.iter_mut().zip(spare.iter()) {
            *to = *from;
        }
        width *= 2;
    }
}
