//! The users of one shard and their connections, oldest first.
//!
//! Invariants: a user is in the table exactly while it has a connection; a slot is in at most one
//! user's list. Cost: about 75 bytes per user with one device (entry, name on the heap, table).

use super::UserHash;
use super::index::Index;

/// Names a user on its home shard while it has connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserIndex(u32);

/// The users of one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct Users {
    table: Index,
    entries: Vec<UserEntry>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct UserEntry {
    hash: UserHash,
    name: Box<str>,
    devices: Devices,
}

/// Nearly every user has one device.
#[derive(Debug)]
enum Devices {
    One(u32),
    /// No spare capacity: 16 bytes in the entry, and devices come and go rarely.
    Many(Box<[u32]>),
}

impl Devices {
    fn as_slice(&self) -> &[u32] {
        match self {
            Devices::One(slot) => std::slice::from_ref(slot),
            Devices::Many(slots) => slots,
        }
    }
}

impl Users {
    /// Number of users that have a connection here.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Number of connections in all users' lists. Goes through all users: for checks.
    pub fn connections(&self) -> usize {
        let users = self.table.iter();
        users.map(|index| self.devices(UserIndex(index)).len()).sum()
    }

    /// True when nobody is here.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The user of this name, if it has a connection here.
    pub fn find(&self, hash: UserHash, name: &str) -> Option<UserIndex> {
        let found = self
            .table
            .find(hash.0, |index| *self.entries[index as usize].name == *name);
        found.map(UserIndex)
    }

    /// Adds a connection to a user; the first connection creates the user.
    pub fn join(&mut self, hash: UserHash, name: &str, slot: u32) -> UserIndex {
        if let Some(user) = self.find(hash, name) {
            let devices = &mut self.entries[user.0 as usize].devices;
            match devices {
                Devices::One(first) => *devices = Devices::Many(Box::new([*first, slot])),
                Devices::Many(slots) => {
                    let mut more = std::mem::take(slots).into_vec();
                    more.push(slot);
                    *slots = more.into_boxed_slice();
                }
            }
            return user;
        }
        let entry = UserEntry {
            hash,
            name: name.into(),
            devices: Devices::One(slot),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.table.insert(hash.0, index);
        UserIndex(index)
    }

    /// Takes a connection away from a user; the last connection takes the user out of the table.
    pub fn leave(&mut self, user: UserIndex, slot: u32) {
        let entry = &mut self.entries[user.0 as usize];
        if let Devices::Many(slots) = &mut entry.devices {
            let mut left = std::mem::take(slots).into_vec();
            left.retain(|s| *s != slot);
            entry.devices = match left[..] {
                [last] => Devices::One(last),
                _ => Devices::Many(left.into_boxed_slice()),
            };
            return;
        }
        debug_assert_eq!(entry.devices.as_slice(), [slot], "leaving without having joined");
        entry.name = Box::default();
        if self.table.remove(entry.hash.0, user.0) {
            self.free.push(user.0);
        }
    }

    /// The connections of a user, oldest first; never empty.
    pub fn devices(&self, user: UserIndex) -> &[u32] {
        self.entries[user.0 as usize].devices.as_slice()
    }

    /// A page of users: at most `count` entries of the table from `from` on, and where the next
    /// page begins.
    pub fn page(&self, from: u32, count: u32) -> (impl Iterator<Item = (&str, usize)>, Option<u32>) {
        let end = (from as usize).saturating_add(count as usize).min(self.entries.len());
        let start = (from as usize).min(end);
        // A free entry has no name.
        let users = self.entries[start..end].iter().filter(|entry| !entry.name.is_empty());
        let next = (end < self.entries.len()).then_some(end as u32);
        (users.map(|entry| (&*entry.name, entry.devices.as_slice().len())), next)
    }

    /// The id of a user.
    pub fn name(&self, user: UserIndex) -> &str {
        &self.entries[user.0 as usize].name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::HomeMap;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Joins and leaves in any order agree with a plain map.
        #[test]
        fn agrees_with_a_model(steps in prop::collection::vec((0u8..6, 0u32..12), 0..200)) {
            let map = HomeMap::new(1, [1; 16]);
            let mut users = Users::default();
            let mut model: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            let mut of_slot: BTreeMap<u32, (UserIndex, String)> = BTreeMap::new();
            for (who, slot) in steps {
                let name = format!("user{who}");
                if let Some((user, name)) = of_slot.remove(&slot) {
                    users.leave(user, slot);
                    let list = model.get_mut(&name).unwrap();
                    list.retain(|s| *s != slot);
                    if list.is_empty() { model.remove(&name); }
                } else {
                    let user = users.join(map.hash(&name), &name, slot);
                    of_slot.insert(slot, (user, name.clone()));
                    model.entry(name).or_default().push(slot);
                }
                prop_assert_eq!(users.len(), model.len());
                for who in 0..6 {
                    let name = format!("user{who}");
                    let found = users.find(map.hash(&name), &name);
                    prop_assert_eq!(found.map(|u| users.devices(u).to_vec()), model.get(&name).cloned());
                    if let Some(found) = found { prop_assert_eq!(users.name(found), name); }
                }
            }
        }
    }
}
