use std::{fmt, path::PathBuf};

use zeroize::Zeroizing;

/// A version of TLS. Older ones than 1.2 are not spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// What a [`TlsConfig`](super::tls_config::TlsConfig) and libpq's keywords both come down to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) verify: Verify,
    pub(crate) roots: Vec<RootSource>,
    /// libpq's rule for the modes below `verify-ca`: when the file of roots does not exist, nothing
    /// is verified. Whether it exists shows when it is read.
    pub(crate) roots_optional: bool,
    /// Whether the file of roots is set, and not libpq's default: that it is missing is then a
    /// mistake.
    pub(crate) roots_named: bool,
    pub(crate) client: Option<ClientCertificate>,
    pub(crate) send_certificate: SendCertificate,
    pub(crate) crls: Crls,
    pub(crate) min_version: TlsVersion,
    pub(crate) max_version: TlsVersion,
    pub(crate) sni: bool,
    /// In place of the host, for both SNI and verification.
    pub(crate) server_name: Option<String>,
}

impl TlsSettings {
    pub(crate) fn requires_certificate(&self) -> bool {
        self.send_certificate == SendCertificate::Require
    }
}

/// What must be true of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// Where trusted certificates come from. Several add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootSource {
    Certificates(Source),
    System,
    /// Mozilla's, compiled in.
    Webpki,
}

/// A file, or what would be in it.
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
    /// `None` only when libpq's default file cannot be named, because there is no home directory.
    pub(crate) key: Option<Source>,
    /// A certificate file that does not exist means no certificate, as in libpq.
    pub(crate) optional: bool,
}

/// libpq's `sslcertmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendCertificate {
    /// Even if there is one and the server asks.
    Never,
    /// If there is one and the server asks.
    Allow,
    /// A server that does not ask, or cannot be answered, is refused.
    Require,
}

/// Files of revocation lists, or directories of such files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crls {
    pub(crate) paths: Vec<PathBuf>,
    /// They are libpq's default, and ignored when missing. One that somebody named is not: without
    /// it a revoked certificate would pass.
    pub(crate) optional: bool,
}
