//! Fills in the measured sections of docs/benchmarks.md and docs/benchmarks-raw.md.

use std::{fs, path::PathBuf};

pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"))
}

/// Returns the text of both documents.
pub fn read() -> String {
    DOCUMENTS.map(|name| fs::read_to_string(folder().join(name)).unwrap()).concat()
}

/// Returns the content of the section with this name.
pub fn part<'a>(document: &'a str, name: &str) -> &'a str {
    let after = document.split(&begin(name)).nth(1);
    after.and_then(|text| text.split(END).next()).unwrap_or_else(|| panic!("no place for {name}"))
}

/// Replaces the content of the section with this name, in the document that has it.
pub fn replace(name: &str, text: &str) {
    let old = [&begin(name), part(&read(), name), END].concat();
    let new = [&begin(name), "\n", text.trim_end(), "\n", END].concat();
    for path in DOCUMENTS.map(|name| folder().join(name)) {
        let document = fs::read_to_string(&path).unwrap();
        if document.contains(&old) {
            fs::write(path, document.replace(&old, &new)).unwrap();
        }
    }
}

fn begin(name: &str) -> String {
    format!("<!-- measured: {name} -->")
}

const DOCUMENTS: [&str; 2] = ["benchmarks.md", "benchmarks-raw.md"];
const END: &str = "<!-- end -->";
