//! The one task that knows all servers: hands each operation to the right one, and tells when they come and go.
//!
//! Owns the nodes, who serves which slot, and what is subscribed to where. Everything reaches it through one channel, so
//! requests are handed on in the order in which they were made. One server, or a master behind sentinels, is one node
//! that serves slot 0, where everything is then.

mod slots;
mod watch;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use log::{Level, error, log};
use redis::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Signal;
use super::backlog::Backlog;
use super::backoff::Backoff;
use super::commands::{self, Outcome};
use super::counters::BrokerCounters;
use super::detours::Detours;
use super::dial::{Cause, Dialer, Endpoint, Line, Place};
use super::facts::Eviction;
use super::gather::{Item, items};
use super::keys::Names;
use super::node::{self, Down, News, NodeId, Order};
use super::pubsub::{self, Want};
use super::remedies;
use super::topology::{ClusterSlots, SLOTS, slot_of};
use super::whereabouts::{Server, Whereabouts};
use crate::cluster::store::{Answer, FailureKind, Request, StoreEvent};
use crate::config::{RedisAddress, RedisServers};
use watch::Watch;

/// Every operation is answered within this time, those too that are sent to another server meanwhile.
const REQUEST_MAX: Duration = Duration::from_millis(2_300);
/// What is lost for the same reason again is told of again after this time.
pub(super) const QUIET_MAX: Duration = Duration::from_secs(60);
/// How often one operation may be sent to another server.
const DETOURS_MAX: u8 = 3;

/// What all tasks of a broker share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) names: Names,
    pub(super) dialer: Dialer,
    /// A cluster: keys and channels belong to slots.
    pub(super) sharded: bool,
    pub(super) signals: UnboundedSender<Signal>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) counters: Arc<BrokerCounters>,
    /// What servers throw away when their memory is full is this broker's business.
    pub(super) watches_memory: bool,
}

/// What reaches the driver.
#[derive(Debug)]
pub(super) enum Input {
    /// From the broker's owner.
    Request(Request),
    /// From the broker's owner: the name of a channel.
    Subscribe(String),
    /// From the broker's owner.
    Unsubscribe(String),
    /// From a node.
    Node(NodeId, News),
    /// From the broker's owner: what is said on this channel does not come.
    Renew(String),
    /// From a node's subscriptions: they are with this server; with the round of [`Want::Redial`].
    Listening(NodeId, Server, u64),
    /// From a node's subscriptions: they have no connection (any more).
    Deaf(NodeId, u64),
    /// From a watch that began when the node was with this server: another one that is the master by now, if there is one.
    Watched(NodeId, Server, Result<Option<Server>, Cause>),
    /// From a node's subscriptions: this channel is elsewhere, at the address in the server's words.
    Misplaced(NodeId, String, String),
    /// A picture of the cluster over a connection of its own, as no node could be asked.
    ClusterSlots(Result<ClusterSlots, Cause>),
}

/// How a node is.
#[derive(Debug, PartialEq)]
enum Standing {
    /// First attempt to connect.
    Fresh,
    /// It can be asked.
    Up,
    /// It cannot.
    Down(Cause),
}

/// A server that can be asked, or is being connected to.
#[derive(Debug)]
struct Node {
    orders: UnboundedSender<Order>,
    standing: Standing,
    /// Its connection for subscriptions, once a channel is wanted of it.
    wants: Option<UnboundedSender<Want>>,
    place: Place,
    /// Where its connections are.
    whereabouts: Whereabouts,
    /// What it throws away when its memory is full, as far as it says so.
    eviction: Option<Eviction>,
}

/// How the cluster is as a whole.
#[derive(Debug)]
enum Whole {
    /// No server was asked yet.
    Unseen,
    /// It cannot be asked.
    Broken(Cause),
    /// All slots are served. One server is always whole.
    Works,
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Driver {
    context: Rc<Context>,
    inputs: UnboundedSender<Input>,
    nodes: BTreeMap<NodeId, Node>,
    /// Aborts what it holds when the driver goes.
    tasks: JoinSet<()>,
    next_node: u64,
    /// Who serves which slot: one entry without a cluster.
    owners: Vec<Option<NodeId>>,
    whole: Whole,
    detours: Option<Detours>,
    /// Servers that were heard of, for when no node can be asked.
    candidates: Vec<RedisAddress>,
    next_look: Instant,
    last_look: Instant,
    /// Who was asked last.
    looked_from: NodeId,
    looking_around: bool,
    /// Of the picture that counts, and when it came.
    epoch: (u64, Instant),
    watch: Watch,
    /// Between attempts to find anybody at all.
    backoff: Backoff,
    /// Wanted channels by slot, with the node that was asked for them: there may be thousands, and one slot moves at a
    /// time.
    channels: BTreeMap<(u16, String), Option<NodeId>>,
    state: State,
    /// Why Redis was away when the log said so last, and when.
    told: Option<(Cause, Instant)>,
    /// The log did not say so this time.
    is_quiet: bool,
}

/// What was last told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Beginning,
    Connected,
    Lost,
}

impl Driver {
    pub(super) fn new(context: Rc<Context>, inputs: UnboundedSender<Input>) -> Driver {
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
        let place = match context.dialer.servers() {
            RedisServers::Single(address) => Place::At(address.clone().into()),
            RedisServers::Socket(path) => Place::At(Endpoint::Socket(path.clone())),
            RedisServers::Sentinel { .. } => Place::BySentinel,
            RedisServers::Cluster(seeds) => {
                driver.candidates.clone_from(seeds);
                driver.owners = vec![None; usize::from(SLOTS)];
                driver.whole = Whole::Unseen;
                driver.detours = Some(Detours::new());
                return driver;
            }
        };
        let only = driver.add_node(place);
        driver.owners = vec![Some(only)];
        driver
    }

    pub(super) async fn run(mut self, mut inputs: UnboundedReceiver<Input>) {
        loop {
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(input) => self.handle(input),
                    None => return,
                },
                () = sleep_until(self.next_look), if self.context.sharded && !self.looking_around => self.look(),
                () = sleep_until(self.watch.next), if !self.context.sharded && !self.watch.is_under_way => self.watch(),
                Some(ended) = self.tasks.join_next() => {
                    // Only a bug of ours does that; what belonged to the task fails from now on.
                    if let Err(panic) = ended {
                        error!("a task of the broker broke: {panic}");
                    }
                }
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Request(request) => {
                let mut items = items(request, Instant::now() + REQUEST_MAX, &self.context.signals);
                for item in &mut items {
                    item.slot = self.slot(|names| commands::routing_key(names, &item.step));
                }
                self.dispatch(items);
            }
            Input::Subscribe(channel) => {
                let slot = self.slot(|_| channel.clone());
                let owner = self.owner(slot);
                if let Entry::Vacant(entry) = self.channels.entry((slot, channel.clone())) {
                    entry.insert(owner);
                    self.want(owner, Want::Channel(channel));
                }
            }
            Input::Unsubscribe(channel) => {
                let slot = self.slot(|_| channel.clone());
                let node = self.channels.remove(&(slot, channel.clone())).flatten();
                self.want(node, Want::NotChannel(channel));
            }
            Input::Node(id, news) => self.handle_news(id, news),
            Input::Renew(channel) => {
                let slot = self.slot(|_| channel.clone());
                if let Some(owner) = self.owner(slot) {
                    self.doubt(
                        owner,
                        "what is published at Redis does not reach the subscription to it".into(),
                    );
                }
            }
            Input::Listening(id, server, round) => self.opened(id, Line::Subscriptions, server, round),
            Input::Deaf(id, round) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.whereabouts.lost(Line::Subscriptions, round, None, Instant::now());
                }
            }
            Input::Watched(id, server, found) => self.handle_watched(id, &server, found),
            Input::Misplaced(id, channel, named) => {
                if let Some(owner) = self.named_node(id, &named) {
                    let slot = self.slot(|_| channel.clone());
                    self.learn(slot, owner);
                }
            }
            Input::ClusterSlots(shared) => {
                self.looking_around = false;
                match shared {
                    Ok(shared) => {
                        self.backoff = Backoff::default();
                        self.apply(shared);
                    }
                    Err(cause) => {
                        self.whole = Whole::Broken(cause);
                        self.next_look = Instant::now() + self.backoff.next_delay();
                        self.tell_state();
                    }
                }
            }
        }
    }

    fn handle_news(&mut self, id: NodeId, news: News) {
        match news {
            News::Up(server, round) => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                node.standing = Standing::Up;
                self.opened(id, Line::Commands, server, round);
            }
            News::Down(Down {
                cause,
                round,
                is_demoted,
            }) => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                node.standing = Standing::Down(cause.clone());
                let moved = is_demoted.then_some(&cause);
                let redial = node.whereabouts.lost(Line::Commands, round, moved, Instant::now());
                if let (None, Some(wants)) = (&redial, &node.wants) {
                    let _ = wants.send(Want::Check);
                }
                self.look_soon();
                self.redial(id, redial);
            }
            News::Replies(replies) => {
                for (item, reply) in replies {
                    self.land(id, item, reply);
                }
            }
            News::Failed(items, cause) => {
                for item in items {
                    self.fail(item, &cause);
                }
            }
            News::ClusterSlots(shared) => self.apply(shared),
            News::Eviction(eviction) => self.handle_eviction(id, eviction),
        }
    }

    /// Takes a reply.
    fn land(&mut self, from: NodeId, mut item: Item, reply: Value) {
        let slot = item.slot;
        item.asking = None;
        let mut again = None;
        match commands::outcome(&item.step, reply) {
            Outcome::Answer(answer) => {
                if matches!(&answer, Answer::Failed(failure) if failure.kind == FailureKind::Unavailable) {
                    // CLUSTERDOWN: let us see.
                    self.look_soon();
                }
                item.answer(answer);
            }
            Outcome::Then(step) => {
                item.step = step;
                again = Some(item);
            }
            Outcome::Elsewhere { address, asking, text } => {
                let named = self.named_node(from, &address);
                if let (Some(named), false) = (named, asking) {
                    self.learn(slot, named);
                }
                match (&mut self.detours, named) {
                    (Some(detours), Some(named)) if item.tries < DETOURS_MAX && item.may_be_repeated() => {
                        item.tries += 1;
                        item.asking = asking.then_some(named);
                        detours.turn_back(item);
                    }
                    (None, _) => item.unavailable(&remedies::with(text.to_string(), remedies::NOT_ALONE)),
                    _ => item.unavailable(&text),
                }
            }
        }
        self.arrived(slot);
        self.dispatch(again.into_iter().collect());
    }

    /// An item that comes back without reply.
    fn fail(&mut self, item: Item, cause: &str) {
        let slot = item.slot;
        item.unavailable(cause);
        self.arrived(slot);
    }

    /// One item on this slot less is under way.
    fn arrived(&mut self, slot: u16) {
        if let Some(detours) = &mut self.detours {
            let freed = detours.arrived(slot);
            if !freed.is_empty() {
                self.dispatch(freed);
            }
        }
    }

    /// Hands items to their nodes, in order: one pipeline per node.
    fn dispatch(&mut self, items: Vec<Item>) {
        let mut parts: BTreeMap<NodeId, Vec<Item>> = BTreeMap::new();
        let mut nowhere = Vec::new();
        for item in items {
            let item = match &mut self.detours {
                Some(detours) => detours.set_out(item),
                None => Some(item),
            };
            let Some(item) = item else { continue };
            match item
                .asking
                .or(self.owner(item.slot))
                .filter(|id| self.nodes.contains_key(id))
            {
                Some(node) => parts.entry(node).or_default().push(item),
                None => nowhere.push(item),
            }
        }
        for (id, part) in parts {
            // A node's task ends after its entry here.
            if let Some(node) = self.nodes.get(&id)
                && let Err(unsent) = node.orders.send(Order::Items(part))
                && let Order::Items(part) = unsent.0
            {
                nowhere.extend(part);
            }
        }
        for item in nowhere {
            let cause = match &self.whole {
                Whole::Broken(cause) => cause.clone(),
                _ => "no server is known for this slot".into(),
            };
            self.fail(item, &cause);
        }
    }

    fn slot(&self, key: impl FnOnce(&Names) -> String) -> u16 {
        if self.context.sharded {
            slot_of(&key(&self.context.names))
        } else {
            0
        }
    }

    fn owner(&self, slot: u16) -> Option<NodeId> {
        self.owners.get(usize::from(slot)).copied().flatten()
    }

    fn add_node(&mut self, place: Place) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        let (orders, receiver) = unbounded_channel();
        let (context, inputs) = (self.context.clone(), self.inputs.clone());
        // A server that joins a cluster which works is worth waiting for; before that nothing works anyway.
        let patient = self.state == State::Connected;
        let task = node::run(context, id, place.clone(), receiver, inputs, patient);
        self.tasks.spawn_local(task);
        let node = Node {
            orders,
            standing: Standing::Fresh,
            wants: None,
            place,
            whereabouts: Whereabouts::new(),
            eviction: None,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Asks the right nodes for the wanted channels of these slots, and no others.
    fn place_channels(&mut self, slots: RangeInclusive<u16>) {
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

    fn want(&mut self, id: Option<NodeId>, want: Want) {
        let Some((id, node)) = id.and_then(|id| Some((id, self.nodes.get_mut(&id)?))) else {
            return;
        };
        let wants = node.wants.get_or_insert_with(|| {
            let (wants, receiver) = unbounded_channel();
            let (context, inputs) = (self.context.clone(), self.inputs.clone());
            let task = pubsub::run(context, id, node.place.clone(), receiver, inputs);
            self.tasks.spawn_local(task);
            node.whereabouts.want_subscriptions();
            wants
        });
        let _ = wants.send(want);
    }

    /// Tells when all can be asked, and, once, when one cannot.
    fn tell_state(&mut self) {
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
                // What comes and goes for one reason is said now and then.
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
}
