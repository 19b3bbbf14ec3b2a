//! The worst case in memory of `SECURITY.md` follows from the keys' defaults and the bounds in the
//! code, and a gateway takes no more.

use std::path::Path;

use shardgate::config::{Config, Loaded, load};
use shardgate::ids::{CHANNEL_BYTES_MAX, USER_ID_BYTES_MAX};
use shardgate::lanes::LANE_BYTES_MAX;
use shardgate::wire::json::decode::PRESENCE_USERS_MAX;

use crate::common::{Client, Gateway};
use crate::read;

const SECTION: &str = "## The worst case in memory";

/// Bytes of an idle connection: its own state, its user's, and an allocator's rounding.
const CONNECTION_BYTES: usize = 1024;
/// Copies of a channel's name: the connection's shard, the channel's shard, the control thread, and
/// one on its way between them.
const COPIES_OF_A_NAME: usize = 4;
/// Bytes of a subscription besides its name, if it is the only one of its channel.
const BESIDE_A_NAME_BYTES: usize = 300;
/// Bytes of an answer that a shard holds, besides those in hyper and its pipe: `go_on` of
/// `src/http`.
const ANSWER_BYTES: usize = 64 * 1024;

fn names() -> usize {
    let limits = defaults().limits;
    COPIES_OF_A_NAME * limits.channel_name_bytes + limits.channels_per_connection * BESIDE_A_NAME_BYTES
}

fn defaults() -> Config {
    match load(["--gateway-id=g"], std::iter::empty::<(&str, &str)>()).unwrap() {
        Loaded::Run(config) => *config,
        other => panic!("{other:?}"),
    }
}

/// A private bound of a room, read from its source: a product or a shift of numbers.
#[track_caller]
fn constant(file: &str, name: &str) -> usize {
    let text = read(Path::new(file));
    let line = text.lines().find(|line| line.contains(&format!("const {name}: ")));
    let line =
        line.unwrap_or_else(|| panic!("{file} has no {name} any more: mend {SECTION:?} of SECURITY.md and this test"));
    let value = line.split_once(" = ").unwrap().1.trim_end_matches(';').replace('_', "");
    let number = |text: &str| {
        text.trim()
            .parse::<usize>()
            .unwrap_or_else(|_| panic!("{file}: {line}"))
    };
    match value.split_once("<<") {
        Some((number_text, shift)) => number(number_text) << number(shift),
        None => value.split('*').map(number).product(),
    }
}

/// The rows of the section's table: names and bytes.
fn rows() -> Vec<(String, usize)> {
    let text = read(Path::new("SECURITY.md"));
    let section = text.split_once(SECTION).expect("the section").1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    rows.skip(1)
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let bytes = cells[2].replace(',', "");
            (cells[0].to_owned(), bytes.parse().unwrap_or_else(|_| panic!("{row}")))
        })
        .collect()
}

#[test]
fn the_worst_case_follows_from_the_keys() {
    let limits = defaults().limits;
    let names = names();
    let question = PRESENCE_USERS_MAX * USER_ID_BYTES_MAX;
    let expected = [
        (
            "a connection",
            CONNECTION_BYTES + limits.outbox_bytes + limits.message_bytes,
        ),
        ("the names of its channels", names),
        (
            "a socket without a known user",
            limits.header_bytes + ANSWER_BYTES + 2 * constant("src/http/pipe.rs", "OUTPUT_BYTES_MAX"),
        ),
        ("TLS of either", constant("src/tls/connection.rs", "PARTIAL_BYTES_MAX")),
        (
            "questions for presence, each shard",
            constant("src/shard/presence.rs", "QUESTIONS_MAX") * question,
        ),
        (
            "publications on their way, each shard",
            constant("src/router/channels/mod.rs", "QUEUED_BYTES_MAX"),
        ),
        (
            "messages whose receiver is being looked up, each shard",
            constant("src/shard/messages/parked.rs", "HELD_BYTES_MAX"),
        ),
        (
            "requests of administrators, each shard",
            constant("src/shard/admission/inquiries.rs", "REQUESTS_MAX") * limits.message_bytes,
        ),
        ("a lane between two threads", LANE_BYTES_MAX),
        (
            "what Redis has not taken, the gateway",
            constant("src/redis/backlog.rs", "BYTES_MAX"),
        ),
        (
            "what another gateway has not been sent, each",
            constant("src/cluster/outbound.rs", "WAITING_BYTES_MAX"),
        ),
    ];
    let expected: Vec<(String, usize)> = expected.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    assert_eq!(rows(), expected, "{SECTION:?} of SECURITY.md");

    // The sentence behind the table: 10,000 connections and 8,192 of the others, over TLS.
    let tls = expected[3].1;
    let all = 10_000 * (expected[0].1 + names + tls) + 8192 * (expected[2].1 + tls);
    let sentence = format!("{:.1} GiB", all as f64 / (1 << 30) as f64);
    let text = read(Path::new("SECURITY.md"));
    let text: Vec<&str> = text.split_whitespace().collect();
    assert!(
        text.join(" ").contains(&sentence),
        "SECURITY.md does not say {sentence}"
    );
}

/// The private memory of the gateway's process, bytes.
fn resident(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The worst that a client can do with names: the most, the longest, and each used by no other
/// client.
#[test]
fn names_of_channels_take_what_is_said() {
    const CLIENTS: usize = 60;
    let channels = defaults().limits.channels_per_connection;
    let gateway = Gateway::start(&["--limits-messages-per-second", "0", "--shards", "2"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|n| gateway.connect(&format!("user{n}"))).collect();
    let before = resident(&gateway);
    for (n, client) in clients.iter_mut().enumerate() {
        for channel in 0..channels {
            let name = format!("{n}-{channel}-{:x<1$}", "", CHANNEL_BYTES_MAX);
            let name = &name[..CHANNEL_BYTES_MAX];
            client.send_text(&format!(r#"{{"type":"subscribe","channel":"{name}"}}"#));
        }
        for _ in 0..channels {
            assert_eq!(client.recv_json()["type"], "subscribed");
        }
    }
    let each = (resident(&gateway) - before) / CLIENTS;
    let said = names();
    assert!(
        each <= said,
        "{each} bytes for each client's names, and SECURITY.md says {said}"
    );
    // A figure that is far too high is useless, too.
    assert!(
        each * 3 >= said,
        "{each} bytes for each client's names, and SECURITY.md says {said}"
    );
}
