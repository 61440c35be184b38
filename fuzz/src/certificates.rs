//! Certificates and revocation lists, with signatures that are always valid.
//!
//! A fuzzer cannot sign. Without signatures, it can reach all checks that follow them.

#[path = "../../src/transport/tls/asn1.rs"]
mod asn1;
#[path = "../../src/transport/tls/constraints.rs"]
mod constraints;
#[path = "../../src/transport/tls/fields.rs"]
mod fields;
#[path = "../../src/transport/tls/hostname.rs"]
mod hostname;
#[path = "../../src/transport/tls/names.rs"]
mod names;
#[path = "../../src/transport/tls/paths.rs"]
mod paths;
#[path = "../../src/transport/tls/revocation.rs"]
mod revocation;
#[path = "../../src/transport/tls/show.rs"]
mod show;
#[path = "../../src/transport/tls/trust.rs"]
mod trust;
#[path = "../../src/transport/tls/verify.rs"]
#[allow(dead_code)]
mod verify;

use std::time::Duration;

use rustls::{
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{
        AlgorithmIdentifier, CertificateDer, CertificateRevocationListDer, InvalidSignature,
        SignatureVerificationAlgorithm, UnixTime, alg_id,
    },
};
use x509_cert::{crl::CertificateList, der::Decode};

use self::{asn1::parse_certificate, revocation::RevocationList, trust::Trust, verify::Verifier};
use crate::targets::assert_one_line;

/// 2026-01-01.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));

#[derive(Debug)]
struct AlwaysRight;

impl SignatureVerificationAlgorithm for AlwaysRight {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

const ALGORITHMS: WebPkiSupportedAlgorithms =
    WebPkiSupportedAlgorithms { all: &[&AlwaysRight], mapping: &[] };

/// The parts of an input: pieces with a tag and a length of two bytes.
#[derive(Default)]
struct Input<'a> {
    sent: Vec<&'a [u8]>,
    roots: Vec<&'a [u8]>,
    lists: Vec<&'a [u8]>,
    host: &'a str,
}

impl<'a> Input<'a> {
    fn read(mut data: &'a [u8]) -> Self {
        let mut input = Self { host: "db.example", ..Self::default() };
        while let [tag, high, low, rest @ ..] = data {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (piece, rest) = rest.split_at(length.min(rest.len()));
            match tag % 4 {
                0 => input.sent.push(piece),
                1 => input.roots.push(piece),
                2 => input.lists.push(piece),
                _ => input.host = std::str::from_utf8(piece).unwrap_or(input.host),
            }
            data = rest;
        }
        input
    }

    /// Returns whether the chain is accepted.
    fn verify(&self, name: Option<&str>, with_lists: bool, is_public: bool) -> bool {
        let Some((leaf, between)) = self.sent.split_first() else { return false };
        let mut trust = Trust { roots: Vec::new(), intermediates: Vec::new(), lists: None };
        for root in &self.roots {
            let _ = trust.add(CertificateDer::from(root.to_vec()), is_public);
        }
        if with_lists {
            let lists = self.lists.iter().filter_map(|list| decode(list)).collect();
            trust.lists = Some(lists);
        }
        let between: Vec<_> = between.iter().map(|der| CertificateDer::from(*der)).collect();
        let verifier = Verifier::new(Some(trust), name.map(str::to_owned), ALGORITHMS);
        match verifier.verify(&CertificateDer::from(*leaf), &between, NOW) {
            Ok(()) => true,
            Err(error) => {
                assert!(error.len() < 4096, "{error}");
                assert_one_line(error);
                false
            }
        }
    }
}

fn decode(list: &[u8]) -> Option<RevocationList> {
    RevocationList::new(CertificateRevocationListDer::from(list.to_vec()))
}

/// Fuzzes a server's certificates and a file of roots.
///
/// Additional requirements must never accept more. A host that is accepted must be in the
/// certificate.
pub fn certificate(data: &[u8]) {
    let input = Input::read(data);
    let chain = input.verify(None, false, false);
    let named = input.verify(Some(input.host), false, false);
    let public = input.verify(Some(input.host), false, true);
    assert!(chain || !named, "a name made a chain acceptable");
    assert!(named || !public, "public roots vouch for more than others");
    if named {
        // As text or, for an address, in four or sixteen bytes.
        let leaf = input.sent[0].to_ascii_lowercase();
        let host = input.host.to_ascii_lowercase();
        let parent = host.split_once('.').map_or("", |(_, parent)| parent);
        let has = |text: &str| crate::targets::contains(&leaf, text.as_bytes());
        let is_address =
            host.contains(':') || host.bytes().all(|b| b.is_ascii_hexdigit() || b"x.".contains(&b));
        assert!(is_address || has(&host) || has(&format!("*.{parent}")), "{host} is not there");
    }
}

/// Returns whether the chain of an input is accepted, with its revocation lists if it has any.
pub fn is_accepted(data: &[u8]) -> bool {
    let input = Input::read(data);
    let with_lists = !input.lists.is_empty();
    input.verify(None, with_lists, false)
}

/// Fuzzes revocation lists. They must never make more acceptable. A list must be parsed like by
/// another decoder.
pub fn revocation_list(data: &[u8]) {
    let input = Input::read(data);
    let without = input.verify(None, false, false);
    let with = input.verify(None, true, false);
    assert!(without || !with, "revocation lists made a chain acceptable");
    let leaf = input.sent.first().and_then(|der| parse_certificate(&CertificateDer::from(*der)));
    for list in &input.lists {
        let (ours, theirs) = (decode(list), <CertificateList>::from_der(list));
        if let (Some(ours), Ok(theirs)) = (&ours, &theirs) {
            let revoked = theirs.tbs_cert_list.revoked_certificates.iter().flatten();
            for entry in revoked {
                let serial = fields::without_zeros(entry.serial_number.as_bytes());
                assert!(ours.contains(serial), "{serial:?} is not found");
            }
        }
        // A chain must be rejected if its only list has the server.
        let (Some(leaf), Some(ours)) = (&leaf, ours) else { continue };
        let serial = leaf.tbs_certificate().serial_number().as_bytes();
        if input.lists.len() == 1 && ours.contains(fields::without_zeros(serial)) {
            assert!(!with, "revoked");
        }
    }
}
