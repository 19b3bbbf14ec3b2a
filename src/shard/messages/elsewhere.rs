//! Direct messages to users who may be on other gateways, and from those gateways.
//!
//! All messages to one user pass their home shard here, and from there the control thread, in one
//! order. A message that comes while the location is being asked for waits behind those that came
//! before.

use super::Messages;
use super::parked::{HeldAckTo, HeldFor};
use crate::lanes::{Location, MessageToControl, OutgoingMessage, Route};
use crate::metrics::DropReason;
use crate::router::UserHash;
use crate::router::locations::PeerSet;
use crate::shard::kernel::Kernel;
use crate::wire::message::AckStatus;

impl Messages {
    /// Sends a message for a user of this shard to the gateways where the user is too. `here`: a
    /// connection here has it.
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

    /// A message of another gateway for a user of this shard. `index`: in its packet, if the sender
    /// wants to hear.
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
