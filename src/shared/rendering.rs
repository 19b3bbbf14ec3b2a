//! Documents rendered for all: the numbers as text, made at most every [`RENDER_INTERVAL_MS`] and
//! shared by all threads.
//!
//! One [`Renderings`] per document. The thread that holds the [`Claim`] renders; all others read.
//! An answer under way keeps no rendering alive. The list here does, and its length is bounded even
//! if clients never read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::Now;

/// The least time between the starts of two renderings, milliseconds. It bounds the age of the
/// numbers in an answer.
pub const RENDER_INTERVAL_MS: u64 = 250;

/// Renderings in memory at the most. With one every [`RENDER_INTERVAL_MS`], a reader has two
/// seconds for the whole of one.
const KEPT_MAX: usize = 8;

/// A thread that has been rendering for this long is stuck, and another one may render.
const CLAIM_MAX_NS: u64 = 2_000_000_000;

/// A document of one time, in pieces that are sent one by one.
#[derive(Debug)]
pub struct Rendering {
    /// When its first number was read.
    pub began: Now,
    /// The pieces in order; none is empty.
    pub pieces: Vec<Bytes>,
}

impl Rendering {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// The renderings of one document.
#[derive(Debug, Default)]
pub struct Renderings {
    /// The newest last.
    kept: ArcSwap<Vec<Arc<Rendering>>>,
    /// When the thread began that renders now, nanoseconds of the gateway's clock; 0: none does.
    claimed_ns: AtomicU64,
}

impl Renderings {
    /// A rendering for a request made at `asked_ms` of the gateway's clock, if there is one that is
    /// new enough.
    pub fn for_request(&self, asked_ms: u64) -> Option<Arc<Rendering>> {
        let newest = self.kept.load().last().cloned()?;
        (newest.began.mono_ms() + RENDER_INTERVAL_MS > asked_ms).then_some(newest)
    }

    /// The right to render, if no other thread has it.
    pub fn claim(&self, now: Now) -> Option<Claim<'_>> {
        let claimed_ns = self.claimed_ns.load(Ordering::Relaxed);
        if claimed_ns != 0 && claimed_ns + CLAIM_MAX_NS > now.mono_ns {
            return None;
        }
        let began = Now {
            mono_ns: now.mono_ns.max(1),
            ..now
        };
        self.claimed_ns
            .compare_exchange(claimed_ns, began.mono_ns, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        let claim = Claim {
            renderings: self,
            began,
        };
        // Another thread may have finished between our look at its rendering and this claim.
        let newest_ms = self.kept.load().last().map(|newest| newest.began.mono_ms());
        (newest_ms.is_none_or(|newest_ms| newest_ms + RENDER_INTERVAL_MS <= began.mono_ms())).then_some(claim)
    }
}

/// The right to render; given back when it is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    renderings: &'a Renderings,
    began: Now,
}

impl Claim<'_> {
    /// Publishes a rendering to all threads. Renderings without readers go, and the oldest if there
    /// are too many: answers made of those end early.
    pub fn publish(self, pieces: Vec<Bytes>) {
        let rendering = Arc::new(Rendering {
            began: self.began,
            pieces,
        });
        self.renderings.kept.rcu(|kept| {
            let (older, newest) = kept.split_at(kept.len().saturating_sub(1));
            // The newest so far may have been given to a request that holds on to it only in a
            // moment.
            let read = older.iter().filter(|rendering| Arc::weak_count(rendering) > 0);
            let mut kept: Vec<_> = read.chain(newest).chain([&rendering]).cloned().collect();
            kept.drain(..kept.len().saturating_sub(KEPT_MAX));
            kept
        });
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Not if another thread was allowed to render meanwhile.
        let _ =
            self.renderings
                .claimed_ns
                .compare_exchange(self.began.mono_ns, 0, Ordering::Release, Ordering::Relaxed);
    }
}

/// The reference that an answer under way has to a rendering.
pub type Reading = Weak<Rendering>;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now {
            mono_ns: ms * 1_000_000,
            wall_ms: ms,
        }
    }

    fn render(renderings: &Renderings, ms: u64) {
        let claim = renderings.claim(at(ms)).unwrap();
        claim.publish(vec![Bytes::from(ms.to_string())]);
    }

    #[test]
    fn who_asks_within_the_interval_gets_the_same() {
        let renderings = Renderings::default();
        assert!(renderings.for_request(1000).is_none());
        render(&renderings, 1000);
        let (first, second) = (renderings.for_request(1000), renderings.for_request(1249));
        assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
        assert!(renderings.claim(at(1249)).is_none(), "one is new enough");
        assert!(renderings.for_request(1250).is_none());
        render(&renderings, 1250);
        assert_eq!(renderings.for_request(1499).unwrap().began.mono_ms(), 1250);
    }

    #[test]
    fn one_renders_at_a_time_and_nobody_for_ever() {
        let renderings = Renderings::default();
        let claim = renderings.claim(at(0)).unwrap();
        assert!(renderings.claim(at(1)).is_none());
        drop(claim);
        let stuck = renderings.claim(at(2)).unwrap();
        assert!(renderings.claim(at(2001)).is_none());
        let other = renderings.claim(at(2002)).unwrap();
        drop(stuck);
        assert!(
            renderings.claim(at(2003)).is_none(),
            "who was stuck gives back nothing of others"
        );
        other.publish(Vec::new());
        assert!(renderings.claim(at(2300)).is_some());
    }

    /// Unread answers never add to the memory of renderings, at whatever intervals they were
    /// requested.
    #[test]
    fn what_is_kept_is_bounded() {
        let renderings = Renderings::default();
        let readings: Vec<Reading> = (1..=100)
            .map(|n| {
                render(&renderings, n * 1000);
                Arc::downgrade(&renderings.for_request(n * 1000).unwrap())
            })
            .collect();
        let alive = readings.iter().filter(|reading| reading.upgrade().is_some()).count();
        assert_eq!(alive, KEPT_MAX);
        assert!(readings[99].upgrade().is_some());
        drop(readings);
        render(&renderings, 200_000);
        assert_eq!(
            renderings.kept.load().len(),
            2,
            "those that nobody reads go with the next"
        );
    }
}
