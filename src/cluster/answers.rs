//! What the store says: how it is, what its answers mean, and what was published.
//!
//! Pure; owned by the control thread.

use super::core::Cluster;
use super::outbound::Lost;
use super::requests::Purpose;
use super::store::{Answer, Channel, Incarnation, Op, Registered, StoreEvent};
use super::sweeps::SweepResult;
use crate::metrics::ClusterDrop;
use crate::router::Partition;
use crate::router::locations::PeerId;

/// After a packet that no gateway took, the directory is read within this time.
const LOOK_MS: u64 = 100;

impl Cluster {
    /// Something came from the store.
    pub fn handle_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Connected => self.handle_connected(),
            StoreEvent::Lost(cause) => {
                self.requests.lost(cause);
                self.membership.redis_away();
            }
            StoreEvent::Answered { ticket, answers } => {
                if let Some(purpose) = self.requests.answered(ticket) {
                    self.handle_answers(purpose, answers);
                }
            }
            StoreEvent::Subscribed(Channel::Partition(number)) => self.partitions.subscribed(Partition(number)),
            StoreEvent::Unsubscribed(Channel::Partition(number)) => {
                self.partitions.unsubscribed(Partition(number), self.now.mono_ms());
            }
            StoreEvent::Subscribed(channel) => {
                self.subscriptions.subscribed(channel);
                self.follow_membership();
            }
            StoreEvent::Unsubscribed(channel) => {
                self.subscriptions.unsubscribed(&channel);
                // What is said on it meanwhile, answers to us too, is lost.
                self.follow_membership();
            }
            StoreEvent::Received(channel, payload) => self.handle_received(&channel, &payload),
            StoreEvent::Forget(users) => {
                for user in users {
                    self.forget(&user);
                }
            }
            StoreEvent::ForgetAll => self.handle_flushed(),
            StoreEvent::Refused(words) => self.requests.refused(words),
        }
    }

    fn handle_connected(&mut self) {
        let now_ms = self.now.mono_ms();
        // Whatever was asked before is asked again: nothing that was under way counts any more.
        self.fail_everything();
        self.partitions.redis_back(now_ms);
        for purpose in self.requests.connected() {
            if let Purpose::Commands(commands) = purpose {
                self.metrics().dropped(ClusterDrop::OrderRedisAway, commands);
            }
        }
        self.directory.restart();
        self.sweeps.restart();
        self.probe.restart();
        self.forget_all();
        self.membership.redis_there();
        if self.membership.was_member() {
            self.directory.redis_returned(now_ms);
            self.rebuild_presence();
        }
    }

    /// Somebody may have emptied the store: leases and directory, too.
    fn handle_flushed(&mut self) {
        self.forget_all();
        self.membership.challenged();
        self.directory.redis_returned(self.now.mono_ms());
        self.directory.look_soon();
    }

    fn handle_answers(&mut self, purpose: Purpose, answers: Vec<Answer>) {
        let now_ms = self.now.mono_ms();
        match purpose {
            Purpose::Membership => self.handle_membership(&answers),
            Purpose::Directory => self.handle_directory(&answers),
            Purpose::Presence => self.presence.handle_written(&answers, now_ms),
            Purpose::Audit => {
                let repaired = self.audit.handle_kept(&answers, now_ms);
                self.metrics().presence_repaired.add(repaired);
            }
            Purpose::IndexScan(round) => match answers.into_iter().next() {
                Some(Answer::Users { cursor, users }) => {
                    self.check_users(&users);
                    self.presence.handle_scanned(round, Some(cursor), now_ms);
                }
                _ => self.presence.handle_scanned(round, None, now_ms),
            },
            Purpose::Locate(_) | Purpose::Inquiry(_) if self.names_unknown(&answers) => {
                self.directory.look_soon();
                self.deferred.put(purpose, answers);
            }
            Purpose::Locate(users) => self.handle_located(&users, &answers),
            Purpose::Inquiry(ticket) => self.handle_inquired(ticket, &answers),
            Purpose::Packet {
                peer,
                sequence,
                messages,
            } => {
                let result = self.judge_packet(peer, &answers);
                if result.is_err() {
                    let why = match answers.first() {
                        Some(Answer::Count(_)) => ClusterDrop::MessageGatewayGone,
                        _ => ClusterDrop::MessageRedisAway,
                    };
                    self.metrics().dropped(why, messages.into());
                }
                self.outbound.handle_published(peer, sequence, result);
            }
            Purpose::Publications {
                partition,
                sequence,
                publications,
            } => {
                // How many gateways took it says nothing: nobody needs to subscribe.
                let taken = matches!(answers.first(), Some(Answer::Count(_)));
                if !taken {
                    self.metrics()
                        .dropped(ClusterDrop::PublicationFailed, publications.into());
                }
                self.partitions.handle_published(partition, sequence, taken);
            }
            Purpose::Commands(commands) => {
                // The others, and we.
                let gateways = self.directory.len() as u64 + 1;
                match answers.first() {
                    Some(Answer::Count(takers)) if *takers >= gateways => {}
                    Some(Answer::Count(_)) => self.metrics().dropped(ClusterDrop::OrderUnheard, commands),
                    _ => self.metrics().dropped(ClusterDrop::OrderRedisAway, commands),
                }
            }
            Purpose::Probe => {
                if answers.first() == Some(&Answer::Count(0)) {
                    // Nobody took it, not even we.
                    self.probe.give_up(self.now);
                    self.subscriptions.doubt();
                }
            }
            Purpose::SweepClaim(target) => {
                let taken = answers.first() == Some(&Answer::Taken(true));
                self.sweeps.handle_claimed(target, taken, self.membership.is_leaving());
            }
            Purpose::SweepScan => self.handle_swept(answers),
            Purpose::LastLook => {
                if let Some(op) = self.membership.farewell(answers.first()) {
                    self.request(Purpose::Farewell, vec![op]);
                }
            }
            Purpose::SweepClear | Purpose::Farewell | Purpose::Abandoned => {}
        }
    }

    fn handle_membership(&mut self, answers: &[Answer]) {
        if let Some(Answer::Failed(failure)) = answers.iter().find(|a| matches!(a, Answer::Failed(_))) {
            self.requests.refused(failure.text.clone());
        }
        let before = self.membership.incarnation();
        let another = self
            .membership
            .handle_answers(answers, self.now.mono_ms(), self.now.wall_ms);
        if another {
            // Nothing that was written counts any more.
            self.clear_past(before);
        }
        self.follow_membership();
    }

    /// Does an answer name a gateway that the directory does not know?
    fn names_unknown(&self, answers: &[Answer]) -> bool {
        let me = self.membership.incarnation();
        let known = |owner: Incarnation| owner == me || self.directory.is_known(owner);
        answers.iter().any(|answer| match answer {
            Answer::Places(places) => !places.iter().all(|(owner, _)| known(*owner)),
            _ => false,
        })
    }

    fn handle_directory(&mut self, answers: &[Answer]) {
        let read = match answers.first() {
            Some(Answer::Directory(registered)) => {
                self.handle_registered(registered);
                true
            }
            _ => {
                self.directory.handle_unread();
                false
            }
        };
        for (purpose, answers) in self.deferred.take() {
            // A gateway that is not in the directory now is dead, and has been swept. Without one,
            // nobody knows.
            let answers = if read { answers } else { Vec::new() };
            match purpose {
                Purpose::Locate(users) => self.handle_located(&users, &answers),
                Purpose::Inquiry(ticket) => self.handle_inquired(ticket, &answers),
                _ => {}
            }
        }
    }

    fn handle_registered(&mut self, registered: &[Registered]) {
        self.mismatch.look(registered, self.shards.are_there());
        let changes = self.directory.read(registered, self.membership.incarnation());
        for incarnation in changes.gone_incarnations {
            self.inbound.gone(incarnation);
        }
        for peer in changes.gone {
            let unsent = self.outbound.gone(peer);
            self.metrics().dropped(ClusterDrop::MessageGatewayGone, unsent);
            self.partitions.gone(peer);
        }
        if changes.changed {
            self.forget_all();
        }
        for target in changes.to_sweep {
            self.sweeps.add_dead(target);
        }
    }

    fn judge_packet(&mut self, peer: PeerId, answers: &[Answer]) -> Result<(), Lost> {
        let now_ms = self.now.mono_ms();
        match answers.first() {
            Some(Answer::Count(0)) if self.directory.deaf(peer, now_ms) => Err(Lost::Dead),
            Some(Answer::Count(0)) => {
                // It is subscribing anew, or dead: the directory knows sooner or later.
                self.directory.look_by(now_ms + LOOK_MS);
                Err(Lost::Unknown)
            }
            Some(Answer::Count(_)) => {
                self.directory.heard(peer);
                Ok(())
            }
            _ => Err(Lost::Unknown),
        }
    }

    fn handle_swept(&mut self, answers: Vec<Answer>) {
        let (me, leaves) = (self.membership.incarnation(), self.membership.is_leaving());
        match self.sweeps.handle_scanned(answers.into_iter().next(), me, leaves) {
            None | Some(SweepResult::GivenUp) => {}
            Some(SweepResult::Clear(ops)) if ops.is_empty() => {}
            Some(SweepResult::Clear(ops)) => self.request(Purpose::SweepClear, ops),
            Some(SweepResult::Done(target)) => {
                if target != me {
                    self.metrics().sweeps.inc();
                }
                let op = Op::Unregister { incarnation: target };
                self.request(Purpose::SweepClear, vec![op]);
            }
        }
    }
}
