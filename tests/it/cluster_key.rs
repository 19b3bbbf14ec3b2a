//! A client that may publish in Redis cannot pose as a gateway. With `cluster.key` nothing without
//! its tag is believed. Without it only whole frames enter a client's stream, and gateways that do
//! not exist cost little.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::time::{Duration, Instant};

use common::redis::Reply;
use common::{Fleet, Gateway, Peer, Redis, eventually};
use shardgate::cluster::packet::{BODIES, Confirm, FRAMES, Origin, PacketBuilder, for_older_gateways};
use shardgate::cluster::store::Incarnation;
use shardgate::wire::codec::Codec;
use shardgate::wire::message::{Message, ServerMessage};
use shardgate::wire::ws::frame::Opcode;
use shardgate::wire::ws::server_frame;

const KEY: &str = "the-first-key-of-this-cluster";
const NEXT_KEY: &str = "the-second-key-of-this-cluster";

/// An attacker that may publish in Redis, and that knows everything but the key.
struct Forger<'a> {
    redis: &'a Redis,
    channel: String,
    all: String,
}

impl Forger<'_> {
    fn against<'a>(redis: &'a Redis, fleet: &Fleet, gateway: &Gateway) -> Forger<'a> {
        let life = fleet.incarnation(redis, &gateway.id);
        Forger {
            redis,
            channel: fleet.channel(&gateway.id, &life),
            all: format!("{}all", fleet.prefix),
        }
    }

    fn publish(&self, channel: &str, packet: &[u8]) {
        let mut connection = self.redis.connection();
        connection.send(&[b"PUBLISH", channel.as_bytes(), packet]).unwrap();
        assert!(connection.read().unwrap().int() >= 1, "{channel} is heard");
    }
}

fn origin(incarnation: u64) -> Origin<'static> {
    Origin {
        id: "nobody",
        incarnation: Incarnation(incarnation),
    }
}

fn message_to_bob(incarnation: u64, body: &[u8]) -> Vec<u8> {
    let mut packet = PacketBuilder::default();
    packet.message(origin(incarnation), "bob", body, true);
    packet.close(1).to_vec()
}

fn good_body(content: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let message = Message {
        id: uuid::Uuid::nil(),
        from: "mallory",
        to: "bob",
        content,
        ts_ms: 7,
    };
    Codec::Json.encode(&mut body, &ServerMessage::Message(message));
    body
}

fn dropped(gateway: &Gateway, kind: &str, reason: &str) -> f64 {
    let labels = [format!("kind=\"{kind}\""), format!("reason=\"{reason}\"")];
    gateway.metric("shardgate_dropped_total", &[&labels[0], &labels[1]])
}

#[test]
fn without_the_key_nobody_speaks_as_a_gateway() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--cluster-key", KEY]);
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.subscribe("room");
    bob.subscribe("room");
    assert_eq!(alice.tell("bob", "sealed"), "routed");
    bob.wait_for("sealed");
    alice.publish_until_heard(&bob, "room");

    let forger = Forger::against(&redis, &fleet, &gw2);
    forger.publish(&forger.channel, &message_to_bob(1, &good_body("1")));
    let mut packet = PacketBuilder::default();
    packet.close_user(origin(1), "bob", 3503);
    forger.publish(&forger.all, &packet.close(0));
    eventually("both are counted", || dropped(&gw2, "packet", "unsealed") >= 2.0);
    gw2.wait_for_log("it has no tag");
    // Neither was carried out.
    assert_eq!(alice.tell("bob", "still here"), "routed");
    bob.wait_for("still here");
    assert!(bob.heard_from("mallory").is_empty());
}

#[test]
fn a_packet_that_was_heard_is_no_good_a_second_time() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--cluster-key", KEY]);
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    let forger = Forger::against(&redis, &fleet, &gw2);
    let mut ear = redis.connection();
    ear.cmd(&["SUBSCRIBE", &forger.channel]);
    assert_eq!(alice.tell("bob", "once"), "routed");
    // Probes of the gateway itself come on this channel, too.
    let heard = loop {
        let said = ear.read().unwrap();
        if let Some(Reply::Bulk(payload)) = said.array().get(2)
            && payload.windows(6).any(|part| part == b"\"once\"")
        {
            break payload.clone();
        }
    };
    let late = dropped(&gw2, "packet", "late");
    forger.publish(&forger.channel, &heard);
    eventually("it is refused", || dropped(&gw2, "packet", "late") > late);
    assert_eq!(alice.tell("bob", "then"), "routed");
    bob.wait_for("then");
    assert_eq!(bob.messages().len(), 2);
}

#[test]
fn a_key_is_replaced_while_all_understand_each_other_and_other_keys_are_told_apart() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let with_keys = |id: &str, keys: &str| {
        let mut command = fleet.command(id);
        command.args(["--cluster-key", keys]);
        Gateway::try_spawn(command).unwrap()
    };
    let old_first = with_keys("old", &format!("{KEY},{NEXT_KEY}"));
    let new_first = with_keys("new", &format!("{NEXT_KEY},{KEY}"));
    let mut alice = Peer::connect(&old_first, "alice");
    let mut bob = Peer::connect(&new_first, "bob");
    alice.tell_until("bob", 1, "routed");
    bob.tell_until("alice", 1, "routed");
    // A gateway without a key is refused, and refuses: both log it.
    let keyless = fleet.gateway("keyless");
    let carol = Peer::connect(&keyless, "carol");
    eventually("carol is seen, as presence needs no packet", || {
        alice.sees("carol") == Some(true)
    });
    assert_eq!(alice.tell("carol", 1), "failed");
    keyless.wait_for_log("cluster.key");
    old_first.wait_for_log("has no cluster.key");
    assert!(dropped(&keyless, "packet", "no_key") >= 1.0);
    assert!(carol.messages().is_empty());
}

#[test]
fn what_is_no_frame_enters_nobodys_stream() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.subscribe("room");
    bob.subscribe("room");
    let forger = Forger::against(&redis, &fleet, &gw2);
    let mut frame = Vec::new();
    server_frame::frame(&mut frame, Opcode::Text, &good_body("1"));
    let (mut closing, mut invalid) = (frame.clone(), good_body("\"?\""));
    closing[0] = 0x88;
    let mark = invalid.iter().position(|byte| *byte == b'?').unwrap();
    invalid[mark] = 0xff;
    let bodies: [&[u8]; 4] = [b"", b"no body", &invalid, &good_body("1")[1..]];
    let frames: [&[u8]; 5] = [b"", b"no frame", &closing, &frame.repeat(2), &frame[1..]];
    let bodies = bodies.map(|body| (BODIES, body)).into_iter();
    for (n, (version, bytes)) in bodies.chain(frames.map(|frame| (FRAMES, frame))).enumerate() {
        let mut to_bob = message_to_bob(10 + n as u64, bytes);
        to_bob[0] = version;
        forger.publish(&forger.channel, &to_bob);
        let mut packet = PacketBuilder::default();
        packet.broadcast(origin(1), bytes);
        let mut packet = packet.close(0);
        packet[0] = version;
        forger.publish(&forger.all, &packet);
    }
    eventually("all are counted", || {
        dropped(&gw2, "message", "bad_frame") == 9.0 && dropped(&gw2, "order", "bad_frame") == 9.0
    });
    // A good one is what it always was.
    let older = for_older_gateways(message_to_bob(98, &good_body("\"older\"")));
    forger.publish(&forger.channel, &older);
    bob.wait_for("older");
    forger.publish(&forger.channel, &message_to_bob(99, &good_body("\"forged\"")));
    bob.wait_for("forged");
    assert_eq!(alice.tell("bob", "after"), "routed");
    bob.wait_for("after");
    assert_eq!(bob.messages().len(), 3);
}

#[test]
fn gateways_that_do_not_exist_stall_nobody() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let _bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    let forger = Forger::against(&redis, &fleet, &gw2);
    let mut connection = redis.connection();
    for n in 0..20_000u64 {
        let mut packet = PacketBuilder::default();
        packet.message(origin(1 << 40 | n), "bob", b"x", true);
        packet.confirm(origin(1 << 40 | n), &Confirm::default());
        connection
            .send(&[b"PUBLISH", forger.channel.as_bytes(), &packet.close(1)])
            .unwrap();
        connection.read().unwrap();
    }
    let began = Instant::now();
    assert_eq!(alice.tell("bob", "meanwhile"), "routed");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    eventually("those who are too many are counted", || {
        dropped(&gw2, "packet", "unknown_gateway") > 0.0
    });
}
