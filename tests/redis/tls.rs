//! Over TLS, and with passwords: one server, a cluster, a master behind sentinels.

use shardgate::cluster::store::{Answer, Channel};
use shardgate::config::RedisTarget;

use crate::common::redis::Setup;
use crate::common::{Cluster, Redis, Sentinels};
use crate::store::*;

fn target(url: &str, ca: Option<&std::path::Path>) -> RedisTarget {
    let mut target = RedisTarget::parse(url).unwrap();
    assert!(target.tls);
    target.ca = ca.map(Into::into);
    target
}

#[test]
fn a_server_with_a_certificate_by_the_given_authority() {
    let redis = Redis::start_tls();
    on_control_thread(async {
        let mut store = Store::at(target(&redis.url(), Some(redis.ca())));
        store.until_connected().await;
        every_operation(&mut store).await;
    });
}

#[test]
fn a_server_with_a_certificate_by_anybody_is_refused() {
    let redis = Redis::start_tls();
    on_control_thread(async {
        let cause = Store::at(target(&redis.url(), None)).until_lost().await;
        assert!(cause.to_lowercase().contains("certificate"), "{cause}");
        let missing = std::path::Path::new("/nowhere/ca.pem");
        let cause = Store::at(target(&redis.url(), Some(missing))).until_lost().await;
        assert!(
            cause.contains("redis.ca") && cause.contains("/nowhere/ca.pem"),
            "{cause}"
        );
    });
}

const PASSWORD: Option<&str> = Some("s3cret");

/// Works, and does so again after the server of `t:all` went: `break_it` ends it and waits for the
/// next one.
async fn works_before_and_after(mut store: Store, break_it: impl FnOnce()) {
    store.until_connected().await;
    every_operation(&mut store).await;
    break_it();
    store.until_unsubscribed(&Channel::All).await;
    store.until_connected().await;
    store.until_subscribed(&Channel::All).await;
    assert_eq!(
        store.ask_until_done(publish(&Channel::All, "again")).await,
        Answer::Count(1)
    );
    assert_eq!(store.ask_until_done(set("ann", ME, 1)).await, Answer::Done);
}

#[test]
fn a_cluster_with_tls_and_a_password() {
    let mut cluster = Cluster::start_with(Setup {
        tls: true,
        password: PASSWORD,
        ..Setup::default()
    });
    let (url, ca) = (cluster.url(), cluster.nodes[0].ca().to_owned());
    assert!(url.starts_with("rediss-cluster://:s3cret@"), "{url}");
    on_control_thread(async {
        let cause = Store::at(target(&url, None)).until_lost().await;
        assert!(cause.to_lowercase().contains("certificate"), "{cause}");
        let store = Store::at(target(&url, Some(&ca)));
        works_before_and_after(store, || {
            cluster.kill_master_of(Cluster::slot_of("t:all"));
        })
        .await;
    });
}

#[test]
fn sentinels_with_tls_and_a_password() {
    let mut sentinels = Sentinels::start_with(Setup {
        tls: true,
        password: PASSWORD,
        sentinels_want_it: true,
    });
    let (url, ca) = (sentinels.url(), sentinels.nodes[0].ca().to_owned());
    assert!(url.starts_with("rediss-sentinel://:s3cret@"), "{url}");
    on_control_thread(async {
        let store = Store::at(target(&url, Some(&ca)));
        works_before_and_after(store, || {
            sentinels.kill_master();
            sentinels.wait_for_master();
        })
        .await;
    });
}

#[test]
fn a_cluster_with_a_password() {
    let mut cluster = Cluster::start_with(Setup {
        password: PASSWORD,
        ..Setup::default()
    });
    on_control_thread(async {
        let cause = Store::start(&cluster.url_as("", "wr0ng")).until_lost().await;
        assert!(cause.contains("refused") && !cause.contains("wr0ng"), "{cause}");
        let store = Store::start(&cluster.url());
        works_before_and_after(store, || {
            cluster.kill_master_of(Cluster::slot_of("t:all"));
        })
        .await;
    });
}

/// The servers have a password, and the sentinels have none.
#[test]
fn open_sentinels_with_a_password_on_the_servers() {
    let mut sentinels = Sentinels::start_with(Setup {
        password: PASSWORD,
        ..Setup::default()
    });
    on_control_thread(async {
        let store = Store::start(&sentinels.url());
        works_before_and_after(store, || {
            sentinels.kill_master();
            sentinels.wait_for_master();
        })
        .await;
    });
}

/// A server that wants a certificate of its clients.
#[test]
fn a_certificate_of_our_own() {
    let redis = Redis::start_tls_with_config(&[("tls-auth-clients", "yes")]);
    on_control_thread(async {
        let cause = Store::at(target(&redis.url(), Some(redis.ca()))).until_lost().await;
        assert!(cause.contains("redis.cert"), "{cause}");
        let mut target = target(&redis.url(), Some(redis.ca()));
        let (cert, key) = redis.pair();
        target.client = Some((cert.into(), key.into()));
        let mut store = Store::at(target.clone());
        store.until_connected().await;
        every_operation(&mut store).await;
        target.client = Some(("/nowhere/cert.pem".into(), key.into()));
        let cause = Store::at(target).until_lost().await;
        assert!(
            cause.contains("redis.cert") && cause.contains("/nowhere/cert.pem"),
            "{cause}"
        );
    });
}
