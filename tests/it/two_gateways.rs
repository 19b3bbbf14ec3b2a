//! With one Redis, two gateways are one system. A message sent on one arrives on the other,
//! unchanged and in the order sent, and both know who is online.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::assert_rising;
use common::{Fleet, Gateway, Peer, Redis};
use serde_json::{Value, json};

fn system<const N: usize>() -> (Redis, Fleet, [Gateway; N]) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let gateways = fleet.start();
    (redis, fleet, gateways)
}

#[test]
fn messages_both_ways() {
    let (_redis, _fleet, [gw1, gw2]) = system();
    let mut alice = gw1.connect("alice");
    let mut bob = gw2.connect("bob");
    Peer::connect(&gw1, "watcher").wait_to_see("bob", true);
    Peer::connect(&gw2, "watcher").wait_to_see("alice", true);
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    let long = format!("\"{}\"", "€".repeat(20_000));
    for content in [
        "null",
        "-0",
        "\"\"",
        "1e400",
        "1.00000000000000000000000000001",
        r#""\ud800""#,
        r#""\u0000\/""#,
        "\"ä€😀\u{10ffff}\u{2028}\"",
        "{ \"a\" :\t[ 1 ,\r\n2 ] }",
        r#"{"a":1,"a":2,"type":"ack","content":null,"ts":0}"#,
        &deep,
        &long,
    ] {
        for (from, to) in [("alice", "bob"), ("bob", "alice")] {
            let (sender, receiver) = if from == "alice" {
                (&mut alice, &mut bob)
            } else {
                (&mut bob, &mut alice)
            };
            let message_id = sender.send_message_expecting(to, content, "routed");
            let text = receiver.recv_text();
            let start = text.find(r#","content":"#).unwrap() + r#","content":"#.len();
            let end = text.rfind(r#","ts":"#).unwrap();
            assert!(text[start..end] == *content, "{content:.200} became {text:.300}");
            let message: Value = serde_json::from_str(&format!("{}0{}", &text[..start], &text[end..])).unwrap();
            let keys: Vec<&String> = message.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["content", "from", "id", "to", "ts", "type"]);
            assert_eq!(
                (&message["type"], &message["from"], &message["to"], &message["id"]),
                (&json!("message"), &json!(from), &json!(to), &json!(message_id))
            );
            assert!(message["ts"].as_u64().is_some_and(|ts| ts > 1_600_000_000_000));
        }
    }
    // Without an id there is no ack, and it arrives all the same.
    alice.send_text(r#"{"type":"message","to":"bob","content":"quiet"}"#);
    assert_eq!(bob.recv_json()["content"], "quiet");
    alice.expect_silence();
    bob.expect_silence();
    let routed = gw1.metric("shardgate_acks_total", &["status=\"routed\""]);
    assert_eq!(routed, 12.0);
}

#[test]
fn any_user_id() {
    let (_redis, _fleet, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let longest = "x".repeat(128);
    for user in [
        "ä€😀",
        "with space",
        "\"quoted\\\"",
        "{a}{b}",
        "a:b*[c]?",
        "gateways",
        &longest,
    ] {
        let bob = Peer::connect(&gw2, user);
        alice.wait_to_see(user, true);
        assert_eq!(alice.tell(user, "x"), "routed", "{user}");
        assert_eq!(bob.wait_for("x")["to"], user);
        bob.leave();
        alice.wait_to_see(user, false);
    }
}

#[test]
fn all_devices_on_all_gateways() {
    let (_redis, _fleet, [gw1, gw2, gw3]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut carol = Peer::connect(&gw3, "carol");
    let bobs = [&gw2, &gw2, &gw3].map(|gateway| Peer::connect(gateway, "bob"));
    alice.wait_to_see("bob", true);
    // Not on the sender's gateway, then on it too.
    alice.tell_until("bob", "first", "routed");
    for bob in &bobs {
        bob.wait_for("first");
    }
    let local = Peer::connect(&gw1, "bob");
    assert_eq!(alice.tell("bob", "all"), "delivered");
    // The newest device is at another gateway than carol, who may be sooner than the news of it.
    carol.tell_until_heard(&local, "all of carol");
    for bob in bobs.iter().chain([&local]) {
        bob.wait_for("all");
        bob.wait_for("all of carol");
        let copies = bob.messages().iter().filter(|m| m["content"] == "all").count();
        assert_eq!(copies, 1, "once for each device");
    }
}

#[test]
fn offline() {
    let (_redis, _fleet, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut carol = Peer::connect(&gw2, "carol");
    for sender in [&mut alice, &mut carol] {
        assert_eq!(sender.tell("nobody", 1), "offline");
        assert_eq!(sender.sees("nobody"), Some(false));
    }
    let bob = Peer::connect(&gw2, "bob");
    alice.tell_until("bob", 2, "routed");
    bob.leave();
    alice.tell_until("bob", 3, "offline");
    assert_eq!(carol.tell("bob", 4), "offline");
}

#[test]
fn to_oneself() {
    let (_redis, _fleet, [gw1, gw2]) = system();
    let mut phone = Peer::connect(&gw1, "alice");
    let mut laptop = Peer::connect(&gw2, "alice");
    Peer::connect(&gw1, "watcher").wait_to_see("alice", true);
    Peer::connect(&gw2, "watcher").wait_to_see("alice", true);
    // Both gateways are in the directory, or the first note of the other one would not arrive.
    common::eventually("each hears the other", || {
        phone.tell("alice", "hello from the phone");
        laptop.tell("alice", "hello from the laptop");
        let heard = |peer: &Peer| peer.messages().iter().map(|m| m["content"].clone()).collect::<Vec<_>>();
        heard(&laptop).contains(&json!("hello from the phone"))
            && heard(&phone).contains(&json!("hello from the laptop"))
    });
    assert_eq!(phone.tell("alice", "note"), "delivered");
    for device in [&phone, &laptop] {
        let note = device.wait_for("note");
        assert_eq!((&note["from"], &note["to"]), (&json!("alice"), &json!("alice")));
    }
    assert_eq!(phone.wait_for("note")["id"], laptop.wait_for("note")["id"]);
    phone.settle();
    laptop.settle();
    for device in [&phone, &laptop] {
        let notes = device.messages().iter().filter(|m| m["content"] == "note").count();
        assert_eq!(notes, 1);
    }
}

#[test]
fn presence_of_a_hundred() {
    let (_redis, _fleet, [gw1, gw2]) = system();
    let users: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let asked: Vec<&str> = users.iter().map(String::as_str).collect();
    // A third here, a third there, a third nowhere.
    let online = |n: usize| n % 3 != 2;
    let devices: Vec<_> = (0..100)
        .filter(|n| online(*n))
        .map(|n| if n % 3 == 0 { &gw1 } else { &gw2 }.connect(&users[n]))
        .collect();
    for gateway in [&gw1, &gw2] {
        let mut watcher = Peer::connect(gateway, "watcher");
        let mut last = None;
        common::eventually("presence is right", || {
            let answer = watcher.presence(&asked).unwrap();
            assert_eq!(answer.len(), 100);
            let right = (0..100).all(|n| answer[&users[n]] == online(n));
            last = Some(answer);
            right
        });
        let mut too_many = asked.clone();
        too_many.push("one more");
        assert_eq!(watcher.presence(&too_many), Err("limitExceeded".into()));
        assert_eq!(watcher.presence(&[]).unwrap().len(), 0);
    }
    drop(devices);
    for gateway in [&gw1, &gw2] {
        Peer::connect(gateway, "watcher").wait_to_see_all(&asked, false);
    }
}

#[test]
fn order_is_kept() {
    const COUNT: u64 = 2_000;
    let (_redis, _fleet, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    // Different shards of gw2, most likely; and one here.
    let receivers = [
        Peer::connect(&gw2, "bob"),
        Peer::connect(&gw2, "carol"),
        Peer::connect(&gw2, "dave"),
        Peer::connect(&gw1, "erin"),
    ];
    for receiver in &receivers {
        alice.wait_to_see(&receiver.user, true);
    }
    let mut ids = Vec::new();
    for n in 0..COUNT {
        ids.push((alice.send("bob", n), "routed"));
        if n % 4 == 0 {
            for (to, status) in [("carol", "routed"), ("dave", "routed"), ("erin", "delivered")] {
                ids.push((alice.send(to, n), status));
            }
        }
    }
    for (id, status) in &ids {
        assert_eq!(alice.status(id), *status);
    }
    for (receiver, count) in receivers.iter().zip([COUNT, COUNT / 4, COUNT / 4, COUNT / 4]) {
        receiver.wait_for_messages(count as usize);
        let numbers = receiver.numbers_from("alice");
        assert_rising(&receiver.user, &numbers);
        assert_eq!(numbers.len() as u64, count);
    }
}

#[test]
fn other_prefix_other_system() {
    let redis = Redis::start();
    let (one, other) = (Fleet::new(redis.url()), Fleet::new(redis.url()));
    let ([gw1], [gw2]) = (one.start(), other.start());
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    carol.wait_to_see("bob", true);
    common::eventually("bob is written down", || !other.places(&redis, "bob").is_empty());
    assert_eq!(alice.sees("bob"), Some(false));
    assert_eq!(alice.tell("bob", 1), "offline");
    assert!(bob.messages().is_empty());
    // All keys of either begin with its prefix.
    let keys = redis.keys("");
    assert!(!keys.is_empty());
    let strays: Vec<_> = keys
        .iter()
        .filter(|key| !key.starts_with(&one.prefix) && !key.starts_with(&other.prefix))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}

/// One server, one prefix, two databases: two systems, although pub/sub of Redis knows no
/// databases.
#[test]
fn two_systems_in_two_databases_never_cross() {
    let redis = Redis::start();
    let one = Fleet::new(redis.url());
    let mut other = Fleet::new(format!("{}/1", redis.url()));
    other.prefix.clone_from(&one.prefix);
    let [here, there] = [one, other].map(|fleet| {
        let [gw1, gw2] = fleet.start();
        let [mut alice, mut bob] = [(&gw1, "alice"), (&gw2, "bob")].map(|(gateway, user)| Peer::connect(gateway, user));
        alice.wait_to_see("bob", true);
        alice.subscribe("room");
        bob.publish_until_heard(&alice, "room");
        (gw1, gw2, alice, bob)
    });
    let mut systems = [(here, "here"), (there, "there")];
    // The messages that cross in the first round have come before those of the second.
    for round in ["first", "second"] {
        for ((_, _, _, bob), own) in &mut systems {
            bob.publish("room", format!("{round} {own}"));
        }
        for ((_, _, alice, _), own) in &systems {
            alice.wait_for_publication("room", format!("{round} {own}"));
        }
    }
    for ((_, _, alice, _), own) in &systems {
        let heard = alice.publications_on("room");
        let others = heard.iter().filter_map(|said| said["content"].as_str());
        assert_eq!(others.filter(|said| !said.ends_with(own)).count(), 0, "{heard:?}");
    }
}
