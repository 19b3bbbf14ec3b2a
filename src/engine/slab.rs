//! The sockets of one engine, by slot. Owned by the engine, and it owns the descriptors.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::SocketKey;

/// Significant bits of a generation: what `user_data` of a ring has room for beside kind and slot.
pub(super) const GENERATION_MASK: u32 = 0x00ff_ffff;

/// No send in flight, or the end of the free list.
pub(super) const NONE: u32 = u32::MAX;

/// A receive is armed: in the kernel for the ring, wanted from epoll.
pub(super) const RECEIVING: u8 = 1;
/// Receiving goes on until the end of the socket.
pub(super) const STREAM: u8 = 2;
/// A send is in flight; `link` is its index.
pub(super) const SENDING: u8 = 4;
/// `close` was called; only `Sent` and `Closed` are still reported.
pub(super) const CLOSING: u8 = 8;
/// `Ended` was reported; nothing more is received.
pub(super) const ENDED: u8 = 16;
/// Ring only: receiving stopped for lack of buffers and is armed again in the next turn.
pub(super) const REARM: u8 = 32;
/// A bulk sender whose bytes wait: in buffers (ring), or in the kernel (epoll).
pub(super) const WAITING: u8 = 64;
/// Ring only: receiving is armed for one buffer at a time, as the last ones were filled.
pub(super) const BULK: u8 = 128;

/// One socket, 16 bytes: with a million of them this table is what the engine costs.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` when the slot is free, or closed and not yet reported.
    fd: Option<OwnedFd>,
    generation: u32,
    /// Index of the send in flight; of the next free slot when this one is free.
    link: u32,
    flags: u8,
    /// Epoll only: the events that the kernel was last asked to report.
    pub(super) watch: u8,
    /// Ring only: the queue that has its bytes, while `WAITING`.
    pub(super) bulk_queue: u16,
}

const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    /// True if any of `flags` is set.
    pub(super) fn any(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    pub(super) fn set(&mut self, flags: u8) {
        self.flags |= flags;
    }

    pub(super) fn clear(&mut self, flags: u8) {
        self.flags &= !flags;
    }

    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// The descriptor's number; -1, which the kernel answers with EBADF, once it is closed.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, OwnedFd::as_raw_fd)
    }

    pub(super) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fd.take()
    }

    /// Notes the send in flight.
    pub(super) fn begin_send(&mut self, send: u32) {
        self.link = send;
        self.flags |= SENDING;
    }

    /// The send in flight, which is none any more.
    pub(super) fn end_send(&mut self) -> u32 {
        self.flags &= !SENDING;
        std::mem::replace(&mut self.link, NONE)
    }

    pub(super) fn send(&self) -> u32 {
        self.link
    }
}

/// Slots with use counts. Freed slots are used again last in, first out, which keeps the table
/// dense.
#[derive(Debug)]
pub(super) struct Slab {
    entries: Vec<Entry>,
    free: u32,
    used: usize,
}

impl Slab {
    pub(super) fn new() -> Self {
        Slab {
            entries: Vec::new(),
            free: NONE,
            used: 0,
        }
    }

    /// Slots in use, those being closed included.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Takes a slot for a socket.
    pub(super) fn insert(&mut self, fd: OwnedFd) -> SocketKey {
        self.used += 1;
        if self.free == NONE {
            // 2^32 descriptors are more than the kernel has, so the index always fits.
            let slot = self.entries.len() as u32;
            self.entries.push(Entry {
                fd: Some(fd),
                generation: 0,
                link: NONE,
                flags: 0,
                watch: 0,
                bulk_queue: 0,
            });
            return SocketKey { slot, generation: 0 };
        }
        let slot = self.free;
        let entry = &mut self.entries[slot as usize];
        self.free = std::mem::replace(&mut entry.link, NONE);
        entry.fd = Some(fd);
        SocketKey {
            slot,
            generation: entry.generation,
        }
    }

    /// Frees a slot and changes its generation, so that keys of its last tenant are stale from here
    /// on.
    pub(super) fn remove(&mut self, slot: u32) -> Option<OwnedFd> {
        let entry = &mut self.entries[slot as usize];
        let fd = entry.fd.take();
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        entry.flags = 0;
        entry.watch = 0;
        entry.link = self.free;
        self.free = slot;
        self.used -= 1;
        fd
    }

    /// The socket of a key, unless it is gone or being closed: for calls of the owner.
    pub(super) fn open(&mut self, key: SocketKey) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        let open = entry.generation == key.generation && entry.fd.is_some() && !entry.any(CLOSING);
        open.then_some(entry)
    }

    /// The socket of a key, also while it is being closed: for completions.
    pub(super) fn get(&mut self, key: SocketKey) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        (entry.generation == key.generation && entry.fd.is_some()).then_some(entry)
    }

    /// As [`Slab::get`], to look only.
    pub(super) fn peek(&self, key: SocketKey) -> Option<&Entry> {
        let entry = self.entries.get(key.slot as usize)?;
        (entry.generation == key.generation && entry.fd.is_some()).then_some(entry)
    }

    /// All sockets that have a descriptor.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(|entry| entry.fd.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn keys_of_the_last_tenant_are_stale() {
        let mut slab = Slab::new();
        let first = slab.insert(fd());
        let other = slab.insert(fd());
        assert_ne!(first, other);
        slab.open(first).unwrap().set(STREAM);
        assert!(slab.remove(first.slot).is_some());
        assert!(slab.open(first).is_none() && slab.get(first).is_none());
        let second = slab.insert(fd());
        assert_eq!(second.slot, first.slot);
        assert_ne!(second.generation, first.generation);
        assert!(slab.open(first).is_none() && slab.peek(first).is_none());
        assert!(!slab.open(second).unwrap().any(STREAM));
        assert_eq!(slab.len(), 2);
    }

    #[test]
    fn generations_wrap_at_24_bits() {
        let mut slab = Slab::new();
        let key = slab.insert(fd());
        slab.entries[key.slot as usize].generation = GENERATION_MASK;
        slab.remove(key.slot);
        assert_eq!(slab.insert(fd()).generation, 0);
    }

    #[test]
    fn closed_and_unreported_slots_stay_taken() {
        let mut slab = Slab::new();
        let key = slab.insert(fd());
        slab.open(key).unwrap().set(CLOSING);
        assert!(slab.open(key).is_none());
        assert!(slab.get(key).unwrap().take_fd().is_some());
        assert!(slab.get(key).is_none());
        assert_ne!(slab.insert(fd()).slot, key.slot);
        assert!(slab.remove(key.slot).is_none());
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn freed_slots_are_used_before_new_ones() {
        let mut slab = Slab::new();
        let keys: Vec<_> = (0..5).map(|_| slab.insert(fd())).collect();
        slab.remove(keys[1].slot);
        slab.remove(keys[3].slot);
        assert_eq!(slab.insert(fd()).slot, keys[3].slot);
        assert_eq!(slab.insert(fd()).slot, keys[1].slot);
        assert_eq!(slab.insert(fd()).slot, 5);
    }
}
