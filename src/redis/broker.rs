//! The owner's end of a broker: a store in Redis, carried out by the driver's task.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use super::backlog::Backlog;
use super::counters::BrokerCounters;
use super::dial::Dialer;
use super::driver::Driver;
use super::keys::Names;
use super::pair::{Line, Pair};
use super::signal::{NodeId, Signal};
use super::tasks::{Context, Input};
use crate::cluster::store::{Channel, Request, Store, StoreEvent};
use crate::config::{RedisServers, RedisTarget};

/// The parts that a broker is started with.
#[derive(Debug, Clone)]
struct Origin {
    target: RedisTarget,
    prefix: Arc<str>,
    counters: Arc<BrokerCounters>,
    /// Asks servers for their eviction policy. Of several brokers on the same servers only one
    /// does, or each would overrule the findings of the others.
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
    /// Wanted channels by name, with the server of the subscription. After a move the old server's
    /// end may arrive after the new server's confirmation.
    channels: HashMap<String, (Channel, Option<NodeId>)>,
    backlog: Arc<Backlog>,
    driver: AbortHandle,
}

impl Broker {
    /// Begins to connect in the background, at once. Trouble comes as [`StoreEvent::Lost`], and
    /// attempts go on, 50 ms to 1 s apart.
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

    /// Channels by name to channels. Names of channels that are not wanted (any more) have none.
    fn translate(&mut self, signal: Signal) -> Option<StoreEvent> {
        match signal {
            Signal::Event(event) => Some(event),
            Signal::Subscribed(name, by) => {
                let (channel, over) = self.channels.get_mut(&name)?;
                over.replace(by)
                    .is_none()
                    .then(|| StoreEvent::Subscribed(channel.clone()))
            }
            Signal::Unsubscribed(name, by) => {
                let (channel, over) = self.channels.get_mut(&name)?;
                over.take_if(|server| *server == by)
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

impl Pair<Broker> {
    /// The pair on the servers of this broker.
    ///
    /// # Panics
    /// Outside of a tokio `LocalSet`.
    #[must_use]
    pub fn of_broker(main: Broker) -> Self {
        let lookups = main.start_second();
        Pair::new(main, lookups)
    }

    /// Until [`Store::try_next_event`] has one. Cancel-safe.
    pub async fn ready(&mut self) {
        while !self.has_next() {
            let [main, lookups] = self.lines_mut();
            let (line, event) = tokio::select! {
                biased;
                event = main.next_event() => (Line::Main, event),
                event = lookups.next_event() => (Line::Lookups, event),
            };
            self.put(line, event);
        }
    }
}
