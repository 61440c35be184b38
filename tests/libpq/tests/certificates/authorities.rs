//! Permitted uses of authorities, servers and pinned certificates.

use std::slice::from_ref;

use super::{x509::*, *};

#[tokio::test]
async fn authorities_are_believed_what_openssl_believes() {
    let mut cases = Cases::default();
    let (ca, middle, leaf) = (Entity::new("CA"), Entity::new("Middle"), Entity::new("leaf"));
    let ca_bit = || basic_constraints(true, None);
    let sign = || key_usage(&[KEY_CERT_SIGN, CRL_SIGN]);
    let v1 = || Fields { version: 1, ..Fields::new(&[]) };
    let authority = Fields::authority;
    let unknown = |critical| extension("1.2.3.4", critical, &[5, 0]);

    // As a root, and as an intermediate authority.
    for (what, fields, as_root, as_middle) in [
        ("plain", authority(), Accepted, Accepted),
        ("no keyUsage", Fields::new(&[ca_bit()]), Accepted, Accepted),
        ("only cRLSign", Fields::new(&[ca_bit(), key_usage(&[CRL_SIGN])]), Refused, Refused),
        (
            "only digitalSignature",
            Fields::new(&[ca_bit(), key_usage(&[DIGITAL_SIGNATURE])]),
            Refused,
            Refused,
        ),
        ("keyUsage without a bit", Fields::new(&[ca_bit(), key_usage(&[])]), Refused, Refused),
        ("for clients", authority().with(purposes(&[CLIENT])), Refused, Refused),
        ("for any purpose", authority().with(purposes(&[ANY_PURPOSE])), Refused, Refused),
        ("for servers", authority().with(purposes(&[SERVER])), Accepted, Accepted),
        ("for both", authority().with(purposes(&[CLIENT, SERVER])), Accepted, Accepted),
        ("not CA", Fields::new(&[basic_constraints(false, None), sign()]), Refused, Refused),
        ("not CA, nothing else", Fields::new(&[basic_constraints(false, None)]), Refused, Refused),
        ("no extension that says CA", Fields::new(&[subject_key_id(b"x")]), Refused, Refused),
        // OpenSSL accepts keyUsage instead.
        ("keyUsage instead of CA", Fields::new(&[sign()]), Accepted, Refused),
        ("version 1", v1(), Accepted, Refused),
        ("expired", authority().years(2020, 2021), Refused, Refused),
        ("not yet valid", authority().years(2100, 2120), Refused, Refused),
        ("unknown extension", authority().with(unknown(false)), Accepted, Accepted),
        ("unknown critical extension", authority().with(unknown(true)), Refused, Refused),
        (
            "critical policies",
            authority().with(extension(
                "2.5.29.32",
                true,
                &sequence(&[sequence(&[oid("2.5.29.32.0")])]),
            )),
            Accepted,
            Stricter,
        ),
        ("path of 0", Fields::new(&[basic_constraints(true, Some(0)), sign()]), Accepted, Accepted),
    ] {
        let root = fields.certificate(&ca, &ca);
        let server = leaf_fields().certificate(&leaf, &ca);
        let case = Case::new(&leaf, &[&server], &[&root]);
        cases.check(&format!("root: {what}"), &case, as_root).await;
        cases.check(&format!("root: {what}, verify-ca"), &case.mode("verify-ca"), as_root).await;

        let root = authority().certificate(&ca, &ca);
        let between = fields.certificate(&middle, &ca);
        let server = leaf_fields().certificate(&leaf, &middle);
        let case = Case::new(&leaf, &[&server, &between], &[&root]);
        cases.check(&format!("between: {what}"), &case, as_middle).await;
        let case = Case::new(&leaf, &[&server], &[&root, &between]);
        cases.check(&format!("between, in the file: {what}"), &case, as_middle).await;
        // An intermediate authority is no trust anchor.
        let case = Case::new(&leaf, &[&server], &[&between]);
        cases.check(&format!("between, alone: {what}"), &case, Refused).await;
    }

    // Path lengths of the root and of an intermediate authority, with and without self-issued ones
    // below.
    let other = Entity::new("Other");
    let renewed = Entity { key: Entity::new("").key, subject: ca.subject.clone() };
    let limited = |n| Fields::new(&[basic_constraints(true, Some(n)), sign()]);
    for (what, root, first, second, expect) in [
        ("0 and two below", limited(0), authority(), Some(authority()), Refused),
        ("0 and one below", limited(0), authority(), None, Refused),
        ("1 and two below", limited(1), authority(), Some(authority()), Refused),
        ("1 and one below", limited(1), authority(), None, Accepted),
        ("2 and two below", limited(2), authority(), Some(authority()), Accepted),
        ("0 in between, one below", authority(), limited(0), Some(authority()), Refused),
        ("1 in between, one below", authority(), limited(1), Some(authority()), Accepted),
    ] {
        let root = root.certificate(&ca, &ca);
        let first = first.certificate(&middle, &ca);
        let case = match second {
            Some(second) => {
                let second = second.certificate(&other, &middle);
                let server = leaf_fields().certificate(&leaf, &other);
                Case::new(&leaf, &[&server, &second, &first], &[&root])
            }
            None => {
                let server = leaf_fields().certificate(&leaf, &middle);
                Case::new(&leaf, &[&server, &first], &[&root])
            }
        };
        cases.check(&format!("path of {what}"), &case, expect).await;
    }
    // Without key identifiers OpenSSL treats the self-issued one as self-signed.
    let key_ids = |fields: Fields, own: &[u8], issuer: &[u8]| {
        fields.with(subject_key_id(own)).with(authority_key_id(issuer))
    };
    let root = key_ids(limited(0), b"old", b"old").certificate(&ca, &ca);
    let self_issued = key_ids(authority(), b"new", b"old").certificate(&renewed, &ca);
    let server = leaf_fields().with(authority_key_id(b"new")).certificate(&leaf, &renewed);
    let case = Case::new(&leaf, &[&server, &self_issued], &[&root]);
    cases.check("path of 0 and a self-issued one below", &case, Accepted).await;

    // The root file: order, copies, keys of the same name, cross-signed roots.
    let root = authority().certificate(&ca, &ca);
    let rekeyed = authority().certificate(&renewed, &renewed);
    let server = leaf_fields().certificate(&leaf, &ca);
    let below_renewed = leaf_fields().with(authority_key_id(b"new")).certificate(&leaf, &renewed);
    let stranger = authority().certificate(&other, &other);
    let cross_of_stranger = authority().certificate(&ca, &other);
    let key_ids =
        |e: &[u8], a: &[u8]| authority().with(subject_key_id(e)).with(authority_key_id(a));
    let new_with_old = key_ids(b"new", b"old").certificate(&renewed, &ca);
    let old = key_ids(b"old", b"old").certificate(&ca, &ca);
    let old_expired = key_ids(b"old", b"old").years(2020, 2021).certificate(&ca, &ca);
    let expired = authority().years(2020, 2021).certificate(&ca, &ca);
    let future = authority().years(2100, 2120).certificate(&ca, &ca);
    for (what, chain, roots, expect) in [
        ("the same twice", vec![&server], vec![&root, &root], Accepted),
        ("a stranger first", vec![&server], vec![&stranger, &root], Accepted),
        ("only a stranger", vec![&server], vec![&stranger], Refused),
        ("another key of the same name", vec![&server], vec![&rekeyed], Refused),
        ("expired beside renewed", vec![&server], vec![&expired, &root], Accepted),
        ("renewed beside expired", vec![&server], vec![&root, &expired], Accepted),
        ("expired and in the future", vec![&server], vec![&expired, &future], Refused),
        ("the root sent too", vec![&server, &root], vec![&root], Accepted),
        ("the root sent only", vec![&server, &root], vec![&stranger], Refused),
        ("a new key, cross-signed", vec![&below_renewed, &new_with_old], vec![&old], Accepted),
        ("cross-signed by a stranger", vec![&server, &cross_of_stranger], vec![&root], Accepted),
        ("and only that one known", vec![&server, &cross_of_stranger], vec![&stranger], Accepted),
        ("new with old", vec![&below_renewed], vec![&new_with_old, &old], Accepted),
        // It has the name of its issuer, but has not signed itself.
        ("new with old, alone", vec![&below_renewed], vec![&new_with_old], Refused),
        ("new with old, expired", vec![&below_renewed], vec![&new_with_old, &old_expired], Refused),
    ] {
        cases.check(&format!("root file: {what}"), &Case::new(&leaf, &chain, &roots), expect).await;
    }
    // Chains as they are sent: in any order, with others among them, and up to webpki's depth.
    let mut entities = vec![ca.clone()];
    let mut long = Vec::new();
    for i in 0..8 {
        let next = Entity::new(&format!("level {i}"));
        long.insert(0, authority().certificate(&next, &entities[i]));
        entities.push(next);
    }
    for (depth, expect) in [(2, Accepted), (6, Accepted), (7, Stricter), (8, Stricter)] {
        let server = leaf_fields().certificate(&leaf, &entities[depth]);
        let mut chain = vec![&server];
        chain.extend(&long[8 - depth..]);
        cases.check(&format!("{depth} between"), &Case::new(&leaf, &chain, &[&root]), expect).await;
        chain[1..].reverse();
        let case = Case::new(&leaf, &chain, &[&root]);
        cases.check(&format!("{depth} between, reversed"), &case, expect).await;
        chain.insert(1, &stranger);
        chain.push(&cross_of_stranger);
        chain.push(&server);
        let case = Case::new(&leaf, &chain, &[&root]);
        cases.check(&format!("{depth} between, and others"), &case, expect).await;
        // One is missing.
        if depth > 2 {
            chain.remove(3);
            let case = Case::new(&leaf, &chain, &[&root]);
            cases.check(&format!("{depth} between, one missing"), &case, Refused).await;
        }
    }
    // Two keys of one name: without key identifiers, OpenSSL tries only the first.
    for roots in [[&rekeyed, &root], [&root, &rekeyed]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.crt");
        std::fs::write(&path, pem("CERTIFICATE", &roots.map(Clone::clone))).unwrap();
        let shown = Server::start(from_ref(&server), &leaf).await;
        let [ours, _] = outcomes(&shown.text("db.example", "verify-full", &path, None)).await;
        ours.unwrap();
    }
    cases.done(100);
}

#[tokio::test]
async fn servers_are_believed_what_openssl_believes() {
    let mut cases = Cases::default();
    let (ca, leaf) = (Entity::new("CA"), Entity::new("leaf"));
    let root = Fields::authority().certificate(&ca, &ca);
    let names = || alternative_names(&[dns("db.example")]);
    for (what, fields, expect) in [
        ("for servers", leaf_fields().with(purposes(&[SERVER])), Accepted),
        ("for clients", leaf_fields().with(purposes(&[CLIENT])), Refused),
        ("for any purpose", leaf_fields().with(purposes(&[ANY_PURPOSE])), Refused),
        (
            "for any purpose and servers",
            leaf_fields().with(purposes(&[ANY_PURPOSE, SERVER])),
            Accepted,
        ),
        ("signs", leaf_fields().with(key_usage(&[DIGITAL_SIGNATURE])), Accepted),
        ("enciphers keys", leaf_fields().with(key_usage(&[2])), Accepted),
        ("agrees keys", leaf_fields().with(key_usage(&[4])), Accepted),
        ("signs certificates only", leaf_fields().with(key_usage(&[KEY_CERT_SIGN])), Refused),
        ("enciphers data only", leaf_fields().with(key_usage(&[3])), Refused),
        ("keyUsage without a bit", leaf_fields().with(key_usage(&[])), Refused),
        ("Netscape's type of a server", leaf_fields().with(netscape_type(0x40)), Accepted),
        ("Netscape's type of a client", leaf_fields().with(netscape_type(0x80)), Refused),
        ("an authority", Fields::authority().with(names()), Refused),
        (
            "an authority that also signs",
            Fields::new(&[
                basic_constraints(true, None),
                key_usage(&[KEY_CERT_SIGN, DIGITAL_SIGNATURE]),
                names(),
            ]),
            Stricter,
        ),
        (
            "CA:TRUE and nothing else",
            Fields::new(&[basic_constraints(true, None), names()]),
            Stricter,
        ),
        ("expired", leaf_fields().years(2020, 2021), Refused),
        ("not yet valid", leaf_fields().years(2100, 2120), Refused),
        ("version 1", Fields { version: 1, ..Fields::new(&[]) }, Stricter),
        ("unknown critical", leaf_fields().with(extension("1.2.3.4", true, &[5, 0])), Refused),
    ] {
        let subject = match fields.version {
            1 => Entity { subject: cn("db.example"), ..leaf.clone() },
            _ => leaf.clone(),
        };
        let server = fields.certificate(&subject, &ca);
        let case = Case::new(&leaf, &[&server], &[&root]);
        cases.check(what, &case, expect).await;
        cases.check(&format!("{what}, verify-ca"), &case.clone().mode("verify-ca"), expect).await;
        cases.check(&format!("{what}, require"), &case.mode("require"), expect).await;
    }
    cases.done(50);
}

#[tokio::test]
async fn only_self_signed_certificates_are_pins() {
    let mut cases = Cases::default();
    let (ca, leaf) = (Entity::new("CA"), Entity::new("leaf"));
    let root = Fields::authority().certificate(&ca, &ca);
    let names = || alternative_names(&[dns("db.example")]);
    let id = |own: &[u8], issuer: &[u8]| {
        leaf_fields().with(subject_key_id(own)).with(authority_key_id(issuer))
    };
    for (what, fields, expect) in [
        ("plain", leaf_fields(), Accepted),
        ("with key identifiers", id(b"a", b"a"), Accepted),
        ("with another's key identifier", id(b"a", b"b"), Refused),
        ("for servers", leaf_fields().with(purposes(&[SERVER])), Accepted),
        ("for clients", leaf_fields().with(purposes(&[CLIENT])), Refused),
        ("for any purpose", leaf_fields().with(purposes(&[ANY_PURPOSE])), Refused),
        ("Netscape's type of a client", leaf_fields().with(netscape_type(0x80)), Refused),
        ("signs certificates only", leaf_fields().with(key_usage(&[KEY_CERT_SIGN])), Refused),
        ("signs", leaf_fields().with(key_usage(&[DIGITAL_SIGNATURE])), Accepted),
        ("an authority", Fields::new(&[basic_constraints(true, None), names()]), Accepted),
        ("expired", leaf_fields().years(2020, 2021), Refused),
        ("not yet valid", leaf_fields().years(2100, 2120), Refused),
        ("unknown critical", leaf_fields().with(extension("1.2.3.4", true, &[5, 0])), Refused),
        ("for another host", Fields::new(&[alternative_names(&[dns("other")])]), Refused),
        (
            "constrained itself",
            leaf_fields().with(name_constraints(true, &[], &[dns("example")])),
            Accepted,
        ),
    ] {
        let server = fields.certificate(&leaf, &leaf);
        let case = Case::new(&leaf, &[&server], &[&server]);
        cases.check(&format!("self-signed: {what}"), &case, expect).await;
        if what != "for another host" {
            cases
                .check(&format!("self-signed: {what}, verify-ca"), &case.mode("verify-ca"), expect)
                .await;
        }
    }
    let named = Entity { subject: cn("db.example"), ..leaf.clone() };
    let v1 = Fields { version: 1, ..Fields::new(&[]) }.certificate(&named, &named);
    cases.check("self-signed: version 1", &Case::new(&leaf, &[&v1], &[&v1]), Accepted).await;

    // Not self-signed, so it is no root, although it is in the file.
    let server = leaf_fields().certificate(&leaf, &ca);
    let client = leaf_fields().with(purposes(&[CLIENT])).certificate(&leaf, &ca);
    let v1 = Fields { version: 1, ..Fields::new(&[]) }.certificate(&named, &ca);
    let same_name = Entity { subject: ca.subject.clone(), ..leaf.clone() };
    let issued_by_namesake = leaf_fields().certificate(&same_name, &ca);
    let middle = Fields::authority().with(names()).certificate(&leaf, &ca);
    for (what, chain, roots, expect) in [
        ("a leaf, alone", &server, vec![&server], Refused),
        ("a leaf beside its root", &server, vec![&server, &root], Accepted),
        ("a client's, alone", &client, vec![&client], Refused),
        ("a client's beside its root", &client, vec![&client, &root], Refused),
        ("of version 1, alone", &v1, vec![&v1], Refused),
        ("one in between, alone", &middle, vec![&middle], Refused),
        // OpenSSL treats a namesake of its issuer as self-signed, and checks no signature.
        ("signed by a namesake", &issued_by_namesake, vec![&issued_by_namesake], Stricter),
    ] {
        let case = Case::new(&leaf, &[chain], &roots);
        cases.check(&format!("in the file: {what}"), &case, expect).await;
        cases
            .check(&format!("in the file: {what}, verify-ca"), &case.mode("verify-ca"), expect)
            .await;
    }
    // A pin does not vouch for other certificates, even if it signed them.
    let other = Entity::new("other");
    for fields in [leaf_fields(), Fields::new(&[basic_constraints(false, None)])] {
        let pin = fields.certificate(&leaf, &leaf);
        let forged = leaf_fields().certificate(&other, &leaf);
        cases.check("signed by a pin", &Case::new(&other, &[&forged], &[&pin]), Refused).await;
    }
    cases.done(40);
}
