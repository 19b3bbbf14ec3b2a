//! The engine of choice: one io_uring per shard, beside that of the executor.
//!
//! Owns the listener, the sockets, the buffers they receive into and the bytes they send. Receiving
//! is armed once and completes many times; accepts and sends are submissions, so a turn with any
//! number of them is one system call.
//!
//! Invariants:
//! - *held*: a slot with an operation in flight (`RECEIVING`, `SENDING`) keeps its descriptor and
//!   generation until the last completion of it. `close` does not end operations in flight,
//!   `shutdown` does. Hence the two steps of closing.
//! - *lent*: see [`buffers`].
//! - *in line*: while a bulk sender's bytes wait (`WAITING`), all further events of its socket
//!   queue behind them. Its receive is armed again, for one buffer at a time, when the last of them
//!   was looked at.
//! - *quiet*: between `receive_once` completions nothing is armed, so that a socket can leave
//!   without cancelling.

mod buffers;
mod bulk;
mod probe;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use buffers::{BUFFER_BYTES, BUFFERS, Buffers};
use bulk::{Bulk, Next, Part};
use queue::{Completion, Queue};

use super::sends::Sends;
use super::slab::{BULK, CLOSING, ENDED, GENERATION_MASK, REARM, RECEIVING, SENDING, STREAM, Slab, WAITING};
use super::{Engine, EngineStats, Event, Payload, SendStatus, SocketKey, SystemEngine, Waker, sys};

/// Completions handled per turn; the remaining ones stay in the queue for the next turn. At about a
/// microsecond each, they leave the rest of the shard its time after a millisecond or two.
const EVENTS_MAX: u32 = 1024;

/// Accepts in flight, and so the most accepted connections that the owner has not taken yet.
/// Further connections wait in the listener's queue, which is bounded.
///
/// One accept that completes many times takes all connections that the kernel has, however far
/// behind the owner is. A loop of connects and resets then filled the completion queue with 16,384
/// descriptors.
///
/// Each accept costs a turn some tens of microseconds, most of them the kernel's, and under a flood
/// as much again to close another connection. With 64 accepts, turns of a flood took half a
/// millisecond. A turn has a cost of its own, so with 8 a connect costs one or two percent more
/// than with 64.
const ACCEPTS_MAX: usize = 8;

/// Buffers of one socket that may wait before its receive, which would go on to fill more of them,
/// is cancelled. Messages of up to 16 KiB cost no cancelling. A flooding socket takes once the 32
/// buffers that one round of the kernel gives it.
const WAITING_MAX: usize = 4;

/// Buffers of all bulk senders that may wait. Further buffers are delivered with all other events,
/// as a lack of buffers would stop receiving for all.
const BULK_MAX: usize = BUFFERS as usize / 2;

/// How long dropping an engine waits for the kernel to let go. Cancelled operations complete within
/// microseconds.
const DROP_WAIT: Duration = Duration::from_secs(2);

// Kinds of operations: the top 8 bits of `user_data`. The generation's 24 bits and the slot's 32
// follow.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const WAKE: u64 = 4;
const CANCEL: u64 = 5;

fn tag(kind: u64, key: SocketKey) -> u64 {
    kind << 56 | u64::from(key.generation & GENERATION_MASK) << 32 | u64::from(key.slot)
}

fn kind_of(user_data: u64) -> u64 {
    user_data >> 56
}

fn key_of(user_data: u64) -> SocketKey {
    SocketKey {
        slot: user_data as u32,
        generation: (user_data >> 32) as u32 & GENERATION_MASK,
    }
}

/// Why receiving ended; `None` if the peer closed in order.
fn end_of(result: i32) -> Option<io::Error> {
    match result {
        0 => None,
        // Bytes without a buffer: the kernel does not do that.
        1.. => Some(io::ErrorKind::InvalidData.into()),
        error => Some(io::Error::from_raw_os_error(-error)),
    }
}

/// The meaning of a completion; an event that does not borrow the engine yet.
enum Found {
    Received { key: SocketKey, buffer: u16, len: usize },
    Other(Event<'static>),
}

/// Sockets of one shard on an io_uring of its own. Made, used and dropped by one thread.
pub struct RingEngine {
    // Dropped first: nothing below may be unmapped or freed while the ring is open.
    queue: Queue,
    buffers: Buffers,
    sends: Sends,
    slab: Slab,
    listener: OwnedFd,
    waker: Waker,
    /// The buffer that the last event showed.
    shown: Option<u16>,
    /// Waiting bytes of bulk senders.
    bulk: Bulk,
    /// Sockets to arm again once buffers were given back.
    rearm: Vec<SocketKey>,
    /// Closed and not yet reported.
    closed: VecDeque<SocketKey>,
    /// Completions that this turn may still handle.
    budget: u32,
    /// Operations in the kernel that use memory or descriptors of ours.
    in_flight: usize,
    /// Accepts in flight; none is made while paused.
    accepts: usize,
    accept_due: bool,
    accept_paused: bool,
    accept_held: bool,
    watch_due: bool,
    dropping: bool,
    stats: EngineStats,
}

impl RingEngine {
    fn give_back_shown(&mut self) {
        if let Some(buffer) = self.shown.take() {
            self.buffers.give(buffer);
        }
    }

    /// Arms a receive of the kind that the socket is in.
    fn arm(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.open(key) else {
            return;
        };
        entry.clear(REARM);
        entry.set(RECEIVING);
        self.in_flight += 1;
        let fd = entry.raw_fd();
        if entry.any(STREAM) && !entry.any(BULK) {
            self.queue.receive_stream(fd, tag(RECEIVE, key));
        } else {
            self.queue.receive_once(fd, tag(RECEIVE, key));
        }
    }

    /// Arms again what stopped, now that buffers were given back.
    fn arm_due(&mut self) {
        if self.accept_due && !self.accept_held {
            self.accept_due = false;
            while self.accepts < ACCEPTS_MAX {
                self.accepts += 1;
                self.in_flight += 1;
                self.queue.accept(self.listener.as_raw_fd(), ACCEPT << 56);
            }
        }
        if self.watch_due {
            self.watch_due = false;
            self.in_flight += 1;
            self.queue.watch(self.waker.wait_fd(), WAKE << 56);
        }
        // Taken and put back, so that its memory is used again.
        let mut rearm = std::mem::take(&mut self.rearm);
        for key in rearm.drain(..) {
            if self.slab.open(key).is_some_and(|entry| entry.any(REARM)) {
                self.arm(key);
            }
        }
        self.rearm = rearm;
    }

    fn next_found(&mut self) -> Option<Found> {
        if self.bulk.buffers() > BULK_MAX
            && let Some(found) = self.next_of_bulk()
        {
            return Some(found);
        }
        if let Some(key) = self.closed.pop_front() {
            self.slab.remove(key.slot);
            return Some(Found::Other(Event::Closed { key }));
        }
        while self.budget > 0 {
            let Some(completion) = self.queue.pop() else {
                break;
            };
            self.budget -= 1;
            if let Some(found) = self.complete(completion) {
                return Some(found);
            }
            if let Some(key) = self.closed.pop_front() {
                self.slab.remove(key.slot);
                return Some(Found::Other(Event::Closed { key }));
            }
        }
        self.buffers.publish();
        None
    }

    fn next_of_bulk(&mut self) -> Option<Found> {
        while let Some((key, next)) = self.bulk.pop() {
            let entry = self.slab.open(key);
            debug_assert!(
                entry.is_some() || matches!(next, Next::End(_)),
                "a queue of a closed socket"
            );
            let Some(entry) = entry else {
                continue;
            };
            let part = match next {
                Next::Bytes(part) => part,
                Next::Last { part, ended } => {
                    entry.clear(WAITING);
                    if !ended && !entry.any(RECEIVING | REARM | ENDED) {
                        entry.set(REARM);
                        self.rearm.push(key);
                    }
                    part
                }
                Next::End(_) if entry.any(ENDED) => continue,
                Next::End(result) => {
                    entry.set(ENDED);
                    let error = end_of(result);
                    return Some(Found::Other(Event::Ended { key, error }));
                }
            };
            if entry.any(ENDED) {
                // Nothing is received after that.
                self.buffers.give(part.buffer);
                continue;
            }
            let Part { buffer, len } = part;
            return Some(Found::Received { key, buffer, len });
        }
        None
    }

    /// Shows what was found.
    fn show(&mut self, found: Found) -> Event<'_> {
        match found {
            Found::Other(event) => event,
            Found::Received { key, buffer, len } => {
                self.shown = Some(buffer);
                let bytes = self.buffers.lent(buffer, len);
                Event::Received { key, bytes }
            }
        }
    }

    fn complete(&mut self, completion: Completion) -> Option<Found> {
        let kind = kind_of(completion.user_data);
        if !completion.more() && kind != CANCEL {
            self.in_flight -= 1;
        }
        match kind {
            ACCEPT => self.accepted(completion).map(Found::Other),
            RECEIVE => self.received(completion),
            SEND => self.sent(completion).map(Found::Other),
            WAKE => {
                self.watch_due |= !completion.more();
                None
            }
            _ => None,
        }
    }

    fn accepted(&mut self, completion: Completion) -> Option<Event<'static>> {
        self.accepts -= 1;
        let socket = (completion.result >= 0).then(|| {
            // SAFETY: the kernel made this descriptor for us and reports it once;
            // `leaks_no_descriptor` would break.
            unsafe { OwnedFd::from_raw_fd(completion.result) }
        });
        if self.dropping {
            return None;
        }
        let error = match (socket, -completion.result) {
            (Some(socket), _) => {
                self.accept_due |= !self.accept_paused;
                let key = self.slab.insert(socket);
                self.arm(key);
                return Some(Event::Accepted { key });
            }
            // About one connection that went away again, or cancelled and wanted again meanwhile.
            (None, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                self.accept_due |= !self.accept_paused;
                return None;
            }
            // Said already.
            (None, _) if self.accept_paused => return None,
            (None, error) => io::Error::from_raw_os_error(error),
        };
        self.accept_paused = true;
        self.accept_due = false;
        // The other accepts would fail alike, and keep today's limit of descriptors while they are
        // in flight.
        self.queue.cancel(ACCEPT << 56, CANCEL << 56);
        Some(Event::AcceptPaused { error })
    }

    fn received(&mut self, completion: Completion) -> Option<Found> {
        let key = key_of(completion.user_data);
        let more = completion.more();
        let entry = self.slab.get(key);
        debug_assert!(entry.is_some(), "a receive outlived its slot {key:?}");
        let (mut closing, mut ended) = (false, true);
        if let Some(entry) = entry {
            if !more {
                entry.clear(RECEIVING);
            }
            (closing, ended) = (entry.any(CLOSING), entry.any(ENDED));
        }
        let result = match (completion.result, completion.buffer()) {
            (1.., Some(buffer)) if !closing && !ended => {
                let len = completion.result as usize;
                return self.received_bytes(key, Part { buffer, len }, more);
            }
            (result, buffer) => {
                // Swallowed, or the end of the socket; either way the buffer is lent.
                if let Some(buffer) = buffer {
                    self.buffers.give(buffer);
                }
                result
            }
        };
        if closing {
            self.finish_close(key);
        } else if !ended {
            return self.receive_stopped(key, result, more).map(Found::Other);
        }
        None
    }

    /// A receive brought no bytes: the socket has ended, or shall be armed again.
    fn receive_stopped(&mut self, key: SocketKey, result: i32, more: bool) -> Option<Event<'static>> {
        let entry = self.slab.get(key)?;
        // `ECANCELED` is the end of a bulk sender's receive.
        if let libc::ENOBUFS | libc::EINTR | libc::EAGAIN | libc::ECANCELED = -result {
            self.stats.buffers_exhausted += u64::from(-result == libc::ENOBUFS);
            if !more && !entry.any(WAITING) {
                entry.set(REARM);
                self.rearm.push(key);
            }
            return None;
        }
        if entry.any(WAITING) {
            self.bulk.end(entry, result);
            return None;
        }
        entry.set(ENDED);
        let error = end_of(result);
        Some(Event::Ended { key, error })
    }

    /// Bytes came: they are delivered now, or, from a bulk sender, in its turn.
    fn received_bytes(&mut self, key: SocketKey, part: Part, more: bool) -> Option<Found> {
        let entry = self.slab.get(key)?;
        let stream = entry.any(STREAM);
        if stream && (entry.any(WAITING) || part.len == BUFFER_BYTES) {
            if self.bulk.push(key, entry, part) > WAITING_MAX && more && !entry.any(BULK) {
                entry.set(BULK);
                self.queue.cancel(tag(RECEIVE, key), CANCEL << 56);
            }
            return None;
        }
        if stream && !more {
            // The kernel has no more, so the next may be a streaming receive.
            entry.clear(BULK);
            entry.set(REARM);
            self.rearm.push(key);
        }
        let Part { buffer, len } = part;
        Some(Found::Received { key, buffer, len })
    }

    fn sent(&mut self, completion: Completion) -> Option<Event<'static>> {
        let key = key_of(completion.user_data);
        let Some(entry) = self.slab.get(key) else {
            debug_assert!(false, "a send outlived its slot {key:?}");
            return None;
        };
        let (index, closing) = (entry.send(), entry.any(CLOSING));
        let error = match completion.result {
            // Nothing, of a payload that is never empty: no progress, so never again.
            0 => Some(io::ErrorKind::WriteZero.into()),
            1.. if self.sends.advance(index, completion.result as usize) => None,
            1.. => Some(io::ErrorKind::Interrupted.into()),
            error => Some(io::Error::from_raw_os_error(-error)),
        };
        if let Some(error) = &error
            && matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
            && !closing
        {
            // The rest is sent now. If the socket broke after a part, that send reports it.
            self.stats.short_sends += 1;
            self.submit_send(key, index);
            return None;
        }
        entry.end_send();
        let mut ended = entry.any(ENDED);
        if error.is_some() && !closing && !ended {
            if entry.any(WAITING) {
                // The bytes that it sent before it broke come first.
                self.bulk.end(entry, completion.result);
                ended = true;
            } else {
                entry.set(ENDED);
            }
        }
        let payload = self.sends.finish(index);
        if closing {
            self.finish_close(key);
        }
        match (error, payload) {
            (None, Some(payload)) => Some(Event::Sent { key, payload }),
            // `Ended` comes at most once, or later, and an owner that waits for this send to end
            // must be notified.
            (Some(_), Some(payload)) if ended && !closing => Some(Event::Sent { key, payload }),
            (Some(error), _) if !closing => Some(Event::Ended {
                key,
                error: Some(error),
            }),
            _ => None,
        }
    }

    fn submit_send(&mut self, key: SocketKey, index: u32) {
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        self.in_flight += 1;
        let (fd, bytes) = (entry.raw_fd(), self.sends.rest(index));
        // SAFETY: `sends` keeps the payload until `finish`, which only the completion calls, and
        // leaks it if the ring ends without one; `drops_with_operations_in_flight` and
        // `sends_to_a_slow_peer` would break.
        unsafe { self.queue.send(fd, bytes, tag(SEND, key)) };
    }

    /// Cancels the operations in flight on a socket, by name. To cancel by descriptor, the kernel
    /// would search everything in flight on the ring.
    fn cancel(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        for (kind, flag) in [(RECEIVE, RECEIVING), (SEND, SENDING)] {
            if entry.any(flag) {
                self.queue.cancel(tag(kind, key), CANCEL << 56);
            }
        }
    }

    /// Second step of closing: once nothing is in flight the descriptor goes, and `Closed` is due.
    fn finish_close(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        if entry.any(RECEIVING | SENDING) {
            return;
        }
        drop(entry.take_fd());
        self.stats.syscalls += 1;
        self.closed.push_back(key);
    }
}

impl Engine for RingEngine {
    fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.give_back_shown();
        self.buffers.publish();
        self.arm_due();
        self.budget = EVENTS_MAX;
        let idle = self.closed.is_empty() && self.bulk.is_empty() && !self.queue.has_completions();
        let entered = self.queue.enter(wait.filter(|_| idle));
        if wait.is_some() {
            self.waker.set_running();
        }
        entered
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        self.give_back_shown();
        let found = self.next_found()?;
        Some(self.show(found))
    }

    fn submit(&mut self) -> io::Result<()> {
        self.queue.submit()
    }

    fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    fn next_bulk(&mut self) -> Option<Event<'_>> {
        self.give_back_shown();
        let found = self.next_of_bulk()?;
        Some(self.show(found))
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<SocketKey> {
        Ok(self.slab.insert(socket))
    }

    fn detach(&mut self, key: SocketKey) -> Option<OwnedFd> {
        let entry = self.slab.open(key)?;
        if entry.any(RECEIVING | REARM | SENDING | WAITING) {
            return None;
        }
        self.slab.remove(key.slot)
    }

    fn receive_once(&mut self, key: SocketKey) {
        if let Some(entry) = self.slab.open(key)
            && !entry.any(RECEIVING | REARM | ENDED | WAITING)
        {
            entry.clear(STREAM);
            self.arm(key);
        }
    }

    fn receive_stream(&mut self, key: SocketKey) {
        if let Some(entry) = self.slab.open(key)
            && !entry.any(ENDED)
        {
            // A receive_once still in flight goes on as a stream after its completion.
            entry.set(STREAM);
            if !entry.any(RECEIVING | REARM | WAITING) {
                self.arm(key);
            }
        }
    }

    fn send(&mut self, key: SocketKey, payload: Payload) -> SendStatus {
        let Some(entry) = self.slab.open(key) else {
            return SendStatus::Done(payload);
        };
        // Not only in debug builds: the first payload would be freed under the kernel's hands.
        assert!(!entry.any(SENDING), "two sends at once on {key:?}");
        debug_assert!(!payload.as_slice().is_empty(), "an empty send on {key:?}");
        if payload.as_slice().is_empty() {
            return SendStatus::Done(payload);
        }
        let index = self.sends.begin(payload, 0);
        entry.begin_send(index);
        self.submit_send(key, index);
        SendStatus::InFlight
    }

    fn finish(&mut self, key: SocketKey) {
        if let Some(entry) = self.slab.open(key) {
            debug_assert!(!entry.any(SENDING), "finish before the send ended on {key:?}");
            if let Some(fd) = entry.fd() {
                // Fails only if the socket is broken already, which the next receive reports.
                let _ = sys::shutdown(fd, Shutdown::Write);
                self.stats.syscalls += 1;
            }
        }
    }

    fn close(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.open(key) else {
            return;
        };
        entry.set(CLOSING);
        entry.clear(REARM);
        self.bulk.forget(entry, |buffer| self.buffers.give(buffer));
        if entry.any(RECEIVING | SENDING)
            && let Some(fd) = entry.fd()
        {
            self.stats.syscalls += 1;
            if sys::shutdown(fd, Shutdown::Both).is_err() {
                // The socket is not connected any more, so operations in flight should be ending;
                // this makes sure.
                self.cancel(key);
            }
        }
        self.finish_close(key);
    }

    fn reset(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.open(key) else {
            return;
        };
        entry.set(CLOSING);
        entry.clear(REARM);
        self.bulk.forget(entry, |buffer| self.buffers.give(buffer));
        if let Some(fd) = entry.fd() {
            // Fails on no socket of TCP; a FIN would do then.
            let _ = sys::reset_on_close(fd);
            self.stats.syscalls += 1;
        }
        self.cancel(key);
        self.finish_close(key);
    }

    fn peer_addr(&self, key: SocketKey) -> Option<SocketAddr> {
        sys::peer_addr(self.slab.peek(key)?.fd()?)
    }

    fn unacknowledged(&self, key: SocketKey) -> Option<usize> {
        sys::unacknowledged(self.slab.peek(key)?.fd()?)
    }

    fn resume_accept(&mut self) {
        self.accept_due |= std::mem::take(&mut self.accept_paused);
    }

    fn hold_accepts(&mut self, hold: bool) {
        self.accept_held = hold;
    }

    fn has_work(&mut self) -> bool {
        (self.accept_due && !self.accept_held)
            || self.watch_due
            || !self.rearm.is_empty()
            || !self.closed.is_empty()
            || !self.bulk.is_empty()
            || self.queue.has_work()
    }

    fn sockets(&self) -> usize {
        self.slab.len()
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            syscalls: self.stats.syscalls + self.queue.syscalls(),
            ..self.stats
        }
    }
}

impl SystemEngine for RingEngine {
    const NAME: &'static str = "ring";

    fn new(listener: OwnedFd) -> io::Result<Self> {
        let queue = Queue::new()?;
        let buffers = Buffers::new()?;
        // SAFETY: `buffers` lives beside `queue`, is dropped after it, and leaked if something is
        // still in flight then; `drops_with_operations_in_flight` would break.
        unsafe { queue.register_buffers(&buffers) }?;
        let waker = Waker::with_park_fd()?;
        let mut engine = RingEngine {
            queue,
            buffers,
            sends: Sends::default(),
            slab: Slab::new(),
            listener,
            waker,
            shown: None,
            bulk: Bulk::default(),
            rearm: Vec::new(),
            closed: VecDeque::new(),
            budget: 0,
            in_flight: 0,
            accepts: 0,
            accept_due: false,
            accept_paused: false,
            accept_held: false,
            watch_due: false,
            dropping: false,
            stats: EngineStats::default(),
        };
        engine.queue.register_eventfd(engine.waker.park_fd())?;
        engine.probe()?;
        engine.accept_due = true;
        engine.watch_due = true;
        Ok(engine)
    }

    fn prepare_park(&mut self) -> bool {
        self.queue.set_notify(true);
        // The kernel first stores that there is work, then looks whether to notify; here the order
        // is reversed.
        fence(Ordering::SeqCst);
        if self.has_work() {
            self.queue.set_notify(false);
            return false;
        }
        true
    }

    fn unpark(&mut self) {
        self.queue.set_notify(false);
        self.waker.drain_park_fd();
        self.stats.syscalls += 1;
    }

    fn park_fd(&self) -> RawFd {
        self.waker.park_fd()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for RingEngine {
    fn drop(&mut self) {
        self.dropping = true;
        self.give_back_shown();
        for entry in self.slab.iter_mut() {
            entry.set(CLOSING);
            if entry.any(RECEIVING | SENDING)
                && let Some(fd) = entry.fd()
            {
                let _ = sys::shutdown(fd, Shutdown::Both);
            }
        }
        self.queue.cancel_all(CANCEL << 56);
        let deadline = Instant::now() + DROP_WAIT;
        while self.in_flight > 0 && Instant::now() < deadline {
            self.buffers.publish();
            if self.queue.enter(Some(DROP_WAIT / 20)).is_err() {
                break;
            }
            while let Some(completion) = self.queue.pop() {
                self.complete(completion);
            }
        }
        if self.in_flight > 0 {
            log::error!(
                "ring engine: {} operations did not end; their memory is not freed",
                self.in_flight
            );
            // The kernel may still write to the one and read the other.
            std::mem::forget(std::mem::take(&mut self.sends));
            self.buffers.leak();
        }
    }
}
