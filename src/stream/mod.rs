//! The stream of rows that a query returns.

mod body;
mod channel;
mod consumer;
mod control;
mod deadline;
mod parallel;
mod predicates;
mod query_stream;
mod reader;
mod request;
mod resume;
mod row;
mod row_chunk;
mod schema;
mod settings;
mod span;
mod stats;

pub use self::{
    control::StreamControl,
    query_stream::QueryStream,
    row::{FromJsonRow, RawJson},
    row_chunk::RowChunk,
    stats::{StreamState, StreamStats},
};
pub(crate) use self::{
    parallel::{MAX_PARALLEL, MIN_MEMORY, Parallel},
    predicates::Predicates,
    request::Request,
    resume::{Rest, Resume},
    settings::StreamSettings,
    span::QueryText,
};
