//! What a turn needs of an engine, as a trait: production has two, the simulation a model.
//!
//! Plain data and a contract; nothing here makes a system call.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::ids::SocketKey;
use crate::payload::Payload;

/// The result of [`Engine::send`].
#[derive(Debug)]
pub enum SendStatus {
    /// In flight: an [`Event::Sent`] or [`Event::Ended`] follows, and no other send may start
    /// before it. `Ended` comes at most once. So a send that fails after `Ended` was reported comes
    /// back as `Sent`. So does one of a bulk sender, whose `Ended` comes behind its bytes.
    InFlight,
    /// The kernel took everything at once; the socket is free for the next send.
    Done(Payload),
}

/// Something that happened to a socket.
#[derive(Debug)]
pub enum Event<'a> {
    /// A new connection; one `receive_once` is already armed for it.
    Accepted {
        /// The new socket.
        key: SocketKey,
    },
    /// `accept` failed, for example out of descriptors, and stopped; [`Engine::resume_accept`]
    /// starts it again.
    AcceptPaused {
        /// Why.
        error: std::io::Error,
    },
    /// Bytes arrived. The owner may overwrite the buffer to unmask it. The buffer goes back to the
    /// engine with the next call.
    Received {
        /// Which socket.
        key: SocketKey,
        /// The bytes, at least one.
        bytes: &'a mut [u8],
    },
    /// The send in flight is complete. Also reported for a socket being closed, if the send got
    /// through.
    Sent {
        /// Which socket.
        key: SocketKey,
        /// The buffer, for use again.
        payload: Payload,
    },
    /// The peer ended its side (`error` is `None`), or the socket broke. Nothing more is received;
    /// the owner must `close`. At most once per socket.
    Ended {
        /// Which socket.
        key: SocketKey,
        /// The error, if the connection broke.
        error: Option<std::io::Error>,
    },
    /// A socket that `close` was called for is gone; its slot is free.
    Closed {
        /// Which socket.
        key: SocketKey,
    },
}

/// Counters of one engine since its creation.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    /// System calls made.
    pub syscalls: u64,
    /// Times that receiving ran out of buffers and had to be armed again.
    pub buffers_exhausted: u64,
    /// Sends that the kernel did not take whole at the first try.
    pub short_sends: u64,
}

/// The calls of an engine that a turn makes. All calls come from the owning shard's thread.
///
/// Calls with a key whose generation is stale are ignored (`send` gives `Done`, `detach` gives
/// `None`).
pub trait Engine {
    /// Submits collected calls and reaps completed ones; waits up to `wait` if there is nothing
    /// (`None`: does not wait). A wait also ends when [`super::Waker::wake`] is called. It may end
    /// early for reasons outside the engine: a signal, or a completion of the executor's own ring.
    /// After a wait the engine's waker is set to running.
    ///
    /// # Errors
    /// Only for faults of the engine itself, after which the shard cannot go on.
    fn turn(&mut self, wait: Option<Duration>) -> std::io::Result<()>;

    /// The next event of this turn. Their number per turn is bounded; the remaining events stay for
    /// the next turn.
    fn next_event(&mut self) -> Option<Event<'_>>;

    /// Submits the collected calls now, in the middle of a turn, and reaps nothing.
    ///
    /// # Errors
    /// As [`Engine::turn`].
    fn submit(&mut self) -> std::io::Result<()>;

    /// True if [`Engine::next_bulk`] may have something.
    fn has_bulk(&self) -> bool;

    /// The next bytes of a bulk sender, or the event behind them; bulk senders are served
    /// round-robin. Called after `next_event` gave `None` or was called often enough for this turn.
    /// Events that are not taken stay.
    fn next_bulk(&mut self) -> Option<Event<'_>>;

    /// Takes over an accepted, non-blocking socket from another shard. Nothing is armed for it.
    ///
    /// # Errors
    /// The socket could not be registered; it is closed.
    fn adopt(&mut self, socket: OwnedFd) -> std::io::Result<SocketKey>;

    /// Gives the descriptor away and frees the slot at once, without an [`Event::Closed`].
    /// `None`, and nothing changes, while a receive is armed or a send is in flight.
    fn detach(&mut self, key: SocketKey) -> Option<OwnedFd>;

    /// Receives once: exactly one [`Event::Received`] or [`Event::Ended`] follows, then nothing is
    /// armed.
    fn receive_once(&mut self, key: SocketKey);

    /// Receives until the end of the socket. Survives lack of buffers by itself.
    fn receive_stream(&mut self, key: SocketKey);

    /// Sends all of `payload` (never empty). At most one send per socket may be in flight.
    fn send(&mut self, key: SocketKey, payload: Payload) -> SendStatus;

    /// Ends the sending side (FIN) after what was sent; receiving goes on. Call it with no send in
    /// flight.
    fn finish(&mut self, key: SocketKey);

    /// Ends both sides now, whatever is in flight, and frees the slot when the kernel has let go:
    /// then [`Event::Closed`].
    fn close(&mut self, key: SocketKey);

    /// As [`Engine::close`], but the peer sees a reset, and the kernel keeps nothing of the
    /// connection: for peers that would not answer a FIN.
    fn reset(&mut self, key: SocketKey);

    /// Address of the peer; `None` if the socket is gone.
    fn peer_addr(&self, key: SocketKey) -> Option<SocketAddr>;

    /// Bytes that the kernel has taken and the peer has not acknowledged; `None` if that cannot be
    /// known. A system call.
    fn unacknowledged(&self, key: SocketKey) -> Option<usize>;

    /// Starts accepting again after [`Event::AcceptPaused`].
    fn resume_accept(&mut self);

    /// Leaves new connections in the listener's queue, or takes them again. A few that are under
    /// way may still come.
    fn hold_accepts(&mut self, hold: bool);

    /// True when a `turn` without waiting would find or submit something.
    fn has_work(&mut self) -> bool;

    /// Number of sockets in the slab, those being closed included.
    fn sockets(&self) -> usize;

    /// Counters so far.
    fn stats(&self) -> EngineStats;
}
