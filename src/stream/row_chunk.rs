use std::fmt;

use bytes::Bytes;
use serde::de::Deserialize;

use super::row::{Row, decode};
use crate::{error::Result, protocol::rows};

/// Many rows at once, as they came: made by [`QueryStream::next_chunk`](crate::QueryStream::next_chunk).
///
/// It shares the stream's read buffer (up to 64 KiB, or one row if that is larger) and keeps it
/// alive; the memory is not the stream's any more. Cloning it copies no row.
#[derive(Clone)]
pub struct RowChunk {
    frames: Bytes,
    rows: Rows,
}

/// Which rows of the frames are in it.
#[derive(Clone)]
enum Rows {
    /// All of them; the first is that of the stream with this number.
    All { first: u64, len: usize },
    /// Those that begin at these places, with their numbers.
    Some(Vec<(usize, u64)>),
}

impl RowChunk {
    pub(super) fn all(frames: Bytes, first: u64, len: usize) -> Self {
        Self { frames, rows: Rows::All { first, len } }
    }

    pub(super) fn some(frames: Bytes, rows: Vec<(usize, u64)>) -> Self {
        Self { frames, rows: Rows::Some(rows) }
    }

    /// Returns how many rows there are: at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::All { len, .. } => *len,
            Rows::Some(rows) => rows.len(),
        }
    }

    /// Returns each row's bytes as the server sent them; a SQL NULL is `null`.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.numbered().map(|(row, _)| row)
    }

    /// Decodes each row into any type, which may borrow from the chunk: text without escapes need
    /// not be copied into a `&str`.
    ///
    /// Each item stands for itself: an [`Error::JsonDecode`](crate::Error::JsonDecode) or
    /// [`Error::Deserialization`](crate::Error::Deserialization) does not end the iterator, nor count
    /// in the stream's statistics.
    pub fn decode<'a, U: Deserialize<'a>>(&'a self) -> impl Iterator<Item = Result<U>> {
        self.numbered().map(|(row, number)| decode(row, number))
    }

    fn numbered(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let (mut at, mut taken) = (0, 0);
        std::iter::from_fn(move || {
            let (place, number) = match &self.rows {
                Rows::All { first, len } => (at, (taken < *len).then_some(first + taken as u64)?),
                Rows::Some(rows) => *rows.get(taken)?,
            };
            let (value, next) = rows::value_at(&self.frames, place)?;
            (at, taken) = (next, taken + 1);
            Some((Row { frames: &self.frames, value, number }.bytes(), number))
        })
    }
}

/// Without what is in the rows.
impl fmt::Debug for RowChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowChunk").field("len", &self.len()).finish_non_exhaustive()
    }
}
