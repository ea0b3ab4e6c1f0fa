//! Revive: the shim's half of a resume. The stub has mapped everything back; nothing of the region may be written until
//! the one store that commits. Stages are `zhuque_abi::life::stage`.
//!
//! Runs on the life's scratch stack, with all signals blocked, without a slot of its own until the threads exist.
#![allow(unsafe_code)]

use crate::context::Context;
use crate::control;
use crate::entry::{asm::zhuque_clone, handler::kick, patch, vdso};
use crate::family::signals::{self, Program};
use crate::family::{self, Failure, clocks, processes, recovery, threads, timers};
use crate::{credentials, outside, process_state, save, scheduling};
use core::sync::atomic::Ordering;
use zhuque_abi::codec::Records;
use zhuque_abi::header::{Phase, Reason, phase_word};
use zhuque_abi::journal::{Process, Record};
use zhuque_abi::life::{Life, ResumeArgs, stage};
use zhuque_abi::slot::{SigInfo, Slot, pending, state};
use zhuque_model::maptree::MapTree;
use zhuque_sys::signal::bit;
use zhuque_sys::{fs, mm, net, process, signal};

const SIGPWR: u32 = libc::SIGPWR as u32;
/// What a thread shares with its process.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

unsafe extern "C" {
    fn zhuque_return_to_frame(frame: u64) -> !;
}

/// Entry, jumped to by the stub.
///
/// # Safety
/// `args` lies in the stub's memory, and the address space is the saved one.
pub unsafe extern "C" fn revive(args: *const ResumeArgs) -> ! {
    // SAFETY: the caller's argument. The stub's memory goes away, so take a copy.
    let args = unsafe { *args };
    set_life(&args);
    reach(&args, stage::REVIVED);
    if let Err(failure) = before_commit(&args) {
        report(&args, failure.message());
        process::exit_group(crate::die::STATUS);
    }
    let main = commit(&args);
    match main {
        // SAFETY: the slot is this thread's.
        Some(slot) => go(unsafe { &mut *slot }),
        // The main thread had ended before: end this one as well, alone.
        None => loop {
            // SAFETY: exit of one thread.
            let _ = unsafe { process::other(libc::SYS_exit, [0; 6]) };
        },
    }
}

/// Writes one line to the launcher.
fn report(args: &ResumeArgs, text: &[u8]) {
    let _ = fs::write_all(args.status, text);
    let _ = fs::write_all(args.status, b"\n");
}

/// Marks a stage: tests end the resume here.
fn reach(args: &ResumeArgs, stage: u32) {
    if args.die_at == stage {
        let _ = process::kill(process::pid() as i32, libc::SIGKILL as u32);
    }
}

/// This life's own data.
fn set_life(args: &ResumeArgs) {
    // SAFETY: single-threaded; the life area is fresh.
    unsafe {
        let life: &mut Life = &mut *control::life_mut();
        life.generation = args.generation + 1;
        life.pid = process::pid();
        life.parent = process::parent();
        life.flags = args.flags;
        life.hold_up_ns = args.hold_up_ns;
        life.descriptors = args.descriptors;
        // They came here by an exec themselves.
        let _ = fs::close_on_exec(life.descriptors.first as u32, life.descriptors.end as u32 - 1);
        life.vdso_before = (*control::header()).vdso;
        life.pid_before = (*control::header()).pid.load(Ordering::Relaxed);
        // No round is one of the life before: a thread that was on its way out of a stop then does not wait for it now.
        life.round.store((life.generation as u32) << 24, Ordering::Release);
        process_state::note_beginning(life, false);
        life.ready.store(1, Ordering::Release);
    }
    vdso::set_life(&args.vdso);
}

/// The journal as it was saved.
fn journal() -> &'static [u8] {
    // SAFETY: only read; the launcher has checked bounds and checksum.
    unsafe {
        let used = (*control::header()).journal_bytes as usize;
        control::journal().get(..used).unwrap_or(&[])
    }
}

/// The process as it was saved.
fn saved_process() -> Option<Process<'static>> {
    Records::new(journal()).flatten().find_map(|record| match record {
        Record::Process(process) => Some(process),
        _ => None,
    })
}

/// Everything that can fail.
fn before_commit(args: &ResumeArgs) -> Result<(), Failure> {
    go_on_clocks();
    patch::patch_again(journal()).map_err(|error| Failure::new(b"cannot rewrite call sites: ").errno(error))?;
    signals::revive();
    let saved = saved_process();
    if let Some(saved) = &saved {
        process_state::revive(saved)?;
    }
    let (scratch, bytes) = control::scratch();
    // SAFETY: the lower half; this stack is in the upper.
    let scratch = unsafe { core::slice::from_raw_parts_mut(scratch as *mut u8, bytes as usize / 2) };
    // SAFETY: only read.
    let saved_realtime_ns = unsafe { (*control::header()).saved_realtime_ns };
    family::revive(&mut family::Revival {
        journal: journal(),
        scratch,
        region_directory: args.descriptors.directory,
        stdio: args.stdio,
        force: args.force != 0,
        helpers: args.helpers..args.helpers_end,
        own: args.descriptors.first..args.descriptors.end,
        pid: process::pid(),
        virtual_pid: family::ids::virtual_pid(),
        saved_realtime_ns,
    })?;
    for record in Records::new(journal()).flatten() {
        // While there may be the right to it.
        if let Record::Limit { resource, hard, .. } = record {
            process_state::raise_limit(resource, hard);
        }
    }
    family::advice::revive();
    if let Some(saved) = &saved {
        credentials::revive(saved, args.force != 0)?;
    }
    stay_with_launcher();
    reach(args, stage::DESCRIPTORS);
    let threads = start_threads()?;
    while control::life().waiting.load(Ordering::Acquire) < threads {
        let waiting = control::life().waiting.load(Ordering::Acquire);
        if waiting < threads {
            let _ = process::futex_wait(&control::life().waiting, waiting, 10_000_000);
        }
    }
    // The main thread has not settled yet: it is the one that runs here.
    let main = |thread: u32| thread == family::ids::virtual_pid();
    let real = |thread: u32| if main(thread) { Some(process::pid()) } else { family::ids::real_thread(thread) };
    family::revive_thread_files(journal(), &real);
    // While their number is not limited by what the program has chosen since it made them.
    timers::revive(journal(), &real)?;
    for record in Records::new(journal()).flatten() {
        match record {
            Record::Limit { resource, soft, hard } => process_state::revive_limit(resource, soft, hard),
            Record::Scheduling { .. } => scheduling::revive(&record),
            _ => {}
        }
    }
    if let Some(saved) = &saved {
        process_state::revive_protection(saved);
    }
    reach(args, stage::THREADS);
    // From here on it lives without the launcher.
    // SAFETY: takes no pointers.
    let _ = unsafe { process::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) };
    Ok(())
}

/// A change of credentials takes back that this process ends with its launcher; that still holds until the commit.
fn stay_with_launcher() {
    // SAFETY: takes no pointers.
    let _ = unsafe { process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize, 0, 0, 0) };
    if process::parent() != control::life().parent {
        process::exit_group(crate::die::STATUS);
    }
}

/// Lets the program's clocks go on from where they stood: before timers are armed again (see `save::lead`).
fn go_on_clocks() {
    // SAFETY: single-threaded still. Only the life area is written.
    unsafe {
        let header = &*control::header();
        let saved = [header.saved_monotonic_ns, header.saved_boottime_ns, header.saved_raw_ns];
        clocks::set_offsets(&mut *control::life_mut(), clocks::offsets_after(saved));
    }
}

/// Slots with a saved frame, while nobody runs.
pub fn saved_slots() -> impl Iterator<Item = *mut Slot> {
    // SAFETY: only reads of plain fields, while nobody runs.
    (0..control::slots())
        .map(control::slot)
        .filter(|&slot| unsafe { (*slot).state.load(Ordering::Relaxed) != state::FREE && (*slot).saved.frame != 0 })
}

fn is_main(slot: *mut Slot) -> bool {
    // SAFETY: only read.
    unsafe { (*slot).virtual_tid.load(Ordering::Relaxed) == family::ids::virtual_pid() }
}

/// Starts every thread but the main one; their number.
fn start_threads() -> Result<u32, Failure> {
    let mut started = 0;
    for slot in saved_slots().filter(|&slot| !is_main(slot)) {
        // SAFETY: only read.
        let index = unsafe { (*slot).index } as usize;
        let stack = control::life_stack(index);
        // SAFETY: each thread has a stack and a slot of its own.
        let tid = unsafe { zhuque_clone(THREAD_FLAGS, stack, 0, thread, slot) };
        if tid < 0 {
            return Err(Failure::new(b"cannot create a thread: ").errno(zhuque_sys::Errno(-tid as i32)));
        }
        started += 1;
    }
    Ok(started)
}

/// A revived thread: waits for the commit, then goes on where it was.
extern "C" fn thread(slot: *mut Slot) -> u32 {
    // SAFETY: until the commit only registers of this thread and the life area change.
    let slot = unsafe { &mut *slot };
    settle(slot);
    let life = control::life();
    life.waiting.fetch_add(1, Ordering::AcqRel);
    process::futex_wake(&life.waiting, 1);
    while life.go.load(Ordering::Acquire) == 0 {
        let _ = process::futex_wait(&life.go, 0, 0);
    }
    go(slot)
}

/// Gives the calling thread the slot's identity. Writes nothing to the region.
fn settle(slot: &Slot) {
    if threads::become_slot(slot).is_err() {
        process::exit_group(crate::die::STATUS);
    }
    // SAFETY: the program's own thread block; the name has its zero.
    unsafe {
        process::set_fs_base(slot.saved.fs_base);
        let _ = process::prctl(libc::PR_SET_NAME, slot.saved.name.as_ptr() as usize, 0, 0, 0);
    }
    if slot.saved.outside != 0 {
        // It may sleep for a lock, which a fork has to know.
        let waits = &control::life_thread(slot.index as usize).lock_wait;
        waits.store(slot.saved.lock_wait as u32, Ordering::Release);
    }
}

/// The one store, and what has to follow it. Returns the main thread's slot, if that thread lives.
fn commit(args: &ResumeArgs) -> Option<*mut Slot> {
    let main = saved_slots().find(|&slot| is_main(slot));
    if let Some(slot) = main {
        // SAFETY: the slot is this thread's from here on.
        settle(unsafe { &*slot });
    }
    let generation = control::life().generation;
    control::phase().store(phase_word(generation, Phase::Running), Ordering::SeqCst);
    reach(args, stage::COMMITTED);
    after_commit(args);
    let life = control::life();
    life.go.store(1, Ordering::Release);
    process::futex_wake(&life.go, u32::MAX >> 1);
    main
}

/// Brings the region's own data up to this life. Nothing here can fail.
fn after_commit(args: &ResumeArgs) {
    let life = control::life();
    // SAFETY: single-threaded still.
    unsafe {
        let header = &mut *control::header();
        header.pid.store(life.pid, Ordering::Relaxed);
        header.monotonic_offset = life.monotonic_offset.load(Ordering::Relaxed);
        header.boottime_offset = life.boottime_offset.load(Ordering::Relaxed);
        header.raw_offset = life.raw_offset.load(Ordering::Relaxed);
        header.reason = Reason::None as u32;
        header.detail = [0; 256];
        process_state::note_processor(header);
        outside::note_life(header);
        if (*control::globals()).memory_lock.load(Ordering::Relaxed) == 0 {
            vdso::renew(&mut MapTree::new(&mut (*control::globals()).tree, control::nodes()));
        } else {
            // Taken from outside, in the middle of a change of the table: whoever is changing it does it.
            life.stale_table.store(1, Ordering::Release);
        }
        let _ = mm::munmap(args.stub_start, args.stub_bytes);
    }
    timers::note();
    for record in Records::new(journal()).flatten() {
        match record {
            Record::PendingSignal { thread, mut info } => {
                if let Some(thread) = timers::raise_again(thread, &mut info) {
                    raise_again(thread, &info);
                }
            }
            Record::Limit { resource: libc::RLIMIT_NOFILE, hard, .. } => family::limits::tell(hard),
            Record::IntervalTimer { which, value_ns, interval_ns } => {
                process_state::revive_timer(which, value_ns, interval_ns);
            }
            _ => {}
        }
    }
    timers::arm();
    // SAFETY: as above.
    saved_slots().for_each(|slot| threads::note_cleared(unsafe { &mut *slot }));
    choose_recovery();
    let lost = processes::lose_children();
    if lost > 0 {
        let mut info: SigInfo = [0; 16];
        info[0] = libc::SIGCHLD as u64;
        info[1] = libc::CLD_KILLED as u64;
        let _ = signal::queue_process(life.pid, libc::SIGCHLD as u32, &info);
    }
    // SAFETY: as above; the next save starts an empty journal.
    unsafe {
        (*control::header()).journal_bytes = 0;
        (*control::globals()).stdio = family::stdio_identity(args.stdio);
    }
    // The launcher may be gone: then the program goes on without one, and without its SIGPIPE.
    let _ = net::send(args.status, b"ok\n", libc::MSG_NOSIGNAL);
    let _ = fs::close_range(args.helpers as u32, args.helpers_end.max(args.helpers) as u32);
}

/// Decides who gets the recovery signal: the main thread, or the oldest that is left. Where it has SIGPWR blocked, the
/// signal is remembered before any thread runs, since one may ask for it at once.
fn choose_recovery() {
    // SAFETY: only read.
    let lives = |&slot: &*mut Slot| unsafe { (*slot).state.load(Ordering::Relaxed) == state::LIVE };
    let mut living = saved_slots().filter(lives);
    let Some(slot) = living.find(|&slot| is_main(slot)).or_else(|| saved_slots().find(lives)) else { return };
    // SAFETY: single-threaded still.
    let slot = unsafe { &*slot };
    let life = control::life();
    if slot.extra_mask & bit(SIGPWR) != 0 {
        recovery::keep(life.generation);
    } else if save::has_recovery_handler() {
        life.recovers.store(slot.index + 1, Ordering::Release);
    }
}

/// Makes a signal pending again.
fn raise_again(thread: u32, info: &SigInfo) {
    let life = control::life();
    let number = info[0] as u32;
    match family::ids::real_thread(thread) {
        Some(tid) if thread != 0 => {
            // The kernel lets nobody queue for another thread what tgkill sends: then send it.
            if signal::queue_thread(life.pid, tid, number, info).is_err() {
                let _ = signal::send(life.pid, tid, number);
            }
        }
        _ => {
            let _ = signal::queue_process(life.pid, number, info);
        }
    }
}

/// The calling thread goes on at the instruction where it was saved. The one chosen gets the recovery signal first.
fn go(slot: &mut Slot) -> ! {
    let frame = slot.saved.frame;
    // SAFETY: the frame is the kernel's, on this thread's signal stack, which nobody else uses.
    let context = unsafe { &mut *(frame as *mut Context) };
    slot.saved.frame = 0;
    if slot.state.load(Ordering::Relaxed) == state::EXITING {
        // Taken from outside on its way out: it may have made these registrations already, and has no id any more.
        threads::register_for_exit(slot);
        control::life_thread(slot.index as usize).tid.store(0, Ordering::Release);
    }
    slot.pending.fetch_and(!pending::KICK, Ordering::Relaxed);
    let retry = (slot.saved.retry.valid != 0).then_some(slot.saved.retry);
    slot.saved.retry.valid = 0;
    let recovers = control::life().recovers.load(Ordering::Acquire) == slot.index + 1;
    if slot.saved.outside != 0 {
        outside::go_on(slot, context, recovers);
    } else if recovers {
        let info = recovery::info(control::life().generation);
        let program = Program { signal: SIGPWR, info, retry, mask: context.mask };
        signals::deliver(slot, program, context);
        slot.timed_rip = 0;
    } else if let Some(retry) = retry {
        context.machine.rip = retry.rip;
        context.machine.rax = retry.number;
        slot.temp_valid = 0;
    }
    if slot.rseq != 0 {
        // SAFETY: the thread's own area, as it had registered it.
        let _ = unsafe { process::rseq(slot.rseq, slot.rseq_bytes, 0, slot.rseq_signature) };
    }
    if slot.own_power.load(Ordering::Acquire) != 0 {
        // Sent before the save, by a thread whose word to this one the kernel has not kept.
        kick();
    }
    // SAFETY: the frame is complete; the kernel checks what it must.
    unsafe { zhuque_return_to_frame(frame) }
}
