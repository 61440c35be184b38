//! This crate.

use fraiseql_wire::{ConnectionConfig, FraiseClient, FromJsonRow, RawJson};
use futures_util::StreamExt;
use serde_json::Value;

use super::{Tally, Task, Weigh};
use crate::data::{Customer, Order, Shape};

pub async fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    if task.mode == "typed, metrics" {
        metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    }
    if let Some(role) = task.mode.strip_prefix("connect as ") {
        return connect(task, role, connected).await;
    }
    let client = FraiseClient::connect(&task.url()).await.unwrap();
    connected();
    let mut tally = Tally::default();
    for _ in 0..task.repeat {
        tally.query();
        match (task.mode.as_str(), task.shape) {
            ("raw" | "raw, TLS", _) => {
                drain(&client, task, &mut tally, |row: &RawJson| row.as_bytes().len() as u64).await
            }
            (mode, _) if mode.starts_with("raw, chunks of ") => {
                let size = mode.rsplit(' ').next().unwrap().parse().unwrap();
                let query = client.query::<RawJson>(&task.table).chunk_size(size);
                let mut stream = query.execute().await.unwrap();
                while let Some(row) = stream.next().await {
                    tally.row(row.unwrap().as_bytes().len() as u64);
                }
            }
            ("chunk", _) => {
                let mut stream = client.query::<RawJson>(&task.table).execute().await.unwrap();
                while let Some(chunk) = stream.next_chunk().await {
                    chunk.unwrap().rows().for_each(|row| tally.row(row.len() as u64));
                }
            }
            ("typed" | "typed, metrics", Shape::Customer) => {
                drain(&client, task, &mut tally, Customer::weigh).await;
            }
            ("typed", Shape::Order { .. }) => drain(&client, task, &mut tally, Order::weigh).await,
            ("value", _) => drain(&client, task, &mut tally, Value::weigh).await,
            ("where_rust, typed", _) => {
                let query = client.query::<Customer>(&task.table);
                let query = query.where_rust(|document| document["active"].is_boolean());
                let mut stream = query.execute().await.unwrap();
                while let Some(row) = stream.next().await {
                    tally.row(row.unwrap().weigh());
                }
            }
            (other, _) => panic!("no mode {other:?}"),
        }
    }
    tally
}

/// Connects repeatedly, with the same configuration.
async fn connect(task: &Task, role: &str, connected: &mut (dyn FnMut() + Send)) -> Tally {
    let url = format!("{}&user={role}&password=secret", task.url());
    let config: ConnectionConfig = url.parse().unwrap();
    connected();
    let mut tally = Tally::default();
    for _ in 0..task.repeat {
        let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
        client.close().await.unwrap();
        tally.row(1);
    }
    tally
}

async fn drain<T: FromJsonRow + Send + 'static>(
    client: &FraiseClient,
    task: &Task,
    tally: &mut Tally,
    weigh: impl Fn(&T) -> u64,
) {
    let mut stream = client.query::<T>(&task.table).execute().await.unwrap();
    while let Some(row) = stream.next().await {
        tally.row(weigh(&row.unwrap()));
    }
}
