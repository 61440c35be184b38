//! The minimum of a tokio client: Bind, Execute and Sync of a prepared statement in one write, and
//! a read of the answer in the same task.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{Document, Load, Session};
use crate::short::Access;

pub struct Minimal {
    socket: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Session for Minimal {
    async fn open(load: &Load, url: &str) -> Vec<Self> {
        assert_eq!(load.access, Access::Own);
        let place = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        let (folder, port) = place.split_once(':').unwrap();
        let socket = format!("{}/.s.PGSQL.{port}", folder.replace("%2F", "/"));
        let socket = UnixStream::connect(socket).await.unwrap();
        let mut this = Self { socket, request: Vec::new(), answer: Vec::with_capacity(64 << 10) };
        let startup = b"\0\x03\0\0user\0reader\0database\0postgres\0\0";
        this.request.extend(len(startup.len()));
        this.request.extend(startup);
        this.exchange(|_| {}).await;
        let parse = [b"statement\0", load.sql().as_bytes(), b"\0\0\0"].concat();
        this.message(b'P', &[&parse]);
        this.message(b'S', &[]);
        this.exchange(|_| {}).await;
        vec![this]
    }

    async fn query<T: Document>(&mut self, key: i64) -> u64 {
        // The parameter in binary, the result as text.
        let value = key.to_be_bytes();
        self.message(b'B', &[b"\0statement\0\0\x01\0\x01\0\x01\0\0\0\x08", &value, b"\0\0"]);
        self.message(b'E', &[b"\0\0\0\0\0"]);
        self.message(b'S', &[]);
        let mut sum = 0;
        self.exchange(|row| sum += serde_json::from_slice::<T>(&row[6..]).unwrap().weigh()).await;
        sum
    }
}

impl Minimal {
    fn message(&mut self, tag: u8, parts: &[&[u8]]) {
        self.request.push(tag);
        self.request.extend(len(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| self.request.extend(*part));
    }

    /// Sends the messages, and reads up to ReadyForQuery.
    async fn exchange(&mut self, mut row: impl FnMut(&[u8])) {
        self.socket.write_all(&self.request).await.unwrap();
        self.request.clear();
        self.answer.clear();
        let mut start = 0;
        loop {
            let read = self.socket.read_buf(&mut self.answer).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            while let Some(&[tag, a, b, c, d]) = self.answer[start..].first_chunk() {
                let end = start + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
                let Some(body) = self.answer.get(start + 5..end) else { break };
                match tag {
                    b'D' => row(body),
                    b'Z' => return,
                    b'E' => panic!("{}", String::from_utf8_lossy(body)),
                    _ => {}
                }
                start = end;
            }
        }
    }
}

fn len(body: usize) -> [u8; 4] {
    u32::try_from(body + 4).unwrap().to_be_bytes()
}
