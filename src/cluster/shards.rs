//! This gateway's shards, as the cluster speaks to them: which shard a user or a channel lives on,
//! and the lanes there.
//!
//! Pure; owned by the control thread. Before [`Shards::attach`] there are none, and nothing is
//! sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::verdict::Verdict;
use crate::ids::ShardId;
use crate::lanes::{
    AckTo, ChannelToShard, Incoming, Lanes, Location, MessageToShard, OutgoingPublication, PresenceToShard,
    RosterToShard, Span, ToShard,
};
use crate::router::{HomeMap, Partition, UserHash};
use crate::wire::framing::Encoded;

/// Why a publication of another gateway did not go to its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undelivered {
    /// The channel is of another partition: the sender divides channels differently.
    WrongPartition,
    /// The lane is full, or leads nowhere yet.
    LaneFull,
}

/// The shards. Owned by the control thread.
#[derive(Debug)]
pub(super) struct Shards {
    lanes: Lanes,
    homes: HomeMap,
}

impl Shards {
    /// `lanes` lead nowhere yet.
    pub(super) fn new(lanes: Lanes, homes: HomeMap) -> Self {
        Shards { lanes, homes }
    }

    /// The shards are there: these lanes lead to them.
    pub(super) fn attach(&mut self, lanes: Lanes) {
        self.lanes = lanes;
    }

    /// True once there are shards.
    pub(super) fn are_there(&self) -> bool {
        !self.lanes.is_empty()
    }

    fn home_of(&self, user: &str) -> (ShardId, UserHash) {
        let hash = self.homes.hash(user);
        (self.homes.home(hash), hash)
    }

    /// Tells a shard where a user is.
    pub(super) fn located_at(&mut self, shard: ShardId, user: (UserHash, &str), location: Location) {
        self.lanes.located(shard, user, location);
    }

    /// Tells the home shard of a user where the user is.
    pub(super) fn located(&mut self, user: &str, location: Location) {
        let (home, hash) = self.home_of(user);
        self.lanes.located(home, (hash, user), location);
    }

    /// Tells the home shard of a user that the user may have moved.
    pub(super) fn forget(&mut self, user: &str) {
        if self.are_there() {
            let (home, hash) = self.home_of(user);
            self.lanes.forget(home, (hash, user));
        }
    }

    /// Tells all shards that anybody may have moved.
    pub(super) fn forget_all(&mut self) {
        if self.are_there() {
            for shard in 0..self.homes.shards() {
                self.lanes.push(ShardId(shard), MessageToShard::ForgetAll);
            }
        }
    }

    /// Answers a question about presence. `None`: that could not be learned.
    pub(super) fn answer_presence(&mut self, shard: ShardId, ticket: u32, online: Option<u128>) {
        let item = match online {
            Some(online) => PresenceToShard::Answer {
                ticket,
                online,
                known: u128::MAX,
            },
            None => PresenceToShard::Unknown {
                ticket,
                overloaded: false,
            },
        };
        self.lanes.push(shard, item);
    }

    /// Does not take a question about presence. `overloaded`: too much is asked already.
    pub(super) fn refuse_presence(&mut self, shard: ShardId, ticket: u32, overloaded: bool) {
        self.lanes.push(shard, PresenceToShard::Unknown { ticket, overloaded });
    }

    /// Asks a shard about the users who are there.
    pub(super) fn ask_roster(&mut self, shard: u16, item: RosterToShard) {
        self.lanes.push(ShardId(shard), item);
    }

    /// Asks the home shard of each of these users about those who live there.
    pub(super) fn ask_homes(&mut self, users: &[Arc<str>], item: impl Fn(Vec<(UserHash, Span)>) -> RosterToShard) {
        let mut homes: BTreeMap<ShardId, Vec<(UserHash, &str)>> = BTreeMap::new();
        for user in users {
            let (home, hash) = self.home_of(user);
            homes.entry(home).or_default().push((hash, user));
        }
        for (shard, users) in homes {
            self.lanes.push_users(shard, users.into_iter(), &item);
        }
    }

    /// Hands a message of another gateway to the receiver's home shard. Returns which one that is;
    /// `None` if it takes no more. `index`: of the message in its packet, if the sender wants to
    /// hear.
    pub(super) fn deliver(&mut self, to: &str, body: &[u8], index: Option<u16>, received_ns: u64) -> Option<ShardId> {
        let (home, hash) = self.home_of(to);
        let message = Incoming {
            hash,
            to,
            body,
            index,
            received_ns,
        };
        let taken = self.are_there() && self.lanes.try_from_gateway(home, &message).is_ok();
        taken.then_some(home)
    }

    /// Tells a shard that a packet ends here.
    pub(super) fn packet_ends(&mut self, shard: ShardId, packet: u32) {
        self.lanes.push(shard, MessageToShard::PacketEnd { packet });
    }

    /// Hands a publication of another gateway to the channel's home shard.
    pub(super) fn publish(
        &mut self,
        partition: Partition,
        channel: &str,
        body: &[u8],
        received_ns: u64,
    ) -> Result<(), Undelivered> {
        if self.homes.partition(channel) != partition {
            return Err(Undelivered::WrongPartition);
        }
        // A copy of its own: a slow subscriber must not keep the whole packet.
        let message = Encoded::new(body);
        let publication = OutgoingPublication {
            channel: (self.homes.channel_hash(channel), channel),
            message: &message,
            ack_to: None,
            received_ns,
        };
        let home = self.homes.partition_home(partition);
        if !self.are_there() || self.lanes.try_published(home, &publication).is_err() {
            return Err(Undelivered::LaneFull);
        }
        Ok(())
    }

    /// Tells the home of a partition whether what is published in it comes.
    pub(super) fn partition_subscribed(&mut self, partition: Partition, subscribed: bool) {
        if self.are_there() {
            let home = self.homes.partition_home(partition);
            let item = ChannelToShard::PartitionSubscribed { partition, subscribed };
            self.lanes.push(home, ToShard::from(item));
        }
    }

    /// Tells a sender what became of a message or publication.
    pub(super) fn ack(&mut self, verdict: &Verdict) {
        let ack_to = AckTo {
            shard: verdict.shard,
            conn: verdict.conn,
            client_id: &verdict.client_id,
            message_id: verdict.message_id,
        };
        self.lanes.ack(&ack_to, verdict.status);
    }

    /// Sends what the turn brought.
    pub(super) fn flush(&mut self) {
        self.lanes.flush();
    }

    /// The next shard to wake.
    pub(super) fn poll_wake(&mut self) -> Option<ShardId> {
        self.lanes.poll_wake()
    }
}
