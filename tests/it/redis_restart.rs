//! Redis goes away and comes back. No live connection is lost, local messages go on, and the others
//! fail at once. Presence and routing come back by themselves, whether Redis comes back empty or
//! with old data.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::redis::ListenerKind;
use common::{Cluster, Fleet, Gateway, Peer, Redis, at_once_when, eventually};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A user notices this as "at once": far below the time after which a client gives up.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How soon all must be as before, once Redis is back.
const BACK: Duration = Duration::from_secs(5);
/// For machines that are busy with other things.
const SLACK: Duration = Duration::from_secs(5);

/// Like [`eventually`], with a promise about when.
#[track_caller]
fn within(limit: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A gateway's behaviour while its Redis is away; `alice` and `local` are on it, `remote` was on
/// another one.
#[track_caller]
fn assert_copes_without_redis(gateway: &Gateway, alice: &mut Peer, local: &Peer, remote: &str) {
    let mut readyz = gateway.get("/readyz");
    within(AT_ONCE + SLACK, "/readyz says that Redis is away", || {
        readyz = gateway.get("/readyz");
        readyz.status == 503
    });
    assert!(readyz.body.to_lowercase().contains("redis"), "{readyz:?}");
    within(AT_ONCE + SLACK, "shardgate_redis_up is 0", || {
        gateway.metric("shardgate_redis_up", &[]) == 0.0
    });
    assert_eq!(gateway.get("/livez").status, 200);
    for n in 0..5 {
        let asked = Instant::now();
        assert_eq!(alice.tell(remote, n), "failed");
        assert_eq!(alice.tell("nobody at all", n), "failed", "nobody knows");
        assert_eq!(alice.presence(&[remote]), Err("unavailable".into()));
        assert!(asked.elapsed() < AT_ONCE, "at once, and it took {:?}", asked.elapsed());
    }
    assert_eq!(alice.tell(&local.user, "local"), "delivered");
    local.wait_for("local");
}

#[test]
fn back_empty() {
    let mut redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let mut carol = Peer::connect(&gw2, "carol");
    let near_alice = Peer::connect(&gw1, "near alice");
    let near_carol = Peer::connect(&gw2, "near carol");
    let users: Vec<String> = (0..500).map(|n| format!("user{n}")).collect();
    let mut devices: Vec<_> = users
        .iter()
        .enumerate()
        .map(|(n, user)| if n % 2 == 0 { &gw1 } else { &gw2 }.connect(user))
        .collect();
    for watcher in [&mut alice, &mut carol] {
        watcher.wait_to_see_all(&users, true);
        watcher.wait_to_see_all(&["alice", "carol"], true);
    }
    assert_eq!(alice.tell("carol", "before"), "routed");

    redis.kill();
    assert_copes_without_redis(&gw1, &mut alice, &near_alice, "carol");
    assert_copes_without_redis(&gw2, &mut carol, &near_carol, "alice");
    // Meanwhile one user comes and another goes.
    let dave = Peer::connect(&gw2, "dave");
    devices.truncate(499);

    redis.restart();
    let back = Instant::now();
    within(BACK + SLACK, "routed again, both ways", || {
        alice.tell("carol", "again") == "routed" && carol.tell("alice", "again") == "routed"
    });
    for watcher in [&mut alice, &mut carol] {
        watcher.wait_to_see_all(&users[..499], true);
        watcher.wait_to_see("dave", true);
        watcher.wait_to_see("user499", false);
    }
    assert!(
        back.elapsed() < BACK + SLACK,
        "all as before after {:?}",
        back.elapsed()
    );
    eprintln!("all as before after {:?}", back.elapsed());
    for gateway in [&gw1, &gw2] {
        within(BACK, "/readyz is 200", || gateway.get("/readyz").status == 200);
        assert_eq!(gateway.metric("shardgate_redis_up", &[]), 1.0);
    }
    // No live connection was lost: everybody gets their message on the connection of the beginning.
    let told: Vec<String> = users[..499]
        .iter()
        .map(|user| alice.send(user, user.as_str()))
        .collect();
    for (n, id) in told.iter().enumerate() {
        assert_eq!(alice.status(id), if n % 2 == 0 { "delivered" } else { "routed" });
        assert_eq!(devices[n].recv_json()["content"], *users[n]);
    }
    assert_eq!(alice.tell("dave", 1), "routed");
    dave.wait_for(1);
    assert_eq!(alice.tell("user499", 1), "offline");
}

/// It comes back with its last data, which is not true any more.
fn back_with_old_data(config: &[(&str, &str)]) {
    let mut redis = Redis::with_config(config);
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let stays = Peer::connect(&gw2, "stays");
    let leaves = Peer::connect(&gw2, "leaves");
    let moves = Peer::connect(&gw2, "moves");
    alice.wait_to_see_all(&["stays", "leaves", "moves"], true);
    let incarnation = fleet.incarnation(&redis, "gw2");
    fleet.wait_until_indexed(&redis, &incarnation, &["stays", "leaves", "moves"]);
    if config.is_empty() {
        redis.cmd(&["SAVE"]).good();
    }
    redis.kill();
    eventually("it is noticed", || alice.tell("stays", 0) == "failed");
    leaves.leave();
    moves.leave();
    let moves = Peer::connect(&gw1, "moves");
    let comes = Peer::connect(&gw2, "comes");

    redis.restart();
    let old = redis.keys(&fleet.prefix);
    assert!(!old.is_empty(), "it has its data");
    alice.tell_until("stays", "back", "routed");
    stays.wait_for("back");
    alice.wait_to_see_all(&["comes", "moves", "stays"], true);
    alice.wait_to_see("leaves", false);
    alice.tell_until("comes", "hello", "routed");
    comes.wait_for("hello");
    assert_eq!(alice.tell("moves", "over here"), "delivered");
    moves.wait_for("over here");
    alice.tell_until("leaves", 1, "offline");
    let gw2_incarnation = fleet.incarnation(&redis, &gw2.id);
    eventually("what is not true any more is gone", || {
        fleet.places(&redis, "leaves").is_empty() && !fleet.places(&redis, "moves").contains_key(&gw2_incarnation)
    });
}

#[test]
fn back_with_an_append_only_file() {
    back_with_old_data(&[("appendonly", "yes"), ("appendfsync", "always")]);
}

#[test]
fn back_with_a_snapshot() {
    back_with_old_data(&[]);
}

/// Redis goes in the instant after a user was written down, and the user goes while it is away.
#[test]
fn who_came_right_before_and_left_meanwhile() {
    let mut redis = Redis::with_config(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let _stays = Peer::connect(&gw2, "stays");
    alice.wait_to_see("stays", true);
    let bob = Peer::connect(&gw2, "bob");
    at_once_when("bob is written down", || !fleet.places(&redis, "bob").is_empty());
    redis.kill();
    eventually("it is noticed", || alice.tell("stays", 0) == "failed");
    bob.leave();
    redis.restart();
    alice.tell_until("stays", "back", "routed");
    alice.wait_to_see("stays", true);
    alice.tell_until("bob", 1, "offline");
    alice.wait_to_see("bob", false);
}

/// Away and back again and again, sometimes before anybody has recovered from the last time.
#[test]
fn again_and_again() {
    let mut redis = Redis::start();
    let fleet = Fleet::new(redis.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    for round in 0..5 {
        redis.kill();
        if round % 2 == 0 {
            eventually("it is noticed", || alice.tell("bob", "?") == "failed");
        }
        redis.restart();
        if round % 2 == 0 {
            let content = format!("round {round}");
            alice.tell_until("bob", content.as_str(), "routed");
            bob.wait_for(content);
        }
    }
    alice.tell_until("bob", "at last", "routed");
    bob.wait_for("at last");
    alice.wait_to_see("bob", true);
}

#[test]
fn it_may_come_up_after_the_gateway() {
    let mut redis = Redis::not_yet(&[]);
    let fleet = Fleet::new(redis.url()).with_args(&["--redis-start-timeout", "25s"]);
    // The first attempt is seen here, and finds no user.
    let door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| fleet.gateway("gw1"));
        drop(door.accept().unwrap());
        drop(door);
        redis.restart();
        let gateway = starting.join().unwrap();
        let mut alice = Peer::connect(&gateway, "alice");
        alice.wait_to_see("alice", true);
        assert_eq!(gateway.get("/readyz").status, 200);
    });
}

#[test]
fn no_redis_no_start() {
    let redis = Redis::not_yet(&[]);
    let fleet = Fleet::new(redis.url()).with_args(&["--redis-start-timeout", "1s"]);
    let ended = fleet.refused("gw1");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_says(&ended.stderr, &[&format!("127.0.0.1:{}", redis.port()), "redis"]);

    // One that takes connections and never answers.
    let _door = TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    let ended = fleet.refused("gw1");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_says(&ended.stderr, &[&format!("127.0.0.1:{}", redis.port()), "redis"]);
}

/// The last line reports all of this.
#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    let last = text.lines().last().unwrap_or_default().to_lowercase();
    for word in words {
        assert!(
            last.contains(&word.to_lowercase()),
            "no {word:?} in the last line of\n{text}"
        );
    }
}

/// Two servers behind one name, as behind a proxy, a Service or a primary endpoint. The replica is
/// promoted, the name moves to it, and the old master becomes its replica and keeps its
/// connections.
#[test]
fn a_name_moves_to_the_promoted_replica() {
    let (first, second) = (Redis::start(), Redis::start());
    let follow = |replica: &Redis, master: &Redis| {
        replica
            .cmd(&["REPLICAOF", "127.0.0.1", &master.port().to_string()])
            .good();
        eventually("the replica is in sync", || {
            replica.info("replication", "master_link_status").as_deref() == Some("up")
        });
    };
    follow(&second, &first);
    let door = ListenerKind::to(&[&first]);
    let fleet = Fleet::new(door.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.tell_until_heard(&bob, "before");
    let lines = [gw1.log_lines(), gw2.log_lines()];
    let commands = || {
        let of = |redis: &Redis| {
            redis
                .info("stats", "total_commands_processed")
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        of(&first) + of(&second)
    };

    second.cmd(&["REPLICAOF", "NO", "ONE"]).good();
    door.lead_to(&[&second]);
    follow(&first, &second);
    let (moved, before) = (Instant::now(), commands());
    let channels = |redis: &Redis| {
        let channels = redis.cmd(&["PUBSUB", "CHANNELS", &format!("{}*", fleet.prefix)]);
        channels.good().sorted().len()
    };
    within(BACK + SLACK, "everybody listens at the new master", || {
        channels(&first) == 0 && channels(&second) == 3
    });
    within(BACK + SLACK, "alice reaches bob", || {
        alice.tell("bob", "moved") == "routed"
    });
    bob.wait_for("moved");
    let per_second = (commands() - before) as f64 / moved.elapsed().as_secs_f64().max(1.0);
    // Two hundred of them are our own looking.
    assert!(per_second < 500.0, "{per_second} commands per second");
    for (gateway, before) in [&gw1, &gw2].into_iter().zip(lines) {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
        let said = gateway.log_lines() - before;
        assert!(said <= 20, "{said} lines:\n{}", gateway.log());
    }
    assert_eq!(fleet.directory(&second).len(), 2);
}

/// Look-ups have connections of their own to the same servers, which do not make them look better
/// than they are.
#[test]
fn servers_of_a_cluster_that_throw_presence_away_are_counted_once() {
    let cluster = Cluster::start();
    for node in &cluster.nodes {
        node.set_config("maxmemory", "200mb");
        node.set_config("maxmemory-policy", "allkeys-lru");
    }
    let gateway = Fleet::new(cluster.url()).gateway("gw1");
    let count = |words: &str| gateway.log().matches(words).count();
    eventually("both kinds of connections are there", || {
        count("connected to Redis") == 2
    });
    eventually("all are counted", || {
        gateway.metric("shardgate_redis_evicts_presence", &[]) == 3.0
    });
    assert_eq!((count("throws away any key"), count("keeps presence")), (3, 0));
}

/// Presence has no expiry, so a policy that throws away any key loses users who are connected.
#[test]
fn a_policy_that_throws_presence_away_is_warned_of() {
    let redis = Redis::with_config(&[("maxmemory", "200mb"), ("maxmemory-policy", "allkeys-lru")]);
    let fleet = Fleet::new(redis.url());
    let gateway = fleet.gateway("gw1");
    let line = gateway.wait_for_log("throws away any key");
    assert!(line.contains("allkeys-lru") && line.contains("noeviction"), "{line}");
    let evicts = || gateway.metric("shardgate_redis_evicts_presence", &[]);
    eventually("the metric says so", || evicts() == 1.0);
    // It may change while everything runs.
    redis.set_config("maxmemory-policy", "volatile-ttl");
    gateway.wait_for_log("keeps presence");
    eventually("the metric follows", || evicts() == 0.0);
}
