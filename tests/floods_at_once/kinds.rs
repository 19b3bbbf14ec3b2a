//! The kinds of floods. Each is a bounded loop that ends early when its target says so.

use std::io::Write;
use std::net::TcpStream;

use super::hostile::{Hostile, Target};
use super::{HANDSHAKES, MESSAGE_BYTES};
use crate::common::client::{PING, TEXT, frame_bytes, text_bytes, upgrade_head};
use crate::common::storm;

/// One kind of flood.
#[derive(Clone, Copy)]
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Target),
}

const fn flood(name: &'static str, run: fn(&Target)) -> Flood {
    Flood { name, run }
}

pub(crate) const FLOODS: [Flood; 14] = [
    flood("half-open sockets", half_open),
    flood("heads that come byte by byte", slow_loris),
    flood("giant heads", giant_heads),
    flood("heads that two parsers read differently", smuggled_heads),
    flood("pings", pings),
    flood("fragments of nothing", fragments),
    flood("frames that are none", malformed_frames),
    flood("questions whose answers are not read", no_reading),
    flood("connects and resets", resets),
    flood("TLS handshakes that break", broken_tls),
    flood("pages asked for in a pipeline", pages),
    flood("questions who is online", presence_storm),
    flood("garbage from sockets that stay", garbage),
    flood("numbers that are read half", unread_numbers),
];

/// What one connection asks at once: as many frames as `limits.burst` has by default, though names
/// cost more there.
const STORM_FRAMES: usize = 200;
/// Sockets that send garbage: more than the gateway may hold of all kinds.
const GARBAGE: usize = 3_000;
/// Sockets that leave the answers with numbers unread.
const READERS: usize = 400;

/// Five times what the gateway holds of such. When it has closed one in the middle it has taken
/// most of them from the listeners' queues.
fn half_open(target: &Target) {
    target.crowd(5 * HANDSHAKES, 2 * HANDSHAKES, |_| TcpStream::connect(target.addr).ok());
}

fn slow_loris(target: &Target) {
    let head = upgrade_head("/ws?user=loris", "");
    let mut clients: Vec<Hostile> = Vec::new();
    target.repeat(40, |n| {
        clients.extend((clients.len()..200).filter_map(|_| Hostile::connect(target)));
        let byte = head.as_bytes()[n % (head.len() - 1)];
        clients.retain_mut(|client| client.send(&[byte]));
    });
}

fn giant_heads(target: &Target) {
    let field = vec![b'x'; 64 * 1024];
    target.repeat(100, |_| {
        if let Some(mut client) = Hostile::secure(target) {
            let _ = client.send(b"GET /ws HTTP/1.1\r\nX: ") && (0..16).all(|_| client.send(&field));
        }
    });
}

fn smuggled_heads(target: &Target) {
    let fields = [
        "Host: other\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "X: one\r\n two\r\n",
        "X: a\0b\r\n",
        "X : a\r\n",
    ];
    target.repeat(300, |n| {
        if let Some(mut client) = Hostile::secure(target) {
            let head = upgrade_head("/ws?user=smuggler", fields[n % fields.len()]);
            let _ = client.send(head.as_bytes()) && client.read();
        }
    });
}

fn pings(target: &Target) {
    let bytes = frame_bytes(0x80 | PING, &[b'x'; 125]).repeat(500);
    target.pour("pinger", 20, &bytes, 50);
}

fn fragments(target: &Target) {
    let bytes = [frame_bytes(TEXT, b"\""), frame_bytes(0, b"").repeat(5_000)].concat();
    target.pour("empty", 10, &bytes, 20);
    // Of one message that never ends, a byte each.
    let bytes = [frame_bytes(TEXT, b"\""), frame_bytes(0, b"x").repeat(MESSAGE_BYTES + 1)].concat();
    target.pour("crumbs", 10, &bytes, 1);
}

fn malformed_frames(target: &Target) {
    target.pour("grammar", 50, &text_bytes("{").repeat(100), 10);
    target.pour("bits", 50, &frame_bytes(0xff, b"x").repeat(100), 10);
}

fn no_reading(target: &Target) {
    let question = format!(
        r#"{{"type":"message","to":"deaf","content":"{}","id":"c"}}"#,
        "x".repeat(8_000)
    );
    target.pour("deaf", 20, &text_bytes(&question).repeat(10), 20);
}

fn resets(target: &Target) {
    target.repeat(3_000, |n| {
        if let Some(mut client) = Hostile::connect(target) {
            if n % 3 == 1 {
                client.send(b"GET /ws");
            }
            client.reset();
        }
    });
    target.repeat(200, |_| {
        if let Some(client) = Hostile::upgraded(target, "fleeting") {
            client.reset();
        }
    });
}

fn broken_tls(target: &Target) {
    let hello = target.hello();
    target.repeat(1_500, |n| {
        let Some(mut client) = Hostile::connect(target) else {
            return;
        };
        let _ = match n % 4 {
            // Half a hello; a hello, and away before or after the answer; a hello, and nonsense.
            0 => client.send(&hello[..hello.len() / 2]),
            1 => client.send(&hello),
            2 => client.send(&hello) && client.read(),
            _ => client.send(&hello) && client.send(&[0x17; 600]) && client.read(),
        };
    });
}

fn pages(target: &Target) {
    let bytes = b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
    target.repeat(10, |_| {
        if let Some(mut client) = Hostile::secure(target) {
            let _ = (0..10).all(|_| client.send(&bytes));
        }
    });
}

/// As many connections as three ordinary users may have ask for a hundred names in each frame, and
/// come again.
fn presence_storm(target: &Target) {
    std::thread::scope(|scope| {
        for connection in 0..storm::USERS * storm::CONNECTIONS {
            scope.spawn(move || {
                target.repeat(2, |round| {
                    if let Some(mut client) = Hostile::upgraded(target, &storm::user(connection)) {
                        // Every other time it does not wait, and what it asked for is nobody's.
                        let _ = client.send(&storm::burst(connection, round, STORM_FRAMES))
                            && round % 2 == 0
                            && client.read_until(b"\"q\"", STORM_FRAMES);
                    }
                });
            });
        }
    });
}

/// Bytes that are wrong at any stage, of peers that leave their sockets open and do not read why
/// they were refused.
fn garbage(target: &Target) {
    // A TLS record that nobody can decrypt, a request that is none, a frame with a reserved bit.
    let record = [b"\x17\x03\x03\x02\x00".as_slice(), &[b'x'; 512]].concat();
    let hello = target.hello();
    target.crowd(GARBAGE, GARBAGE - HANDSHAKES, |n| {
        let mut socket = match n % 4 {
            0 => Hostile::connect(target)?.into_socket(),
            1 => {
                let mut client = Hostile::connect(target)?;
                client.send(&hello);
                client.into_socket()
            }
            2 => Hostile::secure(target)?.into_socket(),
            _ => Hostile::upgraded(target, &format!("garbage{n}"))?.into_socket(),
        };
        let _ = socket.write_all(&record);
        Some(socket)
    });
}

/// Many requests for the largest answer that strangers get, on connections that stop reading in the
/// middle of the first and stay.
fn unread_numbers(target: &Target) {
    let requests = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    target.crowd(READERS, READERS, |_| {
        let mut client = Hostile::secure_with_receive_buffer(target, 4096)?;
        let _ = client.send(&requests) && client.read();
        Some(client.into_socket())
    });
}
