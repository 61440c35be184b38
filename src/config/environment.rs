//! The environment of the process: variables, the home directory, files.

use std::{
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
};

use zeroize::Zeroizing;

/// Where settings come from that are not in the connection string.
pub(super) struct Environment<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(super) home: Option<PathBuf>,
}

impl Environment<'_> {
    /// Variables that do not belong to a keyword.
    pub(super) const VARIABLES: &'static [&'static str] =
        &["PGREQUIRESSL", "PGSERVICEFILE", "PGSYSCONFDIR", "PGDATESTYLE", "PGTZ", "PGGEQO"];

    /// Returns the run-time parameters that libpq sends if these variables are set.
    pub(super) fn startup_parameters(&self) -> Vec<(String, String)> {
        [("PGDATESTYLE", "datestyle"), ("PGTZ", "timezone"), ("PGGEQO", "geqo")]
            .into_iter()
            .filter_map(|(variable, name)| Some((name.to_owned(), (self.variable)(variable)?)))
            .filter(|(_, value)| !value.eq_ignore_ascii_case("default"))
            .collect()
    }

    /// Returns the content of a file, which may contain a password; `None` if it does not exist.
    pub(super) fn read_file(path: &PathBuf) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            // The home directory of some users of daemons is a file, such as /dev/null.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Returns the directory of the default files: the home directory of the user, and on Windows
/// `%APPDATA%\postgresql`.
pub(super) fn home() -> Option<PathBuf> {
    if cfg!(windows) {
        return std::env::var_os("APPDATA").map(|data| PathBuf::from(data).join("postgresql"));
    }
    // Deprecated before Rust 1.87 only, because of an old variable on Windows. Before Rust 1.90, an
    // empty one is returned.
    #[allow(deprecated)]
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}
