//! What bulk senders sent, and waits for its turn: lines of lent buffers, a line per socket, a few buffers of each in turn.
//!
//! Owned by the shard's engine. A line is there only while it has buffers, so there are never more lines than buffers, and
//! `u16` counts either.

use std::collections::VecDeque;

use super::super::SocketKey;
use super::super::slab::{Entry, WAITING};

/// Buffers of one line before it is the next one's turn. A message of 16 KB, the usual large one, is put together while it is warm:
/// with one buffer of each of 100 senders in turn, all their messages were half-way in at once, in nobody's cache.
const IN_A_ROW: usize = 4;

/// Bytes in a lent buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) buffer: u16,
    pub(super) len: usize,
}

/// Of one socket.
#[derive(Debug)]
struct Line {
    key: SocketKey,
    parts: VecDeque<Part>,
    /// What ended the socket behind these bytes, as a completion says it: 0 or a negative error.
    end: Option<i32>,
}

/// What comes next of all lines.
#[derive(Debug)]
pub(super) enum Next {
    /// Bytes, with more behind them.
    Bytes(Part),
    /// The last bytes that the socket has here, and its line is gone; `ended`: an [`Next::End`] comes next.
    Last { part: Part, ended: bool },
    /// What ended the socket behind its bytes, as a completion says it.
    End(i32),
}

/// All lines of an engine.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// By the number that `Entry::line` has; those in `free` are empty and kept for their capacity.
    lines: Vec<Line>,
    free: Vec<u16>,
    /// Whose turn is when, and what the first has had of its own.
    order: VecDeque<u16>,
    in_a_row: usize,
    buffers: usize,
    /// A socket whose last bytes are out, and what ended it.
    ended: Option<(SocketKey, i32)>,
}

impl Bulk {
    /// Buffers in all lines.
    pub(super) fn buffers(&self) -> usize {
        self.buffers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers == 0 && self.ended.is_none()
    }

    /// Puts bytes behind what the socket has here already, if `entry` says that it has. Returns how many buffers these are.
    pub(super) fn push(&mut self, key: SocketKey, entry: &mut Entry, part: Part) -> usize {
        if !entry.any(WAITING) {
            entry.set(WAITING);
            entry.line = self.begin(key);
        }
        self.buffers += 1;
        let line = &mut self.lines[usize::from(entry.line)];
        debug_assert_eq!(line.key, key, "another socket's line");
        line.parts.push_back(part);
        line.parts.len()
    }

    fn begin(&mut self, key: SocketKey) -> u16 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.lines.push(Line {
                key,
                parts: VecDeque::new(),
                end: None,
            });
            (self.lines.len() - 1) as u16
        });
        self.lines[usize::from(index)].key = key;
        self.order.push_back(index);
        index
    }

    /// The socket ended behind what it has here.
    pub(super) fn end(&mut self, entry: &Entry, result: i32) {
        self.lines[usize::from(entry.line)].end.get_or_insert(result);
    }

    /// What comes next, and of which socket.
    pub(super) fn pop(&mut self) -> Option<(SocketKey, Next)> {
        if let Some((key, result)) = self.ended.take() {
            return Some((key, Next::End(result)));
        }
        let index = *self.order.front()?;
        let line = &mut self.lines[usize::from(index)];
        let part = line.parts.pop_front()?;
        self.buffers -= 1;
        self.in_a_row += 1;
        let key = line.key;
        if !line.parts.is_empty() {
            if self.in_a_row == IN_A_ROW {
                self.order.rotate_left(1);
                self.in_a_row = 0;
            }
            return Some((key, Next::Bytes(part)));
        }
        self.order.pop_front();
        self.in_a_row = 0;
        self.free.push(index);
        self.ended = line.end.take().map(|result| (key, result));
        let ended = self.ended.is_some();
        Some((key, Next::Last { part, ended }))
    }

    /// Nobody wants what this socket has here.
    pub(super) fn forget(&mut self, entry: &mut Entry, mut give_back: impl FnMut(u16)) {
        if !entry.any(WAITING) {
            return;
        }
        entry.clear(WAITING);
        let line = &mut self.lines[usize::from(entry.line)];
        self.buffers -= line.parts.len();
        line.parts.drain(..).for_each(|part| give_back(part.buffer));
        line.end = None;
        if self.order.front() == Some(&entry.line) {
            self.in_a_row = 0;
        }
        self.order.retain(|&index| index != entry.line);
        self.free.push(entry.line);
    }
}
