//! How a journal record becomes bytes: a frame of length, checksum and version around serde + bincode.
//!
//! This is the only place that names bincode, so that it can be exchanged. Nothing here allocates: the shim encodes
//! into the journal's memory, and a decoded record borrows from it.

use crate::journal::Record;

/// Bytes of a record's frame: length, CRC-32, version, each a little-endian u32.
pub const FRAME_BYTES: usize = 12;
/// Version of the record types. Raised whenever [`Record`] or anything in it changes.
pub const RECORD_VERSION: u32 = 5;

/// Why bytes are not a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodecError {
    /// A record does not fit into the memory given.
    Full,
    /// The bytes end inside a record.
    Truncated,
    /// A record's checksum does not match its bytes.
    Checksum,
    /// A record of another version; its number.
    Version(u32),
    /// The bytes are not an encoded record.
    Malformed,
}

impl core::fmt::Display for CodecError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            CodecError::Full => f.write_str("journal full"),
            CodecError::Truncated => f.write_str("truncated record"),
            CodecError::Checksum => f.write_str("record checksum does not match"),
            CodecError::Version(v) => write!(f, "record version {v}, this is version {RECORD_VERSION}"),
            CodecError::Malformed => f.write_str("malformed record"),
        }
    }
}

/// Writes `record` with its frame to the start of `out`; the bytes used.
pub fn encode(record: &Record<'_>, out: &mut [u8]) -> Result<usize, CodecError> {
    let (frame, body) = out.split_at_mut_checked(FRAME_BYTES).ok_or(CodecError::Full)?;
    let bytes =
        bincode::serde::encode_into_slice(record, body, bincode::config::standard()).map_err(|_| CodecError::Full)?;
    let checksum = crc32fast::hash(&body[..bytes]);
    frame[0..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    frame[8..12].copy_from_slice(&RECORD_VERSION.to_le_bytes());
    Ok(FRAME_BYTES + bytes)
}

/// The records of a journal, in order. Ends after the first error.
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Reads the records in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Records { rest: bytes }
    }

    fn take(&mut self) -> Result<Record<'a>, CodecError> {
        let word = |at: usize| -> Result<u32, CodecError> {
            let bytes = self.rest.get(at..at + 4).ok_or(CodecError::Truncated)?;
            Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| CodecError::Truncated)?))
        };
        let (length, checksum, version) = (word(0)? as usize, word(4)?, word(8)?);
        let end = FRAME_BYTES.checked_add(length).ok_or(CodecError::Truncated)?;
        let body = self.rest.get(FRAME_BYTES..end).ok_or(CodecError::Truncated)?;
        if version != RECORD_VERSION {
            return Err(CodecError::Version(version));
        }
        if crc32fast::hash(body) != checksum {
            return Err(CodecError::Checksum);
        }
        let (record, used) =
            bincode::serde::borrow_decode_from_slice(body, bincode::config::standard().with_limit::<0x1000_0000>())
                .map_err(|_| CodecError::Malformed)?;
        if used != length {
            return Err(CodecError::Malformed);
        }
        self.rest = &self.rest[end..];
        Ok(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken = self.take();
        if taken.is_err() {
            self.rest = &[];
        }
        Some(taken)
    }
}

/// CRC-32 of `bytes`, the checksum of everything but tables and threads ([`digest`]). `seed` is the checksum of what came
/// before, or 0.
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// The low half of the XXH3 of `bytes`, the checksum of tables and threads. `seed` is that of what came before, or 0; where
/// nothing is added it stays as it is.
///
/// They are hundreds of kilobytes, checked while the power fails: CRC-32 without instructions of its own, which `crc32fast`
/// chooses with the standard library only, takes five times as long.
pub fn digest(seed: u32, bytes: &[u8]) -> u32 {
    if bytes.is_empty() { seed } else { xxhash_rust::xxh3::xxh3_64_with_seed(bytes, u64::from(seed)) as u32 }
}
