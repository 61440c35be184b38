//! Certificate revocation lists.
//!
//! webpki uses the first list of an issuer. This module follows OpenSSL: it uses the newest list
//! that is signed by the issuer's key, covers the certificate and is valid now.

use std::{ops::Range, time::Duration};

use rustls::pki_types::{CertificateRevocationListDer, SubjectPublicKeyInfoDer};
use x509_cert::{
    der::{
        self, Decode as _, Reader as _, SliceReader, Tag, TagNumber, asn1::AnyRef,
        oid::ObjectIdentifier,
    },
    name::Name,
    time::Time,
};

use super::{
    asn1::elements,
    fields::{
        self, AUTHORITY_KEY_ID, Algorithms, Certificate, DISTRIBUTION_POINTS, Signature,
        without_zeros,
    },
    show,
};

const DELTA: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.27");
const DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");

const FIELD_0: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(0) };

/// A well-formed revocation list.
pub(super) struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    /// The positions of the serial numbers in `der`, sorted by serial number.
    serials: Vec<Range<usize>>,
    /// A critical extension of an entry changes its meaning, for example whose certificate it is.
    has_critical_entry: bool,
}

/// The issuer of a certificate, which must also have signed the list.
pub(super) struct Issuer<'a> {
    pub(super) key: &'a SubjectPublicKeyInfoDer<'a>,
    /// `None` for Mozilla's roots.
    pub(super) certificate: Option<&'a Certificate>,
}

/// Why a list of the right issuer cannot be used, the most likely reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unusable {
    Expired(Duration),
    NotYetValid(Duration),
    WrongKey,
    UnsupportedSignature,
    Delta,
    Indirect,
    CriticalExtension,
    OtherScope,
}

impl RevocationList {
    /// Decodes a list. Returns `None` if it is malformed. Lists can be long, so call it on a
    /// blocking thread.
    pub(super) fn new(der: CertificateRevocationListDer<'static>) -> Option<Self> {
        let fields = Fields::decode(&der).ok()?;
        let start = der.as_ptr() as usize;
        let mut serials = Vec::new();
        let mut has_critical_entry = false;
        let mut entries = SliceReader::new(fields.revoked).ok()?;
        while !entries.is_finished() {
            let entry = Entry::decode(entries.tlv_bytes().ok()?).ok()?;
            has_critical_entry |= entry.has_critical;
            let at = (entry.serial.as_ptr() as usize).checked_sub(start)?;
            serials.push(at..at + entry.serial.len());
        }
        serials.sort_unstable_by_key(|range| der.get(range.clone()));
        Some(Self { serials, has_critical_entry, der })
    }

    pub(super) fn contains(&self, serial: &[u8]) -> bool {
        self.serials
            .binary_search_by_key(&Some(serial), |range| self.der.get(range.clone()))
            .is_ok()
    }
}

/// Checks that a certificate is not revoked: a usable list must exist and not contain it.
pub(super) fn check_not_revoked(
    lists: &[RevocationList],
    certificate: &Certificate,
    issuer: &Issuer<'_>,
    algorithms: Algorithms,
    now: Duration,
) -> Result<(), String> {
    if !issuer.certificate.is_none_or(fields::may_sign_lists) {
        return Err(format!(
            "the authority{} must not sign revocation lists (keyUsage without cRLSign), so its \
             certificates cannot be checked for revocation: reissue its certificate",
            show::name(certificate.tbs_certificate().issuer())
        ));
    }
    let mut newest: Vec<&RevocationList> = Vec::new();
    let mut newest_time = Duration::ZERO;
    let mut deltas = Vec::new();
    let mut unusable = None;
    for list in lists {
        // It was decoded successfully when it was loaded.
        let Ok(fields) = Fields::decode(&list.der) else { continue };
        if fields.issuer != *certificate.tbs_certificate().issuer() {
            continue;
        }
        let checked = if list.has_critical_entry {
            Err(Unusable::CriticalExtension)
        } else {
            fields.check_usable(certificate, issuer, algorithms, now)
        };
        if let Err(reason) = checked {
            unusable = unusable.into_iter().chain([reason]).min();
            continue;
        }
        // A delta list only extends a complete list. OpenSSL, as configured by libpq, treats it as
        // a complete one.
        if fields.is_delta {
            unusable = unusable.into_iter().chain([Unusable::Delta]).min();
            deltas.push((fields.this_update, list));
            continue;
        }
        // Use all lists of the same second, so that their order does not matter.
        if fields.this_update > newest_time {
            newest.clear();
        }
        if newest.is_empty() || fields.this_update == newest_time {
            newest_time = fields.this_update;
            newest.push(list);
        }
    }
    if newest.is_empty() {
        return Err(missing(unusable, certificate));
    }
    let serial = without_zeros(certificate.tbs_certificate().serial_number().as_bytes());
    let newer = deltas.iter().filter(|(time, _)| *time >= newest_time).map(|(_, delta)| delta);
    if newest.iter().chain(newer).any(|list| list.contains(serial)) {
        return Err(
            "a certificate of the server has been revoked: the server needs another one".into()
        );
    }
    Ok(())
}

fn missing(unusable: Option<Unusable>, certificate: &Certificate) -> String {
    let issuer = show::name(certificate.tbs_certificate().issuer());
    let reason = match unusable {
        None => {
            return format!(
                "there is no revocation list of the issuer{issuer} of a certificate of the \
                 server's chain: add the lists of all its authorities (sslcrl, sslcrldir, crl_path)"
            );
        }
        Some(Unusable::Expired(end)) => {
            format!("it expired on {}: get a new one, and check the clocks", show::time(end))
        }
        Some(Unusable::NotYetValid(start)) => {
            format!(
                "it is not valid before {}: check the clocks of both machines",
                show::time(start)
            )
        }
        Some(Unusable::WrongKey) => {
            "it is not signed by the authority's current key: get the list of that key".to_owned()
        }
        Some(Unusable::UnsupportedSignature) => {
            "its signature is of an unsupported type: have it signed with SHA-256".to_owned()
        }
        Some(Unusable::Delta) => {
            "it is a delta list, which is not supported: use complete lists".to_owned()
        }
        Some(Unusable::Indirect) => {
            "it is an indirect list or covers only some reasons, which is not supported: use \
             complete lists"
                .to_owned()
        }
        Some(Unusable::CriticalExtension) => {
            "it has a critical extension that is not supported: use plain lists".to_owned()
        }
        Some(Unusable::OtherScope) => {
            "it covers other certificates of its authority: add the list of the certificate's \
             distribution point"
                .to_owned()
        }
    };
    format!("no revocation list of the issuer{issuer} can be used; {reason}")
}

/// The fields of a list, borrowed from its encoding.
struct Fields<'a> {
    /// The signed part.
    signed: &'a [u8],
    /// The content of the AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: Name,
    this_update: Duration,
    next_update: Option<Duration>,
    revoked: &'a [u8],
    authority_key_id: Option<&'a [u8]>,
    distribution_point: Option<&'a [u8]>,
    is_delta: bool,
    has_unknown_critical: bool,
}

struct Entry<'a> {
    serial: &'a [u8],
    has_critical: bool,
}

impl<'a> Fields<'a> {
    /// Decodes `CertificateList` of RFC 5280, section 5.1. Like OpenSSL, it accepts version 1.
    fn decode(der: &'a [u8]) -> der::Result<Self> {
        let mut outer = content(der, Tag::Sequence)?;
        let signed = outer.tlv_bytes()?;
        let algorithm = value(outer.tlv_bytes()?, Tag::Sequence)?;
        let signature = match value(outer.tlv_bytes()?, Tag::BitString)? {
            [0, signature @ ..] => signature,
            _ => return Err(Tag::BitString.value_error().into()),
        };
        outer.finish()?;

        let mut inner = content(signed, Tag::Sequence)?;
        if Tag::peek(&inner)? == Tag::Integer && value(inner.tlv_bytes()?, Tag::Integer)? != [1] {
            return Err(Tag::Integer.value_error().into());
        }
        if value(inner.tlv_bytes()?, Tag::Sequence)? != algorithm {
            return Err(Tag::Sequence.value_error().into());
        }
        let issuer = Name::decode(&mut inner)?;
        let this_update = Time::decode(&mut inner)?.to_unix_duration();
        let mut list = Self {
            signed,
            algorithm,
            signature,
            issuer,
            this_update,
            next_update: None,
            revoked: &[],
            authority_key_id: None,
            distribution_point: None,
            is_delta: false,
            has_unknown_critical: false,
        };
        if !inner.is_finished() && matches!(Tag::peek(&inner)?, Tag::UtcTime | Tag::GeneralizedTime)
        {
            list.next_update = Some(Time::decode(&mut inner)?.to_unix_duration());
        }
        if !inner.is_finished() && Tag::peek(&inner)? == Tag::Sequence {
            list.revoked = value(inner.tlv_bytes()?, Tag::Sequence)?;
        }
        if !inner.is_finished() {
            let mut extensions = content(value(inner.tlv_bytes()?, FIELD_0)?, Tag::Sequence)?;
            while !extensions.is_finished() {
                list.add_extension(Extension::decode(extensions.tlv_bytes()?)?)?;
            }
        }
        inner.finish()?;
        Ok(list)
    }

    fn add_extension(&mut self, extension: Extension<'a>) -> der::Result<()> {
        let place = match extension.id {
            AUTHORITY_KEY_ID => &mut self.authority_key_id,
            DISTRIBUTION_POINT => &mut self.distribution_point,
            DELTA => {
                self.is_delta = true;
                return Ok(());
            }
            _ => {
                self.has_unknown_critical |= extension.critical;
                return Ok(());
            }
        };
        match place.replace(extension.value) {
            None => Ok(()),
            // A repeated extension.
            Some(_) => Err(Tag::Sequence.value_error().into()),
        }
    }

    /// Checks that the list can be used for a certificate: `get_crl_score` of OpenSSL.
    fn check_usable(
        &self,
        certificate: &Certificate,
        issuer: &Issuer<'_>,
        algorithms: Algorithms,
        now: Duration,
    ) -> Result<(), Unusable> {
        if self.has_unknown_critical {
            return Err(Unusable::CriticalExtension);
        }
        if let Some(point) = self.distribution_point {
            check_scope(point, certificate)?;
        }
        let is_named = issuer
            .certificate
            .is_none_or(|c| fields::is_issuer_by_key_id(c, self.authority_key_id));
        if !is_named {
            return Err(Unusable::WrongKey);
        }
        let verified = fields::verify_signature(
            algorithms,
            issuer.key,
            self.algorithm,
            self.signed,
            self.signature,
        );
        match verified {
            Signature::Right => {}
            Signature::Wrong => return Err(Unusable::WrongKey),
            Signature::Unsupported => return Err(Unusable::UnsupportedSignature),
        }
        if now < self.this_update {
            return Err(Unusable::NotYetValid(self.this_update));
        }
        match self.next_update {
            Some(end) if now > end => Err(Unusable::Expired(end)),
            _ => Ok(()),
        }
    }
}

/// Checks that a list with this issuingDistributionPoint covers a certificate, and all reasons.
fn check_scope(point: &[u8], certificate: &Certificate) -> Result<(), Unusable> {
    let fields = AnyRef::from_der(point).ok().and_then(|s| elements(s.value()));
    let fields = fields.ok_or(Unusable::Indirect)?;
    let is_authority = fields::is_authority(certificate);
    for field in fields {
        let Tag::ContextSpecific { number, .. } = field.header().tag() else {
            return Err(Unusable::Indirect);
        };
        let is_set = field.value().iter().any(|b| *b != 0);
        match number.value() {
            0 if !is_of_point(field.value(), certificate) => return Err(Unusable::OtherScope),
            0 => {}
            // onlyContainsUserCerts, onlyContainsCACerts, onlyContainsAttributeCerts
            1 if is_set && is_authority => return Err(Unusable::OtherScope),
            2 if is_set && !is_authority => return Err(Unusable::OtherScope),
            5 if is_set => return Err(Unusable::OtherScope),
            1 | 2 | 5 => {}
            4 if !is_set => {}
            // onlySomeReasons, indirectCRL
            _ => return Err(Unusable::Indirect),
        }
    }
    Ok(())
}

/// Returns whether one of the certificate's distribution points has one of the list's names. Points
/// of another issuer, or for only some reasons, do not match.
fn is_of_point(name: &[u8], certificate: &Certificate) -> bool {
    let wanted = full_names(name);
    let points = fields::extension(certificate, DISTRIBUTION_POINTS)
        .and_then(|v| AnyRef::from_der(v).ok())
        .and_then(|s| elements(s.value()))
        .unwrap_or_default();
    points.iter().any(|point| match elements(point.value()).as_deref() {
        Some([name]) if name.header().tag() == FIELD_0 => {
            let names = full_names(name.value());
            names.iter().any(|name| wanted.contains(name))
        }
        _ => false,
    })
}

/// Returns the full names of a DistributionPointName; none if it is relative to its issuer.
fn full_names(name: &[u8]) -> Vec<AnyRef<'_>> {
    match AnyRef::from_der(name) {
        Ok(names) if names.header().tag() == FIELD_0 => elements(names.value()).unwrap_or_default(),
        _ => Vec::new(),
    }
}

struct Extension<'a> {
    id: ObjectIdentifier,
    critical: bool,
    value: &'a [u8],
}

impl<'a> Extension<'a> {
    fn decode(der: &'a [u8]) -> der::Result<Self> {
        let mut reader = content(der, Tag::Sequence)?;
        let id = ObjectIdentifier::decode(&mut reader)?;
        let critical = Tag::peek(&reader)? == Tag::Boolean && bool::decode(&mut reader)?;
        let extension = value(reader.tlv_bytes()?, Tag::OctetString)?;
        reader.finish()?;
        Ok(Self { id, critical, value: extension })
    }
}

impl<'a> Entry<'a> {
    fn decode(der: &'a [u8]) -> der::Result<Self> {
        let mut reader = content(der, Tag::Sequence)?;
        let serial = without_zeros(value(reader.tlv_bytes()?, Tag::Integer)?);
        Time::decode(&mut reader)?;
        let mut has_critical = false;
        if !reader.is_finished() {
            let mut extensions = content(reader.tlv_bytes()?, Tag::Sequence)?;
            while !extensions.is_finished() {
                has_critical |= Extension::decode(extensions.tlv_bytes()?)?.critical;
            }
        }
        reader.finish()?;
        Ok(Self { serial, has_critical })
    }
}

/// Returns the content of a value, which must have this tag.
fn value(der: &[u8], tag: Tag) -> der::Result<&[u8]> {
    let any = AnyRef::from_der(der)?;
    any.header().tag().assert_eq(tag)?;
    Ok(any.value())
}

fn content(der: &[u8], tag: Tag) -> der::Result<SliceReader<'_>> {
    SliceReader::new(value(der, tag)?)
}
