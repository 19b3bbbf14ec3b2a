//! The means to order a running gateway about from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::engine::Waker;
use crate::ids::is_valid_user_id;
use crate::lanes::ShardCommand;
use crate::wire::framing::Encoded;
use crate::wire::ws::close::CloseReason;

/// What may be asked of a running gateway.
#[derive(Debug)]
pub(super) enum Order {
    Drain,
    Stop,
    Reload(Box<Config>),
    /// For this gateway and all others.
    Everywhere(ShardCommand),
    /// For the others only. Hears whether they can be told.
    Forward(ShardCommand, oneshot::Sender<bool>),
    /// On which other gateways is this user? The cluster answers, by ticket.
    Locate(u32, Arc<str>),
    /// Of the program that this gateway is a part of.
    Administer(Request, oneshot::Sender<AdminReply>),
}

/// Called when a drain is asked for.
#[derive(Clone)]
pub(super) struct OnDrain(pub(super) Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OnDrain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDrain")
    }
}

/// The means to order a gateway about from another thread.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) orders: Sender<Order>,
    /// It shall end: while it starts, nobody takes orders.
    pub(super) ending: Arc<AtomicBool>,
    pub(super) on_drain: OnDrain,
    pub(super) waker: Waker,
}

impl Handle {
    pub(super) fn order(&self, order: Order) {
        // The only error is that the gateway has ended.
        let _ = self.orders.send(order);
        self.waker.wake();
    }

    /// Begins a drain; a second call changes nothing. A gateway that is not in its cluster yet does
    /// not start.
    pub fn drain(&self) {
        if !self.ending.swap(true, Ordering::AcqRel) {
            (self.on_drain.0)();
        }
        self.order(Order::Drain);
    }

    /// Ends the gateway at once.
    pub fn stop(&self) {
        self.ending.store(true, Ordering::Release);
        self.order(Order::Stop);
    }

    /// Goes by this configuration from now on, as far as that is possible while running.
    pub fn reload(&self, config: Config) {
        self.order(Order::Reload(Box::new(config)));
    }

    /// Carries out a request of the admin API, with no token asked for: sends, publishes, lists and
    /// closes. The answer can be awaited, or waited for with `blocking_recv`; it is an error if the
    /// gateway has ended.
    pub fn administer(&self, request: Request) -> oneshot::Receiver<AdminReply> {
        let (sender, answer) = oneshot::channel();
        self.order(Order::Administer(request, sender));
        answer
    }

    /// Sends a message to every connection of every gateway: the body of a `broadcast`.
    pub fn broadcast(&self, message: Encoded) {
        self.order(Order::Everywhere(ShardCommand::Broadcast(message)));
    }

    /// Closes all connections of a user on every gateway. Nothing happens for what is no user id:
    /// nobody has it.
    pub fn close_user(&self, user: &str, reason: CloseReason) {
        // The others would not understand it, nor what else is in the same packet.
        if !is_valid_user_id(user) {
            return;
        }
        let user = user.into();
        self.order(Order::Everywhere(ShardCommand::CloseUser { user, reason }));
    }
}
