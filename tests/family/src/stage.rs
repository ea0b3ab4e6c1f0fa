//! What stands in for the shim: a region, a journal, and the calls of `capture` and `revive`.

#![allow(clippy::result_large_err)]

use crate::descriptors::{Capture, Failure, Revival, TIMER_PATIENCE_NS, capture, revive, stdio_identity};
use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
use std::time::Instant;
use zhuque_abi::codec::encode;
use zhuque_abi::header::Stdio;

/// The program's process id as it "knows" it.
pub const VIRTUAL_PID: u32 = 4_000_000;

/// Descriptors from here on belong to the stage.
pub fn base() -> i32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the target is a local; the second call only reads it.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    (limit.rlim_max.min(15_200) - 200) as i32
}

/// Moves a descriptor to the stage's own range.
pub fn lift(fd: i32) -> i32 {
    // SAFETY: descriptors are no memory.
    unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, base()) }
}

/// The program's descriptors: everything below the stage's.
pub fn descriptors() -> Vec<i32> {
    let mut all: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
        // The listing's own descriptor is closed by now.
        .filter(|&fd| fd < base() && unsafe_is_open(fd))
        .collect();
    all.sort();
    all
}

fn unsafe_is_open(fd: i32) -> bool {
    // SAFETY: descriptors are no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn region(directory: &Path) -> i32 {
    let region = directory.join("region");
    let _ = fs::create_dir(&region);
    let fd = fs::File::open(region).unwrap();
    lift(fd.as_raw_fd())
}

fn realtime_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// What a save is told besides.
pub struct Extra {
    /// What stdin, stdout and stderr were at start.
    pub stdio: [Stdio; 3],
    /// Inodes with a shared mapping.
    pub mapped: Vec<u64>,
}

fn processor_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the target is a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Extra {
    /// At the start of the program.
    pub fn new() -> Extra {
        Extra { stdio: stdio_identity([0, 1, 2]), mapped: Vec::new() }
    }
}

impl Default for Extra {
    fn default() -> Self {
        Self::new()
    }
}

/// Captures everything that is open; the journal goes to the directory. What it took of the processor, ns.
pub fn save(directory: &Path, extra: &Extra) -> u64 {
    let region_directory = region(directory);
    let list: Vec<String> = descriptors().iter().map(i32::to_string).collect();
    fs::write(directory.join("fds"), list.join(" ")).unwrap();
    let mut scratch = vec![0u8; 16 << 20];
    let mut journal = vec![0u8; 64 << 20];
    let mut used = 0;
    let (start, used_before) = (Instant::now(), processor_ns());
    let result = capture(&mut Capture {
        put: &mut |record| {
            used += encode(record, &mut journal[used..]).map_err(|_| Failure::new(b"journal full"))?;
            Ok(())
        },
        scratch: &mut scratch,
        pid: std::process::id(),
        virtual_pid: VIRTUAL_PID,
        virtual_thread: &|_| None,
        own: base()..i32::MAX,
        stdio: &extra.stdio,
        region_directory,
        file_sync: true,
        power: true,
        backlog: &|_| None,
        connecting: &|_| false,
        mapped_shared: &|_, inode| extra.mapped.contains(&inode),
        timer_patience_ns: TIMER_PATIENCE_NS,
    });
    let (took, used_ns) = (start.elapsed(), processor_ns() - used_before);
    fs::write(directory.join("save_ns"), took.as_nanos().to_string()).unwrap();
    if let Err(failure) = result {
        panic!("capture: {failure:?}");
    }
    fs::write(directory.join("journal"), &journal[..used]).unwrap();
    fs::write(directory.join("saved_at"), realtime_ns().to_string()).unwrap();
    used_ns
}

/// Revives what was saved; the failure's message if that is refused.
pub fn resume(directory: &Path, force: bool) -> Result<(), String> {
    let region_directory = region(directory);
    let journal = fs::read(directory.join("journal")).unwrap();
    let saved_realtime_ns = fs::read_to_string(directory.join("saved_at")).unwrap().parse().unwrap();
    let stdio = [0, 1, 2].map(lift);
    let time = lift(fs::File::create(directory.join("resume_ns")).unwrap().into_raw_fd());
    let mut scratch = vec![0u8; 16 << 20];
    let start = Instant::now();
    let result = revive(&mut Revival {
        journal: &journal,
        scratch: &mut scratch,
        region_directory,
        stdio,
        force,
        helpers: base()..i32::MAX,
        own: region_directory..region_directory + 1,
        pid: std::process::id(),
        virtual_pid: VIRTUAL_PID,
        saved_realtime_ns,
    });
    let took = start.elapsed().as_nanos().to_string();
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::write(time, took.as_ptr().cast(), took.len()) };
    if let Err(failure) = result {
        // stdout and stderr may be closed by now.
        for (number, &fd) in (0..).zip(&stdio) {
            // SAFETY: descriptors are no memory.
            unsafe { libc::dup2(fd, number) };
        }
        return Err(String::from_utf8_lossy(failure.message()).into_owned());
    }
    let expected = fs::read_to_string(directory.join("fds")).unwrap();
    let now: Vec<String> = descriptors().iter().map(i32::to_string).collect();
    assert_eq!(now.join(" "), expected, "the open descriptors");
    Ok(())
}

/// Makes kcmp(2) fail with EPERM from here on, as the default seccomp profile of containers does.
pub fn forbid_kcmp() {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_kcmp as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is valid for its length and lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}
