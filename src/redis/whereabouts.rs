//! On which server a node's two connections are: one decision for both. Pure.
//!
//! Commands and subscriptions have a connection each. A name, a proxy or a failover may lead the
//! two to different servers, or leave one of them behind. Each then works by itself, and no
//! publication arrives. So both are judged together, by three rules. They must be on one server, by
//! its run id. A publication over one must arrive over the other. Neither may be on a server that
//! is no master any more. Otherwise they are dialled anew, paced.
//!
//! ```text
//!            opened, on one server
//!   ┌────────────────────────────────────┐
//!   ▼                                    │
//! together ── apart, doubted, moved ──► in trouble ──┐ still apart: after 50 ms, 100 ms … 1 s
//!                                        ▲           │
//!                                        └───────────┘
//! ```
//!
//! Owned by the driver, one for each node. Invariant: *one server*: a node counts as there only
//! while its pair is not in trouble.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::server::{Cause, Line, Server};

/// A pair that was together for so long begins anew with short pauses.
const GOOD: Duration = Duration::from_secs(10);
/// Servers behind some proxies give another run id to each connection. After so many rounds their
/// run ids are ignored, and only the arrival of publications counts.
const ROUNDS_MAX: u32 = 6;

/// How one connection is.
#[derive(Debug)]
enum Side {
    /// Not needed yet.
    Unwanted,
    /// Being opened, or waiting for the next attempt.
    Opening,
    /// Open, since then.
    On(Server, Instant),
}

/// Connections that are to be closed and opened anew after a pause.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redial {
    pub(super) commands: bool,
    pub(super) subscriptions: bool,
    pub(super) pause: Duration,
    pub(super) cause: Cause,
    /// The round of the new connections. Reports with an earlier round are about old connections.
    pub(super) round: u64,
}

/// Both connections of a node.
#[derive(Debug)]
pub(super) struct Whereabouts {
    commands: Side,
    subscriptions: Side,
    /// Why they are dialled anew, until they are together.
    trouble: Option<Cause>,
    /// Since when they are together.
    together: Option<Instant>,
    /// How often they were found apart since they were together or doubted last.
    apart: u32,
    rounds: u64,
    /// The round that each must have come from to be believed: commands, subscriptions.
    expected: [u64; 2],
    backoff: Backoff,
}

impl Whereabouts {
    pub(super) fn new() -> Whereabouts {
        Whereabouts {
            commands: Side::Opening,
            subscriptions: Side::Unwanted,
            trouble: None,
            together: None,
            apart: 0,
            rounds: 0,
            expected: [0; 2],
            backoff: Backoff::default(),
        }
    }

    /// Why the pair is no good although its connections may be open.
    pub(super) fn trouble(&self) -> Option<&Cause> {
        self.trouble.as_ref()
    }

    /// The server of the commands, while nothing is wrong.
    pub(super) fn server(&self) -> Option<&Server> {
        match &self.commands {
            Side::On(server, _) if self.trouble.is_none() => Some(server),
            _ => None,
        }
    }

    /// Run ids prove nothing here, see [`ROUNDS_MAX`].
    pub(super) fn is_taken_on_trust(&self) -> bool {
        self.apart >= ROUNDS_MAX
    }

    /// A connection for subscriptions is being opened from now on.
    pub(super) fn want_subscriptions(&mut self) {
        if let Side::Unwanted = self.subscriptions {
            self.subscriptions = Side::Opening;
        }
    }

    /// A connection is open. `chance` is any number.
    pub(super) fn opened(
        &mut self,
        line: Line,
        round: u64,
        server: Server,
        now: Instant,
        chance: u8,
    ) -> Option<Redial> {
        if round < self.expected(line) {
            return None;
        }
        *self.side(line) = Side::On(server, now);
        match (&self.commands, &self.subscriptions) {
            (Side::On(..), Side::Unwanted) => {
                self.trouble = None;
                None
            }
            (Side::On(commands, commands_since), Side::On(subscriptions, subscriptions_since)) => {
                if commands.is(subscriptions) || self.apart >= ROUNDS_MAX {
                    self.trouble = None;
                    self.together = Some(now);
                    if !self.is_taken_on_trust() {
                        self.apart = 0;
                    }
                    return None;
                }
                let cause = format!(
                    "commands go to Redis at {}, and subscriptions are with another server, at {}",
                    commands.at, subscriptions.at
                );
                // The later one shows where the way leads now, so the earlier one follows. If that
                // does not help, the later one is dialled again: behind a proxy that gives its two
                // servers out in turn it gets the other's server. Then either or both, by chance.
                let later = commands_since > subscriptions_since;
                let (commands, subscriptions) = match (self.apart, chance % 4) {
                    (0 | 1, _) => (!later, later),
                    (2 | 3, _) => (later, !later),
                    (_, 0) => (true, false),
                    (_, 1) => (false, true),
                    _ => (true, true),
                };
                self.apart += 1;
                self.redial(commands, subscriptions, cause.into(), now)
            }
            _ => None,
        }
    }

    /// A connection is gone, or could not be opened. `moved`: because the server is no master any
    /// more.
    pub(super) fn lost(&mut self, line: Line, round: u64, moved: Option<&Cause>, now: Instant) -> Option<Redial> {
        if round < self.expected(line) {
            return None;
        }
        *self.side(line) = Side::Opening;
        let cause = moved?;
        self.redial(true, true, cause.clone(), now)
    }

    /// Publications do not arrive, or the location leads elsewhere by now.
    pub(super) fn doubted(&mut self, cause: Cause, now: Instant) -> Option<Redial> {
        self.apart = 0;
        match (&self.commands, &self.subscriptions) {
            (Side::On(..), Side::On(..) | Side::Unwanted) => self.redial(true, true, cause, now),
            // One of them is being opened, which shows where it leads.
            _ => None,
        }
    }

    /// The open ones of the two.
    fn redial(&mut self, commands: bool, subscriptions: bool, cause: Cause, now: Instant) -> Option<Redial> {
        if self.together.take().is_some_and(|since| now - since >= GOOD) {
            self.backoff = Backoff::default();
        }
        let is_open = |side: &Side| matches!(side, Side::On(..));
        let commands = commands && is_open(&self.commands);
        let subscriptions = subscriptions && is_open(&self.subscriptions);
        self.trouble = Some(cause.clone());
        if !commands && !subscriptions {
            return None;
        }
        self.rounds += 1;
        if commands {
            self.commands = Side::Opening;
            self.expected[0] = self.rounds;
        }
        if subscriptions {
            self.subscriptions = Side::Opening;
            self.expected[1] = self.rounds;
        }
        Some(Redial {
            commands,
            subscriptions,
            pause: self.backoff.next_delay(),
            cause,
            round: self.rounds,
        })
    }

    fn side(&mut self, line: Line) -> &mut Side {
        match line {
            Line::Subscriptions => &mut self.subscriptions,
            Line::Commands | Line::Scout => &mut self.commands,
        }
    }

    fn expected(&self, line: Line) -> u64 {
        self.expected[usize::from(line == Line::Subscriptions)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::server::Endpoint;
    use super::*;
    use crate::config::RedisAddress;

    fn server(id: u8) -> Server {
        Server {
            at: Endpoint::Tcp(RedisAddress {
                host: "name".into(),
                port: 1,
            }),
            run_id: Some(id.to_string().into()),
        }
    }

    /// A pair that is together on server 1.
    fn together(now: Instant) -> Whereabouts {
        let mut pair = Whereabouts::new();
        assert_eq!(pair.opened(Line::Commands, 0, server(1), now, 0), None);
        pair.want_subscriptions();
        assert_eq!(pair.opened(Line::Subscriptions, 0, server(1), now, 0), None);
        assert!(pair.trouble().is_none() && pair.server() == Some(&server(1)));
        pair
    }

    #[test]
    fn the_connection_that_was_left_behind_follows() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        for (first, second) in [
            (Line::Commands, Line::Subscriptions),
            (Line::Subscriptions, Line::Commands),
        ] {
            let mut pair = together(now);
            assert_eq!(pair.lost(first, 0, None, later), None, "the other one may be good");
            assert!(pair.trouble().is_none());
            let redial = pair.opened(first, 0, server(2), later, 0).unwrap();
            assert_eq!(
                (redial.commands, redial.subscriptions),
                (second == Line::Commands, second == Line::Subscriptions)
            );
            assert!(pair.trouble().is_some() && redial.pause <= Duration::from_millis(50));
            assert_eq!(pair.lost(second, 0, None, later), None, "the old connection's end");
            assert_eq!(pair.opened(second, redial.round, server(2), later, 0), None);
            assert!(pair.trouble().is_none(), "{pair:?}");
        }
    }

    #[test]
    fn no_master_any_more_moves_both_and_so_do_doubts() {
        let now = Instant::now();
        let mut pair = together(now);
        let cause: Cause = "READONLY".into();
        let redial = pair.lost(Line::Commands, 0, Some(&cause), now).unwrap();
        assert_eq!(
            (redial.commands, redial.subscriptions),
            (false, true),
            "commands are gone"
        );
        // Reports of the old subscriptions are out of date.
        assert_eq!(pair.opened(Line::Subscriptions, 0, server(1), now, 0), None);
        assert_eq!(pair.opened(Line::Commands, 0, server(2), now, 0), None);
        assert_eq!(pair.trouble(), Some(&cause), "until both are there");
        assert_eq!(pair.opened(Line::Subscriptions, redial.round, server(2), now, 0), None);
        assert_eq!(pair.trouble(), None);

        let redial = pair.doubted("not heard".into(), now).unwrap();
        assert!(redial.commands && redial.subscriptions);
        assert_eq!(pair.doubted("not heard".into(), now), None, "it is being mended");
    }

    /// Whatever chance says, as a strict turn is not broken by it.
    #[test]
    fn servers_that_are_given_out_in_turn_do_not_keep_the_two_apart() {
        for chance in 0..4 {
            let mut now = Instant::now();
            let mut pair = Whereabouts::new();
            pair.want_subscriptions();
            let mut dials = [1, 2].into_iter().cycle();
            let mut due = vec![(Line::Commands, 0), (Line::Subscriptions, 0)];
            let mut rounds = 0;
            while let Some((line, round)) = due.pop() {
                now += Duration::from_millis(1);
                let server = server(dials.next().unwrap());
                if let Some(redial) = pair.opened(line, round, server, now, chance) {
                    rounds += 1;
                    due.extend(redial.commands.then_some((Line::Commands, redial.round)));
                    due.extend(redial.subscriptions.then_some((Line::Subscriptions, redial.round)));
                }
            }
            assert!(pair.trouble().is_none() && !pair.is_taken_on_trust(), "{pair:?}");
            assert!(rounds <= 4, "{rounds} rounds");
        }
    }

    #[test]
    fn a_server_that_does_not_say_who_it_is_is_known_by_its_address() {
        let now = Instant::now();
        let nameless = |port| Server {
            at: Endpoint::Tcp(RedisAddress {
                host: "name".into(),
                port,
            }),
            run_id: None,
        };
        let mut pair = Whereabouts::new();
        pair.want_subscriptions();
        pair.opened(Line::Commands, 0, nameless(1), now, 0);
        assert_eq!(pair.opened(Line::Subscriptions, 0, nameless(1), now, 0), None);
        assert!(pair.opened(Line::Commands, 0, nameless(2), now, 0).is_some());
    }

    /// A proxy that gives another run id to every connection: after some rounds the pair is taken
    /// as it is.
    #[test]
    fn run_ids_that_never_agree_are_not_believed_for_ever() {
        let mut now = Instant::now();
        let mut pair = Whereabouts::new();
        pair.want_subscriptions();
        let mut id = 0;
        let mut open = |pair: &mut Whereabouts, line, round, now| {
            id += 1;
            pair.opened(line, round, server(id), now, id)
        };
        let mut due = vec![(Line::Commands, 0), (Line::Subscriptions, 0)];
        for _ in 0..100 {
            let Some((line, round)) = due.pop() else { break };
            if let Some(redial) = open(&mut pair, line, round, now) {
                now += redial.pause;
                let lines = [
                    (redial.commands, Line::Commands),
                    (redial.subscriptions, Line::Subscriptions),
                ];
                due.extend(
                    lines
                        .into_iter()
                        .filter(|(wanted, _)| *wanted)
                        .map(|(_, line)| (line, redial.round)),
                );
            }
        }
        assert!(due.is_empty() && pair.trouble().is_none() && pair.is_taken_on_trust());
        assert!(pair.doubted("not heard".into(), now).is_some(), "but it must work");
        assert!(!pair.is_taken_on_trust());
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// The way leads to this server from now on.
        Way(u8),
        /// A connection breaks.
        Breaks(bool),
        /// The server reports that it is no master any more.
        Demoted,
        /// The cause, if publications do not arrive.
        Probe,
        /// So many milliseconds pass.
        Wait(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1u8..4).prop_map(Event::Way),
            any::<bool>().prop_map(Event::Breaks),
            Just(Event::Demoted),
            Just(Event::Probe),
            (0u16..3_000).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// For any order of events: while the location stays, both connections are on one server
        /// soon. They are never dialled more often than the pauses allow.
        #[test]
        fn both_are_together_soon_after_discovery_made_up_its_mind(
            events in proptest::collection::vec((event(), any::<u8>()), 0..60),
        ) {
            let lines = [Line::Commands, Line::Subscriptions];
            let mut now = Instant::now();
            let mut pair = Whereabouts::new();
            pair.want_subscriptions();
            let mut way = 1;
            // The server of each connection, when it may be dialled, and its round.
            let mut on: [Option<u8>; 2] = [None; 2];
            let mut due = [now; 2];
            let mut rounds = [0u64; 2];
            let mut dials = 0u128;
            let began = now;
            let calm = |n: u8| (if n.is_multiple_of(10) { Event::Probe } else { Event::Wait(100) }, n);
            let events = events.into_iter().chain((0..100).map(calm));
            for (event, chance) in events {
                let mut redials = Vec::new();
                match event {
                    Event::Way(to) => way = to,
                    Event::Wait(ms) => now += Duration::from_millis(ms.into()),
                    Event::Breaks(first) => {
                        let at = usize::from(first);
                        if on[at].take().is_some() {
                            due[at] = now + Duration::from_millis(50);
                            redials.extend(pair.lost(lines[at], rounds[at], None, now));
                        }
                    }
                    Event::Demoted => {
                        if on[0].take().is_some() {
                            due[0] = now + Duration::from_millis(50);
                            redials.extend(pair.lost(Line::Commands, rounds[0], Some(&"READONLY".into()), now));
                        }
                    }
                    Event::Probe => {
                        if on[0].is_some() && on[1].is_some() && on[0] != on[1] {
                            redials.extend(pair.doubted("not heard".into(), now));
                        }
                    }
                }
                for _ in 0..4 {
                    for redial in std::mem::take(&mut redials) {
                        for (at, wanted) in [redial.commands, redial.subscriptions].into_iter().enumerate() {
                            if wanted {
                                on[at] = None;
                                due[at] = now + redial.pause;
                                rounds[at] = redial.round;
                            }
                        }
                    }
                    for at in 0..2 {
                        if on[at].is_none() && now >= due[at] {
                            dials += 1;
                            on[at] = Some(way);
                            redials.extend(pair.opened(lines[at], rounds[at], server(way), now, chance));
                            for redial in std::mem::take(&mut redials) {
                                for (at, wanted) in [redial.commands, redial.subscriptions].into_iter().enumerate() {
                                    if wanted {
                                        on[at] = None;
                                        due[at] = now + redial.pause;
                                        rounds[at] = redial.round;
                                    }
                                }
                            }
                        }
                    }
                }
            }
            prop_assert!(on[0].is_some() && on[0] == on[1], "{on:?} {pair:?}");
            prop_assert!(pair.trouble().is_none(), "{pair:?}");
            let breaks_and_pauses = 2 * 60 + (now - began).as_millis() / 25;
            prop_assert!(dials <= breaks_and_pauses, "{dials} dials");
        }
    }
}
