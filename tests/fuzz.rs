//! The targets of `fuzz/`, on a stable compiler: each is called with its seeds and with mutations
//! of them.
//!
//! `FUZZ_COUNT=100000 cargo test --test fuzz rows` makes more mutations than usual. `FUZZ_SEED=7`
//! starts with the one that a failure has named.

// The targets reach what is not public: this is its source once more.
#[path = "../src/error/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod error;
#[path = "../src/protocol/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod protocol;
#[path = "../src/auth/scram.rs"]
#[allow(dead_code)]
mod scram;
#[path = "../src/secret.rs"]
#[allow(dead_code)]
mod secret;

#[path = "../fuzz/src/certificates.rs"]
mod certificates;
#[path = "../fuzz/src/config.rs"]
mod config;
#[path = "../fuzz/src/targets/mod.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::{
    cell::Cell,
    env, fs,
    panic::{set_hook, take_hook},
    path::{Path, PathBuf},
    sync::Once,
    thread,
};

use targets::{Random, TARGETS, is_accepted, play};

#[test]
fn rows() {
    run("rows", 4000);
}

#[test]
fn messages() {
    run("messages", 4000);
}

#[test]
fn scram_logins() {
    run("scram", 2000);
}

#[test]
fn connection_strings() {
    run("connection_string", 1000);
}

#[test]
fn password_files() {
    run("password_file", 1000);
}

#[test]
fn service_files() {
    run("service_file", 1000);
}

#[test]
fn certificates_with_names_and_constraints() {
    run("certificate", 2000);
}

#[test]
fn revocation_lists() {
    run("revocation_list", 2000);
}

#[test]
fn sessions() {
    run("session", 1000);
}

/// Seeds reach the intended states: an input that is rejected early tests nothing.
#[test]
fn seeds_of_sessions_reach_their_ends() {
    // The number of successful queries, the number of all rows, and the first error.
    let cases: [(&str, usize, usize, &str); 31] = [
        ("cancelled", 1, 4, ""),
        ("cancelled_silence", 1, 4, "timed out cancelling the query"),
        ("cleartext", 2, 6, ""),
        ("cut", 0, 1, "before the result was complete"),
        ("dropped", 1, 4, ""),
        ("ended_while_idle", 1, 3, "terminating connection due to administrator command"),
        ("gone_after_an_answer", 1, 3, "before the result was complete"),
        ("many_rows", 2, 103, ""),
        ("no_command_complete", 1, 4, "expected DataRow or CommandComplete"),
        ("not_postgres", 0, 0, "is this a Postgres server?"),
        ("old_error", 0, 0, "sorry, too many clients already"),
        ("parameters_and_notifications", 2, 5, ""),
        ("paused", 2, 6, ""),
        ("protocol_3_0", 2, 6, ""),
        ("protocol_3_2", 2, 6, ""),
        ("recorded", 2, 6, ""),
        ("recorded_failures", 0, 2, "no more (SQLSTATE 22012)"),
        ("recorded_md5_notices", 2, 1, ""),
        ("recorded_no_such_role", 0, 0, "SQLSTATE 28000"),
        ("recorded_read_write", 2, 6, ""),
        ("recorded_two_columns", 1, 3, "2 columns"),
        ("replaced", 1, 3, "before the result was complete"),
        ("row_beyond_memory", 0, 1, "5000 bytes exceed"),
        ("row_too_large", 0, 1, "a row of 9010 bytes"),
        ("rows_that_are_no_documents", 2, 8, ""),
        ("rows_that_are_no_text", 2, 6, ""),
        ("said_too_early", 2, 6, ""),
        ("scram", 2, 6, ""),
        ("scram_too_many_iterations", 0, 0, "17 SCRAM iterations"),
        ("scram_without_signature", 0, 0, "before it had proved"),
        ("silence", 0, 1, "timed out waiting for the server"),
    ];
    let names = cases.map(|(name, ..)| name);
    assert_eq!(seeds("session").iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
    for (name, complete, rows, error) in cases {
        let outcome = play(&fs::read(folder("session").join(name)).unwrap());
        assert_eq!((outcome.complete, outcome.rows), (complete, rows), "{name}: {outcome:?}");
        match outcome.errors.first() {
            Some(first) => assert!(!error.is_empty() && first.contains(error), "{name}: {first}"),
            None => assert!(error.is_empty(), "{name}: {outcome:?}"),
        }
    }
}

#[test]
fn seeds_of_accepted_chains_are_accepted() {
    for target in ["certificate", "revocation_list"] {
        let mut count = 0;
        for (name, input) in seeds(target) {
            if name.starts_with("accepted") {
                assert!(is_accepted(&input), "{target}/{name}");
                count += 1;
            }
        }
        assert!(count > 5, "{target}");
    }
}

#[test]
fn every_target_is_a_binary_and_has_seeds() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"{path}\"")), "{name}");
        let source = fs::read_to_string(fuzz().join(path)).unwrap();
        assert!(source.contains(&format!("targets::{name}(data)")), "{name}");
        assert!(!seeds(name).is_empty(), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}

/// Calls a target with its seeds, and with `count` mutations of them.
fn run(name: &str, count: u64) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let seeds = seeds(name);
    for (file, input) in &seeds {
        run_one(target, input, &format!("the seed {file}"));
    }
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("FUZZ_SEED").unwrap_or(0);
    let count = number("FUZZ_COUNT").unwrap_or(count);
    for seed in first..first.saturating_add(count) {
        let input = mutate(&seeds, &mut Random::of(seed));
        let what = format!("of {name}: FUZZ_SEED={seed} repeats it");
        run_one(target, &input, &what);
    }
}

fn run_one(target: fn(&[u8]), input: &[u8], what: &str) {
    /// Says what has failed.
    struct Case<'a>(&'a [u8], &'a str);

    impl Drop for Case<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                let Self(input, what) = self;
                eprintln!("{what}; it is b\"{}\"", input.escape_ascii());
            }
        }
    }

    count_panics();
    let case = Case(input, what);
    target(input);
    assert_eq!(PANICS.get(), 0, "a task of this thread panicked");
    drop(case);
}

thread_local! {
    /// A runtime catches the panics of tasks; those are on its thread.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            print(info);
        }));
    });
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn folder(target: &str) -> PathBuf {
    fuzz().join("seeds").join(target)
}

/// In the order of their names, so that a number makes the same of them everywhere.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap_or_else(|e| panic!("{target}: {e}"));
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

/// Changes one of the seeds in a few places; one in sixteen inputs is made of nothing.
fn mutate(seeds: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    if below(random, 16) == 0 {
        return (0..below(random, 64)).map(|_| byte(random)).collect();
    }
    let mut input = seeds[below(random, seeds.len())].1.clone();
    for _ in 0..1 + below(random, 4) {
        let at = below(random, input.len() + 1);
        let end = (at + 1 + below(random, 16)).min(input.len());
        match below(random, 8) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let piece = input[at..end].to_vec();
                drop(input.splice(at..at, piece));
            }
            3 => input.insert(at, byte(random)),
            // The part that another input continues with.
            4 => {
                let other = &seeds[below(random, seeds.len())].1;
                input.truncate(at);
                input.extend_from_slice(&other[at.min(other.len())..]);
            }
            // A length.
            5 if at + 4 <= input.len() => {
                let some = below(random, 64) as i32;
                let lengths = [0, 1, 4, some, some << 8, 1 << 30, i32::MAX, i32::MIN, -1];
                let length = lengths[below(random, lengths.len())];
                input[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
            6 if at < input.len() => input[at] ^= 1 << below(random, 8),
            _ if at < input.len() => input[at] = byte(random),
            _ => input.push(byte(random)),
        }
    }
    input
}

/// Any byte, or one that means something somewhere.
fn byte(random: &mut Random) -> u8 {
    let some = b"\0\x01\x04\x7f\x80\xff12ACDEIKNRSTZnv!?=,:;/@%\\'\"#*[] \r\n";
    match below(random, 2) {
        0 => some[below(random, some.len())],
        _ => below(random, 256) as u8,
    }
}

fn below(random: &mut Random, n: usize) -> usize {
    random.below(n as u64) as usize
}
