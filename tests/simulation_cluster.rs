//! Several whole gateways in one thread and in virtual time, over a model of Redis that fails in
//! every way we know of. Each run follows from its seed; `SEED=n` repeats one, `SEEDS=n` asks for
//! more of them.
//!
//! Promised here: presence converges on every gateway and nothing of the dead stays; nothing comes
//! twice or out of order; acks tell the truth and come in time; nothing fails while all is well;
//! nothing is left over.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/hostile.rs"]
#[allow(unreachable_pub, reason = "shared with the fuzzer")]
mod hostile;
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

use shardgate::redis::keys::Names;
use sim::chance::Chance;
use sim_cluster::faults::Fault;
use sim_cluster::link::MS;
use sim_cluster::store::Common;
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

fn setup(chance: &mut Chance) -> Setup {
    Setup {
        gateways: 2 + chance.below(3),
        shards: 1 + chance.below(2) as u16,
        users: 2 + chance.below(7),
        channels: 1 + chance.below(8),
        clients_max: 4 + chance.below(16),
        ttl_ms: chance.pick(&[9_000, 15_000]),
        pace_ns: chance.pick(&[8 * MS, 40 * MS, 100 * MS]),
        moves: chance.pick(&[1, 5, 20, 50]),
    }
}

fn world(mut chance: Chance, faults: &[Fault]) -> World {
    let setup = setup(&mut chance);
    let mut world = World::new(setup, chance);
    world.faults = faults.to_vec();
    // What happens soon after trouble, which starting is, proves little.
    world.run_until(world.now_ns + 6_000 * MS);
    world
}

/// Two gateways with a user each, and a client of each: user 0 on gateway 0.
fn pair(chance: Chance) -> (World, [usize; 2]) {
    let setup = Setup {
        gateways: 2,
        shards: 2,
        users: 2,
        channels: 0,
        clients_max: 0,
        ttl_ms: 9_000,
        pace_ns: MS,
        moves: 0,
    };
    let mut world = World::new(setup, chance);
    let clients = [0, 1].map(|slot| world.connect(slot, slot).unwrap());
    world.run_until(world.now_ns + 1_000 * MS);
    (world, clients)
}

fn acks(world: &World, status: &str) -> u64 {
    world.books.tally.acks.get(status).copied().unwrap_or_default()
}

/// Who writes to somebody whose place is known asks nobody; who moves is asked for once more.
#[test]
fn a_known_place_costs_nothing() {
    seeds(5, |chance| {
        let (mut world, clients) = pair(chance);
        for _ in 0..100 {
            world.message(clients[0], 1);
            world.run_until(world.now_ns + 20 * MS);
        }
        world.run_until(world.now_ns + 500 * MS);
        assert_eq!((acks(&world, "routed"), world.redis.locates), (100, 1));
        world.leave(clients[1]);
        world.run_until(world.now_ns + 500 * MS);
        for _ in 0..100 {
            world.message(clients[0], 1);
            world.run_until(world.now_ns + 20 * MS);
        }
        world.run_until(world.now_ns + 500 * MS);
        assert_eq!((acks(&world, "offline"), world.redis.locates), (100, 2));
        world.check();
    });
}

/// A shard that does not turn while others send to its users: they hear `failed` in time, and all
/// is well afterwards.
#[test]
fn a_full_lane_fails_in_time() {
    seeds(1, |chance| {
        let (mut world, clients) = pair(chance);
        world.message(clients[0], 1);
        world.run_until(world.now_ns + 500 * MS);
        world.begin_fault(Fault::StallShards, 1);
        // More bytes than the lane takes.
        for _ in 0..20 {
            world.long_message(clients[0], 1, 1 << 20);
            world.run_until(world.now_ns + 20 * MS);
        }
        world.run_until(world.now_ns + 10_000 * MS);
        let last = world.books.messages.last();
        assert_eq!(
            acks(&world, "routed") + acks(&world, "failed"),
            21,
            "{last:?} {:?}",
            world.books.clients
        );
        assert!(acks(&world, "failed") >= 4, "{:?}", world.books.tally);
        world.end_faults();
        world.run_until(world.now_ns + 10_000 * MS);
        world.message(clients[0], 1);
        world.run_until(world.now_ns + 500 * MS);
        assert_eq!(acks(&world, "routed") + acks(&world, "failed"), 22);
        world.check_empty();
    });
}

/// Rounds of trouble, each with its end. Returns the world as it is then, empty.
fn run(chance: Chance, faults: &[Fault], rounds: usize, round_ms: u64) -> World {
    let mut world = world(chance, faults);
    for _ in 0..rounds {
        world.live(round_ms);
        // Trouble is over, and people go on.
        world.end_faults();
        world.run_until(world.now_ns + 8_000 * MS);
        world.live_well(4_000);
        world.settle();
    }
    world.check_empty();
    if std::env::var_os("SIM_TRACE").is_some() {
        eprintln!("{:?} {:?}", world.books.tally, world.faults_seen);
    }
    world
}

#[test]
fn all_is_well() {
    seeds(4, |chance| {
        let mut world = world(chance, &[]);
        for _ in 0..2 {
            world.live(5_000);
            world.settle();
        }
        world.check_empty();
        if std::env::var_os("SIM_TRACE").is_some() {
            eprintln!("{:?}", world.books.tally);
        }
        assert_eq!(world.books.tally.acks.get("failed"), None);
        assert_eq!(world.books.tally.unavailable, 0);
    });
}

#[test]
fn anything_may_fail() {
    seeds(4, |chance| drop(run(chance, &Fault::ALL, 2, 20_000)));
}

/// Discovery changes its mind, and changes it back: recent writes are lost, and for a while
/// gateways are at two masters.
#[test]
fn discovery_changes_its_mind() {
    seeds(3, |chance| {
        let faults = [Fault::Move, Fault::Move, Fault::Kill, Fault::Cut];
        let world = run(chance, &faults, 2, 20_000);
        if std::env::var_os("SIM_TRACE").is_some() {
            eprintln!("{} ms at two masters", world.split_ns / MS);
        }
        assert!(world.master >= 2, "there and back again: {}", world.master);
        assert!(
            world.split_ns > 500 * MS,
            "gateways were at two masters for {} ns",
            world.split_ns
        );
    });
}

/// Two systems on one server, with users, channels and gateways of the same names.
struct Together {
    worlds: Vec<World>,
    common: Common,
}

impl Together {
    fn new(chance: &mut Chance, names: [(&str, u32); 2], faults: &[Fault]) -> Self {
        let systems = names.into_iter().enumerate().map(|(system, (prefix, db))| {
            let setup = setup(chance);
            let chance = Chance::seeded(u64::from(chance.word()));
            let mut world = World::of_system(setup, system, Names::new(prefix, db), chance);
            world.faults = faults.to_vec();
            world
        });
        Together {
            worlds: systems.collect(),
            common: Common::default(),
        }
    }

    /// Both run for this long, in turns of a few milliseconds.
    fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms / 5 {
            for world in &mut self.worlds {
                world.run_with(&mut self.common, 5);
            }
        }
    }
}

/// Two systems in two databases, or under two prefixes: nothing crosses.
#[test]
fn two_systems_on_one_server() {
    const LOCAL: &[Fault] = &[
        Fault::Cut,
        Fault::CutLookups,
        Fault::Deaf,
        Fault::HalfDead,
        Fault::Lossy,
        Fault::Astray,
        Fault::Kill,
        Fault::Drain,
        Fault::Stall,
        Fault::LoseUser,
    ];
    seeds(3, |mut chance| {
        // The last one: one prefix begins with the other.
        let names = chance.pick(&[
            [("sg:", 0), ("sg:", 3)],
            [("a:", 0), ("b:", 0)],
            [("a:", 0), ("a:a:", 0)],
        ]);
        let faults = chance.pick(&[&[], LOCAL]);
        let mut systems = Together::new(&mut chance, names, faults);
        systems.run(9_000);
        systems.worlds.iter_mut().for_each(World::begin_life);
        systems.run(12_000);
        systems.worlds.iter_mut().for_each(World::end_life);
        systems.worlds.iter_mut().for_each(World::end_faults);
        systems.run(12_000);
        for world in &mut systems.worlds {
            std::mem::swap(&mut world.redis.common, &mut systems.common);
            world.settle();
            std::mem::swap(&mut world.redis.common, &mut systems.common);
            let tally = &world.books.tally;
            assert_eq!(world.foreign_packets, 0, "packets crossed");
            assert!(tally.acks.values().sum::<u64>() > 0, "nobody wrote: {tally:?}");
            if std::env::var_os("SIM_TRACE").is_some() {
                eprintln!("{names:?} {tally:?} {:?}", world.faults_seen);
            }
        }
    });
}

/// With the same names what one system says does reach the other one: so that it does not
/// otherwise, proves something.
#[test]
fn two_systems_of_the_same_names_would_cross() {
    let mut systems = Together::new(&mut Chance::seeded(1), [("sg:", 0), ("sg:", 0)], &[]);
    systems.run(6_000);
    // What the last gateway says to all when it has joined.
    let crossed: u64 = systems.worlds.iter().map(|world| world.foreign_packets).sum();
    assert!(crossed > 0);
}

/// The hostile world is one in which something happens.
#[test]
fn hostile_stores_and_shards_are_awake() {
    let runs = (0..40).map(|seed| hostile::run(&mut Chance::seeded(seed), 300));
    let (mut answered, mut refused, mut bodies) = (0, 0, 0);
    for tally in runs {
        answered += tally.answered;
        refused += tally.refused;
        bodies += tally.bodies;
    }
    assert!(
        answered > 300 && refused > 100 && bodies > 40,
        "{answered} {refused} {bodies}"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 150, ..Default::default() })]

    /// The fuzz target `cluster`, with what chance makes up.
    #[test]
    fn whatever_store_and_shards_say(input in proptest::collection::vec(proptest::num::u8::ANY, 1..4_000)) {
        hostile::run(&mut Chance::bytes(&input), 2_000);
    }
}
