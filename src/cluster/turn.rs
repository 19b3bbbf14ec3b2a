//! The end of a turn: what came of it goes out, and time that has passed has its effect.

use std::sync::Arc;

use super::audit::Look;
use super::membership::Standing;
use super::outbound::Lost;
use super::packet::PacketBuilder;
use super::partitions::Listen;
use super::presence::{Step, Sweep};
use super::store::{Channel, LeaseState, Op, Task};
use super::{Cluster, Purpose, SLOW_MS, Subscription};
use crate::ids::ShardId;
use crate::lanes::{AckTo, ChannelToShard, Location, PresenceToShard, RosterToShard, ShardCommand};
use crate::metrics::ClusterDrop;
use crate::router::Partition;
use crate::shared::ClusterHealth;

/// The directory is not read more often than this, however many packets give a reason to.
const DIRECTORY_REST_MS: u64 = 20;
/// How long a claim to sweep lasts.
const SWEEP_CLAIM_MS: u64 = 60_000;

impl Cluster {
    /// Ends a turn: what came of it goes out, time that has passed has its effect.
    pub fn end_turn(&mut self) {
        let now_ms = self.now.mono_ms();
        // The lease is given back: nothing that follows may take it again.
        if self.connected && !self.finished {
            self.ask_membership(now_ms);
            self.ask_directory(now_ms);
            self.write_presence(now_ms);
            self.ask_places();
            self.send_packets(now_ms);
            self.send_publications();
            self.send_orders();
            self.send_probe();
            self.sweep(now_ms);
        }
        let unconfirmed = self.outbound.handle_timeouts(now_ms);
        self.metrics().dropped(ClusterDrop::PacketUnconfirmed, unconfirmed);
        self.partitions.handle_timeouts(now_ms);
        self.judge_health(now_ms);
        self.follow_partitions();
        self.tell_presence();
        self.tell_verdicts();
        let metrics = self.metrics();
        metrics.gateways.set(self.directory.len() as u64);
        metrics.presence_pending.set(self.book.pending() as u64);
        metrics
            .acks_waiting
            .set((self.outbound.waiting() + self.partitions.waiting()) as u64);
        metrics.lookups.set(self.lookups.names() as u64);
        metrics.partitions_heard.set(self.partitions.heard() as u64);
        // A probe that takes longer than the last one did is shown before it is back.
        if let Some(ns) = self
            .probe
            .under_way_ns(self.now)
            .filter(|ns| *ns > metrics.probe_ns.get())
        {
            metrics.probe_ns.set(ns);
        }
        self.lanes.flush();
    }

    fn ask_membership(&mut self, now_ms: u64) {
        if self.membership.state() == LeaseState::Syncing && self.book.is_written() {
            self.membership.set_state(LeaseState::Synced);
        }
        if let Some(mut ops) = self.membership.poll_ops(now_ms) {
            for op in &mut ops {
                // The question whether somebody lives who has our id.
                if let Op::Publish { channel, payload } = op {
                    *payload = self.keyring.seal(channel, payload.to_vec());
                }
            }
            self.request(Purpose::Membership, ops);
        }
        self.look |= self.membership.poll_announcement();
        self.follow_membership();
    }

    /// Hears the channel of this incarnation, and no other; is a member once it does.
    pub(super) fn follow_membership(&mut self) {
        let standing = self.membership.standing();
        if standing.has_lease() {
            let channel = self.membership.channel();
            if self.channel.as_ref() != Some(&channel) {
                self.inbound.begin_channel();
                if let Some(old) = self.channel.replace(channel.clone()) {
                    self.heard.retain(|heard| *heard != old);
                    self.subscriptions.push_back(Subscription::End(old));
                } else {
                    self.subscriptions.push_back(Subscription::Begin(Channel::All));
                }
                self.subscriptions.push_back(Subscription::Begin(channel));
            }
        }
        let heard = |channel: &Option<Channel>| channel.as_ref().is_some_and(|c| self.heard.contains(c));
        let hears_all = heard(&self.channel) && self.heard.contains(&Channel::All);
        if standing == Standing::Entering && hears_all {
            self.membership.subscribed(self.now.mono_ms());
            self.was_member = true;
            self.probe.restart();
            // Whoever found us deaf may try again.
            self.look = true;
        } else if standing == Standing::Member && !hears_all {
            self.membership.unsubscribed();
        }
    }

    fn ask_directory(&mut self, now_ms: u64) {
        let entered = self.membership.standing().has_lease();
        if entered && !self.directory_asked && now_ms >= self.directory_due_ms.max(self.directory_rest_ms) {
            self.directory_asked = true;
            self.directory_rest_ms = now_ms + DIRECTORY_REST_MS;
            self.deferred_asked.append(&mut self.deferred);
            self.directory_due_ms = now_ms + self.times.directory_ms;
            self.request(Purpose::Directory, vec![Op::ReadDirectory]);
        }
    }

    fn write_presence(&mut self, now_ms: u64) {
        if !self.membership.standing().has_lease() {
            return;
        }
        if !self.leaving && !self.lanes.is_empty() {
            match self.book.poll_step(now_ms) {
                Some(Step::List {
                    round,
                    shard,
                    from,
                    count,
                }) => {
                    self.lanes
                        .push(ShardId(shard), RosterToShard::List { round, from, count });
                }
                Some(Step::Check(users)) => self.check_users(&users),
                Some(Step::Scan { round, cursor }) => {
                    let owner = self.membership.incarnation();
                    self.request(Purpose::IndexScan(round), vec![Op::IndexScan { owner, cursor }]);
                }
                None => {}
            }
        }
        if let Some(ops) = self.book.poll_ops(now_ms) {
            self.request(Purpose::Presence, ops);
        }
        self.look_for_lost(now_ms);
    }

    pub(super) fn may_audit(&self) -> bool {
        !self.leaving && !self.lanes.is_empty() && self.book.is_settled()
    }

    /// Asks the shards for users of whom something may be missing in the store.
    fn look_for_lost(&mut self, now_ms: u64) {
        if !self.may_audit() {
            return;
        }
        let round = self.book.round();
        while let Some(look) = self.audit.poll_look(now_ms) {
            match look {
                Look::Places { shard, from, count } => {
                    self.lanes
                        .push(ShardId(shard), RosterToShard::ReviewPage { round, from, count });
                }
                Look::Names(users) => {
                    self.send_to_homes(&users, |users| RosterToShard::ReviewUsers { round, users });
                }
            }
        }
    }

    fn ask_places(&mut self) {
        self.ask_inquiries();
        while let Some(users) = self.lookups.poll_names() {
            let ops = users.iter().map(|user| Op::Locate { user: Arc::clone(user) }).collect();
            self.request(Purpose::Locate(users), ops);
        }
    }

    /// Questions whose last name was looked up.
    fn tell_presence(&mut self) {
        while let Some(answer) = self.lookups.poll_answer() {
            let ticket = answer.ticket;
            let item = match answer.online {
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
            self.lanes.push(answer.shard, item);
        }
    }

    fn send_packets(&mut self, now_ms: u64) {
        while let Some(packet) = self.outbound.poll_packet(now_ms) {
            let Some((id, incarnation)) = self.directory.name(packet.peer) else {
                // It was taken out of the directory after the shard had asked, or had sent what is answered now.
                self.metrics()
                    .dropped(ClusterDrop::MessageGatewayGone, packet.messages.into());
                self.outbound
                    .handle_published(packet.peer, packet.sequence, Err(Lost::Dead));
                let unsent = self.outbound.gone(packet.peer);
                self.metrics().dropped(ClusterDrop::MessageGatewayGone, unsent);
                continue;
            };
            self.metrics().packets_sent.inc();
            self.metrics().messages_sent.add(packet.messages.into());
            let purpose = Purpose::Packet {
                peer: packet.peer,
                sequence: packet.sequence,
                messages: packet.messages,
            };
            let channel = Channel::Gateway(id, incarnation);
            let payload = self.keyring.seal(&channel, packet.payload);
            self.request(purpose, vec![Op::Publish { channel, payload }]);
        }
    }

    fn send_publications(&mut self) {
        while let Some(packet) = self.partitions.poll_packet() {
            self.metrics().packets_sent.inc();
            self.metrics().publications_sent.add(packet.publications.into());
            let purpose = Purpose::Publications {
                partition: packet.partition,
                sequence: packet.sequence,
                publications: packet.publications,
            };
            let channel = Channel::Partition(packet.partition.0);
            let payload = self.keyring.seal(&channel, packet.payload);
            self.request(purpose, vec![Op::Publish { channel, payload }]);
        }
    }

    /// Hears the partitions that shards want; tells their homes.
    fn follow_partitions(&mut self) {
        let mut given_up = 0;
        while let Some(change) = self.partitions.poll_listen() {
            let (partition, subscribed) = match change {
                Listen::Begin(Partition(number)) => {
                    self.subscriptions
                        .push_back(Subscription::Begin(Channel::Partition(number)));
                    continue;
                }
                Listen::End(Partition(number)) => {
                    self.subscriptions
                        .push_back(Subscription::End(Channel::Partition(number)));
                    continue;
                }
                Listen::Tell(partition, subscribed) => (partition, subscribed),
                Listen::GiveUp(partition) => {
                    given_up += 1;
                    (partition, true)
                }
            };
            if !self.lanes.is_empty() {
                let home = self.homes.partition_home(partition);
                self.lanes
                    .push(home, ChannelToShard::PartitionSubscribed { partition, subscribed });
            }
        }
        if given_up > 0 {
            log::warn!("Redis has not confirmed in time that {given_up} partitions of channels are heard");
            self.metrics().dropped(ClusterDrop::SubscriptionUnheard, given_up);
        }
    }

    fn send_orders(&mut self) {
        if !self.is_member() || (self.orders.is_empty() && !self.look) {
            return;
        }
        let mut packet = PacketBuilder::default();
        let origin = self.membership.origin();
        if std::mem::take(&mut self.look) {
            packet.look(origin);
        }
        let orders = std::mem::take(&mut self.orders);
        let (mut packets, mut count) = (Vec::new(), 0);
        for order in &orders {
            match order {
                ShardCommand::Broadcast(frame) => packet.broadcast(origin, frame),
                ShardCommand::CloseUser { user, reason } => packet.close_user(origin, user, reason.code()),
                ShardCommand::EndSubscription { user, channel } => {
                    // What came before it goes before it.
                    packets.push((std::mem::take(&mut packet), std::mem::take(&mut count)));
                    packet.end_subscription(origin, user, channel);
                    packets.push((std::mem::take(&mut packet), 1));
                    continue;
                }
            }
            count += 1;
        }
        packets.push((packet, count));
        for (packet, orders) in packets.into_iter().filter(|(packet, _)| !packet.is_empty()) {
            if self.keyring.seals() {
                // 0 is for packets without a number.
                self.orders_sequence = self.orders_sequence.wrapping_add(1).max(1);
            }
            let channel = Channel::All;
            let payload = self.keyring.seal(&channel, packet.close(self.orders_sequence));
            let op = Op::Publish { channel, payload };
            self.request(Purpose::Orders(orders), vec![op]);
        }
    }

    fn send_probe(&mut self) {
        if !self.is_member() {
            return;
        }
        if self.probe.handle_timeout(self.now) {
            self.doubt_subscription();
        } else if let Some(nonce) = self.probe.poll(self.now) {
            let mut packet = PacketBuilder::default();
            packet.probe(self.membership.origin(), nonce);
            let channel = self.membership.channel();
            let payload = self.keyring.seal(&channel, packet.close(0));
            let op = Op::Publish { channel, payload };
            self.request(Purpose::Probe, vec![op]);
        }
    }

    /// The subscription seems to be there, but nothing comes: the store makes its connections anew, at its own pace.
    pub(super) fn doubt_subscription(&mut self) {
        if let Some(channel) = self.channel.as_ref().filter(|channel| self.heard.contains(channel)) {
            self.subscriptions.push_back(Subscription::Renew(channel.clone()));
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        if self.sweep.is_none() {
            self.choose_sweep();
        }
        if let Some(op) = self.sweep.as_mut().and_then(|sweep| sweep.poll_scan(now_ms)) {
            self.request(Purpose::SweepScan, vec![op]);
        }
    }

    /// What to sweep next: our own when we leave, else what is left of our past, else a dead gateway's.
    fn choose_sweep(&mut self) {
        let me = self.membership.incarnation();
        if self.leaving {
            // When everybody knows that it does not count, and the index is whole.
            if !self.left && self.membership.has_left() && self.book.is_idle() {
                self.sweep = Some(Sweep::new(me));
            }
        } else if self.claiming || !self.is_member() {
            // Not now.
        } else if let Some(target) = self.past.pop() {
            self.sweep = Some(Sweep::new(target));
        } else if let Some(target) = self.to_sweep.pop() {
            let op = Op::Claim {
                task: Task::Sweep(target),
                by: me,
                ttl_ms: SWEEP_CLAIM_MS,
            };
            self.claiming = true;
            self.request(Purpose::SweepClaim(target), vec![op]);
        }
    }

    fn judge_health(&mut self, now_ms: u64) {
        let before = self.shared.cluster.health();
        let refused = self.book.refused().cloned();
        let slow = self
            .sent
            .first_key_value()
            .is_some_and(|(_, (_, sent_ms))| now_ms >= sent_ms + SLOW_MS);
        let mut health = match self.membership.standing() {
            _ if !self.connected && self.was_member => ClusterHealth::Unreachable,
            Standing::Away | Standing::Joining => ClusterHealth::Joining,
            Standing::IdTaken => ClusterHealth::IdTaken,
            Standing::Entering if self.was_member => ClusterHealth::Deaf,
            Standing::Entering => ClusterHealth::Joining,
            Standing::Member if slow => ClusterHealth::Slow,
            Standing::Member if self.probe.is_lost() => ClusterHealth::ProbeLost,
            Standing::Member if refused.is_some() => ClusterHealth::Refusing,
            Standing::Member if self.partitions.deaf() > 0 => ClusterHealth::HalfDeaf,
            Standing::Member => ClusterHealth::Member,
        };
        if health.is_up() && !before.is_up() {
            self.partitions.redis_back(now_ms);
            if health == ClusterHealth::HalfDeaf {
                // They have their time again.
                health = ClusterHealth::Member;
            }
        }
        let words = match health {
            ClusterHealth::Refusing => refused,
            ClusterHealth::Unreachable | ClusterHealth::Joining | ClusterHealth::Deaf | ClusterHealth::HalfDeaf => {
                self.trouble.clone()
            }
            _ => None,
        };
        self.shared.cluster.set_health(health, words.as_deref());
        if before.is_up() && !health.is_up() {
            self.fail_everything();
        }
        if before != health {
            match self.shared.cluster.trouble() {
                Some(trouble) => log::warn!("{trouble}"),
                None => log::info!("one of {} gateways", self.directory.len() + 1),
            }
        }
    }

    /// Nobody shall wait for a Redis that does not answer.
    pub(super) fn fail_everything(&mut self) {
        let unsent = self.outbound.redis_away();
        self.metrics().dropped(ClusterDrop::MessageRedisAway, unsent);
        let unsent = self.partitions.redis_away();
        self.metrics().dropped(ClusterDrop::PublicationRedisAway, unsent);
        // What was meant for now must not happen at some later time.
        let orders = std::mem::take(&mut self.orders).len() as u64;
        self.metrics().dropped(ClusterDrop::OrderRedisAway, orders);
        let mut given_up: Vec<Purpose> = std::mem::take(&mut self.deferred)
            .into_iter()
            .chain(std::mem::take(&mut self.deferred_asked))
            .map(|(purpose, _)| purpose)
            .collect();
        // A late answer must not pass for one to the same question asked again: what it says may have changed since, and
        // the store has told so already.
        for (purpose, _) in self.sent.values_mut() {
            if matches!(
                purpose,
                Purpose::Locate(_) | Purpose::Inquiry(_) | Purpose::Packet { .. } | Purpose::Publications { .. }
            ) {
                given_up.push(std::mem::replace(purpose, Purpose::Abandoned));
            }
        }
        let inquiries: Vec<u32> = given_up
            .iter()
            .filter_map(|purpose| match purpose {
                Purpose::Inquiry(ticket) => Some(*ticket),
                _ => None,
            })
            .collect();
        self.give_up_inquiries(inquiries.into_iter());
        let publications = given_up.iter().map(|purpose| match purpose {
            Purpose::Publications { publications, .. } => u64::from(*publications),
            _ => 0,
        });
        self.metrics()
            .dropped(ClusterDrop::PublicationFailed, publications.sum());
        for user in self.lookups.give_up() {
            self.tell_location(&user, Location::Unknown);
        }
    }

    pub(super) fn tell_location(&mut self, user: &str, location: Location) {
        let hash = self.homes.hash(user);
        self.lanes.located(self.homes.home(hash), (hash, user), location);
    }

    fn tell_verdicts(&mut self) {
        for verdict in self.outbound.poll_verdicts().chain(self.partitions.poll_verdicts()) {
            let ack_to = AckTo {
                shard: verdict.shard,
                conn: verdict.conn,
                client_id: &verdict.client_id,
                message_id: verdict.message_id,
            };
            self.lanes.ack(&ack_to, verdict.status);
        }
    }

    pub(super) fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let shards = if self.lanes.is_empty() { 0 } else { self.homes.shards() };
        (0..shards).map(ShardId)
    }
}
