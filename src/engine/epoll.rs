//! The engine for kernels that refuse io_uring: one level-triggered epoll set per shard.
//!
//! Owns the listener, the sockets, one receive buffer for all of them, and the bytes that did not
//! fit at once.
//!
//! Invariant *quiet*: epoll reports errors and hang-ups whether asked or not, again and again. So a
//! socket is in the set only while something is wanted of it, or with `EPOLLONESHOT`, which
//! silences it altogether once it has fired. Only a socket that receives a stream is watched
//! without `EPOLLONESHOT`; it leaves the set when it ends.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::sends::Sends;
use super::slab::{CLOSING, ENDED, Entry, RECEIVING, SENDING, STREAM, Slab, WAITING};
use super::{Engine, EngineStats, Event, Payload, SendStatus, SocketKey, SystemEngine, Waker, sys};

/// Sockets that one turn looks at; the kernel keeps the others queued, so none starves.
const EVENTS_MAX: usize = 1024;

/// Connections accepted per turn. Each costs some tens of microseconds, and under a flood as much
/// again to close another connection.
const ACCEPTS_MAX: usize = 8;

/// The most bytes that one receive of one socket takes. A socket that fills them is a bulk sender.
/// With 64 KiB, a default TCP window, other sockets waited for 10,000 tiny fragments at once, half
/// a millisecond.
const BUFFER_BYTES: usize = 16 * 1024;

/// Bulk senders that one call looks at to find one with bytes.
const BULK_LOOKS: usize = 32;

// Values of `epoll_data` beside keys. A key's upper half is its generation, which has 24 bits.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

// The events that the kernel was last asked to report of a socket (`Entry::watch`).
const WATCH_IN: u8 = 1;
const WATCH_OUT: u8 = 2;
const WATCH_ONCE: u8 = 4;
const WATCH_MEMBER: u8 = 8;

const BROKEN: u32 = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
const READABLE: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32 | BROKEN;
const WRITABLE: u32 = libc::EPOLLOUT as u32 | BROKEN;

fn data_of(key: SocketKey) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.slot)
}

fn key_of(data: u64) -> SocketKey {
    SocketKey {
        slot: data as u32,
        generation: (data >> 32) as u32,
    }
}

/// Events that the owner's own calls caused; reported by the next `next_event`.
enum Local {
    Closed(SocketKey),
    Ended(SocketKey, io::Error),
}

/// An event that does not borrow the engine yet.
enum Found {
    Received { key: SocketKey, len: usize },
    Other(Event<'static>),
}

/// Sockets of one shard in an epoll set. Made, used and dropped by one thread.
pub struct EpollEngine {
    epoll: Epoll,
    listener: OwnedFd,
    slab: Slab,
    sends: Sends,
    buffer: Box<[u8]>,
    /// The events that the kernel reported this turn. Those from `at` on are not handled yet.
    events: Vec<libc::epoll_event>,
    at: usize,
    /// The event at `at` was already tried for sending.
    send_handled: bool,
    local: VecDeque<Local>,
    /// Bulk senders, round-robin. The kernel goes on to report them, to no effect.
    bulk: VecDeque<SocketKey>,
    /// Connections that this turn may still accept.
    accepts_left: usize,
    accept_paused: bool,
    /// Accepts are held back. The kernel goes on to report the listener, so a wait would return at
    /// once: an owner that holds accepts has work.
    accept_held: bool,
    waker: Waker,
    stats: EngineStats,
}

/// The set itself.
struct Epoll {
    fd: OwnedFd,
    /// The kernel has no `epoll_pwait2` (before 5.11): waits are whole milliseconds.
    coarse: bool,
    syscalls: u64,
}

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned (every test makes one).
        let fd = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Epoll {
            // SAFETY: `fd` was just made and has no other owner; `leaks_no_descriptor` would break.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            coarse: false,
            syscalls: 0,
        })
    }

    fn control(&mut self, op: libc::c_int, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        self.syscalls += 1;
        // SAFETY: the event is alive for the call and the kernel copies it (`receives_a_stream`
        // would break).
        sys::check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, &raw mut event) }).map(drop)
    }

    /// Fills the spare room of `events`.
    fn wait(&mut self, events: &mut Vec<libc::epoll_event>, wait: Option<Duration>) -> io::Result<()> {
        events.clear();
        self.syscalls += 1;
        let count = match wait.filter(|wait| !wait.is_zero()) {
            None => self.wait_coarse(events, 0),
            Some(wait) if self.coarse => {
                // Rounded up: a wait of 0 would spin.
                let millis = wait.as_nanos().div_ceil(1_000_000);
                self.wait_coarse(events, millis.min(i32::MAX as u128) as libc::c_int)
            }
            Some(wait) => self.wait_fine(events, wait),
        };
        match count {
            Ok(count) => {
                // SAFETY: the kernel wrote `count` elements, at most the capacity
                // (`receives_a_stream` would break).
                unsafe { events.set_len(count) };
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && !self.coarse => {
                self.coarse = true;
                self.wait(events, wait)
            }
            Err(error) => Err(error),
        }
    }

    fn wait_coarse(&self, events: &mut Vec<libc::epoll_event>, millis: libc::c_int) -> io::Result<usize> {
        let room = events.capacity().min(EVENTS_MAX) as libc::c_int;
        // SAFETY: there is room for `room` elements at the pointer (`receives_a_stream` would
        // break).
        let count = sys::check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), room, millis) })?;
        Ok(count as usize)
    }

    fn wait_fine(&self, events: &mut Vec<libc::epoll_event>, wait: Duration) -> io::Result<usize> {
        let room = events.capacity().min(EVENTS_MAX) as libc::c_int;
        let timeout = libc::timespec {
            tv_sec: wait.as_secs().min(i64::MAX as u64) as libc::time_t,
            tv_nsec: libc::c_long::from(wait.subsec_nanos() as i32),
        };
        // SAFETY: room as above; the timeout is alive for the call; no signal mask
        // (`wakes_while_waiting` would break). By number, as the C library may be older than the
        // kernel.
        let count = sys::check(unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                events.as_mut_ptr(),
                room,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        } as libc::c_int)?;
        Ok(count as usize)
    }

    /// Registers the events that are wanted of a socket, if the kernel does not have them already.
    fn watch(&mut self, key: SocketKey, entry: &mut Entry) -> io::Result<()> {
        let wants_in = entry.any(RECEIVING) && !entry.any(ENDED);
        let mut want = 0;
        let mut events = 0;
        if wants_in {
            want |= WATCH_IN;
            events |= (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
        }
        if entry.any(SENDING) {
            want |= WATCH_OUT;
            events |= libc::EPOLLOUT as u32;
        }
        if !(wants_in && entry.any(STREAM)) {
            want |= WATCH_ONCE;
            events |= libc::EPOLLONESHOT as u32;
        }
        let known = entry.watch;
        let silent = known & (WATCH_IN | WATCH_OUT) == 0;
        let op = if want & (WATCH_IN | WATCH_OUT) == 0 {
            if silent {
                return Ok(());
            }
            // Without this the kernel would go on to report a hang-up that the owner does not take.
            want = 0;
            libc::EPOLL_CTL_DEL
        } else if known == want | WATCH_MEMBER {
            return Ok(());
        } else {
            want |= WATCH_MEMBER;
            if known & WATCH_MEMBER == 0 {
                libc::EPOLL_CTL_ADD
            } else {
                libc::EPOLL_CTL_MOD
            }
        };
        self.control(op, entry.raw_fd(), events, data_of(key))?;
        entry.watch = want;
        Ok(())
    }
}

impl EpollEngine {
    /// As [`Epoll::watch`]; a refusal of the kernel (out of memory) ends the socket.
    fn watch(&mut self, key: SocketKey) {
        let Some(entry) = self.slab.open(key) else {
            return;
        };
        if let Err(error) = self.epoll.watch(key, entry)
            && !entry.any(ENDED)
        {
            entry.set(ENDED);
            self.local.push_back(Local::Ended(key, error));
        }
    }

    fn next_found(&mut self) -> Option<Found> {
        loop {
            if let Some(local) = self.local.pop_front() {
                return Some(Found::Other(match local {
                    Local::Closed(key) => {
                        self.slab.remove(key.slot);
                        Event::Closed { key }
                    }
                    Local::Ended(key, error) if self.slab.open(key).is_some() => Event::Ended {
                        key,
                        error: Some(error),
                    },
                    // Closed meanwhile.
                    Local::Ended(..) => continue,
                }));
            }
            if self.accepts_left > 0 {
                if let Some(event) = self.accept() {
                    return Some(Found::Other(event));
                }
                continue;
            }
            let libc::epoll_event { events, u64: data } = *self.events.get(self.at)?;
            match data {
                // Being there was all.
                WAKE => self.at += 1,
                LISTENER => {
                    self.at += 1;
                    if !self.accept_paused && !self.accept_held {
                        self.accepts_left = ACCEPTS_MAX;
                    }
                }
                _ => {
                    if let Some(found) = self.ready(key_of(data), events) {
                        return Some(found);
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> Option<Event<'static>> {
        self.accepts_left -= 1;
        self.stats.syscalls += 1;
        match sys::accept(&self.listener) {
            Ok(socket) => {
                let key = self.slab.insert(socket);
                self.receive_once(key);
                Some(Event::Accepted { key })
            }
            Err(error) => match error.raw_os_error() {
                // About one connection that went away again.
                Some(libc::ECONNABORTED | libc::EINTR) => None,
                Some(libc::EAGAIN) => {
                    self.accepts_left = 0;
                    None
                }
                _ => {
                    self.accepts_left = 0;
                    self.accept_paused = true;
                    let fd = self.listener.as_raw_fd();
                    // Watched on, the listener would report itself without end.
                    let _ = self.epoll.control(libc::EPOLL_CTL_DEL, fd, 0, LISTENER);
                    Some(Event::AcceptPaused { error })
                }
            },
        }
    }

    /// One step for the event at `at`: sending first. Receiving comes with the call after a `Sent`,
    /// which then goes on to the next event.
    fn ready(&mut self, key: SocketKey, events: u32) -> Option<Found> {
        let Some(entry) = self.slab.open(key) else {
            // Closed, or gone and used again, since the kernel reported it.
            self.at += 1;
            self.send_handled = false;
            return None;
        };
        let send_due = entry.any(SENDING) && events & WRITABLE != 0 && !self.send_handled;
        if !self.send_handled && entry.watch & WATCH_ONCE != 0 {
            // It has fired, so the kernel is silent now.
            entry.watch &= !(WATCH_IN | WATCH_OUT);
        }
        self.send_handled = true;
        if send_due && let Some(event) = self.send_rest(key) {
            return Some(Found::Other(event));
        }
        self.at += 1;
        self.send_handled = false;
        let found = if events & READABLE != 0 {
            self.receive(key)
        } else {
            None
        };
        self.watch(key);
        found
    }

    fn send_rest(&mut self, key: SocketKey) -> Option<Event<'static>> {
        let entry = self.slab.open(key)?;
        let index = entry.send();
        self.stats.syscalls += 1;
        let error = match sys::send(entry.fd()?, self.sends.rest(index)) {
            Ok(len) if self.sends.advance(index, len) => None,
            Ok(_) => return None,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return None,
                _ => Some(error),
            },
        };
        entry.end_send();
        let payload = self.sends.finish(index)?;
        match error {
            Some(error) if !entry.any(ENDED) => {
                entry.set(ENDED);
                Some(Event::Ended {
                    key,
                    error: Some(error),
                })
            }
            // `Ended` comes at most once, and an owner that waits for this send to end must be
            // notified.
            _ => Some(Event::Sent { key, payload }),
        }
    }

    fn receive(&mut self, key: SocketKey) -> Option<Found> {
        let entry = self.slab.open(key)?;
        if !entry.any(RECEIVING) || entry.any(ENDED | WAITING) {
            return None;
        }
        self.stats.syscalls += 1;
        let error = match sys::receive(entry.fd()?, &mut self.buffer) {
            Ok(0) => None,
            Ok(len) => {
                if !entry.any(STREAM) {
                    entry.clear(RECEIVING);
                } else if len == BUFFER_BYTES {
                    entry.set(WAITING);
                    self.bulk.push_back(key);
                }
                return Some(Found::Received { key, len });
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return None,
                _ => Some(error),
            },
        };
        entry.clear(RECEIVING);
        entry.set(ENDED);
        Some(Found::Other(Event::Ended { key, error }))
    }

    fn next_of_bulk(&mut self) -> Option<Found> {
        // Bulk senders whose receive finds nothing leave the queue.
        for _ in 0..BULK_LOOKS {
            let key = self.bulk.pop_front()?;
            if let Some(entry) = self.slab.open(key) {
                entry.clear(WAITING);
                if let Some(found) = self.receive(key) {
                    self.watch(key);
                    return Some(found);
                }
            }
        }
        None
    }

    fn show(&mut self, found: Found) -> Event<'_> {
        match found {
            Found::Other(event) => event,
            Found::Received { key, len } => {
                let bytes = &mut self.buffer[..len];
                Event::Received { key, bytes }
            }
        }
    }

    /// Lets a socket go after this.
    fn close_by(&mut self, key: SocketKey, end: impl FnOnce(&OwnedFd) -> io::Result<()>) {
        let Some(entry) = self.slab.open(key) else {
            return;
        };
        entry.set(CLOSING);
        if entry.any(WAITING) {
            self.bulk.retain(|&waiting| waiting != key);
        }
        if entry.any(SENDING) {
            self.sends.finish(entry.end_send());
        }
        if entry.watch & WATCH_MEMBER != 0 {
            // Closing takes it out of the set only if no other process, such as a forked child, has
            // the socket open.
            let fd = entry.raw_fd();
            let _ = self.epoll.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        if let Some(fd) = entry.take_fd() {
            // Fails only if it has ended already.
            let _ = end(&fd);
            self.stats.syscalls += 2;
        }
        self.local.push_back(Local::Closed(key));
    }
}

impl Engine for EpollEngine {
    fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let mut waited = Ok(());
        // Otherwise the owner did not take all of the last turn.
        if self.at >= self.events.len() {
            let idle = self.local.is_empty() && self.bulk.is_empty() && self.accepts_left == 0;
            self.at = 0;
            waited = self.epoll.wait(&mut self.events, wait.filter(|_| idle));
        }
        if wait.is_some() {
            self.waker.set_running();
        }
        waited
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let found = self.next_found()?;
        Some(self.show(found))
    }

    fn submit(&mut self) -> io::Result<()> {
        // All bytes that could leave have left.
        Ok(())
    }

    fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    fn next_bulk(&mut self) -> Option<Event<'_>> {
        let found = self.next_of_bulk()?;
        Some(self.show(found))
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<SocketKey> {
        Ok(self.slab.insert(socket))
    }

    fn detach(&mut self, key: SocketKey) -> Option<OwnedFd> {
        let entry = self.slab.open(key)?;
        if entry.any(RECEIVING | SENDING | WAITING) {
            return None;
        }
        if entry.watch & WATCH_MEMBER != 0 {
            // The next owner may keep the socket open for long.
            let fd = entry.raw_fd();
            let _ = self.epoll.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        self.slab.remove(key.slot)
    }

    fn receive_once(&mut self, key: SocketKey) {
        if let Some(entry) = self.slab.open(key)
            && !entry.any(RECEIVING | ENDED)
        {
            entry.clear(STREAM);
            entry.set(RECEIVING);
            self.watch(key);
        }
    }

    fn receive_stream(&mut self, key: SocketKey) {
        if let Some(entry) = self.slab.open(key)
            && !entry.any(ENDED)
        {
            entry.set(RECEIVING | STREAM);
            self.watch(key);
        }
    }

    fn send(&mut self, key: SocketKey, payload: Payload) -> SendStatus {
        let Some(entry) = self.slab.open(key) else {
            return SendStatus::Done(payload);
        };
        assert!(!entry.any(SENDING), "two sends at once on {key:?}");
        debug_assert!(!payload.as_slice().is_empty(), "an empty send on {key:?}");
        let Some(fd) = entry.fd() else {
            return SendStatus::Done(payload);
        };
        self.stats.syscalls += 1;
        let sent = match sys::send(fd, payload.as_slice()) {
            Ok(len) if len == payload.as_slice().len() => return SendStatus::Done(payload),
            Ok(len) => len,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => 0,
                _ if entry.any(ENDED) => return SendStatus::Done(payload),
                _ => {
                    entry.set(ENDED);
                    self.local.push_back(Local::Ended(key, error));
                    self.watch(key);
                    return SendStatus::InFlight;
                }
            },
        };
        self.stats.short_sends += 1;
        entry.begin_send(self.sends.begin(payload, sent));
        self.watch(key);
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
        self.close_by(key, |fd| sys::shutdown(fd, Shutdown::Both));
    }

    fn reset(&mut self, key: SocketKey) {
        self.close_by(key, sys::reset_on_close);
    }

    fn peer_addr(&self, key: SocketKey) -> Option<SocketAddr> {
        sys::peer_addr(self.slab.peek(key)?.fd()?)
    }

    fn unacknowledged(&self, key: SocketKey) -> Option<usize> {
        sys::unacknowledged(self.slab.peek(key)?.fd()?)
    }

    fn resume_accept(&mut self) {
        if self.accept_paused {
            let fd = self.listener.as_raw_fd();
            let events = libc::EPOLLIN as u32;
            let added = self.epoll.control(libc::EPOLL_CTL_ADD, fd, events, LISTENER);
            self.accept_paused = false;
            if added.is_err() {
                // Out of memory: the next `accept` reports it, and pauses again.
                self.accepts_left = 1;
            }
        }
    }

    fn hold_accepts(&mut self, hold: bool) {
        self.accept_held = hold;
    }

    fn has_work(&mut self) -> bool {
        !self.local.is_empty() || !self.bulk.is_empty() || self.accepts_left > 0 || self.at < self.events.len()
    }

    fn sockets(&self) -> usize {
        self.slab.len()
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            syscalls: self.stats.syscalls + self.epoll.syscalls,
            ..self.stats
        }
    }
}

impl SystemEngine for EpollEngine {
    const NAME: &'static str = "epoll";

    fn new(listener: OwnedFd) -> io::Result<Self> {
        let mut epoll = Epoll::new()?;
        let waker = Waker::new()?;
        let readable = libc::EPOLLIN as u32;
        let (add, edge) = (libc::EPOLL_CTL_ADD, libc::EPOLLET as u32);
        epoll.control(add, listener.as_raw_fd(), readable, LISTENER)?;
        epoll.control(add, waker.wait_fd(), readable | edge, WAKE)?;
        Ok(EpollEngine {
            epoll,
            listener,
            slab: Slab::new(),
            sends: Sends::default(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            events: Vec::with_capacity(EVENTS_MAX),
            at: 0,
            send_handled: false,
            local: VecDeque::new(),
            bulk: VecDeque::new(),
            accepts_left: 0,
            accept_paused: false,
            accept_held: false,
            waker,
            stats: EngineStats::default(),
        })
    }

    fn prepare_park(&mut self) -> bool {
        // Events that the kernel holds make the set itself readable, until they are fetched.
        !self.has_work()
    }

    fn unpark(&mut self) {}

    fn park_fd(&self) -> RawFd {
        self.epoll.fd.as_raw_fd()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
