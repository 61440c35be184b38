//! The Postgres protocol, version 3, without I/O: bytes to values, and values to bytes.
//!
//! It is specified in the chapter [Frontend/Backend Protocol] of the Postgres manual. All limits on
//! the size of messages from a server are in [`frame`].
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
