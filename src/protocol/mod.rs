//! The Postgres protocol, version 3: bytes in, values out, and the other way round. No I/O.
//!
//! By the chapter [Frontend/Backend Protocol] of the Postgres manual. Every limit on what a server
//! may send stands in [`frame`].
//!
//! [Frontend/Backend Protocol]: https://www.postgresql.org/docs/current/protocol.html

pub(crate) mod backend;
pub(crate) mod extended_query;
mod fields;
pub(crate) mod frame;
pub(crate) mod frontend;
pub(crate) mod long_message;
pub(crate) mod rows;
mod tag;
