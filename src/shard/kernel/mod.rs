//! What all services of a shard stand on: the table of connections, and what is done to one of
//! them.
//!
//! Owned by the shard's thread. The kernel is the only owner of a connection's entry. Services get
//! it lent for a call and name no other service; what happened to a connection that concerns
//! another service waits in `events` for [`super::core`]. Nothing here blocks, reads a clock, or
//! touches a descriptor's bytes.

mod addresses;
mod counting;
mod journal;
mod peers;
mod rights;
mod roster;
mod send;
mod tally;
mod tell;
pub mod wheel;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::SocketKey;
use crate::http::HttpConn;
use crate::ids::{IdSource, ShardId};
use crate::lanes::{Handoff, Lanes};
use crate::metrics::ShardMetrics;
use crate::router::HomeMap;
use crate::router::users::Users;
use crate::session::outbox::Spares;
use crate::session::{End, Tally};
use crate::settings::Settings;
use crate::shared::{Now, Shared};
use crate::wire::ws::close::CloseReason;
use wheel::Wheel;

pub(super) use addresses::Addresses;
use journal::Journal;
pub(super) use peers::Peers;
pub(super) use tally::Pending;

/// One connection of a shard.
pub type Connection = crate::session::Connection<HttpConn>;

/// Where it is in its life.
pub type Stage = crate::session::Stage<HttpConn>;

/// What a client hears whose request found a lane or a table full.
pub(super) const OVERLOADED: &str = "overloaded: try again";
/// How long a peer may take to read our last words and answer them.
const CLOSE_TIMEOUT_MS: u64 = 5_000;

/// What the turn must do with the engine.
#[derive(Debug)]
pub enum Command {
    /// Arm one receive.
    ReceiveOnce(SocketKey),
    /// Receive from now on.
    ReceiveStream(SocketKey),
    /// Send FIN.
    Finish(SocketKey),
    /// Close now.
    Close(SocketKey),
    /// Close now, by a reset.
    Reset(SocketKey),
    /// Tell [`Core::handle_unacknowledged`](super::core::Core::handle_unacknowledged) what the peer
    /// has not acknowledged, and close now.
    Abandon(SocketKey),
    /// Take the socket out of the engine and call
    /// [`Core::handle_detached`](super::core::Core::handle_detached).
    Detach(SocketKey),
    /// Put the socket into the engine and call
    /// [`Core::handle_adopted`](super::core::Core::handle_adopted).
    Adopt(Box<Handoff>),
}

/// What this turn was about, for its end.
#[derive(Debug, Default)]
pub(in crate::shard) struct ThisTurn {
    pub(super) local: u64,
    pub(super) from_lanes: Vec<u64>,
    pub(super) from_gateways: Vec<u64>,
    /// A client said something, since the last turn's fan-out, or is to hear something that another
    /// shard or gateway says: somebody waits for this turn.
    pub(super) interactive: bool,
}

/// What happened to a connection, and concerns more than the service that was at work.
#[derive(Debug)]
pub(super) enum Happened {
    /// It is marked to end: it leaves all tables.
    Doomed(u32),
    /// Everything queued of a plain HTTP connection has left.
    HttpFlushed(u32),
    /// The user is known and lives here: the connection is one more of this user's.
    Opened(u32),
    /// The connection's frames are looked at from now on. `rest`: the first of them, which came
    /// already.
    FramesDue { key: SocketKey, rest: Vec<u8> },
    /// A user who was known showed a new token, and it was found good.
    Refreshed { slot: u32, rights_changed: bool },
}

/// The connections of one shard, and what is needed to do something to one of them.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) me: ShardId,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) homes: HomeMap,
    pub(super) connections: Vec<Connection>,
    pub(super) addresses: Addresses,
    pub(super) users: Users,
    /// `None` in a gateway of its own.
    pub(super) peers: Option<Peers>,
    pub(super) lanes: Lanes,
    pub(super) wheel: Wheel,
    pub(super) spares: Spares,
    pub(super) ids: IdSource,
    pub(super) now: Now,
    pub(super) turn: ThisTurn,
    /// A frame being built, and slots being gone through; kept for their capacity.
    pub(super) scratch: Vec<u8>,
    pub(super) scratch_slots: Vec<u32>,
    pub(super) pending: Pending,
    /// In the order in which they got something: what answers a client goes before what fans out.
    dirty: VecDeque<u32>,
    commands: Vec<Command>,
    events: VecDeque<Happened>,
    journal: Journal,
}

impl Kernel {
    /// No connections of the shard `lanes.me()` of the gateway that `shared` describes.
    pub(super) fn new(shared: Arc<Shared>, settings: Arc<Settings>, homes: HomeMap, lanes: Lanes, seed: u64) -> Self {
        let peers = (!shared.cluster.is_alone()).then(Peers::default);
        Kernel {
            me: lanes.me(),
            shared,
            settings,
            homes,
            connections: Vec::new(),
            addresses: Addresses::default(),
            users: Users::default(),
            peers,
            lanes,
            wheel: Wheel::default(),
            spares: Spares::default(),
            ids: IdSource::new(seed),
            now: Now::default(),
            turn: ThisTurn::default(),
            scratch: Vec::new(),
            scratch_slots: Vec::new(),
            pending: Pending::default(),
            dirty: VecDeque::new(),
            commands: Vec::new(),
            events: VecDeque::new(),
            journal: Journal::default(),
        }
    }

    /// Something happened that concerns more than the service at work; see
    /// [`super::core::Core::settle`].
    pub(super) fn happened(&mut self, event: Happened) {
        self.events.push_back(event);
    }

    /// The next thing that happened and is not settled.
    pub(super) fn next_event(&mut self) -> Option<Happened> {
        self.events.pop_front()
    }

    /// This shard's counters.
    pub(super) fn metrics(&self) -> &ShardMetrics {
        &self.shared.shards[self.me.index()]
    }

    /// The live connection of a key; `None` for a key of an earlier tenant.
    pub(super) fn connection(&mut self, key: SocketKey) -> Option<&mut Connection> {
        self.connections
            .get_mut(key.slot as usize)
            .filter(|conn| conn.generation == key.generation && !matches!(conn.stage, Stage::Free))
    }

    pub(super) fn conn(&mut self, slot: u32) -> &mut Connection {
        &mut self.connections[slot as usize]
    }

    pub(super) fn key(&self, slot: u32) -> SocketKey {
        SocketKey {
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    pub(super) fn occupy(&mut self, key: SocketKey, stage: Stage) -> &mut Connection {
        let index = key.slot as usize;
        if index >= self.connections.len() {
            self.connections.resize_with(index + 1, Connection::default);
        }
        let (wall_ms, mono_ms) = (self.now.wall_ms, self.now.mono_ms());
        self.metrics().sockets.add(1);
        let conn = &mut self.connections[index];
        debug_assert!(matches!(conn.stage, Stage::Free), "two sockets in one slot");
        *conn = Connection {
            generation: key.generation,
            stage,
            connected_at_ms: wall_ms,
            last_seen_ms: mono_ms,
            ..Connection::default()
        };
        conn
    }

    pub(super) fn vacate(&mut self, slot: u32) {
        self.wheel.cancel(slot);
        self.forget_address(slot);
        debug_assert!(!self.conn(slot).tally.is_connection(), "vacated without having ended");
        self.count_as(slot, Tally::Nobody);
        let conn = std::mem::take(&mut self.connections[slot as usize]);
        debug_assert!(conn.user.is_none(), "vacated with a user");
        if let Some(outbox) = conn.outbox {
            // These frames will not be sent any more.
            self.count_lost(outbox.frames());
            self.spares.recycle_outbox(outbox);
        }
        let sockets = &self.metrics().sockets;
        sockets.set(sockets.get().saturating_sub(1));
    }

    /// Arms the kind of receive that the connection's stage wants.
    pub(super) fn rearm(&mut self, key: SocketKey) {
        let Some(conn) = self.connection(key) else {
            return;
        };
        // A client that sends requests without reading the answers must not fill the memory.
        if matches!(&conn.stage, Stage::Http(http) if http.is_waiting() || http.is_blocked() || http.put_off || !conn.is_flushed())
        {
            return;
        }
        // A receive that is armed already comes back here when it completes.
        if conn.streaming || conn.armed {
            return;
        }
        if conn.wants_stream() {
            conn.streaming = true;
            self.commands.push(Command::ReceiveStream(key));
        } else if conn.wants_once() {
            conn.armed = true;
            if conn.tally == Tally::Permit {
                self.commands.push(Command::ReceiveOnce(key));
            } else {
                self.pending.to_arm.push_back(key);
            }
        }
    }

    /// Closes a connection whose peer has gone without a goodbye. What waits here is counted when
    /// the socket has closed; what the kernel had taken is in doubt. `broken`: by a reset, say,
    /// after which nothing tells what of it was read.
    pub(super) fn abandon(&mut self, slot: u32, broken: bool) {
        let conn = &self.connections[slot as usize];
        let has_said_goodbye = matches!(conn.stage, Stage::Closing { peer_closed: true });
        if conn.unheard == 0 || has_said_goodbye {
            return self.close_now(slot);
        }
        if broken {
            self.count_doubtful(slot);
            self.close_now(slot);
        } else {
            self.close_by(slot, Command::Abandon);
        }
    }

    /// Counts as lost, beside what waits here, what was sent since the peer was last heard from.
    pub(super) fn count_doubtful(&mut self, slot: u32) {
        let conn = self.conn(slot);
        let waiting = conn.outbox.as_ref().map_or(0, |outbox| outbox.frames());
        let doubtful = std::mem::take(&mut conn.unheard).saturating_sub(waiting);
        self.count_lost(doubtful);
    }

    /// Everything queued has left: what was waiting for that goes on.
    pub(super) fn flushed(&mut self, slot: u32) {
        let key = self.key(slot);
        let conn = self.conn(slot);
        if !conn.is_flushed() {
            return;
        }
        match &mut conn.stage {
            Stage::Migrating(_) => self.command(Command::Detach(key)),
            Stage::Closing { peer_closed: true } | Stage::Lingering { finished: false }
                if conn.tls.as_mut().is_some_and(|tls| tls.close()) =>
            {
                // Its goodbye comes before ours; then we are here again.
                self.mark_dirty(slot);
            }
            Stage::Closing { peer_closed: true } => self.close_now(slot),
            Stage::Lingering { finished } if !*finished => {
                *finished = true;
                self.command(Command::Finish(key));
            }
            Stage::Http(_) => self.events.push_back(Happened::HttpFlushed(slot)),
            _ => {}
        }
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        let conn = &mut self.connections[slot as usize];
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push_back(slot);
        }
    }

    /// The peer will say no more: the socket goes when everything queued has left.
    pub(super) fn close_when_flushed(&mut self, slot: u32) {
        self.go(slot, Stage::Closing { peer_closed: true });
        self.flushed(slot);
    }

    /// The only function that writes the stage of a held connection.
    pub(super) fn go(&mut self, slot: u32, stage: Stage) -> Stage {
        let conn = self.conn(slot);
        debug_assert!(
            conn.stage.may_become(&stage),
            "no way from {:?} to {stage:?}",
            conn.stage
        );
        std::mem::replace(&mut conn.stage, stage)
    }

    /// Closes the socket without further words.
    pub(super) fn close_now(&mut self, slot: u32) {
        self.close_by(slot, Command::Close);
    }

    /// As [`Kernel::close_now`], by [`Command::Close`] or [`Command::Reset`].
    pub(super) fn close_by(&mut self, slot: u32, command: fn(SocketKey) -> Command) {
        let key = self.key(slot);
        let conn = self.conn(slot);
        if matches!(conn.stage, Stage::Closed | Stage::Free) {
            return;
        }
        conn.decoder = Default::default();
        self.go(slot, Stage::Closed);
        self.wheel.cancel(slot);
        debug_assert!(!self.conn(slot).tally.is_connection(), "closed without having ended");
        self.count_as(slot, Tally::Nobody);
        self.command(command(key));
    }

    /// Marks a connection to be closed from our side: the close frame is the last thing that it
    /// gets.
    pub(super) fn begin_close(&mut self, slot: u32, reason: CloseReason) {
        self.doom(slot, End::Close(reason));
    }

    /// Closes a connection whose input has no meaning any more.
    pub(super) fn fail(&mut self, slot: u32, reason: CloseReason) {
        if matches!(self.conn(slot).stage, Stage::Closing { .. }) {
            // The peer talks nonsense behind our close frame.
            self.go(slot, Stage::Lingering { finished: false });
            self.flushed(slot);
        }
        self.doom(slot, End::Fail(reason));
    }

    /// Marks a connection to end when the event that is under way is through; see
    /// [`super::core::Core::settle`]. One that is marked, or has ended, is left as it is.
    pub(super) fn doom(&mut self, slot: u32, end: End) {
        let is_open = match &self.conn(slot).stage {
            Stage::Authenticating | Stage::Open | Stage::Echo => true,
            Stage::Verifying(verifying) => verifying.upgrade.is_none(),
            _ => false,
        };
        if is_open {
            self.go(slot, Stage::Doomed(end));
            self.events.push_back(Happened::Doomed(slot));
        }
    }

    /// The next thing to do with the engine.
    pub(super) fn poll_command(&mut self, into: &mut Vec<Command>) -> bool {
        std::mem::swap(&mut self.commands, into);
        !into.is_empty()
    }

    /// Commands that nobody has taken.
    pub(super) fn untaken(&self) -> usize {
        self.commands.len()
    }

    /// The next connection with something to send.
    pub(super) fn poll_dirty(&mut self) -> Option<SocketKey> {
        loop {
            let slot = self.dirty.pop_front()?;
            let conn = &mut self.connections[slot as usize];
            conn.dirty = false;
            if !matches!(conn.stage, Stage::Free | Stage::Closed) {
                return Some(self.key(slot));
            }
        }
    }

    /// Everything queued is sent, then FIN.
    pub(super) fn linger(&mut self, slot: u32) {
        self.go(slot, Stage::Lingering { finished: false });
        self.await_close(slot);
        self.flushed(slot);
    }

    /// The peer may take [`CLOSE_TIMEOUT_MS`] from now on.
    pub(super) fn await_close(&mut self, slot: u32) {
        self.wheel.set(slot, self.now.mono_ms() + CLOSE_TIMEOUT_MS);
    }

    /// The field that says when to come again: some second from the first to the last, or all would
    /// come at once.
    pub(super) fn retry_after(&mut self, (least, most): (u64, u64)) -> String {
        let seconds = least + self.ids.jitter(most - least + 1);
        format!("Retry-After: {seconds}\r\n")
    }

    pub(super) fn is_open(&mut self, key: SocketKey) -> bool {
        self.connection(key)
            .is_some_and(|conn| matches!(conn.stage, Stage::Open))
    }

    /// Looks at an open connection at this time of the gateway's clock, or when its token ends,
    /// whichever is sooner. Tokens go by the wall clock; should that jump, the next heartbeat
    /// notices.
    pub(super) fn look_again(&mut self, slot: u32, due_ms: u64) {
        let expires = self.conn(slot).grant.as_ref().map(|grant| grant.expires_at_ms);
        let due_ms = expires.map_or(due_ms, |expires| {
            let left_ms = expires.saturating_sub(self.now.wall_ms);
            due_ms.min(self.now.mono_ms().saturating_add(left_ms))
        });
        self.wheel.set(slot, due_ms);
    }

    /// Its deadlines have changed: the next look finds out how.
    pub(super) fn look_at_once(&mut self, slot: u32) {
        let now_ms = self.now.mono_ms();
        self.wheel.set(slot, now_ms);
    }

    pub(super) fn is_expired(&self, slot: u32) -> bool {
        let grant = &self.connections[slot as usize].grant;
        grant.as_ref().is_some_and(|grant| grant.is_expired(self.now.wall_ms))
    }

    pub(super) fn devices(&self, user: &str) -> Vec<u32> {
        let found = self.users.find(self.homes.hash(user), user);
        found.map_or(Vec::new(), |user| self.users.devices(user).to_vec())
    }
}
