//! Which revocation list counts.

use std::slice::from_ref;

use super::{x509::*, *};

/// Which revocation list counts, in every order in which they may be given.
#[tokio::test]
async fn newest_revocation_list_of_the_issuer_is_used() {
    let mut cases = Cases::default();
    let (ca, middle, leaf) = (Entity::new("CA"), Entity::new("Middle"), Entity::new("leaf"));
    let renewed = Entity { key: Entity::new("").key, subject: ca.subject.clone() };
    let root = Fields::authority().serial(1).certificate(&ca, &ca);
    let server = leaf_fields().serial(8).certificate(&leaf, &ca);
    let between = Fields::authority().serial(9).certificate(&middle, &ca);
    let below = leaf_fields().serial(8).certificate(&leaf, &middle);
    let with_id = |id: &[u8]| Fields::authority().serial(1).with(subject_key_id(id));
    let root_a = with_id(b"a").certificate(&ca, &ca);
    let root_b = with_id(b"b").certificate(&renewed, &renewed);
    let server_a = leaf_fields().with(authority_key_id(b"a")).certificate(&leaf, &ca);
    let server_b = leaf_fields().with(authority_key_id(b"b")).certificate(&leaf, &renewed);
    let pointed = leaf_fields().with(distribution_point("http://a/")).certificate(&leaf, &ca);

    let list = |from, until, revoked: &[u8]| List::new(from, until, revoked).sign(&ca);
    let clean = list(2024, 2120, &[]);
    let other = list(2024, 2120, &[7]);
    let revoking = list(2024, 2120, &[7, 8]);
    let older_clean = list(2022, 2120, &[]);
    let newer_clean = list(2025, 2120, &[]);
    let newer_revoking = list(2025, 2120, &[8]);
    let expired = list(2022, 2023, &[]);
    let future = list(2100, 2120, &[]);
    let future_revoking = list(2100, 2120, &[8]);
    let endless = List { until: None, ..List::new(2024, 2120, &[]) }.sign(&ca);
    let endless_revoking = List { until: None, ..List::new(2024, 2120, &[8]) }.sign(&ca);
    let v1 = List { version: 1, extensions: vec![], ..List::new(2024, 2120, &[]) }.sign(&ca);
    let v1_revoking =
        List { version: 1, extensions: vec![], ..List::new(2024, 2120, &[8]) }.sign(&ca);
    let of_middle = List::new(2024, 2120, &[]).sign(&middle);
    let of_middle_revoking = List::new(2024, 2120, &[8]).sign(&middle);
    let revoking_middle = list(2024, 2120, &[9]);
    let by_id = |id: &[u8], by: &Entity, revoked: &[u8], from| {
        List::new(from, 2120, revoked).with(authority_key_id(id)).sign(by)
    };
    let a_clean = by_id(b"a", &ca, &[], 2024);
    let a_revoking = by_id(b"a", &ca, &[8], 2024);
    let b_clean = by_id(b"b", &renewed, &[], 2025);
    let b_revoking = by_id(b"b", &renewed, &[8], 2025);
    let forged = by_id(b"a", &renewed, &[], 2025);
    let forged_without_id = List::new(2025, 2120, &[]).sign(&renewed);
    let wrong_id = by_id(b"c", &ca, &[], 2024);
    let delta_clean = List::new(2025, 2120, &[]).with(delta_of(1)).sign(&ca);
    let delta_revoking = List::new(2025, 2120, &[8]).with(delta_of(1)).sign(&ca);
    let newest = list(2026, 2120, &[]);
    let odd = |extension: Vec<u8>| List::new(2025, 2120, &[]).with(extension).sign(&ca);
    let critical = odd(extension("1.2.3.4", true, &[5, 0]));
    let not_critical = odd(extension("1.2.3.4", false, &[5, 0]));
    let indirect = odd(issuing_distribution_point(None, &[4]));
    let users = odd(issuing_distribution_point(None, &[1]));
    let authorities = odd(issuing_distribution_point(None, &[2]));
    let attributes = odd(issuing_distribution_point(None, &[5]));
    let here = odd(issuing_distribution_point(Some("http://a/"), &[]));
    let elsewhere = odd(issuing_distribution_point(Some("http://b/"), &[]));
    let here_revoking = List::new(2026, 2120, &[8])
        .with(issuing_distribution_point(Some("http://a/"), &[]))
        .sign(&ca);
    let elsewhere_revoking = List::new(2026, 2120, &[8])
        .with(issuing_distribution_point(Some("http://b/"), &[]))
        .sign(&ca);
    let entry = |extension: Vec<u8>, revoked: &[u8]| {
        List { entry_extensions: vec![extension], ..List::new(2025, 2120, revoked) }.sign(&ca)
    };
    let reason = |code: u8| extension("2.5.29.21", false, &tlv(0x0a, &[code]));
    let on_hold = entry(reason(6), &[8]);
    let removed = entry(reason(8), &[8]);
    let critical_entry = entry(extension("1.2.3.4", true, &[5, 0]), &[7]);
    let root_revoked = list(2024, 2120, &[42]);
    let root_42 = Fields::authority().serial(42).certificate(&ca, &ca);
    let no_crl_sign = Fields::new(&[basic_constraints(true, None), key_usage(&[KEY_CERT_SIGN])])
        .certificate(&ca, &ca);
    for (what, chain, roots, lists, expect) in [
        ("nothing revoked", vec![&server], vec![&root], vec![&clean], Accepted),
        ("another revoked", vec![&server], vec![&root], vec![&other], Accepted),
        ("revoked", vec![&server], vec![&root], vec![&revoking], Refused),
        (
            "older clean, revoked",
            vec![&server],
            vec![&root],
            vec![&older_clean, &revoking],
            Refused,
        ),
        (
            "revoked, newer clean",
            vec![&server],
            vec![&root],
            vec![&revoking, &newer_clean],
            Accepted,
        ),
        (
            "clean, newer revoked",
            vec![&server],
            vec![&root],
            vec![&clean, &newer_revoking],
            Refused,
        ),
        ("three", vec![&server], vec![&root], vec![&older_clean, &newer_revoking, &clean], Refused),
        ("expired alone", vec![&server], vec![&root], vec![&expired], Refused),
        ("expired and current", vec![&server], vec![&root], vec![&expired, &clean], Accepted),
        ("expired and revoked", vec![&server], vec![&root], vec![&expired, &revoking], Refused),
        ("future alone", vec![&server], vec![&root], vec![&future], Refused),
        ("future and current", vec![&server], vec![&root], vec![&future, &clean], Accepted),
        (
            "future revoked, current",
            vec![&server],
            vec![&root],
            vec![&future_revoking, &clean],
            Accepted,
        ),
        ("future and revoked", vec![&server], vec![&root], vec![&future, &revoking], Refused),
        ("expired and future", vec![&server], vec![&root], vec![&expired, &future], Refused),
        ("without an end", vec![&server], vec![&root], vec![&endless], Accepted),
        ("without an end, revoked", vec![&server], vec![&root], vec![&endless_revoking], Refused),
        ("version 1", vec![&server], vec![&root], vec![&v1], Accepted),
        ("version 1, revoked", vec![&server], vec![&root], vec![&v1_revoking], Refused),
        ("of another authority", vec![&server], vec![&root], vec![&of_middle], Refused),
        ("two of three", vec![&below, &between], vec![&root], vec![&clean], Refused),
        ("one of three", vec![&below, &between], vec![&root], vec![&of_middle], Refused),
        ("all", vec![&below, &between], vec![&root], vec![&clean, &of_middle], Accepted),
        (
            "all, leaf revoked",
            vec![&below, &between],
            vec![&root],
            vec![&clean, &of_middle_revoking],
            Refused,
        ),
        (
            "all, one between revoked",
            vec![&below, &between],
            vec![&root],
            vec![&revoking_middle, &of_middle],
            Refused,
        ),
        (
            "the same number of another",
            vec![&below, &between],
            vec![&root],
            vec![&revoking, &of_middle],
            Accepted,
        ),
        (
            "two keys, old",
            vec![&server_a],
            vec![&root_a, &root_b],
            vec![&a_clean, &b_clean],
            Accepted,
        ),
        (
            "two keys, old revoked",
            vec![&server_a],
            vec![&root_a, &root_b],
            vec![&a_revoking, &b_clean],
            Refused,
        ),
        (
            "two keys, new revokes",
            vec![&server_a],
            vec![&root_a, &root_b],
            vec![&a_clean, &b_revoking],
            Accepted,
        ),
        (
            "two keys, new",
            vec![&server_b],
            vec![&root_a, &root_b],
            vec![&a_revoking, &b_clean],
            Accepted,
        ),
        (
            "two keys, new revoked",
            vec![&server_b],
            vec![&root_a, &root_b],
            vec![&a_clean, &b_revoking],
            Refused,
        ),
        ("only the other key's", vec![&server_a], vec![&root_a, &root_b], vec![&b_clean], Refused),
        ("forged", vec![&server_a], vec![&root_a], vec![&forged], Refused),
        (
            "forged, without identifier",
            vec![&server],
            vec![&root],
            vec![&forged_without_id],
            Refused,
        ),
        ("wrong identifier", vec![&server_a], vec![&root_a], vec![&wrong_id], Refused),
        // OpenSSL 3.0 takes it for a complete one, 3.5 ignores it.
        ("delta alone", vec![&server], vec![&root], vec![&delta_clean], Rejected),
        ("delta and complete", vec![&server], vec![&root], vec![&delta_clean, &clean], Accepted),
        (
            "delta revoking and complete",
            vec![&server],
            vec![&root],
            vec![&delta_revoking, &clean],
            Rejected,
        ),
        (
            "delta revoking and newer",
            vec![&server],
            vec![&root],
            vec![&delta_revoking, &newest],
            Accepted,
        ),
        ("critical extension", vec![&server], vec![&root], vec![&critical], Refused),
        (
            "critical extension beside",
            vec![&server],
            vec![&root],
            vec![&critical, &clean],
            Accepted,
        ),
        (
            "critical extension beside revoked",
            vec![&server],
            vec![&root],
            vec![&critical, &revoking],
            Refused,
        ),
        ("another extension", vec![&server], vec![&root], vec![&not_critical], Accepted),
        ("indirect", vec![&server], vec![&root], vec![&indirect], Refused),
        ("indirect beside", vec![&server], vec![&root], vec![&indirect, &clean], Accepted),
        ("of users only", vec![&server], vec![&root], vec![&users], Refused),
        (
            "of users and of authorities",
            vec![&server],
            vec![&root],
            vec![&users, &authorities],
            Accepted,
        ),
        ("of authorities only", vec![&server], vec![&root], vec![&authorities], Refused),
        ("of attributes only", vec![&server], vec![&root], vec![&attributes], Refused),
        ("of its point", vec![&pointed], vec![&root], vec![&here, &clean], Accepted),
        (
            "of its point, revoked",
            vec![&pointed],
            vec![&root],
            vec![&here_revoking, &clean],
            Refused,
        ),
        ("of another point", vec![&pointed], vec![&root], vec![&elsewhere], Refused),
        (
            "of another point, revoked",
            vec![&pointed],
            vec![&root],
            vec![&elsewhere_revoking, &clean],
            Accepted,
        ),
        ("of a point, but it has none", vec![&server], vec![&root], vec![&here], Refused),
        ("on hold", vec![&server], vec![&root], vec![&on_hold], Refused),
        // It means something only in a delta list.
        ("removed", vec![&server], vec![&root], vec![&removed], Stricter),
        ("critical entry", vec![&server], vec![&root], vec![&critical_entry], Refused),
        ("the root itself", vec![&server], vec![&root_42], vec![&root_revoked], Refused),
        ("not allowed to sign lists", vec![&server], vec![&no_crl_sign], vec![&clean], Refused),
    ] {
        let case = Case::new(&leaf, &chain, &roots);
        let mut lists = lists;
        for _ in 0..lists.len() {
            cases.check(what, &case.clone().lists(&lists), expect).await;
            lists.rotate_left(1);
        }
        lists.reverse();
        cases.check(&format!("{what}, reversed"), &case.clone().lists(&lists), expect).await;
        cases
            .check(&format!("{what}, verify-ca"), &case.lists(&lists).mode("verify-ca"), expect)
            .await;
    }

    // Pins need a list of their own.
    let pin = leaf_fields().serial(8).certificate(&leaf, &leaf);
    let no_sign = leaf_fields().with(key_usage(&[DIGITAL_SIGNATURE])).certificate(&leaf, &leaf);
    let (own, own_revoking) =
        (List::new(2024, 2120, &[]).sign(&leaf), List::new(2024, 2120, &[8]).sign(&leaf));
    for (what, pin, lists, expect) in [
        ("own list", &pin, vec![&own], Accepted),
        ("own list, revoked", &pin, vec![&own_revoking], Refused),
        ("another's list", &pin, vec![&clean], Refused),
        ("own list, not allowed to", &no_sign, vec![&own], Refused),
    ] {
        let case = Case::new(&leaf, &[pin], &[pin]).lists(&lists);
        cases.check(&format!("pin: {what}"), &case, expect).await;
    }

    // OpenSSL takes certificates and lists from either file, and here each is for its own.
    let chain = [&below, &between];
    let mut case = Case::new(&leaf, &chain, &[&root]).lists(&[&clean]);
    case.roots += &pem("X509 CRL", from_ref(&of_middle));
    cases.check("a list in the file of roots", &case, Stricter).await;
    let mut case = Case::new(&leaf, &chain, &[&between]).lists(&[&clean, &of_middle]);
    *case.lists.as_mut().unwrap() += &pem("CERTIFICATE", from_ref(&root));
    cases.check("a root in the file of lists", &case, Stricter).await;

    // Files: what is around the lists, and lists that cannot be read. libpq then checks nothing.
    let case = Case::new(&leaf, &[&server], &[&root]);
    let clean_pem = pem("X509 CRL", from_ref(&clean));
    let with = |text: String| Case { lists: Some(text), ..case.clone() };
    let cut = pem("X509 CRL", &[clean[..clean.len() - 1].to_vec()]);
    for (what, text, expect, part) in [
        ("text around", format!("A list\n{clean_pem}and more\n"), Accepted, ""),
        ("a certificate beside", pem("CERTIFICATE", from_ref(&root)) + &clean_pem, Accepted, ""),
        ("empty", String::new(), Stricter, "contains no PEM list"),
        ("no list", pem("CERTIFICATE", from_ref(&root)), Refused, "contains no PEM list"),
        ("cut", cut.clone(), Stricter, "malformed"),
        ("cut beside", clean_pem.clone() + &cut, Stricter, "malformed"),
        ("not even PEM", "-----BEGIN X509 CRL-----\n!!\n".to_owned(), Stricter, "not PEM"),
    ] {
        cases.check_error(&format!("file: {what}"), &with(text), expect, part).await;
    }
    for (what, list, part) in [
        ("expired", &expired, "expired on 2023-01-01"),
        ("future", &future, "not valid before 2100-01-01"),
        ("another key", &forged_without_id, "not signed by the authority's current key"),
        ("indirect", &indirect, "indirect"),
        ("critical", &critical, "critical extension"),
        ("scope", &elsewhere, "distribution point"),
        ("another authority", &of_middle, "no revocation list of the issuer (CN=CA)"),
    ] {
        cases.check_error(what, &case.clone().lists(&[list]), Refused, part).await;
    }
    cases.done(200);
}
