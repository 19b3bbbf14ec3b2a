//! Presence: which of some users are online, as far as other shards and the cluster have to be
//! asked.
//!
//! Owned by the shard. A question goes to the home shard of each user, and then to the cluster for
//! those whose location no shard knows.

use super::kernel::{Kernel, OVERLOADED};
use crate::engine::SocketKey;
use crate::ids::ShardId;
use crate::lanes::{Batch, PresenceQuery, ToShard};
use crate::metrics::DropReason;
use crate::router::UserHash;
use crate::wire::message::{ErrorCode, ServerMessage};

const REDIS_AWAY: &str = "Redis is away: try again";
const TOO_MUCH_ASKED: &str = "too many users are being asked for: try again";
/// Presence questions of one shard that may wait for other shards.
const QUESTIONS_MAX: usize = 4096;

/// Presence questions that wait for answers of other shards.
///
/// A ticket is an index and how often it was used, so that an answer to a question that was given
/// up never counts for the next one with that index.
#[derive(Debug, Default)]
struct Questions {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Entry {
    uses: u32,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    asker: SocketKey,
    /// The asking user.
    asker_hash: UserHash,
    client_id: Option<Box<str>>,
    users: Vec<Box<str>>,
    online: u128,
    /// Indexes of users of whom nobody else needs to be asked.
    known: u128,
    /// Shards that have not answered yet.
    waiting: u16,
}

/// Bits of a ticket that are the index: enough for [`QUESTIONS_MAX`].
const INDEX_BITS: u32 = QUESTIONS_MAX.ilog2();

impl Questions {
    /// Questions that wait.
    fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= QUESTIONS_MAX
    }

    /// Not to be called when full.
    fn add(&mut self, question: Question) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            (self.entries.len() - 1) as u32
        });
        let Entry { uses, question: free } = &mut self.entries[index as usize];
        *free = Some(question);
        *uses << INDEX_BITS | index
    }

    fn entry(&mut self, ticket: u32) -> Option<(u32, &mut Entry)> {
        let at = ticket & ((1 << INDEX_BITS) - 1);
        let index = self.entries.get_mut(at as usize)?;
        (index.uses << INDEX_BITS | at == ticket).then_some((at, index))
    }

    fn get(&mut self, ticket: u32) -> Option<&mut Question> {
        self.entry(ticket)?.1.question.as_mut()
    }

    /// Takes a question out; answers that are under way find nothing.
    fn take(&mut self, ticket: u32) -> Option<Question> {
        let (at, index) = self.entry(ticket)?;
        let question = index.question.take()?;
        index.uses = index.uses.wrapping_add(1);
        self.free.push(at);
        Some(question)
    }

    /// Notes one answer. True if it was the last that was waited for.
    fn answer(&mut self, ticket: u32, online: u128, known: u128) -> bool {
        let Some(question) = self.entry(ticket).and_then(|(_, index)| index.question.as_mut()) else {
            return false;
        };
        question.online |= online;
        question.known |= known;
        question.waiting -= 1;
        question.waiting == 0
    }
}

/// Presence questions of a shard's clients.
#[derive(Debug, Default)]
pub(super) struct Presence {
    questions: Questions,
}

impl Presence {
    /// Questions that wait.
    pub(super) fn waiting(&self) -> usize {
        self.questions.len()
    }

    /// A `presence` frame: asks every shard on which one of these users lives, and then the cluster
    /// for those of whom no shard knows where they are.
    pub(super) fn ask_presence(
        &mut self,
        kernel: &mut Kernel,
        slot: u32,
        client_id: Option<&str>,
        users: Vec<Box<str>>,
    ) {
        let Some(asking) = kernel.conn(slot).user else {
            return;
        };
        let asker_hash = kernel.homes.hash(kernel.users.name(asking));
        let (mut online, mut known) = (0u128, 0u128);
        let mut elsewhere: Vec<(ShardId, u8, UserHash)> = Vec::new();
        for (index, user) in users.iter().enumerate() {
            let hash = kernel.homes.hash(user);
            let home = kernel.homes.home(hash);
            if home == kernel.me {
                let found = self.is_known_online(kernel, hash, user);
                online |= u128::from(found == Some(true)) << index;
                known |= u128::from(found.is_some()) << index;
            } else {
                elsewhere.push((home, index as u8, hash));
            }
        }
        elsewhere.sort_unstable_by_key(|(home, index, _)| (*home, *index));
        let groups = elsewhere.chunk_by(|a, b| a.0 == b.0);
        let question = Question {
            asker: kernel.key(slot),
            asker_hash,
            client_id: client_id.map(Into::into),
            users,
            online,
            known,
            waiting: groups.clone().count() as u16,
        };
        if self.questions.is_full() {
            self.refuse_presence(kernel, &question, DropReason::PresenceLaneFull, OVERLOADED);
            return;
        }
        let ticket = self.questions.add(question);
        let Some(question) = self.questions.get(ticket) else {
            return;
        };
        if question.waiting == 0 {
            self.finish_presence(kernel, ticket);
            return;
        }
        let users = &question.users;
        let mut asked = Ok(());
        for group in groups {
            let group_users = group
                .iter()
                .map(|(_, index, hash)| (*index, *hash, &*users[usize::from(*index)]));
            let question = (ticket, asker_hash);
            asked = asked.and(kernel.lanes.try_presence_query(group[0].0, question, group_users));
        }
        if asked.is_err()
            && let Some(question) = self.questions.take(ticket)
        {
            self.refuse_presence(kernel, &question, DropReason::PresenceLaneFull, OVERLOADED);
        }
    }

    /// All shards have said what they know of a question: it is answered, or goes to the cluster
    /// for the rest.
    fn finish_presence(&mut self, kernel: &mut Kernel, ticket: u32) {
        let Some(question) = self.questions.get(ticket) else {
            return;
        };
        let (known, asker) = (question.known, question.asker_hash);
        let unknown = (0u8..)
            .zip(&question.users)
            .filter(|(index, _)| known >> index & 1 == 0);
        let refused = match &kernel.peers {
            Some(_) if unknown.clone().next().is_some() => {
                question.waiting = 1;
                let homes = &kernel.homes;
                let users = unknown.map(|(index, user)| (index, homes.hash(user), &**user));
                if !kernel.shared.cluster.is_up() {
                    Some((DropReason::PresenceRedisAway, REDIS_AWAY))
                } else if kernel.lanes.try_cluster_query((ticket, asker), users).is_err() {
                    Some((DropReason::PresenceLaneFull, OVERLOADED))
                } else {
                    return;
                }
            }
            _ => None,
        };
        let Some(question) = self.questions.take(ticket) else {
            return;
        };
        match refused {
            Some((why, message)) => self.refuse_presence(kernel, &question, why, message),
            None => self.answer_presence(kernel, &question),
        }
    }

    /// Whether a user who lives here is online, if that is known without asking anybody.
    fn is_known_online(&mut self, kernel: &mut Kernel, hash: UserHash, user: &str) -> Option<bool> {
        if kernel.users.find(hash, user).is_some() {
            return Some(true);
        }
        kernel.is_known_elsewhere(hash, user)
    }

    fn refuse_presence(&mut self, kernel: &mut Kernel, question: &Question, why: DropReason, message: &str) {
        kernel.metrics().dropped(why);
        if !kernel.is_open(question.asker) {
            return;
        }
        kernel.send_error(
            question.asker.slot,
            question.client_id.as_deref(),
            ErrorCode::Unavailable,
            message,
        );
    }

    fn answer_presence(&mut self, kernel: &mut Kernel, question: &Question) {
        if !kernel.is_open(question.asker) {
            kernel.metrics().dropped(DropReason::ReplyGone);
            return;
        }
        let presence = ServerMessage::Presence {
            id: question.client_id.as_deref(),
            users: &question.users,
            online: question.online,
        };
        kernel.send(question.asker.slot, &presence);
    }

    /// Another shard asks which users are online.
    pub(super) fn handle_presence_query(&mut self, kernel: &mut Kernel, batch: &Batch<ToShard>, query: &PresenceQuery) {
        let (mut online, mut known) = (0u128, 0u128);
        for (index, hash, user) in &query.users {
            let found = self.is_known_online(kernel, *hash, batch.text(*user));
            online |= u128::from(found == Some(true)) << index;
            known |= u128::from(found.is_some()) << index;
        }
        kernel.lanes.presence_answer(batch.from, query.ticket, online, known);
    }

    /// A shard, or the control thread, has answered a question.
    pub(super) fn handle_presence_answer(&mut self, kernel: &mut Kernel, ticket: u32, online: u128, known: u128) {
        if self.questions.answer(ticket, online, known) {
            self.finish_presence(kernel, ticket);
        }
    }

    /// The cluster cannot be asked.
    pub(super) fn handle_presence_unknown(&mut self, kernel: &mut Kernel, ticket: u32, overloaded: bool) {
        if let Some(question) = self.questions.take(ticket) {
            let (why, message) = match overloaded {
                true => (DropReason::PresenceLookupsFull, TOO_MUCH_ASKED),
                false => (DropReason::PresenceRedisAway, REDIS_AWAY),
            };
            self.refuse_presence(kernel, &question, why, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(waiting: u16) -> Question {
        Question {
            asker: SocketKey { slot: 0, generation: 0 },
            asker_hash: UserHash(0),
            client_id: None,
            users: Vec::new(),
            online: 0,
            known: 0,
            waiting,
        }
    }

    #[test]
    fn questions_that_were_given_up_leave_room() {
        let mut questions = Questions::default();
        for _ in 0..2 * QUESTIONS_MAX {
            assert!(!questions.is_full());
            let ticket = questions.add(question(1));
            assert!(questions.take(ticket).is_some());
        }
        assert_eq!(questions.len(), 0);
    }

    #[test]
    fn a_late_answer_is_nobodys() {
        let mut questions = Questions::default();
        let given_up = questions.add(question(2));
        assert!(questions.take(given_up).is_some());
        let next = questions.add(question(2));
        assert!(!questions.answer(given_up, 1, 1) && questions.take(given_up).is_none());
        assert!(!questions.answer(next, 2, 2));
        assert!(questions.answer(next, 4, 12));
        let answered = questions.take(next).unwrap();
        assert_eq!((answered.online, answered.known), (6, 14));
        assert!(!questions.answer(next, 8, 8));
    }
}
