//! A gateway's id is its own: a second one does not start while the first lives, and does soon
//! after the first has died.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::{Fleet, Gateway, Peer, Redis};
use libc::SIGTERM;

#[test]
fn a_second_one_is_refused() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    let ended = fleet.refused("gw2");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("gw2"), "it names the id: {ended:?}");
    assert!(
        last.contains("gateway_id") || last.contains("gateway-id") || last.contains("gatewayId"),
        "and the key to change: {ended:?}"
    );
    // The holder has not noticed.
    assert_eq!(alice.tell("bob", 1), "routed");
    bob.wait_for(1);
    assert_eq!(fleet.directory(&redis).len(), 2);
    // With another prefix it is another system.
    let [other] = Fleet::new(redis.url()).start();
    assert_eq!(other.id, "gw1");
}

#[test]
fn a_dead_one_is_replaced() {
    let redis = Redis::start();
    // Long: it is not this that the new one waits for.
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", "10m"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    let dead = fleet.incarnation(&redis, "gw2");
    fleet.wait_until_indexed(&redis, &dead, &["bob"]);
    gw2.kill();
    bob.wait_for_end();
    let gw2 = fleet.gateway("gw2");
    alice.wait_to_see("bob", false);
    alice.tell_until("bob", 1, "offline");
    let bob = Peer::connect(&gw2, "bob");
    alice.tell_until("bob", "back", "routed");
    bob.wait_for("back");
    fleet.wait_until_swept(&redis, &dead);
    assert_eq!(alice.sees("bob"), Some(true));
    assert_eq!(alice.tell("bob", "still"), "routed");
}

#[test]
fn after_a_clean_stop_at_once() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--drain-timeout", "1s", "--presence-ttl", "10m"]);
    let [gw1, mut gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    for n in 0..5 {
        let bob = Peer::connect(&gw2, "bob");
        alice.tell_until("bob", n, "routed");
        bob.wait_for(n);
        gw2.signal(SIGTERM);
        assert_eq!(gw2.wait_for_exit(), 0);
        gw2 = fleet.gateway("gw2");
        assert_eq!(alice.sees("bob"), Some(false));
    }
}

/// Of many that start with one id at the same instant, one does.
#[test]
fn one_of_many_gets_it() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let started: Vec<Gateway> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Gateway::try_spawn(fleet.command("same"))))
            .collect();
        let ended = starting.into_iter().map(|gateway| gateway.join().unwrap());
        ended
            .filter_map(|gateway| {
                gateway
                    .map_err(|ended| assert_eq!(ended.code, Some(1), "{ended:?}"))
                    .ok()
            })
            .collect()
    });
    assert_eq!(
        started.len(),
        1,
        "{:?}",
        started.iter().map(Gateway::pid).collect::<Vec<_>>()
    );
    assert_eq!(fleet.directory(&redis).len(), 1);
}
