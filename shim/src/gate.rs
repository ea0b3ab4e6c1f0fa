//! The gate's slow path: every call that the fast path does not let pass comes to [`serve`], on the gate's stack, with
//! the program's registers in the slot's frame.
//!
//! A call is a critical section: signals that come meanwhile are put off until the gate's exit. Only [`wait_call`] may
//! wait, and returns at once when something is put off. Neighbours: `entry::asm` (who calls), `family/*` (who answers),
//! `zhuque_model::calls` (the table that decides).
#![allow(unsafe_code)]

use crate::entry::sites;
use crate::family::descriptors::is_known_device;
use crate::family::{clocks, ids, memory, processes, signals, threads, timers};
use crate::text::Text;
use crate::{control, die, user};
use core::sync::atomic::Ordering;
use zhuque_abi::slot::{Retry, Slot, pending};
use zhuque_model::calls::{Family, Treatment, lookup};
use zhuque_sys::{Errno, check, raw::call6};

/// Result of a call: a value or an error number.
pub type Result64 = Result<u64, Errno>;

/// Pseudo number with which a parent comes back from vfork; see `entry::asm`.
pub const VFORK_DONE: u32 = 0x7a71_0001;

/// How a call leaves the gate.
pub enum Outcome {
    /// With this result.
    Value(Result64),
    /// By the kernel's rt_sigreturn on the program's frame.
    Sigreturn,
}

/// An error as a result.
pub fn error<T>(number: i32) -> Result<T, Errno> {
    Err(Errno(number))
}

/// Serves one call. Returns 0 to leave with the frame's registers, 1 for rt_sigreturn.
///
/// # Safety
/// Called by the gate's assembler only, with the calling thread's slot.
pub unsafe extern "C" fn serve(slot: *mut Slot) -> u32 {
    // SAFETY: the slot is the calling thread's own, and nobody else writes these fields while it runs.
    let slot = unsafe { &mut *slot };
    slot.retry.valid = 0;
    match in_its_life(slot) {
        Outcome::Value(result) => {
            slot.frame.rax = match result {
                Ok(value) => value,
                Err(Errno(number)) => -i64::from(number) as u64,
            };
            0
        }
        Outcome::Sigreturn => 1,
    }
}

/// Does the call. One that was taken over into a new life meanwhile (`outside`), perhaps more than once, may have asked the
/// kernel about ids of a life before.
fn in_its_life(slot: &mut Slot) -> Outcome {
    loop {
        let life = control::generation();
        let outcome = dispatch(slot, slot.frame.number);
        if control::generation() == life || !is_unknown(&outcome) {
            return outcome;
        }
    }
}

/// Whether the kernel has said that it does not know a process, thread or child.
fn is_unknown(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Value(Err(Errno(libc::ESRCH | libc::ECHILD))))
}

fn dispatch(slot: &mut Slot, number: u64) -> Outcome {
    if slot.volatile != 0 {
        // A fork child that has text of ours left (the program had made it writable): the kernel's own.
        let f = &slot.frame;
        return Outcome::Value(raw(number as i64, [f.rdi, f.rsi, f.rdx, f.r10, f.r8, f.r9]));
    }
    if number == u64::from(VFORK_DONE) {
        return Outcome::Value(processes::vfork_done(slot));
    }
    // The kernel looks at 32 bits of the number, and so does every table.
    let Some(call) = lookup(number & 0xffff_ffff) else {
        say_refused(number, b"", b"unknown to this version");
        return Outcome::Value(error(libc::ENOSYS));
    };
    let f = &slot.frame;
    let arguments = [f.rdi, f.rsi, f.rdx, f.r10, f.r8, f.r9];
    let number = i64::from(call.number);
    Outcome::Value(match call.treatment {
        Treatment::Pass => wait_call(slot, number, arguments),
        Treatment::Refuse(errno, why) => {
            say_refused(number as u64, call.name.as_bytes(), why.as_bytes());
            error(i32::from(errno))
        }
        Treatment::Gate(Family::Memory) => memory::serve(number, arguments),
        Treatment::Gate(Family::Signals) => return signal_call(slot, number, arguments),
        Treatment::Gate(Family::Threads) => return threads::serve(slot, number, arguments),
        Treatment::Gate(Family::Processes) => processes::serve(slot, number, arguments),
        Treatment::Gate(Family::Clocks) => clocks::serve(slot, number, arguments),
        Treatment::Gate(Family::Timers) => timers::serve(slot, number, arguments),
        Treatment::Gate(Family::Files) => descriptor_call(slot, number, arguments),
    })
}

/// Calls about signals.
fn signal_call(slot: &mut Slot, number: i64, a: [u64; 6]) -> Outcome {
    Outcome::Value(match number {
        libc::SYS_rt_sigaction => signals::rt_sigaction(slot, a[0], a[1], a[2], a[3]),
        libc::SYS_rt_sigprocmask => signals::rt_sigprocmask(slot, a[0], a[1], a[2], a[3]),
        libc::SYS_rt_sigreturn => match signals::rt_sigreturn(slot) {
            Ok(outcome) => return outcome,
            Err(e) => Err(e),
        },
        libc::SYS_sigaltstack => signals::sigaltstack(slot, a[0], a[1]),
        libc::SYS_rt_sigsuspend => signals::rt_sigsuspend(slot, a[0], a[1]),
        libc::SYS_signalfd | libc::SYS_signalfd4 => signals::signalfd(slot, number, a),
        libc::SYS_rt_sigtimedwait => clocks::rt_sigtimedwait(slot, a),
        libc::SYS_rt_sigpending => wait_call(slot, number, a),
        _ => ids::send_signal(slot, number, a),
    })
}

/// close and its like: the region's own descriptors do not exist for the program.
fn descriptor_call(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    let own = &control::life().descriptors;
    let own = own.first as u32..own.end as u32;
    match number {
        libc::SYS_close if own.contains(&(a[0] as u32)) => error(libc::EBADF),
        libc::SYS_dup2 | libc::SYS_dup3 if own.contains(&(a[0] as u32)) || own.contains(&(a[1] as u32)) => {
            error(libc::EBADF)
        }
        libc::SYS_close_range => close_range(a, own),
        libc::SYS_socket if slot.borrowed == 0 => socket(a),
        libc::SYS_open => open(slot, number, a, libc::AT_FDCWD as u64, a[0]),
        libc::SYS_openat | libc::SYS_openat2 => open(slot, number, a, a[0], a[1]),
        _ => wait_call(slot, number, a),
    }
}

/// open(2) and its like: a device whose driver's state a resume could not make again is refused, before it is touched.
fn open(slot: &mut Slot, number: i64, a: [u64; 6], directory: u64, path: u64) -> Result64 {
    const PLACE: [u8; 5] = *b"/dev/";
    // What a vfork child opens goes with it.
    // SAFETY: bytes.
    let named = slot.borrowed == 0 && unsafe { user::read::<[u8; 5]>(path) } == Ok(PLACE);
    if named && is_foreign(directory, path, open_flags(number, a)) {
        let mut shown = [0u8; 64];
        let mut name = Text::of(b"open of a device (");
        name.push(user::read_string(path, &mut shown).unwrap_or(&[])).push(b")");
        say_refused(number as u64, name.as_bytes(), b"what its driver holds cannot be made again after a failure");
        return error(libc::ENODEV);
    }
    wait_call(slot, number, a)
}

/// The flags of an open call.
fn open_flags(number: i64, a: [u64; 6]) -> i32 {
    match number {
        libc::SYS_open => a[1] as i32,
        libc::SYS_openat => a[2] as i32,
        // SAFETY: an integer, the first of struct open_how.
        _ => unsafe { user::read::<u64>(a[2]) }.unwrap_or(0) as i32,
    }
}

/// Whether the program's path leads to such a device, and is to be opened for more than its name.
fn is_foreign(directory: u64, path: u64, flags: i32) -> bool {
    if flags & libc::O_PATH != 0 {
        return false;
    }
    let follow = if flags & libc::O_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW as u64 } else { 0 };
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    let found = raw(libc::SYS_newfstatat, [directory, path, stat.as_mut_ptr() as u64, follow, 0, 0]);
    // SAFETY: all-zero is valid, and so is what the kernel writes.
    let stat = unsafe { stat.assume_init() };
    found.is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFCHR && !is_known_device(stat.st_rdev)
}

/// socket(2): what a resume could not make again is refused here, not found out there.
fn socket(a: [u64; 6]) -> Result64 {
    let [family, kind, protocol, ..] = a.map(|value| value as i32);
    let kind = kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let known = match family {
        libc::AF_UNIX | libc::AF_NETLINK => true,
        libc::AF_INET | libc::AF_INET6 => match kind {
            libc::SOCK_STREAM => matches!(protocol, 0 | libc::IPPROTO_TCP | libc::IPPROTO_MPTCP),
            libc::SOCK_DGRAM | libc::SOCK_RAW => true,
            _ => false,
        },
        _ => false,
    };
    if known {
        return raw(libc::SYS_socket, a);
    }
    // What the kernel does not know either is its affair.
    let made = raw(libc::SYS_socket, a)?;
    let _ = zhuque_sys::fs::close(made as i32);
    let mut name = Text::of(b"socket of family ");
    name.number(u64::from(family as u32)).push(b", type ").number(u64::from(kind as u32));
    say_refused(libc::SYS_socket as u64, name.as_bytes(), b"it cannot be made again after a failure");
    error(libc::EAFNOSUPPORT)
}

/// close_range(2) around the region's own descriptors.
fn close_range(a: [u64; 6], own: core::ops::Range<u32>) -> Result64 {
    let (first, last) = (a[0] as u32, a[1] as u32);
    if first > last {
        return error(libc::EINVAL);
    }
    let mut result = Ok(0);
    if first < own.start {
        let end = last.min(own.start - 1);
        result = raw(libc::SYS_close_range, [u64::from(first), u64::from(end), a[2], 0, 0, 0]);
    }
    if result.is_ok() && last >= own.end {
        let start = first.max(own.end);
        let done = if first < own.start { u64::from(libc::CLOSE_RANGE_UNSHARE) } else { 0 };
        result = raw(libc::SYS_close_range, [u64::from(start), u64::from(last), a[2] & !done, 0, 0, 0]);
    }
    result
}

/// A call that does not wait, as it is.
pub fn raw(number: i64, a: [u64; 6]) -> Result64 {
    // SAFETY: the program's own call with its own arguments: what it does to the program's memory is the program's
    // business, and the callers have looked at those that could touch ours.
    check(unsafe {
        call6(number as usize, a[0] as usize, a[1] as usize, a[2] as usize, a[3] as usize, a[4] as usize, a[5] as usize)
    })
    .map(|value| value as u64)
}

unsafe extern "C" {
    fn zhuque_wait(call: *const [u64; 7]) -> i64;
}

/// Not begun, since something was put off already.
const UNBEGUN: i64 = -512;
/// The kernel would have issued it again.
const RESTART: i64 = -513;

/// A call that may wait. Comes back early, with EINTR and `slot.retry` set, when a signal or a kick has been put off.
pub fn wait_call(slot: &mut Slot, number: i64, a: [u64; 6]) -> Result64 {
    let call = [number as u64, a[0], a[1], a[2], a[3], a[4], a[5]];
    // SAFETY: as for `raw`; the assembler keeps to the C calling convention.
    let result = unsafe { zhuque_wait(&call) };
    let restartable = match result {
        UNBEGUN => retry::ALWAYS,
        RESTART => retry::RESTART,
        r if r == -i64::from(libc::EINTR) && slot.pending.load(Ordering::Relaxed) != 0 => retry::EINTR,
        r if r == -i64::from(libc::EINTR) && ends_for_others(number) => {
            slot.pending.fetch_or(pending::KICK, Ordering::Relaxed);
            retry::EINTR
        }
        _ => return check(result as isize).map(|value| value as u64),
    };
    let rip = sites::call_site(slot.frame.rip);
    slot.retry = Retry { valid: 1, rip, number: slot.frame.number, restartable };
    error(libc::EINTR)
}

/// Whether the kernel ends a call with EINTR also where no handler runs on its thread: the signal was for one that took it
/// first (a power failure among them), or the thread was stopped for a while (signal(7)). Calls on sockets with a time-out
/// of their own are not among them: they would wait for that anew.
fn ends_for_others(number: i64) -> bool {
    matches!(number, libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 | libc::SYS_rt_sigtimedwait)
}

/// Puts a call off that cannot begin now, since power fails or a signal waits: it comes in again after that.
pub fn again(slot: &mut Slot) -> Result64 {
    let rip = sites::call_site(slot.frame.rip);
    slot.retry = Retry { valid: 1, rip, number: slot.frame.number, restartable: retry::ALWAYS };
    slot.pending.fetch_or(pending::KICK, Ordering::Relaxed);
    error(libc::EINTR)
}

/// Values of [`Retry::restartable`].
pub mod retry {
    /// The call ends with EINTR if a handler runs.
    pub const EINTR: u64 = 0;
    /// ... unless the handler was installed with SA_RESTART.
    pub const RESTART: u64 = 1;
    /// The call had not begun: it comes after the handler.
    pub const ALWAYS: u64 = 2;
}

/// Says once per number that a call was refused.
pub fn say_refused(number: u64, name: &[u8], why: &[u8]) {
    let number = number & 0xffff_ffff;
    let life = control::life();
    let word = (number / 64).min(9) as usize;
    let bit = 1u64 << (number % 64);
    if life.refused[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    let mut text = Text::new();
    if name.is_empty() {
        text.push(b"system call ").number(number);
    } else {
        text.push(name);
    }
    text.push(b" is refused: ").push(why);
    die::say(&text);
}
