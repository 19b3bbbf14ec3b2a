//! The driver's decisions about where a node's connections should be: the whereabouts, whoever doubts it, and what discovery says
//! while all is well.
//!
//! Sentinels, names and proxies are asked again every few seconds: they may lead elsewhere while the old server still
//! answers. A cluster is looked at instead, see [`super::slots`].

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use log::{debug, info, warn};
use tokio::time::Instant;

use super::super::dial::{Cause, Line};
use super::super::facts::Eviction;
use super::super::node::{NodeId, Order};
use super::super::pubsub::Want;
use super::super::whereabouts::{Redial, Server};
use super::{Driver, Input};

/// How often discovery is asked again: one connection each time, to a sentinel or to the server.
const WATCH_INTERVAL: Duration = Duration::from_secs(3);
/// The same at most, where each answer differs from the one before.
const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(300);

/// When discovery is asked again.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) next: Instant,
    pub(super) is_under_way: bool,
    interval: Duration,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Watch {
        Watch {
            next: now + WATCH_INTERVAL,
            is_under_way: false,
            interval: WATCH_INTERVAL,
        }
    }
}

impl Driver {
    /// One of a node's connections is open.
    pub(super) fn opened(&mut self, id: NodeId, line: Line, server: Server, round: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let trusted = node.whereabouts.is_taken_on_trust();
        let redial = node
            .whereabouts
            .opened(line, round, server, Instant::now(), fastrand::u8(..));
        if node.whereabouts.is_taken_on_trust() && !trusted && redial.is_none() {
            warn!(
                "commands and subscriptions say that they are with different servers of Redis each time: believed is what is heard"
            );
        }
        self.redial(id, redial);
    }

    /// What is published is not heard over this node, or it should be elsewhere.
    pub(super) fn doubt(&mut self, id: NodeId, cause: Cause) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let redial = node.whereabouts.doubted(cause, Instant::now());
        self.redial(id, redial);
    }

    /// Carries out what the whereabouts decided.
    pub(super) fn redial(&mut self, id: NodeId, redial: Option<Redial>) {
        if let (Some(node), Some(redial)) = (self.nodes.get(&id), redial) {
            let Redial {
                pause, cause, round, ..
            } = redial;
            if redial.commands {
                let _ = node.orders.send(Order::Redial(pause, round, cause.clone()));
            }
            if let (true, Some(wants)) = (redial.subscriptions, &node.wants) {
                let _ = wants.send(Want::Redial(pause, round, cause));
            }
        }
        self.tell_state();
    }

    /// Asks discovery where the master is by now.
    pub(super) fn watch(&mut self) {
        self.watch.next = Instant::now() + self.watch.interval;
        let Some((&id, node)) = self.nodes.first_key_value() else {
            return;
        };
        if node.whereabouts.is_taken_on_trust() {
            return;
        }
        let Some(server) = node.whereabouts.server().cloned() else {
            return;
        };
        self.watch.is_under_way = true;
        let (context, inputs, place) = (self.context.clone(), self.inputs.clone(), node.place.clone());
        self.tasks.spawn_local(async move {
            let found = context.dialer.find_another(&place, &server).await;
            let _ = inputs.send(Input::Watched(id, server, found));
        });
    }

    /// What discovery said; `server` is where we were when it was asked.
    pub(super) fn handle_watched(&mut self, id: NodeId, server: &Server, found: Result<Option<Server>, Cause>) {
        self.watch.is_under_way = false;
        let current = self.nodes.get(&id).and_then(|node| node.whereabouts.server());
        match found {
            Ok(Some(other)) if current == Some(server) => {
                let cause = format!(
                    "the master is Redis at {} now, and no more the server at {}",
                    other.at, server.at
                );
                let cause = if other.at == server.at {
                    format!("another server is Redis at {} now", other.at)
                } else {
                    cause
                };
                self.watch.interval = (self.watch.interval * 2).min(WATCH_INTERVAL_MAX);
                self.doubt(id, cause.into());
            }
            Ok(_) => self.watch.interval = WATCH_INTERVAL,
            // Our connections work, so this is no trouble yet.
            Err(cause) => debug!("cannot find out where the master of Redis is by now: {cause}"),
        }
        self.watch.next = Instant::now() + self.watch.interval;
    }

    /// Says once for each change whether presence may be thrown away.
    pub(super) fn handle_eviction(&mut self, id: NodeId, eviction: Eviction) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.eviction.as_ref() == Some(&eviction) {
            return;
        }
        let server = node.whereabouts.server();
        let at = server.map(|server| format!(" at {}", server.at)).unwrap_or_default();
        let policy = Arc::clone(&eviction.policy);
        node.eviction = Some(eviction);
        let before = self.context.counters.evicting.load(Relaxed);
        let now = self.count_evicting();
        if now > before {
            warn!(
                "Redis{at} throws away any key when its memory is full (maxmemory-policy {policy}), so users who are \
                 connected may seem offline: set maxmemory-policy to noeviction, or to one that begins with volatile-"
            );
        } else if now < before {
            info!("Redis{at} keeps presence when its memory is full (maxmemory-policy {policy})");
        }
    }

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
