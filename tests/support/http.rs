//! A minimal HTTP/1.1 client: one connection per request. It reports whether a response was
//! complete.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub async fn get(address: &str, target: &str) -> Answer {
    open(address, "GET", target, "").await.rest().await
}

pub async fn send(address: &str, method: &str, target: &str, body: &str) -> Answer {
    open(address, method, target, body).await.rest().await
}

/// The same with this line instead of the Host header.
pub async fn get_as(address: &str, target: &str, host: &str) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    Opened::read(socket).await.rest().await
}

/// Sends the request, and reads nothing.
pub async fn ask(address: &str, method: &str, target: &str, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Sends the request, and reads the head of the response.
pub async fn open(address: &str, method: &str, target: &str, body: &str) -> Opened {
    Opened::read(ask(address, method, target, body).await).await
}

/// A response whose body is not read yet. Dropping it closes the connection.
pub struct Opened {
    socket: TcpStream,
    head: String,
    read: Vec<u8>,
}

impl Opened {
    /// Reads the head of the response to a request that was sent by [`ask`].
    pub async fn of(request: TcpStream) -> Self {
        Self::read(request).await
    }

    /// Reads the head of a response.
    async fn read(mut socket: TcpStream) -> Self {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let read = bytes.split_off(end + 4);
                let head = String::from_utf8(bytes).unwrap();
                return Self { socket, head, read };
            }
            let read = socket.read_buf(&mut bytes).await.unwrap();
            assert!(read > 0, "no whole head: {:?}", String::from_utf8_lossy(&bytes));
        }
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Reads a part of the body and discards it. Returns `false` at the end of the body.
    pub async fn more(&mut self) -> bool {
        self.read.drain(..self.read.len().saturating_sub(LAST_CHUNK.len()));
        matches!(self.socket.read_buf(&mut self.read).await, Ok(1..))
    }

    /// Reads a chunked body to its end. Returns whether it was complete.
    pub async fn came_whole(mut self) -> bool {
        while self.more().await {}
        self.read.ends_with(LAST_CHUNK)
    }

    /// Reads the rest of the response, which may be incomplete.
    pub async fn rest(mut self) -> Answer {
        let status = self.status();
        let mut answer = Answer { status, head: self.head, body: Vec::new(), complete: false };
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        while length.is_none_or(|length| self.read.len() < length) {
            if !matches!(self.socket.read_buf(&mut self.read).await, Ok(1..)) {
                break;
            }
        }
        (answer.body, answer.complete) = match chunked {
            true => unchunk(&self.read),
            false => {
                let complete = length.unwrap_or_default() == self.read.len();
                (self.read, complete)
            }
        };
        answer
    }
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// Whether the body was complete.
    pub complete: bool,
    head: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Returns the data of the chunks, and whether the last chunk has arrived.
fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (data, bytes == LAST_CHUNK);
        }
        let chunk = &bytes[end + 2..];
        data.extend_from_slice(&chunk[..size.min(chunk.len())]);
        let Some(next) = chunk.get(size + 2..) else { break };
        bytes = next;
    }
    (data, false)
}
