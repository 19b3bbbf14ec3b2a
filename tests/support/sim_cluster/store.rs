//! Redis as one server, as far as a cluster needs it: data, leases that expire, tracked reads, and
//! subscriptions.
//!
//! Several systems may share one server, each in a database or under a prefix of its own: data are
//! apart by their keys, and what a server has for all of them together is [`Common`].
//!
//! Operations are carried out one at a time. The effects on other connections (packets,
//! invalidations) are returned and travel on those connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use shardgate::cluster::store::{
    Answer, Channel, Failure, FailureKind, Incarnation, Lease, LeaseState, Op, Registered, Task,
};

use shardgate::redis::keys::Names;

use super::link::MS;

/// One connection that a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId {
    number: u64,
    /// Of which of two servers.
    server: usize,
    /// Of a gateway of which system.
    system: usize,
}

/// What all systems on a server share.
#[derive(Debug, Default)]
pub struct Common {
    /// Connections with the names of the channels that they are subscribed to, and what these mean
    /// to them.
    subscribers: Vec<(ConnId, String, Channel)>,
    readers: BTreeMap<Arc<str>, BTreeSet<ConnId>>,
    last_conn: u64,
    /// For connections of other systems.
    foreign: Vec<Effect>,
}

/// The stored data.
#[derive(Debug, Clone, Default)]
pub struct Data {
    pub users: BTreeMap<Arc<str>, BTreeMap<Incarnation, u32>>,
    pub indices: BTreeMap<Incarnation, BTreeSet<Arc<str>>>,
    pub directory: BTreeMap<Incarnation, Arc<str>>,
    leases: BTreeMap<Arc<str>, (Lease, u64)>,
    claims: BTreeMap<String, u64>,
}

/// One step of an operation. Reading the directory takes two.
#[derive(Debug, Clone)]
pub enum Step {
    Op(Op),
    Leases(Vec<(Arc<str>, Incarnation)>),
}

#[derive(Debug)]
pub enum Outcome {
    Answer(Answer),
    Then(Step),
}

/// The effects of an operation on other connections.
#[derive(Debug)]
pub enum Effect {
    /// On a connection for commands.
    Invalidate(ConnId, Arc<str>),
    /// On a connection for subscriptions.
    Packet(ConnId, Channel, Bytes),
}

impl Effect {
    fn conn(&self) -> ConnId {
        match self {
            Effect::Invalidate(conn, _) | Effect::Packet(conn, ..) => *conn,
        }
    }

    /// Something was published.
    pub fn is_packet(&self) -> bool {
        matches!(self, Effect::Packet(..))
    }
}

/// A server, as one system sees it.
#[derive(Debug)]
pub struct Redis {
    names: Names,
    server: usize,
    system: usize,
    /// Lent to the system that runs.
    pub common: Common,
    pub data: Data,
    /// The data after a restart.
    pub snapshot: Data,
    /// Writes are refused: out of memory.
    pub oom: bool,
    /// No client can connect before this time.
    pub down_until_ns: u64,
    /// Publishing in partitions is refused before this time.
    pub silent_until_ns: u64,
    /// Nothing is carried out before this time.
    pub frozen_until_ns: u64,
    /// Effects of commands on connections that broke.
    pub late: Vec<Effect>,
    /// Users that were read.
    pub locates: u64,
}

pub fn failed(kind: FailureKind, text: &str) -> Answer {
    let text = text.into();
    Answer::Failed(Failure { kind, text })
}

fn key(task: &Task) -> String {
    match task {
        Task::TakeOver(id) => format!("id {id}"),
        Task::Sweep(incarnation) => format!("sweep {incarnation}"),
    }
}

/// An order that has nothing to do with when a user came, and never 0.
fn place(user: &str) -> u64 {
    let hash = user.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 40) + 1
}

/// Users in one answer of a scan: few, so that scans take several.
const SCANNED: usize = 2;

impl Redis {
    /// The first or second server, as the system with these names sees it.
    pub fn new(server: usize, system: usize, names: Names) -> Self {
        Redis {
            names,
            server,
            system,
            common: Common::default(),
            data: Data::default(),
            snapshot: Data::default(),
            oom: false,
            down_until_ns: 0,
            silent_until_ns: 0,
            frozen_until_ns: 0,
            late: Vec::new(),
            locates: 0,
        }
    }

    pub fn connect(&mut self) -> ConnId {
        self.common.last_conn += 1;
        ConnId {
            number: self.common.last_conn,
            server: self.server,
            system: self.system,
        }
    }

    /// Keeps what is for another system. Returns false if it is not.
    pub fn keep_foreign(&mut self, effect: Effect) -> bool {
        let foreign = effect.conn().system != self.system;
        if foreign {
            self.common.foreign.push(effect);
        }
        foreign
    }

    /// What other systems have brought for this one.
    pub fn take_foreign(&mut self) -> Vec<Effect> {
        let system = self.system;
        let (ours, others) = std::mem::take(&mut self.common.foreign)
            .into_iter()
            .partition(|effect| effect.conn().system == system);
        self.common.foreign = others;
        ours
    }

    pub fn disconnect(&mut self, conn: ConnId) {
        self.common.subscribers.retain(|(subscriber, ..)| *subscriber != conn);
        for readers in self.common.readers.values_mut() {
            readers.remove(&conn);
        }
    }

    /// All connections are gone; the data is what the caller makes it.
    pub fn restart(&mut self, data: Data, until_ns: u64) {
        self.data = data;
        self.down_until_ns = until_ns;
        self.frozen_until_ns = 0;
        let system = self.system;
        self.common.subscribers.retain(|(conn, ..)| conn.system != system);
        for readers in self.common.readers.values_mut() {
            readers.retain(|conn| conn.system != system);
        }
    }

    pub fn subscribe(&mut self, conn: ConnId, channel: Channel) {
        self.unsubscribe(conn, &channel);
        let name = self.names.channel(&channel);
        self.common.subscribers.push((conn, name, channel));
    }

    pub fn unsubscribe(&mut self, conn: ConnId, channel: &Channel) {
        self.common
            .subscribers
            .retain(|(subscriber, _, heard)| *subscriber != conn || heard != channel);
    }

    pub fn is_heard(&self, conn: ConnId, channel: &Channel) -> bool {
        self.heard(conn).any(|heard| heard == channel)
    }

    /// The pushes to a connection.
    pub fn heard(&self, conn: ConnId) -> impl Iterator<Item = &Channel> {
        let heard = self.common.subscribers.iter().filter(move |(c, ..)| *c == conn);
        heard.map(|(.., channel)| channel)
    }

    pub fn lease(&self, id: &str, now_ms: u64) -> Option<Lease> {
        let (lease, until_ms) = self.data.leases.get(id)?;
        (now_ms < *until_ms).then_some(*lease)
    }

    fn changed(&mut self, user: &Arc<str>, effects: &mut Vec<Effect>) {
        // Once for each reading, and the writer gets one as well.
        let readers = self.common.readers.remove(user).unwrap_or_default();
        effects.extend(
            readers
                .into_iter()
                .map(|conn| Effect::Invalidate(conn, Arc::clone(user))),
        );
    }

    /// A user's key is deleted by a foreign client, or evicted.
    pub fn lose_user(&mut self, user: &Arc<str>, effects: &mut Vec<Effect>) {
        if self.data.users.remove(user).is_some() {
            self.changed(user, effects);
        }
    }

    pub fn carry_out(&mut self, conn: ConnId, step: Step, now_ms: u64, effects: &mut Vec<Effect>) -> Outcome {
        let op = match step {
            Step::Op(op) => op,
            Step::Leases(gateways) => {
                let lines = gateways.into_iter().map(|(id, incarnation)| Registered {
                    lease: self.lease(&id, now_ms),
                    id,
                    incarnation,
                });
                return Outcome::Answer(Answer::Directory(lines.collect()));
            }
        };
        let takes_memory = matches!(
            op,
            Op::SetPresence { .. }
                | Op::KeepPresence { .. }
                | Op::IndexAdd { .. }
                | Op::LeaseTake { .. }
                | Op::LeaseWrite { .. }
                | Op::Register { .. }
                | Op::Claim { .. }
        );
        if self.oom && takes_memory {
            return Outcome::Answer(failed(FailureKind::Refused, "OOM"));
        }
        let data = &mut self.data;
        Outcome::Answer(match op {
            Op::SetPresence {
                user,
                owner,
                connections,
            } => {
                data.users
                    .entry(Arc::clone(&user))
                    .or_default()
                    .insert(owner, connections);
                self.changed(&user, effects);
                Answer::Done
            }
            Op::KeepPresence {
                user,
                owner,
                connections,
            } => {
                let owners = data.users.entry(Arc::clone(&user)).or_default();
                let lost = !owners.contains_key(&owner);
                if lost {
                    owners.insert(owner, connections);
                    self.changed(&user, effects);
                }
                Answer::Taken(lost)
            }
            Op::ClearPresence { user, owner } => {
                if let Some(owners) = data.users.get_mut(&user)
                    && owners.remove(&owner).is_some()
                {
                    if owners.is_empty() {
                        data.users.remove(&user);
                    }
                    self.changed(&user, effects);
                }
                Answer::Done
            }
            Op::Locate { user } => {
                self.locates += 1;
                let readers = self.common.readers.entry(Arc::clone(&user)).or_default();
                readers.insert(conn);
                let places = data.users.get(&user).into_iter().flatten();
                Answer::Places(places.map(|(owner, count)| (*owner, *count)).collect())
            }
            Op::IndexAdd { owner, users } => {
                data.indices.entry(owner).or_default().extend(users);
                Answer::Done
            }
            Op::IndexRemove { owner, users } => {
                if let Some(index) = data.indices.get_mut(&owner) {
                    index.retain(|user| !users.contains(user));
                    if index.is_empty() {
                        data.indices.remove(&owner);
                    }
                }
                Answer::Done
            }
            Op::IndexScan { owner, cursor } => {
                let index = data.indices.get(&owner).into_iter().flatten();
                let mut rest: Vec<_> = index.filter(|user| place(user) >= cursor).cloned().collect();
                rest.sort_by_key(|user| place(user));
                let cursor = rest.get(SCANNED).map_or(0, |user| place(user));
                rest.truncate(SCANNED);
                Answer::Users { cursor, users: rest }
            }
            Op::Publish {
                channel: Channel::Partition(_),
                ..
            } if now_ms * MS < self.silent_until_ns => failed(FailureKind::Refused, "NOPERM"),
            Op::Publish { channel, payload } => {
                let name = self.names.channel(&channel);
                let takers = self.common.subscribers.iter().filter(|(_, heard, _)| *heard == name);
                let takers: Vec<_> = takers.collect();
                effects.extend(
                    takers
                        .iter()
                        .map(|(conn, _, channel)| Effect::Packet(*conn, channel.clone(), payload.clone())),
                );
                Answer::Count(takers.len() as u64)
            }
            Op::LeaseTake { id, lease, ttl_ms } => {
                let free = self.lease(&id, now_ms).is_none();
                if free {
                    self.data.leases.insert(id, (lease, now_ms + ttl_ms));
                }
                Answer::Taken(free)
            }
            Op::LeaseWrite { id, lease, ttl_ms } => {
                data.leases.insert(id, (lease, now_ms + ttl_ms));
                Answer::Done
            }
            Op::LeaseRead { id } => Answer::Lease(self.lease(&id, now_ms)),
            Op::LeaseDrop { id } => {
                data.leases.remove(&id);
                Answer::Done
            }
            Op::Register { id, incarnation } => {
                data.directory.insert(incarnation, id);
                Answer::Done
            }
            Op::Unregister { incarnation } => {
                data.directory.remove(&incarnation);
                Answer::Done
            }
            Op::ReadDirectory => {
                let lines: Vec<_> = data
                    .directory
                    .iter()
                    .map(|(life, id)| (Arc::clone(id), *life))
                    .collect();
                if !lines.is_empty() {
                    return Outcome::Then(Step::Leases(lines));
                }
                Answer::Directory(Vec::new())
            }
            Op::Claim { task, by: _, ttl_ms } => {
                let until_ms = data.claims.entry(key(&task)).or_default();
                let free = *until_ms <= now_ms;
                if free {
                    *until_ms = now_ms + ttl_ms;
                }
                Answer::Taken(free)
            }
        })
    }

    pub fn takes_connections(&self, now_ns: u64) -> bool {
        now_ns >= self.down_until_ns && now_ns >= self.frozen_until_ns
    }

    /// Is this gateway one that everybody can see and reach?
    pub fn is_reachable(&self, id: &str, life: Incarnation, ear: ConnId, now_ms: u64) -> bool {
        self.lease(id, now_ms)
            .is_some_and(|lease| lease.incarnation == life && lease.state == LeaseState::Synced)
            && self.is_heard(ear, &Channel::All)
            && self.is_heard(ear, &Channel::Gateway(id.into(), life))
    }
}
