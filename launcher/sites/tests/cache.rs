//! The cache: written as promised, and never trusted.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::elf::Builder;
use common::{LOADER, Scratch, present};
use zhuque_sites::{cached_plan, plan_file};

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("cache directory");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

#[test]
fn damage_is_repaired() {
    if !present(LOADER) {
        return;
    }
    let scratch = Scratch::new();
    let expected = plan_file(LOADER.as_ref()).expect("plan");
    let plan = || cached_plan(scratch.path(), LOADER.as_ref()).expect("plan");
    assert_eq!(plan(), expected);
    let [file] = &files(scratch.path())[..] else {
        panic!("one file, nothing temporary");
    };
    let name = file.file_name().expect("name").to_string_lossy();
    assert!(name.ends_with(&format!("-{}.sites", expected.library.size)));
    let mode = fs::metadata(file).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let good = fs::read(file).expect("read");
    let mut damaged = vec![Vec::new(), good[..10].to_vec(), good[..good.len() - 1].to_vec()];
    // Magic, rules, unplanned, checksum; then the plan's header, library and sites.
    for place in [0, 8, 12, 20, 24, 33, 44, 50, 120, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[place] ^= 0x10;
        damaged.push(bytes);
    }
    for bytes in damaged {
        fs::write(file, bytes).expect("write");
        assert_eq!(plan(), expected);
        assert!(fs::read(file).expect("read") == good, "rewritten");
    }
}

#[test]
fn identity_is_fresh() {
    if !present(LOADER) {
        return;
    }
    let scratch = Scratch::new();
    let cache = scratch.path().join("cache");
    let first = cached_plan(&cache, LOADER.as_ref()).expect("plan");
    let copy = scratch.file("copy", &fs::read(LOADER).expect("read"));
    let second = cached_plan(&cache, &copy).expect("plan");
    let stat = fs::metadata(&copy).expect("stat");
    assert_eq!(second.library.inode, stat.ino());
    assert_eq!(second.library.device, stat.dev());
    assert_eq!(second.library.first, 0);
    assert_eq!(first.sites, second.sites);
    assert_eq!(files(&cache).len(), 1);
    // Another size with the same build-id is another file.
    let mut longer = fs::read(LOADER).expect("read");
    longer.push(0);
    let longer = scratch.file("longer", &longer);
    cached_plan(&cache, &longer).expect("plan");
    assert_eq!(files(&cache).len(), 2);
}

#[test]
fn without_a_build_id_or_a_directory() {
    let scratch = Scratch::new();
    let cache = scratch.path().join("cache");
    let code = b"\xb8\x27\0\0\0\x0f\x05\xc3";
    let path = scratch.file("program", &Builder::function(code).build());
    assert_eq!(cached_plan(&cache, &path).expect("plan").sites.len(), 1);
    assert!(!cache.exists());
    if present(LOADER) {
        // A cache that cannot be written costs nothing but time.
        let blocked = path.join("cache");
        assert!(!cached_plan(&blocked, LOADER.as_ref()).expect("plan").sites.is_empty());
    }
}
