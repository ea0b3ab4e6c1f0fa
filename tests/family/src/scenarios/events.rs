//! epoll, eventfd, timerfd, signalfd, inotify, pidfd.

use super::Scenario;
use super::io::*;
use std::path::Path;

/// The scenarios of this file.
pub const ALL: &[Scenario] = &[
    Scenario { name: "epoll", setup: epoll, verify: verify_epoll },
    Scenario { name: "epoll-many", setup: epoll_many, verify: verify_epoll_many },
    Scenario { name: "eventfd", setup: eventfd, verify: verify_eventfd },
    Scenario { name: "timerfd", setup: timerfd, verify: verify_timerfd },
    Scenario { name: "signalfd", setup: signalfd, verify: verify_signalfd },
    Scenario { name: "inotify", setup: inotify, verify: verify_inotify },
    Scenario { name: "pidfd", setup: pidfd, verify: verify_pidfd },
];

const IN: u32 = libc::EPOLLIN as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;

fn new_eventfd(count: u32, flags: i32, to: i32) {
    // SAFETY: no memory involved.
    at(ok(unsafe { libc::eventfd(count, flags) }, "eventfd"), to);
}

fn new_epoll(to: i32) {
    // SAFETY: no memory involved.
    at(ok(unsafe { libc::epoll_create1(0) }, "epoll"), to);
}

fn control(epoll: i32, operation: i32, fd: i32, events: u32, data: u64) {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the event is a local.
    ok(unsafe { libc::epoll_ctl(epoll, operation, fd, &mut event) }, "epoll_ctl");
}

fn wait(epoll: i32) -> Vec<(u32, u64)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    // SAFETY: the target is valid for 64 events.
    let count = ok(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 64, 0) }, "epoll_wait");
    let mut got: Vec<(u32, u64)> = events[..count as usize].iter().map(|e| (e.events, e.u64)).collect();
    got.sort_by_key(|e| e.1);
    got
}

fn epoll(_: &Path, _: &mut crate::stage::Extra) {
    new_epoll(20);
    new_eventfd(1, 0, 21);
    new_eventfd(0, 0, 22);
    control(20, libc::EPOLL_CTL_ADD, 21, IN, 0x1122_3344_5566_7788);
    control(20, libc::EPOLL_CTL_ADD, 22, IN | libc::EPOLLET as u32, 22);
    // Nested, the inner one with a higher number and a ready event.
    new_epoll(30);
    control(20, libc::EPOLL_CTL_ADD, 30, IN, 30);
    new_eventfd(1, 0, 31);
    control(30, libc::EPOLL_CTL_ADD, 31, IN, 31);
    // One-shot: one that has fired, one that has not.
    new_epoll(40);
    new_eventfd(1, 0, 41);
    control(40, libc::EPOLL_CTL_ADD, 41, IN | ONESHOT, 41);
    assert_eq!(wait(40), [(IN, 41)]);
    new_eventfd(0, 0, 42);
    control(40, libc::EPOLL_CTL_ADD, 42, IN | ONESHOT, 42);
    // The number that was registered now names another eventfd, and the registered one has another number.
    new_epoll(50);
    new_eventfd(0, 0, 51);
    control(50, libc::EPOLL_CTL_ADD, 51, IN, 1);
    dup(51, 52);
    close(51);
    new_eventfd(7, 0, 51);
    control(50, libc::EPOLL_CTL_ADD, 51, IN, 2);
    // The registered number is closed, a copy is open.
    new_epoll(60);
    let mut ends = [0i32; 2];
    // SAFETY: the target is a local.
    ok(unsafe { libc::pipe(ends.as_mut_ptr()) }, "pipe");
    at(ends[1], 64);
    at(ends[0], 61);
    control(60, libc::EPOLL_CTL_ADD, 61, IN, 61);
    dup(61, 63);
    close(61);
}

fn verify_epoll(_: &Path) {
    // The inner instance reports through the outer one.
    assert_eq!(wait(20), [(IN, 30), (IN, 0x1122_3344_5566_7788)]);
    write(22, &1u64.to_ne_bytes());
    assert_eq!(wait(20).len(), 3);
    assert_eq!(wait(20).len(), 2, "edge-triggered");
    assert_eq!(wait(30), [(IN, 31)]);
    assert_eq!(wait(40), [], "the fired one-shot stays silent");
    write(41, &1u64.to_ne_bytes());
    assert_eq!(wait(40), []);
    write(42, &1u64.to_ne_bytes());
    assert_eq!(wait(40), [(IN, 42)]);
    assert_eq!(wait(40), []);
    control(40, libc::EPOLL_CTL_MOD, 41, IN | ONESHOT, 43);
    assert_eq!(wait(40), [(IN, 43)]);
    if std::env::var_os("NO_KCMP").is_none() {
        assert_eq!(wait(50), [(IN, 2)]);
        write(52, &1u64.to_ne_bytes());
        assert_eq!(wait(50), [(IN, 1), (IN, 2)]);
    }
    assert_eq!(wait(60), []);
    write(64, b"x");
    assert_eq!(wait(60), [(IN, 61)]);
}

fn epoll_many(_: &Path, _: &mut crate::stage::Extra) {
    new_epoll(20);
    for fd in 21..2021 {
        new_eventfd(0, 0, fd);
        control(20, libc::EPOLL_CTL_ADD, fd, IN, fd as u64);
    }
}

fn verify_epoll_many(_: &Path) {
    write(1777, &1u64.to_ne_bytes());
    assert_eq!(wait(20), [(IN, 1777)]);
}

fn eventfd(_: &Path, _: &mut crate::stage::Extra) {
    new_eventfd(5, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK, 20);
    new_eventfd(3, libc::EFD_CLOEXEC, 21);
    write(21, &(1u64 << 40).to_ne_bytes());
    new_eventfd(0, libc::EFD_NONBLOCK, 22);
    dup(22, 23);
}

fn verify_eventfd(_: &Path) {
    for _ in 0..5 {
        assert_eq!(read(20, 8).unwrap(), 1u64.to_ne_bytes());
    }
    assert_eq!(read(20, 8), Err(libc::EAGAIN));
    assert!(cloexec(21));
    assert_eq!(read(21, 8).unwrap(), ((1u64 << 40) + 3).to_ne_bytes());
    assert_eq!(read(22, 8), Err(libc::EAGAIN));
    write(23, &9u64.to_ne_bytes());
    assert_eq!(read(22, 8).unwrap(), 9u64.to_ne_bytes());
}

fn new_timer(clock: i32, flags: i32, value: libc::timespec, interval: libc::timespec, to: i32) {
    let times = libc::itimerspec { it_interval: interval, it_value: value };
    // SAFETY: the source is a local.
    unsafe {
        at(ok(libc::timerfd_create(clock, libc::TFD_NONBLOCK), "timerfd"), to);
        ok(libc::timerfd_settime(to, flags, &times, std::ptr::null_mut()), "timerfd_settime");
    }
}

fn ns(value: i64) -> libc::timespec {
    libc::timespec { tv_sec: value / 1_000_000_000, tv_nsec: value % 1_000_000_000 }
}

fn timerfd(_: &Path, _: &mut crate::stage::Extra) {
    new_timer(libc::CLOCK_MONOTONIC, 0, ns(600_000_000), ns(0), 20);
    new_timer(libc::CLOCK_BOOTTIME, 0, ns(1_000_000), ns(2_000_000), 21);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    new_timer(libc::CLOCK_REALTIME, libc::TFD_TIMER_ABSTIME, ns(now + 3_600_000_000_000), ns(0), 22);
    new_timer(libc::CLOCK_MONOTONIC, 0, ns(1_000_000), ns(0), 23);
    new_timer(libc::CLOCK_MONOTONIC, 0, ns(0), ns(0), 24);
    std::thread::sleep(std::time::Duration::from_millis(50));
}

fn verify_timerfd(_: &Path) {
    let remaining = |fd: i32| {
        let mut times = libc::itimerspec { it_interval: ns(0), it_value: ns(0) };
        // SAFETY: the target is a local.
        ok(unsafe { libc::timerfd_gettime(fd, &mut times) }, "timerfd_gettime");
        times.it_value.tv_sec * 1_000_000_000 + times.it_value.tv_nsec
    };
    assert!((300_000_000..=550_000_000).contains(&remaining(20)), "{}", remaining(20));
    assert_eq!(read(20, 8), Err(libc::EAGAIN));
    let ticks = u64::from_ne_bytes(read(21, 8).unwrap().try_into().unwrap());
    assert!((20..60).contains(&ticks), "{ticks}");
    let hour = remaining(22) as f64 / 1e9;
    assert!((3400.0..3600.0).contains(&hour), "{hour}");
    assert_eq!(read(23, 8).unwrap(), 1u64.to_ne_bytes(), "expired before the save");
    assert_eq!(read(23, 8), Err(libc::EAGAIN));
    assert_eq!(read(24, 8), Err(libc::EAGAIN));
    assert_ne!(poll(20, libc::POLLIN, 1000), 0, "and it still expires");
}

fn mask() -> libc::sigset_t {
    // SAFETY: an empty set is all zero; the target is a local.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

fn signalfd(_: &Path, _: &mut crate::stage::Extra) {
    // SAFETY: the mask is a local.
    at(ok(unsafe { libc::signalfd(-1, &mask(), libc::SFD_NONBLOCK) }, "signalfd"), 20);
}

fn verify_signalfd(_: &Path) {
    mask();
    assert_eq!(read(20, 128), Err(libc::EAGAIN));
    // SAFETY: the signal is blocked.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR2) };
    assert_eq!(read(20, 128).unwrap()[0] as i32, libc::SIGUSR2);
}

fn inotify(d: &Path, _: &mut crate::stage::Extra) {
    std::fs::create_dir(d.join("watched")).unwrap();
    std::fs::write(d.join("watched/file"), b"").unwrap();
    // A descriptor in the neighbourhood, for the search without privileges.
    open(&d.join("watched"), libc::O_RDONLY | libc::O_DIRECTORY, 21);
    // SAFETY: no memory involved.
    at(ok(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) }, "inotify"), 20);
    let add = |path: &Path, mask: u32| {
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is zero-terminated.
        ok(unsafe { libc::inotify_add_watch(20, name.as_ptr(), mask) }, "inotify_add_watch")
    };
    let gone = add(d, libc::IN_CREATE);
    assert_eq!(add(&d.join("watched"), libc::IN_CREATE), 2);
    // SAFETY: no memory involved.
    ok(unsafe { libc::inotify_rm_watch(20, gone) }, "inotify_rm_watch");
    assert_eq!(add(&d.join("watched/file"), libc::IN_MODIFY), 3);
    let _ = read(20, 4096);
}

fn verify_inotify(d: &Path) {
    let _ = read(20, 4096);
    let new = d.join("watched/new");
    let _ = std::fs::remove_file(&new);
    std::fs::write(&new, b"").unwrap();
    let event = read(20, 4096).unwrap();
    assert_eq!(event[0], 2);
    assert!(event[16..].starts_with(b"new"));
    std::fs::write(d.join("watched/file"), b"x").unwrap();
    let event = read(20, 4096).unwrap();
    assert_eq!((event[0], event[4] as u32), (3, libc::IN_MODIFY));
}

fn pidfd(_: &Path, _: &mut crate::stage::Extra) {
    // SAFETY: no memory involved.
    let open = |pid: u32| ok(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32, "pidfd_open");
    at(open(std::process::id()), 20);
    let mut child = std::process::Command::new("sleep").arg("0.2").spawn().unwrap();
    at(open(child.id()), 21);
    // Alive when it is saved, and gone when it is resumed.
    std::mem::forget(child.stdin.take());
    std::mem::forget(child);
}

fn verify_pidfd(_: &Path) {
    assert_eq!(poll(20, libc::POLLIN, 0), 0, "alive");
    let info = std::fs::read_to_string("/proc/self/fdinfo/20").unwrap();
    assert!(info.contains(&format!("Pid:\t{}\n", std::process::id())));
    assert_eq!(poll(21, libc::POLLIN, 0), libc::POLLIN | libc::POLLHUP & poll(21, libc::POLLIN, 0), "ended");
}
