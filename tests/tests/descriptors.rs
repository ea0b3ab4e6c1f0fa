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
    sets_of_select: "selects";
    pseudo_terminals: "terminals";
}
