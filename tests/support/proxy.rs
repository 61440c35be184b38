//! A TCP proxy in user space that does to a connection what a bad network does.

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

/// A proxy between a client and one server. Dropped, it ends every connection.
pub struct Proxy {
    pub address: SocketAddr,
    faults: Arc<Faults>,
    accepting: JoinHandle<()>,
}

struct Faults {
    /// Nothing passes while this holds.
    stalled: watch::Sender<bool>,
    /// How many more bytes pass from the server to a client, and how it ends then.
    cut_after: AtomicU64,
    cut_with_reset: watch::Sender<bool>,
    /// A cut does not end the connection.
    silent_cut: AtomicBool,
    /// The largest piece that is passed on at once.
    piece: AtomicUsize,
    /// How long each piece is held back, in microseconds.
    delay: AtomicU64,
    /// Ends the direction from the client to the server in order. The other direction continues.
    client_shut: watch::Sender<bool>,
    /// After a cut, bytes from the client still pass.
    half_cut: AtomicBool,
    from_server: AtomicU64,
    /// Bytes of the clients, while they are recorded.
    from_clients: Mutex<Option<Vec<u8>>>,
    connections: AtomicUsize,
}

impl Proxy {
    /// A proxy in front of a server of this machine.
    pub async fn to_port(port: u16) -> Self {
        Self::start(([127, 0, 0, 1], port).into()).await
    }

    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults {
            stalled: watch::Sender::new(false),
            cut_after: AtomicU64::new(u64::MAX),
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

    /// Holds everything back, in both directions, or lets it go on.
    pub fn stall(&self, stalled: bool) {
        self.faults.stalled.send_replace(stalled);
    }

    /// Passes this many more bytes from the server, then nothing more in that direction.
    /// Connections stay open.
    pub fn stall_after(&self, bytes: u64) {
        self.faults.silent_cut.store(true, SeqCst);
        self.cut_after(bytes);
    }

    /// Ends connections in order after `bytes` more bytes from the server.
    pub fn cut_after(&self, bytes: u64) {
        self.faults.cut_after.store(bytes, SeqCst);
    }

    /// Ends them in order after `bytes` more bytes, but passes bytes from the clients until
    /// they end.
    pub fn half_cut_after(&self, bytes: u64) {
        self.faults.half_cut.store(true, SeqCst);
        self.cut_after(bytes);
    }

    /// Ends the direction from clients to the server only; or lets it pass on later connections.
    pub fn shut_clients(&self, shut: bool) {
        self.faults.client_shut.send_replace(shut);
    }

    /// Holds each piece back for so long, in both directions.
    pub fn delay(&self, time: Duration) {
        self.faults.delay.store(u64::try_from(time.as_micros()).unwrap(), SeqCst);
    }

    /// Ends them with a reset after `bytes` more bytes.
    pub fn reset_after(&self, bytes: u64) {
        self.faults.cut_with_reset.send_replace(true);
        self.cut_after(bytes);
    }

    /// Whether no byte passes any more.
    pub fn is_cut(&self) -> bool {
        self.faults.cut_after.load(SeqCst) == 0
    }

    /// Passes at most `bytes` bytes at a time.
    pub fn piece(&self, bytes: usize) {
        self.faults.piece.store(bytes, SeqCst);
    }

    /// Bytes that came from the server and were passed on.
    pub fn bytes_from_server(&self) -> u64 {
        self.faults.from_server.load(SeqCst)
    }

    /// Records the bytes of the clients from now on. Returns what was recorded before.
    pub fn record(&self) -> Vec<u8> {
        self.faults.from_clients.lock().unwrap().replace(Vec::new()).unwrap_or_default()
    }

    /// Connections that were made.
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
    // Small pieces would wait for each other otherwise.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let upstream = pass(from_client, to_server, &faults, false);
    let downstream = pass(from_server, to_client, &faults, true);
    tokio::pin!(upstream, downstream);
    // The client may end first, but it is the server's last bytes that end the session.
    tokio::select! {
        () = &mut downstream => {
            if faults.half_cut.load(SeqCst) {
                upstream.await;
            }
        }
        () = &mut upstream => downstream.await,
    }
}

/// Passes bytes on, to the end or to the cut.
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
            if faults.silent_cut.load(SeqCst) {
                // Until the client has gone.
                std::future::pending::<()>().await;
            }
            if *faults.cut_with_reset.borrow() {
                let _ = socket2::SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO));
                // Dropped, it would end the stream in order first.
                to.forget();
            }
            return;
        }
    }
}
