//! On which other gateways users are: what one shard has learned about the users who live on it.
//!
//! Pure. A bounded memory of two tables, a young and an old one. A look-up moves its entry to the
//! young table. When the young table has half of all entries, it becomes the old one. The former
//! old table is dropped, with the entries that were not looked up since.
//!
//! Invariant: an entry is in at most one of the two. Cost: about 80 bytes per user.

use hashbrown::HashTable;

use super::UserHash;

/// Names another gateway, as long as this process lives; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// Gateways. Nearly every user is on one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PeerSet {
    /// None.
    #[default]
    Nowhere,
    /// One.
    One(PeerId),
    /// More.
    Many(Box<[PeerId]>),
}

impl PeerSet {
    /// The gateways.
    pub fn as_slice(&self) -> &[PeerId] {
        match self {
            PeerSet::Nowhere => &[],
            PeerSet::One(peer) => std::slice::from_ref(peer),
            PeerSet::Many(peers) => peers,
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl FromIterator<PeerId> for PeerSet {
    fn from_iter<I: IntoIterator<Item = PeerId>>(peers: I) -> Self {
        let mut peers = peers.into_iter();
        match (peers.next(), peers.next()) {
            (None, _) => PeerSet::Nowhere,
            (Some(only), None) => PeerSet::One(only),
            (Some(first), Some(second)) => PeerSet::Many([first, second].into_iter().chain(peers).collect()),
        }
    }
}

/// Users whose locations one shard remembers: 65,536, a few megabytes, more than are written to in
/// a while.
pub const REMEMBERED_MAX: usize = 65_536;
/// An older entry is looked up again, although no change was announced: no error lasts.
pub const REMEMBERED_MS: u64 = 300_000;

/// The memory of one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct Locations {
    young: HashTable<Remembered>,
    old: HashTable<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    hash: UserHash,
    name: Box<str>,
    peers: PeerSet,
    learned_ms: u64,
}

fn take(table: &mut HashTable<Remembered>, hash: UserHash, name: &str) -> Option<Remembered> {
    let found = table.find_entry(hash.0, |entry| entry.hash == hash && *entry.name == *name);
    found.ok().map(|entry| entry.remove().0)
}

impl Locations {
    /// Number of users whose locations are known.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the user is, if that is known.
    pub fn find(&mut self, hash: UserHash, name: &str, now_ms: u64) -> Option<&PeerSet> {
        let known = |entry: &Remembered| entry.hash == hash && *entry.name == *name;
        if self.young.find(hash.0, known).is_none() {
            let entry = take(&mut self.old, hash, name)?;
            self.keep(entry);
        }
        let entry = self.young.find(hash.0, known)?;
        (now_ms.saturating_sub(entry.learned_ms) < REMEMBERED_MS).then_some(&entry.peers)
    }

    /// Remembers where the user is.
    pub fn learn(&mut self, hash: UserHash, name: &str, peers: PeerSet, now_ms: u64) {
        self.forget(hash, name);
        self.keep(Remembered {
            hash,
            name: name.into(),
            peers,
            learned_ms: now_ms,
        });
    }

    fn keep(&mut self, entry: Remembered) {
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
        locations.learn(alice, "alice", PeerSet::Nowhere, 10);
        locations.learn(bob, "bob", [PeerId(1), PeerId(2), PeerId(3)].into_iter().collect(), 10);
        assert_eq!(locations.find(alice, "alice", 11), Some(&PeerSet::Nowhere));
        assert_eq!(
            locations.find(bob, "bob", 11).unwrap().as_slice(),
            [PeerId(1), PeerId(2), PeerId(3)]
        );
        locations.learn(alice, "alice", PeerSet::One(PeerId(7)), 20);
        assert_eq!(locations.len(), 2);
        assert_eq!(locations.find(alice, "alice", 21), Some(&PeerSet::One(PeerId(7))));
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
        locations.learn(used, "used", PeerSet::One(PeerId(1)), 0);
        for n in 0..steps {
            let name = format!("user{n}");
            locations.learn(map.hash(&name), &name, PeerSet::Nowhere, 0);
            if n % 1000 == 0 {
                assert!(locations.find(used, "used", 1).is_some(), "{n}");
            }
            assert!(locations.len() <= REMEMBERED_MAX);
        }
        assert_eq!(locations.find(map.hash("user0"), "user0", 1).is_some(), cfg!(miri));
    }
}
