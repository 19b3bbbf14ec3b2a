//! Messages for users who may be on other gateways, parked until it is known where.
//!
//! All messages to one user pass their home shard here, and from there the control thread, in one order. A message that comes
//! while the location is being asked for waits behind those that came before.
//!
//! Invariant: a user whose messages are parked is being asked for, so each parked message has an end.

use hashbrown::HashTable;
use uuid::Uuid;

use super::Messages;
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::{AckTo, Location, MessageToControl, OutgoingMessage, Route};
use crate::metrics::DropReason;
use crate::router::UserHash;
use crate::router::locations::PeerSet;
use crate::shard::kernel::Kernel;
use crate::wire::message::AckStatus;

/// Messages that one shard may hold for users whose location is being asked for, which takes a round trip to Redis.
const HELD_MAX: usize = 16_384;
/// Bytes of them.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Messages that wait until it is known where their receivers are.
#[derive(Debug, Default)]
pub(super) struct Parked {
    asked: HashTable<Asked>,
    held: usize,
    held_bytes: usize,
}

/// A user whose location is being asked for.
#[derive(Debug)]
struct Asked {
    hash: UserHash,
    name: Box<str>,
    held: Vec<Held>,
}

impl Asked {
    fn is(&self, hash: UserHash, name: &str) -> bool {
        self.hash == hash && *self.name == *name
    }
}

/// A message that waits.
#[derive(Debug)]
struct Held {
    body: Box<[u8]>,
    /// A connection here has it.
    here: bool,
    ack_to: Option<HeldAckTo>,
}

/// An [`AckTo`] that is kept.
#[derive(Debug)]
struct HeldAckTo {
    shard: ShardId,
    conn: SocketKey,
    client_id: Box<str>,
    message_id: Uuid,
}

impl HeldAckTo {
    fn as_ack_to(&self) -> AckTo<'_> {
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

    fn hold(&mut self, asked: HeldFor<'_>, body: &[u8], ack_to: Option<AckTo<'_>>) -> Result<(), HeldFull> {
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

    fn is_asked(&self, hash: UserHash, name: &str) -> bool {
        self.asked.find(hash.0, |known| known.is(hash, name)).is_some()
    }

    fn take_asked(&mut self, hash: UserHash, name: &str) -> Option<Asked> {
        let found = self.asked.find_entry(hash.0, |known| known.is(hash, name));
        let asked = found.ok()?.remove().0;
        self.held -= asked.held.len();
        self.held_bytes -= asked.held.iter().map(|held| held.body.len()).sum::<usize>();
        Some(asked)
    }
}

#[derive(Clone, Copy)]
struct HeldFor<'a> {
    hash: UserHash,
    name: &'a str,
    here: bool,
}

struct HeldFull;

impl Messages {
    /// Sends a message for a user of this shard to the gateways where the user is too. `here`: a connection here has it.
    pub(super) fn send_elsewhere(
        &mut self,
        kernel: &mut Kernel,
        message: &OutgoingMessage<'_>,
        here: bool,
    ) -> Option<AckStatus> {
        let &OutgoingMessage { hash, to, body, .. } = message;
        let delivered = here.then_some(AckStatus::Delivered);
        // A sender that has `delivered` waits for nothing.
        let ack_to = if here { None } else { message.ack_to };
        if !kernel.shared.cluster.is_up() {
            kernel.metrics().dropped(DropReason::MessageRedisAway);
            return delivered.or(Some(AckStatus::Failed));
        }
        let now_ms = kernel.now.mono_ms();
        let peers = kernel.peers.as_mut()?;
        match peers.locations.find(hash, to, now_ms) {
            Some(PeerSet::Nowhere) => delivered.or(Some(AckStatus::Offline)),
            Some(peers_of_user) => {
                let route = Route {
                    hash,
                    to,
                    body,
                    peers: peers_of_user,
                    ack_to,
                };
                if kernel.lanes.try_route(&route).is_err() {
                    kernel.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                delivered
            }
            None => {
                let new = !self.parked.is_asked(hash, to);
                if new && kernel.lanes.try_locate(hash, to).is_err() {
                    kernel.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                if self
                    .parked
                    .hold(HeldFor { hash, name: to, here }, body, ack_to)
                    .is_err()
                {
                    kernel.metrics().dropped(DropReason::MessageHeldFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                delivered
            }
        }
    }

    /// The location of a user is known, or cannot be: what was held goes on, in order.
    pub(in crate::shard) fn handle_located(
        &mut self,
        kernel: &mut Kernel,
        hash: UserHash,
        to: &str,
        location: &Location,
    ) {
        let now_ms = kernel.now.mono_ms();
        let Some(peers) = kernel.peers.as_mut() else {
            return;
        };
        let asked = self.parked.take_asked(hash, to);
        if let Location::Known(places) = location {
            peers.locations.learn(hash, to, places.clone(), now_ms);
        }
        for held in asked.into_iter().flat_map(|asked| asked.held) {
            let ack_to = held.ack_to.as_ref().map(HeldAckTo::as_ack_to);
            let status = match location {
                Location::Known(places) | Location::Fleeting(places) if !places.is_empty() => {
                    let route = Route {
                        hash,
                        to,
                        body: &held.body,
                        peers: places,
                        ack_to,
                    };
                    match kernel.lanes.try_route(&route) {
                        Ok(()) => continue,
                        Err(_) => {
                            kernel.metrics().dropped(DropReason::MessageLaneFull);
                            AckStatus::Failed
                        }
                    }
                }
                Location::Known(_) | Location::Fleeting(_) => AckStatus::Offline,
                Location::Unknown => {
                    kernel.metrics().dropped(DropReason::MessageRedisAway);
                    AckStatus::Failed
                }
            };
            if status == AckStatus::Offline && !held.here {
                kernel.metrics().dropped(DropReason::MessageOffline);
            }
            if let Some(ack_to) = &ack_to {
                kernel.answer(ack_to, status);
            }
        }
    }

    /// A message of another gateway for a user of this shard. `index`: in its packet, if the sender wants to hear.
    pub(in crate::shard) fn handle_from_gateway(
        &mut self,
        kernel: &mut Kernel,
        (hash, to): (UserHash, &str),
        body: &[u8],
        index: Option<u16>,
        received_ns: u64,
    ) {
        if self.deliver(kernel, (hash, to), body) {
            kernel.turn.from_gateways.push(received_ns);
        } else {
            kernel.metrics().dropped(DropReason::MessageMissed);
            self.missed.extend(index);
        }
    }

    /// This shard has all its messages of a packet.
    pub(in crate::shard) fn handle_packet_end(&mut self, kernel: &mut Kernel, packet: u32) {
        let missed = std::mem::take(&mut self.missed);
        kernel
            .lanes
            .push_control(MessageToControl::PacketDone { packet, missed });
    }
}
