//! Which names count, with and without constraints.

use super::*;

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

#[tokio::test]
async fn names_match_as_in_libpq() {
    let mut cases = Cases::default();
    let ca = Entity::new("CA");
    let root = Fields::authority().certificate(&ca, &ca);
    let utf8 = |text: &str| name(&[(CN, UTF8, text.as_bytes())]);
    let v4 = || ip(&[10, 0, 0, 1]);
    for (what, subject, names, host, expect) in [
        ("common name", utf8("db.example"), None, "db.example", Accepted),
        ("common name, other case", utf8("DB.Example"), None, "db.example", Accepted),
        ("common name, wildcard", utf8("*.example"), None, "db.example", Accepted),
        ("common name, trailing dot", utf8("db.example."), None, "db.example", Refused),
        ("host with trailing dot", utf8("db.example"), None, "db.example.", Refused),
        ("both with trailing dot", utf8("db.example."), None, "db.example.", Accepted),
        ("common name of another", utf8("other"), None, "db.example", Refused),
        ("common name, UTF-8", utf8("dä.example"), None, "dä.example", Accepted),
        ("common name, BMPString", name(&[(CN, BMP, &utf16("db"))]), None, "db", Refused),
        ("common name with NUL", utf8("db\0.example"), None, "db", Refused),
        (
            "two common names, the first",
            name(&[(CN, UTF8, b"db.example"), (CN, UTF8, b"other")]),
            None,
            "db.example",
            Accepted,
        ),
        (
            "two common names, the second",
            name(&[(CN, UTF8, b"other"), (CN, UTF8, b"db.example")]),
            None,
            "db.example",
            Refused,
        ),
        ("no name at all", name(&[]), None, "db.example", Refused),
        ("empty alternative names", utf8("db.example"), Some(vec![]), "db.example", Accepted),
        ("only an address", utf8("db.example"), Some(vec![v4()]), "db.example", Accepted),
        ("only an e-mail", utf8("db.example"), Some(vec![email("a@b.c")]), "db.example", Accepted),
        ("only a URI", utf8("db.example"), Some(vec![uri("u://v")]), "db.example", Accepted),
        ("another DNS name", utf8("db.example"), Some(vec![dns("other")]), "db.example", Refused),
        ("address by common name", utf8("10.0.0.1"), None, "10.0.0.1", Accepted),
        ("address by DNS name", utf8("x"), Some(vec![dns("10.0.0.1")]), "10.0.0.1", Accepted),
        ("address", utf8("x"), Some(vec![v4()]), "10.0.0.1", Accepted),
        ("address, short form", utf8("x"), Some(vec![v4()]), "10.1", Accepted),
        ("another address", utf8("10.0.0.1"), Some(vec![ip(&[10, 0, 0, 2])]), "10.0.0.1", Refused),
        ("malformed address", utf8("10.0.0.1"), Some(vec![ip(&[10, 0])]), "10.0.0.1", Refused),
        ("DNS wildcard", utf8("x"), Some(vec![dns("*.example")]), "db.example", Accepted),
        (
            "DNS wildcard, two labels",
            utf8("x"),
            Some(vec![dns("*.example")]),
            "a.db.example",
            Refused,
        ),
        ("DNS name with NUL", utf8("x"), Some(vec![dns("db.example\0x")]), "db.example", Refused),
        // A wildcard stands for a label, and an address has none.
        ("wildcard for an address", utf8("x"), Some(vec![dns("*.0.0.1")]), "10.0.0.1", Stricter),
        ("wildcard for a short address", utf8("x"), Some(vec![dns("*.1")]), "10.1", Stricter),
        ("common wildcard for an address", utf8("*.0.0.1"), None, "10.0.0.1", Stricter),
    ] {
        let leaf = Entity::named(subject);
        let extensions: Vec<_> = names.map(|names| alternative_names(&names)).into_iter().collect();
        let server = Fields::new(&extensions).certificate(&leaf, &ca);
        let case = Case::new(&leaf, &[&server], &[&root]).host(host);
        cases.check(what, &case, expect).await;
        cases.check(&format!("{what}, verify-ca"), &case.mode("verify-ca"), Accepted).await;
        // The same as a pin.
        let server = Fields::new(&extensions).certificate(&leaf, &leaf);
        let case = Case::new(&leaf, &[&server], &[&server]).host(host);
        cases.check(&format!("{what}, pinned"), &case, expect).await;
    }
    cases.done(80);
}

/// The names that a constrained authority may vouch for are those that OpenSSL lets it, and of
/// these only names that were checked.
#[tokio::test]
async fn constrained_authorities_vouch_for_no_other_name() {
    let mut cases = Cases::default();
    let (ca, middle, last) = (Entity::new("CA"), Entity::new("Middle"), Entity::new("Last"));
    let permits = |names: &[Vec<u8>]| name_constraints(true, names, &[]);
    let excludes = |names: &[Vec<u8>]| name_constraints(true, &[], names);
    let ten = || ip(&[10, 0, 0, 0, 255, 0, 0, 0]);
    let everywhere = || ip(&[0; 8]);
    let org = |text: &str| name(&[("2.5.4.10", UTF8, text.as_bytes())]);
    let with_email = || name(&[(CN, UTF8, b"db.example"), (EMAIL, 0x16, b"a@other.test")]);
    let alternative = |names: &[Vec<u8>]| Some(names.to_vec());
    let common = |text: &str| cn(text);
    let db = || alternative(&[dns("db.example")]);
    for (what, constraints, subject, names, host, expect) in [
        // What is checked, by both.
        ("permitted", permits(&[dns("example")]), common("x"), db(), "db.example", Accepted),
        (
            "permitted, exactly",
            permits(&[dns("db.example")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        (
            "permitted, with a dot",
            permits(&[dns(".example")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        ("permitted, everything", permits(&[dns("")]), common("x"), db(), "db.example", Accepted),
        (
            "permitted, other case",
            permits(&[dns("EXAMPLE")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        (
            "not permitted",
            permits(&[dns("allowed.test")]),
            common("x"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "not permitted, no label",
            permits(&[dns("b.example")]),
            common("x"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "one of two permitted",
            permits(&[dns("a.test"), dns("example")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        ("excluded", excludes(&[dns("example")]), common("x"), db(), "db.example", Refused),
        ("excluded, everything", excludes(&[dns("")]), common("x"), db(), "db.example", Refused),
        (
            "excluded, another",
            excludes(&[dns("bank.test")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        (
            "permitted and excluded",
            name_constraints(true, &[dns("example")], &[dns("db.example")]),
            common("x"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "one name permitted, one not",
            permits(&[dns("example")]),
            common("x"),
            alternative(&[dns("db.example"), dns("bank.test")]),
            "db.example",
            Refused,
        ),
        (
            "address permitted",
            permits(&[ten()]),
            common("x"),
            alternative(&[ip(&[10, 0, 0, 1])]),
            "10.0.0.1",
            Accepted,
        ),
        (
            "address not permitted",
            permits(&[ten()]),
            common("x"),
            alternative(&[ip(&[11, 0, 0, 1])]),
            "11.0.0.1",
            Refused,
        ),
        (
            "address excluded",
            excludes(&[ten()]),
            common("x"),
            alternative(&[ip(&[10, 0, 0, 1])]),
            "10.0.0.1",
            Refused,
        ),
        (
            "wildcard permitted",
            permits(&[dns("example")]),
            common("x"),
            alternative(&[dns("*.db.example")]),
            "a.db.example",
            Accepted,
        ),
        // webpki takes no wildcard below a label of the top.
        (
            "wildcard of two labels",
            permits(&[dns("example")]),
            common("x"),
            alternative(&[dns("*.example")]),
            "db.example",
            Stricter,
        ),
        (
            "wildcard not permitted",
            permits(&[dns("db.example")]),
            common("x"),
            alternative(&[dns("*.example")]),
            "db.example",
            Refused,
        ),
        // OpenSSL compares the wildcard, not what it stands for.
        (
            "wildcard over what is excluded",
            excludes(&[dns("db.example")]),
            common("x"),
            alternative(&[dns("*.example")]),
            "db.example",
            Stricter,
        ),
        // The common name: OpenSSL checks it only if it looks like a DNS name of two labels.
        (
            "common name not permitted",
            permits(&[dns("allowed.test")]),
            common("db.example"),
            None,
            "db.example",
            Refused,
        ),
        (
            "common name excluded",
            excludes(&[dns("example")]),
            common("db.example"),
            None,
            "db.example",
            Refused,
        ),
        (
            "common name permitted",
            permits(&[dns("example")]),
            common("db.example"),
            None,
            "db.example",
            Accepted,
        ),
        (
            "common name, another excluded",
            excludes(&[dns("bank.test")]),
            common("db.example"),
            None,
            "db.example",
            Accepted,
        ),
        (
            "common name of one label",
            permits(&[dns("allowed.test")]),
            common("db"),
            None,
            "db",
            Stricter,
        ),
        (
            "common name with a wildcard",
            permits(&[dns("allowed.test")]),
            common("*.example"),
            None,
            "db.example",
            Stricter,
        ),
        (
            "common name with an odd sign",
            permits(&[dns("allowed.test")]),
            common("db-.example"),
            None,
            "db-.example",
            Stricter,
        ),
        (
            "beside an address",
            permits(&[dns("allowed.test")]),
            common("db.example"),
            alternative(&[ip(&[10, 0, 0, 1])]),
            "db.example",
            Refused,
        ),
        (
            "beside an e-mail",
            excludes(&[dns("example")]),
            common("db.example"),
            alternative(&[email("a@b.c")]),
            "db.example",
            Refused,
        ),
        (
            "beside a URI",
            excludes(&[dns("example")]),
            common("db.example"),
            alternative(&[uri("u://v")]),
            "db.example",
            Refused,
        ),
        (
            "beside no name",
            excludes(&[dns("example")]),
            common("db.example"),
            alternative(&[]),
            "db.example",
            Refused,
        ),
        (
            "beside a DNS name",
            permits(&[dns("example")]),
            common("bank.test"),
            db(),
            "bank.test",
            Refused,
        ),
        (
            "address by common name",
            excludes(&[everywhere()]),
            common("10.0.0.1"),
            None,
            "10.0.0.1",
            Stricter,
        ),
        (
            "address by DNS name",
            excludes(&[everywhere()]),
            common("x"),
            alternative(&[dns("10.0.0.1")]),
            "10.0.0.1",
            Stricter,
        ),
        (
            "address by common name beside DNS",
            permits(&[dns("example")]),
            common("10.0.0.1"),
            db(),
            "10.0.0.1",
            Stricter,
        ),
        (
            "common name, BMPString",
            permits(&[dns("allowed.test")]),
            name(&[(CN, BMP, &utf16("db.example"))]),
            None,
            "db.example",
            Refused,
        ),
        (
            "second common name",
            permits(&[dns("db.example")]),
            name(&[(CN, UTF8, b"db.example"), (CN, UTF8, b"bank.test")]),
            None,
            "db.example",
            Refused,
        ),
        (
            "common name, label above",
            permits(&[dns("b.example")]),
            common("db.example"),
            None,
            "db.example",
            Refused,
        ),
        (
            "common name, with a dot",
            permits(&[dns(".example")]),
            common("db.example"),
            None,
            "db.example",
            Accepted,
        ),
        (
            "common name with NUL",
            permits(&[dns("allowed.test")]),
            common("db\0.example"),
            None,
            "db",
            Refused,
        ),
        // Constraints on names of other kinds.
        (
            "directory permitted",
            permits(&[directory(&org("o"))]),
            org("o"),
            db(),
            "db.example",
            Stricter,
        ),
        (
            "directory not permitted",
            permits(&[directory(&org("o"))]),
            org("p"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "directory excluded",
            excludes(&[directory(&org("o"))]),
            org("o"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "another directory excluded",
            excludes(&[directory(&org("o"))]),
            org("p"),
            db(),
            "db.example",
            Stricter,
        ),
        (
            "directory, common name",
            excludes(&[directory(&org("o"))]),
            common("db.example"),
            None,
            "db.example",
            Stricter,
        ),
        (
            "e-mail, none there",
            permits(&[email("a.test")]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        (
            "e-mail, common name",
            permits(&[email("a.test")]),
            common("db.example"),
            None,
            "db.example",
            Accepted,
        ),
        (
            "e-mail in the subject",
            permits(&[email("a.test")]),
            with_email(),
            db(),
            "db.example",
            Refused,
        ),
        (
            "e-mail in the subject, excluded",
            excludes(&[email("other.test")]),
            with_email(),
            db(),
            "db.example",
            Refused,
        ),
        (
            "e-mail, permitted",
            permits(&[email("other.test")]),
            with_email(),
            db(),
            "db.example",
            Stricter,
        ),
        (
            "e-mail, alternative",
            permits(&[email("a.test")]),
            common("x"),
            alternative(&[dns("db.example"), email("x@b.test")]),
            "db.example",
            Refused,
        ),
        ("URI, none there", permits(&[uri("a.test")]), common("x"), db(), "db.example", Accepted),
        (
            "URI, not permitted",
            permits(&[uri("a.test")]),
            common("x"),
            alternative(&[dns("db.example"), uri("u://b.test/")]),
            "db.example",
            Refused,
        ),
        (
            "malformed",
            extension("2.5.29.30", true, &[0x30, 2, 0xa0]),
            common("x"),
            db(),
            "db.example",
            Refused,
        ),
        (
            "empty",
            extension("2.5.29.30", true, &[0x30, 0]),
            common("x"),
            db(),
            "db.example",
            Accepted,
        ),
        (
            "empty, common name",
            extension("2.5.29.30", true, &[0x30, 0]),
            common("db.example"),
            None,
            "db.example",
            Accepted,
        ),
        (
            "malformed mask",
            permits(&[ip(&[10, 0, 0, 0, 255])]),
            common("x"),
            alternative(&[ip(&[10, 0, 0, 1])]),
            "10.0.0.1",
            Refused,
        ),
    ] {
        let leaf = Entity::named(subject);
        let extensions: Vec<_> = names.map(|names| alternative_names(&names)).into_iter().collect();
        let fields = Fields::new(&extensions);
        let plain = Fields::authority();
        let constrained = Fields::authority().with(constraints.clone());
        let below_root = fields.certificate(&leaf, &ca);
        let below_middle = fields.certificate(&leaf, &middle);
        let below_last = fields.certificate(&leaf, &last);
        let (root, constrained_root) =
            (plain.certificate(&ca, &ca), constrained.certificate(&ca, &ca));
        let constrained_middle = constrained.certificate(&middle, &ca);
        let (middle, last) = (plain.certificate(&middle, &ca), plain.certificate(&last, &middle));
        for (place, chain, roots) in [
            ("root", vec![&below_root], vec![&constrained_root]),
            ("above one in between", vec![&below_middle, &middle], vec![&constrained_root]),
            ("in between", vec![&below_middle, &constrained_middle], vec![&root]),
            ("in the file", vec![&below_middle], vec![&root, &constrained_middle]),
            ("higher in between", vec![&below_last, &last, &constrained_middle], vec![&root]),
            ("both", vec![&below_middle, &constrained_middle], vec![&constrained_root]),
        ] {
            // The names of authorities themselves are none that is constrained here.
            let is_directory = what.contains("directory");
            if is_directory && place != "root" && place != "in between" {
                continue;
            }
            let case = Case::new(&leaf, &chain, &roots).host(host);
            cases.check(&format!("{what}, {place}"), &case, expect).await;
            if place != "root" && place != "in between" {
                continue;
            }
            let case = case.mode("verify-ca");
            let expect = if expect == Accepted { Accepted } else { NotLenient };
            cases.check(&format!("{what}, {place}, verify-ca"), &case, expect).await;
        }
        // The same without being critical.
        if what == "common name not permitted" || what == "not permitted" {
            let lenient = name_constraints(false, &[dns("allowed.test")], &[]);
            let root = Fields::authority().with(lenient).certificate(&ca, &ca);
            let case = Case::new(&leaf, &[&below_root], &[&root]).host(host);
            cases.check(&format!("{what}, not critical"), &case, expect).await;
        }
    }
    cases.done(250);
}
