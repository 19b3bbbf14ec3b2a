//! One gateway's connections to Redis, as `shardgate::redis` keeps them: order, delays, time
//! limits, trouble.
//!
//! A [`Line`] is a model of `redis::Broker`: a connection for commands, with invalidations coming
//! back on it, and one for subscriptions. The bytes on one of them stay in order. An invalidation
//! may overtake answers that were given before it, but never comes behind one given after it. A
//! [`Link`] is production's pair of two lines: look-ups have their own.
//!
//! The control thread's turn only leaves calls with a line. [`Link::work`] carries them out, as the
//! driver's task does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use shardgate::cluster::store::{Answer, Channel, FailureKind, Request, Store, StoreEvent};
use shardgate::redis::pair::Pair;

use super::sim::chance::Chance;
use super::store::{ConnId, Effect, Outcome, Redis, Step, failed};

pub const MS: u64 = 1_000_000;
/// The broker's own limit for an answer.
const ANSWER_MAX_NS: u64 = 2_000 * MS;
/// How long it takes to notice that a connection for subscriptions is dead.
const SILENCE_NS: u64 = 5_000 * MS;

#[derive(Debug)]
struct Asked {
    ticket: u64,
    place: usize,
    step: Step,
}

#[derive(Debug)]
struct Pending {
    sent_ns: u64,
    answers: Vec<Option<Answer>>,
}

#[derive(Debug)]
enum Said {
    Subscribed(Channel),
    Unsubscribed(Channel),
    Packet(Channel, Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Idle,
    Asked(u64),
    Heard,
}

/// Something under way, in order.
#[derive(Debug)]
struct Pipe<T> {
    queue: VecDeque<(u64, T)>,
    last_ns: u64,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Pipe {
            queue: VecDeque::new(),
            last_ns: 0,
        }
    }
}

impl<T> Pipe<T> {
    fn push(&mut self, due_ns: u64, what: T) {
        self.last_ns = self.last_ns.max(due_ns);
        self.queue.push_back((self.last_ns, what));
    }

    fn pop(&mut self, now_ns: u64) -> Option<T> {
        if self.due_ns()? > now_ns {
            return None;
        }
        self.queue.pop_front().map(|(_, what)| what)
    }

    fn due_ns(&self) -> Option<u64> {
        self.queue.front().map(|(due, _)| *due)
    }
}

#[derive(Debug, Default)]
struct Commands {
    conn: Option<ConnId>,
    retry_ns: u64,
    asked: Pipe<Asked>,
    replies: Pipe<(u64, usize, Answer)>,
    pushes: Pipe<Arc<str>>,
}

#[derive(Debug, Default)]
struct Ears {
    conn: Option<ConnId>,
    retry_ns: u64,
    orders: Pipe<(bool, Channel)>,
    said: Pipe<Said>,
    wanted: BTreeMap<Channel2, Wanted>,
    /// Nothing comes through, unnoticed so far.
    dead_since_ns: Option<u64>,
}

/// Channels have no order of their own.
type Channel2 = (String, u64);

fn name(channel: &Channel) -> Channel2 {
    match channel {
        Channel::Gateway(id, life) => (id.to_string(), life.0),
        Channel::All => (String::new(), 0),
        // No simulated gateway is called so.
        Channel::Partition(number) => ("part:".to_owned(), (*number).into()),
    }
}

/// The control thread's requests to a line.
#[derive(Debug)]
enum Call {
    Submit(Request),
    Subscribe(Channel),
    Unsubscribe(Channel),
    Renew,
}

/// Both connections of one broker, and their pending events.
#[derive(Debug, Default)]
pub struct Line {
    calls: VecDeque<Call>,
    /// Its connections are to be closed, without a word.
    restarts: bool,
    commands: Commands,
    ears: Ears,
    pending: BTreeMap<u64, Pending>,
    events: VecDeque<StoreEvent>,
    /// Wanted channels, and whether they are confirmed, as the broker's owner knows it.
    channels: BTreeMap<Channel2, (Channel, bool)>,
    told_down: bool,
    was_up: bool,
    /// No connection reaches Redis before this time.
    cut_until_ns: u64,
    /// The same for subscriptions alone.
    deaf_until_ns: u64,
    /// Packets are dropped on the way until then, and nothing else happens.
    lossy_until_ns: u64,
    /// Everything takes this much longer.
    slow_ns: u64,
    /// The usual time of one way.
    delay_ns: u64,
    packets_lost: u64,
    /// Partitions that the server took away, and that have not come back.
    astray: BTreeSet<Channel2>,
}

impl Store for Line {
    fn submit(&mut self, request: Request) {
        self.calls.push_back(Call::Submit(request));
    }

    fn subscribe(&mut self, channel: Channel) {
        self.calls.push_back(Call::Subscribe(channel));
    }

    fn unsubscribe(&mut self, channel: &Channel) {
        self.calls.push_back(Call::Unsubscribe(channel.clone()));
    }

    fn renew(&mut self, _: &Channel) {
        self.calls.push_back(Call::Renew);
    }

    fn restart(&mut self) {
        assert!(self.channels.is_empty(), "look-ups subscribe to nothing");
        self.restarts = true;
        self.calls.clear();
        self.pending.clear();
        self.events.clear();
        self.told_down = false;
    }

    fn try_next_event(&mut self) -> Option<StoreEvent> {
        self.events.pop_front()
    }
}

impl Line {
    fn new(chance: &mut Chance) -> Line {
        Line {
            delay_ns: 1 + chance.pick(&[MS / 20, MS / 2, 3 * MS]),
            ..Line::default()
        }
    }

    fn delay(&self, chance: &mut Chance) -> u64 {
        let usual = chance.below(self.delay_ns as usize) as u64;
        let rare = if chance.percent(2) { 10 * usual } else { 0 };
        usual + rare + self.slow_ns
    }

    /// All is well on the connections.
    fn is_sound(&self, now_ns: u64) -> bool {
        let wants = !self.channels.is_empty();
        self.commands.conn.is_some()
            && (self.ears.conn.is_some() || !wants)
            && self.ears.dead_since_ns.is_none()
            && self.slow_ns == 0
            && now_ns >= self.lossy_until_ns
            && self.astray.is_empty()
    }

    fn due_ns(&self) -> u64 {
        let (commands, ears) = (&self.commands, &self.ears);
        let retry = |conn: &Option<ConnId>, at: u64| conn.is_none().then_some(at);
        let wants = !ears.wanted.is_empty();
        let first = self.pending.values().next().map(|p| p.sent_ns + ANSWER_MAX_NS);
        let dues = [
            commands.asked.due_ns(),
            commands.replies.due_ns(),
            commands.pushes.due_ns(),
            retry(&commands.conn, commands.retry_ns),
            ears.orders.due_ns(),
            ears.said.due_ns(),
            retry(&ears.conn, ears.retry_ns).filter(|_| wants),
            ears.dead_since_ns.map(|since| since + SILENCE_NS),
            first,
            (!self.events.is_empty() || !self.calls.is_empty() || self.restarts).then_some(0),
        ];
        dues.into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// Carries out what the control thread wants.
    fn follow_calls(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        if std::mem::take(&mut self.restarts) {
            self.close_commands(redis, now_ns, chance);
            self.commands.retry_ns = now_ns;
        }
        while let Some(call) = self.calls.pop_front() {
            match call {
                Call::Submit(request) => self.send(request, now_ns, chance),
                Call::Subscribe(channel) => self.begin_channel(channel, now_ns, chance),
                Call::Unsubscribe(channel) => self.end_channel(&channel, now_ns, chance),
                Call::Renew => {
                    self.lose_ears(redis, now_ns, chance);
                    self.lose_commands(redis, now_ns, chance);
                }
            }
        }
    }

    fn send(&mut self, request: Request, now_ns: u64, chance: &mut Chance) {
        assert!(!request.ops.is_empty(), "an empty request");
        let Request { ticket, ops } = request;
        if self.commands.conn.is_none() {
            let refused = || failed(FailureKind::Unavailable, "not connected");
            let answers = ops.iter().map(|_| refused()).collect();
            self.events.push_back(StoreEvent::Answered { ticket, answers });
            return;
        }
        let mut due_ns = now_ns + self.delay(chance);
        let pending = Pending {
            sent_ns: now_ns,
            answers: vec![None; ops.len()],
        };
        assert!(self.pending.insert(ticket, pending).is_none(), "a ticket twice");
        for (place, op) in ops.into_iter().enumerate() {
            if chance.percent(5) {
                // The pipeline comes in pieces, with commands of others between them.
                due_ns += self.delay(chance);
            }
            let step = Step::Op(op);
            self.commands.asked.push(due_ns, Asked { ticket, place, step });
        }
    }

    fn begin_channel(&mut self, channel: Channel, now_ns: u64, chance: &mut Chance) {
        self.channels.entry(name(&channel)).or_insert((channel.clone(), false));
        self.ears.wanted.entry(name(&channel)).or_insert(Wanted::Idle);
        self.ask_for_idle(now_ns, chance);
    }

    fn end_channel(&mut self, channel: &Channel, now_ns: u64, chance: &mut Chance) {
        self.astray.remove(&name(channel));
        if self.channels.remove(&name(channel)).is_some() && self.ears.wanted.remove(&name(channel)).is_some() {
            let due_ns = now_ns + self.delay(chance);
            self.ears.orders.push(due_ns, (false, channel.clone()));
        }
    }

    fn ask_for_idle(&mut self, now_ns: u64, chance: &mut Chance) {
        if self.ears.conn.is_none() {
            return;
        }
        let due_ns = now_ns + self.delay(chance);
        for (name, wanted) in &mut self.ears.wanted {
            if *wanted == Wanted::Idle
                && let Some((channel, _)) = self.channels.get(name)
            {
                *wanted = Wanted::Asked(now_ns);
                self.ears.orders.push(due_ns, (true, channel.clone()));
            }
        }
    }

    /// Carries out the commands that reached the server by now.
    fn serve(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance, effects: &mut Vec<Effect>) -> bool {
        if now_ns < redis.frozen_until_ns {
            return false;
        }
        let mut moved = false;
        while let Some(conn) = self.commands.conn
            && let Some(asked) = self.commands.asked.pop(now_ns)
        {
            moved = true;
            self.carry_out(conn, asked, redis, now_ns, chance, effects);
        }
        while let Some(conn) = self.ears.conn
            && let Some((begin, channel)) = self.ears.orders.pop(now_ns)
        {
            moved = true;
            let due_ns = now_ns + self.delay(chance);
            if begin {
                redis.subscribe(conn, channel.clone());
                self.ears.said.push(due_ns, Said::Subscribed(channel));
            } else {
                redis.unsubscribe(conn, &channel);
                self.ears.said.push(due_ns, Said::Unsubscribed(channel));
            }
        }
        moved
    }

    fn carry_out(
        &mut self,
        conn: ConnId,
        asked: Asked,
        redis: &mut Redis,
        now_ns: u64,
        chance: &mut Chance,
        effects: &mut Vec<Effect>,
    ) {
        let Asked { ticket, place, step } = asked;
        match redis.carry_out(conn, step, now_ns / MS, effects) {
            Outcome::Answer(answer) => {
                let due_ns = (now_ns + self.delay(chance)).max(self.commands.pushes.last_ns);
                self.commands.replies.push(due_ns, (ticket, place, answer));
            }
            Outcome::Then(step) => {
                let due_ns = now_ns + self.delay(chance) + self.delay(chance);
                self.commands.asked.push(due_ns, Asked { ticket, place, step });
            }
        }
    }

    /// Something for one of our connections from the server.
    fn take_effect(&mut self, effect: &Effect, now_ns: u64, chance: &mut Chance) -> bool {
        let due_ns = now_ns + self.delay(chance);
        match effect {
            Effect::Invalidate(conn, user) if self.commands.conn == Some(*conn) => {
                self.commands.pushes.push(due_ns, Arc::clone(user));
            }
            Effect::Packet(conn, channel, payload) if self.ears.conn == Some(*conn) => {
                self.ears
                    .said
                    .push(due_ns, Said::Packet(channel.clone(), payload.clone()));
            }
            _ => return false,
        }
        true
    }

    /// Data that reached the gateway by now becomes events; lost connections are tried again.
    fn work(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        while let Some(user) = self.commands.pushes.pop(now_ns) {
            self.events.push_back(StoreEvent::Forget(vec![user]));
        }
        while let Some((ticket, place, answer)) = self.commands.replies.pop(now_ns) {
            self.land(ticket, place, answer);
        }
        if self.pending.values().any(|p| now_ns >= p.sent_ns + ANSWER_MAX_NS) {
            self.lose_commands(redis, now_ns, chance);
        }
        if self.commands.conn.is_none() && now_ns >= self.commands.retry_ns {
            if now_ns >= self.cut_until_ns && redis.takes_connections(now_ns) {
                self.commands = Commands {
                    conn: Some(redis.connect()),
                    ..Commands::default()
                };
                self.events.push_back(StoreEvent::Connected);
                self.was_up = true;
                self.told_down = false;
            } else {
                self.tell_down();
                self.commands.retry_ns = now_ns + self.backoff(chance);
            }
        }
        self.hear(redis, now_ns, chance);
    }

    fn backoff(&self, chance: &mut Chance) -> u64 {
        (50 + chance.below(950) as u64) * MS
    }

    fn land(&mut self, ticket: u64, place: usize, answer: Answer) {
        let Some(pending) = self.pending.get_mut(&ticket) else {
            return;
        };
        pending.answers[place] = Some(answer);
        if pending.answers.iter().all(Option::is_some)
            && let Some(pending) = self.pending.remove(&ticket)
        {
            let answers = pending.answers.into_iter().flatten().collect();
            self.events.push_back(StoreEvent::Answered { ticket, answers });
        }
    }

    fn tell_down(&mut self) {
        if !std::mem::replace(&mut self.told_down, true) {
            self.events.push_back(StoreEvent::Lost("the model says so".into()));
        }
    }

    /// The connection for commands breaks: some commands under way are still carried out, none is
    /// answered.
    fn lose_commands(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        if !self.close_commands(redis, now_ns, chance) {
            return;
        }
        for (ticket, pending) in std::mem::take(&mut self.pending) {
            let lost = |answer: Option<Answer>| answer.unwrap_or_else(|| failed(FailureKind::Unavailable, "lost"));
            let answers = pending.answers.into_iter().map(lost).collect();
            self.events.push_back(StoreEvent::Answered { ticket, answers });
        }
        self.tell_down();
    }

    /// The same without notice. Returns false if there was no connection.
    fn close_commands(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) -> bool {
        let Some(conn) = self.commands.conn.take() else {
            return false;
        };
        let mut effects = Vec::new();
        let mut asked = std::mem::take(&mut self.commands).asked.queue;
        let reach = chance.below(asked.len() + 1);
        for (_, asked) in asked.drain(..reach) {
            redis.carry_out(conn, asked.step, now_ns / MS, &mut effects);
        }
        redis.disconnect(conn);
        self.commands.retry_ns = now_ns + self.backoff(chance);
        redis.late.append(&mut effects);
        true
    }

    /// The connection for subscriptions breaks, and that is noticed.
    fn lose_ears(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        let Some(conn) = self.ears.conn.take() else {
            return;
        };
        redis.disconnect(conn);
        self.astray.clear();
        let wanted = std::mem::take(&mut self.ears.wanted);
        self.ears = Ears {
            retry_ns: now_ns + self.backoff(chance),
            ..Ears::default()
        };
        for (name, stage) in wanted {
            if stage == Wanted::Heard {
                self.say_unheard(&name);
            }
            self.ears.wanted.insert(name, Wanted::Idle);
        }
    }

    /// Nothing comes through any more, unnoticed for a while: the server goes on counting us.
    fn lose_hearing(&mut self, now_ns: u64) {
        if self.ears.conn.is_some() && self.ears.dead_since_ns.is_none() {
            self.ears.dead_since_ns = Some(now_ns);
        }
    }

    /// The server ends our subscriptions of partitions, as one does whose slots move.
    fn lose_partitions(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        let Some(conn) = self.ears.conn else {
            return;
        };
        let due_ns = now_ns + self.delay(chance);
        for (channel, _) in self.channels.values() {
            if matches!(channel, Channel::Partition(_)) && redis.is_heard(conn, channel) && chance.percent(50) {
                redis.unsubscribe(conn, channel);
                self.astray.insert(name(channel));
                self.ears.said.push(due_ns, Said::Unsubscribed(channel.clone()));
            }
        }
    }

    fn say_unheard(&mut self, name: &Channel2) {
        if let Some((channel, heard)) = self.channels.get_mut(name)
            && std::mem::take(heard)
        {
            self.events.push_back(StoreEvent::Unsubscribed(channel.clone()));
        }
    }

    fn hear(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        if let Some(since_ns) = self.ears.dead_since_ns {
            while self.ears.said.pop(now_ns).is_some() {
                self.packets_lost += 1;
            }
            if now_ns >= since_ns + SILENCE_NS {
                self.lose_ears(redis, now_ns, chance);
            }
            return;
        }
        while let Some(said) = self.ears.said.pop(now_ns) {
            match said {
                Said::Subscribed(channel) => {
                    self.astray.remove(&name(&channel));
                    if let Some(wanted) = self.ears.wanted.get_mut(&name(&channel)) {
                        *wanted = Wanted::Heard;
                    }
                    if let Some((channel, heard)) = self.channels.get_mut(&name(&channel))
                        && !std::mem::replace(heard, true)
                    {
                        self.events.push_back(StoreEvent::Subscribed(channel.clone()));
                    }
                }
                Said::Unsubscribed(channel) => {
                    self.say_unheard(&name(&channel));
                    if let Some(wanted) = self.ears.wanted.get_mut(&name(&channel)) {
                        *wanted = Wanted::Idle;
                        self.ask_for_idle(now_ns, chance);
                    }
                }
                Said::Packet(channel, payload) => {
                    if now_ns < self.lossy_until_ns {
                        self.packets_lost += 1;
                    } else if self.channels.contains_key(&name(&channel)) {
                        self.events.push_back(StoreEvent::Received(channel, payload));
                    }
                }
            }
        }
        let late = |stage: &Wanted| matches!(stage, Wanted::Asked(at) if now_ns > at + ANSWER_MAX_NS);
        if self.ears.conn.is_some() && self.ears.wanted.values().any(late) {
            self.lose_ears(redis, now_ns, chance);
        }
        let wants = !self.ears.wanted.is_empty();
        if wants && self.ears.conn.is_none() && now_ns >= self.ears.retry_ns {
            let cut_until_ns = self.cut_until_ns.max(self.deaf_until_ns);
            if now_ns >= cut_until_ns && redis.takes_connections(now_ns) {
                self.ears.conn = Some(redis.connect());
                self.ask_for_idle(now_ns, chance);
            } else {
                self.ears.retry_ns = now_ns + self.backoff(chance);
            }
        }
    }
}

/// One gateway's connections to Redis: production's pair over two lines.
#[derive(Debug)]
pub struct Link {
    pair: Pair<Line>,
    /// The master that discovery led to when it was last asked, counted from the first one.
    master: u64,
}

impl Store for Link {
    fn submit(&mut self, request: Request) {
        self.pair.submit(request);
    }

    fn subscribe(&mut self, channel: Channel) {
        self.pair.subscribe(channel);
    }

    fn unsubscribe(&mut self, channel: &Channel) {
        self.pair.unsubscribe(channel);
    }

    fn renew(&mut self, channel: &Channel) {
        self.pair.renew(channel);
    }

    fn restart(&mut self) {
        self.pair.restart();
    }

    fn try_next_event(&mut self) -> Option<StoreEvent> {
        self.pair.try_next_event()
    }
}

impl Link {
    pub fn new(master: u64, chance: &mut Chance) -> Link {
        Link {
            pair: Pair::new(Line::new(chance), Line::new(chance)),
            master,
        }
    }

    /// The master that discovery led to when it was last asked.
    pub fn master(&self) -> u64 {
        self.master
    }

    /// Discovery leads to another master: all connections to the old one are closed.
    pub fn follow(&mut self, master: u64, old: &mut Redis, now_ns: u64, chance: &mut Chance) {
        self.lose_all(old, now_ns, chance);
        self.master = master;
    }

    fn main(&self) -> &Line {
        self.pair.lines()[0]
    }

    fn main_mut(&mut self) -> &mut Line {
        let [main, _] = self.pair.lines_mut();
        main
    }

    /// The connection for subscriptions.
    pub fn ear(&self) -> Option<ConnId> {
        self.main().ears.conn
    }

    /// All is well on all connections.
    pub fn is_sound(&self, now_ns: u64) -> bool {
        self.pair.lines().iter().all(|line| line.is_sound(now_ns))
    }

    /// The control thread wants something.
    pub fn has_calls(&self) -> bool {
        self.pair.lines().iter().any(|line| !line.calls.is_empty())
    }

    pub fn due_ns(&self) -> u64 {
        let [main, lookups] = self.pair.lines();
        main.due_ns().min(lookups.due_ns())
    }

    /// Carries out the commands that reached the server by now.
    pub fn serve(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance, effects: &mut Vec<Effect>) -> bool {
        let [main, lookups] = self.pair.lines_mut();
        main.serve(redis, now_ns, chance, effects) | lookups.serve(redis, now_ns, chance, effects)
    }

    /// Something for one of our connections from the server.
    pub fn take_effect(&mut self, effect: &Effect, now_ns: u64, chance: &mut Chance) -> bool {
        let [main, lookups] = self.pair.lines_mut();
        main.take_effect(effect, now_ns, chance) || lookups.take_effect(effect, now_ns, chance)
    }

    /// Carries out the control thread's requests; data that reached the gateway by now becomes
    /// events.
    pub fn work(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        for line in self.pair.lines_mut() {
            line.follow_calls(redis, now_ns, chance);
            line.work(redis, now_ns, chance);
        }
    }

    /// Commands, or subscriptions too, break and stay away until then.
    pub fn cut(&mut self, redis: &mut Redis, now_ns: u64, until_ns: u64, chance: &mut Chance) {
        for line in self.pair.lines_mut() {
            line.cut_until_ns = until_ns;
        }
        self.lose_commands(redis, now_ns, chance);
        if chance.percent(70) {
            self.main_mut().lose_ears(redis, now_ns, chance);
        }
    }

    /// The connection for look-ups breaks and stays away until then.
    pub fn cut_lookups(&mut self, redis: &mut Redis, now_ns: u64, until_ns: u64, chance: &mut Chance) {
        let [_, lookups] = self.pair.lines_mut();
        lookups.cut_until_ns = until_ns;
        lookups.lose_commands(redis, now_ns, chance);
    }

    /// The connection for subscriptions breaks and stays away until then.
    pub fn cut_ears(&mut self, redis: &mut Redis, now_ns: u64, until_ns: u64, chance: &mut Chance) {
        self.main_mut().deaf_until_ns = until_ns;
        self.main_mut().lose_ears(redis, now_ns, chance);
    }

    /// All connections break.
    pub fn lose_all(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        self.lose_commands(redis, now_ns, chance);
        self.main_mut().lose_ears(redis, now_ns, chance);
    }

    fn lose_commands(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        for line in self.pair.lines_mut() {
            line.lose_commands(redis, now_ns, chance);
        }
    }

    /// Nothing comes through to subscriptions any more, unnoticed for a while.
    pub fn lose_hearing(&mut self, now_ns: u64) {
        self.main_mut().lose_hearing(now_ns);
    }

    /// The server ends our subscriptions of partitions, as one does whose slots move.
    pub fn lose_partitions(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        self.main_mut().lose_partitions(redis, now_ns, chance);
    }

    /// Packets are dropped on the way until then, and nothing else happens.
    pub fn lose_packets(&mut self, until_ns: u64) {
        self.main_mut().lossy_until_ns = until_ns;
    }

    /// Everything takes this much longer.
    pub fn slow_down(&mut self, by_ns: u64) {
        for line in self.pair.lines_mut() {
            line.slow_ns = by_ns;
        }
    }

    /// All obstacles to the connections end.
    pub fn end_faults(&mut self) {
        for line in self.pair.lines_mut() {
            line.slow_ns = 0;
            line.cut_until_ns = 0;
            line.deaf_until_ns = 0;
            line.lossy_until_ns = 0;
        }
    }

    /// The process is gone, and its sockets with it.
    pub fn kill(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) {
        self.lose_commands(redis, now_ns, chance);
        if let Some(conn) = self.main_mut().ears.conn.take() {
            redis.disconnect(conn);
        }
    }
}
