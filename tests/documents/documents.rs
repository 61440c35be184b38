//! The documents, as a reader uses them: links work, commands and files exist, and the lists of
//! public items are right.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{
    admin_at,
    cluster::{Cluster, REQUIRE_PASSWORD},
};
use fraiseql_wire::ConnectionConfig;

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

/// What users read from beginning to end stays short. The other documents are for looking things
/// up, or for those who change or choose the crate.
#[test]
fn guides_have_at_most_18000_words() {
    let others = [
        "CHANGELOG.md",
        "COMPATIBILITY_POLICY.md",
        "CONTRIBUTING.md",
        "RELEASE_NOTES.md",
        "docs/API_AUDIT.md",
        "docs/benchmarks-raw.md",
        "docs/error-messages.md",
        "docs/failures.md",
        "docs/metrics-catalog.md",
    ];
    for other in others {
        assert!(Path::new(ROOT).join(other).exists(), "{other}");
    }
    let is_guide = |path: &Path| {
        !path.starts_with("examples")
            && !path.starts_with(".github")
            && !others.iter().any(|other| path == Path::new(other))
    };
    let guides = documents().into_iter().filter(|(path, _)| is_guide(path));
    let words: usize = guides.map(|(_, text)| text.split_whitespace().count()).sum();
    assert!(words <= 18_000, "the guides have {words} words: cut what another place says too");
}

/// Each language has somebody who tries its blocks; a language without is an error.
#[test]
fn every_block_of_code_is_tested() {
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
                // By sql_of_documents_is_valid.
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
                "--test" => assert!(
                    exists(&format!("tests/{next}.rs")) || exists(&format!("tests/{next}/main.rs")),
                    "{document}: {line}"
                ),
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
async fn sql_of_documents_is_valid() {
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
    let minor = version.rsplit_once('.').unwrap().0;
    for (document, said) in [
        ("README.md", format!("badge/docs.rs-{minor}-")),
        ("README.md", format!("fraiseql-wire = \"{minor}\"")),
        ("RELEASE_NOTES.md", format!("fraiseql-wire = \"{minor}\"")),
        ("COMPATIBILITY_POLICY.md", format!("fraiseql-wire = \"{minor}\"")),
        ("PRODUCTION_DEPLOYMENT.md", format!("fraiseql-wire = {{ version = \"{minor}\"")),
        ("src/lib.rs", format!("fraiseql-wire = \"{minor}\"")),
        ("src/pool/mod.rs", format!("fraiseql-wire = {{ version = \"{minor}\"")),
        ("docs/API_AUDIT.md", format!("What {version} promises")),
    ] {
        assert!(read(document).contains(&said), "{document} does not contain {said:?}");
    }
}

/// The cells of a client's row in a table of the benchmarks.
fn measured(table: &str, client: &str) -> Vec<String> {
    let documents = ["docs/benchmarks.md", "docs/benchmarks-raw.md"].map(read).concat();
    let table = documents.split(table).nth(1).unwrap_or_else(|| panic!("no table {table:?}"));
    let row = table.lines().find(|l| l.starts_with(&format!("| {client} |"))).unwrap();
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// Figures in README.md are those of the benchmarks.
#[test]
fn readme_figures_match_benchmarks() {
    let clients = ["fraiseql-wire", "tokio-postgres", "sqlx"];
    let number = |cell: &str| cell.parse::<f64>().unwrap();
    let typed = clients.map(|c| measured("1000000 × small, typed", &format!("{c}, typed")));
    let by_key = clients.map(|c| {
        let row = measured("#### `v_simple`, one task\n", &format!("{c}, by key"));
        format!("{:.0} µs", number(&row[2]))
    });
    let cpu = typed.each_ref().map(|row| format!("{} ns", row[5]));
    let wall = typed.each_ref().map(|row| format!("{:.2} s", number(&row[2]) / 1000.0));
    let readme = read("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for figures in [
        format!("client CPU per row | {}", cpu.join(" | ")),
        format!("wall time, 1,000,000 rows | {}", wall.join(" | ")),
        format!("one document by key (75 bytes) | {}", by_key.join(" | ")),
    ] {
        assert!(readme.contains(&figures), "README.md does not contain {figures:?}");
    }
}

/// Versions and limits in README.md and the guides are those of Cargo.toml and the code.
#[test]
fn documented_versions_and_limits_match_the_code() {
    let config = ConnectionConfig::parse("host=localhost user=u").unwrap();
    let (seconds, mib) = (config.cancel_timeout().as_secs(), config.drain_limit() >> 20);
    let rust = env!("CARGO_PKG_RUST_VERSION");
    for (document, said) in [
        ("README.md", format!("Rust {rust} or later")),
        ("README.md", format!("badge/rust-{rust}-")),
        ("COMPATIBILITY_POLICY.md", format!("Rust {rust}")),
        ("PRODUCTION_DEPLOYMENT.md", format!("| `cancel_timeout` | {seconds} s |")),
        ("PRODUCTION_DEPLOYMENT.md", format!("| `drain_limit` | {mib} MiB |")),
    ] {
        assert!(read(document).contains(&said), "{document} does not contain {said:?}");
    }
}

/// The program in README.md is examples/basic.rs, which is run by tests/documents/examples.rs.
#[test]
fn readme_program_is_examples_basic() {
    let readme = read("README.md");
    let (_, program) = blocks(&readme).into_iter().find(|(l, _)| l.starts_with("rust")).unwrap();
    let example = read("examples/basic.rs");
    let (_, example) = example.split_once("\n\n").unwrap();
    assert_eq!(program.trim(), example.trim());
    assert!(program.trim().lines().count() < 25);
}

/// Every public module, type and function outside of types is in the audit, and every row of it is
/// public.
#[test]
fn api_audit_lists_every_public_type() {
    let audit = read("docs/API_AUDIT.md");
    let tables = audit.split("## Stability").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = tables.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    let named: BTreeSet<&str> =
        tables.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches("()")).collect();
    let mut public = BTreeSet::new();
    let list = read("tests/public-api/public-api.txt");
    for item in list.lines().filter(|item| !item.starts_with("impl")) {
        let path =
            path_of(item.trim_start_matches("#[non_exhaustive] ").trim_start_matches("pub "));
        let [.., owner, name] = path[..] else { continue };
        // Methods, fields and variants are in the documentation of their type; constants have
        // tables.
        let is_member = owner.starts_with(char::is_uppercase);
        let is_constant = name.chars().all(|c| !c.is_lowercase());
        if !is_member && !is_constant {
            public.insert(name);
        }
    }
    assert!(public.len() > 40, "{public:?}");
    assert_eq!(public.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new(), "not listed");
    assert_eq!(listed.difference(&public).collect::<Vec<_>>(), Vec::<&&str>::new(), "not public");
}

/// Returns the path of an item of the list: `fn fraiseql_wire::Json<T>::new(..)` is
/// `fraiseql_wire`, `Json`, `new`.
fn path_of(words: &str) -> Vec<&str> {
    let start = words.find("fraiseql_wire").unwrap_or_else(|| panic!("{words}"));
    let mut path = Vec::new();
    // Without the arguments of a function, which name other types.
    let mut rest = words[start..].split('(').next().unwrap();
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

/// Every threat and every failure names a test that exists, in the file that is named with it.
#[test]
fn tests_named_in_documents_exist() {
    for (document, column, least) in
        [("docs/threat-model.md", "shown by", 80), ("docs/failures.md", "test", 80)]
    {
        let (named, missing) = named_tests(&read(document), column);
        assert!(missing.is_empty(), "{document}: {}", missing.join("\n"));
        assert!(named > least, "{document}: {named}");
    }
    for document in ["SECURITY.md", "docs/threat-model.md"] {
        let (named, missing) = tests_in_parentheses(&read(document));
        assert!(missing.is_empty(), "{document}: {}", missing.join("\n"));
        assert!(named > 0, "{document}");
    }
}

/// How many tests the prose names like this: (file: `name`, `name`). And what is wrong with them.
fn tests_in_parentheses(text: &str) -> (usize, Vec<String>) {
    let (mut named, mut missing) = (0, Vec::new());
    let prose = text.lines().filter(|line| !line.starts_with('|'));
    // A name can be on the next line.
    let prose: Vec<_> = prose.flat_map(str::split_whitespace).collect();
    for part in prose.join(" ").split('(').skip(1) {
        let Some((file, names)) = part.split(')').next().and_then(|part| part.split_once(": `"))
        else {
            continue;
        };
        let file = file.replace('`', "");
        for name in names.split('`').step_by(2).filter(|name| name.matches('_').count() > 1) {
            named += 1;
            if !tests_of(&file).contains(name) {
                missing.push(format!("{file} has no test {name:?}"));
            }
        }
    }
    (named, missing)
}

/// How many tests the last column of the tables names, and what is wrong with them.
fn named_tests(text: &str, column: &str) -> (usize, Vec<String>) {
    let (mut named, mut missing) = (0, Vec::new());
    let mut in_table = false;
    for line in text.lines() {
        let cell = line.trim_matches('|').rsplit(" | ").next().unwrap_or_default().trim();
        in_table = line.starts_with('|') && (in_table || cell == column);
        if !in_table || cell == column || cell.starts_with("---") {
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
    (named, missing)
}

/// The names of the tests of `tls` in `tests` or a folder of it, of `libpq tls` in
/// `tests/libpq/tests`, or of the module `transport/tls` in `src`.
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
    // A module of a test binary.
    for entry in fs::read_dir(Path::new(ROOT).join("tests")).unwrap() {
        let folder = entry.unwrap().file_name();
        candidates.push(format!("tests/{}/{place}.rs", folder.to_string_lossy()));
    }
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

/// docs/migration.md: programs for the earlier crate compile with its paths, with a warning for
/// each.
#[test]
fn paths_of_the_earlier_crate_name_the_same_items() {
    use std::any::TypeId;

    use fraiseql_wire::{client, connection, error, stream};

    macro_rules! assert_same {
        ($($earlier:ty, $now:ty;)*) => {
            $({
                #[expect(deprecated)]
                let earlier = TypeId::of::<$earlier>();
                assert_eq!(earlier, TypeId::of::<$now>());
            })*
        };
    }
    assert_same! {
        client::FraiseClient, fraiseql_wire::FraiseClient;
        client::QueryBuilder<String>, fraiseql_wire::QueryBuilder<String>;
        connection::ConnectionConfig, fraiseql_wire::ConnectionConfig;
        connection::ConnectionConfigBuilder, fraiseql_wire::ConnectionConfigBuilder;
        connection::TlsConfig, fraiseql_wire::TlsConfig;
        error::WireError, fraiseql_wire::Error;
        fraiseql_wire::WireError, fraiseql_wire::Error;
        stream::QueryStream<String>, fraiseql_wire::QueryStream<String>;
        stream::RowChunk, fraiseql_wire::RowChunk;
        stream::StreamState, fraiseql_wire::StreamState;
        stream::StreamStats, fraiseql_wire::StreamStats;
    }
    // The crate uses this path itself.
    assert_eq!(TypeId::of::<error::Result<()>>(), TypeId::of::<fraiseql_wire::Result<()>>());
}
