use std::fmt;

use bytes::Bytes;
use serde::de::Deserialize;

use super::row::{Row, decode};
use crate::{error::Result, protocol::rows};

/// A batch of undecoded rows.
///
/// Created by [`QueryStream::next_chunk`](crate::QueryStream::next_chunk). It shares the stream's
/// read buffer (up to 1 MiB, or one row if that is larger) and keeps it in memory, which no longer
/// counts as memory of the stream. Cloning copies no rows.
#[derive(Clone)]
pub struct RowChunk {
    frames: Bytes,
    rows: Rows,
}

/// The rows of the frames that the chunk contains.
#[derive(Clone)]
enum Rows {
    /// All rows. `first` is the number of the first one in the stream.
    All { first: u64, len: usize },
    /// Some rows: the offset of each in the frames, and its number in the stream.
    Some(Vec<(usize, u64)>),
}

impl RowChunk {
    pub(super) fn all(frames: Bytes, first: u64, len: usize) -> Self {
        Self { frames, rows: Rows::All { first, len } }
    }

    pub(super) fn some(frames: Bytes, rows: Vec<(usize, u64)>) -> Self {
        Self { frames, rows: Rows::Some(rows) }
    }

    /// Returns the number of rows, which is at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::All { len, .. } => *len,
            Rows::Some(rows) => rows.len(),
        }
    }

    /// Returns an iterator over the rows: the JSON text of each, as sent by the server.
    ///
    /// It has [`len`](Self::len) items: the rows that Rust predicates accept. A SQL NULL is `null`.
    /// The text is not validated; [`decode`](Self::decode) parses it.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let mut stream = client.query::<RawJson>("v_order").execute().await?;
    /// let mut bytes = 0;
    /// while let Some(chunk) = stream.next_chunk().await {
    ///     bytes += chunk?.rows().map(<[u8]>::len).sum::<usize>();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.numbered().map(|(row, _)| row)
    }

    /// Decodes each row into any type, which may borrow from the chunk.
    ///
    /// A text without escapes can be borrowed as a `&str`.
    ///
    /// An item can be [`Error::JsonDecode`](crate::Error::JsonDecode) or
    /// [`Error::Deserialization`](crate::Error::Deserialization). Such an error affects only its
    /// row. It does not end the iterator and is not counted in the statistics of the stream.
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

/// Shows the number of rows, but not their contents.
impl fmt::Debug for RowChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowChunk").field("len", &self.len()).finish_non_exhaustive()
    }
}
