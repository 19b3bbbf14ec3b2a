//! Packets of other gateways: who they are from, whether they count, and where what is in them
//! goes.
//!
//! Pure; owned by the control thread.

use super::core::Cluster;
use super::packet::{Confirm, Packet, PacketError, PacketItem};
use super::partitions::Arrival;
use super::seal::Untrusted;
use super::shards::Undelivered;
use super::store::Channel;
use crate::ids::ShardId;
use crate::lanes::ShardCommand;
use crate::metrics::ClusterDrop;
use crate::router::Partition;
use crate::router::locations::PeerId;
use crate::wire::framing::Encoded;
use crate::wire::json::encode::is_body_of;
use crate::wire::ws::close::CloseReason;

/// The messages of one packet on their way to the shards.
#[derive(Default)]
struct Parts {
    /// The index of the next message.
    next: u16,
    /// Shards that have a message whose sender wants to hear.
    shards: Vec<ShardId>,
    wants_confirm: bool,
    failed: Vec<u16>,
    /// The rest of the packet made no sense.
    broken: bool,
}

/// The name of a packet that nobody hears of.
const NOBODYS: u32 = u32::MAX;

impl Cluster {
    /// A packet came.
    pub(super) fn handle_received(&mut self, channel: &Channel, payload: &[u8]) {
        if !self.is_ours(channel) {
            return;
        }
        let payload = match self.seals.open(channel, payload, self.now.mono_ms()) {
            Ok(payload) => payload,
            Err(why) => return self.not_believed(why),
        };
        let mut packet = match Packet::read(payload) {
            Ok(packet) => packet,
            Err(error) => return self.not_understood(error),
        };
        let own = self.membership.is_own(&packet.origin);
        if own && matches!(channel, Channel::All | Channel::Partition(_)) {
            return;
        }
        if let Channel::Partition(number) = channel {
            return self.handle_publications(Partition(*number), packet);
        }
        let to_us = *channel != Channel::All && !own;
        let from = if to_us && packet.sequence != 0 {
            self.metrics().packets_received.inc();
            let Some(from) = self.hear_of(&packet) else { return };
            if !self.inbound.is_next(packet.origin.incarnation, packet.sequence) {
                self.refuse(from, packet.sequence);
                return;
            }
            Some(from)
        } else {
            None
        };
        // Without a key anybody could make up gateways, and each of them would be remembered.
        if *channel == Channel::All
            && self.seals.seals()
            && packet.sequence != 0
            && !self.inbound.is_next_to_all(packet.origin.incarnation, packet.sequence)
        {
            return self.metrics().dropped(ClusterDrop::PacketLate, 1);
        }
        if from.is_none()
            && let Some(peer) = self.directory.find(packet.origin.incarnation)
        {
            // Whoever says "look" has just subscribed.
            self.directory.heard(peer);
        }
        let mut parts = Parts::default();
        loop {
            match packet.next_item() {
                Ok(Some(item)) => self.handle_packet_item(from, item, &mut parts),
                Ok(None) => break,
                Err(error) => {
                    self.not_understood(error);
                    parts.broken = true;
                    break;
                }
            }
        }
        if let Some(from) = from {
            self.finish_packet(from, packet.sequence, parts);
        }
    }

    /// What another gateway says in a partition: to the home of its channels.
    fn handle_publications(&mut self, partition: Partition, mut packet: Packet<'_>) {
        self.metrics().packets_received.inc();
        let Some(from) = self.hear_of(&packet) else { return };
        match self.partitions.arrive(from, partition, packet.sequence) {
            Arrival::After(missed) => self.metrics().dropped(ClusterDrop::PacketGap, missed.into()),
            Arrival::Late => return self.metrics().dropped(ClusterDrop::PacketLate, 1),
        }
        loop {
            let (channel, body) = match packet.next_item() {
                Ok(Some(PacketItem::Publication { channel, body })) => (channel, body),
                Ok(Some(_)) => {
                    self.metrics().dropped(ClusterDrop::PacketMalformed, 1);
                    continue;
                }
                Ok(None) => return,
                Err(error) => return self.not_understood(error),
            };
            self.metrics().publications_received.inc();
            if !is_body_of("publication", body) {
                self.metrics().dropped(ClusterDrop::PublicationBadFrame, 1);
                continue;
            }
            match self.shards.publish(partition, channel, body, self.now.mono_ns) {
                Ok(()) => {}
                Err(Undelivered::WrongPartition) => self.metrics().dropped(ClusterDrop::PacketMalformed, 1),
                Err(Undelivered::LaneFull) => self.metrics().dropped(ClusterDrop::PublicationLaneFull, 1),
            }
        }
    }

    /// The gateway that a packet is from. One that is only heard of should be in the directory;
    /// where too many are, the packet is dropped.
    fn hear_of(&mut self, packet: &Packet<'_>) -> Option<PeerId> {
        let from = self.directory.hear_of(packet.origin.id, packet.origin.incarnation);
        if from.is_none() {
            self.metrics().dropped(ClusterDrop::PacketUnknownGateway, 1);
            self.directory.look_soon();
        }
        from
    }

    fn not_believed(&mut self, why: Untrusted) {
        let drop = match why {
            Untrusted::Unsealed => ClusterDrop::PacketUnsealed,
            Untrusted::NoKey => ClusterDrop::PacketNoKey,
            Untrusted::WrongTag => ClusterDrop::PacketWrongTag,
        };
        self.metrics().dropped(drop, 1);
    }

    /// True if this channel is one that we want to hear.
    fn is_ours(&self, channel: &Channel) -> bool {
        match channel {
            Channel::All => true,
            Channel::Gateway(..) => self.subscriptions.is_own(channel),
            Channel::Partition(number) => self.partitions.is_listened(Partition(*number)),
        }
    }

    fn not_understood(&mut self, error: PacketError) {
        log::debug!("a packet was not understood: {error}");
        let drop = match error {
            PacketError::Version(_) => ClusterDrop::PacketVersion,
            PacketError::Malformed => ClusterDrop::PacketMalformed,
        };
        self.metrics().dropped(drop, 1);
    }

    fn refuse(&mut self, from: PeerId, sequence: u32) {
        self.metrics().dropped(ClusterDrop::PacketLate, 1);
        let confirm = Confirm {
            sequence,
            refused: true,
            ..Confirm::default()
        };
        self.outbound.confirm(self.membership.origin(), from, &confirm);
    }

    fn handle_packet_item(&mut self, from: Option<PeerId>, item: PacketItem<'_>, parts: &mut Parts) {
        match (item, from) {
            (
                PacketItem::Message {
                    to,
                    body,
                    wants_confirm,
                },
                Some(_),
            ) => self.handle_message(to, body, wants_confirm, parts),
            (PacketItem::Confirm(confirm), Some(from)) => self.outbound.handle_confirm(from, &confirm),
            (PacketItem::Broadcast { body }, _) if !is_body_of("broadcast", body) => {
                self.metrics().dropped(ClusterDrop::OrderBadFrame, 1);
            }
            (PacketItem::Broadcast { body }, _) => {
                self.commands.received(ShardCommand::Broadcast(Encoded::new(body)));
            }
            (PacketItem::CloseUser { user, code }, _) => {
                let reason = CloseReason::by_order(code).unwrap_or(CloseReason::Administrator);
                let user = user.into();
                self.commands.received(ShardCommand::CloseUser { user, reason });
            }
            (PacketItem::EndSubscription { user, channel }, _) => {
                let (user, channel) = (user.into(), channel.into());
                self.commands.received(ShardCommand::EndSubscription { user, channel });
            }
            (PacketItem::Probe { nonce }, None) => {
                if let Some(took_ns) = self.probe.handle_back(nonce, self.now) {
                    self.metrics().probe_ns.set(took_ns);
                }
            }
            (PacketItem::Look, _) => self.directory.look_soon(),
            (PacketItem::Challenge, _) => self.membership.challenged(),
            // Messages and their fates come with a sequence number.
            // So do publications, in partitions.
            (PacketItem::Message { .. } | PacketItem::Confirm(_), None)
            | (PacketItem::Probe { .. }, Some(_))
            | (PacketItem::Publication { .. }, _) => {
                self.metrics().dropped(ClusterDrop::PacketMalformed, 1);
            }
        }
    }

    fn handle_message(&mut self, to: &str, body: &[u8], wants_confirm: bool, parts: &mut Parts) {
        self.metrics().messages_received.inc();
        let index = parts.next;
        let Some(next) = index.checked_add(1) else {
            parts.broken = true;
            return;
        };
        parts.next = next;
        parts.wants_confirm |= wants_confirm;
        if !is_body_of("message", body) {
            self.metrics().dropped(ClusterDrop::MessageBadFrame, 1);
            parts.failed.push(index);
            return;
        }
        let told = wants_confirm.then_some(index);
        match self.shards.deliver(to, body, told, self.now.mono_ns) {
            None => {
                self.metrics().dropped(ClusterDrop::MessageLaneFull, 1);
                parts.failed.push(index);
            }
            Some(home) if wants_confirm && !parts.shards.contains(&home) => parts.shards.push(home),
            Some(_) => {}
        }
    }

    /// All messages are with their shards: when those have answered, the other gateway is to hear
    /// what was missed.
    fn finish_packet(&mut self, from: PeerId, sequence: u32, parts: Parts) {
        if !parts.wants_confirm {
            return;
        }
        let confirm = Confirm {
            sequence,
            refused: false,
            missed: Vec::new(),
            failed: parts.failed,
        };
        // Where it cannot be said what became of all, nothing is said, and the senders hear
        // `failed` in time.
        if parts.shards.is_empty() && !parts.broken {
            return self.outbound.confirm(self.membership.origin(), from, &confirm);
        }
        let open = if parts.broken {
            None
        } else {
            self.inbound.open(from, parts.shards.len() as u16, confirm)
        };
        if open.is_none() && !parts.broken {
            self.metrics().dropped(ClusterDrop::PacketInboxFull, 1);
        }
        let packet = open.unwrap_or(NOBODYS);
        for shard in parts.shards {
            self.shards.packet_ends(shard, packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::core::Identity;
    use super::super::packet::{Origin, PacketBuilder};
    use super::super::seal::Keyring;
    use super::super::store::{Incarnation, StoreEvent};
    use super::*;
    use crate::lanes;
    use crate::router::HomeMap;
    use crate::shared::{Now, Shared};

    /// One that heard a packet to all from each of so many gateways.
    fn after_orders_of(gateways: u64, keys: &[&str]) -> Cluster {
        let depths = lanes::inboxes(1).depths;
        let shared = Arc::new(Shared::new("gw".into(), true, "model", vec![None], depths));
        let identity = Identity {
            id: "gw".into(),
            seed: 1,
            ttl_ms: 9_000,
        };
        let now = Now {
            mono_ns: 0,
            wall_ms: 1_700_000_000_000,
        };
        let keyring = || Keyring::new(keys.iter().copied(), "p:");
        let mut cluster = Cluster::new(&identity, HomeMap::new(1, [7; 16]), shared, now).with_keyring(keyring());
        for n in 1..=gateways {
            let mut packet = PacketBuilder::default();
            let origin = Origin {
                id: "other",
                incarnation: Incarnation(n),
            };
            packet.close_user(origin, "bob", 3503);
            let packet = keyring().seal(&Channel::All, packet.close(7));
            cluster.handle_event(StoreEvent::Received(Channel::All, packet));
        }
        cluster
    }

    #[test]
    fn without_a_key_numbers_of_orders_are_not_remembered() {
        let cluster = after_orders_of(5_000, &[]);
        assert_eq!(cluster.commands.waiting(), 5_000);
        assert_eq!(cluster.inbound.senders_to_all(), 0);
        let cluster = after_orders_of(3, &["a secret of the whole cluster"]);
        assert_eq!((cluster.commands.waiting(), cluster.inbound.senders_to_all()), (3, 3));
    }
}
