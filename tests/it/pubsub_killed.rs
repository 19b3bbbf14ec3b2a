//! Connections to Redis are cut under traffic. They come back. Messages are in order, not doubled,
//! and not acked as taken when they were not.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::{Talk, assert_truthful};
use common::{Fleet, Peer, Redis};

const KILLS: usize = 12;

fn killed(kinds: &[&str]) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    let dave = Peer::connect(&gw1, "dave");
    let mut watcher = Peer::connect(&gw1, "watcher");
    watcher.wait_to_see_all(&["bob", "carol"], true);
    carol.wait_to_see("dave", true);
    let there = Talk::start(alice, "bob");
    let back = Talk::start(carol, "dave");
    there.wait_for_acks(50);
    let mut killed = 0;
    for n in 0..KILLS {
        let kind = kinds[n % kinds.len()];
        killed += redis.client_kill(kind);
        if n % 3 != 0 {
            watcher.tell_until("bob", format!("after kill {n}"), "routed");
            there.wait_for_acks(20);
            back.wait_for_acks(20);
        } else {
            // Again before it has recovered, or while it recovers.
            there.wait_for_acks(1);
        }
    }
    // Each time but when it is too soon after the last, both gateways.
    assert!(killed >= KILLS as i64, "{killed}");
    let mut last = Peer::connect(&gw2, "last");
    watcher.tell_until("bob", "the last", "routed");
    last.tell_until("dave", "the last", "routed");
    let (mut alice, said) = there.stop();
    let (mut carol, said_back) = back.stop();
    // Behind everything else that was sent.
    alice.tell_until("bob", "end", "routed");
    carol.tell_until("dave", "end", "routed");
    bob.wait_for("end");
    dave.wait_for("end");
    assert_truthful("alice to bob", &said, &bob.numbers_from("alice"), KILLS);
    assert_truthful("carol to dave", &said_back, &dave.numbers_from("carol"), KILLS);
    watcher.wait_to_see_all(&["alice", "bob", "carol", "dave", "last"], true);
    last.wait_to_see_all(&["alice", "bob", "carol", "dave", "watcher"], true);
    for peer in [&alice, &bob, &carol, &dave, &watcher, &last] {
        assert!(peer.is_open(), "{}", peer.user);
    }
    // And it goes on without any of that.
    for n in 0..100 {
        assert_eq!(alice.tell("bob", format!("calm {n}")), "routed");
    }
    bob.wait_for("calm 99");
}

#[test]
fn subscriptions() {
    killed(&["pubsub"]);
}

#[test]
fn commands() {
    killed(&["normal"]);
}

#[test]
fn both() {
    killed(&["normal", "pubsub", "pubsub", "normal"]);
}
