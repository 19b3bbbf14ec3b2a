//! Where users are, asked of the store: each name once at a time, for messages first, and for
//! questions of clients never too many at once.
//!
//! Pure; owned by the control thread. A shard that holds messages for a user waits for one look-up:
//! that goes with the next turn. The names in `presence` frames wait in line, one line for each
//! asking user, and the lines take turns. Whoever asks for a name that is being looked up already
//! shares the answer.
//!
//! Invariant: a question is in `questions` as long as a name of it is in `asking`, so every
//! question is answered or given up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::ids::ShardId;

/// Names in one request.
const REQUEST_NAMES_MAX: usize = 1_000;
/// Names that questions may have under way: a fraction of a millisecond of the store's time, which
/// a message's look-up may have to wait for.
const UNDER_WAY_MAX: usize = 256;
/// Names that one asking user may have in line: sixteen questions of the largest size.
const LINE_NAMES_MAX: usize = 1_600;
/// Names that may be in line altogether.
const WAITING_NAMES_MAX: usize = 65_536;

/// A question could not be taken: too much waits already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuchAsked;

/// Who asks, and how the answer is to be addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The shard that asks.
    pub shard: ShardId,
    /// The shard's name for the question.
    pub ticket: u32,
    /// The hash of the asking user: whose line it is.
    pub user: u64,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The user is on another gateway.
    Elsewhere,
    /// The user is on no other gateway.
    Nowhere,
    /// That could not be learned.
    Unknown,
}

/// What follows for the user's home shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The user may have moved since the store was asked.
    pub moved: bool,
    /// The home shard holds messages until it is told.
    pub awaited: bool,
}

/// The answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// The shard that asked.
    pub shard: ShardId,
    /// The shard's name for the question.
    pub ticket: u32,
    /// Bit `n` is set if the user at place `n` is on another gateway; `None`: that could not be
    /// learned of all.
    pub online: Option<u128>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In a line, or in the next request.
    Waiting,
    /// The store was asked; for questions alone.
    AskedForQuestions,
    /// The store was asked; for messages.
    AskedForMessages,
}

/// A name that is being looked up.
#[derive(Debug)]
struct Asking {
    stage: Stage,
    moved: bool,
    awaited: bool,
    /// Questions that wait for it, and its place in each.
    questions: Vec<(u32, u8)>,
}

#[derive(Debug)]
struct Question {
    asker: Asker,
    online: u128,
    unknown: bool,
    /// Names that are not resolved yet.
    waiting: u8,
}

/// All look-ups. Owned by the control thread.
#[derive(Debug, Default)]
pub struct Lookups {
    asking: BTreeMap<Arc<str>, Asking>,
    /// For messages, to be asked for next.
    urgent: Vec<Arc<str>>,
    lines: BTreeMap<u64, VecDeque<Arc<str>>>,
    /// Lines that are not empty, in the order in which they have their turn.
    turns: VecDeque<u64>,
    /// Names in lines.
    waiting: usize,
    under_way: usize,
    questions: Vec<Option<Question>>,
    free: Vec<u32>,
    answers: VecDeque<Answered>,
}

impl Lookups {
    /// A shard holds messages for this user.
    pub fn locate(&mut self, user: &str) {
        match self.asking.get_mut(user) {
            Some(asking) => {
                asking.awaited = true;
                if asking.stage == Stage::Waiting {
                    // It leaves its line: messages do not wait for questions.
                    asking.stage = Stage::AskedForMessages;
                    self.urgent.push(user.into());
                }
            }
            None => {
                let user: Arc<str> = user.into();
                self.urgent.push(Arc::clone(&user));
                let asking = Asking {
                    stage: Stage::AskedForMessages,
                    moved: false,
                    awaited: true,
                    questions: Vec::new(),
                };
                self.asking.insert(user, asking);
            }
        }
    }

    /// A client asks who of these users is online; each with its place in the question, no two
    /// alike.
    ///
    /// # Errors
    /// The asking user, or all of them, have too many names in line.
    pub fn ask<'a>(
        &mut self,
        asker: Asker,
        users: impl ExactSizeIterator<Item = (u8, &'a str)>,
    ) -> Result<(), TooMuchAsked> {
        let count = users.len();
        let line = self.lines.get(&asker.user).map_or(0, VecDeque::len);
        if line + count > LINE_NAMES_MAX || self.waiting + count > WAITING_NAMES_MAX {
            return Err(TooMuchAsked);
        }
        let question = Question {
            asker,
            online: 0,
            unknown: false,
            waiting: count as u8,
        };
        if count == 0 {
            self.finish(&question);
            return Ok(());
        }
        let key = match self.free.pop() {
            Some(key) => key,
            None => {
                self.questions.push(None);
                (self.questions.len() - 1) as u32
            }
        };
        self.questions[key as usize] = Some(question);
        for (place, user) in users {
            if let Some(asking) = self.asking.get_mut(user) {
                asking.questions.push((key, place));
                continue;
            }
            let user: Arc<str> = user.into();
            let asking = Asking {
                stage: Stage::Waiting,
                moved: false,
                awaited: false,
                questions: vec![(key, place)],
            };
            self.asking.insert(Arc::clone(&user), asking);
            let line = self.lines.entry(asker.user).or_default();
            if line.is_empty() {
                self.turns.push_back(asker.user);
            }
            line.push_back(user);
            self.waiting += 1;
        }
        Ok(())
    }

    /// Names to ask the store for now, in one request; not empty.
    pub fn poll_names(&mut self) -> Option<Vec<Arc<str>>> {
        let mut names = std::mem::take(&mut self.urgent);
        if names.len() > REQUEST_NAMES_MAX {
            self.urgent = names.split_off(REQUEST_NAMES_MAX);
            return Some(names);
        }
        while self.under_way < UNDER_WAY_MAX
            && names.len() < REQUEST_NAMES_MAX
            && let Some(user) = self.next_in_line()
        {
            // One that a message overtook is under way already, or through.
            if let Some(asking) = self.asking.get_mut(&user)
                && asking.stage == Stage::Waiting
            {
                asking.stage = Stage::AskedForQuestions;
                self.under_way += 1;
                names.push(user);
            }
        }
        (!names.is_empty()).then_some(names)
    }

    fn next_in_line(&mut self) -> Option<Arc<str>> {
        let owner = self.turns.pop_front()?;
        let line = self.lines.get_mut(&owner)?;
        let user = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        self.waiting -= usize::from(user.is_some());
        user
    }

    /// The user may have moved.
    pub fn moved(&mut self, user: &str) {
        if let Some(asking) = self.asking.get_mut(user) {
            asking.moved = true;
        }
    }

    /// Anybody may have.
    pub fn all_moved(&mut self) {
        for asking in self.asking.values_mut() {
            asking.moved = true;
        }
    }

    /// A look-up is through. `None` if it was given up before.
    pub fn resolve(&mut self, user: &str, found: Found) -> Option<Resolved> {
        let asking = self.asking.remove(user)?;
        if asking.stage == Stage::AskedForQuestions {
            self.under_way -= 1;
        }
        for (key, place) in asking.questions {
            let slot = &mut self.questions[key as usize];
            let Some(question) = slot else { continue };
            question.online |= u128::from(found == Found::Elsewhere) << place;
            question.unknown |= found == Found::Unknown;
            question.waiting -= 1;
            if question.waiting == 0
                && let Some(question) = slot.take()
            {
                self.free.push(key);
                self.finish(&question);
            }
        }
        Some(Resolved {
            moved: asking.moved,
            awaited: asking.awaited,
        })
    }

    fn finish(&mut self, question: &Question) {
        self.answers.push_back(Answered {
            shard: question.asker.shard,
            ticket: question.asker.ticket,
            online: (!question.unknown).then_some(question.online),
        });
    }

    /// The next answer to a question.
    pub fn poll_answer(&mut self) -> Option<Answered> {
        self.answers.pop_front()
    }

    /// Nothing can be learned at the moment: every question is answered so. Returns the users for
    /// whom messages are held.
    pub fn give_up(&mut self) -> Vec<Arc<str>> {
        self.urgent.clear();
        self.lines.clear();
        self.turns.clear();
        self.free.clear();
        (self.waiting, self.under_way) = (0, 0);
        for mut question in std::mem::take(&mut self.questions).into_iter().flatten() {
            question.unknown = true;
            self.finish(&question);
        }
        let asking = std::mem::take(&mut self.asking).into_iter();
        asking
            .filter(|(_, asking)| asking.awaited)
            .map(|(user, _)| user)
            .collect()
    }

    /// Names that are being looked up.
    pub fn names(&self) -> usize {
        self.asking.len()
    }

    /// Questions that are not answered yet.
    pub fn questions(&self) -> usize {
        self.questions.len() - self.free.len() + self.answers.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asker(user: u64, ticket: u32) -> Asker {
        let shard = ShardId(0);
        Asker { shard, ticket, user }
    }

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}")).collect()
    }

    fn ask(lookups: &mut Lookups, asker: Asker, users: &[String]) -> Result<(), TooMuchAsked> {
        let places: Vec<(u8, &str)> = (0u8..).zip(users.iter().map(String::as_str)).collect();
        lookups.ask(asker, places.into_iter())
    }

    #[test]
    fn one_name_is_asked_for_once_and_answers_all() {
        let mut lookups = Lookups::default();
        let users = names("u", 2);
        ask(&mut lookups, asker(1, 7), &users).unwrap();
        ask(&mut lookups, asker(2, 8), &users[1..]).unwrap();
        assert_eq!(lookups.poll_names().unwrap().len(), 2);
        // Under way: a message shares it too.
        lookups.locate("u1");
        assert_eq!(lookups.poll_names(), None);
        lookups.moved("u1");
        let resolved = lookups.resolve("u1", Found::Elsewhere).unwrap();
        assert_eq!((resolved.moved, resolved.awaited), (true, true));
        let answer = lookups.poll_answer().unwrap();
        assert_eq!((answer.ticket, answer.online), (8, Some(1)));
        assert_eq!(lookups.poll_answer(), None);
        assert!(!lookups.resolve("u0", Found::Nowhere).unwrap().awaited);
        assert_eq!(lookups.poll_answer().unwrap().online, Some(2));
        assert_eq!(lookups.resolve("u0", Found::Nowhere), None);
        assert_eq!((lookups.names(), lookups.questions()), (0, 0));
    }

    #[test]
    fn messages_do_not_wait_for_questions_and_those_are_bounded() {
        let mut lookups = Lookups::default();
        for n in 0..10 {
            ask(&mut lookups, asker(n, 0), &names(&format!("{n}-"), 100)).unwrap();
        }
        let first = lookups.poll_names().unwrap();
        assert_eq!(first.len(), UNDER_WAY_MAX);
        assert_eq!(lookups.poll_names(), None);
        lookups.locate("bob");
        // In line, behind all others.
        lookups.locate("9-99");
        let urgent = lookups.poll_names().unwrap();
        assert_eq!(urgent, [Arc::from("bob"), Arc::from("9-99")]);
        for name in first {
            lookups.resolve(&name, Found::Nowhere);
        }
        assert_eq!(lookups.poll_names().unwrap().len(), UNDER_WAY_MAX);
    }

    #[test]
    fn lines_take_turns_and_are_bounded() {
        let mut lookups = Lookups::default();
        for n in 0..16 {
            ask(&mut lookups, asker(1, n), &names(&format!("{n}-"), 100)).unwrap();
        }
        assert_eq!(ask(&mut lookups, asker(1, 16), &names("x", 1)), Err(TooMuchAsked));
        ask(&mut lookups, asker(2, 17), &names("y", 100)).unwrap();
        let first = lookups.poll_names().unwrap();
        assert_eq!(first.iter().filter(|name| name.starts_with('y')).count(), 100);
        // Where Redis goes, nobody waits.
        lookups.locate("bob");
        assert_eq!(lookups.give_up(), [Arc::from("bob")]);
        let refused = std::iter::from_fn(|| lookups.poll_answer()).filter(|answer| answer.online.is_none());
        assert_eq!(refused.count(), 17);
        assert_eq!((lookups.names(), lookups.questions(), lookups.waiting), (0, 0, 0));
    }

    proptest! {
        /// Whatever is asked in whatever order, every question is answered once, and no name is
        /// asked for twice at a time.
        #[test]
        fn every_question_is_answered(steps in prop::collection::vec((0u8..6, 0u64..4, 0usize..12), 1..200)) {
            let mut lookups = Lookups::default();
            let (mut asked, mut answered, mut under_way) = (0u32, 0u32, Vec::<Arc<str>>::new());
            for (what, user, n) in steps {
                match what {
                    0 | 1 => {
                        ask(&mut lookups, asker(user, asked), &names("u", n)).unwrap();
                        asked += 1;
                    }
                    2 => lookups.locate(&format!("u{n}")),
                    3 => while let Some(names) = lookups.poll_names() {
                        for name in names {
                            prop_assert!(!under_way.contains(&name));
                            under_way.push(name);
                        }
                    },
                    4 if !under_way.is_empty() => {
                        let name = under_way.swap_remove(n % under_way.len());
                        prop_assert!(lookups.resolve(&name, Found::Nowhere).is_some());
                    }
                    5 if n == 0 => {
                        lookups.give_up();
                        under_way.clear();
                    }
                    _ => {}
                }
                while lookups.poll_answer().is_some() { answered += 1; }
            }
            while let Some(names) = lookups.poll_names() { under_way.extend(names); }
            for name in under_way { lookups.resolve(&name, Found::Unknown); }
            while lookups.poll_answer().is_some() { answered += 1; }
            prop_assert_eq!(asked, answered);
            prop_assert_eq!((lookups.names(), lookups.questions(), lookups.waiting, lookups.under_way), (0, 0, 0, 0));
        }
    }
}
