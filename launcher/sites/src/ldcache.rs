//! glibc's index of installed libraries, `/etc/ld.so.cache`, and the CPU levels it distinguishes.
//!
//! Key types: [`LdCache`], [`cpu_levels`]. The file is a header, records of 24 bytes, and their strings; all offsets
//! count from the header. Older systems put an index of an older format in front. Neighbour: `search`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::headers::half;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const HEADER: usize = 48;
const RECORD: usize = 24;
const OLD_HEADER: usize = 16;
const OLD_RECORD: usize = 12;
/// `flags` of a 64-bit x86 library for glibc.
const X86_64: u32 = 0x0303;

/// The parsed file.
pub struct LdCache {
    bytes: Vec<u8>,
    /// Where the header starts.
    start: usize,
    records: usize,
}

impl LdCache {
    /// Reads the index; `None` if it is missing or in an unknown format.
    pub fn open(path: &Path) -> Option<LdCache> {
        LdCache::parse(std::fs::read(path).ok()?)
    }

    fn parse(bytes: Vec<u8>) -> Option<LdCache> {
        let start = match bytes.starts_with(OLD_MAGIC) {
            false => 0,
            true => {
                let count = half(bytes.get(..OLD_HEADER)?, 12) as usize;
                let end = count.checked_mul(OLD_RECORD)?.checked_add(OLD_HEADER)?;
                end.checked_next_multiple_of(8)?
            }
        };
        let header = bytes.get(start..)?.get(..HEADER)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let records = half(header, 20) as usize;
        let table = records.checked_mul(RECORD)?.checked_add(HEADER)?;
        bytes.get(start..)?.get(..table)?;
        Some(LdCache { bytes, start, records })
    }

    /// Where a library of this name is, the best for this CPU first.
    pub fn find(&self, name: &OsStr) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for index in 0..self.records {
            let place = self.start + HEADER + index * RECORD;
            let record = &self.bytes[place..place + RECORD];
            if half(record, 0) != X86_64 || self.string(half(record, 4)) != Some(name.as_bytes()) {
                continue;
            }
            let path = self.string(half(record, 8));
            let ranked = path.and_then(|path| Some((rank(path)?, path)));
            found.extend(ranked.map(|(rank, path)| (rank, PathBuf::from(OsStr::from_bytes(path)))));
        }
        // Stable: within one level, the order of the index is the order of preference.
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, path)| path).collect()
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(self.start + offset as usize..)?;
        rest.split(|&byte| byte == 0).next()
    }
}

/// The glibc-hwcaps directories this CPU can use, best first.
pub fn cpu_levels() -> &'static [&'static str] {
    use std::arch::is_x86_feature_detected as has;
    const LEVELS: [&str; 3] = ["x86-64-v4", "x86-64-v3", "x86-64-v2"];
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt");
    let v3 = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v2 && v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
    match (v2, v3, v3 && v4 && has!("avx512vl")) {
        (_, _, true) => &LEVELS,
        (_, true, _) => &LEVELS[1..],
        (true, _, _) => &LEVELS[2..],
        _ => &[],
    }
}

/// Preference of a path, lower is better; `None` if it is made for other CPUs.
fn rank(path: &[u8]) -> Option<usize> {
    let path = Path::new(OsStr::from_bytes(path));
    let mut parts = path.iter().skip_while(|part| *part != "glibc-hwcaps");
    let levels = cpu_levels();
    match parts.nth(1) {
        None => Some(levels.len()),
        Some(level) => levels.iter().position(|known| *known == level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index with one library of each (flags, path), all named `libx.so`.
    fn index(libraries: &[(u32, &str)]) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend((libraries.len() as u32).to_le_bytes());
        header.resize(HEADER, 0);
        let strings_at = HEADER + libraries.len() * RECORD;
        let mut strings = b"libx.so\0".to_vec();
        for (flags, path) in libraries {
            let place = strings_at + strings.len();
            for half in [*flags, strings_at as u32, place as u32, 0, 0, 0] {
                header.extend(half.to_le_bytes());
            }
            strings.extend(path.bytes().chain([0]));
        }
        [header, strings].concat()
    }

    #[test]
    fn finds_the_best_for_this_cpu() {
        let mut libraries = vec![(X86_64, "/a/libx.so"), (3, "/i386/libx.so")];
        let levels: Vec<String> =
            { cpu_levels().iter() }.map(|level| format!("/a/glibc-hwcaps/{level}/libx.so")).collect();
        libraries.extend(levels.iter().map(|path| (X86_64, path.as_str())));
        libraries.push((X86_64, "/a/glibc-hwcaps/x86-64-v9/libx.so"));
        let expected: Vec<PathBuf> =
            { levels.iter().map(String::as_str) }.chain(["/a/libx.so"]).map(PathBuf::from).collect();
        let new = index(&libraries);
        let cache = LdCache::parse(new.clone()).expect("index");
        assert_eq!(cache.find("libx.so".as_ref()), expected);
        assert!(cache.find("liby.so".as_ref()).is_empty());
        // The same behind an index of the older format, with one record and padding.
        let mut both = OLD_MAGIC.to_vec();
        both.extend(1u32.to_le_bytes());
        both.resize(32, 0);
        both.extend(&new);
        let cache = LdCache::parse(both).expect("index");
        assert_eq!(cache.find("libx.so".as_ref()), expected);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(LdCache::parse(Vec::new()).is_none());
        assert!(LdCache::parse(b"glibc-ld.so.cache9.9".to_vec()).is_none());
        let mut cut = index(&[(X86_64, "/a/libx.so")]);
        cut.truncate(HEADER + 3);
        assert!(LdCache::parse(cut).is_none());
    }
}
