//! A gateway that drains: its users are present and reachable from all gateways until they have
//! gone, and then it leaves nothing behind.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::time::{Duration, Instant};

use common::{Fleet, Peer, Redis, SLOW_DRAIN, eventually};
use libc::SIGTERM;

/// Present, and reached by messages, until they go.
#[test]
fn others_reach_its_users_until_they_have_gone() {
    let redis = Redis::start();
    let args = [&["--presence-ttl", "10m"], &SLOW_DRAIN[..]].concat();
    let fleet = Fleet::new(redis.url()).with_args(&args);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let crowd = gw2.crowd(60);
    let bob = Peer::connect(&gw2, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    // Dave is on both.
    let dave = [Peer::connect(&gw1, "dave"), Peer::connect(&gw2, "dave")];
    let many: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let devices: Vec<_> = many.iter().map(|user| gw2.connect(user)).collect();
    alice.wait_to_see_all(&many, true);
    alice.wait_to_see_all(&["bob", "carol", "dave"], true);
    alice.tell_until("bob", "before", "routed");
    carol.wait_to_see("alice", true);
    let incarnation = fleet.incarnation(&redis, &gw2.id);

    gw2.signal(SIGTERM);
    eventually("it drains", || gw2.get("/readyz").status == 503);
    for n in 0..300 {
        assert_eq!(alice.tell("bob", n), "routed");
    }
    bob.wait_for(299);
    assert_eq!(bob.numbers_from("alice"), (0..300).collect::<Vec<_>>());
    assert!(
        alice
            .presence(&["bob", "carol", "dave"])
            .unwrap()
            .values()
            .all(|there| *there)
    );
    let some: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(alice.presence(&some).unwrap().values().all(|there| *there));
    assert_eq!(alice.tell("dave", "everywhere"), "delivered");
    dave.iter().for_each(|device| drop(device.wait_for("everywhere")));
    // The other way, and among themselves.
    assert_eq!(carol.tell("bob", "local"), "delivered");
    bob.wait_for("local");
    assert_eq!(carol.tell("alice", "to the other"), "routed");
    alice.wait_for("to the other");
    // No new client comes in.
    assert_eq!(gw2.try_upgrade("/ws?user=late", "").status, 503);

    // A closed client is gone, and the others stay.
    bob.leave();
    alice.wait_to_see("bob", false);
    alice.tell_until("bob", "too late", "offline");
    assert_eq!(alice.tell("carol", "not you"), "routed");
    carol.wait_for("not you");

    let [here, there] = dave;
    drop((carol, there, devices, crowd));
    assert_eq!(gw2.wait_for_exit(), 0);
    let left = fleet.traces(&redis, &incarnation);
    assert!(left.is_empty(), "an exit in order leaves nothing behind: {left:?}");
    assert_eq!(alice.tell("dave", "still here"), "delivered");
    here.wait_for("still here");
}

/// A rolling deploy as it happens: a client with notice stays until it is closed, and others write
/// to it all the while.
#[test]
fn messages_arrive_until_the_close() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "10m"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.tell_until("bob", "before", "routed");
    gw2.signal(SIGTERM);
    bob.wait_for_notice("shutdown");
    let mut routed = Vec::new();
    let last = loop {
        let number = routed.len() as u64;
        match alice.tell("bob", number).as_str() {
            "routed" => routed.push(number),
            other => break other.to_owned(),
        }
    };
    let since = Instant::now();
    assert_eq!(bob.wait_for_close(), 3001);
    // He was as good as closed when the first client saw it.
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{last} for {:?}",
        since.elapsed()
    );
    assert!(routed.len() >= 5, "{} routed, then {last}", routed.len());
    assert_eq!(bob.numbers_from("alice"), routed);
    alice.wait_to_see("bob", false);
    assert_eq!(gw2.wait_for_exit(), 0);
}

#[test]
fn the_last_one_leaves_nothing() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--drain-timeout", "1s"]);
    let [mut gw1, mut gw2] = fleet.start();
    let devices: Vec<_> = (0..50)
        .map(|n| if n % 2 == 0 { &gw1 } else { &gw2 }.connect(&format!("user{}", n / 3)))
        .collect();
    eventually("they are written down", || {
        redis.keys(&format!("{}user:", fleet.prefix)).len() == 17
    });
    gw1.signal(SIGTERM);
    gw2.signal(SIGTERM);
    assert_eq!(gw1.wait_for_exit(), 0);
    assert_eq!(gw2.wait_for_exit(), 0);
    drop(devices);
    let left = redis.keys(&fleet.prefix);
    assert!(left.is_empty(), "{left:?}");
}

/// With Redis away a drain is as orderly; it must not wait for a missing answer.
#[test]
fn without_redis_it_ends_too() {
    let mut redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--drain-timeout", "1s"]);
    let [mut gw1] = fleet.start();
    let mut bob = Peer::connect(&gw1, "bob");
    bob.settle();
    redis.kill();
    gw1.signal(SIGTERM);
    assert_eq!(bob.wait_for_close(), 3001);
    assert_eq!(gw1.wait_for_exit(), 0);
}
