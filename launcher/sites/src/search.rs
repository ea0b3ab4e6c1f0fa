//! The directories in which the dynamic loaders of glibc and musl look for libraries.
//!
//! Key type: [`Loader`]. Neighbours: `ldcache` (glibc's index), `libraries` (walks from file to file).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::ldcache::{LdCache, cpu_levels};

const GLIBC_CACHE: &str = "/etc/ld.so.cache";
const GLIBC_CONFIG: &str = "/etc/ld.so.conf";
const GLIBC_DEFAULT: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
const MUSL_DEFAULT: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];
/// Configuration files include others; a circle must end.
const DEEPEST_INCLUDE: usize = 8;

/// A dynamic loader with its configuration.
pub enum Loader {
    /// ld-linux-x86-64.so.2.
    Glibc {
        /// `/etc/ld.so.cache`, if it can be read.
        cache: Option<LdCache>,
        /// The directories of `/etc/ld.so.conf`, if it cannot.
        configured: Vec<PathBuf>,
    },
    /// ld-musl-x86_64.so.1.
    Musl {
        /// The directories of its configuration file, or the built-in ones.
        directories: Vec<PathBuf>,
    },
}

impl Loader {
    /// The loader with this path.
    pub fn of(interpreter: &Path) -> Loader {
        let name = interpreter.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(b"ld-musl-") {
            let directories = musl_directories(interpreter);
            return Loader::Musl { directories };
        }
        let cache = LdCache::open(Path::new(GLIBC_CACHE));
        let mut configured = Vec::new();
        if cache.is_none() {
            read_config(Path::new(GLIBC_CONFIG), DEEPEST_INCLUDE, &mut configured);
        }
        Loader::Glibc { cache, configured }
    }

    /// Where a library may be that no search path of the program led to, in order.
    pub fn candidates(&self, name: &OsStr) -> Vec<PathBuf> {
        let mut found = Vec::new();
        match self {
            Loader::Musl { directories } => self.within(directories, name, &mut found),
            Loader::Glibc { cache, configured } => {
                if let Some(cache) = cache {
                    found.extend(cache.find(name));
                }
                self.within(configured, name, &mut found);
                self.within(&GLIBC_DEFAULT.map(PathBuf::from), name, &mut found);
            }
        }
        found
    }

    /// Where a library may be in these directories, in order.
    pub fn within(&self, directories: &[PathBuf], name: &OsStr, found: &mut Vec<PathBuf>) {
        for directory in directories {
            if let Loader::Glibc { .. } = self {
                let levels = cpu_levels().iter();
                let special = levels.map(|level| directory.join("glibc-hwcaps").join(level));
                found.extend(special.map(|directory| directory.join(name)));
            }
            found.push(directory.join(name));
        }
    }

    /// Whether the loader takes this name for itself: musl is its own libc, libpthread, ...
    pub fn provides(&self, name: &OsStr) -> bool {
        let Loader::Musl { .. } = self else {
            return false;
        };
        let own = ["c", "pthread", "rt", "m", "dl", "util", "xnet"];
        let rest = name.as_bytes().strip_prefix(b"lib").unwrap_or_default();
        let stem = rest.split(|&byte| byte == b'.').next().unwrap_or_default();
        rest.contains(&b'.') && own.iter().any(|own| own.as_bytes() == stem)
    }

    /// Whether this is musl, which treats `DT_RPATH` and `DT_RUNPATH` alike.
    pub fn is_musl(&self) -> bool {
        matches!(self, Loader::Musl { .. })
    }
}

/// Splits a search path and replaces `$ORIGIN` (the directory of `file`), `$LIB` and `$PLATFORM`. An empty element is
/// the current directory.
pub fn split_path(path: &[u8], separators: &[u8], file: &Path) -> Vec<PathBuf> {
    if path.is_empty() {
        return Vec::new();
    }
    let real = file.canonicalize().unwrap_or_else(|_| file.into());
    let origin = real.parent().unwrap_or(Path::new("/")).as_os_str();
    let library = match Path::new(GLIBC_DEFAULT[0]).is_dir() {
        true => "lib/x86_64-linux-gnu",
        false => "lib64",
    };
    let elements = path.split(|byte| separators.contains(byte));
    let expanded = elements.map(|element| {
        let mut element = element.to_vec();
        replace(&mut element, "ORIGIN", origin);
        replace(&mut element, "LIB", OsStr::new(library));
        replace(&mut element, "PLATFORM", OsStr::new("x86_64"));
        match element.is_empty() {
            true => PathBuf::from("."),
            false => PathBuf::from(OsString::from_vec(element)),
        }
    });
    expanded.collect()
}

/// Replaces `$NAME` and `${NAME}`.
fn replace(text: &mut Vec<u8>, name: &str, value: &OsStr) {
    for pattern in [format!("${{{name}}}"), format!("${name}")] {
        let pattern = pattern.as_bytes();
        let mut from = 0;
        while let Some(place) = find(&text[from..], pattern) {
            let start = from + place;
            text.splice(start..start + pattern.len(), value.as_bytes().iter().copied());
            from = start + value.len();
        }
    }
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    let mut windows = text.windows(pattern.len());
    windows.position(|window| window == pattern)
}

/// The directories that `/etc/ld.so.conf` and the files it includes name.
fn read_config(path: &Path, depth: usize, directories: &mut Vec<PathBuf>) {
    let Ok(text) = std::fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        match words.next() {
            None | Some("hwcap") => {}
            Some("include") if depth > 0 => {
                for file in words.flat_map(|pattern| included(path, pattern)) {
                    read_config(&file, depth - 1, directories);
                }
            }
            Some("include") => {}
            Some(_) => {
                let split = line.split([':', ',', ' ', '\t']).filter(|d| !d.is_empty());
                directories.extend(split.map(PathBuf::from));
            }
        }
    }
}

/// The files that an include line means, with one `*` in the last component, sorted.
fn included(config: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = config.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((prefix, suffix)) = name.split_once('*') else {
        return vec![pattern];
    };
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.len() >= prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix)
    });
    let mut files: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// The directories of `PREFIX/etc/ld-musl-x86_64.path`, where the loader is `PREFIX/lib/ld-musl-x86_64.so.1`.
fn musl_directories(interpreter: &Path) -> Vec<PathBuf> {
    let prefix = interpreter.parent().and_then(Path::parent);
    let config = prefix.unwrap_or(Path::new("/")).join("etc/ld-musl-x86_64.path");
    match std::fs::read(config) {
        Ok(text) => {
            let elements = text.split(|byte| b"\n:".contains(byte));
            let elements = elements.filter(|element| !element.is_empty());
            elements.map(|element| OsStr::from_bytes(element).into()).collect()
        }
        Err(_) => MUSL_DEFAULT.map(PathBuf::from).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_and_expanded() {
        let split = |text: &str| split_path(text.as_bytes(), b":;", Path::new("/nowhere/bin/x"));
        assert!(split("").is_empty());
        let expected = ["/nowhere/bin/../lib", ".", "/nowhere/bin", "/x86_64/y"].map(PathBuf::from);
        assert_eq!(split("$ORIGIN/../lib:;${ORIGIN}:/$PLATFORM/y"), expected);
    }

    #[test]
    fn configuration_is_read_with_includes() {
        let directory = std::env::temp_dir().join(format!("zhuque-search-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("d")).expect("directory");
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect(name);
        write("main", "# comment\ninclude d/*.conf\ninclude main\n/one # and\n");
        write("d/b.conf", "/three\n");
        write("d/a.conf", "/two:/twoandahalf\nhwcap 0 nosegneg\n");
        write("d/ignored", "/never\n");
        let mut found = Vec::new();
        read_config(&directory.join("main"), 1, &mut found);
        let once = ["/two", "/twoandahalf", "/three"].map(PathBuf::from);
        assert_eq!(found[..3], once);
        assert!(found.contains(&PathBuf::from("/one")) && !found.contains(&"/never".into()));
        std::fs::remove_dir_all(&directory).expect("cleaned up");
    }

    #[test]
    fn musl_is_its_own_libc() {
        let loader = Loader::of(Path::new("/nowhere/lib/ld-musl-x86_64.so.1"));
        assert!(loader.is_musl());
        for name in ["libc.so", "libc.musl-x86_64.so.1", "libpthread.so.0", "libm.so"] {
            assert!(loader.provides(name.as_ref()), "{name}");
        }
        for name in ["libcap.so.2", "libmagic.so", "libc", "c.so"] {
            assert!(!loader.provides(name.as_ref()), "{name}");
        }
        let expected = MUSL_DEFAULT.map(|directory| Path::new(directory).join("libz.so"));
        assert_eq!(loader.candidates("libz.so".as_ref()), expected);
    }
}
