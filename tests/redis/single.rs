//! One server.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, FailureKind, Op, Store as _, StoreEvent};
use tokio::time::{Instant, timeout};

use crate::common::Redis;
use crate::store::*;

#[test]
fn every_operation_on_one_server() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        every_operation(&mut store).await;
        let total: u64 = store.counters.operations.iter().map(|count| count.load(Relaxed)).sum();
        assert!(store.counters.operations.iter().all(|count| count.load(Relaxed) > 0));
        assert!(store.counters.commands_total.load(Relaxed) >= total);
    });
}

#[test]
fn ten_thousand_publishes_stay_in_order() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        publishes_stay_in_order(&mut store, Channel::All).await;
    });
}

#[test]
fn what_is_changed_is_to_be_forgotten_whoever_did_it() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        let mut other = Store::connected(&redis.url()).await;
        assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![]));
        other.ask(vec![set("ann", ME, 1)]).await;
        store.until_forgotten("ann").await;
        assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![(ME, 1)]));
        // What we change ourselves, too: the server forgets the reading with it. With NOLOOP that
        // would happen in silence, and so would the next change by another client.
        store.ask(vec![set("ann", ME, 2)]).await;
        store.until_forgotten("ann").await;
        assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![(ME, 2)]));
        other.ask(vec![set("ann", ME, 3)]).await;
        store.until_forgotten("ann").await;
        store.ask_one(locate("ann")).await;
        redis.cmd(&["FLUSHALL"]).good();
        let all = |event: &StoreEvent| matches!(event, StoreEvent::ForgetAll).then_some(());
        store.until("ForgetAll", all).await;
    });
}

/// A read may be answered after the invalidation of what it read, never instead of it: after each
/// answer, or between question and answer, the invalidation of that answer is there.
#[test]
fn no_invalidation_is_lost_between_reads_and_writes_at_full_speed() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        let mut other = Store::connected(&redis.url()).await;
        let mut last = 0;
        for round in 1..=2_000u32 {
            let ticket = store.submit(vec![locate("ann")]);
            other.submit(vec![set("ann", ME, round)]);
            let answers = store.answers_to(ticket).await;
            let Answer::Places(places) = &answers[0] else {
                panic!("{answers:?}")
            };
            last = places.first().map_or(0, |(_, count)| *count);
            if last < round {
                store.until_forgotten("ann").await;
            }
            store.unread.clear();
            while let Some(event) = other.broker.try_next_event() {
                drop(event);
            }
        }
        assert!(last >= 1_999);
    });
}

#[test]
fn killed_connections_are_told_of_and_come_back() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;

        redis.client_kill("pubsub");
        store.until_unsubscribed(&Channel::All).await;
        store.until_subscribed(&Channel::All).await;
        assert_eq!(store.ask_one(publish(&Channel::All, "1")).await, Answer::Count(1));
        store.until_received().await;
        assert!(
            !store.unread.iter().any(|event| matches!(event, StoreEvent::Lost(_))),
            "commands were never lost"
        );

        redis.client_kill("normal");
        store.until_lost().await;
        store.until_connected().await;
        assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![]));
        redis.cmd(&["HSET", "t:user:ann", "00000000000000aa", "1"]).good();
        store.until_forgotten("ann").await;
        assert!(store.counters.reconnects.load(Relaxed) >= 2);
    });
}

#[test]
fn a_server_that_sleeps_is_lost_and_comes_back() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        redis.pause();
        let paused = Instant::now();
        let ticket = store.submit(vec![locate("ann"), Op::ReadDirectory]);
        store.until_lost().await;
        assert!(
            paused.elapsed() < Duration::from_millis(3_500),
            "{:?}",
            paused.elapsed()
        );
        for answer in timeout(ANSWER_MAX, store.answers_to(ticket)).await.unwrap() {
            assert_eq!(failure(&answer).0, FailureKind::Unavailable);
        }
        // And at once while it is known.
        let asked = Instant::now();
        assert_eq!(failure(&store.ask_one(locate("ann")).await).0, FailureKind::Unavailable);
        assert!(asked.elapsed() < Duration::from_millis(500));
        store.until_unsubscribed(&Channel::All).await;
        redis.resume();
        store.until_connected().await;
        store.until_subscribed(&Channel::All).await;
        assert_eq!(store.ask_one(locate("ann")).await, Answer::Places(vec![]));
    });
}

#[test]
fn a_server_that_dies_in_silence_is_noticed_though_nobody_asks() {
    let redis = Redis::start();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        redis.pause();
        let paused = Instant::now();
        store.until_lost().await;
        assert!(
            paused.elapsed() < Duration::from_millis(4_500),
            "{:?}",
            paused.elapsed()
        );
        redis.resume();
        store.until_connected().await;
    });
}

#[test]
fn a_server_that_starts_late_is_found_and_a_request_fails_at_once_before() {
    let mut redis = Redis::not_yet(&[]);
    on_control_thread(async {
        let mut store = Store::start(&redis.url());
        assert_eq!(failure(&store.ask_one(locate("ann")).await).0, FailureKind::Unavailable);
        let cause = store.until_lost().await;
        assert!(cause.contains(&redis.port().to_string()), "{cause}");
        store.broker.subscribe(Channel::All);
        redis.restart();
        store.until_connected().await;
        store.until_subscribed(&Channel::All).await;
        redis.restart();
        store.until_lost().await;
        store.until_connected().await;
        store.until_subscribed(&Channel::All).await;
    });
}

#[test]
fn a_wrong_password_is_said_and_never_shown() {
    let redis = Redis::with_config(&[("requirepass", "s3cret")]);
    on_control_thread(async {
        for url in [redis.url_as("default", "wr0ng"), redis.url_as("nobody", "wr0ng")] {
            let mut store = Store::start(&url);
            let cause = store.until_lost().await;
            assert!(cause.contains("WRONGPASS") && !cause.contains("wr0ng"), "{cause}");
            assert!(!format!("{:?}", store.broker).contains("wr0ng"));
        }
        let cause = Store::start(&format!("redis://127.0.0.1:{}", redis.port()))
            .until_lost()
            .await;
        assert!(cause.contains("NOAUTH"), "{cause}");
        Store::connected(&redis.url_with_password()).await;
    });
}

#[test]
fn a_replica_is_no_server_for_us() {
    let master = Redis::start();
    let replica = Redis::with_config(&[("replicaof", &format!("127.0.0.1 {}", master.port()))]);
    on_control_thread(async {
        let cause = Store::start(&replica.url()).until_lost().await;
        assert!(
            cause.contains("read-only replica") || cause.contains("LOADING") || cause.contains("MASTERDOWN"),
            "{cause}"
        );
        // A master that is made a replica while we are there.
        let mut store = Store::connected(&master.url()).await;
        let other = Redis::start();
        master
            .cmd(&["REPLICAOF", "127.0.0.1", &other.port().to_string()])
            .good();
        let answer = store.ask_one(set("ann", ME, 1)).await;
        let (_, text) = failure(&answer);
        assert!(text.contains("READONLY"), "{text}");
        store.until_lost().await;
        master.cmd(&["REPLICAOF", "NO", "ONE"]).good();
        store.until_connected().await;
        assert_eq!(store.ask_until_done(set("ann", ME, 1)).await, Answer::Done);
    });
}

#[test]
fn a_full_server_refuses_what_needs_memory_and_nothing_else() {
    let redis = Redis::with_config(&[("maxmemory-policy", "noeviction")]);
    on_control_thread(async {
        let mut store = Store::connected(&redis.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        redis.set_config("maxmemory", "1mb");
        let ops = vec![set("ann", ME, 1), publish(&Channel::All, "still"), locate("ann")];
        let answers = store.ask(ops).await;
        let (kind, text) = failure(&answers[0]);
        assert!(kind == FailureKind::Refused && text.starts_with("OOM"), "{text}");
        assert_eq!(answers[1..], [Answer::Count(1), Answer::Places(vec![])]);
        redis.set_config("maxmemory", "0");
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
        assert!(!store.unread.iter().any(|event| matches!(event, StoreEvent::Lost(_))));
    });
}

#[test]
fn what_an_access_list_forbids_is_refused() {
    let redis = Redis::start();
    redis
        .cmd(&[
            "ACL", "SETUSER", "gw", "on", ">pw", "~t:*", "&t:*", "+@all", "-sadd", "-role",
        ])
        .good();
    on_control_thread(async {
        let mut store = Store::connected(&redis.url_as("gw", "pw")).await;
        let add = Op::IndexAdd {
            owner: ME,
            users: vec!["ann".into()],
        };
        let (kind, text) = failure(&store.ask_one(add).await);
        assert!(kind == FailureKind::Refused && text.starts_with("NOPERM"), "{text}");
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
    });
}

/// A server that takes connections and says nothing, as one behind a broken network or a stopped
/// process does.
#[test]
fn a_server_that_never_says_anything_is_lost_and_no_request_hangs() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://127.0.0.1:{}", silent.local_addr().unwrap().port());
    on_control_thread(async {
        let mut store = Store::start(&url);
        store.broker.subscribe(Channel::All);
        assert_eq!(failure(&store.ask_one(locate("ann")).await).0, FailureKind::Unavailable);
        let cause = store.until_lost().await;
        assert!(cause.contains("did not let us in"), "{cause}");
        assert_eq!(failure(&store.ask_one(locate("ann")).await).0, FailureKind::Unavailable);
    });
}

/// Credentials may hold what a URL must not.
#[test]
fn a_password_of_odd_characters_gets_through() {
    let redis = Redis::start();
    redis
        .cmd(&["ACL", "SETUSER", "a/b@c:d", "on", ">p?%#@/: ü", "~*", "&*", "+@all"])
        .good();
    on_control_thread(async {
        let url = "redis://a%2Fb%40c%3Ad:p%3F%25%23%40%2F%3A%20%C3%BC@127.0.0.1:";
        let mut store = Store::connected(&format!("{url}{}/3", redis.port())).await;
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
        assert!(redis.keys("t:").is_empty(), "it is in database 3");
    });
}

/// Keys belong to a database and channels to the whole server, so the number is part of their
/// names.
#[test]
fn two_systems_in_two_databases_of_one_server_never_cross() {
    let redis = Redis::start();
    on_control_thread(async {
        let channels = [Channel::All, mine(), Channel::Partition(3)];
        let mut stores = [
            Store::connected(&redis.url()).await,
            Store::connected(&format!("{}/1", redis.url())).await,
            Store::connected(&format!("{}/2", redis.url())).await,
        ];
        for store in &mut stores {
            for channel in &channels {
                store.broker.subscribe(channel.clone());
                store.until_subscribed(channel).await;
            }
        }
        for (own, store) in stores.iter_mut().enumerate() {
            for channel in &channels {
                let said = publish(channel, format!("of {own}"));
                assert_eq!(store.ask_one(said).await, Answer::Count(1), "{channel:?} of {own}");
            }
            store.ask_one(set("ann", ME, own as u32 + 1)).await;
        }
        for (own, store) in stores.iter_mut().enumerate() {
            for channel in &channels {
                let (heard_on, said) = store.until_received().await;
                assert_eq!((&heard_on, said), (channel, format!("of {own}").into()));
            }
            let places = Answer::Places(vec![(ME, own as u32 + 1)]);
            assert_eq!(store.ask_one(locate("ann")).await, places);
            let other = |event: &StoreEvent| matches!(event, StoreEvent::Received(..));
            assert!(!store.unread.iter().any(other), "{:?}", store.unread);
        }
    });
}
