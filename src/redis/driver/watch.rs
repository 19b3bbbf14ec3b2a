//! The driver's decisions about where a node's connections should be: the whereabouts, doubts about
//! them, and the findings of discovery while all is well.
//!
//! Sentinels, names and proxies are asked again every few seconds: they may lead elsewhere while
//! the old server still answers. A cluster has its own check, see [`super::slots`].

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use log::{debug, info, warn};
use tokio::time::Instant;

use super::super::facts::Eviction;
use super::super::server::{Cause, Line, Server};
use super::super::signal::NodeId;
use super::super::tasks::{Input, Order, Want};
use super::super::whereabouts::Redial;
use super::core::Driver;

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

    /// Publications do not arrive through this node, or it should be elsewhere.
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
        self.watch.put_off(Instant::now());
        let Some((&id, node)) = self.nodes.first_key_value() else {
            return;
        };
        if node.whereabouts.is_taken_on_trust() {
            return;
        }
        let Some(server) = node.whereabouts.server().cloned() else {
            return;
        };
        self.watch.asked();
        let (context, inputs, location) = (self.context.clone(), self.inputs.clone(), node.location.clone());
        self.tasks.spawn_local(async move {
            let found = context.dialer.find_another(&location, &server).await;
            let _ = inputs.send(Input::Watched(id, server, found));
        });
    }

    /// The result of discovery; `server` is where we were when it began.
    pub(super) fn handle_watched(&mut self, id: NodeId, server: &Server, found: Result<Option<Server>, Cause>) {
        let current = self.nodes.get(&id).and_then(|node| node.whereabouts.server());
        let is_another = match &found {
            Ok(found) => Some(found.is_some() && current == Some(server)),
            Err(_) => None,
        };
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
                self.doubt(id, cause.into());
            }
            Ok(_) => {}
            // Our connections work, so this is no trouble yet.
            Err(cause) => debug!("cannot find out where the master of Redis is by now: {cause}"),
        }
        self.watch.answered(is_another, Instant::now());
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
}
