//! Receive buffers that the kernel picks from. One mapping, owned by the shard's engine: the ring
//! of free buffers first, then the buffers.
//!
//! Invariant *lent*: a buffer is either free or lent, never both. A free one is listed between the
//! kernel's head and our tail. A lent one is named by a completion and not given back yet. Only
//! lent buffers are read or written here.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Buffers per shard. Between two turns a shard can receive `BUFFERS * BUFFER_BYTES` = 2 MiB; more
/// bytes wait in the kernel. 512 was never the limit with 5,000 echoing sockets. A power of two, as
/// the kernel requires.
pub(super) const BUFFERS: u16 = 512;

/// Bytes per buffer: a page. Nearly all client frames of a messaging gateway fit; longer ones take
/// several.
pub(super) const BUFFER_BYTES: usize = 4096;

/// The kernel reads the free list from page-aligned memory; this is its size, a whole number of
/// pages.
const LIST_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();

const MAP_BYTES: usize = LIST_BYTES + BUFFERS as usize * BUFFER_BYTES;

const _: () = assert!(BUFFERS.is_power_of_two() && LIST_BYTES.is_multiple_of(4096));

/// The pool. Its memory costs nothing until it is used.
#[derive(Debug)]
pub(super) struct Buffers {
    map: NonNull<u8>,
    /// Where the next free buffer is listed.
    tail: u16,
    /// The tail that the kernel knows.
    published: u16,
    leaked: bool,
}

impl Buffers {
    /// Maps the memory and lists every buffer as free; nothing is registered yet.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice (every test of the
        // ring makes one).
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAP_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut buffers = Buffers {
            map,
            tail: 0,
            published: 0,
            leaked: false,
        };
        for buffer in 0..BUFFERS {
            buffers.give(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Address of the free list, for the kernel.
    pub(super) fn list_addr(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    fn data(&self, buffer: u16) -> *mut u8 {
        let offset = LIST_BYTES + usize::from(buffer % BUFFERS) * BUFFER_BYTES;
        // SAFETY: the modulo keeps the offset inside the mapping (`receives_a_stream` would break).
        unsafe { self.map.as_ptr().add(offset) }
    }

    /// The first `len` bytes of a lent buffer.
    pub(super) fn lent(&mut self, buffer: u16, len: usize) -> &mut [u8] {
        let len = len.min(BUFFER_BYTES);
        // SAFETY: *lent* means that the kernel does not write here until `give`. `give` needs `&mut
        // self` as well, so the slice is ours alone while it lives. `survives_lack_of_buffers`
        // compares every byte and would break.
        unsafe { std::slice::from_raw_parts_mut(self.data(buffer), len) }
    }

    /// Lists a lent buffer as free; the kernel sees it after [`Buffers::publish`].
    pub(super) fn give(&mut self, buffer: u16) {
        let index = usize::from(self.tail % BUFFERS);
        let data = self.data(buffer);
        // SAFETY: the index is inside the list, and *lent* means that at most `BUFFERS` are listed,
        // so the kernel is done with this entry. The first entry's last two bytes are the tail,
        // which the setters leave alone. `survives_lack_of_buffers` would break.
        let entry = unsafe { &mut *self.map.as_ptr().cast::<BufRingEntry>().add(index) };
        entry.set_addr(data as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer % BUFFERS);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the kernel about all buffers given back, with one store.
    pub(super) fn publish(&mut self) {
        if self.published == self.tail {
            return;
        }
        self.published = self.tail;
        // SAFETY: the map begins with the list, whose entries were all written by `new`. The tail
        // is two aligned bytes in it that kernel and user share as an atomic
        // (`survives_lack_of_buffers` would break).
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.map.as_ptr().cast::<BufRingEntry>());
            &*tail.cast::<AtomicU16>()
        };
        // Release: the kernel loads it with acquire and then reads the entries.
        tail.store(self.tail, Ordering::Release);
    }

    /// Keeps the memory mapped for good: for the end of an engine whose kernel side did not end.
    pub(super) fn leak(&mut self) {
        self.leaked = true;
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: the mapping is ours; the engine reaps every operation before it drops this, or
        // calls `leak` (`drops_with_operations_in_flight` would break).
        unsafe { libc::munmap(self.map.as_ptr().cast(), MAP_BYTES) };
    }
}
