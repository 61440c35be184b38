//! A server that replays its answers from memory.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

/// Answers every query of every client with `rows` rows of this document.
pub fn start(document: &str, rows: usize) -> SocketAddr {
    let column = b"\0\x01data\0\0\0\0\0\0\0\0\0\x0e\xda\xff\xff\xff\xff\xff\xff\0\0";
    let answer = [
        message(b'1', b""),
        message(b'2', b""),
        message(b'T', column),
        row(document).repeat(rows),
        message(b'C', b"SELECT\0"),
        message(b'Z', b"I"),
    ];
    let answer = Arc::new(answer.concat());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || serve(socket.unwrap(), &answer));
        }
    });
    address
}

/// A row of one column.
pub fn row(document: &str) -> Vec<u8> {
    let len = u32::try_from(document.len()).unwrap().to_be_bytes();
    message(b'D', &[&[0, 1], &len[..], document.as_bytes()].concat())
}

fn serve(mut socket: TcpStream, answer: &[u8]) -> Option<()> {
    skip(&mut socket, 0)?;
    let login = [message(b'R', &[0; 4]), message(b'K', &[0; 8]), message(b'Z', b"I")].concat();
    socket.write_all(&login).ok()?;
    loop {
        while skip(&mut socket, 1)? != b'S' {}
        // Like a server, which sends 8 KiB at a time.
        for part in answer.chunks(8 << 10) {
            socket.write_all(part).ok()?;
        }
    }
}

/// Skips a message with a tag of `tag` bytes.
fn skip(socket: &mut TcpStream, tag: usize) -> Option<u8> {
    let mut head = [0; 5];
    socket.read_exact(&mut head[..4 + tag]).ok()?;
    let len = u32::from_be_bytes(head[tag..tag + 4].try_into().ok()?);
    socket.read_exact(&mut vec![0; len as usize - 4]).ok()?;
    Some(head[0])
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}
