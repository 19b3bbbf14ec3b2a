//! A cluster's rules alone, between shards that ask in any order and a store with arbitrary
//! answers. Answers have any kind and number, packets come from any sender, and connections come
//! and go.
//!
//! Some rules hold whatever comes. Nothing panics, and no request is answered twice. Every request
//! is answered once the store is lost. No bytes reach a shard that are no body of a message. The
//! memory of other gateways is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use shardgate::cluster::packet::{Confirm, FRAMES, Origin, PacketBuilder, for_older_gateways};
use shardgate::cluster::seal::Keyring;
use shardgate::cluster::store::{
    Answer, Channel, Failure, FailureKind, Incarnation, Lease, LeaseState, Op, Registered, StoreEvent,
};
use shardgate::cluster::{Cluster, Identity, Subscription};
use shardgate::engine::Waker;
use shardgate::ids::ShardId;
use shardgate::lanes::mailbox::{Mailboxes, mailboxes};
use shardgate::lanes::{
    self, ChannelToControl, ChannelToShard, Inbox, MessageToControl, MessageToShard, PresenceToControl,
    PresenceToShard, RosterToShard, ShardCommand, ToControl, ToShard,
};
use shardgate::router::{HomeMap, Partition};
use shardgate::shared::{Now, Shared};
use shardgate::wire::codec::Codec;
use shardgate::wire::json::encode::is_body_of;
use shardgate::wire::message::{Broadcast, Message, Publication, ServerMessage};
use shardgate::wire::ws::close::CloseReason;

use super::sim::chance::Chance;

const SHARDS: u16 = 2;
const MS: u64 = 1_000_000;

/// Counts of events, so that a test sees that some happen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Questions that were answered.
    pub answered: u64,
    /// Questions that were refused.
    pub refused: u64,
    /// Messages and publications of peers that reached a shard.
    pub bodies: u64,
}

/// One gateway's rules, and everything around them.
struct Hostile<'a> {
    chance: &'a mut Chance,
    cluster: Cluster,
    /// Knows what `cluster` knows, if the store has the key.
    keyring: Keyring,
    homes: HomeMap,
    mailboxes: Mailboxes,
    inboxes: Vec<Inbox<ToShard>>,
    control_inbox: Inbox<ToControl>,
    shared: Arc<Shared>,
    now_ns: u64,
    /// Requests that are not answered, and how many answers each wants.
    asked: Vec<(u64, Vec<Op>)>,
    heard: Vec<Channel>,
    sequence: u32,
    ticket: u32,
    /// Questions of shards that are not answered.
    questions: BTreeMap<(u16, u32), ()>,
    /// Replies that shards still have to send, by shard.
    owed: Vec<(u16, ToControl)>,
    tally: Tally,
}

/// Runs until the choices are used up, or for so many steps. Then the store goes and every request
/// must have its answer.
pub fn run(chance: &mut Chance, steps: usize) -> Tally {
    let mut hostile = Hostile::new(chance);
    for _ in 0..steps {
        if hostile.chance.is_spent() {
            break;
        }
        for _ in 0..=hostile.chance.below(4) {
            hostile.step();
        }
        hostile.turn();
    }
    hostile.end()
}

impl<'a> Hostile<'a> {
    fn new(chance: &'a mut Chance) -> Self {
        let lanes::Inboxes {
            shards: inboxes,
            control: control_inbox,
            senders,
            depths,
        } = lanes::inboxes(SHARDS);
        let cpus = vec![None; usize::from(SHARDS)];
        let shared = Arc::new(Shared::new("gw".into(), true, "model", cpus, Arc::clone(&depths)));
        let waker = || Waker::inert().expect("a waker");
        let wakers = (0..SHARDS).map(|_| waker()).collect();
        let mailboxes = mailboxes(senders, wakers, Some(waker()));
        let homes = HomeMap::new(SHARDS, [7; 16]);
        let identity = Identity {
            id: "gw".into(),
            seed: 1,
            ttl_ms: 9_000,
        };
        let keys: &[&str] = chance.pick(&[&[], &["the key of all gateways"]]);
        let keyring = || Keyring::new(keys.iter().copied(), "p:");
        let now = Now {
            mono_ns: 0,
            wall_ms: 1_700_000_000_000,
        };
        let mut cluster = Cluster::new(&identity, homes.clone(), Arc::clone(&shared), now).with_keyring(keyring());
        cluster.attach(mailboxes.lanes(lanes::control_id(SHARDS), &depths));
        Hostile {
            chance,
            cluster,
            keyring: keyring(),
            homes,
            mailboxes,
            inboxes,
            control_inbox,
            shared,
            now_ns: 0,
            asked: Vec::new(),
            heard: Vec::new(),
            sequence: 0,
            ticket: 0,
            questions: BTreeMap::new(),
            owed: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ns: self.now_ns,
            wall_ms: 1_700_000_000_000 + self.now_ns / MS,
        }
    }

    fn user(&mut self) -> String {
        format!("user{}", self.chance.below(6))
    }

    fn incarnation(&mut self) -> Incarnation {
        match self.chance.below(8) {
            0 => self.cluster.incarnation(),
            n => Incarnation(n as u64),
        }
    }

    fn body(&mut self, kind: &str) -> Vec<u8> {
        let id = uuid::Uuid::nil();
        let (from, content, ts_ms) = ("a", "1", 7);
        let message = match kind {
            "message" => ServerMessage::Message(Message {
                id,
                from,
                to: "b",
                content,
                ts_ms,
            }),
            "publication" => ServerMessage::Publication(Publication {
                id,
                from,
                channel: "room",
                content,
                ts_ms,
            }),
            _ => ServerMessage::Broadcast(Broadcast { id, content, ts_ms }),
        };
        let mut body = Vec::new();
        Codec::Json.encode(&mut body, &message);
        match self.chance.below(8) {
            0 => body.clear(),
            1 => body.truncate(self.chance.below(8)),
            2 => {
                let at = self.chance.below(body.len());
                body[at] = self.chance.below(256) as u8;
            }
            _ => {}
        }
        body
    }

    /// A packet on a channel, of one to three items, as good as not broken on the way.
    fn packet(&mut self, channel: &Channel) -> Bytes {
        let id = self.chance.pick(&["gw", "b", "c", ""]);
        let incarnation = self.incarnation();
        let origin = Origin { id, incarnation };
        let mut packet = PacketBuilder::default();
        for _ in 0..=self.chance.below(3) {
            match self.chance.below(9) {
                0 | 1 => {
                    let (user, body) = (self.user(), self.body("message"));
                    packet.message(origin, &user, &body, self.chance.percent(70));
                }
                2 => {
                    let indexes = |chance: &mut Chance| (0..chance.below(4)).map(|_| chance.below(5) as u16).collect();
                    let confirm = Confirm {
                        sequence: self.chance.below(12) as u32,
                        refused: self.chance.percent(10),
                        missed: indexes(self.chance),
                        failed: indexes(self.chance),
                    };
                    packet.confirm(origin, &confirm);
                }
                3 => {
                    let body = self.body("broadcast");
                    packet.broadcast(origin, &body);
                }
                4 => {
                    let user = self.user();
                    packet.close_user(origin, &user, self.chance.below(5_000) as u16);
                }
                5 => packet.probe(origin, self.chance.below(5) as u64),
                6 => packet.look(origin),
                7 => packet.challenge(origin),
                _ => {
                    let body = self.body("publication");
                    packet.publication(origin, &format!("room{}", self.chance.below(4)), &body);
                }
            }
        }
        let sequence = match self.chance.below(5) {
            0 => 0,
            1 => self.chance.below(12) as u32,
            _ => {
                self.sequence += 1;
                self.sequence
            }
        };
        let mut packet = packet.close(sequence);
        // In the form of an older gateway, or of one that takes bodies for frames.
        match self.chance.below(8) {
            0 | 1 => packet = for_older_gateways(packet),
            2 => packet[0] = FRAMES,
            _ => {}
        }
        // Now and then from a sender without the key.
        let sealed = if self.chance.percent(10) {
            packet.into()
        } else {
            self.keyring.seal(channel, packet)
        };
        if self.chance.percent(85) {
            return sealed;
        }
        let mut broken = sealed.to_vec();
        match self.chance.below(3) {
            0 => broken.truncate(self.chance.below(broken.len() + 1)),
            1 => {
                let at = self.chance.below(broken.len());
                broken[at] = self.chance.below(256) as u8;
            }
            _ => {
                broken = (0..self.chance.below(40))
                    .map(|_| self.chance.below(256) as u8)
                    .collect()
            }
        }
        broken.into()
    }

    fn failure(&mut self) -> Answer {
        let kind = self.chance.pick(&[FailureKind::Unavailable, FailureKind::Refused]);
        let text = self.chance.pick(&["gone", "WRONGTYPE", "OOM"]).into();
        Answer::Failed(Failure { kind, text })
    }

    fn lease(&mut self) -> Option<Lease> {
        self.chance.percent(80).then(|| Lease {
            incarnation: self.incarnation(),
            state: self.chance.pick(&[
                LeaseState::Synced,
                LeaseState::Synced,
                LeaseState::Syncing,
                LeaseState::Leaving,
            ]),
            renewals: self.chance.below(5) as u64,
            partitions: self.chance.pick(&[0, 64, 64, 8]),
            keyed: self.chance.percent(20),
            reads_bodies: self.chance.percent(80),
        })
    }

    /// Any answer at all.
    fn any_answer(&mut self) -> Answer {
        match self.chance.below(8) {
            0 => Answer::Done,
            1 => Answer::Taken(self.chance.percent(50)),
            2 => Answer::Count(self.chance.below(4) as u64),
            3 => {
                let places = 0..self.chance.below(4);
                Answer::Places(
                    places
                        .map(|_| (self.incarnation(), self.chance.below(3) as u32))
                        .collect(),
                )
            }
            4 => Answer::Lease(self.lease()),
            5 => {
                let users = 0..self.chance.below(4);
                Answer::Users {
                    users: users.map(|_| self.user().into()).collect(),
                    cursor: self.chance.below(3) as u64,
                }
            }
            6 => {
                let lines = 0..self.chance.below(4);
                let line = |this: &mut Self| Registered {
                    id: this.chance.pick(&["gw", "b", "c"]).into(),
                    incarnation: this.incarnation(),
                    lease: this.lease(),
                };
                Answer::Directory(lines.map(|_| line(self)).collect())
            }
            _ => self.failure(),
        }
    }

    /// The answer of a working store, more or less.
    fn fitting_answer(&mut self, op: &Op) -> Answer {
        match op {
            Op::LeaseTake { .. } | Op::Claim { .. } | Op::KeepPresence { .. } => Answer::Taken(self.chance.percent(90)),
            Op::LeaseRead { .. } if self.chance.percent(80) => Answer::Lease(Some(Lease {
                incarnation: self.cluster.incarnation(),
                state: LeaseState::Synced,
                renewals: 1,
                partitions: 64,
                keyed: self.keyring.seals(),
                reads_bodies: self.chance.percent(80),
            })),
            Op::LeaseRead { .. } => Answer::Lease(None),
            Op::Publish { .. } => Answer::Count(self.chance.pick(&[0, 1, 1, 1, 2, 2, 2, 2])),
            Op::Locate { .. } => {
                let places = 0..self.chance.below(3);
                Answer::Places(places.map(|_| (self.incarnation(), 1)).collect())
            }
            Op::IndexScan { .. } => Answer::Users {
                cursor: self.chance.pick(&[0, 0, 1]),
                users: vec![self.user().into()],
            },
            Op::ReadDirectory => {
                let older_from = self.chance.pick(&[2, 9, 9]);
                let live = |n: u64| {
                    let incarnation = Incarnation(n);
                    let lease = Lease {
                        incarnation,
                        state: LeaseState::Synced,
                        renewals: 1,
                        partitions: 64,
                        keyed: false,
                        reads_bodies: n < older_from,
                    };
                    Registered {
                        id: format!("gw{n}").into(),
                        incarnation,
                        lease: Some(lease),
                    }
                };
                Answer::Directory((1..=self.chance.below(4) as u64).map(live).collect())
            }
            _ => Answer::Done,
        }
    }

    fn step(&mut self) {
        match self.chance.below(20) {
            0..=8 if !self.asked.is_empty() => self.answer(),
            9..=11 => self.hear(),
            12..=16 => self.shard_says(),
            17 => {
                let user = self.user().into();
                let event = match self.chance.below(12) {
                    0 if self.chance.percent(30) => StoreEvent::Lost("gone".into()),
                    1 => StoreEvent::ForgetAll,
                    2 => StoreEvent::Refused("no".into()),
                    3 if !self.heard.is_empty() && self.chance.percent(30) => {
                        let at = self.chance.below(self.heard.len());
                        StoreEvent::Unsubscribed(self.heard[at].clone())
                    }
                    4 => StoreEvent::Subscribed(Channel::Partition(self.chance.below(70) as u16)),
                    _ => StoreEvent::Forget(vec![user]),
                };
                self.cluster.handle_event(event);
            }
            18 => match self.chance.below(60) {
                0 => self.cluster.leave(),
                1 => self.cluster.finish(),
                2..=8 => {
                    let user = self.user().into();
                    let reason = CloseReason::Administrator;
                    self.cluster.forward(&ShardCommand::CloseUser { user, reason });
                }
                9..=12 => {
                    let user = self.user().into();
                    self.cluster.inquire(1, user);
                }
                _ => self.now_ns += self.chance.pick(&[1, 5, 20, 50, 50, 100, 100, 1_000, 5_000]) * MS,
            },
            _ if !self.cluster.is_connected() => self.cluster.handle_event(StoreEvent::Connected),
            _ => self.now_ns += MS,
        }
    }

    /// The store answers something, mostly what is under way first.
    fn answer(&mut self) {
        let at = if self.chance.percent(80) {
            0
        } else {
            self.chance.below(self.asked.len())
        };
        let (ticket, ops) = self.asked.remove(at);
        for op in &ops {
            // Its own packets on a channel that it subscribes to come back to it.
            if let Op::Publish { channel, payload } = op
                && self.heard.contains(channel)
                && self.chance.percent(95)
            {
                let (channel, payload) = (channel.clone(), payload.clone());
                self.cluster.handle_event(StoreEvent::Received(channel, payload));
            }
        }
        let mut answers: Vec<Answer> = ops
            .iter()
            .map(|op| match self.chance.percent(90) {
                true => self.fitting_answer(op),
                false => self.any_answer(),
            })
            .collect();
        if self.chance.percent(3) {
            answers.truncate(self.chance.below(answers.len() + 1));
        }
        self.cluster.handle_event(StoreEvent::Answered {
            ticket,
            answers: answers.clone(),
        });
        if self.chance.percent(3) {
            self.cluster.handle_event(StoreEvent::Answered { ticket, answers });
        }
    }

    fn hear(&mut self) {
        let channel = match self.chance.below(10) {
            0 => Channel::Partition(self.chance.below(70) as u16),
            1 => Channel::Gateway("gw".into(), self.incarnation()),
            _ if self.heard.is_empty() => Channel::All,
            _ => self.heard[self.chance.below(self.heard.len())].clone(),
        };
        let payload = self.packet(&channel);
        self.cluster.handle_event(StoreEvent::Received(channel, payload));
    }

    fn shard_says(&mut self) {
        let shard = self.chance.below(usize::from(SHARDS)) as u16;
        let mut lanes = self.mailboxes.lanes(ShardId(shard), &self.shared.depths);
        let user = self.user();
        let hash = self.homes.hash(&user);
        match self.chance.below(8) {
            0..=2 => {
                self.ticket += 1;
                let users: Vec<String> = (0..self.chance.below(8)).map(|n| format!("user{n}")).collect();
                let indexed = (0u8..)
                    .zip(&users)
                    .map(|(index, user)| (index, self.homes.hash(user), &**user));
                let asker = self.homes.hash(&format!("asker{}", self.chance.below(3)));
                if lanes.try_cluster_query((self.ticket, asker), indexed).is_ok() {
                    self.questions.insert((shard, self.ticket), ());
                }
            }
            3 => {
                let _ = lanes.try_locate(hash, &user);
            }
            4 => {
                let _ = lanes.try_presence(&user, self.chance.below(3) as u32);
            }
            5 => lanes.push_control(PresenceToControl::Lost),
            6 => lanes.push_control(ChannelToControl::PartitionWanted {
                partition: Partition(self.chance.below(64) as u16),
                wanted: self.chance.percent(60),
            }),
            _ => {
                let owed = self.owed.iter().position(|(by, _)| *by == shard);
                if let Some(at) = owed {
                    let (_, item) = self.owed.remove(at);
                    lanes.push_control(item);
                }
            }
        }
        lanes.flush();
    }

    fn turn(&mut self) {
        let now = self.now();
        self.cluster.begin_turn(now);
        while let Some(mut batch) = self.control_inbox.try_next() {
            let room = batch.room();
            for item in std::mem::take(&mut batch.items) {
                let ToControl::Cluster(mail) = item else {
                    panic!("not for the cluster: {item:?}")
                };
                self.cluster.handle_mail(&batch, mail);
            }
            if let Some(room) = room {
                self.control_inbox.done(room);
            }
        }
        self.cluster.end_turn();
        while let Some(subscription) = self.cluster.poll_subscription() {
            match subscription {
                Subscription::Begin(channel) | Subscription::Renew(channel) => {
                    self.heard.retain(|heard| *heard != channel);
                    self.heard.push(channel.clone());
                    // Mostly confirmed at once.
                    if self.chance.percent(97) {
                        self.cluster.handle_event(StoreEvent::Subscribed(channel));
                    }
                }
                Subscription::End(channel) => self.heard.retain(|heard| *heard != channel),
            }
        }
        while let Some(request) = self.cluster.poll_request() {
            assert!(!request.ops.is_empty(), "an empty request");
            self.asked.push((request.ticket, request.ops));
        }
        while let Some(command) = self.cluster.poll_command() {
            if let ShardCommand::Broadcast(message) = command {
                assert!(is_body_of("broadcast", message.body()), "{message:?}");
            }
        }
        while self.cluster.poll_whereabouts().is_some() {}
        for shard in 0..SHARDS {
            self.shard_hears(shard);
        }
        assert!(self.cluster.known_gateways() <= 1_024 + 8, "gateways without end");
    }

    fn shard_hears(&mut self, shard: u16) {
        while let Some(mut batch) = self.inboxes[usize::from(shard)].try_next() {
            let room = batch.room();
            for item in std::mem::take(&mut batch.items) {
                let owed: ToControl = match item {
                    ToShard::Presence(mail) => {
                        let ticket = match mail {
                            PresenceToShard::Answer { ticket, .. } => {
                                self.tally.answered += 1;
                                ticket
                            }
                            PresenceToShard::Unknown { ticket, .. } => {
                                self.tally.refused += 1;
                                ticket
                            }
                            PresenceToShard::Query(query) => panic!("the control thread asks: {query:?}"),
                        };
                        let asked = self.questions.remove(&(shard, ticket));
                        assert!(asked.is_some(), "question {ticket} was answered twice");
                        continue;
                    }
                    ToShard::Message(MessageToShard::FromGateway { body, .. }) => {
                        self.tally.bodies += 1;
                        let body = batch.bytes(body);
                        assert!(is_body_of("message", body), "{body:?}");
                        continue;
                    }
                    ToShard::Channel(ChannelToShard::Published(item)) => {
                        self.tally.bodies += 1;
                        assert!(is_body_of("publication", item.message.body()), "{:?}", item.message);
                        continue;
                    }
                    ToShard::Message(MessageToShard::PacketEnd { packet }) => MessageToControl::PacketDone {
                        packet,
                        missed: (0..self.chance.below(3)).map(|_| self.chance.below(3) as u16).collect(),
                    }
                    .into(),
                    ToShard::Roster(RosterToShard::List { round, .. }) => {
                        PresenceToControl::Listed { round, next: None }.into()
                    }
                    ToShard::Roster(RosterToShard::ReviewPage { round, .. }) => PresenceToControl::Reviewed {
                        round,
                        page: Some(None),
                        users: Vec::new(),
                    }
                    .into(),
                    _ => continue,
                };
                self.owed.push((shard, owed));
            }
            if let Some(room) = room {
                self.inboxes[usize::from(shard)].done(room);
            }
        }
    }

    /// The store goes: every waiting request gets that answer.
    fn end(mut self) -> Tally {
        self.turn();
        self.cluster.handle_event(StoreEvent::Lost("gone".into()));
        for _ in 0..3 {
            self.turn();
        }
        assert!(self.questions.is_empty(), "never answered: {:?}", self.questions);
        let residue = self.cluster.residue();
        assert_eq!((residue.asking, residue.queries), (0, 0), "{residue:?}");
        self.tally
    }
}
