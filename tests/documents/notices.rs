//! `THIRD-PARTY-NOTICES.md` names every package that is linked into the gateway, with its licence.
//! `deny.toml` allows no other licence.
//!
//! `UPDATE_DOCS=1 cargo test --test documents notices` writes the file again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{cargo_metadata, repository};

const FILE: &str = "THIRD-PARTY-NOTICES.md";

/// The preferred licences, if a package offers several: one text serves all that offer Apache-2.0.
const CHOICE: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "BSL-1.0",
    "Unicode-3.0",
    "MPL-2.0",
];

/// Licences that ask for a way to the source.
const SOURCE_IS_ASKED_FOR: &[&str] = &["MPL-2.0"];

/// Foreign source that packages carry and compile in: the files of its licences.
const CARRIED: &[(&str, &str)] = &[
    ("glommio", "liburing/LICENSE"),
    ("aws-lc-sys", "aws-lc/third_party/fiat/LICENSE"),
    ("ring", "third_party/fiat/LICENSE"),
    ("ring", "src/polyfill/once_cell/LICENSE-MIT"),
];

struct Package {
    name: String,
    version: String,
    /// The licence as an SPDX expression.
    licence: String,
    authors: Vec<String>,
    folder: PathBuf,
}

impl Package {
    /// The licences that hold: all that are joined by AND, and the first of [`CHOICE`] of those
    /// that are joined by OR.
    fn chosen(&self) -> Vec<&str> {
        let all = self.licence.split(" AND ").map(|part| {
            let offered: Vec<&str> = part.trim_matches(['(', ')']).split(" OR ").collect();
            *CHOICE.iter().find(|name| offered.contains(name)).unwrap_or(&offered[0])
        });
        let mut chosen: Vec<&str> = Vec::new();
        for licence in all {
            if !chosen.contains(&licence) {
                chosen.push(licence);
            }
        }
        chosen
    }

    /// Files of licences and notices, with those of carried source.
    fn files(&self) -> Vec<PathBuf> {
        let chosen = self.chosen();
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && self.is_needed(&chosen, &path.file_name().unwrap().to_string_lossy()))
            .collect();
        files.sort();
        for (name, path) in CARRIED {
            if *name == self.name {
                assert!(self.folder.join(path).exists(), "{name} has no {path} any more");
                files.push(self.folder.join(path));
            }
        }
        files
    }

    fn is_needed(&self, chosen: &[&str], file: &str) -> bool {
        let file = file.to_uppercase();
        if file.starts_with("NOTICE") {
            return true;
        }
        if !(file.starts_with("LICENSE") || file.starts_with("LICENCE")) {
            return false;
        }
        // The text of Apache-2.0 stands once, where it was chosen among others.
        let alternatives = ["APACHE", "MIT", "ZLIB", "BSL", "BOOST", "ISC", "0BSD", "UNLICENSE"];
        match alternatives.iter().find(|word| file.contains(*word)) {
            Some(word) => chosen.len() > 1 || (chosen != ["Apache-2.0"] && chosen[0].to_uppercase().starts_with(word)),
            None => chosen != ["Apache-2.0"] || !self.licence.contains(" OR "),
        }
    }
}

/// The packages that are linked into the gateway: no tests, no tools of build scripts, no macros.
fn linked() -> Vec<Package> {
    let metadata = cargo_metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), package))
        .collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let root = text(&metadata["resolve"]["root"]);
    let mut seen = BTreeSet::new();
    let mut ahead = vec![root];
    while let Some(id) = ahead.pop() {
        let targets = packages[id]["targets"].as_array().unwrap();
        let is_macro = targets.iter().any(|target| target["kind"][0] == "proc-macro");
        if is_macro || !seen.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                ahead.push(text(&dependency["pkg"]));
            }
        }
    }
    seen.remove(root);
    let mut linked: Vec<Package> = seen.iter().map(|id| package(packages[id])).collect();
    linked.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    linked
}

fn package(value: &Value) -> Package {
    let name = text(&value["name"]).to_owned();
    let licence = value["license"]
        .as_str()
        .unwrap_or_else(|| panic!("{name} names no licence"));
    Package {
        version: text(&value["version"]).to_owned(),
        // Old ways to write OR, and "or any later version", of which this one is enough.
        licence: licence
            .replace(" / ", " OR ")
            .replace('/', " OR ")
            .replace("MPL-2.0+", "MPL-2.0"),
        authors: value["authors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|author| text(author).to_owned())
            .collect(),
        folder: Path::new(text(&value["manifest_path"])).parent().unwrap().to_owned(),
        name,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn notices(linked: &[Package]) -> String {
    let mut out = String::from(
        "# Third-party notices\n\n\
         The gateway is a program that contains the works of others. This file belongs beside it wherever it is handed on.\n\
         `UPDATE_DOCS=1 cargo test --test documents notices` makes it from what cargo knows; a test says when it is stale.\n\
         Where a package leaves the choice, the licence named here was chosen.\n\n\
         ## Source that can be had\n\n",
    );
    for package in linked {
        if package
            .chosen()
            .iter()
            .any(|licence| SOURCE_IS_ASKED_FOR.contains(licence))
        {
            out += &format!(
                "`{0}` {1} is under the Mozilla Public License 2.0 and part of the gateway unchanged. Its source:\n\
                 <https://crates.io/api/v1/crates/{0}/{1}/download>, and <https://docs.rs/crate/{0}/{1}/source/> to read. The text of the\n\
                 licence is below, and at <https://mozilla.org/MPL/2.0/>.\n\n",
                package.name, package.version
            );
        }
    }
    out += "## What is in it\n\n| package | version | licence |\n| --- | --- | --- |\n";
    for package in linked {
        out += &format!(
            "| {} | {} | {} |\n",
            package.name,
            package.version,
            package.chosen().join(" AND ")
        );
    }
    out += "\n`glommio` brings liburing (MIT), `aws-lc-sys` AWS-LC and fiat-crypto, `ring` parts of BoringSSL and fiat-crypto: the texts are below.\n";
    out += "\n## Texts\n\n### Apache License 2.0\n\nOf every package above that has it.\n\n";
    out += &fenced(&std::fs::read_to_string(repository().join("LICENSE-APACHE")).unwrap());
    let mut texts: Vec<(String, Vec<String>)> = Vec::new();
    for package in linked {
        let files = package.files();
        let mut add = |text: String, of: String| match texts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, names)) if names.contains(&of) => {}
            Some((_, names)) => names.push(of),
            None => texts.push((text, vec![of])),
        };
        let of = format!("{} {}", package.name, package.version);
        if files.is_empty() && package.chosen() != ["Apache-2.0"] {
            // Published without the text: take the licence that it names, with its authors.
            assert_eq!(package.chosen(), ["MIT"], "{of} has no text of its licence");
            add(mit(&package.authors.join(", ")), of.clone());
        }
        for file in files {
            let carried = file.strip_prefix(&package.folder).unwrap();
            let of = if carried.components().count() > 1 {
                format!("{of}: {}", carried.display())
            } else {
                of.clone()
            };
            add(normal(&String::from_utf8_lossy(&std::fs::read(&file).unwrap())), of);
        }
    }
    for (text, of) in texts {
        out += &format!("\n### {}\n\n{}", of.join(", "), fenced(&text));
    }
    out
}

/// The text without carriage returns, spaces at the ends of lines, and empty lines around it.
fn normal(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

fn fenced(text: &str) -> String {
    let fence = if text.contains("```") { "````" } else { "```" };
    assert!(!text.contains("````"), "{text}");
    format!("{fence}text\n{}\n{fence}\n", normal(text))
}

fn mit(authors: &str) -> String {
    let ours = std::fs::read_to_string(repository().join("LICENSE-MIT")).unwrap();
    let (_, permission) = ours.split_once("\n\nPermission is").expect("the text of MIT");
    normal(&format!(
        "MIT License\n\nCopyright (c) {authors}\n\nPermission is{permission}"
    ))
}

#[test]
fn notices_name_what_is_linked() {
    let made = notices(&linked());
    let path = repository().join(FILE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let line = there.lines().zip(made.lines()).find(|(there, made)| there != made);
    assert!(
        there == made,
        "{FILE} is stale: UPDATE_DOCS=1 cargo test --test documents notices; the first line that differs: {line:?}"
    );
    assert!(
        made.contains("`bitmaps`") && made.contains("Mozilla Public License Version 2.0"),
        "{made}"
    );
    assert!(
        made.contains("liburing/LICENSE") && made.contains("Copyright 2020 Jens Axboe"),
        "{made}"
    );
}

/// Does the work of `cargo deny check licenses` without cargo-deny, for every package of the whole
/// tree, tests included.
#[test]
fn every_licence_is_allowed() {
    let rules: toml::Table = toml::from_str(&std::fs::read_to_string(repository().join("deny.toml")).unwrap()).unwrap();
    let licences = rules["licenses"].as_table().unwrap();
    let names = |value: &toml::Value| -> Vec<String> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let allowed = names(&licences["allow"]);
    let metadata = cargo_metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap().iter().map(package) {
        let exceptions = licences["exceptions"].as_array().unwrap();
        let own = exceptions
            .iter()
            .find(|exception| exception["crate"].as_str() == Some(&package.name));
        let own = own.map(|exception| names(&exception["allow"])).unwrap_or_default();
        let good = |name: &str| allowed.iter().chain(&own).any(|allowed| allowed == name);
        let mut parts = package
            .licence
            .split(" AND ")
            .map(|part| part.trim_matches(['(', ')']).split(" OR "));
        if !parts.all(|mut offered| offered.any(good)) {
            wrong.push(format!("{} {}: {}", package.name, package.version, package.licence));
        }
    }
    assert!(wrong.is_empty(), "deny.toml does not allow {wrong:?}");
}
