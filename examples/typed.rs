//! Rows as your own types, complete or in part, copied or borrowed: `cargo run --example typed`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use chrono::{DateTime, NaiveDate, Utc};
use fraiseql_wire::{FraiseClient, RawJson};
use futures_util::StreamExt;
use serde::Deserialize;

mod support;

/// Fields of the document that are not here are skipped.
#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    /// Postgres writes a `timestamptz` in JSON as in RFC 3339.
    placed_at: DateTime<Utc>,
    /// A `date`. `None` if it is null or missing.
    delivered_on: Option<NaiveDate>,
    customer: Customer,
    payment: Payment,
    lines: Vec<Line>,
    /// Empty if the field is missing; null would be an error.
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Customer {
    name: String,
    address: Address,
}

#[derive(Debug, Deserialize)]
struct Address {
    city: String,
}

/// `{"type": "card", "last_digits": "4242"}`, or another variant with its own fields.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Payment {
    Card {
        last_digits: String,
    },
    Transfer {
        bank: String,
        received: bool,
    },
    Cash,
    /// For variants that are added later.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Deserialize)]
struct Line {
    sku: String,
    quantity: u32,
    price: f64,
}

const DATA: &str = r#"
    create view v_order as select data::jsonb from (values
        ('{"id": 1, "placed_at": "2026-01-05T09:30:00.25+01:00", "delivered_on": "2026-01-07",
           "customer": {"name": "Ada", "address": {"city": "Lyon", "zip": "69001"}},
           "payment": {"type": "card", "last_digits": "4242"}, "tags": ["gift"],
           "lines": [{"sku": "A-1", "quantity": 2, "price": 9.5}, {"sku": "B-7", "quantity": 1, "price": 4}]}'),
        ('{"id": 2, "placed_at": "2026-01-06T18:00:00+00:00", "delivered_on": null,
           "customer": {"name": "Dmitri \"Dima\" Quist", "address": {"city": "Kraków"}},
           "payment": {"type": "transfer", "bank": "Erste", "received": false},
           "lines": [{"sku": "A-1", "quantity": 1, "price": 9.5}]}'),
        ('{"id": 3, "placed_at": "2026-01-07T07:15:00+00:00",
           "customer": {"name": "Ben", "address": {"city": "Oslo"}},
           "payment": {"type": "cash"},
           "lines": [{"sku": "B-7", "quantity": 1, "price": 4}, {"sku": "C-3", "quantity": 1, "price": "n/a"}]}'),
        ('{"id": 4, "placed_at": "2026-01-08T12:00:00+00:00", "delivered_on": "2026-01-08",
           "customer": {"name": "Ève", "address": {"city": "Gent"}},
           "payment": {"type": "voucher", "code": "XMAS"},
           "lines": [{"sku": "C-3", "quantity": 3, "price": 12}]}')) as v (data);
"#;

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, _: tokio_postgres::Client) -> support::Result<()> {
    let client = FraiseClient::connect(&url).await?;
    whole_documents(&client).await?;
    some_fields(&client).await?;
    borrowed(&client).await?;
    raw(&client).await?;
    Ok(())
}

async fn whole_documents(client: &FraiseClient) -> fraiseql_wire::Result<()> {
    println!("Whole documents:");
    let mut orders = client.query::<Order>("v_order").order_by("data->'id'").execute().await?;
    while let Some(order) = orders.next().await {
        let order = match order {
            Ok(order) => order,
            // The error has the row and the path, never the value. The stream continues.
            Err(e) if e.is_row_error() => {
                println!("  {e}");
                continue;
            }
            Err(e) => return Err(e),
        };
        let total: f64 = order.lines.iter().map(|l| f64::from(l.quantity) * l.price).sum();
        let skus: Vec<_> = order.lines.iter().map(|l| l.sku.as_str()).collect();
        let paid = match &order.payment {
            Payment::Card { last_digits } => format!("by card ...{last_digits}"),
            Payment::Transfer { bank, received: true } => format!("by transfer from {bank}"),
            Payment::Transfer { bank, received: false } => {
                format!("by transfer, not yet received from {bank}")
            }
            Payment::Cash => "in cash".into(),
            Payment::Unknown => "in another way".into(),
        };
        let delivered =
            order.delivered_on.map_or("no".into(), |day| day.format("%d %B").to_string());
        println!(
            "  #{} of {}, {} in {}: {total:.2} for {skus:?}, paid {paid}, delivered: {delivered}, {:?}",
            order.id, order.placed_at, order.customer.name, order.customer.address.city, order.tags
        );
    }
    let stats = orders.stats();
    println!(
        "  {} rows, {} that cannot be decoded",
        stats.total_rows_yielded, stats.total_rows_failed
    );
    Ok(())
}

/// The server sends the selected fields only.
async fn some_fields(client: &FraiseClient) -> fraiseql_wire::Result<()> {
    #[derive(Debug, Deserialize)]
    struct Destination {
        id: u64,
        customer: Customer,
        // A missing field is sent as null.
        delivered_on: Option<NaiveDate>,
    }
    println!("Some fields:");
    let query = client
        .query::<Destination>("v_order")
        .select_fields(["id", "customer.name", "customer.address.city", "delivered_on"])
        .order_by("data->'id'");
    for Destination { id, customer, delivered_on } in query.fetch_all().await? {
        println!("  #{id} to {}: {delivered_on:?}", customer.address.city);
    }
    Ok(())
}

/// A chunk of rows, decoded into types that borrow from it.
async fn borrowed(client: &FraiseClient) -> fraiseql_wire::Result<()> {
    #[derive(Debug, Deserialize)]
    struct Row<'a> {
        #[serde(borrow)]
        customer: Name<'a>,
    }
    #[derive(Debug, Deserialize)]
    struct Name<'a> {
        // `&str` cannot represent a JSON string with an escape such as \"; `Cow` copies it.
        #[serde(borrow)]
        name: std::borrow::Cow<'a, str>,
    }
    println!("Borrowed:");
    let mut orders = client.query::<RawJson>("v_order").order_by("data->'id'").execute().await?;
    while let Some(chunk) = orders.next_chunk().await {
        for row in chunk?.decode::<Row<'_>>() {
            let Name { name } = row?.customer;
            let how = match &name {
                std::borrow::Cow::Borrowed(_) => "borrowed",
                std::borrow::Cow::Owned(_) => "copied",
            };
            println!("  {name} ({how})");
        }
    }
    Ok(())
}

/// The bytes as the server sent them, to forward them or to decode some of them.
async fn raw(client: &FraiseClient) -> fraiseql_wire::Result<()> {
    #[derive(Deserialize)]
    struct Id {
        id: u64,
    }
    println!("Raw:");
    let mut orders = client.query::<RawJson>("v_order").order_by("data->'id'").execute().await?;
    while let Some(order) = orders.next().await {
        let order: RawJson = order?;
        let Id { id } = order.decode()?;
        println!("  #{id} has {} bytes", order.as_bytes().len());
    }
    Ok(())
}
