//! Random chains of certificates.

use super::{
    support::random::Random,
    x509::{self, *},
    *,
};

/// Parts of errors for what libpq accepts and this crate may reject, one for each row in
/// SECURITY.md that can occur here.
const STRICTER: [&str; 8] = [
    "is that of an authority (CA:TRUE)",
    "only X.509 certificates of version 3",
    "is not accepted, because an authority has name constraints",
    // Constraints on names that webpki does not compare, and wildcards.
    "name constraints",
    "MalformedDnsIdentifier",
    "name constraints for email addresses",
    "UnsupportedCriticalExtension",
    // The path length of one in between, where one below is self-issued.
    "EndEntityUsedAsCa",
];

/// Mostly makes correct choices: a chain with many errors tests little.
struct Maker(Random);

impl Maker {
    fn one_in(&mut self, n: u64) -> bool {
        self.0.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.0.below(values.len() as u64) as usize].clone()
    }

    fn common_name(&mut self) -> Vec<u8> {
        let names = ["db.example", "db", "*.example", "bank.test", "x", "a.db.example", "10.0.0.1"];
        let text = self.pick(&names);
        let mut attributes = vec![(CN, UTF8, text.as_bytes())];
        if self.one_in(6) {
            attributes.push((CN, UTF8, b"other.test"));
        }
        if self.one_in(8) {
            attributes.insert(0, (EMAIL, 0x16, b"a@b.test"));
        }
        x509::name(&attributes)
    }

    fn general_name(&mut self) -> Vec<u8> {
        let db = [dns("db.example"), dns("db.example")];
        let others = [
            dns("*.example"),
            dns("*.db.example"),
            dns("bank.test"),
            dns("10.0.0.1"),
            ip(&[10, 0, 0, 1]),
            email("a@b.test"),
            uri("u://b.test/"),
        ];
        if self.one_in(2) { self.pick(&db) } else { self.pick(&others) }
    }

    fn constraints(&mut self) -> Vec<u8> {
        let bases = [
            dns("example"),
            dns(".example"),
            dns("db.example"),
            dns("test"),
            dns(""),
            ip(&[10, 0, 0, 0, 255, 0, 0, 0]),
            ip(&[0; 8]),
            email("b.test"),
            uri("b.test"),
        ];
        let some = |maker: &mut Self| {
            (0..maker.0.below(3)).map(|_| maker.pick(&bases)).collect::<Vec<_>>()
        };
        let (permitted, excluded) = (some(self), some(self));
        name_constraints(!self.one_in(3), &permitted, &excluded)
    }

    /// Adds the fields that any certificate may have.
    fn extras(&mut self, fields: &mut Fields, own: &[u8], issuer: &[u8]) {
        if self.one_in(2) {
            fields.extensions.push(subject_key_id(own));
        }
        if self.one_in(2) {
            let id = if self.one_in(12) { b"wrong" } else { issuer };
            fields.extensions.push(authority_key_id(id));
        }
        if self.one_in(8) {
            let some = [SERVER, SERVER, CLIENT, ANY_PURPOSE];
            let listed: Vec<_> = (0..1 + self.0.below(2)).map(|_| self.pick(&some)).collect();
            fields.extensions.push(purposes(&listed));
        }
        if self.one_in(30) {
            fields.extensions.push(extension("1.2.3.4", self.0.below(2) == 0, &[5, 0]));
        }
        if self.one_in(25) {
            (fields.from, fields.until) = self.pick(&[(2020, 2021), (2100, 2120)]);
        }
        if self.one_in(20) {
            fields.extensions.push(netscape_type(self.0.below(256) as u8));
        }
    }

    fn authority(&mut self, own: &[u8], issuer: &[u8], serial: u8) -> Fields {
        let mut fields = Fields::new(&[]).serial(serial);
        if self.one_in(30) {
            fields.version = 1;
            return fields;
        }
        if !self.one_in(20) {
            let ca = !self.one_in(25);
            let length = if ca && self.one_in(4) { Some(self.0.below(3) as u8) } else { None };
            fields.extensions.push(basic_constraints(ca, length));
        }
        if !self.one_in(3) {
            let mut bits = vec![KEY_CERT_SIGN, CRL_SIGN];
            if self.one_in(12) {
                bits = (0..self.0.below(3)).map(|_| self.0.below(8) as u8).collect();
            }
            fields.extensions.push(key_usage(&bits));
        }
        if self.one_in(5) {
            fields.extensions.push(self.constraints());
        }
        self.extras(&mut fields, own, issuer);
        fields
    }

    fn server(&mut self, issuer: &[u8]) -> Fields {
        let mut fields = Fields::new(&[]).serial(8);
        if self.one_in(40) {
            fields.version = 1;
            return fields;
        }
        if self.one_in(4) {
            fields.extensions.push(basic_constraints(self.one_in(4), None));
        }
        if self.one_in(4) {
            let bits: Vec<_> = (0..1 + self.0.below(3)).map(|_| self.0.below(8) as u8).collect();
            fields.extensions.push(key_usage(&bits));
        }
        if !self.one_in(4) {
            let names: Vec<_> = (0..self.0.below(3)).map(|_| self.general_name()).collect();
            fields.extensions.push(alternative_names(&names));
        }
        self.extras(&mut fields, b"leaf", issuer);
        fields
    }

    fn list(&mut self, by: &Entity, id: &[u8], number: u16) -> Vec<u8> {
        // No two lists of the same second: OpenSSL uses the first, and this crate both.
        let from = number + self.pick(&[2020, 2020, 2020, 2100]);
        let until = self.pick(&[2023, 2120, 2120, 2120]).max(from + 1);
        let revoked = self.pick(&[&[][..], &[], &[7], &[8], &[1, 2, 3], &[2]]);
        let mut list = List::new(from, until, revoked);
        if self.one_in(8) {
            list.version = 1;
            list.extensions.clear();
            return list.sign(by);
        }
        if self.one_in(6) {
            list.until = None;
        }
        if self.one_in(3) {
            list.extensions.push(authority_key_id(if self.one_in(6) { b"wrong" } else { id }));
        }
        if self.one_in(12) {
            list.extensions.push(extension("1.2.3.4", self.one_in(2), &[5, 0]));
        }
        if self.one_in(8) {
            let flag = self.pick(&[1, 2, 4, 5]);
            list.extensions.push(issuing_distribution_point(None, &[flag]));
        }
        list.sign(by)
    }
}

/// Makes a random chain of up to two authorities below a root.
fn case(seed: u64) -> Case {
    let mut maker = Maker(Random::of(seed));
    let names = ["Root", "First", "Second"];
    let depth = maker.0.below(3) as usize;
    let authorities: Vec<_> = names[..=depth].iter().map(|name| Entity::new(name)).collect();
    let leaf = Entity::named(maker.common_name());
    let mut certificates = Vec::new();
    for (i, authority) in authorities.iter().enumerate() {
        let above = i.saturating_sub(1);
        let fields = maker.authority(
            names[i].as_bytes(),
            names[above].as_bytes(),
            1 + u8::try_from(i).unwrap(),
        );
        certificates.push(fields.certificate(authority, &authorities[above]));
    }
    // Now and then it has signed itself, and is the root.
    let pinned = maker.one_in(8);
    let issuer = if pinned { &leaf } else { &authorities[depth] };
    let id: &[u8] = if pinned { b"leaf" } else { names[depth].as_bytes() };
    let server = maker.server(id).certificate(&leaf, issuer);

    let mut chain = vec![server.clone()];
    let mut roots = vec![certificates[0].clone()];
    // OpenSSL does not continue with what was sent above a certificate of the file.
    let in_file =
        if maker.one_in(4) { maker.0.below(certificates.len() as u64) as usize } else { 0 };
    let (known, unknown) = certificates.split_at(1 + in_file);
    roots.extend_from_slice(&known[1..]);
    chain.extend(unknown.iter().rev().cloned());
    if maker.one_in(4) {
        chain.push(certificates[0].clone());
    }
    if maker.one_in(6) {
        chain[1..].reverse();
    }
    if pinned || maker.one_in(15) {
        roots.push(server);
    }
    if maker.one_in(12) {
        roots.remove(0);
    }
    if roots.is_empty() {
        roots.push(Fields::authority().certificate(&authorities[0], &authorities[0]));
    }
    let lists = maker.one_in(3).then(|| {
        let mut lists = Vec::new();
        for (authority, name) in authorities.iter().zip(names) {
            for number in 0..1 + maker.0.below(3) {
                lists.push(maker.list(authority, name.as_bytes(), number as u16));
            }
        }
        if pinned {
            lists.push(maker.list(&leaf, b"leaf", 0));
        }
        if maker.one_in(2) {
            lists.reverse();
        }
        pem("X509 CRL", &lists)
    });
    Case {
        chain,
        key: leaf,
        roots: pem("CERTIFICATE", &roots),
        lists,
        host: maker.pick(&[
            "db.example",
            "db.example",
            "db.example",
            "db",
            "10.0.0.1",
            "bank.test",
        ]),
        mode: maker.pick(&["verify-full", "verify-ca"]),
    }
}

/// `CHAINS=10000` tests more than usual, and `CHAIN=7` only the one that a failure names.
#[tokio::test]
async fn chains_made_by_chance_are_never_trusted_more_than_by_openssl() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("CHAIN") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CHAINS").unwrap_or(200),
    };
    let is_whole = seeds.end - seeds.start >= 200;
    let (mut accepted, mut refused, mut stricter) = (0, 0, 0);
    let mut wrong = Vec::new();
    for seed in seeds {
        match case(seed).outcomes().await {
            [Ok(()), Ok(())] => accepted += 1,
            [Err(_), Err(_)] => refused += 1,
            [Ok(()), Err(error)] => {
                wrong.push(format!("CHAIN={seed} is accepted here only: {error}"));
            }
            [Err(error), Ok(())] if STRICTER.iter().any(|part| error.contains(part)) => {
                stricter += 1
            }
            [Err(error), Ok(())] => {
                wrong.push(format!("CHAIN={seed} is refused here only: {error}"))
            }
        }
    }
    println!("{accepted} accepted, {refused} refused, {stricter} refused here only");
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    // Both results must be frequent.
    assert!(!is_whole || (accepted > 20 && refused > 20), "{accepted} {refused}");
}
