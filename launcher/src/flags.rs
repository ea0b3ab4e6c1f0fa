//! The command line: every command and every flag, once.
//!
//! Key type: [`Arguments`]. Only syntax is checked here; what a value means is up to the commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Whole-process persistence: a power failure is an exception that a program receives when it is running again, not
/// the end of it.
#[derive(Debug, Parser)]
#[command(name = "zhuque", version, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Directory that holds the regions [default: $ZHUQUE_STORE, else /dev/shm/zhuque-UID]
    #[arg(short, long, global = true, value_name = "STORE")]
    pub store: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program with persistent state
    Run(Run),
    /// Let a saved program go on where it stopped
    Resume(Resume),
    /// Simulate a power failure: save programs and end them
    Fail(Fail),
    /// List regions
    Ls(Ls),
    /// Show what a region holds
    Inspect(Inspect),
    /// Remove regions; ends their programs if they run
    Rm(Rm),
    /// Say what this machine and a program allow, and what blocks
    Check(Check),
    /// Say what becomes of every system call
    Calls(Calls),
}

/// `zhuque run`
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the region [default: the program's file name]
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<String>,
    /// Return when the program is up; it goes on in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the region when the program has ended by itself
    #[arg(long)]
    pub keep: bool,
    /// How long the power supply holds up after a failure was announced, e.g. 500ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub hold_up: Duration,
    /// When files that the program has written reach the disk
    #[arg(long, value_name = "WHEN", default_value = "save")]
    pub file_sync: FileSync,
    /// The program and its arguments
    #[arg(
        value_names = ["PROGRAM", "ARG"],
        trailing_var_arg = true,
        required = true,
        num_args = 1..
    )]
    pub command: Vec<OsString>,
}

/// When written files are synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileSync {
    /// When the program is saved
    Save,
    /// When the kernel likes
    Never,
}

/// `zhuque resume`
#[derive(Debug, Args)]
pub struct Resume {
    /// Name of the region
    pub name: String,
    /// Return when the program is up; it goes on in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Go on even if files have changed since the program was saved
    #[arg(long)]
    pub force: bool,
    /// Keep the region when the program has ended by itself
    #[arg(long)]
    pub keep: bool,
}

/// `zhuque fail`
#[derive(Debug, Args)]
pub struct Fail {
    /// Names of regions
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub names: Vec<String>,
    /// Every program that runs
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
}

/// `zhuque ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// An array of objects instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `zhuque inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Name of the region
    pub name: String,
    /// What to show [default: a summary]
    pub what: Option<What>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Parts of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The mapping table
    Maps,
    /// Threads
    Threads,
    /// Descriptors
    Fds,
    /// All records of the journal
    Journal,
}

/// `zhuque rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// Names of regions
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `zhuque check`
#[derive(Debug, Args)]
pub struct Check {
    /// A program to look at
    pub program: Option<OsString>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `zhuque calls`
#[derive(Debug, Args)]
pub struct Calls {
    /// An array of objects instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Reads a time with its unit: `250us`, `500ms`, `1.5s`, `2m`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err(format!("unknown unit '{unit}'; use us, ms, s or m")),
    };
    let number: f64 = number.parse().map_err(|_| "not a time; write e.g. 500ms".to_string())?;
    Duration::try_from_secs_f64(number * factor)
        .ok()
        .filter(|time| !time.is_zero() && *time <= Duration::from_secs(3600))
        .ok_or_else(|| "must be more than nothing and at most an hour".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_programs_flags_are_its_own() {
        let parse = |words: &[&str]| match Arguments::try_parse_from(words).map(|a| a.command) {
            Ok(Command::Run(run)) => Some(run),
            _ => None,
        };
        let run = parse(&["zhuque", "run", "-n", "x", "python3", "-c", "--", "-d"]).unwrap();
        assert_eq!(run.command, ["python3", "-c", "--", "-d"]);
        assert_eq!(run.name.as_deref(), Some("x"));
        assert!(!run.detach);
        let run = parse(&["zhuque", "run", "-d", "--", "p", "-s", "1"]).unwrap();
        assert_eq!(run.command, ["p", "-s", "1"]);
        assert!(run.detach);
        assert!(parse(&["zhuque", "run", "--nonsense", "p"]).is_none());
        assert!(parse(&["zhuque", "run"]).is_none());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for bad in ["", "ms", "1x", "-1s", "0s", "1e9", "99999999s", "1..2s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
