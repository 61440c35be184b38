//! A model of a Postgres server as clients see it, with every kind of fault.

pub mod fetches;
mod statements;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash},
    io::{self, Read},
    mem,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fraiseql_wire::{Error, TimeoutPhase};
use futures_util::FutureExt;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    select,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use fetches::{Ask, Sharing};
use statements::{Begin, Execution, Statements};
use transaction::{Step, Transaction};

use super::{
    Chance, HOUR, SLACK, ms,
    relation::{Kind, Relation},
    support::scripted::{
        auth_ok, begin, begin_json, complete, error, fields, message, process_answer, ready, row,
    },
};

/// Counts of events.
pub type Tally = BTreeMap<&'static str, u64>;

pub const PORT: u16 = 5432;

pub const DIVISION: &str = "22012";
pub const SHUTDOWN: &str = "57P01";
pub const TOO_MANY: &str = "53300";
pub const IDLE: &str = "57P05";
pub const LOCKED: &str = "55P03";
pub const CANCELED: &str = "57014";

/// A child table that has just been dropped: "cache lookup failed".
pub const CHILD_DROPPED: &str = "XX000";

/// Reasons for a parallel query to fail, in addition to the SQLSTATEs that were sent.
pub const LOST: &str = "lost";
pub const SLOW: &str = "slow";
pub const CHANGED: &str = "changed";
pub const DIFFERENT: &str = "different";

/// The state of the model.
pub struct World {
    trace: bool,
    pub began: Instant,
    /// Counts reads and writes of the server: see [`runtime`].
    moves: Arc<AtomicU64>,
    state: Mutex<State>,
}

pub struct State {
    /// The server's random numbers.
    random: Chance,
    /// Sessions by their process ids, from 1.
    sessions: Vec<Session>,
    queries: Vec<Query>,
    /// The relations of parallel queries, by the numbers of the queries.
    relations: BTreeMap<usize, Relation>,
    /// The texts of named statements that a client has prepared on any connection.
    statements: BTreeMap<String, String>,
    /// The maximum number of statements that a client keeps on a connection.
    pub statement_capacity: usize,
    /// Whether fewer queries fail.
    pub is_calm: bool,
    /// Whether no more faults occur.
    is_healed: bool,
    /// Whether a proxy closes the connection of a cancel request before the server has the signal.
    pub is_proxied: bool,
    /// The state of fetches that share a client.
    pub sharing: Sharing,
    /// The number of cancel requests that have arrived.
    pub cancel_requests: u64,
    /// The number of open connections of the server.
    pub open: u64,
    /// When a session last ended while idle, without a message.
    pub ended_silently: Option<Instant>,
    /// Until when connecting may fail.
    pub trouble_until: Option<Instant>,
    pub tally: Tally,
    pub digest: DefaultHasher,
}

struct Session {
    secret: u32,
    /// Whether it works on a request.
    is_running: bool,
    /// The last query that its requests have named.
    query: Option<usize>,
    /// The number of queries that its requests named before that one.
    earlier: usize,
    /// Whether cancelling must stop it: it works on rows, or is the client's own session.
    is_to_stop: bool,
    /// Whether a cancel request has arrived for what it works on.
    signalled: bool,
    /// Whether a proxy has delayed that request.
    is_signal_late: bool,
    /// Whether it answers a query outside a transaction.
    is_answering: bool,
    /// A cancel request that a proxy delivers to the next query.
    held: Option<Held>,
    /// Notified when a cancel request arrives.
    signal: Arc<Notify>,
    /// Whether its previous query was stopped.
    was_stopped: bool,
}

/// A cancel request that a proxy holds back.
#[derive(Clone, Copy)]
struct Held {
    /// See [`World::meant`].
    meant: usize,
    /// Until when a client expects it.
    until: Instant,
}

/// A cancel request for an earlier query that hits this one.
#[derive(Clone, Copy)]
struct LateCancel {
    held: Held,
    rows_begin: usize,
    /// The end of the message after which it arrives.
    after: usize,
}

impl LateCancel {
    /// The places where the answer may pause, so that the client sees what is before them.
    fn stops(&self) -> [usize; 2] {
        [self.rows_begin, self.after]
    }
}

#[derive(Clone, Copy)]
pub struct Query {
    /// The maximum number of rows.
    rows: u64,
    usual_size: u64,
    /// Whether it is fetched, and so repeated if its session is lost before its rows.
    pub is_fetched: bool,
    /// The number of its relation, if several queries read it. Otherwise it has its own relation.
    shared: Option<u64>,
    /// Its progress. Each part of a parallel query has its own.
    pub progress: Progress,
}

/// The progress of the answer to a query, or to a part of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// The number of rows that were sent completely.
    pub sent: u64,
    pub fate: Fate,
    /// Whether a part of the answer was sent that is not an error.
    is_answered: bool,
    /// Whether it may be repeated: its named statement has failed before it was bound.
    pub may_repeat: bool,
    /// Whether its session ended before it could be repeated.
    pub is_lost: bool,
    /// Whether it was stopped by a cancel request for an earlier query, and whether it was repeated
    /// after that.
    pub was_hit_late: bool,
    was_rerun: bool,
}

/// The rows that a session sends.
#[derive(Debug, Clone, Copy)]
struct Target {
    id: usize,
    /// The part of a parallel query, or the attempt of a fetch.
    part: Option<usize>,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// It has not begun.
    #[default]
    None,
    Whole,
    Error,
    Fatal,
    Cut,
    Silence,
    /// Stopped by a cancel request.
    Stopped,
    /// Its prepared statement could not be used.
    Refused,
}

impl Query {
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The name of its relation.
    pub fn relation(&self, id: usize) -> String {
        self.shared.map_or_else(|| format!("q{id}"), |number| format!("shared{number}"))
    }

    fn text_size(&self, number: u64) -> usize {
        let size = match number % 257 {
            // Exceeds the memory of a small stream.
            101 => self.usual_size * 20,
            n => n * 7 % self.usual_size,
        };
        size as usize
    }

    /// Returns the maximum size of a row in bytes, with the JSON around its text.
    pub fn largest_row(&self) -> usize {
        60 + (1..=self.rows).map(|number| self.text_size(number)).max().unwrap_or(0)
    }
}

impl World {
    pub fn new(seed: u64, trace: bool, moves: Arc<AtomicU64>) -> Self {
        let state = State {
            random: Chance::of(seed | 1 << 32),
            sessions: Vec::new(),
            queries: Vec::new(),
            relations: BTreeMap::new(),
            statements: BTreeMap::new(),
            statement_capacity: 0,
            is_calm: false,
            is_healed: false,
            // Not from the other random numbers, so that seeds without it keep their course.
            is_proxied: Chance::of(seed | 2 << 32).one_in(5),
            sharing: Sharing::default(),
            cancel_requests: 0,
            open: 0,
            ended_silently: None,
            trouble_until: None,
            tally: Tally::new(),
            digest: DefaultHasher::new(),
        };
        Self { trace, began: Instant::now(), moves, state: Mutex::new(state) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, what: &'static str) {
        *self.state().tally.entry(what).or_default() += 1;
        self.note(|| what.to_owned());
    }

    /// Records an event that a seed reproduces.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let (at, what) = (self.began.elapsed(), what());
        (at, &what).hash(&mut self.state().digest);
        if self.trace {
            println!("{at:>12.3?} {what}");
        }
    }

    /// Lets connecting fail for this long.
    fn trouble(&self, what: &'static str, lasts: Duration) -> Duration {
        self.count(what);
        self.is_in_the_way(lasts)
    }

    fn is_in_the_way(&self, lasts: Duration) -> Duration {
        let mut state = self.state();
        state.trouble_until = state.trouble_until.max(Some(Instant::now() + lasts));
        lasts
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Relaxed);
    }

    fn below(&self, n: u64) -> u64 {
        self.state().random.below(n)
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn delay(&self, least: u64, most: u64) -> Duration {
        self.state().random.delay(least, most)
    }

    /// Plans a query of this number of rows, nearly all of at most the usual size. Returns the
    /// number of the query. `shared`: the number of the relation that it reads.
    pub fn plan(&self, rows: u64, usual_size: u64, shared: Option<u64>) -> usize {
        let mut state = self.state();
        let (is_fetched, progress) = (false, Progress::default());
        let query = Query { rows, usual_size, is_fetched, shared, progress };
        state.queries.push(query);
        state.queries.len() - 1
    }

    /// The same for a parallel query, whose relation is changed by other sessions.
    pub fn plan_parallel(
        &self,
        rows: u64,
        usual_size: u64,
        kind: Kind,
        connections: usize,
    ) -> usize {
        let id = self.plan(Relation::most_rows(rows), usual_size, None);
        self.state().relations.insert(id, Relation::new(kind, rows, connections));
        id
    }

    pub fn fetched(&self, id: usize) {
        self.state().queries[id].is_fetched = true;
    }

    pub fn query(&self, id: usize) -> Query {
        self.state().queries[id]
    }

    /// Checks the relation in the text of a query.
    fn assert_relation(&self, id: usize, sql: &str) {
        let name = self.query(id).relation(id);
        assert!(sql.contains(&format!("\"{name}\"")), "{sql} is not about {name}");
    }

    /// Passes the relation of a parallel query.
    pub fn relation<T>(&self, id: usize, look: impl FnOnce(&mut Relation) -> T) -> T {
        look(self.state().relations.get_mut(&id).unwrap())
    }

    /// Records a reason for a parallel query to fail.
    fn cause(&self, id: usize, what: &'static str) {
        self.relation(id, |relation| relation.causes.insert(what));
    }

    fn progress<T>(&self, target: Target, look: impl FnOnce(&mut Progress) -> T) -> T {
        let mut state = self.state();
        match target.part {
            Some(part) if state.sharing.is_active => {
                let fetch = state.sharing.fetches.get_mut(&target.id).unwrap();
                look(&mut fetch.attempts[part].progress)
            }
            Some(part) => {
                look(&mut state.relations.get_mut(&target.id).unwrap().parts[part].progress)
            }
            None => look(&mut state.queries[target.id].progress),
        }
    }

    /// Returns a row of a query, by its number from 1 and its generation.
    pub fn document(&self, id: usize, number: u64, generation: u64) -> String {
        let size = self.query(id).text_size(number);
        format!(r#"{{"query":{id},"row":{number},"of":{generation},"text":"{:x<size$}"}}"#, "")
    }

    fn odds(&self, target: Target) -> Odds {
        let state = self.state();
        match (state.sharing.fetches.get(&target.id), target.part) {
            (Some(fetch), _) if fetch.ends_sessions => Odds::EndsSessions,
            (Some(_), _) => Odds::Fetch,
            (None, Some(_)) => Odds::Part,
            (None, None) => Odds::Query,
        }
    }

    /// Returns the documents of a query.
    fn documents(&self, id: usize) -> Vec<String> {
        let ask = self.state().sharing.fetches.get(&id).map(|fetch| fetch.ask);
        let rows = self.query(id).rows;
        match ask {
            Some(Ask::Count) => vec![(id as u64 * 1000 + rows).to_string()],
            Some(Ask::Exists) => vec![(rows > 0).to_string()],
            Some(Ask::Explain) => vec![format!(r#"[{{"Plan":{{"query":{id}}}}}]"#)],
            _ => (1..=rows).map(|number| self.document(id, number, 0)).collect(),
        }
    }

    /// A backend begins a query, or a part of one.
    fn begin(&self, pid: usize, target: Target, fate: Fate) -> Arc<Notify> {
        let Target { id, .. } = target;
        let signal = self.work(pid, Some(id), true);
        let is_fetched = self.query(id).is_fetched && target.part.is_none();
        self.state().sessions[pid - 1].is_answering = target.part.is_none();
        let is_rerun = self.progress(target, |progress| {
            let is_lost = matches!(progress.fate, Fate::Cut | Fate::Fatal) && progress.sent == 0;
            let is_rerun = progress.may_repeat && progress.was_hit_late;
            if progress.may_repeat || is_fetched && is_lost {
                let was_rerun = progress.was_rerun || is_rerun;
                *progress = Progress { was_rerun, ..Progress::default() };
            }
            assert!(!progress.is_answered, "query {id} was answered already");
            assert_eq!(progress.fate, Fate::None, "query {id} was begun before");
            (progress.fate, progress.sent) = (fate, 0);
            is_rerun
        });
        if is_rerun {
            self.count("a query was run again after a late cancel request");
        }
        signal
    }

    /// A backend begins a request. `named`: the query that it names. `is_to_stop`: cancelling the
    /// query must end it.
    fn work(&self, pid: usize, named: Option<usize>, is_to_stop: bool) -> Arc<Notify> {
        let mut state = self.state();
        let session = &mut state.sessions[pid - 1];
        assert!(!session.is_running, "a request came before the answer to the last was sent");
        session.is_running = true;
        session.is_to_stop |= is_to_stop;
        if let Some(id) = named {
            session.earlier += usize::from(session.query.is_some_and(|query| query != id));
            session.query = Some(id);
        }
        let was_stopped = mem::take(&mut session.was_stopped);
        let signal = Arc::clone(&session.signal);
        drop(state);
        if was_stopped {
            self.count("a connection was used after a query that was stopped");
        }
        signal
    }

    /// Returns the parallel query of a session: the one that it has named, otherwise the last one.
    fn parallel_query(&self, pid: usize) -> usize {
        let state = self.state();
        let named = state.sessions[pid - 1].query.filter(|id| state.relations.contains_key(id));
        named.or_else(|| state.relations.keys().last().copied()).unwrap()
    }

    fn is_signalled(&self, pid: usize) -> bool {
        self.state().sessions[pid - 1].signalled
    }

    fn running(&self, pid: usize) -> Option<usize> {
        let session = &self.state().sessions[pid - 1];
        session.query.filter(|_| session.is_running)
    }

    /// Checks that no backend works on a query.
    pub fn assert_ended(&self, id: usize) {
        let works = |session: &Session| {
            session.is_running && session.is_to_stop && session.query == Some(id)
        };
        assert!(!self.state().sessions.iter().any(works), "query {id} still runs");
    }

    /// Records that a query was stopped.
    fn stopped(&self, pid: usize) {
        self.state().sessions[pid - 1].was_stopped = true;
        self.count("a query was stopped");
    }

    /// A backend waits for the next query, or has ended.
    fn idle(&self, pid: usize) {
        let session = &mut self.state().sessions[pid - 1];
        (session.is_running, session.signalled) = (false, false);
        session.is_answering = false;
    }

    /// Identifies the query that a cancel request arriving now is meant for.
    fn meant(&self, pid: usize) -> usize {
        self.state().sessions[pid - 1].earlier
    }

    /// Returns the cancel request that a proxy delivers to this query: before its rows or between
    /// two of them.
    fn late_cancel(&self, pid: usize, answer: &Answer) -> Option<LateCancel> {
        let held = {
            let session = &mut self.state().sessions[pid - 1];
            let is_other = |held: &mut Held| held.meant != session.earlier;
            session.held.take_if(|held| answer.stoppable > 0 && is_other(held))?
        };
        let last = if self.one_in(4) { answer.rows_begin } else { answer.stoppable };
        let ends = answer.ends.partition_point(|end| *end <= last);
        let after = answer.ends[self.below(ends as u64) as usize];
        Some(LateCancel { held, rows_begin: answer.rows_begin, after })
    }

    /// Delivers the signal of a cancel request.
    fn signal(&self, pid: usize, meant: usize, is_late: bool) {
        let running = self.running(pid);
        self.note(|| format!("signal to {pid}, which runs {running:?}"));
        let mut state = self.state();
        let is_pipelined = state.sharing.is_active;
        let session = &mut state.sessions[pid - 1];
        // A client does not repeat a transaction, so a late one hits nothing in it.
        if session.is_running && (is_pipelined || !is_late || session.is_answering) {
            let is_other = session.earlier != meant;
            // The session itself checks whether it may be stopped.
            assert!(is_pipelined || is_late || !is_other, "a cancel request hits another query");
            session.signalled = true;
            session.is_signal_late = is_late && (is_pipelined || is_other);
            session.signal.notify_one();
            return;
        }
        drop(state);
        self.count("a cancel request found nothing to stop");
    }
}

/// Accepts connections, and rejects some.
pub async fn listen(world: Arc<World>, folder: PathBuf) {
    let path = folder.join(format!(".s.PGSQL.{PORT}"));
    loop {
        let listener = UnixListener::bind(&path).unwrap();
        loop {
            match world.fault(60) {
                0 => break,
                1 => {
                    let lasts = world.delay(0, 20_000);
                    sleep(world.trouble("the server accepts nobody", lasts)).await;
                }
                _ => {}
            }
            let (socket, _) = listener.accept().await.unwrap();
            world.moved();
            let size = [0, 4 << 10, 32 << 10][world.below(3) as usize];
            if size > 0 {
                socket2::SockRef::from(&socket).set_send_buffer_size(size).unwrap();
            }
            let pace = Pace { piece: 64 << world.below(11), delay: world.below(4) as usize };
            tokio::spawn(
                Peer {
                    world: Arc::clone(&world),
                    socket,
                    inbox: Vec::new(),
                    pace,
                    transaction: None,
                    statements: Statements::of_pooler(&world),
                }
                .serve(),
            );
        }
        drop(listener);
        fs::remove_file(&path).unwrap();
        let lasts = world.delay(0, 2000);
        sleep(world.trouble("the server is away", lasts)).await;
    }
}

/// The server's end of a connection.
struct Peer {
    world: Arc<World>,
    socket: UnixStream,
    /// Received bytes that are not processed yet.
    inbox: Vec<u8>,
    pace: Pace,
    transaction: Option<Transaction>,
    statements: Statements,
}

/// How an answer is sent.
struct Pace {
    /// The maximum size of a piece.
    piece: u64,
    /// An index: the kind of delay between pieces.
    delay: usize,
}

impl Pace {
    /// Returns the maximum delay, in milliseconds.
    fn longest(&self) -> u64 {
        [0, 30, 300, 10_000][self.delay]
    }
}

/// A request of the client.
enum Request {
    Query(Execution),
    Ping,
    /// The statements before and after a part of a parallel query.
    Steps(Vec<Step>),
    /// The rows of a portal.
    Execute(String),
    Terminate,
}

/// Returns the query whose relation is named in a statement.
fn query_named(sql: &str) -> Option<usize> {
    let (_, name) = sql.split_once("\"q")?;
    name.split('"').next()?.parse().ok()
}

impl Peer {
    async fn serve(mut self) {
        self.world.state().open += 1;
        // The client may close the connection at any time.
        let _ = self.connection().await;
        self.world.state().open -= 1;
    }

    async fn connection(&mut self) -> io::Result<()> {
        if self.world.fault(80) == 0 {
            self.world.trouble("reset at once", Duration::ZERO);
            self.login_lost();
            return Ok(());
        }
        let len = u32::from_be_bytes(self.take().await?) as usize;
        let code = u32::from_be_bytes(self.take().await?);
        let mut body = self.take_some(len - 8).await?;
        if code == 80_877_102 {
            let secret = body.split_off(4);
            return self.cancel(&body, &secret).await;
        }
        assert!(code >> 16 == 3, "protocol {code}");
        match self.world.fault(60) {
            0 => {
                self.world.trouble("silence while logging in", Duration::ZERO);
                return self.silence().await;
            }
            1 => {
                self.world.trouble("too many connections", Duration::ZERO);
                return self.send(&error("FATAL", TOO_MANY, "too many")).await;
            }
            2 => {
                let lasts = self.world.delay(0, 12_000);
                sleep(self.world.trouble("slow to log in", lasts)).await;
            }
            3 => {
                self.world.trouble("closed while logging in", Duration::ZERO);
                self.login_lost();
                return self.send(&auth_ok()).await;
            }
            _ => {}
        }
        let (pid, secret) = {
            let mut state = self.world.state();
            let secret = state.random.below(1 << 32) as u32;
            let session = Session {
                secret,
                is_running: false,
                query: None,
                earlier: 0,
                is_to_stop: false,
                signalled: false,
                is_signal_late: false,
                is_answering: false,
                held: None,
                signal: Arc::default(),
                was_stopped: false,
            };
            state.sessions.push(session);
            (state.sessions.len(), secret)
        };
        let key = [(pid as u32).to_be_bytes(), secret.to_be_bytes()].concat();
        let parameter = message(b'S', b"server_version\x0018.0\0");
        for part in [auth_ok(), parameter, message(b'K', &key)] {
            self.send(&part).await?;
            self.world.is_in_the_way(ms(self.pace.longest()));
            self.breathe(None).await;
        }
        self.send(&ready()).await?;
        self.world.note(|| format!("session {pid} begins"));
        let ended = self.session(pid).await;
        if ended.is_ok() && !self.is_gone() {
            self.world.lost(pid);
        }
        self.world.note(|| format!("session {pid} ends"));
        self.end_transaction(pid);
        self.world.idle(pid);
        ended
    }

    async fn session(&mut self, pid: usize) -> io::Result<()> {
        let mut is_new = true;
        loop {
            let patience =
                if self.world.fault(10) == 0 { self.world.delay(0, 20_000) } else { HOUR * 10 };
            if self.inbox.is_empty() {
                let Ok(filled) = timeout(patience, self.fill()).await else {
                    if self.world.one_in(3) {
                        self.world.count("something was said while idle");
                        self.send(&aside(&self.world)).await?;
                        continue;
                    }
                    match (is_new, &self.transaction) {
                        (true, _) => {
                            self.world.trouble("a new session ended", Duration::ZERO);
                            self.login_lost();
                        }
                        (false, None) => self.world.count("a session ended while idle"),
                        (false, Some(_)) => self.world.count("a session ended in a transaction"),
                    }
                    self.may_fail(pid, &[LOST, IDLE]);
                    self.ended_before_repetition(pid);
                    if self.world.one_in(2) {
                        self.send(&error("FATAL", IDLE, "idle for too long")).await?;
                    } else {
                        self.world.state().ended_silently = Some(Instant::now());
                    }
                    return Ok(());
                };
                filled?;
            }
            let request = self.request(pid).await?;
            is_new = false;
            match request {
                Request::Query(request) => {
                    let id = request.query();
                    let target = Target { id, part: self.world.attempt(pid, id) };
                    let begin = self.statements.begin(&self.world, &request);
                    let rows = self.world.documents(id);
                    let parsed = request.parse.map(|(name, _)| name);
                    if !self.answer(pid, target, begin, rows, parsed).await? {
                        return Ok(());
                    }
                }
                Request::Steps(steps) => {
                    if !self.steps(pid, &steps).await? {
                        return Ok(());
                    }
                }
                Request::Execute(portal) => {
                    if !self.execute(pid, &portal).await? {
                        return Ok(());
                    }
                }
                Request::Ping => {
                    self.breathe(None).await;
                    if self.world.one_in(10) {
                        return Ok(());
                    }
                    self.send(&[message(b'I', b""), ready()].concat()).await?;
                }
                Request::Terminate => return Ok(()),
            }
        }
    }

    /// Records reasons for the parallel query of this session to fail, if it has one.
    fn may_fail(&self, pid: usize, causes: &[&'static str]) {
        let is_parallel = {
            let state = self.world.state();
            match state.sessions[pid - 1].query {
                Some(id) => state.relations.contains_key(&id),
                None => self.transaction.is_some(),
            }
        };
        for cause in causes.iter().filter(|_| is_parallel) {
            self.world.cause(self.world.parallel_query(pid), cause);
        }
    }

    /// Records that the session has ended before the client could repeat a query on it.
    fn ended_before_repetition(&self, pid: usize) {
        let mut state = self.world.state();
        let Some(id) = state.sessions[pid - 1].query else { return };
        let progress = &mut state.queries[id].progress;
        progress.is_lost |= progress.may_repeat;
    }

    async fn request(&mut self, pid: usize) -> io::Result<Request> {
        let mut tags = Vec::new();
        let mut execution = Execution::default();
        let (mut sql, mut portal) = (String::new(), String::new());
        let texts = |body: Vec<u8>| String::from_utf8_lossy(&body).into_owned();
        loop {
            let [tag] = self.take().await?;
            let len = u32::from_be_bytes(self.take().await?) as usize;
            let body = self.take_some(len - 4).await?;
            // Close messages may come first.
            if tag == b'C' && tags.is_empty() {
                execution.closes.push(texts(body)[1..].trim_end_matches('\0').to_owned());
                continue;
            }
            tags.push(tag);
            match (tag, &tags[..]) {
                (b'X', b"X") => return Ok(Request::Terminate),
                (b'Q', b"Q") => {
                    let text = texts(body);
                    let statements = text.trim_end_matches('\0').split("; ");
                    let steps: Vec<_> = statements.map(|sql| Step::Simple(sql.into())).collect();
                    return Ok(match &steps[..] {
                        [Step::Simple(sql)] if sql.is_empty() => Request::Ping,
                        _ => Request::Steps(steps),
                    });
                }
                (b'P', b"PBDEP" | b"BDEP") => {
                    let sql = texts(body);
                    assert!(sql.contains("pg_backend_pid"), "{sql}");
                    execution.asks_process = true;
                }
                (b'B', b"PBDEPB" | b"BDEPB") => {
                    let mut question = Execution::default();
                    question.bind(&body);
                    assert_eq!(question.parameter, Some(pid.to_string()));
                }
                (b'S', b"PBDEPBES" | b"BDEPBES") => return Ok(Request::Query(execution)),
                (b'P', b"P") => {
                    let text = texts(body);
                    let mut parts = text.split('\0').map(str::to_owned);
                    let name = parts.next().unwrap();
                    sql = parts.next().unwrap();
                    execution.parse = Some((name, sql.clone()));
                }
                (b'B', b"PB" | b"B") => {
                    portal = texts(body.clone()).split('\0').next().unwrap().to_owned();
                    if portal.is_empty() {
                        execution.bind(&body);
                    }
                }
                (b'D', b"PBD" | b"BD") => execution.describes = true,
                (b'D', b"D") => portal = texts(body)[1..].trim_end_matches('\0').to_owned(),
                (b'S', b"PBS") => return Ok(Request::Steps(vec![Step::Plan { portal, sql }])),
                (b'S', b"DES") => return Ok(Request::Execute(portal)),
                (b'S', b"PBDES" | b"BDES" | b"BES") => return Ok(Request::Query(execution)),
                (_, b"PBDE" | b"BDE" | b"BE" | b"DE" | b"PBDEPBE" | b"BDEPBE") => {}
                _ => panic!("{tags:?} was sent"),
            }
        }
    }

    /// Answers a query, or a part of one. Returns whether the session continues.
    async fn answer(
        &mut self,
        pid: usize,
        target: Target,
        begin: Begin,
        rows: Vec<String>,
        parsed: Option<String>,
    ) -> io::Result<bool> {
        let id = target.id;
        let odds = self.world.odds(target);
        let (fate, mut answer) = Answer::make(&self.world, begin, rows, odds);
        if let (Some(name), true) = (parsed, answer.fails_to_parse) {
            self.statements.remove(&name);
        }
        let signal = self.world.begin(pid, target, fate);
        let world = Arc::clone(&self.world);
        world.note(|| format!("session {pid} runs query {id}: {fate:?}"));
        if world.fault(12) == 0 {
            let long = world.delay(0, 60_000);
            select! {
                biased;
                () = signal.notified() => {}
                () = sleep(long) => {}
            }
        }
        if fate == Fate::Error {
            self.fail_transaction();
        }
        if answer.continues {
            answer.end(&self.ready(), &world);
        }
        let mut late_cancel = world.late_cancel(pid, &answer);
        // Sends at most about 40 pieces.
        let piece = self.pace.piece.max(answer.bytes.len() as u64 / 40);
        let mut at = 0;
        loop {
            if late_cancel.is_some_and(|late| late.stops().contains(&at)) && world.one_in(2) {
                // The client reads first what was sent.
                sleep(world.delay(1, 100)).await;
            }
            if let Some(LateCancel { held, .. }) = late_cancel.take_if(|late| late.after == at) {
                if Instant::now() <= held.until {
                    world.signal(pid, held.meant, true);
                }
            }
            if at < answer.stoppable && world.is_signalled(pid) {
                self.assert_stoppable(pid, target);
                world.stopped(pid);
                self.fail_transaction();
                answer.stop(at, &self.ready());
                world.progress(target, |progress| {
                    progress.fate = Fate::Stopped;
                    // A client runs it once more, if it has had no row.
                    let has_rows = !answer.row_ends.is_empty();
                    answer.may_repeat = progress.was_hit_late && !progress.was_rerun && !has_rows;
                });
            }
            let end = answer.bytes.len().min(at + 1 + world.below(piece) as usize);
            let stops = late_cancel.iter().flat_map(LateCancel::stops);
            let end = stops.filter(|stop| *stop > at).fold(end, usize::min);
            // At ReadyForQuery, after which other messages may follow.
            if at < answer.ready && answer.ready <= end && answer.continues {
                self.expect_nothing();
                world.idle(pid);
                world.progress(target, |progress| progress.may_repeat |= answer.may_repeat);
            }
            world.progress(target, |progress| {
                progress.sent = answer.rows_within(end);
                progress.is_answered |= end >= 5 && answer.bytes[0] != b'E';
            });
            if end >= answer.rows_begin && at <= answer.rows_begin {
                world.look_for_others(target);
            }
            let began = Instant::now();
            self.send(&answer.bytes[at..end]).await?;
            if began.elapsed() > SLACK {
                world.count("the server was held up");
            }
            at = end;
            // Read immediately after ReadyForQuery: a cancel request may be meant for an unread
            // request.
            if at == answer.bytes.len() {
                break;
            }
            self.breathe(Some(&signal)).await;
        }
        let Progress { fate, may_repeat, .. } = world.progress(target, |progress| *progress);
        let is_lost = matches!(fate, Fate::Cut | Fate::Fatal);
        if is_lost && world.sharing(|sharing| sharing.is_active) && !self.is_gone() {
            world.look_for_others(target);
            world.update(target, |attempt| attempt.is_lost = true);
        }
        let is_answered = answer.continues && !may_repeat;
        world.update(target, |attempt| attempt.is_answered = is_answered);
        match fate {
            Fate::Silence => {
                let _ = self.silence().await;
                self.expect_nothing();
                Ok(false)
            }
            _ => Ok(answer.continues),
        }
    }

    /// Checks that a cancel request may stop this answer: it was cancelled, the client has closed
    /// the connection, or a proxy has delayed the request.
    fn assert_stoppable(&mut self, pid: usize, target: Target) {
        let is_late = self.world.state().sessions[pid - 1].is_signal_late;
        if !self.world.sharing(|sharing| sharing.is_active) {
            if is_late {
                self.world.count("a late cancel request hit another query");
            }
            return self.world.progress(target, |progress| progress.was_hit_late = is_late);
        }
        let is_right = self.world.may_be_stopped(target.id) || self.is_gone();
        assert!(is_right || is_late, "a cancel request hits fetch {}", target.id);
        if !is_right {
            self.world.count("a late cancel request hit another fetch");
        }
        self.world.update(target, |attempt| attempt.was_hit_late = is_late);
    }

    /// Returns whether the client has closed the connection. Reads from the socket, because the
    /// runtime may not have polled it since.
    fn is_gone(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match (&*SockRef::from(&self.socket)).read(&mut bytes) {
                Ok(0) => return true,
                Ok(read) => self.inbox.extend_from_slice(&bytes[..read]),
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    fn login_lost(&self) {
        self.world.sharing(|sharing| sharing.login_lost_at = Some(Instant::now()));
    }

    /// Checks that the client sends nothing before the answer has ended, except Terminate.
    fn expect_nothing(&mut self) {
        if self.world.sharing(|sharing| sharing.is_active) {
            return;
        }
        let _ = self.fill().now_or_never();
        let inbox = &self.inbox;
        assert!(inbox.is_empty() || inbox == b"X\0\0\0\x04", "asked before the answer: {inbox:?}");
    }

    async fn cancel(&mut self, pid: &[u8], secret: &[u8]) -> io::Result<()> {
        let world = Arc::clone(&self.world);
        let pid = u32::from_be_bytes(pid.try_into().unwrap()) as usize;
        let session_secret = world.state().sessions[pid - 1].secret;
        assert_eq!(secret, session_secret.to_be_bytes(), "a key that nobody was given");
        world.state().cancel_requests += 1;
        let (meant, running) = (world.meant(pid), world.running(pid));
        world.note(|| format!("cancel request to {pid}, which runs {running:?}"));
        match world.below(12) {
            0 => {
                world.count("a cancel request was lost");
                return Ok(());
            }
            1 => {
                // After the client has abandoned it, it may still arrive.
                let _ = self.silence().await;
                sleep(world.delay(0, 5000)).await;
                world.count("a cancel request arrived when it was given up");
            }
            2..5 => {
                sleep(world.delay(0, 5000)).await;
                world.count("a cancel request was late");
            }
            _ => self.breathe(None).await,
        }
        let is_proxied = world.state().is_proxied;
        if is_proxied && world.one_in(2) {
            world.count("a proxy delayed a cancel request");
            // Less than the time for which a client expects it.
            let until = Instant::now() + ms(900);
            if world.one_in(2) {
                world.state().sessions[pid - 1].held = Some(Held { meant, until });
                return Ok(());
            }
            tokio::spawn(async move {
                sleep(world.delay(0, 900)).await;
                world.signal(pid, meant, true);
            });
            return Ok(());
        }
        world.signal(pid, meant, false);
        self.breathe(None).await;
        Ok(())
    }

    /// Returns the delay before the next piece, if there is one.
    fn pause(&self) -> Option<Duration> {
        let waits = self.world.fault([1, 4, 2, 16][self.pace.delay]) == 0;
        waits.then(|| self.world.delay(0, self.pace.longest()))
    }

    /// Waits for the delay between pieces, or until a signal.
    async fn breathe(&mut self, signal: Option<&Notify>) {
        let Some(pause) = self.pause() else { return };
        match signal {
            Some(signal) => select! {
                biased;
                () = signal.notified() => {}
                () = sleep(pause) => {}
            },
            None => sleep(pause).await,
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.world.moved();
        self.socket.write_all(bytes).await?;
        self.world.moved();
        Ok(())
    }

    /// Sends nothing more.
    async fn silence(&mut self) -> io::Result<()> {
        loop {
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let read = self.socket.read_buf(&mut self.inbox).await?;
        self.world.moved();
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    async fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take_some(N).await?.try_into().unwrap())
    }

    async fn take_some(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.inbox.len() < n {
            self.fill().await?;
        }
        Ok(self.inbox.drain(..n).collect())
    }
}

/// Returns a message that may arrive at any time.
fn aside(world: &World) -> Vec<u8> {
    match world.below(3) {
        0 => fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "by the way")]),
        1 => message(b'S', b"TimeZone\0UTC\0"),
        _ => message(b'A', b"\0\0\0\x01channel\0\0"),
    }
}

/// The answer to a query.
struct Answer {
    bytes: Vec<u8>,
    /// The ends of messages.
    ends: Vec<usize>,
    /// The ends of rows.
    row_ends: Vec<usize>,
    /// From here on, a cancel request has no effect.
    stoppable: usize,
    /// Whether the session then waits for the next query.
    continues: bool,
    /// The end of ReadyForQuery, if the session continues.
    ready: usize,
    /// Whether its error is sent before ParseComplete.
    fails_to_parse: bool,
    /// Whether its error is sent before a named statement is bound.
    may_repeat: bool,
    /// The beginning of the rows.
    rows_begin: usize,
}

/// How often answers fail.
#[derive(Debug, Clone, Copy)]
enum Odds {
    Query,
    Part,
    Fetch,
    /// A fetch that ends each session before its rows.
    EndsSessions,
}

impl Answer {
    fn make(world: &World, begin: Begin, rows: Vec<String>, odds: Odds) -> (Fate, Self) {
        let mut answer = Self {
            bytes: Vec::new(),
            ends: vec![0],
            row_ends: Vec::new(),
            stoppable: 0,
            continues: true,
            ready: 0,
            fails_to_parse: false,
            may_repeat: false,
            rows_begin: 0,
        };
        let (mut parsed, mut bound) = (0, 0);
        for (number, part) in begin.messages.iter().enumerate() {
            if world.one_in(40) {
                answer.push(&aside(world));
            }
            answer.push(part);
            if number + 1 == begin.parsed {
                parsed = answer.bytes.len();
            }
            if number + 1 == begin.bound {
                bound = answer.bytes.len();
            }
        }
        if let Some(code) = begin.refusal {
            answer.push(&error("ERROR", code, "the statement cannot be used"));
            answer.may_repeat = true;
            if world.fault(20) == 0 {
                answer.truncate(world.below(answer.bytes.len() as u64) as usize);
                (answer.continues, answer.may_repeat) = (false, false);
                return (Fate::Cut, answer);
            }
            return (Fate::Refused, answer);
        }
        answer.rows_begin = answer.bytes.len();
        for document in rows {
            if world.one_in(30) {
                answer.push(&aside(world));
            }
            answer.push(&row(&document));
            answer.row_ends.push(answer.bytes.len());
        }
        answer.stoppable = answer.bytes.len();
        answer.push(&complete());
        // Between messages up to here, because an error about the process is no error of the query.
        let ends_sessions = matches!(odds, Odds::EndsSessions);
        let boundaries = match ends_sessions || begin.is_named && world.one_in(2) {
            true => begin.messages.len(),
            false => answer.ends.len() - usize::from(!begin.process.is_empty()),
        };
        begin.process.iter().for_each(|part| answer.push(part));
        let boundary = answer.ends[world.below(boundaries as u64) as usize];
        let anywhere = world.below(answer.bytes.len() as u64) as usize;
        // A parallel query has several parts.
        let is_calm = world.state().is_calm;
        let fates = match (odds, is_calm) {
            (Odds::EndsSessions, _) => 24,
            (Odds::Fetch, _) => 300,
            (_, true) if begin.parsed > 0 && begin.is_named => 100,
            (_, true) => 400,
            (Odds::Part, false) => 200,
            (Odds::Query, false) => 100,
        };
        let number = match odds {
            Odds::EndsSessions => 10 + world.below(14),
            _ => world.fault(fates),
        };
        let fate = match number {
            0..10 => Fate::Error,
            10..16 => Fate::Fatal,
            16..24 => Fate::Cut,
            24..29 => Fate::Silence,
            _ => Fate::Whole,
        };
        match fate {
            Fate::Error => {
                answer.truncate(boundary);
                answer.fails_to_parse = boundary < parsed;
                answer.may_repeat = begin.is_named && boundary < bound;
                answer.bytes.extend(error("ERROR", DIVISION, "division by zero"));
            }
            Fate::Fatal => {
                answer.truncate(boundary);
                answer.bytes.extend(error("FATAL", SHUTDOWN, "shutting down"));
            }
            Fate::Cut | Fate::Silence => {
                let is_anywhere = !ends_sessions && world.one_in(2);
                answer.truncate(if is_anywhere { anywhere } else { boundary });
            }
            _ => {}
        }
        answer.continues = matches!(fate, Fate::Whole | Fate::Error);
        (fate, answer)
    }

    fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(message);
        self.ends.push(self.bytes.len());
    }

    /// Adds ReadyForQuery with this status.
    fn end(&mut self, status: &[u8], world: &World) {
        self.bytes.extend(status);
        self.ready = self.bytes.len();
        if world.one_in(20) {
            world.count("something was said after an answer");
            self.bytes.extend(aside(world));
        }
    }

    fn truncate(&mut self, at: usize) {
        self.bytes.truncate(at);
        self.ends.retain(|end| *end <= at);
        self.row_ends.retain(|end| *end <= at);
        self.stoppable = self.stoppable.min(*self.ends.last().unwrap());
    }

    /// Stops it after the current message.
    fn stop(&mut self, at: usize, status: &[u8]) {
        let end = *self.ends.iter().find(|end| **end >= at).unwrap();
        self.truncate(end);
        self.bytes.extend(error("ERROR", "57014", "canceling statement due to user request"));
        self.bytes.extend(status);
        self.ready = self.bytes.len();
        (self.stoppable, self.continues, self.may_repeat) = (0, true, false);
    }

    fn rows_within(&self, end: usize) -> u64 {
        self.row_ends.partition_point(|row_end| *row_end <= end) as u64
    }
}
