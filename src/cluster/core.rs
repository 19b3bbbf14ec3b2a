//! The cluster as one gateway sees it: its parts, what they have in common, and what may be asked
//! of it.
//!
//! Pure; owned by the control thread. Each part owns its tables, and none names another. What
//! concerns two parts is in `effects` and in the four files above it: `mail` and `received` (what
//! comes in), `answers` and `turn` (what goes out).

use std::sync::Arc;

use super::audit::Audit;
use super::commands::Commands;
use super::deferred::Deferred;
use super::directory::Directory;
use super::inbound::Inbound;
use super::inquiries::{Inquiries, Whereabouts};
use super::lookups::Lookups;
use super::membership::{LeaseTimes, Membership, Standing};
use super::mismatch::Mismatch;
use super::outbound::Outbound;
use super::partitions::Partitions;
use super::presence::PresenceWriter;
use super::probe::Probe;
use super::requests::{Purpose, Requests};
use super::seal::{Keyring, Seals};
use super::shards::Shards;
use super::store::{Incarnation, Op, Request};
use super::subscriptions::{Subscription, Subscriptions};
use super::sweeps::Sweeps;
use crate::ids::ShardId;
use crate::lanes::{Lanes, ShardCommand, control_id};
use crate::metrics::{ClusterDrop, ClusterMetrics};
use crate::router::HomeMap;
use crate::shared::{ClusterHealth, Now, Shared};

/// What makes this gateway this one.
#[derive(Debug)]
pub struct Identity {
    /// The gateway's id.
    pub id: String,
    /// Makes incarnations differ that begin in the same millisecond.
    pub seed: u64,
    /// `presence.ttl`, milliseconds.
    pub ttl_ms: u64,
}

/// This gateway as one of many. Owned by the control thread.
#[derive(Debug)]
pub struct Cluster {
    /// The lease of this gateway.
    pub(super) membership: Membership,
    pub(super) directory: Directory,
    pub(super) mismatch: Mismatch,
    pub(super) presence: PresenceWriter,
    pub(super) audit: Audit,
    pub(super) sweeps: Sweeps,
    pub(super) lookups: Lookups,
    pub(super) inquiries: Inquiries,
    pub(super) deferred: Deferred<Purpose>,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    pub(super) partitions: Partitions,
    pub(super) commands: Commands,
    pub(super) seals: Seals,
    pub(super) probe: Probe,
    pub(super) subscriptions: Subscriptions,
    pub(super) requests: Requests,
    pub(super) shards: Shards,
    pub(super) shared: Arc<Shared>,
    /// Of this turn.
    pub(super) now: Now,
}

impl Cluster {
    /// A gateway that is not one of many yet. It has no shards before [`Cluster::attach`].
    pub fn new(identity: &Identity, homes: HomeMap, shared: Arc<Shared>, now: Now) -> Self {
        let times = LeaseTimes::new(identity.ttl_ms);
        let membership =
            Membership::new(&identity.id, times, identity.seed, now.wall_ms).with_partitions(homes.partitions());
        shared.cluster.set_health(ClusterHealth::Joining, None);
        let nowhere = Lanes::nowhere(control_id(homes.shards()));
        Cluster {
            presence: PresenceWriter::new(membership.incarnation(), homes.shards()),
            audit: Audit::new(homes.shards(), identity.ttl_ms),
            mismatch: Mismatch::new(homes.partitions()),
            membership,
            directory: Directory::default(),
            sweeps: Sweeps::default(),
            lookups: Lookups::default(),
            inquiries: Inquiries::default(),
            deferred: Deferred::default(),
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            partitions: Partitions::default(),
            commands: Commands::default(),
            seals: Seals::default(),
            probe: Probe::default(),
            subscriptions: Subscriptions::default(),
            requests: Requests::default(),
            shards: Shards::new(nowhere, homes),
            shared,
            now,
        }
    }

    /// Seals packets with these keys from now on; to be called before anything is said.
    #[must_use]
    pub fn with_keyring(mut self, keyring: Keyring) -> Self {
        self.membership = self.membership.with_key(keyring.seals());
        self.mismatch.set_keyed(keyring.seals());
        self.seals = Seals::new(keyring);
        self
    }

    /// The shards are there: these lanes lead to them.
    pub fn attach(&mut self, lanes: Lanes) {
        self.shards.attach(lanes);
    }

    /// True once the lease is ours and the channels are subscribed.
    pub fn is_member(&self) -> bool {
        self.membership.standing() == Standing::Member
    }

    /// True once it is known who the others are.
    pub fn knows_others(&self) -> bool {
        self.directory.was_read()
    }

    /// Another gateway that divides channels into another number of partitions, and that number: we
    /// do not hear each other's publications.
    pub fn odd_one(&self) -> Option<&(Arc<str>, u16)> {
        self.mismatch.odd_partitions()
    }

    /// True if a live gateway has our id.
    pub fn is_id_taken(&self) -> bool {
        self.membership.standing() == Standing::IdTaken
    }

    /// True if Redis can be asked.
    pub fn is_connected(&self) -> bool {
        self.requests.is_connected()
    }

    /// The last words of a store that could not be asked, or refused.
    pub fn trouble(&self) -> Option<&str> {
        self.requests.trouble().map(|words| &**words)
    }

    /// True if somebody has our id, alive or not.
    pub fn is_id_held(&self) -> bool {
        self.membership.is_watching()
    }

    /// Leaves: nobody is here any more, and what is still written down of us is taken away. Packets
    /// still go both ways, as others wait for answers. A gateway that drains does this last: to the
    /// others it is one like any other until then.
    pub fn leave(&mut self) {
        self.membership.leave();
    }

    /// True once nothing of us is written down any more but the lease.
    pub fn has_left(&self) -> bool {
        self.sweeps.has_left()
    }

    /// The end: gives the lease back if it is still ours; [`Cluster::is_idle`] tells when that is
    /// done. What is still written down then is swept by others.
    pub fn finish(&mut self) {
        if let Some(op) = self.membership.finish() {
            self.request(Purpose::LastLook, vec![op]);
        }
    }

    /// True if nothing is asked that is not answered.
    pub fn is_idle(&self) -> bool {
        self.requests.is_idle()
    }

    /// Which life of this gateway it is.
    #[doc(hidden)]
    pub fn incarnation(&self) -> Incarnation {
        self.membership.incarnation()
    }

    /// What is held for others, for tests that expect nothing.
    #[doc(hidden)]
    pub fn residue(&self) -> Outstanding {
        let unknown = |peer: &_| self.directory.name(*peer).is_none();
        Outstanding {
            acks: self.outbound.waiting() + self.partitions.waiting(),
            unknown_peers: self.outbound.peers().filter(unknown).count(),
            inbound: self.inbound.len(),
            asking: self.lookups.names(),
            queries: self.lookups.questions() + self.deferred.len() + self.inquiries.len(),
            commands: self.commands.waiting(),
            presence: self.presence.pending(),
        }
    }

    /// Other gateways that something is remembered of.
    #[doc(hidden)]
    pub fn known_gateways(&self) -> usize {
        self.directory.known()
    }

    /// Begins a turn at this time.
    pub fn begin_turn(&mut self, now: Now) {
        self.now = now;
    }

    /// Tells the other gateways what this one's shards were told. Returns false if they cannot be
    /// told now.
    pub fn forward(&mut self, command: &ShardCommand) -> bool {
        // Health is judged at the end of a turn, and Redis may have gone in this one.
        if !self.is_up() || !self.is_member() {
            self.metrics().dropped(ClusterDrop::OrderRedisAway, 1);
            return false;
        }
        self.commands.forward(command.clone());
        true
    }

    /// Asks on which other gateways a user is; [`Cluster::poll_whereabouts`] gives the answer.
    pub fn inquire(&mut self, ticket: u32, user: Arc<str>) {
        if self.is_up() {
            self.inquiries.ask(ticket, user);
        } else {
            self.inquiries.answer(ticket, None);
        }
    }

    /// The next answer to [`Cluster::inquire`].
    pub fn poll_whereabouts(&mut self) -> Option<(u32, Whereabouts)> {
        self.inquiries.poll()
    }

    /// The next thing that another gateway wants all shards to do.
    pub fn poll_command(&mut self) -> Option<ShardCommand> {
        self.commands.poll()
    }

    /// The next request to the store.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.poll()
    }

    /// The next shard to wake, as its inbox has something new.
    pub fn poll_wake(&mut self) -> Option<ShardId> {
        self.shards.poll_wake()
    }

    /// The next change of what the store is to be subscribed to.
    pub fn poll_subscription(&mut self) -> Option<Subscription> {
        self.subscriptions.poll()
    }

    pub(super) fn metrics(&self) -> &ClusterMetrics {
        &self.shared.cluster.metrics
    }

    pub(super) fn is_up(&self) -> bool {
        self.shared.cluster.is_up()
    }

    pub(super) fn request(&mut self, purpose: Purpose, ops: Vec<Op>) {
        self.requests.submit(purpose, ops, self.now.mono_ms());
    }
}

/// What a cluster holds for others.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Outstanding {
    pub acks: usize,
    /// Gateways with something on its way that are in no directory.
    pub unknown_peers: usize,
    pub inbound: usize,
    pub asking: usize,
    pub queries: usize,
    pub commands: usize,
    pub presence: usize,
}
