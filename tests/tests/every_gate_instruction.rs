//! A failure at each instruction of the gate, saved from outside: from the program's last instructions before a system call
//! to its first ones behind it, for every call that changes what the gate, or the kernel, keeps for a program.
//!
//! A first run is stepped from its beginning to its end, and shows which instructions there are for each call; then each
//! of them has a failure of its own. Addresses differ from run to run, and so does the way through a table now and then:
//! how many failures met the very instruction is counted. `ZHUQUE_POINTS` says how many points a group of calls has
//! (default 40); `all` takes every instruction of the calls that it is about, and every eighth of the others, which most
//! groups make.

use std::collections::BTreeMap;
use zhuque_tests::points::{self, Rig};
use zhuque_tests::scan::{Point, Spot};
use zhuque_tests::tracer::{Blow, Then, Visit};
use zhuque_tests::{Guest, Random};

/// The instructions of one call.
type Spots = BTreeMap<Spot, Point>;

/// Of the calls that a group is not about, so manieth instructions are enough.
const OTHERS: usize = 8;

/// How many points, at most.
fn wanted() -> usize {
    match std::env::var("ZHUQUE_POINTS").unwrap_or_default().as_str() {
        "all" => usize::MAX,
        text => text.parse().unwrap_or(40),
    }
}

/// `each` of the instructions of a call, spread over all of them. Where they begin is left to chance, so that every run
/// shows something else.
fn choose(spots: &Spots, each: usize, random: &mut Random) -> Vec<(Spot, Point)> {
    let step = spots.len().div_ceil(each.max(1)).max(1);
    let from = random.below(step as u64) as usize;
    spots.iter().skip(from).step_by(step).map(|(spot, point)| (*spot, *point)).collect()
}

/// `section` of the guest, which makes `calls`.
fn check(section: &str, calls: &[i64]) {
    let stores = points::stores();
    let (mut rig, mut random) = (Rig::new(&stores, Guest::c("gate").args(["1", section])), Random::new());
    if let Some((first, second)) = points::only() {
        rig.points(first, second);
        return;
    }
    let scan = rig.scan();
    let (mut all, mut exact) = (0, 0);
    let name = |call| zhuque_model::calls::lookup(call).map_or("-", |call| call.name);
    for &call in calls {
        assert!(scan.found().contains_key(&(call as u64)), "the guest does not call {}", name(call as u64));
    }
    // Those that the section is not about are in most of them.
    let others = scan.found().len().saturating_sub(calls.len()).max(1);
    for (&call, spots) in scan.found() {
        let each = match calls.contains(&(call as i64)) {
            true => wanted() / calls.len(),
            false => (wanted() / 2).div_ceil(others).min(spots.len().div_ceil(OTHERS)),
        };
        let chosen = choose(spots, each, &mut random);
        rig.recovers = section == "leaving" && call == libc::SYS_exit as u64;
        let (mut gate, mut met) = (0, 0);
        for &(spot, Point { thread, calls, steps, visits }) in &chosen {
            let visit = match spot {
                Spot::Gate(offset) => Some(Visit { offset, before: visits }),
                _ => None,
            };
            let seen = rig.point(Then { thread: Some(thread), calls, steps, visit, blow: Blow::Outside });
            if let Spot::Gate(wanted) = spot {
                gate += 1;
                met += u32::from(seen.is_some_and(|place| place.offset == wanted));
            }
        }
        println!(
            "{:20} {} instructions, {} failures; of {gate} in the gate {met} met theirs",
            name(call),
            spots.len(),
            chosen.len()
        );
        (all, exact) = (all + gate, exact + met);
    }
    let seen = &rig.seen;
    println!("{section}: {} saved, {} of them in a second life, {} too late", seen.saved, seen.again, seen.late);
    assert!(seen.saved > 0 && exact * 2 > all, "the points are not where they should be: {exact} of {all}");
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
    sockets: "sockets" [SYS_socket SYS_bind SYS_listen SYS_connect SYS_accept4 SYS_epoll_create1 SYS_epoll_ctl
                        SYS_socketpair SYS_close];
    streams: "streams" [SYS_socket SYS_bind SYS_listen SYS_connect SYS_recvfrom SYS_close];
    signals: "signals" [SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigtimedwait SYS_rt_sigreturn];
    senders: "senders" [SYS_kill SYS_tkill SYS_tgkill SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_ppoll SYS_rt_sigtimedwait];
    clocks: "clocks" [SYS_clock_gettime SYS_epoll_wait SYS_clock_nanosleep SYS_timerfd_settime SYS_poll];
    timers: "timers" [SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
                      SYS_rt_sigtimedwait];
    leaving: "leaving" [SYS_exit];
    threads: "threads" [SYS_clone3 SYS_exit SYS_mmap SYS_mprotect];
}
