//! The clock of one turn, in which time passes with each look at it.

use std::cell::Cell;

use shardgate::ids::ShardId;
use shardgate::shard::turn::Surroundings;
use shardgate::shared::Now;

pub struct ModelClock {
    now: Now,
    mono_ns: Cell<u64>,
    step_ns: u64,
}

impl ModelClock {
    /// Each look takes `step_ns`.
    pub fn new(now: Now, step_ns: u64) -> Self {
        ModelClock {
            now,
            mono_ns: Cell::new(now.mono_ns),
            step_ns,
        }
    }
}

impl Surroundings for ModelClock {
    fn now(&self) -> Now {
        self.now
    }

    fn mono_ns(&self) -> u64 {
        self.mono_ns.set(self.mono_ns.get() + self.step_ns);
        self.mono_ns.get()
    }

    /// Shards have their turns anyhow.
    fn wake(&self, _: ShardId) {}
}
