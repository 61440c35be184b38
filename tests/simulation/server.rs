//! A model of a Postgres server, as far as a client can tell, with every fault that one may have.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash},
    io, mem,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    select,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    Chance, HOUR, SLACK, ms,
    support::scripted::{auth_ok, begin_json, complete, error, fields, message, ready, row},
};

/// How often what happened.
pub type Tally = BTreeMap<&'static str, u64>;

pub const PORT: u16 = 5432;

pub const DIVISION: &str = "22012";
pub const SHUTDOWN: &str = "57P01";
pub const TOO_MANY: &str = "53300";
pub const IDLE: &str = "57P05";

/// What the model knows.
pub struct World {
    trace: bool,
    pub began: Instant,
    /// How often the server has read or written: see [`runtime`].
    moves: Arc<AtomicU64>,
    state: Mutex<State>,
}

pub struct State {
    /// The server's.
    random: Chance,
    /// By their process ids, from 1.
    sessions: Vec<Session>,
    queries: Vec<Query>,
    /// Connections of the server that have not ended.
    pub open: u64,
    /// Up to when something was in the way of connecting.
    pub trouble_until: Option<Instant>,
    pub tally: Tally,
    pub digest: DefaultHasher,
}

struct Session {
    secret: u32,
    /// The query that runs.
    running: Option<usize>,
    /// It is to be stopped,
    signalled: bool,
    /// and is to look.
    signal: Arc<Notify>,
    /// The one before it was stopped.
    was_stopped: bool,
}

#[derive(Clone, Copy)]
pub struct Query {
    rows: u64,
    usual_size: u64,
    /// Rows that were sent whole, when it ran last.
    pub sent: u64,
    pub fate: Fate,
    /// Something was answered that is no error.
    is_answered: bool,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has not run.
    None,
    Whole,
    Error,
    Fatal,
    Cut,
    Silence,
    /// By a cancel request.
    Stopped,
}

impl Query {
    fn text_size(&self, number: u64) -> usize {
        let size = match number % 257 {
            // Larger than a small stream may hold.
            101 => self.usual_size * 20,
            n => n * 7 % self.usual_size,
        };
        size as usize
    }

    /// In bytes, and a little more for what is around it.
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
            open: 0,
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

    /// Something that is the same when the seed is the same.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let (at, what) = (self.began.elapsed(), what());
        (at, &what).hash(&mut self.state().digest);
        if self.trace {
            println!("{at:>12.3?} {what}");
        }
    }

    /// Something is in the way of connecting, for so long.
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

    /// A query that will be asked, of so many rows, most of which are no larger than that; returns its number.
    pub fn plan(&self, rows: u64, usual_size: u64) -> usize {
        let mut state = self.state();
        let query = Query { rows, usual_size, sent: 0, fate: Fate::None, is_answered: false };
        state.queries.push(query);
        state.queries.len() - 1
    }

    pub fn query(&self, id: usize) -> Query {
        self.state().queries[id]
    }

    /// A row of a query, by its number from 1.
    pub fn document(&self, id: usize, number: u64) -> String {
        let size = self.query(id).text_size(number);
        format!(r#"{{"query":{id},"row":{number},"text":"{:x<size$}"}}"#, "")
    }

    /// A backend begins a query.
    fn begin(&self, pid: usize, id: usize, fate: Fate) -> Arc<Notify> {
        let mut state = self.state();
        let session = &mut state.sessions[pid - 1];
        assert_eq!(session.running, None, "query {id} came before the answer to that was sent");
        session.running = Some(id);
        let was_stopped = mem::take(&mut session.was_stopped);
        let signal = Arc::clone(&session.signal);
        let query = &mut state.queries[id];
        assert!(!query.is_answered, "query {id} was answered already");
        assert_eq!(query.fate, Fate::None, "query {id} was begun before");
        (query.fate, query.sent) = (fate, 0);
        drop(state);
        if was_stopped {
            self.count("a connection was used behind a query that was stopped");
        }
        signal
    }

    fn is_signalled(&self, pid: usize) -> bool {
        self.state().sessions[pid - 1].signalled
    }

    fn running(&self, pid: usize) -> Option<usize> {
        self.state().sessions[pid - 1].running
    }

    /// No backend works on a query any more.
    pub fn assert_ended(&self, id: usize) {
        let runs = self.state().sessions.iter().any(|session| session.running == Some(id));
        assert!(!runs, "query {id} still runs");
    }

    /// A query is stopped, which ends it.
    fn stopped(&self, pid: usize, id: usize) {
        {
            let mut state = self.state();
            state.queries[id].fate = Fate::Stopped;
            state.sessions[pid - 1].was_stopped = true;
        }
        self.count("a query was stopped");
    }

    /// A backend waits for the next query, or has ended.
    fn idle(&self, pid: usize) {
        let session = &mut self.state().sessions[pid - 1];
        (session.running, session.signalled) = (None, false);
    }

    /// The signal of a cancel request that was sent when a query ran.
    fn signal(&self, pid: usize, meant: Option<usize>) {
        let running = self.running(pid);
        self.note(|| format!("signal to {pid}, which runs {running:?}"));
        if running.is_none() {
            return self.count("a cancel request found nothing to stop");
        }
        assert_eq!(running, meant, "a cancel request hits another query");
        let session = &mut self.state().sessions[pid - 1];
        session.signalled = true;
        session.signal.notify_one();
    }
}

/// Accepts connections, mostly.
pub async fn listen(world: Arc<World>, folder: PathBuf) {
    let path = folder.join(format!(".s.PGSQL.{PORT}"));
    loop {
        let listener = UnixListener::bind(&path).unwrap();
        loop {
            match world.below(60) {
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
                Peer { world: Arc::clone(&world), socket, inbox: Vec::new(), pace }.serve(),
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
    /// What has come and was not looked at.
    inbox: Vec<u8>,
    pace: Pace,
}

/// How an answer is sent.
struct Pace {
    /// The largest piece.
    piece: u64,
    /// What is between pieces.
    delay: usize,
}

impl Pace {
    /// In milliseconds.
    fn longest(&self) -> u64 {
        [0, 30, 300, 10_000][self.delay]
    }
}

/// A request of the client.
enum Request {
    Query(usize),
    Ping,
    Terminate,
}

impl Peer {
    async fn serve(mut self) {
        self.world.state().open += 1;
        // The client may end it at any time.
        let _ = self.connection().await;
        self.world.state().open -= 1;
    }

    async fn connection(&mut self) -> io::Result<()> {
        if self.world.one_in(80) {
            self.world.trouble("reset at once", Duration::ZERO);
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
        match self.world.below(60) {
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
                return self.send(&auth_ok()).await;
            }
            _ => {}
        }
        let (pid, secret) = {
            let mut state = self.world.state();
            let secret = state.random.below(1 << 32) as u32;
            let signal = Arc::default();
            let session =
                Session { secret, running: None, signalled: false, signal, was_stopped: false };
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
        self.world.note(|| format!("session {pid} ends"));
        self.world.idle(pid);
        ended
    }

    async fn session(&mut self, pid: usize) -> io::Result<()> {
        let mut is_new = true;
        loop {
            let patience =
                if self.world.one_in(10) { self.world.delay(0, 20_000) } else { HOUR * 10 };
            if self.inbox.is_empty() {
                let Ok(filled) = timeout(patience, self.fill()).await else {
                    if self.world.one_in(3) {
                        self.world.count("something was said while idle");
                        self.send(&aside(&self.world)).await?;
                        continue;
                    }
                    match is_new {
                        true => drop(self.world.trouble("a new session ended", Duration::ZERO)),
                        false => self.world.count("a session ended while idle"),
                    }
                    if self.world.one_in(2) {
                        self.send(&error("FATAL", IDLE, "idle for too long")).await?;
                    }
                    return Ok(());
                };
                filled?;
            }
            let request = self.request().await?;
            is_new = false;
            match request {
                Request::Query(id) => {
                    if !self.answer(pid, id).await? {
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

    async fn request(&mut self) -> io::Result<Request> {
        let mut tags = Vec::new();
        let mut query = None;
        loop {
            let [tag] = self.take().await?;
            let len = u32::from_be_bytes(self.take().await?) as usize;
            let body = self.take_some(len - 4).await?;
            tags.push(tag);
            match (tag, &tags[..]) {
                (b'X', b"X") => return Ok(Request::Terminate),
                (b'Q', b"Q") => return Ok(Request::Ping),
                (b'P', _) => {
                    let text = String::from_utf8(body).unwrap();
                    let (_, name) = text.split_once("\"q").unwrap();
                    query = name.split('"').next().unwrap().parse().ok();
                }
                (b'S', b"PBDES") => return Ok(Request::Query(query.unwrap())),
                (_, b"PB" | b"PBD" | b"PBDE") => {}
                _ => panic!("{tags:?} was sent"),
            }
        }
    }

    /// Answers a query; returns whether the session goes on.
    async fn answer(&mut self, pid: usize, id: usize) -> io::Result<bool> {
        let (fate, mut answer) = Answer::make(&self.world, id);
        let signal = self.world.begin(pid, id, fate);
        let world = Arc::clone(&self.world);
        world.note(|| format!("session {pid} runs query {id}: {fate:?}"));
        if world.one_in(12) {
            let long = world.delay(0, 60_000);
            select! {
                biased;
                () = signal.notified() => {}
                () = sleep(long) => {}
            }
        }
        // At most so many pieces.
        let piece = self.pace.piece.max(answer.bytes.len() as u64 / 40);
        let mut at = 0;
        loop {
            if at < answer.stoppable && world.is_signalled(pid) {
                world.stopped(pid, id);
                answer.stop(at);
            }
            let end = answer.bytes.len().min(at + 1 + world.below(piece) as usize);
            // At ReadyForQuery, after which other messages may follow.
            if at < answer.ready && answer.ready <= end && answer.goes_on {
                self.expect_nothing();
                world.idle(pid);
            }
            {
                let query = &mut world.state().queries[id];
                query.sent = answer.rows_within(end);
                query.is_answered |= end >= 5 && answer.bytes[0] != b'E';
            }
            let began = Instant::now();
            self.send(&answer.bytes[at..end]).await?;
            if began.elapsed() > SLACK {
                world.count("the server was held up");
            }
            at = end;
            // Behind ReadyForQuery it reads at once: what it has not read, a cancel request may mean.
            if at == answer.bytes.len() {
                break;
            }
            self.breathe(Some(&signal)).await;
        }
        match self.world.query(id).fate {
            Fate::Silence => {
                let _ = self.silence().await;
                self.expect_nothing();
                Ok(false)
            }
            _ => Ok(answer.goes_on),
        }
    }

    /// Before an answer has ended, nothing is asked; at most the client goes.
    fn expect_nothing(&mut self) {
        let _ = self.fill().now_or_never();
        let inbox = &self.inbox;
        assert!(inbox.is_empty() || inbox == b"X\0\0\0\x04", "asked before the answer: {inbox:?}");
    }

    async fn cancel(&mut self, pid: &[u8], secret: &[u8]) -> io::Result<()> {
        let world = Arc::clone(&self.world);
        let pid = u32::from_be_bytes(pid.try_into().unwrap()) as usize;
        let session_secret = world.state().sessions[pid - 1].secret;
        assert_eq!(secret, session_secret.to_be_bytes(), "a key that nobody was given");
        let meant = world.running(pid);
        world.note(|| format!("cancel request to {pid}, which runs {meant:?}"));
        match world.below(12) {
            0 => {
                world.count("a cancel request was lost");
                return Ok(());
            }
            1 => {
                // Given up by the client, it may still arrive.
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
        world.signal(pid, meant);
        self.breathe(None).await;
        Ok(())
    }

    /// Waits a little, as it does; a signal ends that.
    async fn breathe(&mut self, signal: Option<&Notify>) {
        if !self.world.one_in([1, 4, 2, 16][self.pace.delay]) {
            return;
        }
        let pause = sleep(self.world.delay(0, self.pace.longest()));
        match signal {
            Some(signal) => select! {
                biased;
                () = signal.notified() => {}
                () = pause => {}
            },
            None => pause.await,
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.world.moved();
        self.socket.write_all(bytes).await?;
        self.world.moved();
        Ok(())
    }

    /// Says nothing more.
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

/// What may come at any time.
fn aside(world: &World) -> Vec<u8> {
    match world.below(3) {
        0 => fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "by the way")]),
        1 => message(b'S', b"TimeZone\0UTC\0"),
        _ => message(b'A', b"\0\0\0\x01channel\0\0"),
    }
}

/// The messages that answer a query.
struct Answer {
    bytes: Vec<u8>,
    /// Where messages end,
    ends: Vec<usize>,
    /// and rows.
    row_ends: Vec<usize>,
    /// From here on nothing is left to stop.
    stoppable: usize,
    /// The session waits for the next query behind it.
    goes_on: bool,
    /// Where ReadyForQuery ends, if the session continues.
    ready: usize,
}

impl Answer {
    fn make(world: &World, id: usize) -> (Fate, Self) {
        let mut answer = Self {
            bytes: Vec::new(),
            ends: vec![0],
            row_ends: Vec::new(),
            stoppable: 0,
            goes_on: true,
            ready: 0,
        };
        answer.push(&begin_json());
        for number in 1..=world.query(id).rows {
            if world.one_in(30) {
                answer.push(&aside(world));
            }
            answer.push(&row(&world.document(id, number)));
            answer.row_ends.push(answer.bytes.len());
        }
        answer.stoppable = answer.bytes.len();
        answer.push(&complete());
        // Between messages, or anywhere.
        let boundary = answer.ends[world.below(answer.ends.len() as u64) as usize];
        let anywhere = world.below(answer.bytes.len() as u64) as usize;
        let fate = match world.below(100) {
            0..10 => Fate::Error,
            10..16 => Fate::Fatal,
            16..24 => Fate::Cut,
            24..29 => Fate::Silence,
            _ => Fate::Whole,
        };
        match fate {
            Fate::Error => {
                answer.truncate(boundary);
                answer.bytes.extend(error("ERROR", DIVISION, "division by zero"));
            }
            Fate::Fatal => {
                answer.truncate(boundary);
                answer.bytes.extend(error("FATAL", SHUTDOWN, "shutting down"));
            }
            Fate::Cut | Fate::Silence => {
                answer.truncate(if world.one_in(2) { anywhere } else { boundary });
            }
            _ => {}
        }
        answer.goes_on = matches!(fate, Fate::Whole | Fate::Error);
        if answer.goes_on {
            answer.end();
            if world.one_in(20) {
                world.count("something was said behind an answer");
                answer.bytes.extend(aside(world));
            }
        }
        (fate, answer)
    }

    fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(message);
        self.ends.push(self.bytes.len());
    }

    fn end(&mut self) {
        self.bytes.extend(ready());
        self.ready = self.bytes.len();
    }

    fn truncate(&mut self, at: usize) {
        self.bytes.truncate(at);
        self.ends.retain(|end| *end <= at);
        self.row_ends.retain(|end| *end <= at);
        self.stoppable = self.stoppable.min(*self.ends.last().unwrap());
    }

    /// Stops it behind the message in which it is.
    fn stop(&mut self, at: usize) {
        let end = *self.ends.iter().find(|end| **end >= at).unwrap();
        self.truncate(end);
        self.bytes.extend(error("ERROR", "57014", "canceling statement due to user request"));
        self.end();
        (self.stoppable, self.goes_on) = (0, true);
    }

    fn rows_within(&self, end: usize) -> u64 {
        self.row_ends.partition_point(|row_end| *row_end <= end) as u64
    }
}
