//! Links of documents lead to files and headings that are there. Those to other hosts are not
//! followed.

use std::path::{Path, PathBuf};

use crate::{documents, markdown, read, repository};

/// Why the link leads nowhere.
fn broken(document: &Path, target: &str) -> Option<String> {
    if target.starts_with("https://") || target.starts_with("http://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file: PathBuf = match path {
        "" => document.to_owned(),
        path => document.parent().unwrap().join(path),
    };
    let whole = repository().join(&file);
    if !whole.exists() {
        return Some(format!("there is no {}", file.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let Ok(text) = std::fs::read_to_string(&whole) else {
        return Some("a heading of what is no text".to_owned());
    };
    let anchors = markdown::anchors(&text);
    if anchors.iter().any(|known| known == anchor) {
        return None;
    }
    Some(format!("{} has no heading #{anchor}, only {anchors:?}", file.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for document in documents() {
        for (line, target) in markdown::links(&read(&document)) {
            seen += 1;
            if let Some(why) = broken(&document, &target) {
                wrong.push(format!("{}:{line}: ({target}): {why}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "only {seen} links were found");
}

/// A document that no link leads to is one that nobody finds.
#[test]
fn every_document_can_be_reached_from_the_readme() {
    let mut reached = vec![PathBuf::from("README.md")];
    let mut next = 0;
    while let Some(document) = reached.get(next).cloned() {
        next += 1;
        for (_, target) in markdown::links(&read(&document)) {
            let path = target.split('#').next().unwrap();
            let file = tidy(&document.parent().unwrap().join(path));
            let is_ours = path.ends_with(".md") && repository().join(&file).exists();
            if is_ours && !reached.contains(&file) {
                reached.push(file);
            }
        }
    }
    let lost: Vec<PathBuf> = documents().into_iter().filter(|path| !reached.contains(path)).collect();
    assert!(lost.is_empty(), "no link from README.md leads to {lost:?}");
}

/// The path without `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            tidy.pop();
        } else {
            tidy.push(part);
        }
    }
    tidy
}

/// Sources that a text names in backticks, by their paths in the tree or in `src/`.
fn named_sources(text: &str) -> Vec<&str> {
    let shown = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let words = shown.flat_map(str::split_whitespace);
    words
        .filter(|word| word.contains('/') && word.ends_with(".rs") && !word.contains(['*', '…']))
        .collect()
}

#[test]
fn every_named_source_exists() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    // A changelog names what there was.
    for document in documents().iter().filter(|path| *path != Path::new("CHANGELOG.md")) {
        let text = markdown::prose(&read(document));
        for source in named_sources(&text) {
            seen += 1;
            let exists = ["", "src"]
                .iter()
                .any(|folder| repository().join(folder).join(source).exists());
            if !exists {
                wrong.push(format!("{}: there is no {source}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "only {seen} were found");
    assert_eq!(named_sources("a `b/c.rs` d.rs `x e/f.rs`"), ["b/c.rs", "e/f.rs"]);
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let readme = Path::new("README.md");
    assert!(broken(readme, "docs/nothing.md").is_some());
    assert!(broken(readme, "docs/tuning.md#no-such-heading").is_some());
    assert!(broken(readme, "#no-such-heading").is_some());
    assert!(broken(Path::new("docs/tuning.md"), "../README.md#figures").is_none());
}
