//! The way into an inbox from any thread: its sending end, and the waker of its thread.
//!
//! A wake may be a system call. So [`Lanes`] have no wakers: they tell whom to wake, and the thread
//! does it ([`Mailboxes::wake`]).

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{Batch, Depths, Lanes, Senders, ToControl, ToShard, control_id};
use crate::engine::Waker;
use crate::ids::ShardId;

/// The address of one thread's inbox, for any thread.
#[derive(Debug)]
pub struct Mailbox<M> {
    sender: Sender<Batch<M>>,
    waker: Waker,
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Mailbox {
            sender: self.sender.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl<M> Mailbox<M> {
    /// Puts one item in, over no lane, and wakes the thread. For the control thread: rare things,
    /// never refused.
    pub fn post(&self, from: ShardId, item: impl Into<M>) {
        // The only error is that the receiving thread has ended, and then nobody needs to hear.
        let _ = self.sender.send(Batch::posted(from, item.into()));
        self.waker.wake();
    }

    /// Wakes the thread although nothing was put in.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

/// The addresses of all inboxes of a gateway.
#[derive(Debug, Clone, Default)]
pub struct Mailboxes {
    /// The shards'.
    pub shards: Vec<Mailbox<ToShard>>,
    /// The control thread's. Tests may run without one.
    pub control: Option<Mailbox<ToControl>>,
}

impl Mailboxes {
    /// The sending end of the lanes of thread `me`: a shard, or [`control_id`].
    pub fn lanes(&self, me: ShardId, depths: &Arc<Depths>) -> Lanes {
        let shards = self.shards.iter().map(|mailbox| mailbox.sender.clone());
        let control = self.control.as_ref().map(|mailbox| mailbox.sender.clone());
        Lanes::new(me, shards, control, depths)
    }

    /// Wakes a thread that [`Lanes::poll_wake`] named.
    pub fn wake(&self, thread: ShardId) {
        match (self.shards.get(thread.index()), &self.control) {
            (Some(mailbox), _) => mailbox.wake(),
            (None, Some(mailbox)) => mailbox.wake(),
            (None, None) => {}
        }
    }

    /// Puts the same item into every shard's inbox, over no lane.
    pub fn post_all<M: Into<ToShard>>(&self, item: impl Fn() -> M) {
        let control = control_id(self.shards.len() as u16);
        for mailbox in &self.shards {
            mailbox.post(control, item());
        }
    }

    /// Puts one item of the control thread into a shard's inbox, over no lane.
    pub fn post(&self, to: ShardId, item: impl Into<ToShard>) {
        let control = control_id(self.shards.len() as u16);
        self.shards[to.index()].post(control, item);
    }
}

impl Senders {
    /// The address of the control thread's inbox, for those who need it before all wakers are
    /// known.
    pub fn control(&self, waker: Waker) -> Mailbox<ToControl> {
        Mailbox {
            sender: self.control.clone(),
            waker,
        }
    }
}

/// Puts senders and wakers together, in the same order. Without the control thread's waker nothing
/// is sent there.
pub fn mailboxes(senders: Senders, wakers: Vec<Waker>, control: Option<Waker>) -> Mailboxes {
    let shards = senders.shards.into_iter().zip(wakers);
    Mailboxes {
        shards: shards.map(|(sender, waker)| Mailbox { sender, waker }).collect(),
        control: control.map(|waker| Mailbox {
            sender: senders.control,
            waker,
        }),
    }
}
