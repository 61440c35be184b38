use std::{fmt, sync::Arc};

use super::{
    channel::Channel,
    stats::{StreamState, StreamStats},
};
use crate::error::Result;

/// Steers a stream from other tasks: made by [`QueryStream::control`](crate::QueryStream::control).
///
/// It keeps nothing alive but the numbers: dropping it changes nothing, and dropping the stream ends
/// the stream.
#[derive(Clone)]
pub struct StreamControl {
    channel: Arc<Channel>,
}

impl StreamControl {
    pub(super) fn new(channel: &Arc<Channel>) -> Self {
        Self { channel: Arc::clone(channel) }
    }

    /// Like [`QueryStream::pause`](crate::QueryStream::pause).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`](crate::Error::InvalidState) when the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause(&self) -> Result<()> {
        self.channel.pause(None).await
    }

    /// Like [`QueryStream::pause_with_reason`](crate::QueryStream::pause_with_reason).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`](crate::Error::InvalidState) when the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause_with_reason(&self, reason: &str) -> Result<()> {
        self.channel.pause(Some(reason)).await
    }

    /// Like [`QueryStream::resume`](crate::QueryStream::resume).
    ///
    /// # Errors
    ///
    /// None: the result is always `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it resolves at once.
    pub async fn resume(&self) -> Result<()> {
        self.channel.resume();
        Ok(())
    }

    /// Stops the query on the server; resolves when the client can run its next query.
    ///
    /// Rows that wait are discarded. Whoever reads the stream gets the rest of the chunk it is at, then
    /// [`Error::Cancelled`](crate::Error::Cancelled), so that it does not take the end for that of the
    /// rows. After the end nothing is left to stop.
    ///
    /// # Errors
    ///
    /// As of [`QueryStream::cancel`](crate::QueryStream::cancel).
    ///
    /// # Cancel safety
    ///
    /// The query is stopped all the same when the future is dropped.
    pub async fn cancel(&self) -> Result<()> {
        self.channel.close(StreamState::Cancelled, false);
        self.channel.released().await
    }

    /// Returns where the stream stands.
    pub fn state(&self) -> StreamState {
        self.stats().state
    }

    /// Returns what the stream has done and holds at the moment.
    pub fn stats(&self) -> StreamStats {
        self.channel.stats()
    }
}

impl fmt::Debug for StreamControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamControl").field("state", &self.state()).finish_non_exhaustive()
    }
}
