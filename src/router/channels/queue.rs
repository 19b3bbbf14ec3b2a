//! The publications on their way to the subscribers of one channel, and how far round they are.
//!
//! Pure; owned by the channel. See the parent for the picture.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// Publications that a queue kept for use again may have had at once.
const SPARE_CAPACITY_MAX: usize = 16;

/// The publications on their way to the subscribers of a channel.
#[derive(Debug, Default)]
pub(super) struct Queue {
    log: VecDeque<Logged>,
    /// The frames of the log, one behind the other.
    frames: Bytes,
    /// Bytes that have left the log.
    gone: u64,
    /// Not in the log yet.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Position of the subscriber to visit next.
    cursor: u32,
    /// Visits made, less the subscribers that came since: each makes the round longer by one.
    visits: u64,
    /// Slots of subscribers to visit before the cursor goes on, as they were moved behind it.
    first: Vec<u32>,
}

/// A publication that goes round.
#[derive(Debug)]
struct Logged {
    /// Where it ends, counted from the first byte that was ever in the log.
    end: u64,
    received_ns: u64,
    /// The number of visits after which every subscriber has it.
    due: u64,
}

/// A publication that is to go round.
#[derive(Debug)]
struct Waiting {
    frame: Bytes,
    received_ns: u64,
}

impl Queue {
    /// Makes it like a new one. Its publications have all gone round.
    pub(super) fn renew(&mut self) {
        debug_assert!(self.is_empty());
        self.frames = Bytes::new();
        self.first.clear();
        self.cursor = 0;
        // It may go down.
        self.visits = 1 << 32;
        self.gone = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.frames.len() + self.waiting_bytes
    }

    /// Moves waiting publications to the log while it has at most `log_bytes_max` bytes; an empty
    /// log takes any one publication.
    pub(super) fn fill(&mut self, log_bytes_max: usize, subscribers: usize) {
        let before = self.frames.len();
        let (mut count, mut bytes) = (0, before);
        for waiting in &self.waiting {
            if bytes > 0 && bytes + waiting.frame.len() > log_bytes_max {
                break;
            }
            count += 1;
            bytes += waiting.frame.len();
        }
        match (count, self.frames.is_empty()) {
            (0, _) => return,
            (1, true) => self.frames = self.waiting[0].frame.clone(),
            _ => {
                let mut frames = Vec::with_capacity(bytes);
                frames.extend_from_slice(&self.frames);
                for waiting in self.waiting.iter().take(count) {
                    frames.extend_from_slice(&waiting.frame);
                }
                self.frames = frames.into();
            }
        }
        self.waiting_bytes -= bytes - before;
        let due = self.visits + subscribers as u64;
        let mut end = self.log.back().map_or(self.gone, |last| last.end);
        self.log.extend(self.waiting.drain(..count).map(|waiting| {
            end += waiting.frame.len() as u64;
            Logged {
                end,
                received_ns: waiting.received_ns,
                due,
            }
        }));
    }

    /// The frames that a subscriber lacks, of those in the log, and how many.
    pub(super) fn lacking(&self, seen: u32, newest: u32) -> Option<(Bytes, u32)> {
        let newest_in_log = newest.wrapping_sub(self.waiting.len() as u32);
        // A subscriber that came while something waited has seen more than there is in the log.
        let count = newest_in_log.wrapping_sub(seen) as i32;
        if count <= 0 {
            return None;
        }
        let skip = match self.log.len() - count as usize {
            0 => 0,
            has => (self.log[has - 1].end - self.gone) as usize,
        };
        Some((self.frames.slice(skip..), count as u32))
    }

    /// The frames that were published for a subscriber and have not reached it yet, and their
    /// number. They come from the log and from the waiting ones. `None` if there are none, or more
    /// than `bytes_max` bytes.
    pub(super) fn not_come(&self, seen: u32, newest: u32, bytes_max: usize) -> Option<(Bytes, u32)> {
        let (logged, in_log) = self.lacking(seen, newest).unwrap_or_default();
        // It lacks all waiting publications but those that it came too late for.
        let count = newest.wrapping_sub(seen);
        let late = self.waiting.len() - (count - in_log) as usize;
        let waiting = self.waiting.iter().skip(late);
        let bytes = logged.len() + waiting.clone().map(|waiting| waiting.frame.len()).sum::<usize>();
        if count == 0 || bytes > bytes_max {
            return None;
        }
        let mut frames = Vec::with_capacity(bytes);
        frames.extend_from_slice(&logged);
        waiting.for_each(|waiting| frames.extend_from_slice(&waiting.frame));
        Some((frames.into(), count))
    }

    /// Puts a frame behind all others.
    pub(super) fn push(&mut self, frame: Bytes, received_ns: u64) {
        self.waiting_bytes += frame.len();
        self.waiting.push_back(Waiting { frame, received_ns });
    }

    /// A subscriber came, behind all others: each round is one visit longer.
    pub(super) fn handle_joined(&mut self) {
        self.visits -= 1;
    }

    /// A subscriber left the position. `subscribers` is the number that remains; the last one may
    /// have been moved there.
    pub(super) fn handle_left(&mut self, position: u32, moved_slot: Option<u32>, subscribers: usize) {
        if let Some(slot) = moved_slot.filter(|_| position < self.cursor) {
            // It was ahead of the cursor, and is behind it now.
            self.first.push(slot);
        }
        self.cursor = self.cursor.min(subscribers as u32);
    }

    /// This subscriber is to be visited before all others.
    pub(super) fn put_first(&mut self, slot: u32) {
        self.first.push(slot);
    }

    /// A slot that is to be visited before the cursor goes on, if it still subscribes.
    pub(super) fn next_first(&mut self) -> Option<u32> {
        self.first.pop()
    }

    /// The next position to visit; `None` if nothing goes round.
    pub(super) fn next_position(&mut self, subscribers: usize) -> Option<u32> {
        if self.log.is_empty() {
            return None;
        }
        if self.cursor as usize >= subscribers {
            self.cursor = 0;
        }
        self.visits += 1;
        self.cursor += 1;
        Some(self.cursor - 1)
    }

    /// Removes publications that have gone round from the log, and notes when each was received.
    /// Returns their bytes.
    pub(super) fn take_out_due(&mut self, gone_round: &mut Vec<u64>) -> usize {
        let mut taken = 0;
        while self.first.is_empty()
            && let Some(logged) = self.log.front().filter(|logged| logged.due <= self.visits)
        {
            let bytes = (logged.end - self.gone) as usize;
            gone_round.push(logged.received_ns);
            self.gone = logged.end;
            self.frames.advance(bytes);
            self.log.pop_front();
            taken += bytes;
        }
        taken
    }

    /// True if nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.log.is_empty() && self.waiting.is_empty()
    }

    /// True if its memory is worth keeping.
    pub(super) fn is_small(&self) -> bool {
        self.log.capacity().max(self.waiting.capacity()) <= SPARE_CAPACITY_MAX
    }

    /// Asserts that each subscriber that lacks the oldest publication of the log is visited before
    /// that is due. `subscribers`: slots, and the last publication of each.
    pub(super) fn check_invariants(&self, subscribers: impl ExactSizeIterator<Item = (u32, u32)>, newest: u32) {
        let end = self.log.back().map_or(self.gone, |last| last.end);
        assert_eq!((end - self.gone) as usize, self.frames.len(), "log");
        let Some(oldest) = self.log.front() else { return };
        let len = subscribers.len() as u64;
        for (position, (slot, seen)) in subscribers.enumerate() {
            let lacking = self.lacking(seen, newest);
            if lacking.is_some_and(|(_, count)| count as usize == self.log.len()) && !self.first.contains(&slot) {
                let ahead = (position as u64 + len - u64::from(self.cursor) % len) % len;
                assert!(self.visits + ahead < oldest.due, "round");
            }
        }
    }
}
