//! A fan-out to thousands of subscribers stalls no other client: other requests on the same shard
//! are answered before its end.
//!
//! Nothing here looks at a clock. One shard serves subscribers in the order in which they came. So
//! everything that the last of them gets before its publication was done in the middle of the
//! fan-out.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeMap;

use common::Gateway;
use common::channels::{frames, publish_text};
use common::client::Client;

on_both_engines! { a_small_channel_overtakes, messages_heartbeats_and_http_overtake }

const CROWD: usize = 4000;

fn start(engine: &str) -> Gateway {
    Gateway::start(&["--engine", engine, "--shards", "1", "--limits-messages-per-second", "0"])
}

/// A publication of which a turn takes some 60, so that it is under way for 60 turns.
fn large(n: usize) -> String {
    publish_text("crowd", &format!("[{n},\"{}\"]", "x".repeat(8_000)), None)
}

#[track_caller]
fn expect_large(client: &mut Client, n: usize) {
    assert_eq!(client.recv_publication("crowd")["content"][0], n);
}

fn a_small_channel_overtakes(engine: &str) {
    let gateway = start(engine);
    let mut crowd = gateway.subscribers(CROWD, "crowd");
    let mut last = gateway.connect("last");
    last.subscribe("crowd");
    last.subscribe("few");
    let mut alice = gateway.connect("alice");
    for n in 0..2 {
        alice.send_raw(&frames([large(n), publish_text("few", &n.to_string(), None)]));
        assert_eq!(last.recv_publication("few")["content"], n);
        expect_large(&mut last, n);
        crowd.iter_mut().for_each(|client| expect_large(client, n));
    }
}

/// A request made when the first subscriber has its publication is answered before the last one has
/// it.
fn messages_heartbeats_and_http_overtake(engine: &str) {
    let gateway = start(engine);
    let mut crowd = gateway.subscribers(CROWD, "crowd");
    let mut last = gateway.connect("last");
    last.subscribe("crowd");
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let mut within = BTreeMap::from([("heartbeat", 0), ("message", 0), ("http", 0)]);
    // The machine may let us sleep through a whole fan-out, but not through all of them; without
    // turns, none would do.
    for n in 0..20 {
        alice.send_text(&large(n));
        expect_large(&mut crowd[0], n);
        bob.send_text(r#"{"type":"message","to":"last","content":1}"#);
        last.send_text(r#"{"type":"heartbeat"}"#);
        let deliveries = gateway.metric("shardgate_deliveries_total", &[]) as usize;
        if deliveries < (n + 1) * (CROWD + 1) {
            *within.get_mut("http").unwrap() += 1;
        }
        let mut is_before = true;
        for _ in 0..3 {
            let got = last.recv_json();
            let kind = got["type"].as_str().unwrap();
            if kind == "publication" {
                assert_eq!(got["content"][0], n);
                is_before = false;
            } else if is_before {
                *within.get_mut(kind).unwrap() += 1;
            }
        }
        crowd[1..].iter_mut().for_each(|client| expect_large(client, n));
        if within.values().all(|times| *times > 0) {
            return;
        }
    }
    panic!("of 20 times, this came within a fan-out: {within:?}");
}
