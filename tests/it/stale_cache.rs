//! A user moves from one gateway to another while another user writes to them from a third gateway.
//! The third remembers where the user was: its memory must not outlive the truth.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::{Talk, assert_rising, is_taken};
use common::{Fleet, Gateway, Peer, Redis};
use serde_json::Value;
use std::collections::BTreeSet;

const MOVES: usize = 20;

fn numbers(messages: &[Value]) -> Vec<u64> {
    let from_alice = messages.iter().filter(|message| message["from"] == "alice");
    from_alice.filter_map(|message| message["content"].as_u64()).collect()
}

/// Bob moves back and forth; the statuses of alice's messages, and the messages at each of his
/// connections.
fn moves(overlap: bool) -> (Vec<Option<String>>, Vec<Vec<u64>>) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "10m"]);
    let [gw1, gw2, gw3] = fleet.start();
    let alice = Peer::connect(&gw1, "alice");
    let mut watcher = Peer::connect(&gw1, "watcher");
    let mut bob = Peer::connect(&gw2, "bob");
    watcher.wait_to_see("bob", true);
    let talk = Talk::start(alice, "bob");
    talk.wait_for_acks(20);
    let homes: [&Gateway; 2] = [&gw3, &gw2];
    let mut got = Vec::new();
    for n in 0..MOVES {
        let next = if overlap {
            let next = Peer::connect(homes[n % 2], "bob");
            // The old one stays until the new one is known.
            watcher.tell_until_heard(&next, format!("both {n}"));
            got.push(numbers(&bob.leave()));
            next
        } else {
            got.push(numbers(&bob.leave()));
            Peer::connect(homes[n % 2], "bob")
        };
        bob = next;
        // Within a moment it arrives here: the next that is routed, and each after it.
        watcher.tell_until_heard(&bob, format!("moved {n}"));
        talk.wait_for_acks(10);
    }
    let (mut alice, said) = talk.stop();
    alice.tell_until("bob", "end", "routed");
    bob.wait_for("end");
    got.push(numbers(&bob.leave()));
    (said, got)
}

/// Acked messages that reached no connection of bob.
fn missed(said: &[Option<String>], got: &[Vec<u64>]) -> Vec<usize> {
    let reached: BTreeSet<u64> = got.iter().flatten().copied().collect();
    let taken = |n: &usize| is_taken(said[*n].as_deref());
    (0..said.len())
        .filter(taken)
        .filter(|n| !reached.contains(&(*n as u64)))
        .collect()
}

/// As a careful client moves: it is connected all the time, so nothing may be missed.
#[test]
fn with_a_connection_at_all_times_nothing_is_missed() {
    let (said, got) = moves(true);
    for (n, numbers) in got.iter().enumerate() {
        assert_rising(&format!("connection {n}"), numbers);
    }
    let missed = missed(&said, &got);
    eprintln!("{} said, {} moves, missed {missed:?}", said.len(), MOVES);
    assert!(said.iter().all(|status| is_taken(status.as_deref())), "{said:?}");
    assert!(missed.is_empty(), "{missed:?}");
}

/// As a careless client moves: messages in flight while no connection is there may be missed, and
/// no more.
#[test]
fn after_a_gap_messages_arrive_at_the_new_place() {
    let (said, got) = moves(false);
    for (n, numbers) in got.iter().enumerate() {
        assert_rising(&format!("connection {n}"), numbers);
    }
    let all: Vec<u64> = got.concat();
    assert_rising("all connections, one after the other", &all);
    let missed = missed(&said, &got);
    eprintln!("{} said, {} moves, missed {missed:?}", said.len(), MOVES);
    // One sender that waits for each ack has at most one in flight.
    assert!(missed.len() <= MOVES, "{missed:?}");
}

/// The sender's own gateway's writes about a user must not make it miss the others' writes about
/// them.
#[test]
fn a_user_who_is_here_too() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "10m"]);
    let [gw1, gw2, gw3] = fleet.start();
    let alice = Peer::connect(&gw1, "alice");
    let mut watcher = Peer::connect(&gw1, "watcher");
    let there = Peer::connect(&gw2, "bob");
    watcher.tell_until_heard(&there, "there");
    // Asks all the time where bob is, also in the instant in which gateway 1 writes that he is
    // here.
    let talk = Talk::start(alice, "bob");
    for n in 0..10 {
        let here = Peer::connect(&gw1, "bob");
        common::eventually("two places", || fleet.places(&redis, "bob").len() == 2);
        talk.wait_for_acks(3);
        let elsewhere = Peer::connect(&gw3, "bob");
        watcher.tell_until_heard(&elsewhere, format!("everywhere {n}"));
        here.leave();
        elsewhere.leave();
        common::eventually("one place", || fleet.places(&redis, "bob").len() == 1);
        watcher.tell_until_heard(&there, format!("there {n}"));
    }
    talk.stop();
}

/// The same when what it writes is the end of a dead gateway's presence.
#[test]
fn a_user_of_a_gateway_that_died() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "3s"]);
    let [mut dies, gateways @ ..]: [Gateway; 4] = fleet.start();
    let mut senders = [0, 1, 2].map(|n| Peer::connect(&gateways[n], &format!("sender{n}")));
    let names = [0, 1, 2].map(|n| format!("user{n}"));
    let users = names.each_ref().map(|name| Peer::connect(&dies, name));
    for sender in &mut senders {
        for user in &users {
            sender.tell_until_heard(user, "there");
        }
    }
    let dead = fleet.incarnation(&redis, &dies.id);
    fleet.wait_until_indexed(&redis, &dead, &names);
    dies.kill();
    drop(users);
    // One of the others sweeps, while all are asked where the users are.
    common::eventually("swept", || {
        for sender in &mut senders {
            for name in &names {
                sender.tell(name, "?");
            }
        }
        fleet.traces(&redis, &dead).is_empty()
    });
    // Whichever it was, it must see them come back elsewhere.
    for (name, gateway) in names.iter().zip(&gateways) {
        let user = Peer::connect(gateway, name);
        for sender in &mut senders {
            sender.tell_until_heard(&user, "back");
        }
    }
}
