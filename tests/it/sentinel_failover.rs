//! Redis under sentinels: when its master dies another takes over, and the gateways find it by
//! themselves.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::{Talk, assert_truthful};
use common::{Fleet, Peer, Redis, Sentinels, eventually};

#[test]
fn the_master_dies() {
    let mut sentinels = Sentinels::start();
    let fleet = Fleet::new(sentinels.url());
    let [gw1, gw2] = fleet.start();
    let alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    let mut watcher = Peer::connect(&gw1, "watcher");
    let users: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let mut devices: Vec<_> = users.iter().map(|user| gw2.connect(user)).collect();
    watcher.wait_to_see_all(&users, true);
    watcher.wait_to_see("bob", true);
    watcher.tell_until("bob", "before", "routed");
    let talk = Talk::start(alice, "bob");
    talk.wait_for_acks(20);

    sentinels.kill_master();
    watcher.tell_until("bob", "nobody knows", "failed");
    // Users come and go while there is no master.
    let comes = Peer::connect(&gw2, "comes");
    drop(devices.pop());
    sentinels.wait_for_master();
    watcher.tell_until("bob", "back", "routed");
    watcher.tell_until_heard(&bob, "after");
    watcher.wait_to_see_all(&users[..99], true);
    watcher.wait_to_see("comes", true);
    watcher.wait_to_see("user99", false);
    watcher.tell_until_heard(&comes, "welcome");
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    let (mut alice, said) = talk.stop();
    alice.tell_until("bob", "end", "routed");
    bob.wait_for("end");
    assert_truthful("alice to bob", &said, &bob.numbers_from("alice"), 3);
    // No live connection was lost.
    for (user, device) in users.iter().zip(&mut devices) {
        assert_eq!(watcher.tell(user, user.as_str()), "routed");
        assert_eq!(device.recv_json()["content"], **user);
    }
    // New data is written to the new master.
    assert!(fleet.directory(sentinels.master()).len() == 2);
}

/// The sentinel that is asked first may be the one that is away.
#[test]
fn a_sentinel_is_away() {
    let mut sentinels = Sentinels::start();
    sentinels.sentinels[0].kill();
    let fleet = Fleet::new(sentinels.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.tell_until_heard(&bob, 1);
}

#[test]
fn a_name_that_no_sentinel_knows() {
    let sentinels = Sentinels::start();
    let url = sentinels.url().replace(Sentinels::MASTER, "othermaster");
    let ended = Fleet::new(url)
        .with_args(&["--redis-start-timeout", "1s"])
        .refused("gw1");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("othermaster"), "{ended:?}");
}

/// Nothing fails at the old master, which goes on; only a new question to the sentinels finds out.
#[test]
fn sentinels_name_another_master_while_the_old_one_goes_on() {
    let sentinels = Sentinels::start();
    let other = Redis::start();
    let fleet = Fleet::new(sentinels.url());
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    sentinels.name_master(&sentinels.sentinels, &other);
    eventually("both gateways are at the new master", || {
        fleet.directory(&other).len() == 2
    });
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    // A gateway that comes now finds the others there.
    let gw3 = fleet.gateway("gw3");
    let mut carol = Peer::connect(&gw3, "carol");
    carol.wait_to_see("bob", true);
    carol.tell_until_heard(&bob, "new");
    alice.tell_until_heard(&bob, "old");
}
