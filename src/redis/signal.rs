//! Signals from the tasks of a broker to its owner.

use bytes::Bytes;

use crate::cluster::store::StoreEvent;

/// Which node; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u64);

/// A signal of a task, in order; channels by name.
#[derive(Debug)]
pub(super) enum Signal {
    /// As it is.
    Event(StoreEvent),
    /// A channel is subscribed over that server.
    Subscribed(String, NodeId),
    /// It is not any more.
    Unsubscribed(String, NodeId),
    /// Something was published.
    Packet { channel: String, payload: Bytes },
}
