use std::{fmt, io::ErrorKind, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    select,
    task::yield_now,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{
    Connection, Limits, Session, TARGET, Taken, connect::unreachable, count_protocol_error,
};
use crate::{
    config::{SocketSettings, TlsSettings},
    error::{ConnectAttempt, Error, Result, TimeoutPhase},
    metrics::connection::{self as metrics, CancelRequest, CloseReason},
    protocol::{
        backend::{Message, name_of},
        extended_query::ExtendedQuery,
        frame::{Header, MAX_FRAME},
        frontend,
        long::Long,
    },
    transport::{Address, Encrypted, Tls, Transport, from_io_error},
};

/// How long to wait before a query that goes on is cancelled again; doubled each time.
pub(super) const FIRST_REPEAT: Duration = Duration::from_millis(50);

/// In how many parts what may be drained is drained: before each the query is cancelled again.
const ROUNDS: usize = 4;

/// How often the query of a lost session is cancelled: nothing shows whether a request was too
/// early, or went to another server through a balancer.
const REPEATS_FOR_LOST: usize = 4;

/// The data of a cancel request, and how to reach the server.
///
/// The connection is made in the same way as a new session: certificates are read again, because a
/// session may outlive the files that it was opened with.
pub(super) struct CancelKey {
    pub(super) address: Address,
    pub(super) sockets: SocketSettings,
    /// Whether to encrypt, first to last.
    pub(super) encryption: &'static [bool],
    pub(super) tls: TlsSettings,
    /// The host as configured, which the certificate must be for.
    pub(super) host: Option<String>,
    /// TLS from the first byte.
    pub(super) direct: bool,
    pub(super) process_id: u32,
    pub(super) secret: Vec<u8>,
}

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
            return Err(Error::InvalidState {
                message: "the server gave no key to cancel queries with, so its connection was closed",
            });
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

/// Cancels the query of a session whose connection was lost during the query: the server may not
/// have noticed and may still be working on it. Bounded by `cancel_timeout`; best effort, because
/// nothing shows whether the query has ended.
pub(crate) async fn stop_lost(session: Arc<Session>, cancel_timeout: Duration) {
    match timeout(cancel_timeout, stop_without_answer(&session)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            debug!(target: TARGET, %error, "could not cancel the query of a lost connection");
        }
        Err(_) => debug!(target: TARGET, "timed out cancelling the query of a lost connection"),
    }
}

/// Cancels a query whose answer is not read: its connection is lost, or the future that reads it is
/// not polled.
pub(super) async fn stop_without_answer(session: &Session) -> Result<()> {
    let Some(key) = &session.cancel else { return Ok(()) };
    let mut pause = FIRST_REPEAT;
    for _ in 1..REPEATS_FOR_LOST {
        session.send_cancel(key).await?;
        sleep(pause).await;
        pause *= 2;
    }
    session.send_cancel(key).await
}

impl CancelKey {
    /// Sends one cancel request, on a connection of its own, and waits until the server has dealt
    /// with it: it answers with nothing but the end of that connection.
    pub(super) async fn send(&self) -> Result<()> {
        let counted = CancelRequest::begin();
        let sent = self.try_send().await;
        counted.ended(sent.is_ok());
        if sent.is_ok() {
            debug!(target: TARGET, pid = self.process_id, "sent a cancel request");
        }
        sent
    }

    /// # Errors
    /// The errors of connecting, with the reason for each way that was tried.
    async fn try_send(&self) -> Result<()> {
        let mut attempts = Vec::new();
        let mut ways = self.encryption;
        while let Some((with_tls, others)) = ways.split_first() {
            match self.try_encryption(*with_tls, others).await {
                Ok(()) => return Ok(()),
                Err(e) => attempts.push(ConnectAttempt {
                    target: format!("{}, to cancel a query", self.address),
                    error: Box::new(e),
                }),
            }
            ways = others;
        }
        Err(unreachable(attempts))
    }

    async fn try_encryption(&self, with_tls: bool, others: &[bool]) -> Result<()> {
        const DURING: &str = "while sending a cancel request";
        let request = frontend::cancel_request(self.process_id, &self.secret)?;
        let connected = Transport::connect(&self.address, &self.sockets).await;
        // Not yet a connection that could be lost.
        let mut transport = connected.map_err(|source| Error::Io { during: DURING, source })?;
        if with_tls {
            let tls = Tls::load(&self.tls, self.host.as_deref(), self.direct).await?;
            transport = match transport.encrypt(&tls).await? {
                Encrypted::Yes(transport) => transport,
                Encrypted::No(transport) if others.contains(&false) => transport,
                Encrypted::No(_) => {
                    return Err(Error::Tls {
                        message: "the server refused TLS for a cancel request, and sslmode \
                                  requires it"
                            .into(),
                    });
                }
            };
        }
        let exchange = async {
            transport.write_all(&request).await?;
            transport.flush().await?;
            transport.read(&mut [0; 1]).await
        };
        match exchange.await {
            Ok(_) => Ok(()),
            // A reset after the request was written, or an end of TLS without its farewell, is an
            // end like any other.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                Ok(())
            }
            // With TLS 1.3, a certificate of the client that the server refuses shows here.
            Err(e) => Err(from_io_error(DURING, e)),
        }
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

pub(super) fn timed_out(after: Duration) -> Error {
    Error::Timeout { phase: TimeoutPhase::Cancel, after }
}

/// The secret is not shown: who has it can cancel this session's queries.
impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKey")
            .field("address", &self.address)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}
