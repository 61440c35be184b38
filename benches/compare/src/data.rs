//! The rows, in SQL and in Rust.

use serde::Deserialize;

/// A table with one column, `data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataSet {
    pub table: &'static str,
    pub rows: usize,
    pub shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// [`Customer`]: about 230 bytes.
    Customer,
    /// [`Order`] with this number of lines, of about 100 bytes each.
    Order { lines: usize },
}

const MEDIUM: Shape = Shape::Order { lines: 19 };
const LARGE: Shape = Shape::Order { lines: 2_000 };

/// The tables of the comparison.
pub const COMPARED: [DataSet; 3] = [
    DataSet { table: "small", rows: 1_000_000, shape: Shape::Customer },
    DataSet { table: "medium", rows: 100_000, shape: MEDIUM },
    DataSet { table: "large", rows: 2_000, shape: LARGE },
];

/// The tables for counting instructions, in pairs: the difference is the cost of the rows.
pub const COUNTED: [[DataSet; 2]; 2] = [
    [
        DataSet { table: "small_few", rows: 20_000, shape: Shape::Customer },
        DataSet { table: "small_many", rows: 120_000, shape: Shape::Customer },
    ],
    [
        DataSet { table: "medium_few", rows: 2_000, shape: MEDIUM },
        DataSet { table: "medium_many", rows: 10_000, shape: MEDIUM },
    ],
];

/// The table for the time to the first row.
pub const FIRST: DataSet = DataSet { table: "first", rows: 1_000, shape: Shape::Customer };
pub const SLOW: DataSet = DataSet { table: "slow", rows: 20, shape: Shape::Order { lines: 100 } };

impl DataSet {
    /// Returns the SQL of a view of the table in which a row takes 5 ms. The server would buffer
    /// rows of less than 8 KiB.
    pub fn slow_sql(&self) -> String {
        let Self { table, .. } = self;
        format!(
            "{};
             alter table {table} rename to {table}_rows;
             create view {table} as
             select data from {table}_rows where pg_sleep(0.005)::text is not null",
            self.sql()
        )
    }

    /// Returns the SQL that creates the table. Every server stores the same bytes.
    pub fn sql(&self) -> String {
        let Self { table, rows, shape } = self;
        let document = match shape {
            Shape::Customer => {
                "'id', i, 'name', 'Customer ' || i, 'email', 'customer' || i || '@example.com',
                 'status', (array['new', 'active', 'closed'])[1 + i % 3], 'active', i % 2 = 0,
                 'score', (i % 1000) / 10.0, 'tags', jsonb_build_array('retail', 'north'),
                 'address', jsonb_build_object('street', i % 200 || ' Main Street',
                     'city', 'Springfield', 'zip', lpad((i % 100000)::text, 5, '0'))"
                    .to_owned()
            }
            Shape::Order { lines } => format!(
                "'id', i, 'customer', 'Customer ' || i, 'lines', (
                     select jsonb_agg(jsonb_build_object('sku', 'SKU-' || line * 7919 % 100000,
                         'quantity', line % 9 + 1, 'price', (line * 37 % 5000) / 100.0,
                         'note', 'Line ' || line || ' of order ' || i || ', as ordered'))
                     from generate_series(1, {lines}) line)"
            ),
        };
        format!(
            "create table {table} (data jsonb);
             insert into {table} select jsonb_build_object({document})
             from generate_series(1, {rows}) i;
             vacuum (freeze, analyze) {table}"
        )
    }
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub struct Customer {
    pub id: u64,
    name: String,
    email: String,
    status: String,
    active: bool,
    score: f64,
    tags: Vec<String>,
    address: Address,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Address {
    street: String,
    city: String,
    zip: String,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
pub struct Order {
    pub id: u64,
    customer: String,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Line {
    sku: String,
    quantity: u32,
    price: f64,
    note: String,
}
