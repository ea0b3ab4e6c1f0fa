//! The files a program loads at start: its dynamic loader and all libraries it needs, found as the loader finds them.
//!
//! Key function: [`libraries`]. It is done without running anything. A wrong answer is harmless: a library that was
//! missed is not planned, and the shim identifies files by what it really maps. Neighbours: `search` (where the
//! loaders look), `headers` (what a file needs).

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use goblin::elf::dynamic::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB};

use crate::headers::ElfFile;
use crate::program::interpreter;
use crate::search::{Loader, split_path};

/// A loaded file, as far as the search for others depends on it.
struct Object {
    path: PathBuf,
    /// Who needed it first; its `DT_RPATH` counts, too.
    parent: Option<Rc<Object>>,
    needed: Vec<OsString>,
    soname: Option<OsString>,
    rpath: Vec<PathBuf>,
    runpath: Vec<PathBuf>,
}

/// The interpreter of the program at `path` and its libraries, in the order they are loaded. Empty for a static
/// program or a file that is none; libraries that cannot be found are left out. `ld_library_path` is the value of
/// the variable `LD_LIBRARY_PATH` in the environment that the program will get.
pub fn libraries(path: &Path, ld_library_path: Option<&OsStr>) -> Vec<PathBuf> {
    let Ok(program) = ElfFile::open(path) else {
        return Vec::new();
    };
    let Ok(Some(interpreter)) = interpreter(&program) else {
        return Vec::new();
    };
    let loader = Loader::of(&interpreter);
    let variable = ld_library_path.unwrap_or_default().as_bytes();
    let mut walk = Walk {
        variable: split_path(variable, b":;", path),
        names: HashSet::new(),
        files: HashSet::new(),
        found: Vec::new(),
        loader,
    };
    walk.files.insert((program.device, program.inode));
    if let Ok(elf) = ElfFile::open(&interpreter) {
        walk.files.insert((elf.device, elf.inode));
        walk.names.extend(Object::read(&elf, None, false).soname);
    }
    walk.names.extend(interpreter.file_name().map(OsString::from));
    walk.found.push(interpreter);
    let musl = walk.loader.is_musl();
    let mut queue = VecDeque::from([Rc::new(Object::read(&program, None, musl))]);
    // Breadth first, as both loaders do: the first library of a name wins.
    while let Some(object) = queue.pop_front() {
        for name in &object.needed {
            queue.extend(walk.load(name, &object).map(Rc::new));
        }
    }
    walk.found
}

/// The state of one walk.
struct Walk {
    loader: Loader,
    /// `LD_LIBRARY_PATH`.
    variable: Vec<PathBuf>,
    /// Names and sonames of what is loaded.
    names: HashSet<OsString>,
    /// Device and inode of every file that is loaded.
    files: HashSet<(u64, u64)>,
    found: Vec<PathBuf>,
}

impl Walk {
    /// Finds the library `name` for `object`; `None` if it is loaded already or nowhere.
    fn load(&mut self, name: &OsStr, object: &Rc<Object>) -> Option<Object> {
        if self.loader.provides(name) || self.names.contains(name) {
            return None;
        }
        // Libraries for other machines are passed over, as the loaders do.
        let candidates = self.candidates(name, object).into_iter();
        let (path, elf) = { candidates }.find_map(|path| ElfFile::open(&path).ok().map(|elf| (path, elf)))?;
        self.names.insert(name.into());
        if !self.files.insert((elf.device, elf.inode)) {
            return None;
        }
        let musl = self.loader.is_musl();
        let loaded = Object::read(&elf, Some(object.clone()), musl);
        self.names.extend(loaded.soname.clone());
        self.found.push(path);
        Some(loaded)
    }

    /// Every place where the loader would look, in its order.
    fn candidates(&self, name: &OsStr, object: &Rc<Object>) -> Vec<PathBuf> {
        if name.as_bytes().contains(&b'/') {
            return split_path(name.as_bytes(), b"", &object.path);
        }
        let mut places = Vec::new();
        let loader = &self.loader;
        let ancestors = || std::iter::successors(Some(object), |object| object.parent.as_ref());
        let inherited = |places: &mut Vec<PathBuf>| {
            for ancestor in ancestors() {
                loader.within(&ancestor.rpath, name, places);
            }
        };
        // DT_RUNPATH switches DT_RPATH off, also that of the ancestors. musl asks the variable first.
        if !loader.is_musl() && object.runpath.is_empty() {
            inherited(&mut places);
        }
        loader.within(&self.variable, name, &mut places);
        if loader.is_musl() {
            inherited(&mut places);
        }
        loader.within(&object.runpath, name, &mut places);
        places.extend(loader.candidates(name));
        places
    }
}

impl Object {
    /// Reads what a file needs.
    fn read(elf: &ElfFile, parent: Option<Rc<Object>>, musl: bool) -> Object {
        let mut object = Object {
            path: elf.path.clone(),
            parent,
            needed: Vec::new(),
            soname: None,
            rpath: Vec::new(),
            runpath: Vec::new(),
        };
        let Some(dynamic) = elf.dynamic() else {
            return object;
        };
        let table = dynamic.get(DT_STRTAB).and_then(|address| {
            let offset = elf.file_offset(address)?;
            elf.read(offset, dynamic.get(DT_STRSZ)?)
        });
        let table = table.unwrap_or_default();
        let string = |offset: u64| {
            let rest = table.get(usize::try_from(offset).ok()?..)?;
            let text = rest.split(|&byte| byte == 0).next()?;
            Some(OsString::from_vec(text.to_vec()))
        };
        object.needed = dynamic.all(DT_NEEDED).filter_map(string).collect();
        object.soname = dynamic.get(DT_SONAME).and_then(string);
        let directories = |tag| {
            let text = dynamic.get(tag).and_then(string).unwrap_or_default();
            split_path(text.as_bytes(), b":", &elf.path)
        };
        object.rpath = directories(DT_RPATH);
        object.runpath = directories(DT_RUNPATH);
        if !object.runpath.is_empty() {
            object.rpath.clear();
        }
        if musl {
            object.rpath.append(&mut object.runpath);
        }
        object
    }
}
