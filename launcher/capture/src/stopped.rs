//! A thread in a ptrace stop: registers, extended state, mask, name, pending signals.
#![allow(unsafe_code)]

use crate::Error;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::fs;
use std::io::IoSliceMut;
use zhuque_abi::slot::SigInfo;

/// NT_X86_XSTATE (elf.h).
const XSTATE: usize = 0x202;
/// Bytes that a regset of extended state may have.
const XSTATE_BYTES: usize = 1 << 14;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
/// Bytes of the kernel's signal mask.
const MASK_BYTES: usize = 8;

/// What a stopped thread holds.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// Its kernel id.
    pub tid: Pid,
    /// General registers.
    pub registers: libc::user_regs_struct,
    /// x87, vector and other extended state, in the standard format of xsave.
    pub extended: Vec<u8>,
    /// Signals that it has blocked.
    pub mask: u64,
    /// Its name, with the zero.
    pub name: [u8; 16],
}

fn kernel<T>(what: &'static str) -> impl Fn(Errno) -> Result<T, Error> {
    move |error| Err(Error::Kernel(what, error))
}

impl Stopped {
    /// Looks at a stopped thread.
    pub fn look(tid: Pid) -> Result<Stopped, Error> {
        let registers = ptrace::getregs(tid).or_else(kernel("registers"))?;
        let mut extended = vec![0u8; XSTATE_BYTES];
        let mut vector = libc::iovec { iov_base: extended.as_mut_ptr().cast(), iov_len: extended.len() };
        let mut mask = 0u64;
        // SAFETY: the first fills at most what the vector names, the second writes eight bytes.
        unsafe {
            let got = libc::ptrace(libc::PTRACE_GETREGSET, tid.as_raw(), XSTATE, &raw mut vector);
            Errno::result(got).or_else(kernel("extended state"))?;
            let got = libc::ptrace(PTRACE_GETSIGMASK, tid.as_raw(), MASK_BYTES, &raw mut mask);
            Errno::result(got).or_else(kernel("signal mask"))?;
        }
        extended.truncate(vector.iov_len);
        let mut name = [0; 16];
        let text = fs::read(format!("/proc/{tid}/comm"))?;
        for (to, from) in name.iter_mut().take(15).zip(text.iter().take_while(|&&byte| byte != b'\n')) {
            *to = *from;
        }
        Ok(Stopped { tid, registers, extended, mask, name })
    }

    /// A call that was turned away (Syscall User Dispatch), and whose SIGSYS is still to come: it is issued again. The kernel
    /// has put its number back, and the counter stands behind it.
    pub fn undo_dispatch(&mut self) -> Result<(), Error> {
        /// SYS_USER_DISPATCH.
        const DISPATCHED: u64 = 2;
        if waiting(self.tid)?.iter().any(|info| info[0] as i32 == libc::SIGSYS && info[1] & 0xffff_ffff == DISPATCHED) {
            self.registers.rip -= 2;
            self.registers.orig_rax = u64::MAX;
        }
        Ok(())
    }

    /// A call that the stop has interrupted: issued again, or ended with EINTR, as the kernel does it for a handler that
    /// was installed with SA_RESTART (arch/x86/kernel/signal.c, handle_signal).
    pub fn end_call(&mut self) {
        /// ERESTARTSYS and ERESTARTNOINTR (linux/errno.h).
        const ISSUED_AGAIN: [i64; 2] = [-512, -513];
        /// ERESTARTNOHAND and ERESTART_RESTARTBLOCK.
        const ENDED: [i64; 2] = [-514, -516];
        let r = &mut self.registers;
        if (r.orig_rax as i64) < 0 {
            return;
        }
        if ISSUED_AGAIN.contains(&(r.rax as i64)) {
            r.rip -= 2;
            r.rax = r.orig_rax;
        } else if ENDED.contains(&(r.rax as i64)) {
            r.rax = -i64::from(libc::EINTR) as u64;
        }
    }

    /// A call that the stop alone has ended with EINTR is to be issued again, when the thread goes on.
    pub fn begin_again(&mut self) -> Result<(), Error> {
        let r = &mut self.registers;
        let interrupted = r.orig_rax as i64 >= 0 && r.rax as i64 == -i64::from(libc::EINTR);
        if !interrupted || has_signal(self.tid)? {
            return Ok(());
        }
        r.rip -= 2;
        r.rax = r.orig_rax;
        r.orig_rax = u64::MAX;
        ptrace::setregs(self.tid, *r).or_else(kernel("registers"))
    }

    /// A critical section of rseq(2) is aborted, as the kernel does it at a signal (kernel/rseq.c). `area`: what the
    /// thread has registered, 0: nothing.
    pub fn leave_rseq(&mut self, area: u64) -> Result<(), Error> {
        /// Offset of `rseq_cs` in struct rseq.
        const SECTION: u64 = 8;
        if area == 0 {
            return Ok(());
        }
        let [section] = read_words(self.tid, area + SECTION)?;
        if section == 0 {
            return Ok(());
        }
        // struct rseq_cs: version and flags, first instruction, bytes, where to go.
        let [_, start, bytes, abort] = read_words(self.tid, section)?;
        if self.registers.rip.wrapping_sub(start) < bytes {
            self.registers.rip = abort;
        }
        let address = (area + SECTION) as ptrace::AddressType;
        ptrace::write(self.tid, address, 0).or_else(kernel("its rseq area"))
    }
}

/// Words of the thread's memory.
pub fn read_words<const N: usize>(tid: Pid, address: u64) -> Result<[u64; N], Error> {
    let mut words = [[0u8; 8]; N];
    let bytes = words.as_flattened_mut();
    let remote = [nix::sys::uio::RemoteIoVec { base: address as usize, len: bytes.len() }];
    let read = nix::sys::uio::process_vm_readv(tid, &mut [IoSliceMut::new(bytes)], &remote);
    match read.or_else(kernel("its memory"))? {
        all if all == 8 * N => Ok(words.map(u64::from_le_bytes)),
        _ => Err(Error::Kernel("its memory", Errno::EFAULT)),
    }
}

/// Whether a signal waits that the thread does not block.
fn has_signal(tid: Pid) -> Result<bool, Error> {
    Ok((signal_set(tid, "SigPnd")? | signal_set(tid, "ShdPnd")?) & !signal_set(tid, "SigBlk")? != 0)
}

/// One of a thread's sets of signals, by the name that /proc/PID/status has for it (proc(5)).
pub fn signal_set(tid: Pid, name: &str) -> std::io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    let text = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    Ok(u64::from_str_radix(text.trim(), 16).unwrap_or(0))
}

/// Whether a thread has ended: the main one stays as a zombie while others go on.
pub fn has_ended(tid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; the state follows the last one.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Signals that wait for this thread alone; not those of the gate's own.
pub fn pending(tid: Pid) -> Result<Vec<SigInfo>, Error> {
    let mut all = waiting(tid)?;
    all.retain(|info| ![libc::SIGPWR, libc::SIGSYS].contains(&(info[0] as i32)));
    Ok(all)
}

/// All signals that wait for this thread alone.
fn waiting(tid: Pid) -> Result<Vec<SigInfo>, Error> {
    /// struct ptrace_peeksiginfo_args: from where on, flags and how many.
    #[repr(C)]
    struct Wanted {
        offset: u64,
        flags: u32,
        count: i32,
    }
    let mut all = Vec::new();
    loop {
        let wanted = Wanted { offset: all.len() as u64, flags: 0, count: 16 };
        let mut found: [SigInfo; 16] = [[0; 16]; 16];
        // SAFETY: the kernel writes at most sixteen records.
        let got = unsafe { libc::ptrace(PTRACE_PEEKSIGINFO, tid.as_raw(), &raw const wanted, found.as_mut_ptr()) };
        let got = Errno::result(got).or_else(kernel("pending signals"))?;
        all.extend_from_slice(&found[..got as usize]);
        if got < 16 {
            break;
        }
    }
    Ok(all)
}

/// Lets a stopped thread go on somewhere else, as soon as it is let go: with every signal blocked.
pub fn send_to(tid: Pid, address: u64, stack: u64) -> Result<(), Error> {
    let mut registers = ptrace::getregs(tid).or_else(kernel("registers"))?;
    registers.rip = address;
    registers.rsp = stack;
    registers.rbp = 0;
    // Interrupts on, everything else off.
    registers.eflags = 0x202;
    // In no system call, so that nothing is restarted.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(tid, registers).or_else(kernel("registers"))?;
    let mask = u64::MAX;
    // SAFETY: the kernel reads eight bytes.
    let set = unsafe { libc::ptrace(PTRACE_SETSIGMASK, tid.as_raw(), MASK_BYTES, &raw const mask) };
    Errno::result(set).or_else(kernel("signal mask")).map(|_| ())
}
