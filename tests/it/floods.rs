//! Hostile heads are refused. A gateway that is out of descriptors waits, serves its connections,
//! and does not spin.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{Client, frame_bytes, upgrade_head};
use common::{Gateway, Peer};

on_both_engines! {
    smuggled_heads_are_refused, a_giant_head_is_refused, the_oldest_unfinished_handshake_goes,
    who_was_shown_the_door_and_stays_goes, who_closes_and_does_not_read_goes, strangers_take_no_places, out_of_descriptors_it_waits_and_does_not_spin,
}

/// Implementations differ about these, so a proxy in front may have read another request.
fn smuggled_heads_are_refused(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let good = upgrade_head("/ws?user=alice", "");
    let with = |field: &str| upgrade_head("/ws?user=alice", field);
    let heads = [
        with("Host: evil\r\n"),
        with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        with("Content-Length: 5\r\n"),
        with("Content-Length: 0\r\nContent-Length: 5\r\n"),
        with("Transfer-Encoding: chunked\r\n"),
        with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        with("Sec-WebSocket-Version: 13\r\n"),
        with("X-Folded: one\r\n two\r\n"),
        with("X-Zero: a\0b\r\n"),
        with("X-Space : a\r\n"),
        with("X-Return: a\rb\r\n"),
        good.replacen("GET ", "GET  ", 1),
        good.replacen("HTTP/1.1", "HTTP/1.1\0", 1),
        good.replacen("HTTP/1.1", "HTTP/2.0", 1),
    ];
    for head in &heads {
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let status = client.read_response().status;
        assert!((400..500).contains(&status), "{status} for {head:?}");
    }
    assert_eq!(gateway.stats()["connections"], 0);
    // A line that ends without CR, and Upgrade given twice, mean the same to everybody who takes
    // them.
    for head in [good.replace("\r\n", "\n"), with("Upgrade: websocket\r\n")] {
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let status = client.read_head().status;
        assert!(status == 101 || (400..500).contains(&status), "{status} for {head:?}");
    }
}

fn a_giant_head_is_refused(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.tcp();
    client.send_raw(b"GET /ws HTTP/1.1\r\nX: ");
    client.send_carelessly(&vec![b'x'; 1 << 20]);
    // The answer may be lost with the unread bytes; the end may not.
    while !client.is_at_end() {
        client.read_response();
    }
    assert_eq!(
        gateway.metric("shardgate_handshakes_refused_total", &["reason=\"head_too_large\""]),
        1.0
    );
}

/// Silent sockets are closed in the order in which they came: each newcomer has its time, and none
/// is kept out.
fn the_oldest_unfinished_handshake_goes(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "1", "--limits-handshakes", "20"]);
    let mut alice = Peer::connect(&gateway, "alice");
    let mut silent: Vec<Client> = (0..20).map(|_| Client::connect(gateway.addr)).collect();
    for n in 0..10 {
        silent.push(Client::connect(gateway.addr));
        silent[n].expect_end();
    }
    // A newcomer takes the permit of one more until it is a connection.
    let _bob = Peer::connect(&gateway, "bob");
    silent[10].expect_end();
    for client in &mut silent[11..] {
        client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.read_response().status, 200);
    }
    let refused = gateway.metric("shardgate_handshakes_refused_total", &["reason=\"handshake_limit\""]);
    assert_eq!(refused, 11.0);
    // Connections are not concerned.
    assert_eq!(alice.tell("bob", 1), "delivered");
}

/// A finished connection that the client keeps open takes no permit, either.
fn who_was_shown_the_door_and_stays_goes(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "1", "--limits-handshakes", "20"]);
    let mut staying = Vec::new();
    for n in 0..30 {
        let mut client = gateway.connect(&format!("user{n}"));
        client.send_raw(&frame_bytes(0x83, b""));
        assert_eq!(client.recv_frame().close_code(), Some(1002));
        staying.push(client);
    }
    let refused = gateway.metric("shardgate_handshakes_refused_total", &["reason=\"handshake_limit\""]);
    assert!(refused >= 10.0, "{refused}");
    assert_eq!(gateway.stats()["connections"], 0);
}

/// A connection that its peer ended gives its permit back. While our answer is not read its socket
/// stays, and is counted.
fn who_closes_and_does_not_read_goes(engine: &str) {
    let limits = ["--limits-connections", "6", "--limits-handshakes", "4"];
    let room = ["--limits-outbox-bytes", "16777216"];
    let gateway = Gateway::start(&[&["--engine", engine, "--shards", "1", "--echo"], &limits[..], &room].concat());
    let mut staying = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect_with_receive_buffer(gateway.addr, 4096);
        client.send_upgrade("/echo", "");
        assert_eq!(client.read_head().status, 101);
        // More than the kernel holds for it.
        for _ in 0..60 {
            client.send_frame(0x82, &[0; 60_000]);
        }
        client.send_close(1000);
        staying.push(client);
        common::eventually("it has ended", || gateway.stats()["connections"] == 0);
        let sockets = gateway.metric("shardgate_sockets", &[]);
        assert!(sockets <= 10.0, "{sockets}");
    }
}

/// An unauthenticated client waits for as long as it may, and keeps no authenticated one out.
fn strangers_take_no_places(engine: &str) {
    let limits = ["--limits-connections", "20", "--limits-handshakes", "10"];
    let gateway = Gateway::start(&[&["--engine", engine, "--shards", "2"], &limits[..]].concat());
    let strangers: Vec<Client> = (0..40).map(|_| gateway.upgrade("/ws")).collect();
    let known: Vec<Client> = (0..20).map(|n| gateway.connect(&format!("user{n}"))).collect();
    assert_eq!(gateway.try_upgrade("/ws?user=late", "").status, 503);
    let sockets = gateway.metric("shardgate_sockets", &[]);
    assert!(sockets <= 30.0, "{sockets}");
    // The oldest made room, and those that went are counted.
    assert!(gateway.metric("shardgate_handshakes_refused_total", &["reason=\"handshake_limit\""]) >= 30.0);
    drop((strangers, known));
    gateway.wait_until_empty();
}

/// CPU time of the gateway so far, clock ticks of 10 ms.
fn cpu_ticks(gateway: &Gateway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The limit is there from the start: io_uring looks at it when accepting is armed.
fn out_of_descriptors_it_waits_and_does_not_spin(engine: &str) {
    let mut command = common::gateway::command("sh");
    command.args([
        "-c",
        "ulimit -n 250 && exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_shardgate"),
    ]);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--shards",
        "1",
        "--cpus",
        "none",
        "--engine",
        engine,
    ]);
    command.args(["--limits-handshake-timeout", "1h"]);
    let gateway = Gateway::try_spawn(command).unwrap();
    let mut alice = Peer::connect(&gateway, "alice");
    let lines = gateway.log_lines();
    // Silent, and many times as many as there are descriptors. Each time when none is left the
    // oldest 64 make room.
    let crowd: Vec<Client> = (0..1_000).map(|_| Client::connect(gateway.addr)).collect();
    gateway.wait_for_log_after(lines, "accepting paused");
    // Eight more tries are a second, of which spinning would take most.
    let ticks = cpu_ticks(&gateway);
    for _ in 0..8 {
        let lines = gateway.log_lines();
        gateway.wait_for_log_after(lines, "accepting paused");
    }
    let spent = cpu_ticks(&gateway) - ticks;
    assert!(spent < 50, "{spent} ticks for eight tries");
    // Connected clients are served, and silent ones keep none out.
    assert_eq!(alice.tell("alice", 1), "delivered");
    let mut client = Client::connect(gateway.addr);
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert!(gateway.metric("shardgate_handshakes_refused_total", &["reason=\"handshake_limit\""]) > 0.0);
    drop(crowd);
}
