//! Mail about channels: publications, subscribers on other shards, partitions.
//!
//! A channel's home is the shard that all its publications of this gateway pass. The home knows the
//! shards with subscribers; the control thread forwards to other gateways, partition by partition.

use super::{AckTo, AckToSpan, Batch, LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, LaneFull, Lanes, Span, ToShard};
use crate::ids::ShardId;
use crate::router::{ChannelHash, Partition};
use crate::wire::framing::Encoded;

/// Mail for a shard about channels.
#[derive(Debug)]
pub enum ChannelToShard {
    /// To the channel's home: a publication of this gateway.
    Publish(PublishItem),
    /// To the channel's home: the sending shard has its first subscriber.
    Join {
        /// The channel.
        channel: ChannelName,
        /// Comes back with [`ChannelToShard::Joined`].
        ticket: u64,
    },
    /// To the channel's home: the sending shard's last subscriber has left.
    Leave {
        /// The channel.
        channel: ChannelName,
    },
    /// To the channel's home: the sending shard has too much on its way to the channel's
    /// subscribers, or no longer has.
    Crowded {
        /// The channel.
        channel: ChannelName,
        /// From now on.
        crowded: bool,
    },
    /// From the channel's home: everything published from now on will come.
    Joined {
        /// As asked.
        ticket: u64,
    },
    /// From the channel's home: a publication for the subscribers on the receiving shard.
    Publication(PublicationItem),
    /// From the control thread to the channel's home: a publication of another gateway.
    Published(PublicationItem),
    /// From the control thread to the partition's home: the gateway is subscribed to the partition
    /// from now on, or the subscription is lost.
    PartitionSubscribed {
        /// The partition.
        partition: Partition,
        /// From now on.
        subscribed: bool,
    },
}

/// Mail for the control thread about channels.
#[derive(Debug)]
pub enum ChannelToControl {
    /// Publications of other gateways in this partition are wanted, or no longer are.
    PartitionWanted {
        /// The partition.
        partition: Partition,
        /// From now on.
        wanted: bool,
    },
    /// A publication for the other gateways.
    Forward(ForwardItem),
}

/// A channel, as one batch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelName {
    /// The hash of its name.
    pub hash: ChannelHash,
    /// Its name.
    pub name: Span,
}

impl ChannelName {
    /// The hash and the name, by the batch that the channel came in.
    pub fn read<M>(self, batch: &Batch<M>) -> (ChannelHash, &str) {
        (self.hash, batch.text(self.name))
    }
}

/// A publication on its way to its channel's home.
#[derive(Debug)]
pub struct PublishItem {
    /// The channel.
    pub channel: ChannelName,
    /// Its body, as every subscriber gets it.
    pub message: Encoded,
    /// The publisher, if it gave an `id`.
    pub ack_to: Option<AckToSpan>,
    /// When the gateway took it, nanoseconds of its clock.
    pub received_ns: u64,
}

/// A publication on its way from its channel's home, or to it from another gateway.
#[derive(Debug)]
pub struct PublicationItem {
    /// The channel.
    pub channel: ChannelName,
    /// Its body.
    pub message: Encoded,
    /// When this gateway got it, nanoseconds of its clock.
    pub received_ns: u64,
}

/// A publication on its way to other gateways.
#[derive(Debug)]
pub struct ForwardItem {
    /// Its partition.
    pub partition: Partition,
    /// The channel.
    pub channel: Span,
    /// Its body.
    pub message: Encoded,
    /// The publisher, if it gave an `id`, and its shard.
    pub ack_to: Option<(ShardId, AckToSpan)>,
}

/// A publication as [`Lanes`] take it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingPublication<'a> {
    /// The channel: the hash of its name, and its name.
    pub channel: (ChannelHash, &'a str),
    /// Its body.
    pub message: &'a Encoded,
    /// The publisher, if it gave an `id`.
    pub ack_to: Option<AckTo<'a>>,
    /// When the gateway took it, nanoseconds of its clock.
    pub received_ns: u64,
}

impl Lanes {
    /// Passes a publication on to its channel's home.
    ///
    /// # Errors
    /// The lane is full: the publication has failed.
    pub fn try_publish(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check_bytes()?;
        let item = PublishItem {
            channel: lane.write_channel(publication.channel),
            message: lane.share(publication.message),
            ack_to: publication.ack_to.map(|ack_to| lane.write_ack_to(&ack_to)),
            received_ns: publication.received_ns,
        };
        lane.push(ChannelToShard::Publish(item));
        Ok(())
    }

    /// Gives a publication to the subscribers on a shard.
    ///
    /// # Errors
    /// The lane is full: it is lost for them.
    pub fn try_publication(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        self.try_give(to, publication, ChannelToShard::Publication)
    }

    /// Gives a publication of another gateway to its channel's home.
    ///
    /// # Errors
    /// The lane is full: it is lost for the subscribers here.
    pub fn try_published(&mut self, to: ShardId, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        self.try_give(to, publication, ChannelToShard::Published)
    }

    fn try_give(
        &mut self,
        to: ShardId,
        publication: &OutgoingPublication<'_>,
        mail: impl FnOnce(PublicationItem) -> ChannelToShard,
    ) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check_bytes()?;
        let item = PublicationItem {
            channel: lane.write_channel(publication.channel),
            message: lane.share(publication.message),
            received_ns: publication.received_ns,
        };
        lane.push(ToShard::Channel(mail(item)));
        Ok(())
    }

    /// Gives a publication to the control thread, for the other gateways.
    ///
    /// # Errors
    /// The lane is full: the other gateways do not get it.
    pub fn try_forward(&mut self, partition: Partition, publication: &OutgoingPublication<'_>) -> Result<(), LaneFull> {
        let lane = self.control()?;
        lane.check_bytes()?;
        let item = ForwardItem {
            partition,
            channel: lane.write(publication.channel.1.as_bytes()),
            message: lane.share(publication.message),
            ack_to: publication
                .ack_to
                .map(|ack_to| (ack_to.shard, lane.write_ack_to(&ack_to))),
        };
        lane.push(ChannelToControl::Forward(item));
        Ok(())
    }

    /// Tells a channel's home that this shard has its first subscriber.
    ///
    /// # Errors
    /// The lane is full: not now.
    pub fn try_join(&mut self, to: ShardId, channel: (ChannelHash, &str), ticket: u64) -> Result<(), LaneFull> {
        let lane = self.shard(to);
        lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let channel = lane.write_channel(channel);
        lane.push(ChannelToShard::Join { channel, ticket });
        Ok(())
    }

    /// Tells a channel's home that this shard's last subscriber has left: at most once per join.
    pub fn leave(&mut self, to: ShardId, channel: (ChannelHash, &str)) {
        let lane = self.shard(to);
        let channel = lane.write_channel(channel);
        lane.push(ChannelToShard::Leave { channel });
    }

    /// Tells a channel's home whether too much is on its way to the channel's subscribers here.
    pub fn crowded(&mut self, to: ShardId, channel: (ChannelHash, &str), crowded: bool) {
        let lane = self.shard(to);
        let channel = lane.write_channel(channel);
        lane.push(ChannelToShard::Crowded { channel, crowded });
    }
}
