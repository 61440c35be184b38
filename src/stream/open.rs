//! Opening a stream: from `execute()` to the first rows.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use tracing::Instrument;

use super::{
    channel::{Channel, FirstRows},
    deadline::Deadlines,
    exchange::{Answer, Exchange},
    observer::{QueryObserver, Rows, now, outcome},
    parallel::{BeginError, Parallel, try_all},
    plan::{Execution, QueryPlan, unnamed},
    reader::ReaderTask,
    resume::ResumeState,
    statement,
    teardown::{Held, InFlight, StartError, StartingTransaction, give_back},
};
use crate::{
    connection::{Choice, Connection, Lease, Leased, RunningQuery, SlotHandle, StreamGuard},
    error::{Error, Result, TimeoutPhase},
    metrics::connection as metrics,
    protocol::{extended_query::ExtendedQuery, frontend::NO_CLOSES},
};

/// How a query gets its connection.
pub(super) enum Claim<'a> {
    /// For a stream: it waits for the fetches in progress, and rejects those that come later. The
    /// function lets a task continue them.
    Exclusive(&'a (dyn Fn(&SlotHandle) + Send + Sync)),
    /// For a fetch, which has claimed it, or was rejected.
    Fetch(Result<Leased>),
}

/// How far [`open`] has come.
pub(super) enum Outcome {
    Open(Arc<Channel>),
    /// A fetch whose connection other fetches need too. Its answer has not arrived.
    Interrupted(Box<Interrupted>),
}

/// A fetch that has been sent, and waits for its answer. Dropping it cancels the query.
pub(super) struct Interrupted {
    pub(super) slot: SlotHandle,
    pub(super) in_flight: Box<InFlight>,
    pub(super) choice: Choice,
    pub(super) job: Job,
}

/// What a fetch asks for, and what observes it.
pub(super) struct Job {
    pub(super) plan: QueryPlan,
    pub(super) observer: QueryObserver,
    pub(super) deadlines: Deadlines,
    pub(super) guard: StreamGuard,
    pub(super) query: RunningQuery,
}

/// Runs a query up to its first rows, and returns the channel from which its stream reads.
///
/// If the whole answer has arrived by then, the connection is back in the client. Otherwise reader
/// tasks read the rest. Dropping the future cancels the query, in the background.
///
/// `query` was begun before the connection was claimed: otherwise a cancel token could find the
/// client busy, and no query to cancel.
pub(super) async fn open(
    slot: SlotHandle,
    plan: QueryPlan,
    query: RunningQuery,
    claim: Claim<'_>,
) -> Result<Outcome> {
    let observer = QueryObserver::begin(&slot, plan.labels(), plan.text());
    let deadlines = Deadlines::new(observer.started_at, &plan.spec.settings);
    let opening = Opening { slot: &slot, plan: &plan, query: &query, observer: &observer };
    let opened = {
        // Passed by reference: a future that takes another by value reserves its size twice.
        let run = pin!(opening.run(claim));
        let run = pin!(run.instrument(observer.span()));
        let run = pin!(deadlines.bound(run));
        query.unless_cancelled(run).await
    };
    match opened {
        Ok((guard, Started::Rows(start))) => {
            let opened = Opened { guard, start };
            Ok(Outcome::Open(opened.into_channel(plan, observer, deadlines)))
        }
        Ok((guard, Started::Interrupted(in_flight, choice))) => {
            let job = Job { plan, observer, deadlines, guard, query };
            Ok(Outcome::Interrupted(Box::new(Interrupted { slot, in_flight, choice, job })))
        }
        Err(error) => Err(failed(&slot, &observer, error)),
    }
}

/// Reports a query that has no stream.
pub(super) fn failed(slot: &SlotHandle, observer: &QueryObserver, error: OpenError) -> Error {
    let OpenError { error, is_counted } = error;
    let error = slot.connecting().deadline_error(error);
    let is_connecting = matches!(error, Error::Connection { .. });
    if !is_counted && !is_connecting && !matches!(error, Error::Cancelled) {
        metrics::error(error.category().as_str(), metrics::Phase::Query);
    }
    observer.failed(&error);
    observer.finish(now(), outcome(&error), Rows::default());
    error
}

/// A query that has no stream yet.
struct Opening<'a> {
    slot: &'a SlotHandle,
    plan: &'a QueryPlan,
    query: &'a RunningQuery,
    observer: &'a QueryObserver,
}

/// A query that the server has begun to answer.
pub(super) struct Opened {
    pub(super) guard: StreamGuard,
    pub(super) start: Start,
}

pub(super) struct Start {
    pub(super) sessions: Sessions,
    /// How long the query waited for the server.
    pub(super) blocked: Duration,
    pub(super) first: Option<FirstRows>,
    /// The stream reports an error after the first rows.
    pub(super) answer: Result<Answer>,
}

/// What a query has come to on its connection.
enum Started {
    Rows(Start),
    Interrupted(Box<InFlight>, Choice),
}

/// The connections of a query.
pub(super) enum Sessions {
    /// Answered completely, and the connection is released.
    None,
    /// Boxed, because short queries have none, and their futures pass this on.
    One(Box<Held>),
    Several(Vec<Held>),
}

/// Why a query could not be opened.
pub(super) struct OpenError {
    error: Error,
    /// Already counted as a failed attempt to connect.
    is_counted: bool,
}

impl Opening<'_> {
    /// Acquires the client's connection and starts the query on it. A connection that turns out to
    /// have ended while it was idle is replaced, once.
    async fn run(self, claim: Claim<'_>) -> Result<(StreamGuard, Started), OpenError> {
        let is_shareable = matches!(claim, Claim::Fetch(_));
        let claimed = match claim {
            Claim::Exclusive(continue_fetches) => {
                self.slot.claim_alone(|| continue_fetches(self.slot)).await
            }
            Claim::Fetch(leased) => leased.map(|leased| (self.slot.fetch_guard(), leased)),
        };
        let (guard, mut leased) = claimed.map_err(OpenError::of_acquire)?;
        let mut is_replaced = false;
        loop {
            let acquired = self.slot.usable(leased).await;
            let (lease, connection) = acquired.map_err(OpenError::of_acquire)?;
            self.observer.connected(self.slot);
            let started = match &self.plan.execution {
                Execution::Single | Execution::Resumable(_) => {
                    self.start(lease, connection, is_shareable).await
                }
                Execution::Parallel { parts, partition_by } => {
                    let select = &self.plan.spec.select;
                    let partition_by = partition_by.as_deref();
                    let parallel = Parallel { select, parts: *parts, partition_by };
                    Box::pin(self.start_parallel(parallel, lease, connection)).await
                }
            };
            match started {
                Ok(started) => return Ok((guard, started)),
                Err(StartError { stale: Some(lease), .. }) if !is_replaced => {
                    is_replaced = true;
                    leased = (lease, None);
                }
                Err(StartError { error, is_counted, .. }) => {
                    return Err(OpenError { error, is_counted });
                }
            }
        }
    }

    /// Sends the query, and reads up to its first rows. If it is shareable, waiting for the answer
    /// ends when other fetches need the connection.
    async fn start(
        &self,
        lease: Lease,
        mut connection: Box<Connection>,
        is_shareable: bool,
    ) -> Result<Started, StartError> {
        let (settings, query) = (&self.plan.spec.settings, &self.plan.query);
        let mut statement =
            statement::choose(self.plan, self.slot, &mut connection, self.observer, || false);
        let closes = connection.statements.take_closes();
        let (request, steps) = connection.request(query, &statement, &closes)?;
        let mut exchange = Exchange::new(connection, request, ExtendedQuery::with(steps));
        exchange.closes = closes;
        let mut in_flight = InFlight::new();
        let running = self.query.session();
        let held = in_flight.hold(Held { exchange, lease: Some(lease), running });
        let read = settings.first_read_size(1);
        let session = Arc::clone(&held.exchange.connection.session);
        loop {
            let answer = held.exchange.start(settings, read);
            // A fetch that comes meanwhile polls this one, so there is nothing to be woken by. An
            // error that ends the session would be lost with the future that has read it.
            let is_needed = || is_shareable && self.slot.is_shared() && !session.is_ending();
            let error = match until(is_needed, answer).await {
                Some(Ok(())) => break,
                Some(Err(error)) => error,
                None => return Ok(Started::Interrupted(Box::new(in_flight), statement)),
            };
            let failed = (&statement, &error);
            let exchange = &mut held.exchange;
            let next = statement::retry(self.plan, self.slot, exchange, failed, self.observer);
            let Some(next) = next.filter(|_| !error.ends_session()) else {
                return Err(in_flight.failed(error));
            };
            if Box::pin(held.exchange.skip_failed()).await.is_err() {
                return Err(in_flight.failed(error));
            }
            let (request, steps) = held.exchange.connection.request(query, &next, NO_CLOSES)?;
            held.exchange.send_instead(request, ExtendedQuery::with(steps));
            statement = next;
        }
        if !matches!(statement, Choice::Prepared(_)) {
            held.exchange.connection.statements.confirm(query.sql(), &statement);
        }
        let mut first = None;
        let answer = if self.plan.reads_first_rows() {
            held.exchange.begin(settings, &mut first).await
        } else {
            Ok(Answer::Continues)
        };
        let held = in_flight.take_held().ok_or_else(taken_twice)?;
        let blocked = held.exchange.blocked;
        let sessions = match answer {
            Ok(Answer::Complete) => {
                give_back(held.exchange.connection, held.lease);
                Sessions::None
            }
            _ => Sessions::One(Box::new(held)),
        };
        Ok(Started::Rows(Start { sessions, blocked, first, answer }))
    }

    /// Opens the other sessions of a parallel query, and starts the query on each.
    async fn start_parallel(
        &self,
        parallel: Parallel<'_>,
        lease: Lease,
        connection: Box<Connection>,
    ) -> Result<Started, StartError> {
        let running = self.query.session();
        let mut starting = StartingTransaction::new();
        let first = starting.hold(connection, lease, running.clone());
        let planned = match parallel.begin(self.slot, first, &running).await {
            Ok(planned) => planned,
            Err(BeginError { error, is_counted }) => {
                return Err(starting.failed(error, is_counted).await);
            }
        };
        let settings = &self.plan.spec.settings;
        let read = settings.first_read_size(parallel.parts);
        let mut sessions = Vec::with_capacity(parallel.parts);
        let others = planned.others.into_iter().map(|connection| (Box::new(connection), None));
        let first = starting.take_connection().map(|(connection, lease)| (connection, Some(lease)));
        for (connection, lease) in first.into_iter().chain(others) {
            let exchange =
                Exchange::new(connection, planned.execute.clone(), ExtendedQuery::bound());
            let mut in_flight = InFlight::new();
            in_flight.hold(Held { exchange, lease, running: running.clone() });
            sessions.push(in_flight);
        }
        // From here on, only those of the guards count as sessions that may work on the query.
        drop(running);
        let started = sessions.into_iter().map(|mut in_flight| async move {
            let started = match in_flight.held() {
                Some(held) => held.exchange.start(settings, read).await,
                None => Ok(()),
            };
            match started {
                Ok(()) => Ok(in_flight),
                Err(error) => Err(in_flight.failed(error)),
            }
        });
        let started = try_all(started).await?;
        let sessions = started.into_iter().map(|mut in_flight| in_flight.take_held());
        let sessions = sessions.collect::<Option<Vec<_>>>().ok_or_else(taken_twice)?;
        let blocked = sessions.iter().map(|held| held.exchange.blocked).sum();
        let (first, answer) = (None, Ok(Answer::Continues));
        let sessions = Sessions::Several(sessions);
        Ok(Started::Rows(Start { sessions, blocked, first, answer }))
    }
}

impl Opened {
    /// Creates the channel, and starts the tasks that read the rest of the answer.
    pub(super) fn into_channel(
        self,
        plan: QueryPlan,
        observer: QueryObserver,
        deadlines: Deadlines,
    ) -> Arc<Channel> {
        let Self { guard, start: Start { sessions, blocked, first, answer } } = self;
        let sessions = match sessions {
            Sessions::None => Vec::new(),
            Sessions::One(held) => vec![*held],
            Sessions::Several(several) => several,
        };
        let settings = &plan.spec.settings;
        let readers = sessions.len();
        let channel = Arc::new(Channel::new(readers, settings, Some(guard), observer));
        let rows = first.as_ref().map_or(0, |first| first.chunk.rows as u64);
        let started_at = first.as_ref().map_or_else(now, |first| first.arrived_at);
        channel.start(blocked, first);
        channel.observer.started(started_at, settings.chunk_rows().0);
        let mut failed = answer.err();
        for (held, number) in sessions.into_iter().zip(0..) {
            let connection = &held.exchange.connection;
            let is_hit = connection.session.was_cancelled_recently();
            let is_alone = readers == 1 && connection.followers == 0;
            let again = (is_hit && rows == 0 && is_alone).then(|| unnamed(&plan.query));
            let resume = match &plan.execution {
                Execution::Resumable(key) => Some(ResumeState::new(&plan.spec.select, key)),
                Execution::Single | Execution::Parallel { .. } => None,
            };
            let task = ReaderTask {
                held,
                producer: channel.producer(number),
                settings: *settings,
                readers,
                rows,
                deadlines,
                again: again.and_then(Result::ok),
                resume,
                failed: failed.take(),
            };
            task.start();
        }
        if let Some(error) = failed {
            channel.fail(error);
        }
        channel
    }
}

/// Runs a step that can be dropped at any time. `None`: at a poll, `condition` was true.
async fn until<T>(condition: impl Fn() -> bool, step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    poll_fn(|cx| if condition() { Poll::Ready(None) } else { step.as_mut().poll(cx).map(Some) })
        .await
}

/// No query without its connection: its rows would look complete.
pub(super) fn taken_twice() -> Error {
    Error::InvalidState { message: "the connection of a query was taken twice" }
}

impl OpenError {
    /// Attempts to connect have been counted one by one.
    pub(super) fn of_acquire(error: Error) -> Self {
        let is_connecting = match error {
            Error::ConnectionBusy => false,
            Error::Timeout { phase, .. } => phase == TimeoutPhase::Connect,
            _ => true,
        };
        Self { error, is_counted: is_connecting }
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        Self { error, is_counted: false }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::poll_immediate;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        sync::mpsc,
        task::yield_now,
        time::timeout,
    };

    use super::*;
    use crate::{
        config::ConnectionConfig,
        connection::{FetchClaim, Slot},
        sql::Select,
        stream_impl::{
            plan::{QuerySpec, encode},
            settings::StreamSettings,
        },
    };

    /// AuthenticationOk, BackendKeyData of process 77, ReadyForQuery.
    const LOGIN: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x4d\0\0\0\x01Z\0\0\0\x05I";

    fn plan() -> QueryPlan {
        let select = Select::new("v");
        let query = encode(select.rows().unwrap()).unwrap();
        let settings = StreamSettings::default();
        let spec = QuerySpec { select, settings, is_persistent: false, has_predicates: false };
        QueryPlan { spec: Box::new(spec), query, execution: Execution::Single }
    }

    /// The caller can drop it before the task that continues it has run.
    #[tokio::test]
    async fn dropping_an_interrupted_fetch_cancels_its_query() {
        let (connected, mut connections) = mpsc::unbounded_channel();
        let config: ConnectionConfig = "postgres://u@h/d?sslmode=disable".parse().unwrap();
        let config = config.to_builder().connector(move |_| {
            let connected = connected.clone();
            async move {
                let (ours, mut theirs) = duplex(1024);
                theirs.write_all(LOGIN).await?;
                let _ = connected.send(theirs);
                Ok(ours)
            }
        });
        let slot = Arc::new(Slot::new(config.build().unwrap())).handle();
        let Ok(FetchClaim::Alone(leased)) = slot.claim_fetch() else { panic!() };
        let claim = Claim::Fetch(Ok(leased));
        let mut run = Box::pin(open(slot.clone(), plan(), slot.begin_query(), claim));
        assert!(poll_immediate(&mut run).await.is_none());
        let mut server = connections.recv().await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"S\0\0\0\x04") {
            assert!(poll_immediate(&mut run).await.is_none());
            let _ = poll_immediate(server.read_buf(&mut received)).await;
            yield_now().await;
        }
        slot.share();
        let Some(Ok(Outcome::Interrupted(interrupted))) = poll_immediate(&mut run).await else {
            panic!()
        };
        drop(interrupted);
        let canceled = timeout(Duration::from_secs(5), connections.recv()).await;
        let mut request = [0; 16];
        canceled.unwrap().unwrap().read_exact(&mut request).await.unwrap();
        assert_eq!(request[..12], *b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x4d");
    }
}
