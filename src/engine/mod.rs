//! Socket engines: accept, receive, send, close. Nothing else.
//!
//! An engine is owned by one shard thread, from creation to drop, and never leaves it; only
//! [`Waker`] may be used from other threads. It knows no frames, users or limits: bytes in, bytes
//! out, by [`SocketKey`].
//!
//! One turn of the shard has three steps:
//!
//! 1. [`Engine::turn`] submits everything and reaps.
//! 2. [`Engine::next_event`] is called until it returns `None`, then [`Engine::next_bulk`] for as
//!    long as the turn may take.
//! 3. `send`, `receive_*`, `finish` and `close` calls are collected; they leave with the next
//!    `turn`.
//!
//! A *bulk sender* is a connection whose receive came back full: more bytes are behind it. Its
//! bytes are not delivered by `next_event` but by `next_bulk`, round-robin, after all other events.
//! So another connection waits for at most one share of each bulk sender.
//!
//! Life of a socket:
//!
//! ```text
//! accept ─┐
//! adopt ──┴─> open ──(receive_once | receive_stream, send, finish)──> close ──> Event::Closed, slot is free
//!               └──> detach: the descriptor leaves the engine, slot is free at once
//! ```
//!
//! | file | duty |
//! | --- | --- |
//! | `contract` | what a turn needs of an engine; pure |
//! | `ring` | the engine of choice: an io_uring of its own per shard |
//! | `epoll` | the engine for kernels that refuse the other |
//! | [`park`] | waiting for a descriptor inside glommio |
//! | `waker` | waking a shard from another thread |
//! | `slab`, `sends` | sockets, and bytes in flight, by index; used by both engines |
//! | `sys` | the system calls that std does not have |

use std::io;
use std::os::fd::{OwnedFd, RawFd};

mod contract;
mod epoll;
pub mod park;
mod ring;
mod sends;
mod slab;
mod sys;
#[cfg(test)]
mod tests;
mod waker;

pub use crate::ids::SocketKey;
pub use crate::payload::Payload;
pub use contract::{Engine, EngineStats, Event, SendStatus};
pub use epoll::EpollEngine;
pub use ring::RingEngine;
pub use waker::Waker;

/// An engine of the operating system, with the calls that a shard's thread needs to make it, to
/// sleep and to be woken.
pub trait SystemEngine: Engine + Sized {
    /// `ring` or `epoll`, for logs and `/stats`.
    const NAME: &'static str;

    /// Makes an engine that accepts from `listener` (bound, listening, non-blocking).
    ///
    /// # Errors
    /// The kernel refuses something that the engine needs; `io::ErrorKind::Unsupported` means that
    /// another engine may do.
    fn new(listener: OwnedFd) -> io::Result<Self>;

    /// Makes [`SystemEngine::park_fd`] report activity. Returns false, and parks nothing, when
    /// there is work already. Comes after [`Waker::set_parked`] and the last look at the inbox.
    fn prepare_park(&mut self) -> bool;

    /// Ends what `prepare_park` began, whether or not it fired.
    fn unpark(&mut self);

    /// A descriptor that is readable when there is something to do, between `prepare_park` and
    /// `unpark`.
    fn park_fd(&self) -> RawFd;

    /// The handle by which other threads wake this engine.
    fn waker(&self) -> Waker;
}
