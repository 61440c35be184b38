//! Byte streams of a connector in place of sockets.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use crate::support::{admin, backend_state, cluster, eventually, sql, terminate};
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
use crate::support::{
    certificates::{Authority, write},
    cluster::{Cluster, Setup},
};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, ErrorCategory, FraiseClient, RawJson,
    SslMode, Target, TimeoutPhase, field,
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, DuplexStream, ReadBuf, copy_bidirectional, duplex},
    net::TcpStream,
    sync::watch,
};

/// Opens streams in memory, each connected to a port, and counts them.
#[derive(Clone, Default)]
struct Memory(Arc<AtomicUsize>);

impl Memory {
    async fn open(&self, port: u16) -> io::Result<Buffered> {
        self.0.fetch_add(1, SeqCst);
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        // Small, so that both sides have to wait for each other.
        let (ours, mut theirs) = duplex(1000);
        tokio::spawn(async move { copy_bidirectional(&mut theirs, &mut server).await });
        Ok(Buffered(BufWriter::new(ours)))
    }

    fn opened(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// A configuration that connects to nothing but these streams.
    fn config(&self, port: u16) -> ConnectionConfigBuilder {
        let this = self.clone();
        let url = cluster().url().replace("127.0.0.1", "nowhere.invalid");
        url.parse::<ConnectionConfig>().unwrap().to_builder().connector(move |target: Target| {
            assert_eq!(target.host.as_deref(), Some("nowhere.invalid"));
            let this = this.clone();
            async move { this.open(port).await }
        })
    }

    async fn client(&self) -> FraiseClient {
        let config = self.config(cluster().port()).build().unwrap();
        FraiseClient::connect_with_config(config).await.unwrap()
    }
}

/// A stream that sends nothing before it is flushed.
struct Buffered(BufWriter<DuplexStream>);

impl AsyncRead for Buffered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Queries, pipelined fetches, streams and their cancellation, through streams in memory.
#[tokio::test]
async fn connector_serves_queries_and_cancel_requests() {
    let memory = Memory::default();
    let client = memory.client().await;
    let info = client.connection_info().unwrap();
    assert_eq!(info.host.as_deref(), Some("nowhere.invalid"));
    assert_eq!((info.address, info.unix_socket, info.port), (None, None, cluster().port()));

    let rows: Vec<u64> = client.query("v_short").fetch_all().await.unwrap();
    assert_eq!(rows, (1..=300).collect::<Vec<_>>());
    let counts = (0..20).map(|_| client.query::<u64>("v_short").count());
    let counts = futures_util::future::try_join_all(counts).await.unwrap();
    assert_eq!(counts, [300; 20]);
    assert_eq!(memory.opened(), 1);

    // The cancel request goes through a stream of its own, and the connection is used again.
    let pid = client.backend_pid();
    let mut endless = client.query::<RawJson>("v_endless").execute().await.unwrap();
    for _ in 0..10_000 {
        endless.next().await.unwrap().unwrap();
    }
    drop(endless);
    assert_eq!(client.query::<u64>("v_short").count().await.unwrap(), 300);
    assert_eq!((client.backend_pid(), memory.opened() > 1), (pid, true));

    let opened = memory.opened();
    let token = client.cancel_token();
    let asleep = client.query::<RawJson>("v_asleep").fetch_all();
    let (result, cancelled) = tokio::join!(asleep, async {
        eventually("it runs", async || {
            backend_state(&admin().await, pid.unwrap()).await.as_deref() == Some("active")
        })
        .await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(memory.opened() > opened);

    client.close().await.unwrap();
    let admin = admin().await;
    eventually("it is closed", async || backend_state(&admin, pid.unwrap()).await.is_none()).await;
}

/// A connection that ended while it was idle is replaced, and a lost stream is resumed.
#[tokio::test]
async fn connector_serves_reconnecting_resuming_and_parallel_sessions() {
    let memory = Memory::default();
    let client = memory.client().await;
    let admin = admin().await;
    terminate(&admin, client.backend_pid().unwrap()).await;
    assert_eq!(client.query::<u64>("v_short").count().await.unwrap(), 300);
    assert_eq!(memory.opened(), 2);

    sql("create table tv_connector as
         select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
         from generate_series(1, 50000) i")
    .await;
    let query = client.query::<RawJson>("tv_connector").resume_by(field("id"));
    let mut stream = query.max_memory(100_000).execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    terminate(&admin, client.backend_pid().unwrap()).await;
    let mut rows = 1;
    while let Some(row) = stream.next().await {
        row.unwrap();
        rows += 1;
    }
    assert_eq!((rows, stream.stats().resumptions), (50_000, 1));
    drop(stream);

    // A client of its own: a cancel request of the stream that was lost may still be opened.
    let memory = Memory::default();
    let client = memory.client().await;
    let opened = memory.opened();
    let stream = client.query::<RawJson>("tv_connector").parallel(3).execute().await.unwrap();
    let ids: Vec<_> = stream.map_ok(|row| row.as_str().to_owned()).try_collect().await.unwrap();
    assert_eq!((ids.len(), memory.opened() - opened), (50_000, 2));
}

/// The end arrives while the client's only thread is busy, so its runtime does not know of it.
#[tokio::test]
async fn idle_stream_that_ends_unnoticed_is_replaced() {
    let port = cluster().port();
    let config = cluster().url().parse::<ConnectionConfig>().unwrap().to_builder();
    let config = config
        .connector(move |_: Target| async move { TcpStream::connect(("127.0.0.1", port)).await });
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    for _ in 0..3 {
        let pid = client.backend_pid().unwrap();
        let busy = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async { terminate(&admin().await, pid).await });
        });
        busy.join().unwrap();
        assert_eq!(client.query::<u64>("v_short").count().await.unwrap(), 300);
        assert_ne!(client.backend_pid().unwrap(), pid);
    }
}

/// Each host in order. The error names the target and has the reason.
#[tokio::test]
async fn connector_is_called_for_each_host_until_one_answers() {
    let port = cluster().port();
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    let builder = ConnectionConfig::builder().database("postgres").user("role_trust");
    let builder = builder.connector(move |target: Target| {
        log.lock().unwrap().push(target.to_string());
        async move {
            match target.host.as_deref() {
                Some("good") => TcpStream::connect(("127.0.0.1", port)).await,
                _ => Err(io::Error::other("the bastion is closed")),
            }
        }
    });
    let config = builder.clone().host("bad").host("good").port(7).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    assert_eq!(client.connection_info().unwrap().host.as_deref(), Some("good"));
    assert_eq!(*calls.lock().unwrap(), ["bad:7", "good:7"]);

    let config = builder.host("bad").hostaddr([192, 0, 2, 1]).build().unwrap();
    let error = FraiseClient::connect_with_config(config).await.unwrap_err();
    assert_eq!(calls.lock().unwrap().last().unwrap(), "bad:5432");
    assert!(error.is_retriable());
    assert_eq!(
        error.to_string(),
        "could not connect to bad:5432: the connector could not open a stream: the bastion is \
         closed; check what the connector connects through, and that the server is running"
    );
}

#[tokio::test]
async fn connect_timeout_limits_the_connector() {
    let builder = ConnectionConfig::builder()
        .host("h")
        .user("u")
        .connector(|_: Target| async { std::future::pending::<io::Result<DuplexStream>>().await });
    let config = builder.connect_timeout(Duration::from_millis(50)).build().unwrap();
    let error = FraiseClient::connect_with_config(config).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Timeout, "{error}");
}

/// A stream that ends during the login, and one that ends in the middle of a result.
/// Nothing reads the Terminate message, which does not fit into the stream.
#[tokio::test]
async fn cancel_timeout_limits_closing_a_full_stream() {
    let (stall, stalled) = watch::channel(false);
    let url = cluster().url().replace("127.0.0.1", "nowhere.invalid");
    let after = Duration::from_millis(200);
    let config = url.parse::<ConnectionConfig>().unwrap().to_builder().cancel_timeout(after);
    let config = config.connector(move |_: Target| {
        let mut stalled = stalled.clone();
        async move {
            let mut server = TcpStream::connect(("127.0.0.1", cluster().port())).await?;
            let (ours, mut theirs) = duplex(4);
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    _ = async { stalled.wait_for(|stalled| *stalled).await.map(drop) } => {}
                    _ = copy_bidirectional(&mut theirs, &mut server) => return,
                }
                // Keeps it open.
                std::future::pending::<()>().await;
                drop(theirs);
            });
            Ok(ours)
        }
    });
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    stall.send_replace(true);
    let closed = tokio::time::timeout(Duration::from_secs(30), client.close()).await;
    let error = closed.expect("it does not wait").unwrap_err();
    let Error::Timeout { phase: TimeoutPhase::Cancel, after: at } = error else {
        panic!("{error:?}")
    };
    assert_eq!(at, after);
}

#[tokio::test]
async fn end_of_the_stream_is_the_end_of_the_connection() {
    let builder = ConnectionConfig::builder().host("h").user("u").ssl_mode(SslMode::Disable);
    let config = builder.connector(|_: Target| async { Ok(duplex(100).0) }).build().unwrap();
    let error = FraiseClient::connect_with_config(config).await.unwrap_err();
    assert!(error.is_retriable() && error.to_string().contains("h:5432"), "{error}");

    let memory = Memory::default();
    let client = memory.client().await;
    let mut endless = client.query::<RawJson>("v_endless").execute().await.unwrap();
    endless.next().await.unwrap().unwrap();
    terminate(&admin().await, client.backend_pid().unwrap()).await;
    let mut last = None;
    while let Some(row) = endless.next().await {
        last = Some(row);
    }
    assert!(last.unwrap().is_err());
    assert_eq!(client.query::<u64>("v_short").count().await.unwrap(), 300);
}

/// TLS with the name of the target, for sessions and for cancel requests.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
#[tokio::test]
async fn tls_runs_inside_the_stream_of_a_connector() {
    let (authority, folder) = (Authority::new("an authority"), tempfile::tempdir().unwrap());
    let pair = authority.server("nowhere.invalid", &["nowhere.invalid"]);
    let server = Cluster::start_with(&Setup {
        hba: "local all all trust\nhostssl all all all scram-sha-256\n",
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key",
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    })
    .unwrap();
    let roots = write(folder.path(), "ca.crt", &authority.pem);
    let tls = |name: &str| {
        let tls = fraiseql_wire::TlsConfig::builder().ca_cert_path(&roots);
        tls.server_name(name).build().unwrap()
    };
    let memory = Memory::default();
    let config = memory.config(server.port());
    let verified = config.clone().tls(tls("nowhere.invalid")).build().unwrap();
    let client = FraiseClient::connect_with_config(verified).await.unwrap();
    let info = client.connection_info().unwrap();
    assert_eq!(info.tls_version.as_deref(), Some("TLSv1.3"));
    assert_eq!(info.auth_method, "scram-sha-256-plus");
    let query = client.query::<RawJson>("pg_catalog.pg_class, generate_series(1, 1000000)");
    assert!(query.execute().await.is_err(), "a name is no SQL");
    let sleeping = client
        .query::<RawJson>("pg_catalog.pg_class")
        .select_projection("to_jsonb(pg_sleep(600)::text)");
    let opened = memory.opened();
    assert!(tokio::time::timeout(Duration::from_millis(100), sleeping.execute()).await.is_err());
    client.ping().await.unwrap();
    assert!(memory.opened() > opened, "the cancel request uses TLS too");
    client.close().await.unwrap();

    let wrong = config.clone().tls(tls("elsewhere.invalid")).build().unwrap();
    let error = FraiseClient::connect_with_config(wrong).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Tls, "{error}");

    // `sslmode` also applies to a target that is a directory.
    let port = server.port();
    let socket = server.folder().join(format!(".s.PGSQL.{port}"));
    let to_socket = ConnectionConfig::builder().host(folder.path().to_str().unwrap()).user("u");
    let to_socket = to_socket.connector(move |target: Target| {
        assert!(target.unix_socket.is_some());
        let socket = socket.clone();
        async { tokio::net::UnixStream::connect(socket).await }
    });
    let config = to_socket.ssl_mode(SslMode::Require).build().unwrap();
    let error = FraiseClient::connect_with_config(config).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Tls, "{error}");
}

#[test]
fn requirepeer_with_a_connector_is_an_error() {
    let config = ConnectionConfig::parse("host=/tmp user=u requirepeer=postgres").unwrap();
    let config = config.to_builder().connector(|_: Target| async { Ok(duplex(1).0) });
    let error = config.build().unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config);
    assert!(error.to_string().contains("requirepeer"), "{error}");
}
