//! Users who have more connections than they may, and are asked which of them are alive.

use std::collections::{BTreeMap, VecDeque};

use crate::router::users::UserIndex;

/// Users whose connections have been asked who is still there.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) users: BTreeMap<UserIndex, Question>,
    /// In the order in which they are due. Those that were decided on earlier are among them.
    pub(super) due: VecDeque<(u64, UserIndex)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    /// How many connections the user may have.
    pub(super) limit: usize,
    /// A connection that was heard since then counts as alive.
    pub(super) heard_since_ms: u64,
    pub(super) due_ms: u64,
}

impl Asked {
    /// Users that are waited for.
    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    /// When the first answer has to be there, milliseconds of the gateway's clock.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.front().map(|(due_ms, _)| *due_ms)
    }

    /// The user has so many connections left: if they are few enough, nothing is to be decided.
    pub(super) fn left(&mut self, user: UserIndex, connections: usize) {
        if self
            .users
            .get(&user)
            .is_some_and(|question| connections <= question.limit)
        {
            self.users.remove(&user);
        }
    }
}
