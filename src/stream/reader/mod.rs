//! The task that owns the connection while a query runs: it sends the request, reads the answer,
//! hands over rows, and cleans up.

mod read_threshold;

use std::{
    future::{pending, poll_fn},
    io,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    join, select,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use self::read_threshold::LowWater;
use super::{
    channel::{Block, Chunk, Interrupt, Permission, Seat, StartError},
    deadline::{Deadlines, watch_pauses},
    parallel::end_transaction,
    resume::{self, Position, Resume},
    schema::check_columns,
    settings::{MAX_READ, MIN_READ, StreamSettings},
};
use crate::{
    connection::{
        Connection, Lease, QuerySession, Session, TARGET, Taken, settle, stop_lost, told_wrong,
    },
    error::{Error, Result, TimeoutPhase, sqlstate},
    metrics::connection::Closed,
    protocol::{
        backend::DATA_ROW,
        extended_query::{ExtendedQuery, Progress},
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        frontend,
        rows::{Incomplete, Run, Stop, value_at},
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
    /// The server cannot have begun the query: it did not get all of the request, or did not read
    /// it.
    not_begun: bool,
    /// The request, as long as a late cancel request of an earlier query may hit it.
    again: Option<Bytes>,
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
    /// Until when it keeps memory that it had lent.
    keeps_until: Option<Instant>,
    settings: StreamSettings,
}

/// The first request of a reader, and the state of the query after it.
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
    (connection, lease): (Connection, Lease),
    seat: Seat,
    settings: StreamSettings,
    deadlines: Deadlines,
    start: Start,
    running: QuerySession,
) {
    let watched = Arc::clone(seat.channel());
    let statement_timeout = lease.statement_timeout();
    let reader = Reader::new(connection, seat, settings, start);
    // On the heap: the runtime moves what it spawns several times.
    tokio::spawn(Box::pin(async move {
        join!(reader.run(lease, deadlines, running), watch_pauses(&watched, statement_timeout))
    }));
}

/// Starts a task that reads a part on a connection of its own, which ends with it.
pub(super) fn spawn_beside(
    connection: Connection,
    seat: Seat,
    settings: StreamSettings,
    deadlines: Deadlines,
    start: Start,
    running: QuerySession,
) {
    let reader = Reader::new(connection, seat, settings, start);
    tokio::spawn(Box::pin(reader.run(Lease::none(), deadlines, running)));
}

impl Reader {
    fn new(connection: Connection, seat: Seat, settings: StreamSettings, start: Start) -> Self {
        let Start { request, query, resume } = start;
        let late_cancel = connection.session.was_cancelled_recently();
        Self {
            connection,
            seat,
            request_bytes: request.len(),
            again: late_cancel.then(|| request.clone()),
            unsent: request.clone(),
            query,
            answered: false,
            not_begun: false,
            position: resume.map(|resume| Position::new(resume, request)),
            replaced: false,
            run: Run::default(),
            block: None,
            chunk_rows: settings.chunk_size().next(),
            rows_left: settings.row_limit.unwrap_or(u64::MAX),
            low_water: LowWater::new(settings.read_size()),
            keeps_until: None,
            settings,
        }
    }

    async fn run(mut self, lease: Lease, deadlines: Deadlines, running: QuerySession) {
        let seat = self.seat.clone();
        let _last_word = LastWord(seat.clone());
        let end = select! {
            biased;
            // First: a query that was cancelled before it was sent is not sent.
            () = running.cancelled() => Err(Error::Cancelled.into()),
            end = self.answers(&lease, &running) => end,
            error = deadlines.expired(seat.channel()) => Err(lease.explain(error).into()),
        };
        // Rows in front of an error are good, and come before it.
        if let Err(Interrupt::Failed(_)) = end {
            self.hand_over_last();
        }
        let Self { mut connection, unsent, request_bytes, query, answered, .. } = self;
        let Self { not_begun, replaced, block, .. } = self;
        release(&mut connection, block);
        connection.set_low_water(1);
        let rest = Rest { query, is_sent: unsent.len() < request_bytes, unsent };
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
            Err(Interrupt::Abandoned) => clean_up(connection, rest, lease).await,
            Err(Interrupt::Failed(error)) => {
                let ended = replaced || error.ends_session();
                let not_begun = not_begun || connection.session.is_ending() && is_reset(&error);
                let stale = connection.reused && !answered && not_begun;
                if stale {
                    connection.closes(Closed::Idle);
                } else if ended && !replaced && !matches!(error, Error::Io { .. }) {
                    connection.closes(Closed::Server);
                }
                let lost =
                    (!replaced && !not_begun && is_lost(&error)).then(|| Lost::new(&connection));
                let error = StartError { error, stale };
                if ended {
                    // Before anybody hears of it and asks the client.
                    drop((connection, lease));
                    if let Some(lost) = lost {
                        lost.stop(&running);
                    }
                    seat.finish(Err(error));
                    Ok(())
                } else {
                    seat.finish(Err(error));
                    clean_up(connection, rest, lease).await
                }
            }
        };
        if let Err(error) = &settled {
            debug!(target: TARGET, %error, "closed a connection that could not be cleaned up");
            running.failed_to_stop(error);
        }
        seat.settle(settled);
    }

    /// Sends the request and reads the answer to its end, on one connection after the other if it can be resumed.
    async fn answers(&mut self, lease: &Lease, running: &QuerySession) -> Result<(), Interrupt> {
        loop {
            match self.answer().await {
                Err(Interrupt::Failed(error)) if self.can_resume(&error) => {
                    self.resume(error, lease, running).await?;
                }
                Err(Interrupt::Failed(error)) if self.can_run_again(&error) => {
                    self.run_again(error).await?;
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

    /// Whether the query was hit by a cancel request of an earlier one: some proxies close the
    /// connection of a request before the server has acted on it. The server has ended the query.
    fn can_run_again(&self, error: &Error) -> bool {
        let is_cancelled = error.sqlstate().is_some_and(|code| *code == sqlstate::QUERY_CANCELED);
        let can_ask = self.again.is_some() && !self.connection.is_in_transaction();
        // Later than that it was statement_timeout or another session, which has the same SQLSTATE.
        is_cancelled
            && can_ask
            && self.run.rows == 0
            && self.connection.session.was_cancelled_recently()
    }

    /// Runs the query once more on the same connection.
    async fn run_again(&mut self, error: Error) -> Result<(), Interrupt> {
        let Some(request) = self.again.take() else { return Err(error.into()) };
        self.seat.channel().span().in_scope(|| {
            warn!(
                target: TARGET,
                %error,
                "a late cancel request of an earlier query has hit this one, which is run again"
            );
        });
        if settle(&mut self.connection, &self.query, Bytes::new()).await.is_err() {
            self.replaced = true;
            return Err(error.into());
        }
        self.ask(request);
        Ok(())
    }

    /// Goes on behind the last row on another connection.
    async fn resume(
        &mut self,
        error: Error,
        lease: &Lease,
        running: &QuerySession,
    ) -> Result<(), Interrupt> {
        let ended = error.ends_session();
        if ended && !matches!(error, Error::Io { .. }) {
            self.connection.closes(Closed::Server);
        }
        self.replaced = ended;
        if ended {
            if is_lost(&error) {
                Lost::new(&self.connection).stop(running);
            }
            // Its descriptor may be the one that its replacement needs.
            self.connection.hang_up();
        }
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
            self.connection.hang_up();
        }
        let request = position.rest()?;
        let replaced = select! {
            biased;
            () = self.seat.abandoned() => return Err(error.into()),
            replaced = lease.replace(&self.connection.session, &error, pause) => replaced?,
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
        self.send().await?;
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

    /// Why to stop at a message after the last row that the statement requested. A server sends no
    /// further row; a proxy that merges the answers of several servers does.
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

    /// Sends the rest of the request. A server that reads nothing for `read_timeout` counts as
    /// silent.
    async fn send(&mut self) -> Result<(), Interrupt> {
        let Self { connection, unsent, seat, not_begun, .. } = self;
        let timeout = connection.bounds.read_timeout;
        let during = |e| Error::io("while sending the query", e);
        while !unsent.is_empty() {
            select! {
                biased;
                () = seat.abandoned() => return Err(Interrupt::Abandoned),
                sent = connection.write_some(unsent) => {
                    if let Err(e) = sent {
                        *not_begun = unsent.len() >= frontend::END_OF_QUERY;
                        return Err(during(e).into());
                    }
                }
                error = silence(timeout) => return Err(error.into()),
            }
        }
        // Otherwise TLS may hold back the end of the request.
        select! {
            biased;
            () = seat.abandoned() => Err(Interrupt::Abandoned),
            flushed = connection.flush() => Ok(flushed.map_err(during)?),
            error = silence(timeout) => Err(error.into()),
        }
    }

    /// Takes one message that is not a row, or reads on when there is none yet.
    async fn next_message(&mut self) -> Result<Progress, Interrupt> {
        let message = match self.connection.take_message()? {
            Taken::Message(message) => message,
            Taken::Absorbed => {
                // Its handler has run: check the deadlines.
                yield_now().await;
                return Ok(Progress::Continue);
            }
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
            Progress::Failed(error) => {
                if self.connection.reused && !self.answered && error.ends_session() {
                    // It may have been ended while it was idle, just before the request arrived.
                    self.not_begun = ended_idle(&error) || self.connection.ends_unread().await;
                }
                Err(error.into())
            }
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
        let checked = self.check_sizes().and_then(|()| self.check_keys());
        let Self { block, run, connection, seat, position, again, .. } = self;
        if let Some(block) = block.as_ref().filter(|_| run.rows > 0) {
            let rows = run.rows as u64;
            // Delivered rows must not be delivered again.
            *again = None;
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
        // A wrong row is cut off; why the rows end is known already.
        let _ = self.check_sizes().and_then(|()| self.check_keys());
        let Self { block, run, connection, seat, .. } = self;
        if let Some(block) = block.as_ref().filter(|_| run.rows > 0) {
            seat.push_last(|| cut(&mut connection.buffer, run, block));
        }
    }

    /// Cuts the run off at a row that is larger than the memory allowed. Only with very little
    /// memory can such a row be in the buffer: any other is found before it is read.
    fn check_sizes(&mut self) -> Result<()> {
        let limit = self.settings.memory();
        if !self.settings.is_strict() || limit >= 4 * MIN_READ {
            return Ok(());
        }
        let mut checked = Run::default();
        while checked.rows < self.run.rows {
            let row = value_at(&self.connection.buffer, checked.frame_bytes);
            let Some((value, next)) = row else { break };
            let required = value.map_or(0, |range| range.len());
            if required > limit {
                self.run = checked;
                return Err(Error::MemoryLimitExceeded { limit, required });
            }
            checked.rows += 1;
            checked.frame_bytes = next;
            checked.value_bytes += required;
        }
        Ok(())
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

    /// Whether to release the buffer, which holds no whole row, to another reader. A buffer for a
    /// large row is kept.
    fn lends_memory(&self) -> bool {
        self.settings.readers > 1
            && self.connection.buffer.capacity() <= self.settings.read_size()
            && self.keeps_until.is_none()
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
                // The server may be silent for long while another reader waits for this one's
                // memory.
                Poll::Pending if self.lends_memory() => {
                    self.next_block(HEADER, 0).await?;
                    self.keeps_until = Some(Instant::now() + LEND_AGAIN);
                    continue;
                }
                Poll::Pending => {}
            }
            let Self { connection, low_water, keeps_until, .. } = self;
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
                () = until(*keeps_until) => {
                    *keeps_until = None;
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

/// How long a reader keeps memory that it had lent: two that wait for their servers would pass it
/// to each other without a pause.
const LEND_AGAIN: Duration = Duration::from_millis(10);

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
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

/// The work left on a connection whose query has ended early.
struct Rest {
    query: ExtendedQuery,
    /// The request has begun to be sent.
    is_sent: bool,
    unsent: Bytes,
}

/// Stops the query, if the server may have begun it, and returns the connection.
async fn clean_up(mut connection: Connection, rest: Rest, lease: Lease) -> Result<()> {
    if rest.is_sent {
        settle(&mut connection, &rest.query, rest.unsent).await?;
    }
    give_back(connection, lease).await
}

/// The session of a connection that was lost during a query.
struct Lost {
    session: Arc<Session>,
    cancel_timeout: Duration,
}

impl Lost {
    fn new(connection: &Connection) -> Self {
        let session = Arc::clone(&connection.session);
        Self { session, cancel_timeout: connection.bounds.cancel_timeout }
    }

    /// Stops its query in a task: the server may not have noticed that the connection is gone.
    fn stop(self, running: &QuerySession) {
        let running = running.clone();
        tokio::spawn(async move {
            stop_lost(self.session, self.cancel_timeout).await;
            drop(running);
        });
    }
}

/// Whether the connection was lost without a message from the server that ends the session.
fn is_lost(error: &Error) -> bool {
    matches!(error, Error::ConnectionClosed { .. } | Error::Io { .. })
}

/// Whether the peer closed the connection before it had read everything that was sent.
fn is_reset(error: &Error) -> bool {
    let Error::ConnectionClosed { source: Some(source), .. } = error else { return false };
    source.kind() == io::ErrorKind::ConnectionReset
}

/// Whether the server has ended the session because it was idle: it has not begun a query.
fn ended_idle(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| *code == sqlstate::IDLE_SESSION_TIMEOUT)
}

/// Returns a connection that has done its work, after ending its transaction, if any.
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
