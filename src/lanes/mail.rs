//! The two kinds of mail: [`ToShard`] and [`ToControl`].
//!
//! Each is a sum of what the services say. A receiver matches it without a catch-all arm, so a new
//! variant does not compile before its receiver knows it.

use super::admin::{AdminToControl, AdminToShard, ShardCommand};
use super::channels::{ChannelToControl, ChannelToShard};
use super::handoff::Handoff;
use super::lifecycle::{LifecycleToControl, LifecycleToShard};
use super::messages::{AckToShard, MessageToControl, MessageToShard};
use super::presence::{PresenceToControl, PresenceToShard, RosterToShard};

/// Mail for a shard, from another shard or from the control thread.
#[derive(Debug)]
pub enum ToShard {
    /// A connection whose user lives on the shard.
    Handoff(Box<Handoff>),
    /// Direct messages, and the locations of their receivers.
    Message(MessageToShard),
    /// What became of a message or a publication of one of the shard's connections.
    Ack(AckToShard),
    /// Presence queries of clients.
    Presence(PresenceToShard),
    /// The control thread's walks over the shard's users.
    Roster(RosterToShard),
    /// Publications and subscriptions.
    Channel(ChannelToShard),
    /// Requests of administrators.
    Admin(AdminToShard),
    /// A command to all shards, or to the one that is concerned.
    Command(ShardCommand),
    /// Settings, keys, the drain, the end.
    Lifecycle(LifecycleToShard),
}

/// Mail for the control thread, from a shard.
#[derive(Debug)]
pub enum ToControl {
    /// What concerns other gateways.
    Cluster(ToCluster),
    /// Requests of administrators, and what shards reply.
    Admin(AdminToControl),
    /// Keys, the drain, the end.
    Lifecycle(LifecycleToControl),
}

/// Mail for the control thread that concerns other gateways. A gateway of its own has none.
#[derive(Debug)]
pub enum ToCluster {
    /// Direct messages for other gateways, and the locations of their receivers.
    Message(MessageToControl),
    /// Changes of presence, and queries.
    Presence(PresenceToControl),
    /// Publications for other gateways, and partitions.
    Channel(ChannelToControl),
}

macro_rules! from_services {
    ($mail:ident: $($variant:path: $service:ty),* $(,)?) => {
        $(
            impl From<$service> for $mail {
                fn from(item: $service) -> Self {
                    $variant(item.into())
                }
            }
        )*
    };
}

from_services!(ToShard:
    ToShard::Handoff: Box<Handoff>,
    ToShard::Message: MessageToShard,
    ToShard::Ack: AckToShard,
    ToShard::Presence: PresenceToShard,
    ToShard::Roster: RosterToShard,
    ToShard::Channel: ChannelToShard,
    ToShard::Admin: AdminToShard,
    ToShard::Command: ShardCommand,
    ToShard::Lifecycle: LifecycleToShard,
);
from_services!(ToCluster:
    ToCluster::Message: MessageToControl,
    ToCluster::Presence: PresenceToControl,
    ToCluster::Channel: ChannelToControl,
);
from_services!(ToControl:
    ToControl::Cluster: MessageToControl,
    ToControl::Cluster: PresenceToControl,
    ToControl::Cluster: ChannelToControl,
    ToControl::Admin: AdminToControl,
    ToControl::Lifecycle: LifecycleToControl,
);

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane may hold [`super::super::LANE_ITEMS_MAX`] of them. Larger mail goes into a box.
    #[test]
    fn mail_is_small() {
        assert!(size_of::<ToShard>() <= 112, "{}", size_of::<ToShard>());
        assert!(size_of::<ToControl>() <= 96, "{}", size_of::<ToControl>());
    }
}
