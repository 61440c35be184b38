//! A whole session, from startup to the end of a second query, through the public API.

use std::{
    fs, io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, QueryStream, RawJson, Result, RetryPolicy,
    TargetSessionAttrs,
};
use futures_core::Stream;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::yield_now,
    time::timeout,
};

use super::{
    TempPath, assert_one_line, contains,
    scram::{MAX_ITERATIONS, signature},
};
use crate::scram::Keys;

/// Fuzzes the messages of a server. The input starts with what the client does (the bits below),
/// and the size of the pieces in which the messages are sent.
///
/// The server waits for the client after each ReadyForQuery and each request for an answer.
/// [`HANG_UP`], [`SILENCE`] and [`HASTE`] control the server itself. The client must finish in time
/// and without a panic. It must not return a row or an end that was not sent.
pub fn session(data: &[u8]) {
    play(data);
}

/// Rows are read one by one, with little memory.
const SMALL: u8 = 1;
/// The stream is dropped after its first row,
const DROPS: u8 = 1 << 1;
/// or cancelled,
const CANCELS: u8 = 1 << 2;
/// or paused and resumed.
const PAUSES: u8 = 1 << 3;
/// Rows are read in chunks.
const CHUNKS: u8 = 1 << 4;
/// A predicate on documents accepts all rows.
const FILTERS: u8 = 1 << 5;
/// The client checks the server's role, with the simple protocol.
const READ_WRITE: u8 = 1 << 6;
/// Protocol 3.2, and only the default limits.
const PROTOCOL_3_2: u8 = 1 << 7;

/// The server closes this connection. The next connection continues the script.
const HANG_UP: &[u8] = b"!\0\0\0\x04";
/// The server sends nothing more on this connection.
const SILENCE: &[u8] = b"?\0\0\0\x04";
/// The server does not wait after the next message.
const HASTE: &[u8] = b"+\0\0\0\x04";
/// In a challenge: replaced by the client's nonce, which has the same length.
const NONCE: &[u8] = &[b'N'; 24];
/// In the final message of SCRAM: replaced by the right signature, which has the same length.
const SIGNATURE: &[u8] = &[b'V'; 44];

const PASSWORD: &str = "pl4nted-secret";

/// The outcome of a session.
#[derive(Debug, Default)]
pub struct Outcome {
    pub connected: bool,
    /// The number of queries that completed, as the client reports.
    pub complete: usize,
    /// The number of rows that streams returned, including rows that are not documents.
    pub rows: usize,
    /// The errors that the client returned.
    pub errors: Vec<String>,
}

/// Runs a session, with the checks of [`session`].
pub fn play(data: &[u8]) -> Outcome {
    let Some((&[choices, pace], said)) = data.split_first_chunk() else {
        return Outcome::default();
    };
    // Time advances when all tasks are idle, so timeouts take no time.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let outcome = runtime.block_on(async {
        let server = Server::start(said.to_vec(), pace);
        let client = Client { choices, said, at: 0, outcome: Outcome::default() };
        // Longer than all deadlines of the client together.
        let outcome = timeout(Duration::from_secs(60), client.run(&server)).await;
        outcome.expect("the client ends by its deadlines")
    });
    check(&outcome, said);
    outcome
}

fn check(outcome: &Outcome, said: &[u8]) {
    let (mut let_in, mut ready, mut complete) = (0, 0, 0);
    // Whether columns were sent, and the end of their rows.
    let mut query = (false, false);
    for frame in frames(said) {
        match (frame[0], query) {
            (b'R', _) => let_in += usize::from(frame == b"R\0\0\0\x08\0\0\0\0"),
            (b'T', _) => query = (true, false),
            (b'C', (true, _)) if frame.ends_with(b"\0") => query = (true, true),
            (b'Z', (_, ended)) if frame == b"Z\0\0\0\x05I" => {
                ready += 1;
                complete += usize::from(ended);
                query = (false, false);
            }
            (b'E' | b'Z', _) => query = (false, false),
            _ => {}
        }
    }
    assert!(!outcome.connected || (let_in > 0 && ready > 0), "{outcome:?}");
    assert!(outcome.complete <= complete, "{complete} were complete: {outcome:?}");
    assert!(outcome.rows <= said.iter().filter(|b| **b == b'D').count(), "{outcome:?}");
    for error in &outcome.errors {
        // This error would hide that a task has panicked.
        assert!(!error.contains("runtime was shut down"), "{error}");
        assert!(!error.contains(PASSWORD) || contains(said, PASSWORD.as_bytes()), "{error}");
    }
}

/// The client, and the rows that it may return.
struct Client<'a> {
    choices: u8,
    said: &'a [u8],
    /// The position after the last returned row.
    at: usize,
    outcome: Outcome,
}

impl Client<'_> {
    async fn run(mut self, server: &Server) -> Outcome {
        match FraiseClient::connect_with_config(self.config(server)).await {
            Ok(client) => self.query(client).await,
            Err(e) => self.failed(&e),
        }
        self.outcome
    }

    fn config(&self, server: &Server) -> ConnectionConfig {
        let folder = server.folder.0.to_str().unwrap();
        if self.does(PROTOCOL_3_2) {
            let text = format!("host={folder} user=u password={PASSWORD} connect_timeout=5");
            return format!("{text} max_protocol_version=latest").parse().unwrap();
        }
        let attrs = match self.does(READ_WRITE) {
            true => TargetSessionAttrs::ReadWrite,
            false => TargetSessionAttrs::Any,
        };
        ConnectionConfig::builder()
            .host(folder)
            .port(PORT)
            .user("u")
            .password(PASSWORD)
            .target_session_attrs(attrs)
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(5))
            .cancel_timeout(Duration::from_secs(2))
            .drain_limit(64 << 10)
            .max_message_size(8 << 10)
            .max_scram_iterations(MAX_ITERATIONS)
            .retry(RetryPolicy::none())
            .build()
            .unwrap()
    }

    fn does(&self, choice: u8) -> bool {
        self.choices & choice != 0
    }

    async fn query(&mut self, client: FraiseClient) {
        self.outcome.connected = true;
        let mut query = client.query::<RawJson>("v").timeout(Duration::from_secs(20));
        if self.does(SMALL) {
            query = query.chunk_size(1).max_memory(MEMORY);
        }
        if self.does(FILTERS) {
            query = query.where_rust(|_| true);
        }
        match query.execute().await {
            Ok(stream) => self.read(stream).await,
            Err(e) => self.failed(&e),
        }
        // A second query, after whatever the first one has left.
        let query = client.query::<Value>("v").timeout(Duration::from_secs(20));
        match query.fetch_all().await {
            Ok(rows) => {
                self.outcome.complete += 1;
                self.outcome.rows += rows.len();
            }
            Err(e) => self.failed(&e),
        }
        if let Err(e) = client.close().await {
            self.failed(&e);
        }
    }

    async fn read(&mut self, mut stream: QueryStream<RawJson>) {
        loop {
            let item: Option<Result<()>> = match self.does(CHUNKS) {
                true => stream.next_chunk().await.map(|chunk| {
                    let chunk = chunk?;
                    chunk.rows().for_each(|row| self.row(row));
                    Ok(())
                }),
                false => next(&mut stream).await.map(|row| {
                    let row = row?;
                    assert!(std::str::from_utf8(row.as_bytes()).is_ok(), "{row:?}");
                    self.row(row.as_bytes());
                    Ok(())
                }),
            };
            match item {
                Some(Ok(())) => {}
                Some(Err(e)) if e.is_row_error() => self.outcome.rows += 1,
                Some(Err(e)) => {
                    self.failed(&e);
                    break;
                }
                None => {
                    self.outcome.complete += 1;
                    break;
                }
            }
            if self.does(PAUSES) {
                // The stream may have ended before either of these.
                let _ = stream.pause().await;
                let _ = stream.resume().await;
            }
            if self.does(DROPS) {
                return;
            }
            if self.does(CANCELS) {
                if let Err(e) = stream.cancel().await {
                    self.failed(&e);
                }
                break;
            }
        }
        assert!(next(&mut stream).await.is_none(), "something is behind the end");
        let stats = stream.stats();
        super::stats::assert_consistent(&stats);
        if self.does(SMALL) {
            assert!(stats.peak_memory <= MEMORY + MAX_READ, "{stats:?}");
        }
    }

    /// Checks that a returned row was sent, after the previous one.
    fn row(&mut self, document: &[u8]) {
        let len = u32::try_from(document.len()).unwrap();
        let rest = &self.said[self.at..];
        let end_of = |len: u32, value_len: i32, value: &[u8]| {
            let len = len.to_be_bytes();
            let value_len = value_len.to_be_bytes();
            let frame = [b"D", &len[..], &[0, 1], &value_len, value].concat();
            let at = rest.windows(frame.len()).position(|window| window == frame)?;
            Some(at + frame.len())
        };
        let as_text = end_of(len + 10, len as i32, document);
        let as_null = Some(document).filter(|d| *d == b"null").and_then(|_| end_of(10, -1, b""));
        let end = [as_text, as_null].into_iter().flatten().min();
        self.at += end.unwrap_or_else(|| panic!("nobody said {}", document.escape_ascii()));
        self.outcome.rows += 1;
    }

    fn failed(&mut self, error: &Error) {
        assert_one_line(error);
        self.outcome.errors.push(error.to_string());
    }
}

/// Returns all frames, including those that control the server.
fn frames(said: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut script = Script { said: said.to_vec(), at: 0 };
    std::iter::from_fn(move || script.next())
}

async fn next(stream: &mut QueryStream<RawJson>) -> Option<Result<RawJson>> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// The memory of a small stream.
const MEMORY: usize = 4 << 10;

/// The size of one read, by which a stream may exceed its memory.
const MAX_READ: usize = 64 << 10;

/// The server. It uses a Unix socket, because thousands of sessions per minute would use up the TCP
/// ports.
struct Server {
    folder: TempPath,
}

const PORT: u16 = 5432;

impl Server {
    fn start(said: Vec<u8>, pace: u8) -> Self {
        let folder = TempPath::new();
        fs::create_dir(&folder.0).unwrap();
        let listener = UnixListener::bind(folder.0.join(format!(".s.PGSQL.{PORT}"))).unwrap();
        let script = Arc::new(Mutex::new(Script { said, at: 0 }));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(Peer { socket, pace, unsent: Vec::new() }.serve(script.clone()));
            }
        });
        Self { folder }
    }
}

/// The messages that are not sent yet. All connections share them.
struct Script {
    said: Vec<u8>,
    at: usize,
}

impl Script {
    /// Returns the next message, or all remaining bytes if they are not a message.
    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = self.said.get(self.at..).filter(|rest| !rest.is_empty())?;
        let len = rest.get(1..5).map(|len| u32::from_be_bytes(len.try_into().unwrap()) as usize);
        let frame = len.filter(|len| *len >= 4).and_then(|len| rest.get(..len + 1)).unwrap_or(rest);
        self.at += frame.len();
        Some(frame.to_vec())
    }
}

/// The server's side of a connection.
struct Peer {
    socket: UnixStream,
    pace: u8,
    unsent: Vec<u8>,
}

impl Peer {
    async fn serve(mut self, script: Arc<Mutex<Script>>) -> io::Result<()> {
        let startup = self.read_body().await?;
        // The answer to a cancel request is the end of the connection.
        if startup.starts_with(&80_877_102u32.to_be_bytes()) {
            return Ok(());
        }
        let mut scram = Scram::default();
        let mut hastes = false;
        loop {
            let frame = script.lock().unwrap().next();
            let Some(mut frame) = frame.filter(|frame| frame != HANG_UP) else { break };
            if frame == SILENCE {
                self.send().await?;
                return self.read_to_end().await;
            }
            if frame == HASTE {
                hastes = true;
                continue;
            }
            let request = frame.get(5..9).filter(|_| frame[0] == b'R').map(|code| code[3]);
            match request {
                Some(11) => scram.challenge(&mut frame),
                Some(12) => scram.last_word(&mut frame),
                _ => {}
            }
            self.unsent.append(&mut frame);
            if std::mem::take(&mut hastes) {
                continue;
            }
            match (request, self.unsent.ends_with(b"Z\0\0\0\x05I")) {
                (Some(3 | 5), _) => drop(self.answer().await?),
                (Some(10), _) => scram.client_first = self.answer().await?,
                (Some(11), _) => scram.client_final = self.answer().await?,
                (None, true) => while !matches!(self.next_tag().await?, b'S' | b'Q') {},
                _ => {}
            }
        }
        self.send().await?;
        self.socket.shutdown().await?;
        // With unread bytes, closing the socket would reset the connection.
        self.read_to_end().await
    }

    async fn send(&mut self) -> io::Result<()> {
        let size = match self.pace {
            0 => usize::MAX,
            size => size.into(),
        };
        for piece in self.unsent.chunks(size) {
            self.socket.write_all(piece).await?;
            yield_now().await;
        }
        self.unsent.clear();
        Ok(())
    }

    /// Returns the client's answer, as text.
    async fn answer(&mut self) -> io::Result<String> {
        self.send().await?;
        self.socket.read_u8().await?;
        let body = self.read_body().await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Returns the tag of the client's next message.
    async fn next_tag(&mut self) -> io::Result<u8> {
        self.send().await?;
        let tag = self.socket.read_u8().await?;
        self.read_body().await?;
        Ok(tag)
    }

    async fn read_body(&mut self) -> io::Result<Vec<u8>> {
        let len = self.socket.read_u32().await? as usize;
        let mut body = vec![0; len - 4];
        self.socket.read_exact(&mut body).await?;
        Ok(body)
    }

    async fn read_to_end(&mut self) -> io::Result<()> {
        while self.socket.read(&mut [0; 1024]).await? > 0 {}
        Ok(())
    }
}

/// The SCRAM messages of a login.
#[derive(Default)]
struct Scram {
    client_first: String,
    server_first: String,
    client_final: String,
}

impl Scram {
    fn challenge(&mut self, frame: &mut [u8]) {
        if let Some((_, nonce)) = self.client_first.split_once("r=") {
            put(frame, NONCE, nonce);
        }
        self.server_first = String::from_utf8_lossy(&frame[9..]).into_owned();
    }

    fn last_word(&self, frame: &mut [u8]) {
        if let Some(signature) = self.signature() {
            put(frame, SIGNATURE, &signature);
        }
    }

    fn signature(&self) -> Option<String> {
        let attribute = |name| self.server_first.split(',').find_map(|a| a.strip_prefix(name));
        let salt = BASE64.decode(attribute("s=")?).ok()?;
        let iterations = attribute("i=")?.parse().ok().filter(|i| *i <= MAX_ITERATIONS)?;
        let keys = Keys::derive(PASSWORD, &salt, iterations).ok()?;
        let client_first = self.client_first.get(self.client_first.find("n,,")?..)?;
        Some(signature(&keys, client_first, &self.server_first, &self.client_final))
    }
}

/// Replaces `place` by `text`, if the frame contains it and it has the same length.
fn put(frame: &mut [u8], place: &[u8], text: &str) {
    let at = frame.windows(place.len()).position(|window| window == place);
    if let Some(at) = at.filter(|_| text.len() == place.len()) {
        frame[at..at + place.len()].copy_from_slice(text.as_bytes());
    }
}
