//! The fields of a certificate: its permitted uses, by OpenSSL's rules, and its key.

use rustls::pki_types::{AlgorithmIdentifier, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use x509_cert::{
    certificate::{CertificateInner, Raw, Version},
    der::{
        Decode as _, Encode as _, Reader as _, SliceReader, Tag, TagNumber, asn1::AnyRef,
        oid::ObjectIdentifier,
    },
    name::Name,
};

use super::asn1::{content, elements};

/// A decoded certificate.
pub(super) type Certificate = CertificateInner<Raw>;

/// The supported signature algorithms.
pub(super) type Algorithms =
    &'static [&'static dyn rustls::pki_types::SignatureVerificationAlgorithm];

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const SUBJECT_KEY_ID: ObjectIdentifier = oid("2.5.29.14");
const KEY_USAGE: ObjectIdentifier = oid("2.5.29.15");
pub(super) const ALTERNATIVE_NAMES: ObjectIdentifier = oid("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = oid("2.5.29.19");
pub(super) const NAME_CONSTRAINTS: ObjectIdentifier = oid("2.5.29.30");
pub(super) const DISTRIBUTION_POINTS: ObjectIdentifier = oid("2.5.29.31");
pub(super) const AUTHORITY_KEY_ID: ObjectIdentifier = oid("2.5.29.35");
const PURPOSES: ObjectIdentifier = oid("2.5.29.37");
const NETSCAPE_TYPE: ObjectIdentifier = oid("2.16.840.1.113730.1.1");
const EMAIL_ADDRESS: ObjectIdentifier = oid("1.2.840.113549.1.9.1");

/// Extensions that OpenSSL supports, so that they may be critical. Policies are among them,
/// although libpq sets no requirements for them.
const KNOWN: [ObjectIdentifier; 11] = [
    KEY_USAGE,
    ALTERNATIVE_NAMES,
    BASIC_CONSTRAINTS,
    NAME_CONSTRAINTS,
    DISTRIBUTION_POINTS,
    PURPOSES,
    NETSCAPE_TYPE,
    oid("2.5.29.32"), // certificatePolicies
    oid("2.5.29.33"), // policyMappings
    oid("2.5.29.36"), // policyConstraints
    oid("2.5.29.54"), // inhibitAnyPolicy
];

/// `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1.
const SERVER_AUTH: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 1];

/// Bits of keyUsage (RFC 5280, section 4.2.1.3).
const DIGITAL_SIGNATURE: usize = 0;
const KEY_ENCIPHERMENT: usize = 2;
const KEY_AGREEMENT: usize = 4;
const KEY_CERT_SIGN: usize = 5;
const CRL_SIGN: usize = 6;
/// The bit of Netscape's certificate type for a server.
const NETSCAPE_SERVER: usize = 1;

pub(super) fn extension(certificate: &Certificate, id: ObjectIdentifier) -> Option<&[u8]> {
    let mut extensions = certificate.tbs_certificate().extensions().into_iter().flatten();
    extensions.find(|e| e.extn_id == id).map(|e| e.extn_value.as_bytes())
}

/// Returns why the extensions are unusable: one is repeated, or is critical and unknown.
pub(super) fn unusable_extension(certificate: &Certificate) -> Option<String> {
    let extensions = certificate.tbs_certificate().extensions()?;
    extensions.iter().enumerate().find_map(|(i, e)| {
        let id = e.extn_id;
        if extensions.iter().take(i).any(|before| before.extn_id == id) {
            return Some(format!("has the extension {id} twice"));
        }
        let is_unknown = e.critical && !KNOWN.contains(&id);
        is_unknown.then(|| format!("has the critical extension {id}, which is not supported"))
    })
}

/// Returns whether one of these bits is set in a BIT STRING extension. A missing extension allows
/// everything, a malformed one nothing.
fn allows(certificate: &Certificate, id: ObjectIdentifier, bits: &[usize]) -> bool {
    let Some(value) = extension(certificate, id) else { return true };
    let Ok(value) = AnyRef::from_der(value) else { return false };
    let bytes = value.value().get(1..).unwrap_or_default();
    let is_set =
        |bit: usize| bytes.get(bit / 8).is_some_and(|byte| byte & (0x80 >> (bit % 8)) != 0);
    value.header().tag() == Tag::BitString && bits.iter().any(|bit| is_set(*bit))
}

/// Returns whether extendedKeyUsage, if present, contains serverAuth. As for OpenSSL, "any purpose"
/// is not sufficient.
fn names_servers(certificate: &Certificate) -> bool {
    let Some(value) = extension(certificate, PURPOSES) else { return true };
    let purposes = AnyRef::from_der(value).ok().and_then(|s| elements(s.value()));
    purposes.is_some_and(|p| p.iter().any(|purpose| purpose.value() == SERVER_AUTH))
}

/// Returns why it is not a server certificate: `check_purpose_ssl_server` of OpenSSL.
pub(super) fn not_for_servers(certificate: &Certificate) -> Option<&'static str> {
    if !names_servers(certificate) {
        return Some("extendedKeyUsage without serverAuth");
    }
    if !allows(certificate, KEY_USAGE, &[DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, KEY_AGREEMENT]) {
        return Some("keyUsage without digitalSignature");
    }
    if !allows(certificate, NETSCAPE_TYPE, &[NETSCAPE_SERVER]) {
        return Some("nsCertType without server");
    }
    None
}

/// Returns why it must not sign server certificates: `check_ca` and `check_ssl_ca` of OpenSSL.
pub(super) fn not_an_authority(certificate: &Certificate) -> Option<&'static str> {
    let is_old = certificate.tbs_certificate().version() == Version::V1;
    let says_nothing = extension(certificate, BASIC_CONSTRAINTS).is_none();
    if !allows(certificate, KEY_USAGE, &[KEY_CERT_SIGN]) {
        return Some("keyUsage without keyCertSign");
    }
    if !names_servers(certificate) {
        return Some("extendedKeyUsage without serverAuth");
    }
    // Version 1 has no extensions, and keyCertSign is sufficient too.
    if says_nothing && (is_old || extension(certificate, KEY_USAGE).is_some()) {
        return None;
    }
    (!basic_constraints(certificate).is_authority).then_some("basicConstraints without CA:TRUE")
}

pub(super) fn may_sign_lists(certificate: &Certificate) -> bool {
    allows(certificate, KEY_USAGE, &[CRL_SIGN])
}

pub(super) fn is_authority(certificate: &Certificate) -> bool {
    basic_constraints(certificate).is_authority
}

/// Returns the maximum number of intermediates between it and a server.
pub(super) fn path_length(certificate: &Certificate) -> Option<usize> {
    basic_constraints(certificate).path_length
}

#[derive(Default)]
struct BasicConstraints {
    is_authority: bool,
    path_length: Option<usize>,
}

/// `SEQUENCE { cA BOOLEAN DEFAULT FALSE, pathLenConstraint INTEGER OPTIONAL }`
fn basic_constraints(certificate: &Certificate) -> BasicConstraints {
    let value = extension(certificate, BASIC_CONSTRAINTS).and_then(|v| AnyRef::from_der(v).ok());
    let Some(fields) = value.and_then(|s| elements(s.value())) else { return Default::default() };
    let mut constraints = BasicConstraints::default();
    for field in fields {
        match (field.header().tag(), field.value()) {
            (Tag::Boolean, value) => constraints.is_authority = value == [0xff],
            // A negative number.
            (Tag::Integer, [first, ..]) if *first >= 0x80 => constraints.path_length = Some(0),
            (Tag::Integer, value) => {
                let number = value
                    .iter()
                    .try_fold(0_usize, |n, b| Some(n.checked_mul(256)? + usize::from(*b)));
                constraints.path_length = Some(number.unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }
    constraints
}

pub(super) fn is_self_issued(certificate: &Certificate) -> bool {
    let fields = certificate.tbs_certificate();
    fields.issuer() == fields.subject()
}

/// What is compared to find the issuer of a certificate. It is decoded once for each certificate,
/// because a server can send many that are compared with each other.
#[derive(Clone)]
pub(super) struct Identifiers {
    /// The names are encoded.
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    serial: Vec<u8>,
    key_id: Option<Vec<u8>>,
    /// `None`: it is malformed and matches no issuer.
    authority: Option<AuthorityKeyId>,
}

impl Identifiers {
    pub(super) fn new(certificate: &Certificate) -> Self {
        let fields = certificate.tbs_certificate();
        let encode = |name: &Name| name.to_der().unwrap_or_default();
        let key_id = extension(certificate, SUBJECT_KEY_ID).and_then(content);
        Self {
            subject: encode(fields.subject()),
            issuer: encode(fields.issuer()),
            serial: without_zeros(fields.serial_number().as_bytes()).to_vec(),
            key_id: key_id.map(<[u8]>::to_vec),
            authority: AuthorityKeyId::decode(extension(certificate, AUTHORITY_KEY_ID)),
        }
    }

    /// Returns whether this certificate may have signed `certificate`, by names and key
    /// identifiers.
    pub(super) fn may_be_issuer_of(&self, certificate: &Self) -> bool {
        self.subject == certificate.issuer
            && certificate.authority.as_ref().is_some_and(|authority| authority.matches(self))
    }

    /// Returns whether it claims to be self-signed.
    pub(super) fn is_self_signed(&self) -> bool {
        self.may_be_issuer_of(self)
    }
}

/// The fields of an authorityKeyIdentifier. Missing ones are not compared.
#[derive(Clone, Default)]
struct AuthorityKeyId {
    key_id: Option<Vec<u8>>,
    /// The issuer of the issuer's certificate, encoded.
    issuer: Option<Vec<u8>>,
    serial: Option<Vec<u8>>,
}

impl AuthorityKeyId {
    /// Returns `None` if the extension is malformed.
    fn decode(extension: Option<&[u8]>) -> Option<Self> {
        const KEY_ID: Tag = Tag::ContextSpecific { constructed: false, number: TagNumber(0) };
        const NAMES: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(1) };
        const SERIAL: Tag = Tag::ContextSpecific { constructed: false, number: TagNumber(2) };
        const DIRECTORY_NAME: Tag =
            Tag::ContextSpecific { constructed: true, number: TagNumber(4) };
        let Some(value) = extension else { return Some(Self::default()) };
        let fields = elements(content(value)?)?;
        let field = |tag| fields.iter().find(|f| f.header().tag() == tag).map(|f| f.value());
        let names = field(NAMES).and_then(elements).unwrap_or_default();
        let issuer = match names.iter().find(|name| name.header().tag() == DIRECTORY_NAME) {
            Some(name) => Some(Name::from_der(name.value()).ok()?.to_der().ok()?),
            None => None,
        };
        Some(Self {
            key_id: field(KEY_ID).map(<[u8]>::to_vec),
            issuer,
            serial: field(SERIAL).map(|s| without_zeros(s).to_vec()),
        })
    }

    /// Returns whether it matches this issuer: `X509_check_akid` of OpenSSL.
    fn matches(&self, issuer: &Identifiers) -> bool {
        let is_key = match (&self.key_id, &issuer.key_id) {
            (Some(named), Some(own)) => named == own,
            _ => true,
        };
        is_key
            && self.issuer.as_ref().is_none_or(|name| *name == issuer.issuer)
            && self.serial.as_ref().is_none_or(|serial| *serial == issuer.serial)
    }
}

/// Returns whether the authorityKeyIdentifier of a revocation list matches this issuer.
pub(super) fn is_issuer_by_key_id(issuer: &Certificate, authority_key_id: Option<&[u8]>) -> bool {
    AuthorityKeyId::decode(authority_key_id)
        .is_some_and(|authority| authority.matches(&Identifiers::new(issuer)))
}

/// Returns an integer without its leading zeros.
pub(super) fn without_zeros(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number {
        number = rest;
    }
    number
}

pub(super) fn has_email_in_subject(certificate: &Certificate) -> bool {
    certificate.tbs_certificate().subject().iter().any(|a| a.oid == EMAIL_ADDRESS)
}

pub(super) fn public_key(certificate: &Certificate) -> Option<SubjectPublicKeyInfoDer<'static>> {
    certificate.tbs_certificate().subject_public_key_info().to_der().ok().map(Into::into)
}

/// The result of verifying a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    Right,
    Wrong,
    /// This build does not support the algorithm.
    Unsupported,
}

/// Verifies a signature. `algorithm` is the content of the AlgorithmIdentifier.
pub(super) fn verify_signature(
    algorithms: Algorithms,
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Signature {
    let Ok(key) = RawPublicKeyEntity::try_from(key) else { return Signature::Unsupported };
    let mut result = Signature::Unsupported;
    let named = algorithms.iter().filter(|a| a.signature_alg_id().as_ref() == algorithm);
    for candidate in named {
        match key.verify_signature(*candidate, message, signature) {
            Ok(()) => return Signature::Right,
            Err(webpki::Error::InvalidSignatureForPublicKey) => result = Signature::Wrong,
            Err(_) => {}
        }
    }
    result
}

/// Verifies the signature of a certificate with its own key.
pub(super) fn own_signature(der: &[u8], algorithms: Algorithms) -> Option<Signature> {
    let mut parts = SliceReader::new(content(der)?).ok()?;
    let signed = parts.tlv_bytes().ok()?;
    let algorithm = content(parts.tlv_bytes().ok()?)?;
    // The number of unused bits must be 0.
    let [0, signature @ ..] = content(parts.tlv_bytes().ok()?)? else { return None };
    let key = public_key(&Certificate::from_der(der).ok()?)?;
    Some(verify_signature(algorithms, &key, algorithm, signed, signature))
}

/// Returns why a key cannot be used to verify signatures.
pub(super) fn unsupported_key(certificate: &Certificate, algorithms: Algorithms) -> Option<String> {
    const RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.1");
    let info = certificate.tbs_certificate().subject_public_key_info();
    let encoded = info.algorithm.to_der().ok()?;
    let algorithm = AnyRef::from_der(&encoded).ok()?;
    let is_known = |a: AlgorithmIdentifier| a.as_ref() == algorithm.value();
    if !algorithms.iter().any(|a| is_known(a.public_key_alg_id())) {
        return Some(format!("a key of the type {}", key_type(certificate)));
    }
    if info.algorithm.oid != RSA {
        return None;
    }
    // RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }
    let key = AnyRef::from_der(info.subject_public_key.raw_bytes()).ok()?;
    let fields = elements(key.value())?;
    let modulus = without_zeros(fields.first()?.value());
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    (!(2048..=8192).contains(&bits)).then(|| format!("an RSA key of {bits} bits"))
}

fn key_type(certificate: &Certificate) -> String {
    let algorithm = &certificate.tbs_certificate().subject_public_key_info().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
    let known = match (algorithm.oid.to_string().as_str(), curve.map(|c| c.to_string()).as_deref())
    {
        ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "EC on the curve P-521",
        ("1.2.840.10045.2.1", Some("1.3.132.0.10")) => "EC on the curve secp256k1",
        ("1.2.840.10045.2.1", Some(curve)) => return format!("EC on the curve {curve}"),
        ("1.2.840.113549.1.1.10", _) => "RSASSA-PSS",
        ("1.3.101.113", _) => "Ed448",
        ("1.2.840.10040.4.1", _) => "DSA",
        (other, _) => return format!("with the OID {other}"),
    };
    known.to_owned()
}

/// Returns the name of the signature's hash function, if it is broken and not just unsupported.
pub(super) fn broken_hash(certificate: &Certificate) -> Option<&'static str> {
    match certificate.signature_algorithm().oid.to_string().as_str() {
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" | "1.3.14.3.2.29" => {
            Some("SHA-1")
        }
        "1.2.840.113549.1.1.4" => Some("MD5"),
        "1.2.840.113549.1.1.2" => Some("MD2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_zeros_removes_only_leading_zeros() {
        assert_eq!(without_zeros(&[0, 0, 1, 0]), [1, 0]);
        assert!(without_zeros(&[0]).is_empty());
    }
}
