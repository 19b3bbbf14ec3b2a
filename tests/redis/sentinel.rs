//! A master that sentinels watch over.

use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, Store as _};
use tokio::time::Instant;

use crate::common::Sentinels;
use crate::store::*;

#[test]
fn every_operation_behind_sentinels() {
    let sentinels = Sentinels::start();
    on_control_thread(async {
        let mut store = Store::connected(&sentinels.url()).await;
        every_operation(&mut store).await;
        let wrong = sentinels.url().replace(Sentinels::MASTER, "nobody");
        let cause = Store::start(&wrong).until_lost().await;
        assert!(cause.contains("knows no master \"nobody\""), "{cause}");
    });
}

#[test]
fn the_new_master_is_found_after_the_old_one_died_though_the_first_sentinel_is_gone() {
    let mut sentinels = Sentinels::start();
    on_control_thread(async {
        let mut store = Store::connected(&sentinels.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        sentinels.sentinels[0].kill();
        sentinels.kill_master();
        store.until_lost().await;
        store.until_unsubscribed(&Channel::All).await;
        sentinels.wait_for_master();
        let promoted = Instant::now();
        store.until_connected().await;
        assert!(promoted.elapsed() < Duration::from_secs(2), "{:?}", promoted.elapsed());
        store.until_subscribed(&Channel::All).await;
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
        assert_eq!(store.ask_one(publish(&Channel::All, "again")).await, Answer::Count(1));
    });
}

#[test]
fn a_failover_by_hand_is_followed_though_the_old_master_lives() {
    let sentinels = Sentinels::start();
    on_control_thread(async {
        let mut store = Store::connected(&sentinels.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        let before = sentinels.master_addr();
        sentinels.sentinels[1]
            .cmd(&["SENTINEL", "FAILOVER", Sentinels::MASTER])
            .good();
        store.until_lost().await;
        store.until_connected().await;
        let end = Instant::now() + DEADLINE;
        while sentinels.master_addr() == before {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(store.ask_until_done(set("ann", ME, 1)).await, Answer::Done);
        let end = Instant::now() + DEADLINE;
        while store.ask_one(publish(&Channel::All, "again")).await != Answer::Count(1) {
            assert!(Instant::now() < end, "subscribed at the new master");
        }
    });
}
