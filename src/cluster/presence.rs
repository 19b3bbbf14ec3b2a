//! Writing down who is here: changes, the list by which they can be swept, and both again after
//! trouble.
//!
//! Pure. Says what to write ([`PresenceWriter::poll_ops`]) and which users to ask the shards for
//! ([`PresenceWriter::poll_step`]); owns what is not written yet. Cost is in the changes: an idle
//! user causes nothing.
//!
//! Rules: a user has at most one write under way, and what comes meanwhile is merged, so the last
//! word wins; after any doubt (trouble with Redis, a full lane) everything is written again, paced,
//! and then what is written is compared with who is here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::store::{Answer, Failure, FailureKind, Incarnation, Op};

/// Users written in one request: a few milliseconds of Redis' time.
const WRITE_USERS_MAX: usize = 1_000;
/// Writes are not closer together than this: in a rush many users share one command for the list by
/// which they can be swept, and a connection costs little more than one command.
const WRITE_EVERY_MS: u64 = 2;
/// Users are taken off that list in one command for many, as nothing is wrong while they are still
/// on it.
const UNLIST_EVERY_MS: u64 = 50;
/// Users listed or compared in one step when everything is written again ...
const STEP_USERS: u32 = 500;
/// ... and the time between two steps: 20,000 users per second, a few per cent of what Redis can
/// do.
const STEP_MS: u64 = 25;
/// After a refused or failed write everything is written again, but not at once.
const RETRY_MS: u64 = 1_000;

/// Users that were written within the last one to two times of this length are remembered: when the
/// store has lost what it was told last, or did not take it, they may be written down without being
/// in the index. Longer than an answer may take, and than a replica lags.
const RECENT_MS: u64 = 4_000;

/// How far the writing of everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rebuild {
    /// Everything is written.
    Done,
    /// Not before this time.
    Due(u64),
    /// The shards tell their users: this shard, from this place on.
    Listing { shard: u16, from: u32, asked: bool },
    /// All are told; not all are written.
    Writing,
    /// What is written is compared with who is here.
    Checking { cursor: u64, asked: bool },
}

/// What has to be asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A shard for its users.
    List {
        /// Which writing of everything this is part of.
        round: u32,
        /// Which shard.
        shard: u16,
        /// From this place on.
        from: u32,
        /// So many places.
        count: u32,
    },
    /// The shards whether these users are here; those who are not are to be told as having left.
    Check(Vec<Arc<str>>),
    /// The store for a part of our index.
    Scan {
        /// Which writing of everything this is part of.
        round: u32,
        /// From here on.
        cursor: u64,
    },
}

/// What is not written yet. Owned by the control thread.
#[derive(Debug)]
pub struct PresenceWriter {
    me: Incarnation,
    shards: u16,
    pending: BTreeMap<Arc<str>, u32>,
    write_due_ms: u64,
    /// Users who are on the list for sweeping without being written down any more.
    unlist: BTreeSet<Arc<str>>,
    unlist_due_ms: u64,
    writing: bool,
    /// Users written lately, those before, and when the former become the latter.
    recent: [BTreeSet<Arc<str>>; 2],
    recent_until_ms: u64,
    /// Users who were written lately when trouble came.
    doubtful: BTreeSet<Arc<str>>,
    rebuild: Rebuild,
    /// Counts the times that everything was to be written: a late answer is not taken for one to a
    /// later question.
    round: u32,
    /// The entries of an earlier time may be in the store, and some of them wrong.
    check_wanted: bool,
    step_due_ms: u64,
    refused: Option<Arc<str>>,
}

impl PresenceWriter {
    /// Nothing to write for a gateway without users.
    pub fn new(me: Incarnation, shards: u16) -> Self {
        PresenceWriter {
            me,
            shards,
            pending: BTreeMap::new(),
            write_due_ms: 0,
            unlist: BTreeSet::new(),
            unlist_due_ms: 0,
            writing: false,
            recent: Default::default(),
            recent_until_ms: 0,
            doubtful: BTreeSet::new(),
            rebuild: Rebuild::Done,
            round: 0,
            check_wanted: false,
            step_due_ms: 0,
            refused: None,
        }
    }

    /// A user has this many connections here now.
    pub fn set(&mut self, user: &str, connections: u32) {
        match self.pending.get_mut(user) {
            Some(pending) => *pending = connections,
            None => {
                self.pending.insert(user.into(), connections);
            }
        }
    }

    /// Users that wait to be written.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Why the store refused the last write, if it did.
    pub fn refused(&self) -> Option<&Arc<str>> {
        self.refused.as_ref()
    }

    /// True if all users are written down, or at least were once.
    pub fn is_written(&self) -> bool {
        matches!(self.rebuild, Rebuild::Done | Rebuild::Checking { .. })
    }

    /// True if everything is written, and was compared.
    pub fn is_settled(&self) -> bool {
        self.rebuild == Rebuild::Done
    }

    /// Which writing of everything was the last.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// True if this user was written within the last seconds.
    pub fn was_written_lately(&self, user: &Arc<str>) -> bool {
        self.recent.iter().any(|recent| recent.contains(user))
    }

    /// Writes everything again under this incarnation. What waited is part of that. Returns the
    /// users who may be written down under the incarnation before, if it was another one, without
    /// being in its index.
    pub fn rebuild(&mut self, me: Incarnation, now_ms: u64) -> BTreeSet<Arc<str>> {
        self.doubt_recent();
        let same = me == self.me;
        self.check_wanted = same;
        self.me = me;
        self.pending.clear();
        self.unlist.clear();
        self.writing = false;
        self.begin_round(now_ms);
        if same {
            BTreeSet::new()
        } else {
            std::mem::take(&mut self.doubtful)
        }
    }

    fn begin_round(&mut self, due_ms: u64) {
        self.round = self.round.wrapping_add(1);
        self.rebuild = Rebuild::Due(due_ms);
    }

    fn doubt_recent(&mut self) {
        for recent in &mut self.recent {
            self.doubtful.append(recent);
        }
    }

    /// A shard lost changes.
    pub fn lost(&mut self, now_ms: u64) {
        self.check_wanted = true;
        self.begin_round(now_ms);
    }

    /// True if nothing waits to be written.
    pub fn is_idle(&self) -> bool {
        !self.writing && self.pending.is_empty() && self.unlist.is_empty()
    }

    /// What to write now; one request at a time.
    pub fn poll_ops(&mut self, now_ms: u64) -> Option<Vec<Op>> {
        if self.writing {
            return None;
        }
        let owner = self.me;
        if now_ms >= self.recent_until_ms {
            self.recent_until_ms = now_ms + RECENT_MS;
            self.recent.swap(0, 1);
            self.recent[0].clear();
        }
        let mut ops = Vec::new();
        let mut come = Vec::new();
        while now_ms >= self.write_due_ms
            && ops.len() < WRITE_USERS_MAX
            && let Some((user, connections)) = self.pending.pop_first()
        {
            self.recent[0].insert(Arc::clone(&user));
            if connections == 0 {
                if self.unlist.is_empty() {
                    self.unlist_due_ms = now_ms + UNLIST_EVERY_MS;
                }
                self.unlist.insert(Arc::clone(&user));
                ops.push(Op::ClearPresence { user, owner });
            } else {
                self.unlist.remove(&user);
                come.push(Arc::clone(&user));
                ops.push(Op::SetPresence {
                    user,
                    owner,
                    connections,
                });
            }
        }
        // Whoever is written down is on the list: put there before, taken off after.
        if !come.is_empty() {
            ops.insert(0, Op::IndexAdd { owner, users: come });
        }
        if !self.unlist.is_empty() && (now_ms >= self.unlist_due_ms || self.unlist.len() >= WRITE_USERS_MAX) {
            let users = std::mem::take(&mut self.unlist).into_iter().collect();
            ops.push(Op::IndexRemove { owner, users });
        }
        if !ops.is_empty() {
            self.write_due_ms = now_ms + WRITE_EVERY_MS;
        }
        self.writing = !ops.is_empty();
        self.writing.then_some(ops)
    }

    /// The answers to what was written.
    pub fn handle_written(&mut self, answers: &[Answer], now_ms: u64) {
        self.writing = false;
        let failure = answers.iter().find_map(|answer| match answer {
            // Somebody else's key stands where one user's should: that is no reason to write the
            // others again.
            Answer::Failed(failure) if failure.text.contains("WRONGTYPE") => {
                log::warn!("a user's presence cannot be written: {}", failure.text);
                None
            }
            Answer::Failed(failure) => Some(failure),
            _ => None,
        });
        match failure {
            None => {}
            Some(Failure { kind, text }) => {
                self.doubt_recent();
                if *kind == FailureKind::Refused {
                    self.refused = Some(Arc::clone(text));
                }
                self.lost(now_ms + RETRY_MS);
            }
        }
    }

    /// What to ask next so that everything is written again.
    pub fn poll_step(&mut self, now_ms: u64) -> Option<Step> {
        match self.rebuild {
            Rebuild::Due(due_ms) if now_ms >= due_ms => {
                self.rebuild = Rebuild::Listing {
                    shard: 0,
                    from: 0,
                    asked: false,
                };
            }
            Rebuild::Writing if self.pending.is_empty() && !self.writing => {
                // A write that was taken meanwhile proved nothing: deletions are not refused for
                // lack of memory.
                self.refused = None;
                self.rebuild = if std::mem::take(&mut self.check_wanted) {
                    Rebuild::Checking {
                        cursor: 0,
                        asked: false,
                    }
                } else {
                    Rebuild::Done
                };
            }
            _ => {}
        }
        // Not faster than the store takes it.
        if now_ms < self.step_due_ms || self.pending.len() >= 2 * WRITE_USERS_MAX {
            return None;
        }
        let step = match &mut self.rebuild {
            Rebuild::Listing { shard, from, asked } if !*asked => {
                *asked = true;
                Step::List {
                    round: self.round,
                    shard: *shard,
                    from: *from,
                    count: STEP_USERS,
                }
            }
            Rebuild::Checking { asked: false, .. } if !self.doubtful.is_empty() => {
                let users = &mut self.doubtful;
                let step = std::iter::from_fn(|| users.pop_first()).take(STEP_USERS as usize);
                Step::Check(step.collect())
            }
            Rebuild::Checking { cursor, asked } if !*asked => {
                *asked = true;
                Step::Scan {
                    round: self.round,
                    cursor: *cursor,
                }
            }
            _ => return None,
        };
        self.step_due_ms = now_ms + STEP_MS;
        Some(step)
    }

    /// A shard told the users of a step.
    pub fn handle_listed(&mut self, round: u32, shard: u16, next: Option<u32>) {
        if round != self.round {
            return;
        }
        let Rebuild::Listing {
            shard: at,
            from,
            asked: asked @ true,
        } = &mut self.rebuild
        else {
            return;
        };
        if *at != shard {
            return;
        }
        *asked = false;
        match next {
            Some(next) => *from = next,
            None if shard + 1 < self.shards => {
                *at = shard + 1;
                *from = 0;
            }
            None => self.rebuild = Rebuild::Writing,
        }
    }

    /// A part of our index was read; its users were sent to their shards to be looked for.
    pub fn handle_scanned(&mut self, round: u32, next: Option<u64>, now_ms: u64) {
        if round == self.round
            && let Rebuild::Checking {
                cursor,
                asked: asked @ true,
            } = &mut self.rebuild
        {
            *asked = false;
            match next {
                Some(0) => self.rebuild = Rebuild::Done,
                Some(next) => *cursor = next,
                None => self.lost(now_ms + RETRY_MS),
            }
        }
    }

    /// When there is something to write without anything happening before.
    pub fn write_timeout(&self) -> Option<u64> {
        match (self.writing, self.pending.is_empty(), self.unlist.is_empty()) {
            (true, ..) | (false, true, true) => None,
            (false, false, _) => Some(self.write_due_ms),
            (false, true, false) => Some(self.unlist_due_ms),
        }
    }

    /// When there is something to do without anything happening before.
    pub fn poll_timeout(&self) -> Option<u64> {
        let write = self.write_timeout();
        let full = self.pending.len() >= 2 * WRITE_USERS_MAX;
        let step = match self.rebuild {
            Rebuild::Due(due_ms) => Some(due_ms.max(self.step_due_ms)),
            Rebuild::Listing { asked: false, .. } | Rebuild::Checking { asked: false, .. } if !full => {
                Some(self.step_due_ms)
            }
            Rebuild::Writing if self.pending.is_empty() && !self.writing => Some(0),
            _ => None,
        };
        [write, step].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Incarnation = Incarnation(7);

    fn users(ops: &[Op]) -> Vec<(String, u32)> {
        ops.iter()
            .filter_map(|op| match op {
                Op::SetPresence { user, connections, .. } => Some((user.to_string(), *connections)),
                Op::ClearPresence { user, .. } => Some((user.to_string(), 0)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn changes_are_merged_and_the_last_word_wins() {
        let mut book = PresenceWriter::new(ME, 1);
        book.set("alice", 1);
        book.set("alice", 0);
        book.set("alice", 2);
        let ops = book.poll_ops(0).unwrap();
        assert_eq!(users(&ops), [("alice".into(), 2)]);
        assert!(
            matches!(ops[0], Op::IndexAdd { .. }),
            "on the list before she is written"
        );
        book.set("alice", 1);
        book.set("alice", 0);
        assert_eq!(book.poll_ops(9), None, "one write at a time");
        book.handle_written(&[Answer::Done], 10);
        assert_eq!(users(&book.poll_ops(10).unwrap()), [("alice".into(), 0)]);
        book.handle_written(&[Answer::Done], 11);
        book.set("bob", 0);
        assert_eq!(book.poll_ops(11), None, "not at once again");
        assert_eq!(users(&book.poll_ops(12).unwrap()), [("bob".into(), 0)]);
        book.handle_written(&[Answer::Done], 13);
        // Bob comes back before he is off the list.
        book.set("bob", 1);
        book.poll_ops(20).unwrap();
        book.handle_written(&[Answer::Done], 21);
        assert_eq!(book.poll_timeout(), Some(10 + UNLIST_EVERY_MS));
        let ops = book.poll_ops(10 + UNLIST_EVERY_MS).unwrap();
        assert_eq!(
            ops,
            [Op::IndexRemove {
                owner: ME,
                users: vec!["alice".into()]
            }]
        );
        book.handle_written(&[Answer::Done], 62);
        assert_eq!(book.poll_timeout(), None);
    }

    #[test]
    fn in_a_rush_a_connection_costs_little_more_than_a_command() {
        let mut book = PresenceWriter::new(ME, 1);
        let mut commands = 0;
        // 10,000 per second.
        for n in 0..1000 {
            let now_ms = n / 10;
            book.set(&format!("user{n}"), 1);
            if let Some(ops) = book.poll_ops(now_ms) {
                commands += ops.len();
                book.handle_written(&[], now_ms);
            }
        }
        commands += book.poll_ops(1_000).map_or(0, |ops| ops.len());
        assert!((1_000..1_100).contains(&commands), "{commands}");
    }

    #[test]
    fn after_trouble_everything_is_written_then_compared() {
        let mut book = PresenceWriter::new(ME, 2);
        book.set("alice", 1);
        book.poll_ops(0).unwrap();
        let failure = Failure {
            kind: FailureKind::Refused,
            text: "OOM".into(),
        };
        book.handle_written(&[Answer::Failed(failure)], 0);
        assert_eq!(book.refused().map(|text| &**text), Some("OOM"));
        assert_eq!(book.poll_step(RETRY_MS - 1), None);
        let mut now = RETRY_MS;
        let list = |shard, from| {
            Some(Step::List {
                round: 1,
                shard,
                from,
                count: STEP_USERS,
            })
        };
        assert_eq!(book.poll_step(now), list(0, 0));
        assert_eq!(book.poll_step(now + STEP_MS), None, "not answered yet");
        book.handle_listed(0, 0, Some(9));
        assert_eq!(book.poll_step(now + STEP_MS), None, "an answer of another round");
        book.handle_listed(1, 0, Some(500));
        assert_eq!(book.poll_step(now), None, "paced");
        now += STEP_MS;
        assert_eq!(book.poll_step(now), list(0, 500));
        book.handle_listed(1, 0, None);
        now += STEP_MS;
        assert_eq!(book.poll_step(now), list(1, 0));
        book.set("alice", 1);
        book.handle_listed(1, 1, None);
        assert!(!book.is_written());
        assert_eq!(book.poll_step(now + STEP_MS), None, "alice is not written");
        book.poll_ops(now).unwrap();
        book.handle_written(&[Answer::Done], now);
        assert!(book.refused().is_some(), "not before all is written");
        now += STEP_MS;
        // Nobody knows what became of her first write, which was refused.
        assert_eq!(book.poll_step(now), Some(Step::Check(vec!["alice".into()])));
        now += STEP_MS;
        assert_eq!(book.poll_step(now), Some(Step::Scan { round: 1, cursor: 0 }));
        book.handle_scanned(1, Some(3), now);
        now += STEP_MS;
        assert_eq!(book.poll_step(now), Some(Step::Scan { round: 1, cursor: 3 }));
        book.handle_scanned(0, Some(0), now);
        assert_eq!(book.poll_step(now + STEP_MS), None);
        book.handle_scanned(1, Some(0), now);
        assert!(book.is_written());
        assert_eq!(book.poll_step(now + STEP_MS), None);
    }

    #[test]
    fn who_was_written_lately_is_looked_for_after_trouble() {
        let mut book = PresenceWriter::new(ME, 1);
        book.set("alice", 1);
        book.poll_ops(0).unwrap();
        // Nobody knows what was written; alice goes while Redis is away.
        assert!(book.rebuild(ME, 10).is_empty());
        assert!(book.poll_step(10).is_some());
        book.handle_listed(1, 0, None);
        let check = Step::Check(vec!["alice".into()]);
        assert_eq!(book.poll_step(10 + STEP_MS), Some(check));
        assert_eq!(
            book.poll_step(10 + 2 * STEP_MS),
            Some(Step::Scan { round: 1, cursor: 0 })
        );
        book.set("bob", 1);
        book.poll_ops(20).unwrap();
        let left = book.rebuild(Incarnation(8), 30);
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [Arc::<str>::from("bob")]);
    }
}
