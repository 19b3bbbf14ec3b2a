//! Interests in the channels whose home is this shard: which other shards want their publications,
//! and so which partitions this gateway must subscribe to.
//!
//! Pure; owned by one shard. A shard joins a channel with its first subscriber and leaves it with
//! the last one, each once, in order. A join is confirmed as soon as the gateway is subscribed to
//! the partition. So a client that has received `subscribed` misses nothing.
//!
//! Cost: nothing per channel that only this shard's own connections subscribe to; about 80 bytes
//! and the name otherwise.

use hashbrown::HashTable;

use super::{ChannelHash, Partition};
use crate::ids::ShardId;

/// Where the confirmation of a join is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// The shard that joined.
    pub shard: ShardId,
    /// The number that the shard gave its join.
    pub ticket: u64,
}

/// The meaning of a change for the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The partition is wanted, or not any more.
    Wanted(bool),
}

#[derive(Debug)]
struct Interest {
    hash: ChannelHash,
    name: Box<str>,
    /// Other shards than this one, at least one.
    shards: Vec<ShardId>,
}

impl Interest {
    fn is(&self, hash: ChannelHash, name: &str) -> bool {
        self.hash == hash && *self.name == *name
    }
}

#[derive(Debug, Default)]
struct PartitionState {
    /// Joins of shards, this one's too, that have not left.
    joined: u32,
    subscribed: bool,
    waiting: Vec<Join>,
}

/// The interests in channels whose home is one shard. Owned by that shard.
#[derive(Debug, Default)]
pub struct Interests {
    table: HashTable<Interest>,
    /// By number; those of other homes stay empty.
    partitions: Vec<PartitionState>,
    /// Shards that have too much on its way to the subscribers of a channel. Few, and none as a
    /// rule.
    crowded: Vec<(ChannelHash, ShardId)>,
}

impl Interests {
    fn partition(&mut self, partition: Partition) -> &mut PartitionState {
        let index = usize::from(partition.0);
        if index >= self.partitions.len() {
            self.partitions.resize_with(index + 1, PartitionState::default);
        }
        &mut self.partitions[index]
    }

    /// A shard has its first subscriber of a channel. `elsewhere`: it is another shard than this
    /// one.
    pub fn join(
        &mut self,
        partition: Partition,
        (hash, name): (ChannelHash, &str),
        shard: ShardId,
        elsewhere: bool,
    ) -> Change {
        if elsewhere {
            match self.table.find_mut(hash.0, |known| known.is(hash, name)) {
                Some(known) => known.shards.push(shard),
                None => {
                    let new = Interest {
                        hash,
                        name: name.into(),
                        shards: vec![shard],
                    };
                    self.table.insert_unique(hash.0, new, |known| known.hash.0);
                }
            }
        }
        let state = self.partition(partition);
        state.joined += 1;
        if state.joined == 1 {
            Change::Wanted(true)
        } else {
            Change::None
        }
    }

    /// A shard's last subscriber of a channel has left.
    pub fn leave(
        &mut self,
        partition: Partition,
        (hash, name): (ChannelHash, &str),
        shard: ShardId,
        elsewhere: bool,
    ) -> Change {
        if elsewhere && let Ok(mut found) = self.table.find_entry(hash.0, |known| known.is(hash, name)) {
            let shards = &mut found.get_mut().shards;
            shards.retain(|known| *known != shard);
            if shards.is_empty() {
                found.remove();
            }
        }
        self.note_crowded(hash, shard, false);
        let state = self.partition(partition);
        state.joined -= 1;
        if state.joined > 0 {
            return Change::None;
        }
        state.subscribed = false;
        // All shards that waited have left too, and no confirmation of this partition will come.
        state.waiting.clear();
        Change::Wanted(false)
    }

    /// True if the gateway is subscribed to what others publish in this partition.
    pub fn is_subscribed(&self, partition: Partition) -> bool {
        let state = self.partitions.get(usize::from(partition.0));
        state.is_some_and(|state| state.subscribed)
    }

    /// A join that is to be confirmed when the gateway is subscribed to the partition.
    pub fn wait(&mut self, partition: Partition, join: Join) {
        self.partition(partition).waiting.push(join);
    }

    /// The gateway is subscribed to the partition, or the joins shall not wait for that any longer.
    /// Gives the joins to confirm.
    pub fn subscribed(&mut self, partition: Partition) -> Vec<Join> {
        let state = self.partition(partition);
        state.subscribed = state.joined > 0;
        std::mem::take(&mut state.waiting)
    }

    /// The subscription to the partition is lost, though it is wanted: joins wait from now on.
    pub fn lost(&mut self, partition: Partition) {
        self.partition(partition).subscribed = false;
    }

    /// A shard has too much on its way to the subscribers of a channel, or has not any more.
    pub fn note_crowded(&mut self, hash: ChannelHash, shard: ShardId, crowded: bool) {
        self.crowded.retain(|known| *known != (hash, shard));
        if crowded {
            self.crowded.push((hash, shard));
        }
    }

    /// True if some other shard has too much on its way to the subscribers of a channel.
    pub fn is_crowded(&self, hash: ChannelHash) -> bool {
        self.crowded.iter().any(|(crowded, _)| *crowded == hash)
    }

    /// The other shards that have subscribers of a channel.
    pub fn shards(&self, hash: ChannelHash, name: &str) -> &[ShardId] {
        let found = self.table.find(hash.0, |known| known.is(hash, name));
        found.map_or(&[], |known| &known.shards)
    }

    /// Channels that other shards subscribe to.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Joins that are not confirmed.
    pub fn waiting(&self) -> usize {
        self.partitions.iter().map(|state| state.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_wanted_from_the_first_join_to_the_last_leave() {
        let mut interests = Interests::default();
        let (partition, me, other) = (Partition(3), ShardId(0), ShardId(1));
        let (a, b) = ((ChannelHash(1), "a"), (ChannelHash(2), "b"));
        assert_eq!(interests.join(partition, a, me, false), Change::Wanted(true));
        let join = Join {
            shard: other,
            ticket: 5,
        };
        assert_eq!(interests.join(partition, b, other, true), Change::None);
        assert!(!interests.is_subscribed(partition));
        interests.wait(partition, join);
        assert_eq!(interests.shards(b.0, b.1), [other]);
        assert_eq!(interests.shards(a.0, a.1), []);
        interests.note_crowded(b.0, other, true);
        assert!(interests.is_crowded(b.0) && !interests.is_crowded(a.0));
        assert_eq!(interests.subscribed(partition), [join]);
        assert!(interests.is_subscribed(partition) && interests.waiting() == 0);
        assert_eq!(interests.leave(partition, a, me, false), Change::None);
        assert_eq!(interests.leave(partition, b, other, true), Change::Wanted(false));
        assert!(!interests.is_crowded(b.0), "it has nobody to give it to");
        assert!(!interests.is_subscribed(partition) && interests.is_empty());
        assert_eq!(interests.subscribed(partition), []);
        assert!(!interests.is_subscribed(partition), "nobody wants it any more");
    }

    #[test]
    fn who_has_left_does_not_wait() {
        let mut interests = Interests::default();
        let (partition, shard, a) = (Partition(3), ShardId(1), (ChannelHash(1), "a"));
        let join = |ticket| Join { shard, ticket };
        interests.join(partition, a, shard, true);
        interests.wait(partition, join(1));
        assert_eq!(interests.leave(partition, a, shard, true), Change::Wanted(false));
        assert_eq!(interests.waiting(), 0);
        interests.join(partition, a, shard, true);
        interests.wait(partition, join(2));
        assert_eq!(interests.subscribed(partition), [join(2)]);
    }
}
