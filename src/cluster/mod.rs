//! Many gateways as one system: what each knows of the others, says to them and hears from them.
//!
//! Pure: [`Cluster`] is data and rules, owned by the control thread. Batches of shards and events of the store come in
//! through `handle_*`; requests to the store and subscriptions come out of `poll_*`, and what shards are to hear goes
//! into the control thread's lanes. The store is Redis, or a model of it in simulations; time comes as an argument.
//!
//! | file | duty |
//! | --- | --- |
//! | [`store`] | the contract with the store |
//! | [`packet`] | the framing between gateways |
//! | [`seal`] | tags of packets, and who is not believed |
//! | [`membership`] | the lease of this gateway |
//! | [`directory`] | the other gateways |
//! | [`audit`] | a slow walk over our users, which finds what the store has lost |
//! | [`presence`] | writing down who is here, and sweeping it |
//! | [`outbound`] | packets to others, and who wants to hear |
//! | [`inbound`] | packets of others |
//! | [`partitions`] | publications: partitions that are heard, and interactive in |
//! | [`lookups`] | where users are: what is asked of the store, in which order, how much of it at once |
//! | [`inquiries`] | where a user is, for an administrator |
//! | [`probe`] | whether we are heard |
//! | `turn` | the end of a turn: what is asked, said and judged |
//! | `answers` | what answers of the store mean |
//! | `hearing` | what is heard on channels |

mod answers;
pub mod audit;
pub mod directory;
mod hearing;
pub mod inbound;
pub mod inquiries;
pub mod lookups;
pub mod membership;
pub mod outbound;
pub mod packet;
pub mod partitions;
pub mod presence;
pub mod probe;
pub mod seal;
pub mod store;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::lanes::{
    AckTo, Batch, ChannelToControl, Lanes, Location, Mailboxes, MessageToControl, PresenceQuery, PresenceToControl,
    PresenceToShard, ShardCommand, ToControl,
};
use crate::metrics::{ClusterDrop, ClusterMetrics};
use crate::router::{HomeMap, Partition};
use crate::shared::{ClusterHealth, Now, Shared};
use audit::Audit;
use directory::Directory;
use inbound::Inbound;
use lookups::{Asker, Lookups};
use membership::{LeaseTimes, Membership, Standing};
use outbound::Outbound;
use partitions::Partitions;
use presence::{PresenceWriter, Sweep};
use probe::Probe;
use seal::Keyring;
use store::{Answer, Channel, Incarnation, LeaseState, Op, Request};

/// A request that has not been answered for this long: whoever waits gets told so.
const SLOW_MS: u64 = 1_000;
/// Users cleared in one request.
const CLEARED_MAX: usize = 1_000;

/// What a request was for.
#[derive(Debug)]
enum Purpose {
    Membership,
    Directory,
    Presence,
    /// What may be missing of these users.
    Audit(Vec<Arc<str>>),
    /// Of this round of writing everything.
    IndexScan(u32),
    Locate(Vec<Arc<str>>),
    /// An administrator's.
    Inquiry(u32),
    Packet {
        peer: crate::router::locations::PeerId,
        sequence: u32,
        messages: u16,
    },
    /// So many publications.
    Publications {
        partition: Partition,
        sequence: u32,
        publications: u16,
    },
    /// So many orders; the packet may say more.
    Orders(u64),
    Probe,
    SweepClaim(Incarnation),
    SweepScan,
    SweepClear,
    /// Is the lease still ours?
    LastLook,
    Farewell,
    /// Nobody waits for it any more. It still tells whether Redis answers.
    Abandoned,
}

/// What shall be heard or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// From now on.
    Begin(Channel),
    /// No more.
    End(Channel),
    /// It is heard, but what is said on it does not come: the store is to make its connections anew.
    Renew(Channel),
}

/// This gateway as one of many. Owned by the control thread.
#[derive(Debug)]
pub struct Cluster {
    membership: Membership,
    directory: Directory,
    book: PresenceWriter,
    audit: Audit,
    /// From when on it may be said again that something was missing.
    repaired_due_ms: u64,
    /// The same of what may not be looked after.
    unkept_due_ms: u64,
    sweep: Option<Sweep>,
    to_sweep: Vec<Incarnation>,
    /// A claim is under way: one at a time, as a claim that we do not use keeps others from it.
    claiming: bool,
    /// Our own earlier incarnations.
    past: Vec<Incarnation>,
    /// The incarnation with which this process began; each one is greater than the one before.
    first: Incarnation,
    outbound: Outbound,
    inbound: Inbound,
    partitions: Partitions,
    /// For all gateways.
    orders: Vec<ShardCommand>,
    /// The others should look at the directory.
    look: bool,
    /// For all shards, from other gateways.
    commands: VecDeque<ShardCommand>,
    homes: HomeMap,
    times: LeaseTimes,
    shared: Arc<Shared>,
    lanes: Lanes,
    now: Now,
    connected: bool,
    was_member: bool,
    /// Our channel, as asked for.
    channel: Option<Channel>,
    heard: Vec<Channel>,
    subscriptions: VecDeque<Subscription>,
    requests: VecDeque<Request>,
    tickets: u64,
    sent: BTreeMap<u64, (Purpose, u64)>,
    lookups: Lookups,
    inquiries: Vec<(u32, Arc<str>)>,
    whereabouts: VecDeque<(u32, inquiries::Whereabouts)>,
    /// Answers that name gateways which are not in the directory; it will be read.
    deferred: Vec<(Purpose, Vec<Answer>)>,
    /// The same, and the reading that will tell has begun since.
    deferred_asked: Vec<(Purpose, Vec<Answer>)>,
    directory_due_ms: u64,
    directory_asked: bool,
    /// The directory is not read again before this time.
    directory_rest_ms: u64,
    /// The directory was read since the start.
    directory_read: bool,
    /// Another gateway that divides channels into another number of partitions.
    odd_one: Option<(Arc<str>, u16)>,
    keyring: Keyring,
    /// Another gateway that has a key where we have none, or none where we have one.
    odd_key: Option<Arc<str>>,
    /// Packets that were not believed, and from when on that may be said again.
    untrusted: u64,
    untrusted_due_ms: u64,
    /// The number of our last packet to all, where they are sealed.
    orders_sequence: u32,
    probe: Probe,
    leaving: bool,
    left: bool,
    finished: bool,
    /// The last words of a store that could not be asked, or refused.
    trouble: Option<Arc<str>>,
}

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

impl Cluster {
    /// A gateway that is not one of many yet. It has no shards before [`Cluster::attach`].
    pub fn new(identity: &Identity, homes: HomeMap, shared: Arc<Shared>, now: Now) -> Self {
        let times = LeaseTimes::new(identity.ttl_ms);
        let membership =
            Membership::new(&identity.id, times, identity.seed, now.wall_ms).with_partitions(homes.partitions());
        shared.cluster.set_health(ClusterHealth::Joining, None);
        Cluster {
            book: PresenceWriter::new(membership.incarnation(), homes.shards()),
            audit: Audit::new(homes.shards(), identity.ttl_ms),
            repaired_due_ms: 0,
            unkept_due_ms: 0,
            first: membership.incarnation(),
            membership,
            directory: Directory::default(),
            sweep: None,
            to_sweep: Vec::new(),
            claiming: false,
            past: Vec::new(),
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            partitions: Partitions::default(),
            orders: Vec::new(),
            look: false,
            commands: VecDeque::new(),
            lanes: Lanes::new(
                crate::lanes::control_id(homes.shards()),
                Mailboxes::default(),
                Arc::clone(&shared.depths),
            ),
            homes,
            times,
            shared,
            now,
            connected: false,
            was_member: false,
            channel: None,
            heard: Vec::new(),
            subscriptions: VecDeque::new(),
            requests: VecDeque::new(),
            tickets: 0,
            sent: BTreeMap::new(),
            lookups: Lookups::default(),
            inquiries: Vec::new(),
            whereabouts: VecDeque::new(),
            deferred: Vec::new(),
            deferred_asked: Vec::new(),
            directory_due_ms: 0,
            directory_asked: false,
            directory_rest_ms: 0,
            directory_read: false,
            odd_one: None,
            keyring: Keyring::default(),
            odd_key: None,
            untrusted: 0,
            untrusted_due_ms: 0,
            orders_sequence: 0,
            probe: Probe::default(),
            leaving: false,
            left: false,
            finished: false,
            trouble: None,
        }
    }

    /// Seals packets with these keys from now on; to be called before anything is said.
    #[must_use]
    pub fn with_keyring(mut self, keyring: Keyring) -> Self {
        self.membership = self.membership.with_key(keyring.seals());
        self.keyring = keyring;
        self
    }

    /// The shards are there: these lanes lead to them.
    pub fn attach(&mut self, lanes: Lanes) {
        self.lanes = lanes;
    }

    /// True once the lease is ours and the channels are heard.
    pub fn is_member(&self) -> bool {
        self.membership.standing() == Standing::Member
    }

    /// True once it is known who the others are.
    pub fn knows_others(&self) -> bool {
        self.directory_read
    }

    /// Another gateway that divides channels into another number of partitions, and that number: we do not hear each other's
    /// publications.
    pub fn odd_one(&self) -> Option<&(Arc<str>, u16)> {
        self.odd_one.as_ref()
    }

    /// True if a live gateway has our id.
    pub fn is_id_taken(&self) -> bool {
        self.membership.standing() == Standing::IdTaken
    }

    /// True if Redis can be asked.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// The last words of a store that could not be asked, or refused.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// True if somebody has our id, alive or not.
    pub fn is_id_held(&self) -> bool {
        self.membership.is_watching()
    }

    /// Leaves: nobody is here any more, and what is still written down of us is taken away. Packets still go both ways, as others
    /// wait for answers. A gateway that drains does this last: to the others it is one like any other until then.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.membership.set_state(LeaseState::Migrating);
    }

    /// True once nothing of us is written down any more but the lease.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// The end: gives the lease back if it is still ours; [`Cluster::is_idle`] tells when that is done. What is still
    /// written down then is swept by others.
    pub fn finish(&mut self) {
        if self.membership.standing().has_lease() {
            let id = Arc::clone(self.membership.id());
            self.request(Purpose::LastLook, vec![Op::LeaseRead { id }]);
            self.finished = true;
        }
    }

    /// True if nothing is asked that is not answered.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.sent.is_empty()
    }

    /// Which life of this gateway it is.
    #[doc(hidden)]
    pub fn incarnation(&self) -> Incarnation {
        self.membership.incarnation()
    }

    /// What is held for others, for tests that expect nothing.
    #[doc(hidden)]
    pub fn residue(&self) -> Outstanding {
        Outstanding {
            acks: self.outbound.waiting() + self.partitions.waiting(),
            strangers: self
                .outbound
                .peers()
                .filter(|b| self.directory.name(*b).is_none())
                .count(),
            inbound: self.inbound.len(),
            asking: self.lookups.names(),
            queries: self.lookups.questions() + self.deferred.len() + self.inquiries.len() + self.whereabouts.len(),
            commands: self.commands.len(),
            presence: self.book.pending(),
        }
    }

    /// Other gateways that something is remembered of.
    #[doc(hidden)]
    pub fn known_gateways(&self) -> usize {
        self.directory.known()
    }

    fn metrics(&self) -> &ClusterMetrics {
        &self.shared.cluster.metrics
    }

    fn is_up(&self) -> bool {
        self.shared.cluster.is_up()
    }

    fn request(&mut self, purpose: Purpose, ops: Vec<Op>) {
        self.tickets += 1;
        self.sent.insert(self.tickets, (purpose, self.now.mono_ms()));
        self.requests.push_back(Request {
            ticket: self.tickets,
            ops,
        });
    }

    /// Begins a turn at this time.
    pub fn begin_turn(&mut self, now: Now) {
        self.now = now;
    }

    /// What shards say.
    pub fn handle_batch(&mut self, mut batch: Batch<ToControl>) {
        for item in std::mem::take(&mut batch.items) {
            match item {
                ToControl::Message(mail) => self.handle_message_mail(&batch, mail),
                ToControl::Presence(mail) => self.handle_presence_mail(&batch, mail),
                ToControl::Channel(mail) => self.handle_channel_mail(&batch, mail),
            }
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
                    route.places.as_slice(),
                    batch.text(route.to),
                    batch.bytes(route.frame),
                    ack_to,
                );
                if sent.is_err() {
                    self.metrics().dropped(ClusterDrop::MessageGatewayFull, 1);
                }
            }
            MessageToControl::Locate { hash, user } => {
                let user = batch.text(user);
                if !self.is_up() {
                    self.lanes.located(batch.from, (hash, user), Location::Unknown);
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
                let overloaded = self.is_up();
                let asker = Asker {
                    shard: batch.from,
                    ticket,
                    user: asker.0,
                };
                let names = users.iter().map(|(index, _, user)| (*index, batch.text(*user)));
                if !overloaded || self.lookups.ask(asker, names).is_err() {
                    self.lanes
                        .push(batch.from, PresenceToShard::Unknown { ticket, overloaded });
                }
            }
            // Without Redis, and when we leave, nothing is written; afterwards everything is written again.
            PresenceToControl::Changed { user, connections } => {
                if self.connected && !self.leaving {
                    self.book.set(batch.text(user), connections);
                }
            }
            PresenceToControl::Lost => self.book.lost(self.now.mono_ms()),
            PresenceToControl::Listed { round, next } => self.book.handle_listed(round, batch.from.0, next),
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
                self.publish(item.partition, (batch.text(item.channel), &item.frame), ack_to);
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

    /// Tells the other gateways what this one's shards were told. Returns false if they cannot be told now.
    pub fn forward(&mut self, command: &ShardCommand) -> bool {
        // Health is judged at the end of a turn, and Redis may have gone in this one.
        if !self.is_up() || !self.is_member() {
            self.metrics().dropped(ClusterDrop::OrderRedisAway, 1);
            return false;
        }
        self.orders.push(command.clone());
        true
    }

    /// The next thing that another gateway wants all shards to do.
    pub fn poll_command(&mut self) -> Option<ShardCommand> {
        self.commands.pop_front()
    }

    /// The next request to the store.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// The next change of what is to be heard.
    pub fn poll_subscription(&mut self) -> Option<Subscription> {
        self.subscriptions.pop_front()
    }

    /// When the next turn is due although nothing happens, milliseconds of the gateway's clock.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.finished {
            return None;
        }
        let standing = self.membership.standing();
        let entered = self.connected && standing.has_lease();
        let first = self.sent.first_key_value().map(|(_, (_, sent_ms))| sent_ms + SLOW_MS);
        // Only a member is called slow; nobody else is to be woken for that.
        let slow =
            first.filter(|_| standing == Standing::Member && self.shared.cluster.health() != ClusterHealth::Slow);
        let membership = self.membership.poll_timeout().filter(|_| self.connected);
        let when = |yes: bool, due: Option<u64>| if yes { due } else { None };
        let directory = when(
            entered && !self.directory_asked,
            Some(self.directory_due_ms.max(self.directory_rest_ms)),
        );
        let probe = when(
            self.connected && standing == Standing::Member,
            Some(self.probe.poll_timeout()),
        );
        // Who leaves lists nobody any more, but writes what it has.
        let book = match self.leaving {
            true => self.book.write_timeout(),
            false => self.book.poll_timeout(),
        };
        let book = when(entered && !self.lanes.is_empty(), book);
        let audit = when(entered && self.may_audit(), self.audit.poll_timeout());
        let sweep = when(entered, self.sweep.as_ref().and_then(Sweep::poll_timeout));
        let confirm = self.outbound.poll_timeout();
        let partitions = self.partitions.poll_timeout();
        let all = [
            slow, membership, directory, probe, book, audit, sweep, confirm, partitions,
        ];
        all.into_iter().flatten().min()
    }
}

/// What a cluster holds for others.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Outstanding {
    pub acks: usize,
    /// Gateways with something on its way that are in no directory.
    pub strangers: usize,
    pub inbound: usize,
    pub asking: usize,
    pub queries: usize,
    pub commands: usize,
    pub presence: usize,
}
