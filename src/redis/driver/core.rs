//! The driver's state: the nodes, who serves which slot, and what is subscribed to where.
//!
//! The reactions to events are in `slots`, `watch` and `run`, above this file.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use log::{Level, log};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::backoff::Backoff;
use super::super::detours::Detours;
use super::super::facts::Eviction;
use super::super::keys::Names;
use super::super::server::{Cause, Endpoint, Location};
use super::super::signal::{NodeId, Signal};
use super::super::tasks::{Context, Input, Order, QUIET_MAX, Want};
use super::super::topology::{SLOTS, slot_of};
use super::super::whereabouts::Whereabouts;
use super::super::{node, pubsub};
use super::schedule::Watch;
use crate::cluster::store::StoreEvent;
use crate::config::{RedisAddress, RedisServers};

/// How a node is.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    /// First attempt to connect.
    Fresh,
    /// It takes commands.
    Up,
    /// It cannot.
    Down(Cause),
}

/// A server that takes commands, or is being connected to.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) orders: UnboundedSender<Order>,
    pub(super) standing: Standing,
    /// Its connection for subscriptions, once a channel is wanted of it.
    pub(super) wants: Option<UnboundedSender<Want>>,
    pub(super) location: Location,
    /// Where its connections are.
    pub(super) whereabouts: Whereabouts,
    /// Its eviction policy, as far as it is known.
    pub(super) eviction: Option<Eviction>,
}

/// How the cluster is as a whole.
#[derive(Debug)]
pub(super) enum Whole {
    /// No server has given its view yet.
    Unseen,
    /// It is unavailable.
    Broken(Cause),
    /// All slots are served. One server is always whole.
    Works,
}

/// The task's state.
#[derive(Debug)]
pub(in super::super) struct Driver {
    pub(super) context: Rc<Context>,
    pub(super) inputs: UnboundedSender<Input>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// Aborts what it holds when the driver goes.
    pub(super) tasks: JoinSet<()>,
    pub(super) next_node: u64,
    /// The owner of each slot: one entry without a cluster.
    pub(super) owners: Vec<Option<NodeId>>,
    pub(super) whole: Whole,
    pub(super) detours: Option<Detours>,
    /// Known addresses of servers, for when no node can be asked.
    pub(super) candidates: Vec<RedisAddress>,
    pub(super) next_look: Instant,
    pub(super) last_look: Instant,
    /// The node that was asked last.
    pub(super) looked_from: NodeId,
    pub(super) looking_around: bool,
    /// Of the picture that counts, and when it came.
    pub(super) epoch: (u64, Instant),
    pub(super) watch: Watch,
    /// Between attempts to find anybody at all.
    pub(super) backoff: Backoff,
    /// Wanted channels by slot, with the node that has their subscription. There may be thousands,
    /// and one slot moves at a time.
    pub(super) channels: BTreeMap<(u16, String), Option<NodeId>>,
    pub(super) state: State,
    /// The cause and time of the last outage in the log.
    pub(super) told: Option<(Cause, Instant)>,
    /// This outage was not logged.
    pub(super) is_quiet: bool,
}

/// The state that the owner last got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Beginning,
    Connected,
    Lost,
}

impl Driver {
    pub(in super::super) fn new(context: Rc<Context>, inputs: UnboundedSender<Input>) -> Driver {
        let now = Instant::now();
        let mut driver = Driver {
            context: context.clone(),
            inputs,
            nodes: BTreeMap::new(),
            tasks: JoinSet::new(),
            next_node: 0,
            owners: Vec::new(),
            whole: Whole::Works,
            detours: None,
            candidates: Vec::new(),
            next_look: now,
            last_look: now,
            looked_from: NodeId(0),
            looking_around: false,
            epoch: (0, now),
            watch: Watch::new(now),
            told: None,
            is_quiet: false,
            backoff: Backoff::default(),
            channels: BTreeMap::new(),
            state: State::Beginning,
        };
        let location = match context.dialer.servers() {
            RedisServers::Single(address) => Location::At(address.clone().into()),
            RedisServers::Socket(path) => Location::At(Endpoint::Socket(path.clone())),
            RedisServers::Sentinel { .. } => Location::BySentinel,
            RedisServers::Cluster(seeds) => {
                driver.candidates.clone_from(seeds);
                driver.owners = vec![None; usize::from(SLOTS)];
                driver.whole = Whole::Unseen;
                driver.detours = Some(Detours::new());
                return driver;
            }
        };
        let only = driver.add_node(location);
        driver.owners = vec![Some(only)];
        driver
    }

    pub(super) fn slot(&self, key: impl FnOnce(&Names) -> String) -> u16 {
        if self.context.sharded {
            slot_of(&key(&self.context.names))
        } else {
            0
        }
    }

    pub(super) fn owner(&self, slot: u16) -> Option<NodeId> {
        self.owners.get(usize::from(slot)).copied().flatten()
    }

    pub(super) fn add_node(&mut self, location: Location) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        let (orders, receiver) = unbounded_channel();
        let (context, inputs) = (self.context.clone(), self.inputs.clone());
        // A server that joins a cluster which works is worth waiting for; before that nothing works
        // anyway.
        let patient = self.state == State::Connected;
        let task = node::run(context, id, location.clone(), receiver, inputs, patient);
        self.tasks.spawn_local(task);
        let node = Node {
            orders,
            standing: Standing::Fresh,
            wants: None,
            location,
            whereabouts: Whereabouts::new(),
            eviction: None,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Subscribes at the right nodes to the wanted channels of these slots, and of no others.
    pub(super) fn assign_channels(&mut self, slots: RangeInclusive<u16>) {
        let (first, behind) = (*slots.start(), *slots.end() + 1);
        let channels = self.channels.range_mut((first, String::new())..(behind, String::new()));
        let mut moved = Vec::new();
        for ((slot, channel), node) in channels {
            let owner = self.owners.get(usize::from(*slot)).copied().flatten();
            let before = std::mem::replace(node, owner);
            if before != owner {
                moved.push((channel.clone(), before, owner));
            }
        }
        for (channel, before, owner) in moved {
            self.want(before, Want::NotChannel(channel.clone()));
            self.want(owner, Want::Channel(channel));
        }
    }

    pub(super) fn want(&mut self, id: Option<NodeId>, want: Want) {
        let Some((id, node)) = id.and_then(|id| Some((id, self.nodes.get_mut(&id)?))) else {
            return;
        };
        let wants = node.wants.get_or_insert_with(|| {
            let (wants, receiver) = unbounded_channel();
            let (context, inputs) = (self.context.clone(), self.inputs.clone());
            let task = pubsub::run(context, id, node.location.clone(), receiver, inputs);
            self.tasks.spawn_local(task);
            node.whereabouts.want_subscriptions();
            wants
        });
        let _ = wants.send(want);
    }

    /// Sends an event when all nodes can be asked and, once, when one cannot.
    pub(super) fn tell_state(&mut self) {
        let down = self.nodes.values().find_map(|node| match &node.standing {
            Standing::Down(cause) => Some(cause.clone()),
            // Its connections may work, but not together.
            _ => node.whereabouts.trouble().cloned(),
        });
        let cause = down.or_else(|| match &self.whole {
            Whole::Broken(cause) => Some(cause.clone()),
            _ => None,
        });
        let all_up =
            matches!(self.whole, Whole::Works) && self.nodes.values().all(|node| node.standing == Standing::Up);
        let event = match (self.state, cause) {
            (State::Beginning | State::Lost, None) if all_up => {
                let level = if self.is_quiet { Level::Debug } else { Level::Info };
                log!(level, "connected to Redis");
                self.state = State::Connected;
                StoreEvent::Connected
            }
            (State::Beginning | State::Connected, Some(cause)) => {
                // A repeated outage with the same cause is logged at intervals.
                let told = self
                    .told
                    .take()
                    .filter(|(told, at)| *told == cause && at.elapsed() < QUIET_MAX);
                self.is_quiet = told.is_some();
                let level = if self.is_quiet { Level::Debug } else { Level::Warn };
                log!(level, "Redis is away: {cause}");
                self.told = told.or_else(|| Some((cause.clone(), Instant::now())));
                self.state = State::Lost;
                StoreEvent::Lost(cause)
            }
            _ => return,
        };
        let _ = self.context.signals.send(Signal::Event(event));
    }

    /// Counts servers that may throw presence away.
    pub(super) fn count_evicting(&self) -> u64 {
        if !self.context.watches_memory {
            return 0;
        }
        let evicts = |eviction: &Eviction| eviction.takes_presence;
        let nodes = self.nodes.values();
        let count = nodes.filter(|node| node.eviction.as_ref().is_some_and(evicts)).count() as u64;
        self.context.counters.evicting.store(count, Relaxed);
        count
    }
}
