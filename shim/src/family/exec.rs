//! execve(2) of the program itself: a new image in the same region.
//!
//! The new image is preloaded with the shim whatever environment the program gives it. SIGPWR stays blocked from
//! before the exec until the new image has been adopted, so an announced failure waits for that.
#![allow(unsafe_code)]

use crate::control::{self, Lock};
use crate::entry::handler::FAULTS_OF_ACCESS;
use crate::family::clocks::in_one_life;
use crate::gate::{Result64, again, error, raw};
use crate::user;
use core::sync::atomic::Ordering;
use zhuque_abi::header::{PATH_BYTES, Phase, VERSION, phase_word};
use zhuque_abi::layout::{BOOT_FILE, CONTROL_FILE, ENV_REGION, PAGE, SHIM_FILE};
use zhuque_abi::life::{BOOT_MAGIC, Boot, Vdso, boot_flag};
use zhuque_abi::slot::Slot;
use zhuque_sys::signal::bit;
use zhuque_sys::{Errno, fs, mm, process, signal};

const POWER: u64 = bit(libc::SIGPWR as u32);
/// Most variables that an environment may have here.
const MAX_VARIABLES: usize = 1 << 16;

/// execve and execveat: directory, path, arguments, environment, flags.
pub fn execve(slot: &mut Slot, a: [u64; 5]) -> Result64 {
    let [directory, path, arguments, environment, flags] = a;
    refuse_unprotected(directory, path, flags)?;
    refuse_sharing()?;
    // But for the faults of what is read of the program, where it lets them through.
    let before = slot.faults_blocked.load(Ordering::Relaxed);
    let mask = signal::set_mask(!FAULTS_OF_ACCESS | before);
    // What has been put off, and a failure, come first: the new image would know nothing of them.
    if slot.pending.load(Ordering::Acquire) != 0 || crate::save::announced() {
        signal::set_mask(mask);
        return again(slot);
    }
    let result = execute(slot, mask, [directory, path, arguments, environment, flags]);
    slot.faults_blocked.store(before, Ordering::Relaxed);
    signal::set_mask(mask);
    result.unwrap_or_else(|| again(slot))
}

// What has a path or a page of its own is not inlined: the gate's stack has room for one at a time.

/// The exec itself, with all signals blocked. The new image takes `mask` from the boot file. None: not now.
#[inline(never)]
fn execute(slot: &Slot, mask: u64, a: [u64; 5]) -> Option<Result64> {
    // Nobody maps anything where the window onto the boot file is.
    let _memory = super::memory::Memory::lock();
    let _lock = Lock::state();
    // From here on nobody saves it from outside: the environment lies in this life's scratch memory.
    enter(Phase::Starting);
    // Somebody wanted to fork while this thread was on its way to the locks, or power fails: that comes first. Then the others
    // stand still, with their signals blocked: none of them is ended with a failure in hand that it has not told yet.
    let called = signal::pending() & POWER != 0 || !crate::save::stop_for_fork(slot);
    let result = (!called).then(|| {
        let result = in_scratch(slot, mask, a);
        crate::save::release_after_fork();
        result
    });
    let [starting, running] = [Phase::Starting, Phase::Running].map(|phase| phase_word(control::generation(), phase));
    // Unless a save has given up waiting for this thread.
    let _ = control::phase().compare_exchange(starting, running, Ordering::AcqRel, Ordering::Acquire);
    result
}

/// The same in that phase. Comes back with an error only.
fn in_scratch(slot: &Slot, mask: u64, a: [u64; 5]) -> Result64 {
    let [directory, path, arguments, environment, flags] = a;
    let environment = build_environment(environment)?;
    tell_new_image(slot.extra_mask & POWER != 0, mask)?;
    let lock = control::life().descriptors.lock;
    let _ = fs::fcntl(lock, libc::F_SETFD, 0);
    // The kernel's mask is the new image's until that has its own.
    slot.faults_blocked.store(FAULTS_OF_ACCESS, Ordering::Relaxed);
    signal::set_mask(!0);
    let result = raw(libc::SYS_execveat, [directory, path, arguments, environment, flags, 0]);
    let _ = fs::fcntl(lock, libc::F_SETFD, libc::FD_CLOEXEC as u64);
    result
}

/// The region's phase in this life. Who is taken from outside before it is one of the next life's.
fn enter(phase: Phase) {
    in_one_life(|| control::phase().store(phase_word(control::generation(), phase), Ordering::Release));
}

/// Whether the new image could open the region, with the ids that the program has now. Capabilities that it may have
/// kept besides are gone after the exec, so opening it here proves nothing for another user than the owner.
#[inline(never)]
fn region_in_reach() -> bool {
    // SAFETY: no memory involved; the field is constant after start.
    let (user, owner) = unsafe { (process::other(libc::SYS_geteuid, [0; 6]), (*control::globals()).uid) };
    if user.is_ok_and(|user| user != 0 && user as u32 != owner) {
        return false;
    }
    let mut buffer = [0u8; PATH_BYTES];
    let region = region_path(&mut buffer);
    [(SHIM_FILE, libc::O_RDONLY), (CONTROL_FILE, libc::O_RDWR)].iter().all(|(name, access)| {
        let mut path = fs::Path::new();
        path.push(region).push(b"/").push(name.as_bytes());
        let opened = fs::open_at(libc::AT_FDCWD, &path, access | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0);
        opened.is_ok_and(|fd| fs::close(fd).is_ok())
    })
}

/// An image that does not load the shim would run on unprotected, and in silence: refused here, by name.
#[inline(never)]
fn refuse_unprotected(directory: u64, path: u64, flags: u64) -> Result<(), Errno> {
    let mut buffer = [0u8; PATH_BYTES];
    let name = user::read_string(path, &mut buffer)?;
    let mut path = fs::Path::new();
    path.push(name);
    if !region_in_reach() {
        if !name.is_empty() {
            // Whoever looks along PATH tries names that are not there.
            fs::stat_at(directory as i32, &path, 0)?;
        }
        let mut text = crate::text::Text::of(b"exec of ");
        text.push(name).push(b" is refused: the program has given up the rights to its region, so zhuque could not go");
        crate::die::say(text.push(b" with it"));
        return error(libc::EACCES);
    }
    super::exec_check::check(directory as i32, &path, flags as i32).map_err(|refusal| {
        let mut text = crate::text::Text::of(b"exec of ");
        text.push(name).push(b" is refused: ").push(refusal.why());
        crate::die::say(&text);
        Errno(libc::EACCES)
    })
}

/// A new image uses the same files as the one before: a child that still shares memory with that would write into it.
fn refuse_sharing() -> Result<(), Errno> {
    let sharing = super::memory::Memory::lock().tree.iter().any(|run| super::memory::shared(&run));
    if sharing && super::processes::any_sharing() {
        crate::gate::say_refused(libc::SYS_execve as u64, b"exec", b"a child still shares memory with the program");
        return error(libc::EBUSY);
    }
    Ok(())
}

/// Tells the new image, in the boot file, what holds in this life (the machine, so its vdso, may be another than at
/// the start), the program's mask, and whether it has SIGPWR blocked itself.
#[inline(never)]
fn tell_new_image(blocked: bool, mask: u64) -> Result<(), Errno> {
    let mut path = fs::Path::new();
    path.push(BOOT_FILE.as_bytes());
    let life = control::life();
    let boot = Boot {
        magic: BOOT_MAGIC,
        version: VERSION,
        flags: life.flags,
        // The kernel chooses another place for it.
        vdso: Vdso { base: 0, ..life.vdso },
        hold_up_ns: life.hold_up_ns,
        power_blocked: u64::from(blocked),
        executed: 1,
        exec_mask: mask,
    };
    let file = fs::open_at(life.descriptors.directory, &path, libc::O_RDWR | libc::O_CLOEXEC, 0)?;
    // Not by write(2), for which a limit of file sizes counts that the program may have set for what it executes.
    let flags = libc::MAP_SHARED;
    // SAFETY: a window at an address of the kernel's choice onto a file that was as long before; used here only.
    let done = unsafe {
        mm::mmap(0, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0).and_then(|window| {
            let written = user::copy(window, &raw const boot as u64, size_of::<Boot>());
            mm::munmap(window, PAGE).and(written)
        })
    };
    if life.flags & boot_flag::SYNC_REGION != 0 {
        let _ = fs::sync_data(file);
    }
    fs::close(file)?;
    done
}

/// Bump allocation in the life's scratch memory, which is the caller's under the state lock.
struct Bump {
    next: u64,
    end: u64,
}

impl Bump {
    fn take(&mut self, bytes: u64) -> Result<u64, Errno> {
        let at = (self.next + 15) & !15;
        self.next = at + bytes;
        if self.next > self.end { error(libc::E2BIG) } else { Ok(at) }
    }

    fn put(&mut self, parts: &[&[u8]]) -> Result<u64, Errno> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let at = self.take(length as u64 + 1)?;
        let mut to = at;
        for part in parts {
            // SAFETY: the memory was taken just now.
            unsafe { user::copy(to, part.as_ptr() as u64, part.len()) }?;
            to += part.len() as u64;
        }
        // SAFETY: as above.
        unsafe { user::write(to, &0u8) }?;
        Ok(at)
    }
}

/// The program's environment with the region's two variables. Strings are the program's where they are unchanged.
fn build_environment(environment: u64) -> Result64 {
    let (scratch, bytes) = control::scratch();
    let mut bump = Bump { next: scratch, end: scratch + bytes };
    let mut count = 0;
    while count < MAX_VARIABLES && environment != 0 {
        // SAFETY: an integer.
        if unsafe { user::read::<u64>(environment + count as u64 * 8) }? == 0 {
            break;
        }
        count += 1;
    }
    let array = bump.take((count as u64 + 3) * 8)?;
    let mut used = 0;
    let mut push = |value: u64| -> Result<(), Errno> {
        // SAFETY: the array has room for every variable, two more and the end.
        unsafe { user::write(array + used * 8, &value) }?;
        used += 1;
        Ok(())
    };
    let mut preload = 0;
    for index in 0..count {
        // SAFETY: an integer.
        let variable: u64 = unsafe { user::read(environment + index as u64 * 8) }?;
        if begins(variable, b"LD_PRELOAD=")? {
            preload = variable + b"LD_PRELOAD=".len() as u64;
        } else if !begins(variable, ENV_REGION.as_bytes())? {
            push(variable)?;
        }
    }
    let mut region = [0u8; PATH_BYTES];
    let region = region_path(&mut region);
    let lock = control::life().descriptors.lock;
    let mut number = crate::text::Text::new();
    number.number(lock as u64);
    push(bump.put(&[ENV_REGION.as_bytes(), b"=", number.as_bytes(), b":", region])?)?;
    let mut old = [0u8; PATH_BYTES];
    let old = user::read_string(preload, &mut old)?;
    let separator: &[u8] = if old.is_empty() { b"" } else { b":" };
    push(bump.put(&[b"LD_PRELOAD=", region, b"/", SHIM_FILE.as_bytes(), separator, old])?)?;
    push(0)?;
    Ok(array)
}

/// The path of the region's directory.
pub fn region_path(buffer: &mut [u8; PATH_BYTES]) -> &[u8] {
    // SAFETY: constant after start.
    unsafe { *buffer = (*control::globals()).region };
    let length = buffer.iter().position(|&byte| byte == 0).unwrap_or(0);
    &buffer[..length]
}

/// Whether the program's string at `address` begins with `prefix`.
fn begins(address: u64, prefix: &[u8]) -> Result<bool, Errno> {
    for (index, &wanted) in prefix.iter().enumerate() {
        // SAFETY: a byte.
        if unsafe { user::read::<u8>(address + index as u64) }? != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}
