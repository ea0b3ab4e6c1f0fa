//! Watching over a running program until it ends.
//!
//! Key function: [`supervise`]. The launcher is the program's parent: it passes signals on, stops and goes on with
//! it, adopts its orphans, and in the end decides by the region's phase what has happened and what becomes of the
//! region. While nothing happens it sleeps: it costs the program nothing. Neighbours: `launch` and `resume` call it,
//! `signals` receives, `process` acts.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;
use zhuque_abi::header::Phase;

use crate::detach::Ready;
use crate::failure::{Failure, OWN, SAVED};
use crate::process::{self, Announcement};
use crate::region::Region;
use crate::render;
use crate::report::{complain, note};
use crate::signals::{Event, Signals};
use crate::sys;
use crate::watch::Watch;

/// How long the shim may take to come up.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to take over the program's memory: the program does not run meanwhile.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);
/// When to look for the first time whether the loader has left the shim out.
const LOADER_CHECK: Duration = Duration::from_millis(10);
/// How long descendants of a saved program are hunted.
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);

/// Watches over `child`, which runs `region` (it has been up already, so call it after a resume's commit), until it
/// ends. The exit status for the command: the program's own, or 75 when it was saved.
///
/// `region` must be locked. It is removed after a normal end unless `keep`.
pub fn supervise(region: &Region, child: Pid, keep: bool) -> anyhow::Result<i32> {
    Supervisor::new(region, child, keep, true, None)?.run()
}

/// As [`supervise`], for a program that has just been executed: also makes sure that the shim comes up, and says so
/// to `ready`.
pub fn supervise_start(region: &Region, child: Pid, keep: bool, ready: Option<Ready>) -> anyhow::Result<i32> {
    Supervisor::new(region, child, keep, false, ready)?.run()
}

/// Orphans of the program become children of the launcher. To be called before it is started.
pub fn adopt_orphans() {
    // The call exists since Linux 3.4.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl End {
    /// As the shell shows it.
    fn status(self) -> i32 {
        match self {
            End::Exited(status) => status,
            End::Killed(signal) => 128 + signal,
        }
    }
}

struct Supervisor<'a> {
    region: &'a Region,
    child: Pid,
    keep: bool,
    watch: Watch,
    signals: Signals,
    ready: Option<Ready>,
    started: Instant,
    /// The shim has been seen up.
    up: bool,
    /// When it is next looked whether the loader has loaded the shim.
    loader_check: Duration,
    /// A power failure that is being announced.
    power: Option<Announcement>,
    /// The program was ended since the shim did not come up; why.
    refused: Option<&'static str>,
}

impl<'a> Supervisor<'a> {
    fn new(
        region: &'a Region,
        child: Pid,
        keep: bool,
        up: bool,
        ready: Option<Ready>,
    ) -> anyhow::Result<Supervisor<'a>> {
        Ok(Supervisor {
            region,
            child,
            keep,
            watch: region.watch()?,
            signals: Signals::new()?,
            ready,
            started: Instant::now(),
            up,
            loader_check: LOADER_CHECK,
            power: None,
            refused: None,
        })
    }

    fn run(mut self) -> anyhow::Result<i32> {
        loop {
            if let Some(end) = self.reap()? {
                return self.finish(end);
            }
            if !self.up {
                self.check_start();
            }
            if let Some(power) = &mut self.power {
                let child = self.child.as_raw().unsigned_abs();
                power.announce(child);
                process::wake(child);
            }
            self.sleep()?;
            for event in self.signals.take() {
                self.act(event);
            }
        }
    }

    /// Waits for a signal, or until there is something to look at.
    fn sleep(&self) -> anyhow::Result<()> {
        let limit = if self.power.is_some() {
            Some(Duration::from_millis(1))
        } else if !self.up {
            // Most programs are up within the first milliseconds.
            Some(match self.started.elapsed().as_millis() {
                0..10 => Duration::from_micros(200),
                10..200 => Duration::from_millis(1),
                _ => Duration::from_millis(10),
            })
        } else {
            None
        };
        let mut fds = [PollFd::new(self.signals.descriptor(), PollFlags::POLLIN)];
        match ppoll(&mut fds, limit.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn act(&mut self, event: Event) {
        match event {
            Event::Child => {}
            // Harmless if the program was not stopped.
            Event::Continued => self.signal(libc::SIGCONT),
            Event::Power => self.power = self.power.take().or_else(|| Some(Announcement::default())),
            Event::Forward(signal) => self.signal(signal),
        }
    }

    /// Sends a signal to the program. That it may have ended is seen elsewhere.
    fn signal(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            let _ = kill(self.child, signal);
        }
    }

    /// Takes every status that there is; the program's end, if it is among them.
    fn reap(&mut self) -> anyhow::Result<Option<End>> {
        while let Some((pid, status)) = sys::reap()? {
            // Others are orphans of the program.
            match pid == self.child.as_raw() {
                true if libc::WIFEXITED(status) => return Ok(Some(End::Exited(libc::WEXITSTATUS(status)))),
                true if libc::WIFSIGNALED(status) => return Ok(Some(End::Killed(libc::WTERMSIG(status)))),
                true if libc::WIFSTOPPED(status) => self.stop_with(libc::WSTOPSIG(status)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// The program was stopped by the terminal: the shell waits for us to stop as well. (A program that somebody
    /// stopped with SIGSTOP is left alone: whoever did it would not think of waking us.)
    fn stop_with(&self, signal: i32) {
        if matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            // SIGCONT makes us go on, and is received as an event.
            let _ = raise(Signal::SIGSTOP);
        }
    }

    /// Looks whether the shim is up; ends a program that runs without it.
    fn check_start(&mut self) {
        let elapsed = self.started.elapsed();
        let reason = match self.watch.phase() {
            Some(Phase::Running | Phase::Saved | Phase::Ended | Phase::Unsaved) => {
                self.up = true;
                if let Some(ready) = self.ready.take() {
                    ready.up();
                }
                return;
            }
            Some(Phase::Starting) if elapsed > ADOPT_LIMIT => "the shim did not finish its start",
            Some(Phase::Creating) if elapsed > START_LIMIT => "the shim did not load",
            Some(Phase::Creating) if elapsed > self.loader_check && self.loader_passed() => {
                "the shim did not load, the dynamic loader has left it out"
            }
            Some(_) => return,
            None => "the region's header was overwritten",
        };
        self.refused = self.refused.or(Some(reason));
        self.signal(libc::SIGKILL);
    }

    /// Whether the loader has gone on to the program's libraries without having loaded the shim, which comes first:
    /// then the program is about to run unprotected.
    fn loader_passed(&mut self) -> bool {
        self.loader_check += LOADER_CHECK;
        let files = process::executable_files(self.child.as_raw().unsigned_abs());
        // The program, the loader, and a third one. The shim itself may be that, but only for an instant.
        files.len() > 2 && self.watch.phase() == Some(Phase::Creating) && {
            let shim = self.region.path().join(zhuque_abi::layout::SHIM_FILE);
            !process::maps_file(self.child.as_raw().unsigned_abs(), &shim)
        }
    }

    /// What the program's end means.
    fn finish(mut self, end: End) -> anyhow::Result<i32> {
        let name = self.region.name();
        if let Some(reason) = self.refused {
            // What it has started meanwhile is no more protected than it was.
            end_orphans();
            self.remove();
            return Err(Failure::error(OWN, format!("{name}: {reason}; try zhuque check")));
        }
        match self.watch.phase() {
            Some(Phase::Saved) => Ok(self.saved()),
            Some(Phase::Unsaved) => Ok(self.unsaved()),
            Some(Phase::Creating | Phase::Starting) if !self.up && !asked_to_end(end) => {
                self.remove();
                let why = "the program ended before the shim was up";
                Err(Failure::error(OWN, format!("{name}: {why}{}; try zhuque check", with_signal(end))))
            }
            Some(Phase::Ended) => Ok(self.ended(end)),
            _ if matches!(end, End::Exited(_)) || asked_to_end(end) => Ok(self.ended(end)),
            _ if !self.region.is_there() => {
                note(&format!("{name}: ended{}, its region was removed", with_signal(end)));
                self.up_anyway();
                Ok(end.status())
            }
            _ => {
                let signal = with_signal(end);
                complain(&format!(
                    "{name}: killed{signal}, not saved; zhuque inspect {name} shows what is left, zhuque rm {name} removes it"
                ));
                self.up_anyway();
                Ok(end.status())
            }
        }
    }

    /// It can be resumed.
    fn saved(&mut self) -> i32 {
        end_orphans();
        let name = self.region.name();
        let what = self.region.summary().map_or_else(
            |error| format!("{error:#}"),
            |summary| {
                let threads = render::count(u64::from(summary.threads), "thread");
                let time = render::nanoseconds(summary.save_total_ns);
                format!("{name}: saved ({threads}, {time}); zhuque resume {name}")
            },
        );
        note(&what);
        self.up_anyway();
        SAVED
    }

    /// It was to be saved, and could not.
    fn unsaved(&mut self) -> i32 {
        end_orphans();
        let name = self.region.name();
        let why = self.region.summary().map_or_else(|error| format!("{error:#}"), |s| s.why());
        complain(&format!("{name}: not saved: {why}; zhuque inspect {name} shows what is left"));
        self.up_anyway();
        OWN
    }

    /// It has ended as programs do.
    fn ended(&mut self, end: End) -> i32 {
        if !self.keep {
            self.remove();
        }
        self.up_anyway();
        end.status()
    }

    /// A program that is over before it was seen up was up all the same.
    fn up_anyway(&mut self) {
        if let Some(ready) = self.ready.take() {
            ready.up();
        }
    }

    fn remove(&self) {
        if let Err(error) = self.region.remove() {
            complain(&format!("{error:#}"));
        }
    }
}

/// Whether the program was ended on request: nobody expects it to be resumed.
fn asked_to_end(end: End) -> bool {
    let requests = [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    matches!(end, End::Killed(signal) if requests.contains(&signal))
}

/// ` by SIGSEGV`, or nothing.
fn with_signal(end: End) -> String {
    match end {
        End::Exited(_) => String::new(),
        End::Killed(number) => match Signal::try_from(number) {
            Ok(signal) => format!(" by {signal}"),
            Err(_) => format!(" by signal {number}"),
        },
    }
}

/// Ends what a saved program has left running, as the power failure would have: its volatile children, which have
/// become ours.
fn end_orphans() {
    let start = Instant::now();
    loop {
        while matches!(sys::reap(), Ok(Some(_))) {}
        // Children of those that are ended become ours, so this is repeated until there are none.
        let children = process::children();
        if children.is_empty() || start.elapsed() > ORPHAN_LIMIT {
            return;
        }
        for child in children {
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
