//! Presence questions of clients do not touch other clients. With a real Redis, 48 connections ask
//! for 100 users at a time, as fast as they may and faster. Meanwhile messages between two gateways
//! go on, and so do leases and probes.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::storm::{self, CONNECTIONS, FRAMES, Link, USERS};
use common::{Fleet, Peer, Redis};
use serde_json::Value;

/// Messages of other clients, each after the answer to the one before: within every client's burst.
const MESSAGES: usize = 95;
const STORM_MAX: Duration = Duration::from_secs(20);

#[test]
fn a_storm_of_questions_fails_nobodys_messages() {
    let redis = Redis::start();
    // The last word about a flag counts: the rate is the one that everybody has.
    let fleet = Fleet::new(redis.url());
    let with_default_rate = |id: &str| {
        let mut command = fleet.command(id);
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let at = args
            .iter()
            .position(|arg| arg == "--limits-messages-per-second")
            .unwrap();
        let program = command.get_program().to_owned();
        command = common::gateway::command(program.to_str().unwrap());
        command.args(&args[..at]).args(&args[at + 2..]);
        common::Gateway::try_spawn(command).unwrap()
    };
    let (gw1, gw2) = (with_default_rate("gw1"), with_default_rate("gw2"));
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    let links = [&gw1, &gw2].map(Link::of);

    let over = AtomicBool::new(false);
    let (asked, answered, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for connection in 0..USERS * CONNECTIONS {
            let (over, asked, answered, refused, gw1) = (&over, &asked, &answered, &refused, &gw1);
            scope.spawn(move || {
                let began = Instant::now();
                let mut round = 0;
                while !over.load(SeqCst) && began.elapsed() < STORM_MAX {
                    let mut client = gw1.connect(&storm::user(connection));
                    client.send_raw(&storm::burst(connection, round, FRAMES));
                    asked.fetch_add(FRAMES as u64, SeqCst);
                    for _ in 0..FRAMES {
                        let answer: Value = client.recv_json();
                        match answer["type"].as_str() {
                            Some("presence") => answered.fetch_add(1, SeqCst),
                            _ => refused.fetch_add(1, SeqCst),
                        };
                    }
                    client.close();
                    round += 1;
                }
            });
        }
        let mut statuses = std::collections::BTreeMap::<String, usize>::new();
        let began = Instant::now();
        for n in 0..MESSAGES {
            *statuses.entry(alice.tell("bob", n)).or_default() += 1;
            // Other users that are new to this gateway, so that their locations have to be learned
            // meanwhile.
            let status = alice.tell(&format!("nobody{n}"), n);
            assert_eq!(status, "offline", "{n}");
        }
        let took = began.elapsed();
        over.store(true, SeqCst);
        assert_eq!(statuses.get("routed"), Some(&MESSAGES), "{statuses:?}");
        assert!(took < STORM_MAX, "the storm was over before: {took:?}");
    });
    bob.wait_for_messages(MESSAGES);
    assert!(answered.load(SeqCst) > 0, "{refused:?} of {asked:?} refused");
    for (link, gateway) in links.iter().zip([&gw1, &gw2]) {
        link.assert_held(gateway);
    }
}

/// Users who are here need no question, and known users are not asked for again.
#[test]
fn what_is_known_is_not_asked_for() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let here: Vec<Peer> = (0..10).map(|n| Peer::connect(&gw1, &format!("here{n}"))).collect();
    let there: Vec<Peer> = (0..10).map(|n| Peer::connect(&gw2, &format!("there{n}"))).collect();
    let names: Vec<String> = here.iter().chain(&there).map(|peer| peer.user.clone()).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("nobody");
    alice.wait_to_see_all(&names[..20], true);
    let locates = || gw1.metric("shardgate_redis_operations_total", &["kind=\"locate\""]);
    // After the last change of location every user is known.
    alice.presence(&names).unwrap();
    let before = locates();
    for _ in 0..20 {
        let seen = alice.presence(&names).unwrap();
        assert_eq!(seen.values().filter(|online| **online).count(), 20);
        assert!(!seen["nobody"]);
    }
    assert_eq!(locates(), before);
    // Remembered locations are given up when they change.
    for peer in there {
        peer.leave();
    }
    alice.wait_to_see_all(&names[10..20], false);
    // Local users are seen with Redis gone, too.
    drop(redis);
    let seen = alice.presence(&names[..10]).unwrap();
    assert!(seen.values().all(|online| *online), "{seen:?}");
}
