//! The identity of a client by token: every way of showing one, its permissions, and its end.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::time::Duration;

use common::client::{assert_switched, text_bytes, upgrade_head};
use common::tokens::{SECRET, claims, connect, from_now, gateway, key_file, private_key_file, sign, token};
use common::{Gateway, eventually, run_to_exit};
use serde_json::json;
use shardgate::jws::Algorithm;

on_both_engines! {
    every_way_of_showing_a_token, the_first_that_is_shown_counts, a_bad_token_is_refused_at_the_handshake,
    a_bad_token_is_refused_in_band, nobody_names_themselves, a_token_may_be_required_at_the_handshake,
    no_token_in_time, frames_right_behind_a_token, a_token_ends, a_token_is_refreshed, refreshing_as_another_user,
    refreshing_with_a_bad_token, claims_permit_channels, claims_lower_the_limit_of_connections, keys_change_by_sighup,
    a_refused_handshake_leaves_nothing, a_rush_of_tokens, a_subprotocol_may_carry_a_token, expired_is_not_bad,
    browsers_hear_why, subscriptions_end_with_their_right, reviews_take_turns, users_to_write_to_and_to_see,
}

fn every_way_of_showing_a_token(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3", "--auth-cookie", "session"]);
    // Several, so that some live on the shard that accepts them and some do not.
    for n in 0..8 {
        let user = format!("user{n}");
        let token = token(&user);
        for fields in [
            format!("Authorization: Bearer {token}\r\n"),
            format!("Cookie: x=y; session={token}\r\n"),
        ] {
            let mut client = gateway.tcp();
            client.send_upgrade("/ws", &fields);
            assert_switched(&client.read_head());
            assert_eq!(client.recv_json()["userId"], *user);
            client.send_message_expecting("nobody", "1", "offline");
        }
        assert_eq!(connect(&gateway, &token).1["userId"], *user);
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "token": token}));
        assert_eq!(client.recv_json()["userId"], *user);
        client.send_message_expecting("nobody", "1", "offline");
    }
    eventually("all are gone", || gateway.stats()["connections"] == 0);
    assert!(gateway.metric("shardgate_token_verifications_total", &["result=\"cached\""]) > 0.0);
    assert!(gateway.metric("shardgate_token_verifications_total", &["result=\"ok\""]) >= 8.0);
    assert_eq!(gateway.metric("shardgate_handshakes_refused_total", &[]), 0.0);
}

fn the_first_that_is_shown_counts(engine: &str) {
    let gateway = gateway(engine, &[]);
    let [header, query, cookie] = ["header", "query", "cookie"].map(token);
    let shown = |header: &str, query: &str, cookie: &str| {
        let mut fields = String::new();
        if !header.is_empty() {
            fields.push_str(&format!("Authorization: Bearer {header}\r\n"));
        }
        if !cookie.is_empty() {
            fields.push_str(&format!("Cookie: shardgate_token={cookie}\r\n"));
        }
        let path = if query.is_empty() {
            "/ws".to_owned()
        } else {
            format!("/ws?token={query}")
        };
        let mut client = gateway.tcp();
        client.send_upgrade(&path, &fields);
        match client.read_head().status {
            101 => client.recv_json()["userId"].as_str().unwrap().to_owned(),
            status => status.to_string(),
        }
    };
    assert_eq!(shown(&header, &query, &cookie), "header");
    assert_eq!(shown("", &query, &cookie), "query");
    assert_eq!(shown("", "", &cookie), "cookie");
    assert_eq!(shown("bad", &query, &cookie), "401");
    assert_eq!(shown("", "bad", &cookie), "401");
    assert_eq!(shown("", "", "bad"), "401");
    // The handshake counts before the first message, which is a refresh then.
    let (mut client, _) = connect(&gateway, &query);
    client.send_json(&json!({"type": "auth", "token": header}));
    client.expect_close(3507);
}

fn bad_tokens() -> Vec<String> {
    let good = token("alice");
    let (rest, _) = good.rsplit_once('.').unwrap();
    vec![
        "nonsense".to_owned(),
        good[..good.len() - 1].to_owned(),
        format!("{rest}."),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.".to_owned(),
        sign(Algorithm::Hs512, &json!({"sub": "alice"}), None),
        sign(Algorithm::Rs256, &json!({"sub": "alice"}), None),
        claims(&json!({"sub": ""})),
        claims(&json!({"user": "alice"})),
        claims(&json!({"sub": "alice", "exp": null})),
        claims(&json!({"sub": "alice\u{200b}"})),
        claims(&json!({"sub": "alice", "nbf": from_now(Duration::from_secs(60))})),
    ]
}

fn a_bad_token_is_refused_at_the_handshake(engine: &str) {
    let gateway = gateway(engine, &[]);
    for (n, bad) in bad_tokens().iter().enumerate() {
        let answer = gateway.try_upgrade(&format!("/ws?token={bad}"), "");
        assert_eq!(answer.status, 401, "{n}: {answer:?}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer"), "{answer:?}");
        assert!(!format!("{answer:?}").contains(&bad[..8]), "the token is not said back");
        let refused = gateway.metric("shardgate_handshakes_refused_total", &["reason=\"credential\""]);
        assert_eq!(refused, n as f64 + 1.0);
    }
    assert_eq!(gateway.stats()["connections"], 0);
    // A proxy may send a handshake over a connection that it kept.
    let mut client = gateway.tcp();
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.send_upgrade("/ws?token=bad", "");
    assert_eq!(client.read_response().status, 401);
    let log = gateway.log();
    assert!(!bad_tokens().iter().any(|token| log.contains(token.as_str())), "{log}");
}

fn a_bad_token_is_refused_in_band(engine: &str) {
    let gateway = gateway(engine, &[]);
    for bad in bad_tokens() {
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "token": bad}));
        client.expect_close(3500);
    }
    for auth in [
        r#"{"type":"auth"}"#,
        r#"{"type":"auth","token":5}"#,
        r#"{"type":"auth","token":""}"#,
    ] {
        let mut client = gateway.upgrade("/ws");
        client.send_text(auth);
        client.expect_close(3500);
    }
    // Longer than a token may be, and longer than a pre-auth message may be.
    for (bytes, code) in [(10_000, 3500), (20_000, 1009)] {
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "token": "x".repeat(bytes)}));
        client.expect_close(code);
    }
    gateway.wait_until_empty();
}

/// Development mode is over: `?user=` is ignored, `userId` is no credential, and the page is gone.
fn nobody_names_themselves(engine: &str) {
    let gateway = gateway(engine, &["--listen", "127.0.0.1:0"]);
    let mut client = gateway.upgrade("/ws?user=alice");
    client.send_text(r#"{"type":"message","to":"bob","content":1}"#);
    client.expect_error("unauthorized");
    client.send_text(r#"{"type":"auth","userId":"alice"}"#);
    client.expect_close(3500);
    assert_eq!(gateway.get("/").status, 404);
    let (mut client, _) = connect(&gateway, &token("alice"));
    for frame in [
        r#"{"type":"subscribe","channel":"room"}"#,
        r#"{"type":"publish","channel":"room","content":1}"#,
    ] {
        client.send_text(frame);
        client.expect_error("notPermitted");
    }
    assert!(!gateway.log().contains("development"), "{}", gateway.log());
}

fn a_token_may_be_required_at_the_handshake(engine: &str) {
    let gateway = gateway(engine, &["--auth-required-at-handshake", "--echo"]);
    let answer = gateway.try_upgrade("/ws", "");
    assert_eq!((answer.status, answer.field("www-authenticate")), (401, Some("Bearer")));
    let basic = "Authorization: Basic eDp5\r\n";
    assert_eq!(gateway.try_upgrade("/ws?user=alice", basic).status, 401);
    connect(&gateway, &token("alice"));
    gateway.upgrade("/echo");
}

fn no_token_in_time(engine: &str) {
    let gateway = gateway(engine, &["--auth-timeout", "300ms"]);
    let mut silent = gateway.upgrade("/ws");
    let (mut known, _) = connect(&gateway, &token("alice"));
    silent.expect_close(3502);
    known.expect_silence();
}

fn frames_right_behind_a_token(engine: &str) {
    let gateway = gateway(engine, &["--shards", "4", "--limits-messages-per-second", "0"]);
    for n in 0..16 {
        let user = format!("user{n}");
        let auth = text_bytes(&json!({"type": "auth", "token": token(&user)}).to_string());
        let mut bytes = match n % 2 {
            0 => upgrade_head(&format!("/ws?token={}", token(&user)), "").into_bytes(),
            _ => [upgrade_head("/ws", "").into_bytes(), auth.clone()].concat(),
        };
        for content in 0..20 {
            bytes.extend(text_bytes(
                &json!({"type": "message", "to": user, "content": content}).to_string(),
            ));
        }
        bytes.extend(&auth[..7]);
        let mut client = gateway.tcp();
        client.send_raw(&bytes);
        assert_switched(&client.read_head());
        let welcome = client.recv_json();
        assert_eq!(welcome["userId"], *user);
        for content in 0..20 {
            assert_eq!(client.recv_json()["content"], content);
        }
        client.send_raw(&auth[7..]);
        assert_eq!(client.recv_json(), welcome);
        client.close();
    }
    gateway.wait_until_empty();
}

fn expiring(user: &str, time: Duration) -> String {
    claims(&json!({"sub": user, "exp": from_now(time)}))
}

fn a_token_ends(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3"]);
    let ends = from_now(Duration::from_secs(1));
    let mut clients: Vec<_> = (0..6)
        .map(|n| connect(&gateway, &claims(&json!({"sub": format!("user{n}"), "exp": ends}))).0)
        .collect();
    let (mut other, _) = connect(&gateway, &expiring("other", Duration::from_secs(60)));
    let mut late = gateway.upgrade("/ws");
    late.send_json(&json!({"type": "auth", "token": claims(&json!({"sub": "late", "exp": ends}))}));
    assert_eq!(late.recv_json()["type"], "welcome");
    for client in clients.iter_mut().chain([&mut late]) {
        client.expect_close(3005);
        let late_by = from_now(Duration::ZERO) - ends;
        assert!(late_by > -0.01, "closed {late_by} s after the end");
    }
    other.expect_silence();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3005\""]),
        7.0
    );
}

fn a_token_is_refreshed(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3"]);
    let (mut client, welcome) = connect(&gateway, &expiring("alice", Duration::from_secs(1)));
    let (mut other, _) = connect(&gateway, &expiring("alice", Duration::from_secs(1)));
    client.send_json(&json!({"type": "auth", "token": expiring("alice", Duration::from_secs(60))}));
    let again = client.recv_json();
    assert_eq!(
        (&again["type"], &again["connId"]),
        (&welcome["type"], &welcome["connId"])
    );
    let [before, after] = [&welcome, &again].map(|welcome| welcome["expiresAt"].as_f64().unwrap() / 1000.0);
    assert!(
        after > before + 50.0 && after < from_now(Duration::from_secs(61)),
        "{after}"
    );
    other.expect_close(3005);
    client.expect_silence();
    // Shorter is possible, too.
    client.send_json(&json!({"type": "auth", "token": expiring("alice", Duration::from_millis(300))}));
    assert_eq!(client.recv_json()["connId"], welcome["connId"]);
    client.expect_close(3005);
}

/// Scripts in browsers can set nothing else in a handshake but its address.
fn a_subprotocol_may_carry_a_token(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3", "--auth-required-at-handshake"]);
    for n in 0..6 {
        let user = format!("user{n}");
        let offered = format!(
            "Sec-WebSocket-Protocol: shardgate.v1, shardgate.token.{}\r\n",
            token(&user)
        );
        let mut client = gateway.tcp();
        client.send_upgrade("/ws", &offered);
        let answer = client.read_head();
        assert_switched(&answer);
        assert_eq!(
            answer.field("sec-websocket-protocol"),
            Some("shardgate.v1"),
            "the token is not said back"
        );
        let welcome = client.recv_json();
        assert_eq!((&welcome["userId"], welcome.get("expiresAt")), (&json!(user), None));
    }
    let bad = "Sec-WebSocket-Protocol: shardgate.v1, shardgate.token.bad\r\n";
    assert_eq!(gateway.try_upgrade("/ws", bad).status, 401);
    let cookie = format!("Cookie: shardgate_token={}\r\n", token("alice"));
    assert_eq!(
        gateway.try_upgrade("/ws", &[&cookie, bad].concat()).status,
        101,
        "the first that is shown counts"
    );
}

/// A client with an expired token fetches another and comes back; a client with a bad one has no
/// reason to.
fn expired_is_not_bad(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3", "--auth-issuer", "us"]);
    let expired = |n: u32| claims(&json!({"sub": format!("user{n}"), "iss": "us", "exp": 1}));
    for n in 0..6 {
        let answer = gateway.try_upgrade(&format!("/ws?token={}", expired(n)), "");
        let challenge = answer.field("www-authenticate");
        assert_eq!((answer.status, challenge), (401, Some("Bearer error=\"expired\"")));
        let mut client = gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "token": expired(n)}));
        client.expect_close(3005);
        let (mut client, _) = connect(&gateway, &claims(&json!({"sub": format!("user{n}"), "iss": "us"})));
        client.send_json(&json!({"type": "auth", "token": expired(n)}));
        client.expect_close(3005);
    }
    // A new one of another user would be no better.
    let foreign = claims(&json!({"sub": "alice", "iss": "them", "exp": 1}));
    let answer = gateway.try_upgrade(&format!("/ws?token={foreign}"), "");
    assert_eq!((answer.status, answer.field("www-authenticate")), (401, Some("Bearer")));
    gateway.wait_until_empty();
}

/// A browser sees no status of a refused handshake: it would come again for ever.
fn browsers_hear_why(engine: &str) {
    let args = [
        "--shards",
        "3",
        "--limits-connections",
        "1",
        "--origins",
        "https://app.example",
    ];
    let gateway = gateway(engine, &args);
    let page = "Origin: https://app.example\r\n";
    let (kept, _) = connect(&gateway, &token("alice"));
    assert_eq!(
        gateway.try_upgrade(&format!("/ws?token={}", token("bob")), "").status,
        503
    );
    let heard = |gateway: &Gateway, path: &str, fields: &str| {
        let mut client = gateway.tcp();
        client.send_upgrade(path, &[page, fields].concat());
        assert_switched(&client.read_head());
        client.recv_frame().close_code()
    };
    for n in 0..6 {
        let expired = claims(&json!({"sub": format!("user{n}"), "exp": 1}));
        assert_eq!(heard(&gateway, &format!("/ws?token={expired}"), ""), Some(3005));
        assert_eq!(
            heard(&gateway, "/ws", &format!("Cookie: shardgate_token={expired}\r\n")),
            Some(3005)
        );
        assert_eq!(heard(&gateway, "/ws?token=bad", ""), Some(3500));
        assert_eq!(heard(&gateway, "/ws?token=a&token=b", ""), Some(3500));
    }
    let answer = gateway.try_upgrade("/ws?token=bad", "Origin: https://evil.example\r\n");
    assert_eq!(answer.status, 403);
    assert_eq!(gateway.try_upgrade("/ws?token=bad", "").status, 401, "no browser");
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3005\""]),
        12.0
    );
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3500\""]),
        12.0
    );
    drop(kept);
    gateway.wait_until_empty();
    let required = self::gateway(
        engine,
        &["--auth-required-at-handshake", "--origins", "https://app.example"],
    );
    assert_eq!(heard(&required, "/ws", ""), Some(3500));
    let off = self::gateway(
        engine,
        &["--auth-browser-close=false", "--origins", "https://app.example"],
    );
    assert_eq!(off.try_upgrade("/ws?token=bad", page).status, 401);
}

/// By a new token, or by a new configuration for those whose rights are configured.
fn subscriptions_end_with_their_right(engine: &str) {
    let gateway = gateway(
        engine,
        &[
            "--shards",
            "3",
            "--channels-subscribe",
            "news",
            "--channels-publish",
            "*",
        ],
    );
    for n in 0..4 {
        let user = format!("user{n}");
        let with = |channels: &[&str]| claims(&json!({"sub": user, "sub_channels": channels}));
        let (mut client, welcome) = connect(&gateway, &with(&["group:*", "dm:{user}"]));
        let own = format!("dm:{user}");
        for channel in ["group:7", "news", "group:8", &own, "group:9"] {
            client.subscribe(channel);
        }
        let mut left = vec!["group:7", "news", "group:8", &own, "group:9"];
        for (channels, ending) in [
            // Other words for the same, less, more, nothing. The configured lists stay.
            (&["group:*", "dm:*"][..], &[][..]),
            (&["group:8"], &[own.as_str(), "group:7", "group:9"]),
            (&["*"], &[]),
            (&[], &["group:8"]),
        ] {
            client.send_json(&json!({"type": "auth", "token": with(channels)}));
            assert_eq!(client.recv_json(), welcome);
            let mut ended: Vec<_> = ending.iter().map(|_| client.recv_json()).collect();
            ended.sort_by_key(|frame| frame["channel"].to_string());
            for (frame, channel) in ended.iter().zip(ending) {
                assert_eq!(
                    *frame,
                    json!({"type": "unsubscribed", "channel": channel, "reason": "notPermitted"})
                );
            }
            left.retain(|channel| !ending.contains(channel));
            let (mut publisher, _) = connect(&gateway, &token("publisher"));
            for channel in ["group:7", "news", "group:8", &own, "group:9"] {
                publisher.publish(channel, "1");
                if left.contains(&channel) {
                    client.recv_publication(channel);
                }
            }
        }
        client.expect_silence();
    }
}

/// All of them end, however many there are, and other clients are served meanwhile.
fn reviews_take_turns(engine: &str) {
    const CHANNELS: usize = 3_000;
    let limits = [
        "--limits-channels-per-connection",
        "10000",
        "--limits-messages-per-second",
        "0",
    ];
    let gateway = gateway(engine, &[&["--shards", "1"], &limits[..]].concat());
    let with = |channels: &[&str]| claims(&json!({"sub": "alice", "sub_channels": channels}));
    let (mut client, _) = connect(&gateway, &with(&["*"]));
    let texts = (0..CHANNELS).map(|n| json!({"type": "subscribe", "channel": format!("{n}")}).to_string());
    client.send_raw(&common::channels::frames(texts));
    for _ in 0..CHANNELS {
        assert_eq!(client.recv_json()["type"], "subscribed");
    }
    client.send_json(&json!({"type": "auth", "token": with(&["1*"])}));
    assert_eq!(client.recv_json()["type"], "welcome");
    let stay = (0..CHANNELS).filter(|n| n.to_string().starts_with('1')).count();
    for _ in 0..CHANNELS - stay {
        let frame = client.recv_json();
        assert_eq!(frame["reason"], "notPermitted", "{frame}");
        assert!(!frame["channel"].as_str().unwrap().starts_with('1'), "{frame}");
    }
    client.expect_silence();
    let subscriptions = || gateway.metric("shardgate_subscriptions", &[]);
    eventually("the others stay", || subscriptions() == stay as f64);
}

fn users_to_write_to_and_to_see(engine: &str) {
    let args = [
        "--shards",
        "3",
        "--messages-send",
        "support,{user}",
        "--messages-presence",
        "support",
    ];
    let gateway = gateway(engine, &args);
    let (mut support, _) = connect(&gateway, &token("support"));
    let say = |client: &mut common::Client, to: &str| {
        client.send_json(&json!({"type": "message", "to": to, "content": 1, "id": "m"}));
        loop {
            let answer = client.recv_json();
            if answer["type"] != "message" {
                assert_eq!(answer["id"], "m");
                return answer["code"]
                    .as_str()
                    .or(answer["status"].as_str())
                    .unwrap()
                    .to_owned();
            }
        }
    };
    let see = |client: &mut common::Client| {
        client.send_json(&json!({"type": "presence", "users": ["support", "alice", "bob"], "id": "p"}));
        client.recv_json()
    };
    let seen = |users: serde_json::Value| json!({"type": "presence", "id": "p", "users": users});
    let (mut bob, _) = connect(&gateway, &claims(&json!({"sub": "bob", "write_to": ["a*"], "see": []})));
    let (mut alice, _) = connect(&gateway, &token("alice"));
    assert_eq!(say(&mut alice, "support"), "delivered");
    assert_eq!(support.recv_json()["from"], "alice");
    assert_eq!(say(&mut alice, "alice"), "delivered");
    assert_eq!(say(&mut alice, "bob"), "notPermitted");
    assert_eq!(see(&mut alice), seen(json!({"support": true})));
    // The claims replace the lists.
    assert_eq!(say(&mut bob, "support"), "notPermitted");
    assert_eq!(say(&mut bob, "bob"), "notPermitted");
    assert_eq!(say(&mut bob, "alice"), "delivered");
    assert_eq!(alice.recv_json()["from"], "bob");
    assert_eq!(see(&mut bob), seen(json!({})));
    // And a new token those of the old one.
    bob.send_json(&json!({"type": "auth", "token": claims(&json!({"sub": "bob", "see": ["*"]}))}));
    assert_eq!(bob.recv_json()["type"], "welcome");
    assert_eq!(
        see(&mut bob),
        seen(json!({"support": true, "alice": true, "bob": true}))
    );
    assert_eq!(say(&mut bob, "alice"), "notPermitted");
    // No refused message reached a client.
    support.expect_silence();
    alice.expect_silence();
}

fn refreshing_as_another_user(engine: &str) {
    let gateway = gateway(engine, &[]);
    let (mut client, _) = connect(&gateway, &token("alice"));
    client.send_json(&json!({"type": "auth", "token": token("bob")}));
    client.expect_close(3507);
}

fn refreshing_with_a_bad_token(engine: &str) {
    let gateway = gateway(engine, &[]);
    for bad in bad_tokens() {
        let (mut client, _) = connect(&gateway, &token("alice"));
        client.send_json(&json!({"type": "auth", "token": bad}));
        client.expect_close(3500);
    }
    gateway.wait_until_empty();
}

fn claims_permit_channels(engine: &str) {
    let gateway = gateway(engine, &["--shards", "3", "--channels-subscribe", "news"]);
    for n in 0..6 {
        let user = format!("user{n}");
        let narrow = json!({"sub": user, "sub_channels": ["room:*", "dm:{user}", "{"], "pub_channels": ["room:1"]});
        let (mut client, _) = connect(&gateway, &claims(&narrow));
        let mut ask = |kind: &str, channel: &str| {
            client.send_json(&json!({"type": kind, "channel": channel, "content": 1, "id": "c"}));
            let answer = client.recv_json();
            answer["code"]
                .as_str()
                .unwrap_or(answer["type"].as_str().unwrap())
                .to_owned()
        };
        for (kind, channel, expected) in [
            ("subscribe", "news", "subscribed"),
            ("subscribe", "room:2", "subscribed"),
            ("subscribe", &format!("dm:{user}"), "subscribed"),
            ("subscribe", "dm:another", "notPermitted"),
            ("subscribe", "{", "notPermitted"),
            ("publish", "room:1", "ack"),
            ("publish", "room:2", "notPermitted"),
            ("publish", "news", "notPermitted"),
        ] {
            assert_eq!(ask(kind, channel), expected, "{kind} {channel}");
        }
        // A new token gives its own permissions, and none of the old one's.
        client.send_json(&json!({"type": "auth", "token": claims(&json!({"sub": user, "pub_channels": ["x"]}))}));
        assert_eq!(client.recv_json()["type"], "welcome");
        client.send_json(&json!({"type": "publish", "channel": "room:1", "content": 1}));
        let mut ended = Vec::new();
        let error = loop {
            let frame = client.recv_json();
            match frame["type"].as_str() {
                Some("unsubscribed") => ended.push(frame["channel"].clone()),
                _ => break frame,
            }
        };
        assert_eq!(error["code"], "notPermitted", "{error}");
        while ended.len() < 2 {
            ended.push(client.recv_json()["channel"].clone());
        }
        ended.sort_by_key(|channel| channel.to_string());
        assert_eq!(ended, [json!(format!("dm:{user}")), json!("room:2")]);
    }
}

fn claims_lower_the_limit_of_connections(engine: &str) {
    let gateway = gateway(engine, &["--limits-connections-per-user", "3"]);
    let one = claims(&json!({"sub": "alice", "connections": 1}));
    let (mut first, _) = connect(&gateway, &one);
    let (mut second, _) = connect(&gateway, &one);
    first.expect_close(3504);
    second.expect_silence();
    // A new token counts at once.
    let (three, less) = (
        claims(&json!({"sub": "carol"})),
        claims(&json!({"sub": "carol", "connections": 1})),
    );
    let mut carols: Vec<_> = (0..3).map(|_| connect(&gateway, &three).0).collect();
    carols[2].send_json(&json!({"type": "auth", "token": less}));
    assert_eq!(carols[2].recv_json()["type"], "welcome");
    carols[0].expect_close(3504);
    carols[1].expect_close(3504);
    carols[2].expect_silence();
    // It cannot be raised.
    let many = claims(&json!({"sub": "bob", "connections": 100}));
    let mut bobs: Vec<_> = (0..4).map(|_| connect(&gateway, &many).0).collect();
    bobs[0].expect_close(3504);
    bobs[1].expect_silence();
    assert_eq!(
        gateway
            .try_upgrade(
                &format!("/ws?token={}", claims(&json!({"sub": "x", "connections": 0}))),
                ""
            )
            .status,
        401
    );
}

fn keys_change_by_sighup(engine: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    let write = |text: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    let hs256 = format!("[auth]\nalgorithm = \"HS256\"\nkey = \"{}\"\n", SECRET);
    write(&hs256);
    let gateway = Gateway::start(&["--engine", engine, "--config", file.to_str().unwrap()]);
    let reload = |text: &str, logged: &str| {
        write(text);
        let lines = gateway.log_lines();
        gateway.signal(libc::SIGHUP);
        gateway.wait_for_log_after(lines, logged)
    };
    let status = |token: &str| gateway.try_upgrade(&format!("/ws?token={token}"), "").status;
    let (old, new) = (token("alice"), sign(Algorithm::Es256, &json!({"sub": "alice"}), None));
    let (mut client, _) = connect(&gateway, &old);
    assert_eq!((status(&old), status(&new)), (101, 401));
    let es256 = format!(
        "[auth]\nalgorithm = \"ES256\"\nkey = \"{}\"\n",
        key_file(Algorithm::Es256)
    );
    reload(&es256, "configuration read again");
    // Results verified by the old key are forgotten; connected clients stay.
    eventually("on every shard", || {
        (0..12).all(|_| status(&old) == 401 && status(&new) == 101)
    });
    client.expect_silence();
    client.send_json(&json!({"type": "auth", "token": new}));
    assert_eq!(client.recv_json()["type"], "welcome");
    // A file without its key does not open the gateway, nor does one with a bad key change
    // anything.
    let line = reload("", "only a restart");
    assert!(line.contains("auth.key"), "{line}");
    reload(
        "[auth]\nalgorithm = \"RS256\"\nkey = \"x\"\n",
        "configuration not changed",
    );
    assert_eq!((status(&old), status(&new)), (401, 101));
    assert_eq!(gateway.get("/").status, 404);
}

fn a_refused_handshake_leaves_nothing(engine: &str) {
    let gateway = gateway(engine, &["--limits-connections", "2"]);
    for _ in 0..20 {
        assert_eq!(gateway.try_upgrade("/ws?token=bad", "").status, 401);
    }
    let kept = [connect(&gateway, &token("alice")), connect(&gateway, &token("bob"))];
    assert_eq!(
        gateway.try_upgrade(&format!("/ws?token={}", token("carol")), "").status,
        503
    );
    assert_eq!(gateway.metric("shardgate_connections_accepted_total", &[]), 2.0);
    assert_eq!(gateway.metric("shardgate_connections_closed_total", &[]), 0.0);
    drop(kept);
    gateway.wait_until_empty();
}

/// More than a turn takes at once, good and bad ones; every client gets its answer.
fn a_rush_of_tokens(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--shards",
        "3",
        "--auth-algorithm=ES256",
        &format!("--auth-key={}", key_file(Algorithm::Es256)),
    ]);
    let mut clients: Vec<_> = (0..100)
        .map(|n| {
            let mut token = sign(Algorithm::Es256, &json!({"sub": format!("user{n}")}), None);
            if n % 3 == 0 {
                token = token.replace(".e", ".f");
            }
            let mut client = gateway.tcp();
            client.send_upgrade(&format!("/ws?token={token}"), "");
            client
        })
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        if n % 3 == 0 {
            assert_eq!(client.read_response().status, 401);
        } else {
            assert_switched(&client.read_head());
            assert_eq!(client.recv_json()["userId"], format!("user{n}"));
        }
    }
}

/// Every algorithm, from the configured public key to the printed token.
#[test]
fn the_subcommand_prints_what_the_gateway_takes() {
    for name in Algorithm::NAMES {
        let algorithm = Algorithm::by_name(name).unwrap();
        let (alg, key) = (
            format!("--auth-algorithm={name}"),
            format!("--auth-key={}", key_file(algorithm)),
        );
        let issued = ["--auth-issuer=me", "--auth-audience=you,them", "--auth-require-exp"];
        let config = [&[alg.as_str(), &key][..], &issued].concat();
        let gateway = Gateway::start(&[&["--engine=epoll"], &config[..]].concat());
        let private = private_key_file(algorithm);
        let wish = [
            "token",
            "--user",
            "alice",
            "--ttl=1m",
            "--claims={\"connections\":1}",
            "--private-key",
            &private,
        ];
        let printed = run_to_exit(&[&wish, &config[..]].concat());
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let (_client, welcome) = connect(&gateway, printed.stdout.trim());
        assert_eq!(welcome["userId"], "alice");
    }
    let secret = ["--auth-algorithm=HS256", "--auth-key=s3cret-s3cret-s3cret"];
    let ran = |args: &[&str]| run_to_exit(&[&["token"], args, &secret].concat());
    assert_eq!(ran(&["--user=alice"]).code, Some(0));
    for (args, said) in [
        (&[][..], "--user is missing"),
        (&["--user"][..], "no time"),
        (&["--user=alice", "--ttl=60"], "no time"),
        (&["--user=alice", "--claims=[]"], "no JSON object"),
        (&["--user=alice", "--claims={\"sub\":1}"], "would refuse it: claims"),
        (&["--user=alice", "--alg=ES256"], "auth.algorithm"),
        (&["--user=alice", "--ttl=1h", "--no-such-flag"], "--no-such-flag"),
    ] {
        let ended = ran(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        if args != ["--user"] {
            assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        }
        assert!(ended.stdout.is_empty() && !ended.stderr.contains("s3cret"), "{ended:?}");
    }
}

/// It serves, and logs the fault; again when another one is read.
#[test]
fn a_short_secret_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shardgate.toml");
    let write = |secret: &str| {
        let text = format!("[auth]\nalgorithm = [\"HS256\", \"HS512\"]\nkey = \"{secret}\"\n");
        std::fs::write(&file, text).unwrap();
    };
    write("s3cret-s3cret-s3");
    let gateway = Gateway::start(&["--engine=epoll", "--config", file.to_str().unwrap()]);
    let line = gateway.wait_for_log("auth.key: it is a secret of 16 bytes");
    assert!(
        line.contains("HS512 wants 64") && line.contains("openssl rand"),
        "{line}"
    );
    let reload = |secret: &str| {
        write(secret);
        let lines = gateway.log_lines();
        gateway.signal(libc::SIGHUP);
        gateway.wait_for_log_after(lines, "configuration read again");
    };
    reload("another s3cret-s3cret-s3");
    gateway.wait_for_log("auth.key: it is a secret of 24 bytes");
    reload(SECRET);
    assert_eq!(gateway.log().matches("auth.key").count(), 2, "{}", gateway.log());
    assert!(!gateway.log().contains("s3cret"), "{}", gateway.log());
}

/// A client that must show a token may come from elsewhere.
#[test]
fn tokens_lift_the_bar_of_development_mode() {
    let listen = "--listen=0.0.0.0:0";
    let with_key = [
        listen,
        "--auth-algorithm=HS256",
        "--auth-key=s3cret-s3cret-s3cret",
        "--check-config",
    ];
    assert_eq!(run_to_exit(&with_key).code, Some(0));
    let refused = run_to_exit(&[listen, "--check-config"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("auth.algorithm"), "{}", refused.stderr);
}
