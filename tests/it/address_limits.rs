//! One address may have so many open handshakes and so many connects per second; other addresses do
//! not notice. Listed proxies name their clients, and no other peer may.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::authority::Secure;
use common::client::Client;
use common::{Gateway, eventually};

on_both_engines! {
    open_handshakes, connects_per_second, a_handshake_is_open_until_the_user_is_known, the_client_of_a_proxy_by_its_header, the_client_of_a_proxy_by_a_line,
    the_client_of_a_proxy_by_forwarded_for, nobody_else_is_believed, a_header_in_any_pieces, garbage_for_a_header_closes,
    proxies_behind_proxies, kept_alive_connections_of_a_proxy, limits_apply_at_sighup, a_header_before_tls,
    a_header_of_anybody_else_is_no_tls, silent_tls_clients_count, proxies_apply_at_sighup,
}

/// One shard, as each counts for itself. 127.0.0.1, from which tests look at the gateway, is a
/// proxy and so not limited.
const ALL: [&str; 5] = [
    "--shards",
    "1",
    "--insecure",
    "--proxies",
    "127.0.0.1,127.0.0.4,10.0.0.0/8",
];

fn start(engine: &str, args: &[&str]) -> Gateway {
    Gateway::start(&[&["--engine", engine], &ALL[..], args].concat())
}

fn start_tls(engine: &str, args: &[&str]) -> Secure {
    Secure::start(engine, &[&ALL[..], args].concat())
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("shardgate_handshakes_refused_total", &[&format!("reason=\"{reason}\"")])
}

const ONE: [u8; 4] = [127, 0, 0, 2];
const OTHER: [u8; 4] = [127, 0, 0, 3];
const PROXY: [u8; 4] = [127, 0, 0, 4];

/// A handshake that waits for `auth`, so that it stays open.
fn waiting(gateway: &Gateway, source: [u8; 4]) -> Client {
    let mut client = Client::connect_from(source, gateway.addr);
    client.send_upgrade("/ws", "");
    assert_eq!(client.read_head().status, 101);
    client
}

/// The fate of a handshake with this claim about its client.
fn status(gateway: &Gateway, source: [u8; 4], extra_fields: &str) -> (u16, Client) {
    let mut client = Client::connect_from(source, gateway.addr);
    client.send_upgrade("/ws", extra_fields);
    let status = client.read_head().status;
    (status, client)
}

fn closed_at_once(gateway: &Gateway, source: [u8; 4]) {
    Client::connect_from(source, gateway.addr).expect_end();
}

fn header(source: [u8; 4]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(source);
    bytes.extend([127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90]);
    bytes
}

fn open_handshakes(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "3"]);
    let mut open: Vec<Client> = (0..3).map(|_| waiting(&gateway, ONE)).collect();
    for _ in 0..5 {
        closed_at_once(&gateway, ONE);
    }
    assert_eq!(refused(&gateway, "address_limit"), 5.0);
    // Others are served, and so is this one as soon as one of its own is done, well or not.
    let mut other = waiting(&gateway, OTHER);
    other.send_text(r#"{"type":"auth","userId":"other"}"#);
    assert_eq!(other.recv_json()["type"], "welcome");
    open[0].send_text(r#"{"type":"auth","userId":"one"}"#);
    assert_eq!(open[0].recv_json()["type"], "welcome");
    let _fourth = waiting(&gateway, ONE);
    closed_at_once(&gateway, ONE);
    open.pop().unwrap().reset();
    eventually("the one that went is not counted any more", || {
        let mut client = Client::connect_from(ONE, gateway.addr);
        client.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        !client.is_at_end()
    });
}

fn connects_per_second(engine: &str) {
    let gateway = start(engine, &["--limits-connects-per-address", "1"]);
    let mut alice = Client::connect_from(ONE, gateway.addr);
    alice.send_upgrade("/ws?user=alice", "");
    assert_eq!(alice.read_head().status, 101);
    // Even on a slow machine, some of so many come in the same second.
    eventually("one is refused", || {
        drop(Client::connect_from(ONE, gateway.addr));
        refused(&gateway, "address_limit") >= 1.0
    });
    // Accepted connections are not concerned.
    assert_eq!(alice.recv_json()["type"], "welcome");
    // And its time comes again.
    eventually("let in again", || {
        let mut client = Client::connect_from(ONE, gateway.addr);
        client.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        !client.is_at_end()
    });
}

fn a_handshake_is_open_until_the_user_is_known(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    for n in 0..20 {
        let mut client = Client::connect_from(ONE, gateway.addr);
        client.send_upgrade(&format!("/ws?user=user{n}"), "");
        assert_eq!(client.read_head().status, 101);
        assert_eq!(client.recv_json()["type"], "welcome");
        std::mem::forget(client);
    }
    // A head that is half-way in is open.
    let mut half = Client::connect_from(ONE, gateway.addr);
    half.send_raw(b"GET /ws");
    closed_at_once(&gateway, ONE);
    half.send_raw(b"x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(half.read_response().status, 404);
    // So is HTTP that is kept alive.
    closed_at_once(&gateway, ONE);
}

fn the_client_of_a_proxy_by_its_header(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    let connect = |client: [u8; 4]| {
        let mut connection = Client::connect_from(PROXY, gateway.addr);
        connection.send_raw(&header(client));
        connection
    };
    let mut one = connect(ONE);
    one.send_upgrade("/ws", "");
    assert_eq!(one.read_head().status, 101);
    connect(ONE).expect_end();
    let mut other = connect(OTHER);
    // Its bytes right behind the header, in one piece.
    other.send_upgrade("/ws", "");
    assert_eq!(other.read_head().status, 101);
    closed_at_once(&gateway, OTHER);
    assert_eq!(refused(&gateway, "address_limit"), 2.0);
    // The proxy itself is not limited. Its own requests may come with a header or without.
    for _ in 0..5 {
        let mut probe = Client::connect_from(PROXY, gateway.addr);
        probe.send_raw(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(probe.read_response().status, 200);
        std::mem::forget(probe);
        std::mem::forget(waiting(&gateway, PROXY));
    }
}

/// The older version of the header, which is a line of text.
fn the_client_of_a_proxy_by_a_line(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    let connect = |line: &str| {
        let mut connection = Client::connect_from(PROXY, gateway.addr);
        connection.send_raw(format!("PROXY {line}\r\n").as_bytes());
        connection
    };
    for line in ["TCP4 192.0.2.1 127.0.0.1 4711 80", "TCP6 2001:db8::1 ::1 4711 80"] {
        let mut first = connect(line);
        first.send_upgrade("/ws", "");
        assert_eq!(first.read_head().status, 101);
        connect(line).expect_end();
        std::mem::forget(first);
    }
    assert_eq!(refused(&gateway, "address_limit"), 2.0);
    for _ in 0..3 {
        let mut probe = connect("UNKNOWN");
        probe.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(probe.read_response().status, 200);
        std::mem::forget(probe);
    }
    connect("TCP4 nobody 127.0.0.1 4711 80").expect_end();
    // Cut at every byte. Bytes that only begin like a header are the client's, even if the cut is
    // where that is not yet decided.
    let gateway = start(engine, &[]);
    let bytes = b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 80\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for cut in 1..bytes.len() {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_in_pieces(bytes, &[cut]);
        assert_eq!(client.read_response().status, 200, "cut at {cut}");
        client.reset();
    }
    let bytes = b"PROPFIND /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for cut in 1..8 {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_in_pieces(bytes, &[cut]);
        assert_eq!(client.read_response().status, 405, "cut at {cut}");
    }
}

fn the_client_of_a_proxy_by_forwarded_for(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    let (first, _one) = status(&gateway, PROXY, "X-Forwarded-For: 192.0.2.1\r\n");
    assert_eq!(first, 101);
    // The client's own addition in front does not help it.
    let mut second = Client::connect_from(PROXY, gateway.addr);
    second.send_upgrade(
        "/ws",
        "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 203.0.113.5, 192.0.2.1\r\n",
    );
    let answer = second.read_response();
    assert_eq!(answer.status, 429, "{answer:?}");
    let seconds: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&seconds));
    second.expect_end();
    let (other, _other) = status(&gateway, PROXY, "X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\n");
    assert_eq!(other, 101);
    // IPv6 counts by /64.
    let (six, _six) = status(&gateway, PROXY, "X-Forwarded-For: 2001:db8::1\r\n");
    let (same, _) = status(&gateway, PROXY, "X-Forwarded-For: 2001:db8::2\r\n");
    let (next, _next) = status(&gateway, PROXY, "X-Forwarded-For: 2001:db8:0:1::1\r\n");
    assert_eq!((six, same, next), (101, 429, 101));
    // An empty element is none.
    let (skipped, _) = status(&gateway, PROXY, "X-Forwarded-For: 192.0.2.1, 10.0.0.4,\r\n");
    assert_eq!(skipped, 429);
    assert_eq!(refused(&gateway, "address_limit"), 3.0);
    // The refusals lost no permit.
    assert_eq!(gateway.stats()["connections"], 4);
}

fn nobody_else_is_believed(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    let (first, _one) = status(&gateway, ONE, "X-Forwarded-For: 192.0.2.1\r\n");
    assert_eq!(first, 101);
    closed_at_once(&gateway, ONE);
    let mut other = Client::connect_from(OTHER, gateway.addr);
    other.send_raw(&header(ONE));
    other.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(other.read_response().status, 400);
    assert_eq!(refused(&gateway, "malformed"), 1.0);
}

fn a_header_in_any_pieces(engine: &str) {
    let gateway = start(engine, &[]);
    let mut bytes = header([192, 0, 2, 1]);
    bytes.extend_from_slice(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    for cut in 1..bytes.len() {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_in_pieces(&bytes, &[cut]);
        assert_eq!(client.read_response().status, 200, "cut at {cut}");
        client.expect_end();
    }
    let all: Vec<usize> = (1..bytes.len()).collect();
    let mut client = Client::connect_from(PROXY, gateway.addr);
    client.send_in_pieces(&bytes, &all);
    assert_eq!(client.read_response().status, 200);
}

fn garbage_for_a_header_closes(engine: &str) {
    let gateway = start(engine, &[]);
    let garbage: [&[u8]; 5] = [
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x41\0\xd8",
    ];
    for bytes in garbage {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_raw(bytes);
        client.expect_end();
    }
    assert_eq!(refused(&gateway, "malformed"), 5.0);
    // Half a header is waited for no longer than half a request head.
    let gateway = start(engine, &["--limits-handshake-timeout", "100ms"]);
    let mut client = Client::connect_from(PROXY, gateway.addr);
    client.send_raw(&header(ONE)[..20]);
    client.expect_end();
}

fn proxies_behind_proxies(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    // A balancer's header names an inner proxy, which names its client.
    let connect = |fields: &str| {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_raw(&header([10, 0, 0, 1]));
        client.send_upgrade("/ws", fields);
        let status = client.read_head().status;
        (status, client)
    };
    let (first, _one) = connect("X-Forwarded-For: 192.0.2.1, 10.0.0.2\r\n");
    let (again, _) = connect("X-Forwarded-For: 192.0.2.1\r\n");
    let (other, _other) = connect("X-Forwarded-For: 192.0.2.2\r\n");
    assert_eq!((first, again, other), (101, 429, 101));
}

fn kept_alive_connections_of_a_proxy(engine: &str) {
    let gateway = start(engine, &["--limits-handshakes-per-address", "1"]);
    let (first, _one) = status(&gateway, PROXY, "X-Forwarded-For: 192.0.2.1\r\n");
    assert_eq!(first, 101);
    // The proxy uses one connection for several clients. Each handshake names its client.
    for (client, expected) in [("192.0.2.1", 429), ("192.0.2.2", 101)] {
        let mut connection = Client::connect_from(PROXY, gateway.addr);
        connection.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n");
        assert_eq!(connection.read_response().status, 200);
        connection.send_upgrade("/ws", &format!("X-Forwarded-For: {client}\r\n"));
        assert_eq!(connection.read_head().status, expected);
    }
}

fn limits_apply_at_sighup(engine: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "").unwrap();
    let gateway = start(engine, &["--config", file.path().to_str().unwrap()]);
    let _open: Vec<Client> = (0..5).map(|_| waiting(&gateway, ONE)).collect();
    std::fs::write(file.path(), "limits.handshakes_per_address = 1\n").unwrap();
    let lines = gateway.log_lines();
    gateway.signal(libc::SIGHUP);
    gateway.wait_for_log_after(lines, "configuration");
    // Connections from before the limit are not counted.
    let mut counted = Vec::new();
    eventually("the limit applies", || {
        let mut client = Client::connect_from(ONE, gateway.addr);
        client.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let refused = client.is_at_end();
        counted.push(client);
        refused
    });
}

/// As HAProxy does it with `send-proxy-v2`: the header in the clear, TLS behind it.
fn a_header_before_tls(engine: &str) {
    let it = start_tls(engine, &["--limits-handshakes-per-address", "1"]);
    let connect = |client: [u8; 4]| {
        let mut connection = Client::connect_from(PROXY, it.gateway.addr);
        connection.send_raw(&header(client));
        connection
    };
    let mut one = connect(ONE).over_tls(it.authority.client());
    one.send_upgrade("/ws", "");
    assert_eq!(one.read_head().status, 101);
    // It waits for `auth`, so the next one from there is one too many, before its TLS has cost
    // anything.
    connect(ONE).expect_end();
    let mut other = connect(OTHER).over_tls(it.authority.client());
    other.send_upgrade("/ws?user=other", "");
    assert_eq!(other.read_head().status, 101);
    assert_eq!(other.recv_json()["type"], "welcome");
    assert_eq!(it.refused("address_limit"), 1.0);
    // Header and ClientHello in one packet, and cut anywhere.
    let ip = it.gateway.addr.ip();
    for cut in 0..60 {
        let mut tls = rustls::ClientConnection::new(it.authority.client(), ip.into()).unwrap();
        let mut flight = header([192, 0, 2, 1 + cut]);
        tls.write_tls(&mut flight).unwrap();
        let mut client = Client::connect_from(PROXY, it.gateway.addr);
        match cut {
            0 => client.send_raw(&flight),
            cut => client.send_in_pieces(&flight, &[usize::from(cut)]),
        }
        while tls.is_handshaking() {
            tls.complete_io(&mut client.stream).unwrap();
        }
        client.tls = Some(Box::new(tls));
        client.send_upgrade("/ws", "");
        assert_eq!(client.read_head().status, 101, "cut at {cut}");
    }
    // A proxy may leave it out. A proxy that speaks for itself declares that.
    for header in [&b""[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut probe = Client::connect_from(PROXY, it.gateway.addr);
        probe.send_raw(header);
        let mut probe = probe.over_tls(it.authority.client());
        probe.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(probe.read_response().status, 200);
    }
    // Behind a header, plain text is no better than without.
    let mut plain = connect([192, 0, 2, 200]);
    plain.send_raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(plain.read_response().status, 400);
    assert_eq!(it.refused("plain_text"), 1.0);
    assert_eq!(it.refused("tls"), 0.0);
}

fn a_header_of_anybody_else_is_no_tls(engine: &str) {
    let it = start_tls(engine, &[]);
    let mut client = Client::connect_from(ONE, it.gateway.addr);
    client.send_raw(&header([192, 0, 2, 1]));
    assert!(client.try_over_tls(it.authority.client()).is_err());
    eventually("it is counted", || it.refused("tls") == 1.0);
    // A second header is the client's own, and so is one inside TLS.
    let mut twice = Client::connect_from(PROXY, it.gateway.addr);
    twice.send_raw(&[header(ONE), header(OTHER)].concat());
    assert!(twice.try_over_tls(it.authority.client()).is_err());
    eventually("it is counted", || it.refused("tls") == 2.0);
    let mut inside = Client::connect_from(PROXY, it.gateway.addr).over_tls(it.authority.client());
    inside.send_raw(&header(ONE));
    inside.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(inside.read_response().status, 400);
}

/// A handshake is open from the accept on, whether or not a byte of TLS came.
fn silent_tls_clients_count(engine: &str) {
    let it = start_tls(engine, &["--limits-handshakes-per-address", "2"]);
    let silent = Client::connect_from(ONE, it.gateway.addr);
    let mut half = Client::connect_from(ONE, it.gateway.addr);
    half.send_raw(b"\x16\x03\x01");
    closed_at_once(&it.gateway, ONE);
    drop(silent);
    eventually("the one that went is not counted any more", || {
        Client::connect_from(ONE, it.gateway.addr)
            .try_over_tls(it.authority.client())
            .is_ok()
    });
}

fn proxies_apply_at_sighup(engine: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "").unwrap();
    let config = file.path().to_str().unwrap();
    let gateway = Gateway::start(&["--engine", engine, "--shards", "1", "--insecure", "--config", config]);
    let probe = |gateway: &Gateway| {
        let mut client = Client::connect_from(PROXY, gateway.addr);
        client.send_raw(&header(ONE));
        client.send_carelessly(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.read_response().status
    };
    assert_eq!(probe(&gateway), 400);
    std::fs::write(file.path(), "proxies = [\"127.0.0.4\"]\n").unwrap();
    let lines = gateway.log_lines();
    gateway.signal(libc::SIGHUP);
    gateway.wait_for_log_after(lines, "configuration");
    eventually("the proxy is believed", || probe(&gateway) == 200);
}
