//! Many channels at once, and whether what is said on them arrives.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, Store as _, StoreEvent};
use tokio::time::{Instant, sleep};

use crate::common::{Cluster, Redis};
use crate::store::*;

/// More than one round of questions, and more than the crate lets wait in one connection.
const MANY: u16 = 2_000;
/// Longer than it takes to find out that a silent connection is deaf: silence, and the answer's
/// time.
const LONG: Duration = Duration::from_secs(9);

fn heard(event: &StoreEvent) -> Option<(u16, bool)> {
    match event {
        StoreEvent::Subscribed(Channel::Partition(number)) => Some((*number, true)),
        StoreEvent::Unsubscribed(Channel::Partition(number)) => Some((*number, false)),
        _ => None,
    }
}

/// Until each partition is heard; `again`: was not meanwhile.
async fn until_all(store: &mut Store, count: u16, again: bool) {
    let all: BTreeSet<u16> = (0..count).collect();
    let (mut deaf, mut missing) = (if again { BTreeSet::new() } else { all.clone() }, all);
    while !missing.is_empty() {
        let (number, is_heard) = store.until("(Un)Subscribed", heard).await;
        if !is_heard {
            deaf.insert(number);
        } else if deaf.contains(&number) {
            missing.remove(&number);
        }
    }
}

fn subscribe_to(store: &mut Store, count: u16) {
    for number in 0..count {
        store.broker.subscribe(Channel::Partition(number));
    }
}

/// All are heard, soon, and again after `cut`.
async fn many_come_back(store: &mut Store, cut: impl Fn()) {
    let began = Instant::now();
    subscribe_to(store, MANY);
    until_all(store, MANY, false).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    cut();
    until_all(store, MANY, true).await;
    for number in [0, MANY / 2, MANY - 1] {
        let channel = Channel::Partition(number);
        assert_eq!(store.ask_one(publish(&channel, "x")).await, Answer::Count(1));
        assert_eq!(store.until_received().await, (channel, "x".into()));
    }
    // Some are wanted no more while others come: nothing is left over.
    for number in 0..MANY {
        store.broker.unsubscribe(&Channel::Partition(number));
    }
    store.broker.subscribe(mine());
    store.until_subscribed(&mine()).await;
    for number in [0, MANY / 2, MANY - 1] {
        let channel = Channel::Partition(number);
        assert_eq!(store.ask_until_done(publish(&channel, "x")).await, Answer::Count(0));
    }
}

#[test]
fn many_channels_are_heard_at_once_and_again() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        many_come_back(&mut store, || {
            redis.client_kill("pubsub");
        })
        .await;
        assert_eq!(store.counters.reconnects.load(Relaxed), 1);
    });
}

#[test]
fn many_channels_are_heard_at_once_and_again_in_a_cluster() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        many_come_back(&mut store, || {
            for node in &cluster.nodes {
                node.client_kill("pubsub");
            }
        })
        .await;
        assert_eq!(store.counters.reconnects.load(Relaxed), 3);
    });
}

/// A way to a server on which, while it is `deaf`, publications get lost: there they go where
/// nobody is, as sharded ones. Everything else is answered and confirmed.
fn way_to(redis: &Redis, deaf: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (port, deaf) = (redis.port(), deaf.clone());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, deaf) = (client.unwrap(), deaf.clone());
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || carry(from, to, <[u8]>::to_vec));
            std::thread::spawn(move || {
                carry(client, server, |bytes| {
                    // A command comes in one piece on the same host.
                    match bytes.strip_prefix(b"*3\r\n$7\r\nPUBLISH\r\n") {
                        Some(rest) if deaf.load(Relaxed) => [b"*3\r\n$8\r\nSPUBLISH\r\n", rest].concat(),
                        _ => bytes.to_vec(),
                    }
                });
            });
        }
    });
    url
}

fn carry(mut from: TcpStream, mut to: TcpStream, change: impl Fn(&[u8]) -> Vec<u8>) {
    let mut bytes = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&change(&bytes[..count])).is_err() {
            break;
        }
    }
    // Either end takes the other with it.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// It answers and confirms, and that is no proof.
#[test]
fn a_connection_that_delivers_nothing_is_given_up() {
    let redis = Redis::start();
    let deaf = Arc::new(AtomicBool::new(true));
    on_control_thread(async {
        let mut store = Store::connected(&way_to(&redis, &deaf)).await;
        for _ in 0..2 {
            store.broker.subscribe(mine());
            store.until_subscribed(&mine()).await;
            let began = Instant::now();
            store.until_unsubscribed(&mine()).await;
            assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
        }
        deaf.store(false, Relaxed);
        store.until_subscribed(&mine()).await;
        sleep(LONG).await;
        assert_eq!(store.ask_one(publish(&mine(), "x")).await, Answer::Count(1));
        store.until_received().await;
        assert!(store.unread.iter().find_map(ears).is_none(), "{:?}", store.unread);
        assert_eq!(store.counters.reconnects.load(Relaxed), 2);
    });
}

/// Each connection of each store is proved, and nobody hears of it.
#[test]
fn a_probe_is_no_packet() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut stores = [
            Store::connected(&cluster.url()).await,
            Store::connected(&cluster.url()).await,
        ];
        for store in &mut stores {
            subscribe_to(store, 64);
            until_all(store, 64, false).await;
        }
        sleep(LONG).await;
        for node in &cluster.nodes[..3] {
            let published = node.commandstats()["spublish"];
            // One for both, if not at the same time.
            assert!((1..=6).contains(&published), "{published}");
        }
        for store in &mut stores {
            assert_eq!(store.broker.try_next_event(), None);
            assert!(store.unread.iter().find_map(ears).is_none(), "{:?}", store.unread);
            let counters = &store.counters;
            let counted = [&counters.bytes_in, &counters.packets_dropped, &counters.reconnects];
            assert_eq!(counted.map(|counter| counter.load(Relaxed)), [0; 3]);
        }
    });
}

/// Anything that came over a connection for subscriptions, or became of it.
fn ears(event: &StoreEvent) -> Option<()> {
    let is_ears = matches!(
        event,
        StoreEvent::Subscribed(_) | StoreEvent::Unsubscribed(_) | StoreEvent::Received(..) | StoreEvent::Refused(_)
    );
    is_ears.then_some(())
}
