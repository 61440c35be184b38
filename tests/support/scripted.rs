//! A backend that follows a script, to send what a real server does not send.
//!
//! The test builds its messages itself, and not by the code under test.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// Makes an answer from the body of a message.
pub type Answer = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

/// One step of a script.
pub enum Step {
    /// Reads exactly these bytes, or panics.
    Expect(Vec<u8>),
    /// Reads any startup message.
    ExpectStartup,
    /// Reads a query by the extended protocol, up to its Sync.
    ExpectQuery,
    /// Reads the end of the connection, and no bytes before it.
    ExpectEnd,
    /// Reads one message, and answers with what the function makes of its body.
    Echo(Answer),
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends this message repeatedly, up to this number of bytes, until the client stops reading.
    /// Then sends the signal, and completes the last message when it is read.
    Flood(Vec<u8>, usize, oneshot::Sender<()>),
    /// Waits for a signal from the test.
    Wait(oneshot::Receiver<()>),
    /// Sends a signal to another script or to the test.
    Signal(oneshot::Sender<()>),
    /// Drops every further segment from the client without acknowledgement, and sends nothing, like
    /// a host that has lost power. Sends the first signal, and continues after the second one.
    /// Linux can do that to a socket.
    #[cfg(target_os = "linux")]
    Dead(oneshot::Sender<()>, oneshot::Receiver<()>),
    /// Sends nothing more, until the client closes the connection.
    Silence,
    /// Closes its own side, and continues to read.
    HalfClose,
    /// Closes the connection: the default at the end of a script.
    Close,
    /// Closes it with a reset.
    Reset,
}

/// A server that plays one script per connection, in order. It rejects further connections.
///
/// It ignores a cancel request that the next script does not expect: after a connection is lost in
/// the middle of a query, the client sends some in the background.
pub struct Scripted {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Scripted {
    pub async fn start(scripts: Vec<Vec<Step>>) -> Self {
        super::log::init();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut playing = Vec::new();
            let is_cancelled = scripts.iter().any(|script| begins_with_cancel_request(script));
            for script in scripts {
                let socket = loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let begins_session = matches!(script.first(), Some(Step::ExpectStartup));
                    if !begins_session || !is_cancel_request(&socket).await {
                        break socket;
                    }
                };
                // Otherwise an answer in two parts waits for a delayed acknowledgment.
                socket.set_nodelay(true).unwrap();
                playing.push(tokio::spawn(play(socket, script)));
            }
            // On a slow machine, the client repeats a cancel request.
            let repeats = is_cancelled.then(|| tokio::spawn(accept_cancel_requests(listener)));
            for script in playing {
                script.await.unwrap();
            }
            if let Some(repeats) = repeats {
                repeats.abort();
            }
        });
        Self { address, task }
    }

    pub fn url(&self) -> String {
        format!("postgres://u:planted-secret@{}/d?connect_timeout=20&sslmode=disable", self.address)
    }

    /// Waits for the ends of the scripts. Panics if the client did not follow one.
    pub async fn done(self) {
        self.task.await.unwrap();
    }
}

fn begins_with_cancel_request(script: &[Step]) -> bool {
    matches!(script.first(), Some(Step::Expect(bytes)) if *bytes == cancel_request())
}

/// Receives cancel requests, which have no effect.
async fn accept_cancel_requests(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; cancel_request().len()];
        let received = socket.read_exact(&mut request).await;
        assert!(received.is_ok() && request == cancel_request());
    }
}

/// Returns whether a connection begins with a cancel request, without consuming it.
async fn is_cancel_request(socket: &TcpStream) -> bool {
    let mut start = [0; 8];
    loop {
        match socket.peek(&mut start).await {
            Ok(8) => return start == cancel_request()[..8],
            Ok(0) | Err(_) => return false,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
}

async fn play(mut socket: TcpStream, script: Vec<Step>) {
    for step in script {
        match step {
            Step::Expect(expected) => {
                let mut got = vec![0; expected.len()];
                socket.read_exact(&mut got).await.unwrap();
                assert_eq!(got, expected);
            }
            Step::ExpectStartup => {
                let len = socket.read_u32().await.unwrap() as usize;
                let mut body = vec![0; len - 4];
                socket.read_exact(&mut body).await.unwrap();
            }
            Step::ExpectQuery => loop {
                let tag = socket.read_u8().await.unwrap();
                let len = socket.read_u32().await.unwrap() as usize;
                let mut body = vec![0; len - 4];
                socket.read_exact(&mut body).await.unwrap();
                if tag == b'S' {
                    break;
                }
            },
            Step::ExpectEnd => {
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest).await;
                // Terminate is allowed.
                assert!(rest.is_empty() || rest == b"X\0\0\0\x04", "{rest:?} came");
            }
            Step::Echo(answer) => {
                let _tag = socket.read_u8().await.unwrap();
                let len = socket.read_u32().await.unwrap() as usize;
                let mut body = vec![0; len - 4];
                socket.read_exact(&mut body).await.unwrap();
                let _ = socket.write_all(&answer(&body)).await;
            }
            // The client may have closed the connection.
            Step::Send(bytes) => drop(socket.write_all(&bytes).await),
            Step::Flood(message, most, blocked) => {
                let begun = flood(&mut socket, &message, most).await;
                let _ = blocked.send(());
                if begun > 0 {
                    let _ = socket.write_all(&message[begun..]).await;
                }
            }
            Step::Wait(go) => drop(go.await),
            Step::Signal(go) => drop(go.send(())),
            #[cfg(target_os = "linux")]
            Step::Dead(is_dead, until) => {
                drop_segments(socket2::SockRef::from(&socket)).unwrap();
                let _ = is_dead.send(());
                let _ = until.await;
                return;
            }
            Step::Silence => {
                let mut rest = [0; 1024];
                while matches!(socket.read(&mut rest).await, Ok(n) if n > 0) {}
            }
            Step::HalfClose => socket.shutdown().await.unwrap(),
            Step::Close => return,
            Step::Reset => {
                let linger = Some(std::time::Duration::ZERO);
                socket2::SockRef::from(&socket).set_linger(linger).unwrap();
                return;
            }
        }
    }
    // Unread bytes would turn the close into a reset.
    let _ = socket.shutdown().await;
    let mut rest = [0; 1024];
    while matches!(socket.read(&mut rest).await, Ok(n) if n > 0) {}
}

/// Whether this process may attach a socket filter, as [`Step::Dead`] does.
#[cfg(target_os = "linux")]
pub fn can_drop_segments() -> bool {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    drop_segments(socket2::SockRef::from(&socket)).is_ok()
}

#[cfg(target_os = "linux")]
fn drop_segments(socket: socket2::SockRef<'_>) -> std::io::Result<()> {
    // A filter of one instruction: keep 0 bytes of each.
    socket.attach_filter(&[socket2::SockFilter::new(6, 0, 0, 0)])
}

/// A client that reads nothing for this time has stopped reading.
const BLOCKED: std::time::Duration = std::time::Duration::from_millis(300);

/// Returns how much of the last message was sent.
async fn flood(socket: &mut TcpStream, message: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        let rest = &message[sent % message.len()..];
        match tokio::time::timeout(BLOCKED, socket.write(rest)).await {
            Ok(Ok(written @ 1..)) => sent += written,
            _ => break,
        }
    }
    sent % message.len()
}

/// Returns a message with this tag and body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}

pub fn auth_ok() -> Vec<u8> {
    message(b'R', &[0, 0, 0, 0])
}

pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// A login without a password, up to ReadyForQuery, as pid 77.
pub fn login() -> Vec<Step> {
    let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
    vec![Step::ExpectStartup, Step::Send([auth_ok(), key, ready()].concat())]
}

/// A cancel request for the session of [`login`].
pub fn cancel_request() -> Vec<u8> {
    [&16u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), &77u32.to_be_bytes(), &[1, 2, 3, 4]]
        .concat()
}

/// The answer to the question whether the server's process has the id of the session's key.
pub fn process_answer(is_same: bool) -> Vec<Vec<u8>> {
    let rows = if is_same { vec![row("1")] } else { Vec::new() };
    let complete = message(b'C', format!("SELECT {}\0", rows.len()).as_bytes());
    [vec![message(b'1', b""), message(b'2', b"")], rows, vec![complete]].concat()
}

/// ParseComplete, BindComplete, and the RowDescription of columns of these types.
pub fn begin(columns: &[(&str, u32)]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for (name, oid) in columns {
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    [message(b'1', b""), message(b'2', b""), message(b'T', &body)].concat()
}

/// One column, `data jsonb`.
pub fn begin_json() -> Vec<u8> {
    begin(&[("data", 3802)])
}

/// A row of one column.
pub fn row(value: &str) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap().to_be_bytes();
    message(b'D', &[&[0, 1], &len[..], value.as_bytes()].concat())
}

pub fn complete() -> Vec<u8> {
    message(b'C', b"SELECT 0\0")
}

/// The answer to a query of the unnamed statement, up to these rows of one column.
pub fn begun(rows: &[&str]) -> Vec<u8> {
    let rows = rows.iter().flat_map(|value| row(value)).collect();
    [begin_json(), rows].concat()
}

/// The whole answer to a query of the unnamed statement, with these rows of one column.
pub fn answer(rows: &[&str]) -> Vec<u8> {
    [begun(rows), complete(), ready()].concat()
}

/// An error or notice with these fields.
pub fn fields(tag: u8, fields: &[(u8, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, text) in fields {
        body.push(*field);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    message(tag, &body)
}

pub fn error(severity: &str, code: &str, text: &str) -> Vec<u8> {
    fields(b'E', &[(b'S', severity), (b'V', severity), (b'C', code), (b'M', text)])
}
