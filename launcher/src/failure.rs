//! Errors as the user sees them: one line, and the exit status that goes with it.
//!
//! Everything returns `anyhow::Result`; an error without a [`Failure`] in it ends with [`OWN`]. The line is
//! `zhuque: what: why; what to do`. Neighbours: `main` prints it, all others make it.

use std::fmt::Write as _;

/// zhuque's own errors.
pub const OWN: i32 = 125;
/// The program was found and cannot be run, as in env(1).
pub const CANNOT_RUN: i32 = 126;
/// The program was not found, as in env(1).
pub const NOT_FOUND: i32 = 127;
/// The program was saved (EX_TEMPFAIL of sysexits.h): whoever started it may resume it.
pub const SAVED: i32 = 75;
/// `zhuque check` found something that blocks.
pub const BLOCKED: i32 = 1;

/// An error with an exit status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the command ends with.
    pub status: i32,
    /// The line.
    pub message: String,
}

impl Failure {
    /// An error that ends the command with `status`.
    pub fn error(status: i32, message: impl Into<String>) -> anyhow::Error {
        let message = message.into();
        anyhow::Error::new(Failure { status, message })
    }
}

/// The exit status that belongs to `error`.
pub fn status(error: &anyhow::Error) -> i32 {
    error.downcast_ref::<Failure>().map_or(OWN, |failure| failure.status)
}

/// `error` as one line that is safe to print: file names may contain anything.
pub fn line(error: &anyhow::Error) -> String {
    one_line(&without_numbers(&format!("{error:#}")))
}

/// `text` without the ` (os error 5)` that the standard library adds to what the kernel says.
pub fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(')'));
    }
    out
}

/// `text` without characters that end a line or move a terminal's cursor.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(without_numbers("no: x (os error 2); y"), "no: x; y");
        assert_eq!(status(&anyhow::anyhow!("x")), OWN);
        assert_eq!(status(&Failure::error(NOT_FOUND, "x")), NOT_FOUND);
    }
}
