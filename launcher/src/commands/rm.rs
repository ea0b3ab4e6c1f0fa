//! `zhuque rm`: removes regions, whatever state they are in.
//!
//! Damaged ones are what it is for, so it needs no more of a region than its directory and its lock. Directories that
//! are links or belong to somebody else are not touched.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use crate::flags::Rm;
use crate::process::Program;
use crate::region::{self, Region};
use crate::store::Store;
use crate::{failure, report};

/// How long an ended program's lock is waited for: its memory has to be torn down first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes regions; goes on with the others when one cannot be removed.
pub fn rm(store: Option<&Path>, flags: &Rm) -> anyhow::Result<i32> {
    let store = Store::open(store)?;
    region::sweep(&store);
    let mut status = 0;
    for name in &flags.names {
        match remove(&store, name) {
            Ok(done) => report::note(&done),
            Err(error) => {
                report::complain(&failure::line(&error));
                status = failure::status(&error);
            }
        }
    }
    Ok(status)
}

/// Removes one; says what was done.
fn remove(store: &Store, name: &str) -> anyhow::Result<String> {
    // Whose it is, is checked even if nothing else can be.
    drop(region::open_directory(store, name)?);
    let Ok(mut region) = Region::open(store, name) else {
        region::remove(store.directory(), name)?;
        return Ok(format!("{name}: removed (it was damaged)"));
    };
    let start = Instant::now();
    // While a program starts or is resumed it has no pid yet; it will in an instant. One that was killed may have left a
    // child that still borrows its memory (vfork), until it executes something or ends.
    while start.elapsed() < PATIENCE {
        if region.try_lock(Duration::from_millis(50))? {
            region.remove()?;
            return Ok(format!("{name}: removed"));
        }
        let pid = region.summary().map_or(0, |summary| summary.pid);
        if let Some(program) = region.program(pid) {
            end(&mut region, program)?;
            return Ok(format!("{name}: ended process {pid}, removed"));
        }
    }
    Err(in_use(&region))
}

/// Ends the program that runs the region, and removes the region.
fn end(region: &mut Region, program: Program) -> anyhow::Result<()> {
    let name = region.name().to_string();
    // Without its name first: whoever watches over the program sees that its death is wanted.
    let hidden = region.hide()?;
    if let Err(error) = program.kill() {
        region.unhide(&hidden);
        bail!("{name}: cannot end process {}: {error}", program.pid);
    }
    program.wait(PATIENCE);
    if !region.try_lock(PATIENCE)? {
        region.unhide(&hidden);
        return Err(in_use(region));
    }
    let erased = region::erase(region.store(), &hidden);
    // The next command that comes along sweeps up.
    erased.map_err(|errno| anyhow!("{name}: cannot remove all of it: {}", errno.desc()))
}

/// That somebody does not let go of it.
fn in_use(region: &Region) -> anyhow::Error {
    let holders: Vec<_> = region.holders().iter().map(u32::to_string).collect();
    let name = region.name();
    if holders.is_empty() {
        return anyhow!("{name}: in use, but by no process that is seen here; is it in another container?");
    }
    anyhow!("{name}: in use by process {}; end it first", holders.join(", "))
}
