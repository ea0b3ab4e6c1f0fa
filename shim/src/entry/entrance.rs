//! The way into a new process that nobody may trace: a resume where ptrace is refused (an old seccomp profile, Yama).
//!
//! The launcher has executed the program's file with this library preloaded. Its constructor, which runs before all
//! others, says that it is here, waits for the launcher's word, maps the restore stub where that says, and jumps there:
//! what the tracer does otherwise, and what the rest of the resume does not notice. Until then ld.so has mapped the
//! program's libraries, which is what this way costs more; all of that is unmapped by the stub.
//!
//! Key type: [`zhuque_abi::life::Entrance`]. Neighbours: the launcher's `inject` and `newborn`, `start` (who calls).
#![allow(unsafe_code)]

use super::maps;
use core::arch::asm;
use zhuque_abi::layout::{ENV_RESUMING, PAGE};
use zhuque_abi::life::{ENTRANCE_MAGIC, ENTRANCE_WANTED, Entrance};
use zhuque_sys::{Errno, fs, mm};

/// The number of the memfd with the stub, if this process is to become a saved program.
///
/// # Safety
/// `environment` is ld.so's vector.
pub unsafe fn wanted(environment: *const *mut u8) -> Option<i32> {
    let mut at = 0;
    // SAFETY: the vector ends with a null pointer, its strings with a zero.
    unsafe {
        while !(*environment.add(at)).is_null() {
            let text = super::start::string(*environment.add(at));
            let value = text.strip_prefix(ENV_RESUMING.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
            if let Some((number, _)) = value.and_then(|value| maps::number(value, 10)) {
                return i32::try_from(number).ok();
            }
            at += 1;
        }
    }
    None
}

/// Waits for the launcher and goes where it says.
pub fn enter(memfd: i32) -> ! {
    if let Err(Errno(number)) = fs::write_at(memfd, &ENTRANCE_WANTED.to_le_bytes(), 0) {
        fail(number);
    }
    // The launcher's word is one byte on the status socket, whose number is one below; or the socket's end, with its own.
    let entrance = match fs::read(memfd - 1, &mut [0]).and_then(|_| read(memfd)) {
        Ok(entrance) if entrance.magic == ENTRANCE_MAGIC => entrance,
        Ok(_) => fail(libc::EPIPE),
        Err(Errno(number)) => fail(number),
    };
    super::start::forget_registrations();
    let Entrance { start, text_bytes, bytes, entry, .. } = entrance;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let (code, data) = (libc::PROT_READ | libc::PROT_EXEC, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: free addresses, which the launcher has looked for.
    let mapped = unsafe {
        mm::mmap(start, text_bytes, code, flags, memfd, 0)
            .and_then(|_| mm::mmap(start + text_bytes, bytes - text_bytes, data, flags, memfd, text_bytes))
    };
    if let Err(Errno(number)) = mapped {
        fail(number);
    }
    // SAFETY: the stub's entry with its arguments, as at the entry of a function, on its own stack; it never comes back.
    unsafe {
        asm!(
            // Named registers: one that the compiler chooses may be rbp.
            "mov rsp, rcx",
            "xor ebp, ebp",
            "jmp rax",
            in("rcx") start + bytes - 8,
            in("rax") start + entry,
            in("rdi") start + text_bytes,
            options(noreturn)
        )
    }
}

/// The launcher's word, which lies in the memfd's last page.
fn read(memfd: i32) -> Result<Entrance, Errno> {
    let end = fs::stat_fd(memfd)?.st_size as u64;
    let mut entrance = Entrance::default();
    // SAFETY: plain integers; the magic says whether they mean anything.
    unsafe {
        fs::pread_raw(memfd, &raw mut entrance as u64, size_of::<Entrance>() as u64, end.saturating_sub(PAGE))?;
        Ok(core::ptr::read_volatile(&raw const entrance))
    }
}

fn fail(number: i32) -> ! {
    let mut text = crate::text::Text::of(b"cannot enter the new process: error ");
    crate::die::fail(text.number(number as u64))
}
