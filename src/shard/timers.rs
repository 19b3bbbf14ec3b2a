//! What happens when nothing happens: deadlines, heartbeats, the drain.

use super::core::Core;
use crate::metrics::{Ending, SentKind};
use crate::protocol::close::CloseReason;
use crate::protocol::encode;
use crate::protocol::frame::Opcode;
use crate::session::Stage;
use crate::view::NotAdmitted;

/// How long a peer may take to read our last words and answer them.
pub(super) const CLOSE_TIMEOUT_MS: u64 = 5_000;

/// A drain under way.
#[derive(Debug)]
pub(super) struct Draining {
    began_ms: u64,
    until_ms: u64,
    /// Clients that went by themselves.
    left: u64,
    /// Clients that we closed.
    closed: u64,
}

impl Draining {
    pub(super) fn count(&mut self, ending: Ending) {
        match ending {
            Ending::Ours(_) => self.closed += 1,
            Ending::Peer(_) | Ending::Abrupt => self.left += 1,
        }
    }
}

/// What became of a shard's clients in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainCount {
    /// Connections that are still open.
    pub open: u64,
    /// Clients that went by themselves.
    pub left: u64,
    /// Clients that we closed.
    pub closed: u64,
}

impl Core {
    /// The deadline of a connection has come; what it means depends on where the connection is.
    pub(super) fn handle_deadline(&mut self, slot: u32) {
        let draining = self.draining.is_some();
        let all_sent = self.conn(slot).is_flushed();
        let is_expired = self.is_expired(slot);
        match &self.conn(slot).stage {
            Stage::Head(bytes) if bytes.is_empty() => {
                self.count_broken_handshake(slot);
                self.close_now(slot);
            }
            Stage::Head(_) => {
                self.refuse_head(slot, "408 Request Timeout", "head_timeout");
            }
            // Everything was sent in this very turn, and the socket is about to be taken out of the engine.
            Stage::Leaving(_) if all_sent => {
                self.wheel.set(slot, self.now.mono_ms() + CLOSE_TIMEOUT_MS);
            }
            Stage::Http(_) | Stage::Leaving(_) | Stage::Closing { .. } | Stage::Lingering { .. } => {
                self.end(slot, Ending::Abrupt);
                self.close_now(slot);
            }
            Stage::Authenticating => self.begin_close(slot, CloseReason::NoCredential),
            Stage::Verifying(_) => {
                self.give_up_verifying(slot, NotAdmitted::Unverified, CloseReason::TooManyRequests);
            }
            Stage::Open | Stage::Echo if draining => self.begin_close(slot, CloseReason::Shutdown),
            Stage::Open if is_expired => self.begin_close(slot, CloseReason::TokenExpired),
            Stage::Open | Stage::Echo => self.handle_silence(slot),
            Stage::Free | Stage::Closed => {}
        }
    }

    /// Pings a connection that was silent for an interval, closes one that was silent for too long. Activity only
    /// writes the time down; this looks at it once per interval and connection.
    fn handle_silence(&mut self, slot: u32) {
        let interval = self.settings.heartbeat.interval.as_millis() as u64;
        let timeout = self.settings.heartbeat.timeout.as_millis() as u64;
        let now = self.now.mono_ms();
        let last_seen = self.conn(slot).last_seen_ms;
        let silent = now.saturating_sub(last_seen);
        if silent >= timeout {
            self.begin_close(slot, CloseReason::HeartbeatTimeout);
        } else if silent >= interval {
            self.look_again(slot, (now + interval).min(last_seen + timeout));
            self.say(slot, SentKind::Ping, |_, out| encode::frame(out, Opcode::Ping, b""));
        } else {
            self.look_again(slot, last_seen + interval);
        }
    }

    fn is_expired(&self, slot: u32) -> bool {
        let grant = &self.connections[slot as usize].grant;
        grant.as_ref().is_some_and(|grant| grant.is_expired(self.now.wall_ms))
    }

    /// Looks at an open connection at this time of the gateway's clock, or when its token ends, whichever is sooner. Tokens go
    /// by the wall clock; should that jump, the next heartbeat notices.
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

    /// Tells every client to go elsewhere, and plans when the ones that stay are closed.
    pub(super) fn begin_drain(&mut self, until_ms: u64) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining {
            began_ms: self.now.mono_ms(),
            until_ms,
            left: 0,
            closed: 0,
        });
        for slot in 0..self.connections.len() as u32 {
            match self.conn(slot).stage {
                Stage::Open => self.drain_connection(slot),
                Stage::Authenticating => self.begin_close(slot, CloseReason::Shutdown),
                Stage::Verifying(_) => self.give_up_verifying(slot, NotAdmitted::Draining, CloseReason::Shutdown),
                Stage::Echo => {
                    let due = self.drain_time().1;
                    self.wheel.set(slot, due);
                }
                _ => {}
            }
        }
    }

    /// Sends `shutdown` to one client. The wish is spread over the first two thirds of the drain, the close comes a
    /// sixth of the drain later: who goes when told is not closed, and nobody comes back together.
    pub(super) fn drain_connection(&mut self, slot: u32) {
        let (reconnect_after_ms, due) = self.drain_time();
        self.wheel.set(slot, due);
        self.say(slot, SentKind::Shutdown, |_, out| {
            encode::shutdown(out, reconnect_after_ms);
        });
    }

    fn drain_time(&mut self) -> (u64, u64) {
        let now = self.now.mono_ms();
        let (began, until) = self.draining.as_ref().map_or((now, now), |d| (d.began_ms, d.until_ms));
        let whole = until.saturating_sub(began);
        let reconnect_after_ms = self.ids.jitter(whole * 2 / 3 + 1);
        (reconnect_after_ms, (now + reconnect_after_ms + whole / 6).min(until))
    }

    /// How far the drain is; `None` if there is none.
    pub fn drain_count(&self) -> Option<DrainCount> {
        self.draining.as_ref().map(|draining| DrainCount {
            open: self.metrics().connections.get(),
            left: draining.left,
            closed: draining.closed,
        })
    }

    /// True while something that clients shall still read waits, or a close is under way.
    pub fn has_unfinished_sockets(&self) -> bool {
        self.connections.iter().any(|conn| {
            !matches!(
                conn.stage,
                Stage::Free | Stage::Closed | Stage::Head(_) | Stage::Http(_)
            ) || conn.outbox.is_some()
        })
    }
}
