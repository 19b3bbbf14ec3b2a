//! Users who are on other gateways too: where they are, what waits until that is known, what other gateways send.
//!
//! Owned by the shard. All messages to one user pass their home shard here, and from there the control thread, in one
//! order, so that order is kept also while the places of the user change: what comes while a place is being asked for
//! waits behind what came before.
//!
//! Invariant: a user whose messages are held is being asked for, so each held message has an end.

use hashbrown::HashTable;

use super::core::Core;
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::{AckTo, Location, MessageToControl, PresenceToControl, Route};
use crate::metrics::DropReason;
use crate::router::UserHash;
use crate::router::locations::{Locations, Places};
use crate::router::users::UserIndex;
use crate::wire::json::encode::AckStatus;
use uuid::Uuid;

/// Messages that one shard may hold for users whose places are being asked for, which takes a round trip to Redis.
const HELD_MAX: usize = 16_384;
/// Bytes of them.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a shard knows of other gateways.
#[derive(Debug, Default)]
pub(super) struct Remote {
    locations: Locations,
    asked: HashTable<Asked>,
    held: usize,
    held_bytes: usize,
    /// A change of presence did not fit into the lane.
    presence_lost: bool,
    /// Indexes in the packet being handled of messages that nobody took.
    missed: Vec<u16>,
}

/// A user whose places are being asked for.
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
    frame: Box<[u8]>,
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

impl Remote {
    /// Users whose places are being asked for.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    fn hold(&mut self, asked: HeldFor<'_>, frame: &[u8], ack_to: Option<AckTo<'_>>) -> Result<(), HeldFull> {
        if self.held >= HELD_MAX || self.held_bytes + frame.len() > HELD_BYTES_MAX {
            return Err(HeldFull);
        }
        let held = Held {
            frame: frame.into(),
            here: asked.here,
            ack_to: ack_to.map(|ack_to| HeldAckTo {
                shard: ack_to.shard,
                conn: ack_to.conn,
                client_id: ack_to.client_id.into(),
                message_id: ack_to.message_id,
            }),
        };
        self.held += 1;
        self.held_bytes += frame.len();
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
        self.held_bytes -= asked.held.iter().map(|held| held.frame.len()).sum::<usize>();
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

impl Core {
    /// Sends a message for a user of this shard to the gateways where the user is too. `here`: a connection here has it.
    pub(super) fn send_elsewhere(
        &mut self,
        hash: UserHash,
        to: &str,
        frame: &[u8],
        here: bool,
        ack_to: Option<AckTo<'_>>,
    ) -> Option<AckStatus> {
        let delivered = here.then_some(AckStatus::Delivered);
        // Whoever has `delivered` waits for nothing.
        let ack_to = if here { None } else { ack_to };
        if !self.shared.cluster.is_up() {
            self.metrics().dropped(DropReason::MessageRedisAway);
            return delivered.or(Some(AckStatus::Failed));
        }
        let now_ms = self.now.mono_ms();
        let remote = self.remote.as_mut()?;
        match remote.locations.find(hash, to, now_ms) {
            Some(Places::Nowhere) => delivered.or(Some(AckStatus::Offline)),
            Some(places) => {
                let route = Route {
                    hash,
                    to,
                    frame,
                    places,
                    ack_to,
                };
                if self.lanes.try_route(&route).is_err() {
                    self.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                delivered
            }
            None => {
                let new = !remote.is_asked(hash, to);
                if new && self.lanes.try_locate(hash, to).is_err() {
                    self.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                if remote.hold(HeldFor { hash, name: to, here }, frame, ack_to).is_err() {
                    self.metrics().dropped(DropReason::MessageHeldFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                delivered
            }
        }
    }

    /// Whether a user of this shard who is not here is elsewhere; `None`: others must be asked.
    pub(super) fn is_known_elsewhere(&mut self, hash: UserHash, user: &str) -> Option<bool> {
        let Some(remote) = &mut self.remote else {
            return Some(false);
        };
        // While Redis is away, nobody tells what has changed.
        if !self.shared.cluster.is_up() {
            return None;
        }
        let places = remote.locations.find(hash, user, self.now.mono_ms())?;
        Some(!places.is_empty())
    }

    /// The places of a user are known, or cannot be: what was held goes on, in order.
    pub(super) fn handle_located(&mut self, hash: UserHash, to: &str, location: &Location) {
        let now_ms = self.now.mono_ms();
        let Some(remote) = self.remote.as_mut() else {
            return;
        };
        let asked = remote.take_asked(hash, to);
        if let Location::Known(places) = location {
            remote.locations.learn(hash, to, places.clone(), now_ms);
        }
        for held in asked.into_iter().flat_map(|asked| asked.held) {
            let ack_to = held.ack_to.as_ref().map(HeldAckTo::as_ack_to);
            let status = match location {
                Location::Known(places) | Location::Fleeting(places) if !places.is_empty() => {
                    let route = Route {
                        hash,
                        to,
                        frame: &held.frame,
                        places,
                        ack_to,
                    };
                    match self.lanes.try_route(&route) {
                        Ok(()) => continue,
                        Err(_) => {
                            self.metrics().dropped(DropReason::MessageLaneFull);
                            AckStatus::Failed
                        }
                    }
                }
                Location::Known(_) | Location::Fleeting(_) => AckStatus::Offline,
                Location::Unknown => {
                    self.metrics().dropped(DropReason::MessageRedisAway);
                    AckStatus::Failed
                }
            };
            if status == AckStatus::Offline && !held.here {
                self.metrics().dropped(DropReason::MessageOffline);
            }
            if let Some(ack_to) = &ack_to {
                self.answer(ack_to, status);
            }
        }
    }

    /// The connections of a user changed: other gateways shall know.
    pub(super) fn tell_presence(&mut self, user: UserIndex, connections: usize) {
        if let Some(remote) = &mut self.remote {
            let told = self.lanes.try_presence(self.users.name(user), connections as u32);
            remote.presence_lost |= told.is_err();
        }
    }

    /// Says that changes of presence were lost, as soon as the lane takes it.
    pub(super) fn tell_presence_lost(&mut self) {
        if let Some(remote) = &mut self.remote
            && remote.presence_lost
            && self.lanes.control_has_room()
        {
            remote.presence_lost = false;
            self.lanes.push_control(PresenceToControl::Lost);
        }
    }

    /// A message of another gateway for a user of this shard. `index`: in its packet, if the sender wants to hear.
    pub(super) fn handle_from_gateway(
        &mut self,
        (hash, to): (UserHash, &str),
        frame: &[u8],
        index: Option<u16>,
        received_ns: u64,
    ) {
        if self.deliver(hash, to, frame) {
            self.turn.from_gateways.push(received_ns);
        } else {
            self.metrics().dropped(DropReason::MessageMissed);
            if let Some(remote) = &mut self.remote {
                remote.missed.extend(index);
            }
        }
    }

    /// This shard has all its messages of a packet.
    pub(super) fn handle_packet_end(&mut self, packet: u32) {
        if let Some(remote) = &mut self.remote {
            let missed = std::mem::take(&mut remote.missed);
            self.lanes.push_control(MessageToControl::PacketDone { packet, missed });
        }
    }

    /// A user may have moved.
    pub(super) fn forget_location(&mut self, hash: UserHash, user: &str) {
        if let Some(remote) = &mut self.remote {
            remote.locations.forget(hash, user);
        }
    }

    /// Any user may have moved.
    pub(super) fn forget_locations(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.locations.clear();
        }
    }

    /// Tells the control thread the users in these slots.
    pub(super) fn review_page(&mut self, round: u32, from: u32, count: u32) {
        let (users, next) = self.users.page(from, count);
        self.lanes.users_reviewed((round, Some(next)), users);
    }

    /// Tells the control thread which of these users are here.
    pub(super) fn review_users<'a>(&mut self, round: u32, users: impl Iterator<Item = (UserHash, &'a str)>) {
        let here = users.filter_map(|(hash, user)| {
            let index = self.users.find(hash, user)?;
            Some((user, self.users.devices(index).len()))
        });
        self.lanes.users_reviewed((round, None), here);
    }

    /// Tells the control thread which of these users are not here.
    pub(super) fn check_users<'a>(&mut self, users: impl Iterator<Item = (UserHash, &'a str)>) {
        for (hash, user) in users {
            if self.users.find(hash, user).is_none()
                && let Some(remote) = &mut self.remote
            {
                let told = self.lanes.try_presence(user, 0);
                remote.presence_lost |= told.is_err();
            }
        }
    }

    /// Tells the control thread some users.
    pub(super) fn list_users(&mut self, round: u32, from: u32, count: u32) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let (users, next) = self.users.page(from, count);
        for (user, connections) in users {
            let told = self.lanes.try_presence(user, connections as u32);
            remote.presence_lost |= told.is_err();
        }
        self.lanes.push_control(PresenceToControl::Listed { round, next });
    }
}
