//! Where users are, for administrators: asked of the store, answered with names of gateways.
//!
//! Pure; owned by the control thread.

use std::collections::VecDeque;
use std::sync::Arc;

/// Other gateways where a user is, and how many connections there; `None`: that could not be
/// learned.
pub type Whereabouts = Option<Vec<(Arc<str>, u32)>>;

/// Questions that are not answered yet, and answers that nobody has fetched. Owned by the control
/// thread.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    waiting: Vec<(u32, Arc<str>)>,
    answers: VecDeque<(u32, Whereabouts)>,
}

impl Inquiries {
    /// A question, to be asked of the store at the end of the turn.
    pub(super) fn ask(&mut self, ticket: u32, user: Arc<str>) {
        self.waiting.push((ticket, user));
    }

    /// What to ask of the store now.
    pub(super) fn take(&mut self) -> Vec<(u32, Arc<str>)> {
        std::mem::take(&mut self.waiting)
    }

    /// A question is answered.
    pub(super) fn answer(&mut self, ticket: u32, found: Whereabouts) {
        self.answers.push_back((ticket, found));
    }

    /// The store is away: what was not asked yet will not be.
    pub(super) fn give_up(&mut self) {
        for (ticket, _) in std::mem::take(&mut self.waiting) {
            self.answer(ticket, None);
        }
    }

    /// The next answer.
    pub(super) fn poll(&mut self) -> Option<(u32, Whereabouts)> {
        self.answers.pop_front()
    }

    /// Questions and answers that are held here.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.answers.len()
    }
}
