//! The vdso of this machine, as the kernel has mapped it into the launcher: every process of this kernel has the same.
//!
//! Read through /proc, so without unsafe code. Neighbours: `create` and `resume` tell the program's shim about it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, anyhow};
use goblin::elf::Elf;
use zhuque_abi::life::{VDSO_FUNCTIONS, Vdso};

/// The vdso; `base` is its address in the launcher.
pub fn find() -> anyhow::Result<Vdso> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let (base, end) = range(&maps, "[vdso]").ok_or_else(|| anyhow!("there is none"))?;
    let mut image = vec![0; (end - base) as usize];
    File::open("/proc/self/mem")?.read_exact_at(&mut image, base).context("cannot read it")?;
    Ok(Vdso { base, bytes: end - base, variables: variables(&maps, base), functions: functions(&image)? })
}

/// The address range with this name in a listing of maps.
fn range(maps: &str, name: &str) -> Option<(u64, u64)> {
    let line = maps.lines().find(|line| line.ends_with(name))?;
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

/// Bytes of the variable pages right below `base`; newer kernels have two mappings of them.
fn variables(maps: &str, base: u64) -> u64 {
    let mut start = base;
    for name in ["[vvar_vclock]", "[vvar]"] {
        match range(maps, name) {
            Some((from, to)) if to == start => start = from,
            _ => {}
        }
    }
    base - start
}

/// Offsets of the functions in [`VDSO_FUNCTIONS`].
fn functions(image: &[u8]) -> anyhow::Result<[u64; 6]> {
    let elf = Elf::parse(image).context("it is not an ELF image")?;
    // Its segments say at which address it thinks it lies; mostly 0.
    let linked = { elf.program_headers.iter() }
        .find(|header| header.p_type == goblin::elf::program_header::PT_LOAD)
        .map_or(0, |header| header.p_vaddr);
    Ok(VDSO_FUNCTIONS.map(|name| {
        let mut symbols = elf.dynsyms.iter();
        let symbol = symbols.find(|symbol| symbol.st_value != 0 && elf.dynstrtab.get_at(symbol.st_name) == Some(name));
        symbol.map_or(0, |symbol| symbol.st_value.wrapping_sub(linked))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_one() {
        let vdso = find().unwrap();
        assert!(vdso.bytes >= 4096 && vdso.bytes.is_multiple_of(4096));
        assert!(vdso.variables >= 4096);
        assert!(vdso.functions[0] != 0 && vdso.functions[0] < vdso.bytes);
    }

    #[test]
    fn variables_must_be_adjacent() {
        let maps = "1000-3000 r--p 0 0 0 [vvar]\n3000-4000 r--p 0 0 0 [vvar_vclock]\n4000-6000 r-xp 0 0 0 [vdso]";
        assert_eq!(range(maps, "[vdso]"), Some((0x4000, 0x6000)));
        assert_eq!(variables(maps, 0x4000), 0x3000);
        assert_eq!(variables("1000-3000 r--p 0 0 0 [vvar]", 0x4000), 0);
    }
}
