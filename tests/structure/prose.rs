//! The rules of writing in CONTRIBUTING.md that a program can check, over Markdown, comments, and
//! the texts of the dashboard and the alerts: words and phrases to avoid, and lines of at most 100
//! columns.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const COLUMNS: usize = 100;

/// Phrases that need a second reading, and what to write instead.
const PHRASES: [(&str, &str); 16] = [
    ("all the same", "nevertheless, or leave it out"),
    ("as of", "since, from, or same as"),
    ("behind", "after; it is only for space"),
    ("besides", "also, in addition to"),
    ("for want of", "because there is no"),
    ("go on", "continue"),
    ("goes on", "continues, resumes"),
    ("hears", "receives"),
    ("in vain", "without success"),
    ("of which", "name the subject"),
    ("so many", "n"),
    ("to be had", "available"),
    ("told", "reported, sent, passed"),
    ("unless set", "default"),
    ("whoever", "name the subject"),
    ("whom", "name the subject"),
];

/// A line that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// From 1.
    line: usize,
    /// The phrase, or `columns`.
    rule: String,
    text: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Markdown,
    /// Prose is in comments that begin with this.
    Code(&'static str),
    /// Prose is in values. Lines have any length.
    Values,
}

fn kind_of(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()? {
        "md" => Some(Kind::Markdown),
        "rs" => Some(Kind::Code("//")),
        "yml" if path.starts_with("docs") => Some(Kind::Values),
        "sh" | "yml" | "toml" => Some(Kind::Code("#")),
        "json" => Some(Kind::Values),
        _ => None,
    }
}

/// The lines of `text` that break a rule.
fn findings(kind: Kind, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    // A phrase can begin on the line before.
    let mut previous = String::new();
    let mut in_code = false;
    for (i, line) in text.lines().enumerate() {
        let prose = match kind {
            Kind::Markdown | Kind::Values => Some(line),
            Kind::Code(mark) => comment(line, mark),
        };
        let Some(prose) = prose else {
            (previous, in_code) = (String::new(), false);
            continue;
        };
        let prose = prose.trim();
        if prose.starts_with("```") {
            in_code = !in_code;
            previous.clear();
            continue;
        }
        if in_code {
            continue;
        }
        let may_be_long = matches!(kind, Kind::Values) || prose.starts_with('|');
        if !may_be_long && without_targets(line).chars().count() > COLUMNS && prose.contains(' ') {
            found.push(Finding { line: i + 1, rule: "columns".into(), text: line.into() });
        }
        let words = words(prose);
        let both = format!(" {previous} {words} ");
        let earlier = previous.len() + 1;
        for (phrase, _) in PHRASES {
            let sought = format!(" {phrase} ");
            // What ends on the line before was found there.
            let ends_here = |at: usize| at + sought.len() - 1 > earlier;
            if both.match_indices(&sought).any(|(at, _)| ends_here(at)) {
                found.push(Finding { line: i + 1, rule: phrase.into(), text: line.into() });
            }
        }
        previous = words;
    }
    found
}

/// The text of a comment on this line: one of its own, or after code.
fn comment<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    let at = match line.trim_start().starts_with(mark) {
        true => line.find(mark),
        false => line.find(&format!(" {mark} ")).map(|at| at + 1),
    }?;
    // Within a string it is no comment.
    if line[..at].matches('"').count() % 2 == 1 {
        return None;
    }
    let text = line[at..].trim_start_matches(mark);
    Some(text.strip_prefix(['!', '/']).unwrap_or(text))
}

/// Without the targets of links, which cannot be wrapped.
fn without_targets(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text.split(' ').filter(|word| !word.contains("://")).collect::<Vec<_>>().join(" ")
}

/// The words in lower case, separated by single spaces; code and quotations are left out.
fn words(prose: &str) -> String {
    let mut text = String::new();
    for (i, part) in prose.split('`').enumerate() {
        text.push_str(if i % 2 == 0 { part } else { " x " });
    }
    let text = without_targets(&text).to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// An exception: a file, a rule or `*`, and the reason.
struct Allowed {
    path: String,
    rule: String,
}

fn allowed() -> Vec<Allowed> {
    let list = include_str!("prose-allowed.txt");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let parts: Vec<_> = line.split(" | ").map(str::trim).collect();
        let [path, rule, reason] = parts[..] else { panic!("not FILE | RULE | REASON: {line}") };
        assert!(!reason.is_empty(), "no reason: {line}");
        let is_rule = ["*", "columns"].contains(&rule) || PHRASES.iter().any(|(p, _)| *p == rule);
        assert!(is_rule, "no such rule: {line}");
        Allowed { path: path.into(), rule: rule.into() }
    };
    lines.map(entry).collect()
}

fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let folders = [".github", "benches", "docs", "examples", "fuzz", "scripts", "src", "tests"];
    let mut folders: Vec<_> = folders.map(PathBuf::from).into();
    for entry in fs::read_dir(ROOT).unwrap() {
        files.push(PathBuf::from(entry.unwrap().file_name()));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true if entry.file_name() != "target" => folders.push(path),
                true => {}
                false => files.push(path),
            }
        }
    }
    files.push(".ci/run".into());
    files.sort();
    files
}

/// `tests/structure/prose-allowed.txt` has the exceptions. One that is not needed is an error too.
#[test]
fn prose_follows_the_rules() {
    let allowed = allowed();
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for path in files() {
        let script = path.ends_with(".ci/run").then_some(Kind::Code("#"));
        let Some(kind) = kind_of(&path).or(script) else { continue };
        let Ok(text) = fs::read_to_string(Path::new(ROOT).join(&path)) else { continue };
        let path = path.display().to_string();
        for finding in findings(kind, &text) {
            let applies = |a: &Allowed| a.path == path && (a.rule == finding.rule || a.rule == "*");
            if let Some(at) = allowed.iter().position(applies) {
                used.insert(at);
                continue;
            }
            let Finding { line, rule, text } = finding;
            let advice = PHRASES.iter().find(|(phrase, _)| *phrase == rule);
            let advice = match advice {
                Some((phrase, instead)) => format!("\"{phrase}\": {instead}"),
                None => format!("more than {COLUMNS} columns"),
            };
            wrong.push(format!("{path}:{line}: {advice}\n    {}", text.trim()));
        }
    }
    let unused = |(i, _): &(usize, &Allowed)| !used.contains(i);
    for (_, Allowed { path, rule }) in allowed.iter().enumerate().filter(unused) {
        wrong.push(format!("prose-allowed.txt: no longer needed: {path} | {rule}"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn planted_phrase_is_found_in_prose_but_not_in_code() {
    let rules = |kind, text: &str| {
        let found = findings(kind, text);
        found.into_iter().map(|f| (f.line, f.rule)).collect::<Vec<_>>()
    };
    let found = |line, rule: &str| vec![(line, rule.to_owned())];
    let (rust, shell) = (Kind::Code("//"), Kind::Code("#"));
    assert_eq!(rules(Kind::Markdown, "One.\n\nIt waits behind it.\n"), found(3, "behind"));
    assert_eq!(rules(Kind::Markdown, "In the limit (64, Unless\nset).\n"), found(2, "unless set"));
    assert_eq!(rules(rust, "/// Whoever reads.\nfn f() {}\n"), found(1, "whoever"));
    assert_eq!(rules(rust, "    //! There are so\n    //! many.\n"), found(2, "so many"));
    assert_eq!(rules(rust, "let a = 1; // of which one\n"), found(1, "of which"));
    assert_eq!(rules(shell, "#!/bin/sh\n# Tried in vain\n"), found(2, "in vain"));
    assert_eq!(rules(shell, "# told, told\n# and again\n"), found(1, "told"));

    for text in [
        "`behind`, untold, [text](docs/behind.md)",
        "```\nbehind\n```",
        "so\n\nmany",
        "All of them; set unless",
    ] {
        assert_eq!(rules(Kind::Markdown, text), [], "{text}");
    }
    for text in ["let behind = told();", "/// ```\n/// behind();\n/// ```", "// so\nf();\n// many"]
    {
        assert_eq!(rules(rust, text), [], "{text}");
    }

    let (fits, long) = ("word ".repeat(20), "word ".repeat(21));
    let address = format!("[text](https://example.org/{})", "x".repeat(90));
    assert_eq!(rules(Kind::Markdown, fits.trim_end()), []);
    assert_eq!(rules(Kind::Markdown, long.trim_end()), found(1, "columns"));
    assert_eq!(rules(Kind::Markdown, &format!("| {long} |")), []);
    assert_eq!(rules(Kind::Markdown, &format!("See {address}.")), []);
    assert_eq!(rules(rust, &format!("        // {}", fits.trim_end())), found(1, "columns"));
    assert_eq!(rules(rust, &format!("let long = \"{long}\";")), []);

    let value = format!("\"title\": \"{long}\",\n\"title\": \"What goes on\"\n");
    assert_eq!(rules(Kind::Values, &value), found(2, "goes on"));
}
