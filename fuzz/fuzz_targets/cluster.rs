//! A cluster's rules, where the fuzzer says what shards ask, what the store answers, and what is
//! heard on its channels.

#![no_main]

#[path = "../../tests/support/hostile.rs"]
mod hostile;

#[path = "../../tests/support/sim/chance.rs"]
#[allow(dead_code, reason = "tests use the rest of it")]
mod chance;

mod sim {
    pub(crate) use super::chance;
}

use libfuzzer_sys::fuzz_target;
use sim::chance::Chance;

fuzz_target!(|input: &[u8]| {
    hostile::run(&mut Chance::bytes(input), 2_000);
});
