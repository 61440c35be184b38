//! Parallel queries: how several sessions agree on the same rows. docs/ARCHITECTURE.md has a table
//! of the steps.

use std::{
    convert::Infallible,
    future::poll_fn,
    iter::once,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::settings::MIN_READ;
use crate::{
    connection::{Connection, QuerySession, SlotHandle, TARGET},
    error::{Error, Result, TimeoutPhase, sqlstate, sqlstate::SqlState},
    protocol::frontend,
    sql::{
        BEGIN, COMMIT, CTID_HINT, Comparison, ExportedSnapshot, PROBE, Partition, ROLLBACK,
        RelationInfo, Select, SessionView, split_by_hash,
    },
};

/// The maximum connections of one stream: one backend for each processor of a large server.
pub(crate) const MAX_PARALLEL: usize = 64;

/// The minimum memory of a stream for each of its connections: a quarter of it is one read.
pub(crate) const MIN_MEMORY: usize = 4 * MIN_READ;

/// How long the connections may take to begin their transactions, if there is no `connect_timeout`.
/// Only a pooler without a free server connection makes them wait.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one attempt waits for the first lock. Meanwhile the session may hold locks on parents
/// of the relation, which block other sessions.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long an attempt waits for a lock while it holds one that others may wait for.
const BRIEF_LOCK_WAIT: Duration = Duration::from_millis(10);

/// How long attempts are repeated while other sessions change the relation or wait for an exclusive
/// lock.
const CONTENTION_TIMEOUT: Duration = Duration::from_secs(3);

/// The pause before an attempt is repeated.
const PAUSE: Duration = Duration::from_millis(5);

/// `LOCK TABLE` looks at children before it locks them: "cache lookup failed" means that one has
/// just been dropped.
const CHILD_DROPPED: SqlState = sqlstate::INTERNAL_ERROR;

static PORTALS: AtomicUsize = AtomicUsize::new(1);

/// A query that several sessions work on, each on a part of its rows, in one snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parallel<'a> {
    pub(super) select: &'a Select,
    pub(super) parts: usize,
    /// Raw SQL; without it, the relation is split by its blocks.
    pub(super) partition_by: Option<&'a str>,
}

/// Sessions that have planned their parts, and the request that executes a part.
pub(super) struct Planned {
    /// The sessions beside that of the client.
    pub(super) others: Vec<Connection>,
    /// Executes the part of a session.
    pub(super) execute: Bytes,
}

/// The sessions that begin a query together.
struct Sessions<'a> {
    slot: &'a SlotHandle,
    /// That of the client.
    first: &'a mut Connection,
    others: &'a mut [Connection],
    running: &'a QuerySession,
}

/// Why a query could not begin.
pub(super) struct BeginError {
    pub(super) error: Error,
    /// Already counted as a failed attempt to connect.
    pub(super) is_counted: bool,
}

/// Why the sessions could not be brought together.
enum Obstacle {
    /// The first session did not get its first lock in time.
    Locked(Error),
    /// The role must not lock the relation; it may be able to read it.
    Denied(Error),
    /// Another session has changed the relation meanwhile, or waits for an exclusive lock.
    Contended(Option<Error>),
    Failed(Error),
}

impl Parallel<'_> {
    /// Opens the other sessions and prepares all of them to execute their parts: each holds its own
    /// locks and the same snapshot, and has planned its part.
    ///
    /// # Errors
    ///
    /// If the first connection is answered, it can be used after its transaction has ended.
    pub(super) async fn begin(
        &self,
        slot: &SlotHandle,
        first: &mut Connection,
        running: &QuerySession,
    ) -> Result<Planned, BeginError> {
        let (relation, mut others) = self.open(slot, first, running).await?;
        let mut sessions = Sessions { slot, first, others: &mut others, running };
        match self.bring_together(relation, &mut sessions).await {
            Ok(execute) => Ok(Planned { others, execute }),
            Err(error) => {
                // A pooler would close the server's connection if its client left it in a
                // transaction.
                let usable = others.iter_mut().filter(|other| other.is_answered());
                join_all(usable.map(|other| other.end_transaction(ROLLBACK))).await;
                Err(error.into())
            }
        }
    }

    /// Queries the kind of the relation while the other sessions connect. No transaction is open,
    /// so a slow login blocks no other session.
    async fn open(
        &self,
        slot: &SlotHandle,
        first: &mut Connection,
        running: &QuerySession,
    ) -> Result<(RelationInfo, Vec<Connection>), BeginError> {
        let entity = &self.select.entity;
        let describe = RelationInfo::describe(entity)?;
        let session = Arc::clone(&first.session);
        let connecting = (1..self.parts).map(|_| slot.connect_beside(&session));
        let connecting = try_all(connecting);
        let describing = async {
            let mut missing = None;
            loop {
                if let Some(answer) = first.query_value(&describe, running).await? {
                    return RelationInfo::parse(entity, &answer, self.partition_by.is_none());
                }
                // Its name is that of a relation which was created after the statement's snapshot.
                let since = *missing.get_or_insert_with(Instant::now);
                if since.elapsed() >= CONTENTION_TIMEOUT {
                    return Err(Error::protocol("the relation has no description"));
                }
                sleep(PAUSE).await;
            }
        };
        let (mut connecting, mut describing) = (pin!(connecting), pin!(describing));
        let not_connected = |error| BeginError { error, is_counted: true };
        select! {
            biased;
            relation = &mut describing => {
                let relation = relation?;
                Ok((relation, connecting.await.map_err(not_connected)?))
            }
            others = &mut connecting => {
                // Read to its end, so that the client keeps its connection.
                let relation = describing.await?;
                Ok((relation, others.map_err(not_connected)?))
            }
        }
    }

    /// Repeats attempts until the sessions can execute their parts. Returns the request for that.
    async fn bring_together(
        &self,
        mut relation: RelationInfo,
        sessions: &mut Sessions<'_>,
    ) -> Result<Bytes> {
        let began = Instant::now();
        let mut contended = None;
        let is_over = |since: Option<Instant>, limit: Option<Duration>| {
            since.zip(limit).is_some_and(|(since, limit)| since.elapsed() >= limit)
        };
        loop {
            self.begin_transactions(sessions).await?;
            match self.attempt(&relation, sessions).await {
                Ok(execute) => return Ok(execute),
                Err(Obstacle::Failed(error)) => return Err(error),
                Err(Obstacle::Denied(error)) if !relation.is_lockable => return Err(error),
                Err(Obstacle::Denied(_)) => relation.is_lockable = false,
                Err(Obstacle::Locked(error)) => {
                    // A single query would have received no message since then.
                    let silence = sessions.first.limits.read_timeout;
                    if let Some(after) = silence.filter(|_| is_over(Some(began), silence)) {
                        return Err(Error::Timeout { phase: TimeoutPhase::Read, after });
                    }
                    if is_over(Some(began), relation.lock_timeout())
                        || is_over(contended, Some(CONTENTION_TIMEOUT))
                    {
                        return Err(error);
                    }
                }
                Err(Obstacle::Contended(error)) => {
                    contended = contended.or_else(|| Some(Instant::now()));
                    if is_over(contended, Some(CONTENTION_TIMEOUT)) {
                        return Err(error.unwrap_or(Error::Timeout {
                            phase: TimeoutPhase::Contention,
                            after: CONTENTION_TIMEOUT,
                        }));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Begins a transaction on each session, without a lock or a snapshot. After that, each has a
    /// connection to the server even through a pooler. Waiting for one blocks no other session.
    async fn begin_transactions(&self, sessions: &mut Sessions<'_>) -> Result<()> {
        let Sessions { slot, first, others, running } = sessions;
        let begun = AtomicUsize::new(0);
        let after = slot.config().connect_timeout().unwrap_or(BEGIN_TIMEOUT);
        let beginning = join_all(
            once(&mut **first)
                .chain(others.iter_mut())
                .map(|session| begin(session, &begun, running)),
        );
        let beginning = timeout(after, beginning).await.map_err(|_| {
            debug!(
                target: TARGET,
                connections = begun.load(Relaxed),
                of = self.parts,
                "a parallel query has too few connections"
            );
            Error::Timeout { phase: TimeoutPhase::Parallel, after }
        });
        beginning?.into_iter().collect()
    }

    /// Locks the relation on each session, shares a snapshot, and plans the parts.
    async fn attempt(
        &self,
        relation: &RelationInfo,
        sessions: &mut Sessions<'_>,
    ) -> Result<Bytes, Obstacle> {
        let Sessions { first, others, running, .. } = sessions;
        let lock = relation.lock_and_export(LOCK_WAIT, BRIEF_LOCK_WAIT)?;
        let exported = first.transact(simple(&[&lock])?, 1, running).await;
        let exported = exported.map_err(|error| match error.sqlstate() {
            Some(&sqlstate::LOCK_NOT_AVAILABLE) => Obstacle::Locked(error),
            Some(&sqlstate::INSUFFICIENT_PRIVILEGE) => Obstacle::Denied(error),
            Some(&CHILD_DROPPED) => Obstacle::Contended(Some(error)),
            _ => Obstacle::Failed(error),
        })?;
        let exported = ExportedSnapshot::parse(&some(exported)?)?;
        let parts = match self.partition_by {
            Some(expression) => split_by_hash(expression, self.parts)?,
            None => exported.split_by_blocks(self.parts),
        };
        // Use each name only once: pgpool would mistake it for a portal of an earlier transaction.
        let portal = format!("part_{}", PORTALS.fetch_add(1, Relaxed));
        let plans =
            parts.into_iter().map(|part| self.plan(&portal, part)).collect::<Result<Vec<_>>>()?;
        let mut plans = plans.into_iter();
        // Later waits for locks are those of functions that run while rows are sent.
        let see = simple(&[&relation.session_view(), &relation.set_lock_timeout(LOCK_WAIT)])?;
        let join = simple(&[&relation.join_snapshot(&exported, BRIEF_LOCK_WAIT)?])?;
        let planned = first.transact(
            [plans.next().unwrap_or_default(), see.clone()].concat().into(),
            2,
            running,
        );
        let joined = others.iter_mut().zip(plans).map(|(other, plan)| {
            other.transact([join.clone(), plan, see.clone()].concat().into(), 3, running)
        });
        let (planned, joined) = tokio::join!(planned, join_all(joined));
        // A failure there would happen on every session; and without this session no other can
        // import its snapshot.
        let sight =
            SessionView::parse(&some(planned.map_err(|error| self.planning_error(error))?)?)?;
        let mut contended = None;
        for answer in joined {
            match answer {
                Ok(answer) => match sight.compare(&SessionView::parse(&some(answer)?)?) {
                    Comparison::Same => {}
                    Comparison::Changed => contended = contended.or(Some(None)),
                    Comparison::Refused(error) => return Err(error.into()),
                },
                Err(error)
                    if matches!(
                        error.sqlstate(),
                        Some(&sqlstate::LOCK_NOT_AVAILABLE | &CHILD_DROPPED)
                    ) =>
                {
                    contended = Some(Some(error));
                }
                Err(error) if error.is_lost_snapshot() => {
                    // If its session has ended, that is the cause.
                    first.transact(simple(&[PROBE])?, 1, running).await?;
                    return Err(error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        match contended {
            Some(error) => Err(Obstacle::Contended(error)),
            None => Ok(frontend::execute_portal(&portal)?.into()),
        }
    }

    /// Sends a part to be planned by the server.
    fn plan(&self, portal: &str, part: Partition) -> Result<Bytes> {
        let select = Select { partition: Some(part), ..self.select.clone() };
        let statement = select.rows()?;
        let parameters = statement.parameters.iter().zip(1..);
        let parameters = parameters.map(|(parameter, number)| parameter.sent(number));
        let parameters = parameters.collect::<Result<Vec<_>>>()?;
        frontend::bind_portal(portal, &statement.sql, &parameters).map(Into::into)
    }

    /// Converts an error of planning a part.
    fn planning_error(&self, error: Error) -> Obstacle {
        match error {
            Error::Server(e) if *e.code() == sqlstate::LOCK_NOT_AVAILABLE => {
                Obstacle::Contended(Some(Error::Server(e)))
            }
            Error::Server(mut e)
                if *e.code() == sqlstate::INSUFFICIENT_PRIVILEGE && self.partition_by.is_none() =>
            {
                e.hint.get_or_insert_with(|| CTID_HINT.to_owned());
                Error::Server(e).into()
            }
            error => error.into(),
        }
    }
}

async fn begin(
    session: &mut Connection,
    begun: &AtomicUsize,
    running: &QuerySession,
) -> Result<()> {
    let (requests, answers) = if session.is_in_transaction() {
        // Separate requests, so that a pooler can give the server connection to another client in
        // between.
        ([simple(&[ROLLBACK])?, simple(&[BEGIN])?].concat().into(), 2)
    } else {
        (simple(&[BEGIN])?, 1)
    };
    session.transact(requests, answers, running).await?;
    begun.fetch_add(1, Relaxed);
    Ok(())
}

/// Ends the transaction of a session whose part is done.
pub(super) async fn end_transaction(session: &mut Connection) -> Result<()> {
    session.end_transaction(COMMIT).await
}

/// Runs statements in one message of the simple protocol.
fn simple(statements: &[&str]) -> Result<Bytes> {
    frontend::simple_query(&statements.join("; ")).map(Into::into)
}

fn some(answer: Option<String>) -> Result<String> {
    answer.ok_or_else(|| {
        Error::protocol("the server returned no row at the start of a parallel query")
    })
}

/// Runs futures concurrently until all have ended or one has failed.
pub(super) async fn try_all<T, E>(
    futures: impl Iterator<Item = impl Future<Output = Result<T, E>>>,
) -> Result<Vec<T>, E> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut is_pending = false;
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(Ok(value)) => *done = Some(value),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => is_pending = true,
            }
        }
        if is_pending {
            return Poll::Pending;
        }
        Poll::Ready(Ok(running.iter_mut().filter_map(|(_, done)| done.take()).collect()))
    })
    .await
}

/// Runs futures concurrently until all have ended.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let done = try_all(futures.map(|future| async { Ok::<_, Infallible>(future.await) })).await;
    match done {
        Ok(done) => done,
        Err(never) => match never {},
    }
}

impl From<Error> for BeginError {
    fn from(error: Error) -> Self {
        Self { error, is_counted: false }
    }
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
