//! The driver's picture of a cluster: the owner of each slot, when to ask for a new picture, and
//! which node to ask.

use std::time::Duration;

use tokio::time::Instant;

use super::super::server::{Endpoint, Location};
use super::super::signal::{NodeId, Signal};
use super::super::tasks::{Input, Order};
use super::super::topology::{ClusterSlots, SLOTS, named_address};
use super::core::{Driver, Standing, State, Whole};
use crate::cluster::store::StoreEvent;
use crate::config::{RedisAddress, RedisServers};

/// How often a cluster that works is looked at: two commands each time.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// So long a picture of a later epoch counts against those of earlier ones. After that, those who
/// were of it are gone.
const STALE_MAX: Duration = Duration::from_secs(30);
/// How often at most, when something is wrong.
const LOOK_SPACING: Duration = Duration::from_millis(200);

impl Driver {
    /// The node at this address, a new one if need be.
    fn node_at(&mut self, address: &RedisAddress) -> NodeId {
        let known = self
            .nodes
            .iter()
            .find(|(_, node)| node.location == Location::At(address.clone().into()));
        match known {
            Some((id, _)) => *id,
            None => self.add_node(Location::At(address.clone().into())),
        }
    }

    /// The node that another one named in MOVED or ASK. Only a cluster does that.
    pub(super) fn named_node(&mut self, by: NodeId, named: &str) -> Option<NodeId> {
        let Some(Location::At(Endpoint::Tcp(asked))) = self.nodes.get(&by).map(|node| node.location.clone()) else {
            return None;
        };
        let address = named_address(named, &asked)?;
        self.context.sharded.then(|| self.node_at(&address))
    }

    /// A server named this one as the slot's owner; the other servers' views follow.
    pub(super) fn learn(&mut self, slot: u16, owner: NodeId) {
        if let Some(entry) = self.owners.get_mut(usize::from(slot)) {
            let before = entry.replace(owner);
            if before != Some(owner) {
                if before.is_some() {
                    self.forget_all();
                }
                self.assign_channels(slot..=slot);
            }
        }
        self.look_soon();
    }

    /// A slot has another owner, or a node is let go. The old owner invalidates the keys that
    /// moved, but not keys that were read there and did not exist. A client that creates such a key
    /// does so at the new owner, which does not know that we have read it.
    fn forget_all(&self) {
        let _ = self.context.signals.send(Signal::Event(StoreEvent::ForgetAll));
    }

    pub(super) fn look_soon(&mut self) {
        let soon = (self.last_look + LOOK_SPACING).max(Instant::now());
        self.next_look = self.next_look.min(soon);
    }

    /// Asks for a picture of the cluster: a node that is up, in turn, as one of them may be behind;
    /// else any server.
    pub(super) fn look(&mut self) {
        self.last_look = Instant::now();
        self.next_look = self.last_look
            + if self.state == State::Connected {
                LOOK_INTERVAL
            } else {
                LOOK_SPACING
            };
        let up = || self.nodes.iter().filter(|(_, node)| node.standing == Standing::Up);
        let next = up().find(|(id, _)| **id > self.looked_from).or_else(|| up().next());
        if let Some((id, node)) = next {
            self.looked_from = *id;
            let _ = node.orders.send(Order::Look);
            return;
        }
        self.looking_around = true;
        // Not always the same one first: it may be the one that is behind.
        if !self.candidates.is_empty() {
            self.candidates.rotate_left(1);
        }
        let (context, inputs, candidates) = (self.context.clone(), self.inputs.clone(), self.candidates.clone());
        self.tasks.spawn_local(async move {
            let _ = inputs.send(Input::ClusterSlots(context.dialer.look(candidates).await));
        });
    }

    /// Takes over a server's picture of the cluster.
    pub(super) fn apply(&mut self, shared: ClusterSlots) {
        let (epoch, came) = self.epoch;
        if shared.epoch < epoch && came.elapsed() < STALE_MAX {
            // The view of a server that was cut off, forgotten or reset is out of date. The next
            // server is asked in its turn.
            if self.state != State::Connected {
                self.look_soon();
            }
            return;
        }
        self.epoch = (shared.epoch, Instant::now());
        self.whole = match shared.first_gap() {
            Some(slot) => Whole::Broken(format!("no server of the cluster has slot {slot}").into()),
            None if !shared.works => Whole::Broken("the cluster is down, says CLUSTER INFO".into()),
            None => Whole::Works,
        };
        let mut owners = vec![None; usize::from(SLOTS)];
        let mut serving = Vec::new();
        for (first, last, address) in &shared.ranges {
            let id = self.node_at(address);
            owners[usize::from(*first)..=usize::from(*last)].fill(Some(id));
            if !serving.contains(&id) {
                serving.push(id);
            }
        }
        // A picture without anybody is of a server that was cast out: better an old one than that.
        if !serving.is_empty() {
            let before = std::mem::replace(&mut self.owners, owners);
            let moved = before
                .iter()
                .zip(&self.owners)
                .any(|(before, now)| before.is_some() && before != now);
            let known = self.nodes.len();
            self.nodes.retain(|id, _| serving.contains(id));
            self.count_evicting();
            // The connection that tracked this node's keys ends with the node.
            if moved || self.nodes.len() < known {
                self.forget_all();
            }
            let heard_of = shared
                .ranges
                .into_iter()
                .map(|(_, _, address)| address)
                .chain(shared.replicas);
            let RedisServers::Cluster(seeds) = self.context.dialer.servers() else {
                return;
            };
            self.candidates = heard_of.chain(seeds.iter().cloned()).collect();
            self.candidates.sort_unstable();
            self.candidates.dedup();
            self.assign_channels(0..=SLOTS - 1);
        }
        self.tell_state();
        if self.state != State::Connected {
            self.look_soon();
        }
    }
}
