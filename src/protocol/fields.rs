use super::tag::name_of;
use crate::error::{Error, Result};

/// A cursor over the fields of one message. Each method fails at the end of the message.
pub(super) struct FieldReader<'a> {
    rest: &'a [u8],
    /// The tag of the message.
    tag: u8,
}

impl<'a> FieldReader<'a> {
    pub(super) fn new(tag: u8, body: &'a [u8]) -> Self {
        Self { rest: body, tag }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or_else(|| self.too_short())?;
        self.rest = tail;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a text that ends with NUL. Invalid UTF-8 is replaced rather than rejected, because a
    /// server may send any encoding before the encoding of the session is set.
    pub(super) fn text(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|&b| b == 0).ok_or_else(|| self.too_short())?;
        let text = String::from_utf8_lossy(self.bytes(end)?).into_owned();
        self.u8()?;
        Ok(text)
    }

    /// Returns the rest of the message.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Checks that the whole message has been read.
    pub(super) fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::protocol(format!("{} has {} extra bytes", name_of(self.tag), self.rest.len())))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk().ok_or_else(|| self.too_short())?;
        self.rest = tail;
        Ok(*head)
    }

    fn too_short(&self) -> Error {
        Error::protocol(format!("{} ends in the middle of a field", name_of(self.tag)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_reader_reads_in_order_and_fails_at_the_end() {
        let mut r = FieldReader::new(b'Z', b"\x01\0\x02\0\0\0\x03ab\0\xff\0rest");
        assert_eq!(r.u8().unwrap(), 1);
        assert_eq!(r.i16().unwrap(), 2);
        assert_eq!(r.i32().unwrap(), 3);
        assert_eq!(r.text().unwrap(), "ab");
        assert_eq!(r.text().unwrap(), "\u{fffd}");
        assert_eq!(r.bytes(2).unwrap(), b"re");
        assert!(r.text().is_err(), "no NUL");
        assert!(r.u32().is_err(), "two bytes are left");
        assert!(r.bytes(3).is_err());
        assert_eq!(r.rest(), b"st");
        r.finish().unwrap();
    }

    #[test]
    fn finish_rejects_extra_bytes() {
        let error = FieldReader::new(b'Z', b"x").finish().unwrap_err().to_string();
        assert!(error.contains("ReadyForQuery has 1 extra bytes"), "{error}");
    }
}
