//! Lanes: how shards and the control thread pass things to each other.
//!
//! Every shard has one inbox, and so has the control thread, whose place is behind the last shard's ([`control_place`]). What a shard says to another one in a turn is one [`Batch`], one send and one wake,
//! whatever the number of items; the bytes of all items lie in one buffer. Nobody ever waits: a lane that holds
//! [`LANE_ITEMS_MAX`] items takes no new requests, and the sender acts on that at once.
//!
//! Ownership: [`Lanes`] and [`Inbox`] belong to one shard thread; a batch belongs to whoever holds it. The only memory
//! that two shards see is the depth of a lane, one counter per ordered pair.
//!
//! Why answers may always be sent: there is at most one per request, and requests are bounded.

mod asks;
mod items;
mod push;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};

use crate::admin::Answer;
use crate::engine::{SocketKey, Waker};
use crate::ids::ShardId;
use crate::session::drain::DrainPlan;
use crate::settings::Settings;
pub use asks::{Ask, Reply};
pub use items::{
    AckWanted, Batch, ChannelName, Handoff, Instruction, Item, Location, MessageItem, PublishItem, RouteItem, Span,
};
pub use push::{OutgoingMessage, OutgoingPublication, Route, Wanted};

/// Items that may be under way on one lane. At 200 bytes each, 3 MB for the slowest pair of shards.
pub const LANE_ITEMS_MAX: u32 = 16_384;
/// Items that only hand-overs, presence queries and joins may add to that: a flood of messages does not keep others out.
pub const LANE_ITEMS_RESERVED: u32 = 4_096;
/// Bytes that may be under way on one lane; the last message that fits may pass it by its own length.
pub const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The control thread's place among the inboxes.
pub fn control_place(shards: u16) -> ShardId {
    ShardId(shards)
}

/// What may lie in an inbox.
#[derive(Debug)]
pub enum Parcel {
    /// From another shard, or from the control thread.
    Batch(Batch),
    /// From the control thread: new settings.
    Settings(Arc<Settings>),
    /// From the control thread: tell the clients to go, and close those that stay.
    Drain(DrainPlan),
    /// From the control thread: keys were fetched, or could not be, because a shard wanted them.
    KeysFetched,
    /// From the control thread.
    Instruction(Instruction),
    /// From the control thread, for an administrator: to be replied to with this ticket.
    Ask(u32, Box<Ask>),
    /// From the control thread: the answer to an administrator's request that came over this connection.
    Answer(SocketKey, Box<Answer>),
    /// From the control thread: close everything and end.
    Stop,
}

/// What a parcel takes of its lane. To be given back when the parcel was carried out.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    from: ShardId,
    items: u32,
    bytes: usize,
}

impl Parcel {
    /// What this parcel takes of a lane; `None` if it came over none.
    pub fn room(&self) -> Option<Room> {
        match self {
            Parcel::Batch(batch) => Some(Room {
                from: batch.from,
                items: batch.items.len() as u32,
                bytes: batch.weight(),
            }),
            Parcel::Settings(_)
            | Parcel::Drain(_)
            | Parcel::KeysFetched
            | Parcel::Instruction(_)
            | Parcel::Ask(..)
            | Parcel::Answer(..)
            | Parcel::Stop => None,
        }
    }
}

/// How much is under way from each thread to each other one.
#[derive(Debug)]
pub struct Depths {
    /// Shards, and the control thread.
    places: usize,
    lanes: Box<[Depth]>,
}

/// Added to by the sender, taken from by the receiver.
#[derive(Debug, Default)]
struct Depth {
    items: AtomicU32,
    bytes: AtomicUsize,
}

impl Depths {
    fn of(&self, from: ShardId, to: ShardId) -> &Depth {
        &self.lanes[from.index() * self.places + to.index()]
    }

    /// True if a lane takes no messages now.
    pub fn is_full(&self, from: ShardId, to: ShardId) -> bool {
        let depth = self.of(from, to);
        depth.items.load(Ordering::Relaxed) >= LANE_ITEMS_MAX || depth.bytes.load(Ordering::Relaxed) >= LANE_BYTES_MAX
    }

    /// Items under way on one lane.
    pub fn get(&self, from: ShardId, to: ShardId) -> u32 {
        self.of(from, to).items.load(Ordering::Relaxed)
    }
}

/// The address of a shard's inbox, for anyone on any thread.
#[derive(Debug, Clone)]
pub struct Mailbox {
    sender: Sender<Parcel>,
    waker: Waker,
}

impl Mailbox {
    /// Puts a parcel in and wakes the shard. For the control thread: rare things, which are never refused.
    pub fn post(&self, parcel: Parcel) {
        // The only error is that the shard has ended, and then nobody needs to hear.
        let _ = self.sender.send(parcel);
        self.waker.wake();
    }

    /// Wakes the shard although nothing was put in.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

/// The sending end of all lanes of one thread. Owned by that thread.
#[derive(Debug)]
pub struct Lanes {
    me: ShardId,
    mailboxes: Vec<Mailbox>,
    pending: Vec<Batch>,
    depths: Arc<Depths>,
}

/// The receiving end: everything that comes to one thread. Owned by that thread.
#[derive(Debug)]
pub struct Inbox {
    me: ShardId,
    receiver: Receiver<Parcel>,
    depths: Arc<Depths>,
}

/// A lane that takes no more requests now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneFull;

/// The receiving ends, made before the shards start, and the means to make their sending ends once all wakers are known.
/// The last one is the control thread's.
pub fn inboxes(shards: u16) -> (Vec<Inbox>, Vec<Sender<Parcel>>, Arc<Depths>) {
    let count = usize::from(shards) + 1;
    let depths = Arc::new(Depths {
        places: count,
        lanes: (0..count * count).map(|_| Depth::default()).collect(),
    });
    let (senders, inboxes) = (0..=shards)
        .map(|shard| {
            // Unbounded as a queue, bounded by the depth that each sender may reach: memory is taken only when used.
            let (sender, receiver) = crossbeam_channel::unbounded();
            let inbox = Inbox {
                me: ShardId(shard),
                receiver,
                depths: Arc::clone(&depths),
            };
            (sender, inbox)
        })
        .unzip();
    (inboxes, senders, depths)
}

/// Puts senders and wakers together, in the same order. Without the control thread's waker there is nobody to ask about
/// other gateways: a gateway of its own.
pub fn mailboxes(senders: Vec<Sender<Parcel>>, wakers: Vec<Waker>) -> Vec<Mailbox> {
    senders
        .into_iter()
        .zip(wakers)
        .map(|(sender, waker)| Mailbox { sender, waker })
        .collect()
}

impl Inbox {
    /// The next parcel, if there is one. Call [`Inbox::done`] when a batch has been carried out.
    pub fn try_next(&self) -> Option<Parcel> {
        self.receiver.try_recv().ok()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Gives a lane back the room that a parcel took.
    pub fn done(&self, room: Room) {
        let depth = self.depths.of(room.from, self.me);
        depth.items.fetch_sub(room.items, Ordering::Relaxed);
        depth.bytes.fetch_sub(room.bytes, Ordering::Relaxed);
    }
}

impl Lanes {
    /// The sending end for thread `me`.
    pub fn new(me: ShardId, mailboxes: Vec<Mailbox>, depths: Arc<Depths>) -> Self {
        let pending = mailboxes.iter().map(|_| Batch::new(me)).collect();
        Lanes {
            me,
            mailboxes,
            pending,
            depths,
        }
    }

    /// Which thread these lanes lead from.
    pub fn me(&self) -> ShardId {
        self.me
    }

    /// How many threads they lead to.
    pub fn len(&self) -> usize {
        self.mailboxes.len()
    }

    /// True if they lead nowhere.
    pub fn is_empty(&self) -> bool {
        self.mailboxes.is_empty()
    }

    /// Sends what this turn brought: one batch and one wake per thread that something was said to.
    pub fn flush(&mut self) {
        for (to, pending) in self.pending.iter_mut().enumerate() {
            if pending.items.is_empty() {
                continue;
            }
            // As much room as this turn took, so that a steady stream allocates twice per batch and no more.
            let next = Batch {
                from: self.me,
                items: Vec::with_capacity(pending.items.len()),
                bytes: Vec::with_capacity(pending.bytes.len()),
                shared_bytes: 0,
            };
            let batch = std::mem::replace(pending, next);
            let depth = self.depths.of(self.me, ShardId(to as u16));
            depth.items.fetch_add(batch.items.len() as u32, Ordering::Relaxed);
            depth.bytes.fetch_add(batch.weight(), Ordering::Relaxed);
            self.mailboxes[to].post(Parcel::Batch(batch));
        }
    }
}
