//! CONTRIBUTING.md names files, identifiers and recipes: each is where it says.
//!
//! A step of a list names files and what is in them. So an identifier has to be a word in one of
//! the files of its step.

use std::path::Path;

use crate::blocks::missing;
use crate::read;
use crate::repository;

const DOCUMENT: &str = "CONTRIBUTING.md";

/// The code spans of each step: of a line of prose and the lines that continue it.
fn steps(text: &str) -> Vec<Vec<String>> {
    let mut steps: Vec<String> = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let begins = line.starts_with(|c: char| c.is_ascii_digit() || "-|#".contains(c)) || line.is_empty();
            match steps.last_mut() {
                Some(last) if !begins => last.extend([" ", line]),
                _ => steps.push(line.to_owned()),
            }
        }
    }
    let spans = |step: &String| step.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    steps.iter().map(spans).collect()
}

fn is_path(span: &str) -> bool {
    let ends = [".rs", ".md", ".toml", ".txt"].iter().any(|end| span.ends_with(end));
    !span.contains(' ') && !span.contains("::") && (ends || span.contains('/')) && !span.contains("://")
}

fn is_identifier(span: &str) -> bool {
    !span.is_empty() && span.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Programs, and words of the languages, which no file of ours has to have.
const KNOWN: &[&str] = &[
    "just",
    "cargo-fuzz",
    "unwrap",
    "unsafe",
    "mod tests",
    "room: what",
    "--help",
];

/// The text of a file, or of all files below a folder.
fn text_of(path: &Path) -> String {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        return entries.map(|entry| text_of(&entry.unwrap().path())).collect();
    }
    std::fs::read_to_string(path).unwrap_or_default()
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, behind) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(part) && !behind.starts_with(part)
    })
}

/// The faults of one step.
fn wrong(spans: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let paths: Vec<&String> = spans.iter().filter(|span| is_path(span)).collect();
    // `src/metrics` and `shard.rs`: a file of that folder.
    let found = |path: &str| {
        let folders = paths.iter().map(|folder| repository().join(folder).join(path));
        [repository().join(path)]
            .into_iter()
            .chain(folders)
            .find(|path| path.exists())
    };
    let files: Vec<_> = paths.iter().filter_map(|path| found(path)).collect();
    for span in spans {
        if KNOWN.contains(&span.as_str()) {
            continue;
        }
        if is_path(span) {
            if found(span).is_none() {
                wrong.push(format!("there is no {span}"));
            }
        } else if is_identifier(span) {
            let everywhere = [repository().join(span)];
            let within = if files.is_empty() { &everywhere[..] } else { &files };
            let is_there = |path: &std::path::PathBuf| {
                if files.is_empty() {
                    path.exists()
                } else {
                    has_word(&text_of(path), span)
                }
            };
            if !within.iter().any(is_there) {
                wrong.push(format!("{span} is not in {within:?}"));
            }
        } else {
            wrong.extend(wrong_command(span));
        }
    }
    wrong
}

fn wrong_command(command: &str) -> Option<String> {
    let mut words = command.split(' ').skip_while(|word| word.contains('='));
    match (words.next()?, words.next()) {
        ("just", Some(recipe)) => {
            let recipes = std::fs::read_to_string(repository().join("justfile")).unwrap();
            let heads = recipes.lines().filter(|line| !line.starts_with([' ', '#']));
            let mut names = heads.filter_map(|head| head.split([' ', ':']).next());
            (!names.any(|name| name == recipe)).then(|| format!("just has no {recipe}"))
        }
        ("cargo" | "tests/run", Some(_)) => missing(command).or_else(|| wrong_filter(command)),
        _ => Some(format!("{command:?} is nothing that this test knows")),
    }
}

/// A part of a test's name that no test has. `cargo test` would run nothing, and say that all is
/// well.
fn wrong_filter(command: &str) -> Option<String> {
    let rest = command.split_once("cargo test ")?.1;
    let filter = rest.split(' ').next_back().filter(|word| !word.starts_with('-'))?;
    if rest.starts_with("--test ") && rest.split(' ').count() == 2 || rest.starts_with("-p ") {
        return None;
    }
    let word = filter.trim_end_matches("::");
    let is_module = filter.ends_with("::") || ["config", "notices"].contains(&word);
    let there = if is_module {
        let folders = ["src", "tests/it", "tests/documents"];
        folders.iter().any(|folder| {
            let path = repository().join(folder).join(word);
            path.is_dir() || path.with_extension("rs").exists()
        })
    } else {
        has_test(&text_of(&repository().join("src")), word)
    };
    (!there).then(|| format!("no test is called {filter}"))
}

fn has_test(text: &str, part: &str) -> bool {
    text.split("#[test]\n").skip(1).any(|behind| {
        let head = behind.split('(').next().unwrap();
        head.contains("fn ") && head.contains(part)
    })
}

#[test]
fn everything_that_is_named_is_there() {
    let steps = steps(&read(Path::new(DOCUMENT)));
    let named: usize = steps.iter().map(Vec::len).sum();
    assert!(named > 80, "only {named} names were found");
    let wrong: Vec<String> = steps.iter().flat_map(|step| wrong(step)).collect();
    assert!(wrong.is_empty(), "{DOCUMENT}:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_not_there_is_seen() {
    for good in [
        "`src/metrics`: `shard.rs` has a `TABLE`",
        "1. `src/wire/json/decode.rs`:\n   `ClientFrame`",
        "`just run`, `cargo test --test it drain::`, `cargo test -p shardgate-load`",
        "```sh\n`nothing`\n```",
    ] {
        let wrong: Vec<String> = steps(good).iter().flat_map(|step| wrong(step)).collect();
        assert_eq!(wrong, [""; 0], "{good}");
    }
    for bad in [
        "`src/nothing.rs`",
        "`src/wire/json/decode.rs`: `ClientFram`",
        "1. `src/wire/json/decode.rs`\n2. `ClientFrame`",
        "`just dance`",
        "`cargo test --test nothing`",
        "`cargo test --lib nothing::`",
        "`cargo test --lib no_such_test`",
        "`ls -l`",
    ] {
        assert!(steps(bad).iter().any(|step| !wrong(step).is_empty()), "{bad}");
    }
}
