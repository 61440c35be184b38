//! Trusted certificates and revocation lists, read from where the settings say.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, TrustAnchor, pem::PemObject,
};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};
use x509_cert::{
    certificate::Version,
    der::{Decode as _, Tag, asn1::AnyRef},
};

use super::{elements, parse, read, tls};
use crate::{
    config::tls::{Crls, RootSource, Source, TlsSettings, Verify},
    error::Result,
};

/// What a server's certificate is held against.
pub(super) struct Trust {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// Certificates that vouch for nobody by themselves, and may stand between.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    /// All of them as they came, for a server's certificate that is among them itself.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) crls: Vec<CertRevocationList<'static>>,
}

/// `None`: any certificate will do.
pub(super) fn load(settings: &TlsSettings) -> Result<Option<Trust>> {
    if settings.verify == Verify::Nothing {
        return Ok(None);
    }
    let mut trust = Trust {
        anchors: Vec::new(),
        intermediates: Vec::new(),
        certificates: Vec::new(),
        crls: Vec::new(),
    };
    for source in &settings.roots {
        match source {
            RootSource::Certificates(Source::File(path)) => {
                if std::fs::metadata(path).is_err() {
                    if settings.roots_optional {
                        return Ok(None);
                    }
                    return Err(tls(format!(
                        "root certificate file \"{}\" does not exist or cannot be reached: put the \
                         certificate of the server's authority there, set sslrootcert to its file \
                         or to system, or use an sslmode that does not verify the server",
                        path.display()
                    )));
                }
                let pem = read("root certificate file", path)?;
                trust.add_pem(&pem, &format!("root certificate file \"{}\"", path.display()))?;
            }
            RootSource::Certificates(Source::Pem(pem)) => trust.add_pem(pem, "ca_cert_pem")?,
            RootSource::System => trust.add_system()?,
            RootSource::Webpki => {
                #[cfg(feature = "webpki-roots")]
                trust.anchors.extend_from_slice(webpki_roots::TLS_SERVER_ROOTS);
            }
        }
    }
    trust.crls = crls(&settings.crls)?;
    Ok(Some(trust))
}

impl Trust {
    fn add_pem(&mut self, pem: &[u8], what: &str) -> Result<()> {
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| tls(format!("{what} is not PEM: {e}")))?;
            self.add(certificate)
                .map_err(|e| tls(format!("{what} holds an unusable certificate: {e}")))?;
            any = true;
        }
        if any { Ok(()) } else { Err(tls(format!("{what} holds no PEM certificate"))) }
    }

    fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), webpki::Error> {
        let anchor = anchor_from_trusted_cert(&certificate)?.to_owned();
        // As OpenSSL has it: a chain ends in an authority that signed itself. Of an anchor webpki checks
        // nothing more, so it must not be a server's certificate that was pinned, or out of date.
        match is_root(&certificate) {
            true => self.anchors.push(anchor),
            false => self.intermediates.push(certificate.clone()),
        }
        self.certificates.push(certificate);
        Ok(())
    }

    fn add_system(&mut self) -> Result<()> {
        let found = rustls_native_certs::load_native_certs();
        let before = self.anchors.len();
        for certificate in found.certs {
            // One that cannot be read vouches for nobody, and is no reason to refuse the others.
            let _ = self.add(certificate);
        }
        if self.anchors.len() > before {
            return Ok(());
        }
        let reason = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        Err(tls(format!(
            "the operating system has no trusted certificates{reason}: install its package of CA \
             certificates, set SSL_CERT_FILE, or set sslrootcert to the authority's own file"
        )))
    }
}

/// Whether a certificate is that of an authority, issued by itself, and in date.
fn is_root(certificate: &CertificateDer<'_>) -> bool {
    let Some(parsed) = parse(certificate) else { return false };
    let fields = parsed.tbs_certificate();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let validity = fields.validity();
    let in_date = (validity.not_before.to_unix_duration()..=validity.not_after.to_unix_duration())
        .contains(&now);
    // Version 1 has no extensions to say so.
    let is_authority = fields.version() == Version::V1
        || fields
            .extensions()
            .into_iter()
            .flatten()
            .filter(|e| e.extn_id.to_string() == BASIC_CONSTRAINTS)
            .any(|e| is_ca(e.extn_value.as_bytes()));
    in_date && is_authority && fields.issuer() == fields.subject()
}

const BASIC_CONSTRAINTS: &str = "2.5.29.19";

/// `BasicConstraints ::= SEQUENCE { cA BOOLEAN DEFAULT FALSE, ... }`
fn is_ca(extension: &[u8]) -> bool {
    let content = AnyRef::from_der(extension).ok().and_then(|s| elements(s.value()));
    let first = content.as_ref().and_then(|fields| fields.first());
    first.is_some_and(|f| f.header().tag() == Tag::Boolean && f.value() == [0xff])
}

fn crls(settings: &Crls) -> Result<Vec<CertRevocationList<'static>>> {
    let mut lists = Vec::new();
    for path in &settings.paths {
        if settings.optional && std::fs::metadata(path).is_err() {
            continue;
        }
        if path.is_dir() {
            add_directory(&mut lists, path)?;
        } else {
            let what = format!("certificate revocation list \"{}\"", path.display());
            let pem = read("certificate revocation list", path)?;
            if add_lists(&mut lists, &pem, &what)? == 0 {
                return Err(tls(format!("{what} holds no PEM list (X509 CRL)")));
            }
        }
    }
    Ok(lists)
}

/// OpenSSL finds the files of a directory by hashed names; here every file counts.
fn add_directory(lists: &mut Vec<CertRevocationList<'static>>, directory: &Path) -> Result<()> {
    let shown = directory.display();
    let unreadable =
        |e| tls(format!("directory of revocation lists \"{shown}\" cannot be read: {e}"));
    let before = lists.len();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            let pem = read("certificate revocation list", &path)?;
            let what = format!("certificate revocation list \"{}\"", path.display());
            add_lists(lists, &pem, &what)?;
        }
    }
    if lists.len() > before {
        return Ok(());
    }
    Err(tls(format!("directory \"{shown}\" holds no PEM certificate revocation list")))
}

/// Returns how many lists there were.
fn add_lists(
    lists: &mut Vec<CertRevocationList<'static>>,
    pem: &[u8],
    what: &str,
) -> Result<usize> {
    let mut count = 0;
    for list in CertificateRevocationListDer::pem_slice_iter(pem) {
        let list = list.map_err(|e| tls(format!("{what} is not PEM: {e}")))?;
        let list = OwnedCertRevocationList::from_der(&list).map_err(|e| {
            let advice = match e {
                webpki::Error::UnsupportedCrlVersion => {
                    ": reissue it as version 2 (crl_extensions in openssl.cnf)"
                }
                _ => "",
            };
            tls(format!("{what} cannot be used ({e}){advice}"))
        })?;
        lists.push(list.into());
        count += 1;
    }
    Ok(count)
}
