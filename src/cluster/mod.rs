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
//! | [`membership`] | the lease of this gateway |
//! | [`directory`] | the other gateways |
//! | [`presence`] | writing down who is here, and sweeping it |
//! | [`outbound`] | packets to others, and who wants to hear |
//! | [`inbound`] | packets of others |
//! | `answers` | what answers of the store mean |
//! | `hearing` | what is heard on channels |

mod answers;
pub mod directory;
mod hearing;
pub mod inbound;
pub mod membership;
pub mod outbound;
pub mod packet;
pub mod presence;
pub mod store;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::ids::ShardId;
use crate::lanes::{Batch, Instruction, Item, Lanes, Location, Wanted};
use crate::metrics::{ClusterDrop, ClusterMetrics};
use crate::router::HomeMap;
use crate::view::{ClusterHealth, Now, View};
use directory::Directory;
use inbound::Inbound;
use membership::{LeaseTimes, Membership, Standing};
use outbound::{Lost, Outbound};
use packet::PacketBuilder;
use presence::{PresenceBook, Step, Sweep};
use store::{Answer, Channel, Incarnation, LeaseState, Op, Request, Task};

/// A gateway says something on its own channel this often, and should hear it.
const PROBE_MS: u64 = 1_000;
/// A probe that is not back after this time is lost: the channel is subscribed anew.
const PROBE_LOST_MS: u64 = 2_000;
/// A request that has not been answered for this long: whoever waits gets told so.
const SLOW_MS: u64 = 1_000;
/// Users asked for in one request.
const LOCATES_MAX: usize = 1_000;
/// How long a claim to sweep lasts.
const SWEEP_CLAIM_MS: u64 = 60_000;

/// What a request was for.
#[derive(Debug)]
enum Purpose {
    Membership,
    Directory,
    Presence,
    IndexScan,
    Locate(Vec<Arc<str>>),
    Query(Query),
    Packet {
        berth: crate::router::locations::Berth,
        sequence: u32,
        messages: u16,
    },
    Order,
    Probe,
    SweepClaim(Incarnation),
    SweepScan,
    SweepClear,
    Farewell,
    /// Nobody waits for it any more. It still tells whether Redis answers.
    Abandoned,
}

/// A shard's question who is online.
#[derive(Debug)]
struct Query {
    shard: ShardId,
    ticket: u32,
    /// Places in the question, one per operation.
    places: Vec<u8>,
}

/// What shall be heard or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// From now on.
    Begin(Channel),
    /// No more.
    End(Channel),
}

/// The last probe.
#[derive(Debug, Default)]
struct Probe {
    nonce: u64,
    sent_ns: u64,
    under_way: bool,
    due_ms: u64,
    lost: bool,
}

/// This gateway as one of many. Owned by the control thread.
#[derive(Debug)]
pub struct Cluster {
    membership: Membership,
    directory: Directory,
    book: PresenceBook,
    sweep: Option<Sweep>,
    to_sweep: Vec<Incarnation>,
    /// A claim is under way: one at a time, as a claim that we do not use keeps others from it.
    claiming: bool,
    /// Our own earlier incarnations.
    past: Vec<Incarnation>,
    outbound: Outbound,
    inbound: Inbound,
    /// For all gateways.
    orders: PacketBuilder,
    /// For all shards, from other gateways.
    instructions: VecDeque<Instruction>,
    homes: HomeMap,
    times: LeaseTimes,
    view: Arc<View>,
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
    /// Users being asked for; true if they may have moved since.
    asking: BTreeMap<Arc<str>, bool>,
    to_locate: Vec<Arc<str>>,
    queries: Vec<(Query, Vec<Arc<str>>)>,
    /// Answers that name gateways which are not in the directory; it will be read.
    deferred: Vec<(Purpose, Vec<Answer>)>,
    /// The same, and the reading that will tell has begun since.
    deferred_asked: Vec<(Purpose, Vec<Answer>)>,
    directory_due_ms: u64,
    directory_asked: bool,
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
    pub fn new(identity: &Identity, homes: HomeMap, view: Arc<View>, now: Now) -> Self {
        let times = LeaseTimes::new(identity.ttl_ms);
        let membership = Membership::new(&identity.id, times, identity.seed, now.wall_ms);
        view.cluster.set_health(ClusterHealth::Joining, None);
        Cluster {
            book: PresenceBook::new(membership.incarnation(), homes.shards()),
            membership,
            directory: Directory::default(),
            sweep: None,
            to_sweep: Vec::new(),
            claiming: false,
            past: Vec::new(),
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            orders: PacketBuilder::default(),
            instructions: VecDeque::new(),
            lanes: Lanes::new(
                crate::lanes::control_place(homes.shards()),
                Vec::new(),
                Arc::clone(&view.depths),
            ),
            homes,
            times,
            view,
            now,
            connected: false,
            was_member: false,
            channel: None,
            heard: Vec::new(),
            subscriptions: VecDeque::new(),
            requests: VecDeque::new(),
            tickets: 0,
            sent: BTreeMap::new(),
            asking: BTreeMap::new(),
            to_locate: Vec::new(),
            queries: Vec::new(),
            deferred: Vec::new(),
            deferred_asked: Vec::new(),
            directory_due_ms: 0,
            directory_asked: false,
            probe: Probe::default(),
            leaving: false,
            left: false,
            finished: false,
            trouble: None,
        }
    }

    /// The shards are there: these lanes lead to them.
    pub fn attach(&mut self, lanes: Lanes) {
        self.lanes = lanes;
    }

    /// True once the lease is ours and the channels are heard.
    pub fn is_member(&self) -> bool {
        self.membership.standing() == Standing::Member
    }

    /// True if a live gateway has our id.
    pub fn is_id_taken(&self) -> bool {
        self.membership.standing() == Standing::IdTaken
    }

    /// The last words of a store that could not be asked, or refused.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// True if somebody has our id, alive or not.
    pub fn is_id_held(&self) -> bool {
        self.membership.is_watching()
    }

    /// True once [`Cluster::leave`] was called.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Leaves: presence counts no more from now on, and is taken away. Messages still go both ways.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.membership.set_state(LeaseState::Leaving);
    }

    /// True once nothing of us is written down any more but the lease.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// The end: gives the lease back; [`Cluster::is_idle`] tells when that is done. What is still written down then is
    /// swept by others.
    pub fn finish(&mut self) {
        if matches!(self.membership.standing(), Standing::Entering | Standing::Member) {
            let id = Arc::clone(self.membership.id());
            self.request(Purpose::Farewell, vec![Op::LeaseDrop { id }]);
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
    pub fn residue(&self) -> Residue {
        Residue {
            acks: self.outbound.waiting(),
            strangers: self
                .outbound
                .berths()
                .filter(|b| self.directory.name(*b).is_none())
                .count(),
            inbound: self.inbound.len(),
            asking: self.asking.len() + self.to_locate.len(),
            queries: self.queries.len() + self.deferred.len(),
            instructions: self.instructions.len(),
            presence: self.book.pending(),
        }
    }

    fn metrics(&self) -> &ClusterMetrics {
        &self.view.cluster.metrics
    }

    fn is_up(&self) -> bool {
        self.view.cluster.is_up()
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
    pub fn handle_batch(&mut self, mut batch: Batch) {
        let from = batch.from;
        for item in std::mem::take(&mut batch.items) {
            match item {
                Item::Route(route) => {
                    let wanted = route.ack.as_ref().map(|(shard, ack)| Wanted {
                        shard: *shard,
                        conn: ack.conn,
                        client_id: batch.text(ack.client_id),
                        message_id: ack.message_id,
                    });
                    let sent = self.outbound.message(
                        self.membership.origin(),
                        route.places.as_slice(),
                        batch.text(route.to),
                        batch.bytes(route.frame),
                        wanted,
                    );
                    if sent.is_err() {
                        self.metrics().dropped(ClusterDrop::MessageGatewayFull, 1);
                    }
                }
                Item::Locate { hash, user } => {
                    let name = batch.text(user);
                    if !self.is_up() {
                        let location = Location::Unknown;
                        self.lanes
                            .say_of_user(from, name, |user| Item::Located { hash, user, location });
                    } else if !self.asking.contains_key(name) {
                        let user: Arc<str> = name.into();
                        self.to_locate.push(Arc::clone(&user));
                        self.asking.insert(user, false);
                    }
                }
                Item::PresenceQuery { ticket, users } => {
                    if self.is_up() {
                        let places = users.iter().map(|(place, ..)| *place).collect();
                        let names = users.iter().map(|(.., user)| batch.text(*user).into()).collect();
                        let query = Query {
                            shard: from,
                            ticket,
                            places,
                        };
                        self.queries.push((query, names));
                    } else {
                        self.lanes.say(from, Item::PresenceUnknown { ticket });
                    }
                }
                // Without Redis, and when we leave, nothing is written; afterwards everything is written again.
                Item::Presence { user, connections } => {
                    if self.connected && !self.leaving {
                        self.book.set(batch.text(user), connections);
                    }
                }
                Item::PresenceLost => self.book.lost(self.now.mono_ms()),
                Item::UsersListed { next } => self.book.handle_listed(from.0, next),
                Item::PacketDone { packet, missed } => {
                    if let Some((berth, confirm)) = self.inbound.handle_done(packet, &missed) {
                        self.outbound.confirm(self.membership.origin(), berth, &confirm);
                    }
                }
                other => debug_assert!(false, "not for the control thread: {other:?}"),
            }
        }
    }

    /// Tells the other gateways what this one's shards were told.
    pub fn spread(&mut self, instruction: &Instruction) {
        if !self.is_up() {
            return self.metrics().dropped(ClusterDrop::OrderRedisAway, 1);
        }
        let origin = self.membership.origin();
        match instruction {
            Instruction::Broadcast(frame) => self.orders.broadcast(origin, frame),
            Instruction::CloseUser { user, reason } => self.orders.close_user(origin, user, reason.code()),
        }
    }

    /// The next thing that another gateway wants all shards to do.
    pub fn poll_instruction(&mut self) -> Option<Instruction> {
        self.instructions.pop_front()
    }

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
            self.send_orders();
            self.send_probe(now_ms);
            self.sweep(now_ms);
        }
        let unconfirmed = self.outbound.handle_timeouts(now_ms);
        self.metrics().dropped(ClusterDrop::PacketUnconfirmed, unconfirmed);
        self.judge_health(now_ms);
        self.tell_verdicts();
        let metrics = self.metrics();
        metrics.gateways.set(self.directory.len() as u64);
        metrics.presence_pending.set(self.book.pending() as u64);
        metrics.acks_waiting.set(self.outbound.waiting() as u64);
        self.lanes.flush();
    }

    fn ask_membership(&mut self, now_ms: u64) {
        if self.membership.state() == LeaseState::Syncing && self.book.is_written() {
            self.membership.set_state(LeaseState::Synced);
        }
        if let Some(ops) = self.membership.poll_ops(now_ms) {
            self.request(Purpose::Membership, ops);
        }
        if self.membership.poll_announcement() {
            self.orders.look(self.membership.origin());
        }
        self.follow_membership();
    }

    /// Hears the channel of this incarnation, and no other; is a member once it does.
    fn follow_membership(&mut self) {
        let standing = self.membership.standing();
        if matches!(standing, Standing::Entering | Standing::Member) {
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
            self.probe = Probe {
                nonce: self.probe.nonce,
                ..Probe::default()
            };
        } else if standing == Standing::Member && !hears_all {
            self.membership.unsubscribed();
        }
    }

    fn ask_directory(&mut self, now_ms: u64) {
        let entered = matches!(self.membership.standing(), Standing::Entering | Standing::Member);
        if entered && !self.directory_asked && now_ms >= self.directory_due_ms {
            self.directory_asked = true;
            self.deferred_asked.append(&mut self.deferred);
            self.directory_due_ms = now_ms + self.times.directory_ms;
            self.request(Purpose::Directory, vec![Op::ReadDirectory]);
        }
    }

    fn write_presence(&mut self, now_ms: u64) {
        if !matches!(self.membership.standing(), Standing::Entering | Standing::Member) {
            return;
        }
        if !self.leaving && !self.lanes.is_empty() {
            match self.book.poll_step(now_ms) {
                Some(Step::List { shard, from, count }) => {
                    self.lanes.say(ShardId(shard), Item::ListUsers { from, count });
                }
                Some(Step::Check(users)) => self.check_users(&users),
                Some(Step::Scan { cursor }) => {
                    let owner = self.membership.incarnation();
                    self.request(Purpose::IndexScan, vec![Op::IndexScan { owner, cursor }]);
                }
                None => {}
            }
        }
        if let Some(ops) = self.book.poll_ops(now_ms) {
            self.request(Purpose::Presence, ops);
        }
    }

    fn ask_places(&mut self) {
        let mut to_locate = std::mem::take(&mut self.to_locate);
        while !to_locate.is_empty() {
            let rest = to_locate.split_off(to_locate.len().min(LOCATES_MAX));
            let users = std::mem::replace(&mut to_locate, rest);
            let ops = users.iter().map(|user| Op::Locate { user: Arc::clone(user) }).collect();
            self.request(Purpose::Locate(users), ops);
        }
        for (query, users) in std::mem::take(&mut self.queries) {
            let ops = users.into_iter().map(|user| Op::Locate { user }).collect();
            self.request(Purpose::Query(query), ops);
        }
    }

    fn send_packets(&mut self, now_ms: u64) {
        while let Some(packet) = self.outbound.poll_packet(now_ms) {
            let Some((id, incarnation)) = self.directory.name(packet.berth) else {
                // It was taken out of the directory after the shard had asked, or had sent what is answered now.
                self.metrics()
                    .dropped(ClusterDrop::MessageGatewayGone, packet.messages.into());
                self.outbound
                    .handle_published(packet.berth, packet.sequence, Err(Lost::Dead));
                let unsent = self.outbound.gone(packet.berth);
                self.metrics().dropped(ClusterDrop::MessageGatewayGone, unsent);
                continue;
            };
            self.metrics().packets_sent.inc();
            self.metrics().messages_sent.add(packet.messages.into());
            let purpose = Purpose::Packet {
                berth: packet.berth,
                sequence: packet.sequence,
                messages: packet.messages,
            };
            let channel = Channel::Gateway(id, incarnation);
            let payload = packet.payload;
            self.request(purpose, vec![Op::Publish { channel, payload }]);
        }
    }

    fn send_orders(&mut self) {
        if !self.orders.is_empty() && self.is_member() {
            let payload = std::mem::take(&mut self.orders).close(0);
            let channel = Channel::All;
            self.request(Purpose::Order, vec![Op::Publish { channel, payload }]);
        }
    }

    fn send_probe(&mut self, now_ms: u64) {
        if !self.is_member() {
            return;
        }
        if self.probe.under_way && now_ms >= self.probe.sent_ns / 1_000_000 + PROBE_LOST_MS {
            self.probe.lost = true;
            self.subscribe_anew();
        }
        if now_ms < self.probe.due_ms {
            return;
        }
        let mut packet = PacketBuilder::default();
        self.probe.nonce += 1;
        self.probe.sent_ns = self.now.mono_ns;
        self.probe.under_way = true;
        self.probe.due_ms = now_ms + if self.probe.lost { PROBE_LOST_MS } else { PROBE_MS };
        packet.probe(self.membership.origin(), self.probe.nonce);
        let op = Op::Publish {
            channel: self.membership.channel(),
            payload: packet.close(0),
        };
        self.request(Purpose::Probe, vec![op]);
    }

    /// The subscription seems to be there, but nothing comes: another one.
    fn subscribe_anew(&mut self) {
        self.probe.under_way = false;
        if let Some(channel) = self.channel.clone() {
            self.heard.retain(|heard| *heard != channel);
            self.subscriptions.push_back(Subscription::End(channel.clone()));
            self.subscriptions.push_back(Subscription::Begin(channel));
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        if self.sweep.is_none() && self.leaving {
            // Our own, when everybody knows that it does not count and the index is whole.
            if !self.left && self.membership.has_left() && self.book.is_idle() {
                self.sweep = Some(Sweep::new(self.membership.incarnation()));
            }
        } else if self.sweep.is_none()
            && !self.claiming
            && self.is_member()
            && let Some(target) = self.past.pop()
        {
            self.sweep = Some(Sweep::new(target));
        } else if self.sweep.is_none()
            && !self.claiming
            && self.is_member()
            && let Some(target) = self.to_sweep.pop()
        {
            let op = Op::Claim {
                task: Task::Sweep(target),
                by: self.membership.incarnation(),
                ttl_ms: SWEEP_CLAIM_MS,
            };
            self.claiming = true;
            self.request(Purpose::SweepClaim(target), vec![op]);
        }
        if let Some(op) = self.sweep.as_mut().and_then(|sweep| sweep.poll_scan(now_ms)) {
            self.request(Purpose::SweepScan, vec![op]);
        }
    }

    fn judge_health(&mut self, now_ms: u64) {
        let before = self.view.cluster.health();
        let refused = self.book.refused().cloned();
        let slow = self
            .sent
            .first_key_value()
            .is_some_and(|(_, (_, sent_ms))| now_ms >= sent_ms + SLOW_MS);
        let health = match self.membership.standing() {
            _ if !self.connected && self.was_member => ClusterHealth::Unreachable,
            Standing::Away | Standing::Joining => ClusterHealth::Joining,
            Standing::IdTaken => ClusterHealth::IdTaken,
            Standing::Entering if self.was_member => ClusterHealth::Deaf,
            Standing::Entering => ClusterHealth::Joining,
            Standing::Member if slow => ClusterHealth::Slow,
            Standing::Member if self.probe.lost => ClusterHealth::ProbeLost,
            Standing::Member if self.book.refused().is_some() => ClusterHealth::Refusing,
            Standing::Member => ClusterHealth::Member,
        };
        let words = match health {
            ClusterHealth::Refusing => refused,
            ClusterHealth::Unreachable | ClusterHealth::Joining | ClusterHealth::Deaf => self.trouble.clone(),
            _ => None,
        };
        self.view.cluster.set_health(health, words.as_deref());
        if before.is_up() && !health.is_up() {
            self.fail_everything();
        }
        if before != health {
            match self.view.cluster.trouble() {
                Some(trouble) => log::warn!("{trouble}"),
                None => log::info!("one of {} gateways", self.directory.len() + 1),
            }
        }
    }

    /// Nobody shall wait for a Redis that does not answer.
    fn fail_everything(&mut self) {
        let unsent = self.outbound.redis_away();
        self.metrics().dropped(ClusterDrop::MessageRedisAway, unsent);
        self.to_locate.clear();
        let mut given_up: Vec<Purpose> = std::mem::take(&mut self.deferred)
            .into_iter()
            .chain(std::mem::take(&mut self.deferred_asked))
            .map(|(purpose, _)| purpose)
            .collect();
        // A late answer must not pass for one to the same question asked again: what it says may have changed since, and
        // the store has told so already.
        for (purpose, _) in self.sent.values_mut() {
            if matches!(purpose, Purpose::Locate(_) | Purpose::Query(_) | Purpose::Packet { .. }) {
                given_up.push(std::mem::replace(purpose, Purpose::Abandoned));
            }
        }
        let waiting = std::mem::take(&mut self.queries).into_iter().map(|(query, _)| query);
        let asked = given_up.into_iter().filter_map(|purpose| match purpose {
            Purpose::Query(query) => Some(query),
            _ => None,
        });
        let queries: Vec<(ShardId, u32)> = waiting.chain(asked).map(|query| (query.shard, query.ticket)).collect();
        for (shard, ticket) in queries {
            self.lanes.say(shard, Item::PresenceUnknown { ticket });
        }
        for user in std::mem::take(&mut self.asking).into_keys() {
            self.tell_location(&user, Location::Unknown);
        }
    }

    fn tell_location(&mut self, user: &str, location: Location) {
        let hash = self.homes.hash(user);
        self.lanes
            .say_of_user(self.homes.home(hash), user, |user| Item::Located {
                hash,
                user,
                location,
            });
    }

    fn tell_verdicts(&mut self) {
        for verdict in self.outbound.poll_verdicts() {
            let (conn, message_id, status) = (verdict.conn, verdict.message_id, verdict.status);
            self.lanes
                .say_of_user(verdict.shard, &verdict.client_id, |client_id| Item::Ack {
                    conn,
                    client_id,
                    message_id,
                    status,
                });
        }
    }

    fn all_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let shards = if self.lanes.is_empty() { 0 } else { self.homes.shards() };
        (0..shards).map(ShardId)
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
        let entered = self.connected && matches!(standing, Standing::Entering | Standing::Member);
        let first = self.sent.first_key_value().map(|(_, (_, sent_ms))| sent_ms + SLOW_MS);
        // Only a member is called slow; nobody else is to be woken for that.
        let slow = first.filter(|_| standing == Standing::Member && self.view.cluster.health() != ClusterHealth::Slow);
        let membership = self.membership.poll_timeout().filter(|_| self.connected);
        let when = |yes: bool, due: Option<u64>| if yes { due } else { None };
        let directory = when(entered && !self.directory_asked, Some(self.directory_due_ms));
        let probe = when(self.connected && standing == Standing::Member, Some(self.probe.due_ms));
        let probe_back = when(
            probe.is_some() && self.probe.under_way,
            Some(self.probe.sent_ns / 1_000_000 + PROBE_LOST_MS),
        );
        // Who leaves lists nobody any more, but writes what it has.
        let book = match self.leaving {
            true => self.book.write_timeout(),
            false => self.book.poll_timeout(),
        };
        let book = when(entered && !self.lanes.is_empty(), book);
        let sweep = when(entered, self.sweep.as_ref().and_then(Sweep::poll_timeout));
        let confirm = self.outbound.poll_timeout();
        let all = [slow, membership, directory, probe, probe_back, book, sweep, confirm];
        all.into_iter().flatten().min()
    }
}

/// What a cluster holds for others.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Residue {
    pub acks: usize,
    /// Gateways with something on its way that are in no directory.
    pub strangers: usize,
    pub inbound: usize,
    pub asking: usize,
    pub queries: usize,
    pub instructions: usize,
    pub presence: usize,
}
