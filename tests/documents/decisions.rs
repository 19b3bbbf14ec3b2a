//! Decisions have one form, and the list of them is whole.

use std::path::Path;

use crate::{documents, read};

const FOLDER: &str = "docs/decisions";

/// The row of the list that belongs to the decision, or the fault of its form.
fn row(file: &str, text: &str) -> Result<String, String> {
    let (number, _) = file.split_once('-').ok_or("a name is NNNN-title.md")?;
    let mut lines = text.lines();
    let title = lines
        .next()
        .and_then(|line| line.strip_prefix(&format!("# {number}: ")));
    let title = title.ok_or_else(|| format!("the first line is: # {number}: TITLE"))?;
    let date = lines.nth(1).unwrap_or_default().get(..10).unwrap_or_default();
    let is_date = date.split('-').map(str::len).eq([4, 2, 2]) && date.replace('-', "").parse::<u32>().is_ok();
    if !is_date {
        return Err("the third line begins with the date: YYYY-MM-DD".to_owned());
    }
    let sections: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    if !sections.starts_with(&["Context", "Decision", "Consequences"]) {
        return Err(format!(
            "the sections are Context, Decision and Consequences, then any; here {sections:?}"
        ));
    }
    Ok(format!("| [{number}]({file}) | {title} | {date} |"))
}

#[test]
fn every_decision_has_its_form_and_is_in_the_list() {
    let documents = documents();
    let files = documents
        .iter()
        .filter_map(|path| path.strip_prefix(FOLDER).ok()?.to_str())
        .filter(|file| *file != "README.md");
    let rows: Vec<String> = files
        .map(|file| row(file, &read(&Path::new(FOLDER).join(file))).unwrap_or_else(|fault| panic!("{file}: {fault}")))
        .collect();
    let list = read(&Path::new(FOLDER).join("README.md"));
    let listed: Vec<&str> = list.lines().filter(|line| line.starts_with("| [")).collect();
    assert_eq!(listed, rows, "{FOLDER}/README.md");
    for (index, row) in rows.iter().enumerate() {
        let number = format!("| [{:04}]", index + 1);
        assert!(row.starts_with(&number), "numbers go up by one: {row}");
    }
}

#[test]
fn a_decision_of_another_form_is_seen() {
    let whole = "# 0001: A title\n\n2026-11-22, in force.\n\n## Context\n\n## Decision\n\n## Consequences\n";
    assert_eq!(
        row("0001-a-title.md", whole).unwrap(),
        "| [0001](0001-a-title.md) | A title | 2026-11-22 |"
    );
    for (from, to) in [("0001", "0002"), ("2026-11-22", "last week"), ("## Context\n", "")] {
        assert!(row("0001-a-title.md", &whole.replace(from, to)).is_err(), "{from}");
    }
}
