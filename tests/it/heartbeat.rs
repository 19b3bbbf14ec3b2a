//! Heartbeats: the server pings silent clients, closes those that stay silent, and takes any frame
//! as life.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use common::client::{CLOSE, PING, PONG};
use std::time::{Duration, Instant};

on_both_engines! {
    silent_connections_are_pinged, a_dead_peer_is_closed_with_3012, pongs_are_life, any_frame_is_life, echo_has_a_heartbeat_too,
}

fn silent_connections_are_pinged(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--heartbeat-interval",
        "100ms",
        "--heartbeat-timeout",
        "1h",
    ]);
    let mut client = gateway.connect("alice");
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(client.recv_frame().opcode, PING);
    }
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "not more often than the interval says"
    );
    assert!(gateway.metric("shardgate_messages_sent_total", &["type=\"ping\""]) >= 3.0);
}

fn a_dead_peer_is_closed_with_3012(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--heartbeat-interval",
        "100ms",
        "--heartbeat-timeout",
        "400ms",
    ]);
    let mut dead = gateway.connect("alice");
    let began = Instant::now();
    // It reads, but it does not answer.
    let mut pings = 0;
    let close = loop {
        let frame = dead.recv_frame();
        if frame.opcode == CLOSE {
            break frame;
        }
        assert_eq!(frame.opcode, PING);
        pings += 1;
    };
    assert_eq!(close.close_code(), Some(3012));
    assert!(pings >= 1);
    assert!(began.elapsed() >= Duration::from_millis(350), "not before the timeout");
    let mut bob = gateway.connect("bob");
    bob.send_message_expecting("alice", "1", "offline");
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"3012\""]),
        1.0
    );
}

// Generous: a machine that is late by less than this breaks nothing.
const TIMEOUT: &str = "4s";

fn pongs_are_life(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--heartbeat-interval",
        "200ms",
        "--heartbeat-timeout",
        TIMEOUT,
    ]);
    let mut client = gateway.connect("alice");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let ping = client.recv_frame();
        assert_eq!(ping.opcode, PING);
        client.send_frame(0x80 | PONG, &ping.payload);
    }
    client.expect_silence();
}

fn any_frame_is_life(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--heartbeat-interval",
        "1s",
        "--heartbeat-timeout",
        TIMEOUT,
    ]);
    let mut clients: Vec<_> = (0..4).map(|n| gateway.connect(&format!("user{n}"))).collect();
    let mut dead = gateway.connect("dead");
    let mut opcode = 1;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        clients[0].send_frame(0x80 | PONG, b"");
        clients[1].send_frame(0x80 | PING, b"");
        clients[2].send_text("nobody understands this");
        clients[2].send_text(r#"{"type":"heartbeat"}"#);
        // Fragments of a message that is still on its way.
        clients[3].send_frame(opcode, b"");
        opcode = 0;
        std::thread::sleep(Duration::from_millis(100));
    }
    dead.expect_close(3012);
    for client in &clients {
        let mut stream = &client.stream;
        std::io::Write::write_all(&mut stream, &common::client::frame_bytes(0x80 | CLOSE, &[0x03, 0xe8])).unwrap();
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let close = loop {
            let frame = client.recv_frame();
            if frame.opcode == CLOSE {
                break frame;
            }
        };
        assert_eq!(close.close_code(), Some(1000), "user{n} lived");
    }
}

fn echo_has_a_heartbeat_too(engine: &str) {
    let gateway = Gateway::start(&[
        "--engine",
        engine,
        "--echo",
        "--heartbeat-interval",
        "50ms",
        "--heartbeat-timeout",
        "200ms",
    ]);
    let mut client = gateway.upgrade("/echo");
    assert_eq!(client.recv_frame().opcode, PING);
    loop {
        let frame = client.recv_frame();
        if frame.opcode == CLOSE {
            assert_eq!(frame.close_code(), Some(3012));
            break;
        }
    }
}
