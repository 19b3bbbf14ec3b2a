//! Sentences are short enough to be read once. A part that a colon or a semicolon ends counts as
//! one.

use std::path::Path;

use crate::{documents, markdown, read};

/// Style asks for 25 words. A list within a sentence takes some more.
const WORDS: usize = 30;

const OTHERS: [&str; 2] = ["CHANGELOG.md", "THIRD-PARTY-NOTICES.md"];

/// Paragraphs and items of lists, with the lines where they begin. Headings, tables and comments
/// are left out.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut paragraphs: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, line) in markdown::prose(text).lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['|', '#', '<', '!']) {
            open = false;
            continue;
        }
        let marker = line.split_once(' ').filter(|(marker, _)| {
            let number = marker.strip_suffix('.').unwrap_or_default();
            matches!(*marker, "-" | "*") || number.parse::<u32>().is_ok()
        });
        let (begins, words) = marker.map_or((!open, line), |(_, words)| (true, words));
        if begins {
            paragraphs.push((index + 1, words.to_owned()));
        } else {
            let (_, paragraph) = paragraphs.last_mut().unwrap();
            paragraph.push(' ');
            paragraph.push_str(words);
        }
        open = true;
    }
    paragraphs
}

/// The number of words of each sentence. Text in backticks is one word.
fn sentences(paragraph: &str) -> Vec<usize> {
    let mut counts = vec![0];
    let shown = paragraph.split('`').enumerate();
    let text: String = shown
        .map(|(index, part)| if index % 2 == 0 { part } else { "code" })
        .collect();
    for word in text.split_whitespace() {
        *counts.last_mut().unwrap() += usize::from(word.contains(char::is_alphanumeric));
        if word
            .trim_end_matches([')', '*', '"', ']'])
            .ends_with(['.', '!', '?', ':', ';'])
        {
            counts.push(0);
        }
    }
    counts.retain(|count| *count > 0);
    counts
}

#[test]
fn sentences_are_short() {
    let mut wrong = Vec::new();
    for document in documents() {
        if OTHERS.iter().any(|other| document == Path::new(other)) {
            continue;
        }
        for (line, paragraph) in paragraphs(&read(&document)) {
            for words in sentences(&paragraph).into_iter().filter(|words| *words > WORDS) {
                wrong.push(format!(
                    "{}:{line}: a sentence of {words} words in: {paragraph}",
                    document.display()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "at most {WORDS} words to a sentence:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn sentences_are_counted() {
    assert_eq!(sentences("One two. (Three `four five`; six) seven"), [2, 2, 2]);
    let text = "# A b\n\none\ntwo\n\n- three\n  four\n- five\n\n| six |\n\n1. seven\n```text\neight\n```\n";
    let found = paragraphs(text);
    let found: Vec<(usize, &str)> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
    assert_eq!(found, [(3, "one two"), (6, "three four"), (8, "five"), (12, "seven")]);
}
