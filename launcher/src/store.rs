//! A store: a directory that holds regions, and what it is good for.
//!
//! Key types: [`Store`] (an open store), [`Medium`] (what kind of file system it is, and so what it survives).
//! Names that start with a dot are not regions: `.shim` holds the shims that regions were started with, `.plans` the
//! cached plans of call sites. Neighbours: `region` works inside a store, `commands::check` explains one.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use zhuque_abi::layout::{PAGE, SLICE_BYTES};

use crate::sys;

/// Flags for every directory of ours that is opened by name.
pub const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An open store.
pub struct Store {
    path: PathBuf,
    directory: OwnedFd,
}

/// What a file system is, as far as a store on it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// tmpfs and ramfs: memory.
    Memory,
    /// Persistent memory: mapped pages are the medium.
    Dax,
    /// Anything else.
    Disk,
}

impl Medium {
    /// What a store on it survives.
    pub fn survives(self) -> &'static str {
        match self {
            Medium::Memory => "survives kill and crash of the program, not a reboot",
            Medium::Dax => "survives a power loss if the machine flushes on fail",
            Medium::Disk => "survives a reboot, and a power loss that is announced in time",
        }
    }
}

/// What a probe has found out about a directory.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The kind of file system.
    pub medium: Medium,
    /// Its name.
    pub file_system: String,
    /// Bytes that are free.
    pub free: u64,
    /// Files that can be made.
    pub files: u64,
    /// Files can be made in it.
    pub writable: Result<(), String>,
    /// Files in it can be executed.
    pub executable: Result<(), String>,
    /// Files can be as large as a slice.
    pub sparse: Result<(), String>,
}

/// The path of the store that `-s`, the environment or the default says, and whether it is the default.
pub fn path(given: Option<&Path>) -> (PathBuf, bool) {
    if let Some(path) = given {
        return (path.into(), false);
    }
    match env::var_os("ZHUQUE_STORE").filter(|value| *value != OsString::new()) {
        Some(path) => (path.into(), false),
        None => (format!("/dev/shm/zhuque-{}", geteuid()).into(), true),
    }
}

impl Store {
    /// Opens the store; one that does not exist is an error.
    pub fn open(given: Option<&Path>) -> anyhow::Result<Store> {
        let (path, default) = path(given);
        if !path.exists() {
            if default {
                bail!("{}: no store yet; zhuque run makes it", path.display());
            }
            bail!("{}: no such store; make it with mkdir -m 700", path.display());
        }
        Store::open_at(&path, default)
    }

    /// Opens the store for a new region: makes the default one if it is not there.
    pub fn open_or_create(given: Option<&Path>) -> anyhow::Result<Store> {
        let (path, default) = path(given);
        if default {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    let path = path.display();
                    return Err(anyhow!("{path}: cannot make the store: {error}; name another with -s"));
                }
                _ => {}
            }
        }
        Store::open(given)
    }

    fn open_at(path: &Path, default: bool) -> anyhow::Result<Store> {
        let shown = path.display();
        // Where the user's path leads is the user's business; that the default one leads elsewhere is nobody's.
        let real = if default {
            path.to_path_buf()
        } else {
            fs::canonicalize(path).with_context(|| format!("{shown}: cannot open the store"))?
        };
        let directory = nix::fcntl::open(&real, DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => anyhow!("{shown}: the store is not a directory"),
            errno => anyhow!("{shown}: cannot open the store: {}", errno.desc()),
        })?;
        let stat = File::from(directory.try_clone()?).metadata()?;
        let user = geteuid().as_raw();
        let trusted = stat.uid() == user || (stat.uid() == 0 && !default);
        ensure!(trusted, "{shown}: the store belongs to user {}; name one of your own with -s", stat.uid());
        ensure!(
            stat.mode() & 0o022 == 0,
            "{shown}: others may write to the store; chmod go-w, or name another with -s"
        );
        Ok(Store { path: real, directory })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The names of everything in it that may be a region, sorted.
    pub fn names(&self) -> anyhow::Result<Vec<OsString>> {
        let shown = self.path.display();
        let entries = fs::read_dir(&self.path).with_context(|| format!("{shown}: cannot list"))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("{shown}: cannot list"))?;
            let kind = entry.file_type()?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && (kind.is_dir() || kind.is_symlink()) {
                names.push(entry.file_name());
            }
        }
        names.sort();
        Ok(names)
    }

    /// A directory of the store for things that are not regions, made if it is not there. `name` starts with a dot.
    pub fn private_directory(&self, name: &str) -> anyhow::Result<(PathBuf, OwnedFd)> {
        match nix::sys::stat::mkdirat(self.directory(), name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => bail!("{}: cannot make {name}: {}", self.path.display(), errno.desc()),
        }
        let path = self.path.join(name);
        let directory = openat(self.directory(), name, DIRECTORY, Mode::empty())
            .with_context(|| format!("{}: cannot open", path.display()))?;
        let stat = File::from(directory.try_clone()?).metadata()?;
        ensure!(
            stat.uid() == geteuid().as_raw() && stat.mode() & 0o022 == 0,
            "{}: not yours alone; remove it",
            path.display()
        );
        Ok((path, directory))
    }

    /// Finds out what the store can do.
    pub fn probe(&self) -> anyhow::Result<Probe> {
        probe(&self.path)
    }
}

impl Probe {
    /// An error if there is no room for anything: what is started, or goes on, touches new memory at once.
    pub fn refuse_full(&self, store: &Path) -> anyhow::Result<()> {
        // Adoption of the smallest program takes about this much.
        const LEAST: u64 = 4 << 20;
        let shown = store.display();
        ensure!(
            self.free >= LEAST,
            "{shown}: the store is full ({} KiB free, {} are needed)",
            self.free >> 10,
            LEAST >> 10
        );
        ensure!(self.files >= 32, "{shown}: the store is full (it can hold {} more files, 32 are needed)", self.files);
        Ok(())
    }
}

/// Finds out what the directory at `path` can do. Leaves nothing behind.
pub fn probe(path: &Path) -> anyhow::Result<Probe> {
    let shown = path.display();
    let directory = File::open(path).with_context(|| format!("{shown}: cannot open"))?;
    let kind = fstatfs(&directory).with_context(|| format!("{shown}: cannot look at"))?;
    let room = fstatvfs(&directory).with_context(|| format!("{shown}: cannot look at"))?;
    let magic = kind.filesystem_type().0 as u64 & 0xffff_ffff;
    let mut probe = Probe {
        medium: match magic {
            0x0102_1994 | 0x8584_58f6 => Medium::Memory,
            _ => Medium::Disk,
        },
        file_system: file_system(magic),
        free: room.blocks_available() as u64 * room.fragment_size() as u64,
        // Some file systems have no limit, and say 0 of 0.
        files: if room.files() == 0 { u64::MAX } else { room.files_available() as u64 },
        writable: Ok(()),
        executable: Ok(()),
        sparse: Ok(()),
    };
    if room.flags().contains(FsFlags::ST_NOEXEC) {
        probe.executable = Err("it is mounted noexec".into());
    }
    let file = match temporary(&directory) {
        Ok(file) => file,
        Err(errno) => {
            probe.writable = Err(errno.desc().into());
            return Ok(probe);
        }
    };
    probe_file(&file, &mut probe);
    Ok(probe)
}

/// What a file in the directory can do.
fn probe_file(file: &File, probe: &mut Probe) {
    if let Err(error) = file.set_len(PAGE) {
        probe.writable = Err(error.to_string());
        return;
    }
    let run = libc::PROT_READ | libc::PROT_EXEC;
    if let (Ok(()), Err(error)) = (&probe.executable, sys::can_map(file, run, libc::MAP_SHARED)) {
        probe.executable = Err(error.to_string());
    }
    // Only a file system whose mapped pages are the medium itself accepts this.
    let write = libc::PROT_READ | libc::PROT_WRITE;
    if sys::can_map(file, write, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC).is_ok() {
        probe.medium = Medium::Dax;
    }
    let large = with_large_files(|| file.set_len(SLICE_BYTES).and_then(|()| forgets(file)));
    if let Err(error) = large {
        probe.sparse = Err(error.to_string());
    }
}

/// An error if a hole that is punched at the end of a slice keeps its content: there are kernels whose ext4 says that it
/// has punched one, and does nothing. A store that is full is for others to find.
fn forgets(file: &File) -> io::Result<()> {
    let last = SLICE_BYTES - PAGE;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut content = [1];
    if file.write_all_at(&content, last).is_err() || fallocate(file, flags, last as i64, PAGE as i64).is_err() {
        return Ok(());
    }
    file.read_exact_at(&mut content, last)?;
    if content == [0] { Ok(()) } else { Err(io::Error::other("holes that are punched in them keep their content")) }
}

/// A file without a name in `directory`, or one whose name is gone again.
fn temporary(directory: &File) -> nix::Result<File> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match openat(directory, ".", flags | OFlag::O_TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    let name = format!(".probe-{}", std::process::id());
    let exclusive = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let file = openat(directory, name.as_str(), exclusive, mode)?;
    unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    Ok(file.into())
}

/// Runs `body` with the largest file size that this process may allow itself, and without SIGXFSZ: a region's files
/// are sparse, and a limit that is meant for the program's output must not hit them.
pub fn with_large_files<T>(body: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // The kernel would kill us with SIGXFSZ; blocked and then taken back, it changes nobody's disposition.
    let mut only = nix::sys::signal::SigSet::empty();
    only.add(nix::sys::signal::Signal::SIGXFSZ);
    let old_mask = only.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    let raised = soft < hard && setrlimit(Resource::RLIMIT_FSIZE, hard, hard).is_ok();
    let result = body();
    if raised {
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard)?;
    }
    sys::drain(libc::SIGXFSZ);
    old_mask.thread_set_mask()?;
    result
}

/// The name of the file system with this magic number (include/uapi/linux/magic.h).
fn file_system(magic: u64) -> String {
    let known = [
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x794c_7630, "overlay"),
        (0xf2f5_2010, "f2fs"),
        (0x2fc1_2fc1, "zfs"),
        (0x6969, "nfs"),
        (0x6573_5546, "fuse"),
        (0x0102_1997, "9p"),
        (0x9584_58f6, "hugetlbfs"),
    ];
    let name = known.iter().find(|(number, _)| *number == magic);
    name.map_or_else(|| format!("file system {magic:#x}"), |(_, name)| (*name).into())
}
