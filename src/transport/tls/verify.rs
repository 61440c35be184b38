//! Verifies the server's certificate, like OpenSSL does for libpq.
//!
//! webpki checks one path at a time: signatures, dates, the purpose, and the names in
//! subjectAltName against name constraints. This module does the rest: permitted uses of roots,
//! keyUsage, pinned certificates, revocation by the newest list, and host names.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        AlgorithmIdentifier, CertificateDer, InvalidSignature, ServerName,
        SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
    },
};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity};
use x509_cert::{certificate::Version, der::Encode as _};

use super::{
    asn1::parse_certificate,
    constraints,
    fields::{self, Certificate, Signature},
    hostname::{Accepts, check_hostname},
    paths,
    revocation::{Issuer, check_not_revoked},
    show,
    trust::{Root, Trust},
};

/// The maximum number of certificates that a server may send, in addition to its own. A path has at
/// most six, but a server may send others. It is OpenSSL's maximum depth of a path.
const SENT: usize = 100;
/// The maximum size of these certificates. rustls rejects larger messages.
const SENT_BYTES: usize = 64 << 10;

pub(super) struct Verifier {
    /// `None`: any certificate is accepted.
    trust: Option<Trust>,
    /// The host that the certificate must contain.
    name: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The certificates that the server has sent.
struct Presented<'a> {
    /// Its own, parsed.
    leaf: Certificate,
    certificate: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
}

/// Why a certificate was rejected, as an error that passes through rustls and tokio.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Verifier {
    pub(super) fn new(
        trust: Option<Trust>,
        name: Option<String>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { trust, name, algorithms }
    }

    pub(super) fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), String> {
        let leaf = parse_certificate(certificate);
        // Checked in every mode; otherwise the handshake would report a wrong signature.
        let unsupported =
            leaf.as_ref().and_then(|leaf| fields::unsupported_key(leaf, self.algorithms.all));
        if let Some(key) = unsupported {
            return Err(format!("the server's certificate has {key}{KEY_ADVICE}"));
        }
        let Some(trust) = &self.trust else { return Ok(()) };
        let leaf = leaf.ok_or(MALFORMED)?;
        match trust.pin(certificate) {
            Some(root) => self.check_pin(trust, &leaf, root, now),
            None => self.check_paths(trust, &Presented { leaf, certificate, intermediates }, now),
        }
    }

    /// Checks a self-signed certificate that is in the root file and therefore trusted directly.
    fn check_pin(
        &self,
        trust: &Trust,
        pin: &Certificate,
        root: &Root,
        now: UnixTime,
    ) -> Result<(), String> {
        let der = &root.certificate.as_ref().ok_or(MALFORMED)?.der;
        // As with any root, an unsupported signature (SHA-1) is accepted.
        if fields::own_signature(der, self.algorithms.all).ok_or(MALFORMED)? == Signature::Wrong {
            return Err(
                "the server's certificate is in the root file (sslrootcert) and names itself as \
                 its issuer, but is not self-signed: put the certificate of its authority there"
                    .to_owned(),
            );
        }
        check_root(pin, now)?;
        self.check_path(trust, std::slice::from_ref(pin), root, now)
    }

    /// Tries the paths from the certificate to a root until one is valid.
    fn check_paths(
        &self,
        trust: &Trust,
        presented: &Presented<'_>,
        now: UnixTime,
    ) -> Result<(), String> {
        let describe =
            |e: webpki::Error| describe_webpki_error(&e, presented, trust, self.algorithms.all);
        let leaf = EndEntityCert::try_from(presented.certificate).map_err(describe)?;
        let sent = presented.intermediates;
        let bytes = sent.iter().map(|der| der.len()).sum::<usize>();
        if sent.len() > SENT || bytes > SENT_BYTES {
            return Err(format!(
                "the server sent {} certificates of {bytes} bytes in addition to its own, which \
                 is more than {SENT} or {SENT_BYTES} bytes: {ONLY_THE_CHAIN}",
                sent.len()
            ));
        }
        let mut refused = None;
        let mut unverified = webpki::Error::UnknownIssuer;
        let signatures = AtomicUsize::new(paths::SIGNATURES);
        let algorithms = self.algorithms.all.iter();
        let algorithms: Vec<_> =
            algorithms.map(|a| Limited { algorithm: *a, signatures: &signatures }).collect();
        let algorithms: Vec<_> =
            algorithms.iter().map(|a| a as &dyn SignatureVerificationAlgorithm).collect();
        let paths = paths::find(&presented.leaf, sent, trust);
        for path in paths.found {
            let anchor = path.root.map(|root| &root.anchor);
            let verified = leaf.verify_for_usage(
                &algorithms,
                anchor.map_or(&[], std::slice::from_ref),
                &path.intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            );
            match (verified, path.root) {
                (Ok(verified), Some(root)) => {
                    let between =
                        verified.intermediate_certificates().map(|c| parse_certificate(&c.der()));
                    let last = root.certificate.as_ref().map(|root| Some(root.fields.clone()));
                    let path: Option<Vec<_>> = [Some(presented.leaf.clone())]
                        .into_iter()
                        .chain(between)
                        .chain(last)
                        .collect();
                    match self.check_path(trust, &path.ok_or(MALFORMED)?, root, now) {
                        Ok(()) => return Ok(()),
                        Err(reason) => refused = refused.or(Some(reason)),
                    }
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    if unverified == webpki::Error::UnknownIssuer {
                        unverified = error;
                    }
                }
            }
        }
        if refused.is_none() && (paths.is_limited || signatures.load(Relaxed) == 0) {
            return Err(format!(
                "verifying the certificates that the server sent takes too long: {ONLY_THE_CHAIN}"
            ));
        }
        Err(refused.unwrap_or_else(|| describe(unverified)))
    }

    /// Performs the checks that webpki does not. `path` goes from the server's certificate to the
    /// root's; the latter is absent if the root is one of Mozilla's.
    fn check_path(
        &self,
        trust: &Trust,
        path: &[Certificate],
        root: &Root,
        now: UnixTime,
    ) -> Result<(), String> {
        let Some((leaf, authorities)) = path.split_first() else {
            return Err(MALFORMED.to_owned());
        };
        if let Some(problem) = fields::not_for_servers(leaf) {
            return Err(not_for_servers(problem));
        }
        for authority in authorities {
            let shown = show::name(authority.tbs_certificate().subject());
            if let Some(problem) = fields::not_an_authority(authority) {
                return Err(format!(
                    "the certificate of an authority{shown} must not sign server certificates \
                     ({problem}): reissue it, or trust another authority"
                ));
            }
        }
        if let (Some(_), Some((last, between))) = (&root.certificate, authorities.split_last()) {
            check_root(last, now)?;
            let length = between.iter().filter(|c| !fields::is_self_issued(c)).count();
            if fields::path_length(last).is_some_and(|limit| length > limit) {
                return Err(format!(
                    "there are {length} intermediate certificates between the server's certificate \
                     and its root{}, more than the root allows (pathlen in basicConstraints): \
                     reissue the root",
                    show::name(last.tbs_certificate().subject())
                ));
            }
        }
        let bare = root.anchor.name_constraints.as_deref().filter(|_| root.certificate.is_none());
        let above = authorities.iter().filter_map(constraints::name_constraints);
        let constraints: Vec<_> = above.chain(bare).collect();
        constraints::check_name_constraints(path, &constraints)?;
        self.check_revocation(trust, path, root, now)?;
        let Some(host) = &self.name else { return Ok(()) };
        let accepts = match (root.is_public, constraints.is_empty()) {
            (true, is_free) => Accepts::AlternativeNames { is_constrained: !is_free },
            (false, false) => Accepts::Constrained,
            (false, true) => Accepts::Anything,
        };
        check_hostname(leaf, host, accepts)
    }

    /// OpenSSL's CRL_CHECK_ALL: every certificate of the path, including the root, requires a list.
    fn check_revocation(
        &self,
        trust: &Trust,
        path: &[Certificate],
        root: &Root,
        now: UnixTime,
    ) -> Result<(), String> {
        let Some(lists) = &trust.lists else { return Ok(()) };
        let now = Duration::from_secs(now.as_secs());
        let bare_key = webpki::spki_for_anchor(&root.anchor);
        for (i, certificate) in path.iter().enumerate() {
            // A root is self-signed.
            let issuer = path.get(i + 1).or(root.certificate.is_some().then_some(certificate));
            let key = match issuer {
                Some(issuer) => fields::public_key(issuer),
                None => Some(bare_key.clone()),
            };
            let key = key.ok_or(MALFORMED)?;
            let issuer = Issuer { key: &key, certificate: issuer };
            check_not_revoked(lists, certificate, &issuer, self.algorithms.all, now)?;
        }
        Ok(())
    }
}

/// An algorithm with a budget of signatures, because webpki may verify more than those of one path.
#[derive(Debug)]
struct Limited<'a> {
    algorithm: &'a dyn SignatureVerificationAlgorithm,
    /// The remaining budget of all paths.
    signatures: &'a AtomicUsize,
}

impl SignatureVerificationAlgorithm for Limited<'_> {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let spent = self.signatures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        spent.map_err(|_| InvalidSignature)?;
        self.algorithm.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|message| {
                let refused = OtherError(Arc::new(Refused(message)));
                rustls::Error::InvalidCertificate(CertificateError::Other(refused))
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match key_of_old_certificate(certificate) {
            None => verify_tls12_signature(message, certificate, signed, &self.algorithms),
            Some(key) => self.verify_tls12_signature_with_key(message, &key, signed),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match key_of_old_certificate(certificate) {
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
            Some(key) => {
                verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// Does the work of rustls's `verify_tls12_signature` for a key without a certificate, which
    /// rustls supports only for TLS 1.3. A scheme of TLS 1.2 does not determine the curve, so all
    /// candidates are tried.
    fn verify_tls12_signature_with_key(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let refused = || rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        let key = RawPublicKeyEntity::try_from(key)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let (_, algorithms) = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or_else(refused)?;
        for algorithm in *algorithms {
            if key.verify_signature(*algorithm, message, signed.signature()).is_ok() {
                return Ok(HandshakeSignatureValid::assertion());
            }
        }
        Err(refused())
    }
}

/// Returns the public key of a certificate of X.509 version 1, which webpki does not support.
/// `openssl x509 -req` creates such certificates if it is given no extensions. Whether the
/// certificate is trusted has been decided before.
fn key_of_old_certificate(
    certificate: &CertificateDer<'_>,
) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let is_old =
        EndEntityCert::try_from(certificate).err() == Some(webpki::Error::UnsupportedCertVersion);
    let parsed = parse_certificate(certificate).filter(|_| is_old)?;
    let key = parsed.tbs_certificate().subject_public_key_info().to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}

/// Performs the checks on a root, or a pinned certificate, that webpki performs on others.
fn check_root(root: &Certificate, now: UnixTime) -> Result<(), String> {
    if let Some(problem) = fields::unusable_extension(root) {
        return Err(format!(
            "the root certificate{} {problem}: use another one",
            show::name(root.tbs_certificate().subject())
        ));
    }
    let validity = root.tbs_certificate().validity();
    let (start, end) =
        (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
    let now = Duration::from_secs(now.as_secs());
    if now < start {
        return Err(not_yet_valid(start));
    }
    if now > end {
        return Err(expired(end));
    }
    Ok(())
}

/// The advice if a server sends too much.
const ONLY_THE_CHAIN: &str = "configure it to send its own certificate and the intermediate \
                              certificates up to its root, and no others";

const MALFORMED: &str = "a certificate of the server is malformed";

/// Follows the description of an unsupported key.
const KEY_ADVICE: &str = ", which is not supported: issue one with another key (RSA of 2048 to \
                          8192 bits, or EC on the curve P-256 or P-384); SECURITY.md lists what is \
                          supported";

fn expired(end: Duration) -> String {
    format!(
        "a certificate of the server expired on {}: renew it, and check the clocks",
        show::time(end)
    )
}

fn not_yet_valid(start: Duration) -> String {
    format!(
        "a certificate of the server is not valid before {}: check the clocks of both machines",
        show::time(start)
    )
}

fn not_for_servers(problem: &str) -> String {
    format!(
        "the server's certificate is not a server certificate ({problem}): reissue it with \
         extendedKeyUsage=serverAuth and keyUsage=digitalSignature"
    )
}

/// Describes an error of webpki, and what to do about it.
fn describe_webpki_error(
    error: &webpki::Error,
    presented: &Presented<'_>,
    trust: &Trust,
    algorithms: fields::Algorithms,
) -> String {
    use webpki::Error as E;
    let &Presented { ref leaf, intermediates, .. } = presented;
    let since_1970 = |t: &UnixTime| Duration::from_secs(t.as_secs());
    // webpki reports weak keys and hashes as wrong signatures. They are not an attack, and the
    // error must not suggest one.
    if matches!(
        error,
        E::InvalidSignatureForPublicKey
            | E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
    ) {
        let sent: Vec<_> = intermediates.iter().filter_map(parse_certificate).collect();
        let trusted: Vec<_> = trust.intermediates.iter().filter_map(parse_certificate).collect();
        let roots = trust.roots.iter().filter_map(|root| root.certificate.as_ref());
        let signers = sent.iter().chain(&trusted).chain(roots.map(|root| &root.fields));
        let unsupported: Vec<_> =
            signers.filter_map(|s| Some((s, fields::unsupported_key(s, algorithms)?))).collect();
        for certificate in [leaf].into_iter().chain(&sent) {
            if let Some(hash) =
                fields::broken_hash(certificate).filter(|_| !fields::is_self_issued(certificate))
            {
                let shown = show::name(certificate.tbs_certificate().subject());
                return format!(
                    "a certificate of the server{shown} is signed with {hash}, which is insecure: \
                     reissue it with SHA-256"
                );
            }
            let signer = unsupported.iter().find(|(signer, _)| {
                signer.tbs_certificate().subject() == certificate.tbs_certificate().issuer()
            });
            if let Some((signer, key)) = signer {
                let shown = show::name(signer.tbs_certificate().subject());
                return format!("the certificate of an authority{shown} has {key}{KEY_ADVICE}");
            }
        }
    }
    match error {
        E::UnknownIssuer => {
            let issuer = show::name(leaf.tbs_certificate().issuer());
            format!(
                "the issuer of the server's certificate{issuer} is not trusted: set sslrootcert \
                 (or ca_cert_path) to the file of its authority, and configure the server to send \
                 the intermediate certificates"
            )
        }
        E::CertExpired { not_after, .. } => expired(since_1970(not_after)),
        E::CertNotValidYet { not_before, .. } => not_yet_valid(since_1970(not_before)),
        E::UnsupportedCertVersion => {
            let version = match leaf.tbs_certificate().version() {
                Version::V1 => " (the server's is of version 1)",
                _ => "",
            };
            format!(
                "only X.509 certificates of version 3 can be verified{version}: reissue it with \
                 extensions (openssl x509 -req -extfile ...)"
            )
        }
        E::CaUsedAsEndEntity => {
            "the server's certificate is that of an authority (CA:TRUE): reissue it with \
             basicConstraints=CA:FALSE, or put it into the root file (sslrootcert) if it is \
             self-signed"
                .to_owned()
        }
        E::RequiredEkuNotFoundContext(_) => not_for_servers("extendedKeyUsage without serverAuth"),
        E::NameConstraintViolation => {
            "the name constraints of an authority do not permit a name in the server's \
             certificate: reissue the certificate, or use another authority"
                .to_owned()
        }
        E::PathLenConstraintViolated => {
            "there are more intermediate certificates between the server's certificate and its \
             root than an authority allows (pathlen in basicConstraints): reissue its certificate"
                .to_owned()
        }
        E::InvalidSignatureForPublicKey => {
            "a signature in the server's certificate chain is wrong: check that sslrootcert is not \
             an older authority with the same name"
                .to_owned()
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate of the server is signed with an algorithm that is not supported: \
             reissue it with SHA-256 and RSA or ECDSA; SECURITY.md lists what is supported"
                .to_owned()
        }
        other => format!("the server's certificate cannot be verified: {other}"),
    }
}
