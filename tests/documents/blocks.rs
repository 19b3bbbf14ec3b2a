//! Every fenced block: commands run or say why not, configurations are accepted, JSON is JSON.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{eventually, namespace, run_to_exit};
use crate::markdown::{self, Block};
use crate::provider::{self, Provider};
use crate::session::{self, Session, Typed};
use crate::{documents, read, repository};

/// Reasons of `not-run="…"`, and signs of which a block with that reason has one.
const REASONS: &[(&str, &[&str])] = &[
    // The block changes the kernel or the host's own files.
    ("needs-root", &["sudo ", "nft ", "systemctl ", "groupadd ", "/etc/"]),
    // The block installs a program, from the network.
    ("installs-packages", &[" install ", "component add", "apt-get "]),
    // The block opens windows.
    ("needs-browser", &["chromium", "open http"]),
    // The block takes minutes, and its result needs a release build that is alone on its machine.
    ("long-running-benchmark", &["benches/", "--ignored"]),
    // The block needs machines that a test does not have.
    ("needs-other-host", &["ssh ", "example.com"]),
    // The block runs these very tests, or a part of them.
    (
        "runs-this-test",
        &[
            "tests/run",
            "tests/autobahn/run",
            "cargo test",
            "cargo +nightly",
            "fuzz/run",
        ],
    ),
];

/// Languages of blocks of commands.
const SHELL: &[&str] = &["sh", "bash", "console"];

/// Languages of blocks that another test looks at, or that cannot be run.
const OTHERS: &[&str] = &["toml", "json", "nginx", "haproxy", "redis", "ini", "text", "js", "rust"];

fn all_blocks() -> Vec<Block> {
    let documents = documents();
    let blocks: Vec<Block> = documents
        .iter()
        .flat_map(|path| markdown::blocks(path, &read(path)))
        .collect();
    assert!(blocks.len() > 30, "only {} blocks were found", blocks.len());
    blocks
}

fn is_shell(block: &Block) -> bool {
    SHELL.contains(&block.language.as_str())
}

/// The typed commands. In a block of `console` they stand behind a prompt; other lines are answers.
fn commands(block: &Block) -> Vec<Typed> {
    if block.language != "console" {
        return session::commands(&block.text);
    }
    let typed = block.text.lines().filter_map(|line| line.strip_prefix("$ "));
    session::commands(&typed.collect::<Vec<_>>().join("\n"))
}

/// The fault of a block, as far as it shows before anything is run.
fn wrong(block: &Block) -> Option<String> {
    if !is_shell(block) {
        if OTHERS.contains(&block.language.as_str()) {
            return None;
        }
        return Some(format!(
            "the language is {:?}: write sh for commands, text for what is none, or one of {OTHERS:?}",
            block.language
        ));
    }
    for (name, _) in &block.says {
        if !["not-run", "exits"].contains(&name.as_str()) {
            return Some(format!("{name}=: only not-run= and exits= mean something"));
        }
    }
    let for_reading = [Path::new("ARCHITECTURE.md"), Path::new("CHANGELOG.md")];
    if for_reading.contains(&block.document.as_path()) || block.document.starts_with("docs/decisions") {
        return Some("commands to type belong into README.md or docs/".to_owned());
    }
    let commands = commands(block);
    if let Some(typed) = commands.iter().find(|typed| !session::is_shell(&typed.command)) {
        return Some(format!("bash cannot read {:?}", typed.command));
    }
    if let Some(reason) = block.says("not-run") {
        let known: Vec<&str> = REASONS.iter().map(|(name, _)| *name).collect();
        let Some((_, signs)) = REASONS.iter().find(|(name, _)| *name == reason) else {
            return Some(format!("not-run={reason:?} is no reason: one of {known:?}"));
        };
        if !signs.iter().any(|sign| block.text.contains(sign)) {
            return Some(format!("not-run={reason:?}, and no {signs:?} in it"));
        }
    }
    commands.iter().find_map(|typed| missing(&typed.command))
}

/// A file or a test of this tree that the command names and that does not exist.
pub(crate) fn missing(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    for (index, word) in words.iter().enumerate() {
        let word = word.strip_prefix("./").unwrap_or(word);
        let ours = ["benches/", "tests/", "tuning/", "fuzz/", "docs/"];
        if ours.iter().any(|folder| word.starts_with(folder)) && !repository().join(word).exists() {
            return Some(format!("there is no {word}"));
        }
        let next = words.get(index + 1);
        for (flag, folders) in [
            ("--test", &["tests", "benches/load/tests"][..]),
            ("--bench", &["benches"]),
        ] {
            let Some(name) = next.filter(|_| word == flag) else {
                continue;
            };
            let there = |folder: &&str| {
                let paths = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/main.rs")];
                paths.iter().any(|path| repository().join(path).exists())
            };
            if !folders.iter().any(there) {
                return Some(format!("there is no {flag} {name}"));
            }
        }
    }
    None
}

#[test]
fn every_block_is_run_or_says_why_not() {
    let wrong: Vec<String> = all_blocks()
        .iter()
        .filter_map(|block| Some(format!("{}: {}", block.location(), wrong(block)?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn blocks_without_a_good_reason_are_refused() {
    let block = |fence: &str, text: &str| {
        markdown::blocks(Path::new("docs/x.md"), &format!("```{fence}\n{text}\n```\n")).remove(0)
    };
    assert_eq!(wrong(&block("sh", "ls")), None);
    assert_eq!(wrong(&block("sh not-run=\"needs-root\"", "sudo reboot")), None);
    let typed = commands(&block("console", "$ ls a\na is a file\n$ cat b"));
    let typed: Vec<&str> = typed.iter().map(|typed| typed.command.as_str()).collect();
    assert_eq!(typed, ["ls a", "cat b"]);
    for (fence, text) in [
        ("", "ls"),
        ("shell", "ls"),
        ("sh not-run=\"\"", "sudo reboot"),
        ("sh not-run=\"later\"", "sudo reboot"),
        ("sh not-run=\"needs-root\"", "ls"),
        ("sh skip=\"yes\"", "ls"),
        ("sh", "ls 'a"),
        ("sh", "benches/compare/nothing"),
        ("sh", "cargo test --test nothing"),
    ] {
        assert!(wrong(&block(fence, text)).is_some(), "{fence} {text}");
    }
}

/// A reader's Redis, for documents that expect one.
pub(crate) struct Redis(Child);

impl Redis {
    pub(crate) fn start() -> Redis {
        let child = Command::new("redis-server")
            .args([
                "--port",
                "6379",
                "--protected-mode",
                "no",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .stdout(Stdio::null())
            .spawn();
        eventually("Redis listens", || {
            std::net::TcpStream::connect("127.0.0.1:6379").is_ok()
        });
        Redis(child.unwrap())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Types the blocks of one document one after the other into one terminal. Returns the faults.
fn type_all(document: &Path, environment: &[(&str, PathBuf)]) -> Vec<String> {
    let mut session = Session::new(environment);
    let mut failed = Vec::new();
    for block in markdown::blocks(document, &read(document)) {
        if !is_shell(&block) || block.says("not-run").is_some() {
            continue;
        }
        let exits: Vec<i32> = match block.says("exits") {
            None => vec![0],
            Some(codes) => codes.split(' ').map(|code| code.parse().unwrap()).collect(),
        };
        for typed in commands(&block) {
            eprintln!("{}: {}", block.location(), typed.command);
            if let Err(why) = session.run(&block.location(), &typed, &exits) {
                failed.push(format!("{}: {}\n{why}", block.location(), typed.command));
            }
        }
    }
    failed.extend(session.end_servers().err());
    failed
}

#[test]
fn every_command_runs() {
    namespace::inside("blocks::every_command_runs", || {
        let folder = tempfile::tempdir().unwrap();
        namespace::own_etc(folder.path());
        namespace::names(&[(provider::HOST, provider::ADDRESS)]);
        let provider = Provider::start();
        let redis = Redis::start();
        let failed: Vec<String> = documents()
            .iter()
            .flat_map(|document| type_all(document, &[provider.trust()]))
            .collect();
        drop(redis);
        assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    });
}

#[test]
fn configurations_and_json_are_what_they_say() {
    for block in all_blocks() {
        match block.language.as_str() {
            "toml" => {
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &block.text).unwrap();
                let ended = run_to_exit(&["--config", file.path().to_str().unwrap(), "--check-config"]);
                assert_eq!(ended.code, Some(0), "{}: {ended:#?}", block.location());
            }
            "json" => {
                let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
                assert!(parsed.is_ok(), "{}: {parsed:?}", block.location());
            }
            _ => {}
        }
    }
}

/// `cargo run` has to know which program is meant.
#[test]
fn cargo_run_is_the_gateway() {
    let metadata = crate::cargo_metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    let meant: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["default_run"].as_str())
        .collect();
    assert_eq!(meant, ["shardgate"]);
}

/// `cargo build` and `cargo test` without flags are for every package of the workspace.
#[test]
fn every_member_is_a_default_member() {
    let metadata = crate::cargo_metadata(&["--no-deps"]);
    let sorted = |key: &str| {
        let ids = metadata[key].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(sorted("workspace_members").len(), 2);
    assert_eq!(sorted("workspace_members"), sorted("workspace_default_members"));
}
