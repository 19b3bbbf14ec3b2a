//! The sending end: one [`Lane`] to each other thread, and [`Lanes`], all of one thread.
//!
//! The methods that send are with the mail of each service. A method named `try_` refuses when the
//! lane holds enough. Answers always go: there is at most one per request, and requests are
//! bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::batch::{Batch, Span};
use super::channels::ChannelName;
use super::messages::{AckTo, AckToSpan};
use super::{Depths, LANE_BYTES_MAX, LANE_ITEMS_MAX, LaneFull, ToControl, ToShard, control_id};
use crate::ids::ShardId;
use crate::router::ChannelHash;
use crate::wire::framing::Encoded;

/// The way to one thread, and what this turn has for it.
#[derive(Debug)]
pub(super) struct Lane<M> {
    sender: Sender<Batch<M>>,
    pending: Batch<M>,
    depths: Arc<Depths>,
    to: ShardId,
}

impl<M> Lane<M> {
    fn new(from: ShardId, to: ShardId, sender: Sender<Batch<M>>, depths: &Arc<Depths>) -> Self {
        Lane {
            sender,
            pending: Batch::new(from),
            depths: Arc::clone(depths),
            to,
        }
    }

    pub(super) fn check(&self, items_max: u32) -> Result<(), LaneFull> {
        let depth = self.depths.of(self.pending.from, self.to);
        let items = depth.items.load(Ordering::Relaxed) as usize + self.pending.items.len();
        if items >= items_max as usize {
            Err(LaneFull)
        } else {
            Ok(())
        }
    }

    /// For messages and publications, whose bytes are bounded as well: nothing else has many.
    pub(super) fn check_bytes(&self) -> Result<(), LaneFull> {
        self.check(LANE_ITEMS_MAX)?;
        let depth = self.depths.of(self.pending.from, self.to);
        if depth.bytes.load(Ordering::Relaxed) + self.pending.weight() >= LANE_BYTES_MAX {
            return Err(LaneFull);
        }
        Ok(())
    }

    pub(super) fn push(&mut self, item: impl Into<M>) {
        self.pending.items.push(item.into());
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Span {
        let buffer = &mut self.pending.bytes;
        let start = buffer.len() as u32;
        buffer.extend_from_slice(bytes);
        Span {
            start,
            len: bytes.len() as u32,
        }
    }

    pub(super) fn write_ack_to(&mut self, ack_to: &AckTo<'_>) -> AckToSpan {
        AckToSpan {
            conn: ack_to.conn,
            client_id: self.write(ack_to.client_id.as_bytes()),
            message_id: ack_to.message_id,
        }
    }

    pub(super) fn write_channel(&mut self, (hash, name): (ChannelHash, &str)) -> ChannelName {
        let name = self.write(name.as_bytes());
        ChannelName { hash, name }
    }

    pub(super) fn share(&mut self, message: &Encoded) -> Encoded {
        self.pending.shared_bytes += message.bytes();
        message.clone()
    }

    /// Returns true if there was something.
    fn flush(&mut self) -> bool {
        let pending = &mut self.pending;
        if pending.items.is_empty() {
            return false;
        }
        // As much room as this turn took, so that a steady stream allocates twice per batch and no
        // more.
        let next = Batch::with_capacity(pending.from, pending.items.len(), pending.bytes.len());
        let batch = std::mem::replace(pending, next);
        let depth = self.depths.of(batch.from, self.to);
        depth.items.fetch_add(batch.items.len() as u32, Ordering::Relaxed);
        depth.bytes.fetch_add(batch.weight(), Ordering::Relaxed);
        // The only error is that the receiving thread has ended, and then nobody needs to hear.
        let _ = self.sender.send(batch);
        true
    }
}

/// The sending end of all lanes of one thread. Owned by that thread.
#[derive(Debug)]
pub struct Lanes {
    me: ShardId,
    shards: Vec<Lane<ToShard>>,
    control: Option<Lane<ToControl>>,
    /// Threads whose inbox has something new.
    to_wake: Vec<ShardId>,
}

impl Lanes {
    pub(super) fn new(
        me: ShardId,
        shards: impl ExactSizeIterator<Item = Sender<Batch<ToShard>>>,
        control: Option<Sender<Batch<ToControl>>>,
        depths: &Arc<Depths>,
    ) -> Self {
        let control_id = control_id(shards.len() as u16);
        Lanes {
            me,
            shards: (0..)
                .zip(shards)
                .map(|(to, sender)| Lane::new(me, ShardId(to), sender, depths))
                .collect(),
            control: control.map(|sender| Lane::new(me, control_id, sender, depths)),
            to_wake: Vec::new(),
        }
    }

    /// Lanes of `me` that lead nowhere.
    pub fn nowhere(me: ShardId) -> Self {
        Lanes {
            me,
            shards: Vec::new(),
            control: None,
            to_wake: Vec::new(),
        }
    }

    /// The next thread to wake after [`Lanes::flush`].
    pub fn poll_wake(&mut self) -> Option<ShardId> {
        self.to_wake.pop()
    }

    /// The thread that these lanes lead from.
    pub fn me(&self) -> ShardId {
        self.me
    }

    /// True if there are no shards that they lead to.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    pub(super) fn shard(&mut self, to: ShardId) -> &mut Lane<ToShard> {
        &mut self.shards[to.index()]
    }

    /// A lane that does not exist takes nothing.
    pub(super) fn control(&mut self) -> Result<&mut Lane<ToControl>, LaneFull> {
        self.control.as_mut().ok_or(LaneFull)
    }

    /// True if the lane to the control thread takes more.
    pub fn control_has_room(&self) -> bool {
        let lane = self.control.as_ref();
        lane.is_some_and(|lane| lane.check(LANE_ITEMS_MAX).is_ok())
    }

    /// Sends a shard what answers a request, or is as rare, and so is never refused.
    pub fn push(&mut self, to: ShardId, item: impl Into<ToShard>) {
        self.shard(to).push(item);
    }

    /// As [`Lanes::push`], to the control thread; nothing happens where no lane leads there.
    pub fn push_control(&mut self, item: impl Into<ToControl>) {
        if let Some(lane) = &mut self.control {
            lane.push(item);
        }
    }

    /// Sends this turn's items: one batch per thread that there is something for. Each of these is
    /// to be woken.
    pub fn flush(&mut self) {
        for lane in &mut self.shards {
            if lane.flush() {
                self.to_wake.push(lane.to);
            }
        }
        if let Some(lane) = &mut self.control
            && lane.flush()
        {
            self.to_wake.push(lane.to);
        }
    }
}
