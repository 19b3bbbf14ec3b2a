//! RFC 6455 as clients meet it: fragments, control frames, refusals with their codes, and the end.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{BINARY, CLOSE, Client, PING, PONG, TEXT, frame_bytes, text_bytes};
use common::{Gateway, eventually};

on_both_engines! {
    fragments_are_put_together, control_frames_may_come_between_fragments, pings_are_answered,
    protocol_errors_close_with_1002, invalid_utf8_closes_with_1007, too_big_closes_with_1009,
    binary_closes_with_1003, the_close_code_is_echoed, bad_close_frames, a_peer_that_never_answers_our_close,
    nothing_is_read_behind_a_close, split_at_every_byte, echo_gives_back_what_it_gets,
}

const FIN: u8 = 0x80;

fn fragments_are_put_together(engine: &str) {
    // More frames than the usual rate.
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let mut client = gateway.connect("alice");
    let text = r#"{"type":"message","to":"alice","content":"ä€😀"}"#;
    // Every fragment one byte, so that code points are cut too; some empty.
    let bytes = text.as_bytes();
    let mut sent = frame_bytes(TEXT, b"");
    for byte in bytes {
        sent.extend(frame_bytes(0, &[*byte]));
        sent.extend(frame_bytes(0, b""));
    }
    sent.extend(frame_bytes(FIN, b""));
    client.send_raw(&sent);
    assert_eq!(client.recv_json()["content"], "ä€😀");
    for cut in 0..=bytes.len() {
        client.send_frame(TEXT, &bytes[..cut]);
        client.send_frame(FIN, &bytes[cut..]);
        assert_eq!(client.recv_json()["content"], "ä€😀", "cut at {cut}");
    }
    client.close();
}

fn control_frames_may_come_between_fragments(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    client.send_frame(TEXT, br#"{"type":"hea"#);
    client.send_frame(FIN | PING, b"one");
    client.send_frame(0, br#"rtbe"#);
    client.send_frame(FIN | PONG, b"nobody asked");
    client.send_frame(FIN | PING, b"");
    client.send_frame(FIN, br#"at"}"#);
    let pong = client.recv();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"one"[..]));
    let pong = client.recv();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b""[..]));
    assert_eq!(client.recv_json()["type"], "heartbeat");
    // A close between fragments is a close.
    client.send_frame(TEXT, b"{");
    client.send_close(1001);
    assert_eq!(client.recv().close_code(), Some(1001));
    client.expect_end();
}

fn pings_are_answered(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    let longest = [0xff; 125];
    for payload in [&b""[..], b"x", &longest] {
        client.send_frame(FIN | PING, payload);
        let pong = client.recv();
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, payload));
    }
    // Before the user is known, too.
    let mut client = gateway.upgrade("/ws");
    client.send_frame(FIN | PING, b"early");
    let pong = client.recv();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"early"[..]));
}

fn protocol_errors_close_with_1002(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut unmasked = vec![FIN | TEXT, 2];
    unmasked.extend(b"{}");
    let mut after_text = frame_bytes(TEXT, b"{");
    after_text.extend(text_bytes("{}"));
    let cases = [
        ("an unmasked frame", unmasked),
        ("RSV1", frame_bytes(FIN | 0x40 | TEXT, b"{}")),
        ("RSV2", frame_bytes(FIN | 0x20 | TEXT, b"{}")),
        ("RSV3", frame_bytes(FIN | 0x10 | TEXT, b"{}")),
        ("opcode 3", frame_bytes(FIN | 3, b"")),
        ("opcode 11", frame_bytes(FIN | 11, b"")),
        ("a continuation of nothing", frame_bytes(FIN, b"{}")),
        ("a text within a text", after_text),
        ("a fragmented ping", frame_bytes(PING, b"")),
        ("a long ping", frame_bytes(FIN | PING, &[0; 126])),
        ("a long close", frame_bytes(FIN | CLOSE, &[0; 126])),
        (
            "a length that is not the shortest",
            vec![FIN | TEXT, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}'],
        ),
        (
            "a length with its top bit set",
            vec![FIN | TEXT, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0],
        ),
    ];
    for (what, bytes) in cases {
        eprintln!("{what}");
        let mut client = gateway.connect("alice");
        client.send_raw(&bytes);
        // The bytes behind it have no meaning and must do no harm.
        client.send_carelessly(&text_bytes(r#"{"type":"heartbeat"}"#));
        client.expect_close(1002);
    }
    gateway.wait_until_empty();
}

fn invalid_utf8_closes_with_1007(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for bytes in [
        &b"{\"type\":\"\xff\"}"[..],
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        // A code point that the message's end cuts off.
        b"{\"type\":\"heartbeat\",\"x\":\"\xe2\x82",
    ] {
        let mut client = gateway.connect("alice");
        client.send_frame(FIN | TEXT, bytes);
        client.expect_close(1007);
    }
    // In a fragment, reported before the message ends.
    let mut client = gateway.connect("alice");
    client.send_frame(TEXT, b"ok");
    client.send_frame(0, b"\xff");
    client.expect_close(1007);
}

fn too_big_closes_with_1009(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let padded = |len: usize| {
        let bare = r#"{"type":"heartbeat","x":""}"#.len();
        format!(r#"{{"type":"heartbeat","x":"{}"}}"#, "x".repeat(len - bare))
    };
    let mut client = gateway.connect("alice");
    client.send_text(&padded(65536));
    assert_eq!(client.recv_json()["type"], "heartbeat");
    client.send_raw(&text_bytes(&padded(65537))[..20]);
    client.expect_close(1009);
    // The sum of fragments counts.
    let mut client = gateway.connect("alice");
    let text = padded(65537);
    client.send_frame(TEXT, &text.as_bytes()[..40000]);
    client.send_frame(0, &text.as_bytes()[40000..65000]);
    client.send_carelessly(&frame_bytes(FIN, &text.as_bytes()[65000..]));
    client.expect_close(1009);
    // The announced length is enough, however large.
    let mut client = gateway.connect("alice");
    client.send_raw(&[
        FIN | TEXT,
        0xff,
        0x7f,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    client.expect_close(1009);

    let gateway = Gateway::start(&["--engine", engine, "--limits-message-bytes", "200"]);
    let mut client = gateway.connect("alice");
    client.send_text(&padded(200));
    assert_eq!(client.recv_json()["type"], "heartbeat");
    client.send_text(&padded(201));
    client.expect_close(1009);
}

fn binary_closes_with_1003(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for first in [FIN | BINARY, BINARY] {
        let mut client = gateway.connect("alice");
        client.send_frame(first, b"{}");
        if first & FIN == 0 {
            client.send_frame(FIN, b"");
        }
        client.expect_close(1003);
    }
    let mut client = gateway.upgrade("/ws");
    client.send_frame(FIN | BINARY, b"");
    client.expect_close(1003);
}

fn the_close_code_is_echoed(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for code in [1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999] {
        let mut client = gateway.connect("alice");
        let mut payload = u16::to_be_bytes(code).to_vec();
        payload.extend("gute Nacht, €".as_bytes());
        client.send_frame(FIN | CLOSE, &payload);
        assert_eq!(client.recv().close_code(), Some(code));
        client.expect_end();
    }
    let mut client = gateway.connect("alice");
    client.send_frame(FIN | CLOSE, b"");
    assert_eq!(client.recv().payload, b"");
    client.expect_end();
    // Before the user is known.
    let mut client = gateway.upgrade("/ws");
    client.send_close(1000);
    assert_eq!(client.recv().close_code(), Some(1000));
    client.expect_end();
    gateway.wait_until_empty();
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"1000\""]),
        2.0
    );
    assert_eq!(
        gateway.metric("shardgate_connections_closed_total", &["code=\"1005\""]),
        1.0
    );
}

fn bad_close_frames(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    for (payload, code) in [
        (&[3][..], 1002),
        (&[0, 0], 1002),
        // 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000.
        (&[0x03, 0xe7], 1002),
        (&[0x03, 0xec], 1002),
        (&[0x03, 0xed], 1002),
        (&[0x03, 0xee], 1002),
        (&[0x03, 0xf7], 1002),
        (&[0x03, 0xf8], 1002),
        (&[0x0b, 0xb7], 1002),
        (&[0x13, 0x88], 1002),
        (&[0x03, 0xe8, 0xff], 1007),
    ] {
        let mut client = gateway.connect("alice");
        client.send_frame(FIN | CLOSE, payload);
        client.expect_close(code);
    }
}

fn a_peer_that_never_answers_our_close(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut client = gateway.connect("alice");
    client.send_frame(FIN | BINARY, b"");
    assert_eq!(client.recv().close_code(), Some(1003));
    // No answer: the user is gone at once all the same, the socket some seconds later.
    let mut other = gateway.connect("bob");
    other.send_message_expecting("alice", "1", "offline");
    assert_eq!(gateway.stats()["connections"], 1);
    client.expect_end();
    // A peer that goes on talking gets no answers, and the same end.
    let mut client = gateway.connect("carol");
    client.send_frame(FIN | BINARY, b"");
    assert_eq!(client.recv().close_code(), Some(1003));
    for _ in 0..10 {
        client.send_text(r#"{"type":"message","to":"bob","content":"from beyond","id":"1"}"#);
    }
    client.send_close(1003);
    client.expect_end();
    other.expect_silence();
    other.close();
    gateway.wait_until_empty();
}

fn nothing_is_read_behind_a_close(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let mut bob = gateway.connect("bob");
    let mut client = gateway.connect("alice");
    let mut bytes = text_bytes(r#"{"type":"message","to":"bob","content":"before"}"#);
    bytes.extend(frame_bytes(FIN | CLOSE, &1000u16.to_be_bytes()));
    bytes.extend(text_bytes(r#"{"type":"message","to":"bob","content":"after"}"#));
    client.send_raw(&bytes);
    assert_eq!(bob.recv_json()["content"], "before");
    eventually("alice is gone", || gateway.stats()["connections"] == 1);
    bob.expect_silence();
}

fn split_at_every_byte(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let mut conversation = text_bytes(r#"{"type":"message","to":"alice","content":"ä"}"#);
    conversation.extend(frame_bytes(TEXT, br#"{"type":"mess"#));
    conversation.extend(frame_bytes(FIN | PING, b"p"));
    conversation.extend(frame_bytes(FIN, br#"age","to":"alice","content":2,"id":"i"}"#));
    conversation.extend(text_bytes(&format!(
        r#"{{"type":"message","to":"alice","content":"{}"}}"#,
        "x".repeat(130)
    )));
    let check = |client: &mut Client, cut: usize| {
        assert_eq!(client.recv_json()["content"], "ä", "cut at {cut}");
        let pong = client.recv();
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"p"[..]));
        assert_eq!(client.recv_json()["content"], 2, "cut at {cut}");
        assert_eq!(client.recv_json()["status"], "delivered", "cut at {cut}");
        assert_eq!(client.recv_json()["content"], *"x".repeat(130), "cut at {cut}");
    };
    let mut client = gateway.connect("alice");
    for cut in 1..conversation.len() {
        client.send_in_pieces(&conversation, &[cut]);
        check(&mut client, cut);
    }
    let every: Vec<usize> = (1..conversation.len()).collect();
    client.send_in_pieces(&conversation, &every);
    check(&mut client, 0);
    client.close();
}

fn echo_gives_back_what_it_gets(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--echo", "--limits-messages-per-second", "0"]);
    let mut client = gateway.upgrade("/echo");
    let long = vec![0x80; 65536];
    for payload in [&b""[..], b"x", &long[..125], &long[..126], &long[..65535], &long] {
        client.send_frame(FIN | BINARY, payload);
        let frame = client.recv();
        assert_eq!((frame.opcode, frame.payload.len()), (BINARY, payload.len()));
        assert!(frame.payload == payload);
    }
    client.send_text("not JSON, ä€😀");
    assert_eq!(client.recv_text(), "not JSON, ä€😀");
    client.send_frame(FIN | BINARY, &[0; 65537]);
    client.expect_close(1009);
    // Without the flag it does not exist.
    let gateway = Gateway::start(&["--engine", engine]);
    assert_eq!(gateway.try_upgrade("/echo", "").status, 404);
}
