//! A store of its own for each test, the command, and regions made by hand.
//!
//! Regions are written from the layouts of `zhuque-abi` alone, so that the command is not tested against itself.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::mem::{offset_of, size_of};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use zhuque_abi::codec;
use zhuque_abi::header::{Globals, Header, MAGIC, Phase, VERSION, phase_word};
use zhuque_abi::journal::{Description, Object, Process, Record};
use zhuque_abi::layout::*;
use zhuque_abi::maps::{Kind, Node, TreeHead};
use zhuque_model::maptree::{Attr, MapTree};

/// A store that disappears with the test.
pub struct TestStore {
    pub path: PathBuf,
}

impl TestStore {
    pub fn new() -> TestStore {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/dev/shm/zhuque-test-{}-{number}", std::process::id());
        let path = PathBuf::from(path);
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        TestStore { path }
    }

    /// Runs the command in this store.
    pub fn zhuque<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Done {
        let output = Command::new(env!("CARGO_BIN_EXE_zhuque"))
            .env("ZHUQUE_STORE", &self.path)
            .args(arguments)
            .output()
            .unwrap();
        Done(output)
    }

    /// A path in the store.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a region in `phase`.
    pub fn region(&self, name: &str, phase: Phase) -> HandMade {
        let path = self.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        fs::create_dir(path.join(FILES_DIR)).unwrap();
        File::create(path.join(LOCK_FILE)).unwrap();
        let control = File::options().create_new(true).read(true).write(true).open(path.join(CONTROL_FILE)).unwrap();
        control.set_len(CONTROL_BYTES).unwrap();
        for slice in 0..SLICES {
            let file = File::create(path.join(format!("{SLICE_PREFIX}{slice:02}"))).unwrap();
            file.set_len(SLICE_BYTES).unwrap();
        }
        let region = HandMade { path, control };
        region.put(offset_of!(Header, magic), &MAGIC.to_le_bytes());
        region.put(offset_of!(Header, version), &VERSION.to_le_bytes());
        let size = size_of::<Header>() as u32;
        region.put(offset_of!(Header, size), &size.to_le_bytes());
        let word = phase_word(3, phase);
        region.put(offset_of!(Header, phase), &word.to_le_bytes());
        region.put(offset_of!(Header, threads), &7u32.to_le_bytes());
        region.seal();
        region
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A region made by hand.
pub struct HandMade {
    pub path: PathBuf,
    pub control: File,
}

impl HandMade {
    /// Writes into the control file.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        self.control.write_all_at(bytes, offset as u64).unwrap();
    }

    /// Makes the header's checksum right.
    pub fn seal(&self) {
        let mut page = vec![0; PAGE as usize];
        self.control.read_exact_at(&mut page, 0).unwrap();
        let phase = offset_of!(Header, phase);
        let checksum = offset_of!(Header, checksum);
        page[phase..phase + 8].fill(0);
        page[checksum..checksum + 4].fill(0);
        self.put(checksum, &codec::checksum(0, &page).to_le_bytes());
    }

    /// Writes a journal with its length and checksum.
    pub fn journal(&self, bytes: &[u8]) {
        self.put(JOURNAL_OFFSET as usize, bytes);
        let length = bytes.len() as u64;
        self.put(offset_of!(Header, journal_bytes), &length.to_le_bytes());
        let checksum = codec::checksum(0, bytes);
        self.put(offset_of!(Header, journal_checksum), &checksum.to_le_bytes());
        self.seal();
    }

    /// Writes a mapping table of `runs` region mappings.
    pub fn mappings(&self, runs: u64) {
        let mut head = TreeHead { seed: 42, ..TreeHead::default() };
        let mut nodes = vec![zero_node(); runs as usize + 2];
        let mut tree = MapTree::new(&mut head, &mut nodes);
        for run in 0..runs {
            let start = 0x7f00_0000_0000 + run * 2 * PAGE;
            let attr = Attr { kind: Kind::Region, prot: 3, flags: 0, file: 0, offset: 0 };
            tree.set(start, start + PAGE, attr).unwrap();
        }
        let at = GLOBALS_OFFSET as usize + offset_of!(Globals, tree);
        self.put(at + offset_of!(TreeHead, root), &head.root.to_le_bytes());
        self.put(at + offset_of!(TreeHead, free), &head.free.to_le_bytes());
        self.put(at + offset_of!(TreeHead, used), &head.used.to_le_bytes());
        self.put(at + offset_of!(TreeHead, count), &head.count.to_le_bytes());
        self.put(at + offset_of!(TreeHead, seed), &head.seed.to_le_bytes());
        for (index, node) in nodes.iter().enumerate().take(head.used as usize + 1) {
            let at = NODES_OFFSET as usize + index * size_of::<Node>();
            self.put(at, &node_bytes(node));
        }
        self.vouch(head.used);
    }

    /// Makes the tables' checksum right: there are `nodes` of mappings, and nothing else.
    fn vouch(&self, nodes: u32) {
        let part = |seed, at: u64, bytes: usize| {
            let mut read = vec![0; bytes];
            self.control.read_exact_at(&mut read, at).unwrap();
            codec::digest(seed, &read)
        };
        let sum = part(0, GLOBALS_OFFSET, size_of::<Globals>());
        let sum = part(sum, NODES_OFFSET + size_of::<Node>() as u64, nodes as usize * size_of::<Node>());
        self.put(offset_of!(Header, control_checksum), &sum.to_le_bytes());
        self.seal();
    }

    /// All bytes that a failed command must not change.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut start = vec![0; SITES_OFFSET as usize];
        self.control.read_exact_at(&mut start, 0).unwrap();
        start
    }
}

fn zero_node() -> Node {
    Node {
        start: 0,
        end: 0,
        offset: 0,
        max_gap: 0,
        min_start: 0,
        max_end: 0,
        left: 0,
        right: 0,
        file: 0,
        flags: 0,
        prot: 0,
        kind: 0,
    }
}

fn node_bytes(node: &Node) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Node>()];
    let mut put = |offset: usize, value: &[u8]| {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    put(offset_of!(Node, start), &node.start.to_le_bytes());
    put(offset_of!(Node, end), &node.end.to_le_bytes());
    put(offset_of!(Node, offset), &node.offset.to_le_bytes());
    put(offset_of!(Node, max_gap), &node.max_gap.to_le_bytes());
    put(offset_of!(Node, min_start), &node.min_start.to_le_bytes());
    put(offset_of!(Node, max_end), &node.max_end.to_le_bytes());
    put(offset_of!(Node, left), &node.left.to_le_bytes());
    put(offset_of!(Node, right), &node.right.to_le_bytes());
    put(offset_of!(Node, file), &node.file.to_le_bytes());
    put(offset_of!(Node, flags), &node.flags.to_le_bytes());
    put(offset_of!(Node, prot), &[node.prot]);
    put(offset_of!(Node, kind), &[node.kind]);
    bytes
}

/// A journal with a process, a file and two descriptors of it.
pub fn small_journal() -> Vec<u8> {
    let records = [
        Record::Process(Process {
            exe: b"/usr/bin/thing",
            exe_identity: [1, 2, 3, 4],
            arguments: b"thing\0-x\0",
            cwd: b"/",
            umask: 0o22,
            personality: 0,
            dumpable: 1,
            no_new_privs: 0,
            prctls: [0; 4],
            ids: [0; 6],
            groups: &[],
            session: 1,
            group: 1,
            membarrier: 0,
            coredump_filter: None,
            oom_score_adj: None,
            capabilities: Default::default(),
        }),
        Record::Description(Description {
            id: 1,
            flags: 2,
            owner: [0; 3],
            object: Object::File {
                path: b"/tmp/a\nb",
                identity: [1, 2, 3, 4],
                offset: 17,
                kept: b"",
                mapped: false,
                seals: 0,
            },
        }),
        Record::Descriptor { fd: 5, description: 1, cloexec: true },
        Record::Descriptor { fd: 3, description: 1, cloexec: false },
    ];
    let mut bytes = Vec::new();
    for record in &records {
        let mut space = vec![0; 4096];
        let used = codec::encode(record, &mut space).unwrap();
        bytes.extend(&space[..used]);
    }
    bytes
}

/// A command that has ended.
pub struct Done(pub Output);

impl Done {
    pub fn status(&self) -> i32 {
        self.0.status.code().unwrap_or_else(|| panic!("killed: {self:?}"))
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Asserts success; the output.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.status(), 0, "{self:?}");
        self.out()
    }

    /// Asserts an error of this status that is one line with all of `words` in it.
    #[track_caller]
    pub fn error(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status(), status, "{self:?}");
        let err = self.err();
        assert_eq!(err.lines().count(), 1, "{self:?}");
        assert!(err.starts_with("zhuque: "), "{self:?}");
        for word in words {
            assert!(err.contains(word), "no {word:?} in {self:?}");
        }
    }

    /// The output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.0.status;
        write!(f, "{status}\nstdout:\n{}stderr:\n{}", self.out(), self.err())
    }
}

/// Whether the tests run as root, who may make files of other users.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|m| m.uid() == 0)
}
