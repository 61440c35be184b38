use std::sync::Arc;

use bytes::Bytes;

use super::{channel::Block, row::Row};
use crate::protocol::rows;

/// Rows that arrived together: one slice of the read buffer, shared and not copied.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) frames: Bytes,
    pub(super) rows: usize,
    /// Bytes of JSON in the rows.
    pub(super) value_bytes: usize,
    /// Where the next row to be taken begins.
    pub(super) at: usize,
    /// The memory that the slice keeps alive; counted as long as a chunk of it is there.
    pub(super) _block: Arc<Block>,
}

impl Chunk {
    /// The next row, the `number`th of the stream.
    #[inline]
    pub(super) fn next_row(&mut self, number: u64) -> Option<Row<'_>> {
        let (value, next) = rows::value_at(&self.frames, self.at)?;
        self.at = next;
        Some(Row { frames: &self.frames, value, number })
    }
}
