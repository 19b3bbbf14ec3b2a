//! A connection on its way to the shard of its user.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, Lanes};
use crate::auth::Grant;
use crate::ids::ShardId;
use crate::router::UserHash;
use crate::session::rate::RateLimiter;
use crate::tls::Tls;
use crate::wire::ws::head::Upgrade;

/// A socket on its way to the shard of its user.
#[derive(Debug)]
pub struct Handoff {
    /// The socket; nothing is armed for it and nothing in flight. Taken when the engine takes it.
    pub socket: Option<OwnedFd>,
    /// The user.
    pub user: String,
    /// The user's hash.
    pub hash: UserHash,
    /// What the user's token permits; `None` in development mode.
    pub grant: Option<Arc<Grant>>,
    /// The handshake that still wants its `101`; `None` if it was sent and the user came with
    /// `auth`.
    pub upgrade: Option<Upgrade>,
    /// What arrived behind the request head or the `auth` frame.
    pub rest: Vec<u8>,
    /// Where the connection comes from, if that is known.
    pub remote: Option<SocketAddr>,
    /// Its TLS, with what has arrived of the next record.
    pub tls: Option<Box<Tls>>,
    /// When it was accepted, Unix milliseconds.
    pub connected_at_ms: u64,
    /// Frames that the connection sent before.
    pub messages_in: u32,
    /// The state of its rate limit.
    pub rate: RateLimiter,
}

impl Lanes {
    /// Hands a connection over.
    ///
    /// # Errors
    /// The lane is full; the socket comes back with its owner's box.
    pub fn try_hand_over(&mut self, to: ShardId, hand_off: Box<Handoff>) -> Result<(), Box<Handoff>> {
        let lane = self.shard(to);
        if lane.check(LANE_ITEMS_MAX + LANE_ITEMS_RESERVED).is_err() {
            return Err(hand_off);
        }
        lane.push(hand_off);
        Ok(())
    }
}
