//! What one generator thread counted, and how several are added up.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Of the error frames so many are kept as they came.
const SAMPLES_MAX: usize = 5;

/// Nanoseconds from 1 to an hour with three digits: about 280 KiB.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds are valid")
}

/// Everything that is counted. Owned by one thread until it ends.
#[derive(Debug)]
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
    pub(crate) connect: Histogram<u64>,

    /// Subscriptions that the server confirmed.
    pub(crate) subscriptions: u64,
    /// Those that it did not, by reason.
    pub(crate) subscription_failures: BTreeMap<String, u64>,
    pub(crate) publications: u64,
    /// From the intended time of a publication to its arrival at the last of its subscribers, measured part only.
    pub(crate) last_subscriber: Histogram<u64>,

    /// What should arrive: messages, and of a publication one delivery for each subscriber.
    pub(crate) sent: u64,
    /// Distinct messages.
    pub(crate) received: u64,
    /// Of those, how many came from a user on another gateway.
    pub(crate) crossed: u64,
    pub(crate) lost: u64,
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
    /// From the intended time of sending to arrival, measured part only, of messages within a gateway.
    pub(crate) local_latency: Histogram<u64>,
    /// The same of messages from one gateway to another.
    pub(crate) crossed_latency: Histogram<u64>,
    /// How late this generator sent, open loop.
    pub(crate) lag: Histogram<u64>,
    /// The longest time without any message while at least one was under way.
    pub(crate) silence_ns: u64,

    /// CPU and wall time of this thread while measuring.
    pub(crate) cpu_ns: u64,
    /// The busiest thread's share of its core, while measuring.
    pub(crate) busiest: f64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            attempted: 0,
            ready: 0,
            gateways: BTreeMap::new(),
            failures: BTreeMap::new(),
            breaks: BTreeMap::new(),
            closes: BTreeMap::new(),
            errors: BTreeMap::new(),
            error_samples: vec![],
            others: BTreeMap::new(),
            pings: 0,
            connect: histogram(),
            subscriptions: 0,
            subscription_failures: BTreeMap::new(),
            publications: 0,
            last_subscriber: histogram(),
            sent: 0,
            received: 0,
            crossed: 0,
            lost: 0,
            duplicates: 0,
            reordered: 0,
            corrupted: 0,
            misrouted: 0,
            unsent: 0,
            acks: BTreeMap::new(),
            acks_missing: 0,
            acks_unexpected: 0,
            local_latency: histogram(),
            crossed_latency: histogram(),
            lag: histogram(),
            silence_ns: 0,
            cpu_ns: 0,
            busiest: 0.0,
        }
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency of all messages.
    pub(crate) fn latency(&self) -> Histogram<u64> {
        let mut all = self.local_latency.clone();
        all.add(&self.crossed_latency).expect("equal bounds");
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
        fn add<K: Ord>(to: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
            for (key, n) in from {
                *to.entry(key).or_default() += n;
            }
        }
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
        self.sent += other.sent;
        self.received += other.received;
        self.crossed += other.crossed;
        self.lost += other.lost;
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
        for (to, from) in [
            (&mut self.connect, &other.connect),
            (&mut self.local_latency, &other.local_latency),
            (&mut self.crossed_latency, &other.crossed_latency),
            (&mut self.lag, &other.lag),
            (&mut self.last_subscriber, &other.last_subscriber),
        ] {
            to.add(from).expect("equal bounds");
        }
    }
}
