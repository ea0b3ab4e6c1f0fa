//! Processes, threads, futexes and per-thread registers.
#![allow(unsafe_code)]

use crate::raw::{Errno, call0, call1, call2, call3, call4, call5, call6, check};

/// arch_prctl codes (arch/x86/include/uapi/asm/prctl.h).
const ARCH_SET_GS: usize = 0x1001;
const ARCH_SET_FS: usize = 0x1002;
const ARCH_GET_FS: usize = 0x1003;

/// getpid(2), the real one.
pub fn pid() -> u32 {
    // SAFETY: no memory involved.
    unsafe { call0(libc::SYS_getpid as usize) as u32 }
}

/// getppid(2), the real one.
pub fn parent() -> u32 {
    // SAFETY: no memory involved.
    unsafe { call0(libc::SYS_getppid as usize) as u32 }
}

/// gettid(2), the real one.
pub fn tid() -> u32 {
    // SAFETY: no memory involved.
    unsafe { call0(libc::SYS_gettid as usize) as u32 }
}

/// sched_yield(2).
pub fn yield_now() {
    // SAFETY: no memory involved.
    unsafe { call0(libc::SYS_sched_yield as usize) };
}

/// exit_group(2).
pub fn exit_group(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { call1(libc::SYS_exit_group as usize, status as usize) };
    loop {
        core::hint::spin_loop();
    }
}

/// prctl(2).
///
/// # Safety
/// Arguments must fit the option.
pub unsafe fn prctl(option: i32, a: usize, b: usize, c: usize, d: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call5(libc::SYS_prctl as usize, option as usize, a, b, c, d) })
}

/// The thread's FS base.
pub fn fs_base() -> u64 {
    let mut value = 0u64;
    // SAFETY: the target is a local.
    unsafe { call2(libc::SYS_arch_prctl as usize, ARCH_GET_FS, &mut value as *mut _ as usize) };
    value
}

/// Sets the thread's FS base.
///
/// # Safety
/// The program's thread-local storage moves; only its own thread block will do.
pub unsafe fn set_fs_base(value: u64) {
    // SAFETY: the caller's argument.
    unsafe { call2(libc::SYS_arch_prctl as usize, ARCH_SET_FS, value as usize) };
}

/// Sets the thread's GS base.
///
/// # Safety
/// `value` must be the thread's slot.
pub unsafe fn set_gs_base(value: u64) {
    // SAFETY: the caller's argument.
    unsafe { call2(libc::SYS_arch_prctl as usize, ARCH_SET_GS, value as usize) };
}

/// prctl(PR_SET_SYSCALL_USER_DISPATCH, ON): every system call of this thread outside `start..start+bytes` raises
/// SIGSYS. Cleared by fork and clone.
pub fn dispatch_on(start: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: no selector is given, so the kernel reads no memory; the handler's presence is the caller's care.
    unsafe { prctl(59, 1, start as usize, bytes as usize, 0) }.map(|_| ())
}

/// futex(FUTEX_WAIT) while `*word == value`, on shared or private memory; with a relative time-out in ns (0: none).
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32, timeout_ns: i64) -> Result<(), Errno> {
    let time = libc::timespec { tv_sec: timeout_ns / 1_000_000_000, tv_nsec: timeout_ns % 1_000_000_000 };
    let time = if timeout_ns == 0 { 0 } else { &time as *const _ as usize };
    // SAFETY: the word is a valid reference and the time-out a local.
    check(unsafe {
        call4(libc::SYS_futex as usize, word.as_ptr() as usize, libc::FUTEX_WAIT as usize, value as usize, time)
    })
    .map(|_| ())
}

/// Whether there is a word at `address`, and it is zero. By futex(FUTEX_WAIT), which reports a fault instead of having one:
/// it would wait for a word that is zero, and is given no time.
pub fn is_zero(address: u64) -> bool {
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let time = &raw const none as usize;
    // SAFETY: the word is read at most.
    let waited =
        check(unsafe { call4(libc::SYS_futex as usize, address as usize, libc::FUTEX_WAIT as usize, 0, time) });
    waited == Err(Errno(libc::ETIMEDOUT))
}

/// futex(FUTEX_WAKE) of up to `count` waiters.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32, count: u32) {
    // SAFETY: the word is a valid reference.
    unsafe { call3(libc::SYS_futex as usize, word.as_ptr() as usize, libc::FUTEX_WAKE as usize, count as usize) };
}

/// rseq(2).
///
/// # Safety
/// The area belongs to the calling thread.
pub unsafe fn rseq(area: u64, bytes: u32, flags: i32, signature: u32) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call4(libc::SYS_rseq as usize, area as usize, bytes as usize, flags as usize, signature as usize) })
        .map(|_| ())
}

/// set_robust_list(2).
///
/// # Safety
/// The list belongs to the calling thread and stays valid until its end.
pub unsafe fn set_robust_list(head: u64, bytes: u64) {
    // SAFETY: the caller's argument.
    unsafe { call2(libc::SYS_set_robust_list as usize, head as usize, bytes as usize) };
}

/// get_robust_list(2) of the calling thread: head and length.
pub fn robust_list() -> (u64, u64) {
    let (mut head, mut bytes) = (0u64, 0u64);
    // SAFETY: the targets are locals.
    unsafe {
        call3(libc::SYS_get_robust_list as usize, 0, &mut head as *mut _ as usize, &mut bytes as *mut _ as usize)
    };
    (head, bytes)
}

/// set_tid_address(2).
///
/// # Safety
/// The kernel writes zero there when the thread ends.
pub unsafe fn set_tid_address(address: u64) {
    // SAFETY: the caller's argument.
    unsafe { call1(libc::SYS_set_tid_address as usize, address as usize) };
}

/// prlimit64(2) of this process: the limit, after setting `new` if given.
pub fn limit(resource: u32, new: Option<[u64; 2]>) -> Result<[u64; 2], Errno> {
    let mut old = [0u64; 2];
    let new_pointer = new.as_ref().map_or(0, |n| n.as_ptr() as usize);
    // SAFETY: locals only.
    check(unsafe {
        call4(libc::SYS_prlimit64 as usize, 0, resource as usize, new_pointer, old.as_mut_ptr() as usize)
    })?;
    Ok(old)
}

/// Takes the status of a child that has ended, if it has.
pub fn reap(pid: u32) -> Result<(), Errno> {
    let flags = (libc::WNOHANG | libc::__WALL) as usize;
    // SAFETY: no status is asked for.
    check(unsafe { call4(libc::SYS_wait4 as usize, pid as usize, 0, flags, 0) }).map(|_| ())
}

/// How a child has ended, which stays to be waited for: its wait status, or `None` while it runs. ECHILD if there is no
/// such child (any more).
pub fn ended(pid: u32) -> Result<Option<u32>, Errno> {
    let mut info = [0u64; 16];
    let flags = (libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL) as usize;
    // SAFETY: the target is a local siginfo.
    check(unsafe {
        call6(libc::SYS_waitid as usize, libc::P_PID as usize, pid as usize, info.as_mut_ptr() as usize, flags, 0, 0)
    })?;
    if info[0] == 0 {
        return Ok(None);
    }
    // si_code and si_status, as the kernel lays them out for SIGCHLD.
    let (code, status) = (info[1] as u32 as i32, info[3] as u32);
    Ok(Some(match code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status & 0x7f | 0x80,
        _ => status & 0x7f,
    }))
}

/// wait4(2) on a child; its pid (0 with WNOHANG and nothing to report) and status.
pub fn wait(pid: i32, options: i32) -> Result<(u32, i32), Errno> {
    let mut status = 0i32;
    // SAFETY: the target is a local.
    check(unsafe {
        call4(libc::SYS_wait4 as usize, pid as isize as usize, &mut status as *mut _ as usize, options as usize, 0)
    })
    .map(|p| (p as u32, status))
}

/// Whether there is a child, running or ended and not waited for.
pub fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: no address is given.
    let asked = check(unsafe { call5(libc::SYS_waitid as usize, libc::P_ALL as usize, 0, 0, options as usize, 0) });
    asked.is_ok()
}

/// kill(2).
pub fn kill(pid: i32, signal: u32) -> Result<(), Errno> {
    // SAFETY: no memory involved.
    check(unsafe { call2(libc::SYS_kill as usize, pid as isize as usize, signal as usize) }).map(|_| ())
}

/// sched_getaffinity(2) of thread `tid` (0: the caller); what is not there stays zero.
pub fn affinity(tid: u32, mask: &mut [u8; 128]) {
    // SAFETY: the kernel writes at most as many bytes as the mask has.
    unsafe { call3(libc::SYS_sched_getaffinity as usize, tid as usize, mask.len(), mask.as_mut_ptr() as usize) };
}

/// sched_setaffinity(2) of thread `tid` (0: the caller).
pub fn set_affinity(tid: u32, mask: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads the mask.
    check(unsafe { call3(libc::SYS_sched_setaffinity as usize, tid as usize, mask.len(), mask.as_ptr() as usize) })
        .map(|_| ())
}

/// process_vm_readv(2): `bytes` bytes from `from` in the process of thread `tid`, to `to` in this one; how many were copied.
///
/// # Safety
/// `to` must not be memory that Rust code relies on, unless it is valid for writing `bytes` bytes.
pub unsafe fn copy_from(tid: u32, to: u64, from: u64, bytes: usize) -> Result<usize, Errno> {
    let (local, remote) = ([to as usize, bytes], [from as usize, bytes]);
    let (local, remote) = (local.as_ptr() as usize, remote.as_ptr() as usize);
    // SAFETY: one struct iovec each; the target is the caller's argument, and faults are errors.
    check(unsafe { call6(libc::SYS_process_vm_readv as usize, tid as usize, local, 1, remote, 1, 0) })
}

/// A raw call for the few that no wrapper serves.
///
/// # Safety
/// As for [`crate::raw::call6`].
pub unsafe fn other(n: i64, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's argument.
    check(unsafe { call6(n as usize, a, b, c, d, e, f) })
}
