//! One channel whose subscribers come and go.
//!
//! Duty: decide of every delivery whether it arrived, was lost, or was away. A subscriber must get
//! all publications between `subscribed` and its wish to leave. Publications under way at that
//! wish, or at the end of its connection, may come or not. The same goes for publications without
//! an ack when their publisher's connection ended. Publications are numbered by channel, so one
//! list of numbers serves all subscribers. Their order is promised to a publisher's connection, so
//! the publishers' connections check it. sent = received + lost + away. Pure.

use std::collections::HashMap;

use crate::sequence::{Arrival, Sequence};
use crate::stream::Missing;

/// The server's ack of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Published,
    /// It failed, or the publisher's connection ended before it was told.
    Doubtful,
}

/// The publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Publisher {
    /// The user's number.
    pub(crate) user: u32,
    /// Which of the user's connections, in their order.
    pub(crate) visit: u32,
}

/// One subscription, from `subscribed` to its end.
#[derive(Debug)]
struct Member {
    /// The first publication that it must get.
    from: u32,
    /// The first that it need not get any more, once it wants to leave.
    until: Option<u32>,
    /// Of those from `from` on.
    seen: Sequence,
    received: u32,
    /// The newest of each publisher.
    newest: HashMap<Publisher, u32>,
}

/// The meaning of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    InOrder,
    Reordered,
    Duplicate,
    /// It may come and need not: from the time before `subscribed`, or while leaving.
    Extra,
    /// It must not come: nobody published it, or not to this one.
    Stray,
}

/// A channel's publications and subscribers.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    publications: Vec<(Publisher, Fate)>,
    members: HashMap<usize, Member>,
    ended: Missing,
}

impl Audience {
    fn count(&self) -> u32 {
        self.publications.len() as u32
    }

    /// One leaves; its number, and how many must get it.
    pub(crate) fn publish(&mut self, publisher: Publisher) -> (u32, u64) {
        self.publications.push((publisher, Fate::Open));
        let members = self.members.values().filter(|member| member.until.is_none()).count();
        (self.count() - 1, members as u64)
    }

    /// The server said what became of it.
    pub(crate) fn answer(&mut self, number: u32, published: bool) {
        self.publications[number as usize].1 = if published { Fate::Published } else { Fate::Doubtful };
    }

    /// The publisher will never be told what became of it.
    pub(crate) fn doubt(&mut self, number: u32) {
        self.publications[number as usize].1 = Fate::Doubtful;
    }

    /// The server confirmed a subscription.
    pub(crate) fn join(&mut self, user: usize) {
        let member = Member {
            from: self.count(),
            until: None,
            seen: Sequence::default(),
            received: 0,
            newest: HashMap::new(),
        };
        self.end(user);
        self.members.insert(user, member);
    }

    /// A subscriber asks to leave.
    pub(crate) fn begin_leaving(&mut self, user: usize) {
        let count = self.count();
        if let Some(member) = self.members.get_mut(&user) {
            member.until = Some(count);
        }
    }

    /// A subscription is over: what was under way is away, what was jumped over is lost.
    pub(crate) fn end(&mut self, user: usize) {
        if let Some(member) = self.members.remove(&user) {
            self.ended += self.missing(&member, true);
        }
    }

    /// Publication `number` arrived at `user`, and says that user `by` published it.
    pub(crate) fn arrive(&mut self, user: usize, number: u32, by: u32) -> Heard {
        let Some((publisher, _)) = self.publications.get(number as usize).copied() else {
            return Heard::Stray;
        };
        if publisher.user != by {
            return Heard::Stray;
        }
        let Some(member) = self.members.get_mut(&user) else {
            return Heard::Stray;
        };
        let newest = member.newest.insert(publisher, number);
        if let Some(newest) = newest.filter(|newest| *newest > number) {
            member.newest.insert(publisher, newest);
        }
        if number < member.from || member.until.is_some_and(|until| number >= until) {
            return Heard::Extra;
        }
        match member.seen.arrive(number - member.from) {
            Arrival::Duplicate => return Heard::Duplicate,
            // That of different publishers is nobody's promise.
            Arrival::InOrder | Arrival::Reordered => member.received += 1,
        }
        match newest.is_some_and(|newest| newest > number) {
            true => Heard::Reordered,
            false => Heard::InOrder,
        }
    }

    /// Whether everything arrived that must.
    pub(crate) fn is_complete(&self) -> bool {
        self.members.values().all(|member| self.has_all(member))
    }

    fn has_all(&self, member: &Member) -> bool {
        let wanted = member.until.unwrap_or(self.count()) - member.from;
        // A publication that failed, or had no ack, may come or not.
        let is_doubtful = |number: u32| self.publications[(member.from + number) as usize].1 == Fate::Doubtful;
        member.received >= wanted || member.seen.missing(wanted).all(is_doubtful)
    }

    /// Nothing comes any more.
    pub(crate) fn finish(&self) -> Missing {
        let mut missing = self.ended;
        for member in self.members.values() {
            missing += self.missing(member, false);
        }
        missing
    }

    /// The publications that one subscriber misses: at the end of its subscription, or (not `cut`)
    /// at the end of everything.
    fn missing(&self, member: &Member, cut: bool) -> Missing {
        let mut missing = Missing::default();
        let until = member.until.unwrap_or(self.count());
        for number in member.seen.missing(until - member.from).map(|n| n + member.from) {
            let (publisher, fate) = self.publications[number as usize];
            let had_its_chance = || member.newest.get(&publisher).is_some_and(|newest| *newest > number);
            let is_lost = match fate {
                Fate::Published => !cut || had_its_chance(),
                Fate::Open => !cut,
                Fate::Doubtful => false,
            };
            if is_lost {
                missing.lost += 1;
            } else {
                missing.away += 1;
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(user: u32) -> Publisher {
        Publisher { user, visit: 0 }
    }

    fn missing(lost: u64, away: u64) -> Missing {
        Missing { lost, away }
    }

    #[test]
    fn a_subscriber_gets_what_comes_after_subscribed() {
        let mut channel = Audience::default();
        assert_eq!(channel.publish(of(7)), (0, 0));
        channel.join(1);
        channel.join(2);
        assert_eq!(channel.publish(of(7)), (1, 2));
        assert_eq!(channel.publish(of(8)), (2, 2));
        assert_eq!(channel.arrive(1, 0, 7), Heard::Extra);
        assert_eq!(channel.arrive(1, 2, 8), Heard::InOrder, "publishers are apart");
        assert_eq!(channel.arrive(1, 1, 7), Heard::InOrder);
        assert_eq!(channel.arrive(1, 1, 7), Heard::Duplicate);
        assert_eq!(channel.arrive(1, 2, 7), Heard::Stray, "that was somebody else's");
        assert_eq!(channel.arrive(1, 3, 7), Heard::Stray, "never published");
        assert_eq!(channel.arrive(3, 1, 7), Heard::Stray, "never subscribed");
        assert!(!channel.is_complete());
        assert_eq!(channel.finish(), missing(2, 0));
        channel.arrive(2, 1, 7);
        channel.arrive(2, 2, 8);
        assert!(channel.is_complete());
        assert_eq!(channel.finish(), missing(0, 0));
    }

    #[test]
    fn order_is_that_of_one_publisher() {
        let mut channel = Audience::default();
        channel.join(1);
        for number in 0..3 {
            assert_eq!(channel.publish(of(7)), (number, 1));
        }
        assert_eq!(channel.arrive(1, 1, 7), Heard::InOrder);
        assert_eq!(channel.arrive(1, 0, 7), Heard::Reordered);
        assert_eq!(channel.arrive(1, 2, 7), Heard::InOrder);
    }

    #[test]
    fn who_leaves_loses_only_what_was_jumped_over() {
        let mut channel = Audience::default();
        channel.join(1);
        for number in 0..4 {
            assert_eq!(channel.publish(of(7)), (number, 1));
            channel.answer(number, true);
        }
        channel.arrive(1, 1, 7);
        channel.begin_leaving(1);
        assert_eq!(channel.publish(of(7)), (4, 0));
        assert_eq!(channel.arrive(1, 4, 7), Heard::Extra);
        assert_eq!(
            channel.arrive(1, 2, 7),
            Heard::Reordered,
            "behind one that need not have come"
        );
        channel.end(1);
        // 0 and 3 never came, and a later one of the same publisher did.
        assert_eq!(channel.finish(), missing(2, 0));
        assert_eq!(channel.arrive(1, 3, 7), Heard::Stray, "nothing after unsubscribed");
    }

    #[test]
    fn what_was_under_way_is_away() {
        let mut channel = Audience::default();
        channel.join(1);
        channel.join(2);
        channel.publish(of(7));
        channel.publish(of(8));
        channel.arrive(1, 0, 7);
        channel.end(1);
        assert_eq!(channel.finish(), missing(2, 1), "the other one is still there");
        channel.doubt(0);
        channel.answer(1, false);
        assert_eq!(channel.finish(), missing(0, 3));
    }

    #[test]
    fn nobody_waits_for_what_need_not_come() {
        let mut channel = Audience::default();
        channel.join(1);
        for number in 0..3 {
            channel.publish(of(7));
            channel.answer(number, number == 2);
        }
        assert!(!channel.is_complete());
        channel.arrive(1, 2, 7);
        assert!(channel.is_complete(), "0 and 1 failed");
        assert_eq!(channel.finish(), missing(0, 2));
        channel.publish(of(7));
        assert!(!channel.is_complete(), "the answer is still to come");
        channel.doubt(3);
        assert!(channel.is_complete());
    }

    #[test]
    fn order_is_that_of_one_connection() {
        let mut channel = Audience::default();
        channel.join(1);
        for (number, visit) in [(0, 0), (1, 1), (2, 1)] {
            assert_eq!(channel.publish(Publisher { user: 7, visit }).0, number);
            channel.answer(number, true);
        }
        assert_eq!(channel.arrive(1, 2, 7), Heard::InOrder);
        assert_eq!(channel.arrive(1, 0, 7), Heard::InOrder, "of the connection before");
        assert_eq!(channel.arrive(1, 1, 7), Heard::Reordered);
    }
}
