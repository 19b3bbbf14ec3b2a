//! Limits of one connection and one user: refusals, closes, what is forgiven, and the meaning of
//! zero.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use common::client::text_bytes;
use serde_json::json;

on_both_engines! {
    over_the_rate_is_refused_then_closed, a_burst_passes, rate_zero_is_no_limit, the_oldest_of_too_many_connections_goes,
    connections_per_user_zero_is_no_limit, ten_bad_frames_close, every_frame_counts, the_longest_silent_device_goes, answers_decide_at_once, a_stranger_is_short, a_good_frame_forgives_bad_ones, the_rate_holds_on_echo,
    a_question_costs_by_the_users_it_names,
}

fn over_the_rate_is_refused_then_closed(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-messages-per-second",
        "1",
        "--limits-burst",
        "5",
    ]);
    let mut bob = gateway.connect("bob");
    let mut alice = gateway.connect("alice");
    for _ in 0..5 {
        alice.send_message_expecting("bob", "1", "delivered");
    }
    let mut bytes = Vec::new();
    for n in 0..100 {
        bytes.extend(text_bytes(&format!(
            r#"{{"type":"message","to":"bob","content":{n},"id":"c{n}"}}"#
        )));
    }
    alice.send_raw(&bytes);
    let frames = alice.expect_close_after_frames(3013);
    let frames: Vec<serde_json::Value> = frames
        .iter()
        .map(|frame| serde_json::from_str(frame.text()).unwrap())
        .collect();
    let acks = frames.iter().filter(|frame| frame["type"] == "ack").count();
    let refused: Vec<_> = frames.iter().filter(|frame| frame["type"] == "error").collect();
    assert_eq!(acks + refused.len(), frames.len());
    assert!(refused.len() >= 5, "refused before it was closed: {}", refused.len());
    for error in refused {
        assert_eq!(error["code"], "rateLimited");
        assert!(
            error["id"].as_str().unwrap().starts_with('c'),
            "which one was refused: {error}"
        );
    }
    // Passed messages arrived, and nothing else. The ack of the last one before the close may be
    // lost with it.
    let passed = gateway.stats()["messagesIn"].as_u64().unwrap();
    assert!((5 + acks as u64..100).contains(&passed), "{passed}");
    for _ in 0..passed {
        assert_eq!(bob.recv_json()["from"], "alice");
    }
    bob.expect_silence();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3013\""]),
        1.0
    );
}

fn a_burst_passes(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut alice = gateway.connect("alice");
    let frame = text_bytes(r#"{"type":"message","to":"nobody","content":1,"id":"c"}"#);
    alice.send_raw(&frame.repeat(200));
    for n in 0..200 {
        let ack = alice.recv_json();
        assert_eq!(ack["type"], "ack", "{n}: {ack}");
    }
    alice.close();
}

fn a_question_costs_by_the_users_it_names(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-messages-per-second",
        "1",
        "--limits-burst",
        "33",
        "--shards",
        "1",
    ]);
    let mut alice = gateway.connect("alice");
    let users: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
    let question = |count: usize, id: &str| {
        text_bytes(&json!({"type": "presence", "users": users[..count], "id": id}).to_string())
    };
    // Three of eleven frames each fill the burst; the fourth is refused by name, and costs one.
    let frames: Vec<u8> = ["a", "b", "c", "d"].iter().flat_map(|id| question(100, id)).collect();
    alice.send_raw(&frames);
    for id in ["a", "b", "c"] {
        let answer = alice.recv_json();
        assert_eq!(
            (answer["type"].as_str(), answer["id"].as_str()),
            (Some("presence"), Some(id))
        );
    }
    let refused = alice.expect_error("rateLimited");
    assert_eq!(refused["id"], "d");
    // Nine users cost what one frame costs.
    let mut bob = gateway.connect("bob");
    bob.send_raw(&question(9, "n").repeat(33));
    for n in 0..33 {
        assert_eq!(bob.recv_json()["type"], "presence", "{n}");
    }
    alice.close();
}

fn rate_zero_is_no_limit(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let mut alice = gateway.connect("alice");
    let frame = text_bytes(r#"{"type":"message","to":"nobody","content":1}"#);
    for _ in 0..10 {
        alice.send_raw(&frame.repeat(1000));
    }
    alice.expect_silence();
    assert_eq!(gateway.stats()["messagesIn"], 10_000);
}

fn the_oldest_of_too_many_connections_goes(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-connections-per-user",
        "3",
        "--shards",
        "3",
    ]);
    let mut other = gateway.connect("bob");
    let mut devices: std::collections::VecDeque<_> = (0..3).map(|_| gateway.connect("alice")).collect();
    for n in 0..6 {
        // By either way in.
        let newest = if n % 2 == 0 {
            gateway.connect("alice")
        } else {
            let mut client = gateway.upgrade("/ws");
            client.send_json(&json!({"type": "auth", "userId": "alice"}));
            assert_eq!(client.recv_json()["type"], "welcome");
            client
        };
        devices.push_back(newest);
        devices.pop_front().unwrap().expect_close(3504);
        other.send_message_expecting("alice", &n.to_string(), "delivered");
        for device in &mut devices {
            assert_eq!(device.recv_json()["content"], n);
        }
    }
    assert_eq!(gateway.stats()["connections"], 4);
    other.expect_silence();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3504\""]),
        6.0
    );

    let gateway = Gateway::start(&["--engine", engine, "--limits-connections-per-user", "1"]);
    let mut first = gateway.connect("alice");
    let mut second = gateway.connect("alice");
    first.expect_close(3504);
    second.expect_silence();

    // The default is 16.
    let gateway = Gateway::start(&["--engine", engine]);
    let mut devices: Vec<_> = (0..16).map(|_| gateway.connect("alice")).collect();
    devices.iter_mut().for_each(|device| device.expect_silence());
    let _newest = gateway.connect("alice");
    devices[0].expect_close(3504);
    devices[1].expect_silence();
}

fn connections_per_user_zero_is_no_limit(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-connections-per-user", "0"]);
    let mut devices: Vec<_> = (0..40).map(|_| gateway.connect("alice")).collect();
    devices[0].send_text(r#"{"type":"message","to":"alice","content":1}"#);
    for device in &mut devices {
        assert_eq!(device.recv_json()["content"], 1);
    }
    assert_eq!(gateway.stats()["users"], 1);
}

/// Answers pings until it is told to stop. Returns the close code, if one came.
fn keep_answering(mut client: common::Client) -> impl FnOnce() -> Option<u16> {
    let stream = client.stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        while let Some(frame) = client.next_frame() {
            match frame.opcode {
                9 => client.send_carelessly(&common::client::frame_bytes(0x8a, &frame.payload)),
                8 => return frame.close_code(),
                _ => {}
            }
        }
        None
    });
    move || {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        thread.join().unwrap()
    }
}

/// Half-open connections that a phone left behind go, the longest silent one first. A living
/// desktop stays, although it is older, and by whichever way the newest comes in.
fn the_longest_silent_device_goes(engine: &str) {
    let limit = ["--limits-connections-per-user", "4", "--shards", "2"];
    let gateway = Gateway::start(&[&["--engine", engine], &limit[..]].concat());
    let desktop = keep_answering(gateway.connect("alice"));
    let mut left: std::collections::VecDeque<_> = (0..3).map(|_| gateway.connect("alice")).collect();
    let closed = || gateway.metric("shardgate_connections_closed_total", &["code=\"3504\""]);
    let mut other = gateway.connect("bob");
    for n in 0..3 {
        // They have been silent for a while.
        let since = std::time::Instant::now();
        common::eventually("a while has passed", || since.elapsed().as_millis() > 1_100);
        left.push_back(if n % 2 == 0 {
            gateway.connect("alice")
        } else {
            let mut client = gateway.upgrade("/ws");
            client.send_json(&json!({"type": "auth", "userId": "alice"}));
            assert_eq!(client.recv_json()["type"], "welcome");
            client
        });
        // The newest is in meanwhile.
        other.send_message_expecting("alice", &n.to_string(), "delivered");
        let newest = left.back_mut().unwrap();
        assert_eq!(newest.recv_json()["content"], n);
        common::eventually("one has gone", || closed() == f64::from(n + 1));
        let mut gone = left.pop_front().unwrap();
        let closed = std::iter::from_fn(|| gone.try_recv_frame()).find(|frame| frame.opcode == 8);
        assert_eq!(closed.and_then(|frame| frame.close_code()), Some(3504));
    }
    assert_eq!(gateway.stats()["connections"], 5);
    assert_eq!(desktop(), None, "the desktop was closed");
}

/// When all have answered they are equally alive: the oldest goes, and none waits for the end of
/// the time.
fn answers_decide_at_once(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-connections-per-user", "2"]);
    let mut oldest = gateway.connect("alice");
    let second = keep_answering(gateway.connect("alice"));
    let since = std::time::Instant::now();
    common::eventually("a while has passed", || since.elapsed().as_millis() > 1_100);
    let mut newest = gateway.connect("alice");
    oldest.expect_close(3504);
    newest.expect_silence();
    assert_eq!(second(), None);
}

/// Pings, pongs and fragments cost what messages cost.
fn every_frame_counts(engine: &str) {
    let rate = ["--limits-messages-per-second", "1", "--limits-burst", "5"];
    let gateway = Gateway::start(&[&["--engine", engine, "--echo"], &rate[..]].concat());
    let ping = common::client::frame_bytes(0x89, b"");
    let pong = common::client::frame_bytes(0x8a, b"");
    let begun = common::client::frame_bytes(0x01, b"");
    let more = common::client::frame_bytes(0x00, b"");
    for (known, path) in [(true, "/ws"), (false, "/ws"), (false, "/echo")] {
        for flood in [
            ping.repeat(50),
            pong.repeat(50),
            [begun.clone(), more.repeat(50)].concat(),
        ] {
            let mut client = if known {
                gateway.connect("alice")
            } else {
                gateway.upgrade(path)
            };
            client.send_raw(&flood);
            let frames = client.expect_close_after_frames(3013);
            let errors = frames.iter().filter(|frame| frame.opcode == 1).count();
            // Each one over the burst is answered until as many were refused.
            assert_eq!(errors, if path == "/echo" { 0 } else { 5 });
            assert!(frames.len() <= 11, "{}", frames.len());
        }
    }
    let dropped = gateway.metric(
        "shardgate_dropped_total",
        &["kind=\"frame\"", "reason=\"rate_limited\""],
    );
    assert_eq!(dropped, 30.0);
    // Messages within the rate are answered.
    let mut client = gateway.connect("bob");
    client.send_raw(&ping.repeat(4));
    for _ in 0..4 {
        assert_eq!(client.recv_frame().opcode, 10);
    }
}

/// Before authentication messages are short, and few bytes are queued for them.
fn a_stranger_is_short(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let padded = |kind: &str, bytes: usize| {
        let text = format!(r#"{{"type":"{kind}","userId":"alice","padding":""}}"#);
        text.replace("\"\"}", &format!("\"{}\"}}", "x".repeat(bytes - text.len())))
    };
    let mut client = gateway.upgrade("/ws");
    client.send_text(&padded("auth", 16 * 1024));
    assert_eq!(client.recv_json()["type"], "welcome");
    client.send_text(&padded("heartbeat", 60_000));
    assert_eq!(client.recv_json()["type"], "heartbeat");
    // Also in one packet with the credentials.
    let mut client = gateway.upgrade("/ws");
    let both = [
        text_bytes(&padded("auth", 100)),
        text_bytes(&padded("heartbeat", 60_000)),
    ]
    .concat();
    client.send_raw(&both);
    assert_eq!(client.recv_json()["type"], "welcome");
    assert_eq!(client.recv_json()["type"], "heartbeat");
    let mut client = gateway.upgrade("/ws");
    client.send_carelessly(&text_bytes(&padded("auth", 16 * 1024 + 1)));
    client.expect_close(1009);
    // Many small ones that are answered, and the answers not read.
    let mut client = gateway.upgrade("/ws");
    let nonsense = text_bytes(r#"{"type":"message","to":"bob","content":1}"#);
    client.send_carelessly(&nonsense.repeat(100_000));
    common::eventually("it is closed", || {
        gateway.metric("shardgate_connections_closed_total", &["code=\"3008\""]) == 1.0
    });
}

fn ten_bad_frames_close(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for known in [true, false] {
        let mut client = if known {
            gateway.connect("alice")
        } else {
            gateway.upgrade("/ws")
        };
        for n in 0..10 {
            match n % 3 {
                0 => client.send_text("nonsense"),
                1 => client.send_text(r#"{"type":"nonsense"}"#),
                _ => client.send_text(r#"{"type":"message"}"#),
            }
            client.expect_error(if n % 3 == 1 { "unknownType" } else { "badRequest" });
        }
        client.expect_close(3501);
    }
    // The eleventh in the same packet changes nothing.
    let mut client = gateway.connect("alice");
    client.send_raw(&text_bytes("nonsense").repeat(30));
    assert_eq!(client.expect_close_after_frames(3501).len(), 10);
    gateway.wait_until_empty();
}

fn a_good_frame_forgives_bad_ones(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    for good in [
        r#"{"type":"heartbeat"}"#,
        r#"{"type":"message","to":"nobody","content":1,"id":"c"}"#,
        r#"{"type":"presence","users":["bob"]}"#,
        r#"{"type":"auth","userId":"alice"}"#,
    ] {
        client.send_raw(&text_bytes("nonsense").repeat(9));
        for _ in 0..9 {
            client.expect_error("badRequest");
        }
        client.send_text(good);
        assert_ne!(client.recv_json()["type"], "error", "{good}");
    }
    client.send_raw(&text_bytes("nonsense").repeat(10));
    assert_eq!(client.expect_close_after_frames(3501).len(), 10);
}

fn the_rate_holds_on_echo(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--echo",
        "--limits-messages-per-second",
        "1",
        "--limits-burst",
        "5",
    ]);
    for first in [0x81, 0x82] {
        let mut client = gateway.upgrade("/echo");
        client.send_raw(&common::client::frame_bytes(first, b"x").repeat(50));
        let echoed = client.expect_close_after_frames(3013);
        assert!((5..50).contains(&echoed.len()), "{}", echoed.len());
    }
}
