//! What was asked of the store and is not answered yet, and how the store is.
//!
//! Pure; owned by the control thread. Each request has a ticket and a purpose, which tells what its
//! answers mean.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::store::{Incarnation, Op, Request};
use crate::router::Partition;
use crate::router::locations::PeerId;

/// A request that has not been answered for this long makes the store slow.
const SLOW_MS: u64 = 1_000;

/// What a request was for.
#[derive(Debug)]
pub(super) enum Purpose {
    Membership,
    Directory,
    Presence,
    /// What may be missing of users.
    Audit,
    /// Of this generation of what is written.
    IndexScan(u32),
    Locate(Vec<Arc<str>>),
    /// An administrator's.
    Inquiry(u32),
    Packet {
        peer: PeerId,
        sequence: u32,
        messages: u16,
    },
    /// So many publications.
    Publications {
        partition: Partition,
        sequence: u32,
        publications: u16,
    },
    /// So many commands; the packet may say more.
    Commands(u64),
    Probe,
    SweepClaim(Incarnation),
    SweepScan,
    SweepClear,
    /// Is the lease still ours?
    LastLook,
    Farewell,
    /// Nobody waits for it any more. It still tells whether the store answers.
    Abandoned,
}

/// Requests under way. Owned by the control thread.
#[derive(Debug, Default)]
pub(super) struct Requests {
    queue: VecDeque<Request>,
    last_ticket: u64,
    /// With the time at which each was asked, in milliseconds of the gateway's clock.
    sent: BTreeMap<u64, (Purpose, u64)>,
    connected: bool,
    /// The last words of a store that could not be asked, or refused.
    trouble: Option<Arc<str>>,
}

impl Requests {
    /// The store can be asked. Returns what was asked before: its answers do not count any more.
    pub(super) fn connected(&mut self) -> Vec<Purpose> {
        self.connected = true;
        self.trouble = None;
        self.queue.clear();
        let sent = std::mem::take(&mut self.sent);
        sent.into_values().map(|(purpose, _)| purpose).collect()
    }

    /// The store cannot be asked.
    pub(super) fn lost(&mut self, cause: Arc<str>) {
        self.connected = false;
        self.trouble = Some(cause);
    }

    /// The store refused something, in these words.
    pub(super) fn refused(&mut self, words: Arc<str>) {
        self.trouble = Some(words);
    }

    /// True if the store can be asked.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// The last words of a store that could not be asked, or refused.
    pub(super) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }

    pub(super) fn submit(&mut self, purpose: Purpose, ops: Vec<Op>, now_ms: u64) {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.sent.insert(ticket, (purpose, now_ms));
        self.queue.push_back(Request { ticket, ops });
    }

    /// The next request for the store.
    pub(super) fn poll(&mut self) -> Option<Request> {
        self.queue.pop_front()
    }

    /// A request was answered. `None` if it does not count any more.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<Purpose> {
        self.sent.remove(&ticket).map(|(purpose, _)| purpose)
    }

    /// From when on the store is slow, if nothing is answered until then.
    pub(super) fn slow_at_ms(&self) -> Option<u64> {
        let (_, (_, sent_ms)) = self.sent.first_key_value()?;
        Some(sent_ms + SLOW_MS)
    }

    /// True if nothing is asked that is not answered.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Nobody waits any more for what clients wait for. A late answer must not pass for one to the
    /// same question asked again: what it says may have changed since, and the store has told so
    /// already.
    pub(super) fn abandon(&mut self) -> Vec<Purpose> {
        let clients = |purpose: &Purpose| {
            matches!(
                purpose,
                Purpose::Locate(_) | Purpose::Inquiry(_) | Purpose::Packet { .. } | Purpose::Publications { .. }
            )
        };
        let waited = self.sent.values_mut().filter(|(purpose, _)| clients(purpose));
        waited
            .map(|(purpose, _)| std::mem::replace(purpose, Purpose::Abandoned))
            .collect()
    }
}
