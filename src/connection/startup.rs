//! A socket on which a session is being started.

use std::io;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};

use super::{
    async_messages::AsyncMessages,
    messages::{Taken, take_message},
    server_connection::SMALL_READ,
    trace::trace_sent,
};
use crate::{
    config::Password,
    error::{
        DbError, Error, LOGGING_IN, LOGGING_IN_BY_3_2, NOT_STARTED, OneLine, Result,
        advice_for_refusal,
    },
    protocol::{
        backend::Message,
        frame::{Header, MAX_STARTUP_FRAME, PreV3Error},
        long_message::LongMessage,
    },
    transport::{Transport, from_io_error},
};

/// Why a session could not be started.
pub(super) struct Rejection {
    pub(super) error: Error,
    /// The server rejected this login. It may accept it with another kind of encryption.
    pub(super) by_server: bool,
    /// The provider's password that the server rejected.
    pub(super) password: Option<Password>,
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self { error, by_server: false, password: None }
    }
}

/// The error of a session that the server rejected: because of the login (class 28), or not.
pub(super) fn refusal(e: Box<DbError>, user: &str) -> Error {
    if e.code().class() != "28" {
        return Error::Server(e);
    }
    let message = format!("{e}; {}", advice_for_refusal(&e, user));
    Error::Authentication { message, server: Some(e) }
}

/// A socket on which there is no session yet.
pub(super) struct StartupStream<'a> {
    pub(super) transport: Transport,
    pub(super) buffer: BytesMut,
    pub(super) long: Option<LongMessage>,
    pub(super) async_messages: AsyncMessages,
    /// The login has succeeded. Before that, only messages that belong to it are accepted.
    pub(super) trusted: bool,
    /// Set until the server answers a request for a version newer than 3.0.
    pub(super) unanswered: &'a mut bool,
}

impl StartupStream<'_> {
    pub(super) async fn send(&mut self, message: &[u8]) -> Result<()> {
        trace_sent(message);
        let sent = async {
            self.transport.write_all(message).await?;
            // TLS may buffer it otherwise.
            self.transport.flush().await
        };
        sent.await.map_err(|e| from_io_error(self.during(), e))
    }

    /// Receives the next message that may not come at any time.
    pub(super) async fn receive(&mut self) -> Result<Message> {
        loop {
            let async_messages = Some(&self.async_messages).filter(|_| self.trusted);
            match take_message(&mut self.buffer, &mut self.long, MAX_STARTUP_FRAME, async_messages)
            {
                Ok(Taken::Message(message)) => {
                    *self.unanswered = false;
                    return Ok(message);
                }
                Ok(Taken::Async) => {
                    // Its handler has run: check connect_timeout.
                    yield_now().await;
                    continue;
                }
                Ok(Taken::Incomplete) => self.buffer.reserve(SMALL_READ),
                Err(e) => return Err(self.pre_v3_error().await.unwrap_or(e)),
            }
            match self.transport.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    return Err(Error::ConnectionClosed { during: self.during(), source: None });
                }
                Ok(_) => {}
                Err(e) => return Err(from_io_error(self.during(), e)),
            }
        }
    }

    /// The error of a server that could not start a process for the session: text without a length,
    /// as in protocol 2.
    async fn pre_v3_error(&mut self) -> Option<Error> {
        loop {
            match Header::pre_v3_error(&self.buffer)? {
                PreV3Error::Whole(text) => {
                    let source = io::Error::other(OneLine::name(&text).to_string());
                    return Some(Error::Io { during: NOT_STARTED, source });
                }
                // The server may have been able to send only a part of it.
                PreV3Error::Beginning(text) => {
                    match self.transport.read_buf(&mut self.buffer).await {
                        Ok(1..) => {}
                        _ => {
                            let source = io::Error::other(OneLine::name(&text).to_string());
                            return Some(Error::Io { during: NOT_STARTED, source });
                        }
                    }
                }
            }
        }
    }

    /// The step in progress, for errors.
    fn during(&self) -> &'static str {
        if *self.unanswered { LOGGING_IN_BY_3_2 } else { LOGGING_IN }
    }
}
