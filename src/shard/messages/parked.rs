//! Messages for users who may be on other gateways, parked until it is known where.
//!
//! All messages to one user pass their home shard here, and from there the control thread, in one
//! order. A message that comes while the location is being asked for waits behind those that came
//! before.
//!
//! Invariant: a user whose messages are parked is being asked for, so each parked message has an
//! end.

use hashbrown::HashTable;
use uuid::Uuid;

use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::AckTo;
use crate::router::UserHash;

/// Messages that one shard may hold for users whose location is being asked for, which takes a
/// round trip to Redis.
const HELD_MAX: usize = 16_384;
/// Bytes of them.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages that wait until it is known where their receivers are.
#[derive(Debug, Default)]
pub(super) struct Parked {
    pub(super) asked: HashTable<Asked>,
    pub(super) held: usize,
    pub(super) held_bytes: usize,
}

/// A user whose location is being asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) hash: UserHash,
    pub(super) name: Box<str>,
    pub(super) held: Vec<Held>,
}

impl Asked {
    pub(super) fn is(&self, hash: UserHash, name: &str) -> bool {
        self.hash == hash && *self.name == *name
    }
}

/// A message that waits.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) body: Box<[u8]>,
    /// A connection here has it.
    pub(super) here: bool,
    pub(super) ack_to: Option<HeldAckTo>,
}

/// An [`AckTo`] that is kept.
#[derive(Debug)]
pub(super) struct HeldAckTo {
    pub(super) shard: ShardId,
    pub(super) conn: SocketKey,
    pub(super) client_id: Box<str>,
    pub(super) message_id: Uuid,
}

impl HeldAckTo {
    pub(super) fn as_ack_to(&self) -> AckTo<'_> {
        AckTo {
            shard: self.shard,
            conn: self.conn,
            client_id: &self.client_id,
            message_id: self.message_id,
        }
    }
}

impl Parked {
    /// Users whose location is being asked for.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn hold(&mut self, asked: HeldFor<'_>, body: &[u8], ack_to: Option<AckTo<'_>>) -> Result<(), HeldFull> {
        if self.held >= HELD_MAX || self.held_bytes + body.len() > HELD_BYTES_MAX {
            return Err(HeldFull);
        }
        let held = Held {
            body: body.into(),
            here: asked.here,
            ack_to: ack_to.map(|ack_to| HeldAckTo {
                shard: ack_to.shard,
                conn: ack_to.conn,
                client_id: ack_to.client_id.into(),
                message_id: ack_to.message_id,
            }),
        };
        self.held += 1;
        self.held_bytes += body.len();
        match self
            .asked
            .find_mut(asked.hash.0, |known| known.is(asked.hash, asked.name))
        {
            Some(known) => known.held.push(held),
            None => {
                let new = Asked {
                    hash: asked.hash,
                    name: asked.name.into(),
                    held: vec![held],
                };
                self.asked.insert_unique(asked.hash.0, new, |known| known.hash.0);
            }
        }
        Ok(())
    }

    pub(super) fn is_asked(&self, hash: UserHash, name: &str) -> bool {
        self.asked.find(hash.0, |known| known.is(hash, name)).is_some()
    }

    pub(super) fn take_asked(&mut self, hash: UserHash, name: &str) -> Option<Asked> {
        let found = self.asked.find_entry(hash.0, |known| known.is(hash, name));
        let asked = found.ok()?.remove().0;
        self.held -= asked.held.len();
        self.held_bytes -= asked.held.iter().map(|held| held.body.len()).sum::<usize>();
        Some(asked)
    }
}

#[derive(Clone, Copy)]
pub(super) struct HeldFor<'a> {
    pub(super) hash: UserHash,
    pub(super) name: &'a str,
    pub(super) here: bool,
}

pub(super) struct HeldFull;
