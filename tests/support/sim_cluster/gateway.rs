//! One gateway: real cores, real lanes, the real turn of the control thread; the engine and the way
//! to Redis are models.
//!
//! Shards have production's own turn, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shardgate::cluster::store::Incarnation;
use shardgate::cluster::{Cluster, Identity};
use shardgate::config::DrainConfig;
use shardgate::control::turn::{ControlTurn, Exit, Stage};
use shardgate::engine::Waker;
use shardgate::ids::ShardId;
use shardgate::lanes::mailbox::{Mailboxes, mailboxes};
use shardgate::lanes::{self, Inboxes};
use shardgate::router::HomeMap;
use shardgate::settings::Settings;
use shardgate::shard::core::Core;
use shardgate::shard::turn::Shard;
use shardgate::shared::{Now, Shared};

use super::link::{Link, MS};
use super::sim::chance::Chance;
use super::sim::clock::ModelClock;
use super::sim::engine::{ModelEngine, Mood, Sockets, Tokens};
use super::sim::reach::Reach;
use super::sim::wire::{Said, Wire};
use super::store::Redis;

/// A control thread that wants another turn at once, this many times over, burns a core.
const SPINS_MAX: u32 = 50;
/// How long a gateway may try to join before its process gives up, and is started again.
const START_MAX_MS: u64 = 15_000;

/// A shard and its part of the kernel.
pub struct ModelShard {
    pub real: Shard,
    pub sockets: Sockets,
    pub stalled_until_ns: u64,
}

/// A frame of a core on a wire.
pub type Spoken = (usize, Said);

pub struct Gateway {
    pub id: String,
    turn: ControlTurn<Link>,
    pub shared: Arc<Shared>,
    pub shards: Vec<ModelShard>,
    mailboxes: Mailboxes,
    pub tokens: Tokens,
    /// Its control thread, or all of it, stands still.
    pub frozen_until_ns: u64,
    wall_offset_ms: u64,
    due_ms: Option<u64>,
    drain_ordered: Option<DrainConfig>,
    spins: u32,
    join_until_ms: u64,
}

impl Gateway {
    pub fn start(
        id: &str,
        shards: u16,
        ttl_ms: u64,
        settings: &Arc<Settings>,
        link: Link,
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
        let mailboxes = mailboxes(senders, wakers, Some(Waker::inert().unwrap()));
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
            let lanes = mailboxes.lanes(ShardId(shard as u16), &depths);
            let seed = u64::from(chance.word());
            let (shared, settings) = (Arc::clone(&shared), Arc::clone(settings));
            let core = Core::new(shared, settings, homes.clone(), lanes, seed);
            ModelShard {
                real: Shard::new(core, inbox),
                sockets: Sockets::default(),
                stalled_until_ns: 0,
            }
        });
        let shards = shards.collect();
        let cluster = Some((cluster, link));
        Gateway {
            id: id.into(),
            turn: ControlTurn::new(Arc::clone(&shared), control_inbox, cluster, now),
            shards,
            shared,
            mailboxes,
            tokens: BTreeMap::new(),
            frozen_until_ns: 0,
            wall_offset_ms,
            due_ms: None,
            drain_ordered: None,
            spins: 0,
            join_until_ms: now_ns / MS + START_MAX_MS,
        }
    }

    pub fn stage(&self) -> Stage {
        self.turn.stage()
    }

    pub fn is_serving(&self) -> bool {
        self.stage() == Stage::Serving
    }

    /// Clients may be connected.
    pub fn is_open(&self) -> bool {
        matches!(self.stage(), Stage::Serving | Stage::Draining { .. })
    }

    pub fn cluster(&self) -> &Cluster {
        self.turn.cluster().expect("one of several")
    }

    pub fn link(&mut self) -> &mut Link {
        self.turn.store_mut().expect("one of several")
    }

    pub fn link_ref(&self) -> &Link {
        self.turn.store().expect("one of several")
    }

    pub fn incarnation(&self) -> Incarnation {
        self.cluster().incarnation()
    }

    fn now(&self, now_ns: u64) -> Now {
        Now {
            mono_ns: now_ns,
            wall_ms: self.wall_offset_ms + now_ns / MS,
        }
    }

    pub fn next_due_ns(&self, now_ns: u64) -> u64 {
        let control = self.due_ms.map_or(u64::MAX, |ms| ms * MS).min(self.link_ref().due_ns());
        let control = control.max(self.frozen_until_ns);
        let shards = self.shards.iter().map(|shard| {
            let due = shard.real.next_due_ms().map_or(u64::MAX, |ms| ms * MS);
            let idle = shard.real.inbox().is_empty() && !shard.real.core.has_more();
            let work = if idle { u64::MAX } else { now_ns };
            due.min(work).max(shard.stalled_until_ns)
        });
        let inbox = if self.has_mail() { now_ns } else { u64::MAX };
        shards
            .min()
            .unwrap_or(u64::MAX)
            .min(control)
            .min(inbox.max(self.frozen_until_ns))
    }

    /// Other threads have mail for the control thread.
    fn has_mail(&self) -> bool {
        !self.turn.is_inbox_empty() || self.drain_ordered.is_some()
    }

    /// One turn of the control thread, if there is anything to do.
    pub fn turn_control(&mut self, redis: &mut Redis, now_ns: u64, chance: &mut Chance) -> bool {
        if now_ns < self.frozen_until_ns || self.stage() == Stage::Gone {
            return false;
        }
        let due = self.due_ms.is_none_or(|due_ms| due_ms * MS <= now_ns);
        if !due && self.link_ref().due_ns() > now_ns && !self.has_mail() {
            return false;
        }
        self.link().work(redis, now_ns, chance);
        let mut busy = self.turn.begin(self.now(now_ns));
        let before = self.stage();
        if let Some(drain) = self.drain_ordered.take() {
            self.turn.begin_drain(&drain);
        }
        if before == Stage::Joining {
            match self.turn.has_joined(self.join_until_ms) {
                Ok(true) => self.turn.attach(&self.mailboxes),
                Ok(false) => {}
                Err(_) => self.turn.finish(Exit::Broken),
            }
        }
        self.due_ms = self.turn.end();
        busy |= self.stage() != before || self.link_ref().has_calls();
        self.link().work(redis, now_ns, chance);
        let at_once = !busy && self.due_ms.is_some_and(|due_ms| due_ms * MS <= now_ns);
        self.spins = if at_once { self.spins + 1 } else { 0 };
        assert!(
            self.spins < SPINS_MAX,
            "{}: the control thread spins: due at {:?} ms, {} ms now, {:?}, {:?}",
            self.id,
            self.due_ms,
            now_ns / MS,
            self.stage(),
            self.shared.cluster.health(),
        );
        busy
    }

    pub fn begin_drain(&mut self, within_ms: u64, per_second: u32) {
        self.drain_ordered = Some(DrainConfig {
            timeout: Duration::from_millis(within_ms),
            per_second,
        });
    }

    /// One turn of one shard, if there is anything to do.
    pub fn turn_shard(
        &mut self,
        shard: usize,
        now_ns: u64,
        wires: &mut [Wire],
        (chance, reach): (&mut Chance, &mut Reach),
        interactive: &mut Vec<Spoken>,
    ) -> bool {
        let now = self.now(now_ns);
        let here = &mut self.shards[shard];
        if now_ns < here.stalled_until_ns {
            return false;
        }
        let due = here.real.next_due_ms().is_some_and(|due_ms| due_ms * MS <= now_ns);
        let idle = here.real.inbox().is_empty() && !here.real.core.has_more();
        if !due && idle && !here.sockets.has_work(wires) {
            return false;
        }
        here.real.pace.inbox_items = 1 + chance.below(64);
        let kernel = (wires, &mut self.tokens);
        let now_ms = now_ns / MS;
        let mut engine = ModelEngine::new(&mut here.sockets, kernel, (chance, reach), Mood::Eager, now_ms);
        let clock = ModelClock::new(now, 0);
        here.real
            .turn(&mut engine, &clock, None)
            .expect("the model does not break");
        interactive.append(&mut engine.said);
        here.real.core.check_invariants();
        true
    }
}
