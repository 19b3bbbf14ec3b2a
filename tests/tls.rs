//! TLS on the public listener: the same gateway, sealed.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::client::{Client, text_bytes, upgrade_head};
use common::{Authority, Gateway};
use rustls::version::{TLS12, TLS13};
use serde_json::json;

on_both_engines! {
    messages_between_shards, both_versions_and_alpn, what_comes_behind_the_handshake_in_one_packet,
}

/// A gateway with a certificate, whose clients trust it.
struct Secure {
    gateway: Gateway,
    authority: Authority,
}

impl Secure {
    fn start(engine: &str, args: &[&str]) -> Secure {
        let authority = Authority::new();
        let pair = authority.sign("server");
        let files = ["--tls-cert", pair.cert(), "--tls-key", pair.key(), "--engine", engine];
        let mut gateway = Gateway::start(&[&files, args].concat());
        gateway.tls = Some(authority.client());
        Secure {
            gateway,
            authority,
        }
    }

    fn refused(&self, reason: &str) -> f64 {
        let reason = format!("reason=\"{reason}\"");
        self.gateway.metric("shardgate_handshakes_refused_total", &[&reason])
    }
}

fn messages_between_shards(engine: &str) {
    let it = Secure::start(engine, &[]);
    // Some of them live where they arrived, some do not.
    let mut clients: Vec<Client> = (0..8).map(|n| it.gateway.connect(&format!("user{n}"))).collect();
    for from in 0..8 {
        for to in 0..8 {
            if from != to {
                clients[from].send_message_expecting(&format!("user{to}"), "\"hello\"", "delivered");
                assert_eq!(clients[to].recv_json()["content"], "hello");
            }
        }
    }
    // With the user in a frame the connection leaves after its 101.
    for n in 0..8 {
        let mut client = it.gateway.upgrade("/ws");
        client.send_json(&json!({"type": "auth", "userId": format!("late{n}")}));
        assert_eq!(client.recv_json()["type"], "welcome");
        client.close();
    }
    for client in clients {
        client.close();
    }
    it.gateway.wait_until_empty();
}

fn both_versions_and_alpn(engine: &str) {
    let it = Secure::start(engine, &["--echo"]);
    for version in [&TLS12, &TLS13] {
        for (offers, chosen) in [
            (&["http/1.1"][..], Some("http/1.1")),
            (&["h2", "http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let mut config = it.authority.client_with(&[version], None);
            config.alpn_protocols = offers.iter().map(|name| name.as_bytes().to_vec()).collect();
            let mut client = Client::connect(it.gateway.addr).over_tls(Arc::new(config));
            let tls = client.tls.as_ref().unwrap();
            assert_eq!(tls.protocol_version(), Some(version.version));
            assert_eq!(tls.alpn_protocol(), chosen.map(str::as_bytes));
            client.send_upgrade("/echo", "");
            assert_eq!(client.read_head().status, 101);
            client.send_text("hello");
            assert_eq!(client.recv_text(), "hello");
            client.close();
        }
        let mut config = it.authority.client_with(&[version], None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let refused = Client::connect(it.gateway.addr).try_over_tls(Arc::new(config));
        let said = refused.err().unwrap().to_string();
        assert!(said.contains("NoApplicationProtocol"), "{said}");
    }
    assert_eq!(it.refused("tls"), 2.0);
}

fn what_comes_behind_the_handshake_in_one_packet(engine: &str) {
    let it = Secure::start(engine, &[]);
    for version in [&TLS12, &TLS13] {
        for n in 0..8 {
            let config = it.authority.client_with(&[version], None);
            let mut client = Client::connect(it.gateway.addr).over_tls(Arc::new(config));
            let mut bytes = upgrade_head(&format!("/ws?user=user{n}"), "").into_bytes();
            for _ in 0..10 {
                bytes.extend(text_bytes(r#"{"type":"heartbeat"}"#));
            }
            client.send_raw(&bytes);
            assert_eq!(client.read_head().status, 101);
            assert_eq!(client.recv_json()["type"], "welcome");
            for _ in 0..10 {
                assert_eq!(client.recv_json()["type"], "heartbeat");
            }
        }
    }
}
