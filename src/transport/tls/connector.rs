use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use rustls::{
    ClientConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{DnsName, ServerName},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;

use super::{
    channel_binding,
    client_cert::{self, ClientAuth},
    error::tls_error,
    roots,
    stream::TlsStream,
    verify::Verifier,
};
use crate::{
    config::tls::settings::{RootSource, SendCertificate, Source, TlsSettings, TlsVersion, Verify},
    error::{Error, Result},
    transport::tls_info::TlsInfo,
};

/// What the client wants to speak inside TLS, by its registered name.
pub(super) const ALPN: &[u8] = b"postgresql";

/// Everything that a TLS session needs, read from its files once.
#[derive(Clone)]
pub(crate) struct TlsConnector {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    missing_roots: Option<PathBuf>,
    name: ServerName<'static>,
    certificate: Option<Arc<CertifiedKey>>,
    send: SendCertificate,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl TlsConnector {
    /// Reads all files. This blocks: it is for `spawn_blocking`.
    ///
    /// `host` is the name as configured, not the address that it stands for.
    pub(crate) fn new(settings: &TlsSettings, host: Option<&str>) -> Result<Self> {
        let provider = provider();
        let host = settings.server_name.as_deref().or(host).filter(|h| !h.is_empty());
        let trust = roots::load(settings)?;
        let missing_roots = settings.roots.iter().find_map(|source| match source {
            RootSource::Certificates(Source::File(path))
                if trust.is_none() && settings.roots_named =>
            {
                Some(path.clone())
            }
            _ => None,
        });
        let verified_name = match (settings.verify, host) {
            (Verify::ChainAndName, Some(host)) => Some(host.to_owned()),
            (Verify::ChainAndName, None) => {
                return Err(Error::tls(
                    "a host name is needed to verify the server's certificate: set host beside \
                     hostaddr, or use sslmode=verify-ca",
                ));
            }
            (Verify::Chain | Verify::Nothing, _) => None,
        };
        let certificate = client_cert::load(settings, &provider)?;
        let verifier =
            Verifier::new(trust, verified_name, provider.signature_verification_algorithms);
        let versions: Vec<_> = [(TlsVersion::Tls12, &TLS12), (TlsVersion::Tls13, &TLS13)]
            .into_iter()
            .filter(|(v, _)| (settings.min_version..=settings.max_version).contains(v))
            .map(|(_, version)| version)
            .collect();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| Error::tls(format!("no TLS version can be used: {e}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection reads its files again, and Postgres keeps no sessions.
        config.resumption = Resumption::disabled();
        let sni = host.filter(|_| settings.sni).and_then(sni);
        config.enable_sni = sni.is_some();
        // rustls wants a name even where none is sent. The verifier has its own.
        let name = sni.map_or_else(|| Ipv4Addr::UNSPECIFIED.into(), ServerName::DnsName);
        let send = settings.send_certificate;
        let shared = Shared { config, missing_roots, name, certificate, send };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The file of roots that is set and does not exist, so that nothing is verified.
    pub(crate) fn missing_roots(&self) -> Option<&Path> {
        self.shared.missing_roots.as_deref()
    }

    /// Makes the handshake. Dropping the future closes the connection.
    ///
    /// `require_alpn` is for a session that begins with TLS: without ALPN, the server could be
    /// talked into taking it for another protocol.
    pub(crate) async fn connect(&self, tcp: TcpStream, require_alpn: bool) -> Result<TlsStream> {
        let shared = &self.shared;
        let auth = Arc::new(ClientAuth::new(shared.certificate.clone()));
        let mut config = shared.config.clone();
        config.client_auth_cert_resolver = Arc::<ClientAuth>::clone(&auth);
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(shared.name.clone(), tcp)
            .await
            .map_err(|e| tls_error(&e).unwrap_or_else(|| Error::io("in the TLS handshake", e)))?;
        let (_, session) = stream.get_ref();
        if require_alpn && session.alpn_protocol() != Some(ALPN) {
            return Err(Error::tls(
                "the server did not agree to speak PostgreSQL by ALPN, which \
                 sslnegotiation=direct demands: it is older than 17, or something is in between; \
                 use sslnegotiation=postgres",
            ));
        }
        let info = TlsInfo {
            version: match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
                other => format!("{other:?}"),
            },
            cipher: session
                .negotiated_cipher_suite()
                .map(|s| format!("{:?}", s.suite()).replacen("TLS13_", "TLS_", 1))
                .unwrap_or_default(),
            server_end_point: session
                .peer_certificates()
                .and_then(<[_]>::first)
                .and_then(|c| channel_binding::hash(c)),
            certificate_requested: auth.requested.load(Ordering::Relaxed),
            certificate_sent: auth.sent.load(Ordering::Relaxed),
        };
        if shared.send == SendCertificate::Require {
            check_certificate_was_sent(&info, shared.certificate.is_some())?;
        }
        Ok(TlsStream::new(stream, info))
    }
}

fn check_certificate_was_sent(info: &TlsInfo, has_certificate: bool) -> Result<()> {
    let problem = match (info.certificate_requested, info.certificate_sent) {
        (true, true) => return Ok(()),
        (false, _) => "the server did not ask for one: set ssl_ca_file there",
        (true, false) if has_certificate => {
            "the server takes no signature that its key can make: use another kind of key"
        }
        (true, false) => "there is none to send: set sslcert and sslkey",
    };
    // No error of TLS, which may be followed by an attempt in the clear.
    Err(Error::authentication(format!(
        "sslcertmode=require demands a client certificate, and {problem}"
    )))
}

/// The cryptography: aws-lc-rs where it is compiled in, because `tls-ring` is on by default and
/// `tls-aws-lc-rs` only when somebody chose it. The process's own choice is not asked for: rustls
/// panics where there is none, or more than one.
pub(super) fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "tls-aws-lc-rs")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "tls-aws-lc-rs"))]
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(provider)
}

/// The name for SNI, by libpq's test: no literal address.
pub(super) fn sni(host: &str) -> Option<DnsName<'static>> {
    let is_address = host.chars().all(|c| c.is_ascii_digit() || c == '.') || host.contains(':');
    if is_address { None } else { DnsName::try_from(host.to_owned()).ok() }
}
