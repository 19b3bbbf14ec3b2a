//! Redis Cluster: slots move from node to node and masters die while gateways talk; within moments
//! all is well again.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::{Talk, assert_truthful};
use common::{Cluster, Fleet, Gateway, Peer, eventually};

/// Two gateways whose users talk both ways.
struct Traffic {
    there: Talk,
    back: Talk,
    bob: Peer,
    dave: Peer,
    watcher: Peer,
    far_watcher: Peer,
}

impl Traffic {
    fn start(gw1: &Gateway, gw2: &Gateway) -> Traffic {
        let alice = Peer::connect(gw1, "alice");
        let bob = Peer::connect(gw2, "bob");
        let carol = Peer::connect(gw2, "carol");
        let dave = Peer::connect(gw1, "dave");
        let mut watcher = Peer::connect(gw1, "watcher");
        let mut far_watcher = Peer::connect(gw2, "far watcher");
        watcher.wait_to_see_all(&["bob", "carol"], true);
        far_watcher.wait_to_see_all(&["alice", "dave"], true);
        watcher.tell_until_heard(&bob, "before");
        far_watcher.tell_until_heard(&dave, "before");
        let (there, back) = (Talk::start(alice, "bob"), Talk::start(carol, "dave"));
        there.wait_for_acks(10);
        back.wait_for_acks(10);
        Traffic {
            there,
            back,
            bob,
            dave,
            watcher,
            far_watcher,
        }
    }

    /// Both directions work, and all are seen.
    #[track_caller]
    fn works(&mut self, when: &str) {
        self.watcher.tell_until_heard(&self.bob, when);
        self.far_watcher.tell_until_heard(&self.dave, when);
        let all = ["alice", "bob", "carol", "dave", "watcher", "far watcher"];
        self.watcher.wait_to_see_all(&all, true);
        self.far_watcher.wait_to_see_all(&all, true);
    }

    /// All acks were true, but for so many messages that were in flight when something broke.
    #[track_caller]
    fn end(self, lost_max: usize) {
        let (mut alice, said) = self.there.stop();
        let (mut carol, said_back) = self.back.stop();
        alice.tell_until_heard(&self.bob, "end");
        carol.tell_until_heard(&self.dave, "end");
        assert_truthful("alice to bob", &said, &self.bob.numbers_from("alice"), lost_max);
        assert_truthful("carol to dave", &said_back, &self.dave.numbers_from("carol"), lost_max);
    }
}

/// The incarnation of a gateway, from whichever node has the directory.
fn incarnation(cluster: &Cluster, fleet: &Fleet, id: &str) -> String {
    let node = cluster.owner_of(Cluster::slot_of(&fleet.directory_key()));
    fleet.incarnation(&cluster.nodes[node], id)
}

#[test]
fn slots_move() {
    let cluster = Cluster::start();
    let fleet = Fleet::new(cluster.url());
    let [gw1, gw2] = fleet.start();
    let mut traffic = Traffic::start(&gw1, &gw2);
    let channel = fleet.channel("gw2", &incarnation(&cluster, &fleet, "gw2"));
    let index = fleet.index_key(&incarnation(&cluster, &fleet, "gw2"));
    let moved = [
        channel.clone(),
        fleet.user_key("bob"),
        format!("{}all", fleet.prefix),
        fleet.directory_key(),
        index,
        channel,
    ];
    for (n, key) in moved.iter().enumerate() {
        let slot = Cluster::slot_of(key);
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        cluster.begin_migration(slot, from, to);
        traffic.works(&format!("{n}: half-way, slot of {key}"));
        cluster.finish_migration(slot, from, to);
        traffic.works(&format!("{n}: moved, slot of {key}"));
    }
    // In a slot that is half-way, keys come and go: the first is refused with ASK, and so is the
    // second.
    for user in ["erin", "frank"] {
        let slot = Cluster::slot_of(&fleet.user_key(user));
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        cluster.begin_migration(slot, from, to);
        let peer = Peer::connect(&gw2, user);
        traffic.watcher.wait_to_see(user, true);
        traffic.watcher.tell_until_heard(&peer, "half-way");
        peer.leave();
        traffic.watcher.wait_to_see(user, false);
        let peer = Peer::connect(&gw1, user);
        traffic.far_watcher.wait_to_see(user, true);
        cluster.finish_migration(slot, from, to);
        traffic.far_watcher.tell_until_heard(&peer, "moved");
        peer.leave();
        traffic.far_watcher.wait_to_see(user, false);
    }
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    // Two moves of the channel's slot; each may catch one message.
    traffic.end(2 + moved.len());
}

#[test]
fn a_master_dies() {
    let mut cluster = Cluster::start();
    let fleet = Fleet::new(cluster.url());
    let [gw1, gw2] = fleet.start();
    let mut traffic = Traffic::start(&gw1, &gw2);
    let users: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let mut devices: Vec<_> = users.iter().map(|user| gw2.connect(user)).collect();
    traffic.watcher.wait_to_see_all(&users, true);
    let channel = fleet.channel("gw2", &incarnation(&cluster, &fleet, "gw2"));
    let old = cluster.kill_master_of(Cluster::slot_of(&channel));
    let comes = Peer::connect(&gw2, "comes");
    drop(devices.pop());
    traffic.works("after the death of a master");
    traffic.watcher.wait_to_see_all(&users[..99], true);
    traffic.watcher.wait_to_see("user99", false);
    traffic.watcher.wait_to_see("comes", true);
    traffic.watcher.tell_until_heard(&comes, "welcome");
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    // It comes back as a replica.
    cluster.nodes[old].restart();
    cluster.wait_until_ok();
    traffic.works("with the old master as a replica");
    for (user, device) in users.iter().zip(&mut devices) {
        assert_eq!(traffic.watcher.tell(user, user.as_str()), "routed");
        assert_eq!(device.recv_json()["content"], **user);
    }
    traffic.end(3);
}

/// A seed that is down at start is no obstacle, as long as one answers.
#[test]
fn some_seeds_are_down() {
    let mut cluster = Cluster::start();
    let url = cluster.url();
    let replica = cluster.nodes.len() - 1;
    cluster.nodes[replica].kill();
    let (scheme, seeds) = url.split_once("://").unwrap();
    let backwards: Vec<&str> = seeds.split(',').rev().collect();
    let fleet = Fleet::new(format!("{scheme}://{}", backwards.join(",")));
    let [gw1, gw2] = fleet.start();
    let mut alice = Peer::connect(&gw1, "alice");
    let bob = Peer::connect(&gw2, "bob");
    alice.wait_to_see("bob", true);
    alice.tell_until_heard(&bob, 1);
}
