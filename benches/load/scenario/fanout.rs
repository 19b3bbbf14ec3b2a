//! `fanout`: users subscribe to channels, and others publish to them.
//!
//! Of C channels, user i subscribes to number i * K % C and the K - 1 behind it, K being `--per-user`. The publishers are
//! users of their own, numbered behind these; publication n of publisher j goes to channel (n + j) % C, so n / C is its
//! place in the order of that publisher in that channel, and every subscriber knows what it should get.
//!
//! Before the load all have to be subscribed. If one subscription is refused or not answered there is no load: half
//! an audience is another measurement.
//! Closed loop: each publisher keeps N publications under way, and its next one leaves when one of them has arrived at
//! all its subscribers. Open loop: publication k is due at `begin + k / rate`, the publishers taking turns, and is late
//! from then on, as in `direct`.
//!
//! What is counted are deliveries. A publication adds to `sent` as many as its channel has live subscribers when it
//! leaves, to `received` each of them that arrives, once, and to `lost` those that never do, those included that were
//! under way to a subscriber whose connection ended: sent = received + lost. Latency is that of each delivery, and
//! apart from that the time until the last subscriber has it; a publication that was lost on its way to somebody is not
//! in the latter.
//!
//! One thread has all of it, as somebody must know when a publication is everywhere.

use std::collections::VecDeque;

use crate::args::Options;
use crate::board::{Board, Phase};
use crate::conn::envelope;
use crate::dialect::Dialect;
use crate::message::{Numbers, Template, channel_name};
use crate::net::{End, Net};
use crate::scenario::acks::{ACK, Acks};
use crate::scenario::schedule::Schedule;
use crate::scenario::{SENDS_PER_TURN_MAX, Scenario};
use crate::sequence::{Arrival, Sequence};
use crate::sys::Clock;
use crate::tally::Tally;
use crate::wire;

/// Which channel is whose. Users and publishers are counted from 0 here.
#[derive(Clone, Copy, Debug)]
struct Plan {
    users: usize,
    publishers: usize,
    channels: usize,
    per_user: usize,
}

impl Plan {
    /// The channel of publication `n` of a publisher.
    fn channel(&self, publisher: usize, n: u32) -> usize {
        (n as usize + publisher) % self.channels
    }

    /// Which of the user's subscriptions this channel is.
    fn subscription(&self, user: usize, channel: usize) -> Option<usize> {
        let k = (channel + self.channels - self.subscribed(user, 0)) % self.channels;
        (k < self.per_user).then_some(k)
    }

    /// The channel of the user's subscription `k`.
    fn subscribed(&self, user: usize, k: usize) -> usize {
        (user * self.per_user + k) % self.channels
    }

    /// Of the first `sent` publications of a publisher, how many went to this channel.
    fn sent_to(&self, publisher: usize, channel: usize, sent: u32) -> u32 {
        let first = (channel + self.channels - publisher % self.channels) % self.channels;
        (sent as usize).saturating_sub(first).div_ceil(self.channels) as u32
    }

    /// Where the order of one publisher in one subscription of one user is watched.
    fn stream(&self, user: usize, publisher: usize, k: usize) -> usize {
        (user * self.publishers + publisher) * self.per_user + k
    }
}

/// One connection that subscribes.
#[derive(Clone, Copy, Debug, Default)]
struct Subscriber {
    /// Subscriptions that were asked for and have no answer.
    unanswered: u32,
    /// Connected, under load.
    live: bool,
}

/// One connection that publishes.
#[derive(Debug, Default)]
struct Publisher {
    sent: u32,
    acks: Acks,
    /// Due times of publications that the socket did not take yet.
    owed: VecDeque<u64>,
    /// How many subscribers each publication is still to reach, from number `first` on. Those at the front that reached
    /// all are taken out when another one does.
    under_way: VecDeque<u32>,
    first: u32,
    live: bool,
}

impl Publisher {
    /// Publication `n` reached one more; true if it was the last.
    fn reached(&mut self, n: u32) -> bool {
        let left = &mut self.under_way[(n - self.first) as usize];
        *left -= 1;
        let done = *left == 0;
        while self.under_way.front() == Some(&0) {
            self.under_way.pop_front();
            self.first += 1;
        }
        done
    }
}

/// All users and publishers.
#[derive(Debug)]
pub(crate) struct Fanout {
    plan: Plan,
    prefix: String,
    dialect: Dialect,
    template: Template,
    clock: Clock,
    ack: bool,
    in_flight: u32,
    /// `None` for closed loop.
    schedule: Option<Schedule>,
    measure_ns: u64,
    /// From the begin of the warm-up; closed loop until the drain, open loop until the end, to send what was due.
    running: bool,

    subscribers: Vec<Subscriber>,
    /// By [`Plan::stream`].
    streams: Vec<Sequence>,
    /// Live subscribers of each channel. Empty before the load.
    audience: Vec<u32>,
    /// The next user to subscribe.
    next: usize,
    unanswered: u64,
    unanswered_max: u64,
    refused: bool,

    publishers: Vec<Publisher>,
    /// Closed loop: the next publisher to begin. Open loop: the next to send.
    turn: usize,
    /// Deliveries and acks that somebody still waits for, and publications that no socket took yet.
    waiting: u64,
    owed: u64,
    waiting_since_ns: u64,
}

impl Fanout {
    pub(crate) fn new(options: &Options, clock: Clock) -> Self {
        let plan = Plan {
            users: options.load.users,
            publishers: options.publishers,
            channels: options.channels,
            per_user: options.per_user,
        };
        let streams = plan.stream(plan.users, 0, 0);
        Self {
            plan,
            prefix: options.connect.user_prefix.clone(),
            dialect: options.targets.dialect(),
            template: options.targets.dialect().publish(options),
            clock,
            ack: options.load.ack,
            in_flight: options.in_flight(),
            schedule: options.rate.map(|rate| Schedule::new(rate, 0, 1)),
            measure_ns: u64::MAX,
            running: false,
            subscribers: vec![Subscriber::default(); plan.users],
            streams: (0..streams).map(|_| Sequence::default()).collect(),
            audience: vec![],
            next: plan.users,
            unanswered: 0,
            unanswered_max: options.connect.connecting_max as u64,
            refused: false,
            publishers: (0..plan.publishers).map(|_| Publisher::default()).collect(),
            turn: plan.publishers,
            waiting: 0,
            owed: 0,
            waiting_since_ns: 0,
        }
    }

    /// Asks for subscriptions, as many as may be unanswered at a time.
    fn subscribe(&mut self, net: &mut Net) {
        while self.next < self.plan.users && self.unanswered < self.unanswered_max {
            let user = self.next;
            self.next += 1;
            if !net.is_ready(user) {
                // It never connected, or has ended: that is counted already.
                continue;
            }
            for k in 0..self.plan.per_user {
                let channel = channel_name(&self.prefix, self.plan.subscribed(user, k) as u32);
                self.subscribers[user].unanswered += 1;
                self.unanswered += 1;
                match self.dialect.subscribe(&channel, k) {
                    Some(frame) => drop(wire::write_frame(net.out(user), wire::TEXT, frame.as_bytes())),
                    None => self.decided(net, user, 1, None),
                }
            }
        }
    }

    /// So many subscriptions of `user` are decided: confirmed, or why not.
    fn decided(&mut self, net: &mut Net, user: usize, count: u32, failure: Option<String>) {
        self.subscribers[user].unanswered -= count;
        self.unanswered -= u64::from(count);
        let counter = match failure {
            None => &mut net.tally.subscriptions,
            Some(why) => {
                self.refused = true;
                net.tally.subscription_failures.entry(why).or_default()
            }
        };
        *counter += u64::from(count);
    }

    /// When the next publication of the open loop is due; `None` after the last.
    fn next_due_ns(&self) -> Option<u64> {
        let somebody = || self.publishers.iter().any(|publisher| publisher.live);
        self.schedule.as_ref().filter(|_| self.running && somebody())?.next_ns()
    }

    /// The next publication of the open loop, if it was due by `now_ns`.
    fn take_due(&mut self, now_ns: u64) -> Option<u64> {
        self.next_due_ns().filter(|due| *due <= now_ns)?;
        self.schedule.as_mut()?.take()
    }

    /// Publishes what was due at `intended_ns`, or remembers that it is owed.
    fn publish(&mut self, net: &mut Net, j: usize, intended_ns: u64, now_ns: u64) {
        if self.schedule.is_some() && intended_ns >= self.measure_ns {
            // What waits for the socket from here on waits for the server.
            net.tally.lag.record(now_ns.saturating_sub(intended_ns));
        }
        if net.is_blocked(self.plan.users + j) {
            self.publishers[j].owed.push_back(intended_ns);
            self.owed += 1;
        } else {
            self.write(net, j, intended_ns, now_ns);
        }
    }

    fn write(&mut self, net: &mut Net, j: usize, intended_ns: u64, now_ns: u64) {
        let index = self.plan.users + j;
        let publisher = &mut self.publishers[j];
        let n = publisher.sent;
        let channel = self.plan.channel(j, n);
        let audience = self.audience[channel];
        publisher.sent += 1;
        publisher.under_way.push_back(audience);
        if self.waiting == 0 {
            self.waiting_since_ns = now_ns;
        }
        self.waiting += u64::from(audience) + u64::from(self.ack);
        net.tally.publications += 1;
        net.tally.sent += u64::from(audience);
        let numbers = Numbers {
            sequence: n,
            sender: net.user(index),
            intended_ns,
        };
        self.template.write(net.out(index), channel as u32, n, numbers);
    }

    /// Something that was waited for arrived.
    fn arrived(&mut self, net: &mut Net, now_ns: u64) {
        self.waiting -= 1;
        net.tally.silence_ns = net.tally.silence_ns.max(now_ns.saturating_sub(self.waiting_since_ns));
        self.waiting_since_ns = now_ns;
    }

    fn handle_publication(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        if self.subscribers.get(index).is_some_and(|user| !user.live) {
            // It said goodbye, and what was under way to it is counted as lost.
            return;
        }
        let Ok(numbers) = self.template.read(text) else {
            net.tally.corrupted += 1;
            return;
        };
        let Some((j, n, k)) = self.place(net, index, numbers) else {
            net.tally.misrouted += 1;
            return;
        };
        match self.streams[self.plan.stream(index, j, k)].arrive(n / self.plan.channels as u32) {
            Arrival::InOrder => {}
            Arrival::Reordered => net.tally.reordered += 1,
            Arrival::Duplicate => {
                net.tally.duplicates += 1;
                return;
            }
        }
        net.tally.received += 1;
        let measured = numbers.intended_ns >= self.measure_ns;
        let latency_ns = now_ns.saturating_sub(numbers.intended_ns);
        net.record_latency(self.plan.users + j, index, latency_ns, measured);
        self.arrived(net, now_ns);
        if self.publishers[j].reached(n) {
            if measured {
                net.tally.last_subscriber.record(latency_ns);
            }
            self.replace(net, j, now_ns);
        }
    }

    /// Whose publication this is, its number, and which subscription of connection `index` it came by; `None` if it
    /// should not have come there.
    fn place(&self, net: &Net, index: usize, numbers: Numbers) -> Option<(usize, u32, usize)> {
        let j = (numbers.sender as usize).checked_sub(net.first_user as usize + self.plan.users)?;
        let n = Some(numbers.sequence).filter(|n| self.publishers.get(j).is_some_and(|p| *n < p.sent))?;
        let user = Some(index).filter(|index| *index < self.plan.users)?;
        let k = self.plan.subscription(user, self.plan.channel(j, n))?;
        Some((j, n, k))
    }

    /// Closed loop: a publication has arrived everywhere, so that its publisher sends another.
    fn replace(&mut self, net: &mut Net, j: usize, now_ns: u64) {
        if self.running && self.schedule.is_none() && self.publishers[j].live {
            self.publish(net, j, now_ns, now_ns);
        }
    }

    fn handle_ack(&mut self, net: &mut Net, j: usize, text: &[u8], now_ns: u64) {
        let publisher = &mut self.publishers[j];
        let asked = if self.ack { publisher.sent } else { 0 };
        if publisher.acks.handle(text, asked, &mut net.tally) && publisher.live {
            self.arrived(net, now_ns);
        }
    }

    fn missing_acks(&self, j: usize) -> u64 {
        let publisher = &self.publishers[j];
        let asked = if self.ack { publisher.sent } else { 0 };
        publisher.acks.missing(asked)
    }

    fn begin(&mut self, net: &Net, board: &Board) {
        self.audience = vec![0; self.plan.channels];
        for (user, subscriber) in self.subscribers.iter_mut().enumerate() {
            subscriber.live = net.is_ready(user);
            for k in 0..self.plan.per_user {
                self.audience[self.plan.subscribed(user, k)] += u32::from(subscriber.live);
            }
        }
        for (j, publisher) in self.publishers.iter_mut().enumerate() {
            publisher.live = net.is_ready(self.plan.users + j);
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.begin(board.load_ns());
        }
        self.running = true;
        self.turn = 0;
    }

    /// What was under way to `user` is lost: nobody waits for it any more.
    fn forget_subscriber(&mut self, net: &mut Net, user: usize, now_ns: u64) {
        self.subscribers[user].live = false;
        for k in 0..self.plan.per_user {
            self.audience[self.plan.subscribed(user, k)] -= 1;
        }
        for j in 0..self.plan.publishers {
            self.count_lost(&mut net.tally, user, j);
            let publisher = &self.publishers[j];
            for n in publisher.first..publisher.sent {
                let channel = self.plan.channel(j, n);
                let Some(k) = self.plan.subscription(user, channel) else {
                    continue;
                };
                let stream = &self.streams[self.plan.stream(user, j, k)];
                if stream.misses(n / self.plan.channels as u32) {
                    self.waiting -= 1;
                    if self.publishers[j].reached(n) {
                        self.replace(net, j, now_ns);
                    }
                }
            }
        }
    }

    fn count_lost(&self, tally: &mut Tally, user: usize, j: usize) {
        for k in 0..self.plan.per_user {
            let channel = self.plan.subscribed(user, k);
            let sent = self.plan.sent_to(j, channel, self.publishers[j].sent);
            tally.lost += self.streams[self.plan.stream(user, j, k)].lost(sent);
        }
    }
}

impl Scenario for Fanout {
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let publisher = index.checked_sub(self.plan.users);
        if text.starts_with(self.dialect.publication_prefix()) {
            return self.handle_publication(net, index, text, now_ns);
        }
        if let Some(j) = publisher.filter(|_| text.starts_with(ACK)) {
            return self.handle_ack(net, j, text, now_ns);
        }
        let waits = self.subscribers.get(index).is_some_and(|user| user.unanswered > 0);
        if waits && self.dialect.is_subscribed(text) {
            return self.decided(net, index, 1, None);
        }
        // Rare frames, and those of a server with another order of keys.
        let envelope = envelope(text);
        match (envelope.kind.as_str(), publisher) {
            ("publication", _) => self.handle_publication(net, index, text, now_ns),
            ("ack", Some(j)) => self.handle_ack(net, j, text, now_ns),
            ("subscribed", None) if waits => self.decided(net, index, 1, None),
            ("error", None) if waits => {
                net.tally.note_other(text);
                self.decided(net, index, 1, Some(envelope.code.unwrap_or_default()));
            }
            _ => net.tally.note_other(text),
        }
    }

    fn handle_phase(&mut self, net: &mut Net, phase: Phase, board: &Board) {
        match phase {
            Phase::Prepare => self.next = 0,
            Phase::Warmup => self.begin(net, board),
            Phase::Measure => self.measure_ns = board.measure_ns(),
            Phase::Drain => {
                if let Some(schedule) = &mut self.schedule {
                    schedule.end(board.drain_ns());
                }
                self.running = self.schedule.is_some();
            }
            Phase::Close => {
                while self.take_due(u64::MAX).is_some() {
                    net.tally.unsent += 1;
                }
                self.running = false;
            }
            Phase::Connect | Phase::Hold | Phase::Storm => {}
        }
    }

    fn handle_timeout(&mut self, net: &mut Net, now_ns: u64) {
        self.subscribe(net);
        if !self.running {
            return;
        }
        if self.schedule.is_none() {
            while self.turn < self.plan.publishers {
                let now_ns = self.clock.now_ns();
                for _ in 0..self.in_flight {
                    self.replace(net, self.turn, now_ns);
                }
                self.turn += 1;
            }
            return;
        }
        let mut now_ns = now_ns;
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(due_ns) = self.take_due(now_ns) else {
                break;
            };
            let count = self.plan.publishers;
            let Some(step) = (0..count).find(|step| self.publishers[(self.turn + step) % count].live) else {
                break;
            };
            let j = (self.turn + step) % count;
            self.turn = (j + 1) % count;
            self.publish(net, j, due_ns, now_ns);
            net.flush();
            now_ns = self.clock.now_ns();
        }
    }

    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        self.next_due_ns()
    }

    fn handle_writable(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        let Some(j) = index.checked_sub(self.plan.users) else {
            return;
        };
        while !net.is_blocked(index)
            && let Some(intended_ns) = self.publishers[j].owed.pop_front()
        {
            self.owed -= 1;
            self.write(net, j, intended_ns, now_ns);
        }
    }

    fn handle_gone(&mut self, net: &mut Net, index: usize, _end: &End, now_ns: u64) {
        if let Some(j) = index.checked_sub(self.plan.users) {
            let publisher = &mut self.publishers[j];
            if std::mem::take(&mut publisher.live) {
                // What it published may still arrive; what it did not, and its acks, will not.
                self.owed -= publisher.owed.len() as u64;
                self.waiting -= self.missing_acks(j);
            }
            return;
        }
        let Subscriber { unanswered, live } = self.subscribers[index];
        if unanswered > 0 {
            self.decided(net, index, unanswered, Some("connection ended".to_owned()));
        }
        if live {
            self.forget_subscriber(net, index, now_ns);
        }
    }

    fn prepared(&self) -> Option<bool> {
        (self.next == self.plan.users && self.unanswered == 0).then_some(!self.refused)
    }

    fn is_drained(&self) -> bool {
        self.waiting == 0 && self.owed == 0 && self.next_due_ns().is_none()
    }

    fn finish(&mut self, tally: &mut Tally, now_ns: u64) {
        if self.unanswered > 0 {
            // Those that wait for their turn behind them will have none either.
            let unasked = (self.plan.users - self.next) * self.plan.per_user;
            let reason = "no answer".to_owned();
            tally
                .subscription_failures
                .insert(reason, self.unanswered + unasked as u64);
        }
        if self.waiting > 0 {
            tally.silence_ns = tally.silence_ns.max(now_ns.saturating_sub(self.waiting_since_ns));
        }
        for j in 0..self.plan.publishers {
            for user in (0..self.plan.users).filter(|user| self.subscribers[*user].live) {
                self.count_lost(tally, user, j);
            }
            tally.acks_missing += self.missing_acks(j);
            tally.unsent += self.publishers[j].owed.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_knows_what_comes_by_which_subscription() {
        for (users, publishers, channels, per_user) in [(5, 1, 1, 1), (10, 3, 4, 1), (7, 2, 5, 3), (4, 4, 3, 3)] {
            let plan = Plan {
                users,
                publishers,
                channels,
                per_user,
            };
            for (user, j) in (0..users).flat_map(|user| (0..publishers).map(move |j| (user, j))) {
                let mut next = vec![0; per_user];
                for n in 0..50 {
                    let channel = plan.channel(j, n);
                    let wanted = (0..per_user).find(|k| plan.subscribed(user, *k) == channel);
                    assert_eq!(plan.subscription(user, channel), wanted);
                    assert_eq!(plan.sent_to(j, channel, n) + 1, plan.sent_to(j, channel, n + 1));
                    if let Some(k) = wanted {
                        assert_eq!(n / channels as u32, next[k], "the place in the order of the channel");
                        assert_eq!(next[k], plan.sent_to(j, channel, n));
                        next[k] += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn every_stream_has_its_place() {
        let plan = Plan {
            users: 3,
            publishers: 2,
            channels: 9,
            per_user: 4,
        };
        let mut places: Vec<usize> = vec![];
        for user in 0..3 {
            for j in 0..2 {
                places.extend((0..4).map(|k| plan.stream(user, j, k)));
            }
        }
        assert_eq!(places, (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn a_publication_has_arrived_when_all_have_it() {
        let mut publisher = Publisher {
            under_way: [2, 1, 2].into(),
            ..Publisher::default()
        };
        assert!(!publisher.reached(0));
        assert!(publisher.reached(1), "whatever is before it");
        assert_eq!((publisher.first, publisher.under_way.len()), (0, 3));
        assert!(publisher.reached(0));
        assert_eq!((publisher.first, publisher.under_way.len()), (2, 1));
        assert!(!publisher.reached(2));
        assert!(publisher.reached(2));
        assert_eq!((publisher.first, publisher.under_way.len()), (3, 0));
    }
}
