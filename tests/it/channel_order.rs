//! Publications of one connection to one channel reach every subscriber in the order sent, all of
//! them, once, whatever shards lie between.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use common::channels::{frames, publish_text};
use common::client::Client;

on_both_engines! { many_publishers_and_subscribers_across_shards, acks_come_in_order, a_publisher_among_the_subscribers }

const CHANNELS: usize = 5;
const PUBLISHERS: usize = 6;
const SUBSCRIBERS: usize = 12;
const EACH: usize = 60;

fn start(engine: &str, shards: &str) -> Gateway {
    Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        shards,
        "--limits-messages-per-second",
        "0",
        "--limits-outbox-bytes",
        "67108864",
    ])
}

/// Every publisher publishes to every channel, interleaved; everybody else subscribes to all, and
/// reads on a thread of its own.
fn many_publishers_and_subscribers_across_shards(engine: &str) {
    for shards in ["1", "3"] {
        let gateway = start(engine, shards);
        let publishers: Vec<Client> = (0..PUBLISHERS)
            .map(|n| gateway.connect(&format!("publisher{n}")))
            .collect();
        let mut subscribers: Vec<Client> = (0..SUBSCRIBERS).map(|n| gateway.connect(&format!("user{n}"))).collect();
        for subscriber in &mut subscribers {
            for channel in 0..CHANNELS {
                subscriber.subscribe(&channel.to_string());
            }
        }
        std::thread::scope(|scope| {
            for (n, mut publisher) in publishers.into_iter().enumerate() {
                scope.spawn(move || {
                    for number in 0..EACH {
                        publisher.send_raw(&frames((0..CHANNELS).map(|channel| {
                            let padding = "x".repeat((number * 37 + channel * 101 + n) % 3000);
                            let last = number + 1 == EACH;
                            let content = format!("[{number},\"{padding}\"]");
                            publish_text(&channel.to_string(), &content, last.then_some("last"))
                        })));
                    }
                    for _ in 0..CHANNELS {
                        assert_eq!(publisher.recv_json()["status"], "published");
                    }
                    publisher.expect_silence();
                    publisher.close();
                });
            }
            for mut subscriber in subscribers {
                scope.spawn(move || {
                    let mut next = [[0; CHANNELS]; PUBLISHERS];
                    for _ in 0..CHANNELS * PUBLISHERS * EACH {
                        let publication = subscriber.recv_json();
                        assert_eq!(publication["type"], "publication");
                        let from: usize = publication["from"].as_str().unwrap()[9..].parse().unwrap();
                        let channel: usize = publication["channel"].as_str().unwrap().parse().unwrap();
                        let next = &mut next[from][channel];
                        assert_eq!(publication["content"][0], *next, "from publisher{from} on {channel}");
                        *next += 1;
                    }
                    assert_eq!(next, [[EACH; CHANNELS]; PUBLISHERS]);
                    subscriber.expect_silence();
                    subscriber.close();
                });
            }
        });
        let total = (CHANNELS * PUBLISHERS * EACH) as f64;
        assert_eq!(gateway.metric("shardgate_publications_total", &[]), total);
        assert_eq!(
            gateway.metric("shardgate_deliveries_total", &[]),
            total * SUBSCRIBERS as f64
        );
        assert_eq!(gateway.metric("shardgate_dropped_total", &[]), 0.0);
        gateway.wait_until_empty();
    }
}

fn acks_come_in_order(engine: &str) {
    let gateway = start(engine, "3");
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for channel in 0..4 {
        bob.subscribe(&channel.to_string());
    }
    alice.send_raw(&frames((0..400).map(|n| {
        let n = n.to_string();
        publish_text(&(n.parse::<u32>().unwrap() % 4).to_string(), &n, Some(&n))
    })));
    // Acks of one channel come in the order sent, and each publication has one.
    let mut last = [None; 4];
    let mut ids = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let ack = alice.recv_json();
        assert_eq!(ack["status"], "published");
        let n: usize = ack["id"].as_str().unwrap().parse().unwrap();
        assert!(last[n % 4] < Some(n), "{n} after {:?}", last[n % 4]);
        last[n % 4] = Some(n);
        ids.insert(n, ack["messageId"].clone());
    }
    assert_eq!(last, [Some(396), Some(397), Some(398), Some(399)]);
    let mut next = [0, 1, 2, 3];
    for _ in 0..400 {
        let publication = bob.recv_json();
        let n = publication["content"].as_u64().unwrap() as usize;
        assert_eq!(n, next[n % 4]);
        assert_eq!(publication["id"], ids[&n]);
        next[n % 4] += 4;
    }
    bob.expect_silence();
}

/// Everybody publishes and subscribes; all see those of one connection in its order, itself too.
fn a_publisher_among_the_subscribers(engine: &str) {
    const USERS: usize = 6;
    const EACH: usize = 100;
    let gateway = start(engine, "3");
    let mut users: Vec<Client> = (0..USERS).map(|n| gateway.connect(&format!("user{n}"))).collect();
    for user in &mut users {
        user.subscribe("room");
    }
    std::thread::scope(|scope| {
        for mut user in users {
            scope.spawn(move || {
                user.send_raw(&frames((0..EACH).map(|n| publish_text("room", &n.to_string(), None))));
                let mut next = [0; USERS];
                for _ in 0..USERS * EACH {
                    let publication = user.recv_publication("room");
                    let from: usize = publication["from"].as_str().unwrap()[4..].parse().unwrap();
                    assert_eq!(publication["content"], next[from], "from user{from}");
                    next[from] += 1;
                }
                user.expect_silence();
            });
        }
    });
}
