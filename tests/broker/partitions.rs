//! Many channels at once.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, StoreEvent};
use tokio::time::Instant;

use crate::common::{Cluster, Redis};
use crate::store::*;

/// More than one round of questions, and more than the crate lets wait in one connection.
const MANY: u16 = 2_000;

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
