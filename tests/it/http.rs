//! HTTP on the gateway's port: every path, every method, kept-alive, pipelined, malformed,
//! half-closed.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::upgrade_head;
use common::{Client, Gateway, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

on_both_engines! {
    health, unknown_paths_get_404, other_methods_get_405, head_has_no_body, keep_alive, pipelining, a_crowd_wants_pages, malformed_requests,
    a_place_is_not_lost, requests_with_a_body, a_half_closed_client_gets_its_answer, stats, metrics_have_their_names, metrics_move, the_page,
    many_requests_at_once, the_host_is_named_once, too_many_fields_get_431, a_target_may_name_the_host,
}

const PATHS: [&str; 6] = ["/health", "/readyz", "/livez", "/stats", "/metrics", "/"];

fn health(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for path in ["/health", "/readyz", "/livez", "/health?x=1", "/livez?"] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.body.trim()), (200, "OK"), "{path}");
    }
}

fn unknown_paths_get_404(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for path in [
        "/nothing",
        "/Health",
        "/health/",
        "//health",
        "/ws/",
        "/wsx",
        "/echo",
        "/admin",
        "/admin/connections",
        "/admin/drain",
        "/%68ealth",
        "/../health",
        "/debug",
        "/favicon.ico",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(gateway.request(method, path).status, 404, "{method} {path}");
        }
    }
}

fn other_methods_get_405(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for path in PATHS {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let answer = gateway.request(method, path);
            assert_eq!(answer.status, 405, "{method} {path}");
            let allow: BTreeSet<&str> = answer.field("allow").unwrap().split(',').map(str::trim).collect();
            assert_eq!(allow, BTreeSet::from(["GET", "HEAD"]), "{method} {path}");
        }
    }
}

fn head_has_no_body(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for path in PATHS {
        let mut client = gateway.tcp();
        client.send_raw(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let answer = client.read_head();
        assert_eq!(answer.status, 200, "{path}");
        assert_ne!(answer.field("content-length"), Some("0"), "{path}");
        // The next bytes are the next answer, not a body.
        client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(client.read_response().body.trim(), "OK", "{path}");
        client.expect_end();
    }
    assert_eq!(gateway.request("HEAD", "/nothing").status, 404);
}

fn keep_alive(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.tcp();
    for n in 0..50 {
        let path = PATHS[n % PATHS.len()];
        client.send_raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert_eq!(client.read_response().status, 200);
        client.send_raw(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.read_response().status, 404);
    }
    client.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.expect_end();
    // HTTP/1.0 ends after one answer, unless it asks for more.
    let mut client = gateway.tcp();
    client.send_raw(b"GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.expect_end();
    let mut client = gateway.tcp();
    for _ in 0..2 {
        client.send_raw(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.read_response().status, 200);
    }
}

fn pipelining(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for count in [2, 15, 16, 17, 100, 500] {
        let mut requests = String::new();
        for n in 0..count {
            requests += match n % 3 {
                0 => "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
                1 => "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
                _ => "POST /stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
            };
        }
        let mut client = gateway.tcp();
        client.send_raw(requests.as_bytes());
        for n in 0..count {
            let expected = [200, 404, 405][n % 3];
            assert_eq!(client.read_response().status, expected, "{n} of {count}");
        }
    }
    // Split at odd places.
    let requests = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5);
    let cuts: Vec<usize> = (1..requests.len()).step_by(7).collect();
    let mut client = gateway.tcp();
    client.send_in_pieces(requests.as_bytes(), &cuts);
    for _ in 0..5 {
        assert_eq!(client.read_response().status, 200);
    }
}

/// Pages by the hundred wait for their turns, many at a time. None is lost, and messages pass
/// meanwhile.
fn a_crowd_wants_pages(engine: &str) {
    const CROWD: usize = 50;
    const PAGES: usize = 60;
    let gateway = Gateway::start(&["--engine", engine, "--shards", "1"]);
    let (mut alice, _bob) = (gateway.connect("alice"), gateway.connect("bob"));
    let requests = "GET /dashboard HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(PAGES);
    let mut crowd: Vec<Client> = (0..CROWD).map(|_| gateway.tcp()).collect();
    for client in &mut crowd {
        client.send_raw(requests.as_bytes());
    }
    alice.send_message_expecting("bob", "1", "delivered");
    let sent = gateway.metric("shardgate_bytes_sent_total", &[]);
    assert!(
        sent < (CROWD * PAGES * 30_000) as f64,
        "{sent} bytes were sent before the message"
    );
    // And none is lost.
    for client in &mut crowd {
        for _ in 0..PAGES {
            assert_eq!(client.read_response().status, 200);
        }
    }
}

fn malformed_requests(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let many_fields = format!("GET /livez HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    for request in [
        "GET /livez\r\n\r\n",
        "GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n",
        "GET /li vez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHo st: h\r\n\r\n",
        "GET /livez HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /livez HTTP/1.1\r\nX: \u{1}\r\n\r\n",
        "G\u{0}T /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        &many_fields,
    ] {
        for before in ["", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
            let mut client = gateway.tcp();
            client.send_raw(format!("{before}{request}").as_bytes());
            if !before.is_empty() {
                assert_eq!(client.read_response().status, 200, "{request:?}");
            }
            let answer = client.read_response();
            assert!([400, 431, 505].contains(&answer.status), "{request:?}: {answer:?}");
            client.expect_end();
        }
    }
    assert_eq!(gateway.get("/livez").status, 200);
}

fn requests_with_a_body(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    // The answer comes. Whether a connection with an unread body goes on is up to the server.
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Content-Length: 0\r\n\r\n",
    ] {
        let mut client = gateway.tcp();
        client.send_raw(format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{body}").as_bytes());
        assert_eq!(client.read_response().status, 200, "{body:?}");
    }
    // A large one is not kept.
    let mut client = gateway.tcp();
    client.send_raw(b"POST /stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n");
    client.send_raw(&[b'x'; 10_000]);
    assert_eq!(client.read_response().status, 405);
    for _ in 0..300 {
        client.send_carelessly(&[b'x'; 10_000]);
    }
    assert_eq!(gateway.get("/livez").status, 200);
}

fn a_half_closed_client_gets_its_answer(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for path in PATHS {
        for fields in ["", "Connection: close\r\n"] {
            let mut client = gateway.tcp();
            client.send_raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes());
            client.half_close();
            assert_eq!(client.read_response().status, 200, "{path}");
            client.expect_end();
        }
    }
    let mut client = gateway.tcp();
    client.send_raw("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(40).as_bytes());
    client.half_close();
    for _ in 0..40 {
        assert_eq!(client.read_response().status, 200);
    }
    client.expect_end();
    // And one refused.
    let mut client = gateway.tcp();
    client.send_upgrade("/ws?user=", "");
    client.half_close();
    assert_eq!(client.read_response().status, 400);
    client.expect_end();
}

/// Requests and then a handshake in one packet, more answers than an outbox holds: however it ends,
/// no permit is lost.
fn a_place_is_not_lost(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--limits-outbox-bytes",
        "4096",
        "--limits-connections",
        "3",
    ]);
    for _ in 0..6 {
        let mut client = gateway.tcp();
        let mut bytes = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(12);
        bytes.extend_from_slice(upgrade_head("/ws?user=alice", "").as_bytes());
        client.send_raw(&bytes);
        for _ in 0..12 {
            assert_eq!(client.read_response().status, 200);
        }
        assert_eq!(client.read_head().status, 101);
        client.reset();
        gateway.wait_until_empty();
    }
    assert_eq!(gateway.get("/readyz").status, 200);
    gateway.connect("bob").close();
}

/// RFC 9112, 3.2: on every path, with the first request of a connection and with later ones, on
/// either listener.
fn the_host_is_named_once(engine: &str) {
    let admin = ["--admin-listen", "127.0.0.1:0"];
    let gateway = Gateway::start(&[&["--engine", engine], &admin[..]].concat());
    let line = gateway.wait_for_log("administration on ");
    let admin = line.rsplit_once("administration on ").unwrap().1.parse().unwrap();
    for (path, addr) in [
        ("/livez", gateway.addr),
        ("/nothing", gateway.addr),
        ("/", gateway.addr),
        ("/metrics", admin),
    ] {
        for before in ["", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
            for hosts in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: h/x\r\n"] {
                let mut client = Client::connect(addr);
                client.send_raw(format!("{before}GET {path} HTTP/1.1\r\n{hosts}\r\n").as_bytes());
                if !before.is_empty() {
                    assert_eq!(client.read_response().status, 200);
                }
                let answer = client.read_response();
                assert_eq!(answer.status, 400, "{path} {hosts:?}: {answer:?}");
            }
        }
    }
    // No name at all is no name of this machine.
    let anywhere = Gateway::start(&["--engine", engine, "--insecure"]);
    let (none, empty) = ("GET /livez HTTP/1.0\r\n\r\n", "GET /livez HTTP/1.1\r\nHost:\r\n\r\n");
    for (gateway, request, status) in [
        (&gateway, none, 200),
        (&gateway, empty, 421),
        (&anywhere, none, 200),
        (&anywhere, empty, 200),
    ] {
        let mut client = gateway.tcp();
        client.send_raw(request.as_bytes());
        assert_eq!(client.read_response().status, status, "{request:?}");
    }
}

/// RFC 6585, 5.
fn too_many_fields_get_431(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for before in ["", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        for (fields, status) in [(99, 200), (100, 431)] {
            let mut client = gateway.tcp();
            let fields = "X: y\r\n".repeat(fields);
            client.send_raw(format!("{before}GET /livez HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes());
            if !before.is_empty() {
                assert_eq!(client.read_response().status, 200);
            }
            assert_eq!(client.read_response().status, status);
        }
    }
}

/// RFC 9112, 3.2.2: a server takes the absolute form, whatever it is for.
fn a_target_may_name_the_host(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for before in ["", "GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut client = gateway.tcp();
        client.send_raw(before.as_bytes());
        if !before.is_empty() {
            assert_eq!(client.read_response().status, 200);
        }
        client.send_raw(
            upgrade_head("/ws?user=alice", "")
                .replacen("/ws", "ws://localhost/ws", 1)
                .as_bytes(),
        );
        assert_eq!(client.read_head().status, 101);
        assert_eq!(client.recv_json()["type"], "welcome");
    }
}

fn stats(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--shards", "3", "--gateway-id", "g1"]);
    let stats = gateway.stats();
    assert_eq!(stats["gatewayId"], "g1");
    assert_eq!((&stats["connections"], &stats["users"]), (&json!(0), &json!(0)));
    assert_eq!((&stats["messagesIn"], &stats["messagesOut"]), (&json!(0), &json!(0)));
    assert_eq!(stats["lastHealthCheck"], Value::Null, "nobody asked yet");
    assert_eq!(stats["draining"], false);
    assert!(stats["uptimeSeconds"].is_u64());
    let shards = stats["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3);
    for (n, shard) in shards.iter().enumerate() {
        assert_eq!(shard["shard"], n);
        assert_eq!(shard["cpu"], Value::Null, "not pinned");
    }
    assert_eq!(gateway.get("/stats").field("content-type"), Some("application/json"));

    gateway.get("/health");
    let checked = gateway.stats()["lastHealthCheck"].as_u64().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64;
    assert!(
        checked <= now && now - checked < 600_000,
        "{checked} is Unix milliseconds"
    );

    let mut clients: Vec<_> = (0..9).map(|n| gateway.connect(&format!("user{}", n / 3))).collect();
    clients[0].send_message_expecting("user1", "1", "delivered");
    clients[0].send_message_expecting("nobody", "1", "offline");
    let stats = gateway.stats();
    assert_eq!((&stats["connections"], &stats["users"]), (&json!(9), &json!(3)));
    // One frame in, to three devices, and one for an absent user.
    assert_eq!((&stats["messagesIn"], &stats["messagesOut"]), (&json!(2), &json!(3)));
    let sum = |key: &str| -> u64 {
        stats["shards"]
            .as_array()
            .unwrap()
            .iter()
            .map(|shard| shard[key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("connections"), 9);
    assert_eq!((sum("messagesIn"), sum("messagesOut")), (2, 3));
    for client in clients {
        client.close();
    }
    gateway.wait_until_empty();
}

fn metrics_have_their_names(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let answer = gateway.get("/metrics");
    assert!(
        answer.field("content-type").unwrap().starts_with("text/plain"),
        "{:?}",
        answer.fields
    );
    let text = answer.body;
    let mut types = std::collections::BTreeMap::new();
    let mut sampled = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (what, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(what.to_owned()), "{what} twice");
            let name = what.split('{').next().unwrap();
            // Ours, and the two that every Prometheus client calls the same.
            assert!(
                name.starts_with("shardgate_") || ["process_resident_memory_bytes", "process_open_fds"].contains(&name),
                "{line}"
            );
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|family| types.get(*family).is_some_and(|kind| kind == "histogram"));
            let family = family.unwrap_or(name);
            assert!(types.contains_key(family), "no TYPE before {line}");
            sampled.insert(family.to_owned());
        }
    }
    for (name, kind) in [
        ("shardgate_connections", "gauge"),
        ("shardgate_users", "gauge"),
        ("shardgate_connections_accepted_total", "counter"),
        ("shardgate_connections_closed_total", "counter"),
        ("shardgate_handshakes_refused_total", "counter"),
        ("shardgate_messages_received_total", "counter"),
        ("shardgate_messages_sent_total", "counter"),
        ("shardgate_bytes_received_total", "counter"),
        ("shardgate_bytes_sent_total", "counter"),
        ("shardgate_acks_total", "counter"),
        ("shardgate_dropped_total", "counter"),
        ("shardgate_lane_depth", "gauge"),
        ("shardgate_loop_turn_seconds", "histogram"),
        ("shardgate_delivery_seconds", "histogram"),
        ("shardgate_redis_commands_total", "counter"),
        ("shardgate_draining", "gauge"),
    ] {
        assert_eq!(types.get(name).map(String::as_str), Some(kind), "{name}");
        assert!(sampled.contains(name), "{name} has no sample");
    }
    for labelled in [
        "shardgate_lane_depth{from=\"0\",to=\"1\"}",
        "shardgate_delivery_seconds_count{shard=\"0\",path=\"local\"}",
        "shardgate_delivery_seconds_count{shard=\"0\",path=\"shard\"}",
        "shardgate_delivery_seconds_count{shard=\"0\",path=\"gateway\"}",
    ] {
        assert!(series.contains(labelled), "{labelled}");
    }
}

fn metrics_move(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut alice = gateway.connect("alice");
    let bobs: Vec<_> = (0..8).map(|n| gateway.connect(&format!("bob{n}"))).collect();
    for n in 0..8 {
        alice.send_message_expecting(&format!("bob{n}"), "1", "delivered");
    }
    alice.send_message_expecting("nobody", "1", "offline");
    alice.send_text("nonsense");
    alice.expect_error("badRequest");
    assert_eq!(gateway.metric("shardgate_connections", &[]), 9.0);
    assert_eq!(gateway.metric("shardgate_users", &[]), 9.0);
    assert_eq!(gateway.metric("shardgate_connections_accepted_total", &[]), 9.0);
    assert_eq!(
        gateway.metric("shardgate_messages_received_total", &["type=\"message\""]),
        9.0
    );
    assert_eq!(
        gateway.metric("shardgate_messages_sent_total", &["type=\"message\""]),
        8.0
    );
    assert_eq!(
        gateway.metric("shardgate_messages_sent_total", &["type=\"welcome\""]),
        9.0
    );
    assert_eq!(gateway.metric("shardgate_acks_total", &["status=\"delivered\""]), 8.0);
    assert_eq!(gateway.metric("shardgate_acks_total", &["status=\"offline\""]), 1.0);
    // Every message is timed: on one shard or over a lane.
    eventually("deliveries are counted", || {
        gateway.metric("shardgate_delivery_seconds_count", &[]) >= 8.0
    });
    assert!(gateway.metric("shardgate_bytes_received_total", &[]) > 1000.0);
    assert!(gateway.metric("shardgate_bytes_sent_total", &[]) > 1000.0);
    assert!(gateway.metric("shardgate_loop_turn_seconds_count", &[]) > 0.0);
    assert_eq!(gateway.metric("shardgate_draining", &[]), 0.0);
    assert_eq!(gateway.metric("shardgate_lane_depth", &[]), 0.0, "nothing is under way");
    assert_eq!(gateway.try_upgrade("/ws?user=", "").status, 400);
    assert_eq!(gateway.metric("shardgate_handshakes_refused_total", &[]), 1.0);
    for bob in bobs {
        bob.close();
    }
    alice.reset();
    gateway.wait_until_empty();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"1000\""]),
        8.0
    );
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"1006\""]),
        1.0
    );
}

fn the_page(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let page = gateway.get("/");
    assert_eq!(page.status, 200);
    assert!(page.field("content-type").unwrap().starts_with("text/html"));
    assert!(page.body.contains("<script"), "a page to try the gateway");
    for elsewhere in ["src=\"http", "href=\"http", "@import", "//cdn"] {
        assert!(
            !page.body.contains(elsewhere),
            "nothing is loaded from elsewhere: {elsewhere}"
        );
    }
}

fn many_requests_at_once(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut clients: Vec<_> = (0..100).map(|_| gateway.tcp()).collect();
    for client in &mut clients {
        client.send_raw(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    for client in &mut clients {
        let answer = client.read_response();
        assert_eq!(
            serde_json::from_str::<Value>(&answer.body).unwrap()["connections"],
            0,
            "HTTP is no connection"
        );
    }
}
