//! The shortest complete program: `DATABASE_URL=... cargo run --example basic`.
//!
//! It reads a view `v_order` with one `json` or `jsonb` column named `data`, for example
//! `create view v_order as select to_jsonb(o) as data from orders o`.

use fraiseql_wire::FraiseClient;
use futures_util::TryStreamExt;
use serde::Deserialize;

#[derive(Deserialize)]
struct Order {
    id: u64,
    total: f64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = FraiseClient::connect(&std::env::var("DATABASE_URL")?).await?;
    let paid = client.query::<Order>("v_order").where_sql("data->>'status' = $1").bind("paid");
    let mut orders = paid.execute().await?;
    while let Some(order) = orders.try_next().await? {
        println!("order {}: {:.2}", order.id, order.total);
    }
    Ok(())
}
