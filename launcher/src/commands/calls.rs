//! `zhuque calls`: what the gate does with every system call.
//!
//! A view of the one table there is, [`CALLS`], from which the gate's fast path is made as well. `ci/support-page`
//! turns the text into `launcher/SYSCALLS.md`. Neighbours: `zhuque_model::calls` (the table), `render`.

use nix::errno::Errno;
use serde_json::{Value, json};
use zhuque_model::calls::{CALLS, Call, Family, Interrupted, Treatment};

use crate::flags::Calls;
use crate::render::{self, Table};
use crate::report;

/// Prints the table.
pub fn calls(flags: &Calls) -> anyhow::Result<i32> {
    let text = if flags.json { render::json(&Value::Array(CALLS.iter().map(json_of).collect())) } else { text() };
    report::print(&text)?;
    Ok(0)
}

/// The table for people.
fn text() -> String {
    let mut table = Table::new(&["NUMBER", "NAME", "IN THE GATE", "AFTER A FAILURE", "WHY"]);
    for call in CALLS {
        let (after, why) = match call.treatment {
            // It never gets as far as the kernel.
            Treatment::Refuse(_, why) => ("-", why),
            _ => (after_failure(call.interrupted), ""),
        };
        table.row(vec![
            call.number.to_string(),
            call.name.into(),
            in_the_gate(call.treatment),
            after.into(),
            why.into(),
        ]);
    }
    table.render()
}

/// What the gate does, in a few words.
fn in_the_gate(treatment: Treatment) -> String {
    match treatment {
        Treatment::Pass => "passed".into(),
        Treatment::Gate(family) => format!("served: {}", name_of(family)),
        Treatment::Refuse(errno, _) => format!("refused: {}", error_name(errno)),
    }
}

/// What a failure makes of a call under way, in a few words.
fn after_failure(interrupted: Interrupted) -> &'static str {
    match interrupted {
        Interrupted::Never => "before or after it",
        Interrupted::Reissue => "issued again",
        Interrupted::Once => "reports what was done",
    }
}

/// One row, for programs.
fn json_of(call: &Call) -> Value {
    let (treatment, family, errno, reason) = match call.treatment {
        Treatment::Pass => ("pass", None, None, None),
        Treatment::Gate(family) => ("gate", Some(name_of(family)), None, None),
        Treatment::Refuse(errno, why) => ("refuse", None, Some(error_name(errno)), Some(why)),
    };
    let interrupted = match call.interrupted {
        Interrupted::Never => "never",
        Interrupted::Reissue => "reissue",
        Interrupted::Once => "once",
    };
    json!({
        "number": call.number,
        "name": call.name,
        "treatment": treatment,
        "family": family,
        "errno": errno,
        "reason": reason,
        "interrupted": interrupted,
    })
}

/// A family as the source's folders call it.
fn name_of(family: Family) -> &'static str {
    match family {
        Family::Memory => "memory",
        Family::Signals => "signals",
        Family::Threads => "threads",
        Family::Processes => "processes",
        Family::Clocks => "clocks",
        Family::Timers => "timers",
        Family::Files => "files",
    }
}

/// `ENOSYS` for 38.
fn error_name(number: u16) -> String {
    format!("{:?}", Errno::from_raw(number.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_line_and_an_object() {
        let text = text();
        assert_eq!(text.lines().count(), CALLS.len() + 1);
        for (line, call) in text.lines().skip(1).zip(CALLS) {
            let words: Vec<_> = line.split_whitespace().take(2).collect();
            assert_eq!(words, [call.number.to_string().as_str(), call.name]);
            let object = json_of(call);
            assert_eq!(object["name"], call.name);
            let refused = object["treatment"] == "refuse";
            assert_eq!(refused, line.contains("refused: E"), "{line}");
            assert_eq!(object["errno"].is_string(), refused, "{line}");
            assert_eq!(object["family"].is_string(), line.contains("served: "));
        }
    }

    #[test]
    fn a_refusal_says_why() {
        for call in CALLS {
            if let Treatment::Refuse(errno, why) = call.treatment {
                assert_ne!(Errno::from_raw(errno.into()), Errno::UnknownErrno, "{call:?}");
                assert!(why.len() > 3, "{call:?}");
            }
        }
        let text = text();
        let ring = text.lines().find(|line| line.contains("io_uring_setup"));
        assert!(ring.is_some_and(|line| line.contains("ENOSYS") && line.contains("rings")));
    }
}
