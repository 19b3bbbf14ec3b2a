//! Programs beside the gateway, for tests that run them: the load generator and the examples.
//!
//! Cargo tells a test no path to an example or to the program of another package, and need not have
//! built them. So the first call for one has cargo build it, in the profile that the gateway under
//! test was built in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use super::gateway;

/// The load generator.
pub fn load_generator() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("--bin", "shardgate-load"))
}

/// An example, by the name of its file.
pub fn example(name: &'static str) -> PathBuf {
    static PROGRAMS: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut programs = PROGRAMS.lock().unwrap();
    programs.entry(name).or_insert_with(|| build("--example", name)).clone()
}

fn build(kind: &str, name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--locked", kind, name])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let profile = Path::new(gateway::PROGRAM).parent().and_then(Path::file_name).unwrap();
    if profile != "debug" {
        cargo.arg("--profile").arg(profile);
    }
    let ended = cargo.output().unwrap();
    assert!(ended.status.success(), "{name} does not build");
    let messages = String::from_utf8(ended.stdout).unwrap();
    let mut built = messages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    built.next().expect("cargo says where the program is")
}
