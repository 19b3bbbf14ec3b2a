//! The log holds nothing up, read or unread, and records which clients came, went and were refused.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use common::gateway::command;
use common::{Authority, Client, Fleet, Gateway, Peer, Redis, eventually};
use libc::SIGTERM;
use serde_json::Value;

on_both_engines! { nobody_reads_the_log }

/// Starts a gateway at an address of its own, with this for its stderr.
fn start(args: &[&str], stderr: Stdio) -> Gateway {
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = command(env!("CARGO_BIN_EXE_shardgate"));
    command.args(["--listen", &listen.to_string(), "--shards", "2", "--cpus", "none"]);
    command.args(["--log-level", "debug"]).args(args);
    Gateway::spawn_unheard(command, stderr, listen)
}

/// From before the first line on: start, work with TLS and Redis, and end.
fn nobody_reads_the_log(engine: &str) {
    let redis = Redis::start();
    let authority = Authority::new();
    let pair = authority.sign("server");
    let fleet = Fleet::new(redis.url());
    let other = fleet.gateway("gw2");
    let mut carol = Peer::connect(&other, "carol");
    let (reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: fcntl with F_SETPIPE_SZ takes no pointers.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    writer.write_all(&vec![b'x'; usize::try_from(size).unwrap()]).unwrap();

    let url = redis.url();
    let mut args = vec!["--engine", engine, "--gateway-id", "gw1", "--redis-url", &url];
    args.extend([
        "--redis-prefix",
        &fleet.prefix,
        "--tls-cert",
        pair.cert(),
        "--tls-key",
        pair.key(),
    ]);
    let mut gateway = start(&args, writer.into());
    gateway.tls = Some(authority.client());
    // A gateway that has just begun may not have received its own probe yet.
    let mut first = gateway.connect("first");
    eventually("carol is reached", || {
        first.send_text(r#"{"type":"message","to":"carol","content":"first","id":"f"}"#);
        first.recv_json()["status"] == "routed"
    });
    for n in 0..40 {
        let mut alice = gateway.connect(&format!("alice{n}"));
        alice.send_message_expecting("carol", &n.to_string(), "routed");
        alice.close();
    }
    carol.wait_for(39);
    let alice = Peer::follow(gateway.connect("alice"), "alice");
    carol.tell_until("alice", "hello", "routed");
    alice.wait_for("hello");
    assert_eq!(gateway.get("/livez").status, 200);
    drop(alice);
    gateway.signal(SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
    drop(reader);
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut gateway = start(&[], full.into());
    let mut alice = gateway.connect("alice");
    alice.send_message_expecting("nobody", "1", "offline");
    eventually("lines are counted", || {
        gateway.metric("shardgate_log_lines_dropped_total", &[]) > 0.0
    });
    drop(alice);
    gateway.signal(SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
}

/// A manager that does not read its notices must not hold up the control thread, which notifies it
/// of the end.
#[test]
fn systemd_that_does_not_read_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"FILLER=1", &path).is_ok() {}
    let mut gateway = Gateway::start_with_env(&[], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let mut alice = gateway.connect("alice");
    alice.send_message_expecting("nobody", "1", "offline");
    drop(alice);
    gateway.wait_for_log("cannot tell systemd");
    gateway.signal(SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
    drop(socket);
}

/// One object a line. At `debug` it records which clients came, went and why, and which were
/// refused, in our own words and without a token.
#[test]
fn json_lines_tell_of_connections() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut gateway = start(
        &["--log-format", "json", "--gateway-id", "gw1"],
        File::create(&path).unwrap().into(),
    );
    let alice = gateway.connect("alice \"the first\"");
    let address = alice.stream.local_addr().unwrap().to_string();
    alice.close();
    let bob = gateway.connect("bob");
    bob.reset();
    assert_eq!(
        gateway
            .try_upgrade("/ws?user=eve", "Origin: http://elsewhere.example\r\n")
            .status,
        403
    );
    gateway.wait_until_empty();
    gateway.signal(SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);

    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let field = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"));
        assert!(field("time").ends_with('Z') && field("time").len() == 24, "{line}");
        assert!(["info", "warn", "debug"].contains(&field("level")), "{line}");
        assert!(field("target").starts_with("shardgate"), "{line}");
        assert!(!field("message").is_empty());
    }
    let find = |message: &str, user: Option<&str>| {
        let wanted = |line: &&Value| line["message"] == message && user.is_none_or(|user| line["user"] == user);
        lines
            .iter()
            .find(wanted)
            .unwrap_or_else(|| panic!("no {message} of {user:?} in\n{text}"))
    };
    assert!(lines.iter().any(|line| line["message"] == "Ready"));
    let came = find("connected", Some("alice \"the first\""));
    assert_eq!(came["address"], address.as_str());
    let went = find("disconnected", Some("alice \"the first\""));
    assert_eq!(
        (&went["code"], &went["address"]),
        (&Value::from(1000), &came["address"])
    );
    assert_eq!(went["connection"], came["connection"]);
    assert_eq!(find("disconnected", Some("bob"))["code"], 1006);
    assert_eq!(find("refused", None)["reason"], "origin");
}

#[test]
fn no_line_has_a_token() {
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJldmUifQ.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let args = [
        "--log-level",
        "debug",
        "--auth-algorithm",
        "HS256",
        "--auth-key",
        "0123456789abcdef0123456789abcdef",
    ];
    let mut gateway = Gateway::start(&args);
    assert_eq!(gateway.try_upgrade(&format!("/ws?token={TOKEN}"), "").status, 401);
    let line = gateway.wait_for_log("refused");
    assert!(
        line.contains("reason=\"credential\"") && line.contains("address=127.0.0.1:"),
        "{line}"
    );
    let mut client = Client::connect(gateway.addr);
    client.send_upgrade("/ws", "");
    assert_eq!(client.read_head().status, 101);
    client.send_text(&format!(r#"{{"type":"auth","token":"{TOKEN}"}}"#));
    client.expect_close(3500);
    let line = gateway.wait_for_log("disconnected");
    assert!(line.contains("code=3500"), "{line}");
    gateway.signal(SIGTERM);
    assert_eq!(gateway.wait_for_exit(), 0);
    for part in TOKEN.split('.') {
        assert!(!gateway.log().contains(part));
    }
}
