//! Plays one side of a scenario: `family-actor save|resume|force|measure SCENARIO DIR`. `measure` saves ten times and
//! prints how long each took, and what it took of the processor, in us.

use std::path::Path;
use zhuque_family_tests::{scenarios, stage};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, side, name, directory] = &arguments[..] else {
        eprintln!("usage: family-actor save|resume|force|measure SCENARIO DIR");
        std::process::exit(2);
    };
    let directory = Path::new(directory);
    let scenario = scenarios::find(name).expect("a scenario of that name");
    if std::env::var_os("NO_KCMP").is_some() {
        stage::forbid_kcmp();
    }
    stage::base();
    if side == "measure" {
        let mut extra = stage::Extra::new();
        (scenario.setup)(directory, &mut extra);
        for _ in 0..10 {
            let used_ns = stage::save(directory, &extra);
            let ns: u64 = std::fs::read_to_string(directory.join("save_ns")).unwrap().parse().unwrap();
            print!("{}/{} ", ns / 1000, used_ns / 1000);
        }
        println!();
        return;
    }
    if side == "save" {
        let mut extra = stage::Extra::new();
        (scenario.setup)(directory, &mut extra);
        stage::save(directory, &extra);
        // SAFETY: ends the process as the shim would, without closing anything in an orderly way.
        unsafe { libc::_exit(75) };
    }
    if let Err(message) = stage::resume(directory, side == "force") {
        println!("{message}");
        std::process::exit(1);
    }
    (scenario.verify)(directory);
}
