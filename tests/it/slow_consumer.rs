//! A client that does not read is closed with 3008, costs what `limits.outbox_bytes` allows and no
//! more, and harms no other.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{CLOSE, Client, PING, PONG};
use common::{Gateway, eventually};

on_both_engines! {
    is_closed_with_3008, others_do_not_notice, memory_is_bounded_and_given_back, one_device_of_two, one_that_reads_again_in_time,
    what_was_not_read_is_counted, what_was_read_is_not_counted,
    a_client_that_pipelines_http_and_does_not_read, many_who_ask_for_numbers_and_do_not_read,
    one_large_message_for_a_client_that_keeps_up,
}

/// A connection that will read little and late.
fn slow(gateway: &Gateway, user: &str) -> Client {
    let mut client = Client::connect_with_receive_buffer(gateway.addr, 4096);
    client.send_upgrade(&format!("/ws?user={user}"), "");
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["type"], "welcome");
    client
}

fn start(engine: &str) -> Gateway {
    Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"])
}

/// An empty outbox takes any one message, whatever the limits are to each other.
fn one_large_message_for_a_client_that_keeps_up(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-outbox-bytes", "4096"]);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let content = format!("\"{}\"", "x".repeat(65_000));
    for _ in 0..3 {
        alice.send_message_expecting("bob", &content, "delivered");
        assert_eq!(bob.recv_json()["content"].as_str().unwrap().len(), 65_000);
    }
}

fn sample(gateway: &Gateway, code: &str) -> f64 {
    gateway.metric("shardgate_connections_closed_total", &[&format!("code=\"{code}\"")])
}

/// Sends until the receiver is offline; how many messages were `delivered`.
fn flood(alice: &mut Client, to: &str) -> usize {
    let content = format!("\"{}\"", "x".repeat(60_000));
    for delivered in 0..10_000 {
        alice.send_text(&format!(
            r#"{{"type":"message","to":"{to}","content":{content},"id":"f"}}"#
        ));
        let ack = alice.recv_json();
        match ack["status"].as_str().unwrap() {
            "delivered" => {}
            "offline" => return delivered,
            other => panic!("{other}"),
        }
    }
    panic!("600 MB were taken for a client that reads nothing");
}

fn is_closed_with_3008(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = slow(&gateway, "bob");
    let delivered = flood(&mut alice, "bob");
    assert!(
        delivered >= 16,
        "an outbox of 1 MiB takes more than {delivered} of 60 KB"
    );
    assert_eq!(sample(&gateway, "3008"), 1.0);
    assert!(
        gateway.metric(
            "shardgate_dropped_total",
            &["kind=\"frame\"", "reason=\"slow_consumer\""]
        ) >= 1.0
    );
    // It is offline at once, and the last thing that it reads is why.
    alice.send_message_expecting("bob", "1", "offline");
    let frames = bob.expect_close_after_frames(3008);
    assert!(frames.len() <= delivered, "{} of {delivered}", frames.len());
    for frame in &frames {
        assert!(frame.text().starts_with(r#"{"type":"message","#), "whole frames only");
    }
    alice.close();
    gateway.wait_until_empty();
}

fn lost(gateway: &Gateway) -> f64 {
    gateway.metric(
        "shardgate_dropped_total",
        &["kind=\"frame\"", "reason=\"connectionLost\""],
    )
}

/// Each was `delivered` and is unread, whether it is queued in the client's host or in ours.
fn what_was_not_read_is_counted(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let bob = gateway.connect("bob");
    for n in 0..50 {
        alice.send_message_expecting("bob", &n.to_string(), "delivered");
    }
    bob.reset();
    eventually("all fifty are counted", || lost(&gateway) == 50.0);
    // More than the kernel takes: some wait in the gateway.
    let carol = slow(&gateway, "carol");
    let content = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..15 {
        alice.send_message_expecting("carol", &content, "delivered");
    }
    carol.reset();
    eventually("each of these, too", || lost(&gateway) == 65.0);
    alice.close();
    gateway.wait_until_empty();
}

/// A client that has read everything, or that sends a close frame, has lost nothing.
fn what_was_read_is_not_counted(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    for how in [Client::reset, Client::close, drop::<Client>] {
        let mut bob = gateway.connect("bob");
        for n in 0..10 {
            alice.send_message_expecting("bob", &n.to_string(), "delivered");
            assert_eq!(bob.recv_json()["content"], n);
        }
        // A sign of life behind all that it has read.
        bob.send_frame(0x80 | PING, b"");
        assert_eq!(bob.recv_frame().opcode, PONG);
        how(bob);
        eventually("bob is gone", || gateway.stats()["connections"] == 1);
    }
    alice.close();
    gateway.wait_until_empty();
    assert_eq!(lost(&gateway), 0.0);
}

fn others_do_not_notice(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut carol = gateway.connect("carol");
    let mut dave = gateway.connect("dave");
    let _bobs: Vec<Client> = (0..3).map(|n| slow(&gateway, &format!("bob{n}"))).collect();
    for n in 0..3 {
        flood(&mut alice, &format!("bob{n}"));
        carol.send_message_expecting("dave", &n.to_string(), "delivered");
        assert_eq!(dave.recv_json()["content"], n);
    }
    carol.expect_silence();
    dave.expect_silence();
    assert_eq!(sample(&gateway, "3008"), 3.0);
    assert_eq!(gateway.get("/readyz").status, 200);
}

fn resident_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn memory_is_bounded_and_given_back(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-messages-per-second",
        "0",
        "--limits-outbox-bytes",
        "2097152",
    ]);
    let mut alice = gateway.connect("alice");
    flood_round(&gateway, &mut alice, 0);
    let after_first = resident_kib(&gateway);
    for round in 1..4 {
        flood_round(&gateway, &mut alice, round);
    }
    let after_all = resident_kib(&gateway);
    // 9 slow consumers at 2 MiB each. An allocator may keep some of the freed memory, but not all
    // of it.
    let grown = after_all.saturating_sub(after_first);
    assert!(grown < 9 * 2048 / 2, "{after_first} KiB, then {after_all} KiB");
    eventually("sockets are let go, too", || {
        gateway.metric("shardgate_sockets", &[]) <= 2.0
    });
}

fn flood_round(gateway: &Gateway, alice: &mut Client, round: usize) {
    let slow: Vec<Client> = (0..3).map(|n| slow(gateway, &format!("bob{round}-{n}"))).collect();
    for n in 0..3 {
        flood(alice, &format!("bob{round}-{n}"));
    }
    drop(slow);
    eventually("they are gone", || gateway.metric("shardgate_sockets", &[]) <= 2.0);
}

fn one_device_of_two(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut phone = slow(&gateway, "bob");
    let mut laptop = gateway.connect("bob");
    let content = format!("\"{}\"", "x".repeat(60_000));
    let mut sent = 0;
    while sample(&gateway, "3008") < 1.0 {
        alice.send_message_expecting("bob", &content, "delivered");
        assert_eq!(laptop.recv_json()["from"], "alice");
        sent += 1;
        assert!(sent < 10_000);
    }
    phone.expect_close_after_frames(3008);
    alice.send_message_expecting("bob", "1", "delivered");
    assert_eq!(laptop.recv_json()["content"], 1);
    laptop.expect_silence();
}

fn one_that_reads_again_in_time(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = slow(&gateway, "bob");
    // Under the limit it may lag as long as it likes: 12 times 60 KB.
    let content = format!("\"{}\"", "x".repeat(60_000));
    for round in 0..8 {
        for _ in 0..12 {
            alice.send_message_expecting("bob", &content, "delivered");
        }
        for _ in 0..12 {
            let frame = bob.recv();
            assert_ne!(frame.opcode, CLOSE, "round {round}");
        }
    }
    bob.expect_silence();
}

/// Each holds a piece of the numbers and not all of them, which are long where there are many
/// shards.
fn many_who_ask_for_numbers_and_do_not_read(engine: &str) {
    use std::io::Write;
    const CLIENTS: u64 = 150;
    let gateway = Gateway::start(&["--engine", engine, "--shards", "12"]);
    let text_kib = gateway.numbers("/metrics").body.len() as u64 / 1024;
    let before = resident_kib(&gateway);
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::connect_with_receive_buffer(gateway.addr, 4096);
            client
                .stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            client
        })
        .collect();
    eventually("all are answered", || {
        gateway.metric("shardgate_http_requests_total", &[]) >= CLIENTS as f64
    });
    let kib = resident_kib(&gateway).saturating_sub(before);
    let copies_kib = CLIENTS * text_kib;
    assert!(
        kib < copies_kib * 2 / 3,
        "{kib} KiB for {CLIENTS} unread answers of {text_kib} KiB"
    );
    drop(clients);
}

fn a_client_that_pipelines_http_and_does_not_read(engine: &str) {
    use std::io::Write;
    let gateway = start(engine);
    let mut client = Client::connect_with_receive_buffer(gateway.addr, 4096);
    client
        .stream
        .set_write_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    // Until the gateway cuts it off, or takes no more of it.
    for _ in 0..400 {
        if client.stream.write_all(requests.as_bytes()).is_err() {
            break;
        }
    }
    let kib = resident_kib(&gateway);
    assert!(kib < 256 * 1024, "{kib} KiB for answers that nobody reads");
    gateway.connect("alice").close();
}
