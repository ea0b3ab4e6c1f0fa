//! The constructor: runs before every other one (the library is linked `-z initfirst`), single-threaded, and leaves the
//! program inside its region. If anything fails the program ends with status 125: it never runs unprotected.
#![allow(unsafe_code)]

use super::{adopt, entrance, handler, maps, patch, place};
use crate::control;
use crate::die;
use crate::family::{clocks, ids::SI_TKILL, signals, threads};
use crate::process_state;
use crate::text::Text;
use core::sync::atomic::Ordering;
use zhuque_abi::header::{Globals, Header, MAGIC, PATH_BYTES, Phase, Stdio, VERSION, phase_word};
use zhuque_abi::layout::{
    BOOT_FILE, CONTROL_BYTES, CONTROL_FILE, ENV_REGION, GLOBALS_OFFSET, LIFE_BYTES, LIFE_OFFSET, OWN_DESCRIPTORS,
    RESERVED_BYTES, SLICE_BYTES, SLICE_PREFIX, SLICES, own_descriptors, page_up,
};
use zhuque_abi::life::{BOOT_MAGIC, Boot, RegionDescriptors};
use zhuque_abi::slot::{Slot, state};
use zhuque_sys::{Errno, fs, mm, process, signal, time};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

unsafe extern "C" {
    fn zhuque_on_stack(stack: u64, function: extern "C" fn(u64), argument: u64);
}

/// ld.so's call.
///
/// # Safety
/// Called once by ld.so: glibc's, with the program's argument and environment vectors; or musl's, without arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn zhuque_constructor(count: i32, arguments: u64, environment: u64) {
    let environment = vector(count, arguments, environment);
    // SAFETY: the vectors end with a null pointer, and their strings with a zero.
    if let Some(memfd) = unsafe { entrance::wanted(environment) } {
        entrance::enter(memfd);
    }
    // SAFETY: as above.
    let Some(found) = (unsafe { take_environment(environment) }) else { return };
    let mask = signal::set_mask(!0);
    let mut region = [0u8; PATH_BYTES];
    let Some((lock, path)) = parse(found, &mut region) else {
        fail(b"the region's variable is malformed", 0);
    };
    match set_up(lock, path) {
        Ok(boot) => finish(&boot, mask),
        Err(Errno(number)) => fail(b"cannot set up the region", number),
    }
}

/// The environment: as ld.so has given it, if it has given anything, else as the kernel has.
fn vector(count: i32, arguments: u64, environment: u64) -> *mut *mut u8 {
    const WORD: u64 = size_of::<usize>() as u64;
    /// More than the vectors are above this frame.
    const NEAR: u64 = 64 << 20;
    let here = &raw const count as u64;
    let given = arguments.wrapping_add((count as u64).wrapping_add(1).wrapping_mul(WORD)) == environment;
    if given && (here..here + NEAR).contains(&arguments) {
        return environment as *mut *mut u8;
    }
    // First there is the number of arguments; a null pointer follows them (x86-64 psABI, 3.4.1).
    let start = process_state::image()[2];
    if start == 0 {
        fail(b"cannot read /proc/self/stat", 0);
    }
    // SAFETY: the stack as the kernel has set it up, on which this runs.
    let count = unsafe { *(start as *const u64) };
    (start + (count + 2) * WORD) as *mut *mut u8
}

/// Says why and ends the program.
fn fail(what: &[u8], number: i32) -> ! {
    let mut text = Text::of(what);
    if number != 0 {
        text.push(b": error ").number(number as u64);
    }
    die::fail(&text)
}

/// The string at `pointer`.
///
/// # Safety
/// It ends with a zero and lives as long as the process.
pub unsafe fn string(pointer: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: the caller's argument.
    unsafe {
        while *pointer.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(pointer, length)
    }
}

/// Finds the region's variable and takes it and our part of LD_PRELOAD out of the environment.
///
/// # Safety
/// `environment` is ld.so's vector.
unsafe fn take_environment(environment: *mut *mut u8) -> Option<&'static [u8]> {
    let mut found = None;
    let (mut from, mut to) = (0, 0);
    // SAFETY: the vector ends with a null pointer; entries are only moved towards its start.
    unsafe {
        while !(*environment.add(from)).is_null() {
            let mut entry = *environment.add(from);
            let text = string(entry);
            from += 1;
            if let Some(value) = text.strip_prefix(ENV_REGION.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
                found = Some(value);
                continue;
            }
            if let Some(value) = text.strip_prefix(b"LD_PRELOAD=") {
                // Ours is the first of the list; what follows the colon is the program's own.
                match value.iter().position(|&byte| byte == b':') {
                    None => continue,
                    Some(colon) => {
                        entry = entry.add(colon + 1);
                        core::ptr::copy_nonoverlapping(b"LD_PRELOAD=".as_ptr(), entry, 11);
                    }
                }
            }
            *environment.add(to) = entry;
            to += 1;
        }
        *environment.add(to) = core::ptr::null_mut();
    }
    found
}

/// `FD:DIRECTORY`.
fn parse<'a>(value: &[u8], path: &'a mut [u8; PATH_BYTES]) -> Option<(i32, &'a [u8])> {
    let (lock, rest) = maps::number(value, 10)?;
    let directory = rest.strip_prefix(b":")?;
    path.get_mut(..directory.len()).filter(|room| room.len() < PATH_BYTES)?.copy_from_slice(directory);
    Some((i32::try_from(lock).ok()?, path.get(..directory.len())?))
}

/// Maps the region's control data, and takes the program in.
fn set_up(lock: i32, region: &[u8]) -> Result<Boot, Errno> {
    let mut path = fs::Path::new();
    let flags = libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let directory = fs::open_at(libc::AT_FDCWD, path.push(region), libc::O_RDONLY | libc::O_DIRECTORY | flags, 0)?;
    let boot = read_boot(directory)?;
    let control_fd = open_in(directory, &[CONTROL_FILE.as_bytes()], libc::O_RDWR | flags)?;
    let base = map_control(control_fd, control::sharing_with(boot.flags))?;
    control::set_base(base);
    let mut own = RegionDescriptors { slices: [-1; SLICES], control: control_fd, directory, lock, first: -1, end: -1 };
    for (index, slice) in own.slices.iter_mut().enumerate() {
        let digits = [b'0' + (index / 10) as u8, b'0' + (index % 10) as u8];
        *slice = open_in(directory, &[SLICE_PREFIX.as_bytes(), &digits], libc::O_RDWR | flags)?;
    }
    move_descriptors(&mut own)?;
    check_and_clear(&own)?;
    find_text()?;
    // A save reads all of it: in a store that is full by then, it must be there.
    fs::allocate(own.control, GLOBALS_OFFSET, page_up(size_of::<Globals>() as u64))?;
    set_life(&boot, own);
    crate::journal::reserve()?;
    set_globals(region);
    process_state::show_own_arguments();
    let slot = first_slot()?;
    signals::adopt();
    let (scratch, bytes) = control::scratch();
    // SAFETY: the scratch memory's upper end is a stack for this while; its lower part is adoption's buffer.
    unsafe { zhuque_on_stack(scratch + bytes, adopt_on_scratch, &raw const boot.vdso as u64) };
    patch::patch_all();
    inherit(slot);
    Ok(boot)
}

extern "C" fn adopt_on_scratch(vdso: u64) {
    // The argument lies on the main stack, which is about to be replaced: take it along.
    // SAFETY: it is the address of the caller's local.
    let vdso = unsafe { *(vdso as *const zhuque_abi::life::Vdso) };
    adopt::adopt_all(&vdso);
}

fn open_in(directory: i32, name: &[&[u8]], flags: i32) -> Result<i32, Errno> {
    let mut path = fs::Path::new();
    for part in name {
        path.push(part);
    }
    fs::open_at(directory, &path, flags, 0)
}

fn read_boot(directory: i32) -> Result<Boot, Errno> {
    let file = open_in(directory, &[BOOT_FILE.as_bytes()], libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW)?;
    let mut bytes = [0u8; size_of::<Boot>()];
    let read = fs::read(file, &mut bytes)?;
    fs::close(file)?;
    // SAFETY: plain integers; the magic says whether they mean anything.
    let boot: Boot = unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) };
    if read < bytes.len() || boot.magic != BOOT_MAGIC || boot.version != VERSION {
        return Err(Errno(libc::EPROTO));
    }
    Ok(boot)
}

/// Reserves the addresses and maps the control file and the life area.
fn map_control(fd: i32, sharing: i32) -> Result<u64, Errno> {
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh reservation, filled in at once.
    unsafe {
        let base = mm::mmap(0, RESERVED_BYTES, 0, anonymous, -1, 0)?;
        mm::mmap(base, CONTROL_BYTES, READ_WRITE, sharing | libc::MAP_FIXED, fd, 0)?;
        mm::mmap(base + LIFE_OFFSET, LIFE_BYTES, READ_WRITE, anonymous | libc::MAP_FIXED, -1, 0)?;
        Ok(base)
    }
}

/// Moves the region's descriptors out of the program's way.
fn move_descriptors(own: &mut RegionDescriptors) -> Result<(), Errno> {
    let nofile = libc::RLIMIT_NOFILE;
    let [soft, hard] = process::limit(nofile, None)?;
    // After an exec the lock's descriptor lies where an earlier image had put it: in the way of the others.
    let lock = fs::fcntl(own.lock, libc::F_DUPFD_CLOEXEC, 0)? as i32;
    fs::close(own.lock)?;
    own.lock = lock;
    // What the program was given stays where it is.
    let first = free_numbers(own_descriptors(soft, hard), hard).ok_or(Errno(libc::EMFILE))?;
    let end = first + OWN_DESCRIPTORS;
    if end > soft {
        process::limit(nofile, Some([end, hard]))?;
    }
    let mut next = first as i32;
    let moved = own.slices.iter_mut().chain([&mut own.control, &mut own.directory, &mut own.lock]);
    for fd in moved {
        fs::dup_to(*fd, next, true)?;
        fs::close(*fd)?;
        *fd = next;
        next += 1;
    }
    (own.first, own.end) = (first as i32, next);
    if end > soft {
        process::limit(nofile, Some([soft, hard]))?;
    }
    Ok(())
}

/// Where there is room for the region's descriptors: from `wanted` upwards, else downwards.
fn free_numbers(wanted: u64, hard: u64) -> Option<u64> {
    let open = |number: &u64| fs::fcntl(*number as i32, libc::F_GETFD, 0).is_ok();
    let mut first = wanted;
    while let Some(used) = (first..first + OWN_DESCRIPTORS).rfind(open) {
        first = used + 1;
    }
    if first + OWN_DESCRIPTORS <= hard {
        return Some(first);
    }
    let mut end = wanted + OWN_DESCRIPTORS;
    while let Some(used) = (end.checked_sub(OWN_DESCRIPTORS)?..end).find(open) {
        end = used;
    }
    Some(end - OWN_DESCRIPTORS)
}

/// Checks the header, and empties a region that an earlier image of this program has used.
fn check_and_clear(own: &RegionDescriptors) -> Result<(), Errno> {
    // SAFETY: the control mapping has been made just now.
    let header = unsafe { &mut *control::header() };
    let phase = header.phase.load(Ordering::Acquire);
    if header.magic != MAGIC || header.version != VERSION || header.size as usize != size_of::<Header>() {
        return Err(Errno(libc::EPROTO));
    }
    match Phase::from_raw(phase as u8) {
        Some(Phase::Creating) => {}
        Some(Phase::Starting) => {
            let start = GLOBALS_OFFSET;
            // SAFETY: nobody else runs. Children and what stdio was belong to the process, not to the image.
            let (children, stdio) = unsafe { ((*control::globals()).children, (*control::globals()).stdio) };
            // SAFETY: as above.
            let hard = unsafe { (*control::globals()).descriptors_hard.load(Ordering::Relaxed) };
            fs::punch_hole(own.control, start, CONTROL_BYTES - start)?;
            // SAFETY: as above.
            unsafe {
                (*control::globals()).children = children;
                (*control::globals()).stdio = stdio;
                (*control::globals()).descriptors_hard.store(hard, Ordering::Relaxed);
            }
            for &slice in &own.slices {
                fs::punch_hole(slice, 0, SLICE_BYTES)?;
            }
        }
        _ => return Err(Errno(libc::EBUSY)),
    }
    header.phase.store(phase_word(phase >> 8, Phase::Starting), Ordering::Release);
    header.base = control::base();
    Ok(())
}

/// Finds this library's text, for the gate.
fn find_text() -> Result<(), Errno> {
    let (scratch, _) = control::scratch();
    // SAFETY: the scratch memory is nobody's at start.
    let buffer = unsafe { core::slice::from_raw_parts_mut(scratch as *mut u8, 1 << 20) };
    let text = maps::read_whole(b"/proc/self/maps", buffer)?;
    let gate = place::gate();
    let ours = maps::entries(text).find(|entry| (entry.start..entry.end).contains(&gate)).ok_or(Errno(libc::EFAULT))?;
    place::set_text(ours.start, ours.end);
    Ok(())
}

fn set_life(boot: &Boot, own: RegionDescriptors) {
    // SAFETY: start is single-threaded.
    unsafe {
        let header = &*control::header();
        let life = &mut *control::life_mut();
        life.generation = header.phase.load(Ordering::Relaxed) >> 8;
        life.pid = process::pid();
        life.parent = process::parent();
        life.flags = boot.flags;
        life.hold_up_ns = boot.hold_up_ns;
        life.descriptors = own;
        clocks::set_offsets(life, [header.monotonic_offset, header.boottime_offset, header.raw_offset]);
        life.ready.store(1, Ordering::Release);
    }
}

fn set_globals(region: &[u8]) {
    // SAFETY: start is single-threaded; the vectors are ld.so's.
    unsafe {
        let globals = &mut *control::globals();
        globals.region[..region.len()].copy_from_slice(region);
        globals.region[region.len()] = 0;
        globals.uid = process::other(libc::SYS_getuid, [0; 6]).unwrap_or(0) as u32;
        process::affinity(0, &mut globals.affinity);
        globals.image = process_state::image();
        process_state::note_processor(&mut *control::header());
        // An image that was executed in the region keeps what the first one was started with.
        if globals.stdio.iter().all(|entry| entry.open == 0) {
            for (number, entry) in globals.stdio.iter_mut().enumerate() {
                *entry = stdio(number as i32);
            }
        }
    }
}

fn stdio(number: i32) -> Stdio {
    match fs::stat_fd(number) {
        Ok(stat) => Stdio { device: stat.st_dev, inode: stat.st_ino, open: 1, mode: stat.st_mode },
        Err(_) => Stdio::default(),
    }
}

/// The main thread's slot. Its GS base and signal stack are set; dispatch is not on yet.
fn first_slot() -> Result<&'static mut Slot, Errno> {
    // SAFETY: start is single-threaded.
    unsafe {
        let slot = &mut *threads::take_slot()?;
        let header = &mut *control::header();
        // An exec in a later life keeps the id that the program has known since its first.
        if header.virtual_pid == 0 {
            header.virtual_pid = process::pid();
            header.virtual_parent = process::parent();
        }
        slot.virtual_tid.store(header.virtual_pid, Ordering::Relaxed);
        slot.state.store(state::LIVE, Ordering::Release);
        process::set_gs_base(slot.this);
        let stack = threads::signal_stack(slot);
        signal::set_alternate_stack(stack.address, stack.bytes, 0)?;
        control::life_thread(0).tid.store(process::tid(), Ordering::Release);
        Ok(slot)
    }
}

core::arch::global_asm!(
    ".weak __rseq_offset",
    ".weak __rseq_size",
    ".weak __rseq_flags",
    ".hidden zhuque_rseq_symbols",
    ".globl zhuque_rseq_symbols",
    "zhuque_rseq_symbols:",
    "mov rax, [rip + __rseq_offset@GOTPCREL]",
    "mov rdx, [rip + __rseq_size@GOTPCREL]",
    "ret",
);

#[repr(C)]
struct RseqSymbols {
    offset: *const isize,
    size: *const u32,
}

unsafe extern "C" {
    fn zhuque_rseq_symbols() -> RseqSymbols;
}

/// Takes over what ld.so has registered in the kernel for the main thread.
fn inherit(slot: &mut Slot) {
    let (head, bytes) = process::robust_list();
    (slot.robust_list, slot.robust_bytes) = (head, bytes);
    let mut clear = 0u64;
    // SAFETY: PR_GET_TID_ADDRESS writes a local; the two registrations are taken back, since the kernel would write to
    // the program's memory when the process dies; they are made again before this thread's real exit.
    unsafe {
        let _ = process::prctl(40, &raw mut clear as usize, 0, 0, 0);
        slot.clear_tid = clear;
        process::set_robust_list(0, 24);
        process::set_tid_address(0);
    }
    if let Some((address, bytes, signature)) = loaders_rseq() {
        (slot.rseq, slot.rseq_bytes, slot.rseq_signature) = (address, bytes, signature);
    }
}

/// What ld.so has registered with rseq(2): glibc 2.35 and later. Address, bytes, signature.
fn loaders_rseq() -> Option<(u64, u32, u32)> {
    // SAFETY: the symbols are ld.so's, constant since it has set them.
    unsafe {
        let symbols = zhuque_rseq_symbols();
        if symbols.offset.is_null() || symbols.size.is_null() || *symbols.size == 0 {
            return None;
        }
        // The kernel's structure has at least 32 bytes, and glibc's signature is fixed.
        Some((process::fs_base().wrapping_add_signed(*symbols.offset as i64), (*symbols.size).max(32), 0x5305_3053))
    }
}

/// Takes back what ld.so has registered with the kernel, which would write to memory that is about to go.
pub fn forget_registrations() {
    const UNREGISTER: i32 = 1;
    // SAFETY: each is taken back as it was made.
    unsafe {
        process::set_robust_list(0, 24);
        process::set_tid_address(0);
        if let Some((address, bytes, signature)) = loaders_rseq() {
            let _ = process::rseq(address, bytes, UNREGISTER, signature);
        }
    }
}

/// Takes the SIGPWR that has come while the program was being taken in: a failure, unless a thread of the image before this
/// one has sent it, which had something for the others to look at (and heard of none).
fn has_failed(power: u64) -> bool {
    let (mut info, mut failed) = ([0; 16], crate::save::was_announced());
    while signal::take_pending(power, &mut info).is_ok() {
        let kick = info[1] as u32 == SI_TKILL && info[2] as u32 == process::pid();
        failed |= !kick;
    }
    failed
}

/// The last step: dispatch on, phase Running, signals as the program is to have them.
fn finish(boot: &Boot, mask: u64) {
    let power = signal::bit(libc::SIGPWR as u32);
    // SAFETY: start is single-threaded, and the slot is this thread's.
    let slot = unsafe { &mut *handler::current_slot() };
    slot.extra_mask = if boot.power_blocked != 0 { power } else { 0 };
    let (start, end) = place::text();
    if let Err(Errno(number)) = process::dispatch_on(start, end - start) {
        fail(b"the kernel refuses Syscall User Dispatch (Linux 5.11 or later is needed)", number);
    }
    // SAFETY: start is single-threaded.
    unsafe {
        let header = &mut *control::header();
        header.pid.store(process::pid(), Ordering::Relaxed);
        header.shim_start = start;
        header.revive = crate::revive::revive as *const () as u64;
        header.outside = crate::outside::lead as *const () as u64;
        [header.exit_first, header.exit_end] = place::last_of_thread();
        crate::outside::note_life(header);
        process_state::note_beginning(&mut *control::life_mut(), boot.executed != 0);
        if header.created_ns == 0 {
            header.created_ns = time::now(libc::CLOCK_REALTIME) as u64;
        }
    }
    let generation = control::life().generation;
    control::phase().store(phase_word(generation, Phase::Running), Ordering::Release);
    if has_failed(power) {
        crate::save::announce();
        handler::kick();
    }
    let mask = if boot.executed != 0 { boot.exec_mask } else { mask };
    slot.faults_blocked.store(mask & handler::FAULTS_OF_ACCESS, Ordering::Relaxed);
    signal::set_mask(mask & !handler::NEVER_BLOCKED);
}
