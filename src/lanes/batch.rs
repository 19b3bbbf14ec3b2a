//! A [`Batch`]: all that one thread sends to another in one turn, its bytes in one buffer.
//!
//! Plain data; a batch belongs to the thread that holds it.

use std::ops::Range;

use super::{AckTo, AckToSpan};
use crate::ids::ShardId;

/// A piece of a batch's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// Items on their way from one thread to another. `M` is [`super::ToShard`] or
/// [`super::ToControl`].
#[derive(Debug)]
pub struct Batch<M> {
    /// The sending thread.
    pub from: ShardId,
    /// In the order in which they were sent.
    pub items: Vec<M>,
    pub(super) bytes: Vec<u8>,
    /// Bytes that items share with others.
    pub(super) shared_bytes: usize,
    /// The batch came by [`super::mailbox::Mailbox::post`], over no lane.
    pub(super) is_posted: bool,
}

/// What a batch takes of its lane. The receiver gives it back when it has carried the batch out.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub(super) from: ShardId,
    pub(super) items: u32,
    pub(super) bytes: usize,
}

impl<M> Batch<M> {
    pub(super) fn new(from: ShardId) -> Self {
        Batch::with_capacity(from, 0, 0)
    }

    pub(super) fn with_capacity(from: ShardId, items: usize, bytes: usize) -> Self {
        Batch {
            from,
            items: Vec::with_capacity(items),
            bytes: Vec::with_capacity(bytes),
            shared_bytes: 0,
            is_posted: false,
        }
    }

    pub(super) fn posted(from: ShardId, item: M) -> Self {
        Batch {
            items: vec![item],
            is_posted: true,
            ..Batch::new(from)
        }
    }

    /// Bytes that the batch takes of its lane.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.shared_bytes
    }

    /// What this batch takes of a lane; `None` if it came over none.
    pub fn room(&self) -> Option<Room> {
        (!self.is_posted).then(|| Room {
            from: self.from,
            items: self.items.len() as u32,
            bytes: self.weight(),
        })
    }

    /// The bytes of a span of this batch.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// The text of a span of this batch.
    pub fn text(&self, span: Span) -> &str {
        let text = std::str::from_utf8(self.bytes(span));
        debug_assert!(text.is_ok(), "spans of text are made of str");
        text.unwrap_or_default()
    }

    /// The receiver of an ack, a connection of `shard`.
    pub fn ack_to(&self, shard: ShardId, ack_to: &AckToSpan) -> AckTo<'_> {
        AckTo {
            shard,
            conn: ack_to.conn,
            client_id: self.text(ack_to.client_id),
            message_id: ack_to.message_id,
        }
    }
}
