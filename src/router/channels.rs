//! The channels of one shard: who here subscribes to what, and what is on its way to them.
//!
//! Pure; owned by one shard. What is published goes to the subscribers in passes: one batch of frames to one subscriber
//! after the other, as many per turn as the shard likes, so that a channel with every user in it does not stall the
//! others. What is published during a pass gathers in the next batch; one subscriber then gets many frames at once.
//!
//! Invariants:
//! - *prefix*: a batch is for the first `end` subscribers of its channel, those that were there when it was published; the
//!   first `cursor` of them have the first batch. New subscribers come behind all ends; who leaves is replaced such
//!   that every such prefix keeps its members.
//! - *cross*: a subscriber names its place among the memberships of its slot and the other way round.
//! - *there*: a channel is in the table exactly while it has subscribers.
//!
//! Cost: 16 bytes per subscription (8 on each side), up to 8 more for room to grow, and 16 per slot; about 90 bytes and the
//! name per channel.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashTable;

use super::ChannelHash;

/// Bytes of publications that one shard may have on their way to subscribers' outboxes: a second's worth at 16 MB/s, while
/// 10,000 subscribers take some 50 ms.
const QUEUED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Names a channel on a shard while it has subscribers there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelIndex(u32);

/// One connection in a channel.
#[derive(Debug, Clone, Copy)]
struct Subscriber {
    slot: u32,
    /// Place among the slot's memberships.
    place: u32,
}

/// One channel of a connection.
#[derive(Debug, Clone, Copy)]
struct Membership {
    channel: ChannelIndex,
    /// Place among the channel's subscribers.
    place: u32,
}

/// The channels of one connection. Many have none or one; no spare capacity, as they come and go rarely.
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

    /// Takes one out; the last one takes its place.
    fn swap_remove(&mut self, place: u32) {
        *self = match std::mem::take(self) {
            Memberships::One(_) => Memberships::default(),
            Memberships::Many(memberships) => {
                let mut left = memberships.into_vec();
                left.swap_remove(place as usize);
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
}

/// What is on its way to the subscribers of a channel; never empty.
#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// How many subscribers have the first batch. `None`: it still takes frames.
    cursor: Option<u32>,
}

/// Frames that go to the same subscribers together.
#[derive(Debug)]
struct Batch {
    frames: Frames,
    publications: u32,
    /// For so many subscribers.
    end: u32,
    /// When the gateway took the first of them.
    received_ns: u64,
}

#[derive(Debug)]
enum Frames {
    /// As they will be sent.
    Closed(Bytes),
    /// Several, and perhaps more.
    Open(Vec<u8>),
}

impl Frames {
    fn as_slice(&self) -> &[u8] {
        match self {
            Frames::Closed(frames) => frames,
            Frames::Open(frames) => frames,
        }
    }

    fn append(&mut self, frame: &[u8]) {
        match self {
            Frames::Open(frames) => frames.extend_from_slice(frame),
            Frames::Closed(first) => {
                // Room for some more: where two came together, others will.
                let mut frames = Vec::with_capacity((first.len() + frame.len()) * 2);
                frames.extend_from_slice(first);
                frames.extend_from_slice(frame);
                *self = Frames::Open(frames);
            }
        }
    }

    fn close(&mut self) -> Bytes {
        if let Frames::Open(frames) = self {
            *self = Frames::Closed(std::mem::take(frames).into());
        }
        match self {
            Frames::Closed(frames) => frames.clone(),
            Frames::Open(_) => unreachable!("it was just closed"),
        }
    }
}

/// Frames on their way to the subscribers of a channel.
#[derive(Debug, Clone)]
pub struct Pass {
    /// The channel.
    pub channel: ChannelIndex,
    /// One or more whole frames.
    pub frames: Bytes,
    /// How many.
    pub publications: u32,
    /// When the gateway took the first of them, nanoseconds of its clock.
    pub received_ns: u64,
}

/// Too much is on its way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// The channels of one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct Channels {
    table: HashTable<Slot>,
    channels: Vec<Channel>,
    free: Vec<u32>,
    memberships: Vec<Memberships>,
    subscriptions: usize,
    /// Channels with a queue, in turn. May name some that have none any more.
    busy: VecDeque<ChannelIndex>,
    queued_bytes: usize,
}

/// As for users: growing the table touches no entry.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    index: u32,
}

fn table_hash(low: u32) -> u64 {
    // The table takes its control bits from the top.
    u64::from(low) << 32 | u64::from(low)
}

impl Channels {
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
        let low = hash.0 as u32;
        self.table
            .find(table_hash(low), |slot| {
                slot.hash == low && *self.channels[slot.index as usize].name == *name
            })
            .map(|slot| ChannelIndex(slot.index))
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

    fn membership(&self, slot: u32, channel: ChannelIndex) -> Option<Membership> {
        let of_slot = self.memberships.get(slot as usize)?.as_slice();
        let of_channel = &self.channels[channel.0 as usize].subscribers;
        // One of the two is nearly always short.
        if of_slot.len() <= of_channel.len() {
            of_slot.iter().find(|m| m.channel == channel).copied()
        } else {
            let subscriber = of_channel.iter().find(|subscriber| subscriber.slot == slot)?;
            Some(of_slot[subscriber.place as usize])
        }
    }

    /// True if a connection subscribes to a channel.
    pub fn is_subscribed(&self, slot: u32, channel: ChannelIndex) -> bool {
        self.membership(slot, channel).is_some()
    }

    /// Adds a connection, which is not subscribed yet, to a channel, which comes into being with its first one. What is
    /// on its way already is not for it.
    pub fn subscribe(&mut self, slot: u32, hash: ChannelHash, name: &str) -> ChannelIndex {
        let channel = self.find(hash, name).unwrap_or_else(|| self.add(hash, name));
        debug_assert!(!self.is_subscribed(slot, channel), "subscribed twice");
        if slot as usize >= self.memberships.len() {
            self.memberships.resize_with(slot as usize + 1, Memberships::default);
        }
        let memberships = &mut self.memberships[slot as usize];
        let subscribers = &mut self.channels[channel.0 as usize].subscribers;
        let (place, back) = (subscribers.len() as u32, memberships.as_slice().len() as u32);
        memberships.push(Membership { channel, place });
        // Most channels are small; a Vec would begin with four.
        if subscribers.capacity() < 2 {
            subscribers.reserve_exact(1);
        }
        subscribers.push(Subscriber { slot, place: back });
        self.subscriptions += 1;
        channel
    }

    fn add(&mut self, hash: ChannelHash, name: &str) -> ChannelIndex {
        let channel = Channel {
            hash,
            name: name.into(),
            subscribers: Vec::new(),
            queue: None,
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
        let low = hash.0 as u32;
        self.table
            .insert_unique(table_hash(low), Slot { hash: low, index }, |slot| table_hash(slot.hash));
        ChannelIndex(index)
    }

    /// Takes a connection out of a channel, which goes with the last one: then its name is given.
    pub fn unsubscribe(&mut self, slot: u32, channel: ChannelIndex) -> Option<Box<str>> {
        let membership = self.membership(slot, channel)?;
        let memberships = &mut self.memberships[slot as usize];
        let back = self.channels[channel.0 as usize].subscribers[membership.place as usize].place;
        memberships.swap_remove(back);
        if let Some(moved) = memberships.as_slice().get(back as usize) {
            self.channels[moved.channel.0 as usize].subscribers[moved.place as usize].place = back;
        }
        self.remove(membership)
    }

    /// Takes a connection out of one of its channels, any one; `None` when it has none left. A channel that goes with it
    /// is named.
    pub fn leave_one(&mut self, slot: u32) -> Option<(ChannelIndex, Option<Box<str>>)> {
        let channel = self.memberships.get(slot as usize)?.as_slice().last()?.channel;
        Some((channel, self.unsubscribe(slot, channel)))
    }

    /// Takes the subscriber out of its channel; the slot has forgotten it.
    fn remove(&mut self, membership: Membership) -> Option<Box<str>> {
        let channel = &mut self.channels[membership.channel.0 as usize];
        let mut hole = membership.place;
        if let Some(queue) = &mut channel.queue {
            let cursor = queue.cursor.iter_mut();
            for boundary in cursor.chain(queue.batches.iter_mut().map(|batch| &mut batch.end)) {
                if *boundary > hole {
                    *boundary -= 1;
                    // The last one of this prefix fills the hole, and leaves one behind it.
                    if *boundary > hole {
                        channel.subscribers[hole as usize] = channel.subscribers[*boundary as usize];
                        relink(&mut self.memberships, &channel.subscribers, hole);
                        hole = *boundary;
                    }
                }
            }
        }
        channel.subscribers.swap_remove(hole as usize);
        relink(&mut self.memberships, &channel.subscribers, hole);
        self.subscriptions -= 1;
        if channel.subscribers.is_empty() {
            let low = channel.hash.0 as u32;
            let queue = channel.queue.take();
            let lost = queue.iter().flat_map(|queue| &queue.batches);
            self.queued_bytes -= lost.map(|batch| batch.frames.as_slice().len()).sum::<usize>();
            let index = membership.channel.0;
            if let Ok(found) = self.table.find_entry(table_hash(low), |s| s.index == index) {
                found.remove();
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

    /// Puts a frame on its way to all who subscribe now. Batches are closed at `batch_bytes_max`.
    ///
    /// # Errors
    /// Too much is on its way already.
    pub fn publish(
        &mut self,
        channel: ChannelIndex,
        frame: Bytes,
        received_ns: u64,
        batch_bytes_max: usize,
    ) -> Result<(), QueueFull> {
        if self.queued_bytes > 0 && self.queued_bytes + frame.len() > QUEUED_BYTES_MAX {
            return Err(QueueFull);
        }
        self.queued_bytes += frame.len();
        let Channel { subscribers, queue, .. } = &mut self.channels[channel.0 as usize];
        let end = subscribers.len() as u32;
        let queue = queue.get_or_insert_with(|| {
            self.busy.push_back(channel);
            Box::default()
        });
        // The first batch takes no more once somebody has it.
        let closed = usize::from(queue.cursor.is_some());
        let last = queue.batches.iter_mut().skip(closed).next_back();
        match last.filter(|last| last.end == end && last.frames.as_slice().len() + frame.len() <= batch_bytes_max) {
            Some(last) => {
                last.frames.append(&frame);
                last.publications += 1;
            }
            None => queue.batches.push_back(Batch {
                frames: Frames::Closed(frame),
                publications: 1,
                end,
                received_ns,
            }),
        }
        Ok(())
    }

    /// True while something is on its way to outboxes.
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// The next pass to go on with; channels take turns. Take its subscribers with [`Channels::next_subscriber`], then
    /// [`Channels::pause`] it, or it will not come again.
    pub fn next_pass(&mut self) -> Option<Pass> {
        loop {
            let channel = self.busy.pop_front()?;
            let Some(queue) = &mut self.channels[channel.0 as usize].queue else {
                continue;
            };
            let Some(batch) = queue.batches.front_mut() else {
                continue;
            };
            queue.cursor.get_or_insert(0);
            return Some(Pass {
                channel,
                frames: batch.frames.close(),
                publications: batch.publications,
                received_ns: batch.received_ns,
            });
        }
    }

    /// The next connection that is to get the frames of the channel's pass. `None`: all have them, or have gone.
    pub fn next_subscriber(&mut self, channel: ChannelIndex) -> Option<u32> {
        let Channel { subscribers, queue, .. } = &mut self.channels[channel.0 as usize];
        let queue = queue.as_mut()?;
        let cursor = queue.cursor.as_mut()?;
        if *cursor < queue.batches.front()?.end {
            let slot = subscribers[*cursor as usize].slot;
            *cursor += 1;
            return Some(slot);
        }
        None
    }

    /// A turn has done enough for this channel. Returns true if its pass is over.
    pub fn pause(&mut self, channel: ChannelIndex) -> bool {
        let Some(queue) = &mut self.channels[channel.0 as usize].queue else {
            // The last subscriber left meanwhile.
            return true;
        };
        let over = match (queue.cursor, queue.batches.front()) {
            (Some(cursor), Some(first)) => cursor >= first.end,
            _ => false,
        };
        if over {
            queue.cursor = None;
            if let Some(batch) = queue.batches.pop_front() {
                self.queued_bytes -= batch.frames.as_slice().len();
            }
        }
        if queue.batches.is_empty() {
            self.channels[channel.0 as usize].queue = None;
        } else {
            self.busy.push_back(channel);
        }
        over
    }

    /// What is on its way to this subscriber and has not come yet, in order: frames, and how many.
    pub fn on_its_way(&mut self, slot: u32, channel: ChannelIndex) -> Vec<(Bytes, u32)> {
        let Some(membership) = self.membership(slot, channel) else {
            return Vec::new();
        };
        let Some(queue) = &mut self.channels[channel.0 as usize].queue else {
            return Vec::new();
        };
        let has_first = queue.cursor.is_some_and(|cursor| membership.place < cursor);
        let batches = queue.batches.iter_mut().skip(usize::from(has_first));
        batches
            .filter(|batch| membership.place < batch.end)
            .map(|batch| match &batch.frames {
                Frames::Closed(frames) => (frames.clone(), batch.publications),
                Frames::Open(frames) => (Bytes::copy_from_slice(frames), batch.publications),
            })
            .collect()
    }

    /// Asserts the invariants; goes through everything.
    ///
    /// # Panics
    /// One does not hold, which is a fault of ours.
    pub fn check_invariants(&self) {
        let mut subscriptions = 0;
        for slot in &self.table {
            let channel = &self.channels[slot.index as usize];
            assert!(!channel.subscribers.is_empty(), "there");
            subscriptions += channel.subscribers.len();
            for (place, subscriber) in channel.subscribers.iter().enumerate() {
                let membership = self.memberships[subscriber.slot as usize].as_slice()[subscriber.place as usize];
                assert_eq!(
                    (membership.channel.0, membership.place as usize),
                    (slot.index, place),
                    "cross"
                );
            }
            if let Some(queue) = &channel.queue {
                let mut before = queue.cursor.unwrap_or(0);
                for batch in &queue.batches {
                    assert!(
                        before <= batch.end && batch.end as usize <= channel.subscribers.len(),
                        "prefix"
                    );
                    before = batch.end;
                }
            }
        }
        let of_slots = self.memberships.iter().map(|m| m.as_slice().len());
        assert_eq!(subscriptions, of_slots.sum::<usize>(), "cross");
        assert_eq!(subscriptions, self.subscriptions, "subscriptions counted");
    }
}

/// The subscriber that is at this place now is told to its slot, if there is one.
fn relink(memberships: &mut [Memberships], subscribers: &[Subscriber], place: u32) {
    if let Some(moved) = subscribers.get(place as usize) {
        memberships[moved.slot as usize].as_mut_slice()[moved.place as usize].place = place;
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

    /// What each subscriber of each channel has got, and is to get before it leaves.
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

    fn pass(channels: &mut Channels, model: &mut Model, mut budget: u32) {
        while budget > 0
            && let Some(pass) = channels.next_pass()
        {
            let name = NAMES
                .iter()
                .position(|name| *name == channels.name(pass.channel))
                .unwrap();
            while budget > 0
                && let Some(slot) = channels.next_subscriber(pass.channel)
            {
                budget -= 1;
                model.delivered(slot, name, &pass.frames, pass.publications);
            }
            channels.pause(pass.channel);
        }
    }

    proptest! {
        /// Whoever subscribes gets what is published from then on, each once and in order, whatever others do meanwhile;
        /// whoever leaves can be given the rest.
        #[test]
        fn everybody_gets_all_once_in_order(
            steps in prop::collection::vec((0u8..5, 0..SLOTS, 0..NAMES.len(), 1u32..5), 0..300)
        ) {
            let map = HomeMap::new(1, [1; 16]);
            let mut channels = Channels::default();
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
                        for (frames, publications) in channels.on_its_way(slot, channel) {
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
                        channels.publish(channel, Bytes::from(vec![number as u8]), 0, 3).unwrap();
                        for ((_, other), (published, _)) in &mut model.open {
                            if *other == name { published.push(number as u8); }
                        }
                    },
                    _ => pass(&mut channels, &mut model, budget),
                }
                channels.check_invariants();
                prop_assert_eq!(channels.subscriptions(), model.open.len());
                prop_assert_eq!(channels.count(slot), model.open.keys().filter(|(s, _)| *s == slot).count());
            }
            pass(&mut channels, &mut model, u32::MAX);
            prop_assert!(!channels.is_busy() && channels.queued_bytes() == 0);
            prop_assert!(model.open.values().all(|(published, got)| published == got));
        }
    }

    #[test]
    fn what_comes_during_a_pass_goes_together() {
        let hash = ChannelHash(1);
        let mut channels = Channels::default();
        let channel = channels.subscribe(0, hash, "a");
        channels.subscribe(1, hash, "a");
        let publish = |channels: &mut Channels, frame: &'static [u8], max| {
            channels.publish(channel, Bytes::from_static(frame), 0, max).unwrap();
        };
        publish(&mut channels, b"1", 9);
        let first = channels.next_pass().unwrap();
        assert_eq!((&first.frames[..], first.publications), (&b"1"[..], 1));
        assert_eq!(channels.next_subscriber(channel), Some(0));
        for frame in [b"2", b"3", b"4"] {
            publish(&mut channels, frame, 2);
        }
        assert_eq!(channels.next_subscriber(channel), Some(1));
        assert_eq!(channels.next_subscriber(channel), None);
        assert!(channels.pause(channel));
        let second = channels.next_pass().unwrap();
        assert_eq!((&second.frames[..], second.publications), (&b"23"[..], 2));
        assert_eq!(channels.next_subscriber(channel), Some(0));
        assert!(!channels.pause(channel));
        assert_eq!(channels.on_its_way(0, channel), [(Bytes::from_static(b"4"), 1)]);
        assert_eq!(channels.on_its_way(1, channel).len(), 2);
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let mut channels = Channels::default();
        let channel = channels.subscribe(0, ChannelHash(1), "a");
        let frame = Bytes::from(vec![0; QUEUED_BYTES_MAX]);
        // Any one frame goes, whatever its size.
        assert_eq!(channels.publish(channel, frame.clone(), 0, 9), Ok(()));
        assert_eq!(channels.publish(channel, frame, 0, 9), Err(QueueFull));
        assert_eq!(channels.unsubscribe(0, channel).as_deref(), Some("a"));
        assert_eq!((channels.queued_bytes(), channels.next_pass().is_none()), (0, true));
    }

    #[test]
    fn a_membership_is_small() {
        assert_eq!(size_of::<Memberships>(), 16);
        assert_eq!(size_of::<Subscriber>() + size_of::<Membership>(), 16);
        assert!(size_of::<Channel>() <= 56, "{}", size_of::<Channel>());
    }
}
