//! The load generator, for tests that put load on a gateway or try what documents say about it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::gateway;

/// The generator's program. It is a package of its own, of which cargo tells these tests no path and which it does not
/// build for them: so the first call has cargo build it, in the profile that the gateway under test was built in.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--locked", "--bin", "shardgate-load"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let profile = Path::new(gateway::PROGRAM).parent().and_then(Path::file_name).unwrap();
    if profile != "debug" {
        cargo.arg("--profile").arg(profile);
    }
    let ended = cargo.output().unwrap();
    assert!(ended.status.success(), "the load generator does not build");
    let messages = String::from_utf8(ended.stdout).unwrap();
    let mut built = messages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| message["target"]["name"] == "shardgate-load")
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    built.next().expect("cargo says where the program is")
}
