//! Several whole gateways in one thread and in virtual time, over a model of Redis that fails in every way we know of.
//! Each run follows from its seed; `SEED=n` repeats one, `SEEDS=n` asks for more of them.
//!
//! Promised here: presence converges on every gateway and nothing of the dead stays; nothing comes twice or out of order;
//! acks tell the truth and come in time; nothing fails while all is well; nothing is left over.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sim/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared with the simulation of one gateway"
)]
mod sim;
#[path = "support/sim_cluster/mod.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a test's own")]
mod sim_cluster;

use sim::chance::Chance;
use sim_cluster::faults::Fault;
use sim_cluster::link::MS;
use sim_cluster::{Setup, World};

/// Says which seed it was when a run fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: SEED={} cargo test --test simulation_cluster", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs `one` with each seed.
fn seeds(usual: u64, one: impl Fn(Chance)) {
    let range = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    };
    for seed in range {
        let _named = Seed(seed);
        one(Chance::seeded(seed));
    }
}

fn world(mut chance: Chance, faults: &[Fault]) -> World {
    let setup = Setup {
        gateways: 2 + chance.below(3),
        shards: 1 + chance.below(2) as u16,
        users: 2 + chance.below(7),
        clients_max: 4 + chance.below(16),
        ttl_ms: chance.pick(&[9_000, 15_000]),
        pace_ns: chance.pick(&[8 * MS, 40 * MS, 100 * MS]),
        moves: chance.pick(&[1, 5, 20, 50]),
    };
    let mut world = World::new(setup, chance);
    world.faults = faults.to_vec();
    world
}

fn run(chance: Chance, faults: &[Fault], rounds: usize, round_ms: u64) {
    let mut world = world(chance, faults);
    for _ in 0..rounds {
        world.live(round_ms);
        world.settle();
    }
    world.check_empty();
    if std::env::var_os("SIM_TRACE").is_some() {
        eprintln!("{:?} {:?}", world.books.tally, world.faults_seen);
    }
}

#[test]
fn all_is_well() {
    seeds(8, |chance| {
        let mut world = world(chance, &[]);
        for _ in 0..2 {
            world.live(5_000);
            world.settle();
        }
        world.check_empty();
        assert_eq!(world.books.tally.acks.get("failed"), None);
        assert_eq!(world.books.tally.unavailable, 0);
    });
}

#[test]
fn anything_may_fail() {
    seeds(10, |chance| run(chance, &Fault::ALL, 2, 20_000));
}
