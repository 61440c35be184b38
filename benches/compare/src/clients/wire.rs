//! This crate.

use fraiseql_wire::{FraiseClient, FromJsonRow, RawJson};
use futures_util::StreamExt;
use serde_json::Value;

use super::{Tally, Task, Weigh};
use crate::data::{Customer, Order, Shape};

pub async fn run(task: &Task, connected: &mut (dyn FnMut() -> Tally + Send)) -> Tally {
    if task.mode == "typed, metrics" {
        metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    }
    let client = FraiseClient::connect(&task.url()).await.unwrap();
    let mut tally = connected();
    match (task.mode.as_str(), task.shape) {
        ("raw", _) => {
            drain(&client, task, &mut tally, |row: &RawJson| row.as_bytes().len() as u64).await
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
