//! Messages, acks and presence: which frames arrive at which client, byte for byte, and the answer
//! to each frame.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use serde_json::{Value, json};

on_both_engines! {
    welcome, a_message_arrives_and_is_acked, without_an_id_there_is_no_ack, offline, to_oneself, all_devices_get_it,
    content_is_passed_through_byte_for_byte, content_that_is_not_json, ids_come_back, user_ids_in_messages,
    unknown_and_double_keys, presence, malformed_frames_get_an_error, heartbeat, ids_are_uuid_v7,
    large_contents_between_shards,
}

fn start(engine: &str) -> Gateway {
    Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"])
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

fn welcome(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--gateway-id",
        "gate \"7\"",
        "--heartbeat-interval",
        "17s",
    ]);
    let mut client = gateway.upgrade("/ws?user=alice");
    let welcome = client.recv_json();
    assert_eq!(keys(&welcome), ["connId", "gatewayId", "heartbeatMs", "type", "userId"]);
    assert_eq!(welcome["userId"], "alice");
    assert_eq!(welcome["gatewayId"], "gate \"7\"");
    assert_eq!(welcome["heartbeatMs"], 17_000);
    assert_eq!(gateway.stats()["gatewayId"], "gate \"7\"");
    let mut second = gateway.upgrade("/ws?user=alice");
    assert_ne!(second.recv_json()["connId"], welcome["connId"]);
    let defaults = start(engine);
    let mut client = defaults.upgrade("/ws?user=alice");
    let welcome = client.recv_json();
    assert_eq!(welcome["heartbeatMs"], 25_000);
    assert_eq!(welcome["gatewayId"], *defaults.id);
}

fn a_message_arrives_and_is_acked(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    // Some of them live on alice's shard, some do not.
    for n in 0..8 {
        let user = format!("bob{n}");
        let mut bob = gateway.connect(&user);
        let before = unix_ms();
        alice.send_json(&json!({"type": "message", "to": user, "content": {"n": n}, "id": "c1"}));
        let message = bob.recv_json();
        assert_eq!(keys(&message), ["content", "from", "id", "to", "ts", "type"]);
        assert_eq!(message["type"], "message");
        assert_eq!(message["from"], "alice");
        assert_eq!(message["to"], *user);
        assert_eq!(message["content"], json!({"n": n}));
        let ts = message["ts"].as_u64().unwrap();
        assert!((before..=unix_ms()).contains(&ts), "{ts} is Unix milliseconds");
        let ack = alice.recv_json();
        assert_eq!(keys(&ack), ["id", "messageId", "status", "type"]);
        assert_eq!(ack["type"], "ack");
        assert_eq!(ack["id"], "c1");
        assert_eq!(ack["status"], "delivered");
        assert_eq!(ack["messageId"], message["id"], "the ack names the message");
        bob.close();
    }
    let acks = gateway.metric("shardgate_acks_total", &["status=\"delivered\""]);
    assert_eq!(acks, 8.0);
}

fn without_an_id_there_is_no_ack(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for id in ["", r#","id":null"#] {
        alice.send_text(&format!(r#"{{"type":"message","to":"bob","content":1{id}}}"#));
        assert_eq!(bob.recv_json()["content"], 1);
        alice.expect_silence();
        alice.send_text(&format!(r#"{{"type":"message","to":"nobody","content":1{id}}}"#));
        alice.expect_silence();
        alice.send_text(&format!(r#"{{"type":"presence","users":["bob"]{id}}}"#));
        let answer = alice.recv_json();
        assert_eq!(
            answer,
            json!({"type": "presence", "users": {"bob": true}}),
            "and no id comes back"
        );
    }
}

fn offline(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    for n in 0..8 {
        let user = format!("bob{n}");
        alice.send_message_expecting(&user, "1", "offline");
        let bob = gateway.connect(&user);
        alice.send_message_expecting(&user, "1", "delivered");
        bob.close();
        alice.send_message_expecting(&user, "1", "offline");
    }
    // An unauthenticated connection takes nothing.
    let mut unknown = gateway.upgrade("/ws");
    alice.send_message_expecting("unknown", "1", "offline");
    unknown.expect_silence();
    assert_eq!(gateway.metric("shardgate_acks_total", &["status=\"offline\""]), 17.0);
}

fn to_oneself(engine: &str) {
    let gateway = start(engine);
    let mut phone = gateway.connect("alice");
    let mut laptop = gateway.connect("alice");
    phone.send_text(r#"{"type":"message","to":"alice","content":"note","id":"n"}"#);
    let frames = [phone.recv_json(), phone.recv_json()];
    let message = frames.iter().find(|frame| frame["type"] == "message").unwrap();
    let ack = frames.iter().find(|frame| frame["type"] == "ack").unwrap();
    assert_eq!((&message["from"], &message["to"]), (&json!("alice"), &json!("alice")));
    assert_eq!(ack["status"], "delivered");
    assert_eq!(ack["messageId"], message["id"]);
    assert_eq!(laptop.recv_json(), *message);
    phone.expect_silence();
    laptop.expect_silence();
}

fn all_devices_get_it(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut devices: Vec<_> = (0..5).map(|_| gateway.connect("bob")).collect();
    // Small ones are copied, large ones are shared.
    for content in ["\"x\"".to_owned(), format!("\"{}\"", "y".repeat(5000))] {
        let id = alice.send_message_expecting("bob", &content, "delivered");
        let expected: Value = serde_json::from_str(&content).unwrap();
        for device in &mut devices {
            let message = device.recv_json();
            assert_eq!(message["id"], *id);
            assert_eq!(message["content"], expected);
        }
    }
    // One device goes: the others still get it, until the last one has gone.
    while let Some(device) = devices.pop() {
        device.close();
        let status = if devices.is_empty() { "offline" } else { "delivered" };
        alice.send_message_expecting("bob", "2", status);
        for device in &mut devices {
            assert_eq!(device.recv_json()["content"], 2);
        }
    }
    assert_eq!(gateway.stats()["users"], 1);
}

fn content_is_passed_through_byte_for_byte(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let deep_objects = format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
    let long = format!("\"{}\"", "€".repeat(20_000));
    let contents = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "\"\"",
        "{}",
        "[]",
        "\" \"",
        "1e400",
        "-1E-400",
        "1.0",
        "1.00000000000000000000000000001",
        "123456789012345678901234567890",
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\u0000\u001f""#,
        r#""\/\u002f""#,
        "\"\u{7f}\u{85}\u{2028}\"",
        "\"ä€😀\u{10ffff}\u{fffe}\"",
        "{ \"a\" :\t[ 1 ,\r\n2 ] }",
        r#"{"a":1,"a":2,"":3,"type":"x","content":null}"#,
        r#"[[],{},"",null,[null]]"#,
        &deep,
        &deep_objects,
        &long,
    ];
    for content in contents {
        for (before, after) in [("", ""), (" ", "\t"), ("\n", " \r\n")] {
            alice.send_text(&format!(
                r#"{{"type":"message","to":"bob","content":{before}{content}{after},"id":"c"}}"#
            ));
            let got = bob.recv_text();
            let start = got.find(r#","content":"#).unwrap() + r#","content":"#.len();
            let end = got.rfind(r#","ts":"#).unwrap();
            assert!(
                got[start..end] == *content,
                "{:.200} became {:.200}",
                content,
                &got[start..end]
            );
            assert_eq!(alice.recv_json()["status"], "delivered");
        }
    }
    // Keys in any order, and first in the frame.
    alice.send_text("\n{ \"content\" : [1, 2]\n, \"to\":\"bob\" ,\"id\" :\"c\",\"type\": \"message\" } ");
    assert!(bob.recv_text().contains(r#""content":[1, 2],"ts":"#));
}

fn content_that_is_not_json(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for (n, content) in [
        "",
        "nul",
        "01",
        "1.",
        "+1",
        ".5",
        "0x1",
        "NaN",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\n\"",
        "\"\u{1}\"",
        "[1,]",
        "{,}",
        "{a:1}",
        "{\"a\":1,}",
        "[1 2]",
        "1 2",
        "[",
        "}",
        "/**/1",
        "undefined",
        "\u{feff}1",
    ]
    .into_iter()
    .enumerate()
    {
        alice.send_text(&format!(
            r#"{{"type":"message","to":"bob","content":{content},"id":"c"}}"#
        ));
        alice.expect_error("badRequest");
        if n % 5 == 4 {
            // Something good now and then, so that the connection stays.
            alice.expect_silence();
        }
    }
    // No content at all is not null.
    alice.send_text(r#"{"type":"message","to":"bob","id":"c"}"#);
    assert_eq!(alice.expect_error("badRequest")["id"], "c");
    bob.expect_silence();
}

fn ids_come_back(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let longest = "x".repeat(64);
    let longest_wide = "€".repeat(21);
    for id in ["", "0", "ä\"\\\n\u{0}", "😀", &longest, &longest_wide] {
        alice.send_json(&json!({"type": "message", "to": "nobody", "content": 1, "id": id}));
        let ack = alice.recv_json();
        assert_eq!((&ack["type"], &ack["id"]), (&json!("ack"), &json!(id)));
        alice.send_json(&json!({"type": "presence", "users": [], "id": id}));
        assert_eq!(alice.recv_json(), json!({"type": "presence", "id": id, "users": {}}));
        alice.send_json(&json!({"type": "nonsense", "id": id}));
        assert_eq!(alice.expect_error("unknownType")["id"], id);
    }
    // 65 bytes, and things that are not strings.
    let too_long = "x".repeat(65);
    let too_long_wide = "€".repeat(22);
    for id in [
        json!(too_long),
        json!(too_long_wide),
        json!(1),
        json!(["a"]),
        json!({}),
        json!(true),
    ] {
        alice.send_json(&json!({"type": "message", "to": "alice", "content": 1, "id": id}));
        alice.expect_error("badRequest");
        alice.expect_silence();
    }
}

fn user_ids_in_messages(engine: &str) {
    let gateway = start(engine);
    let longest = "x".repeat(128);
    let mut alice = gateway.connect("alice \"ä€😀\\");
    for user in [
        "b",
        "ä€😀",
        "with space",
        "\"quoted\\\"",
        "</script>",
        "a/b?c=d",
        "a\u{2028}b",
        &longest,
    ] {
        let mut bob = gateway.connect(user);
        alice.send_json(&json!({"type": "message", "to": user, "content": 1}));
        let message = bob.recv_json();
        assert_eq!(
            (&message["to"], &message["from"]),
            (&json!(user), &json!("alice \"ä€😀\\"))
        );
        alice.send_json(&json!({"type": "presence", "users": [user]}));
        assert_eq!(alice.recv_json()["users"][user], true);
    }
    // Written with escapes it is the same user.
    let mut bob = gateway.connect("bob");
    alice.send_text(r#"{"type":"message","to":"\u0062o\u0062","content":1}"#);
    assert_eq!(bob.recv_json()["to"], "bob");
    for to in ["", "a\nb", "\u{0}", "\u{7f}", "\u{85}", &"x".repeat(129)] {
        alice.send_json(&json!({"type": "message", "to": to, "content": 1, "id": "c"}));
        assert_eq!(alice.expect_error("badRequest")["id"], "c");
        alice.expect_silence();
        alice.send_json(&json!({"type": "presence", "users": ["bob", to]}));
        alice.expect_error("badRequest");
        alice.expect_silence();
    }
    for to in ["5", "null", "[\"bob\"]", r#""\ud800""#] {
        alice.send_text(&format!(r#"{{"type":"message","to":{to},"content":1}}"#));
        alice.expect_error("badRequest");
        alice.expect_silence();
    }
    bob.expect_silence();
}

fn unknown_and_double_keys(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    // Unknown ones are ignored, also keys of other frames and double unknown ones.
    alice.send_text(
        r#"{"type":"message","to":"alice","content":1,"x":{"type":"y"},"x":2,"users":5,"userId":[],"token":"t","channel":"c","from":"bob","ts":0}"#,
    );
    let message = alice.recv_json();
    assert_eq!((&message["from"], &message["content"]), (&json!("alice"), &json!(1)));
    alice.send_text(r#"{"type":"heartbeat","to":5,"content":null}"#);
    assert_eq!(alice.recv_json()["type"], "heartbeat");
    // Keys count as written: other cases are unknown keys.
    alice.send_text(r#"{"Type":"message","type":"heartbeat"}"#);
    assert_eq!(alice.recv_json()["type"], "heartbeat");
    // A double key of ours comes from no sane client. It is refused, so that no proxy in between
    // reads another one than we do.
    alice.send_text(r#"{"type":"message","to":"alice","to":"bob","content":1}"#);
    alice.expect_error("badRequest");
    alice.send_text(r#"{"type":"message","to":"alice","content":1,"content":2}"#);
    alice.expect_error("badRequest");
}

fn presence(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let online: Vec<_> = (0..20).map(|n| gateway.connect(&format!("user{n}"))).collect();
    let users: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let ask = |users: &[String]| json!({"type": "presence", "users": users, "id": "c2"});
    alice.send_json(&ask(&users));
    let answer = alice.recv_json();
    assert_eq!(keys(&answer), ["id", "type", "users"]);
    assert_eq!((&answer["type"], &answer["id"]), (&json!("presence"), &json!("c2")));
    assert_eq!(answer["users"].as_object().unwrap().len(), 100);
    for (n, user) in users.iter().enumerate() {
        assert_eq!(answer["users"][user], n < 20, "{user}");
    }
    // One too many.
    let mut too_many = users.clone();
    too_many.push("user100".into());
    alice.send_json(&ask(&too_many));
    let error = alice.expect_error("limitExceeded");
    assert_eq!(error["id"], "c2");
    // No receiver, oneself, one twice, one device of two.
    alice.send_json(&ask(&[]));
    assert_eq!(alice.recv_json()["users"], json!({}));
    alice.send_json(&ask(&["alice".into(), "nobody".into(), "alice".into()]));
    assert_eq!(alice.recv_json()["users"], json!({"alice": true, "nobody": false}));
    let second = gateway.connect("user0");
    second.close();
    alice.send_json(&ask(&["user0".into()]));
    assert_eq!(alice.recv_json()["users"], json!({"user0": true}));
    // Offline at once when the last device has gone.
    for client in online {
        client.close();
    }
    alice.send_json(&ask(&users));
    let answer = alice.recv_json();
    assert!(
        answer["users"]
            .as_object()
            .unwrap()
            .values()
            .all(|online| online == false),
        "{answer}"
    );
    // Many questions at once come back in the order asked.
    for n in 0..200 {
        alice.send_json(&json!({"type": "presence", "users": users, "id": n.to_string()}));
    }
    let mut ids: Vec<u32> = (0..200)
        .map(|_| alice.recv_json()["id"].as_str().unwrap().parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..200));
    for users in ["5", "\"alice\"", "[5]", "[null]", "{}", "null"] {
        alice.send_text(&format!(r#"{{"type":"presence","users":{users},"id":"c"}}"#));
        assert_eq!(alice.expect_error("badRequest")["id"], "c");
        alice.expect_silence();
    }
}

fn malformed_frames_get_an_error(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    for text in [
        "",
        " ",
        "x",
        "null",
        "5",
        "\"heartbeat\"",
        "[]",
        r#"["heartbeat"]"#,
        r#"[{"type":"heartbeat"}]"#,
        "{",
        "{}",
        r#"{"type":null}"#,
        r#"{"type":5}"#,
        r#"{"type":["heartbeat"]}"#,
        r#"{"type":"heartbeat"} {}"#,
        r#"{"type":"heartbeat"},"#,
        r#"{"type":"heartbeat",}"#,
        "{'type':'heartbeat'}",
        "\u{feff}{\"type\":\"heartbeat\"}",
        r#"{"type":"heartbeat","x":tru}"#,
    ] {
        alice.send_text(text);
        let error = alice.expect_error("badRequest");
        assert!(error.get("id").is_none(), "{text}: {error}");
        alice.expect_silence();
    }
    for kind in [
        "",
        "Message",
        "messages",
        "welcome",
        "ack",
        "error",
        "shutdown",
        "broadcast",
        "message ",
    ] {
        alice.send_json(&json!({"type": kind, "id": "c"}));
        assert_eq!(alice.expect_error("unknownType")["id"], "c");
        alice.expect_silence();
    }
    // The type may be written with escapes.
    alice.send_text(r#"{"type":"\u0068eartbeat"}"#);
    assert_eq!(alice.recv_json()["type"], "heartbeat");
    let errors = gateway.metric("shardgate_messages_sent_total", &["type=\"error\""]);
    assert_eq!(errors, 29.0);
}

fn heartbeat(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let before = unix_ms();
    alice.send_text(r#"{"type":"heartbeat"}"#);
    let answer = alice.recv_json();
    assert_eq!(keys(&answer), ["ts", "type"]);
    let ts = answer["ts"].as_u64().unwrap();
    assert!((before..=unix_ms()).contains(&ts));
}

fn ids_are_uuid_v7(engine: &str) {
    let gateway = start(engine);
    let mut alice = gateway.connect("alice");
    let mut seen = std::collections::BTreeSet::new();
    let mut last = String::new();
    for _ in 0..500 {
        let id = alice.send_message_expecting("nobody", "1", "offline");
        let parsed = uuid::Uuid::parse_str(&id).unwrap();
        assert_eq!(parsed.get_version_num(), 7);
        assert_eq!(parsed.hyphenated().to_string(), id);
        assert!(id > last, "ids of one sender rise");
        last = id.clone();
        assert!(seen.insert(id));
    }
    let mut client = gateway.upgrade("/ws?user=alice");
    let conn_id = client.recv_json()["connId"].as_str().unwrap().to_owned();
    assert_eq!(uuid::Uuid::parse_str(&conn_id).unwrap().get_version_num(), 7);
}

fn large_contents_between_shards(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "4",
        "--limits-message-bytes",
        "4194304",
        "--limits-outbox-bytes",
        "8388608",
    ]);
    let mut alice = gateway.connect("alice");
    for n in 0..6 {
        let user = format!("bob{n}");
        let mut bob = gateway.connect(&user);
        let content = format!("\"{}\"", "z".repeat(4_000_000 + n));
        alice.send_message_expecting(&user, &content, "delivered");
        assert!(bob.recv_text().contains(&content));
    }
}
