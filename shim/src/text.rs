//! Short texts put together without allocation.

/// A text of at most 240 bytes; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; 240],
    used: usize,
}

impl Text {
    /// An empty text.
    pub const fn new() -> Self {
        Text { bytes: [0; 240], used: 0 }
    }

    /// A text that is `part`.
    pub fn of(part: &[u8]) -> Self {
        let mut text = Text::new();
        text.push(part);
        text
    }

    /// Adds `part`.
    pub fn push(&mut self, part: &[u8]) -> &mut Self {
        for &byte in part {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        self
    }

    /// Adds a decimal number.
    pub fn number(&mut self, value: u64) -> &mut Self {
        self.digits(value, 10)
    }

    /// Adds a hexadecimal number with `0x`.
    pub fn hex(&mut self, value: u64) -> &mut Self {
        self.push(b"0x").digits(value, 16)
    }

    fn digits(&mut self, mut value: u64, base: u64) -> &mut Self {
        let mut digits = [0u8; 20];
        let mut used = 0;
        for place in digits.iter_mut().rev() {
            *place = b"0123456789abcdef"[(value % base) as usize];
            value /= base;
            used += 1;
            if value == 0 {
                break;
            }
        }
        self.push(&digits[digits.len() - used..])
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&[])
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}
