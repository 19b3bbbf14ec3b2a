//! Lanes: how shards and the control thread pass things to each other.
//!
//! Every shard has one inbox. What a shard says to another one in a turn is one [`Batch`], one send and one wake,
//! whatever the number of items; the bytes of all items lie in one buffer. Nobody ever waits: a lane that holds
//! [`LANE_ITEMS_MAX`] items takes no new requests, and the sender acts on that at once.
//!
//! Ownership: [`Lanes`] and [`Inbox`] belong to one shard thread; a batch belongs to whoever holds it. The only memory
//! that two shards see is the depth of a lane, one counter per ordered pair.
//!
//! Why answers may always be sent: there is at most one per request, and requests are bounded.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use crate::engine::{SocketKey, Waker};
use crate::ids::ShardId;
use crate::protocol::head::Upgrade;
use crate::router::UserHash;
use crate::session::rate::RateLimiter;
use crate::settings::Settings;

/// Items that may be under way on one lane. At 200 bytes each, 3 MB for the slowest pair of shards.
pub const LANE_ITEMS_MAX: u32 = 16_384;
/// Items that only hand-overs and presence queries may add to that: a flood of messages does not keep others out.
pub const LANE_ITEMS_RESERVED: u32 = 4_096;
/// Bytes that may be under way on one lane; the last message that fits may pass it by its own length.
pub const LANE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A piece of a batch's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// Everything that one shard says to another in one turn.
#[derive(Debug)]
pub struct Batch {
    /// Who says it.
    pub from: ShardId,
    /// In the order in which it was said.
    pub items: Vec<Item>,
    bytes: Vec<u8>,
}

impl Batch {
    fn new(from: ShardId) -> Self {
        Batch {
            from,
            items: Vec::new(),
            bytes: Vec::new(),
        }
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
}

/// One thing said between shards.
#[derive(Debug)]
pub enum Item {
    /// A connection whose user lives on the receiving shard.
    HandOver(Box<HandOver>),
    /// A message for a user who lives on the receiving shard.
    Message(MessageItem),
    /// A frame for a connection of the receiving shard: the answer to something that it asked.
    Reply {
        /// The connection that asked.
        to: SocketKey,
        /// A whole frame.
        frame: Span,
    },
    /// Which of these users are online?
    PresenceQuery {
        /// Names the question on the asking shard.
        ticket: u32,
        /// Their places in the question, and their ids.
        users: Vec<(u8, UserHash, Span)>,
    },
    /// The answer: bit `n` is set if the user at place `n` is online.
    PresenceAnswer {
        /// As asked.
        ticket: u32,
        /// Places of users who are online.
        online: u128,
    },
}

/// A message on its way to another shard.
#[derive(Debug, Clone, Copy)]
pub struct MessageItem {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: Span,
    /// The whole frame as every device gets it.
    pub frame: Span,
    /// Who wants to hear what became of it.
    pub ack: Option<AckWanted>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}

/// A sender that gave its message an `id`.
#[derive(Debug, Clone, Copy)]
pub struct AckWanted {
    /// The sender's connection, on the shard that the batch came from.
    pub conn: SocketKey,
    /// The sender's own id.
    pub client_id: Span,
    /// The gateway's id.
    pub message_id: Uuid,
}

/// A socket on its way to the shard of its user.
#[derive(Debug)]
pub struct HandOver {
    /// The socket; nothing is armed for it and nothing in flight. Taken when the engine takes it.
    pub socket: Option<OwnedFd>,
    /// The user.
    pub user: String,
    /// The user's hash.
    pub hash: UserHash,
    /// The handshake that still wants its `101`; `None` if it was sent and the user came with `auth`.
    pub upgrade: Option<Upgrade>,
    /// What arrived behind the request head or the `auth` frame.
    pub rest: Vec<u8>,
    /// Frames that the connection sent before.
    pub messages_in: u32,
    /// How fast it did.
    pub rate: RateLimiter,
}

/// What may lie in a shard's inbox.
#[derive(Debug)]
pub enum Parcel {
    /// From another shard.
    Batch(Batch),
    /// From the control thread: new settings.
    Settings(Arc<Settings>),
    /// From the control thread: tell the clients and close their connections, the last one at this time of the
    /// gateway's clock, milliseconds.
    Drain {
        /// The end of the drain.
        until_ms: u64,
    },
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
                bytes: batch.bytes.len(),
            }),
            Parcel::Settings(_) | Parcel::Drain { .. } | Parcel::Stop => None,
        }
    }
}

/// How much is under way from each shard to each other one.
#[derive(Debug)]
pub struct Depths {
    shards: usize,
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
        &self.lanes[from.index() * self.shards + to.index()]
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

/// The sending end of all lanes of one shard. Owned by that shard.
#[derive(Debug)]
pub struct Lanes {
    me: ShardId,
    mailboxes: Vec<Mailbox>,
    pending: Vec<Batch>,
    depths: Arc<Depths>,
}

/// The receiving end: everything that comes to one shard. Owned by that shard.
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
pub fn inboxes(shards: u16) -> (Vec<Inbox>, Vec<Sender<Parcel>>, Arc<Depths>) {
    let count = usize::from(shards);
    let depths = Arc::new(Depths {
        shards: count,
        lanes: (0..count * count).map(|_| Depth::default()).collect(),
    });
    let (senders, inboxes) = (0..shards)
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

/// Puts senders and wakers together.
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
    /// The sending end for shard `me`.
    pub fn new(me: ShardId, mailboxes: Vec<Mailbox>, depths: Arc<Depths>) -> Self {
        let pending = mailboxes.iter().map(|_| Batch::new(me)).collect();
        Lanes {
            me,
            mailboxes,
            pending,
            depths,
        }
    }

    /// Which shard these lanes lead from.
    pub fn me(&self) -> ShardId {
        self.me
    }

    fn check(&self, to: ShardId, items_max: u32) -> Result<(), LaneFull> {
        let pending = &self.pending[to.index()];
        let depth = self.depths.of(self.me, to);
        let items = depth.items.load(Ordering::Relaxed) as usize + pending.items.len();
        let bytes = depth.bytes.load(Ordering::Relaxed) + pending.bytes.len();
        if items >= items_max as usize || bytes >= LANE_BYTES_MAX {
            return Err(LaneFull);
        }
        Ok(())
    }

    fn write(&mut self, to: ShardId, bytes: &[u8]) -> Span {
        let buffer = &mut self.pending[to.index()].bytes;
        let start = buffer.len() as u32;
        buffer.extend_from_slice(bytes);
        Span {
            start,
            len: bytes.len() as u32,
        }
    }

    /// Hands a connection over.
    ///
    /// # Errors
    /// The lane is full; the socket comes back with its owner's box.
    pub fn try_hand_over(&mut self, to: ShardId, hand_over: Box<HandOver>) -> Result<(), Box<HandOver>> {
        if self.check(to, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED).is_err() {
            return Err(hand_over);
        }
        self.pending[to.index()].items.push(Item::HandOver(hand_over));
        Ok(())
    }

    /// Passes a message on. `frame` is the whole frame.
    ///
    /// # Errors
    /// The lane is full: the message has failed.
    pub fn try_message(&mut self, to: ShardId, message: &OutgoingMessage<'_>) -> Result<(), LaneFull> {
        self.check(to, LANE_ITEMS_MAX)?;
        let user = self.write(to, message.to.as_bytes());
        let frame = self.write(to, message.frame);
        let ack = message.ack.map(|(conn, client_id, message_id)| AckWanted {
            conn,
            client_id: self.write(to, client_id.as_bytes()),
            message_id,
        });
        self.pending[to.index()].items.push(Item::Message(MessageItem {
            hash: message.hash,
            to: user,
            frame,
            ack,
            received_ns: message.received_ns,
        }));
        Ok(())
    }

    /// Asks which users are online.
    ///
    /// # Errors
    /// The lane is full: cannot be asked now.
    pub fn try_presence_query<'a>(
        &mut self,
        to: ShardId,
        ticket: u32,
        users: impl Iterator<Item = (u8, UserHash, &'a str)>,
    ) -> Result<(), LaneFull> {
        self.check(to, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED)?;
        let users = users
            .map(|(place, hash, user)| (place, hash, self.write(to, user.as_bytes())))
            .collect();
        self.pending[to.index()]
            .items
            .push(Item::PresenceQuery { ticket, users });
        Ok(())
    }

    /// Answers a question.
    pub fn presence_answer(&mut self, to: ShardId, ticket: u32, online: u128) {
        self.pending[to.index()]
            .items
            .push(Item::PresenceAnswer { ticket, online });
    }

    /// Sends a frame to the connection that asked for it; `write` appends the frame.
    pub fn reply(&mut self, to: ShardId, conn: SocketKey, write: impl FnOnce(&mut Vec<u8>)) {
        let batch = &mut self.pending[to.index()];
        let start = batch.bytes.len();
        write(&mut batch.bytes);
        let frame = Span {
            start: start as u32,
            len: (batch.bytes.len() - start) as u32,
        };
        batch.items.push(Item::Reply { to: conn, frame });
    }

    /// Sends what this turn brought: one batch and one wake per shard that something was said to.
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
            };
            let batch = std::mem::replace(pending, next);
            let depth = self.depths.of(self.me, ShardId(to as u16));
            depth.items.fetch_add(batch.items.len() as u32, Ordering::Relaxed);
            depth.bytes.fetch_add(batch.bytes.len(), Ordering::Relaxed);
            self.mailboxes[to].post(Parcel::Batch(batch));
        }
    }
}

/// A message as [`Lanes::try_message`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingMessage<'a> {
    /// The receiver's hash.
    pub hash: UserHash,
    /// The receiver's id.
    pub to: &'a str,
    /// The whole frame.
    pub frame: &'a [u8],
    /// The sender's connection, its own id and the gateway's id, if it wants to hear.
    pub ack: Option<(SocketKey, &'a str, Uuid)>,
    /// When the gateway took it, nanoseconds of the gateway's clock.
    pub received_ns: u64,
}
