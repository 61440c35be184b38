//! One query filtered by SQL, typed filters and Rust predicates: `cargo run --example filters`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use fraiseql_wire::{FraiseClient, QueryBuilder, field};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;

mod support;

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    placed_at: String,
    total: f64,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    quantity: u32,
}

const DATA: &str = "
    create table tv_order (data jsonb not null);
    insert into tv_order
    select jsonb_build_object(
        'id', i,
        'placed_at', timestamptz '2026-01-01 08:00+00' + i * interval '10 minutes',
        'status', (array['open', 'paid', 'shipped', 'returned'])[1 + i % 4],
        'country', (array['FR', 'NO', 'PT', 'PL', 'BE'])[1 + i % 5],
        -- Some totals are text: a filter on numbers does not match these.
        'total', case when i % 1000 = 1 then to_jsonb('unknown'::text) else to_jsonb(i % 700) end,
        'tags', to_jsonb((array['gift', 'express', 'b2b'])[1 : i / 4 % 4]),
        'lines', (select jsonb_agg(jsonb_build_object('sku', n, 'quantity', 1 + (i + n) % 3))
                  from generate_series(1, 1 + i % 5) n))
    from generate_series(1, 20000) i;
    create index on tv_order ((data->>'status'));
    analyze tv_order;
    create view v_order as select data from tv_order;
";

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, _: tokio_postgres::Client) -> support::Result<()> {
    let client = FraiseClient::connect(&url).await?;

    let (sql, parameters) = paid_orders(&client, "paid", 300).to_sql()?;
    println!("SQL sent    {sql}");
    println!("parameters  {:?}", parameters.iter().flatten().collect::<Vec<_>>());

    let mut orders = paid_orders(&client, "paid", 300).execute().await?;
    let mut shown = 0;
    while let Some(order) = orders.next().await {
        let Order { id, placed_at, total, .. } = order?;
        if shown < 3 {
            println!("            #{id} of {placed_at}: {total}");
            shown += 1;
        }
    }

    // Without Rust predicates, the server counts and sends no rows.
    let all = client.query::<Order>("v_order").count().await?;
    let paid = client.query::<Order>("v_order").where_sql("data->>'status' = $1").bind("paid");
    let stats = orders.stats();
    println!("rows        {all}");
    println!("where_sql   leaves {}", paid.count().await?);
    println!("filter      leaves {}, which the server sends", stats.total_rows_received);
    println!("in Rust     {} of these are rejected", stats.total_rows_filtered);
    println!("result      {} orders", stats.total_rows_yielded);

    // The server's plan; `true` also runs the query and returns the time of each step.
    let plan = paid_orders(&client, "paid", 300).explain(false).await?;
    println!("plan        {}", steps(&plan[0]["Plan"]).join(" < "));
    Ok(())
}

/// `status` and `min_total` could come from a request.
fn paid_orders(client: &FraiseClient, status: &str, min_total: u32) -> QueryBuilder<Order> {
    client
        .query::<Order>("v_order")
        // The server should check what it can. Raw SQL must be yours, never the request's; its
        // values are bound.
        .where_sql("data->>'status' = $1")
        .bind(status)
        // A typed filter: any value is safe, and a document whose `total` is text does not match.
        .filter(field("total").gte(min_total).and(field("country").in_(["FR", "NO", "PL"])))
        // Conditions that are easier in Rust, on the document ...
        .where_rust(|order| order["tags"].as_array().is_some_and(|tags| tags.len() > 1))
        // ... or on the decoded row.
        .where_typed(|order| order.lines.iter().map(|l| l.quantity).sum::<u32>() > 4)
        .order_by_field(field("total").desc())
        .order_by("data->>'placed_at'")
}

/// The steps of a plan, from the last one.
fn steps(plan: &Value) -> Vec<String> {
    let this = plan["Node Type"].as_str().unwrap_or("?").to_owned();
    let inner = plan["Plans"].as_array().into_iter().flatten().flat_map(steps);
    std::iter::once(this).chain(inner).collect()
}
