//! A channel at its home, and the way there: shards join, leave and publish.
//!
//! The home of a channel is the shard of its partition. It knows the shards that have subscribers.

use super::Channels;
use crate::ids::ShardId;
use crate::lanes::{
    Batch, ChannelToControl, ChannelToShard, LaneFull, OutgoingPublication, PublicationItem, PublishItem, ToShard,
};
use crate::metrics::DropReason;
use crate::router::channels::ChannelIndex;
use crate::router::interests::{Change, Join};
use crate::router::{ChannelHash, Partition};
use crate::shard::kernel::Kernel;
use crate::wire::framing::{Encoded, Framing};
use crate::wire::message::AckStatus;

impl Channels {
    /// The first subscriber of a channel here: its home shall know.
    pub(super) fn join(
        &mut self,
        kernel: &mut Kernel,
        index: ChannelIndex,
        channel: (ChannelHash, &str),
    ) -> Result<(), LaneFull> {
        let partition = kernel.homes.partition(channel.1);
        let home = kernel.homes.partition_home(partition);
        let ticket = self.joins.begin(index);
        if home != kernel.me {
            let asked = kernel.lanes.try_join(home, channel, ticket);
            if asked.is_err() {
                self.joins.end(index);
            }
            return asked;
        }
        let join = Join { shard: home, ticket };
        if self.handle_join(kernel, partition, channel, join) {
            self.joins.end(index);
        }
        Ok(())
    }

    /// A shard has its first subscriber of a channel whose home is here. Returns true if nothing
    /// will be missed from now on; else that is told later.
    fn handle_join(
        &mut self,
        kernel: &mut Kernel,
        partition: Partition,
        channel: (ChannelHash, &str),
        join: Join,
    ) -> bool {
        let elsewhere = join.shard != kernel.me;
        let change = self.interests.join(partition, channel, join.shard, elsewhere);
        self.tell_wanted(kernel, partition, change);
        // With Redis away, what is published here is all there is.
        if kernel.peers.is_none() || !kernel.shared.cluster.is_up() || self.interests.is_subscribed(partition) {
            return true;
        }
        self.interests.wait(partition, join);
        false
    }

    fn tell_wanted(&mut self, kernel: &mut Kernel, partition: Partition, change: Change) {
        if let Change::Wanted(wanted) = change
            && kernel.peers.is_some()
        {
            kernel
                .lanes
                .push_control(ChannelToControl::PartitionWanted { partition, wanted });
        }
    }

    /// The gateway is subscribed to a partition, or nobody shall wait for that any longer.
    pub(in crate::shard) fn handle_partition_subscribed(&mut self, kernel: &mut Kernel, partition: Partition) {
        for join in self.interests.subscribed(partition) {
            if join.shard == kernel.me {
                self.handle_joined(kernel, join.ticket);
            } else {
                kernel
                    .lanes
                    .push(join.shard, ChannelToShard::Joined { ticket: join.ticket });
            }
        }
    }

    /// What is published on a channel comes from now on.
    pub(in crate::shard) fn handle_joined(&mut self, kernel: &mut Kernel, ticket: u64) {
        let Some(joining) = self
            .joins
            .tickets
            .get(&ticket)
            .copied()
            .and_then(|c| self.joins.end(c).map(|j| (c, j)))
        else {
            // They all left before.
            return;
        };
        let (channel, joining) = joining;
        let name = self.table.name(channel).to_owned();
        for (key, client_id) in joining.waiting {
            if kernel.is_open(key) {
                self.send_subscribed(kernel, key.slot, &name, client_id.as_deref());
            }
        }
    }

    /// A channel that has no subscriber here any more, if its name is given: its home shall know.
    pub(super) fn leave_channel(&mut self, kernel: &mut Kernel, index: ChannelIndex, gone: Option<Box<str>>) {
        let Some(name) = gone else {
            return;
        };
        self.joins.end(index);
        self.overload.forget(index);
        let (hash, partition) = (kernel.homes.channel_hash(&name), kernel.homes.partition(&name));
        let home = kernel.homes.partition_home(partition);
        if home == kernel.me {
            self.handle_leave(kernel, partition, (hash, &name), home);
        } else {
            kernel.lanes.leave(home, (hash, &name));
        }
    }

    fn handle_leave(
        &mut self,
        kernel: &mut Kernel,
        partition: Partition,
        channel: (ChannelHash, &str),
        shard: ShardId,
    ) {
        let change = self.interests.leave(partition, channel, shard, shard != kernel.me);
        self.tell_wanted(kernel, partition, change);
    }

    /// A publication of this gateway, at its channel's home: to the subscribers here and on other
    /// shards, and to the other gateways. Returns what became of it; `None` if that is not known
    /// yet, and the publisher will be told.
    pub(in crate::shard) fn distribute(
        &mut self,
        kernel: &mut Kernel,
        partition: Partition,
        publication: &OutgoingPublication<'_>,
    ) -> Option<AckStatus> {
        // Before anybody has it: whoever hears `failed` may say it again.
        if self.is_overloaded(kernel, publication.channel, publication.message.bytes()) {
            kernel.metrics().dropped(DropReason::PublicationQueueFull);
            return Some(AckStatus::Failed);
        }
        let here = self.distribute_here(kernel, publication);
        if kernel.peers.is_none() {
            return Some(if here { AckStatus::Published } else { AckStatus::Failed });
        }
        if !kernel.shared.cluster.is_up() {
            kernel.metrics().dropped(DropReason::PublicationRedisAway);
            return Some(AckStatus::Failed);
        }
        // A publisher that has `failed` already waits for nothing.
        let ack_to = publication.ack_to.filter(|_| here);
        let outgoing = OutgoingPublication { ack_to, ..*publication };
        if kernel.lanes.try_forward(partition, &outgoing).is_err() {
            kernel.metrics().dropped(DropReason::PublicationLaneFull);
            return Some(AckStatus::Failed);
        }
        if here { None } else { Some(AckStatus::Failed) }
    }

    /// To all shards of this gateway that have subscribers. Returns false if one of them could not
    /// take it.
    fn distribute_here(&mut self, kernel: &mut Kernel, publication: &OutgoingPublication<'_>) -> bool {
        let OutgoingPublication {
            channel: (hash, name),
            message,
            received_ns,
            ..
        } = *publication;
        let mut taken = self.queue_publication(kernel, (hash, name), message, received_ns);
        for &shard in self.interests.shards(hash, name) {
            if kernel.lanes.try_publication(shard, publication).is_err() {
                kernel.metrics().dropped(DropReason::PublicationLaneFull);
                taken = false;
            }
        }
        taken
    }

    /// Puts a publication on its way to the subscribers of this shard. Returns false if too much is
    /// on its way already.
    pub(in crate::shard) fn queue_publication(
        &mut self,
        kernel: &mut Kernel,
        (hash, name): (ChannelHash, &str),
        message: &Encoded,
        received_ns: u64,
    ) -> bool {
        let found = self.table.find(hash, name);
        let Some(channel) = found.filter(|channel| !self.joins.is_joining(*channel)) else {
            return true;
        };
        // The log of a channel holds what its subscribers get, one behind the other: in the one
        // form that there is.
        let framed = message.framed(Framing::WebSocketText).clone();
        let queued = self.table.publish(channel, framed, received_ns);
        if queued.is_err() {
            kernel.metrics().dropped(DropReason::PublicationQueueFull);
        }
        self.note_crowded(kernel, channel, (hash, name));
        queued.is_ok()
    }

    /// A shard has its first subscriber of a channel whose home is here.
    pub(in crate::shard) fn handle_join_item(
        &mut self,
        kernel: &mut Kernel,
        from: ShardId,
        channel: (ChannelHash, &str),
        ticket: u64,
    ) {
        let join = Join { shard: from, ticket };
        if self.handle_join(kernel, kernel.homes.partition(channel.1), channel, join) {
            kernel.lanes.push(from, ChannelToShard::Joined { ticket });
        }
    }

    /// A shard has no subscriber any more of a channel whose home is here.
    pub(in crate::shard) fn handle_leave_item(
        &mut self,
        kernel: &mut Kernel,
        from: ShardId,
        channel: (ChannelHash, &str),
    ) {
        self.handle_leave(kernel, kernel.homes.partition(channel.1), channel, from);
    }

    /// A publication of another gateway on a channel whose home is here.
    pub(in crate::shard) fn handle_published_item(
        &mut self,
        kernel: &mut Kernel,
        batch: &Batch<ToShard>,
        item: &PublicationItem,
    ) {
        self.distribute_here(
            kernel,
            &OutgoingPublication {
                channel: item.channel.read(batch),
                message: &item.message,
                ack_to: None,
                received_ns: item.received_ns,
            },
        );
    }

    /// A publication of another shard on a channel whose home is here.
    pub(in crate::shard) fn handle_publish_item(
        &mut self,
        kernel: &mut Kernel,
        batch: &Batch<ToShard>,
        publish: &PublishItem,
    ) {
        let (hash, name) = publish.channel.read(batch);
        let ack_to = publish.ack_to.as_ref().map(|ack_to| batch.ack_to(batch.from, ack_to));
        let publication = OutgoingPublication {
            channel: (hash, name),
            message: &publish.message,
            ack_to,
            received_ns: publish.received_ns,
        };
        let status = self.distribute(kernel, kernel.homes.partition(name), &publication);
        kernel.answer_if_known(ack_to.as_ref(), status);
    }

    /// Publications of this partition do not come from other gateways any more.
    pub(in crate::shard) fn handle_partition_lost(&mut self, partition: Partition) {
        self.interests.lost(partition);
    }

    /// A shard has too much on its way to its subscribers of a channel, or has not any more.
    pub(in crate::shard) fn handle_crowded(&mut self, from: ShardId, channel: ChannelHash, crowded: bool) {
        self.interests.note_crowded(channel, from, crowded);
    }
}
