//! Presence that Redis loses is found and written again, without any user coming or leaving.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::time::{Duration, Instant};

use common::{Fleet, Peer, Redis, eventually};

/// Short, so that the walk is soon round.
const TTL: &str = "3s";
/// Two walks, and time for machines that are busy with other things.
const FOUND_MAX: Duration = Duration::from_secs(12);

/// A user of Redis that was made for an earlier version.
#[test]
fn what_redis_does_not_permit_is_said() {
    let redis = Redis::start();
    redis
        .cmd(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "&*", "+@all", "-hsetnx"])
        .good();
    let fleet = Fleet::new(redis.url_as("gw", "pw")).with_args(&["--presence-ttl", TTL]);
    let gateway = fleet.gateway("gw1");
    let _alice = Peer::connect(&gateway, "alice");
    let line = gateway.wait_for_log("is not written again");
    assert!(line.contains("hsetnx") && line.contains("ACL SETUSER"), "{line}");
}

#[test]
fn a_deleted_user_is_written_again() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(&["--presence-ttl", TTL]);
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    // This user was never asked for, so no gateway gets an invalidation.
    let quiet = Peer::connect(&gw2, "quiet");
    let bob = [Peer::connect(&gw2, "bob"), Peer::connect(&gw2, "bob")];
    alice.wait_to_see("bob", true);
    let life = fleet.incarnation(&redis, &gw2.id);
    fleet.wait_until_indexed(&redis, &life, &["bob", "quiet"]);
    let before = fleet.places(&redis, "bob");
    assert_eq!(before.get(&life).map(String::as_str), Some("2"));

    let lost = Instant::now();
    for key in [fleet.user_key("bob"), fleet.user_key("quiet"), fleet.index_key(&life)] {
        redis.cmd(&["DEL", &key]);
    }
    eventually("bob and quiet are written again", || {
        fleet.places(&redis, "bob") == before && fleet.places(&redis, "quiet").contains_key(&life)
    });
    assert!(lost.elapsed() < FOUND_MAX, "{:?}", lost.elapsed());
    fleet.wait_until_indexed(&redis, &life, &["bob", "quiet"]);
    alice.tell_until("bob", "after", "routed");
    for device in &bob {
        device.wait_for("after");
    }
    alice.tell_until("quiet", "after", "routed");
    eventually("both are counted", || {
        gw2.metric("shardgate_cluster_presence_repaired_total", &[]) >= 2.0
    });
    gw2.wait_for_log("maxmemory-policy");

    // A user that leaves is not written again.
    quiet.leave();
    for device in bob {
        device.leave();
    }
    alice.wait_to_see_all(&["bob", "quiet"], false);
    let until = Instant::now() + FOUND_MAX / 2;
    while Instant::now() < until {
        assert!(!alice.sees("bob").unwrap_or(false));
        assert!(fleet.places(&redis, "quiet").is_empty());
        std::thread::sleep(Duration::from_millis(50));
    }
}
