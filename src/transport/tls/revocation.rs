//! Certificate revocation lists: which list counts, and whether a certificate is on it. webpki uses
//! the first list of an issuer. This module follows OpenSSL: among the lists that are signed by the
//! issuer's key, cover this certificate and are valid now, the newest one counts.

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

/// A revocation list that can be decoded.
pub(super) struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    /// Where the serial numbers lie in it, sorted by what they are.
    serials: Vec<Range<usize>>,
    /// A critical extension of an entry changes what the entry means, such as whose certificate it
    /// is about.
    has_critical_entry: bool,
}

/// The one who has signed a certificate and must have signed the list about it.
pub(super) struct Issuer<'a> {
    pub(super) key: &'a SubjectPublicKeyInfoDer<'a>,
    /// `None`: an authority of Mozilla's.
    pub(super) certificate: Option<&'a Certificate>,
}

/// Why a list of the right issuer does not count, the most likely reason first.
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
    /// Decodes all of a list; `None` if it is malformed. Lists may be long, so this is for a thread
    /// that may block.
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

/// Checks that a certificate is not revoked: that there is a list about it, and that it is not on
/// it.
pub(super) fn check(
    lists: &[RevocationList],
    certificate: &Certificate,
    issuer: &Issuer<'_>,
    algorithms: Algorithms,
    now: Duration,
) -> Result<(), String> {
    if !issuer.certificate.is_none_or(fields::may_sign_lists) {
        return Err(format!(
            "the authority{} must not sign revocation lists (keyUsage without cRLSign), so nothing \
             says whether its certificates are revoked: reissue its certificate",
            show::name(certificate.tbs_certificate().issuer())
        ));
    }
    let mut newest: Vec<&RevocationList> = Vec::new();
    let mut newest_time = Duration::ZERO;
    let mut deltas = Vec::new();
    let mut unusable = None;
    for list in lists {
        // It has been decoded before.
        let Ok(fields) = Fields::decode(&list.der) else { continue };
        if fields.issuer != *certificate.tbs_certificate().issuer() {
            continue;
        }
        let checked = match list.has_critical_entry {
            true => Err(Unusable::CriticalExtension),
            false => fields.check_usable(certificate, issuer, algorithms, now),
        };
        if let Err(reason) = checked {
            unusable = unusable.into_iter().chain([reason]).min();
            continue;
        }
        // It only adds to a complete list. OpenSSL, as libpq sets it up, takes it for one.
        if fields.is_delta {
            unusable = unusable.into_iter().chain([Unusable::Delta]).min();
            deltas.push((fields.this_update, list));
            continue;
        }
        // Lists of the same second all count: their order must not decide.
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
                "a certificate of the server's chain has no revocation list of its issuer{issuer}: \
                 add the lists of all its authorities (sslcrl, sslcrldir, crl_path)"
            );
        }
        Some(Unusable::Expired(end)) => {
            format!("it has expired on {}: get a new one, and check the clocks", show::time(end))
        }
        Some(Unusable::NotYetValid(start)) => {
            format!(
                "it is not valid before {}: check the clocks of both machines",
                show::time(start)
            )
        }
        Some(Unusable::WrongKey) => {
            "it is not signed by the authority's present key: get the list of that key".to_owned()
        }
        Some(Unusable::UnsupportedSignature) => {
            "its signature is of an unsupported type: have it signed with SHA-256".to_owned()
        }
        Some(Unusable::Delta) => {
            "it is a delta list, which is not supported: use complete lists".to_owned()
        }
        Some(Unusable::Indirect) => {
            "it is an indirect list or only about some reasons, which is not supported: use \
             complete lists"
                .to_owned()
        }
        Some(Unusable::CriticalExtension) => {
            "it has a critical extension that is not supported: use plain lists".to_owned()
        }
        Some(Unusable::OtherScope) => {
            "it is about other certificates of its authority: add the list of the certificate's \
             distribution point"
                .to_owned()
        }
    };
    format!("no certificate revocation list of the issuer{issuer} can be used; {reason}")
}

/// A list's fields, where they lie.
struct Fields<'a> {
    /// All that is signed.
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
    /// `CertificateList` of RFC 5280, section 5.1; also of version 1, as OpenSSL takes it.
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
            // Twice.
            Some(_) => Err(Tag::Sequence.value_error().into()),
        }
    }

    /// Whether it counts for a certificate: `get_crl_score` of OpenSSL.
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

/// Whether a list with this issuingDistributionPoint is about a certificate, and about every
/// reason.
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

/// Whether one of the certificate's distribution points has one of the list's names, and is neither
/// another issuer's nor only about some reasons.
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

/// The names of a DistributionPointName; none of one that is relative to its issuer.
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

/// The content of a value that must have this tag.
fn value(der: &[u8], tag: Tag) -> der::Result<&[u8]> {
    let any = AnyRef::from_der(der)?;
    any.header().tag().assert_eq(tag)?;
    Ok(any.value())
}

fn content(der: &[u8], tag: Tag) -> der::Result<SliceReader<'_>> {
    SliceReader::new(value(der, tag)?)
}
