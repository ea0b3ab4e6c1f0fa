//! Attributes of the process as a whole: written down by a save, set again by a resume.
#![allow(unsafe_code)]

use crate::control;
use crate::credentials::{self, MAX_GROUPS};
use crate::entry::{handler::current_slot, maps};
use crate::family::Failure;
use crate::family::descriptors::fdinfo;
use crate::family::memory_files::mtime_ns;
use crate::family::timers::{self, Told};
use crate::journal::{self, Journal};
use crate::save;
use crate::scheduling;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use core::sync::atomic::Ordering;
use zhuque_abi::header::Header;
use zhuque_abi::journal::{Process, Record};
use zhuque_abi::life::{CHOSEN, Life, UNKNOWN};
use zhuque_abi::maps::Kind;
use zhuque_abi::slot::{SigInfo, Slot};
use zhuque_model::maptree::MapTree;
use zhuque_sys::time::{IntervalTimer, set_interval_timer};
use zhuque_sys::{Errno, fs, process, signal};

/// prctl(2): memory that was writable does not become executable.
const PR_SET_MDWE: i32 = 65;
/// Asks for it.
pub const PR_GET_MDWE: i32 = 66;
/// Number of resource limits (RLIM_NLIMITS).
const LIMITS: u32 = 16;

/// Takes the signals that are pending for a thread alone, which is about to park, and writes them down. Those of the
/// process are taken later, by one thread: two that take by turns would not write them down in their order.
pub fn note_pending(slot: &Slot) {
    if save::takes(signal::pending()) == 0 {
        return;
    }
    // One after the other: each takes a descriptor.
    let turn = journal::turn();
    let mut queue = Queue::default();
    // The kernel gives a thread's own first (dequeue_signal in kernel/signal.c).
    while let own @ 1.. = queue.takes(pending_for_thread()) {
        if let Some(info) = queue.next(own) {
            turn.append(&Record::PendingSignal { thread: slot.virtual_tid.load(Ordering::Relaxed), info });
        }
    }
}

/// What is pending for the calling thread alone. The siginfo does not tell: a thread may be meant by any kind.
fn pending_for_thread() -> u64 {
    let mut path = fs::Path::new();
    path.push(b"/proc/thread-self/status");
    let mut set = 0;
    let _ = fdinfo::lines(libc::AT_FDCWD, &path, &mut [0; 512], &mut |line| {
        set |= fdinfo::hex_field(line, b"SigPnd:").filter(|_| line.starts_with(b"SigPnd:")).unwrap_or(0);
        Ok(())
    });
    set
}

/// Pending signals of the program, while they are being taken.
#[derive(Default)]
struct Queue {
    /// Signals that are not taken any more.
    left: u64,
    /// How many of timers have been taken that are told already.
    told: usize,
}

impl Queue {
    /// Those of a set that are to be taken.
    fn takes(&self, set: u64) -> u64 {
        save::takes(set) & !self.left
    }

    /// Takes one of a set. `None`: none is there, or one of a timer that goes on expiring, and has been told.
    fn next(&mut self, set: u64) -> Option<SigInfo> {
        let mut info: SigInfo = [0; 16];
        let Ok(number) = signal::take_pending(set, &mut info) else {
            // The kernel has dropped what it showed.
            self.left |= set;
            return None;
        };
        info[0] = info[0] & !0xffff_ffff | u64::from(number);
        match timers::note_told(&info) {
            Told::No => {
                // The kernel's ids of this life mean nothing in the next.
                // SAFETY: the calling thread's own slot.
                crate::family::signals::virtual_sender(&mut info, unsafe { &*current_slot() });
                Some(info)
            }
            Told::First => Some(info),
            Told::Again => {
                self.told += 1;
                if self.told > timers::most_told() {
                    // All others of this number were in front of it.
                    self.left |= signal::bit(number);
                    self.told = 0;
                }
                None
            }
        }
    }
}

/// Writes down the process' attributes. `descriptors`: the limit of their number, which the save has raised.
pub fn describe(journal: &mut Journal, scratch: &mut [u8], descriptors: [u64; 2]) -> Result<(), Failure> {
    let (exe_room, rest) = scratch.split_at_mut(8192);
    let (cwd_room, rest) = rest.split_at_mut(8192);
    let failed = |what: &'static [u8]| move |error| Failure::new(what).errno(error);
    let mut path = fs::Path::new();
    path.push(b"/proc/thread-self/exe");
    let length = fs::read_link(&path, exe_room).map_err(failed(b"the executable: "))?;
    let exe = exe_room.get(..length).unwrap_or(&[]);
    let stat = fs::stat_at(libc::AT_FDCWD, &path, 0).map_err(failed(b"the executable: "))?;
    let length = match fs::working_directory(cwd_room) {
        // It was removed. So is the one that the resume makes.
        Err(Errno(libc::ENOENT)) => 0,
        found => found.map_err(failed(b"the working directory: "))?,
    };
    let cwd = cwd_room.get(..length).unwrap_or(&[]);
    let arguments = maps::read_whole(b"/proc/thread-self/cmdline", rest).map_err(failed(b"the arguments: "))?;
    // From here on the save's own: the program's might take away the rights to what the save makes.
    let umask = fs::umask(0o77);
    // SAFETY: these options take no pointers.
    let get = |option: i32| unsafe { process::prctl(option, 0, 0, 0, 0) }.unwrap_or(0) as u64;
    let mut groups = [0u8; 4 * MAX_GROUPS];
    let groups = credentials::groups_in(&mut groups);
    let call = |number: i64| {
        // SAFETY: no memory involved.
        unsafe { process::other(number, [0; 6]) }.unwrap_or(0) as u32
    };
    journal.put(&Record::Process(Process {
        exe,
        exe_identity: [stat.st_dev, stat.st_ino, stat.st_size as u64, mtime_ns(&stat)],
        arguments,
        cwd,
        umask,
        personality: personality(),
        dumpable: get(libc::PR_GET_DUMPABLE) as u32,
        no_new_privs: get(libc::PR_GET_NO_NEW_PRIVS) as u32,
        prctls: [get(libc::PR_GET_TIMERSLACK), subreaper(), get(libc::PR_GET_THP_DISABLE), get(PR_GET_MDWE)],
        ids: credentials::ids(),
        groups,
        capabilities: credentials::capabilities(),
        session: crate::family::ids::shown(call(libc::SYS_getsid)),
        group: crate::family::ids::shown(call(libc::SYS_getpgrp)),
        coredump_filter: chosen(0),
        oom_score_adj: chosen(1),
        // SAFETY: everything stands still.
        membarrier: unsafe { (*control::globals()).membarrier.load(Ordering::Relaxed) },
    }))?;
    for resource in 0..LIMITS {
        if resource == libc::RLIMIT_NOFILE {
            let [soft, hard] = descriptors;
            journal.put(&Record::Limit { resource, soft, hard })?;
        } else if let Ok([soft, hard]) = process::limit(resource, None) {
            journal.put(&Record::Limit { resource, soft, hard })?;
        }
    }
    for which in 0..3 {
        describe_timer(journal, which)?;
    }
    late_signals(journal)?;
    timers::describe(journal)?;
    scheduling::describe(journal)
}

/// Signals for the process, the last of the timers' among them.
fn late_signals(journal: &mut Journal) -> Result<(), Failure> {
    let mut queue = Queue::default();
    while let shared @ 1.. = queue.takes(signal::pending()) {
        if let Some(info) = queue.next(shared) {
            journal.put(&Record::PendingSignal { thread: 0, info })?;
        }
    }
    Ok(())
}

fn describe_timer(journal: &mut Journal, which: u32) -> Result<(), Failure> {
    // Read and stopped in one: it must not expire between this and the last look at pending signals.
    let Ok(timer) = set_interval_timer(which, &IntervalTimer::default()) else { return Ok(()) };
    let ns = |[seconds, micros]: [i64; 2]| (seconds as u64) * 1_000_000_000 + (micros as u64) * 1000;
    let (mut value_ns, interval_ns) = (ns(timer.value), ns(timer.interval));
    if value_ns == 0 {
        // A periodic timer that has expired runs on only when its signal is taken (it_real_fn in kernel/time/itimer.c);
        // the signal is among the pending ones.
        value_ns = interval_ns;
    }
    if value_ns == 0 {
        return Ok(());
    }
    journal.put(&Record::IntervalTimer { which, value_ns, interval_ns })
}

/// Attributes that a file of /proc holds, with the base of the number there. Of each, [`Life::began_with`] says what the life
/// began with: what whoever resumes has chosen stays, unless the program has chosen something else.
const FILES: [(&[u8], u32); 2] = [(b"/proc/self/coredump_filter", 16), (b"/proc/self/oom_score_adj", 10)];

/// At the beginning of a life, or of an image that was executed in it.
pub fn note_beginning(life: &mut Life, executed: bool) {
    for (value, (path, base)) in life.began_with.iter_mut().zip(FILES) {
        *value = if executed { CHOSEN } else { proc_number(path, base).unwrap_or(UNKNOWN) };
    }
}

/// What the program has chosen, if it has.
fn chosen(which: usize) -> Option<i64> {
    let (path, base) = *FILES.get(which)?;
    let before = *control::life().began_with.get(which)?;
    proc_number(path, base).filter(|value| before != UNKNOWN && *value != before)
}

/// The number that a file of /proc holds.
fn proc_number(path: &[u8], base: u32) -> Option<i64> {
    let mut room = [0u8; 32];
    let text = maps::read_whole(path, &mut room).ok()?;
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (value, _) = maps::number(digits, base)?;
    Some(if negative { -(value as i64) } else { value as i64 })
}

/// Writes a number (of one that holds another) to a file of /proc. What this user may not set is left as it is.
fn set_proc_number((path, base): (&[u8], u32), wanted: Option<i64>) {
    let Some(wanted) = wanted.filter(|_| proc_number(path, base) != wanted) else { return };
    let mut name = fs::Path::new();
    name.push(path);
    let Ok(fd) = fs::open_at(libc::AT_FDCWD, &name, libc::O_WRONLY | libc::O_CLOEXEC, 0) else { return };
    let mut text = crate::text::Text::of(if wanted < 0 { b"-" } else { b"" });
    // Both files take decimal numbers.
    let _ = fs::write(fd, text.number(wanted.unsigned_abs()).as_bytes());
    let _ = fs::close(fd);
}

fn subreaper() -> u64 {
    let mut set = 0u32;
    // SAFETY: writes the local.
    let asked = unsafe { process::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut set as usize, 0, 0, 0) };
    // SAFETY: the kernel may have written it.
    if asked.is_ok() { u64::from(unsafe { core::ptr::read_volatile(&raw const set) }) } else { 0 }
}

fn personality() -> u32 {
    // SAFETY: 0xffffffff asks without setting.
    unsafe { process::other(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]) }.unwrap_or(0) as u32
}

/// Whether the program has a shared mapping of a file.
pub fn mapped_shared(device: u64, inode: u64) -> bool {
    // SAFETY: everything stands still.
    let tree = unsafe { MapTree::new(&mut (*control::globals()).tree, control::nodes()) };
    // SAFETY: as above.
    let files = unsafe { control::files() };
    tree.iter()
        .filter(|run| run.attr.kind == Kind::FileShared)
        .any(|run| files.get(run.attr.file as usize).is_some_and(|file| file.device == device && file.inode == inode))
}

/// At the beginning of a life: notes which processor the program sees, whose instructions its code may choose. Not at the
/// save, since cpuid is slow in a virtual machine.
pub fn note_processor(header: &mut Header) {
    let leaf1 = __cpuid_count(1, 0);
    let leaf7 = __cpuid_count(7, 0);
    let leaf13 = __cpuid_count(13, 1);
    header.cpu_features = [leaf1.ecx, leaf1.edx, leaf7.ebx, leaf7.ecx, leaf7.edx, leaf13.eax];
    // OSXSAVE says that the register may be read.
    // SAFETY: checked right here.
    header.xcr0 = if leaf1.ecx & (1 << 27) != 0 { unsafe { xcr0() } } else { 0 };
    header.xsave_bytes = u64::from(__cpuid_count(13, 0).ebx);
}

#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 always exists with OSXSAVE, which the caller has checked.
    unsafe { _xgetbv(0) }
}

/// Fields of /proc/PID/stat that say where the image lies, numbered as in proc(5), in the order of `Globals::image`.
const IMAGE_FIELDS: [usize; 10] = [26, 27, 28, 45, 46, 47, 48, 49, 50, 51];

/// Where the kernel believes the image to lie.
pub fn image() -> [u64; 10] {
    let mut image = [0; 10];
    let mut buffer = [0u8; 2048];
    let Ok(text) = maps::read_whole(b"/proc/self/stat", &mut buffer) else { return image };
    // The second field is the name in parentheses, which may hold anything; the third follows the last parenthesis.
    let Some(close) = text.iter().rposition(|&byte| byte == b')') else { return image };
    let fields = text.get(close + 2..).unwrap_or(&[]).split(|&byte| byte == b' ').zip(3..);
    for (field, number) in fields {
        if let Some(at) = IMAGE_FIELDS.iter().position(|&wanted| wanted == number) {
            image[at] = maps::number(field, 10).map_or(0, |(value, _)| value);
        }
    }
    image
}

/// At start: shows the arguments that the kernel has put onto the stack.
pub fn show_own_arguments() {
    // SAFETY: start is single-threaded.
    let room = unsafe { control::life_arguments() };
    if let Ok(text) = maps::read_whole(b"/proc/self/cmdline", room) {
        show_arguments(text.len());
    }
}

/// At resume: shows the saved arguments.
fn show_saved_arguments(arguments: &[u8]) {
    // SAFETY: revive is single-threaded.
    let room = unsafe { control::life_arguments() };
    let length = arguments.len().min(room.len());
    room[..length].copy_from_slice(&arguments[..length]);
    show_arguments(length);
}

/// Tells the kernel where the image lies (PR_SET_MM_MAP, which needs no privileges; only what /proc shows depends on
/// it), with the arguments in the life area: /proc/PID/cmdline reads anonymous memory only (FOLL_ANON in
/// fs/proc/base.c), and the stack is the region's.
fn show_arguments(length: usize) {
    // SAFETY: only read.
    let image = unsafe { (*control::globals()).image };
    let [start_code, end_code, start_stack, start_data, end_data, start_brk, _, _, environment, end] = image;
    // SAFETY: an address, nothing is read.
    let arguments = unsafe { control::life_arguments() }.as_ptr() as u64;
    // struct prctl_mm_map; no auxiliary vector, and no other executable (-1).
    let map: [u64; 13] = [
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        start_brk,
        start_stack,
        arguments,
        arguments + length as u64,
        environment,
        end,
        0,
        0xffff_ffff_0000_0000,
    ];
    // SAFETY: the kernel reads the structure.
    let _ = unsafe { process::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, map.as_ptr() as usize, size_of_val(&map), 0) };
}

const PR_SET_MM_MAP: usize = 14;

/// Sets the attributes again, before the descriptors.
pub fn revive(process_record: &Process<'_>) -> Result<(), Failure> {
    show_saved_arguments(process_record.arguments);
    enter_directory(process_record.cwd)?;
    fs::umask(process_record.umask);
    set_proc_number(FILES[0], process_record.coredump_filter);
    set_proc_number(FILES[1], process_record.oom_score_adj);
    // SAFETY: these options take no pointers.
    unsafe {
        let _ = process::prctl(libc::PR_SET_TIMERSLACK, process_record.prctls[0] as usize, 0, 0, 0);
        let _ = process::prctl(libc::PR_SET_CHILD_SUBREAPER, process_record.prctls[1] as usize, 0, 0, 0);
        let _ = process::prctl(libc::PR_SET_THP_DISABLE, process_record.prctls[2] as usize, 0, 0, 0);
        for command in (0..32).map(|bit| 1 << bit).filter(|command| process_record.membarrier & command != 0) {
            let _ = process::other(libc::SYS_membarrier, [command as usize, 0, 0, 0, 0, 0]);
        }
        if process_record.no_new_privs != 0 {
            let _ = process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
    }
    Ok(())
}

/// Goes to the working directory; where that had been removed (no name), to one that is removed.
fn enter_directory(name: &[u8]) -> Result<(), Failure> {
    let mut path = fs::Path::new();
    if !name.is_empty() {
        path.push(name);
        return fs::change_directory(&path).map_err(|error| Failure::about(name).errno(error));
    }
    path.push(b"/tmp/.zhuque-removed-").push_number(u64::from(process::pid()));
    let made = fs::make_directory(libc::AT_FDCWD, &path, 0o700).and_then(|()| {
        let entered = fs::change_directory(&path);
        fs::remove_directory(&path).and(entered)
    });
    made.map_err(|error| {
        Failure::new(b"the working directory was removed, and cannot be again below /tmp: ").errno(error)
    })
}

/// What would be in the way of the resume itself: at its end.
pub fn revive_protection(wanted: &Process<'_>) {
    // SAFETY: these options take no pointers.
    unsafe {
        // 2 is the kernel's own, when ids change, and cannot be set.
        let dumpable = usize::from(wanted.dumpable == 1);
        if process::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) != Ok(wanted.dumpable as usize) {
            let _ = process::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0);
        }
        if wanted.prctls[3] != 0 {
            let _ = process::prctl(PR_SET_MDWE, wanted.prctls[3] as usize, 0, 0, 0);
        }
    }
}

/// Raises a hard limit to what the program had, before its capabilities are taken.
pub fn raise_limit(resource: u32, wanted: u64) {
    if let Ok([soft, hard]) = process::limit(resource, None)
        && hard < wanted
        && resource != libc::RLIMIT_NOFILE
    {
        let _ = process::limit(resource, Some([soft, wanted]));
    }
}

/// Sets a resource limit again; the one for descriptors comes last, after they are all there.
pub fn revive_limit(resource: u32, soft: u64, hard: u64) {
    if resource == libc::RLIMIT_NOFILE {
        return crate::family::limits::revive(soft, hard);
    }
    let _ = process::limit(resource, Some([soft, hard]));
}

/// Arms an interval timer with what remained.
pub fn revive_timer(which: u32, value_ns: u64, interval_ns: u64) {
    let pair = |ns: u64| [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000 / 1000) as i64];
    let mut value = pair(value_ns);
    if value == [0, 0] {
        value[1] = 1;
    }
    let _ = set_interval_timer(which, &IntervalTimer { interval: pair(interval_ns), value });
}
