//! A gateway that drains: its users are offline for the other gateways at once, while those that stay are still served by
//! it; and it leaves nothing behind.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::{Fleet, Peer, Redis, eventually};
use libc::SIGTERM;

#[test]
fn others_see_its_users_offline_at_once() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--drain-timeout", "10m", "--presence-ttl", "10m"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    let mut carol = Peer::connect(&gw2, "carol");
    // Dave is on both: he stays.
    let dave = [Peer::connect(&gw1, "dave"), Peer::connect(&gw2, "dave")];
    let many: Vec<String> = (0..200).map(|n| format!("user{n}")).collect();
    let devices: Vec<_> = many.iter().map(|user| gw2.connect(user)).collect();
    alice.wait_to_see_all(&many, true);
    alice.wait_to_see_all(&["bob", "carol", "dave"], true);
    alice.tell_until("bob", "before", "routed");
    carol.wait_to_see("alice", true);
    let incarnation = fleet.incarnation(&redis, &gw2.id);

    gw2.signal(SIGTERM);
    bob.wait_for_notice("shutdown");
    alice.wait_to_see_all(&["bob", "carol"], false);
    alice.wait_to_see_all(&many, false);
    alice.tell_until("bob", "from afar", "offline");
    assert_eq!(alice.sees("dave"), Some(true));
    assert_eq!(alice.tell("dave", "here"), "delivered");
    dave[0].wait_for("here");
    // Those who stay still reach each other, and those on other gateways.
    assert!(bob.is_open() && carol.is_open(), "their connections are still there");
    assert_eq!(carol.tell("bob", "local"), "delivered");
    bob.wait_for("local");
    assert_eq!(carol.tell("alice", "to the other"), "routed");
    alice.wait_for("to the other");
    assert!(bob.heard_from("alice").iter().all(|content| content != "from afar"));
    assert_eq!(gw2.get("/readyz").status, 503);

    drop((bob, carol, dave, devices));
    assert_eq!(gw2.wait_for_exit(), 0);
    let left = fleet.traces(&redis, &incarnation);
    assert!(left.is_empty(), "an exit in order leaves nothing behind: {left:?}");
    assert_eq!(alice.sees("dave"), Some(false));
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

/// With Redis away a drain is as orderly; it must not wait for somebody who does not answer.
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
