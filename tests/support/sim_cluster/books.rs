//! The messages and their receivers, when each gateway could be reached, and the possible
//! consequences.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::link::MS;
use super::sim::channels::ChannelBooks;

/// After trouble everybody may need so long to see that it is over.
pub const RECOVERY_NS: u64 = 7_000 * MS;
/// News of a new connection is with everybody after this time.
pub const NEWS_NS: u64 = 400 * MS;
/// By then every request has an answer: time for a location to be learned, a packet to be
/// confirmed, and a little.
pub const ANSWER_MAX_NS: u64 = 6_500 * MS;

#[derive(Debug)]
pub struct Message {
    pub sender: usize,
    pub to: usize,
    pub sent_ns: u64,
    /// Connections that got it queued.
    pub queued_to: Vec<(usize, u64)>,
    pub ack: Option<(String, u64)>,
}

#[derive(Debug)]
pub struct Query {
    pub asker: usize,
    pub asked: BTreeSet<usize>,
    pub sent_ns: u64,
    pub answer: Option<(Option<BTreeMap<usize, bool>>, u64)>,
}

/// One connection's life.
#[derive(Debug)]
pub struct Client {
    pub user: usize,
    /// Which gateway, and which of its lives.
    pub slot: usize,
    pub life: u64,
    pub welcomed_ns: Option<u64>,
    pub ended_ns: Option<u64>,
    /// The last message from each sender.
    heard: BTreeMap<usize, usize>,
    /// Told to go elsewhere.
    pub told_to_go: bool,
}

impl Client {
    pub fn is_live(&self) -> bool {
        self.welcomed_ns.is_some() && self.ended_ns.is_none()
    }

    fn lived_through(&self, from_ns: u64, to_ns: u64) -> bool {
        self.welcomed_ns.is_some_and(|at| at <= from_ns) && self.ended_ns.is_none_or(|at| at > to_ns)
    }
}

/// When a gateway could not be reached by everybody.
#[derive(Debug, Default)]
pub struct Soundness {
    unsound: Vec<(u64, u64)>,
    open: Option<u64>,
}

impl Soundness {
    pub fn note(&mut self, sound: bool, now_ns: u64) {
        match (sound, self.open) {
            (false, None) => self.open = Some(now_ns),
            (true, Some(from)) => {
                self.unsound.push((from, now_ns));
                self.open = None;
            }
            _ => {}
        }
    }

    /// Sound from one time to another, trouble before having been over for a while.
    fn throughout(&self, from_ns: u64, to_ns: u64) -> bool {
        let from_ns = from_ns.saturating_sub(RECOVERY_NS);
        let open = self.open.map(|from| (from, u64::MAX));
        let mut spells = self.unsound.iter().copied().chain(open);
        !spells.any(|(begin, end)| begin <= to_ns && end >= from_ns)
    }
}

#[derive(Debug, Default)]
pub struct Tally {
    pub acks: BTreeMap<String, u64>,
    /// Taken by a connection that ended before it could report it.
    pub taken_by_the_dead: u64,
    pub unavailable: u64,
    /// Publications of peers that had to come, and did.
    pub came_from_elsewhere: u64,
}

#[derive(Debug, Default)]
pub struct Books {
    pub users: Vec<String>,
    pub clients: Vec<Client>,
    pub messages: Vec<Message>,
    pub queries: Vec<Query>,
    pub channels: ChannelBooks,
    /// By slot.
    pub soundness: Vec<Soundness>,
    /// Spells in which gateways stood still, or Redis let everybody wait.
    pub frozen: Vec<(u64, u64)>,
    /// Users whose key Redis lost, and until when that may show. Other trouble may delay its
    /// discovery for a while. The end of the run checks that it was found.
    pub lost: Vec<(usize, u64, u64)>,
    pub tally: Tally,
    pub checked_messages: usize,
    pub checked_queries: usize,
}

impl Books {
    pub fn begin(&mut self, user: usize, slot: usize, life: u64) -> usize {
        self.clients.push(Client {
            user,
            slot,
            life,
            welcomed_ns: None,
            ended_ns: None,
            heard: BTreeMap::new(),
            told_to_go: false,
        });
        self.clients.len() - 1
    }

    pub fn end(&mut self, client: usize, now_ns: u64) {
        self.clients[client].ended_ns.get_or_insert(now_ns);
    }

    /// Redis lost the key of this user.
    pub fn lose(&mut self, user: &str, from_ns: u64, until_ns: u64) {
        self.lost.push((self.user(user), from_ns, until_ns));
    }

    fn user(&self, name: &str) -> usize {
        self.users.iter().position(|user| user == name).expect("a known user")
    }

    /// A gateway queued this text on a connection.
    pub fn hear(&mut self, client: usize, text: &str, now_ns: u64) {
        let said: Value = serde_json::from_str(text).expect("JSON");
        if self.channels.hear(client, &said, text) {
            return;
        }
        let number = |prefix: char| -> usize {
            let id = said["id"].as_str().expect("an id");
            id.strip_prefix(prefix).expect("our id").parse().expect("a number")
        };
        match said["type"].as_str().expect("a type") {
            "welcome" => {
                self.clients[client].welcomed_ns = Some(now_ns);
            }
            "message" => {
                let number = said["content"][0].as_u64().expect("a number") as usize;
                let message = &mut self.messages[number];
                assert_eq!(
                    message.to, self.clients[client].user,
                    "message {number} to somebody else"
                );
                message.queued_to.push((client, now_ns));
                let last = self.clients[client].heard.insert(message.sender, number);
                assert!(
                    last.is_none_or(|last| last < number),
                    "client {client} got {number} after {last:?} at {} ms: {message:?}",
                    now_ns / MS
                );
            }
            "ack" => {
                let number = number('m');
                let status = said["status"].as_str().expect("a status").to_owned();
                let message = &mut self.messages[number];
                assert_eq!(message.sender, client, "somebody else's ack");
                assert!(message.ack.is_none(), "two acks: {message:?} {status}");
                *self.tally.acks.entry(status.clone()).or_default() += 1;
                message.ack = Some((status, now_ns));
            }
            "presence" => {
                let number = number('p');
                let users = said["users"].as_object().expect("users");
                let answer = users
                    .iter()
                    .map(|(user, online)| (self.user(user), online.as_bool().expect("a bool")))
                    .collect();
                let query = &mut self.queries[number];
                assert!(query.answer.is_none(), "two answers: {query:?}");
                query.answer = Some((Some(answer), now_ns));
            }
            "error" => {
                assert_eq!(said["code"], "unavailable", "{text}");
                let number = number('p');
                let query = &mut self.queries[number];
                assert!(query.answer.is_none(), "two answers: {query:?}");
                query.answer = Some((None, now_ns));
                self.tally.unavailable += 1;
            }
            "shutdown" => self.clients[client].told_to_go = true,
            other => panic!("what is {other}?"),
        }
    }

    /// A connection of this user that everybody could know of and reach all the time.
    fn witness(&self, user: usize, from_ns: u64, to_ns: u64, through: usize) -> Option<usize> {
        let news_ns = from_ns.saturating_sub(NEWS_NS);
        let sound = |slot: usize| self.soundness[slot].throughout(from_ns, to_ns);
        let lost = |(lost, begin, end): &(usize, u64, u64)| *lost == user && *begin <= to_ns && *end >= from_ns;
        if !sound(through) || self.lost.iter().any(lost) {
            return None;
        }
        (0..self.clients.len()).find(|index| {
            let client = &self.clients[*index];
            // A client with notice is closed soon, and its gateway knows that before the client
            // does.
            let lived_ns = to_ns + if client.told_to_go { NEWS_NS } else { 0 };
            client.user == user && client.lived_through(news_ns, lived_ns) && sound(client.slot)
        })
    }

    pub fn are_sound(&self, slots: [usize; 2], from_ns: u64, to_ns: u64) -> bool {
        slots
            .iter()
            .all(|slot| self.soundness[*slot].throughout(from_ns, to_ns))
    }

    pub fn all_sound(&self, from_ns: u64, to_ns: u64) -> bool {
        self.soundness.iter().all(|slot| slot.throughout(from_ns, to_ns))
    }

    pub fn frozen_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        let spells = self.frozen.iter();
        spells
            .map(|(begin, end)| (*end).min(to_ns).saturating_sub((*begin).max(from_ns)))
            .sum()
    }

    /// Everything sent so far has had the time to be answered.
    pub fn check(&mut self, now_ns: u64) {
        for number in self.checked_messages..self.messages.len() {
            let message = &self.messages[number];
            let sent_ns = message.sent_ns;
            let through = self.clients[message.sender].slot;
            let Some((status, at_ns)) = &message.ack else {
                let sender = &self.clients[message.sender];
                assert!(
                    sender
                        .ended_ns
                        .is_some_and(|at| at <= sent_ns + ANSWER_MAX_NS + self.frozen_ns(sent_ns, at)),
                    "message {number} has no ack: {message:?} {sender:?}"
                );
                continue;
            };
            let at_ns = *at_ns;
            let took_ns = at_ns - sent_ns;
            assert!(
                took_ns <= ANSWER_MAX_NS + self.frozen_ns(sent_ns, at_ns),
                "the ack of message {number} took {} ms: {message:?}",
                took_ns / MS
            );
            let witness = self.witness(message.to, sent_ns, at_ns, through);
            match status.as_str() {
                "delivered" | "routed" => {
                    if message.queued_to.is_empty() {
                        // Gone, and its gateway did not know yet.
                        let frozen_ns = self.frozen_ns(sent_ns.saturating_sub(5_000 * MS), at_ns);
                        let from_ns = sent_ns.saturating_sub(100 * MS + frozen_ns);
                        let ended = self.clients.iter().any(|client| {
                            let end_ns = client.ended_ns.unwrap_or(u64::MAX);
                            client.user == message.to && (from_ns..at_ns + 1_000 * MS).contains(&end_ns)
                        });
                        assert!(ended, "message {number} was taken by nobody: {message:?}");
                        self.tally.taken_by_the_dead += 1;
                    }
                }
                "offline" => {
                    if let Some(witness) = witness {
                        panic!(
                            "message {number} found nobody, yet {witness} was there: {message:?} {:?} sent by {:?}",
                            self.clients[witness], self.clients[message.sender]
                        );
                    }
                }
                "failed" => {
                    if self.all_sound(sent_ns, at_ns) {
                        panic!(
                            "message {number} failed without cause: {message:?} sent by {:?}",
                            self.clients[message.sender]
                        );
                    }
                }
                other => panic!("message {number} is {other}"),
            }
            // No client gets less than all of it while all is well.
            if let Some(witness) = witness
                && self.all_sound(sent_ns, at_ns + 2_000 * MS)
                && self.clients[witness]
                    .ended_ns
                    .is_none_or(|end| end > at_ns + 2_000 * MS)
            {
                assert!(
                    message.queued_to.iter().any(|(client, _)| *client == witness),
                    "message {number} did not reach {witness}: {message:?} {:?} sent by {:?}",
                    self.clients[witness],
                    self.clients[message.sender]
                );
            }
        }
        self.checked_messages = self.messages.len();
        for number in self.checked_queries..self.queries.len() {
            let query = &self.queries[number];
            let asker = &self.clients[query.asker];
            let Some((answer, at_ns)) = &query.answer else {
                assert!(
                    asker.ended_ns.is_some(),
                    "query {number} has no answer at {now_ns}: {query:?} {asker:?}"
                );
                continue;
            };
            let Some(answer) = answer else {
                assert!(
                    !self.all_sound(query.sent_ns, *at_ns),
                    "query {number} was refused without cause: {query:?}"
                );
                continue;
            };
            assert!(answer.keys().eq(query.asked.iter()), "not what was asked: {query:?}");
            for (user, online) in answer {
                if !online && let Some(witness) = self.witness(*user, query.sent_ns, *at_ns, asker.slot) {
                    panic!(
                        "query {number} did not find {user}: {query:?} {:?} asked by {asker:?}",
                        self.clients[witness]
                    );
                }
            }
        }
        self.checked_queries = self.queries.len();
    }
}
