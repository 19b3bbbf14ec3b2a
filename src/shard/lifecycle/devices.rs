//! How many connections a user may have here, and which one goes when there are more.
//!
//! Owned by the shard. A new connection is let in, and the one that was silent longest goes. A
//! phone that changed networks leaves half-open connections behind, which look like others until
//! they are asked. So connections that were silent for a while are pinged, and have a moment to
//! answer. Those that do not answer go before those that do. When all have answered they are
//! equally alive, and the oldest goes.
//!
//! Meanwhile the user has more connections than allowed, but never more than twice as many.

use std::sync::Arc;

use super::Lifecycle;
use super::asked::Question;
use crate::auth::Grant;
use crate::metrics::SentKind;
use crate::router::users::UserIndex;
use crate::session::Stage;
use crate::shard::kernel::Kernel;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Opcode;

/// A connection that was heard so recently counts as alive and gets no ping.
const SILENT_MS: u64 = 1_000;
/// How long a ping may take to be answered: a packet may have to be sent again, twice.
const ANSWER_MS: u64 = 1_500;
/// With more connections than these, answers are not looked at as they come, but when the time is
/// over.
const WATCHED_MAX: usize = 64;

impl Lifecycle {
    /// The user has just got one connection more, and may have `limit`.
    pub(in crate::shard) fn limit_devices(&mut self, kernel: &mut Kernel, user: UserIndex, limit: usize) {
        let is_open = |slot: &&u32| matches!(kernel.connections[**slot as usize].stage, Stage::Open);
        if kernel.users.devices(user).iter().filter(is_open).count() <= limit {
            return;
        }
        let now_ms = kernel.now.mono_ms();
        if let Some(question) = self.asked.users.get_mut(&user) {
            question.limit = limit;
            let heard_since_ms = question.heard_since_ms;
            return self.close_silent(kernel, user, 2 * limit, heard_since_ms);
        }
        let mut slots = std::mem::take(&mut kernel.scratch_slots);
        slots.clear();
        slots.extend_from_slice(kernel.users.devices(user));
        let last_seen = |slot: &u32| kernel.connections[*slot as usize].last_seen_ms;
        slots.retain(|slot| now_ms.saturating_sub(last_seen(slot)) >= SILENT_MS);
        if self.draining.is_some() || slots.is_empty() {
            kernel.scratch_slots = slots;
            return self.close_silent(kernel, user, limit, now_ms);
        }
        let question = Question {
            limit,
            heard_since_ms: now_ms - SILENT_MS + 1,
            due_ms: now_ms + ANSWER_MS,
        };
        self.asked.users.insert(user, question);
        self.asked.due.push_back((question.due_ms, user));
        for &slot in &slots {
            kernel.append_opcode(slot, Opcode::Ping, b"", SentKind::Ping);
        }
        kernel.scratch_slots = slots;
    }

    /// One has answered a ping, perhaps the last one that was waited for.
    pub(in crate::shard) fn device_answered(&mut self, kernel: &mut Kernel, slot: u32) {
        let Some(user) = kernel.conn(slot).user else {
            return;
        };
        let Some(question) = self.asked.users.get(&user).copied() else {
            return;
        };
        let devices = kernel.users.devices(user);
        let has_answered = |slot: &u32| kernel.connections[*slot as usize].last_seen_ms >= question.heard_since_ms;
        if devices.len() <= WATCHED_MAX && devices.iter().all(has_answered) {
            self.asked.users.remove(&user);
            self.close_silent(kernel, user, question.limit, question.heard_since_ms);
        }
    }

    /// The time of those that were asked is over.
    pub(super) fn decide_on_devices(&mut self, kernel: &mut Kernel) {
        let now_ms = kernel.now.mono_ms();
        while let Some(&(due_ms, user)) = self.asked.due.front()
            && due_ms <= now_ms
        {
            self.asked.due.pop_front();
            let is_due = |question: &Question| question.due_ms <= now_ms;
            // It may be a later question about the same user.
            if let Some(question) = self.asked.users.get(&user).copied().filter(is_due) {
                self.asked.users.remove(&user);
                self.close_silent(kernel, user, question.limit, question.heard_since_ms);
            }
        }
    }

    /// Closes connections of a user until so many are left. First the ones that said nothing since
    /// `heard_since_ms`, the longest silent before the others; then the oldest.
    fn close_silent(&mut self, kernel: &mut Kernel, user: UserIndex, limit: usize, heard_since_ms: u64) {
        let mut slots = std::mem::take(&mut kernel.scratch_slots);
        slots.clear();
        let is_open = |slot: &u32| matches!(kernel.connections[*slot as usize].stage, Stage::Open);
        slots.extend(kernel.users.devices(user).iter().copied().filter(is_open));
        while slots.len() > limit.max(1) {
            let last_seen = |at: &usize| kernel.connections[slots[*at] as usize].last_seen_ms;
            // The oldest of equal ones, as it comes first.
            let silent = (0..slots.len())
                .filter(|at| last_seen(at) < heard_since_ms)
                .min_by_key(last_seen);
            let goes = slots.remove(silent.unwrap_or(0));
            kernel.begin_close(goes, CloseReason::TooManyConnections);
        }
        kernel.scratch_slots = slots;
    }

    /// The most connections that this user may have; 0: any number.
    pub(in crate::shard) fn connections_limit(&self, kernel: &Kernel, grant: Option<&Arc<Grant>>) -> usize {
        let configured = kernel.settings.limits.connections_per_user;
        match grant.and_then(|grant| grant.connections) {
            Some(granted) if configured == 0 => granted as usize,
            Some(granted) => configured.min(granted as usize),
            None => configured,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::tests as testing;

    /// A new token that permits fewer connections comes over any of them, and not over the newest.
    #[test]
    fn all_that_are_silent_are_asked_whichever_brought_the_limit() {
        let mut core = testing::core(|_| {});
        let devices = [0, 1, 2].map(|slot| testing::connect(&mut core, slot, "?user=alice"));
        testing::carry_out(&mut core);
        testing::at(&mut core, 5_000);
        // An empty pong.
        core.handle_received(devices[0], &mut [0x8a, 0x80, 0, 0, 0, 0]);
        let user = core.kernel.conn(0).user.unwrap();
        core.lifecycle.limit_devices(&mut core.kernel, user, 2);
        core.settle();
        assert_eq!(testing::carry_out(&mut core).0, devices[1..], "these are asked");
        // The newest answers, so the one between goes.
        testing::at(&mut core, 5_010);
        core.handle_received(devices[2], &mut [0x8a, 0x80, 0, 0, 0, 0]);
        testing::at(&mut core, 10_000);
        core.handle_timeouts();
        core.settle();
        assert_eq!(core.kernel.users.devices(user), [0, 2]);
        core.check_invariants();
    }
}
