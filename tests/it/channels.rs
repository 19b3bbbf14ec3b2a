//! Channels: which subscribers get a publication, from when on and until when, byte for byte, and
//! the answer to each frame.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use common::Gateway;
use common::channels::{frames, publish_text, subscribe_text, unsubscribe_text};
use common::client::{Client, text_bytes};
use serde_json::{Value, json};

on_both_engines! {
    a_publication_reaches_all_subscribers, the_publisher_hears_it_if_it_subscribed, without_an_id_there_is_no_ack,
    content_is_passed_through_byte_for_byte, content_that_is_not_json, names_of_channels, names_that_are_none, ids_come_back,
    before_auth, right_after_auth, twice_is_once, without_a_subscription, who_has_gone_hears_nothing,
    all_in_one_segment, all_in_one_segment_on_three_shards, in_and_out_of_a_stream, counted_in_metrics_and_stats,
}

fn start(engine: &str) -> Gateway {
    with_shards(engine, 3)
}

fn with_shards(engine: &str, shards: usize) -> Gateway {
    let shards = shards.to_string();
    Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        &shards,
        "--limits-messages-per-second",
        "0",
    ])
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn a_publication_reaches_all_subscribers(engine: &str) {
    for shards in [1, 3] {
        let gateway = with_shards(engine, shards);
        let mut alice = gateway.connect("alice");
        // Two devices of each user; users on all shards, and channels at home on all shards.
        let mut bobs: Vec<Client> = (0..12).map(|n| gateway.connect(&format!("bob{}", n / 2))).collect();
        let mut stranger = gateway.connect("stranger");
        stranger.subscribe("another room");
        for n in 0..8 {
            let room = format!("room{n}");
            for bob in &mut bobs {
                bob.send_json(&json!({"type": "subscribe", "channel": room, "id": "c3"}));
                let answer = bob.recv_json();
                assert_eq!(answer, json!({"type": "subscribed", "channel": room, "id": "c3"}));
            }
            let before = unix_ms();
            alice.send_json(&json!({"type": "publish", "channel": room, "content": {"n": n}, "id": "c5"}));
            let ack = alice.recv_json();
            assert_eq!(keys(&ack), ["id", "messageId", "status", "type"]);
            assert_eq!(
                (&ack["type"], &ack["id"], &ack["status"]),
                (&json!("ack"), &json!("c5"), &json!("published"))
            );
            let id = uuid::Uuid::parse_str(ack["messageId"].as_str().unwrap()).unwrap();
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.hyphenated().to_string(), ack["messageId"]);
            let first = bobs[0].recv_json();
            assert_eq!(keys(&first), ["channel", "content", "from", "id", "ts", "type"]);
            assert_eq!(first["id"], ack["messageId"], "the ack names the publication");
            let ts = first["ts"].as_u64().unwrap();
            assert!((before..=unix_ms()).contains(&ts), "{ts} is Unix milliseconds");
            let expected = json!({
                "type": "publication", "channel": room, "id": ack["messageId"], "from": "alice", "content": {"n": n}, "ts": ts,
            });
            assert_eq!(first, expected);
            for bob in &mut bobs[1..] {
                assert_eq!(bob.recv_json(), expected);
            }
        }
        // One device leaves: the other one stays.
        bobs[1].unsubscribe("room0");
        alice.publish("room0", "1");
        for (n, bob) in bobs.iter_mut().enumerate() {
            if n != 1 {
                assert_eq!(bob.recv_publication("room0")["content"], 1);
            }
            bob.expect_silence();
        }
        alice.expect_silence();
        stranger.expect_silence();
    }
}

fn the_publisher_hears_it_if_it_subscribed(engine: &str) {
    let gateway = start(engine);
    for n in 0..8 {
        let room = format!("room{n}");
        let mut phone = gateway.connect("alice");
        let mut laptop = gateway.connect("alice");
        laptop.publish(&room, "\"to nobody\"");
        phone.subscribe(&room);
        phone.send_text(&publish_text(&room, "1", Some("p")));
        let mut got = [phone.recv_json(), phone.recv_json()];
        got.sort_by_key(|frame| frame["type"].to_string());
        let [ack, publication] = got;
        assert_eq!((&ack["type"], &ack["status"]), (&json!("ack"), &json!("published")));
        assert_eq!(
            (&publication["type"], &publication["from"]),
            (&json!("publication"), &json!("alice"))
        );
        assert_eq!(ack["messageId"], publication["id"]);
        // Subscriptions are a connection's, not a user's.
        laptop.publish(&room, "2");
        assert_eq!(phone.recv_publication(&room)["content"], 2);
        laptop.expect_silence();
        phone.expect_silence();
    }
}

fn without_an_id_there_is_no_ack(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for n in 0..6 {
        for id in ["", r#","id":null"#] {
            // Earlier publications that are still on their way home are not for the next round.
            let room = format!("room{n}{}", id.len());
            let say = |what: &str| format!(r#"{{"type":"{what}","channel":"{room}","content":1{id}}}"#);
            bob.send_text(&say("subscribe"));
            assert_eq!(bob.recv_json(), json!({"type": "subscribed", "channel": room}));
            alice.send_text(&say("publish"));
            assert_eq!(bob.recv_publication(&room)["content"], 1);
            alice.expect_silence();
            bob.send_text(&say("unsubscribe"));
            assert_eq!(bob.recv_json(), json!({"type": "unsubscribed", "channel": room}));
            alice.send_text(&say("publish"));
            alice.expect_silence();
            bob.expect_silence();
        }
    }
}

fn content_is_passed_through_byte_for_byte(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bobs = [
        gateway.connect("bob"),
        gateway.connect("carol"),
        gateway.connect("dave"),
    ];
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    // The longest frame that is taken by default.
    let empty = publish_text("room0", "\"\"", Some("p"));
    let longest = format!("\"{}\"", "x".repeat(64 * 1024 - empty.len()));
    let contents = [
        "null",
        "true",
        "-0",
        "\"\"",
        "{}",
        "[]",
        "1e400",
        "-1E-400",
        "1.00000000000000000000000000001",
        "123456789012345678901234567890",
        r#""\ud800""#,
        r#""\u0000\u001f\/\u002f\"\\""#,
        "\"\u{7f}\u{85}\u{2028}\"",
        "\"ä€😀\u{10ffff}\u{fffe}\"",
        "{ \"a\" :\t[ 1 ,\r\n2 ] }",
        r#"{"a":1,"a":2,"type":"ack","channel":"x","content":null,"ts":0}"#,
        &deep,
        &longest,
    ];
    // At home on several shards.
    for room in ["room0", "room1", "room2", "room3"] {
        for bob in &mut bobs {
            bob.subscribe(room);
        }
        for content in contents {
            for (before, after) in [("", ""), ("\n ", " \t\r\n")] {
                let content_in = format!("{before}{content}{after}");
                let frame = publish_text(room, &content_in, Some("p"));
                if frame.len() > 64 * 1024 {
                    continue;
                }
                alice.send_text(&frame);
                assert_eq!(alice.recv_json()["status"], "published");
                for bob in &mut bobs {
                    let got = bob.recv_text();
                    let start = got.find(r#","content":"#).unwrap() + r#","content":"#.len();
                    let end = got.rfind(r#","ts":"#).unwrap();
                    assert!(got[start..end] == *content, "{content:.200} became {got:.300}");
                }
            }
        }
    }
    // One byte more.
    let too_long = format!("\"{}\"", "x".repeat(64 * 1024 + 1 - empty.len()));
    alice.send_text(&publish_text("room0", &too_long, Some("p")));
    alice.expect_close(1009);
    for bob in &mut bobs {
        bob.expect_silence();
    }
}

fn content_that_is_not_json(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    bob.subscribe("room");
    for content in [
        "",
        "nul",
        "01",
        "NaN",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\n\"",
        "[1,]",
        "{a:1}",
        "1 2",
        "[",
        "}",
        "\u{feff}1",
    ] {
        alice.send_text(&publish_text("room", content, Some("p")));
        alice.expect_error("badRequest");
        alice.expect_silence();
    }
    // No content at all is not null.
    alice.send_text(r#"{"type":"publish","channel":"room","id":"c"}"#);
    assert_eq!(alice.expect_error("badRequest")["id"], "c");
    alice.send_text(r#"{"type":"publish","channel":"room","content":1,"content":2}"#);
    alice.expect_error("badRequest");
    bob.expect_silence();
    assert_eq!(gateway.metric("shardgate_publications_total", &[]), 0.0);
}

fn names_of_channels(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let longest = "x".repeat(255);
    let longest_wide = "€".repeat(85);
    let names = [
        "r",
        "ä€😀\u{10ffff}",
        "with space",
        " ",
        "\"quoted\\\"",
        "\\",
        "</script>",
        "a/b?c=d:*{user}[x]",
        "\u{2028}",
        "null",
        &longest,
        &longest_wide,
    ];
    for name in names {
        bob.subscribe(name);
    }
    // All of them at once, and each gets its own.
    for name in names {
        let id = alice.publish(name, "1");
        assert_eq!(bob.recv_publication(name)["id"], *id);
    }
    for name in names {
        bob.unsubscribe(name);
        alice.publish(name, "1");
    }
    bob.expect_silence();
    // Written with escapes it is the same channel; in another case it is another one.
    bob.send_text(r#"{"type":"subscribe","channel":"\u0072oo\u006d\u0022"}"#);
    assert_eq!(bob.recv_text(), r#"{"type":"subscribed","channel":"room\""}"#);
    alice.publish("Room\"", "1");
    alice.publish("room", "1");
    alice.publish("room\"", "2");
    assert_eq!(bob.recv_publication("room\"")["content"], 2);
    alice.send_text(r#"{"type":"publish","channel":"\u0072oom\"","content":3}"#);
    assert_eq!(bob.recv_publication("room\"")["content"], 3);
}

fn names_that_are_none(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let (too_long, too_long_wide) = ("x".repeat(256), "€".repeat(86));
    let bad = [
        json!(""),
        json!("a\nb"),
        json!("\u{0}"),
        json!("\u{7f}"),
        json!("\u{85}"),
        json!(too_long),
        json!(too_long_wide),
        json!(5),
        json!(null),
        json!(true),
        json!(["room"]),
        json!({}),
    ];
    for kind in ["subscribe", "unsubscribe", "publish"] {
        for channel in &bad {
            alice.send_json(&json!({"type": kind, "channel": channel, "content": 1, "id": "c"}));
            assert_eq!(alice.expect_error("badRequest")["id"], "c", "{kind} {channel}");
            alice.expect_silence();
        }
        // Half a surrogate pair, none at all, and two of them.
        for channel in [r#""channel":"\ud800","#, "", r#""channel":"a","channel":"a","#] {
            alice.send_text(&format!(r#"{{"type":"{kind}",{channel}"content":1}}"#));
            alice.expect_error("badRequest");
            alice.expect_silence();
        }
    }
    let stats = gateway.stats();
    assert_eq!(stats["subscriptions"], 0, "{stats}");
}

fn ids_come_back(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let longest = "x".repeat(64);
    for (n, id) in ["", "0", "ä\"\\\n\u{0}", "😀", &longest].into_iter().enumerate() {
        let room = format!("room{n}");
        alice.send_json(&json!({"type": "subscribe", "channel": room, "id": id}));
        assert_eq!(
            alice.recv_json(),
            json!({"type": "subscribed", "channel": room, "id": id})
        );
        alice.send_json(&json!({"type": "unsubscribe", "channel": room, "id": id}));
        assert_eq!(
            alice.recv_json(),
            json!({"type": "unsubscribed", "channel": room, "id": id})
        );
        alice.send_json(&json!({"type": "publish", "channel": room, "content": 1, "id": id}));
        assert_eq!(alice.recv_json()["id"], id);
    }
    for kind in ["subscribe", "unsubscribe", "publish"] {
        for id in [json!("x".repeat(65)), json!(1), json!(["a"])] {
            alice.send_json(&json!({"type": kind, "channel": "room", "content": 1, "id": id}));
            alice.expect_error("badRequest");
            alice.expect_silence();
        }
    }
}

fn before_auth(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut unknown = gateway.upgrade("/ws");
    for kind in ["subscribe", "unsubscribe", "publish"] {
        unknown.send_json(&json!({"type": kind, "channel": "room", "content": 1, "id": "c"}));
        assert_eq!(unknown.expect_error("unauthorized")["id"], "c");
    }
    alice.publish("room", "1");
    unknown.expect_silence();
    unknown.send_json(&json!({"type": "auth", "userId": "bob"}));
    assert_eq!(unknown.recv_json()["type"], "welcome");
    unknown.subscribe("room");
    alice.publish("room", "2");
    assert_eq!(unknown.recv_publication("room")["content"], 2);
    assert_eq!(gateway.metric("shardgate_publications_total", &[]), 2.0);
}

/// In the same packet: the frames behind `auth` go with the connection to the user's shard.
fn right_after_auth(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    for n in 0..12 {
        let (user, room) = (format!("bob{n}"), format!("room{}", n % 5));
        let mut bob = gateway.upgrade("/ws");
        let auth = json!({"type": "auth", "userId": user}).to_string();
        bob.send_raw(&frames([auth, subscribe_text(&room)]));
        assert_eq!(bob.recv_json()["userId"], *user);
        bob.expect_answer("subscribed", &room, "s");
        alice.publish(&room, "1");
        assert_eq!(bob.recv_publication(&room)["from"], "alice");
        bob.close();
    }
}

fn twice_is_once(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for n in 0..6 {
        let room = format!("room{n}");
        // One behind the other, and in one packet, in which the second comes while the first is not
        // confirmed.
        bob.send_raw(&frames([subscribe_text(&room), subscribe_text(&room)]));
        bob.expect_answer("subscribed", &room, "s");
        bob.expect_answer("subscribed", &room, "s");
        bob.subscribe(&room);
        alice.publish(&room, "1");
        assert_eq!(bob.recv_publication(&room)["content"], 1);
        bob.expect_silence();
        // And once out is out.
        bob.unsubscribe(&room);
        alice.publish(&room, "2");
        bob.expect_silence();
    }
    assert_eq!(gateway.stats()["subscriptions"], 0);
}

fn without_a_subscription(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    bob.subscribe("room");
    alice.unsubscribe("room");
    alice.unsubscribe("nobody's room");
    alice.publish("room", "1");
    assert_eq!(
        bob.recv_publication("room")["content"],
        1,
        "another's unsubscribe is not bob's"
    );
}

fn who_has_gone_hears_nothing(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    for round in 0..10 {
        let mut bob = gateway.connect(&format!("bob{round}"));
        let mut carol = gateway.connect(&format!("carol{round}"));
        bob.subscribe("room");
        carol.subscribe("room");
        match round % 3 {
            0 => bob.close(),
            1 => bob.reset(),
            _ => drop(bob),
        }
        // The next connection in its slot is no subscriber.
        let mut next = gateway.connect(&format!("bob{round}"));
        alice.publish("room", "1");
        assert_eq!(carol.recv_publication("room")["content"], 1);
        next.expect_silence();
        carol.close();
        next.close();
    }
    alice.close();
    gateway.wait_until_empty();
    common::eventually("no subscriptions", || {
        gateway.stats()["subscriptions"] == 0 && gateway.metric("shardgate_channels", &[]) == 0.0
    });
}

/// Subscribes, publishes and unsubscribes in one packet. Returns the replies in their order, but
/// for the acks, which all came.
fn all_at_once(alice: &mut Client, room: &str) -> Vec<String> {
    alice.send_raw(&frames([
        subscribe_text(room),
        publish_text(room, "1", Some("p")),
        unsubscribe_text(room),
        publish_text(room, "\"too late\"", Some("q")),
    ]));
    let mut got = Vec::new();
    let mut acks = Vec::new();
    while got.last() != Some(&"unsubscribed".to_owned()) || acks.len() < 2 {
        let frame = alice.recv_json();
        match frame["type"].as_str().unwrap() {
            "ack" => {
                assert_eq!(frame["status"], "published");
                acks.push(frame["id"].as_str().unwrap().to_owned());
            }
            kind => {
                assert!(kind != "publication" || frame["content"] == 1, "{frame}");
                got.push(kind.to_owned());
            }
        }
    }
    assert_eq!(acks, ["p", "q"]);
    alice.expect_silence();
    got
}

/// Frames of one packet are carried out in their order.
fn all_in_one_segment(engine: &str) {
    let gateway = with_shards(engine, 1);
    let mut alice = gateway.connect("alice");
    for n in 0..40 {
        let got = all_at_once(&mut alice, &format!("room{n}"));
        assert_eq!(got, ["subscribed", "publication", "unsubscribed"]);
    }
}

/// A publication goes by way of the channel's home, and reaches the subscribers that are still
/// there when it comes back.
fn all_in_one_segment_on_three_shards(engine: &str) {
    let gateway = with_shards(engine, 3);
    let mut alice = gateway.connect("alice");
    for n in 0..40 {
        let mut got = all_at_once(&mut alice, &format!("room{n}"));
        if got.len() == 3 {
            assert_eq!(got.remove(1), "publication");
        }
        assert_eq!(got, ["subscribed", "unsubscribed"]);
    }
}

/// A subscriber that comes and goes while others publish gets all publications between, once and in
/// order, and no other.
fn in_and_out_of_a_stream(engine: &str) {
    const ROUNDS: usize = 120;
    const AHEAD: u64 = 16;
    for shards in [1, 3] {
        let gateway = with_shards(engine, shards);
        let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let mut publisher = gateway.connect("publisher");
            let (sent, stop) = (&sent, &stop);
            let streaming = scope.spawn(move || {
                for n in 1.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    sent.store(n, SeqCst);
                    publisher.send_text(&publish_text("stream", &n.to_string(), Some(&n.to_string())));
                    if n > AHEAD {
                        let ack = publisher.recv_json();
                        assert_eq!(
                            (&ack["status"], &ack["id"]),
                            (&json!("published"), &json!((n - AHEAD).to_string()))
                        );
                    }
                }
            });
            let visitors: Vec<_> = (0..4)
                .map(|n| {
                    let mut visitor = gateway.connect(&format!("visitor{n}"));
                    scope.spawn(move || {
                        for round in 0..ROUNDS {
                            visitor.come_and_go("stream", sent, round % 5);
                            if round % 7 == 0 {
                                visitor.expect_silence();
                            }
                        }
                        visitor.close();
                    })
                })
                .collect();
            let came_through: Vec<_> = visitors.into_iter().map(|visitor| visitor.join()).collect();
            stop.store(true, SeqCst);
            assert!(came_through.iter().all(Result::is_ok), "a visitor failed");
            streaming.join().unwrap();
        });
    }
}

fn counted_in_metrics_and_stats(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bobs: Vec<Client> = (0..9).map(|n| gateway.connect(&format!("bob{n}"))).collect();
    for bob in &mut bobs {
        for room in ["all", "also all"] {
            bob.subscribe(room);
        }
    }
    bobs[0].subscribe("mine");
    let count = |name: &str| gateway.metric(name, &[]);
    // Gauges are set at the end of a turn, perhaps after its sends.
    common::eventually("gauges", || {
        count("shardgate_subscriptions") == 19.0 && gateway.stats()["subscriptions"] == 19
    });
    // Channels are counted on each shard with a subscriber.
    let channels = count("shardgate_channels");
    assert!((3.0..=7.0).contains(&channels), "{channels}");
    alice.publish("all", "1");
    alice.publish("mine", "1");
    alice.publish("nobody's", "1");
    for (n, bob) in bobs.iter_mut().enumerate() {
        bob.recv_publication("all");
        if n == 0 {
            bob.recv_publication("mine");
        }
    }
    assert_eq!(count("shardgate_publications_total"), 3.0);
    assert_eq!(count("shardgate_deliveries_total"), 10.0);
    // Once for each shard that had subscribers; the time is taken after the last one has it.
    common::eventually("fan-outs are counted", || {
        let fanouts = count("shardgate_fanout_seconds_count");
        assert!(fanouts <= 4.0, "{fanouts}");
        fanouts >= 2.0
    });
    let sent = |kind: &str| gateway.metric("shardgate_messages_sent_total", &[&format!("type=\"{kind}\"")]);
    assert_eq!((sent("publication"), sent("subscribed")), (10.0, 19.0));
    let stats = gateway.stats();
    assert_eq!((&stats["messagesIn"], &stats["messagesOut"]), (&json!(3), &json!(10)));
    bobs.pop().unwrap().unsubscribe("all");
    assert_eq!(sent("unsubscribed"), 1.0);
    drop(bobs);
    common::eventually("all have left", || {
        count("shardgate_subscriptions") == 0.0
            && count("shardgate_channels") == 0.0
            && gateway.stats()["subscriptions"] == 0
    });
    assert_eq!(gateway.metric("shardgate_dropped_total", &[]), 0.0);
    // Frames are counted by kind, too.
    alice.send_raw(&text_bytes(&publish_text("all", "1", None)).repeat(3));
    alice.expect_silence();
    let received: BTreeSet<u64> = ["publish", "subscribe", "unsubscribe"]
        .map(|kind| gateway.metric("shardgate_messages_received_total", &[&format!("type=\"{kind}\"")]) as u64)
        .into();
    assert_eq!(received, BTreeSet::from([6, 19, 1]));
}
