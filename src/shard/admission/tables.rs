//! What waits on its way in: tokens, requests, inquiries and TLS handshakes.
//!
//! Owned by the shard's thread; the other files of this room work on it.

use std::collections::VecDeque;

use crate::auth::{Cache, Token};
use crate::engine::SocketKey;
use crate::settings::Settings;
use crate::tls::{Tls, TlsError};

/// A token that a connection shows.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) by: SocketKey,
    pub(super) token: Token,
    /// Keys were fetched for it: a key that is unknown now stays so.
    pub(super) last: bool,
}

/// Tokens that are not decided on, and those that were found good.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    pub(super) queue: VecDeque<Shown>,
    /// Signed with a key that is not known yet.
    pub(super) unknown: Vec<Shown>,
    pub(super) cache: Cache,
    /// The control thread was told that keys are wanted, and has not answered.
    pub(super) asked: bool,
}

impl Credentials {
    /// Tokens that are not decided on.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.unknown.len()
    }

    /// Tokens that the next turns can decide on.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Keys may have changed: no decision by the old ones holds.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
        self.queue.extend(self.unknown.drain(..));
    }

    /// Keys were fetched: each token that waited for them is verified once more.
    pub(super) fn look_again(&mut self) {
        self.asked = false;
        let last = |shown| Shown { last: true, ..shown };
        self.queue.extend(self.unknown.drain(..).map(last));
    }
}

/// A shard's plain HTTP connections with something to do.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// In the order in which they got something to do.
    pub(super) waiting: VecDeque<SocketKey>,
}

impl Requests {
    /// Connections that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// Administrators' requests of a shard.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    /// Requests that the control thread has not answered.
    pub(super) waiting: usize,
    /// Connections whose answer has not left whole, once for each answer.
    pub(super) leaving: Vec<SocketKey>,
}

impl Inquiries {
    /// Requests whose answers have not left.
    pub(super) fn len(&self) -> usize {
        self.waiting + self.leaving.len()
    }
}

/// Bytes that came for more steps, in order: those of one receive for each pending socket, which
/// receives nothing meanwhile.
type Waiting = VecDeque<(SocketKey, Vec<u8>)>;

/// A shard's state for TLS besides its connections' own.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// Steps so far. The last bit says whose step is next.
    pub(super) steps: u32,
    /// Handshakes that were answered. They are among the oldest: behind a flood of handshakes that
    /// begin, they would be closed for their age before their turn, and the answers would have been
    /// for nothing.
    pub(super) answered: Waiting,
    /// Handshakes that begin.
    pub(super) begun: Waiting,
    /// The plain bytes of one receive; kept for its capacity.
    pub(super) plain: Vec<u8>,
    pub(super) hint_due_ms: u64,
}

impl Handshakes {
    /// The next step. Both lines have their turns, so that neither keeps the other out.
    pub(super) fn next_waiting(&mut self) -> Option<(SocketKey, Vec<u8>)> {
        let (first, second) = match self.steps % 2 {
            0 => (&mut self.answered, &mut self.begun),
            _ => (&mut self.begun, &mut self.answered),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// Handshakes whose next step waits.
    pub(super) fn waiting(&self) -> usize {
        self.answered.len() + self.begun.len()
    }
}

/// The outcome of opening one receive.
#[derive(Debug)]
pub(in crate::shard) struct Records {
    /// Plain bytes, which count even if `result` is an error. They go back to
    /// [`Admission::recycle_plain`].
    pub(in crate::shard) plain: Vec<u8>,
    /// True if the receive found the handshake unfinished.
    pub(in crate::shard) handshaking: bool,
    /// True if the peer has said that it sends no more.
    pub(in crate::shard) closed: bool,
    /// Whether the peer's TLS is sound.
    pub(in crate::shard) result: Result<(), TlsError>,
}

/// The TLS state of a new connection; `None` where clients speak plain text.
pub(super) fn begin(settings: &Settings) -> Option<Box<Tls>> {
    let server = settings.tls.as_ref()?;
    match Tls::new(server) {
        Ok(tls) => Some(Box::new(tls)),
        // Only a configuration of ours could be the reason.
        Err(error) => unreachable!("TLS cannot begin: {error}"),
    }
}

/// The client's own bytes among the first ones of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::shard) enum ClientBytes<'a> {
    /// These.
    Here(&'a mut [u8]),
    /// These, which were kept because they might have been a PROXY header.
    Kept(Vec<u8>),
    /// Nothing yet, or the connection was refused.
    None,
}
