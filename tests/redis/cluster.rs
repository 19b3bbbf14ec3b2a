//! A cluster: three masters with a replica each.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, FailureKind, Op, Store as _, StoreEvent};
use tokio::time::Instant;

use crate::common::Cluster;
use crate::store::*;

#[test]
fn every_operation_in_a_cluster_and_on_every_master() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        every_operation(&mut store).await;
        publishes_stay_in_order(&mut store, Channel::Gateway("order".into(), ME)).await;
        // One request over all masters; answers come in the order of the questions.
        let users: Vec<String> = (0..300).map(|n| format!("user {n}")).collect();
        let owners: BTreeSet<usize> = users
            .iter()
            .map(|user| cluster.owner_of(Cluster::slot_of(&format!("t:user:{user}"))))
            .take(30)
            .collect();
        assert_eq!(owners.len(), 3);
        let count = |n: usize| u32::try_from(n + 1).unwrap();
        let answers = store
            .ask(
                users
                    .iter()
                    .enumerate()
                    .map(|(n, user)| set(user, ME, count(n)))
                    .collect(),
            )
            .await;
        assert!(answers.iter().all(|answer| *answer == Answer::Done), "{answers:?}");
        let answers = store.ask(users.iter().map(|user| locate(user)).collect()).await;
        for (n, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, Answer::Places(vec![(ME, count(n))]));
        }
        // Invalidations come from all of them.
        let mut other = Store::connected(&cluster.url()).await;
        other.ask(users.iter().map(|user| set(user, ME, 7_777)).collect()).await;
        for user in &users {
            store.until_forgotten(user).await;
        }
    });
}

#[test]
fn one_seed_is_enough_and_it_may_be_a_replica() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let url = format!("redis-cluster://127.0.0.1:1,127.0.0.1:{}", cluster.nodes[4].port());
        let mut store = Store::connected(&url).await;
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
        let cause = Store::start("redis-cluster://127.0.0.1:1").until_lost().await;
        assert!(cause.contains("127.0.0.1:1"), "{cause}");
    });
}

#[test]
fn keys_are_found_while_their_slot_moves_and_after() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        let slot = Cluster::slot_of("t:user:{x}old");
        let (from, to) = {
            let from = cluster.owner_of(slot);
            (from, cluster.another_master(from))
        };
        store.ask(vec![set("{x}old", ME, 1), set("{x}stays", ME, 1)]).await;
        cluster.begin_migration(slot, from, to);
        // ASK: a key that is not there yet is made at the new server.
        let answers = store
            .ask(vec![set("{x}new", ME, 2), locate("{x}new"), locate("{x}old")])
            .await;
        assert_eq!(
            answers,
            [
                Answer::Done,
                Answer::Places(vec![(ME, 2)]),
                Answer::Places(vec![(ME, 1)])
            ]
        );
        // A stream of writes while keys and slot move: the last one must stay the last one.
        let mut tickets = Vec::new();
        for n in 3..200 {
            tickets.push(store.submit(vec![set("{x}old", ME, n), set("{x}new", ME, n), set("{x}stays", ME, n)]));
            if n == 50 {
                cluster.migrate_keys(slot, from, to);
            }
            if n == 100 {
                cluster.finish_migration(slot, from, to);
            }
            if n % 10 == 0 {
                let (ticket, first) = (tickets.remove(0), n);
                let answers = store.answers_to(ticket).await;
                assert!(
                    answers.iter().all(|answer| *answer == Answer::Done),
                    "{first}: {answers:?}"
                );
            }
        }
        for ticket in tickets {
            let answers = store.answers_to(ticket).await;
            assert!(answers.iter().all(|answer| *answer == Answer::Done), "{answers:?}");
        }
        let answers = store
            .ask(vec![locate("{x}old"), locate("{x}new"), locate("{x}stays")])
            .await;
        assert!(
            answers.iter().all(|answer| *answer == Answer::Places(vec![(ME, 199)])),
            "{answers:?}"
        );
        assert!(
            !store.unread.iter().any(|event| matches!(event, StoreEvent::Lost(_))),
            "{:?}",
            store.unread
        );
    });
}

/// A server that gives a slot away invalidates the keys that it had, but not those that somebody
/// read in vain.
#[test]
fn who_was_nowhere_is_forgotten_when_the_slot_moves() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let forgotten = |event: &StoreEvent| matches!(event, StoreEvent::ForgetAll).then_some(());
        let mut store = Store::connected(&cluster.url()).await;
        let mut other = Store::connected(&cluster.url()).await;
        let slot = Cluster::slot_of("t:user:{x}ann");
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        assert_eq!(store.ask_one(locate("{x}ann")).await, Answer::Places(vec![]));
        assert!(!store.unread.contains(&StoreEvent::ForgetAll), "nothing has moved");

        // Found out by looking at the cluster now and then.
        cluster.migrate_slot(slot, from, to);
        assert_eq!(other.ask_until_done(set("{x}ann", ME, 1)).await, Answer::Done);
        let moved = Instant::now();
        store.until("ForgetAll", forgotten).await;
        assert!(moved.elapsed() < Duration::from_secs(10), "{:?}", moved.elapsed());
        assert_eq!(store.ask_one(locate("{x}ann")).await, Answer::Places(vec![(ME, 1)]));

        // Found out by asking for somebody else in that slot: told before the answer, as nothing
        // may be asked later.
        assert_eq!(store.ask_one(locate("{x}bob")).await, Answer::Places(vec![]));
        store.unread.clear();
        cluster.migrate_slot(slot, to, from);
        assert_eq!(other.ask_until_done(set("{x}bob", ME, 2)).await, Answer::Done);
        assert_eq!(store.ask_one(locate("{x}eve")).await, Answer::Places(vec![]));
        assert!(store.unread.contains(&StoreEvent::ForgetAll), "{:?}", store.unread);
        assert_eq!(store.ask_one(locate("{x}bob")).await, Answer::Places(vec![(ME, 2)]));
    });
}

#[test]
fn a_subscription_follows_its_slot() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        // Several channels, of different slots, some on one server.
        let others: Vec<Channel> = (0..8).map(|n| Channel::Gateway(format!("gw{n}").into(), ME)).collect();
        for channel in others.iter().chain([&Channel::All]) {
            store.broker.subscribe(channel.clone());
            store.until_subscribed(channel).await;
        }
        let slot = Cluster::slot_of("t:all");
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        cluster.migrate_slot(slot, from, to);
        store.until_unsubscribed(&Channel::All).await;
        let gone = Instant::now();
        store.until_subscribed(&Channel::All).await;
        assert!(gone.elapsed() < Duration::from_secs(3), "{:?}", gone.elapsed());
        for channel in others.iter().chain([&Channel::All]) {
            assert_eq!(
                store.ask_until_done(publish(channel, "x")).await,
                Answer::Count(1),
                "{channel:?}"
            );
            assert_eq!(store.until_received().await.0, *channel);
        }
        assert!(
            !store
                .unread
                .iter()
                .any(|event| matches!(event, StoreEvent::Unsubscribed(_))),
            "{:?}",
            store.unread
        );
    });
}

#[test]
fn a_replica_takes_over_from_a_dead_master() {
    let mut cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        let slot = Cluster::slot_of("t:all");
        let old = cluster.owner_of(slot);
        cluster.nodes[old].kill();
        store.until_lost().await;
        store.until_unsubscribed(&Channel::All).await;
        assert_eq!(
            failure(&store.ask_one(publish(&Channel::All, "x")).await).0,
            FailureKind::Unavailable
        );
        cluster.wait_for_takeover(slot);
        let whole = Instant::now();
        store.until_connected().await;
        assert!(whole.elapsed() < Duration::from_secs(3), "{:?}", whole.elapsed());
        store.until_subscribed(&Channel::All).await;
        assert_eq!(store.ask_one(publish(&Channel::All, "x")).await, Answer::Count(1));
        assert!(matches!(store.ask_one(Op::ReadDirectory).await, Answer::Directory(_)));
    });
}

#[test]
fn an_idle_cluster_is_asked_little() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let store = Store::connected(&cluster.url()).await;
        let before = store.counters.commands_total.load(Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = store.counters.commands_total.load(Relaxed) - before;
        // A PING per second and master, and a look now and then.
        assert!(asked <= 15, "{asked}");
    });
}

#[test]
fn a_failover_by_hand_loses_nothing() {
    let cluster = Cluster::start();
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url()).await;
        let slot = Cluster::slot_of("t:all");
        let old = cluster.owner_of(slot);
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        cluster.nodes[old + 3].cmd(&["CLUSTER", "FAILOVER"]).good();
        cluster.wait_for_takeover(slot);
        let end = Instant::now() + DEADLINE;
        while store.ask_one(publish(&Channel::All, "x")).await != Answer::Count(1) {
            assert!(Instant::now() < end, "heard at the new master");
        }
        for n in 0..50 {
            let user = format!("user {n}");
            assert_eq!(store.ask_until_done(set(&user, ME, 1)).await, Answer::Done);
        }
    });
}
