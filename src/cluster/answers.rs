//! What the store's answers mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lookups::Found;
use super::store::{Answer, Channel, FailureKind, Incarnation, Op, Registered, StoreEvent};
use super::{CLEARED_MAX, Cluster, Purpose};
use crate::cluster::outbound::Lost;
use crate::cluster::presence::{Sweep, Swept};
use crate::ids::ShardId;
use crate::lanes::{Location, MessageToShard, RosterToShard, Span};
use crate::metrics::ClusterDrop;
use crate::router::locations::{PeerId, Places};
use crate::router::{Partition, UserHash};

/// How often it is said that the store had lost something.
const REPAIRED_EVERY_MS: u64 = 60_000;
/// How often it is said that the store does not let us look after that: until somebody changes its rules.
const UNKEPT_EVERY_MS: u64 = 600_000;

impl Cluster {
    /// Something came from the store.
    pub fn handle_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Connected => self.handle_connected(),
            StoreEvent::Lost(cause) => {
                self.trouble = Some(cause);
                self.connected = false;
                self.membership.redis_away();
            }
            StoreEvent::Answered { ticket, answers } => {
                if let Some((purpose, _)) = self.sent.remove(&ticket) {
                    self.handle_answers(purpose, answers);
                }
            }
            StoreEvent::Subscribed(Channel::Partition(number)) => self.partitions.subscribed(Partition(number)),
            StoreEvent::Unsubscribed(Channel::Partition(number)) => {
                self.partitions.unsubscribed(Partition(number), self.now.mono_ms());
            }
            StoreEvent::Subscribed(channel) => {
                if !self.heard.contains(&channel) {
                    self.heard.push(channel);
                }
                self.follow_membership();
            }
            StoreEvent::Unsubscribed(channel) => {
                self.heard.retain(|heard| *heard != channel);
                // What is said on it meanwhile, answers to us too, is lost.
                self.follow_membership();
            }
            StoreEvent::Received(channel, payload) => self.handle_heard(&channel, &payload),
            StoreEvent::Forget(users) => {
                for user in users {
                    self.forget(&user);
                }
            }
            StoreEvent::ForgetAll => self.handle_flushed(),
            StoreEvent::Refused(words) => self.trouble = Some(words),
        }
    }

    fn handle_connected(&mut self) {
        let now_ms = self.now.mono_ms();
        self.connected = true;
        self.trouble = None;
        // Whatever was asked before is asked again: nothing that was under way counts any more.
        self.fail_everything();
        self.partitions.redis_back(now_ms);
        for (purpose, _) in std::mem::take(&mut self.sent).into_values() {
            if let Purpose::Orders(orders) = purpose {
                self.metrics().dropped(ClusterDrop::OrderRedisAway, orders);
            }
        }
        self.requests.clear();
        self.directory_due_ms = 0;
        self.directory_asked = false;
        self.claiming = false;
        self.sweep = None;
        self.probe.restart();
        self.forget_all();
        self.membership.redis_there();
        if self.was_member {
            self.directory.redis_returned(now_ms);
            self.rebuild_presence();
        }
    }

    /// Somebody may have emptied the store: leases and directory, too.
    fn handle_flushed(&mut self) {
        self.forget_all();
        self.membership.challenged();
        self.directory.redis_returned(self.now.mono_ms());
        self.directory_due_ms = 0;
    }

    /// Writes everything again. Returns the users who may be written down under the incarnation before, if it was another.
    fn rebuild_presence(&mut self) -> BTreeSet<Arc<str>> {
        self.metrics().rebuilds.inc();
        self.audit.restart(self.now.mono_ms());
        let incarnation = self.membership.incarnation();
        self.book.rebuild(incarnation, self.now.mono_ms())
    }

    /// The lease was lost. What was written under the earlier incarnation may have come behind the sweep by somebody who
    /// saw that first, and behind its end nobody looks there any more: so we clear it, too.
    fn clear_past(&mut self, past: Incarnation) {
        let users = self.rebuild_presence();
        let clear = |user| Op::ClearPresence { user, owner: past };
        let ops: Vec<Op> = users.into_iter().map(clear).collect();
        for ops in ops.chunks(CLEARED_MAX) {
            self.request(Purpose::SweepClear, ops.to_vec());
        }
        self.past.push(past);
    }

    fn forget(&mut self, user: &Arc<str>) {
        self.lookups.moved(user);
        // Perhaps one of ours, whose entry somebody else took away.
        if self.book.is_settled() && !self.book.was_written_lately(user) {
            self.audit.doubt(user, self.now.mono_ms());
        }
        if !self.lanes.is_empty() {
            let hash = self.homes.hash(user);
            self.lanes.forget(self.homes.home(hash), (hash, user));
        }
    }

    fn forget_all(&mut self) {
        self.lookups.all_moved();
        for shard in self.all_shards() {
            self.lanes.push(shard, MessageToShard::ForgetAll);
        }
    }

    fn handle_answers(&mut self, purpose: Purpose, answers: Vec<Answer>) {
        let now_ms = self.now.mono_ms();
        match purpose {
            Purpose::Membership => {
                if let Some(Answer::Failed(failure)) = answers.iter().find(|a| matches!(a, Answer::Failed(_))) {
                    self.trouble = Some(Arc::clone(&failure.text));
                }
                let before = self.membership.incarnation();
                let another = self.membership.handle_answers(&answers, now_ms, self.now.wall_ms);
                if another {
                    // Nothing that was written counts any more.
                    self.clear_past(before);
                }
                self.follow_membership();
            }
            Purpose::Directory => self.handle_directory(&answers),
            Purpose::Presence => self.book.handle_written(&answers, now_ms),
            Purpose::Audit(users) => self.handle_kept(&users, &answers),
            Purpose::IndexScan(round) => match answers.into_iter().next() {
                Some(Answer::Users { cursor, users }) => {
                    self.check_users(&users);
                    self.book.handle_scanned(round, Some(cursor), now_ms);
                }
                _ => self.book.handle_scanned(round, None, now_ms),
            },
            Purpose::Locate(_) | Purpose::Inquiry(_) if self.names_strangers(&answers) => {
                self.directory_due_ms = 0;
                self.deferred.push((purpose, answers));
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
            Purpose::Orders(orders) => {
                // The others, and we.
                let gateways = self.directory.len() as u64 + 1;
                match answers.first() {
                    Some(Answer::Count(heard)) if *heard >= gateways => {}
                    Some(Answer::Count(_)) => self.metrics().dropped(ClusterDrop::OrderUnheard, orders),
                    _ => self.metrics().dropped(ClusterDrop::OrderRedisAway, orders),
                }
            }
            Purpose::Probe => {
                if answers.first() == Some(&Answer::Count(0)) {
                    // Nobody heard it, not even we.
                    self.probe.give_up(self.now);
                    self.doubt_subscription();
                }
            }
            Purpose::SweepClaim(target) => {
                self.claiming = false;
                if answers.first() == Some(&Answer::Taken(true)) && self.sweep.is_none() && !self.leaving {
                    log::info!("sweeping the presence of a dead gateway, incarnation {target}");
                    self.sweep = Some(Sweep::new(target));
                }
            }
            Purpose::SweepScan => self.handle_swept(answers),
            Purpose::LastLook => {
                let me = self.membership.incarnation();
                if matches!(answers.first(), Some(Answer::Lease(Some(lease))) if lease.incarnation == me) {
                    let id = Arc::clone(self.membership.id());
                    self.request(Purpose::Farewell, vec![Op::LeaseDrop { id }]);
                }
            }
            Purpose::SweepClear | Purpose::Farewell | Purpose::Abandoned => {}
        }
    }

    /// Does an answer name a gateway that the directory does not know?
    fn names_strangers(&self, answers: &[Answer]) -> bool {
        let me = self.membership.incarnation();
        let known = |owner: Incarnation| owner == me || self.directory.is_known(owner);
        answers.iter().any(|answer| match answer {
            Answer::Places(places) => !places.iter().all(|(owner, _)| known(*owner)),
            _ => false,
        })
    }

    fn handle_directory(&mut self, answers: &[Answer]) {
        self.directory_asked = false;
        let read = if let Some(Answer::Directory(registered)) = answers.first() {
            self.directory_read = true;
            self.look_for_odd_one(registered);
            self.look_for_odd_key(registered);
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
                let known = self.to_sweep.contains(&target);
                let running = self.sweep.as_ref().is_some_and(|sweep| sweep.target() == target);
                if !known && !running {
                    self.to_sweep.push(target);
                }
            }
            true
        } else {
            false
        };
        for (purpose, answers) in std::mem::take(&mut self.deferred_asked) {
            // Whoever is not in the directory now is dead, and has been swept. Without one, nobody knows.
            let answers = if read { answers } else { Vec::new() };
            match purpose {
                Purpose::Locate(users) => self.handle_located(&users, &answers),
                Purpose::Inquiry(ticket) => self.handle_inquired(ticket, &answers),
                _ => {}
            }
        }
    }

    /// All gateways must agree on the number of partitions. At the start this one gives way; later, when two have begun at
    /// the same instant, nothing is left but to say so.
    fn look_for_odd_one(&mut self, registered: &[Registered]) {
        let ours = self.homes.partitions();
        let odd = registered.iter().find_map(|line| {
            let lease = line.lease.filter(|lease| lease.incarnation == line.incarnation)?;
            (lease.partitions != 0 && lease.partitions != ours).then(|| (Arc::clone(&line.id), lease.partitions))
        });
        if let Some((id, theirs)) = odd.as_ref().filter(|_| self.odd_one != odd && !self.lanes.is_empty()) {
            log::error!(
                "gateway {id} has channels.partitions = {theirs}, this one {ours}: they do not hear each other's publications; give all the same number"
            );
        }
        self.odd_one = odd;
    }

    /// Gateways that have a key and gateways that have none refuse each other's packets.
    fn look_for_odd_key(&mut self, registered: &[Registered]) {
        let keyed = self.keyring.seals();
        let odd = registered.iter().find_map(|line| {
            let lease = line.lease.filter(|lease| lease.incarnation == line.incarnation)?;
            (lease.keyed != keyed).then(|| Arc::clone(&line.id))
        });
        if let Some(id) = odd.as_ref().filter(|_| self.odd_key != odd) {
            let (one, other) = if keyed { ("no", "has one") } else { ("a", "has none") };
            log::error!(
                "gateway {id} has {one} cluster.key and this one {other}: they refuse each other's packets, and messages between \
                 them fail; give all gateways the same key"
            );
        }
        self.odd_key = odd;
    }

    /// Where users are: to their home shards, which remember it, and to who asked.
    fn handle_located(&mut self, users: &[Arc<str>], answers: &[Answer]) {
        let complete = self.directory.is_complete(self.now.mono_ms());
        for (place, user) in users.iter().enumerate() {
            let places = match answers.get(place) {
                Some(Answer::Places(places)) => {
                    self.clear_dead(user, places);
                    match self.live(places) {
                        // The gateway where the user is may not have come back yet.
                        Places::Nowhere if !complete => None,
                        places => Some(places),
                    }
                }
                _ => None,
            };
            let found = match &places {
                Some(Places::Nowhere) => Found::Nowhere,
                Some(_) => Found::Elsewhere,
                None => Found::Unknown,
            };
            // Given up meanwhile.
            let Some(resolved) = self.lookups.resolve(user, found) else {
                continue;
            };
            let location = match places {
                None => Location::Unknown,
                Some(places) if resolved.moved => Location::Fleeting(places),
                Some(places) => Location::Known(places),
            };
            if resolved.awaited || matches!(location, Location::Known(_)) {
                self.tell_location(user, location);
            }
        }
    }

    fn live(&self, places: &[(Incarnation, u32)]) -> Places {
        let peers = places.iter().filter_map(|(owner, _)| self.directory.counts(*owner));
        peers.collect()
    }

    /// Clears what dead gateways have written of a user, and was in no index yet when they died.
    fn clear_dead(&mut self, user: &Arc<str>, places: &[(Incarnation, u32)]) {
        let me = self.membership.incarnation();
        let dead = places
            .iter()
            .map(|(owner, _)| *owner)
            .filter(|owner| *owner != me && !self.directory.is_known(*owner));
        let ops: Vec<Op> = dead
            .map(|owner| Op::ClearPresence {
                user: Arc::clone(user),
                owner,
            })
            .collect();
        if !ops.is_empty() {
            self.request(Purpose::SweepClear, ops);
        }
    }

    fn judge_packet(&mut self, peer: PeerId, answers: &[Answer]) -> Result<(), Lost> {
        match answers.first() {
            Some(Answer::Count(0)) if self.directory.deaf(peer, self.now.mono_ms()) => Err(Lost::Dead),
            Some(Answer::Count(0)) => {
                // It is subscribing anew, or dead: the directory knows sooner or later.
                self.directory_due_ms = self.directory_due_ms.min(self.now.mono_ms() + 100);
                Err(Lost::Unknown)
            }
            Some(Answer::Count(_)) => {
                self.directory.heard(peer);
                Ok(())
            }
            _ => Err(Lost::Unknown),
        }
    }

    /// Users who are here, as a shard has just said: what is missing of them is written. This goes out before what shards said
    /// later, so nobody who has left since is written for good.
    pub(super) fn handle_reviewed(&mut self, round: u32, page: Option<Option<u32>>, users: Vec<(Arc<str>, u32)>) {
        if let Some(next) = page {
            let all = self.shared.shards.iter().map(|shard| shard.users.get()).sum();
            self.audit.handle_looked(next, users.len(), all, self.now.mono_ms());
        }
        let current = round == self.book.round() && self.may_audit();
        if !current || users.is_empty() || !self.connected || !self.membership.standing().has_lease() {
            return;
        }
        let owner = self.membership.incarnation();
        let names: Vec<Arc<str>> = users.iter().map(|(user, _)| Arc::clone(user)).collect();
        let index = Op::IndexAdd {
            owner,
            users: names.clone(),
        };
        let keep = |(user, connections)| Op::KeepPresence {
            user,
            owner,
            connections,
        };
        let ops = std::iter::once(index).chain(users.into_iter().map(keep)).collect();
        self.request(Purpose::Audit(names), ops);
    }

    fn handle_kept(&mut self, users: &[Arc<str>], answers: &[Answer]) {
        let refused = answers.iter().find_map(|answer| match answer {
            Answer::Failed(failure) if failure.kind == FailureKind::Refused => Some(failure),
            _ => None,
        });
        let now_ms = self.now.mono_ms();
        if let Some(failure) = refused
            && now_ms >= self.unkept_due_ms
        {
            self.unkept_due_ms = now_ms + UNKEPT_EVERY_MS;
            log::warn!(
                "what Redis loses of users who are here is not written again: {}",
                failure.text
            );
        }
        // The first one is of the index.
        let kept = users.iter().zip(answers.iter().skip(1));
        let repaired = kept.filter(|(_, answer)| **answer == Answer::Taken(true)).count() as u64;
        if repaired == 0 {
            return;
        }
        self.metrics().presence_repaired.add(repaired);
        if now_ms >= self.repaired_due_ms {
            self.repaired_due_ms = now_ms + REPAIRED_EVERY_MS;
            log::warn!(
                "Redis had lost that {repaired} users are here, and they are written again: somebody deletes keys, or Redis \
                 evicts them (maxmemory-policy must be noeviction)"
            );
        }
    }

    /// These users may be written down: their shards say who of them is not here.
    pub(super) fn check_users(&mut self, users: &[Arc<str>]) {
        self.send_to_homes(users, |users| RosterToShard::Check { users });
    }

    /// Sends each home shard of these users something about those who live there.
    pub(super) fn send_to_homes(&mut self, users: &[Arc<str>], item: impl Fn(Vec<(UserHash, Span)>) -> RosterToShard) {
        let mut homes: BTreeMap<ShardId, Vec<(UserHash, &str)>> = BTreeMap::new();
        for user in users {
            let hash = self.homes.hash(user);
            homes.entry(self.homes.home(hash)).or_default().push((hash, user));
        }
        for (shard, users) in homes {
            self.lanes.push_users(shard, users.into_iter(), &item);
        }
    }

    fn handle_swept(&mut self, answers: Vec<Answer>) {
        let Some(sweep) = &mut self.sweep else {
            return;
        };
        let Some(Answer::Users { cursor, users }) = answers.into_iter().next() else {
            // Redis is in trouble. A dead gateway stays in the directory, and is swept later; we leave without.
            self.sweep = None;
            self.left = self.leaving;
            return;
        };
        match sweep.handle_scanned(cursor, users) {
            Ok(ops) if ops.is_empty() => {}
            Ok(ops) => self.request(Purpose::SweepClear, ops),
            Err(Swept) => {
                let target = sweep.target();
                self.sweep = None;
                if target == self.membership.incarnation() {
                    self.left = true;
                } else {
                    self.metrics().sweeps.inc();
                }
                let op = Op::Unregister { incarnation: target };
                self.request(Purpose::SweepClear, vec![op]);
            }
        }
    }

    /// True if this channel is one that we want to hear.
    pub(super) fn is_ours(&self, channel: &Channel) -> bool {
        match channel {
            Channel::All => true,
            Channel::Gateway(..) => self.channel.as_ref() == Some(channel),
            Channel::Partition(number) => self.partitions.is_listened(Partition(*number)),
        }
    }
}
