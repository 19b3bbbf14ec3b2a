//! The channels of one shard: its subscriptions, and the publications on their way to subscribers.
//!
//! Pure; owned by one shard. A publication goes round the subscribers of its channel, as many per
//! turn as the shard likes. So a channel with every user in it does not stall the others. A
//! subscriber gets everything that was published since its last visit at once: the more is
//! published, the fewer sends it takes.
//!
//! ```text
//!   subscribers   0  1  2  3  4  5  6  7        each knows the last publication that it has (`seen`)
//!                          ^ cursor
//!   log           [ p41 | p42 | p43 ]           gone round when the cursor has made as many visits as there were
//!   waiting       p44, p45                      subscribers (`due`); what waits is let in when there is room
//! ```
//!
//! Invariants:
//! - *round*: every subscriber that lacks something of the log is visited before that is due: it
//!   lies ahead of the cursor, or is among the `first`.
//! - *cross*: a subscriber names its position among the memberships of its slot and the other way
//!   round.
//! - *there*: a channel is in the table exactly while it has subscribers.
//!
//! Cost: 20 bytes per subscription, up to 12 more for room to grow, and 16 per slot; about 90 bytes
//! and the name per channel.

mod queue;

use std::collections::VecDeque;

use bytes::Bytes;

use super::ChannelHash;
use super::index::Index;
use queue::Queue;

/// Bytes of publications that one shard may have on their way to subscribers' outboxes.
const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The part of them that one channel may have, so that one burst in a large channel does not shut
/// all others out. It is a third of a second at 48 MB/s. By then it is known whether a subscriber
/// that is behind reads at all.
const CHANNEL_BYTES_MAX: usize = QUEUED_BYTES_MAX / 2;
/// The same while subscribers read and cannot be given more: a longer queue only makes everything
/// late.
const CHANNEL_BYTES_OVERLOADED_MAX: usize = 2 * 1024 * 1024;
/// Queues kept for use again.
const SPARE_MAX: usize = 256;

/// Names a channel on a shard while it has subscribers there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelIndex(u32);

/// One connection in a channel.
#[derive(Debug, Clone, Copy)]
struct Subscriber {
    slot: u32,
    /// Position among the slot's memberships.
    position: u32,
    /// Number of the last publication that it has, or that it came too late for.
    seen: u32,
}

/// One channel of a connection.
#[derive(Debug, Clone, Copy)]
struct Membership {
    channel: ChannelIndex,
    /// Position among the channel's subscribers.
    position: u32,
}

/// The channels of one connection. Many have none or one; no spare capacity, as they come and go
/// rarely.
#[derive(Debug)]
enum Memberships {
    One(Membership),
    /// Or none, which takes no memory; a variant for that would cost 8 bytes in each of the others.
    Many(Box<[Membership]>),
}

impl Default for Memberships {
    fn default() -> Self {
        Memberships::Many(Box::default())
    }
}

impl Memberships {
    fn as_slice(&self) -> &[Membership] {
        match self {
            Memberships::One(membership) => std::slice::from_ref(membership),
            Memberships::Many(memberships) => memberships,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Membership] {
        match self {
            Memberships::One(membership) => std::slice::from_mut(membership),
            Memberships::Many(memberships) => memberships,
        }
    }

    fn push(&mut self, membership: Membership) {
        *self = match std::mem::take(self) {
            Memberships::Many(none) if none.is_empty() => Memberships::One(membership),
            Memberships::One(first) => Memberships::Many(Box::new([first, membership])),
            Memberships::Many(memberships) => {
                let mut more = memberships.into_vec();
                more.reserve_exact(1);
                more.push(membership);
                Memberships::Many(more.into_boxed_slice())
            }
        };
    }

    /// Takes one out; the last one moves to its position.
    fn swap_remove(&mut self, position: u32) {
        *self = match std::mem::take(self) {
            Memberships::One(_) => Memberships::default(),
            Memberships::Many(memberships) => {
                let mut left = memberships.into_vec();
                left.swap_remove(position as usize);
                match left[..] {
                    [last] => Memberships::One(last),
                    _ => Memberships::Many(left.into_boxed_slice()),
                }
            }
        };
    }
}

#[derive(Debug)]
struct Channel {
    hash: ChannelHash,
    name: Box<str>,
    subscribers: Vec<Subscriber>,
    /// Only while something is on its way.
    queue: Option<Box<Queue>>,
    /// Number of the last publication.
    newest: u32,
}

/// Too much is on its way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// The channels of one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct ChannelTable {
    table: Index,
    channels: Vec<Channel>,
    free: Vec<u32>,
    memberships: Vec<Memberships>,
    subscriptions: usize,
    /// Channels with a queue, round-robin. May name some that have none any more.
    busy: VecDeque<ChannelIndex>,
    /// Channels with a queue that wait until their subscribers can take more. As `busy` otherwise.
    held: Vec<ChannelIndex>,
    queued_bytes: usize,
    /// When those publications were received that have gone round.
    gone_round: Vec<u64>,
    /// Queues for use again: in a small channel each publication takes one for a moment.
    #[allow(clippy::vec_box, reason = "channels hold boxes: the spare ones are kept as they are")]
    spare: Vec<Box<Queue>>,
}

impl ChannelTable {
    /// Number of channels that have a subscriber here.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when nobody here subscribes to anything.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Number of subscriptions.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// Bytes on their way to outboxes.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// The channel of this name, if it has a subscriber here.
    pub fn find(&self, hash: ChannelHash, name: &str) -> Option<ChannelIndex> {
        let found = self
            .table
            .find(hash.0, |index| *self.channels[index as usize].name == *name);
        found.map(ChannelIndex)
    }

    /// A page of channels with the number of their subscribers, and the index where the next page
    /// begins. `from` is 0 for the first page. A channel keeps its index for as long as it has
    /// subscribers.
    pub fn page(&self, from: u32, count: u32) -> (impl Iterator<Item = (&str, usize)>, Option<u32>) {
        let end = self.channels.len().min(from.saturating_add(count) as usize);
        let page = self.channels.get(from as usize..end).unwrap_or_default();
        let there = page.iter().filter(|channel| !channel.subscribers.is_empty());
        let next = (end < self.channels.len()).then_some(end as u32);
        (there.map(|channel| (&*channel.name, channel.subscribers.len())), next)
    }

    /// The name of a channel.
    pub fn name(&self, channel: ChannelIndex) -> &str {
        &self.channels[channel.0 as usize].name
    }

    /// The number of channels of a connection.
    pub fn count(&self, slot: u32) -> usize {
        let memberships = self.memberships.get(slot as usize);
        memberships.map_or(0, |memberships| memberships.as_slice().len())
    }

    /// Bytes of the names of a connection's channels.
    pub fn name_bytes(&self, slot: u32) -> usize {
        let memberships = self.memberships.get(slot as usize);
        let channels = memberships.map_or(&[][..], |memberships| memberships.as_slice());
        channels.iter().map(|m| self.name(m.channel).len()).sum()
    }

    /// One of the channels of a connection, by its position in the list. A new channel is put at
    /// the end. When one is removed, the last one moves to its position.
    pub fn nth(&self, slot: u32, position: usize) -> Option<ChannelIndex> {
        let memberships = self.memberships.get(slot as usize)?.as_slice();
        memberships.get(position).map(|membership| membership.channel)
    }

    fn membership(&self, slot: u32, channel: ChannelIndex) -> Option<Membership> {
        let of_slot = self.memberships.get(slot as usize)?.as_slice();
        let of_channel = &self.channels[channel.0 as usize].subscribers;
        // One of the two is nearly always short.
        if of_slot.len() <= of_channel.len() {
            of_slot.iter().find(|m| m.channel == channel).copied()
        } else {
            let subscriber = of_channel.iter().find(|subscriber| subscriber.slot == slot)?;
            Some(of_slot[subscriber.position as usize])
        }
    }

    /// True if a connection subscribes to a channel.
    pub fn is_subscribed(&self, slot: u32, channel: ChannelIndex) -> bool {
        self.membership(slot, channel).is_some()
    }

    /// Adds a connection, which is not subscribed yet, to a channel; the first subscriber creates
    /// it. Publications that are on their way already are not for the new subscriber.
    pub fn subscribe(&mut self, slot: u32, hash: ChannelHash, name: &str) -> ChannelIndex {
        let channel = self.find(hash, name).unwrap_or_else(|| self.add(hash, name));
        debug_assert!(!self.is_subscribed(slot, channel), "subscribed twice");
        if slot as usize >= self.memberships.len() {
            self.memberships.resize_with(slot as usize + 1, Memberships::default);
        }
        let memberships = &mut self.memberships[slot as usize];
        let Channel {
            subscribers,
            queue,
            newest,
            ..
        } = &mut self.channels[channel.0 as usize];
        let (position, back) = (subscribers.len() as u32, memberships.as_slice().len() as u32);
        memberships.push(Membership { channel, position });
        // Most channels are small; a Vec would begin with four.
        if subscribers.capacity() < 2 {
            subscribers.reserve_exact(1);
        }
        subscribers.push(Subscriber {
            slot,
            position: back,
            seen: *newest,
        });
        if let Some(queue) = queue {
            queue.handle_joined();
        }
        self.subscriptions += 1;
        channel
    }

    fn add(&mut self, hash: ChannelHash, name: &str) -> ChannelIndex {
        let channel = Channel {
            hash,
            name: name.into(),
            subscribers: Vec::new(),
            queue: None,
            newest: 0,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.channels[index as usize] = channel;
                index
            }
            None => {
                self.channels.push(channel);
                (self.channels.len() - 1) as u32
            }
        };
        self.table.insert(hash.0, index);
        ChannelIndex(index)
    }

    /// Takes a connection out of a channel. The last one removes the channel: then its name is
    /// returned.
    pub fn unsubscribe(&mut self, slot: u32, channel: ChannelIndex) -> Option<Box<str>> {
        let membership = self.membership(slot, channel)?;
        self.leave(slot, membership)
    }

    fn leave(&mut self, slot: u32, membership: Membership) -> Option<Box<str>> {
        let memberships = &mut self.memberships[slot as usize];
        let back = self.channels[membership.channel.0 as usize].subscribers[membership.position as usize].position;
        memberships.swap_remove(back);
        if let Some(moved) = memberships.as_slice().get(back as usize) {
            self.channels[moved.channel.0 as usize].subscribers[moved.position as usize].position = back;
        }
        self.remove(membership)
    }

    /// Takes a connection out of one of its channels, any one; `None` when it has none left. A
    /// channel that goes with it is named.
    pub fn leave_one(&mut self, slot: u32) -> Option<(ChannelIndex, Option<Box<str>>)> {
        let last = *self.memberships.get(slot as usize)?.as_slice().last()?;
        Some((last.channel, self.leave(slot, last)))
    }

    /// Takes the subscriber out of its channel; the slot has forgotten it.
    fn remove(&mut self, membership: Membership) -> Option<Box<str>> {
        let channel = &mut self.channels[membership.channel.0 as usize];
        let position = membership.position;
        channel.subscribers.swap_remove(position as usize);
        let moved = channel.subscribers.get(position as usize);
        if let Some(moved) = moved {
            self.memberships[moved.slot as usize].as_mut_slice()[moved.position as usize].position = position;
        }
        if let Some(queue) = &mut channel.queue {
            queue.handle_left(position, moved.map(|moved| moved.slot), channel.subscribers.len());
        }
        self.subscriptions -= 1;
        if channel.subscribers.is_empty() {
            self.queued_bytes -= channel.queue.take().map_or(0, |queue| queue.bytes());
            let index = membership.channel.0;
            if self.table.remove(channel.hash.0, index) {
                self.free.push(index);
            }
            channel.subscribers = Vec::new();
            return Some(std::mem::take(&mut channel.name));
        }
        // After a crowd has left.
        if channel.subscribers.capacity() > 64 && channel.subscribers.len() < channel.subscribers.capacity() / 4 {
            channel.subscribers.shrink_to(channel.subscribers.len() * 2);
        }
        None
    }

    /// Puts a frame on its way to all who subscribe now.
    ///
    /// # Errors
    /// Too much is on its way already.
    pub fn publish(&mut self, channel: ChannelIndex, frame: Bytes, received_ns: u64) -> Result<(), QueueFull> {
        if self.is_full_for(channel, frame.len(), false) {
            return Err(QueueFull);
        }
        let Channel { queue, newest, .. } = &mut self.channels[channel.0 as usize];
        self.queued_bytes += frame.len();
        let queue = queue.get_or_insert_with(|| {
            self.busy.push_back(channel);
            let mut queue = self.spare.pop().unwrap_or_default();
            queue.renew();
            queue
        });
        *newest = newest.wrapping_add(1);
        queue.push(frame, received_ns);
        Ok(())
    }

    /// True while something is on its way to outboxes.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// How many channels there are to go on with, or a few more.
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// The next channel to go on with; channels are served round-robin. Make visits with
    /// [`ChannelTable::next_visit`], then [`ChannelTable::pause`], or it will not come again. One
    /// subscriber gets up to `visit_bytes_max` at once, or one frame.
    pub fn next_busy(&mut self, visit_bytes_max: usize) -> Option<ChannelIndex> {
        loop {
            let channel = self.busy.pop_front()?;
            let Channel { subscribers, queue, .. } = &mut self.channels[channel.0 as usize];
            if let Some(queue) = queue {
                queue.fill(visit_bytes_max, subscribers.len());
                return Some(channel);
            }
        }
    }

    /// The next visit: the slot of a connection, one or more whole frames for it, and their number.
    /// `None`: the whole log has gone round.
    pub fn next_visit(&mut self, channel: ChannelIndex) -> Option<(u32, Bytes, u32)> {
        loop {
            let position = self.next_position(channel)?;
            let Channel {
                subscribers,
                queue,
                newest,
                ..
            } = &mut self.channels[channel.0 as usize];
            let subscriber = &mut subscribers[position as usize];
            if let Some((frames, count)) = queue.as_ref()?.lacking(subscriber.seen, *newest) {
                subscriber.seen = subscriber.seen.wrapping_add(count);
                return Some((subscriber.slot, frames, count));
            }
        }
    }

    /// The last visit came too early: the connection can take nothing yet. It is the first to be
    /// visited when this goes on, after [`ChannelTable::pause`]. `count`: the frames that it was to
    /// get.
    pub fn put_back(&mut self, channel: ChannelIndex, slot: u32, count: u32) {
        let Some(membership) = self.membership(slot, channel) else {
            return;
        };
        let Channel { subscribers, queue, .. } = &mut self.channels[channel.0 as usize];
        if let Some(queue) = queue {
            let subscriber = &mut subscribers[membership.position as usize];
            subscriber.seen = subscriber.seen.wrapping_sub(count);
            queue.put_first(slot);
        }
    }

    fn next_position(&mut self, channel: ChannelIndex) -> Option<u32> {
        while let Some(slot) = self.channels[channel.0 as usize].queue.as_mut()?.next_first() {
            if let Some(membership) = self.membership(slot, channel) {
                return Some(membership.position);
            }
        }
        self.take_out_due(channel);
        let Channel { subscribers, queue, .. } = &mut self.channels[channel.0 as usize];
        queue.as_mut()?.next_position(subscribers.len())
    }

    fn take_out_due(&mut self, channel: ChannelIndex) {
        if let Some(queue) = &mut self.channels[channel.0 as usize].queue {
            self.queued_bytes -= queue.take_out_due(&mut self.gone_round);
        }
    }

    /// A turn has done enough for this channel.
    pub fn pause(&mut self, channel: ChannelIndex) {
        if self.has_rest(channel) {
            self.busy.push_back(channel);
        }
    }

    /// As [`ChannelTable::pause`], but the channel comes again only after
    /// [`ChannelTable::release_held`].
    pub fn hold(&mut self, channel: ChannelIndex) {
        if self.has_rest(channel) {
            self.held.push(channel);
        }
    }

    /// All channels that are held come again.
    pub fn release_held(&mut self) {
        self.busy.extend(self.held.drain(..));
    }

    /// True if something of this channel is still on its way; else its queue is given back.
    fn has_rest(&mut self, channel: ChannelIndex) -> bool {
        self.take_out_due(channel);
        let queue = &mut self.channels[channel.0 as usize].queue;
        match queue.take_if(|queue| queue.is_empty()) {
            Some(queue) if self.spare.len() < SPARE_MAX && queue.is_small() => self.spare.push(queue),
            Some(_) => {}
            None => return queue.is_some(),
        }
        false
    }

    /// True if a frame of this size would be refused by [`ChannelTable::publish`], or should be as
    /// subscribers are `overloaded`.
    pub fn is_full_for(&self, channel: ChannelIndex, frame_bytes: usize, overloaded: bool) -> bool {
        // Any one frame goes where nothing is on its way.
        let is_full = |bytes: usize, max: usize| bytes > 0 && bytes + frame_bytes > max;
        is_full(self.queued_bytes, QUEUED_BYTES_MAX)
            || is_full(self.bytes_of(channel), Self::channel_bytes_max(overloaded))
    }

    fn channel_bytes_max(overloaded: bool) -> usize {
        if overloaded {
            CHANNEL_BYTES_OVERLOADED_MAX
        } else {
            CHANNEL_BYTES_MAX
        }
    }

    /// True if so much is on its way that publishers on other shards shall be notified before
    /// something is refused here. What they publish until the notice arrives still has room. Once
    /// it is `already` crowded, it stays so until most has gone.
    pub fn is_crowded(&self, channel: ChannelIndex, overloaded: bool, already: bool) -> bool {
        let most = Self::channel_bytes_max(overloaded) / 4 * if already { 1 } else { 3 };
        self.bytes_of(channel) > most || self.queued_bytes > QUEUED_BYTES_MAX / 4 * 3
    }

    fn bytes_of(&self, channel: ChannelIndex) -> usize {
        let queue = &self.channels[channel.0 as usize].queue;
        queue.as_ref().map_or(0, |queue| queue.bytes())
    }

    /// Up to `most` subscribers, evenly spread over all of them, from a position that `start`
    /// chooses.
    pub fn sample(&self, channel: ChannelIndex, most: usize, start: usize) -> impl Iterator<Item = u32> + '_ {
        let subscribers = &self.channels[channel.0 as usize].subscribers;
        let len = subscribers.len();
        let count = len.min(most);
        (0..count).map(move |n| subscribers[(start + n * len / count) % len].slot)
    }

    /// When each publication was received that has gone round since the last call.
    pub fn gone_round(&mut self) -> std::vec::Drain<'_, u64> {
        self.gone_round.drain(..)
    }

    /// The frames that were published for this subscriber and have not reached it yet, and their
    /// number. `None` if there are none, or more than `bytes_max` bytes: they are copied for this
    /// subscriber alone.
    pub fn on_its_way(&self, slot: u32, channel: ChannelIndex, bytes_max: usize) -> Option<(Bytes, u32)> {
        let membership = self.membership(slot, channel)?;
        let Channel {
            subscribers,
            queue,
            newest,
            ..
        } = &self.channels[channel.0 as usize];
        let seen = subscribers[membership.position as usize].seen;
        queue.as_ref()?.not_come(seen, *newest, bytes_max)
    }

    /// Asserts the invariants; goes through everything.
    ///
    /// # Panics
    /// One does not hold, which is a fault of ours.
    pub fn check_invariants(&self) {
        let (mut subscriptions, mut queued_bytes) = (0, 0);
        for index in self.table.iter() {
            let channel = &self.channels[index as usize];
            assert!(!channel.subscribers.is_empty(), "there");
            subscriptions += channel.subscribers.len();
            for (position, subscriber) in channel.subscribers.iter().enumerate() {
                let membership = self.memberships[subscriber.slot as usize].as_slice()[subscriber.position as usize];
                assert_eq!(
                    (membership.channel.0, membership.position as usize),
                    (index, position),
                    "cross"
                );
            }
            let lacks = |subscriber: &Subscriber| channel.newest != subscriber.seen;
            let Some(queue) = &channel.queue else {
                assert!(!channel.subscribers.iter().any(lacks), "round");
                continue;
            };
            queued_bytes += queue.bytes();
            let subscribers = channel.subscribers.iter();
            queue.check_invariants(subscribers.map(|s| (s.slot, s.seen)), channel.newest);
        }
        let of_slots = self.memberships.iter().map(|m| m.as_slice().len());
        assert_eq!(subscriptions, of_slots.sum::<usize>(), "cross");
        assert_eq!(subscriptions, self.subscriptions, "subscriptions counted");
        assert_eq!(queued_bytes, self.queued_bytes, "queued bytes counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::HomeMap;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SLOTS: u32 = 7;
    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// The publications that each subscriber of each channel has, and those it is to get before it
    /// leaves.
    #[derive(Default)]
    struct Model {
        /// By slot and channel: frames published since it subscribed, and frames that came.
        open: BTreeMap<(u32, usize), (Vec<u8>, Vec<u8>)>,
    }

    impl Model {
        fn delivered(&mut self, slot: u32, name: usize, frames: &[u8], publications: u32) {
            assert_eq!(frames.len(), publications as usize);
            let (published, got) = self.open.get_mut(&(slot, name)).expect("nothing comes to one who left");
            got.extend_from_slice(frames);
            assert!(
                published.starts_with(got),
                "in order, once, nothing of before: {published:?} {got:?}"
            );
        }
    }

    fn visit(channels: &mut ChannelTable, model: &mut Model, mut budget: u32) {
        while budget > 0
            && let Some(channel) = channels.next_busy(3)
        {
            let name = NAMES.iter().position(|name| *name == channels.name(channel)).unwrap();
            while budget > 0
                && let Some((slot, frames, publications)) = channels.next_visit(channel)
            {
                budget -= 1;
                assert!(publications <= 3);
                model.delivered(slot, name, &frames, publications);
            }
            channels.pause(channel);
        }
    }

    proptest! {
        /// A subscriber gets all publications from its subscription on, each once and in order,
        /// whatever others do meanwhile. A leaving subscriber can be given the rest.
        #[test]
        fn everybody_gets_all_once_in_order(
            steps in prop::collection::vec((0u8..7, 0..SLOTS, 0..NAMES.len(), 1u32..5), 0..300)
        ) {
            let map = HomeMap::new(1, [1; 16]);
            let mut channels = ChannelTable::default();
            let mut model = Model::default();
            for (number, (what, slot, name, budget)) in steps.into_iter().enumerate() {
                let hash = map.channel_hash(NAMES[name]);
                let found = channels.find(hash, NAMES[name]);
                let subscribed = found.is_some_and(|channel| channels.is_subscribed(slot, channel));
                prop_assert_eq!(subscribed, model.open.contains_key(&(slot, name)));
                match what {
                    0 if !subscribed => {
                        channels.subscribe(slot, hash, NAMES[name]);
                        model.open.insert((slot, name), Default::default());
                    }
                    0 => {
                        let channel = found.unwrap();
                        if let Some((frames, publications)) = channels.on_its_way(slot, channel, usize::MAX) {
                            model.delivered(slot, name, &frames, publications);
                        }
                        let (published, got) = model.open.remove(&(slot, name)).unwrap();
                        prop_assert_eq!(published, got, "all of before");
                        let gone = channels.unsubscribe(slot, channel);
                        let others = model.open.keys().any(|(_, other)| *other == name);
                        prop_assert_eq!(gone.as_deref(), (!others).then_some(NAMES[name]));
                    }
                    1 => {
                        while channels.leave_one(slot).is_some() {}
                        model.open.retain(|(other, _), _| *other != slot);
                    }
                    2 | 3 => if let Some(channel) = found {
                        channels.publish(channel, Bytes::from(vec![number as u8]), 0).unwrap();
                        for ((_, other), (published, _)) in &mut model.open {
                            if *other == name { published.push(number as u8); }
                        }
                    },
                    4 | 5 => visit(&mut channels, &mut model, budget),
                    _ => if let Some(channel) = channels.next_busy(3) {
                        if let Some((slot, _, publications)) = channels.next_visit(channel) {
                            channels.put_back(channel, slot, publications);
                        }
                        channels.pause(channel);
                    },
                }
                channels.check_invariants();
                prop_assert_eq!(channels.subscriptions(), model.open.len());
                prop_assert_eq!(channels.count(slot), model.open.keys().filter(|(s, _)| *s == slot).count());
            }
            visit(&mut channels, &mut model, u32::MAX);
            prop_assert!(!channels.is_busy() && channels.queued_bytes() == 0);
            prop_assert!(model.open.values().all(|(published, got)| published == got));
        }
    }

    #[test]
    fn what_comes_during_a_round_goes_together() {
        let hash = ChannelHash(1);
        let mut channels = ChannelTable::default();
        let channel = channels.subscribe(0, hash, "a");
        channels.subscribe(1, hash, "a");
        channels.subscribe(2, hash, "a");
        let publish = |channels: &mut ChannelTable, frame: &'static [u8]| {
            channels.publish(channel, Bytes::from_static(frame), 7).unwrap();
        };
        let turn = |channels: &mut ChannelTable, visits: usize| {
            let channel = channels.next_busy(3).unwrap();
            let made: Vec<(u32, Bytes, u32)> = std::iter::from_fn(|| channels.next_visit(channel))
                .take(visits)
                .collect();
            channels.pause(channel);
            made.into_iter()
                .map(|(slot, frames, _)| (slot, String::from_utf8(frames.to_vec()).unwrap()))
                .collect::<Vec<_>>()
        };
        publish(&mut channels, b"1");
        assert_eq!(turn(&mut channels, 1), [(0, "1".into())]);
        for frame in [b"2", b"3", b"4"] {
            publish(&mut channels, frame);
        }
        assert_eq!(channels.on_its_way(0, channel, 99).unwrap().0, "234");
        assert_eq!(channels.on_its_way(0, channel, 2), None);
        assert_eq!(turn(&mut channels, 1), [(1, "123".into())]);
        // One that comes now gets nothing of that.
        channels.subscribe(3, hash, "a");
        assert_eq!(turn(&mut channels, 2), [(2, "123".into()), (0, "23".into())]);
        assert_eq!(
            turn(&mut channels, 9),
            [(1, "4".into()), (2, "4".into()), (0, "4".into())]
        );
        assert!(!channels.is_busy());
        assert_eq!(channels.gone_round().collect::<Vec<_>>(), [7; 4]);
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let mut channels = ChannelTable::default();
        let channel = channels.subscribe(0, ChannelHash(1), "a");
        let frame = Bytes::from(vec![0; QUEUED_BYTES_MAX]);
        // Any one frame goes, whatever its size.
        assert_eq!(channels.publish(channel, frame.clone(), 0), Ok(()));
        assert_eq!(channels.publish(channel, frame, 0), Err(QueueFull));
        assert_eq!(channels.unsubscribe(0, channel).as_deref(), Some("a"));
        assert_eq!((channels.queued_bytes(), channels.next_busy(9)), (0, None));
    }

    #[test]
    fn a_membership_is_small() {
        assert_eq!(size_of::<Memberships>(), 16);
        assert_eq!(size_of::<Subscriber>() + size_of::<Membership>(), 20);
        assert!(size_of::<Channel>() <= 64, "{}", size_of::<Channel>());
    }
}
