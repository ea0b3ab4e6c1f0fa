//! A region: the directory of one persistent program.
//!
//! Key type: [`Region`]. Opening one trusts nothing: the directory must be a real directory (no link), belong to the
//! user and be writable by nobody else; the lock is taken before anything is changed; the control file is checked by
//! `control`. Neighbours: `create` makes regions, `store` holds them, `supervise` watches over them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use zhuque_abi::header::Phase;
use zhuque_abi::layout::*;

use crate::control::{Control, Summary};
use crate::process::Program;
use crate::store::{DIRECTORY, Store};
use crate::sys;
use crate::watch::Watch;

/// Longest name.
pub const NAME_BYTES: usize = 200;
/// Prefix of regions that are being made; hidden until they are complete.
pub const NEW: &str = ".new-";
/// Prefix of regions that are being removed.
pub const GONE: &str = ".gone-";
/// How long a lock is waited for: `ls` holds one for an instant, and so does a launcher that is just leaving.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// A region that has been opened; locked after [`Region::lock`].
#[derive(Debug)]
pub struct Region {
    name: String,
    path: PathBuf,
    store: OwnedFd,
    directory: OwnedFd,
    lock: File,
    locked: bool,
    control: Control,
}

/// What a region is at the moment, seen from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The launcher is creating it, or never finished.
    Creating,
    /// The shim is taking over the program.
    Starting,
    /// The program runs.
    Running,
    /// It can be resumed.
    Saved,
    /// The program ended by itself and the region was kept.
    Ended,
    /// The program is gone and was not saved.
    Unsaved,
    /// It cannot be understood.
    Damaged,
}

impl State {
    /// As `ls` shows it.
    pub fn name(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Starting => "starting",
            State::Running => "running",
            State::Saved => "saved",
            State::Ended => "ended",
            State::Unsaved => "unsaved",
            State::Damaged => "damaged",
        }
    }

    /// What the user can do about a name in this state that is wanted for something else.
    pub fn advice(self, name: &str) -> String {
        let remove = format!("zhuque rm {name}");
        let other = "or choose another name with -n";
        match self {
            State::Saved => format!("zhuque resume {name}, {remove}, {other}"),
            State::Unsaved => format!("zhuque inspect {name}, {remove}, {other}"),
            State::Running | State::Starting => format!("{remove} ends it, {other}"),
            _ => format!("{remove}, {other}"),
        }
    }
}

/// Whether `name` may name a region.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let shown = crate::failure::one_line(name);
    ensure!(!name.is_empty(), "a region's name cannot be empty; name it with -n");
    ensure!(name.len() <= NAME_BYTES, "the name is longer than {NAME_BYTES} bytes; choose another with -n");
    let bad = if name.contains('/') {
        "it contains '/'"
    } else if name.starts_with('.') {
        "it starts with '.'"
    } else if name.starts_with('-') {
        "it starts with '-'"
    } else if name.chars().any(char::is_control) {
        "it contains control characters"
    } else {
        return Ok(());
    };
    bail!("{shown}: not a name for a region: {bad}; choose another (run: with -n)")
}

/// Opens the directory of a region and checks whose it is.
pub fn open_directory(store: &Store, name: &str) -> anyhow::Result<OwnedFd> {
    check_name(name)?;
    let directory = openat(store.directory(), name, DIRECTORY, Mode::empty());
    let directory = directory.map_err(|errno| match errno {
        Errno::ENOENT => {
            let store = store.path().display();
            anyhow!("{name}: no such region in {store}; zhuque ls shows what there is")
        }
        // With O_DIRECTORY a link is "not a directory".
        Errno::ELOOP | Errno::ENOTDIR => {
            anyhow!("{name}: not a region: its directory is a link or a file; remove it by hand")
        }
        errno => anyhow!("{name}: cannot open the region: {}", errno.desc()),
    })?;
    let stat = File::from(directory.try_clone()?).metadata()?;
    ensure!(
        stat.uid() == geteuid().as_raw(),
        "{name}: the region belongs to user {}; only they can use it",
        stat.uid()
    );
    ensure!(
        stat.mode() & 0o022 == 0,
        "{name}: others may write to the region; it is not to be trusted any more; zhuque rm will not touch it"
    );
    Ok(directory)
}

/// Opens a file of a region's directory.
fn open_file(directory: impl AsFd, name: &str, file: &str, flags: OFlag) -> anyhow::Result<File> {
    // O_NONBLOCK: a FIFO of this name must not keep us waiting.
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mut opened = openat(&directory, file, flags, Mode::empty());
    if matches!(opened, Err(Errno::EROFS)) {
        // It can be looked at.
        opened = openat(&directory, file, flags.difference(OFlag::O_ACCMODE), Mode::empty());
    }
    let opened = opened.map_err(|errno| match errno {
        Errno::ENOENT => anyhow!("{name}: damaged: no file {file} in it"),
        Errno::ELOOP => anyhow!("{name}: damaged: the file {file} is a link"),
        errno => anyhow!("{name}: cannot open {file}: {}", errno.desc()),
    })?;
    let opened = File::from(opened);
    ensure!(opened.metadata()?.is_file(), "{name}: damaged: {file} is not a regular file");
    Ok(opened)
}

impl Region {
    /// Opens a region, without its lock.
    pub fn open(store: &Store, name: &str) -> anyhow::Result<Region> {
        let directory = open_directory(store, name)?;
        let lock = open_file(&directory, name, LOCK_FILE, OFlag::O_RDWR)?;
        Region::assemble(store, name, directory, lock, false)
    }

    /// Puts a region together from what is open.
    pub fn assemble(store: &Store, name: &str, directory: OwnedFd, lock: File, locked: bool) -> anyhow::Result<Region> {
        let control = open_file(&directory, name, CONTROL_FILE, OFlag::O_RDWR)?;
        let control =
            Control::new(control).map_err(|error| anyhow!("{name}: damaged: {error}; zhuque rm {name} removes it"))?;
        Ok(Region {
            name: name.into(),
            path: store.path().join(name),
            store: store.directory().try_clone_to_owned()?,
            directory,
            lock,
            locked,
            control,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Absolute path of its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory of the store it is in.
    pub fn store(&self) -> BorrowedFd<'_> {
        self.store.as_fd()
    }

    /// Its open directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The descriptor that holds the lock, once [`Region::lock`] has worked. The program inherits it.
    pub fn lock_descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Its control file.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Opens one of its files (never through a link).
    pub fn open_file(&self, file: &str, flags: OFlag) -> anyhow::Result<File> {
        open_file(&self.directory, &self.name, file, flags)
    }

    /// The header as it is now.
    pub fn summary(&self) -> anyhow::Result<Summary> {
        let name = &self.name;
        { self.control.summary() }.map_err(|error| anyhow!("{name}: damaged: {error}; zhuque rm {name} removes it"))
    }

    /// Maps the header, to watch it change.
    pub fn watch(&self) -> anyhow::Result<Watch> {
        Watch::new(self.control.file()).with_context(|| self.name.clone())
    }

    /// Whether a process runs, starts or resumes it.
    pub fn is_busy(&self) -> bool {
        if self.locked {
            return false;
        }
        match sys::try_flock(&self.lock, false) {
            Ok(true) => {
                sys::unlock(&self.lock);
                false
            }
            _ => true,
        }
    }

    /// Takes the lock: from now on nobody else runs the region.
    pub fn lock(&mut self) -> anyhow::Result<()> {
        if !self.try_lock(LOCK_PATIENCE)? {
            bail!("{0}: in use by a running program; zhuque inspect {0} shows which", self.name);
        }
        Ok(())
    }

    /// Takes the lock if it becomes free before `patience` is over.
    pub fn try_lock(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let start = Instant::now();
        while !self.locked {
            let taken = sys::try_flock(&self.lock, true);
            self.locked = taken.with_context(|| format!("{}: cannot lock", self.name))?;
            if !self.locked && start.elapsed() >= patience {
                return Ok(false);
            }
            if !self.locked {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(true)
    }

    /// What it is, given its header.
    pub fn state(&self, summary: &Summary) -> State {
        match summary.phase {
            Phase::Creating => State::Creating,
            Phase::Starting if self.is_busy() => State::Starting,
            Phase::Running if self.is_busy() => State::Running,
            Phase::Starting | Phase::Running | Phase::Unsaved => State::Unsaved,
            Phase::Saved => State::Saved,
            Phase::Ended => State::Ended,
        }
    }

    /// The process that runs it.
    pub fn program(&self, pid: u32) -> Option<Program> {
        // Either file will do: the shim keeps both open for as long as the program lives.
        [self.control.file(), &self.lock].into_iter().find_map(|file| {
            let stat = file.metadata().ok()?;
            Program::find(pid, stat.dev(), stat.ino())
        })
    }

    /// The processes that have its lock file open.
    pub fn holders(&self) -> Vec<u32> {
        let stat = self.lock.metadata();
        stat.map_or_else(|_| Vec::new(), |s| crate::process::holders(s.dev(), s.ino()))
    }

    /// Bytes of the file system that its files take up.
    pub fn bytes(&self) -> u64 {
        bytes(&self.directory, 0)
    }

    /// Whether it still has its name: somebody may have removed it, and made another one of the same name.
    pub fn is_there(&self) -> bool {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let named = fstatat(&self.store, self.name.as_str(), flags);
        let own = nix::sys::stat::fstat(&self.directory);
        matches!((named, own), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Removes it, if that has not been done already. The lock must be held.
    pub fn remove(&self) -> anyhow::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        remove(self.store.as_fd(), &self.name)
    }

    /// Takes its name away, so that nobody finds it any more. [`erase`] does the rest.
    pub fn hide(&self) -> anyhow::Result<String> {
        hide(self.store.as_fd(), &self.name)
    }

    /// Gives it its name back.
    pub fn unhide(&self, hidden: &str) {
        // If the name has been taken, it is lost with the program.
        let flags = RenameFlags::RENAME_NOREPLACE;
        let _ = renameat2(&self.store, hidden, &self.store, self.name.as_str(), flags);
    }
}

/// Bytes taken up by a directory's files. The shim is not counted: regions share it.
pub fn bytes(directory: impl AsFd, depth: u32) -> u64 {
    let mut total = 0;
    for (name, kind) in list(&directory).unwrap_or_default() {
        if kind == Some(Type::Directory) && depth < 4 {
            if let Ok(inner) = openat(&directory, name.as_c_str(), DIRECTORY, Mode::empty()) {
                total += bytes(inner, depth + 1);
            }
        } else if name.to_bytes() != SHIM_FILE.as_bytes() {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            if let Ok(stat) = fstatat(&directory, name.as_c_str(), flags) {
                total += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
        }
    }
    total
}

/// Names and kinds of what is in a directory.
fn list(directory: impl AsFd) -> nix::Result<Vec<(CString, Option<Type>)>> {
    let mut stream = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut all = Vec::new();
    for entry in stream.iter() {
        let entry = entry?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            all.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(all)
}

/// Removes the region `name`. It disappears at once under its name; what it takes up is freed after that.
pub fn remove(store: BorrowedFd<'_>, name: &str) -> anyhow::Result<()> {
    let hidden = hide(store, name)?;
    erase(store, &hidden).map_err(|errno| anyhow!("{name}: cannot remove all of it: {}", errno.desc()))
}

/// Renames a region to a name that nobody looks for.
fn hide(store: BorrowedFd<'_>, name: &str) -> anyhow::Result<String> {
    // An earlier removal by a zhuque of the same pid that was killed on the way may have left the first ones.
    for attempt in 0..100 {
        let hidden = format!("{GONE}{}-{attempt}", std::process::id());
        match renameat(store, name, store, hidden.as_str()) {
            Err(Errno::EEXIST | Errno::ENOTEMPTY) => {}
            Err(errno) => bail!("{name}: cannot remove: {}", errno.desc()),
            Ok(()) => return Ok(hidden),
        }
    }
    bail!("{name}: cannot remove: too many unfinished removals in the store; remove {GONE}* in it")
}

/// Removes what [`hide`] has renamed.
pub fn erase(store: BorrowedFd<'_>, hidden: &str) -> nix::Result<()> {
    let hidden = CString::new(hidden).map_err(|_| Errno::EINVAL)?;
    remove_tree(store, &hidden, 0)
}

/// Removes a directory and what is in it, without ever following a link.
fn remove_tree(parent: BorrowedFd<'_>, name: &CStr, depth: u32) -> nix::Result<()> {
    if depth > 16 {
        return Err(Errno::ELOOP);
    }
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    for (entry, _) in list(&directory)? {
        match unlinkat(&directory, entry.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => remove_tree(directory.as_fd(), &entry, depth + 1)?,
            other => other?,
        }
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

/// Removes what launchers that were killed half-way have left behind.
pub fn sweep(store: &Store) {
    for (entry, _) in list(store.directory()).unwrap_or_default() {
        let name = entry.to_string_lossy();
        let left = name.strip_prefix(GONE).or_else(|| name.strip_prefix(NEW));
        if left.is_some_and(|rest| abandoned(store, &name, rest)) {
            // It is tried again next time.
            let _ = remove_tree(store.directory(), &entry, 0);
        }
    }
}

/// Whether nobody is making or removing the region with this temporary name any more: its lock is free, and the
/// process whose number begins the `rest` of its name is gone.
fn abandoned(store: &Store, name: &str, rest: &str) -> bool {
    let maker = rest.split('-').next();
    let maker = maker.and_then(|pid| pid.parse::<u32>().ok());
    if maker.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        return false;
    }
    let Ok(directory) = openat(store.directory(), name, DIRECTORY, Mode::empty()) else {
        return false;
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let lock = openat(&directory, LOCK_FILE, flags, Mode::empty());
    lock.map_or(true, |lock| matches!(sys::try_flock(lock, true), Ok(true)))
}

/// The name of a program's region when the user gives none.
pub fn default_name(program: &Path) -> anyhow::Result<String> {
    let name = program.file_name().unwrap_or_default();
    let name = std::str::from_utf8(name.as_bytes())
        .map_err(|_| anyhow!("{}: not a name for a region; choose one with -n", program.display()))?;
    check_name(name)?;
    Ok(name.into())
}
