//! Reads the files of the settings.

use std::{io, path::Path};

use crate::error::{Error, Result};

pub(super) fn read_file(what: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unreadable(&format!("{what} \"{}\"", path.display()), e))
}

/// The error for a file that cannot be read. It is retriable if the process or the system lacks
/// resources, such as file descriptors or memory.
pub(super) fn unreadable(what: &str, e: io::Error) -> Error {
    Error::unreadable(what, e).unwrap_or_else(|e| Error::tls(format!("{what} cannot be read: {e}")))
}

/// Returns whether the file does not exist. Any other failure must be reported.
pub(super) fn is_missing(path: &Path) -> bool {
    let error = std::fs::metadata(path).err().map(|e| e.kind());
    matches!(error, Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}
