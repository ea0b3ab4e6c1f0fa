//! A failure at any instruction, those of the gate included, that is saved from outside (`zhuque_tests::points`).
//!
//! Points are a call that the process makes and an instruction behind it. `ZHUQUE_POINTS` says how many (default 30).

use zhuque_tests::Guest;
use zhuque_tests::points::{self, Rig, Seen};

fn check(guest: &Guest) {
    let stores = points::stores();
    let mut rig = Rig::new(&stores, guest.clone());
    rig.executes = ["execs", "pointers"].contains(&guest.name().as_str());
    let calls = rig.calls();
    if let Some((first, second)) = points::only() {
        rig.points(first, second);
    } else {
        for _ in 0..points::asked(30) {
            let then = rig.anywhere(calls);
            rig.point(then);
        }
    }
    let Seen { saved, again, late, refused, recovered, inside } = rig.seen;
    println!(
        "{}: {saved} saved, {again} of them in a second life, {late} too late, {refused} during a \
         fork or an exec; {recovered} recovery signals",
        guest.name()
    );
    let named = |(call, count)| format!("{} {count}", zhuque_model::calls::lookup(call).map_or("-", |call| call.name));
    println!("in the gate: {}", inside.into_iter().map(named).collect::<Vec<_>>().join(", "));
    assert!(saved > 0, "nothing was tested");
    assert!(!rig.executes || saved > refused, "it does not come out of an exec that fails");
}

macro_rules! guests {
    ($($name:ident: $guest:literal $($argument:literal)*;)*) => {
        $(
            #[test]
            fn $name() {
                check(&Guest::c($guest).args(&[$($argument),*] as &[&str]));
            }
        )*
    };
}

guests! {
    calls_that_the_gate_keeps_books_of: "gate" "1";
    advice_that_others_do_not_change: "advised" "1";
    shared_memory_and_files: "alias" "2";
    cancelled_threads: "cancel" "2";
    clocks: "clocks" "100";
    children_that_end: "ended" "2";
    descriptors_of_events: "events" "1";
    execs_of_the_program: "execs" "3";
    forks: "fork" "1";
    internet_sockets: "inet" "1";
    ignored_signals: "ignored" "5";
    signals_that_come_late: "late" "2" "1000";
    many_mappings: "manymaps" "300" "1";
    mapped_files_and_memfds: "mapped" "1";
    kept_files: "kept_files";
    kept_pipes: "kept_pipes";
    kept_sockets: "kept_sockets";
    kept_events: "kept_events";
    kept_process: "kept_process";
    kept_threads: "kept_threads";
    kept_memory: "kept_memory";
    memory: "memory" "300";
    open_files: "files" "1";
    pipes_and_fifos: "pipes" "1";
    attributes_and_pending_signals: "process" "1";
    what_a_process_has_given_up: "privileges" "10";
    pseudo_terminals: "terminals" "1";
    a_main_thread_that_has_ended: "leader" "20";
    its_own_sigpwr: "power" "3";
    recovery_handlers: "recovery" "10";
    robust_mutexes: "robust" "4";
    reused_addresses: "reuse" "4" "20";
    bad_pointers: "pointers" "1";
    signals: "signals" "1";
    threads: "threads" "4" "20";
    timers: "timers" "2";
    timers_that_signal: "alarms" "1";
    timers_whose_signals_wait: "expiring" "2" "12";
    unix_sockets: "locals" "1";
    vector_registers: "vectors" "50";
    vforks: "vforks" "2";
    waits_that_a_stop_would_end: "stopped" "10";
    waits: "waits" "1";
}
