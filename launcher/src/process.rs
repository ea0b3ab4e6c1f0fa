//! Programs as /proc shows them: threads, children, who has a file open.
//!
//! Key type: [`Program`]: a running process of which it is certain that it runs a certain region. Neighbours:
//! `commands::fail`, `commands::rm` and `supervise` act on one.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// A running process that is held by a descriptor, so that its number cannot come to mean another.
pub struct Program {
    /// Its process id.
    pub pid: u32,
    handle: OwnedFd,
    /// Device and inode of the file by which it was found.
    region: [u64; 2],
}

impl Program {
    /// The process `pid`, if it is there and has the file with this device and inode open. A region's header is not
    /// to be believed: what it says about a pid could make us kill somebody else.
    pub fn find(pid: u32, device: u64, inode: u64) -> Option<Program> {
        if pid == 0 || i32::try_from(pid).is_err() {
            return None;
        }
        // The handle comes first: what is found out after it is found out about this process.
        let handle = sys::pidfd_open(pid).ok()?;
        let program = Program { pid, handle, region: [device, inode] };
        // A process that is not dumpable shows its descriptors to root only; its launcher's can be seen.
        let unseen = fs::read_dir(format!("/proc/{pid}/fd")).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
        let held = holds(pid, device, inode) || unseen && parent(pid).is_some_and(|pid| holds(pid, device, inode));
        (held && !program.ended()).then_some(program)
    }

    /// Lets it go on if it was stopped, and its launcher, which Ctrl-Z stops as well.
    pub fn wake(&self) {
        wake(self.pid);
        let [device, inode] = self.region;
        parent(self.pid).filter(|&parent| holds(parent, device, inode)).map(wake);
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for its end; false when `limit` is over.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, limit), Ok(ready) if ready > 0)
    }

    /// Ends it.
    pub fn kill(&self) -> std::io::Result<()> {
        sys::pidfd_signal(&self.handle, libc::SIGKILL)
    }
}

/// Announces a power failure to the threads of a process, each once.
#[derive(Default)]
pub struct Announcement {
    told: HashSet<u32>,
    /// When the first of them was told.
    pub since: Option<SystemTime>,
}

impl Announcement {
    /// Tells every thread that has not been told: those born since the last call. Returns how many have been told.
    pub fn announce(&mut self, pid: u32) -> usize {
        // The whole list first, which takes the kernel longer than all of the signals: from the first of these on it is
        // a power failure.
        let threads: Vec<u32> = numbers(&format!("/proc/{pid}/task")).collect();
        for thread in threads {
            // One that ends meanwhile needs to know nothing.
            if self.told.insert(thread) {
                self.since.get_or_insert_with(SystemTime::now);
                let _ = sys::tgkill(pid, thread, libc::SIGPWR);
            }
        }
        self.told.len()
    }
}

/// Entries of a directory that are numbers.
fn numbers(path: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Number of threads of a process.
pub fn threads(pid: u32) -> usize {
    numbers(&format!("/proc/{pid}/task")).count()
}

/// Whether the process `pid` has the file with this device and inode open.
pub fn holds(pid: u32, device: u64, inode: u64) -> bool {
    let holds = |directory: &str| {
        numbers(directory).any(|fd| {
            let stat = fs::metadata(format!("{directory}/{fd}"));
            stat.is_ok_and(|stat| stat.dev() == device && stat.ino() == inode)
        })
    };
    // A main thread that has ended has nothing open any more.
    let others = || numbers(&format!("/proc/{pid}/task")).any(|thread| holds(&format!("/proc/{pid}/task/{thread}/fd")));
    holds(&format!("/proc/{pid}/fd")) || main_thread_ended(pid) && others()
}

/// Fields of /proc/PID/stat behind the name, which may contain anything, also blanks and parentheses.
fn stat_fields(path: &str) -> Option<(char, u32)> {
    let stat = fs::read_to_string(path).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn main_thread_ended(pid: u32) -> bool {
    stat_fields(&format!("/proc/{pid}/stat")).is_some_and(|(state, _)| state == 'Z')
}

fn parent(pid: u32) -> Option<u32> {
    stat_fields(&format!("/proc/{pid}/stat")).map(|(_, parent)| parent)
}

/// Lets a process go on that was stopped (SIGSTOP, Ctrl-Z): what is stopped takes no SIGPWR. Whether it was.
pub fn wake(pid: u32) -> bool {
    let threads = numbers(&format!("/proc/{pid}/task")).map(|thread| format!("/proc/{pid}/task/{thread}/stat"));
    let is_stopped = |path: String| stat_fields(&path).is_some_and(|(state, _)| state == 'T');
    // They stop all together; a main thread that has ended does not show it.
    let stopped = is_stopped(format!("/proc/{pid}/stat")) || main_thread_ended(pid) && { threads }.any(is_stopped);
    stopped && sys::tgkill(pid, pid, libc::SIGCONT).is_ok()
}

/// All processes (of those that may be looked at) that have the file open, but this one.
pub fn holders(device: u64, inode: u64) -> Vec<u32> {
    let own = std::process::id();
    { numbers("/proc") }.filter(|&pid| pid != own && holds(pid, device, inode)).collect()
}

/// The children of this process, threads of it included as parents.
pub fn children() -> Vec<u32> {
    let own = std::process::id();
    let mut all = Vec::new();
    for pid in numbers("/proc") {
        let found = stat_fields(&format!("/proc/{pid}/stat"));
        if found.is_some_and(|(state, parent)| state != 'Z' && parent == own) {
            all.push(pid);
        }
    }
    all
}

/// The command line of a process, in one line; its executable, if it has moved its arguments to where the kernel does
/// not find them.
pub fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = arguments(&bytes);
    if !line.is_empty() {
        return Some(line);
    }
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(crate::failure::one_line(&exe.to_string_lossy()))
}

/// Arguments with their terminating zeroes as one line.
pub fn arguments(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let words: Vec<_> = { bytes.split(|&byte| byte == 0) }.map(|word| String::from_utf8_lossy(word)).collect();
    crate::failure::one_line(&words.join(" "))
}

/// The distinct files that a process has mapped executable, by device and inode as the kernel writes them.
pub fn executable_files(pid: u32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut files = Vec::new();
    for line in maps.lines() {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        if let [_, protection, _, device, inode, _, ..] = fields[..] {
            let file = format!("{device} {inode}");
            if protection.contains('x') && inode != "0" && !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files
}

/// Whether a process has mapped the file at `path`.
pub fn maps_file(pid: u32, path: &std::path::Path) -> bool {
    let Ok(stat) = fs::metadata(path) else {
        return false;
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    // Inode numbers alone can coincide between file systems; then the shim is given more time, no harm.
    maps.lines().any(|line| {
        let inode = line.split_ascii_whitespace().nth(4);
        inode.and_then(|inode| inode.parse().ok()) == Some(stat.ino())
    })
}
