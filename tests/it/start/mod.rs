//! What keeps a gateway from starting: one clear line with the cause and the remedy, exit 1 or 2,
//! and nothing opened.

// A test's helpers are tests too: a failure of theirs ends the test.
#![allow(clippy::unwrap_used)]

mod addresses;
mod configuration;
mod cpus;
mod limits;
mod ready;
mod redis;

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::common::gateway::{Ended, command, run_command};
use crate::common::{self, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shardgate");

/// One line that names all of this, and this exit code.
#[track_caller]
fn assert_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    let line = ended.stderr.lines().find(|line| line.starts_with("shardgate: "));
    let line = line.unwrap_or_else(|| panic!("no line of the program's own: {ended:#?}"));
    for word in words {
        assert!(line.contains(word), "{word:?} not in {line:?}");
    }
    assert!(!ended.stderr.contains("panicked"), "{ended:#?}");
    assert!(!ended.stderr.contains("listening on"), "{ended:#?}");
}

/// The gateway through a shell that first does this.
fn shell(before: &str, args: &str) -> Ended {
    let mut sh = command("sh");
    sh.arg("-c")
        .arg(format!("{before} && exec {PROGRAM} --listen 127.0.0.1:0 {args}"));
    run_command(sh)
}

/// A user without any privilege, whose memlock no other test takes.
fn nobody() -> u32 {
    fastrand::u32(100_000..2_000_000_000)
}

/// The gateway as this user, through a shell that first does this.
fn as_user(user: u32, place: &tempfile::TempDir, before: &str) -> Command {
    use std::os::unix::fs::PermissionsExt;
    // Where that user may run it.
    let program = place.path().join("shardgate");
    if !program.exists() {
        // Not by this process: whatever another test starts meanwhile would keep the file open for
        // writing.
        let copied = command("cp").arg(PROGRAM).arg(&program).status().unwrap();
        assert!(copied.success());
    }
    for path in [place.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut nobody = command("setpriv");
    nobody.args([
        &format!("--reuid={user}"),
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    nobody
        .args(["sh", "-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(&program);
    nobody
}

/// A gateway that is not ready, and may never be. Dropping it kills and reaps it.
struct Starting {
    child: Option<Child>,
}

impl Starting {
    fn spawn(mut command: Command) -> Starting {
        let child = Some(command.spawn().unwrap());
        Starting { child }
    }

    #[track_caller]
    fn signal(&mut self, signal: i32) {
        let child = self.child.as_mut().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    }

    #[track_caller]
    fn wait(mut self) -> Ended {
        let child = self.child.as_mut().unwrap();
        eventually("it ends", || child.try_wait().unwrap().is_some());
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The notices to systemd, by a gateway that asks it to listen there.
struct Notified {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Notified {
    fn new() -> Notified {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
        Notified { directory, socket }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[track_caller]
    fn expect_nothing(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = self.socket.recv(&mut [0; 256]).expect_err("systemd was told something");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}
