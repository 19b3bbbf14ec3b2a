//! What goes on in channels from turn to turn: joins, fan-out, overload, reviews.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::SocketKey;
use crate::router::channels::ChannelIndex;
use crate::wire::framing::Encoded;

/// Where none of the sockets that are looked at has taken anything for so long, nobody reads. What
/// is published meanwhile has room in the channel, so that publishers need not hear `failed` for
/// subscribers that have vanished.
const NOBODY_MOVES_MS: u64 = 300;

/// A channel that waits for its home's confirmation. Its subscribers are in the table; what is
/// published comes later.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) ticket: u64,
    /// The connections that hear `subscribed` then, with the ids of their requests.
    pub(super) waiting: Vec<(SocketKey, Option<Box<str>>)>,
}

/// Channels that wait for their homes.
#[derive(Debug, Default)]
pub(super) struct Joins {
    pub(super) joining: BTreeMap<ChannelIndex, Joining>,
    pub(super) tickets: BTreeMap<u64, ChannelIndex>,
    pub(super) last_ticket: u64,
}

impl Joins {
    pub(super) fn len(&self) -> usize {
        self.joining.len()
    }

    pub(super) fn begin(&mut self, channel: ChannelIndex) -> u64 {
        self.last_ticket += 1;
        let joining = Joining {
            ticket: self.last_ticket,
            waiting: Vec::new(),
        };
        self.tickets.insert(self.last_ticket, channel);
        self.joining.insert(channel, joining);
        self.last_ticket
    }

    pub(super) fn is_joining(&self, channel: ChannelIndex) -> bool {
        !self.joining.is_empty() && self.joining.contains_key(&channel)
    }

    /// Takes out what is confirmed, or given up.
    pub(super) fn end(&mut self, channel: ChannelIndex) -> Option<Joining> {
        let joining = self.joining.remove(&channel)?;
        self.tickets.remove(&joining.ticket);
        Some(joining)
    }
}

/// A message on its way to every connection.
#[derive(Debug)]
pub(super) struct Broadcast {
    pub(super) message: Encoded,
    /// The next slot to look at.
    pub(super) next: u32,
    /// Connections that took it.
    pub(super) taken: u64,
    /// The query whose reply is the number of connections.
    pub(super) ticket: Option<u32>,
}

/// What goes on from turn to turn.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    /// Broadcasts on their way, the first one first.
    pub(super) broadcasts: VecDeque<Broadcast>,
    pub(super) broadcast_bytes: usize,
    /// Outboxes that the last turn might fill.
    pub(super) outboxes: u32,
}

impl FanOut {
    /// Bytes of broadcasts on their way.
    pub(super) fn broadcast_bytes(&self) -> usize {
        self.broadcast_bytes
    }
}

/// What one turn may still do.
pub(super) struct Budget {
    pub(super) outboxes: u32,
    pub(super) bytes: usize,
}

impl Budget {
    pub(super) fn is_spent(&self) -> bool {
        self.outboxes == 0 || self.bytes == 0
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.outboxes = self.outboxes.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A socket that the kernel is asked about while a channel is held.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) key: SocketKey,
    /// What its peer had not acknowledged when the kernel was last asked.
    pub(super) unacknowledged: usize,
    /// To be asked again.
    pub(super) due: bool,
}

/// Channels of one shard with more on its way than their subscribers take.
#[derive(Debug, Default)]
pub(super) struct Overload {
    /// When channels that are held are looked at again.
    pub(super) look_again_ms: Option<u64>,
    /// When a channel was last held.
    pub(super) held_ms: u64,
    /// Sockets have moved since channels began to be held: there is more to send than they take.
    pub(super) real: bool,
    /// When a socket with much to take last took something, or a channel was held after a while
    /// without.
    pub(super) moved_ms: u64,
    /// No socket has moved although a channel was held for it: none is, until one does.
    pub(super) nobody_moves: bool,
    pub(super) probes: Vec<Probe>,
    /// Channels whose homes, which are other shards, were told that much is on its way.
    pub(super) crowded: Vec<ChannelIndex>,
    /// Where the next sample begins.
    pub(super) samples: usize,
}

impl Overload {
    pub(super) fn look_again_ms(&self) -> Option<u64> {
        self.look_again_ms
    }

    /// The channel has no subscriber here any more; its home hears of that anyway.
    pub(super) fn forget(&mut self, channel: ChannelIndex) {
        self.crowded.retain(|crowded| *crowded != channel);
    }

    pub(super) fn moved(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
        self.real = self.was_held(now_ms);
        self.nobody_moves = false;
    }

    /// True if a channel was held a moment ago.
    pub(super) fn was_held(&self, now_ms: u64) -> bool {
        self.held_ms > 0 && now_ms.saturating_sub(self.held_ms) <= NOBODY_MOVES_MS
    }

    /// True if channels are held for subscribers that read.
    pub(super) fn is_real(&self, now_ms: u64) -> bool {
        self.real && self.was_held(now_ms)
    }

    /// Decides whether it is worth waiting for sockets that are behind.
    pub(super) fn waits(&mut self, now_ms: u64) -> bool {
        if !self.was_held(now_ms) {
            // Nothing was known of sockets meanwhile: they have time to show it.
            self.probes.clear();
            self.moved_ms = now_ms;
            self.real = false;
        }
        self.nobody_moves |= now_ms.saturating_sub(self.moved_ms) > NOBODY_MOVES_MS;
        !self.nobody_moves
    }
}

/// What is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Reviews {
    /// How many subscriptions of a slot are left, counted from the beginning of its list.
    pub(super) left: BTreeMap<u32, usize>,
    /// All slots from this one on come when none is left.
    pub(super) next_slot: Option<u32>,
}

impl Reviews {
    pub(super) fn is_busy(&self) -> bool {
        !self.left.is_empty() || self.next_slot.is_some()
    }
}
