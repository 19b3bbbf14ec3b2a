//! What shards say: messages and publications for other gateways, questions, and who is here.
//!
//! Pure; owned by the control thread.

use std::sync::Arc;

use super::audit::Audit;
use super::core::Cluster;
use super::lookups::Asker;
use super::requests::Purpose;
use crate::lanes::{
    AckTo, Batch, ChannelToControl, Location, MessageToControl, PresenceQuery, PresenceToControl, ToCluster, ToControl,
};
use crate::metrics::ClusterDrop;
use crate::router::Partition;

impl Cluster {
    /// What a shard says. `batch`: what the item came in.
    pub fn handle_mail(&mut self, batch: &Batch<ToControl>, mail: ToCluster) {
        match mail {
            ToCluster::Message(mail) => self.handle_message_mail(batch, mail),
            ToCluster::Presence(mail) => self.handle_presence_mail(batch, mail),
            ToCluster::Channel(mail) => self.handle_channel_mail(batch, mail),
        }
    }

    fn handle_message_mail(&mut self, batch: &Batch<ToControl>, mail: MessageToControl) {
        match mail {
            MessageToControl::Route(route) => {
                let ack_to = route.ack_to.as_ref().map(|(shard, ack)| batch.ack_to(*shard, ack));
                // The shard did not know yet.
                if !self.is_up() {
                    self.metrics().dropped(ClusterDrop::MessageRedisAway, 1);
                    return self.outbound.fail(ack_to);
                }
                let sent = self.outbound.message(
                    self.membership.origin(),
                    route.peers.as_slice(),
                    batch.text(route.to),
                    batch.bytes(route.body),
                    ack_to,
                );
                if sent.is_err() {
                    self.metrics().dropped(ClusterDrop::MessageGatewayFull, 1);
                }
            }
            MessageToControl::Locate { hash, user } => {
                let user = batch.text(user);
                if !self.is_up() {
                    self.shards.located_at(batch.from, (hash, user), Location::Unknown);
                } else {
                    self.lookups.locate(user);
                }
            }
            MessageToControl::PacketDone { packet, missed } => {
                if let Some((peer, confirm)) = self.inbound.handle_done(packet, &missed) {
                    self.outbound.confirm(self.membership.origin(), peer, &confirm);
                }
            }
        }
    }

    fn handle_presence_mail(&mut self, batch: &Batch<ToControl>, mail: PresenceToControl) {
        match mail {
            PresenceToControl::Query(PresenceQuery { ticket, asker, users }) => {
                let up = self.is_up();
                let asker = Asker {
                    shard: batch.from,
                    ticket,
                    user: asker.0,
                };
                let names = users.iter().map(|(index, _, user)| (*index, batch.text(*user)));
                if !up || self.lookups.ask(asker, names).is_err() {
                    self.shards.refuse_presence(batch.from, ticket, up);
                }
            }
            // Without Redis, and when we leave, nothing is written; afterwards everything is
            // written again.
            PresenceToControl::Changed { user, connections } => {
                if self.is_connected() && !self.membership.is_leaving() {
                    self.presence.set(batch.text(user), connections);
                }
            }
            PresenceToControl::Lost => self.presence.lost(self.now.mono_ms()),
            PresenceToControl::Listed { round, next } => self.presence.handle_listed(round, batch.from.0, next),
            PresenceToControl::Reviewed { round, page, users } => {
                let users = users.iter().map(|(user, count)| (batch.text(*user).into(), *count));
                self.handle_reviewed(round, page, users.collect());
            }
        }
    }

    fn handle_channel_mail(&mut self, batch: &Batch<ToControl>, mail: ChannelToControl) {
        match mail {
            ChannelToControl::PartitionWanted { partition, wanted } => {
                self.partitions.want(partition, wanted, self.now.mono_ms());
            }
            ChannelToControl::Forward(item) => {
                let ack_to = item.ack_to.as_ref().map(|(shard, ack)| batch.ack_to(*shard, ack));
                self.publish(item.partition, (batch.text(item.channel), item.message.body()), ack_to);
            }
        }
    }

    fn publish(&mut self, partition: Partition, publication: (&str, &[u8]), ack_to: Option<AckTo<'_>>) {
        // The shard did not know yet.
        if !self.is_up() {
            self.metrics().dropped(ClusterDrop::PublicationRedisAway, 1);
            return self.partitions.fail(ack_to);
        }
        let origin = self.membership.origin();
        if self.partitions.publish(origin, partition, publication, ack_to).is_err() {
            self.metrics().dropped(ClusterDrop::PublicationRedisSlow, 1);
        }
    }

    /// Users who are here, as a shard has just said: what is missing of them is written. This goes
    /// out before what shards said later, so nobody who has left since is written for good.
    fn handle_reviewed(&mut self, round: u32, page: Option<Option<u32>>, users: Vec<(Arc<str>, u32)>) {
        if let Some(next) = page {
            let all = self.shared.shards.iter().map(|shard| shard.users.get()).sum();
            self.audit.handle_looked(next, users.len(), all, self.now.mono_ms());
        }
        let current = round == self.presence.round() && self.may_audit();
        if !current || users.is_empty() || !self.is_connected() || !self.membership.standing().has_lease() {
            return;
        }
        let ops = Audit::keep(self.membership.incarnation(), users);
        self.request(Purpose::Audit, ops);
    }
}
