//! A gateway of one to three shards in virtual time, where the fuzzer makes all choices: who
//! connects how, who says what, how bytes are cut, which shard turns, what breaks. The model of
//! `tests/simulation.rs` watches.

#![no_main]

#[path = "../../tests/support/sim/mod.rs"]
#[allow(dead_code, reason = "tests use the rest of it")]
mod sim;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use shardgate::config::Config;
use sim::chance::Chance;
use sim::{Setup, World, control};

fuzz_target!(|input: &[u8]| {
    let mut chance = Chance::bytes(input);
    let mut config = Config {
        echo: true,
        auth_timeout: Duration::from_secs(1),
        ..Config::default()
    };
    config.limits.handshake_timeout = Duration::from_secs(2);
    config.limits.message_bytes = 4096;
    config.limits.messages_per_second = chance.pick(&[0, 0, 50]);
    config.limits.burst = 20;
    config.limits.outbox_bytes = chance.pick(&[1 << 20, 4096]);
    config.limits.connections_per_user = chance.pick(&[0, 1, 2]);
    config.heartbeat.interval = Duration::from_millis(800);
    config.heartbeat.timeout = Duration::from_millis(2400);
    let shards = 1 + chance.below(3);
    if chance.percent(30) {
        config.limits.connections = Some(3);
        config.limits.handshakes = Some(shards);
    }
    config.admin.token = Some(control::ADMIN_TOKEN.to_owned().into());
    let tokens = chance.percent(30);
    if tokens {
        control::with_tokens(&mut config);
    }
    let setup = Setup {
        shards: shards as u16,
        users: 4,
        channels: 3,
        config,
        clients_max: 8,
        clogs: chance.percent(10),
        hostile: chance.percent(30),
        tokens,
        reloads: chance.percent(50),
    };
    let drains = chance.percent(20);
    let mut world = World::new(setup, chance);
    let mut steps = 0;
    while !world.chance.is_spent() && steps < 2_000 {
        world.chaos();
        steps += 1;
    }
    if drains {
        world.begin_drain(1_000);
        world.settle(8_000);
        assert!(world.drained().is_some(), "not drained");
    } else {
        world.settle(7_000);
        world.check();
    }
    world.everybody_leaves();
    world.settle(8_000);
    world.check_empty();
});
