//! One connection's life, as data.
//!
//! Pure; a [`Connection`] is a slab entry owned by one shard. No buffer, timer or task belongs to
//! an idle one.
//!
//! ```text
//! Head ──> Http ──> (Head's decision, or the end)
//!   ├────> Migrating ──> the home shard ──> Open
//!   ├────> Echo
//!   ├────> Verifying ──> Migrating or Open, or Lingering (401)
//!   └────> Authenticating ──> Verifying ──> Open ──> Doomed ──> Closing ──> Closed
//!                                                        └────> Lingering ──> Closed
//! ```
//!
//! [`Stage::may_become`] is this picture as code.

pub mod drain;
pub mod outbox;
pub mod rate;

use std::sync::Arc;

use uuid::Uuid;

use crate::auth::Grant;
use crate::router::UserHash;
use crate::router::users::UserIndex;
use crate::tls::Tls;
use crate::wire::codec::Codec;
use crate::wire::framing::Framing;
use crate::wire::ws::close::CloseReason;
use crate::wire::ws::frame::Decoder;
use crate::wire::ws::head::Upgrade;
use outbox::Outbox;
use rate::RateLimiter;

/// How many frames in a row may be malformed before the connection is closed with 3501.
pub const BAD_FRAMES_MAX: u8 = 10;

/// The stage of a connection's life. `H` answers its plain HTTP requests; this room does not know
/// its type.
#[derive(Debug, Default)]
pub enum Stage<H> {
    /// The slot is free.
    #[default]
    Free,
    /// Reading a request head; the bytes so far.
    Head(Vec<u8>),
    /// Plain HTTP.
    Http(Box<H>),
    /// On its way to its home shard, as soon as its outbox is empty.
    Migrating(Box<Migrating>),
    /// `101` is sent; the user is not known yet.
    Authenticating,
    /// A token was received and is being verified. Nothing is received meanwhile.
    Verifying(Box<Verifying>),
    /// Authenticated.
    Open,
    /// Gives back what it gets.
    Echo,
    /// Marked to end when the current event is through. It is in all its tables until then, and
    /// nothing more is sent to it.
    Doomed(End),
    /// Our close frame is queued; reading for the peer's.
    Closing {
        /// The peer's close frame was seen: nothing is left to read.
        peer_closed: bool,
    },
    /// Nothing more can be understood; everything queued is sent, then FIN, then input is discarded
    /// until the peer's end.
    Lingering {
        /// FIN is sent.
        finished: bool,
    },
    /// The engine closes it.
    Closed,
}

/// How a connection that is marked to end is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Our close frame is sent, and the peer's is waited for.
    Close(CloseReason),
    /// Our close frame is sent, then FIN: bytes of the peer have no meaning any more.
    Fail(CloseReason),
    /// The socket is closed at once: nothing can be sent on it.
    Lost,
}

/// The facts that the home shard needs.
#[derive(Debug)]
pub struct Migrating {
    /// The user.
    pub user: String,
    /// The user's hash.
    pub hash: UserHash,
    /// The permissions of the user's token; `None` in development mode.
    pub grant: Option<Arc<Grant>>,
    /// The handshake, if its `101` is still owed.
    pub upgrade: Option<Upgrade>,
    /// Bytes that came behind the head or the `auth` frame.
    pub rest: Vec<u8>,
}

/// The next step when a token is found good.
#[derive(Debug)]
pub struct Verifying {
    /// The handshake, if its `101` is still owed.
    pub upgrade: Option<Upgrade>,
    /// Bytes that came behind the head or the `auth` frame.
    pub rest: Vec<u8>,
}

impl<H> Stage<H> {
    /// True if a connection may go from this stage to that one. Every held socket may be closed.
    pub fn may_become(&self, next: &Self) -> bool {
        use Stage as S;
        match (self, next) {
            (S::Free, S::Head(_) | S::Authenticating) => true,
            (S::Closed, S::Free) => true,
            (S::Free | S::Closed, _) | (_, S::Free) => false,
            (_, S::Closed) => true,
            (S::Head(_), S::Head(_) | S::Http(_)) => true,
            // A request head was read, by us or by hyper, or a token was found good, or the
            // handshake is refused.
            (
                S::Head(_) | S::Http(_) | S::Authenticating,
                S::Authenticating | S::Echo | S::Verifying(_) | S::Migrating(_) | S::Open | S::Lingering { .. },
            ) => true,
            (S::Verifying(_), S::Authenticating | S::Open | S::Migrating(_) | S::Lingering { .. }) => true,
            // Without its `101` the client cannot be sent a close frame.
            (S::Verifying(verifying), S::Doomed(_)) => verifying.upgrade.is_none(),
            (S::Authenticating | S::Open | S::Echo, S::Doomed(_) | S::Closing { peer_closed: true }) => true,
            // TLS broke.
            (S::Open | S::Echo | S::Migrating(_), S::Lingering { .. }) => true,
            (S::Doomed(_), S::Closing { .. } | S::Lingering { .. }) => true,
            (S::Closing { .. }, S::Closing { peer_closed: true } | S::Lingering { .. }) => true,
            // The peer's end came while the last bytes were leaving.
            (S::Http(_) | S::Lingering { .. }, S::Closing { peer_closed: true }) => true,
            (S::Lingering { .. }, S::Lingering { .. }) => true,
            _ => false,
        }
    }
}

/// By which limit a socket is counted. Each socket is counted by exactly one, for as long as it is
/// held.
///
/// ```text
/// Nobody ──> Pending ──> PreAuth ──> Permit ──> Ended or Draining ──> Nobody
///               └───────────────────────^
/// ```
///
/// The shard's `count_as` is the only function that writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tally {
    /// The slot is free, or the engine closes the socket and no peer is waited for.
    #[default]
    Nobody,
    /// No WebSocket connection: counted by `limits.handshakes`.
    Pending,
    /// A WebSocket connection whose user is not known yet: counted by `limits.handshakes`.
    PreAuth,
    /// A connection that holds a permit of `limits.connections`.
    Permit,
    /// The connection ended and gave its permit back; the socket waits for the peer: counted by
    /// `limits.handshakes`.
    Ended,
    /// The same in a drain. No permit is given anew in a drain, so those that there were are the
    /// limit.
    Draining,
}

impl Tally {
    /// True for sockets that `limits.handshakes` counts.
    pub fn is_pending(self) -> bool {
        matches!(self, Tally::Pending | Tally::PreAuth | Tally::Ended)
    }

    /// True for WebSocket connections that have not ended.
    pub fn is_connection(self) -> bool {
        matches!(self, Tally::PreAuth | Tally::Permit)
    }
}

/// One connection of a shard.
#[derive(Debug)]
pub struct Connection<H> {
    /// Generation of the slot's socket.
    pub generation: u32,
    /// Unknown frames that this connection sent in a row.
    pub bad_frames: u8,
    /// A streaming receive is armed (not one receive at a time).
    pub streaming: bool,
    /// One receive is armed, or will be without another request: it waits for its turn, or its last
    /// bytes do.
    pub armed: bool,
    /// In the list of connections with something to send this turn.
    pub dirty: bool,
    /// By which limit the socket is counted.
    pub tally: Tally,
    /// Open, and a new token is being verified.
    pub refreshing: bool,
    /// The user, while the connection is in the user's list.
    pub user: Option<UserIndex>,
    /// Where it is in its life.
    pub stage: Stage<H>,
    /// The permissions of its token; `None` in development mode.
    pub grant: Option<Arc<Grant>>,
    /// The id that the client knows.
    pub id: Uuid,
    /// When it was accepted, Unix milliseconds.
    pub connected_at_ms: u64,
    /// When bytes last came from it, milliseconds of the gateway's clock.
    pub last_seen_ms: u64,
    /// Frames received.
    pub messages_in: u32,
    /// Frames sent.
    pub messages_out: u32,
    /// Frames queued since bytes last came from it: it may not have read them.
    pub unheard: u32,
    /// How fast it may send.
    pub rate: RateLimiter,
    /// Frames half-way in.
    pub decoder: Decoder,
    /// Frames half-way out; none while idle.
    pub outbox: Option<Box<Outbox>>,
    /// The TLS layer below, if there is one.
    pub tls: Option<Box<Tls>>,
    /// How a message to the client becomes a body.
    pub codec: Codec,
    /// How a body becomes bytes of its stream.
    pub framing: Framing,
}

impl<H> Default for Connection<H> {
    /// A free slot.
    fn default() -> Self {
        Connection {
            generation: 0,
            bad_frames: 0,
            streaming: false,
            armed: false,
            dirty: false,
            tally: Tally::Nobody,
            refreshing: false,
            user: None,
            stage: Stage::Free,
            grant: None,
            id: Uuid::nil(),
            connected_at_ms: 0,
            last_seen_ms: 0,
            messages_in: 0,
            messages_out: 0,
            unheard: 0,
            rate: RateLimiter::default(),
            decoder: Decoder::default(),
            outbox: None,
            tls: None,
            codec: Codec::default(),
            framing: Framing::default(),
        }
    }
}

impl<H> Connection<H> {
    /// Bytes that wait for this connection or are in flight.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    /// True if nothing waits for this connection and nothing is in flight.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_none() && self.tls.as_ref().is_none_or(|tls| tls.is_flushed())
    }

    /// True if a frame would make the peer a slow consumer. An empty outbox takes any one frame, or
    /// a message of the largest size could close a peer that keeps up.
    pub fn has_no_room(&self, frame_bytes: usize, outbox_bytes_max: usize) -> bool {
        let waiting = self.outbox_bytes();
        waiting > 0 && waiting + frame_bytes > outbox_bytes_max
    }

    /// True where frames of the peer are read by streaming receives.
    pub fn wants_stream(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Echo | Stage::Closing { .. })
    }

    /// True in stages that arm one receive at a time. So the socket can migrate without a
    /// cancellation, and the shard receives no more of it than it has time for. A streaming receive
    /// that was armed before goes on.
    pub fn wants_once(&self) -> bool {
        matches!(
            self.stage,
            Stage::Head(_) | Stage::Http(_) | Stage::Authenticating | Stage::Lingering { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages() -> Vec<(&'static str, Stage<()>)> {
        let leaving = Migrating {
            user: String::new(),
            hash: UserHash(0),
            grant: None,
            upgrade: None,
            rest: Vec::new(),
        };
        let verifying = Verifying {
            upgrade: None,
            rest: Vec::new(),
        };
        vec![
            ("free", Stage::Free),
            ("head", Stage::Head(Vec::new())),
            ("http", Stage::Http(Box::new(()))),
            ("migrating", Stage::Migrating(Box::new(leaving))),
            ("authenticating", Stage::Authenticating),
            ("verifying", Stage::Verifying(Box::new(verifying))),
            ("open", Stage::Open),
            ("echo", Stage::Echo),
            ("doomed", Stage::Doomed(End::Lost)),
            ("closing", Stage::Closing { peer_closed: false }),
            ("closed by peer", Stage::Closing { peer_closed: true }),
            ("lingering", Stage::Lingering { finished: false }),
            ("closed", Stage::Closed),
        ]
    }

    /// No socket is let go without having been closed, and none comes back. A doomed connection is
    /// sent nothing but its end.
    #[test]
    fn stages_go_forward() {
        let all = stages();
        let ways = |from: &str| -> Vec<&str> {
            let (_, from) = all.iter().find(|(name, _)| *name == from).unwrap();
            all.iter()
                .filter(|(_, to)| from.may_become(to))
                .map(|(name, _)| *name)
                .collect()
        };
        assert_eq!(ways("free"), ["head", "authenticating"]);
        assert_eq!(ways("open"), ["doomed", "closed by peer", "lingering", "closed"]);
        assert_eq!(ways("doomed"), ["closing", "closed by peer", "lingering", "closed"]);
        assert_eq!(ways("closing"), ["closed by peer", "lingering", "closed"]);
        assert_eq!(ways("lingering"), ["closed by peer", "lingering", "closed"]);
        assert_eq!(ways("closed"), ["free"]);
        for (name, _) in &all[1..12] {
            assert!(
                ways(name).contains(&"closed") && !ways(name).contains(&"free"),
                "{name}"
            );
        }
    }

    /// `docs/decisions/0005-a-connection-is-data.md` counts the memory of an idle connection.
    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection<()>>() <= 136, "{}", size_of::<Connection<()>>());
        assert!(size_of::<Stage<()>>() <= 24, "{}", size_of::<Stage<()>>());
    }
}
