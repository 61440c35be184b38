//! Long messages: parsed as they arrive, with a limited part kept in memory.
//!
//! A function can raise an error or a notice with a text of any length, and `set_config` can set a
//! parameter to such a text. Buffering the whole message would use its size in memory. Rejecting it
//! would hide the error, or end a query because of a notice.
//!
//! All other messages except rows are short, at most
//! [`MAX_CONTROL_FRAME`](super::frame::MAX_CONTROL_FRAME).

use bytes::BytesMut;

use super::{
    backend::{ErrorFields, Message},
    frame::Header,
    tag::{self, name_of},
};
use crate::error::Result;

/// The maximum size of such a message that is buffered as a whole: 64 KiB, which is one read.
pub(crate) const MAX_WHOLE: usize = 64 << 10;

/// The maximum length of the part of a parameter or notification that is kept: its name, and enough
/// of its value to see that it exceeds the limit for values (8 KiB).
const MAX_HEAD: usize = 32 << 10;

/// A long message that has arrived in part.
#[derive(Debug)]
pub(crate) struct LongMessage {
    tag: u8,
    /// The number of bytes of the body that have not arrived.
    missing: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Fields(Box<ErrorFields>),
    Head(Vec<u8>),
}

impl LongMessage {
    /// Returns whether messages with this tag can be long.
    pub(crate) fn is_supported(tag: u8) -> bool {
        matches!(
            tag,
            tag::ERROR_RESPONSE
                | tag::NOTICE_RESPONSE
                | tag::PARAMETER_STATUS
                | tag::NOTIFICATION_RESPONSE
        )
    }

    /// Starts after this header. Returns `None` if the message must be buffered as a whole.
    pub(crate) fn begin(header: Header) -> Option<Self> {
        let Header { tag, size } = header;
        if !Self::is_supported(tag) || size <= MAX_WHOLE {
            return None;
        }
        let content = match tag {
            tag::ERROR_RESPONSE | tag::NOTICE_RESPONSE => {
                Content::Fields(Box::new(ErrorFields::new(tag)))
            }
            _ => Content::Head(Vec::new()),
        };
        Some(Self { tag, missing: size - super::frame::HEADER, content })
    }

    pub(crate) fn name(&self) -> &'static str {
        name_of(self.tag)
    }

    /// Removes the arrived part from the buffer. Returns the message when it is complete.
    pub(crate) fn take_from(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>> {
        let piece = buffer.split_to(self.missing.min(buffer.len()));
        self.missing -= piece.len();
        match &mut self.content {
            Content::Fields(fields) => {
                fields.parse(&piece)?;
                match self.missing {
                    0 => fields.finish().map(Some),
                    _ => Ok(None),
                }
            }
            Content::Head(head) => {
                let room = MAX_HEAD - head.len();
                head.extend_from_slice(piece.get(..room).unwrap_or(&piece));
                if self.missing > 0 {
                    return Ok(None);
                }
                // Terminate its fields at the end of the kept part.
                head.extend_from_slice(b"\0\0");
                Message::parse_head(self.tag, head).map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::{HEADER, MAX_FRAME};

    /// Reads a message in pieces of this size.
    fn take_in_pieces(tag: u8, body: &[u8], piece: usize) -> Result<Message> {
        let size = HEADER + body.len();
        let mut long = LongMessage::begin(Header { tag, size }).unwrap();
        for piece in body.chunks(piece) {
            let mut buffer = BytesMut::from(piece);
            let message = long.take_from(&mut buffer)?;
            assert!(buffer.is_empty());
            if let Some(message) = message {
                return Ok(message);
            }
        }
        panic!("the message is incomplete");
    }

    #[test]
    fn long_error_is_the_same_for_every_size_of_pieces() {
        // The limit is in the middle of a character.
        let text = format!("x{}", "\u{e4}".repeat(100_000));
        let mut body = Vec::new();
        for (tag, text) in [
            ('S', "FEHLER"),
            ('V', "ERROR"),
            ('C', "22P02"),
            ('M', &text),
            ('?', &text),
            ('D', &text),
            ('P', "12"),
        ] {
            body.extend_from_slice(format!("{tag}{text}\0").as_bytes());
        }
        body.push(0);
        let whole = Message::parse(b'E', &body).unwrap();
        for piece in [1, 2, 7, 8191, 65_536, body.len()] {
            assert_eq!(take_in_pieces(b'E', &body, piece).unwrap(), whole, "{piece}");
        }
        let Message::ErrorResponse(error) = whole else { panic!() };
        assert_eq!((error.code().code(), error.position()), ("22P02", Some(12)));
        assert_eq!(error.message().len(), 8191);
        assert!(text.starts_with(error.message()) && text.starts_with(error.detail().unwrap()));
    }

    #[test]
    fn long_malformed_error_is_rejected() {
        let long = "x".repeat(100_000);
        for body in [format!("M{long}"), format!("M{long}\0"), format!("\0{long}")] {
            assert!(take_in_pieces(b'E', body.as_bytes(), 1000).is_err());
        }
    }

    #[test]
    fn long_parameter_or_notification_keeps_its_name() {
        let long = "x".repeat(100_000);
        let parameter =
            take_in_pieces(b'S', format!("search_path\0{long}\0").as_bytes(), 1000).unwrap();
        let Message::ParameterStatus { name, value } = parameter else { panic!() };
        assert_eq!(name, "search_path");
        assert!(value.len() > 8 << 10 && value.len() <= MAX_HEAD);
        let notification =
            take_in_pieces(b'A', format!("\0\0\0\x01jobs\0{long}\0").as_bytes(), 9).unwrap();
        assert_eq!(notification, Message::NotificationResponse { channel: "jobs".into() });
        // The name has no end.
        let parameter = take_in_pieces(b'S', long.as_bytes(), 1000).unwrap();
        assert!(
            matches!(parameter, Message::ParameterStatus { name, .. } if name.len() <= MAX_HEAD)
        );
    }

    #[test]
    fn begin_accepts_only_long_messages_of_these_kinds() {
        for (tag, size) in [(b'E', MAX_WHOLE), (b'T', MAX_FRAME), (b'D', MAX_FRAME)] {
            assert!(LongMessage::begin(Header { tag, size }).is_none());
        }
        assert!(LongMessage::begin(Header { tag: b'N', size: MAX_WHOLE + 1 }).is_some());
    }
}
