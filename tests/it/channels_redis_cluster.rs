//! Redis Cluster: publications cross in all partitions, wherever their slots are, while these move,
//! and after a master died.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::peer::assert_rising;
use common::{Cluster, Fleet, Gateway, Peer, eventually};

/// Few, so that each is soon in use.
const PARTITIONS: usize = 6;

struct Traffic {
    alice: Peer,
    bob: Peer,
    carol: Peer,
    rooms: Vec<String>,
}

impl Traffic {
    /// Subscribers on both gateways to channels in all partitions.
    fn start(gw1: &Gateway, gw2: &Gateway) -> Traffic {
        let rooms: Vec<String> = (0..60).map(|n| format!("room{n}")).collect();
        let [alice, mut bob] = ["alice", "bob"].map(|user| Peer::connect(gw1, user));
        let mut carol = Peer::connect(gw2, "carol");
        for room in &rooms {
            bob.subscribe(room);
            carol.subscribe(room);
        }
        for gateway in [gw1, gw2] {
            let heard = gateway.metric("shardgate_cluster_partitions_heard", &[]);
            assert_eq!(
                heard, PARTITIONS as f64,
                "60 channels are in all partitions, or this tests less than it says"
            );
        }
        Traffic {
            alice,
            bob,
            carol,
            rooms,
        }
    }

    /// Publications cross both ways on all channels, be it after a while.
    #[track_caller]
    fn works(&mut self) {
        for room in &self.rooms {
            self.alice.publish_until_heard(&self.carol, room);
            self.carol.publish_until_heard(&self.bob, room);
        }
    }

    #[track_caller]
    fn end(&self) {
        for room in &self.rooms {
            for (peer, from) in [(&self.carol, "alice"), (&self.bob, "carol")] {
                let publications = peer.publications_on(room);
                let from_there = publications.iter().filter(|publication| publication["from"] == *from);
                let numbers: Vec<u64> = from_there.map(|p| p["content"].as_u64().unwrap()).collect();
                assert_rising(room, &numbers);
            }
        }
    }
}

fn system(cluster: &Cluster) -> (Fleet, [Gateway; 2]) {
    let partitions = PARTITIONS.to_string();
    let args = ["--channels-partitions", &*partitions];
    let fleet = Fleet::new(cluster.url()).with_args(&args);
    let gateways = fleet.start();
    (fleet, gateways)
}

#[test]
fn slots_move() {
    let cluster = Cluster::start();
    let (fleet, [gw1, gw2]) = system(&cluster);
    let mut traffic = Traffic::start(&gw1, &gw2);
    traffic.works();
    let masters: std::collections::BTreeSet<usize> = (0..PARTITIONS)
        .map(|n| cluster.owner_of(Cluster::slot_of(&format!("{}part:{n}", fleet.prefix))))
        .collect();
    assert!(masters.len() > 1, "partitions are on several masters");
    for n in 0..3 {
        let slot = Cluster::slot_of(&format!("{}part:{n}", fleet.prefix));
        let from = cluster.owner_of(slot);
        let to = cluster.another_master(from);
        cluster.begin_migration(slot, from, to);
        traffic.works();
        cluster.finish_migration(slot, from, to);
        traffic.works();
    }
    for gateway in [&gw1, &gw2] {
        eventually("/readyz is 200", || gateway.get("/readyz").status == 200);
    }
    // When all is calm, nothing is lost.
    for room in &traffic.rooms {
        assert_eq!(traffic.alice.publish(room, u64::MAX), "published");
        traffic.carol.wait_for_publication(room, u64::MAX);
    }
    traffic.end();
}

#[test]
fn a_master_dies() {
    let mut cluster = Cluster::start();
    let (fleet, [gw1, gw2]) = system(&cluster);
    let mut traffic = Traffic::start(&gw1, &gw2);
    traffic.works();
    let old = cluster.kill_master_of(Cluster::slot_of(&format!("{}part:0", fleet.prefix)));
    // A client subscribes meanwhile, and is answered.
    let mut dave = Peer::connect(&gw2, "dave");
    for room in &traffic.rooms {
        dave.subscribe(room);
    }
    traffic.works();
    for room in &traffic.rooms {
        traffic.alice.publish_until_heard(&dave, room);
    }
    cluster.nodes[old].restart();
    cluster.wait_until_ok();
    traffic.works();
    traffic.end();
}
