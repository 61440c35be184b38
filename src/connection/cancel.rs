use std::{fmt, io::ErrorKind, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    select,
    time::{Instant, sleep, timeout_at},
};
use tracing::debug;

use super::{Bounds, Connection, TARGET, Taken, told_wrong};
use crate::{
    config::SocketSettings,
    error::{Error, Result, TimeoutPhase},
    metrics::connection::{self as metrics, CancelRequest, Closed},
    protocol::{
        backend::{Message, name_of},
        extended_query::ExtendedQuery,
        frame::{Header, MAX_FRAME},
        frontend,
        long::Long,
    },
    transport::{Address, Encrypted, Tls, Transport},
};

/// How long to wait before a query that goes on is cancelled again; doubled each time.
const FIRST_REPEAT: Duration = Duration::from_millis(50);

/// In how many parts what may be drained is drained: before each the query is cancelled again.
const ROUNDS: usize = 4;

/// What a server wants to see before it stops a query.
#[derive(Clone)]
pub(super) struct CancelKey {
    pub(super) address: Address,
    pub(super) sockets: SocketSettings,
    /// A cancel request is encrypted as its session is.
    pub(super) tls: Option<Tls>,
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
pub(crate) async fn settle(
    connection: &mut Connection,
    query: &ExtendedQuery,
    mut unsent: Bytes,
) -> Result<()> {
    let Bounds { drain_limit, .. } = connection.bounds;
    let mut drain = Drain { limit: drain_limit, skip: 0, drained: 0 };
    let began = Instant::now();
    let settled = clean_up(connection, query, &mut unsent, &mut drain).await;
    let took = began.elapsed();
    metrics::drained(took, drain.drained);
    debug!(target: TARGET, bytes = drain.drained, ?took, "drained a query that ended early");
    settled.inspect_err(|e| {
        metrics::error(e.category().as_str(), "drain");
        connection.closes(match e {
            // Not that of a cancel request.
            Error::ConnectionClosed { during, .. } if *during == DURING => Closed::Server,
            Error::Timeout { .. } => Closed::DrainLimit,
            _ if drain.drained > drain_limit => Closed::DrainLimit,
            _ => Closed::Broken,
        });
    })
}

async fn clean_up(
    connection: &mut Connection,
    query: &ExtendedQuery,
    unsent: &mut Bytes,
    drain: &mut Drain,
) -> Result<()> {
    let Bounds { cancel_timeout, drain_limit, .. } = connection.bounds;
    // What has arrived may well be all.
    if unsent.is_empty() && drain.take_arrived(connection)? {
        return Ok(());
    }
    let session = Arc::clone(&connection.session);
    if query.is_running() && session.cancel.is_none() {
        return Err(Error::protocol("the server gave no key to cancel queries with"));
    }
    let key = session.cancel.as_ref().filter(|_| query.is_running());
    let settled = async {
        let sent = connection.write(unsent).await;
        // Also when the connection is lost: the server may not know, and go on working.
        cancel(key).await?;
        sent.map_err(|e| Error::io(DURING, e))?;
        let mut pause = FIRST_REPEAT;
        loop {
            let round = drain.drained + drain_limit / ROUNDS;
            select! {
                biased;
                ready = drain.run(connection, round) => if ready? { return Ok(()) },
                () = sleep(pause) => pause *= 2,
            }
            // One that finds the server not yet busy with the query is without effect.
            cancel(key).await?;
        }
    };
    match Instant::now().checked_add(cancel_timeout) {
        Some(at) => timeout_at(at, settled).await.map_err(|_| timed_out(cancel_timeout))?,
        None => settled.await,
    }
}

async fn cancel(key: Option<&CancelKey>) -> Result<()> {
    match key {
        Some(key) => key.send().await,
        None => Ok(()),
    }
}

impl CancelKey {
    /// Sends one cancel request, on a connection of its own, and waits until the server has dealt
    /// with it: it answers with nothing but the end of that connection.
    pub(super) async fn send(&self) -> Result<()> {
        let counted = CancelRequest::begin();
        let sent = self.try_send().await;
        counted.ended(sent.is_ok());
        sent
    }

    async fn try_send(&self) -> Result<()> {
        const DURING: &str = "while sending a cancel request";
        let request = frontend::cancel_request(self.process_id, &self.secret)?;
        let connected = Transport::connect(&self.address, &self.sockets).await;
        // Not yet a connection that could be lost.
        let mut transport = connected.map_err(|source| Error::Io { during: DURING, source })?;
        if let Some(tls) = &self.tls {
            transport = match transport.encrypt(tls).await? {
                Encrypted::Yes(transport) => transport,
                Encrypted::No(_) => {
                    return Err(Error::Tls {
                        message: "the server takes no cancel request by TLS, though it has the \
                                  session"
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
            Ok(_) => {}
            // A reset after the request was written, or an end of TLS without its farewell, is an
            // end like any other.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
            }
            Err(e) => return Err(Error::io(DURING, e)),
        }
        debug!(target: TARGET, pid = self.process_id, "sent a cancel request");
        Ok(())
    }
}

/// Throws away what a server still sends, up to ReadyForQuery.
struct Drain {
    limit: usize,
    /// Bytes of the frame at the front that have not arrived yet and are not waited for in one
    /// piece.
    skip: usize,
    drained: usize,
}

impl Drain {
    /// Reads until ReadyForQuery has come, or until so much is drained: returns whether it has.
    async fn run(&mut self, connection: &mut Connection, round: usize) -> Result<bool> {
        while !self.take_arrived(connection)? {
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
        Ok(true)
    }

    /// Takes everything off the buffer up to ReadyForQuery, and says whether that has come.
    fn take_arrived(&mut self, connection: &mut Connection) -> Result<bool> {
        loop {
            let buffer = &mut connection.buffer;
            let skipped = self.skip.min(buffer.len());
            buffer.advance(skipped);
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(false);
            }
            if !connection.is_in_message() {
                let buffer = &connection.buffer;
                let tag = buffer.first().copied().unwrap_or_default();
                let header = told_wrong(name_of(tag), Header::read(buffer, MAX_FRAME))?;
                let Some(header) = header else { return Ok(false) };
                let is_cut = buffer.len() < header.size && header.size > READ;
                if is_cut && !Long::reads(tag) {
                    self.skip = header.size;
                    continue;
                }
            }
            // A parameter that changes meanwhile is still the session's.
            match connection.take_message_within(MAX_FRAME)? {
                Taken::Message(Message::ReadyForQuery) => return Ok(true),
                Taken::Message(_) | Taken::Absorbed => {}
                Taken::Incomplete => return Ok(false),
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
