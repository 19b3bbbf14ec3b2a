//! Permissions to subscribe and publish: the patterns of `channels.subscribe` and
//! `channels.publish`, at once after a reload.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::channels::{publish_text, subscribe_text};
use common::client::Client;
use common::{Gateway, run_to_exit};
use libc::SIGHUP;
use serde_json::json;

on_both_engines! {
    patterns, by_default_everything, an_empty_list_is_nothing, a_user_id_does_not_widen_a_pattern, sighup_changes_the_lists,
}

fn may_subscribe(client: &mut Client, channel: &str) -> bool {
    client.send_text(&subscribe_text(channel));
    let answer = client.recv_json();
    match answer["type"].as_str().unwrap() {
        "subscribed" => {
            client.unsubscribe(channel);
            true
        }
        _ => {
            assert_eq!((&answer["code"], &answer["id"]), (&json!("notPermitted"), &json!("s")));
            assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()));
            false
        }
    }
}

fn may_publish(client: &mut Client, channel: &str) -> bool {
    client.send_text(&publish_text(channel, "1", Some("p")));
    let answer = client.recv_json();
    match answer["type"].as_str().unwrap() {
        "ack" => {
            assert_eq!(answer["status"], "published");
            true
        }
        _ => {
            assert_eq!((&answer["code"], &answer["id"]), (&json!("notPermitted"), &json!("p")));
            assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()));
            false
        }
    }
}

#[track_caller]
fn assert_may(client: &mut Client, channel: &str, subscribe: bool, publish: bool) {
    assert_eq!(may_subscribe(client, channel), subscribe, "subscribe to {channel}");
    assert_eq!(may_publish(client, channel), publish, "publish to {channel}");
}

fn patterns(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "3",
        "--channels-subscribe",
        "news,room:*,inbox:{user},*:{user}:x",
        "--channels-publish",
        "room:*:open,outbox:{user}:*",
    ]);
    let mut listener = gateway.connect("listener");
    listener.subscribe("room:1:open");
    for user in ["alice", "bob", "carol"] {
        let mut client = gateway.connect(user);
        for (channel, subscribe, publish) in [
            ("news", true, false),
            ("news2", false, false),
            ("New", false, false),
            ("room:", true, false),
            ("room:1", true, false),
            ("room:1:open", true, true),
            ("room::open", true, true),
            ("room:open", true, false),
            ("Room:1:open", false, false),
            (" room:1:open", false, false),
        ] {
            assert_may(&mut client, channel, subscribe, publish);
        }
        for other in ["alice", "bob", "carol", ""] {
            let own = other == user;
            assert_may(&mut client, &format!("inbox:{other}"), own, false);
            assert_may(&mut client, &format!("a:b:{other}:x"), own, false);
            assert_may(&mut client, &format!("outbox:{other}:1"), false, own);
        }
        // The braces are no one's name.
        assert_may(&mut client, "inbox:{user}", false, false);
        // Refused publications reached no client, the permitted one did: room:1:open.
        assert_eq!(listener.recv_publication("room:1:open")["from"], user);
        listener.expect_silence();
        // Everybody may leave what they may not enter.
        client.unsubscribe("secret");
    }
    // Without an id the refusal has none.
    let mut client = gateway.connect("alice");
    for kind in ["subscribe", "publish"] {
        client.send_json(&json!({"type": kind, "channel": "secret", "content": 1}));
        let error = client.expect_error("notPermitted");
        assert!(error.get("id").is_none(), "{error}");
    }
    // It is no bad request: as many as one likes.
    for _ in 0..20 {
        assert!(!may_publish(&mut client, "secret"));
    }
    client.expect_silence();
}

fn by_default_everything(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    for channel in ["a", "room:1", "inbox:bob", "*", "{user}", "ä😀"] {
        assert_may(&mut client, channel, true, true);
    }
}

fn an_empty_list_is_nothing(engine: &str) {
    // On a command line an empty value is rather a mistake.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    std::fs::write(&file, "[channels]\nsubscribe = []\npublish = []\n").unwrap();
    let gateway = Gateway::start(&["--engine", engine, "--config", file.to_str().unwrap()]);
    let mut client = gateway.connect("alice");
    for channel in ["a", "*", "alice"] {
        assert_may(&mut client, channel, false, false);
    }
}

fn a_user_id_does_not_widen_a_pattern(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--channels-subscribe",
        "inbox:{user}",
        "--channels-publish",
        "{user}:*",
    ]);
    for user in ["*", "a*", "{user}", "*{user}*", "x:y"] {
        let mut client = gateway.connect(user);
        assert_may(&mut client, &format!("inbox:{user}"), true, false);
        assert_may(&mut client, &format!("{user}:1"), false, true);
        for other in [
            "inbox:alice",
            "inbox:a",
            "inbox:ab",
            "inbox:",
            "alice:1",
            ":1",
            "ab:1",
            "x",
        ] {
            assert_may(&mut client, other, false, false);
        }
    }
}

fn sighup_changes_the_lists(engine: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    let write = |subscribe: &str, publish: &str| {
        let new = file.with_extension("new");
        std::fs::write(
            &new,
            format!("[channels]\nsubscribe = {subscribe}\npublish = {publish}\n"),
        )
        .unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    write(r#"["a:*"]"#, r#"["b:*"]"#);
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "3",
        "--limits-messages-per-second",
        "0",
        "--config",
        file.to_str().unwrap(),
    ]);
    // On all shards.
    let mut clients: Vec<Client> = (0..9).map(|n| gateway.connect(&format!("user{n}"))).collect();
    for client in &mut clients {
        assert_may(client, "a:1", true, false);
        assert_may(client, "b:1", false, true);
    }
    clients[0].subscribe("a:ends");
    let reload = |subscribe: &str, publish: &str, logged: &str| {
        write(subscribe, publish);
        let lines = gateway.log_lines();
        gateway.signal(SIGHUP);
        gateway.wait_for_log_after(lines, logged);
    };
    reload(r#"["b:*"]"#, r#"["a:*"]"#, "configuration read again");
    // The permission of a subscriber has ended, and so has the subscription.
    let ended = json!({"type": "unsubscribed", "channel": "a:ends", "reason": "notPermitted"});
    assert_eq!(clients[0].recv_json(), ended);
    // The shards get it a moment after the log.
    for client in &mut clients {
        common::eventually("the new lists hold", || {
            may_subscribe(client, "b:1") && !may_subscribe(client, "a:1")
        });
        assert_may(client, "a:1", false, true);
        assert_may(client, "b:1", true, false);
    }
    clients[1].publish("a:ends", "1");
    clients[0].expect_silence();
    reload(r#"["{"]"#, r#"["*"]"#, "configuration not changed");
    for client in &mut clients {
        assert_may(client, "a:1", false, true);
        assert_may(client, "b:1", true, false);
    }
}

#[test]
fn users_have_patterns_of_their_own() {
    let gateway = Gateway::start(&["--messages-send", "b*", "--messages-presence", "{user}"]);
    let mut alice = gateway.connect("alice");
    alice.send_text(r#"{"type":"message","to":"alice","content":1}"#);
    alice.expect_error("notPermitted");
    alice.send_text(r#"{"type":"presence","users":["bob","alice","bob"]}"#);
    assert_eq!(alice.recv_json(), json!({"type": "presence", "users": {"alice": true}}));
    alice.send_text(r#"{"type":"presence","users":["bob"]}"#);
    assert_eq!(alice.recv_json(), json!({"type": "presence", "users": {}}));
    let ended = run_to_exit(&["--messages-send", "{usr}"]);
    assert_eq!(ended.code, Some(2));
    for part in ["messages.send", "{usr}", "did you mean {user}?"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn refused_patterns() {
    for (value, words) in [
        ("{", &["{", "{user}"][..]),
        ("room:}", &["}", "{user}"]),
        ("inbox:{name}", &["inbox:{name}", "{user}"]),
        ("a\u{7}b", &["control"]),
        (&"x".repeat(256), &["255"]),
    ] {
        for flag in ["--channels-subscribe", "--channels-publish"] {
            let ended = run_to_exit(&["--listen", "127.0.0.1:0", flag, value]);
            assert_eq!(ended.code, Some(2), "{ended:#?}");
            let line = ended.stderr.lines().find(|line| line.starts_with("shardgate: "));
            let line = line.unwrap_or_else(|| panic!("{ended:#?}"));
            let key = flag.trim_start_matches("--").replace('-', ".");
            for word in words.iter().chain([&&*key]) {
                assert!(line.contains(word), "{word:?} not in {line:?}");
            }
            assert!(!ended.stderr.contains("panicked"), "{ended:#?}");
        }
    }
}
