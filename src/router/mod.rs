//! The maps of the gateway: from user id or channel to shard, from user to connections, from
//! channel to subscribers.
//!
//! Pure. [`HomeMap`] is the same immutable value on every shard; the tables belong to one shard
//! each.

pub mod channels;
mod index;
pub mod interests;
pub mod locations;
pub mod users;

use siphasher::sip::SipHasher13;

use crate::ids::ShardId;

/// The user-to-shard lookup: a pure function, no table, no lock. Seeded, so that clients cannot aim
/// many users at one shard; fixed for the life of the process.
#[derive(Debug, Clone)]
pub struct HomeMap {
    hasher: SipHasher13,
    shards: u16,
    partitions: u16,
}

/// The seeded hash of a user id; the same for the home map and the tables of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserHash(pub u64);

/// The seeded hash of a channel's name; the same for the tables of all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelHash(pub u64);

/// A share of all channels. Which one a channel belongs to is the same on all gateways of a
/// cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition(pub u16);

/// `channels.partitions` where nobody sets it.
pub const PARTITIONS: u16 = 64;

impl HomeMap {
    /// A map over this many shards, at least one. The key is random and secret, except where a test
    /// repeats itself.
    pub fn new(shards: u16, key: [u8; 16]) -> Self {
        assert!(shards > 0, "a gateway has at least one shard");
        HomeMap {
            hasher: SipHasher13::new_with_key(&key),
            shards,
            partitions: PARTITIONS,
        }
    }

    /// The same map with another number of partitions, at least one.
    pub fn with_partitions(self, partitions: u16) -> Self {
        assert!(partitions > 0, "a channel has a partition");
        HomeMap { partitions, ..self }
    }

    /// The hash of a channel's name.
    pub fn channel_hash(&self, channel: &str) -> ChannelHash {
        ChannelHash(self.hasher.hash(channel.as_bytes()))
    }

    /// The partition of a channel. Other gateways come to the same one, so nothing secret goes into
    /// it.
    pub fn partition(&self, channel: &str) -> Partition {
        let hash = SipHasher13::new().hash(channel.as_bytes());
        let scaled = ((hash >> 32) * u64::from(self.partitions)) >> 32;
        Partition(scaled as u16)
    }

    /// The shard that knows which shards have subscribers of the channels of this partition.
    pub fn partition_home(&self, partition: Partition) -> ShardId {
        ShardId(partition.0 % self.shards)
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions
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

    /// Gateways of a cluster must agree, also those of different releases: these are never to
    /// change.
    #[test]
    fn partitions_are_the_same_for_ever() {
        let maps = [
            HomeMap::new(3, [7; 16]),
            HomeMap::new(1, [8; 16]).with_partitions(PARTITIONS),
        ];
        for map in maps {
            let partitions = ["room1", "ä", "x"].map(|channel| map.partition(channel).0);
            assert_eq!(partitions, [2, 43, 52]);
            assert_eq!(map.clone().with_partitions(1).partition("room1"), Partition(0));
        }
    }

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
