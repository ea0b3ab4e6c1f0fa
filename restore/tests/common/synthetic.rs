//! A synthetic region on disk, with a revive of a few instructions.

use super::common::{BASE, Image, REVIVE, attr, process};
use super::{built, resume};
use core::mem::offset_of;
use std::arch::global_asm;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use zhuque_abi::journal::Record;
use zhuque_abi::layout::*;
use zhuque_abi::life::{ResumeArgs, Vdso};
use zhuque_abi::maps::Kind;
use zhuque_model::maptree::Attr;

/// Soft limit on descriptors in the journal.
pub const SOFT_LIMIT: u64 = 1024;
/// Highest descriptor in the journal.
pub const HIGHEST_DESCRIPTOR: i32 = 200;
/// What revive compares: address and 64 bits there, up to an address of 0.
const TABLE: u64 = REVIVE + 0x10_0000;
/// First of the mappings, and their distance.
const FIRST: u64 = 0x1_0000_0000;
const DISTANCE: u64 = 0x10_0000;

global_asm!(
    ".pushsection .text.synthetic_revive,\"ax\",@progbits",
    ".globl synthetic_revive",
    ".globl synthetic_revive_end",
    "synthetic_revive:",
    "mov r12, rdi",
    // As at the entry of a function.
    "mov rax, rsp",
    "and eax, 15",
    "cmp eax, 8",
    "jne 8f",
    "movabs r13, {table}",
    "2: mov rax, [r13]",
    "test rax, rax",
    "jz 3f",
    "mov rbx, [rax]",
    "cmp rbx, [r13 + 8]",
    "jne 8f",
    "add r13, 16",
    "jmp 2b",
    // The clock, by way of the vdso where it is now.
    "3: mov rax, [r12 + {base}]",
    "add rax, [r12 + {function}]",
    "sub rsp, 24",
    "mov edi, 1",
    "mov rsi, rsp",
    "call rax",
    "test eax, eax",
    "jnz 8f",
    "cmp qword ptr [rsp], 0",
    "je 8f",
    "mov eax, 1",
    "mov edi, [r12 + {status}]",
    "lea rsi, [rip + 6f]",
    "mov edx, 3",
    "syscall",
    // Stop, so that the test can look.
    "mov eax, 39",
    "syscall",
    "mov edi, eax",
    "mov esi, 19",
    "mov eax, 62",
    "syscall",
    "mov edi, 42",
    "mov eax, 231",
    "syscall",
    "8: mov eax, 1",
    "mov edi, [r12 + {status}]",
    "lea rsi, [rip + 7f]",
    "mov edx, 15",
    "syscall",
    "mov edi, 125",
    "mov eax, 231",
    "syscall",
    "6: .ascii \"ok\\n\"",
    "7: .ascii \"wrong contents\\n\"",
    "synthetic_revive_end:",
    ".popsection",
    table = const TABLE,
    base = const offset_of!(ResumeArgs, vdso) + offset_of!(Vdso, base),
    function = const offset_of!(ResumeArgs, vdso) + offset_of!(Vdso, functions),
    status = const offset_of!(ResumeArgs, status),
);

unsafe extern "C" {
    static synthetic_revive: u8;
    static synthetic_revive_end: u8;
}

/// The code between the two symbols.
fn revive_code() -> &'static [u8] {
    // SAFETY: the symbols bound one section's bytes, which are never written.
    unsafe {
        let start = &raw const synthetic_revive;
        let bytes = (&raw const synthetic_revive_end).offset_from(start) as usize;
        std::slice::from_raw_parts(start, bytes)
    }
}

/// What kind of region.
pub struct Options {
    /// Mappings of the program.
    pub mappings: u64,
    /// A reservation of everything where the kernel puts stack and vdso.
    pub top: bool,
    /// One mapping that the kernel refuses: shared and writable, of a file opened read-only.
    pub unmappable: bool,
    /// One value in revive's table is wrong.
    pub wrong: bool,
    /// The program.
    pub exe: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options { mappings: 100, top: false, unmappable: false, wrong: false, exe: "/bin/sleep".into() }
    }
}

/// A region in a temporary directory, removed with this.
pub struct Synthetic {
    path: PathBuf,
    exe: PathBuf,
    directory: File,
    lock: File,
    slices: Vec<File>,
    mapped: Vec<(u64, u64)>,
    unmapped: Vec<(u64, u64)>,
    table: Vec<(u64, u64)>,
}

fn identity(path: &Path) -> [u64; 4] {
    let Ok(now) = path.metadata() else {
        return [0; 4];
    };
    [now.dev(), now.ino(), now.size(), now.mtime() as u64 * 1_000_000_000 + now.mtime_nsec() as u64]
}

impl Synthetic {
    /// Makes one.
    pub fn new(name: &str, options: &Options) -> Synthetic {
        let path = std::env::temp_dir().join(format!("zhuque-restore-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        let create = |file: &str, bytes| {
            let options = File::options().read(true).write(true).create_new(true).open(path.join(file));
            let file = options.expect("a file");
            file.set_len(bytes).expect("a sparse file");
            file
        };
        let slices = (0..SLICES).map(|i| create(&format!("{SLICE_PREFIX}{i:02}"), SLICE_BYTES)).collect();
        let lock = create(LOCK_FILE, 0);
        let exe = fs::canonicalize(&options.exe).unwrap_or_else(|_| options.exe.clone());
        let directory = File::open(&path).expect("a directory");
        let (mapped, unmapped, table) = (Vec::new(), Vec::new(), Vec::new());
        let mut region = Synthetic { path, exe, directory, lock, slices, mapped, unmapped, table };
        region.fill(options);
        // Until it is written back, ext4 does not count the blocks that a file's list of extents takes.
        for slice in &region.slices {
            slice.sync_all().expect("room");
        }
        region
    }

    /// A request to resume it.
    pub fn request(&self) -> resume::Request<'_> {
        resume::Request {
            name: "synthetic",
            path: &self.path,
            directory: self.directory.as_fd(),
            lock: self.lock.as_fd(),
            stub: built::stub(),
            flags: 0,
            hold_up_ns: 1_000_000_000,
            force: false,
            closed: [false; 3],
        }
    }

    /// The program.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The file that is mapped.
    pub fn data_file(&self) -> PathBuf {
        self.path.join("data")
    }

    /// A slice.
    pub fn slice(&self, index: usize) -> PathBuf {
        self.path.join(format!("{SLICE_PREFIX}{index:02}"))
    }

    /// What must be mapped.
    pub fn mapped(&self) -> &[(u64, u64)] {
        &self.mapped
    }

    /// What must not be.
    pub fn unmapped(&self) -> &[(u64, u64)] {
        &self.unmapped
    }

    /// Everything in it that a resume could write to.
    pub fn contents(&self) -> Vec<u8> {
        let control = File::open(self.path.join(CONTROL_FILE)).expect("a file");
        let mut all = fs::read(self.data_file()).expect("a file");
        for (offset, bytes) in parts() {
            let mut part = vec![0; bytes];
            control.read_exact_at(&mut part, offset).expect("its bytes");
            all.extend(part);
        }
        for (start, end) in &self.mapped {
            let (slice, offset) = slice_of(*start);
            let mut part = vec![0; (end - start).min(0x4000).min(SLICE_BYTES - offset) as usize];
            self.slices[slice].read_exact_at(&mut part, offset).expect("its bytes");
            all.extend(part);
        }
        for slice in &self.slices {
            all.extend(slice.metadata().expect("a file").blocks().to_le_bytes());
        }
        all
    }

    /// Writes 64 bits of region memory, and remembers them for revive's table.
    fn put(&mut self, address: u64, value: u64) {
        let (slice, offset) = slice_of(address);
        self.slices[slice].write_all_at(&value.to_le_bytes(), offset).expect("room");
        self.table.push((address, value));
    }

    fn fill(&mut self, options: &Options) {
        let data: Vec<u8> = (0..0x8000u32).flat_map(|n| (n / 8).to_le_bytes()).take(0x8000).collect();
        fs::write(self.data_file(), &data).expect("a file");
        let mut image = Image::new();
        let path = self.data_file().as_os_str().as_bytes().to_vec();
        let data_identity = identity(&self.data_file());
        let shared = image.file(&path, data_identity, true);
        let read_only = image.file(&path, data_identity, false);
        let exe = self.exe.as_os_str().as_bytes().to_vec();
        image.record(&Record::Process(process(&exe, identity(&self.exe), b"sleep\x0010\0")));
        image.record(&Record::Limit { resource: 7, soft: SOFT_LIMIT, hard: SOFT_LIMIT });
        image.record(&Record::Descriptor { fd: HIGHEST_DESCRIPTOR, description: 1, cloexec: false });

        for index in 0..options.mappings {
            self.add(&mut image, index, shared);
        }
        // Over the edge of a slice, a terabyte of nothing, and where the kernel puts the stack.
        let edge = 2 * SLICE_BYTES;
        self.region(&mut image, edge - PAGE, edge + PAGE, 3);
        self.put(edge - 8, 0x1234);
        self.put(edge, 0x5678);
        self.other(&mut image, 0x600_0000_0000, 0x700_0000_0000, attr(Kind::Reserve, 0));
        if options.top {
            self.other(&mut image, 0x7ff0_0000_0000, TASK_SIZE - 0x10_0000, attr(Kind::Reserve, 0));
        }
        if options.unmappable {
            let attr = Attr { file: read_only, ..attr(Kind::FileShared, 3) };
            self.other(&mut image, 0x500_0000_0000, 0x500_0000_1000, attr);
        }
        self.finish(&mut image, options);
    }

    /// The mapping with a number, of one of several kinds.
    fn add(&mut self, image: &mut Image, index: u64, file: u32) {
        let start = FIRST + index * DISTANCE;
        let end = start + 2 * PAGE;
        let page = index % 7 * PAGE;
        match index % 10 {
            0 => self.other(image, start, end, attr(Kind::Reserve, 0)),
            1 => {
                self.other(image, start, end, Attr { file, offset: page, ..attr(Kind::FilePrivate, 1) });
                self.expect_data(start, page);
            }
            2 => {
                self.other(image, start, end, Attr { file, offset: page, ..attr(Kind::FileShared, 3) });
                self.expect_data(start, page);
            }
            3 => {
                let kind = if index % 20 == 3 { Kind::Headroom } else { Kind::Volatile };
                image.map(start, end, attr(kind, 0));
                self.unmapped.push((start, end));
            }
            rest => {
                self.region(image, start, end, if rest == 4 { 1 } else { 3 });
                self.put(start + 8 * (index % 500), 0x5a5a_0000 + index);
                self.put(end - 8, !index);
            }
        }
    }

    fn region(&mut self, image: &mut Image, start: u64, end: u64, prot: u8) {
        self.other(image, start, end, attr(Kind::Region, prot));
    }

    fn other(&mut self, image: &mut Image, start: u64, end: u64, attr: Attr) {
        image.map(start, end, attr);
        self.mapped.push((start, end));
    }

    /// The data file's contents at `offset` are expected at `start`.
    fn expect_data(&mut self, start: u64, offset: u64) {
        let mut value = [0; 8];
        let file = File::open(self.data_file()).expect("a file");
        file.read_exact_at(&mut value, offset).expect("its bytes");
        self.table.push((start, u64::from_le_bytes(value)));
    }

    /// Revive, its table, and the control file.
    fn finish(&mut self, image: &mut Image, options: &Options) {
        let code = revive_code();
        let (slice, offset) = slice_of(REVIVE);
        self.slices[slice].write_all_at(code, offset).expect("room");
        let mut table = self.table.clone();
        // Revive can see the control mapping and the life area, which is fresh.
        table.push((BASE, zhuque_abi::header::MAGIC));
        table.push((BASE + LIFE_OFFSET, u64::from(options.wrong)));
        let bytes: Vec<u8> = table.iter().flat_map(|(a, v)| [a.to_le_bytes(), v.to_le_bytes()]).flatten().collect();
        let (slice, offset) = slice_of(TABLE);
        self.slices[slice].write_all_at(&bytes, offset).expect("room");
        self.region(image, TABLE, TABLE + page_up(bytes.len() as u64 + 8), 1);
        self.mapped.push((REVIVE, REVIVE + PAGE));

        image.seal();
        let file = File::options().write(true).create_new(true).open(self.path.join(CONTROL_FILE)).expect("a file");
        file.set_len(CONTROL_BYTES).expect("a sparse file");
        for (offset, bytes) in parts() {
            let part = &image.bytes[offset as usize..offset as usize + bytes];
            file.write_all_at(part, offset).expect("room");
        }
    }
}

/// The parts of the control file that are in use.
fn parts() -> [(u64, usize); 4] {
    [(0, 0x3_0000), (NODES_OFFSET, 16384 * 64), (JOURNAL_OFFSET, 0x1000), (SLOTS_OFFSET, 3 * SLOT_STRIDE as usize)]
}

impl Drop for Synthetic {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
