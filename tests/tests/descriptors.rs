//! What lies behind descriptors and in the process itself, family by family, with several failures in one life: what a
//! resume has made must be fit for the next save.

use zhuque_tests::{Guest, check_lives};

/// One test for each guest.
macro_rules! guests {
    ($($test:ident: $name:literal;)*) => {
        $(#[test]
        fn $test() {
            check_lives(&Guest::c($name), 2);
        })*
    };
}

guests! {
    descriptors_of_events: "events";
    open_files: "files";
    internet_sockets: "inet";
    unix_sockets: "locals";
    mapped_files_and_memfds: "mapped";
    pipes_and_fifos: "pipes";
    attributes_and_pending_signals: "process";
    pseudo_terminals: "terminals";
}

/// The region's own descriptors lie before the end of an fd_set or behind it, as the limit is.
#[test]
fn sets_of_select() {
    let guest = Guest::c("selects");
    check_lives(&guest, 1);
    let limited = Guest::installed("sh").args(["-c", "ulimit -Sn 1024; exec \"$@\"", "sh"]);
    check_lives(&limited.arg(&guest.program).args(&guest.arguments), 1);
}
