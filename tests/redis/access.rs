//! The user that docs/cluster.md tells operators to make, and users who may do less.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use shardgate::cluster::store::{Answer, Channel, Store as _, StoreEvent};

use crate::common::redis::{Setup, allowed, documented_user};
use crate::common::{Cluster, Redis, Sentinels};
use crate::store::*;

/// Everything that is allowed was asked for: nothing is superfluous. And nothing was denied.
#[track_caller]
fn assert_exact(nodes: &[Redis], rules: &[Vec<String>]) {
    let called: BTreeSet<String> = nodes
        .iter()
        .flat_map(|node| node.commandstats())
        .filter(|(_, calls)| *calls > 0)
        .map(|(name, _)| name)
        .collect();
    let superfluous: Vec<_> = allowed(rules).difference(&called).cloned().collect();
    assert!(superfluous.is_empty(), "{superfluous:?} of {called:?}");
    for node in nodes {
        node.assert_nothing_denied();
    }
}

#[test]
fn the_documented_user_on_one_server() {
    let redis = Redis::start();
    let [user, ..] = documented_user("t:", "s3cret");
    redis.carry_out(&user);
    redis.cmd(&["CONFIG", "RESETSTAT"]).good();
    on_control_thread(async {
        let url = format!("{}/3", redis.url_as("shardgate", "s3cret"));
        let mut store = Store::connected(&url).await;
        every_operation(&mut store).await;
    });
    assert_exact(std::slice::from_ref(&redis), &[user]);
}

#[test]
fn the_documented_user_in_a_cluster() {
    let cluster = Cluster::start();
    let [alone, besides, _] = documented_user("t:", "s3cret");
    let user = [alone, besides];
    for node in &cluster.nodes {
        for command in &user {
            node.carry_out(command);
        }
        node.cmd(&["CONFIG", "RESETSTAT"]).good();
    }
    on_control_thread(async {
        let mut store = Store::connected(&cluster.url_as("shardgate", "s3cret")).await;
        every_operation(&mut store).await;
        // Keys and channels of a slot that moves.
        let slot = Cluster::slot_of("t:all");
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        cluster.begin_migration(slot, from, to);
        let user_slot = Cluster::slot_of("t:user:{x}ann");
        let from_user = cluster.owner_of(user_slot);
        let to_user = cluster.another_master(from_user);
        cluster.begin_migration(user_slot, from_user, to_user);
        assert_eq!(store.ask_one(set("{x}ann", ME, 1)).await, Answer::Done);
        cluster.finish_migration(user_slot, from_user, to_user);
        cluster.finish_migration(slot, from, to);
        store.until_unsubscribed(&Channel::All).await;
        store.until_subscribed(&Channel::All).await;
        assert_eq!(
            store.ask_until_done(publish(&Channel::All, "x")).await,
            Answer::Count(1)
        );
        assert_eq!(store.ask_one(locate("{x}ann")).await, Answer::Places(vec![(ME, 1)]));
    });
    assert_exact(&cluster.nodes, &user);
}

#[test]
fn the_documented_users_behind_sentinels() {
    let sentinels = Sentinels::start_with(Setup {
        password: Some("operators"),
        sentinels_want_it: true,
        ..Setup::default()
    });
    let [user, _, asker] = documented_user("t:", "s3cret");
    for node in &sentinels.nodes {
        node.carry_out(&user);
        node.cmd(&["CONFIG", "RESETSTAT"]).good();
    }
    for sentinel in &sentinels.sentinels {
        sentinel.carry_out(&asker);
    }
    on_control_thread(async {
        let url = format!("{}/3", sentinels.url_as("shardgate", "s3cret"));
        let mut store = Store::connected(&url).await;
        every_operation(&mut store).await;
    });
    assert_exact(&sentinels.nodes, &[user]);
    // Sentinels do not count calls.
    sentinels.sentinels.iter().for_each(Redis::assert_nothing_denied);
}

/// What is refused is told once, and again when it was heard in between.
#[test]
fn a_refused_subscription_is_told_of() {
    let redis = Redis::start();
    let allow = |rules: &[&str]| {
        let words = ["ACL", "SETUSER", "gw", "on", ">pw", "~t:*", "+@all"];
        redis.cmd(&[&words[..], rules].concat()).good();
    };
    on_control_thread(async {
        let refused = |event: &StoreEvent| match event {
            StoreEvent::Refused(words) => Some(words.to_string()),
            _ => None,
        };
        allow(&["resetchannels"]);
        let mut store = Store::connected(&redis.url_as("gw", "pw")).await;
        store.broker.subscribe(Channel::All);
        let words = store.until("Refused", refused).await;
        assert!(
            words.starts_with("Redis refused the subscription to t:all: NOPERM "),
            "{words}"
        );
        // It was asked for again in between, each second.
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        allow(&["&t:*"]);
        store.until_subscribed(&Channel::All).await;
        assert!(store.unread.iter().find_map(refused).is_none(), "{:?}", store.unread);
        allow(&["resetchannels"]);
        store.until_unsubscribed(&Channel::All).await;
        assert_eq!(store.until("Refused", refused).await, words);
    });
}

/// Of many that are asked for together, each for itself.
#[test]
fn a_refused_subscription_takes_no_other_with_it() {
    let redis = Redis::start();
    redis
        .cmd(&[
            "ACL",
            "SETUSER",
            "gw",
            "on",
            ">pw",
            "~t:*",
            "+@all",
            "resetchannels",
            "&t:part:1*",
        ])
        .good();
    on_control_thread(async {
        let mut store = Store::start(&redis.url_as("gw", "pw"));
        for number in 0..20 {
            store.broker.subscribe(Channel::Partition(number));
        }
        for number in [1].into_iter().chain(10..20) {
            store.until_subscribed(&Channel::Partition(number)).await;
        }
        for number in [0].into_iter().chain(2..10) {
            let channel = format!("t:part:{number}: NOPERM ");
            let refused = |event: &StoreEvent| {
                matches!(event, StoreEvent::Refused(words) if words.contains(&channel)).then_some(())
            };
            store.until("Refused", refused).await;
        }
        assert_eq!(store.counters.reconnects.load(Relaxed), 0);
    });
}

/// What the URL says and what the server is do not fit: the cause names the other form.
#[test]
fn a_url_of_the_wrong_kind_is_told_the_right_one() {
    let plain = Redis::with_config(&[("requirepass", "pw")]);
    let with_tls = Redis::start_tls();
    let swapped = |url: &str, from: &str, to: &str| url.replacen(from, to, 1);
    on_control_thread(async {
        for (url, remedy) in [
            (
                swapped(&plain.url_as("", "pw"), "redis:", "redis-cluster:"),
                "with redis:// instead",
            ),
            (
                swapped(&plain.url_as("", "pw"), "redis:", "rediss:"),
                "does not speak TLS",
            ),
            (swapped(&with_tls.url(), "rediss:", "redis:"), "with rediss instead"),
            (plain.url(), "password into redis.url"),
            (plain.url_as("", "wr0ng"), "correct user and password"),
            (format!("{}/99", plain.url_as("", "pw")), "raise databases"),
        ] {
            let cause = Store::start(&url).until_lost().await;
            assert!(cause.contains(remedy), "{url}: {cause}");
            assert!(!cause.contains("wr0ng"), "{cause}");
        }
    });
}

/// A server of a Redis Cluster has a part of the keys only, which would be noticed by some users
/// and not by others.
#[test]
fn a_server_of_a_cluster_is_no_store_by_itself() {
    let cluster = Cluster::start();
    on_control_thread(async {
        for node in &cluster.nodes[..3] {
            let cause = Store::start(&node.url()).until_lost().await;
            assert!(cause.contains("redis-cluster:// instead of redis://"), "{cause}");
        }
    });
}

/// As a server answers that has no password and listens to the world.
#[test]
fn a_server_in_protected_mode_is_told_of_with_its_remedy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut connection, _) = listener.accept().unwrap();
        let _ = connection.write_all(b"-DENIED Redis is running in protected mode because no password is set.\r\n");
    });
    on_control_thread(async {
        let cause = Store::start(&url).until_lost().await;
        assert!(cause.contains("requirepass"), "{cause}");
    });
    server.join().unwrap();
}
