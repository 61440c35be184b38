//! docs/benchmarks.md: a text with places that are filled in.

use std::{fs, path::PathBuf};

pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"))
}

pub fn read() -> String {
    fs::read_to_string(folder().join("benchmarks.md")).unwrap()
}

/// What stands at the place of this name.
pub fn part<'a>(document: &'a str, name: &str) -> &'a str {
    let behind = document.split(&begin(name)).nth(1);
    behind.and_then(|text| text.split(END).next()).unwrap_or_else(|| panic!("no place for {name}"))
}

pub fn replace(name: &str, text: &str) {
    let document = read();
    let old = [&begin(name), part(&document, name), END].concat();
    let new = [&begin(name), "\n", text.trim_end(), "\n", END].concat();
    fs::write(folder().join("benchmarks.md"), document.replace(&old, &new)).unwrap();
}

fn begin(name: &str) -> String {
    format!("<!-- measured: {name} -->")
}

const END: &str = "<!-- end -->";
