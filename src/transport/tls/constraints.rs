//! Checks common names against name constraints.
//!
//! webpki checks only subjectAltName. libpq also matches the host against the common name, so it
//! must be checked too.

use x509_cert::der::{Tag, TagNumber};

use super::{
    asn1::{content, elements},
    fields::{self, Certificate},
    names::{self, Name},
    show,
};

const fn context(constructed: bool, number: u32) -> Tag {
    Tag::ContextSpecific { constructed, number: TagNumber(number) }
}

const RFC822_NAME: Tag = context(false, 1);
const DNS_NAME: Tag = context(false, 2);
const PERMITTED: Tag = context(true, 0);
const EXCLUDED: Tag = context(true, 1);

/// Checks the names in the subject of a server's certificate against the constraints of all its
/// authorities, like `check_name_constraints` of OpenSSL. `path` begins with the server's
/// certificate.
pub(super) fn check_name_constraints(
    path: &[Certificate],
    constraints: &[&[u8]],
) -> Result<(), String> {
    let Some(leaf) = path.first() else { return Ok(()) };
    let constraints: Vec<_> = constraints.iter().map(|c| bases(c)).collect();
    // Email addresses do not identify a server, so comparing them is not supported.
    let with_emails = path.iter().any(fields::has_email_in_subject);
    let has_emails = |c: &Option<Bases>| c.as_ref().is_none_or(|b| b.has(RFC822_NAME));
    if with_emails && constraints.iter().any(has_emails) {
        return Err(
            "an authority has name constraints for email addresses, and a certificate has \
                    an email address in its subject, which is not supported: reissue it without one"
                .to_owned(),
        );
    }
    let alternative = names::alternative_names(leaf).unwrap_or_default();
    if alternative.iter().any(|name| matches!(name, Name::Dns(_))) {
        return Ok(());
    }
    for name in names::common_names(leaf) {
        let is_permitted = match dns_id(name) {
            DnsId::Yes(name) => constraints.iter().all(|c| permits(c.as_ref(), &name)),
            DnsId::No => true,
            DnsId::Malformed => constraints.is_empty(),
        };
        if !is_permitted {
            return Err(format!(
                "the name constraints of an authority do not permit the common name {} of the \
                 server's certificate: reissue the certificate, or use another authority",
                show::host(name.value())
            ));
        }
    }
    Ok(())
}

/// Returns whether [`check`] has checked a common name. It checks only what looks like a DNS name
/// of at least two labels.
pub(super) fn is_checked(common: &[u8]) -> bool {
    is_dns_id(common)
}

enum DnsId {
    Yes(Vec<u8>),
    No,
    Malformed,
}

/// Returns the common name as a DNS name, if it looks like one: `cn2dnsid` of OpenSSL.
fn dns_id(name: &x509_cert::der::Any) -> DnsId {
    let width = match name.header().tag() {
        Tag::BmpString => 2,
        // The crate der does not support UniversalString.
        _ => 1,
    };
    let mut text = Vec::new();
    for character in name.value().chunks(width) {
        match character.split_last() {
            Some((byte, above)) if above.iter().all(|b| *b == 0) => text.push(*byte),
            // A character beyond Latin-1 is not part of a DNS name.
            _ => return DnsId::No,
        }
    }
    let end = text.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    text.truncate(end);
    if text.contains(&0) {
        DnsId::Malformed
    } else if is_dns_id(&text) {
        DnsId::Yes(text)
    } else {
        DnsId::No
    }
}

fn is_dns_id(text: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        !label.is_empty()
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
            && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    text.contains(&b'.') && text.split(|b| *b == b'.').all(is_label)
}

/// Returns whether the constraints permit a DNS name. Malformed constraints permit nothing.
fn permits(constraints: Option<&Bases>, name: &[u8]) -> bool {
    let Some(bases) = constraints else { return false };
    let of_dns = |list: &[(Tag, Vec<u8>)]| {
        let bases = list.iter().filter(|(tag, _)| *tag == DNS_NAME);
        let matched = bases.clone().any(|(_, base)| is_within(name, base));
        (bases.count() > 0, matched)
    };
    let (_, is_excluded) = of_dns(&bases.excluded);
    let (is_limited, is_permitted) = of_dns(&bases.permitted);
    !is_excluded && (is_permitted || !is_limited)
}

/// Returns whether a name equals the base or ends with it after a dot.
fn is_within(name: &[u8], base: &[u8]) -> bool {
    let Some((before, end)) =
        name.len().checked_sub(base.len()).and_then(|at| name.split_at_checked(at))
    else {
        return false;
    };
    let is_at_label =
        base.is_empty() || before.is_empty() || base.starts_with(b".") || before.ends_with(b".");
    is_at_label && end.eq_ignore_ascii_case(base)
}

struct Bases {
    permitted: Vec<(Tag, Vec<u8>)>,
    excluded: Vec<(Tag, Vec<u8>)>,
}

impl Bases {
    fn has(&self, tag: Tag) -> bool {
        self.permitted.iter().chain(&self.excluded).any(|(t, _)| *t == tag)
    }
}

/// Decodes the content of a NameConstraints. Returns `None` if it is malformed.
fn bases(constraints: &[u8]) -> Option<Bases> {
    let mut bases = Bases { permitted: Vec::new(), excluded: Vec::new() };
    for subtrees in elements(constraints)? {
        let list = match subtrees.header().tag() {
            PERMITTED => &mut bases.permitted,
            EXCLUDED => &mut bases.excluded,
            _ => return None,
        };
        for subtree in elements(subtrees.value())? {
            let base = *elements(subtree.value())?.first()?;
            list.push((base.header().tag(), base.value().to_vec()));
        }
    }
    Some(bases)
}

/// Returns the content of a certificate's name constraints, if it has any. If they are malformed,
/// decoding the returned content fails.
pub(super) fn name_constraints(certificate: &Certificate) -> Option<&[u8]> {
    let value = fields::extension(certificate, fields::NAME_CONSTRAINTS)?;
    Some(content(value).unwrap_or(value))
}

/// Returns the number of bases in constraints. If they are malformed, it is the number that fits.
pub(super) fn count_bases(constraints: &[u8]) -> usize {
    // A base takes at least four bytes: a SEQUENCE of an empty name.
    bases(constraints)
        .map_or(constraints.len() / 4, |bases| bases.permitted.len() + bases.excluded.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_constraints_match_whole_labels() {
        for (name, base, expected) in [
            ("db.example", "example", true),
            ("db.example", "db.example", true),
            ("db.example", "DB.EXAMPLE", true),
            ("db.example", ".example", true),
            ("db.example", "", true),
            ("db.example", "b.example", false),
            ("db.example", ".db.example", false),
            ("db.example", "a.db.example", false),
            ("db.example", "example.", false),
        ] {
            assert_eq!(is_within(name.as_bytes(), base.as_bytes()), expected, "{name} {base}");
        }
    }

    #[test]
    fn dns_names_have_at_least_two_labels() {
        for name in ["db.example", "a.b.c", "10.0.0.1", "a_b.c-d.e"] {
            assert!(is_dns_id(name.as_bytes()), "{name}");
        }
        for name in ["", "db", "db.", ".db", "a..b", "*.example", "a-.b", "a.-b", "a b.c", "ä.b"] {
            assert!(!is_dns_id(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn malformed_constraints_permit_nothing() {
        let permits = |constraints| permits(bases(constraints).as_ref(), b"db.example");
        assert!(permits(&[]));
        assert!(!permits(&[0xa0]));
        assert!(!permits(&[0xa0, 2, 0x30, 0]));
        assert!(!permits(&[0xa2, 0]));
    }
}
