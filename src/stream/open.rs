//! Opening a stream: from `execute()` to the first rows.

use std::{pin::pin, sync::Arc};

use tracing::{Instrument, warn};

use super::{
    channel::{Channel, FirstRows},
    deadline::Deadlines,
    exchange::{Answer, Exchange, late_cancel},
    observer::{QueryObserver, Rows, outcome},
    parallel::{BeginError, Parallel, try_all},
    plan::{Execution, QueryPlan, unnamed},
    reader::ReaderTask,
    resume::ResumeState,
    teardown::{Held, InFlight, StartError, StartingTransaction, give_back},
};
use crate::{
    connection::{Choice, Connection, Lease, RunningQuery, SlotHandle, StreamGuard, TARGET},
    error::{Error, Result, TimeoutPhase},
    metrics::connection as metrics,
    protocol::{extended_query::ExtendedQuery, frontend::NO_CLOSES},
};

/// Runs a query up to its first rows, and returns the channel from which its stream reads.
///
/// If the whole answer has arrived by then, the connection is back in the client. Otherwise reader
/// tasks read the rest. Dropping the future cancels the query, in the background.
pub(super) async fn open(slot: &SlotHandle, plan: QueryPlan) -> Result<Arc<Channel>> {
    let observer = QueryObserver::begin(slot, plan.labels(), plan.text());
    let deadlines = Deadlines::new(observer.started_at, &plan.spec.settings);
    let query = slot.begin_query();
    let opening = Opening { slot, plan: &plan, query: &query, observer: &observer };
    let opened = {
        // Passed by reference: a future that takes another by value reserves its size twice.
        let run = pin!(opening.run());
        let run = pin!(run.instrument(observer.span()));
        query.unless_cancelled(deadlines.bound(run)).await
    };
    match opened {
        Ok(opened) => Ok(opened.into_channel(plan, observer, deadlines)),
        Err(OpenError { error, is_counted }) => {
            let error = slot.connecting().deadline_error(error);
            let is_connecting = matches!(error, Error::Connection { .. });
            if !is_counted && !is_connecting && !matches!(error, Error::Cancelled) {
                metrics::error(error.category().as_str(), metrics::Phase::Query);
            }
            observer.failed(&error);
            observer.finish(outcome(&error), Rows::default());
            Err(error)
        }
    }
}

/// A query that has no stream yet.
struct Opening<'a> {
    slot: &'a SlotHandle,
    plan: &'a QueryPlan,
    query: &'a RunningQuery,
    observer: &'a QueryObserver,
}

/// A query to which the server has started to respond.
struct Opened {
    guard: StreamGuard,
    start: Start,
}

struct Start {
    sessions: Sessions,
    first: Option<FirstRows>,
    /// The stream reports an error after the first rows.
    answer: Result<Answer>,
}

/// The connections of a query.
enum Sessions {
    One(Held),
    Several(Vec<Held>),
}

/// Why a query could not be opened.
struct OpenError {
    error: Error,
    /// Already counted as a failed attempt to connect.
    is_counted: bool,
}

impl Opening<'_> {
    /// Acquires the client's connection and starts the query on it. A connection that turns out to
    /// have ended while it was idle is replaced, once.
    async fn run(self) -> Result<Opened, OpenError> {
        let mut is_replaced = false;
        loop {
            let acquired = self.slot.acquire().await;
            let (guard, lease, connection) = acquired.map_err(OpenError::of_acquire)?;
            self.observer.connected(self.slot);
            let started = match &self.plan.execution {
                Execution::Single | Execution::Resumable(_) => self.start(lease, connection).await,
                Execution::Parallel { parts, partition_by } => {
                    let select = &self.plan.spec.select;
                    let partition_by = partition_by.as_deref();
                    let parallel = Parallel { select, parts: *parts, partition_by };
                    Box::pin(self.start_parallel(parallel, lease, connection)).await
                }
            };
            match started {
                Ok(start) => return Ok(Opened { guard, start }),
                Err(StartError { is_stale: true, .. }) if !is_replaced => is_replaced = true,
                Err(StartError { error, is_counted, .. }) => {
                    return Err(OpenError { error, is_counted });
                }
            }
        }
    }

    /// Sends the query, and reads up to its first rows.
    async fn start(
        &self,
        lease: Lease,
        mut connection: Box<Connection>,
    ) -> Result<Start, StartError> {
        let (settings, query) = (&self.plan.spec.settings, &self.plan.query);
        let mut statement = self.choose_statement(&mut connection);
        let closes = connection.statements.take_closes();
        let (request, steps) = query.request(statement.statement(), &closes)?;
        let mut exchange = Exchange::new(connection, request, ExtendedQuery::with(steps));
        exchange.closes = closes;
        let mut in_flight = InFlight::new();
        let running = self.query.session();
        let held = in_flight.hold(Held { exchange, lease: Some(lease), running });
        while let Err(error) = held.exchange.start(settings, settings.first_read_size(1)).await {
            let next = self.retry(&mut held.exchange, &statement, &error);
            let Some(next) = next.filter(|_| !error.ends_session()) else {
                return Err(in_flight.failed(error));
            };
            if Box::pin(held.exchange.skip_failed()).await.is_err() {
                return Err(in_flight.failed(error));
            }
            let (request, steps) = query.request(next.statement(), NO_CLOSES)?;
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
        let sessions = in_flight.take().map(Sessions::One).ok_or_else(taken_twice)?;
        Ok(Start { sessions, first, answer })
    }

    /// Chooses how the request identifies the statement: by its text or by its name.
    fn choose_statement(&self, connection: &mut Connection) -> Choice {
        let (plan, config) = (self.plan, self.slot.config());
        let is_cached = plan.spec.is_persistent
            && matches!(plan.execution, Execution::Single)
            && config.statement_cache_capacity() > 0
            && !config.prepared_statements_lost().get()
            && plan.query.has_room_for_name();
        if !is_cached {
            return Choice::Unnamed;
        }
        let choice = connection.statements.choose(plan.query.sql());
        let metrics = &self.observer.metrics;
        match choice {
            Choice::Prepared(_) => metrics.statement_hit(),
            _ => metrics.statement_missed(),
        }
        metrics.statements_evicted(connection.statements.take_evicted());
        choice
    }

    /// Returns how to run the query again after an error that is not about the query itself.
    /// Nothing was delivered yet.
    fn retry(&self, exchange: &mut Exchange, sent: &Choice, error: &Error) -> Option<Choice> {
        if exchange.is_late_cancel(error) {
            late_cancel(error);
            exchange.is_rerun = true;
            return Some(Choice::Unnamed);
        }
        let statements = &mut exchange.connection.statements;
        let sql = self.plan.query.sql();
        if matches!(error, Error::InvalidSchema { .. }) {
            statements.forget(sql, true);
        }
        let code = error.sqlstate().filter(|_| !exchange.query.has_bound())?;
        let retry = statements.recover(sql, sent, *code)?;
        if let Some(reason) = retry.reason {
            self.observer.metrics.statement_reprepared(reason);
        }
        if retry.statements_lost && self.slot.config().prepared_statements_lost().set() {
            warn!(
                target: TARGET,
                "the server has lost a prepared statement, so statements are no longer cached: \
                 set statement_cache_capacity to 0 if a pooler does not support prepared statements"
            );
        }
        Some(retry.choice)
    }

    /// Opens the other sessions of a parallel query, and starts the query on each.
    async fn start_parallel(
        &self,
        parallel: Parallel<'_>,
        lease: Lease,
        connection: Box<Connection>,
    ) -> Result<Start, StartError> {
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
        let first = starting.take().map(|(connection, lease)| (connection, Some(lease)));
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
        let sessions = started.into_iter().map(|mut in_flight| in_flight.take());
        let sessions = sessions.collect::<Option<Vec<_>>>().ok_or_else(taken_twice)?;
        let (first, answer) = (None, Ok(Answer::Continues));
        Ok(Start { sessions: Sessions::Several(sessions), first, answer })
    }
}

impl Opened {
    /// Creates the channel. If the answer is complete, returns the connection to the client;
    /// otherwise starts the tasks that read the rest.
    fn into_channel(
        self,
        plan: QueryPlan,
        observer: QueryObserver,
        deadlines: Deadlines,
    ) -> Arc<Channel> {
        let Self { guard, start: Start { sessions, first, answer } } = self;
        let blocked = match &sessions {
            Sessions::One(held) => held.exchange.blocked,
            Sessions::Several(several) => several.iter().map(|held| held.exchange.blocked).sum(),
        };
        let sessions = match (sessions, &answer) {
            (Sessions::One(held), Ok(Answer::Complete)) => {
                give_back(held.exchange.connection, held.lease);
                Vec::new()
            }
            (Sessions::One(held), _) => vec![held],
            (Sessions::Several(several), _) => several,
        };
        let settings = &plan.spec.settings;
        let readers = sessions.len();
        let channel = Arc::new(Channel::new(readers, settings, Some(guard), observer));
        let rows = first.as_ref().map_or(0, |first| first.chunk.rows as u64);
        channel.start(blocked, first);
        channel.observer.started(settings.chunk_rows().0);
        let mut failed = answer.err();
        for (held, number) in sessions.into_iter().zip(0..) {
            let is_hit = held.exchange.connection.session.was_cancelled_recently();
            let again = (is_hit && rows == 0 && readers == 1).then(|| unnamed(&plan.query));
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
        channel
    }
}

/// No query without its connection: its rows would look complete.
fn taken_twice() -> Error {
    Error::InvalidState { message: "the connection of a query was taken twice" }
}

impl OpenError {
    /// Attempts to connect have been counted one by one.
    fn of_acquire(error: Error) -> Self {
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
