//! What a cluster asks of its store, and what it hears from it: the contract between
//! [`crate::cluster`], which decides, and a [`Store`], which carries it out: Redis in the gateway,
//! a model in simulations.
//!
//! Pure data, but for the trait. A request is a list of operations that are sent together; its
//! answers come together, in the same order. Requests reach each server in the order in which they
//! were made, so two packets for one gateway never overtake each other. No operation is tried twice
//! behind the asker's back, except that a server which says "not mine" is replaced by the right one
//! for operations that may be repeated (everything but `Publish`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// One life of a gateway: the id stays over restarts, the incarnation does not. Made of time and
/// chance, so that it is unique in practice and rises with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Not 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an incarnation is 16 hexadecimal digits")]
pub struct NotAnIncarnation;

impl FromStr for Incarnation {
    type Err = NotAnIncarnation;

    fn from_str(text: &str) -> Result<Self, NotAnIncarnation> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAnIncarnation);
        }
        u64::from_str_radix(text, 16)
            .map(Incarnation)
            .map_err(|_| NotAnIncarnation)
    }
}

/// First byte of what a store says to itself on a channel, to see that what is said comes. Nobody
/// else's payload begins with it, and nobody is handed what does.
pub const PROBE: u8 = 0;

/// Where gateways hear each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Channel {
    /// One life of one gateway.
    Gateway(Arc<str>, Incarnation),
    /// All gateways.
    All,
    /// Publications of the channels of one partition.
    Partition(u16),
}

/// What a gateway says of itself where everybody sees it; goes when it is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub incarnation: Incarnation,
    /// How far it is.
    pub state: LeaseState,
    /// Rises with each renewal: a newcomer with the same id sees by it that the holder lives.
    pub renewals: u64,
    /// Into how many partitions it divides channels; 0: it does not say.
    pub partitions: u16,
    /// It has a `cluster.key`: its packets are sealed, and it refuses others.
    pub keyed: bool,
    /// It reads packets with bodies, see [`super::packet`].
    pub reads_bodies: bool,
}

/// The word in a lease that says so.
const KEYED: &str = "keyed";
/// The word that says that its holder reads packets with bodies.
const READS_BODIES: &str = "bodies";

/// How far a gateway is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Its users are being written down: who is not found may still be there.
    Syncing,
    /// All its users are written down.
    Synced,
    /// It drains: its users do not count any more.
    Leaving,
}

impl LeaseState {
    const WORDS: [(LeaseState, &'static str); 3] = [
        (LeaseState::Syncing, "syncing"),
        (LeaseState::Synced, "synced"),
        (LeaseState::Leaving, "leaving"),
    ];
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = LeaseState::WORDS.iter().find(|(state, _)| *state == self.state);
        write!(
            f,
            "{} {} {} {}",
            self.incarnation,
            state.map_or("", |s| s.1),
            self.renewals,
            self.partitions
        )?;
        if self.keyed {
            write!(f, " {KEYED}")?;
        }
        if self.reads_bodies {
            write!(f, " {READS_BODIES}")?;
        }
        Ok(())
    }
}

impl FromStr for Lease {
    type Err = NotAnIncarnation;

    /// Later versions may add words behind.
    fn from_str(text: &str) -> Result<Self, NotAnIncarnation> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or(NotAnIncarnation);
        let incarnation = word()?.parse()?;
        let state = word()?;
        let state = LeaseState::WORDS.iter().find(|(_, known)| *known == state);
        let renewals = word()?.parse().map_err(|_| NotAnIncarnation)?;
        let partitions = word().ok().and_then(|word| word.parse().ok()).unwrap_or(0);
        let says = |said: &str| words.clone().any(|word| word == said);
        Ok(Lease {
            incarnation,
            state: state.ok_or(NotAnIncarnation)?.0,
            renewals,
            partitions,
            keyed: says(KEYED),
            reads_bodies: says(READS_BODIES),
        })
    }
}

/// One thing that the store can do. In brackets: what it is in Redis, and the [`Answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A user has this many connections on a gateway (HSET; `Done`).
    SetPresence {
        /// The user.
        user: Arc<str>,
        /// The gateway.
        owner: Incarnation,
        /// At least 1.
        connections: u32,
    },
    /// The same, if nothing is written of this user and gateway (HSETNX; `Taken`: true if nothing
    /// was).
    KeepPresence {
        /// The user.
        user: Arc<str>,
        /// The gateway.
        owner: Incarnation,
        /// At least 1.
        connections: u32,
    },
    /// A user has no connection on a gateway (HDEL; `Done`).
    ClearPresence {
        /// The user.
        user: Arc<str>,
        /// The gateway.
        owner: Incarnation,
    },
    /// Where is this user? The store tells with [`StoreEvent::Forget`] when the answer is no longer
    /// true, once (HGETALL with tracking; `Places`).
    Locate {
        /// The user.
        user: Arc<str>,
    },
    /// Adds users to the list by which a gateway's presence is swept after its death (SADD;
    /// `Done`).
    IndexAdd {
        /// The gateway.
        owner: Incarnation,
        /// Not empty.
        users: Vec<Arc<str>>,
    },
    /// Takes users from that list (SREM; `Done`).
    IndexRemove {
        /// The gateway.
        owner: Incarnation,
        /// Not empty.
        users: Vec<Arc<str>>,
    },
    /// A part of that list, from a cursor on, 0 at first (SSCAN; `Users`).
    IndexScan {
        /// The gateway.
        owner: Incarnation,
        /// 0, or what the last answer gave.
        cursor: u64,
    },
    /// Says something on a channel (PUBLISH or SPUBLISH; `Count` of those who took it). Never
    /// repeated.
    Publish {
        /// Where.
        channel: Channel,
        /// What. Does not begin with [`PROBE`].
        payload: Bytes,
    },
    /// Takes a lease if nobody has it (SET NX PX; `Taken`).
    LeaseTake {
        /// The gateway's id.
        id: Arc<str>,
        /// What to write.
        lease: Lease,
        /// How long it lasts.
        ttl_ms: u64,
    },
    /// Writes a lease that is ours (SET PX; `Done`).
    LeaseWrite {
        /// The gateway's id.
        id: Arc<str>,
        /// What to write.
        lease: Lease,
        /// How long it lasts.
        ttl_ms: u64,
    },
    /// Who has the lease of this id (GET; `Lease`)?
    LeaseRead {
        /// The gateway's id.
        id: Arc<str>,
    },
    /// Gives a lease that is ours back (DEL; `Done`).
    LeaseDrop {
        /// The gateway's id.
        id: Arc<str>,
    },
    /// Adds a gateway to the directory (HSET; `Done`).
    Register {
        /// The gateway's id.
        id: Arc<str>,
        /// Its life.
        incarnation: Incarnation,
    },
    /// Takes a gateway out of the directory (HDEL; `Done`).
    Unregister {
        /// Its life.
        incarnation: Incarnation,
    },
    /// All gateways with their leases (HGETALL, then MGET; `Directory`).
    ReadDirectory,
    /// Claims a task that one gateway at a time should do (SET NX PX; `Taken`).
    Claim {
        /// What it is about.
        task: Task,
        /// Who claims it.
        by: Incarnation,
        /// After this time somebody else may.
        ttl_ms: u64,
    },
}

/// Tasks that one gateway at a time should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Take over the id of a gateway that seems to be dead.
    TakeOver(Arc<str>),
    /// Sweep the presence of a dead gateway.
    Sweep(Incarnation),
}

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Carried out.
    Done,
    /// Was it free, and is it ours now?
    Taken(bool),
    /// How many.
    Count(u64),
    /// Gateways where a user is, and how many connections they have there. May name gateways that
    /// are dead.
    Places(Vec<(Incarnation, u32)>),
    /// The lease, if there is one.
    Lease(Option<Lease>),
    /// Some users of an index, and where to go on; cursor 0: that was the end. A user may come
    /// twice.
    Users {
        /// Where to go on.
        cursor: u64,
        /// Some users.
        users: Vec<Arc<str>>,
    },
    /// Every gateway that was registered, dead ones too.
    Directory(Vec<Registered>),
    /// It was not carried out, or nobody knows whether it was.
    Failed(Failure),
}

/// One line of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The gateway's id.
    pub id: Arc<str>,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Who holds the lease of this id now, if anybody.
    pub lease: Option<Lease>,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What that means for the asker.
    pub kind: FailureKind,
    /// The server's or our own words, for the log and `/readyz`. No secret.
    pub text: Arc<str>,
}

/// What a failure means for the asker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The server cannot be reached, did not answer in time, is loading, lost its master, or its
    /// slot has moved: whether it was carried out is not known.
    Unavailable,
    /// The server refused it and will refuse it again until somebody helps: out of memory, no
    /// permission, read-only.
    Refused,
}

/// Operations that are sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the answers. Chosen by the asker, unique while the request is unanswered.
    pub ticket: u64,
    /// Not empty.
    pub ops: Vec<Op>,
}

/// What the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// Every server can be asked (again). What was learned before may not be true any more, and
    /// nobody told.
    Connected,
    /// A server cannot be asked. Requests under way to it fail by themselves. Comes once until the
    /// next `Connected`.
    Lost(Arc<str>),
    /// A request is through.
    Answered {
        /// As asked.
        ticket: u64,
        /// One per operation.
        answers: Vec<Answer>,
    },
    /// What is said on this channel is heard from now on.
    Subscribed(Channel),
    /// It is not heard any more; the store tries again by itself, and what is said meanwhile is
    /// lost.
    Unsubscribed(Channel),
    /// A server refused a subscription, in its words and with the channel's name. The store tries
    /// again by itself. Comes once per channel and reason until the channel is heard.
    Refused(Arc<str>),
    /// Somebody said something on a channel.
    Received(Channel, Bytes),
    /// The places of these users may have changed since they were asked for.
    Forget(Vec<Arc<str>>),
    /// Anybody's may have.
    ForgetAll,
}

/// A store as the control thread's turn sees it. Owned by the control thread; nothing here waits.
pub trait Store {
    /// Sends a request. It is answered once by [`StoreEvent::Answered`]: with
    /// [`FailureKind::Unavailable`] where no server can be asked.
    fn submit(&mut self, request: Request);

    /// Subscribes to a channel, until [`Store::unsubscribe`], over lost connections.
    fn subscribe(&mut self, channel: Channel);

    /// Ends a subscription. No event follows.
    fn unsubscribe(&mut self, channel: &Channel);

    /// The channel is subscribed, but its packets do not come: the connections of its server are
    /// made anew.
    fn renew(&mut self, channel: &Channel);

    /// Makes all connections anew. Requests under way are not answered any more, and earlier events
    /// do not come.
    fn restart(&mut self);

    /// The next event, if there is one already.
    fn try_next_event(&mut self) -> Option<StoreEvent>;
}
