//! Memory mappings. All of these are `unsafe`: they change what addresses mean.
#![allow(unsafe_code)]

use crate::raw::{Errno, call2, call3, call5, call6, check};

/// mmap(2).
///
/// # Safety
/// With MAP_FIXED whatever lies in the range is replaced: nothing of the caller's may lie there.
#[inline]
pub unsafe fn mmap(address: u64, bytes: u64, prot: i32, flags: i32, fd: i32, offset: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe {
        call6(
            libc::SYS_mmap as usize,
            address as usize,
            bytes as usize,
            prot as usize,
            flags as usize,
            fd as isize as usize,
            offset as usize,
        )
    })
    .map(|a| a as u64)
}

/// mmap(2) at an address that must be free, else EEXIST. `flags` are without MAP_FIXED and MAP_FIXED_NOREPLACE: the kernel
/// does not take the latter together with MAP_SHARED_VALIDATE (EOPNOTSUPP), so the range is reserved first there.
///
/// # Safety
/// What else may map memory meanwhile does not replace what is in this range.
#[inline]
pub unsafe fn mmap_free(address: u64, bytes: u64, prot: i32, flags: i32, fd: i32, offset: u64) -> Result<u64, Errno> {
    let only_free = libc::MAP_FIXED_NOREPLACE;
    let reserve = flags & libc::MAP_TYPE == libc::MAP_SHARED_VALIDATE;
    let reservation = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | only_free;
    // SAFETY: nothing is replaced but the reservation.
    unsafe {
        let at = if reserve {
            mmap(address, bytes, 0, reservation, -1, 0)?
        } else {
            mmap(address, bytes, prot, flags | only_free, fd, offset)?
        };
        // Kernels before 4.17 take the flag for a hint.
        if at != address {
            let _ = munmap(at, bytes);
            return Err(Errno(libc::EEXIST));
        }
        if !reserve {
            return Ok(at);
        }
        let mapped = mmap(address, bytes, prot, flags | libc::MAP_FIXED, fd, offset);
        if mapped.is_err() {
            let _ = munmap(address, bytes);
        }
        mapped
    }
}

/// munmap(2).
///
/// # Safety
/// Nothing of the caller's may lie in the range.
#[inline]
pub unsafe fn munmap(address: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call2(libc::SYS_munmap as usize, address as usize, bytes as usize) }).map(|_| ())
}

/// mprotect(2).
///
/// # Safety
/// Memory in use must stay accessible.
#[inline]
pub unsafe fn mprotect(address: u64, bytes: u64, prot: i32) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call3(libc::SYS_mprotect as usize, address as usize, bytes as usize, prot as usize) }).map(|_| ())
}

/// mremap(2).
///
/// # Safety
/// As for munmap of the old and mmap(MAP_FIXED) of the new range.
#[inline]
pub unsafe fn mremap(old: u64, old_bytes: u64, new_bytes: u64, flags: i32, new: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's argument.
    check(unsafe {
        call5(
            libc::SYS_mremap as usize,
            old as usize,
            old_bytes as usize,
            new_bytes as usize,
            flags as usize,
            new as usize,
        )
    })
    .map(|a| a as u64)
}

/// msync(2) with MS_SYNC: what was written to the files behind the range is on their devices.
pub fn sync(address: u64, bytes: u64) -> Result<(), Errno> {
    let flags = libc::MS_SYNC as usize;
    // SAFETY: no content changes.
    check(unsafe { call3(libc::SYS_msync as usize, address as usize, bytes as usize, flags) }).map(|_| ())
}

/// madvise(2).
///
/// # Safety
/// Some advice discards content; nobody may rely on it.
#[inline]
pub unsafe fn madvise(address: u64, bytes: u64, advice: i32) -> Result<(), Errno> {
    // SAFETY: the caller's argument.
    check(unsafe { call3(libc::SYS_madvise as usize, address as usize, bytes as usize, advice as usize) }).map(|_| ())
}

/// mincore(2): bit 0 of each entry says whether that page, from `address` on, is in memory. ENOMEM: not all is mapped.
pub fn resident(address: u64, pages: &mut [u8]) -> Result<(), Errno> {
    let bytes = pages.len() * 4096;
    // SAFETY: writes one byte a page.
    check(unsafe { call3(libc::SYS_mincore as usize, address as usize, bytes, pages.as_mut_ptr() as usize) })
        .map(|_| ())
}
