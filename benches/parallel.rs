//! Measures the gain of several connections, and the cost of `resume_by`.
//!
//! The server runs on the same machine, so the results depend on its number of processors. Prints
//! medians as ratios to the first of their table. Run it by `cargo bench --bench parallel`.

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "support/timing.rs"]
mod timing;

use fraiseql_wire::{FraiseClient, FromJsonRow, QueryBuilder, RawJson, field};
use serde::Deserialize;
use timing::{drain, median};

const ROWS: usize = 200_000;
const ROUNDS: usize = 7;

#[derive(Deserialize)]
struct Document {
    #[allow(dead_code)]
    id: u64,
    #[allow(dead_code)]
    tags: Vec<String>,
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        support::sql(&format!(
            "create table t_bench as
             select jsonb_build_object('id', i, 'name', md5(i::text), 'total', i * 1.25,
                 'tags', jsonb_build_array('a', 'b', 'c', md5((i + 1)::text)),
                 'lines', (select jsonb_agg(jsonb_build_object('sku', md5((i + j)::text), 'price', j * 3.5))
                     from generate_series(1, 6) j)) as data
             from generate_series(1, {ROWS}) i;
             create index on t_bench ((data->'id'));
             create view v_bench as select data from t_bench;
             analyze t_bench"
        ))
        .await;
        // A separate call: several statements of one call are one transaction, in which it is not
        // allowed.
        support::sql("vacuum t_bench").await;
        let client = support::client().await;
        println!("{ROWS} documents of jsonb, about 600 bytes each");
        parallel::<RawJson>("not decoded", &client).await;
        parallel::<Document>("typed", &client).await;
        resumable(&client).await;
    });
}

async fn parallel<T: FromJsonRow + 'static>(label: &str, client: &FraiseClient) {
    let table = |n| client.query::<T>("t_bench").parallel(n);
    let view = |n| client.query::<T>("v_bench").parallel(n).partition_by("data->'id'");
    let ways: [(&str, &dyn Fn() -> QueryBuilder<T>); 5] = [
        ("parallel(1)", &|| table(1)),
        ("parallel(2)", &|| table(2)),
        ("parallel(4)", &|| table(4)),
        ("parallel(2), partition_by", &|| view(2)),
        ("parallel(4), partition_by", &|| view(4)),
    ];
    compare(label, &ways).await;
}

async fn resumable(client: &FraiseClient) {
    let sorted = || client.query::<Document>("t_bench").order_by_field(field("id").asc());
    let resumed = || client.query::<Document>("t_bench").resume_by("id");
    compare("typed, sorted", &[("order_by_field", &sorted), ("resume_by", &resumed)]).await;
}

/// Takes turns, so that a slow moment of the machine affects all variants.
async fn compare<T: FromJsonRow + 'static>(
    label: &str,
    ways: &[(&str, &dyn Fn() -> QueryBuilder<T>)],
) {
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for ((_, query), times) in ways.iter().zip(&mut times) {
            times.push(drain(query(), ROWS).await);
        }
    }
    let medians: Vec<_> = times.into_iter().map(median).collect();
    for ((name, _), time) in ways.iter().zip(&medians) {
        let ratio = time.as_secs_f64() / medians[0].as_secs_f64();
        println!("| {label}, {name} | {} ms | {ratio:.2} |", time.as_millis());
    }
}
