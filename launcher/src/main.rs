//! # zhuque: whole-process persistence for unmodified Linux programs
//!
//! The command, and the process that stays with a running program. It knows the bytes of a region (`zhuque-abi`) but
//! not how the shim makes them; the shim and the restore stub are carried inside as files.
//!
//! * `flags`: the command line; `commands`: one file a command; `report`, `render`, `failure`: how it speaks
//! * `store`, `region`, `create`, `control`, `watch`: what lies in a store, and how it is read without being believed
//! * `launch`, `program`, `child`, `supervise`, `signals`, `detach`: running a program
//! * `resume`, `newborn`, `inject`, `boot`: running it again
//! * `process`, `sys`, `startup`, `vdso`: the machine
//!
//! Unsafe code is confined to the modules that allow it at their top.
#![deny(unsafe_code)]

mod boot;
mod child;
mod commands;
mod control;
mod create;
mod detach;
mod embedded;
mod failure;
mod flags;
mod inject;
mod launch;
mod newborn;
mod process;
mod program;
mod region;
mod render;
mod report;
mod resume;
mod signals;
mod startup;
mod store;
mod supervise;
mod sys;
mod vdso;
mod watch;

use clap::Parser;

fn main() {
    std::process::exit(run());
}

/// Everything; the exit status.
fn run() -> i32 {
    let arguments = match flags::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return commands::usage(&error),
    };
    report::set_quiet(arguments.quiet);
    match commands::dispatch(&arguments) {
        Ok(status) => status,
        Err(error) => {
            report::complain(&failure::line(&error));
            failure::status(&error)
        }
    }
}
