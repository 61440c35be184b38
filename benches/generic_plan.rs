//! Measures a prepared statement whose best plan depends on the value of a parameter.
//!
//! One status has a million rows, another has ten. A query returns the first rows by another
//! column. For the rare status the index on the status is best, for the common one the index on the
//! order. After five executions of a prepared statement the server may keep one plan for both.
//! Prints medians in microseconds. Run it by `cargo bench --bench generic_plan`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use fraiseql_wire::{ConnectionConfig, FraiseClient, RawJson};

const ROUNDS: usize = 30;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        support::sql(
            "create table t_skewed as
             select i as id, case when i % 100000 = 0 then 'rare' else 'common' end as status,
                 jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
             from generate_series(1, 1000000) i;
             create index on t_skewed (id);
             create index on t_skewed (status);
             analyze t_skewed",
        )
        .await;
        println!("{:<44}{:>10}{:>10}", "a page of 20 rows, in microseconds", "common", "rare");
        for (name, options, persistent) in [
            ("unnamed, persistent(false)", "", false),
            ("prepared", "", true),
            ("prepared, plan_cache_mode=force_custom_plan", "force_custom_plan", true),
            ("prepared, plan_cache_mode=force_generic_plan", "force_generic_plan", true),
        ] {
            let config = support::cluster().url().parse::<ConnectionConfig>().unwrap();
            let mut config = config.to_builder();
            if !options.is_empty() {
                config = config.param("plan_cache_mode", options);
            }
            let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
            let common = median(&client, "common", persistent).await;
            let rare = median(&client, "rare", persistent).await;
            println!("{name:<44}{:>10}{:>10}", common.as_micros(), rare.as_micros());
        }
    });
}

async fn median(client: &FraiseClient, status: &str, persistent: bool) -> Duration {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let query = client.query::<RawJson>("t_skewed").where_sql("status = $1").bind(status);
        query.order_by("id").limit(20).persistent(persistent).fetch_all().await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    times[ROUNDS / 2]
}
