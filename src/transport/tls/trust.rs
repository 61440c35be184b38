//! Roots, intermediates and revocation lists for the verification of a server.

use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::anchor_from_trusted_cert;

use super::{
    asn1::parse_certificate,
    fields::{Certificate, Identifiers},
    revocation::RevocationList,
};

/// The trusted certificates and revocation lists.
pub(super) struct Trust {
    pub(super) roots: Vec<Root>,
    /// Certificates that are not roots but can be used as intermediates.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    /// `None`: revocation is not checked.
    pub(super) lists: Option<Vec<RevocationList>>,
}

/// A self-signed certificate. Whether it may sign others is checked when it has signed one.
pub(super) struct Root {
    /// `None` for Mozilla's roots, because only their keys are compiled in.
    pub(super) certificate: Option<Decoded>,
    pub(super) anchor: TrustAnchor<'static>,
    /// Whether it is one of the system's or Mozilla's, which issue certificates to anyone.
    pub(super) is_public: bool,
}

/// A certificate, both encoded and decoded.
#[derive(Clone)]
pub(super) struct Decoded {
    pub(super) der: CertificateDer<'static>,
    pub(super) fields: Certificate,
    pub(super) identifiers: Identifiers,
}

impl Trust {
    /// Returns the root that is identical to this certificate.
    pub(super) fn pin(&self, certificate: &CertificateDer<'_>) -> Option<&Root> {
        let is_same =
            |root: &&Root| root.certificate.as_ref().is_some_and(|c| c.der == *certificate);
        let same = self.roots.iter().filter(is_same);
        // If it is both in the user's file and among the system roots, prefer the user's.
        same.min_by_key(|root| root.is_public)
    }

    /// Adds a certificate from a root file.
    pub(super) fn add(
        &mut self,
        certificate: CertificateDer<'static>,
        is_public: bool,
    ) -> Result<(), webpki::Error> {
        let anchor = anchor_from_trusted_cert(&certificate)?.to_owned();
        // As in OpenSSL, a chain ends in a self-signed certificate.
        let decoded = parse_certificate(&certificate).map(|f| (Identifiers::new(&f), f));
        match decoded.filter(|(identifiers, _)| identifiers.is_self_signed()) {
            Some((identifiers, fields)) => {
                let certificate = Some(Decoded { der: certificate, fields, identifiers });
                self.roots.push(Root { certificate, anchor, is_public });
            }
            None => self.intermediates.push(certificate),
        }
        Ok(())
    }
}
