//! The shared state of a broker's tasks and their messages: the driver, and two tasks for each
//! server.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::backlog::Backlog;
use super::counters::BrokerCounters;
use super::dial::Dialer;
use super::facts::Eviction;
use super::gather::Item;
use super::keys::Names;
use super::server::{Cause, Server};
use super::signal::{NodeId, Signal};
use super::topology::ClusterSlots;
use crate::cluster::store::Request;

/// A repeated loss with the same cause is logged again after this time.
pub(super) const QUIET_MAX: Duration = Duration::from_secs(60);

/// The context of all tasks of a broker.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) names: Names,
    pub(super) dialer: Dialer,
    /// A cluster: keys and channels belong to slots.
    pub(super) sharded: bool,
    pub(super) signals: UnboundedSender<Signal>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) counters: Arc<BrokerCounters>,
    /// This broker watches the servers' eviction policies.
    pub(super) watches_memory: bool,
}

/// An input of the driver.
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
    /// From the broker's owner: publications on this channel do not arrive.
    Renew(String),
    /// From a node's subscriptions: they are with this server; with the round of [`Want::Redial`].
    Listening(NodeId, Server, u64),
    /// From a node's subscriptions: they have no connection (any more).
    Deaf(NodeId, u64),
    /// From a watch that began when the node was with this server: another one that is the master
    /// by now, if there is one.
    Watched(NodeId, Server, Result<Option<Server>, Cause>),
    /// From a node's subscriptions: this channel is elsewhere, at the address in the server's
    /// words.
    SlotMoved(NodeId, String, String),
    /// A picture of the cluster over a connection of its own, as no node was available.
    ClusterSlots(Result<ClusterSlots, Cause>),
}

/// A node's message to the driver.
#[derive(Debug)]
pub(super) enum News {
    /// It takes commands; this server, and the round of [`Order::Redial`] that it was dialled in.
    Up(Server, u64),
    /// It takes no commands (any more).
    Down(Down),
    /// Items with their replies.
    Replies(Vec<(Item, Value)>),
    /// Items without reply: they may or may not have been carried out.
    Failed(Vec<Item>, Cause),
    /// How it sees the cluster.
    ClusterSlots(ClusterSlots),
    /// Its eviction policy.
    Eviction(Eviction),
}

/// Why a node takes no commands.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) cause: Cause,
    /// As in [`News::Up`].
    pub(super) round: u64,
    /// The server reports that it is no master any more.
    pub(super) is_demoted: bool,
}

/// The driver's message to a node.
#[derive(Debug)]
pub(super) enum Order {
    /// These operations, as one pipeline.
    Items(Vec<Item>),
    /// Its view of the cluster.
    Look,
    /// Close the connection, if there is one, and open it anew after this pause; in this round, for
    /// this reason.
    Redial(Duration, u64, Cause),
}

/// The driver's message to a server's subscriptions.
#[derive(Debug)]
pub(super) enum Want {
    /// This channel.
    Channel(String),
    /// No more.
    NotChannel(String),
    /// The server's other connection was lost: is this one good?
    Check,
    /// Close the connection, if there is one, and open it anew after this pause; in this round, for
    /// this reason.
    Redial(Duration, u64, Cause),
}
