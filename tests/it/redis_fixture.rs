//! The Redis servers of the other tests start, break and come back as those tests believe.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::{Cluster, Redis, Reply, Sentinels};
use std::time::Duration;

#[test]
fn one_server() {
    let mut redis = Redis::with_config(&[("requirepass", "secret")]);
    assert!(redis.url_with_password().contains(":secret@"));
    assert_eq!(redis.cmd(&["SET", "a", "1\r\n2"]), Reply::Simple("OK".into()));
    assert_eq!(redis.cmd(&["GET", "a"]).text(), "1\r\n2");
    assert_eq!(redis.cmd(&["GET", "b"]), Reply::Nil);
    assert!(redis.cmd(&["NONSENSE"]).is_error());
    assert_eq!(redis.keys(""), ["a"]);
    assert_eq!(redis.commandstats()["get"], 2);
    redis.set_config("maxmemory", "100mb");
    assert_eq!(
        redis.cmd(&["CONFIG", "GET", "maxmemory"]).array()[1].text(),
        "104857600"
    );

    let mut other = redis.connection();
    other.cmd(&["SUBSCRIBE", "c"]).good();
    let mut normal = redis.connection();
    assert_eq!(redis.client_kill("pubsub"), 1);
    assert!(other.try_cmd(&["PING"]).is_err());
    normal.cmd(&["PING"]).good();
    assert_eq!(redis.client_kill("normal"), 1);
    assert!(normal.try_cmd(&["PING"]).is_err());

    redis.pause();
    assert!(redis.try_cmd(&["PING"], Duration::from_millis(200)).is_err());
    redis.resume();
    redis.cmd(&["PING"]).good();

    let port = redis.port();
    redis.kill();
    assert!(redis.try_cmd(&["PING"], Duration::from_secs(1)).is_err());
    redis.restart();
    assert_eq!(redis.port(), port);
    assert!(redis.keys("").is_empty(), "it keeps nothing");
}

#[test]
fn what_is_on_disk_comes_back() {
    for (config, save) in [
        (&[("appendonly", "yes"), ("appendfsync", "always")][..], false),
        (&[][..], true),
    ] {
        let mut redis = Redis::with_config(config);
        redis.cmd(&["SET", "a", "1"]).good();
        if save {
            redis.cmd(&["SAVE"]).good();
        }
        redis.restart();
        assert_eq!(redis.cmd(&["GET", "a"]).text(), "1");
    }
}

#[test]
fn one_that_starts_late() {
    let mut redis = Redis::not_yet(&[]);
    assert!(redis.try_cmd(&["PING"], Duration::from_secs(1)).is_err());
    redis.restart();
    redis.cmd(&["PING"]).good();
}

#[test]
fn one_with_tls() {
    let redis = Redis::start_tls();
    assert!(redis.url().starts_with("rediss://"));
    redis.cmd(&["PING"]).good();
    let mut client = std::process::Command::new("openssl");
    client.args(["s_client", "-verify_return_error", "-verify_ip", "127.0.0.1"]);
    client.args(["-connect", redis.url().strip_prefix("rediss://").unwrap()]);
    client.arg("-CAfile").arg(redis.ca());
    let output = client.stdin(std::process::Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Verify return code: 0"), "{output:?}");
}

#[test]
fn sentinels_fail_over() {
    let mut sentinels = Sentinels::start();
    assert_eq!(sentinels.master_addr(), sentinels.nodes[0].port());
    sentinels.master().cmd(&["SET", "a", "1"]).good();
    sentinels.master().cmd(&["WAIT", "1", "5000"]).good();
    let old = sentinels.kill_master();
    assert_eq!(old, 0);
    sentinels.wait_for_master();
    assert_eq!(sentinels.master_addr(), sentinels.nodes[1].port());
    assert_eq!(sentinels.master().cmd(&["GET", "a"]).text(), "1");
    sentinels.nodes[old].restart();
    // It believes to be the master still, until a sentinel has looked at it for a while.
    sentinels.nodes[old].cmd(&["PING"]).good();
}

#[test]
fn a_cluster_moves_slots_and_fails_over() {
    assert_eq!(Cluster::slot_of("123456789"), 0x31c3);
    assert_eq!(Cluster::slot_of("a{123456789}b"), 0x31c3);
    let mut cluster = Cluster::start();
    let slot = Cluster::slot_of("key");
    let asked = cluster.nodes[0].cmd(&["CLUSTER", "KEYSLOT", "key"]).int();
    assert_eq!(asked, i64::from(slot));
    let from = cluster.owner_of(slot);
    let to = cluster.another_master(from);
    cluster.nodes[from].cmd(&["SET", "key", "1"]).good();
    assert!(cluster.nodes[to].cmd(&["GET", "key"]).text().starts_with("MOVED"));

    cluster.begin_migration(slot, from, to);
    assert_eq!(cluster.nodes[from].cmd(&["GET", "key"]).text(), "1");
    assert!(cluster.nodes[from].cmd(&["GET", "{key}2"]).text().starts_with("ASK"));
    cluster.finish_migration(slot, from, to);
    assert_eq!(cluster.nodes[to].cmd(&["GET", "key"]).text(), "1");
    cluster.migrate_slot(slot, to, from);
    assert_eq!(cluster.owner_of(slot), from);

    cluster.nodes[from].cmd(&["WAIT", "1", "5000"]).good();
    assert_eq!(cluster.kill_master_of(slot), from);
    let new = cluster.owner_of(slot);
    assert_eq!(new, from + 3);
    assert_eq!(cluster.nodes[new].cmd(&["GET", "key"]).text(), "1");
}
