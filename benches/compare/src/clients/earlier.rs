//! The earlier release of this crate.

use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Tally, Task, Weigh};
use crate::data::{Customer, Order, Shape};

pub async fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    let url = format!("postgres://reader:@127.0.0.1:{}/postgres", task.port);
    let client = earlier::FraiseClient::connect(&url).await.unwrap();
    connected();
    let mut tally = Tally::default();
    // Its query consumes the client.
    assert_eq!(task.repeat, 1);
    tally.query();
    match (task.mode.as_str(), task.shape) {
        ("typed", Shape::Customer) => decoded::<Customer>(client, task, &mut tally).await,
        ("typed", Shape::Order { .. }) => decoded::<Order>(client, task, &mut tally).await,
        ("value", _) => decoded::<Value>(client, task, &mut tally).await,
        (other, _) => panic!("no mode {other:?}"),
    }
    tally
}

async fn decoded<T>(client: earlier::FraiseClient, task: &Task, tally: &mut Tally)
where
    T: DeserializeOwned + Weigh + Send + Unpin + 'static,
{
    let mut stream = client.query::<T>(&task.table).execute().await.unwrap();
    while let Some(row) = stream.next().await {
        tally.row(row.unwrap().weigh());
    }
}
