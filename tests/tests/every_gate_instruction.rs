//! A failure at each instruction of the gate, saved from outside: from the program's last instructions before a system call
//! to its first ones behind it, for every call that changes what the gate, or the kernel, keeps for a program.
//!
//! A first run is stepped from its beginning to its end, and shows which instructions there are for each call; then each
//! of them has a failure of its own. `ZHUQUE_POINTS` says how many of them a group of calls has (default 40), `all` takes
//! every one.

use std::collections::BTreeMap;
use zhuque_tests::Guest;
use zhuque_tests::points::{self, Rig};
use zhuque_tests::scan::{Point, Spot};
use zhuque_tests::tracer::{Blow, Then};

/// How many points, at most.
fn wanted() -> usize {
    match std::env::var("ZHUQUE_POINTS").unwrap_or_default().as_str() {
        "all" => usize::MAX,
        text => text.parse().unwrap_or(40),
    }
}

fn name_of(call: u64) -> &'static str {
    zhuque_model::calls::lookup(call).map_or("-", |call| call.name)
}

/// The points of a scan, of every call as many as of the others.
fn choose(found: &BTreeMap<u64, BTreeMap<Spot, Point>>) -> Vec<Point> {
    let each = wanted() / found.len().max(1);
    let some = |spots: &BTreeMap<Spot, Point>| {
        let step = spots.len().div_ceil(each.max(1)).max(1);
        // Where it begins is left to chance, so that every run shows something else.
        let from = zhuque_tests::Random::new().below(step as u64) as usize;
        spots.values().skip(from).step_by(step).copied().collect::<Vec<_>>()
    };
    found.values().flat_map(some).collect()
}

/// `section` of the guest, which makes `calls`.
fn check(section: &str, calls: &[i64]) {
    let stores = points::stores();
    let mut rig = Rig::new(&stores, Guest::c("gate").args(["1", section]));
    let mut found = rig.scan().found().clone();
    found.retain(|call, _| calls.contains(&(*call as i64)));
    let missing: Vec<_> = calls.iter().filter(|call| !found.contains_key(&(**call as u64))).collect();
    assert!(missing.is_empty(), "the guest does not make the calls {missing:?}");
    for Point { thread, calls, steps } in choose(&found) {
        rig.point(Then { thread: Some(thread), calls, steps, blow: Blow::Outside });
    }
    let seen = &rig.seen;
    println!("{section}: {} saved, {} of them in a second life, {} too late", seen.saved, seen.again, seen.late);
    for (call, spots) in &found {
        let gate = spots.keys().filter_map(|spot| if let Spot::Gate(offset) = spot { Some(offset) } else { None });
        let (count, hit) = seen.inside.get(call).cloned().unwrap_or_default();
        let (all, hits) = gate.fold((0, 0), |(all, hits), offset| (all + 1, hits + u32::from(hit.contains(offset))));
        println!("{:20} {count:6} failures in the gate, at {hits} of its {all} instructions", name_of(*call));
    }
    assert!(seen.saved > 0, "nothing was tested");
}

macro_rules! sections {
    ($($test:ident: $section:literal [$($call:ident)*];)*) => {
        $(#[test]
        fn $test() {
            check($section, &[$(libc::$call),*]);
        })*
    };
}

sections! {
    memory: "memory" [SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_brk];
    files: "files" [SYS_openat SYS_dup SYS_dup2 SYS_fcntl SYS_close SYS_mmap SYS_munmap];
    sockets: "sockets" [SYS_socket SYS_bind SYS_listen SYS_connect SYS_accept4 SYS_epoll_create1 SYS_epoll_ctl SYS_socketpair SYS_close];
    signals: "signals" [SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigtimedwait];
    threads: "threads" [SYS_clone3 SYS_exit SYS_mmap SYS_mprotect];
}
