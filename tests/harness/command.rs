//! The `zhuque` command: where it is, how it is started, and bounded waits for whatever was started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long anything may take unless a test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `run` and `resume` end with this when the program was saved (EX_TEMPFAIL).
pub const SAVED: i32 = 75;
/// zhuque's own errors.
pub const ERROR: i32 = 125;

/// The ordinary user that guests run as when the tests run as root (nobody, nogroup).
pub const ORDINARY: u32 = 65534;

/// A process that has ended, as the tests look at it.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit status, 128 + N for signal N.
    pub status: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// Its errors.
    pub stderr: String,
}

impl Finished {
    /// The one number for an [`ExitStatus`].
    pub fn code(status: ExitStatus) -> i32 {
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Finished {
        Finished {
            status: Finished::code(output.status),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Where cargo builds to: the running test lies in `TARGET/PROFILE/deps`.
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    target.map(Path::to_path_buf).unwrap_or_else(|| workspace().join("target"))
}

/// The `zhuque` to test: `ZHUQUE_BIN`, else the newer of the release and the debug build.
pub fn zhuque() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(named) = std::env::var_os("ZHUQUE_BIN") {
            return PathBuf::from(named);
        }
        let builds = [target(), workspace().join("target")]
            .into_iter()
            .flat_map(|dir| ["release", "debug"].into_iter().map(move |profile| dir.join(profile).join("zhuque")));
        let newest = builds
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .max_by_key(|(modified, _)| *modified);
        match newest {
            Some((_, path)) => path,
            None => panic!("no zhuque to test: build it (cargo build --release) or set ZHUQUE_BIN"),
        }
    })
}

/// Whether every directory on the way to `path` can be entered, and the file executed, by any user.
pub fn open_to_all(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|data| data.permissions().mode() & 0o5 == 0o5))
}

/// A command without this test's own variables, run by `user`.
pub fn command(program: &Path, user: Option<u32>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ZHUQUE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    if let Some(id) = user {
        // Leaving uid 0 drops every capability; std drops the supplementary groups with it.
        command.uid(id).gid(id).env("HOME", "/").env("USER", "nobody");
    }
    command
}

/// Waits for `child` until `limit` has passed; `None` then.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `command` to its end; ends it, and the test, after `limit`.
pub fn finish(mut command: Command, limit: Duration) -> Finished {
    let shown = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("{shown}: {error}"),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let out = std::thread::spawn(move || read_all(stdout));
    let err = std::thread::spawn(move || read_all(stderr));
    let Some(status) = wait(&mut child, limit) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{shown}: not ended after {limit:?}");
    };
    Finished {
        status: Finished::code(status),
        stdout: out.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&err.join().unwrap_or_default()).into_owned(),
    }
}

fn read_all(stream: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = stream.read_to_end(&mut bytes);
    }
    bytes
}

/// Tries `probe` every few milliseconds until it gives something, for at most `limit`.
pub fn until<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}
