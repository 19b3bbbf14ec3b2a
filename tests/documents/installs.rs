//! `tests/run` asks before it installs anything, if it runs in a terminal.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::repository;

/// A machine without most programs. Its `apt-get` records that it was called, and fails.
fn machine(folder: &Path) -> String {
    for name in ["bash", "dirname", "git", "cc", "env"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {name}")])
            .output()
            .unwrap()
            .stdout;
        symlink(String::from_utf8(found).unwrap().trim(), folder.join(name)).unwrap();
    }
    for (name, text) in [("apt-get", "echo called >>\"$CALLED\"; exit 1"), ("id", "echo 0")] {
        fs::write(folder.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

/// Runs `tests/run rust`. Returns its output, and whether it would have installed something.
fn run(answer: Option<&str>) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let called = folder.path().join("called");
    let mut command = match answer {
        // A terminal of its own.
        Some(_) => {
            let mut command = Command::new("script");
            command.args(["--quiet", "--return", "--command", "tests/run rust", "/dev/null"]);
            command
        }
        None => {
            let mut command = Command::new("tests/run");
            command.arg("rust");
            command
        }
    };
    let script = Command::new("sh")
        .args(["-c", "command -v script"])
        .output()
        .unwrap()
        .stdout;
    symlink(String::from_utf8(script).unwrap().trim(), folder.path().join("script")).unwrap();
    let mut child = command
        .current_dir(repository())
        .env("PATH", machine(folder.path()))
        .env("SHELL", "/bin/sh")
        .env("CALLED", &called)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(answer.unwrap_or_default().as_bytes());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = [ended.stdout, ended.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), called.exists())
}

#[test]
fn nothing_is_installed_without_a_yes() {
    let (said, installed) = run(Some("n\n"));
    assert!(said.contains("redis-server") && said.contains("[y/N]"), "{said}");
    assert!(said.contains("nothing was installed") && !installed, "{said}");
}

#[test]
fn a_yes_installs() {
    let (said, installed) = run(Some("y\n"));
    assert!(installed, "{said}");
}

/// A build server has no terminal.
#[test]
fn where_nobody_can_answer_nobody_is_asked() {
    let (said, installed) = run(None);
    assert!(installed && !said.contains("[y/N]"), "{said}");
    assert!(said.contains("apt-get could not install"), "{said}");
}
