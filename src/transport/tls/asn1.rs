//! DER values.

use rustls::pki_types::CertificateDer;
use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::{Decode as _, Reader as _, SliceReader, asn1::AnyRef},
};

#[cfg(test)]
thread_local! {
    /// The number of bytes that were decoded, which must be linear in what a server sends.
    pub(super) static DECODED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Decodes a certificate, without checks that OpenSSL does not make either.
pub(super) fn parse_certificate(certificate: &CertificateDer<'_>) -> Option<CertificateInner<Raw>> {
    #[cfg(test)]
    DECODED.set(DECODED.get() + certificate.len());
    CertificateInner::from_der(certificate).ok()
}

/// Returns the content of a value.
pub(super) fn content(der: &[u8]) -> Option<&[u8]> {
    AnyRef::from_der(der).ok().map(|value| value.value())
}

/// Returns the values in a SEQUENCE, with any tags.
pub(super) fn elements(content: &[u8]) -> Option<Vec<AnyRef<'_>>> {
    #[cfg(test)]
    DECODED.set(DECODED.get() + content.len());
    let mut reader = SliceReader::new(content).ok()?;
    let mut elements = Vec::new();
    while !reader.is_finished() {
        elements.push(AnyRef::decode(&mut reader).ok()?);
    }
    Some(elements)
}
