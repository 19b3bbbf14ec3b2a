//! The one task that knows all servers: hands each operation to the right one, and tells when they come and go.
//!
//! Owns the nodes and what is subscribed to where. Everything reaches it through one channel, so requests are handed
//! on in the order in which they were made.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use redis::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Signal;
use super::backlog::Backlog;
use super::commands::{self, Outcome};
use super::counters::BrokerCounters;
use super::dial::{Cause, Dialer, Place};
use super::gather::{Item, items};
use super::keys::Names;
use super::node::{self, News, NodeId};
use super::pubsub::{self, Want};
use crate::cluster::store::{Request, StoreEvent};
use crate::config::RedisServers;

/// Every operation is answered within this time, those too that are sent to another server meanwhile.
const REQUEST_MAX: Duration = Duration::from_millis(2_300);

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
    /// A channel is not where it was looked for.
    Misplaced,
}

/// A server that can be asked, or is being connected to.
#[derive(Debug)]
struct Node {
    orders: UnboundedSender<Vec<Item>>,
    /// Why it cannot be asked; `None`: it can.
    down: Option<Cause>,
    /// Its connection for subscriptions, once a channel is wanted of it.
    wants: Option<UnboundedSender<Want>>,
    place: Place,
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
    /// Wanted channels with the node that was asked for them.
    channels: BTreeMap<String, Option<NodeId>>,
    state: State,
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
        let mut driver = Driver {
            context: context.clone(),
            inputs,
            nodes: BTreeMap::new(),
            tasks: JoinSet::new(),
            next_node: 0,
            channels: BTreeMap::new(),
            state: State::Beginning,
        };
        match context.dialer.servers() {
            RedisServers::Single(address) => driver.add_node(Place::At(address.clone())),
            RedisServers::Sentinel { .. } => driver.add_node(Place::BySentinel),
            RedisServers::Cluster(_) => {}
        }
        driver
    }

    pub(super) async fn run(mut self, mut inputs: UnboundedReceiver<Input>) {
        while let Some(input) = inputs.recv().await {
            self.handle(input);
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Request(request) => {
                let items = items(request, Instant::now() + REQUEST_MAX, &self.context.signals);
                self.dispatch(items);
            }
            Input::Subscribe(channel) => {
                self.channels.entry(channel.clone()).or_insert(None);
                self.place_channel(&channel);
            }
            Input::Unsubscribe(channel) => {
                let node = self.channels.remove(&channel).flatten();
                self.want(node, Want::NotChannel(channel));
            }
            Input::Node(id, news) => self.handle_news(id, news),
            Input::Misplaced => {}
        }
    }

    fn handle_news(&mut self, id: NodeId, news: News) {
        match news {
            News::Up => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.down = None;
                }
                self.tell_state();
            }
            News::Down(cause) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.down = Some(cause);
                    self.tell_state();
                }
            }
            News::Replies(replies) => {
                let more = replies.into_iter().filter_map(|(item, reply)| self.land(item, reply));
                let more: Vec<Item> = more.collect();
                if !more.is_empty() {
                    self.dispatch(more);
                }
            }
            News::Failed(items, cause) | News::Refused(items, cause) => {
                for item in items {
                    item.unavailable(&cause);
                }
            }
        }
    }

    /// Takes a reply; gives back what is to be sent (again).
    fn land(&mut self, mut item: Item, reply: Value) -> Option<Item> {
        match commands::outcome(&item.step, reply) {
            Outcome::Answer(answer) => item.answer(answer),
            Outcome::Then(step) => {
                item.step = step;
                return Some(item);
            }
            Outcome::Elsewhere { text, .. } | Outcome::Again(text) => item.unavailable(&text),
        }
        None
    }

    /// Hands items to their nodes, in order: one pipeline per node.
    fn dispatch(&mut self, items: Vec<Item>) {
        let mut parts: BTreeMap<NodeId, Vec<Item>> = BTreeMap::new();
        for item in items {
            match self.owner(item.slot) {
                Some(node) => parts.entry(node).or_default().push(item),
                None => item.unavailable("no Redis server is known"),
            }
        }
        for (id, part) in parts {
            // A node whose task is gone lets its items fall, which answers them.
            if let Some(node) = self.nodes.get(&id) {
                let _ = node.orders.send(part);
            }
        }
    }

    fn owner(&self, _slot: u16) -> Option<NodeId> {
        self.nodes.keys().next().copied()
    }

    fn add_node(&mut self, place: Place) {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        let (orders, receiver) = unbounded_channel();
        let (context, inputs) = (self.context.clone(), self.inputs.clone());
        self.tasks
            .spawn_local(node::run(context, id, place.clone(), receiver, inputs));
        let node = Node {
            orders,
            down: Some("not connected to Redis yet".into()),
            wants: None,
            place,
        };
        self.nodes.insert(id, node);
    }

    /// Asks the right node for a wanted channel, and no other.
    fn place_channel(&mut self, channel: &str) {
        let owner = self.owner(0);
        let Some(now) = self.channels.get_mut(channel) else {
            return;
        };
        let before = std::mem::replace(now, owner);
        if before != owner {
            self.want(before, Want::NotChannel(channel.to_owned()));
        }
        self.want(owner, Want::Channel(channel.to_owned()));
    }

    fn want(&mut self, id: Option<NodeId>, want: Want) {
        let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) else {
            return;
        };
        let wants = node.wants.get_or_insert_with(|| {
            let (wants, receiver) = unbounded_channel();
            let (context, inputs) = (self.context.clone(), self.inputs.clone());
            self.tasks
                .spawn_local(pubsub::run(context, node.place.clone(), receiver, inputs));
            wants
        });
        let _ = wants.send(want);
    }

    /// Tells when all can be asked, and, once, when one cannot.
    fn tell_state(&mut self) {
        let cause = self.nodes.values().find_map(|node| node.down.clone());
        let event = match (self.state, cause) {
            (State::Beginning | State::Lost, None) => {
                info!("connected to Redis");
                self.state = State::Connected;
                StoreEvent::Connected
            }
            (State::Beginning | State::Connected, Some(cause)) => {
                warn!("Redis is away: {cause}");
                self.state = State::Lost;
                StoreEvent::Lost(cause)
            }
            _ => return,
        };
        let _ = self.context.signals.send(Signal::Event(event));
    }
}
