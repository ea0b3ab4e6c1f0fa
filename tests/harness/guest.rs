//! Programs that tests run: C guests built from `examples/`, scripts from there, and packaged programs.

use crate::command::{self, Finished, PATIENCE};
use crate::store::Store;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// A program with its arguments.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// How long one life may take.
    pub patience: Duration,
}

impl Guest {
    /// Any program.
    pub fn new(program: impl Into<PathBuf>) -> Guest {
        Guest { program: program.into(), arguments: Vec::new(), environment: Vec::new(), patience: PATIENCE }
    }

    /// A C guest: `examples/NAME.c`, built once.
    pub fn c(name: &str) -> Guest {
        Guest::new(build(name))
    }

    /// The same with musl, whose ld.so, threads and allocator are others; `None` where musl-gcc is not installed.
    pub fn musl(name: &str) -> Option<Guest> {
        let compiler = find("musl-gcc")?;
        Some(Guest::new(build_by(&compiler, name, &format!("{name}-musl"), &["-pthread"])))
    }

    /// An installed program, looked for where packages put them.
    pub fn installed(name: &str) -> Guest {
        Guest::new(find(name).unwrap_or_else(|| panic!("{name} is not installed (ci/test installs what is missing)")))
    }

    /// CPython as packaged, or `ZHUQUE_PYTHON`.
    pub fn python(script: &str) -> Guest {
        let guest = match std::env::var_os("ZHUQUE_PYTHON") {
            Some(named) => Guest::new(PathBuf::from(named)),
            None => Guest::installed("python3"),
        };
        guest.arg(shared(script))
    }

    /// With one more argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Guest {
        self.arguments.push(argument.into());
        self
    }

    /// With more arguments.
    pub fn args<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Guest {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With a variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Guest {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With that much time for one life.
    pub fn patience(mut self, limit: Duration) -> Guest {
        self.patience = limit;
        self
    }

    /// Its name for messages and regions.
    pub fn name(&self) -> String {
        let named = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let script = self.arguments.first().map(PathBuf::from).filter(|path| path.starts_with(script_dir()));
        script.as_deref().and_then(named).or_else(|| named(&self.program)).unwrap_or_default()
    }

    /// The command that runs it without zhuque, as the store's user, in `dir`.
    pub fn natively(&self, store: &Store, dir: &Path) -> Command {
        let mut command = command::command(&self.program, store.user());
        command.args(&self.arguments).envs(self.environment.iter().cloned()).current_dir(dir);
        command
    }

    /// Runs it natively to its end.
    pub fn finish_natively(&self, store: &Store, dir: &Path) -> Finished {
        command::finish(self.natively(store, dir), self.patience)
    }
}

/// An executable in the usual places. Not by PATH: that may lead to wrappers below a home directory, which an ordinary
/// user cannot enter.
pub fn find(name: &str) -> Option<PathBuf> {
    let places = ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"];
    places.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// A file of `examples/`.
pub fn example(name: &str) -> PathBuf {
    command::workspace().join("examples").join(name)
}

/// Where guests and scripts lie, open to every user.
fn script_dir() -> PathBuf {
    let preferred = command::target().join("guests");
    fs::create_dir_all(&preferred).expect("target/guests");
    if command::open_to_all(&preferred) {
        return preferred;
    }
    let fallback = std::env::temp_dir().join(format!("zhuque-guests-{}", nix::unistd::geteuid()));
    fs::create_dir_all(&fallback).expect("directory for guests");
    fs::set_permissions(&fallback, fs::Permissions::from_mode(0o755)).expect("permissions");
    fallback
}

/// A script of `examples/`, as a copy that every user can read.
pub fn shared(name: &str) -> PathBuf {
    let source = example(name);
    place(&source, name, |to| fs::copy(&source, to).map(|_| ()).map_err(|error| error.to_string()))
}

/// Builds `examples/NAME.c`.
pub fn build(name: &str) -> PathBuf {
    build_with(name, name, &["-pthread"])
}

/// Builds `examples/SOURCE.c` as `name` with further flags.
pub fn build_with(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    build_by(Path::new("cc"), source, name, flags)
}

fn build_by(compiler: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let file = example(&format!("{source}.c"));
    place(&file, name, |to| {
        let built = Command::new(compiler).args(["-O1", "-g", "-Wall", "-o"]).arg(to).arg(&file).args(flags).output();
        match built {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(format!("{}: {error}", compiler.display())),
        }
    })
}

/// Makes a file once per test process: written beside its place and renamed, since other processes do the same.
fn place(source: &Path, name: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> PathBuf {
    static PLACED: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let mut placed = PLACED.get_or_init(Default::default).lock().unwrap_or_else(|held| held.into_inner());
    if let Some(path) = placed.get(name) {
        return path.clone();
    }
    let path = script_dir().join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    // A guest that runs elsewhere must not be replaced without need: a region remembers its program.
    let sources = [source.to_path_buf(), example("guest.h"), example("kept.h")];
    let current = modified(&path).is_some_and(|made| sources.iter().all(|file| modified(file) < Some(made)));
    if !current {
        let fresh = script_dir().join(format!(".{name}-{}", std::process::id()));
        make(&fresh).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("permissions");
        fs::rename(&fresh, &path).expect("put a guest into place");
    }
    placed.insert(name.to_string(), path.clone());
    path
}
