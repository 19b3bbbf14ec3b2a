//! As much of Markdown as our documents use: fenced blocks, headings, links.

use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) document: PathBuf,
    /// The line of its opening fence.
    pub(crate) line: usize,
    /// The first word of the info string; empty if there is none.
    pub(crate) language: String,
    /// The rest of the info string, as `name="value"`.
    pub(crate) says: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Block {
    pub(crate) fn says(&self, name: &str) -> Option<&str> {
        let (_, value) = self.says.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// File and line, as compilers write them.
    pub(crate) fn location(&self) -> String {
        format!("{}:{}", self.document.display(), self.line)
    }
}

/// The number of backticks and the info string, if the line is a fence.
fn fence(line: &str) -> Option<(usize, &str)> {
    let line = line.trim_start();
    let behind = line.trim_start_matches('`');
    let ticks = line.len() - behind.len();
    (ticks >= 3).then_some((ticks, behind))
}

/// All fenced blocks. A block ends at a fence that is at least as long as its first one.
///
/// # Panics
/// A fence is not closed, or an info string cannot be read.
pub(crate) fn blocks(document: &Path, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = None;
    for (index, line) in text.lines().enumerate() {
        match (open, fence(line)) {
            (None, None) => {}
            (None, Some((ticks, info))) => {
                let (language, says) = info_string(info).unwrap_or_else(|| {
                    panic!(
                        "{}:{}: no info string: {info:?}; write ```sh or ```sh not-run=\"reason\"",
                        document.display(),
                        index + 1
                    )
                });
                blocks.push(Block {
                    document: document.to_owned(),
                    line: index + 1,
                    language,
                    says,
                    text: String::new(),
                });
                open = Some(ticks);
            }
            (Some(begun), Some((ticks, ""))) if ticks >= begun => open = None,
            (Some(_), _) => {
                let block = blocks.last_mut().unwrap();
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "{}: a block is not closed", document.display());
    blocks
}

fn info_string(info: &str) -> Option<(String, Vec<(String, String)>)> {
    let info = info.trim();
    let (language, mut rest) = info.split_once(' ').unwrap_or((info, ""));
    let mut says = Vec::new();
    while !rest.trim().is_empty() {
        let (name, behind) = rest.trim().split_once("=\"")?;
        let (value, behind) = behind.split_once('"')?;
        says.push((name.to_owned(), value.to_owned()));
        rest = behind;
    }
    Some((language.to_owned(), says))
}

/// The text without the lines of fenced blocks, which hold no headings and no links.
pub(crate) fn prose(text: &str) -> String {
    let mut open = None;
    let mut prose = String::new();
    for line in text.lines() {
        match (open, fence(line)) {
            (None, None) => prose.push_str(line),
            (None, Some((ticks, _))) => open = Some(ticks),
            (Some(begun), Some((ticks, ""))) if ticks >= begun => open = None,
            (Some(_), _) => {}
        }
        prose.push('\n');
    }
    prose
}

/// The names by which headings can be linked, as forges make them.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for line in prose(text).lines() {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let mut anchor = String::new();
        for c in heading.trim().to_lowercase().chars() {
            match c {
                ' ' => anchor.push('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => anchor.push(c),
                _ => {}
            }
        }
        let twins = anchors.iter().filter(|known| **known == anchor).count();
        if twins > 0 {
            anchor.push_str(&format!("-{twins}"));
        }
        anchors.push(anchor);
    }
    anchors
}

/// Targets of `[text](target)`, with their lines.
pub(crate) fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (index, line) in prose(text).lines().enumerate() {
        // Text in backticks is shown, not linked.
        let shown: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        let mut rest = shown.as_str();
        while let Some((_, behind)) = rest.split_once("](") {
            let Some((target, behind)) = behind.split_once(')') else {
                break;
            };
            links.push((index + 1, target.to_owned()));
            rest = behind;
        }
    }
    links
}

#[test]
fn blocks_are_read_with_what_they_say() {
    let text = "a\n```sh not-run=\"needs-root\" exits=\"1\"\nls\n# no heading\n```\n## A `b`: c!\n```\nx\n```\n";
    let blocks = blocks(Path::new("x.md"), text);
    assert_eq!(blocks.len(), 2);
    assert_eq!((blocks[0].line, blocks[0].language.as_str()), (2, "sh"));
    assert_eq!(
        (blocks[0].says("not-run"), blocks[0].says("exits")),
        (Some("needs-root"), Some("1"))
    );
    assert_eq!((blocks[1].language.as_str(), blocks[1].text.as_str()), ("", "x\n"));
    assert_eq!(anchors(text), ["a-b-c"]);
    assert_eq!(
        links("[a](b.md#c) and `[no](link)` [d](e)\n```\n[f](g)\n```\n"),
        [(1, "b.md#c".to_owned()), (1, "e".to_owned())]
    );
    assert_eq!(info_string("sh not-run=needs-root"), None);
    let nested = super::markdown::blocks(Path::new("x.md"), "````text\n```\n[a](b)\n```\n````\n# c\n");
    assert_eq!((nested.len(), nested[0].text.as_str()), (1, "```\n[a](b)\n```\n"));
}
