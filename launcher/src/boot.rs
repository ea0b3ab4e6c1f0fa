//! The boot file: what each life of a program is told at its start.
//!
//! Key type: [`Settings`]. Written by `create`, and by the shim when the program executes another image: the machine,
//! and so its vdso, may be another by then. A resume only reads it.

use std::io::Read;
use std::mem::{offset_of, size_of};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::OFlag;
use zhuque_abi::header::VERSION;
use zhuque_abi::layout::BOOT_FILE;
use zhuque_abi::life::{BOOT_MAGIC, Boot, Vdso, boot_flag};

use crate::control::{u32_at, u64_at};
use crate::region::Region;
use crate::store::Medium;
use crate::vdso;

/// What was decided when the program was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Write back the program's files at a save.
    pub file_sync: bool,
    /// Budget of a save.
    pub hold_up: Duration,
    /// Whether SIGPWR was blocked when zhuque was started.
    pub power_blocked: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { file_sync: true, hold_up: Duration::from_secs(1), power_blocked: false }
    }
}

impl Settings {
    /// The budget of a save in ns.
    pub fn hold_up_ns(&self) -> u64 {
        u64::try_from(self.hold_up.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The flags of a life on this medium; see [`boot_flag`].
    pub fn flags(&self, medium: Medium) -> u32 {
        let medium = match medium {
            Medium::Memory => 0,
            Medium::Disk => boot_flag::SYNC_REGION,
            Medium::Dax => boot_flag::DAX,
        };
        medium | if self.file_sync { boot_flag::FILE_SYNC } else { 0 }
    }

    /// The bytes of a boot file for this machine.
    pub fn encode(&self, medium: Medium) -> anyhow::Result<Vec<u8>> {
        let here = vdso::find().context("cannot understand this machine's vdso")?;
        let mut bytes = vec![0; size_of::<Boot>()];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(offset_of!(Boot, magic), &BOOT_MAGIC.to_le_bytes());
        put(offset_of!(Boot, version), &VERSION.to_le_bytes());
        put(offset_of!(Boot, flags), &self.flags(medium).to_le_bytes());
        // `base` stays 0: the kernel chooses another address for the program.
        let at = offset_of!(Boot, vdso);
        put(at + offset_of!(Vdso, bytes), &here.bytes.to_le_bytes());
        put(at + offset_of!(Vdso, variables), &here.variables.to_le_bytes());
        for (index, function) in here.functions.iter().enumerate() {
            let offset = at + offset_of!(Vdso, functions) + 8 * index;
            put(offset, &function.to_le_bytes());
        }
        put(offset_of!(Boot, hold_up_ns), &self.hold_up_ns().to_le_bytes());
        let blocked = u64::from(self.power_blocked);
        put(offset_of!(Boot, power_blocked), &blocked.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a boot file; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Settings> {
        let sound = bytes.len() == size_of::<Boot>()
            && u64_at(bytes, offset_of!(Boot, magic)) == BOOT_MAGIC
            && u32_at(bytes, offset_of!(Boot, version)) == VERSION;
        sound.then(|| Settings {
            file_sync: u32_at(bytes, offset_of!(Boot, flags)) & boot_flag::FILE_SYNC != 0,
            hold_up: Duration::from_nanos(u64_at(bytes, offset_of!(Boot, hold_up_ns))),
            power_blocked: u64_at(bytes, offset_of!(Boot, power_blocked)) != 0,
        })
    }

    /// What a region was started with. A boot file that is damaged takes nothing from the saved state: then these
    /// are the defaults.
    pub fn read(region: &Region) -> Settings {
        let mut bytes = Vec::new();
        let file = region.open_file(BOOT_FILE, OFlag::O_RDONLY);
        let read = file.map(|file| file.take(4096).read_to_end(&mut bytes));
        match read {
            Ok(Ok(_)) => Settings::decode(&bytes).unwrap_or_default(),
            _ => Settings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let settings = Settings { file_sync: false, hold_up: Duration::from_millis(250), power_blocked: true };
        let bytes = settings.encode(Medium::Disk).unwrap();
        assert_eq!(Settings::decode(&bytes), Some(settings));
        assert_eq!(Settings::decode(&bytes[1..]), None);
        assert_eq!(Settings::decode(&[]), None);
        assert_eq!(settings.flags(Medium::Dax), boot_flag::DAX);
    }
}
