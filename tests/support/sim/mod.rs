//! A gateway in one thread: real cores, real lanes, a model of the engine, of the clients and of
//! time.
//!
//! Everything follows from [`chance::Chance`], so a run can be repeated from its seed (or from a
//! fuzzer's bytes). [`World`] lets the shards have their turns, moves bytes, and lets clients act.
//! The clients know which frames may come, and panic at any other. [`World::check`] looks at the
//! books when all is quiet.

pub mod books;
pub mod chance;
pub mod channels;
mod checks;
pub mod client;
pub mod clock;
pub mod control;
pub mod engine;
pub mod reach;
pub mod wire;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Context};

use shardgate::config::Config;
use shardgate::engine::Waker;
use shardgate::ids::{IdSource, ShardId};
use shardgate::lanes::mailbox::{Mailboxes, mailboxes};
use shardgate::lanes::{
    self, Inbox, LANE_ITEMS_MAX, LANE_ITEMS_RESERVED, LifecycleToShard, PresenceToShard, ShardCommand, ToControl,
};
use shardgate::metrics::{self, Exposition};
use shardgate::router::HomeMap;
use shardgate::session::drain::DrainPlan;
use shardgate::settings::Settings;
use shardgate::shard::core::Core;
use shardgate::shard::turn::{Pace, Shard, Surroundings};
use shardgate::shard::wheel::TICK_MS;
use shardgate::shared::{Now, Shared, SharedAt};
use shardgate::wire::codec::Codec;
use shardgate::wire::framing::Encoded;
use shardgate::wire::message::{self, ServerMessage};

use books::{Books, Broadcast};
use chance::Chance;
use client::{Client, Plan};
use clock::ModelClock;
use control::{Control, Issuer};
use engine::{ModelEngine, Mood, Pinged, Sockets, Tokens};
use reach::Reach;
use wire::Wire;

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Setup {
    pub shards: u16,
    pub users: usize,
    pub channels: usize,
    pub config: Config,
    /// Clients that may be connected at once.
    pub clients_max: usize,
    /// Lanes are full now and then.
    pub clogs: bool,
    /// The process runs out of descriptors now and then.
    pub hostile: bool,
    /// Users show tokens; the configuration must be for that.
    pub tokens: bool,
    /// The configuration is read again now and then.
    pub reloads: bool,
}

/// No client is starved for longer than this many steps, or one that answers every ping in time
/// would be too late.
const PATIENCE: u32 = 16;

/// A shard and its part of the kernel.
pub struct ModelShard {
    pub real: Shard,
    sockets: Sockets,
    last_turn_ms: u64,
    /// Does not turn before this step.
    pub stalled_until: u64,
    /// Steps without a turn, and turns in which the engine took its time.
    skipped: u32,
    dawdled: u32,
    /// Sockets after its last turn.
    held: usize,
    /// It was told to stop, and has.
    pub is_over: bool,
}

pub struct World {
    pub setup: Setup,
    pub chance: Chance,
    pub now_ns: u64,
    wall_offset_ms: u64,
    pub step: u64,
    pub shared: Arc<Shared>,
    pub settings: Arc<Settings>,
    homes: HomeMap,
    mailboxes: Mailboxes,
    control_inbox: Inbox<ToControl>,
    pub shards: Vec<ModelShard>,
    pub reach: Reach,
    pub control: Control,
    wires: Vec<Wire>,
    tokens: Tokens,
    pub clients: Vec<Client>,
    pub books: Books,
    /// Publications that did not reach everybody.
    lost: usize,
    drain_until_ms: Option<u64>,
}

impl World {
    pub fn new(setup: Setup, mut chance: Chance) -> Self {
        let count = setup.shards;
        let inboxes = lanes::inboxes(count);
        let depths = inboxes.depths;
        let cpus = vec![None; usize::from(count)];
        let shared = Arc::new(Shared::new(
            "gw".into(),
            !setup.tokens,
            "model",
            cpus,
            Arc::clone(&depths),
        ));
        let places = setup.config.limits.connections.unwrap_or(10_000);
        let settings = Arc::new(Settings::new(&setup.config, places).unwrap());
        let wakers = (0..count).map(|_| Waker::inert().unwrap()).collect();
        let mailboxes = mailboxes(inboxes.senders, wakers, Some(Waker::inert().unwrap()));
        let homes = HomeMap::new(count, [7; 16]);
        let shards = inboxes
            .shards
            .into_iter()
            .enumerate()
            .map(|(shard, inbox)| {
                let lanes = mailboxes.lanes(ShardId(shard as u16), &depths);
                let seed = u64::from(chance.word());
                let core = Core::new(Arc::clone(&shared), Arc::clone(&settings), homes.clone(), lanes, seed);
                ModelShard {
                    real: Shard::new(core, inbox),
                    sockets: Sockets::default(),
                    last_turn_ms: 0,
                    stalled_until: 0,
                    skipped: 0,
                    dawdled: 0,
                    held: 0,
                    is_over: false,
                }
            })
            .collect();
        let users: Vec<String> = (0..setup.users).map(|user| format!("user{user}")).collect();
        let user_homes = users.iter().map(|user| homes.home(homes.hash(user)).index()).collect();
        let mut books = Books::new(users, user_homes, setup.channels);
        books.lanes_full = setup.clogs;
        books.issuer = setup.tokens.then(Issuer::new);
        books.rate_limited = settings.limits.messages_per_second > 0;
        books.places_limited = setup.config.limits.connections.is_some();
        books.connections_limited = settings.limits.connections_per_user > 0;
        books.small_outboxes = settings.limits.outbox_bytes < 1 << 20;
        books.channels.refusals = [
            ("unavailable", books.lanes_full),
            ("rateLimited", books.rate_limited),
            (
                "limitExceeded",
                settings.limits.channels_per_connection < setup.channels,
            ),
        ]
        .into_iter()
        .filter_map(|(code, may_be)| may_be.then_some(code))
        .collect();
        World {
            setup,
            chance,
            now_ns: 1_000_000_000,
            wall_offset_ms: 1_700_000_000_000,
            step: 0,
            shared,
            settings,
            homes,
            mailboxes,
            control_inbox: inboxes.control,
            shards,
            reach: Reach::default(),
            control: Control::default(),
            wires: Vec::new(),
            tokens: BTreeMap::new(),
            clients: Vec::new(),
            books,
            lost: 0,
            drain_until_ms: None,
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    pub fn home(&self, user: usize) -> usize {
        self.books.homes[user]
    }

    /// A user who lives on `shard`.
    pub fn user_on(&self, shard: usize) -> usize {
        (0..self.books.users.len())
            .find(|user| self.home(*user) == shard)
            .expect("users enough for every shard")
    }

    /// A channel whose home is `shard`.
    pub fn channel_on(&self, shard: usize) -> usize {
        let home = |name: &String| self.homes.partition_home(self.homes.partition(name)).index();
        let mut names = self.books.channels.names.iter();
        names
            .position(|name| home(name) == shard)
            .expect("channels enough for every shard")
    }

    /// Connects a client to the listener of `shard`.
    pub fn connect(&mut self, shard: usize, plan: Plan) -> usize {
        let (gateway_end, client_end) = UnixStream::pair().unwrap();
        client_end.set_nonblocking(true).unwrap();
        let wire = self.wires.len();
        let window = self.chance.pick(&[200, 2_000, 100_000]);
        self.wires.push(Wire::new(window, self.now_ms()));
        self.tokens.insert(gateway_end.as_raw_fd(), wire);
        self.shards[shard].sockets.connect(gateway_end.into(), wire);
        let client = Client::new(wire, plan, client_end, &self.books, &mut self.chance);
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Messages right behind the head or the `auth`, before anything came back: they must follow a
    /// hand-over.
    fn speak_early(&mut self, client: usize) {
        if matches!(self.clients[client].plan, Plan::Query(_) | Plan::HastyAuth(_)) {
            for _ in 0..self.chance.below(4) {
                let to = self.chance.below(self.books.users.len());
                self.message(client, to);
            }
            for _ in 0..self.chance.below(3) {
                self.clients[client].act_on_channel(client, &mut self.books, &mut self.chance);
            }
        }
    }

    /// How much fits between gateway and client when the client does not read.
    pub fn set_window(&mut self, client: usize, bytes: usize) {
        let wire = self.clients[client].wire;
        self.wires[wire].window = bytes;
    }

    /// Bytes that the client has not read.
    pub fn unread(&self, client: usize) -> usize {
        self.wires[self.clients[client].wire].to_client.len()
    }

    /// One turn of one shard. Returns true if anything happened.
    pub fn turn(&mut self, shard: usize, eager: bool) -> bool {
        let now_ms = self.now_ms();
        let now = Now {
            mono_ns: self.now_ns,
            wall_ms: self.wall_offset_ms + now_ms,
        };
        let chance = &mut self.chance;
        let here = &mut self.shards[shard];
        here.dawdled = (here.dawdled + 1) % PATIENCE;
        let mood = match eager {
            true => Mood::Eager,
            false if here.dawdled == 0 => Mood::Eager,
            false if self.setup.hostile => Mood::Hostile,
            false => Mood::Lazy,
        };
        here.real.pace = match eager {
            true => Pace::default(),
            false => Pace {
                inbox_items: 1 + chance.below(64),
                received_bytes: chance.pick(&[100, 5_000, usize::MAX]),
            },
        };
        let step_ns = if eager { 0 } else { chance.pick(&[0, 1_000, 30_000]) };
        let clock = ModelClock::new(now, step_ns);
        let kernel = (&mut self.wires[..], &mut self.tokens);
        let mut engine = ModelEngine::new(&mut here.sockets, kernel, (chance, &mut self.reach), mood, now_ms);
        let turned = here
            .real
            .turn(&mut engine, &clock, None)
            .expect("the model does not break");
        let (pinged, moved) = (engine.pinged, engine.moved);
        self.now_ns = self.now_ns.max(clock.mono_ns());
        here.real.core.check_invariants();
        if here.real.inbox().is_empty()
            && let Some(done_ns) = self.books.done_ns.get_mut(shard)
        {
            *done_ns = self.now_ns;
        }
        let gap = now_ms - std::mem::replace(&mut here.last_turn_ms, now_ms);
        here.held = here.sockets.held();
        here.is_over = turned.is_over;
        let busy = moved || turned.was_busy || here.real.core.has_more();
        self.collect_mail();
        self.check_pings(&pinged);
        self.check_held();
        self.check_silence(shard, gap);
        busy
    }

    /// No ping comes early.
    fn check_pings(&self, pinged: &[Pinged]) {
        let interval_ms = self.settings.heartbeat.interval.as_millis() as u64;
        for ping in pinged {
            let asked = self.books.connections_limited && ping.silent_at_first_ms >= 1_000;
            assert!(
                ping.silent_ms >= interval_ms || ping.may_be_late || asked,
                "pinged after {} ms",
                ping.silent_ms
            );
        }
    }

    /// There are no more sockets than the limits allow, whatever clients do and whether they read
    /// or not.
    fn check_held(&self) {
        if self.drain_until_ms.is_some() {
            return;
        }
        if let Some(handshakes) = self.setup.config.limits.handshakes {
            let held: usize = self.shards.iter().map(|shard| shard.held).sum();
            let most = self.settings.connections_max + handshakes;
            assert!(held <= most, "{held} sockets, {most} by the limits");
        }
    }

    /// No client is silent for longer than the heartbeat allows, to within a tick and the time
    /// between turns.
    fn check_silence(&self, shard: usize, gap_ms: u64) {
        if self.drain_until_ms.is_some() {
            return;
        }
        let heartbeat = &self.settings.heartbeat;
        let slack = 2 * TICK_MS + gap_ms + 1;
        for (wire, sending) in self.shards[shard].sockets.open() {
            let wire = &self.wires[wire];
            // Before the welcome other deadlines count; behind a send in flight a ping waits.
            if sending || !wire.said.is_websocket() || !wire.said_welcome() {
                continue;
            }
            let silent = self.now_ms() - wire.last_seen_ms;
            let timeout = heartbeat.timeout.as_millis() as u64;
            assert!(silent <= timeout + slack, "open after {silent} ms of silence");
            let unwatched = self.now_ms() - wire.last_seen_ms.max(wire.watched_from_ms);
            let interval = heartbeat.interval.as_millis() as u64;
            assert!(unwatched <= interval + slack, "no ping after {unwatched} ms of silence");
        }
    }

    /// Lets every client read and write for a while. Returns true if anything moved.
    pub fn move_bytes(&mut self, eager: bool) -> bool {
        self.books.channels.now_ns = self.now_ns;
        let mut moved = false;
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            client.skipped = (client.skipped + 1) % PATIENCE;
            let eager = eager || client.skipped == 0;
            if client.is_over() || (!eager && self.chance.percent(30)) {
                continue;
            }
            let wire = &mut self.wires[client.wire];
            moved |= client.write(wire, &mut self.chance, eager);
            moved |= client.read(index, wire, &mut self.books, &mut self.chance, eager);
        }
        moved
    }

    /// A step in which anything may happen.
    pub fn chaos(&mut self) {
        self.begin_step();
        if self.clients.iter().filter(|client| !client.is_over()).count() < self.setup.clients_max
            && self.chance.percent(5)
        {
            let shard = self.chance.below(self.shards.len());
            let plan = Plan::any(&mut self.chance, self.books.users.len());
            let client = self.connect(shard, plan);
            self.speak_early(client);
        }
        for _ in 0..2 {
            if !self.clients.is_empty() {
                let index = self.chance.below(self.clients.len());
                let client = &mut self.clients[index];
                if !client.is_over() {
                    let wire = &mut self.wires[client.wire];
                    client.act(index, wire, &mut self.books, &mut self.chance);
                }
            }
        }
        self.administer();
        self.end_step();
    }

    /// A step in which a crowd comes to channels, goes and publishes, and does little else.
    pub fn bustle(&mut self) {
        self.begin_step();
        for _ in 0..8 {
            let index = self.chance.below(self.clients.len());
            let client = &mut self.clients[index];
            if client.is_live() && self.chance.percent(5) {
                client.leave(&mut self.wires[client.wire], &mut self.chance);
            } else if client.is_live() {
                client.act_on_channel(index, &mut self.books, &mut self.chance);
            }
        }
        self.end_step();
    }

    fn begin_step(&mut self) {
        self.step += 1;
        self.advance();
        self.books.channels.now_ns = self.now_ns;
    }

    fn end_step(&mut self) {
        if self.chance.percent(1) {
            self.broadcast();
        }
        if self.setup.clogs && self.shards.len() > 1 && self.chance.percent(1) {
            let to = self.chance.below(self.shards.len());
            let from = (to + 1 + self.chance.below(self.shards.len() - 1)) % self.shards.len();
            // For messages, or for everything.
            let items = self
                .chance
                .pick(&[LANE_ITEMS_MAX, LANE_ITEMS_MAX + LANE_ITEMS_RESERVED]);
            self.clog(from, to, items);
            self.shards[to].stalled_until = self.step + 1 + self.chance.below(100) as u64;
        }
        self.turn_control(false);
        self.move_bytes(false);
        for shard in 0..self.shards.len() {
            if self.chance.percent(1) {
                self.shards[shard].stalled_until = self.step + self.chance.below(200) as u64;
            }
            if self.shards[shard].stalled_until > self.step {
                continue;
            }
            let due = self.shards[shard].real.next_due_ms();
            self.shards[shard].skipped += 1;
            if self.chance.percent(60)
                || due.is_some_and(|due| due <= self.now_ms())
                || self.shards[shard].skipped >= PATIENCE
            {
                self.shards[shard].skipped = 0;
                self.turn(shard, false);
            }
        }
        if self.chance.percent(1) {
            // The host's clock is set, back or forth.
            self.wall_offset_ms = 1_600_000_000_000 + u64::from(self.chance.word());
        }
    }

    fn next_due_ms(&self) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.real.next_due_ms()).min()
    }

    fn advance(&mut self) {
        self.now_ns += 1000 * (1 + self.chance.below(2000) as u64);
        // Now and then nothing happens until the next deadline. This never happens while an answer
        // is due, or well-behaved clients would be taken for silent ones.
        if self.chance.percent(5)
            && self
                .clients
                .iter()
                .all(|client| client.owes_nothing(&self.wires[client.wire]))
            && self.shards.iter().all(|shard| {
                let mut open = shard.sockets.open();
                // A ping may be in flight. Wires and clients have the same numbers.
                shard.stalled_until <= self.step
                    && open.all(|(wire, sending)| !sending || !self.clients[wire].is_prompt())
            })
            && let Some(due) = self.next_due_ms()
        {
            self.now_ns = self.now_ns.max(due * 1_000_000);
        }
    }

    /// A client that is connected as `user` by way of the listener of `shard`.
    pub fn join(&mut self, shard: usize, plan: Plan) -> usize {
        let client = self.connect(shard, plan);
        self.settle(0);
        assert!(self.clients[client].is_live(), "{:?}", self.clients[client]);
        client
    }

    /// Lets a client send a message.
    pub fn message(&mut self, client: usize, to: usize) -> usize {
        self.clients[client].message(client, to, 10, true, &mut self.books, &mut self.chance)
    }

    /// Lets a client ask to be in a channel, or not any more.
    pub fn ask_channel(&mut self, client: usize, channel: usize, subscribes: bool) {
        self.clients[client].ask_channel(client, channel, subscribes, &mut self.books, &mut self.chance);
    }

    /// Lets a client publish.
    pub fn publish(&mut self, client: usize, channel: usize, size: usize) {
        self.clients[client].publish(client, channel, size, true, &mut self.books, &mut self.chance);
    }

    /// A frame for everybody, as the control thread passes it on.
    pub fn broadcast(&mut self) {
        let command = ShardCommand::Broadcast(self.begin_broadcast());
        self.mailboxes.post_all(|| command.clone());
    }

    /// The next broadcast, written down.
    fn begin_broadcast(&mut self) -> Encoded {
        let number = self.books.broadcasts.len();
        let mut body = Vec::new();
        let id = IdSource::new(number as u64).next(self.now_ms());
        let broadcast = message::Broadcast {
            id,
            content: &number.to_string(),
            ts_ms: self.now_ms(),
        };
        Codec::Json.encode(&mut body, &ServerMessage::Broadcast(broadcast));
        self.books.broadcasts.push(Broadcast {
            witnesses: self.live(),
            received_by: Vec::new(),
        });
        Encoded::new(&body)
    }

    /// Fills a lane with meaningless items, until its receiver turns.
    fn clog(&mut self, from: usize, to: usize, items: u32) {
        let mut lanes = self.mailboxes.lanes(ShardId(from as u16), &self.shared.depths);
        for _ in 0..items {
            // No client has so many questions.
            let answer = PresenceToShard::Answer {
                ticket: u32::MAX,
                online: 0,
                known: 0,
            };
            lanes.push(ShardId(to as u16), answer);
        }
        lanes.flush();
    }

    /// Lets a client send a presence query.
    pub fn ask(&mut self, client: usize, users: &[usize]) -> usize {
        let users = users.iter().copied().collect();
        self.clients[client].ask(client, users, &mut self.books, &mut self.chance)
    }

    /// Until nothing moves any more while only this shard turns; the others are stuck.
    pub fn turn_only(&mut self, shard: usize) {
        for _ in 0..100_000 {
            self.now_ns += 10_000;
            let moved = self.move_bytes(true);
            if !(self.turn(shard, true) | moved) {
                return;
            }
        }
        panic!("never quiet");
    }

    /// How many messages have this ack.
    pub fn acks(&self, status: &str) -> usize {
        let messages = self.books.messages.iter();
        messages
            .filter(|message| message.ack.as_deref() == Some(status))
            .count()
    }

    /// All clients read and answer, and none starts anything new, until nothing moves any more.
    /// Deadlines pass for `more_ms`.
    pub fn settle(&mut self, more_ms: u64) {
        for client in &mut self.clients {
            client.behave();
        }
        let until_ms = self.now_ms() + more_ms;
        let mut quiet = 0;
        for _ in 0..200_000 {
            self.now_ns += 1_000_000;
            self.step += 1;
            let mut moved = self.move_bytes(true) | self.turn_control(true);
            for shard in 0..self.shards.len() {
                moved |= self.turn(shard, true);
                moved |= !self.shards[shard].real.inbox().is_empty();
            }
            quiet = if moved { 0 } else { quiet + 1 };
            if quiet < 3 {
                continue;
            }
            match self.next_due_ms() {
                Some(due) if due < until_ms => self.now_ns = self.now_ns.max(due * 1_000_000),
                _ if self.now_ms() < until_ms => self.now_ns = until_ms * 1_000_000,
                _ => return,
            }
        }
        panic!("never quiet");
    }

    pub fn begin_drain(&mut self, within_ms: u64) -> u64 {
        let until_ms = self.now_ms() + within_ms;
        self.drain_until_ms = Some(until_ms);
        self.books.draining = true;
        assert!(self.shared.begin_draining());
        let per_second = self.chance.pick(&[0, 1, 5]);
        let plan = DrainPlan::new(self.shared.connections(), self.now_ms(), within_ms, per_second);
        self.mailboxes.post_all(|| LifecycleToShard::Drain(plan));
        for shard in 0..self.shards.len() {
            while self.shards[shard].real.core.drain_count().is_none() {
                self.turn(shard, true);
            }
        }
        until_ms
    }

    /// Ends of connections that no drain counted.
    pub fn ends_not_drained(&self) -> u64 {
        let counts = self.shards.iter().filter_map(|shard| shard.real.core.drain_count());
        let drained: u64 = counts.map(|count| count.left + count.closed).sum();
        self.metric("shardgate_connections_closed_total", "") - drained
    }

    /// Is the drain over, as `shard::run` finds out? Returns how many left and how many were
    /// closed.
    pub fn drained(&self) -> Option<(u64, u64)> {
        let mut sum = (0, 0);
        for shard in &self.shards {
            let count = shard.real.core.drain_count()?;
            if count.open > 0 || shard.real.core.has_unfinished_sockets() {
                return None;
            }
            sum = (sum.0 + count.left, sum.1 + count.closed);
        }
        Some(sum)
    }

    /// All clients go, each in one of the ways in which clients go.
    pub fn everybody_leaves(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.is_over()) {
            let wire = &mut self.wires[client.wire];
            client.leave(wire, &mut self.chance);
        }
    }

    /// How often the run reached the rare events.
    pub fn reach(&self) -> Reach {
        Reach {
            tokens: self.books.tokens,
            http: self.books.http,
            ended_subscriptions: self.books.channels.ended,
            ..self.reach
        }
    }

    /// Which clients are connected as a user, by their own lights.
    pub fn live(&self) -> Vec<usize> {
        (0..self.clients.len())
            .filter(|index| self.clients[*index].is_live())
            .collect()
    }

    /// Sum over all shards of a metric, with these labels if any.
    pub fn metric(&self, name: &str, labels: &str) -> u64 {
        let mut exposition = Exposition::default();
        {
            let at = SharedAt {
                shared: Arc::clone(&self.shared),
                now: Now {
                    mono_ns: self.now_ns,
                    wall_ms: 0,
                },
            };
            let mut exposed = pin!(metrics::expose(&at, &mut exposition));
            // It pauses for others, of whom there are none.
            while exposed
                .as_mut()
                .poll(&mut Context::from_waker(task::Waker::noop()))
                .is_pending()
            {}
        }
        let text = exposition.into_text();
        text.lines()
            .filter(|line| line.starts_with(name) && line[name.len()..].starts_with('{') && line.contains(labels))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }
}
