//! Hostile servers: every message of a session is malformed, cut, omitted, repeated and replaced by
//! every other, and floods never end. The client never hangs, never panics, and never presents an
//! incomplete result as complete.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use crate::support::{
    events::Events,
    scripted::{self, Scripted, Step},
};
use fraiseql_wire::{Error, ErrorCategory, FraiseClient, TimeoutPhase, sqlstate};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::timeout,
};

/// The messages of a server: during the login, and in answer to the query. Then it closes.
#[derive(Clone)]
struct Session {
    login: Vec<Vec<u8>>,
    answer: Vec<Vec<u8>>,
}

/// Returns a session like that of Postgres, with all messages that may come at any time.
fn session() -> Session {
    let key = scripted::message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
    let parameter = scripted::message(b'S', b"server_version\x0018.4\0");
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "hello")]);
    let notification = scripted::message(b'A', b"\0\0\0\x07channel\0payload\0");
    let begin = [
        scripted::message(b'1', b""),
        scripted::message(b'2', b""),
        scripted::begin_json()[10..].to_vec(),
    ];
    let rows = ["1", "22", "333"].map(scripted::row);
    let [one, two, three] = rows;
    let [parsed, bound, columns] = begin;
    Session {
        login: vec![scripted::auth_ok(), parameter.clone(), key, scripted::ready()],
        answer: vec![
            parsed,
            bound,
            columns,
            one,
            notice,
            two,
            parameter,
            three,
            notification,
            scripted::complete(),
            scripted::ready(),
        ],
    }
}

/// Replays sessions: each connection gets the one that is set.
struct Liar {
    address: SocketAddr,
    said: Arc<Mutex<Session>>,
}

impl Liar {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(session()));
        let shared = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let session = shared.lock().await.clone();
                tokio::spawn(play(socket, session));
            }
        });
        Self { address, said }
    }

    /// Runs a query in this session. Returns the received rows, and the error, also that of
    /// connecting.
    async fn run(&self, what: &str, session: &Session) -> (Vec<u64>, Option<Error>) {
        *self.said.lock().await = session.clone();
        let url = format!("postgres://u@{}/d?sslmode=disable", self.address);
        let run = async {
            let client = match FraiseClient::connect(&url).await {
                Ok(client) => client,
                Err(e) => return (Vec::new(), Some(e)),
            };
            let mut stream = match client.query::<u64>("v").execute().await {
                Ok(stream) => stream,
                Err(e) => return (Vec::new(), Some(e)),
            };
            let (mut rows, mut error) = (Vec::new(), None);
            while let Some(row) = stream.next().await {
                match row {
                    Ok(row) => rows.push(row),
                    Err(e) if e.is_row_error() => rows.push(0),
                    Err(e) => error = Some(e),
                }
            }
            (rows, error)
        };
        timeout(Duration::from_secs(60), run).await.unwrap_or_else(|_| panic!("{what}: it hangs"))
    }

    /// A result is complete only if it has all rows that were sent completely, up to
    /// CommandComplete.
    async fn check(&self, what: &str, session: &Session) {
        let (rows, error) = self.run(what, session).await;
        let sent: Vec<u64> = session.answer.iter().filter_map(|message| row_in(message)).collect();
        assert!(sent.starts_with(&rows), "{what}: {rows:?} of {sent:?}");
        if error.is_none() {
            assert_eq!(rows, sent, "{what}: that was not all");
        }
        if let Some(error) = error {
            let line = error.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{what}: {line:?}");
        }
    }
}

async fn play(mut socket: TcpStream, session: Session) -> Option<()> {
    let len = socket.read_u32().await.ok()?;
    if len == 16 {
        // A cancel request.
        return None;
    }
    socket.read_exact(&mut vec![0; len as usize - 4]).await.ok()?;
    let login = session.login.concat();
    socket.write_all(&login).await.ok()?;
    // The client may wait forever for the rest of a malformed login.
    while login == self::session().login.concat() {
        let tag = socket.read_u8().await.ok()?;
        let len = socket.read_u32().await.ok()?;
        socket.read_exact(&mut vec![0; len as usize - 4]).await.ok()?;
        if tag == b'S' {
            break;
        }
    }
    socket.write_all(&session.answer.concat()).await.ok()?;
    socket.shutdown().await.ok()?;
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.ok().map(drop)
}

/// Returns the number in a complete DataRow of one column, or 0 if it is not a number. `None` for
/// any other message.
fn row_in(message: &[u8]) -> Option<u64> {
    let (&tag, rest) = message.split_first()?;
    let (len, body) = rest.split_first_chunk::<4>()?;
    let columns = body.get(..2)?;
    let value = body.get(6..)?;
    let value_len = body.get(2..6)?;
    let whole = u32::from_be_bytes(*len) as usize == body.len() + 4
        && columns == [0, 1]
        && u32::from_be_bytes(value_len.try_into().ok()?) as usize == value.len();
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    (tag == b'D' && whole).then_some(number.unwrap_or(0))
}

/// Returns both parts of a session.
fn parts(session: &mut Session) -> [&mut Vec<Vec<u8>>; 2] {
    [&mut session.login, &mut session.answer]
}

#[tokio::test]
async fn unchanged_session_is_valid() {
    let liar = Liar::start().await;
    let (rows, error) = liar.run("as it is", &session()).await;
    assert!(error.is_none() && rows == [1, 22, 333], "{rows:?} {error:?}");
}

/// With a length that fits, and with the original one.
#[tokio::test]
async fn every_message_cut_at_every_byte_is_an_error() {
    let liar = Liar::start().await;
    for half in 0..2 {
        for i in 0..parts(&mut session())[half].len() {
            let whole = parts(&mut session())[half][i].clone();
            for len in 0..whole.len() {
                let mut cut = session();
                parts(&mut cut)[half][i].truncate(len);
                // The next messages fill it up, and what follows is not a message.
                let (rows, error) =
                    liar.run(&format!("{half}, {i} cut to {len} bytes"), &cut).await;
                let whole = len == 0 && rows.len() >= 2;
                assert!(error.is_some() || whole, "{half}, {i} cut to {len} bytes: {rows:?}");
                if len >= 5 {
                    let fitting = u32::try_from(len - 1).unwrap().to_be_bytes();
                    parts(&mut cut)[half][i][1..5].copy_from_slice(&fitting);
                    liar.check(&format!("{half}, {i} made {len} bytes long"), &cut).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn every_changed_byte_is_at_most_an_error() {
    let liar = Liar::start().await;
    for half in 0..2 {
        for i in 0..parts(&mut session())[half].len() {
            for at in 0..parts(&mut session())[half][i].len() {
                for byte in [0, 0x7f, 0x80, 0xff] {
                    let mut changed = session();
                    parts(&mut changed)[half][i][at] = byte;
                    // The bytes after a changed length are not checked.
                    let what = format!("{half}, {i}: byte {at} is {byte}");
                    let (rows, error) = liar.run(&what, &changed).await;
                    assert!(error.is_some() || rows.len() == 3, "{what}: {rows:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn omitted_repeated_and_misplaced_messages_never_complete_a_result() {
    let liar = Liar::start().await;
    let mut others: Vec<Vec<u8>> =
        parts(&mut session()).into_iter().flat_map(|m| m.clone()).collect();
    others.extend([
        scripted::error("ERROR", "XX000", "oops"),
        scripted::error("FATAL", "57P01", "bye"),
        scripted::message(b'I', b""),
        scripted::message(b'n', b""),
        scripted::message(b's', b""),
        scripted::message(b'G', b"\0\0\0"),
        scripted::message(b'H', b"\0\0\0"),
        scripted::message(b'v', b"\0\0\0\0\0\0\0\0"),
        scripted::message(b'R', b"\0\0\0\x05salt"),
        scripted::message(b'T', b"\0\0"),
        scripted::message(b'\0', b""),
        scripted::message(b'D', b"\0\x01\0\0\0\x02{}"),
    ]);
    for half in 0..2 {
        let messages = parts(&mut session())[half].len();
        for i in 0..messages {
            let mut without = session();
            parts(&mut without)[half].remove(i);
            let (_, error) = liar.run(&format!("{half}, {i} left out"), &without).await;
            let is_free =
                matches!(parts(&mut session())[half][i][0], b'N' | b'S' | b'A' | b'D' | b'K');
            assert_eq!(error.is_none(), is_free, "{half}, {i} left out: {error:?}");

            let mut twice = session();
            let again = parts(&mut twice)[half][i].clone();
            parts(&mut twice)[half].insert(i, again);
            liar.check(&format!("{half}, {i} twice"), &twice).await;

            for (n, other) in others.iter().enumerate() {
                let mut replaced = session();
                parts(&mut replaced)[half][i] = other.clone();
                liar.check(&format!("{half}, {i} replaced by {n}"), &replaced).await;
                let mut inserted = session();
                parts(&mut inserted)[half].insert(i, other.clone());
                liar.check(&format!("{half}, {n} before {i}"), &inserted).await;
            }
        }
    }
}

/// Unreasonable lengths are rejected before the client waits or allocates memory.
#[tokio::test]
async fn unreasonable_lengths_are_rejected_immediately() {
    let liar = Liar::start().await;
    for half in 0..2 {
        for i in 0..parts(&mut session())[half].len() {
            for len in [0u32, 3, 0x4000_0001, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
                let mut lying = session();
                parts(&mut lying)[half][i][1..5].copy_from_slice(&len.to_be_bytes());
                let (_, error) = liar.run(&format!("{half}, {i}: length {len}"), &lying).await;
                let category = error.unwrap().category();
                // The first one may be the error of a server before version 3 of the protocol.
                let expected = [ErrorCategory::Protocol, ErrorCategory::ConnectionClosed];
                let attempts = ErrorCategory::Connection;
                assert!(
                    expected.contains(&category) || category == attempts,
                    "{half}, {i}: {category:?}"
                );
            }
        }
    }
}

/// `max_memory` also limits other messages: the header alone does not allocate more.
#[tokio::test]
async fn max_memory_also_limits_other_messages() {
    let liar = Liar::start().await;
    let mut large = session();
    // One row, then an incomplete message of 8 MiB, of a kind that is never that long. (Part of a
    // long error or notice is kept.)
    large.answer.truncate(4);
    large.answer.push([&b"C"[..], &(8u32 << 20).to_be_bytes(), b"SELECT "].concat());
    *liar.said.lock().await = large;
    let url = format!("postgres://u@{}/d?sslmode=disable", liar.address);
    let client = FraiseClient::connect(&url).await.unwrap();
    let mut stream = client.query::<u64>("v").max_memory(4096).execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(
        matches!(error, Error::MemoryLimitExceeded { limit: 4096, required } if required > 8 << 20),
        "{error:?}"
    );
    let held = stream.stats().peak_memory;
    assert!(held <= 4096 + (64 << 10), "{held}");
}

/// Endless messages that are not rows end by the deadline, and are not kept.
#[tokio::test]
async fn floods_end_at_the_deadline() {
    let notice =
        scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', &"x".repeat(1000))]);
    let parameter = scripted::message(b'S', &[b"p\0".as_slice(), &[b'x'; 1000], b"\0"].concat());
    let error = scripted::error("ERROR", "XX000", &"x".repeat(1000));
    for (what, flood) in [("notices", &notice), ("parameters", &parameter), ("errors", &error)] {
        let (blocked, _) = tokio::sync::oneshot::channel();
        let mut script = scripted::login();
        script.extend([
            Step::ExpectQuery,
            Step::Send(scripted::begin_json()),
            Step::Flood(flood.clone(), usize::MAX, blocked),
        ]);
        let server = Scripted::start(vec![script]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let query = client.query::<u64>("v").timeout(Duration::from_millis(300));
        let mut stream = query.execute().await.unwrap();
        let end = timeout(Duration::from_secs(60), stream.next()).await;
        match end.unwrap_or_else(|_| panic!("{what}: it goes on")).unwrap() {
            Err(Error::Timeout { phase: TimeoutPhase::Query, .. }) => {}
            // The first of many errors is returned.
            Err(Error::Server(e)) if what == "errors" => assert_eq!(e.code().code(), "XX000"),
            other => panic!("{what}: {other:?}"),
        }
        drop((stream, client));

        let (blocked, _) = tokio::sync::oneshot::channel();
        let script = vec![
            Step::ExpectStartup,
            Step::Send(scripted::auth_ok()),
            Step::Flood(flood.clone(), usize::MAX, blocked),
        ];
        let server = Scripted::start(vec![script]).await;
        let url = server.url().replace("connect_timeout=20", "connect_timeout=1");
        let connected = timeout(Duration::from_secs(60), FraiseClient::connect(&url)).await;
        connected.unwrap_or_else(|_| panic!("{what}: connecting goes on")).unwrap_err();
    }
}

/// If a column is described as one type and sent as another, the result is what was sent, or an
/// error per row.
#[tokio::test]
async fn false_row_description_is_an_error_per_row() {
    let liar = Liar::start().await;
    let mut lying = session();
    lying.answer[3] = scripted::row("not json");
    let (rows, error) = liar.run("not json", &lying).await;
    assert!(error.is_none() && rows == [0, 22, 333], "{rows:?} {error:?}");
    // Two columns although one was described.
    lying.answer[3] = scripted::message(b'D', b"\0\x02\0\0\0\x011\0\0\0\x012");
    let (rows, error) = liar.run("two columns", &lying).await;
    assert!(rows.is_empty() && error.unwrap().category() == ErrorCategory::Protocol);
}

/// The texts of a server's error are kept and shown up to a limit, for each field and for their
/// number.
#[tokio::test]
async fn error_texts_are_truncated() {
    const KEPT: usize = 8 << 10;
    let liar = Liar::start().await;
    // Characters of three bytes, so that the limit falls within one.
    let long = format!("begins {}", "\u{20ac}".repeat(1 << 20));
    let texts = [b'M', b'D', b'H', b'q', b'W', b's', b't', b'c', b'd', b'n', b'F', b'R'];
    let mut fields = vec![(b'S', &*long), (b'V', &*long), (b'C', "22012")];
    fields.extend(texts.iter().map(|field| (*field, "short")));
    for field in texts {
        let mut lying = session();
        let mut fields = fields.clone();
        fields.iter_mut().filter(|(f, _)| *f == field).for_each(|(_, text)| *text = &long);
        lying.answer[5] = scripted::fields(b'E', &fields);
        let (rows, error) = liar.run(char::from(field).encode_utf8(&mut [0; 4]), &lying).await;
        let error = error.unwrap();
        assert_eq!((rows, error.category()), (vec![1], ErrorCategory::Server), "{error}");
        assert!(error.to_string().len() < 5 * KEPT, "{} bytes are shown", error.to_string().len());
        let e = error.as_db_error().unwrap();
        let kept = [
            Some(e.message()),
            e.detail(),
            e.hint(),
            e.internal_query(),
            e.where_(),
            e.schema(),
            e.table(),
            e.column(),
            e.data_type(),
            e.constraint(),
            e.file(),
            e.routine(),
            Some(e.severity()),
        ];
        for (kept, f) in kept.iter().zip(texts.iter().chain([&b'V'])) {
            let kept = kept.unwrap();
            if *f != field && *f != b'V' {
                assert_eq!(kept, "short");
                continue;
            }
            assert!(long.starts_with(kept) && kept.len() <= KEPT && kept.len() > KEPT - 3);
        }
    }

    // Every text is huge. `Debug` writes each once, and escapes control characters in those that
    // `Display` omits: at most six bytes for one.
    let control = "\u{1f}".repeat(1 << 20);
    for (text, escaped) in [(&long, 1), (&control, 6)] {
        let mut fields: Vec<_> = texts.iter().map(|field| (*field, &**text)).collect();
        fields.extend([(b'S', &**text), (b'V', &**text), (b'C', "22012")]);
        let mut lying = session();
        lying.answer[5] = scripted::fields(b'E', &fields);
        let (_, error) = liar.run("every text", &lying).await;
        let shown = format!("{:?}", error.unwrap()).len();
        assert!(shown < (4 + 9 * escaped) * KEPT + 1024, "{shown} bytes are shown");
    }

    // A text of the maximum length is complete. A text without characters is still shown.
    let fits = "x".repeat(KEPT);
    let mut lying = session();
    lying.answer[5] = scripted::error("ERROR", "22012", &fits);
    let (_, error) = liar.run("it fits", &lying).await;
    assert_eq!(error.unwrap().as_db_error().unwrap().message(), fits);
    let mut message = scripted::error("ERROR", "22012", &"x".repeat(3 * KEPT));
    message.iter_mut().filter(|byte| **byte == b'x').for_each(|byte| *byte = 0xff);
    lying.answer[5] = message;
    let (_, error) = liar.run("no characters", &lying).await;
    let error = error.unwrap();
    let kept = error.as_db_error().unwrap().message().to_owned();
    assert!(kept.len() <= KEPT && kept.chars().all(|c| c == '\u{fffd}'), "{kept:?}");

    // The same without an SQLSTATE, as other engines send it.
    lying.answer[5] = scripted::fields(b'E', &[(b'S', "ERROR"), (b'M', &long)]);
    let (_, error) = liar.run("no SQLSTATE", &lying).await;
    let error = error.unwrap();
    assert_eq!(error.sqlstate(), Some(&sqlstate::INTERNAL_ERROR), "{error}");
    assert!(error.to_string().len() < 2 * KEPT, "{} bytes are shown", error.to_string().len());
}

/// In version 3.0, a cancel key has four bytes.
#[tokio::test]
async fn cancel_keys_of_invalid_length_are_rejected() {
    let liar = Liar::start().await;
    for len in [0, 1, 3, 5, 8, 256, 300, 20_000] {
        let mut lying = session();
        let body = [&[0, 0, 0, 77][..], &vec![1; len]].concat();
        lying.login[2] = scripted::message(b'K', &body);
        let (_, error) = liar.run(&format!("a key of {len} bytes"), &lying).await;
        assert!(error.is_some(), "a key of {len} bytes");
    }
}

/// Characters that reorder, hide or break what a terminal or a log shows (CVE-2021-42574), and an
/// escape sequence of a terminal.
const MISLEADING: &str = "a\u{202e}b\u{2066}c\u{200f}d\u{61c}e\u{200b}f\u{2028}g\u{85}h\u{feff}i\
                          \u{9b}2Jj\u{1b}[2Jk\rl\nm\u{e0041}n";

#[track_caller]
fn check_shown(what: &str, shown: &str) {
    for c in MISLEADING.chars().filter(|c| !c.is_ascii_graphic()) {
        assert!(!shown.contains(c), "{what} shows {c:?}: {shown:?}");
    }
}

/// Every text of a server that reaches an error, its cause, or an event.
#[tokio::test]
async fn server_texts_cannot_forge_log_output() {
    let (events, _guard) = Events::listen();
    let fields = |tag, severity, code| {
        let text = MISLEADING;
        let all = [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text), (b'D', text)];
        scripted::fields(tag, &[&all[..], &[(b'H', text), (b'W', text), (b't', text)]].concat())
    };
    let body = |parts: &[&[u8]]| parts.concat();
    let text = MISLEADING.as_bytes();
    let reports = [
        fields(b'N', "NOTICE", "00000"),
        fields(b'N', "WARNING", "01000"),
        fields(b'N', MISLEADING, "01000"),
        scripted::message(b'S', &body(&[text, b"\0", text, b"\0"])),
        scripted::message(b'S', &body(&[b"client_encoding\0UTF8\0"])),
        scripted::message(b'A', &body(&[b"\0\0\0\x07", text, b"\0", text, b"\0"])),
    ];
    let document = serde_json::json!({MISLEADING: {"n": "x"}}).to_string();
    let cases: [(&str, bool, Vec<u8>); 14] = [
        ("refused", false, fields(b'E', "FATAL", "28P01")),
        ("not now", false, fields(b'E', "FATAL", "57P03")),
        ("a text without a length", false, body(&[b"E", "\u{202e}a\u{200b}b".as_bytes(), b"\0"])),
        ("no SQLSTATE", false, fields(b'E', "FATAL", "")),
        ("mechanisms", false, scripted::message(b'R', &body(&[b"\0\0\0\x0a", text, b"\0\0"]))),
        ("SQLSTATE", false, fields(b'E', "FATAL", MISLEADING)),
        (
            "options",
            false,
            scripted::message(b'v', &body(&[&[0, 3, 0, 0, 0, 0, 0, 1], text, b"\0"])),
        ),
        ("a severity", true, fields(b'E', MISLEADING, "22012")),
        ("an error", true, fields(b'E', "ERROR", "22012")),
        ("an error that ends the session", true, fields(b'E', "FATAL", "57P01")),
        ("a column", true, scripted::begin(&[(MISLEADING, 25)])),
        ("columns", true, scripted::begin(&[(MISLEADING, 25), (MISLEADING, 3802)])),
        ("a key", true, body(&[&scripted::begin_json(), &scripted::row(&document)])),
        ("an encoding", true, scripted::message(b'S', &body(&[b"client_encoding\0", text, b"\0"]))),
    ];
    for (case, logged_in, bytes) in cases {
        let script = match logged_in {
            false => vec![Step::ExpectStartup, Step::Send(bytes)],
            true => {
                let mut script = scripted::login();
                script.extend([Step::ExpectQuery, Step::Send([reports.concat(), bytes].concat())]);
                script
            }
        };
        let server = Scripted::start(vec![script]).await;
        let run = async {
            let client = FraiseClient::connect(&server.url()).await?;
            let query = client.query::<BTreeMap<String, BTreeMap<String, u8>>>("v");
            query.execute().await?.next().await.unwrap().map(drop)
        };
        let error = run.await.expect_err(case);
        check_shown(case, &error.to_string());
        check_shown(case, &format!("{error:?}"));
        if let Error::Deserialization { path, .. } = &error {
            check_shown(case, path);
        }
    }
    let told = events.with("");
    for part in ["reports a parameter", "notification", "NOTICE", "WARNING"] {
        assert!(told.iter().any(|event| event.contains(part)), "{part} is not in {told:?}");
    }
    told.iter().for_each(|event| check_shown("an event", event));
}
