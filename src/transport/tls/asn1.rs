//! DER values.

use rustls::pki_types::CertificateDer;
use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::{Decode as _, Reader as _, SliceReader, asn1::AnyRef},
};

/// Decodes a certificate, without checks that OpenSSL does not make either.
pub(super) fn parse_certificate(certificate: &CertificateDer<'_>) -> Option<CertificateInner<Raw>> {
    CertificateInner::from_der(certificate).ok()
}

/// Returns the content of a value.
pub(super) fn content(der: &[u8]) -> Option<&[u8]> {
    AnyRef::from_der(der).ok().map(|value| value.value())
}

/// Returns the values in a SEQUENCE, with any tags.
pub(super) fn elements(content: &[u8]) -> Option<Vec<AnyRef<'_>>> {
    let mut reader = SliceReader::new(content).ok()?;
    let mut elements = Vec::new();
    while !reader.is_finished() {
        elements.push(AnyRef::decode(&mut reader).ok()?);
    }
    Some(elements)
}
