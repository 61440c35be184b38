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
    report::{TARGET, count_protocol_error},
    server_connection::{Connection, Limits},
    session::{FIRST_REPEAT, no_key, stop_without_answer},
};
use crate::{
    error::{Error, Result},
    metrics::connection::{self as metrics, CloseReason},
    protocol::{
        backend::{Message, name_of},
        extended_query::ExtendedQuery,
        frame::{Header, MAX_FRAME},
        long::Long,
    },
};

/// In how many parts what may be drained is drained: before each the query is cancelled again.
const ROUNDS: usize = 4;

/// Stops the query, if it still runs, and reads up to ReadyForQuery: then the connection is as
/// good as new. Bounded in time and bytes. `unsent` is the rest of a request that has begun: a
/// server says nothing in the middle of a message.
///
/// A cancel request names a session, not a query: one that is late hits the next query. So the
/// connection is only handed on after the end of every cancel request's own connection, which the
/// server closes when it has sent the signal.
///
/// Nothing is read while a cancel request is on its way: full sockets hold the server up, where a
/// reader would make it work for nothing. Behind the request everything must be read, for a server
/// that waits for room in its socket does not look for signals.
///
/// # Errors
///
/// The connection cannot be used again and must be dropped.
pub(crate) async fn cancel_and_drain(
    connection: &mut Connection,
    query: &ExtendedQuery,
    mut unsent: Bytes,
) -> Result<()> {
    let Limits { drain_limit, .. } = connection.limits;
    let mut drain = Drain { limit: drain_limit, drained: 0 };
    let began = Instant::now();
    let settled = clean_up(connection, query, &mut unsent, &mut drain).await;
    let took = began.elapsed();
    metrics::drained(took, drain.drained);
    debug!(target: TARGET, bytes = drain.drained, ?took, "drained a query that ended early");
    settled.inspect_err(|e| {
        metrics::error(e.category().as_str(), "drain");
        connection.set_close_reason(match e {
            // Not that of a cancel request.
            Error::ConnectionClosed { during, .. } if *during == DURING => CloseReason::Server,
            Error::Timeout { .. } => CloseReason::DrainLimit,
            _ if drain.drained > drain_limit => CloseReason::DrainLimit,
            _ => CloseReason::Broken,
        });
    })
}

async fn clean_up(
    connection: &mut Connection,
    query: &ExtendedQuery,
    unsent: &mut Bytes,
    drain: &mut Drain,
) -> Result<()> {
    let Limits { cancel_timeout, drain_limit, .. } = connection.limits;
    let session = Arc::clone(&connection.session);
    let cancel = async || match session.cancel.as_ref().filter(|_| query.is_running()) {
        Some(key) => session.send_cancel(key).await,
        None => Ok(()),
    };
    let settled = async {
        // Often all of it has arrived.
        if unsent.is_empty() && drain.take_all_arrived(connection).await? {
            return Ok(());
        }
        if unsent.is_empty() && connection.read_arrived().await? {
            let is_ready = drain.take_all_arrived(connection).await?;
            if is_ready {
                return Ok(());
            }
        }
        if query.is_running() && session.cancel.is_none() {
            return Err(no_key());
        }
        let sent = connection.write(unsent).await;
        // Also when the connection is lost: the server may not know, and go on working.
        let mut cancelled = cancel().await;
        if cancelled.is_ok() {
            sent.map_err(|e| Error::io(DURING, e))?;
        }
        let mut pause = FIRST_REPEAT;
        while cancelled.is_ok() {
            let round = drain.drained + drain_limit / ROUNDS;
            select! {
                biased;
                ready = drain.run(connection, round) => if ready? { return Ok(()) },
                () = sleep(pause) => pause *= 2,
            }
            // One that finds the server not yet busy with the query is without effect.
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
    let settled = async {
        settled.await?;
        // A cancel token may have sent one of its own, which must not hit the next query.
        session.requests_ended().await;
        Ok(())
    };
    match Instant::now().checked_add(cancel_timeout) {
        Some(at) => timeout_at(at, settled).await.map_err(|_| timed_out(cancel_timeout))?,
        None => settled.await,
    }
}

/// Throws away what a server still sends, up to ReadyForQuery.
struct Drain {
    limit: usize,
    drained: usize,
}

/// The kind of message at the front of the buffer.
#[derive(Debug, PartialEq, Eq)]
enum Arrived {
    Ready,
    /// A notice or the like: its handler has run, so the deadline is to be looked at.
    Async,
    Incomplete,
}

impl Drain {
    /// Reads until ReadyForQuery has come, or until so much is drained: returns whether it has.
    async fn run(&mut self, connection: &mut Connection, round: usize) -> Result<bool> {
        loop {
            if self.take_all_arrived(connection).await? {
                return Ok(true);
            }
            if self.drained > self.limit {
                return Err(Error::protocol(format!(
                    "more than {} bytes of a cancelled query were still coming, which is \
                     drain_limit",
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

    /// Takes what has arrived off the buffer, up to ReadyForQuery: returns whether that has come.
    async fn take_all_arrived(&mut self, connection: &mut Connection) -> Result<bool> {
        loop {
            match self.take_arrived(connection)? {
                Arrived::Ready => return Ok(true),
                Arrived::Incomplete => return Ok(false),
                Arrived::Async => yield_now().await,
            }
        }
    }

    /// Takes messages off the buffer, up to ReadyForQuery or one that has a handler.
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
                let tag = buffer.first().copied().unwrap_or_default();
                let header = count_protocol_error(name_of(tag), Header::read(buffer, MAX_FRAME))?;
                let Some(header) = header else { return Ok(Arrived::Incomplete) };
                let is_cut = buffer.len() < header.size && header.size > READ;
                if is_cut && !Long::reads(tag) {
                    connection.skip = header.size;
                    continue;
                }
            }
            // A parameter that changes meanwhile is still the session's.
            match connection.take_message_within(MAX_FRAME)? {
                Taken::Message(Message::ReadyForQuery) => return Ok(Arrived::Ready),
                Taken::Message(_) => {}
                Taken::Async => return Ok(Arrived::Async),
                Taken::Incomplete => return Ok(Arrived::Incomplete),
            }
        }
    }
}

const DURING: &str = "while draining a cancelled query";

/// Bytes asked for at once while draining.
const READ: usize = 64 << 10;
