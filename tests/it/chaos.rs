//! Many clients that connect, talk, are cut half-way, reset, half-close, stall and send nonsense,
//! by chance but from a seed. Afterwards nothing is left of them, and the gateway serves as on its
//! first day.
//!
//! `CHAOS_SEED=… CHAOS_STEPS=… cargo test --test chaos` repeats or prolongs a run.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::client::{CLOSE, PING, TEXT, frame_bytes, text_bytes, upgrade_head};
use common::{Authority, Client, Gateway, eventually};
use fastrand::Rng;
use std::io::Write;
use std::sync::Arc;

on_both_engines! { nothing_is_left_of_a_crowd, nor_over_tls }

const THREADS: u64 = 4;
const USERS: u32 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn nothing_is_left_of_a_crowd(engine: &str) {
    crowd(engine, None);
}

fn nor_over_tls(engine: &str) {
    crowd(engine, Some(&Authority::new()));
}

fn crowd(engine: &str, authority: Option<&Authority>) {
    let seed = number("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = number("CHAOS_STEPS").unwrap_or(400);
    eprintln!("CHAOS_SEED={seed} CHAOS_STEPS={steps}");
    let mut args = vec![
        "--engine",
        engine,
        "--shards",
        "3",
        "--echo",
        "--limits-connections-per-user",
        "3",
        "--limits-handshake-timeout",
        "1s",
        "--auth-timeout",
        "1s",
        "--heartbeat-interval",
        "500ms",
        "--heartbeat-timeout",
        "2s",
        "--limits-outbox-bytes",
        "65536",
        "--limits-message-bytes",
        "32768",
    ];
    let pair = authority.map(|authority| authority.sign("server"));
    if let Some(pair) = &pair {
        args.extend(["--tls-cert", pair.cert(), "--tls-key", pair.key()]);
    }
    let mut gateway = Gateway::start(&args);
    gateway.tls = authority.map(Authority::client);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let gateway = &gateway;
            scope.spawn(move || misbehave(gateway, Rng::with_seed(seed ^ thread), steps));
        }
        // A well-behaved client is served meanwhile.
        let mut client = gateway.connect("well-behaved");
        for n in 0..steps / 10 {
            client.send_message_expecting("nobody", &n.to_string(), "offline");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        client.close();
    });
    gateway.wait_until_empty();
    eventually("no socket is left but the one that asks", || {
        gateway.metric("shardgate_sockets", &[]) <= 1.0
    });
    let accepted = gateway.metric("shardgate_connections_accepted_total", &[]);
    let closed = gateway.metric("shardgate_connections_closed_total", &[]);
    assert_eq!(accepted, closed, "every connection that began has ended, once");
    assert!(
        accepted > steps as f64 / 10.0,
        "{accepted} of {steps} steps on {THREADS} threads got in"
    );
    assert_eq!(gateway.metric("shardgate_lane_depth", &[]), 0.0);
    assert_eq!(gateway.get("/readyz").status, 200);
    assert_eq!(gateway.get("/livez").status, 200);
    let mut clients: Vec<Client> = (0..USERS).map(|n| gateway.connect(&format!("user{n}"))).collect();
    for n in 0..USERS as usize {
        let to = (n + 1) % USERS as usize;
        clients[n].send_message_expecting(&format!("user{to}"), "\"after\"", "delivered");
        assert_eq!(clients[to].recv_json()["content"], "after");
    }
}

/// One thread's share: a pool of clients, and each step does something to one of them.
fn misbehave(gateway: &Gateway, mut rng: Rng, steps: u64) {
    let mut pool: Vec<Client> = Vec::new();
    for _ in 0..steps {
        if pool.len() < 4 || (pool.len() < 30 && rng.u8(..3) == 0) {
            pool.push(arrive(gateway, &mut rng));
            continue;
        }
        let at = rng.usize(..pool.len());
        match rng.u8(..12) {
            0 => pool.swap_remove(at).reset(),
            1 => drop(pool.swap_remove(at)),
            2 => {
                let _ = pool[at].stream.shutdown(std::net::Shutdown::Write);
            }
            3 => pool[at].send_carelessly(&frame_bytes(0x80 | CLOSE, &1000u16.to_be_bytes())),
            4 => {
                let cut = rng.usize(1..30);
                let frame = message(&mut rng);
                pool[at].send_carelessly(&frame[..cut.min(frame.len())]);
            }
            5 => {
                let noise: Vec<u8> = (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
                // Below TLS now and then, where there is any.
                if rng.bool() {
                    let _ = pool[at].stream.write_all(&noise);
                } else {
                    pool[at].send_carelessly(&noise);
                }
            }
            6 => pool[at].send_carelessly(&frame_bytes(rng.u8(..), b"x")),
            _ => {
                for _ in 0..rng.u8(1..20) {
                    let frame = message(&mut rng);
                    pool[at].send_carelessly(&frame);
                }
            }
        }
        // Some read what came, some never do.
        if rng.bool() {
            let at = rng.usize(..pool.len().max(1));
            if let Some(client) = pool.get_mut(at) {
                drain(client);
            }
        }
    }
}

fn arrive(gateway: &Gateway, rng: &mut Rng) -> Client {
    let mut client = if rng.u8(..4) == 0 {
        let client = Client::connect_with_receive_buffer(gateway.addr, 2048);
        match &gateway.tls {
            Some(tls) => client.over_tls(Arc::clone(tls)),
            None => client,
        }
    } else {
        gateway.tcp()
    };
    client
        .stream
        .set_write_timeout(Some(std::time::Duration::from_millis(50)))
        .unwrap();
    let user = rng.u32(..USERS);
    match rng.u8(..10) {
        0 => {}
        1 => {
            let head = upgrade_head(&format!("/ws?user=user{user}"), "");
            client.send_carelessly(&head.as_bytes()[..rng.usize(..head.len())]);
        }
        2 => client.send_carelessly(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\n"),
        3 => client.send_carelessly(upgrade_head("/echo", "").as_bytes()),
        4 | 5 => {
            let mut bytes = upgrade_head("/ws", "").into_bytes();
            bytes.extend(text_bytes(&format!(r#"{{"type":"auth","userId":"user{user}"}}"#)));
            bytes.extend(message(rng));
            client.send_carelessly(&bytes);
        }
        _ => {
            let mut bytes = upgrade_head(&format!("/ws?user=user{user}"), "").into_bytes();
            bytes.extend(message(rng));
            client.send_carelessly(&bytes);
        }
    }
    client
}

fn message(rng: &mut Rng) -> Vec<u8> {
    let to = rng.u32(..USERS);
    match rng.u8(..8) {
        0 => frame_bytes(0x80 | PING, b"ping"),
        1 => frame_bytes(TEXT, b"{\"type\":"),
        2 => text_bytes("{}"),
        3 => text_bytes(&format!(
            r#"{{"type":"presence","users":["user{to}","user0"],"id":"p"}}"#
        )),
        4 => text_bytes(&format!(
            r#"{{"type":"message","to":"user{to}","content":"{}"}}"#,
            "x".repeat(rng.usize(..30_000))
        )),
        _ => text_bytes(&format!(
            r#"{{"type":"message","to":"user{to}","content":{to},"id":"m"}}"#
        )),
    }
}

/// Reads what is there, without waiting.
fn drain(client: &mut Client) {
    use std::io::Read;
    client.stream.set_nonblocking(true).unwrap();
    let mut chunk = [0; 16384];
    while matches!(client.stream.read(&mut chunk), Ok(len) if len > 0) {}
    client.stream.set_nonblocking(false).unwrap();
}
