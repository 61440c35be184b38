//! Finds certification paths from a server's certificate to the roots.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_cert::der::Encode as _;

use super::{
    asn1::{content, parse_certificate},
    fields::{self, Certificate},
    trust::{Root, Trust},
};

/// The maximum number of intermediates in a path, which is webpki's limit.
const DEPTH: usize = 6;
/// The maximum number of signatures that are verified for one server.
const SIGNATURES: usize = 64;
/// The maximum number of steps from a certificate to a possible issuer.
const STEPS: usize = 256;

/// A path to a root, not yet verified.
pub(super) struct Path<'a> {
    /// From the server's issuer upwards.
    pub(super) intermediates: Vec<CertificateDer<'a>>,
    /// `None`: the issuer of the last certificate is unknown. Verifying such a path finds other
    /// problems.
    pub(super) root: Option<&'a Root>,
}

/// Finds the paths to roots, by names and key identifiers, until a limit is reached.
///
/// webpki can search too, but its limit is 200,000 steps, each over all certificates. A server that
/// sends many certificates that could all have signed each other would block the runtime's thread
/// for seconds.
pub(super) fn find<'a>(
    leaf: &Certificate,
    sent: &'a [CertificateDer<'a>],
    trust: &'a Trust,
) -> Vec<Path<'a>> {
    let mut search = Search {
        candidates: Vec::new(),
        roots: &trust.roots,
        found: Vec::new(),
        signatures: SIGNATURES,
        steps: STEPS,
    };
    for der in sent.iter().chain(&trust.intermediates) {
        // A certificate that cannot be decoded cannot be an authority.
        let Some(certificate) = parse_certificate(der) else { continue };
        if !search.candidates.iter().any(|c| c.der == der) {
            search.candidates.push(Candidate { der, certificate: Arc::new(certificate) });
        }
    }
    search.climb(leaf, &mut Vec::new());
    search.found
}

struct Search<'a> {
    candidates: Vec<Candidate<'a>>,
    roots: &'a [Root],
    found: Vec<Path<'a>>,
    /// The remaining budget of signatures.
    signatures: usize,
    /// The remaining budget of steps.
    steps: usize,
}

struct Candidate<'a> {
    der: &'a CertificateDer<'a>,
    certificate: Arc<Certificate>,
}

impl<'a> Search<'a> {
    /// Adds the paths that begin with the candidates `below`. `last` is the last of them.
    fn climb(&mut self, last: &Certificate, below: &mut Vec<usize>) {
        let roots = self.roots;
        let issuer = last.tbs_certificate().issuer().to_der().unwrap_or_default();
        let issuer = content(&issuer);
        let mut is_dead_end = true;
        for root in roots {
            let may_be = match &root.certificate {
                Some(root) => fields::may_be_issuer(&root.fields, last),
                None => issuer == Some(root.anchor.subject.as_ref()),
            };
            if may_be {
                is_dead_end = false;
                self.add(below, Some(root));
            }
        }
        for next in 0..self.candidates.len() {
            let Some(candidate) = self.candidates.get(next) else { break };
            if below.len() == DEPTH
                || below.contains(&next)
                || !fields::may_be_issuer(&candidate.certificate, last)
            {
                continue;
            }
            is_dead_end = false;
            let Some(steps) = self.steps.checked_sub(1) else { return };
            self.steps = steps;
            let above = Arc::clone(&candidate.certificate);
            below.push(next);
            self.climb(&above, below);
            below.pop();
        }
        if is_dead_end {
            self.add(below, None);
        }
    }

    fn add(&mut self, below: &[usize], root: Option<&'a Root>) {
        // One for the server's certificate, and one for each intermediate.
        let Some(signatures) = self.signatures.checked_sub(below.len() + 1) else { return };
        self.signatures = signatures;
        let between = below.iter().filter_map(|i| self.candidates.get(*i));
        let intermediates = between.map(|c| CertificateDer::from(c.der.as_ref())).collect();
        self.found.push(Path { intermediates, root });
    }
}
