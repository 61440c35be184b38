//! A server that replays recorded answers from memory, so that only the client is measured.

use std::{
    io::{BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

/// The answers of a server, each up to its ReadyForQuery.
pub type Answers = Vec<Vec<u8>>;

/// Forwards one connection to the server at `port`, and returns the answers. `client` receives the
/// port to connect to, and returns when it has closed the connection.
pub fn record(port: u16, client: impl FnOnce(u16)) -> Arc<Answers> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let here = listener.local_addr().unwrap().port();
    let recorder = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut received = BufReader::with_capacity(1 << 20, server.try_clone().unwrap());
        let mut answers = Vec::new();
        while let Some(request) = request(&mut client, answers.is_empty()) {
            server.write_all(&request).unwrap();
            let mut answer = Vec::new();
            while message(&mut received, &mut answer) != Some(b'Z') {}
            // The client has closed its connection.
            if client.write_all(&answer).is_err() {
                break;
            }
            answers.push(answer);
        }
        answers
    });
    client(here);
    Arc::new(recorder.join().unwrap())
}

/// Replays the answers to every client of the returned port, until the answers are dropped.
pub fn play(answers: &Arc<Answers>) -> u16 {
    let answers = Arc::downgrade(answers);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, Some(answers)) = (socket.unwrap(), answers.upgrade()) else { return };
            thread::spawn(move || {
                socket.set_nodelay(true).unwrap();
                for (i, answer) in answers.iter().enumerate() {
                    if request(&mut socket, i == 0).is_none() || socket.write_all(answer).is_err() {
                        return;
                    }
                }
                // Terminate.
                let _ = socket.read(&mut [0; 64]);
            });
        }
    });
    port
}

/// Reads messages until the client waits for ReadyForQuery. Returns `None` at Terminate.
fn request(client: &mut TcpStream, is_startup: bool) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    if is_startup {
        let mut len = [0; 4];
        client.read_exact(&mut len).ok()?;
        request.extend(len);
        append(client, &mut request, u32::from_be_bytes(len) as usize - 4)?;
        return Some(request);
    }
    loop {
        match message(client, &mut request)? {
            b'S' | b'Q' => return Some(request),
            b'X' => return None,
            _ => {}
        }
    }
}

/// Reads one message. Returns its tag.
fn message(socket: &mut impl Read, to: &mut Vec<u8>) -> Option<u8> {
    let mut head = [0; 5];
    socket.read_exact(&mut head).ok()?;
    to.extend(head);
    append(socket, to, u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4)?;
    Some(head[0])
}

fn append(socket: &mut impl Read, to: &mut Vec<u8>, bytes: usize) -> Option<()> {
    let at = to.len();
    to.resize(at + bytes, 0);
    socket.read_exact(&mut to[at..]).ok()
}
