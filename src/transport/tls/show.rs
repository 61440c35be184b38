//! Formats parts of certificates for errors.

use std::time::Duration;

use x509_cert::{der::DateTime, name::Name};

use crate::error::OneLine;

/// Formats a distinguished name in parentheses after a space; nothing if it is empty.
pub(super) fn name(name: &Name) -> String {
    match OneLine::name(&name.to_string()).to_string() {
        shown if shown.is_empty() => shown,
        shown => format!(" ({shown})"),
    }
}

/// Formats a host name from a certificate.
pub(super) fn host(bytes: &[u8]) -> String {
    format!("\"{}\"", OneLine::name(&String::from_utf8_lossy(bytes)))
}

pub(super) fn time(since_1970: Duration) -> String {
    DateTime::from_unix_duration(since_1970)
        .map_or_else(|_| "an unrepresentable date".to_owned(), |d| d.to_string())
}
