//! Finds certification paths from a server's certificate to the roots.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::{
    asn1::{content, parse_certificate},
    constraints::{count_bases, name_constraints},
    fields::{Certificate, Identifiers},
    names::count_names,
    trust::{Root, Trust},
};

/// The maximum number of intermediates in a path, which is webpki's limit.
const DEPTH: usize = 6;
/// The maximum number of certificates with the same subject in a path. After a change of keys there
/// can be two. webpki tries a path in every order that the names allow.
const SAME_SUBJECT: usize = 2;
/// The maximum number of signatures that are verified for one server.
pub(super) const SIGNATURES: usize = 64;
/// The maximum number of steps from a certificate to a possible issuer.
const STEPS: usize = 256;
/// The maximum number of comparisons for one server, of certificates with possible issuers and of
/// names with name constraints. webpki has the same limit, but only for the names of one path.
const COMPARISONS: usize = 250_000;

/// A path to a root, not yet verified.
pub(super) struct Path<'a> {
    /// From the server's issuer upwards.
    pub(super) intermediates: Vec<CertificateDer<'a>>,
    /// `None`: the issuer of the last certificate is unknown. Verifying such a path finds other
    /// problems.
    pub(super) root: Option<&'a Root>,
}

/// The result of a search.
pub(super) struct Paths<'a> {
    pub(super) found: Vec<Path<'a>>,
    /// A limit was reached, so there may be other paths.
    pub(super) is_limited: bool,
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
) -> Paths<'a> {
    let mut search = Search {
        candidates: Vec::new(),
        roots: &trust.roots,
        names: count_names(leaf),
        result: Paths { found: Vec::new(), is_limited: false },
        signatures: SIGNATURES,
        steps: STEPS,
        comparisons: COMPARISONS,
    };
    for der in sent.iter().chain(&trust.intermediates) {
        // A certificate that cannot be decoded cannot be an authority.
        let Some(certificate) = parse_certificate(der) else { continue };
        if !search.candidates.iter().any(|c| c.der == der) {
            search.candidates.push(Candidate {
                der,
                identifiers: Arc::new(Identifiers::new(&certificate)),
                names: count_names(&certificate),
                bases: name_constraints(&certificate).map_or(0, count_bases),
            });
        }
    }
    search.climb(&Identifiers::new(leaf), &mut Vec::new());
    search.result
}

struct Search<'a> {
    candidates: Vec<Candidate<'a>>,
    roots: &'a [Root],
    /// The number of names in the server's certificate.
    names: usize,
    result: Paths<'a>,
    /// The remaining budget of signatures.
    signatures: usize,
    /// The remaining budget of steps.
    steps: usize,
    /// The remaining budget of comparisons.
    comparisons: usize,
}

struct Candidate<'a> {
    der: &'a CertificateDer<'a>,
    identifiers: Arc<Identifiers>,
    /// The number of names that the constraints of authorities apply to.
    names: usize,
    /// The number of names in its constraints.
    bases: usize,
}

impl<'a> Search<'a> {
    /// Adds the paths that begin with the candidates `below`. `last` is the last of them.
    fn climb(&mut self, last: &Identifiers, below: &mut Vec<usize>) {
        let roots = self.roots;
        let issuer = content(&last.issuer);
        let mut is_dead_end = true;
        for root in roots {
            if !self.spend(1) {
                return;
            }
            let may_be = match &root.certificate {
                Some(root) => root.identifiers.may_be_issuer_of(last),
                None => issuer == Some(root.anchor.subject.as_ref()),
            };
            if may_be {
                is_dead_end = false;
                self.add(below, Some(root));
            }
        }
        for next in 0..self.candidates.len() {
            if below.len() == DEPTH || below.contains(&next) {
                continue;
            }
            if !self.spend(1) {
                return;
            }
            let Some(candidate) = self.candidates.get(next) else { break };
            let above = Arc::clone(&candidate.identifiers);
            if !above.may_be_issuer_of(last) || self.has_namesakes(below, &above) {
                continue;
            }
            is_dead_end = false;
            let Some(steps) = self.steps.checked_sub(1) else {
                self.result.is_limited = true;
                return;
            };
            self.steps = steps;
            below.push(next);
            self.climb(&above, below);
            below.pop();
        }
        if is_dead_end {
            self.add(below, None);
        }
    }

    /// Takes from the budget of comparisons. Returns `false` if it does not suffice.
    fn spend(&mut self, comparisons: usize) -> bool {
        let rest = self.comparisons.checked_sub(comparisons);
        self.result.is_limited |= rest.is_none();
        self.comparisons = rest.unwrap_or(0);
        rest.is_some()
    }

    fn has_namesakes(&self, below: &[usize], above: &Identifiers) -> bool {
        let certificates = below.iter().filter_map(|i| self.candidates.get(*i));
        certificates.filter(|c| c.identifiers.subject == above.subject).count() >= SAME_SUBJECT
    }

    fn add(&mut self, below: &[usize], root: Option<&'a Root>) {
        // One for the server's certificate, and one for each intermediate.
        let Some(signatures) = self.signatures.checked_sub(below.len() + 1) else {
            self.result.is_limited = true;
            return;
        };
        self.signatures = signatures;
        let between = || below.iter().filter_map(|i| self.candidates.get(*i));
        let constraints = root.and_then(|root| root.anchor.name_constraints.as_deref());
        let bases = constraints.map_or(0, count_bases) + between().map(|c| c.bases).sum::<usize>();
        let names = self.names + between().map(|c| c.names).sum::<usize>();
        let intermediates = between().map(|c| CertificateDer::from(c.der.as_ref())).collect();
        if self.spend(names.saturating_mul(bases)) {
            self.result.found.push(Path { intermediates, root });
        }
    }
}
