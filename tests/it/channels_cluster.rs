//! With one Redis, gateways share channels. A publication reaches all subscribers, each once and in
//! order. A client with `subscribed` misses nothing from then on, on whichever gateway it is
//! published. Gateways without subscribers are left alone.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use common::channels::{frames, publish_text};
use common::client::Client;
use common::gateway::run_command;
use common::{Fleet, Gateway, Redis, eventually};
use serde_json::json;

fn system<const N: usize>(args: &[&str]) -> (Redis, Fleet, [Gateway; N]) {
    let redis = Redis::start();
    let fleet = Fleet::new(redis.url()).with_args(args);
    let gateways = fleet.start();
    (redis, fleet, gateways)
}

/// Partitions that gateways subscribe to, with the number of gateways.
fn heard(redis: &Redis, fleet: &Fleet) -> Vec<(String, i64)> {
    let pattern = format!("{}part:*", fleet.prefix);
    let channels = redis.cmd(&["PUBSUB", "CHANNELS", &pattern]).good().sorted();
    let count = |channel: &String| redis.cmd(&["PUBSUB", "NUMSUB", channel]).good().array()[1].int();
    channels
        .iter()
        .map(|channel| (channel.clone(), count(channel)))
        .collect()
}

#[test]
fn subscribers_on_all_gateways() {
    let (_redis, _fleet, gateways) = system::<3>(&[]);
    let mut subscribers: Vec<Client> = (0..9)
        .map(|n| gateways[n % 3].connect(&format!("subscriber{}", n / 2)))
        .collect();
    let mut publishers: Vec<Client> = gateways.iter().map(|gateway| gateway.connect("publisher")).collect();
    let contents = [
        "null",
        "1e400",
        r#""\ud800\u0000\/""#,
        "\"ä€😀\u{2028}\"",
        "{ \"a\" :\t[ 1 ,\r\n2 ] }",
        &format!("\"{}\"", "€".repeat(20_000)),
    ];
    for channel in ["room", "a \"quoted\\\" room", "ä€😀:*[x]{y}"] {
        for subscriber in &mut subscribers {
            subscriber.subscribe(channel);
        }
        for content in contents {
            for publisher in &mut publishers {
                let id = publisher.publish(channel, content);
                let first = subscribers[0].recv_text();
                let start = first.find(r#","content":"#).unwrap() + r#","content":"#.len();
                let end = first.rfind(r#","ts":"#).unwrap();
                assert!(first[start..end] == *content, "{content:.200} became {first:.300}");
                let head = json!({"type": "publication", "channel": channel, "id": id, "from": "publisher"});
                let got: serde_json::Value = serde_json::from_str(&format!("{}0}}", &first[..start])).unwrap();
                for (key, value) in head.as_object().unwrap() {
                    assert_eq!(got[key], *value);
                }
                for subscriber in &mut subscribers[1..] {
                    assert_eq!(subscriber.recv_text(), first, "the same bytes for all");
                }
            }
        }
        for subscriber in &mut subscribers {
            subscriber.expect_silence();
        }
    }
    for gateway in &gateways {
        let acks = gateway.metric("shardgate_acks_total", &["status=\"published\""]);
        assert_eq!(acks, 3.0 * contents.len() as f64);
    }
}

#[test]
fn in_order_once_and_all() {
    const CHANNELS: usize = 4;
    const EACH: usize = 150;
    let (_redis, _fleet, gateways) = system::<3>(&["--limits-outbox-bytes", "67108864"]);
    let mut subscribers: Vec<Client> = (0..9).map(|n| gateways[n % 3].connect(&format!("user{n}"))).collect();
    for subscriber in &mut subscribers {
        for channel in 0..CHANNELS {
            subscriber.subscribe(&channel.to_string());
        }
    }
    let publishers: Vec<Client> = (0..6)
        .map(|n| gateways[n % 3].connect(&format!("publisher{n}")))
        .collect();
    std::thread::scope(|scope| {
        for (n, mut publisher) in publishers.into_iter().enumerate() {
            scope.spawn(move || {
                for number in 0..EACH {
                    publisher.send_raw(&frames((0..CHANNELS).map(|channel| {
                        let padding = "x".repeat((number * 37 + channel * 101 + n) % 2000);
                        let content = format!("[{number},\"{padding}\"]");
                        publish_text(&channel.to_string(), &content, Some("p"))
                    })));
                    // At most two rounds ahead of Redis.
                    for _ in 0..if number == 0 { 0 } else { CHANNELS } {
                        assert_eq!(publisher.recv_json()["status"], "published");
                    }
                }
                for _ in 0..CHANNELS {
                    assert_eq!(publisher.recv_json()["status"], "published");
                }
            });
        }
        for mut subscriber in subscribers {
            scope.spawn(move || {
                let mut next = [[0; CHANNELS]; 6];
                for _ in 0..CHANNELS * 6 * EACH {
                    let publication = subscriber.recv_json();
                    let from: usize = publication["from"].as_str().unwrap()[9..].parse().unwrap();
                    let channel: usize = publication["channel"].as_str().unwrap().parse().unwrap();
                    let next = &mut next[from][channel];
                    assert_eq!(publication["content"][0], *next, "from publisher{from} on {channel}");
                    *next += 1;
                }
                assert_eq!(next, [[EACH; CHANNELS]; 6]);
                subscriber.expect_silence();
            });
        }
    });
}

/// A client with `subscribed` on one gateway gets a publication made on another one in the next
/// instant.
fn published_right_after_subscribed(args: &[&str], rounds: usize) {
    let (_redis, _fleet, gateways) = system::<2>(args);
    std::thread::scope(|scope| {
        for pair in 0..4 {
            let (here, there) = (&gateways[pair % 2], &gateways[1 - pair % 2]);
            scope.spawn(move || {
                let mut alice = here.connect(&format!("alice{pair}"));
                let mut bob = there.connect(&format!("bob{pair}"));
                for round in 0..rounds {
                    let channel = format!("{pair}-{round}");
                    alice.subscribe(&channel);
                    bob.send_text(&publish_text(&channel, &round.to_string(), None));
                    assert_eq!(alice.recv_publication(&channel)["content"], round);
                    // Its partition stays subscribed for some time, so the next round has another
                    // one, if there are many.
                    if round % 2 == 0 {
                        alice.unsubscribe(&channel);
                    }
                }
                alice.close();
            });
        }
    });
    for gateway in &gateways {
        assert_eq!(
            gateway.metric("shardgate_dropped_total", &["kind=\"subscription\""]),
            0.0
        );
    }
}

#[test]
fn published_right_after_subscribed_in_few_partitions() {
    published_right_after_subscribed(&["--limits-channels-per-connection", "1000"], 150);
}

#[test]
fn published_right_after_subscribed_in_fresh_partitions() {
    published_right_after_subscribed(
        &[
            "--limits-channels-per-connection",
            "1000",
            "--channels-partitions",
            "16384",
        ],
        150,
    );
}

/// A subscriber that comes and goes under publications of another gateway sees no gap, nothing
/// twice, and nothing outside.
#[test]
fn in_and_out_of_a_stream() {
    const ROUNDS: usize = 100;
    let (_redis, _fleet, [gw1, gw2]) = system(&[]);
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (sent, stop) = (&sent, &stop);
        let mut publisher = gw2.connect("publisher");
        let streaming = scope.spawn(move || {
            for n in 1.. {
                if stop.load(SeqCst) {
                    break;
                }
                sent.store(n, SeqCst);
                publisher.publish("stream", &n.to_string());
            }
        });
        let visitors: Vec<_> = (0..3)
            .map(|n| {
                let mut visitor = gw1.connect(&format!("visitor{n}"));
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        visitor.come_and_go("stream", sent, round % 4);
                        if round % 7 == 0 {
                            visitor.expect_silence();
                        }
                    }
                })
            })
            .collect();
        let came_through: Vec<_> = visitors.into_iter().map(|visitor| visitor.join()).collect();
        stop.store(true, SeqCst);
        assert!(came_through.iter().all(Result::is_ok), "a visitor failed");
        streaming.join().unwrap();
    });
}

#[test]
fn after_unsubscribed_nothing() {
    let (_redis, _fleet, [gw1, gw2]) = system(&[]);
    let mut bob = gw2.connect("bob");
    for n in 0..20 {
        let channel = format!("room{n}");
        let (mut leaves, mut goes, mut stays) = (gw1.connect("leaves"), gw1.connect("goes"), gw1.connect("stays"));
        for client in [&mut leaves, &mut goes, &mut stays] {
            client.subscribe(&channel);
        }
        bob.publish(&channel, "1");
        for client in [&mut leaves, &mut goes, &mut stays] {
            assert_eq!(client.recv_publication(&channel)["content"], 1);
        }
        leaves.unsubscribe(&channel);
        goes.close();
        bob.publish(&channel, "2");
        assert_eq!(stays.recv_publication(&channel)["content"], 2);
        leaves.expect_silence();
    }
}

/// A gateway gets the partitions in which it has subscribers, and no others.
#[test]
fn no_copies_without_subscribers() {
    let (redis, fleet, [gw1, gw2, gw3]) = system(&[]);
    let received = |gateway: &Gateway| gateway.metric("shardgate_cluster_publications_received_total", &[]);
    let partitions = |gateway: &Gateway| gateway.metric("shardgate_cluster_partitions_heard", &[]);
    assert_eq!(heard(&redis, &fleet), []);
    let mut alice = gw1.connect("alice");
    let mut bob = gw2.connect("bob");
    bob.subscribe("room");
    let only_room = heard(&redis, &fleet);
    assert!(matches!(&only_room[..], [(_, 1)]), "{only_room:?}");
    for n in 0..50 {
        alice.publish("room", &n.to_string());
        assert_eq!(bob.recv_publication("room")["content"], n);
    }
    assert_eq!([&gw1, &gw2, &gw3].map(received), [0.0, 50.0, 0.0]);
    assert_eq!(gw1.metric("shardgate_cluster_publications_sent_total", &[]), 50.0);
    // Publications in other partitions do not even come to gw2: some of these, as there are 64 of
    // them.
    for n in 0..100 {
        alice.publish(&format!("elsewhere{n}"), "1");
    }
    alice.publish("room", "\"last\"");
    assert_eq!(bob.recv_publication("room")["content"], "last");
    let more = received(&gw2) - 51.0;
    assert!(
        more < 30.0,
        "{more} of 100 publications came to a gateway that hears one partition of 64"
    );
    assert_eq!(received(&gw3), 0.0);
    // A client that publishes and subscribes gets its own publications once.
    let mut carol = gw1.connect("carol");
    carol.subscribe("room");
    assert_eq!(heard(&redis, &fleet), [(only_room[0].0.clone(), 2)]);
    alice.publish("room", "\"to both\"");
    for client in [&mut bob, &mut carol] {
        assert_eq!(client.recv_publication("room")["content"], "to both");
        client.expect_silence();
    }
    // Some time after the last subscriber has gone, the gateway unsubscribes in Redis.
    bob.unsubscribe("room");
    carol.close();
    eventually("nobody hears anything any more", || heard(&redis, &fleet).is_empty());
    eventually("and they know", || partitions(&gw1) == 0.0 && partitions(&gw2) == 0.0);
    // And back again.
    bob.subscribe("room");
    alice.publish("room", "\"again\"");
    assert_eq!(bob.recv_publication("room")["content"], "again");
}

#[test]
fn many_channels_need_few_subscriptions() {
    const CHANNELS: usize = 2000;
    let (redis, fleet, [gw1, gw2]) = system(&["--limits-channels-per-connection", "2000"]);
    let subscribes = || {
        let stats = redis.commandstats();
        let names = ["subscribe", "ssubscribe", "psubscribe"];
        names.iter().filter_map(|name| stats.get(*name)).sum::<u64>()
    };
    let before = subscribes();
    let mut alice = gw1.connect("alice");
    let mut carol = gw1.connect("carol");
    for n in 0..CHANNELS {
        if n % 2 == 0 { &mut alice } else { &mut carol }.subscribe(&n.to_string());
    }
    let (channels, commands) = (heard(&redis, &fleet).len(), subscribes() - before);
    assert!(channels <= 64, "{channels} partitions");
    assert!(
        (1..=64).contains(&commands),
        "{commands} commands for {CHANNELS} channels"
    );
    let mut bob = gw2.connect("bob");
    bob.send_raw(&frames(
        (0..CHANNELS).map(|n| publish_text(&n.to_string(), &n.to_string(), None)),
    ));
    for client in [&mut alice, &mut carol] {
        let mut came: Vec<u64> = (0..CHANNELS / 2)
            .map(|_| client.recv_json()["content"].as_u64().unwrap())
            .collect();
        came.sort_unstable();
        came.dedup();
        assert_eq!(came.len(), CHANNELS / 2);
        client.expect_silence();
    }
    drop((alice, carol));
    eventually("all have left", || gw1.stats()["subscriptions"] == 0);
}

#[test]
fn another_number_of_partitions_is_refused() {
    let (_redis, fleet, [_gw1]) = system(&[]);
    let mut command = fleet.command("gw2");
    command.args(["--channels-partitions", "32"]);
    let ended = run_command(command);
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
    let line = ended.stderr.lines().find(|line| line.starts_with("shardgate: "));
    let line = line.unwrap_or_else(|| panic!("{ended:?}"));
    for word in ["channels.partitions", "32", "64"] {
        assert!(line.contains(word), "{word:?} not in {line:?}");
    }
}
