//! Files that the settings name.

use std::{io, path::Path};

use crate::error::{Error, Result};

pub(super) fn read_file(what: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unreadable(&format!("{what} \"{}\"", path.display()), e))
}

/// The error for a file that cannot be read: retriable if what is missing is the process's or the
/// system's (file descriptors, memory) and not the file.
pub(super) fn unreadable(what: &str, e: io::Error) -> Error {
    Error::unreadable(what, e).unwrap_or_else(|e| Error::tls(format!("{what} cannot be read: {e}")))
}

/// Whether there is no such file. Any other failure to reach it is one to report.
pub(super) fn is_missing(path: &Path) -> bool {
    let error = std::fs::metadata(path).err().map(|e| e.kind());
    matches!(error, Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}
