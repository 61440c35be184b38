//! Cancelling a query, and discarding the rest of its answer.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::{
    select,
    task::yield_now,
    time::{Instant, sleep, timeout_at},
};
use tracing::debug;

use super::{
    cancel::timed_out,
    messages::Taken,
    report::TARGET,
    server_connection::{Connection, Limits},
    session::{FIRST_REPEAT, no_key, stop_without_answer},
};
use crate::{
    error::{Error, Result},
    metrics::connection::{self as metrics, CloseReason},
    protocol::{
        backend::{DATA_ROW, Message},
        extended_query::ExtendedQuery,
        frame::{Header, MAX_FRAME},
        long_message::LongMessage,
    },
};

/// The number of parts of `drain_limit`. Before each part the query is cancelled again.
const ROUNDS: usize = 4;

/// Cancels the query, if it still runs, and discards its answer up to ReadyForQuery. After that the
/// connection can run another query. At most `cancel_timeout` and `drain_limit`.
///
/// `unsent` is the rest of a request that was sent in part. It is sent first, because a server does
/// not answer in the middle of a message.
///
/// A cancel request names a session, not a query: if it is late, it cancels the next query. So this
/// returns after the connection of every cancel request has ended. The server closes it when it has
/// sent the signal.
///
/// Nothing is read while a cancel request is in flight: TCP backpressure stops the server, which
/// otherwise would produce rows that are discarded. After the request everything must be read,
/// because a server that waits for room in its socket does not check for signals.
///
/// While other requests that were pipelined after the query are wanted, no cancel request is sent,
/// because it might hit one of them: the answer is only discarded.
///
/// `query` is the state of the answer: a message that is not allowed in it is an error, because the
/// next ReadyForQuery might then end another answer. `None`: an answer in another protocol.
///
/// # Errors
///
/// The connection cannot be used again and must be dropped.
pub(crate) async fn cancel_and_drain(
    connection: &mut Connection,
    query: Option<&mut ExtendedQuery>,
    mut unsent: Bytes,
) -> Result<()> {
    let Limits { drain_limit, .. } = connection.limits;
    let is_running = query.as_ref().is_none_or(|query| query.is_running());
    let mut drain = Drain { limit: drain_limit, drained: 0, query };
    let began = Instant::now();
    let cleaned_up = clean_up(connection, is_running, &mut unsent, &mut drain).await;
    let took = began.elapsed();
    metrics::drained(took, drain.drained);
    debug!(target: TARGET, bytes = drain.drained, ?took, "drained a query that ended early");
    cleaned_up.inspect_err(|e| {
        metrics::error(e.category().as_str(), metrics::Phase::Drain);
        connection.set_close_reason(match e {
            // The session's connection, not that of a cancel request.
            Error::ConnectionClosed { during, .. } if *during == DURING => CloseReason::Server,
            Error::Timeout { .. } => CloseReason::DrainLimit,
            _ if drain.drained > drain_limit => CloseReason::DrainLimit,
            _ => CloseReason::Broken,
        });
    })
}

async fn clean_up(
    connection: &mut Connection,
    is_running: bool,
    unsent: &mut Bytes,
    drain: &mut Drain<'_>,
) -> Result<()> {
    let Limits { cancel_timeout, drain_limit, .. } = connection.limits;
    let session = Arc::clone(&connection.session);
    let may_cancel = || !session.others_wanted() && is_running;
    let cancel = async || match session.cancel.as_ref().filter(|_| may_cancel()) {
        Some(key) => session.send_cancel(key).await,
        None => Ok(()),
    };
    let cleaned_up = async {
        // An earlier drain, which was dropped, has received the end.
        if drain.query.as_ref().is_some_and(|query| query.is_ready()) {
            return Ok(());
        }
        // Often the whole answer has arrived.
        if unsent.is_empty() && drain.take_all_arrived(connection).await? {
            return Ok(());
        }
        if unsent.is_empty() {
            let read = connection.read_arrived().await?;
            drain.drained += read;
            if read > 0 && drain.take_all_arrived(connection).await? {
                return Ok(());
            }
        }
        if may_cancel() && session.cancel.is_none() {
            return Err(no_key());
        }
        let sent = connection.write(unsent).await;
        // Also after an error: the server may not notice that the connection is lost.
        let mut cancelled = cancel().await;
        if cancelled.is_ok() {
            sent.map_err(|e| Error::io(DURING, e))?;
        }
        let mut pause = FIRST_REPEAT;
        while cancelled.is_ok() {
            let round = drain.drained + drain_limit / ROUNDS;
            let is_barred = session.others_wanted();
            select! {
                biased;
                ready = drain.run(connection, round) => if ready? { return Ok(()) },
                () = session.others_unwanted(), if is_barred => pause = FIRST_REPEAT,
                () = sleep(pause) => pause *= 2,
            }
            // A request that arrives before the server has begun the query has no effect.
            cancelled = cancel().await;
        }
        // If no descriptor or local port is left, closing the session frees one. The session cannot
        // be used again in any case.
        connection.abort();
        match (stop_without_answer(&session).await, cancelled) {
            (Err(_), Err(first)) => Err(first),
            _ => Ok(()),
        }
    };
    let cleaned_up = async {
        cleaned_up.await?;
        // A cancel token may have sent a request, which must not cancel the next query.
        session.requests_ended().await;
        Ok(())
    };
    match Instant::now().checked_add(cancel_timeout) {
        Some(at) => timeout_at(at, cleaned_up).await.map_err(|_| timed_out(cancel_timeout))?,
        None => cleaned_up.await,
    }
}

/// Discards messages up to ReadyForQuery.
struct Drain<'a> {
    limit: usize,
    drained: usize,
    /// Not a copy: a drain that is dropped may be repeated.
    query: Option<&'a mut ExtendedQuery>,
}

/// The kind of message at the front of the buffer.
#[derive(Debug, PartialEq, Eq)]
enum Arrived {
    Ready,
    /// A message that may come at any time. Its handler has run, so check the deadline.
    Async,
    Incomplete,
}

impl Drain<'_> {
    /// Reads until ReadyForQuery, or until more than `round` bytes are drained. Returns whether
    /// ReadyForQuery was received.
    async fn run(&mut self, connection: &mut Connection, round: usize) -> Result<bool> {
        loop {
            if self.take_all_arrived(connection).await? {
                return Ok(true);
            }
            if self.drained > self.limit {
                return Err(Error::protocol(format!(
                    "the server sent more than drain_limit, {} bytes, after its query was \
                     cancelled",
                    self.limit
                )));
            }
            if self.drained > round {
                return Ok(false);
            }
            connection.buffer.reserve(READ);
            match connection.read().await {
                Ok(0) => return Err(Error::ConnectionClosed { during: DURING, source: None }),
                Ok(read) => self.drained += read,
                Err(e) => return Err(Error::io(DURING, e)),
            }
        }
    }

    /// Removes all messages that have arrived, up to ReadyForQuery. Returns whether that was
    /// received.
    async fn take_all_arrived(&mut self, connection: &mut Connection) -> Result<bool> {
        loop {
            match self.take_arrived(connection)? {
                Arrived::Ready => return Ok(true),
                Arrived::Incomplete => return Ok(false),
                Arrived::Async => yield_now().await,
            }
        }
    }

    /// Returns whether the message is the end of the answer.
    fn discard(&mut self, message: Message) -> Result<bool> {
        let is_ready = message == Message::ReadyForQuery;
        match &mut self.query {
            Some(query) if message == Message::DataRow && query.takes_rows() => {}
            Some(query) => drop(query.advance(message)?),
            None => {}
        }
        Ok(is_ready)
    }

    /// Removes messages up to ReadyForQuery or one that has a handler.
    fn take_arrived(&mut self, connection: &mut Connection) -> Result<Arrived> {
        loop {
            let Connection { buffer, skip, .. } = connection;
            let skipped = (*skip).min(buffer.len());
            buffer.advance(skipped);
            *skip -= skipped;
            if *skip > 0 {
                return Ok(Arrived::Incomplete);
            }
            if !connection.is_in_message() {
                let buffer = &connection.buffer;
                // Taking the message reports a header that is malformed or incomplete.
                if let Ok(Some(header)) = Header::parse(buffer, MAX_FRAME) {
                    let is_cut = buffer.len() < header.size && header.size > READ;
                    if is_cut && !LongMessage::is_supported(header.tag) {
                        if header.tag == DATA_ROW {
                            self.discard(Message::DataRow)?;
                        }
                        connection.skip = header.size;
                        continue;
                    }
                }
            }
            // Not skipped: a parameter that changes now applies to the session.
            match connection.take_message_within(MAX_FRAME)? {
                Taken::Message(message) => {
                    if self.discard(message)? {
                        return Ok(Arrived::Ready);
                    }
                }
                Taken::Async => return Ok(Arrived::Async),
                Taken::Incomplete => return Ok(Arrived::Incomplete),
            }
        }
    }
}

const DURING: &str = "while draining a cancelled query";

/// The size of a read, in bytes.
const READ: usize = 64 << 10;
