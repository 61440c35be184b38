//! What a client does: all kinds of queries, endings and faults, at random.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use fraiseql_wire::{
    ConnectAttempt, ConnectionConfig, Error, FraiseClient, FromJsonRow, QueryBuilder, QueryStream,
    RawJson, SslMode, StreamState, StreamStats, TimeoutPhase, field,
};
use futures_util::StreamExt;
use serde::Deserialize;

use crate::{random::Random, world::World};

/// The number of concurrent clients. Some connect directly, and half of these by Unix socket. Each
/// of the others has a proxy of its own that fails.
pub const CLIENTS: usize = 16;
const DIRECT: usize = 4;
pub const NETWORKS: usize = CLIENTS - DIRECT;

/// How long the consequences of a fault may be seen, on a busy machine.
pub const AFTERMATH: Duration = Duration::from_secs(20);
/// The maximum duration of a step that makes progress.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// The rows of `v_rows`.
const ROWS: u64 = 3000;

/// What all clients share.
pub struct Shared {
    pub world: World,
    pub stop: AtomicBool,
    pub tally: Tally,
    /// Until when the whole server may fail.
    pub restarting: Mutex<Option<Instant>>,
    /// When connections were abandoned whose backends may not have noticed yet.
    abandoned: Mutex<VecDeque<Instant>>,
}

/// The totals of all clients.
#[derive(Default)]
pub struct Tally {
    pub streams: AtomicU64,
    pub whole: AtomicU64,
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    /// Connections of a client that were replaced automatically.
    pub reconnects: AtomicU64,
    pub clients: AtomicU64,
    pub faults: AtomicU64,
    pub errors: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    pub fn new(world: World) -> Self {
        Self {
            world,
            stop: AtomicBool::new(false),
            tally: Tally::default(),
            restarting: Mutex::new(None),
            abandoned: Mutex::default(),
        }
    }

    /// Returns how many connections were abandoned recently.
    pub fn abandoned(&self) -> usize {
        let mut abandoned = self.abandoned.lock().unwrap();
        abandoned.retain(|at| at.elapsed() < AFTERMATH);
        abandoned.len()
    }
}

/// A row, in any of the forms it is read in.
trait Numbered: FromJsonRow + 'static {
    /// Returns its number, if the row is complete.
    fn number(&self) -> u64;
}

#[derive(Deserialize)]
struct Document {
    id: u64,
    text: String,
}

#[derive(Deserialize)]
struct Borrowed<'a> {
    id: u64,
    text: &'a str,
}

impl Numbered for Document {
    fn number(&self) -> u64 {
        whole(self.id, &self.text)
    }
}

impl Numbered for RawJson {
    fn number(&self) -> u64 {
        number(self.as_bytes())
    }
}

fn number(row: &[u8]) -> u64 {
    let row: Borrowed<'_> = serde_json::from_slice(row).expect("a row that is none");
    whole(row.id, row.text)
}

fn whole(id: u64, text: &str) -> u64 {
    let (large, small) = (id * 5000, id % 200);
    assert!([large, small].contains(&(text.len() as u64)), "row {id} is not whole");
    id
}

/// The expected numbers: the multiples of one number, up to another.
struct Numbers {
    next: u64,
    step: u64,
    last: u64,
}

impl Numbers {
    fn new(step: u64, last: u64) -> Self {
        Self { next: step, step, last }
    }

    fn came(&mut self, number: u64) {
        assert_eq!(number, self.next, "a row is lost or doubled");
        self.next += self.step;
    }

    fn are_complete(&self) -> bool {
        self.next > self.last
    }
}

/// How a stream ended.
enum End {
    Whole,
    /// The consumer stopped early.
    Left,
    Failed(Error),
}

struct Life {
    shared: Arc<Shared>,
    random: Random,
    /// The number of this client.
    place: usize,
    /// Whether its `read_timeout` and `cancel_timeout` are so short that they expire.
    is_impatient: bool,
    is_hasty: bool,
    troubled_until: Option<Instant>,
    backend: Option<u32>,
}

/// Runs clients, one after another, until the end of the round.
pub async fn live(shared: Arc<Shared>, place: usize, seed: u64) {
    let mut life = Life {
        random: Random::of(seed),
        place,
        is_impatient: false,
        is_hasty: false,
        troubled_until: None,
        backend: None,
        shared,
    };
    while !life.shared.stop.load(SeqCst) {
        let Some(client) = life.connect().await else { continue };
        for _ in 0..life.random.below(400) {
            if life.shared.stop.load(SeqCst) {
                break;
            }
            life.fault(&client);
            let step = tokio::time::timeout(STEP_TIMEOUT, life.step(&client)).await;
            step.unwrap_or_else(|_| panic!("client {place} hangs"));
            life.calm(&client);
        }
        let parted = tokio::time::timeout(STEP_TIMEOUT, life.part(client)).await;
        parted.unwrap_or_else(|_| panic!("client {place} does not go"));
    }
}

impl Life {
    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    async fn connect(&mut self) -> Option<FraiseClient> {
        (self.is_impatient, self.is_hasty) = (self.chance(4), self.chance(4));
        let config = self.config(None);
        match FraiseClient::connect_with_config(config).await {
            Ok(client) => {
                self.shared.tally.clients.fetch_add(1, SeqCst);
                self.backend = client.backend_pid();
                Some(client)
            }
            Err(e) => {
                self.met(&e, false);
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }

    fn config(&self, statement_timeout: Option<Duration>) -> ConnectionConfig {
        let world = &self.shared.world;
        let (host, port) = match self.place {
            0..DIRECT if self.place % 2 == 0 => (world.folder.as_str(), world.port),
            0..DIRECT => ("127.0.0.1", world.port),
            _ => ("127.0.0.1", world.proxies[self.place - DIRECT]),
        };
        let mut builder = ConnectionConfig::builder()
            .host(host)
            .port(port)
            .user("postgres")
            .password(&world.password)
            .database("postgres")
            .application_name("soak")
            .ssl_mode(SslMode::Disable)
            .connect_timeout(Duration::from_secs(30))
            .cancel_timeout(Duration::from_millis(if self.is_hasty { 100 } else { 30_000 }));
        if self.is_impatient {
            builder = builder.read_timeout(Duration::from_secs(1));
        }
        if let Some(timeout) = statement_timeout {
            builder = builder.statement_timeout(timeout);
        }
        builder.build().unwrap()
    }

    /// Causes a fault, or none.
    fn fault(&mut self, client: &FraiseClient) {
        if !self.chance(8) {
            return;
        }
        let backend = client.backend_pid();
        match (self.place.checked_sub(DIRECT), self.random.below(4)) {
            // Two clients see only restarts.
            (None, _) if self.place < DIRECT / 2 => return,
            (None, _) | (_, 0) => {
                let Some(backend) = backend else { return };
                self.shared.world.tell(&format!("terminate {backend}"));
            }
            (Some(network), what) => {
                let (what, number) = match what {
                    // A proxy always fails in the same way.
                    1 if network % 2 == 0 => ("cut", self.random.below(600_000)),
                    1 => ("reset", self.random.below(600_000)),
                    2 => ("stall", 1 + self.random.below(3000)),
                    _ => ("piece", 16 << self.random.below(10)),
                };
                self.shared.world.tell(&format!("{what} {network} {number}"));
            }
        }
        self.shared.tally.faults.fetch_add(1, SeqCst);
        self.troubled_until = Some(Instant::now() + AFTERMATH);
    }

    /// Repairs the client's network.
    fn calm(&mut self, client: &FraiseClient) {
        if self.is_troubled() && self.place >= DIRECT {
            let network = self.place - DIRECT;
            self.shared.world.tell(&format!("cut {network} {}", u64::MAX));
            self.shared.world.tell(&format!("piece {network} {}", 64 << 10));
        }
        let backend = client.backend_pid();
        if backend.is_some() && backend != self.backend {
            if self.backend.is_some() {
                self.shared.tally.reconnects.fetch_add(1, SeqCst);
            }
            self.backend = backend;
            self.give_up();
        }
    }

    fn is_troubled(&self) -> bool {
        let restarting = *self.shared.restarting.lock().unwrap();
        [self.troubled_until, restarting].iter().flatten().any(|until| Instant::now() < *until)
    }

    fn give_up(&self) {
        self.shared.abandoned.lock().unwrap().push_back(Instant::now());
    }

    /// Records an error, which must be expected: because of this step, or because of a fault.
    fn met(&self, error: &Error, is_expected: bool) {
        let name = match error {
            Error::Server(e) => format!("server {}", e.code().code()),
            Error::Timeout { phase, .. } => format!("timeout {phase:?}").to_lowercase(),
            other => other.category().to_string(),
        };
        *self.shared.tally.errors.lock().unwrap().entry(name).or_default() += 1;
        let is_lost = match error {
            Error::Timeout { phase: TimeoutPhase::Read, .. } => self.is_impatient,
            Error::Timeout { phase: TimeoutPhase::Cancel, .. } => self.is_hasty,
            Error::Connection { .. } | Error::ConnectionClosed { .. } | Error::Io { .. } => {
                self.is_troubled()
            }
            // The server is stopping or starting.
            Error::Server(e) => e.code().code().starts_with("57P0") && self.is_troubled(),
            _ => false,
        };
        assert!(is_lost || is_expected, "client {} did not expect this: {error:?}", self.place);
        if is_lost {
            assert!(error.is_retriable(), "{error:?}");
            self.give_up();
        }
    }

    /// Does one thing that users do.
    async fn step(&mut self, client: &FraiseClient) {
        match self.random.below(14) {
            0..=3 => {
                let last = ROWS - self.random.below(2) * self.random.below(ROWS);
                let step = 1 + self.random.below(2) * self.random.below(7);
                if self.chance(2) {
                    let query = client.query::<Document>("v_rows");
                    self.stream(
                        client,
                        query.where_typed(move |row| row.id % step == 0),
                        step,
                        last,
                    )
                    .await;
                } else {
                    let query = client.query::<RawJson>("v_rows");
                    let accepts =
                        move |row: &serde_json::Value| row["id"].as_u64().unwrap() % step == 0;
                    let query = if step > 1 { query.where_rust(accepts) } else { query };
                    self.stream(client, query, step, last).await;
                }
            }
            4 => self.body(client).await,
            5 => self.large(client).await,
            6 => self.divided(client).await,
            7 => self.some_bad(client).await,
            8 => self.refused(client).await,
            9 => self.statement_timeout().await,
            10 => self.timeout(client).await,
            11 => self.dropped_in_mid_air(client).await,
            12 => self.small(client).await,
            _ => self.dropped_with_its_client().await,
        }
    }

    fn tuned<T: FromJsonRow>(
        &mut self,
        query: QueryBuilder<T>,
    ) -> (QueryBuilder<T>, Option<usize>) {
        let mut query = query
            .chunk_size(1 + self.random.below(300) as usize)
            .adaptive_chunking(self.chance(2))
            // A timeout that does not expire.
            .timeout(Duration::from_secs(3600));
        if self.chance(3) {
            query = query.pause_timeout(Duration::from_millis(1 + self.random.below(50)));
        }
        let memory = self.chance(2).then(|| 4096 << self.random.below(9));
        if let Some(memory) = memory {
            query = query.max_memory(memory);
        }
        (query, memory)
    }

    /// Executes a query, and records the error if there is one.
    async fn begin<T: FromJsonRow>(&mut self, query: QueryBuilder<T>) -> Option<QueryStream<T>> {
        self.shared.tally.streams.fetch_add(1, SeqCst);
        match query.execute().await {
            Ok(stream) => Some(stream),
            Err(e) => {
                self.met(&e, false);
                None
            }
        }
    }

    /// Checks what must hold for the statistics at any moment. At the end they are added to the
    /// totals.
    fn add_up(&self, stats: &StreamStats, memory: Option<usize>, at_end: bool) {
        crate::stats::assert_consistent(stats);
        if let Some(memory) = memory {
            assert!(stats.peak_memory <= memory + (64 << 10), "{memory}: {stats:?}");
        }
        if at_end {
            self.shared.tally.rows.fetch_add(stats.total_rows_yielded, SeqCst);
            self.shared.tally.bytes.fetch_add(stats.total_bytes_received, SeqCst);
        }
    }

    /// A query that is read, paused, resumed, dropped and cancelled.
    async fn stream<T: Numbered>(
        &mut self,
        client: &FraiseClient,
        query: QueryBuilder<T>,
        step: u64,
        last: u64,
    ) {
        let (query, memory) = self.tuned(query.filter(field("id").lte(last)));
        let Some(stream) = self.begin(query).await else { return };
        let mut numbers = Numbers::new(step, last);
        if let End::Failed(e) = self.read(client, stream, &mut numbers, memory).await {
            self.met(&e, matches!(e, Error::Cancelled));
        }
    }

    async fn read<T: Numbered>(
        &mut self,
        client: &FraiseClient,
        mut stream: QueryStream<T>,
        numbers: &mut Numbers,
        memory: Option<usize>,
    ) -> End {
        let control = stream.control();
        let is_slow = self.chance(4);
        let by_chunk = self.chance(3);
        let mut read = 0;
        let mut cancelling = None;
        let end = loop {
            match self.random.below(if by_chunk { 400 } else { 20_000 }) {
                0 => break End::Left,
                1 => {
                    if let Err(e) = stream.cancel().await {
                        self.met(&e, false);
                    }
                    assert!(stream.next().await.is_none(), "a row behind cancel()");
                    break End::Left;
                }
                2 if cancelling.is_none() => {
                    let control = control.clone();
                    cancelling = Some(tokio::spawn(async move { control.cancel().await }));
                }
                3 if cancelling.is_none() => {
                    let token = client.cancel_token();
                    cancelling = Some(tokio::spawn(async move { token.cancel().await }));
                }
                4..=10 => self.pause(&mut stream).await,
                11..=40 if is_slow => tokio::time::sleep(Duration::from_millis(3)).await,
                41..=50 => self.add_up(&stream.stats(), memory, false),
                _ => {}
            }
            let next = if by_chunk {
                let chunk = stream.next_chunk().await;
                chunk.map(|chunk| {
                    chunk.map(|chunk| {
                        read += chunk.len() as u64;
                        chunk.rows().for_each(|row| numbers.came(number(row)));
                    })
                })
            } else {
                stream.next().await.map(|row| {
                    row.map(|row| {
                        read += 1;
                        numbers.came(row.number());
                    })
                })
            };
            match next {
                Some(Ok(())) => {}
                Some(Err(e)) => {
                    assert!(stream.next().await.is_none(), "something follows the error");
                    break End::Failed(e);
                }
                None => {
                    assert!(numbers.are_complete(), "an early end, before {}", numbers.next);
                    break End::Whole;
                }
            }
        };
        let stats = stream.stats();
        match &end {
            End::Whole => {
                self.shared.tally.whole.fetch_add(1, SeqCst);
                let held = (stats.items_buffered, stats.bytes_buffered, stats.total_rows_discarded);
                assert_eq!((stats.state, held), (StreamState::Completed, (0, 0, 0)), "{stats:?}");
            }
            End::Failed(e) => {
                let by_handle = matches!(e, Error::Cancelled) && cancelling.is_some();
                assert!(by_handle || stats.state == StreamState::Failed, "{stats:?} {e:?}");
            }
            End::Left => {}
        }
        drop(stream);
        let stats = control.stats();
        assert_eq!(stats.total_rows_yielded, read, "{stats:?}");
        self.add_up(&stats, memory, true);
        if let Some(cancelling) = cancelling {
            if let Err(e) = cancelling.await.unwrap() {
                self.met(&e, false);
            }
        }
        end
    }

    async fn pause<T: FromJsonRow>(&mut self, stream: &mut QueryStream<T>) {
        let control = stream.control();
        let paused = match self.chance(2) {
            true => control.pause().await,
            false => stream.pause_with_reason("a soak").await,
        };
        let steered = match paused {
            Ok(()) if self.chance(2) => {
                stream.set_pause_timeout(Duration::from_millis(5));
                Ok(())
            }
            Ok(()) => {
                tokio::time::sleep(Duration::from_millis(self.random.below(30))).await;
                control.resume().await
            }
            Err(e) => Err(e),
        };
        // Controls have no effect on a stream that has ended.
        if let Err(e) = steered {
            assert!(matches!(e, Error::InvalidState { .. }), "{e:?}");
        }
    }

    /// Bodies of HTTP responses.
    async fn body(&mut self, client: &FraiseClient) {
        let (query, memory) = self.tuned(client.query::<Document>("v_rows"));
        let Some(stream) = self.begin(query).await else { return };
        let control = stream.control();
        let by_lines = self.chance(2);
        let mut parts = match by_lines {
            true => stream.into_ndjson().left_stream(),
            false => stream.into_json_array().right_stream(),
        };
        let mut text = Vec::new();
        let mut end = None;
        while let Some(part) = parts.next().await {
            match part {
                Ok(part) => text.extend_from_slice(&part),
                Err(e) => end = Some(e),
            }
            if self.chance(100) {
                drop(parts);
                return self.add_up(&control.stats(), memory, true);
            }
        }
        self.add_up(&control.stats(), memory, true);
        if let Some(e) = end {
            return self.met(&e, false);
        }
        let mut numbers = Numbers::new(1, ROWS);
        if by_lines {
            let lines = text.strip_suffix(b"\n").expect("the last line is not whole");
            lines.split(|byte| *byte == b'\n').for_each(|row| numbers.came(number(row)));
        } else {
            let rows: Vec<Document> =
                serde_json::from_slice(&text).expect("the array is not whole");
            rows.iter().for_each(|row| numbers.came(row.number()));
        }
        assert!(numbers.are_complete(), "an early end, before {}", numbers.next);
        self.shared.tally.whole.fetch_add(1, SeqCst);
    }

    /// Rows of up to 200 KB, and memory that may be too small for them.
    async fn large(&mut self, client: &FraiseClient) {
        let mut query = client.query::<RawJson>("v_large");
        let memory = self.chance(2).then_some(128 << 10);
        if let Some(memory) = memory {
            query = query.max_memory(memory);
        }
        let Some(stream) = self.begin(query).await else { return };
        let mut numbers = Numbers::new(1, 40);
        match self.read(client, stream, &mut numbers, memory).await {
            End::Whole => assert!(memory.is_none(), "there was no room for all"),
            End::Left => {}
            End::Failed(e) => {
                let is_large = matches!(e, Error::MemoryLimitExceeded { .. }) && memory.is_some();
                self.met(&e, is_large || matches!(e, Error::Cancelled));
            }
        }
    }

    /// The server fails in the middle, after rows that must all arrive.
    async fn divided(&mut self, client: &FraiseClient) {
        let (query, memory) = self.tuned(client.query::<Document>("v_divided"));
        let Some(stream) = self.begin(query).await else { return };
        let mut numbers = Numbers::new(1, u64::MAX);
        if let End::Failed(e) = self.read(client, stream, &mut numbers, memory).await {
            let is_division = e.sqlstate().is_some_and(|state| state.code() == "22012");
            assert!(!is_division || numbers.next == 2000, "{e:?} before {}", numbers.next);
            self.met(&e, is_division || matches!(e, Error::Cancelled));
        }
    }

    /// Rows that cannot be decoded; each is an error of its own.
    async fn some_bad(&mut self, client: &FraiseClient) {
        let (query, memory) = self.tuned(client.query::<Document>("v_some_bad"));
        let Some(mut stream) = self.begin(query).await else { return };
        let mut next = 1;
        let mut failed = 0;
        while let Some(row) = stream.next().await {
            match row {
                Ok(row) => assert_eq!(row.number(), next, "a row is lost or doubled"),
                Err(Error::Deserialization { row, .. }) => {
                    assert_eq!((row, row % 100), (next, 0));
                    failed += 1;
                }
                Err(e) => {
                    self.met(&e, false);
                    break;
                }
            }
            next += 1;
        }
        let stats = stream.stats();
        assert_eq!(stats.total_rows_failed, failed);
        if stats.state == StreamState::Completed {
            assert_eq!((next - 1, failed), (ROWS, ROWS / 100), "an early end");
            self.shared.tally.whole.fetch_add(1, SeqCst);
        }
        self.add_up(&stats, memory, true);
    }

    /// Queries that the server rejects.
    async fn refused(&mut self, client: &FraiseClient) {
        let query = match self.random.below(3) {
            0 => client.query::<RawJson>("v_missing"),
            1 => client.query("v_rows").chunk_size(0),
            _ => client.query("pg_class").column("relname"),
        };
        let e = query.execute().await.expect_err("it cannot run");
        let is_missing = e.sqlstate().is_some_and(|state| state.code() == "42P01");
        self.met(&e, is_missing || matches!(e, Error::Config { .. } | Error::InvalidSchema { .. }));
    }

    /// A separate client, whose queries the server terminates.
    async fn statement_timeout(&mut self) {
        let client = FraiseClient::new(self.config(Some(Duration::from_millis(50))));
        let ended = client.query::<RawJson>("v_asleep").fetch_one().await;
        let e = ended.expect_err("it takes longer");
        self.met(&e, e.sqlstate().is_some_and(|state| state.code() == "57014"));
        self.give_up();
    }

    /// A query that exceeds its timeout.
    async fn timeout(&mut self, client: &FraiseClient) {
        let time = Duration::from_millis(1 + self.random.below(80));
        let connecting = |attempt: &ConnectAttempt| match *attempt.error {
            Error::Timeout { phase: TimeoutPhase::Connect, after } => after == time,
            _ => false,
        };
        let passed = |e: &Error| match e {
            Error::Timeout { phase, .. } => {
                matches!(phase, TimeoutPhase::Query | TimeoutPhase::FirstRow)
            }
            // It passed while the client was connecting again.
            Error::Connection { attempts } => attempts.iter().any(connecting),
            _ => false,
        };
        self.shared.tally.streams.fetch_add(1, SeqCst);
        if self.chance(3) {
            let query = client.query::<RawJson>("v_asleep");
            // A backend that is terminated may send the columns first.
            let first = match query.first_row_timeout(time).execute().await {
                Ok(mut stream) => stream.next().await.expect("it is no end"),
                Err(e) => Err(e),
            };
            let e = first.expect_err("it takes longer");
            return self.met(&e, passed(&e));
        }
        match client.query::<Document>("v_endless").timeout(time).execute().await {
            Ok(stream) => {
                let mut numbers = Numbers::new(1, u64::MAX);
                if let End::Failed(e) = self.read(client, stream, &mut numbers, None).await {
                    self.met(&e, passed(&e) || matches!(e, Error::Cancelled));
                }
            }
            Err(e) => self.met(&e, passed(&e)),
        }
    }

    /// The future of `execute()` is dropped early, and the next query follows immediately.
    async fn dropped_in_mid_air(&mut self, client: &FraiseClient) {
        for _ in 0..1 + self.random.below(4) {
            let view = if self.chance(2) { "v_asleep" } else { "v_endless" };
            let time = Duration::from_micros(self.random.below(3000));
            self.shared.tally.streams.fetch_add(1, SeqCst);
            let execute = client.query::<RawJson>(view).execute();
            match tokio::time::timeout(time, execute).await {
                Ok(Ok(stream)) => drop(stream),
                Ok(Err(e)) => self.met(&e, false),
                Err(_) => {}
            }
        }
        let rows = client.query::<u64>("v_rows").select_projection("data->'id'").limit(3);
        match rows.fetch_all().await {
            Ok(rows) => assert_eq!(rows, [1, 2, 3]),
            Err(e) => self.met(&e, false),
        }
    }

    /// Queries with a single answer.
    async fn small(&mut self, client: &FraiseClient) {
        let rows = client.query::<Document>("v_rows");
        let answer = match self.random.below(4) {
            0 => client.ping().await,
            1 => rows.count().await.map(|rows| assert_eq!(rows, ROWS)),
            2 => rows.exists().await.map(|exists| assert!(exists)),
            _ => rows.offset(41).fetch_one().await.map(|row| assert_eq!(row.number(), 42)),
        };
        if let Err(e) = answer {
            self.met(&e, false);
        }
    }

    /// The client is dropped, and its stream continues.
    async fn dropped_with_its_client(&mut self) {
        let client = FraiseClient::new(self.config(None));
        let query = client.query::<RawJson>("v_rows");
        self.give_up();
        let Some(stream) = self.begin(query).await else { return };
        match self.random.below(3) {
            0 => drop((client, stream)),
            1 => drop((stream, client)),
            _ => {
                drop(client);
                // Its cancel tokens have no effect here.
                let other = FraiseClient::new(self.config(None));
                let mut numbers = Numbers::new(1, ROWS);
                if let End::Failed(e) = self.read(&other, stream, &mut numbers, None).await {
                    self.met(&e, matches!(e, Error::Cancelled));
                }
            }
        }
    }

    /// The end of a client, by close or drop.
    async fn part(&mut self, client: FraiseClient) {
        self.give_up();
        match self.random.below(3) {
            0 => {
                if let Err(e) = client.close().await {
                    self.met(&e, false);
                }
            }
            1 => drop(client),
            _ => {
                let stream = self.begin(client.query::<RawJson>("v_endless")).await;
                drop((client, stream));
            }
        }
    }
}
