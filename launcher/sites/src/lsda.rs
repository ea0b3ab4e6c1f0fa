//! Landing pads: where the unwinder enters a function sideways.
//!
//! The language-specific data area (`.gcc_except_table`) of a function lists them. They are branch targets that no
//! branch shows. Key function: [`landing_pads`]. Neighbour: `functions`, which finds the areas through `.eh_frame`.

use gimli::{EndianSlice, LittleEndian, Reader};

const OMITTED: u8 = 0xff;
/// High half of an encoding byte: what the value is relative to.
const RELATION: u8 = 0x70;
const RELATIVE_TO_ITSELF: u8 = 0x10;

/// Appends the landing pads of the function that starts at `function` and whose area is `bytes`, mapped at `address`.
/// `None` if the area is not written as the C++ ABI says (some other personality's): then nobody knows the pads.
pub fn landing_pads(bytes: &[u8], address: u64, function: u64, found: &mut Vec<u64>) -> Option<()> {
    let mut reader =
        Area { rest: EndianSlice::new(bytes, LittleEndian), end: address.checked_add(bytes.len() as u64)? };
    let base = match reader.byte()? {
        OMITTED => function,
        encoding => reader.value(encoding)?,
    };
    if reader.byte()? != OMITTED {
        reader.rest.read_uleb128().ok()?;
    }
    let encoding = reader.byte()?;
    let length = usize::try_from(reader.rest.read_uleb128().ok()?).ok()?;
    let end = reader.rest.len().checked_sub(length)?;
    while reader.rest.len() > end {
        reader.value(encoding)?;
        reader.value(encoding)?;
        let pad = reader.value(encoding)?;
        reader.rest.read_uleb128().ok()?;
        if pad != 0 {
            found.push(base.wrapping_add(pad));
        }
    }
    Some(())
}

/// What is left of the area.
struct Area<'a> {
    rest: EndianSlice<'a, LittleEndian>,
    /// Address behind the last byte.
    end: u64,
}

impl Area<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.rest.read_u8().ok()
    }

    /// One value in a `DW_EH_PE_*` encoding.
    fn value(&mut self, encoding: u8) -> Option<u64> {
        let place = self.end - self.rest.len() as u64;
        let rest = &mut self.rest;
        let value = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => rest.read_u64().ok()?,
            0x01 => rest.read_uleb128().ok()?,
            0x02 => u64::from(rest.read_u16().ok()?),
            0x03 => u64::from(rest.read_u32().ok()?),
            0x09 => rest.read_sleb128().ok()? as u64,
            0x0a => i64::from(rest.read_i16().ok()?) as u64,
            0x0b => i64::from(rest.read_i32().ok()?) as u64,
            _ => return None,
        };
        match encoding & !0x0f {
            0 => Some(value),
            kind if kind & RELATION == RELATIVE_TO_ITSELF && kind & 0x80 == 0 => Some(place.wrapping_add(value)),
            _ => None,
        }
    }
}
