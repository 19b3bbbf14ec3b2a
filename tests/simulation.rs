//! Whole gateways in one thread and in virtual time: shards, lanes and hostile clients, with a
//! model that knows what may happen. Each run follows from its seed; `SEED=n` repeats one,
//! `SEEDS=n` asks for more of them.
//!
//! Promised here: nothing lost but what was said to be lost, nothing twice, everything in order;
//! acks and presence tell the truth; limits hold; heartbeats come in time; drains end; and when
//! everybody has gone, nothing is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sim/mod.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the fuzzer")]
mod sim;

use std::cell::Cell;
use std::time::Duration;

use shardgate::config::Config;
use shardgate::ids::ShardId;
use shardgate::lanes::{LANE_ITEMS_MAX, LANE_ITEMS_RESERVED};
use sim::chance::Chance;
use sim::client::Plan;
use sim::control;
use sim::reach::Reach;
use sim::{Setup, World};

/// Says which seed it was when a run fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: SEED={} cargo test --test simulation", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs `one` with each seed.
fn seeds(usual: u64, one: impl Fn(&mut World)) {
    let range = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    };
    for seed in range {
        let _named = Seed(seed);
        one(&mut world(seed));
    }
}

/// A simulation that falls asleep proves nothing: over the usual seeds, or more, each of the counts
/// that `wanted` names is one of something that happened.
fn check_awake(reach: Reach, usual: u64, wanted: impl Fn(&str) -> bool) {
    println!("{reach}");
    if number("SEED").is_none() && number("SEEDS").is_none_or(|seeds| seeds >= usual) {
        let asleep = reach.asleep().into_iter().filter(|name| wanted(name));
        let asleep: Vec<&str> = asleep.collect();
        assert!(asleep.is_empty(), "the simulation does not come to {asleep:?}\n{reach}");
    }
}

fn config() -> Config {
    let mut config = Config {
        echo: true,
        auth_timeout: Duration::from_secs(1),
        ..Config::default()
    };
    config.limits.handshake_timeout = Duration::from_secs(2);
    config.limits.messages_per_second = 0;
    config.limits.message_bytes = 4096;
    config.admin.token = Some(control::ADMIN_TOKEN.to_owned().into());
    config
}

fn world(seed: u64) -> World {
    let mut chance = Chance::seeded(seed);
    let mut config = config();
    config.heartbeat.interval = Duration::from_millis(500 + 100 * chance.below(20) as u64);
    config.heartbeat.timeout = config.heartbeat.interval * 3;
    config.limits.outbox_bytes = chance.pick(&[4096, 16_384, 1 << 20]);
    config.limits.connections_per_user = chance.pick(&[0, 1, 2, 4]);
    if chance.percent(20) {
        config.limits.messages_per_second = 50;
        config.limits.burst = 20;
    }
    config.limits.channels_per_connection = chance.pick(&[2, 128]);
    let shards = 1 + chance.below(4);
    if chance.percent(30) {
        config.limits.connections = Some(2 + chance.below(6));
        config.limits.handshakes = Some(shards + chance.below(4));
    }
    let tokens = chance.percent(40);
    if tokens {
        control::with_tokens(&mut config);
    }
    let setup = Setup {
        shards: shards as u16,
        users: 2 + chance.below(8),
        channels: 1 + chance.below(5),
        config,
        clients_max: 5 + chance.below(25),
        clogs: chance.percent(25),
        hostile: chance.percent(50),
        tokens,
        reloads: chance.percent(50),
    };
    World::new(setup, chance)
}

#[test]
fn anything_may_happen() {
    const USUAL: u64 = 40;
    let reach = Cell::new(Reach::default());
    seeds(USUAL, |world| {
        for _ in 0..3 {
            for _ in 0..600 {
                world.chaos();
            }
            world.settle(7_000);
            world.check();
        }
        if world.chance.percent(20) {
            for _ in 0..100 {
                world.chaos();
            }
            world.stop();
        } else {
            world.everybody_leaves();
            world.settle(8_000);
            world.check_empty();
        }
        reach.set(reach.get() + world.reach());
    });
    // Rushes are the business of `crowds_get_what_is_theirs`.
    check_awake(reach.get(), USUAL, |name| name != "held_accepts");
}

#[test]
fn drains_end() {
    seeds(15, |world| {
        for _ in 0..500 {
            world.chaos();
        }
        let until_ms = world.begin_drain(3_000);
        let before = world.ends_not_drained();
        while world.now_ms() < until_ms {
            world.chaos();
        }
        // Those who do not answer our close frame have five seconds.
        world.settle(8_000);
        let (left, closed) = world.drained().expect("drained");
        assert_eq!(world.ends_not_drained(), before, "{left} left and {closed} closed");
        assert!(closed >= world.metric("shardgate_connections_closed_total", "code=\"3001\""));
        assert!(world.live().is_empty());
        world.everybody_leaves();
        world.settle(8_000);
        world.check_empty();
    });
}

/// Channels with more people in them than one turn reaches: who comes, goes or publishes meanwhile
/// gets what is theirs.
#[test]
fn crowds_get_what_is_theirs() {
    const USUAL: u64 = 5;
    let reach = Cell::new(Reach::default());
    seeds(USUAL, |world| {
        let mut config = config();
        config.heartbeat = world.settings.heartbeat;
        config.limits.connections_per_user = 0;
        if world.setup.tokens {
            control::with_tokens(&mut config);
        }
        // Small ones make for small batches, and so for many passes.
        config.limits.outbox_bytes = world.settings.limits.outbox_bytes;
        let setup = Setup {
            shards: world.setup.shards.min(2),
            users: 2,
            channels: 2,
            clients_max: 0,
            config,
            ..world.setup
        };
        let chance = Chance::seeded(u64::from(world.chance.word()));
        let mut world = World::new(setup, chance);
        let clients: Vec<usize> = (0..300)
            .map(|number| world.connect(0, Plan::Query(number % 2)))
            .collect();
        for client in clients {
            world.set_window(client, 100_000);
            for channel in 0..2 {
                if world.chance.percent(80) {
                    world.ask_channel(client, channel, true);
                }
            }
        }
        world.settle(0);
        for _ in 0..40 {
            world.bustle();
        }
        world.settle(7_000);
        world.check();
        world.everybody_leaves();
        world.settle(8_000);
        world.check_empty();
        reach.set(reach.get() + world.reach());
    });
    check_awake(reach.get(), USUAL, |name| name == "held_accepts");
}

/// Two shards with a user each, connected at home.
fn two_shards(outbox_bytes: usize) -> (World, [usize; 2], [usize; 2]) {
    let mut config = config();
    config.limits.outbox_bytes = outbox_bytes;
    config.heartbeat.interval = Duration::from_secs(1000);
    config.heartbeat.timeout = Duration::from_secs(3000);
    let setup = Setup {
        shards: 2,
        users: 12,
        channels: 12,
        config,
        clients_max: 0,
        clogs: true,
        hostile: false,
        tokens: false,
        reloads: false,
    };
    let mut world = World::new(setup, Chance::seeded(1));
    let users = [world.user_on(0), world.user_on(1)];
    let clients = [
        world.join(0, Plan::Query(users[0])),
        world.join(1, Plan::Query(users[1])),
    ];
    (world, users, clients)
}

const FULL: usize = LANE_ITEMS_MAX as usize;
const RESERVED: usize = LANE_ITEMS_RESERVED as usize;

/// Sends `count` messages while only the sender's shard turns.
fn flood(world: &mut World, from: usize, shard: usize, to: usize, count: usize) {
    for sent in 0..count {
        world.message(from, to);
        if sent % 500 == 499 {
            world.turn_only(shard);
        }
    }
    world.turn_only(shard);
}

fn dropped(world: &World, kind: &str) -> u64 {
    world.metric(
        "shardgate_dropped_total",
        &format!("kind=\"{kind}\",reason=\"lane_full\""),
    )
}

/// A shard that does not turn: whoever wants something of it hears so at once, and all is well when
/// it turns again.
#[test]
fn a_full_lane_is_told_counted_and_forgotten() {
    let (mut world, users, clients) = two_shards(1 << 26);
    flood(&mut world, clients[0], 0, users[1], FULL + 50);
    assert_eq!((world.acks("failed"), world.acks("delivered")), (50, 0));
    assert_eq!(dropped(&world, "message"), 50);

    // A flood of messages leaves room for questions and hand-overs, but not without end.
    let questions: Vec<usize> = (0..5000).map(|_| world.ask(clients[0], &users)).collect();
    world.turn_only(0);
    for (place, question) in questions.into_iter().enumerate() {
        let refusal = (place >= RESERVED).then_some("unavailable");
        assert_eq!(world.books.refusal(question), refusal, "question {place}");
    }
    assert_eq!(dropped(&world, "presence"), 5000 - RESERVED as u64);

    let by_query = world.connect(0, Plan::Query(users[1]));
    let by_auth = world.connect(0, Plan::Auth(users[1]));
    world.turn_only(0);
    assert_eq!(world.clients[by_query].status, Some(503));
    assert_eq!(world.clients[by_auth].close_code, Some(Some(3013)));
    assert_eq!(dropped(&world, "handover"), 2);
    // Who needs nobody else is not touched.
    world.message(clients[0], users[0]);
    world.turn_only(0);
    assert_eq!(world.acks("delivered"), 1);

    world.settle(0);
    assert_eq!((world.acks("failed"), world.acks("delivered")), (50, FULL + 1));
    let question = world.ask(clients[0], &users);
    world.message(clients[0], users[1]);
    world.join(0, Plan::Query(users[1]));
    assert_eq!(world.acks("delivered"), FULL + 2);
    assert!(world.books.answer(question).unwrap().values().all(|online| *online));
    world.check();
    world.everybody_leaves();
    world.settle(6_000);
    world.check_empty();
}

/// A publication that a full lane does not take has failed, for its channel's home as for those
/// with subscribers.
#[test]
fn publications_that_do_not_fit_fail() {
    let (mut world, _, clients) = two_shards(1 << 26);
    let channels = [world.channel_on(0), world.channel_on(1)];
    for channel in channels {
        for client in clients {
            world.ask_channel(client, channel, true);
        }
    }
    world.settle(0);
    for _ in 0..FULL / 2 + 50 {
        // The one goes to its home, the other one from its home to a subscriber.
        for channel in channels {
            world.publish(clients[0], channel, 10);
        }
    }
    world.turn_only(0);
    // The other home has said nothing yet.
    let acks = |world: &World| ["failed", "published"].map(|status| world.books.channels.acks(status));
    assert_eq!(acks(&world), [100, FULL / 2]);
    assert_eq!(dropped(&world, "publication"), 100);

    // Joins have room of their own, but not without end; leaves are no more than joins.
    world.ask_channel(clients[0], channels[1], false);
    for _ in 0..RESERVED / 2 {
        world.ask_channel(clients[0], channels[1], true);
        world.ask_channel(clients[0], channels[1], false);
    }
    world.turn_only(0);
    assert_eq!(dropped(&world, "subscription"), 0);
    world.ask_channel(clients[0], channels[1], true);
    world.turn_only(0);
    assert_eq!(dropped(&world, "subscription"), 1);

    world.settle(0);
    assert_eq!(acks(&world), [100, FULL]);
    world.check();
    world.publish(clients[0], channels[1], 10);
    world.settle(0);
    assert_eq!(acks(&world), [100, FULL + 1]);
    world.check();
    world.everybody_leaves();
    world.settle(6_000);
    world.check_empty();
}

/// Answers may fill a lane; requests behind them are refused. Neither shard waits for the other.
#[test]
fn lanes_that_are_full_both_ways_come_free() {
    let (mut world, users, clients) = two_shards(1 << 26);
    flood(&mut world, clients[0], 0, users[1], FULL);
    // Shard 1 carries all of it out and answers, while shard 0 is stuck.
    world.turn_only(1);
    flood(&mut world, clients[1], 1, users[0], 100);
    assert_eq!((world.acks("failed"), world.acks("delivered")), (100, 0));
    assert_eq!(world.shared.depths.get(ShardId(1), ShardId(0)), LANE_ITEMS_MAX);
    assert_eq!(world.shared.depths.get(ShardId(0), ShardId(1)), 0);
    // Now the other way round, with the lane back still full of answers.
    flood(&mut world, clients[0], 0, users[1], 100);
    world.settle(0);
    assert_eq!((world.acks("failed"), world.acks("delivered")), (100, FULL + 100));
    world.message(clients[1], users[0]);
    world.settle(0);
    assert_eq!(world.acks("delivered"), FULL + 101);
    world.check();
}

/// The message that closes a slow consumer was not delivered, nor was any after it; all before it
/// were queued.
#[test]
fn what_does_not_fit_into_an_outbox_is_offline() {
    const OUTBOX: usize = 4096;
    let (mut world, users, clients) = two_shards(OUTBOX);
    let turns = |world: &mut World| {
        for _ in 0..200 {
            world.now_ns += 1_000_000;
            world.move_bytes(true);
            world.turn(0, true);
            world.turn(1, true);
        }
    };
    // Numbers of two digits from here on: all frames are as long as each other.
    for _ in 0..10 {
        world.message(clients[0], users[0]);
    }
    world.settle(0);
    world.clients[clients[1]].stall();
    world.set_window(clients[1], 10_000);
    world.message(clients[0], users[1]);
    turns(&mut world);
    let frame_bytes = world.unread(clients[1]);
    assert!((100..400).contains(&frame_bytes), "{frame_bytes}");
    world.set_window(clients[1], 0);
    let (fit, before, first) = (
        OUTBOX / frame_bytes,
        world.acks("delivered"),
        world.books.messages.len(),
    );
    for _ in 0..fit + 5 {
        world.message(clients[0], users[1]);
    }
    turns(&mut world);
    assert_eq!((world.acks("delivered") - before, world.acks("offline")), (fit, 5));
    let acks = world.books.messages[first..]
        .iter()
        .map(|message| message.ack.as_deref());
    assert!(acks.is_sorted(), "first delivered, then offline");
    world.settle(6_000);
    world.check();
}

/// Nobody waits for a deadline at the end of a conversation: who has said goodbye and heard it is
/// let go at once.
#[test]
fn goodbyes_take_no_time() {
    let (mut world, users, clients) = two_shards(1 << 20);
    world.clients[clients[0]].say_goodbye(&mut world.chance);
    world.settle(0);
    assert!(world.clients[clients[0]].has_ended());
    // With bytes of its own still on their way out.
    for _ in 0..50 {
        world.message(clients[1], users[1]);
    }
    world.clients[clients[1]].say_goodbye(&mut world.chance);
    world.settle(0);
    assert!(world.clients[clients[1]].has_ended());
    world.check_empty();
}

/// A client reads its `101` at the last moment, in the turn in which the hand-over's deadline
/// comes: it moves all the same.
#[test]
fn a_hand_over_that_is_ready_has_no_deadline() {
    let (mut world, users, _) = two_shards(1 << 20);
    let client = world.connect(0, Plan::HastyAuth(users[1]));
    world.set_window(client, 0);
    world.turn_only(0);
    let due_ms = world.shards[0].real.next_due_ms().unwrap();
    world.now_ns = due_ms * 1_000_000;
    world.set_window(client, 1000);
    world.turn(0, true);
    world.settle(0);
    assert!(world.clients[client].is_live(), "{:?}", world.clients[client]);
    world.check();
}
