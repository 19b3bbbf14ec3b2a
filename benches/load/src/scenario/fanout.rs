//! `fanout`: users subscribe to channels, and others publish to them.
//!
//! Of C channels, user i subscribes to number i * K % C and the K - 1 behind it, K being
//! `--per-user`. The publishers are connections of their own. Publication n of publisher j goes to
//! channel (n + j) % C. So n / C is its index in the order of that publisher in that channel, and
//! every subscriber knows its expected publications.
//!
//! Before the load all have to be subscribed. If one subscription is refused or not answered there
//! is no load: half an audience is another measurement. Closed loop: each publisher keeps N
//! publications under way, and its next one leaves when one of them has arrived at all its
//! subscribers. Open loop: publication k is due at `begin + k / rate`, the publishers taking turns,
//! and is late from then on, as in `direct`.
//!
//! The counters count deliveries. A publication adds to `sent` as many as its channel has live
//! subscribers when it leaves. It adds to `received` each delivery that arrives, once, and to
//! `lost` those that never do. Deliveries under way to a subscriber whose connection ended are
//! lost: sent = received + lost. Latency is that of each delivery and, apart from that, the time
//! until the last subscriber has it. A publication with a lost delivery is not in the latter.
//!
//! Threads and processes divide users and publishers among each other ([`Plan`]). Each watches the
//! deliveries to its own subscribers, from all publishers. Their shared numbers are in the
//! [`Ledger`]. It has how much every publisher sent, so that any thread sees a loss, who has left,
//! and how many deliveries a publication still needs. In a closed loop the thread of the last
//! subscriber wakes that of the publisher, which only a thread of the same process can.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::args::Options;
use crate::board::{Board, Meter, Phase};
use crate::conn::envelope;
use crate::dialect::Dialect;
use crate::ledger::Ledger;
use crate::message::{Numbers, Template, channel_name};
use crate::net::{End, Net};
use crate::scenario::acks::{ACK, Acks};
use crate::scenario::behaviour::{SENDS_PER_TURN_MAX, Scenario};
use crate::scenario::plan::Plan;
use crate::scenario::schedule::Schedule;
use crate::sequence::{Arrival, Sequence};
use crate::sys::Clock;
use crate::tally::Tally;
use crate::wire;

/// One connection that subscribes.
#[derive(Clone, Copy, Debug, Default)]
struct Subscriber {
    /// Subscriptions that were asked for and have no answer.
    unanswered: u32,
    /// Connected, from the time when all subscriptions of this thread were decided.
    live: bool,
    /// The mark of its gateway.
    gateway: u64,
}

/// One connection that publishes.
#[derive(Debug, Default)]
struct Publisher {
    sent: u32,
    acks: Acks,
    /// Due times of publications that the socket did not take yet.
    owed: VecDeque<u64>,
    /// Closed loop: of its publications that reached everybody last on another thread, those that
    /// it replaced.
    replaced: u64,
    live: bool,
}

/// One thread's users and publishers. Both are counted from its first one here, where [`Plan`] and
/// [`Ledger`] count all.
#[derive(Debug)]
pub(crate) struct Fanout {
    plan: Plan,
    ledger: Ledger,
    worker: usize,
    /// The first worker of this process, and what wakes it and the others.
    first_worker: usize,
    crew: Vec<Arc<Meter>>,
    prefix: String,
    dialect: Dialect,
    template: Template,
    clock: Clock,
    ack: bool,
    in_flight: u32,
    /// Closed loop.
    closed: bool,
    /// Open loop, if there are publishers here.
    schedule: Option<Schedule>,
    measure_ns: u64,
    /// From the begin of the warm-up; closed loop until the drain, open loop until the end, to send
    /// what was due.
    running: bool,

    /// The publishers of this thread, by their numbers among all.
    users: Range<usize>,
    subscribers: Vec<Subscriber>,
    /// By [`Plan::stream`].
    streams: Vec<Sequence>,
    /// The next user to subscribe.
    next: usize,
    unanswered: u64,
    unanswered_max: u64,
    refused: bool,
    preparing: bool,
    prepared: bool,

    /// The number of the first publisher among all.
    first_publisher: usize,
    publishers: Vec<Publisher>,
    /// Live subscribers of each channel by worker, as far as is known here. Empty before the load,
    /// and without publishers.
    audience: Vec<u32>,
    /// How many of those who left are taken out of it.
    gone: usize,
    /// Closed loop: the next publisher to begin. Open loop: the next to send.
    turn: usize,
    /// Closed loop: [`Ledger::completions`] that were seen.
    completions: u64,
    /// Publications that no socket took yet.
    owed: u64,
    /// No publication leaves any more.
    over: bool,
}

impl Fanout {
    /// The part of worker number `worker`; `crew` has the meters of this process.
    pub(crate) fn new(options: &Options, clock: Clock, worker: usize, ledger: Ledger, crew: Vec<Arc<Meter>>) -> Self {
        let plan = Plan::new(options);
        let (users, publishers) = (plan.users_of(worker), plan.publishers_of(worker));
        let schedule = |rate| Schedule::among(rate, publishers.clone(), plan.publishers);
        let streams = plan.stream(users.len(), 0, 0);
        Self {
            ledger,
            worker,
            first_worker: options.own_workers().start,
            crew,
            prefix: options.connect.user_prefix.clone(),
            dialect: options.targets.dialect(),
            template: options.targets.dialect().publish(
                &options.connect.user_prefix,
                options.load.payload_bytes,
                options.load.ack,
            ),
            clock,
            ack: options.load.ack,
            in_flight: options.in_flight(),
            closed: options.rate.is_none(),
            schedule: options.rate.filter(|_| !publishers.is_empty()).map(schedule),
            measure_ns: u64::MAX,
            running: false,
            subscribers: vec![Subscriber::default(); users.len()],
            streams: (0..streams).map(|_| Sequence::default()).collect(),
            next: 0,
            unanswered: 0,
            unanswered_max: options.connect.connecting_max.div_ceil(plan.workers) as u64,
            refused: false,
            preparing: false,
            prepared: false,
            first_publisher: publishers.start,
            publishers: publishers.map(|_| Publisher::default()).collect(),
            audience: vec![],
            gone: 0,
            turn: 0,
            completions: 0,
            owed: 0,
            over: false,
            users,
            plan,
        }
    }

    /// Asks for subscriptions, as many as may be unanswered at a time.
    fn subscribe(&mut self, net: &mut Net) {
        while self.next < self.users.len() && self.unanswered < self.unanswered_max {
            let user = self.next;
            self.next += 1;
            if !net.is_ready(user) {
                // It never connected, or has ended: that is counted already.
                continue;
            }
            for k in 0..self.plan.per_user {
                let channel = self.plan.subscribed(self.users.start + user, k);
                let channel = channel_name(&self.prefix, channel as u32);
                self.subscribers[user].unanswered += 1;
                self.unanswered += 1;
                match self.dialect.subscribe(&channel, k) {
                    Some(frame) => drop(wire::write_frame(net.out(user), wire::TEXT, frame.as_bytes())),
                    None => self.decided(net, user, 1, None),
                }
            }
        }
        if !self.prepared && self.next == self.users.len() && self.unanswered == 0 {
            self.seat(net);
        }
    }

    /// All users are subscribed. This is not left to the begin of the load, which another process
    /// may see earlier and publish.
    fn seat(&mut self, net: &Net) {
        self.prepared = true;
        for (user, subscriber) in self.subscribers.iter_mut().enumerate() {
            if net.is_ready(user) {
                subscriber.live = true;
                subscriber.gateway = net.gateway_mark(user);
            } else {
                self.ledger.leave(self.users.start + user, |_| 0);
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
    fn publish(&mut self, net: &mut Net, publisher: usize, intended_ns: u64, now_ns: u64) {
        if !self.closed && intended_ns >= self.measure_ns {
            // Bytes that wait for the socket from here on wait for the server.
            net.tally.lag.record(now_ns.saturating_sub(intended_ns));
        }
        if net.is_blocked(self.users.len() + publisher) {
            self.publishers[publisher].owed.push_back(intended_ns);
            self.owed += 1;
        } else {
            self.write(net, publisher, intended_ns, now_ns);
        }
    }

    fn write(&mut self, net: &mut Net, publisher: usize, intended_ns: u64, now_ns: u64) {
        let index = self.users.len() + publisher;
        let j = self.first_publisher + publisher;
        let n = self.publishers[publisher].sent;
        let channel = self.plan.channel(j, n);
        self.publishers[publisher].sent += 1;
        let mut audience = 0;
        for (worker, members) in self.audience_of(channel).iter().enumerate().filter(|(_, n)| **n > 0) {
            self.ledger.expect(worker, *members, now_ns);
            audience += members;
        }
        if self.ack {
            self.ledger.expect(self.worker, 1, now_ns);
        }
        self.ledger.publish(j, audience);
        net.tally.publications += 1;
        net.tally.sent += u64::from(audience);
        let numbers = Numbers {
            sequence: n,
            sender: net.user(index),
            intended_ns,
        };
        self.template.write(net.out(index), channel as u32, n, numbers);
    }

    /// The live subscribers of a channel, by worker.
    fn audience_of(&self, channel: usize) -> &[u32] {
        &self.audience[channel * self.plan.workers..][..self.plan.workers]
    }

    /// Something that was waited for arrived.
    fn arrived(&self, net: &mut Net, now_ns: u64) {
        let silence_ns = self.ledger.arrive(self.worker, now_ns);
        net.tally.silence_ns = net.tally.silence_ns.max(silence_ns);
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
        let Some((j, n, k)) = self.place(index, numbers) else {
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
        let measured = numbers.intended_ns >= self.ledger.measure_ns();
        let latency_ns = now_ns.saturating_sub(numbers.intended_ns);
        let crossed = self.subscribers[index].gateway != self.ledger.gateway(j);
        net.record_latency_between(crossed, latency_ns, measured);
        self.arrived(net, now_ns);
        if let Some(last_ns) = self.ledger.reach(j, n, now_ns) {
            if measured {
                let latency_ns = last_ns.saturating_sub(numbers.intended_ns);
                net.tally.last_subscriber.record(latency_ns);
            }
            self.complete(net, j, now_ns);
        }
    }

    /// Whose publication this is, its number, and which subscription of connection `index` it came
    /// by; `None` if it should not have come there.
    fn place(&self, index: usize, numbers: Numbers) -> Option<(usize, u32, usize)> {
        let j = self.plan.publisher(numbers.sender as usize)?;
        let n = Some(numbers.sequence).filter(|n| *n < self.ledger.sent(j))?;
        let user = Some(index).filter(|index| *index < self.users.len())?;
        let k = self
            .plan
            .subscription(self.users.start + user, self.plan.channel(j, n))?;
        Some((j, n, k))
    }

    /// A publication has arrived everywhere: in a closed loop its publisher, on whatever thread,
    /// sends another.
    fn complete(&mut self, net: &mut Net, j: usize, now_ns: u64) {
        if !self.closed {
            return;
        }
        match j.checked_sub(self.first_publisher) {
            Some(publisher) if publisher < self.publishers.len() => self.replace(net, publisher, now_ns),
            _ => {
                let worker = self.plan.worker_of_publisher(j);
                self.ledger.complete(worker, j);
                self.crew[worker - self.first_worker].wake();
            }
        }
    }

    /// Closed loop: a publication has arrived everywhere, so that its publisher sends another.
    fn replace(&mut self, net: &mut Net, publisher: usize, now_ns: u64) {
        if self.running && self.closed && self.publishers[publisher].live {
            self.publish(net, publisher, now_ns, now_ns);
        }
    }

    /// Closed loop: what arrived everywhere, and last on another thread.
    fn replace_completed(&mut self, net: &mut Net, now_ns: u64) {
        let completions = self.ledger.completions(self.worker);
        if completions == self.completions {
            return;
        }
        self.completions = completions;
        for publisher in 0..self.publishers.len() {
            let completed = self.ledger.completed(self.first_publisher + publisher);
            while self.publishers[publisher].replaced < completed {
                self.publishers[publisher].replaced += 1;
                self.replace(net, publisher, now_ns);
            }
        }
    }

    fn handle_ack(&mut self, net: &mut Net, publisher: usize, text: &[u8], now_ns: u64) {
        let publisher = &mut self.publishers[publisher];
        let asked = if self.ack { publisher.sent } else { 0 };
        if publisher.acks.handle(text, asked, &mut net.tally) && publisher.live {
            self.arrived(net, now_ns);
        }
    }

    fn missing_acks(&self, publisher: usize) -> u64 {
        let publisher = &self.publishers[publisher];
        let asked = if self.ack { publisher.sent } else { 0 };
        publisher.acks.missing(asked)
    }

    fn begin(&mut self, net: &Net, board: &Board) {
        for (i, publisher) in self.publishers.iter_mut().enumerate() {
            let index = self.users.len() + i;
            publisher.live = net.is_ready(index);
            self.ledger
                .set_gateway(self.first_publisher + i, net.gateway_mark(index));
        }
        if !self.publishers.is_empty() {
            let workers = self.plan.workers;
            self.audience = vec![0; self.plan.channels * workers];
            for worker in 0..workers {
                for user in self.plan.users_of(worker) {
                    for k in 0..self.plan.per_user {
                        self.audience[self.plan.subscribed(user, k) * workers + worker] += 1;
                    }
                }
            }
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.begin(board.load_ns());
        }
        self.running = true;
        self.turn = 0;
    }

    /// Deliveries under way to `user` are lost and not waited for any more.
    fn forget_subscriber(&mut self, net: &mut Net, user: usize, now_ns: u64) {
        self.subscribers[user].live = false;
        // A publisher takes back what it counted after this look at it.
        let until: Vec<u32> = (0..self.plan.publishers).map(|j| self.ledger.sent(j)).collect();
        for (j, sent) in until.iter().enumerate() {
            self.count_lost(&mut net.tally, user, j, *sent);
            for k in 0..self.plan.per_user {
                let channel = self.plan.subscribed(self.users.start + user, k);
                let sent = self.plan.sent_to(j, channel, *sent);
                let missing: Vec<u32> = self.streams[self.plan.stream(user, j, k)].missing(sent).collect();
                self.ledger.give_up(self.worker, missing.len() as u64);
                for place in missing {
                    if self.ledger.miss(j, self.plan.number(j, channel, place)) {
                        self.complete(net, j, now_ns);
                    }
                }
            }
        }
        self.ledger.leave(self.users.start + user, |j| until[j]);
        self.part_with_gone(net, now_ns);
        if self.closed {
            // A publisher may wait for this one alone.
            self.crew.iter().for_each(|meter| meter.wake());
        }
    }

    /// Takes those who left out of the audience, and back what was sent to them since. The
    /// publishers whose publication has arrived everywhere by that, once for each.
    fn take_back(&mut self, tally: &mut Tally) -> Vec<usize> {
        let mut done = vec![];
        if self.audience.is_empty() {
            return done;
        }
        while let Some(user) = self.ledger.gone(self.gone) {
            self.gone += 1;
            let worker = self.plan.worker_of_user(user);
            for k in 0..self.plan.per_user {
                let channel = self.plan.subscribed(user, k);
                self.audience[channel * self.plan.workers + worker] -= 1;
            }
            for publisher in 0..self.publishers.len() {
                let j = self.first_publisher + publisher;
                let (until, sent) = (self.ledger.until(user, j), self.publishers[publisher].sent);
                for k in 0..self.plan.per_user {
                    let channel = self.plan.subscribed(user, k);
                    let places = self.plan.sent_to(j, channel, until)..self.plan.sent_to(j, channel, sent);
                    tally.sent -= places.len() as u64;
                    self.ledger.give_up(worker, places.len() as u64);
                    for place in places {
                        if self.ledger.miss(j, self.plan.number(j, channel, place)) {
                            done.push(publisher);
                        }
                    }
                }
            }
        }
        done
    }

    /// The same before the end: in a closed loop these publishers go on.
    fn part_with_gone(&mut self, net: &mut Net, now_ns: u64) {
        for publisher in self.take_back(&mut net.tally) {
            self.replace(net, publisher, now_ns);
        }
    }

    /// Counts what `user` never got of the first `sent` publications of publisher `j`.
    fn count_lost(&self, tally: &mut Tally, user: usize, j: usize, sent: u32) {
        for k in 0..self.plan.per_user {
            let channel = self.plan.subscribed(self.users.start + user, k);
            let sent = self.plan.sent_to(j, channel, sent);
            tally.lost += self.streams[self.plan.stream(user, j, k)].lost(sent);
        }
    }
}

impl Scenario for Fanout {
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        let publisher = index.checked_sub(self.users.len());
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
            Phase::Prepare => self.preparing = true,
            Phase::Warmup => self.begin(net, board),
            Phase::Measure => {
                self.measure_ns = board.measure_ns();
                self.ledger.set_measure_ns(self.measure_ns);
            }
            Phase::Drain => {
                if let Some(schedule) = &mut self.schedule {
                    schedule.end(board.drain_ns());
                }
                self.running = !self.closed;
            }
            Phase::Close => {
                while self.take_due(u64::MAX).is_some() {
                    net.tally.unsent += 1;
                }
                self.running = false;
                self.over = true;
                self.ledger.end();
            }
            Phase::Connect | Phase::Hold | Phase::Storm => {}
        }
    }

    fn handle_timeout(&mut self, net: &mut Net, now_ns: u64) {
        if self.preparing {
            self.subscribe(net);
        }
        self.part_with_gone(net, now_ns);
        if !self.running {
            return;
        }
        if self.closed {
            self.replace_completed(net, now_ns);
            while self.turn < self.publishers.len() {
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
            let count = self.publishers.len();
            let Some(step) = (0..count).find(|step| self.publishers[(self.turn + step) % count].live) else {
                break;
            };
            let publisher = (self.turn + step) % count;
            self.turn = (publisher + 1) % count;
            self.publish(net, publisher, due_ns, now_ns);
            net.flush();
            now_ns = self.clock.now_ns();
        }
    }

    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        self.next_due_ns()
    }

    fn handle_writable(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        let Some(publisher) = index.checked_sub(self.users.len()) else {
            return;
        };
        while !self.over
            && !net.is_blocked(index)
            && let Some(intended_ns) = self.publishers[publisher].owed.pop_front()
        {
            self.owed -= 1;
            self.write(net, publisher, intended_ns, now_ns);
        }
    }

    fn handle_gone(&mut self, net: &mut Net, index: usize, _end: &End, now_ns: u64) {
        if let Some(i) = index.checked_sub(self.users.len()) {
            let publisher = &mut self.publishers[i];
            if std::mem::take(&mut publisher.live) {
                // Its publications may still arrive; its unsent ones and its acks will not.
                self.owed -= publisher.owed.len() as u64;
                self.ledger.give_up(self.worker, self.missing_acks(i));
            }
            return;
        }
        let Subscriber { unanswered, live, .. } = self.subscribers[index];
        if unanswered > 0 {
            self.decided(net, index, unanswered, Some("connection ended".to_owned()));
        }
        if live {
            self.forget_subscriber(net, index, now_ns);
        }
    }

    fn prepared(&self) -> Option<bool> {
        self.prepared.then_some(!self.refused)
    }

    fn is_drained(&self) -> bool {
        // The last thread to report has seen the arrival of everything that the others sent.
        self.owed == 0 && self.next_due_ns().is_none() && self.ledger.is_still()
    }

    fn is_over(&self) -> bool {
        self.ledger.is_over()
    }

    fn finish(&mut self, tally: &mut Tally, now_ns: u64) {
        self.take_back(tally);
        if self.unanswered > 0 {
            // Publishers that wait for their turn behind them will have none either.
            let unasked = (self.users.len() - self.next) * self.plan.per_user;
            let reason = "no answer".to_owned();
            tally
                .subscription_failures
                .insert(reason, self.unanswered + unasked as u64);
        }
        if self.ledger.waits(self.worker) {
            tally.silence_ns = tally.silence_ns.max(self.ledger.silence_ns(self.worker, now_ns));
        }
        for j in 0..self.plan.publishers {
            let sent = self.ledger.sent(j);
            for user in (0..self.users.len()).filter(|user| self.subscribers[*user].live) {
                self.count_lost(tally, user, j, sent);
            }
        }
        for (i, publisher) in self.publishers.iter().enumerate() {
            tally.acks_missing += self.missing_acks(i);
            tally.unsent += publisher.owed.len() as u64;
        }
    }
}
