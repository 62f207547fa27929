//! The primitive encodings of the log: LEB128 integers and length-prefixed bytes.

use thiserror::Error;

/// Damage in an encoded record. It says what was being read, never what to guess instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the record ends inside {0}")]
    Truncated(&'static str),
    /// A value that no writer makes.
    #[error("the record has an impossible {0}")]
    Invalid(&'static str),
}

/// Appends primitive values to a byte vector.
pub trait Write {
    /// Appends an unsigned integer, seven bits a byte, lowest first.
    fn put_uint(&mut self, value: u64);
    /// Appends a length and the bytes.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Appends a length and the text.
    fn put_str(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }
    /// Appends one byte.
    fn put_byte(&mut self, byte: u8);
}

impl Write for Vec<u8> {
    fn put_uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push((value & 0x7f) as u8);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_uint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }

    fn put_byte(&mut self, byte: u8) {
        self.push(byte);
    }
}

/// Reads primitive values from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left. A newer writer may have appended fields an older reader does not know.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte; `what` names it in the error.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(first)
    }

    /// An unsigned integer of at most ten bytes.
    pub fn uint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid(what))
    }

    /// An unsigned integer that fits 32 bits.
    pub fn uint32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.uint(what)?).map_err(|_| DecodeError::Invalid(what))
    }

    /// An unsigned integer that fits 16 bits.
    pub fn uint16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        u16::try_from(self.uint(what)?).map_err(|_| DecodeError::Invalid(what))
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = usize::try_from(self.uint(what)?).map_err(|_| DecodeError::Invalid(what))?;
        if len > self.rest.len() {
            return Err(DecodeError::Truncated(what));
        }
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(bytes)
    }

    /// Length-prefixed UTF-8.
    pub fn str(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| DecodeError::Invalid(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read_back(value: u64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            out.put_uint(value);
            out.put_bytes(&bytes);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.uint("value").unwrap(), value);
            prop_assert_eq!(reader.bytes("bytes").unwrap(), &bytes[..]);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn damage_is_an_error_not_a_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.uint("value").is_ok() && reader.bytes("bytes").is_ok() {}
        }
    }

    #[test]
    fn an_integer_of_more_than_64_bits_is_invalid() {
        assert_eq!(Reader::new(&[0xff; 10]).uint("n"), Err(DecodeError::Invalid("n")));
        assert_eq!(Reader::new(&[0xff; 3]).uint("n"), Err(DecodeError::Truncated("n")));
    }
}
