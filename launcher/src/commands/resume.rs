//! `zhuque resume`: what is around a resume: which region, whose lock, and who watches over the program afterwards.
//!
//! The resume itself is `crate::resume`.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use zhuque_abi::header::Phase;

use crate::boot::Settings;
use crate::detach::{self, Ready};
use crate::flags::Resume;
use crate::region::{Region, State};
use crate::resume::{self, Request, Resumed};
use crate::store::{Medium, Store};
use crate::{child, embedded, render, report, startup, supervise};

/// Resumes a region and watches over its program. The exit status: the program's own, or 75 when it was saved again.
pub fn resume(store: Option<&Path>, flags: &Resume) -> anyhow::Result<i32> {
    let store = Store::open(store)?;
    let mut region = Region::open(&store, &flags.name)?;
    refuse_unsaved(&region)?;
    region.lock()?;
    // Somebody may have resumed it, and it may have been saved again, before the lock was ours.
    refuse_unsaved(&region)?;
    let probe = store.probe()?;
    if let Err(why) = &probe.executable {
        let shown = store.path().display();
        bail!("{shown}: nothing in the store can be executed: {why}; move it, or mount it exec");
    }
    if let Err(why) = &probe.writable {
        bail!("{}: cannot write to the store: {why}; the region is as it was", store.path().display());
    }
    probe.refuse_full(store.path()).map_err(|error| anyhow!("{error}; make room: the region is as it was"))?;
    if !flags.detach {
        return start(&region, flags, probe.medium, None);
    }
    let status = detach::detach(|ready| start(&region, flags, probe.medium, Some(ready)))?;
    if status == 0 {
        report::print(&format!("{}\n", region.name()))?;
    }
    Ok(status)
}

/// Starts the program again and stays with it.
fn start(region: &Region, flags: &Resume, medium: Medium, ready: Option<Ready>) -> anyhow::Result<i32> {
    // From here on a signal is either the program's or waits until the supervisor takes it.
    child::block_all();
    child::take_children()?;
    supervise::adopt_orphans();
    let settings = Settings::read(region);
    let resumed = resume::start(&Request {
        name: region.name(),
        path: region.path(),
        directory: region.directory(),
        lock: region.lock_descriptor(),
        stub: embedded::STUB,
        flags: settings.flags(medium),
        hold_up_ns: settings.hold_up_ns(),
        force: flags.force,
        closed: startup::closed(),
    })?;
    if let Some(ready) = ready {
        ready.up();
    }
    report::note(&line(region.name(), &resumed));
    supervise::supervise(region, resumed.pid, flags.keep)
}

/// `memcached: resumed 10 threads in 3.20 ms (plan 0.30 ms, ...)`
fn line(name: &str, resumed: &Resumed) -> String {
    let timing = &resumed.timing;
    let parts = [timing.plan, timing.exec, timing.inject, timing.rebuild];
    let total = parts.iter().sum();
    let show = |time: Duration| render::nanoseconds(time.as_nanos() as u64);
    let threads = render::count(u64::from(resumed.threads), "thread");
    let [plan, exec, inject, rebuild] = parts.map(show);
    format!(
        "{name}: resumed {threads} in {} (plan {plan}, exec {exec}, inject {inject}, rebuild {rebuild})",
        show(total)
    )
}

/// An error for every region that is not saved.
fn refuse_unsaved(region: &Region) -> anyhow::Result<()> {
    let name = region.name();
    let summary = region.summary()?;
    if summary.phase == Phase::Saved {
        return Ok(());
    }
    match region.state(&summary) {
        State::Running | State::Starting => {
            let pid = summary.pid;
            bail!("{name}: it is running (process {pid}); nothing to resume")
        }
        State::Ended => {
            bail!("{name}: the program has ended by itself; zhuque rm {name} removes what it left")
        }
        State::Creating => bail!("{name}: it was never started; zhuque rm {name} removes it"),
        _ if summary.why().is_empty() => {
            bail!("{name}: it ended without being saved; zhuque inspect {name} shows what is left")
        }
        _ => {
            let why = summary.why();
            bail!("{name}: it was not saved: {why}; zhuque inspect {name} shows what is left")
        }
    }
}
