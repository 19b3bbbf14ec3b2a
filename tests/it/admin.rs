//! The admin API on the public port: every endpoint, authorization, refusals, and pages that
//! neither skip nor repeat a user who stays. And the page for people, which asks for the token
//! itself.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use common::admin::{Admin, TOKEN};
use common::{Gateway, eventually, url_encode};
use serde_json::{Value, json};

on_both_engines! {
    connections_are_listed_shown_and_closed, users_are_found_and_closed, messages_publications_and_broadcasts,
    subscriptions_are_ended, codes_are_chosen, channels_are_listed, users_are_spoken_for, a_drain_begins, pages_while_connections_come_and_go, requests_in_pieces_and_in_a_row,
}

fn start(engine: &str, more: &[&str]) -> Gateway {
    let args = ["--engine", engine, "--shards", "3", "--admin-token", TOKEN];
    Gateway::start(&[&args, more].concat())
}

/// The connection's id in `welcome`.
fn connect(gateway: &Gateway, user: &str) -> (common::Client, String) {
    let mut client = gateway.upgrade(&format!("/ws?user={}", url_encode(user)));
    let id = client.recv_json()["connId"].as_str().unwrap().to_owned();
    (client, id)
}

fn connections_are_listed_shown_and_closed(engine: &str) {
    let gateway = start(engine, &[]);
    let admin = Admin::of(&gateway);
    assert_eq!(
        admin.get("/admin/connections"),
        (200, json!({"connections": [], "cursor": null}))
    );
    let mut clients: Vec<_> = ["alice", "alice", "ä/%2F 😀"]
        .into_iter()
        .map(|user| connect(&gateway, user))
        .collect();
    let listed = admin.list("");
    assert_eq!(listed.len(), 3);
    let (client, id) = &mut clients[2];
    client.send_text(r#"{"type":"heartbeat"}"#);
    client.recv_json();
    let (status, shown) = admin.get(&format!("/admin/connections/{id}"));
    assert_eq!(status, 200);
    let keys: Vec<_> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "connId",
        "userId",
        "shard",
        "remoteAddr",
        "connectedAt",
        "lastSeen",
        "messagesIn",
        "messagesOut",
        "outboxBytes",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(shown["connId"], **id);
    assert_eq!(shown["userId"], "ä/%2F 😀");
    assert!(shown["shard"].as_u64().unwrap() < 3);
    assert_eq!(shown["remoteAddr"], client.stream.local_addr().unwrap().to_string());
    assert_eq!((&shown["messagesIn"], &shown["messagesOut"]), (&json!(1), &json!(2)));
    assert_eq!(shown["outboxBytes"], 0);
    let (connected, seen) = (
        shown["connectedAt"].as_u64().unwrap(),
        shown["lastSeen"].as_u64().unwrap(),
    );
    assert!(
        connected > 1_700_000_000_000 && connected <= seen && seen - connected < 60_000,
        "{shown}"
    );

    assert_eq!(admin.list("user=alice").len(), 2);
    assert_eq!(
        admin.list(&format!("user={}", url_encode("ä/%2F 😀"))),
        [json!(id.as_str())]
    );
    assert_eq!(admin.list("user=nobody").len(), 0);

    assert_eq!(
        admin.ask("DELETE", &format!("/admin/connections/{id}"), ""),
        (204, Value::Null)
    );
    let close = clients[2].0.recv_frame();
    assert_eq!(close.close_code(), Some(3503));
    for method in ["GET", "DELETE"] {
        let (status, body) = admin.ask(method, &format!("/admin/connections/{}", clients[2].1), "");
        assert_eq!((status, &body["error"]["code"]), (404, &json!("notFound")));
    }
    assert_eq!(admin.list("").len(), 2);
    // One that has no user yet is in no list.
    let stranger = gateway.upgrade("/ws");
    eventually("3 connections", || gateway.stats()["connections"] == 3);
    assert_eq!(admin.list("").len(), 2);
    drop(stranger);
    gateway.wait_for_log("admin: close connection");
    assert!(!gateway.log().contains(TOKEN));
}

fn users_are_found_and_closed(engine: &str) {
    let gateway = start(engine, &[]);
    let admin = Admin::of(&gateway);
    let user = "a b/c%\"é";
    let path = format!("/admin/users/{}", url_encode(user));
    assert_eq!(admin.get(&path), (200, json!({"userId": user, "gateways": []})));
    let mut clients: Vec<_> = (0..3).map(|_| connect(&gateway, user).0).collect();
    let _other = connect(&gateway, "bob");
    let here = json!({"userId": user, "gateways": [{"gatewayId": gateway.id, "connections": 3}]});
    assert_eq!(admin.get(&path), (200, here));
    let all = format!("{path}/connections");
    assert_eq!(admin.ask("DELETE", &all, ""), (200, json!({"closed": 3})));
    for client in &mut clients {
        assert_eq!(client.recv_frame().close_code(), Some(3503));
    }
    assert_eq!(admin.ask("DELETE", &all, ""), (200, json!({"closed": 0})));
    assert_eq!(admin.list("").len(), 1);
    for bad in ["%ff", "%", "%0a", &"x".repeat(129)] {
        assert_eq!(admin.get(&format!("/admin/users/{bad}")).0, 400, "{bad}");
    }
}

fn messages_publications_and_broadcasts(engine: &str) {
    let gateway = start(engine, &["--limits-message-bytes", "2000"]);
    let admin = Admin::of(&gateway);
    let content = r#"{ "a" :	[ 1e400 ,"\ud800\/ä€😀"],"a":null}"#;
    let mut clients: Vec<_> = (0..20).map(|n| connect(&gateway, &format!("user{n}")).0).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let (status, sent) = admin.ask(
            "POST",
            "/admin/messages",
            &format!(r#"{{"to":"user{n}","content":{content}}}"#),
        );
        assert_eq!((status, &sent["status"]), (200, &json!("delivered")));
        let text = client.recv_frame();
        let id = sent["messageId"].as_str().unwrap();
        let begin = format!(r#"{{"type":"message","id":"{id}","from":"","to":"user{n}","content":{content},"ts":"#);
        assert!(text.text().starts_with(&begin), "{}", text.text());
    }
    let offline = admin.ask("POST", "/admin/messages", r#"{"to":"nobody","content":1}"#).1;
    assert_eq!(offline["status"], "offline");

    for client in clients.iter_mut().step_by(2) {
        client.send_text(r#"{"type":"subscribe","channel":"room","id":"s"}"#);
        assert_eq!(client.recv_json()["type"], "subscribed");
    }
    let (status, sent) = admin.ask(
        "POST",
        "/admin/publish",
        &format!(r#"{{"channel":"room","content":{content}}}"#),
    );
    assert_eq!((status, sent.as_object().unwrap().len()), (200, 1));
    let id = sent["messageId"].as_str().unwrap();
    for client in clients.iter_mut().step_by(2) {
        let text = client.recv_frame();
        let begin =
            format!(r#"{{"type":"publication","channel":"room","id":"{id}","from":"","content":{content},"ts":"#);
        assert!(text.text().starts_with(&begin), "{}", text.text());
    }

    let (status, sent) = admin.ask("POST", "/admin/broadcast", &format!(r#"{{"content":{content}}}"#));
    assert_eq!((status, &sent["recipients"]), (200, &json!(20)));
    let id = sent["messageId"].as_str().unwrap();
    for client in &mut clients {
        let text = client.recv_frame();
        assert!(text.text().starts_with(&format!(
            r#"{{"type":"broadcast","id":"{id}","content":{content},"ts":"#
        )));
    }

    // Bodies: the limit itself, over it, and in no particular form.
    let body = |len: usize| format!(r#"{{"content":"{}"}}"#, "x".repeat(len - 14));
    assert_eq!(admin.ask("POST", "/admin/broadcast", &body(2000)).0, 200);
    for len in [2001, 100_000, 3_000_000] {
        let (status, error) = admin.ask("POST", "/admin/broadcast", &body(len));
        assert_eq!(
            (status, &error["error"]["code"]),
            (413, &json!("payloadTooLarge")),
            "{len}"
        );
    }
    for bad in ["", "{", "[]", r#"{"content":}"#, r#"{"to":"bob"}"#, "\u{0}"] {
        for path in ["/admin/messages", "/admin/publish", "/admin/broadcast"] {
            let (status, error) = admin.ask("POST", path, bad);
            assert_eq!(
                (status, &error["error"]["code"]),
                (400, &json!("badRequest")),
                "{path} {bad}"
            );
        }
    }
}

/// An end that the client gets notice of, and that bars it from nothing.
fn subscriptions_are_ended(engine: &str) {
    let gateway = start(engine, &[]);
    let admin = Admin::of(&gateway);
    let mut alices: Vec<_> = (0..3).map(|_| gateway.connect("alice")).collect();
    let mut bob = gateway.connect("bob");
    let channel = "room/1 ä";
    let target = format!("/admin/users/alice/channels/{}", url_encode(channel));
    for client in alices.iter_mut().take(2).chain([&mut bob]) {
        client.subscribe("other");
        client.subscribe(channel);
    }
    let ended = json!({"type": "unsubscribed", "channel": channel, "reason": "admin"});
    assert_eq!(admin.ask("DELETE", &target, ""), (200, json!({"closed": 2})));
    for client in alices.iter_mut().take(2) {
        assert_eq!(client.recv_json(), ended);
    }
    assert_eq!(admin.ask("DELETE", &target, ""), (200, json!({"closed": 0})));
    bob.publish(channel, "1");
    bob.recv_publication(channel);
    bob.publish("other", "2");
    for client in alices.iter_mut().take(2).chain([&mut bob]) {
        assert_eq!(client.recv_publication("other")["content"], 2, "that is all there is");
    }
    alices[2].expect_silence();
    // A permitted client may come back.
    alices[0].subscribe(channel);
    bob.publish(channel, "3");
    alices[0].recv_publication(channel);
    gateway.wait_for_log(r#"end the subscriptions of "alice" to "room/1 ä""#);
}

/// Of all shards together, in byte order, each once.
fn channels_are_listed(engine: &str) {
    let gateway = start(
        engine,
        &[
            "--limits-channels-per-connection",
            "1000",
            "--limits-messages-per-second",
            "0",
        ],
    );
    let admin = Admin::of(&gateway);
    let page = |query: &str| {
        let (status, page) = admin.get(&format!("/admin/channels?{query}"));
        assert_eq!(status, 200, "{page}");
        page
    };
    assert_eq!(page(""), json!({"channels": [], "cursor": null}));
    // Users of every shard.
    let mut clients: Vec<_> = (0..6).map(|n| gateway.connect(&format!("user{n}"))).collect();
    let mut expected = BTreeMap::new();
    for (n, client) in clients.iter_mut().enumerate() {
        for channel in 0..60 {
            if channel % (n + 1) == 0 {
                let name = format!("room:{channel}/ä");
                client.subscribe(&name);
                *expected.entry(name).or_insert(0) += 1;
            }
        }
        client.subscribe("other");
    }
    for limit in [1, 7, 59, 60, 1000] {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = page(&format!("prefix=room:&limit={limit}&cursor={cursor}"));
            let channels = page["channels"].as_array().unwrap();
            assert!(channels.len() <= limit);
            for channel in channels {
                all.push((
                    channel["channel"].as_str().unwrap().to_owned(),
                    channel["subscribers"].as_i64().unwrap(),
                ));
            }
            match page["cursor"].as_str() {
                Some(next) => cursor = url_encode(next),
                None => break,
            }
        }
        assert_eq!(
            all,
            expected.clone().into_iter().collect::<Vec<_>>(),
            "pages of {limit}"
        );
    }
    assert_eq!(
        page("prefix=o")["channels"],
        json!([{"channel": "other", "subscribers": 6}])
    );
    assert_eq!(admin.get("/admin/channels?cursor=%0a").0, 400);
}

fn users_are_spoken_for(engine: &str) {
    let gateway = start(engine, &[]);
    let admin = Admin::of(&gateway);
    let mut clients: Vec<_> = (0..6).map(|n| gateway.connect(&format!("user{n}"))).collect();
    let to: Vec<_> = (0..6)
        .map(|n| format!("user{n}"))
        .chain(["nobody".into(), "user1".into()])
        .collect();
    let body = json!({"to": to, "from": "carol", "content": [1]}).to_string();
    let (status, sent) = admin.ask("POST", "/admin/messages", &body);
    assert_eq!(
        (status, sent["statuses"].as_object().unwrap().len(), sent.get("status")),
        (200, 7, None)
    );
    for (n, client) in clients.iter_mut().enumerate() {
        let user = format!("user{n}");
        assert_eq!(sent["statuses"][&user], "delivered");
        let message = client.recv_json();
        assert_eq!((&message["from"], &message["to"]), (&json!("carol"), &json!(user)));
        assert_eq!(message["id"], sent["messageId"]);
        client.subscribe("room");
    }
    assert_eq!(sent["statuses"]["nobody"], "offline");
    let body = json!({"channel": "room", "from": "carol", "content": 2}).to_string();
    assert_eq!(admin.ask("POST", "/admin/publish", &body).0, 200);
    let body = json!({"to": "user0", "from": "", "content": 3}).to_string();
    assert_eq!(admin.ask("POST", "/admin/messages", &body).1["status"], "delivered");
    for client in &mut clients {
        assert_eq!(client.recv_publication("room")["from"], "carol");
    }
    assert_eq!(clients[0].recv_json()["from"], "");
    for client in &mut clients {
        client.expect_silence();
    }
}

fn codes_are_chosen(engine: &str) {
    let gateway = start(engine, &[]);
    let admin = Admin::of(&gateway);
    for (query, code, reason) in [
        ("", 3503, "closed by an administrator"),
        ("?code=3011", 3011, "asked to reconnect"),
        ("?code=4321", 4321, "closed by an administrator"),
    ] {
        let (mut one, id) = connect(&gateway, "alice");
        let mut others = [gateway.connect("bob"), gateway.connect("bob")];
        let answer = admin.ask("DELETE", &format!("/admin/connections/{id}{query}"), "");
        assert_eq!(answer, (204, Value::Null));
        assert_eq!(one.expect_close(code), reason);
        let answer = admin.ask("DELETE", &format!("/admin/users/bob/connections{query}"), "");
        assert_eq!(answer, (200, json!({"closed": 2})));
        for other in &mut others {
            assert_eq!(other.expect_close(code), reason);
        }
    }
    let (mut stays, id) = connect(&gateway, "carol");
    for code in ["1000", "2999", "5000", "x"] {
        for target in [
            format!("/admin/connections/{id}"),
            "/admin/users/carol/connections".into(),
        ] {
            assert_eq!(admin.ask("DELETE", &format!("{target}?code={code}"), "").0, 400);
        }
    }
    stays.expect_silence();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3011\""]),
        3.0
    );
}

fn a_drain_begins(engine: &str) {
    let mut gateway = start(engine, &["--drain-timeout", "1s"]);
    let mut client = connect(&gateway, "alice").0;
    assert_eq!(Admin::of(&gateway).ask("POST", "/admin/drain", ""), (202, Value::Null));
    assert_eq!(client.recv_json()["type"], "shutdown");
    assert_eq!(client.recv_frame().close_code(), Some(3001));
    client.send_close(3001);
    assert_eq!(gateway.wait_for_exit(), 0);
}

/// A walk lists every connection that stays throughout exactly once, whatever the others do
/// meanwhile.
fn pages_while_connections_come_and_go(engine: &str) {
    let gateway = start(engine, &["--limits-connections-per-user", "0"]);
    let admin = Admin::of(&gateway);
    // Every third one stays; the others go and come all the time, on all shards.
    let mut stay = Vec::new();
    let mut go = Vec::new();
    for n in 0..450 {
        let (client, id) = connect(&gateway, &format!("user{}", n / 5));
        if n % 3 == 0 {
            stay.push((client, id))
        } else {
            go.push(client)
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let coming_and_going = scope.spawn(|| {
            let mut times = 0;
            while !over.load(Relaxed) {
                go.swap_remove(fastrand::usize(..go.len()));
                go.push(connect(&gateway, &format!("guest{}", fastrand::u32(..100))).0);
                times += 1;
            }
            times
        });
        walk_and_meet(&admin, &stay);
        over.store(true, Relaxed);
        let times = coming_and_going.join().unwrap();
        assert!(times > 50, "only {times} came and went");
    });
    // The devices of one user, page by page.
    let many: Vec<_> = (0..40).map(|_| connect(&gateway, "many")).collect();
    let mut ids: Vec<Value> = many.iter().map(|(_, id)| json!(id)).collect();
    let mut listed = admin.list("user=many&limit=7");
    ids.sort_by_key(Value::to_string);
    listed.sort_by_key(Value::to_string);
    assert_eq!(listed, ids);
    for bad in ["limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=9.1", "user=%ff"] {
        assert_eq!(admin.get(&format!("/admin/connections?{bad}")).0, 400, "{bad}");
    }
}

fn walk_and_meet(admin: &Admin, stay: &[(common::Client, String)]) {
    for limit in [1, 7, 100, 1000] {
        let mut met: BTreeMap<String, u32> = BTreeMap::new();
        for id in admin.list(&format!("limit={limit}")) {
            *met.entry(id.as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert!(met.values().all(|times| *times == 1), "listed twice with limit {limit}");
        for (_, id) in stay {
            assert!(met.contains_key(id), "{id} was skipped with limit {limit}");
        }
    }
}

fn requests_in_pieces_and_in_a_row(engine: &str) {
    let gateway = start(engine, &[]);
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    // Byte by byte, with a body.
    let mut client = gateway.tcp();
    let post = format!("POST /admin/broadcast HTTP/1.1\r\n{head}Content-Length: 13\r\n\r\n{{\"content\":1}}");
    client.send_in_pieces(post.as_bytes(), &(1..post.len()).collect::<Vec<_>>());
    assert_eq!(client.read_response().status, 200);
    // Chunked, and many at once, with others between: answers come in order.
    let chunked = format!(
        "POST /admin/messages HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n10\r\n{{\"content\":null,\r\nb\r\n\"to\":\"bob\"}}\r\n0\r\n\r\n"
    );
    let one =
        format!("{chunked}GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /admin/nothing HTTP/1.1\r\n{head}\r\n");
    client.send_raw(one.repeat(50).as_bytes());
    for _ in 0..50 {
        assert_eq!([(); 3].map(|()| client.read_response().status), [200, 200, 404]);
    }
    // A peer that has closed its sending side still receives.
    client.send_raw(format!("GET /admin/connections HTTP/1.1\r\n{head}\r\n").as_bytes());
    client.half_close();
    assert_eq!(client.read_response().status, 200);
    // A client that does not wait leaves nothing behind.
    for _ in 0..100 {
        let mut hasty = gateway.tcp();
        hasty.send_raw(post.as_bytes());
        hasty.reset();
    }
    for _ in 0..100 {
        assert_eq!(Admin::of(&gateway).get("/admin/connections").0, 200);
    }
}

#[test]
fn only_who_shows_the_token() {
    let gateway = start("auto", &[]);
    for authorization in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic x\r\n"] {
        for path in [
            "/admin/connections",
            "/admin/nothing",
            "/admin",
            "/admin/",
            "/admin/openapi.json",
        ] {
            let answer = Admin::of(&gateway).raw("GET", path, authorization, "");
            assert_eq!(answer.status, 401, "{path}");
            assert!(answer.field("www-authenticate").unwrap().starts_with("Bearer"));
            let error: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(error["error"]["code"], "unauthorized");
        }
    }
    let twice = format!("Authorization: Bearer {TOKEN}\r\n").repeat(2);
    assert_eq!(
        Admin::of(&gateway).raw("GET", "/admin/connections", &twice, "").status,
        401
    );
    // A body that is too large is not looked at.
    let large = "x".repeat(100_000);
    assert_eq!(
        Admin::of(&gateway).raw("POST", "/admin/broadcast", "", &large).status,
        401
    );
    assert_eq!(gateway.get("/administrator").status, 404);
    assert!(gateway.metric("shardgate_admin_requests_total", &["status=\"401\""]) >= 13.0);
}

#[test]
fn without_a_token_there_is_no_admin_api() {
    let gateway = Gateway::start(&[]);
    for path in ["/admin", "/admin/", "/admin/connections", "/admin/openapi.json"] {
        let fields = format!("Authorization: Bearer {TOKEN}\r\nAccept: text/html\r\n");
        let answer = Admin::of(&gateway).raw("GET", path, &fields, "");
        assert_eq!((answer.status, &*answer.body), (404, "not found\n"), "{path}");
        assert_eq!(gateway.get("/nothing").body, answer.body);
    }
}

#[test]
fn methods_and_unknown_paths() {
    let gateway = start("auto", &[]);
    let admin = Admin::of(&gateway);
    for (method, path, allow) in [
        ("POST", "/admin/connections", "GET, HEAD"),
        ("PUT", "/admin/connections/x", "GET, HEAD, DELETE"),
        ("DELETE", "/admin/users/bob", "GET, HEAD"),
        ("GET", "/admin/users/bob/connections", "DELETE"),
        ("GET", "/admin/drain", "POST"),
        ("OPTIONS", "/admin/messages", "POST"),
    ] {
        let answer = admin.raw(method, path, &admin.authorization(), "");
        assert_eq!(
            (answer.status, answer.field("allow")),
            (405, Some(allow)),
            "{method} {path}"
        );
    }
    for path in [
        "/admin//",
        "/admin/x",
        "/admin/connections/",
        "/admin/connections/x/y",
        "/admin/users",
    ] {
        assert_eq!(admin.get(path).0, 404, "{path}");
    }
    let head = admin.raw("HEAD", "/admin/connections", &admin.authorization(), "");
    let get = admin.raw("GET", "/admin/connections", &admin.authorization(), "");
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.field("content-length"), get.field("content-length"));
    assert_eq!(get.field("content-type"), Some("application/json"));
}

const PAGE: &str = include_str!("../../src/http/admin.html");
/// The request of a browser when a person opens an address.
const BROWSER: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";

/// The page as it is at this address: with links to the others.
fn page_at(path: &str) -> String {
    let up = if path.starts_with("/admin/") { ".." } else { "." };
    let links = format!(
        "<a href=\"{up}/\">Try it</a><a href=\"{up}/dashboard\">Dashboard</a>\
         <a href=\"{up}/admin/\" aria-current=\"page\">Administration</a></nav>"
    );
    PAGE.replacen("</nav>", &links, 1)
}

/// The body is the page, whole and with everything that belongs to it.
#[track_caller]
fn is_page(answer: &common::Response, path: &str, status: u16) {
    assert_eq!(answer.status, status);
    assert!(answer.body == page_at(path), "{path}: {}", answer.body);
    has_head_of_page(answer, path, status);
}

#[track_caller]
fn has_head_of_page(answer: &common::Response, path: &str, status: u16) {
    let challenge = (status == 401).then_some("Bearer realm=\"shardgate\"");
    for (name, expected) in [
        ("content-type", Some("text/html; charset=utf-8")),
        ("content-length", Some(&*page_at(path).len().to_string())),
        ("content-security-policy", Some("frame-ancestors 'none'")),
        ("x-content-type-options", Some("nosniff")),
        ("cache-control", Some("no-store")),
        ("www-authenticate", challenge),
    ] {
        assert_eq!(answer.field(name), expected, "{name}");
    }
}

/// A browser shows no token when it opens an address: it gets the page with the refusal, and
/// programs get words.
#[test]
fn the_page_is_shown_to_browsers_and_to_who_shows_the_token() {
    let gateway = start("auto", &[]);
    let admin = Admin::of(&gateway);
    let wrong = "Authorization: Bearer wrong\r\n";
    for path in ["/admin/", "/admin", "/admin/?x=1"] {
        for credential in ["", wrong] {
            for browser in [BROWSER, "Accept: */*\r\nAccept: application/json, TEXT/HTML;q=0.1\r\n"] {
                is_page(
                    &admin.raw("GET", path, &format!("{credential}{browser}"), ""),
                    path,
                    401,
                );
            }
            for other in ["", "Accept: */*\r\n", "Accept: application/json, text/htmlx\r\n"] {
                is_refused(&admin.raw("GET", path, &format!("{credential}{other}"), ""));
            }
        }
        for accept in ["", BROWSER, "Accept: application/json\r\n"] {
            let fields = format!("{}{accept}", admin.authorization());
            is_page(&admin.raw("GET", path, &fields, ""), path, 200);
        }
    }
    // The API itself is for programs, whatever the client.
    is_refused(&admin.raw("GET", "/admin/connections", BROWSER, ""));
    // It is not made for anybody: nothing of this gateway is in it.
    assert!(!PAGE.contains(TOKEN) && !PAGE.contains(&gateway.id));
    assert!(gateway.metric("shardgate_admin_requests_total", &["status=\"200\""]) >= 9.0);
    assert!(gateway.metric("shardgate_admin_requests_total", &["status=\"401\""]) >= 31.0);
}

/// The refusal in words.
#[track_caller]
fn is_refused(answer: &common::Response) {
    assert_eq!(
        (answer.status, answer.field("content-type")),
        (401, Some("application/json"))
    );
    assert!(answer.field("www-authenticate").unwrap().starts_with("Bearer"));
    let error: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(error["error"]["code"], "unauthorized");
}

#[test]
fn the_page_is_only_looked_at() {
    let gateway = start("auto", &[]);
    let admin = Admin::of(&gateway);
    let authorized = format!("{}{BROWSER}", admin.authorization());
    for (fields, status) in [(BROWSER, 401), (&authorized, 200)] {
        let head = admin.raw("HEAD", "/admin/", fields, "");
        assert_eq!((head.status, &*head.body), (status, ""));
        has_head_of_page(&head, "/admin/", status);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        for path in ["/admin", "/admin/"] {
            let answer = admin.raw(method, path, &authorized, "");
            assert_eq!(
                (answer.status, answer.field("allow")),
                (405, Some("GET, HEAD")),
                "{method}"
            );
            let error: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(error["error"]["code"], "methodNotAllowed");
            is_refused(&admin.raw(method, path, BROWSER, ""));
        }
    }
    // The body is not read, and the connection goes on after a refusal of a request without one.
    let mut client = gateway.tcp();
    let look = format!("GET /admin/ HTTP/1.1\r\nHost: localhost\r\n{BROWSER}\r\n");
    client.send_raw(look.repeat(20).as_bytes());
    for _ in 0..20 {
        is_page(&client.read_response(), "/admin/", 401);
    }
    let large = "x".repeat(100_000);
    assert_eq!(admin.raw("POST", "/admin/", &authorized, &large).status, 405);
}
