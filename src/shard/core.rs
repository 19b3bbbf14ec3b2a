//! All state of one shard, and what happens to it.
//!
//! Owned by the shard's thread. Events come in through `handle_*`; effects are left in outboxes,
//! lanes and [`Core::poll_command`], and the turn carries them out at its end. Nothing here blocks,
//! sleeps, or touches a descriptor's bytes; descriptors only pass through on their way to another
//! shard.
//!
//! Invariants (checked by `check_invariants` in debug builds): a connection with a user is in that
//! user's list; each socket is counted by exactly one limit (`Tally`); an outbox exists only while
//! it holds bytes.

use core::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::admin::AdminReply;
use crate::engine::{Payload, SocketKey};
use crate::http::ListenerKind;
use crate::ids::ShardId;
use crate::lanes::{Handoff, Lanes, ToControl};
use crate::metrics::{CloseCause, ShardMetrics};
use crate::router::HomeMap;
use crate::router::users::UserIndex;
use crate::session::drain::DrainPlan;
use crate::session::{End, Tally};
use crate::settings::Settings;
use crate::shard::Stage;
use crate::shared::{Now, Shared};
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::server_frame;

use super::admission::Admission;
use super::channels::Channels;
pub use super::kernel::Command;
use super::kernel::{Happened, Kernel};
use super::lifecycle::{DrainCount, Lifecycle};
use super::messages::Messages;
use super::presence::Presence;

/// The state of one shard.
#[derive(Debug)]
pub struct Core {
    pub(super) kernel: Kernel,
    pub(super) admission: Admission,
    pub(super) channels: Channels,
    pub(super) messages: Messages,
    pub(super) presence: Presence,
    pub(super) lifecycle: Lifecycle,
    expired: Vec<u32>,
    stopping: bool,
}

impl Core {
    /// The empty shard `lanes.me()` of the gateway that `shared` describes.
    pub fn new(shared: Arc<Shared>, settings: Arc<Settings>, homes: HomeMap, lanes: Lanes, seed: u64) -> Self {
        let listener = ListenerKind::Public(lanes.me().index());
        Core {
            admission: Admission::new(Arc::clone(&shared), Arc::clone(&settings), listener, !seed),
            kernel: Kernel::new(shared, settings, homes, lanes, seed),
            channels: Channels::default(),
            messages: Messages::default(),
            presence: Presence::default(),
            lifecycle: Lifecycle::default(),
            expired: Vec::new(),
            stopping: false,
        }
    }

    /// This shard's counters.
    pub fn metrics(&self) -> &ShardMetrics {
        self.kernel.metrics()
    }

    /// The next things to do with the engine. False if there are none.
    pub fn poll_command(&mut self, into: &mut Vec<Command>) -> bool {
        self.kernel.poll_command(into)
    }

    /// Sends the control thread something, when lanes are flushed.
    pub(super) fn tell_control(&mut self, mail: impl Into<ToControl>) {
        self.kernel.lanes.push_control(mail);
    }

    /// The next connection with something to send.
    pub fn poll_dirty(&mut self) -> Option<SocketKey> {
        // Sealing may have failed.
        self.settle();
        self.kernel.poll_dirty()
    }

    /// Begins a turn at this time.
    pub fn begin_turn(&mut self, now: Now) {
        self.kernel.now = now;
        self.admission.begin_turn(now);
        self.kernel.metrics().last_turn_ms.set(now.mono_ms());
    }

    /// A socket was accepted from `peer`; one receive is armed.
    pub fn handle_accepted(&mut self, key: SocketKey, peer: Option<SocketAddr>) {
        if self.stopping {
            self.kernel.occupy(key, Stage::Head(Vec::new()));
            self.kernel.close_now(key.slot);
            return;
        }
        self.kernel.occupy(key, Stage::Head(Vec::new())).armed = true;
        if !self.admission.handle_accepted(&mut self.kernel, key.slot, peer) {
            return self.kernel.close_now(key.slot);
        }
        self.trim_pending();
    }

    /// The engine let a closed socket go.
    pub fn handle_closed(&mut self, key: SocketKey) {
        if self.kernel.connection(key).is_some() {
            self.kernel.vacate(key.slot);
        }
    }

    /// Goes on with what is on its way to many, as far as one turn may.
    pub fn fan_out(&mut self) {
        self.channels.fan_out(&mut self.kernel);
        self.settle();
    }

    /// The next socket that the kernel is to be asked about, for [`Core::handle_probed`].
    pub fn poll_probe(&mut self) -> Option<SocketKey> {
        self.channels.poll_probe()
    }

    /// The peer of a socket has not acknowledged so many bytes that the kernel has taken; `None` if
    /// that is not known.
    pub fn handle_probed(&mut self, key: SocketKey, unacknowledged: Option<usize>) {
        self.channels.handle_probed(&mut self.kernel, key, unacknowledged);
    }

    /// True if this turn has brought something, before [`Core::fan_out`], that somebody waits for.
    pub fn is_interactive(&self) -> bool {
        self.kernel.turn.interactive
    }

    /// True if there is more to do of what is spread over turns, so that nobody else waits for all
    /// of it.
    pub fn has_more(&self) -> bool {
        self.channels.has_fan_out() || self.has_pre_auth()
    }

    /// The peer ended its side or the socket broke.
    pub fn handle_ended(&mut self, key: SocketKey, broken: bool) {
        self.peer_ended(key, broken);
        self.settle();
    }

    /// So many bytes of an abandoned connection has the kernel taken, and the peer not
    /// acknowledged.
    pub fn handle_unacknowledged(&mut self, key: SocketKey, bytes: usize) {
        if bytes > 0 && self.kernel.connection(key).is_some() {
            self.kernel.count_doubtful(key.slot);
        }
    }

    /// A send is complete.
    pub fn handle_sent(&mut self, key: SocketKey, payload: Payload) {
        let Some(conn) = self
            .kernel
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
                self.kernel.spares.recycle(payload);
                tls.sent()
            }
        };
        let mut waiting_bytes = 0;
        if let Some(outbox) = conn.outbox.as_mut() {
            outbox.note_moved(self.kernel.now.mono_ms());
            if let Some(payload) = sent {
                outbox.sent(payload, &mut self.kernel.spares);
                waiting_bytes = outbox.bytes();
            }
        }
        if conn.outbox.as_ref().is_some_and(|outbox| outbox.is_empty())
            && let Some(outbox) = conn.outbox.take()
        {
            self.kernel.spares.recycle_outbox(outbox);
        }
        if conn.is_flushed() {
            self.kernel.flushed(key.slot);
            self.settle();
        } else {
            self.kernel.mark_dirty(key.slot);
            self.channels.note_moved(&mut self.kernel, waiting_bytes);
        }
    }

    /// Takes the connection out of all tables and counts its end, once. Its permit is free; the
    /// socket is counted by `limits.handshakes` until it is closed. In a drain, which closes
    /// thousands that shall all hear why, no limit counts it.
    pub(super) fn end(&mut self, slot: u32, ending: CloseCause) {
        let conn = &mut self.kernel.connections[slot as usize];
        // A handshake whose 101 is still owed was never accepted, so it does not count as closed.
        let accepted = match &conn.stage {
            Stage::Migrating(migrating) => migrating.upgrade.is_none(),
            Stage::Verifying(verifying) => verifying.upgrade.is_none(),
            _ => true,
        };
        let tally = conn.tally;
        if accepted && tally.is_connection() {
            self.kernel.tell_ended(slot, ending);
        }
        let user = self.kernel.conn(slot).user.take();
        if let Some(user) = user {
            let others = self.kernel.users.devices(user).len() - 1;
            // Before, as the name goes with the last connection.
            self.kernel.tell_presence(user, others);
            self.lifecycle.device_left(user, others);
            self.kernel.users.leave(user, slot);
            self.channels.leave_channels(&mut self.kernel, slot);
            self.kernel.metrics().users.set(self.kernel.users.len() as u64);
        }
        if tally.is_connection() {
            if accepted {
                self.kernel.metrics().closed(ending);
            }
            let holds_permit = tally == Tally::Permit;
            if holds_permit {
                self.kernel.shared.release();
            }
            let drains = holds_permit && self.kernel.shared.is_draining();
            self.kernel
                .count_as(slot, if drains { Tally::Draining } else { Tally::Ended });
            self.lifecycle.count_ended(ending);
        }
    }

    /// Nothing can be sent on this socket any more.
    pub(super) fn lose(&mut self, slot: u32) {
        self.kernel.doom(slot, End::Lost);
        if !matches!(self.kernel.conn(slot).stage, Stage::Doomed(_)) {
            self.end(slot, CloseCause::Abrupt);
            self.kernel.close_now(slot);
        }
    }

    /// Does what the event that is through has brought for others than the service that was at
    /// work. Connections that are marked leave all tables here and nowhere else, each once, so that
    /// no walk through a table meets one that left it meanwhile.
    pub(super) fn settle(&mut self) {
        while let Some(happened) = self.kernel.next_event() {
            match happened {
                Happened::Doomed(slot) => {
                    if let Stage::Doomed(end) = self.kernel.conn(slot).stage {
                        self.carry_out_end(slot, end);
                    }
                }
                Happened::HttpFlushed(slot) => {
                    let key = self.kernel.key(slot);
                    self.admission.http_flushed(&mut self.kernel, slot);
                    self.receive_again(key);
                }
                Happened::Opened(slot) => self.handle_opened(slot),
                Happened::FramesDue { key, mut rest } => {
                    if self.kernel.connection(key).is_some() && !rest.is_empty() {
                        self.plain_bytes(key.slot, &mut rest);
                    }
                    self.kernel.rearm(key);
                }
                Happened::Refreshed { slot, rights_changed } => self.handle_refreshed(slot, rights_changed),
            }
        }
    }

    /// The user of an open connection; `None` if it has ended, or is marked to end.
    fn open_user(&mut self, slot: u32) -> Option<UserIndex> {
        let conn = self.kernel.conn(slot);
        conn.user.filter(|_| matches!(conn.stage, Stage::Open))
    }

    /// Holds the user to the most connections that the one on `slot` permits.
    fn limit_devices(&mut self, slot: u32, user: UserIndex) {
        let grant = self.kernel.connections[slot as usize].grant.as_ref();
        let limit = self.lifecycle.connections_limit(&self.kernel, grant);
        // 0: any number.
        if limit > 0 {
            self.lifecycle.limit_devices(&mut self.kernel, user, limit);
        }
    }

    /// A user has one connection more.
    fn handle_opened(&mut self, slot: u32) {
        let Some(user) = self.open_user(slot) else {
            return;
        };
        self.limit_devices(slot, user);
        self.lifecycle.drain_newcomer(&mut self.kernel, slot);
    }

    /// A user who was known showed a new token.
    fn handle_refreshed(&mut self, slot: u32, rights_changed: bool) {
        let Some(user) = self.open_user(slot) else {
            return;
        };
        if !self.lifecycle.was_told(slot) {
            // The old token's end is not a deadline any more, and the new one's is.
            self.kernel.look_at_once(slot);
        }
        if rights_changed {
            self.channels.review(slot);
        }
        self.limit_devices(slot, user);
    }

    fn carry_out_end(&mut self, slot: u32, end: End) {
        let (reason, stage) = match end {
            End::Close(reason) => (reason, Stage::Closing { peer_closed: false }),
            End::Fail(reason) => (reason, Stage::Lingering { finished: false }),
            End::Lost => {
                self.end(slot, CloseCause::Abrupt);
                return self.kernel.close_now(slot);
            }
        };
        self.end(slot, CloseCause::Ours(reason));
        self.kernel.go(slot, stage);
        self.kernel.send_close(slot, |out| server_frame::close(out, reason));
        let key = self.kernel.key(slot);
        self.kernel.rearm(key);
    }

    /// Closes everything at once; the shard ends when the sockets have gone.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        for slot in 0..self.kernel.connections.len() as u32 {
            if !matches!(self.kernel.conn(slot).stage, Stage::Free) {
                self.end(slot, CloseCause::Ours(CloseReason::Shutdown));
                self.kernel.close_now(slot);
            }
        }
    }

    /// Lets deadlines pass.
    pub fn handle_timeouts(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.kernel.wheel.expire(self.kernel.now.mono_ms(), &mut expired);
        for slot in expired.drain(..) {
            self.handle_deadline(slot);
        }
        self.expired = expired;
        self.lifecycle.handle_timeouts(&mut self.kernel);
        self.settle();
    }

    /// The deadline of a connection has come; what it means depends on where the connection is.
    fn handle_deadline(&mut self, slot: u32) {
        let was_told = self.lifecycle.was_told(slot);
        let all_sent = self.kernel.conn(slot).is_flushed();
        let is_expired = self.kernel.is_expired(slot);
        match &self.kernel.conn(slot).stage {
            Stage::Head(_) | Stage::Authenticating | Stage::Verifying(_) => {
                self.admission.handle_deadline(&mut self.kernel, slot);
            }
            // Everything was sent in this very turn, and the socket is about to be taken out of the
            // engine.
            Stage::Migrating(_) if all_sent => {
                self.kernel.await_close(slot);
            }
            Stage::Http(_) | Stage::Migrating(_) | Stage::Closing { .. } | Stage::Lingering { .. } => {
                self.end(slot, CloseCause::Abrupt);
                self.kernel.abandon(slot, false);
            }
            Stage::Open | Stage::Echo if was_told => self.kernel.begin_close(slot, CloseReason::Shutdown),
            Stage::Open if is_expired => self.kernel.begin_close(slot, CloseReason::TokenExpired),
            Stage::Open | Stage::Echo => self.lifecycle.handle_silence(&mut self.kernel, slot),
            Stage::Free | Stage::Doomed(_) | Stage::Closed => {}
        }
    }

    /// Begins to tell every client to go elsewhere.
    pub(super) fn begin_drain(&mut self, plan: DrainPlan) {
        if !self.lifecycle.begin_drain(&self.kernel, plan) {
            return;
        }
        self.admission.begin_drain(&mut self.kernel);
        self.lifecycle.handle_timeouts(&mut self.kernel);
        self.settle();
    }

    /// How far the drain is; `None` if there is none.
    pub fn drain_count(&self) -> Option<DrainCount> {
        self.lifecycle.drain_count(&self.kernel)
    }

    /// True while something that clients shall still read waits, or a close is under way.
    pub fn has_unfinished_sockets(&self) -> bool {
        self.kernel.connections.iter().any(|conn| {
            !matches!(
                conn.stage,
                Stage::Free | Stage::Closed | Stage::Head(_) | Stage::Http(_)
            ) || conn.outbox.is_some()
        })
    }

    /// When [`Core::handle_timeouts`] is due, milliseconds of the gateway's clock.
    pub fn next_timeout_ms(&self) -> Option<u64> {
        let later = [self.lifecycle.next_timeout_ms(), self.channels.next_timeout_ms()];
        self.kernel
            .wheel
            .next_due_ms()
            .into_iter()
            .chain(later.into_iter().flatten())
            .min()
    }

    /// The next bytes to send on a connection with nothing in flight.
    pub fn poll_payload(&mut self, key: SocketKey) -> Option<Payload> {
        let spares = &mut self.kernel.spares;
        let conn = self.kernel.connections.get_mut(key.slot as usize)?;
        let payload = match &conn.tls {
            None => conn.outbox.as_mut()?.take(spares)?,
            Some(_) => match self.kernel.sealed_payload(key) {
                Ok(payload) => payload?,
                Err(error) => {
                    log::debug!("a TLS connection cannot go on: {error}");
                    self.lose(key.slot);
                    return None;
                }
            },
        };
        if let Some(outbox) = self.kernel.connections[key.slot as usize].outbox.as_mut() {
            outbox.note_moved(self.kernel.now.mono_ms());
        }
        let metrics = &self.kernel.shared.shards[self.kernel.me.index()];
        metrics.bytes_sent.add(payload.as_slice().len() as u64);
        Some(payload)
    }

    /// Sends what this turn brought for other shards.
    pub fn flush_lanes(&mut self) {
        self.kernel.tell_presence_lost();
        self.kernel.lanes.flush();
    }

    /// The next thread to wake, as its inbox has something new.
    pub fn poll_wake(&mut self) -> Option<ShardId> {
        self.kernel.lanes.poll_wake()
    }

    /// Ends the turn: records how long deliveries took.
    ///
    /// `began_ns`: when the turn's work began, which is before the engine submitted what the turn
    /// before left.
    pub fn end_turn(&mut self, began_ns: u64, now_ns: u64) {
        self.admission.settle_answers(&mut self.kernel);
        self.kernel.close_journal();
        self.count_deliveries(now_ns);
        let metrics = &self.kernel.shared.shards[self.kernel.me.index()];
        metrics.loop_turn.record(now_ns.saturating_sub(began_ns), 1);
        self.channels.end_turn(&self.kernel, now_ns);
        // Going through all connections costs too much for every turn, even in debug builds.
        if cfg!(debug_assertions) && self.kernel.now.mono_ns.is_multiple_of(61) {
            self.check_invariants();
        }
    }

    /// Records how long deliveries took whose bytes are handed to the engine.
    pub fn count_deliveries(&mut self, now_ns: u64) {
        let metrics = &self.kernel.shared.shards[self.kernel.me.index()];
        if self.kernel.turn.local > 0 {
            let took = now_ns.saturating_sub(self.kernel.now.mono_ns);
            metrics.delivered(crate::metrics::Path::Local, took, self.kernel.turn.local);
            self.kernel.turn.local = 0;
        }
        for received_ns in self.kernel.turn.from_lanes.drain(..) {
            metrics.delivered(crate::metrics::Path::Shard, now_ns.saturating_sub(received_ns), 1);
        }
        for received_ns in self.kernel.turn.from_gateways.drain(..) {
            metrics.delivered(crate::metrics::Path::Gateway, now_ns.saturating_sub(received_ns), 1);
        }
    }

    /// True once [`crate::lanes::LifecycleToShard::Stop`] came.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// A socket that was handed over could not be taken into the engine: its connection has ended.
    pub fn handle_lost(&mut self, hand_off: &Handoff) {
        self.kernel.shared.release();
        // A handshake whose `101` is still owed was never accepted, so it does not count as closed.
        if hand_off.upgrade.is_some() {
            return;
        }
        self.kernel.metrics().closed(CloseCause::Abrupt);
        self.lifecycle.count_ended(CloseCause::Abrupt);
    }

    /// The engine took a socket that another shard handed over, or that could not be handed over.
    pub fn handle_adopted(&mut self, key: SocketKey, hand_off: Handoff) {
        self.admission.handle_adopted(&mut self.kernel, key, hand_off);
        self.settle();
    }

    /// The control thread has answered an administrator's request.
    pub(super) fn handle_answer(&mut self, conn: SocketKey, answer: AdminReply) {
        self.admission.handle_answer(&mut self.kernel, conn, answer);
        self.receive_again(conn);
    }

    /// A socket left the engine for its home shard.
    pub fn handle_detached(&mut self, key: SocketKey, socket: OwnedFd) {
        let Some(conn) = self.kernel.connection(key) else {
            return;
        };
        let (messages_in, rate, tls) = (conn.messages_in, conn.rate, conn.tls.take());
        let connected_at_ms = conn.connected_at_ms;
        // Where the shard was told to stop meanwhile, the connection has ended, and its socket is
        // dropped here.
        let stage = match conn.stage {
            Stage::Closed => Stage::Closed,
            _ => self.kernel.go(key.slot, Stage::Closed),
        };
        // It does not end here: its permit and its life go on with the home shard.
        self.kernel.count_as(key.slot, Tally::Nobody);
        let remote = self.kernel.remote_addr(key.slot);
        self.kernel.vacate(key.slot);
        if let Stage::Migrating(migrating) = stage {
            let hand_off = Handoff {
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
            };
            self.admission.hand_off(&mut self.kernel, hand_off);
        }
    }
}
