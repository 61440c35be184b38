//! The names in a certificate.

use x509_cert::der::{Any, Decode as _, Tag, TagNumber, asn1::AnyRef};

use super::{
    asn1::{content, elements},
    fields::{self, ALTERNATIVE_NAMES, Certificate},
};

/// A name in a certificate. Bytes, because they may not be valid text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Dns(Vec<u8>),
    Ip(Vec<u8>),
    Common(Vec<u8>),
}

/// Returns the dNSName and iPAddress entries of subjectAltName, or `None` if it is malformed.
pub(super) fn alternative_names(certificate: &Certificate) -> Option<Vec<Name>> {
    const DNS_NAME: Tag = Tag::ContextSpecific { constructed: false, number: TagNumber(2) };
    const IP_ADDRESS: Tag = Tag::ContextSpecific { constructed: false, number: TagNumber(7) };
    let Some(extension) = fields::extension(certificate, ALTERNATIVE_NAMES) else {
        return Some(Vec::new());
    };
    let names = AnyRef::from_der(extension).ok()?;
    let names = elements(names.value())?.into_iter().filter_map(|name| {
        let value = name.value().to_vec();
        match name.header().tag() {
            DNS_NAME => Some(Name::Dns(value)),
            IP_ADDRESS => Some(Name::Ip(value)),
            _ => None,
        }
    });
    Some(names.collect())
}

/// Returns the maximum number of names that are compared with name constraints.
pub(super) fn count_names(certificate: &Certificate) -> usize {
    // The subject, its attributes (email addresses and common names), and subjectAltName. If that
    // is malformed, it has at most as many names as fit, and an empty name takes two bytes.
    let alternative = fields::extension(certificate, ALTERNATIVE_NAMES).map_or(0, |extension| {
        let names = content(extension).and_then(elements);
        names.map_or(extension.len() / 2, |names| names.len())
    });
    1 + certificate.tbs_certificate().subject().iter().count() + alternative
}

/// Returns the common names of the subject.
pub(super) fn common_names(certificate: &Certificate) -> impl Iterator<Item = &Any> {
    let subject = certificate.tbs_certificate().subject();
    subject.iter().filter(|a| a.oid.to_string() == "2.5.4.3").map(|a| &a.value)
}

/// Returns the first common name, like `X509_NAME_get_index_by_NID`.
pub(super) fn common_name(certificate: &Certificate) -> Option<Name> {
    common_names(certificate).next().map(|value| Name::Common(value.value().to_vec()))
}
