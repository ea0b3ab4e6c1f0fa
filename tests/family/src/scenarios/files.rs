//! Regular files, directories, devices, locks.

use super::Scenario;
use super::io::*;
use std::fs;
use std::path::Path;

/// The scenarios of this file.
pub const ALL: &[Scenario] = &[
    Scenario { name: "plain", setup: plain, verify: verify_plain },
    Scenario { name: "deleted", setup: deleted, verify: verify_deleted },
    Scenario { name: "memfd", setup: memfd, verify: verify_memfd },
    Scenario { name: "append", setup: append, verify: verify_append },
    Scenario { name: "mapped", setup: mapped, verify: |_| {} },
    Scenario { name: "changed", setup: changed, verify: |_| {} },
    Scenario { name: "devices", setup: devices, verify: verify_devices },
    Scenario { name: "stdio", setup: stdio, verify: verify_stdio },
    Scenario { name: "locks", setup: locks, verify: verify_locks },
    Scenario { name: "many", setup: many, verify: verify_many },
    Scenario { name: "many-written", setup: many_written, verify: |_| {} },
    Scenario { name: "again", setup: again, verify: verify_again },
    Scenario { name: "pty", setup: pty, verify: verify_pty },
    Scenario { name: "unsupported", setup: unsupported, verify: |_| {} },
];

fn plain(d: &Path, _: &mut crate::stage::Extra) {
    fs::write(d.join("a"), b"0123456789").unwrap();
    open(&d.join("a"), libc::O_RDWR | libc::O_CLOEXEC, 20);
    seek(20, 4, libc::SEEK_SET);
    // SAFETY: descriptors are no memory.
    unsafe {
        libc::dup3(20, 25, libc::O_CLOEXEC);
        libc::fcntl(20, libc::F_SETFD, 0);
    }
    open(&d.join("a"), libc::O_RDONLY, 26);
    open(&d.join("a"), libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK, 27);
    open(d, libc::O_RDONLY | libc::O_DIRECTORY, 28);
    for name in ["x", "y", "z"] {
        fs::write(d.join(name), name).unwrap();
    }
    open(&d.join("x"), libc::O_PATH, 29);
    open(d, libc::O_PATH | libc::O_DIRECTORY, 30);
    open(Path::new("/proc/self/status"), libc::O_RDONLY, 31);
    assert!(read(31, 10).is_ok());
    // SAFETY: no memory involved.
    unsafe { libc::fcntl(26, libc::F_SETOWN, libc::getpid()) };
    // SAFETY: no memory involved.
    unsafe { libc::fcntl(26, 10, libc::SIGUSR1) };
}

fn verify_plain(d: &Path) {
    assert_eq!(seek(20, 0, libc::SEEK_CUR), 4);
    assert_eq!(read(20, 2).unwrap(), b"45");
    assert_eq!(seek(25, 0, libc::SEEK_CUR), 6, "a dup shares the offset");
    assert_eq!(seek(26, 0, libc::SEEK_CUR), 0, "another description does not");
    assert!(!cloexec(20) && cloexec(25) && !cloexec(26));
    assert_eq!(flags(26) & libc::O_ACCMODE, libc::O_RDONLY);
    assert_eq!(flags(27) & (libc::O_APPEND | libc::O_NONBLOCK), libc::O_APPEND | libc::O_NONBLOCK);
    assert_eq!(flags(20) & libc::O_NONBLOCK, 0);
    let modified = fs::metadata(d.join("a")).unwrap().modified().unwrap();
    write(27, b"!");
    assert_eq!(fs::read(d.join("a")).unwrap(), b"0123456789!");
    fs::write(d.join("a"), b"0123456789").unwrap();
    // As it was, for the second resume.
    fs::File::options().write(true).open(d.join("a")).unwrap().set_modified(modified).unwrap();
    assert!(fs::metadata("/proc/self/fd/28").unwrap().is_dir());
    assert!(flags(29) & libc::O_PATH != 0 && flags(30) & libc::O_PATH != 0);
    assert_eq!(fs::read_link("/proc/self/fd/29").unwrap(), d.join("x"));
    assert_eq!(seek(31, 0, libc::SEEK_CUR), 10);
    let status = String::from_utf8(read(31, 4000).unwrap()).unwrap();
    assert!(status.contains(&format!("Pid:\t{}\n", std::process::id())), "the own process: {status}");
    // SAFETY: no memory involved.
    unsafe {
        assert_eq!(libc::fcntl(26, libc::F_GETOWN), libc::getpid());
        assert_eq!(libc::fcntl(26, 11), libc::SIGUSR1);
    }
}

fn deleted(d: &Path, _: &mut crate::stage::Extra) {
    // One without a name, twice open; one renamed over; one that somebody deleted but that has another link.
    open(&d.join("gone"), libc::O_RDWR | libc::O_CREAT, 20);
    write(20, b"hello");
    // A hole in the middle.
    seek(20, 1 << 20, libc::SEEK_SET);
    write(20, b"world");
    seek(20, 2, libc::SEEK_SET);
    open(&d.join("gone"), libc::O_RDONLY, 21);
    open(&d.join("gone"), libc::O_WRONLY, 22);
    fs::remove_file(d.join("gone")).unwrap();
    fs::write(d.join("old"), b"old content").unwrap();
    open(&d.join("old"), libc::O_RDWR, 23);
    fs::write(d.join("new"), b"new content").unwrap();
    fs::rename(d.join("new"), d.join("old")).unwrap();
    fs::write(d.join("linked"), b"linked").unwrap();
    fs::hard_link(d.join("linked"), d.join("other")).unwrap();
    open(&d.join("linked"), libc::O_RDWR, 24);
    fs::remove_file(d.join("linked")).unwrap();
    // One whose name says so.
    fs::write(d.join("x (deleted)"), b"not at all").unwrap();
    open(&d.join("x (deleted)"), libc::O_RDONLY, 25);
    let directory = std::ffi::CString::new(d.to_str().unwrap()).unwrap();
    // SAFETY: the path is zero-terminated.
    let temporary = unsafe { libc::open(directory.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600) };
    at(ok(temporary, "O_TMPFILE"), 26);
    write(26, b"temporary");
}

fn verify_deleted(d: &Path) {
    assert_eq!(read(20, 3).unwrap(), b"llo");
    assert_eq!(read(21, 5).unwrap(), b"hello");
    assert_eq!(flags(22) & libc::O_ACCMODE, libc::O_WRONLY);
    assert_eq!(seek(20, 0, libc::SEEK_END), (1 << 20) + 5);
    seek(20, 1 << 20, libc::SEEK_SET);
    assert_eq!(read(20, 9).unwrap(), b"world");
    assert_eq!(read(23, 20).unwrap(), b"old content");
    assert_eq!(fs::read(d.join("old")).unwrap(), b"new content");
    assert_eq!(read(24, 20).unwrap(), b"linked");
    assert_eq!(read(25, 20).unwrap(), b"not at all");
    assert_eq!(fs::read_link("/proc/self/fd/25").unwrap(), d.join("x (deleted)"));
    assert_eq!(seek(26, 0, libc::SEEK_SET), 0);
    assert_eq!(read(26, 20).unwrap(), b"temporary");
    // All three descriptions of the one file are of one file again.
    let inode = |fd: i32| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino()
    };
    assert_eq!(inode(20), inode(21));
    assert_eq!(inode(20), inode(22));
}

fn memfd(_: &Path, _: &mut crate::stage::Extra) {
    // SAFETY: the name is zero-terminated.
    at(ok(unsafe { libc::memfd_create(c"thing".as_ptr(), libc::MFD_CLOEXEC) }, "memfd"), 20);
    write(20, b"in memory");
    seek(20, 3, libc::SEEK_SET);
}

fn verify_memfd(_: &Path) {
    assert_eq!(read(20, 20).unwrap(), b"memory");
}

fn append(d: &Path, _: &mut crate::stage::Extra) {
    fs::write(d.join("log"), b"one\n").unwrap();
    open(&d.join("log"), libc::O_WRONLY | libc::O_APPEND, 20);
}

fn verify_append(d: &Path) {
    write(20, b"three\n");
    assert!(fs::read_to_string(d.join("log")).unwrap().ends_with("three\n"));
}

fn mapped(d: &Path, extra: &mut crate::stage::Extra) {
    use std::os::unix::fs::MetadataExt;
    fs::write(d.join("m"), b"content").unwrap();
    extra.mapped.push(fs::metadata(d.join("m")).unwrap().ino());
    open(&d.join("m"), libc::O_RDWR, 20);
}

fn changed(d: &Path, _: &mut crate::stage::Extra) {
    fs::write(d.join("c"), b"content").unwrap();
    open(&d.join("c"), libc::O_RDWR, 20);
}

fn devices(_: &Path, _: &mut crate::stage::Extra) {
    open(Path::new("/dev/null"), libc::O_RDWR | libc::O_CLOEXEC, 20);
    open(Path::new("/dev/urandom"), libc::O_RDONLY, 21);
    open(Path::new("/dev/zero"), libc::O_RDONLY, 22);
    open(Path::new("/dev/full"), libc::O_WRONLY, 23);
    // A copy of stdout under another number, and one of stdin that replaces stderr.
    dup(1, 24);
    dup(0, 2);
    close(0);
}

fn verify_devices(_: &Path) {
    assert!(cloexec(20));
    assert_eq!(read(20, 1).unwrap(), b"");
    assert_eq!(read(21, 16).unwrap().len(), 16);
    assert_eq!(read(22, 4).unwrap(), [0; 4]);
    assert_eq!(link(23), Path::new("/dev/full"));
    assert_eq!(link(24), link(1));
}

fn link(fd: i32) -> std::path::PathBuf {
    fs::read_link(format!("/proc/self/fd/{fd}")).unwrap()
}

fn stdio(_: &Path, _: &mut crate::stage::Extra) {
    // The program's stdout does not wait, and descriptor 2 is a file of its own.
    set_flags(1, libc::O_NONBLOCK);
    open(Path::new("/dev/null"), libc::O_WRONLY, 2);
}

fn verify_stdio(_: &Path) {
    assert!(flags(1) & libc::O_NONBLOCK != 0);
    assert_eq!(fs::read_link("/proc/self/fd/2").unwrap(), Path::new("/dev/null"));
    write(1, b"to the test");
    // Only the program's description changed, if the pipe could be opened again.
    // SAFETY: no memory involved.
    if unsafe { libc::geteuid() } == 0 {
        let shared = (crate::stage::base()..)
            .find(|&fd| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|l| l == link(1)));
        assert_eq!(flags(shared.unwrap()) & libc::O_NONBLOCK, 0);
    }
}

fn locks(d: &Path, _: &mut crate::stage::Extra) {
    for (name, fd) in [("p", 20), ("f", 21), ("o", 22)] {
        fs::write(d.join(name), b"0123456789").unwrap();
        open(&d.join(name), libc::O_RDWR, fd);
    }
    // A second description of the file with POSIX locks: closing it drops them, so it has to come early.
    open(&d.join("p"), libc::O_RDONLY, 23);
    let lock = |kind: i32, start: i64, length: i64| libc::flock {
        l_type: kind as i16,
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the locks are locals.
    unsafe {
        ok(libc::fcntl(20, libc::F_SETLK, &lock(libc::F_WRLCK, 2, 3)), "POSIX");
        ok(libc::fcntl(20, libc::F_SETLK, &lock(libc::F_RDLCK, 8, 0)), "POSIX");
        ok(libc::flock(21, libc::LOCK_EX), "flock");
        ok(libc::fcntl(22, libc::F_OFD_SETLK, &lock(libc::F_WRLCK, 0, 0)), "OFD");
    }
}

fn verify_locks(d: &Path) {
    let list = fs::read_to_string("/proc/locks").unwrap();
    use std::os::unix::fs::MetadataExt;
    let of = |name: &str| {
        let inode = format!(":{} ", fs::metadata(d.join(name)).unwrap().ino());
        let mut lines: Vec<&str> = list.lines().filter(|l| l.contains(&inode)).collect();
        lines.sort_by_key(|l| l.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap());
        lines.iter().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let pid = std::process::id();
    let posix = of("p");
    assert_eq!(posix.len(), 2, "{list}");
    assert!(posix[0].contains(&format!("POSIX ADVISORY WRITE {pid}")) && posix[0].ends_with(" 2 4"), "{posix:?}");
    assert!(posix[1].contains("READ") && posix[1].ends_with(" 8 EOF"), "{posix:?}");
    assert!(of("f")[0].contains("FLOCK ADVISORY WRITE"));
    assert!(of("o")[0].contains("OFDLCK ADVISORY WRITE"));
}

fn many(d: &Path, _: &mut crate::stage::Extra) {
    for index in 0..1000 {
        let path = d.join(format!("f{index}"));
        fs::write(&path, b"x").unwrap();
        open(&path, libc::O_RDONLY, 20 + index);
    }
}

fn many_written(d: &Path, _: &mut crate::stage::Extra) {
    for index in 0..100 {
        let path = d.join(format!("f{index}"));
        fs::write(&path, b"x").unwrap();
        open(&path, libc::O_RDWR, 20 + index);
    }
}

fn verify_many(_: &Path) {
    assert_eq!(read(1019, 1).unwrap(), b"x");
}

/// Saved, resumed, and saved again by the same process: what the second save finds are kept files of the first.
fn again(d: &Path, extra: &mut crate::stage::Extra) {
    open(&d.join("gone"), libc::O_RDWR | libc::O_CREAT, 20);
    write(20, b"first");
    fs::remove_file(d.join("gone")).unwrap();
    open(&d.join("late"), libc::O_RDWR | libc::O_CREAT, 21);
    fs::remove_file(d.join("late")).unwrap();
    crate::stage::save(d, extra);
    crate::stage::resume(d, false).unwrap();
    assert_eq!(fs::read_dir(d.join("region/files")).unwrap().count(), 2);
    write(20, b" second");
    // Nobody needs this one any more: the next save deletes it.
    close(21);
}

fn verify_again(d: &Path) {
    assert_eq!(seek(20, 0, libc::SEEK_SET), 0);
    assert_eq!(read(20, 20).unwrap(), b"first second");
    assert_eq!(fs::read_dir(d.join("region/files")).unwrap().count(), 1);
}

fn pty(_: &Path, _: &mut crate::stage::Extra) {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize { ws_row: 11, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the targets are locals; null pointers mean defaults.
    unsafe {
        ok(libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size), "openpty");
        let mut settings = std::mem::zeroed();
        libc::tcgetattr(slave, &mut settings);
        libc::cfmakeraw(&mut settings);
        libc::tcsetattr(slave, libc::TCSANOW, &settings);
    }
    at(slave, 21);
    at(master, 20);
}

fn verify_pty(_: &Path) {
    write(20, b"a\r");
    assert_eq!(read(21, 10).unwrap(), b"a\r", "raw mode");
    write(21, b"b\n");
    assert_eq!(read(20, 10).unwrap(), b"b\n", "raw mode");
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the target is a local.
    ok(unsafe { libc::ioctl(21, libc::TIOCGWINSZ, &mut size) }, "TIOCGWINSZ");
    assert_eq!((size.ws_row, size.ws_col), (11, 77));
}

fn unsupported(d: &Path, _: &mut crate::stage::Extra) {
    std::os::unix::fs::symlink("nowhere", d.join("gone")).unwrap();
    open(&d.join("gone"), libc::O_PATH | libc::O_NOFOLLOW, 20);
    fs::remove_file(d.join("gone")).unwrap();
}
