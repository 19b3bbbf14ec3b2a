//! The examples in Rust do what they show. Those in Node, in Python and in a browser are tried by
//! `tests/clients` and `tests/browser`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;

use crate::common::gateway::{command, run_command};
use crate::common::{DEADLINE, Gateway, built, eventually};

/// A client at work. Dropping it kills and reaps it.
struct Example {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Example {
    fn start(words: &[&str]) -> Example {
        let mut child = command(built::example("client"))
            .args(words)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Example {
            input: child.stdin.take(),
            child,
            lines,
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input.as_ref().unwrap(), "{line}").unwrap();
    }

    /// Waits until it prints this. It may print a publication twice before, whose ack was lost.
    #[track_caller]
    fn expect(&self, line: &str) {
        while self.lines.recv_timeout(DEADLINE).expect(line) != line {}
    }

    /// Ends its input, and waits until it ends.
    #[track_caller]
    fn end(mut self) {
        self.input = None;
        eventually("the example ends", || self.child.try_wait().unwrap().is_some());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_client_publishes_receives_and_comes_back() {
    // An address that no other test has, so that a second gateway can follow there.
    let host = [127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)];
    let address = SocketAddr::from((host, 8080)).to_string();
    let start = || Gateway::start(&["--listen", &address, "--drain-timeout", "1s"]);
    let mut first = start();
    let mut example = Example::start(&[&format!("ws://{address}/ws?user=rust"), "room"]);
    example.expect("joined room");
    example.say("one");
    example.expect("rust: one");
    let mut bob = first.connect("bob");
    bob.send_json(&json!({"type": "publish", "channel": "room", "content": "hi"}));
    example.expect("bob: hi");
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait_for_exit(), 0);
    // There is no gateway now.
    example.say("two");
    let _second = start();
    example.expect("joined room");
    example.expect("rust: two");
    example.end();
}

#[test]
fn a_gateway_inside_another_program_serves_it() {
    let ended = run_command(command(built::example("embedded")));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for line in [
        r#"alice heard "hello from the program""#,
        r#"alice heard "hello from alice""#,
    ] {
        assert!(ended.stdout.contains(line), "{ended:#?}");
    }
}
