//! Builds small ELF files with given code, to try one rule at a time.
//!
//! Key type: [`Builder`]. Layout (addresses are file offsets): headers at 0; code at [`CODE`], the only executable
//! segment; `.eh_frame` at [`EH_FRAME`]; other data from [`DATA`] on.

pub const CODE: u64 = 0x1000;
pub const EH_FRAME: u64 = 0x2000;
pub const DATA: u64 = 0x3000;
const END: usize = 0x5000;
const SECTIONS: u64 = 0x4000;
const DYNAMIC: u64 = 0x4800;

/// A function in `.eh_frame`: from, to (offsets in the code), address of its exception table.
pub type Frame = (u64, u64, Option<u64>);

#[derive(Clone, Default)]
pub struct Builder {
    pub code: Vec<u8>,
    pub frames: Vec<Frame>,
    /// Function symbols: from, size.
    pub symbols: Vec<(u64, u64)>,
    /// Bytes at addresses.
    pub data: Vec<(u64, Vec<u8>)>,
    pub dynamic: Vec<(u64, u64)>,
    /// Not position-independent.
    pub fixed: bool,
    /// Leave the section headers out.
    pub stripped: bool,
}

impl Builder {
    /// One function that is all of `code`.
    pub fn function(code: &[u8]) -> Builder {
        Builder { code: code.to_vec(), frames: vec![(0, code.len() as u64, None)], ..Builder::default() }
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0; END];
        put(&mut bytes, CODE, &self.code);
        if !self.frames.is_empty() {
            put(&mut bytes, EH_FRAME, &self.eh_frame());
        }
        for (address, data) in &self.data {
            put(&mut bytes, *address, data);
        }
        let dynamic = self.dynamic.iter().chain([&(0, 0)]);
        let dynamic: Vec<u8> =
            dynamic.flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()).collect();
        put(&mut bytes, DYNAMIC, &dynamic);
        let segments = [
            (1u32, 4u32, 0, CODE),
            (1, 5, CODE, 0x1000),
            (1, 4, EH_FRAME, END as u64 - EH_FRAME),
            (2, 4, DYNAMIC, dynamic.len() as u64),
        ];
        let used = if self.dynamic.is_empty() { 3 } else { 4 };
        for (index, (kind, flags, place, size)) in segments.into_iter().take(used).enumerate() {
            let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
            for word in [place, place, place, size, size, 0x1000] {
                header.extend(word.to_le_bytes());
            }
            put(&mut bytes, 64 + 56 * index as u64, &header);
        }
        let sections = match self.stripped {
            true => 0,
            false => self.put_sections(&mut bytes),
        };
        self.put_header(&mut bytes, used as u16, sections);
        bytes
    }

    fn put_header(&self, bytes: &mut [u8], segments: u16, sections: u16) {
        let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let kind: u16 = if self.fixed { 2 } else { 3 };
        header.extend(kind.to_le_bytes());
        header.extend(62u16.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        for word in [0, 64, SECTIONS] {
            header.extend(u64::to_le_bytes(word));
        }
        header.extend(0u32.to_le_bytes());
        for half in [64, 56, segments, 64, sections, 1] {
            header.extend(u16::to_le_bytes(half));
        }
        put(bytes, 0, &header);
    }

    /// Null, names, `.eh_frame`, symbols.
    fn put_sections(&self, bytes: &mut [u8]) -> u16 {
        let names = b"\0.eh_frame\0";
        let names_at = SECTIONS + 0x200;
        put(bytes, names_at, names);
        let symbols_at = SECTIONS + 0x300;
        let mut symbols = vec![0; 24];
        for (start, size) in &self.symbols {
            symbols.extend([0, 0, 0, 0, 0x12, 0, 1, 0]);
            symbols.extend((CODE + start).to_le_bytes());
            symbols.extend(size.to_le_bytes());
        }
        put(bytes, symbols_at, &symbols);
        let frames = if self.frames.is_empty() { 0 } else { 0x1000 };
        let sections = [
            (0u32, 0u32, 0, 0),
            (0, 3, names_at, names.len() as u64),
            (1, 1, EH_FRAME, frames),
            (0, 2, symbols_at, symbols.len() as u64),
        ];
        let mut place = SECTIONS;
        for (name, kind, offset, size) in sections {
            let mut header = [name.to_le_bytes(), kind.to_le_bytes()].concat();
            for word in [0, offset, offset, size, 0, 1, 24] {
                header.extend(u64::to_le_bytes(word));
            }
            put(bytes, place, &header);
            place += 64;
        }
        // An empty .eh_frame must not be found.
        if self.frames.is_empty() { 2 } else { 4 }.max(if self.symbols.is_empty() { 0 } else { 4 })
    }

    /// A CIE with augmentation "zRL", then the FDEs.
    fn eh_frame(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let cie = b"\0\0\0\0\x01zRL\0\x01\x78\x10\x02\x1b\x1b\0\0\0\0\0";
        out.extend((cie.len() as u32).to_le_bytes());
        out.extend(cie);
        for (start, end, area) in &self.frames {
            let base = EH_FRAME + out.len() as u64;
            let relative = |target: u64, place: u64| (target.wrapping_sub(place) as u32).to_le_bytes();
            let mut fde = ((base + 4 - EH_FRAME) as u32).to_le_bytes().to_vec();
            fde.extend(relative(CODE + start, base + 8));
            fde.extend(((end - start) as u32).to_le_bytes());
            fde.push(4);
            fde.extend(area.map_or([0; 4], |area| relative(area, base + 17)));
            fde.extend([0; 3]);
            out.extend((fde.len() as u32).to_le_bytes());
            out.extend(fde);
        }
        out.extend([0; 4]);
        out
    }
}

fn put(bytes: &mut [u8], place: u64, what: &[u8]) {
    bytes[place as usize..place as usize + what.len()].copy_from_slice(what);
}
