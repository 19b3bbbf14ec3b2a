//! Prose is wrapped at 100 columns, so that a change of a sentence is a change of few lines.

use std::path::Path;
use std::process::Command;

use crate::{documents, markdown, read};

const COLUMNS: usize = 100;

/// The changelog is as it was written at each time, and the notices are made from other people's
/// texts.
const OTHERS: [&str; 2] = ["CHANGELOG.md", "THIRD-PARTY-NOTICES.md"];

/// Whether the line is too wide although it can be broken. Rows of tables and words that are wider
/// by themselves cannot.
fn is_too_wide(line: &str) -> bool {
    if line.chars().count() <= COLUMNS || line.trim_start().starts_with('|') {
        return false;
    }
    let words = line.trim_start().trim_start_matches(['-', '*', '>', ' ']);
    let indent = line.chars().count() - words.chars().count();
    // A space within backticks is part of a command or of code.
    let mut shown = false;
    words.chars().take(COLUMNS - indent).any(|c| {
        shown ^= c == '`';
        c == ' ' && !shown
    })
}

#[test]
fn prose_is_wrapped() {
    let mut wrong = Vec::new();
    for document in documents() {
        if OTHERS.iter().any(|other| document == Path::new(other)) {
            continue;
        }
        for (index, line) in markdown::prose(&read(&document)).lines().enumerate() {
            if is_too_wide(line) {
                let columns = line.chars().count();
                wrong.push(format!("{}:{}: {columns} columns", document.display(), index + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "wrap prose at {COLUMNS} columns:\n{}",
        wrong.join("\n")
    );
}

/// Prose of comments; pictures and examples stand between fences.
#[test]
fn comments_are_wrapped() {
    let listed = Command::new("git").args(["ls-files", "*.rs"]).output().unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    assert!(files.lines().count() > 100, "git knows of no sources: {files}");
    let mut wrong = Vec::new();
    for file in files.lines() {
        let mut fenced = false;
        for (index, line) in read(Path::new(file)).lines().enumerate() {
            let line = line.trim_start_matches(' ');
            let Some(comment) = line.strip_prefix("//") else {
                fenced = false;
                continue;
            };
            let text = comment.trim_start_matches(['/', '!']).trim_start();
            fenced ^= text.starts_with("```");
            if !fenced && is_too_wide(text) {
                wrong.push(format!("{file}:{}", index + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "wrap comments at {COLUMNS} columns:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn wide_lines_are_seen() {
    let word = "w".repeat(COLUMNS);
    assert!(is_too_wide(&"word ".repeat(21)));
    assert!(is_too_wide(&format!("- a {word}")));
    assert!(!is_too_wide(&"é".repeat(COLUMNS)));
    assert!(!is_too_wide(&format!("- {word}")));
    assert!(!is_too_wide(&format!("| a | {word} |")));
    assert!(!is_too_wide(&format!("  `a {word}`")));
}
