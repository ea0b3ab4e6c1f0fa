//! Taking over a process at the end of its exec, and starting the restore stub in it.
//!
//! The process has traced itself and executed the program's own file, so `/proc/self/exe`, name and arguments are the
//! kernel's work, and no privileges are needed. It is stopped when the exec is complete and not one instruction of
//! the new image has run. The stub gets there through a memfd that the process has inherited: two mmap calls, made by
//! the process itself at a `syscall` instruction of its vdso, between two stops of PTRACE_SYSCALL each. (Not by single
//! steps: their SIGTRAP would have to get past the blocked signal mask, and the kernel would unblock it.)
//!
//! Where ptrace is refused, the shim, preloaded by ld.so, does the same when it is told where to (shim:
//! `entry/entrance.rs`); the process waits there then.
//!
//! Key type: [`Stopped`]. Neighbours: `resume` says what goes into the process; `zhuque_restore` decides
//! where ([`holes`]); `restore/stub` runs there.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, write};
use zhuque_abi::layout::{PAGE, page_up};
use zhuque_abi::life::{ENTRANCE_MAGIC, ENTRANCE_WANTED, MapStep, ResumeArgs, VdsoPiece};
use zhuque_restore::holes::{self, Run};
use zhuque_restore::process::{self, Maps};
use zhuque_restore::stub_image::StubImage;

/// Stack of the stub; it uses a few hundred bytes.
const STACK_BYTES: u64 = 0x1_0000;
/// The code segment of 64-bit programs (`__USER_CS`, arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;

/// What goes into the process.
pub struct Load<'a> {
    /// The stub.
    pub stub: &'a StubImage,
    /// Every address that the program knows of.
    pub taken: &'a [Run],
    /// What the stub maps.
    pub steps: &'a [MapStep],
    /// Arguments, complete but for the addresses that depend on the process.
    pub args: ResumeArgs,
    /// A memfd through which it gets there.
    pub memfd: &'a File,
    /// Its number in the process.
    pub memfd_number: RawFd,
    /// This end of the status socket.
    pub status: &'a OwnedFd,
}

/// A process at the end of its exec, in the hands of its tracer, or waiting in the shim's constructor.
pub struct Stopped {
    pid: Pid,
    traced: bool,
    maps: Maps,
    vdso: Vec<u8>,
}

/// How long the loader may take to get to the shim.
const LOADER_LIMIT: Duration = Duration::from_secs(10);

impl Stopped {
    /// Waits until a child is through its exec. `None`: it has ended. A child that is not traced writes to `memfd` when
    /// its shim waits; one that is goes on to the exec when there is a byte on the `status` socket.
    pub fn after_exec(pid: Pid, memfd: &File, status: &OwnedFd) -> anyhow::Result<Option<Stopped>> {
        if !wait_for_first(pid, memfd)? {
            return Ok(None);
        }
        let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACESYSGOOD;
        match ptrace::setoptions(pid, options) {
            Ok(()) => {}
            Err(_) if is_waiting(memfd) => return Stopped::new(pid, false).map(Some),
            error => error.context("cannot trace the new process")?,
        }
        ptrace::cont(pid, None).context("cannot trace the new process")?;
        write(status, b"\n").context("cannot let the new process go on")?;
        if !wait_for(pid, Stop::Exec)? {
            return Ok(None);
        }
        // On its way out of execve the kernel still writes the call's result to rax: registers are set behind that.
        ptrace::syscall(pid, None).context("cannot trace the new process")?;
        if !wait_for(pid, Stop::Call)? {
            return Ok(None);
        }
        Stopped::new(pid, true).map(Some)
    }

    fn new(pid: Pid, traced: bool) -> anyhow::Result<Stopped> {
        let read = |pid: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read /proc/PID/maps")?;
            anyhow::Ok(Maps::parse(&text)?)
        };
        let maps = read(&pid.to_string())?;
        // Every process of this kernel has the same vdso, and this one may always be read.
        let image = read("self")?.vdso_image().unwrap_or(Run { start: 0, end: 0 });
        let mut vdso = vec![0; usize::try_from(image.bytes())?];
        let memory = File::open("/proc/self/mem").context("cannot open /proc/self/mem")?;
        memory.read_exact_at(&mut vdso, image.start).context("cannot read the vdso")?;
        Ok(Stopped { pid, traced, maps, vdso })
    }

    /// Puts the stub into the process and lets it run, untraced from then on.
    pub fn start(self, load: &Load<'_>) -> anyhow::Result<()> {
        let text_bytes = load.stub.bytes.len() as u64;
        let args_bytes = page_up((size_of::<ResumeArgs>() + size_of_val(load.steps)) as u64);
        let total = text_bytes + args_bytes + STACK_BYTES;
        let places = holes::place(load.taken, &self.maps.runs, self.maps.vdso_run(), total)?;

        let mut args = load.args;
        args.stub_start = places.stub;
        args.stub_bytes = total;
        args.steps = load.steps.len() as u64;
        self.fill_vdso(&mut args, places.vdso)?;
        fill_memfd(load, &args, text_bytes, total).context("cannot write the stub's memory")?;
        if !self.traced {
            return self.let_in(load, text_bytes, places.stub, total);
        }

        let code = libc::PROT_READ | libc::PROT_EXEC;
        let data = libc::PROT_READ | libc::PROT_WRITE;
        self.map(places.stub, text_bytes, code, load.memfd_number, 0)?;
        self.map(places.stub + text_bytes, total - text_bytes, data, load.memfd_number, text_bytes)?;

        let mut registers = ptrace::getregs(self.pid).context("cannot read registers")?;
        registers.rip = places.stub + load.stub.entry;
        // As at the entry of a function, behind a call.
        registers.rsp = places.stub + total - 8;
        registers.rdi = places.stub + text_bytes;
        // Not in a system call, so that nothing is restarted.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.pid, registers).context("cannot set registers")?;
        ptrace::detach(self.pid, None).context("cannot let go of the new process")
    }

    /// Tells the shim where the stub goes, and lets it do the rest.
    fn let_in(&self, load: &Load<'_>, text_bytes: u64, start: u64, total: u64) -> anyhow::Result<()> {
        let words = [ENTRANCE_MAGIC, start, text_bytes, total, load.stub.entry];
        load.memfd.set_len(total + PAGE)?;
        load.memfd.write_all_at(words.map(u64::to_le_bytes).as_flattened(), total)?;
        write(load.status, b"\n").context("cannot let the new process go on")?;
        Ok(())
    }

    /// Where the vdso is, will be, and what is in it.
    fn fill_vdso(&self, args: &mut ResumeArgs, to: u64) -> anyhow::Result<()> {
        let from = self.maps.vdso_run();
        args.vdso_from = from.start;
        args.vdso_to = to;
        let image = self.maps.vdso_image().map_or(0, |run| run.start - from.start + to);
        args.vdso = process::vdso_at(&self.maps, &self.vdso, image)?;
        args.vdso_pieces = Default::default();
        if from.start != to {
            for (piece, run) in args.vdso_pieces.iter_mut().zip(&self.maps.vdso) {
                *piece = VdsoPiece { from: run.start, to: run.start - from.start + to, bytes: run.bytes() };
            }
        }
        Ok(())
    }

    /// Makes the process map a part of the memfd.
    fn map(&self, start: u64, bytes: u64, prot: i32, fd: RawFd, offset: u64) -> anyhow::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        let number = libc::SYS_mmap as u64;
        let result = self.call(number, [start, bytes, prot as u64, flags as u64, fd as u64, offset])?;
        ensure!(
            result == start,
            "cannot map the stub into the new process: {}",
            nix::errno::Errno::from_raw(i32::try_from(result.wrapping_neg()).unwrap_or(libc::EEXIST)).desc()
        );
        Ok(())
    }

    /// Makes the process do a system call; its result.
    fn call(&self, number: u64, arguments: [u64; 6]) -> anyhow::Result<u64> {
        let instruction = process::syscall_instruction(&self.vdso);
        let offset = instruction.ok_or_else(|| anyhow!("this kernel's vdso has no system call to start from"))?;
        let image = self.maps.vdso_image().map_or(0, |run| run.start);

        let mut registers = ptrace::getregs(self.pid).context("cannot read registers")?;
        ensure!(registers.cs == USER_CS, "the program is not a 64-bit one");
        registers.rip = image + offset as u64;
        registers.rax = number;
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        ptrace::setregs(self.pid, registers).context("cannot set registers")?;
        // To the call's entry, to its exit.
        for _ in 0..2 {
            ptrace::syscall(self.pid, None).context("cannot trace the new process")?;
            ensure!(wait_for(self.pid, Stop::Call)?, "the new process was killed");
        }
        Ok(ptrace::getregs(self.pid).context("cannot read registers")?.rax)
    }
}

/// Whether the shim of a process that is not traced waits to be told where the stub goes.
fn is_waiting(memfd: &File) -> bool {
    let mut said = [0; 8];
    memfd.read_exact_at(&mut said, 0).is_ok() && u64::from_le_bytes(said) == ENTRANCE_WANTED
}

/// Waits for the first stop of its own; false if the process ends instead.
fn wait_for_first(pid: Pid, memfd: &File) -> anyhow::Result<bool> {
    let began = Instant::now();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(WaitStatus::StillAlive) => {
                if is_waiting(memfd) {
                    return Ok(true);
                }
                ensure!(began.elapsed() < LOADER_LIMIT, "ptrace is refused, and the loader does not load the shim");
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Ok(false),
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => {
                if ptrace::getregs(pid).is_ok() {
                    return Ok(true);
                }
                // It is not traced, so this is somebody else's, which would only hold up the resume.
                let _ = kill(pid, Signal::SIGCONT);
            }
            other => bail!("the new process stopped for no known reason ({other:?})"),
        }
    }
}

/// Kinds of stops that are waited for.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// The end of an exec.
    Exec,
    /// Entry or exit of a system call.
    Call,
}

/// Waits for a stop; false if the process ends instead.
fn wait_for(pid: Pid, wanted: Stop) -> anyhow::Result<bool> {
    loop {
        let status = match waitpid(pid, None) {
            Err(nix::errno::Errno::EINTR) => continue,
            status => status.context("cannot wait for the new process")?,
        };
        let here = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(false),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => Stop::Exec,
            WaitStatus::PtraceSyscall(_) => Stop::Call,
            // Somebody else's SIGSTOP, which would only hold up the resume.
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                let next = if wanted == Stop::Exec { ptrace::cont(pid, None) } else { ptrace::syscall(pid, None) };
                next.context("cannot trace the new process")?;
                continue;
            }
            // All other signals are blocked.
            other => bail!("the new process stopped for no known reason ({other:?})"),
        };
        if here == wanted {
            return Ok(true);
        }
        bail!("the new process stopped at the wrong place");
    }
}

/// Writes text, arguments and steps to the memfd; the stack behind them stays a hole.
fn fill_memfd(load: &Load<'_>, args: &ResumeArgs, text_bytes: u64, total: u64) -> anyhow::Result<()> {
    load.memfd.set_len(total)?;
    // SAFETY: the memfd is ours; the process that shares it only maps it privately, after this.
    let mut map = unsafe { memmap2::MmapMut::map_mut(load.memfd) }?;
    let text = usize::try_from(text_bytes)?;
    map.get_mut(..text).context("the stub is too large")?.copy_from_slice(&load.stub.bytes);
    let behind = size_of::<ResumeArgs>() + size_of_val(load.steps);
    let place = map.get_mut(text..text + behind).context("too many mappings")?.as_mut_ptr();
    // SAFETY: `place` is valid for `behind` bytes and page-aligned, as mapping and text are whole pages; the size of
    // `ResumeArgs` is a multiple of the alignment of `MapStep`. Nobody else refers to the map.
    unsafe {
        place.cast::<ResumeArgs>().write(*args);
        let steps = place.add(size_of::<ResumeArgs>()).cast::<MapStep>();
        std::ptr::copy_nonoverlapping(load.steps.as_ptr(), steps, load.steps.len());
    }
    Ok(())
}
