//! Limits of channels: how many one connection may have, what counts towards its rate, and what
//! closes it.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use common::channels::{frames, publish_text, subscribe_text, unsubscribe_text};
use serde_json::{Value, json};

on_both_engines! {
    channels_per_connection, bytes_of_names, the_default_is_128, a_full_connection_in_one_segment, publications_count_towards_the_rate,
    ten_bad_frames_close, a_good_frame_forgives,
}

fn bytes_of_names(engine: &str) {
    let limits = ["--limits-channel-name-bytes", "600"];
    let gateway = Gateway::start(&[&["--engine", engine, "--shards", "2"], &limits[..]].concat());
    let mut alice = gateway.connect("alice");
    let long = |n: u8| format!("{n}{}", "x".repeat(249));
    alice.subscribe(&long(1));
    alice.subscribe(&long(2));
    alice.send_text(&subscribe_text(&long(3)));
    let error = alice.expect_error("limitExceeded");
    assert!(
        error["message"].as_str().unwrap().contains("limits.channel_name_bytes"),
        "{error}"
    );
    // A short enough name still fits, a repeated one takes no more, and an ended one makes room.
    alice.subscribe(&"y".repeat(100));
    alice.subscribe(&long(1));
    alice.send_text(&subscribe_text("z"));
    alice.expect_error("limitExceeded");
    alice.unsubscribe(&long(1));
    alice.subscribe(&long(3));
    let mut bob = gateway.connect("bob");
    bob.subscribe(&long(1));
    // By default 128 names of the greatest length fit, and of a raised number of channels as many
    // bytes as of these.
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-channels-per-connection",
        "1000",
        "--limits-burst",
        "1000",
    ]);
    let mut alice = gateway.connect("alice");
    let name = |n: usize| format!("{n:03}{}", "x".repeat(252));
    (0..128).for_each(|n| alice.subscribe(&name(n)));
    alice.send_text(&subscribe_text(&name(128)));
    alice.expect_error("limitExceeded");
}

fn channels_per_connection(engine: &str) {
    for shards in ["1", "3"] {
        let gateway = Gateway::start(&[
            "--engine",
            engine,
            "--shards",
            shards,
            "--limits-channels-per-connection",
            "5",
        ]);
        let mut alice = gateway.connect("alice");
        let mut other_device = gateway.connect("alice");
        for n in 0..5 {
            alice.subscribe(&n.to_string());
        }
        for _ in 0..3 {
            alice.send_text(&subscribe_text("one more"));
            assert_eq!(alice.expect_error("limitExceeded")["id"], "s");
            // One's own again is no more.
            alice.subscribe("3");
        }
        other_device.subscribe("one more");
        other_device.publish("3", "1");
        assert_eq!(alice.recv_publication("3")["content"], 1);
        // Publishing needs no subscription.
        alice.publish("one more", "2");
        assert_eq!(other_device.recv_publication("one more")["content"], 2);
        alice.expect_silence();
        // Going out of one that one is not in makes no room; going out of another does.
        alice.unsubscribe("one more");
        alice.send_text(&subscribe_text("one more"));
        alice.expect_error("limitExceeded");
        alice.unsubscribe("0");
        alice.subscribe("one more");
        alice.send_text(&subscribe_text("0"));
        alice.expect_error("limitExceeded");
        assert_eq!(gateway.stats()["subscriptions"], 6);
    }
}

fn the_default_is_128(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let mut alice = gateway.connect("alice");
    for n in 0..128 {
        alice.subscribe(&n.to_string());
    }
    alice.send_text(&subscribe_text("128"));
    alice.expect_error("limitExceeded");
    let mut bob = gateway.connect("bob");
    for n in 0..128 {
        bob.publish(&n.to_string(), &n.to_string());
        assert_eq!(alice.recv_publication(&n.to_string())["content"], n);
    }
    alice.close();
    common::eventually("none is left", || gateway.stats()["subscriptions"] == 0);
}

/// Also while none of them is confirmed yet.
fn a_full_connection_in_one_segment(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "3",
        "--limits-channels-per-connection",
        "4",
    ]);
    let mut alice = gateway.connect("alice");
    let subscribe = |n: usize| json!({"type": "subscribe", "channel": n.to_string(), "id": n.to_string()}).to_string();
    let mut texts: Vec<String> = (0..6).map(subscribe).collect();
    texts.push(unsubscribe_text("2"));
    texts.push(subscribe(6));
    alice.send_raw(&frames(texts));
    let mut answers: Vec<Value> = (0..8).map(|_| alice.recv_json()).collect();
    answers.sort_by_key(|answer| answer["id"].to_string());
    let kinds: Vec<&str> = answers.iter().map(|answer| answer["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "subscribed",
            "subscribed",
            "subscribed",
            "subscribed",
            "error",
            "error",
            "subscribed",
            "unsubscribed"
        ]
    );
    assert_eq!(gateway.stats()["subscriptions"], 4);
}

fn publications_count_towards_the_rate(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-messages-per-second",
        "1",
        "--limits-burst",
        "5",
    ]);
    let mut bob = gateway.connect("bob");
    bob.subscribe("room");
    let mut alice = gateway.connect("alice");
    for _ in 0..5 {
        alice.publish("room", "1");
    }
    alice.send_raw(&frames(
        (0..100).map(|n| publish_text("room", &n.to_string(), Some("c"))),
    ));
    let frames = alice.expect_close_after_frames(3013);
    let frames: Vec<Value> = frames
        .iter()
        .map(|frame| serde_json::from_str(frame.text()).unwrap())
        .collect();
    let refused: Vec<&Value> = frames.iter().filter(|frame| frame["type"] == "error").collect();
    assert!(refused.len() >= 5, "refused before it was closed: {}", refused.len());
    for error in refused {
        assert_eq!((&error["code"], &error["id"]), (&json!("rateLimited"), &json!("c")));
    }
    let passed = gateway.metric("shardgate_publications_total", &[]);
    assert!((5.0..100.0).contains(&passed), "{passed}");
    for _ in 0..passed as usize {
        bob.recv_publication("room");
    }
    // Bob's own rate: a heartbeat and a subscribe are within it.
    bob.expect_silence();
}

fn ten_bad_frames_close(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut alice = gateway.connect("alice");
    let bad = [
        r#"{"type":"subscribe"}"#,
        r#"{"type":"unsubscribe","channel":""}"#,
        r#"{"type":"publish","channel":"room"}"#,
        r#"{"type":"publish","content":1}"#,
        r#"{"type":"subscribed","channel":"room"}"#,
    ];
    alice.send_raw(&frames(bad.iter().cycle().take(30)));
    let errors = alice.expect_close_after_frames(3501);
    assert_eq!(errors.len(), 10);
}

fn a_good_frame_forgives(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let mut alice = gateway.connect("alice");
    let bad = r#"{"type":"subscribe"}"#;
    for good in [
        subscribe_text("room"),
        publish_text("elsewhere", "1", Some("p")),
        unsubscribe_text("room"),
    ] {
        alice.send_raw(&frames([bad; 9]));
        for _ in 0..9 {
            alice.expect_error("badRequest");
        }
        alice.send_text(&good);
        assert_ne!(alice.recv_json()["type"], "error", "{good}");
    }
    alice.send_raw(&frames([bad; 10]));
    assert_eq!(alice.expect_close_after_frames(3501).len(), 10);
}
