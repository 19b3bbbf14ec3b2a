//! TLS on the public listener: the same gateway, sealed.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::authority::{Authority, Secure, text};
use common::client::{CLOSE, Client, PING, frame_bytes, text_bytes, upgrade_head};
use common::gateway::run_command;
use common::{Gateway, eventually};
use libc::{SIGHUP, SIGTERM};
use rustls::client::Resumption;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use serde_json::json;

on_both_engines! {
    messages_between_shards, both_versions_and_alpn, what_comes_behind_the_handshake_in_one_packet, the_first_flight_cut_anywhere,
    large_messages, a_slow_consumer, pages_and_metrics, sessions_are_resumed, openssl_agrees, client_certificates,
    messages_overtake_handshakes, plain_http_on_the_tls_port, what_is_no_tls, half_a_handshake, ends, who_breaks_tls_and_stays_goes, nobody_floods_it, a_drain_says_goodbye, origins_are_compared,
}

fn messages_between_shards(engine: &str) {
    let it = Secure::start(engine, &[]);
    // Some of them live where they arrived, some do not.
    let mut clients: Vec<Client> = (0..8).map(|n| it.gateway.connect(&format!("user{n}"))).collect();
    for from in 0..8 {
        for to in 0..8 {
            if from != to {
                clients[from].send_message_expecting(&format!("user{to}"), "\"hello\"", "delivered");
                assert_eq!(clients[to].recv_json()["content"], "hello");
            }
        }
    }
    // With the user in a frame the connection leaves after its 101.
    for n in 0..8 {
        let mut client = it.gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "userId": format!("late{n}")}));
        assert_eq!(client.recv_json()["type"], "welcome");
        client.close();
    }
    for client in clients {
        client.close();
    }
    it.gateway.wait_until_empty();
}

fn both_versions_and_alpn(engine: &str) {
    let it = Secure::start(engine, &["--echo"]);
    for version in [&TLS12, &TLS13] {
        for (offers, chosen) in [
            (&["http/1.1"][..], Some("http/1.1")),
            (&["h2", "http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let mut config = it.authority.client_with(&[version], None);
            config.alpn_protocols = offers.iter().map(|name| name.as_bytes().to_vec()).collect();
            let mut client = it.client(config);
            let tls = client.tls.as_ref().unwrap();
            assert_eq!(tls.protocol_version(), Some(version.version));
            assert_eq!(tls.alpn_protocol(), chosen.map(str::as_bytes));
            client.send_upgrade("/echo", "");
            assert_eq!(client.read_head().status, 101);
            client.send_text("hello");
            assert_eq!(client.recv_text(), "hello");
            client.close();
        }
        let mut config = it.authority.client_with(&[version], None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let refused = it.plain().try_over_tls(Arc::new(config));
        let said = refused.err().unwrap().to_string();
        assert!(said.contains("NoApplicationProtocol"), "{said}");
    }
    assert_eq!(it.refused("tls"), 2.0);
}

fn what_comes_behind_the_handshake_in_one_packet(engine: &str) {
    let it = Secure::start(engine, &[]);
    for version in [&TLS12, &TLS13] {
        for n in 0..8 {
            let mut client = it.client(it.authority.client_with(&[version], None));
            let mut bytes = upgrade_head(&format!("/ws?user=user{n}"), "").into_bytes();
            for _ in 0..10 {
                bytes.extend(text_bytes(r#"{"type":"heartbeat"}"#));
            }
            client.send_raw(&bytes);
            assert_eq!(client.read_head().status, 101);
            assert_eq!(client.recv_json()["type"], "welcome");
            for _ in 0..10 {
                assert_eq!(client.recv_json()["type"], "heartbeat");
            }
        }
    }
    // Records of a few bytes each, all in one packet; and the last record in two, with the
    // hand-over between them.
    for n in 0..8 {
        let mut client = it.client(it.authority.client_with(&[&TLS13], None));
        let head = upgrade_head(&format!("/ws?user=crumbs{n}"), "");
        let tls = client.tls.as_mut().unwrap();
        let mut wire = Vec::new();
        for crumb in head.as_bytes().chunks(7) {
            tls.writer().write_all(crumb).unwrap();
            tls.write_tls(&mut wire).unwrap();
        }
        tls.writer().write_all(&text_bytes(r#"{"type":"heartbeat"}"#)).unwrap();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        client.stream.write_all(&wire[..wire.len() - 10]).unwrap();
        assert_eq!(client.read_head().status, 101);
        assert_eq!(client.recv_json()["type"], "welcome");
        client.stream.write_all(&wire[wire.len() - 10..]).unwrap();
        assert_eq!(client.recv_json()["type"], "heartbeat");
    }
}

fn the_first_flight_cut_anywhere(engine: &str) {
    let it = Secure::start(engine, &[]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(it.authority.client_with(&[version], None));
        let hello = |config: &Arc<ClientConfig>| {
            let name = it.gateway.addr.ip().into();
            let mut tls = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
            let mut flight = Vec::new();
            tls.write_tls(&mut flight).unwrap();
            (tls, flight)
        };
        // A ClientHello and all of its prefixes; one hello in single bytes.
        let len = hello(&config).1.len();
        for cut in 1..len {
            let (tls, flight) = hello(&config);
            let mut client = it.plain();
            client.send_raw(&flight[..cut]);
            std::thread::yield_now();
            client.send_raw(&flight[cut..]);
            finish(&mut client, tls);
        }
        let (tls, flight) = hello(&config);
        let mut client = it.plain();
        let cuts: Vec<usize> = (1..flight.len()).collect();
        client.send_in_pieces(&flight, &cuts);
        finish(&mut client, tls);
        client.send_upgrade("/ws?user=alice", "");
        assert_eq!(client.read_head().status, 101);
    }
    assert_eq!(it.refused("tls"), 0.0);
}

/// A crowd that begins its handshakes at once, with messages behind it: messages do not wait for
/// all of them.
fn messages_overtake_handshakes(engine: &str) {
    const CROWD: usize = 300;
    let it = Secure::start(engine, &["--shards", "1"]);
    let (mut alice, _bob) = (it.gateway.connect("alice"), it.gateway.connect("bob"));
    let mut rounds = 0;
    loop {
        let mut crowd: Vec<_> = (0..CROWD)
            .map(|_| {
                let name = it.gateway.addr.ip().into();
                let mut tls = rustls::ClientConnection::new(it.authority.client(), name).unwrap();
                let mut flight = Vec::new();
                tls.write_tls(&mut flight).unwrap();
                (it.plain(), tls, flight)
            })
            .collect();
        for (client, _, flight) in &mut crowd {
            client.send_raw(flight);
        }
        alice.send_message_expecting("bob", "1", "delivered");
        let answered = |client: &Client| {
            client.stream.set_nonblocking(true).unwrap();
            let answered = client.stream.peek(&mut [0]).is_ok();
            client.stream.set_nonblocking(false).unwrap();
            answered
        };
        let before = crowd.iter().filter(|(client, ..)| answered(client)).count();
        // And each of them is served.
        for (mut client, tls, _) in crowd {
            finish(&mut client, tls);
        }
        rounds += 1;
        if before < CROWD {
            break;
        }
        // A fast gateway, or a slow test, may be through with all of them before alice sends.
        assert!(rounds < 20, "the message waited for everybody, every time");
    }
    assert_eq!(it.refused("tls"), 0.0);
}

fn finish(client: &mut Client, mut tls: rustls::ClientConnection) {
    while tls.is_handshaking() {
        tls.complete_io(&mut client.stream).unwrap();
    }
    client.tls = Some(Box::new(tls));
}

fn large_messages(engine: &str) {
    let limits = [
        "--limits-message-bytes",
        "2000000",
        "--limits-outbox-bytes",
        "4000000",
        "--echo",
    ];
    let it = Secure::start(engine, &limits);
    let mut echo = it.gateway.upgrade("/echo");
    for len in [16_383, 16_384, 16_385, 65_000, 1 << 20] {
        let text = "x".repeat(len);
        echo.send_text(&text);
        assert_eq!(echo.recv_text(), text);
    }
    // Shared with several devices: sealed for each of them.
    let mut alice = it.gateway.connect("alice");
    let mut devices: Vec<Client> = (0..3).map(|_| it.gateway.connect("bob")).collect();
    for len in [2_000, 64 * 1024, 1 << 20] {
        let content = format!("\"{}\"", "y".repeat(len));
        for _ in 0..3 {
            alice.send_text(&format!(r#"{{"type":"message","to":"bob","content":{content}}}"#));
        }
        for device in &mut devices {
            for _ in 0..3 {
                assert_eq!(device.recv_json()["content"].as_str().unwrap().len(), len);
            }
        }
    }
}

fn a_slow_consumer(engine: &str) {
    let it = Secure::start(engine, &["--limits-messages-per-second", "0"]);
    let mut alice = it.gateway.connect("alice");
    let slow = Client::connect_with_receive_buffer(it.gateway.addr, 4096);
    let mut bob = slow.over_tls(it.authority.client());
    bob.send_upgrade("/ws?user=bob", "");
    assert_eq!(bob.read_head().status, 101);
    assert_eq!(bob.recv_json()["type"], "welcome");
    let content = "x".repeat(60_000);
    let mut delivered = 0;
    loop {
        alice.send_json(&json!({"type": "message", "to": "bob", "content": content, "id": "f"}));
        match alice.recv_json()["status"].as_str().unwrap() {
            "delivered" => delivered += 1,
            "offline" => break,
            other => panic!("{other}"),
        }
        assert!(
            delivered < 10_000,
            "everything is taken for a client that reads nothing"
        );
    }
    assert!(
        delivered >= 16,
        "an outbox of 1 MiB takes more than {delivered} of 60 KB"
    );
    let frames = bob.expect_close_after_frames(3008);
    assert!(frames.len() <= delivered && bob.ended_well);
    for frame in &frames {
        assert!(frame.text().starts_with(r#"{"type":"message","#), "whole frames only");
    }
    alice.close();
    it.gateway.wait_until_empty();
}

fn pages_and_metrics(engine: &str) {
    let it = Secure::start(engine, &[]);
    for path in ["/livez", "/readyz", "/health", "/stats", "/metrics", "/"] {
        let answer = it.gateway.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    // Kept alive, pipelined, then upgraded.
    let mut client = it.gateway.tcp();
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.send_raw(format!("{get}{get}{}", upgrade_head("/ws?user=alice", "")).as_bytes());
    for _ in 0..2 {
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["type"], "welcome");
    client.close();
    // A client that shuts down its sending side properly gets its answer.
    let mut client = it.gateway.tcp();
    client.send_raw(get.as_bytes());
    client.send_close_notify();
    assert_eq!(client.read_response().status, 200);
    client.expect_end();
    assert!(client.ended_well);
}

fn sessions_are_resumed(engine: &str) {
    let it = Secure::start(engine, &[]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(it.authority.client_with(&[version], None));
        let mut kinds = Vec::new();
        // On whatever shard they arrive.
        for _ in 0..8 {
            let mut client = it.plain().over_tls(Arc::clone(&config));
            // TLS 1.3 brings the ticket behind the handshake.
            client.send_upgrade("/ws?user=alice", "");
            assert_eq!(client.read_head().status, 101);
            kinds.push(client.tls.as_ref().unwrap().handshake_kind().unwrap());
        }
        assert_eq!(kinds[0], HandshakeKind::Full);
        assert!(
            kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed),
            "{kinds:?}"
        );
    }
    // TLS 1.2 without tickets: by the session's id.
    let mut config = it.authority.client_with(&[&TLS12], None);
    config.resumption =
        Resumption::in_memory_sessions(8).tls12_resumption(rustls::client::Tls12Resumption::SessionIdOnly);
    let config = Arc::new(config);
    let kinds: Vec<_> = (0..4)
        .map(|_| {
            it.plain()
                .over_tls(Arc::clone(&config))
                .tls
                .unwrap()
                .handshake_kind()
                .unwrap()
        })
        .collect();
    assert!(
        kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed),
        "{kinds:?}"
    );
    // Reading the same files again forgets no session.
    let lines = it.gateway.log_lines();
    it.gateway.signal(SIGHUP);
    it.gateway.wait_for_log_after(lines, "configuration read again");
    it.gateway.connect("bob").close();
    let again = it.plain().over_tls(config).tls.unwrap().handshake_kind();
    assert_eq!(again, Some(HandshakeKind::Resumed));
}

/// Runs `openssl s_client`; returns its output on both streams.
fn s_client(it: &Secure, args: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &it.gateway.addr.to_string(),
        "-CAfile",
        text(&it.authority.ca),
    ]);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn openssl_agrees(engine: &str) {
    let it = Secure::start(engine, &[]);
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let session = it.authority.dir.path().join(version);
        let first = s_client(
            &it,
            &[flag, "-ign_eof", "-alpn", "http/1.1", "-sess_out", text(&session)],
            get,
        );
        for part in [
            "HTTP/1.1 200",
            "ALPN protocol: http/1.1",
            "Verify return code: 0 (ok)",
            &format!("New, {version}"),
        ] {
            assert!(first.contains(part), "{version}: no {part:?} in\n{first}");
        }
        for _ in 0..4 {
            let again = s_client(&it, &[flag, "-ign_eof", "-sess_in", text(&session)], get);
            assert!(again.contains(&format!("Reused, {version}")), "{again}");
        }
    }
    for args in [
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_2", "-cipher", "AES128-SHA:AES256-GCM-SHA384:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
    ] {
        let before = it.refused("tls");
        let said = s_client(&it, args, get);
        assert!(
            said.contains("alert") && !said.contains("HTTP/1.1 200"),
            "{args:?}: {said}"
        );
        assert_eq!(it.refused("tls"), before + 1.0, "{args:?}");
    }
}

fn client_certificates(engine: &str) {
    let authority = Authority::new();
    let (server, alice) = (authority.sign("server"), authority.sign("alice"));
    let strangers = Authority::new();
    let mallory = strangers.sign("mallory");
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--tls-cert",
        server.cert(),
        "--tls-key",
        server.key(),
        "--tls-client-ca",
        text(&authority.ca),
    ]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(authority.client_with(&[version], Some(&alice)));
        for n in 0..4 {
            let mut client = Client::connect(gateway.addr).over_tls(Arc::clone(&config));
            client.send_upgrade(&format!("/ws?user=user{n}"), "");
            assert_eq!(client.read_head().status, 101);
            assert_eq!(client.recv_json()["type"], "welcome");
            client.close();
        }
        for shows in [None, Some(&mallory)] {
            let config = Arc::new(authority.client_with(&[version], shows));
            // With TLS 1.3 the client is done before the gateway has seen the certificate.
            let said = match Client::connect(gateway.addr).try_over_tls(config) {
                Err(error) => error,
                Ok(mut client) => {
                    let mut tls = client.tls.take().unwrap();
                    rustls::Stream::new(&mut *tls, &mut client.stream)
                        .read(&mut [0])
                        .unwrap_err()
                }
            };
            assert!(said.to_string().contains("fatal alert"), "{said}");
        }
    }
}

fn plain_http_on_the_tls_port(engine: &str) {
    let it = Secure::start(engine, &[]);
    let words = "this port speaks TLS: use https:// or wss://\n";
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &upgrade_head("/ws", ""),
        "POST /x HTTP/1.0\r\n\r\n",
        "P",
    ] {
        let mut client = it.plain();
        client.send_raw(request.as_bytes());
        let answer = client.read_response();
        assert_eq!((answer.status, &*answer.body), (400, words), "{request}");
        client.expect_end();
    }
    assert_eq!(it.refused("plain_text"), 4.0);
    it.gateway.wait_for_log("plain-text client connected to the TLS port");
    let lines = it.gateway.log().matches("plain-text client").count();
    assert!((1..=2).contains(&lines), "once in a while, for each shard: {lines}");
}

fn what_is_no_tls(engine: &str) {
    let it = Secure::start(engine, &["--log-level", "debug"]);
    let zeros = [0; 4000];
    // A handshake record with a ClientHello that is none; a record that is too long; no record at
    // all; an alert.
    let hello = [&[0x16, 3, 1, 0, 8, 1, 0, 0, 4][..], b"junk"].concat();
    let long = [&[0x16, 3, 1, 0xff, 0xff][..], &zeros].concat();
    let fatal = [0x15, 3, 3, 0, 2, 2, 40];
    let mut refused = 0.0;
    for bytes in [&hello[..], &long, &zeros, b"\x80\x2e\x01\x03\x01", &fatal] {
        let mut client = it.plain();
        client.send_raw(bytes);
        let mut said = Vec::new();
        let _ = client.stream.read_to_end(&mut said);
        // Nothing, or a fatal alert.
        assert!(
            said.is_empty() || (said.len() == 7 && said[0] == 0x15 && said[5] == 2),
            "{said:x?}"
        );
        refused += 1.0;
        assert_eq!(it.refused("tls"), refused, "{bytes:x?}");
    }
    // A message of 60,000 bytes with one byte in each record is kept up to a point only.
    let mut client = it.plain();
    let mut crumbs = vec![0x16, 3, 1, 0, 4, 1, 0, 0xea, 0x60];
    crumbs.extend([0x16, 3, 1, 0, 1, 0].repeat(50_000));
    client.send_carelessly(&crumbs);
    client.read_to_end();
    it.gateway.wait_for_log("a handshake message of more than");
    assert_eq!(it.refused("tls"), refused + 1.0);
    it.gateway.connect("alice").close();
}

fn half_a_handshake(engine: &str) {
    let it = Secure::start(engine, &["--limits-handshake-timeout", "300ms"]);
    let name = it.gateway.addr.ip().into();
    let mut tls = rustls::ClientConnection::new(it.authority.client(), name).unwrap();
    let mut flight = Vec::new();
    tls.write_tls(&mut flight).unwrap();
    // Half a ClientHello, a whole one, a finished handshake and no request.
    for bytes in [&flight[..20], &flight] {
        let mut client = it.plain();
        client.send_raw(bytes);
        client.read_to_end();
    }
    let mut client = it.gateway.tcp();
    client.expect_end();
    assert_eq!(it.refused("tls"), 2.0);
    // A request that is not finished gets its answer.
    let mut client = it.gateway.tcp();
    client.send_raw(b"GET / HT");
    assert_eq!(client.read_response().status, 408);
    client.expect_end();
    assert!(client.ended_well);
}

fn ends(engine: &str) {
    let it = Secure::start(engine, &[]);
    let closed = |code: &str| {
        let label = format!("code=\"{code}\"");
        it.gateway.metric("shardgate_connections_closed_total", &[&label])
    };
    // By the book.
    let mut client = it.gateway.connect("alice");
    client.send_close(1000);
    assert_eq!(client.recv().opcode, CLOSE);
    client.expect_end();
    assert!(client.ended_well, "close_notify comes before FIN");
    assert_eq!((closed("1000"), closed("1006")), (1.0, 0.0));
    // close_notify without a close frame; FIN without close_notify; reset; in the middle of a
    // record.
    let mut client = it.gateway.connect("alice");
    client.send_close_notify();
    client.expect_end();
    eventually("1 abrupt end", || closed("1006") == 1.0);
    let client = it.gateway.connect("alice");
    client.stream.shutdown(Shutdown::Write).unwrap();
    eventually("2 abrupt ends", || closed("1006") == 2.0);
    it.gateway.connect("alice").reset();
    eventually("3 abrupt ends", || closed("1006") == 3.0);
    let mut client = it.gateway.connect("alice");
    client.stream.write_all(&[0x17, 3, 3, 0x40, 0, 1, 2, 3]).unwrap();
    drop(client);
    eventually("4 abrupt ends", || closed("1006") == 4.0);
    // A record that is not sealed.
    let mut client = it.gateway.connect("alice");
    client
        .stream
        .write_all(&[&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat())
        .unwrap();
    eventually("5 abrupt ends", || closed("1006") == 5.0);
    let mut tls = client.tls.take().unwrap();
    let said = rustls::Stream::new(&mut *tls, &mut client.stream)
        .read(&mut [0])
        .unwrap_err();
    assert!(said.to_string().contains("BadRecordMac"), "{said}");
    // The bytes before that count.
    let mut bob = it.gateway.connect("bob");
    let mut client = it.gateway.connect("alice");
    let tls = client.tls.as_mut().unwrap();
    let message = text_bytes(r#"{"type":"message","to":"bob","content":"last words"}"#);
    tls.writer().write_all(&message).unwrap();
    let mut wire = Vec::new();
    tls.write_tls(&mut wire).unwrap();
    wire.extend([&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat());
    client.stream.write_all(&wire).unwrap();
    assert_eq!(bob.recv_json()["content"], "last words");
    // Nonsense inside is answered as without TLS.
    let mut client = it.gateway.connect("alice");
    client.send_raw(&frame_bytes(0xff, b""));
    client.expect_close(1002);
    assert!(client.ended_well);
    bob.close();
    it.gateway.wait_until_empty();
}

/// A connection whose TLS broke gives its permit back. While its peer does not close, its socket
/// stays, and is counted.
fn who_breaks_tls_and_stays_goes(engine: &str) {
    let limits = ["--limits-connections", "20", "--limits-handshakes", "6"];
    let it = Secure::start(engine, &[&["--shards", "1"], &limits[..]].concat());
    let mut staying = Vec::new();
    for n in 0..60 {
        let mut client = it.gateway.connect(&format!("user{n}"));
        // A record of the right kind that is not sealed.
        client.stream.write_all(b"\x17\x03\x03\x00\x20").unwrap();
        client.stream.write_all(&[n; 32]).unwrap();
        staying.push(client);
    }
    eventually("all have ended", || it.gateway.stats()["connections"] == 0);
    let sockets = it.gateway.metric("shardgate_sockets", &[]);
    assert!(sockets <= 26.0, "{sockets}");
}

fn nobody_floods_it(engine: &str) {
    let it = Secure::start(engine, &[]);
    // Key updates that want an answer each, with nothing between them: rustls takes 32.
    let mut client = it.client(it.authority.client_with(&[&TLS13], None));
    client.send_upgrade("/ws?user=alice", "");
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["type"], "welcome");
    let mut ended = false;
    for round in 0..200 {
        let tls = client.tls.as_mut().unwrap();
        tls.refresh_traffic_keys().unwrap();
        if tls.write_tls(&mut client.stream).is_err() {
            ended = true;
            break;
        }
        if round == 10 {
            // A few are fine, and both sides go on with new keys.
            client.expect_silence();
        }
    }
    if !ended {
        client.read_to_end();
    }
    eventually("it is gone", || it.gateway.stats()["connections"] == 0);
    // Others do not notice.
    let mut bob = it.gateway.connect("bob");
    bob.send_frame(0x80 | PING, b"there?");
    assert_eq!(bob.recv_frame().payload, b"there?");
    bob.close();
}

fn a_drain_says_goodbye(engine: &str) {
    let mut it = Secure::start(engine, &["--drain-timeout", "2s"]);
    let mut clients: Vec<Client> = (0..6).map(|n| it.gateway.connect(&format!("user{n}"))).collect();
    it.gateway.signal(SIGTERM);
    for client in &mut clients {
        assert_eq!(client.recv_json()["type"], "shutdown");
    }
    for client in &mut clients {
        client.expect_close(3001);
        assert!(client.ended_well);
    }
    assert_eq!(it.gateway.wait_for_exit(), 0);
}

fn origins_are_compared(engine: &str) {
    let status_at = |it: &Secure, fields: &str| {
        let head = upgrade_head("/ws", fields).replace("Host: localhost", "Host: gateway.example");
        let mut client = it.gateway.tcp();
        client.send_raw(head.as_bytes());
        client.read_head().status
    };
    let it = Secure::start(engine, &["--insecure"]);
    let status = |fields: &str| status_at(&it, fields);
    assert_eq!(status("Origin: https://gateway.example\r\n"), 101);
    assert_eq!(status("Origin: https://gateway.example:443\r\n"), 101);
    assert_eq!(status("Origin: https://other.example\r\n"), 403);
    // A page in plain text is not of the same origin, whatever its port.
    for plain in [
        "http://gateway.example",
        "http://gateway.example:443",
        "HTTP://gateway.example",
        "null",
    ] {
        assert_eq!(status(&format!("Origin: {plain}\r\n")), 403, "{plain}");
    }
    let listed = Secure::start(engine, &["--insecure", "--origins", "http://gateway.example"]);
    assert_eq!(status_at(&listed, "Origin: http://gateway.example\r\n"), 101);
}

/// A measurement must not be fooled: the load generator over TLS loses nothing, and reports when it
/// should not connect.
#[test]
fn the_load_generator_speaks_it() {
    let it = Secure::start("epoll", &["--limits-messages-per-second", "0"]);
    let load = |args: &[&str]| {
        let mut command = Command::new(common::built::load_generator());
        let url = format!("wss://{}/ws", it.gateway.addr);
        command
            .args(args)
            .args(["--users", "20", "--duration", "200ms", "--warmup", "0", "--url", &url]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run_command(command)
    };
    for scenario in [
        &["direct", "--insecure-tls", "--in-flight", "1"][..],
        &["fanout", "--insecure-tls", "--payload", "50000", "--in-flight", "1"],
    ] {
        let ended = load(scenario);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let ended = load(&["idle"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--insecure-tls"), "{ended:?}");
}
