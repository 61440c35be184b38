//! Fetches that share a client: random ones, in random order, on connections that fail. Some are
//! dropped, cancelled, late or not polled.
//!
//! Checked: each fetch returns its own answer or an error with a reason, none hangs, and none is
//! cancelled except by its caller. See `server/fetches.rs` for the checks of the server.
//!
//! Each of these faults was planted in the crate. The number is the first seed that found it, in an
//! earlier version of this model, with other random numbers:
//!
//! * answers are matched out of order (0);
//! * the answer of a fetch that was dropped is left to the next one (0);
//! * a cancel request is sent although others are wanted (53);
//! * a future that was taken over has no waker (0);
//! * followers fail with the connection instead of being sent again (14);
//! * the head is sent again although rows had arrived (37);
//! * losses are not counted (24);
//! * the sharing of the connection never ends (0);
//! * the request that was sent before the driver started is lost (0);
//! * the gauge of requests in flight is not decremented (0);
//! * requests are put back in reverse (5);
//! * requests are put back after others (44);
//! * an error after rows counts as their end (31);
//! * a statement is executed that a later request has closed (2430);
//! * an error of sending comes before what the server sent (617).
//!
//! Three were not found by at most 4,000 seeds: the driver is not woken by a new request, which
//! delays it only; the driver ends although requests wait, which needs several threads; and a
//! connection is used that ended in the millisecond between two fetches, if there are no retries.
//! tests/stream/pipeline.rs tests the last one.

use std::pin::Pin;

use fraiseql_wire::{FromJsonRow, QueryBuilder, metrics::REQUESTS_IN_FLIGHT};
use futures_util::stream::FuturesUnordered;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_json::Value;
use server::fetches::{Ask, Attempt, Fetch};

use super::*;

/// As many as take some ten seconds.
pub const SEEDS: u64 = 2000;

/// Seeds that found a defect.
pub const FOUND: [u64; 1] = [36_000];

/// What must have happened in these seeds.
pub const OUTCOMES: [&str; 49] = [
    "a cancel request arrived when it was given up",
    "a cancel request found nothing to stop",
    "a cancel request was late",
    "a cancel request was lost",
    "a connection was used after a query that was stopped",
    "a fetch was dropped",
    "a new session ended",
    "a prepared statement was executed",
    "a proxy delayed a cancel request",
    "a query was stopped",
    "a row beyond memory",
    "a row did not decode",
    "a session ended while idle",
    "a statement existed already",
    "a statement was changed",
    "a statement was closed",
    "a statement was lost",
    "a statement was prepared",
    "a statement was prepared on another server",
    "a stream was active",
    "a stream was dropped",
    "a token cancels",
    "all statements were discarded",
    "an error of the server",
    "answered",
    "cancelled by a token",
    "closed while logging in",
    "connecting timed out",
    "could not connect",
    "named statements are not supported",
    "no row",
    "pinged",
    "pinged in vain",
    "read timed out",
    "refused by the server",
    "reset at once",
    "silence while logging in",
    "slow to log in",
    "something was said after an answer",
    "something was said while idle",
    "the first row timed out",
    "the server accepts nobody",
    "the server is away",
    "the server was held up",
    "the session was ended",
    "the session was lost",
    "the type of a parameter was changed",
    "timed out",
    "too many connections",
];

/// The gauge of requests in flight of one simulation.
#[derive(Default)]
pub struct Gauges(Arc<AtomicU64>);

impl Gauges {
    pub fn in_flight(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match key.name() == REQUESTS_IN_FLIGHT {
            true => Gauge::from_arc(Arc::clone(&self.0)),
            false => Gauge::noop(),
        }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// What a fetch returned.
#[derive(Debug)]
enum Got {
    Rows(Vec<RawJson>),
    Numbers(Vec<u64>),
    Count(u64),
    Exists(bool),
    Plan(Value),
}

type Fetching = Pin<Box<dyn Future<Output = Result<Got, Error>> + Send>>;

/// How a query is built.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    /// The number of the query, if it is a parameter.
    parameter: Option<usize>,
    max_memory: Option<usize>,
    chunk_size: Option<usize>,
    timeout: Option<Duration>,
    first_row: Option<Duration>,
}

impl Options {
    fn apply<T: FromJsonRow>(self, mut query: QueryBuilder<T>) -> QueryBuilder<T> {
        if let Some(id) = self.parameter {
            query = query.where_sql("data->'query' = $1").bind(id.to_string());
        }
        if let Some(bytes) = self.max_memory {
            query = query.max_memory(bytes);
        }
        if let Some(rows) = self.chunk_size {
            query = query.chunk_size(rows);
        }
        if let Some(limit) = self.timeout {
            query = query.timeout(limit);
        }
        if let Some(limit) = self.first_row {
            query = query.first_row_timeout(limit);
        }
        query
    }
}

/// What the caller of a fetch does with its future.
#[derive(Debug, Clone, Copy)]
enum Act {
    PollFor(Duration),
    LeaveFor(Duration),
    /// Another task polls it from now on.
    Move,
    Drop,
}

/// A client whose fetches share its connection.
struct Shared {
    world: Arc<World>,
    client: Arc<FraiseClient>,
    cancel_timeout: Duration,
    size: u64,
    has_deadlines: bool,
    random: Chance,
}

/// A fetch and its settings.
struct Asked {
    world: Arc<World>,
    id: usize,
    /// After its first poll it ends by then, if it is polled.
    limit: Option<Duration>,
    delay: Duration,
    acts: Vec<Act>,
}

/// The life of a client.
pub async fn live(world: &Arc<World>, folder: &Path, mut random: Chance) {
    let cancel_timeout = random.delay(50, 3000);
    let read_timeout = random.one_in(3).then(|| random.delay(500, 10_000));
    let connect_timeout = random.delay(100, 10_000);
    let capacity = [0, 1, 2, 100][random.below(4) as usize];
    let max_attempts = 1 + random.below(3) as u32;
    world.state().statement_capacity = capacity;
    world.state().is_proxied = random.one_in(5);
    world.sharing(|sharing| {
        sharing.is_active = true;
        sharing.read_timeout = read_timeout;
        sharing.connect_timeout = connect_timeout;
        sharing.max_attempts = max_attempts;
    });
    let retry = RetryPolicy::default().max_attempts(max_attempts).initial_backoff(Duration::ZERO);
    let mut config = ConnectionConfig::builder()
        .host(folder.to_str().unwrap())
        .port(PORT)
        .user("u")
        .connect_timeout(connect_timeout)
        .cancel_timeout(cancel_timeout)
        .drain_limit(1024 << random.below(11))
        .statement_cache_capacity(capacity)
        .retry(retry);
    if let Some(read) = read_timeout {
        config = config.read_timeout(read);
    }
    world.note(|| {
        format!(
            "read_timeout {read_timeout:?}, cancel_timeout {cancel_timeout:?}, connect_timeout \
             {connect_timeout:?}, {max_attempts} attempts, {capacity} statements"
        )
    });
    let client = Arc::new(FraiseClient::new(config.build().unwrap()));
    let mut shared = Shared {
        world: Arc::clone(world),
        client,
        cancel_timeout,
        size: [20, 20, 100, 2000][random.below(4) as usize],
        has_deadlines: read_timeout.is_none(),
        random,
    };
    let rounds = 1 + shared.random.below(4);
    for _ in 0..rounds {
        shared.round().await;
    }
    // Some may be waiting still, which a deadline ends.
    sleep(HOUR).await;
    world.heal();
    sleep(HOUR).await;
    shared.finish().await;
}

impl Shared {
    /// Fetches, most of them in progress at the same time.
    async fn round(&mut self) {
        // More than may be in flight, rarely.
        let is_crowd = self.random.one_in(40);
        let most = if is_crowd { 200 } else { [3, 8, 8, 20][self.random.below(4) as usize] };
        let count = 1 + self.random.below(most);
        let spread = [0, 0, 50, 5000][self.random.below(4) as usize];
        let mut tasks = Vec::new();
        // Polled together: each has a waker of its own, but one task.
        let together = FuturesUnordered::new();
        for _ in 0..count {
            let delay = self.random.delay(0, spread);
            let (asked, fetching) = self.ask(delay);
            match self.random.one_in(3) {
                true => together.push(asked.run(fetching)),
                false => tasks.push(tokio::spawn(asked.run(fetching))),
            }
        }
        tasks.push(tokio::spawn(together.collect::<()>()));
        if self.random.one_in(5) {
            tasks.push(tokio::spawn(self.cancel_all()));
        }
        if self.random.one_in(4) {
            tasks.push(tokio::spawn(self.stream()));
        }
        if self.random.one_in(8) {
            tasks.push(tokio::spawn(self.ping()));
        }
        let waits = !self.random.one_in(6);
        for task in tasks.into_iter().filter(|_| waits) {
            task.await.unwrap();
        }
        if self.random.one_in(3) {
            sleep(self.random.delay(0, 30_000)).await;
        }
    }

    /// A random fetch, and what its caller does.
    fn ask(&mut self, delay: Duration) -> (Asked, Fetching) {
        let Self { world, random, .. } = self;
        let ask = match random.below(24) {
            0..8 => Ask::All,
            8..10 => Ask::Even,
            10 => Ask::Undecodable,
            11..14 => Ask::Optional,
            14..17 => Ask::One,
            17 => Ask::FirstEven,
            18..20 => Ask::Count,
            20..22 => Ask::Exists,
            _ => Ask::Explain,
        };
        let rows = match ask {
            Ask::Optional | Ask::One => random.below(8).min(1),
            _ => [0, 1, 3, 3, 30, 300, 1500][random.below(7) as usize],
        };
        let rows = random.below(rows + 1).max(rows.min(1));
        let shared = random.one_in(2).then(|| random.below(3));
        let id = world.plan(rows, self.size, shared);
        let mut fetch = Fetch::new(ask);
        fetch.ends_sessions = random.one_in(60);
        fetch.needs_reader = matches!(ask, Ask::All | Ask::Even) && random.one_in(6);
        let has_timeout = self.has_deadlines || random.one_in(4);
        let least = if random.one_in(4) { 10 } else { 5000 };
        fetch.timeout = has_timeout.then(|| random.delay(least, 60_000));
        fetch.first_row = random.one_in(10).then(|| random.delay(10, 30_000));
        let options = Options {
            parameter: shared.map(|_| id),
            max_memory: fetch.needs_reader.then(|| 1024 + random.below(3000) as usize),
            chunk_size: random.one_in(4).then(|| 1 + random.below(20) as usize),
            timeout: fetch.timeout,
            first_row: fetch.first_row,
        };
        let limit = fetch.timeout.map(|limit| limit + self.cancel_timeout);
        world.sharing(|sharing| sharing.fetches.insert(id, fetch));
        world.note(|| format!("fetch {id} is {ask:?} of {rows} rows, shared {shared:?}"));
        let mut acts = Vec::new();
        for _ in 0..random.below(6).saturating_sub(2) {
            let longest = [0, 10, 1000, 10_000][random.below(4) as usize];
            acts.push(match random.below(6) {
                0 => Act::Drop,
                1 | 2 => Act::PollFor(random.delay(0, longest)),
                3 | 4 => Act::LeaveFor(random.delay(0, longest)),
                _ => Act::Move,
            });
        }
        let fetching = fetching(&self.client, &world.query(id).relation(id), ask, options);
        (Asked { world: Arc::clone(world), id, limit, delay, acts }, fetching)
    }

    /// Cancels all that is in progress, some time later.
    fn cancel_all(&mut self) -> impl Future<Output = ()> + use<> {
        let (world, token) = (Arc::clone(&self.world), self.client.cancel_token());
        let (after, limit) = (self.random.delay(0, 5000), self.cancel_timeout);
        async move {
            sleep(after).await;
            world.sharing(|sharing| {
                let fetches = sharing.fetches.values_mut();
                let running = fetches.filter(|fetch| fetch.started.is_some() && !fetch.has_ended);
                running.for_each(|fetch| fetch.is_cancelled = true);
            });
            world.count("a token cancels");
            let began = Instant::now();
            let _ = within(token.cancel()).await;
            in_time(began, limit, "cancel()");
        }
    }

    /// Reads a stream, or some of it.
    fn stream(&mut self) -> impl Future<Output = ()> + use<> {
        let rows = self.random.below(100);
        let id = self.world.plan(rows, self.size, None);
        let limit = self.random.delay(100, 60_000);
        let query = self.client.query::<RawJson>(&format!("q{id}")).timeout(limit);
        let mut fetch = Fetch::new(Ask::Stream);
        fetch.timeout = Some(limit);
        self.world.sharing(|sharing| sharing.fetches.insert(id, fetch));
        let leaves_at = self.random.one_in(2).then(|| self.random.below(rows + 1));
        let (world, after) = (Arc::clone(&self.world), self.random.delay(0, 2000));
        async move {
            sleep(after).await;
            world.start_fetch(id);
            world.sharing(|sharing| sharing.exclusive += 1);
            let read = async {
                let mut stream = query.execute().await?;
                let mut read = Vec::new();
                while let Some(row) = stream.next().await {
                    if leaves_at.is_some_and(|at| read.len() as u64 >= at) {
                        world.fetch(id, |fetch| fetch.is_stopped = true);
                        return Ok(None);
                    }
                    read.push(row?);
                }
                Ok(Some(read))
            };
            let read = within(read).await;
            world.sharing(|sharing| sharing.exclusive -= 1);
            match read {
                Ok(Some(rows)) => check(&world, id, Got::Rows(rows)),
                Ok(None) => world.count("a stream was dropped"),
                Err(e) => explain(&world, id, &e),
            }
            world.fetch(id, |fetch| fetch.has_ended = true);
        }
    }

    fn ping(&mut self) -> impl Future<Output = ()> + use<> {
        let (world, client) = (Arc::clone(&self.world), Arc::clone(&self.client));
        let (after, patience) = (self.random.delay(0, 2000), self.random.delay(1, 20_000));
        async move {
            sleep(after).await;
            world.sharing(|sharing| sharing.exclusive += 1);
            let pinged = timeout(patience, client.ping()).await;
            world.sharing(|sharing| sharing.exclusive -= 1);
            world.count(match pinged {
                Ok(Ok(())) => "pinged",
                Ok(Err(_)) => "a ping failed",
                Err(_) => "pinged in vain",
            });
        }
    }

    /// Everything has ended, and nothing fails any more: the client is idle and usable.
    async fn finish(mut self) {
        let ended = self.world.sharing(|sharing| sharing.fetches.values().all(|f| f.has_ended));
        assert!(ended, "a fetch has not ended");
        assert!(!self.client.is_busy(), "the client is busy");
        assert!(self.world.state().open <= 1, "connections are left");
        for ask in [Ask::All, Ask::Count] {
            let id = self.world.plan(3, 20, None);
            self.world.sharing(|sharing| sharing.fetches.insert(id, Fetch::new(ask)));
            let (world, limit) = (Arc::clone(&self.world), Some(HOUR / 2));
            let (delay, acts) = (Duration::ZERO, Vec::new());
            let fetching = fetching(&self.client, &format!("q{id}"), ask, Options::default());
            Asked { world, id, limit, delay, acts }.run(fetching).await;
            // Not `is_answered`: a notice after the answer may still be on its way.
            let is_whole = |attempt: &Attempt| attempt.progress.fate == Fate::Whole;
            let is_ok = self.world.fetch(id, |fetch| fetch.attempts.iter().any(is_whole));
            assert!(is_ok, "the client is not usable");
        }
        self.world.assert_order();
        let client = Arc::into_inner(self.client).unwrap();
        if self.random.one_in(2) {
            within(client.close()).await.unwrap();
        }
    }
}

/// Begins a fetch.
fn fetching(client: &FraiseClient, relation: &str, ask: Ask, options: Options) -> Fetching {
    let query = options.apply(client.query::<RawJson>(relation));
    let numbers = options.apply(client.query::<u64>(relation));
    let is_even = |document: &Value| document["row"].as_u64().unwrap() % 2 == 0;
    Box::pin(async move {
        let one = |row: Option<RawJson>| Got::Rows(row.into_iter().collect());
        Ok(match ask {
            Ask::All | Ask::Stream => Got::Rows(query.fetch_all().await?),
            Ask::Even => Got::Rows(query.where_rust(is_even).fetch_all().await?),
            Ask::Undecodable => Got::Numbers(numbers.fetch_all().await?),
            Ask::Optional => one(query.fetch_optional().await?),
            Ask::One => one(Some(query.fetch_one().await?)),
            Ask::FirstEven => one(query.where_rust(is_even).fetch_optional().await?),
            Ask::Count => Got::Count(query.count().await?),
            Ask::Exists => Got::Exists(query.exists().await?),
            Ask::Explain => Got::Plan(query.explain(false).await?),
        })
    })
}

impl Asked {
    /// Runs the fetch as its caller does, and checks what it gets.
    async fn run(self, mut fetching: Fetching) {
        let Self { world, id, .. } = &self;
        sleep(self.delay).await;
        for act in &self.acts {
            match act {
                Act::PollFor(time) => {
                    world.start_fetch(*id);
                    if let Ok(got) = timeout(*time, fetching.as_mut()).await {
                        return self.ended(got);
                    }
                }
                Act::LeaveFor(time) => {
                    world.fetch(*id, |fetch| {
                        fetch.unpolled_since = fetch.started.map(|_| Instant::now());
                    });
                    sleep(*time).await;
                    world.fetch(*id, |fetch| {
                        fetch.unpolled_before = fetch.unpolled();
                        fetch.unpolled_since = None;
                    });
                }
                Act::Move => {
                    let (world, id, time) = (Arc::clone(world), *id, ms(1));
                    let moved = tokio::spawn(async move {
                        world.start_fetch(id);
                        match timeout(time, fetching.as_mut()).await {
                            Ok(got) => Err(got),
                            Err(_) => Ok(fetching),
                        }
                    });
                    match moved.await.unwrap() {
                        Ok(moved) => fetching = moved,
                        Err(got) => return self.ended(got),
                    }
                }
                Act::Drop => {
                    world.fetch(*id, |fetch| {
                        fetch.is_stopped = true;
                        fetch.has_ended = true;
                    });
                    drop(fetching);
                    return world.count("a fetch was dropped");
                }
            }
        }
        world.start_fetch(*id);
        let began = Instant::now();
        let got = timeout(HOUR, fetching.as_mut()).await;
        assert!(got.is_ok() && began.elapsed() < HOUR, "fetch {id} does not end by itself");
        self.ended(got.unwrap());
    }

    fn ended(&self, got: Result<Got, Error>) {
        let Self { world, id, limit, .. } = self;
        let (age, unpolled) = world.fetch(*id, |fetch| (fetch.age(), fetch.unpolled_before));
        match got {
            Ok(got) => check(world, *id, got),
            Err(error) => explain(world, *id, &error),
        }
        world.fetch(*id, |fetch| fetch.has_ended = true);
        if let Some(limit) = limit {
            let limit = *limit + unpolled + SLACK;
            assert!(age <= limit, "fetch {id} took {age:?} of {limit:?}");
        }
    }
}

/// A fetch has an answer: it must be its own, and complete.
fn check(world: &World, id: usize, got: Got) {
    let ask = world.fetch(id, |fetch| fetch.ask);
    let query = world.query(id);
    let count = query.rows();
    let numbers: Vec<u64> = match ask {
        Ask::All | Ask::Stream | Ask::Optional | Ask::One => (1..=count).collect(),
        Ask::Even => (1..=count).filter(|number| number % 2 == 0).collect(),
        Ask::FirstEven => (1..=count).filter(|number| number % 2 == 0).take(1).collect(),
        _ => Vec::new(),
    };
    match got {
        Got::Rows(rows) => {
            assert_eq!(rows.len(), numbers.len(), "of fetch {id}, {ask:?}");
            for (row, number) in rows.iter().zip(numbers) {
                let expected = world.document(id, number, 0);
                assert_eq!(row.as_str(), expected, "of fetch {id}");
            }
        }
        Got::Numbers(rows) => assert!(rows.is_empty() && count == 0, "{rows:?}"),
        Got::Count(got) => assert_eq!(got, id as u64 * 1000 + count, "of fetch {id}"),
        Got::Exists(got) => assert_eq!(got, count > 0, "of fetch {id}"),
        Got::Plan(plan) => assert_eq!(plan[0]["Plan"]["query"], id, "of fetch {id}"),
    }
    world.fetch(id, |fetch| {
        let is_answered = fetch
            .attempts
            .iter()
            .any(|attempt| attempt.progress.fate == Fate::Whole || fetch.ask == Ask::FirstEven);
        assert!(is_answered, "fetch {id} was not answered");
    });
    world.count("answered");
}

/// A fetch has failed, which must have a reason.
fn explain(world: &World, id: usize, error: &Error) {
    world.note(|| format!("fetch {id} fails: {}", error.category()));
    let reason = world.explain(id, error);
    let Some(reason) = reason else {
        let fetch = world.sharing(|sharing| format!("{:?}", sharing.fetches[&id]));
        panic!("why does fetch {id} fail? {error:?}; {fetch}");
    };
    world.count(reason);
}
