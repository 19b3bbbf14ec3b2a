//! From the hash of a name to the place of its entry: what the tables of users and channels have in common.
//!
//! Pure; owned by one shard. Holds no names: the table that owns the entries compares them.

use hashbrown::HashTable;

/// The upper half of the hash is left out: the home map uses it, and 32 bits serve four billion entries. What is kept
/// makes that growing the table touches no entry and most mismatches end here.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    index: u32,
}

/// What the table hashes by.
fn table_hash(low: u32) -> u64 {
    // The table takes its control bits from the top.
    u64::from(low) << 32 | u64::from(low)
}

/// Places of entries by the hash of their names.
#[derive(Debug, Default)]
pub(super) struct Index {
    table: HashTable<Slot>,
}

impl Index {
    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// True when there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Places of all entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().map(|slot| slot.index)
    }

    /// The place of the entry with this hash that is the right one.
    pub(super) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let low = hash as u32;
        let found = self
            .table
            .find(table_hash(low), |slot| slot.hash == low && is(slot.index));
        found.map(|slot| slot.index)
    }

    /// Adds an entry that is not there.
    pub(super) fn insert(&mut self, hash: u64, index: u32) {
        let low = hash as u32;
        self.table
            .insert_unique(table_hash(low), Slot { hash: low, index }, |slot| table_hash(slot.hash));
    }

    /// Takes an entry out. Returns false if it was not there.
    pub(super) fn remove(&mut self, hash: u64, index: u32) -> bool {
        let found = self
            .table
            .find_entry(table_hash(hash as u32), |slot| slot.index == index);
        found.map(|found| found.remove()).is_ok()
    }
}
