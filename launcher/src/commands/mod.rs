//! The commands, one file each.
//!
//! Each gets the parsed flags and returns the exit status. `run` lives in a module of its own, `crate::launch`.

mod calls;
mod check;
mod describe;
mod fail;
mod inspect;
mod ls;
mod mappings;
mod resume;
mod rm;

use clap::error::ErrorKind;

use crate::boot::Settings;
use crate::flags::{Arguments, Command, FileSync};
use crate::launch::{self, Request};
use crate::{failure, report};

/// Does what the command line says.
pub fn dispatch(arguments: &Arguments) -> anyhow::Result<i32> {
    let store = arguments.store.as_deref();
    match &arguments.command {
        Command::Run(run) => launch::run(&Request {
            name: run.name.clone(),
            store: arguments.store.clone(),
            detach: run.detach,
            keep: run.keep,
            settings: Settings {
                file_sync: run.file_sync == FileSync::Save,
                hold_up: run.hold_up,
                ..Settings::default()
            },
            command: run.command.clone(),
        }),
        Command::Resume(flags) => resume::resume(store, flags),
        Command::Fail(flags) => fail::fail(store, flags),
        Command::Ls(flags) => ls::ls(store, flags),
        Command::Inspect(flags) => inspect::inspect(store, flags),
        Command::Rm(flags) => rm::rm(store, flags),
        Command::Check(flags) => check::check(store, flags),
        Command::Calls(flags) => calls::calls(flags),
    }
}

/// Help and version as they are; a mistake in one line.
pub fn usage(error: &clap::Error) -> i32 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = report::print(&error.render().to_string());
        return 0;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        report::complain(
            "no command: one of run, resume, fail, ls, inspect, rm, check, calls is needed; see zhuque --help",
        );
        return failure::OWN;
    }
    let text = error.render().to_string();
    let lines: Vec<_> = { text.lines() }
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let line = lines.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    report::complain(&format!("{line}; see zhuque --help"));
    failure::OWN
}
