//! Handshakes with a rustls server, and files made by rcgen and the openssl command.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{
        AlgorithmIdentifier, CertificateDer, InvalidSignature, PrivateKeyDer,
        SignatureVerificationAlgorithm, UnixTime, alg_id, pem::PemObject as _,
    },
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
};
use x509_cert::certificate::Version;

use super::{
    asn1::{DECODED, parse_certificate},
    channel_binding,
    connector::{ALPN, TlsConnector, provider, sni},
    error::tls_error,
    paths, roots,
    stream::TlsStream,
    trust,
    verify::Verifier,
};
use crate::{
    config::{
        SslMode,
        tls::{
            TlsConfig, TlsConfigBuilder, from_keywords,
            settings::{
                ClientCertificate, Crls, RootSource, SendCertificate, Source, TlsSettings,
                TlsVersion,
            },
        },
    },
    error::{Error, Result},
    transport::{TlsInfo, custom::CustomStream},
};

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// An intermediate authority that this one has signed.
    fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { chain: pem, key: key.serialize_pem() }
    }

    fn crl(&self, revoked: &[u8], until: i32) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(vec![*serial]),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2023, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(vec![1]),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

#[derive(Clone)]
struct Identity {
    chain: String,
    key: String,
}

fn named(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
}

#[derive(Clone)]
struct Server {
    identity: Identity,
    versions: Vec<&'static rustls::SupportedProtocolVersion>,
    alpn: bool,
    /// The authority of client certificates, and whether one must be sent.
    clients: Option<(String, bool)>,
}

impl Server {
    fn new(identity: &Identity) -> Self {
        let identity = identity.clone();
        Self { identity, versions: vec![&TLS12, &TLS13], alpn: true, clients: None }
    }

    fn config(&self) -> ServerConfig {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.versions)
            .unwrap();
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some((ca, required)) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&provider),
                );
                let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = CertificateDer::pem_slice_iter(self.identity.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.identity.key.as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let key = CertifiedKey::new(chain.map(Result::unwrap).collect(), key);
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        if self.alpn {
            config.alpn_protocols = vec![ALPN.to_vec()];
        }
        config
    }

    /// Performs a handshake and reads a byte, because a rejection may arrive only with the read.
    async fn meet(&self, settings: &TlsSettings, host: &str, direct: bool) -> Result<TlsInfo> {
        let connector = TlsConnector::new(settings, Some(host))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(self.config()));
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            match acceptor.accept(tcp).into_fallible().await {
                Ok(mut stream) => {
                    let _ = stream.write_all(b"x").await;
                    let _ = stream.shutdown().await;
                }
                // Closing with unread bytes would reset the connection and lose the alert.
                Err((_, mut tcp)) => drop(tcp.read_to_end(&mut Vec::new()).await),
            }
        };
        let client = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect(tcp, direct).await?;
            let info = stream.info();
            let read = stream.read_u8().await;
            read.map_err(|e| tls_error(&e).unwrap_or_else(|| Error::io("while reading", e)))?;
            Ok(info)
        };
        tokio::join!(server, client).1
    }

    async fn accepts(&self, builder: TlsConfigBuilder, host: &str) -> TlsInfo {
        self.meet(builder.build().unwrap().settings(), host, false).await.unwrap()
    }

    async fn refuses(&self, builder: TlsConfigBuilder, host: &str, part: &str) {
        let result = self.meet(builder.build().unwrap().settings(), host, false).await;
        assert_tls_error(result, part);
    }
}

fn assert_tls_error<T: fmt::Debug>(result: Result<T>, part: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(part) && !text.contains('\n'), "{part:?} is not in: {text}");
}

fn trusting(ca: &Ca) -> TlsConfigBuilder {
    TlsConfig::builder().ca_cert_pem(ca.pem.clone())
}

fn openssl(folder: &tempfile::TempDir, command: &str) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(command.split(' '))
        .current_dir(folder)
        .output()
        .expect("these tests need the openssl command: apt-get install openssl");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    restrict(&path, 0o600);
    path
}

fn restrict(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn valid_certificate_is_accepted_and_tls_info_reported() {
    let ca = Ca::new("CA");
    let mut server = Server::new(&ca.issue(named(&["db.example"])));
    let info = server.accepts(trusting(&ca), "db.example").await;
    assert_eq!(info.version, "TLSv1.3");
    assert!(info.cipher.starts_with("TLS_"), "{info:?}");
    assert!(!info.certificate_requested && !info.certificate_sent);
    assert_eq!(info.server_end_point.map(|b| b.len()), Some(32));
    server.versions = vec![&TLS12];
    let info = server.accepts(trusting(&ca), "db.example").await;
    assert_eq!(info.version, "TLSv1.2");
    assert!(info.cipher.starts_with("TLS_ECDHE_ECDSA_WITH_"), "{info:?}");
}

/// A connector's stream that accepts no more bytes once its peer is gone.
struct FullAfterPeer {
    tcp: TcpStream,
    is_peer_gone: Arc<AtomicBool>,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for FullAfterPeer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for FullAfterPeer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.is_peer_gone.load(Relaxed) {
            return Pin::new(&mut self.tcp).poll_write(cx, buf);
        }
        // A panic instead of an endless loop.
        assert!(self.writes.fetch_add(1, Relaxed) < 100, "the write is repeated forever");
        Poll::Ready(Ok(0))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Returns a TLS stream that accepts no bytes, and the counter of its writes.
async fn full_stream() -> (TlsStream<CustomStream>, Arc<AtomicUsize>) {
    let ca = Ca::new("CA");
    let server = Server::new(&ca.issue(named(&["db"])));
    let tls = trusting(&ca).build().unwrap();
    let connector = TlsConnector::new(tls.settings(), Some("db")).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server.config()));
    let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let (is_peer_gone, writes) = (Arc::<AtomicBool>::default(), Arc::default());
    let stream =
        FullAfterPeer { tcp, is_peer_gone: Arc::clone(&is_peer_gone), writes: Arc::clone(&writes) };
    let stream = CustomStream::new(Box::new(stream));
    let (peer, stream) = tokio::join!(accepting, connector.connect(stream, false));
    drop(peer.unwrap());
    is_peer_gone.store(true, Relaxed);
    (stream.unwrap(), writes)
}

/// The last message is sent in `Drop`.
#[tokio::test]
async fn last_message_fails_if_the_stream_accepts_no_bytes() {
    let (mut stream, writes) = full_stream().await;
    let error = stream.try_write_last(b"X").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    assert_eq!(writes.load(Relaxed), 1);
}

/// More bytes than TLS buffers, so it waits for the stream.
#[tokio::test]
async fn large_message_fails_if_the_stream_accepts_no_bytes() {
    let (mut stream, _) = full_stream().await;
    let error = stream.write_all(&[0; 1 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}

#[tokio::test]
async fn each_mode_verifies_chain_and_name_as_documented() {
    let (ca, other) = (Ca::new("CA"), Ca::new("Other"));
    let server = Server::new(&ca.issue(named(&["db.example"])));
    let weak = |b: TlsConfigBuilder| b.verify_hostname(false);
    let none = || TlsConfig::builder().danger_accept_invalid_certs(true);

    server.accepts(weak(trusting(&ca)), "elsewhere").await;
    server.accepts(none(), "elsewhere").await;
    server.refuses(trusting(&other), "db.example", "CN=CA) is not trusted: set sslroot").await;
    server.refuses(weak(trusting(&other)), "db.example", "is not trusted").await;
    server.refuses(trusting(&ca), "elsewhere", "for \"db.example\", not for \"elsewhere\"").await;
    server.accepts(trusting(&ca).server_name("db.example"), "10.0.0.1").await;
    server.accepts(trusting(&ca).sni(false), "db.example").await;

    // Alternative names and common names.
    let server = |names: &[&str]| Server::new(&ca.issue(named(names)));
    server(&["*.example"]).accepts(trusting(&ca), "DB.example").await;
    server(&["*.example"]).refuses(trusting(&ca), "a.db.example", "*.example").await;
    server(&["127.0.0.1", "::1"]).accepts(trusting(&ca), "127.0.0.1").await;
    server(&["127.0.0.1", "::1"]).accepts(trusting(&ca), "0::1").await;
    server(&["127.0.0.1"]).refuses(trusting(&ca), "127.0.0.2", "for 127.0.0.1").await;
    let common = |names: &[&str]| {
        let mut params = named(names);
        params.distinguished_name.push(DnType::CommonName, "db");
        Server::new(&ca.issue(params))
    };
    common(&[]).accepts(trusting(&ca), "db").await;
    common(&["127.0.0.1"]).accepts(trusting(&ca), "db").await;
    common(&["other"]).refuses(trusting(&ca), "db", "for \"other\", not").await;
}

#[tokio::test]
async fn certificate_dates_and_purpose_are_verified() {
    let ca = Ca::new("CA");
    let dates = |from, to| {
        let mut params = named(&["db"]);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params
    };
    let expired = Server::new(&ca.issue(dates(2020, 2021)));
    expired.refuses(trusting(&ca), "db", "expired on 2021-01-01").await;
    let future = Server::new(&ca.issue(dates(2200, 2201)));
    future.refuses(trusting(&ca), "db", "not valid before 2200-01-01").await;
    let mut client = named(&["db"]);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let server = Server::new(&ca.issue(client));
    server.refuses(trusting(&ca), "db", "not a server certificate").await;
}

#[tokio::test]
async fn certificate_among_the_roots_is_its_own_root() {
    let self_signed = |is_ca, until| {
        let mut params = named(&["db"]);
        params.is_ca = is_ca;
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        Identity { chain, key: key.serialize_pem() }
    };
    let pinning = |i: &Identity| TlsConfig::builder().ca_cert_pem(i.chain.clone());
    let authority = || IsCa::Ca(BasicConstraints::Unconstrained);
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa, authority()] {
        let identity = self_signed(is_ca, 2100);
        Server::new(&identity).accepts(pinning(&identity), "db").await;
        Server::new(&identity).refuses(pinning(&identity), "other", "not for \"other\"").await;
    }
    let expired = self_signed(authority(), 2020);
    Server::new(&expired).refuses(pinning(&expired), "db", "expired on 2020").await;
    // A different certificate with the same name is rejected.
    let (ours, theirs) = (self_signed(authority(), 2100), self_signed(authority(), 2100));
    Server::new(&theirs).refuses(pinning(&ours), "db", "CA:TRUE").await;
}

#[tokio::test]
async fn intermediates_come_from_the_server() {
    let ca = Ca::new("CA");
    let middle = ca.intermediate("Middle");
    let mut identity = middle.issue(named(&["db"]));
    Server::new(&identity).refuses(trusting(&ca), "db", "CN=Middle) is not trusted").await;
    // As in OpenSSL, roots are self-signed; other certificates of the file can be intermediates.
    Server::new(&identity).refuses(trusting(&middle), "db", "is not trusted").await;
    let both = TlsConfig::builder().ca_cert_pem(format!("{}{}", middle.pem, ca.pem));
    Server::new(&identity).accepts(both, "db").await;
    identity.chain += &middle.pem;
    Server::new(&identity).accepts(trusting(&ca), "db").await;
}

/// A pinned certificate is trusted only for itself, and an authority only within its validity.
#[tokio::test]
async fn only_a_valid_authority_can_sign_other_certificates() {
    let ca = Ca::new("CA");
    // A server's certificate whose key signs another one.
    let key = KeyPair::generate().unwrap();
    let pinned = named(&["pinned"]).signed_by(&key, &ca.issuer).unwrap().pem();
    let leaf = Ca { issuer: Issuer::new(named(&["pinned"]), key), pem: pinned };
    let forged = leaf.issue(named(&["db"]));
    Server::new(&forged).refuses(trusting(&leaf), "db", "EndEntityUsedAsCa").await;

    let mut params = Ca::params("Old");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let old = Ca { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) };
    Server::new(&old.issue(named(&["db"]))).refuses(trusting(&old), "db", "expired on").await;
}

#[tokio::test]
async fn revoked_certificates_are_rejected() {
    let (ca, folder) = (Ca::new("CA"), folder());
    let middle = ca.intermediate("Middle");
    let identity = |ca: &Ca, serial: u8| {
        let mut params = named(&["db"]);
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        ca.issue(params)
    };
    let crl = write(&folder, "root.crl", ca.crl(&[7], 2100));
    let with = |path: &Path| trusting(&ca).crl_path(path);
    Server::new(&identity(&ca, 8)).accepts(with(&crl), "db").await;
    Server::new(&identity(&ca, 7)).refuses(with(&crl), "db", "revoked").await;
    Server::new(&identity(&ca, 7)).refuses(with(&crl).verify_hostname(false), "x", "revoked").await;

    // Every certificate of the chain requires a list.
    let mut below = identity(&middle, 8);
    below.chain += &middle.pem;
    Server::new(&below).refuses(with(&crl), "db", "no revocation list of the issuer").await;
    let lists = tempfile::tempdir_in(&folder).unwrap();
    write(&lists, "a.r0", ca.crl(&[7], 2100));
    write(&lists, "b.r0", middle.crl(&[7], 2100));
    write(&lists, "README", "no list");
    Server::new(&below).accepts(with(lists.path()), "db").await;
    let mut revoked = identity(&middle, 7);
    revoked.chain += &middle.pem;
    Server::new(&revoked).refuses(with(lists.path()), "db", "revoked").await;

    let old = write(&folder, "old.crl", ca.crl(&[], 2024));
    Server::new(&identity(&ca, 8)).refuses(with(&old), "db", "expired on 2024-01-01").await;
    let empty = tempfile::tempdir_in(&folder).unwrap();
    let none = write(&folder, "none.crl", "");
    for (path, part) in [
        (folder.path().join("missing"), "cannot be read"),
        (empty.path().to_owned(), "contains no PEM"),
        (none, "contains no PEM list"),
    ] {
        Server::new(&identity(&ca, 8)).refuses(with(&path), "db", part).await;
    }
    // The default list can be missing, and is used if it exists.
    let server = Server::new(&identity(&ca, 7));
    let mut settings = trusting(&ca).build().unwrap().settings().clone();
    settings.crls = Crls { paths: vec![folder.path().join("missing")], optional: true };
    server.meet(&settings, "db", false).await.unwrap();
    settings.crls.paths = vec![crl];
    assert_tls_error(server.meet(&settings, "db", false).await, "revoked");
}

/// `openssl ca -gencrl` writes lists of version 1, unless its configuration has `crl_extensions`.
#[tokio::test]
async fn revocation_lists_of_version_1_made_by_openssl_are_used() {
    let (ca, dir) = (Ca::new("CA"), folder());
    write(&dir, "ca.pem", &ca.pem);
    write(&dir, "ca.key", ca.issuer.key().serialize_pem());
    write(&dir, "ca.cnf", "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ndefault_md=sha256\n");
    write(&dir, "index.txt", "R\t21000101000000Z\t240101000000Z\t07\tunknown\t/CN=db\n");
    let generate = "ca -gencrl -config ca.cnf -cert ca.pem -keyfile ca.key -crldays 9 -out ca.crl";
    openssl(&dir, generate);
    let text = String::from_utf8(openssl(&dir, "crl -in ca.crl -noout -text")).unwrap();
    assert!(text.contains("Version 1 (0x0)"), "{text}");
    for (serial, is_revoked) in [(7, true), (8, false)] {
        let mut params = named(&["db"]);
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        let server = Server::new(&ca.issue(params));
        let with = || trusting(&ca).crl_path(dir.path().join("ca.crl"));
        match is_revoked {
            true => server.refuses(with(), "db", "revoked").await,
            false => drop(server.accepts(with(), "db").await),
        }
    }
}

#[tokio::test]
async fn default_root_file_enables_verification_if_it_exists() {
    let (ca, other, home) = (Ca::new("CA"), Ca::new("Other"), folder());
    std::fs::create_dir(home.path().join(".postgresql")).unwrap();
    let server = Server::new(&ca.issue(named(&["db"])));
    let settings = |mode| from_keywords(&|_: &str| None, mode, Some(home.path())).unwrap();
    let weak = [SslMode::Allow, SslMode::Prefer, SslMode::Require];
    for mode in weak {
        server.meet(&settings(mode), "x", false).await.unwrap();
    }
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        assert_tls_error(TlsConnector::new(&settings(mode), Some("db")), "does not exist");
    }
    write(&home, ".postgresql/root.crt", &other.pem);
    for mode in weak {
        assert_tls_error(server.meet(&settings(mode), "db", false).await, "is not trusted");
    }
    write(&home, ".postgresql/root.crt", other.pem + &ca.pem);
    for mode in weak.into_iter().chain([SslMode::VerifyCa]) {
        server.meet(&settings(mode), "x", false).await.unwrap();
    }
    assert_tls_error(
        server.meet(&settings(SslMode::VerifyFull), "x", false).await,
        "not for \"x\"",
    );
    assert_tls_error(
        TlsConnector::new(&settings(SslMode::VerifyFull), None),
        "requires a host name",
    );
    server.meet(&settings(SslMode::VerifyFull), "db", false).await.unwrap();
}

#[tokio::test]
async fn client_certificate_is_sent_on_request() {
    let (ca, clients) = (Ca::new("CA"), Ca::new("Clients"));
    let identity = clients.issue(named(&["app"]));
    let stranger = ca.issue(named(&["app"]));
    let with =
        |i: &Identity| trusting(&ca).client_cert_pem(i.chain.clone()).client_key_pem(i.key.clone());
    for versions in [vec![&TLS12], vec![&TLS13]] {
        let mut server = Server::new(&ca.issue(named(&["db"])));
        server.versions = versions;
        let sent = |i: &TlsInfo| (i.certificate_requested, i.certificate_sent);
        assert_eq!(sent(&server.accepts(with(&identity), "db").await), (false, false));
        server.clients = Some((clients.pem.clone(), false));
        assert_eq!(sent(&server.accepts(with(&identity), "db").await), (true, true));
        assert_eq!(sent(&server.accepts(trusting(&ca), "db").await), (true, false));
        server.clients = Some((clients.pem.clone(), true));
        assert_eq!(sent(&server.accepts(with(&identity), "db").await), (true, true));
        server.refuses(trusting(&ca), "db", "client certificate").await;
        server.refuses(with(&stranger), "db", "rejected the client certificate").await;
    }
}

#[tokio::test]
async fn sslcertmode_works_like_libpq() {
    let ca = Ca::new("CA");
    let mut server = Server::new(&ca.issue(named(&["db"])));
    let identity = ca.issue(named(&["app"]));
    let mut settings = trusting(&ca)
        .client_cert_pem(identity.chain)
        .client_key_pem(identity.key)
        .build()
        .unwrap()
        .settings()
        .clone();
    settings.send_certificate = SendCertificate::Require;
    let demand = |result: Result<TlsInfo>, part: &str| match result.unwrap_err() {
        // Not Error::Tls, after which a plaintext attempt may follow.
        Error::Authentication { message, .. } => assert!(message.contains(part), "{message}"),
        other => panic!("{other:?}"),
    };
    demand(server.meet(&settings, "db", false).await, "did not request one");
    server.clients = Some((ca.pem.clone(), false));
    server.meet(&settings, "db", false).await.unwrap();
    settings.send_certificate = SendCertificate::Never;
    assert!(!server.meet(&settings, "db", false).await.unwrap().certificate_sent);
    settings.send_certificate = SendCertificate::Require;
    settings.client = None;
    demand(server.meet(&settings, "db", false).await, "there is none to send");
}

#[tokio::test]
async fn private_keys_are_read_in_all_unencrypted_formats() {
    let (ca, dir) = (Ca::new("CA"), folder());
    let mut server = Server::new(&ca.issue(named(&["db"])));
    server.clients = Some((ca.pem.clone(), true));
    let key = |command: &str| drop(openssl(&dir, command));
    write(&dir, "ca.pem", &ca.pem);
    write(&dir, "ca.key", ca.issuer.key().serialize_pem());
    key("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem");
    key("ecparam -genkey -name prime256v1 -out ec.sec1");
    key("pkey -in ec.sec1 -out ec.pem");
    key("genpkey -algorithm ED25519 -out ed.pem");
    key("pkey -in rsa.pem -traditional -out rsa.pkcs1");
    key("pkey -in rsa.pem -outform DER -out rsa.der");
    key("pkcs8 -topk8 -nocrypt -in rsa.pem -outform DER -out rsa.p8der");
    key("ec -in ec.pem -outform DER -out ec.der");
    write(&dir, "v3.cnf", "basicConstraints=CA:FALSE\n");
    for kind in ["rsa", "ec", "ed"] {
        key(&format!("req -new -key {kind}.pem -subj /CN=app -out {kind}.csr"));
        key(&format!(
            "x509 -req -in {kind}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile \
             v3.cnf -out {kind}.crt"
        ));
    }
    let with = |certificate: &str, key: &str| {
        let path = dir.path().join(key);
        restrict(&path, 0o600);
        trusting(&ca).client_cert_path(dir.path().join(certificate)).client_key_path(path)
    };
    for (certificate, key) in [
        ("rsa.crt", "rsa.pem"),
        ("rsa.crt", "rsa.pkcs1"),
        ("rsa.crt", "rsa.der"),
        ("rsa.crt", "rsa.p8der"),
        ("ec.crt", "ec.sec1"),
        ("ec.crt", "ec.pem"),
        ("ec.crt", "ec.der"),
        ("ed.crt", "ed.pem"),
    ] {
        assert!(server.accepts(with(certificate, key), "db").await.certificate_sent, "{key}");
    }
    for (certificate, key, part) in [
        ("rsa.crt", "rsa.crt", "no private key"),
        ("ec.crt", "rsa.pem", "does not match"),
        ("rsa.pem", "rsa.pem", "no PEM certificate"),
    ] {
        server.refuses(with(certificate, key), "db", part).await;
    }
}

/// A key, its certificate and a server that requires it.
#[cfg(feature = "encrypted-keys")]
struct EncryptedKeys {
    dir: tempfile::TempDir,
    ca: Ca,
    server: Server,
    certificate: String,
}

#[cfg(feature = "encrypted-keys")]
impl EncryptedKeys {
    fn new() -> Self {
        let (ca, dir) = (Ca::new("CA"), folder());
        let identity = ca.issue(named(&["app"]));
        write(&dir, "plain.pem", &identity.key);
        let mut server = Server::new(&ca.issue(named(&["db"])));
        server.clients = Some((ca.pem.clone(), true));
        Self { dir, ca, server, certificate: identity.chain }
    }

    /// Encrypts the key by `openssl`, with the password `hunter2`.
    fn encrypt(&self, command: &str) -> Vec<u8> {
        let passwords = "-in plain.pem -passout pass:hunter2";
        openssl(&self.dir, &format!("{command} {passwords}"))
    }

    async fn meet(&self, key: Vec<u8>, password: Option<&str>) -> Result<TlsInfo> {
        let builder = trusting(&self.ca).client_cert_pem(&*self.certificate).client_key_pem(key);
        let mut settings = builder.build().unwrap().settings().clone();
        settings.client.as_mut().unwrap().key_password =
            password.map(crate::config::tls::KeyPassword::new);
        assert!(!format!("{settings:?}").contains("hunter2"));
        self.server.meet(&settings, "db", false).await
    }
}

#[cfg(feature = "encrypted-keys")]
#[tokio::test]
async fn encrypted_private_keys_are_decrypted_with_their_password() {
    let keys = EncryptedKeys::new();
    for command in [
        "pkcs8 -topk8",
        "pkey -aes256",
        "pkcs8 -topk8 -scrypt",
        "pkcs8 -topk8 -iter 10000",
        "pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1",
        "pkcs8 -topk8 -v2 aes-192-cbc -v2prf hmacWithSHA512",
        "pkcs8 -topk8 -v2 des3",
        "pkcs8 -topk8 -outform DER",
    ] {
        let key = keys.encrypt(command);
        let info = keys.meet(key.clone(), Some("hunter2")).await;
        assert!(info.unwrap_or_else(|e| panic!("{command}: {e}")).certificate_sent);
        assert_tls_error(keys.meet(key.clone(), Some("hunter")).await, "correct sslpassword");
        assert_tls_error(keys.meet(key, None).await, "set sslpassword in the connection string");
    }
    let key = keys.encrypt("pkcs8 -topk8");
    for wrong in ["hunter3", "hunter2 ", "Hunter2"] {
        assert_tls_error(keys.meet(key.clone(), Some(wrong)).await, "correct sslpassword");
    }
    // A password for a key that is not encrypted is ignored, as by libpq.
    let plain = std::fs::read(keys.dir.path().join("plain.pem")).unwrap();
    keys.meet(plain.clone(), Some("hunter2")).await.unwrap();
    // Text before the key, and a certificate in the same file.
    let text = b"Bag Attributes\n    friendlyName: \xe4\n";
    let key = [text, keys.certificate.as_bytes(), &keys.encrypt("pkcs8 -topk8")].concat();
    keys.meet(key, Some("hunter2")).await.unwrap();
}

#[cfg(feature = "encrypted-keys")]
#[tokio::test]
async fn encrypted_private_keys_that_are_not_supported_are_errors_with_advice() {
    let keys = EncryptedKeys::new();
    for (command, part) in [
        ("ec -aes256", "traditional encryption of PEM"),
        ("pkcs8 -topk8 -v1 PBE-SHA1-3DES", "its encryption is not supported"),
    ] {
        let key = keys.encrypt(command);
        for password in [Some("hunter2"), Some("hunter3")] {
            let result = keys.meet(key.clone(), password).await;
            assert!(result.as_ref().unwrap_err().to_string().contains(part), "{result:?}");
            assert_tls_error(result, "openssl pkcs8 -topk8 -in");
        }
    }
    let costly = keys.encrypt("pkcs8 -topk8 -scrypt -scrypt_N 2048 -scrypt_r 8 -scrypt_p 100");
    assert_tls_error(
        keys.meet(costly, Some("hunter2")).await,
        "the limits are 2,000,000 iterations",
    );
    let mut damaged = keys.encrypt("pkcs8 -topk8");
    damaged.truncate(damaged.len() / 2);
    assert_tls_error(keys.meet(damaged, Some("hunter2")).await, "is malformed");
}

#[cfg(not(feature = "encrypted-keys"))]
#[test]
fn encrypted_private_key_without_the_feature_is_an_error_that_names_it() {
    let (ca, dir) = (Ca::new("CA"), folder());
    let identity = ca.issue(named(&["app"]));
    write(&dir, "plain.pem", &identity.key);
    for command in ["pkcs8 -topk8", "pkcs8 -topk8 -outform DER", "ec -aes256"] {
        let key = openssl(&dir, &format!("{command} -in plain.pem -passout pass:hunter2"));
        let builder = trusting(&ca).client_cert_pem(&*identity.chain).client_key_pem(key);
        let result = TlsConnector::new(builder.build().unwrap().settings(), Some("db"));
        assert_tls_error(result, "encrypted-keys of fraiseql-wire");
    }
}

#[test]
fn key_files_are_checked() {
    let (ca, dir) = (Ca::new("CA"), folder());
    let identity = ca.issue(named(&["app"]));
    let certificate = write(&dir, "app.crt", &identity.chain);
    let key = write(&dir, "app.key", &identity.key);
    let settings = |key: &Path, optional| {
        let mut settings = trusting(&ca).build().unwrap().settings().clone();
        settings.client = Some(ClientCertificate {
            certificate: Source::File(certificate.clone()),
            key: Some(Source::File(key.to_owned())),
            key_password: None,
            optional,
        });
        settings
    };
    let new = |s: &TlsSettings| TlsConnector::new(s, Some("db"));
    new(&settings(&key, false)).unwrap();
    restrict(&key, 0o644);
    assert_tls_error(
        new(&settings(&key, false)),
        "has group or world access; file must have permissions",
    );
    assert_tls_error(new(&settings(dir.path(), false)), "is not a regular file");
    let missing = dir.path().join("missing");
    for optional in [false, true] {
        assert_tls_error(
            new(&settings(&missing, optional)),
            "certificate present, but not private key file",
        );
    }
    let mut settings = settings(&key, false);
    settings.client.as_mut().unwrap().key = None;
    assert_tls_error(new(&settings), "no private key");
    // A missing default certificate means none; any other missing certificate is an error.
    let client = settings.client.as_mut().unwrap();
    client.certificate = Source::File(missing);
    assert_tls_error(new(&settings), "cannot be read");
    settings.client.as_mut().unwrap().optional = true;
    new(&settings).unwrap();
}

#[tokio::test]
async fn alpn_is_always_offered_and_required_for_direct_tls() {
    let ca = Ca::new("CA");
    let mut server = Server::new(&ca.issue(named(&["db"])));
    let settings = trusting(&ca).build().unwrap().settings().clone();
    server.meet(&settings, "db", true).await.unwrap();
    server.alpn = false;
    server.meet(&settings, "db", false).await.unwrap();
    assert_tls_error(server.meet(&settings, "db", true).await, "sslnegotiation=postgres");
}

#[tokio::test]
async fn tls_versions_are_limited_to_the_configured_range() {
    let ca = Ca::new("CA");
    let mut server = Server::new(&ca.issue(named(&["db"])));
    let info = server.accepts(trusting(&ca).max_version(TlsVersion::Tls12), "db").await;
    assert_eq!(info.version, "TLSv1.2");
    server.versions = vec![&TLS12];
    let versions = "ssl_min_protocol_version";
    server.refuses(trusting(&ca).min_version(TlsVersion::Tls13), "db", versions).await;
    server.versions = vec![&TLS13];
    server.refuses(trusting(&ca).max_version(TlsVersion::Tls12), "db", versions).await;
}

#[tokio::test]
async fn response_that_is_not_tls_is_an_error() {
    let connector =
        TlsConnector::new(trusting(&Ca::new("CA")).build().unwrap().settings(), Some("db"));
    let connector = connector.unwrap();
    for (answer, is_tls) in [(&b"HTTP/1.1 400 Bad Request\r\n"[..], true), (b"", false)] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
            tcp.write_all(answer).await.unwrap();
            tcp.shutdown().await.unwrap();
            drop(tcp.read_to_end(&mut Vec::new()).await);
        };
        let client = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            connector.connect(tcp, false).await.map(drop)
        };
        let (_, result) = tokio::join!(server, client);
        if is_tls {
            assert_tls_error(result, "is not TLS");
        } else {
            assert!(matches!(result, Err(Error::ConnectionClosed { .. })), "{result:?}");
        }
    }
}

/// The commands of the Postgres manual create these with versions of openssl that add no
/// extensions; newer ones need an option. A self-signed one can be pinned; one signed by an
/// authority works only without verification.
#[tokio::test]
async fn certificates_of_version_1_can_be_pinned_or_left_unverified() {
    let (ca, dir) = (Ca::new("CA"), folder());
    write(&dir, "ca.pem", &ca.pem);
    write(&dir, "ca.key", ca.issuer.key().serialize_pem());
    write(&dir, "req.cnf", "[req]\ndistinguished_name=dn\n[dn]\n");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let version = |name: &str| {
        let der = CertificateDer::from_pem_slice(read(name).as_bytes()).unwrap();
        parse_certificate(&der).unwrap().tbs_certificate().version()
    };
    for kind in ["RSA -pkeyopt rsa_keygen_bits:2048", "EC -pkeyopt ec_paramgen_curve:P-256"] {
        openssl(&dir, &format!("genpkey -algorithm {kind} -out key.pem"));
        openssl(&dir, "req -new -key key.pem -subj /CN=db -out csr.pem");
        let sign = |with: &str, newer_with: &str, out: &str| {
            openssl(&dir, &format!("x509 -req -in csr.pem {with} -days 9 -out {out}"));
            if version(out) != Version::V1 {
                let command = format!("req -x509 -x509v1 -config req.cnf -in csr.pem {newer_with}");
                openssl(&dir, &format!("{command} -days 9 -out {out}"));
            }
            assert_eq!(version(out), Version::V1);
        };
        sign("-CA ca.pem -CAkey ca.key -CAcreateserial", "-CA ca.pem -CAkey ca.key", "crt.pem");
        sign("-signkey key.pem", "-key key.pem", "self.pem");
        let identity = |name| Identity { chain: read(name), key: read("key.pem") };
        let (issued, own) = (identity("crt.pem"), identity("self.pem"));
        let any = || TlsConfig::builder().danger_accept_invalid_certs(true);
        let pin = |i: &Identity| TlsConfig::builder().ca_cert_pem(i.chain.clone());
        for versions in [vec![&TLS12], vec![&TLS13]] {
            let mut server = Server::new(&issued);
            server.versions = versions.clone();
            server.accepts(any(), "db").await;
            server.refuses(trusting(&ca), "db", "-extfile").await;
            server.refuses(pin(&issued), "db", "-extfile").await;
            let mut server = Server::new(&own);
            server.versions = versions;
            server.accepts(pin(&own), "db").await;
            server.refuses(pin(&own), "other", "not for \"other\"").await;
        }
        // A key that does not match the certificate is detected.
        let mut server = Server::new(&issued);
        server.identity.key = KeyPair::generate().unwrap().serialize_pem();
        for versions in [vec![&TLS12], vec![&TLS13]] {
            server.versions = versions;
            let result = server.meet(any().build().unwrap().settings(), "db", false).await;
            assert!(result.is_err());
        }
    }
}

/// Verifies a PEM chain with these settings.
fn verify(settings: &TlsSettings, host: Option<&str>, chain: &str) -> Result<(), String> {
    let algorithms = provider().signature_verification_algorithms;
    let trust = roots::load(settings).unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap);
    let chain: Vec<_> = chain.collect();
    let verifier = Verifier::new(trust, host.map(str::to_owned), algorithms);
    verifier.verify(&chain[0], &chain[1..], UnixTime::now())
}

/// The error names a weak or unsupported key and does not mention a wrong signature.
#[test]
fn unsupported_keys_and_signatures_are_named() {
    let dir = folder();
    write(&dir, "ca.cnf", "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign");
    write(&dir, "db.cnf", "subjectAltName=DNS:db");
    let make = |name: &str, key: &str, by: &str, options: &str| {
        openssl(&dir, &format!("genpkey -algorithm {key} -out {name}.key"));
        openssl(&dir, &format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        let (sign, extensions) = if name == by {
            (format!("-signkey {by}.key"), "ca.cnf")
        } else {
            (format!("-CA {by}.pem -CAkey {by}.key -set_serial 7"), "db.cnf")
        };
        let common = format!("-days 9 -extfile {extensions} {options} -out {name}.pem");
        openssl(&dir, &format!("x509 -req -in {name}.csr {sign} {common}"));
    };
    let good = "RSA -pkeyopt rsa_keygen_bits:2048";
    let weak = "RSA -pkeyopt rsa_keygen_bits:1024";
    make("good", good, "good", "-sha256");
    // A root's own signature does not matter.
    make("old", good, "old", "-sha1");
    make("weak", weak, "weak", "-sha256");
    for (name, key, by, options, part) in [
        ("a", good, "good", "-sha256", ""),
        ("b", good, "old", "-sha256", ""),
        ("c", weak, "good", "-sha256", "the server's certificate has an RSA key of 1024 bits"),
        ("d", good, "good", "-sha1", "(CN=d) is signed with SHA-1, which is insecure"),
        ("e", good, "weak", "-sha256", "an authority (CN=weak) has an RSA key of 1024 bits"),
        ("f", "RSA-PSS -pkeyopt rsa_keygen_bits:2048", "good", "-sha256", "the type RSASSA-PSS"),
        ("g", "EC -pkeyopt ec_paramgen_curve:secp256k1", "good", "-sha256", "the curve secp256k1"),
        ("h", "ED448", "good", "-sha256", "Ed448"),
        ("i", "EC -pkeyopt ec_paramgen_curve:P-384", "good", "-sha384", ""),
        #[cfg(not(feature = "tls-aws-lc-rs"))]
        ("j", "EC -pkeyopt ec_paramgen_curve:P-521", "good", "-sha256", "the curve P-521"),
    ] {
        make(name, key, by, options);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let roots = read("good.pem") + &read("old.pem") + &read("weak.pem");
        let chain = read(&format!("{name}.pem"));
        let tls = TlsConfig::builder().ca_cert_pem(roots).build().unwrap();
        let result = verify(tls.settings(), Some("db"), &chain);
        match part {
            "" => result.unwrap(),
            part => {
                let error = result.unwrap_err();
                assert!(error.contains(part) && error.contains("issue"), "{name}: {error}");
                assert!(!error.contains("wrong"), "{name}: {error}");
            }
        }
        // Even without verification, the key must sign the handshake.
        let any = TlsConfig::builder().danger_accept_invalid_certs(true).build().unwrap();
        let result = verify(any.settings(), None, &chain);
        assert_eq!(
            result.is_err(),
            part.contains("server's")
                || part.contains("type")
                || part.contains("curve")
                || part.contains("Ed448"),
            "{name}: {result:?}"
        );
    }
}

/// An attacker chooses the names in a certificate: errors show them on one line, short, and
/// escaped.
#[test]
fn errors_show_certificate_names_on_one_short_line() {
    let hostile = format!("a\u{202e}b\r\n\u{1b}[2J{}", "x".repeat(10_000));
    let (ca, hostile_ca) = (Ca::new("CA"), Ca::new(&hostile));
    let tls = trusting(&ca).build().unwrap();
    let mut named_so = named(&[]);
    named_so.distinguished_name.push(DnType::CommonName, hostile.as_str());
    for chain in [hostile_ca.issue(named(&["db"])).chain, ca.issue(named_so).chain] {
        let error = verify(tls.settings(), Some("db"), &chain).unwrap_err();
        assert!(error.contains("a b") && error.contains("xxx..."), "{error}");
        assert!(!error.contains(char::is_control) && !error.contains('\u{202e}'), "{error:?}");
        assert!(error.len() < 1000, "{}", error.len());
    }
}

/// A common name is accepted only from an authority that the user has configured.
#[test]
fn common_names_from_public_authorities_are_rejected() {
    let ca = Ca::new("CA");
    let settings = trusting(&ca).build().unwrap().settings().clone();
    let algorithms = provider().signature_verification_algorithms;
    let mut common = named(&[]);
    common.distinguished_name.push(DnType::CommonName, "db");
    let leaf = CertificateDer::from_pem_slice(ca.issue(common).chain.as_bytes()).unwrap();
    let named_leaf =
        CertificateDer::from_pem_slice(ca.issue(named(&["db"])).chain.as_bytes()).unwrap();
    // The same root as both the user's and the system's, in both orders.
    for (public, is_accepted) in [
        (vec![false], true),
        (vec![true], false),
        (vec![true, false], true),
        (vec![false, true], true),
    ] {
        let mut trust = roots::load(&settings).unwrap().unwrap();
        let [root] = &trust.roots[..] else { panic!() };
        trust.roots = public
            .iter()
            .map(|is_public| trust::Root {
                certificate: root.certificate.clone(),
                anchor: root.anchor.clone(),
                is_public: *is_public,
            })
            .collect();
        let verifier = Verifier::new(Some(trust), Some("db".into()), algorithms);
        let result = verifier.verify(&leaf, &[], UnixTime::now());
        if is_accepted {
            result.unwrap();
        } else {
            let error = result.unwrap_err();
            assert!(error.contains("\"db\"") && error.contains("subjectAltName"), "{error}");
        }
        verifier.verify(&named_leaf, &[], UnixTime::now()).unwrap();
    }
}

/// A server that sends many certificates that could all have signed each other is rejected after a
/// limited number of steps.
#[test]
fn path_search_in_certificate_mazes_is_limited() {
    let ca = Ca::new("CA");
    // Five layers of eight certificates with the same name, and others that are dead ends.
    let key = KeyPair::generate().unwrap();
    let layer = |i: usize| format!("layer {i}");
    let issuers: Vec<_> =
        (0..7).map(|i| Issuer::new(Ca::params(&layer(i)), KeyPair::generate().unwrap())).collect();
    let mut maze = Vec::new();
    for i in 0..5 {
        for serial in 0..8_u8 {
            let mut params = Ca::params(&layer(i));
            params.serial_number = Some(SerialNumber::from(vec![serial]));
            maze.push(params.signed_by(issuers[i].key(), &issuers[i + 1]).unwrap().der().clone());
        }
    }
    for i in 0..60 {
        let other = Ca::params(&format!("nowhere {i}"));
        maze.push(other.signed_by(&key, &issuers[6]).unwrap().der().clone());
    }
    let leaf = named(&["db"]).signed_by(&key, &issuers[0]).unwrap().der().clone();
    let settings = trusting(&ca).build().unwrap().settings().clone();
    let trust = roots::load(&settings).unwrap().unwrap();
    let parsed = parse_certificate(&leaf).unwrap();
    let found = paths::find(&parsed, &maze, &trust).found;
    assert!(found.len() <= 64, "{}", found.len());
    assert!(found.iter().map(|p| p.intermediates.len() + 1).sum::<usize>() <= 64);
    let verifier =
        Verifier::new(Some(trust), Some("db".into()), provider().signature_verification_algorithms);
    let error = verifier.verify(&leaf, &maze, UnixTime::now()).unwrap_err();
    assert!(error.contains(TOO_LONG), "{error}");
}

/// In the error after a limit of the search.
const TOO_LONG: &str = "the certificates that the server sent takes too long";

/// Verifies certificates, the server's first. Returns the result, and how many times as much was
/// decoded as was sent.
fn verify_counting(ca_pem: &str, chain: &[CertificateDer<'_>]) -> (Result<(), String>, usize) {
    let tls = TlsConfig::builder().ca_cert_pem(ca_pem).build().unwrap();
    let trust = roots::load(tls.settings()).unwrap();
    let algorithms = provider().signature_verification_algorithms;
    let verifier = Verifier::new(trust, Some("db.example".into()), algorithms);
    let before = DECODED.get();
    let result = verifier.verify(&chain[0], &chain[1..], UnixTime::now());
    let sent = chain.iter().map(|der| der.len()).sum::<usize>();
    (result, (DECODED.get() - before) / sent)
}

/// Returns certificates of one key with these serial numbers.
fn series(
    params: impl Fn() -> CertificateParams,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    serials: std::ops::Range<u8>,
) -> Vec<CertificateDer<'static>> {
    let issue = |serial| {
        let mut params = params();
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        params.signed_by(key, issuer).unwrap().der().clone()
    };
    serials.map(issue).collect()
}

/// A certificate with a large authorityKeyIdentifier, which matches all others but for the serial
/// number, is reached many times and decoded once.
#[test]
fn key_identifiers_are_decoded_once_for_each_certificate() {
    let ca = Ca::new("CA");
    let [x, y] = ["X", "Y"].map(Ca::new);
    let mut large = Ca::params("Y");
    // authorityCertIssuer with 9,000 DNS names, and authorityCertSerialNumber 200.
    let names: Vec<u8> = b"\x82\x01a".repeat(9000);
    let [high, low] = u16::try_from(names.len()).unwrap().to_be_bytes();
    let content = [&[0xa1, 0x82, high, low], &names[..], &[0x82, 2, 0, 200]].concat();
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let value = [&[0x30, 0x82, high, low], &content[..]].concat();
    let extension = CustomExtension::from_oid_content(&[2, 5, 29, 35], value);
    large.custom_extensions.push(extension);
    let mut chain = vec![named(&["db.example"]).signed_by(x.issuer.key(), &x.issuer).unwrap()];
    chain.push(large.signed_by(y.issuer.key(), &x.issuer).unwrap());
    let mut chain: Vec<_> = chain.iter().map(|c| c.der().clone()).collect();
    chain.extend(series(|| Ca::params("X"), x.issuer.key(), &y.issuer, 1..100));
    let (result, decoded) = verify_counting(&ca.pem, &chain);
    assert!(decoded <= 4, "decoded {decoded} times what was sent");
    assert!(result.unwrap_err().contains(TOO_LONG));
}

/// Describing a wrong signature looks for authorities with unsupported keys.
#[test]
fn certificates_are_decoded_once_to_describe_an_error() {
    let (ca, same_name, other) = (Ca::new("CA"), Ca::new("CA"), Ca::new("Other"));
    let leaf = named(&["db.example"]).signed_by(other.issuer.key(), &same_name.issuer).unwrap();
    let mut chain = vec![leaf.der().clone()];
    chain.extend(series(|| Ca::params("Other"), other.issuer.key(), &other.issuer, 1..100));
    let (result, decoded) = verify_counting(&ca.pem, &chain);
    assert!(decoded <= 4, "decoded {decoded} times what was sent");
    assert!(result.unwrap_err().contains("a signature in the server's certificate chain is wrong"));
}

#[test]
fn name_constraints_are_decoded_once_for_all_common_names() {
    let dir = folder();
    let list = |prefix: &str, suffix: &str| {
        (0..200).map(|i| format!("{prefix}{i}{suffix}")).collect::<Vec<_>>().concat()
    };
    let bases = format!("permitted;DNS:example{}", list(",excluded;DNS:x", ".test"));
    let authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign";
    write(&dir, "ca.cnf", authority);
    write(&dir, "sub.cnf", format!("{authority}\nnameConstraints=critical,{bases}"));
    write(&dir, "db.cnf", "keyUsage=digitalSignature\n");
    for (name, subject, by) in [
        ("ca", "/CN=ca".to_owned(), "-signkey ca.key"),
        ("sub", "/CN=sub".to_owned(), "-CA ca.pem -CAkey ca.key -set_serial 1"),
        ("db", list("/CN=db", ".example"), "-CA sub.pem -CAkey sub.key -set_serial 2"),
    ] {
        openssl(&dir, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem");
        std::fs::rename(dir.path().join("key.pem"), dir.path().join(format!("{name}.key")))
            .unwrap();
        openssl(&dir, &format!("req -new -key {name}.key -subj {subject} -out csr.pem"));
        let files = format!("-extfile {name}.cnf -out {name}.pem");
        openssl(&dir, &format!("x509 -req -in csr.pem {by} -sha256 -days 9 {files}"));
    }
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let chain = read("db.pem") + &read("sub.pem");
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let (result, decoded) = verify_counting(&read("ca.pem"), &chain);
    // All common names are permitted, and the first is compared with the host.
    let error = result.unwrap_err();
    assert!(error.contains("is for \"db0.example\", not for"), "{error}");
    assert!(decoded <= 10, "decoded {decoded} times what was sent");
}

#[test]
fn comparisons_of_names_with_name_constraints_are_limited() {
    let ca = Ca::new("CA");
    let key = KeyPair::generate().unwrap();
    let constrained = |count: usize| {
        let mut params = Ca::params("Constrained");
        let bases = (0..count).map(|i| GeneralSubtree::DnsName(format!("x{i}.test")));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![],
            excluded_subtrees: bases.collect(),
        });
        params
    };
    let issuer = Issuer::new(constrained(0), &key);
    let leaf = |name: &str, count: usize| {
        let names = (1..count).map(|i| format!("db{i}.example")).chain([name.to_owned()]);
        let params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
    };
    // Each path takes more than 40,000 comparisons.
    let authorities = series(|| constrained(200), &key, &ca.issuer, 1..9);
    for (name, sent, expected) in [
        ("db.example", 1, Ok(())),
        ("db.example", 8, Ok(())),
        ("x199.test", 1, Err("the name constraints of an authority do not permit a name")),
        ("x199.test", 8, Err(TOO_LONG)),
    ] {
        let chain = [&[leaf(name, 200)], &authorities[..sent]].concat();
        match (verify_counting(&ca.pem, &chain).0, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (result, _) => panic!("{name} {sent}: {result:?}"),
        }
    }
}

#[derive(Debug)]
struct AlwaysWrong;

static VERIFIED: AtomicUsize = AtomicUsize::new(0);

impl SignatureVerificationAlgorithm for AlwaysWrong {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        VERIFIED.fetch_add(1, Relaxed);
        Err(InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

/// The certificates have the name of the root, so webpki tries each path in many orders.
#[test]
fn signatures_of_one_server_are_limited() {
    let ca = Ca::new("CA");
    let keys: Vec<_> = (0..20).map(|_| KeyPair::generate().unwrap()).collect();
    let between: Vec<_> = keys
        .iter()
        .map(|key| Ca::params("CA").signed_by(key, &ca.issuer).unwrap().der().clone())
        .collect();
    let leaf = named(&["db"]).signed_by(&keys[0], &ca.issuer).unwrap().der().clone();
    let settings = trusting(&ca).build().unwrap().settings().clone();
    let algorithms = WebPkiSupportedAlgorithms { all: &[&AlwaysWrong], mapping: &[] };
    let verifier = Verifier::new(roots::load(&settings).unwrap(), None, algorithms);
    let error = verifier.verify(&leaf, &between, UnixTime::now()).unwrap_err();
    let verified = VERIFIED.load(Relaxed);
    assert!((1..=64).contains(&verified), "{verified}");
    assert!(error.contains(TOO_LONG), "{error}");
}

/// After a change of keys, an authority can have two certificates in a path.
#[test]
fn path_has_at_most_two_authorities_of_one_name() {
    let mut authority = Ca::new("CA");
    let root = authority.pem.clone();
    let mut chain = Vec::new();
    for is_accepted in [true, true, true, false] {
        let leaf = authority.issue(named(&["db.example"]));
        let leaf = CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap();
        let sent = [&[leaf], &chain[..]].concat();
        let result = verify_counting(&root, &sent).0;
        assert_eq!(result.is_ok(), is_accepted, "{} between: {result:?}", chain.len());
        authority = authority.intermediate("Renewed");
        chain.insert(0, CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap());
    }
}

#[tokio::test]
async fn server_with_too_many_certificates_is_rejected() {
    let ca = Ca::new("CA");
    let between = ca.intermediate("Between");
    let others = series(|| Ca::params("Other"), ca.issuer.key(), &ca.issuer, 1..101);
    let pem = |der: &CertificateDer<'_>| {
        let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
        format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n")
    };
    let send = |params: CertificateParams, others: &[CertificateDer<'_>]| {
        let mut identity = between.issue(params);
        identity.chain.extend(others.iter().map(pem));
        identity.chain.push_str(&between.pem);
        Server::new(&identity)
    };
    send(named(&["db"]), &others[1..]).accepts(trusting(&ca), "db").await;
    let server = send(named(&["db"]), &others);
    server.refuses(trusting(&ca), "db", "the server sent 101 certificates of").await;
    // The certificates are not used if nothing is verified.
    server.accepts(TlsConfig::builder().danger_accept_invalid_certs(true), "db").await;
}

#[test]
fn certificates_have_a_maximum_size() {
    let ca = Ca::new("CA");
    let leaf = CertificateDer::from_pem_slice(ca.issue(named(&["db.example"])).chain.as_bytes());
    let leaf = leaf.unwrap();
    let large = |size| CertificateDer::from(vec![0; size]);
    verify_counting(&ca.pem, &[leaf.clone(), large(1 << 15), large(1 << 15)]).0.unwrap();
    let sent = [leaf, large(1 << 15), large((1 << 15) + 1)];
    let error = verify_counting(&ca.pem, &sent).0.unwrap_err();
    assert!(error.contains("2 certificates of 65537 bytes"), "{error}");
}

/// The handshake proves that the server has the key, even if the certificate is not verified.
#[tokio::test]
async fn server_without_its_key_is_rejected_in_every_mode() {
    let ca = Ca::new("CA");
    let mut identity = ca.issue(named(&["db"]));
    identity.key = KeyPair::generate().unwrap().serialize_pem();
    let mut server = Server::new(&identity);
    for versions in [vec![&TLS12], vec![&TLS13]] {
        server.versions = versions;
        let any = TlsConfig::builder().danger_accept_invalid_certs(true);
        server.refuses(any, "db", "does not have the key").await;
    }
}

#[test]
fn channel_binding_uses_the_hash_of_the_certificates_signature() {
    let dir = folder();
    openssl(&dir, "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem");
    openssl(&dir, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem");
    openssl(&dir, "genpkey -algorithm ED25519 -out ed.pem");
    let pss = "-sigopt rsa_padding_mode:pss";
    for (key, options, expected) in [
        ("rsa", "-md5".to_owned(), Some("sha256")),
        ("rsa", "-sha1".to_owned(), Some("sha256")),
        ("rsa", "-sha224".to_owned(), Some("sha224")),
        ("rsa", "-sha256".to_owned(), Some("sha256")),
        ("rsa", "-sha384".to_owned(), Some("sha384")),
        ("rsa", "-sha512".to_owned(), Some("sha512")),
        ("rsa", format!("-sha1 {pss}"), Some("sha256")),
        ("rsa", format!("-sha256 {pss}"), Some("sha256")),
        ("rsa", format!("-sha384 {pss}"), Some("sha384")),
        ("rsa", format!("-sha512 {pss}"), Some("sha512")),
        ("ec", "-sha1".to_owned(), Some("sha256")),
        ("ec", "-sha224".to_owned(), Some("sha224")),
        ("ec", "-sha256".to_owned(), Some("sha256")),
        ("ec", "-sha384".to_owned(), Some("sha384")),
        ("ec", "-sha512".to_owned(), Some("sha512")),
        ("ed", "-days 9".to_owned(), None),
    ] {
        let make = format!("req -x509 -key {key}.pem -subj /CN=db {options} -out crt.pem");
        openssl(&dir, &make);
        let der = openssl(&dir, "x509 -in crt.pem -outform DER -out crt.der");
        assert!(der.is_empty());
        let der = CertificateDer::from(std::fs::read(dir.path().join("crt.der")).unwrap());
        let hash = expected.map(|h| openssl(&dir, &format!("dgst -{h} -binary crt.der")));
        assert_eq!(channel_binding::hash(&der), hash, "{make}");
    }
}

#[test]
fn sni_is_never_an_address() {
    for (host, name) in [
        ("db.example", Some("db.example")),
        ("my_db", Some("my_db")),
        ("10.0.0.1", None),
        ("127.1", None),
        ("::1", None),
        ("no name", None),
    ] {
        assert_eq!(sni(host).as_ref().map(AsRef::as_ref), name, "{host}");
    }
}

#[test]
fn system_roots_are_loaded_or_reported_missing() {
    let settings = TlsConfig::builder().build().unwrap().settings().clone();
    assert_eq!(settings.roots, [RootSource::System]);
    match TlsConnector::new(&settings, Some("db")) {
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("operating system"), "{error}"),
    }
}

#[test]
fn debug_shows_no_key() {
    let ca = Ca::new("CA");
    let identity = ca.issue(named(&["app"]));
    let config = trusting(&ca).client_cert_pem(identity.chain).client_key_pem(identity.key);
    let connector = TlsConnector::new(config.build().unwrap().settings(), Some("db")).unwrap();
    assert_eq!(format!("{connector:?}"), "TlsConnector { name: DnsName(\"db\"), .. }");
}
