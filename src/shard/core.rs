//! All state of one shard, and what happens to it.
//!
//! Owned by the shard's thread. Events come in through `handle_*`; effects are left in outboxes, lanes and
//! [`Core::poll_command`], and the turn carries them out at its end. Nothing here blocks, sleeps, or touches a descriptor's
//! bytes; descriptors only pass through on their way to another shard.
//!
//! Invariants (checked by `check_invariants` in debug builds): a connection with a user is in that user's list; each socket is
//! counted by exactly one limit (`Tally`); an outbox exists only while it holds bytes.

use core::net::SocketAddr;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::admin::Request;
use crate::engine::{Payload, SocketKey};
use crate::http::{HttpContext, ListenerKind};
use crate::ids::{IdSource, ShardId};
use crate::lanes::{Handoff, Lanes, ShardReply};
use crate::metrics::{CloseCause, ShardMetrics};
use crate::router::HomeMap;
use crate::router::channels::Channels;
use crate::router::interests::Interests;
use crate::router::users::Users;
use crate::session::outbox::Spares;
use crate::session::{End, Tally};
use crate::settings::Settings;
use crate::shard::remote::Remote;
use crate::shard::strangers::ACCEPT_US;
use crate::shard::timers::Draining;
use crate::shard::wheel::Wheel;
use crate::shard::{Connection, Stage};
use crate::shared::{Now, Shared};
use crate::wire::json::encode;
use crate::wire::ws::close::CloseReason;

pub use super::checks::Outstanding;

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
    /// Tell [`Core::handle_unacknowledged`] what the peer has not acknowledged, and close now.
    Abandon(SocketKey),
    /// Take the socket out of the engine and call [`Core::handle_detached`].
    Detach(SocketKey),
    /// Put the socket into the engine and call [`Core::handle_adopted`].
    Adopt(Box<Handoff>),
}

/// What the turn must tell the control thread.
#[derive(Debug)]
pub enum Notice {
    /// An administrator asks, over this connection, from there: to be answered with [`crate::lanes::AdminToShard::Answer`].
    Asked(SocketKey, Option<SocketAddr>, Request),
    /// The reply to [`crate::lanes::AdminToShard::Query`] of this ticket.
    Replied(u32, ShardReply),
}

/// What this turn was about, for its end.
#[derive(Debug, Default)]
pub(super) struct ThisTurn {
    pub(super) local: u64,
    pub(super) from_lanes: Vec<u64>,
    pub(super) from_gateways: Vec<u64>,
    /// A client said something, since the last turn's fan-out, or is to hear something that another shard or gateway says:
    /// somebody waits for this turn.
    pub(super) interactive: bool,
}

/// The state of one shard.
#[derive(Debug)]
pub struct Core {
    pub(super) me: ShardId,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Settings>,
    pub(super) homes: HomeMap,
    pub(super) connections: Vec<Connection>,
    pub(super) addresses: super::addresses::Addresses,
    pub(super) users: Users,
    pub(super) channels: Channels,
    pub(super) joins: super::channels::Joins,
    pub(super) interests: Interests,
    pub(super) fan_out: super::channels::FanOut,
    pub(super) reviews: super::rights::Reviews,
    pub(super) lanes: Lanes,
    pub(super) wheel: Wheel,
    pub(super) spares: Spares,
    pub(super) ids: IdSource,
    pub(super) now: Now,
    pub(super) http: Rc<HttpContext>,
    pub(super) questions: super::deliver::Questions,
    pub(super) credentials: super::credentials::Credentials,
    pub(super) asked: super::devices::Asked,
    pub(super) draining: Option<Draining>,
    /// `None` in a gateway of its own.
    pub(super) remote: Option<Remote>,
    pub(super) turn: ThisTurn,
    /// A frame being built, and slots being gone through; kept for their capacity.
    pub(super) scratch: Vec<u8>,
    pub(super) scratch_slots: Vec<u32>,
    expired: Vec<u32>,
    /// In the order in which they got something: what answers a client goes before what fans out.
    dirty: VecDeque<u32>,
    /// Connections that are marked to end.
    doomed: Vec<u32>,
    pub(super) commands: Vec<Command>,
    pub(super) tls: super::tls::Handshakes,
    pub(super) strangers: super::strangers::Strangers,
    pub(super) pending: super::pending::Pending,
    pub(super) plain_http: super::requests::Requests,
    pub(super) notices: VecDeque<Notice>,
    pub(super) inquiries: super::admin::Inquiries,
    pub(super) journal: super::journal::Journal,
    stopping: bool,
}

impl Core {
    /// The empty shard `lanes.me()` of the gateway that `shared` describes.
    pub fn new(shared: Arc<Shared>, settings: Arc<Settings>, homes: HomeMap, lanes: Lanes, seed: u64) -> Self {
        let me = lanes.me();
        // Who has a lane to the control thread has other gateways to talk to.
        let remote = lanes.lead_to_control().then(Remote::default);
        let listener_kind = ListenerKind::Public(me.index());
        let http = Rc::new(HttpContext::new(
            Arc::clone(&shared),
            Arc::clone(&settings),
            listener_kind,
            !seed,
        ));
        Core {
            me,
            shared,
            settings,
            homes,
            connections: Vec::new(),
            addresses: Default::default(),
            users: Users::default(),
            channels: Channels::default(),
            joins: Default::default(),
            interests: Interests::default(),
            fan_out: Default::default(),
            reviews: Default::default(),
            lanes,
            wheel: Wheel::default(),
            spares: Spares::default(),
            ids: IdSource::new(seed),
            now: Now::default(),
            http,
            questions: Default::default(),
            credentials: Default::default(),
            asked: Default::default(),
            draining: None,
            remote,
            turn: ThisTurn::default(),
            scratch: Vec::new(),
            scratch_slots: Vec::new(),
            expired: Vec::new(),
            dirty: VecDeque::new(),
            doomed: Vec::new(),
            commands: Vec::new(),
            tls: Default::default(),
            strangers: Default::default(),
            pending: Default::default(),
            plain_http: Default::default(),
            notices: VecDeque::new(),
            inquiries: Default::default(),
            journal: Default::default(),
            stopping: false,
        }
    }

    /// This shard's counters.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.shared.shards[self.me.index()]
    }

    /// Begins a turn at this time.
    pub fn begin_turn(&mut self, now: Now) {
        self.now = now;
        self.strangers.begin_turn();
        self.metrics().last_turn_ms.set(now.mono_ms());
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

    fn vacate(&mut self, slot: u32) {
        self.wheel.cancel(slot);
        self.forget_address(slot);
        debug_assert!(!self.conn(slot).tally.is_connection(), "vacated without having ended");
        self.count_as(slot, Tally::Nobody);
        let conn = std::mem::take(&mut self.connections[slot as usize]);
        debug_assert!(conn.user.is_none(), "vacated with a user");
        if let Some(outbox) = conn.outbox {
            // Nobody will send that any more.
            self.count_lost(outbox.frames());
            self.spares.recycle_outbox(outbox);
        }
        let sockets = &self.metrics().sockets;
        sockets.set(sockets.get().saturating_sub(1));
    }

    /// A socket was accepted from `peer`; one receive is armed.
    pub fn handle_accepted(&mut self, key: SocketKey, peer: Option<SocketAddr>) {
        if self.stopping {
            self.occupy(key, Stage::Head(Vec::new()));
            self.close_now(key.slot);
            return;
        }
        self.occupy(key, Stage::Head(Vec::new())).armed = true;
        if !self.came_from(key.slot, peer) {
            return self.close_now(key.slot);
        }
        self.strangers.spend(ACCEPT_US);
        self.count_as(key.slot, Tally::Pending);
        self.trim_pending();
        self.conn(key.slot).tls = self.new_tls();
        let due = self.now.mono_ms() + self.settings.limits.handshake_timeout.as_millis() as u64;
        self.wheel.set(key.slot, due);
    }

    /// The engine let a closed socket go.
    pub fn handle_closed(&mut self, key: SocketKey) {
        if self.connection(key).is_some() {
            self.vacate(key.slot);
        }
    }

    /// Bytes arrived.
    pub fn handle_received(&mut self, key: SocketKey, bytes: &mut [u8]) {
        let now_ms = self.now.mono_ms();
        self.metrics().bytes_received.add(bytes.len() as u64);
        let Some(conn) = self.connection(key) else {
            return;
        };
        conn.last_seen_ms = now_ms;
        conn.unheard = 0;
        conn.armed = false;
        // What a proxy says about its client comes before the client's first byte, TLS or not.
        let Some(bytes) = self.behind_proxy_header(key.slot, bytes) else {
            return self.rearm(key);
        };
        self.client_bytes(key, bytes);
        self.settle();
    }

    /// Bytes of the client's own.
    pub(super) fn client_bytes(&mut self, key: SocketKey, bytes: &mut [u8]) {
        if self.conn(key.slot).tls.is_some() {
            if self.puts_off(key, bytes) {
                return;
            }
            self.tls_bytes(key.slot, bytes);
        } else {
            self.plain_bytes(key.slot, bytes);
        }
        self.rearm(key);
    }

    /// Bytes of HTTP or WebSocket.
    pub(super) fn plain_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        match self.conn(slot).stage {
            Stage::Head(_) => self.head_bytes(slot, bytes),
            Stage::Http(_) => self.http_bytes(slot, bytes),
            Stage::Authenticating | Stage::Open | Stage::Echo | Stage::Closing { .. } => {
                self.frame_bytes(slot, bytes);
            }
            Stage::Free
            | Stage::Migrating(_)
            | Stage::Verifying(_)
            | Stage::Doomed(_)
            | Stage::Lingering { .. }
            | Stage::Closed => {}
        }
    }

    /// True if this turn has brought something, before [`Core::fan_out`], that somebody waits for.
    pub fn is_interactive(&self) -> bool {
        self.turn.interactive
    }

    /// True if there is more to do of what is spread over turns, so that nobody else waits for all of it.
    pub fn has_more(&self) -> bool {
        self.has_fan_out() || self.has_strangers()
    }

    /// Arms the kind of receive that the connection's stage wants.
    pub(super) fn rearm(&mut self, key: SocketKey) {
        let Some(conn) = self.connection(key) else {
            return;
        };
        // Who asks and asks without waiting for answers, or without reading them, shall not fill our memory.
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
            if conn.tally == Tally::Place {
                self.commands.push(Command::ReceiveOnce(key));
            } else {
                self.pending.to_arm.push_back(key);
            }
        }
    }

    /// The peer ended its side or the socket broke.
    pub fn handle_ended(&mut self, key: SocketKey, broken: bool) {
        let Some(conn) = self.connection(key) else {
            return;
        };
        // Who speaks TLS says that it is done; an end without that may be anybody's.
        let done = !broken && conn.tls.as_ref().is_none_or(|tls| tls.peer_has_closed());
        match conn.stage {
            Stage::Http(_) if done => return self.http_ended(key.slot),
            // It may still read what we have to say.
            Stage::Closing { .. } | Stage::Lingering { .. } if !broken => return self.close_when_flushed(key.slot),
            _ => self.count_broken_handshake(key.slot),
        }
        self.end(key.slot, CloseCause::Abrupt);
        self.abandon(key.slot, broken);
    }

    /// Closes a connection whose peer has gone without a goodbye. What waits here is counted when the socket has closed; what the kernel
    /// had taken is in doubt. `broken`: by a reset, say, after which nothing tells what of it was read.
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

    /// So many bytes of an abandoned connection has the kernel taken, and the peer not acknowledged.
    pub fn handle_unacknowledged(&mut self, key: SocketKey, bytes: usize) {
        if bytes > 0 && self.connection(key).is_some() {
            self.count_doubtful(key.slot);
        }
    }

    /// Counts as lost, beside what waits here, what was sent since the peer was last heard from.
    fn count_doubtful(&mut self, slot: u32) {
        let conn = self.conn(slot);
        let waiting = conn.outbox.as_ref().map_or(0, |outbox| outbox.frames());
        let doubtful = std::mem::take(&mut conn.unheard).saturating_sub(waiting);
        self.count_lost(doubtful);
    }

    /// A send is complete.
    pub fn handle_sent(&mut self, key: SocketKey, payload: Payload) {
        let Some(conn) = self
            .connections
            .get_mut(key.slot as usize)
            .filter(|conn| conn.generation == key.generation)
        else {
            return;
        };
        let sent = match &mut conn.tls {
            None => Some(payload),
            Some(tls) => {
                // That was what the payload was sealed into, or a piece of it.
                self.spares.recycle(payload);
                tls.sent()
            }
        };
        let mut waiting_bytes = 0;
        if let Some(outbox) = conn.outbox.as_mut() {
            outbox.note_moved(self.now.mono_ms());
            if let Some(payload) = sent {
                outbox.sent(payload, &mut self.spares);
                waiting_bytes = outbox.bytes();
            }
        }
        if conn.outbox.as_ref().is_some_and(|outbox| outbox.is_empty())
            && let Some(outbox) = conn.outbox.take()
        {
            self.spares.recycle_outbox(outbox);
        }
        if conn.is_flushed() {
            self.flushed(key.slot);
        } else {
            self.mark_dirty(key.slot);
            self.note_moved(waiting_bytes);
        }
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
            Stage::Http(_) => self.http_flushed(slot),
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

    /// As [`Core::close_now`], by [`Command::Close`] or [`Command::Reset`].
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

    /// Takes the connection out of all tables and counts its end, once. Its place is free; the socket is counted by
    /// `limits.handshakes` until it is closed, or by nothing but its number in a drain, which closes thousands that shall all hear why.
    pub(super) fn end(&mut self, slot: u32, ending: CloseCause) {
        let conn = &mut self.connections[slot as usize];
        // A handshake whose 101 is still owed was never accepted, so it does not count as closed.
        let accepted = match &conn.stage {
            Stage::Migrating(migrating) => migrating.upgrade.is_none(),
            Stage::Verifying(verifying) => verifying.upgrade.is_none(),
            _ => true,
        };
        let tally = conn.tally;
        if accepted && tally.is_connection() {
            self.tell_ended(slot, ending);
        }
        let user = self.conn(slot).user.take();
        if let Some(user) = user {
            // Before, as the name goes with the last connection.
            self.tell_presence(user, self.users.devices(user).len() - 1);
            self.asked.left(user, self.users.devices(user).len() - 1);
            self.users.leave(user, slot);
            self.leave_channels(slot);
            self.metrics().users.set(self.users.len() as u64);
        }
        if tally.is_connection() {
            if accepted {
                self.metrics().closed(ending);
            }
            let is_place = tally == Tally::Place;
            if is_place {
                self.shared.release();
            }
            let drains = is_place && self.shared.is_draining();
            self.count_as(slot, if drains { Tally::Draining } else { Tally::Ended });
            if let Some(draining) = &mut self.draining {
                draining.count(ending);
            }
        }
    }

    /// Marks a connection to be closed from our side: the close frame is the last thing that it gets.
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

    /// Marks a connection to end when the event that is under way is through; see [`Core::settle`]. One that is marked, or has
    /// ended, is left as it is.
    pub(super) fn doom(&mut self, slot: u32, end: End) {
        let is_open = match &self.conn(slot).stage {
            Stage::Authenticating | Stage::Open | Stage::Echo => true,
            Stage::Verifying(verifying) => verifying.upgrade.is_none(),
            _ => false,
        };
        if is_open {
            self.go(slot, Stage::Doomed(end));
            self.doomed.push(slot);
        }
    }

    /// Nothing can be sent on this socket any more.
    pub(super) fn lose(&mut self, slot: u32) {
        self.doom(slot, End::Lost);
        if !matches!(self.conn(slot).stage, Stage::Doomed(_)) {
            self.end(slot, CloseCause::Abrupt);
            self.close_now(slot);
        }
    }

    /// Takes those that are marked out of all tables, each once, and tells them. Called when an event is through, so that
    /// nobody who goes through a table meets a connection that has left it meanwhile.
    pub(super) fn settle(&mut self) {
        for at in 0.. {
            let Some(&slot) = self.doomed.get(at) else {
                break;
            };
            if let Stage::Doomed(end) = self.conn(slot).stage {
                self.carry_out_end(slot, end);
            }
        }
        self.doomed.clear();
    }

    fn carry_out_end(&mut self, slot: u32, end: End) {
        let (reason, stage) = match end {
            End::Close(reason) => (reason, Stage::Closing { peer_closed: false }),
            End::Fail(reason) => (reason, Stage::Lingering { finished: false }),
            End::Lost => {
                self.end(slot, CloseCause::Abrupt);
                return self.close_now(slot);
            }
        };
        self.end(slot, CloseCause::Ours(reason));
        self.go(slot, stage);
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        encode::close(&mut frame, reason);
        self.append_unlimited(slot, &frame);
        self.scratch = frame;
        self.metrics().sent(crate::metrics::SentKind::Close);
        self.wheel
            .set(slot, self.now.mono_ms() + super::timers::CLOSE_TIMEOUT_MS);
        let key = self.key(slot);
        self.rearm(key);
    }

    /// Closes everything at once; the shard ends when the sockets have gone.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        for slot in 0..self.connections.len() as u32 {
            if !matches!(self.conn(slot).stage, Stage::Free) {
                self.end(slot, CloseCause::Ours(CloseReason::Shutdown));
                self.close_now(slot);
            }
        }
    }

    /// Lets deadlines pass.
    pub fn handle_timeouts(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.wheel.expire(self.now.mono_ms(), &mut expired);
        for slot in expired.drain(..) {
            self.handle_deadline(slot);
        }
        self.expired = expired;
        self.go_on_draining();
        self.decide_on_devices();
        self.settle();
    }

    /// When [`Core::handle_timeouts`] is due, milliseconds of the gateway's clock.
    pub fn next_timeout_ms(&self) -> Option<u64> {
        let drain = self.draining.as_ref().and_then(Draining::due_ms);
        let later = [drain, self.fan_out.look_again_ms(), self.asked.next_due_ms()];
        self.wheel
            .next_due_ms()
            .into_iter()
            .chain(later.into_iter().flatten())
            .min()
    }

    /// The next thing to do with the engine.
    pub fn poll_command(&mut self, into: &mut Vec<Command>) -> bool {
        std::mem::swap(&mut self.commands, into);
        !into.is_empty()
    }

    /// The next thing to tell the control thread.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// The next connection with something to send.
    pub fn poll_dirty(&mut self) -> Option<SocketKey> {
        // Sealing may have failed.
        self.settle();
        loop {
            let slot = self.dirty.pop_front()?;
            let conn = &mut self.connections[slot as usize];
            conn.dirty = false;
            if !matches!(conn.stage, Stage::Free | Stage::Closed) {
                return Some(self.key(slot));
            }
        }
    }

    /// The next bytes to send on a connection with nothing in flight.
    pub fn poll_payload(&mut self, key: SocketKey) -> Option<Payload> {
        let spares = &mut self.spares;
        let conn = self.connections.get_mut(key.slot as usize)?;
        let payload = match &conn.tls {
            None => conn.outbox.as_mut()?.take(spares)?,
            Some(_) => self.sealed_payload(key)?,
        };
        if let Some(outbox) = self.connections[key.slot as usize].outbox.as_mut() {
            outbox.note_moved(self.now.mono_ms());
        }
        let metrics = &self.shared.shards[self.me.index()];
        metrics.bytes_sent.add(payload.as_slice().len() as u64);
        Some(payload)
    }

    /// Sends what this turn brought for other shards.
    pub fn flush_lanes(&mut self) {
        self.tell_presence_lost();
        self.lanes.flush();
    }

    /// Ends the turn: records how long deliveries took.
    ///
    /// `began_ns`: when the turn's work began, which is before the engine submitted what the turn before left.
    pub fn end_turn(&mut self, began_ns: u64, now_ns: u64) {
        self.settle_answers();
        self.close_journal();
        self.count_deliveries(now_ns);
        let metrics = &self.shared.shards[self.me.index()];
        metrics.loop_turn.record(now_ns.saturating_sub(began_ns), 1);
        for received_ns in self.channels.gone_round() {
            metrics.fanout.record(now_ns.saturating_sub(received_ns), 1);
        }
        metrics.channels.set(self.channels.len() as u64);
        metrics.subscriptions.set(self.channels.subscriptions() as u64);
        // Going through all connections costs too much for every turn, even in debug builds.
        if cfg!(debug_assertions) && self.now.mono_ns.is_multiple_of(61) {
            self.check_invariants();
        }
    }

    /// Records how long deliveries took whose bytes are handed to the engine.
    pub fn count_deliveries(&mut self, now_ns: u64) {
        let metrics = &self.shared.shards[self.me.index()];
        if self.turn.local > 0 {
            let took = now_ns.saturating_sub(self.now.mono_ns);
            metrics.delivered(crate::metrics::Path::Local, took, self.turn.local);
            self.turn.local = 0;
        }
        for received_ns in self.turn.from_lanes.drain(..) {
            metrics.delivered(crate::metrics::Path::Shard, now_ns.saturating_sub(received_ns), 1);
        }
        for received_ns in self.turn.from_gateways.drain(..) {
            metrics.delivered(crate::metrics::Path::Gateway, now_ns.saturating_sub(received_ns), 1);
        }
    }

    /// True once [`crate::lanes::LifecycleToShard::Stop`] came.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// A socket that was handed over could not be taken into the engine: its connection has ended.
    pub fn handle_lost(&mut self, hand_off: &Handoff) {
        self.shared.release();
        // A handshake whose `101` is still owed was never accepted, so it does not count as closed.
        if hand_off.upgrade.is_some() {
            return;
        }
        self.metrics().closed(CloseCause::Abrupt);
        if let Some(draining) = &mut self.draining {
            draining.count(CloseCause::Abrupt);
        }
    }

    /// A socket left the engine for its home shard.
    pub fn handle_detached(&mut self, key: SocketKey, socket: OwnedFd) {
        let Some(conn) = self.connection(key) else {
            return;
        };
        let (messages_in, rate, tls) = (conn.messages_in, conn.rate, conn.tls.take());
        let connected_at_ms = conn.connected_at_ms;
        let stage = self.go(key.slot, Stage::Closed);
        // It does not end here: its place and its life go on with the home shard.
        self.count_as(key.slot, Tally::Nobody);
        let remote = self.remote_addr(key.slot);
        self.vacate(key.slot);
        if let Stage::Migrating(migrating) = stage {
            self.hand_off(Handoff {
                socket: Some(socket),
                user: migrating.user,
                grant: migrating.grant,
                hash: migrating.hash,
                upgrade: migrating.upgrade,
                rest: migrating.rest,
                connected_at_ms,
                remote,
                messages_in,
                rate,
                tls,
            });
        }
    }
}
