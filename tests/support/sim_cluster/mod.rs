//! Several gateways in one thread over a model of Redis, in virtual time.
//!
//! Everything follows from a seed. Clients are simple: they connect, send, ask and go. Frames for
//! them are checked where the gateway queues them ([`books`]). Misbehaving clients, slow ones and
//! heartbeats are the business of the simulation of one gateway.

pub mod books;
pub mod channels;
pub mod faults;
pub mod gateway;
pub mod link;
pub mod store;

use super::sim;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use shardgate::config::Config;
use shardgate::control::turn::Stage;
use shardgate::redis::keys::Names;
use shardgate::settings::Settings;

use books::{Books, Soundness};
use gateway::{Gateway, Spoken};
use link::{Link, MS};
use sim::chance::Chance;
use sim::channels::ChannelBooks;
use sim::wire::{Said, Wire};
use store::{Common, Effect, Redis};

const KEY: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Setup {
    pub gateways: usize,
    pub shards: u16,
    pub users: usize,
    pub channels: usize,
    pub clients_max: usize,
    pub ttl_ms: u64,
    /// The mean time between two things that clients do.
    pub pace_ns: u64,
    /// In percent of the clients' actions: come or go.
    pub moves: usize,
}

/// The index of a gateway, over its lives.
pub struct Slot {
    pub gateway: Option<Gateway>,
    pub life: u64,
    /// When the next one starts, if none is there.
    pub start_ns: u64,
}

pub struct World {
    pub setup: Setup,
    pub chance: Chance,
    pub now_ns: u64,
    /// The master.
    pub redis: Redis,
    /// The server that was the master before, and is still there for gateways that have not heard
    /// of the change.
    pub old: Redis,
    /// The number of the master, counted from the first one.
    pub master: u64,
    pub slots: Vec<Slot>,
    pub books: Books,
    wires: Vec<Wire>,
    settings: Arc<Settings>,
    next_action_ns: u64,
    pub next_fault_ns: u64,
    next_snapshot_ns: u64,
    /// The scheduled events.
    pub agenda: BTreeMap<(u64, u64), faults::Later>,
    pub agenda_count: u64,
    pub faults: Vec<faults::Fault>,
    pub faults_seen: BTreeMap<&'static str, u64>,
    interactive: Vec<Spoken>,
    pub reach: sim::reach::Reach,
    effects: Vec<Effect>,
    /// Gateways were killed, at these times.
    pub deaths: Vec<u64>,
    pub slow_sweeps: u64,
    /// Packets of this system that reached another one.
    pub foreign_packets: u64,
    /// So long gateways were at two masters.
    pub split_ns: u64,
}

fn settings() -> Arc<Settings> {
    let mut config = Config::default();
    config.limits.messages_per_second = 0;
    config.limits.connections_per_user = 0;
    config.limits.message_bytes = 2 << 20;
    config.limits.outbox_bytes = 1 << 28;
    config.heartbeat.interval = std::time::Duration::from_secs(100_000);
    config.heartbeat.timeout = config.heartbeat.interval * 3;
    Arc::new(Settings::new(&config, 10_000).unwrap())
}

impl World {
    pub fn new(setup: Setup, chance: Chance) -> Self {
        let mut world = World::of_system(setup, 0, Names::new("sg:", 0), chance);
        world.run_until(world.now_ns + 3_000 * MS);
        world
    }

    /// One of several systems on one server. Nothing runs yet.
    pub fn of_system(setup: Setup, system: usize, names: Names, chance: Chance) -> Self {
        let users = (0..setup.users).map(|user| format!("user{user}"));
        let probers = (0..setup.gateways).map(|slot| format!("prober{slot}"));
        let books = Books {
            users: users.chain(probers).collect(),
            channels: ChannelBooks::new(setup.channels),
            soundness: (0..setup.gateways).map(|_| Soundness::default()).collect(),
            ..Books::default()
        };
        let now_ns = 1_000_000_000;
        World {
            slots: (0..setup.gateways)
                .map(|_| Slot {
                    gateway: None,
                    life: 0,
                    start_ns: now_ns,
                })
                .collect(),
            setup,
            chance,
            now_ns,
            redis: Redis::new(0, system, names.clone()),
            old: Redis::new(1, system, names),
            master: 0,
            books,
            wires: Vec::new(),
            settings: settings(),
            next_action_ns: u64::MAX,
            next_fault_ns: u64::MAX,
            next_snapshot_ns: 0,
            agenda: BTreeMap::new(),
            agenda_count: 0,
            faults: Vec::new(),
            faults_seen: BTreeMap::new(),
            interactive: Vec::new(),
            reach: Default::default(),
            effects: Vec::new(),
            deaths: Vec::new(),
            slow_sweeps: 0,
            foreign_packets: 0,
            split_ns: 0,
        }
    }

    /// Runs for this long with what a server has for all systems, which another system had until
    /// now.
    pub fn run_with(&mut self, common: &mut Common, for_ms: u64) {
        std::mem::swap(&mut self.redis.common, common);
        self.run_until(self.now_ns + for_ms * MS);
        std::mem::swap(&mut self.redis.common, common);
    }

    /// The server that this gateway is connected to.
    fn server<'a>(redis: &'a mut Redis, old: &'a mut Redis, master: u64, link: &Link) -> &'a mut Redis {
        if link.master() == master { redis } else { old }
    }

    /// True if a gateway has not heard yet that there is another master.
    pub fn is_split(&self) -> bool {
        let mut gateways = self.slots.iter().filter_map(|slot| slot.gateway.as_ref());
        gateways.any(|gateway| gateway.link_ref().master() != self.master)
    }

    /// Time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ns / MS
    }

    /// Runs with clients doing things and faults happening for this long.
    pub fn live(&mut self, for_ms: u64) {
        self.begin_life();
        self.run_until(self.now_ns + for_ms * MS);
        self.end_life();
    }

    /// Clients do things and faults happen from now on.
    pub fn begin_life(&mut self) {
        self.next_action_ns = self.now_ns;
        self.next_fault_ns = if self.faults.is_empty() {
            u64::MAX
        } else {
            self.now_ns + 2_000 * MS
        };
    }

    /// They do no more.
    pub fn end_life(&mut self) {
        self.next_action_ns = u64::MAX;
        self.next_fault_ns = u64::MAX;
    }

    /// The same without faults.
    pub fn live_well(&mut self, for_ms: u64) {
        let faults = std::mem::take(&mut self.faults);
        self.live(for_ms);
        self.faults = faults;
    }

    pub fn run_until(&mut self, until_ns: u64) {
        let mut idle = 0;
        let mut before_ns = self.now_ns;
        while self.now_ns < until_ns {
            if self.is_split() {
                self.split_ns += self.now_ns - before_ns;
            }
            before_ns = self.now_ns;
            if self.step() {
                idle = 0;
                self.now_ns += 1_000 * (10 + self.chance.below(300) as u64);
                continue;
            }
            let due_ns = self.next_due_ns().min(until_ns);
            idle = if due_ns > self.now_ns { 0 } else { idle + 1 };
            assert!(idle < 10_000, "nothing happens, yet something is due");
            let least_ns = self.now_ns + 1_000 * (1 + self.chance.below(200) as u64);
            self.now_ns = due_ns.max(least_ns);
        }
    }

    fn next_due_ns(&self) -> u64 {
        let gateways = self.slots.iter().map(|slot| match &slot.gateway {
            Some(gateway) => gateway.next_due_ns(self.now_ns),
            None => slot.start_ns,
        });
        let agenda = self.agenda.keys().next().map_or(u64::MAX, |(at, _)| *at);
        let own = [self.next_action_ns, self.next_fault_ns, agenda];
        let thaw = self.redis.frozen_until_ns;
        let due = gateways.chain(own).min().unwrap_or(u64::MAX);
        // While Redis stands still what waits for it is due all the time.
        if due <= self.now_ns && self.now_ns < thaw {
            self.now_ns + MS
        } else {
            due
        }
    }

    fn step(&mut self) -> bool {
        let now_ns = self.now_ns;
        self.books.channels.now_ns = now_ns;
        let mut busy = false;
        if now_ns >= self.next_snapshot_ns {
            self.redis.snapshot = self.redis.data.clone();
            self.next_snapshot_ns = now_ns + 700 * MS;
        }
        self.follow_agenda();
        if now_ns >= self.next_fault_ns {
            self.fault();
            self.next_fault_ns = now_ns + (500 + self.chance.below(9_000) as u64) * MS;
        }
        // Publications made at once are the first to be lost.
        if let Some(channel) = self.books.channels.opened.take()
            && self.next_action_ns < u64::MAX
        {
            let live = self.live_clients();
            if !live.is_empty() {
                let client = self.chance.pick(&live);
                self.publish(client, channel, true);
            }
        }
        while now_ns >= self.next_action_ns {
            self.act();
            busy = true;
            self.next_action_ns += 1 + self.chance.below(2 * self.setup.pace_ns as usize) as u64;
        }
        busy |= self.serve();
        for slot in 0..self.slots.len() {
            busy |= self.turn(slot);
        }
        self.note_soundness();
        busy
    }

    /// Redis works.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        let mut effects = std::mem::take(&mut self.effects);
        effects.append(&mut self.redis.take_foreign());
        for slot in &mut self.slots {
            if let Some(gateway) = &mut slot.gateway {
                let server = Self::server(&mut self.redis, &mut self.old, self.master, gateway.link_ref());
                busy |= gateway
                    .link()
                    .serve(server, self.now_ns, &mut self.chance, &mut effects);
            }
            effects.append(&mut self.redis.late);
            effects.append(&mut self.old.late);
        }
        for effect in effects.drain(..) {
            let taken = self.slots.iter_mut().any(|slot| {
                let gateway = slot.gateway.as_mut();
                gateway.is_some_and(|gateway| gateway.link().take_effect(&effect, self.now_ns, &mut self.chance))
            });
            let is_packet = effect.is_packet();
            if !taken && self.redis.keep_foreign(effect) && is_packet {
                self.foreign_packets += 1;
            }
        }
        self.effects = effects;
        busy
    }

    fn turn(&mut self, slot: usize) -> bool {
        let now_ns = self.now_ns;
        let place = &mut self.slots[slot];
        let Some(gateway) = &mut place.gateway else {
            if now_ns >= place.start_ns {
                place.life += 1;
                let id = format!("gw-{slot}");
                let (shards, ttl_ms) = (self.setup.shards, self.setup.ttl_ms);
                let link = Link::new(self.master, &mut self.chance);
                let started = Gateway::start(&id, shards, ttl_ms, &self.settings, link, now_ns, &mut self.chance);
                place.gateway = Some(started);
            }
            return true;
        };
        let server = Self::server(&mut self.redis, &mut self.old, self.master, gateway.link_ref());
        let mut busy = gateway.turn_control(server, now_ns, &mut self.chance);
        for shard in 0..gateway.shards.len() {
            if self.chance.percent(90) {
                busy |= {
                    let chance = (&mut self.chance, &mut self.reach);
                    gateway.turn_shard(shard, now_ns, &mut self.wires, chance, &mut self.interactive)
                };
            } else {
                // It is late, so time must not jump.
                busy = true;
            }
        }
        for (wire, said) in std::mem::take(&mut self.interactive) {
            match said {
                // Wires and clients have the same numbers.
                Said::Text(text) => self.books.hear(wire, &text, now_ns),
                Said::Close(_) => self.hang_up(wire),
                Said::Head(101) => {}
                Said::Head(_) => self.books.end(wire, now_ns),
                other => panic!("client {wire} was told {other:?}"),
            }
            self.wires[wire].to_client.clear();
        }
        let gateway = self.slots[slot].gateway.as_ref().expect("it was there");
        if gateway.stage() == Stage::Gone {
            let again_ns = now_ns + (500 + self.chance.below(4_000) as u64) * MS;
            self.remove(slot, again_ns);
        }
        busy
    }

    /// The process of a gateway ends, and its sockets with it.
    pub fn remove(&mut self, slot: usize, again_ns: u64) {
        let now_ns = self.now_ns;
        let place = &mut self.slots[slot];
        let Some(mut gateway) = place.gateway.take() else {
            return;
        };
        place.start_ns = again_ns;
        let server = Self::server(&mut self.redis, &mut self.old, self.master, gateway.link_ref());
        gateway.link().kill(server, now_ns, &mut self.chance);
        let life = place.life;
        for (index, client) in self.books.clients.iter_mut().enumerate() {
            if client.slot == slot && client.life == life && client.ended_ns.is_none() {
                client.ended_ns = Some(now_ns);
                self.wires[index] = Wire::new(0, 0);
            }
        }
    }

    fn note_soundness(&mut self) {
        let now_ns = self.now_ns;
        let redis = &self.redis;
        let calm = !self.is_split() && !redis.oom && now_ns >= redis.silent_until_ns && redis.takes_connections(now_ns);
        for (slot, soundness) in self.slots.iter().zip(&mut self.books.soundness) {
            let sound = slot.gateway.as_ref().is_some_and(|gateway| {
                // One that drains is as good as any, until its last client has gone.
                calm && gateway.is_open()
                    && gateway.link_ref().is_sound(now_ns)
                    && now_ns >= gateway.frozen_until_ns
                    && gateway.shards.iter().all(|shard| now_ns >= shard.stalled_until_ns)
                    && gateway
                        .link_ref()
                        .ear()
                        .is_some_and(|ear| redis.is_reachable(&gateway.id, gateway.incarnation(), ear, now_ns / MS))
            });
            soundness.note(sound, now_ns);
        }
    }

    // Clients.

    /// A client connects to the listener of any shard.
    pub fn connect(&mut self, slot: usize, user: usize) -> Option<usize> {
        let now_ms = self.now_ms();
        let life = self.slots[slot].life;
        let gateway = self.slots[slot].gateway.as_mut().filter(|gateway| gateway.is_open())?;
        let wire = self.wires.len();
        // A token; nothing is ever read from it.
        let token = File::open("/dev/null").unwrap();
        gateway.tokens.insert(token.as_raw_fd(), wire);
        let shard = self.chance.below(gateway.shards.len());
        gateway.shards[shard].sockets.connect(token.into(), wire);
        let mut new = Wire::new(1 << 30, now_ms);
        let head = format!("GET /ws?user={} HTTP/1.1\r\n{KEY}", self.books.users[user]);
        new.to_gateway.extend(head.as_bytes());
        self.wires.push(new);
        Some(self.books.begin(user, slot, life))
    }

    fn frame(&mut self, client: usize, first: u8, payload: &[u8]) {
        let out = &mut self.wires[client].to_gateway;
        out.push_back(first);
        match payload.len() {
            len @ 0..=125 => out.push_back(0x80 | len as u8),
            len @ 126..=0xffff => {
                out.push_back(0x80 | 126);
                out.extend((len as u16).to_be_bytes());
            }
            len => {
                out.push_back(0x80 | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        // A mask of zeros.
        out.extend([0; 4]);
        out.extend(payload);
    }

    /// Sends a message that wants an ack.
    pub fn message(&mut self, client: usize, to: usize) -> usize {
        self.long_message(client, to, 0)
    }

    /// The same, with so many spaces in it.
    pub fn long_message(&mut self, client: usize, to: usize, spaces: usize) -> usize {
        let number = self.books.messages.len();
        let to_name = &self.books.users[to];
        let spaces = " ".repeat(spaces);
        let content = format!("[{number}{spaces}]");
        let text = format!(r#"{{"type":"message","to":"{to_name}","content":{content},"id":"m{number}"}}"#);
        self.frame(client, 0x81, text.as_bytes());
        self.books.messages.push(books::Message {
            sender: client,
            to,
            sent_ns: self.now_ns,
            queued_to: Vec::new(),
            ack: None,
        });
        number
    }

    /// Sends a presence query.
    pub fn ask(&mut self, client: usize, asked: BTreeSet<usize>) -> usize {
        let number = self.books.queries.len();
        let names: Vec<String> = asked
            .iter()
            .map(|user| format!("\"{}\"", self.books.users[*user]))
            .collect();
        let names = names.join(",");
        let text = format!(r#"{{"type":"presence","users":[{names}],"id":"p{number}"}}"#);
        self.frame(client, 0x81, text.as_bytes());
        self.books.queries.push(books::Query {
            asker: client,
            asked,
            sent_ns: self.now_ns,
            answer: None,
        });
        number
    }

    /// The gateway closed: so does the client.
    fn hang_up(&mut self, client: usize) {
        self.books.end(client, self.now_ns);
        if !self.wires[client].client_fin {
            self.frame(client, 0x88, &[]);
            self.wires[client].client_fin = true;
        }
    }

    /// A client goes, in one of the ways in which clients go.
    pub fn leave(&mut self, client: usize) {
        self.books.end(client, self.now_ns);
        match self.chance.below(3) {
            0 => self.wires[client].reset = true,
            1 => self.wires[client].client_fin = true,
            _ => {
                self.frame(client, 0x88, &[]);
                self.wires[client].client_fin = true;
            }
        }
    }

    pub fn live_clients(&self) -> Vec<usize> {
        let clients = self.books.clients.iter().enumerate();
        clients
            .filter(|(_, client)| client.is_live())
            .map(|(index, _)| index)
            .collect()
    }

    /// One client does something.
    fn act(&mut self) {
        let live = self.live_clients();
        // Clients with notice go, most of them.
        let leaver = live
            .iter()
            .copied()
            .find(|client| self.books.clients[*client].told_to_go);
        if let Some(leaver) = leaver
            && self.chance.percent(20)
        {
            return self.leave(leaver);
        }
        let moves = self.chance.percent(self.setup.moves);
        if live.is_empty() || moves {
            if live.len() < 2 || (live.len() < self.setup.clients_max && self.chance.percent(60)) {
                let slot = self.chance.below(self.slots.len());
                let user = self.chance.below(self.setup.users);
                self.connect(slot, user);
            } else {
                let leaver = self.chance.pick(&live);
                self.leave(leaver);
                if self.chance.percent(50) {
                    // It comes back somewhere else.
                    let slot = self.chance.below(self.slots.len());
                    self.connect(slot, self.books.clients[leaver].user);
                }
            }
            return;
        }
        let client = self.chance.pick(&live);
        if self.setup.channels > 0 && self.chance.percent(50) {
            return self.act_on_channel(client);
        }
        if self.chance.percent(10) {
            let asked = (0..self.setup.users).filter(|_| self.chance.percent(50)).collect();
            let asked: BTreeSet<usize> = asked;
            if !asked.is_empty() {
                self.ask(client, asked);
            }
            return;
        }
        for _ in 0..1 + self.chance.below(3) {
            let to = self.chance.below(self.setup.users);
            self.message(client, to);
        }
    }

    // The end.

    /// Faults are over and clients start nothing new: after a while all is as it should be.
    pub fn settle(&mut self) {
        self.end_faults();
        self.run_until(self.now_ns + (self.setup.ttl_ms + 12_000) * MS);
        assert!(self.agenda.is_empty(), "faults are over");
        for slot in &self.slots {
            let serves = slot.gateway.as_ref().is_some_and(Gateway::is_serving);
            assert!(
                serves,
                "{:?}",
                slot.gateway
                    .as_ref()
                    .map(|g| (&g.id, g.stage(), g.shared.cluster.health()))
            );
        }
        self.check();
    }

    /// Looks at everything.
    pub fn check(&mut self) {
        self.books.check(self.now_ns);
        self.books.check_channels();
        self.check_partitions();
        self.check_presence();
        if self.has_dead() {
            // The gateway with the claim did not finish the sweep: others may after a minute.
            self.slow_sweeps += 1;
            self.run_until(self.now_ns + 70_000 * MS);
        }
        self.check_store();
        self.check_residue();
    }

    fn check_presence(&mut self) {
        let count = self.slots.len();
        let probers: Vec<usize> = (0..count)
            .map(|slot| self.connect(slot, self.setup.users + slot).expect("open"))
            .collect();
        self.run_until(self.now_ns + 1_500 * MS);
        let everybody: BTreeSet<usize> = (0..self.books.users.len()).collect();
        let queries: Vec<usize> = probers
            .iter()
            .map(|prober| self.ask(*prober, everybody.clone()))
            .collect();
        self.run_until(self.now_ns + 1_500 * MS);
        let there: BTreeSet<usize> = self
            .live_clients()
            .iter()
            .map(|c| self.books.clients[*c].user)
            .collect();
        for (slot, query) in queries.into_iter().enumerate() {
            let answer = self.books.queries[query].answer.as_ref();
            let (answer, _) = answer.unwrap_or_else(|| panic!("{slot} does not answer"));
            let answer = answer.as_ref().unwrap_or_else(|| panic!("{slot} refuses to answer"));
            for (user, online) in answer {
                assert_eq!(
                    *online,
                    there.contains(user),
                    "is user {user} there? asked on {slot} at {} ms",
                    self.now_ms()
                );
            }
        }
        for prober in probers {
            self.leave(prober);
        }
        self.run_until(self.now_ns + 1_500 * MS);
    }

    /// True if a gateway that is no more is still to be swept.
    fn has_dead(&self) -> bool {
        let lives: BTreeSet<_> = self
            .slots
            .iter()
            .filter_map(|slot| Some(slot.gateway.as_ref()?.incarnation()))
            .collect();
        self.redis.data.directory.keys().any(|life| !lives.contains(life))
    }

    fn check_store(&mut self) {
        let mut model: BTreeMap<(usize, usize), u32> = BTreeMap::new();
        for client in self.live_clients() {
            let client = &self.books.clients[client];
            *model.entry((client.user, client.slot)).or_default() += 1;
        }
        let lives: BTreeMap<_, _> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, place)| Some((place.gateway.as_ref()?.incarnation(), slot)))
            .collect();
        let data = &self.redis.data;
        let mut written = BTreeMap::new();
        for (user, owners) in &data.users {
            for (owner, count) in owners {
                let number = self
                    .books
                    .users
                    .iter()
                    .position(|name| **name == **user)
                    .expect("a user");
                match lives.get(owner) {
                    Some(slot) => {
                        written.insert((number, *slot), *count);
                    }
                    None => self.check_stray(user, *owner),
                }
            }
        }
        assert_eq!(written, model, "who is written down, at {} ms", self.now_ms());
        for (owner, users) in &data.indices {
            let slot = lives.get(owner);
            assert!(slot.is_some(), "an index of dead {owner} is left: {users:?}");
        }
        for (owner, id) in &data.directory {
            assert!(lives.contains_key(owner), "dead {owner} of {id} is in the directory");
        }
    }

    /// An entry of a dead gateway: it may only be there if it never was in an index.
    fn check_stray(&self, user: &str, owner: shardgate::cluster::store::Incarnation) {
        assert!(
            !self.deaths.is_empty(),
            "{user} is still written down for dead {owner}, at {} ms",
            self.now_ms()
        );
    }

    fn check_residue(&self) {
        for slot in &self.slots {
            let gateway = slot.gateway.as_ref().expect("it serves");
            assert_eq!(gateway.cluster().residue(), Default::default(), "{}", gateway.id);
            for shard in &gateway.shards {
                let residue = shard.real.core.residue();
                assert_eq!((residue.questions, residue.asked), (0, 0), "{}", gateway.id);
            }
        }
    }

    /// Everybody goes: nothing is left.
    pub fn check_empty(&mut self) {
        for client in self.live_clients() {
            self.leave(client);
        }
        // Partitions stay subscribed for ten seconds longer than they are wanted.
        self.run_until(self.now_ns + 12_000 * MS);
        self.check();
        for slot in &self.slots {
            let gateway = slot.gateway.as_ref().expect("it serves");
            for shard in &gateway.shards {
                assert_eq!(shard.real.core.residue(), Default::default(), "{}", gateway.id);
                assert!(shard.sockets.is_empty());
            }
            for (from, to, depth) in gateway.shared.lanes() {
                assert_eq!(depth, 0, "{}: lane {from} to {to}", gateway.id);
            }
        }
    }
}
