use std::{fmt, sync::Arc, time::Duration};

use super::{
    channel::{Channel, ClosedBy},
    observer::now,
    stats::{StreamState, StreamStats},
};
use crate::error::Result;

/// Controls a stream from other tasks.
///
/// Created by [`QueryStream::control`](crate::QueryStream::control). The handle keeps only the
/// statistics alive. Dropping it has no effect; dropping the stream ends the stream as usual.
#[derive(Clone)]
pub struct StreamControl {
    channel: Arc<Channel>,
}

impl StreamControl {
    pub(super) fn new(channel: &Arc<Channel>) -> Self {
        Self { channel: Arc::clone(channel) }
    }

    /// Stops reading from the server: see [`QueryStream::pause`](crate::QueryStream::pause).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`](crate::Error::InvalidState): the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause(&self) -> Result<()> {
        self.channel.pause(None).await
    }

    /// Pauses with a reason: see
    /// [`QueryStream::pause_with_reason`](crate::QueryStream::pause_with_reason).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`](crate::Error::InvalidState): the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause_with_reason(&self, reason: &str) -> Result<()> {
        self.channel.pause(Some(reason)).await
    }

    /// Resumes a paused stream: see [`QueryStream::resume`](crate::QueryStream::resume).
    ///
    /// # Errors
    ///
    /// None. The result is always `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it resolves immediately.
    pub async fn resume(&self) -> Result<()> {
        self.channel.resume();
        Ok(())
    }

    /// Sets the maximum duration of a pause: see
    /// [`QueryStream::set_pause_timeout`](crate::QueryStream::set_pause_timeout).
    ///
    /// It applies to the current pause and to later ones, whichever handle pauses. Has no effect
    /// after the end of the stream.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use fraiseql_wire::{Result, StreamControl};
    /// use std::time::Duration;
    ///
    /// # async fn run(control: StreamControl) -> Result<()> {
    /// control.set_pause_timeout(Duration::from_secs(60));
    /// control.pause_with_reason("maintenance").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_pause_timeout(&self, timeout: Duration) {
        self.channel.set_pause_timeout(Some(timeout));
    }

    /// Removes the limit on the duration of pauses, including the current one.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{Result, StreamControl};
    /// # async fn run(control: StreamControl) -> Result<()> {
    /// // An operator resumes the stream.
    /// control.clear_pause_timeout();
    /// control.pause_with_reason("investigation").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn clear_pause_timeout(&self) {
        self.channel.set_pause_timeout(None);
    }

    /// Cancels the query on the server. Resolves when the client is ready for its next query.
    ///
    /// Buffered chunks are discarded. The stream yields the rest of its current chunk, then
    /// [`Error::Cancelled`](crate::Error::Cancelled). So its consumer cannot mistake the
    /// cancellation for the end of the result. Has no effect after the end of the stream.
    ///
    /// # Errors
    ///
    /// Same as [`QueryStream::cancel`](crate::QueryStream::cancel).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the cancellation.
    pub async fn cancel(&self) -> Result<()> {
        self.channel.close(StreamState::Cancelled, now(), ClosedBy::Control);
        self.channel.released().await
    }

    /// Returns the state of the stream.
    pub fn state(&self) -> StreamState {
        self.stats().state
    }

    /// Returns the statistics of the stream. They stay available after the stream is dropped.
    pub fn stats(&self) -> StreamStats {
        self.channel.stats()
    }
}

impl fmt::Debug for StreamControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamControl").field("state", &self.state()).finish_non_exhaustive()
    }
}
