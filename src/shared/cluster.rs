//! The state of the cluster that all threads may read. The control thread alone writes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwapOption;

use crate::metrics::ClusterMetrics;

/// This gateway's state in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ClusterHealth {
    /// No Redis: a gateway of its own.
    #[default]
    Alone,
    /// All is well.
    Member,
    /// Connecting to Redis, or taking the lease.
    Joining,
    /// Redis cannot be reached.
    Unreachable,
    /// Redis has not answered for a second.
    Slow,
    /// The subscription to the gateway's own channel is lost.
    Deaf,
    /// A probe on the gateway's own channel did not come back.
    ProbeLost,
    /// Redis refuses to write (out of memory, read-only, no permission): presence is not right.
    Refusing,
    /// Another gateway has this one's id.
    IdTaken,
    /// Subscriptions to some channels are lost.
    HalfDeaf,
}

impl ClusterHealth {
    const ALL: [ClusterHealth; 10] = [
        ClusterHealth::Alone,
        ClusterHealth::Member,
        ClusterHealth::Joining,
        ClusterHealth::Unreachable,
        ClusterHealth::Slow,
        ClusterHealth::Deaf,
        ClusterHealth::ProbeLost,
        ClusterHealth::Refusing,
        ClusterHealth::IdTaken,
        ClusterHealth::HalfDeaf,
    ];

    /// The fault in words; `None` if there is none.
    pub fn trouble(self) -> Option<&'static str> {
        match self {
            ClusterHealth::Alone | ClusterHealth::Member => None,
            ClusterHealth::Joining => Some("Redis: joining the cluster"),
            ClusterHealth::Unreachable => Some("Redis is unreachable"),
            ClusterHealth::Slow => Some("Redis has not answered for a second"),
            ClusterHealth::Deaf => Some("Redis: the subscription to this gateway's channel is lost"),
            ClusterHealth::ProbeLost => Some("Redis: a pub/sub probe does not come back"),
            ClusterHealth::Refusing => Some("Redis refuses to write: presence is not up to date"),
            ClusterHealth::HalfDeaf => Some("Redis: publications of some channels are not heard"),
            ClusterHealth::IdTaken => {
                Some("another gateway has taken this gateway's id: restart with another gateway_id")
            }
        }
    }

    /// True if Redis answers, whatever else is wrong.
    pub fn redis_answers(self) -> bool {
        self.is_up()
            || matches!(
                self,
                ClusterHealth::Deaf | ClusterHealth::ProbeLost | ClusterHealth::IdTaken
            )
    }

    /// True if peers can be reached, as far as is known.
    pub fn is_up(self) -> bool {
        matches!(
            self,
            // Without our own channel no reply of a peer arrives.
            ClusterHealth::Member | ClusterHealth::Refusing | ClusterHealth::HalfDeaf
        )
    }
}

/// The state of the cluster that all threads may read.
#[derive(Debug, Default)]
pub struct ClusterView {
    health: AtomicU8,
    /// Redis' own words about it.
    words: ArcSwapOption<String>,
    /// The counters of the control thread.
    pub metrics: ClusterMetrics,
}

impl ClusterView {
    /// This gateway's state in the cluster.
    pub fn health(&self) -> ClusterHealth {
        let health = self.health.load(Ordering::Relaxed);
        ClusterHealth::ALL.get(usize::from(health)).copied().unwrap_or_default()
    }

    /// The fault in our words and in Redis'; `None` if there is none.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.health().trouble()?;
        Some(match &*self.words.load() {
            Some(words) => format!("{trouble}: {words}"),
            None => trouble.to_string(),
        })
    }

    /// For the control thread.
    pub fn set_health(&self, health: ClusterHealth, words: Option<&str>) {
        if self.words.load().as_ref().map(|known| known.as_str()) != words {
            self.words.store(words.map(|words| Arc::new(words.to_string())));
        }
        self.health.store(health as u8, Ordering::Relaxed);
    }

    /// True if there are peers, and they can be reached.
    pub fn is_up(&self) -> bool {
        self.health().is_up()
    }

    /// True if this gateway is on its own by configuration.
    pub fn is_alone(&self) -> bool {
        self.health() == ClusterHealth::Alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_what_was_said() {
        let shared = ClusterView::default();
        assert!(shared.is_alone() && !shared.is_up());
        for (value, health) in ClusterHealth::ALL.into_iter().enumerate() {
            assert_eq!(health as usize, value);
            shared.set_health(health, Some("so it says"));
            assert_eq!(shared.health(), health);
            assert_eq!(shared.trouble().is_some(), health.trouble().is_some());
        }
        assert!(
            shared
                .trouble()
                .is_some_and(|trouble| trouble.ends_with(": so it says"))
        );
        shared.set_health(ClusterHealth::Unreachable, None);
        assert_eq!(shared.trouble().as_deref(), ClusterHealth::Unreachable.trouble());
    }
}
