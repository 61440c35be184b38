//! What libpq takes from the process around it: variables, the home folder, files.

use std::{fs, io, path::PathBuf};

use zeroize::Zeroizing;

use super::{
    keyword::{KEYWORDS, Values},
    service,
};
use crate::error::Result;

/// Where settings come from that the connection string does not hold.
pub(super) struct Environment<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(super) home: Option<PathBuf>,
}

impl Environment<'_> {
    /// Variables that are asked for besides those of the keywords.
    pub(super) const VARIABLES: &'static [&'static str] =
        &["PGREQUIRESSL", "PGSERVICEFILE", "PGSYSCONFDIR", "PGDATESTYLE", "PGTZ", "PGGEQO"];

    /// Fills in what `values` leaves open: from the service file, then from the environment, then
    /// by default. The order is that of libpq's `conninfo_add_defaults`.
    pub(super) fn fill(&self, values: &mut Values) -> Result<()> {
        service::fill(values, self)?;
        let mut mode_is_default = false;
        for keyword in KEYWORDS {
            if values.get(keyword.name).is_some() {
                continue;
            }
            if let Some(value) = keyword.env.and_then(self.variable) {
                values.fill(keyword, value);
                continue;
            }
            if keyword.name == "sslmode" {
                // From before sslmode; whatever else it says is ignored.
                if (self.variable)("PGREQUIRESSL").is_some_and(|v| v.starts_with('1')) {
                    values.fill(keyword, "require");
                    continue;
                }
                mode_is_default = true;
            }
            if let Some(default) = keyword.default {
                values.fill(keyword, default);
            }
        }
        // The system's roots sign for the whole world: without the name they prove nothing.
        if mode_is_default && values.get("sslrootcert") == Some("system") {
            values.set("sslmode", "verify-full".to_owned())?;
        }
        let passfile = self.home.as_ref().map(|home| home.join(".pgpass"));
        if values.non_empty("password").is_none() && values.non_empty("passfile").is_none() {
            if let Some(passfile) = passfile.as_ref().and_then(|p| p.to_str()) {
                values.set("passfile", passfile.to_owned())?;
            }
        }
        Ok(())
    }

    /// Run-time parameters that libpq sends when these variables are set.
    pub(super) fn startup_parameters(&self) -> Vec<(String, String)> {
        [("PGDATESTYLE", "datestyle"), ("PGTZ", "timezone"), ("PGGEQO", "geqo")]
            .into_iter()
            .filter_map(|(variable, name)| Some((name.to_owned(), (self.variable)(variable)?)))
            .filter(|(_, value)| !value.eq_ignore_ascii_case("default"))
            .collect()
    }

    /// Returns a file's content, which may hold a password; `None` if there is no such file.
    pub(super) fn read(path: &PathBuf) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}
