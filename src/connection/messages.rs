//! Removing messages from a read buffer.

use bytes::{Buf, BytesMut};

use super::{async_messages::AsyncMessages, report::count_protocol_error, trace::trace_received};
use crate::{
    error::Result,
    protocol::{
        backend::{DATA_ROW, Message, name_of},
        frame::{HEADER, Header, MAX_FRAME},
        long_message::LongMessage,
    },
};

/// The result of [`take_message`].
pub(crate) enum Taken {
    Message(Message),
    /// A message that may come at any time. It was handled. The next message may be a row, which is
    /// not for [`take_message`].
    Async,
    /// The message has not arrived completely.
    Incomplete,
}

/// Removes one message from a buffer. Without `async_messages`, only an expected message may
/// arrive. `long` keeps a message that has arrived only in part.
pub(super) fn take_message(
    buffer: &mut BytesMut,
    long: &mut Option<LongMessage>,
    max: usize,
    async_messages: Option<&AsyncMessages>,
) -> Result<Taken> {
    let name = match long {
        Some(reading) => reading.name(),
        None => name_of(buffer.first().copied().unwrap_or_default()),
    };
    let taken = take_uncounted(buffer, long, max, async_messages);
    if let Err(error) = &taken {
        count_protocol_error(name, error);
    }
    taken
}

fn take_uncounted(
    buffer: &mut BytesMut,
    long: &mut Option<LongMessage>,
    max: usize,
    async_messages: Option<&AsyncMessages>,
) -> Result<Taken> {
    let message = match long {
        Some(reading) => {
            let Some(message) = reading.take_from(buffer)? else { return Ok(Taken::Incomplete) };
            *long = None;
            message
        }
        None => {
            let tag = buffer.first().copied().unwrap_or_default();
            // Until the login has ended, the peer is not trusted to send that much.
            let may_be_long = async_messages.is_some() && LongMessage::is_supported(tag);
            let max = if may_be_long { MAX_FRAME } else { max };
            let Some(header) = Header::parse(buffer, max)? else { return Ok(Taken::Incomplete) };
            *long = LongMessage::begin(header).filter(|_| may_be_long);
            if long.is_some() {
                trace_received(name_of(tag), header.size);
                buffer.advance(HEADER);
                return take_uncounted(buffer, long, max, async_messages);
            }
            if buffer.len() < header.size {
                return Ok(Taken::Incomplete);
            }
            if tag != DATA_ROW {
                trace_received(name_of(tag), header.size);
            }
            let body = buffer.get(HEADER..header.size).unwrap_or_default();
            let message = Message::parse(tag, body);
            buffer.advance(header.size);
            message?
        }
    };
    let message = match async_messages {
        Some(async_messages) => async_messages.handle(message),
        None => Some(message),
    };
    Ok(message.map_or(Taken::Async, Taken::Message))
}
