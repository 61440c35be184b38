//! Whether the server's certificate is to be trusted, as OpenSSL decides it for libpq.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RawPublicKeyEntity, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_cert::{
    certificate::Version,
    der::{DateTime, Encode as _},
};

use super::{name, parse, roots::Trust};

pub(super) struct Verifier {
    /// `None`: any certificate will do.
    trust: Option<Trust>,
    /// The host that the certificate must name.
    name: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Why a certificate was refused, on its way through rustls and tokio.
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

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), String> {
        let Some(trust) = &self.trust else { return Ok(()) };
        // A certificate that somebody put among the roots is trusted for what it is. webpki knows no
        // such thing; but it has to decide when there are revocation lists.
        if trust.crls.is_empty() && trust.certificates.iter().any(|c| c == certificate) {
            check_dates(certificate, now)?;
        } else {
            self.check_chain(trust, certificate, intermediates, now)?;
        }
        match &self.name {
            Some(host) => {
                let parsed = parse(certificate).ok_or("the server's certificate is malformed")?;
                name::check(&parsed, host)
            }
            None => Ok(()),
        }
    }

    fn check_chain(
        &self,
        trust: &Trust,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), String> {
        let explain = |e| explain(&e, certificate, trust);
        let crls: Vec<_> = trust.crls.iter().collect();
        // OpenSSL's CRL_CHECK_ALL.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let leaf = EndEntityCert::try_from(certificate).map_err(explain)?;
        let intermediates: Vec<_> =
            intermediates.iter().chain(&trust.intermediates).cloned().collect();
        leaf.verify_for_usage(
            self.algorithms.all,
            &trust.anchors,
            &intermediates,
            now,
            KeyUsage::server_auth(),
            revocation,
            None,
        )
        .map(drop)
        .map_err(explain)
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
        self.check(end_entity, intermediates, now)
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
    /// rustls's `verify_tls12_signature` for a key without a certificate, which it only has for TLS
    /// 1.3: a scheme of TLS 1.2 does not tell the curve, so each that it may mean is tried.
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

/// The public key of a certificate of X.509 version 1, which `openssl x509 -req` makes when it is
/// given no extensions, and webpki does not read. Whether it is trusted has been decided by then.
fn key_of_old_certificate(
    certificate: &CertificateDer<'_>,
) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let is_old =
        EndEntityCert::try_from(certificate).err() == Some(webpki::Error::UnsupportedCertVersion);
    let parsed = parse(certificate).filter(|_| is_old)?;
    let key = parsed.tbs_certificate().subject_public_key_info().to_der().ok()?;
    Some(SubjectPublicKeyInfoDer::from(key))
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), String> {
    let parsed = parse(certificate).ok_or("the server's certificate is malformed")?;
    let validity = parsed.tbs_certificate().validity();
    let now = Duration::from_secs(now.as_secs());
    if now < validity.not_before.to_unix_duration() {
        return Err(not_yet_valid(validity.not_before.to_unix_duration()));
    }
    if now > validity.not_after.to_unix_duration() {
        return Err(expired(validity.not_after.to_unix_duration()));
    }
    Ok(())
}

fn expired(end: Duration) -> String {
    format!(
        "a certificate of the server has expired on {}: renew it, and check the clocks",
        show_time(end)
    )
}

fn not_yet_valid(start: Duration) -> String {
    format!(
        "a certificate of the server is not valid before {}: check the clocks of both machines",
        show_time(start)
    )
}

fn show_time(since_1970: Duration) -> String {
    DateTime::from_unix_duration(since_1970)
        .map_or_else(|_| "a date far away".to_owned(), |d| d.to_string())
}

/// What webpki's verdict means, and what to do.
fn explain(error: &webpki::Error, certificate: &CertificateDer<'_>, trust: &Trust) -> String {
    use webpki::Error as E;
    let since_1970 = |t: &UnixTime| Duration::from_secs(t.as_secs());
    // Trusting the very certificate is decided here, and needs nothing of webpki.
    let or_pin = if trust.crls.is_empty() {
        ", or put the server's certificate itself into the file of roots (sslrootcert)"
    } else {
        ""
    };
    match error {
        E::UnknownIssuer => {
            let issuer = parse(certificate)
                .map(|c| format!(" ({})", c.tbs_certificate().issuer()))
                .unwrap_or_default();
            format!(
                "the issuer of the server's certificate{issuer} is not trusted: set sslrootcert (or \
                 ca_cert_path) to the file of its authority, and let the server send the \
                 certificates in between"
            )
        }
        E::CertExpired { not_after, .. } => expired(since_1970(not_after)),
        E::CertNotValidYet { not_before, .. } => not_yet_valid(since_1970(not_before)),
        E::CertRevoked => {
            "a certificate of the server has been revoked: the server needs another one".to_owned()
        }
        E::UnknownRevocationStatus => {
            "a certificate of the server's chain has no revocation list of its issuer: add the \
             lists of all its authorities (sslcrl, sslcrldir, crl_path)"
                .to_owned()
        }
        E::CrlExpired { next_update, .. } => format!(
            "a certificate revocation list has expired on {}: get a new one",
            show_time(since_1970(next_update))
        ),
        E::UnsupportedCertVersion => {
            let version = match parse(certificate).map(|c| c.tbs_certificate().version()) {
                Some(Version::V1) => " (the server's is of version 1)",
                _ => "",
            };
            format!(
                "only X.509 certificates of version 3 can be verified{version}: reissue it with \
                 extensions (openssl x509 -req -extfile ...){or_pin}"
            )
        }
        E::CaUsedAsEndEntity => format!(
            "the server's certificate is that of an authority (CA:TRUE): reissue it with \
             basicConstraints=CA:FALSE{or_pin}"
        ),
        E::RequiredEkuNotFoundContext(_) => {
            "the server's certificate is not one for servers: reissue it with \
             extendedKeyUsage=serverAuth"
                .to_owned()
        }
        E::InvalidSignatureForPublicKey => {
            "a signature in the server's certificates is wrong: is sslrootcert an older authority \
             of the same name?"
                .to_owned()
        }
        other => format!("the server's certificate cannot be verified: {other}"),
    }
}
