//! Making a region.
//!
//! Key type: [`Setup`]. A region is put together under a hidden name and then renamed, so that under its own name it
//! is complete and locked from its first moment; whatever fails before leaves nothing behind. Neighbours: `region`,
//! `embedded` (the shim), `boot`, `launch`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::linkat;
use zhuque_abi::layout::*;

use crate::boot::Settings;
use crate::region::{self, NEW, Region};
use crate::store::{DIRECTORY, Medium, Store, with_large_files};
use crate::{control, embedded, sys};

/// What a region is made with.
pub struct Setup<'a> {
    /// The program's ELF file, for the plans.
    pub program: &'a Path,
    /// LD_LIBRARY_PATH as the program will have it.
    pub library_path: Option<&'a OsStr>,
    /// What the store is.
    pub medium: Medium,
    /// What its lives are told.
    pub settings: Settings,
}

/// Makes the region `name`, locked.
pub fn create(store: &Store, name: &str, setup: &Setup<'_>) -> anyhow::Result<Region> {
    region::check_name(name)?;
    refuse_taken(store, name)?;
    region::sweep(store);
    let (hidden, directory) = make_directory(store)?;
    let made = fill(store, name, setup, &directory).and_then(|lock| {
        appear(store, &hidden, name)?;
        Ok(lock)
    });
    match made {
        Ok(lock) => Region::assemble(store, name, directory, lock, true),
        Err(error) => {
            // The first error is the one to report.
            let _ = region::remove(store.directory(), &hidden);
            Err(error)
        }
    }
}

/// An error if the name is taken, which says what to do.
fn refuse_taken(store: &Store, name: &str) -> anyhow::Result<()> {
    let there = nix::sys::stat::fstatat(store.directory(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
    if there == Err(Errno::ENOENT) {
        return Ok(());
    }
    let region = Region::open(store, name)?;
    let state = region.state(&region.summary()?);
    bail!("{name}: the name is in use ({}); {}", state.name(), state.advice(name))
}

/// A new directory under a hidden name.
fn make_directory(store: &Store) -> anyhow::Result<(String, OwnedFd)> {
    let shown = store.path().display();
    for attempt in 0..100 {
        let hidden = format!("{NEW}{}-{attempt}", std::process::id());
        match mkdirat(store.directory(), hidden.as_str(), Mode::S_IRWXU) {
            Err(Errno::EEXIST) => continue,
            Err(errno) => bail!("{shown}: cannot write to the store: {}; name another with -s", errno.desc()),
            Ok(()) => {}
        }
        let directory = openat(store.directory(), hidden.as_str(), DIRECTORY, Mode::empty())?;
        return Ok((hidden, directory));
    }
    bail!("{shown}: too many unfinished regions; remove {NEW}* in it")
}

/// Gives the directory its name, unless somebody else has taken it meanwhile.
fn appear(store: &Store, hidden: &str, name: &str) -> anyhow::Result<()> {
    let store_fd = store.directory();
    let flags = RenameFlags::RENAME_NOREPLACE;
    let renamed = match renameat2(store_fd, hidden, store_fd, name, flags) {
        // File systems without this flag still refuse to replace a directory that is not empty.
        Err(Errno::EINVAL) => nix::fcntl::renameat(store_fd, hidden, store_fd, name),
        other => other,
    };
    match renamed {
        Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {
            refuse_taken(store, name)?;
            bail!("{name}: the name was in use a moment ago; try again")
        }
        other => other.with_context(|| format!("{name}: cannot make the region")),
    }
}

/// Puts everything into the directory. Returns the locked lock file.
fn fill(store: &Store, name: &str, setup: &Setup<'_>, directory: &OwnedFd) -> anyhow::Result<File> {
    let lock = new_file(directory, LOCK_FILE)?;
    if !sys::try_flock(&lock, true)? {
        bail!("{name}: somebody else has locked the new region; try again");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_nanos() as u64);
    let control = new_file(directory, CONTROL_FILE)?;
    control
        .write_all_at(&control::first_page(now), HEADER_OFFSET)
        .with_context(|| format!("{name}: cannot write the control file"))?;
    let sized = with_large_files(|| {
        control.set_len(CONTROL_BYTES)?;
        for slice in 0..SLICES {
            let file = new_file(directory, &format!("{SLICE_PREFIX}{slice:02}"))?;
            file.set_len(SLICE_BYTES)?;
        }
        Ok(())
    });
    sized.map_err(|error| match error.raw_os_error() {
        Some(libc::EFBIG) => anyhow!(
            "{name}: files of {} TiB are not possible here: {error}; raise ulimit -f, or name another store with -s",
            SLICE_BYTES >> 40
        ),
        _ => anyhow!("{name}: cannot make the region's files: {error}"),
    })?;
    mkdirat(directory, FILES_DIR, Mode::S_IRWXU)?;
    let written = [
        (new_file(directory, BOOT_FILE)?, setup.settings.encode(setup.medium)?),
        (new_file(directory, PLAN_FILE)?, plans(store, setup)),
    ];
    for (mut file, content) in written {
        file.write_all(&content)?;
        // A save writes back what the program changes, and has no time for what was there from the start.
        if setup.medium == Medium::Disk {
            file.sync_all()?;
        }
    }
    shim(store, directory)?;
    Ok(lock)
}

/// A new file, for the user alone.
fn new_file(directory: impl AsFd, name: &str) -> nix::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
}

/// The plans of what the program will load. What cannot be planned is left to the net.
fn plans(store: &Store, setup: &Setup<'_>) -> Vec<u8> {
    let cache = store.private_directory(".plans").map(|(path, _)| path);
    let libraries = zhuque_sites::libraries(setup.program, setup.library_path);
    let plans: Vec<_> = { libraries.iter() }
        .filter_map(|library| match &cache {
            Ok(cache) => zhuque_sites::cached_plan(cache, library).ok(),
            Err(_) => zhuque_sites::plan_file(library).ok(),
        })
        .filter(|plan| !plan.sites.is_empty())
        .collect();
    zhuque_sites::encode(&plans)
}

/// The region's own name for the shim that this zhuque carries. It keeps it when zhuque is upgraded.
fn shim(store: &Store, directory: &OwnedFd) -> anyhow::Result<()> {
    let (path, shims) = store.private_directory(".shim")?;
    let file = format!("{}.so", embedded::SHIM_HASH);
    let there = openat(&shims, file.as_str(), OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let intact = there.is_ok_and(|there| same(&File::from(there), embedded::SHIM));
    if !intact {
        put_shim(&shims, &file).with_context(|| format!("{}: cannot write the shim", path.display()))?;
    }
    let none = AtFlags::empty();
    if linkat(&shims, file.as_str(), directory, SHIM_FILE, none).is_err() {
        let mut copy = new_file(directory, SHIM_FILE)?;
        copy.write_all(embedded::SHIM)?;
        copy.sync_all()?;
    }
    Ok(())
}

/// Writes the shim under a name of its own, then renames it: nobody ever sees half of it.
fn put_shim(shims: &OwnedFd, file: &str) -> anyhow::Result<()> {
    let temporary = format!(".{}.tmp", std::process::id());
    let _ = nix::unistd::unlinkat(shims, temporary.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
    let mut new = new_file(shims, &temporary)?;
    new.write_all(embedded::SHIM)?;
    new.sync_all()?;
    nix::fcntl::renameat(shims, temporary.as_str(), shims, file)?;
    Ok(())
}

/// Whether the file has exactly these bytes.
fn same(file: &File, bytes: &[u8]) -> bool {
    let mut there = vec![0; bytes.len()];
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    length == bytes.len() as u64 && file.read_exact_at(&mut there, 0).is_ok() && there == bytes
}
