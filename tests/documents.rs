//! The documents, as a reader uses them: their links lead somewhere, what they have readers type is there, and what they
//! say is public is public.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fraiseql_wire::ConnectionConfig;
use support::{
    admin_at,
    cluster::{Cluster, REQUIRE_PASSWORD},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every document of the repository, by its path in it.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["", "docs", "examples", ".github"] {
        let Ok(entries) = fs::read_dir(Path::new(ROOT).join(folder)) else { continue };
        for entry in entries {
            let path = Path::new(folder).join(entry.unwrap().file_name());
            if path.extension().is_some_and(|e| e == "md") {
                found.push((path.clone(), read(path)));
            }
        }
    }
    assert!(found.len() > 10, "the documents were not found");
    found
}

/// The blocks of code: the language, and the text.
fn blocks(document: &str) -> Vec<(&str, &str)> {
    let parts: Vec<_> = document.split("\n```").collect();
    assert!(parts.len() % 2 == 1, "a block is not closed");
    parts.iter().skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

/// The text without its blocks of code.
fn prose(document: &str) -> String {
    document.split("\n```").step_by(2).collect()
}

/// Where a heading can be linked to, as GitHub names it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|l| l.starts_with('#'));
    headings.map(|l| anchor(l.trim_start_matches('#'))).collect()
}

#[test]
fn links_inside_the_repository_resolve() {
    for (document, text) in documents() {
        for link in prose(&text).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let (name, here) = (document.display(), Path::new(ROOT).join(&document));
            let target = if path.is_empty() { here } else { here.with_file_name(path) };
            assert!(target.exists(), "{name} links to {link}, which is not there");
            if !heading.is_empty() {
                let headings = anchors(&fs::read_to_string(target).unwrap());
                assert!(headings.contains(heading), "{name} links to {link}: no such heading");
            }
        }
    }
}

/// Each language has somebody who tries its blocks; a language without is an error.
#[test]
fn every_block_of_code_is_tried() {
    let crate_root = read("src/lib.rs");
    for (document, text) in documents() {
        let document = document.display().to_string();
        for (language, code) in blocks(&text) {
            match language.split(',').next().unwrap() {
                // By documentation tests, which compile all of them.
                "rust" => {
                    let included = format!("include_str!(\"../{document}\")");
                    assert!(crate_root.contains(&included), "{document} is no documentation test");
                    assert!(!language.contains("ignore"), "{document}: {code}");
                }
                "sh" => try_shell(&document, code),
                "toml" => try_manifest(&document, code),
                // By the_sql_of_documents_runs.
                "sql" => {}
                // Nothing that is typed as it stands.
                "text" => {}
                other => panic!("{document}: nobody tries blocks of {other:?}"),
            }
        }
    }
}

/// It is shell, and its programs are there.
fn try_shell(document: &str, code: &str) {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-n", "-c", code]).stderr(Stdio::piped());
    let said = shell.output().unwrap();
    assert!(said.status.success(), "{document}: {}", String::from_utf8_lossy(&said.stderr));
    for line in code.lines() {
        let words: Vec<_> = line.split_whitespace().take_while(|w| !w.starts_with('#')).collect();
        for (i, word) in words.iter().enumerate() {
            let exists = |path: &str| Path::new(ROOT).join(path).exists();
            let next = words.get(i + 1).copied().unwrap_or_default();
            match *word {
                "--example" => assert!(
                    exists(&format!("examples/{next}.rs")) || exists(&format!("examples/{next}")),
                    "{document}: {line}"
                ),
                "--test" => assert!(exists(&format!("tests/{next}.rs")), "{document}: {line}"),
                "--bench" => assert!(
                    exists(&format!("benches/{next}.rs")) || exists(&format!("benches/{next}")),
                    "{document}: {line}"
                ),
                word if word.starts_with("scripts/") => {
                    assert!(exists(word), "{document}: {line}");
                }
                _ => {}
            }
        }
    }
}

/// It is what a manifest can say, and names this version.
fn try_manifest(document: &str, code: &str) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!("[package]\nname = \"reader\"\nversion = \"0.0.0\"\n\n{code}");
    fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    fs::write(folder.path().join("src/lib.rs"), "").unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    let cargo = cargo.args(["metadata", "--offline", "--no-deps", "--format-version=1"]);
    let said = cargo.current_dir(folder.path()).output().unwrap();
    assert!(said.status.success(), "{document}: {}", String::from_utf8_lossy(&said.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let dependencies = metadata["packages"][0]["dependencies"].as_array().unwrap();
    let own = dependencies.iter().find(|d| d["name"] == "fraiseql-wire").unwrap();
    let minor = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0;
    assert_eq!(own["req"], format!("^{minor}"), "{document}");
}

/// A database as the documents have it, and all of their SQL in it.
#[tokio::test]
async fn the_sql_of_documents_runs() {
    let server = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let superuser = admin_at(&server.url()).await;
    superuser.batch_execute("create role shop_owner").await.unwrap();
    superuser.batch_execute("create database shop").await.unwrap();
    let url = format!("{}?dbname=shop", server.url());
    let shop = admin_at(&url).await;
    shop.batch_execute(
        "create schema app;
         create table orders (id bigint primary key, status text, total numeric, placed_at timestamptz);
         create table line (order_id bigint, sku text, quantity int)",
    )
    .await
    .unwrap();
    let mut tried = 0;
    for (document, text) in documents() {
        for (_, code) in blocks(&text).iter().filter(|(language, _)| *language == "sql") {
            let run = shop.batch_execute(code).await;
            run.unwrap_or_else(|e| panic!("{}: {e:?}\n{code}", document.display()));
            tried += 1;
        }
    }
    assert!(tried > 0);
}

/// What users see of this version is of this version.
#[test]
fn documents_tell_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let newest = |document: &str, before: &str| {
        let text = read(document);
        let heading = text.lines().find(|l| l.starts_with(before)).map(str::to_owned);
        heading.unwrap_or_else(|| panic!("{document} has no line with {before:?}"))
    };
    assert!(newest("CHANGELOG.md", "## [").starts_with(&format!("## [{version}]")));
    assert!(newest("RELEASE_NOTES.md", "# ").ends_with(version));
}

/// Defaults are the code's, and figures those that were measured.
#[test]
fn what_the_readme_says_is_so() {
    let readme = read("README.md");
    let config = ConnectionConfig::parse("host=localhost user=u").unwrap();
    let (seconds, bytes) = (config.cancel_timeout().as_secs(), config.drain_limit() >> 20);
    let row = |table: &str, client: &str| -> Vec<String> {
        let measured = read("docs/benchmarks.md");
        let table = measured.split(table).nth(1).unwrap();
        let row = table.lines().find(|l| l.starts_with(&format!("| {client} |"))).unwrap();
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let clients = ["fraiseql-wire", "tokio-postgres", "sqlx"];
    let number = |cell: &str| cell.parse::<f64>().unwrap();
    let typed = clients.map(|c| row("1000000 × small, typed", &format!("{c}, typed")));
    let [ours, theirs, others] = clients
        .map(|c| format!("{:.2} ms", number(&row("## The first row", &format!("{c}, raw"))[2])));
    let by_key = clients.map(|c| {
        let row = row("#### `v_simple`, one task\n", &format!("{c}, by key"));
        format!("{:.0} µs", number(&row[2]))
    });
    let cpu = typed.each_ref().map(|row| format!("{} ns", row[5]));
    let clock = typed.each_ref().map(|row| format!("{:.2} s", number(&row[2]) / 1000.0));
    let raw = ["fraiseql-wire", "tokio-postgres"];
    let raw = raw.map(|c| row("1000000 × small, not decoded", &format!("{c}, raw")));
    let share = |rows: &[Vec<String>], cell: usize| number(&rows[0][cell]) / number(&rows[1][cell]);
    let notes = format!(
        "not decoded, {:.2} of tokio-postgres's time and {:.2} of its CPU; typed, {:.2} of the time\n\
         and {:.2} of the CPU",
        share(&raw, 2),
        share(&raw, 5),
        share(&typed, 2),
        share(&typed, 5),
    );
    for (document, said) in [
        ("README.md", format!("`cancel_timeout` ({seconds} seconds)")),
        ("README.md", format!("`drain_limit` ({bytes} MiB)")),
        ("README.md", format!("CPU of a typed row of 230 bytes | {}", cpu.join(" | "))),
        ("README.md", format!("the first row of a quick query | {ours} | {theirs} | {others}")),
        ("README.md", format!("one document by its key, typed | {}", by_key.join(" | "))),
        ("README.md", format!("such rows, typed, on the clock | {}", clock.join(" | "))),
        ("RELEASE_NOTES.md", format!("{} metrics", fraiseql_wire::metrics::CATALOG.len())),
        ("RELEASE_NOTES.md", notes),
    ] {
        let text = if document == "README.md" { readme.clone() } else { read(document) };
        assert!(text.contains(&said), "{document} does not say {said:?}");
    }
}

/// Every public item is in the audit: in the row of its type, or of its module.
#[test]
fn every_public_item_is_audited() {
    let audit = read("docs/API_AUDIT.md");
    let mut rows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in audit.lines().filter(|l| l.starts_with("| `")) {
        let mut names = row.split('`').skip(1).step_by(2);
        rows.entry(names.next().unwrap()).or_default().extend(names);
    }
    // What a trait asks for is said where the type is said to implement it.
    let mut of_a_trait = false;
    let mut audited = 0;
    for item in read("docs/public-api.txt").lines() {
        if item.starts_with("impl") {
            of_a_trait = item.contains(" for ");
            continue;
        }
        let words = item.trim_start_matches("#[non_exhaustive] ").trim_start_matches("pub ");
        let kind = ["struct ", "enum ", "trait "].iter().any(|k| words.starts_with(k));
        of_a_trait &= !kind;
        if of_a_trait {
            continue;
        }
        let path: Vec<&str> = path_of(words);
        let [.., owner, name] = path[..] else { continue };
        // Constants of these are made of tables, which have tests of their own.
        let is_constant = name.chars().all(|c| !c.is_lowercase());
        if matches!(owner, "metrics" | "sqlstate") && is_constant && name != "CATALOG" {
            continue;
        }
        let is_type = owner == "fraiseql_wire" || kind || words.starts_with("type ");
        let is_there = match is_type || matches!(name, "record") {
            true => rows.contains_key(name),
            // The field of a variant is in the row of the enum.
            false => [owner, path.iter().rev().nth(2).copied().unwrap_or_default()]
                .iter()
                .any(|owner| rows.get(owner).is_some_and(|names| names.contains(name))),
        };
        assert!(is_there, "docs/API_AUDIT.md says nothing of {}", path.join("::"));
        audited += 1;
    }
    assert!(audited > 300, "{audited}");
}

/// The path of an item of the list: `fn fraiseql_wire::Json<T>::new(..)` is `fraiseql_wire`, `Json`, `new`.
fn path_of(words: &str) -> Vec<&str> {
    let start = words.find("fraiseql_wire").unwrap_or_else(|| panic!("{words}"));
    let mut path = Vec::new();
    let mut rest = &words[start..];
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.push(&rest[..end]);
        rest = &rest[end..];
        // Generic arguments of a type.
        if let Some(behind) = rest.strip_prefix('<').and_then(|r| r.split_once(">::")) {
            rest = behind.1;
        } else if let Some(behind) = rest.strip_prefix("::") {
            rest = behind;
        } else {
            return path;
        }
    }
}

/// Every promise of SECURITY.md names a test that exists, in the file that is named with it.
#[test]
fn the_tests_that_the_security_tables_name_exist() {
    let text = read("SECURITY.md");
    let (mut named, mut missing) = (0, Vec::new());
    let mut in_table = false;
    for line in text.lines() {
        let cell = line.trim_matches('|').rsplit(" | ").next().unwrap_or_default().trim();
        in_table = line.starts_with('|') && (in_table || cell == "shown by");
        if !in_table || cell == "shown by" || cell.starts_with("---") {
            continue;
        }
        let before_row = named;
        let (mut file, mut before) = (String::new(), "");
        for word in cell.split([';', ',', ' ']).filter(|word| !word.is_empty()) {
            let name = word.trim_matches('`');
            if let Some(place) = word.strip_suffix(':').map(|place| place.trim_matches('`')) {
                file = match before {
                    "libpq" => format!("libpq {place}"),
                    _ => place.to_owned(),
                };
            } else if name.matches('_').count() > 1 {
                named += 1;
                if !tests_of(&file).contains(name) {
                    missing.push(format!("{file} has no test {name:?}"));
                }
            }
            before = word;
        }
        if named == before_row {
            missing.push(format!("no test is named: {line}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(named > 80, "{named}");
}

/// The names of the tests of `tls` in `tests`, of `libpq tls` in `tests/libpq/tests`, or of the
/// module `transport/tls` in `src`.
fn tests_of(place: &str) -> BTreeSet<String> {
    let mut candidates = match place.strip_prefix("libpq ") {
        Some(name) => vec![format!("tests/libpq/tests/{name}.rs")],
        None => vec![
            format!("tests/{place}.rs"),
            format!("src/{place}.rs"),
            format!("src/{place}/mod.rs"),
            format!("src/{place}/tests.rs"),
        ],
    };
    // One that is a folder.
    let folder = candidates[0].trim_end_matches(".rs").to_owned();
    for entry in fs::read_dir(Path::new(ROOT).join(&folder)).into_iter().flatten() {
        candidates.push(format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy()));
    }
    let mut found = BTreeSet::new();
    for path in candidates.iter().filter(|path| Path::new(ROOT).join(path).is_file()) {
        let text = read(path);
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = function.filter(|_| is_test).and_then(|f| f.split_once('(')) {
                found.insert(name.to_owned());
                is_test = false;
            }
        }
    }
    found
}
