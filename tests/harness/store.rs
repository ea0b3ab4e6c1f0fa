//! A temporary store for one test, with a working directory beside it, and the commands that look at it.
//!
//! Dropping it ends what still runs in it, by the region's own `rm` or by process id, and removes everything.

use crate::command::{self, Finished, ORDINARY, PATIENCE};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A store, who uses it, and where its guests work.
#[derive(Debug)]
pub struct Store {
    base: PathBuf,
    user: Option<u32>,
    zhuque: PathBuf,
    /// Resumes are started by this command.
    resumed_by: Vec<PathBuf>,
}

/// What `ls --json` says of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// `running`, `saved`, `ended`, `unsaved`, in lower case.
    pub state: String,
    /// Process id while it runs, else 0.
    pub pid: i32,
    /// How many lives it has had.
    pub generation: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes it takes up.
    pub bytes: u64,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A new directory where stores can be: on tmpfs if that has room.
fn new_base() -> PathBuf {
    let given = std::env::var_os("ZHUQUE_TEST_DIR").map(PathBuf::from);
    let parent = given.unwrap_or_else(|| {
        let shm = Path::new("/dev/shm");
        let room = nix::sys::statvfs::statvfs(shm).map(|is| is.blocks_available() * is.fragment_size());
        // Docker's /dev/shm has 64 MiB and cannot execute.
        let noexec = nix::sys::statvfs::FsFlags::ST_NOEXEC;
        let usable = nix::sys::statvfs::statvfs(shm).is_ok_and(|is| !is.flags().contains(noexec));
        if usable && room.is_ok_and(|bytes| bytes > 3 << 30) { shm.to_path_buf() } else { std::env::temp_dir() }
    });
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let base = parent.join(format!("zq-test-{}-{number}", std::process::id()));
    fs::create_dir(&base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
    base.canonicalize().expect("path of a directory just made")
}

impl Store {
    /// A store used by an ordinary user: whoever runs the tests, or nobody if that is root.
    pub fn new() -> Store {
        let root = nix::unistd::geteuid().is_root();
        let stay = std::env::var_os("ZHUQUE_TEST_ROOT").is_some();
        Store::of(if root && !stay { Some(ORDINARY) } else { None })
    }

    /// A store used by whoever runs the tests, also if that is root.
    pub fn of_caller() -> Store {
        Store::of(None)
    }

    /// A store whose resumes are refused ptrace.
    pub fn without_ptrace() -> Store {
        let mut store = Store::new();
        store.resumed_by = vec![crate::Guest::c("without_ptrace").program];
        store
    }

    /// A store whose resumes are on a machine that has booted at another time, by its clocks; `None` where the kernel does
    /// not let an ordinary user make believe so (user and time namespaces).
    pub fn rebooted() -> Option<Store> {
        /// What the guest says then.
        const REFUSED: i32 = 77;
        let mut store = Store::new();
        let wrapper = crate::Guest::c("rebooted").program;
        let mut command = command::command(&wrapper, store.user);
        command.arg("/bin/true");
        match command::finish(command, PATIENCE).status {
            0 => {
                store.resumed_by = vec![wrapper];
                Some(store)
            }
            REFUSED => None,
            status => panic!("rebooted ends with {status}"),
        }
    }

    fn of(user: Option<u32>) -> Store {
        let base = new_base();
        let mut store = Store { zhuque: command::zhuque().to_path_buf(), base, user, resumed_by: Vec::new() };
        // An ordinary user cannot reach a build below /root, say.
        if user.is_some() && !command::open_to_all(&store.zhuque) {
            let copy = store.base.join("zhuque");
            fs::copy(&store.zhuque, &copy).expect("copy zhuque");
            store.zhuque = copy;
        }
        store.give(&store.base.clone(), 0o755);
        fs::create_dir(store.dir()).expect("store");
        store.give(&store.dir(), 0o700);
        store
    }

    /// Makes `path` the user's own.
    pub fn give(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
        if let Some(id) = self.user {
            chown(path, Some(id), Some(id)).expect("chown");
        }
    }

    /// The store's directory.
    pub fn dir(&self) -> PathBuf {
        self.base.join("store")
    }

    /// A region's directory.
    pub fn region(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A path beside the store, for what a test makes.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// A new working directory for one life of a guest.
    pub fn work_dir(&self, name: &str) -> PathBuf {
        let dir = self.base.join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        self.give(&dir, 0o700);
        dir
    }

    /// Who runs guests here; `None`: whoever runs the tests.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// A `zhuque` command line for this store, run by its user.
    pub fn zhuque(&self, subcommand: &str) -> Command {
        let words = self.words(subcommand);
        let mut command = command::command(&words[0], self.user);
        command.args(&words[1..]).current_dir(&self.base);
        command
    }

    /// Program and first arguments of that command line.
    fn words(&self, subcommand: &str) -> Vec<PathBuf> {
        let before = if subcommand == "resume" { self.resumed_by.as_slice() } else { &[] };
        let words = [self.zhuque.clone(), subcommand.into(), "-s".into(), self.dir()];
        before.iter().cloned().chain(words).collect()
    }

    /// The same, held back until its standard input is closed.
    pub fn held(&self, subcommand: &str) -> Command {
        let mut command = self.limited("{ read -r _ || exec </dev/null; }", subcommand);
        command.stdin(std::process::Stdio::piped());
        command
    }

    /// The same from a shell that has run `limits` before (ulimit, say).
    pub fn limited(&self, limits: &str, subcommand: &str) -> Command {
        let mut command = command::command(Path::new("/bin/sh"), self.user);
        command.args(["-c", &format!("{limits} && exec \"$@\""), "sh"]);
        command.args(self.words(subcommand)).current_dir(&self.base);
        command
    }

    /// Runs `zhuque SUBCOMMAND -s STORE ARGUMENTS` to its end.
    pub fn call(&self, subcommand: &str, arguments: &[&str]) -> Finished {
        let mut command = self.zhuque(subcommand);
        command.args(arguments);
        command::finish(command, PATIENCE)
    }

    /// What `ls --json` says.
    pub fn regions(&self) -> Vec<Region> {
        let listed = self.call("ls", &["--json"]);
        assert_eq!(listed.status, 0, "ls --json: {}", listed.stderr);
        let parsed: Value = serde_json::from_slice(&listed.stdout)
            .unwrap_or_else(|error| panic!("ls --json: {error}: {}", String::from_utf8_lossy(&listed.stdout)));
        let number = |object: &Value, key: &str| object.get(key).and_then(Value::as_u64).unwrap_or(0);
        let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).unwrap_or("").to_string();
        let objects = parsed.as_array().cloned().unwrap_or_default();
        let regions = objects.iter().map(|object| Region {
            name: text(object, "name"),
            state: text(object, "state").to_lowercase(),
            pid: number(object, "pid") as i32,
            generation: number(object, "generation"),
            threads: number(object, "threads"),
            bytes: number(object, "bytes"),
        });
        regions.collect()
    }

    /// The region called `name`, if it is listed.
    pub fn find(&self, name: &str) -> Option<Region> {
        self.regions().into_iter().find(|region| region.name == name)
    }

    /// Everything known of a region, for a test's last words.
    pub fn describe(&self, name: &str) -> String {
        let mut text = String::new();
        for (subcommand, arguments) in [("ls", vec![]), ("inspect", vec![name]), ("inspect", vec![name, "threads"])] {
            let told = self.call(subcommand, &arguments);
            let out = String::from_utf8_lossy(&told.stdout).into_owned();
            text += &format!("--- {subcommand} {}: {}\n{out}{}", arguments.join(" "), told.status, told.stderr);
        }
        text + &self.find(name).map_or_else(String::new, |region| threads_of(region.pid))
    }
}

/// The kernel's view of a process's threads: state, signals (proc(5)), and call with arguments, stack and instruction.
fn threads_of(pid: i32) -> String {
    let mut text = String::from("--- threads\n");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let kept = ["State", "SigPnd", "ShdPnd", "SigBlk"];
        let status = read("status")
            .lines()
            .filter(|line| kept.iter().any(|key| line.starts_with(key)))
            .collect::<Vec<_>>()
            .join(" ");
        text += &format!(
            "{}: {} call {}\n",
            thread.file_name().display(),
            status.replace('\t', " "),
            read("syscall").trim()
        );
    }
    text
}

impl Default for Store {
    fn default() -> Store {
        Store::new()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::env::var_os("ZHUQUE_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.base.display());
            return;
        }
        // Only names in this store, so only what this test has started.
        for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|_| entry.path().join("control").exists()) {
                let mut command = self.zhuque("rm");
                command.arg(name).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
                if let Ok(mut child) = command.spawn()
                    && command::wait(&mut child, PATIENCE).is_none()
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
        let _ = fs::set_permissions(self.dir(), fs::Permissions::from_mode(0o700));
        let _ = fs::remove_dir_all(&self.base);
    }
}
