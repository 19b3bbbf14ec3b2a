//! The faults.

use super::World;
use super::link::MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Redis starts again without data.
    RestartEmpty,
    /// Redis starts again with its data of a moment ago.
    RestartOld,
    /// Discovery leads to another master, a replica that has not got the last writes. Half of the
    /// gateways hear of it later.
    Move,
    /// One gateway's connection for commands, or both, break and stay away.
    Cut,
    /// One gateway's connection for look-ups breaks and stays away.
    CutLookups,
    /// One gateway's connection for subscriptions breaks and stays away.
    Deaf,
    /// The same, unnoticed for a while.
    HalfDead,
    /// Packets to one gateway get lost.
    Lossy,
    /// One gateway's way to Redis is slow.
    Slow,
    /// Redis stands still.
    Freeze,
    /// Redis refuses to write.
    Oom,
    /// Redis refuses to publish in partitions.
    Silent,
    /// Redis ends subscriptions of one gateway.
    Astray,
    /// A gateway is killed and started again.
    Kill,
    /// A gateway drains and is started again.
    Drain,
    /// A gateway's control thread stands still.
    Stall,
    /// A shard stands still.
    StallShard,
    /// Redis loses a user's key: it is deleted or evicted.
    LoseUser,
    /// All shards of a gateway stand still until faults end. Not among those that come by chance.
    StallShards,
}

impl Fault {
    pub const ALL: [Fault; 18] = [
        Fault::RestartEmpty,
        Fault::RestartOld,
        Fault::Move,
        Fault::Cut,
        Fault::CutLookups,
        Fault::Deaf,
        Fault::HalfDead,
        Fault::Lossy,
        Fault::Slow,
        Fault::Freeze,
        Fault::Oom,
        Fault::Silent,
        Fault::Astray,
        Fault::Kill,
        Fault::Drain,
        Fault::Stall,
        Fault::StallShard,
        Fault::LoseUser,
    ];

    fn name(self) -> &'static str {
        const NAMES: [&str; 19] = [
            "restart empty",
            "restart old",
            "move",
            "cut",
            "cut look-ups",
            "deaf",
            "half dead",
            "lossy",
            "slow",
            "freeze",
            "oom",
            "silent",
            "astray",
            "kill",
            "drain",
            "stall",
            "stall shard",
            "lose user",
            "stall shards",
        ];
        NAMES[self as usize]
    }
}

/// The ends of lasting faults.
#[derive(Debug, Clone, Copy)]
pub enum Later {
    Fast(usize),
    Memory,
    /// A gateway hears that there is another master.
    Follow(usize),
}

impl World {
    fn later(&mut self, after_ns: u64, what: Later) {
        self.agenda_count += 1;
        self.agenda.insert((self.now_ns + after_ns, self.agenda_count), what);
    }

    pub fn follow_agenda(&mut self) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now_ns
        {
            match entry.remove() {
                Later::Fast(slot) => {
                    if let Some(gateway) = &mut self.slots[slot].gateway {
                        gateway.link().slow_down(0);
                    }
                }
                Later::Memory => self.redis.oom = false,
                Later::Follow(slot) => self.follow_master(slot),
            }
        }
    }

    /// All lasting faults end; gateways that are gone come back soon.
    pub fn end_faults(&mut self) {
        let now_ns = self.now_ns;
        self.redis.oom = false;
        self.redis.silent_until_ns = 0;
        self.redis.down_until_ns = self.redis.down_until_ns.min(now_ns);
        self.redis.frozen_until_ns = self.redis.frozen_until_ns.min(now_ns);
        self.agenda.clear();
        for slot in 0..self.slots.len() {
            self.follow_master(slot);
        }
        for slot in &mut self.slots {
            slot.start_ns = slot.start_ns.min(now_ns + 4_000 * MS);
            let Some(gateway) = &mut slot.gateway else { continue };
            gateway.frozen_until_ns = gateway.frozen_until_ns.min(now_ns);
            gateway.link().end_faults();
            for shard in &mut gateway.shards {
                shard.stalled_until_ns = shard.stalled_until_ns.min(now_ns);
            }
        }
    }

    /// Short more often than long, up to `max_ms`.
    fn spell_ns(&mut self, max_ms: usize) -> u64 {
        let max_ms = if self.chance.percent(60) { max_ms / 5 } else { max_ms };
        (20 + self.chance.below(max_ms) as u64) * MS
    }

    /// One of the faults that this run is about.
    pub fn fault(&mut self) {
        let fault = self.chance.pick(&self.faults);
        let slot = self.chance.below(self.slots.len());
        self.begin_fault(fault, slot);
    }

    pub fn begin_fault(&mut self, fault: Fault, slot: usize) {
        *self.faults_seen.entry(fault.name()).or_default() += 1;
        if std::env::var_os("SIM_TRACE").is_some() {
            eprintln!("{} ms: {fault:?} {slot}", self.now_ms());
        }
        let now_ns = self.now_ns;
        let lease_ms = self.setup.ttl_ms as usize;
        match fault {
            Fault::RestartEmpty | Fault::RestartOld => {
                let data = if fault == Fault::RestartOld {
                    self.redis.snapshot.clone()
                } else {
                    Default::default()
                };
                let down_ns = self.spell_ns(4_000);
                self.break_everything();
                self.redis.restart(data, now_ns + down_ns);
                return;
            }
            Fault::Move => return self.move_master(),
            Fault::Freeze => {
                let spell_ns = self.spell_ns(5_000);
                self.redis.frozen_until_ns = now_ns + spell_ns;
                self.books.frozen.push((now_ns, now_ns + spell_ns));
                return;
            }
            Fault::Oom => {
                self.redis.oom = true;
                let spell_ns = self.spell_ns(10_000);
                self.later(spell_ns, Later::Memory);
                return;
            }
            Fault::LoseUser => {
                let users: Vec<_> = self.redis.data.users.keys().cloned().collect();
                if !users.is_empty() {
                    let user = &users[self.chance.below(users.len())];
                    let mut effects = Vec::new();
                    self.redis.lose_user(user, &mut effects);
                    self.redis.late.append(&mut effects);
                    let until_ns = now_ns + 4 * self.setup.ttl_ms * MS + super::books::RECOVERY_NS;
                    self.books.lose(user, now_ns, until_ns);
                }
                return;
            }
            Fault::Silent => {
                let spell_ns = self.spell_ns(3_000);
                self.redis.silent_until_ns = now_ns + spell_ns;
                return;
            }
            _ => {}
        }
        let spell_ns = match fault {
            Fault::Lossy => self.spell_ns(500),
            Fault::Slow | Fault::StallShard => self.spell_ns(3_000),
            // Long enough to lose the lease now and then.
            _ => self.spell_ns(lease_ms),
        };
        if fault == Fault::Kill {
            if self.slots[slot].gateway.is_some() {
                self.deaths.push(now_ns);
                self.remove(slot, now_ns + spell_ns);
            }
            return;
        }
        let Some(gateway) = &mut self.slots[slot].gateway else {
            return;
        };
        let redis = Self::server(&mut self.redis, &mut self.old, self.master, gateway.link_ref());
        let chance = &mut self.chance;
        match fault {
            Fault::Cut => gateway.link().cut(redis, now_ns, now_ns + spell_ns, chance),
            Fault::CutLookups => gateway.link().cut_lookups(redis, now_ns, now_ns + spell_ns, chance),
            Fault::Deaf => gateway.link().cut_ears(redis, now_ns, now_ns + spell_ns, chance),
            Fault::HalfDead => gateway.link().lose_hearing(now_ns),
            Fault::Astray => gateway.link().lose_partitions(redis, now_ns, chance),
            Fault::Lossy => gateway.link().lose_packets(now_ns + spell_ns),
            Fault::Slow => {
                let slow_ns = (50 + chance.below(1_300) as u64) * MS;
                gateway.link().slow_down(slow_ns);
                self.books.frozen.push((now_ns, now_ns + spell_ns + 2_000 * MS));
                self.later(spell_ns, Later::Fast(slot));
            }
            Fault::Drain => {
                if gateway.is_serving() {
                    let within_ms = 500 + chance.below(4_000) as u64;
                    let per_second = chance.pick(&[0, 1, 5]);
                    gateway.begin_drain(within_ms, per_second);
                }
            }
            Fault::Stall => {
                gateway.frozen_until_ns = now_ns + spell_ns;
                self.books.frozen.push((now_ns, now_ns + spell_ns));
            }
            Fault::StallShard => {
                let shard = chance.below(gateway.shards.len());
                gateway.shards[shard].stalled_until_ns = now_ns + spell_ns;
                self.books.frozen.push((now_ns, now_ns + spell_ns));
            }
            Fault::StallShards => {
                for shard in &mut gateway.shards {
                    shard.stalled_until_ns = u64::MAX;
                }
                self.books.frozen.push((now_ns, u64::MAX));
            }
            _ => unreachable!("done above"),
        }
    }

    /// Everybody's connections to Redis are gone.
    fn break_everything(&mut self) {
        for slot in &mut self.slots {
            if let Some(gateway) = &mut slot.gateway {
                let server = Self::server(&mut self.redis, &mut self.old, self.master, gateway.link_ref());
                gateway.link().lose_all(server, self.now_ns, &mut self.chance);
            }
        }
    }

    /// The replica becomes the master, and the master stays for those who have not heard of it.
    fn move_master(&mut self) {
        if self.is_split() {
            return;
        }
        let data = if self.chance.percent(70) {
            self.redis.snapshot.clone()
        } else {
            self.redis.data.clone()
        };
        let now_ns = self.now_ns;
        self.old.restart(data, now_ns);
        self.old.snapshot = self.old.data.clone();
        (self.old.oom, self.redis.oom) = (self.redis.oom, false);
        self.old.silent_until_ns = self.redis.silent_until_ns;
        std::mem::swap(&mut self.redis, &mut self.old);
        self.old.locates = 0;
        self.master += 1;
        *self.faults_seen.entry("masters moved").or_default() += 1;
        for slot in 0..self.slots.len() {
            let late_ms = if self.chance.percent(50) { 200 } else { 6_000 };
            let after_ns = self.chance.below(late_ms) as u64 * MS;
            self.later(after_ns, Later::Follow(slot));
        }
    }

    fn follow_master(&mut self, slot: usize) {
        let (master, now_ns) = (self.master, self.now_ns);
        if let Some(gateway) = &mut self.slots[slot].gateway
            && gateway.link_ref().master() != master
        {
            gateway.link().follow(master, &mut self.old, now_ns, &mut self.chance);
        }
    }
}
