//! The identity of a client in development mode: `?user=` or the `auth` frame, once, in time.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::admin::TOKEN;
use common::client::{assert_switched, text_bytes, upgrade_head};
use common::{Gateway, eventually, url_encode};
use serde_json::json;

on_both_engines! {
    auth_names_the_user, auth_again, auth_as_another_user, auth_without_a_user, no_auth_in_time,
    nothing_is_carried_out_before_auth, frames_right_behind_auth, auth_split_at_every_byte, a_hand_over_is_one_connection,
    leaving_before_auth, other_names_are_misdirected, pages_of_this_machine_may_connect, ids_look_like_what_they_are,
}

fn auth_names_the_user(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3"]);
    let longest = "x".repeat(128);
    for user in ["alice", "ä€😀", "\"\\/", "a b", "null", &longest] {
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "userId": user}));
        let welcome = client.recv_json();
        assert_eq!(
            (&welcome["type"], &welcome["userId"]),
            (&json!("welcome"), &json!(user))
        );
        assert!(welcome["connId"].is_string());
        client.send_json(&json!({"type": "message", "to": user, "content": 1}));
        assert_eq!(client.recv_json()["from"], user);
    }
}

/// A name that foreign DNS pointed here: a page from there would be of the same origin.
fn other_names_are_misdirected(engine: &str) {
    let args = ["--engine", engine, "--echo", "--admin-token", TOKEN];
    let gateway = Gateway::start(&args);
    let port = gateway.addr.port();
    let ask = |gateway: &Gateway, path: &str, host: &str| {
        let fields = format!("Authorization: Bearer {TOKEN}\r\nOrigin: http://{host}\r\n");
        let head = upgrade_head(path, &fields).replace("Host: localhost", &format!("Host: {host}"));
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let answer = client.read_head();
        (answer.status, answer)
    };
    let paths = [
        "/ws?user=alice",
        "/echo",
        "/",
        "/livez",
        "/stats",
        "/metrics",
        "/dashboard",
        "/admin/",
        "/admin/connections",
    ];
    for path in paths {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "LOCALHOST"] {
            for host in [host.to_owned(), format!("{host}:{port}"), format!("{host}:1")] {
                let (status, _) = ask(&gateway, path, &host);
                assert!(matches!(status, 101 | 200), "{path} {host}: {status}");
            }
        }
        for host in [
            "evil.example",
            &format!("evil.example:{port}"),
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
        ] {
            let (status, answer) = ask(&gateway, path, host);
            assert_eq!(status, 421, "{path} {host}: {answer:?}");
        }
    }
    let mut client = gateway.tcp();
    client.send_raw(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let answer = client.read_response();
    assert_eq!(answer.status, 421);
    assert!(
        answer.body.contains("localhost") && answer.body.contains("--insecure"),
        "{answer:?}"
    );
    assert!(gateway.metric("shardgate_handshakes_refused_total", &["reason=\"host\""]) >= 40.0);
    let log = gateway.wait_for_log("evil.example");
    assert!(log.contains("development mode"), "{log}");
    assert_eq!(gateway.log().matches("was refused").count(), 1, "said once");
    // An operator who means it has other names.
    let meant = Gateway::start(&[&args[..], &["--insecure"]].concat());
    assert_eq!(ask(&meant, "/ws?user=alice", "evil.example").0, 101);
}

/// A developer's own server has another port.
fn pages_of_this_machine_may_connect(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let status = |gateway: &Gateway, origin: &str| gateway.try_upgrade("/ws", &format!("Origin: {origin}\r\n")).status;
    for origin in [
        "http://localhost:3000",
        "https://localhost",
        "http://127.0.0.1:5173",
        "http://[::1]:1",
    ] {
        assert_eq!(status(&gateway, origin), 101, "{origin}");
    }
    for origin in [
        "http://evil.example",
        "http://evil.localhost:3000",
        "http://10.0.0.1",
        "null",
    ] {
        assert_eq!(status(&gateway, origin), 403, "{origin}");
    }
    let line = gateway.wait_for_log("evil.example");
    assert!(line.contains("origins"), "{line}");
    let listed = Gateway::start(&["--engine", engine, "--origins", "http://app.example"]);
    assert_eq!(status(&listed, "http://localhost:3000"), 403, "a list takes its place");
    assert_eq!(status(&listed, "http://app.example"), 101);
}

fn ids_look_like_what_they_are(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let any = Gateway::start(&["--engine", engine, "--auth-any-user-id"]);
    for odd in [
        " ",
        "alice ",
        " alice",
        "al\u{200b}ice",
        "\u{202e}ecila",
        "\u{feff}alice",
    ] {
        let path = format!("/ws?user={}", url_encode(odd));
        assert_eq!(gateway.try_upgrade(&path, "").status, 400, "{odd:?}");
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "userId": odd}));
        client.expect_close(3500);
        let mut client = any.upgrade(&path);
        assert_eq!(client.recv_json()["userId"], odd);
        client.send_json(&json!({"type": "auth", "userId": odd}));
        assert_eq!(client.recv_json()["userId"], odd);
        // No user has such an id if it is forbidden.
        let mut alice = gateway.connect("alice");
        alice.send_message_expecting(odd, "1", "offline");
    }
}

fn auth_again(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for named_at_handshake in [true, false] {
        let mut client = if named_at_handshake {
            gateway.upgrade("/ws?user=alice")
        } else {
            let mut client = gateway.upgrade("/ws");
            client.send_text(r#"{"type":"auth","userId":"alice"}"#);
            client
        };
        let first = client.recv_json();
        for _ in 0..3 {
            client.send_text(r#"{"type":"auth","userId":"alice","id":"again"}"#);
            assert_eq!(client.recv_json(), first, "the same welcome, the same connId");
        }
        assert_eq!(gateway.stats()["connections"], 1);
        client.close();
    }
}

fn auth_as_another_user(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    client.send_text(r#"{"type":"auth","userId":"bob"}"#);
    client.expect_close(3507);
    let mut bob = gateway.connect("bob");
    bob.send_message_expecting("alice", "1", "offline");
}

fn auth_without_a_user(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let too_long = json!({"type": "auth", "userId": "x".repeat(129)}).to_string();
    for auth in [
        r#"{"type":"auth"}"#,
        r#"{"type":"auth","userId":""}"#,
        r#"{"type":"auth","userId":null}"#,
        r#"{"type":"auth","userId":5}"#,
        r#"{"type":"auth","userId":"a\u0000b"}"#,
        r#"{"type":"auth","userId":"a\nb"}"#,
        r#"{"type":"auth","token":"eyJhbGciOiJub25lIn0.e30."}"#,
        &too_long,
    ] {
        let mut client = gateway.upgrade("/ws");
        client.send_text(auth);
        client.expect_close(3500);
    }
    // One that is known already is no exception: a credential that is present and bad is refused.
    let mut client = gateway.connect("alice");
    client.send_text(r#"{"type":"auth"}"#);
    client.expect_close(3500);
    gateway.wait_until_empty();
}

fn no_auth_in_time(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--auth-timeout", "300ms"]);
    let mut silent = gateway.upgrade("/ws");
    let mut busy = gateway.upgrade("/ws");
    let mut known = gateway.connect("alice");
    let mut late = gateway.upgrade("/ws");
    late.send_text(r#"{"type":"auth","userId":"bob"}"#);
    assert_eq!(late.recv_json()["type"], "welcome");
    // Signs of life are no credential.
    busy.send_text(r#"{"type":"heartbeat"}"#);
    assert_eq!(busy.recv_json()["type"], "heartbeat");
    silent.expect_close(3502);
    busy.expect_close(3502);
    known.expect_silence();
    late.expect_silence();
}

fn nothing_is_carried_out_before_auth(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut bob = gateway.connect("bob");
    let mut client = gateway.upgrade("/ws");
    client.send_text(r#"{"type":"message","to":"bob","content":1,"id":"c1"}"#);
    assert_eq!(client.expect_error("unauthorized")["id"], "c1");
    client.send_text(r#"{"type":"presence","users":["bob"],"id":"c2"}"#);
    assert_eq!(client.expect_error("unauthorized")["id"], "c2");
    client.send_text(r#"{"type":"nonsense"}"#);
    client.expect_error("unknownType");
    client.send_text("nonsense");
    client.expect_error("badRequest");
    // Being refused is not being malformed: any number of times.
    for _ in 0..20 {
        client.send_text(r#"{"type":"message","to":"bob","content":1}"#);
        client.expect_error("unauthorized");
    }
    client.send_text(r#"{"type":"auth","userId":"alice"}"#);
    assert_eq!(client.recv_json()["type"], "welcome");
    client.send_message_expecting("bob", "2", "delivered");
    assert_eq!(bob.recv_json()["content"], 2);
    assert_eq!(gateway.stats()["messagesOut"], 1);
}

fn frames_right_behind_auth(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "4", "--limits-messages-per-second", "0"]);
    for n in 0..16 {
        let user = format!("user{n}");
        // Something before it, so that answers are still owed when the connection changes its
        // shard.
        let mut bytes = if n % 2 == 0 {
            upgrade_head("/ws", "").into_bytes()
        } else {
            Vec::new()
        };
        bytes.extend(text_bytes(r#"{"type":"heartbeat"}"#));
        bytes.extend(text_bytes(&json!({"type": "auth", "userId": user}).to_string()));
        for content in 0..50 {
            bytes.extend(text_bytes(&format!(
                r#"{{"type":"message","to":"{user}","content":{content}}}"#
            )));
        }
        let last = text_bytes(r#"{"type":"heartbeat"}"#);
        bytes.extend(&last[..5]);
        let mut client = if n % 2 == 0 {
            let mut client = gateway.tcp();
            client.send_raw(&bytes);
            assert_switched(&client.read_head());
            client
        } else {
            let mut client = gateway.upgrade("/ws");
            client.send_raw(&bytes);
            client
        };
        assert_eq!(client.recv_json()["type"], "heartbeat");
        assert_eq!(client.recv_json()["userId"], *user);
        for content in 0..50 {
            assert_eq!(client.recv_json()["content"], content);
        }
        client.send_raw(&last[5..]);
        assert_eq!(client.recv_json()["type"], "heartbeat");
        client.close();
    }
    gateway.wait_until_empty();
}

fn auth_split_at_every_byte(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3"]);
    let mut conversation = text_bytes(r#"{"type":"auth","userId":"alice"}"#);
    conversation.extend(text_bytes(r#"{"type":"message","to":"alice","content":1}"#));
    for cut in 1..conversation.len() {
        let mut client = gateway.upgrade("/ws");
        client.send_in_pieces(&conversation, &[cut]);
        assert_eq!(client.recv_json()["type"], "welcome", "cut at {cut}");
        assert_eq!(client.recv_json()["content"], 1, "cut at {cut}");
        client.close();
    }
}

fn a_hand_over_is_one_connection(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "4"]);
    let clients: Vec<_> = (0..32)
        .map(|n| {
            let mut client = gateway.upgrade("/ws");
            client.send_json(&json!({"type": "auth", "userId": format!("user{n}")}));
            assert_eq!(client.recv_json()["type"], "welcome");
            client
        })
        .collect();
    assert_eq!(gateway.stats()["connections"], 32);
    assert_eq!(gateway.stats()["users"], 32);
    assert_eq!(gateway.metric("shardgate_connections_accepted_total", &[]), 32.0);
    assert_eq!(gateway.metric("shardgate_connections_closed_total", &[]), 0.0);
    for client in clients {
        client.close();
    }
    gateway.wait_until_empty();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"1000\""]),
        32.0
    );
    assert_eq!(gateway.metric("shardgate_connections_closed_total", &[]), 32.0);
}

fn leaving_before_auth(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3"]);
    for n in 0..30 {
        let mut client = gateway.upgrade("/ws");
        if n % 3 > 0 {
            client.send_json(&json!({"type": "auth", "userId": format!("user{n}")}));
        }
        match n % 2 {
            0 => client.reset(),
            _ => drop(client),
        }
    }
    gateway.wait_until_empty();
    eventually("no socket is left but the one that asks", || {
        gateway.metric("shardgate_sockets", &[]) <= 1.0
    });
}
