//! sqlx, by `fetch` on a connection.

use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, types::Json};

use super::{Tally, Task, Weigh};
use crate::data::{Customer, Order, Shape};

pub async fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    let mut connection = PgConnection::connect(&task.url()).await.unwrap();
    connected();
    let mut tally = Tally::default();
    for _ in 0..task.repeat {
        tally.query();
        match (task.mode.as_str(), task.shape) {
            ("raw", _) => {
                let mut rows = sqlx::query(AssertSqlSafe(task.sql())).fetch(&mut connection);
                while let Some(row) = rows.try_next().await.unwrap() {
                    tally.row(row.try_get_raw(0).unwrap().as_bytes().unwrap().len() as u64);
                }
            }
            ("typed", Shape::Customer) => {
                decoded::<Customer>(&mut connection, task, &mut tally).await
            }
            ("typed", Shape::Order { .. }) => {
                decoded::<Order>(&mut connection, task, &mut tally).await
            }
            ("value", _) => decoded::<Value>(&mut connection, task, &mut tally).await,
            (other, _) => panic!("no mode {other:?}"),
        }
    }
    tally
}

async fn decoded<T>(connection: &mut PgConnection, task: &Task, tally: &mut Tally)
where
    T: DeserializeOwned + Weigh + Send + Unpin + 'static,
{
    let mut rows = sqlx::query(AssertSqlSafe(task.sql())).fetch(connection);
    while let Some(row) = rows.try_next().await.unwrap() {
        tally.row(row.get::<Json<T>, _>(0).0.weigh());
    }
}
