//! A slow walk over our own users, which finds what the store has lost.
//!
//! Pure; owned by the control thread. Presence is written when it changes. A key that the store
//! loses in between (a deletion by hand, an eviction) would stay lost until the user's next change.
//! So all users are written once more in turn, where they are missing: every one within
//! `presence.ttl`, or at `USERS_PER_SECOND` where there are more than that allows. A user whose key
//! was changed by somebody else is looked at sooner, at the same pace.
//!
//! The cost is one command per user and `presence.ttl`, which changes nothing where nothing is
//! missing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::store::{Answer, FailureKind, Incarnation, Op};

/// How often the log says that the store had lost something.
const REPAIRED_EVERY_MS: u64 = 60_000;
/// How often the log says that the store does not let us look after that: until somebody changes
/// its rules.
const UNKEPT_EVERY_MS: u64 = 600_000;
/// Places of one shard that one step looks at.
const PLACES: u32 = 256;
/// Users that one step looks at by name.
const NAMES: usize = 64;
/// Time between two steps, at least.
const STEP_MS: u64 = 50;
/// Users looked at per second, at most: one or two per cent of what Redis can do.
const USERS_PER_SECOND: u64 = 1_000;
/// Names that may wait; the walk finds those that do not fit.
const DOUBTED_MAX: usize = 16_384;

/// What to ask the shards for.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The users at these places of a shard.
    Places {
        /// Which shard.
        shard: u16,
        /// From this place on.
        from: u32,
        /// So many places.
        count: u32,
    },
    /// Those of these users who are here.
    Names(Vec<Arc<str>>),
}

/// The walk. Owned by the control thread.
#[derive(Debug)]
pub struct Audit {
    shards: u16,
    period_ms: u64,
    shard: u16,
    from: u32,
    asked: bool,
    walk_due_ms: u64,
    names_due_ms: u64,
    /// When this walk began, if one is under way.
    began_ms: Option<u64>,
    doubted: BTreeSet<Arc<str>>,
    /// From when on the log may say again that something was missing.
    repaired_due_ms: u64,
    /// The same of what may not be looked after.
    unkept_due_ms: u64,
}

impl Audit {
    /// A walk over the users of so many shards, once in every period.
    pub fn new(shards: u16, period_ms: u64) -> Self {
        Audit {
            shards,
            period_ms,
            shard: 0,
            from: 0,
            asked: false,
            walk_due_ms: 0,
            names_due_ms: 0,
            began_ms: None,
            doubted: BTreeSet::new(),
            repaired_due_ms: 0,
            unkept_due_ms: 0,
        }
    }

    /// Everything is being written again: a new walk begins a whole period after that.
    pub fn restart(&mut self, now_ms: u64) {
        self.asked = false;
        self.began_ms = None;
        (self.shard, self.from) = (0, 0);
        self.walk_due_ms = now_ms + self.period_ms;
        self.doubted.clear();
    }

    /// Somebody changed what is written of this user, who may be one of ours.
    pub fn doubt(&mut self, user: &Arc<str>, now_ms: u64) {
        if self.doubted.len() < DOUBTED_MAX {
            if self.doubted.is_empty() {
                self.names_due_ms = self.names_due_ms.max(now_ms + STEP_MS);
            }
            self.doubted.insert(Arc::clone(user));
        }
    }

    /// What to ask for now.
    pub fn poll_look(&mut self, now_ms: u64) -> Option<Look> {
        if !self.doubted.is_empty() && now_ms >= self.names_due_ms {
            let doubted = &mut self.doubted;
            let names: Vec<_> = std::iter::from_fn(|| doubted.pop_first()).take(NAMES).collect();
            let pause_ms = names.len() as u64 * 1_000 / USERS_PER_SECOND;
            self.names_due_ms = now_ms + pause_ms.max(STEP_MS);
            return Some(Look::Names(names));
        }
        if self.asked || now_ms < self.walk_due_ms {
            return None;
        }
        self.began_ms.get_or_insert(now_ms);
        self.asked = true;
        Some(Look::Places {
            shard: self.shard,
            from: self.from,
            count: PLACES,
        })
    }

    /// A shard told the users at the places that it was asked for: so many, of so many users of
    /// this gateway.
    pub fn handle_looked(&mut self, next: Option<u32>, looked: usize, users: u64, now_ms: u64) {
        if !std::mem::take(&mut self.asked) {
            return;
        }
        let looked = looked as u64;
        let even_ms = self.period_ms * looked / users.max(1);
        // A little faster than needed, as new users come while it walks.
        let pause_ms = (even_ms * 3 / 4).max(looked * 1_000 / USERS_PER_SECOND).max(STEP_MS);
        self.walk_due_ms = now_ms + pause_ms;
        if let Some(next) = next {
            self.from = next;
            return;
        }
        self.from = 0;
        self.shard = (self.shard + 1) % self.shards.max(1);
        if self.shard == 0 {
            let began_ms = self.began_ms.take().unwrap_or(now_ms);
            self.walk_due_ms = self.walk_due_ms.max(began_ms + self.period_ms);
        }
    }

    /// What to ask of the store: that these users of ours are written down.
    pub fn keep(owner: Incarnation, users: Vec<(Arc<str>, u32)>) -> Vec<Op> {
        let index = Op::IndexAdd {
            owner,
            users: users.iter().map(|(user, _)| Arc::clone(user)).collect(),
        };
        let keep = |(user, connections)| Op::KeepPresence {
            user,
            owner,
            connections,
        };
        std::iter::once(index).chain(users.into_iter().map(keep)).collect()
    }

    /// The answers to [`Audit::keep`]. Returns of how many users the store had lost that they are
    /// here.
    pub fn handle_kept(&mut self, answers: &[Answer], now_ms: u64) -> u64 {
        let refused = answers.iter().find_map(|answer| match answer {
            Answer::Failed(failure) if failure.kind == FailureKind::Refused => Some(failure),
            _ => None,
        });
        if let Some(failure) = refused
            && now_ms >= self.unkept_due_ms
        {
            self.unkept_due_ms = now_ms + UNKEPT_EVERY_MS;
            log::warn!(
                "what Redis loses of users who are here is not written again: {}",
                failure.text
            );
        }
        // The first one is of the index.
        let kept = answers.iter().skip(1);
        let repaired = kept.filter(|answer| **answer == Answer::Taken(true)).count() as u64;
        if repaired > 0 && now_ms >= self.repaired_due_ms {
            self.repaired_due_ms = now_ms + REPAIRED_EVERY_MS;
            log::warn!(
                "Redis had lost that {repaired} users are here, and they are written again: somebody deletes keys, or Redis \
                 evicts them (maxmemory-policy must be noeviction)"
            );
        }
        repaired
    }

    /// When there is something to ask without anything happening before.
    pub fn poll_timeout(&self) -> Option<u64> {
        let names = (!self.doubted.is_empty()).then_some(self.names_due_ms);
        let walk = (!self.asked).then_some(self.walk_due_ms);
        [names, walk].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks once over shards with so many users each; how many steps it takes, and until when.
    fn walk(audit: &mut Audit, users: &[u32]) -> (u32, u64) {
        let (mut steps, mut now_ms) = (0, 0);
        loop {
            now_ms = now_ms.max(audit.poll_timeout().unwrap());
            let Some(Look::Places { shard, from, count }) = audit.poll_look(now_ms) else {
                panic!("nothing to look at")
            };
            steps += 1;
            let there = users[usize::from(shard)];
            let next = (from + count < there).then_some(from + count);
            let looked = there.saturating_sub(from).min(count);
            let all = users.iter().map(|n| u64::from(*n)).sum();
            audit.handle_looked(next, looked as usize, all, now_ms);
            if next.is_none() && usize::from(shard) + 1 == users.len() {
                return (steps, now_ms);
            }
        }
    }

    #[test]
    fn everybody_is_looked_at_once_in_a_period() {
        let mut audit = Audit::new(2, 90_000);
        let (steps, took_ms) = walk(&mut audit, &[10_000, 5_000]);
        assert_eq!(steps, 40 + 20);
        assert!((45_000..90_000).contains(&took_ms), "{took_ms}");
        // The next one begins when the period is over.
        assert_eq!(audit.poll_timeout(), Some(90_000));
        let mut idle = Audit::new(3, 90_000);
        assert_eq!(walk(&mut idle, &[0, 0, 0]).0, 3);
        assert_eq!(idle.poll_timeout(), Some(90_000));
    }

    #[test]
    fn a_million_users_do_not_make_it_faster_than_it_may_be() {
        let mut audit = Audit::new(1, 90_000);
        let (_, took_ms) = walk(&mut audit, &[1_000_000]);
        assert!((900_000..1_100_000).contains(&took_ms), "{took_ms}");
    }

    #[test]
    fn who_is_doubted_comes_first_and_is_bounded() {
        let mut audit = Audit::new(1, 90_000);
        audit.restart(0);
        assert_eq!(audit.poll_look(1_000), None);
        for n in 0..2 * DOUBTED_MAX {
            audit.doubt(&format!("user{n}").into(), 1_000);
        }
        let mut looked = 0;
        let mut now_ms = 0;
        while let Some(due) = audit.poll_timeout().filter(|due| *due < 90_000) {
            now_ms = due;
            match audit.poll_look(due) {
                Some(Look::Names(names)) => looked += names.len(),
                _ => break,
            }
        }
        assert_eq!(looked, DOUBTED_MAX);
        assert!(now_ms >= 16_000, "{now_ms}");
    }
}
