//! The first start of a program: `zhuque run`.
//!
//! Key function: [`run`]. Everything that can fail is tried before the program is started, and a region that did not
//! come to life is removed. Neighbours: `program` and `store` (may it be run here?), `create`, `child`, `supervise`.

use std::env;
use std::ffi::{CString, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, ensure};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use zhuque_abi::layout::{ENV_REGION, SHIM_FILE};

use crate::boot::Settings;
use crate::child::{self, Image};
use crate::create::{self, Setup};
use crate::detach::{self, Ready};
use crate::failure::{CANNOT_RUN, Failure, NOT_FOUND};
use crate::program::{self, Target};
use crate::region::{self, Region};
use crate::report;
use crate::store::{Probe, Store};
use crate::supervise;

/// Open files that a process must be allowed to have.
const DESCRIPTORS: u64 = 80;

/// What `zhuque run` was asked for.
pub struct Request {
    /// Name of the region; the program's file name if none.
    pub name: Option<String>,
    /// The store.
    pub store: Option<PathBuf>,
    /// Leave when the program is up.
    pub detach: bool,
    /// Keep the region after a normal end.
    pub keep: bool,
    /// What its lives are told.
    pub settings: Settings,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// Runs a program. The exit status: the program's own, or 75 when it was saved.
pub fn run(request: &Request) -> anyhow::Result<i32> {
    let typed = request.command.first().ok_or_else(|| anyhow!("no program; name one"))?;
    let target = program::resolve(typed).map_err(|refusal| refusal.error(typed))?;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => region::default_name(Path::new(typed))?,
    };
    region::check_name(&name)?;
    check_path(Path::new(&name), "the name", "-n")?;
    let store = Store::open_or_create(request.store.as_deref())?;
    let probe = store.probe()?;
    check_store(&store, &probe)?;
    if !request.detach {
        return start(request, &target, &store, &name, &probe, None);
    }
    let status = detach::detach(|ready| start(request, &target, &store, &name, &probe, Some(ready)))?;
    if status == 0 {
        report::print(&format!("{name}\n"))?;
    }
    Ok(status)
}

/// An error if regions cannot live in this store.
fn check_store(store: &Store, probe: &Probe) -> anyhow::Result<()> {
    let shown = store.path().display();
    if let Err(why) = &probe.writable {
        bail!("{shown}: cannot write to the store: {why}; name another with -s");
    }
    if let Err(why) = &probe.executable {
        bail!("{shown}: nothing in the store can be executed: {why}; name another with -s");
    }
    if let Err(why) = &probe.sparse {
        bail!("{shown}: the store cannot hold sparse files of 4 TiB: {why}; raise ulimit -f, or name another with -s");
    }
    probe.refuse_full(store.path()).map_err(|error| anyhow!("{error}; make room, or name another with -s"))?;
    check_path(store.path(), "the store's path", "-s")?;
    // The region's own, and what the loader and the program open first.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(most >= DESCRIPTORS, "a process may have {most} open files, {DESCRIPTORS} are needed; raise ulimit -Hn");
    Ok(())
}

/// The loader splits its list of libraries at these bytes, and knows no quoting.
pub fn check_path(path: &Path, what: &str, option: &str) -> anyhow::Result<()> {
    let bad = path.as_os_str().as_bytes().iter().any(|byte| b" :\t\n;$".contains(byte));
    let shown = path.display();
    ensure!(
        !bad,
        "{shown}: {what} contains a blank, ':', ';' or '$', which the dynamic loader cannot take; choose another with {option}"
    );
    Ok(())
}

/// Makes the region, starts the program and watches over it.
fn start(
    request: &Request,
    target: &Target,
    store: &Store,
    name: &str,
    probe: &Probe,
    ready: Option<Ready>,
) -> anyhow::Result<i32> {
    // From here on a signal is either the program's or waits until the supervisor takes it.
    let mask = child::block_all();
    let library_path = env::var_os("LD_LIBRARY_PATH");
    let setup = Setup {
        program: &target.program.path,
        library_path: library_path.as_deref(),
        medium: probe.medium,
        settings: Settings { power_blocked: mask.contains(Signal::SIGPWR), ..request.settings },
    };
    let region = create::create(store, name, &setup)?;
    let started = image(request, target, &region, mask).and_then(|image| {
        supervise::adopt_orphans();
        child::spawn(&image).map_err(|error| {
            let status = match error.raw_os_error() {
                Some(libc::ENOENT) => NOT_FOUND,
                _ => CANNOT_RUN,
            };
            let path = target.path.display();
            Failure::error(status, format!("{path}: cannot execute: {error}; check the program"))
        })
    });
    match started {
        Ok(child) => supervise::supervise_start(&region, child, request.keep, ready),
        Err(error) => {
            // The first error is the one to report.
            let _ = region.remove();
            Err(error)
        }
    }
}

/// What is executed.
fn image(
    request: &Request,
    target: &Target,
    region: &Region,
    mut mask: nix::sys::signal::SigSet,
) -> anyhow::Result<Image> {
    // The shim opens it when it has a handler.
    mask.add(Signal::SIGPWR);
    let lock = region.lock_descriptor().as_raw_fd();
    let path = target.path.as_os_str().as_bytes();
    Ok(Image {
        path: CString::new(path)?,
        arguments: { request.command.iter() }
            .map(|argument| CString::new(argument.as_bytes()))
            .collect::<Result<_, _>>()?,
        environment: environment(env::vars_os(), region, lock)?,
        mask,
        keep: lock,
    })
}

/// The environment with what the loader and the shim need. Everything else stays in its order.
fn environment(
    current: impl Iterator<Item = (OsString, OsString)>,
    region: &Region,
    lock: i32,
) -> anyhow::Result<Vec<CString>> {
    let shim = region.path().join(SHIM_FILE);
    let shim = shim.as_os_str().as_bytes();
    let mut all = Vec::new();
    let mut preload = shim.to_vec();
    for (name, value) in current {
        if name == ENV_REGION {
            continue;
        }
        if name == "LD_PRELOAD" {
            if !value.is_empty() {
                preload.push(b':');
                preload.extend(value.as_bytes());
            }
            continue;
        }
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.as_bytes());
        all.push(CString::new(entry)?);
    }
    let directory = region.path().as_os_str().as_bytes();
    let value = [format!("{lock}:").as_bytes(), directory].concat();
    for (name, value) in [("LD_PRELOAD", preload), (ENV_REGION, value)] {
        all.push(CString::new([name.as_bytes(), b"=", &value].concat())?);
    }
    Ok(all)
}
