//! What the pure rooms cost: CPU time of this thread per operation, one thread, no sockets. `cargo
//! bench --bench rooms`; an argument picks benches by a part of their names, and what a run before
//! this one saw is compared with.
//!
//! The rows of tungstenite are why `wire::ws::frame` is ours
//! (`docs/decisions/0002-own-frame-reader.md`).

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use shardgate::cluster::presence::PresenceWriter;
use shardgate::cluster::store::{Answer, Incarnation};
use shardgate::engine::Waker;
use shardgate::ids::{IdSource, ShardId};
use shardgate::jws::{Algorithm, Family, Signed, VerifyingKey};
use shardgate::lanes::mailbox::mailboxes;
use shardgate::lanes::{self, MessageToShard, OutgoingMessage, ToShard};
use shardgate::router::users::Users;
use shardgate::router::{HomeMap, UserHash};
use shardgate::session::outbox::{Outbox, Spares};
use shardgate::wire::codec::Codec;
use shardgate::wire::json::decode;
use shardgate::wire::message::{AckStatus, Message, ServerMessage};
use shardgate::wire::ws::credentials::Credentials;
use shardgate::wire::ws::frame::Decoder;
use shardgate::wire::ws::head::{self, Policy};
use shardgate::wire::ws::server_frame::Header;
use uuid::Uuid;

/// CPU time of this thread: what others do on a shared machine is not in it.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one timespec to memory that is one.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(result, 0, "every kernel has this clock");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, time: &Duration) -> f64 {
        time.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

struct Table {
    criterion: Criterion<CpuTime>,
}

impl Table {
    /// A bench whose name is "what: with what", and which does `per` of it at once.
    fn row(&mut self, name: &str, per: usize, operation: impl FnMut()) {
        let (what, with) = name.split_once(": ").unwrap();
        let mut group = self.criterion.benchmark_group(what);
        group.throughput(Throughput::Elements(per as u64));
        let mut operation = operation;
        group.bench_function(with, |bencher| bencher.iter(&mut operation));
        group.finish();
    }
}

/// A masked text frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let header = Header::new(shardgate::wire::ws::frame::Opcode::Text, payload.len());
    let mut bytes = header.as_slice().to_vec();
    bytes[1] |= 0x80;
    bytes.extend_from_slice(&[1, 2, 3, 4]);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    shardgate::wire::ws::frame::unmask(&mut bytes[start..], [1, 2, 3, 4]);
    bytes
}

/// Reads all frames of one receive as a shard does.
fn read(decoder: &mut Decoder, receive: &mut [u8]) -> usize {
    let mut reader = decoder.read(receive, 65_536);
    let mut count = 0;
    while let Some(message) = reader.next().unwrap() {
        black_box(message);
        count += 1;
    }
    count
}

/// What tungstenite reads from, and writes to.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The smallest configuration that reads a message in one go; all limits set.
fn context(read_buffer: usize) -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(read_buffer)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(65_536))
        .max_frame_size(Some(65_536));
    WebSocketContext::new(Role::Server, Some(config))
}

fn read_with(context: &mut WebSocketContext, receive: &[u8]) -> usize {
    let mut wire = Wire(receive);
    let mut count = 0;
    while let Ok(message) = context.read(&mut wire) {
        black_box(message);
        count += 1;
    }
    count
}

fn frames(table: &mut Table) {
    for (name, size, count) in [
        ("64 bytes", 64, 1),
        ("64 bytes, 16 in one receive", 64, 16),
        ("1 KiB", 1024, 1),
        ("32 KiB", 32_768, 1),
    ] {
        let receive = frame(&vec![b'x'; size]).repeat(count);
        let mut buffer = receive.clone();
        let mut decoder = Decoder::default();
        // The copy stands for the kernel's: unmasking in place spoils the buffer.
        table.row(&format!("frame, ours: {name}"), count, || {
            buffer.copy_from_slice(black_box(&receive));
            assert_eq!(read(&mut decoder, &mut buffer), count);
        });
        let mut scratch = context(size.max(4096));
        table.row(&format!("frame, tungstenite, one context kept: {name}"), count, || {
            assert_eq!(read_with(&mut scratch, black_box(&receive)), count);
        });
        table.row(
            &format!("frame, tungstenite, a context each time: {name}"),
            count,
            || {
                assert_eq!(read_with(&mut context(size.max(4096)), black_box(&receive)), count);
            },
        );
    }
    let receive = frame(&[b'x'; 64]);
    let mut decoder = Decoder::default();
    table.row("frame, ours: 64 bytes, in two receives", 1, || {
        let mut buffer = [0; 70];
        buffer.copy_from_slice(black_box(&receive));
        let (first, second) = buffer.split_at_mut(30);
        assert_eq!(read(&mut decoder, first) + read(&mut decoder, second), 1);
    });
}

fn envelopes(table: &mut Table) {
    let content = "x".repeat(64);
    let message = format!(r#"{{"type":"message","to":"user12345","content":"{content}","id":"c12345"}}"#);
    let object =
        r#"{"type":"message","to":"user12345","content":{"text":"hello there","tags":["a","b"],"n":17},"id":"c12345"}"#;
    let users: Vec<String> = (0..100).map(|user| format!("\"user{user}\"")).collect();
    let presence = format!(r#"{{"type":"presence","users":[{}],"id":"c1"}}"#, users.join(","));
    for (name, text) in [
        ("message, 64 bytes of content", message.as_str()),
        ("message, an object as content", object),
        ("heartbeat", r#"{"type":"heartbeat"}"#),
        ("presence of 100 users", &presence),
        ("nonsense", r#"{"type":"nonsense","a":1}"#),
    ] {
        table.row(&format!("envelope: {name}"), 1, || {
            let _ = black_box(decode::parse(black_box(text)));
        });
    }
}

fn encoding(table: &mut Table) {
    let content = format!("\"{}\"", "x".repeat(64));
    let mut out = Vec::new();
    let message = Message {
        id: Uuid::from_u128(7),
        from: "user1",
        to: "user2",
        content: &content,
        ts_ms: 1_700_000_000_000,
    };
    table.row("encode: message, 64 bytes of content", 1, || {
        out.clear();
        Codec::Json.encode(&mut out, black_box(&ServerMessage::Message(message)));
        black_box(&out);
    });
    table.row("encode: ack", 1, || {
        out.clear();
        let ack = ServerMessage::Ack {
            id: "c12345",
            message_id: message.id,
            status: AckStatus::Delivered,
        };
        Codec::Json.encode(&mut out, black_box(&ack));
        black_box(&out);
    });
    let mut ids = IdSource::new(7);
    table.row("ids: one message id", 1, || {
        black_box(ids.next(black_box(1_700_000_000_000)));
    });
}

struct Anything;

impl Policy for Anything {
    fn allows_origin(&self, _: &str, _: Option<&str>) -> bool {
        true
    }

    fn serves_echo(&self) -> bool {
        true
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials::Names
    }
}

fn heads(table: &mut Table) {
    let small = "GET /ws?user=alice HTTP/1.1\r\nHost: gateway.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let browser = small.replace(
        "Upgrade: websocket",
        "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\nOrigin: https://gateway.example.com\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nUpgrade: websocket",
    );
    for (name, text) in [("small", small), ("a browser's", &browser)] {
        table.row(&format!("head: {name}"), 1, || {
            black_box(head::read(black_box(text.as_bytes()), &Anything));
        });
    }
}

/// Tokens that OpenSSL signed, lines of `ALG token`.
const TOKENS: &str = include_str!("../tests/keys/tokens.txt");

fn tokens(table: &mut Table) {
    for (name, token) in TOKENS.lines().filter_map(|line| line.split_once(' ')) {
        let algorithm = Algorithm::by_name(name).unwrap();
        let key = match algorithm.family() {
            Family::Hmac => include_str!("../tests/keys/secret.txt"),
            Family::Rsa => include_str!("../tests/keys/rsa.pub.pem"),
            Family::P256 => include_str!("../tests/keys/p256.pub.pem"),
            Family::P384 => include_str!("../tests/keys/p384.pub.pem"),
            Family::Ed25519 => include_str!("../tests/keys/ed25519.pub.pem"),
        };
        let key = VerifyingKey::configured(key, &[algorithm]).unwrap().remove(0);
        table.row(&format!("token: read and verified by {name}"), 1, || {
            let signed = Signed::parse(black_box(token)).unwrap();
            assert!(signed.payload(&key, algorithm).is_some());
        });
    }
}

fn tables(table: &mut Table) {
    const COUNT: usize = 1_000_000;
    let map = HomeMap::new(8, [7; 16]);
    let names: Vec<String> = (0..COUNT).map(|user| format!("user{user}")).collect();
    let mut users = Users::default();
    for (slot, name) in names.iter().enumerate() {
        users.join(map.hash(name), name, slot as u32);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    table.row("users: hash and home of an id", 1, || {
        let name = &names[17];
        black_box(map.home(map.hash(black_box(name))));
    });
    table.row("users: find one of 1,000,000, at random", 1, || {
        let name = &names[rng.usize(..COUNT)];
        assert!(users.find(map.hash(name), name).is_some());
    });
    table.row("users: find one of the 100 that talk", 1, || {
        let name = &names[rng.usize(..100)];
        assert!(users.find(map.hash(name), name).is_some());
    });
    table.row("users: one comes and goes among 1,000,000", 1, || {
        let user = users.join(map.hash("newcomer"), black_box("newcomer"), COUNT as u32);
        users.leave(user, COUNT as u32);
    });
    let (mut outbox, mut spares) = (Outbox::default(), Spares::default());
    let bytes = [b'x'; 200];
    table.row("outbox: one frame of 200 bytes in and out", 1, || {
        outbox.push(black_box(&bytes), 1, &mut spares);
        let payload = outbox.take(&mut spares).unwrap();
        outbox.sent(payload, &mut spares);
    });
}

/// Messages from one shard to another, as many as a turn brings: in, over, and read by the
/// receiver.
fn lanes(table: &mut Table) {
    let inboxes = lanes::inboxes(2);
    let wakers = (0..2).map(|_| Waker::inert().unwrap()).collect();
    let mailboxes = mailboxes(inboxes.senders, wakers, None);
    let mut lanes = mailboxes.lanes(ShardId(0), &inboxes.depths);
    let (to, inbox) = (ShardId(1), &inboxes.shards[1]);
    let body = [b'x'; 200];
    for count in [1, 16, 256] {
        table.row(
            &format!("lanes: messages of 200 bytes, {count} in a turn"),
            count,
            || {
                for _ in 0..count {
                    let message = OutgoingMessage {
                        hash: UserHash(7),
                        to: "user12345",
                        body: black_box(&body),
                        ack_to: None,
                        received_ns: 1,
                    };
                    lanes.try_message(to, &message).unwrap();
                }
                lanes.flush();
                let batch = inbox.try_next().unwrap();
                let room = batch.room().unwrap();
                let mut messages = 0;
                for item in &batch.items {
                    let ToShard::Message(MessageToShard::Message(message)) = item else {
                        panic!("nothing else was said")
                    };
                    assert_eq!(black_box(batch.bytes(message.body)).len(), body.len());
                    messages += 1;
                }
                assert_eq!(messages, count);
                inbox.done(room);
            },
        );
    }
}

/// What the control thread does for each user who comes or goes, without Redis: noted, made into
/// commands, answered.
fn presence(table: &mut Table) {
    const USERS: usize = 1_000;
    let names: Vec<String> = (0..USERS).map(|user| format!("user{user}")).collect();
    let mut book = PresenceWriter::new(Incarnation(1), 1);
    let mut now_ms = 0;
    table.row("presence: a user comes, 1,000 at a time", USERS, || {
        // Past every pause between two writes.
        now_ms += 10;
        for name in &names {
            book.set(black_box(name), 1);
        }
        let ops = book.poll_ops(now_ms).unwrap();
        assert_eq!(ops.len(), USERS + 1);
        book.handle_written(&vec![Answer::Done; ops.len()], now_ms);
    });
    table.row("presence: what is set again before it is written", 1, || {
        book.set(black_box("user17"), 2);
    });
}

fn main() {
    let criterion = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .sample_size(50)
        .configure_from_args();
    let mut table = Table { criterion };
    frames(&mut table);
    envelopes(&mut table);
    encoding(&mut table);
    heads(&mut table);
    tokens(&mut table);
    tables(&mut table);
    lanes(&mut table);
    presence(&mut table);
    table.criterion.final_summary();
}
