//! Roots, intermediates and revocation lists for the verification of a server.

use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use super::{
    asn1::parse_certificate,
    fields::{self, Certificate},
    revocation::RevocationList,
};

/// What a server's certificate is held against.
pub(super) struct Trust {
    pub(super) roots: Vec<Root>,
    /// Certificates that are no roots but may be used as intermediates.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    /// `None`: nothing is checked for revocation.
    pub(super) lists: Option<Vec<RevocationList>>,
}

/// A certificate that has signed itself. Whether it may sign others is decided when it has.
pub(super) struct Root {
    /// `None` for Mozilla's roots, because only their keys are compiled in.
    pub(super) certificate: Option<Decoded>,
    pub(super) anchor: TrustAnchor<'static>,
    /// One of the system's or Mozilla's, which signs for any applicant.
    pub(super) is_public: bool,
}

/// A certificate, as it came and decoded.
#[derive(Clone)]
pub(super) struct Decoded {
    pub(super) der: CertificateDer<'static>,
    pub(super) fields: Certificate,
}

impl Trust {
    /// The root that is this very certificate.
    pub(super) fn pin(&self, certificate: &CertificateDer<'_>) -> Option<&Root> {
        let is_same =
            |root: &&Root| root.certificate.as_ref().is_some_and(|c| c.der == *certificate);
        let same = self.roots.iter().filter(is_same);
        // A certificate that is both in the user's file and among the system's counts as the
        // user's.
        same.min_by_key(|root| root.is_public)
    }

    /// Adds a certificate of a file of roots.
    pub(super) fn add(
        &mut self,
        certificate: CertificateDer<'static>,
        is_public: bool,
    ) -> Result<(), webpki::Error> {
        let anchor = anchor_from_trusted_cert(&certificate)?.to_owned();
        // As in OpenSSL, a chain ends in a self-signed certificate.
        match parse_certificate(&certificate).filter(fields::is_self_signed) {
            Some(fields) => {
                let certificate = Some(Decoded { der: certificate, fields });
                self.roots.push(Root { certificate, anchor, is_public });
            }
            None => self.intermediates.push(certificate),
        }
        Ok(())
    }
}
