//! The control thread's turn: what shards say, what the store says, time; then requests to the
//! store and batches to the shards. It joins the cluster, serves, drains and leaves.
//!
//! Pure, and generic over the store: `run` turns it over Redis, with orders and requests between
//! [`ControlTurn::begin`] and [`ControlTurn::end`]; the simulation turns it over a model, in
//! virtual time. Owned by the control thread.
//!
//! ```text
//!             attach          begin_drain              clients gone           cleared, or 2 s
//!   Joining ──────────> Serving ─────────> Draining ──────────────> Leaving ───────────────┐
//!      │                   │                   │     or time is up     │                   v
//!      └───────────────────┴── finish ─────────┴───────────────────────┴────────────> Finishing ──> Gone
//!                                                              lease given back, or 500 ms
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cluster::store::Store;
use crate::cluster::{Cluster, Subscription};
use crate::config::DrainConfig;
use crate::ids::ShardId;
use crate::lanes::mailbox::Mailboxes;
use crate::lanes::{
    AdminToControl, Batch, Inbox, LifecycleToControl, LifecycleToShard, ShardCommand, ToControl, ToShard, control_id,
};
use crate::session::drain::DrainPlan;
use crate::shared::{Now, Shared};

/// What a drain takes at the most if `drain.timeout` is less: `shutdown` and the close frames need
/// time to leave.
const FAREWELL_MS: u64 = 1_000;
/// How long the clearing of presence may take when the clients have gone.
const LEAVE_MAX_MS: u64 = 2_000;
/// How long giving back the lease may take.
const FINISH_MAX_MS: u64 = 500;
/// How often the turn looks whether the last connection between two shards has arrived, and the
/// last answer has left.
const LAST_THINGS_EVERY_MS: u64 = 20;
/// Lane items taken in one turn, so that packets leave while more comes.
const INBOX_ITEMS_PER_TURN: usize = 4_096;
/// Events of the store taken in one turn.
const EVENTS_PER_TURN: usize = 256;

/// How a gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// After a drain, everybody gone or told.
    Drained {
        /// Clients that went by themselves.
        left: u64,
        /// Clients that were closed.
        closed: u64,
    },
    /// At once, as asked.
    Stopped,
    /// A shard broke; the log says how.
    Broken,
}

/// How far the gateway is. The picture is in this file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is not a member of its cluster yet, or waits for its shards.
    Joining,
    /// It serves clients.
    Serving,
    /// Its clients are told to go. It stays a member until the last one has gone, so every user is
    /// reachable until then.
    Draining {
        /// Those who stay are closed then, in milliseconds of the gateway's clock.
        until_ms: u64,
    },
    /// Its clients have gone. What is written down of them is cleared.
    Leaving {
        /// Others clear the rest.
        until_ms: u64,
    },
    /// It gives back its lease.
    Finishing {
        /// The lease expires by itself.
        until_ms: u64,
    },
    /// Nothing more will happen.
    Gone,
}

/// Why a gateway cannot join its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinError {
    /// A live gateway has its id.
    IdTaken,
    /// Another gateway divides channels into another number of partitions.
    Partitions {
        /// The other gateway.
        other: Arc<str>,
        /// Its number.
        theirs: u16,
    },
    /// The store has not done in time what joining takes.
    TimeIsUp {
        /// The store can be asked.
        connected: bool,
        /// Its last words, if it had any.
        cause: Option<String>,
    },
}

/// What the shards have said of a drain.
#[derive(Debug, Clone, Copy, Default)]
struct Drained {
    shards: usize,
    left: u64,
    closed: u64,
}

/// The cluster's rules and the store that carries out what they ask.
#[derive(Debug)]
struct Link<S> {
    cluster: Cluster,
    store: S,
}

/// The state of the control thread, as far as it follows from its arguments. `S` is the store of
/// the cluster.
#[derive(Debug)]
pub struct ControlTurn<S> {
    shared: Arc<Shared>,
    inbox: Inbox<ToControl>,
    /// None before [`ControlTurn::attach`].
    mailboxes: Option<Mailboxes>,
    /// None: a gateway of its own.
    link: Option<Link<S>>,
    stage: Stage,
    drained: Drained,
    /// What shards sent of administrators' requests.
    admin: VecDeque<(ShardId, AdminToControl)>,
    keys_wanted: bool,
    /// How it ends, once that is known.
    exit: Exit,
    now: Now,
}

impl<S: Store> ControlTurn<S> {
    /// A gateway that is about to join its cluster, or one of its own.
    pub fn new(shared: Arc<Shared>, inbox: Inbox<ToControl>, cluster: Option<(Cluster, S)>, now: Now) -> Self {
        ControlTurn {
            shared,
            inbox,
            mailboxes: None,
            link: cluster.map(|(cluster, store)| Link { cluster, store }),
            stage: Stage::Joining,
            drained: Drained::default(),
            admin: VecDeque::new(),
            keys_wanted: false,
            exit: Exit::Stopped,
            now,
        }
    }

    /// True once the gateway is a member of its cluster and knows the others: its shards may start.
    ///
    /// # Errors
    /// What keeps it from joining, if only that it is not a member at `until_ms`.
    pub fn has_joined(&self, until_ms: u64) -> Result<bool, JoinError> {
        let Some(Link { cluster, .. }) = &self.link else {
            return Ok(true);
        };
        if cluster.is_id_taken() {
            return Err(JoinError::IdTaken);
        }
        if cluster.is_member() && cluster.knows_others() {
            return match cluster.odd_one() {
                Some((other, theirs)) => Err(JoinError::Partitions {
                    other: Arc::clone(other),
                    theirs: *theirs,
                }),
                None => Ok(true),
            };
        }
        if self.now.mono_ms() < until_ms {
            return Ok(false);
        }
        Err(match cluster.is_id_held() {
            true => JoinError::IdTaken,
            false => JoinError::TimeIsUp {
                connected: cluster.is_connected(),
                cause: cluster.trouble().map(str::to_owned),
            },
        })
    }

    /// The shards are there.
    pub fn attach(&mut self, mailboxes: &Mailboxes) {
        if let Some(link) = &mut self.link {
            let me = control_id(self.shared.shards.len() as u16);
            link.cluster.attach(mailboxes.lanes(me, &self.shared.depths));
        }
        self.mailboxes = Some(mailboxes.clone());
        self.stage = Stage::Serving;
    }

    /// How far the gateway is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// True once the gateway gives back its lease, or has: nobody carries out anything any more.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Finishing { .. } | Stage::Gone)
    }

    /// How the gateway ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The rules of the cluster, if there is one.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.link.as_ref().map(|link| &link.cluster)
    }

    /// The rules of the cluster, if there is one.
    pub fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        self.link.as_mut().map(|link| &mut link.cluster)
    }

    /// The store of the cluster, if there is one.
    pub fn store(&self) -> Option<&S> {
        self.link.as_ref().map(|link| &link.store)
    }

    /// The store of the cluster, if there is one.
    pub fn store_mut(&mut self) -> Option<&mut S> {
        self.link.as_mut().map(|link| &mut link.store)
    }

    /// True if no thread has sent anything that was not taken yet.
    pub fn is_inbox_empty(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Begins a turn: takes what shards and the store said, as much as one turn may. Returns true
    /// if there was anything: the next turn is due at once then.
    pub fn begin(&mut self, now: Now) -> bool {
        self.now = now;
        self.shared.control_turn_ms.set(now.mono_ms());
        if let Some(link) = &mut self.link {
            link.cluster.begin_turn(now);
        }
        self.take_mail() | self.take_events()
    }

    fn take_mail(&mut self) -> bool {
        let mut items = 0;
        while items < INBOX_ITEMS_PER_TURN
            && let Some(batch) = self.inbox.try_next()
        {
            let room = batch.room();
            items += batch.items.len();
            self.handle_batch(batch);
            if let Some(room) = room {
                self.inbox.done(room);
            }
        }
        items > 0
    }

    fn handle_batch(&mut self, mut batch: Batch<ToControl>) {
        for item in std::mem::take(&mut batch.items) {
            match item {
                ToControl::Cluster(mail) => {
                    debug_assert!(self.link.is_some(), "there are no other gateways");
                    if let Some(link) = &mut self.link {
                        link.cluster.handle_mail(&batch, mail);
                    }
                }
                ToControl::Admin(mail) => self.admin.push_back((batch.from, mail)),
                ToControl::Lifecycle(mail) => self.handle_lifecycle_mail(batch.from, mail),
            }
        }
    }

    fn handle_lifecycle_mail(&mut self, shard: ShardId, mail: LifecycleToControl) {
        match mail {
            LifecycleToControl::KeysWanted => self.keys_wanted = true,
            LifecycleToControl::Drained { left, closed } => {
                self.drained.shards += 1;
                self.drained.left += left;
                self.drained.closed += closed;
            }
            LifecycleToControl::Ended { cause } => {
                let cause = cause.as_deref().unwrap_or("without being asked");
                log::error!("shard {shard} has ended: {cause}; stopping the gateway");
                self.finish(Exit::Broken);
            }
        }
    }

    /// The next thing that a shard has for administrators, or asks for them.
    pub fn poll_admin(&mut self) -> Option<(ShardId, AdminToControl)> {
        self.admin.pop_front()
    }

    /// True once for each time that keys shall be fetched.
    pub fn poll_keys_wanted(&mut self) -> bool {
        std::mem::take(&mut self.keys_wanted)
    }

    fn take_events(&mut self) -> bool {
        let Some(Link { cluster, store }) = &mut self.link else {
            return false;
        };
        let mut events = 0;
        while events < EVENTS_PER_TURN
            && let Some(event) = store.try_next_event()
        {
            events += 1;
            cluster.handle_event(event);
        }
        events > 0
    }

    /// Ends a turn: what came of it goes out. Returns when the next turn is due although nothing
    /// happens, in milliseconds of the gateway's clock.
    pub fn end(&mut self) -> Option<u64> {
        while let Some(command) = self.cluster_mut().and_then(Cluster::poll_command) {
            self.post_all(|| command.clone());
        }
        let stage_due = self.follow_stage();
        let link_due = self.link.as_mut().and_then(Link::end_turn);
        if let (Some(link), Some(mailboxes)) = (&mut self.link, &self.mailboxes) {
            while let Some(shard) = link.cluster.poll_wake() {
                mailboxes.wake(shard);
            }
        }
        [stage_due, link_due].into_iter().flatten().min()
    }

    /// Has all shards do this, and the other gateways' too if they can be told now.
    pub fn command_everywhere(&mut self, command: &ShardCommand) {
        if let Some(cluster) = self.cluster_mut() {
            cluster.forward(command);
        }
        self.post_all(|| command.clone());
    }

    /// Sends mail to every shard.
    pub fn post_all<M: Into<ToShard>>(&self, mail: impl Fn() -> M) {
        if let Some(mailboxes) = &self.mailboxes {
            mailboxes.post_all(mail);
        }
    }

    /// Begins a drain, unless there is one.
    pub fn begin_drain(&mut self, drain: &DrainConfig) {
        if self.stage != Stage::Serving || !self.shared.begin_draining() {
            return;
        }
        let (now_ms, timeout_ms) = (self.now.mono_ms(), drain.timeout.as_millis() as u64);
        let connections = self.shared.connections();
        log::info!("draining {connections} connections for at most {:?}", drain.timeout);
        let plan = DrainPlan::new(connections, now_ms, timeout_ms, drain.per_second);
        let told = plan.told_in_time(connections, now_ms);
        if told < connections {
            log::warn!(
                "drain.per_second = {} leaves time to tell {told} of {connections} clients within drain.timeout = {:?}: the \
                 others are closed at its end",
                drain.per_second,
                drain.timeout
            );
        }
        self.post_all(|| LifecycleToShard::Drain(plan));
        // However short the drain is, what clients are told must get out.
        let until_ms = now_ms + timeout_ms.max(FAREWELL_MS);
        self.stage = Stage::Draining { until_ms };
    }

    /// Ends the gateway: it gives back its lease. What is written down of its clients is cleared by
    /// others.
    pub fn finish(&mut self, exit: Exit) {
        if self.is_over() {
            return;
        }
        self.exit = exit;
        self.shared.gate.close();
        if let Some(link) = &mut self.link {
            link.cluster.finish();
        }
        let until_ms = self.now.mono_ms() + FINISH_MAX_MS;
        self.stage = Stage::Finishing { until_ms };
    }

    /// Goes on to the next stage if it is time. Returns when to look again.
    fn follow_stage(&mut self) -> Option<u64> {
        let now_ms = self.now.mono_ms();
        if let Stage::Draining { until_ms } = self.stage {
            match self.clients_gone(until_ms) {
                Ok(exit) => {
                    self.exit = exit;
                    if let Some(link) = &mut self.link {
                        link.cluster.leave();
                    }
                    let until_ms = now_ms + LEAVE_MAX_MS;
                    self.stage = Stage::Leaving { until_ms };
                }
                Err(look_ms) => return Some(look_ms),
            }
        }
        if let Stage::Leaving { until_ms } = self.stage {
            let has_left = |cluster: &Cluster| cluster.has_left() || !cluster.is_member();
            if now_ms < until_ms && !self.cluster().is_none_or(has_left) {
                return Some(until_ms);
            }
            self.finish(self.exit);
        }
        if let Stage::Finishing { until_ms } = self.stage {
            let has_finished = |cluster: &Cluster| cluster.is_idle() || !cluster.is_member();
            if now_ms < until_ms && !self.cluster().is_none_or(has_finished) {
                return Some(until_ms);
            }
            self.stage = Stage::Gone;
        }
        None
    }

    /// How the drain ends, once its clients are gone or time is up; or when to look again.
    fn clients_gone(&self, until_ms: u64) -> Result<Exit, u64> {
        let now_ms = self.now.mono_ms();
        let shards_done = self.drained.shards == self.shared.shards.len();
        // A connection between two shards has a permit, though no shard knows it. Administrators
        // who still wait for an answer, such as the one who asked for this drain, get it.
        let over = shards_done && self.shared.permits() == 0 && self.shared.gate.try_close();
        if !over && now_ms < until_ms {
            let look_ms = if shards_done {
                now_ms + LAST_THINGS_EVERY_MS
            } else {
                until_ms
            };
            return Err(look_ms.min(until_ms));
        }
        if !over {
            log::warn!(
                "drain: time is up, closing {} connections; {} requests of administrators are not answered",
                self.shared.connections(),
                self.shared.gate.close()
            );
        }
        Ok(Exit::Drained {
            left: self.drained.left,
            closed: self.drained.closed + self.shared.connections(),
        })
    }
}

impl<S: Store> Link<S> {
    /// Hands the store what the turn brought. Returns when the next one is due.
    fn end_turn(&mut self) -> Option<u64> {
        self.cluster.end_turn();
        while let Some(subscription) = self.cluster.poll_subscription() {
            match subscription {
                Subscription::Begin(channel) => self.store.subscribe(channel),
                Subscription::End(channel) => self.store.unsubscribe(&channel),
                Subscription::Renew(channel) => self.store.renew(&channel),
            }
        }
        while let Some(request) = self.cluster.poll_request() {
            self.store.submit(request);
        }
        self.cluster.poll_timeout()
    }
}
