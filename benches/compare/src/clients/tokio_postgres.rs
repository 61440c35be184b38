//! tokio-postgres, as its documentation shows it: `query_raw`, values in binary; and the simple
//! protocol, values as text.

use std::{error::Error, pin::pin};

use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::{
    Client, Config, NoTls, SimpleQueryMessage,
    types::{FromSql, Json, Type},
};

use super::{Tally, Task, Weigh};
use crate::data::{Customer, Order, Shape};

pub async fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    if let Some(role) = task.mode.strip_prefix("connect as ") {
        let url = format!("{}&user={role}&password=secret", task.url());
        let config: Config = url.parse().unwrap();
        connected();
        let mut tally = Tally::default();
        for _ in 0..task.repeat {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            drop(client);
            // Sends Terminate, and ends.
            connection.await.unwrap();
            tally.row(1);
        }
        return tally;
    }
    let (client, connection) = tokio_postgres::connect(&task.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    connected();
    let mut tally = Tally::default();
    for _ in 0..task.repeat {
        tally.query();
        match (task.mode.as_str(), task.shape) {
            ("raw", _) => {
                let rows = client.query_raw(&task.sql(), None::<i32>).await.unwrap();
                let mut rows = pin!(rows);
                while let Some(row) = rows.try_next().await.unwrap() {
                    tally.row(row.get::<_, Bytes<'_>>(0).0.len() as u64);
                }
            }
            ("typed", Shape::Customer) => binary::<Customer>(&client, task, &mut tally).await,
            ("typed", Shape::Order { .. }) => binary::<Order>(&client, task, &mut tally).await,
            ("value", _) => binary::<Value>(&client, task, &mut tally).await,
            ("typed, simple query", Shape::Customer) => {
                simple::<Customer>(&client, task, &mut tally).await
            }
            (other, _) => panic!("no mode {other:?}"),
        }
    }
    tally
}

async fn binary<T: DeserializeOwned + Weigh>(client: &Client, task: &Task, tally: &mut Tally) {
    let rows = client.query_raw(&task.sql(), None::<i32>).await.unwrap();
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.unwrap() {
        tally.row(row.get::<_, Json<T>>(0).0.weigh());
    }
}

async fn simple<T: DeserializeOwned + Weigh>(client: &Client, task: &Task, tally: &mut Tally) {
    let mut messages = pin!(client.simple_query_raw(&task.sql()).await.unwrap());
    while let Some(message) = messages.try_next().await.unwrap() {
        if let SimpleQueryMessage::Row(row) = message {
            let text = row.get(0).unwrap();
            tally.row(serde_json::from_str::<T>(text).unwrap().weigh());
        }
    }
}

/// An undecoded value.
struct Bytes<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Bytes<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
