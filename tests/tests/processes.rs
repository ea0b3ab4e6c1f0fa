//! Children: the program's own memory is unaffected by what they do, and a lost one shows as ended by SIGPWR.

use std::fs;
use std::process::Command;
use std::time::Duration;
use zhuque_tests::{Guest, Store, check_lives};

#[test]
fn children_of_every_kind() {
    check_lives(&Guest::c("fork").arg("150").patience(Duration::from_secs(120)), 4);
}

#[test]
fn attributes_of_the_process() {
    check_lives(&Guest::python("attributes.py"), 3);
}

/// What would run on without zhuque, in silence, is refused by name instead.
#[test]
fn an_exec_that_would_be_unprotected() {
    let store = Store::new();
    let source = store.beside("plain.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("source");
    let fixed = store.beside("static");
    let made = Command::new("cc").arg("-static").arg("-o").arg(&fixed).arg(&source).status();
    assert!(made.is_ok_and(|status| status.success()), "a static program (libc6-dev)");
    store.give(&fixed, 0o755);
    let script = format!("'{0}' && echo child; exec '{0}'", fixed.display());
    let is = store.call("run", &["-n", "unprotected", "--", "/bin/sh", "-c", &script]);
    let said = &is.stderr;
    assert_eq!((is.status, String::from_utf8_lossy(&is.stdout).as_ref()), (126, "child\n"), "{said}");
    assert!(said.contains("is refused: it is linked statically"), "{said}");
}
