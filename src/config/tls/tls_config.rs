use std::path::PathBuf;

use super::settings::{
    ClientCertificate, Crls, RootSource, SendCertificate, Source, TlsSettings, TlsVersion, Verify,
};
use crate::{
    config::modes::SslMode,
    error::{Error, Result},
};

/// TLS settings: trusted roots and the client certificate.
///
/// By default, the server's certificate must be issued by an authority that the operating system
/// trusts, and must contain the host of the connection string. Files are read for each new
/// connection, so renewed certificates take effect without a restart.
///
/// `Debug` shows neither certificates nor keys.
///
/// ```
/// use fraiseql_wire::{TlsConfig, TlsVersion};
///
/// let tls = TlsConfig::builder()
///     .ca_cert_path("/etc/ssl/company-ca.pem")
///     .min_version(TlsVersion::Tls13)
///     .build()?;
/// # Ok::<(), fraiseql_wire::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TlsConfig {
    settings: TlsSettings,
}

impl TlsConfig {
    /// Returns a builder that trusts the system root certificates and verifies chain and host name.
    pub fn builder() -> TlsConfigBuilder {
        TlsConfigBuilder::default()
    }

    /// Returns the equivalent `sslmode`.
    pub(crate) fn mode(&self) -> SslMode {
        match self.settings.verify {
            Verify::Nothing => SslMode::Require,
            Verify::Chain => SslMode::VerifyCa,
            Verify::ChainAndName => SslMode::VerifyFull,
        }
    }

    pub(crate) fn settings(&self) -> &TlsSettings {
        &self.settings
    }
}

/// A builder for a [`TlsConfig`].
///
/// [`build`](Self::build) validates the settings. Files are read when a connection is opened.
#[derive(Debug, Clone, Default)]
#[must_use = "it does nothing until build() is called"]
pub struct TlsConfigBuilder {
    ca_path: Option<PathBuf>,
    ca_pem: Option<Source>,
    system_roots: Option<bool>,
    webpki_roots: bool,
    cert_path: Option<PathBuf>,
    cert_pem: Option<Source>,
    key_path: Option<PathBuf>,
    key_pem: Option<Source>,
    crl_path: Option<PathBuf>,
    verify_hostname: Option<bool>,
    min_version: Option<TlsVersion>,
    max_version: Option<TlsVersion>,
    server_name: Option<String>,
    sni: Option<bool>,
    accept_invalid: bool,
}

impl TlsConfigBuilder {
    /// Trusts the certificates in a PEM file instead of the system root certificates.
    ///
    /// A certificate chain must end in a self-signed certificate of the file. A self-signed server
    /// certificate that is in the file is trusted directly.
    pub fn ca_cert_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_path = Some(path.into());
        self
    }

    /// Trusts the certificates in PEM text instead of the system root certificates.
    pub fn ca_cert_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_pem = Some(Source::Pem(pem.into().into()));
        self
    }

    /// Sets whether the system root certificates are trusted. Default: only if no others are set.
    ///
    /// With these roots, the host must be in the `subjectAltName` of the certificate. Its common
    /// name does not count.
    ///
    /// The certificates are read from the locations of OpenSSL, which the environment variables
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` override.
    pub fn system_roots(mut self, on: bool) -> Self {
        self.system_roots = Some(on);
        self
    }

    /// Sets whether Mozilla's root certificates are trusted, which are compiled into the program.
    /// Default: no.
    ///
    /// With these roots, the host must be in the `subjectAltName` of the certificate. Its common
    /// name does not count.
    #[cfg(feature = "webpki-roots")]
    #[cfg_attr(docsrs, doc(cfg(feature = "webpki-roots")))]
    pub fn webpki_roots(mut self, on: bool) -> Self {
        self.webpki_roots = on;
        self
    }

    /// Sets the PEM file of the client certificate and its intermediates. It requires a key.
    pub fn client_cert_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.cert_path = Some(path.into());
        self
    }

    /// Sets the file of the client's private key, PEM or DER. It requires a certificate.
    ///
    /// An encrypted key (PKCS#8) requires the feature `encrypted-keys` and its password, which is
    /// `sslpassword` of the connection string. It is decrypted once: the configuration and its
    /// clones keep the key in memory, and decrypt again if the file changes. A key that takes too
    /// much time or memory to decrypt is rejected. The limits are 2,000,000 iterations for PBKDF2,
    /// and 32 MiB and `N*r*p` = 1,048,576 for scrypt, which both take up to about 2 s.
    ///
    /// On Unix, other users must not be able to read it. The maximum permissions are 0600, or 0640
    /// if root owns the file.
    pub fn client_key_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_path = Some(path.into());
        self
    }

    /// Sets the client certificate like [`client_cert_path`](Self::client_cert_path), from PEM
    /// text.
    pub fn client_cert_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.cert_pem = Some(Source::Pem(pem.into().into()));
        self
    }

    /// Sets the client's private key like [`client_key_path`](Self::client_key_path), from PEM
    /// text.
    pub fn client_key_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.key_pem = Some(Source::Pem(pem.into().into()));
        self
    }

    /// Rejects certificates that are on a revocation list. The path is a file of PEM lists or a
    /// directory of such files.
    ///
    /// Every certificate of the server's chain, including the root, then requires a valid list from
    /// its issuer. The newest list that is signed by the issuer's key is used.
    pub fn crl_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.crl_path = Some(path.into());
        self
    }

    /// Sets whether the certificate must contain the host name. Default: yes. `false` is libpq's
    /// `verify-ca`.
    pub fn verify_hostname(mut self, on: bool) -> Self {
        self.verify_hostname = Some(on);
        self
    }

    /// Sets the minimum version of TLS. Default: 1.2.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = Some(version);
        self
    }

    /// Sets the maximum version of TLS. Default: 1.3.
    pub fn max_version(mut self, version: TlsVersion) -> Self {
        self.max_version = Some(version);
        self
    }

    /// Sets the name that the certificate must contain and that is sent as SNI. Default: the host.
    /// It is useful if the connection goes through a tunnel or to an address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets whether the host name is sent to the server in plaintext (SNI). Default: yes. IP
    /// addresses are never sent.
    pub fn sni(mut self, on: bool) -> Self {
        self.sni = Some(on);
        self
    }

    /// Accepts any certificate. Default: no.
    ///
    /// The session is encrypted, but a man in the middle can impersonate the server. It cannot be
    /// combined with root certificates, revocation lists or `verify_hostname(true)`.
    pub fn danger_accept_invalid_certs(mut self, on: bool) -> Self {
        self.accept_invalid = on;
        self
    }

    /// Checks that the settings are consistent. Reads no files.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the settings contain:
    ///
    /// * a certificate without a key, or a key without a certificate;
    /// * both a path and PEM text for the same item;
    /// * no root certificates;
    /// * an empty server name;
    /// * a `min_version` above `max_version`;
    /// * verification that is both configured and disabled.
    pub fn build(self) -> Result<TlsConfig> {
        let mut roots = Vec::new();
        if let Some(ca) = path_or_pem("ca_cert", self.ca_path, self.ca_pem)? {
            roots.push(RootSource::Certificates(ca));
        }
        if self.webpki_roots {
            roots.push(RootSource::Webpki);
        }
        let names_system = self.system_roots == Some(true);
        let checks = names_system || !roots.is_empty() || self.crl_path.is_some();
        if self.accept_invalid && (checks || self.verify_hostname == Some(true)) {
            return Err(Error::config(
                "danger_accept_invalid_certs(true) cannot be combined with root certificates, \
                 revocation lists or verify_hostname(true): remove one or the other",
            ));
        }
        if self.system_roots.unwrap_or(roots.is_empty()) && !self.accept_invalid {
            roots.push(RootSource::System);
        }
        if roots.is_empty() && !self.accept_invalid {
            return Err(Error::config(
                "system_roots(false) leaves no root certificates: set ca_cert_path or ca_cert_pem",
            ));
        }
        let verify = match (self.accept_invalid, self.verify_hostname) {
            (true, _) => Verify::Nothing,
            (false, Some(false)) => Verify::Chain,
            (false, _) => Verify::ChainAndName,
        };
        let certificate = path_or_pem("client_cert", self.cert_path, self.cert_pem)?;
        let key = path_or_pem("client_key", self.key_path, self.key_pem)?;
        let client = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientCertificate {
                certificate,
                key: Some(key),
                key_password: None,
                optional: false,
            }),
            (Some(_), None) => {
                return Err(Error::config("a client certificate is set without its key"));
            }
            (None, Some(_)) => {
                return Err(Error::config("a client key is set without its certificate"));
            }
        };
        let (min_version, max_version) = (
            self.min_version.unwrap_or(TlsVersion::Tls12),
            self.max_version.unwrap_or(TlsVersion::Tls13),
        );
        if min_version > max_version {
            return Err(Error::config("the min_version of TLS is above max_version"));
        }
        if self.server_name.as_deref() == Some("") {
            return Err(Error::config("the server_name of TLS is empty"));
        }
        let settings = TlsSettings {
            verify,
            roots,
            roots_optional: false,
            roots_named: true,
            client,
            send_certificate: SendCertificate::Allow,
            crls: Crls { paths: self.crl_path.into_iter().collect(), optional: false },
            min_version,
            max_version,
            sni: self.sni.unwrap_or(true),
            server_name: self.server_name,
        };
        Ok(TlsConfig { settings })
    }
}

/// Returns the path or the PEM text, whichever is set.
fn path_or_pem(what: &str, path: Option<PathBuf>, pem: Option<Source>) -> Result<Option<Source>> {
    match (path, pem) {
        (Some(_), Some(_)) => Err(Error::config(format!(
            "{what}_path and {what}_pem are both set: remove one of them"
        ))),
        (path, pem) => Ok(path.map(Source::File).or(pem)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(builder: TlsConfigBuilder) -> TlsSettings {
        builder.build().unwrap().settings().clone()
    }

    #[test]
    fn default_tls_config_trusts_system_roots_and_verifies_everything() {
        let s = settings(TlsConfig::builder());
        assert_eq!(s.verify, Verify::ChainAndName);
        assert_eq!(s.roots, [RootSource::System]);
        assert!(s.sni && !s.roots_optional && s.client.is_none());
        assert_eq!((s.min_version, s.max_version), (TlsVersion::Tls12, TlsVersion::Tls13));
    }

    #[test]
    fn root_sources_are_combined_and_replace_the_default() {
        let file = RootSource::Certificates(Source::File("ca.pem".into()));
        let b = || TlsConfig::builder().ca_cert_path("ca.pem");
        assert_eq!(settings(b().system_roots(true)).roots, [file.clone(), RootSource::System]);
        assert_eq!(settings(b()).roots, [file]);
    }

    #[test]
    fn verification_is_weakened_only_explicitly() {
        let b = TlsConfig::builder;
        assert_eq!(settings(b().verify_hostname(false)).verify, Verify::Chain);
        let s = settings(b().danger_accept_invalid_certs(true));
        assert_eq!((s.verify, s.roots), (Verify::Nothing, vec![]));
    }

    #[test]
    fn contradictory_tls_settings_are_rejected() {
        let b = TlsConfig::builder;
        for (builder, part) in [
            (b().client_cert_path("c"), "without its key"),
            (b().client_key_pem("k"), "without its certificate"),
            (b().ca_cert_path("a").ca_cert_pem("a"), "ca_cert_path and ca_cert_pem"),
            (b().client_key_path("a").client_key_pem("a"), "client_key_path and"),
            (b().system_roots(false), "no root certificates"),
            (b().min_version(TlsVersion::Tls13).max_version(TlsVersion::Tls12), "min_version"),
            (b().server_name(""), "server_name"),
            (b().danger_accept_invalid_certs(true).ca_cert_path("a"), "danger"),
            (b().danger_accept_invalid_certs(true).system_roots(true), "danger"),
            (b().danger_accept_invalid_certs(true).crl_path("a"), "danger"),
            (b().danger_accept_invalid_certs(true).verify_hostname(true), "danger"),
        ] {
            let error = builder.build().unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let b = TlsConfig::builder().client_cert_pem("hunter1").client_key_pem("hunter2");
        let shown = format!("{b:?} {:?}", b.clone().build().unwrap());
        let bytes = format!("{:?}", b"hunter2");
        assert!(!shown.contains("hunter") && !shown.contains(bytes.trim_matches(['[', ']'])));
    }
}
