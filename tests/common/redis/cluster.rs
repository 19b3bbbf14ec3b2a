//! A Redis Cluster of three masters and three replicas.

use super::sentinels::in_sync;
use super::*;

/// Three masters with a replica each.
pub struct Cluster {
    /// At first 0 to 2 are masters, and 3 to 5 their replicas in this order.
    pub nodes: Vec<Redis>,
    ids: Vec<String>,
    setup: Setup,
}

impl Cluster {
    pub const SLOTS: u16 = 16_384;

    /// Starts all, and waits until all report that all is well and the replicas are in sync.
    #[track_caller]
    pub fn start() -> Cluster {
        Cluster::start_with(Setup::default())
    }

    #[track_caller]
    pub fn start_with(setup: Setup) -> Cluster {
        let mut config = vec![
            ("cluster-enabled", "yes"),
            ("cluster-config-file", "nodes.conf"),
            ("cluster-node-timeout", "1000"),
            ("cluster-replica-validity-factor", "0"),
            ("cluster-allow-replica-migration", "no"),
        ];
        config.extend(setup.lines());
        if setup.tls {
            config.push(("tls-cluster", "yes"));
        }
        let certificates = setup.certificates();
        let nodes: Vec<Redis> = (0..6)
            .map(|_| Redis::launch(&config, certificates.as_ref(), false))
            .collect();
        let ids: Vec<String> = nodes.iter().map(|node| node.cmd(&["CLUSTER", "MYID"]).text()).collect();
        for (n, master) in nodes[..3].iter().enumerate() {
            let edge = |n: usize| n as u16 * (Self::SLOTS / 3 + 1);
            let (first, last) = (edge(n), edge(n + 1).min(Self::SLOTS) - 1);
            master
                .cmd(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])
                .good();
        }
        for (n, node) in nodes.iter().enumerate() {
            node.cmd(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]).good();
        }
        // Everybody greets everybody: gossip would do the rest, but only in its time.
        for (n, node) in nodes.iter().enumerate() {
            for other in &nodes[n + 1..] {
                node.cmd(&["CLUSTER", "MEET", "127.0.0.1", &other.service_port().to_string()])
                    .good();
            }
        }
        let cluster = Cluster { nodes, ids, setup };
        eventually("all nodes know each other", || {
            cluster.nodes.iter().all(|node| {
                let known = node.cmd(&["CLUSTER", "NODES"]).text();
                cluster.ids.iter().all(|id| known.contains(id.as_str()))
                    && !known.contains("handshake")
                    && !known.contains("noaddr")
            })
        });
        for (n, replica) in cluster.nodes[3..].iter().enumerate() {
            replica.cmd(&["CLUSTER", "REPLICATE", &cluster.ids[n]]).good();
        }
        cluster.wait_until_ok();
        eventually("the replicas are in sync", || cluster.nodes[3..].iter().all(in_sync));
        eventually("everybody knows who replicates whom", || {
            cluster.nodes.iter().all(|node| {
                let known = node.cmd(&["CLUSTER", "NODES"]).text();
                known.matches(" slave ").count() + known.matches(",slave ").count() == 3
            })
        });
        cluster
    }

    /// With the password.
    pub fn url(&self) -> String {
        self.setup.url("cluster", &self.nodes)
    }

    /// [`Cluster::url`] with these credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.setup.url_as(user, password, "cluster", &self.nodes)
    }

    /// Waits until every running node reports that all slots are served.
    #[track_caller]
    pub fn wait_until_ok(&self) {
        eventually("cluster_state:ok everywhere", || {
            self.running()
                .all(|node| field(&node.cmd(&["CLUSTER", "INFO"]).text(), "cluster_state").as_deref() == Some("ok"))
        });
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// The slot of a key or a sharded channel.
    pub fn slot_of(key: &str) -> u16 {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
        let crc = hashed.bytes().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            })
        });
        crc % Self::SLOTS
    }

    /// The owner of a slot by the nodes' reports; the one with the highest epoch, should two claim
    /// it.
    fn owner_now(&self, slot: u16) -> Option<usize> {
        let mut best = None;
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
            let Ok(known) = node.try_cmd(&["CLUSTER", "NODES"], Duration::from_secs(2)) else {
                continue;
            };
            let known = known.text();
            // id addr flags master ping pong epoch link slots…
            let own = known.lines().find(|line| line.contains("myself")).unwrap();
            let words: Vec<&str> = own.split(' ').collect();
            let serves = words[8..].iter().filter(|word| !word.starts_with('[')).any(|word| {
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&slot)
            });
            let epoch: u64 = words[6].parse().unwrap();
            if serves && words[2].contains("master") && best.is_none_or(|(_, other)| epoch > other) {
                best = Some((n, epoch));
            }
        }
        best.map(|(n, _)| n)
    }

    /// The index in `nodes` of who serves a slot.
    #[track_caller]
    pub fn owner_of(&self, slot: u16) -> usize {
        self.owner_now(slot).unwrap_or_else(|| panic!("nobody serves {slot}"))
    }

    /// A master other than this one.
    #[track_caller]
    pub fn another_master(&self, than: usize) -> usize {
        let is_master = |n: usize| self.nodes[n].info("replication", "role").as_deref() == Some("master");
        (0..self.nodes.len())
            .find(|&n| n != than && self.nodes[n].is_running() && is_master(n))
            .expect("no other master")
    }

    /// The first half of a migration: a question to `from` for an absent key of the slot is
    /// redirected to `to` (ASK).
    #[track_caller]
    pub fn begin_migration(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to]
            .cmd(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]])
            .good();
        self.nodes[from]
            .cmd(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]])
            .good();
    }

    /// Moves all keys that the slot has now.
    #[track_caller]
    pub fn migrate_keys(&self, slot: u16, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        loop {
            let keys = self.nodes[from].cmd(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
            let keys = keys.good().sorted();
            if keys.is_empty() {
                return;
            }
            let mut args = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "REPLACE", "KEYS"];
            args.extend(keys.iter().map(String::as_str));
            self.nodes[from].cmd(&args).good();
        }
    }

    /// The second half: the keys move, and `to` serves the slot.
    #[track_caller]
    pub fn finish_migration(&self, slot: u16, from: usize, to: usize) {
        self.migrate_keys(slot, from, to);
        // The new owner first, so that there is always one; then who else is a master.
        for n in [to, from].into_iter().chain(0..self.nodes.len()) {
            if self.nodes[n].is_running() {
                let args = ["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &self.ids[to]];
                let answer = self.nodes[n].cmd(&args);
                assert!(
                    !answer.is_error() || answer.text().contains("only with masters"),
                    "{answer:?}"
                );
            }
        }
        eventually("the slot has moved", || self.owner_now(slot) == Some(to));
    }

    #[track_caller]
    pub fn migrate_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_migration(slot, from, to);
        self.finish_migration(slot, from, to);
    }

    /// Kills who serves this slot, and waits until its replica does and all is well again; the
    /// index of the killed one.
    #[track_caller]
    pub fn kill_master_of(&mut self, slot: u16) -> usize {
        let old = self.owner_of(slot);
        self.nodes[old].kill();
        self.wait_for_takeover(slot);
        old
    }

    /// Waits until a running node serves the slot, and all is well.
    #[track_caller]
    pub fn wait_for_takeover(&self, slot: u16) {
        eventually("the replica took over", || self.owner_now(slot).is_some());
        self.wait_until_ok();
    }
}
