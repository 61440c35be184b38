//! Typed rows, pause and cancel by drop, on 200,000 orders: `cargo run --release --example
//! quickstart`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private Postgres in a
//! temporary folder. Either is removed at the end, also on Ctrl-C.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use fraiseql_wire::{FraiseClient, QueryStream, StreamStats};
use futures_util::StreamExt;
use serde::Deserialize;

#[path = "support/cluster.rs"]
mod cluster;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The fields that this program needs; others are skipped.
#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    placed_at: String,
    customer: Customer,
    lines: Vec<Line>,
    total: f64,
}

#[derive(Debug, Deserialize)]
struct Customer {
    name: String,
    city: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    quantity: u32,
    price: f64,
}

/// 200,000 nested documents, the same every time, and a view over them.
const DATA: &str = "
    create table tv_order (id bigint primary key, data jsonb not null);

    insert into tv_order
    select i, jsonb_build_object(
        'id', i,
        'placed_at', timestamptz '2026-01-01 08:00+00' + i * interval '90 seconds',
        'status', (array['open', 'paid', 'shipped', 'returned'])[1 + i % 4],
        'customer', jsonb_build_object(
            'id', i % 5000,
            'name', (array['Ada', 'Ben', 'Chloé', 'Dmitri', 'Ève'])[1 + i % 5] || ' '
                 || (array['Ng', 'Olsen', 'Pérez', 'Quist', 'Rossi', 'Şahin'])[1 + i % 6],
            'email', 'customer' || i % 5000 || '@example.com',
            'city', (array['Lyon', 'Oslo', 'Porto', 'Kraków', 'Gent', 'Turku', 'Graz'])[1 + i % 7]),
        'lines', items.lines,
        'total', items.total,
        'tags', to_jsonb((array['gift', 'express', 'b2b', 'first'])[1 : i / 4 % 4]),
        'note', case when i % 10 = 0 then 'leave it with the neighbor' end)
    from generate_series(1, 200000) i
    cross join lateral (
        select jsonb_agg(jsonb_build_object(
                   'sku', 'SKU-' || (i * 7 + n) % 9000, 'quantity', q, 'price', p)) as lines,
               sum(q * p) as total
        from (select n, 1 + (i + n) % 3 as q, round((5 + (i * 13 + n * 29) % 20000) / 100.0, 2) as p
              from generate_series(1, 1 + i % 5) n) as line) as items;

    create view v_order as select data from tv_order;
    create view v_order_pairs as select a.data from tv_order a, tv_order b;
";

#[tokio::main]
async fn main() -> Result<()> {
    println!("fraiseql-wire quickstart\n");
    let job = async {
        match std::env::var("DATABASE_URL") {
            Ok(url) => on_your_server(&url).await,
            Err(_) => on_a_private_server().await,
        }
    };
    job.await
}

/// Runs in a new schema, which is dropped at the end.
async fn on_your_server(url: &str) -> Result<()> {
    let schema = format!("fraiseql_wire_quickstart_{}", std::process::id());
    print("server", "DATABASE_URL");
    print("schema", format_args!("{schema} (dropped at the end)"));
    let result = until_ctrl_c(run(url, &schema)).await;
    let admin = connect_admin(url).await?;
    admin.batch_execute(&format!("drop schema if exists {schema} cascade")).await?;
    finish(result, "the schema is dropped")
}

/// Runs on a new server, which is removed at the end.
async fn on_a_private_server() -> Result<()> {
    let started = Instant::now();
    let server = cluster::Cluster::start(cluster::REQUIRE_PASSWORD)?;
    let folder = server.folder().display().to_string();
    print("server", format_args!("private, in {folder}, started in {}", ms(started.elapsed())));
    let result = until_ctrl_c(run(&server.url(), "quickstart")).await;
    server.stop();
    finish(result, "the server is stopped and its folder removed")
}

async fn run(url: &str, schema: &str) -> Result<()> {
    let admin = connect_admin(url).await?;
    let version: String = admin.query_one("show server_version", &[]).await?.get(0);
    print("version", format_args!("PostgreSQL {version}"));
    print("data", "creating 200,000 orders, which takes some seconds ...");
    let started = Instant::now();
    admin.batch_execute(&format!("create schema {schema}; set search_path = {schema}")).await?;
    admin.batch_execute(DATA).await?;
    admin.batch_execute("analyze tv_order").await?;
    print("", format_args!("created in {}", ms(started.elapsed())));

    // A client has one connection and reuses it.
    let client = FraiseClient::connect(url).await?;
    filter(&client, schema).await?;
    pause(&client, schema).await?;
    drop_early(&client, schema, &admin).await
}

/// Reads typed rows, filtered and sorted by the server and by a predicate in Rust.
async fn filter(client: &FraiseClient, schema: &str) -> Result<()> {
    heading("Typed rows, filtered by the server and in Rust");
    let query = client
        .query::<Order>(&format!("{schema}.v_order"))
        .where_sql("data->>'status' = $1 and (data->>'total')::numeric >= $2")
        .bind("paid")
        .bind(300)
        .where_rust(|order| order["tags"].as_array().is_some_and(|t| t.contains(&"gift".into())))
        .order_by("data->>'placed_at'");
    let (sql, parameters) = query.to_sql()?;
    print("SQL sent", sql);
    print("parameters", format_args!("{:?}", parameters.iter().flatten().collect::<Vec<_>>()));

    let mut orders = query.execute().await?;
    let (mut revenue, mut items) = (0.0, 0);
    while let Some(order) = orders.next().await {
        let order = order?;
        if items == 0 {
            let Order { id, placed_at, customer: Customer { name, city }, total, .. } = &order;
            print("first row", format_args!("#{id} of {placed_at}, {name} in {city}: {total:.2}"));
        }
        revenue += order.lines.iter().map(|l| f64::from(l.quantity) * l.price).sum::<f64>();
        items += order.lines.len();
    }
    print("result", format_args!("{items} items for {revenue:.2}"));
    summary(&orders.stats());
    Ok(())
}

/// Pauses a stream: nothing is read, and the server waits.
async fn pause(client: &FraiseClient, schema: &str) -> Result<()> {
    heading("Pause and resume");
    let mut orders = client.query::<Order>(&format!("{schema}.v_order")).execute().await?;
    read(&mut orders, 1000).await?;
    orders.pause().await?;
    let before = orders.stats();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = orders.stats();
    print("paused", format_args!("after {} rows", count(after.total_rows_yielded)));
    print(
        "meanwhile",
        format_args!(
            "{} rows received in {}; {} buffered in {} of memory",
            after.total_rows_received - before.total_rows_received,
            ms(after.paused_for),
            count(after.items_buffered),
            kib(after.estimated_memory),
        ),
    );
    orders.resume().await?;
    read(&mut orders, u64::MAX).await?;
    print("resumed", format_args!("{} rows in total", count(orders.stats().total_rows_yielded)));
    summary(&orders.stats());
    Ok(())
}

/// Drops a stream, which cancels its query on the server.
async fn drop_early(client: &FraiseClient, schema: &str, admin: &Admin) -> Result<()> {
    heading("Drop a stream of 40,000,000,000 rows");
    let pid = client.backend_pid().ok_or("the client has no connection")?;
    let mut orders = client.query::<Order>(&format!("{schema}.v_order_pairs")).execute().await?;
    read(&mut orders, 10).await?;
    print("before", format_args!("backend {pid} is {}", backend_state(admin, pid).await?));
    let dropped = Instant::now();
    drop(orders);
    let state = loop {
        let state = backend_state(admin, pid).await?;
        if state != "active" {
            break state;
        }
        if dropped.elapsed() > Duration::from_secs(30) {
            return Err("the query still runs 30 s after its stream was dropped".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    print("after", format_args!("backend {pid} is {state}, {} later", ms(dropped.elapsed())));
    let mut again = client.query::<Order>(&format!("{schema}.v_order")).limit(1).execute().await?;
    read(&mut again, 1).await?;
    let same = client.backend_pid() == Some(pid);
    print("and then", format_args!("the next query runs; on the same backend: {same}"));
    Ok(())
}

/// Reads at most `rows` rows.
async fn read(orders: &mut QueryStream<Order>, rows: u64) -> Result<()> {
    for _ in 0..rows {
        match orders.next().await {
            Some(order) => drop(order?),
            None => break,
        }
    }
    Ok(())
}

type Admin = tokio_postgres::Client;

/// Another driver, to create tables and to look at the server's sessions.
async fn connect_admin(url: &str) -> Result<Admin> {
    let (admin, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(admin)
}

async fn backend_state(admin: &Admin, pid: u32) -> Result<String> {
    let pid = i32::try_from(pid)?;
    let state = "select coalesce(state, 'unknown') from pg_stat_activity where pid = $1";
    let row = admin.query_opt(state, &[&pid]).await?;
    Ok(row.map_or_else(|| "gone".to_owned(), |row| row.get(0)))
}

/// Runs the job until it ends or Ctrl-C is pressed.
async fn until_ctrl_c(job: impl Future<Output = Result<()>>) -> Option<Result<()>> {
    tokio::select! {
        result = job => Some(result),
        _ = tokio::signal::ctrl_c() => None,
    }
}

fn finish(result: Option<Result<()>>, cleaned: &str) -> Result<()> {
    match result {
        Some(Ok(())) => println!("\nDone; {cleaned}."),
        Some(Err(e)) => return Err(e),
        None => {
            println!("\nInterrupted; {cleaned}.");
            std::process::exit(130);
        }
    }
    Ok(())
}

fn summary(stats: &StreamStats) {
    let rows = stats.total_rows_received;
    print(
        "rows",
        format_args!("{} yielded of {} received", count(stats.total_rows_yielded), count(rows)),
    );
    if let Some(first) = stats.time_to_first_row {
        print("first row after", ms(first));
    }
    let reading = stats.elapsed.saturating_sub(stats.paused_for).as_secs_f64();
    print(
        "speed",
        format_args!("{} rows/s, {}", count((rows as f64 / reading) as u64), ms(stats.elapsed)),
    );
    print("peak memory", format_args!("{} used by the stream", kib(stats.peak_memory)));
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn print(label: &str, value: impl Display) {
    println!("  {label:<16} {value}");
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn kib(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

/// A number with thousands separators.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
