//! Where users are besides here: what one shard has learned about the users who live on it.
//!
//! Pure. A bounded memory: two tables, the young and the old one. What is asked for moves to the young table; when that
//! is half the memory, it becomes the old one, and what nobody asked for since goes with the former old table.
//!
//! Invariant: an entry is in at most one of the two. Cost: about 80 bytes per user.

use hashbrown::HashTable;

use super::UserHash;

/// Names another gateway, as long as this process lives; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// Gateways. Nearly every user is on one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Places {
    /// None.
    #[default]
    Nowhere,
    /// One.
    One(PeerId),
    /// More.
    Many(Box<[PeerId]>),
}

impl Places {
    /// The gateways.
    pub fn as_slice(&self) -> &[PeerId] {
        match self {
            Places::Nowhere => &[],
            Places::One(peer) => std::slice::from_ref(peer),
            Places::Many(peers) => peers,
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl FromIterator<PeerId> for Places {
    fn from_iter<I: IntoIterator<Item = PeerId>>(peers: I) -> Self {
        let mut peers = peers.into_iter();
        match (peers.next(), peers.next()) {
            (None, _) => Places::Nowhere,
            (Some(only), None) => Places::One(only),
            (Some(first), Some(second)) => Places::Many([first, second].into_iter().chain(peers).collect()),
        }
    }
}

/// Users whose places one shard remembers: 65,536, a few megabytes, more than are written to in a while.
pub const REMEMBERED_MAX: usize = 65_536;
/// What is older is asked for again, although nobody said that it changed: no error lasts.
pub const REMEMBERED_MS: u64 = 300_000;

/// The memory of one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct Locations {
    young: HashTable<Entry>,
    old: HashTable<Entry>,
}

#[derive(Debug)]
struct Entry {
    hash: UserHash,
    name: Box<str>,
    places: Places,
    learned_ms: u64,
}

fn take(table: &mut HashTable<Entry>, hash: UserHash, name: &str) -> Option<Entry> {
    let found = table.find_entry(hash.0, |entry| entry.hash == hash && *entry.name == *name);
    found.ok().map(|entry| entry.remove().0)
}

impl Locations {
    /// Users whose places are known.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the user is, if that is known.
    pub fn find(&mut self, hash: UserHash, name: &str, now_ms: u64) -> Option<&Places> {
        let known = |entry: &Entry| entry.hash == hash && *entry.name == *name;
        if self.young.find(hash.0, known).is_none() {
            let entry = take(&mut self.old, hash, name)?;
            self.keep(entry);
        }
        let entry = self.young.find(hash.0, known)?;
        (now_ms.saturating_sub(entry.learned_ms) < REMEMBERED_MS).then_some(&entry.places)
    }

    /// Remembers where the user is.
    pub fn learn(&mut self, hash: UserHash, name: &str, places: Places, now_ms: u64) {
        self.forget(hash, name);
        self.keep(Entry {
            hash,
            name: name.into(),
            places,
            learned_ms: now_ms,
        });
    }

    fn keep(&mut self, entry: Entry) {
        if self.young.len() >= REMEMBERED_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert_unique(entry.hash.0, entry, |entry| entry.hash.0);
    }

    /// Forgets a user who may have moved.
    pub fn forget(&mut self, hash: UserHash, name: &str) {
        if take(&mut self.young, hash, name).is_none() {
            take(&mut self.old, hash, name);
        }
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        *self = Locations::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::HomeMap;

    #[test]
    fn remembers_forgets_and_ages() {
        let map = HomeMap::new(1, [3; 16]);
        let mut locations = Locations::default();
        let (alice, bob) = (map.hash("alice"), map.hash("bob"));
        assert_eq!(locations.find(alice, "alice", 0), None);
        locations.learn(alice, "alice", Places::Nowhere, 10);
        locations.learn(bob, "bob", [PeerId(1), PeerId(2), PeerId(3)].into_iter().collect(), 10);
        assert_eq!(locations.find(alice, "alice", 11), Some(&Places::Nowhere));
        assert_eq!(
            locations.find(bob, "bob", 11).unwrap().as_slice(),
            [PeerId(1), PeerId(2), PeerId(3)]
        );
        locations.learn(alice, "alice", Places::One(PeerId(7)), 20);
        assert_eq!(locations.len(), 2);
        assert_eq!(locations.find(alice, "alice", 21), Some(&Places::One(PeerId(7))));
        assert_eq!(locations.find(alice, "alice", 20 + REMEMBERED_MS), None);
        locations.forget(bob, "bob");
        assert_eq!(locations.find(bob, "bob", 21), None);
        locations.clear();
        assert!(locations.is_empty());
    }

    #[test]
    fn is_bounded_and_keeps_what_is_used() {
        let map = HomeMap::new(1, [3; 16]);
        let mut locations = Locations::default();
        let steps = if cfg!(miri) { 200 } else { 3 * REMEMBERED_MAX };
        let used = map.hash("used");
        locations.learn(used, "used", Places::One(PeerId(1)), 0);
        for n in 0..steps {
            let name = format!("user{n}");
            locations.learn(map.hash(&name), &name, Places::Nowhere, 0);
            if n % 1000 == 0 {
                assert!(locations.find(used, "used", 1).is_some(), "{n}");
            }
            assert!(locations.len() <= REMEMBERED_MAX);
        }
        assert_eq!(locations.find(map.hash("user0"), "user0", 1).is_some(), cfg!(miri));
    }
}
