//! The client certificate and its key.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_cert::{SubjectPublicKeyInfo, der::Decode as _};

use super::{
    asn1::parse_certificate,
    encrypted_key,
    files::{is_missing, read_file, unreadable},
};
use crate::{
    config::tls::{
        KeyPassword,
        settings::{SendCertificate, Source, TlsSettings},
    },
    error::{Error, Result},
};

/// Responds to the server's request for a certificate, and records it.
#[derive(Debug)]
pub(super) struct ClientAuth {
    certificate: Option<Arc<CertifiedKey>>,
    pub(super) requested: AtomicBool,
    pub(super) sent: AtomicBool,
}

impl ClientAuth {
    pub(super) fn new(certificate: Option<Arc<CertifiedKey>>) -> Self {
        Self { certificate, requested: AtomicBool::new(false), sent: AtomicBool::new(false) }
    }
}

impl ResolvesClientCert for ClientAuth {
    /// Ignores the authorities that the server lists. Like OpenSSL, it sends the only certificate
    /// that there is.
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.requested.store(true, Ordering::Relaxed);
        let certificate = self.certificate.as_ref()?;
        certificate.key.choose_scheme(schemes)?;
        self.sent.store(true, Ordering::Relaxed);
        Some(Arc::clone(certificate))
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

pub(super) fn load(
    settings: &TlsSettings,
    provider: &CryptoProvider,
) -> Result<Option<Arc<CertifiedKey>>> {
    let Some(client) = &settings.client else { return Ok(None) };
    if settings.send_certificate == SendCertificate::Never {
        return Ok(None);
    }
    let (pem, what) = match &client.certificate {
        Source::Pem(pem) => (pem.clone(), "client_cert_pem".to_owned()),
        Source::File(path) => {
            if client.optional && is_missing(path) {
                return Ok(None);
            }
            (
                read_file("certificate file", path)?.into(),
                format!("certificate file \"{}\"", path.display()),
            )
        }
    };
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::tls(format!("{what} is not PEM: {e}")))?;
    let Some(first) = chain.first() else {
        return Err(Error::tls(format!("{what} contains no PEM certificate")));
    };
    let certificate =
        parse_certificate(first).ok_or_else(|| Error::tls(format!("{what} cannot be parsed")))?;

    let (bytes, key_what) = match &client.key {
        Some(Source::Pem(pem)) => (pem.clone(), "client_key_pem".to_owned()),
        Some(Source::File(path)) => {
            check_key_file(path)?;
            (
                read_file("private key file", path)?.into(),
                format!("private key file \"{}\"", path.display()),
            )
        }
        None => {
            return Err(Error::tls(format!(
                "{what} has no private key, and without a home directory there is no default file: \
                 set sslkey"
            )));
        }
    };
    let key = parse_key(&bytes, client.key_password.as_ref(), &key_what)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        Error::tls(format!(
            "{key_what} contains an unusable key: it must be RSA of at least 2048 bits, ECDSA on \
             P-256 or P-384, or Ed25519"
        ))
    })?;
    // Compare only the key itself: RSA has several identifiers for the same key.
    let public = key.public_key().and_then(|k| SubjectPublicKeyInfo::from_der(&k).ok());
    let certified = certificate.tbs_certificate().subject_public_key_info();
    if public.is_some_and(|p| p.subject_public_key != certified.subject_public_key) {
        return Err(Error::tls(format!("{what} does not match {key_what}")));
    }
    Ok(Some(Arc::new(CertifiedKey::new(chain, key))))
}

/// Parses PEM, then DER, like libpq. Errors show nothing of the content.
fn parse_key(
    bytes: &[u8],
    password: Option<&KeyPassword>,
    what: &str,
) -> Result<PrivateKeyDer<'static>> {
    if let Ok(key) = PrivateKeyDer::from_pem_slice(bytes) {
        return Ok(key);
    }
    if let Some(key) = encrypted_key::load(bytes, password, what) {
        return key;
    }
    PrivateKeyDer::try_from(bytes.to_vec()).map_err(|_| {
        Error::tls(format!(
            "{what} contains no private key: it must be PEM or DER of PKCS#8, PKCS#1 or SEC1"
        ))
    })
}

/// Performs the checks of `initialize_SSL`: other users must not have access to the key.
fn check_key_file(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::tls(format!(
            "certificate present, but not private key file \"{shown}\": set sslkey, or \
             sslcertmode=disable to send no certificate"
        )),
        _ => unreadable(&format!("private key file \"{shown}\""), e),
    })?;
    if !metadata.is_file() {
        return Err(Error::tls(format!("private key file \"{shown}\" is not a regular file")));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if has_access_of_others(metadata.mode(), metadata.uid()) {
            return Err(Error::tls(format!(
                "private key file \"{shown}\" has group or world access; file must have \
                 permissions u=rw (0600) or less if owned by the current user, or permissions \
                 u=rw,g=r (0640) or less if owned by root"
            )));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn has_access_of_others(mode: u32, owner: u32) -> bool {
    const ROOT: u32 = 0;
    mode & if owner == ROOT { 0o037 } else { 0o077 } != 0
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn key_file_permissions_are_checked_like_libpq() {
        for (mode, owner, refused) in [
            (0o100_600, 1000, false),
            (0o100_400, 1000, false),
            (0o100_640, 1000, true),
            (0o100_604, 1000, true),
            (0o100_640, 0, false),
            (0o100_660, 0, true),
            (0o100_644, 0, true),
        ] {
            assert_eq!(super::has_access_of_others(mode, owner), refused, "{mode:o} {owner}");
        }
    }
}
