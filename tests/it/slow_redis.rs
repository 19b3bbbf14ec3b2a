//! Redis is there and misbehaves: it stalls, drops slow readers, is full, is read-only, refuses the
//! password, allows only some commands, or speaks TLS.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::gateway::Ended;
use common::peer::{Talk, assert_rising, assert_truthful};
use common::redis::documented_user;
use common::{Cluster, Fleet, Gateway, Peer, Redis, eventually};
use std::time::{Duration, Instant};

#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default().to_lowercase();
    for word in words {
        assert!(
            last.contains(&word.to_lowercase()),
            "no {word:?} in the last line: {ended:#?}"
        );
    }
}

/// Two gateways carry a message each way.
#[track_caller]
fn assert_works(fleet: &Fleet) -> [Gateway; 2] {
    let gateways: [Gateway; 2] = fleet.start();
    let mut alice = Peer::connect(&gateways[0], "alice");
    let mut bob = Peer::connect(&gateways[1], "bob");
    alice.wait_to_see("bob", true);
    bob.wait_to_see("alice", true);
    alice.tell_until_heard(&bob, "there");
    bob.tell_until_heard(&alice, "and back");
    bob.leave();
    alice.wait_to_see("bob", false);
    alice.tell_until("bob", 1, "offline");
    gateways
}

/// While Redis stands still no client waits for it for long; afterwards all is as before, in order
/// and once.
fn stalls(stall: impl Fn(&Redis), end: impl Fn(&Redis)) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let alice = Peer::connect(&gw1, "alice");
    let local = Peer::connect(&gw1, "local");
    let bob = Peer::connect(&gw2, "bob");
    let mut watcher = Peer::connect(&gw1, "watcher");
    watcher.wait_to_see("bob", true);
    watcher.tell_until("bob", "before", "routed");
    let talk = Talk::start(alice, "bob");
    talk.wait_for_acks(20);
    stall(&redis);
    let began = Instant::now();
    watcher.tell_until("bob", "lost", "failed");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    eventually("/readyz says so", || {
        let readyz = gw1.get("/readyz");
        readyz.status == 503 && readyz.body.to_lowercase().contains("redis")
    });
    assert_eq!(watcher.tell("local", "near"), "delivered");
    local.wait_for("near");
    end(&redis);
    watcher.tell_until("bob", "again", "routed");
    watcher.tell_until_heard(&bob, "really");
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    talk.wait_for_acks(20);
    let (mut alice, said) = talk.stop();
    alice.tell_until("bob", "end", "routed");
    bob.wait_for("end");
    // Each connection that broke may have had one in flight.
    assert_truthful("alice to bob", &said, &bob.numbers_from("alice"), 3);
    let lost = bob
        .heard_from("watcher")
        .iter()
        .filter(|content| *content == "again")
        .count();
    assert_eq!(lost, 1, "routed once, heard once");
    watcher.wait_to_see_all(&["alice", "bob", "local"], true);
}

#[test]
fn a_long_command() {
    std::thread::scope(|scope| {
        stalls(
            |redis| {
                let mut connection = redis.connection();
                scope.spawn(move || connection.cmd(&["DEBUG", "SLEEP", "6"]).good());
                eventually("it sleeps", || {
                    redis.try_cmd(&["PING"], Duration::from_millis(100)).is_err()
                });
            },
            |redis| drop(redis.cmd(&["PING"]).good()),
        );
    });
}

#[test]
fn a_stopped_process() {
    stalls(Redis::pause, Redis::resume);
}

/// Redis drops a subscriber that lags behind: with limits this small, each burst does it.
#[test]
fn a_subscriber_that_is_dropped() {
    let redis = Redis::with_config(&[("client-output-buffer-limit", "pubsub 100kb 100kb 0")]);
    let fleet = Fleet::new(redis.url()).with_args(&["--limits-outbox-bytes", "67108864"]);
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.tell_until("bob", "before", "routed");
    let filler = "x".repeat(60_000);
    let mut sent = 0u64;
    for burst in 0..4 {
        let ids: Vec<String> = (0..100)
            .map(|_| {
                sent += 1;
                alice.send("bob", serde_json::json!([sent, filler]))
            })
            .collect();
        for id in &ids {
            alice.status(id);
        }
        let content = format!("after burst {burst}");
        alice.tell_until_heard(&bob, content.as_str());
    }
    let heard = bob.heard_from("alice");
    let numbers: Vec<u64> = heard.iter().filter_map(|content| content[0].as_u64()).collect();
    assert_rising("bob", &numbers);
    eprintln!("{} of {sent} came", numbers.len());
    assert!(bob.is_open() && alice.is_open());
    assert_eq!(alice.tell("bob", "calm"), "routed");
    bob.wait_for("calm");
}

#[test]
fn a_full_one() {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let before = Peer::connect(&gw2, "before");
    let leaves = Peer::connect(&gw2, "leaves");
    alice.wait_to_see_all(&["before", "leaves"], true);
    redis.set_config("maxmemory", "1");
    let bob = Peer::connect(&gw2, "bob");
    eventually("/readyz says that writes are refused", || {
        let readyz = gw2.get("/readyz");
        readyz.status == 503 && readyz.body.to_lowercase().contains("redis")
    });
    let told = format!("{}{}", gw2.get("/readyz").body, gw2.log()).to_lowercase();
    assert!(told.contains("maxmemory"), "Redis' own words are told: {told}");
    assert!(bob.is_open());
    // A deletion is not refused, and mends nothing: bob is still not written down.
    leaves.leave();
    eventually("who leaves is deleted", || fleet.places(&redis, "leaves").is_empty());
    for _ in 0..50 {
        assert!(fleet.places(&redis, "bob").is_empty());
        assert_eq!(gw2.get("/readyz").status, 503);
    }
    redis.set_config("maxmemory", "0");
    eventually("/readyz is 200", || gw2.get("/readyz").status == 200);
    alice.wait_to_see_all(&["before", "bob"], true);
    alice.tell_until_heard(&bob, "mended");
    alice.tell_until_heard(&before, "mended");
}

#[test]
fn one_that_becomes_read_only() {
    let [redis, other] = [Redis::start(), Redis::start()];
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    alice.settle();
    redis.cmd(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).good();
    let bob = Peer::connect(&gw2, "bob");
    eventually("/readyz says so", || {
        let readyz = gw2.get("/readyz");
        readyz.status == 503 && readyz.body.to_lowercase().contains("redis")
    });
    redis.cmd(&["REPLICAOF", "NO", "ONE"]).good();
    eventually("/readyz is 200", || gw2.get("/readyz").status == 200);
    alice.wait_to_see("bob", true);
    alice.tell_until_heard(&bob, "mended");
}

#[test]
fn a_read_only_one_at_start() {
    let master = Redis::start();
    let address = format!("127.0.0.1 {}", master.port());
    let replica = Redis::with_config(&[("replicaof", &address)]);
    let fleet = Fleet::new(replica.url()).with_args(&["--redis-start-timeout", "1s"]);
    assert_refused(&fleet.refused("gw1"), &["redis", "read"]);
}

#[test]
fn a_wrong_password() {
    let redis = Redis::with_config(&[("requirepass", "right")]);
    for url in [
        redis.url_as("", "wr0ng-s3cret"),
        redis.url_as("nobody", "wr0ng-s3cret"),
        redis.url(),
    ] {
        let ended = Fleet::new(url)
            .with_args(&["--redis-start-timeout", "1s"])
            .refused("gw1");
        assert_refused(&ended, &["redis", "refused"]);
        let output = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!output.contains("wr0ng-s3cret"), "{output}");
    }
    let [gw1, _gw2] = assert_works(&Fleet::new(redis.url_with_password()));
    assert!(!gw1.log().contains("right@"), "{}", gw1.log());
}

/// The commands that docs/cluster.md tells operators to allow are enough.
#[test]
fn a_user_who_may_do_only_what_is_needed() {
    let redis = Redis::start();
    let [user, ..] = documented_user("gate:", "s3cret");
    redis.carry_out(&user);
    let mut fleet = Fleet::new(redis.url_as("shardgate", "s3cret"));
    fleet.prefix = "gate:".into();
    let gateways = assert_works(&fleet);
    redis.assert_nothing_denied();
    drop(gateways);
    // With another prefix the same user may do nothing.
    fleet.prefix = "other:".into();
    let fleet = fleet.with_args(&["--redis-start-timeout", "1s"]);
    assert_refused(&fleet.refused("gw1"), &["redis", "perm"]);
}

#[test]
fn a_user_who_may_do_only_what_is_needed_in_a_cluster() {
    let cluster = Cluster::start();
    let [alone, besides, _] = documented_user("gate:", "s3cret");
    for node in &cluster.nodes {
        node.carry_out(&alone);
        node.carry_out(&besides);
    }
    let mut fleet = Fleet::new(cluster.url_as("shardgate", "s3cret"));
    fleet.prefix = "gate:".into();
    let _gateways = assert_works(&fleet);
    for node in &cluster.nodes {
        node.assert_nothing_denied();
    }
}

/// Redis 7 gives a new user no channels.
#[test]
fn a_user_without_channels() {
    let redis = Redis::start();
    redis
        .cmd(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "resetchannels", "+@all"])
        .good();
    let fleet = || Fleet::new(redis.url_as("gw", "pw"));
    let impatient = fleet().with_args(&["--redis-start-timeout", "2s"]);
    assert_refused(
        &impatient.refused("gw1"),
        &["Redis refused the subscription to", "NOPERM"],
    );
    // Nor may they be taken away later.
    redis.cmd(&["ACL", "SETUSER", "gw", "&*"]).good();
    let gateway = fleet().gateway("gw1");
    redis.cmd(&["ACL", "SETUSER", "gw", "resetchannels"]).good();
    eventually("/readyz says so", || {
        let readyz = gateway.get("/readyz");
        readyz.status == 503 && readyz.body.contains("NOPERM")
    });
    redis.cmd(&["ACL", "SETUSER", "gw", "&*"]).good();
    eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
}

#[test]
fn over_tls() {
    let redis = Redis::start_tls_with_config(&[("requirepass", "s3cret")]);
    let ca = redis.ca().to_str().unwrap();
    assert_works(&Fleet::new(redis.url_with_password()).with_args(&["--redis-ca", ca]));
    let stranger = Fleet::new(redis.url_with_password()).with_args(&["--redis-start-timeout", "1s"]);
    assert_refused(&stranger.refused("gw1"), &["redis", "certificate"]);
}
