use crate::error::{Error, Result};

/// The size of a header in bytes: the tag and the length.
pub(crate) const HEADER: usize = 5;

/// The maximum size of a frame, 1 GiB. Postgres builds a message in a `StringInfo`, which is
/// limited to `MaxAllocSize`, 1 GiB - 1.
pub(crate) const MAX_FRAME: usize = 1 << 30;

/// The maximum size of a frame that is not a row, 16 MiB. The protocol has no limit, but only
/// errors and notices, which contain text for an operator, can be large.
pub(crate) const MAX_CONTROL_FRAME: usize = 16 << 20;

/// The maximum size of a frame during the login, 30,000 bytes, as in libpq (`MAX_ERRLEN` in
/// fe-connect.c). The peer has not yet proved to be a Postgres server.
pub(crate) const MAX_STARTUP_FRAME: usize = 30_000;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: u8,
    /// The size of the whole frame in bytes, tag and length included.
    pub(crate) size: usize,
}

/// Returns the size of a frame by its length field, which counts itself but not the tag. If `usize`
/// has 32 bits, the maximum still exceeds every limit.
pub(crate) fn frame_size(length: [u8; 4]) -> usize {
    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_add(1)
}

impl Header {
    /// Parses the header at the start of `buf`. Returns `None` if it has not arrived completely.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: the size is less than that of a header, or more than `max` bytes.
    pub(crate) fn parse(buf: &[u8], max: usize) -> Result<Option<Self>> {
        let Some(&[tag, a, b, c, d]) = buf.first_chunk::<HEADER>() else { return Ok(None) };
        let size = frame_size([a, b, c, d]);
        if size < HEADER || size > max {
            return Err(Error::protocol(format!(
                "message {:?} of {} bytes: expected {} to {max}; is this a Postgres server?",
                char::from(tag),
                size,
                HEADER,
            )));
        }
        Ok(Some(Self { tag, size }))
    }

    /// Returns the text of an error in the format of protocols before 3: `E`, then text that ends
    /// with NUL, without a length. Current servers send it if they cannot start a process for a
    /// session. Returns `None` for anything else.
    pub(crate) fn pre_v3_error(buf: &[u8]) -> Option<PreV3Error> {
        let text = buf.strip_prefix(b"E")?;
        let text = text.get(..MAX_PRE_V3_ERROR).unwrap_or(text);
        let (text, is_whole) = match text.iter().position(|&b| b == 0) {
            Some(end) => (text.get(..end)?, true),
            None => (text, text.len() == MAX_PRE_V3_ERROR),
        };
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            // The buffer ends in the middle of a character.
            Err(e) if !is_whole && e.error_len().is_none() => {
                std::str::from_utf8(text.get(..e.valid_up_to())?).ok()?
            }
            Err(_) => return None,
        };
        let text = text.trim();
        if (is_whole && text.is_empty()) || text.chars().any(char::is_control) {
            return None;
        }
        let text = text.to_owned();
        Some(if is_whole { PreV3Error::Whole(text) } else { PreV3Error::Beginning(text) })
    }
}

/// The maximum length of such a text in bytes, which is more than servers send.
const MAX_PRE_V3_ERROR: usize = 8 << 10;

/// An error in the format of protocols before 3.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PreV3Error {
    Whole(String),
    /// Its end has not arrived.
    Beginning(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_complete_incomplete_or_invalid() {
        assert_eq!(Header::parse(b"", 100).unwrap(), None);
        assert_eq!(Header::parse(b"Z\0\0\0", 100).unwrap(), None);
        let ready = Header::parse(b"Z\0\0\0\x05I", 100).unwrap();
        assert_eq!(ready, Some(Header { tag: b'Z', size: 6 }));
        assert!(Header::parse(b"Z\0\0\0\x03", 100).is_err(), "shorter than the length itself");
        assert!(Header::parse(b"Z\0\0\0\x64", 100).is_err(), "one byte too large");
        assert!(Header::parse(b"Z\0\0\0\x63", 100).is_ok());
        assert!(Header::parse(b"Z\xff\xff\xff\xff", MAX_FRAME).is_err());
        assert!(Header::parse(b"1\0\0\0\x04", 100).is_ok(), "no body at all");
    }

    /// As sent by `report_fork_failure_to_client` in postmaster.c; also an error in the current
    /// format.
    #[test]
    fn pre_v3_error_returns_the_text_that_has_arrived() {
        let text = "could not fork new process for connection: Speicher nicht verf\u{fc}gbar";
        let error = format!("E{text}\n\0");
        assert_eq!(Header::pre_v3_error(error.as_bytes()), Some(PreV3Error::Whole(text.into())));
        for cut in 1..error.len() - 1 {
            let beginning = Header::pre_v3_error(&error.as_bytes()[..cut]);
            assert!(
                matches!(&beginning, Some(PreV3Error::Beginning(b)) if text.starts_with(&**b)),
                "{cut}: {beginning:?}"
            );
        }
        let endless = Header::pre_v3_error(&[b'E'; 20_000]);
        assert!(matches!(endless, Some(PreV3Error::Whole(text)) if text.len() == MAX_PRE_V3_ERROR));
        for other in
            [&b"E\0\0\0\x0eSFATAL\0\0"[..], b"E\n\0", b"Ebad\x1b[2J\0", b"Sorry\0", b"Ea\xffb\0"]
        {
            assert_eq!(Header::pre_v3_error(other), None, "{other:?}");
        }
    }
}
