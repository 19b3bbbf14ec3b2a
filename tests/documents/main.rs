//! Documents are true. Every command in them runs, or says why a test cannot run it. Configurations
//! are accepted, links lead somewhere, and prose is wrapped. Examples keep their promises, and
//! figures follow from the keys.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod contributing;
mod decisions;
mod examples;
mod installs;
mod links;
mod markdown;
mod memory;
mod notices;
mod provider;
mod proxies;
mod recipes;
mod sentences;
mod session;
mod width;

use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The paths of all Markdown files of the tree, in order.
fn documents() -> Vec<PathBuf> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"])
        .current_dir(repository())
        .output()
        .unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    let mut names: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
    names.retain(|name| repository().join(name).exists());
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

fn read(document: &Path) -> String {
    std::fs::read_to_string(repository().join(document)).unwrap()
}

/// The metadata that cargo has of this workspace.
fn cargo_metadata(args: &[&str]) -> serde_json::Value {
    let ended = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(args)
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    serde_json::from_slice(&ended.stdout).unwrap()
}
