//! The driver's task: its inputs, and the node of each operation.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use log::error;
use redis::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use super::super::backoff::Backoff;
use super::super::commands::{self, Outcome};
use super::super::gather::{Item, items};
use super::super::remedies;
use super::super::server::Line;
use super::super::signal::NodeId;
use super::super::tasks::{Down, Input, News, Order, Want};
use super::core::{Driver, Standing, Whole};
use crate::cluster::store::{Answer, FailureKind};

/// Every operation is answered within this time, those too that are sent to another server
/// meanwhile.
const REQUEST_MAX: Duration = Duration::from_millis(2_300);
/// How often one operation may be sent to another server.
const DETOURS_MAX: u8 = 3;

impl Driver {
    pub(in super::super) async fn run(mut self, mut inputs: UnboundedReceiver<Input>) {
        loop {
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(input) => self.handle(input),
                    None => return,
                },
                () = sleep_until(self.next_look), if self.context.sharded && !self.looking_around => self.look(),
                () = sleep_until(self.watch.next().unwrap_or(self.next_look)), if !self.context.sharded && self.watch.next().is_some() => self.watch(),
                Some(ended) = self.tasks.join_next() => {
                    // Only a bug of ours does that; the items of that task fail from now on.
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
            Input::SlotMoved(id, channel, named) => {
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
}
