//! The gate against the kernel: the same calls with arguments at random, valid and invalid, natively and under zhuque,
//! have the same results, errors and effects (`examples/differ.c`).
//!
//! What is refused on purpose is left out there. `ZHUQUE_POINTS` says how many thousand calls are compared (default 40).

use zhuque_tests::{Guest, Random, Store};

/// Calls of one run.
const CALLS: u64 = 20_000;

#[test]
fn calls_have_the_results_that_they_have_natively() {
    let store = Store::new();
    let points = zhuque_tests::points::asked(40);
    let mut random = Random::new();
    let mut compared = 0;
    for number in 0..(points * 1000).div_ceil(CALLS) {
        let seed = random.below(1 << 40);
        let guest = Guest::c("differ").args([seed.to_string(), CALLS.to_string()]);
        let native = guest.finish_natively(&store, &store.work_dir(&format!("first-{number}")));
        let mut command = store.zhuque("run");
        command.args(["-n", "differ", "--"]).arg(&guest.program).args(&guest.arguments);
        command.current_dir(store.work_dir(&format!("other-{number}")));
        let under = zhuque_tests::command::finish(command, guest.patience);
        let (expected, found) = (text(&native.stdout), text(&under.stdout));
        let mut lines = expected.lines().zip(found.lines());
        if let Some((expected, found)) = lines.find(|(expected, found)| expected != found) {
            panic!("seed {seed}:\nnatively:     {expected}\nunder zhuque: {found}\n{}", under.stderr);
        }
        assert_eq!(native.status, under.status, "seed {seed}: {}", under.stderr);
        assert_eq!(expected.lines().count(), found.lines().count(), "seed {seed}");
        compared += expected.lines().count();
    }
    println!("{compared} calls compared");
    assert!(compared > 1000, "nothing was compared");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
