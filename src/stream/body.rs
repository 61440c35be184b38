//! Rows as the body of an HTTP response.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_core::{FusedStream, Stream};

use super::{query_stream::QueryStream, row::FromJsonRow, row_chunk::RowChunk};
use crate::error::Result;

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One document per line.
    Ndjson,
    /// One JSON array.
    Array,
}

/// The rows of a stream as bytes in one format, one chunk at a time.
pub(super) struct Body<T> {
    rows: QueryStream<T>,
    format: Format,
    began: bool,
    ended: bool,
}

impl<T: FromJsonRow> Body<T> {
    pub(super) fn new(rows: QueryStream<T>, format: Format) -> Self {
        Self { rows, format, began: false, ended: false }
    }

    fn part(&mut self, rows: &RowChunk) -> Bytes {
        let bytes: usize = rows.rows().map(|row| row.len() + 1).sum();
        let mut part = BytesMut::with_capacity(bytes);
        for row in rows.rows() {
            match self.format {
                Format::Array => {
                    part.extend_from_slice(if self.began { b"," } else { b"[" });
                    part.extend_from_slice(row);
                }
                Format::Ndjson => {
                    let at = part.len();
                    part.extend_from_slice(row);
                    // `json` preserves line breaks between tokens. Within strings, JSON has none.
                    for byte in part.get_mut(at..).unwrap_or_default() {
                        if matches!(byte, b'\n' | b'\r') {
                            *byte = b' ';
                        }
                    }
                    part.extend_from_slice(b"\n");
                }
            }
            self.began = true;
        }
        part.freeze()
    }

    /// Returns the end of the body, after the last row.
    fn last(&self) -> Option<Bytes> {
        match (self.format, self.began) {
            (Format::Ndjson, _) => None,
            (Format::Array, true) => Some(Bytes::from_static(b"]")),
            (Format::Array, false) => Some(Bytes::from_static(b"[]")),
        }
    }
}

impl<T: FromJsonRow> Stream for Body<T> {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        match ready!(this.rows.poll_rows(cx, true)) {
            Some(Ok(rows)) => Poll::Ready(Some(Ok(this.part(&rows)))),
            Some(Err(error)) => {
                // Nothing may follow that would complete the body.
                this.ended = true;
                this.rows.stop();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.ended = true;
                Poll::Ready(this.last().map(Ok))
            }
        }
    }
}

impl<T: FromJsonRow> FusedStream for Body<T> {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl<T> fmt::Debug for Body<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("format", &self.format).finish_non_exhaustive()
    }
}

impl<T: FromJsonRow> QueryStream<T> {
    /// Converts the stream to lines of JSON, for example for an HTTP response body.
    ///
    /// The format is [NDJSON](https://github.com/ndjson/ndjson-spec), one row per line. Each item
    /// has the rows of one chunk, so the first row is not delayed. Rows are not decoded unless
    /// predicates require it. Line breaks within a document, which the type `json` preserves, are
    /// replaced by spaces.
    ///
    /// An error, including a row error, is the last item, and the query is cancelled. Abort the
    /// response body after an error, so that the client does not mistake it for a complete one. The
    /// first item may be an error, so poll it before choosing the HTTP status.
    ///
    /// Dropping the body drops the stream, and so cancels the query. Polling it is cancel-safe.
    pub fn into_ndjson(self) -> impl FusedStream<Item = Result<Bytes>> + Send + Unpin + 'static
    where
        T: 'static,
    {
        Body::new(self, Format::Ndjson)
    }

    /// Converts the stream to one JSON array, like [`into_ndjson`](Self::into_ndjson).
    ///
    /// The array is `[]` if there are no rows. After an error it is not closed.
    pub fn into_json_array(self) -> impl FusedStream<Item = Result<Bytes>> + Send + Unpin + 'static
    where
        T: 'static,
    {
        Body::new(self, Format::Array)
    }
}
