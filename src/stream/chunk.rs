use bytes::Bytes;

use super::row::Row;
use crate::protocol::rows;

/// Rows that arrived together: one slice of the read buffer, shared and not copied.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) frames: Bytes,
    pub(super) rows: usize,
    /// Bytes of JSON in the rows.
    pub(super) value_bytes: usize,
    /// Where the next row to be read begins.
    pub(super) at: usize,
}

impl Chunk {
    pub(super) fn new(frames: Bytes, rows: usize, value_bytes: usize) -> Self {
        Self { frames, rows, value_bytes, at: 0 }
    }

    /// Returns the next row, which is row `number` of the stream.
    #[inline]
    pub(super) fn next_row(&mut self, number: u64) -> Option<Row<'_>> {
        let (value, next) = rows::value_at(&self.frames, self.at)?;
        self.at = next;
        Some(Row { frames: &self.frames, value, number })
    }
}
