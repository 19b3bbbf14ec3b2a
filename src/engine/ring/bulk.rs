//! Bytes of bulk senders that wait to be delivered: one queue of lent buffers per socket, served
//! round-robin, a few buffers at a time.
//!
//! Owned by the shard's engine. A queue is there only while it has buffers, so there are never more
//! queues than buffers, and `u16` counts either.

use std::collections::VecDeque;

use super::super::SocketKey;
use super::super::slab::{Entry, WAITING};

/// Buffers that one queue delivers before the next one is served. So a message of 16 KB, the usual
/// large one, is assembled while it is warm. With one buffer of each of 100 senders at a time, all
/// their messages were half-way in at once and out of every cache.
const IN_A_ROW: usize = 4;

/// Bytes in a lent buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) buffer: u16,
    pub(super) len: usize,
}

/// Of one socket.
#[derive(Debug)]
struct SenderQueue {
    key: SocketKey,
    parts: VecDeque<Part>,
    /// The result that ended the socket behind these bytes, as in a completion: 0 or a negative
    /// error.
    end: Option<i32>,
}

/// The next element of all queues.
#[derive(Debug)]
pub(super) enum Next {
    /// Bytes, with more behind them.
    Bytes(Part),
    /// The last bytes that the socket has here, and its queue is gone; `ended`: an [`Next::End`]
    /// comes next.
    Last { part: Part, ended: bool },
    /// The result that ended the socket behind its bytes, as in a completion.
    End(i32),
}

/// All queues of an engine.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// By the number that `Entry::bulk_queue` has; those in `free` are empty and kept for their
    /// capacity.
    queues: Vec<SenderQueue>,
    free: Vec<u16>,
    /// The order in which sockets are served, and how many buffers the first has delivered in a
    /// row.
    order: VecDeque<u16>,
    in_a_row: usize,
    buffers: usize,
    /// A socket whose last bytes are out, and what ended it.
    ended: Option<(SocketKey, i32)>,
}

impl Bulk {
    /// Buffers in all queues.
    pub(super) fn buffers(&self) -> usize {
        self.buffers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers == 0 && self.ended.is_none()
    }

    /// Puts bytes behind those that the socket has here already, if `entry` marks it so. Returns
    /// the number of these buffers.
    pub(super) fn push(&mut self, key: SocketKey, entry: &mut Entry, part: Part) -> usize {
        if !entry.any(WAITING) {
            entry.set(WAITING);
            entry.bulk_queue = self.begin(key);
        }
        self.buffers += 1;
        let queue = &mut self.queues[usize::from(entry.bulk_queue)];
        debug_assert_eq!(queue.key, key, "another socket's queue");
        queue.parts.push_back(part);
        queue.parts.len()
    }

    fn begin(&mut self, key: SocketKey) -> u16 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.queues.push(SenderQueue {
                key,
                parts: VecDeque::new(),
                end: None,
            });
            (self.queues.len() - 1) as u16
        });
        self.queues[usize::from(index)].key = key;
        self.order.push_back(index);
        index
    }

    /// The socket ended behind what it has here.
    pub(super) fn end(&mut self, entry: &Entry, result: i32) {
        self.queues[usize::from(entry.bulk_queue)].end.get_or_insert(result);
    }

    /// The next element, and its socket.
    pub(super) fn pop(&mut self) -> Option<(SocketKey, Next)> {
        if let Some((key, result)) = self.ended.take() {
            return Some((key, Next::End(result)));
        }
        let index = *self.order.front()?;
        let queue = &mut self.queues[usize::from(index)];
        let part = queue.parts.pop_front()?;
        self.buffers -= 1;
        self.in_a_row += 1;
        let key = queue.key;
        if !queue.parts.is_empty() {
            if self.in_a_row == IN_A_ROW {
                self.order.rotate_left(1);
                self.in_a_row = 0;
            }
            return Some((key, Next::Bytes(part)));
        }
        self.order.pop_front();
        self.in_a_row = 0;
        self.free.push(index);
        self.ended = queue.end.take().map(|result| (key, result));
        let ended = self.ended.is_some();
        Some((key, Next::Last { part, ended }))
    }

    /// Gives back the bytes that this socket has here: no owner wants them any more.
    pub(super) fn forget(&mut self, entry: &mut Entry, mut give_back: impl FnMut(u16)) {
        if !entry.any(WAITING) {
            return;
        }
        entry.clear(WAITING);
        let queue = &mut self.queues[usize::from(entry.bulk_queue)];
        self.buffers -= queue.parts.len();
        queue.parts.drain(..).for_each(|part| give_back(part.buffer));
        queue.end = None;
        if self.order.front() == Some(&entry.bulk_queue) {
            self.in_a_row = 0;
        }
        self.order.retain(|&index| index != entry.bulk_queue);
        self.free.push(entry.bulk_queue);
    }
}
