//! Matches the names in a certificate against the host, like fe-secure-common.c and
//! fe-secure-openssl.c of libpq 18.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    constraints,
    fields::Certificate,
    names::{Name, alternative_names, common_name},
    show,
};
use crate::config::address::parse_address;

/// Which names are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepts {
    /// All names, like libpq.
    Anything,
    /// Only names that were checked against name constraints. libpq also compares an address with
    /// DNS names, and accepts unchecked common names.
    Constrained,
    /// No common names, because public authorities do not validate them.
    AlternativeNames { is_constrained: bool },
}

/// Checks that the certificate contains the host. The error lists its names.
pub(super) fn check_hostname(
    certificate: &Certificate,
    host: &str,
    accepts: Accepts,
) -> Result<(), String> {
    let names = alternative_names(certificate)
        .ok_or("the alternative names in the server's certificate are malformed: reissue it")?;
    check_names(&names, common_name(certificate), host, accepts)
}

/// Checks the names in libpq's order: all alternative names, then the common name if there is no
/// alternative name of the host's own kind (address or DNS name).
fn check_names(
    alternative: &[Name],
    common: Option<Name>,
    host: &str,
    accepts: Accepts,
) -> Result<(), String> {
    let address = parse_address(host);
    let is_own_kind = |n: &Name| matches!(n, Name::Ip(_)) == address.is_some();
    let common = common.filter(|_| !alternative.iter().any(is_own_kind));
    let mut not_counted = None;
    for name in alternative.iter().chain(&common) {
        let is_match = match name {
            Name::Ip(bytes) => match (bytes.len(), address) {
                (4, Some(IpAddr::V4(ip))) => ip.octets() == bytes[..],
                (16, Some(IpAddr::V6(ip))) => ip.octets() == bytes[..],
                (4 | 16, _) => false,
                // As in libpq.
                _ => return Err("an IP address in the server's certificate is malformed".into()),
            },
            Name::Dns(bytes) | Name::Common(bytes) => {
                if bytes.contains(&0) {
                    return Err(
                        "a name in the server's certificate contains a zero byte: something \
                                may be impersonating the server"
                            .into(),
                    );
                }
                // A wildcard matches a label, and an address has no labels.
                bytes.eq_ignore_ascii_case(host.as_bytes())
                    || address.is_none() && wildcard(bytes, host.as_bytes())
            }
        };
        let is_free = !matches!(
            accepts,
            Accepts::Constrained | Accepts::AlternativeNames { is_constrained: true }
        );
        let counts = match (name, accepts) {
            (Name::Ip(_), _) => true,
            (Name::Dns(_), _) => is_free || address.is_none(),
            (Name::Common(_), Accepts::Anything) => true,
            (Name::Common(name), Accepts::Constrained) => {
                address.is_none() && constraints::is_checked(name)
            }
            (Name::Common(_), Accepts::AlternativeNames { .. }) => false,
        };
        if is_match && counts {
            return Ok(());
        }
        if is_match {
            not_counted = Some(name);
        }
    }
    if let Some(name) = not_counted {
        let reason = match accepts {
            Accepts::AlternativeNames { is_constrained: false } => {
                "public authorities (the system's, Mozilla's) do not validate it"
            }
            _ => "an authority has name constraints, which do not apply to it",
        };
        return Err(format!(
            "{} in the server's certificate matches the host but is not accepted, because \
             {reason}: reissue the certificate with the host in subjectAltName",
            shown(name)
        ));
    }
    let mut names: Vec<_> = alternative.iter().map(shown).collect();
    // Most certificates repeat a name as the common one.
    names.extend(common.as_ref().map(shown).filter(|common| !names.contains(common)));
    let more = names.len().saturating_sub(5);
    names.truncate(5);
    let names = match (names.is_empty(), more) {
        (true, _) => "no name".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    };
    Err(format!(
        "the server's certificate is for {names}, not for {host:?}: connect by a name that it \
         contains, reissue it with subjectAltName, or use sslmode=verify-ca to accept any server \
         of this authority"
    ))
}

/// Matches a wildcard: `*.` at the beginning matches one label.
fn wildcard(pattern: &[u8], host: &[u8]) -> bool {
    let Some(suffix) = pattern.strip_prefix(b"*").filter(|s| s.len() > 1 && s.starts_with(b"."))
    else {
        return false;
    };
    let Some((label, rest)) =
        host.len().checked_sub(suffix.len()).and_then(|n| host.split_at_checked(n))
    else {
        return false;
    };
    !label.is_empty() && !label.contains(&b'.') && rest.eq_ignore_ascii_case(suffix)
}

fn shown(name: &Name) -> String {
    match name {
        Name::Dns(bytes) | Name::Common(bytes) => show::host(bytes),
        Name::Ip(bytes) => {
            match (<[u8; 4]>::try_from(&bytes[..]), <[u8; 16]>::try_from(&bytes[..])) {
                (Ok(ip), _) => Ipv4Addr::from(ip).to_string(),
                (_, Ok(ip)) => Ipv6Addr::from(ip).to_string(),
                _ => "a malformed address".to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(name: &str) -> Name {
        Name::Dns(name.into())
    }

    fn matches(alternative: &[Name], common: Option<&str>, host: &str) -> bool {
        check_names(alternative, common.map(|c| Name::Common(c.into())), host, Accepts::Anything)
            .is_ok()
    }

    #[test]
    fn host_names_match_case_insensitively() {
        assert!(matches(&[dns("x"), dns("DB.example")], None, "db.EXAMPLE"));
        assert!(!matches(&[dns("db.example")], None, "db.example.com"));
        assert!(!matches(&[], None, "db"));
        assert!(!matches(&[dns("")], None, "db"));
    }

    #[test]
    fn error_names_the_common_name_once() {
        let error = |alternative: &[Name], common: &str| {
            let common = Some(Name::Common(common.into()));
            // A common name counts for an address.
            check_names(alternative, common, "192.0.2.1", Accepts::Anything).unwrap_err()
        };
        let one = error(&[dns("a.example")], "a.example");
        assert!(one.contains("is for \"a.example\", not for"), "{one}");
        let two = error(&[dns("a.example")], "b.example");
        assert!(two.contains("is for \"a.example\", \"b.example\", not for"), "{two}");
        let seven: Vec<_> = (1..=7).map(|i| dns(&format!("{i}"))).collect();
        assert!(error(&seven, "1").contains("\"5\" and 2 more, not for"));
    }

    #[test]
    fn wildcard_matches_one_leftmost_label() {
        for (pattern, host, expected) in [
            ("*.example.com", "a.example.com", true),
            ("*.Example.com", "ab.eXample.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("a*.example.com", "ab.example.com", false),
            ("*", "a", false),
            ("*.", "a.", false),
            ("*.*.com", "a.b.com", false),
            ("a.*.com", "a.b.com", false),
        ] {
            assert_eq!(matches(&[dns(pattern)], None, host), expected, "{pattern} {host}");
            assert_eq!(matches(&[], Some(pattern), host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn common_name_is_used_only_without_an_alternative_name_of_the_hosts_kind() {
        let ip = || Name::Ip(vec![10, 0, 0, 1]);
        assert!(matches(&[], Some("db"), "db"));
        assert!(!matches(&[dns("other")], Some("db"), "db"));
        assert!(matches(&[ip()], Some("db"), "db"));
        assert!(matches(&[dns("other")], Some("10.0.0.2"), "10.0.0.2"));
        assert!(!matches(&[ip()], Some("10.0.0.2"), "10.0.0.2"));
    }

    #[test]
    fn addresses_match_by_value_and_as_text() {
        let v6 = Name::Ip(Ipv6Addr::LOCALHOST.octets().into());
        assert!(matches(&[v6], None, "0:0::1"));
        assert!(matches(&[Name::Ip(vec![127, 0, 0, 1])], None, "127.1"));
        assert!(!matches(&[Name::Ip(vec![127, 0, 0, 1])], None, "127.0.0.2"));
        // libpq compares an address with DNS names as text, too.
        assert!(matches(&[dns("127.0.0.1")], None, "127.0.0.1"));
        assert!(!matches(&[Name::Ip(vec![1, 2, 3])], None, "1.2.3.4"));
    }

    #[test]
    fn name_with_a_zero_byte_never_matches() {
        let host = "db.example";
        assert!(!matches(&[dns("db.example\0.evil")], None, host));
        assert!(!matches(&[dns("\0"), dns(host)], None, host));
        assert!(!matches(&[], Some("db.example\0"), host));
    }

    #[test]
    fn hostname_error_lists_the_names() {
        let names: Vec<_> = (0..7).map(|i| dns(&format!("n{i}"))).collect();
        let error = check_names(&names, None, "db", Accepts::Anything).unwrap_err();
        assert!(error.contains("\"n4\" and 2 more") && error.contains("\"db\""), "{error}");
    }
}
