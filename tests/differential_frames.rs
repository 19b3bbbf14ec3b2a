//! We read frames ourselves because tungstenite's context costs more than all the rest of a small
//! message. This is what that freedom is paid with: on any bytes, cut anywhere, both say the same
//! and fail for the same reason.
//!
//! The differences that are allowed are listed, with their reasons, in `support/frame_oracle.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/frame_oracle.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the fuzzer")]
mod frame_oracle;

use std::sync::atomic::{AtomicU32, Ordering};

use frame_oracle::{Agreement, client_frame, compare};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// `PROPTEST_CASES` takes precedence, so that Miri and slow machines can ask for less.
fn cases(count: u32) -> Config {
    let count = std::env::var("PROPTEST_CASES").map_or(count, |text| text.parse().expect("PROPTEST_CASES is a number"));
    Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    }
}

/// How often each kind of agreement was seen: a generator that never fails proves nothing.
#[derive(Default)]
struct Tally([AtomicU32; 5]);

impl Tally {
    fn count(&self, agreement: Agreement) {
        self.0[agreement as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn seen(&self, agreement: Agreement) -> u32 {
        self.0[agreement as usize].load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
enum Payload {
    Text(String),
    /// UTF-8 that loses its last bytes.
    Cut(String, usize),
    Zeros(usize),
    Bytes(Vec<u8>),
    Close(u16, Vec<u8>),
}

impl Payload {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Payload::Text(text) => text.clone().into_bytes(),
            Payload::Cut(text, cut) => text.as_bytes()[..text.len().saturating_sub(*cut)].to_vec(),
            Payload::Zeros(len) => vec![0; *len],
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Close(code, reason) => [&code.to_be_bytes()[..], reason].concat(),
        }
    }
}

fn payloads() -> impl Strategy<Value = Payload> {
    prop_oneof![
        6 => "[a-zä€😀]{0,12}".prop_map(Payload::Text),
        2 => ("[ä€😀]{1,3}", 1usize..4).prop_map(|(text, cut)| Payload::Cut(text, cut)),
        1 => prop_oneof![0usize..130, 120usize..140, 950usize..1050, 65_530usize..65_540].prop_map(Payload::Zeros),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Payload::Bytes),
        1 => (prop_oneof![990u16..1020, 2990u16..3010, 4990u16..5010, any::<u16>()], prop::collection::vec(0u8..0x90, 0..4))
            .prop_map(|(code, reason)| Payload::Close(code, reason)),
    ]
}

/// First byte: mostly what a client may send, in an order that mostly makes sense only by chance.
fn firsts() -> impl Strategy<Value = u8> {
    prop_oneof![
        10 => prop::sample::select(vec![0x81u8, 0x82, 0x89, 0x8a]),
        6 => prop::sample::select(vec![0x01u8, 0x02, 0x00, 0x80]),
        2 => Just(0x88u8),
        1 => any::<u8>(),
    ]
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![20 => Just(None), 1 => Just(Some(2usize)), 1 => Just(Some(8usize))];
    let masks = prop_oneof![30 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    // Close frames with the codes where the ranges begin and end.
    let closes = (988u16..1018, prop::collection::vec(0u8..0x90, 0..4))
        .prop_map(|(code, reason)| (0x88, Payload::Close(code, reason)));
    (prop_oneof![30 => (firsts(), payloads()), 1 => closes], masks, lengths)
        .prop_map(|((first, payload), mask, length)| client_frame(first, &payload.bytes(), mask, length))
}

/// A fragmented message as it should be, with control frames between the fragments.
fn fragmented() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![4 => "[a-zä€😀]{0,40}".prop_map(String::into_bytes), 1 => prop::collection::vec(any::<u8>(), 0..12)];
    (
        text,
        prop::collection::vec((any::<Index>(), any::<bool>()), 1..5),
        any::<[u8; 4]>(),
        prop::sample::select(vec![1u8, 2]),
    )
        .prop_map(|(text, cuts, mask, opcode)| {
            let mut edges: Vec<usize> = cuts.iter().map(|(cut, _)| cut.index(text.len() + 1)).collect();
            edges.extend([0, text.len()]);
            edges.sort_unstable();
            let last = edges.len() - 2;
            let mut bytes = Vec::new();
            for (place, edge) in edges.windows(2).enumerate() {
                let first = if place == 0 { opcode } else { 0 } | if place == last { 0x80 } else { 0 };
                bytes.extend(client_frame(first, &text[edge[0]..edge[1]], Some(mask), None));
                if place < last && cuts[place].1 {
                    bytes.extend(client_frame(0x89, b"?", Some(mask), None));
                }
            }
            bytes
        })
}

fn limits() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![0usize, 10, 100, 125, 126, 1000, 65_535, 65_536])
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..6)
}

fn check(bytes: &[u8], cuts: &[Index], limit: usize, tally: &Tally) -> Result<(), TestCaseError> {
    let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    match compare(bytes, &cuts, limit) {
        Ok(agreement) => tally.count(agreement),
        Err(why) => return Err(TestCaseError::fail(format!("{why}\nbytes: {bytes:02x?}"))),
    }
    Ok(())
}

#[test]
fn conversations() {
    let tally = Tally::default();
    let pieces = prop::collection::vec(prop_oneof![3 => frames(), 2 => fragmented()], 1..4);
    let config = cases(10_000);
    let whole_run = config.cases >= 10_000;
    TestRunner::new(config)
        .run(&(pieces, cuts(), limits()), |(pieces, cuts, limit)| {
            check(&pieces.concat(), &cuts, limit, &tally)
        })
        .unwrap();
    if whole_run {
        assert!(tally.seen(Agreement::Same) > 5_000);
        for other in [Agreement::OtherFault, Agreement::LongLength, Agreement::BadGateway] {
            assert!(tally.seen(other) > 0, "{other:?}: {}", tally.seen(other));
        }
    }
}

#[test]
fn conversations_with_a_few_wrong_bytes() {
    let tally = Tally::default();
    let pieces = prop::collection::vec(prop_oneof![frames(), fragmented()], 1..4);
    let damage = prop::collection::vec((any::<Index>(), any::<u8>()), 1..3);
    let end = prop_oneof![2 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let config = cases(10_000);
    let whole_run = config.cases >= 10_000;
    TestRunner::new(config)
        .run(
            &(pieces, damage, end, cuts(), limits()),
            |(pieces, damage, end, cuts, limit)| {
                let mut bytes = pieces.concat();
                for (place, byte) in damage {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
                if let Some(end) = end {
                    bytes.truncate(end.index(bytes.len()));
                }
                check(&bytes, &cuts, limit, &tally)
            },
        )
        .unwrap();
    if whole_run {
        let seen = tally.seen(Agreement::ToldEarlier);
        assert!(seen > 100, "{seen}");
    }
}

#[test]
fn arbitrary_bytes() {
    let tally = Tally::default();
    // The mask bit is often set, or nothing would get far.
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![0x81u8, 0x82, 0x80, 0x88, 0x01, 0xfe, 0xff, 0, 1])
    ];
    TestRunner::new(cases(20_000))
        .run(
            &(prop::collection::vec(byte, 0..40), cuts(), limits()),
            |(bytes, cuts, limit)| check(&bytes, &cuts, limit, &tally),
        )
        .unwrap();
}
