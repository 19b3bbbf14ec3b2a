//! Answers that name gateways which are not in the directory: they wait until it was read once
//! more.
//!
//! Pure; owned by the control thread.

use super::store::Answer;

/// Answers that wait, each with what it answers, a `P`. Owned by the control thread.
#[derive(Debug)]
pub(super) struct Deferred<P> {
    waiting: Vec<(P, Vec<Answer>)>,
    /// The reading that will tell has begun since they came.
    asked: Vec<(P, Vec<Answer>)>,
}

impl<P> Default for Deferred<P> {
    fn default() -> Self {
        Deferred {
            waiting: Vec::new(),
            asked: Vec::new(),
        }
    }
}

impl<P> Deferred<P> {
    /// An answer waits for the next reading of the directory that begins.
    pub(super) fn put(&mut self, purpose: P, answers: Vec<Answer>) {
        self.waiting.push((purpose, answers));
    }

    /// The directory is being read.
    pub(super) fn reading_begins(&mut self) {
        self.asked.append(&mut self.waiting);
    }

    /// The directory was read, or could not be: what waited for that.
    pub(super) fn take(&mut self) -> Vec<(P, Vec<Answer>)> {
        std::mem::take(&mut self.asked)
    }

    /// Nobody waits any more.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = P> + use<P> {
        let waiting = std::mem::take(&mut self.waiting);
        let asked = std::mem::take(&mut self.asked);
        waiting.into_iter().chain(asked).map(|(purpose, _)| purpose)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.asked.len()
    }
}
