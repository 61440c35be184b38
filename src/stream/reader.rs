//! The task that owns the connection while a query runs: it sends the request, reads the answer,
//! hands over rows, and cleans up.

use std::{
    future::{pending, poll_fn},
    io,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{join, select, task::yield_now, time::sleep};
use tracing::{debug, warn};

use super::{
    channel::{Block, Interrupt, Permission, Seat, StartError},
    chunk::Chunk,
    deadline::{Deadlines, watch_pauses},
    low_water::LowWater,
    parallel::end_transaction,
    resume::{self, Position, Resume},
    schema::check_columns,
    settings::{MAX_READ, MIN_READ, StreamSettings},
};
use crate::{
    connection::{Connection, Lease, TARGET, Taken, settle, told_wrong},
    error::{Error, Result, TimeoutPhase},
    metrics::connection::Closed,
    protocol::{
        backend::DATA_ROW,
        extended_query::{ExtendedQuery, Progress},
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        rows::{Incomplete, Run, Stop},
    },
};

pub(super) struct Reader {
    connection: Connection,
    seat: Seat,
    /// What of the request is not sent yet.
    unsent: Bytes,
    query: ExtendedQuery,
    /// All of it, in bytes.
    request_bytes: usize,
    /// Whether the server has answered anything but an error.
    answered: bool,
    /// Where it stands, if it can go on elsewhere.
    position: Option<Position>,
    /// The connection has nothing left to do or to clean up: another one is to take its place.
    replaced: bool,
    /// Rows at the front of the connection's buffer that are not handed over yet.
    run: Run,
    /// The memory of the connection's buffer.
    block: Option<Arc<Block>>,
    /// The most rows in the next chunk.
    chunk_rows: usize,
    /// How many rows may still come by the limit of the statement.
    rows_left: u64,
    /// How many bytes it waits for.
    low_water: LowWater,
    settings: StreamSettings,
}

/// What a reader sends first, and where the query stands then.
pub(super) struct Start {
    request: Bytes,
    query: ExtendedQuery,
    resume: Option<Resume>,
}

impl Start {
    /// A whole query.
    pub(super) fn whole(request: Bytes, resume: Option<Resume>) -> Self {
        Self { request, query: ExtendedQuery::new(), resume }
    }

    /// A part, which the session has planned in its transaction.
    pub(super) fn part(request: Bytes) -> Self {
        Self { request, query: ExtendedQuery::bound(), resume: None }
    }
}

/// Starts the task that reads on the client's connection. It ends when the connection is given back or closed
/// and the stream has ended: bounded by the deadline of the clean-up once the stream is gone.
pub(super) fn spawn(
    connection: Connection,
    seat: Seat,
    settings: StreamSettings,
    deadlines: Deadlines,
    start: Start,
    lease: Lease,
) {
    let watched = Arc::clone(seat.channel());
    let statement_timeout = lease.statement_timeout();
    let reader = Reader::new(connection, seat, settings, start);
    tokio::spawn(async move {
        join!(reader.run(lease, deadlines, pending()), watch_pauses(&watched, statement_timeout))
    });
}

/// Starts a task that reads a part on a connection of its own, which ends with it. `cancelled`: by a token, which knows
/// only of the client's connection.
pub(super) fn spawn_beside(
    connection: Connection,
    seat: Seat,
    settings: StreamSettings,
    deadlines: Deadlines,
    start: Start,
    cancelled: impl Future<Output = ()> + Send + 'static,
) {
    let reader = Reader::new(connection, seat, settings, start);
    tokio::spawn(reader.run(Lease::none(), deadlines, cancelled));
}

impl Reader {
    fn new(connection: Connection, seat: Seat, settings: StreamSettings, start: Start) -> Self {
        let Start { request, query, resume } = start;
        Self {
            connection,
            seat,
            request_bytes: request.len(),
            unsent: request.clone(),
            query,
            answered: false,
            position: resume.map(|resume| Position::new(resume, request)),
            replaced: false,
            run: Run::default(),
            block: None,
            chunk_rows: settings.chunk_size().next(),
            rows_left: settings.row_limit.unwrap_or(u64::MAX),
            low_water: LowWater::new(settings.read_size()),
            settings,
        }
    }

    async fn run(
        mut self,
        lease: Lease,
        deadlines: Deadlines,
        cancelled: impl Future<Output = ()>,
    ) {
        let seat = self.seat.clone();
        let _last_word = LastWord(seat.clone());
        let end = select! {
            biased;
            end = self.answers(&lease) => end,
            error = deadlines.expired(seat.channel()) => Err(error.into()),
            () = cancelled => Err(Error::Cancelled.into()),
        };
        // Rows in front of an error are good, and come before it.
        if let Err(Interrupt::Failed(_)) = end {
            self.hand_over_last();
        }
        let Self { mut connection, unsent, request_bytes, query, answered, .. } = self;
        let Self { replaced, block, .. } = self;
        release(&mut connection, block);
        connection.set_low_water(1);
        let settled = match end {
            Ok(()) => {
                let given = give_back(connection, lease).await;
                seat.finish(Ok(()));
                given
            }
            Err(Interrupt::Abandoned) if replaced => {
                drop((connection, lease));
                Ok(())
            }
            Err(Interrupt::Abandoned) if unsent.len() == request_bytes => {
                give_back(connection, lease).await
            }
            Err(Interrupt::Abandoned) => match settle(&mut connection, &query, unsent).await {
                Ok(()) => give_back(connection, lease).await,
                Err(e) => Err(e),
            },
            Err(Interrupt::Failed(error)) => {
                let ended = replaced || error.ends_session();
                let stale = connection.reused && !answered && ended;
                if stale {
                    connection.closes(Closed::Idle);
                } else if ended && !replaced && !matches!(error, Error::Io { .. }) {
                    connection.closes(Closed::Server);
                }
                let error = StartError { error, stale };
                if ended {
                    // Before anybody hears of it and asks the client.
                    drop((connection, lease));
                    seat.finish(Err(error));
                    Ok(())
                } else {
                    seat.finish(Err(error));
                    match settle(&mut connection, &query, unsent).await {
                        Ok(()) => give_back(connection, lease).await,
                        Err(e) => Err(e),
                    }
                }
            }
        };
        if let Err(error) = &settled {
            debug!(target: TARGET, %error, "closed a connection that could not be cleaned up");
        }
        seat.settle(settled);
    }

    /// Sends the request and reads the answer to its end, on one connection after the other if it can be resumed.
    async fn answers(&mut self, lease: &Lease) -> Result<(), Interrupt> {
        loop {
            match self.answer().await {
                Err(Interrupt::Failed(error)) if self.can_resume(&error) => {
                    self.resume(error, lease).await?;
                }
                Ok(()) => {
                    match self.position.as_mut().map(Position::keyless).transpose()?.flatten() {
                        Some(request) => self.ask(request),
                        None => return Ok(()),
                    }
                }
                end => return end,
            }
        }
    }

    /// Only what has begun: before that, it is an error of `execute()`.
    fn can_resume(&self, error: &Error) -> bool {
        self.position.is_some() && self.answered && resume::is_passing(error)
    }

    /// Goes on behind the last row on another connection.
    async fn resume(&mut self, error: Error, lease: &Lease) -> Result<(), Interrupt> {
        let ended = error.ends_session();
        if ended && !matches!(error, Error::Io { .. }) {
            self.connection.closes(Closed::Server);
        }
        self.replaced = ended;
        self.hand_over().await?;
        release(&mut self.connection, self.block.take());
        let Some(position) = &mut self.position else { return Err(error.into()) };
        self.seat.stopped_reading();
        let rows = position.rows();
        self.seat.channel().span().in_scope(|| {
            warn!(target: TARGET, %error, rows, "a stream goes on behind its last row on another connection");
        });
        let pause = lease.pause_before_retry(position.in_vain)?;
        position.in_vain += 1;
        let Some(pause) = pause else { return Err(error.into()) };
        if !ended {
            // The server may go on working on what nobody will read.
            let cleaned = settle(&mut self.connection, &self.query, Bytes::new()).await;
            if let Err(error) = cleaned {
                debug!(target: TARGET, %error, "could not stop the query that is resumed elsewhere");
            }
            self.replaced = true;
        }
        let request = position.rest()?;
        let replaced = select! {
            biased;
            () = self.seat.abandoned() => return Err(error.into()),
            replaced = lease.replace(&self.connection.session, pause) => replaced?,
        };
        self.seat.resumed_elsewhere();
        self.connection = replaced;
        self.replaced = false;
        self.low_water = LowWater::new(self.settings.read_size());
        self.ask(request);
        Ok(())
    }

    /// The next answer is that to this request.
    fn ask(&mut self, request: Bytes) {
        self.query = ExtendedQuery::new();
        self.request_bytes = request.len();
        self.unsent = request;
    }

    /// Sends the request and reads the answer to its end.
    async fn answer(&mut self) -> Result<(), Interrupt> {
        self.next_block(HEADER, 0).await?;
        select! {
            biased;
            () = self.seat.abandoned() => return Err(Interrupt::Abandoned),
            written = self.connection.write(&mut self.unsent) => {
                written.map_err(|e| Error::io("while sending the query", e))?;
            }
        }
        loop {
            let stop = match self.query.takes_rows() && !self.connection.is_in_message() {
                true if self.rows_left == 0 => self.beyond_limit(),
                true => self.run.extend(
                    &self.connection.buffer,
                    // More than `usize` holds do not fit into a chunk either.
                    self.chunk_rows.min(self.rows_left.try_into().unwrap_or(usize::MAX)),
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
                Stop::Malformed(error) => return Ok(told_wrong("DataRow", Err(error))?),
                Stop::Other => {
                    self.hand_over().await?;
                    if let Progress::Ready = self.next_message().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What follows the last row that the statement asked for. Another row is one that no server sends: a
    /// proxy that merges the answers of several does.
    fn beyond_limit(&self) -> Stop {
        match self.connection.buffer.first() {
            Some(&DATA_ROW) => Stop::Malformed(Error::protocol(format!(
                "more rows came than the {} that the statement asks for: does a proxy spread it over \
                 several servers?",
                self.settings.row_limit.unwrap_or_default()
            ))),
            _ => Stop::Other,
        }
    }

    /// Takes one message that is not a row, or reads on when there is none yet.
    async fn next_message(&mut self) -> Result<Progress, Interrupt> {
        let message = match self.connection.take_message()? {
            Taken::Message(message) => message,
            Taken::Absorbed => return Ok(Progress::Continue),
            Taken::Incomplete => {
                let header = Header::read(&self.connection.buffer, MAX_CONTROL_FRAME)?;
                let frame_bytes = header.map_or(HEADER, |h| h.size);
                let limit = self.settings.memory();
                // It may have as much as a read beyond the limit, like everything; by its header alone it has
                // not more.
                if self.settings.is_strict() && frame_bytes > limit.max(MAX_READ) {
                    return Err(Error::MemoryLimitExceeded { limit, required: frame_bytes }.into());
                }
                self.make_room(Incomplete { frame_bytes, value_bytes: 0 }).await?;
                self.fill().await?;
                return Ok(Progress::Continue);
            }
        };
        let name = message.name();
        let progress = told_wrong(name, self.query.advance(message))?;
        self.answered |= !matches!(progress, Progress::Failed(_));
        match progress {
            Progress::Failed(error) => Err(self.connection.explain(error).into()),
            Progress::Columns(columns) => {
                told_wrong(name, check_columns(&columns))?;
                self.seat.start();
                // Whoever reads ahead now could leave no memory to another that is to begin, and so could whoever
                // has read much in front of the rows: who waits holds none.
                if self.settings.readers > 1 {
                    release(&mut self.connection, self.block.take());
                    self.seat.all_started().await;
                    self.next_block(HEADER, 0).await?;
                }
                Ok(Progress::Continue)
            }
            Progress::Continue | Progress::Ready => Ok(progress),
        }
    }

    /// Hands over the rows at the front of the buffer as one chunk.
    async fn hand_over(&mut self) -> Result<(), Interrupt> {
        let checked = self.check_keys();
        let Self { block, run, connection, seat, position, .. } = self;
        if let Some(block) = block.as_ref().filter(|_| run.rows > 0) {
            let rows = run.rows as u64;
            // Cut when there is room: dropped before, the future loses nothing.
            self.chunk_rows = seat.push(|| cut(&mut connection.buffer, run, block)).await?;
            self.rows_left = self.rows_left.saturating_sub(rows);
            if let Some(position) = position {
                position.next_run();
            }
        }
        Ok(checked?)
    }

    fn hand_over_last(&mut self) {
        // A wrong key is cut off; why the rows end is known already.
        let _ = self.check_keys();
        let Self { block, run, connection, seat, .. } = self;
        if let Some(block) = block.as_ref().filter(|_| run.rows > 0) {
            seat.push_last(|| cut(&mut connection.buffer, run, block));
        }
    }

    fn check_keys(&mut self) -> Result<()> {
        match &mut self.position {
            Some(position) => position.record(&self.connection.buffer, &mut self.run),
            None => Ok(()),
        }
    }

    /// Makes sure that what is incomplete fits into the buffer, and a good read besides.
    async fn make_room(&mut self, next: Incomplete) -> Result<(), Interrupt> {
        let buffer = &self.connection.buffer;
        let free = buffer.capacity() - buffer.len();
        let missing = next.frame_bytes.saturating_sub(buffer.len() - self.run.frame_bytes);
        // A row that has memory of its own is not moved for its last few bytes.
        let large = next.frame_bytes >= self.settings.read_size();
        if free >= missing && (large || free >= self.settings.read_size() / 4) {
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
        let limit = self.settings.memory();
        if self.settings.is_strict() && value_bytes > limit {
            return Err(Error::MemoryLimitExceeded { limit, required: value_bytes }.into());
        }
        let arrived = self.connection.buffer.len();
        let size = frame_bytes.max(arrived + MIN_READ).max(self.settings.read_size());
        // The old one goes first: two at once might be beyond the limit.
        release(&mut self.connection, self.block.take());
        let block = self.seat.reserve(size).await?;
        let mut buffer = BytesMut::with_capacity(size);
        buffer.extend_from_slice(&self.connection.buffer);
        self.connection.buffer = buffer;
        self.block = Some(block);
        // The consumer's turn, while what it reads is in the processor's cache: and the memory that it
        // lets go of is that of the next block, where a reader that ran ahead would need fresh pages.
        if self.seat.has_unread() {
            select! {
                biased;
                () = self.seat.changed() => {}
                () = yield_now() => {}
            }
            self.seat.waited();
        }
        Ok(())
    }

    /// Whether its buffer, without a whole row in it, is to serve another reader first. One for a large row is kept.
    fn lends_memory(&self) -> bool {
        self.settings.readers > 1
            && self.connection.buffer.capacity() <= self.settings.read_size()
            && self.seat.is_memory_short()
    }

    /// Reads some bytes. Rows that are already there do not wait for them.
    async fn fill(&mut self) -> Result<(), Interrupt> {
        loop {
            match self.seat.permission(self.run.rows > 0) {
                Permission::Abandoned => return Err(Interrupt::Abandoned),
                // What had changed may have been noticed while handing over.
                Permission::Paused if self.run.rows > 0 => {
                    self.hand_over().await?;
                    continue;
                }
                Permission::Paused => {
                    self.seat.changed().await;
                    continue;
                }
                Permission::Granted => {}
            }
            match poll_fn(|cx| Poll::Ready(self.connection.poll_read(cx))).await {
                Poll::Ready(read) => return arrived(read, &mut self.low_water),
                Poll::Pending if self.run.rows > 0 => {
                    self.hand_over().await?;
                    continue;
                }
                // A server may be silent for long, and another reader wait for this one's memory.
                Poll::Pending if self.lends_memory() => {
                    self.next_block(HEADER, 0).await?;
                    continue;
                }
                Poll::Pending => {}
            }
            let Self { connection, low_water, .. } = self;
            self.seat.waiting();
            let timeout = connection.bounds.read_timeout;
            // A deadline that is nearer than the patience would pass in vain.
            let in_time = timeout.is_none_or(|timeout| timeout > 4 * PATIENCE);
            let wanted = if in_time { low_water.next() } else { 1 };
            let waits_for_more = connection.set_low_water(wanted) && wanted > 1;
            let read = select! {
                biased;
                () = self.seat.changed() => None,
                read = connection.read() => Some(read),
                () = sleep(PATIENCE), if waits_for_more => {
                    low_water.in_vain();
                    None
                }
                error = silence(timeout) => return Err(error.into()),
            };
            self.seat.waited();
            if let Some(read) = read {
                return arrived(read, low_water);
            }
        }
    }
}

/// Cuts the rows of `run` off the buffer.
fn cut(buffer: &mut BytesMut, run: &mut Run, block: &Arc<Block>) -> Chunk {
    let Run { rows, frame_bytes, value_bytes } = std::mem::take(run);
    let frames = buffer.split_to(frame_bytes).freeze();
    Chunk { frames, rows, value_bytes, at: 0, _block: Arc::clone(block) }
}

/// For how long more than one byte is waited for.
const PATIENCE: Duration = Duration::from_millis(1);

fn arrived(read: io::Result<usize>, low_water: &mut LowWater) -> Result<(), Interrupt> {
    match read {
        Ok(0) => Err(closed(io::ErrorKind::UnexpectedEof.into())),
        Ok(bytes) => {
            low_water.record(bytes);
            Ok(())
        }
        Err(e) => Err(closed(e)),
    }
}

/// Resolves when the server has said nothing for too long.
async fn silence(timeout: Option<Duration>) -> Error {
    let Some(after) = timeout else { return pending().await };
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

/// Gives a connection back that has done its work: out of its transaction, if it is in one.
async fn give_back(mut connection: Connection, lease: Lease) -> Result<()> {
    end_transaction(&mut connection).await?;
    lease.give_back(connection);
    Ok(())
}

/// Ends the stream when the task is dropped in the middle: then its runtime shuts down.
struct LastWord(Seat);

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
