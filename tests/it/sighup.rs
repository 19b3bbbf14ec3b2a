//! SIGHUP: limits, origins and the log level change while running; a bad file changes nothing.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use libc::SIGHUP;
use std::path::PathBuf;

on_both_engines! {
    limits_change, limits_of_handshakes_change, limits_of_rates_change, the_connection_limit_goes_both_ways, origins_change, a_bad_file_keeps_the_old, what_needs_a_restart_is_said, the_log_level_changes,
}

/// A gateway with a configuration file that can be written anew.
struct Reloadable {
    gateway: Gateway,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Reloadable {
    fn start(engine: &str, text: &str) -> Self {
        Self::start_with(engine, &[], text)
    }

    fn start_with(engine: &str, args: &[&str], text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shardgate.toml");
        std::fs::write(&file, text).unwrap();
        let config = ["--engine", engine, "--config", file.to_str().unwrap()];
        let gateway = Gateway::start(&[&config, args].concat());
        Reloadable {
            gateway,
            file,
            _directory: directory,
        }
    }

    /// Replaces the file at once, so that no reader gets half of it.
    fn write(&self, text: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    /// Writes the file and has it read; waits until that is logged.
    fn reload(&self, text: &str, logged: &str) {
        self.write(text);
        let lines = self.gateway.log_lines();
        self.gateway.signal(SIGHUP);
        self.gateway.wait_for_log_after(lines, logged);
    }
}

const READ: &str = "configuration read again";
const KEPT: &str = "configuration not changed";

fn limits_change(engine: &str) {
    let it = Reloadable::start(engine, "[limits]\nmessage_bytes = 1000\nconnections_per_user = 2\n");
    let long = format!(r#"{{"type":"heartbeat","x":"{}"}}"#, "x".repeat(1500));
    let mut old = it.gateway.connect("alice");
    it.reload("[limits]\nmessage_bytes = 2000\nconnections_per_user = 1\n", READ);
    // Open connections go by it too. The shards get it a moment after the log.
    common::eventually("a longer message is taken", || {
        let mut client = it.gateway.connect("bob");
        client.send_text(&long);
        client.recv().opcode == common::client::TEXT
    });
    common::eventually("on every shard", || {
        let mut clients: Vec<_> = (0..12).map(|n| it.gateway.connect(&format!("user{n}"))).collect();
        clients.iter_mut().all(|client| {
            client.send_text(&long);
            client.recv().opcode == common::client::TEXT
        })
    });
    old.send_text(&long);
    assert_eq!(old.recv_json()["type"], "heartbeat");
    let mut newer = it.gateway.connect("alice");
    old.expect_close(3504);
    newer.expect_silence();
}

fn limits_of_handshakes_change(engine: &str) {
    let it = Reloadable::start_with(engine, &["--shards", "1"], "");
    let mut silent: Vec<_> = (0..10).map(|_| it.gateway.tcp()).collect();
    it.reload("limits.handshakes = 5\nlimits.header_bytes = 512\n", READ);
    common::eventually("a long head is refused", || {
        let long = format!("X: {}\r\n", "x".repeat(600));
        it.gateway.try_upgrade("/ws", &long).status == 431
    });
    // A newcomer closes the connections above the limit.
    silent[..5].iter_mut().for_each(|client| client.expect_end());
    it.reload("limits.handshake_timeout = \"50ms\"\n", READ);
    common::eventually("silence is not waited for", || {
        it.gateway.tcp().expect_end();
        true
    });
    it.reload("limits.handshakes_per_second = 1\n", READ);
    common::eventually("admission has its rate", || {
        let answer = it.gateway.try_upgrade("/ws", "");
        answer.status == 503 && answer.retry_after() >= 1
    });
}

fn limits_of_rates_change(engine: &str) {
    let it = Reloadable::start(
        engine,
        "limits.messages_per_second = 0\nlimits.channels_per_connection = 1\n",
    );
    let mut alice = it.gateway.connect("alice");
    let heartbeat = r#"{"type":"heartbeat"}"#;
    for _ in 0..50 {
        alice.send_text(heartbeat);
        assert_eq!(alice.recv_json()["type"], "heartbeat");
    }
    it.reload(
        "limits.messages_per_second = 1\nlimits.burst = 2\nlimits.channels_per_connection = 2\n",
        READ,
    );
    common::eventually("she is slowed down", || {
        alice.send_text(heartbeat);
        alice.recv_json()["code"] == "rateLimited"
    });
    common::eventually("more channels", || {
        let mut bob = it.gateway.connect("bob");
        let mut last = serde_json::Value::Null;
        for channel in ["one", "two"] {
            bob.send_text(&format!(r#"{{"type":"subscribe","channel":"{channel}"}}"#));
            last = bob.recv_json();
        }
        last["type"] == "subscribed"
    });
}

fn the_connection_limit_goes_both_ways(engine: &str) {
    let it = Reloadable::start(engine, "limits.connections = 2\n");
    let kept = [it.gateway.connect("alice"), it.gateway.connect("bob")];
    assert_eq!(it.gateway.try_upgrade("/ws?user=carol", "").status, 503);
    it.reload("limits.connections = 4\n", READ);
    let mut more = Vec::new();
    common::eventually("two more get in", || {
        let mut client = it.gateway.tcp();
        client.send_upgrade("/ws?user=carol", "");
        if client.read_head().status == 101 {
            more.push(client);
        }
        more.len() == 2
    });
    assert_eq!(it.gateway.try_upgrade("/ws?user=carol", "").status, 503);
    // Lowered: no client is thrown out, and none gets in.
    it.reload("limits.connections = 1\n", READ);
    assert_eq!(it.gateway.try_upgrade("/ws?user=carol", "").status, 503);
    assert_eq!(it.gateway.stats()["connections"], 4);
    drop((kept, more));
}

fn origins_change(engine: &str) {
    let it = Reloadable::start(engine, "origins = [\"https://a.example\"]\n");
    let status = |origin: &str| it.gateway.try_upgrade("/ws", &format!("Origin: {origin}\r\n")).status;
    assert_eq!((status("https://a.example"), status("https://b.example")), (101, 403));
    it.reload("origins = [\"https://b.example\"]\n", READ);
    common::eventually("on every shard", || {
        (0..12).all(|_| status("https://b.example") == 101 && status("https://a.example") == 403)
    });
    it.reload("", READ);
    common::eventually("same origin again", || {
        (0..12).all(|_| status("https://b.example") == 403 && status("http://localhost") == 101)
    });
}

fn a_bad_file_keeps_the_old(engine: &str) {
    let it = Reloadable::start(engine, "origins = [\"https://a.example\"]\n");
    let mut client = it.gateway.connect("alice");
    let status = |origin: &str| it.gateway.try_upgrade("/ws", &format!("Origin: {origin}\r\n")).status;
    for bad in [
        "origins = [\"*\"]\nno_such_key = 1\n",
        "origins = [\"*\"]\nlimits.message_bytes = \"many\"\n",
        "origins = [\"*\"]\nheartbeat.timeout = \"1s\"\n",
        "origins = [\"*\"",
        "origins = [\"https://*\"]\n",
    ] {
        it.reload(bad, KEPT);
        assert_eq!(
            (status("https://a.example"), status("https://b.example")),
            (101, 403),
            "{bad}"
        );
    }
    std::fs::remove_file(&it.file).unwrap();
    let lines = it.gateway.log_lines();
    it.gateway.signal(SIGHUP);
    it.gateway.wait_for_log_after(lines, KEPT);
    client.expect_silence();
    it.reload("origins = [\"https://b.example\"]\n", READ);
    common::eventually("a good one is read again", || status("https://b.example") == 101);
}

fn what_needs_a_restart_is_said(engine: &str) {
    let it = Reloadable::start(engine, "");
    let lines = it.gateway.log_lines();
    it.reload("echo = true\nheartbeat.interval = \"5s\"\n", READ);
    let line = it.gateway.wait_for_log_after(lines, "restart");
    assert!(line.contains("echo") && line.contains("heartbeat.interval"), "{line}");
    assert_eq!(it.gateway.try_upgrade("/echo", "").status, 404);
    // The gateway's made-up name stays its own.
    assert_eq!(it.gateway.stats()["gatewayId"], *it.gateway.id);
}

fn the_log_level_changes(engine: &str) {
    let it = Reloadable::start(engine, "log_level = \"info\"\n");
    // After the level is `error`, nothing tells of this reload, but the next one does what it says.
    it.write("log_level = \"error\"\n");
    it.gateway.signal(SIGHUP);
    let status = |origin: &str| it.gateway.try_upgrade("/ws", &format!("Origin: {origin}\r\n")).status;
    it.write("log_level = \"error\"\norigins = [\"https://b.example\"]\n");
    it.gateway.signal(SIGHUP);
    common::eventually("read", || status("https://b.example") == 101);
    assert!(!it.gateway.log().contains(READ));
    it.reload("log_level = \"info\"\n", READ);
}
