//! Messages from one connection to one user arrive in the order sent, all of them, once, whatever
//! shards lie between.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{Client, text_bytes};
use common::{DEADLINE, Gateway};
use serde_json::Value;

on_both_engines! { many_senders_and_receivers_across_shards, acks_come_in_order, order_holds_over_a_growing_connection }

const USERS: usize = 12;
const PER_PAIR: usize = 30;

/// Every user sends to every user, interleaved; each reads everything on a thread of its own.
fn many_senders_and_receivers_across_shards(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "4",
        "--limits-messages-per-second",
        "0",
        "--limits-outbox-bytes",
        "16777216",
    ]);
    let clients: Vec<Client> = (0..USERS).map(|n| gateway.connect(&format!("user{n}"))).collect();
    // Second devices see the same in the same order.
    let second: Vec<Client> = (0..USERS).map(|n| gateway.connect(&format!("user{n}"))).collect();
    std::thread::scope(|scope| {
        for (n, client) in clients.iter().enumerate() {
            let mut stream = client.stream.try_clone().unwrap();
            scope.spawn(move || {
                use std::io::Write;
                for number in 0..PER_PAIR {
                    let mut bytes = Vec::new();
                    for to in 0..USERS {
                        // Sizes on both sides of the limit between copied and shared bytes.
                        let padding = "x".repeat((number * 37 + to * 101 + n) % 3000);
                        bytes.extend(text_bytes(&format!(
                            r#"{{"type":"message","to":"user{to}","content":[{number},"{padding}"]}}"#
                        )));
                    }
                    stream.write_all(&bytes).unwrap();
                }
            });
        }
        for mut client in clients.into_iter().chain(second) {
            scope.spawn(move || {
                let mut next = [0; USERS];
                for _ in 0..USERS * PER_PAIR {
                    let message = client.recv_json();
                    let from: usize = message["from"].as_str().unwrap()[4..].parse().unwrap();
                    assert_eq!(message["content"][0], next[from], "from user{from}");
                    next[from] += 1;
                }
                assert_eq!(next, [PER_PAIR; USERS]);
                client.expect_silence();
                client.close();
            });
        }
    });
    let total = (USERS * USERS * PER_PAIR) as u64;
    let stats = gateway.stats();
    assert_eq!(stats["messagesIn"], total);
    assert_eq!(stats["messagesOut"], 2 * total);
    assert_eq!(gateway.metric("shardgate_dropped_total", &[]), 0.0);
    gateway.wait_until_empty();
}

fn acks_come_in_order(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "4", "--limits-messages-per-second", "0"]);
    let mut alice = gateway.connect("alice");
    let mut bobs: Vec<Client> = (0..4).map(|n| gateway.connect(&format!("bob{n}"))).collect();
    let mut bytes = Vec::new();
    for n in 0..400 {
        bytes.extend(text_bytes(&format!(
            r#"{{"type":"message","to":"bob{}","content":{n},"id":"{n}"}}"#,
            n % 4
        )));
    }
    alice.send_raw(&bytes);
    // Acks of one receiver come in the order sent, and each message has one.
    let mut last = [None; 4];
    for _ in 0..400 {
        let ack = alice.recv_json();
        assert_eq!(ack["status"], "delivered");
        let n: usize = ack["id"].as_str().unwrap().parse().unwrap();
        assert!(last[n % 4] < Some(n), "{n} after {:?}", last[n % 4]);
        last[n % 4] = Some(n);
    }
    assert_eq!(last, [Some(396), Some(397), Some(398), Some(399)]);
    for (which, bob) in bobs.iter_mut().enumerate() {
        for n in 0..100 {
            assert_eq!(bob.recv_json()["content"], n * 4 + which);
        }
    }
}

/// A receiver that reads in spurts: its queue is sent in pieces, shared and copied, and still in
/// order.
fn order_holds_over_a_growing_connection(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-messages-per-second",
        "0",
        "--limits-outbox-bytes",
        "67108864",
    ]);
    let mut alice = gateway.connect("alice");
    let mut bob = Client::connect_with_receive_buffer(gateway.addr, 4096);
    bob.send_upgrade("/ws?user=bob", "");
    assert_eq!(bob.read_head().status, 101);
    assert_eq!(bob.recv_json()["type"], "welcome");
    let mut other_device = gateway.connect("bob");
    for n in 0..300usize {
        let padding = "y".repeat(n * 7919 % 40_000);
        alice.send_text(&format!(
            r#"{{"type":"message","to":"bob","content":[{n},"{padding}"]}}"#
        ));
    }
    alice.expect_silence();
    let began = std::time::Instant::now();
    for client in [&mut bob, &mut other_device] {
        for n in 0..300usize {
            let message: Value = client.recv_json();
            assert_eq!(message["content"][0], n);
            assert_eq!(message["content"][1].as_str().unwrap().len(), n * 7919 % 40_000);
        }
    }
    assert!(began.elapsed() < DEADLINE);
}
