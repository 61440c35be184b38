use std::{fmt, path::PathBuf};

use zeroize::Zeroizing;

use super::key_password::KeyPassword;

/// A version of TLS. Versions before 1.2 are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The settings made from a [`TlsConfig`](super::tls_config::TlsConfig) or from libpq's keywords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) verify: Verify,
    pub(crate) roots: Vec<RootSource>,
    /// libpq's rule for the modes below `verify-ca`: if the root file does not exist when a
    /// connection is opened, nothing is verified.
    pub(crate) roots_optional: bool,
    /// Whether the root file is set explicitly. If it is then missing, a warning is logged.
    pub(crate) roots_named: bool,
    pub(crate) client: Option<ClientCertificate>,
    pub(crate) send_certificate: SendCertificate,
    pub(crate) crls: Crls,
    pub(crate) min_version: TlsVersion,
    pub(crate) max_version: TlsVersion,
    pub(crate) sni: bool,
    /// Replaces the host name, for both SNI and verification.
    pub(crate) server_name: Option<String>,
}

impl TlsSettings {
    pub(crate) fn requires_certificate(&self) -> bool {
        self.send_certificate == SendCertificate::Require
    }
}

/// Which properties of the server's certificate are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// A source of trusted certificates. The certificates of all sources are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootSource {
    Certificates(Source),
    System,
    /// Mozilla's root certificates, compiled in.
    Webpki,
}

/// A file, or its content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Pem(Zeroizing<Vec<u8>>),
}

/// A PEM text may be a private key.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Pem(pem) => write!(f, "(PEM of {} bytes)", pem.len()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: Source,
    /// `None` only if libpq's default file has no path, because there is no home directory.
    pub(crate) key: Option<Source>,
    /// libpq's `sslpassword`. Ignored if the key is not encrypted.
    pub(crate) key_password: Option<KeyPassword>,
    /// As in libpq: if the certificate file does not exist, no certificate is sent.
    pub(crate) optional: bool,
}

/// libpq's `sslcertmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendCertificate {
    /// Never send a certificate.
    Never,
    /// Send the certificate if there is one and the server requests it.
    Allow,
    /// Reject a server that does not request a certificate, or to which none can be sent.
    Require,
}

/// Files of revocation lists, or directories that contain them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crls {
    pub(crate) paths: Vec<PathBuf>,
    /// They are libpq's default, which is ignored if missing. A list that is set explicitly must
    /// exist; otherwise a revoked certificate would be accepted.
    pub(crate) optional: bool,
}
