//! No client waits behind another: not behind a flood, a fragment that never ends, or a crowd that
//! connects.

#![allow(clippy::unwrap_used)]

use crate::common;

use common::Gateway;
use common::client::{Client, TEXT, frame_bytes, text_bytes};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

on_both_engines! { behind_floods, behind_unfinished_frames, behind_a_crowd }

/// Conversations that must go on while the others do their worst. Each step waits for its answer,
/// up to the deadline.
fn talk(gateway: &Gateway, steps: usize) {
    let mut carol = gateway.connect("carol");
    let mut dave = gateway.connect("dave");
    for n in 0..steps {
        carol.send_text(&format!(r#"{{"type":"message","to":"dave","content":{n},"id":"c"}}"#));
        assert_eq!(dave.recv_json()["content"], n);
        assert_eq!(carol.recv_json()["status"], "delivered");
    }
    carol.close();
    dave.close();
}

/// Ends the threads of a scope also when the test fails, so that it fails rather than hangs.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn behind_floods(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine, "--limits-messages-per-second", "0"]);
    let stop = AtomicBool::new(false);
    let flood = text_bytes(r#"{"type":"message","to":"sink","content":"flood"}"#).repeat(500);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let mut client = gateway.connect(&format!("flooder{n}"));
            let (flood, stop) = (&flood, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    client.send_carelessly(flood);
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        let began = Instant::now();
        talk(&gateway, 20);
        assert_eq!(gateway.get("/livez").status, 200);
        eprintln!("20 round trips behind floods took {:?}", began.elapsed());
    });
    assert!(
        gateway.stats()["messagesIn"].as_u64().unwrap() > 2000,
        "there was a flood"
    );
}

fn behind_unfinished_frames(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let _stuck: Vec<Client> = (0..50)
        .map(|n| {
            let mut client = gateway.connect(&format!("stuck{n}"));
            match n % 3 {
                0 => client.send_frame(TEXT, b"{\"type\":"),
                1 => client.send_raw(&frame_bytes(0x80 | TEXT, &[b' '; 60_000])[..30_000]),
                _ => client.send_raw(&[0x81]),
            }
            client
        })
        .collect();
    talk(&gateway, 20);
    assert_eq!(gateway.stats()["connections"], 50);
}

fn behind_a_crowd(engine: &str) {
    let gateway = Gateway::start(&["--engine", engine]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (gateway, stop) = (&gateway, &stop);
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let client = gateway.connect(&format!("passer-by{thread}-{n}"));
                    n += 1;
                    if n % 2 == 0 { client.close() } else { client.reset() }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        talk(&gateway, 20);
    });
    gateway.wait_until_empty();
}
