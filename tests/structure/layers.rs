//! The structure that docs/ARCHITECTURE.md promises, read off the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Module {
    pure: bool,
    may_import: BTreeSet<String>,
}

/// The table of layers: modules by path.
fn layers() -> BTreeMap<String, Module> {
    let text = read("docs/ARCHITECTURE.md");
    let table = text.split("## ").find(|s| s.starts_with("Layers")).unwrap();
    let mut layers = BTreeMap::new();
    for row in table.lines().filter(|l| l.starts_with("| ") && l.contains('`')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [layer, module, _, imports] = cells[..] else { panic!("{row}") };
        let may_import = names(imports);
        layers.insert(
            names(module).pop_first().unwrap(),
            Module { pure: layer.contains("pure"), may_import },
        );
    }
    layers
}

/// The names in backticks.
fn names(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns every source file: the path of its module (`stream/channel/pause_state`), and its code
/// without tests and comments.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if path.extension().is_none() {
                folders.push(path);
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = read(&path);
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code: Vec<_> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
            let module = path.with_extension("").to_string_lossy().replacen("src/", "", 1);
            files.push((module, code.join("\n")));
        }
    }
    assert!(files.len() > 20, "the sources were not found");
    files
}

/// The entry for a file: the longest path that it is in.
fn entry<'a>(layers: &'a BTreeMap<String, Module>, file: &str) -> (&'a str, &'a Module) {
    let within = |module: &str| file == module || file.starts_with(&format!("{module}/"));
    let found = layers.iter().filter(|(module, _)| within(module)).max_by_key(|(m, _)| m.len());
    let (name, module) = found.unwrap_or_else(|| panic!("{file} is not in the table of layers"));
    (name, module)
}

/// The modules of this crate that a file imports.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        // src/lib.rs has private modules whose names end in `_impl`.
        let word = |s: &str| -> String {
            let name = s.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next();
            name.unwrap().trim_end_matches("_impl").to_owned()
        };
        match rest.strip_prefix('{') {
            None => drop(found.insert(word(rest))),
            // use crate::{a::{b, c}, d::e};
            Some(group) => {
                let mut depth = 1;
                let mut expects_module = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => expects_module = true,
                        _ if expects_module && c.is_alphabetic() => {
                            found.insert(word(&group[i..]));
                            expects_module = false;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    found
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let layers = layers();
    for (file, code) in sources() {
        if file == "lib" {
            continue;
        }
        let (name, module) = entry(&layers, &file);
        let own = name.split('/').next().unwrap();
        for import in imports(&code) {
            assert!(
                import == own || module.may_import.contains(&import),
                "src/{file}.rs imports crate::{import}, which the table in docs/ARCHITECTURE.md does \
                 not allow `{name}`: move the code, or change the table and say why"
            );
        }
        if name.contains('/') {
            assert!(!code.contains("super::"), "src/{file}.rs is a value of its own");
        }
    }
    // The table allows no import that does not exist.
    for (name, module) in &layers {
        let used: BTreeSet<String> = sources()
            .iter()
            .filter(|(file, _)| entry_name(&layers, file) == Some(name))
            .flat_map(|(_, code)| imports(code))
            .collect();
        let unused: Vec<_> = module.may_import.difference(&used).collect();
        assert!(unused.is_empty(), "`{name}` may import {unused:?}, and does not");
    }
}

fn entry_name<'a>(layers: &'a BTreeMap<String, Module>, file: &str) -> Option<&'a String> {
    (file != "lib").then(|| layers.get_key_value(entry(layers, file).0).unwrap().0)
}

#[test]
fn invariants_of_the_architecture_hold() {
    let layers = layers();
    // Words, and the only modules that may contain them.
    let rules: [(&[&str], &[&str]); 6] = [
        (&["SELECT ", "WHERE "], &["sql"]),
        (
            &["tokio::spawn", "task::spawn(", "JoinSet", ".spawn("],
            &[
                "connection/unanswered",
                "stream/channel/pause",
                "stream/pipeline",
                "stream/reader",
                "stream/teardown",
            ],
        ),
        (&["TcpStream", "UnixStream", "lookup_host"], &["transport"]),
        (&["rustls::", "webpki::"], &["transport"]),
        // Wall time: it decides whether a certificate is valid, and never measures a duration.
        // Deadlines and durations use the monotonic clock of tokio.
        (
            &["SystemTime::now", "Utc::now", "Local::now", "now_utc", "now_local"],
            &["transport/tls"],
        ),
        (&["b'Z'", "b'E'", "b'D'", "b'R'", "b'p'", "b\"X"], &["protocol"]),
    ];
    for (file, code) in sources() {
        if file == "lib" {
            continue;
        }
        for (words, allowed) in rules {
            let is_allowed =
                allowed.iter().any(|m| file == *m || file.starts_with(&format!("{m}/")));
            for word in words {
                assert!(is_allowed || !code.contains(word), "src/{file}.rs has {word:?}");
            }
        }
        if entry(&layers, &file).1.pure {
            for word in ["tokio", "async ", ".await", "::now()"] {
                assert!(!code.contains(word), "src/{file}.rs is pure, and has {word:?}");
            }
        }
    }
}

/// Keys are derived and TLS files are read in a closure that `spawn_blocking` runs.
#[test]
fn slow_work_runs_on_a_blocking_thread() {
    let sources = sources();
    for slow in ["Keys::derive(", "TlsConnector::new("] {
        let mut found = 0;
        for (file, code) in &sources {
            let mut before = "";
            for (i, after) in code.split(slow).enumerate() {
                if i > 0 {
                    found += 1;
                    let closure = before.rsplit("let ").next().unwrap().strip_suffix(" = move || ");
                    let name = closure.unwrap_or_else(|| panic!("src/{file}.rs calls {slow:?}"));
                    let next = after.split(';').nth(1).unwrap();
                    assert!(next.contains(&format!("spawn_blocking({name})")), "src/{file}.rs");
                }
                before = after;
            }
        }
        assert_eq!(found, 1, "{slow}");
    }
}

/// Returns the public types of a file with a method that consumes the value and returns it changed.
fn builders(code: &str) -> BTreeSet<String> {
    let mut builders = BTreeSet::new();
    for block in code.split("\nimpl").skip(1) {
        let head = block.split('{').next().unwrap();
        let ty = head.rsplit(" for ").next().unwrap().trim_start_matches(|c| c != ' ').trim();
        let name = ty.split(['<', ' ']).next().unwrap();
        let is_builder = block.split("    pub fn ").skip(1).any(|method| {
            let signature = method.split('{').next().unwrap();
            let mut arguments = signature.split(['(', ',', ')']).map(str::trim);
            let takes_self = arguments.any(|a| matches!(a, "self" | "mut self"));
            takes_self && signature.contains("-> Self")
        });
        if is_builder && code.contains(&format!("pub struct {name}")) {
            builders.insert(name.to_owned());
        }
    }
    builders
}

#[test]
fn builders_and_streams_must_be_used() {
    let mut found = 0;
    for (file, code) in sources() {
        let mut types = builders(&code);
        // Dropping it cancels a query.
        types.extend((file == "stream/query_stream").then(|| "QueryStream".to_owned()));
        for ty in types {
            found += 1;
            let before = code.split(&format!("pub struct {ty}")).next().unwrap();
            let attributes = before.lines().rev().take_while(|l| l.starts_with("#["));
            let must_use = attributes.into_iter().any(|l| l.starts_with("#[must_use"));
            assert!(must_use, "src/{file}.rs: {ty} is not #[must_use]");
        }
    }
    assert!(found >= 9, "only {found} builders were found");
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = read("Cargo.toml");
    let sections = ["[dependencies]", "[target.'cfg(unix)'.dependencies]"]
        .map(|head| manifest.split(head).nth(1).unwrap().split("\n[").next().unwrap());
    let used: BTreeSet<String> = sections
        .iter()
        .flat_map(|section| section.lines())
        .filter_map(|l| Some(l.split_once(" = ")?.0.to_owned()))
        .collect();
    let explained: BTreeSet<String> = read("docs/dependencies.md")
        .lines()
        .filter(|l| l.starts_with("| `"))
        .flat_map(|l| names(l.split('|').nth(1).unwrap()))
        .collect();
    assert_eq!(used, explained);
}

/// Returns the paths in `use` lines, each relative to a module: `["super", "host", "Target"]`.
fn use_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for statement in code.replace("must_use ", "").split("use ").skip(1) {
        let statement = statement.split(';').next().unwrap();
        // The path before each open brace, and what has been read of the current one.
        let (mut outer, mut path) = (Vec::<Vec<String>>::new(), Vec::<String>::new());
        let mut word = String::new();
        for c in statement.chars() {
            match c {
                c if c.is_alphanumeric() || c == '_' => word.push(c),
                ':' if !word.is_empty() => path.push(std::mem::take(&mut word)),
                '{' => outer.push(path.clone()),
                ',' | '}' => {
                    if !word.is_empty() {
                        path.push(std::mem::take(&mut word));
                        paths.push(path.clone());
                    }
                    if c == '}' {
                        outer.pop();
                    }
                    path = outer.last().cloned().unwrap_or_default();
                }
                _ => {}
            }
        }
        path.push(word);
        paths.push(path);
    }
    paths
}

/// Returns the module of `files` that a path in `file` refers to: `config/mod` for a re-export of
/// `config`.
fn resolve(file: &str, path: &[String], files: &BTreeSet<String>) -> Option<String> {
    let mut at: Vec<&str> = file.split('/').collect();
    if at.pop() != Some("mod") {
        at.push(file.rsplit('/').next().unwrap());
    }
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => at.clear(),
        "super" => drop(at.pop()),
        "self" => {}
        _ => return None,
    }
    rest = &rest[1..];
    let mut found = None;
    loop {
        let module = at.join("/");
        for candidate in [format!("{module}/mod"), module] {
            found = files.get(&candidate).cloned().or(found);
        }
        let Some((next, after)) = rest.split_first() else { return found };
        at.push(next);
        rest = after;
    }
}

/// No file of these modules imports one that imports it, directly or through others.
#[test]
fn files_have_no_circular_imports() {
    let sources = sources();
    let files: BTreeSet<String> = sources.iter().map(|(file, _)| file.clone()).collect();
    // The folder of each source file that is in one.
    let modules: BTreeSet<&str> =
        files.iter().filter_map(|file| file.split_once('/')).map(|(module, _)| module).collect();
    assert!(modules.len() >= 11, "modules were not found: {modules:?}");
    for module in modules {
        let mut imports = BTreeMap::<&str, BTreeSet<String>>::new();
        for (file, code) in sources.iter().filter(|(f, _)| f.starts_with(&format!("{module}/"))) {
            let found = use_paths(code).iter().filter_map(|p| resolve(file, p, &files)).collect();
            imports.insert(file, found);
        }
        assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 0, "no import was found");
        // Take away what imports nothing that is left, until there is only a circle.
        loop {
            let leaves: Vec<_> = imports
                .iter()
                .filter(|(_, found)| !found.iter().any(|f| imports.contains_key(f.as_str())))
                .map(|(file, _)| *file)
                .collect();
            if leaves.is_empty() {
                break;
            }
            leaves.iter().for_each(|file| drop(imports.remove(file)));
        }
        let left: Vec<_> = imports.keys().collect();
        assert!(left.is_empty(), "files of {module} import each other: some of {left:?}");
    }
}
