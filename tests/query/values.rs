//! Types of values in `bind` and in filters, and what they match on a real server.

// References are what is tested.
#![allow(clippy::needless_borrows_for_generic_args)]

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::support::{client, cluster, random::Random, sql};
use fraiseql_wire::{
    ConnectionConfig, Error, Field, Filter, FraiseClient, Operand, QueryBuilder, field,
};
use serde_json::{Value, json};

/// The numbers of the rows that match.
async fn ids(client: &FraiseClient, table: &str, filter: Filter) -> Vec<u32> {
    let query = client.query(table).filter(filter).select_projection("to_jsonb(id)");
    query.order_by("id").fetch_all().await.unwrap()
}

/// The error of a query that must be rejected before it is sent.
async fn config_error(client: &FraiseClient, filter: Filter) -> String {
    match client.query::<Value>("v_one").filter(filter).fetch_all().await {
        Err(e @ Error::Config { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The text that is sent for a value.
fn sent(client: &FraiseClient, value: impl Into<Operand>) -> String {
    let (_, parameters) = client.query::<Value>("v").filter(field("a").eq(value)).to_sql().unwrap();
    parameters[0].clone().unwrap()
}

/// A client whose session has this time zone.
async fn client_in(zone: &str) -> FraiseClient {
    let config = cluster().url().parse::<ConnectionConfig>().unwrap().to_builder();
    let config = config.param("TimeZone", zone).build().unwrap();
    FraiseClient::connect_with_config(config).await.unwrap()
}

async fn scalar(client: &FraiseClient, query: QueryBuilder<Value>, expression: &str) -> Value {
    let _ = client;
    query.select_projection(expression).fetch_one().await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn bind_accepts_wide_integers_addresses_and_owned_text() {
    let client = client().await;
    let echo = async |cast: &str, query: QueryBuilder<Value>| {
        scalar(&client, query, &format!("to_jsonb($1::{cast}::text)")).await
    };
    let query = || client.query::<Value>(String::from("v_one"));
    assert_eq!(echo("numeric", query().bind(usize::MAX)).await, json!(usize::MAX.to_string()));
    assert_eq!(echo("bigint", query().bind(isize::MIN)).await, json!(isize::MIN.to_string()));
    assert_eq!(echo("numeric", query().bind(u128::MAX)).await, json!(u128::MAX.to_string()));
    assert_eq!(echo("bigint[]", query().bind([7usize, 8])).await, json!("{7,8}"));
    assert_eq!(echo("inet", query().bind(Ipv4Addr::LOCALHOST)).await, json!("127.0.0.1/32"));
    assert_eq!(echo("inet", query().bind(&Ipv6Addr::LOCALHOST)).await, json!("::1/128"));
    let (boxed, shared): (Box<str>, Arc<str>) = ("a".into(), "b".into());
    assert_eq!(echo("text", query().bind(boxed)).await, json!("a"));
    assert_eq!(echo("text", query().bind(&shared)).await, json!("b"));
    assert_eq!(echo("text[]", query().bind([Some(shared), None])).await, json!("{b,NULL}"));
    let text = echo("text", query().bind(None::<Box<str>>)).await;
    assert_eq!(text, Value::Null);

    // A number beyond the inferred type is the server's error, and never another number.
    let error = query().where_sql("1::bigint = $1").bind(u128::MAX).fetch_all().await.unwrap_err();
    assert_eq!(error.sqlstate().unwrap().code(), "22003", "{error}");
    let beyond = UNIX_EPOCH + Duration::from_secs(9_224_318_016_000);
    let error = query().where_sql("now() < $1").bind(beyond).fetch_all().await.unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
}

/// Each as a value, as a reference and in lists, as users write them.
#[tokio::test]
async fn operands_of_every_type_match_the_same_value() {
    sql(r#"create table tv_operands (id int, data jsonb);
           insert into tv_operands values
               (1, '{"n": 340282366920938463463374607431768211455, "s": "a", "ip": "10.0.0.1"}'),
               (2, '{"n": 340282366920938463463374607431768211454, "s": "b", "ip": "::1"}'),
               (3, '{"n": -170141183460469231731687303715884105728, "s": null}'),
               (4, '{"n": 18446744073709551615}'), (5, '{"n": 7}')"#)
    .await;
    let client = client().await;
    let ids = async |filter| ids(&client, "tv_operands", filter).await;
    assert_eq!(ids(field("n").eq(u128::MAX)).await, [1]);
    assert_eq!(ids(field("n").lt(u128::MAX)).await, [2, 3, 4, 5]);
    assert_eq!(ids(field("n").eq(&(u128::MAX - 1))).await, [2]);
    assert_eq!(ids(field("n").eq(i128::MIN)).await, [3]);
    assert_eq!(ids(field("n").gte(usize::MAX)).await, [1, 2, 4]);
    assert_eq!(ids(field("n").between(&-1isize, &7i64)).await, [5]);
    let numbers: &[i64] = &[7, 8];
    assert_eq!(ids(field("n").in_(numbers)).await, [5]);
    assert_eq!(ids(field("n").in_(numbers.iter())).await, [5]);
    assert_eq!(ids(field("n").in_(numbers.iter().collect::<Vec<_>>().iter())).await, [5]);
    assert_eq!(ids(field("n").in_(&[1, 7])).await, [5]);

    let (boxed, shared, cow): (Box<str>, Arc<str>, Cow<'_, str>) =
        ("a".into(), "a".into(), "a".into());
    for filter in [
        field("s").eq(&"a"),
        field("s").eq(&boxed),
        field("s").eq(boxed),
        field("s").eq(&shared),
        field("s").eq(shared),
        field("s").eq(&cow),
        field("s").eq(cow),
        field("s").eq(&String::from("a")),
        field("s").eq(&&json!("a")),
        field("s").eq('a'),
        field("s").in_(&["a", "x"]),
        field("s").in_(vec![Cow::Borrowed("a")]),
        field("ip").eq(Ipv4Addr::new(10, 0, 0, 1)),
        field("ip").eq(&IpAddr::from([10, 0, 0, 1])),
        field("s").eq(Some("a")),
        field("s").eq(&Some(String::from("a"))),
        field("s").in_([None, Some("a")]) & field("s").is_not_null(),
    ] {
        assert_eq!(ids(filter.clone()).await, [1], "{filter:?}");
    }
    assert_eq!(ids(field("ip").eq(Ipv6Addr::LOCALHOST)).await, [2]);
}

/// `None` is null if a null can match, and an error otherwise.
#[tokio::test]
async fn none_is_null_or_an_error() {
    sql(r#"create table tv_none (id int, c text, data jsonb);
           insert into tv_none values (1, 'x', '{"a": "x", "l": ["x", null]}'),
               (2, null, '{"a": null, "l": []}'), (3, 'y', '{}')"#)
    .await;
    let client = client().await;
    let ids = async |filter| ids(&client, "tv_none", filter).await;
    let none = None::<&str>;
    assert_eq!(ids(field("a").eq(none)).await, [2]);
    assert_eq!(ids(field("a").in_([Some("x"), None])).await, [1, 2]);
    assert_eq!(ids(field("a").not_in([Some("y"), None])).await, [1]);
    assert_eq!(ids(field("a").contains_json(none)).await, [2]);
    assert_eq!(ids(field("a").contained_by(none)).await, [2]);
    assert_eq!(ids(field("l").array_contains(none)).await, [1]);
    assert_eq!(ids(field("l").array_overlaps([none])).await, [1]);
    assert_eq!(ids(field("l").array_contained_by([none])).await, [2]);
    assert_eq!(ids(Field::column("c").eq(none)).await, [2]);
    assert_eq!(ids(Field::column("c").ne(none)).await, [1, 3]);
    assert_eq!(ids(!Field::column("c").eq(none)).await, [1, 3]);
    assert_eq!(ids(Field::column("c").in_([none, Some("y")])).await, [2, 3]);
    assert_eq!(ids(Field::column("c").not_in([none])).await, [1, 3]);

    for filter in [field("a").ne(none), !field("a").eq(none), field("a").not_in([none, None])] {
        let error = config_error(&client, filter).await;
        assert!(error.contains("is_not_null()"), "{error}");
    }
    let low = field("a").between(none, Some("b"));
    for filter in [field("a").gt(none), field("a").lt(none), low, field("a").between("b", none)] {
        let error = config_error(&client, filter).await;
        assert!(error.contains("null"), "{error}");
    }
    // As in 1.0: JSON's own null is no error, and matches nothing.
    assert!(ids(field("a").ne(Value::Null)).await.is_empty());
}

/// The server, too, prints the shortest decimal of a float, so a filter finds the row again.
#[tokio::test]
async fn float_decodes_to_the_value_of_the_server_and_is_found_again() {
    #[derive(serde::Deserialize)]
    struct Row {
        x: f64,
    }
    let mut random = Random::of(1);
    let mut floats = vec![942.2729697795875, f64::MAX, f64::MIN_POSITIVE, 5e-324, 0.1, -1e22];
    while floats.len() < 2000 {
        let below_1000 = random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * 1000.0;
        let any = f64::from_bits(random.below(u64::MAX));
        floats.extend([below_1000, any].into_iter().filter(|x| x.is_finite()));
    }
    let texts: Vec<String> = floats.iter().map(f64::to_string).collect();
    sql(&format!(
        "create table tv_floats as select i as id, jsonb_build_object('x', x) as data
             from unnest('{{{}}}'::float8[]) with ordinality as t(x, i)",
        texts.join(",")
    ))
    .await;
    let client = client().await;
    let rows = client.query::<Row>("tv_floats").order_by("id").fetch_all().await.unwrap();
    let values = client.query::<Value>("tv_floats").order_by("id").fetch_all().await.unwrap();
    let decoded: Vec<f64> = rows.iter().map(|row| row.x).collect();
    assert_eq!(decoded, floats);
    assert_eq!(values.iter().map(|v| v["x"].as_f64().unwrap()).collect::<Vec<_>>(), floats);
    assert_eq!(ids(&client, "tv_floats", field("x").eq(decoded[0])).await, [1]);
    assert_eq!(ids(&client, "tv_floats", field("x").in_(&decoded)).await.len(), floats.len());
}

/// 600 moments from the years 1 to 9999, with and without a fraction.
fn moments() -> Vec<SystemTime> {
    let (first, last) = (-62_135_596_800_i64, 253_402_300_799_i64);
    let step = (last - first) / 599;
    let seconds = (0..599).map(|i| first + i * step).chain([last, 0, -1]);
    let with_fraction = seconds.zip([0, 500_000_000, 1000, 999_999_999, 10_000_000].iter().cycle());
    with_fraction
        .map(|(seconds, nanos)| match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, *nanos),
            Err(_) => {
                UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::new(0, *nanos)
            }
        })
        .collect()
}

/// The text of a SystemTime is what to_jsonb creates for the same timestamptz in UTC.
#[tokio::test]
async fn system_time_operand_equals_to_jsonb_of_the_same_time() {
    let utc = client_in("UTC").await;
    let times = moments();
    let texts: Vec<_> = times.iter().map(|time| sent(&utc, *time)).collect();
    let query = utc.query::<Value>("v_one").bind(times);
    assert_eq!(scalar(&utc, query, "to_jsonb($1::timestamptz[])").await, json!(texts));

    sql(r#"create table tv_moments (id int, at timestamptz);
           insert into tv_moments values (1, '2026-01-31 12:30:05+00'),
               (2, '2026-01-31 12:30:05.5+00'), (3, '2026-01-31 13:30:06+00'), (4, null);
           create view v_moments as select id, at, to_jsonb(t) as data from tv_moments t"#)
    .await;
    let at = |seconds: u64, nanos| UNIX_EPOCH + Duration::new(1_769_862_600 + seconds, nanos);
    for place in [|| field("at"), || Field::column("at")] {
        let ids = async |filter| ids(&utc, "v_moments", filter).await;
        assert_eq!(ids(place().eq(at(5, 0))).await, [1]);
        assert_eq!(ids(place().eq(&at(5, 500_000_000))).await, [2]);
        assert_eq!(ids(place().eq(at(5, 500_000_999))).await, [2], "truncated");
        assert_eq!(ids(place().gt(at(5, 0))).await, [2, 3]);
        assert_eq!(ids(place().lt(at(6, 0))).await, [1, 2]);
        assert_eq!(ids(place().in_([Some(at(5, 0)), None])).await, [1, 4]);
    }
    // In another time zone, the text has another offset. The column is compared by time.
    let kolkata = client_in("Asia/Kolkata").await;
    assert!(ids(&kolkata, "v_moments", field("at").eq(at(5, 0))).await.is_empty());
    assert_eq!(ids(&kolkata, "v_moments", Field::column("at").eq(at(5, 0))).await, [1]);

    for time in [
        UNIX_EPOCH - Duration::from_secs(62_135_596_801),
        UNIX_EPOCH + Duration::from_secs(253_402_300_800),
    ] {
        let error = config_error(&utc, field("at").gt(time)).await;
        assert!(error.contains("years 1 to 9999"), "{error}");
    }
}

/// Within one second, the collation decides.
#[tokio::test]
async fn fractions_of_a_second_are_ordered_as_documented() {
    let client = client_in("UTC").await;
    let later = "to_jsonb('2026-01-31T12:30:05.5+00:00' > '2026-01-31T12:30:05+00:00' collate";
    for (collation, expected) in [("C", true), ("und-x-icu", false)] {
        let query = client.query::<Value>("v_one");
        let found = scalar(&client, query, &format!("{later} \"{collation}\")")).await;
        assert_eq!(found, json!(expected), "{collation}");
    }
}

#[cfg(all(feature = "chrono", feature = "time"))]
#[tokio::test]
async fn dates_of_chrono_and_time_equal_to_jsonb_of_the_same_date() {
    use chrono::{DateTime, FixedOffset, Utc};
    use time::{OffsetDateTime, UtcOffset};

    let utc = client_in("UTC").await;
    let times = moments();
    let chronos: Vec<DateTime<Utc>> = times.iter().map(|time| (*time).into()).collect();
    let texts = async |cast: &str, client: &FraiseClient| {
        let query = client.query::<Vec<String>>("v_one").bind(times.clone());
        let expression = format!("to_jsonb($1::timestamptz[]::{cast}[])");
        query.select_projection(expression).fetch_one().await.unwrap()
    };
    let offset_times: Vec<OffsetDateTime> = times.iter().map(|time| (*time).into()).collect();
    let check = |expected: &[String], value: &dyn Fn(usize) -> Operand| {
        for (i, expected) in expected.iter().enumerate() {
            assert_eq!(sent(&utc, value(i)), *expected, "{:?}", times[i]);
        }
    };

    let expected = texts("timestamptz", &utc).await;
    check(&expected, &|i| chronos[i].into());
    check(&expected, &|i| offset_times[i].into());
    let expected = texts("timestamp", &utc).await;
    check(&expected, &|i| chronos[i].naive_utc().into());
    let primitive = |i: usize| {
        let at: OffsetDateTime = offset_times[i];
        time::PrimitiveDateTime::new(at.date(), at.time())
    };
    check(&expected, &|i| primitive(i).into());
    let expected = texts("date", &utc).await;
    check(&expected, &|i| chronos[i].date_naive().into());
    check(&expected, &|i| offset_times[i].date().into());
    let expected = texts("time", &utc).await;
    check(&expected, &|i| chronos[i].time().into());
    check(&expected, &|i| offset_times[i].time().into());

    // Other offsets, as in a session with that time zone. In the notation of POSIX, west is +.
    for (zone, seconds) in [("<x>-05:30", 19_800), ("<x>+03:30", -12_600)] {
        let there = client_in(zone).await;
        let expected = texts("timestamptz", &there).await;
        let inner = 1..times.len() - 4; // the others leave the years 1 to 9999
        let chrono_offset = FixedOffset::east_opt(seconds).unwrap();
        let offset = UtcOffset::from_whole_seconds(seconds).unwrap();
        for i in inner {
            assert_eq!(sent(&there, chronos[i].with_timezone(&chrono_offset)), expected[i]);
            assert_eq!(sent(&there, offset_times[i].to_offset(offset)), expected[i]);
        }
    }

    // Before 1854, India had its local mean time.
    let india = client_in("Asia/Kolkata").await;
    let expected = texts("timestamptz", &india).await;
    let mean_time = FixedOffset::east_opt(21_208).unwrap();
    assert!(expected[99].ends_with("+05:53:28"), "{}", expected[99]);
    assert_eq!(sent(&india, chronos[99].with_timezone(&mean_time)), expected[99]);

    let leap = chrono::NaiveTime::from_hms_nano_opt(23, 59, 59, 1_500_000_000).unwrap();
    assert_eq!(sent(&utc, leap), "23:59:60.5");
    let error = config_error(&utc, field("a").eq(chrono::NaiveDate::MIN)).await;
    assert!(error.contains("years 1 to 9999"), "{error}");
}

/// Digits after the microsecond are dropped, as in filters. The server would round them.
#[cfg(all(feature = "chrono", feature = "time"))]
#[tokio::test]
async fn bound_dates_of_chrono_and_time_are_truncated_to_the_microsecond() {
    use chrono::{DateTime, FixedOffset, NaiveTime, Utc};
    use time::OffsetDateTime;

    sql(r#"create table tv_micros (id int, at timestamptz, data jsonb);
           insert into tv_micros values (1, '2026-01-31 12:30:05.123456+00', '{}')"#)
    .await;
    let utc = client_in("UTC").await;
    let echo = async |cast: &str, query: QueryBuilder<Value>| {
        scalar(&utc, query, &format!("to_jsonb($1::{cast}::text)")).await
    };
    let query = || utc.query::<Value>("v_one");
    let noon = UNIX_EPOCH + Duration::new(1_769_862_605, 123_456_789);
    let midnight = UNIX_EPOCH + Duration::new(1_769_903_999, 999_999_700);
    for (at, date, time) in
        [(noon, "2026-01-31", "12:30:05.123456"), (midnight, "2026-01-31", "23:59:59.999999")]
    {
        let (chrono, offset): (DateTime<Utc>, OffsetDateTime) = (at.into(), at.into());
        let primitive = time::PrimitiveDateTime::new(offset.date(), offset.time());
        let (timestamp, timestamptz) = (format!("{date} {time}"), format!("{date} {time}+00"));
        assert_eq!(echo("timestamptz", query().bind(at)).await, timestamptz);
        assert_eq!(echo("timestamptz", query().bind(chrono)).await, timestamptz);
        assert_eq!(echo("timestamptz", query().bind(offset)).await, timestamptz);
        assert_eq!(echo("timestamp", query().bind(chrono.naive_utc())).await, timestamp);
        assert_eq!(echo("timestamp", query().bind(primitive)).await, timestamp);
        assert_eq!(echo("time", query().bind(chrono.time())).await, time);
        assert_eq!(echo("time", query().bind(offset.time())).await, time);
    }
    let (chrono, offset): (DateTime<Utc>, OffsetDateTime) = (noon.into(), noon.into());
    let stored = || utc.query::<Value>("tv_micros").where_sql("at = $1");
    assert_eq!(stored().bind(chrono).count().await.unwrap(), 1);
    assert_eq!(stored().bind(offset).count().await.unwrap(), 1);
    assert_eq!(ids(&utc, "tv_micros", Field::column("at").eq(chrono)).await, [1]);

    // A leap second is the second 60, and an offset can have seconds.
    let leap = NaiveTime::from_hms_nano_opt(23, 59, 59, 1_999_999_999).unwrap();
    let sent = |query: QueryBuilder<Value>| query.where_sql("$1").to_sql().unwrap().1[0].clone();
    assert_eq!(sent(query().bind(leap)).unwrap(), "23:59:60.999999");
    let mean_time = FixedOffset::east_opt(21_208).unwrap();
    let bound = echo("timestamptz", query().bind(chrono.with_timezone(&mean_time))).await;
    assert_eq!(bound, "2026-01-31 12:30:05.123456+00");
}

/// Includes addresses that the server and Rust could abbreviate differently.
#[tokio::test]
async fn address_operand_equals_to_jsonb_of_the_same_address() {
    let client = client().await;
    let mut addresses: Vec<IpAddr> = ["0.0.0.0", "255.255.255.255", "::", "::1", "::ffff:1.2.3.4"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    // Every pattern of zero groups, except those of an embedded IPv4 address.
    for pattern in 1..255_u16 {
        let groups: [u16; 8] =
            std::array::from_fn(|i| if pattern >> i & 1 == 1 { 0x0db8 } else { 0 });
        let address = Ipv6Addr::from(groups);
        if address.segments()[..6] != [0; 6] {
            addresses.push(address.into());
        }
    }
    let texts: Vec<_> = addresses.iter().map(|address| sent(&client, *address)).collect();
    let query = client.query::<Value>("v_one").bind(addresses);
    assert_eq!(scalar(&client, query, "to_jsonb($1::inet[])").await, json!(texts));
}

#[test]
fn operators_of_filters_are_their_methods() {
    let (a, b, c) = (|| field("a").eq(1), || field("b").eq(2), || field("c").eq(3));
    let sql = |filter: Filter| format!("{filter:?}");
    assert_eq!(sql(!a()), sql(a().not()));
    assert_eq!(sql(a() & b()), sql(a().and(b())));
    assert_eq!(sql(a() | b()), sql(a().or(b())));
    assert_eq!(sql(a() | b() & !c()), sql(a().or(b().and(c().not()))));
}

#[tokio::test]
async fn order_by_field_accepts_a_path_that_is_never_sql() {
    sql(r#"create table tv_path_order (data jsonb);
           insert into tv_path_order values ('{"a": {"b": 2}}'), ('{"a": {"b": 1}}')"#)
    .await;
    let client = client().await;
    let numbers = async |path: &str| {
        let query = client.query::<u64>("tv_path_order").order_by_field(path);
        query.select_projection("data->'a'->'b'").fetch_all().await.unwrap()
    };
    assert_eq!(numbers("a.b").await, [1, 2]);
    let query = client.query::<Value>("tv_path_order");
    let (sql, _) = query.order_by_field(String::from("a' desc; --")).to_sql().unwrap();
    assert!(sql.ends_with(r#"ORDER BY (("data"->'a'' desc; --')::jsonb)"#), "{sql}");
}

/// Copies have the conditions, values and predicates of the query, and can run at the same time.
#[tokio::test]
async fn cloned_query_runs_like_the_original() {
    let client = client().await;
    let query = client.query::<u64>("v_short").where_sql("(data#>>'{}')::int > $1").bind(100);
    assert_eq!(query.clone().count().await.unwrap(), 200);
    // The predicate is `Send`, but not `Sync`.
    let calls = std::cell::Cell::new(0);
    let query = query.where_rust(move |_| {
        calls.set(calls.get() + 1);
        calls.get() % 2 == 0
    });
    // Each sees a part of the calls, together every second one is accepted.
    let both = futures_util::try_join!(query.clone().fetch_all(), query.clone().fetch_all());
    let (a, b) = both.unwrap();
    assert_eq!((a.len() + b.len(), query.count().await.unwrap()), (200, 100));
}

/// A panic in a shared predicate does not affect copies of the query.
#[tokio::test]
async fn panic_in_a_predicate_of_a_cloned_query_keeps_the_original_usable() {
    let client = client().await;
    let panics = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&panics);
    let query = client.query::<u64>("v_short").where_typed(move |_| {
        assert!(!flag.load(std::sync::atomic::Ordering::Relaxed));
        true
    });
    let copy = query.clone();
    assert!(tokio::spawn(async move { copy.count().await }).await.unwrap_err().is_panic());
    panics.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(query.clone().count().await.unwrap(), 300);
}

/// A user's own type converts as in 1.0, also by reference and in an `Option`.
#[test]
fn types_of_users_can_be_operands() {
    struct OrderId(i64);
    impl From<OrderId> for Operand {
        fn from(id: OrderId) -> Self {
            id.0.into()
        }
    }
    impl From<&OrderId> for Operand {
        fn from(id: &OrderId) -> Self {
            id.0.into()
        }
    }
    let id = OrderId(7);
    let sql = |filter: Filter| format!("{filter:?}");
    assert_eq!(sql(field("id").eq(&id)), sql(field("id").eq(7)));
    assert_eq!(sql(field("id").in_([&id])), sql(field("id").in_([7])));
    assert_eq!(sql(field("id").eq(Some(id))), sql(field("id").eq(7)));
}
