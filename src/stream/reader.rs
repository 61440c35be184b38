//! The task that owns the connection while a query runs: it sends the request, reads the answer,
//! hands over rows, and cleans up.

use std::{future::poll_fn, io, sync::Arc, task::Poll, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{select, time::sleep};
use tracing::debug;

use super::{
    channel::{Abandoned, Block, Channel, Permission, StartError},
    chunk::Chunk,
};
use crate::{
    connection::{Connection, Exchange, Lease, Progress, TARGET, Taken, settle},
    error::{Error, Result, TimeoutPhase, sqlstate},
    protocol::{
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        rows::{Incomplete, Run, Stop},
    },
};

/// The largest read, 64 KiB: the server flushes 8 KiB at a time, and larger reads measure the same.
const MAX_READ: usize = 64 << 10;
const MIN_READ: usize = 1 << 10;

pub(super) struct Reader {
    connection: Connection,
    channel: Arc<Channel>,
    /// What of the request is not sent yet.
    unsent: Bytes,
    exchange: Exchange,
    /// Whether the server has answered anything but an error.
    answered: bool,
    /// Rows at the front of the connection's buffer that are not handed over yet.
    run: Run,
    /// The memory of the connection's buffer.
    block: Option<Arc<Block>>,
    limits: Limits,
}

/// What bounds a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most rows in a chunk.
    pub(crate) chunk_size: usize,
    /// The most bytes held.
    pub(crate) memory: usize,
    /// Whether a row larger than that is an error, or passes alone.
    pub(crate) strict: bool,
}

impl Limits {
    /// A quarter of the memory, so that the next read can begin while earlier ones wait.
    fn read_size(&self) -> usize {
        (self.memory / 4).clamp(MIN_READ, MAX_READ)
    }
}

/// Why the reader does not read on.
enum Interrupt {
    Failed(Error),
    Abandoned,
}

/// Starts the task. It ends when the connection is given back or closed, bounded by the deadline
/// of the clean-up once the stream is gone.
pub(super) fn spawn(
    connection: Connection,
    channel: Arc<Channel>,
    limits: Limits,
    request: Bytes,
    lease: Lease,
) {
    let reader = Reader {
        connection,
        channel,
        unsent: request,
        exchange: Exchange::new(),
        answered: false,
        run: Run::default(),
        block: None,
        limits,
    };
    tokio::spawn(reader.run(lease));
}

impl Reader {
    async fn run(mut self, lease: Lease) {
        let _last_word = LastWord(Arc::clone(&self.channel));
        let request_bytes = self.unsent.len();
        let mut end = self.answer().await;
        // Rows in front of an error are good, and come before it.
        if let Err(Interrupt::Failed(_)) = end {
            if self.hand_over().await.is_err() {
                end = Err(Interrupt::Abandoned);
            }
        }
        let Self { mut connection, channel, unsent, exchange, answered, block, .. } = self;
        release(&mut connection, block);
        let settled = match end {
            Ok(()) => {
                lease.give_back(connection);
                channel.finish(Ok(()));
                Ok(())
            }
            Err(Interrupt::Abandoned) if unsent.len() == request_bytes => {
                lease.give_back(connection);
                Ok(())
            }
            Err(Interrupt::Abandoned) => {
                let settled = settle(&mut connection, &exchange, unsent).await;
                settled.map(|()| lease.give_back(connection))
            }
            Err(Interrupt::Failed(error)) => {
                let lost = matches!(error, Error::ConnectionClosed { .. } | Error::Io { .. });
                let stale = connection.reused && !answered && (lost || is_fatal(&error));
                let error = StartError { error, stale };
                if lost {
                    // Before anybody hears of it and asks the client.
                    drop((connection, lease));
                    channel.finish(Err(error));
                    Ok(())
                } else {
                    channel.finish(Err(error));
                    let settled = settle(&mut connection, &exchange, unsent).await;
                    settled.map(|()| lease.give_back(connection))
                }
            }
        };
        if let Err(error) = &settled {
            debug!(target: TARGET, %error, "closed a connection that could not be cleaned up");
        }
        channel.settle(settled);
    }

    /// Sends the request and reads the answer to its end.
    async fn answer(&mut self) -> Result<(), Interrupt> {
        self.next_block(HEADER, 0).await?;
        select! {
            biased;
            Abandoned = self.channel.abandoned() => return Err(Interrupt::Abandoned),
            written = self.connection.write(&mut self.unsent) => {
                written.map_err(|e| Error::io("while sending the query", e))?;
            }
        }
        loop {
            let stop = match self.exchange.takes_rows() {
                true => self.run.extend(
                    &self.connection.buffer,
                    self.limits.chunk_size,
                    self.connection.bounds.max_message_size,
                ),
                false => Stop::Other,
            };
            match stop {
                Stop::Full => self.hand_over().await?,
                Stop::Incomplete(row) => {
                    self.make_room(row).await?;
                    self.fill().await?;
                }
                Stop::Malformed(error) => return Err(error.into()),
                Stop::Other => {
                    self.hand_over().await?;
                    if let Progress::Ready = self.next_message().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes one message that is not a row, or reads on when there is none yet.
    async fn next_message(&mut self) -> Result<Progress, Interrupt> {
        let message = match self.connection.take_message()? {
            Taken::Message(message) => message,
            Taken::Absorbed => return Ok(Progress::Going),
            Taken::Incomplete => {
                let header = Header::read(&self.connection.buffer, MAX_CONTROL_FRAME)?;
                let frame_bytes = header.map_or(HEADER, |h| h.size);
                self.make_room(Incomplete { frame_bytes, value_bytes: 0 }).await?;
                self.fill().await?;
                return Ok(Progress::Going);
            }
        };
        let progress = self.exchange.on(message)?;
        match progress {
            Progress::Failed(error) => return Err(self.explain(error).into()),
            Progress::Started => self.channel.start(),
            Progress::Going | Progress::Ready => {}
        }
        self.answered = true;
        Ok(progress)
    }

    /// The server's error, or what it stands for.
    fn explain(&self, error: Error) -> Error {
        let stopped = error.sqlstate().is_some_and(|code| *code == sqlstate::QUERY_CANCELED);
        match stopped && self.connection.session.is_cancelled() {
            true => Error::Cancelled,
            false => error,
        }
    }

    /// Hands over the rows at the front of the buffer as one chunk.
    async fn hand_over(&mut self) -> Result<(), Interrupt> {
        let Some(block) = self.block.as_ref().filter(|_| self.run.rows > 0) else { return Ok(()) };
        let run = std::mem::take(&mut self.run);
        let buffer = &mut self.connection.buffer;
        let cut = || Chunk {
            frames: buffer.split_to(run.frame_bytes).freeze(),
            rows: run.rows,
            value_bytes: run.value_bytes,
            at: 0,
            _block: Arc::clone(block),
        };
        Ok(self.channel.push(cut).await?)
    }

    /// Makes sure that what is incomplete fits into the buffer, and a good read besides.
    async fn make_room(&mut self, next: Incomplete) -> Result<(), Interrupt> {
        let buffer = &self.connection.buffer;
        let free = buffer.capacity() - buffer.len();
        let missing = next.frame_bytes.saturating_sub(buffer.len() - self.run.frame_bytes);
        // A row that has memory of its own is not moved for its last few bytes.
        let large = next.frame_bytes >= self.limits.read_size();
        if free >= missing && (large || free >= self.limits.read_size() / 4) {
            return Ok(());
        }
        // First the rows that are there: only the beginning of the next one moves.
        self.hand_over().await?;
        self.next_block(next.frame_bytes, next.value_bytes).await
    }

    /// Replaces the buffer by one with room for `frame_bytes`, of which `value_bytes` are a row's,
    /// as soon as memory allows.
    async fn next_block(
        &mut self,
        frame_bytes: usize,
        value_bytes: usize,
    ) -> Result<(), Interrupt> {
        let Limits { memory: limit, strict, .. } = self.limits;
        if strict && value_bytes > limit {
            return Err(Error::MemoryLimitExceeded { limit, required: value_bytes }.into());
        }
        let arrived = self.connection.buffer.len();
        let size = frame_bytes.max(arrived + MIN_READ).max(self.limits.read_size());
        // The old one goes first: two at once might be beyond the limit.
        release(&mut self.connection, self.block.take());
        let block = self.channel.reserve(size).await?;
        let mut buffer = BytesMut::with_capacity(size);
        buffer.extend_from_slice(&self.connection.buffer);
        self.connection.buffer = buffer;
        self.block = Some(block);
        Ok(())
    }

    /// Reads some bytes. Rows that are already there do not wait for them.
    async fn fill(&mut self) -> Result<(), Interrupt> {
        loop {
            match self.channel.permission() {
                Permission::Abandoned => return Err(Interrupt::Abandoned),
                // What had changed may have been noticed while handing over.
                Permission::Paused if self.run.rows > 0 => {
                    self.hand_over().await?;
                    continue;
                }
                Permission::Paused => {
                    self.channel.changed().await;
                    continue;
                }
                Permission::Granted => {}
            }
            let connection = &mut self.connection;
            let read = if self.run.rows > 0 {
                poll_fn(|cx| Poll::Ready(connection.poll_read(cx))).await
            } else {
                let timeout = connection.bounds.read_timeout;
                select! {
                    biased;
                    () = self.channel.changed() => Poll::Pending,
                    read = connection.read() => Poll::Ready(read),
                    silence = silence(timeout) => return Err(silence.into()),
                }
            };
            match read {
                Poll::Pending => self.hand_over().await?,
                Poll::Ready(Ok(0)) => return Err(closed(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => return Ok(()),
                Poll::Ready(Err(e)) => return Err(closed(e)),
            }
        }
    }
}

/// Resolves when the server has said nothing for too long.
async fn silence(timeout: Option<Duration>) -> Error {
    let Some(after) = timeout else { return std::future::pending().await };
    sleep(after).await;
    Error::Timeout { phase: TimeoutPhase::Read, after }
}

/// Gives the memory of the read buffer back; what is in it stays.
fn release(connection: &mut Connection, block: Option<Arc<Block>>) {
    connection.buffer = BytesMut::from(connection.buffer.as_ref());
    drop(block);
}

fn closed(e: io::Error) -> Interrupt {
    Error::io("before the result was complete", e).into()
}

/// Whether the server ended the session with this error.
fn is_fatal(error: &Error) -> bool {
    error.as_db_error().is_some_and(|e| matches!(e.severity(), "FATAL" | "PANIC"))
}

/// Ends the stream when the task is dropped in the middle: then its runtime shuts down.
struct LastWord(Arc<Channel>);

impl Drop for LastWord {
    fn drop(&mut self) {
        let gone = || Error::ConnectionClosed {
            during: "because the task that read from it ended (its runtime was shut down, or a handler \
                     of notices panicked)",
            source: None,
        };
        self.0.finish(Err(StartError { error: gone(), stale: false }));
        self.0.settle(Err(gone()));
    }
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Abandoned> for Interrupt {
    fn from(Abandoned: Abandoned) -> Self {
        Self::Abandoned
    }
}
