//! `GET /ws`: every answer of the handshake, and bytes that come early, late, in pieces or never.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{Client, assert_switched, text_bytes, upgrade_head};
use common::{Gateway, KEY, url_encode};
use serde_json::json;
use std::time::Duration;

on_both_engines! {
    switches_protocols, broken_upgrades_get_400, wrong_versions_get_426, other_methods_get_405, user_ids,
    origins_are_same_origin_by_default, a_list_of_origins_replaces_the_rule, a_star_allows_every_origin,
    a_head_may_come_in_pieces, frames_may_follow_in_the_same_packet, an_upgrade_may_follow_requests_on_one_connection,
    a_slow_head_gets_408, a_slow_second_head_is_closed_too, a_silent_socket_is_closed, a_long_head_gets_431,
    the_connection_limit_gets_503, the_connection_limit_holds_against_a_crowd, the_admission_rate_gets_503,
    a_half_closed_handshake_leaves_nothing, not_http_at_all,
}

fn switches_protocols(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for (fields, subprotocol) in [
        ("", None),
        ("Sec-WebSocket-Protocol: shardgate.v1\r\n", Some("shardgate.v1")),
        ("Sec-WebSocket-Protocol: mqtt, shardgate.v1\r\n", Some("shardgate.v1")),
        // Compared as it is written.
        ("Sec-WebSocket-Protocol: mqtt, Shardgate.v1\r\n", None),
        (
            "Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Protocol: shardgate.v1\r\n",
            Some("shardgate.v1"),
        ),
        ("Sec-WebSocket-Protocol: mqtt\r\n", None),
        // An extension that we do not have is not answered.
        ("Sec-WebSocket-Extensions: permessage-deflate\r\n", None),
    ] {
        for path in ["/ws", "/ws?user=alice", "/ws?user=bob&x=1", "/ws?"] {
            let mut client = gateway.tcp();
            client.send_upgrade(path, fields);
            let answer = client.read_head();
            assert_switched(&answer);
            assert_eq!(answer.field("sec-websocket-protocol"), subprotocol, "{fields}");
            assert_eq!(answer.field("sec-websocket-extensions"), None);
        }
    }
    // Names in any case, other tokens beside ours, absolute form, spaces around values.
    for head in [
        format!(
            "GET /ws HTTP/1.1\r\nHOST: localhost\r\nUPGRADE: WebSocket\r\nCONNECTION: keep-alive , uPGRADE\r\nSEC-WEBSOCKET-KEY: {KEY}\r\nSEC-WEBSOCKET-VERSION: 13\r\n\r\n"
        ),
        format!(
            "GET http://localhost/ws?user=a HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c, websocket\r\nConnection: close\r\nConnection: upgrade\r\nSec-WebSocket-Key:  {KEY} \r\nSec-WebSocket-Version:13\r\nContent-Length: 0\r\n\r\n"
        ),
    ] {
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        assert_switched(&client.read_head());
    }
}

fn broken_upgrades_get_400(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let good = upgrade_head("/ws?user=alice", "");
    let cases = [
        ("no Upgrade", good.replace("Upgrade: websocket\r\n", "")),
        ("another Upgrade", good.replace("Upgrade: websocket", "Upgrade: h2c")),
        ("no Connection", good.replace("Connection: Upgrade\r\n", "")),
        (
            "Connection without the token",
            good.replace("Connection: Upgrade", "Connection: keep-alive"),
        ),
        ("no key", good.replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), "")),
        ("an empty key", good.replace(KEY, "")),
        ("a short key", good.replace(KEY, "dGhlIHNhbXBsZQ==")),
        (
            "a key that is not base64",
            good.replace(KEY, "!GhlIHNhbXBsZSBub25jZQ=="),
        ),
        (
            "two keys",
            good.replace(
                "Sec-WebSocket-Version",
                &format!("Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version"),
            ),
        ),
        ("no Host", good.replace("Host: localhost\r\n", "")),
        ("a body", good.replace("Host:", "Content-Length: 5\r\nHost:")),
        ("plain GET", "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
    ];
    for (what, head) in cases {
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let answer = client.read_response();
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert!(!answer.body.is_empty(), "{what}: says why");
    }
    // HTTP/1.0 has no upgrade; whether it is answered in 1.0 or not at all, it is not switched.
    let mut client = gateway.tcp();
    client.send_raw(good.replace("HTTP/1.1", "HTTP/1.0").as_bytes());
    assert_eq!(client.read_response().status, 400);
    assert_eq!(gateway.stats()["connections"], 0);
}

fn wrong_versions_get_426(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for version in ["8", "0", "14", "13, 8", "x", ""] {
        let head = upgrade_head("/ws", "").replace("Version: 13", &format!("Version: {version}"));
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let answer = client.read_response();
        assert_eq!(answer.status, 426, "{version}: {answer:?}");
        assert_eq!(answer.field("sec-websocket-version"), Some("13"), "{version}");
        assert_eq!(answer.field("upgrade"), Some("websocket"), "{version}");
        assert_eq!(answer.field("connection"), Some("upgrade"), "{version}");
        // The connection goes on, so that another version may be tried.
        client.send_upgrade("/ws", "");
        assert_eq!(client.read_head().status, 101);
    }
}

fn other_methods_get_405(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let head = upgrade_head("/ws", "").replace("GET", method);
        let mut client = gateway.tcp();
        client.send_raw(head.as_bytes());
        let answer = client.read_response();
        assert_eq!(answer.status, 405, "{method}: {answer:?}");
        assert!(answer.field("allow").unwrap().contains("GET"), "{method}");
    }
}

fn user_ids(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let longest = "x".repeat(128);
    let longest_wide = "ä".repeat(64);
    for user in [
        "a",
        "alice",
        "Alice Smith",
        "a/b?c&d=e#f%41",
        "ä€😀",
        "\"quoted\\\"",
        "a+",
        "null",
        "0",
        "<b>",
        &longest,
        &longest_wide,
    ] {
        gateway.connect(user).close();
    }
    let mut client = gateway.upgrade("/ws?x=1&user=a+b&y=2");
    assert_eq!(client.recv_json()["userId"], "a b", "a plus is a space in a query");
    let too_long = "x".repeat(129);
    let too_long_wide = url_encode(&"€".repeat(43));
    for user in [
        "",
        "a%00b",
        "a%0Ab",
        "%7F",
        "+",
        "a%C2%A0",
        "a%E2%80%8Bb",
        "%C2%85",
        "%FF",
        "%C3",
        "%ED%A0%80",
        &too_long,
        &too_long_wide,
    ] {
        let answer = gateway.try_upgrade(&format!("/ws?user={user}"), "");
        assert_eq!(answer.status, 400, "{user}: {answer:?}");
    }
    let twice = gateway.try_upgrade("/ws?user=a&user=b", "");
    assert_eq!(twice.status, 400, "who shall it be?");
}

fn status_with_origin(gateway: &Gateway, host: &str, origin: &str) -> u16 {
    let head =
        upgrade_head("/ws", &format!("Origin: {origin}\r\n")).replace("Host: localhost", &format!("Host: {host}"));
    let mut client = gateway.tcp();
    client.send_raw(head.as_bytes());
    let answer = client.read_head();
    if answer.status == 101 {
        assert_switched(&answer);
    }
    answer.status
}

fn origins_are_same_origin_by_default(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--insecure"]);
    for (host, origin, status) in [
        ("chat.example:8080", "http://chat.example:8080", 101),
        ("chat.example:8080", "https://chat.example:8080", 101),
        ("CHAT.example:8080", "http://chat.EXAMPLE:8080", 101),
        ("chat.example", "http://chat.example", 101),
        ("chat.example", "https://chat.example:443", 101),
        ("chat.example:443", "https://chat.example", 101),
        ("[::1]:8080", "http://[::1]:8080", 101),
        ("chat.example:8080", "http://chat.example:8081", 403),
        ("chat.example:8080", "http://chat.example", 403),
        ("chat.example", "http://evil.example", 403),
        ("chat.example", "http://evil.example/chat.example", 403),
        ("chat.example", "http://chat.example.evil.example", 403),
        ("chat.example", "http://sub.chat.example", 403),
        ("chat.example", "null", 403),
        ("chat.example", "", 403),
        ("chat.example", "chat.example", 403),
        ("chat.example", "https://evil-chat.example", 403),
        ("chat.example", "https://evilchat.example", 403),
        ("chat.example", "https://chat.example.", 403),
        ("chat.example.", "https://chat.example", 403),
        ("chat.example", "https://chat.example:80", 403),
        ("chat.example:80", "https://chat.example", 403),
        ("chat.example", "https://user@chat.example", 403),
        ("chat.example", "https://chat.example@evil.example", 403),
        // No host at all.
        ("user@chat.example", "https://chat.example", 400),
        ("chat.example", "https://chat.example/", 403),
        ("chat.example", "https://chat.example https://evil.example", 403),
        ("chat.example", "HTTPS://CHAT.EXAMPLE", 101),
        ("xn--bcher-kva.example", "https://xn--bcher-kva.example", 101),
        ("xn--bcher-kva.example", "https://b\u{fc}cher.example", 403),
        ("null", "null", 403),
    ] {
        assert_eq!(status_with_origin(&gateway, host, origin), status, "{origin} at {host}");
    }
    // No browser, no Origin.
    assert_eq!(gateway.upgrade("/ws").stream.peer_addr().unwrap(), gateway.addr);
    // Several: the page's origin is ambiguous.
    for two in [
        "Origin: http://localhost\r\nOrigin: http://localhost\r\n",
        "Origin: http://localhost\r\nOrigin: http://evil.example\r\n",
        "Origin: http://localhost\r\norigin: null\r\n",
        "Origin: http://localhost, http://evil.example\r\n",
    ] {
        assert_eq!(gateway.try_upgrade("/ws", two).status, 403, "one too many: {two}");
    }
    assert!(gateway.metric("shardgate_handshakes_refused_total", &["reason=\"origin\""]) >= 10.0);
}

fn a_list_of_origins_replaces_the_rule(engine: &str) {
    let origins = "https://app.example.com,https://*.example.org,http://localhost:3000";
    let gateway = Gateway::start(&["--engine", engine, "--insecure", "--origins", origins]);
    for (origin, status) in [
        ("https://app.example.com", 101),
        ("https://app.example.com:443", 101),
        ("HTTPS://APP.example.com", 101),
        ("http://localhost:3000", 101),
        ("https://a.example.org", 101),
        ("https://a.b.example.org", 101),
        ("https://example.org", 403),
        ("https://a.example.org:8443", 403),
        ("http://a.example.org", 403),
        ("https://aexample.org", 403),
        ("https://app.example.com.evil.example", 403),
        ("http://app.example.com", 403),
        ("https://app.example.com:444", 403),
        // The same origin is not in the list.
        ("http://gateway.example", 403),
        ("null", 403),
        ("https://evil-example.org", 403),
        ("https://evilexample.org", 403),
        ("https://evil.example/.example.org", 403),
        ("https://evil.example#.example.org", 403),
        ("https://user@a.example.org", 403),
        ("https://a.example.org.", 403),
        ("https://A.EXAMPLE.ORG:443", 101),
    ] {
        assert_eq!(
            status_with_origin(&gateway, "gateway.example", origin),
            status,
            "{origin}"
        );
    }
    gateway.upgrade("/ws");
}

fn a_star_allows_every_origin(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--insecure", "--origins", "*"]);
    for origin in ["https://anything.example", "null", "http://gateway.example:1"] {
        assert_eq!(status_with_origin(&gateway, "gateway.example", origin), 101, "{origin}");
    }
}

fn a_head_may_come_in_pieces(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let head = upgrade_head("/ws?user=alice", "");
    let every: Vec<usize> = (1..head.len()).collect();
    let mut client = gateway.tcp();
    client.send_in_pieces(head.as_bytes(), &every);
    assert_switched(&client.read_head());
    assert_eq!(client.recv_json()["userId"], "alice");
    let mut bytes = head.into_bytes();
    let head_len = bytes.len();
    bytes.extend(text_bytes(r#"{"type":"message","to":"alice","content":1}"#));
    for cut in [1, head_len / 2, head_len - 1, head_len, head_len + 1, head_len + 20] {
        let mut client = gateway.tcp();
        client.send_in_pieces(&bytes, &[cut]);
        assert_switched(&client.read_head());
        assert_eq!(client.recv_json()["type"], "welcome");
        assert_eq!(client.recv_json()["content"], 1, "cut at {cut}");
    }
}

fn frames_may_follow_in_the_same_packet(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3"]);
    // Several users, so that some live on the shard that accepts and some do not.
    for n in 0..12 {
        let user = format!("user{n}");
        let mut bytes = upgrade_head(&format!("/ws?user={user}"), "").into_bytes();
        for content in 0..20 {
            bytes.extend(text_bytes(&format!(
                r#"{{"type":"message","to":"{user}","content":{content}}}"#
            )));
        }
        let last = text_bytes(r#"{"type":"heartbeat"}"#);
        bytes.extend(&last[..last.len() - 1]);
        let mut client = gateway.tcp();
        client.send_raw(&bytes);
        assert_switched(&client.read_head());
        assert_eq!(client.recv_json()["userId"], *user);
        for content in 0..20 {
            assert_eq!(client.recv_json()["content"], content);
        }
        client.send_raw(&last[last.len() - 1..]);
        assert_eq!(client.recv_json()["type"], "heartbeat");
    }
}

fn an_upgrade_may_follow_requests_on_one_connection(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3"]);
    for n in 0..8 {
        let user = format!("user{n}");
        let plain = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // One after the other, and all in one packet with a frame behind them.
        let mut client = gateway.tcp();
        client.send_raw(plain.as_bytes());
        assert_eq!(client.read_response().status, 200);
        client.send_raw(plain.as_bytes());
        assert_eq!(client.read_response().status, 200);
        client.send_upgrade(&format!("/ws?user={user}"), "");
        assert_switched(&client.read_head());
        assert_eq!(client.recv_json()["userId"], *user);
        client.expect_silence();

        let mut bytes = plain.repeat(3).into_bytes();
        bytes.extend(upgrade_head(&format!("/ws?user={user}"), "").into_bytes());
        bytes.extend(text_bytes(r#"{"type":"heartbeat"}"#));
        let mut client = gateway.tcp();
        client.send_raw(&bytes);
        for _ in 0..3 {
            assert_eq!(client.read_response().status, 200);
        }
        assert_switched(&client.read_head());
        assert_eq!(client.recv_json()["userId"], *user);
        assert_eq!(client.recv_json()["type"], "heartbeat");
    }
    // A refused upgrade does not spoil the connection for a good one.
    let mut client = gateway.tcp();
    client.send_upgrade("/ws?user=", "");
    assert_eq!(client.read_response().status, 400);
    client.send_upgrade("/ws?user=alice", "");
    assert_switched(&client.read_head());
    assert_eq!(client.recv_json()["userId"], "alice");
}

fn a_slow_head_gets_408(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-handshake-timeout", "200ms"]);
    let mut client = gateway.tcp();
    client.send_raw(b"GET /ws HTTP/1.1\r\nHost:");
    let answer = client.read_response();
    assert_eq!(answer.status, 408, "{answer:?}");
    client.expect_end();
    assert_eq!(
        gateway.metric("shardgate_handshakes_refused_total", &["reason=\"head_timeout\""]),
        1.0
    );
    // Bytes that trickle in do not buy time.
    let mut client = gateway.tcp();
    let dripped = drip(
        &mut client,
        &upgrade_head("/ws", &format!("X: {}\r\n", "x".repeat(1000))),
    );
    assert!(dripped, "the gateway let a head trickle in for 20 times its time limit");
}

/// Sends a byte every few milliseconds until the gateway closes; false if it took all of them.
fn drip(client: &mut Client, text: &str) -> bool {
    use std::io::{Read, Write};
    client.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    for byte in text.bytes() {
        if client.stream.write_all(&[byte]).is_err() {
            return true;
        }
        let mut chunk = [0; 4096];
        match client.stream.read(&mut chunk) {
            Ok(0) => return true,
            Ok(len) if chunk[..len].starts_with(b"HTTP/1.1 408") => return true,
            Ok(len) => panic!("{:?}", String::from_utf8_lossy(&chunk[..len])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
    false
}

fn a_slow_second_head_is_closed_too(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-handshake-timeout", "200ms"]);
    let mut client = gateway.tcp();
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let closed = drip(
        &mut client,
        &upgrade_head("/ws", &format!("X: {}\r\n", "x".repeat(1000))),
    );
    assert!(
        closed,
        "the gateway let a second head trickle in for 20 times its time limit"
    );
}

fn a_silent_socket_is_closed(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-handshake-timeout", "100ms"]);
    let mut silent: Vec<Client> = (0..20).map(|_| gateway.tcp()).collect();
    for client in &mut silent {
        client.read_to_end();
    }
    // A kept-alive connection without a further request does not stay for ever either.
    let mut client = gateway.tcp();
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.read_to_end();
    // A WebSocket does.
    let mut client = gateway.connect("alice");
    std::thread::sleep(Duration::from_millis(400));
    client.expect_silence();
}

fn a_long_head_gets_431(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let padded = |len: usize| {
        let bare = upgrade_head("/ws", "X: \r\n").len();
        upgrade_head("/ws", &format!("X: {}\r\n", "x".repeat(len - bare)))
    };
    let mut client = gateway.tcp();
    client.send_raw(padded(16384).as_bytes());
    assert_switched(&client.read_head());
    let mut client = gateway.tcp();
    client.send_raw(padded(16385).as_bytes());
    assert_eq!(client.read_response().status, 431);
    client.expect_end();
    // Without an end, and behind a request that was fine.
    let mut client = gateway.tcp();
    client.send_raw(&padded(20000).as_bytes()[..17000]);
    assert_eq!(client.read_response().status, 431);
    client.expect_end();
    let mut client = gateway.tcp();
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.send_raw(padded(40000).as_bytes());
    assert_eq!(client.read_response().status, 431);

    let gateway = Gateway::start(&["--engine", engine, "--limits-header-bytes", "512"]);
    let mut client = gateway.tcp();
    client.send_raw(padded(512).as_bytes());
    assert_switched(&client.read_head());
    let mut client = gateway.tcp();
    client.send_raw(padded(513).as_bytes());
    assert_eq!(client.read_response().status, 431);
    let mut client = gateway.tcp();
    client.send_raw(
        format!(
            "GET /stats HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
            "x".repeat(600)
        )
        .as_bytes(),
    );
    assert_eq!(client.read_response().status, 431, "not only of handshakes");
}

fn the_connection_limit_gets_503(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-connections", "3"]);
    let mut clients = [gateway.connect("alice"), gateway.connect("bob")];
    // An unauthenticated connection takes no permit.
    let mut unknown = gateway.upgrade("/ws");
    assert_eq!(gateway.get("/readyz").status, 200);
    let last = gateway.connect("dave");
    for _ in 0..3 {
        let answer = gateway.try_upgrade("/ws?user=carol", "");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!((1..=60).contains(&answer.retry_after()), "{answer:?}");
    }
    let health = gateway.get("/readyz");
    assert_eq!(health.status, 503);
    assert!(health.body.contains("overloaded"), "{health:?}");
    assert_eq!(gateway.get("/livez").status, 200);
    assert_eq!(
        gateway.metric("shardgate_handshakes_refused_total", &["reason=\"connection_limit\""]),
        3.0
    );
    // A client that authenticates later gets the same by its close code.
    unknown.send_json(&json!({"type": "auth", "userId": "carol"}));
    unknown.expect_close(3013);
    // Connected clients do not notice, and a free permit is given away again.
    clients[0].send_message_expecting("bob", "1", "delivered");
    drop(last);
    common::eventually("a place is free", || gateway.stats()["connections"] == 2);
    gateway.connect("carol").close();
}

fn the_connection_limit_holds_against_a_crowd(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-connections", "10", "--shards", "4"]);
    let mut crowd: Vec<Client> = (0..100).map(|_| gateway.tcp()).collect();
    for (n, client) in crowd.iter_mut().enumerate() {
        // Some are known at once, some later.
        let path = if n % 4 == 0 {
            "/ws".to_owned()
        } else {
            format!("/ws?user=user{n}")
        };
        client.send_upgrade(&path, "");
    }
    let mut admitted = 0;
    for (n, client) in crowd.iter_mut().enumerate() {
        let answer = client.read_head();
        match answer.status {
            101 if n % 4 == 0 => {
                client.send_json(&json!({"type": "auth", "userId": format!("user{n}")}));
                let first = client.recv_frame();
                match first.close_code() {
                    None => admitted += 1,
                    Some(code) => assert_eq!(code, 3013),
                }
            }
            101 => admitted += 1,
            503 => assert!(answer.retry_after() > 0),
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(admitted, 10, "exactly as many as the limit says");
    drop(crowd);
    gateway.wait_until_empty();
    let again: Vec<Client> = (0..10).map(|n| gateway.connect(&format!("user{n}"))).collect();
    assert_eq!(gateway.try_upgrade("/ws?user=late", "").status, 503);
    drop(again);
}

fn the_admission_rate_gets_503(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-handshakes-per-second", "5"]);
    let (mut admitted, mut refused) = (0, Vec::new());
    let began = std::time::Instant::now();
    let mut kept = Vec::new();
    while refused.len() < 10 {
        let mut client = gateway.tcp();
        client.send_upgrade("/ws?user=alice", "");
        let answer = client.read_head();
        match answer.status {
            101 => admitted += 1,
            503 => refused.push(answer.retry_after()),
            _ => panic!("{answer:?}"),
        }
        kept.push(client);
    }
    // A second's worth at once, then the rate.
    let seconds = began.elapsed().as_secs_f64();
    assert!(admitted >= 5, "{admitted}");
    assert!(
        f64::from(admitted) <= 5.0 + 5.0 * seconds + 1.0,
        "{admitted} in {seconds} s"
    );
    assert!(refused.iter().all(|seconds| (1..=60).contains(seconds)), "{refused:?}");
    let distinct: std::collections::BTreeSet<_> = refused.iter().collect();
    assert!(distinct.len() > 1, "jitter: {refused:?}");
    // Plain HTTP is not a handshake.
    assert_eq!(gateway.get("/readyz").status, 200);
    // A client that waits as long as told gets in, sooner or later.
    common::eventually("admitted again", || {
        gateway.try_upgrade("/ws?user=bob", "").status == 101
    });
}

fn a_half_closed_handshake_leaves_nothing(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let head = upgrade_head("/ws?user=alice", "");
    for len in [0, 1, 40, head.len() - 1, head.len()] {
        let mut client = gateway.tcp();
        client.send_raw(&head.as_bytes()[..len]);
        client.half_close();
        client.read_to_end();
        let mut client = gateway.tcp();
        client.send_raw(&head.as_bytes()[..len]);
        client.reset();
    }
    gateway.wait_until_empty();
    common::eventually("no socket is left but the one that asks", || {
        gateway.metric("shardgate_sockets", &[]) <= 1.0
    });
    gateway.connect("alice").close();
}

fn not_http_at_all(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for bytes in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/9.9\r\n\r\n",
    ] {
        let mut client = gateway.tcp();
        client.send_raw(bytes);
        let answer = client.read_to_end();
        assert!(answer.starts_with("HTTP/1.1 4"), "{bytes:?}: {answer:?}");
    }
    // TLS on the plain port: no HTTP answer would help.
    let mut client = gateway.tcp();
    client.send_raw(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]);
    client.expect_end();
    gateway.wait_for_log("TLS");
    gateway.connect("alice").close();
}
