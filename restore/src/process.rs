//! Reading what the kernel says about the process that becomes the program: /proc/PID/maps and its vdso.
//!
//! The image that the kernel has just loaded is thrown away; of interest are the addresses it takes, the vdso, which
//! stays, and one `syscall` instruction to take the process over with (every vdso has some: it falls back to the
//! call where the clock cannot be read directly).

use crate::Error;
use crate::holes::Run;
use goblin::elf::Elf;
use zhuque_abi::layout::TASK_SIZE;
use zhuque_abi::life::{MAX_VDSO_PIECES, VDSO_FUNCTIONS, Vdso};

/// What a process has mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Every mapping below [`TASK_SIZE`].
    pub runs: Vec<Run>,
    /// The mappings of the vdso, contiguous: variables, then the image as the last one. Empty: there is no vdso.
    pub vdso: Vec<Run>,
}

impl Maps {
    /// Reads the text of /proc/PID/maps.
    pub fn parse(text: &str) -> Result<Maps, Error> {
        let mut maps = Maps::default();
        for line in text.lines() {
            let (run, name) = parse_line(line).ok_or(Error::Kernel("/proc/PID/maps is unreadable"))?;
            if run.start >= TASK_SIZE {
                continue; // the vsyscall page
            }
            maps.runs.push(run);
            if name.starts_with("[vvar") || name == "[vdso]" {
                maps.vdso.push(run);
            }
        }
        maps.check_vdso()?;
        Ok(maps)
    }

    /// Variables and image together; empty if there is no vdso.
    pub fn vdso_run(&self) -> Run {
        match (self.vdso.first(), self.vdso.last()) {
            (Some(first), Some(last)) => Run { start: first.start, end: last.end },
            _ => Run { start: 0, end: 0 },
        }
    }

    /// The mapping of the vdso's image.
    pub fn vdso_image(&self) -> Option<Run> {
        self.vdso.last().copied()
    }

    fn check_vdso(&self) -> Result<(), Error> {
        let contiguous = self.vdso.windows(2).all(|pair| pair[0].end == pair[1].start);
        if !contiguous || self.vdso.len() > MAX_VDSO_PIECES {
            return Err(Error::Kernel("the vdso is not in one piece"));
        }
        Ok(())
    }
}

/// Bounds and name of one line: `start-end perms offset device inode   name`.
fn parse_line(line: &str) -> Option<(Run, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let run = Run { start: u64::from_str_radix(start, 16).ok()?, end: u64::from_str_radix(end, 16).ok()? };
    let name = rest.splitn(5, ' ').nth(4).unwrap_or("").trim_start();
    (run.start < run.end).then_some((run, name))
}

/// Offsets in the vdso's image of the functions that zhuque wraps.
pub fn vdso_functions(image: &[u8]) -> Result<[u64; VDSO_FUNCTIONS.len()], Error> {
    let elf = Elf::parse(image).map_err(|_| Error::Kernel("the vdso is no ELF file"))?;
    let mut functions = [0; VDSO_FUNCTIONS.len()];
    for symbol in elf.dynsyms.iter().filter(|s| s.st_value != 0 && s.st_value < image.len() as u64) {
        let name = elf.dynstrtab.get_at(symbol.st_name).unwrap_or("");
        if let Some(index) = VDSO_FUNCTIONS.iter().position(|f| *f == name) {
            functions[index] = symbol.st_value;
        }
    }
    Ok(functions)
}

/// The vdso as the shim wants it, with its image at `base`.
pub fn vdso_at(maps: &Maps, image: &[u8], base: u64) -> Result<Vdso, Error> {
    let Some(run) = maps.vdso_image() else {
        return Ok(Vdso::default());
    };
    Ok(Vdso {
        base,
        bytes: run.bytes(),
        variables: run.start - maps.vdso_run().start,
        functions: vdso_functions(image)?,
    })
}

/// Offset of a `syscall` instruction in code.
pub fn syscall_instruction(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|two| two == [0x0f, 0x05])
}
