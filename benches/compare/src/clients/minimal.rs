//! The minimum: a blocking socket, one buffer, rows that are not copied, and serde_json in its
//! usual form.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Tally, Task, Weigh, authority};
use crate::data::{Customer, Order, Shape};

pub fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    let mut connection = match task.mode.as_str() {
        "raw, TLS" => Connection::encrypted(task.port),
        _ => Connection::open(task.port),
    };
    connected();
    let mut tally = Tally::default();
    let decode: fn(&[u8]) -> u64 = match (task.mode.as_str(), task.shape) {
        ("raw" | "raw, TLS", _) => |row| row.len() as u64,
        ("typed", Shape::Customer) => decoded::<Customer>,
        ("typed", Shape::Order { .. }) => decoded::<Order>,
        ("value", _) => decoded::<Value>,
        (other, _) => panic!("no mode {other:?}"),
    };
    for _ in 0..task.repeat {
        tally.query();
        connection.query(&task.sql(), |row| tally.row(decode(row)));
    }
    tally
}

fn decoded<T: DeserializeOwned + Weigh>(row: &[u8]) -> u64 {
    serde_json::from_slice::<T>(row).unwrap().weigh()
}

/// Runs SQL that returns nothing, as the superuser, on the server with this Unix socket.
pub fn run_sql(socket: &Path, sql: &str) {
    let socket = UnixStream::connect(socket).unwrap();
    Connection::begin(Box::new(socket), "postgres").query(sql, |_| {});
}

trait Socket: Read + Write {}

impl<S: Read + Write> Socket for S {}

struct Connection {
    socket: Box<dyn Socket>,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> Self {
        Self::begin(Box::new(TcpStream::connect(("127.0.0.1", port)).unwrap()), "reader")
    }

    fn encrypted(port: u16) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority()).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        Self::begin(Box::new(StreamOwned::new(session, socket)), "reader")
    }

    fn begin(socket: Box<dyn Socket>, role: &str) -> Self {
        let mut this = Self { socket, buffer: vec![0; 64 << 10] };
        let body = format!("\0\x03\0\0user\0{role}\0database\0postgres\0\0");
        this.socket.write_all(&[&len(body.as_bytes())[..], body.as_bytes()].concat()).unwrap();
        this.answer(|_| {});
        this
    }

    fn query(&mut self, sql: &str, row: impl FnMut(&[u8])) {
        let body = [sql.as_bytes(), b"\0"].concat();
        self.socket.write_all(&[b"Q", &len(&body)[..], &body].concat()).unwrap();
        self.answer(row);
    }

    /// Reads up to ReadyForQuery.
    fn answer(&mut self, mut row: impl FnMut(&[u8])) {
        let (mut start, mut end) = (0, 0);
        loop {
            while let Some(&[tag, a, b, c, d]) = self.buffer[start..end].first_chunk() {
                let size = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                if end - start < size {
                    if self.buffer.len() < size {
                        self.buffer.resize(size, 0);
                    }
                    break;
                }
                let body = &self.buffer[start + 5..start + size];
                start += size;
                match tag {
                    b'D' => row(&body[6..]),
                    b'Z' => return,
                    b'E' => panic!("{}", String::from_utf8_lossy(body)),
                    _ => {}
                }
            }
            self.buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            let read = self.socket.read(&mut self.buffer[end..]).unwrap();
            assert!(read > 0, "the server hung up");
            end += read;
        }
    }
}

fn len(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len() + 4).unwrap().to_be_bytes()
}
