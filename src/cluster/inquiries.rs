//! Where a user is, for an administrator: asked of the store, answered with names of gateways.

use std::sync::Arc;

use super::store::{Answer, Op};
use super::{Cluster, Purpose};

/// Other gateways where a user is, and how many connections there; `None`: that could not be learned.
pub type Whereabouts = Option<Vec<(Arc<str>, u32)>>;

impl Cluster {
    /// Asks on which other gateways a user is; [`Cluster::poll_whereabouts`] gives the answer.
    pub fn inquire(&mut self, ticket: u32, user: Arc<str>) {
        if self.is_up() {
            self.inquiries.push((ticket, user));
        } else {
            self.whereabouts.push_back((ticket, None));
        }
    }

    /// The next answer.
    pub fn poll_whereabouts(&mut self) -> Option<(u32, Whereabouts)> {
        self.whereabouts.pop_front()
    }

    pub(super) fn ask_inquiries(&mut self) {
        for (ticket, user) in std::mem::take(&mut self.inquiries) {
            self.request(Purpose::Inquiry(ticket), vec![Op::Locate { user }]);
        }
    }

    pub(super) fn handle_inquired(&mut self, ticket: u32, answers: &[Answer]) {
        let found = match answers.first() {
            Some(Answer::Places(places)) => {
                let there = places.iter().filter_map(|(owner, connections)| {
                    let peer = self.directory.counts(*owner)?;
                    Some((self.directory.name(peer)?.0, *connections))
                });
                let there: Vec<_> = there.collect();
                // A gateway where the user is may not have come back yet.
                let is_certain = !there.is_empty() || self.directory.is_complete(self.now.mono_ms());
                is_certain.then_some(there)
            }
            _ => None,
        };
        self.whereabouts.push_back((ticket, found));
    }

    /// Redis is away: nobody shall wait. `asked`: what it was asked already.
    pub(super) fn give_up_inquiries(&mut self, asked: impl Iterator<Item = u32>) {
        let waiting = std::mem::take(&mut self.inquiries)
            .into_iter()
            .map(|(ticket, _)| ticket);
        self.whereabouts
            .extend(waiting.chain(asked).map(|ticket| (ticket, None)));
    }
}
