use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::{
    der::{Decode as _, Tag, TagNumber},
    spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef},
};

use super::asn1::{elements, parse_certificate};

/// Returns the channel binding tls-server-end-point of RFC 5929, section 4.1, computed like
/// `pgtls_get_peer_certificate_hash`. It is the certificate, hashed with the hash function of its
/// signature; SHA-256 replaces MD5 and SHA-1.
///
/// Returns `None` if the signature has no such hash function (Ed25519), or an unknown one.
pub(super) fn hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let der: &[u8] = certificate;
    Some(match signature_hash(parse_certificate(certificate)?.signature_algorithm())? {
        Hash::Sha224 => Sha224::digest(der).to_vec(),
        Hash::Sha256 => Sha256::digest(der).to_vec(),
        Hash::Sha384 => Sha384::digest(der).to_vec(),
        Hash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    match algorithm.oid.to_string().as_str() {
        // RSA, with MD5 and SHA-1 first.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => {
            Some(Hash::Sha256)
        }
        "1.2.840.113549.1.1.14" => Some(Hash::Sha224),
        "1.2.840.113549.1.1.12" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" => Some(Hash::Sha512),
        "1.2.840.113549.1.1.10" => pss_hash(algorithm.parameters.as_ref()?.value()),
        // ECDSA, with SHA-1 first.
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.10045.4.3.1" => Some(Hash::Sha224),
        "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        _ => None,
    }
}

/// `RSASSA-PSS-params`: the hash is in field `[0]`, and SHA-1 when that is absent.
fn pss_hash(parameters: &[u8]) -> Option<Hash> {
    const FIELD_0: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
    let fields = elements(parameters)?;
    let Some(field) = fields.iter().find(|f| f.header().tag() == FIELD_0) else {
        return Some(Hash::Sha256);
    };
    match AlgorithmIdentifierRef::from_der(field.value()).ok()?.oid.to_string().as_str() {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        _ => None,
    }
}
