//! The examples, as Cargo builds them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns the program of an example.
///
/// `cargo test --test NAME` does not build examples. So they are built here, once per process, if
/// one of them is missing or older than its source.
pub fn path(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let test = env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples").join(name);
    let changed = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    if changed(&program).is_none_or(|built| built < last_change()) {
        BUILT.get_or_init(|| build(profile.ends_with("release")));
    }
    assert!(program.exists(), "Cargo has not built {}", program.display());
    program
}

/// Returns when the source of an example last changed.
fn last_change() -> SystemTime {
    let mut last = SystemTime::UNIX_EPOCH;
    let mut paths: Vec<PathBuf> =
        ["src", "examples", "Cargo.toml"].map(|name| Path::new(ROOT).join(name)).into();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            last = last.max(fs::metadata(path).unwrap().modified().unwrap());
        }
    }
    last
}

fn build(release: bool) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--examples", "--all-features"]).current_dir(ROOT);
    if release {
        cargo.arg("--release");
    }
    // Cargo sets these for a test. Build scripts that depend on them would run again.
    let of_test = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| name.starts_with(start))
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(of_test) {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().unwrap().success(), "cargo build --examples --all-features");
}
