//! What the control thread is told of a shard's users, and what is known of their locations.

use super::Kernel;
use crate::lanes::PresenceToControl;
use crate::router::UserHash;
use crate::router::users::UserIndex;

impl Kernel {
    /// Whether a user of this shard who is not here is elsewhere; `None`: others must be asked.
    pub(in crate::shard) fn is_known_elsewhere(&mut self, hash: UserHash, user: &str) -> Option<bool> {
        let Some(peers) = &mut self.peers else {
            return Some(false);
        };
        // While Redis is away, nobody tells what has changed.
        if !self.shared.cluster.is_up() {
            return None;
        }
        let places = peers.locations.find(hash, user, self.now.mono_ms())?;
        Some(!places.is_empty())
    }

    /// A user may have moved.
    pub(in crate::shard) fn forget_location(&mut self, hash: UserHash, user: &str) {
        if let Some(peers) = &mut self.peers {
            peers.locations.forget(hash, user);
        }
    }

    /// Any user may have moved.
    pub(in crate::shard) fn forget_locations(&mut self) {
        if let Some(peers) = &mut self.peers {
            peers.locations.clear();
        }
    }

    /// The connections of a user changed: other gateways shall know.
    pub(in crate::shard) fn tell_presence(&mut self, user: UserIndex, connections: usize) {
        if let Some(peers) = &mut self.peers {
            let told = self.lanes.try_presence(self.users.name(user), connections as u32);
            peers.presence_lost |= told.is_err();
        }
    }

    /// Says that changes of presence were lost, as soon as the lane takes it.
    pub(in crate::shard) fn tell_presence_lost(&mut self) {
        if let Some(peers) = &mut self.peers
            && peers.presence_lost
            && self.lanes.control_has_room()
        {
            peers.presence_lost = false;
            self.lanes.push_control(PresenceToControl::Lost);
        }
    }

    /// Tells the control thread the users in these slots.
    pub(in crate::shard) fn review_page(&mut self, round: u32, from: u32, count: u32) {
        let (users, next) = self.users.page(from, count);
        self.lanes.users_reviewed((round, Some(next)), users);
    }

    /// Tells the control thread which of these users are here.
    pub(in crate::shard) fn review_users<'a>(&mut self, round: u32, users: impl Iterator<Item = (UserHash, &'a str)>) {
        let here = users.filter_map(|(hash, user)| {
            let index = self.users.find(hash, user)?;
            Some((user, self.users.devices(index).len()))
        });
        self.lanes.users_reviewed((round, None), here);
    }

    /// Tells the control thread which of these users are not here.
    pub(in crate::shard) fn check_users<'a>(&mut self, users: impl Iterator<Item = (UserHash, &'a str)>) {
        for (hash, user) in users {
            if self.users.find(hash, user).is_none()
                && let Some(peers) = &mut self.peers
            {
                let told = self.lanes.try_presence(user, 0);
                peers.presence_lost |= told.is_err();
            }
        }
    }

    /// Tells the control thread some users.
    pub(in crate::shard) fn list_users(&mut self, round: u32, from: u32, count: u32) {
        let Some(peers) = &mut self.peers else {
            return;
        };
        let (users, next) = self.users.page(from, count);
        for (user, connections) in users {
            let told = self.lanes.try_presence(user, connections as u32);
            peers.presence_lost |= told.is_err();
        }
        self.lanes.push_control(PresenceToControl::Listed { round, next });
    }
}
