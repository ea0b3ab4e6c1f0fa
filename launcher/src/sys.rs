//! The system calls that nix does not wrap, each as a small safe function.
//!
//! One of the few modules with unsafe code (with `child`, `startup` and `watch`). Nothing here knows what a region
//! is. Neighbours: `process` (programs), `store` and `commands::check` (probes).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// prctl(2): turns Syscall User Dispatch on or off (include/uapi/linux/prctl.h).
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
/// Its "on".
const PR_SYS_DISPATCH_ON: u64 = 1;

/// The result of a call that gives -1 and errno.
fn result(value: i64) -> io::Result<i64> {
    if value < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// waitpid(2) for any child, stopped ones too, without waiting: its id and status. Not nix's, which has no word for a
/// child that a real-time signal has ended.
pub fn reap() -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: writes the status.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED | libc::__WALL) };
    match result(pid.into()) {
        Ok(pid) => Ok((pid > 0).then_some((pid as i32, status))),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}

/// flock(2) without waiting; false if somebody else holds it.
///
/// Not nix's `Flock`, which unlocks when it is dropped: a lock here belongs to an open file description that the
/// program inherits, and must last until the last copy of it is closed.
pub fn try_flock(file: impl AsFd, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: takes a descriptor and a number, no memory.
    let done = unsafe { libc::flock(file.as_fd().as_raw_fd(), kind | libc::LOCK_NB) };
    match result(done.into()) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives back what [`try_flock`] took.
pub fn unlock(file: impl AsFd) {
    // SAFETY: takes a descriptor and a number, no memory.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// A descriptor for the process `pid`; readable once it has ended.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers, no memory.
    let fd = result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it. It is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal` to the process behind `pidfd`, and to no other that may have its number by now.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) })?;
    Ok(())
}

/// Sends `signal` to one thread of a process.
pub fn tgkill(pid: u32, thread: u32, signal: i32) -> io::Result<()> {
    // SAFETY: takes three numbers, no memory.
    result(unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) })?;
    Ok(())
}

/// Sleeps until somebody wakes `word`, it is no longer `value`, or `limit` is over. Wakes up early at times.
pub fn futex_wait(word: &AtomicU32, value: u32, limit: Duration) {
    let limit = libc::timespec { tv_sec: limit.as_secs() as libc::time_t, tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: `word` and `limit` outlive the call. Waiting only reads. Not FUTEX_PRIVATE: the word is in a file.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const limit) };
}

/// Takes back `signal` if it is pending (and blocked).
pub fn drain(signal: i32) {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised by the first call; set and time outlive the last one, which does not wait.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &raw const now);
    }
}

/// Whether the file at `path` has the extended attribute `name`.
pub fn has_attribute(path: &Path, name: &CStr) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: both strings are terminated and outlive the call; a size of 0 asks for the length only.
    let bytes = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    bytes > 0
}

/// Whether one page of `file` can be mapped with `protection` and `flags`; it is unmapped at once.
pub fn can_map(file: &File, protection: i32, flags: i32) -> io::Result<()> {
    let bytes = zhuque_abi::layout::PAGE as usize;
    // SAFETY: without MAP_FIXED the kernel chooses free addresses, and the mapping is not touched.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: exactly the mapping made above, to which no reference exists.
    unsafe { libc::munmap(address, bytes) };
    Ok(())
}

/// The second word of processor features that the kernel tells each process (AT_HWCAP2).
pub fn hwcap2() -> u64 {
    // SAFETY: reads the auxiliary vector, which always exists.
    unsafe { libc::getauxval(libc::AT_HWCAP2) }
}

/// What `body` returns in a forked child. `body` must not allocate, print or panic, as any thread might have held a
/// lock at the fork; the callers below only make system calls.
fn in_child(body: fn() -> i32) -> io::Result<i32> {
    // SAFETY: the child only runs `body`, for which that holds, and then leaves without running anything of ours.
    let pid = result(unsafe { libc::fork() }.into())? as libc::pid_t;
    if pid == 0 {
        let status = body();
        // SAFETY: ends the child here.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call; the child is ours.
    result(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    if libc::WIFEXITED(status) {
        return Ok(libc::WEXITSTATUS(status));
    }
    Err(io::Error::other("the probe was killed"))
}

/// Whether the kernel lets a process arm Syscall User Dispatch; the error number if not.
pub fn dispatch_works() -> io::Result<()> {
    /// Tells the kernel to let every call pass (SYSCALL_DISPATCH_FILTER_ALLOW), so that the child can leave.
    static SELECTOR: u8 = 0;
    let status = in_child(|| {
        // SAFETY: the selector is static; the kernel only reads it.
        let done =
            unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0u64, 0u64, &raw const SELECTOR) };
        if done == 0 { 0 } else { errno() }
    })?;
    match status {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Whether a process may trace its child up to the stop at an exec, as a resume does.
pub fn trace_works() -> io::Result<()> {
    // SAFETY: the child only makes system calls, with static memory, and leaves.
    let pid = result(unsafe { libc::fork() }.into())? as libc::pid_t;
    if pid == 0 {
        // SAFETY: takes numbers only.
        if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } < 0 {
            let error = errno();
            // SAFETY: ends the child here.
            unsafe { libc::_exit(error) };
        }
        let path = c"/proc/self/exe".as_ptr();
        let arguments = [path, std::ptr::null()];
        let none = [std::ptr::null()];
        // SAFETY: terminated strings in terminated arrays. The new image stops before its first instruction.
        unsafe { libc::execve(path, arguments.as_ptr(), none.as_ptr()) };
        // SAFETY: ends the child here.
        unsafe { libc::_exit(errno()) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call; the child is ours.
    result(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP {
        // SAFETY: ends and reaps our child, which is stopped.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, &raw mut status, 0);
        }
        return Ok(());
    }
    if libc::WIFEXITED(status) {
        return Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)));
    }
    Err(io::Error::other("the probe was killed"))
}

/// The error number of the last call.
fn errno() -> i32 {
    // SAFETY: the calling thread's own word, always there.
    unsafe { *libc::__errno_location() }
}
