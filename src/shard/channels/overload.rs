//! What is done when more is published than subscribers can be given.
//!
//! Owned by the shard. A channel is held, and nothing more of it goes into outboxes, while most of
//! its subscribers are behind, and while a single one that reads is about to be closed for it. What
//! is published meanwhile waits in the channel, up to its bound; beyond that its publishers hear
//! `failed`. So publishers are slowed before anybody who reads is closed with 3008, which is for a
//! subscriber whose own socket does not move.
//!
//! While a channel is held the turn asks the kernel how far a few of the sockets are
//! (`poll_probe`), which shows sooner than the end of a send that somebody reads. Where none of
//! them moves there is nothing to wait for, and nothing is held.
//!
//! A channel's home on another shard is told when much waits here, so that it refuses before
//! something is lost.

use super::Channels;
use super::tables::Probe;
use crate::engine::SocketKey;
use crate::router::ChannelHash;
use crate::router::channels::ChannelIndex;
use crate::shard::kernel::Kernel;

/// A subscriber is behind when its outbox holds more than this share of `limits.outbox_bytes`. The
/// rest of it is for the differences between subscribers, and for what else they are told.
const BEHIND_SHARE: usize = 4;
/// A subscriber that is alone behind is waited for when its outbox would hold more than three of
/// this many shares.
const STRAGGLER_SHARE: usize = 4;
/// ... as long as it has taken something in this time, a payload of 64 KiB or [`PROGRESS_BYTES`] of
/// one: whoever vanished holds up a busy channel for no longer, and whoever reads on purpose slowly
/// does not slow it to less.
const STRAGGLER_STUCK_MS: u64 = 500;
/// What a peer has to acknowledge between two looks to count as one who reads.
const PROGRESS_BYTES: usize = 16 * 1024;
/// A socket that has taken nothing for so long does not move, whatever others do.
const STUCK_MS: u64 = 5_000;
/// Subscribers that are looked at to tell a slow channel from a slow subscriber.
const SAMPLE: usize = 16;
/// How long a channel is held before its subscribers are looked at again.
const HOLD_MS: u64 = 2;

impl Channels {
    /// A send is over, and so many bytes still wait for the same connection.
    pub(in crate::shard) fn note_moved(&mut self, kernel: &mut Kernel, waiting_bytes: usize) {
        if waiting_bytes > kernel.settings.limits.outbox_bytes / (2 * BEHIND_SHARE) {
            self.overload.moved(kernel.now.mono_ms());
        }
    }

    /// The next socket that the kernel is to be asked about, for [`Core::handle_probed`].
    pub(in crate::shard) fn poll_probe(&mut self) -> Option<SocketKey> {
        let probe = self.overload.probes.iter_mut().find(|probe| probe.due)?;
        probe.due = false;
        Some(probe.key)
    }

    /// The peer of a socket has not acknowledged so many bytes that the kernel has taken; `None` if
    /// that is not known.
    pub(in crate::shard) fn handle_probed(
        &mut self,
        kernel: &mut Kernel,
        key: SocketKey,
        unacknowledged: Option<usize>,
    ) {
        let now_ms = kernel.now.mono_ms();
        let overload = &mut self.overload;
        let Some(unacknowledged) = unacknowledged else {
            overload.probes.retain(|probe| probe.key != key);
            return;
        };
        let Some(probe) = overload.probes.iter_mut().find(|probe| probe.key == key) else {
            return;
        };
        let moves = unacknowledged + PROGRESS_BYTES <= probe.unacknowledged;
        if moves || unacknowledged > probe.unacknowledged {
            probe.unacknowledged = unacknowledged;
        }
        if moves {
            overload.moved(now_ms);
            if let Some(outbox) = kernel.connection(key).and_then(|conn| conn.outbox.as_mut()) {
                outbox.note_moved(now_ms);
            }
        }
    }

    /// Decides, before a subscriber gets so many bytes, whether its channel waits for it or for all
    /// of them.
    pub(in crate::shard) fn must_wait(
        &mut self,
        kernel: &mut Kernel,
        channel: ChannelIndex,
        slot: u32,
        bytes: usize,
    ) -> bool {
        let now_ms = kernel.now.mono_ms();
        let limit = kernel.settings.limits.outbox_bytes;
        let Some(outbox) = &kernel.conn(slot).outbox else {
            return false;
        };
        let waiting = outbox.bytes() + bytes;
        if !outbox.in_flight() || waiting <= limit / BEHIND_SHARE {
            return false;
        }
        let straggles = waiting > limit - limit / STRAGGLER_SHARE && outbox.stuck_for_ms(now_ms) < STRAGGLER_STUCK_MS;
        if straggles {
            self.hold(kernel, [slot].into_iter());
            return true;
        }
        self.is_slow(kernel, channel)
    }

    /// True if this subscriber has much to take, and its socket moves.
    fn is_behind(&self, kernel: &Kernel, slot: u32) -> bool {
        let outbox = kernel.connections[slot as usize].outbox.as_ref();
        outbox.is_some_and(|outbox| {
            outbox.in_flight()
                && outbox.bytes() > kernel.settings.limits.outbox_bytes / BEHIND_SHARE
                && outbox.stuck_for_ms(kernel.now.mono_ms()) < STUCK_MS
        })
    }

    /// Decides whether the channel waits for its subscribers, because more than half of them are
    /// behind.
    fn is_slow(&mut self, kernel: &mut Kernel, channel: ChannelIndex) -> bool {
        let overload = &mut self.overload;
        if !overload.waits(kernel.now.mono_ms()) {
            return false;
        }
        overload.samples = overload.samples.wrapping_add(1);
        let start = overload.samples;
        let (mut behind, mut looked_at) = (0, 0);
        let mut slots = [0; SAMPLE];
        for slot in self.table.sample(channel, SAMPLE, start) {
            looked_at += 1;
            if self.is_behind(kernel, slot) {
                slots[behind] = slot;
                behind += 1;
            }
        }
        let slow = behind * 2 > looked_at;
        if slow {
            self.hold(kernel, slots[..behind].iter().copied());
        }
        slow
    }

    /// A channel is held for these subscribers, whose sockets the kernel is asked about meanwhile.
    fn hold(&mut self, kernel: &mut Kernel, slots: impl Iterator<Item = u32>) {
        for slot in slots {
            let key = kernel.key(slot);
            let probes = &mut self.overload.probes;
            if probes.len() < SAMPLE && probes.iter().all(|probe| probe.key != key) {
                probes.push(Probe {
                    key,
                    unacknowledged: 0,
                    due: true,
                });
            }
        }
        let now_ms = kernel.now.mono_ms();
        let overload = &mut self.overload;
        overload.held_ms = now_ms;
        overload.look_again_ms.get_or_insert(now_ms + HOLD_MS);
    }

    /// Lets held channels go on when it is time to look at them again.
    pub(in crate::shard) fn release_held(&mut self, kernel: &mut Kernel) {
        let now_ms = kernel.now.mono_ms();
        let overload = &mut self.overload;
        if overload.look_again_ms.take_if(|due| *due <= now_ms).is_none() {
            return;
        }
        let mut probes = std::mem::take(&mut overload.probes);
        probes.retain_mut(|probe| {
            probe.due = true;
            kernel.connection(probe.key).is_some() && self.is_behind(kernel, probe.key.slot)
        });
        self.overload.probes = probes;
        self.table.release_held();
    }

    /// True if a publication of this size has no room on its way to the subscribers here, or is
    /// known to have none on another shard of this gateway.
    pub(in crate::shard) fn is_overloaded(
        &self,
        kernel: &Kernel,
        (hash, name): (ChannelHash, &str),
        frame_bytes: usize,
    ) -> bool {
        let overloaded = self.overload.is_real(kernel.now.mono_ms());
        let here = self.table.find(hash, name);
        here.is_some_and(|channel| self.table.is_full_for(channel, frame_bytes, overloaded))
            || self.interests.is_crowded(hash)
    }

    /// Tells the home of a channel, if that is another shard, that much is on its way here.
    pub(in crate::shard) fn note_crowded(
        &mut self,
        kernel: &mut Kernel,
        channel: ChannelIndex,
        name: (ChannelHash, &str),
    ) {
        let overloaded = self.overload.is_real(kernel.now.mono_ms());
        if !self.table.is_crowded(channel, overloaded, false) || self.overload.crowded.contains(&channel) {
            return;
        }
        let home = kernel.homes.partition_home(kernel.homes.partition(name.1));
        if home != kernel.me {
            self.overload.crowded.push(channel);
            kernel.lanes.crowded(home, name, true);
        }
    }

    /// Tells the homes of channels that had much on its way, and have little now.
    pub(in crate::shard) fn tell_no_longer_crowded(&mut self, kernel: &mut Kernel) {
        let overloaded = self.overload.is_real(kernel.now.mono_ms());
        let mut crowded = std::mem::take(&mut self.overload.crowded);
        crowded.retain(|channel| {
            let still = self.table.is_crowded(*channel, overloaded, true);
            if !still {
                let name = self.table.name(*channel);
                let home = kernel.homes.partition_home(kernel.homes.partition(name));
                kernel
                    .lanes
                    .crowded(home, (kernel.homes.channel_hash(name), name), false);
            }
            still
        });
        self.overload.crowded = crowded;
    }
}
