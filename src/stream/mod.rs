//! The stream of rows that a query returns.

mod body;
mod channel;
mod chunk;
mod consumer;
mod control;
mod deadline;
mod exchange;
mod observer;
mod open;
mod parallel;
mod pipeline;
mod plan;
mod predicates;
mod query_stream;
mod reader;
mod resume;
mod row;
mod row_chunk;
mod schema;
mod settings;
mod span;
mod sse;
mod statement;
mod stats;
mod teardown;

pub use self::{
    control::StreamControl,
    query_stream::QueryStream,
    row::{FromJsonRow, RawJson},
    row_chunk::RowChunk,
    stats::{StreamState, StreamStats},
};
pub(crate) use self::{
    parallel::{MAX_PARALLEL, MIN_MEMORY},
    pipeline::{Pipeline, continue_fetches},
    plan::{Execution, QueryPlan, QuerySpec, encode},
    predicates::{Predicates, SharedPredicate, SharedPredicates},
    settings::StreamSettings,
};
