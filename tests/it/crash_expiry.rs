//! A gateway that dies without a goodbye: within `presence.ttl` its users are offline for all
//! others, and nothing of it is left in Redis.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::{Fleet, Peer, Redis, at_once_when};
use std::time::{Duration, Instant};

const TTL: Duration = Duration::from_secs(3);
/// For machines that are busy with other things.
const SLACK: Duration = Duration::from_secs(3);

#[test]
fn users_of_a_dead_gateway_go_offline() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "3s"]);
    let [gw1, gw2, mut gw3] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut carol = Peer::connect(&gw2, "carol");
    let users: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    let devices: Vec<_> = users.iter().map(|user| gw3.connect(user)).collect();
    // A user that is elsewhere too.
    let dave = [Peer::connect(&gw2, "dave"), Peer::connect(&gw3, "dave")];
    for watcher in [&mut alice, &mut carol] {
        watcher.wait_to_see_all(&users, true);
        watcher.wait_to_see("dave", true);
    }
    alice.tell_until("dave", "to both", "routed");
    for device in &dave {
        device.wait_for("to both");
    }
    let incarnation = fleet.incarnation(&redis, &gw3.id);
    fleet.wait_until_indexed(&redis, &incarnation, &users);
    assert!(fleet.traces(&redis, &incarnation).len() >= 50);

    let died = Instant::now();
    gw3.kill();
    for watcher in [&mut alice, &mut carol] {
        loop {
            let asked: Vec<&str> = users.iter().map(String::as_str).chain(["dave"]).collect();
            let answer = watcher.presence(&asked).unwrap();
            assert!(answer["dave"], "dave is on gw2");
            if answer.values().filter(|online| **online).count() == 1 {
                break;
            }
            assert!(
                died.elapsed() < TTL + SLACK,
                "still online after {:?}: {answer:?}",
                died.elapsed()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    eprintln!("offline after {:?}", died.elapsed());
    for user in users.iter().step_by(10) {
        alice.tell_until(user, 1, "offline");
        carol.tell_until(user, 1, "offline");
    }
    assert_eq!(alice.tell("dave", "to one"), "routed");
    dave[0].wait_for("to one");
    fleet.wait_until_swept(&redis, &incarnation);
    assert_eq!(fleet.places(&redis, "dave").len(), 1);
    // The living were not swept with it.
    assert_eq!(alice.sees("carol"), Some(true));
    assert_eq!(carol.sees("alice"), Some(true));
    assert_eq!(carol.tell("alice", "still here"), "routed");
    drop(devices);
}

/// A death has no notice, but a sender soon learns that its messages are not taken any more.
#[test]
fn a_message_to_a_dead_gateway_is_not_routed() {
    let redis = Redis::start();
    // Long, so that time does not decide.
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "10m"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.tell_until("bob", 0, "routed");
    gw2.kill();
    bob.wait_for_end();
    alice.tell_until("bob", 1, "offline");
    assert_eq!(alice.tell("bob", 2), "offline", "and it stays so");
}

/// All die at the same time; the next one to start finds what they left.
#[test]
fn all_die_at_once() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "3s"]);
    let [mut gw1, mut gw2] = fleet.start();
    let devices = [gw1.connect("bob"), gw2.connect("bob"), gw2.connect("carol")];
    Peer::connect(&gw1, "watcher").wait_to_see_all(&["bob", "carol"], true);
    let dead = [&gw1, &gw2].map(|gateway| fleet.incarnation(&redis, &gateway.id));
    fleet.wait_until_indexed(&redis, &dead[0], &["bob"]);
    fleet.wait_until_indexed(&redis, &dead[1], &["bob", "carol"]);
    gw1.kill();
    gw2.kill();
    drop(devices);
    let gw3 = fleet.gateway("gw3");
    let mut watcher = Peer::connect(&gw3, "watcher");
    watcher.wait_to_see_all(&["bob", "carol"], false);
    assert_eq!(watcher.tell("bob", 1), "offline");
    for incarnation in &dead {
        fleet.wait_until_swept(&redis, incarnation);
    }
}

/// Should the list for sweeping be written later than the users, it lacks who came right before the
/// death.
#[test]
fn who_came_right_before_the_death() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "3s"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let incarnation = fleet.incarnation(&redis, "gw2");
    // The list was written just now, for another user.
    let first = Peer::connect(&gw2, "first");
    at_once_when("somebody is written down", || !fleet.places(&redis, "first").is_empty());
    let bob = gw2.connect("bob");
    at_once_when("bob is written down", || !fleet.places(&redis, "bob").is_empty());
    gw2.kill();
    drop((first, bob));
    alice.wait_to_see("bob", false);
    alice.tell_until("bob", 1, "offline");
    fleet.wait_until_swept(&redis, &incarnation);
}
