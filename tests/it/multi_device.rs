//! A user is online as long as one device is, wherever it is connected, and offline once the last
//! has gone.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::{Fleet, Gateway, Peer, Redis, eventually};

/// Far above the time of any step here: an expected event comes by its message, not because time
/// ran out.
const TTL: [&str; 2] = ["--presence-ttl", "10m"];

fn system<const N: usize>(args: &[&str]) -> (Redis, Fleet, [Gateway; N]) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&TTL).with_args(args);
    let gateways = fleet.start();
    (redis, fleet, gateways)
}

#[test]
fn online_until_the_last_device_leaves() {
    let (redis, fleet, [gw1, gw2, gw3]) = system(&[]);
    let gateways = [&gw1, &gw2, &gw3];
    let mut watchers = gateways.map(|gateway| Peer::connect(gateway, "watcher"));
    let mut devices: Vec<Peer> = [&gw1, &gw2, &gw3, &gw2, &gw1]
        .iter()
        .map(|gateway| Peer::connect(gateway, "bob"))
        .collect();
    for watcher in &mut watchers {
        watcher.wait_to_see("bob", true);
    }
    eventually("all five are counted", || {
        let places = fleet.places(&redis, "bob");
        let counts: u32 = places.values().map(|count| count.parse::<u32>().unwrap()).sum();
        places.len() == 3 && counts == 5
    });
    let mut round = 0;
    while let Some(device) = devices.pop() {
        if round % 2 == 0 {
            device.leave();
        } else {
            drop(device);
        }
        round += 1;
        if devices.is_empty() {
            break;
        }
        for watcher in &mut watchers {
            assert_eq!(watcher.sees("bob"), Some(true), "{} devices are left", devices.len());
            let content = format!("{round} from {:p}", watcher);
            let status = watcher.tell("bob", content.as_str());
            assert!(status == "routed" || status == "delivered", "{status}");
            for device in &devices {
                device.wait_for(content.as_str());
            }
        }
    }
    for watcher in &mut watchers {
        watcher.wait_to_see("bob", false);
        watcher.tell_until("bob", "too late", "offline");
    }
    eventually("nothing is written down about bob", || {
        fleet.places(&redis, "bob").is_empty()
    });
}

/// The last change wins, however quickly changes follow each other.
fn flap(there: usize, back: usize) {
    let (redis, fleet, gateways) = system::<3>(&[]);
    let mut watcher = Peer::connect(&gateways[2], "watcher");
    let mut device = gateways[back].connect("bob");
    for _ in 0..100 {
        drop(device);
        device = gateways[there].connect("bob");
        drop(device);
        device = gateways[back].connect("bob");
    }
    let mut bob = Peer::follow(device, "bob");
    let incarnation = fleet.incarnation(&redis, &gateways[back].id);
    eventually("exactly one device is written down", || {
        let places = fleet.places(&redis, "bob");
        places.len() == 1 && places.get(&incarnation).is_some_and(|count| count == "1")
    });
    watcher.wait_to_see("bob", true);
    watcher.tell_until("bob", "found", "routed");
    for n in 0..50 {
        assert_eq!(watcher.tell("bob", n), "routed");
        assert_eq!(watcher.sees("bob"), Some(true));
    }
    bob.wait_for(49);
    assert!(bob.sees("watcher").is_some());
    bob.leave();
    watcher.wait_to_see("bob", false);
    watcher.tell_until("bob", "gone", "offline");
}

#[test]
fn flapping_on_one_gateway() {
    flap(0, 0);
}

#[test]
fn flapping_between_gateways() {
    flap(1, 0);
}

#[test]
fn flapping_that_ends_offline() {
    let (redis, fleet, [gw1, gw2, gw3]) = system(&[]);
    let mut watcher = Peer::connect(&gw3, "watcher");
    for _ in 0..50 {
        drop(gw1.connect("bob"));
        drop(gw2.connect("bob"));
    }
    eventually("nothing is written down about bob", || {
        fleet.places(&redis, "bob").is_empty()
    });
    watcher.wait_to_see("bob", false);
    watcher.tell_until("bob", 1, "offline");
    for gateway in [&gw1, &gw2] {
        eventually("the gateway has forgotten bob", || gateway.stats()["users"] == 0);
    }
    assert!(fleet.places(&redis, "bob").is_empty());
}

#[test]
fn the_limit_counts_per_gateway() {
    let (_redis, _fleet, [gw1, gw2]) = system(&["--limits-connections-per-user", "2"]);
    let mut watcher = Peer::connect(&gw2, "watcher");
    let first = Peer::connect(&gw1, "bob");
    let here = [Peer::connect(&gw1, "bob"), Peer::connect(&gw2, "bob")];
    let there = Peer::connect(&gw2, "bob");
    watcher.wait_to_see("bob", true);
    assert!(first.is_open(), "two on each are allowed");
    let third = Peer::connect(&gw1, "bob");
    assert_eq!(first.wait_for_close(), 3504);
    watcher.tell("bob", "all");
    for device in here.iter().chain([&there, &third]) {
        device.wait_for("all");
        assert!(device.is_open());
    }
    assert_eq!(watcher.sees("bob"), Some(true));
}
