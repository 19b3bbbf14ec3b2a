//! From the hash of a name to the index of its entry: shared by the tables of users and channels.
//!
//! Pure; owned by one shard. Holds no names: the table that owns the entries compares them.

use hashbrown::HashTable;

/// The upper half of the hash is left out: the home map uses it, and 32 bits serve four billion
/// entries. With the kept half, the table grows without touching an entry, and most mismatches end
/// here.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    index: u32,
}

/// The hash for the table.
fn table_hash(low: u32) -> u64 {
    // The table takes its control bits from the top.
    u64::from(low) << 32 | u64::from(low)
}

/// Indexes of entries by the hash of their names.
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

    /// Indexes of all entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().map(|slot| slot.index)
    }

    /// The index of the entry with this hash for which `is` returns true.
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
