//! Verification results of identical tokens, so that a user's devices and reconnects cost one
//! verification.

use std::collections::BTreeMap;

use aws_lc_rs::digest;

use super::{Identity, Token};

/// The key of a token in the cache. It cannot be used as a token, and no two tokens share one.
type TokenHash = [u8; 32];

/// The most results kept, in two halves: when the younger is full, the older goes as a whole.
const ENTRIES_MAX: usize = 8 * 1024;

/// Good tokens by their hash. Owned by one shard; emptied whenever its settings change, because the
/// keys may have.
#[derive(Debug, Default)]
pub struct Cache {
    younger: BTreeMap<TokenHash, Identity>,
    older: BTreeMap<TokenHash, Identity>,
}

impl Cache {
    /// The identity of a token, if it was verified before and has not expired since.
    #[must_use]
    pub fn get(&self, token: &Token, now_ms: u64) -> Option<&Identity> {
        let hash = hash(token);
        let known = self.younger.get(&hash).or_else(|| self.older.get(&hash));
        known.filter(|identity| !identity.grant.is_expired(now_ms))
    }

    /// Remembers a verified token.
    pub fn insert(&mut self, token: &Token, identity: Identity) {
        if self.younger.len() >= ENTRIES_MAX / 2 {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(hash(token), identity);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Cache::default();
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.younger.len() + self.older.len()
    }

    /// True if nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn hash(token: &Token) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.0.as_bytes()).as_ref());
    hash
}
