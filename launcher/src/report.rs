//! Lines for the user on stderr, and output on stdout.
//!
//! stdout may be closed or a pipe whose reader has gone: that is not worth an abort. Neighbours: everybody.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out what [`note`] says.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Says something that `--quiet` silences.
pub fn note(message: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        complain(message);
    }
}

/// Says something that the user must know.
pub fn complain(message: &str) {
    let line = format!("zhuque: {}\n", crate::failure::one_line(message));
    // There is nobody left to tell if this fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Prints to stdout. A reader that has gone is not an error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("cannot write the output: {error}"))
        }
        _ => Ok(()),
    }
}
