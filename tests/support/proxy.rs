//! A TCP proxy that simulates a bad network.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
};

/// A proxy between clients and one server. Dropping it closes every connection.
pub struct Proxy {
    pub address: SocketAddr,
    faults: Arc<Faults>,
    accepting: JoinHandle<()>,
}

struct Faults {
    /// Nothing passes while this is true.
    stalled: watch::Sender<bool>,
    /// How many more bytes pass from the server to clients before the cut.
    cut_after: AtomicU64,
    /// Whether the cut has happened. After the last byte that passes, it happens at the next one.
    is_cut: AtomicBool,
    cut_with_reset: watch::Sender<bool>,
    /// Whether connections stay open after the cut.
    silent_cut: AtomicBool,
    /// The maximum size of a piece, in bytes.
    piece: AtomicUsize,
    /// The delay of each piece, in microseconds.
    delay: AtomicU64,
    /// Closes the direction from clients to the server. The other direction continues.
    client_shut: watch::Sender<bool>,
    /// Whether bytes from clients still pass after the cut.
    half_cut: AtomicBool,
    from_server: AtomicU64,
    /// Bytes of the clients, while they are recorded.
    from_clients: Mutex<Option<Vec<u8>>>,
    connections: AtomicUsize,
}

impl Proxy {
    /// Starts a proxy in front of a server of this machine.
    pub async fn to_port(port: u16) -> Self {
        Self::start(([127, 0, 0, 1], port).into()).await
    }

    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults {
            stalled: watch::Sender::new(false),
            cut_after: AtomicU64::new(u64::MAX),
            is_cut: AtomicBool::new(false),
            cut_with_reset: watch::Sender::new(false),
            silent_cut: AtomicBool::new(false),
            piece: AtomicUsize::new(64 << 10),
            delay: AtomicU64::new(0),
            client_shut: watch::Sender::new(false),
            half_cut: AtomicBool::new(false),
            from_server: AtomicU64::new(0),
            from_clients: Mutex::new(None),
            connections: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&faults);
        let accepting = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, SeqCst);
                sessions.spawn(session(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, faults, accepting }
    }

    /// Stops passing bytes in both directions, or continues.
    pub fn stall(&self, stalled: bool) {
        self.faults.stalled.send_replace(stalled);
    }

    /// Passes this many more bytes from the server, then nothing more in that direction.
    /// Connections stay open.
    pub fn stall_after(&self, bytes: u64) {
        self.faults.silent_cut.store(true, SeqCst);
        self.cut_after(bytes);
    }

    /// Closes connections after `bytes` more bytes from the server.
    pub fn cut_after(&self, bytes: u64) {
        self.faults.is_cut.store(false, SeqCst);
        self.faults.cut_after.store(bytes, SeqCst);
    }

    /// The same, but passes bytes from clients until they close their side.
    pub fn half_cut_after(&self, bytes: u64) {
        self.faults.half_cut.store(true, SeqCst);
        self.cut_after(bytes);
    }

    /// Closes only the direction from clients to the server, or lets it pass on later connections.
    pub fn shut_clients(&self, shut: bool) {
        self.faults.client_shut.send_replace(shut);
    }

    /// Delays each piece by this time, in both directions.
    pub fn delay(&self, time: Duration) {
        self.faults.delay.store(u64::try_from(time.as_micros()).unwrap(), SeqCst);
    }

    /// Resets connections after `bytes` more bytes.
    pub fn reset_after(&self, bytes: u64) {
        self.faults.cut_with_reset.send_replace(true);
        self.cut_after(bytes);
    }

    /// Returns whether the cut has happened.
    pub fn is_cut(&self) -> bool {
        self.faults.is_cut.load(SeqCst)
    }

    /// Passes at most `bytes` bytes at a time.
    pub fn piece(&self, bytes: usize) {
        self.faults.piece.store(bytes, SeqCst);
    }

    /// Returns the number of bytes from the server that were passed.
    pub fn bytes_from_server(&self) -> u64 {
        self.faults.from_server.load(SeqCst)
    }

    /// Records the bytes of the clients from now on. Returns what was recorded before.
    pub fn record(&self) -> Vec<u8> {
        self.faults.from_clients.lock().unwrap().replace(Vec::new()).unwrap_or_default()
    }

    /// Returns the number of connections that clients have made.
    pub fn connections(&self) -> usize {
        self.faults.connections.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn session(client: TcpStream, server: SocketAddr, faults: Arc<Faults>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    // Otherwise small pieces would wait for acknowledgements.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let upstream = pass(from_client, to_server, &faults, false);
    let downstream = pass(from_server, to_client, &faults, true);
    tokio::pin!(upstream, downstream);
    // The client may close first, but the server's last bytes end the session.
    tokio::select! {
        () = &mut downstream => {
            if faults.half_cut.load(SeqCst) {
                upstream.await;
            }
        }
        () = &mut upstream => downstream.await,
    }
}

/// Passes bytes in one direction, until their end or the cut.
async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    faults: &Faults,
    from_server: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut client_shut = faults.client_shut.subscribe();
    loop {
        let size = faults.piece.load(SeqCst).min(buffer.len());
        let read = tokio::select! {
            read = from.read(&mut buffer[..size]) => read,
            _ = client_shut.wait_for(|shut| *shut && !from_server) => return,
        };
        let Ok(read @ 1..) = read else { return };
        let delay = Duration::from_micros(faults.delay.load(SeqCst));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut stalled = faults.stalled.subscribe();
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        let mut allowed = read;
        if from_server {
            let left = faults.cut_after.load(SeqCst);
            allowed = read.min(usize::try_from(left).unwrap_or(usize::MAX));
            if left != u64::MAX {
                faults.cut_after.store(left - allowed as u64, SeqCst);
            }
        }
        if to.write_all(&buffer[..allowed]).await.is_err() {
            return;
        }
        if !from_server && let Some(recorded) = &mut *faults.from_clients.lock().unwrap() {
            recorded.extend_from_slice(&buffer[..allowed]);
        }
        if from_server {
            faults.from_server.fetch_add(allowed as u64, SeqCst);
        }
        if allowed < read {
            faults.is_cut.store(true, SeqCst);
            if faults.silent_cut.load(SeqCst) {
                // Until the client has closed its side.
                std::future::pending::<()>().await;
            }
            if *faults.cut_with_reset.borrow() {
                let _ = socket2::SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO));
                // Dropping it would close the stream before the reset.
                to.forget();
            }
            return;
        }
    }
}
