//! The messages of password logins, without I/O.

pub(crate) mod md5;
pub(crate) mod scram;
