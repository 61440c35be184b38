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

/// How rows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A line each.
    Ndjson,
    /// Elements of one array.
    Array,
}

/// The bytes of a stream's rows in one format, a chunk at a time.
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
                    // Between tokens `json` keeps line breaks as they were written; within strings
                    // JSON has none.
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

    /// What is left to say behind the last row.
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
                // Behind it nothing may look like a whole body.
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
    /// Turns the stream into lines of JSON, one a row ([NDJSON](https://github.com/ndjson/ndjson-spec)),
    /// for example as the body of an HTTP response.
    ///
    /// Rows are not decoded, unless predicates ask for it. An item holds the rows of a chunk, so there
    /// is one as soon as there is a row. Line breaks within a document, which the type `json` keeps,
    /// become blanks. An error, that of a single row too, is the last item, and the query is stopped: a
    /// body that is not whole must be broken off. The first item can be an error: whoever answers by a status looks at it
    /// first. Dropping it drops the stream.
    pub fn into_ndjson(self) -> impl FusedStream<Item = Result<Bytes>> + Send + Unpin + 'static
    where
        T: 'static,
    {
        Body::new(self, Format::Ndjson)
    }

    /// Turns the stream into one JSON array, like [`into_ndjson`](Self::into_ndjson): `[]` when there is
    /// no row. After an error the array is not closed.
    pub fn into_json_array(self) -> impl FusedStream<Item = Result<Bytes>> + Send + Unpin + 'static
    where
        T: 'static,
    {
        Body::new(self, Format::Array)
    }
}
