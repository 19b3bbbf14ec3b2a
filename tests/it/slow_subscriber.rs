//! A subscriber that does not read is closed with 3008 and its memory is freed. All others, and a
//! subscriber that keeps up with a burst of any size, lose nothing.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::channels::{frames, publish_text};
use common::client::{CLOSE, Client};
use common::{Gateway, eventually};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

on_both_engines! {
    is_closed_with_3008_and_others_get_everything, memory_is_given_back, a_burst_larger_than_the_limit_for_one_who_reads,
    bursts_on_many_channels_for_one_who_reads, a_lag_under_the_limit_is_forgiven, one_that_vanishes_within_a_fan_out,
    many_leave_during_fan_outs, publishers_are_told_before_readers_are_closed,
}

fn start(engine: &str, more: &[&str]) -> Gateway {
    let args = [&["--engine", engine, "--limits-messages-per-second", "0"], more].concat();
    Gateway::start(&args)
}

/// A subscriber that will read little and late.
fn slow(gateway: &Gateway, user: &str, channel: &str) -> Client {
    let mut client = Client::connect_with_receive_buffer(gateway.addr, 4096);
    client.send_upgrade(&format!("/ws?user={user}"), "");
    assert_eq!(client.read_head().status, 101);
    assert_eq!(client.recv_json()["type"], "welcome");
    client.subscribe(channel);
    client
}

fn closed_as_slow(gateway: &Gateway) -> f64 {
    gateway.metric("shardgate_connections_closed_total", &["code=\"3008\""])
}

fn is_closed_with_3008_and_others_get_everything(engine: &str) {
    let gateway = start(engine, &["--shards", "3"]);
    let mut alice = gateway.connect("alice");
    let mut readers: Vec<Client> = (0..6).map(|n| gateway.connect(&format!("reader{n}"))).collect();
    for reader in &mut readers {
        reader.subscribe("room");
    }
    let mut slow: Vec<Client> = (0..3).map(|n| slow(&gateway, &format!("slow{n}"), "room")).collect();
    let padding = "x".repeat(60_000);
    let mut published = 0;
    while closed_as_slow(&gateway) < 3.0 {
        for _ in 0..4 {
            alice.publish("room", &format!("[{published},\"{padding}\"]"));
            published += 1;
            for reader in &mut readers {
                assert_eq!(reader.recv_publication("room")["content"][0], published - 1);
            }
        }
        assert!(
            published < 10_000,
            "600 MB were taken for subscribers that read nothing"
        );
    }
    assert!(
        published >= 16,
        "an outbox of 1 MiB takes more than {published} of 60 KB"
    );
    let dropped = gateway.metric(
        "shardgate_dropped_total",
        &["kind=\"frame\"", "reason=\"slow_consumer\""],
    );
    assert!(
        dropped >= 3.0,
        "the frame that did not fit and what waited, of each of three: {dropped}"
    );
    for slow in &mut slow {
        let frames = slow.expect_close_after_frames(3008);
        assert!(frames.len() < published, "{} of {published}", frames.len());
        for (n, frame) in frames.iter().enumerate() {
            let publication: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
            assert_eq!(publication["content"][0], n, "whole frames, from the first one on");
        }
    }
    // They have left.
    eventually("six subscriptions", || gateway.stats()["subscriptions"] == 6);
    alice.publish("room", "1");
    for reader in &mut readers {
        assert_eq!(reader.recv_publication("room")["content"], 1);
        reader.expect_silence();
    }
}

fn resident_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One frame is shared by all outboxes: 30 of them that lag by 4 MiB each cost that once, and then
/// nothing.
fn memory_is_given_back(engine: &str) {
    const SLOW: usize = 30;
    let gateway = start(engine, &["--limits-outbox-bytes", "4194304"]);
    let mut alice = gateway.connect("alice");
    let content = format!("\"{}\"", "x".repeat(60_000));
    let mut round = |n: usize| {
        let slow: Vec<Client> = (0..SLOW)
            .map(|k| slow(&gateway, &format!("slow{n}-{k}"), "room"))
            .collect();
        let goal = ((n + 1) * SLOW) as f64;
        for published in 0.. {
            // When no subscriber reads at all, publishers get `failed` for a moment before the
            // subscribers are closed.
            alice.send_text(&publish_text("room", &content, Some("p")));
            assert_eq!(alice.recv_json()["type"], "ack");
            if closed_as_slow(&gateway) == goal {
                break;
            }
            assert!(published < 10_000);
        }
        let held = resident_kib(&gateway);
        drop(slow);
        eventually("they are gone", || gateway.metric("shardgate_sockets", &[]) <= 2.0);
        held
    };
    let first = round(0);
    let after_first = resident_kib(&gateway);
    for n in 1..3 {
        round(n);
    }
    let after_all = resident_kib(&gateway);
    // Copies would be 120 MiB.
    let limit_kib = 4096 * SLOW as u64;
    assert!(first < limit_kib, "{first} KiB with {SLOW} slow subscribers");
    let grown = after_all.saturating_sub(after_first);
    assert!(grown < limit_kib / 8, "{after_first} KiB, then {after_all} KiB");
    eventually("nothing is left", || {
        gateway.metric("shardgate_subscriptions", &[]) == 0.0 && gateway.metric("shardgate_channels", &[]) == 0.0
    });
}

/// Publications come faster than they can go out in one turn. A subscriber that reads is not slow.
fn a_burst_larger_than_the_limit_for_one_who_reads(engine: &str) {
    const BURST: usize = 600;
    for shards in ["1", "2"] {
        let gateway = start(engine, &["--shards", shards, "--limits-outbox-bytes", "16384"]);
        let mut alice = gateway.connect("alice");
        let mut readers: Vec<Client> = (0..4).map(|n| gateway.connect(&format!("reader{n}"))).collect();
        for reader in &mut readers {
            reader.subscribe("room");
        }
        std::thread::scope(|scope| {
            for reader in &mut readers {
                scope.spawn(move || {
                    for n in 0..3 * BURST {
                        let publication = reader.recv_publication("room");
                        assert_eq!(publication["content"], n);
                    }
                    reader.expect_silence();
                });
            }
            // Some 60 KB each, and more than 100 KB for each reader.
            for burst in 0..3 {
                let numbers = burst * BURST..(burst + 1) * BURST;
                alice.send_raw(&frames(numbers.map(|n| publish_text("room", &n.to_string(), None))));
            }
        });
        alice.expect_silence();
        assert_eq!(closed_as_slow(&gateway), 0.0);
        assert_eq!(gateway.metric("shardgate_dropped_total", &[]), 0.0);
    }
}

/// The same where each channel has a little of it: in frames that are sent together, and in frames
/// that are sent one by one.
fn bursts_on_many_channels_for_one_who_reads(engine: &str) {
    for padding_bytes in [300, 1500] {
        burst_on_many_channels(engine, padding_bytes);
    }
}

fn burst_on_many_channels(engine: &str, padding_bytes: usize) {
    const CHANNELS: usize = 60;
    let gateway = start(engine, &["--shards", "2", "--limits-outbox-bytes", "16384"]);
    let mut alice = gateway.connect("alice");
    let mut reader = gateway.connect("reader");
    for channel in 0..CHANNELS {
        reader.subscribe(&channel.to_string());
    }
    let padding = "x".repeat(padding_bytes);
    std::thread::scope(|scope| {
        let reader = &mut reader;
        scope.spawn(move || {
            let mut next = [0; CHANNELS];
            for _ in 0..10 * CHANNELS {
                let publication = reader.recv_json();
                assert_eq!(publication["type"], "publication");
                let channel: usize = publication["channel"].as_str().unwrap().parse().unwrap();
                assert_eq!(publication["content"][0], next[channel]);
                next[channel] += 1;
            }
            assert_eq!(next, [10; CHANNELS]);
            reader.expect_silence();
        });
        alice.send_raw(&frames((0..10 * CHANNELS).map(|n| {
            let content = format!("[{},\"{padding}\"]", n / CHANNELS);
            publish_text(&(n % CHANNELS).to_string(), &content, None)
        })));
    });
    assert_eq!(closed_as_slow(&gateway), 0.0);
}

/// Bytes count as they are, however many share them: 12 of 60 KB are less than 1 MiB, also with a
/// hundred subscribers.
fn a_lag_under_the_limit_is_forgiven(engine: &str) {
    let gateway = start(engine, &[]);
    let mut alice = gateway.connect("alice");
    let mut lagging: Vec<Client> = (0..100).map(|n| slow(&gateway, &format!("slow{n}"), "room")).collect();
    let padding = "x".repeat(60_000);
    for round in 0..2 {
        for n in 0..12 {
            alice.publish("room", &format!("[{n},\"{padding}\"]"));
        }
        for client in &mut lagging {
            for n in 0..12 {
                let frame = client.recv();
                assert_ne!(frame.opcode, CLOSE, "round {round}");
                let publication: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
                assert_eq!(publication["content"][0], n);
            }
        }
    }
    lagging[99].expect_silence();
    assert_eq!(closed_as_slow(&gateway), 0.0);
}

fn one_that_vanishes_within_a_fan_out(engine: &str) {
    let gateway = start(engine, &[]);
    let mut alice = gateway.connect("alice");
    let mut crowd = gateway.subscribers(1000, "room");
    for round in 0..10 {
        // More than one turn's work; then one of those that it is for goes, the first ones and the
        // last ones too.
        alice.send_raw(&frames(
            (0..3).map(|n| publish_text("room", &format!("[{round},{n}]"), None)),
        ));
        let gone = match round % 3 {
            0 => 0,
            1 => crowd.len() - 1,
            _ => crowd.len() / 2,
        };
        crowd.swap_remove(gone).reset();
        for client in &mut crowd {
            for n in 0..3 {
                assert_eq!(
                    client.recv_publication("room")["content"],
                    serde_json::json!([round, n])
                );
            }
        }
    }
    for client in crowd.iter_mut().step_by(50) {
        client.expect_silence();
    }
    eventually("those that went have left", || gateway.stats()["subscriptions"] == 990);
}

/// Ends the waiting threads, also when a test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// More is published than can be delivered: publishers get `failed`, and no reading subscriber is
/// closed for it. A subscriber that reads nothing is.
fn publishers_are_told_before_readers_are_closed(engine: &str) {
    // Few, so that each of them has its turn on a small and busy machine: a thread that does not
    // run does not read.
    const READERS: usize = 4;
    const PUBLISHERS: usize = 2;
    const BURST: usize = 40;
    for shards in ["1", "3"] {
        let gateway = start(engine, &["--shards", shards]);
        let mut readers = gateway.subscribers(READERS, "room");
        let slow = slow(&gateway, "slow", "room");
        let done = AtomicBool::new(false);
        let refused = AtomicUsize::new(0);
        let published = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let end = Done(&done);
            // Each reads all the time, and takes its time for it.
            for reader in &mut readers {
                scope.spawn(move || {
                    loop {
                        let frame = reader.recv();
                        assert_ne!(frame.opcode, CLOSE, "{:?}", frame.close_code());
                        let publication: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
                        if publication["content"] == "end" {
                            return;
                        }
                    }
                });
            }
            for publisher in 0..PUBLISHERS {
                let mut client = gateway.connect(&format!("publisher{publisher}"));
                let (done, refused, published) = (&done, &refused, &published);
                scope.spawn(move || {
                    // Many at once, made once: more than readers take, however fast they are.
                    let content = format!("\"{}\"", "x".repeat(20_000));
                    let burst = frames((0..BURST).map(|_| publish_text("room", &content, Some("p"))));
                    loop {
                        client.send_raw(&burst);
                        for _ in 0..BURST {
                            let ack = client.recv_json();
                            match ack["status"].as_str().unwrap() {
                                "failed" => refused.fetch_add(1, SeqCst),
                                status => {
                                    assert_eq!(status, "published");
                                    published.fetch_add(1, SeqCst)
                                }
                            };
                        }
                        if done.load(SeqCst) {
                            break;
                        }
                    }
                });
            }
            // Several times what the channel, an outbox and the kernel hold: without a word,
            // readers would have been closed.
            eventually("publishers are refused", || refused.load(SeqCst) > 200);
            let before = published.load(SeqCst);
            eventually("readers go on", || published.load(SeqCst) > before + 100);
            eventually("who does not read is closed", || closed_as_slow(&gateway) > 0.0);
            drop(end);
            let mut last = gateway.connect("last");
            eventually("there is room again", || {
                last.send_text(&publish_text("room", "\"end\"", Some("p")));
                last.recv_json()["status"] == "published"
            });
        });
        drop(slow);
        assert_eq!(closed_as_slow(&gateway), 1.0, "and nobody else");
        let labels = ["kind=\"publication\"", "reason=\"queue_full\""];
        assert!(gateway.metric("shardgate_dropped_total", &labels) >= refused.load(SeqCst) as f64);
    }
}

/// Every tenth of 2,000 leaves while publications are on their way, by `unsubscribe`, a close and a
/// reset. The others get all publications, and those that leave get the ones from before.
fn many_leave_during_fan_outs(engine: &str) {
    const CROWD: usize = 2000;
    const PUBLICATIONS: usize = 40;
    let gateway = start(engine, &["--shards", "2"]);
    let mut alice = gateway.connect("alice");
    let crowd = gateway.subscribers(CROWD, "room");
    let (mut leaving, mut staying): (Vec<_>, Vec<_>) = crowd.into_iter().enumerate().partition(|(n, _)| n % 10 == 3);
    let published = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let published = &published;
        scope.spawn(move || {
            for n in 0..PUBLICATIONS {
                alice.publish("room", &n.to_string());
                published.store(n + 1, SeqCst);
            }
        });
        scope.spawn(move || {
            for (k, (_, mut client)) in leaving.drain(..).enumerate() {
                match k % 3 {
                    0 => {
                        client.send_text(&common::channels::unsubscribe_text("room"));
                        let mut next = 0;
                        loop {
                            let frame = client.recv_json();
                            if frame["type"] == "unsubscribed" {
                                break;
                            }
                            assert_eq!(frame["content"], next);
                            next += 1;
                        }
                        client.expect_silence();
                    }
                    1 => client.close(),
                    _ => client.reset(),
                }
            }
        });
        for half in staying.chunks_mut(CROWD / 2) {
            scope.spawn(move || {
                for n in 0..PUBLICATIONS {
                    for (_, client) in half.iter_mut() {
                        assert_eq!(client.recv_publication("room")["content"], n);
                    }
                }
                for (_, client) in half.iter_mut().step_by(100) {
                    client.expect_silence();
                }
            });
        }
    });
    assert_eq!(published.load(SeqCst), PUBLICATIONS);
    eventually("those that went have left", || {
        gateway.stats()["subscriptions"] == CROWD * 9 / 10
    });
    assert_eq!(closed_as_slow(&gateway), 0.0);
}
