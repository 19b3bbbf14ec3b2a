//! What concerns several parts at once: a change of membership, a store that is away or back, users
//! who moved.
//!
//! Pure; owned by the control thread. It is called by the files that take events in and by the end
//! of the turn, and calls none of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::Cluster;
use super::directory::Directory;
use super::lookups::Found;
use super::membership::Standing;
use super::requests::Purpose;
use super::store::{Answer, Incarnation, Op};
use super::sweeps;
use crate::lanes::{Location, RosterToShard};
use crate::metrics::ClusterDrop;
use crate::router::locations::PeerSet;

/// Users cleared in one request.
const CLEARED_MAX: usize = 1_000;

impl Cluster {
    /// Subscribes to the channel of this incarnation, and to no other; is a member once it is
    /// subscribed.
    pub(super) fn follow_membership(&mut self) {
        let standing = self.membership.standing();
        if standing.has_lease() && self.subscriptions.follow(self.membership.channel()) {
            self.inbound.begin_channel();
        }
        let active = self.subscriptions.are_active();
        if standing == Standing::Entering && active {
            self.membership.subscribed(self.now.mono_ms());
            self.probe.restart();
            // A gateway whose packets we did not get may try again.
            self.commands.announce();
        } else if standing == Standing::Member && !active {
            self.membership.unsubscribed();
        }
    }

    /// Everything that is written down of our users is written again. Returns the users who may be
    /// written down under the incarnation before, if it was another.
    pub(super) fn rebuild_presence(&mut self) -> BTreeSet<Arc<str>> {
        self.metrics().rebuilds.inc();
        self.audit.restart(self.now.mono_ms());
        let incarnation = self.membership.incarnation();
        self.presence.rebuild(incarnation, self.now.mono_ms())
    }

    /// The lease was lost. What was written under the earlier incarnation may have come behind the
    /// sweep by somebody who saw that first, and behind its end nobody looks there any more: so we
    /// clear it, too.
    pub(super) fn clear_past(&mut self, past: Incarnation) {
        let users = self.rebuild_presence();
        let clear = |user| Op::ClearPresence { user, owner: past };
        let ops: Vec<Op> = users.into_iter().map(clear).collect();
        for ops in ops.chunks(CLEARED_MAX) {
            self.request(Purpose::SweepClear, ops.to_vec());
        }
        self.sweeps.add_past(past);
    }

    /// A user may have moved.
    pub(super) fn forget(&mut self, user: &Arc<str>) {
        self.lookups.moved(user);
        // Perhaps one of ours, whose entry somebody else took away.
        if self.presence.is_settled() && !self.presence.was_written_lately(user) {
            self.audit.doubt(user, self.now.mono_ms());
        }
        self.shards.forget(user);
    }

    /// Anybody may have moved.
    pub(super) fn forget_all(&mut self) {
        self.lookups.all_moved();
        self.shards.forget_all();
    }

    /// True if what is missing of our users may be looked for.
    pub(super) fn may_audit(&self) -> bool {
        !self.membership.is_leaving() && self.shards.are_there() && self.presence.is_settled()
    }

    /// These users may be written down: their shards say who of them is not here.
    pub(super) fn check_users(&mut self, users: &[Arc<str>]) {
        self.shards.ask_homes(users, |users| RosterToShard::Check { users });
    }

    /// Where users are: to their home shards, which remember it, and to who asked.
    pub(super) fn handle_located(&mut self, users: &[Arc<str>], answers: &[Answer]) {
        let complete = self.directory.is_complete(self.now.mono_ms());
        for (index, user) in users.iter().enumerate() {
            let places = match answers.get(index) {
                Some(Answer::Places(places)) => {
                    self.clear_dead(user, places);
                    match live(&self.directory, places) {
                        // The gateway where the user is may not have come back yet.
                        PeerSet::Nowhere if !complete => None,
                        places => Some(places),
                    }
                }
                _ => None,
            };
            let found = match &places {
                Some(PeerSet::Nowhere) => Found::Nowhere,
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
                self.shards.located(user, location);
            }
        }
    }

    /// Clears what dead gateways have written of a user, and was in no index yet when they died.
    fn clear_dead(&mut self, user: &Arc<str>, places: &[(Incarnation, u32)]) {
        let me = self.membership.incarnation();
        let owners = places.iter().map(|(owner, _)| *owner);
        let dead = owners.filter(|owner| *owner != me && !self.directory.is_known(*owner));
        let ops = sweeps::clear(user, dead);
        if !ops.is_empty() {
            self.request(Purpose::SweepClear, ops);
        }
    }

    /// Where a user is, to an administrator.
    pub(super) fn handle_inquired(&mut self, ticket: u32, answers: &[Answer]) {
        let found = match answers.first() {
            Some(Answer::Places(places)) => {
                let there = places.iter().filter_map(|(owner, connections)| {
                    let peer = self.directory.counts(*owner)?;
                    Some((self.directory.name(peer)?.0, *connections))
                });
                let there: Vec<_> = there.collect();
                // A gateway where the user is may not have come back yet.
                let is_certain = !there.is_empty() || self.directory.is_complete(self.now.mono_ms());
                is_certain.then_some(there)
            }
            _ => None,
        };
        self.inquiries.answer(ticket, found);
    }

    /// Nobody shall wait for a store that does not answer.
    pub(super) fn fail_everything(&mut self) {
        let unsent = self.outbound.redis_away();
        self.metrics().dropped(ClusterDrop::MessageRedisAway, unsent);
        let unsent = self.partitions.redis_away();
        self.metrics().dropped(ClusterDrop::PublicationRedisAway, unsent);
        let unsent = self.commands.fail();
        self.metrics().dropped(ClusterDrop::OrderRedisAway, unsent);
        self.inquiries.give_up();
        let deferred = self.deferred.give_up();
        for purpose in deferred.chain(self.requests.abandon()) {
            match purpose {
                Purpose::Inquiry(ticket) => self.inquiries.answer(ticket, None),
                Purpose::Publications { publications, .. } => {
                    self.metrics()
                        .dropped(ClusterDrop::PublicationFailed, publications.into());
                }
                _ => {}
            }
        }
        for user in self.lookups.give_up() {
            self.shards.located(&user, Location::Unknown);
        }
    }
}

/// The gateways among these that count.
fn live(directory: &Directory, places: &[(Incarnation, u32)]) -> PeerSet {
    let peers = places.iter().filter_map(|(owner, _)| directory.counts(*owner));
    peers.collect()
}
