//! From a saved region to a process that is the program again.
//!
//! [`start`] validates a region (crate `zhuque-restore`), opens what the stub will map, forks, prepares the child's
//! descriptors, lets it execute the program's own file, and has the restore stub started in it. Then it reads what the
//! stub and the shim's revive report. Whatever fails on the way: the region is as it was, and no process is left.
//!
//! Key types: [`Request`], [`Resumed`]. Neighbours: `commands::resume` has locked the region and calls this; `newborn`
//! is the child between fork and exec, `inject` takes it over at the end of its exec. This file and these two know
//! nothing of the rest of the launcher: `restore/tests/resume.rs` compiles them by themselves.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::mem::offset_of;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use nix::fcntl::{OFlag, openat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use zhuque_abi::header::{Header, Phase};
use zhuque_abi::layout::{CONTROL_FILE, SLICE_PREFIX};
use zhuque_abi::life::{RESUME_MAGIC, RegionDescriptors, ResumeArgs, Vdso, stage};
use zhuque_restore::cpu::Machine;
use zhuque_restore::numbers::Numbers;
use zhuque_restore::plan::{FileToOpen, Plan, Source, Step};
use zhuque_restore::stub_image::StubImage;
use zhuque_restore::validate::Saved;

use crate::inject::{Load, Stopped};
use crate::newborn::{Doomed, FIXED_HELPERS, Newborn, Sources};

/// Fault injection for tests: number of the [`stage`] at which the resume kills itself.
const DIE_AT: &str = "ZHUQUE_TEST_DIE_AT";

/// A region to resume, and how. The lock is held.
pub struct Request<'a> {
    /// The region's name, for messages.
    pub name: &'a str,
    /// Where its directory is now.
    pub path: &'a Path,
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// The descriptor that holds the lock; the program inherits its open file description.
    pub lock: BorrowedFd<'a>,
    /// The restore stub's ELF file.
    pub stub: &'a [u8],
    /// See [`zhuque_abi::life::boot_flag`].
    pub flags: u32,
    /// Budget of a save, ns.
    pub hold_up_ns: u64,
    /// Go on although files have changed.
    pub force: bool,
    /// Which of the descriptors 0, 1, 2 were closed when zhuque was started.
    pub closed: [bool; 3],
}

/// A program that runs again: a child of this process, not traced.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // some of it is for tests and measurements only
pub struct Resumed {
    /// Its process.
    pub pid: Pid,
    /// Threads that it has.
    pub threads: u32,
    /// How long the parts of the resume took.
    pub timing: Timing,
}

/// How long the parts of a resume took.
#[derive(Clone, Copy, Debug, Default)]
#[allow(dead_code)] // as above
pub struct Timing {
    /// Validating, planning, opening files.
    pub plan: Duration,
    /// From fork to the end of the exec.
    pub exec: Duration,
    /// Putting the stub there.
    pub inject: Duration,
    /// Stub and revive, up to `ok`.
    pub rebuild: Duration,
}

/// Resumes a region. On an error it is unchanged, and the process that was to become the program is gone.
pub fn start(request: &Request<'_>) -> anyhow::Result<Resumed> {
    let name = request.name;
    attempt(request).with_context(|| format!("{name}: cannot resume"))
}

fn attempt(request: &Request<'_>) -> anyhow::Result<Resumed> {
    let began = Instant::now();
    let control = open_in(request, CONTROL_FILE)?;
    // SAFETY: the lock is held, so nobody changes the file but a user at war with themselves; everything is checked
    // as it is read, and what is used later is copied.
    let bytes = unsafe { memmap2::Mmap::map(&control) }.context("cannot map its control file")?;
    let saved = Saved::check(&bytes, &machine())?;
    let stub = StubImage::parse(request.stub)?;
    let plan = Plan::make(&saved, request.flags)?;
    let die_at = std::env::var(DIE_AT).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    if die_at == stage::VALIDATED {
        let _ = raise(Signal::SIGKILL);
    }
    check_program(&saved, request.force)?;
    let slices = open_slices(request, &plan)?;
    let files: anyhow::Result<Vec<File>> =
        { plan.files.iter() }.map(|file| open_mapped(file, &saved, request)).collect();
    let (files, memfd) = (files?, memfd()?);
    // Not a pipe: revive writes without fear of SIGPIPE when this process is gone.
    let (reader, writer) = UnixStream::pair().context("cannot make a socket pair")?;
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    let sources = Sources {
        slices: &slices,
        control: &control,
        directory: request.directory,
        lock: request.lock,
        status: &writer,
        memfd: &memfd,
        files: &files,
        closed: request.closed,
    };
    let numbers = choose_numbers(&saved, &sources)?;
    let region = numbers.region_descriptors();
    let steps = plan.bind(&region, numbers.helpers + FIXED_HELPERS as i32);
    let newborn = Newborn::new(&saved, &sources, &libraries(&plan, &saved), &numbers)?;
    let planned = Instant::now();

    let doomed = Doomed(newborn.fork()?);
    drop(writer);
    let pid = doomed.0;
    let Some(stopped) = Stopped::after_exec(pid, &memfd, &reader)? else {
        doomed.reaped();
        bail!("{}", last_words(&reader, "the new process ended before the stub was in it"));
    };
    let executed = Instant::now();
    let args = arguments(request, &saved, &numbers, region, newborn.stdio, die_at);
    stopped.start(&Load {
        stub: &stub,
        taken: &plan.taken,
        steps: &steps,
        args,
        memfd: &memfd,
        memfd_number: numbers.helpers + 1,
        status: &reader,
    })?;
    let injected = Instant::now();
    match last_words(&reader, "the new process died on the way").as_str() {
        "ok" => doomed.reaped(),
        // The phase changes with the commit (the mapping shows the file as it is).
        _ if bytes[offset_of!(Header, phase)..].first() != Some(&(Phase::Saved as u8)) => {
            bail!("it has ended right after it was resumed; zhuque ls shows what is left")
        }
        words => bail!("{words}; nothing has changed: mend that, and resume again"),
    }
    let timing = Timing {
        plan: planned - began,
        exec: executed - planned,
        inject: injected - executed,
        rebuild: injected.elapsed(),
    };
    Ok(Resumed { pid, threads: saved.threads, timing })
}

/// The files that the program executed code from, but for itself.
fn libraries<'a>(plan: &Plan<'a>, saved: &Saved<'a>) -> Vec<&'a Path> {
    let path = |step: &Step| match step.source {
        Source::File(index) if step.prot & libc::PROT_EXEC != 0 => plan.files.get(index).map(|file| file.path),
        _ => None,
    };
    let others = plan.steps.iter().filter_map(path).filter(|path| *path != saved.process.exe);
    others.map(|path| Path::new(OsStr::from_bytes(path))).collect()
}

/// Everything of [`ResumeArgs`] that does not depend on the new process.
fn arguments(
    request: &Request<'_>,
    saved: &Saved<'_>,
    numbers: &Numbers,
    region: RegionDescriptors,
    stdio: [i32; 3],
    die_at: u32,
) -> ResumeArgs {
    ResumeArgs {
        magic: RESUME_MAGIC,
        stub_start: 0,
        stub_bytes: 0,
        vdso_from: 0,
        vdso_to: 0,
        vdso: Vdso::default(),
        steps: 0,
        generation: saved.generation,
        base: saved.base,
        revive: saved.revive,
        descriptors: region,
        status: numbers.helpers,
        helpers: numbers.helpers,
        helpers_end: numbers.helpers_end,
        stdio,
        flags: request.flags,
        force: u32::from(request.force),
        hold_up_ns: request.hold_up_ns,
        die_at,
        reserved: 0,
        vdso_pieces: Default::default(),
    }
}

/// What the stub or revive say: one line, `ok`, or nothing before they end.
fn last_words(reader: &OwnedFd, silent: &str) -> String {
    let mut line = Vec::new();
    if let Ok(copy) = reader.try_clone() {
        // An error in reading is silence, too.
        let _ = BufReader::new(File::from(copy).take(4096)).read_until(b'\n', &mut line);
    }
    line.pop_if(|byte| *byte == b'\n');
    if line.is_empty() { silent.to_owned() } else { String::from_utf8_lossy(&line).into_owned() }
}

/// What this processor and kernel offer.
// `__cpuid_count` is safe since Rust 1.94.
#[allow(unused_unsafe)]
fn machine() -> Machine {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    // SAFETY: every x86-64 processor has the instruction.
    let leaf = |leaf, sub| unsafe { __cpuid_count(leaf, sub) };
    let (one, seven) = (leaf(1, 0), leaf(7, 0));
    let mut machine =
        Machine { xcr0: 0, features: [one.ecx, one.edx, seven.ebx, seven.ecx, seven.edx, 0], xsave_bytes: 0 };
    /// cpuid leaf 1, ecx: the kernel has enabled xgetbv.
    const OSXSAVE: u32 = 1 << 27;
    if one.ecx & OSXSAVE != 0 {
        /// FP_XSTATE_MAGIC2 behind the area (arch/x86/include/uapi/asm/sigcontext.h).
        const MAGIC2_BYTES: u64 = 4;
        // SAFETY: the bit above says that the instruction exists.
        machine.xcr0 = unsafe { _xgetbv(0) };
        machine.features[5] = leaf(0xd, 1).eax;
        machine.xsave_bytes = u64::from(leaf(0xd, 0).ebx) + MAGIC2_BYTES;
    }
    machine
}

/// Opens a file of the region.
fn open_in(request: &Request<'_>, file: &str) -> anyhow::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = openat(request.directory, file, flags, Mode::empty());
    let opened = File::from(opened.with_context(|| format!("cannot open its file {file}"))?);
    ensure!(opened.metadata()?.is_file(), "its file {file} is not a regular file: remove the region by hand");
    Ok(opened)
}

/// Checks that the program's own file is what it was.
fn check_program(saved: &Saved<'_>, force: bool) -> anyhow::Result<()> {
    let path = Path::new(OsStr::from_bytes(saved.process.exe));
    let now = path.metadata().with_context(|| format!("cannot find the program {}", path.display()))?;
    ensure!(force || unchanged(&saved.process.exe_identity, &now), "{}", changed(path));
    Ok(())
}

/// Whether a file is the one recorded: by inode, size and time of modification. Device numbers are not compared: they
/// may be others after a reboot, or in another container.
fn unchanged(identity: &[u64; 4], now: &std::fs::Metadata) -> bool {
    let [_, inode, size, mtime] = *identity;
    // As the shim computes it, also for times before 1970.
    let seconds = (now.mtime() as u64).wrapping_mul(1_000_000_000);
    let mtime_now = seconds.wrapping_add(now.mtime_nsec() as u64);
    (inode, size, mtime) == (now.ino(), now.size(), mtime_now)
}

fn changed(path: &Path) -> String {
    format!("{} has changed since the program was saved: put the old file back, or try --force", path.display())
}

/// Where a path of the region is now: what lay in the region's directory has moved with it.
fn moved(path: &[u8], from: &[u8], to: &Path) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    match path.strip_prefix(OsStr::from_bytes(from)) {
        Ok(inside) if !from.is_empty() => to.join(inside),
        _ => path.to_owned(),
    }
}

/// Opens a file that the program has mapped.
fn open_mapped(file: &FileToOpen<'_>, saved: &Saved<'_>, request: &Request<'_>) -> anyhow::Result<File> {
    let path = moved(file.path, saved.region, request.path);
    let open = |write| {
        // A FIFO of this name must not keep us waiting.
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(&path)
    };
    let opened = match open(file.writable) {
        // What was only read can do without; the file may be a running program's, or not ours any more.
        Err(_) if file.writable && !file.written => open(false),
        opened => opened,
    };
    let opened = opened.with_context(|| format!("cannot open the mapped file {}", path.display()))?;
    let now = opened.metadata()?;
    let kind = now.file_type();
    ensure!(kind.is_file() || kind.is_char_device(), "{} is no longer a file", path.display());
    ensure!(!file.unchanged || request.force || unchanged(&file.identity, &now), "{}", changed(&path));
    Ok(opened)
}

/// Opens the slices; each must be as long as what is mapped of it.
fn open_slices(request: &Request<'_>, plan: &Plan<'_>) -> anyhow::Result<Vec<File>> {
    let mut slices = Vec::new();
    for (index, wanted) in plan.slice_bytes.into_iter().enumerate() {
        let slice = open_in(request, &format!("{SLICE_PREFIX}{index:02}"))?;
        let bytes = slice.metadata()?.len();
        ensure!(
            bytes >= wanted,
            "its slice {index:02} has {bytes} bytes instead of {wanted}: the region is damaged; \
             remove it with `zhuque rm`"
        );
        slices.push(slice);
    }
    Ok(slices)
}

/// Chooses the numbers that everything will have in the new process, above every number that is open here.
fn choose_numbers(saved: &Saved<'_>, sources: &Sources<'_>) -> anyhow::Result<Numbers> {
    let highest = sources.highest().max(saved.highest_descriptor);
    let floor = u64::try_from(highest)?.saturating_add(1);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let soft = saved.descriptor_limit.unwrap_or(soft);
    let helpers = (FIXED_HELPERS + sources.files.len()) as u64;
    let own = saved.own_descriptors.and_then(|first| u64::try_from(first).ok());
    // What is opened here must not be where they go.
    let free = own.is_none_or(|own| sources.highest() < own as i32);
    ensure!(free, "the numbers of its own descriptors are in use here: resume it with fewer files open");
    Ok(Numbers::choose(soft, hard, floor, helpers, own)?)
}

/// A memfd whose pages may be executed, also where the system wants that to be said (vm.memfd_noexec).
fn memfd() -> anyhow::Result<File> {
    use std::os::fd::FromRawFd;
    const MFD_EXEC: libc::c_uint = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name is a string.
        let fd = unsafe { libc::memfd_create(c"zhuque-stub".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: a new descriptor, nobody else's.
            return Ok(unsafe { File::from_raw_fd(fd) });
        }
    }
    Err(anyhow!(std::io::Error::last_os_error()).context("cannot make a memfd for the stub"))
}
