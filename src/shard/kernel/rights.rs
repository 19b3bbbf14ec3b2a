//! What a user may do: by the configuration, or by the token of the connection.

use super::Kernel;
use crate::auth::Rights;

impl Kernel {
    /// What the token of this connection permits besides the configuration, or in its place.
    fn rights(&self, slot: u32) -> Option<&Rights> {
        self.connections[slot as usize].grant.as_ref()?.rights.as_deref()
    }

    /// The user of an open connection.
    fn user_name(&self, slot: u32) -> Option<&str> {
        let user = self.connections[slot as usize].user?;
        Some(self.users.name(user))
    }

    /// May the user on `slot` subscribe to this channel?
    pub(in crate::shard) fn may_subscribe(&self, slot: u32, channel: &str) -> bool {
        self.user_name(slot).is_some_and(|user| {
            let granted = || {
                self.rights(slot)
                    .is_some_and(|rights| rights.subscribe.allows(user, channel))
            };
            self.settings.subscribe.allows(user, channel) || granted()
        })
    }

    /// May the user on `slot` publish on this channel?
    pub(in crate::shard) fn may_publish(&self, slot: u32, channel: &str) -> bool {
        self.user_name(slot).is_some_and(|user| {
            let granted = || {
                self.rights(slot)
                    .is_some_and(|rights| rights.publish.allows(user, channel))
            };
            self.settings.publish.allows(user, channel) || granted()
        })
    }

    /// May the user on `slot` write to this user?
    pub(in crate::shard) fn may_write_to(&self, slot: u32, to: &str) -> bool {
        let granted = self.rights(slot).and_then(|rights| rights.write_to.as_ref());
        let allowed = granted.unwrap_or(&self.settings.send);
        self.user_name(slot).is_some_and(|user| allowed.allows(user, to))
    }

    /// May the user on `slot` see whether this user is there?
    pub(in crate::shard) fn may_see(&self, slot: u32, whom: &str) -> bool {
        let granted = self.rights(slot).and_then(|rights| rights.see.as_ref());
        let allowed = granted.unwrap_or(&self.settings.see);
        self.user_name(slot).is_some_and(|user| allowed.allows(user, whom))
    }
}
