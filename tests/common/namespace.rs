//! A host of a test's own: private network, mounts and processes that end with the test.
//!
//! In there every port is free, `id.example.com` can be a name, and `pidof` finds only this test's
//! gateway.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that runs inside.
const INSIDE: &str = "TEST_RUNS_INSIDE";

/// The longest time of one test in there; documents start many programs one after the other.
const PATIENCE: Duration = Duration::from_secs(400);

/// Runs `body` in namespaces of its own, in a process that runs this test alone. `test` is the
/// test's whole name.
///
/// # Panics
/// The body panicked, or this host does not permit namespaces: then nothing is proven, and the test
/// prints so.
#[track_caller]
pub fn inside(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run(&["ip", "link", "set", "lo", "up"]);
        return body();
    }
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    unshare.arg(std::env::current_exe().unwrap());
    unshare.args(["--exact", test, "--nocapture"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = unshare
        .env(INSIDE, "yes")
        .stdin(Stdio::null())
        .stdout(log.as_file().try_clone().unwrap())
        .stderr(log.as_file().try_clone().unwrap())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(
        said.contains("running 1 test"),
        "NOT PROVEN: {test} needs namespaces (unshare --net --mount --pid), as root or as a user who may: {said}"
    );
    assert!(
        status.is_some_and(|status| status.success()),
        "{test}: {status:?}\n{said}"
    );
}

/// Runs a command that has to succeed.
#[track_caller]
pub fn run(words: &[&str]) {
    let ended = Command::new(words[0]).args(&words[1..]).output();
    let ended = ended.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(
        ended.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

/// Gives this host an `/etc` of its own, a copy in `folder`: writes there touch no other host's.
#[track_caller]
pub fn own_etc(folder: &Path) {
    let copy = folder.join("etc");
    // Files that only root of the real host may read are left out.
    let _ = Command::new("cp")
        .args(["-a", "/etc"])
        .arg(&copy)
        .stderr(Stdio::null())
        .status();
    run(&["mount", "--bind", copy.to_str().unwrap(), "/etc"]);
}

/// Lets names stand for addresses, for everything that runs inside. `/etc` must be our own.
#[track_caller]
pub fn names(hosts: &[(&str, &str)]) {
    let lines: Vec<String> = hosts
        .iter()
        .map(|(name, address)| format!("{address} {name}\n"))
        .collect();
    // Resolvers of hosts write through links to files elsewhere.
    let _ = std::fs::remove_file("/etc/hosts");
    std::fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{}", lines.concat())).unwrap();
}

/// Gives this host further addresses.
#[track_caller]
pub fn addresses(addresses: &[&str]) {
    for address in addresses {
        run(&["ip", "address", "add", address, "dev", "lo"]);
    }
}
