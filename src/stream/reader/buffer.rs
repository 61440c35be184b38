//! The read buffer, in which rows are validated and from which chunks are split off.

use std::{
    future::{pending, poll_fn},
    io,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    select,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::read_threshold::ReadThreshold;
use crate::{
    connection::Connection,
    error::{Error, Result, TimeoutPhase},
    protocol::{
        frame::HEADER,
        rows::{Incomplete, Run, Stop, value_at},
    },
    stream_impl::{
        channel::{Interrupt, MemoryPermit, Producer, ReadPermit},
        chunk::Chunk,
        exchange::closed,
        resume::ResumeState,
        settings::{MIN_READ, StreamSettings},
    },
};

/// The rows at the front of a connection's read buffer, and the memory of that buffer.
pub(super) struct ReadBuffer {
    producer: Producer,
    settings: StreamSettings,
    /// The number of readers that share the memory of the stream.
    readers: usize,
    /// The maximum size of one read.
    read_size: usize,
    /// Complete rows that are not enqueued yet.
    pub(super) run: Run,
    /// The memory of the buffer.
    memory: Option<Arc<MemoryPermit>>,
    /// Whether the last row was larger than one read. The next one probably is too.
    follows_large_row: bool,
    /// The maximum number of rows in the next chunk.
    chunk_rows: usize,
    /// The number of rows that may still arrive by the LIMIT of the statement.
    rows_left: u64,
    /// Whether a row of the stream was enqueued. Its query must not begin again.
    has_delivered: bool,
    /// The number of bytes that a read waits for.
    threshold: ReadThreshold,
    /// Until when it keeps memory that it had released to another reader.
    keeps_until: Option<Instant>,
}

/// How long a read waits for more than one byte.
const COALESCE_TIMEOUT: Duration = Duration::from_millis(1);

impl ReadBuffer {
    /// `rows` is the number of rows that were enqueued before there was a reader.
    pub(super) fn new(
        producer: Producer,
        settings: StreamSettings,
        readers: usize,
        rows: u64,
    ) -> Self {
        let read_size = settings.read_size(readers);
        Self {
            producer,
            settings,
            readers,
            read_size,
            run: Run::default(),
            memory: None,
            follows_large_row: false,
            chunk_rows: settings.chunk_rows().0,
            rows_left: settings.row_limit.map_or(u64::MAX, |limit| limit.saturating_sub(rows)),
            has_delivered: rows > 0,
            threshold: ReadThreshold::new(read_size),
            keeps_until: None,
        }
    }

    /// Finds the next rows in the buffer.
    pub(super) fn next_rows(&mut self, connection: &Connection) -> Stop {
        self.run.extend(
            &connection.buffer,
            // A number beyond `usize` does not fit into a chunk either.
            self.chunk_rows.min(self.rows_left.try_into().unwrap_or(usize::MAX)),
            connection.limits.max_message_size,
        )
    }

    /// Returns whether all rows that the statement requests have arrived.
    pub(super) fn is_at_limit(&self) -> bool {
        self.rows_left == 0
    }

    /// Returns whether no row was received or delivered.
    pub(super) fn has_no_row(&self) -> bool {
        self.run.rows == 0 && !self.has_delivered
    }

    /// Starts to read another connection.
    pub(super) fn reset(&mut self) {
        self.threshold = ReadThreshold::new(self.read_size);
    }

    /// Enqueues the rows at the front of the buffer as one chunk.
    pub(super) async fn enqueue(
        &mut self,
        connection: &mut Connection,
        resume: &mut Option<ResumeState>,
    ) -> Result<(), Interrupt> {
        let checked = self.check_rows(connection, resume);
        let Self { memory, run, producer, .. } = self;
        if let Some(memory) = memory.as_ref().filter(|_| run.rows > 0) {
            let rows = run.rows as u64;
            let is_large = rows == 1 && run.frame_bytes > self.read_size;
            // Split off only when there is room: a future that is dropped before that loses
            // nothing.
            let make = || split_rows(&mut connection.buffer, run, memory);
            self.chunk_rows = producer.push(make).await?;
            self.has_delivered = true;
            self.follows_large_row = is_large;
            self.rows_left = self.rows_left.saturating_sub(rows);
            if let Some(resume) = resume {
                resume.next_run();
            }
        }
        Ok(checked?)
    }

    /// Enqueues the rows before an error, without waiting for room.
    pub(super) fn enqueue_last(
        &mut self,
        connection: &mut Connection,
        resume: &mut Option<ResumeState>,
    ) {
        // Drops an invalid row. Why the rows end is already known.
        let _ = self.check_rows(connection, resume);
        let Self { memory, run, producer, .. } = self;
        if let Some(memory) = memory.as_ref().filter(|_| run.rows > 0) {
            producer.push_last(|| split_rows(&mut connection.buffer, run, memory));
        }
    }

    /// Checks the rows of the run. Truncates it before an invalid row.
    fn check_rows(
        &mut self,
        connection: &Connection,
        resume: &mut Option<ResumeState>,
    ) -> Result<()> {
        self.check_sizes(&connection.buffer)?;
        resume.as_mut().map_or(Ok(()), |resume| resume.record(&connection.buffer, &mut self.run))
    }

    /// Truncates the run before a row that exceeds the memory. Such a row can be in the buffer only
    /// if the memory is very small, or if a pipelined answer was read with others.
    fn check_sizes(&mut self, buffer: &[u8]) -> Result<()> {
        if !self.settings.is_below_read() {
            return Ok(());
        }
        let limit = self.settings.memory();
        let mut checked = Run::default();
        while checked.rows < self.run.rows {
            let Some((value, next)) = value_at(buffer, checked.frame_bytes) else { break };
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

    /// Ensures that an incomplete frame fits into the buffer, with room for a large read.
    pub(super) async fn make_room(
        &mut self,
        connection: &mut Connection,
        resume: &mut Option<ResumeState>,
        next: Incomplete,
    ) -> Result<(), Interrupt> {
        let free = connection.free();
        let arrived = connection.buffer.len() - self.run.frame_bytes;
        let missing = next.frame_bytes.saturating_sub(arrived);
        // A row with its own memory is not moved for its last few bytes.
        let large = next.frame_bytes >= self.read_size;
        if free >= missing && (large || free >= self.read_size / 4) {
            return Ok(());
        }
        // Enqueue the complete rows first, so that only the beginning of the next one is moved.
        self.enqueue(connection, resume).await?;
        self.yield_to_consumer().await;
        if self.reclaim(connection, &next)? {
            return Ok(());
        }
        self.replace(connection, next).await
    }

    /// Lets the consumer run while the rows are in the processor's cache. The memory that it
    /// releases is reused for the next rows. A reader that runs ahead would need new pages.
    async fn yield_to_consumer(&mut self) {
        if self.producer.has_unread() {
            select! {
                biased;
                () = self.producer.changed() => {}
                () = yield_now() => {}
            }
            self.producer.unblocked();
        }
    }

    /// Makes room in the same buffer, if every chunk that was split off it has been dropped.
    ///
    /// A new buffer costs more: the allocator merges and searches the small blocks that the decoded
    /// rows have freed. It returns the pages of a large row to the system, which clears them again
    /// for the next one: 38 page faults for each document of 205 KB.
    fn reclaim(&self, connection: &mut Connection, next: &Incomplete) -> Result<bool> {
        let needed = self.size_for(connection, next)?;
        let Some(size) = self.memory.as_ref().map(|memory| memory.size()) else { return Ok(false) };
        // Readers that share the memory keep none for rows that may not come.
        let is_for_large_rows = self.follows_large_row
            && self.readers == 1
            && size <= MAX_REUSED.min(self.settings.memory());
        let fits = size == needed || is_for_large_rows && size > needed;
        // Another reader that waits for memory is served first.
        let is_wanted = self.readers > 1 && self.producer.is_memory_short();
        let buffer = &mut connection.buffer;
        Ok(fits && !is_wanted && buffer.try_reclaim(size - buffer.len()))
    }

    /// Returns the size of a buffer with room for a frame, in addition to what has arrived.
    fn size_for(&self, connection: &Connection, next: &Incomplete) -> Result<usize> {
        let limit = self.settings.memory();
        if self.settings.is_strict() && next.value_bytes > limit {
            return Err(Error::MemoryLimitExceeded { limit, required: next.value_bytes });
        }
        Ok(next.frame_bytes.max(connection.buffer.len() + MIN_READ).max(self.read_size))
    }

    /// Replaces the buffer by an empty one of the default size.
    pub(super) async fn renew(&mut self, connection: &mut Connection) -> Result<(), Interrupt> {
        self.replace(connection, Incomplete { frame_bytes: HEADER, value_bytes: 0 }).await
    }

    /// Replaces the buffer by one with room for a frame, as soon as memory allows.
    async fn replace(
        &mut self,
        connection: &mut Connection,
        next: Incomplete,
    ) -> Result<(), Interrupt> {
        let size = self.size_for(connection, &next)?;
        // Release the old buffer first: both together could exceed the limit.
        self.release(connection);
        let memory = self.producer.reserve(size).await?;
        let mut buffer = BytesMut::with_capacity(size);
        buffer.extend_from_slice(&connection.buffer);
        connection.buffer = buffer;
        self.memory = Some(memory);
        Ok(())
    }

    /// Releases the memory of the buffer. Its content is kept.
    pub(super) fn release(&mut self, connection: &mut Connection) {
        connection.release_read_buffer();
        self.memory = None;
    }

    /// Returns whether to release the buffer, which has no complete row, to another reader. A
    /// buffer for a large row is kept.
    fn lends_memory(&self, connection: &Connection) -> bool {
        self.readers > 1
            && connection.buffer.capacity() <= self.read_size
            && self.keeps_until.is_none()
            && self.producer.is_memory_short()
    }

    /// Reads some bytes. Complete rows are not delayed: they are enqueued before waiting.
    pub(super) async fn fill(
        &mut self,
        connection: &mut Connection,
        resume: &mut Option<ResumeState>,
    ) -> Result<(), Interrupt> {
        loop {
            match self.producer.permit_read(self.run.rows > 0) {
                ReadPermit::Closed => return Err(Interrupt::Closed),
                // A change may have been signalled while the rows were enqueued.
                ReadPermit::Paused if self.run.rows > 0 => {
                    self.enqueue(connection, resume).await?;
                    continue;
                }
                ReadPermit::Paused => {
                    self.producer.changed().await;
                    continue;
                }
                ReadPermit::Granted => {}
            }
            match poll_fn(|cx| Poll::Ready(connection.poll_read(cx))).await {
                Poll::Ready(read) => return self.arrived(read),
                Poll::Pending if self.run.rows > 0 => {
                    self.enqueue(connection, resume).await?;
                    continue;
                }
                // The server may send nothing for a long time while another reader waits for this
                // one's memory.
                Poll::Pending if self.lends_memory(connection) => {
                    self.renew(connection).await?;
                    self.keeps_until = Some(Instant::now() + LEND_AGAIN);
                    continue;
                }
                Poll::Pending => {}
            }
            self.producer.blocked_on_server();
            let timeout = connection.limits.read_timeout;
            // Do not wait for more data if the timeout is that short.
            let in_time = timeout.is_none_or(|timeout| timeout > 4 * COALESCE_TIMEOUT);
            let wanted = if in_time { self.threshold.next() } else { 1 };
            let waits_for_more = connection.set_rcvlowat(wanted) && wanted > 1;
            let read = select! {
                biased;
                () = self.producer.changed() => None,
                read = connection.read() => Some(read),
                () = sleep(COALESCE_TIMEOUT), if waits_for_more => {
                    self.threshold.timed_out();
                    None
                }
                () = until(self.keeps_until) => {
                    self.keeps_until = None;
                    None
                }
                error = silence(timeout) => return Err(error.into()),
            };
            self.producer.unblocked();
            if let Some(read) = read {
                return self.arrived(read);
            }
        }
    }

    fn arrived(&mut self, read: io::Result<usize>) -> Result<(), Interrupt> {
        match read {
            Ok(0) => Err(closed(io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(bytes) => {
                self.threshold.record(bytes);
                Ok(())
            }
            Err(e) => Err(closed(e).into()),
        }
    }
}

/// Splits the rows of `run` off the buffer.
fn split_rows(
    buffer: &mut BytesMut,
    run: &mut Run,
    memory: &Arc<MemoryPermit>,
) -> (Chunk, Arc<MemoryPermit>) {
    let Run { rows, frame_bytes, value_bytes } = std::mem::take(run);
    let frames = buffer.split_to(frame_bytes).freeze();
    (Chunk::new(frames, rows, value_bytes), Arc::clone(memory))
}

/// The maximum size of a buffer that is kept after a large row, in bytes. The rows that follow may
/// be small, and hold it until it is full.
const MAX_REUSED: usize = 1 << 20;

/// How long a reader keeps memory that it had released before. Otherwise two readers that wait for
/// their servers would pass it to each other continuously.
const LEND_AGAIN: Duration = Duration::from_millis(10);

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Resolves when the server has sent nothing for `read_timeout`.
async fn silence(timeout: Option<Duration>) -> Error {
    let Some(after) = timeout else { return pending().await };
    sleep(after).await;
    Error::Timeout { phase: TimeoutPhase::Read, after }
}
