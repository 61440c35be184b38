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
use tokio::io::{AsyncRead, AsyncWrite};

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

/// The registered name of the protocol inside TLS.
pub(super) const ALPN: &[u8] = b"postgresql";

/// The configuration of a TLS session, with its files already read.
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
    /// Reads all files. This blocks, so call it in `spawn_blocking`.
    ///
    /// `host` is the name as configured, not the address that it resolves to.
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
                    "verifying the server's certificate requires a host name: set host in addition \
                     to hostaddr, or use sslmode=verify-ca",
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
        // Each connection reads its files again, and Postgres does not support resumption.
        config.resumption = Resumption::disabled();
        let sni = host.filter(|_| settings.sni).and_then(sni);
        config.enable_sni = sni.is_some();
        // rustls requires a name even if none is sent. The verifier has its own.
        let name = sni.map_or_else(|| Ipv4Addr::UNSPECIFIED.into(), ServerName::DnsName);
        let send = settings.send_certificate;
        let shared = Shared { config, missing_roots, name, certificate, send };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the root file that is set explicitly but does not exist, so that nothing is
    /// verified.
    pub(crate) fn missing_roots(&self) -> Option<&Path> {
        self.shared.missing_roots.as_deref()
    }

    /// Performs the handshake. Dropping the future closes the connection.
    ///
    /// `require_alpn` is set for direct TLS: without ALPN, an attacker could redirect the session
    /// to a server of another protocol.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        require_alpn: bool,
    ) -> Result<TlsStream<S>> {
        let shared = &self.shared;
        let auth = Arc::new(ClientAuth::new(shared.certificate.clone()));
        let mut config = shared.config.clone();
        config.client_auth_cert_resolver = Arc::<ClientAuth>::clone(&auth);
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(shared.name.clone(), stream)
            .await
            .map_err(|e| tls_error(&e).unwrap_or_else(|| Error::io("in the TLS handshake", e)))?;
        let (_, session) = stream.get_ref();
        if require_alpn && session.alpn_protocol() != Some(ALPN) {
            return Err(Error::tls(
                "the server did not select PostgreSQL by ALPN, which \
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
        (false, _) => "the server did not request one: set ssl_ca_file there",
        (true, false) if has_certificate => {
            "the server accepts no signature that its key supports: use another type of key"
        }
        (true, false) => "there is none to send: set sslcert and sslkey",
    };
    // Not Error::Tls, after which a plaintext attempt may follow.
    Err(Error::authentication(format!(
        "sslcertmode=require requires a client certificate, but {problem}"
    )))
}

/// Returns the cryptography provider: aws-lc-rs if it is compiled in, because `tls-ring` is a
/// default feature and `tls-aws-lc-rs` an explicit choice. The default provider of the process is
/// not used: rustls panics if there is none or more than one.
pub(super) fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "tls-aws-lc-rs")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "tls-aws-lc-rs"))]
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(provider)
}

/// Returns the name for SNI. As in libpq, there is none for a literal address.
pub(super) fn sni(host: &str) -> Option<DnsName<'static>> {
    let is_address = host.chars().all(|c| c.is_ascii_digit() || c == '.') || host.contains(':');
    if is_address { None } else { DnsName::try_from(host.to_owned()).ok() }
}
