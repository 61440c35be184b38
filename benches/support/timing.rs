//! The time that queries take.

use std::time::{Duration, Instant};

use fraiseql_wire::{FromJsonRow, QueryBuilder};
use futures_util::StreamExt;

/// Reads all rows, which must be `rows`. Returns how long that took.
pub async fn drain<T: FromJsonRow + 'static>(query: QueryBuilder<T>, rows: usize) -> Duration {
    let began = Instant::now();
    let mut stream = query.execute().await.unwrap();
    let mut count = 0;
    while let Some(row) = stream.next().await {
        row.unwrap();
        count += 1;
    }
    assert_eq!(count, rows);
    began.elapsed()
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
