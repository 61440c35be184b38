//! Loads trusted certificates and revocation lists from the configured sources.

use std::path::Path;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};

#[cfg(feature = "webpki-roots")]
use super::trust::Root;
use super::{
    files::{is_missing, read_file, unreadable},
    revocation::RevocationList,
    trust::Trust,
};
use crate::{
    config::tls::settings::{Crls, RootSource, Source, TlsSettings, Verify},
    error::{Error, Result},
};

/// Returns the trusted certificates, or `None` if any certificate is accepted.
pub(super) fn load(settings: &TlsSettings) -> Result<Option<Trust>> {
    if settings.verify == Verify::Nothing {
        return Ok(None);
    }
    let mut trust = Trust { roots: Vec::new(), intermediates: Vec::new(), lists: None };
    for source in &settings.roots {
        match source {
            RootSource::Certificates(Source::File(path)) => {
                if is_missing(path) {
                    if settings.roots_optional {
                        return Ok(None);
                    }
                    return Err(Error::tls(format!(
                        "root certificate file \"{}\" does not exist: put the \
                         certificate of the server's authority there, set sslrootcert to its file \
                         or to system, or use an sslmode that does not verify the server",
                        path.display()
                    )));
                }
                let pem = read_file("root certificate file", path)?;
                trust.add_pem(&pem, &format!("root certificate file \"{}\"", path.display()))?;
            }
            RootSource::Certificates(Source::Pem(pem)) => trust.add_pem(pem, "ca_cert_pem")?,
            RootSource::System => trust.add_system()?,
            RootSource::Webpki => {
                #[cfg(feature = "webpki-roots")]
                trust.roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().map(|anchor| Root {
                    certificate: None,
                    anchor: anchor.clone(),
                    is_public: true,
                }));
            }
        }
    }
    trust.lists = lists(&settings.crls)?;
    Ok(Some(trust))
}

impl Trust {
    fn add_pem(&mut self, pem: &[u8], what: &str) -> Result<()> {
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate =
                certificate.map_err(|e| Error::tls(format!("{what} is not PEM: {e}")))?;
            self.add(certificate, false)
                .map_err(|e| Error::tls(format!("{what} contains an unusable certificate: {e}")))?;
            any = true;
        }
        if any { Ok(()) } else { Err(Error::tls(format!("{what} contains no PEM certificate"))) }
    }

    fn add_system(&mut self) -> Result<()> {
        let found = rustls_native_certs::load_native_certs();
        // With only some of the authorities, valid servers would be rejected without a retry.
        for e in found.errors.iter() {
            if let rustls_native_certs::ErrorKind::Io { inner, path } = &e.kind {
                let inner = inner.raw_os_error().map(std::io::Error::from_raw_os_error);
                let what = format!("trusted certificates in \"{}\"", path.display());
                if let Some(Ok(error)) = inner.map(|inner| Error::unreadable(&what, inner)) {
                    return Err(error);
                }
            }
        }
        let before = self.roots.len();
        for certificate in found.certs {
            // An unusable certificate must not disable the others.
            let _ = self.add(certificate, true);
        }
        if self.roots.len() > before {
            return Ok(());
        }
        let reason = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        Err(Error::tls(format!(
            "the operating system has no trusted certificates{reason}: install its CA certificates \
             package, set SSL_CERT_FILE, or set sslrootcert to the file of the authority"
        )))
    }
}

/// Loads the revocation lists. Returns `None` if none are configured.
fn lists(settings: &Crls) -> Result<Option<Vec<RevocationList>>> {
    let mut lists = Vec::new();
    for path in &settings.paths {
        if settings.optional && is_missing(path) {
            continue;
        }
        if path.is_dir() {
            add_directory(&mut lists, path)?;
        } else {
            let what = format!("certificate revocation list \"{}\"", path.display());
            let pem = read_file("certificate revocation list", path)?;
            if add_lists(&mut lists, &pem, &what)? == 0 {
                return Err(Error::tls(format!("{what} contains no PEM list (X509 CRL)")));
            }
        }
    }
    // A file or directory without a list is an error, so empty means that there are no files.
    Ok((!lists.is_empty()).then_some(lists))
}

/// Adds the lists of all files of a directory. OpenSSL only reads files with hashed names.
fn add_directory(lists: &mut Vec<RevocationList>, directory: &Path) -> Result<()> {
    let shown = directory.display();
    let unreadable = |e| unreadable(&format!("directory of revocation lists \"{shown}\""), e);
    let before = lists.len();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        // Skip dangling links. Report files that cannot be inspected: they may be lists.
        if !is_missing(&path) && std::fs::metadata(&path).map_err(unreadable)?.is_file() {
            let pem = read_file("certificate revocation list", &path)?;
            let what = format!("certificate revocation list \"{}\"", path.display());
            add_lists(lists, &pem, &what)?;
        }
    }
    if lists.len() > before {
        return Ok(());
    }
    Err(Error::tls(format!("directory \"{shown}\" contains no PEM certificate revocation list")))
}

/// Returns the number of lists that were added.
fn add_lists(lists: &mut Vec<RevocationList>, pem: &[u8], what: &str) -> Result<usize> {
    let mut count = 0;
    for list in CertificateRevocationListDer::pem_slice_iter(pem) {
        let list = list.map_err(|e| Error::tls(format!("{what} is not PEM: {e}")))?;
        let list = RevocationList::new(list).ok_or_else(|| {
            Error::tls(format!("{what} is malformed: compare it with openssl crl -text"))
        })?;
        lists.push(list);
        count += 1;
    }
    Ok(count)
}
