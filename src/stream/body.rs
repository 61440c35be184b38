//! Rows as the body of an HTTP response.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_core::{FusedStream, Stream};

use tracing::{debug, warn};

use super::{
    predicates::Encoding, query_stream::QueryStream, resume::key_text, row::FromJsonRow,
    row_chunk::RowChunk, sse,
};
use crate::{
    connection::TARGET,
    error::{Error, Result},
};

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One document per line.
    Ndjson,
    /// One JSON array.
    Array,
    /// One event per document.
    Events,
}

/// The rows of a stream as bytes in one format, one chunk at a time.
pub(super) struct Body<T> {
    rows: QueryStream<T>,
    format: Format,
    /// The number of rows in the body.
    count: u64,
    ended: bool,
}

impl<T: FromJsonRow> Body<T> {
    pub(super) fn new(rows: QueryStream<T>, format: Format) -> Self {
        Self { rows, format, count: 0, ended: false }
    }

    fn part(&mut self, rows: &RowChunk) -> Bytes {
        // For events, without ids.
        let around = if self.format == Format::Events { "data: \n\n".len() } else { 1 };
        let bytes: usize = rows.rows().map(|row| row.len() + around).sum();
        let mut part = BytesMut::with_capacity(bytes);
        for row in rows.rows() {
            match self.format {
                Format::Array => {
                    part.extend_from_slice(if self.count > 0 { b"," } else { b"[" });
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
                Format::Events => {
                    let key = self.rows.key.as_ref();
                    let id = key.and_then(|key| key_text(key, row));
                    sse::push_row(id.as_deref(), row, &mut part);
                }
            }
            self.count += 1;
        }
        part.freeze()
    }

    /// Returns the end of the body, after the last row.
    fn last(&self) -> Option<Bytes> {
        match (self.format, self.count) {
            (Format::Ndjson, _) => None,
            (Format::Array, 0) => Some(Bytes::from_static(b"[]")),
            (Format::Array, _) => Some(Bytes::from_static(b"]")),
            (Format::Events, rows) => Some(sse::end(rows).into()),
        }
    }

    /// Ends the body before its last row. Nothing may follow that would complete it.
    ///
    /// The error is logged, because HTTP servers drop errors of bodies.
    fn fail(&mut self, error: Error) -> Result<Bytes> {
        self.ended = true;
        self.rows.fail(&error);
        let rows = self.count;
        match &error {
            Error::Cancelled => debug!(target: TARGET, rows, "a response body was cancelled"),
            error => warn!(target: TARGET, %error, rows, "a response body failed"),
        }
        match self.format {
            Format::Ndjson | Format::Array => Err(error),
            Format::Events => Ok(sse::error(&error).into()),
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
        match ready!(this.rows.poll_rows(cx, Encoding::Utf8)) {
            Some(Ok(rows)) => Poll::Ready(Some(Ok(this.part(&rows)))),
            Some(Err(error)) => Poll::Ready(Some(this.fail(error))),
            // It had ended before it became a body, which must not look complete.
            None if !this.rows.has_succeeded() => {
                Poll::Ready(Some(this.fail(Error::InvalidState {
                    message: "the stream had failed or been cancelled before it became a body",
                })))
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
    /// The format is [NDJSON](https://github.com/ndjson/ndjson-spec), one row per line, with the
    /// media type `application/x-ndjson`. Each item has the rows of one chunk, so the first row is
    /// not delayed. Rows are not decoded unless predicates require it. Line breaks within a
    /// document, which the type `json` preserves, are replaced by spaces.
    ///
    /// An error, including a row error, is the last item, and the query is cancelled. Abort the
    /// response body after an error, so that the client does not mistake it for a complete one. The
    /// first item may be an error, so poll it before choosing the HTTP status. HTTP servers drop
    /// errors of bodies, so the error is also logged by `tracing` at `WARN`, unless the query was
    /// cancelled.
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

    /// Converts the stream to server-sent events, for a response of type `text/event-stream`.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result, field};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let rows = client.query::<RawJson>("v_order").resume_by(field("id")).execute().await?;
    /// let body = rows.into_sse();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A browser reads them with [`EventSource`]. Each item contains whole events, those of one
    /// chunk of rows:
    ///
    /// ```text
    /// id: 1042
    /// data: {"id": 1042, "status": "paid"}
    ///
    /// event: end
    /// data: {"rows":1}
    /// ```
    ///
    /// * **A row** is an event without a name, and its `data` is the document. Line breaks, which
    ///   the type `json` preserves between tokens, become separate `data:` lines, which the client
    ///   joins.
    /// * **The id** is the key of [`resume_by`](crate::QueryBuilder::resume_by), if that is used: a
    ///   number as it is in the document, or the text of a string.
    /// * **The end** is the event `end` with the number of rows of this body. A body without it is
    ///   incomplete.
    /// * **An error**, including a row error, is the event `error` with its
    ///   [category](crate::ErrorCategory) and whether it can be retried:
    ///   `{"category":"timeout","retriable":true}`. It reveals nothing else. The query is then
    ///   cancelled, and the body ends. The error itself is logged by `tracing` at `WARN`, unless
    ///   the query was cancelled. So all items are `Ok`.
    ///
    /// Dropping the body drops the stream, and so cancels the query. Polling it is cancel-safe.
    ///
    /// [`EventSource`]: https://developer.mozilla.org/en-US/docs/Web/API/EventSource
    ///
    /// # Resuming
    ///
    /// When a response ends, for whatever reason, `EventSource` sends the request again, with the
    /// last id in the header `Last-Event-ID`. Pass it to
    /// [`resume_after`](crate::QueryBuilder::resume_after), and the client receives each row once.
    /// Close the `EventSource` at `end`, and at an error that cannot be retried:
    ///
    /// ```js
    /// const rows = new EventSource('/orders.sse');
    /// rows.onmessage = event => show(JSON.parse(event.data));
    /// rows.addEventListener('end', () => rows.close());
    /// rows.addEventListener('error', event => {
    ///   // An error of the connection is an event without data.
    ///   if (event.data && !JSON.parse(event.data).retriable) rows.close();
    /// });
    /// ```
    ///
    /// * The header may contain UTF-8, which `HeaderValue::to_str` rejects: decode its bytes
    ///   (`HeaderValue::as_bytes`).
    /// * A key that a header cannot carry is not sent as an id: the empty string, or one that
    ///   contains a control character (such as NUL, CR or LF), or starts or ends with a space.
    ///   After such a row the client keeps the previous id, so a resumption repeats the row.
    /// * At a shutdown, end the body, for example with `take_until`, before you cancel its stream.
    ///   The error `cancelled` is not retriable, so the client would not connect again.
    /// * `EventSource` gives up if the status of a response is not 200. Send temporary errors as an
    ///   event `error` too.
    ///
    /// # Keep-alive
    ///
    /// Proxies close idle connections. The body sends nothing while there are no rows, for example
    /// while the stream is paused. Send a comment (`:` and two line breaks) between two items, as
    /// this function does:
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bytes::Bytes;
    /// use fraiseql_wire::Result;
    /// use futures_util::{Stream, StreamExt, stream::unfold};
    /// use tokio::time::timeout;
    ///
    /// const SILENCE: Duration = Duration::from_secs(15);
    ///
    /// fn keep_alive<B>(body: B) -> impl Stream<Item = Result<Bytes>>
    /// where
    ///     B: Stream<Item = Result<Bytes>> + Unpin,
    /// {
    ///     unfold(body, |mut body| async {
    ///         match timeout(SILENCE, body.next()).await {
    ///             Ok(item) => item.map(|item| (item, body)),
    ///             Err(_) => Some((Ok(Bytes::from_static(b":\n\n")), body)),
    ///         }
    ///     })
    /// }
    /// ```
    pub fn into_sse(self) -> impl FusedStream<Item = Result<Bytes>> + Send + Unpin + 'static
    where
        T: 'static,
    {
        Body::new(self, Format::Events)
    }
}
