//! Redis goes away and comes back under channels. Local publications go on, the others fail with
//! notice. Publications cross again by themselves, on the subscriptions of before.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::assert_rising;
use common::{Fleet, Gateway, Peer, Redis, eventually};
use serde_json::Value;

fn system() -> (Redis, [Gateway; 2]) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let gateways = fleet.start();
    (redis, gateways)
}

/// Publications of one publisher on a channel came in order and once, whatever was lost.
#[track_caller]
fn assert_orderly(peer: &Peer, channel: &str, from: &str) {
    let publications = peer.publications_on(channel);
    let from_there = publications.iter().filter(|publication| publication["from"] == *from);
    let numbers: Vec<u64> = from_there
        .filter_map(|publication| publication["content"].as_u64())
        .collect();
    assert!(!numbers.is_empty());
    assert_rising(channel, &numbers);
}

fn copies(peer: &Peer, channel: &str, content: &str) -> usize {
    let publications = peer.publications_on(channel);
    publications
        .iter()
        .filter(|publication| publication["content"] == *content)
        .count()
}

/// Several channels, so that each shard is home to some.
const ROOMS: [&str; 6] = ["room0", "room1", "room2", "room3", "room4", "room5"];

#[test]
fn killed_and_back() {
    let (mut redis, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut bob = Peer::connect(&gw1, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    for room in ROOMS {
        bob.subscribe(room);
        carol.subscribe(room);
        assert_eq!(alice.publish(room, "before"), "published");
        carol.wait_for_publication(room, "before");
    }
    for round in 0..3 {
        redis.kill();
        for (sender, receiver) in [(&mut alice, &bob)] {
            eventually("it is noticed", || sender.publish("room0", "anybody?") == "failed");
            for room in ROOMS {
                let content = format!("local {round}");
                assert_eq!(sender.publish(room, content.as_str()), "failed", "not for all");
                receiver.wait_for_publication(room, content);
            }
        }
        // Channels without a subscriber until now, on either gateway.
        let mut dave = Peer::connect(&gw1, "dave");
        let mut erin = Peer::connect(&gw2, "erin");
        for room in ROOMS {
            let fresh = format!("fresh {round} {room}");
            dave.subscribe(&fresh);
            erin.subscribe(&fresh);
            assert_eq!(alice.publish(&fresh, "near"), "failed");
            dave.wait_for_publication(&fresh, "near");
        }
        dave.unsubscribe(&format!("fresh {round} room0"));
        redis.restart();
        for room in ROOMS {
            alice.publish_until_heard(&carol, room);
            carol.publish_until_heard(&bob, room);
        }
        for room in &ROOMS[1..] {
            let fresh = format!("fresh {round} {room}");
            alice.publish_until_heard(&erin, &fresh);
            carol.publish_until_heard(&dave, &fresh);
            assert_orderly(&erin, &fresh, "alice");
        }
        eventually("published again", || alice.publish("room0", "well") == "published");
        for gateway in [&gw1, &gw2] {
            eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
        }
        // From here on nothing is lost.
        for room in ROOMS {
            for n in 0..20 {
                let content = format!("{round} {n}");
                assert_eq!(alice.publish(room, content.as_str()), "published");
            }
            for peer in [&bob, &carol] {
                peer.wait_for_publication(room, format!("{round} 19"));
                for n in 0..20 {
                    assert_eq!(copies(peer, room, &format!("{round} {n}")), 1);
                }
            }
        }
    }
    for room in ROOMS {
        assert_orderly(&carol, room, "alice");
        assert_orderly(&bob, room, "carol");
        for round in 0..3 {
            assert_eq!(copies(&bob, room, &format!("local {round}")), 1);
        }
    }
}

/// A client that subscribes in the instant in which Redis dies gets an answer all the same.
#[test]
fn subscribing_while_it_dies() {
    let (mut redis, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut bob = Peer::connect(&gw2, "bob");
    for round in 0..3 {
        std::thread::scope(|scope| {
            let subscribing = scope.spawn(|| {
                for n in 0..60 {
                    alice.subscribe(&format!("{round}-{n}"));
                }
            });
            redis.kill();
            subscribing.join().unwrap();
        });
        redis.restart();
        for n in (0..60).step_by(7) {
            bob.publish_until_heard(&alice, &format!("{round}-{n}"));
        }
        for n in 0..60 {
            alice.unsubscribe(&format!("{round}-{n}"));
        }
    }
}

/// The connections for subscriptions break, and those for commands: publications cross again, in
/// order and once.
#[test]
fn connections_are_killed() {
    let (redis, [gw1, gw2]) = system();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut bob = Peer::connect(&gw1, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    for room in ROOMS {
        bob.subscribe(room);
        carol.subscribe(room);
    }
    let mut killed = 0;
    for n in 0..8 {
        let kind = if n % 4 == 3 { "normal" } else { "pubsub" };
        killed += redis.client_kill(kind);
        // In the middle of it.
        let late = format!("late {n}");
        carol.subscribe(&late);
        for room in ROOMS.iter().chain([&&*late]) {
            alice.publish_until_heard(&carol, room);
        }
        for room in ROOMS {
            carol.publish_until_heard(&bob, room);
        }
    }
    assert!(killed >= 8, "{killed}");
    for room in ROOMS {
        assert_orderly(&carol, room, "alice");
        assert_orderly(&bob, room, "carol");
        assert_eq!(alice.publish(room, "calm"), "published");
        let last: Value = carol.wait_for_publication(room, "calm");
        assert_eq!(last["from"], "alice");
    }
    for peer in [&alice, &bob, &carol] {
        assert!(peer.is_open(), "{}", peer.user);
    }
}
