//! Signals: the program's actions, masks and alternate stacks, and delivery on frames that the program can read.
//!
//! The kernel only ever sees the shim's handler, the shim's alternate stacks, and masks without SIGSYS and SIGPWR. What
//! the program believes in lies in `Globals::actions` and in its slots; [`deliver`] builds the frame that the kernel
//! would have built (arch/x86/kernel/signal_64.c, x64_setup_rt_frame).
#![allow(unsafe_code)]

use crate::context::{AlternateStack, Context, SignalFrame};
use crate::entry::handler::{FAULTS, FAULTS_OF_ACCESS, NEVER_BLOCKED, kick, on_signal, queue_for_self, send_to_self};
use crate::gate::{Outcome, Result64, error, retry, wait_call};
use crate::{control, entry::sites, user};
use core::sync::atomic::Ordering;
use zhuque_abi::header::Action;
use zhuque_abi::slot::{Retry, SigInfo, Slot};
use zhuque_model::sync;
use zhuque_sys::signal::{KernelAction, SA_RESTORER, bit, set_action};
use zhuque_sys::{Errno, signal};

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SA_ONSTACK: u64 = libc::SA_ONSTACK as u64;
const SA_NODEFER: u64 = libc::SA_NODEFER as u64;
const SA_RESETHAND: u64 = libc::SA_RESETHAND as u32 as u64;
const SA_RESTART: u64 = libc::SA_RESTART as u64;
const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = i32::MIN;
/// Bytes below the stack pointer that belong to the function running there.
const RED_ZONE: u64 = 128;
const SIGKILL: u32 = libc::SIGKILL as u32;
const SIGSTOP: u32 = libc::SIGSTOP as u32;

unsafe extern "C" {
    fn zhuque_restorer();
}

/// A signal to deliver.
pub struct Program {
    /// Number.
    pub signal: u32,
    /// The kernel's siginfo.
    pub info: SigInfo,
    /// The call that it interrupted.
    pub retry: Option<Retry>,
    /// The program's mask when it came (what the handler's return restores).
    pub mask: u64,
}

/// The program's action for `signal`.
pub fn action(signal: u32) -> Action {
    let index = (signal as usize).wrapping_sub(1).min(63);
    // SAFETY: the table lives as long as the process; a torn read is noticed by the sequence number.
    unsafe {
        let globals = control::globals();
        sync::read(&(&(*globals).action_sequence)[index], || {
            core::ptr::read_volatile(&raw const (*globals).actions[index])
        })
    }
}

/// The program's action while nobody can finish a change of it: in a new life, before its threads run. False: it is in
/// the middle of one, by a thread that was taken from outside.
pub fn action_now(signal: u32) -> (Action, bool) {
    let index = (signal as usize).wrapping_sub(1).min(63);
    // SAFETY: as in `action`; any bytes are an action.
    unsafe {
        let globals = control::globals();
        let whole = (&(*globals).action_sequence)[index].load(Ordering::Acquire) & 1 == 0;
        (core::ptr::read_volatile(&raw const (*globals).actions[index]), whole)
    }
}

/// Whether the program ignores a signal that comes now, and no instruction has caused: the kernel would not have sent it.
pub fn is_ignored(signal: u32) -> bool {
    // Whoever is in the middle of a change may be the calling thread: that is one that it has not made yet.
    let (action, whole) = action_now(signal);
    whole && action.handler == SIG_IGN
}

/// Stores the program's action. The caller holds the state lock, or is the only one who can change this signal now.
fn store_action(signal: u32, value: Action) {
    let index = (signal as usize - 1).min(63);
    // SAFETY: as in `action`; writers are serialised by the caller.
    unsafe {
        let globals = control::globals();
        sync::write(&(&(*globals).action_sequence)[index], || {
            core::ptr::write_volatile(&raw mut (*globals).actions[index], value);
        });
    }
}

/// Takes a pending signal of the program that `mask` lets through and that has a handler. A call that was interrupted may
/// have been interrupted for it, so whoever decides about the call has to deliver it first.
pub fn take_deliverable(mask: u64) -> Option<(u32, SigInfo)> {
    let candidates = signal::pending() & !mask & !NEVER_BLOCKED;
    let handled = |set: u64, n: u32| if action(n).handler > SIG_IGN { set | bit(n) } else { set };
    let set = (1..=64).filter(|&n| candidates & bit(n) != 0).fold(0, handled);
    let mut info: SigInfo = [0; 16];
    let number = if set == 0 { return None } else { signal::take_pending(set, &mut info).ok()? };
    Some((number, info))
}

/// Installs the shim's handler for `signal` in the kernel.
pub fn install(signal: u32, flags: u64) -> Result<(), Errno> {
    let keep = flags & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) as u64;
    let action = KernelAction {
        handler: on_signal as *const () as u64,
        flags: keep | SA_ONSTACK | SA_RESTART | SA_RESTORER | libc::SA_SIGINFO as u64,
        restorer: zhuque_restorer as *const () as u64,
        mask: !0,
    };
    // SAFETY: the handler is made to run at any instruction, on the thread's own signal stack.
    unsafe { set_action(signal, &action) }
}

/// Signals whose kernel-level handler is always the shim's.
pub fn always_ours(signal: u32) -> bool {
    matches!(signal as i32, libc::SIGSYS | libc::SIGPWR | libc::SIGSEGV | libc::SIGBUS)
}

/// Makes the kernel's action for `signal` what the program's action asks for.
pub fn apply(signal: u32, value: &Action) -> Result<(), Errno> {
    if always_ours(signal) || value.handler > SIG_IGN {
        return install(signal, value.flags);
    }
    let kernel =
        KernelAction { handler: value.handler, flags: value.flags, restorer: value.restorer, mask: value.mask };
    // SAFETY: SIG_DFL and SIG_IGN run no code.
    unsafe { set_action(signal, &kernel) }
}

/// Takes the actions that the kernel has at the program's start (ignored signals are inherited over exec).
pub fn adopt() {
    for n in 1..=64 {
        let Ok(kernel) = signal::action(n) else { continue };
        let value = Action { handler: kernel.handler, ..Action::default() };
        store_action(n, value);
        if always_ours(n) {
            let _ = install(n, 0);
        }
    }
}

/// Puts every action back into the kernel, in a new life.
pub fn revive() {
    for n in (1..=64).filter(|&n| n != SIGKILL && n != SIGSTOP) {
        let _ = match action_now(n) {
            (action, true) => apply(n, &action),
            // Whoever changes it tells the kernel at its end. A signal that comes before that waits for it.
            (action, false) => install(n, action.flags),
        };
    }
}

/// Where the program's alternate stack is in use, by the kernel's rule.
fn on_alternate_stack(slot: &Slot, stack_pointer: u64) -> bool {
    slot.alt_bytes != 0
        && slot.alt_flags as i32 & SS_AUTODISARM == 0
        && stack_pointer > slot.alt_address
        && stack_pointer - slot.alt_address <= slot.alt_bytes
}

/// Delivers a signal: `context` becomes the start of the program's handler, or goes on unchanged if there is none.
pub fn deliver(slot: &mut Slot, program: Program, context: &mut Context) {
    let signal = program.signal;
    let action = action(signal);
    if action.handler == SIG_IGN && !fault(&program) {
        // Since it came only, or `is_ignored` would have been true.
        slot.temp_valid = 0;
        return end_call(slot, program.retry, true, context);
    }
    if action.handler <= SIG_IGN {
        // The default action of a signal that only the shim has a handler for: let the kernel do it, at once.
        // SAFETY: SIG_DFL runs no code.
        let _ = unsafe { signal::set_action(signal, &KernelAction::default()) };
        queue_for_self(signal, &program.info);
        context.mask &= !bit(signal);
        return;
    }
    let restart = action.flags & SA_RESTART != 0;
    end_call(slot, program.retry, restart, context);
    let now = if slot.temp_valid != 0 { slot.temp_mask } else { program.mask };
    slot.temp_valid = 0;
    if push_frame(slot, &program, &action, context).is_err() {
        // No room for the frame: the kernel would end the process with SIGSEGV.
        // SAFETY: SIG_DFL runs no code.
        let _ = unsafe { signal::set_action(libc::SIGSEGV as u32, &KernelAction::default()) };
        send_to_self(libc::SIGSEGV as u32);
        context.mask &= !bit(libc::SIGSEGV as u32);
        return;
    }
    if action.flags & SA_RESETHAND != 0 {
        let value = Action { handler: SIG_DFL, ..action };
        // No thread holds it where a signal is delivered.
        let _lock = control::Lock::state();
        store_action(signal, value);
        let _ = apply(signal, &value);
    }
    let own = if action.flags & SA_NODEFER != 0 { 0 } else { bit(signal) };
    let blocked = now | action.mask | own;
    slot.extra_mask |= blocked & NEVER_BLOCKED;
    slot.faults_blocked.store(blocked & FAULTS_OF_ACCESS, Ordering::Relaxed);
    context.mask = blocked & !NEVER_BLOCKED;
}

/// Whether the signal was raised by an instruction (ignoring it is not possible then).
fn fault(program: &Program) -> bool {
    (program.info[1] & 0xffff_ffff) as i32 > 0 && crate::entry::handler::FAULTS & bit(program.signal) != 0
}

/// An interrupted call: issued again after the handler, or ended with EINTR as `context` says already.
fn end_call(slot: &mut Slot, retry: Option<Retry>, restart: bool, context: &mut Context) {
    slot.retry.valid = 0;
    if let Some(retry) = retry
        && (retry.restartable == retry::ALWAYS || retry.restartable == retry::RESTART && restart)
    {
        context.machine.rip = retry.rip;
        context.machine.rax = retry.number;
    } else {
        // The call has ended: the next one of its kind from the same place is a new one.
        slot.timed_rip = 0;
    }
}

/// Builds the program's signal frame on the stack it asked for, and points `context` to its handler.
fn push_frame(slot: &mut Slot, program: &Program, action: &Action, context: &mut Context) -> Result<(), Errno> {
    let m = context.machine;
    let switch = action.flags & SA_ONSTACK != 0 && slot.alt_bytes != 0 && !on_alternate_stack(slot, m.rsp);
    let top = if switch { slot.alt_address + slot.alt_bytes } else { m.rsp - RED_ZONE };
    // SAFETY: the context is the kernel's own frame.
    let extended_bytes = unsafe { context.extended_bytes() };
    let extended = (top - extended_bytes) & !63;
    let frame_at = ((extended - size_of::<SignalFrame>() as u64) & !15) - 8;
    if switch && frame_at < slot.alt_address {
        return Err(Errno(libc::EFAULT));
    }
    let mut shown = *context;
    shown.stack = alternate_stack(slot, m.rsp);
    shown.machine.extended = if extended_bytes == 0 { 0 } else { extended };
    shown.mask = program.mask & !NEVER_BLOCKED | slot.extra_mask;
    let mut info = program.info;
    virtual_sender(&mut info, slot);
    super::timers::note_taken(&info);
    let frame = SignalFrame { restorer: action.restorer, context: shown, info };
    // SAFETY: both targets are memory of the program's, on its stack; a fault is reported.
    unsafe {
        if extended_bytes != 0 {
            user::copy(extended, m.extended, extended_bytes as usize)?;
        }
        user::write(frame_at, &frame)?;
        context.reset_extended();
    }
    if switch && slot.alt_flags as i32 & SS_AUTODISARM != 0 {
        slot.alt_bytes = 0;
        slot.alt_flags = SS_DISABLE as u64;
    }
    let m = &mut context.machine;
    m.rip = action.handler;
    m.rdi = u64::from(program.signal);
    m.rsi = frame_at + core::mem::offset_of!(SignalFrame, info) as u64;
    m.rdx = frame_at + core::mem::offset_of!(SignalFrame, context) as u64;
    m.rax = 0;
    m.rsp = frame_at;
    // Direction, resume and trap flags are cleared for a handler.
    m.flags &= !(0x400 | 0x1_0000 | 0x100);
    Ok(())
}

/// Whether the kernel's id `sender` is the process's own: in this life, or in that in which a signal has come that this
/// thread still has in hand.
pub fn is_own(sender: u32, slot: &Slot) -> bool {
    // This life's id is looked at first, so that who is taken from outside between the two looks finds the other one.
    // SAFETY: plain words, the second ones this thread's.
    let (now, before) = unsafe {
        let now = (&raw const control::life().pid).read_volatile();
        (now, (&raw const slot.old_pids).read_volatile())
    };
    sender != 0 && (sender == now || before.contains(&sender))
}

/// The sender's ids as the program knows them, where it is the program itself.
pub fn virtual_sender(info: &mut SigInfo, slot: &Slot) {
    let code = (info[1] & 0xffff_ffff) as i32;
    if slot.borrowed == 0 {
        // A timer's names the timer where others name their sender.
        super::timers::name_in(info);
    }
    if code <= 0 && code != zhuque_abi::timers::SI_TIMER && is_own((info[2] & 0xffff_ffff) as u32, slot) {
        // SAFETY: the field is constant after start.
        let pid = unsafe { (*control::header()).virtual_pid };
        info[2] = info[2] & !0xffff_ffff | u64::from(pid);
    }
}

/// The program's alternate stack as sigaltstack(2) and signal frames report it.
fn alternate_stack(slot: &Slot, stack_pointer: u64) -> AlternateStack {
    let flags = if slot.alt_bytes == 0 {
        SS_DISABLE
    } else if on_alternate_stack(slot, stack_pointer) {
        SS_ONSTACK
    } else {
        slot.alt_flags as i32 & SS_AUTODISARM
    };
    AlternateStack { address: slot.alt_address, flags, padding: 0, bytes: slot.alt_bytes }
}

/// sigaltstack(2).
pub fn sigaltstack(slot: &mut Slot, new: u64, old: u64) -> Result64 {
    let previous = alternate_stack(slot, slot.frame.rsp);
    if new != 0 {
        // SAFETY: any bit pattern is a valid stack_t.
        let wanted: AlternateStack = unsafe { user::read(new) }?;
        if on_alternate_stack(slot, slot.frame.rsp) {
            return error(libc::EPERM);
        }
        set_alternate_stack(slot, &wanted)?;
    }
    if old != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(old, &previous) }?;
    }
    Ok(0)
}

/// Checks and stores the program's alternate stack (do_sigaltstack in kernel/signal.c).
fn set_alternate_stack(slot: &mut Slot, wanted: &AlternateStack) -> Result<(), Errno> {
    let mode = wanted.flags & !SS_AUTODISARM;
    if mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0 {
        return Err(Errno(libc::EINVAL));
    }
    if mode == SS_DISABLE {
        slot.alt_address = 0;
        slot.alt_bytes = 0;
        slot.alt_flags = SS_DISABLE as u64;
        return Ok(());
    }
    if wanted.bytes < 2048 {
        return Err(Errno(libc::ENOMEM));
    }
    slot.alt_address = wanted.address;
    slot.alt_bytes = wanted.bytes;
    slot.alt_flags = (wanted.flags & SS_AUTODISARM) as u32 as u64;
    Ok(())
}

/// rt_sigaction(2).
pub fn rt_sigaction(slot: &Slot, signal: u64, new: u64, old: u64, size: u64) -> Result64 {
    if size != 8 {
        return error(libc::EINVAL);
    }
    let number = signal as u32;
    // The kernel reads it before it looks at the number.
    // SAFETY: any bit pattern is a valid action.
    let wanted: Option<Action> = if new == 0 { None } else { Some(unsafe { user::read(new) }?) };
    if !(1..=64).contains(&number) || (new != 0 && (number == SIGKILL || number == SIGSTOP)) {
        return error(libc::EINVAL);
    }
    if slot.borrowed > 0 {
        return borrowed_action(number, new, old);
    }
    let lock = control::Lock::state();
    let previous = action(number);
    if let Some(mut value) = wanted {
        value.mask &= !(bit(SIGKILL) | bit(SIGSTOP));
        store_action(number, value);
        if let Err(e) = apply(number, &value) {
            store_action(number, previous);
            return Err(e);
        }
    }
    drop(lock);
    if old != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(old, &previous) }?;
    }
    Ok(0)
}

/// rt_sigaction of a vfork child: its table in the kernel is its own, ours is its parent's and stays.
fn borrowed_action(number: u32, new: u64, old: u64) -> Result64 {
    let previous = action(number);
    if new != 0 {
        // SAFETY: any bit pattern is a valid action.
        let value: Action = unsafe { user::read(new) }?;
        if value.handler <= SIG_IGN {
            let kernel = KernelAction { handler: value.handler, flags: value.flags, restorer: value.restorer, mask: 0 };
            // SAFETY: SIG_DFL and SIG_IGN run no code.
            unsafe { set_action(number, &kernel) }?;
        }
    }
    if old != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(old, &previous) }?;
    }
    Ok(0)
}

/// rt_sigprocmask(2): the kernel's mask is the program's without our two; the slot has those.
pub fn rt_sigprocmask(slot: &mut Slot, how: u64, new: u64, old: u64, size: u64) -> Result64 {
    if size != 8 {
        return error(libc::EINVAL);
    }
    // A signal that is being put off has replaced the kernel's mask; the program's is in `deferred` then. Looked at behind
    // the kernel's: it may have come in between.
    let kernel = signal::mask();
    let waits = slot.puts_signal_off();
    let kernel = if waits { slot.deferred.mask } else { kernel };
    let previous = kernel & !NEVER_BLOCKED | slot.extra_mask;
    if new != 0 {
        // SAFETY: a mask.
        let set: u64 = unsafe { user::read(new) }?;
        let set = set & !(bit(SIGKILL) | bit(SIGSTOP));
        let next = match how as i32 {
            libc::SIG_BLOCK => previous | set,
            libc::SIG_UNBLOCK => previous & !set,
            libc::SIG_SETMASK => set,
            _ => return error(libc::EINVAL),
        };
        slot.extra_mask = next & NEVER_BLOCKED;
        note_faults(slot, next);
        set_mask(slot, next & !NEVER_BLOCKED);
        super::recovery::unblocked(slot, next & !NEVER_BLOCKED);
    }
    if old != 0 {
        // SAFETY: the program's memory.
        unsafe { user::write(old, &previous) }?;
    }
    Ok(0)
}

/// Notes which faults the mask has from now on. While a signal is put off it may have any, or may have got one just now.
fn note_faults(slot: &Slot, mask: u64) {
    slot.faults_blocked.store(mask & FAULTS_OF_ACCESS, Ordering::Relaxed);
    if slot.puts_signal_off() {
        slot.faults_blocked.store(FAULTS_OF_ACCESS, Ordering::Relaxed);
    }
}

/// Sets the kernel's mask, or the one to be set when the signal that is put off has been delivered.
fn set_mask(slot: &mut Slot, mask: u64) {
    let waits = || slot.puts_signal_off();
    if !waits() {
        let _ = signal::set_mask(mask);
    }
    // A signal may have been put off between the two: then the handler has noted the mask from before.
    if waits() {
        slot.deferred.mask = mask;
    }
}

/// rt_sigreturn: makes the program's frame fit for the kernel. The gate then issues the call on it.
pub fn rt_sigreturn(slot: &mut Slot) -> Result<Outcome, Errno> {
    let at = slot.frame.rsp;
    // SAFETY: any bit pattern is a valid context; the kernel checks it again.
    let mut context: Context = unsafe { user::read(at) }?;
    let shown = context.stack;
    if on_alternate_stack(slot, slot.frame.rsp) && slot.alt_bytes != 0 {
        // As the kernel: the stack in use cannot be changed.
    } else {
        let _ = set_alternate_stack(slot, &shown);
    }
    slot.extra_mask = context.mask & NEVER_BLOCKED;
    context.mask &= !NEVER_BLOCKED;
    context.stack = crate::family::threads::signal_stack(slot);
    context.machine.rip = sites::executable(context.machine.rip);
    // SAFETY: the program's own frame, where the kernel is about to read it.
    unsafe { user::write(at, &context) }?;
    slot.faults_blocked.store(context.mask & FAULTS_OF_ACCESS, Ordering::Relaxed);
    // From here to the kernel's call nothing may come in between: the frame is the kernel's now, not the program's. What
    // has been put off already comes when the call has set the frame's mask.
    signal::set_mask(!FAULTS);
    let waits = slot.puts_signal_off();
    if waits {
        slot.deferred.mask = context.mask;
    }
    let recovers = super::recovery::waits(slot) && slot.extra_mask & bit(libc::SIGPWR as u32) == 0;
    if recovers || slot.pending.load(Ordering::Relaxed) != 0 {
        kick();
    }
    Ok(Outcome::Sigreturn)
}

/// rt_sigsuspend(2): the mask without ours.
pub fn rt_sigsuspend(slot: &mut Slot, mask: u64, size: u64) -> Result64 {
    if size != 8 {
        return error(libc::EINVAL);
    }
    // SAFETY: a mask.
    let wanted: u64 = unsafe { user::read(mask) }?;
    if wanted & bit(libc::SIGPWR as u32) == 0 && super::recovery::waits(slot) {
        let (own, mask) = (slot.extra_mask, signal::mask());
        slot.extra_mask = wanted & NEVER_BLOCKED;
        let comes = super::recovery::unblocked(slot, mask);
        slot.extra_mask = own;
        if comes {
            return error(libc::EINTR);
        }
    }
    slot.temp_mask = wanted & !NEVER_BLOCKED;
    slot.temp_own_mask = wanted & NEVER_BLOCKED;
    slot.temp_valid = 1;
    slot.scratch[0] = wanted & !NEVER_BLOCKED;
    let address = &raw const slot.scratch[0] as u64;
    let result = wait_call(slot, libc::SYS_rt_sigsuspend, [address, 8, 0, 0, 0, 0]);
    // What is put off comes under this mask, or has the call issued again.
    if slot.pending.load(Ordering::Relaxed) == 0 {
        slot.temp_valid = 0;
    }
    result
}

/// The program's mask at `address` without our two signals, at a place that the kernel may read; 0 stays 0.
pub fn filtered_mask(slot: &mut Slot, address: u64, scratch: usize) -> Result64 {
    if address == 0 {
        return Ok(0);
    }
    // SAFETY: a mask.
    let wanted: u64 = unsafe { user::read(address) }?;
    slot.scratch[scratch] = wanted & !NEVER_BLOCKED;
    Ok(&raw const slot.scratch[scratch] as u64)
}

/// signalfd(2) and signalfd4(2): never ours.
pub fn signalfd(slot: &mut Slot, number: i64, arguments: [u64; 6]) -> Result64 {
    let [fd, mask, size, flags, ..] = arguments;
    // The kernel looks at the size first.
    let filtered = if size == 8 { filtered_mask(slot, mask, 0)? } else { mask };
    crate::gate::raw(number, [fd, filtered, size, flags, 0, 0])
}
