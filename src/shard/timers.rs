//! What happens when nothing happens: deadlines, heartbeats, the drain.

use super::core::Core;
use crate::metrics::{CloseCause, RefusalReason, SentKind};
use crate::session::Stage;
use crate::session::drain::DrainPlan;
use crate::shared::NotAdmitted;
use crate::wire::message::ServerMessage;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Opcode;

/// How long a peer may take to read our last words and answer them.
pub(super) const CLOSE_TIMEOUT_MS: u64 = 5_000;

/// A drain under way.
#[derive(Debug)]
pub(super) struct Draining {
    plan: DrainPlan,
    /// Whoever is in a slot before this one was told to go, and whoever comes into one is told at once.
    next: u32,
    /// When the next one may be told; `None` if nobody is left to be told.
    tell_due_ms: Option<u64>,
    /// Time was up, and whoever had stayed was closed.
    is_over: bool,
    /// Clients that went by themselves.
    left: u64,
    /// Clients that we closed.
    closed: u64,
}

impl Draining {
    /// When there is something to do.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let end = (!self.is_over).then_some(self.plan.close_ms);
        end.into_iter().chain(self.tell_due_ms).min()
    }

    pub(super) fn count(&mut self, ending: CloseCause) {
        match ending {
            CloseCause::Ours(_) => self.closed += 1,
            CloseCause::Peer(_) | CloseCause::Abrupt => self.left += 1,
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
        let was_told = self.was_told(slot);
        let all_sent = self.kernel.conn(slot).is_flushed();
        let is_expired = self.kernel.is_expired(slot);
        match &self.kernel.conn(slot).stage {
            Stage::Head(bytes) if bytes.is_empty() => {
                self.count_broken_handshake(slot);
                self.kernel.close_now(slot);
            }
            Stage::Head(_) => {
                self.refuse_head(slot, "408 Request Timeout", RefusalReason::HeadTimeout);
            }
            // Everything was sent in this very turn, and the socket is about to be taken out of the engine.
            Stage::Migrating(_) if all_sent => {
                self.kernel
                    .wheel
                    .set(slot, self.kernel.now.mono_ms() + CLOSE_TIMEOUT_MS);
            }
            Stage::Http(_) | Stage::Migrating(_) | Stage::Closing { .. } | Stage::Lingering { .. } => {
                self.end(slot, CloseCause::Abrupt);
                self.kernel.abandon(slot, false);
            }
            Stage::Authenticating => self.kernel.begin_close(slot, CloseReason::NoCredential),
            Stage::Verifying(_) => {
                self.give_up_verifying(slot, NotAdmitted::Unverified, CloseReason::TooManyRequests);
            }
            Stage::Open | Stage::Echo if was_told => self.kernel.begin_close(slot, CloseReason::Shutdown),
            Stage::Open if is_expired => self.kernel.begin_close(slot, CloseReason::TokenExpired),
            Stage::Open | Stage::Echo => self.handle_silence(slot),
            Stage::Free | Stage::Doomed(_) | Stage::Closed => {}
        }
    }

    /// Pings a connection that was silent for an interval, closes one that was silent for too long. Activity only
    /// writes the time down; this looks at it once per interval and connection.
    fn handle_silence(&mut self, slot: u32) {
        let interval = self.kernel.settings.heartbeat.interval.as_millis() as u64;
        let timeout = self.kernel.settings.heartbeat.timeout.as_millis() as u64;
        let now = self.kernel.now.mono_ms();
        let last_seen = self.kernel.conn(slot).last_seen_ms;
        let silent = now.saturating_sub(last_seen);
        if silent >= timeout {
            self.kernel.begin_close(slot, CloseReason::HeartbeatTimeout);
        } else if silent >= interval {
            self.kernel.look_again(slot, (now + interval).min(last_seen + timeout));
            self.kernel.append_opcode(slot, Opcode::Ping, b"", SentKind::Ping);
        } else {
            self.kernel.look_again(slot, last_seen + interval);
        }
    }

    /// Begins to tell every client to go elsewhere.
    pub(super) fn begin_drain(&mut self, plan: DrainPlan) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining {
            plan,
            next: 0,
            tell_due_ms: Some(self.kernel.now.mono_ms()),
            is_over: false,
            left: 0,
            closed: 0,
        });
        for slot in 0..self.kernel.connections.len() as u32 {
            match self.kernel.conn(slot).stage {
                Stage::Authenticating => self.kernel.begin_close(slot, CloseReason::Shutdown),
                Stage::Verifying(_) => self.give_up_verifying(slot, NotAdmitted::Draining, CloseReason::Shutdown),
                _ => {}
            }
        }
        self.go_on_draining();
    }

    /// Tells as many clients to go as the gateway's pace permits. When time is up, closes those that are still there.
    pub(super) fn go_on_draining(&mut self) {
        let now_ms = self.kernel.now.mono_ms();
        while let Some(draining) = &mut self.draining
            && draining.tell_due_ms.is_some_and(|due_ms| due_ms <= now_ms)
        {
            let rest = self
                .kernel
                .connections
                .get(draining.next as usize..)
                .unwrap_or_default();
            let untold = rest
                .iter()
                .position(|conn| matches!(conn.stage, Stage::Open | Stage::Echo));
            let Some(distance) = untold else {
                draining.next = self.kernel.connections.len() as u32;
                draining.tell_due_ms = None;
                break;
            };
            let slot = draining.next + distance as u32;
            draining.next = slot;
            match self
                .kernel
                .shared
                .may_tell(self.kernel.now.mono_ns, draining.plan.tell_every_ns)
            {
                Ok(()) => {
                    draining.next += 1;
                    self.tell_to_go(slot);
                }
                Err(due_ns) => draining.tell_due_ms = Some(due_ns / 1_000_000 + 1),
            }
        }
        let time_is_up = |draining: &Draining| !draining.is_over && draining.plan.close_ms <= now_ms;
        let Some(draining) = self.draining.as_mut().filter(|draining| time_is_up(draining)) else {
            return;
        };
        draining.is_over = true;
        draining.tell_due_ms = None;
        draining.next = u32::MAX;
        for slot in 0..self.kernel.connections.len() as u32 {
            if matches!(self.kernel.conn(slot).stage, Stage::Open | Stage::Echo) {
                self.kernel.begin_close(slot, CloseReason::Shutdown);
            }
        }
    }

    /// True if this connection was told to go, and waits for its close.
    pub(super) fn was_told(&self, slot: u32) -> bool {
        self.draining.as_ref().is_some_and(|draining| slot < draining.next)
    }

    /// A connection that was on its way between two shards when the drain began is open now.
    pub(super) fn drain_newcomer(&mut self, slot: u32) {
        let now_ms = self.kernel.now.mono_ms();
        let Some(draining) = &mut self.draining else {
            return;
        };
        if draining.is_over {
            self.kernel.begin_close(slot, CloseReason::Shutdown);
        } else if slot < draining.next {
            self.tell_to_go(slot);
        } else {
            draining.tell_due_ms.get_or_insert(now_ms);
        }
    }

    /// Sends `shutdown` to one client, and plans its close: who goes when told is not closed.
    fn tell_to_go(&mut self, slot: u32) {
        let Some(plan) = self.draining.as_ref().map(|draining| draining.plan) else {
            return;
        };
        let reconnect_after_ms = self.kernel.ids.jitter(DrainPlan::SPREAD_MS);
        let due_ms = plan.close_at_ms(self.kernel.now.mono_ms(), reconnect_after_ms);
        self.kernel.wheel.set(slot, due_ms);
        if matches!(self.kernel.conn(slot).stage, Stage::Open) {
            self.kernel.send(slot, &ServerMessage::Shutdown { reconnect_after_ms });
        }
    }

    /// How far the drain is; `None` if there is none.
    pub fn drain_count(&self) -> Option<DrainCount> {
        self.draining.as_ref().map(|draining| DrainCount {
            open: self.kernel.metrics().connections.get(),
            left: draining.left,
            closed: draining.closed,
        })
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
}
