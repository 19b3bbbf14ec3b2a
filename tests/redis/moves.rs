//! Discovery that changes its mind: a name, a proxy or sentinels lead elsewhere, while the old
//! server still answers. Both connections of a broker are together on the new one soon, and what it
//! costs until then is bounded.

use std::time::Duration;

use shardgate::cluster::store::{Answer, Channel, Store as _, StoreEvent};
use shardgate::config::RedisTarget;
use tokio::time::{Instant, sleep};

use crate::common::redis::ListenerKind;
use crate::common::{Redis, Sentinels, eventually};
use crate::store::*;

/// How soon both are together; what is behind is for a loaded machine.
const TOGETHER: Duration = Duration::from_secs(5);
/// Two redials at random take longer where the machine has other things to do.
const SLACK: Duration = Duration::from_secs(25);

fn commands(servers: &[&Redis]) -> u64 {
    let of = |server: &&Redis| server.info("stats", "total_commands_processed").unwrap();
    servers.iter().map(|server| of(server).parse::<u64>().unwrap()).sum()
}

fn replica_of(replica: &Redis, master: &Redis) {
    replica
        .cmd(&["REPLICAOF", "127.0.0.1", &master.port().to_string()])
        .good();
    eventually("the replica is in sync", || {
        replica.info("replication", "master_link_status").as_deref() == Some("up")
    });
}

/// Connected, and hears everybody.
async fn listening(url: &str) -> Store {
    let mut store = Store::connected(url).await;
    store.broker.subscribe(Channel::All);
    store.until_subscribed(&Channel::All).await;
    assert_eq!(store.ask_one(publish(&Channel::All, "first")).await, Answer::Count(1));
    store.until_received().await;
    store
}

/// What is written and published reaches this server, and what is published there is heard, within
/// five seconds.
async fn comes_together_on(store: &mut Store, server: &Redis) {
    let began = Instant::now();
    loop {
        let answers = store.ask(vec![set("ann", ME, 7), publish(&Channel::All, "x")]).await;
        let written = server.cmd(&["HEXISTS", "t:user:ann", &ME.to_string()]).int() == 1;
        if answers == [Answer::Done, Answer::Count(1)] && written {
            break;
        }
        assert!(
            began.elapsed() < TOGETHER + SLACK,
            "still {answers:?}, written: {written}"
        );
        sleep(Duration::from_millis(50)).await;
    }
    store.unread.clear();
    let heard = server.cmd(&["PUBLISH", "t:all", "there"]).int();
    assert_eq!(heard, 1);
    while store.until_received().await.1 != "there" {}
}

#[test]
fn a_name_moves_to_the_promoted_replica_and_the_old_master_becomes_its_replica() {
    let (first, second) = (Redis::start(), Redis::start());
    replica_of(&second, &first);
    let door = ListenerKind::to(&[&first]);
    on_control_thread(async {
        let mut store = listening(&door.url()).await;
        second.cmd(&["REPLICAOF", "NO", "ONE"]).good();
        door.lead_to(&[&second]);
        replica_of(&first, &second);
        let (began, before) = (Instant::now(), commands(&[&first, &second]));
        comes_together_on(&mut store, &second).await;
        let per_second = (commands(&[&first, &second]) - before) as f64 / began.elapsed().as_secs_f64().max(1.0);
        assert!(per_second < 250.0, "{per_second} commands per second");
        assert!(door.opened() < 20, "{} connections", door.opened());
    });
}

/// The subscriptions alone are dialled anew and find another master; commands do not notice
/// anything.
#[test]
fn commands_follow_subscriptions() {
    let (first, second) = (Redis::start(), Redis::start());
    let door = ListenerKind::to(&[&first]);
    on_control_thread(async {
        let mut store = listening(&door.url()).await;
        door.lead_to(&[&second]);
        assert_eq!(first.client_kill("pubsub"), 1);
        comes_together_on(&mut store, &second).await;
    });
}

#[test]
fn a_proxy_that_gives_its_servers_out_in_turn_does_not_keep_the_two_apart() {
    let servers = [Redis::start(), Redis::start()];
    let door = ListenerKind::to(&[&servers[0], &servers[1]]);
    on_control_thread(async {
        let mut store = Store::connected(&door.url()).await;
        store.broker.subscribe(Channel::All);
        store.until_subscribed(&Channel::All).await;
        let began = Instant::now();
        while store.ask_one(publish(&Channel::All, "x")).await != Answer::Count(1) {
            assert!(began.elapsed() < TOGETHER + SLACK);
            sleep(Duration::from_millis(20)).await;
        }
        assert!(door.opened() < 60, "{} connections", door.opened());
    });
}

/// Nothing fails, so only who asks finds out.
#[test]
fn a_name_moves_while_the_old_master_goes_on() {
    let (first, second) = (Redis::start(), Redis::start());
    let door = ListenerKind::to(&[&first]);
    on_control_thread(async {
        let mut store = listening(&door.url()).await;
        door.lead_to(&[&second]);
        store.until_lost().await;
        store.until_connected().await;
        comes_together_on(&mut store, &second).await;
    });
}

#[test]
fn sentinels_name_another_master_while_the_old_one_goes_on() {
    let sentinels = Sentinels::start();
    let other = Redis::start();
    on_control_thread(async {
        let mut store = listening(&sentinels.url()).await;
        // One of three is mistaken: most decide.
        sentinels.name_master(&sentinels.sentinels[..1], &other);
        sleep(Duration::from_secs(4)).await;
        let lost = |event: &StoreEvent| matches!(event, StoreEvent::Lost(_));
        assert!(!store.unread.iter().any(lost), "{:?}", store.unread);
        assert_eq!(store.ask_one(publish(&Channel::All, "x")).await, Answer::Count(1));

        sentinels.name_master(&sentinels.sentinels[1..], &other);
        store.until_lost().await;
        store.until_connected().await;
        comes_together_on(&mut store, &other).await;
    });
}

/// What the owner of the broker says when its own probe does not come back.
#[test]
fn doubts_make_both_connections_anew() {
    let redis = Redis::start();
    let door = ListenerKind::to(&[&redis]);
    on_control_thread(async {
        let mut store = listening(&door.url()).await;
        let before = door.opened();
        for _ in 0..50 {
            store.broker.renew(&Channel::All);
        }
        store.until_lost().await;
        store.until_connected().await;
        store.until_subscribed(&Channel::All).await;
        assert_eq!(
            store.ask_until_done(publish(&Channel::All, "x")).await,
            Answer::Count(1)
        );
        // A remedy that is under way is not begun again.
        assert!(door.opened() <= before + 4, "{} connections", door.opened() - before);
    });
}

#[test]
fn sentinels_with_credentials_of_their_own() {
    let sentinels = Sentinels::start();
    for sentinel in &sentinels.sentinels {
        sentinel
            .cmd(&["ACL", "SETUSER", "asker", "on", ">its-own", "+@all"])
            .good();
        sentinel
            .cmd(&["ACL", "SETUSER", "default", "-@all", "+auth", "+hello"])
            .good();
    }
    let mut target = RedisTarget::parse(&sentinels.url()).unwrap();
    on_control_thread(async {
        let cause = Store::at(target.clone()).until_lost().await;
        assert!(cause.contains("sentinel") && cause.contains("NOPERM"), "{cause}");
        target.sentinel_username = Some("asker".into());
        target.sentinel_password = Some("its-own".into());
        let mut store = Store::at(target);
        store.until_connected().await;
        assert_eq!(store.ask_one(set("ann", ME, 1)).await, Answer::Done);
    });
}

#[test]
fn a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let mut redis = Redis::with_config(&[("unixsocket", path.to_str().unwrap()), ("requirepass", "p&w")]);
    on_control_thread(async {
        let url = format!("unix://{}?db=3&pass=p%26w", path.display());
        let mut store = Store::connected(&url).await;
        every_operation(&mut store).await;
        redis.kill();
        let cause = store.until_lost().await;
        assert!(!cause.contains("p&w"), "{cause}");
        redis.restart();
        store.until_connected().await;
        assert_eq!(store.ask_until_done(set("ann", ME, 1)).await, Answer::Done);
    });
}
