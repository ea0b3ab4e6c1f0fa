//! Functions and landing pads as the unwinder finds them: a second reader of `.eh_frame` and `.gcc_except_table`.
//!
//! Key function: [`frames`]. Written from the LSB and the C++ ABI without gimli, which is what the planner uses.
//! Neighbour: `evidence`.

use super::view::View;

/// One frame description.
pub struct Frame {
    pub start: u64,
    pub end: u64,
    /// Where the unwinder may enter it; `None` if its table cannot be read.
    pub pads: Option<Vec<u64>>,
}

/// What a common entry says of the frames that refer to it.
#[derive(Clone, Default)]
struct Common {
    augmented: bool,
    addresses: u8,
    table: Option<u8>,
}

/// Bytes that are read in order, with the address of the first.
#[derive(Clone)]
struct Cursor<'a> {
    bytes: &'a [u8],
    address: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        self.address += count as u64;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn number(&mut self, count: usize) -> Option<u64> {
        let taken = self.take(count)?;
        Some(taken.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A LEB128 number; signs are not asked for here.
    fn leb(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A value in one of the encodings that x86-64 compilers use, 0 if it says "none".
    fn encoded(&mut self, encoding: u8) -> Option<u64> {
        let place = self.address;
        let value = match encoding & 0xf {
            0 | 4 | 0xc => self.number(8)?,
            1 => self.leb()?,
            2 => self.number(2)?,
            3 => self.number(4)?,
            0xa => self.number(2)? as i16 as u64,
            0xb => self.number(4)? as i32 as u64,
            _ => return None,
        };
        match encoding & 0x70 {
            _ if value == 0 => Some(0),
            0 => Some(value),
            0x10 => Some(place.wrapping_add(value)),
            _ => None,
        }
    }
}

/// Every frame of `.eh_frame`, as far as it can be walked.
pub fn frames(view: &View) -> Vec<Frame> {
    let names = &view.elf.shdr_strtab;
    let section = view.elf.section_headers.iter().find(|s| names.get_at(s.sh_name) == Some(".eh_frame"));
    let Some((address, bytes)) = section.and_then(|s| Some((s.sh_addr, view.bytes.get(s.file_range()?)?))) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut rest = Cursor { bytes, address };
    while let Some(length) = rest.number(4).filter(|&length| length != 0 && length < 0xffff_fff0) {
        let Some(mut entry) = rest.take(length as usize).map(|bytes| Cursor { bytes, address: rest.address - length })
        else {
            break;
        };
        let place = entry.address;
        let Some(back) = entry.number(4) else { break };
        if back == 0 {
            continue;
        }
        let common = place.wrapping_sub(back).wrapping_sub(address);
        let common = bytes.get(common as usize..).and_then(|bytes| common_entry(Cursor { bytes, address: 0 }));
        found.extend(common.and_then(|common| frame(view, entry, &common)));
    }
    found
}

fn common_entry(mut entry: Cursor) -> Option<Common> {
    let length = entry.number(4)?;
    let mut entry = Cursor { bytes: entry.take(length as usize)?, address: 0 };
    if entry.number(4)? != 0 {
        return None;
    }
    let version = entry.byte()?;
    let end = entry.bytes.iter().position(|&byte| byte == 0)?;
    let text = entry.take(end + 1)?;
    entry.leb()?;
    entry.leb()?;
    let _register = if version == 1 { u64::from(entry.byte()?) } else { entry.leb()? };
    let mut common = Common::default();
    for letter in &text[..end] {
        match letter {
            b'z' => {
                entry.leb()?;
                common.augmented = true;
            }
            b'R' => common.addresses = entry.byte()?,
            b'L' => common.table = Some(entry.byte()?),
            b'P' => {
                let encoding = entry.byte()?;
                entry.encoded(encoding)?;
            }
            b'S' | b'B' => {}
            _ => return None,
        }
    }
    Some(common)
}

fn frame(view: &View, mut entry: Cursor, common: &Common) -> Option<Frame> {
    let start = entry.encoded(common.addresses)?;
    let length = entry.encoded(common.addresses & 0xf)?;
    let mut table = 0;
    if common.augmented && entry.leb()? != 0 {
        table = common.table.map_or(Some(0), |encoding| entry.encoded(encoding))?;
    }
    let pads = if table == 0 { Some(Vec::new()) } else { landing_pads(view, table, start) };
    Some(Frame { start, end: start.wrapping_add(length), pads })
}

/// The landing pads of the function at `function`, whose table is at `table`.
fn landing_pads(view: &View, table: u64, function: u64) -> Option<Vec<u64>> {
    let mut area = Cursor { bytes: view.at(table), address: table };
    let base = match area.byte()? {
        0xff => function,
        encoding => area.encoded(encoding)?,
    };
    if area.byte()? != 0xff {
        area.leb()?;
    }
    let encoding = area.byte()?;
    let length = area.leb()? as usize;
    let address = area.address;
    let mut sites = Cursor { bytes: area.take(length)?, address };
    let mut pads = Vec::new();
    while !sites.bytes.is_empty() {
        sites.encoded(encoding)?;
        sites.encoded(encoding)?;
        let pad = sites.encoded(encoding)?;
        sites.leb()?;
        if pad != 0 {
            pads.push(base.wrapping_add(pad));
        }
    }
    Some(pads)
}
