//! Who is where: from user id to shard, and on the home shard from user to connections.
//!
//! Pure. [`HomeMap`] is the same immutable value on every shard; [`users::Users`] belongs to one shard.

pub mod locations;
pub mod users;

use siphasher::sip::SipHasher13;

use crate::ids::ShardId;

/// The user-to-shard lookup: a pure function, no table, no lock. Seeded, so that nobody outside can aim
/// many users at one shard; fixed for the life of the process.
#[derive(Debug, Clone)]
pub struct HomeMap {
    hasher: SipHasher13,
    shards: u16,
}

/// The seeded hash of a user id; the same for the home map and the tables of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserHash(pub u64);

impl HomeMap {
    /// A map over this many shards, at least one. The key is random and secret, except where a test repeats itself.
    pub fn new(shards: u16, key: [u8; 16]) -> Self {
        assert!(shards > 0, "a gateway has at least one shard");
        HomeMap {
            hasher: SipHasher13::new_with_key(&key),
            shards,
        }
    }

    /// The hash of a user id.
    pub fn hash(&self, user: &str) -> UserHash {
        UserHash(self.hasher.hash(user.as_bytes()))
    }

    /// The shard on which all connections of this user live.
    pub fn home(&self, hash: UserHash) -> ShardId {
        // The upper half of the hash, scaled: the tables use the lower bits.
        let scaled = ((hash.0 >> 32) * u64::from(self.shards)) >> 32;
        ShardId(scaled as u16)
    }

    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_in_range_stable_and_even() {
        let map = HomeMap::new(7, [7; 16]);
        let copy = map.clone();
        let mut counts = [0u32; 7];
        // Miri is a thousand times slower.
        let users = if cfg!(miri) { 700 } else { 70_000 };
        for n in 0..users {
            let user = format!("user{n}");
            let home = map.home(map.hash(&user));
            assert_eq!(home, copy.home(copy.hash(&user)));
            counts[home.index()] += 1;
        }
        assert!(
            cfg!(miri) || counts.iter().all(|c| (9_000..11_000).contains(c)),
            "{counts:?}"
        );
    }
}
