//! The end of a turn: what came of it goes out, and time that has passed has its effect.
//!
//! Pure; owned by the control thread.

use bytes::Bytes;

use super::audit::Look;
use super::core::Cluster;
use super::membership::Standing;
use super::outbound::Lost;
use super::packet::{PacketBuilder, for_older_gateways};
use super::partitions::Listen;
use super::presence::Step;
use super::requests::Purpose;
use super::store::{Channel, LeaseState, Op};
use super::subscriptions::Subscription;
use super::sweeps::{May, SweepStep};
use crate::lanes::RosterToShard;
use crate::metrics::ClusterDrop;
use crate::router::Partition;
use crate::shared::ClusterHealth;

impl Cluster {
    /// Ends a turn: what came of it goes out, time that has passed has its effect.
    pub fn end_turn(&mut self) {
        let now_ms = self.now.mono_ms();
        // The lease is given back: nothing that follows may take it again.
        if self.is_connected() && !self.membership.is_finished() {
            self.ask_membership(now_ms);
            self.ask_directory(now_ms);
            self.write_presence(now_ms);
            self.ask_locations();
            self.send_packets(now_ms);
            self.send_publications();
            self.send_commands();
            self.send_probe();
            self.sweep(now_ms);
        }
        let unconfirmed = self.outbound.handle_timeouts(now_ms);
        self.metrics().dropped(ClusterDrop::PacketUnconfirmed, unconfirmed);
        self.partitions.handle_timeouts(now_ms);
        self.judge_health(now_ms);
        self.follow_partitions();
        self.answer_questions();
        self.send_verdicts();
        let metrics = self.metrics();
        metrics.gateways.set(self.directory.len() as u64);
        metrics.presence_pending.set(self.presence.pending() as u64);
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
        self.shards.flush();
    }

    fn ask_membership(&mut self, now_ms: u64) {
        if self.membership.state() == LeaseState::Syncing && self.presence.is_written() {
            self.membership.set_state(LeaseState::Synced);
        }
        if let Some(mut ops) = self.membership.poll_ops(now_ms) {
            for op in &mut ops {
                // The question whether somebody lives who has our id.
                if let Op::Publish { channel, payload } = op {
                    *payload = self.seals.seal(channel, payload.to_vec());
                }
            }
            self.request(Purpose::Membership, ops);
        }
        if self.membership.poll_announcement() {
            self.commands.announce();
        }
        self.follow_membership();
    }

    fn ask_directory(&mut self, now_ms: u64) {
        let entered = self.membership.standing().has_lease();
        if entered && self.directory.poll_read(now_ms, self.membership.directory_ms()) {
            self.deferred.reading_begins();
            self.request(Purpose::Directory, vec![Op::ReadDirectory]);
        }
    }

    fn write_presence(&mut self, now_ms: u64) {
        if !self.membership.standing().has_lease() {
            return;
        }
        if !self.membership.is_leaving() && self.shards.are_there() {
            match self.presence.poll_step(now_ms) {
                Some(Step::List {
                    round,
                    shard,
                    from,
                    count,
                }) => {
                    self.shards
                        .ask_roster(shard, RosterToShard::List { round, from, count });
                }
                Some(Step::Check(users)) => self.check_users(&users),
                Some(Step::Scan { round, cursor }) => {
                    let owner = self.membership.incarnation();
                    self.request(Purpose::IndexScan(round), vec![Op::IndexScan { owner, cursor }]);
                }
                None => {}
            }
        }
        if let Some(ops) = self.presence.poll_ops(now_ms) {
            self.request(Purpose::Presence, ops);
        }
        self.look_for_lost(now_ms);
    }

    /// Asks the shards for users of whom something may be missing in the store.
    fn look_for_lost(&mut self, now_ms: u64) {
        if !self.may_audit() {
            return;
        }
        let round = self.presence.round();
        while let Some(look) = self.audit.poll_look(now_ms) {
            match look {
                Look::Places { shard, from, count } => {
                    self.shards
                        .ask_roster(shard, RosterToShard::ReviewPage { round, from, count });
                }
                Look::Names(users) => {
                    self.shards
                        .ask_homes(&users, |users| RosterToShard::ReviewUsers { round, users });
                }
            }
        }
    }

    fn ask_locations(&mut self) {
        for (ticket, user) in self.inquiries.take() {
            self.request(Purpose::Inquiry(ticket), vec![Op::Locate { user }]);
        }
        while let Some(users) = self.lookups.poll_names() {
            let ops = users.iter().map(|user| Op::Locate { user: user.clone() }).collect();
            self.request(Purpose::Locate(users), ops);
        }
    }

    /// Questions whose last name was looked up.
    fn answer_questions(&mut self) {
        while let Some(answer) = self.lookups.poll_answer() {
            self.shards.answer_presence(answer.shard, answer.ticket, answer.online);
        }
    }

    fn send_packets(&mut self, now_ms: u64) {
        while let Some(packet) = self.outbound.poll_packet(now_ms) {
            let Some((id, incarnation)) = self.directory.name(packet.peer) else {
                // It was taken out of the directory after the shard had asked, or had sent what is
                // answered now.
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
            let payload = self.payload(&channel, packet.payload, self.directory.reads_bodies(packet.peer));
            self.request(purpose, vec![Op::Publish { channel, payload }]);
        }
    }

    /// A packet as the gateways read it that hear this channel.
    fn payload(&self, channel: &Channel, packet: Vec<u8>, all_read_bodies: bool) -> Bytes {
        let packet = match all_read_bodies {
            true => packet,
            false => for_older_gateways(packet),
        };
        self.seals.seal(channel, packet)
    }

    fn send_publications(&mut self) {
        let all_read_bodies = self.directory.all_read_bodies(self.now.mono_ms());
        while let Some(packet) = self.partitions.poll_packet() {
            self.metrics().packets_sent.inc();
            self.metrics().publications_sent.add(packet.publications.into());
            let purpose = Purpose::Publications {
                partition: packet.partition,
                sequence: packet.sequence,
                publications: packet.publications,
            };
            let channel = Channel::Partition(packet.partition.0);
            let payload = self.payload(&channel, packet.payload, all_read_bodies);
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
                        .change(Subscription::Begin(Channel::Partition(number)));
                    continue;
                }
                Listen::End(Partition(number)) => {
                    self.subscriptions.change(Subscription::End(Channel::Partition(number)));
                    continue;
                }
                Listen::Tell(partition, subscribed) => (partition, subscribed),
                Listen::GiveUp(partition) => {
                    given_up += 1;
                    (partition, true)
                }
            };
            self.shards.partition_subscribed(partition, subscribed);
        }
        if given_up > 0 {
            log::warn!("Redis has not confirmed in time that {given_up} partitions of channels are heard");
            self.metrics().dropped(ClusterDrop::SubscriptionUnheard, given_up);
        }
    }

    fn send_commands(&mut self) {
        if !self.is_member() {
            return;
        }
        let packets = self.commands.take_packets(self.membership.origin(), self.seals.seals());
        let all_read_bodies = self.directory.all_read_bodies(self.now.mono_ms());
        for packet in packets {
            let channel = Channel::All;
            let payload = self.payload(&channel, packet.payload, all_read_bodies);
            let op = Op::Publish { channel, payload };
            self.request(Purpose::Commands(packet.commands), vec![op]);
        }
    }

    fn send_probe(&mut self) {
        if !self.is_member() {
            return;
        }
        if self.probe.handle_timeout(self.now) {
            self.subscriptions.doubt();
        } else if let Some(nonce) = self.probe.poll(self.now) {
            let mut packet = PacketBuilder::default();
            packet.probe(self.membership.origin(), nonce);
            let channel = self.membership.channel();
            let payload = self.seals.seal(&channel, packet.close(0));
            let op = Op::Publish { channel, payload };
            self.request(Purpose::Probe, vec![op]);
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        let may = if self.membership.is_leaving() {
            // When everybody knows that it does not count, and the index is whole.
            match self.membership.has_left() && self.presence.is_idle() {
                true => May::Own,
                false => May::NotYet,
            }
        } else if self.is_member() {
            May::Others
        } else {
            May::Nothing
        };
        match self.sweeps.poll(self.membership.incarnation(), may, now_ms) {
            Some(SweepStep::Claim(target, op)) => self.request(Purpose::SweepClaim(target), vec![op]),
            Some(SweepStep::Scan(op)) => self.request(Purpose::SweepScan, vec![op]),
            None => {}
        }
    }

    fn judge_health(&mut self, now_ms: u64) {
        let before = self.shared.cluster.health();
        let refused = self.presence.refused().cloned();
        let slow = self.requests.slow_at_ms().is_some_and(|at_ms| now_ms >= at_ms);
        let was_member = self.membership.was_member();
        let mut health = match self.membership.standing() {
            _ if !self.is_connected() && was_member => ClusterHealth::Unreachable,
            Standing::Away | Standing::Joining => ClusterHealth::Joining,
            Standing::IdTaken => ClusterHealth::IdTaken,
            Standing::Entering if was_member => ClusterHealth::Deaf,
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
                self.requests.trouble().cloned()
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

    fn send_verdicts(&mut self) {
        for verdict in self.outbound.poll_verdicts().chain(self.partitions.poll_verdicts()) {
            self.shards.ack(&verdict);
        }
    }

    /// When the next turn is due although nothing happens, milliseconds of the gateway's clock.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.membership.is_finished() {
            return None;
        }
        let standing = self.membership.standing();
        let connected = self.is_connected();
        let entered = connected && standing.has_lease();
        // Only a member is called slow; nobody else is to be woken for that.
        let slow = self.requests.slow_at_ms();
        let slow = slow.filter(|_| standing == Standing::Member && self.shared.cluster.health() != ClusterHealth::Slow);
        let membership = self.membership.poll_timeout().filter(|_| connected);
        let when = |yes: bool, due: Option<u64>| if yes { due } else { None };
        let directory = when(entered, self.directory.poll_timeout());
        let probe = when(
            connected && standing == Standing::Member,
            Some(self.probe.poll_timeout()),
        );
        // A gateway that leaves lists nobody any more, but writes what it has.
        let presence = match self.membership.is_leaving() {
            true => self.presence.write_timeout(),
            false => self.presence.poll_timeout(),
        };
        let presence = when(entered && self.shards.are_there(), presence);
        let audit = when(entered && self.may_audit(), self.audit.poll_timeout());
        let sweep = when(entered, self.sweeps.poll_timeout());
        let confirm = self.outbound.poll_timeout();
        let partitions = self.partitions.poll_timeout();
        let all = [
            slow, membership, directory, probe, presence, audit, sweep, confirm, partitions,
        ];
        all.into_iter().flatten().min()
    }
}
