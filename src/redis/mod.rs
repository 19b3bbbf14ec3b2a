//! The driver of a cluster's store: carries out [`Op`](crate::cluster::store::Op)s on Redis and says what Redis says.
//!
//! Belongs to the control thread, on a tokio `current_thread` runtime inside a `LocalSet`. Decides nothing: what to write,
//! when and why is [`crate::cluster`]'s. May touch sockets and clocks; knows no shard.
//!
//! | file | duty |
//! | --- | --- |
//! | [`pair`] | pure: two stores as one, look-ups on a connection of their own |
//! | `driver` | the one task that knows all servers |
//! | `node` | one server: its command connection, order, time limits |
//! | `pubsub` | one server: its connection for subscriptions |
//! | `dial` | opens connections |
//! | `whereabouts` | pure: whether a node's two connections are on one server |
//! | `facts` | pure: what a server says of itself |
//! | `sentinels` | where the master is, as sentinels say |
//! | `gather` | answers of a request until all are there |
//! | `commands` | pure: operation to command, reply to answer, what errors mean |
//! | `topology` | pure: slots, and who serves them |
//! | `detours` | pure: order while a slot changes its server |
//! | `remedies` | pure: what to do about an error |
//! | `keys` | pure: names of keys and channels |
//! | `backlog` | how many packets may wait |
//! | `backoff` | how long to wait before the next attempt |
//! | `counters` | what is counted |
//!
//! Invariants:
//! - *answered once*: every request is answered exactly once and within 2.5 s, see `gather` and `node`.
//! - *order*: what goes to one server goes in the order of [`Store::submit`], see `node`.
//! - *no invalidation is lost*: each becomes an event; one that overtook the answer to a read before it stands in front
//!   of it, and the asker sees by that that the answer is old.
//! - *no secret*: credentials are in no event, log line or `Debug`.

mod backlog;
mod backoff;
mod commands;
mod counters;
mod detours;
mod dial;
mod driver;
mod facts;
mod gather;
mod keys;
mod node;
pub mod pair;
mod pubsub;
mod remedies;
mod sentinels;
mod topology;
mod whereabouts;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use backlog::Backlog;
pub use counters::BrokerCounters;
use dial::Dialer;
use driver::{Context, Driver, Input};
use keys::Names;
use node::NodeId;

use crate::cluster::store::{Channel, Request, Store, StoreEvent};
use crate::config::{RedisServers, RedisTarget};

/// What tasks say, in order; channels by name.
#[derive(Debug)]
enum Signal {
    /// As it is.
    Event(StoreEvent),
    /// A channel is heard over that server.
    Heard(String, NodeId),
    /// It is not any more.
    Unheard(String, NodeId),
    /// Somebody said something.
    Packet { channel: String, payload: Bytes },
}

/// What a broker is started with.
#[derive(Debug, Clone)]
struct Origin {
    target: RedisTarget,
    prefix: Arc<str>,
    counters: Arc<BrokerCounters>,
    /// Asks what servers throw away when their memory is full. Of several brokers on the same servers one does, or each
    /// would overrule what the others found.
    watches_memory: bool,
}

impl Origin {
    fn start(&self) -> Broker {
        let (inputs, inputs_receiver) = unbounded_channel();
        let (signals, signals_receiver) = unbounded_channel();
        let backlog = Arc::new(Backlog::new(Arc::clone(&self.counters)));
        let names = Names::new(&self.prefix, self.target.db);
        let context = Context {
            names: names.clone(),
            sharded: matches!(self.target.servers, RedisServers::Cluster(_)),
            dialer: Dialer::new(self.target.clone()),
            signals,
            backlog: Arc::clone(&backlog),
            counters: Arc::clone(&self.counters),
            watches_memory: self.watches_memory,
        };
        let driver = Driver::new(Rc::new(context), inputs.clone());
        let driver = tokio::task::spawn_local(driver.run(inputs_receiver)).abort_handle();
        Broker {
            origin: self.clone(),
            names,
            inputs,
            signals: signals_receiver,
            channels: HashMap::new(),
            backlog,
            driver,
        }
    }
}

/// A store in Redis. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Broker {
    origin: Origin,
    names: Names,
    inputs: UnboundedSender<Input>,
    signals: UnboundedReceiver<Signal>,
    /// Wanted channels by name, and over which server they are heard. Where a channel moved, the old server may say that
    /// it is gone after the new one said that it is there.
    channels: HashMap<String, (Channel, Option<NodeId>)>,
    backlog: Arc<Backlog>,
    driver: AbortHandle,
}

impl Broker {
    /// Begins to connect in the background, at once. Trouble comes as [`StoreEvent::Lost`], and attempts go on, 50 ms to 1 s
    /// apart.
    ///
    /// # Panics
    /// Outside of a tokio `LocalSet`.
    #[must_use]
    pub fn start(target: RedisTarget, prefix: &str, counters: Arc<BrokerCounters>) -> Broker {
        let origin = Origin {
            target,
            prefix: prefix.into(),
            counters,
            watches_memory: true,
        };
        origin.start()
    }

    /// Another broker for the same servers, which leaves their memory to the first one.
    fn start_second(&self) -> Broker {
        let origin = Origin {
            watches_memory: false,
            ..self.origin.clone()
        };
        origin.start()
    }

    /// The next event. Cancel-safe.
    pub async fn next_event(&mut self) -> StoreEvent {
        loop {
            match self.signals.recv().await {
                Some(signal) => {
                    if let Some(event) = self.translate(signal) {
                        return event;
                    }
                }
                // The driver's task ends with us; should it not be there, nothing will ever come.
                None => std::future::pending().await,
            }
        }
    }

    /// Channels by name to channels; nothing for those that nobody wants (any more).
    fn translate(&mut self, signal: Signal) -> Option<StoreEvent> {
        match signal {
            Signal::Event(event) => Some(event),
            Signal::Heard(name, by) => {
                let (channel, heard) = self.channels.get_mut(&name)?;
                heard
                    .replace(by)
                    .is_none()
                    .then(|| StoreEvent::Subscribed(channel.clone()))
            }
            Signal::Unheard(name, by) => {
                let (channel, heard) = self.channels.get_mut(&name)?;
                heard
                    .take_if(|over| *over == by)
                    .map(|_| StoreEvent::Unsubscribed(channel.clone()))
            }
            Signal::Packet { channel, payload } => {
                self.backlog.take(payload.len());
                let (channel, _) = self.channels.get(&channel)?;
                Some(StoreEvent::Received(channel.clone(), payload))
            }
        }
    }
}

/// Requests are answered within 2.5 s, and subscriptions outlive failovers and moving slots.
impl Store for Broker {
    fn submit(&mut self, request: Request) {
        // The driver ends with us and not before.
        let _ = self.inputs.send(Input::Request(request));
    }

    fn subscribe(&mut self, channel: Channel) {
        let name = self.names.channel(&channel);
        self.channels.entry(name.clone()).or_insert((channel, None));
        let _ = self.inputs.send(Input::Subscribe(name));
    }

    fn unsubscribe(&mut self, channel: &Channel) {
        let name = self.names.channel(channel);
        if self.channels.remove(&name).is_some() {
            let _ = self.inputs.send(Input::Unsubscribe(name));
        }
    }

    /// Both connections of the channel's server are made anew, paced.
    fn renew(&mut self, channel: &Channel) {
        let _ = self.inputs.send(Input::Renew(self.names.channel(channel)));
    }

    fn restart(&mut self) {
        let channels = std::mem::take(&mut self.channels);
        *self = self.origin.start();
        for (channel, _) in channels.into_values() {
            self.subscribe(channel);
        }
    }

    fn try_next_event(&mut self) -> Option<StoreEvent> {
        while let Ok(signal) = self.signals.try_recv() {
            if let Some(event) = self.translate(signal) {
                return Some(event);
            }
        }
        None
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
