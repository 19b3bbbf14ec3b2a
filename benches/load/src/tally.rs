//! The counters of one generator thread, and their sum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spread::Spread;

/// Of the error frames so many are kept as they came.
const SAMPLES_MAX: usize = 5;

/// Clients that came back after their connection had ended.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Comebacks {
    pub(crate) attempts: u64,
    pub(crate) ready: u64,
    /// Attempts that failed, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
}

/// The extra counters of `storm`.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Storm {
    /// When the first connection was lost.
    pub(crate) begin_ns: Option<u64>,
    /// Connections that ended in the storm, by the code of the close frame; 1006 for none.
    pub(crate) cuts: BTreeMap<u16, u64>,
    /// When each client that came back was ready.
    pub(crate) back_ns: Vec<u64>,
    /// Attempts that it took, and how many clients needed so many.
    pub(crate) attempts: BTreeMap<u32, u64>,
    /// Clients that were told not to come back, by what told them.
    pub(crate) stayed_away: BTreeMap<String, u64>,
    /// Clients that were not back at the end.
    pub(crate) missing: u64,
    /// Of messages of the pairs: when each was due, and how long it took.
    pub(crate) beside: Vec<(u64, u64)>,
}

/// The extra counters of `mixed`.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Mixed {
    /// Actions, by kind.
    pub(crate) actions: BTreeMap<String, u64>,
    /// From the intended time of a request to its answer, by kind, measured part only.
    pub(crate) answers: BTreeMap<String, Spread>,
    /// Publications that came although they need not.
    pub(crate) extra: u64,
    /// Answers to `presence` about users who had long been there, or away, that said the opposite.
    pub(crate) presence_wrong: u64,
    /// Acks with `offline` for a user who had long been there, or `delivered` or `routed` for one
    /// long away.
    pub(crate) status_wrong: u64,
    /// Attempts to come back that were refused or broke.
    pub(crate) refused: u64,
    /// Due actions for which there was nobody to do them.
    pub(crate) skipped: u64,
}

/// Everything that is counted. Owned by one thread until it ends.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tally {
    pub(crate) attempted: u64,
    pub(crate) ready: u64,
    /// Ready connections by the id of their gateway.
    pub(crate) gateways: BTreeMap<String, u64>,
    /// Connections that never became ready, by reason.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Connections that were ready and broke otherwise than by a close frame, by reason.
    pub(crate) breaks: BTreeMap<String, u64>,
    /// Close frames of the server that we did not ask for, by code; 1006 for an end without one.
    pub(crate) closes: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) error_samples: Vec<String>,
    /// Frames of other kinds, by kind.
    pub(crate) others: BTreeMap<String, u64>,
    pub(crate) pings: u64,
    pub(crate) connect: Spread,

    /// Subscriptions that the server confirmed.
    pub(crate) subscriptions: u64,
    /// The refused ones, by reason.
    pub(crate) subscription_failures: BTreeMap<String, u64>,
    pub(crate) publications: u64,
    /// From the intended time of a publication to its arrival at the last of its subscribers,
    /// measured part only.
    pub(crate) last_subscriber: Spread,

    /// Expected deliveries: messages, and of a publication one delivery for each subscriber.
    pub(crate) sent: u64,
    /// Distinct messages.
    pub(crate) received: u64,
    /// Of those, how many came from a user on another gateway.
    pub(crate) crossed: u64,
    pub(crate) lost: u64,
    /// Missing deliveries without a fault: the receiver was away, or one of the two connections
    /// ended meanwhile.
    pub(crate) away: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
    /// Content that differs from what was sent.
    pub(crate) corrupted: u64,
    /// Messages that somebody else should have got.
    pub(crate) misrouted: u64,
    /// Due messages that a blocked connection never took.
    pub(crate) unsent: u64,
    /// Acks by status.
    pub(crate) acks: BTreeMap<String, u64>,
    pub(crate) acks_missing: u64,
    pub(crate) acks_unexpected: u64,
    /// From the intended time of sending to arrival, measured part only, of messages within a
    /// gateway.
    pub(crate) local_latency: Spread,
    /// The same of messages from one gateway to another.
    pub(crate) crossed_latency: Spread,
    /// How late this generator sent, open loop.
    pub(crate) lag: Spread,
    /// The longest time without any message while at least one was under way.
    pub(crate) silence_ns: u64,

    pub(crate) comebacks: Comebacks,
    pub(crate) storm: Storm,
    pub(crate) mixed: Mixed,

    /// Latency since it was last handed in, measured or not.
    #[serde(skip)]
    pub(crate) fresh: Spread,
    /// CPU time of this thread while measuring.
    pub(crate) cpu_ns: u64,
    /// The busiest thread's share of its core, while measuring.
    pub(crate) busiest: f64,
    /// The share of the time that the thread that waited most for a CPU waited for it, while
    /// measuring.
    pub(crate) starved: f64,
}

impl Tally {
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency of all messages.
    pub(crate) fn latency(&self) -> Spread {
        let mut all = self.local_latency.clone();
        all.add(&self.crossed_latency);
        all
    }

    /// Connections that ended although nobody asked them to.
    pub(crate) fn dropped(&self) -> u64 {
        self.closes.values().sum()
    }

    /// Whether something happened that must not.
    pub(crate) fn is_clean(&self) -> bool {
        let faults = [
            self.failed(),
            self.dropped(),
            self.errors.values().sum(),
            self.subscription_failures.values().sum(),
            self.lost,
            self.duplicates,
            self.reordered,
            self.corrupted,
            self.misrouted,
            self.unsent,
            self.acks_missing,
            self.acks_unexpected,
            self.storm.missing,
            self.mixed.presence_wrong,
            self.mixed.status_wrong,
            self.mixed.refused,
        ];
        faults.iter().all(|fault| *fault == 0) && self.ready == self.attempted
    }

    /// Counts a frame that the scenario has no use for.
    pub(crate) fn note_other(&mut self, text: &[u8]) {
        let envelope = crate::conn::envelope(text);
        if envelope.kind == "error" {
            *self.errors.entry(envelope.code.unwrap_or_default()).or_default() += 1;
            if self.error_samples.len() < SAMPLES_MAX {
                self.error_samples
                    .push(String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned());
            }
        } else {
            *self.others.entry(envelope.kind).or_default() += 1;
        }
    }

    /// Adds what another thread counted.
    pub(crate) fn merge(&mut self, other: Self) {
        add(&mut self.failures, other.failures);
        add(&mut self.breaks, other.breaks);
        add(&mut self.closes, other.closes);
        add(&mut self.errors, other.errors);
        add(&mut self.others, other.others);
        add(&mut self.acks, other.acks);
        add(&mut self.subscription_failures, other.subscription_failures);
        add(&mut self.gateways, other.gateways);
        self.error_samples.extend(other.error_samples);
        self.error_samples.truncate(SAMPLES_MAX);
        self.attempted += other.attempted;
        self.ready += other.ready;
        self.pings += other.pings;
        self.subscriptions += other.subscriptions;
        self.publications += other.publications;
        self.comebacks.attempts += other.comebacks.attempts;
        self.comebacks.ready += other.comebacks.ready;
        add(&mut self.comebacks.refused, other.comebacks.refused);
        self.storm.merge(other.storm);
        self.mixed.merge(other.mixed);
        self.sent += other.sent;
        self.received += other.received;
        self.crossed += other.crossed;
        self.lost += other.lost;
        self.away += other.away;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.misrouted += other.misrouted;
        self.unsent += other.unsent;
        self.acks_missing += other.acks_missing;
        self.acks_unexpected += other.acks_unexpected;
        self.silence_ns = self.silence_ns.max(other.silence_ns);
        self.cpu_ns += other.cpu_ns;
        self.busiest = self.busiest.max(other.busiest);
        self.starved = self.starved.max(other.starved);
        for (to, from) in [
            (&mut self.connect, &other.connect),
            (&mut self.local_latency, &other.local_latency),
            (&mut self.crossed_latency, &other.crossed_latency),
            (&mut self.lag, &other.lag),
            (&mut self.last_subscriber, &other.last_subscriber),
        ] {
            to.add(from);
        }
    }
}

impl Storm {
    fn merge(&mut self, other: Self) {
        self.begin_ns = self.begin_ns.into_iter().chain(other.begin_ns).min();
        add(&mut self.cuts, other.cuts);
        self.back_ns.extend(other.back_ns);
        add(&mut self.attempts, other.attempts);
        add(&mut self.stayed_away, other.stayed_away);
        self.missing += other.missing;
        self.beside.extend(other.beside);
    }
}

impl Mixed {
    fn merge(&mut self, other: Self) {
        add(&mut self.actions, other.actions);
        for (kind, spread) in other.answers {
            self.answers.entry(kind).or_default().add(&spread);
        }
        self.extra += other.extra;
        self.presence_wrong += other.presence_wrong;
        self.status_wrong += other.status_wrong;
        self.refused += other.refused;
        self.skipped += other.skipped;
    }
}

fn add<K: Ord>(to: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
    for (key, n) in from {
        *to.entry(key).or_default() += n;
    }
}

/// Counts one more of `key` without a new text for each.
pub(crate) fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    match counts.get_mut(key) {
        Some(n) => *n += 1,
        None => drop(counts.insert(key.to_owned(), 1)),
    }
}
