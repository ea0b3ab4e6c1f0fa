//! Reading fixed layouts out of bytes that may be anything.
//!
//! Offsets come from `offset_of!` on the types of `zhuque_abi`, so the layouts are still defined once; the types
//! themselves hold atomics and are never made of untrusted bytes.

/// Bytes of a control file, or of one structure in it.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// `bytes` bytes from `offset` on.
    pub fn slice(&self, offset: u64, bytes: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(bytes).ok()?)?;
        self.0.get(start..end)
    }

    /// The same, to be read on.
    pub fn part(&self, offset: u64, bytes: u64) -> Option<Bytes<'a>> {
        self.slice(offset, bytes).map(Bytes)
    }

    /// A little-endian number at a field's offset; 0 outside of the bytes, whose length is checked beforehand.
    pub fn u64(&self, offset: usize) -> u64 {
        self.array(offset).map_or(0, u64::from_le_bytes)
    }

    /// See [`Bytes::u64`].
    pub fn u32(&self, offset: usize) -> u32 {
        self.array(offset).map_or(0, u32::from_le_bytes)
    }

    /// See [`Bytes::u64`].
    pub fn u16(&self, offset: usize) -> u16 {
        self.array(offset).map_or(0, u16::from_le_bytes)
    }

    /// See [`Bytes::u64`].
    pub fn u8(&self, offset: usize) -> u8 {
        self.array(offset).map_or(0, u8::from_le_bytes)
    }

    fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}

/// A zero-terminated text in a field of fixed length, fit for a message.
pub(crate) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    printable(&field[..end])
}

/// Bytes from a region, fit for one line of a message: no control characters, not too long.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(256).map(|c| if c.is_control() { '?' } else { c }).collect()
}
