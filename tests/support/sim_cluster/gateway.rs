//! One gateway: real cores, real lanes, the real rules of the cluster; the engine and the way to Redis are models.
//!
//! Turns shards as `shard::run` does and the control thread as `control::run` and `control::link` do.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardgate::cluster::store::Incarnation;
use shardgate::cluster::{Cluster, Identity, Subscription};
use shardgate::engine::Waker;
use shardgate::ids::ShardId;
use shardgate::lanes::{self, Inbox, Inboxes, Lanes, LifecycleToShard, Mailboxes, ToControl, ToShard};
use shardgate::router::HomeMap;
use shardgate::session::drain::DrainPlan;
use shardgate::settings::Settings;
use shardgate::shard::core::{Command, Core};
use shardgate::shared::{Now, Shared};

use super::link::{Link, MS};
use super::sim::chance::Chance;
use super::sim::engine::{Happened, ModelEngine, Tokens};
use super::sim::wire::{Said, Wire};
use super::store::Redis;

/// As `control::link` has them.
const LEAVE_MAX_NS: u64 = 2_000 * MS;
const FINISH_MAX_NS: u64 = 500 * MS;
/// A control thread that wants another turn at once, this many times over, burns a core.
const SPINS_MAX: u32 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Joining,
    Serving,
    /// Until this time at the latest.
    Draining(u64),
    Migrating(u64),
    Finishing(u64),
    Gone,
}

pub struct Shard {
    pub core: Core,
    pub inbox: Inbox<ToShard>,
    pub engine: ModelEngine,
    commands: Vec<Command>,
    pub stalled_until_ns: u64,
}

/// Something that a core said on a wire.
pub type Spoken = (usize, Said);

pub struct Gateway {
    pub id: String,
    pub phase: Phase,
    pub cluster: Cluster,
    pub link: Link,
    pub shared: Arc<Shared>,
    pub shards: Vec<Shard>,
    pub control_inbox: Inbox<ToControl>,
    mailboxes: Mailboxes,
    pub tokens: Tokens,
    /// Its control thread, or all of it, stands still.
    pub frozen_until_ns: u64,
    wall_offset_ms: u64,
    due_ms: Option<u64>,
    spins: u32,
    pub joining_since_ns: u64,
}

impl Gateway {
    pub fn start(
        id: &str,
        shards: u16,
        ttl_ms: u64,
        settings: &Arc<Settings>,
        now_ns: u64,
        chance: &mut Chance,
    ) -> Self {
        let Inboxes {
            shards: inboxes,
            control: control_inbox,
            senders,
            depths,
        } = lanes::inboxes(shards);
        let cpus = vec![None; usize::from(shards)];
        let shared = Arc::new(Shared::new(id.into(), true, "model", cpus, Arc::clone(&depths)));
        let wakers = (0..shards).map(|_| Waker::inert().unwrap()).collect();
        let mailboxes = lanes::mailboxes(senders, wakers, Some(Waker::inert().unwrap()));
        let homes = HomeMap::new(shards, [chance.below(256) as u8; 16]);
        // Hosts' clocks do not agree.
        let wall_offset_ms = 1_700_000_000_000 + chance.below(3_000) as u64;
        let now = Now {
            mono_ns: now_ns,
            wall_ms: wall_offset_ms + now_ns / MS,
        };
        let identity = Identity {
            id: id.into(),
            seed: u64::from(chance.word()),
            ttl_ms,
        };
        let cluster = Cluster::new(&identity, homes.clone(), Arc::clone(&shared), now);
        let shards = inboxes.into_iter().enumerate().map(|(shard, inbox)| {
            let lanes = Lanes::new(ShardId(shard as u16), mailboxes.clone(), Arc::clone(&depths));
            let seed = u64::from(chance.word());
            let (shared, settings) = (Arc::clone(&shared), Arc::clone(settings));
            Shard {
                core: Core::new(shared, settings, homes.clone(), lanes, seed),
                inbox,
                engine: ModelEngine::default(),
                commands: Vec::new(),
                stalled_until_ns: 0,
            }
        });
        Gateway {
            id: id.into(),
            phase: Phase::Joining,
            cluster,
            shards: shards.collect(),
            link: Link::new(chance),
            shared,
            control_inbox,
            mailboxes,
            tokens: BTreeMap::new(),
            frozen_until_ns: 0,
            wall_offset_ms,
            due_ms: None,
            spins: 0,
            joining_since_ns: now_ns,
        }
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// Clients may be connected.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining(_))
    }

    pub fn incarnation(&self) -> Incarnation {
        self.cluster.incarnation()
    }

    fn now(&self, now_ns: u64) -> Now {
        Now {
            mono_ns: now_ns,
            wall_ms: self.wall_offset_ms + now_ns / MS,
        }
    }

    pub fn next_due_ns(&self, now_ns: u64) -> u64 {
        let control = self.due_ms.map_or(u64::MAX, |ms| ms * MS).min(self.link.due_ns());
        let control = control.max(self.frozen_until_ns);
        let shards = self.shards.iter().map(|shard| {
            let due = shard.core.next_timeout_ms().map_or(u64::MAX, |ms| ms * MS);
            let idle = shard.inbox.is_empty() && !shard.core.has_more();
            let work = if idle { u64::MAX } else { now_ns };
            due.min(work).max(shard.stalled_until_ns)
        });
        let inbox = if self.control_inbox.is_empty() {
            u64::MAX
        } else {
            now_ns
        };
        let phase = match self.phase {
            Phase::Draining(at) | Phase::Migrating(at) | Phase::Finishing(at) => at,
            _ => u64::MAX,
        };
        shards
            .min()
            .unwrap_or(u64::MAX)
            .min(control)
            .min(phase)
            .min(inbox.max(self.frozen_until_ns))
    }

    /// One turn of the control thread, if there is anything to do.
    pub fn turn_control(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) -> bool {
        if now_ns < self.frozen_until_ns || self.phase == Phase::Gone {
            return false;
        }
        let due = self.due_ms.is_none_or(|due_ms| due_ms * MS <= now_ns);
        let phase_due = match self.phase {
            Phase::Draining(_) => true,
            Phase::Migrating(at) | Phase::Finishing(at) => now_ns >= at,
            _ => false,
        };
        if !due && !phase_due && self.link.due_ns() > now_ns && self.control_inbox.is_empty() {
            return false;
        }
        self.cluster.begin_turn(self.now(now_ns));
        let mut busy = false;
        while let Some(batch) = self.control_inbox.try_next() {
            busy = true;
            let room = batch.room();
            self.cluster.handle_batch(batch);
            if let Some(room) = room {
                self.control_inbox.done(room);
            }
        }
        self.link.work(redis, now_ns, chance);
        while let Some(event) = self.link.next_event() {
            busy = true;
            self.cluster.handle_event(event);
        }
        while let Some(command) = self.cluster.poll_command() {
            self.mailboxes.post_all(|| command.clone());
        }
        self.cluster.end_turn();
        while let Some(subscription) = self.cluster.poll_subscription() {
            busy = true;
            match subscription {
                Subscription::Begin(channel) => self.link.subscribe(channel, now_ns, chance),
                Subscription::End(channel) => self.link.unsubscribe(&channel, now_ns, chance),
                Subscription::Renew(_) => {
                    self.link.lose_ears(redis, now_ns, chance);
                    self.link.lose_commands(redis, now_ns, chance);
                }
            }
        }
        while let Some(request) = self.cluster.poll_request() {
            busy = true;
            self.link.submit(request, now_ns, chance);
        }
        self.due_ms = self.cluster.poll_timeout();
        let at_once = !busy && self.due_ms.is_some_and(|due_ms| due_ms * MS <= now_ns);
        self.spins = if at_once { self.spins + 1 } else { 0 };
        assert!(
            self.spins < SPINS_MAX,
            "{}: the control thread spins: due at {:?} ms, {} ms now, {:?}, {:?}",
            self.id,
            self.due_ms,
            now_ns / MS,
            self.phase,
            self.shared.cluster.health(),
        );
        self.follow_phase(now_ns);
        busy
    }

    fn follow_phase(&mut self, now_ns: u64) {
        match self.phase {
            Phase::Joining if self.cluster.is_member() => {
                let me = lanes::control_id(self.shards.len() as u16);
                let lanes = Lanes::new(me, self.mailboxes.clone(), Arc::clone(&self.shared.depths));
                self.cluster.attach(lanes);
                self.phase = Phase::Serving;
                self.due_ms = None;
            }
            Phase::Draining(at) => {
                let quiet = self.shards.iter().all(|shard| {
                    let count = shard.core.drain_count();
                    count.is_some_and(|count| count.open == 0) && !shard.core.has_unfinished_sockets()
                });
                if now_ns >= at || (quiet && self.shared.places() == 0) {
                    self.cluster.leave();
                    self.due_ms = None;
                    self.phase = Phase::Migrating(now_ns + LEAVE_MAX_NS);
                }
            }
            Phase::Migrating(at) if self.cluster.has_left() || !self.cluster.is_member() || now_ns >= at => {
                self.cluster.finish();
                self.due_ms = None;
                self.phase = Phase::Finishing(now_ns + FINISH_MAX_NS);
            }
            Phase::Finishing(at) if self.cluster.is_idle() || !self.cluster.is_member() || now_ns >= at => {
                self.phase = Phase::Gone;
            }
            _ => {}
        }
    }

    pub fn begin_drain(&mut self, now_ns: u64, within_ms: u64, per_second: u32) {
        assert!(self.shared.begin_draining());
        self.due_ms = None;
        let now_ms = now_ns / MS;
        let plan = DrainPlan::new(self.shared.connections(), now_ms, within_ms, per_second);
        self.mailboxes.post_all(|| LifecycleToShard::Drain(plan));
        self.phase = Phase::Draining((now_ms + within_ms + 1_000) * MS);
    }

    /// One turn of one shard, if there is anything to do.
    pub fn turn_shard(
        &mut self,
        shard: usize,
        now_ns: u64,
        wires: &mut [Wire],
        chance: &mut Chance,
        interactive: &mut Vec<Spoken>,
    ) -> bool {
        let now = self.now(now_ns);
        let tokens = &mut self.tokens;
        let Shard {
            core,
            inbox,
            engine,
            commands,
            stalled_until_ns,
        } = &mut self.shards[shard];
        if now_ns < *stalled_until_ns {
            return false;
        }
        let moved = engine.work(wires, tokens, chance, true);
        let due = core.next_timeout_ms().is_some_and(|due_ms| due_ms * MS <= now_ns);
        if !moved && !due && inbox.is_empty() && !core.has_more() {
            return false;
        }
        core.begin_turn(now);
        while let Some(event) = engine.next_event() {
            match event {
                Happened::Accepted(key) => core.handle_accepted(key, None),
                Happened::Received(key, mut bytes) => core.handle_received(key, &mut bytes),
                Happened::Sent(key, payload) => core.handle_sent(key, payload),
                Happened::Ended(key, broken) => core.handle_ended(key, broken),
                Happened::Closed(key) => core.handle_closed(key),
            }
        }
        let budget = 1 + chance.below(64);
        let mut items = 0;
        while items < budget
            && let Some(batch) = inbox.try_next()
        {
            let room = batch.room();
            items += core.handle_batch(batch);
            if let Some(room) = room {
                inbox.done(room);
            }
        }
        core.handle_timeouts();
        core.fan_out();
        core.serve_strangers();
        loop {
            while core.poll_command(commands) {
                for command in commands.drain(..) {
                    match command {
                        Command::ReceiveOnce(key) => engine.receive_once(key),
                        Command::ReceiveStream(key) => engine.receive_stream(key),
                        Command::Finish(key) => engine.finish(key, wires),
                        Command::Close(key) | Command::Reset(key) => engine.close(key),
                        Command::Abandon(key) => {
                            core.handle_unacknowledged(key, 1);
                            engine.close(key);
                        }
                        Command::Detach(key) => {
                            if let Some(socket) = engine.detach(key) {
                                core.handle_detached(key, socket);
                            }
                        }
                        Command::Adopt(mut hand_off) => {
                            if let Some(socket) = hand_off.socket.take() {
                                let key = engine.adopt(socket, tokens);
                                core.handle_adopted(key, *hand_off);
                            }
                        }
                    }
                }
            }
            let mut sent_any = false;
            while let Some(key) = core.poll_dirty() {
                while let Some(payload) = core.poll_payload(key) {
                    if let Some(index) = engine.wire_of(key) {
                        let said = wires[index].said.push(payload.as_slice());
                        interactive.extend(said.into_iter().map(|said| (index, said)));
                    }
                    match engine.send(key, payload, wires, chance) {
                        None => break,
                        Some(payload) => core.handle_sent(key, payload),
                    }
                }
                sent_any = true;
            }
            if !sent_any {
                break;
            }
        }
        core.flush_lanes();
        core.end_turn(now_ns, now_ns);
        core.check_invariants();
        true
    }
}
