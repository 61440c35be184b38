//! The same certificates and revocation lists, verified by this crate and by libpq, which uses
//! OpenSSL.
//!
//! Every result is the same, or stricter for a reason that SECURITY.md names.

mod authorities;
mod names;
mod random;
mod revocation;
#[path = "../../../support/mod.rs"]
mod support;
mod x509;

use std::{path::Path, sync::Arc};

use fraiseql_wire::FraiseClient;
use support::scripted::{self, message};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
        server::ResolvesServerCert,
        sign::{CertifiedKey, SingleCertAndKey},
    },
};
use x509::*;

/// The expected results of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Accepted,
    Refused,
    /// libpq accepts it, and this crate rejects it by design.
    Stricter,
    /// This crate rejects it. Versions of OpenSSL differ.
    Rejected,
    /// Any results, unless this crate is more lenient.
    NotLenient,
}
use Expect::{Accepted, NotLenient, Refused, Rejected, Stricter};

/// The cases, and the unexpected results.
#[derive(Default)]
struct Cases {
    count: usize,
    wrong: Vec<String>,
}

/// The certificates of a server, and the trust settings of a client.
#[derive(Clone)]
struct Case {
    /// The server's certificate first.
    chain: Vec<Vec<u8>>,
    key: Entity,
    roots: String,
    lists: Option<String>,
    host: &'static str,
    mode: &'static str,
}

impl Case {
    fn new(leaf: &Entity, chain: &[&Vec<u8>], roots: &[&Vec<u8>]) -> Self {
        let owned = |values: &[&Vec<u8>]| values.iter().map(|v| (*v).clone()).collect::<Vec<_>>();
        Self {
            chain: owned(chain),
            key: leaf.clone(),
            roots: pem("CERTIFICATE", &owned(roots)),
            lists: None,
            host: "db.example",
            mode: "verify-full",
        }
    }

    fn host(mut self, host: &'static str) -> Self {
        self.host = host;
        self
    }

    fn mode(mut self, mode: &'static str) -> Self {
        self.mode = mode;
        self
    }

    /// Returns the results of this crate and of libpq.
    async fn outcomes(&self) -> [Result<(), String>; 2] {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let server = Server::start(&self.chain, &self.key).await;
        let roots = write("root.crt", &self.roots);
        let lists = self.lists.as_ref().map(|text| write("root.crl", text));
        let text = server.text(self.host, self.mode, &roots, lists.as_deref());
        outcomes(&text).await
    }

    fn lists(mut self, lists: &[&Vec<u8>]) -> Self {
        let lists: Vec<_> = lists.iter().map(|l| (*l).clone()).collect();
        self.lists = Some(pem("X509 CRL", &lists));
        self
    }
}

impl Cases {
    async fn check(&mut self, what: &str, case: &Case, expect: Expect) {
        self.check_error(what, case, expect, "").await;
    }

    /// Also checks for a part of this crate's error.
    async fn check_error(&mut self, what: &str, case: &Case, expect: Expect, part: &str) {
        let [ours, libpq] = case.outcomes().await;
        let right = match expect {
            Accepted => ours.is_ok() && libpq.is_ok(),
            Refused => ours.is_err() && libpq.is_err(),
            Stricter => ours.is_err() && libpq.is_ok(),
            Rejected => ours.is_err(),
            NotLenient => ours.is_err() || libpq.is_ok(),
        };
        let said = ours.as_ref().err().map(String::as_str).unwrap_or_default();
        if !right || !said.contains(part) {
            self.wrong.push(format!("{what}: {expect:?}, but ours {ours:?}, libpq {libpq:?}"));
        }
        self.count += 1;
    }

    fn done(self, at_least: usize) {
        let Self { count, wrong } = self;
        assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
        assert!(count >= at_least, "{count}");
    }
}

/// Returns the results of this crate and of libpq for a connection string.
async fn outcomes(text: &str) -> [Result<(), String>; 2] {
    let ours = FraiseClient::connect(text).await.map(drop).map_err(|e| e.to_string());
    let owned = text.to_owned();
    let libpq = tokio::task::spawn_blocking(move || fraiseql_wire_libpq::try_connect(&owned));
    [ours, libpq.await.unwrap().map(drop)]
}

/// A server that sends any certificates and accepts any client.
struct Server {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(chain: &[Vec<u8>], key: &Entity) -> Self {
        let provider = Arc::new(ring::default_provider());
        let key = PrivatePkcs8KeyDer::from(key.key.serialize_der());
        let key = provider.key_provider.load_private_key(key.into()).unwrap();
        let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let certified: Arc<dyn ResolvesServerCert> =
            Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(certified);
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(socket, acceptor.clone()));
            }
        });
        Self { port, task }
    }

    fn text(&self, host: &str, mode: &str, roots: &Path, lists: Option<&Path>) -> String {
        let lists = lists.map(|path| format!("sslcrl={}", path.display())).unwrap_or_default();
        format!(
            "host={host} hostaddr=127.0.0.1 port={} user=u dbname=d sslmode={mode} \
             connect_timeout=20 sslsni=0 sslrootcert={} {lists}",
            self.port,
            roots.display()
        )
    }
}

async fn serve(mut socket: TcpStream, acceptor: TlsAcceptor) -> Option<()> {
    let mut request = [0; 8];
    socket.read_exact(&mut request).await.ok()?;
    assert_eq!(request, *b"\0\0\0\x08\x04\xd2\x16\x2f", "an SSLRequest");
    socket.write_all(b"S").await.ok()?;
    let mut stream = acceptor.accept(socket).await.ok()?;
    let length = stream.read_u32().await.ok()?;
    stream.read_exact(&mut vec![0; length as usize - 4]).await.ok()?;
    let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
    let answer = [scripted::auth_ok(), key, scripted::ready()].concat();
    stream.write_all(&answer).await.ok()?;
    stream.flush().await.ok()?;
    stream.read_to_end(&mut Vec::new()).await.ok()?;
    Some(())
}

/// The fields of a plain server certificate.
fn leaf_fields() -> Fields {
    Fields::new(&[alternative_names(&[dns("db.example")])])
}
