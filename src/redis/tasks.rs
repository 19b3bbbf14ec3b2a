//! What the tasks of a broker share, and what they tell each other: the driver, and two tasks for each server.

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

/// What is lost for the same reason again is told of again after this time.
pub(super) const QUIET_MAX: Duration = Duration::from_secs(60);

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

/// What a node tells the driver.
#[derive(Debug)]
pub(super) enum News {
    /// It can be asked; this server, and the round of [`Order::Redial`] that it was dialled in.
    Up(Server, u64),
    /// It cannot be asked (any more).
    Down(Down),
    /// Items with their replies.
    Replies(Vec<(Item, Value)>),
    /// Items without reply: nobody knows whether they were carried out.
    Failed(Vec<Item>, Cause),
    /// How it sees the cluster.
    ClusterSlots(ClusterSlots),
    /// What it throws away when its memory is full.
    Eviction(Eviction),
}

/// Why a node cannot be asked.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) cause: Cause,
    /// As in [`News::Up`].
    pub(super) round: u64,
    /// The server says that it is no master any more.
    pub(super) is_demoted: bool,
}

/// What the driver wants of a node.
#[derive(Debug)]
pub(super) enum Order {
    /// These operations, as one pipeline.
    Items(Vec<Item>),
    /// Its view of the cluster.
    Look,
    /// Close the connection, if there is one, and open it anew after this pause; in this round, for this reason.
    Redial(Duration, u64, Cause),
}

/// What the driver wants of a server.
#[derive(Debug)]
pub(super) enum Want {
    /// This channel.
    Channel(String),
    /// No more.
    NotChannel(String),
    /// The server's other connection was lost: is this one good?
    Check,
    /// Close the connection, if there is one, and open it anew after this pause; in this round, for this reason.
    Redial(Duration, u64, Cause),
}
