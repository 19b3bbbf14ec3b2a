//! What time does to open connections: heartbeats, the drain, and how many connections a user
//! keeps.
//!
//! Owned by the shard.

mod asked;
mod devices;

use super::kernel::Kernel;
use crate::metrics::{CloseCause, SentKind};
use crate::router::users::UserIndex;
use crate::session::Stage;
use crate::session::drain::DrainPlan;
use crate::wire::message::ServerMessage;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Opcode;
use asked::Asked;

/// A drain under way.
#[derive(Debug)]
struct Draining {
    plan: DrainPlan,
    /// Connections in slots before this one were told to go. A connection that comes into such a
    /// slot is told at once.
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
    fn due_ms(&self) -> Option<u64> {
        let end = (!self.is_over).then_some(self.plan.close_ms);
        end.into_iter().chain(self.tell_due_ms).min()
    }

    fn count(&mut self, ending: CloseCause) {
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

/// What a shard knows of the ends of its connections.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    draining: Option<Draining>,
    asked: Asked,
}

impl Lifecycle {
    /// When there is something to do, milliseconds of the gateway's clock.
    pub(super) fn next_timeout_ms(&self) -> Option<u64> {
        let drain = self.draining.as_ref().and_then(Draining::due_ms);
        drain.into_iter().chain(self.asked.next_due_ms()).min()
    }

    /// Goes on with what is due.
    pub(super) fn handle_timeouts(&mut self, kernel: &mut Kernel) {
        self.go_on_draining(kernel);
        self.decide_on_devices(kernel);
    }

    /// Users of whom it is being asked which of their connections are alive.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// A connection of a user is about to leave, and so many stay.
    pub(super) fn device_left(&mut self, user: UserIndex, connections: usize) {
        self.asked.left(user, connections);
    }

    /// A connection that had a permit, or was being let in, has ended.
    pub(super) fn count_ended(&mut self, cause: CloseCause) {
        if let Some(draining) = &mut self.draining {
            draining.count(cause);
        }
    }

    /// A drain begins. False if it began before.
    pub(super) fn begin_drain(&mut self, kernel: &Kernel, plan: DrainPlan) -> bool {
        if self.draining.is_some() {
            return false;
        }
        self.draining = Some(Draining {
            plan,
            next: 0,
            tell_due_ms: Some(kernel.now.mono_ms()),
            is_over: false,
            left: 0,
            closed: 0,
        });
        true
    }

    /// How far the drain is; `None` if there is none.
    pub(super) fn drain_count(&self, kernel: &Kernel) -> Option<DrainCount> {
        self.draining.as_ref().map(|draining| DrainCount {
            open: kernel.metrics().connections.get(),
            left: draining.left,
            closed: draining.closed,
        })
    }

    /// Pings a connection that was silent for an interval, closes one that was silent for too long.
    /// Activity only writes the time down; this looks at it once per interval and connection.
    pub(super) fn handle_silence(&mut self, kernel: &mut Kernel, slot: u32) {
        let interval = kernel.settings.heartbeat.interval.as_millis() as u64;
        let timeout = kernel.settings.heartbeat.timeout.as_millis() as u64;
        let now = kernel.now.mono_ms();
        let last_seen = kernel.conn(slot).last_seen_ms;
        let silent = now.saturating_sub(last_seen);
        if silent >= timeout {
            kernel.begin_close(slot, CloseReason::HeartbeatTimeout);
        } else if silent >= interval {
            kernel.look_again(slot, (now + interval).min(last_seen + timeout));
            kernel.append_opcode(slot, Opcode::Ping, b"", SentKind::Ping);
        } else {
            kernel.look_again(slot, last_seen + interval);
        }
    }

    /// Tells as many clients to go as the gateway's pace permits. When time is up, closes those
    /// that are still there.
    pub(super) fn go_on_draining(&mut self, kernel: &mut Kernel) {
        let now_ms = kernel.now.mono_ms();
        while let Some(draining) = &mut self.draining
            && draining.tell_due_ms.is_some_and(|due_ms| due_ms <= now_ms)
        {
            let rest = kernel.connections.get(draining.next as usize..).unwrap_or_default();
            let untold = rest
                .iter()
                .position(|conn| matches!(conn.stage, Stage::Open | Stage::Echo));
            let Some(distance) = untold else {
                draining.next = kernel.connections.len() as u32;
                draining.tell_due_ms = None;
                break;
            };
            let slot = draining.next + distance as u32;
            draining.next = slot;
            match kernel.shared.may_tell(kernel.now.mono_ns, draining.plan.tell_every_ns) {
                Ok(()) => {
                    draining.next += 1;
                    self.tell_to_go(kernel, slot);
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
        for slot in 0..kernel.connections.len() as u32 {
            if matches!(kernel.conn(slot).stage, Stage::Open | Stage::Echo) {
                kernel.begin_close(slot, CloseReason::Shutdown);
            }
        }
    }

    /// True if this connection was told to go, and waits for its close.
    pub(super) fn was_told(&self, slot: u32) -> bool {
        self.draining.as_ref().is_some_and(|draining| slot < draining.next)
    }

    /// A connection that was on its way between two shards when the drain began is open now.
    pub(super) fn drain_newcomer(&mut self, kernel: &mut Kernel, slot: u32) {
        let now_ms = kernel.now.mono_ms();
        let Some(draining) = &mut self.draining else {
            return;
        };
        if draining.is_over {
            kernel.begin_close(slot, CloseReason::Shutdown);
        } else if slot < draining.next {
            self.tell_to_go(kernel, slot);
        } else {
            draining.tell_due_ms.get_or_insert(now_ms);
        }
    }

    /// Sends `shutdown` to one client, and plans its close: who goes when told is not closed.
    fn tell_to_go(&mut self, kernel: &mut Kernel, slot: u32) {
        let Some(plan) = self.draining.as_ref().map(|draining| draining.plan) else {
            return;
        };
        let reconnect_after_ms = kernel.ids.jitter(DrainPlan::SPREAD_MS);
        let due_ms = plan.close_at_ms(kernel.now.mono_ms(), reconnect_after_ms);
        kernel.wheel.set(slot, due_ms);
        if matches!(kernel.conn(slot).stage, Stage::Open) {
            kernel.send(slot, &ServerMessage::Shutdown { reconnect_after_ms });
        }
    }
}
