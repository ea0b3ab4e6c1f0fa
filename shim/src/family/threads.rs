//! Threads: their creation and end, and what the kernel keeps for each.
//!
//! The kernel must hold no pointer through which it writes into the region when the process dies: the address for
//! clear-child-tid and the robust list stay in the slot, and are registered only just before a thread's real exit.
#![allow(unsafe_code)]

use super::{clocks, ids, processes, robust};
use crate::context::AlternateStack;
use crate::control::{self, Lock};
use crate::entry::handler::{FAULTS_OF_ACCESS, NEVER_BLOCKED};
use crate::entry::{asm::zhuque_clone, place};
use crate::gate::{Outcome, Result64, error, raw, wait_call};
use crate::user;
use core::sync::atomic::{Ordering, compiler_fence};
use zhuque_abi::header::{Phase, phase_word};
use zhuque_abi::layout::{GATE_STACK_TOP, MAX_THREADS, SIGNAL_STACK, SIGNAL_STACK_BYTES, SLOT_STRIDE};
use zhuque_abi::slot::{Slot, pending, state};
use zhuque_sys::{Errno, fs, mm, process, signal};

const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_PARENT_SETTID: u64 = libc::CLONE_PARENT_SETTID as u64;
const CLONE_CHILD_SETTID: u64 = libc::CLONE_CHILD_SETTID as u64;
const CLONE_CHILD_CLEARTID: u64 = libc::CLONE_CHILD_CLEARTID as u64;
const CLONE_NEW: u64 = 0x7e02_0000 | 0x80;
const MADV_POPULATE_WRITE: i32 = 23;

unsafe extern "C" {
    fn zhuque_exit_thread(state: *mut u32) -> !;
}

/// The signal stack of a slot, as the kernel is told.
pub fn signal_stack(slot: &Slot) -> AlternateStack {
    AlternateStack { address: slot.this + SIGNAL_STACK, flags: 0, padding: 0, bytes: SIGNAL_STACK_BYTES }
}

/// Takes a free slot, with its stacks' memory present. The caller holds the state lock (or is alone).
pub fn take_slot() -> Result<*mut Slot, Errno> {
    let used = control::slots();
    for index in 0..used {
        let slot = control::slot(index);
        // SAFETY: an atomic field of the control mapping.
        if unsafe { (*slot).state.load(Ordering::Acquire) } == state::FREE {
            // SAFETY: free, so nobody else uses it.
            unsafe { prepare(slot, index) };
            return Ok(slot);
        }
    }
    if used >= MAX_THREADS {
        return error(libc::EAGAIN);
    }
    let slot = control::slot(used);
    // Frames must never be pushed onto memory that is not there: a full store would be a fault without a handler.
    // SAFETY: the control mapping's own memory.
    let there = match unsafe { mm::madvise(slot as u64, SLOT_STRIDE, MADV_POPULATE_WRITE) } {
        // Before Linux 5.14: room for it has to do.
        Err(Errno(libc::EINVAL)) => {
            let offset = slot as u64 - control::base();
            fs::allocate(control::life().descriptors.control, offset, SLOT_STRIDE)
        }
        there => there,
    };
    there.map_err(|_| Errno(libc::EAGAIN))?;
    // SAFETY: new, so nobody else uses it.
    unsafe {
        prepare(slot, used);
        (*control::globals()).slots.store(used as u32 + 1, Ordering::Release);
    }
    Ok(slot)
}

/// # Safety
/// The slot is nobody's.
unsafe fn prepare(slot: *mut Slot, index: usize) {
    // SAFETY: plain memory of the right size; all-zero is a valid slot.
    unsafe {
        core::ptr::write_bytes(slot.cast::<u8>(), 0, size_of::<Slot>());
        (*slot).this = slot as u64;
        (*slot).gate_stack = slot as u64 + GATE_STACK_TOP;
        (*slot).index = index as u32;
        (*slot).alt_flags = libc::SS_DISABLE as u64;
        (*slot).state.store(state::BORN, Ordering::Release);
    }
}

/// Makes the calling thread the one of `slot`: GS base, signal stack, dispatch. Signals are blocked.
pub fn become_slot(slot: &Slot) -> Result<(), Errno> {
    let stack = signal_stack(slot);
    let (start, end) = place::text();
    // SAFETY: the slot is this thread's from here on, and its signal stack is used by nobody else.
    unsafe {
        process::set_gs_base(slot.this);
        signal::set_alternate_stack(stack.address, stack.bytes, 0)?;
    }
    let known = &control::life_thread(slot.index as usize).tid;
    loop {
        let tid = process::tid();
        known.store(tid, Ordering::Release);
        // Who is taken from outside between the two has stored the id of the life before.
        if process::tid() == tid {
            break;
        }
    }
    process::dispatch_on(start, end - start)
}

/// Calls about threads.
pub fn serve(slot: &mut Slot, number: i64, a: [u64; 6]) -> Outcome {
    Outcome::Value(match number {
        libc::SYS_futex => clocks::futex(slot, a),
        libc::SYS_gettid if slot.borrowed == 0 => Ok(u64::from(slot.virtual_tid.load(Ordering::Relaxed))),
        libc::SYS_set_tid_address => {
            slot.clear_tid = a[0];
            Ok(u64::from(slot.virtual_tid.load(Ordering::Relaxed)))
        }
        libc::SYS_set_robust_list if a[1] != 24 => error(libc::EINVAL),
        libc::SYS_set_robust_list => {
            slot.robust_list = a[0];
            slot.robust_bytes = a[1];
            Ok(0)
        }
        libc::SYS_get_robust_list => get_robust_list(slot, a),
        libc::SYS_rseq => rseq(slot, a),
        libc::SYS_arch_prctl if matches!(a[0], 0x1001 | 0x1004) => error(libc::EPERM),
        libc::SYS_prctl => prctl(slot, a),
        libc::SYS_membarrier => membarrier(slot, a),
        libc::SYS_exit if slot.borrowed == 0 => exit_thread(slot, a[0]),
        libc::SYS_exit_group if slot.borrowed == 0 => exit_group(a[0]),
        libc::SYS_clone => {
            let [flags, stack, parent, child, tls, _] = a;
            clone(slot, Clone { flags, stack, parent, child, tls })
        }
        libc::SYS_clone3 => clone3(slot, a),
        libc::SYS_fork => {
            slot.start_stack = 0;
            processes::fork(slot, libc::SIGCHLD as u64, 0, 0)
        }
        libc::SYS_vfork => processes::vfork(slot),
        _ => raw(number, a),
    })
}

/// get_robust_list(2), of threads of the program.
fn get_robust_list(slot: &Slot, a: [u64; 6]) -> Result64 {
    let id = a[0] as u32;
    if id != 0 && id != slot.virtual_tid.load(Ordering::Relaxed) {
        return error(libc::EPERM);
    }
    // SAFETY: the program's memory.
    unsafe {
        user::write(a[1], &slot.robust_list)?;
        user::write(a[2], &slot.robust_bytes)?;
    }
    Ok(0)
}

/// rseq(2): noted and passed on, in this order: a life that begins between the two has made the registration, or has not
/// made it, as the note says.
fn rseq(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    const UNREGISTER: u64 = 1;
    let before = (slot.rseq, slot.rseq_bytes, slot.rseq_signature);
    let (given, removes) = ((a[0], a[1] as u32, a[3] as u32), a[2] & UNREGISTER != 0);
    let noted = if removes && before == given { (0, 0, 0) } else { given };
    let changes = if removes { before == given } else { before.0 == 0 };
    if changes {
        note_rseq(slot, noted);
    }
    match raw(libc::SYS_rseq, a) {
        // It is as the note says already.
        Err(Errno(libc::EBUSY)) if changes && !removes => Ok(0),
        Err(Errno(libc::EINVAL)) if changes && removes => Ok(0),
        Err(error) if changes => {
            note_rseq(slot, before);
            Err(error)
        }
        result => result,
    }
}

/// The address last when there is one, first when there is none: it makes the note one.
fn note_rseq(slot: &mut Slot, (address, bytes, signature): (u64, u32, u32)) {
    slot.rseq = 0;
    compiler_fence(Ordering::Release);
    (slot.rseq_bytes, slot.rseq_signature) = (bytes, signature);
    compiler_fence(Ordering::Release);
    slot.rseq = address;
}

/// prctl(2): what would undo the gate is refused.
fn prctl(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    match a[0] as i32 {
        libc::PR_SET_SECCOMP => {
            crate::gate::say_refused(
                libc::SYS_seccomp as u64,
                b"seccomp",
                b"a filter would bind the resumed program as well",
            );
            error(libc::EINVAL)
        }
        // PR_SET_SYSCALL_USER_DISPATCH, PR_TIMER_CREATE_RESTORE_IDS.
        59 | 77 => error(libc::EINVAL),
        libc::PR_SET_MM => error(libc::EPERM),
        // PR_GET_TID_ADDRESS
        40 => {
            // SAFETY: the program's memory.
            unsafe { user::write(a[1], &slot.clear_tid) }?;
            Ok(0)
        }
        _ => wait_call(slot, libc::SYS_prctl, a),
    }
}

/// membarrier(2): registrations are noted.
fn membarrier(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    /// MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, and PRIVATE_EXPEDITED, its SYNC_CORE and its RSEQ.
    const REGISTER: u64 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
    let registers = a[0] & REGISTER != 0 && slot.borrowed == 0;
    // SAFETY: an atomic field.
    let known = unsafe { &(*control::globals()).membarrier };
    let before = known.load(Ordering::Relaxed);
    if registers {
        // Before the kernel knows: it can be told twice.
        known.fetch_or(a[0] as u32, Ordering::Relaxed);
    }
    let result = wait_call(slot, libc::SYS_membarrier, a);
    if registers && result.is_err() {
        known.fetch_and(!(a[0] as u32) | before, Ordering::Relaxed);
    }
    result
}

/// exit_group(2): the program's end.
fn exit_group(status: u64) -> Result64 {
    let generation = control::life().generation;
    processes::report_daemons();
    // SAFETY: plain field; the process ends.
    unsafe { (*control::header()).exit_status = (status as u32 & 0xff) << 8 };
    control::phase().store(phase_word(generation, Phase::Ended), Ordering::Release);
    process::exit_group(status as i32)
}

/// A signal that a thread has put off and will not live to handle is another one's, if it was the process'. (What tgkill
/// has sent was not.)
fn pass_on(slot: &mut Slot) {
    while slot.pending.swap(0, Ordering::Relaxed) & pending::SIGNAL != 0 {
        let (number, info) = (u64::from(slot.deferred.signal), &raw const slot.deferred.info);
        if slot.deferred.info[1] as u32 == super::ids::SI_TKILL {
            return;
        }
        // SAFETY: a plain word, another one in another life.
        let pid = unsafe { u64::from((&raw const control::life().pid).read_volatile()) };
        // By the way of calls that wait, which are not begun in another life than that in which the id was looked at.
        let mut sent = wait_call(slot, libc::SYS_rt_sigqueueinfo, [pid, number, info as u64, 0, 0, 0]);
        if sent == error(libc::EPERM) {
            // What the kernel and kill(2) send, only the main thread may send again.
            sent = wait_call(slot, libc::SYS_kill, [pid, number, 0, 0, 0, 0]);
        }
        if sent.is_err() && slot.retry.valid != 0 {
            slot.retry.valid = 0;
            slot.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
        }
    }
}

/// exit(2) of one thread. The last one's is the program's end.
fn exit_thread(slot: &mut Slot, status: u64) -> Result64 {
    slot.faults_blocked.store(FAULTS_OF_ACCESS, Ordering::Relaxed);
    signal::set_mask(!0);
    pass_on(slot);
    let lock = Lock::state();
    let others = (0..control::slots()).filter(|&index| index != slot.index as usize);
    // SAFETY: atomic fields of the control mapping.
    let taken = |index| unsafe { (*control::slot(index)).state.load(Ordering::Acquire) } != state::FREE;
    let others = others.filter(|&index| taken(index)).count();
    if others == 0 {
        return exit_group(status);
    }
    slot.state.store(state::EXITING, Ordering::Release);
    control::life_thread(slot.index as usize).tid.store(0, Ordering::Release);
    drop(lock);
    // Nobody chooses it any more: what it has been given until now and will not live to do is the others'.
    crate::save::leave(slot);
    super::recovery::leave(slot);
    register_for_exit(slot);
    // SAFETY: nothing of the program runs on this thread any more.
    unsafe { zhuque_exit_thread(slot.state.as_ptr()) }
}

/// In a new life, before its threads run. One that was taken from outside on its way out may have had its word cleared by
/// the kernel at the end of the life before: not once more, since who has seen that may use it for something else.
pub fn note_cleared(slot: &mut Slot) {
    // Not by a copy: every signal is blocked, so that a fault would be the end. The kernel says it of any memory.
    let cleared = || process::is_zero(slot.clear_tid);
    if slot.state.load(Ordering::Relaxed) == state::EXITING && slot.clear_tid != 0 && cleared() {
        slot.clear_tid = 0;
    }
}

/// From here to the kernel's exit nothing of the program runs on this thread, so the kernel may do what the program has
/// asked for: walk the robust list and clear the thread id.
pub fn register_for_exit(slot: &Slot) {
    if slot.robust_list != 0 {
        if robust::is_kernels(slot) {
            // SAFETY: the program's own list.
            unsafe { process::set_robust_list(slot.robust_list, slot.robust_bytes) };
        } else {
            robust::leave(slot);
        }
    }
    // SAFETY: the program's own word.
    unsafe { process::set_tid_address(slot.clear_tid) };
}

/// Arguments of clone, from either call.
struct Clone {
    flags: u64,
    stack: u64,
    parent: u64,
    child: u64,
    tls: u64,
}

/// clone3(2): the same with a structure.
fn clone3(slot: &mut Slot, a: [u64; 6]) -> Result64 {
    if a[1] < 64 || a[1] > 4096 {
        return error(libc::EINVAL);
    }
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, ...
    // SAFETY: integers.
    let args: [u64; 8] = unsafe { user::read(a[0]) }?;
    let mut more = [0u64; 3];
    for (index, word) in more.iter_mut().enumerate() {
        if a[1] >= 64 + 8 * (index as u64 + 1) {
            // SAFETY: an integer.
            *word = unsafe { user::read(a[0] + 64 + 8 * index as u64) }?;
        }
    }
    let [flags, _, child, parent, exit_signal, stack, stack_bytes, tls] = args;
    if more != [0; 3] || flags & 0x1_0000_1000 & !0x1000 != 0 {
        // set_tid, cgroup, CLONE_CLEAR_SIGHAND: callers fall back to clone.
        return error(libc::ENOSYS);
    }
    if flags & 0x1000 != 0 || flags & CLONE_VFORK != 0 {
        // CLONE_PIDFD, and vfork by structure: callers fall back to clone.
        return error(libc::ENOSYS);
    }
    let stack = if stack == 0 { 0 } else { stack + stack_bytes };
    clone(slot, Clone { flags: flags | exit_signal, stack, parent, child, tls })
}

/// clone(2): a thread, a fork, or a vfork.
fn clone(slot: &mut Slot, c: Clone) -> Result64 {
    if slot.borrowed > 0 {
        return error(libc::EAGAIN);
    }
    if c.flags & CLONE_NEW != 0 {
        crate::gate::say_refused(libc::SYS_unshare as u64, b"clone into a namespace", b"a resume could not enter it");
        return error(libc::EPERM);
    }
    if c.flags & CLONE_THREAD != 0 {
        return new_thread(slot, c);
    }
    if c.flags & (CLONE_VM | CLONE_VFORK) == CLONE_VM | CLONE_VFORK {
        return processes::vfork(slot);
    }
    if c.flags & CLONE_VM != 0 {
        crate::gate::say_refused(
            libc::SYS_clone as u64,
            b"clone of a process that shares memory",
            b"not persistent yet",
        );
        return error(libc::ENOSYS);
    }
    let known = 0xff | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | libc::CLONE_SYSVSEM as u64;
    if c.flags & !known != 0 {
        crate::gate::say_refused(libc::SYS_clone as u64, b"clone of a process that shares", b"not persistent yet");
        return error(libc::EINVAL);
    }
    slot.start_stack = c.stack;
    let child_tid = if c.flags & CLONE_CHILD_SETTID != 0 { c.child } else { 0 };
    let clear_tid = if c.flags & CLONE_CHILD_CLEARTID != 0 { c.child } else { 0 };
    let pid = processes::fork(slot, c.flags & 0xff, child_tid, clear_tid)?;
    if pid != 0 && c.flags & CLONE_PARENT_SETTID != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(c.parent, &(pid as u32)) }?;
    }
    Ok(pid)
}

/// A new thread.
fn new_thread(slot: &mut Slot, c: Clone) -> Result64 {
    // Held until the new thread's id is known: a thread that ends takes it too, so the slot cannot change hands.
    let _lock = Lock::state();
    let taken = take_slot()?;
    let mask = signal::set_mask(!0);
    let faults = slot.faults_blocked.swap(FAULTS_OF_ACCESS, Ordering::Relaxed);
    // A signal that is put off has replaced the mask meanwhile: the program's is in the slot then.
    let waits = slot.puts_signal_off();
    // SAFETY: the slot has just been taken for the child, which does not run yet.
    let child = unsafe { &mut *taken };
    child.frame = slot.frame;
    child.frame.rax = 0;
    if c.stack != 0 {
        child.frame.rsp = c.stack;
    }
    child.xmm = slot.xmm;
    child.extra_mask = slot.extra_mask;
    child.faults_blocked.store(FAULTS_OF_ACCESS, Ordering::Relaxed);
    child.clear_tid = if c.flags & CLONE_CHILD_CLEARTID != 0 { c.child } else { 0 };
    child.start_child_tid = if c.flags & CLONE_CHILD_SETTID != 0 { c.child } else { 0 };
    child.start_parent_tid = if c.flags & CLONE_PARENT_SETTID != 0 { c.parent } else { 0 };
    child.start_mask = if waits { slot.deferred.mask } else { mask };
    let flags = c.flags & !(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID);
    // SAFETY: the child starts on its own gate stack with its own slot.
    let result = unsafe { zhuque_clone(flags, child.gate_stack, c.tls, start_thread, child) };
    let result = if result < 0 {
        child.state.store(state::FREE, Ordering::Release);
        error(-result as i32)
    } else {
        // It may have said so itself already, in a life where it has another one.
        let tid = &control::life_thread(child.index as usize).tid;
        let _ = tid.compare_exchange(0, result as u32, Ordering::AcqRel, Ordering::Acquire);
        let shown = ids::assign(child, result as u32);
        if c.flags & CLONE_PARENT_SETTID != 0 {
            // SAFETY: the program's memory.
            let _ = unsafe { user::write(c.parent, &shown) };
        }
        Ok(u64::from(shown))
    };
    slot.faults_blocked.store(faults, Ordering::Relaxed);
    signal::set_mask(mask);
    result
}

/// Where a new thread begins, on its gate stack, with all signals blocked. Returns to the gate's exit.
extern "C" fn start_thread(slot: *mut Slot) -> u32 {
    // SAFETY: the slot is this thread's.
    let slot = unsafe { &mut *slot };
    if become_slot(slot).is_err() {
        crate::die::fail(&crate::text::Text::of(b"cannot set up a new thread"));
    }
    let shown = ids::assign(slot, process::tid());
    // SAFETY: the program's memory, as it asked.
    unsafe {
        if slot.start_parent_tid != 0 {
            let _ = user::write(slot.start_parent_tid, &shown);
        }
        if slot.start_child_tid != 0 {
            let _ = user::write(slot.start_child_tid, &shown);
        }
    }
    slot.state.store(state::LIVE, Ordering::Release);
    slot.faults_blocked.store(slot.start_mask & FAULTS_OF_ACCESS, Ordering::Relaxed);
    signal::set_mask(slot.start_mask & !NEVER_BLOCKED);
    0
}
