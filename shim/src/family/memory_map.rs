//! mmap(2): where to, and what it becomes. README, Design, says why.
#![allow(unsafe_code)]

use super::memory::{Memory, fresh_slices, full, not_ours, punch, region, shared, unmap};
use super::memory_files::file_of;
use crate::control;
use crate::gate::{Result64, error};
use zhuque_abi::layout::{PAGE, TASK_SIZE, page_down, page_up};
use zhuque_abi::maps::{Kind, flag};
use zhuque_model::maptree::Attr;
use zhuque_sys::{Errno, fs, mm};

const MAP_SHARED: u64 = libc::MAP_SHARED as u64;
const MAP_PRIVATE: u64 = libc::MAP_PRIVATE as u64;
const MAP_SHARED_VALIDATE: u64 = libc::MAP_SHARED_VALIDATE as u64;
const MAP_TYPE: u64 = 15;
const MAP_FIXED: u64 = libc::MAP_FIXED as u64;
const MAP_FIXED_NOREPLACE: u64 = libc::MAP_FIXED_NOREPLACE as u64;
const MAP_ANONYMOUS: u64 = libc::MAP_ANONYMOUS as u64;
const MAP_32BIT: u64 = libc::MAP_32BIT as u64;
const MAP_HUGETLB: u64 = libc::MAP_HUGETLB as u64;
/// What the kernel is to see of the program's flags on region memory.
const MAP_KEPT: u64 = (libc::MAP_POPULATE | libc::MAP_LOCKED | libc::MAP_NONBLOCK) as u64;
const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
/// Lowest address that is handed out.
const LOWEST: u64 = 0x1_0000;
/// Mappings of whole huge pages are placed so that huge pages fit.
const HUGE: u64 = 2 << 20;

/// What was asked for, checked.
struct Request {
    bytes: u64,
    prot: u64,
    flags: u64,
    fd: i32,
    offset: u64,
}

/// mmap(2).
pub fn mmap(memory: &mut Memory, a: [u64; 6]) -> Result64 {
    let [address, bytes, prot, flags, fd, offset] = a;
    let kind = flags & MAP_TYPE;
    // In the kernel's order.
    if offset.is_multiple_of(PAGE) && flags & MAP_ANONYMOUS == 0 {
        let flags = fs::fcntl(fd as i32, libc::F_GETFL, 0)?;
        if flags & libc::O_PATH as u64 != 0 {
            return error(libc::EBADF);
        }
    }
    if bytes == 0 || !offset.is_multiple_of(PAGE) {
        return error(libc::EINVAL);
    }
    let bytes = page_up(bytes);
    if bytes > TASK_SIZE || (flags & MAP_ANONYMOUS != 0 && flags & MAP_HUGETLB != 0) {
        return error(libc::ENOMEM);
    }
    match kind {
        MAP_SHARED | MAP_PRIVATE => {}
        MAP_SHARED_VALIDATE if flags & MAP_ANONYMOUS == 0 => {}
        _ => return error(libc::EINVAL),
    }
    if memory.tree.spare() < 3 {
        return error(libc::ENOMEM);
    }
    let request = Request { bytes, prot: prot & 7, flags, fd: fd as i32, offset };
    let place = choose(memory, address, &request)?;
    let end = place + bytes;
    let fixed = if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) == MAP_FIXED {
        not_ours(memory, place, end)?;
        not_with_children(memory, place, end)?;
        crate::entry::patch::library_unmapped(memory, place, end);
        libc::MAP_FIXED
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    let attr = if flags & MAP_ANONYMOUS != 0 {
        map_anonymous(memory, place, &request, fixed)?
    } else {
        map_file(memory, place, &request, fixed)?
    };
    memory.tree.set(place, end, attr).map_err(full)?;
    if attr.kind == Kind::FilePrivate && attr.prot as i32 & libc::PROT_EXEC != 0 {
        crate::entry::patch::library_mapped(memory, place, end, &attr);
    }
    Ok(place)
}

/// Memory that forked children use cannot make room for something else: they would write into it.
pub fn not_with_children(memory: &Memory, start: u64, end: u64) -> Result<(), Errno> {
    if memory.tree.range(start, end).any(|run| shared(&run)) && super::processes::any_sharing() {
        let why = b"a child still uses it";
        crate::gate::say_refused(libc::SYS_mmap as u64, b"moving or replacing shared memory", why);
        return error(libc::ENOMEM);
    }
    Ok(())
}

/// The address: the one asked for, the hint if it is free, or the highest hole below the top.
fn choose(memory: &Memory, address: u64, request: &Request) -> Result<u64, Errno> {
    let bytes = request.bytes;
    if request.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        if !address.is_multiple_of(PAGE) {
            return error(libc::EINVAL);
        }
        let end = address.checked_add(bytes).filter(|&end| end <= TASK_SIZE).ok_or(Errno(libc::ENOMEM))?;
        if address < LOWEST {
            return error(libc::EPERM);
        }
        if request.flags & MAP_FIXED_NOREPLACE != 0 && !memory.tree.is_free(address, end) {
            return error(libc::EEXIST);
        }
        return Ok(address);
    }
    let hint = page_up(address);
    if hint >= LOWEST
        && let Some(end) = hint.checked_add(bytes)
        && end <= TASK_SIZE
        && memory.tree.is_free(hint, end)
    {
        return Ok(hint);
    }
    // SAFETY: the lock is held.
    let top = unsafe { (*memory.globals).mmap_top };
    let low_only = request.flags & MAP_32BIT != 0;
    let high = if low_only { 1 << 31 } else { top };
    let align = if bytes.is_multiple_of(HUGE) { HUGE } else { PAGE };
    let found = memory
        .tree
        .gap_below(bytes, align, LOWEST, high)
        .or_else(|| if low_only { None } else { memory.tree.gap_below(bytes, PAGE, LOWEST, page_down(TASK_SIZE)) });
    found.ok_or(Errno(libc::ENOMEM))
}

/// Anonymous memory: region memory, or a reservation while nobody may touch it.
fn map_anonymous(memory: &mut Memory, place: u64, request: &Request, fixed: i32) -> Result<Attr, Errno> {
    let end = place + request.bytes;
    if fixed == libc::MAP_FIXED {
        punch(memory, place, end)?;
    }
    let shared = request.flags & MAP_TYPE != MAP_PRIVATE;
    if request.prot == 0 && !shared {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
        // SAFETY: the range is free or to be replaced, and nothing of ours.
        unsafe { mm::mmap(place, request.bytes, 0, flags, -1, 0) }?;
        return Ok(Attr { kind: Kind::Reserve, prot: 0, flags: 0, file: 0, offset: 0 });
    }
    fresh_slices(place, end, request.prot, fixed | (request.flags & MAP_KEPT) as i32)?;
    let locked = if request.flags & libc::MAP_LOCKED as u64 != 0 { flag::LOCKED } else { 0 };
    Ok(region(request.prot, locked | if shared { flag::SHARED } else { 0 }))
}

/// A mapping of a file.
fn map_file(memory: &mut Memory, place: u64, request: &Request, fixed: i32) -> Result<Attr, Errno> {
    let mut life = control::generation();
    let stat = fs::stat_fd(request.fd)?;
    let private = request.flags & MAP_TYPE == MAP_PRIVATE;
    if stat.st_mode & libc::S_IFMT == libc::S_IFCHR {
        // /dev/zero is anonymous memory by another name; other devices have memory that no region can hold.
        if stat.st_rdev == 0x105 {
            return map_anonymous(memory, place, request, fixed);
        }
        try_file(request)?;
        crate::gate::say_refused(libc::SYS_mmap as u64, b"mmap of a device", b"its memory cannot be kept");
        return error(libc::ENODEV);
    }
    let mut file = file_of(request.fd, &stat)?;
    // In another life a file without a name is another file, and a save from outside looks only at what is in the table.
    while control::generation() != life {
        life = control::generation();
        file = file_of(request.fd, &fs::stat_fd(request.fd)?)?;
    }
    let end = place + request.bytes;
    if fixed == libc::MAP_FIXED
        && memory.tree.range(place, end).any(|run| matches!(run.attr.kind, Kind::Region | Kind::Headroom))
    {
        try_file(request)?;
        punch(memory, place, end)?;
    }
    let replaces = fixed == libc::MAP_FIXED;
    let kept = (request.flags & !(MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT)) as i32;
    let map = if replaces { mm::mmap } else { mm::mmap_free };
    let kept = if replaces { kept | fixed } else { kept };
    // The kernel judges the request, also where region memory takes its place right away.
    // SAFETY: the range is free or to be replaced, and nothing of ours.
    unsafe { map(place, request.bytes, request.prot as i32, kept, request.fd, request.offset) }?;
    let mut attr = Attr { kind: Kind::FileShared, prot: request.prot as u8, flags: 0, file, offset: request.offset };
    if private {
        attr.kind = Kind::FilePrivate;
        if request.prot & PROT_WRITE != 0 {
            let filled = fresh_slices(place, end, request.prot, libc::MAP_FIXED)
                .and_then(|()| read_file(request.fd, place, request.bytes, request.offset));
            if let Err(error) = filled {
                // Nothing may stay behind: neither a mapping that the table does not know, nor half of the content.
                memory.tree.set(place, end, region(request.prot, 0)).map_err(full)?;
                unmap(memory, place, end)?;
                return Err(if error == Errno(libc::EFAULT) { Errno(libc::ENOMEM) } else { error });
            }
            attr.kind = Kind::Region;
            attr.flags = flag::FROM_FILE;
        }
    }
    Ok(attr)
}

/// Whether the kernel will map the file so: what lies at a fixed address must not be discarded for a mapping that is
/// refused then.
fn try_file(request: &Request) -> Result<(), Errno> {
    let flags = request.flags & !(MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT | MAP_KEPT);
    // SAFETY: a mapping at an address that the kernel chooses, and away with it.
    unsafe {
        let at = mm::mmap(0, request.bytes, request.prot as i32, flags as i32, request.fd, request.offset)?;
        mm::munmap(at, request.bytes)
    }
}

/// Fills fresh region memory from a file, as far as the file goes.
fn read_file(fd: i32, start: u64, bytes: u64, offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes {
        // SAFETY: the memory was mapped just now, for the program, and is writable.
        match unsafe { fs::pread_raw(fd, start + done, bytes - done, offset + done) } {
            Ok(0) => break,
            Ok(n) => done += n as u64,
            Err(Errno(libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
