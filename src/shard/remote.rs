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
use crate::lanes::{Batch, Instruction, Item, Location, Route, Wanted};
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
#[derive(Debug)]
pub(super) struct Remote {
    /// The control thread's place among the lanes.
    pub(super) control: ShardId,
    locations: Locations,
    asked: HashTable<Asked>,
    held: usize,
    held_bytes: usize,
    /// A change of presence did not fit into the lane.
    presence_lost: bool,
    /// Places in the packet being handled of messages that nobody took.
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
    wanted: Option<HeldWanted>,
}

#[derive(Debug)]
struct HeldWanted {
    shard: ShardId,
    conn: SocketKey,
    client_id: Box<str>,
    message_id: Uuid,
}

impl HeldWanted {
    fn as_wanted(&self) -> Wanted<'_> {
        Wanted {
            shard: self.shard,
            conn: self.conn,
            client_id: &self.client_id,
            message_id: self.message_id,
        }
    }
}

impl Remote {
    pub(super) fn new(control: ShardId) -> Self {
        Remote {
            control,
            locations: Locations::default(),
            asked: HashTable::new(),
            held: 0,
            held_bytes: 0,
            presence_lost: false,
            missed: Vec::new(),
        }
    }

    /// Users whose places are being asked for.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    fn hold(&mut self, asked: HeldFor<'_>, frame: &[u8], wanted: Option<Wanted<'_>>) -> Result<(), HeldFull> {
        if self.held >= HELD_MAX || self.held_bytes + frame.len() > HELD_BYTES_MAX {
            return Err(HeldFull);
        }
        let held = Held {
            frame: frame.into(),
            here: asked.here,
            wanted: wanted.map(|wanted| HeldWanted {
                shard: wanted.shard,
                conn: wanted.conn,
                client_id: wanted.client_id.into(),
                message_id: wanted.message_id,
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
        wanted: Option<Wanted<'_>>,
    ) -> Option<AckStatus> {
        let delivered = here.then_some(AckStatus::Delivered);
        // Whoever has `delivered` waits for nothing.
        let wanted = if here { None } else { wanted };
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
                    wanted,
                };
                if self.lanes.try_route(remote.control, &route).is_err() {
                    self.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                delivered
            }
            None => {
                let new = !remote.is_asked(hash, to);
                if new && self.lanes.try_locate(remote.control, hash, to).is_err() {
                    self.metrics().dropped(DropReason::MessageLaneFull);
                    return delivered.or(Some(AckStatus::Failed));
                }
                if remote.hold(HeldFor { hash, name: to, here }, frame, wanted).is_err() {
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
    fn handle_located(&mut self, hash: UserHash, to: &str, location: &Location) {
        let now_ms = self.now.mono_ms();
        let Some(remote) = self.remote.as_mut() else {
            return;
        };
        let asked = remote.take_asked(hash, to);
        let control = remote.control;
        if let Location::Known(places) = location {
            remote.locations.learn(hash, to, places.clone(), now_ms);
        }
        for held in asked.into_iter().flat_map(|asked| asked.held) {
            let wanted = held.wanted.as_ref().map(HeldWanted::as_wanted);
            let status = match location {
                Location::Known(places) | Location::Fleeting(places) if !places.is_empty() => {
                    let route = Route {
                        hash,
                        to,
                        frame: &held.frame,
                        places,
                        wanted,
                    };
                    match self.lanes.try_route(control, &route) {
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
            if let Some(wanted) = &wanted {
                self.answer(wanted, status);
            }
        }
    }

    /// The connections of a user changed: other gateways shall know.
    pub(super) fn tell_presence(&mut self, user: UserIndex, connections: usize) {
        if let Some(remote) = &mut self.remote {
            let told = self
                .lanes
                .try_presence(remote.control, self.users.name(user), connections as u32);
            remote.presence_lost |= told.is_err();
        }
    }

    /// Says that changes of presence were lost, as soon as the lane takes it.
    pub(super) fn tell_presence_lost(&mut self) {
        if let Some(remote) = &mut self.remote
            && remote.presence_lost
            && self.lanes.has_room(remote.control)
        {
            remote.presence_lost = false;
            self.lanes.push(remote.control, Item::PresenceLost);
        }
    }

    /// Carries out what only the control thread says.
    pub(super) fn handle_control_item(&mut self, batch: &Batch, item: Item) {
        match item {
            Item::Located { hash, user, location } => self.handle_located(hash, batch.text(user), &location),
            Item::Forget { hash, user } => {
                if let Some(remote) = &mut self.remote {
                    remote.locations.forget(hash, batch.text(user));
                }
            }
            Item::ForgetAll => {
                if let Some(remote) = &mut self.remote {
                    remote.locations.clear();
                }
            }
            Item::FromGateway {
                hash,
                to,
                frame,
                place,
                received_ns,
            } => {
                self.turn.interactive = true;
                if self.deliver(hash, batch.text(to), batch.bytes(frame)) {
                    self.turn.from_gateways.push(received_ns);
                } else {
                    self.metrics().dropped(DropReason::MessageMissed);
                    if let Some(remote) = &mut self.remote {
                        remote.missed.extend(place);
                    }
                }
            }
            Item::PacketEnd { packet } => {
                if let Some(remote) = &mut self.remote {
                    let missed = std::mem::take(&mut remote.missed);
                    self.lanes.push(remote.control, Item::PacketDone { packet, missed });
                }
            }
            Item::Ack {
                conn,
                client_id,
                message_id,
                status,
            } => {
                let wanted = Wanted {
                    shard: self.me,
                    conn,
                    client_id: batch.text(client_id),
                    message_id,
                };
                self.answer(&wanted, status);
            }
            Item::ListUsers { round, from, count } => self.list_users(round, from, count),
            Item::ReviewPage { round, from, count } => {
                if let Some(remote) = &self.remote {
                    let (users, next) = self.users.page(from, count);
                    self.lanes.users_reviewed(remote.control, (round, Some(next)), users);
                }
            }
            Item::ReviewUsers { round, users } => {
                if let Some(remote) = &self.remote {
                    let here = users.iter().filter_map(|(hash, user)| {
                        let user = batch.text(*user);
                        let index = self.users.find(*hash, user)?;
                        Some((user, self.users.devices(index).len()))
                    });
                    self.lanes.users_reviewed(remote.control, (round, None), here);
                }
            }
            Item::CheckUsers { users } => {
                for (hash, user) in users {
                    let user = batch.text(user);
                    if self.users.find(hash, user).is_none()
                        && let Some(remote) = &mut self.remote
                    {
                        let told = self.lanes.try_presence(remote.control, user, 0);
                        remote.presence_lost |= told.is_err();
                    }
                }
            }
            other => debug_assert!(false, "not for a shard: {other:?}"),
        }
    }

    fn list_users(&mut self, round: u32, from: u32, count: u32) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let (users, next) = self.users.page(from, count);
        for (user, connections) in users {
            let told = self.lanes.try_presence(remote.control, user, connections as u32);
            remote.presence_lost |= told.is_err();
        }
        self.lanes.push(remote.control, Item::UsersListed { round, next });
    }

    /// Carries out what concerns all shards.
    pub(super) fn handle_instruction(&mut self, instruction: &Instruction) {
        match instruction {
            Instruction::Broadcast(frame) => self.queue_broadcast(frame.clone(), None),
            Instruction::CloseUser { user, reason } => {
                self.close_user(user, *reason);
            }
            Instruction::EndSubscription { user, channel } => {
                self.end_subscriptions(user, channel);
            }
        }
    }
}
