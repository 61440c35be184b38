use std::sync::Arc;

use bytes::Bytes;

use super::Channel;
use crate::{protocol::rows, stream::row::Row};

/// Rows that arrived together: one slice of the read buffer, shared and not copied.
#[derive(Debug)]
pub(in crate::stream) struct Chunk {
    pub(in crate::stream) frames: Bytes,
    pub(in crate::stream) rows: usize,
    /// Bytes of JSON in the rows.
    pub(in crate::stream) value_bytes: usize,
    /// Where the next row to be taken begins.
    pub(in crate::stream) at: usize,
    /// The memory that the slice keeps alive; counted as long as a chunk of it is there.
    pub(in crate::stream) _block: Arc<Block>,
}

impl Chunk {
    /// The next row, the `number`th of the stream.
    #[inline]
    pub(in crate::stream) fn next_row(&mut self, number: u64) -> Option<Row<'_>> {
        let (value, next) = rows::value_at(&self.frames, self.at)?;
        self.at = next;
        Some(Row { frames: &self.frames, value, number })
    }
}

/// Memory that chunks and a reader share. It counts until the last of them lets go of it.
///
/// Chunks that wait in the queue keep the channel alive that way: the end of the stream takes them out.
#[derive(Debug)]
pub(in crate::stream) struct Block {
    pub(super) size: usize,
    pub(super) channel: Arc<Channel>,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.channel.lock();
        state.budget.give(self.size);
        self.channel.wake_waiting_readers(state);
        self.channel.metrics.memory_given(self.size);
    }
}
