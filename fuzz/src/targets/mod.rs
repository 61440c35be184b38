//! Each target takes any bytes, and panics when something that must hold does not.

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

/// A target by the name of its seeds' folder and of its binary.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
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

/// A text of ours, into which what a server says has gone, is one line: it cannot forge lines in a log.
pub(crate) fn assert_one_line(text: impl Display) {
    let text = text.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// Whether it has these bytes anywhere.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// A place for a file or a folder, which goes when it is dropped.
pub(crate) struct TempPath(pub(crate) PathBuf);

impl TempPath {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fraiseql-wire-fuzz-{}-{next}", process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// With a file there that holds this, and that nobody else may read.
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
