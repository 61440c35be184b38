//! A whole session, from the start-up to the end of a second query, through the public API.

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

/// Any bytes as what a server says: what the client does (the bits below), in pieces of how many bytes,
/// then what is said.
///
/// The server waits for the client behind each ReadyForQuery and each request for an answer; [`HANG_UP`],
/// [`SILENCE`] and [`HASTE`] are for the server itself. Whatever it says, the client ends in its time and
/// in order, and believes in no row and no end that was not said.
pub fn session(data: &[u8]) {
    play(data);
}

/// Rows are taken one by one, and there is room for few.
const SMALL: u8 = 1;
/// The stream is dropped behind its first row,
const DROPS: u8 = 1 << 1;
/// or cancelled,
const CANCELS: u8 = 1 << 2;
/// or paused and resumed.
const PAUSES: u8 = 1 << 3;
/// Rows are read by the chunk.
const CHUNKS: u8 = 1 << 4;
/// There is a predicate on documents, which all pass.
const FILTERS: u8 = 1 << 5;
/// The server is asked by the simple protocol whether it will do.
const READ_WRITE: u8 = 1 << 6;
/// Protocol 3.2, and no limits but those that are the default.
const PROTOCOL_3_2: u8 = 1 << 7;

/// Ends this connection; the next one goes on.
const HANG_UP: &[u8] = b"!\0\0\0\x04";
/// Says nothing more on this connection.
const SILENCE: &[u8] = b"?\0\0\0\x04";
/// Does not wait behind the next message.
const HASTE: &[u8] = b"+\0\0\0\x04";
/// In a challenge: the client's nonce, which is as long.
const NONCE: &[u8] = &[b'N'; 24];
/// In the last word of SCRAM: the right signature, which is as long.
const SIGNATURE: &[u8] = &[b'V'; 44];

const PASSWORD: &str = "pl4nted-secret";

/// What has become of a session.
#[derive(Debug, Default)]
pub struct Outcome {
    pub connected: bool,
    /// Queries that have ended well, as the client says.
    pub complete: usize,
    /// Rows that came out of streams, those included that are no documents.
    pub rows: usize,
    /// What else came out.
    pub errors: Vec<String>,
}

/// Runs a session, with the checks of [`session`].
pub fn play(data: &[u8]) -> Outcome {
    let Some((&[choices, pace], said)) = data.split_first_chunk() else {
        return Outcome::default();
    };
    // Time passes when there is nothing else to do, so nobody waits for it.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let outcome = runtime.block_on(async {
        let server = Server::start(said.to_vec(), pace);
        let client = Client { choices, said, at: 0, outcome: Outcome::default() };
        // More than all the client's deadlines together.
        let outcome = timeout(Duration::from_secs(60), client.run(&server)).await;
        outcome.expect("the client ends by its deadlines")
    });
    check(&outcome, said);
    outcome
}

fn check(outcome: &Outcome, said: &[u8]) {
    let (mut let_in, mut ready, mut complete) = (0, 0, 0);
    // Whether there were columns, and the end of their rows.
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
        // Of a task that panicked, no more is heard.
        assert!(!error.contains("runtime was shut down"), "{error}");
        assert!(!error.contains(PASSWORD) || contains(said, PASSWORD.as_bytes()), "{error}");
    }
}

/// The client, and what is expected of it.
struct Client<'a> {
    choices: u8,
    said: &'a [u8],
    /// Behind the last row that came.
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
        // Another one, behind whatever the first has left.
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
                // Either may find the stream at its end.
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

    /// A row that came was said, behind the one before it.
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

/// All the messages, the server's own included.
fn frames(said: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut script = Script { said: said.to_vec(), at: 0 };
    std::iter::from_fn(move || script.next())
}

async fn next(stream: &mut QueryStream<RawJson>) -> Option<Result<RawJson>> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// The memory of a small stream.
const MEMORY: usize = 4 << 10;

/// One read, which a stream may hold beyond its memory.
const MAX_READ: usize = 64 << 10;

/// The server: a Unix socket, because thousands of sessions a minute would leave TCP without ports.
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

/// What is still to be said, by whichever connection comes to it.
struct Script {
    said: Vec<u8>,
    at: usize,
}

impl Script {
    /// The next message, or all the rest when that is not one.
    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = self.said.get(self.at..).filter(|rest| !rest.is_empty())?;
        let len = rest.get(1..5).map(|len| u32::from_be_bytes(len.try_into().unwrap()) as usize);
        let frame = len.filter(|len| *len >= 4).and_then(|len| rest.get(..len + 1)).unwrap_or(rest);
        self.at += frame.len();
        Some(frame.to_vec())
    }
}

/// The server's end of a connection.
struct Peer {
    socket: UnixStream,
    pace: u8,
    unsent: Vec<u8>,
}

impl Peer {
    async fn serve(mut self, script: Arc<Mutex<Script>>) -> io::Result<()> {
        let startup = self.read_body().await?;
        // A cancel request: its answer is the end.
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
        // Unread bytes would make a reset of the end.
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

    /// What the client answers, as text.
    async fn answer(&mut self) -> io::Result<String> {
        self.send().await?;
        self.socket.read_u8().await?;
        let body = self.read_body().await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The kind of the client's next message.
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

/// What was said of SCRAM.
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

/// Puts a text in its place, where that is, and is as long.
fn put(frame: &mut [u8], place: &[u8], text: &str) {
    let at = frame.windows(place.len()).position(|window| window == place);
    if let Some(at) = at.filter(|_| text.len() == place.len()) {
        frame[at..at + place.len()].copy_from_slice(text.as_bytes());
    }
}
