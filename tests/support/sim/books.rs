//! The books of clients: the messages sent, their acks, and the required outcome.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::channels::ChannelBooks;
use super::client::Client;
use super::control::Issuer;

/// One message, from its sender's and its receivers' points of shared.
#[derive(Debug)]
pub struct Message {
    pub sender: usize,
    pub from: usize,
    pub to: usize,
    pub content: String,
    pub wants_ack: bool,
    /// Connections of the receiver that were open, by their own lights, when it was sent.
    pub witnesses: Vec<usize>,
    pub received_by: Vec<usize>,
    pub ack: Option<String>,
    pub refused: Option<String>,
}

#[derive(Debug)]
pub struct Query {
    pub asker: usize,
    pub asked: BTreeSet<usize>,
    pub answer: Option<BTreeMap<usize, bool>>,
    pub refused: Option<String>,
}

/// A frame for everybody.
#[derive(Debug)]
pub struct Broadcast {
    /// Clients that were open, by their own lights, when it was sent.
    pub witnesses: Vec<usize>,
    pub received_by: Vec<usize>,
}

/// The messages, their outcomes, and the possible ones.
#[derive(Debug, Default)]
pub struct Books {
    pub users: Vec<String>,
    /// The shard of each user.
    pub homes: Vec<usize>,
    /// When each shard was last done with all it was given.
    pub done_ns: Vec<u64>,
    pub messages: Vec<Message>,
    pub queries: Vec<Query>,
    pub channels: ChannelBooks,
    pub broadcasts: Vec<Broadcast>,
    pub ids: BTreeSet<String>,
    pub draining: bool,
    /// Users show tokens.
    pub issuer: Option<Issuer>,
    /// Keys could not be fetched.
    pub keys_failed: bool,
    /// An administrator closed their connections.
    pub closed_users: BTreeSet<usize>,
    /// Connections that tokens opened, and responses to plain HTTP.
    pub tokens: u64,
    pub http: u64,
    /// Lanes are made full on purpose.
    pub lanes_full: bool,
    /// Frames may be refused with `rateLimited`.
    pub rate_limited: bool,
    pub connections_limited: bool,
    /// `limits.connections` are few.
    pub places_limited: bool,
    /// A burst of messages alone can fill an outbox.
    pub small_outboxes: bool,
    /// Clients by user that have seen their welcome and no end.
    pub open: BTreeMap<usize, BTreeSet<usize>>,
}

impl Books {
    pub fn new(users: Vec<String>, homes: Vec<usize>, channels: usize) -> Self {
        let shards = homes.iter().max().map_or(0, |last| last + 1);
        Books {
            users,
            homes,
            done_ns: vec![0; shards],
            channels: ChannelBooks::new(channels),
            ..Books::default()
        }
    }

    pub fn answer(&self, query: usize) -> Option<&BTreeMap<usize, bool>> {
        self.queries[query].answer.as_ref()
    }

    pub fn refusal(&self, query: usize) -> Option<&str> {
        self.queries[query].refused.as_deref()
    }

    pub fn user(&self, name: &Value) -> usize {
        let name = name.as_str().expect("a user id");
        self.users.iter().position(|user| user == name).expect("a known user")
    }

    /// All is quiet: what was promised must have happened.
    pub fn check(&self, clients: &[Client], live: &[usize]) {
        for (number, message) in self.messages.iter().enumerate() {
            let steady: Vec<usize> = message
                .witnesses
                .iter()
                .copied()
                .filter(|client| live.contains(client))
                .collect();
            let missed = steady.iter().find(|client| !message.received_by.contains(client));
            let say = |what: &str| format!("message {number} {what}: {message:?}");
            let sender_lives = live.contains(&message.sender);
            match (message.ack.as_deref(), message.refused.as_deref()) {
                (Some("delivered"), None) => {
                    assert!(missed.is_none(), "{}", say("was delivered and not received"));
                    // At least one connection took it. If none received it, it was one that has
                    // ended since.
                    let taken = !message.received_by.is_empty()
                        || clients
                            .iter()
                            .enumerate()
                            .any(|(index, client)| client.wanted_user() == Some(message.to) && !live.contains(&index));
                    assert!(taken, "{}", say("was delivered to nobody"));
                }
                (Some("offline"), None) => {
                    assert!(steady.is_empty(), "{}", say("found nobody, yet somebody was there"));
                    assert!(
                        message.received_by.is_empty(),
                        "{}",
                        say("found nobody and was received")
                    );
                }
                (Some("failed"), None) => {
                    assert!(self.lanes_full, "{}", say("failed without a full lane"));
                    assert!(message.received_by.is_empty(), "{}", say("failed and was received"));
                }
                (None, Some(code)) => {
                    assert!(message.received_by.is_empty(), "{}", say("was refused and received"));
                    assert!(
                        (code == "rateLimited" && self.rate_limited) || code == "unauthorized",
                        "{}",
                        say("was refused")
                    );
                }
                (None, None) if sender_lives && message.wants_ack => panic!("{}", say("has no ack")),
                // No request is open, and none was refused: then it must have arrived.
                (None, None) if sender_lives && !self.rate_limited && !self.lanes_full => {
                    assert!(missed.is_none(), "{}", say("was lost"));
                }
                (None, None) => {}
                other => panic!("{} {other:?}", say("has an ack and a refusal, or a strange one")),
            }
        }
        for (number, broadcast) in self.broadcasts.iter().enumerate() {
            let mut steady = broadcast.witnesses.iter().filter(|client| live.contains(client));
            let missed = steady.find(|client| !broadcast.received_by.contains(client));
            assert!(missed.is_none(), "broadcast {number} did not come to {missed:?}");
        }
        for (number, query) in self.queries.iter().enumerate() {
            let answered = query.answer.is_some() != query.refused.is_some();
            assert!(
                answered || !live.contains(&query.asker),
                "query {number} has no answer: {query:?}"
            );
        }
    }
}
