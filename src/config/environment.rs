//! What libpq takes from the process around it: variables, the home folder, files.

use std::{fs, io, path::PathBuf};

use zeroize::Zeroizing;

/// Where settings come from that the connection string does not hold.
pub(super) struct Environment<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(super) home: Option<PathBuf>,
}

impl Environment<'_> {
    /// Variables that are asked for besides those of the keywords.
    pub(super) const VARIABLES: &'static [&'static str] =
        &["PGREQUIRESSL", "PGSERVICEFILE", "PGSYSCONFDIR", "PGDATESTYLE", "PGTZ", "PGGEQO"];

    /// Run-time parameters that libpq sends when these variables are set.
    pub(super) fn startup_parameters(&self) -> Vec<(String, String)> {
        [("PGDATESTYLE", "datestyle"), ("PGTZ", "timezone"), ("PGGEQO", "geqo")]
            .into_iter()
            .filter_map(|(variable, name)| Some((name.to_owned(), (self.variable)(variable)?)))
            .filter(|(_, value)| !value.eq_ignore_ascii_case("default"))
            .collect()
    }

    /// Returns a file's content, which may hold a password; `None` if there is no such file.
    pub(super) fn read_file(path: &PathBuf) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
