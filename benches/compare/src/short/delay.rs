//! A Unix socket that forwards to the socket of the server, and delays the answers.
//!
//! The number of instructions of a client depends on whether an answer has arrived when the client
//! polls for it. Here it never has, so the counts are reproducible.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{
        fs::DirBuilderExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// More than any client takes, in valgrind, from sending a query to waiting for the answer.
const DELAY: Duration = Duration::from_millis(3);

pub struct Delay {
    folder: PathBuf,
}

impl Delay {
    /// Starts it in front of the server's socket in `folder`. The port is the same.
    pub fn before(folder: &Path, port: u16) -> Self {
        let name = format!(".s.PGSQL.{port}");
        let server = folder.join(&name);
        let folder = PathBuf::from(format!("/tmp/fraiseql-wire-delay-{}", std::process::id()));
        // Other users of the machine must not reach the server through it.
        DirBuilder::new().mode(0o700).create(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(&name)).unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&server).unwrap());
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), Duration::ZERO);
                pass(server, client, DELAY);
            }
        });
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Forwards from one side to the other, until either closes.
fn pass(mut from: UnixStream, mut to: UnixStream, delay: Duration) {
    thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        let mut step = || -> io::Result<usize> {
            let read = from.read(&mut buffer)?;
            thread::sleep(delay);
            to.write_all(&buffer[..read])?;
            Ok(read)
        };
        while step().is_ok_and(|read| read > 0) {}
        let _ = to.shutdown(Shutdown::Both);
    });
}
