//! Lanes: how shards and the control thread pass things to each other.
//!
//! Every shard has one inbox, and so has the control thread. All that one thread sends to another
//! in a turn is one [`Batch`], one send and one wake, whatever the number of items; the bytes of
//! all items lie in one buffer. Nobody ever waits: a lane that holds [`LANE_ITEMS_MAX`] items takes
//! no new requests, and the sender acts on that at once.
//!
//! Ownership: [`Lanes`] and [`Inbox`] belong to one thread; a batch belongs to the thread that
//! holds it. The only memory that two threads see is the depth of a lane, one counter per ordered
//! pair.
//!
//! Why answers may always be sent: there is at most one per request, and requests are bounded.
//!
//! | file | duty |
//! | --- | --- |
//! | `mod` | inboxes, and how much is under way |
//! | [`mailbox`] | the way into an inbox from any thread, with a wake; the only file that makes a system call |
//! | `mail` | [`ToShard`] and [`ToControl`]: all that one thread may send to another |
//! | `batch` | a batch and its bytes |
//! | `lane` | the sending end |
//! | `channels`, `messages`, `presence`, `admin`, `lifecycle`, `handoff` | the mail of each service, and how it is sent |

mod admin;
mod batch;
mod channels;
mod handoff;
mod lane;
mod lifecycle;
mod mail;
pub mod mailbox;
mod messages;
mod presence;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};

use crate::ids::ShardId;
pub use admin::{AdminRequest, AdminToControl, AdminToShard, ShardCommand, ShardQuery, ShardReply};
pub use batch::{Batch, Room, Span};
pub use channels::{
    ChannelName, ChannelToControl, ChannelToShard, ForwardItem, OutgoingPublication, PublicationItem, PublishItem,
};
pub use handoff::Handoff;
pub use lane::Lanes;
pub use lifecycle::{LifecycleToControl, LifecycleToShard};
pub use mail::{ToCluster, ToControl, ToShard};
pub use messages::{
    AckTo, AckToShard, AckToSpan, Incoming, Location, MessageItem, MessageToControl, MessageToShard, OutgoingMessage,
    Route, RouteItem,
};
pub use presence::{PresenceQuery, PresenceToControl, PresenceToShard, RosterToShard};

/// Items that may be under way on one lane. At 200 bytes each, 3 MB for the slowest pair of shards.
pub const LANE_ITEMS_MAX: u32 = 16_384;
/// Items that only hand-overs, presence queries and joins may add to that: a flood of messages does
/// not keep others out.
pub const LANE_ITEMS_RESERVED: u32 = 4_096;
/// Bytes that may be under way on one lane; the last message that fits may pass it by its own
/// length.
pub const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The control thread's id among the threads that lanes lead between: behind the last shard's.
pub fn control_id(shards: u16) -> ShardId {
    ShardId(shards)
}

/// How much is under way from each thread to each other one.
#[derive(Debug)]
pub struct Depths {
    /// Shards, and the control thread.
    threads: usize,
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
        &self.lanes[from.index() * self.threads + to.index()]
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

/// The receiving end: everything that comes to one thread. Owned by that thread.
#[derive(Debug)]
pub struct Inbox<M> {
    me: ShardId,
    receiver: Receiver<Batch<M>>,
    depths: Arc<Depths>,
}

/// A lane that takes no more requests now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneFull;

/// All inboxes of a gateway, made before its threads start, and what their sending ends are made of
/// once all wakers are known.
#[derive(Debug)]
pub struct Inboxes {
    /// The shards'.
    pub shards: Vec<Inbox<ToShard>>,
    /// The control thread's.
    pub control: Inbox<ToControl>,
    /// What [`mailbox::mailboxes`] takes.
    pub senders: Senders,
    /// How much is under way.
    pub depths: Arc<Depths>,
}

/// The sending halves of all inboxes.
#[derive(Debug)]
pub struct Senders {
    shards: Vec<Sender<Batch<ToShard>>>,
    control: Sender<Batch<ToControl>>,
}

/// The inboxes of so many shards, and of their control thread.
pub fn inboxes(shards: u16) -> Inboxes {
    let count = usize::from(shards) + 1;
    let depths = Arc::new(Depths {
        threads: count,
        lanes: (0..count * count).map(|_| Depth::default()).collect(),
    });
    let (senders, inboxes) = (0..shards).map(|shard| inbox(ShardId(shard), &depths)).unzip();
    let (sender, control) = inbox(control_id(shards), &depths);
    Inboxes {
        shards: inboxes,
        control,
        senders: Senders {
            shards: senders,
            control: sender,
        },
        depths,
    }
}

fn inbox<M>(me: ShardId, depths: &Arc<Depths>) -> (Sender<Batch<M>>, Inbox<M>) {
    // Unbounded as a queue, bounded by the depth that each sender may reach: memory is taken only
    // when used.
    let (sender, receiver) = crossbeam_channel::unbounded();
    let inbox = Inbox {
        me,
        receiver,
        depths: Arc::clone(depths),
    };
    (sender, inbox)
}

impl<M> Inbox<M> {
    /// The next batch, if there is one. Call [`Inbox::done`] with its room when it has been carried
    /// out.
    pub fn try_next(&self) -> Option<Batch<M>> {
        self.receiver.try_recv().ok()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Gives a lane back the room that a batch took.
    pub fn done(&self, room: Room) {
        let depth = self.depths.of(room.from, self.me);
        depth.items.fetch_sub(room.items, Ordering::Relaxed);
        depth.bytes.fetch_sub(room.bytes, Ordering::Relaxed);
    }
}
