//! Channels of gateways that this one is subscribed to: its own, and that of all. Those of
//! partitions pass through.
//!
//! Pure; owned by the control thread.

use std::collections::VecDeque;

use super::store::Channel;

/// A change of what the store is to be subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// From now on.
    Begin(Channel),
    /// No more.
    End(Channel),
    /// The channel is subscribed, but its packets do not come: the store is to make its connections
    /// anew.
    Renew(Channel),
}

/// What is subscribed, and what is to be. Owned by the control thread.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// This gateway's channel, as asked for.
    own: Option<Channel>,
    active: Vec<Channel>,
    changes: VecDeque<Subscription>,
}

impl Subscriptions {
    /// Subscribes to the channel of this incarnation, and to no earlier one. Returns true if it is
    /// another.
    pub(super) fn follow(&mut self, channel: Channel) -> bool {
        if self.own.as_ref() == Some(&channel) {
            return false;
        }
        if let Some(old) = self.own.replace(channel.clone()) {
            self.active.retain(|active| *active != old);
            self.changes.push_back(Subscription::End(old));
        } else {
            self.changes.push_back(Subscription::Begin(Channel::All));
        }
        self.changes.push_back(Subscription::Begin(channel));
        true
    }

    /// What is published on this channel comes.
    pub(super) fn subscribed(&mut self, channel: Channel) {
        if !self.active.contains(&channel) {
            self.active.push(channel);
        }
    }

    /// It does not come any more.
    pub(super) fn unsubscribed(&mut self, channel: &Channel) {
        self.active.retain(|active| active != channel);
    }

    /// True if what is published on both channels comes.
    pub(super) fn are_active(&self) -> bool {
        let own = self.own.as_ref().is_some_and(|own| self.active.contains(own));
        own && self.active.contains(&Channel::All)
    }

    /// True if this is our own channel.
    pub(super) fn is_own(&self, channel: &Channel) -> bool {
        self.own.as_ref() == Some(channel)
    }

    /// Our own channel seems to be subscribed, but nothing comes: the store makes its connections
    /// anew, at its own pace.
    pub(super) fn doubt(&mut self) {
        if let Some(own) = self.own.as_ref().filter(|own| self.active.contains(own)) {
            self.changes.push_back(Subscription::Renew(own.clone()));
        }
    }

    /// Subscribes to the channel of a partition, or ends that.
    pub(super) fn change(&mut self, change: Subscription) {
        self.changes.push_back(change);
    }

    /// The next change.
    pub(super) fn poll(&mut self) -> Option<Subscription> {
        self.changes.pop_front()
    }
}
