//! Children: the program's own memory is unaffected by what they do, and a lost one shows as ended by SIGPWR.

use std::time::Duration;
use zhuque_tests::{Guest, check_lives};

#[test]
fn children_of_every_kind() {
    check_lives(&Guest::c("fork").arg("150").patience(Duration::from_secs(120)), 4);
}
