//! Fuzz targets. Each accepts any bytes, and panics if an invariant does not hold.

mod connection_string;
mod messages;
#[path = "../../../tests/support/random.rs"]
mod random;
mod rows;
mod scram;
mod session;
#[path = "../../../tests/support/stats.rs"]
mod stats;

use std::{
    fmt::Display,
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

pub use self::{
    connection_string::connection_string,
    messages::messages,
    random::Random,
    rows::rows,
    scram::scram,
    session::{play, session},
};
pub use crate::{
    certificates::{certificate, is_accepted, revocation_list},
    config::{password_file, service_file},
};

/// A target, by the name of its binary and of the folder of its seeds.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 9] = [
    ("rows", rows),
    ("messages", messages),
    ("scram", scram),
    ("connection_string", connection_string),
    ("password_file", password_file),
    ("service_file", service_file),
    ("session", session),
    ("certificate", certificate),
    ("revocation_list", revocation_list),
];

/// Asserts that a text of this crate with text from a server is one line, so that the server cannot
/// forge lines of a log.
pub(crate) fn assert_one_line(text: impl Display) {
    let text = text.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// Returns whether `haystack` contains `needle`.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// The path of a temporary file or folder, which is removed on drop.
pub(crate) struct TempPath(pub(crate) PathBuf);

impl TempPath {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fraiseql-wire-fuzz-{}-{next}", process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Creates a file with this text, which no other user can read.
    pub(crate) fn with(text: &str) -> Self {
        let path = Self::new();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&path.0).and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
        path
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}
