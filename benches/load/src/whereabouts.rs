//! The server's required knowledge of where a user is.
//!
//! Duty: judge the server's answers about a user ("there", "not there") by its promises. A user may
//! have been there, or away, for so long that the server must know. The opposite answer is then
//! wrong. How long that is depends on how the user came or went. A goodbye is known at once, a
//! network that is gone only after `heartbeat.timeout`, a gateway that died after `presence.ttl`.
//! During an attempt to come back the server may have taken it, and no answer is wrong. Pure.

use crate::tally;

/// A gateway may need this long to learn that somebody came or said goodbye on another one.
const SETTLED_NS: u64 = 2_000_000_000;
/// The time to learn that a user is gone without a goodbye: `heartbeat.timeout` and `presence.ttl`,
/// by default the same.
const UNNOTICED_NS: u64 = 90_000_000_000;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// We said goodbye; [`Whereabouts::handle_farewell`] says when the server has answered.
    Left,
    /// We went without a word.
    Vanished,
    /// The server closed it.
    Closed,
    /// It broke, and maybe the gateway with it.
    Broken,
}

/// By what the server said where somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The status of an ack.
    Status,
    /// The answer to a question.
    Presence,
}

impl Word {
    fn count_wrong(self, mixed: &mut tally::Mixed) {
        match self {
            Self::Status => mixed.status_wrong += 1,
            Self::Presence => mixed.presence_wrong += 1,
        }
    }
}

/// Where one user is.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    there: bool,
    /// An attempt to come back is under way.
    coming: bool,
    /// From when on the server must know; `u64::MAX` while it need not.
    settled_ns: u64,
    /// Until when the server may take a connection for alive that is not.
    unnoticed_ns: u64,
    /// When requests were sent that were answered "away" while the user was there as far as we
    /// know. If the server is just ending the user's connection, the answer was right.
    denied: Vec<(u64, Word)>,
}

impl Default for Whereabouts {
    fn default() -> Self {
        Self {
            there: false,
            coming: false,
            settled_ns: u64::MAX,
            unnoticed_ns: 0,
            denied: vec![],
        }
    }
}

impl Whereabouts {
    /// Whether they are connected, as far as we know.
    pub(crate) fn is_there(&self) -> bool {
        self.there
    }

    /// The server welcomed them.
    pub(crate) fn handle_welcome(&mut self, now_ns: u64) {
        (self.there, self.coming) = (true, false);
        self.settled_ns = now_ns + SETTLED_NS;
    }

    /// An attempt to come back begins.
    pub(crate) fn handle_attempt(&mut self) {
        (self.coming, self.settled_ns) = (true, u64::MAX);
    }

    /// The attempt failed, by a word of the server or for some other reason.
    pub(crate) fn handle_refusal(&mut self, by_word: bool, now_ns: u64) {
        self.coming = false;
        if !by_word {
            self.unnoticed_ns = now_ns + UNNOTICED_NS;
        }
        self.settle(now_ns);
    }

    /// Their connection ended.
    pub(crate) fn handle_departure(&mut self, mixed: &mut tally::Mixed, how: Departure, now_ns: u64) {
        self.there = false;
        // The server may have ended it a while before we hear of it, and what it said since then
        // was true.
        let is_ours = matches!(how, Departure::Left | Departure::Vanished);
        for (sent_ns, word) in std::mem::take(&mut self.denied) {
            if is_ours || sent_ns + SETTLED_NS <= now_ns {
                word.count_wrong(mixed);
            }
        }
        match how {
            Departure::Left => self.settled_ns = u64::MAX,
            Departure::Closed => self.settle(now_ns),
            Departure::Vanished | Departure::Broken => {
                self.unnoticed_ns = now_ns + UNNOTICED_NS;
                self.settle(now_ns);
            }
        }
    }

    /// The server has answered our goodbye.
    pub(crate) fn handle_farewell(&mut self, now_ns: u64) {
        if !self.there && !self.coming {
            self.settle(now_ns);
        }
    }

    /// The server said that they are `there`, or not, in answer to a request that was sent at
    /// `sent_ns`.
    pub(crate) fn handle_word(&mut self, mixed: &mut tally::Mixed, word: Word, there: bool, sent_ns: u64) {
        if self.there == there || self.settled_ns > sent_ns {
            return;
        }
        if self.there {
            self.denied.push((sent_ns, word));
        } else {
            word.count_wrong(mixed);
        }
    }

    /// Nothing comes any more.
    pub(crate) fn finish(&self, mixed: &mut tally::Mixed) {
        self.denied.iter().for_each(|(_, word)| word.count_wrong(mixed));
    }

    fn settle(&mut self, now_ns: u64) {
        self.settled_ns = self.unnoticed_ns.max(now_ns + SETTLED_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// How often the server was wrong by now if it says this of a request of this second.
    fn wrong(user: &mut Whereabouts, there: bool, second: u64) -> u64 {
        let mut mixed = tally::Mixed::default();
        user.handle_word(&mut mixed, Word::Status, there, second * SECOND);
        user.finish(&mut mixed);
        user.denied.clear();
        mixed.status_wrong
    }

    fn gone(how: Departure) -> Whereabouts {
        let mut user = Whereabouts::default();
        user.handle_welcome(0);
        user.handle_departure(&mut tally::Mixed::default(), how, 10 * SECOND);
        user
    }

    #[test]
    fn who_is_there_may_not_be_denied() {
        let mut user = Whereabouts::default();
        assert_eq!(wrong(&mut user, true, 100), 0, "not welcome yet, and maybe in");
        user.handle_welcome(5 * SECOND);
        assert_eq!((wrong(&mut user, false, 6), wrong(&mut user, false, 7)), (0, 1));
        assert_eq!(wrong(&mut user, true, 8), 0);
    }

    #[test]
    fn what_is_said_of_the_dead_is_wrong_when_it_must_be_known() {
        for (how, from) in [
            (Departure::Closed, 12),
            (Departure::Vanished, 100),
            (Departure::Broken, 100),
        ] {
            let mut user = gone(how);
            // Of a vanished one too the end of our socket is heard.
            user.handle_farewell(10 * SECOND);
            assert_eq!(wrong(&mut user, true, from - 1), 0, "{how:?}");
            assert_eq!(wrong(&mut user, true, from), 1, "{how:?}");
            assert_eq!(wrong(&mut user, false, from), 0, "{how:?}");
        }
        let mut user = gone(Departure::Left);
        assert_eq!(wrong(&mut user, true, 60), 0, "the goodbye is not answered");
        user.handle_farewell(60 * SECOND);
        assert_eq!((wrong(&mut user, true, 61), wrong(&mut user, true, 62)), (0, 1));
    }

    #[test]
    fn nobody_is_wrong_while_somebody_comes_back() {
        let mut user = gone(Departure::Closed);
        assert_eq!(wrong(&mut user, true, 20), 1);
        user.handle_attempt();
        assert_eq!((wrong(&mut user, true, 20), wrong(&mut user, false, 20)), (0, 0));
        user.handle_farewell(20 * SECOND);
        assert_eq!(wrong(&mut user, true, 30), 0, "that was the connection before");
        user.handle_refusal(true, 30 * SECOND);
        assert_eq!((wrong(&mut user, true, 31), wrong(&mut user, true, 32)), (0, 1));
        user.handle_attempt();
        user.handle_refusal(false, 40 * SECOND);
        assert_eq!((wrong(&mut user, true, 129), wrong(&mut user, true, 130)), (0, 1));
    }

    #[test]
    fn who_is_denied_may_be_going() {
        for (how, second, expected) in [
            (Departure::Closed, 9, 0),
            (Departure::Broken, 9, 0),
            (Departure::Closed, 8, 1),
            (Departure::Left, 9, 1),
        ] {
            let (mut user, mut mixed) = (Whereabouts::default(), tally::Mixed::default());
            user.handle_welcome(0);
            user.handle_word(&mut mixed, Word::Presence, false, second * SECOND);
            assert_eq!(mixed.presence_wrong, 0);
            user.handle_departure(&mut mixed, how, 10 * SECOND);
            assert_eq!(mixed.presence_wrong, expected, "{how:?} {second}");
        }
    }
}
