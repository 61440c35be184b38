//! Password authentication: the client's messages, without I/O.

pub(crate) mod md5;
pub(crate) mod scram;
